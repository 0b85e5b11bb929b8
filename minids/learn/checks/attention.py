"""Checks of lesson 02: window attention (V4 report, sections 2.3.1 and 2.3.3).

The references are the functions of `minids.plain`; what is defined here makes mistakes.
"""

import math

import torch
from einops import einsum, rearrange

from minids import plain
from minids.config import Config
from minids.learn.exercise import Check
from minids.plain import with_parts

LESSON = "02_attention"


# ---- rotary embedding ----


def _angle_cases(rng):
    def w(r, base):
        return base ** (-torch.arange(0, r, 2) / r)

    yield "positions 0 to 4, two pairs", (torch.arange(5), torch.tensor([1.0, 0.1]))
    yield "positions far out", (torch.randint(1, 3000, (4,), generator=rng), w(6, 10000.0))
    positions = torch.randint(1, 3000, (8,), generator=rng)
    yield "as many positions as pairs", (positions, w(16, 160000.0))


def rotate_halves(x, theta):
    """`rotate` on the pairs (i, i + r/2) of the last r channels."""
    r = 2 * theta.shape[-1]
    a, b = x[..., -r:].chunk(2, dim=-1)
    cos, sin = theta.cos(), theta.sin()
    return torch.cat([x[..., :-r], a * cos - b * sin, a * sin + b * cos], dim=-1)


def rotate_first(x, theta, rotate=plain.rotate):
    """`rotate` on the first r channels."""
    r = 2 * theta.shape[-1]
    return torch.cat([rotate(x[..., :r], theta), x[..., r:]], dim=-1)


def _first_halves(x, theta):
    return rotate_first(x, theta, rotate_halves)


def _without_sines(x, theta):
    r = 2 * theta.shape[-1]
    return torch.cat([x[..., :-r], x[..., -r:] * theta.cos().repeat_interleave(2, -1)], dim=-1)


def _backwards(x, theta):
    return plain.rotate(x, -theta)


def _unrotated(x, theta):
    return x


def _only_rotated(x, theta):
    return plain.rotate(x, theta)[..., -2 * theta.shape[-1]:]


def _rotate_cases(rng):
    pair = torch.randn(2, generator=rng) + 1
    yield "one pair and one angle", (pair, torch.rand(1, generator=rng) + 0.4)
    six = torch.randn(6, generator=rng)
    yield "6 channels, of which 4 rotate", (six, torch.rand(2, generator=rng) * 3)
    k = torch.randn(2, 3, 12, generator=rng)
    yield "keys, B T c", (k, torch.randn(3, 4, generator=rng))
    q = torch.randn(2, 3, 5, 12, generator=rng)
    yield "queries, B T H c, with angles T 1 r/2", (q, torch.randn(3, 1, 4, generator=rng))


# ---- queries ----

TINY = Config(vocab_size=29, dim=20, n_layers=1, compress_ratios=(0, 0), n_heads=4, head_dim=12,
              rope_head_dim=8, q_lora_rank=10, o_groups=2, o_lora_rank=7, window_size=4,
              index_n_heads=2, index_head_dim=8, index_topk=8, moe_inter_dim=8, n_routed_experts=4,
              n_activated_experts=2, n_hash_layers=1, max_seq_len=64)


def lively(rng, config=TINY, ratio=0):
    """An attention layer in which every parameter matters: no norm weight is 1, no sink is 0."""
    attn = plain.Attention(config, ratio).requires_grad_(False)
    for name, p in attn.named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        if "norm" in name:
            p.copy_(1 + 0.3 * noise)
        elif name.endswith(("sink", "ape")):
            p.copy_(noise)
        else:
            p.copy_(1.5 * noise * p.shape[-1] ** -0.5)
    return attn


def queries_with(attn, x, theta, latent=plain.query_latent, norm=plain.rms, rotate=plain.rotate,
                 order="(H c)"):
    """`queries` with another latent, norm of the heads, rotation, or order of the channels."""
    q = attn.wq_b(latent(attn, x))
    q = rearrange(q, f"B T {order} -> B T H c", H=attn.config.n_heads)
    return rotate(norm(q), theta[:, None])


def _latent_without_norm(attn, x):
    return attn.wq_a(x)


def _rms_of_all_heads(q):
    return plain.rms(q.flatten(-2)).view(q.shape)


def _queries_rms_of_all(attn, x, theta):
    return queries_with(attn, x, theta, norm=_rms_of_all_heads)


def _queries_weighted(attn, x, theta):
    return queries_with(attn, x, theta, norm=attn.kv_norm)


def _queries_without_rms(attn, x, theta):
    return queries_with(attn, x, theta, norm=lambda q: q)


def _query_cases(rng):
    attn = lively(rng)
    x = torch.randn(1, 1, 20, generator=rng)
    yield "one token", (attn, x, torch.randn(1, 4, generator=rng))
    x = torch.randn(2, 5, 20, generator=rng)
    yield "a batch of two sequences", (attn, x, torch.randn(5, 4, generator=rng))


# ---- window and sink ----


def _too_wide(T, w):
    return plain.sees(T, w + 1)


def _too_narrow(T, w):
    return plain.sees(T, w - 1)


def _no_window(T, w):
    return plain.sees(T, T)


def _window_cases(rng):
    yield "5 tokens, a window of 3", (5, 3)
    yield "9 tokens, a window of 2", (9, 2)
    yield "a window longer than the text", (4, 8)


def _exp(scores):
    """exp of scores relative to the largest, and that largest one."""
    top = scores.amax(dim=-1, keepdim=True)
    return (scores - top).exp(), top


def _softmax(scores, sink):
    return scores.softmax(dim=-1)


def _sink_not_exponentiated(scores, sink):
    e, top = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + sink[:, None] * (-top).exp())


def _sink_is_zero(scores, sink):
    return plain.sink_weights(scores, torch.zeros_like(sink))


def _sink_in_the_numerator(scores, sink):
    e, top = _exp(scores)
    z = (sink[:, None] - top).exp()
    return (e + z) / (e.sum(-1, keepdim=True) + z)


def _sink_on_the_largest(scores, sink):
    largest = scores == scores.amax(dim=-1, keepdim=True)
    return (scores + sink[:, None] * largest).softmax(dim=-1)


def _sink_column_stays(scores, sink):
    column = sink[:, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)


def _sink_overflows(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink.exp()[:, None])


def _sink_for_each_query(scores, sink):
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


def _sink_shared(scores, sink):
    return plain.sink_weights(scores, sink.mean().expand_as(sink))


def _sink_cases(rng):
    sink = torch.randn(3, generator=rng)
    scores = torch.randn(1, 1, 1, 4, generator=rng)
    yield "one query, one head", (scores, torch.tensor([0.8]))
    yield "B T H S", (torch.randn(2, 5, 3, 4, generator=rng), sink)
    yield "as many queries as heads", (torch.randn(2, 3, 3, 4, generator=rng), sink)
    masked = torch.randn(2, 4, 3, 4, generator=rng)
    masked = masked.masked_fill(~plain.sees(4, 2)[:, None], -math.inf)
    yield "keys outside the window have score -inf", (masked, sink)
    scores = 100 + torch.randn(1, 2, 3, 4, generator=rng)
    yield "scores of 100, which overflow exp", (scores, 100 + sink)


# ---- output ----


def _interleaved(o, wo_a, wo_b, groups):
    """Group k gets the heads k, k + g, ..."""
    o = rearrange(o, "B T (h g) c -> B T (g h) c", g=groups)
    return plain.grouped_output(o, wo_a, wo_b, groups)


def _first_block(o, wo_a, wo_b, groups):
    rank = len(wo_a) // groups
    return plain.grouped_output(o, wo_a[:rank].repeat(groups, 1), wo_b, groups)


def _interleaved_rows(o, wo_a, wo_b, groups):
    wo_a = rearrange(wo_a, "(rank g) i -> (g rank) i", g=groups)
    return plain.grouped_output(o, wo_a, wo_b, groups)


def _mixed_ranks(o, wo_a, wo_b, groups):
    wo_b = rearrange(wo_b, "d (rank g) -> d (g rank)", g=groups)
    return plain.grouped_output(o, wo_a, wo_b, groups)


def _output_cases(rng):
    for label, H, c, g, rank in (("two groups of one head", 2, 3, 2, 3),
                                 ("three groups of two heads", 6, 4, 3, 5)):
        o = torch.randn(2, 3, H, c, generator=rng)
        wo_a = torch.randn(g * rank, H * c // g, generator=rng)
        yield label, (o, wo_a, torch.randn(5, g * rank, generator=rng), g)


# ---- the layer ----


def window_attention_with(attn, x, back=-1, values=None, **parts):
    """`window_attention` with another rotation of its output, other values, or other parts."""
    p = with_parts(parts)
    config, T = attn.config, x.shape[1]
    theta = p.angles(torch.arange(T), p.frequencies(config, attn.ratio))
    q, kv = p.queries(attn, x, theta), p.keys(attn, x, theta)
    seen = p.sees(T, config.window_size)
    if values is None:
        o = p.attend(q, kv, seen, attn.attn_sink)
    else:
        o = _attend_apart(q, kv, values(attn, x), seen, attn.attn_sink)
    o = p.rotate(o, back * theta[:, None])
    return p.grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def _weights(q, keys, seen, sink):
    scores = einsum(q, keys, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    return plain.sink_weights(scores.masked_fill(~seen[:, None], -math.inf), sink)


def _attend_apart(q, keys, values, seen, sink):
    """`attend` with values that are not the keys."""
    return einsum(_weights(q, keys, seen, sink), values, "B T H S, B S c -> B T H c")


def _sink_has_a_value(q, kv, seen, sink):
    p = _weights(q, kv, seen, sink)
    return plain.attend(q, kv, seen, sink) + (1 - p.sum(-1, keepdim=True)) * sink[:, None]


def _unrotated_kv(attn, x, theta=None):
    return attn.kv_norm(attn.wkv(x))


def _keys_without_norm(attn, x, theta):
    return plain.rotate(attn.wkv(x), theta)


def _unscaled(q, kv, seen, sink):
    return plain.attend(q * math.sqrt(q.shape[-1]), kv, seen, sink)


def _root_of_r(attn, x):
    c, r = attn.config.head_dim, attn.config.rope_head_dim

    def attend(q, *rest):
        return plain.attend(q * math.sqrt(c / r), *rest)
    return window_attention_with(attn, x, attend=attend)


def _other_base(config, ratio):
    return plain.frequencies(config.replace(rope_theta=config.compress_rope_theta), 0)


def _fault(back=-1, values=None, **parts):
    return lambda attn, x: window_attention_with(attn, x, back, values, **parts)


# {name: the layer with this fault}: the lesson measures what each of them costs
FAULTS = {
    "output not rotated back": _fault(back=0),
    "output rotated forwards": _fault(back=1),
    "rotary on the first channels": _fault(rotate=rotate_first),
    "rotary on halves": _fault(rotate=rotate_halves),
    "the other base": _fault(frequencies=_other_base),
    "values not rotated": _fault(back=0, values=_unrotated_kv),
    "scale missing": _fault(attend=_unscaled),
    "RMS over all heads": _fault(queries=_queries_rms_of_all),
    "no RMS of queries": _fault(queries=_queries_without_rms),
    "window one too wide": _fault(sees=_too_wide),
    "window one too narrow": _fault(sees=_too_narrow),
    "sink left out": _fault(sink_weights=_softmax),
    "sink fixed at 0": _fault(sink_weights=_sink_is_zero),
    "heads interleaved among groups": _fault(grouped_output=_interleaved),
}


def _layer_cases(rng):
    attn = lively(rng)
    yield "one token", (attn, torch.randn(1, 1, 20, generator=rng))
    yield "three tokens, fewer than the window", (attn, torch.randn(2, 3, 20, generator=rng))
    yield "nine tokens, more than the window", (attn, torch.randn(2, 9, 20, generator=rng))
    yield "forty tokens", (attn, torch.randn(2, 40, 20, generator=rng))


# ---- stretched frequencies ----


def frequencies_with(config, ratio, exponent=-1.0, low=math.floor, high=math.ceil, two=2,
                     ramp=lambda share: share.clamp(0, 1), mix=None):
    """`frequencies` with another exponent, rounding, ramp, or mean of the two frequencies."""
    r, factor = config.rope_head_dim, config.rope_factor
    base, length = config.rope(ratio)
    j = torch.arange(r // 2)
    w = base ** (exponent * 2 * j / r)
    if length == 0:
        return w

    def pair(rotations):
        return r * math.log(length / (2 * math.pi * rotations)) / (two * math.log(base))

    first, last = max(low(pair(config.beta_fast)), 0), min(high(pair(config.beta_slow)), r - 1)
    share = ramp((j - first) / max(last - first, 0.001))
    return w / factor * share + w * (1 - share) if mix is None else mix(w, factor, share)


def _yarn_cases(rng):
    flash = Config.flash()
    yield "Flash, CSA", (flash, 4)
    yield "Flash, no compression", (flash, 0)
    yield "nano, HCA", (Config.nano(), 16)
    other = dict(rope_head_dim=32, compress_rope_theta=10000.0, rope_theta=500.0,
                 original_seq_len=4096, rope_factor=4.0, beta_fast=16.0, beta_slow=2.0)
    yield "another configuration", (flash.replace(**other), 128)
    few = dict(rope_head_dim=8, compress_rope_theta=100.0, beta_fast=1000.0)
    yield "a ramp that goes beyond the last pair", (flash.replace(**few), 4)


def _identity(value):
    return value


def _mean_of_periods(w, factor, share):
    return 1 / (factor / w * share + (1 - share) / w)


def _frequencies(**changes):
    return lambda config, ratio: frequencies_with(config, ratio, **changes)


CHECKS = [
    Check(
        "attention.angles", plain.angles, _angle_cases,
        mistakes={
            "positions are counted from 1: the first one is 0":
                lambda positions, w: plain.angles(positions + 1, w),
            "each angle is there twice: there is one for each pair, r/2":
                lambda positions, w: plain.angles(positions, w).repeat(1, 2),
            "these are the frequencies alone: multiply them by the positions":
                lambda positions, w: plain.angles(torch.ones_like(positions), w),
            "the positions are divided by w: w is radians per position, so multiply":
                lambda positions, w: plain.angles(positions, 1 / w),
            "rows and columns are exchanged: a row is a position, a column is a pair":
                lambda positions, w: plain.angles(positions, w).mT,
        },
        hints=(
            "One product for each position and each pair.",
            "positions has shape T and w has shape r/2; the result has shape T r/2.",
            "positions[:, None] has shape T 1; times w it gives T r/2.",
        ),
        atol=1e-4,
    ),
    Check(
        "attention.rotate", plain.rotate, _rotate_cases,
        mistakes={
            "the FIRST r channels rotate: in V4 it is the last r": rotate_first,
            "pairs are made of the two halves, (i, i + r/2): V4 pairs neighbours, (2i, 2i + 1)":
                rotate_halves,
            "the first r channels rotate, in halves: V4 rotates the last r, in neighbouring pairs "
            "(2i, 2i + 1)": _first_halves,
            "this rotates in the wrong direction: the sine has its minus sign in the first channel "
            "of a pair": _backwards,
            "each channel is only multiplied by its cosine: a rotation mixes the two channels of a "
            "pair": _without_sines,
            "the channels that do not rotate are lost: put them in front of the rotated ones":
                _only_rotated,
        },
        hints=(
            "Three parts: cut off the last r channels, rotate them, put the others in front again. "
            "r is 2 * theta.shape[-1].",
            "Within the last r channels, a = every second from 0 and b = every second from 1. New "
            "pair: (a cos - b sin, a sin + b cos).",
            "torch.stack([new_a, new_b], -1).flatten(-2) interleaves; then torch.cat with x[..., "
            ":-r] in front.",
        ),
    ),
    Check(
        "attention.queries", plain.queries, _query_cases,
        mistakes={
            "the RMS is taken over all heads together: each head is normalised by itself, over its "
            "c channels": _queries_rms_of_all,
            "the queries are multiplied by a norm weight: the RMS of the heads has none "
            "(kv_norm.weight is for kv)": _queries_weighted,
            "the RMS of each head is missing": _queries_without_rms,
            "q_norm is missing between the two matrices, or its weight is (each head's own RMS "
            "makes these two the same)":
                lambda attn, x, theta: queries_with(attn, x, theta, latent=_latent_without_norm),
            "the queries are not rotated":
                lambda attn, x, theta: queries_with(attn, x, theta, rotate=_unrotated),
            "the queries are rotated backwards: only the output is":
                lambda attn, x, theta: plain.queries(attn, x, -theta),
            "the first channels rotate: it is the last ones":
                lambda attn, x, theta: queries_with(attn, x, theta, rotate=rotate_first),
            "heads and channels are exchanged: the first c numbers are head 0, so cut into (H, c)":
                lambda attn, x, theta: queries_with(attn, x, theta, order="(c H)"),
        },
        hints=(
            "Five steps: wq_a, q_norm, wq_b, cut into heads, RMS of each head; then the rotation.",
            "y.unflatten(-1, (H, c)) makes B T H c. RMS over the last axis is then one RMS for "
            "each head.",
            "The angles are T r/2, the queries B T H c: theta[:, None] is T 1 r/2 and fits all "
            "heads.",
        ),
    ),
    Check(
        "attention.window", plain.sees, _window_cases,
        mistakes={
            "the window is one too wide: t - w is outside, since the query's own token counts as "
            "one of the w": _too_wide,
            "the window is one too narrow: with the query's own token it holds w": _too_narrow,
            "your mask leaves the diagonal out: a query must see itself":
                lambda T, w: plain.sees(T, w) & ~torch.eye(T, dtype=torch.bool),
            "a query sees the future: only keys s <= t":
                lambda T, w: plain.sees(T, w) | plain.sees(T, w).mT,
            "rows and columns are exchanged: row t is the query": lambda T, w: plain.sees(T, w).mT,
            "there is no window: a query sees all keys before it": _no_window,
            "True and False are exchanged: True is where a query sees":
                lambda T, w: ~plain.sees(T, w),
        },
        hints=(
            "Write down for t = 5 and w = 3 which s are seen: 3, 4, 5.",
            "A column of t, torch.arange(T)[:, None], compared with a row of s, torch.arange(T), "
            "gives T x T.",
            "Two conditions, joined with &: not the future, and not further back than w - 1.",
        ),
    ),
    Check(
        "attention.sink", plain.sink_weights, _sink_cases,
        mistakes={
            "the sink has no effect: it is left out, or added to all scores, where softmax cancels "
            "it": _softmax,
            "the sink is added to the denominator as it is: it is a score, so exp(sink) joins":
                _sink_not_exponentiated,
            "the sink is fixed at 0, exp(0) = 1: each head has its own learned one": _sink_is_zero,
            "exp(sink) is in the numerator too: it joins the denominator only":
                _sink_in_the_numerator,
            "the sink is added to the largest score: it is its own score, beside the others":
                _sink_on_the_largest,
            "the sink's own weight is still there as a last column: drop it, it has no value to "
            "weigh": _sink_column_stays,
            "exp overflows for large scores: subtract the largest first, or let softmax do it":
                _sink_overflows,
            "each query has a sink here: it is one for each head": _sink_for_each_query,
            "all heads share one sink here, the mean: each has its own": _sink_shared,
        },
        hints=(
            "Think of the sink as one more key whose score is given and whose value is zero.",
            "Append a column with the sinks to the scores, take the softmax, drop the column.",
            "sink[:, None].expand(*scores.shape[:-1], 1) is that column, B T H 1.",
        ),
        atol=1e-6,
    ),
    Check(
        "attention.output", plain.grouped_output, _output_cases,
        mistakes={
            "the heads are interleaved among the groups: a group holds neighbouring heads, the "
            "first H/g in group 0": _interleaved,
            "all groups use the first block of wo_a: each has its own": _first_block,
            "the rows of wo_a are interleaved among the groups: its first `rank` rows are group "
            "0's":
                _interleaved_rows,
            "the results are concatenated rank by rank: first all numbers of group 0, then all of "
            "group 1": _mixed_ranks,
            "a group's channels are in another order: head after head, each with its c channels":
                lambda o, wo_a, wo_b, groups: plain.grouped_output(o.mT, wo_a, wo_b, groups),
        },
        hints=(
            "Cut o's H c channels into g equal pieces, and wo_a's rows into g blocks. Piece k "
            "meets block k.",
            "o.flatten(2).unflatten(-1, (groups, -1)): B T g Hc/g. "
            "wo_a.unflatten(0, (groups, -1)): g rank Hc/g.",
            'torch.einsum("btgi,gri->btgr", o, blocks), then .flatten(2) and the product with '
            'wo_b.T.',
        ),
        atol=1e-4,
    ),
    Check(
        "attention.layer", plain.window_attention, _layer_cases,
        mistakes={
            "the output is not rotated back": FAULTS["output not rotated back"],
            "the output is rotated forwards once more: it is rotated BACK by the query's position":
                FAULTS["output rotated forwards"],
            "the FIRST r channels rotate: it is the last r": FAULTS["rotary on the first channels"],
            "pairs are made of the two halves: V4 pairs neighbours": FAULTS["rotary on halves"],
            "the base is compress_rope_theta: that is for layers with compression, a window-only "
            "layer has rope_theta": FAULTS["the other base"],
            "the values are kv before the rotation: key and value are the same, rotated vector":
                _fault(values=_unrotated_kv),
            "the values are kv before the rotation and the output is not rotated back: that is "
            "usual attention; in V4 key and value are the same, rotated vector":
                FAULTS["values not rotated"],
            "the keys are not rotated": _fault(keys=_unrotated_kv),
            "kv_norm is missing": _fault(keys=_keys_without_norm),
            "the scale 1 / sqrt(c) is missing": FAULTS["scale missing"],
            "the scale is 1 / sqrt(r): c is the whole width of a head": _root_of_r,
            "the queries' RMS is over all heads together": FAULTS["RMS over all heads"],
            "the queries' RMS has a weight: it has none": _fault(queries=_queries_weighted),
            "the queries' RMS is missing": FAULTS["no RMS of queries"],
            "the window is one too wide: with the query's own token it holds w":
                FAULTS["window one too wide"],
            "the window is one too narrow: with the query's own token it holds w":
                FAULTS["window one too narrow"],
            "there is no window: a query sees all keys before it": _fault(sees=_no_window),
            "the sink has no effect: it is left out, or added to all scores":
                FAULTS["sink left out"],
            "the sink is added to the denominator without exp":
                _fault(sink_weights=_sink_not_exponentiated),
            "the sink is fixed at 0: each head has its own learned one": FAULTS["sink fixed at 0"],
            "the sink's weight brings a value: it has none, it only takes weight away":
                _fault(attend=_sink_has_a_value),
            "the heads are interleaved among the groups: a group holds neighbouring heads":
                FAULTS["heads interleaved among groups"],
        },
        hints=(
            "The order: angles, queries, kv (norm, then rotation), scores, scale, window, weights, "
            "sum, rotation back, output.",
            'Scores: torch.einsum("bthc,bsc->bths", q, kv) / c ** 0.5, then '
            "masked_fill(~sees(T, w)[:, None], -inf).",
            'Sum: torch.einsum("bths,bsc->bthc", p, kv). Back: rotate(o, -theta[:, None]).',
        ),
        atol=1e-4,
    ),
    Check(
        "attention.debug", plain.window_attention, _layer_cases,
        mistakes={
            "this still has both faults": _fault(sees=_too_wide, sink_weights=_sink_is_zero),
            "one fault is repaired; what a head does when nothing fits is still not learned":
                _fault(sink_weights=_sink_is_zero),
            "one fault is repaired; a long text still shows the other": _fault(sees=_too_wide),
        },
        hints=(
            "Both faults hide: one as long as the text is short, one as long as the layer is "
            "fresh. Compare accordingly.",
            "Which is the first row t that differs from your own layer, with sinks of 0? What is "
            "new at that row?",
            "Then set the sinks to 2 and look at the denominator: which term should depend on "
            "them?",
        ),
        atol=1e-4,
    ),
    Check(
        "attention.yarn", plain.frequencies, _yarn_cases,
        mistakes={
            "the base is compress_rope_theta in every layer: without compression it is rope_theta":
                lambda config, ratio: plain.frequencies(
                    config.replace(rope_theta=config.compress_rope_theta), ratio),
            "the base is rope_theta in every layer: with compression it is compress_rope_theta":
                lambda config, ratio: plain.frequencies(
                    config.replace(compress_rope_theta=config.rope_theta), ratio),
            "layers without compression are stretched too: only those with compression are":
                lambda config, ratio: plain.frequencies(config, ratio or 4),
            "the exponent is j / r: pair j has 2j / r, so that the r/2 pairs spread over the whole "
            "range": _frequencies(exponent=-0.5),
            "the frequencies grow with j: the exponent is negative": _frequencies(exponent=1.0),
            "the ramp is the wrong way round: the SLOW pairs, large j, are stretched, the fast "
            "ones stay": _frequencies(ramp=lambda share: 1 - share.clamp(0, 1)),
            "all pairs are stretched: those that rotate often within the original length stay as "
            "they are": _frequencies(ramp=torch.ones_like),
            "no pair is stretched": _frequencies(ramp=torch.zeros_like),
            "the slow pairs are sped up: to stretch is to DIVIDE the frequency by the factor":
                _frequencies(mix=lambda w, factor, share: w * factor * share + w * (1 - share)),
            "the ramp is not clamped to 0 ... 1": _frequencies(ramp=_identity),
            "low and high are not rounded: floor for low, ceil for high":
                _frequencies(low=_identity, high=_identity),
            "the 2 in the denominator of pair() is missing": _frequencies(two=1),
            "the periods are averaged: the ramp weighs frequencies":
                _frequencies(mix=_mean_of_periods),
        },
        hints=(
            "Four lines: the plain frequencies, low and high, the ramp, the weighted mean of "
            "w / factor and w. base, length = config.rope(ratio).",
            "low = max(floor(pair(beta_fast)), 0), high = min(ceil(pair(beta_slow)), r - 1): whole "
            "numbers, from math.floor and math.ceil.",
            "ramp = ((j - low) / (high - low)).clamp(0, 1) for j = 0 ... r/2 - 1; where it is 1, "
            "the frequency is w / factor. A length of 0 means no YaRN.",
        ),
        atol=1e-9,
    ),
]
