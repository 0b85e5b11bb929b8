"""Checks of lesson 08: the assembly of the model from its parts, and its parameters (V4 report,
sections 2.1, 2.2, 4.2.1).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F

from minids import cost, plain
from minids.config import Config
from minids.learn.checks import mhc
from minids.learn.checks.gradient import with_gradient
from minids.learn.exercise import Check
from minids.plain import affinity, block_forward, model_forward, rms_norm, site_maps

LESSON = "08_whole_model"


# ---- affinity and norm ----


def _affinity_cases(rng):
    yield "a few numbers", (torch.randn(7, generator=rng) * 2,)
    yield "B T E", (torch.randn(2, 3, 5, generator=rng) * 4,)
    yield "from -20 to -17, where 1 + exp(x) rounds to 1", (
        -17 - 3 * torch.rand(4, generator=rng),)
    large = torch.tensor([60.0, 90.0, 200.0]) + torch.rand(3, generator=rng)
    yield "large numbers, which overflow exp", (large,)


def _gradient_cases(rng):
    yield "a few numbers", (torch.randn(7, generator=rng) * 3,)
    yield "from -20 to -10", (-10 - 10 * torch.rand(2, 3, generator=rng),)
    yield "below -110, where softplus is 0", (-110 - 10 * torch.rand(4, generator=rng),)
    yield "below -1000", (-1000 - 10 * torch.rand(4, generator=rng),)


def _added(v):
    return with_gradient(lambda x: (F.softplus(x) + v).sqrt())


def _added_after(v):
    return with_gradient(lambda x: F.softplus(x).sqrt() + v)


def _bounded(v):
    return with_gradient(lambda x: F.softplus(x).clamp_min(v).sqrt())


def _bounded_after(v):
    return with_gradient(lambda x: F.softplus(x).sqrt().clamp_min(v))


def _input_bounded(v):
    return with_gradient(lambda x: F.softplus(x.clamp_min(v)).sqrt())


EPS = torch.finfo(torch.float32).eps
SMALL = (1e-4, 1e-5, 1e-6, EPS, 1e-8, 1e-10, 1e-12)
SMALLER = (1e-15, 1e-16, 1e-20, 1e-24, 1e-30)


def _norm_cases(rng):
    weight = torch.rand(6, generator=rng) + 0.5
    yield "one vector", (torch.randn(6, generator=rng) + 0.3, weight, 1e-6)
    yield "B T d", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 1e-6)
    yield "a large eps", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 0.5)
    x = torch.randn(2, 3, 6, generator=rng) + 0.3
    yield "bfloat16 in, bfloat16 out", (x.bfloat16(), weight, 1e-6)
    x = 300 * torch.randn(2, 3, 6, generator=rng) + 300
    yield "float16 in, large numbers, whose squares overflow it", (x.half(), weight, 1e-6)


def _mean_of_all(x, weight, eps):
    return (x.float() * torch.rsqrt(x.float().square().mean() + eps) * weight).to(x.dtype)


def _sum_of_squares(x, weight, eps):
    total = x.float().square().sum(dim=-1, keepdim=True)
    return (x.float() / (total + eps).sqrt() * weight).to(x.dtype)


def _layer_norm(x, weight, eps):
    y = x.float()
    return rms_norm(y - y.mean(dim=-1, keepdim=True), weight, eps).to(x.dtype)


def _normed(divisor):
    """x / divisor(x, eps) * weight, computed in float32."""
    return lambda x, weight, eps: (x.float() / divisor(x.float(), eps) * weight).to(x.dtype)


def _mean_square(x, axis=-1):
    return x.square().mean(dim=axis, keepdim=True)


def _in_own_type(x, weight, eps):
    y = x * torch.rsqrt(_mean_square(x) + eps)
    return (y * weight).to(x.dtype)


def _eps_outside(x, weight, eps):
    root = x.float().square().mean(dim=-1, keepdim=True).sqrt()
    return (x.float() / (root + eps) * weight).to(x.dtype)


# ---- the assembly ----

TINY = Config(vocab_size=29, dim=12, n_layers=2, compress_ratios=(0, 4, 0), n_heads=2, head_dim=8,
              rope_head_dim=4, q_lora_rank=8, o_groups=1, o_lora_rank=8, window_size=4,
              index_n_heads=2, index_head_dim=8, index_topk=8, moe_inter_dim=8, n_routed_experts=4,
              n_activated_experts=2, n_hash_layers=1, max_seq_len=64, hc_sinkhorn_iters=4)


def lively(rng, config=TINY):
    """A model of `minids.plain` in which every parameter matters.

    No norm weight is 1, no scale small, no bias 0, and no two streams are alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = plain.Model(config).requires_grad_(False)
    for name, t in model.state_dict().items():
        if name.endswith("norm.weight"):
            t.copy_(1 + 0.3 * torch.randn(t.shape, generator=rng))
        elif name.endswith(("scale", "base", "sink", "ape", "bias")):
            t.copy_(0.7 * torch.randn(t.shape, generator=rng))
        elif not name.endswith("tid2eid"):
            t.copy_(torch.randn(t.shape, generator=rng) * t.shape[-1] ** -0.5)
    return model


def _stochastic(rng, *shape):
    """Doubly stochastic 3 x 3 matrices that are not symmetric.

    They are means of the six permutations, and the first of these, a cyclic one, weighs most.
    """
    orders = [[1, 2, 0], [0, 1, 2], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]]
    weights = torch.rand(*shape, 6, generator=rng) + torch.tensor([3.0, 1, 0, 0, 0, 0])
    weights = weights.softmax(-1)
    return torch.einsum("...p,pij->...ij", weights, torch.eye(3)[torch.tensor(orders)])


def _site_cases(rng):
    half = torch.full((1, 1, 3), 0.5)
    comb = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])[None, None]
    X = torch.tensor([2.0, 5.0, 11.0]).view(1, 1, 3, 1)
    yield "three streams that move on by one place", (X, _double, half, 1.4 * half, comb)
    X = torch.randn(2, 4, 3, 5, generator=rng)
    pre, post = torch.rand(2, 4, 3, generator=rng), 2 * torch.rand(2, 4, 3, generator=rng)
    yield "B T n d", (X, mhc.nonlinear, pre, post, _stochastic(rng, 2, 4))


def _double(u):
    return 2 * u


def block_forward_with(block, X, ids, site=plain.site, attn_norm="attn_norm", ffn_norm="ffn_norm",
                       first="attn", second="ffn", stale=False, after=False):
    """`block_forward` with another site, other norms, or other maps of the sites.

    A norm may be None, or two names; stale: the second site's maps come from the block's input;
    after: the norms come after the layers.
    """
    def normed(names, layer):
        def norm(u):
            for name in (names,) if isinstance(names, str) else names or ():
                u = getattr(block, name)(u)
            return u
        return (lambda u: norm(layer(u))) if after else (lambda u: layer(norm(u)))

    attention_layer = normed(attn_norm, lambda u: plain.attention(block.attn, u))
    expert_layer = normed(ffn_norm, lambda u: plain.moe_forward(block.ffn, u, ids))
    before = X
    X = site(X, attention_layer, *site_maps(block, X, first))
    return site(X, expert_layer, *site_maps(block, before if stale else X, second))


def _block(**changes):
    return lambda *args: block_forward_with(*args, **changes)


def _with_residual(X, *rest):
    return X + plain.site(X, *rest)


def _one_site_only(at):
    """A block with attention alone, or the experts alone."""
    def wrong(block, X, ids):
        if at == "attn":
            return plain.site(X, lambda u: plain.attention(block.attn, block.attn_norm(u)),
                              *site_maps(block, X, "attn"))
        return plain.site(X, lambda u: plain.moe_forward(block.ffn, block.ffn_norm(u), ids),
                          *site_maps(block, X, "ffn"))
    return wrong


def _experts_first(block, X, ids):
    def attention_layer(u):
        return plain.attention(block.attn, block.attn_norm(u))

    def expert_layer(u):
        return plain.moe_forward(block.ffn, block.ffn_norm(u), ids)

    X = plain.site(X, expert_layer, *site_maps(block, X, "ffn"))
    return plain.site(X, attention_layer, *site_maps(block, X, "attn"))


def _experts_read_the_input(block, X, ids):
    """The experts read the streams from before attention."""
    before, X = X, plain.site(X, lambda u: plain.attention(block.attn, block.attn_norm(u)),
                              *site_maps(block, X, "attn"))
    pre, post, comb = site_maps(block, X, "ffn")
    u = block.ffn_norm((pre[..., None] * before).sum(dim=2))
    f = plain.moe_forward(block.ffn, u, ids)
    return post[..., None] * f[:, :, None] + comb.mT @ X


def _parallel(join):
    """Both sites start from the block's input; join(a, b, X) makes one result of theirs."""
    def wrong(block, X, ids):
        return join(_one_site_only("attn")(block, X, ids), _one_site_only("ffn")(block, X, ids), X)
    return wrong


def _norms_the_streams(block, X, ids):
    X = block.attn_norm(X)
    X = plain.site(X, lambda u: plain.attention(block.attn, u), *site_maps(block, X, "attn"))
    X = block.ffn_norm(X)
    return plain.site(X, lambda u: plain.moe_forward(block.ffn, u, ids),
                      *site_maps(block, X, "ffn"))


def _norms_what_is_read(block, X, ids):
    """Each stream has its norm before it is weighed; the streams themselves are carried."""
    for at, norm, layer in (("attn", block.attn_norm, lambda u: plain.attention(block.attn, u)),
                            ("ffn", block.ffn_norm,
                             lambda u: plain.moe_forward(block.ffn, u, ids))):
        pre, post, comb = site_maps(block, X, at)
        f = layer((pre[..., None] * norm(X)).sum(dim=2))
        X = post[..., None] * f[:, :, None] + comb.mT @ X
    return X


def _called_layers(block, X, ids):
    return block.attn(X)                   # the modules of `plain` hold parameters: this raises


# What a repair may do to the carried streams, and to the norms, besides what it should.
CARRIED = {
    "the carried streams still have their fault": mhc.untransposed,
    "the carried streams are not mixed": mhc.without_mixing,
    "the carried streams are only weighed by sums of comb's rows": mhc.weighed_by_row_sums,
    "the carried streams are missing": mhc.without_carried,
    "X itself is added to the carried streams": _with_residual,
    "what the layer gives is mixed with the carried streams": mhc.mixes_what_was_written,
}
NORMS = {
    "the second site's layer still has its fault": dict(ffn_norm="attn_norm"),
    "both sites use ffn_norm": dict(attn_norm="ffn_norm"),
    "the norms are exchanged": dict(attn_norm="ffn_norm", ffn_norm="attn_norm"),
    "the second site has lost its norm": dict(ffn_norm=None),
    "the first site has lost its norm": dict(attn_norm=None),
    "both sites have lost their norms": dict(attn_norm=None, ffn_norm=None),
    "the second site has both norms, one after the other":
        dict(ffn_norm=("attn_norm", "ffn_norm")),
    "the second site has both norms, ffn_norm first": dict(ffn_norm=("ffn_norm", "attn_norm")),
    "both sites have both norms, one after the other":
        dict(attn_norm=("attn_norm", "ffn_norm"), ffn_norm=("attn_norm", "ffn_norm")),
}


def _debug_mistakes():
    """{message: wrong version} for what is not repaired, or not rightly."""
    fault = dict(ffn_norm="attn_norm")
    return {
        f"the second site's layer is right now, but {carried}; " + (
            "they should have none" if other is mhc.untransposed else
            "each new stream should be a sum of the old ones, weighed with comb"):
            _block(site=other) for carried, other in CARRIED.items()
    } | {
        f"the carried streams are right now, but {norms}; " + (
            "it should have none" if one == fault else "each layer should get its own norm of u"):
            _block(**one) for norms, one in NORMS.items()
    } | {
        f"{norms}, and {carried}; your version should have no fault": _block(site=other, **one)
        for norms, one in NORMS.items() for carried, other in CARRIED.items()
        if (one == fault) != (other is mhc.untransposed)
    }


def _block_cases(rng):
    model = lively(rng)
    for label, block in (("window attention, hash routing", model.layers[0]),
                         ("CSA, score routing", model.layers[1])):
        X = torch.randn(2, 6, 4, 12, generator=rng)
        ids = torch.randint(0, 29, (2, 6), generator=rng)
        yield label, (block, X, ids)


def model_forward_with(model, ids, streams=None, layers=lambda layers: layers, gates=plain.gates,
                       norm=rms_norm, head=None, eps=None):
    """`model_forward` with other first streams, other blocks, other gates, or another end."""
    n, eps = model.config.hc_mult, model.config.norm_eps if eps is None else eps
    X = model.embed(ids)[:, :, None]                                   # B T 1 d
    start = X = X.repeat(1, 1, n, 1) if streams is None else streams(X, n)     # B T n d
    for block in layers(model.layers):
        X = block_forward(block, X, ids)
    g = gates(model, start if gates is _gates_of_the_start else X)
    y = (g[..., None] * X).sum(dim=2)                                  # B T d
    y = norm(y, model.norm.weight, eps) if norm else y
    return y @ (model.head if head is None else head(model)).weight.T


def _model(**changes):
    return lambda *args: model_forward_with(*args, **changes)


def _first_only(X, n):
    return torch.cat([X, torch.zeros_like(X).repeat(1, 1, n - 1, 1)], dim=2)


def _divided(X, n):
    return X.repeat(1, 1, n, 1) / n


def _equal_gates(total):
    """The same gate for all n streams, total(n) in all."""
    return lambda model, X: torch.full(X.shape[:3], total(X.shape[2]) / X.shape[2])


def _one_stream(which):
    def gates(model, X):
        g = torch.zeros(X.shape[:3])
        g[..., which] = 1.0
        return g
    return gates


def _gates_of_the_start(model, X):
    return plain.gates(model, X)


def _gates_of_sum_1(model, X):
    g = plain.gates(model, X)
    return g / g.sum(dim=-1, keepdim=True)


def _softmax_gates(model, X):
    gates = plain.gates(model, X) - model.config.hc_eps
    return gates.logit().softmax(dim=-1) + model.config.hc_eps


def _norms_each_stream(model, ids):
    """The last norm comes before the streams are weighed together."""
    X = plain.features(model, ids)
    y = rms_norm(X, model.norm.weight, model.config.norm_eps)
    return (plain.gates(model, X)[..., None] * y).sum(dim=2) @ model.head.weight.T


def _norms_twice(model, ids):
    X, eps = plain.features(model, ids), model.config.norm_eps
    y = (plain.gates(model, X)[..., None] * rms_norm(X, model.norm.weight, eps)).sum(dim=2)
    return rms_norm(y, model.norm.weight, eps) @ model.head.weight.T


def _calls_the_blocks(model, ids):
    return model.layers[0](model.embed(ids)[:, :, None].repeat(1, 1, model.config.hc_mult, 1), ids)


def _model_cases(rng, n_mtp=0):
    """Results depend on the embedding, which requires gradients, so an attempt's must too."""
    sizes = dict(n_routed_experts=3, n_mtp_layers=n_mtp)
    two = TINY.replace(compress_ratios=(0, 4) + n_mtp * (0,), **sizes)
    three = TINY.replace(n_layers=3, compress_ratios=(0, 4, 0) + n_mtp * (0,), hc_mult=3,
                         norm_eps=0.02, **sizes)
    for label, config, B, T in (("one sequence", two, 1, 5),
                                ("a batch, three streams, three blocks, a large norm_eps", three,
                                 2, 9)):
        model = lively(rng, config)
        model.embed.weight.requires_grad_()
        yield label, (model, torch.randint(0, 29, (B, T), generator=rng))


def _mtp_cases(rng):
    return _model_cases(rng, n_mtp=1)


def mtp_loss(model, ids, given=1, target=2, streams=0, of=F.cross_entropy, last=0):
    """Mean cross-entropy of the MTP block. ids: B T.

    It is given the streams at t and the token at t + 1, and predicts the token at t + 2.
    """
    n = ids.shape[1] - max(given, target, streams) - last
    X = model.features(ids)[:, streams:streams + n]
    logits = model.mtp_logits(X, ids[:, given:given + n])              # B n V
    return of(logits.flatten(0, 1), ids[:, target:target + n].flatten())


def _mtp(**changes):
    return lambda model, ids: mtp_loss(model, ids, **changes)


def _times(factor):
    """The loss times factor(B, T)."""
    return lambda model, ids: mtp_loss(model, ids) * factor(*ids.shape)


def _whole_rows(model, ids):
    """All rows: the last ones get their targets from the beginning of the text."""
    logits = model.mtp_logits(model.features(ids), ids.roll(-1, 1))
    return F.cross_entropy(logits.flatten(0, 1), ids.roll(-2, 1).flatten())


def _without_first(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, 1:-2], ids[:, 2:-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 3:].flatten())


def _whole_rows_but_one(model, ids):
    logits = model.mtp_logits(model.features(ids), ids.roll(-1, 1))[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids.roll(-2, 1)[:, :-1].flatten())


def _filled_with_0(model, ids):
    logits = model.mtp_logits(model.features(ids), F.pad(ids[:, 1:], (0, 1)))
    return F.cross_entropy(logits.flatten(0, 1), F.pad(ids[:, 2:], (0, 2)).flatten())


def _main_loss(model, ids):
    logits = model_forward(model, ids)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _copying_t_minus_2_rows(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, :-2], ids[:, 1:-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:-1].flatten())


def _one_row_too_many(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, :-1], ids[:, 1:])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())


def _not_flattened(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, :-2], ids[:, 1:-1])
    return F.cross_entropy(logits, ids[:, 2:])


# ---- counting ----

_parts = cache(cost.parts)


def count(config):
    """{part: parameters} without MTP, from the configuration alone."""
    return dict(_parts(config))


def active(config):
    """What one token uses: all parts but the embedding table, and K of the E routed experts."""
    counts, E = count(config), config.n_routed_experts
    idle = counts["routed experts"] * (E - config.n_activated_experts) // E
    return sum(counts.values()) - counts["embedding"] - idle


def _share_of_everything(config):
    E, K = config.n_routed_experts, config.n_activated_experts
    return sum(count(config).values()) * K // E


def _count_cases(rng):
    yield "nano", (Config.nano(),)
    yield "mini", (Config.mini(),)
    yield "Flash", (Config.flash(),)
    yield "Pro", (Config.pro(),)
    yield "nano with three streams", (Config.nano().replace(hc_mult=3),)


def _but(change):
    """`count` with other numbers for some parts: change(config, counts, ratios) returns these."""
    def wrong(config):
        counts, ratios = count(config), config.compress_ratios[:config.n_layers]
        return counts | change(config, counts, ratios)
    return wrong


def _plus(part, change):
    """`count` with change(config, ratios) added to a part."""
    return _but(lambda config, counts, ratios: {part: counts[part] + change(config, ratios)})


def _missing(part):
    """`count` without what the exercise adds to a part."""
    def rest(config, counts, ratios):
        n = config.hc_mult
        return {part: n * n * config.dim + n + 1 if part == "hyper-connections" else 0}
    return _but(rest)


def _narrow(config, counts, ratios):
    """Both compressors of CSA without overlap: half as wide."""
    def half(width):
        return sum(2 * width * config.dim + r * width for r in ratios if r == 4)
    return {"compressors": counts["compressors"] - half(config.head_dim),
            "indexers": counts["indexers"] - half(config.index_head_dim)}


def _compressor(d, ratio, width):
    f = 2 if ratio == 4 else 1
    return 2 * f * width * d + ratio * f * width + width


def _no_hca(config, ratios):
    """Compressors of CSA layers only."""
    return -sum(_compressor(config.dim, r, config.head_dim) for r in ratios if r not in (0, 4))


def _no_csa(config, ratios):
    """Compressors of HCA layers only."""
    return -ratios.count(4) * _compressor(config.dim, 4, config.head_dim)


def _window_layers_too(config, ratios):
    return ratios.count(0) * _compressor(config.dim, 0, config.head_dim)


def _no_index_compressor(config, ratios):
    return -ratios.count(4) * _compressor(config.dim, 4, config.index_head_dim)


def _wide_index_compressor(config, ratios):
    wide = _compressor(config.dim, 4, config.head_dim)
    return ratios.count(4) * (wide - _compressor(config.dim, 4, config.index_head_dim))


def _wq_b(config, inputs):
    return config.index_n_heads * config.index_head_dim * inputs


def _wq_b_of_one_head(config, ratios):
    less = _wq_b(config, config.q_lora_rank) - config.index_head_dim * config.q_lora_rank
    return -ratios.count(4) * less


def _hca_indexers(config, ratios):
    """An indexer, with its compressor of the layer's ratio, in HCA layers, too."""
    matrices = _wq_b(config, config.q_lora_rank) + config.index_n_heads * config.dim
    return sum(matrices + _compressor(config.dim, r, config.index_head_dim)
               for r in ratios if r not in (0, 4))


def _two_matrices(config, counts, ratios):
    return {part: counts[part] * 2 // 3 for part in ("routed experts", "shared experts")}


def _site(config):
    n = config.hc_mult
    return (2 + n) * n * (n * config.dim + 1) + 3


def _one_site(config, ratios):
    return -config.n_layers * _site(config)


def _no_statics(config, ratios):
    n = config.hc_mult
    return -2 * config.n_layers * ((2 + n) * n + 3)


def _fn_of_one_stream(config, ratios):
    n = config.hc_mult
    return -2 * config.n_layers * (2 + n) * n * (n - 1) * config.dim


def _only_active(config, counts, ratios):
    E, K = config.n_routed_experts, config.n_activated_experts
    return {"routed experts": counts["routed experts"] * K // E}


def _one_expert(config, counts, ratios):
    return {"routed experts": counts["routed experts"] // config.n_routed_experts}


def _ape_forgotten(config, counts, ratios):
    c, ci = config.head_dim, config.index_head_dim
    ape = sum(r * c * (2 if r == 4 else 1) for r in ratios)
    return {"compressors": counts["compressors"] - ape,
            "indexers": counts["indexers"] - ratios.count(4) * 8 * ci}


def _but_k_of_e(config, part):
    """A part without K of its E-ths, in whole numbers as of both kinds of experts together."""
    counts, E, K = count(config), config.n_routed_experts, config.n_activated_experts
    together = counts["routed experts"] + counts[part]
    return together - together * K // E - (counts["routed experts"] * (E - K) // E)


def _idle(config, share):
    """`active` with another number of routed experts that work: share(E, K)."""
    routed, E = count(config)["routed experts"], config.n_routed_experts
    K = config.n_activated_experts
    return active(config) + routed // E * (share(E, K) - K)


CHECKS = [
    Check(
        "whole.sqrtsoftplus", affinity, _affinity_cases,
        mistakes={
            "you take softplus alone; its square root should follow": F.softplus,
            "you take a sigmoid, the gate of DeepSeek-V3; it should be sqrt(softplus(x))":
                torch.sigmoid,
            "you take the root of a sigmoid; it should be the root of softplus":
                lambda x: x.sigmoid().sqrt(),
            "you take the root first; softplus should come first, then the square root":
                lambda x: F.softplus(x.sqrt()),
            "you take the root first, of x where it is above 0; softplus should come first, then "
            "the square root":
                lambda x: F.softplus(x.clamp_min(0).sqrt()),
            "you take the root first, of absolute values; softplus should come first, then the "
            "square root":
                lambda x: F.softplus(x.abs().sqrt()),
            "you take softplus of -x; it should be of x": lambda x: F.softplus(-x).sqrt(),
            "you take the softplus of a softplus; there should be one, then the square root":
                lambda x: F.softplus(F.softplus(x)),
            "you divide softplus by 2; its square root should be taken":
                lambda x: F.softplus(x) / 2,
            "your logarithm is to the base 2; it should be the natural one":
                lambda x: (F.softplus(x) / math.log(2)).sqrt(),
            "you take the root of absolute values; it should be the root of softplus":
                lambda x: x.abs().sqrt(),
            "your exp overflows for large x, and 1 + exp(x) rounds to 1 for x below -17; "
            "torch.nn.functional.softplus is safe in both and should be used":
                lambda x: torch.log(1 + x.exp()).sqrt(),
            "your exp overflows for large x, and the root is missing; "
            "torch.nn.functional.softplus is safe there, and its square root should follow":
                lambda x: torch.log1p(x.exp()),
            "1 + exp(x) rounds to 1 for x below -17, and its logarithm to 0; the affinity should "
            "stay above 0, as torch.nn.functional.softplus is":
                lambda x: torch.where(x > 20, x, torch.log(1 + x.clamp(max=20).exp())).sqrt(),
            "you take the square of softplus; it should be its square root":
                lambda x: F.softplus(x).square(),
            "you take the root of ReLU; it should be the root of softplus, which is above 0 "
            "everywhere":
                lambda x: x.relu().sqrt(),
            "the logarithm is missing; softplus(x) should be log(1 + exp(x))":
                lambda x: (1 + x.exp()).sqrt(),
            "the 1 is missing; softplus(x) should be log(1 + exp(x))":
                lambda x: x.exp().log().sqrt(),
            "your exp overflows for large x; torch.nn.functional.softplus is safe there and should "
            "be used":
                lambda x: torch.log1p(x.exp()).sqrt(),
        },
        hints=(
            "softplus(x) is log(1 + exp(x)): always above zero, and about x where x is large.",
            "torch.nn.functional.softplus computes it without overflow.",
            "One line: the square root of softplus, element by element.",
        ),
    ),
    Check(
        "whole.rms_norm", rms_norm, _norm_cases,
        mistakes={
            "the weight is missing; the result should be multiplied by it":
                lambda x, weight, eps: rms_norm(x, torch.ones_like(weight), eps),
            "you add the weight; the result should be multiplied by it":
                lambda x, weight, eps: (rms_norm(x.float(), torch.ones_like(weight), eps)
                                        + weight).to(x.dtype),
            "you multiply by 1 + weight; it should be the weight":
                lambda x, weight, eps: rms_norm(x, 1 + weight, eps),
            "you multiply by the weight before the norm; it should come after":
                lambda x, weight, eps: rms_norm(x.float() * weight, torch.ones_like(weight),
                                                eps).to(x.dtype),
            "your mean is over all axes; it should be over the last axis only": _mean_of_all,
            "your mean is over the first axis; it should be over the last":
                _normed(lambda x, eps: (_mean_square(x, 0) + eps).sqrt()),
            "you divide by the root of the sum; it should be the root of the mean of the squares":
                _sum_of_squares,
            "the root is missing; x should be divided by the root of the mean square":
                _normed(lambda x, eps: _mean_square(x) + eps),
            "you multiply by the root mean square; x should be divided by it":
                _normed(lambda x, eps: torch.rsqrt(_mean_square(x) + eps)),
            "you divide by the mean of absolute values; it should be the root of the mean square":
                _normed(lambda x, eps: x.abs().mean(-1, keepdim=True) + eps),
            "you divide by the standard deviation, which subtracts the mean; it should be the root "
            "of the mean square":
                _normed(lambda x, eps: (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()),
            "you divide by torch's standard deviation; it should be the root of the mean square":
                _normed(lambda x, eps: x.std(-1, keepdim=True) + eps),
            "you subtract the mean first, as LayerNorm does; RMS norm should leave it":
                _layer_norm,
            "your eps is outside the square root; it should be inside": _eps_outside,
            "you do not use the argument eps; it should be added to the mean square":
                lambda x, weight, eps: rms_norm(x, weight, 0.0),
            "you divide the sum of squares by d - 1; it should be their mean, over d":
                _normed(lambda x, eps: (x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)
                                        + eps).sqrt()),
            "you divide by the largest absolute value; it should be the root of the mean square":
                _normed(lambda x, eps: x.abs().amax(-1, keepdim=True) + eps),
            "you take the square of the mean; it should be the mean of the squares":
                _normed(lambda x, eps: (x.mean(-1, keepdim=True).square() + eps).sqrt()),
            "you subtract eps; it should be added":
                _normed(lambda x, eps: (_mean_square(x) - eps).sqrt()),
            "you divide by the weight; the result should be multiplied by it":
                lambda x, weight, eps: rms_norm(x, 1 / weight, eps),
            "you square eps; it should be added as it is":
                lambda x, weight, eps: rms_norm(x, weight, eps * eps),
            "your result has another dtype than x; it should be computed in float32, then go back "
            "to x's type": lambda x, weight, eps: rms_norm(x.float(), weight, eps),
            "you compute in x's own type and return another; it should be computed in float32, "
            "then go back to x's type":
                lambda x, weight, eps: x * torch.rsqrt(_mean_square(x) + eps) * weight,
            "you compute in x's own type, where squares overflow; it should be float32, and the "
            "result go back to x's type": _in_own_type,
        },
        hints=(
            "Square, mean over the last axis (keepdim=True), add eps, then the reciprocal of the "
            "square root.",
            "Compute in float32: x.float(). The weight has one number for each channel and is "
            "multiplied at the end.",
            "torch.rsqrt(v) is 1 / sqrt(v); the last step is .to(x.dtype).",
        ),
        atol=1e-4,
    ),
    Check(
        "whole.site", plain.site, _site_cases,
        mistakes=mhc.SITE_MISTAKES,
        hints=(
            "Three lines: u = what the layer reads, f = layer(u), and the sum of what is written "
            "and what is carried on.",
            "u is a weighted sum over the axis of streams: (pre[..., None] * X).sum(2), B T d.",
            "Written: post[..., None] * f[:, :, None], B T n d. Carried: comb.mT @ X, where .mT "
            "swaps the last two axes.",
        ),
    ),
    Check(
        "whole.block", block_forward, _block_cases,
        mistakes={
            "you call block.attn or block.ffn, which only hold parameters; the layers should be "
            "attention(block.attn, u) and moe_forward(block.ffn, u, ids)": _called_layers,
            "your sum runs over the second index of comb; it should run over the first":
                _block(site=mhc.untransposed),
            "X passes unmixed beside the mixed streams; a site should return its result alone":
                _block(site=_with_residual),
            "you exchange pre and post on their way to the site; pre should come first":
                _block(site=mhc.exchanged),
            "your second site uses attn_norm; it should use its own, ffn_norm":
                _block(ffn_norm="attn_norm"),
            "your first site uses ffn_norm; it should use its own, attn_norm":
                _block(attn_norm="ffn_norm"),
            "you exchange the norms; attention should use attn_norm, the experts ffn_norm":
                _block(attn_norm="ffn_norm", ffn_norm="attn_norm"),
            "your second site's maps come from the streams before attention; they should come from "
            "what the first site wrote": _block(stale=True),
            "your experts read the streams from before attention; the second site should start "
            "from the first one's result": _experts_read_the_input,
            "both your sites start from the block's input, and you add their results; the second "
            "site should start from what the first one wrote":
                _parallel(lambda a, b, X: a + b),
            "both your sites start from the block's input, and you add what they change; the "
            "second site should start from what the first one wrote":
                _parallel(lambda a, b, X: a + b - X),
            "both your sites start from the block's input, and you take the mean of their results; "
            "the second site should start from what the first one wrote":
                _parallel(lambda a, b, X: (a + b) / 2),
            "you norm the streams, which are then carried with it; each layer should get its norm "
            "of u, and the streams should pass as they are": _norms_the_streams,
            "you norm each stream before it is read; the norm should be of u, the weighted sum":
                _norms_what_is_read,
            "you add the block's input at the end; the second site's result should be returned as "
            "it is":
                lambda block, X, ids: X + block_forward(block, X, ids),
            "the streams pass unmixed; they should be mixed by comb":
                _block(site=mhc.without_mixing),
            "you mix what the layers have written, too; only what passes beside a layer should be "
            "mixed":
                _block(site=mhc.mixes_what_was_written),
            "your second site uses the attention site's maps; it should use its own, \"ffn\"":
                _block(second="attn"),
            "your first site uses the experts' maps; it should use its own, \"attn\"":
                _block(first="ffn"),
            "you exchange the maps of the sites; attention should use \"attn\", the experts "
            "\"ffn\"":
                _block(first="ffn", second="attn"),
            "the norm before attention is missing; the layer should get attn_norm(u)":
                _block(attn_norm=None),
            "the norm before the experts is missing; the layer should get ffn_norm(u)":
                _block(ffn_norm=None),
            "both norms are missing; each layer should get its norm of u":
                _block(attn_norm=None, ffn_norm=None),
            "your norms come after the layers; they should come before": _block(after=True),
            "your experts come first; attention should": _experts_first,
            "the experts are missing; a second site should follow the first":
                _one_site_only("attn"),
            "attention is missing, or its result is lost; the second site should work on what the "
            "first one wrote":
                _one_site_only("ffn"),
        },
        hints=(
            "Two calls of site, one after the other; the second takes what the first returned.",
            "The layer of the first site is a function of u alone: "
            "lambda u: attention(block.attn, block.attn_norm(u)).",
            "The second: the same with moe_forward(block.ffn, block.ffn_norm(u), ids) and "
            'site_maps(block, X, "ffn"), where X is the new one.',
        ),
        atol=1e-4,
    ),
    Check(
        "whole.debug", block_forward, _block_cases,
        mistakes={
            "both faults are still there; your version should have none":
                _block(site=mhc.untransposed, ffn_norm="attn_norm"),
            "the second site's maps come from the streams before attention now; they were right, "
            "and should come from what the first site wrote": _block(stale=True),
            "the norms come after the layers now; they should come before": _block(after=True),
            "pre and post are exchanged; they were right, and should stay":
                _block(site=mhc.exchanged),
            "the experts are gone; the second site should stay": _one_site_only("attn"),
            "attention is gone, or its result is lost; the first site should stay":
                _one_site_only("ffn"),
            "you norm each stream before it is read; the norm should be of u, the weighted sum":
                _norms_what_is_read,
        } | _debug_mistakes(),
        hints=(
            "Compare step by step with lively weights: which of u, f, carried is the first that "
            "differs from the right one?",
            "One fault is in what passes beside the layer, at both sites. The other is in what the "
            "experts are given.",
            "Einsum's letters say which index of comb is summed over. And count how often each of "
            "the two norms is used.",
        ),
        atol=1e-4,
    ),
    Check(
        "whole.forward", model_forward, _model_cases,
        mistakes={
            "only your first stream holds the embedding; all n should start as copies of it":
                _model(streams=_first_only),
            "you divide the embedding among the streams; each should get a whole copy":
                _model(streams=_divided),
            "you make four streams; there should be config.hc_mult":
                _model(streams=lambda X, n: X.repeat(1, 1, 4, 1)),
            "you average the streams at the end; they should be weighed with the head's gates":
                _model(gates=_equal_gates(lambda n: 1)),
            "you add the streams at the end; they should be weighed with the head's gates":
                _model(gates=_equal_gates(lambda n: n)),
            "you take the mean of the weighed streams; it should be their sum":
                _model(gates=lambda model, X: plain.gates(model, X) / X.shape[2]),
            "you read the first stream at the end; all should be weighed with the head's gates":
                _model(gates=_one_stream(0)),
            "you read the last stream at the end; all should be weighed with the head's gates":
                _model(gates=_one_stream(-1)),
            "your gates are a softmax; each should be its own sigmoid":
                _model(gates=_softmax_gates),
            "you divide the gates by their sum; they should weigh the streams as they are":
                _model(gates=_gates_of_sum_1),
            "your gates come from the first streams; they should come from those after the last "
            "block":
                _model(gates=_gates_of_the_start),
            "the last norm is missing; the output matrix should get the norm of the weighted sum":
                _model(norm=None),
            "your last norm has no weight; it should be model.norm.weight":
                _model(norm=lambda y, weight, eps: rms_norm(y, torch.ones_like(weight), eps)),
            "you norm each stream; the last norm should come after the streams are weighed "
            "together": _norms_each_stream,
            "your last norm uses 1e-6; it should be config.norm_eps": _model(eps=1e-6),
            "you norm the streams before the first block; the only norm outside the blocks should "
            "be at the end": lambda model, ids: model_forward_with(
                model, ids, streams=lambda X, n: rms_norm(
                    X, model.norm.weight, model.config.norm_eps).repeat(1, 1, n, 1)),
            "you norm twice, before the streams are weighed together and after; it should be only "
            "after":
                _norms_twice,
            "you apply the blocks twice; each should be applied once":
                _model(layers=lambda layers: [*layers, *layers]),
            "you multiply logits by a scale of 1 / sqrt(d); they should be as they are":
                lambda model, ids: model_forward(model, ids) * model.config.dim ** -0.5,
            "you use the embedding as the output matrix; it should be model.head":
                _model(head=lambda model: model.embed),
            "you leave out the last block; all should be applied":
                _model(layers=lambda layers: layers[:-1]),
            "you leave out the first block; all should be applied":
                _model(layers=lambda layers: layers[1:]),
            "you apply no block; all should be applied, one after the other":
                _model(layers=lambda layers: layers[:0]),
            "you apply the blocks in reverse order; the first should come first":
                _model(layers=lambda layers: layers[::-1]),
            "you apply the first block every time; each should be applied once":
                _model(layers=lambda layers: [layers[0]] * len(layers)),
            "each of your blocks starts from the embedding; it should start from what the block "
            "before gave":
                _model(layers=lambda layers: layers[-1:]),
            "you return probabilities; it should be logits":
                lambda model, ids: model_forward(model, ids).softmax(dim=-1),
            "you return logarithms of probabilities; it should be logits":
                lambda model, ids: model_forward(model, ids).log_softmax(dim=-1),
            "you stop before the output matrix; the result should be logits, B T V":
                lambda model, ids: plain.merge(model, plain.features(model, ids)),
            "you call a block, which only holds parameters; block_forward should compute with it":
                _calls_the_blocks,
        },
        hints=(
            "Five steps: embed, copy to n streams, all blocks one after the other, weigh the "
            "streams together, norm and output matrix.",
            "n copies: model.embed(ids)[:, :, None].repeat(1, 1, n, 1). The MTP block is not in "
            "model.layers, not used here.",
            "At the end: g = gates(model, X), B T n; the sum of g[..., None] * X over streams; "
            "rms_norm; the head's matrix.",
        ),
        atol=1e-4,
    ),
    Check(
        "whole.safe_affinity", with_gradient(affinity), _gradient_cases,
        mistakes={
            "your gradient is nan where softplus underflows to 0: 1/sqrt(0) times 0. Choosing "
            "afterwards with torch.where does not help, for autograd multiplies by the branch that "
            "was not taken; the root's argument should stay above 0":
                with_gradient(lambda x: F.softplus(x).sqrt()),
            "you compute in float64, which only moves the problem to x below -745, where softplus "
            "is 0, too; the root's argument should stay above 0 for every x":
                with_gradient(lambda x: F.softplus(x.double()).sqrt().float()),
            "you take the root of 1 where softplus is 0; the affinity should be about 0 there":
                with_gradient(lambda x: torch.where(F.softplus(x) > 0, F.softplus(x), 1.0).sqrt()),
            "no gradient passes through your function; only where softplus is 0 it should be 0":
                with_gradient(lambda x: F.softplus(x.detach()).sqrt()),
        } | {
            f"you add {v:.2g} to softplus, which changes affinities; a lower bound should change "
            "only those that would be 0": _added(v) for v in SMALL
        } | {
            f"you add {v:.2g} to softplus, or bound it there, and small affinities change; a lower "
            "bound of about 1e-38 (torch.finfo(torch.float32).tiny) should change only those that "
            "would be 0": _added(v) for v in SMALLER
        } | {
            f"you add {v:.2g} after the root, where the gradient is still nan; the root's argument "
            "should stay above 0": _added_after(v) for v in SMALL
        } | {
            f"you bound the affinity by {v:.2g} after the root, where the gradient is still nan; "
            "the root's argument should stay above 0": _bounded_after(v) for v in SMALL[:5]
        } | {
            f"your lower bound of {v:.2g} bites too early; float32 holds numbers down to 1e-38 "
            "(torch.finfo(torch.float32).tiny), and it should be about there":
                _bounded(v) for v in SMALL
        } | {
            f"you bound x from below by {v}, which changes the affinities below; each should stay "
            "what it is, to within 1e-18":
                _input_bounded(v) for v in (-10, -15, -20, -30, -40, -50, -60, -70)
        },
        hints=(
            "The derivative of sqrt(s) is 1 / (2 sqrt(s)): infinite at s = 0. Where softplus "
            "gives 0, this meets a factor 0.",
            "A lower bound for s, before the root, that is small enough to change no result and "
            "large enough not to be 0.",
            "tensor.clamp_min(v) has gradient 0 below v; the smallest normal float32 is "
            "torch.finfo(torch.float32).tiny.",
        ),
        atol=2e-18,         # the bound that the exercise states
    ),
    Check(
        "whole.mtp_loss", mtp_loss, _mtp_cases,
        mistakes={
            "your target is the token that the block was given (t + 1), which it can copy; it "
            "should be the token at t + 2": _mtp(target=1),
            "your target is the token that the block was given (t + 1), which it can copy, in all "
            "rows but the last two; it should be the token at t + 2": _copying_t_minus_2_rows,
            "you give the block the token that it should predict (t + 2), which it can copy; it "
            "should get the token at t + 1": _mtp(given=2),
            "you give the block the token at t, which the streams know already; it should get the "
            "next one, t + 1": _mtp(given=0),
            "your input and target are both one too early, the main model's work; the block should "
            "get token t + 1 and predict t + 2": _mtp(given=0, target=1),
            "your target is one too late; given t + 1, the block should predict t + 2":
                _mtp(target=3),
            "your input and target are both one too late; the block should get token t + 1 and "
            "predict t + 2": _mtp(given=2, target=3),
            "your streams are those at t + 1, one too late; they should be those at t":
                _mtp(streams=1),
            "your streams are those at t + 2, which have read the target; they should be those at "
            "t": _mtp(streams=2),
            "you roll the ids round, so the last rows get targets from the beginning of the text; "
            "those rows should be cut off":
                _whole_rows,
            "you leave out the last position that has a target; T - 2 rows should count":
                _mtp(last=1),
            "you leave out the first position; T - 2 rows should count": _without_first,
            "you roll the ids round and cut off only one row; the last row still gets its target "
            "from the beginning of the text, and should be cut off, too":
                _whole_rows_but_one,
            "you fill up the targets with token 0, which the last rows then should predict; those "
            "rows should be cut off": _filled_with_0,
            "you return the perplexity, exp of the loss; it should be the loss":
                lambda model, ids: mtp_loss(model, ids).exp(),
            "you return the mean log-probability, which is below 0; the loss should be its "
            "negative":
                _times(lambda B, T: -1),
            "you return the mean of both losses, or a weighted sum; it should be the MTP block's":
                lambda model, ids: (mtp_loss(model, ids) + _main_loss(model, ids)) / 2,
            "you take the sum over the positions; it should be the mean":
                _times(lambda B, T: B * (T - 2)),
            "you add the positions of a sequence; it should be the mean over all":
                _times(lambda B, T: T - 2),
            "you divide by all T positions; only T - 2 have a target and should count":
                _times(lambda B, T: (T - 2) / T),
            "your loss is in bits; it should be in nats, as cross_entropy gives it":
                _times(lambda B, T: 1 / math.log(2)),
            "you take logarithms twice, for cross_entropy takes a softmax itself; it should get "
            "the logits, not probabilities":
                _mtp(of=lambda logits, ids: F.cross_entropy(logits.softmax(-1), ids)),
            "you return the main model's loss; it should be the MTP block's": _main_loss,
            "you add the main model's loss; it should be the MTP block's alone":
                lambda model, ids: mtp_loss(model, ids) + _main_loss(model, ids),
            "your logits have one row more than there are targets; both should have T - 2":
                _one_row_too_many,
            "you hand B T V logits to cross_entropy, which takes classes on axis 1; they should be "
            "flattened to N V, and the targets to N": _not_flattened,
        },
        hints=(
            "Write down for T = 5 which rows have a token two places on: t = 0, 1, 2. So T - 2 "
            "rows count.",
            "model.features(ids)[:, :-2] are the streams at t, ids[:, 1:-1] the tokens at t + 1, "
            "ids[:, 2:] those at t + 2.",
            "F.cross_entropy takes N x V logits and N targets: .flatten(0, 1) for the one, "
            ".flatten() for the other.",
        ),
        atol=1e-6,
    ),
    Check(
        "whole.count", count, _count_cases,
        mistakes={f"the {part} are not counted yet; they should be": _missing(part)
                  for part in ("routed experts", "shared experts", "compressors", "indexers")} | {
            "a block's mHC sites are not counted yet; both should be":
                _missing("hyper-connections"),
            "your CSA compressors are too narrow; with overlap they should be twice as wide, 2c "
            "rows in wkv and wgate, 2c columns in ape":
                _but(_narrow),
            "the compressors of HCA layers are missing; every layer with a ratio above 0 should "
            "have one":
                _plus("compressors", _no_hca),
            "you count compressors in window-only layers; only layers with a ratio above 0 should "
            "have one":
                _plus("compressors", _window_layers_too),
            "the indexer's own compressor is missing; there should be one of width index_head_dim":
                _plus("indexers", _no_index_compressor),
            "your indexer's compressor is as wide as the layer's; its width should be "
            "index_head_dim":
                _plus("indexers", _wide_index_compressor),
            "the indexer's wq_b is missing; it should count heads times width times q_lora_rank":
                _plus("indexers", lambda config, ratios:
                      -ratios.count(4) * _wq_b(config, config.q_lora_rank)),
            "your indexer's wq_b takes d inputs; it should take q_lora_rank":
                _plus("indexers", lambda config, ratios: ratios.count(4) * (
                    _wq_b(config, config.dim) - _wq_b(config, config.q_lora_rank))),
            "your indexer's wq_b has one head; it should have index_n_heads":
                _plus("indexers", _wq_b_of_one_head),
            "the indexer's weights_proj is missing; it should count heads times d":
                _plus("indexers", lambda config, ratios:
                      -ratios.count(4) * config.index_n_heads * config.dim),
            "only the indexers' compressors are counted; wq_b and weights_proj should be, too":
                _plus("indexers", lambda config, ratios: -ratios.count(4) * (
                    _wq_b(config, config.q_lora_rank) + config.index_n_heads * config.dim)),
            "your indexer's weights_proj takes q_lora_rank inputs; it should take d":
                _plus("indexers", lambda config, ratios: ratios.count(4) * config.index_n_heads
                      * (config.q_lora_rank - config.dim)),
            "your indexer has the attention's number of heads; it should be index_n_heads":
                _plus("indexers", lambda config, ratios: ratios.count(4)
                      * (config.n_heads - config.index_n_heads)
                      * (config.index_head_dim * config.q_lora_rank + config.dim)),
            "your indexer's heads are as wide as the attention's; it should be index_head_dim":
                _plus("indexers", lambda config, ratios: ratios.count(4) * config.index_n_heads
                      * config.q_lora_rank * (config.head_dim - config.index_head_dim)),
            "the compressors of CSA layers are missing; every layer with a ratio above 0 should "
            "have one":
                _plus("compressors", _no_csa),
            "you count the indexers' compressors among the compressors, too; they should count "
            "only as indexers":
                _plus("compressors", lambda config, ratios: ratios.count(4)
                      * _compressor(config.dim, 4, config.index_head_dim)),
            "you count indexers in HCA layers; only CSA layers should have one":
                _plus("indexers", _hca_indexers),
            "your experts have two matrices; each should have three: w1, w2 and w3":
                _but(_two_matrices),
            "you count one routed expert for each layer; all E should be counted":
                _but(_one_expert),
            "you count a shared expert for each routed one; there should be one in each layer":
                _but(lambda config, counts, ratios: {
                    "shared experts": counts["shared experts"] * config.n_routed_experts}),
            "you count the shared expert among the routed ones, too; it should count once":
                _but(lambda config, counts, ratios: {
                    "routed experts": counts["routed experts"] + counts["shared experts"]}),
            "your experts have one matrix; each should have three: w1, w2 and w3":
                _but(lambda config, counts, ratios: {
                    part: counts[part] // 3 for part in ("routed experts", "shared experts")}),
            "you count the experts of one layer; it should be the sum over all layers":
                _but(lambda config, counts, ratios: {
                    part: counts[part] // config.n_layers
                    for part in ("routed experts", "shared experts")}),
            "your sites' maps have n x n numbers; there should be (2 + n) n, with pre and post":
                _plus("hyper-connections", lambda config, ratios: -2 * config.n_layers
                      * 2 * config.hc_mult * (config.hc_mult * config.dim + 1)),
            "you lose the numbers of the mHC head, which were there; the sites should be added to "
            "them":
                _plus("hyper-connections", lambda config, ratios:
                      -(config.hc_mult ** 2 * config.dim + config.hc_mult + 1)),
            "you count one of a block's two mHC sites; both should be counted":
                _plus("hyper-connections", _one_site),
            "the sites' base and scale are missing; they should count (2 + n) n and 3 numbers":
                _plus("hyper-connections", _no_statics),
            "the sites' scale is missing; it should count 3 numbers":
                _plus("hyper-connections", lambda config, ratios: -6 * config.n_layers),
            "the sites' base is missing; it should count (2 + n) n numbers":
                _plus("hyper-connections", lambda config, ratios:
                      -2 * config.n_layers * (2 + config.hc_mult) * config.hc_mult),
            "your sites' fn has d columns; it should have n d":
                _plus("hyper-connections", _fn_of_one_stream),
            "the compressors' ape is missing; it should have one row for each of the ratio's "
            "positions":
                _but(_ape_forgotten),
            "you count only the K experts that a token uses; all E are stored and should count":
                _but(_only_active),
        },
        hints=(
            "Read the names and shapes of one block above the exercise: each line there is a "
            "product that you add to its part.",
            "An expert: 3 d I. A site: (2+n)n x nd for fn, (2+n)n for base, 3 for scale. A "
            "compressor: wkv, wgate, ape, norm.",
            "Compressor of width w, f = 2 for CSA, else 1: 2 f w d + ratio f w + w. Indexer: one "
            "of width ci, two matrices.",
        ),
        atol=0.0, rtol=0.0, gradient=False,
    ),
    Check(
        "whole.active", active, _count_cases,
        mistakes={
            "you count the embedding table; a token reads one row of it, so it should be left out":
                lambda config: active(config) + count(config)["embedding"],
            "you leave the shared expert out, or count K - 1 routed ones; the shared one and K "
            "routed ones work for every token and should count":
                lambda config: active(config) - count(config)["shared experts"],
            "you return the total; idle experts and the embedding table should be left out":
                lambda config: sum(count(config).values()),
            "you return the total without the embedding; only K of E routed experts work for a "
            "token and should count":
                lambda config: sum(count(config).values()) - count(config)["embedding"],
            "you leave out all routed experts; K of the E work for a token and should count":
                lambda config: _idle(config, lambda E, K: 0),
            "you leave out K of the E routed experts; it should be the E - K idle ones":
                lambda config: _idle(config, lambda E, K: E - K),
            "you count one routed expert; K work for a token and should count":
                lambda config: _idle(config, lambda E, K: 1),
            "you count K + 1 routed experts; the shared one has its own part, so it should be K":
                lambda config: _idle(config, lambda E, K: K + 1),
            "you take K / E of the shared experts, too; every token uses them, so they should "
            "count in full":
                lambda config: active(config) - _but_k_of_e(config, "shared experts"),
            "you leave out the routers; each token goes through them, so they should count":
                lambda config: active(config) - count(config)["routers"],
            "you leave out the hyper-connections; each token goes through them, so they should "
            "count":
                lambda config: active(config) - count(config)["hyper-connections"],
            "you count the embedding table, and one routed expert of the K; it should be K, "
            "without the table":
                lambda config: _idle(config, lambda E, K: 1) + count(config)["embedding"],
            "you count the embedding table, and K + 1 routed experts; it should be K, without the "
            "table":
                lambda config: _idle(config, lambda E, K: K + 1) + count(config)["embedding"],
            "you take K / E of everything but the embedding; it should be the share of the routed "
            "experts only":
                lambda config: (sum(count(config).values()) - count(config)["embedding"])
                * config.n_activated_experts // config.n_routed_experts,
            "you take K / E of everything; it should be the share of the routed experts only":
                _share_of_everything,
            "you leave the head out; it is a matrix product for each token and should count":
                lambda config: active(config) - count(config)["head"],
        },
        hints=(
            "Start from the sum of all parts. Take away what one token leaves untouched.",
            "Untouched: E - K of the E routed experts in each layer, and the embedding table (all "
            "rows but one).",
            "total - embedding - routed * (E - K) // E, in whole numbers.",
        ),
        atol=0.0, rtol=0.0, gradient=False,
    ),
]
