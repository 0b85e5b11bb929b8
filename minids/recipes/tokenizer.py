"""The shipped tokenizer, data/tokenizer/tokenizer.json, learned from the mixture.

    python -m minids.recipes.tokenizer
"""

from itertools import islice

from minids.data import mixture
from minids.data.tokenizer import train
from minids.system.files import check_writable
from minids.system.paths import DATA

DOCUMENTS = 5000    # documents of the mixture's training split, in its order


def main() -> None:
    """Learn the merges, and write the tokenizer."""
    out = DATA / "tokenizer" / "tokenizer.json"
    check_writable(out)
    texts = (text for _, text in islice(mixture.documents("train"), DOCUMENTS))
    train(texts).save(out)


if __name__ == "__main__":
    main()
