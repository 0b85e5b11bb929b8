"""The English text that the course trains on: the King James Bible, Shakespeare and Milton.

It stands in for the report's pre-training corpus (section 4.1). Each document belongs to one split.
For its origin and licence see `data/text/README.md`; `minids.recipes.books` makes the file. For how
text becomes ids see `minids.data.tokenizer`, for batches `minids.pretrain.batches`.
"""

import json
import lzma
from dataclasses import dataclass
from functools import cache

import numpy as np

from minids.errors import MinidsError
from minids.system.paths import DATA

SPLITS = ("train", "valid", "heldout")  # to train on, to tune on, to report on


@dataclass(frozen=True)
class Document:
    """One book, play or collection of poems."""

    name: str
    source: str     # "King James Bible", "Shakespeare" or "Milton"
    split: str      # one of SPLITS
    text: str


@cache
def documents(split: str | None = None) -> tuple[Document, ...]:
    """The shipped documents of one split, or of all splits (None), always in the same order."""
    if split is not None and split not in SPLITS:
        raise MinidsError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if split is not None:
        return tuple(d for d in documents() if d.split == split)
    path = DATA / "text" / "documents.jsonl.xz"
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return tuple(Document(**json.loads(line)) for line in file)
    except FileNotFoundError:
        raise MinidsError(f"no text at {path}: expected the file that the repository ships; "
                          "restore it with `git checkout -- data/text`") from None
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError) as error:
        raise MinidsError(f"{path} is damaged ({error}): restore it with "
                          "`git checkout -- data/text`") from None


def encode(docs, tokenizer) -> np.ndarray:
    """The token ids of the documents in one row, uint16, each document between bos and eos."""
    return encode_texts((d.text for d in docs), tokenizer)


def encode_texts(texts, tokenizer) -> np.ndarray:
    """The token ids of the strings in one row, uint16, each string between bos and eos."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    rows = [np.array([bos, *ids, eos], dtype=np.uint16) for ids in tokenizer.encode_all(texts)]
    return np.concatenate(rows)


def n_bytes(docs) -> int:
    """The size of the documents in UTF-8, in bytes: the divisor of "bits per byte"."""
    return sum(len(d.text.encode("utf-8")) for d in docs)
