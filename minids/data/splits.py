"""Train, valid and test: which split something belongs to, decided by a hash of its text."""

import hashlib

SPLITS = ("train", "valid", "test")                              # 80, 10 and 10 % of what can be asked


def split_by_hash(text: str) -> str:
    """One of SPLITS, 80, 10 and 10 % of all texts, always the same one for a text."""
    slot = _hash(text) % 10
    return "train" if slot < 8 else SPLITS[slot - 7]


def _hash(text: str) -> int:
    """The same on every machine and in every process, unlike hash()."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
