"""Mixture of experts: DeepSeekMoE with square-root-of-softplus affinities and hash layers.

Report 2.1; bias balancing: Wang et al., arXiv 2408.15664; hash layers: Roller et al., arXiv 2106.04426. A token
goes through the shared expert and K routed ones. The balance loss is in `ledger.py`, the schedule of balancing is
training's business.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minids.model.ledger import sequence_balance


def sqrt_softplus(x: torch.Tensor) -> torch.Tensor:
    """sqrt(log(1 + e^x)), float32. The clamp keeps the gradient finite (0) where the softplus underflows, x < -87."""
    return F.softplus(x.float()).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def swiglu(gate, up, limit: float):
    """silu(gate) * up, both clamped first: gate from above, up on both sides. limit 0: no clamp.

    `hardtanh` is `clamp` by another name; its gradient is one walk through memory instead of three.
    """
    if limit:
        gate, up = F.hardtanh(gate, -float("inf"), limit), F.hardtanh(up, -limit, limit)
    return F.silu(gate) * up


class Gate(nn.Module):
    """Chooses K experts for each token and weighs them.

    Score layers take the top K of affinity + bias; hash layers look the experts up by token id. Both weigh with the
    affinity alone: the bias picks, it never weighs. `load` counts the choices made while training, for `balance`.
    """

    def __init__(self, config, is_hash: bool):
        super().__init__()
        E, K = config.n_routed_experts, config.n_activated_experts
        self.config = config
        self.weight = nn.Parameter(torch.empty(E, config.dim))
        if is_hash:
            self.register_buffer("tid2eid", torch.zeros(config.vocab_size, K, dtype=torch.int64))
        else:
            self.register_buffer("bias", torch.zeros(E, dtype=torch.float32))
        self.is_hash = is_hash
        self.load = None

    def forward(self, x, ids, ledger=None):
        """x: N d, ids: B T with B T = N -> weights N K (float32), experts N K."""
        s = sqrt_softplus(F.linear(x.float(), self.weight.float()))                    # N E
        if self.is_hash:
            experts = self.tid2eid[ids.flatten()]
        else:
            experts = ledger and ledger.choice()
            if experts is None:
                experts = (s + self.bias).topk(self.config.n_activated_experts, sorted=False).indices
            if ledger:
                ledger.chosen.append(experts)
                if ledger.balance:
                    ledger.balance_losses.append(sequence_balance(s, experts, len(ids)))
            if self.training:
                load = torch.bincount(experts.flatten(), minlength=s.shape[-1])
                self.load = load if self.load is None else self.load + load
        g = s.gather(1, experts)
        return g / g.sum(-1, keepdim=True) * self.config.route_scale, experts


class Expert(nn.Module):
    """w2(silu(w1 x) * w3 x), with V4's clamps."""

    def __init__(self, config):
        super().__init__()
        self.limit = config.swiglu_limit
        self.w1 = nn.Linear(config.dim, config.moe_inter_dim, bias=False)
        self.w2 = nn.Linear(config.moe_inter_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.moe_inter_dim, bias=False)

    def forward(self, x, g=None):
        """x: ... d -> ... d. A weight g, ... 1 and float32, multiplies before w2."""
        h = swiglu(F.linear(x, self.w1.weight).float(), F.linear(x, self.w3.weight).float(), self.limit)
        return F.linear((h if g is None else h * g).to(x.dtype), self.w2.weight)


class MoE(nn.Module):
    """y = sum_k g_k expert_k(x) + shared_expert(x)."""

    def __init__(self, config, is_hash: bool):
        super().__init__()
        self.limit = config.swiglu_limit
        self.gate = Gate(config, is_hash)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)

    def forward(self, x, ids, ledger=None):
        """x: B T d, ids: B T -> B T d."""
        flat = x.flatten(0, 1)                                                           # N d
        g, chosen = self.gate(flat, ids, ledger)                                       # N K, N K
        N, K = chosen.shape
        if N == 1 and not self.training:                                                 # decoding: nothing to sort
            y = sum(self.experts[e](flat, w) for e, w in zip(chosen[0].tolist(), g[0]))
            return y.view_as(x) + self.shared_experts(x)
        order = chosen.flatten().argsort(stable=True)                                    # NK: choices, expert by expert
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        # unused experts are skipped, except in training: there they take zero rows, and their gradient is zero, not missing
        used = [(expert, count) for expert, count in zip(self.experts, counts) if count or self.training]
        experts, counts = zip(*used)
        rows = flat.index_select(0, order // K)                                          # NK d
        h1 = grouped(rows, counts, (e.w1.weight for e in experts))
        h3 = grouped(rows, counts, (e.w3.weight for e in experts))                       # NK I
        h = swiglu(h1.float(), h3.float(), self.limit) * g.view(-1, 1).index_select(0, order)
        y = grouped(h.to(x.dtype), counts, (e.w2.weight for e in experts))               # NK d: weighed before w2
        y = y.index_select(0, order.argsort())                                           # token by token again
        return y.view(N, K, -1).sum(1).view_as(x) + self.shared_experts(x)


def grouped(rows, counts, weights):
    """Each matrix of `weights` on its own run of `counts[i]` rows; they may come one by one, decoded as they are used."""
    return torch.cat([F.linear(run, weight) for run, weight in zip(rows.split(counts), weights)])


def balance(model: nn.Module, rate: float = 0.001) -> None:
    """Balance without a loss: move each score gate's bias by `rate` against the load since the last call, and forget it."""
    for gate in model.modules():
        if isinstance(gate, Gate) and gate.load is not None:
            load = gate.load.float()
            gate.bias -= rate * torch.sign(load - load.mean())
            gate.load = None
