"""The English text that the course trains on: the King James Bible, Shakespeare and Milton, split by document.

Stands in for the report's pre-training corpus (section 4.1). `data/text/README.md` tells its origin and licence, and
`minids.recipes.books` made it. How text becomes ids is `minids.data.tokenizer`'s business, batches are `minids.pretrain.train`'s.
"""

import json
import lzma
from dataclasses import dataclass
from functools import cache

import numpy as np

from minids.errors import MinidsError
from minids.system.paths import DATA

SPLITS = ("train", "valid", "heldout")  # to learn from, to tune on, to report on


@dataclass(frozen=True)
class Document:
    """One book, play or collection of poems."""

    name: str
    source: str     # "King James Bible", "Shakespeare" or "Milton"
    split: str      # one of SPLITS
    text: str


@cache
def documents(split: str | None = None) -> tuple[Document, ...]:
    """The shipped documents of one split, or all of them, in a fixed order."""
    if split is not None and split not in SPLITS:
        raise MinidsError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
    if split is not None:
        return tuple(d for d in documents() if d.split == split)
    path = DATA / "text" / "documents.jsonl.xz"
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return tuple(Document(**json.loads(line)) for line in file)
    except FileNotFoundError:
        raise MinidsError(f"no text at {path}: expected the file that the repository ships") from None
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError) as error:
        raise MinidsError(f"{path} is damaged ({error}): restore it with `git checkout -- data/text`") from None


def encode(docs, tokenizer) -> np.ndarray:
    """The documents as one stream of token ids, uint16, each between the ids that begin and end a text."""
    return encode_texts((d.text for d in docs), tokenizer)


def encode_texts(texts, tokenizer) -> np.ndarray:
    """As `encode`, from strings."""
    ids = tokenizer.encode_all(texts)
    return np.concatenate([np.array([tokenizer.bos_id, *i, tokenizer.eos_id], dtype=np.uint16) for i in ids])


def n_bytes(docs) -> int:
    """Bytes of the documents in UTF-8: what "bits per byte" divides by."""
    return sum(len(d.text.encode("utf-8")) for d in docs)
