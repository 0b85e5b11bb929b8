"""Lesson 07: right answers written otherwise pass, slips are named, the figures draw."""

import itertools

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import plain
from minids.config import Config
from minids.learn.checks import mhc as checks
from minids.learn.judge import check
from minids.model import mhc
from minids.show import mhc as figures


def gain_by_norms(combs):
    eye, P = torch.eye(combs.shape[-1]), []
    for i in range(1, len(combs) + 1):
        P.append(torch.linalg.multi_dot([eye, *combs[:i].mT.flip(0)]))
    P = torch.stack(P)
    return torch.linalg.matrix_norm(P, torch.inf), torch.linalg.matrix_norm(P, 1)


def sinkhorn_by_loops(raw, iters, eps):
    M = torch.exp(raw - raw.logsumexp(-1, keepdim=True)) + eps
    for i in range(iters):
        if i:
            M = M / (M @ torch.ones(M.shape[-1], 1) + eps)
        M = M / (torch.ones(1, M.shape[-1]) @ M + eps)
    return M


def maps_by_package(X, fn, scale, base, iters, eps, norm_eps):
    sizes = dict(hc_mult=X.shape[2], hc_sinkhorn_iters=iters, hc_eps=eps, norm_eps=norm_eps)
    config = Config.nano().replace(**sizes)
    pre, post, comb = mhc.maps(X, fn, scale, base, config)
    B, T, n, _ = X.shape
    return pre.T.view(B, T, n), post.T.view(B, T, n), comb.permute(2, 0, 1).reshape(B, T, n, n)


def site_by_package(X, layer, pre, post, comb):
    pre, post, comb = pre.flatten(0, 1).T, post.flatten(0, 1).T, comb.flatten(0, 1).permute(1, 2, 0)
    return mhc.write(X, layer(mhc.read(X, pre)), post, comb)


def whole_site_by_package(X, layer, fn, scale, base):
    return site_by_package(X, layer, *maps_by_package(X, fn, scale, base, 20, 1e-6, 1e-6))


def mixture_by_loops(raw, permutations):
    return sum(w[..., None, None] * p for w, p in zip(raw.softmax(-1).unbind(-1), permutations))


@pytest.mark.parametrize("name, attempt", [
    ("mhc.gain", gain_by_norms), ("mhc.sinkhorn", sinkhorn_by_loops), ("mhc.maps", maps_by_package),
    ("mhc.site", site_by_package), ("mhc.debug", whole_site_by_package),
    ("mhc.mixture", mixture_by_loops),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    """Those written with `mhc` say that the references equal the package."""
    assert check(name, attempt) is attempt


def sinkhorn_ending_with_rows(raw, iters, eps):
    M = raw.softmax(-1) + eps
    for _ in range(iters):
        M = M / (M.sum(-2, keepdim=True) + eps)
        M = M / (M.sum(-1, keepdim=True) + eps)
    return M


def sinkhorn_of_one_pass(raw, iters, eps):
    M = raw.softmax(-1) + eps
    return M / (M.sum(-2, keepdim=True) + eps)


def sinkhorn_with_softmax_of_columns(raw, iters, eps):
    M = raw.softmax(-2) + eps
    M = M / (M.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        M = M / (M.sum(-1, keepdim=True) + eps)
        M = M / (M.sum(-2, keepdim=True) + eps)
    return M


def sinkhorn_without_eps(raw, iters, eps):
    return plain.sinkhorn(raw, iters, 0.0)


def plain_maps(X, fn, scale, base, iters, eps, norm_eps, stream=False, two=2.0, gate=torch.sigmoid,
               read=None):
    """The maps as a learner might write them, with room for slips."""
    n = X.shape[2]
    x = X if stream else X.flatten(2)
    x = F.rms_norm(x, x.shape[-1:], eps=norm_eps).flatten(2)
    a = x @ fn.T
    pre, post = a[..., :n] * scale[0] + base[:n], a[..., n:2 * n] * scale[1] + base[n:2 * n]
    comb = (a[..., 2 * n:] * scale[2] + base[2 * n:]).unflatten(-1, (n, n))
    return (read or gate)(pre) + eps, two * gate(post), plain.sinkhorn(comb, iters, eps)


def slip(**changes):
    return lambda *args: plain_maps(*args, **changes)


def untransposed(X, layer, pre, post, comb):
    return post[..., None] * layer((pre[..., None] * X).sum(2))[:, :, None] + comb @ X


def whole_site_untransposed(X, layer, fn, scale, base, stream=False):
    three = plain_maps(X, fn, scale, base, 20, 1e-6, 1e-6, stream=stream)
    return untransposed(X, layer, *three)


def mixture_by_sigmoids(raw, permutations):
    return torch.einsum("...k,kij->...ij", raw.sigmoid(), permutations)


def gain_untransposed(combs):
    P, out = torch.eye(combs.shape[-1]), []
    for comb in combs:
        P = comb @ P
        out.append((P.abs().sum(1).max(), P.abs().sum(0).max()))
    return tuple(torch.stack(one) for one in zip(*out))


@pytest.mark.parametrize("name, attempt, words", [
    ("mhc.gain", gain_untransposed, "comb is not transposed"),
    ("mhc.sinkhorn", sinkhorn_with_softmax_of_columns, "the softmax goes over the wrong axis"),
    ("mhc.sinkhorn", sinkhorn_of_one_pass, "one pass only"),
    ("mhc.sinkhorn", sinkhorn_ending_with_rows, "the rows come last"),
    ("mhc.sinkhorn", sinkhorn_without_eps, "eps is forgotten"),
    ("mhc.sinkhorn", lambda raw, iters, eps: raw, "In the case"),
    ("mhc.maps", slip(two=1.0), "the factor 2 on post is missing"),
    ("mhc.maps", slip(stream=True), "one RMS over all n d numbers"),
    ("mhc.maps", slip(read=lambda a: a), "the sigmoid on pre is missing"),
    ("mhc.maps", slip(gate=lambda a: a.softmax(-1)), "pre and post are a softmax"),
    ("mhc.maps", slip(read=lambda a: a.softmax(-1)), "pre is a softmax"),
    ("mhc.site", untransposed, "comb is not transposed"),
    ("mhc.debug", lambda *args: whole_site_untransposed(*args, stream=True),
     "both faults"),
    ("mhc.debug", whole_site_untransposed,
     "the carried streams still have their fault"),
    ("mhc.mixture", mixture_by_sigmoids, "take a softmax"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


def test_the_order_decides_which_sums_are_right():
    """What the lesson says: ending with columns leaves the error in the rows, the backward gain."""
    raw = 6 * torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(0))
    M = plain.sinkhorn(raw, 20, 1e-6)
    assert (M.sum(-2) - 1).abs().max() < 1e-5 < 1e-2 < (M.sum(-1) - 1).abs().max()
    forward, backward = checks.gain(M[:1].expand(64, 4, 4))
    assert abs(forward[-1] - 1) < 1e-3 and backward[-1] <= 4 + 1e-4


def test_the_projection_puts_permutations_on_the_corners_and_keeps_means():
    matrices, places, orders = figures.corners()
    assert sorted(map(tuple, orders)) == sorted(itertools.permutations(range(3)))
    torch.testing.assert_close(figures.project(matrices), places, atol=1e-6, rtol=0)
    torch.testing.assert_close(figures.project(torch.full((1, 3, 3), 1 / 3)), torch.zeros(1, 2),
                               atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_figures_draw():
    line, square = [1.0, 0.5, 0.1], torch.full((4, 4), 0.25)
    three = torch.eye(3).expand(2, 3, 3)
    runs = {kind: (torch.rand(5, 2), torch.rand(5, 2)) for kind in figures.KINDS}
    site = torch.rand(4), torch.rand(4), square
    moving = {"a": {"pre": line, "post": line, "comb": line}}
    for figure in (figures.plot_connections(),
                   figures.plot_through_depth({"residual": line, "unconstrained": [line, line]},
                                              3000),
                   figures.plot_polytope([[(0.5, 0.2), (0.6, 0.4)]], [three]),
                   figures.plot_convergence({"a": line}, {"a": 0.5}),
                   figures.plot_sharpness(square, line, 2, 1),
                   figures.plot_errors_by_sharpness([1, 2, 3], {1: line, 20: line}),
                   figures.plot_shares({"a": (torch.ones(4), torch.ones(4))}),
                   figures.plot_backward({"a": line, "b": line}),
                   figures.plot_training(runs, {kind: torch.rand(5, 2) for kind in figures.KINDS}),
                   figures.plot_learned({"a": site, "b": site}), figures.plot_variation(moving),
                   figures.plot_losses({"a": 0.0, "b": 1.0}, ["a"]),
                   figures.plot_costs([1, 2, 4], line, {"naive": line})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
