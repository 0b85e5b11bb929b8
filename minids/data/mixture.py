"""The base model's corpus: real English, TinyWorld's scenes, stories and portraits, and problems.

Report: section 4.1 (a corpus of many sources, mathematics and code among them). The kinds of
documents have fixed shares of all characters. Everything is shipped or generated, and document i of
a kind is always the same one. Each kind keeps its splits apart: books by document, problems by
`minids.data.tasks`, stories by their seed. For how documents share the rows of a batch see
`minids.pretrain.batches`.
"""

import random
from functools import cache
from itertools import islice

import numpy as np

from minids.data import books, tasks
from minids.data.tinyworld import facts, stories
from minids.data.token_cache import cached_ids
from minids.errors import MinidsError

# of all characters
SHARES = {"text": 0.15, "scenes": 0.20, "stories": 0.30, "portraits": 0.10, "problems": 0.25}
WORDS = 60, 1500        # shortest and longest story; the logarithm of the length is uniform
PASSAGE = 3000          # approximate length of a passage of real text, in characters


def document(kind: str, split: str, index: int) -> str:
    """Document number `index` of a kind and a split.

    `kind` is a key of SHARES, `split` is "train", "valid" or "heldout".
    Raises `MinidsError` for an unknown kind or split.
    """
    if kind not in SHARES or split not in books.SPLITS:
        raise MinidsError(f"expected a kind of {', '.join(SHARES)} and a split of "
                          f"{', '.join(books.SPLITS)}, found {kind!r} and {split!r}")
    rng = random.Random(f"{kind} {split} {index}")
    if kind == "text":
        return passages(split)[index % len(passages(split))]
    if kind == "stories":
        shortest, longest = WORDS
        words = round(shortest * (longest / shortest) ** rng.random())
        return stories.story_with_questions(rng, words)
    if kind == "scenes":
        return stories.scene(rng)
    if kind == "portraits":
        count = rng.randint(1, 6)
        return "\n".join(facts.portrait(rng, rng.choice(facts.SUBJECTS)) for _ in range(count))
    family = rng.choice(tasks.FAMILIES)
    task_split = {"heldout": "test"}.get(split, split)
    problems = tasks.problems(family, task_split, 8, first=8 * index)
    return "\n".join(tasks.as_text(problem) for problem in problems)


@cache
def passages(split: str) -> list[str]:
    """The real text of a split in passages of whole lines, shuffled."""
    result = []
    for book in books.documents(split):
        lines, size = [], 0
        for line in book.text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size >= PASSAGE:
                result.append("".join(lines))
                lines, size = [], 0
        if lines:
            result.append("".join(lines))
    random.Random(f"passages {split}").shuffle(result)
    return result


def documents(split: str, kinds=tuple(SHARES)):
    """Yield (kind, text) without end; the next kind is the one furthest below its share."""
    written, count = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    while True:
        kind = min(kinds, key=lambda kind: written[kind] / SHARES[kind])
        text = document(kind, split, count[kind])
        written[kind] += len(text)
        count[kind] += 1
        yield kind, text


def stream(split: str, tokens: int, tokenizer, kinds=tuple(SHARES)) -> np.ndarray:
    """At least `tokens` token ids, uint16: whole documents, each between bos and eos."""
    parts, size, source = [], 0, documents(split, kinds)
    while size < tokens:
        part = books.encode_texts([text for _, text in islice(source, 64)], tokenizer)
        parts.append(part)
        size += len(part)
    return np.concatenate(parts)


def cached_stream(split: str, tokens: int, tokenizer) -> np.ndarray:
    """`stream`, kept in the user's cache: a million tokens take some seconds to make."""
    return cached_ids(f"mixture {split} {tokens} {SHARES}", tokenizer,
                      lambda: stream(split, tokens, tokenizer))


def streams(tokens: int, tokenizer) -> dict[str, np.ndarray]:
    """The token ids of each split: {"train": at least `tokens` of them, "valid", "heldout"}."""
    return {"train": cached_stream("train", tokens, tokenizer),
            "valid": cached_stream("valid", 60_000, tokenizer),
            "heldout": cached_stream("heldout", 120_000, tokenizer)}
