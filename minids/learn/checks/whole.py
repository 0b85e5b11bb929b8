"""Checks of lesson 08: the assembly of the model from its parts, and its parameters (V4 report,
sections 2.1, 2.2, 4.2.1).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

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
    large = torch.tensor([60.0, 90.0, 200.0]) + torch.rand(3, generator=rng)
    yield "large numbers, which overflow exp", (large,)


def _gradient_cases(rng):
    yield "a few numbers", (torch.randn(7, generator=rng) * 3,)
    yield "from -20 to -10", (-10 - 10 * torch.rand(2, 3, generator=rng),)
    yield "below -110, where softplus is 0", (-110 - 10 * torch.rand(4, generator=rng),)


def _norm_cases(rng):
    weight = torch.rand(6, generator=rng) + 0.5
    yield "one vector", (torch.randn(6, generator=rng) + 0.3, weight, 1e-6)
    yield "B T d", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 1e-6)
    yield "a large eps", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 0.5)
    x = torch.randn(2, 3, 6, generator=rng) + 0.3
    yield "bfloat16 in, bfloat16 out", (x.bfloat16(), weight, 1e-6)


def _mean_of_all(x, weight, eps):
    return (x.float() * torch.rsqrt(x.float().square().mean() + eps) * weight).to(x.dtype)


def _sum_of_squares(x, weight, eps):
    total = x.float().square().sum(dim=-1, keepdim=True)
    return (x.float() / (total + eps).sqrt() * weight).to(x.dtype)


def _layer_norm(x, weight, eps):
    y = x.float()
    return rms_norm(y - y.mean(dim=-1, keepdim=True), weight, eps).to(x.dtype)


def _eps_outside(x, weight, eps):
    root = x.float().square().mean(dim=-1, keepdim=True).sqrt()
    return (x.float() / (root + eps) * weight).to(x.dtype)


# ---- the assembly ----

TINY = Config(vocab_size=29, dim=12, n_layers=2, compress_ratios=(0, 4, 0), n_heads=2, head_dim=8,
              rope_head_dim=4, q_lora_rank=8, o_groups=1, o_lora_rank=8, window_size=4,
              index_n_heads=2, index_head_dim=8, index_topk=8, moe_inter_dim=8, n_routed_experts=4,
              n_activated_experts=2, n_hash_layers=1, max_seq_len=64)


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
                       second="ffn", stale=False):
    """`block_forward` with another site, other norms, or other maps of the second site.

    A norm may be None; stale: the second site's maps come from the block's input.
    """
    def attention_layer(u):
        u = getattr(block, attn_norm)(u) if attn_norm else u
        return plain.attention(block.attn, u)

    def expert_layer(u):
        u = getattr(block, ffn_norm)(u) if ffn_norm else u
        return plain.moe_forward(block.ffn, u, ids)

    before = X
    X = site(X, attention_layer, *site_maps(block, X, "attn"))
    return site(X, expert_layer, *site_maps(block, before if stale else X, second))


def _block(**changes):
    return lambda *args: block_forward_with(*args, **changes)


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


def _called_layers(block, X, ids):
    return block.attn(X)                   # the modules of `plain` hold parameters: this raises


def _block_cases(rng):
    model = lively(rng)
    for label, block in (("window attention, hash routing", model.layers[0]),
                         ("CSA, score routing", model.layers[1])):
        X = torch.randn(2, 6, 4, 12, generator=rng)
        ids = torch.randint(0, 29, (2, 6), generator=rng)
        yield label, (block, X, ids)


def model_forward_with(model, ids, streams=None, layers=slice(None), gates=plain.gates, norm=True):
    """`model_forward` with other first streams, fewer blocks, other gates, or no last norm."""
    n, eps = model.config.hc_mult, model.config.norm_eps
    X = model.embed(ids)[:, :, None]                                   # B T 1 d
    X = X.repeat(1, 1, n, 1) if streams is None else streams(X, n)     # B T n d
    for block in model.layers[layers]:
        X = block_forward(block, X, ids)
    y = (gates(model, X)[..., None] * X).sum(dim=2)                    # B T d
    y = rms_norm(y, model.norm.weight, eps) if norm else y
    return y @ model.head.weight.T


def _model(**changes):
    return lambda *args: model_forward_with(*args, **changes)


def _first_only(X, n):
    return torch.cat([X, torch.zeros_like(X).repeat(1, 1, n - 1, 1)], dim=2)


def _divided(X, n):
    return X.repeat(1, 1, n, 1) / n


def _mean_of_streams(model, X):
    return torch.full(X.shape[:3], 1 / X.shape[2])


def _softmax_gates(model, X):
    gates = plain.gates(model, X) - model.config.hc_eps
    return gates.logit().softmax(dim=-1) + model.config.hc_eps


def _model_cases(rng):
    model = lively(rng)
    yield "one sequence", (model, torch.randint(0, 29, (1, 5), generator=rng))
    yield "a batch", (model, torch.randint(0, 29, (3, 9), generator=rng))


def mtp_loss(model, ids, given=1, target=2, rows=None):
    """Mean cross-entropy of the MTP block. ids: B T.

    It is given the streams at t and the token at t + 1, and predicts the token at t + 2.
    """
    n = ids.shape[1] - max(given, target)
    logits = model.mtp_logits(model.features(ids)[:, :n], ids[:, given:given + n])       # B n V
    return F.cross_entropy(logits.flatten(0, 1), ids[:, target:target + n].flatten())


def _whole_rows(model, ids):
    """All rows: the last ones get their targets from the beginning of the text."""
    logits = model.mtp_logits(model.features(ids), ids.roll(-1, 1))
    return F.cross_entropy(logits.flatten(0, 1), ids.roll(-2, 1).flatten())


def _summed(model, ids):
    return mtp_loss(model, ids) * ids.shape[0] * (ids.shape[1] - 2)


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


def _but(change):
    """`count` with other numbers for some parts: change(config, counts, ratios) returns these."""
    def wrong(config):
        counts, ratios = count(config), config.compress_ratios[:config.n_layers]
        return counts | change(config, counts, ratios)
    return wrong


def _narrow(config, counts, ratios):
    """Both compressors of CSA without overlap: half as wide."""
    def half(width):
        return sum(2 * width * config.dim + r * width for r in ratios if r == 4)
    return {"compressors": counts["compressors"] - half(config.head_dim),
            "indexers": counts["indexers"] - half(config.index_head_dim)}


def _no_hca(config, counts, ratios):
    """Compressors of CSA layers only."""
    c, d = config.head_dim, config.dim
    hca = sum(2 * c * d + r * c + c for r in ratios if r not in (0, 4))
    return {"compressors": counts["compressors"] - hca}


def _no_index_compressor(config, counts, ratios):
    ci = config.index_head_dim
    return {"indexers": counts["indexers"] - ratios.count(4) * (4 * ci * config.dim + 8 * ci + ci)}


def _two_matrices(config, counts, ratios):
    return {part: counts[part] * 2 // 3 for part in ("routed experts", "shared experts")}


def _one_site(config, counts, ratios):
    n = config.hc_mult
    site = (2 + n) * n * (n * config.dim + 1) + 3
    return {"hyper-connections": counts["hyper-connections"] - config.n_layers * site}


def _no_statics(config, counts, ratios):
    n = config.hc_mult
    statics = 2 * config.n_layers * ((2 + n) * n + 3)
    return {"hyper-connections": counts["hyper-connections"] - statics}


def _only_active(config, counts, ratios):
    E, K = config.n_routed_experts, config.n_activated_experts
    return {"routed experts": counts["routed experts"] * K // E}


def _ape_forgotten(config, counts, ratios):
    c, ci = config.head_dim, config.index_head_dim
    ape = sum(r * c * (2 if r == 4 else 1) for r in ratios)
    return {"compressors": counts["compressors"] - ape,
            "indexers": counts["indexers"] - ratios.count(4) * 8 * ci}


CHECKS = [
    Check(
        "whole.sqrtsoftplus", affinity, _affinity_cases,
        mistakes={
            "this is softplus without the square root": F.softplus,
            "this is sigmoid, the gate of DeepSeek-V3; V4 takes sqrt(softplus(x))": torch.sigmoid,
            "the order is the other way round: first softplus, then the square root":
                lambda x: F.softplus(x.sqrt()),
            "exp overflows for large x: torch.nn.functional.softplus is safe there":
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
            "the weight is missing":
                lambda x, weight, eps: rms_norm(x, torch.ones_like(weight), eps),
            "the mean is over all axes: it belongs over the last axis only": _mean_of_all,
            "this divides by the root of the sum; RMS takes the mean of the squares":
                _sum_of_squares,
            "the mean was subtracted first, as LayerNorm does; RMS leaves it": _layer_norm,
            "eps is outside the square root; the report has it inside": _eps_outside,
            "eps is not used": lambda x, weight, eps: rms_norm(x, weight, 0.0),
            "the result has another dtype than x: compute in float32, then go back with "
            ".to(x.dtype)": lambda x, weight, eps: rms_norm(x.float(), weight, eps),
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
        mistakes={
            "comb is the wrong way round: the sum runs over its FIRST index, so a matrix product "
            "needs comb transposed": mhc.untransposed,
            "the streams are carried on unmixed: comb is not used": mhc.without_mixing,
            "the carried streams are missing: the layer's output is added to them, it does not "
            "replace them": mhc.without_carrying,
            "the layer reads the plain sum of the streams: weigh them with pre": mhc.reads_the_sum,
            "the layer's output goes to all streams alike: weigh it with post":
                mhc.writes_to_all_alike,
            "pre and post are exchanged: pre reads, post writes": mhc.exchanged,
            "the layer reads the mixed streams: it reads X as it came, mixing is for what passes "
            "beside the layer": mhc.reads_the_mixed,
        },
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
            "you call block.attn or block.ffn, and these only hold parameters: the layers are "
            "attention(block.attn, u) and moe_forward(block.ffn, u, ids)": _called_layers,
            "comb is not transposed on its way": _block(site=mhc.untransposed),
            "the second site uses attn_norm: it has its own, ffn_norm":
                _block(ffn_norm="attn_norm"),
            "the second site's maps come from the streams before attention: compute them from what "
            "the first site wrote": _block(stale=True),
            "the experts read the streams from before attention: the second site starts from the "
            "first one's result": _experts_read_the_input,
            "the second site uses the attention site's maps (hc_attn_...): it has its own, "
            "hc_ffn_...": _block(second="attn"),
            "the norm before attention is missing": _block(attn_norm=None),
            "the norm before the experts is missing": _block(ffn_norm=None),
            "the experts come first: attention does": _experts_first,
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
            "this still has both faults": _block(site=mhc.untransposed, ffn_norm="attn_norm"),
            "the fault at the second site's layer is repaired, the one in the carried streams is "
            "still there": _block(site=mhc.untransposed),
            "the carried streams are right now, the layer of the second site still has its fault":
                _block(ffn_norm="attn_norm"),
        },
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
            "only the first stream holds the embedding: all n start as copies of it":
                _model(streams=_first_only),
            "the embedding is divided among the streams: each gets a whole copy":
                _model(streams=_divided),
            "the streams are added or averaged at the end (which is the same under the norm): the "
            "head has its own gates": _model(gates=_mean_of_streams),
            "the head's gates are a softmax: each is its own sigmoid": _model(gates=_softmax_gates),
            "the last norm is missing": _model(norm=False),
            "a block is left out at the end": _model(layers=slice(0, -1)),
            "no block is applied": _model(layers=slice(0, 0)),
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
            "the gradient is nan where softplus underflows to 0: 1/sqrt(0) times 0. Choosing "
            "afterwards with torch.where does not help, autograd multiplies by the branch that was "
            "not taken; keep the root's argument above 0":
                with_gradient(lambda x: F.softplus(x).sqrt()),
            "the small number that is added changes all affinities: clamp instead, it changes "
            "those only that would be 0": with_gradient(lambda x: (F.softplus(x) + 1e-6).sqrt()),
            "the clamp bites too early: float32 holds numbers down to 1e-38 "
            "(torch.finfo(torch.float32).tiny)":
                with_gradient(lambda x: F.softplus(x).clamp_min(1e-6).sqrt()),
        },
        hints=(
            "The derivative of sqrt(s) is 1 / (2 sqrt(s)): infinite at s = 0. Where softplus "
            "gives 0, this meets a factor 0.",
            "A lower bound for s, before the root, that is small enough to change no result and "
            "large enough not to be 0.",
            "tensor.clamp_min(v) has gradient 0 below v; the smallest normal float32 is "
            "torch.finfo(torch.float32).tiny.",
        ),
        atol=1e-7,
    ),
    Check(
        "whole.mtp_loss", mtp_loss, _model_cases,
        mistakes={
            "the target is the token that the block was given (t + 1): it can copy it":
                lambda model, ids: mtp_loss(model, ids, 1, 1),
            "the block is given the token that it shall predict (t + 2): it can copy it":
                lambda model, ids: mtp_loss(model, ids, 2, 2),
            "the block is given the token at t, which the streams know already: it gets the next "
            "one, t + 1":
                lambda model, ids: mtp_loss(model, ids, 0, 2),
            "input and target are both one too early: this is given token t and predicts t + 1, "
            "the main model's work":
                lambda model, ids: mtp_loss(model, ids, 0, 1),
            "the target is one too late: given t + 1, the block predicts t + 2, not t + 3":
                lambda model, ids: mtp_loss(model, ids, 1, 3),
            "the ids are rolled round, so the last rows get targets from the beginning of the "
            "text: cut those rows off":
                _whole_rows,
            "this is the sum over the positions: take the mean": _summed,
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
        mistakes={
            "with overlap, CSA's compressors are twice as wide: wkv and wgate have 2c rows, ape "
            "2c columns": _but(_narrow),
            "the compressors of HCA layers are missing: every ratio above 0 has one, only the "
            "indexer is CSA's alone":
                _but(_no_hca),
            "the indexer's own compressor is missing (width index_head_dim)":
                _but(_no_index_compressor),
            "an expert has three matrices: w1, w2 and w3": _but(_two_matrices),
            "the shared expert of each layer is missing":
                _but(lambda config, counts, ratios: {"shared experts": 0}),
            "only one of a block's two mHC sites is counted": _but(_one_site),
            "the sites' base and scale are missing: (2 + n) n and 3 numbers": _but(_no_statics),
            "the compressors' ape is missing: one row for each of the ratio's positions":
                _but(_ape_forgotten),
            "only the K experts that a token uses are counted here: all E are stored":
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
        atol=0.0, rtol=0.0,
    ),
    Check(
        "whole.active", active, _count_cases,
        mistakes={
            "the embedding table is counted: a token reads one row of it, and the published "
            "figure leaves it out":
                lambda config: active(config) + count(config)["embedding"],
            "the shared expert is left out: every token uses it":
                lambda config: active(config) - count(config)["shared experts"],
            "this is the total without the embedding: only K of E routed experts work for a token":
                lambda config: sum(count(config).values()) - count(config)["embedding"],
            "the share K / E belongs to the routed experts only, everything else works for each "
            "token":
                _share_of_everything,
            "the head is left out: it is a matrix product for each token":
                lambda config: active(config) - count(config)["head"],
        },
        hints=(
            "Start from the sum of all parts. Take away what one token leaves untouched.",
            "Untouched: E - K of the E routed experts in each layer, and the embedding table (all "
            "rows but one).",
            "total - embedding - routed * (E - K) // E, in whole numbers.",
        ),
        atol=0.0, rtol=0.0,
    ),
]
