"""The compressor: m tokens become one key-value entry, a softmax-weighted mean per channel.

Report 2.3.2 (heavily compressed attention, HCA: no overlap) and 2.3.1 (compressed sparse attention,
CSA: with overlap, at ratio 4). The indexer has a narrower compressor of the same kind. For which
entries a query may see, see `passes.Pass.entry_mask`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.config import CSA_RATE, Config
from minids.model import kernels
from minids.model.activations import round_index, round_keys
from minids.model.kernels import compressor as kernel
from minids.model.linear import Linear
from minids.model.norm import RMSNorm
from minids.model.passes import Pass
from minids.model.rotary import Rotary
from minids.model.state import CompressorState


class Compressor(nn.Module):
    """Entry i = RMS(sum_t softmax_t(z)_t * kv_t) * norm, rotated to position i m; `width` channels.

    Without overlap t runs over window i. With overlap each token gives two halves: the first ("a")
    serves the next window's entry, the second ("b") its own, and the softmax runs over these 2m
    slots.
    """

    def __init__(self, config: Config, ratio: int, width: int) -> None:
        super().__init__()
        self.config, self.ratio, self.width = config, ratio, width
        self.overlap = ratio == CSA_RATE
        out = (2 if self.overlap else 1) * width
        self.wkv = Linear(config.dim, out)
        self.wgate = Linear(config.dim, out)
        self.ape = nn.Parameter(torch.zeros(ratio, out, dtype=torch.float32))
        self.norm = RMSNorm(width, config.norm_eps)
        self.rotary = Rotary(config, ratio, width)
        self.round_keys = self.round_index = False           # in serving, see `activations`

    def forward(self, x: Tensor, current: Pass | None = None,
                state: CompressorState | None = None) -> Tensor:
        """x: B T d -> all entries so far, B S width.

        With a `CompressorState`, x continues what it has seen. With a packing, the entries are
        those of each document by itself.
        """
        current = current or Pass(self.config, x.shape[1], x.device)
        m = self.ratio
        wkv, wgate = self.wkv.matrix(), self.wgate.matrix()                      # fc d
        if state is None and kernels.on("compressor", x, wkv, wgate, self.ape):
            start, number = current.window_starts(m)
            S = number.shape[1]
            if S == 0:
                return x.new_zeros(len(x), 0, self.width)
            both = F.linear(x, torch.cat([wkv, wgate]))    # one product: x is read once
            entries = Pool.apply(both, self.ape, start, number, self.width)      # B S c
            return self.finish(entries, current.entry_rotation(self.rotary, m, 0, S))
        x32 = x.float()                              # a float32 product, in a model of any type
        kv, z = F.linear(x32, wkv.float()), F.linear(x32, wgate.float())         # B T fc
        if current.packing:
            return self.packed(kv, z, current).to(x.dtype)
        first, before = 0, None
        if state is not None:
            first, before = state.count, state.before
            kv, z = state.resume(kv, z, m)
        n = kv.shape[1] // m
        if n == 0:
            return x.new_zeros(len(x), 0, self.width) if state is None else state.all()
        kv = kv[:, :n * m].unflatten(1, (n, m))                                  # B n m fc
        z = z[:, :n * m].unflatten(1, (n, m)) + self.ape
        if self.overlap:
            if state is not None:
                state.carry(kv[..., :self.width], z[..., :self.width])
            kv_before, z_before = before or (None, None)
            kv = self.overlapped(kv, kv_before, 0.0)                             # B n 2m c
            z = self.overlapped(z, z_before, float("-inf"))
        entries = self.pool(kv, z, current.entry_rotation(self.rotary, m, first, n)).to(x.dtype)
        return entries if state is None else state.append(entries)

    def packed(self, kv: Tensor, z: Tensor, current: Pass) -> Tensor:
        """kv, z: B T fc -> B S width, the entries of all complete windows of all documents."""
        m = self.ratio
        tokens, _, number = current.windows(m)                                   # B S m, B S
        S = tokens.shape[1]
        if S == 0:
            return kv.new_zeros(len(kv), 0, self.width)
        rows = torch.arange(len(kv), device=kv.device)[:, None, None]
        kv, z = kv[rows, tokens], z[rows, tokens] + self.ape                     # B S m fc
        if self.overlap:
            kv = self.overlapped(kv, None, 0.0)                                  # B S 2m c
            z = self.overlapped(z, None, float("-inf"))
            # the a-half before a document's first window is another document's
            other = torch.arange(2 * m, device=kv.device) < m
            z = z.masked_fill((number == 0)[:, :, None, None] & other[:, None], float("-inf"))
        return self.pool(kv, z, current.entry_rotation(self.rotary, m, 0, S))

    def pool(self, kv: Tensor, z: Tensor, rot: Tensor) -> Tensor:
        """One softmax over the slots of each window, per channel. kv, z: B n slots c -> B n c."""
        return self.finish((z.softmax(2) * kv).sum(2), rot)

    def finish(self, entries: Tensor, rot: Tensor) -> Tensor:
        """Pooled windows, normalised, rotated and, in serving, rounded. B n c -> B n c."""
        entries = self.norm(entries, rot)
        if self.round_keys:
            entries = round_keys(entries, self.config.rope_head_dim)
        return round_index(entries) if self.round_index else entries

    def overlapped(self, t: Tensor, before: Tensor | None, missing: float) -> Tensor:
        """B n m 2c -> B n 2m c: the previous window's a-half, then this window's b-half.

        The first window's predecessor is `before` (B m c), or `missing` where there is none.
        """
        a, b = t.split(self.width, dim=-1)
        before = torch.full_like(a[:, 0], missing) if before is None else before
        return torch.cat([torch.cat([before[:, None], a[:, :-1]], dim=1), b], dim=2)


class Pool(torch.autograd.Function):
    """`Compressor.pool` before its norm, in one kernel, see `kernels.compressor`.

    x: B T 2fc, kv and z side by side; ape: m fc; start, number: see `Pass.window_starts` -> B S c.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ape: Tensor, start: Tensor, number: Tensor,
                c: int) -> Tensor:
        entries = x.new_empty(len(x), start.shape[1], c)
        inputs = x.contiguous(), ape.contiguous(), start, number, entries
        kernel.pool(*kernels.arrays(*inputs))
        ctx.save_for_backward(*inputs)
        return entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dentries: Tensor) -> tuple[Tensor | None, ...]:
        x, ape, *_ = inputs = ctx.saved_tensors
        kernels.on("compressor", x)             # sets the number of threads
        B, T, _ = x.shape
        parts = max(kernels.parts(B * T) // B, 1)
        dx, dape = torch.zeros_like(x), ape.new_zeros(B, parts, *ape.shape)
        kernel.pool_gradient(*kernels.arrays(*inputs, dentries, dx, dape))
        return dx, dape.sum((0, 1)), None, None, None
