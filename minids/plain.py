"""DeepSeek-V4 in one file, written as the equations read.

This file is for reading. It has no caches and no fast paths, and it computes in float32. First
come the functions, from a norm to the whole forward pass, then the modules that hold their
parameters. `minids.model` computes the same numbers faster; tests keep the two equal.

    B sequences    T tokens         d model width      n residual streams
    H heads        c head width     r channels of a head that rotate
    w window       m tokens in a compressed entry      S compressed entries
    Hi, ci         heads of the indexer and their width
    N = B T        E experts        K experts per token      I hidden channels of an expert

A comment such as `# B T d` gives the shape of what its line computes. Section and equation
numbers are those of the DeepSeek-V4 report.
"""

import math
from types import FunctionType, SimpleNamespace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import nn

from minids.config import CSA_RATE
from minids.errors import MinidsError

# ---- norms ----


def rms(x, eps=1e-6):
    """x / sqrt(mean(x^2) + eps), with the mean over the last axis. x: ... d -> ... d."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def rms_norm(x, weight, eps):
    """RMS norm in float32, returned in x's type. x: ... d; weight: d -> ... d."""
    return (rms(x.float(), eps) * weight).to(x.dtype)


# ---- rotary embedding: section 2.3.3 ----


def frequencies(config, ratio):
    """Radians per token of each rotating pair in a layer with this compression ratio: r/2.

    Layers with compression slow down their slow pairs (YaRN, arXiv 2309.00071). A pair that
    rotates `beta_fast` times or more within the original length keeps its frequency, one that
    rotates `beta_slow` times or fewer is divided by `rope_factor`, and a ramp joins the two.
    """
    r = config.rope_head_dim
    base, length = config.rope(ratio)
    j = torch.arange(r // 2)
    w = 1 / base ** (2 * j / r)                                        # r/2
    if length == 0:
        return w

    def pair(rotations):
        """The pair that rotates this many times within the original length."""
        return r * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(base))

    low = max(math.floor(pair(config.beta_fast)), 0)
    high = min(math.ceil(pair(config.beta_slow)), r - 1)
    ramp = ((j - low) / max(high - low, 0.001)).clamp(0, 1)            # r/2
    return w / config.rope_factor * ramp + w * (1 - ramp)


def angles(positions, w):
    """The angle of each pair at each position. positions: T; w: r/2, frequencies -> T r/2."""
    return positions[:, None].float() * w


def rotate(x, theta):
    """x with its last r channels rotated, in pairs (0, 1), (2, 3), ... of these.

    x: ... c; theta: ... r/2, the angles, which broadcast against x -> ... c.
    """
    r = 2 * theta.shape[-1]
    a, b = rearrange(x[..., -r:], "... (pair two) -> two ... pair", two=2)
    cos, sin = theta.cos(), theta.sin()
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)      # ... r/2 2
    return torch.cat([x[..., :-r], rotated.flatten(-2)], dim=-1)


# ---- attention: section 2.3 ----


def query_latent(attn, x):
    """The latent from which a layer and its indexer make queries: B T q_lora_rank. x: B T d."""
    return rms_norm(attn.wq_a(x), attn.q_norm.weight, attn.config.norm_eps)


def queries(attn, x, theta):
    """The rotated queries of all heads. x: B T d; theta: T r/2 -> B T H c. Eq. 13 and 18."""
    q = attn.wq_b(query_latent(attn, x))                               # B T (H c)
    q = rearrange(q, "B T (H c) -> B T H c", H=attn.config.n_heads)
    return rotate(rms(q, attn.config.norm_eps), theta[:, None])


def keys(attn, x, theta):
    """The rotated keys, one for all heads, which are also the values. x: B T d -> B T c."""
    kv = rms_norm(attn.wkv(x), attn.kv_norm.weight, attn.config.norm_eps)
    return rotate(kv, theta)


def sees(T, w):
    """Whether the query at t sees the key at s, which is among the last w: T T, bool."""
    t = torch.arange(T)[:, None]
    s = torch.arange(T)
    return (s <= t) & (s > t - w)


def sink_weights(scores, sink):
    """exp(score) / (sum exp(score) + exp(sink)): B T H S. Equation 27.

    scores: B T H S; sink: H. The sink is one more column of scores, whose weight is dropped.
    """
    B, T, H, S = scores.shape
    column = repeat(sink, "H -> B T H 1", B=B, T=T)
    p = torch.cat([scores, column], dim=-1).softmax(dim=-1)            # B T H S+1
    return p[..., :S]


def attend(q, kv, seen, sink):
    """What each head reads: B T H c.

    q: B T H c; kv: B S c, keys that are also the values; seen: T S or B T S, whether a query
    sees a key; sink: H.
    """
    c = q.shape[-1]
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(c)
    scores = scores.masked_fill(~rearrange(seen, "... T S -> ... T 1 S"), -math.inf)
    p = sink_weights(scores, sink)                                     # B T H S
    return einsum(p, kv, "B T H S, B S c -> B T H c")


def grouped_output(o, wo_a, wo_b, groups):
    """What the heads have read, as the output of a layer: B T d. Section 2.3.1.

    Each group of heads has its own matrix of `rank` rows in wo_a, one below the other.
    o: B T H c; wo_a: (g rank) (H/g c); wo_b: d (g rank).
    """
    o = rearrange(o, "B T (g h) c -> B T g (h c)", g=groups)
    wo_a = rearrange(wo_a, "(g rank) i -> g rank i", g=groups)
    u = einsum(o, wo_a, "B T g i, g rank i -> B T g rank")
    return rearrange(u, "B T g rank -> B T (g rank)") @ wo_b.T


def window_attention(attn, x):
    """A layer whose queries see a sliding window. x: B T d -> B T d.

    The values are rotated keys, so the output is rotated back by the position of its query.
    """
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))   # T r/2
    q = queries(attn, x, theta)                                        # B T H c
    kv = keys(attn, x, theta)                                          # B T c
    o = attend(q, kv, sees(T, config.window_size), attn.attn_sink)     # B T H c
    o = rotate(o, -theta[:, None])
    return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


# ---- heavily compressed attention (HCA): section 2.3.2 ----


def compress(x, wkv, wgate, ape, weight, eps):
    """One entry for each complete window of m tokens, not rotated: B S c. Equations 20 to 23.

    x: B T d; wkv, wgate: c d; ape: m c; weight: c, of the norm.
    """
    m = len(ape)
    x = x[:, :x.shape[1] // m * m]                                     # B (S m) d
    kv = rearrange(x @ wkv.T, "B (S m) c -> B S m c", m=m)
    z = rearrange(x @ wgate.T, "B (S m) c -> B S m c", m=m) + ape
    pooled = (z.softmax(dim=2) * kv).sum(dim=2)                        # B S c
    return rms_norm(pooled, weight, eps)


def place(entries, m, config):
    """Entries rotated to the first positions of their windows. entries: B S c -> B S c."""
    positions = m * torch.arange(entries.shape[1])                     # S
    return rotate(entries, angles(positions, frequencies(config, m)))


def compressed_entries(compressor, x, config):
    """The rotated entries of a layer, B S c, or of its indexer, B S ci. x: B T d."""
    m, wkv, wgate = compressor.ratio, compressor.wkv.weight, compressor.wgate.weight
    ape, weight, eps = compressor.ape, compressor.norm.weight, config.norm_eps
    if m == CSA_RATE:
        entries = compress_overlapped(x, wkv, wgate, ape, weight, eps)
    else:
        entries = compress(x, wkv, wgate, ape, weight, eps)
    return place(entries, m, config)


def visible(T, S, m):
    """Whether entry s is complete for the query at t, so that it may be read: T S, bool."""
    t = torch.arange(T)[:, None]
    s = torch.arange(S)
    return s < (t + 1) // m


def hca_attention(attn, x):
    """A layer whose queries see a window and all complete entries. x: B T d -> B T d."""
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))   # T r/2
    entries = compressed_entries(attn.compressor, x, config)           # B S c
    near = sees(T, config.window_size)                                 # T T
    far = visible(T, entries.shape[1], attn.ratio)                     # T S
    q = queries(attn, x, theta)                                        # B T H c
    kv = torch.cat([keys(attn, x, theta), entries], dim=1)             # B T+S c
    o = attend(q, kv, torch.cat([near, far], dim=-1), attn.attn_sink)  # B T H c
    o = rotate(o, -theta[:, None])
    return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


# ---- compressed sparse attention (CSA): section 2.3.1 ----


def previous(windows, missing):
    """For each window the one before it; for the first, `missing`. windows: B S m c -> same."""
    first = torch.full_like(windows[:, :1], missing)
    return torch.cat([first, windows[:, :-1]], dim=1)


def compress_overlapped(x, wkv, wgate, ape, weight, eps):
    """As `compress`, but an entry pools the 2m tokens of two windows: B S c. Equations 9 to 12.

    A token gives 2c channels: the first c serve the entry of the NEXT window, the last c the
    entry of its own. x: B T d; wkv, wgate: 2c d; ape: m 2c; weight: c, of the norm.
    """
    m = len(ape)
    x = x[:, :x.shape[1] // m * m]                                     # B (S m) d
    kv = rearrange(x @ wkv.T, "B (S m) c2 -> B S m c2", m=m)
    z = rearrange(x @ wgate.T, "B (S m) c2 -> B S m c2", m=m) + ape
    kv_next, kv_own = kv.chunk(2, dim=-1)                              # B S m c, twice
    z_next, z_own = z.chunk(2, dim=-1)
    kv = torch.cat([previous(kv_next, 0.0), kv_own], dim=2)            # B S 2m c
    z = torch.cat([previous(z_next, -math.inf), z_own], dim=2)
    pooled = (z.softmax(dim=2) * kv).sum(dim=2)                        # B S c
    return rms_norm(pooled, weight, eps)


def index_scores(x, latent, index_keys, wq_b, weights_proj, theta):
    """The lightning indexer's score of every entry for every query, future ones too: B T S.

    x: B T d; latent: B T q_lora_rank, of the queries; index_keys: B S ci; theta: T r/2;
    wq_b: (Hi ci) q_lora_rank; weights_proj: Hi d. The released model also applies a Hadamard
    transform to queries and keys and rounds them to FP4. Unrounded, the transform cancels out.
    """
    Hi, ci = len(weights_proj), index_keys.shape[-1]
    q = rearrange(latent @ wq_b.T, "B T (Hi ci) -> B T Hi ci", Hi=Hi)
    q = rotate(q, theta[:, None])
    weights = x @ weights_proj.T / math.sqrt(Hi * ci)                  # B T Hi
    scores = F.relu(einsum(q, index_keys, "B T Hi ci, B S ci -> B T Hi S"))
    return einsum(weights, scores, "B T Hi, B T Hi S -> B T S")


def pick(scores, m, k):
    """Which entries a query reads: the k best of those that are complete. B T S, bool.

    scores: B T S, also of entries that are not complete.
    """
    B, T, S = scores.shape
    complete = visible(T, S, m)                                        # T S
    best = scores.masked_fill(~complete, -math.inf).topk(min(k, S)).indices    # B T k
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True)
    return picked & complete


def index(attn, x, theta):
    """The indexer's score of every entry of a layer for every query: B T S. x: B T d."""
    indexer, latent = attn.indexer, query_latent(attn, x)
    index_keys = compressed_entries(indexer.compressor, x, attn.config)        # B S ci
    wq_b, weights_proj = indexer.wq_b.weight, indexer.weights_proj.weight
    return index_scores(x, latent, index_keys, wq_b, weights_proj, theta)


def csa_attention(attn, x):
    """A layer whose queries see a window and the entries that they pick. x: B T d -> B T d."""
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))   # T r/2
    entries = compressed_entries(attn.compressor, x, config)           # B S c
    near = repeat(sees(T, config.window_size), "T s -> B T s", B=len(x))       # B T T
    far = pick(index(attn, x, theta), attn.ratio, config.index_topk)   # B T S
    q = queries(attn, x, theta)                                        # B T H c
    kv = torch.cat([keys(attn, x, theta), entries], dim=1)             # B T+S c
    o = attend(q, kv, torch.cat([near, far], dim=-1), attn.attn_sink)  # B T H c
    o = rotate(o, -theta[:, None])
    return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def attention(attn, x):
    """The attention layer of a block; its ratio says which kind. x: B T d -> B T d."""
    if attn.ratio == 0:
        return window_attention(attn, x)
    if attn.ratio == CSA_RATE:
        return csa_attention(attn, x)
    return hca_attention(attn, x)


# ---- mixture of experts (MoE): section 2.1 ----


def affinity(x):
    """sqrt(softplus(x)), element by element.

    Far below zero, softplus(x) is 0 in float32, and the slope of the root would be infinite.
    The lower bound keeps the gradient finite.
    """
    return F.softplus(x).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def route(x, weight, bias, K, scale):
    """The weight of each expert for each token, 0 where it is not chosen: N E.

    x: N d; weight: E d; bias: E. The bias takes part in the choice, never in the weight.
    """
    s = affinity(x @ weight.T)                                         # N E
    experts = (s + bias).topk(K).indices                               # N K
    g = s.gather(1, experts)                                           # N K
    g = g / g.sum(dim=1, keepdim=True) * scale
    return torch.zeros_like(s).scatter(1, experts, g)                  # N E


def hash_route(x, ids, weight, table, scale):
    """As `route`, but a table says which experts a token id has: N E.

    x: N d; ids: N; weight: E d; table: vocab K.
    """
    s = affinity(x @ weight.T)                                         # N E
    experts = table[ids]                                               # N K
    g = s.gather(1, experts)                                           # N K
    g = g / g.sum(dim=1, keepdim=True) * scale
    return torch.zeros_like(s).scatter(1, experts, g)                  # N E


def expert_forward(x, w1, w2, w3, limit, g):
    """w2 (silu(w1 x) * w3 x * g), an expert's weighted output: N d.

    x: N d; w1, w3: I d; w2: d I; g: N 1, or a number. The clamps are those of section 4.2.3; a
    limit of 0 means none.
    """
    gate, up = x @ w1.T, x @ w3.T                                      # N I
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (F.silu(gate) * up * g) @ w2.T                              # N d


def mix_experts(ffn, x, g):
    """sum_e g_e expert_e(x) + shared_expert(x). x: N d; g: N E -> N d."""
    limit, shared = ffn.gate.config.swiglu_limit, ffn.shared_experts
    y = expert_forward(x, shared.w1.weight, shared.w2.weight, shared.w3.weight, limit, 1.0)
    for e, expert in enumerate(ffn.experts):
        chosen = g[:, e].nonzero().squeeze(1)                          # the tokens that chose e
        w1, w2, w3 = expert.w1.weight, expert.w2.weight, expert.w3.weight
        out = expert_forward(x[chosen], w1, w2, w3, limit, g[chosen, e][:, None])
        y = y.index_add(0, chosen, out)
    return y


def moe_forward(ffn, x, ids):
    """The mixture of experts of a block. x: B T d; ids: B T -> B T d."""
    gate, scale = ffn.gate, ffn.gate.config.route_scale
    tokens = rearrange(x, "B T d -> (B T) d")                          # N d
    if gate.is_hash:
        g = hash_route(tokens, ids.flatten(), gate.weight, gate.tid2eid, scale)
    else:
        K = gate.config.n_activated_experts
        g = route(tokens, gate.weight, gate.bias, K, scale)            # N E
    y = mix_experts(ffn, tokens, g)                                    # N d
    return rearrange(y, "(B T) d -> B T d", B=len(x))


# ---- manifold-constrained hyper-connections (mHC): section 2.2 and arXiv 2512.24880 ----


def sinkhorn(raw, iters, eps):
    """Nearly doubly stochastic matrices: all rows and columns sum to about 1. Equation 8.

    raw: ... n n, any numbers -> ... n n.
    """
    M = raw.softmax(dim=-1) + eps
    M = M / (M.sum(dim=-2, keepdim=True) + eps)                        # columns
    for _ in range(iters - 1):
        M = M / (M.sum(dim=-1, keepdim=True) + eps)                    # rows
        M = M / (M.sum(dim=-2, keepdim=True) + eps)                    # columns
    return M


def maps(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6):
    """The three maps of a site: pre, post (B T n) and comb (B T n n). Equations 3 to 8.

    X: B T n d; fn: (2+n)n nd, its rows for pre, post, then comb row by row; scale: 3;
    base: (2+n)n. In the report's letters: pre = A, post = C, comb = B transposed.
    """
    n = X.shape[2]
    x = rms(rearrange(X, "B T n d -> B T (n d)"), norm_eps)
    pre, post, comb = (x @ fn.T).split([n, n, n * n], dim=-1)
    base_pre, base_post, base_comb = base.split([n, n, n * n])
    pre = torch.sigmoid(pre * scale[0] + base_pre) + eps               # B T n
    post = 2 * torch.sigmoid(post * scale[1] + base_post)              # B T n
    comb = rearrange(comb * scale[2] + base_comb, "B T (j k) -> B T j k", j=n)
    return pre, post, sinkhorn(comb, iters, eps)


def site_maps(block, X, at):
    """The three maps of a block's site: at is "attn" or "ffn". X: B T n d."""
    config = block.config
    if at == "attn":
        fn, scale, base = block.hc_attn_fn, block.hc_attn_scale, block.hc_attn_base
    else:
        fn, scale, base = block.hc_ffn_fn, block.hc_ffn_scale, block.hc_ffn_base
    return maps(X, fn, scale, base, config.hc_sinkhorn_iters, config.hc_eps, config.norm_eps)


def site(X, layer, pre, post, comb):
    """The streams after a layer has read from them and written to them: B T n d. Equation 1.

    X: B T n d; layer: a function, B T d -> B T d; pre, post: B T n; comb: B T n n, where
    comb[j, k] says how much of stream j goes to stream k.
    """
    u = einsum(pre, X, "B T j, B T j d -> B T d")
    f = layer(u)                                                       # B T d
    written = einsum(post, f, "B T k, B T d -> B T k d")
    carried = einsum(comb, X, "B T j k, B T j d -> B T k d")
    return written + carried


def gates(model, X):
    """The weights with which `merge` adds the streams: B T n.

    X: B T n d. model: the model or an MTP block; both have their own `hc_head_*` and `norm`.
    """
    x = rms(rearrange(X, "B T n d -> B T (n d)"), model.config.norm_eps)
    a = x @ model.hc_head_fn.T * model.hc_head_scale + model.hc_head_base      # B T n
    return torch.sigmoid(a) + model.config.hc_eps


def merge(model, X):
    """One vector for each token, ready for the output matrix. X: B T n d -> B T d."""
    y = einsum(gates(model, X), X, "B T n, B T n d -> B T d")
    return rms_norm(y, model.norm.weight, model.config.norm_eps)


# ---- the whole model: section 2 and figure 2 ----


def block_forward(block, X, ids):
    """The streams after attention, then the experts. X: B T n d; ids: B T -> B T n d."""
    eps = block.config.norm_eps

    def attention_layer(u):
        return attention(block.attn, rms_norm(u, block.attn_norm.weight, eps))

    def expert_layer(u):
        return moe_forward(block.ffn, rms_norm(u, block.ffn_norm.weight, eps), ids)

    X = site(X, attention_layer, *site_maps(block, X, "attn"))
    return site(X, expert_layer, *site_maps(block, X, "ffn"))


def features(model, ids):
    """The streams after the last block. ids: B T -> B T n d."""
    X = repeat(model.embed(ids), "B T d -> B T n d", n=model.config.hc_mult)
    for block in model.layers:
        X = block_forward(block, X, ids)
    return X


def model_forward(model, ids):
    """The logits of the token after each of ids. ids: B T -> B T vocab."""
    X = features(model, ids)                                           # B T n d
    return merge(model, X) @ model.head.weight.T


def mtp(model, X, next_ids, depth=0):
    """Multi-token prediction: logits of token t + 2, from the streams at t and token t + 1.

    X: B T n d; next_ids: B T, the tokens at t + 1 -> B T vocab. DeepSeek-V3, arXiv 2412.19437.
    """
    block, eps = model.mtp[depth], model.config.norm_eps
    e = model.embed(next_ids)                                          # B T d
    e = block.e_proj(rms_norm(e, block.enorm.weight, eps))             # B T d
    h = block.h_proj(rms_norm(X, block.hnorm.weight, eps))             # B T n d
    X = rearrange(e, "B T d -> B T 1 d") + h                           # B T n d
    X = block_forward(block, X, next_ids)                              # B T n d
    return merge(block, X) @ model.head.weight.T


FUNCTIONS = {function.__name__: function for function in (
    rms, rms_norm, frequencies, angles, rotate, query_latent, queries, keys, sees, sink_weights,
    attend, grouped_output, window_attention, compress, place, compressed_entries, visible,
    hca_attention, previous, compress_overlapped, index_scores, pick, index, csa_attention,
    attention, affinity, route, hash_route, expert_forward, mix_experts, moe_forward, sinkhorn,
    maps, site_maps, site, gates, merge, block_forward, features, model_forward, mtp)}


def with_parts(parts):
    """The functions above, with `parts` in place of those of the same names.

    The functions call each other by name. So that `maps` calls the `sinkhorn` among the parts,
    each function of this file is copied, and the copies look names up in a dictionary that
    holds the parts. The effect is that of replacing the text of `sinkhorn` in this file, but the
    originals stay as they are. The code of a part itself calls what is defined where that part
    was written.
    """
    for name, part in parts.items():
        if name not in FUNCTIONS:
            raise MinidsError(f"no part {name!r}: expected one of {', '.join(FUNCTIONS)}")
        if not callable(part):
            raise MinidsError(f"part {name}: expected a function, found {type(part).__name__}")
    if not parts:
        return SimpleNamespace(**FUNCTIONS)
    names = dict(globals())
    for name, f in globals().items():
        if isinstance(f, FunctionType) and f.__globals__ is globals():
            names[name] = FunctionType(f.__code__, names, name, f.__defaults__, f.__closure__)
            names[name].__kwdefaults__ = f.__kwdefaults__
    names.update(parts)
    return SimpleNamespace(**{name: names[name] for name in FUNCTIONS})


# ---- the modules: they only hold parameters, under the names of V4's checkpoints ----


def linear(inputs, outputs):
    """A matrix, outputs x inputs, without bias."""
    return nn.Linear(inputs, outputs, bias=False)


def norm(width, config):
    """The weight of an RMS norm. It stays float32 in a model of another type."""
    return nn.RMSNorm(width, eps=config.norm_eps, dtype=torch.float32)


def parameter(*shape):
    """A parameter that stays float32 in a model of another type."""
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32))


class Compressor(nn.Module):
    """Parameters of `compress`, or of `compress_overlapped` where the ratio is 4."""

    def __init__(self, config, ratio, width):
        super().__init__()
        outputs = 2 * width if ratio == CSA_RATE else width
        self.ratio = ratio
        self.wkv = linear(config.dim, outputs)
        self.wgate = linear(config.dim, outputs)
        self.ape = parameter(ratio, outputs)
        self.norm = norm(width, config)


class Indexer(nn.Module):
    """Parameters of `index`. Its own, narrower compressor makes the keys."""

    def __init__(self, config):
        super().__init__()
        self.wq_b = linear(config.q_lora_rank, config.index_n_heads * config.index_head_dim)
        self.weights_proj = linear(config.dim, config.index_n_heads)
        self.compressor = Compressor(config, CSA_RATE, config.index_head_dim)


class Attention(nn.Module):
    """Parameters of `attention`. Ratio 0 means window only, 4 means CSA, more means HCA."""

    def __init__(self, config, ratio):
        super().__init__()
        d, c, channels = config.dim, config.head_dim, config.n_heads * config.head_dim
        self.config = config
        self.ratio = ratio
        self.wq_a = linear(d, config.q_lora_rank)
        self.q_norm = norm(config.q_lora_rank, config)
        self.wq_b = linear(config.q_lora_rank, channels)
        self.wkv = linear(d, c)
        self.kv_norm = norm(c, config)
        self.attn_sink = parameter(config.n_heads)
        self.wo_a = linear(channels // config.o_groups, config.o_groups * config.o_lora_rank)
        self.wo_b = linear(config.o_groups * config.o_lora_rank, d)
        if ratio > 0:
            self.compressor = Compressor(config, ratio, c)
        if ratio == CSA_RATE:
            self.indexer = Indexer(config)


class Gate(nn.Module):
    """Parameters of `route`, with a bias, or of `hash_route`, with a table."""

    def __init__(self, config, is_hash):
        super().__init__()
        E, K = config.n_routed_experts, config.n_activated_experts
        self.config = config
        self.is_hash = is_hash
        self.weight = nn.Parameter(torch.empty(E, config.dim))
        if is_hash:
            table = torch.zeros(config.vocab_size, K, dtype=torch.int64)
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(E, dtype=torch.float32))


class Expert(nn.Module):
    """Parameters of `expert_forward`."""

    def __init__(self, config):
        super().__init__()
        self.w1 = linear(config.dim, config.moe_inter_dim)
        self.w2 = linear(config.moe_inter_dim, config.dim)
        self.w3 = linear(config.dim, config.moe_inter_dim)


class MoE(nn.Module):
    """Parameters of `moe_forward`."""

    def __init__(self, config, is_hash):
        super().__init__()
        self.gate = Gate(config, is_hash)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)


class Block(nn.Module):
    """Parameters of `block_forward`: two layers, each with its norm and its mHC site."""

    def __init__(self, config, ratio, is_hash):
        super().__init__()
        d, n = config.dim, config.hc_mult
        self.config = config
        self.attn_norm = norm(d, config)
        self.attn = Attention(config, ratio)
        self.ffn_norm = norm(d, config)
        self.ffn = MoE(config, is_hash)
        self.hc_attn_fn = parameter((2 + n) * n, n * d)
        self.hc_attn_base = parameter((2 + n) * n)
        self.hc_attn_scale = parameter(3)
        self.hc_ffn_fn = parameter((2 + n) * n, n * d)
        self.hc_ffn_base = parameter((2 + n) * n)
        self.hc_ffn_scale = parameter(3)


class MTP(Block):
    """Parameters of `mtp`: a window-only block, with its own inputs and its own `merge`."""

    def __init__(self, config):
        super().__init__(config, ratio=0, is_hash=False)
        d, n = config.dim, config.hc_mult
        self.e_proj = linear(d, d)
        self.h_proj = linear(d, d)
        self.enorm = norm(d, config)
        self.hnorm = norm(d, config)
        self.norm = norm(d, config)
        self.hc_head_fn = parameter(n, n * d)
        self.hc_head_base = parameter(n)
        self.hc_head_scale = parameter(1)


class Model(nn.Module):
    """DeepSeek-V4, in float32. `model(ids)` gives logits: ids B T -> B T vocab.

    `parts` replaces any of `FUNCTIONS` by another one with the same signature, wherever it is
    called: `Model(config, sinkhorn=my_sinkhorn)`. `state_dict()` is that of `minids.Model`.
    """

    def __init__(self, config, **parts):
        super().__init__()
        d, n = config.dim, config.hc_mult
        self.config = config
        self.parts = with_parts(parts)
        self.embed = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList()
        for i in range(config.n_layers):
            self.layers.append(Block(config, config.compress_ratios[i], config.is_hash(i)))
        self.norm = norm(d, config)
        self.head = linear(d, config.vocab_size)
        self.hc_head_fn = parameter(n, n * d)
        self.hc_head_base = parameter(n)
        self.hc_head_scale = parameter(1)
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.n_mtp_layers))
        initialise(self)

    def forward(self, ids):
        """The logits of the token after each of ids. ids: B T -> B T vocab, float32."""
        self.check(ids)
        with ids.device:                                               # where new tensors go
            return self.parts.model_forward(self, ids)

    def features(self, ids):
        """The streams after the last block. ids: B T -> B T n d."""
        self.check(ids)
        with ids.device:
            return self.parts.features(self, ids)

    def mtp_logits(self, X, next_ids, depth=0):
        """The logits of token t + 2. X: B T n d, the streams at t; next_ids: B T, at t + 1."""
        self.check(next_ids)
        with next_ids.device:
            return self.parts.mtp(self, X, next_ids, depth)

    def check(self, ids):
        """Raise `MinidsError` unless ids are B x T token ids and the weights are float32."""
        vocab, longest = self.config.vocab_size, self.config.max_seq_len
        dtype = self.embed.weight.dtype
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or ids.numel() == 0:
            raise MinidsError("ids: expected a non-empty B x T tensor of integers, "
                              f"found {tuple(ids.shape)} of {ids.dtype}")
        if ids.min() < 0 or ids.max() >= vocab:
            raise MinidsError(f"ids: expected 0 to {vocab - 1}, "
                              f"found {int(ids.min())} to {int(ids.max())}")
        if ids.shape[1] > longest:
            raise MinidsError(f"ids: expected at most {longest} tokens (max_seq_len), "
                              f"found {ids.shape[1]}")
        if dtype != torch.float32:
            raise MinidsError(f"expected float32 weights, found {dtype}: use model.float()")


@torch.no_grad()
def initialise(model):
    """Set random weights: matrices with standard deviation 0.02, and random hash tables.

    A site starts almost as a plain residual connection: it reads mostly one stream, a
    different one at each site; it writes to all streams, and hardly mixes them.
    """
    config, n = model.config, model.config.hc_mult
    for name, p in model.named_parameters():
        if name.endswith("scale"):
            p.fill_(0.01)
        elif name.endswith("hc_head_base"):
            p.fill_(1 / n).logit_()
        elif p.ndim == 2 and not name.endswith("ape"):
            p.normal_(std=0.02)
    number = 0
    for block in [*model.layers, *model.mtp]:
        for base in (block.hc_attn_base, block.hc_ffn_base):
            pre = torch.full((n,), -3.0)
            pre[number % n] = 2.0
            base.copy_(torch.cat([pre, torch.zeros(n), 4.0 * torch.eye(n).flatten()]))
            number += 1
        gate = block.ffn.gate
        if gate.is_hash:
            chance = torch.rand(config.vocab_size, config.n_routed_experts)
            gate.tid2eid.copy_(chance.argsort(dim=1)[:, :config.n_activated_experts])
