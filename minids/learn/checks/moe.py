"""Checks of lesson 06: routing, experts, the layer, and an even load (V4 report, sections 2.1 and
4.2.3).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import torch
import torch.nn.functional as F

from minids import plain
from minids.config import Config
from minids.learn.checks.gradient import with_gradient
from minids.learn.exercise import Check
from minids.model.moe import MoE
from minids.plain import affinity, expert_forward, mix_experts, with_parts

LESSON = "06_moe"


# ---- the router ----


def route_with(x, weight, bias, K, scale, score=affinity, picks=None, weighs=None, normed="chosen"):
    """`route` with another affinity, other numbers that pick or weigh, or another divisor."""
    logits = x @ weight.T                                              # N E
    s = score(logits)
    experts = (s + bias if picks is None else picks(s, logits, bias)).topk(K).indices
    value = s if weighs is None else weighs(s, bias)
    g = value.gather(1, experts)                                       # N K
    if normed == "chosen":
        g = g / g.sum(dim=1, keepdim=True)
    elif normed == "all":
        g = g / value.sum(dim=1, keepdim=True)
    return torch.zeros_like(s).scatter(1, experts, g * scale)


def _route(**changes):
    return lambda *args: route_with(*args, **changes)


def _route_cases(rng):
    x = torch.eye(4) * 2 + 0.1 * torch.randn(4, 4, generator=rng)
    yield "four tokens, no bias", (x, torch.randn(5, 4, generator=rng), torch.zeros(5), 2, 1.0)
    x, weight = torch.randn(6, 8, generator=rng), torch.randn(9, 8, generator=rng)
    yield "a scale", (x, weight, torch.zeros(9), 3, 1.5)
    bias = torch.randn(12, generator=rng) * 0.8
    x, weight = torch.randn(20, 8, generator=rng), torch.randn(12, 8, generator=rng) * 0.5
    yield "a bias", (x, weight, bias, 3, 2.5)


def _uniform(x, ids, weight, table, scale):
    g = plain.hash_route(x, ids, weight, table, scale)
    return (g > 0) * scale / table.shape[1]


def _by_affinity(x, ids, weight, table, scale):
    return plain.route(x, weight, torch.zeros(len(weight)), table.shape[1], scale)


def _by_position(x, ids, weight, table, scale):
    return plain.hash_route(x, torch.arange(len(x)) % len(table), weight, table, scale)


def _not_renormalised(x, ids, weight, table, scale):
    g = plain.hash_route(x, ids, weight, table, scale)
    return (g > 0) * affinity(x @ weight.T) * scale


def _hash_cases(rng):
    table = torch.rand(11, 7, generator=rng).argsort(1)[:, :2]
    for label, N, scale in (("a few tokens", 5, 1.0),
                            ("a scale, and tokens that come again", 30, 1.5)):
        x, ids = torch.randn(N, 6, generator=rng), torch.randint(0, 11, (N,), generator=rng)
        yield label, (x, ids, torch.randn(7, 6, generator=rng), table, scale)


# ---- an expert ----


def expert_forward_with(x, w1, w2, w3, limit, g, gate=(None, 1), up=(-1, 1), after=False, on="gate",
                        at="hidden"):
    """`expert_forward` with other clamps, the SiLU on another factor, or g at another place.

    gate and up: the lower and upper clamp as multiples of the limit; after: clamp after the SiLU.
    """
    def clamp(v, sides):
        low, high = (None if side is None else side * limit for side in sides)
        return v if limit == 0 or sides == (None, None) else v.clamp(low, high)

    x = x * g if at == "input" else x
    a, b = x @ w1.T, x @ w3.T                                          # N I
    a = a * g if at == "gate" else a
    if after:
        h = clamp(F.silu(a), gate) * clamp(b, up)
    else:
        a, b = clamp(a, gate), clamp(b, up)
        h = F.silu(a) * b if on == "gate" else a * F.silu(b)
    h = h * g if at in ("hidden", "both") else h
    y = h @ w2.T
    return y * g if at == "both" else y


def _expert(**changes):
    return lambda *args: expert_forward_with(*args, **changes)


def _limit_zero(x, w1, w2, w3, limit, g):
    a, b = (x @ w1.T).clamp(max=limit), (x @ w3.T).clamp(-limit, limit)
    return (F.silu(a) * b * g) @ w2.T


def _expert_cases(rng):
    def arguments(N, limit, size):
        w1, w3 = (torch.randn(10, 8, generator=rng) * 0.5 for _ in range(2))
        w2 = torch.randn(8, 10, generator=rng) * 0.5
        x, g = size * torch.randn(N, 8, generator=rng), 0.3 + torch.rand(N, 1, generator=rng)
        return x, w1, w2, w3, limit, g

    yield "small numbers, which no clamp touches", arguments(4, 50.0, 1.0)
    yield "a clamp that bites", arguments(6, 1.5, 3.0)
    yield "limit 0: no clamp", arguments(6, 0.0, 3.0)


# ---- the layer ----

SIZES = dict(vocab_size=17, dim=10, n_layers=1, compress_ratios=(0,), n_heads=1, head_dim=4,
             rope_head_dim=2, q_lora_rank=4, o_groups=1, o_lora_rank=4, window_size=4,
             index_n_heads=1, index_head_dim=4, index_topk=1, moe_inter_dim=6, n_routed_experts=5,
             n_activated_experts=2, n_hash_layers=0, n_mtp_layers=0, swiglu_limit=1.0)


def _shared(share):
    """`mix_experts` with share(g) times the shared expert in place of once."""
    def wrong(ffn, x, g):
        shared = mix_experts(ffn, x, torch.zeros_like(g))
        return mix_experts(ffn, x, g) + (share(g) - 1) * shared
    return wrong


def _mean_weight(g):
    return g.sum(dim=1, keepdim=True) / (g > 0).sum(dim=1, keepdim=True)


def _weights_of_the_first(ffn, x, g):
    """The weights of a token go to the experts 0 to K - 1."""
    first = torch.zeros_like(g)
    K = int((g[0] > 0).sum())
    first[:, :K] = g[g > 0].view(len(g), K)
    return mix_experts(ffn, x, first)


def _best_only(ffn, x, g):
    return mix_experts(ffn, x, g * (g == g.amax(dim=1, keepdim=True)))


def _experts(expert):
    """`mix_experts` with another expert_forward."""
    return with_parts({"expert_forward": expert}).mix_experts


def _without_clamps(x, w1, w2, w3, limit, g):
    return expert_forward(x, w1, w2, w3, 0.0, g)


def _lively(module, rng):
    for p in module.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, generator=rng) * 0.6)
    return module


def _weights(rng, ffn):
    """Inputs and weights of a few tokens: (x, N d; g, N E)."""
    for label, N in (("one token", 1), ("a dozen tokens", 12)):
        chosen = torch.rand(N, 5, generator=rng).argsort(1)[:, :2]
        g = torch.zeros(N, 5).scatter(1, chosen, torch.rand(N, 2, generator=rng) + 0.2)
        x = 2 * torch.randn(N, 10, generator=rng)
        yield label, (ffn, x, 1.5 * g / g.sum(dim=1, keepdim=True))


def _layer_cases(rng):
    """The experts of `minids.plain`, which hold parameters and have no forward."""
    return _weights(rng, _lively(plain.MoE(Config(**SIZES), is_hash=False), rng))


def _grouped_cases(rng):
    """The experts of `minids`, which can be called."""
    with torch.random.fork_rng(devices=[]):
        ffn = MoE(Config(**SIZES), is_hash=False).eval()
    return _weights(rng, _lively(ffn, rng))


def grouped_with(ffn, x, g, weigh="sorted", back="inverse", rows="token"):
    """`mix_experts`, sorted by expert, with weights, results, or rows in another order."""
    N, K = len(x), ffn.gate.config.n_activated_experts
    weights, chosen = g.topk(K)                                        # N K
    order = chosen.flatten().argsort(stable=True)                      # NK
    counts = torch.bincount(chosen.flatten(), minlength=len(ffn.experts)).tolist()
    runs = x[order // K if rows == "token" else order % N].split(counts)
    y = torch.cat([expert(run) for expert, run in zip(ffn.experts, runs)])
    y = y * (weights.flatten()[order] if weigh == "sorted" else weights.flatten())[:, None]
    if back == "inverse":
        y = y[order.argsort()]
    elif back == "order":
        y = y[order]
    return y.view(N, K, -1).sum(dim=1) + ffn.shared_experts(x)


def _grouped(**changes):
    return lambda *args: grouped_with(*args, **changes)


# ---- hash tables ----

def balanced_table(p, E, K, order="falling", load="share", spread=True):
    """The experts of each token id: V K, rows sorted. p: V, the share of each token.

    Tokens come in falling order of their share; each gets the K experts with the least load so far.
    The keyword arguments make mistakes.
    """
    table, so_far = torch.zeros(len(p), K, dtype=torch.int64), torch.zeros(E, dtype=torch.float64)
    tokens = p.argsort(descending=order == "falling").tolist() if order else range(len(p))
    for token in tokens:
        picked = so_far.argsort(stable=True)[:K] if spread else so_far.argmin().expand(K)
        so_far[picked] += p[token].double() if load == "share" else 1.0
        table[token] = picked.sort().values
    return table


def _table(**changes):
    return lambda *args: balanced_table(*args, **changes)


def _table_cases(rng):
    for label, V, E, K in (("one expert a token", 9, 4, 1), ("two of five", 40, 5, 2),
                           ("three of eight", 60, 8, 3)):
        p = (2.5 * torch.randn(V, generator=rng)).exp()
        yield label, (p / p.sum(), E, K)


# ---- balance ----

def bias_step(bias, load, u):
    """The bias after a step: u down where the load was above the mean, u up where it was below: E.

    bias, load: E.
    """
    load = load.float()
    return bias - u * torch.sign(load - load.mean())


def _bias_cases(rng):
    yield "four experts", (torch.zeros(4), torch.tensor([9, 1, 4, 2]), 0.1)
    bias = torch.randn(5, generator=rng)
    yield "an expert with the mean load", (bias, torch.tensor([3, 5, 9, 7, 1]), 0.25)
    bias, load = torch.randn(16, generator=rng), torch.randint(0, 100, (16,), generator=rng)
    yield "many experts", (bias, load.square(), 0.01)


def _mean_moves(bias, load, u):
    return bias - u * torch.where(load >= load.float().mean(), 1.0, -1.0)


def _only_extremes(bias, load, u):
    return bias - u * ((load == load.max()).float() - (load == load.min()).float())


def _towards_median(bias, load, u):
    return bias - u * torch.sign(load.float() - load.float().median())


def sequence_balance(s, experts, counts=None, share=None, E=True, K=True, detach=False,
                     whole_batch=False):
    """sum_e f_e P_e, the mean over the sequences: one number. s: B T E, affinities; experts: B T K.

    The keyword arguments make mistakes.
    """
    B, T, n = s.shape
    p = s / s.sum(-1, keepdim=True) if share is None else share(s)
    f = F.one_hot(experts, n).sum(2).float() if counts is None else counts(p, experts)   # B T E
    f = f.mean(1) * (n if E else 1) / (experts.shape[-1] if K else 1)                    # B E
    P = p.mean(1)                                                                        # B E
    if whole_batch:
        f, P = f.mean(0, keepdim=True), P.mean(0, keepdim=True)
    return (f * (P.detach() if detach else P)).sum(-1).mean()


def balance_loss(s, experts):
    """The sequence-wise balance loss and its gradient with respect to s."""
    return with_gradient(sequence_balance)(s, experts)


def _loss(**changes):
    return with_gradient(lambda s, experts: sequence_balance(s, experts, **changes))


def _loss_cases(rng):
    for label, B, T, E, K in (("one sequence, one expert a token", 1, 6, 4, 1),
                              ("one sequence", 1, 7, 5, 2), ("three sequences", 3, 8, 6, 3)):
        s = affinity(1.5 * torch.randn(B, T, E, generator=rng) + torch.arange(E) * 0.5)
        yield label, (s, s.topk(K).indices)


CHECKS = [
    Check(
        "moe.route", plain.route, _route_cases,
        mistakes={
            "the bias weighs: it only picks. Take g from the affinities without it":
                _route(weighs=lambda s, bias: s + bias),
            "the bias is not used: it is added before the top K":
                _route(picks=lambda s, logits, bias: s),
            "the bias is added to the gate's output before the affinity; it belongs to the "
            "affinity, and only to pick":
                _route(picks=lambda s, logits, bias: affinity(logits + bias)),
            "the bias is subtracted: it is added": _route(picks=lambda s, logits, bias: s - bias),
            "the weights are not renormalised: divide by the sum over the chosen experts":
                _route(normed=""),
            "the weights are divided by the sum over all experts: divide by the sum over the "
            "chosen ones": _route(normed="all"),
            "route_scale is missing: multiply the normalised weights by it":
                lambda x, weight, bias, K, scale: plain.route(x, weight, bias, K, 1.0),
            "this is softmax: V4's affinity is sqrt(softplus(x))":
                _route(score=lambda x: x.softmax(-1)),
            "this is sigmoid, the affinity of DeepSeek-V3: V4's is sqrt(softplus(x))":
                _route(score=torch.sigmoid),
            "this is softplus without the square root": _route(score=F.softplus),
            "the weights are a softmax over the chosen: divide the affinities by their sum":
                _route(weighs=lambda s, bias: s.exp()),
        },
        hints=(
            "Four lines: affinities s, N E; the experts with the K largest s + bias; their "
            "affinities; divide and scale.",
            "The bias may move which experts are chosen. After that, forget it: "
            "g = s.gather(1, experts).",
            "Back to N E: torch.zeros_like(s).scatter(1, experts, g) puts the weights where they "
            "belong.",
        ),
    ),
    Check(
        "moe.hash_route", plain.hash_route, _hash_cases,
        mistakes={
            "the weights are uniform: the table fixes which experts work; the learned gate still "
            "says how much each counts": _uniform,
            "the experts are the top K of the affinities: take them from the table": _by_affinity,
            "the table is read by position: it is read by token id": _by_position,
            "the weights are not renormalised: divide by the sum over the two or more experts of "
            "the table": _not_renormalised,
            "route_scale is missing":
                lambda x, ids, weight, table, scale: plain.hash_route(x, ids, weight, table, 1.0),
            "this is sigmoid: the affinity is sqrt(softplus(x)) here, too":
                with_parts({"affinity": torch.sigmoid}).hash_route,
        },
        hints=(
            "One line differs from route: where the experts come from.",
            "table[ids] is N K. No bias and no top K here.",
            "The weights are as before: gather the affinities, divide by their sum, times the "
            "scale, scatter to N E.",
        ),
    ),
    Check(
        "moe.expert", expert_forward, _expert_cases,
        mistakes={
            "w1 x is clamped on both sides: clamp it from above only": _expert(gate=(-1, 1)),
            "w1 x is clamped from below: clamp it from above, its large negative values are "
            "harmless":
                _expert(gate=(-1, None)),
            "w3 x is clamped from above only: it needs both sides": _expert(up=(None, 1)),
            "the two clamps are exchanged: w1 x from above, w3 x on both sides":
                _expert(gate=(-1, 1), up=(None, 1)),
            "the clamp on w1 x comes after the SiLU: clamp first": _expert(after=True),
            "there is no clamp": _expert(gate=(None, None), up=(None, None)),
            "only w3 x is clamped: w1 x needs it, too, from above": _expert(gate=(None, None)),
            "only w1 x is clamped: w3 x needs it, too, on both sides": _expert(up=(None, None)),
            "a limit of 0 means no clamp; this one cuts everything": _limit_zero,
            "the SiLU is applied to w3 x: it belongs to w1 x, the gate": _expert(on="up"),
            "g multiplies before the SiLU, which is not linear: multiply silu(w1 x) * w3 x":
                _expert(at="gate"),
            "g multiplies the input x: it reaches the SiLU, which is not linear, and comes twice":
                _expert(at="input"),
            "g multiplies twice": _expert(at="both"),
            "g is not used": _expert(at="nowhere"),
        },
        hints=(
            "gate = w1 x and up = w3 x, both N I; clamp each; h = silu(gate) * up * g; y = w2 h.",
            "w1 has the shape I d, as in torch.nn.Linear: x @ w1.T. The clamps: "
            "gate.clamp(max=limit), up.clamp(-limit, limit)",
            "Clamp only `if limit`. g is N 1 and multiplies h, N I.",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.layer", mix_experts, _layer_cases,
        mistakes={
            "the shared expert is forgotten: it is added for every token": _shared(lambda g: 0.0),
            "the shared expert is weighed like a routed one: add it as it is":
                _shared(_mean_weight),
            "the shared expert is multiplied by the scale of the routed ones: add it as it is":
                _shared(lambda g: g.sum(dim=1, keepdim=True)),
            "the shared expert is averaged with the others: add it as it is":
                _shared(lambda g: 1 / 3),
            "the shared expert is added once for each chosen expert: once for each token":
                _shared(lambda g: 2.0),
            "the routed experts are not weighed: multiply each by its g":
                lambda ffn, x, g: mix_experts(ffn, x, (g > 0).float()),
            "a token's weights go to the first K experts: column e of g belongs to expert e":
                _weights_of_the_first,
            "only the expert with the largest weight works: sum over all that were chosen":
                _best_only,
            "the experts have no clamps: the limit is ffn.gate.config.swiglu_limit":
                _experts(_without_clamps),
            "g multiplies the input x: it multiplies silu(w1 x) * w3 x":
                _experts(_expert(at="input")),
        },
        hints=(
            "As the equation reads: the shared expert of all tokens with weight 1, then a loop "
            "over the experts e, each weighted with column e of g.",
            "expert_forward(x, expert.w1.weight, expert.w2.weight, expert.w3.weight, limit, g) is "
            "one expert; the limit is ffn.gate.config.swiglu_limit.",
            "g[:, e, None] is N 1, the weights of expert e; they are 0 for tokens that did not "
            "choose it.",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.grouped", mix_experts, _grouped_cases,
        mistakes={
            "both faults are still there": _grouped(weigh="tokens", back="order"),
            "the rows come back in the right order now, but the weights do not belong to their "
            "rows: sort them like the rows": _grouped(weigh="tokens"),
            "the weights belong to their rows now, but the rows come back in the wrong order: take "
            "the inverse of `order`": _grouped(back="order"),
            "the rows are not brought back into the order of the tokens at all":
                _grouped(back=None),
            "row i of the sorted list belongs to token order[i] // K; order[i] % N is another "
            "token":
                _grouped(rows="mod"),
        },
        hints=(
            "Print order, order // K and chosen.flatten()[order] for three tokens: what does row "
            "i of each say?",
            "After sorting, row i is choice number order[i]. Everything that is multiplied with it "
            "must be sorted like it.",
            "If y = z[order], then z = y[order.argsort()].",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.balanced_table", balanced_table, _table_cases,
        mistakes={
            "the rarest tokens come first: begin with the most frequent, and let the rare ones "
            "fill the gaps":
                _table(order="rising"),
            "the tokens come in the order of their ids: begin with the most frequent":
                _table(order=None),
            "each token counts alike: what an expert has so far is the sum of its tokens' shares":
                _table(load="count"),
            "a token has the same expert K times: take K different ones": _table(spread=False),
        },
        hints=(
            "A loop over p.argsort(descending=True), and a list of what each expert has so far.",
            "so_far.argsort(stable=True)[:K] are the K experts with the least. Sort them before "
            "you write them down.",
            "Then so_far[picked] += p[token].",
        ),
    ),
    Check(
        "moe.bias_step", bias_step, _bias_cases,
        mistakes={
            "the sign is wrong: a bias goes down where the load was above the mean":
                lambda bias, load, u: 2 * bias - bias_step(bias, load, u),
            "the step is proportional to the excess: V4 moves by u or not at all, whatever the "
            "distance":
                lambda bias, load, u: bias - u * (load.float() - load.float().mean()),
            "the step is proportional to the relative excess: V4 moves by u or not at all":
                lambda bias, load, u: bias - u * (load / load.float().mean() - 1),
            "you compare with the median: V4 compares with the mean": _towards_median,
            "an expert with exactly the mean load moves: it stays":
                _mean_moves,
            "only overloaded experts move: the others go up":
                lambda bias, load, u: bias - u * (load > load.float().mean()).float(),
            "only the busiest and the idlest expert move: all do":
                _only_extremes,
        },
        hints=(
            "What counts is only whether an expert's load is above or below the mean.",
            "torch.sign gives -1, 0 or 1.",
            "The load holds whole numbers: load.float().mean(). One line: bias - u * sign(...).",
        ),
    ),
    Check(
        "moe.sequence_balance", balance_loss, _loss_cases,
        mistakes={
            "E is missing in f: an even load should give f = 1": _loss(E=False),
            "K is missing in f: each token chooses K experts, so divide by it": _loss(K=False),
            "E and K are missing in f: f = E / (K T) times the count": _loss(E=False, K=False),
            "f comes from the affinities and has a gradient: f counts choices":
                _loss(counts=lambda p, e: p * e.shape[-1]),
            "P is detached: then the loss has no gradient at all": _loss(detach=True),
            "the affinities are not normalised: P is the mean of s / (sum of s over experts)":
                _loss(share=lambda s: s),
            "P is a softmax of the affinities: divide them by their sum":
                _loss(share=lambda s: s.softmax(-1)),
            "f and P are taken over the whole batch: each sequence has its own, and the mean is "
            "over losses":
                _loss(whole_batch=True),
        },
        hints=(
            "f: B E, how often each expert was chosen in a sequence, times E / (K T). "
            "torch.nn.functional.one_hot counts.",
            "P: B E, the mean over the sequence of s / s.sum(-1, keepdim=True). The gradient "
            "flows through P alone.",
            "Then (f * P).sum(-1).mean(): a sum over experts, a mean over sequences.",
        ),
    ),
]
