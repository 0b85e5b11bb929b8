"""Multi-token prediction: one more block that predicts the token after the next.

Report 2.1, as in DeepSeek-V3 (arXiv 2412.19437, 2.2). At position t it takes the streams X and the
embedding of token t + 1, and predicts token t + 2. Embedding and head are the model's. For the
weight of its loss see `minids.pretrain.losses`.
"""

import torch
from torch import nn

from minids.model import mhc
from minids.model.block import Block
from minids.model.linear import Linear
from minids.model.norm import RMSNorm
from minids.model.passes import Pass


class MTP(Block):
    """X0 = e_proj(RMS(e) * enorm) + h_proj(RMS(X) * hnorm), then a block, and a head of its own.

    The first term is the same for all streams, the second is per stream.
    """

    def __init__(self, config):
        super().__init__(config, ratio=0, is_hash=False)
        d, n = config.dim, config.hc_mult
        self.e_proj = Linear(d, d)
        self.h_proj = Linear(d, d)
        self.enorm = RMSNorm(d, config.norm_eps)
        self.hnorm = RMSNorm(d, config.norm_eps)
        self.norm = RMSNorm(d, config.norm_eps)
        self.hc_head_fn = nn.Parameter(torch.empty(n, n * d, dtype=torch.float32))
        self.hc_head_base = nn.Parameter(torch.empty(n, dtype=torch.float32))
        self.hc_head_scale = nn.Parameter(torch.empty(1, dtype=torch.float32))

    def forward(self, X, e, ids, current: Pass | None = None, state=None, experts=None):
        """X: B T n d, e = embed(ids): B T d, ids: B T, the tokens at t + 1 -> the streams after
        this block, B T n d. For the other arguments see `Block.forward`."""
        X = self.e_proj(self.enorm(e)).unsqueeze(2) + self.h_proj(self.hnorm(X))
        return super().forward(X, ids, current, state, experts)

    def head(self, X):
        """The vector that goes into the model's output matrix: B T d."""
        y = mhc.head(X, self.hc_head_fn, self.hc_head_scale, self.hc_head_base, self.config)
        return self.norm(y)
