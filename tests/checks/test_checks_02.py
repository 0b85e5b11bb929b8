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


def output_by_loop(o, wo_a, wo_b, groups):
    pairs = zip(o.chunk(groups, 2), wo_a.chunk(groups, 0))
    parts = [part.flatten(2) @ block.T for part, block in pairs]
    return torch.cat(parts, -1) @ wo_b.T


def layer_by_package(attn, x):
    layer = Attention(attn.config, attn.ratio).eval()
    layer.load_state_dict(attn.state_dict())
    return layer(x).detach()


def frequencies_by_package(config, ratio):
    return rotary.frequencies(config, ratio)


@pytest.mark.parametrize("name, attempt", [
    ("attention.angles", angles_by_outer), ("attention.rotate", rotate_by_complex),
    ("attention.queries", queries_rotated_before_the_norm), ("attention.window", sees_by_tril),
    ("attention.sink", sink_by_hand), ("attention.output", output_by_loop),
    ("attention.layer", layer_by_package), ("attention.debug", layer_by_package),
    ("attention.yarn", frequencies_by_package),
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


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt, words", [
    ("attention.rotate", rotate_half, "pairs are made of the two halves"),
    ("attention.layer", lambda *a: layer(*a, back=0), "the output is not rotated back"),
    ("attention.layer", lambda *a: layer(*a, back=1), "rotated BACK"),
    ("attention.layer", lambda *a: layer(*a, window=5), "the window is one too wide"),
    ("attention.layer", lambda *a: layer(*a, scale=False), "the scale 1 / sqrt(c) is missing"),
    ("attention.layer", lambda *a: layer(*a, sink=False), "the sink has no effect"),
    ("attention.layer", lambda *a: layer(*a, base=160000.0), "the base is compress_rope_theta"),
    ("attention.layer", lambda attn, x: x, "In the case \"one token\""),
    ("attention.layer", lambda attn, x: attn(x),
     "it raised NotImplementedError: Module [Attention]"),
    ("attention.output", lambda o, wo_a, wo_b, groups: o.flatten(2), "expected shape"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


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
