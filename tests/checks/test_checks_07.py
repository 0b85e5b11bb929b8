"""Lesson 07: right answers written otherwise pass, slips are named, the figures draw."""

import itertools

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import plain
from minids.config import Config
from minids.learn.checks import find
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


def gain_by_bounds_of_lists(combs):
    """A list of two results, by loops over entries."""
    n, forward, backward = combs.shape[-1], [], []
    P = torch.eye(n, dtype=torch.float64)
    for comb in combs.double():
        P = torch.stack([sum(comb[j, k] * P[j] for j in range(n)) for k in range(n)])
        forward.append(max(P[k].abs().sum().item() for k in range(n)))
        backward.append(max(P[:, j].abs().sum().item() for j in range(n)))
    return [torch.tensor(forward), torch.tensor(backward)]


def sinkhorn_in_logs(raw, iters, eps):
    M = F.softmax(raw, -1).add(eps)
    for i in range(iters):
        if i > 0:
            M = (M.log() - (M.sum(-1, True) + eps).log()).exp()
        M = (M.log() - (M.sum(-2, True) + eps).log()).exp()
    return M


def maps_token_by_token(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6):
    B, T, n, _ = X.shape
    rows = []
    for x in X.reshape(B * T, -1):
        a = fn @ (x / (x.pow(2).mean() + norm_eps) ** 0.5)
        pre = 1 / (1 + (-(a[:n] * scale[0] + base[:n])).exp()) + eps
        post = 2 * torch.sigmoid(scale[1] * a[n:2 * n] + base[n:2 * n])
        raw = (scale[2] * a[2 * n:] + base[2 * n:]).reshape(n, n)
        rows.append((pre, post, plain.sinkhorn(raw, iters, eps)))
    return [torch.stack(part).unflatten(0, (B, T)) for part in zip(*rows)]


def site_by_loops(X, layer, pre, post, comb):
    n = X.shape[2]
    f = layer(sum(pre[:, :, j, None] * X[:, :, j] for j in range(n)))
    return torch.stack([post[:, :, k, None] * f + sum(comb[:, :, j, k, None] * X[:, :, j]
                                                      for j in range(n)) for k in range(n)], 2)


@pytest.mark.parametrize("name, attempt", [
    ("mhc.gain", gain_by_norms), ("mhc.gain", gain_by_bounds_of_lists),
    ("mhc.sinkhorn", sinkhorn_by_loops), ("mhc.sinkhorn", sinkhorn_in_logs),
    ("mhc.maps", maps_by_package), ("mhc.maps", maps_token_by_token),
    ("mhc.site", site_by_package), ("mhc.site", site_by_loops),
    ("mhc.debug", whole_site_by_package),
    ("mhc.debug", lambda X, layer, *rest: site_by_loops(X, layer, *maps_token_by_token(X, *rest))),
    ("mhc.mixture", mixture_by_loops),
    ("mhc.mixture", lambda raw, permutations: torch.tensordot(raw.softmax(-1), permutations, 1)),
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


def plain_maps(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6, norm=None, parts=None,
               two=2.0, gate=torch.sigmoid, read=None, comb=lambda c: c, project=plain.sinkhorn,
               eps_on_pre=None):
    """The maps as a learner might write them, with room for one slip."""
    n = X.shape[2]
    x = F.rms_norm(X.flatten(2), X.flatten(2).shape[-1:], eps=norm_eps) if norm is None else norm(
        X, norm_eps)
    a = x @ fn.T
    parts = parts or (lambda a, n: (a[..., :n], a[..., n:2 * n]))
    (pre, post), (pre_base, post_base) = parts(a, n), parts(base, n)
    raw = (a[..., 2 * n:] * scale[2] + base[2 * n:]).unflatten(-1, (n, n))
    return ((read or gate)(pre * scale[0] + pre_base) + (eps if eps_on_pre is None else eps_on_pre),
            two * gate(post * scale[1] + post_base), project(comb(raw), iters, eps))


def norm_over_streams(X, norm_eps):
    return (X / (X.square().mean(2, keepdim=True) + norm_eps).sqrt()).flatten(2)


def sinkhorn_from_the_front(raw, iters, eps):
    M = raw.softmax(-1) + eps
    M = M / (M.sum(0, keepdim=True) + eps)
    for _ in range(iters - 1):
        M = M / (M.sum(1, keepdim=True) + eps)
        M = M / (M.sum(0, keepdim=True) + eps)
    return M


def norm_of_streams(X, norm_eps):
    return F.rms_norm(X, X.shape[-1:], eps=norm_eps).flatten(2)


def slip(**changes):
    return lambda *args: plain_maps(*args, **changes)


def site_as_typed(X, layer, pre, post, comb, read=None, write=None, carry=None):
    u = (pre[..., None] * X).sum(2) if read is None else read(X, pre, comb)
    f = layer(u)
    written = post[..., None] * f[:, :, None] if write is None else write(post, f)
    return written + (comb.mT @ X if carry is None else carry(comb, X))


def typed_site(**changes):
    return lambda *args: site_as_typed(*args, **changes)


untransposed = typed_site(carry=lambda comb, X: comb @ X)


def debugged(site=plain.site, **changes):
    """`colleagues_site` with some of its faults, or others."""
    return lambda X, layer, *parameters: site(X, layer, *plain_maps(X, *parameters, **changes))


def sinkhorn_as_typed(raw, iters, eps, rounds=None, first=-2, then=(-1, -2)):
    M = torch.softmax(raw, dim=-1) + eps
    if first:
        M = M / (M.sum(dim=first, keepdim=True) + eps)
    for _ in range(iters - 1 if rounds is None else rounds(iters)):
        for axis in then:
            M = M / (M.sum(dim=axis, keepdim=True) + eps)
    return M


def typed_sinkhorn(**changes):
    return lambda *args: sinkhorn_as_typed(*args, **changes)


def gain_as_typed(combs, product=lambda comb, P: comb.T @ P, rows=1, columns=0,
                  measure=lambda P, axis: P.abs().sum(axis).max()):
    P, out = torch.eye(combs.shape[-1]), []
    for comb in combs:
        P = product(comb, P)
        out.append(torch.stack([measure(P, rows), measure(P, columns)]))
    return tuple(torch.stack(out).T)


def typed_gain(**changes):
    return lambda combs: gain_as_typed(combs, **changes)


def mixture_by_sigmoids(raw, permutations):
    return torch.einsum("...k,kij->...ij", raw.sigmoid(), permutations)


def gain_untransposed(combs):
    P, out = torch.eye(combs.shape[-1]), []
    for comb in combs:
        P = comb @ P
        out.append((P.abs().sum(1).max(), P.abs().sum(0).max()))
    return tuple(torch.stack(one) for one in zip(*out))


@pytest.mark.parametrize("name, attempt, words", [
    ("mhc.gain", gain_untransposed, "you do not transpose comb"),
    ("mhc.gain", typed_gain(product=lambda comb, P: P @ comb.T), "on the wrong side"),
    ("mhc.gain", typed_gain(product=lambda comb, P: P @ comb), "a new site joins on the left"),
    ("mhc.gain", typed_gain(rows=0, columns=1), "your two gains are exchanged"),
    ("mhc.gain", typed_gain(measure=lambda P, axis: P.sum(axis).max()), "your signs cancel"),
    ("mhc.gain", typed_gain(measure=lambda P, axis: P.sum(axis).abs().max()), "after summing"),
    ("mhc.gain", typed_gain(product=lambda comb, P: comb.T), "each site alone"),
    ("mhc.gain", typed_gain(product=lambda comb, P: comb.T * P), "entry by entry"),
    ("mhc.sinkhorn", sinkhorn_with_softmax_of_columns, "your softmax goes over the columns"),
    ("mhc.sinkhorn", sinkhorn_of_one_pass, "you do one pass only"),
    ("mhc.sinkhorn", sinkhorn_ending_with_rows, "your rows come last"),
    ("mhc.sinkhorn", sinkhorn_without_eps, "you forget eps"),
    ("mhc.sinkhorn", typed_sinkhorn(rounds=lambda iters: iters), "one round too many"),
    ("mhc.sinkhorn", typed_sinkhorn(rounds=lambda iters: max(iters - 2, 0)), "one round too few"),
    ("mhc.sinkhorn", typed_sinkhorn(first=-1, then=(-2, -1)), "exchange rows and columns after"),
    ("mhc.sinkhorn", typed_sinkhorn(then=(-2, -1)), "your rounds go columns, then rows"),
    ("mhc.sinkhorn", typed_sinkhorn(first=None), "the columns after the softmax are missing"),
    ("mhc.sinkhorn", sinkhorn_from_the_front, "your axes count from the front"),
    ("mhc.maps", slip(norm=norm_over_streams), "over the n streams of each channel"),
    ("mhc.debug", debugged(norm=norm_over_streams), "over the streams of a channel"),
    ("mhc.debug", debugged(untransposed, norm=norm_over_streams), "still have their fault"),
    ("mhc.debug", debugged(read=torch.sigmoid, eps_on_pre=0.0), "the 1e-6 on pre is gone"),
    ("mhc.debug", debugged(typed_site(carry=lambda comb, X: comb.sum(-2)[..., None] * X)),
     "the carried streams are not mixed"),
    ("mhc.mixture", lambda raw, permutations: torch.einsum(
        "...k,kij->...ij", raw.abs() / raw.abs().sum(-1, keepdim=True), permutations),
     "absolute values by their sum"),
    ("mhc.mixture", lambda raw, permutations: (raw.softmax(-1)[:, None, None] * permutations).sum(
        0), "[..., None, None]"),
    ("mhc.mixture", lambda raw, permutations: sum(
        raw.softmax(0)[k] * permutations[k] for k in range(len(permutations))), "weights[..., k]"),
    ("mhc.maps", slip(two=1.0), "the factor 2 on post is missing"),
    ("mhc.maps", slip(norm=norm_of_streams), "one RMS over all n d numbers"),
    ("mhc.maps", slip(norm=lambda X, eps: X.flatten(2)), "the RMS is missing"),
    ("mhc.maps", slip(read=lambda a: a), "the sigmoid on pre is missing"),
    ("mhc.maps", slip(gate=lambda a: a.softmax(-1)), "your pre and post are a softmax"),
    ("mhc.maps", slip(read=lambda a: a.softmax(-1)), "your pre is a softmax"),
    ("mhc.maps", slip(parts=lambda a, n: (a[..., n:2 * n], a[..., :n])), "you exchange the rows"),
    ("mhc.maps", slip(comb=lambda raw: raw.mT), "column by column"),
    ("mhc.maps", slip(project=lambda raw, iters, eps: raw.softmax(-1) + eps), "only a softmax"),
    ("mhc.maps", slip(project=lambda raw, iters, eps: plain.sinkhorn(raw, 20, 1e-6)),
     "it should get both arguments"),
    ("mhc.site", untransposed, "over the second index of comb"),
    ("mhc.site", typed_site(carry=lambda comb, X: X), "the streams pass unmixed"),
    ("mhc.site", typed_site(carry=lambda comb, X: X + comb.mT @ X), "X passes unmixed beside"),
    ("mhc.site", typed_site(carry=lambda comb, X: 0), "the carried streams are missing"),
    ("mhc.site", typed_site(read=lambda X, pre, comb: X.mean(2)), "the mean of the streams"),
    ("mhc.site", typed_site(read=lambda X, pre, comb: (pre[..., None] * (comb.mT @ X)).sum(2)),
     "reads the mixed streams"),
    ("mhc.site", typed_site(write=lambda post, f: f[:, :, None]), "to all streams alike"),
    ("mhc.site", lambda X, layer, pre, post, comb: plain.site(X, layer, post, pre, comb),
     "you exchange pre and post"),
    ("mhc.debug", debugged(untransposed, norm=norm_of_streams), "both faults are still there"),
    ("mhc.debug", debugged(untransposed), "the carried streams still have their fault"),
    ("mhc.debug", debugged(norm=norm_of_streams), "the norm before fn still has its fault"),
    ("mhc.debug", debugged(norm=lambda X, eps: X.flatten(2)), "the norm before fn is gone"),
    ("mhc.debug", debugged(untransposed, comb=lambda raw: raw.mT), "transpose comb before Sink"),
    ("mhc.debug", debugged(comb=lambda raw: raw.mT), "you transpose comb twice"),
    ("mhc.mixture", mixture_by_sigmoids, "your weights are sigmoids"),
    ("mhc.mixture", lambda raw, permutations: torch.einsum(
        "...k,kij->...ij", raw / raw.sum(-1, keepdim=True), permutations), "by their sum, which"),
    ("mhc.mixture", lambda raw, permutations: torch.einsum(
        "...k,kij->...ji", raw.softmax(-1), permutations), "your matrices are transposed"),
    ("mhc.mixture", lambda raw, permutations: permutations[raw.argmax(-1)], "the largest weight"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    said = " ".join(capsys.readouterr().out.split())
    assert "Likely: " in said and words in said, said


def in_bfloat16(name):
    def attempt(*args):
        narrow = [a.bfloat16() if isinstance(a, torch.Tensor) else a for a in args]
        result = find(name).reference(*narrow)
        return tuple(r.float() for r in result) if isinstance(result, tuple) else result.float()
    return attempt


@pytest.mark.parametrize("name", ["mhc.sinkhorn", "mhc.maps", "mhc.site", "mhc.mixture"])
def test_what_is_nearly_right_does_not_pass(name):
    attempt = in_bfloat16(name)
    assert check(name, attempt) is not attempt


@pytest.mark.parametrize("name", ["mhc.sinkhorn", "mhc.maps", "mhc.site", "mhc.mixture"])
def test_a_result_without_its_gradient_does_not_pass(name):
    @torch.no_grad()
    def attempt(*args):
        return find(name).reference(*args)
    assert check(name, attempt) is not attempt


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
