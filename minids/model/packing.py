"""Packed rows: several documents in one row of a batch, each read by itself.

Report 4.1 (sample-level attention masks). A position sees its own document only, positions count
from the document's first token, and compression windows are cut from there, so that tails shorter
than m give no entry: a packed row computes what its documents would compute alone. For how
documents are packed see `minids.pretrain.batches`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.model.masks import forbid


class Packing:
    """Where the documents of a batch lie.

    `first`: B x T, true at each document's first token; each row begins a document, too.
    """

    def __init__(self, first: Tensor) -> None:
        first = first.clone()
        first[:, 0] = True                                  # a row that starts inside a document
        at = torch.arange(first.shape[1], device=first.device)
        # B T: 0, 1, ... in each row, and 0, 1, ... in each document
        self.document = first.cumsum(1) - 1
        self.position = at - torch.where(first, at, 0).cummax(1).values

    @classmethod
    def of(cls, ids: Tensor, bos_id: int) -> "Packing":
        """From token ids, B x T, in which each document begins with `bos_id`."""
        return cls(ids == bos_id)

    def same(self, shift: int) -> Tensor:
        """B x T: whether position t + shift exists and belongs to the document of position t."""
        same = torch.zeros_like(self.document, dtype=torch.bool)
        same[:, :-shift] = self.document[:, :-shift] == self.document[:, shift:]
        return same

    def windows(self, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """The complete windows of m tokens of all documents, row by row: their tokens, B x S x m;
        the document of each window, B x S, -1 where a row has fewer than S; and the number of each
        window in its document, B x S.

        S is the most that a row has. To know it, the host would wait for a GPU: there it is the
        most that a row can have, T // m.
        """
        ends = (self.position + 1) % m == 0                                      # B T
        S = int(ends.sum(1).max()) if ends.device.type == "cpu" else ends.shape[1] // m
        # B S: the ends first, in their order
        last = ends.logical_not().byte().argsort(dim=1, stable=True)[:, :S]
        exists = ends.gather(1, last)
        tokens = (last[:, :, None] + torch.arange(1 - m, 1, device=last.device)).clamp(min=0)
        document = self.document.gather(1, last).masked_fill(~exists, -1)
        number = (self.position.gather(1, last) // m).masked_fill(~exists, 0)
        return tokens, document, number

    def incomplete(self, m: int, document: Tensor, number: Tensor) -> Tensor:
        """B x T x S: -inf where a window is not complete for a query, or is of another document;
        else 0. document, number: of each window, as `windows` gives them."""
        complete = number[:, None] < (self.position[:, :, None] + 1) // m        # B T S
        return forbid((document[:, None] != self.document[:, :, None]) | ~complete)

    def apart(self, n: int, b: int, before: int) -> Tensor:
        """B x nb x before+b: -inf where a key is of another document than the query; else 0. The
        queries lie in n blocks of b, see `passes.Pass.window_mask`."""
        document = F.pad(self.document, (before, n * b - self.document.shape[1]), value=-1)
        keys = document.unfold(1, before + b, b)                                 # B n before+b
        queries = document[:, before:].view(-1, n, b, 1)
        return forbid(queries != keys[:, :, None]).flatten(1, 2)
