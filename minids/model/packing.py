"""Packed rows: several documents in one row of a batch, each read by itself.

Report 4.1 (sample-level attention masks). A position sees its own document only, positions count from the document's
first token, and compression windows are cut from there, so that tails shorter than m give no entry: a packed row
computes what its documents would compute alone. How documents are packed is training's business.
"""

import torch
import torch.nn.functional as F

from minids.model.masks import forbid


class Packing:
    """Where the documents of a batch lie. `first`: B T, true at each document's first token (and at each row's)."""

    def __init__(self, first: torch.Tensor):
        first = first.clone()
        first[:, 0] = True                                                               # a row that starts inside a document
        T = first.shape[1]
        at = torch.arange(T, device=first.device)
        self.document = first.cumsum(1) - 1                                              # B T: 0, 1, ... in each row
        self.position = at - torch.where(first, at, 0).cummax(1).values                  # B T: 0, 1, ... in each document
        self._kept = {}

    @classmethod
    def of(cls, ids: torch.Tensor, bos_id: int) -> "Packing":
        """From token ids, B T, in which each document begins with `bos_id`."""
        return cls(ids == bos_id)

    def same(self, shift: int) -> torch.Tensor:
        """B T: whether position t + shift is there and belongs to the document of position t."""
        same = torch.zeros_like(self.document, dtype=torch.bool)
        same[:, :-shift] = self.document[:, :-shift] == self.document[:, shift:]
        return same

    def windows(self, m: int):
        """The complete windows of m tokens of all documents, row by row: which tokens, B S m; the document of each window,
        B S, -1 where a row has fewer than S; the window's number in its document, B S."""
        return self._keep(("windows", m), self._windows, m)

    def _windows(self, m):
        ends = (self.position + 1) % m == 0                                              # B T
        S = int(ends.sum(1).max())
        last = ends.logical_not().byte().argsort(dim=1, stable=True)[:, :S]              # B S: ends first, in their order
        there = ends.gather(1, last)
        tokens = (last[:, :, None] + torch.arange(1 - m, 1, device=last.device)).clamp(min=0)
        number = self.position.gather(1, last) // m
        return tokens, self.document.gather(1, last).masked_fill(~there, -1), number.masked_fill(~there, 0)

    def incomplete(self, m: int):
        """B T S: -inf where a window is not complete for a query, or of another document; else 0."""
        return self._keep(("incomplete", m), self._incomplete, m)

    def _incomplete(self, m):
        _, document, number = self.windows(m)
        seen = (document[:, None] == self.document[:, :, None]) & (number[:, None] < (self.position[:, :, None] + 1) // m)
        return forbid(~seen)

    def apart(self, n: int, b: int, before: int):
        """B nb before+b: -inf where a key is of another document than the query, which lies in one of n blocks of b; else 0."""
        return self._keep(("apart", n, b), self._apart, n, b, before)

    def _apart(self, n, b, before):
        document = F.pad(self.document, (before, n * b - self.document.shape[1]), value=-1)
        keys = document.unfold(1, before + b, b)                                         # B n before+b
        return forbid(document[:, before:].view(-1, n, b, 1) != keys[:, :, None]).flatten(1, 2)

    def _keep(self, key, make, *arguments):
        if key not in self._kept:
            self._kept[key] = make(*arguments)
        return self._kept[key]
