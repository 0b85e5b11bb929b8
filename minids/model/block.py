"""One block: attention, then the mixture of experts, on n residual streams."""

import torch
from torch import Tensor, nn

from minids.config import Config
from minids.model import mhc
from minids.model.attention import Attention
from minids.model.moe import MoE
from minids.model.norm import RMSNorm
from minids.model.passes import Pass
from minids.model.state import LayerState


class Block(nn.Module):
    """Attention, then the mixture of experts; each reads the streams and writes to them (mHC)."""

    def __init__(self, config: Config, ratio: int, is_hash: bool) -> None:
        super().__init__()
        self.config = config
        self.maps: mhc.Maps | None = None    # None: `mhc.maps`; an ablation puts another one here
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config, ratio)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = MoE(config, is_hash)
        n, d = config.hc_mult, config.dim
        self.hc_attn_fn = nn.Parameter(torch.empty((2 + n) * n, n * d, dtype=torch.float32))
        self.hc_attn_base = nn.Parameter(torch.empty((2 + n) * n, dtype=torch.float32))
        self.hc_attn_scale = nn.Parameter(torch.empty(3, dtype=torch.float32))
        self.hc_ffn_fn = nn.Parameter(torch.empty((2 + n) * n, n * d, dtype=torch.float32))
        self.hc_ffn_base = nn.Parameter(torch.empty((2 + n) * n, dtype=torch.float32))
        self.hc_ffn_scale = nn.Parameter(torch.empty(3, dtype=torch.float32))

    def forward(self, X: Tensor, ids: Tensor, current: Pass | None = None,
                state: LayerState | None = None, experts: Tensor | None = None) -> Tensor:
        """X: B T n d, ids: B T -> B T n d.

        With a `LayerState`, X continues what it has seen. experts: choices to replay, N x K.
        """
        current = current or Pass(self.config, ids.shape[1], X.device)
        cfg, maps = self.config, self.maps or mhc.maps
        site = self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base
        u, X, post, comb = mhc.enter(X, *site, cfg, maps)                        # maps and read
        f = self.attn(self.attn_norm(u), current, state)
        X = mhc.write(X, f, post, comb)
        site = self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base
        u, X, post, comb = mhc.enter(X, *site, cfg, maps)
        f = self.ffn(self.ffn_norm(u), ids, current, experts)
        return mhc.write(X, f, post, comb)
