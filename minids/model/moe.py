"""Mixture of experts: DeepSeekMoE with square-root-of-softplus affinities and hash layers.

Report 2.1; bias balancing: Wang et al., arXiv 2408.15664; hash layers: Roller et al., arXiv 2106.04426. A token
goes through the shared expert and K routed ones. Losses and the schedule of balancing are training's business.
"""

import torch
import torch.nn.functional as F
from torch import nn


def sqrt_softplus(x: torch.Tensor) -> torch.Tensor:
    """sqrt(log(1 + e^x)), float32. The clamp keeps the gradient finite (0) where the softplus underflows, x < -87."""
    return F.softplus(x.float()).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def swiglu(gate, up, limit: float):
    """silu(gate) * up, both clamped first: gate from above, up on both sides. limit 0: no clamp."""
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
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

    def forward(self, x, ids):
        """x: N d, ids: N -> weights N K (float32), experts N K."""
        s = sqrt_softplus(F.linear(x.float(), self.weight.float()))                    # N E
        if self.is_hash:
            experts = self.tid2eid[ids]
        else:
            experts = (s + self.bias).topk(self.config.n_activated_experts, sorted=False).indices
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

    def forward(self, x):
        return self.w2(swiglu(self.w1(x).float(), self.w3(x).float(), self.limit).to(x.dtype))


class MoE(nn.Module):
    """y = sum_k g_k expert_k(x) + shared_expert(x)."""

    def __init__(self, config, is_hash: bool):
        super().__init__()
        self.limit = config.swiglu_limit
        self.gate = Gate(config, is_hash)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)

    def forward(self, x, ids):
        """x: B T d, ids: B T -> B T d."""
        flat = x.flatten(0, 1)                                                           # N d
        g, chosen = self.gate(flat, ids.flatten())                                       # N K, N K
        N, K = chosen.shape
        order = chosen.flatten().argsort(stable=True)                                    # NK: choices, expert by expert
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        rows = flat.index_select(0, order // K)                                          # NK d
        h = swiglu(self.each(rows, counts, "w1").float(), self.each(rows, counts, "w3").float(), self.limit)
        h = (h * g.flatten()[order, None]).to(x.dtype)                                   # NK I: weighed before w2
        y = self.each(h, counts, "w2").index_select(0, order.argsort())                  # NK d: token by token
        return y.view(N, K, -1).sum(1).view_as(x) + self.shared_experts(x)

    def each(self, rows, counts, name: str):
        """Each expert's matrix `name` on its own run of rows. Unused experts are skipped, except in training,
        where they take zero rows so that their gradient is zero and not missing."""
        runs = zip(self.experts, rows.split(counts))
        return torch.cat([getattr(expert, name)(run) for expert, run in runs if len(run) or self.training])


def balance(model: nn.Module, rate: float = 0.001) -> None:
    """Balance without a loss: move each score gate's bias by `rate` against the load since the last call, and forget it."""
    for gate in model.modules():
        if isinstance(gate, Gate) and gate.load is not None:
            load = gate.load.float()
            gate.bias -= rate * torch.sign(load - load.mean())
            gate.load = None
