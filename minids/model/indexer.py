"""The lightning indexer: a small, cheap attention that decides which entries a query reads.

Report 2.3.1. Used by CSA layers. The choice of the top k has no gradient: the language-model loss
does not train the indexer, `index_divergence` does. The real model rounds queries and keys to FP4
after a Hadamard transform; without rounding the transform cancels out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.config import CSA_RATE, Config
from minids.model import kernels
from minids.model.activations import round_index
from minids.model.compressor import Compressor
from minids.model.kernels import indexer as kernel
from minids.model.linear import Linear
from minids.model.passes import Pass
from minids.model.rotary import Rotary, rotate
from minids.model.state import CompressorState

PART = 1024     # entries that torch scores at a time, at least
NARROW = 64     # channels of a head: wider ones are large matrices, where torch is faster


class Indexer(nn.Module):
    """score[t, s] = sum_h w[t, h] * relu(q[t, h] . k[s])."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        Hi, ci = config.index_n_heads, config.index_head_dim
        self.config = config
        self.wq_b = Linear(config.q_lora_rank, Hi * ci)
        self.weights_proj = Linear(config.dim, Hi)
        self.compressor = Compressor(config, CSA_RATE, ci)
        self.rotary = Rotary(config, CSA_RATE, ci)
        self.scale = (ci * Hi) ** -0.5
        self.round_queries = False                           # in serving, see `activations`

    def keys(self, x: Tensor, current: Pass | None = None,
             state: CompressorState | None = None) -> Tensor:
        """x: B T d -> the index keys so far, B S ci."""
        return self.compressor(x, current, state)

    def queries(self, qr: Tensor, rot: Tensor) -> Tensor:
        """qr: B T q_lora_rank, rot: T ci/2 or B T ci/2 -> B T Hi ci."""
        Hi, ci = self.config.index_n_heads, self.config.index_head_dim
        q = rotate(self.wq_b(qr).unflatten(-1, (Hi, ci)), rot[..., None, :])
        return round_index(q) if self.round_queries else q

    def forward(self, x: Tensor, qr: Tensor, keys: Tensor, current: Pass | None = None,
                part: slice | None = None) -> Tensor:
        """x: B T d, qr: B T q_lora_rank, keys: B S ci -> scores B T S, float32, future entries
        included. The queries are those of the pass, or `part` of them."""
        B, T, _ = x.shape
        current = current or Pass(self.config, T, x.device)
        rot = current.rotation(self.rotary)
        q = self.queries(qr, rot if part is None else rot[..., part, :])         # B T Hi ci
        w = self.weights_proj(x).float() * self.scale                            # B T Hi
        if T > 1 and q.shape[3] <= NARROW and kernels.on("indexer", q, w, keys):
            return Score.apply(q.contiguous(), w.contiguous(), keys.contiguous())
        # entries are scored part by part, so that the scores of single heads stay in the cache
        size = max(PART, 2**18 // (B * T * w.shape[2]))
        parts = [self.score(q.flatten(1, 2), w, part) for part in keys.split(size, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)          # B T S

    def score(self, q: Tensor, w: Tensor, keys: Tensor) -> Tensor:
        """q: B THi ci, w: B T Hi, keys: B s ci -> B T s."""
        s = torch.bmm(q, keys.mT).view(*w.shape, -1)                             # B T Hi s
        return torch.matmul(w[:, :, None], F.relu(s).float()).squeeze(2)


class Score(torch.autograd.Function):
    """`Indexer.score` in one kernel, see `kernels.indexer`: q: B T Hi ci, w: B T Hi, keys: B S ci
    -> B T S."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, w: Tensor, keys: Tensor) -> Tensor:
        scores = q.new_empty(*q.shape[:2], keys.shape[1])
        kernel.score(*kernels.arrays(q, w, keys, scores))
        ctx.save_for_backward(q, w, keys)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, w, keys = ctx.saved_tensors
        kernels.on("indexer", q)                # sets the number of threads
        B, T, _, c = q.shape
        dq, dw = torch.empty_like(q), torch.empty_like(w)
        dkeys = keys.new_zeros(B, max(kernels.parts(B * T) // B, 1), *keys.shape[1:])
        kernel.score_gradient(*kernels.arrays(q, w, keys, d, dq, dw, dkeys))
        return dq, dw, dkeys.sum(1)


def index_divergence(p: Tensor, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """KL(attention || indexer) of the queries that see an entry: (sum in nats, count).

    The target is the attention, summed over heads. p: B T H S, the attention's weights on entries;
    scores: B T S, the indexer's; mask: T S or B T S, -inf where a query does not see an entry, or
    None. DeepSeek-V3.2 (arXiv 2512.02556, 2.1), applied to compressed entries: V4's own recipe is
    not published. The gradient reaches the scores alone.
    """
    target = p.detach().float().sum(2)                                           # B T S
    if mask is not None:        # -1e9, a finite -inf: some queries see no entry
        scores = scores.masked_fill(mask != 0, -1e9)
    mass = target.sum(-1)
    target = target / mass.clamp_min(1e-20)[..., None]
    kl = (torch.xlogy(target, target) - target * scores.log_softmax(-1)).sum(-1)         # B T
    sees = mass > 0
    return (kl * sees).sum(), sees.sum()
