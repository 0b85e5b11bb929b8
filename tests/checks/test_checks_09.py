"""Lesson 09: references are the package's optimiser, with V4's own coefficients."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minids.learn.checks import muon as checks
from minids.learn.judge import check
from minids.pretrain import optim
from minids.show import muon as figures


def test_the_references_are_what_the_package_computes():
    rng = torch.Generator().manual_seed(1)
    for shape in ((5, 9), (9, 5), (6, 6)):
        W, G, M = (torch.randn(shape, generator=rng) for _ in range(3))
        expected = optim.orthogonalise(G[None])[0]
        torch.testing.assert_close(checks.orthogonalise(G), expected, atol=1e-5, rtol=1e-4)
        p = torch.nn.Parameter(W.clone())
        optimiser = optim.Muon([p], lr=0.1)
        optimiser.state[p]["momentum"], p.grad = M.clone(), G.clone()
        optimiser.step()
        new, momentum = checks.muon_step(W, G, M, 0.1)
        torch.testing.assert_close(p.detach(), new, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(optimiser.state[p]["momentum"], momentum)


def test_the_flat_polynomial_of_slope_two_is_v4s():
    assert (2.0, *checks.flat(2.0)) == optim.FLAT == checks.FLAT
    assert checks.STEEP == optim.STEEP


STEEP, FLAT = checks.STEEP, checks.FLAT


def newton_schulz(X, steps=(STEEP,) * 8 + (FLAT,) * 2):
    for a, b, c in steps:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def squares_on_the_other_side(G):
    """A tall matrix is not transposed, but X^T X is the smaller square."""
    X = G / (G.square().sum().sqrt() + 1e-20)
    for i in range(10):
        a, b, c = STEEP if i < 8 else FLAT
        if G.shape[0] > G.shape[1]:
            A = X.T @ X
            X = a * X + X @ (b * A + c * A @ A)
        else:
            A = torch.einsum("ij,kj->ik", X, X)
            X = a * X + torch.mm(b * A + c * A.mm(A), X)
    return X


def transposes_squares_too(G):
    flip = G.size(0) >= G.size(1)
    X = G.t().clone() if flip else G.clone()
    X /= X.norm().clamp_min(1e-20)
    X = newton_schulz(X)
    return X.t() if flip else X


def flat_by_numpy(a):
    b, c = np.linalg.solve([[1.0, 1.0], [3.0, 5.0]], [1 - a, -a])
    return [b, c]


def step_in_one_line(W, G, M, lr, mu=0.95, decay=0.1):
    M = mu * M + G
    O = checks.orthogonalise(G + mu * M) * 0.18 * math.sqrt(max(W.shape))
    return W - lr * (O + decay * W), M


def choose_by_loop(shapes):
    names = set()
    for name, shape in shapes.items():
        if len(shape) != 2 or name in ("embed.weight", "head.weight") or "ape" in name:
            continue
        names.add(name)
    return names


@pytest.mark.parametrize("name, attempt", [
    ("muon.orthogonalise", squares_on_the_other_side),
    ("muon.orthogonalise", transposes_squares_too),
    ("muon.flat", flat_by_numpy), ("muon.flat", lambda a: ((5 - 4 * a) / 2, (2 * a - 3) / 2)),
    ("muon.step", step_in_one_line), ("muon.step", lambda *args: list(step_in_one_line(*args))),
    ("muon.choose", choose_by_loop),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def not_transposed(G):
    return newton_schulz(G / (G.norm() + 1e-20))


def the_wrong_ones_transposed(G):
    X = G.T if G.shape[0] < G.shape[1] else G
    X = newton_schulz(X / (X.norm() + 1e-20))
    return X.T if G.shape[0] < G.shape[1] else X


def fixed_step(W, G, M, lr, mu=0.95, decay=0.1):
    return step_in_one_line(W, G, M, lr)


def orthogonalise_with(steps=(STEEP,) * 8 + (FLAT,) * 2, norm=lambda G: G.norm() + 1e-20):
    def attempt(G):
        X = G.T if G.shape[0] > G.shape[1] else G
        X = newton_schulz(X / norm(X), steps)
        return X.T if G.shape[0] > G.shape[1] else X
    return attempt


def step_with(O, new_W, momentum=lambda mu, M, G: mu * M + G):
    def attempt(W, G, M, lr, mu=0.95, decay=0.1):
        M = momentum(mu, M, G)
        return new_W(W, O(W, G, M, mu), lr, decay), M
    return attempt


def right_O(W, G, M, mu):
    return 0.18 * max(W.shape) ** 0.5 * checks.orthogonalise(mu * M + G)


def right_W(W, O, lr, decay):
    return (1 - lr * decay) * W - lr * O


def jordans_step(W, G, M, lr, mu=0.95, decay=0.1):
    M = mu * M + (1 - mu) * G
    return right_W(W, right_O(W, G, M, mu), lr, decay), M


@pytest.mark.parametrize("name, attempt, words", [
    ("muon.orthogonalise", orthogonalise_with([STEEP] * 8 + [FLAT] * 3), "three flat steps"),
    ("muon.orthogonalise", orthogonalise_with([STEEP] * 5 + [FLAT] * 5), "five flat ones"),
    ("muon.choose", lambda shapes: {n for n in shapes if n.endswith(".weight") and n not in (
        "embed.weight", "head.weight")}, "the ending .weight"),
    ("muon.flat", lambda a: (-0.75 * a, 0.25 * a), "in proportion to a"),
    ("muon.orthogonalise", not_transposed, "you do not transpose a tall matrix"),
    ("muon.orthogonalise", the_wrong_ones_transposed, "you transpose wide matrices"),
    ("muon.orthogonalise", orthogonalise_with(norm=lambda G: 1.0), "you do not normalise"),
    ("muon.orthogonalise", orthogonalise_with(norm=torch.norm), "a matrix of zeros"),
    ("muon.orthogonalise", orthogonalise_with(norm=lambda G: G.max()), "[not yet]"),
    ("muon.orthogonalise", orthogonalise_with([STEEP] * 10), "you take ten steep steps"),
    ("muon.orthogonalise", orthogonalise_with([STEEP] * 5), "five steep steps"),
    ("muon.orthogonalise", orthogonalise_with([(a, c, b) for a, b, c in [STEEP] * 8 + [FLAT] * 2]),
     "you exchange b and c"),
    ("muon.orthogonalise", orthogonalise_with([(-a, b, c) for a, b, c in [STEEP] * 8]),
     "the numbers grow past"),
    ("muon.flat", lambda a: (a - 1.5, 1 - a - (a - 1.5)), "you return c first"),
    ("muon.flat", lambda a: (2 - 1.5 * a, a / 2 - 1), "a + 2 b + 4 c"),
    ("muon.step", fixed_step, "In the case"),
    ("muon.step", lambda W, G, M, lr, mu=0.95, decay=0.1: step_in_one_line(W, G, M, lr, mu),
     "the argument `decay`"),
    ("muon.step", jordans_step, "you damp the gradient"),
    ("muon.step", step_with(lambda W, G, M, mu: right_O(W, G, M, mu) / 0.18, right_W),
     "you leave out 0.18"),
    ("muon.step", step_with(right_O, lambda W, O, lr, decay: W - lr * O),
     "you leave the decay out"),
    ("muon.step", step_with(right_O, lambda W, O, lr, decay: (1 - decay) * W - lr * O),
     "you decay by 1 - decay"),
    ("muon.step", step_with(right_O, lambda W, O, lr, decay: (1 - lr * decay) * (W - lr * O)),
     "you decay the result"),
    ("muon.step", step_with(lambda W, G, M, mu: 0.18 * max(W.shape) ** 0.5
                            * checks.orthogonalise(M), right_W),
     "one fault is left: you orthogonalise M;"),
    ("muon.choose", lambda shapes: {n for n, s in shapes.items() if len(s) == 2},
     "embedding, head and ape"),
    ("muon.choose", lambda shapes: {n for n in choose_by_loop(shapes) if "hc" not in n},
     "you leave out the matrices hc"),
    ("muon.choose", lambda shapes: [n for n in shapes if n in choose_by_loop(shapes)],
     "in a list"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_records_agree_with_each_other():
    for kind, runs in figures.SWEEP.items():
        rate = min(runs, key=lambda rate: sum(runs[rate]))
        assert min(runs) < rate < max(runs), "the best rate is at the edge of the sweep"
        assert figures.SWEEP[kind][rate] in figures.VARIANTS.values()
    variants, sweep = figures.VARIANTS.values(), figures.SWEEP["AdamW"].values()
    assert all(len(runs) == 3 for runs in [*variants, *sweep])


@pytest.mark.slow
def test_the_figures_draw():
    s = torch.logspace(0, -3, 8)
    share = [50.0, 5.0]
    for figure in (figures.plot_spectra(dict.fromkeys(figures.LOOKS, s)),
                   figures.plot_circles([[3, 0], [4, 5]], [[1, 0], [0, 1]]),
                   figures.plot_polynomials(), figures.plot_all_steps(), figures.plot_paths(s),
                   figures.plot_after_steps(3, s), figures.plot_sweep(),
                   figures.plot_experts(share, share, share),
                   figures.plot_race({"AdamW": [3.0] * 9, "Muon": [2.0] * 9}),
                   figures.plot_cost_share([10, 100], {"nano": share}, {"nano": (10, 50.0)})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
