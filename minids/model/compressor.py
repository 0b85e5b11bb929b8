"""The compressor: m tokens become one key-value entry, a softmax-weighted mean per channel.

Report 2.3.2 (heavily compressed attention, HCA: no overlap) and 2.3.1 (compressed sparse attention,
CSA: with overlap, at ratio 4). The indexer has a narrower compressor of the same kind. For which
entries a query may see, see `passes.Pass.entry_mask`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.config import CSA_RATE, Config
from minids.model.activations import round_index, round_keys
from minids.model.linear import Linear
from minids.model.norm import RMSNorm
from minids.model.passes import Pass
from minids.model.rotary import Rotary, rotate
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
        x32 = x.float()                              # a float32 product, in a model of any type
        kv = F.linear(x32, self.wkv.matrix().float())                            # B T fc
        z = F.linear(x32, self.wgate.matrix().float())                           # B T fc
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
        entries = rotate(self.norm((z.softmax(2) * kv).sum(2)), rot)
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
