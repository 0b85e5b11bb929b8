"""Batches: which windows of the text a step reads, what of them is to be predicted, and how they are cut into parts.

Report 4.1: documents are packed into rows, and each is read by itself (sample-level masks). The text itself is `minids.data`'s
business.
"""

import math
from functools import cache, cached_property

import numpy as np

from minids.data import books, mixture
from minids.data.tokenizer import Tokenizer
from minids.model.packing import Packing

BOS = 0             # the id that begins a document in streams of the shipped tokenizer
IGNORED = -100      # a target that does not count: `cross_entropy` knows this number


@cache
def corpus() -> dict[str, np.ndarray]:
    """The shipped text as id streams of the shipped tokenizer: {"train", "valid", "heldout"}."""
    return {split: books.encode(books.documents(split), Tokenizer.load()) for split in books.SPLITS}


def streams(settings) -> dict[str, np.ndarray]:
    """The id streams that `settings.data` names: "text", the shipped text, or "mix", twice what is read of the mixture."""
    return corpus() if settings.data == "text" else mixture.streams(2 * settings.tokens, Tokenizer.load())


def batch_of(stream, settings, step: int):
    """The batch of one step, B x T+1, int64. An epoch goes once through windows that touch, in a random order; where the
    first window starts is random too, so that epochs cut the text differently. Each stage begins anew. Of the mixture a row
    begins where a document does, so that nothing is asked about what was cut off; what does not fit behind is left out."""
    stage, number, first = settings.at(step)
    T, whole = stage.seq_len, settings.data == "mix"
    begins = documents(stream, T) if whole else np.arange((len(stream) - 1) // T - 1) * T      # the start costs one window
    rows = []
    for i in range((step - first) * stage.batch, (step - first + 1) * stage.batch):
        start, order = epoch_order(settings.seed, i // len(begins), number, len(begins), T)
        at = begins[order[i % len(begins)]] + (0 if whole else start)
        rows.append(stream[at : at + T + 1])
    return np.stack(rows).astype(np.int64)


def documents(stream, T: int):
    """Where the first document begins in each window of T tokens, for the windows in which one does."""
    begins = np.flatnonzero(stream[: -T] == BOS)
    return begins[np.unique(begins // T, return_index=True)[1]]


def tokens_read(stream, settings) -> np.ndarray:
    """All that a run reads, batch after batch: what a baseline of equal data is fitted to."""
    return np.concatenate([batch_of(stream, settings, step).ravel() for step in range(settings.steps)])


@cache
def epoch_order(seed: int, epoch: int, stage: int, windows: int, seq_len: int):
    rng = np.random.default_rng((seed, epoch, stage))
    return int(rng.integers(seq_len)), rng.permutation(windows)


class Part:
    """Rows of a batch and their targets: what one forward and backward pass works on. Made from ids, B x T+1.

    x: B T, the input. y: B T, the next token. z: b T-1, the token after the next, for the first b rows: those that the MTP
    loss is computed on. Where packed documents count by themselves, targets are `IGNORED` that lie in another document.
    """

    def __init__(self, ids, settings, bos_id: int):
        self.packed, self.bos_id = settings.packed, bos_id
        self.x, self.y = ids[:, :-1], targets(ids, bos_id, settings.packed)
        self.some = slice(math.ceil(settings.mtp_share * len(ids)))
        near, far = self.y[self.some, :-1], self.y[self.some, 1:]
        self.z = far.masked_fill(near == IGNORED, IGNORED)

    @cached_property
    def documents(self) -> Packing | None:
        """Where the documents lie in x."""
        return packing(self.x, self.bos_id, self.packed)

    def packing(self, x) -> Packing | None:
        """Where they lie in x, rows of `self.x` or beginnings of them."""
        return packing(x, self.bos_id, self.packed)


def parts_of(ids, settings, bos_id: int, processes: int) -> list[Part]:
    """The batch of all processes, B x T+1, in the parts that they take in turn: `accumulate` each, all of one size. Part i of n
    has the rows i, i + n, ..., so that its first rows, which the MTP loss may be confined to, are the first of the batch."""
    n = settings.accumulate * processes
    return [Part(ids[i::n], settings, bos_id) for i in range(n)]


def targets(ids, bos_id: int, packed: bool = True):
    """ids: B T+1 -> the next tokens, B T, `IGNORED` where those are the first of another document."""
    return ids[:, 1:].masked_fill(ids[:, 1:] == bos_id, IGNORED) if packed else ids[:, 1:]


def packing(x, bos_id: int, packed: bool = True) -> Packing | None:
    """The documents of x, B T; None where each row is of one document: then there is nothing to keep apart."""
    return Packing.of(x, bos_id) if packed and bool((x[:, 1:] == bos_id).any()) else None
