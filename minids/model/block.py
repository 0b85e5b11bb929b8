"""One block: attention, then the mixture of experts, on n residual streams."""

import torch
from torch import nn

from minids.model import mhc
from minids.model.attention import Attention
from minids.model.moe import MoE
from minids.model.norm import RMSNorm


class Block(nn.Module):
    """Attention, then the mixture of experts, each reading from the streams and writing to them (mHC)."""

    def __init__(self, config, ratio: int, is_hash: bool):
        super().__init__()
        self.config = config
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config, ratio)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = MoE(config, is_hash)
        n = config.hc_mult
        for site in ("attn", "ffn"):
            for name, shape in (("fn", ((2 + n) * n, n * config.dim)), ("base", ((2 + n) * n,)), ("scale", (3,))):
                setattr(self, f"hc_{site}_{name}", nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    def forward(self, X, ids, pos: int = 0, state=None, ledger=None):
        """X: B T n d, ids: B T -> B T n d."""
        pre, post, comb = mhc.maps(X, self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base, self.config)
        f = self.attn(self.attn_norm(mhc.read(X, pre)), pos, state, ledger)
        X = mhc.write(X, f, post, comb)
        pre, post, comb = mhc.maps(X, self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base, self.config)
        f = self.ffn(self.ffn_norm(mhc.read(X, pre)), ids, ledger)
        return mhc.write(X, f, post, comb)
