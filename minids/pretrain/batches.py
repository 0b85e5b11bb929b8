"""Batches: the windows of text that a step reads, the targets in them, and the parts of a batch.

Report 4.1: documents are packed into rows, and each is read by itself (sample-level masks). For the
text itself see `minids.data`.
"""

import math
from functools import cache, cached_property

import numpy as np

from minids.data import books, mixture
from minids.data.token_cache import cached_ids
from minids.data.tokenizer import Tokenizer
from minids.model.packing import Packing

BOS = 0             # the id that begins a document in streams of the shipped tokenizer
IGNORED = -100      # a target that does not count: `cross_entropy` knows this number


@cache
def corpus() -> dict[str, np.ndarray]:
    """The shipped text as id streams of the shipped tokenizer: {"train", "valid", "heldout"}."""
    tokenizer = Tokenizer.load()

    def encode(split):
        return cached_ids(f"books {split}", tokenizer,
                    lambda: books.encode(books.documents(split), tokenizer))

    return {split: encode(split) for split in books.SPLITS}


def streams(settings) -> dict[str, np.ndarray]:
    """The id streams that `settings.data` names: "text", the shipped text, or "mix", of which there
    is twice as much as the run reads."""
    if settings.data == "text":
        return corpus()
    return mixture.streams(2 * settings.tokens, Tokenizer.load())


def batch_of(stream, rows: int, seq_len: int, seed: int, step: int,
             whole_documents: bool = False, stage: int = 0) -> np.ndarray:
    """The batch of one step: `rows` windows of the stream, B x T+1, int64.

    An epoch goes once through windows that touch, in a random order; where the first window starts
    is random too, so that epochs cut the text differently. With `whole_documents` a row begins
    where a document does, so that no question refers to text that was cut off; the end of a
    document that does not fit is left out. Each stage of a run counts its steps from 0 and has its
    own order.
    """
    T = seq_len
    if whole_documents:
        begins = document_starts(stream, T)
    else:
        begins = np.arange((len(stream) - 1) // T - 1) * T          # the shift costs one window
    batch = []
    for i in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(i, len(begins))
        shift, order = epoch_order(seed, epoch, stage, len(begins), T)
        begin = begins[order[place]] + (0 if whole_documents else shift)
        batch.append(stream[begin : begin + T + 1])
    return np.stack(batch).astype(np.int64)


def batch_at(stream, settings, step: int) -> np.ndarray:
    """The batch of a step of the run with these settings (a `TrainConfig`), B x T+1, int64."""
    stage, number, first = settings.at(step)
    return batch_of(stream, stage.batch, stage.seq_len, settings.seed, step - first,
                    whole_documents=settings.data == "mix", stage=number)


def document_starts(stream, T: int):
    """Where the first document begins in each window of T tokens, for windows that have one."""
    begins = np.flatnonzero(stream[: -T] == BOS)
    return begins[np.unique(begins // T, return_index=True)[1]]


def tokens_read(stream, settings) -> np.ndarray:
    """All that a run reads, batch after batch: a baseline of equal data is fitted to it."""
    return np.concatenate([batch_at(stream, settings, step).ravel()
                           for step in range(settings.steps)])


@cache
def epoch_order(seed: int, epoch: int, stage: int, windows: int, seq_len: int):
    """The shift of an epoch's first window, and the order of its windows."""
    rng = np.random.default_rng((seed, epoch, stage))
    return int(rng.integers(seq_len)), rng.permutation(windows)


class Part:
    """Rows of a batch and their targets: the input of one forward and backward pass.

    Made from ids, B x T+1. x: B T, the input. y: B T, the next token. z: b T-1, the token after the
    next, for the first b rows, on which the MTP loss is computed. With `packed`, targets in another
    document are `IGNORED`.
    """

    def __init__(self, ids, bos_id: int, packed: bool = True, mtp_share: float = 1.0):
        self.bos_id, self.packed = bos_id, packed
        self.x, self.y = ids[:, :-1], targets(ids, bos_id, packed)
        self.mtp_rows = slice(math.ceil(mtp_share * len(ids)))
        near, far = self.y[self.mtp_rows, :-1], self.y[self.mtp_rows, 1:]
        self.z = far.masked_fill(near == IGNORED, IGNORED)

    @cached_property
    def documents(self) -> Packing | None:
        """Where the documents lie in x."""
        return packing(self.x, self.bos_id, self.packed)

    def packing(self, x) -> Packing | None:
        """Where they lie in rows of `self.x`, or in beginnings of them."""
        return packing(x, self.bos_id, self.packed)


def parts_of(ids, settings, bos_id: int, processes: int) -> list[Part]:
    """The batch of all processes, B x T+1, in parts of one size, `accumulate` for each process.

    Part i of n has the rows i, i + n, ...: its first rows, to which the MTP loss may be confined,
    are the first of the batch.
    """
    n = settings.accumulate * processes
    return [Part(ids[i::n], bos_id, settings.packed, settings.mtp_share) for i in range(n)]


def targets(ids, bos_id: int, packed: bool = True):
    """ids: B T+1 -> the next tokens, B T; `IGNORED` where the next token begins a document."""
    y = ids[:, 1:]
    return y.masked_fill(y == bos_id, IGNORED) if packed else y


def packing(x, bos_id: int, packed: bool = True) -> Packing | None:
    """The documents of x, B T; None where none need keeping apart: without `packed`, and where
    each row has one document, except on a GPU, which would have to be asked."""
    several = packed and (x.device.type != "cpu" or bool((x[:, 1:] == bos_id).any()))
    return Packing.of(x, bos_id) if several else None
