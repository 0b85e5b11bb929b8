"""Lesson 02: right answers written otherwise pass, slips are named, the figures draw."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from minids import plain
from minids.learn.checks import attention as checks
from minids.learn.judge import check
from minids.model import rotary
from minids.model.attention import Attention
from minids.show import attention as figures


def angles_by_outer(positions, w):
    return torch.outer(positions.float(), w)


def rotate_by_complex(x, theta):
    r = 2 * theta.shape[-1]
    pairs = torch.view_as_complex(x[..., -r:].unflatten(-1, (-1, 2)).contiguous())
    rotated = torch.view_as_real(pairs * torch.polar(torch.ones_like(theta), theta)).flatten(-2)
    return torch.cat([x[..., :-r], rotated], -1)


def queries_rotated_before_the_norm(attn, x, theta):
    """A rotation keeps lengths: the order of RMS and rotation does not matter."""
    q = attn.wq_b(attn.q_norm(attn.wq_a(x))).unflatten(-1, (attn.config.n_heads, -1))
    return plain.rms(plain.rotate(q, theta[:, None]))


def sees_by_tril(T, w):
    return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - w)


def sink_by_hand(scores, sink):
    top = torch.maximum(scores.amax(-1, keepdim=True), sink[:, None])
    e = (scores - top).exp()
    return e / (e.sum(-1, keepdim=True) + (sink[:, None] - top).exp())


def sink_by_logaddexp(scores, sink):
    """For a query that sees no key, the gradient of logsumexp is nan at scores of -inf."""
    total = torch.logaddexp(scores.logsumexp(-1), sink)
    return (scores - total[..., None]).exp()


def output_by_loop(o, wo_a, wo_b, groups):
    pairs = zip(o.chunk(groups, 2), wo_a.chunk(groups, 0))
    parts = [part.flatten(2) @ block.T for part, block in pairs]
    return torch.cat(parts, -1) @ wo_b.T


def layer_by_package(attn, x):
    layer = Attention(attn.config, attn.ratio).eval()
    layer.load_state_dict(attn.state_dict())
    return layer(x)


def frequencies_by_package(config, ratio):
    return rotary.frequencies(config, ratio)


def rotate_by_slices(x, theta):
    r = 2 * theta.shape[-1]
    out = x.clone()
    a, b = x[..., -r::2], x[..., x.shape[-1] - r + 1::2]
    out[..., -r::2] = a * torch.cos(theta) - b * torch.sin(theta)
    out[..., x.shape[-1] - r + 1::2] = b * torch.cos(theta) + a * torch.sin(theta)
    return out


def queries_head_by_head(attn, x, theta):
    q, heads = attn.wq_b(attn.q_norm(attn.wq_a(x))), []
    for head in q.chunk(attn.config.n_heads, dim=-1):
        head = head / (head.pow(2).sum(-1, keepdim=True) / head.shape[-1] + 1e-6) ** 0.5
        heads.append(rotate_by_slices(head, theta))
    return torch.stack(heads, dim=2)


def sees_by_loops(T, w):
    return torch.tensor([[max(0, t - w + 1) <= s <= t for s in range(T)] for t in range(T)])


def sink_by_logsumexp(scores, sink):
    column = sink.repeat(*scores.shape[:2], 1)[..., None]
    total = torch.cat([column, scores], -1).logsumexp(-1, keepdim=True)
    return (scores - total).exp()


def output_by_blocks(o, wo_a, wo_b, groups):
    full = torch.block_diag(*wo_a.chunk(groups))
    return torch.nn.functional.linear(o.flatten(2) @ full.mT, wo_b)


def layer_by_loops(attn, x):
    """Query by query, each with a list of its keys."""
    config, T = attn.config, x.shape[1]
    theta = angles_by_outer(torch.arange(T), plain.frequencies(config, 0))
    q, k = queries_head_by_head(attn, x, theta), plain.keys(attn, x, theta)
    out = []
    for t in range(T):
        keys = k[:, max(0, t - config.window_size + 1):t + 1]
        scores = q[:, t] @ keys.mT / math.sqrt(config.head_dim)
        p = sink_by_hand(scores[:, None], attn.attn_sink)[:, 0]
        out.append(rotate_by_slices(p @ keys, -theta[t]))
    return output_by_loop(torch.stack(out, 1), attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def frequencies_by_loop(config, ratio):
    r = config.rope_head_dim
    base, length = config.rope(ratio)

    def at(b):
        return r / 2 * (math.log(length) - math.log(2 * math.pi * b)) / math.log(base)
    if length:
        low, high = max(0, math.floor(at(config.beta_fast))), math.ceil(at(config.beta_slow))
        high = min(high, r - 1)
    result = []
    for j in range(r // 2):
        w = base ** (-2 * j / r)
        share = min(max((j - low) / (high - low), 0), 1) if length else 0
        result.append(w * (1 - share + share / config.rope_factor))
    return torch.tensor(result)


def with_names(layer, *names):
    return checks.diagnosed(lambda attn, x: (layer(attn, x), names))


def not_written(attn, x):
    raise NotImplementedError("your turn")


RIGHT = "window one too wide", "sink fixed at 0"


@pytest.mark.parametrize("name, attempt", [
    ("attention.angles", angles_by_outer),
    ("attention.angles", lambda p, w: torch.stack([i * w for i in p])),
    ("attention.rotate", rotate_by_complex), ("attention.rotate", rotate_by_slices),
    ("attention.queries", queries_rotated_before_the_norm),
    ("attention.queries", queries_head_by_head), ("attention.window", sees_by_tril),
    ("attention.window", sees_by_loops), ("attention.sink", sink_by_logsumexp),
    ("attention.sink", sink_by_logaddexp),
    ("attention.output", output_by_loop), ("attention.output", output_by_blocks),
    ("attention.layer", layer_by_package), ("attention.layer", layer_by_loops),
    ("attention.debug", with_names(layer_by_package, *RIGHT)),
    ("attention.debug", with_names(layer_by_loops, *reversed(RIGHT))),
    ("attention.debug", checks.diagnosed(lambda *a: (layer_by_loops(*a), *RIGHT))),
    ("attention.debug", checks.diagnosed(lambda *a: [layer_by_loops(*a), {
        "Sink fixed at 0", " window one too wide"}])),
    ("attention.yarn", frequencies_by_package), ("attention.yarn", frequencies_by_loop),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def rotate_half(x, theta):
    """The usual rotate_half."""
    r = 2 * theta.shape[-1]
    still, x = x[..., :-r], x[..., -r:]
    a, b = x.chunk(2, -1)
    both = torch.cat([theta, theta], -1)
    return torch.cat([still, x * both.cos() + torch.cat([-b, a], -1) * both.sin()], -1)


def layer(attn, x, back=-1, window=None, scale=True, sink=True, base=None):
    """A layer written apart from the checks' own one, with the slips of a learner."""
    c, T = attn.config, x.shape[1]
    w = (base or c.rope_theta) ** (-torch.arange(0, c.rope_head_dim, 2) / c.rope_head_dim)
    theta = angles_by_outer(torch.arange(T), w)
    q = queries_rotated_before_the_norm(attn, x, theta)
    k = rotate_by_complex(attn.kv_norm(attn.wkv(x)), theta)
    s = torch.einsum("bthc,bsc->bths", q, k) * (c.head_dim ** -0.5 if scale else 1)
    s = s.masked_fill(~sees_by_tril(T, window or c.window_size)[:, None], -math.inf)
    p = sink_by_hand(s, attn.attn_sink) if sink else (s + attn.attn_sink[:, None]).softmax(-1)
    o = rotate_by_complex(p @ k[:, None], back * theta[:, None])
    return output_by_loop(o, attn.wo_a.weight, attn.wo_b.weight, c.o_groups)


def shifted_sink(scores, sink, z=lambda sink, top: (sink - top).exp(), e_of=torch.exp):
    """A sink as many write it; a row of nothing but -inf gives nan."""
    top = scores.amax(-1, keepdim=True)
    e = e_of(scores - top)
    return e / (e.sum(-1, keepdim=True) + z(sink[:, None], top))


def rotate_pairs(x, theta, first, second, put=lambda a, b: torch.stack([a, b], -1).flatten(-2)):
    r = 2 * theta.shape[-1]
    a, b = x[..., -r::2], x[..., x.shape[-1] - r + 1::2]
    a, b = first(a, b, theta.cos(), theta.sin()), second(a, b, theta.cos(), theta.sin())
    return torch.cat([x[..., :-r], put(a, b)], -1)


def rotate_in_place(x, theta):
    r = 2 * theta.shape[-1]
    pairs = x[..., -r:].unflatten(-1, (-1, 2))
    a, b = pairs.unbind(-1)
    pairs[..., 0] = a * theta.cos() - b * theta.sin()
    pairs[..., 1] = a * theta.sin() + b * theta.cos()
    return x


def rotate_halves_put_side_by_side(x, theta):
    return rotate_pairs(x, theta, lambda a, b, c, s: a * c - b * s,
                        lambda a, b, c, s: a * s + b * c, lambda a, b: torch.cat([a, b], -1))


def rotate_in_two_steps(x, theta):
    return rotate_pairs(x, theta, lambda a, b, c, s: a * c - b * s,
                        lambda a, b, c, s: (a * c - b * s) * s + b * c)


def rotate_other_way(x, theta):
    return rotate_pairs(x, theta, lambda a, b, c, s: a * c + b * s,
                        lambda a, b, c, s: b * c - a * s)


def queries(attn, x, theta, latent=None, norm=plain.rms, cut="hc"):
    q = attn.wq_b(latent(attn, x) if latent else attn.q_norm(attn.wq_a(x)))
    H, c = attn.config.n_heads, attn.config.head_dim
    q = q.unflatten(-1, (H, c)) if cut == "hc" else q.unflatten(-1, (c, H)).mT
    return plain.rotate(norm(q), theta[:, None])


def rms_before_the_cut(attn, x, theta):
    q = plain.rms(attn.wq_b(attn.q_norm(attn.wq_a(x))))
    return plain.rotate(q.unflatten(-1, (attn.config.n_heads, -1)), theta[:, None])


def mask(condition):
    return lambda T, w: condition(torch.arange(T)[:, None], torch.arange(T), w)


def output(o, wo_a, wo_b, groups, cut=None):
    o = cut(o, groups) if cut else o.flatten(2).unflatten(-1, (groups, -1))
    u = torch.einsum("btgi,gri->btgr", o, wo_a.unflatten(0, (groups, -1)))
    return u.flatten(2) @ wo_b.T


def output_rank_by_rank(o, wo_a, wo_b, groups):
    u = torch.einsum("btgi,gri->btrg", o.flatten(2).unflatten(-1, (groups, -1)),
                     wo_a.unflatten(0, (groups, -1)))
    return u.flatten(2) @ wo_b.T


def yarn(config, ratio, two_pi=True, step=1, ends="fast", cap=None, low_bound=0, plain_at_0=True):
    r = config.rope_head_dim
    base, length = config.rope(ratio)
    w = base ** (-torch.arange(0, r, 2) / r)
    if length == 0 and plain_at_0:
        return w

    def at(b):
        inside = length / (2 * math.pi * b) if two_pi else length / 2 * math.pi * b
        return r * math.log(inside) / (2 * math.log(base))
    fast, slow = config.beta_fast, config.beta_slow
    if ends == "slow":
        fast, slow = slow, fast
    low = max(math.floor(at(fast)), low_bound)
    high = min(math.ceil(at(slow)), cap(r) if cap else r - 1)
    ramp = ((step * torch.arange(r // 2) - low) / (high - low)).clamp(0, 1)
    return w / config.rope_factor * ramp + w * (1 - ramp)


@pytest.mark.parametrize("name, attempt, words", [
    ("attention.angles", lambda p, w: torch.arange(p.numel())[:, None] * w, "count from 0"),
    ("attention.angles", lambda p, w: p * w, "needs a new axis"),
    ("attention.angles", lambda p, w: p[:, None] / w, "divide the positions by w;"),
    ("attention.angles", lambda p, w: p[:, None] // w, "drop the fraction"),
    ("attention.angles", lambda p, w: torch.outer(w, p.float()), "rows and columns"),
    ("attention.angles", lambda p, w: torch.outer(p.float(), w).repeat(1, 2), "in two halves"),
    ("attention.angles", lambda p, w: torch.outer(p + 1.0, w), "from 1"),
    ("attention.angles", lambda p, w: 2 * math.pi * torch.outer(p.float(), w), "by 2 pi"),
    ("attention.rotate", rotate_half, "pair the two halves"),
    ("attention.rotate", rotate_halves_put_side_by_side, "side by side"),
    ("attention.rotate", rotate_in_two_steps, "the first channel after its change"),
    ("attention.rotate", rotate_other_way, "the wrong direction"),
    ("attention.rotate", lambda x, theta: rotate_by_complex(x, theta)[..., -2 * theta.shape[-1]:],
     "lose the channels"),
    ("attention.rotate", rotate_in_place, "you write into x"),
    ("attention.queries", rms_before_the_cut, "over all heads together"),
    ("attention.queries", lambda *a: queries(*a, norm=lambda q: q), "leave out the RMS of each"),
    ("attention.queries", lambda *a: queries(*a, latent=lambda attn, x: attn.wq_a(x)),
     "leave out q_norm"),
    ("attention.queries", lambda *a: queries(*a, norm=lambda q: q / q.norm(dim=-1, keepdim=True)),
     "MEAN of the squares"),
    ("attention.queries", lambda attn, x, theta: queries(attn, x, -theta), "backwards"),
    ("attention.queries", lambda *a: queries(*a, cut="ch"), "heads and channels"),
    ("attention.window", mask(lambda t, s, w: (s <= t) & (s >= t - w)), "one too wide"),
    ("attention.window", mask(lambda t, s, w: (s <= t) & (t - s < w - 1)), "one too narrow"),
    ("attention.window", mask(lambda t, s, w: (s < t) & (s > t - w)), "leaves the diagonal out"),
    ("attention.window", mask(lambda t, s, w: (t - s).abs() < w), "on both sides"),
    ("attention.window", mask(lambda t, s, w: s > t - w), "all of the future"),
    ("attention.window", mask(lambda t, s, w: (s >= t) & (s < t + w)), "rows and columns"),
    ("attention.window", mask(lambda t, s, w: s <= t), "has no window"),
    ("attention.window", mask(lambda t, s, w: (s > t) | (s <= t - w)), "True and False"),
    ("attention.sink", lambda scores, sink: (scores + sink[:, None]).softmax(-1).nan_to_num(),
     "no effect"),
    ("attention.sink", lambda scores, sink:
     scores.exp() / (scores.exp().sum(-1, keepdim=True) + sink.exp()[:, None]), "overflows"),
    ("attention.sink", lambda scores, sink: torch.cat(
        [scores, sink[:, None].expand(*scores.shape[:-1], 1)], -1).softmax(-1), "last column"),
    ("attention.sink", lambda scores, sink: torch.cat(
        [scores, sink[0].expand(*scores.shape[:-1], 1)], -1).softmax(-1)[..., :-1], "first sink"),
    ("attention.sink", lambda scores, sink: sink_by_logsumexp(scores, sink.exp()),
     "append exp(sink)"),
    ("attention.sink", shifted_sink, "nan for a query that sees no key"),
    ("attention.output", lambda *a: output(*a, cut=lambda o, g: o.unflatten(2, (-1, g))
     .transpose(2, 3).flatten(3)), "deal the heads"),
    ("attention.output", lambda *a: output(*a, cut=lambda o, g: o.flatten(2).unflatten(-1, (-1, g))
     .mT), "deal the channels"),
    ("attention.output", lambda *a: output(*a, cut=lambda o, g: o.mT.flatten(2)
     .unflatten(-1, (g, -1))), "another order"),
    ("attention.output", lambda o, wo_a, wo_b, groups: sum(
        part.flatten(2) @ block.T for part in o.chunk(groups, 2)
        for block in wo_a[None]) @ wo_b.T, "meets every block"),
    ("attention.output", output_rank_by_rank, "rank by rank"),
    ("attention.output", lambda o, wo_a, wo_b, groups: o.flatten(2), "expected shape"),
    ("attention.layer", lambda *a: layer(*a, back=0), "do not rotate the output back"),
    ("attention.layer", lambda *a: layer(*a, back=1), "rotate it BACK"),
    ("attention.layer", lambda *a: layer(*a, window=5), "window is one too wide"),
    ("attention.layer", lambda *a: layer(*a, window=3), "window is one too narrow"),
    ("attention.layer", lambda *a: layer(*a, window=1000), "has no window"),
    ("attention.layer", lambda *a: layer(*a, scale=False), "leave out the scale"),
    ("attention.layer", lambda *a: layer(*a, sink=False), "your sink has no effect"),
    ("attention.layer", lambda *a: layer(*a, base=160000.0), "your base is compress_rope_theta"),
    ("attention.layer", lambda attn, x: x, "In the case \"one token\""),
    ("attention.debug", checks.diagnosed(layer), "names of the two faults too. The notebook"),
    ("attention.debug", checks.diagnosed(lambda *a: layer(*a, window=5)),
     "return the output alone; return the names of the two faults too; also, a long text still"),
    ("attention.debug", checks.diagnosed(lambda *a: layer(*a, window=3)), "one too narrow now"),
    ("attention.debug", checks.diagnosed(lambda *a: layer(*a, sink=False)), "has no effect"),
    ("attention.debug", with_names(lambda *a: layer(*a, window=5), "both", "wrong"),
     "Likely: a long text still shows a fault."),
    ("attention.debug", with_names(layer, "?", "??", "???"), "is '0 right, 3 wrong', and should"),
    ("attention.debug", checks.diagnosed(lambda *a: "window"),
     "expected the output and then the names of the two faults, found a str"),
    ("attention.debug", with_names(layer, *RIGHT, "scale missing"), "more than two faults"),
    ("attention.debug", with_names(layer, RIGHT[0], "scale missing"), "the other is wrong"),
    ("attention.debug", with_names(layer, RIGHT[1]), "your layer is right; you name one"),
    ("attention.debug", with_names(layer), "you name no fault"),
    ("attention.debug", with_names(lambda *a: layer(*a, window=5), *RIGHT),
     "Likely: a long text still shows a fault."),
    ("attention.yarn", lambda *a: yarn(*a, step=2), "counts channels in your ramp"),
    ("attention.yarn", lambda *a: yarn(*a, two_pi=False), "multiplies by pi b"),
    ("attention.yarn", lambda *a: yarn(*a, ends="slow"), "beta_fast and beta_slow are exchanged"),
    ("attention.yarn", lambda *a: yarn(*a, cap=lambda r: r // 2 - 1), "at most r/2 - 1"),
    ("attention.yarn", lambda *a: yarn(*a, cap=lambda r: 1000), "no upper bound"),
    ("attention.yarn", lambda *a: yarn(*a, low_bound=-99), "may be negative"),
    ("attention.yarn", lambda *a: yarn(*a, plain_at_0=False), "a length of 0"),
    ("attention.yarn", lambda config, ratio: plain.frequencies(config, 0),
     "a layer without compression in every layer"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("z, words", [
    (lambda sink, top: sink.exp(), "from the scores and not from the sink"),
    (lambda sink, top: sink, "add the sink as it is"),
    (lambda sink, top: 1, "add 1 to the denominator"),
    (lambda sink, top: (-top).exp(), "fix the sink at 0"),
    (lambda sink, top: (-sink - top).exp(), "the wrong sign"),
])
def test_a_slip_beside_a_row_of_nothing_but_inf_does_not_pass(z, words, capsys):
    """Many who subtract the largest score also get nan in that row, without the slip, too."""
    def attempt(scores, sink):
        return shifted_sink(scores, sink, z).nan_to_num()
    for version in (attempt, lambda *a: shifted_sink(*a, z)):
        assert check("attention.sink", version) is not version
    assert check("attention.sink", attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_an_empty_exercise_in_its_wrapper_is_not_attempted(capsys):
    check("attention.debug", checks.diagnosed(not_written))
    assert capsys.readouterr().out.startswith("[not attempted]")


def test_the_separate_layer_is_right():
    assert check("attention.layer", layer) is layer


@pytest.mark.parametrize("name, moves", [
    ("output not rotated back", True), ("output rotated forwards", True),
    ("rotary on halves", False), ("values not rotated", False), ("sink left out", False),
    (None, False)])
def test_only_a_missing_rotation_back_lets_the_place_out(name, moves):
    """The claim of the lesson's table: after 1,000 other tokens these layers give other outputs."""
    attn = checks.lively(torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    x, others = torch.randn(1, 30, 20, generator=rng), torch.randn(1, 1000, 20, generator=rng)
    layer = checks.FAULTS[name] if name else plain.window_attention
    here = layer(attn, x)[:, 5:]                    # the window of 4 lies within x
    there = layer(attn, torch.cat([others, x], 1))[:, 1005:]
    assert ((there - here).norm() / here.norm() > 0.01) == moves


@pytest.mark.slow
def test_the_figures_draw():
    line = torch.rand(40, 40).tril()
    for figure in (figures.plot_path(),
                   figures.plot_by_position({"a": [1.0] * 40, "b": [2.0] * 40}),
                   figures.plot_cache({"a": 10, "V4": 20}), figures.plot_channels(),
                   figures.plot_compass_needles([0.0, 1.0], [1.0, 1.0], [2, 3]),
                   figures.plot_reach({1: line, 2: line}, 8),
                   figures.plot_distance({"a": [[1.0, 0.5]]}, [0, 5], 0.1),
                   figures.plot_groups(line, 2, {"Flash": (10, 5)}),
                   figures.plot_sinks([[0.1, 0.9]], [[0.0, 0.1]], {"none": 1.0, 0: 0.5}),
                   figures.plot_periods({"a": torch.rand(8)}, {"w": 128}),
                   figures.plot_faults(["a"], ["x", "y"], [[0.1, 0.2]], [0.5, 0.5])):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
