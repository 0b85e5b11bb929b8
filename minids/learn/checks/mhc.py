"""Checks of lesson 07: manifold-constrained hyper-connections (V4 report, section 2.2; Xie et al.,
arXiv 2512.24880).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import itertools

import torch
from einops import rearrange

from minids.learn.exercise import Check
from minids.plain import maps, rms, sinkhorn, site

LESSON = "07_mhc"


# ---- the gain of a stack ----

def gain(combs, step=lambda comb, P: comb.mT @ P, measure=None, exchanged=False):
    """Forward and backward gain after each of L layers, L each. combs: L n n.

    The keyword arguments make mistakes.
    """
    measure = measure or (lambda P, axis: P.abs().sum(axis).max())
    P, forward, backward = torch.eye(combs.shape[-1]), [], []
    for comb in combs:
        P = step(comb, P)
        forward.append(measure(P, 1))
        backward.append(measure(P, 0))
    pair = torch.stack(forward), torch.stack(backward)
    return pair[::-1] if exchanged else pair


def _gain_cases(rng):
    yield "one layer, two streams", (torch.tensor([[[0.9, 0.3], [-0.2, 1.1]]]),)
    yield "three layers, four streams", (torch.eye(4) + 0.3 * torch.randn(3, 4, 4, generator=rng),)
    yield "nine layers, three streams", (torch.eye(3) + 0.4 * torch.randn(9, 3, 3, generator=rng),)


# ---- Sinkhorn-Knopp ----


def sinkhorn_with(raw, iters, eps, first=(-2,), each=(-1, -2), start=None, eps_sums=True):
    """`sinkhorn` with other axes, first and in each further iteration, another start, or no eps."""
    M = raw.softmax(dim=-1) + eps if start is None else start(raw, eps)
    for axis in [*first, *each * (iters - 1)]:
        M = M / (M.sum(dim=axis, keepdim=True) + eps * eps_sums)
    return M


def _sinkhorn(**changes):
    return lambda *args: sinkhorn_with(*args, **changes)


def _softmax_without_eps(raw, eps):
    return raw.softmax(dim=-1)


def _sinkhorn_cases(rng):
    yield "one 3 x 3 matrix, one iteration", (torch.randn(3, 3, generator=rng), 1, 1e-6)
    yield "two iterations", (2 * torch.randn(2, 4, 4, generator=rng), 2, 1e-6)
    yield "B T n n, an eps that one can see", (torch.randn(2, 3, 4, 4, generator=rng), 3, 0.03)
    yield "large numbers, which overflow exp", (60 + 40 * torch.rand(4, 4, generator=rng), 20, 1e-6)


# ---- the three maps ----


def _norm_of_all(X, norm_eps):
    return rms(rearrange(X, "B T n d -> B T (n d)"), norm_eps)


def _norm_of_each_stream(X, norm_eps):
    return rearrange(rms(X, norm_eps), "B T n d -> B T (n d)")


def _without_norm(X, norm_eps):
    return rearrange(X, "B T n d -> B T (n d)")


def _divided_by_the_sum(X, norm_eps):
    x = rearrange(X, "B T n d -> B T (n d)")
    return x / (x.square().sum(dim=-1, keepdim=True) + norm_eps).sqrt()


def maps_with(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6, norm=_norm_of_all, add=None,
              read=None, write=None, order="(j k)", sinkhorn=sinkhorn):
    """`maps` with another norm, another way to add base, or other pre, post, or comb."""
    n = X.shape[2]
    a = norm(X, norm_eps) @ fn.T                                       # B T (2+n)n
    scale = torch.cat([scale[0].expand(n), scale[1].expand(n), scale[2].expand(n * n)])
    a = a * scale + base if add is None else add(a, scale, base)
    pre, post, comb = a.split([n, n, n * n], dim=-1)
    pre = pre.sigmoid() + eps if read is None else read(pre, eps)
    post = 2 * post.sigmoid() if write is None else write(post, eps)
    comb = rearrange(comb, f"B T {order} -> B T j k", j=n)
    return pre, post, sinkhorn(comb, iters, eps)


def _maps(**changes):
    return lambda *args: maps_with(*args, **changes)


def _site_parameters(rng, n, d):
    """fn, scale and base in which every number matters."""
    fn = torch.randn((2 + n) * n, n * d, generator=rng) * (n * d) ** -0.5
    return fn, 0.7 + torch.rand(3, generator=rng).cumsum(0), torch.randn((2 + n) * n, generator=rng)


def _streams(rng, B, T, n, d):
    """Streams of different size, so that a norm of each stream differs from a norm of all."""
    return torch.randn(B, T, n, d, generator=rng) * (0.4 + torch.arange(n)).view(n, 1)


def _maps_cases(rng):
    X, parameters = _streams(rng, 1, 1, 3, 2), _site_parameters(rng, 3, 2)
    yield "one token, three streams", (X, *parameters, 4, 1e-6, 1e-6)
    X, parameters = _streams(rng, 2, 3, 4, 5), _site_parameters(rng, 4, 5)
    yield "B T n d", (X, *parameters, 20, 1e-6, 1e-6)
    X, parameters = _streams(rng, 2, 3, 4, 5), _site_parameters(rng, 4, 5)
    yield "an eps that one can see", (X, *parameters, 3, 0.03, 1e-6)
    X, parameters = _streams(rng, 2, 3, 4, 5), _site_parameters(rng, 4, 5)
    yield "a norm_eps that one can see", (0.3 * X, *parameters, 3, 1e-6, 0.2)


# ---- a site ----


def untransposed(X, layer, pre, post, comb):
    return site(X, layer, pre, post, comb.mT)


def reads_the_mixed(X, layer, pre, post, comb):
    return without_mixing(comb.mT @ X, layer, pre, post, comb)


def without_carrying(X, layer, pre, post, comb):
    return site(X, layer, pre, post, torch.zeros_like(comb))


def without_mixing(X, layer, pre, post, comb):
    return site(X, layer, pre, post, torch.eye(X.shape[2]).expand_as(comb))


def reads_the_sum(X, layer, pre, post, comb):
    return site(X, layer, torch.ones_like(pre), post, comb)


def writes_to_all_alike(X, layer, pre, post, comb):
    return site(X, layer, pre, torch.ones_like(post), comb)


def exchanged(X, layer, pre, post, comb):
    return site(X, layer, post, pre, comb)


def nonlinear(u):
    return torch.tanh(u + 0.3) * 1.7 + u.roll(1, -1)


def _site_cases(rng):
    for label, B, T, n, d in (("one token, three streams of two numbers", 1, 1, 3, 2),
                              ("B T n d", 2, 4, 4, 5)):
        pre, post = torch.rand(B, T, n, generator=rng), 2 * torch.rand(B, T, n, generator=rng)
        comb = sinkhorn(2 * torch.randn(B, T, n, n, generator=rng), 20, 1e-6)
        yield label, (torch.randn(B, T, n, d, generator=rng), nonlinear, pre, post, comb)


def whole_site(X, layer, fn, scale, base, maps=maps, site=site):
    """A site from its parameters: B T n d. The last two arguments make mistakes."""
    return site(X, layer, *maps(X, fn, scale, base))


def _whole_cases(rng):
    X = _streams(rng, 1, 1, 3, 2)
    yield "one token, three streams", (X, nonlinear, *_site_parameters(rng, 3, 2))
    yield "B T n d", (_streams(rng, 2, 3, 4, 5), nonlinear, *_site_parameters(rng, 4, 5))


# ---- exact doubly stochastic matrices ----

def mixture(raw, permutations):
    """A mean of permutation matrices with the weights softmax(raw): ... n n.

    raw: ... K; permutations: K n n.
    """
    return _weighted(raw.softmax(-1), permutations)


def _weighted(weights, permutations):
    return torch.einsum("...k,kij->...ij", weights, permutations)


def _permutations(n):
    """All permutation matrices: n! n n."""
    return torch.stack([torch.eye(n)[list(order)] for order in itertools.permutations(range(n))])


def _mixture_cases(rng):
    three, four = _permutations(3), _permutations(4)
    yield "one matrix, six permutations", (torch.randn(6, generator=rng), three)
    yield "B T 24", (2 * torch.randn(2, 3, 24, generator=rng), four)


CHECKS = [
    Check(
        "mhc.gain", gain, _gain_cases,
        mistakes={
            "comb is not transposed: stream k of the result is the sum over j of comb[j, k] times "
            "stream j":
                lambda combs: gain(combs, lambda comb, P: comb @ P),
            "the product grows on the wrong side: what a new layer does comes after all the "
            "others, so it is on the left":
                lambda combs: gain(combs, lambda comb, P: P @ comb.mT),
            "the two gains are exchanged: forward is the largest row sum, backward the largest "
            "column sum":
                lambda combs: gain(combs, exchanged=True),
            "signs cancel: take the absolute values before summing":
                lambda combs: gain(combs, measure=lambda P, axis: P.sum(axis).max()),
            "this is the mean of the sums: the gain is the worst case, the largest":
                lambda combs: gain(combs, measure=lambda P, axis: P.abs().sum(axis).mean()),
            "this is the largest entry: sum the row (or the column) first":
                lambda combs: gain(combs, measure=lambda P, axis: P.abs().max()),
            "this is the gain of each layer alone: multiply the layers so far":
                lambda combs: gain(combs, lambda comb, P: comb.mT),
        },
        hints=(
            "Keep a matrix P, at first torch.eye(n). Each layer makes a new P from the old one "
            "and its comb.",
            "One layer: X' = comb.T @ X. After two: comb_2.T @ (comb_1.T @ X). So P becomes "
            "comb.T @ P.",
            "P.abs().sum(1) are the sums of the rows, P.abs().sum(0) those of the columns. "
            "Collect the largest of each.",
        ),
    ),
    Check(
        "mhc.sinkhorn", sinkhorn, _sinkhorn_cases,
        mistakes={
            "the softmax goes over the wrong axis: it makes each ROW sum to 1 (the last axis)":
                _sinkhorn(start=lambda raw, eps: raw.softmax(dim=-2) + eps),
            "rows and columns are exchanged throughout: the softmax is over the last axis, the "
            "columns come after it": lambda raw, iters, eps: sinkhorn(raw.mT, iters, eps).mT,
            "one pass only: after the first columns, rows and columns follow iters - 1 times":
                lambda raw, iters, eps: sinkhorn(raw, 1, eps),
            "no Sinkhorn at all, only the softmax: its columns do not sum to 1":
                lambda raw, iters, eps: raw.softmax(dim=-1) + eps,
            "the rows come last: V4 ends with the columns":
                _sinkhorn(first=(), each=(-2, -1)),
            "the rows come last, after a full count of iterations: V4 ends with the columns":
                lambda raw, iters, eps: sinkhorn_with(raw, iters + 1, eps, (), (-2, -1)),
            "one round too many: the softmax is the first pass over the rows, so iters - 1 rounds "
            "follow the first columns": lambda raw, iters, eps: sinkhorn(raw, iters + 1, eps),
            "the columns after the softmax are missing": _sinkhorn(first=()),
            "eps is forgotten, after the softmax and in the sums":
                lambda raw, iters, eps: sinkhorn(raw, iters, 0.0),
            "eps is missing after the softmax": _sinkhorn(start=_softmax_without_eps),
            "eps is missing where you divide by the sums": _sinkhorn(eps_sums=False),
            "exp instead of softmax: it overflows, and the first pass over the rows is missing":
                _sinkhorn(start=lambda raw, eps: raw.exp() + eps),
        },
        hints=(
            "Three parts: softmax of the rows plus eps; columns divided by (their sums + eps); a "
            "loop of rows, then columns.",
            "For ... n n the sums of the rows are M.sum(-1, keepdim=True), those of the columns "
            "M.sum(-2, keepdim=True).",
            "The loop runs iters - 1 times. Write M = M / (...), not M /= (...).",
        ),
    ),
    Check(
        "mhc.maps", maps, _maps_cases,
        mistakes={
            "the factor 2 on post is missing: post lies between 0 and 2":
                _maps(write=lambda a, eps: a.sigmoid()),
            "the sigmoid on pre is missing": _maps(read=lambda a, eps: a + eps),
            "pre is a softmax: each of its numbers is its own sigmoid":
                _maps(read=lambda a, eps: a.softmax(-1) + eps),
            "post is a softmax: it is 2 * sigmoid": _maps(write=lambda a, eps: 2 * a.softmax(-1)),
            "pre and post are a softmax: both are sigmoids":
                _maps(read=lambda a, eps: a.softmax(-1) + eps,
                      write=lambda a, eps: 2 * a.softmax(-1)),
            "pre has the factor 2 that belongs to post":
                _maps(read=lambda a, eps: 2 * a.sigmoid() + eps, write=lambda a, eps: a.sigmoid()),
            "eps is forgotten on pre": _maps(read=lambda a, eps: a.sigmoid()),
            "eps is added to post too: only pre and the matrix have it":
                _maps(write=lambda a, eps: 2 * a.sigmoid() + eps),
            "the RMS is taken of each stream by itself: it is one RMS over all n d numbers of a "
            "token":
                _maps(norm=_norm_of_each_stream),
            "the RMS is missing": _maps(norm=_without_norm),
            "norm_eps is not used: it is added to the mean square, inside the root":
                lambda *args: maps(*args[:-1], norm_eps=0.0),
            "the sum of the squares instead of their mean": _maps(norm=_divided_by_the_sum),
            "the scale multiplies base as well: only the part that depends on X is scaled":
                _maps(add=lambda a, scale, base: (a + base) * scale),
            "base is not added": _maps(add=lambda a, scale, base: a * scale),
            "scale is not used": _maps(add=lambda a, scale, base: a + base),
            "the n x n numbers of comb are read column by column: view them row by row":
                _maps(order="(k j)"),
            "comb is only a softmax: Sinkhorn is missing":
                _maps(sinkhorn=lambda raw, iters, eps: raw.softmax(dim=-1) + eps),
        },
        hints=(
            "x = X.flatten(2), B T nd, divided by its RMS; a = x @ fn.T, B T (2+n)n; "
            "a.split([n, n, n * n], dim=-1).",
            "Each part times its own scale plus its part of base. Then: sigmoid + eps; 2 * "
            "sigmoid; sinkhorn.",
            "RMS: torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps). comb: "
            "part.unflatten(-1, (n, n)) before sinkhorn.",
        ),
    ),
    Check(
        "mhc.site", site, _site_cases,
        mistakes={
            "comb is not transposed: the sum runs over its FIRST index, comb[j, k] says how much "
            "of stream j goes to k": untransposed,
            "the layer reads the mixed streams: it reads X as it came, mixing is for what passes "
            "beside the layer": reads_the_mixed,
            "the carried streams are missing: the layer's output is added to them":
                without_carrying,
            "the streams pass unmixed: comb is not used": without_mixing,
            "pre and post are exchanged: pre reads, post writes": exchanged,
            "the layer reads the plain sum of the streams: weigh them with pre": reads_the_sum,
            "the layer's output goes to all streams alike: weigh it with post": writes_to_all_alike,
        },
        hints=(
            "Three lines: u = what the layer reads; f = layer(u); what is written plus what is "
            "carried.",
            "u = (pre[..., None] * X).sum(2), B T d. Written: post[..., None] * f[:, :, None], B "
            "T n d.",
            "Carried: comb.mT @ X, where .mT swaps the last two axes.",
        ),
    ),
    Check(
        "mhc.debug", whole_site, _whole_cases,
        mistakes={
            "this still has both faults":
                lambda *args: whole_site(*args, _maps(norm=_norm_of_each_stream), untransposed),
            "the carried streams are right now, the norm before fn still has its fault":
                lambda *args: whole_site(*args, _maps(norm=_norm_of_each_stream)),
            "the norm before fn is right now, the carried streams still have their fault":
                lambda *args: whole_site(*args, site=untransposed),
        },
        hints=(
            "Compare step by step with your maps and site, on streams that differ: which of pre, "
            "post, comb is off?",
            "If all three maps are off a little, the fault is before fn. Which numbers share one "
            "RMS?",
            "The other fault is in einsum's letters: over which index of comb does the sum run?",
        ),
    ),
    Check(
        "mhc.mixture", mixture, _mixture_cases,
        mistakes={
            "the weights are not normalised: a softmax makes them positive with the sum 1":
                _weighted,
            "the weights are exponentials that are not divided by their sum":
                lambda raw, permutations: _weighted(raw.exp(), permutations),
            "the weights are sigmoids: they do not sum to 1, take a softmax":
                lambda raw, permutations: _weighted(raw.sigmoid(), permutations),
            "each matrix is transposed": lambda raw, permutations: mixture(raw, permutations).mT,
            "this is the plain mean of all permutations: weigh them with softmax(raw)":
                lambda raw, permutations: mixture(torch.zeros_like(raw), permutations),
        },
        hints=(
            "A mean of permutation matrices with weights that are positive and sum to 1 is doubly "
            "stochastic, exactly.",
            "Weights: raw.softmax(-1), ... K. Then a sum over k of weight k times permutations[k].",
            "torch.einsum('...k,kij->...ij', weights, permutations).",
        ),
    ),
]
