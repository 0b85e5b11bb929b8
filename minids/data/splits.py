"""The train, valid and test splits: a hash of a text decides which split it belongs to."""

import hashlib

SPLITS = ("train", "valid", "test")     # 80, 10 and 10 % of all texts


def split_by_hash(text: str) -> str:
    """One of SPLITS with probability 80, 10 and 10 %; the same text always gives the same split."""
    slot = stable_hash(text) % 10
    return "train" if slot < 8 else SPLITS[slot - 7]


def stable_hash(text: str) -> int:
    """A 64-bit hash that, unlike hash(), is the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
