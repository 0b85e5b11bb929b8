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


def weights_with(s, experts, scale, weighs=None, normed="chosen", place=True):
    """The weights of the chosen experts: N E. s: N E, affinities; experts: N K.

    The other arguments make mistakes. weighs: other numbers than s, N E; normed: the sum that
    divides, over "chosen" or "all" experts, "tokens", or "everything"; not place: N K.
    """
    value = s if weighs is None else weighs
    g = value.gather(1, experts)                                       # N K
    if normed == "chosen":
        g = g / g.sum(dim=1, keepdim=True)
    elif normed == "all":
        g = g / value.sum(dim=1, keepdim=True)
    elif normed == "tokens":
        g = g / g.sum(dim=0, keepdim=True)
    elif normed == "everything":
        g = g / g.sum()
    g = g * scale
    return torch.zeros_like(s).scatter(1, experts, g) if place else g


def route_with(x, weight, bias, K, scale, score=affinity, picks=None, weighs=None, **changes):
    """`route` with another affinity, other numbers that pick or weigh, or other weights."""
    logits = x @ weight.T                                              # N E
    s = score(logits)
    experts = (s + bias if picks is None else picks(s, logits, bias)).topk(K).indices
    value = None if weighs is None else weighs(s, logits, bias)
    return weights_with(s, experts, scale, value, **changes)


def _route(**changes):
    return lambda *args: route_with(*args, **changes)


def _biased(s, logits, bias):
    return s + bias


def _bias_inside(s, logits, bias):
    return affinity(logits + bias)


def _in_first_columns(x, weight, bias, K, scale):
    g = route_with(x, weight, bias, K, scale, place=False)
    return torch.cat([g, g.new_zeros(len(g), len(weight) - K)], dim=1)


def _sum_with_bias(x, weight, bias, K, scale):
    s = affinity(x @ weight.T)
    experts = (s + bias).topk(K).indices
    g = s.gather(1, experts) / (s + bias).gather(1, experts).sum(dim=1, keepdim=True) * scale
    return torch.zeros_like(s).scatter(1, experts, g)


def _bias_above_the_line(x, weight, bias, K, scale):
    s = affinity(x @ weight.T)
    experts = (s + bias).topk(K).indices
    g = (s + bias).gather(1, experts) / s.gather(1, experts).sum(dim=1, keepdim=True) * scale
    return torch.zeros_like(s).scatter(1, experts, g)


def _weight_not_transposed(x, weight, bias, K, scale):
    return x @ weight                      # N d times E d: the sizes do not fit


def _route_cases(rng):
    x = torch.eye(4) * 2 + 0.1 * torch.randn(4, 4, generator=rng)
    yield "four tokens, no bias", (x, torch.randn(5, 4, generator=rng), torch.zeros(5), 2, 1.0)
    x, weight = torch.randn(6, 8, generator=rng), torch.randn(9, 8, generator=rng)
    yield "a scale", (x, weight, torch.zeros(9), 3, 1.5)
    bias = torch.randn(12, generator=rng) * 0.8
    x, weight = torch.randn(20, 8, generator=rng), torch.randn(12, 8, generator=rng) * 0.5
    yield "a bias", (x, weight, bias, 3, 2.5)


def hash_route_with(x, ids, weight, table, scale, experts=None, score=affinity, **changes):
    """`hash_route` with other experts, another affinity, or other weights."""
    s = score(x @ weight.T)
    experts = table[ids] if experts is None else experts(s, ids, table)
    return weights_with(s, experts, scale, **changes)


def _hash(**changes):
    return lambda *args: hash_route_with(*args, **changes)


def _uniform(total):
    """Equal weights of the table's experts: total(K, scale) each."""
    def wrong(x, ids, weight, table, scale):
        g = plain.hash_route(x, ids, weight, table, scale)
        return (g > 0) * total(table.shape[1], scale)
    return wrong


def _hash_cases(rng):
    table = torch.rand(31, 7, generator=rng).argsort(1)[:, :2]
    for label, N, scale in (("a few tokens", 5, 1.0),
                            ("a scale, and tokens that come again", 30, 1.5)):
        x, ids = torch.randn(N, 6, generator=rng), torch.randint(0, 11, (N,), generator=rng)
        yield label, (x, ids, torch.randn(7, 6, generator=rng), table, scale)
    table = torch.rand(13, 8, generator=rng).argsort(1)[:, :3]
    x, ids = torch.randn(9, 5, generator=rng), torch.randint(0, 13, (9,), generator=rng)
    yield "three experts a token", (x, ids, torch.randn(8, 5, generator=rng), table, 2.5)


# ---- an expert ----


def expert_forward_with(x, w1, w2, w3, limit, g, gate=(None, 1), up=(-1, 1), after=False,
                        join=None, at="hidden"):
    """`expert_forward` with other clamps, another product, or g at another place.

    gate and up: the lower and upper clamp as multiples of the limit; after: clamp after the SiLU;
    join(a, b): another way from w1 x and w3 x to the hidden channels.
    """
    def clamp(v, sides):
        low, high = (None if side is None else side * limit for side in sides)
        return v if limit == 0 or sides == (None, None) else v.clamp(low, high)

    x = x * g if at == "input" else x
    a, b = x @ w1.T, x @ w3.T                                          # N I
    a = a * g if at == "before the clamp" else a
    b = b * g if at == "up" else b
    if after:
        h = clamp(F.silu(a), gate) * clamp(b, up)
    else:
        a, b = clamp(a, gate), clamp(b, up)
        a = a * g if at == "before the SiLU" else a
        h = F.silu(a) * b if join is None else join(a, b)
    h = h * g if at in ("hidden", "both") else h
    y = h @ w2.T
    return y * g if at == "both" else y


def _expert(**changes):
    return lambda *args: expert_forward_with(*args, **changes)


def _limit_zero(x, w1, w2, w3, limit, g):
    a, b = (x @ w1.T).clamp(max=limit), (x @ w3.T).clamp(-limit, limit)
    return (F.silu(a) * b * g) @ w2.T


def _cut_at_0(**changes):
    """An expert with other clamps, which cut everything where the limit is 0."""
    return lambda x, w1, w2, w3, limit, g: expert_forward_with(
        x, w1, w2, w3, limit or 1e-30, g, **changes)


def _limit(change):
    """An expert with the limit change(limit)."""
    return lambda x, w1, w2, w3, limit, g: expert_forward(x, w1, w2, w3, change(limit), g)


def _product_clamped(x, w1, w2, w3, limit, g):
    h = F.silu(x @ w1.T) * (x @ w3.T)
    return ((h.clamp(-limit, limit) if limit else h) * g) @ w2.T


def _output_clamped(x, w1, w2, w3, limit, g):
    y = expert_forward(x, w1, w2, w3, 0.0, g)
    return y.clamp(-limit, limit) if limit else y


def _not_transposed(x, w1, w2, w3, limit, g):
    return (F.silu(x @ w1) * (x @ w3) * g) @ w2      # N d times I d: the sizes do not fit


def _without_w2(x, w1, w2, w3, limit, g):
    return expert_forward(x, w1, torch.eye(len(w1)), w3, limit, g)


def _expert_cases(rng):
    def arguments(N, limit, size):
        w1, w3 = (torch.randn(10, 8, generator=rng) * 0.5 for _ in range(2))
        w2 = torch.randn(8, 10, generator=rng) * 0.5
        x, g = size * torch.randn(N, 8, generator=rng), 0.3 + torch.rand(N, 1, generator=rng)
        return x, w1, w2, w3, limit, g

    yield "small numbers, which no clamp touches", arguments(4, 50.0, 1.0)
    yield "a clamp that bites", arguments(6, 1.5, 3.0)
    yield "limit 0: no clamp", arguments(6, 0.0, 8.0)
    yield "a large limit that bites", arguments(7, 12.0, 9.0)


# ---- the layer ----

SIZES = dict(vocab_size=17, dim=10, n_layers=1, compress_ratios=(0,), n_heads=1, head_dim=4,
             rope_head_dim=2, q_lora_rank=4, o_groups=1, o_lora_rank=4, window_size=4,
             index_n_heads=1, index_head_dim=4, index_topk=1, moe_inter_dim=6, n_routed_experts=5,
             n_activated_experts=2, n_hash_layers=0, n_mtp_layers=0, swiglu_limit=1.0)


def _parts(change):
    """`mix_experts` with change(routed, shared, g) in place of their sum."""
    def wrong(ffn, x, g):
        shared = mix_experts(ffn, x, torch.zeros_like(g))
        return change(mix_experts(ffn, x, g) - shared, shared, g)
    return wrong


def _mean_weight(g):
    return g.sum(dim=1, keepdim=True) / (g > 0).sum(dim=1, keepdim=True)


def _weights(change):
    """`mix_experts` with the weights change(g)."""
    return lambda ffn, x, g: mix_experts(ffn, x, change(g))


def _to_the_first(g):
    """The weights of a token, for the experts 0 to K - 1."""
    first = torch.zeros_like(g)
    K = int((g[0] > 0).sum())
    first[:, :K] = g[g > 0].view(len(g), K)
    return first


def _of_the_first(g):
    """Only the weights of experts 0 to K - 1 stay."""
    K = int((g[0] > 0).sum())
    return torch.cat([g[:, :K], torch.zeros_like(g[:, K:])], dim=1)


def _of_the_last(g):
    return torch.cat([torch.zeros_like(g[:, :-1]), g[:, -1:]], dim=1)


def _last_alone(ffn, x, g):
    """The last expert's weighted output, without the shared one."""
    return mix_experts(ffn, x, _of_the_last(g)) - mix_experts(ffn, x, torch.zeros_like(g))


def _experts(expert):
    """`mix_experts` with another expert_forward."""
    return with_parts({"expert_forward": expert}).mix_experts


def _without_clamps(x, w1, w2, w3, limit, g):
    return expert_forward(x, w1, w2, w3, 0.0, g)


def _shared_without_clamps(ffn, x, g):
    none = torch.zeros_like(g)
    shared, free = mix_experts(ffn, x, none), _experts(_without_clamps)(ffn, x, none)
    return mix_experts(ffn, x, g) - shared + free


def _row_of_weights(ffn, x, g):
    """Weights of shape N where the expert needs N 1."""
    limit, y = ffn.gate.config.swiglu_limit, mix_experts(ffn, x, torch.zeros_like(g))
    for e, expert in enumerate(ffn.experts):
        w1, w2, w3 = expert.w1.weight, expert.w2.weight, expert.w3.weight
        y = y + expert_forward(x, w1, w2, w3, limit, g[:, e])
    return y


def _calls_the_experts(ffn, x, g):
    return ffn.experts[0](x)               # the modules of `plain` hold parameters: this raises


def _lively(module, rng):
    for p in module.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, generator=rng) * 0.6)
    return module


def _tokens(rng, ffn):
    """Inputs and weights of a few tokens: (x, N d; g, N E)."""
    for label, N in (("one token", 1), ("a dozen tokens", 12)):
        chosen = torch.rand(N, 5, generator=rng).argsort(1)[:, :2]
        g = torch.zeros(N, 5).scatter(1, chosen, torch.rand(N, 2, generator=rng) + 0.2)
        x = 2 * torch.randn(N, 10, generator=rng)
        yield label, (ffn, x, 1.5 * g / g.sum(dim=1, keepdim=True))


def _layer_cases(rng):
    """The experts of `minids.plain`, which hold parameters and have no forward."""
    return _tokens(rng, _lively(plain.MoE(Config(**SIZES), is_hash=False), rng))


def _grouped_cases(rng):
    """The experts of `minids`, which can be called."""
    with torch.random.fork_rng(devices=[]):
        ffn = MoE(Config(**SIZES), is_hash=False).eval()
    return _tokens(rng, _lively(ffn, rng))


WEIGHTS = {
    "sorted": lambda weights, order, K: weights.flatten()[order],
    "tokens": lambda weights, order, K: weights.flatten(),
    "inverse": lambda weights, order, K: weights.flatten()[order.argsort()],
    "flat, by token": lambda weights, order, K: weights.flatten()[order // K],
    "sum": lambda weights, order, K: weights[order // K].sum(1),
    "first": lambda weights, order, K: weights[order // K, 0],
    "one": lambda weights, order, K: torch.ones(len(order)),
}


def grouped_with(ffn, x, g, weigh="sorted", back="inverse", rows="token", shared=True, end="NK"):
    """`mix_experts`, sorted by expert, with weights, results, or rows in another order."""
    N, K = len(x), ffn.gate.config.n_activated_experts
    weights, chosen = g.topk(K)                                        # N K
    order = chosen.flatten().argsort(stable=True)                      # NK
    counts = torch.bincount(chosen.flatten(), minlength=len(ffn.experts)).tolist()
    runs = x[order // K if rows == "token" else order % N].split(counts)
    y = torch.cat([expert(run) for expert, run in zip(ffn.experts, runs)])
    y = y * WEIGHTS[weigh](weights, order, K)[:, None]
    if back == "inverse":
        y = y[order.argsort()]
    elif back == "order":
        y = y[order]
    elif back == "weighted again":
        y = y[order.argsort()] * weights.flatten()[:, None]
    y = y.view(N, K, -1).sum(dim=1) if end == "NK" else y.view(K, N, -1).sum(dim=0)
    return y + ffn.shared_experts(x) if shared else y


def _grouped(**changes):
    return lambda *args: grouped_with(*args, **changes)


# ---- hash tables ----

def balanced_table(p, E, K, tokens=None, picks=None, share=None, sort=True, row=None):
    """The experts of each token id: V K, rows sorted. p: V, the share of each token.

    Tokens come in falling order of their share; each gets the K experts with the least load so far.
    The keyword arguments make mistakes.
    """
    table, so_far = torch.zeros(len(p), K, dtype=torch.int64), torch.zeros(E, dtype=torch.float64)
    order = p.argsort(descending=True) if tokens is None else tokens(p)
    for rank, token in enumerate(order.tolist()):
        picked = so_far.argsort(stable=True)[:K] if picks is None else picks(so_far, K, rank)
        loaded = picked[:1] if share == "first" else picked
        so_far[loaded] += p[token].double() if share in (None, "first") else share
        table[token if row is None else rank] = picked.sort().values if sort else picked
    return table


def _table(**changes):
    return lambda *args: balanced_table(*args, **changes)


def _table_cases(rng):
    for label, V, E, K in (("one expert a token", 9, 4, 1), ("two of five", 40, 5, 2),
                           ("three of eight", 60, 8, 3)):
        p = (2.5 * torch.randn(V, generator=rng)).exp()
        yield label, (p / p.sum(), E, K)


# ---- balance ----

def bias_step(bias, load, u, mean=torch.mean, at_mean=0.0):
    """The bias after a step: u down where the load was above the mean, u up where it was below: E.

    bias, load: E. The last two arguments make mistakes.
    """
    load = load.float()
    excess = torch.sign(load - mean(load))
    return bias - u * torch.where(excess == 0, at_mean, excess)


def _step(**changes):
    return lambda *args: bias_step(*args, **changes)


def _bias_cases(rng):
    yield "four experts", (torch.zeros(4), torch.tensor([9, 1, 4, 2]), 0.1)
    bias = torch.randn(5, generator=rng)
    yield "an expert with the mean load", (bias, torch.tensor([3, 5, 9, 7, 1]), 0.25)
    yield "a mean of 5.2, and a load of 5", (bias, torch.tensor([3, 5, 9, 7, 2]), 0.5)
    yield "a mean of 5.8, and a load of 6", (bias, torch.tensor([3, 6, 9, 8, 3]), 0.5)
    bias, load = torch.randn(16, generator=rng), torch.randint(0, 100, (16,), generator=rng)
    yield "many experts", (bias, load.square(), 0.01)


def _only(sign):
    """Only experts above the mean move (1), or only those below it (-1)."""
    def wrong(bias, load, u):
        return torch.where((load.float() - load.float().mean()).sign() == sign,
                           bias_step(bias, load, u), bias)
    return wrong


def _only_extremes(bias, load, u):
    return bias - u * ((load == load.max()).float() - (load == load.min()).float())


def _mean_of_whole_numbers(bias, load, u):
    return bias - u * torch.sign(load - load.mean())      # torch has no mean of whole numbers


def sequence_balance(s, experts, counts=None, share=None, E=True, K=True, T=True, detach=False,
                     pooled=False, end=None):
    """sum_e f_e P_e, the mean over the sequences: one number. s: B T E, affinities; experts: B T K.

    The keyword arguments make mistakes.
    """
    B, length, n = s.shape
    p = s / s.sum(-1, keepdim=True) if share is None else share(s, experts)
    f = F.one_hot(experts, n).sum(2).float() if counts is None else counts(p, experts)   # B T E
    f = f.mean(1) if T else f.sum(1)                                                     # B E
    f = f * (n if E else 1) / (experts.shape[-1] if K else 1)
    P = p.mean(1)                                                                        # B E
    f = f.mean(0, keepdim=True) if pooled else f
    product = f * (P.detach() if detach else P)
    return product.sum(-1).mean() if end is None else end(product)


def balance_loss(s, experts):
    """The sequence-wise balance loss and its gradient with respect to s."""
    return with_gradient(sequence_balance)(s, experts)


def _loss(**changes):
    return with_gradient(lambda s, experts: sequence_balance(s, experts, **changes))


def _share_of_chosen(s, experts):
    chosen = torch.zeros_like(s).scatter(2, experts, s.gather(2, experts))
    return chosen / chosen.sum(-1, keepdim=True)


def _loss_cases(rng):
    for label, B, T, E, K in (("one sequence, one expert a token", 1, 6, 4, 1),
                              ("one sequence", 1, 7, 5, 2), ("three sequences", 3, 8, 6, 3)):
        s = affinity(1.5 * torch.randn(B, T, E, generator=rng) + torch.arange(E) * 0.5)
        yield label, (s, s.topk(K).indices)
    s = affinity(torch.randn(2, 5, 6, generator=rng) - 4 * (torch.arange(6) == 5))
    yield "two sequences, and nobody chooses the last expert", (s, s.topk(2).indices)


CHECKS = [
    Check(
        "moe.route", plain.route, _route_cases,
        mistakes={
            "your bias takes part in the weights; it should only pick, and g should come from the "
            "affinities without it":
                _route(weighs=_biased),
            "you do not use the bias; it should be added before the top K":
                _route(picks=lambda s, logits, bias: s),
            "you pick without the bias and weigh with it; it should only pick":
                _route(picks=lambda s, logits, bias: s, weighs=_biased),
            "you pick by W x + bias; the bias should be added to the affinity":
                _route(picks=_bias_inside),
            "you add the bias to W x, before the affinity; it should be added to the affinity, and "
            "only to pick":
                _route(picks=_bias_inside, weighs=_bias_inside),
            "you subtract the bias; it should be added":
                _route(picks=lambda s, logits, bias: s - bias),
            "you do not normalise the weights; they should be divided by the sum over the chosen "
            "experts":
                _route(normed=""),
            "you divide by the sum over all experts; it should be the sum over the chosen ones":
                _route(normed="all"),
            "you divide by a sum over the tokens; it should be the sum over a token's own experts":
                _route(normed="tokens"),
            "you divide by the sum over all tokens; each token should have its own sum, over its "
            "chosen experts":
                _route(normed="everything"),
            "you divide by a sum of affinities with the bias; it should be the chosen experts' "
            "affinities without it":
                _sum_with_bias,
            "route_scale is missing; the normalised weights should be multiplied by it":
                lambda x, weight, bias, K, scale: plain.route(x, weight, bias, K, 1.0),
            "your weights are neither normalised nor scaled; they should be divided by the sum "
            "over the chosen experts and multiplied by the scale":
                lambda x, weight, bias, K, scale: route_with(x, weight, bias, K, 1.0, normed=""),
            "your affinity is a softmax; it should be sqrt(softplus(x))":
                _route(score=lambda x: x.softmax(-1)),
            "your affinity is a sigmoid, as in DeepSeek-V3; it should be sqrt(softplus(x))":
                _route(score=torch.sigmoid),
            "your affinity is softplus without the square root; it should be sqrt(softplus(x))":
                _route(score=F.softplus),
            "your affinity is W x itself; it should be sqrt(softplus(W x))":
                _route(score=lambda x: x),
            "your weights are a softmax over the chosen affinities; the affinities should be "
            "divided by their sum":
                _route(weighs=lambda s, logits, bias: s.exp()),
            "your weights are a softmax over the chosen W x; the affinities should be divided by "
            "their sum":
                _route(weighs=lambda s, logits, bias: logits.exp()),
            "your weights are a softmax over all W x; the chosen experts' affinities should be "
            "divided by their sum":
                _route(weighs=lambda s, logits, bias: logits.exp(), normed="all"),
            "your weights are a softmax over all affinities; those of the chosen experts should be "
            "divided by their sum":
                _route(weighs=lambda s, logits, bias: s.exp(), normed="all"),
            "you weigh with the bias, but divide by a sum without it; the bias should only pick":
                _bias_above_the_line,
            "you return the weights of all experts; those that were not chosen should be 0":
                lambda x, weight, bias, K, scale: route_with(x, weight, bias, len(weight), scale),
            "you choose K + 1 experts; there should be K":
                lambda x, weight, bias, K, scale: plain.route(x, weight, bias, K + 1, scale),
            "you pick the K smallest; it should be the K largest":
                _route(picks=lambda s, logits, bias: -(s + bias)),
            "you return a table of 0 and the scale; each chosen expert's weight should be its "
            "share of the affinities":
                lambda *args: (plain.route(*args) > 0) * args[-1],
            "you return the weights of the chosen experts alone, N K; they should stand in a table "
            "N E, with 0 elsewhere":
                _route(place=False),
            "your weights stand in the first K columns; each should stand in the column of its "
            "expert": _in_first_columns,
            "you choose K - 1 experts; there should be K":
                lambda x, weight, bias, K, scale: plain.route(x, weight, bias, K - 1, scale),
            "you multiply x by `weight` as it is, E d; it should be transposed":
                _weight_not_transposed,
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
            "your weights are all the same; the table should fix which experts work, and the "
            "affinities how much each counts":
                _uniform(lambda K, scale: scale / K),
            "your weights are all the scale; each should be its affinity's share, times the scale":
                _uniform(lambda K, scale: scale),
            "your weights are all 1; each should be its affinity's share, times the scale":
                _uniform(lambda K, scale: 1.0),
            "your experts are the top K of the affinities; they should come from the table":
                _hash(experts=lambda s, ids, table: s.topk(table.shape[1]).indices),
            "you read the table by position; it should be read by token id":
                _hash(experts=lambda s, ids, table: table[torch.arange(len(ids)) % len(table)]),
            "you do not normalise the weights; they should be divided by the sum over the table's "
            "experts":
                _hash(normed=""),
            "your weights are neither normalised nor scaled; they should be divided by the sum "
            "over the table's experts and multiplied by the scale":
                lambda x, ids, weight, table, scale:
                    hash_route_with(x, ids, weight, table, 1.0, normed=""),
            "you divide by the sum over all experts; it should be the sum over the table's":
                _hash(normed="all"),
            "you divide by a sum over the tokens; it should be the sum over a token's own experts":
                _hash(normed="tokens"),
            "you divide by the sum over all tokens; each token should have its own sum, over its "
            "experts":
                _hash(normed="everything"),
            "route_scale is missing; the normalised weights should be multiplied by it":
                lambda x, ids, weight, table, scale: plain.hash_route(x, ids, weight, table, 1.0),
            "your weights are a softmax over the table's affinities; these should be divided by "
            "their sum":
                _hash(score=lambda x: affinity(x).exp()),
            "you use only the first expert of the table's K; all should work":
                _hash(experts=lambda s, ids, table: table[ids][:, :1]),
            "your affinity is a sigmoid; it should be sqrt(softplus(x)) here, too":
                _hash(score=torch.sigmoid),
            "your weights come from a softmax of W x; the affinity should be sqrt(softplus(x)) "
            "here, too":
                _hash(score=lambda x: x.softmax(-1)),
            "your affinity is softplus without the square root; it should be sqrt(softplus(x))":
                _hash(score=F.softplus),
            "your affinity is W x itself; it should be sqrt(softplus(W x))":
                _hash(score=lambda x: x),
            "you return the weights of the chosen experts alone, N K; they should stand in a table "
            "N E, with 0 elsewhere":
                _hash(place=False),
            "you multiply x by `weight` as it is, E d; it should be transposed":
                lambda x, ids, weight, table, scale: x @ weight,
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
            "you clamp w1 x on both sides; it should be clamped from above only":
                _expert(gate=(-1, 1)),
            "you clamp w1 x from below; it should be clamped from above, since its large negative "
            "values are harmless":
                _expert(gate=(-1, None)),
            "you clamp w3 x from above only; it should be clamped on both sides":
                _expert(up=(None, 1)),
            "you clamp w3 x from below only; it should be clamped on both sides":
                _expert(up=(-1, None)),
            "you clamp what the expert returns; w1 x and w3 x should be clamped instead":
                _output_clamped,
            "you exchange the two clamps; w1 x should be clamped from above, w3 x on both sides":
                _expert(gate=(-1, 1), up=(None, 1)),
            "you clamp after the SiLU; w1 x should be clamped before it": _expert(after=True),
            "you clamp w1 x on both sides, and a limit of 0 cuts everything; it should be clamped "
            "from above only, and 0 should mean no clamp":
                _cut_at_0(gate=(-1, 1)),
            "you clamp w3 x from above only, and a limit of 0 cuts everything; it should be "
            "clamped on both sides, and 0 should mean no clamp":
                _cut_at_0(up=(None, 1)),
            "you clamp w1 x only, and a limit of 0 cuts everything; w3 x should be clamped on both "
            "sides, and 0 should mean no clamp":
                _cut_at_0(up=(None, None)),
            "you clamp the product silu(w1 x) * w3 x; its two factors should be clamped instead, "
            "before the SiLU": _product_clamped,
            "there is no clamp; w1 x should be clamped from above and w3 x on both sides":
                _expert(gate=(None, None), up=(None, None)),
            "you clamp w3 x only; w1 x should be clamped, too, from above":
                _expert(gate=(None, None)),
            "you clamp w1 x only; w3 x should be clamped, too, on both sides":
                _expert(up=(None, None)),
            "you clamp w1 x only, and on both sides; w1 x should be clamped from above, w3 x on "
            "both sides":
                _expert(gate=(-1, 1), up=(None, None)),
            "a limit of 0 cuts everything in your version; it should mean that there is no clamp":
                _limit_zero,
            "you clamp at 10, whatever the limit; it should be the argument `limit`, and 0 should "
            "mean no clamp":
                _limit(lambda limit: 10.0),
            "you clamp at 10 where there is a limit; it should be the argument `limit`":
                _limit(lambda limit: 10.0 if limit else 0.0),
            "you apply the SiLU to w3 x; it should be applied to w1 x, the gate":
                _expert(join=lambda a, b: a * F.silu(b)),
            "you exchange w1 and w3; w1 should be the gate, which goes through the SiLU":
                lambda x, w1, w2, w3, limit, g: expert_forward(x, w3, w2, w1, limit, g),
            "the SiLU is missing; w1 x should go through it":
                _expert(join=lambda a, b: a * b),
            "you apply a sigmoid; it should be SiLU, which is a * sigmoid(a)":
                _expert(join=lambda a, b: a.sigmoid() * b),
            "you apply ReLU; it should be SiLU": _expert(join=lambda a, b: a.relu() * b),
            "you apply GELU; it should be SiLU": _expert(join=lambda a, b: F.gelu(a) * b),
            "you apply the SiLU to both factors; only w1 x should go through it":
                _expert(join=lambda a, b: F.silu(a) * F.silu(b)),
            "you apply the SiLU to the product; only w1 x should go through it":
                _expert(join=lambda a, b: F.silu(a * b)),
            "you add the two factors; silu(w1 x) should multiply w3 x":
                _expert(join=lambda a, b: F.silu(a) + b),
            "you do not use w3; silu(w1 x) should multiply w3 x":
                _expert(join=lambda a, b: F.silu(a)),
            "you do not use w1; silu(w1 x) should multiply w3 x":
                _expert(join=lambda a, b: b),
            "you multiply w1 x by g before the SiLU, which is not linear; g should multiply "
            "silu(w1 x) * w3 x":
                _expert(at="before the SiLU"),
            "you multiply w1 x by g, before its clamp and the SiLU, which is not linear; g should "
            "multiply silu(w1 x) * w3 x":
                _expert(at="before the clamp"),
            "you multiply w3 x by g before its clamp; g should multiply silu(w1 x) * w3 x, after "
            "the clamps":
                _expert(at="up"),
            "you multiply the input x by g, which reaches the SiLU and comes twice; g should "
            "multiply silu(w1 x) * w3 x":
                _expert(at="input"),
            "you multiply by g twice; it should be once": _expert(at="both"),
            "you do not use g; it should multiply silu(w1 x) * w3 x": _expert(at="nowhere"),
            "you multiply by w1 and w3 as they are, I d; they should be transposed, as in "
            "torch.nn.Linear": _not_transposed,
            "you return the hidden channels, N I; w2 should bring them back to N d": _without_w2,
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
            "you forget the shared expert; it should be added for every token":
                _parts(lambda routed, shared, g: routed),
            "you return the shared expert alone; the routed ones should be added":
                _parts(lambda routed, shared, g: shared),
            "you weigh the shared expert like a routed one; it should be added as it is":
                _parts(lambda routed, shared, g: routed + _mean_weight(g) * shared),
            "you multiply the shared expert by the scale of the routed ones; it should be added as "
            "it is":
                _parts(lambda routed, shared, g: routed + g.sum(dim=1, keepdim=True) * shared),
            "you take the mean of the shared expert and the others; it should be added as it is":
                _parts(lambda routed, shared, g: routed + shared / 3),
            "you take the mean of all K + 1 experts; they should be added":
                _parts(lambda routed, shared, g: (routed + shared) / 3),
            "you take the mean of the routed experts; they are weighted, and should be added":
                _parts(lambda routed, shared, g: routed / g.shape[1] + shared),
            "you add the shared expert once for each chosen expert; it should be once for each "
            "token":
                _parts(lambda routed, shared, g: routed + 2 * shared),
            "you add the shared expert once in each turn of the loop; it should be once for each "
            "token":
                _parts(lambda routed, shared, g: routed + g.shape[1] * shared),
            "you multiply by route_scale; g holds it already, so the routed experts should be "
            "added as g weighs them":
                lambda ffn, x, g: mix_experts(ffn, x, g * ffn.gate.config.route_scale),
            "you normalise g; it is ready, and should be used as it is":
                _weights(lambda g: g / g.sum(dim=1, keepdim=True)),
            "you do not weigh the routed experts; each should be multiplied by its g":
                _weights(lambda g: (g > 0).float()),
            "you add all routed experts with the weight 1; each should be multiplied by its column "
            "of g, which is 0 where it was not chosen":
                _weights(torch.ones_like),
            "you multiply by g twice; it should be once": _weights(torch.square),
            "you give a token's weights to the first K experts; column e of g should weigh expert "
            "e":
                _weights(_to_the_first),
            "your loop runs over K experts; it should run over all E, with column e of g for "
            "expert e":
                _weights(_of_the_first),
            "you use only the expert with the largest weight; all that were chosen should be added":
                _weights(lambda g: g * (g == g.amax(dim=1, keepdim=True))),
            "you keep the last expert of the loop and lose those before; all should be added":
                _weights(_of_the_last),
            "you keep the last expert of the loop and lose those before, the shared one too; all "
            "should be added":
                _last_alone,
            "your experts have no clamps; they should clamp at ffn.gate.config.swiglu_limit":
                _experts(_without_clamps),
            "your shared expert has no clamps; it should clamp at ffn.gate.config.swiglu_limit, as "
            "all do": _shared_without_clamps,
            "you multiply the input x by g; it should multiply silu(w1 x) * w3 x":
                _experts(_expert(at="input")),
            "you exchange w1 and w3; expert_forward should get w1, w2, w3 in this order":
                _experts(lambda x, w1, w2, w3, limit, g:
                         expert_forward(x, w3, w2, w1, limit, g)),
            "you add x itself; a layer should return the experts' sum alone":
                lambda ffn, x, g: mix_experts(ffn, x, g) + x,
            "your weights of an expert are N numbers; they should be N 1, so that each multiplies "
            "a row": _row_of_weights,
            "a matrix that you hand to expert_forward has the wrong shape; the order should be w1, "
            "w2, w3, each as it is stored, not transposed":
                _experts(lambda x, w1, w2, w3, limit, g:
                         expert_forward(x, w1, w3, w2, limit, g)),
            "you call an expert, which only holds its matrices; expert_forward should compute with "
            "them": _calls_the_experts,
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
            "both faults are still there; your version should have none":
                _grouped(weigh="tokens", back="order"),
            "your rows come back in the right order now, but the weights do not belong to their "
            "rows; they should be sorted like the rows":
                _grouped(weigh="tokens"),
            "your weights belong to their rows now, but the rows come back in the wrong order; "
            "they should, by the inverse of `order`":
                _grouped(back="order"),
            "your rows do not come back to the order of the tokens at all; they should, by the "
            "inverse of `order`":
                _grouped(back=None),
            "your rows do not come back, and the weights do not belong to them; weights should be "
            "sorted like the rows, which should come back by the inverse of `order`":
                _grouped(weigh="tokens", back=None),
            "you sort the weights by the inverse of `order`; they should be sorted by `order`, "
            "like the rows":
                _grouped(weigh="inverse"),
            "you sort the weights by the inverse of `order` and bring the rows back by `order`; it "
            "should be the other way round":
                _grouped(weigh="inverse", back="order"),
            "the weights are gone; each row should be multiplied by its own":
                _grouped(weigh="one"),
            "the weights are gone, and the rows come back in the wrong order; each row should be "
            "multiplied by its own weight, and come back by the inverse of `order`":
                _grouped(weigh="one", back="order"),
            "you multiply by the weights twice, in both orders; it should be once":
                _grouped(back="weighted again"),
            "you multiply each row by the sum of its token's weights; it should be the weight of "
            "this one choice":
                _grouped(weigh="sum"),
            "you multiply each row by the sum of its token's weights, and the rows come back in "
            "the wrong order; it should be the weight of this one choice, and the inverse of "
            "`order`":
                _grouped(weigh="sum", back="order"),
            "you multiply each row by its token's first weight; it should be the weight of this "
            "one choice":
                _grouped(weigh="first"),
            "you index the N K weights by the token's number, order // K; row i should get number "
            "order[i] of the flat list":
                _grouped(weigh="flat, by token"),
            "you index the N K weights by the token's number, order // K, and the rows come back "
            "in the wrong order; row i should get weight number order[i] of the flat list":
                _grouped(weigh="flat, by token", back="order"),
            "you take token order[i] % N for row i of the sorted list; it should be order[i] // K":
                _grouped(rows="mod"),
            "you changed the token of row i, which was right as order[i] // K, and both faults are "
            "still there; your version should have none":
                _grouped(rows="mod", weigh="tokens", back="order"),
            "you changed the token of row i, which was right as order[i] // K, and the rows come "
            "back in the wrong order; they should, by the inverse of `order`":
                _grouped(rows="mod", back="order"),
            "you changed the token of row i, which was right as order[i] // K, and the weights do "
            "not belong to their rows; they should be sorted like the rows":
                _grouped(rows="mod", weigh="tokens"),
            "you read the choices as K N; choice number i belongs to token i // K, so the sum "
            "should be over the K of N K":
                _grouped(end="KN"),
            "the shared expert is gone; it should be added for every token":
                _grouped(shared=False),
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
            "you begin with the rarest tokens; you should begin with the most frequent, and let "
            "the rare ones fill the gaps":
                _table(tokens=lambda p: p.argsort()),
            "you take the tokens in the order of their ids; you should begin with the most "
            "frequent":
                _table(tokens=lambda p: torch.arange(len(p))),
            "you count each token alike, which deals the experts out one after another; the load "
            "of an expert should be the sum of its tokens' shares":
                _table(share=1.0),
            "all tokens get the same K experts; each picked expert should get the token's share, "
            "and the least loaded should be picked":
                _table(share=0.0),
            "you add the share to one of the picked experts; each of the K should get it":
                _table(share="first"),
            "you give a token the same expert K times; it should have K different ones":
                _table(picks=lambda load, K, rank: load.argmin().expand(K)),
            "of equal loads you take the higher number first; it should be the lower one":
                _table(picks=lambda load, K, rank:
                       len(load) - 1 - load.flip(0).argsort(stable=True)[:K]),
            "your rows are not sorted, and their number is the token's rank; each should be "
            "sorted, and stand in the row of its token's id":
                _table(sort=False, row="rank"),
            "your row number is the token's rank; it should be the token's id":
                _table(row="rank"),
            "your rows are not sorted; each should hold its experts in rising order":
                _table(sort=False),
        },
        hints=(
            "A loop over p.argsort(descending=True), and a list of what each expert has so far.",
            "so_far.argsort(stable=True)[:K] are the K experts with the least. Sort them before "
            "you write them down.",
            "Then so_far[picked] += p[token].",
        ),
        gradient=False,
    ),
    Check(
        "moe.bias_step", bias_step, _bias_cases,
        mistakes={
            "your sign is wrong; a bias should go down where the load was above the mean":
                lambda bias, load, u: 2 * bias - bias_step(bias, load, u),
            "your step is proportional to the excess; it should be u or nothing, whatever the "
            "distance":
                lambda bias, load, u: bias - u * (load.float() - load.float().mean()),
            "your step is proportional to the relative excess; it should be u or nothing":
                lambda bias, load, u: bias - u * (load / load.float().mean() - 1),
            "you compare with the median; it should be the mean": _step(mean=torch.median),
            "you round the mean down; it should be the mean itself, fractions too":
                _step(mean=lambda load: load.mean().floor()),
            "you round the mean; it should be the mean itself, fractions too":
                _step(mean=lambda load: load.mean().round()),
            "you compare with 0; it should be the mean load":
                _step(mean=torch.zeros_like),
            "you move an expert with exactly the mean load down; it should stay":
                _step(at_mean=1.0),
            "you move an expert with exactly the mean load up; it should stay":
                _step(at_mean=-1.0),
            "you move only overloaded experts; the others should go up": _only(1),
            "you move only the experts below the mean; those above it should go down": _only(-1),
            "you move only the busiest and the idlest expert; all should move, but those at the "
            "mean":
                _only_extremes,
            "you return the step alone; it should be added to the bias":
                lambda bias, load, u: bias_step(bias, load, u) - bias,
            "you multiply the bias; the step should be added to it":
                lambda bias, load, u: bias * (1 + bias_step(bias, load, u) - bias),
            "you move by 0.001, whatever u is; it should be u":
                lambda bias, load, u: bias_step(bias, load, 0.001),
            "you move by 1; it should be u":
                lambda bias, load, u: bias_step(bias, load, 1.0),
            "you ask torch for the mean of whole numbers, which it refuses; the load should be "
            "turned into floats first": _mean_of_whole_numbers,
        },
        hints=(
            "What counts is only whether an expert's load is above or below the mean.",
            "torch.sign gives -1, 0 or 1.",
            "The load holds whole numbers: load.float().mean(). One line: bias - u * sign(...).",
        ),
        gradient=False,
    ),
    Check(
        "moe.sequence_balance", balance_loss, _loss_cases,
        mistakes={
            "your loss is E times too small; f should have the factor E, and the sum over experts "
            "should not be a mean":
                _loss(E=False),
            "K is missing in f; each token chooses K experts, so f should be divided by it":
                _loss(K=False),
            "E and K are missing in f; it should be E / (K T) times the count":
                _loss(E=False, K=False),
            "T is missing; f and P should both be divided by the number of tokens": _loss(T=False),
            "f is only the count; it should be E / (K T) times the count":
                _loss(E=False, K=False, T=False),
            "your f comes from the affinities and has a gradient; it should count choices":
                _loss(counts=lambda p, e: p * e.shape[-1]),
            "your f counts a token's first expert only; it should count all K":
                _loss(counts=lambda p, e: F.one_hot(e[..., 0], p.shape[-1]).float()),
            "no gradient passes through your loss, because P is detached, or a number is taken out "
            "by .item(); P and the sums should stay tensors with their gradient":
                _loss(detach=True),
            "you do not normalise the affinities; P should be the mean of s / (sum of s over "
            "experts)":
                _loss(share=lambda s, experts: s),
            "your P divides by the sum over the tokens; it should be the sum over the experts":
                _loss(share=lambda s, experts: s / s.sum(1, keepdim=True)),
            "your P is a softmax of the affinities; they should be divided by their sum":
                _loss(share=lambda s, experts: s.softmax(-1)),
            "your P holds the chosen experts alone; it should be the share of every expert":
                _loss(share=_share_of_chosen),
            "you take f or P over the whole batch; each sequence should have its own, and the mean "
            "should be over losses":
                _loss(pooled=True),
            "you take f and P over the whole batch, and the loss is B times too large; each "
            "sequence should have its own, and the mean should be over losses":
                _loss(pooled=True, end=torch.sum),
            "you add the sequences; it should be their mean":
                _loss(end=torch.sum),
            "you return a loss for each sequence; it should be their mean":
                with_gradient(lambda s, e: sequence_balance(s, e, end=lambda v: v.sum(-1))),
            "your one_hot counts only as many experts as occur; it should get the number of "
            "experts, for the last may be idle":
                _loss(counts=lambda p, experts: F.one_hot(experts).sum(2).float()),
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
