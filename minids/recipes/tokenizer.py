"""The shipped tokenizer: `python -m minids.recipes.tokenizer` learns data/tokenizer/tokenizer.json again from the mixture."""

from itertools import islice

from minids.data import mixture
from minids.data.tokenizer import train
from minids.system.paths import DATA

DOCUMENTS = 5000    # of the mixture's training split, in its order


def main() -> None:
    """Learn the merges, and write them."""
    train(text for _, text in islice(mixture.documents("train"), DOCUMENTS)).save(DATA / "tokenizer" / "tokenizer.json")


if __name__ == "__main__":
    main()
