"""Lesson 09: references are the package's optimiser, with V4's own coefficients."""

import matplotlib.pyplot as plt
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


def test_an_answer_that_does_not_transpose_tall_matrices_passes():
    answer = checks.partial(checks.orthogonalise, transpose=False)
    assert check("muon.orthogonalise", answer) is answer


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
