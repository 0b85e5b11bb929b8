"""Checks of lesson 02: window attention (V4 report, sections 2.3.1 and 2.3.3).

The references are the functions of `minids.plain`; what is defined here makes mistakes.
"""

import functools
import math

import torch
from einops import einsum, rearrange

from minids import plain
from minids.config import Config
from minids.errors import MinidsError
from minids.learn.compare import SEQUENCES, kind, same
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
    yield "one pair", (torch.tensor([7, 0, 1000]), torch.tensor([0.7]))


def _pairs(new, order="... pair two"):
    """`rotate` with new(a, b, cos, sin) for a pair (a, b), written in another order of channels."""
    def version(x, theta):
        r = 2 * theta.shape[-1]
        a, b = rearrange(x[..., -r:], "... (pair two) -> two ... pair", two=2)
        rotated = torch.stack(new(a, b, theta.cos(), theta.sin()), dim=-1)
        rotated = rearrange(rotated, f"... pair two -> ... ({order[4:]})")
        return torch.cat([x[..., :-r], rotated], dim=-1)
    return version


def _rotation(a, b, cos, sin):
    return a * cos - b * sin, a * sin + b * cos


def _with_the_changed_a(a, b, cos, sin):
    a = a * cos - b * sin
    return a, a * sin + b * cos


def _from_halves(x, theta):
    """Reads the halves as pairs, and writes the results as neighbours."""
    r = 2 * theta.shape[-1]
    a, b = x[..., -r:].chunk(2, dim=-1)
    rotated = torch.stack(_rotation(a, b, theta.cos(), theta.sin()), dim=-1)
    return torch.cat([x[..., :-r], rotated.flatten(-2)], dim=-1)


def _rotated_in_front(x, theta):
    r = 2 * theta.shape[-1]
    return torch.cat([plain.rotate(x, theta)[..., -r:], x[..., :-r]], dim=-1)


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


def _in_place(x, theta):
    """Writes into x. a and b are views of it, so that b is rotated with the new a."""
    r = 2 * theta.shape[-1]
    a, b = x[..., -r::2], x[..., 1 - r::2]
    x[..., -r::2] = a * theta.cos() - b * theta.sin()
    x[..., 1 - r::2] = a * theta.sin() + b * theta.cos()
    return x


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


def _unchanged(q):
    return q


def _queries_without_rms(attn, x, theta):
    return queries_with(attn, x, theta, norm=lambda q: q)


def _length_1(q):
    return q / q.norm(dim=-1, keepdim=True)


def _rms_along(axis):
    return lambda q: q * torch.rsqrt(q.square().mean(axis, keepdim=True) + 1e-6)


def _minus_the_mean(q):
    return plain.rms(q - q.mean(dim=-1, keepdim=True))


def _queries(**changes):
    return lambda attn, x, theta: queries_with(attn, x, theta, **changes)


def _angles_at_heads(attn, x, theta):
    """The angles T r/2 meet the queries B T H c at the axis of the heads."""
    q = attn.wq_b(plain.query_latent(attn, x)).unflatten(-1, (attn.config.n_heads, -1))
    return plain.rotate(plain.rms(q), theta)


def _query_cases(rng):
    attn = lively(rng)
    x = torch.randn(1, 1, 20, generator=rng)
    yield "one token", (attn, x, torch.randn(1, 4, generator=rng))
    x = torch.randn(2, 5, 20, generator=rng)
    yield "a batch of two sequences", (attn, x, torch.randn(5, 4, generator=rng))
    x = torch.randn(1, 4, 20, generator=rng)
    yield "as many tokens as heads", (attn, x, torch.randn(4, 4, generator=rng))


# ---- window and sink ----


def _too_wide(T, w):
    return plain.sees(T, w + 1)


def _too_narrow(T, w):
    return plain.sees(T, w - 1)


def _no_window(T, w):
    return plain.sees(T, T)


def _grid(T):
    return torch.arange(T)[:, None], torch.arange(T)


def _future_too(T, w):
    t, s = _grid(T)
    return s > t - w


def _only_before(T, w):
    """w keys before the query, without its own."""
    t, s = _grid(T)
    return (s < t) & (s >= t - w)


def _blocks(T, w):
    t, s = _grid(T)
    return (s <= t) & (t // w == s // w)


def _window_cases(rng):
    yield "5 tokens, a window of 3", (5, 3)
    yield "9 tokens, a window of 2", (9, 2)
    yield "a window longer than the text", (4, 8)
    yield "a window as long as the text", (5, 5)
    yield "a window of the query's own token", (6, 1)
    yield "a long text", (70, 16)


def _exp(scores):
    """exp of scores relative to the largest, and that largest one. A row of -inf gives nan."""
    top = scores.amax(dim=-1, keepdim=True)
    return (scores - top).exp(), top


def _softmax(scores, sink):
    """Without a sink. A row of -inf gives nan."""
    return scores.softmax(dim=-1)


def _sink_not_exponentiated(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink[:, None])


def _nan_where_nothing_is_seen(scores, sink):
    """Right, but for a row of -inf: -inf minus its largest, -inf, is nan."""
    e, top = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + (sink[:, None] - top).exp())


def _one(scores, sink):
    """The sink is fixed at exp(0) = 1. Large scores overflow."""
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + 1)


def _sink_raw_after_the_shift(scores, sink):
    e, _ = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + sink[:, None])


def _sink_not_shifted(scores, sink):
    e, _ = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + sink[:, None].exp())


def _sink_is_zero(scores, sink):
    return plain.sink_weights(scores, torch.zeros_like(sink))


def _one_unshifted(scores, sink):
    """The sink is fixed at exp(0) = 1, beside scores from which the largest is subtracted."""
    e, _ = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + 1)


def _sink_in_the_numerator(scores, sink):
    e, top = _exp(scores)
    z = (sink[:, None] - top).exp()
    return (e + z) / (e.sum(-1, keepdim=True) + z)


def _sink_on_the_largest(scores, sink):
    largest = scores == scores.amax(dim=-1, keepdim=True)
    return _softmax(scores + sink[:, None] * largest, sink)


def _sink_column(scores, sink):
    """The weights of all keys and, in the last column, of the sink: B T H S+1."""
    column = sink[:, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)


def _first_column_dropped(scores, sink):
    return _sink_column(scores, sink)[..., 1:]


def _sink_overflows(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink.exp()[:, None])


def _sink_for_each_query(scores, sink):
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


def _sink_shared(scores, sink):
    return plain.sink_weights(scores, sink.mean().expand_as(sink))


def _first_sink(scores, sink):
    return plain.sink_weights(scores, sink[:1].expand_as(sink))


def _divided_afterwards(scores, sink):
    return _softmax(scores, sink) / (1 + sink.exp()[:, None])


def _over_heads(scores, sink):
    column = sink[:, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=2)[..., :-1]


def _sink_cases(rng):
    sink = torch.randn(3, generator=rng)
    scores = torch.randn(1, 1, 1, 4, generator=rng)
    yield "one query, one head", (scores, torch.tensor([0.8]))
    yield "B T H S", (torch.randn(2, 5, 3, 4, generator=rng), sink)
    yield "as many queries as heads", (torch.randn(2, 3, 3, 4, generator=rng), sink)
    masked = torch.randn(2, 4, 3, 4, generator=rng)
    masked = masked.masked_fill(~plain.sees(4, 2)[:, None], -math.inf)
    yield "keys outside the window have score -inf", (masked, sink)
    scores = 87.8 + 0.5 * torch.rand(1, 2, 3, 4, generator=rng)
    yield "scores near 88, whose exp adds up to inf", (scores, 87 + sink)
    masked = masked.clone()
    masked[0, 1] = -math.inf
    yield "a query that sees no key: all its scores are -inf", (masked, sink)


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


def _every_block(o, wo_a, wo_b, groups):
    """The sum over groups of what each makes with all rows of wo_a."""
    u = o.flatten(2).unflatten(-1, (groups, -1)) @ wo_a.T              # B T g (g rank)
    return u.sum(dim=2) @ wo_b.T


def _channels_in_turn(o, wo_a, wo_b, groups):
    """Group k gets the channels k, k + g, ... of all heads."""
    u = rearrange(o, "B T h c -> B T (h c)")
    u = rearrange(u, "B T (i g) -> B T (g i)", g=groups).view(o.shape)
    return plain.grouped_output(u, wo_a, wo_b, groups)


def _output_cases(rng):
    for label, H, c, g, rank in (("two groups of one head", 2, 3, 2, 3),
                                 ("three groups of two heads", 6, 4, 3, 5),
                                 ("two groups of three heads", 6, 2, 2, 4),
                                 ("one group", 3, 4, 1, 6)):
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


def _masked_by_zero(q, kv, seen, sink):
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    p = plain.sink_weights(scores * seen[:, None], sink)
    return einsum(p, kv, "B T H S, B S c -> B T H c")


def _masked_afterwards(q, kv, seen, sink):
    """The weights of hidden keys are set to 0 after the softmax."""
    p = _weights(q, kv, torch.ones_like(seen), sink) * seen[:, None]
    return einsum(p, kv, "B T H S, B S c -> B T H c")


def _over_c(q, *rest):
    return plain.attend(q / math.sqrt(q.shape[-1]), *rest)


def _everything(T, w):
    return torch.ones(T, T, dtype=torch.bool)


def _unrotated_queries(attn, x, theta):
    return queries_with(attn, x, theta, rotate=_unrotated)


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


# ---- the two faults ----

# what the layer to be repaired has, by the names in `FAULTS`
TWO_FAULTS = {"window one too wide", "sink fixed at 0"}


def diagnosed(layer):
    """A function of the same arguments: {"output", "names"}.

    `layer` returns its output and the names of the faults that were repaired. The names are
    counted, so that an answer is not given away, and only where a text is longer than the window
    and its output is right. Raises `MinidsError` if `layer` returns something else.
    """
    @functools.wraps(layer)
    def judged(attn, x):
        found = layer(attn, x)
        if found is None:
            return None
        output, names = _output_and_names(found)
        return {"output": output, "names": _count(attn, x, output, names)}
    return judged


def _output_and_names(found):
    """(output, set of names), or (output, None) for an output alone."""
    if isinstance(found, torch.Tensor):
        return found, None
    if not (isinstance(found, SEQUENCES) and found and isinstance(found[0], torch.Tensor)):
        raise MinidsError(f"expected the output and then the names of the two faults, found "
                          f"{kind(found)}")
    output, *names = found
    if len(names) == 1 and isinstance(names[0], tuple | list | set | frozenset):
        names = names[0]
    return output, {str(name).strip().lower() for name in names}


def _count(attn, x, output, names) -> str:
    if names is None:
        return "missing"
    wanted = plain.window_attention(attn, x)
    long = x.shape[1] > attn.config.window_size
    if not (long and same(output, wanted, atol=1e-4, rtol=1e-4)):
        return "not counted yet"
    return f"{len(names & TWO_FAULTS)} right, {len(names - TWO_FAULTS)} wrong"


def _named(layer, names):
    return diagnosed(lambda attn, x: (layer(attn, x), names))


def _sink_without_axis(scores, sink):
    """The sinks of all heads lie along the axis of the keys."""
    e, top = _exp(scores)
    return e / (e.sum(-1, keepdim=True) + (sink - top).exp())


# what may be wrong with the window and with the sink of a repaired layer
WINDOWS = {
    "": plain.sees,
    "a long text still shows a fault": _too_wide,
    "your window is one too narrow now; with the query's own token it should hold w": _too_narrow,
}
SINKS = {
    "": plain.sink_weights,
    "what a head does when nothing fits is still not learned": _sink_is_zero,
    "the largest score is subtracted from the scores and not from the sink; exp(sink - largest) "
    "should join the denominator": _sink_not_shifted,
    "you add the sink as it is; it is a score, so exp(sink - largest) should join the denominator":
        _sink_raw_after_the_shift,
    "your sink has no effect; exp(sink - largest) should join the denominator": _softmax,
}


def _diagnoses():
    """Layers that are not right, with names and without; then a right layer with wrong names."""
    layers = {"; also, ".join(words for words in (window, sink) if words):
              _fault(sees=sees, sink_weights=sink_weights)
              for window, sees in WINDOWS.items() for sink, sink_weights in SINKS.items()}
    layers |= {"your sinks lie along the keys' axis; attn_sink[:, None] puts them along the heads'":
               _fault(sink_weights=_sink_without_axis)}
    alone = "you return the output alone; return the names of the two faults too"
    found = {}
    for words, layer in layers.items():
        if words:
            found[words] = _named(layer, TWO_FAULTS)
        found[f"{alone}; also, {words}" if words else alone] = diagnosed(layer)
    right, _ = sorted(TWO_FAULTS)
    names = {"you name one fault, rightly; name the other too": {right},
             "one of your two names is right, the other is wrong": {right, "?"},
             "you name one fault, wrongly; there are two": {"?"},
             "both of your names are wrong; write them as the table does": {"?", "??"},
             "you name more than two faults, two of them rightly; there are two":
                 TWO_FAULTS | {"?"},
             "you name no fault; there are two": set()}
    return found | {f"your layer is right; {words}": _named(plain.window_attention, given)
                    for words, given in names.items()}


# ---- stretched frequencies ----


def _pair(length, rotations, r, base):
    """The pair that rotates this many times within the length."""
    return r * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(base))


def frequencies_with(config, ratio, exponent=-1.0, pair=_pair, low=math.floor, high=math.ceil,
                     least=0, most=lambda r: r - 1, ramp=lambda share: share.clamp(0, 1),
                     mix=None, first=0, place=lambda j: j, width=lambda low, high: high - low):
    """`frequencies` with another exponent, ends of the ramp, ramp, or mean of two frequencies."""
    r, factor = config.rope_head_dim, config.rope_factor
    base, length = config.rope(ratio)
    j = first + torch.arange(r // 2)
    w = base ** (exponent * 2 * j / r)
    if length == 0:
        return w
    start = max(low(pair(length, config.beta_fast, r, base)), least)
    end = min(high(pair(length, config.beta_slow, r, base)), most(r))
    share = ramp((place(j) - start) / (width(start, end) or 0.001))
    return w / factor * share + w * (1 - share) if mix is None else mix(w, factor, share)


def _yarn_cases(rng):
    flash, nano = Config.flash(), Config.nano()
    yield "Flash, CSA", (flash, 4)
    yield "Flash, no compression", (flash, 0)
    yield "nano, HCA", (nano, 16)
    other = dict(rope_head_dim=32, compress_rope_theta=10000.0, rope_theta=500.0,
                 original_seq_len=4096, rope_factor=4.0, beta_fast=16.0, beta_slow=2.0)
    yield "another configuration", (flash.replace(**other), 128)
    few = dict(rope_head_dim=8, compress_rope_theta=100.0, beta_fast=1000.0)
    yield "a ramp that goes beyond the last pair", (flash.replace(**few), 4)
    few = dict(rope_head_dim=16, compress_rope_theta=30.0, beta_fast=200.0)
    yield "a high above r/2 - 1 and below r - 1", (flash.replace(**few), 4)
    yield "at(beta_fast) is below 0", (nano.replace(beta_fast=90.0), 4)


def _identity(value):
    return value


def _mean_of_periods(w, factor, share):
    return 1 / (factor / w * share + (1 - share) / w)


def _frequencies(**changes):
    return lambda config, ratio: frequencies_with(config, ratio, **changes)


def _configured(**changes):
    """`frequencies` of a configuration in which some numbers are always the same."""
    return lambda config, ratio: plain.frequencies(config.replace(**changes), ratio)


def _ends_exchanged(config, ratio):
    fast, slow = config.beta_fast, config.beta_slow
    return frequencies_with(config.replace(beta_fast=slow, beta_slow=fast), ratio)


def _without_the_case_of_0(config, ratio):
    base, length = config.rope(ratio)
    math.log(length / (2 * math.pi * config.beta_fast))      # ValueError where the length is 0
    return plain.frequencies(config, ratio)


CHECKS = [
    Check(
        "attention.angles", plain.angles, _angle_cases,
        mistakes={
            "you count positions from 1; the first one should be 0":
                lambda positions, w: plain.angles(positions + 1, w),
            "you have each angle twice, in two halves; there should be one for each pair, r/2":
                lambda positions, w: plain.angles(positions, w).repeat(1, 2),
            "you have each angle twice, one after the other; there should be one for each pair, "
            "r/2":
                lambda positions, w: plain.angles(positions, w).repeat_interleave(2, dim=1),
            "you count from 0; take the positions that are given, which may begin anywhere":
                lambda positions, w: plain.angles(torch.arange(len(positions)), w),
            "you multiply element by element; every position should meet every pair, so one of the "
            "two needs a new axis": lambda positions, w: positions * w,
            "you return the frequencies alone; multiply them by the positions":
                lambda positions, w: plain.angles(torch.ones_like(positions), w),
            "you divide the positions by w; w is radians per position, so multiply":
                lambda positions, w: plain.angles(positions, 1 / w),
            "you divide the positions by w and drop the fraction; w is radians per position, so "
            "multiply":
                lambda positions, w: positions[:, None].float() // w,
            "you drop the fraction of the angles; keep it":
                lambda positions, w: plain.angles(positions, w).floor(),
            "your rows and columns are exchanged; a row should be a position, a column a pair":
                lambda positions, w: plain.angles(positions, w).mT,
            "you multiply by 2 pi; w is radians per position already, not full turns":
                lambda positions, w: plain.angles(positions, 2 * math.pi * w),
            "you convert to degrees; the angles should be radians":
                lambda positions, w: plain.angles(positions, w).rad2deg(),
            "you convert from degrees; w is radians per position already":
                lambda positions, w: plain.angles(positions, w).deg2rad(),
            "you take the angles modulo 2 pi; return them as they are":
                lambda positions, w: plain.angles(positions, w) % (2 * math.pi),
            "you return the cosines; return the angles, `rotate` takes cosine and sine":
                lambda positions, w: plain.angles(positions, w).cos(),
            "you add position and frequency; multiply them":
                lambda positions, w: positions[:, None].float() + w,
            "your angles are negative; an angle should be + position times frequency":
                lambda positions, w: -plain.angles(positions, w),
        },
        hints=(
            "One product for each position and each pair.",
            "positions has shape T and w has shape r/2; the result has shape T r/2.",
            "positions[:, None] has shape T 1; times w it gives T r/2.",
        ),
        atol=1e-4,
        gradient=False,
    ),
    Check(
        "attention.rotate", plain.rotate, _rotate_cases,
        mistakes={
            "you rotate the FIRST r channels; V4 rotates the last r": rotate_first,
            "you pair the two halves, (i, i + r/2); V4 pairs neighbours, (2i, 2i + 1)":
                rotate_halves,
            "you rotate the first r channels, in halves; V4 rotates the last r, in neighbouring "
            "pairs (2i, 2i + 1)": _first_halves,
            "you rotate neighbours and put the results side by side, all first halves of pairs "
            "first; each should go back to its place (interleave them)":
                _pairs(_rotation, "... two pair"),
            "you take the pairs (i, i + r/2) and write them as neighbours; V4 reads neighbours "
            "too, (2i, 2i + 1)": _from_halves,
            "your second line uses the first channel after its change; it should use the old one":
                _pairs(_with_the_changed_a),
            "you write into x, and your second line reads the channel that the first has changed, "
            "since slices are views of x; build a new tensor from the old channels": _in_place,
            "you rotate in the wrong direction; the minus sign belongs to the sine in the first "
            "channel of a pair": _backwards,
            "you add in both channels; the sine in the first channel of a pair has a minus sign":
                _pairs(lambda a, b, cos, sin: (a * cos + b * sin, a * sin + b * cos)),
            "you subtract in both channels; the second channel of a pair is a sin + b cos":
                _pairs(lambda a, b, cos, sin: (a * cos - b * sin, a * sin - b * cos)),
            "you subtract in both channels; the second channel of a pair is a sin + b cos, with +":
                _pairs(lambda a, b, cos, sin: (a * cos - b * sin, b * cos - a * sin)),
            "sine and cosine are exchanged; the first channel of a pair is a cos - b sin":
                _pairs(lambda a, b, cos, sin: (a * sin - b * cos, a * cos + b * sin)),
            "your second channel of a pair is b sin + a cos; it should be a sin + b cos":
                _pairs(lambda a, b, cos, sin: (a * cos - b * sin, a * cos + b * sin)),
            "the two channels of a pair are exchanged in your result":
                _pairs(lambda *args: _rotation(*args)[::-1]),
            "you only multiply each channel by its cosine; a rotation mixes the two channels of a "
            "pair": _without_sines,
            "you lose the channels that do not rotate; put them in front of the rotated ones":
                _only_rotated,
            "you put the rotated channels in front; they should stay the last ones":
                _rotated_in_front,
            "you return x as it is; its last r channels should be rotated": _unrotated,
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
            "you take one RMS over all heads together; each head should be normalised by itself, "
            "over its c channels": _queries_rms_of_all,
            "you multiply the queries by a norm weight; the RMS of the heads has none "
            "(kv_norm.weight is for kv)": _queries_weighted,
            "you leave out the RMS of each head; it should come after wq_b": _queries_without_rms,
            "you leave out q_norm, or its weight, between the two matrices; the latent should be "
            "normalised and weighted (each head's own RMS makes these two the same)":
                _queries(latent=_latent_without_norm),
            "you leave out both norms; q_norm belongs to the latent, an RMS to each head":
                _queries(latent=_latent_without_norm, norm=_unchanged),
            "you divide each head by its length, or by sqrt(c) too; RMS divides by the root of "
            "the MEAN of the squares, and nothing else": _queries(norm=_length_1),
            "you subtract the mean, as LayerNorm does; RMS only divides":
                _queries(norm=_minus_the_mean),
            "your RMS runs over the axis of the heads; it should run over the c channels of each "
            "head": _queries(norm=_rms_along(2)),
            "your RMS runs over the tokens; it should run over the c channels of each head":
                _queries(norm=_rms_along(1)),
            "you do not rotate the queries; rotate them by theta": _queries(rotate=_unrotated),
            "you rotate the queries backwards; only the layer's output is":
                lambda attn, x, theta: plain.queries(attn, x, -theta),
            "you rotate the first channels; it should be the last ones":
                _queries(rotate=rotate_first),
            "you rotate in pairs (i, i + r/2); V4 pairs neighbours":
                _queries(rotate=rotate_halves),
            "your angles meet the axis of the heads; all heads of a token have the angle of its "
            "position, so theta[:, None]": _angles_at_heads,
            "heads and channels are exchanged; the first c numbers should be head 0, so cut into "
            "(H, c)": _queries(order="(c H)"),
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
            "your window is one too wide; the query's own token counts as one of the w, so t - w "
            "should be outside": _too_wide,
            "your window is one too narrow; with the query's own token it should hold w":
                _too_narrow,
            "your mask leaves the diagonal out; a query should see itself":
                lambda T, w: plain.sees(T, w) & ~torch.eye(T, dtype=torch.bool),
            "your query sees the w tokens before it and not itself; it should see itself and the "
            "w - 1 before": _only_before,
            "your query sees w - 1 tokens on both sides; it should see no key after itself":
                lambda T, w: plain.sees(T, w) | plain.sees(T, w).mT,
            "your query sees all of the future; it should see keys s <= t only": _future_too,
            "your rows and columns are exchanged; row t should be the query":
                lambda T, w: plain.sees(T, w).mT,
            "your mask has no window, so a query sees all keys before it; it should see the last w":
                _no_window,
            "you join the two conditions with OR; both should hold":
                lambda T, w: torch.ones(T, T, dtype=torch.bool),
            "you cut the text into blocks of w; each query should have its own window, the last w "
            "tokens": _blocks,
            "your mask sees the diagonal alone; a query should see the w - 1 tokens before it too":
                lambda T, w: torch.eye(T, dtype=torch.bool),
            "True and False are exchanged; True should be where a query sees":
                lambda T, w: ~plain.sees(T, w),
            "your window is one too wide and leaves the future in; w keys up to t should be seen":
                lambda T, w: _future_too(T, w + 1),
        },
        hints=(
            "Write down for t = 5 and w = 3 which s are seen: 3, 4, 5.",
            "A column of t, torch.arange(T)[:, None], compared with a row of s, torch.arange(T), "
            "gives T x T.",
            "Two conditions, joined with &: not the future, and not further back than w - 1.",
        ),
        gradient=False,
    ),
    Check(
        "attention.sink", plain.sink_weights, _sink_cases,
        mistakes={
            "your sink has no effect: it is left out, added to all scores, or divided away again; "
            "exp(sink) should join the denominator": _softmax,
            "you add the sink to the denominator as it is; it is a score, so exp(sink) should join":
                _sink_not_exponentiated,
            "you subtract the largest score and add the sink as it is; it is a score too, so "
            "exp(sink - largest) should join": _sink_raw_after_the_shift,
            "you subtract the largest score from the scores and not from the sink; it is a score "
            "too, so exp(sink - largest) should join": _sink_not_shifted,
            "you fix the sink at 0, exp(0) = 1; each head should have its own": _sink_is_zero,
            "you add 1 to the denominator; each head's exp(sink) should join": _one,
            "you subtract the largest score and add 1 to the denominator; each head's "
            "exp(sink - largest) should join": _one_unshifted,
            "your weights are nan for a query that sees no key, since the largest of its scores "
            "is -inf; there all weights should be 0": _nan_where_nothing_is_seen,
            "you have exp(sink) in the numerator too; it should join the denominator only":
                _sink_in_the_numerator,
            "you add the sink to the largest score; it should be its own score, beside the others":
                _sink_on_the_largest,
            "your result still has the sink's weight as a last column; drop it, it has no value "
            "to weigh": _sink_column,
            "you drop the first column; the sink's is the last": _first_column_dropped,
            "your exp overflows for large scores; subtract the largest first, or let softmax do it":
                _sink_overflows,
            "you append exp(sink) to the scores; append the sink itself, softmax takes its exp":
                lambda scores, sink: plain.sink_weights(scores, sink.exp()),
            "you give each query a sink; there should be one for each head": _sink_for_each_query,
            "all heads share the mean sink; each should have its own": _sink_shared,
            "all heads take the first sink; each should have its own": _first_sink,
            "your sink has the wrong sign; exp(+sink) should join the denominator":
                lambda scores, sink: plain.sink_weights(scores, -sink),
            "you take the softmax first and divide by 1 + exp(sink); exp(sink) should join the "
            "sum of the exponentials": _divided_afterwards,
            "your softmax runs over the heads; it should run over the keys": _over_heads,
            "you multiply exp(sink) into each weight; it should join the denominator only":
                lambda scores, sink: _softmax(scores, sink) * sink.exp()[:, None],
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
            "you deal the heads to the groups one by one; a group should hold neighbouring heads, "
            "the first H/g in group 0": _interleaved,
            "you deal the channels to the groups one by one; a group should hold all channels of "
            "its heads, the first H/g heads in group 0": _channels_in_turn,
            "every group meets every block of wo_a, and you add up what comes out; group k should "
            "meet block k alone": _every_block,
            "all groups use the first block of wo_a; each should use its own": _first_block,
            "you deal the rows of wo_a to the groups one by one; its first `rank` rows should be "
            "group 0's":
                _interleaved_rows,
            "you concatenate the results rank by rank; all numbers of group 0 should come first, "
            "then all of group 1": _mixed_ranks,
            "a group's channels are in another order; they should stand head after head, each "
            "with its c channels":
                lambda o, wo_a, wo_b, groups: plain.grouped_output(
                    o.mT.reshape(o.shape), wo_a, wo_b, groups),
            "your groups meet the blocks in reverse; group 0, with the first heads, should meet "
            "the first block":
                lambda o, wo_a, wo_b, groups: plain.grouped_output(
                    o, wo_a.unflatten(0, (groups, -1)).flip(0).flatten(0, 1), wo_b, groups),
            "you return what wo_a gives; wo_b should bring it to width d":
                lambda o, wo_a, wo_b, groups: plain.grouped_output(
                    o, wo_a, torch.eye(len(wo_a)), groups),
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
            "you do not rotate the output back; rotate it by -theta of its query":
                FAULTS["output not rotated back"],
            "you rotate the output forwards once more; rotate it BACK by the query's position":
                FAULTS["output rotated forwards"],
            "you rotate the FIRST r channels; it should be the last r":
                FAULTS["rotary on the first channels"],
            "you pair the two halves; V4 pairs neighbours": FAULTS["rotary on halves"],
            "your base is compress_rope_theta, which is for layers with compression; a window-only "
            "layer has rope_theta":
                FAULTS["the other base"],
            "your values are kv before the rotation; key and value should be the same, rotated "
            "vector":
                _fault(values=_unrotated_kv),
            "your values are kv before the rotation and the output is not rotated back, as in "
            "usual attention; in V4 key and value are the same, rotated vector":
                FAULTS["values not rotated"],
            "you do not rotate the keys; rotate them by their positions":
                _fault(keys=_unrotated_kv),
            "you do not rotate the queries; rotate them by their positions":
                _fault(queries=_unrotated_queries),
            "you leave out kv_norm; it should come before the rotation":
                _fault(keys=_keys_without_norm),
            "you leave out the scale; divide the scores by sqrt(c)": FAULTS["scale missing"],
            "you divide the scores by c; divide by its root": _fault(attend=_over_c),
            "you divide the scores by sqrt(r); c is the whole width of a head": _root_of_r,
            "you take the queries' RMS over all heads together; each head should have its own":
                FAULTS["RMS over all heads"],
            "you multiply the queries' RMS by a weight; it has none":
                _fault(queries=_queries_weighted),
            "you leave out the queries' RMS; each head should have one":
                FAULTS["no RMS of queries"],
            "your window is one too wide; with the query's own token it should hold w":
                FAULTS["window one too wide"],
            "your window is one too narrow; with the query's own token it should hold w":
                FAULTS["window one too narrow"],
            "your layer has no window, so a query sees all keys before it; it should see the last "
            "w": _fault(sees=_no_window),
            "your layer has no mask at all; a query should see the last w keys up to itself":
                _fault(sees=_everything),
            "your query sees w - 1 keys on both sides; it should see no key after itself":
                _fault(sees=lambda T, w: plain.sees(T, w) | plain.sees(T, w).mT),
            "your mask is the wrong way round; True is where a query sees a key":
                _fault(sees=lambda T, w: ~plain.sees(T, w)),
            "you give hidden keys the score 0, and exp(0) = 1 still counts; give them -inf":
                _fault(attend=_masked_by_zero),
            "you take the softmax over all keys and then hide some; hide them before, with the "
            "score -inf": _fault(attend=_masked_afterwards),
            "your sink has no effect: it is left out, or added to all scores; exp(sink) should "
            "join the denominator":
                FAULTS["sink left out"],
            "you add the sink to the denominator without exp; exp(sink) should join":
                _fault(sink_weights=_sink_not_exponentiated),
            "you fix the sink at 0; each head should have its own": FAULTS["sink fixed at 0"],
            "you give the sink a value; it should have none, it only takes weight away":
                _fault(attend=_sink_has_a_value),
            "you deal the heads to the groups one by one; a group should hold neighbouring heads":
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
        "attention.debug", _named(plain.window_attention, TWO_FAULTS), _layer_cases,
        mistakes=_diagnoses(),
        hints=(
            "Both faults hide: one as long as the text is short, one as long as the layer is "
            "fresh. Compare accordingly.",
            "Which is the first row t that differs from your own layer, with sinks of 0? What is "
            "new at that row?",
            "Then set the sinks to 2 and look at the denominator: which term should depend on "
            "them?",
        ),
        atol=1e-4,
        gradient=False,
    ),
    Check(
        "attention.yarn", plain.frequencies, _yarn_cases,
        mistakes={
            "your base is compress_rope_theta in every layer; without compression it should be "
            "rope_theta":
                lambda config, ratio: plain.frequencies(
                    config.replace(rope_theta=config.compress_rope_theta), ratio),
            "your base is rope_theta in every layer; with compression it should be "
            "compress_rope_theta":
                lambda config, ratio: plain.frequencies(
                    config.replace(compress_rope_theta=config.rope_theta), ratio),
            "you take the frequencies of a layer without compression in every layer; with "
            "compression the base is compress_rope_theta, and slow pairs are stretched":
                lambda config, ratio: plain.frequencies(config, 0),
            "you stretch layers without compression too; only those with compression should be":
                lambda config, ratio: plain.frequencies(config, ratio or 4),
            "you take the logarithm of a length of 0; without compression (length 0) nothing is "
            "stretched": _without_the_case_of_0,
            "your exponent is j / r; pair j should have 2j / r, so that the r/2 pairs spread over "
            "the whole range": _frequencies(exponent=-0.5),
            "your frequencies grow with j; the exponent should be negative":
                _frequencies(exponent=1.0),
            "you count the pairs from 1; j should run from 0 to r/2 - 1": _frequencies(first=1),
            "j counts channels in your ramp, 0, 2, 4, ...; it should count pairs, 0 to r/2 - 1":
                _frequencies(place=lambda j: 2 * j),
            "j counts from 1 in your ramp; it should run from 0 to r/2 - 1":
                _frequencies(place=lambda j: j + 1),
            "you divide j - low by high; divide by high - low":
                _frequencies(width=lambda low, high: high),
            "your at(b) takes rope_theta; it should take the base that config.rope(ratio) gives":
                lambda config, ratio: frequencies_with(
                    config, ratio, pair=lambda length, b, r, base:
                    _pair(length, b, r, config.rope_theta)),
            "your ramp is the wrong way round; the SLOW pairs, large j, should be stretched, the "
            "fast ones stay": _frequencies(ramp=lambda share: 1 - share.clamp(0, 1)),
            "beta_fast and beta_slow are exchanged; low should come from beta_fast, high from "
            "beta_slow": _ends_exchanged,
            "you stretch all pairs; those that rotate often within the original length should "
            "stay as they are": _frequencies(ramp=torch.ones_like),
            "you stretch no pair; the slow ones should be divided by the factor":
                _frequencies(ramp=torch.zeros_like),
            "you speed the slow pairs up; to stretch is to DIVIDE the frequency by the factor":
                _frequencies(mix=lambda w, factor, share: w * factor * share + w * (1 - share)),
            "you do not clamp the ramp; it should stay within 0 and 1":
                _frequencies(ramp=_identity),
            "you have a step instead of a ramp; between low and high the share should grow":
                _frequencies(ramp=lambda share: (share >= 1) * 1.0),
            "you do not round low and high; take the floor of low and the ceiling of high":
                _frequencies(low=_identity, high=_identity),
            "you round low up and high down; take the floor of low and the ceiling of high":
                _frequencies(low=math.ceil, high=math.floor),
            "you round both down; take the floor of low and the ceiling of high":
                _frequencies(high=math.floor),
            "you round low and high to the nearest; take the floor of low and the ceiling of high":
                _frequencies(low=round, high=round),
            "your high is at most r/2 - 1; it should be at most r - 1":
                _frequencies(most=lambda r: r // 2 - 1),
            "your high has no upper bound; it should be at most r - 1":
                _frequencies(most=lambda r: math.inf),
            "your low may be negative; it should be at least 0": _frequencies(least=-math.inf),
            "you write length / 2 * pi * b, which multiplies by pi b; divide by (2 * pi * b)":
                _frequencies(pair=lambda length, b, r, base:
                             r * math.log(length / 2 * math.pi * b) / (2 * math.log(base))),
            "you leave out 2 pi in at(b); a full turn is 2 pi radians":
                _frequencies(pair=lambda length, b, r, base:
                             _pair(length, b / (2 * math.pi), r, base)),
            "you leave out the 2 below the line in at(b); there should be 2 ln base":
                _frequencies(pair=lambda *args: 2 * _pair(*args)),
            "you average the periods; the ramp should weigh frequencies":
                _frequencies(mix=_mean_of_periods),
            "your factor is 16 always; take config.rope_factor": _configured(rope_factor=16.0),
            "your numbers of turns are 32 and 1 always; take config.beta_fast and beta_slow":
                _configured(beta_fast=32.0, beta_slow=1.0),
            "your length is 65,536 always; take the one that config.rope(ratio) gives":
                _configured(original_seq_len=65536),
        },
        hints=(
            "Four lines: the plain frequencies, low and high, the ramp, the weighted mean of "
            "w / factor and w. base, length = config.rope(ratio).",
            "low = max(floor(at(beta_fast)), 0), high = min(ceil(at(beta_slow)), r - 1): whole "
            "numbers, from math.floor and math.ceil.",
            "ramp = ((j - low) / (high - low)).clamp(0, 1) for j = 0 ... r/2 - 1; where it is 1, "
            "the frequency is w / factor. A length of 0 means no YaRN.",
        ),
        atol=1e-9,
        gradient=False,
    ),
]
