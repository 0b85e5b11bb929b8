"""Mixture of experts: DeepSeekMoE with square-root-of-softplus affinities and hash layers.

Report 2.1; bias balancing: Wang et al., arXiv 2408.15664; hash layers: Roller et al., arXiv
2106.04426. A token goes through the shared expert and K routed ones. For the weight of the balance
loss and the rate of balancing see `minids.pretrain.settings`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.config import Config
from minids.model import experts as fused
from minids.model import kernels
from minids.model.linear import Linear
from minids.model.passes import Pass, expert_loads

# Experts for each chosen one, up to which a GPU computes all of them; `Config.mini` has as many
ALL_AT_ONCE = 16

INFINITE = float("inf")     # the limit of kernels where nothing is clamped
MANY = 2**26    # numbers of the rows of all experts: from here on, experts work one by one


def sqrt_softplus(x: Tensor) -> Tensor:
    """sqrt(log(1 + e^x)), float32. The clamp keeps the gradient finite (0) where the softplus
    underflows, x < -87."""
    return F.softplus(x.float()).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def swiglu(gate: Tensor, up: Tensor, limit: float, g: Tensor | None = None) -> Tensor:
    """g * silu(gate) * up, both clamped first: gate from above, up on both sides. limit 0: no
    clamp. gate, up: ... I; the weight g: ... 1, or None for 1.

    `hardtanh` is `clamp` by another name; its gradient takes one pass over memory instead of three.
    """
    if kernels.on("swiglu", gate, up):
        weight = gate.new_ones(gate.shape[:-1].numel()) if g is None else g.reshape(-1)
        gate_up = torch.stack([gate.flatten(0, -2), up.flatten(0, -2)], dim=1)   # N 2 I
        return fused.Swiglu.apply(gate_up, weight, limit or INFINITE).view_as(gate)
    if limit:
        gate, up = F.hardtanh(gate, -float("inf"), limit), F.hardtanh(up, -limit, limit)
    h = F.silu(gate) * up
    return h if g is None else h * g


class Gate(nn.Module):
    """Chooses K experts for each token and weighs them.

    Score layers take the top K of affinity + bias; hash layers look the experts up by token id.
    Both weigh with the affinity alone: the bias picks, it never weighs.
    """

    tid2eid: Tensor     # V K: hash layers have this table,
    bias: Tensor        # E: and score layers have this

    def __init__(self, config: Config, is_hash: bool) -> None:
        super().__init__()
        E, K = config.n_routed_experts, config.n_activated_experts
        self.config = config
        self.weight = nn.Parameter(torch.empty(E, config.dim))
        if is_hash:
            self.register_buffer("tid2eid", torch.zeros(config.vocab_size, K, dtype=torch.int64))
        else:
            self.register_buffer("bias", torch.zeros(E, dtype=torch.float32))
        self.is_hash = is_hash

    def forward(self, x: Tensor, ids: Tensor, current: Pass | None = None,
                experts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: N d, ids: B T with B T = N -> weights N K (float32), experts N K.

        A score gate takes `experts`, N x K, instead of its own choice where they are given. A pass
        records the choices of score gates.
        """
        K, scale = self.config.n_activated_experts, self.config.route_scale
        z = F.linear(x.float(), self.weight.float())                             # N E
        if self.is_hash:
            experts = self.tid2eid[ids.flatten()]
        if kernels.on("experts", z):
            bias = None if self.is_hash else self.bias
            choose = fused.Choice.apply if torch.is_grad_enabled() else fused.choose
            s, experts, g = choose(z, bias, experts, K, scale)
        else:
            s = sqrt_softplus(z)
            if experts is None:
                experts = (s + self.bias).topk(K, sorted=False).indices
            g = s.gather(1, experts)
            g = g / g.sum(-1, keepdim=True) * scale
        if current is not None and not self.is_hash:
            current.record.experts.append(experts)
            if current.options.balance:
                current.record.balance.append(sequence_balance(s, experts, len(ids)))
        return g, experts


class Expert(nn.Module):
    """w2(silu(w1 x) * w3 x), with V4's clamps."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.limit = config.swiglu_limit
        self.w1 = Linear(config.dim, config.moe_inter_dim)
        self.w2 = Linear(config.moe_inter_dim, config.dim)
        self.w3 = Linear(config.dim, config.moe_inter_dim)

    def forward(self, x: Tensor, g: Tensor | None = None) -> Tensor:
        """x: ... d -> ... d. A weight g, ... 1 and float32, multiplies before w2."""
        h = swiglu(self.w1(x).float(), self.w3(x).float(), self.limit, g)
        return self.w2(h.to(x.dtype))

    def matrices(self) -> list[Tensor] | None:
        """w1, w3 and w2, where its products are theirs alone; None where a matrix is stored as
        codes, an input is rounded, or a hook waits for a call."""
        parts: dict[str, Any] = self._modules       # ten times as quick as self.w1 is
        if self._forward_hooks or self._forward_pre_hooks:
            return None
        weights = []
        for linear in (parts["w1"], parts["w3"], parts["w2"]):
            if (linear.codes is not None or linear.round_input or linear._forward_hooks
                    or linear._forward_pre_hooks):
                return None
            weights.append(linear._parameters["weight"])
        return weights


class MoE(nn.Module):
    """y = sum_k g_k expert_k(x) + shared_expert(x)."""

    def __init__(self, config: Config, is_hash: bool) -> None:
        super().__init__()
        self.limit = config.swiglu_limit
        self.gate = Gate(config, is_hash)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)

    def forward(self, x: Tensor, ids: Tensor, current: Pass | None = None,
                experts: Tensor | None = None) -> Tensor:
        """x: B T d, ids: B T -> B T d. current, experts: see `Gate.forward`."""
        flat = x.flatten(0, 1)                                                   # N d
        g, experts = self.gate(flat, ids, current, experts)                      # N K, N K
        N, K = experts.shape
        if x.device.type != "cpu" and len(self.experts) <= ALL_AT_ONCE * K:
            return self.all_experts(flat, g, experts).view_as(x) + self.shared_experts(x)
        fused_sum = self.fused(flat, g, experts)
        if fused_sum is not None:
            return fused_sum.view_as(x)
        if N == 1 and not self.training:         # decoding: nothing to sort
            y = sum(self.experts[e](flat, w) for e, w in zip(experts[0].tolist(), g[0]))
            return y.view_as(x) + self.shared_experts(x)
        order = experts.flatten().argsort(stable=True)           # NK: choices, expert by expert
        counts = expert_loads(experts, len(self.experts)).tolist()
        # unused experts are skipped, but not in training: there they take zero rows, so that their
        # gradient is zero, not missing
        used = [(expert, count) for expert, count in zip(self.experts, counts)
                if count or self.training]
        modules, counts = map(list, zip(*used))
        rows = flat.index_select(0, order // K)                                  # NK d
        weights = g.view(-1, 1).index_select(0, order)                           # NK 1
        if rows.numel() > MANY and not torch.is_grad_enabled():
            y = one_by_one(rows, counts, modules, weights)                # NK d
        else:
            h1 = grouped(rows, counts, (e.w1 for e in modules))
            h3 = grouped(rows, counts, (e.w3 for e in modules))           # NK I
            h = swiglu(h1.float(), h3.float(), self.limit) * weights
            y = grouped(h.to(x.dtype), counts, (e.w2 for e in modules))   # NK d
        y = y.index_select(0, order.argsort())    # token by token again
        return y.view(N, K, -1).sum(1).view_as(x) + self.shared_experts(x)

    def fused(self, flat: Tensor, g: Tensor, experts: Tensor) -> Tensor | None:
        """The whole sum as kernels compute it, N d, or None where they do not: see `experts.py`."""
        if not kernels.on("experts", flat, g):
            return None
        with_gradient, all_of_them = torch.is_grad_enabled(), self.experts._modules
        E, N = len(all_of_them), len(flat)
        if experts.numel() * flat.shape[1] > MANY and not with_gradient:
            return None
        # for the gradient of unused experts see `forward`
        used = range(E) if self.training else sorted(set(experts.flatten().tolist()))
        matrices: list[Tensor] = []
        modules: list[Any] = [all_of_them[str(e)] for e in used]
        for expert in (*modules, self.shared_experts):
            of_expert = expert.matrices()
            if of_expert is None:
                return None
            matrices += of_expert
        if matrices[0].numel() > fused.LARGE or not kernels.on("experts", *matrices):
            return None
        limit = float(self.limit) or INFINITE
        if N <= fused.FEW and matrices[0].numel() <= fused.SMALL and not with_gradient \
                and all([matrix.is_contiguous() for matrix in matrices]):
            return fused.few(flat, experts, g, used, limit, matrices)
        order = fused.Sorted(experts, g, E)
        return fused.Experts.apply(flat, g, order, used, limit, *matrices)

    def all_experts(self, flat: Tensor, g: Tensor, experts: Tensor) -> Tensor:
        """The routed part of the sum as one wide expert, whose hidden numbers are those of all
        experts: flat: N d -> N d.

        The weight of an expert that a token did not choose is 0. So the host need not wait for a
        GPU to learn how many tokens each expert got. That pays while experts are few and small;
        V4-Flash, which chooses 6 of 256, would compute 43 times too much.
        """
        modules: list[Any] = list(self.experts)
        N, E = len(flat), len(modules)
        w1 = torch.cat([e.w1.matrix() for e in modules])                         # EI d
        w3 = torch.cat([e.w3.matrix() for e in modules])                         # EI d
        w2 = torch.cat([e.w2.matrix() for e in modules], dim=1)                  # d EI
        weights = g.new_zeros(N, E).scatter_add(1, experts, g)                   # N E
        rows = modules[0].w1.rounded(flat)      # all experts round alike
        h = swiglu(F.linear(rows, w1).float(), F.linear(rows, w3).float(), self.limit)
        h = h.view(N, E, -1) * weights[:, :, None]                               # N E I
        return F.linear(modules[0].w2.rounded(h.to(flat.dtype)).flatten(1), w2)


def grouped(rows: Tensor, counts: Sequence[int], linears: Iterable[Linear]) -> Tensor:
    """Each of `linears` on its own run of `counts[i]` rows."""
    return torch.cat([linear(run) for run, linear in zip(rows.split(counts), linears)])


def one_by_one(rows: Tensor, counts: Sequence[int], experts: Iterable[Expert],
               weights: Tensor) -> Tensor:
    """What `grouped` products compute, in the memory of `rows`, which is overwritten: NK d.

    It takes a third of the memory, and more calls of small operations.
    """
    for run, expert, weight in zip(rows.split(counts), experts, weights.split(counts)):
        run.copy_(expert(run, weight))
    return rows


def sequence_balance(s: Tensor, experts: Tensor, B: int) -> tuple[Tensor, int]:
    """sum_e f_e P_e of each of B sequences: (sum over them, B). 1 where all experts are used alike.

    s: N E affinities, experts: N K, N = B T.
    """
    E, K = s.shape[-1], experts.shape[-1]
    s = (s / s.sum(-1, keepdim=True)).view(B, -1, E)                             # B T E
    T = s.shape[1]
    chosen = torch.zeros(B, E, device=s.device)
    chosen.scatter_add_(1, experts.reshape(B, -1), torch.ones(B, T * K, device=s.device))
    f = chosen * (E / (K * T))                                   # B E: 1 where the load is even
    return (f * s.mean(1)).sum(-1).sum(), B


def balance(model: nn.Module, loads: Iterable[Tensor], rate: float = 0.001) -> None:
    """Balance without a loss: move each score gate's bias by `rate` against its load.

    loads: for each score gate, in the order of the layers, the tokens of each expert (E); see
    `passes.Record.loads`. MTP blocks, which come last, may be missing.
    """
    gates = (m for m in model.modules() if isinstance(m, Gate) and not m.is_hash)
    for gate, load in zip(gates, loads):
        load = load.float()
        gate.bias -= rate * torch.sign(load - load.mean())
