"""Lesson 02: the references are the package, right answers written otherwise pass, slips are named, the figures draw."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from minids.config import Config
from minids.learn.checks import attention as checks
from minids.learn.judge import check
from minids.model import rotary
from minids.show import attention as figures


def test_the_reference_is_the_package():
    """The plain layer that the checks compare with equals minids' Attention, in nano's sizes too."""
    for config in (checks.TINY, Config.nano()):
        attn = checks.lively(torch.Generator().manual_seed(5), config)
        x = torch.randn(2, 70, config.dim, generator=torch.Generator().manual_seed(6))
        torch.testing.assert_close(checks.window_attention(attn, x), attn(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [Config.nano(), Config.mini(), Config.flash()])
def test_the_frequencies_are_the_packages(config):
    plain = checks.angles(torch.tensor([1]), config.rope_head_dim, config.rope_theta)[0]
    torch.testing.assert_close(plain, rotary.frequencies(config, 0))
    stretched = checks.yarn(config.rope_head_dim, config.compress_rope_theta, config.original_seq_len, config.rope_factor,
                            config.beta_fast, config.beta_slow)
    torch.testing.assert_close(stretched, rotary.frequencies(config, 4))


def angles_by_outer(positions, r, base):
    return torch.outer(positions.float(), 1.0 / base ** (torch.arange(0, r, 2, dtype=torch.float32) / r))


def turn_by_complex(x, angles):
    r = 2 * angles.shape[-1]
    pairs = torch.view_as_complex(x[..., -r:].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat([x[..., :-r], turned], -1)


def queries_turned_before_the_norm(attn, x, angles):
    """A turn keeps lengths: the order of RMS and turn does not matter."""
    q = attn.wq_b(attn.q_norm(attn.wq_a(x))).unflatten(-1, (attn.config.n_heads, -1))
    return checks._rms(checks.turn(q, angles[:, None]))


def sees_by_tril(T, w):
    return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - w)


def sink_by_hand(scores, sink):
    top = torch.maximum(scores.amax(-1, keepdim=True), sink[:, None])
    e = (scores - top).exp()
    return e / (e.sum(-1, keepdim=True) + (sink[:, None] - top).exp())


def output_by_loop(o, wo_a, wo_b, groups):
    parts = [part.flatten(2) @ block.T for part, block in zip(o.chunk(groups, 2), wo_a.chunk(groups, 0))]
    return torch.cat(parts, -1) @ wo_b.T


def layer_by_package(attn, x, start=0):
    """minids' layer: the output does not depend on where the text starts."""
    return attn(x)


@pytest.mark.parametrize("name, attempt", [
    ("attention.angles", angles_by_outer), ("attention.turn", turn_by_complex),
    ("attention.queries", queries_turned_before_the_norm), ("attention.window", sees_by_tril), ("attention.sink", sink_by_hand),
    ("attention.output", output_by_loop), ("attention.layer", layer_by_package), ("attention.debug", layer_by_package),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def turn_of_the_halves_by_rotation(x, angles):
    """The usual rotate_half."""
    r = 2 * angles.shape[-1]
    still, x = x[..., :-r], x[..., -r:]
    a, b = x.chunk(2, -1)
    both = torch.cat([angles, angles], -1)
    return torch.cat([still, x * both.cos() + torch.cat([-b, a], -1) * both.sin()], -1)


def layer(attn, x, start=0, back=-1, window=None, scale=True, sink=True, base=None):
    """A layer written apart from the checks' own one, with the slips of a learner."""
    c, T = attn.config, x.shape[1]
    a = angles_by_outer(torch.arange(start, start + T), c.rope_head_dim, base or c.rope_theta)
    q, k = queries_turned_before_the_norm(attn, x, a), turn_by_complex(attn.kv_norm(attn.wkv(x)), a)
    s = torch.einsum("bthc,bsc->bths", q, k) * (c.head_dim ** -0.5 if scale else 1)
    s = s.masked_fill(~sees_by_tril(T, window or c.window_size)[:, None], -math.inf)
    p = sink_by_hand(s, attn.attn_sink) if sink else (s + attn.attn_sink[:, None]).softmax(-1)
    return output_by_loop(turn_by_complex(p @ k[:, None], back * a[:, None]), attn.wo_a.weight, attn.wo_b.weight, c.o_groups)


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt, words", [
    ("attention.turn", turn_of_the_halves_by_rotation, "pairs are made of the two halves"),
    ("attention.layer", lambda *a: layer(*a, back=0), "the output is not turned back"),
    ("attention.layer", lambda *a: layer(*a, back=1), "turned BACK"),
    ("attention.layer", lambda *a: layer(*a, window=5), "the window is one too wide"),
    ("attention.layer", lambda *a: layer(*a, scale=False), "the scale 1 / sqrt(c) is missing"),
    ("attention.layer", lambda *a: layer(*a, sink=False), "the sink has no effect"),
    ("attention.layer", lambda *a: layer(*a, base=160000.0), "the base is compress_rope_theta"),
    ("attention.layer", lambda attn, x, start=0: x, "In the case \"one token\""),
    ("attention.output", lambda o, wo_a, wo_b, groups: o.flatten(2), "expected shape"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


def test_the_separate_layer_is_right():
    assert check("attention.layer", layer) is layer


@pytest.mark.parametrize("name, moves", [
    ("no inverse turn", True), ("inverse turn forwards", True), ("rotary on halves", False), ("values not turned", False),
    ("sink left out", False), (None, False)])
def test_only_a_missing_inverse_turn_lets_the_place_out(name, moves):
    """The claim of the lesson's table: shifted by 1000 positions, these layers answer otherwise and no others."""
    attn = checks.lively(torch.Generator().manual_seed(1))
    x = torch.randn(1, 30, 20, generator=torch.Generator().manual_seed(2))
    layer = checks.FAULTS[name] if name else checks.window_attention
    shift = (layer(attn, x, 1000) - layer(attn, x)).norm() / layer(attn, x).norm()
    assert (shift > 0.01) == moves


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
