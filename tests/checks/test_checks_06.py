"""Lesson 06: right answers written otherwise pass, slips are named, claims hold, figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import plain
from minids.config import Config
from minids.learn.checks import moe as checks
from minids.learn.judge import check
from minids.model.moe import Gate, balance, sequence_balance
from minids.show import moe as pictures

SMALL = Config(**checks.SIZES)


def expert_with_g_after_w2(x, w1, w2, w3, limit, g):
    gate, up = x @ w1.T, x @ w3.T
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return g * ((F.silu(gate) * up) @ w2.T)


def layer_token_by_token(ffn, x, g):
    def run(expert, x, g):
        limit = ffn.gate.config.swiglu_limit
        w1, w2, w3 = expert.w1.weight, expert.w2.weight, expert.w3.weight
        return plain.expert_forward(x, w1, w2, w3, limit, g)

    rows = []
    for n in range(len(x)):
        chosen = g[n].nonzero().squeeze(1)
        rows.append(sum(run(ffn.experts[e], x[n:n + 1], g[n, e]) for e in chosen))
    return torch.cat(rows) + run(ffn.shared_experts, x, 1.0)


def grouped_by_package(ffn, x, g):
    y = ffn.shared_experts(x)
    for e, expert in enumerate(ffn.experts):
        y = y + g[:, e, None] * expert(x)
    return y


def route_with_a_mask(x, weight, bias, K, scale):
    s = torch.logaddexp(x @ weight.T, torch.zeros(())).sqrt()
    kth = (s + bias).topk(K).values[:, -1:]
    g = s * (s + bias >= kth)
    return scale * g / g.sum(1, keepdim=True)


def loss_of_package(s, experts):
    total, count = sequence_balance(s.flatten(0, 1), experts.flatten(0, 1), len(s))
    return total / count


@pytest.mark.parametrize("name, attempt", [
    ("moe.expert", expert_with_g_after_w2), ("moe.layer", layer_token_by_token),
    ("moe.grouped", grouped_by_package),
    ("moe.route", route_with_a_mask),
    ("moe.sequence_balance", checks.with_gradient(loss_of_package)),
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(load * len(load) - load.sum())),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def test_an_affinity_without_the_root_is_named_in_any_spelling(capsys):
    def attempt(x, weight, bias, K, scale):
        return checks.route_with(x, weight, bias, K, scale, score=lambda v: (1 + v.exp()).log())
    check("moe.route", attempt)
    assert "without the square root" in capsys.readouterr().out


def test_the_bias_step_is_the_package():
    gate = Gate(SMALL, is_hash=False)
    load = torch.tensor([5, 0, 3, 3, 4])       # the mean is 3
    expected = checks.bias_step(gate.bias, load, 0.01)
    balance(gate, [load], 0.01)
    assert torch.equal(gate.bias, expected)
    torch.testing.assert_close(gate.bias, torch.tensor([-0.01, 0.01, 0, 0, -0.01]))


def test_a_balanced_table_is_more_even_than_random_ones():
    rng = torch.Generator().manual_seed(0)
    p = 1 / torch.arange(1.0, 301)
    p /= p.sum()

    def worst(table):
        load = torch.bincount(table.flatten(), weights=p.repeat_interleave(2), minlength=8)
        return (load.max() / load.mean()).item()
    table = checks.balanced_table(p, 8, 2)
    assert (table[:, 0] < table[:, 1]).all() and worst(table) < 1.05
    assert all(worst(torch.rand(300, 8, generator=rng).argsort(1)[:, :2]) > 1.05 for _ in range(20))


def test_the_balance_loss_is_one_when_even_and_e_over_k_when_collapsed():
    s, experts = torch.ones(1, 4, 2), torch.tensor([[[0], [1], [0], [1]]])
    assert checks.sequence_balance(s, experts) == 1
    certain = torch.tensor([[[1.0, 0.0]] * 4])
    assert checks.sequence_balance(certain, torch.zeros(1, 4, 1, dtype=torch.int64)) == 2


@pytest.mark.slow
def test_the_figures_draw():
    loads = torch.rand(40, 16, generator=torch.Generator().manual_seed(0))
    runs = {"a": loads, "b": loads.flip(1)}
    for figure in (pictures.plot_layer(), pictures.plot_affinities(), pictures.plot_clamps(),
                   pictures.plot_sorting([[2, 0], [0, 1]], 3),
                   pictures.plot_zipf([0.3, 0.2] + [0.01] * 50, [1.2, 1.4], [1.0, 1.1], 1.3),
                   pictures.plot_load_curves({"a": loads[:, None].repeat(1, 2, 1)}),
                   pictures.plot_load_maps(runs), pictures.plot_loads_at(runs, 20),
                   pictures.plot_agreement({"a": torch.eye(3), "b": torch.eye(3)}, [0, 10, 20]),
                   pictures.plot_specialists({"a": torch.rand(3, 8), "b": torch.rand(3, 8)},
                                             ["x", "y", "z"]),
                   pictures.plot_losses({"a": 0.0, "b": 0.5})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
