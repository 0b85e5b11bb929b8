"""Checks of lesson 02: window attention with one shared key-value vector (V4 report, sections 2.3.1 and 2.3.3)."""

import math

import torch

from minids.config import Config
from minids.learn.exercise import Check
from minids.model.attention import Attention

LESSON = "02_attention"


def _rms(x, eps=1e-6):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


# ---- rotary embedding ----

def angles(positions, r, base):
    """The angle of each turning pair at each position, in radians: positions T -> T r/2, float32."""
    return positions[:, None].float() * base ** (-torch.arange(0, r, 2) / r)


def _angle_cases(rng):
    yield "positions 0 to 4, base 500", (torch.arange(5), 8, 500.0)
    yield "positions far out, two bases", (torch.randint(1, 3000, (4,), generator=rng), 6, 10000.0)
    yield "the base of layers with compression", (torch.randint(1, 3000, (4,), generator=rng), 16, 160000.0)


def turn(x, angles):
    """Turn the last r channels of x (... c) in pairs (0, 1), (2, 3), ... of these; angles: ... r/2, broadcast to x."""
    r = 2 * angles.shape[-1]
    a, b = x[..., -r::2], x[..., 1 - r::2]
    turned = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)
    return torch.cat([x[..., :-r], turned.flatten(-2)], -1)


def _halves(x, angles):
    """Pairs (i, i + r/2) of the last r channels."""
    r = 2 * angles.shape[-1]
    a, b = x[..., -r:].chunk(2, -1)
    return torch.cat([x[..., :-r], a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def _first(x, angles, turn=turn):
    r = 2 * angles.shape[-1]
    return torch.cat([turn(x[..., :r], angles), x[..., r:]], -1)


def _without_cross_terms(x, angles):
    r = 2 * angles.shape[-1]
    return torch.cat([x[..., :-r], x[..., -r:] * angles.cos().repeat_interleave(2, -1)], -1)


def _turn_cases(rng):
    yield "one pair and one angle", (torch.randn(2, generator=rng) + 1, torch.rand(1, generator=rng) + 0.4)
    yield "6 channels, of which 4 turn", (torch.randn(6, generator=rng), torch.rand(2, generator=rng) * 3)
    yield "keys, B T c", (torch.randn(2, 3, 12, generator=rng), torch.randn(3, 4, generator=rng))
    q = torch.randn(2, 3, 5, 12, generator=rng)
    yield "queries, B T H c, with angles T 1 r/2", (q, torch.randn(3, 1, 4, generator=rng))


# ---- queries ----

TINY = Config(vocab_size=29, dim=20, n_layers=1, compress_ratios=(0, 0), n_heads=4, head_dim=12, rope_head_dim=8,
              q_lora_rank=10, o_groups=2, o_lora_rank=7, window_size=4, index_n_heads=2, index_head_dim=8, index_topk=8,
              moe_inter_dim=8, n_routed_experts=4, n_activated_experts=2, n_hash_layers=1, max_seq_len=64)


def lively(rng, config=TINY):
    """A window-only attention layer in which every parameter matters: no norm weight is 1, no sink is 0."""
    attn = Attention(config, 0).eval().requires_grad_(False)
    for name, t in attn.state_dict().items():
        noise = torch.randn(t.shape, generator=rng)
        t.copy_(1 + 0.3 * noise if "norm" in name else noise if "sink" in name else 1.5 * noise * t.shape[-1] ** -0.5)
    return attn


def queries(attn, x, angles, turn=turn, rms=_rms, latent=None, swap=False):
    """q, B T H c, from x, B T d: two matrices with a norm between, RMS head by head, the turn. Keywords make mistakes."""
    H, c = attn.config.n_heads, attn.config.head_dim
    qr = attn.wq_a(x)                                                                    # B T q_lora_rank
    qr = attn.q_norm(qr) if latent is None else latent(qr)
    q = attn.wq_b(qr)                                                                    # B T Hc
    q = q.unflatten(-1, (c, H)).mT if swap else q.unflatten(-1, (H, c))                  # B T H c
    return turn(rms(q), angles[:, None])


def _rms_of_all_heads(q):
    return _rms(q.flatten(-2)).view(q.shape)


def _query_cases(rng):
    attn = lively(rng)
    yield "one token", (attn, torch.randn(1, 1, 20, generator=rng), torch.randn(1, 4, generator=rng))
    yield "a batch of two sequences", (attn, torch.randn(2, 5, 20, generator=rng), torch.randn(5, 4, generator=rng))


# ---- window and sink ----

def sees(T, w):
    """Which keys (columns) a query (row) sees: itself and the w - 1 before it. bool, T T."""
    t, s = torch.arange(T)[:, None], torch.arange(T)
    return (s <= t) & (s > t - w)


def _window_cases(rng):
    yield "5 tokens, a window of 3", (5, 3)
    yield "9 tokens, a window of 2", (9, 2)
    yield "a window longer than the text", (4, 8)


def sink_weights(scores, sink):
    """exp(s) / (sum exp(s) + exp(sink)) over the last axis. scores: B T H S, sink: H -> B T H S."""
    column = sink[:, None].expand(*scores.shape[:-1], 1)                                 # B T H 1
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def _exp(scores):
    """exp of scores relative to the largest, and that largest one."""
    top = scores.amax(-1, keepdim=True)
    return (scores - top).exp(), top


def _sink_not_exponentiated(scores, sink):
    e, top = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + sink[:, None] * (-top).exp())


def _sink_is_one(scores, sink):
    return sink_weights(scores, torch.zeros_like(sink))


def _sink_in_the_numerator(scores, sink):
    e, top = _exp(scores)
    z = (sink[:, None] - top).exp()
    return (e + z) / (e.sum(-1, keepdim=True) + z)


def _sink_on_the_largest(scores, sink):
    return (scores + sink[:, None] * (scores == scores.amax(-1, keepdim=True))).softmax(-1)


def _sink_kept(scores, sink):
    return torch.cat([scores, sink[:, None].expand(*scores.shape[:-1], 1)], -1).softmax(-1)


def _sink_overflows(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink.exp()[:, None])


def _sink_for_each_query(scores, sink):
    return torch.cat([scores, sink[:, None, None].expand(*scores.shape[:-1], 1)], -1).softmax(-1)[..., :-1]


def _sink_cases(rng):
    sink = torch.randn(3, generator=rng)
    yield "one query, one head", (torch.randn(1, 1, 1, 4, generator=rng), torch.tensor([0.8]))
    yield "B T H S", (torch.randn(2, 5, 3, 4, generator=rng), sink)
    yield "as many queries as heads", (torch.randn(2, 3, 3, 4, generator=rng), sink)
    masked = torch.randn(2, 4, 3, 4, generator=rng).masked_fill(~sees(4, 2)[:, None], -math.inf)
    yield "keys outside the window have score -inf", (masked, sink)
    yield "scores of 100, which overflow exp", (100 + torch.randn(1, 2, 3, 4, generator=rng), 100 + sink)


# ---- output ----

def grouped_output(o, wo_a, wo_b, groups):
    """o: B T H c; wo_a: g rank x Hc/g, one block of rank rows for each group; wo_b: d x g rank -> B T d."""
    o = o.flatten(2).unflatten(-1, (groups, -1))                                         # B T g Hc/g
    u = torch.einsum("btgi,gri->btgr", o, wo_a.unflatten(0, (groups, -1)))               # B T g rank
    return u.flatten(2) @ wo_b.mT                                                        # B T d


def _dealt(o, wo_a, wo_b, groups):
    """Heads dealt to the groups in turn: group k gets heads k, k + g, ..."""
    return grouped_output(o.unflatten(2, (-1, groups)).transpose(2, 3).flatten(2, 3), wo_a, wo_b, groups)


def _first_block(o, wo_a, wo_b, groups):
    rank = wo_a.shape[0] // groups
    return grouped_output(o, wo_a[:rank].repeat(groups, 1), wo_b, groups)


def _mixed_ranks(o, wo_a, wo_b, groups):
    return grouped_output(o, wo_a, wo_b.unflatten(1, (-1, groups)).mT.flatten(1), groups)


def _dealt_rows(o, wo_a, wo_b, groups):
    return grouped_output(o, wo_a.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1), wo_b, groups)


def _output_cases(rng):
    for label, H, c, g, rank in (("two groups of one head", 2, 3, 2, 3), ("three groups of two heads", 6, 4, 3, 5)):
        yield label, (torch.randn(2, 3, H, c, generator=rng), torch.randn(g * rank, H * c // g, generator=rng),
                      torch.randn(5, g * rank, generator=rng), g)


# ---- the layer ----

def window_attention(attn, x, start=0, base=None, turn=turn, q=queries, kv_norm=None, keys=turn, values=None, scale=None,
                     more=0, w=None, weights=sink_weights, back=-1, output=grouped_output, added=None):
    """The whole layer, x: B T d at positions start, start + 1, ... -> B T d, from the parameters of a window-only
    `Attention`. The other arguments make mistakes."""
    c = attn.config
    a = angles(torch.arange(start, start + x.shape[1]), c.rope_head_dim, base or c.rope_theta)   # T r/2
    still = attn.kv_norm(attn.wkv(x)) if kv_norm is None else kv_norm(attn.wkv(x))       # B T c
    k = keys(still, a)                                                                   # B T c
    v = k if values is None else values(still, a)
    s = torch.einsum("bthc,bsc->bths", q(attn, x, a), k) * (scale or c.head_dim) ** -0.5   # B T H T
    s = s.masked_fill(~sees(x.shape[1], w or c.window_size + more)[:, None], -math.inf)
    p = weights(s, attn.attn_sink)
    o = torch.einsum("bths,bsc->bthc", p, v)                                             # B T H c
    if added:
        o = o + (1 - p.sum(-1, keepdim=True)) * attn.attn_sink[:, None]
    o = turn(o, back * a[:, None]) if back else o
    return output(o, attn.wo_a.weight, attn.wo_b.weight, c.o_groups)


def _fault(**changes):
    return lambda attn, x, start=0: window_attention(attn, x, start, **changes)


def _turned(turn):
    """The same wrong turn everywhere."""
    return _fault(turn=turn, keys=turn, q=lambda attn, x, a: queries(attn, x, a, turn=turn))


def _other_base(attn, x, start=0):
    return window_attention(attn, x, start, base=attn.config.compress_rope_theta)


def _root_of_r(attn, x, start=0):
    return window_attention(attn, x, start, scale=attn.config.rope_head_dim)


def _rms_of_all(attn, x, a):
    return queries(attn, x, a, rms=_rms_of_all_heads)


def _weighted_queries(attn, x, a):
    return queries(attn, x, a, rms=attn.kv_norm)


def _raw_queries(attn, x, a):
    return queries(attn, x, a, rms=lambda q: q)


def _still(x, a):
    return x


def _softmax(scores, sink):
    return scores.softmax(-1)


# {name: the layer with this fault}: the lesson measures what each costs
FAULTS = {
    "no inverse turn": _fault(back=0),
    "inverse turn forwards": _fault(back=1),
    "rotary on the first channels": _turned(_first),
    "rotary on halves": _turned(_halves),
    "the other base": _other_base,
    "values not turned": _fault(values=_still, back=0),
    "scale missing": _fault(scale=1),
    "RMS over all heads": _fault(q=_rms_of_all),
    "no RMS of queries": _fault(q=_raw_queries),
    "window one too wide": _fault(more=1),
    "window one too narrow": _fault(more=-1),
    "sink left out": _fault(weights=_softmax),
    "sink fixed at 0": _fault(weights=_sink_is_one),
    "heads dealt to groups": _fault(output=_dealt),
}


def _layer_cases(rng):
    attn = lively(rng)
    yield "one token", (attn, torch.randn(1, 1, 20, generator=rng))
    yield "three tokens, fewer than the window", (attn, torch.randn(2, 3, 20, generator=rng))
    yield "nine tokens, more than the window", (attn, torch.randn(2, 9, 20, generator=rng))
    yield "seven tokens that begin at position 100", (attn, torch.randn(2, 7, 20, generator=rng), 100)


# ---- stretched frequencies ----

def yarn(r, base, length, factor, fast, slow, low=math.floor, high=math.ceil, two=2, ramp=None, mix=None):
    """YaRN's frequencies of the r/2 pairs: as they are where a pair turns `fast` times or more within `length`, divided by
    `factor` where it turns `slow` times or fewer, between in between. Keywords make mistakes."""
    j = torch.arange(r // 2)
    w = base ** (-2 * j / r)

    def at(turns):
        return r * math.log(length / (2 * math.pi * turns)) / (two * math.log(base))
    low, high = max(low(at(fast)), 0), min(high(at(slow)), r - 1)
    share = (j - low) / (high - low)
    share = share.clamp(0, 1) if ramp is None else ramp(share)
    return w / factor * share + w * (1 - share) if mix is None else mix(w, factor, share)


def _yarn_cases(rng):
    yield "Flash and Pro", (64, 160000.0, 65536, 16.0, 32.0, 1.0)
    yield "nano", (16, 160000.0, 256, 16.0, 32.0, 1.0)
    yield "other numbers", (32, 10000.0, 4096, 4.0, 16.0, 2.0)


def _identity(value):
    return value


CHECKS = [
    Check(
        "attention.angles", angles, _angle_cases,
        mistakes={
            "the base is fixed at 10000: it is an argument, since layers with compression have another one":
                lambda positions, r, base: angles(positions, r, 10000.0),
            "the exponent is j / r: pair j has 2j / r, so that the r/2 pairs spread over the whole range":
                lambda positions, r, base: angles(positions, 2 * r, base)[:, :r // 2],
            "the frequencies grow with j: the exponent is negative":
                lambda positions, r, base: angles(positions, r, 1 / base),
            "positions are counted from 1: the first one is 0": lambda positions, r, base: angles(positions + 1, r, base),
            "each angle stands there twice: one for each pair, r/2, is asked for":
                lambda positions, r, base: angles(positions, r, base).repeat(1, 2),
            "these are the frequencies alone: multiply with the positions":
                lambda positions, r, base: angles(torch.ones_like(positions), r, base),
        },
        hints=(
            "First the r/2 frequencies base ** (-2j/r), then one product for each position and pair.",
            "torch.arange(0, r, 2) gives 2j for all j.",
            "positions[:, None] has shape T 1; times frequencies of shape r/2 gives T r/2.",
        ),
        atol=1e-4,
    ),
    Check(
        "attention.turn", turn, _turn_cases,
        mistakes={
            "the FIRST r channels turn: in V4 it is the last r": _first,
            "pairs are made of the two halves, (i, i + r/2): V4 pairs neighbours, (2i, 2i + 1)": _halves,
            "the first r channels turn, in halves: V4 turns the last r, in neighbouring pairs (2i, 2i + 1)":
                lambda x, angles: _first(x, angles, _halves),
            "this turns the wrong way: the sine has its minus sign in the first channel of a pair":
                lambda x, angles: turn(x, -angles),
            "each channel is only multiplied by its cosine: a turn mixes the two channels of a pair": _without_cross_terms,
            "the channels that stay are lost: put them in front of the turned ones":
                lambda x, angles: turn(x, angles)[..., -2 * angles.shape[-1]:],
        },
        hints=(
            "Three parts: cut off the last r channels, turn them, put the others in front again. r is 2 * angles.shape[-1].",
            "Within the last r channels, a = every second from 0 and b = every second from 1. New pair: "
            "(a cos - b sin, a sin + b cos).",
            "torch.stack([new_a, new_b], -1).flatten(-2) interleaves; then torch.cat with x[..., :-r] in front.",
        ),
    ),
    Check(
        "attention.queries", queries, _query_cases,
        mistakes={
            "the RMS is taken over all heads together: each head is normalised by itself, over its c channels": _rms_of_all,
            "the queries are multiplied by a norm weight: the RMS of the heads has none (kv_norm.weight is for kv)":
                _weighted_queries,
            "the RMS of each head is missing": _raw_queries,
            "q_norm is missing between the two matrices, or its weight is (each head's own RMS makes these two the same)":
                lambda attn, x, a: queries(attn, x, a, latent=lambda qr: qr),
            "the queries are not turned": lambda attn, x, a: queries(attn, x, a, turn=_still),
            "the queries are turned backwards: only the output is": lambda attn, x, a: queries(attn, x, -a),
            "the first channels turn: it is the last ones": lambda attn, x, a: queries(attn, x, a, turn=_first),
            "heads and channels are exchanged: the first c numbers are head 0, so cut into (H, c)":
                lambda attn, x, a: queries(attn, x, a, swap=True),
        },
        hints=(
            "Five steps: wq_a, q_norm, wq_b, cut into heads, RMS of each head; then the turn.",
            "y.unflatten(-1, (H, c)) makes B T H c. RMS over the last axis is then one RMS for each head.",
            "The angles are T r/2, the queries B T H c: angles[:, None] is T 1 r/2 and fits all heads.",
        ),
    ),
    Check(
        "attention.window", sees, _window_cases,
        mistakes={
            "the window is one too wide: t - w is outside, since the query's own token counts as one of the w":
                lambda T, w: sees(T, w + 1),
            "the window is one too narrow: with the query's own token it holds w": lambda T, w: sees(T, w - 1),
            "a query does not see itself here: it does": lambda T, w: sees(T, w) & ~torch.eye(T, dtype=torch.bool),
            "a query sees the future: only keys s <= t": lambda T, w: sees(T, w) | sees(T, w).mT,
            "rows and columns are exchanged: row t is the query": lambda T, w: sees(T, w).mT,
            "there is no window: a query sees all keys before it": lambda T, w: sees(T, T),
            "True and False are exchanged: True is where a query sees": lambda T, w: ~sees(T, w),
        },
        hints=(
            "Write down for t = 5 and w = 3 which s are seen: 3, 4, 5.",
            "A column of t, torch.arange(T)[:, None], compared with a row of s, torch.arange(T), gives T x T.",
            "Two conditions, joined with &: not the future, and not further back than w - 1.",
        ),
    ),
    Check(
        "attention.sink", sink_weights, _sink_cases,
        mistakes={
            "the sink has no effect: it is left out, or added to all scores, where softmax cancels it": _softmax,
            "the sink is added to the denominator as it is: it is a score, so exp(sink) joins": _sink_not_exponentiated,
            "the sink is fixed at 0, exp(0) = 1: each head has its own learned one": _sink_is_one,
            "exp(sink) stands in the numerator too: it joins the denominator only": _sink_in_the_numerator,
            "the sink is added to the largest score: it is a score of its own, beside the others": _sink_on_the_largest,
            "the sink's own weight is still there as a last column: drop it, it has no value to weigh": _sink_kept,
            "exp overflows for large scores: subtract the largest first, or let softmax do it": _sink_overflows,
            "each query has a sink here: it is one for each head": _sink_for_each_query,
            "all heads share one sink here, the mean: each has its own":
                lambda scores, sink: sink_weights(scores, sink.mean().expand_as(sink)),
        },
        hints=(
            "Think of the sink as one more key whose score is given and whose value is zero.",
            "Append a column with the sinks to the scores, take the softmax, drop the column.",
            "sink[:, None].expand(*scores.shape[:-1], 1) is that column, B T H 1.",
        ),
        atol=1e-6,
    ),
    Check(
        "attention.output", grouped_output, _output_cases,
        mistakes={
            "the heads are dealt to the groups in turn: a group holds neighbouring heads, the first H/g in group 0": _dealt,
            "all groups use the first block of wo_a: each has its own": _first_block,
            "the rows of wo_a are dealt to the groups in turn: its first `rank` rows are group 0's": _dealt_rows,
            "the results are concatenated rank by rank: first all numbers of group 0, then all of group 1": _mixed_ranks,
            "a group's channels are in another order: head after head, each with its c channels":
                lambda o, wo_a, wo_b, groups: grouped_output(o.mT, wo_a, wo_b, groups),
        },
        hints=(
            "Cut o's H c channels into g equal pieces, and wo_a's rows into g blocks. Piece k meets block k.",
            "o.flatten(2).unflatten(-1, (groups, -1)): B T g Hc/g. wo_a.unflatten(0, (groups, -1)): g rank Hc/g.",
            'torch.einsum("btgi,gri->btgr", o, blocks), then .flatten(2) and the product with wo_b.T.',
        ),
        atol=1e-4,
    ),
    Check(
        "attention.layer", window_attention, _layer_cases,
        mistakes={
            "the output is not turned back": FAULTS["no inverse turn"],
            "the output is turned forwards once more: it is turned BACK by the query's position":
                FAULTS["inverse turn forwards"],
            "the FIRST r channels turn: it is the last r": FAULTS["rotary on the first channels"],
            "pairs are made of the two halves: V4 pairs neighbours": FAULTS["rotary on halves"],
            "the base is compress_rope_theta: that is for layers with compression, a window-only layer has rope_theta":
                FAULTS["the other base"],
            "the values are kv before the turn: key and value are the same, turned vector":
                _fault(values=_still),
            "the values are kv before the turn and the output is not turned back: that is usual attention; in V4 "
            "key and value are the same, turned vector": FAULTS["values not turned"],
            "the keys are not turned": _fault(keys=_still),
            "kv_norm is missing": _fault(kv_norm=lambda kv: kv),
            "the scale 1 / sqrt(c) is missing": FAULTS["scale missing"],
            "the scale is 1 / sqrt(r): c is the whole width of a head": _root_of_r,
            "the queries' RMS is over all heads together": FAULTS["RMS over all heads"],
            "the queries' RMS has a weight: it has none": _fault(q=_weighted_queries),
            "the queries' RMS is missing": FAULTS["no RMS of queries"],
            "the window is one too wide: with the query's own token it holds w": FAULTS["window one too wide"],
            "the window is one too narrow: with the query's own token it holds w": FAULTS["window one too narrow"],
            "there is no window: a query sees all keys before it": _fault(w=10**6),
            "the sink has no effect: it is left out, or added to all scores": FAULTS["sink left out"],
            "the sink is added to the denominator without exp": _fault(weights=_sink_not_exponentiated),
            "the sink is fixed at 0: each head has its own learned one": FAULTS["sink fixed at 0"],
            "the sink's weight brings a value: it has none, it only takes weight away": _fault(added=True),
            "the heads are dealt to the groups in turn: a group holds neighbouring heads": FAULTS["heads dealt to groups"],
        },
        hints=(
            "The order: angles, queries, kv (norm, then turn), scores, scale, window, weights, sum, turn back, output.",
            'Scores: torch.einsum("bthc,bsc->bths", q, kv) / c ** 0.5, then masked_fill(~sees(T, w)[:, None], -inf).',
            'Sum: torch.einsum("bths,bsc->bthc", p, kv). Back: turn(o, -a[:, None]).',
        ),
        atol=1e-4,
    ),
    Check(
        "attention.debug", window_attention, _layer_cases,
        mistakes={
            "this still has both faults": _fault(more=1, weights=_sink_is_one),
            "one fault is repaired; what a head does when nothing fits is still not learned": _fault(weights=_sink_is_one),
            "one fault is repaired; a long text still shows the other": _fault(more=1),
        },
        hints=(
            "Both faults hide: one as long as the text is short, one as long as the layer is fresh. Compare accordingly.",
            "Which is the first row t that differs from your own layer, with sinks of 0? What is new at that row?",
            "Then set the sinks to 2 and look at the denominator: which term should depend on them?",
        ),
        atol=1e-4,
    ),
    Check(
        "attention.yarn", yarn, _yarn_cases,
        mistakes={
            "the ramp is the wrong way round: the SLOW pairs, large j, are stretched, the fast ones stay":
                lambda *a: yarn(*a, ramp=lambda share: 1 - share.clamp(0, 1)),
            "all pairs are stretched: those that turn often within the original length stay as they are":
                lambda *a: yarn(*a, ramp=torch.ones_like),
            "no pair is stretched": lambda *a: yarn(*a, ramp=torch.zeros_like),
            "the slow pairs are sped up: to stretch is to DIVIDE the frequency by the factor":
                lambda *a: yarn(*a, mix=lambda w, factor, share: w * factor * share + w * (1 - share)),
            "the ramp is not clamped to 0 ... 1": lambda *a: yarn(*a, ramp=_identity),
            "low and high are not rounded: floor for low, ceil for high": lambda *a: yarn(*a, low=_identity, high=_identity),
            "the 2 in the denominator of at() is missing": lambda *a: yarn(*a, two=1),
            "the periods are averaged: the ramp weighs frequencies":
                lambda *a: yarn(*a, mix=lambda w, factor, share: 1 / (factor / w * share + (1 - share) / w)),
        },
        hints=(
            "Four lines: the plain frequencies, low and high, the ramp, the weighted mean of w / factor and w.",
            "low = max(floor(at(fast)), 0), high = min(ceil(at(slow)), r - 1): whole numbers, from math.floor and math.ceil.",
            "ramp = ((j - low) / (high - low)).clamp(0, 1) for j = 0 ... r/2 - 1; where it is 1, the frequency is w / factor.",
        ),
        atol=1e-9,
    ),
]
