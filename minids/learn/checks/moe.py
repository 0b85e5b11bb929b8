"""Checks of lesson 06: routing, experts, the layer, and what keeps the load even (V4 report, sections 2.1 and 4.2.3)."""

import torch
import torch.nn.functional as F

from minids.config import Config
from minids.learn.exercise import Check
from minids.model.moe import MoE

LESSON = "06_moe"


# ---- the router ----

def affinity(x):
    """sqrt(softplus(x)), kept above zero before the root."""
    return F.softplus(x).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def _dense(g, experts, E):
    """N K weights at N K experts -> N E, zero elsewhere."""
    return torch.zeros(len(g), E).scatter(1, experts, g)


def route(x, weight, bias, K, scale, score=affinity, picks=None, weighs=None, normed="chosen"):
    """The weight of each expert for each token, N E, 0 where it was not chosen. x: N d, weight: E d, bias: E.

    The keyword arguments make the usual mistakes: another affinity, what picks, what weighs, what is divided by.
    """
    logits = x @ weight.T                                                                # N E
    s = score(logits)
    experts = (s + bias if picks is None else picks(s, logits, bias)).topk(K).indices    # N K
    value = s if weighs is None else weighs(s, logits, bias)
    g = value.gather(1, experts)
    if normed:
        g = g / (g if normed == "chosen" else value).sum(1, keepdim=True)
    return _dense(g * scale, experts, len(weight))


def _variant(**changes):
    def wrong(x, weight, bias, K, scale):
        return route(x, weight, bias, K, scale, **changes)
    return wrong


def _route_cases(rng):
    x = torch.eye(4) * 2 + 0.1 * torch.randn(4, 4, generator=rng)
    yield "four tokens, no bias", (x, torch.randn(5, 4, generator=rng), torch.zeros(5), 2, 1.0)
    yield "a scale", (torch.randn(6, 8, generator=rng), torch.randn(9, 8, generator=rng), torch.zeros(9), 3, 1.5)
    bias = torch.randn(12, generator=rng) * 0.8
    yield "a bias", (torch.randn(20, 8, generator=rng), torch.randn(12, 8, generator=rng) * 0.5, bias, 3, 2.5)


def hash_route(x, ids, weight, table, scale, score=affinity, rows=None, uniform=False, normed=True):
    """As `route`, but the experts are table[token id]. ids: N, table: V K."""
    experts = table[ids] if rows is None else rows(x, ids, weight, table)                # N K
    g = score(x @ weight.T).gather(1, experts)
    g = torch.ones_like(g) if uniform else g
    g = g / g.sum(1, keepdim=True) if normed else g
    return _dense(g * scale, experts, len(weight))


def _hash_variant(**changes):
    def wrong(x, ids, weight, table, scale):
        return hash_route(x, ids, weight, table, scale, **changes)
    return wrong


def _hash_cases(rng):
    table = torch.rand(11, 7, generator=rng).argsort(1)[:, :2]
    for label, N, scale in (("a few tokens", 5, 1.0), ("a scale, and tokens that come again", 30, 1.5)):
        yield label, (torch.randn(N, 6, generator=rng), torch.randint(0, 11, (N,), generator=rng),
                      torch.randn(7, 6, generator=rng), table, scale)


# ---- an expert ----

def expert(x, w1, w2, w3, limit, g, gate=(None, 1), up=(-1, 1), after=False, on="gate", at="hidden"):
    """w2(silu(w1 x) * w3 x * g), N d. gate and up: the lower and upper clamp in limits; the rest makes mistakes."""
    def clamp(v, sides):
        low, high = (None if side is None else side * limit for side in sides)
        return v.clamp(low, high) if limit and (low is not None or high is not None) else v

    a, b = (x * g if at == "input" else x) @ w1.T, (x * g if at == "input" else x) @ w3.T        # N I
    if at == "gate":
        a = a * g
    if after:
        h = clamp(F.silu(a), gate) * clamp(b, up)
    else:
        a, b = clamp(a, gate), clamp(b, up)
        h = F.silu(a) * b if on == "gate" else a * F.silu(b)
    if at in ("hidden", "both"):
        h = h * g
    y = h @ w2.T
    return y * g if at == "both" else y


def _expert_variant(**changes):
    def wrong(x, w1, w2, w3, limit, g):
        return expert(x, w1, w2, w3, limit, g, **changes)
    return wrong


def _limit_zero(x, w1, w2, w3, limit, g):
    a, b = (x @ w1.T).clamp(max=limit), (x @ w3.T).clamp(-limit, limit)
    return (F.silu(a) * b * g) @ w2.T


def _expert_cases(rng):
    def one(N, limit, size):
        w1, w3, w2 = (torch.randn(shape, generator=rng) * 0.5 for shape in ((10, 8), (10, 8), (8, 10)))
        return size * torch.randn(N, 8, generator=rng), w1, w2, w3, limit, 0.3 + torch.rand(N, 1, generator=rng)
    yield "small numbers, which no clamp touches", one(4, 50.0, 1.0)
    yield "a clamp that bites", one(6, 1.5, 3.0)
    yield "limit 0: no clamp", one(6, 0.0, 3.0)


# ---- the layer ----

SIZES = dict(vocab_size=17, dim=10, n_layers=1, compress_ratios=(0,), n_heads=1, head_dim=4, rope_head_dim=2, q_lora_rank=4,
             o_groups=1, o_lora_rank=4, window_size=4, index_n_heads=1, index_head_dim=4, index_topk=1, moe_inter_dim=6,
             n_routed_experts=5, n_activated_experts=2, n_hash_layers=0, n_mtp_layers=0, swiglu_limit=1.0)


def moe(layer, x, g, chosen, shared=1.0, weigh=True, which=None, picks=None):
    """sum over k of g[:, k] * expert number chosen[:, k] of x, plus the shared expert. x: N d; g, chosen: N K."""
    N, K = chosen.shape
    y = torch.zeros_like(x)
    for n in range(N):
        for k in range(K) if picks is None else picks(K):
            e = int(chosen[n, k]) if which is None else which(n, k)
            y[n] += (g[n, k] if weigh else 1.0) * layer.experts[e](x[n])
    return y + (shared(g) if callable(shared) else shared) * layer.shared_experts(x)


def _moe_variant(**changes):
    def wrong(layer, x, g, chosen):
        return moe(layer, x, g, chosen, **changes)
    return wrong


def _layer_cases(rng):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = MoE(Config(**SIZES), is_hash=False).requires_grad_(False).eval()
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape, generator=rng) * 0.6)
    for label, N in (("one token", 1), ("a dozen tokens", 12)):
        chosen = torch.rand(N, 5, generator=rng).argsort(1)[:, :2]
        g = torch.rand(N, 2, generator=rng) + 0.2
        yield label, (layer, torch.randn(N, 10, generator=rng), 1.5 * g / g.sum(1, keepdim=True), chosen)


def grouped(layer, x, g, chosen, weigh="sorted", back="inverse", rows="token"):
    """The same, all tokens of an expert at once. The keyword arguments make mistakes."""
    N, K = chosen.shape
    order = chosen.flatten().argsort(stable=True)                                        # NK
    counts = torch.bincount(chosen.flatten(), minlength=len(layer.experts)).tolist()
    runs = x[order // K if rows == "token" else order % N].split(counts)                 # NK d
    y = torch.cat([one(run) for one, run in zip(layer.experts, runs)])
    y = y * (g.flatten()[order] if weigh == "sorted" else g.flatten())[:, None]
    y = y[order.argsort() if back == "inverse" else order] if back else y
    return y.view(N, K, -1).sum(1) + layer.shared_experts(x)


def _grouped_variant(**changes):
    def wrong(layer, x, g, chosen):
        return grouped(layer, x, g, chosen, **changes)
    return wrong


# ---- hash tables ----

def balanced_table(p, E, K, order="falling", load="share", spread=True):
    """Tokens in falling order of their share p (V); each gets the K experts that have the least so far. -> V K, rows sorted."""
    table, so_far = torch.zeros(len(p), K, dtype=torch.int64), torch.zeros(E, dtype=torch.float64)
    for token in p.argsort(descending=order == "falling").tolist() if order else range(len(p)):
        picked = so_far.argsort(stable=True)[:K] if spread else so_far.argmin().expand(K)
        so_far[picked] += p[token].double() if load == "share" else 1.0
        table[token] = picked.sort().values
    return table


def _table_variant(**changes):
    def wrong(p, E, K):
        return balanced_table(p, E, K, **changes)
    return wrong


def _table_cases(rng):
    for label, V, E, K in (("one expert a token", 9, 4, 1), ("two of five", 40, 5, 2), ("three of eight", 60, 8, 3)):
        p = (2.5 * torch.randn(V, generator=rng)).exp()
        yield label, (p / p.sum(), E, K)


# ---- balance ----

def bias_step(bias, load, u):
    """The bias after a step: u down where the load was above the mean, u up where below. bias, load: E."""
    load = load.float()
    return bias - u * torch.sign(load - load.mean())


def _bias_cases(rng):
    yield "four experts", (torch.zeros(4), torch.tensor([9, 1, 4, 2]), 0.1)
    yield "an expert with the mean load", (torch.randn(5, generator=rng), torch.tensor([3, 5, 9, 7, 1]), 0.25)
    yield "many experts", (torch.randn(16, generator=rng), torch.randint(0, 100, (16,), generator=rng).square(), 0.01)


def _towards_median(bias, load, u):
    return bias - u * torch.sign(load.float() - load.float().median())


def sequence_balance(s, experts, counts=None, share=None, E=True, K=True, detach=False, whole=False):
    """sum_e f_e P_e, mean over B sequences. s: B T E affinities, experts: B T K -> one number."""
    B, T, n = s.shape
    p = s / s.sum(-1, keepdim=True) if share is None else share(s)
    f = F.one_hot(experts, n).sum(2).float() if counts is None else counts(p, experts)   # B T E
    f = f.mean(1) * (n if E else 1) / (experts.shape[-1] if K else 1)                    # B E
    P = p.mean(1)                                                                        # B E
    if whole:
        f, P = f.mean(0, keepdim=True), P.mean(0, keepdim=True)
    return (f * (P.detach() if detach else P)).sum(-1).mean()


def balance_loss(s, experts):
    """The sequence-wise balance loss and its gradient by s."""
    return with_gradient(sequence_balance)(s, experts)


def with_gradient(function):
    """A function that returns function(s, experts) and its gradient by s; zeros where there is none."""
    def both(s, experts):
        s = s.detach().clone().requires_grad_()
        loss = function(s, experts)
        if not isinstance(loss, torch.Tensor):
            return loss
        grad = torch.autograd.grad(loss, s, allow_unused=True)[0] if loss.requires_grad else None
        return loss.detach(), torch.zeros_like(s) if grad is None else grad
    return both


def _loss_variant(**changes):
    return with_gradient(lambda s, experts: sequence_balance(s, experts, **changes))


def _loss_cases(rng):
    for label, B, T, E, K in (("one sequence, one expert a token", 1, 6, 4, 1), ("one sequence", 1, 7, 5, 2),
                              ("three sequences", 3, 8, 6, 3)):
        s = affinity(1.5 * torch.randn(B, T, E, generator=rng) + torch.arange(E) * 0.5)
        yield label, (s, s.topk(K).indices)


CHECKS = [
    Check(
        "moe.route", route, _route_cases,
        mistakes={
            "the bias weighs: it only picks. Take g from the affinities without it": _variant(weighs=lambda s, x, b: s + b),
            "the bias is not used: it is added before the top K": _variant(picks=lambda s, x, b: s),
            "the bias is added to the gate's output before the affinity; it belongs to the affinity, and only to pick":
                _variant(picks=lambda s, x, b: affinity(x + b)),
            "the bias is subtracted: it is added": _variant(picks=lambda s, x, b: s - b),
            "the weights are not renormalised: divide by the sum over the chosen experts": _variant(normed=""),
            "the weights are divided by the sum over all experts: divide by the sum over the chosen ones":
                _variant(normed="all"),
            "route_scale is missing: multiply the normalised weights by it":
                lambda x, weight, bias, K, scale: route(x, weight, bias, K, 1.0),
            "this is softmax: V4's affinity is sqrt(softplus(x))": _variant(score=lambda x: x.softmax(-1)),
            "this is sigmoid, the affinity of DeepSeek-V3: V4's is sqrt(softplus(x))": _variant(score=torch.sigmoid),
            "this is softplus without the square root": _variant(score=F.softplus),
            "the weights are a softmax over the chosen: divide the affinities by their sum":
                _variant(weighs=lambda s, x, b: s.exp()),
        },
        hints=(
            "Four lines: affinities s, N E; the experts with the K largest s + bias; their affinities; divide and scale.",
            "The bias may move which experts are chosen. After that, forget it: g = s.gather(1, experts).",
            "Back to N E: torch.zeros_like(s).scatter(1, experts, g) puts the weights where they belong.",
        ),
    ),
    Check(
        "moe.hash_route", hash_route, _hash_cases,
        mistakes={
            "the weights are uniform: the table fixes which experts work; the learned gate still says how much each counts":
                _hash_variant(uniform=True),
            "the experts are the top K of the affinities: take them from the table":
                _hash_variant(rows=lambda x, ids, w, t: affinity(x @ w.T).topk(t.shape[1]).indices),
            "the table is read by position: it is read by token id":
                _hash_variant(rows=lambda x, ids, w, t: t[torch.arange(len(ids)) % len(t)]),
            "the weights are not renormalised: divide by the sum over the two or more experts of the table":
                _hash_variant(normed=False),
            "route_scale is missing": lambda x, ids, weight, table, scale: hash_route(x, ids, weight, table, 1.0),
            "this is sigmoid: the affinity is sqrt(softplus(x)) here, too": _hash_variant(score=torch.sigmoid),
        },
        hints=(
            "One line differs from route: where the experts come from.",
            "table[ids] is N K. No bias and no top K here.",
            "The weights are as before: gather the affinities, divide by their sum, times the scale, scatter to N E.",
        ),
    ),
    Check(
        "moe.expert", expert, _expert_cases,
        mistakes={
            "w1 x is clamped on both sides: clamp it from above only": _expert_variant(gate=(-1, 1)),
            "w1 x is clamped from below: clamp it from above, its large negative values are harmless":
                _expert_variant(gate=(-1, None)),
            "w3 x is clamped from above only: it needs both sides": _expert_variant(up=(None, 1)),
            "the two clamps are exchanged: w1 x from above, w3 x on both sides": _expert_variant(gate=(-1, 1), up=(None, 1)),
            "the clamp on w1 x comes after the SiLU: clamp first": _expert_variant(after=True),
            "there is no clamp": _expert_variant(gate=(None, None), up=(None, None)),
            "only w3 x is clamped: w1 x needs it, too, from above": _expert_variant(gate=(None, None)),
            "only w1 x is clamped: w3 x needs it, too, on both sides": _expert_variant(up=(None, None)),
            "a limit of 0 means no clamp; this one cuts everything": _limit_zero,
            "SiLU stands around w3 x: it belongs around w1 x, the gate": _expert_variant(on="up"),
            "g multiplies before the SiLU, which is not linear: multiply silu(w1 x) * w3 x": _expert_variant(at="gate"),
            "g multiplies the input x: it reaches the SiLU, which is not linear, and comes twice": _expert_variant(at="input"),
            "g multiplies twice": _expert_variant(at="both"),
            "g is not used": _expert_variant(at="nowhere"),
        },
        hints=(
            "gate = w1 x and up = w3 x, both N I; clamp each; h = silu(gate) * up * g; y = w2 h.",
            "w1 has the shape I d, as in torch.nn.Linear: x @ w1.T. The clamps: gate.clamp(max=limit), up.clamp(-limit, limit)",
            "Clamp only `if limit`. g is N 1 and multiplies h, N I.",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.layer", moe, _layer_cases,
        mistakes={
            "the shared expert is forgotten: it is added for every token": _moe_variant(shared=0.0),
            "the shared expert is weighed like a routed one: add it as it is": _moe_variant(shared=lambda g: g.mean(1, True)),
            "the shared expert is multiplied by the scale of the routed ones: add it as it is":
                _moe_variant(shared=lambda g: g.sum(1, True)),
            "the shared expert is averaged with the others: add it as it is": _moe_variant(shared=1 / 3),
            "the shared expert is added once for each chosen expert: once for each token": _moe_variant(shared=2.0),
            "the routed experts are not weighed: multiply each by its g": _moe_variant(weigh=False),
            "expert k works where expert number chosen[n, k] should": _moe_variant(which=lambda n, k: k),
            "only the first chosen expert works: sum over all K": _moe_variant(picks=lambda K: range(1)),
        },
        hints=(
            "Two loops as the equation reads: over tokens n, over k. Then the shared expert for all tokens.",
            "The number of the expert is chosen[n, k], its weight g[n, k]: g[n, k] * layer.experts[chosen[n, k]](x[n]).",
            "layer.shared_experts(x) is N d; it is added without any weight.",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.grouped", grouped, _layer_cases,
        mistakes={
            "both faults are still there": _grouped_variant(weigh="tokens", back="order"),
            "the rows come back in the right order now, but the weights do not belong to their rows: sort g like the rows":
                _grouped_variant(weigh="tokens"),
            "the weights belong to their rows now, but the rows come back in the wrong order: take the inverse of `order`":
                _grouped_variant(back="order"),
            "the rows are not brought back into the order of the tokens at all": _grouped_variant(back=None),
            "row i of the sorted list belongs to token order[i] // K; order[i] % N is another token":
                _grouped_variant(rows="mod"),
        },
        hints=(
            "Print order, order // K and chosen.flatten()[order] for three tokens: what does row i of each say?",
            "After sorting, row i is choice number order[i]. Everything that is multiplied with it must be sorted like it.",
            "If y = z[order], then z = y[order.argsort()].",
        ),
        atol=1e-4,
    ),
    Check(
        "moe.balanced_table", balanced_table, _table_cases,
        mistakes={
            "the rarest tokens come first: begin with the most frequent, and let the rare ones fill the gaps":
                _table_variant(order="rising"),
            "the tokens come in the order of their ids: begin with the most frequent": _table_variant(order=None),
            "each token counts alike: what an expert has so far is the sum of its tokens' shares": _table_variant(load="count"),
            "a token has the same expert K times: take K different ones": _table_variant(spread=False),
        },
        hints=(
            "A loop over p.argsort(descending=True), and a list of what each expert has so far.",
            "so_far.argsort(stable=True)[:K] are the K experts with the least. Sort them before you write them down.",
            "Then so_far[picked] += p[token].",
        ),
    ),
    Check(
        "moe.bias_step", bias_step, _bias_cases,
        mistakes={
            "the sign is wrong: a bias goes down where the load was above the mean":
                lambda bias, load, u: 2 * bias - bias_step(bias, load, u),
            "the step is proportional to the excess: V4 moves by u or not at all, whatever the distance":
                lambda bias, load, u: bias - u * (load.float() - load.float().mean()),
            "the step is proportional to the relative excess: V4 moves by u or not at all":
                lambda bias, load, u: bias - u * (load / load.float().mean() - 1),
            "the load is compared with the median: with the mean": _towards_median,
            "an expert with exactly the mean load moves: it stays":
                lambda bias, load, u: bias - u * torch.where(load >= load.float().mean(), 1.0, -1.0),
            "only overloaded experts move: the others go up":
                lambda bias, load, u: bias - u * (load > load.float().mean()).float(),
            "only the busiest and the idlest expert move: all do":
                lambda bias, load, u: bias - u * ((load == load.max()).float() - (load == load.min()).float()),
        },
        hints=(
            "What counts is only on which side of the mean an expert's load lies.",
            "torch.sign gives -1, 0 or 1.",
            "The load holds whole numbers: load.float().mean(). One line: bias - u * sign(...).",
        ),
    ),
    Check(
        "moe.sequence_balance", balance_loss, _loss_cases,
        mistakes={
            "E is missing in f: an even load should give f = 1": _loss_variant(E=False),
            "K is missing in f: each token chooses K experts, so divide by it": _loss_variant(K=False),
            "E and K are missing in f: f = E / (K T) times the count": _loss_variant(E=False, K=False),
            "f comes from the affinities and has a gradient: f counts choices":
                _loss_variant(counts=lambda p, e: p * e.shape[-1]),
            "P is detached: then the loss has no gradient at all": _loss_variant(detach=True),
            "the affinities are not normalised: P is the mean of s / (sum of s over experts)": _loss_variant(share=lambda s: s),
            "P is a softmax of the affinities: divide them by their sum": _loss_variant(share=lambda s: s.softmax(-1)),
            "f and P are taken over the whole batch: each sequence has its own, and the mean is over losses":
                _loss_variant(whole=True),
        },
        hints=(
            "f: B E, how often each expert was chosen in a sequence, times E / (K T). torch.nn.functional.one_hot counts.",
            "P: B E, the mean over the sequence of s / s.sum(-1, keepdim=True). The gradient flows through P alone.",
            "Then (f * P).sum(-1).mean(): a sum over experts, a mean over sequences.",
        ),
    ),
]
