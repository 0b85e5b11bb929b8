"""One pass through the network: options go in, a record comes out, layers share tables.

Report 2.1 (the sequence-wise balance loss), 4.1 (packing), 4.2 (dense attention before sparse,
anticipatory routing). For the weights of the losses see `minids.pretrain.losses`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minids.config import Config
from minids.model.masks import incomplete, outside
from minids.model.packing import Packing
from minids.model.rotary import Rotary


@dataclass(frozen=True)
class Options:
    """What one pass does differently from a plain one.

    `packing` keeps the documents of a row apart. `dense` lets CSA layers read all complete entries.
    `experts` are choices to replay: one tensor, N x K, for each gate that routes by score, in the
    order of the layers, MTP blocks last. `balance` and `index` request these two losses.
    """

    packing: Packing | None = None
    dense: bool = False
    experts: list[Tensor] | None = None
    balance: bool = False
    index: bool = False


def expert_loads(experts: Tensor, E: int) -> Tensor:
    """How many tokens each of E experts got: E, integers. experts: N K, the choices of a gate.

    `torch.bincount` does the same, but makes the host wait for a GPU.
    """
    experts = experts.flatten()
    return experts.new_zeros(E).scatter_add_(0, experts, torch.ones_like(experts))


@dataclass
class Record:
    """What one pass recorded, in the order of the layers.

    `experts` are the choices of the gates that route by score, N x K each, as `Options.experts`
    takes them. `balance` (one pair a gate) and `index` (one pair a CSA layer) are the losses that
    were requested: (sum, count).
    """

    n_experts: int
    experts: list[Tensor] = field(default_factory=list)
    balance: list[tuple[Tensor, int]] = field(default_factory=list)
    index: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def loads(self) -> list[Tensor]:
        """For each gate that routes by score, how many tokens each expert got: E."""
        return [expert_loads(experts, self.n_experts) for experts in self.experts]

    @property
    def balance_loss(self) -> Tensor:
        """The sequence-wise balance loss: the mean over gates of each gate's mean."""
        return torch.stack([total / count for total, count in self.balance]).mean()

    @property
    def index_loss(self) -> Tensor:
        """The indexers' loss, in nats: the mean over CSA layers of each layer's mean."""
        return torch.stack([total / count.clamp_min(1) for total, count in self.index]).mean()

    def __add__(self, other: "Record") -> "Record":
        """The record of two passes, such as one through the layers and one through an MTP block."""
        return Record(self.n_experts, self.experts + other.experts, self.balance + other.balance,
                      self.index + other.index)


class Pass:
    """What the layers of one pass share: options, record, and tables of rotations and masks.

    The pass reads T tokens at positions pos, pos + 1, ... (with a packing: each document's own).
    A table is made when the first layer asks for it, and is gone when the pass is over.
    """

    def __init__(self, config: Config, T: int, device: torch.device | str, pos: int = 0,
                 options: Options = Options()) -> None:
        self.T, self.pos, self.device, self.options = T, pos, device, options
        self.packing = options.packing
        self.record = Record(config.n_routed_experts)
        self.tables: dict[tuple, Any] = {}

    def rotation(self, rotary: Rotary) -> Tensor:
        """For the tokens: T x width/2, or B x T x width/2 with a packing."""
        key = "tokens", rotary.kind
        if key not in self.tables:
            self.tables[key] = rotary.at(self.packing.position) if self.packing \
                else rotary(self.pos, self.T, self.device)
        return self.tables[key]

    def entry_rotation(self, rotary: Rotary, m: int, first: int, count: int) -> Tensor:
        """For the compressed entries first, first + 1, ..., each at the position of the first of
        its m tokens: count x width/2. With a packing, for all entries: B x S x width/2."""
        key = "entries", rotary.kind, m, first, count
        if key not in self.tables:
            self.tables[key] = rotary.at(self.windows(m)[2] * m) if self.packing \
                else rotary(first * m, count, self.device, step=m)
        return self.tables[key]

    def windows(self, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `Packing.windows`; of a pass with a packing."""
        assert self.packing is not None
        key = "windows", m
        if key not in self.tables:
            self.tables[key] = self.packing.windows(m)
        return self.tables[key]

    def window_starts(self, m: int) -> tuple[Tensor, Tensor]:
        """The first token of each complete window of m, and the window's number in its document:
        each 1 x S, or B x S with a packing."""
        key = "starts", m
        if key not in self.tables:
            if self.packing:
                tokens, _, number = self.windows(m)
                self.tables[key] = tokens[:, :, 0].contiguous(), number.contiguous()
            else:
                number = torch.arange(self.T // m, device=self.device)[None]
                self.tables[key] = number * m, number
        return self.tables[key]

    def window_mask(self, w: int, before: int) -> Tensor | None:
        """Which of the keys of its block a query does not see: nb x before+b, or B x nb x before+b
        with a packing; -inf, else 0. None: it sees all.

        The n blocks are of b = min(w, T) queries; the keys are the block's own and `before` more.
        """
        key = "window", w, before
        if key not in self.tables:
            b = min(w, self.T)
            n = -(-self.T // b)
            mask = outside(self.pos, n, b, before, w, self.device)
            if self.packing:
                apart = self.packing.apart(n, b, before)
                mask = apart if mask is None else mask + apart
            self.tables[key] = mask
        return self.tables[key]

    def entry_mask(self, m: int, S: int) -> Tensor | None:
        """Which of S entries of m tokens a query does not see: T x S, or B x T x S with a packing;
        -inf, else 0. None: it sees all."""
        key = "incomplete", m, S
        if key not in self.tables:
            self.tables[key] = self.packing.incomplete(m, *self.windows(m)[1:]) if self.packing \
                else incomplete(self.pos, self.T, S, m, self.device)
        return self.tables[key]
