"""The lightning indexer: a small, cheap attention that decides which compressed entries a query reads.

Report 2.3.1. Used by CSA layers. The choice of the top k has no gradient: the language-model loss does not train the
indexer, `ledger.index_divergence` does. The real model rounds queries and keys to FP4 after a Hadamard turn; without
rounding that turn cancels out.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minids.config import CSA_RATE
from minids.model.compressor import Compressor
from minids.model.rotary import Rotary, turn


class Indexer(nn.Module):
    """score[t, s] = sum_h w[t, h] * relu(q[t, h] . k[s])."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wq_b = nn.Linear(config.q_lora_rank, config.index_n_heads * config.index_head_dim, bias=False)
        self.weights_proj = nn.Linear(config.dim, config.index_n_heads, bias=False)
        self.compressor = Compressor(config, CSA_RATE, config.index_head_dim)
        self.rotary = Rotary(config, CSA_RATE, config.index_head_dim)
        self.scale = (config.index_head_dim * config.index_n_heads) ** -0.5

    def keys(self, x, state=None, packing=None):
        """x: B T d -> the index keys so far, B S ci."""
        return self.compressor(x, state, packing)

    def queries(self, qr, rot):
        """qr: B T q_lora_rank, rot: T ci/2 or B T ci/2 -> B T Hi ci."""
        Hi, ci = self.config.index_n_heads, self.config.index_head_dim
        return turn(self.wq_b(qr).unflatten(-1, (Hi, ci)), rot[..., None, :])

    def forward(self, x, qr, pos: int, keys, packing=None):
        """x: B T d from position pos, qr: B T q_lora_rank, keys: B S ci -> scores B T S, float32, future entries included."""
        B, T, _ = x.shape
        rot = self.rotary.at(packing.position) if packing else self.rotary(pos, T, x.device)   # T ci/2, or B T ci/2
        q = self.queries(qr, rot)                                                        # B T Hi ci
        w = self.weights_proj(x).float() * self.scale                                    # B T Hi
        block = max(1024, 2**18 // (B * T * w.shape[2]))     # entries at once: scores of single heads stay in the cache
        parts = [self.score(q.flatten(1, 2), w, part) for part in keys.split(block, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)                  # B T S

    def score(self, q, w, keys):
        """q: B THi ci, w: B T Hi, keys: B s ci -> B T s."""
        s = torch.bmm(q, keys.mT).view(*w.shape, -1)                                     # B T Hi s
        return torch.matmul(w[:, :, None], F.relu(s).float()).squeeze(2)
