"""The base model's corpus: real English, TinyWorld's scenes, stories and portraits, and worked problems, in fixed shares.

Report: section 4.1 (a corpus of many sources, mathematics and code among them). Everything is shipped or generated,
and document number i of a kind is always the same one. Each kind has its splits: real books by document, problems by
`minids.data.tasks`, stories by their seed. How documents share a row of a batch is training's business.
"""

import random
from functools import cache
from itertools import islice

import numpy as np

from minids.data import books, tasks
from minids.data.tinyworld import facts, stories
from minids.errors import MinidsError

# of all characters
SHARES = {"text": 0.15, "scenes": 0.20, "stories": 0.30, "portraits": 0.10, "problems": 0.25}
WORDS = 60, 1500            # of a story: the logarithm of its length is uniform between these
PASSAGE = 3000              # characters of a passage of real text, about


def document(kind: str, split: str, index: int) -> str:
    """Document number `index` of a kind (a key of SHARES) and a split ("train", "valid" or "heldout")."""
    if kind not in SHARES or split not in books.SPLITS:
        raise MinidsError(f"expected a kind of {', '.join(SHARES)} and a split of {', '.join(books.SPLITS)}, "
                          f"found {kind!r} and {split!r}")
    rng = random.Random(f"{kind} {split} {index}")
    if kind == "text":
        found = passages(split)
        return found[index % len(found)]
    if kind == "stories":
        shortest, longest = WORDS
        return stories.document(rng, round(shortest * (longest / shortest) ** rng.random()))
    if kind == "scenes":
        return stories.scene(rng)
    if kind == "portraits":
        return "\n".join(facts.portrait(rng, rng.choice(facts.SUBJECTS)) for _ in range(rng.randint(1, 6)))
    family = rng.choice(tasks.FAMILIES)
    several = tasks.problems(family, {"heldout": "test"}.get(split, split), 8, first=8 * index)
    return "\n".join(tasks.as_text(problem) for problem in several)


@cache
def passages(split: str) -> list[str]:
    """The real text of a split in passages of whole lines, shuffled."""
    found = []
    for book in books.documents(split):
        lines, size = [], 0
        for line in book.text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size >= PASSAGE:
                found.append("".join(lines))
                lines, size = [], 0
        if lines:
            found.append("".join(lines))
    random.Random(f"passages {split}").shuffle(found)
    return found


def documents(split: str, kinds=tuple(SHARES)):
    """Documents without end, (kind, text): always of the kind that is furthest behind its share."""
    written, count = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    while True:
        kind = min(kinds, key=lambda kind: written[kind] / SHARES[kind])
        found = document(kind, split, count[kind])
        written[kind] += len(found)
        count[kind] += 1
        yield kind, found


def stream(split: str, tokens: int, tokenizer, kinds=tuple(SHARES)) -> np.ndarray:
    """At least `tokens` token ids (it ends with a whole document), uint16, each document between bos and eos."""
    parts, size, source = [], 0, documents(split, kinds)
    while size < tokens:
        part = books.encode_texts([found for _, found in islice(source, 64)], tokenizer)
        parts.append(part)
        size += len(part)
    return np.concatenate(parts)


def streams(tokens: int, tokenizer) -> dict[str, np.ndarray]:
    """What a run of `tokens` tokens reads, and what it is measured on: {"train", "valid", "heldout"}."""
    return {"train": stream("train", tokens, tokenizer), "valid": stream("valid", 60_000, tokenizer),
            "heldout": stream("heldout", 120_000, tokenizer)}
