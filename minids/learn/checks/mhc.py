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

def gain(combs, step=lambda comb, P: comb.mT @ P, measure=None, axes=(1, 0)):
    """Forward and backward gain after each of L sites, L each. combs: L n n.

    The keyword arguments make mistakes.
    """
    measure = measure or (lambda P, axis: P.abs().sum(axis).max())
    P, forward, backward = torch.eye(combs.shape[-1]), [], []
    for comb in combs:
        P = step(comb, P)
        forward.append(measure(P, axes[0]))
        backward.append(measure(P, axes[1]))
    return torch.stack(forward), torch.stack(backward)


def _gain(**changes):
    return lambda combs: gain(combs, **changes)


def _product_of_gains(combs):
    forward, backward = gain(combs, step=lambda comb, P: comb.mT)
    return forward.cumprod(0), backward.cumprod(0)


def _after_all(combs):
    return tuple(one[-1] for one in gain(combs))


def _gain_cases(rng):
    yield "one site, two streams", (torch.tensor([[[0.9, 0.3], [-0.2, 1.1]]]),)
    yield "three sites, four streams", (torch.eye(4) + 0.3 * torch.randn(3, 4, 4, generator=rng),)
    yield "nine sites, three streams", (torch.eye(3) + 0.4 * torch.randn(9, 3, 3, generator=rng),)


# ---- Sinkhorn-Knopp ----


def sinkhorn_with(raw, iters, eps, first=(-2,), each=(-1, -2), start=None, eps_sums=True):
    """`sinkhorn` with other axes, first and in each further iteration, another start, or no eps."""
    M = raw.softmax(dim=-1) + eps if start is None else start(raw, eps)
    for axis in [*first, *each * (iters - 1)]:
        M = M / (M.sum(dim=axis, keepdim=True) + eps * eps_sums)
    return M


def _sinkhorn(**changes):
    return lambda *args: sinkhorn_with(*args, **changes)


def _half_rounds(raw, iters, eps):
    """Columns and rows alternately, `iters` passes in all."""
    M = raw.softmax(dim=-1) + eps
    for i in range(iters):
        M = M / (M.sum(dim=-1 if i % 2 else -2, keepdim=True) + eps)
    return M


def _eps_beside_the_quotient(raw, iters, eps):
    M = raw.softmax(dim=-1) + eps
    for axis in [-2, *(-1, -2) * (iters - 1)]:
        M = M / M.sum(dim=axis, keepdim=True) + eps
    return M


def _axes_from_the_front(softmax):
    """For one matrix: its sums go over axes 0 and 1, whatever these are; softmax: its axis."""
    return _sinkhorn(start=lambda raw, eps: raw.softmax(softmax) + eps, first=(0,), each=(1, 0))


def _exp_with_eps(raw, eps):
    """Exponentials divided by (their sum + eps), from which no row's largest number escapes."""
    M = (raw - raw.amax(dim=-1, keepdim=True)).exp()
    return M / (M.sum(dim=-1, keepdim=True) + eps)


def _one_round_more(**changes):
    return lambda raw, iters, eps: sinkhorn_with(raw, iters + 1, eps, **changes)


def _softmax_without_eps(raw, eps):
    return raw.softmax(dim=-1)


def _softmax_of_all(raw, eps):
    return raw.flatten(-2).softmax(dim=-1).view_as(raw) + eps


def _sinkhorn_cases(rng):
    yield "one 3 x 3 matrix, one iteration", (torch.randn(3, 3, generator=rng), 1, 1e-6)
    yield "two iterations", (2 * torch.randn(2, 4, 4, generator=rng), 2, 1e-6)
    yield "B T n n, an eps that one can see", (torch.randn(2, 3, 4, 4, generator=rng), 3, 0.03)
    yield "five iterations", (3 * torch.randn(3, 4, 4, generator=rng), 5, 1e-6)
    yield "large numbers, which overflow exp", (60 + 40 * torch.rand(4, 4, generator=rng), 20, 1e-6)


# ---- the three maps ----


def _norm_of_all(X, norm_eps):
    return rms(rearrange(X, "B T n d -> B T (n d)"), norm_eps)


def _norm_over_streams(X, norm_eps):
    """The n numbers of each channel share one RMS."""
    return rearrange(rms(X.mT, norm_eps).mT, "B T n d -> B T (n d)")


def _norm_over_tokens(X, norm_eps):
    """All numbers of the batch share one RMS."""
    return rearrange(rms(X.flatten(), norm_eps).view_as(X), "B T n d -> B T (n d)")


def _norm_of_each_stream(X, norm_eps):
    return rearrange(rms(X, norm_eps), "B T n d -> B T (n d)")


def _without_norm(X, norm_eps):
    return rearrange(X, "B T n d -> B T (n d)")


def _divided_by_the_sum(X, norm_eps):
    x = rearrange(X, "B T n d -> B T (n d)")
    return x / (x.square().sum(dim=-1, keepdim=True) + norm_eps).sqrt()


def _eps_outside(X, norm_eps):
    x = rearrange(X, "B T n d -> B T (n d)")
    return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + norm_eps)


def _layer_norm(X, norm_eps):
    x = rearrange(X, "B T n d -> B T (n d)")
    x = x - x.mean(dim=-1, keepdim=True)
    return rms(x, norm_eps)


def _stream_by_stream(X, norm_eps):
    """Channel by channel: the streams of channel 0, of channel 1, and so on."""
    return rearrange(_norm_of_all(X, norm_eps), "B T (n d) -> B T (d n)", n=X.shape[2])


def maps_with(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6, norm=_norm_of_all, add=None,
              read=None, write=None, order="(j k)", sinkhorn=sinkhorn, exchanged=False, alpha=None):
    """`maps` with another norm, another way to add base, or other pre, post, or comb."""
    n = X.shape[2]
    a = norm(X, norm_eps) @ fn.T                                       # B T (2+n)n
    scale = scale if alpha is None else alpha(scale)
    scale = torch.cat([scale[0].expand(n), scale[1].expand(n), scale[2].expand(n * n)])
    a = a * scale + base if add is None else add(a, scale, base)
    pre, post, comb = a.split([n, n, n * n], dim=-1)
    pre, post = (post, pre) if exchanged else (pre, post)
    pre = pre.sigmoid() + eps if read is None else read(pre, eps)
    post = 2 * post.sigmoid() if write is None else write(post, eps)
    comb = rearrange(comb, f"B T {order} -> B T j k", j=n)
    return pre, post, sinkhorn(comb, iters, eps)


def _maps(**changes):
    return lambda *args: maps_with(*args, **changes)


PARTS = ("pre", "post", "comb")


def _but_for(part):
    """Which of the (2+n)n numbers do not belong to one of the three parts: 1 or 0 each."""
    def chosen(count):
        n = int((1 + count) ** 0.5) - 1                 # count is (2 + n) n
        return torch.cat([torch.full((length,), float(part != name))
                          for name, length in zip(PARTS, (n, n, n * n))])
    return chosen


def _without_base(part):
    return _maps(add=lambda a, scale, base: a * scale + base * _but_for(part)(len(base)))


def _without_scale(part):
    return _maps(alpha=lambda scale: torch.where(torch.arange(3) == PARTS.index(part), 1.0, scale))


def _base_of_pre_for_post(a, scale, base):
    n = int((1 + len(base)) ** 0.5) - 1
    return a * scale + torch.cat([base[:n], base[:n], base[2 * n:]])


def _rows_exchanged(X, fn, scale, base, *rest):
    """The first n rows give post, the next n pre; the scales stay."""
    n = X.shape[2]
    order = [*range(n, 2 * n), *range(n), *range(2 * n, len(fn))]
    return maps(X, fn[order], scale, base[order], *rest)


def _fn_not_transposed(X, fn, scale, base, iters, eps, norm_eps):
    return _norm_of_all(X, norm_eps) @ fn              # B T nd times (2+n)n nd: no fit


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
    X, parameters = _streams(rng, 2, 3, 2, 5), _site_parameters(rng, 2, 5)
    yield "two streams, one iteration", (X + 0.5, *parameters, 1, 1e-6, 1e-6)


# ---- a site ----


def untransposed(X, layer, pre, post, comb):
    return site(X, layer, pre, post, comb.mT)


def without_mixing(X, layer, pre, post, comb):
    return site(X, layer, pre, post, torch.eye(X.shape[2]).expand_as(comb))


def exchanged(X, layer, pre, post, comb):
    return site(X, layer, post, pre, comb)


def _reads(change):
    """A site whose layer reads change(X, pre, comb), B T d, in place of the weighted sum."""
    def wrong(X, layer, pre, post, comb):
        return site(X, lambda u: layer(change(X, pre, comb)), pre, post, comb)
    return wrong


def _weighted_sum(weights, X):
    return (weights[..., None] * X).sum(dim=2)


def _layer_on_each_stream(X, layer, pre, post, comb):
    """The layer works on every stream, and pre weighs what it gives."""
    return site(X, lambda u: _weighted_sum(pre, torch.stack([layer(x) for x in X.unbind(2)], 2)),
                pre, post, comb)


def without_carried(X, layer, pre, post, comb):
    return site(X, layer, pre, post, torch.zeros_like(comb))


def weighed_by_row_sums(X, layer, pre, post, comb):
    return site(X, layer, pre, post, comb.sum(-1).diag_embed())


def mixes_what_was_written(X, layer, pre, post, comb):
    written = site(X, layer, pre, post, torch.zeros_like(comb))
    return comb.mT @ (X + written)


def _mixes_all_untransposed(X, layer, pre, post, comb):
    return mixes_what_was_written(X, layer, pre, post, comb.mT)


def _writes_to_one(X, layer, pre, post, comb):
    first = torch.zeros_like(post)
    first[..., 0] = 1
    return site(X, layer, pre, first, comb)


SITE_MISTAKES = {
    "your sum runs over the second index of comb; it should run over the first, since comb[j, k] "
    "says how much of stream j goes to stream k": untransposed,
    "your layer reads the mixed streams; it should read X as it came, and only what passes beside "
    "the layer should be mixed":
        _reads(lambda X, pre, comb: _weighted_sum(pre, comb.mT @ X)),
    "your layer reads the streams mixed by comb as it is; it should read X as it came":
        _reads(lambda X, pre, comb: _weighted_sum(pre, comb @ X)),
    "the carried streams are missing; what the layer gives should be added to them":
        without_carried,
    "the streams pass unmixed; they should be mixed by comb": without_mixing,
    "X passes unmixed beside the mixed streams; comb should be all that passes":
        lambda X, layer, pre, post, comb: X + site(X, layer, pre, post, comb),
    "you mix what the layer has written, too; only what passes beside the layer should be mixed":
        mixes_what_was_written,
    "you mix what the layer has written, too, and your sum runs over the second index of comb; "
    "only what passes beside the layer should be mixed, with a sum over the first index":
        _mixes_all_untransposed,
    "your carried streams are only weighed by comb's diagonal; each should be the sum over j of "
    "comb[j, k] X_j":
        lambda X, layer, pre, post, comb: site(X, layer, pre, post, comb * torch.eye(X.shape[2])),
    "you mix the carried streams twice; it should be once":
        lambda X, layer, pre, post, comb: site(X, layer, pre, post, comb @ comb),
    "the weight pre comes after the layer as well; it should only weigh what is read":
        lambda X, layer, pre, post, comb: site(X, layer, pre, pre * post, comb),
    "you exchange pre and post; pre should weigh what is read, post what is written": exchanged,
    "your layer reads the plain sum of the streams; they should be weighed with pre":
        _reads(lambda X, pre, comb: X.sum(dim=2)),
    "your layer reads the mean of the streams; they should be weighed with pre":
        _reads(lambda X, pre, comb: X.mean(dim=2)),
    "your layer reads the weighted mean of the streams; it should read their weighted sum":
        _reads(lambda X, pre, comb: _weighted_sum(pre, X) / X.shape[2]),
    "you divide pre by its sum; it should weigh the streams as it is":
        _reads(lambda X, pre, comb: _weighted_sum(pre / pre.sum(dim=-1, keepdim=True), X)),
    "your layer reads the first stream; it should read all, weighed with pre":
        _reads(lambda X, pre, comb: X[:, :, 0]),
    "your layer works on each stream; it should work once, on the weighted sum":
        _layer_on_each_stream,
    "what the layer gives goes to all streams alike; it should be weighed with post":
        lambda X, layer, pre, post, comb: site(X, layer, pre, torch.ones_like(post), comb),
    "what the layer gives goes to the first stream alone; it should go to all, weighed with post":
        _writes_to_one,
    "you weigh what is written with pre; it should be post":
        lambda X, layer, pre, post, comb: site(X, layer, pre, pre, comb),
    "the layer is missing; what it gives should be written":
        lambda X, layer, pre, post, comb: site(X, lambda u: u, pre, post, comb),
    "you return what is carried alone; what the layer gives should be added":
        lambda X, layer, pre, post, comb: site(X, layer, pre, torch.zeros_like(post), comb),
}


def nonlinear(u):
    return torch.tanh(u + 0.3) * 1.7 + u.roll(1, -1)


def _site_cases(rng):
    for label, B, T, n, d in (("one token, three streams of two numbers", 1, 1, 3, 2),
                              ("B T n d", 2, 4, 4, 5), ("as many tokens as streams", 3, 3, 3, 3)):
        pre, post = torch.rand(B, T, n, generator=rng), 2 * torch.rand(B, T, n, generator=rng)
        comb = sinkhorn(2 * torch.randn(B, T, n, n, generator=rng), 20, 1e-6)
        yield label, (torch.randn(B, T, n, d, generator=rng), nonlinear, pre, post, comb)


def whole_site(X, layer, fn, scale, base, maps=maps, site=site):
    """A site from its parameters: B T n d. The last two arguments make mistakes."""
    return site(X, layer, *maps(X, fn, scale, base))


def _whole(**changes):
    return lambda *args: whole_site(*args, **changes)


def _normed(u):
    """A layer that does not see how large what it reads is."""
    return nonlinear(u / u.square().mean(dim=-1, keepdim=True).sqrt())


def _whole_cases(rng):
    X = _streams(rng, 1, 1, 3, 2)
    yield "one token, three streams", (X, nonlinear, *_site_parameters(rng, 3, 2))
    yield "B T n d", (_streams(rng, 2, 3, 4, 5), nonlinear, *_site_parameters(rng, 4, 5))
    X = 1e-3 * _streams(rng, 2, 3, 4, 5)
    yield "streams near 0, where the eps of the norm counts", (X, nonlinear,
                                                               *_site_parameters(rng, 4, 5))
    fn, scale, base = _site_parameters(rng, 4, 5)
    base[:4] -= 40
    X = _streams(rng, 2, 3, 4, 5)
    yield "gates that are shut but for the 1e-6", (X, _normed, 0.1 * fn, scale, base)


# What a repair may do to the norm before fn, and to the carried streams, besides what it should.
NORMS = {
    "the norm before fn still has its fault": _norm_of_each_stream,
    "the norm before fn is gone": _without_norm,
    "the norm before fn goes over the streams of a channel": _norm_over_streams,
    "the norm before fn goes over all tokens": _norm_over_tokens,
    "the norm before fn subtracts the mean": _layer_norm,
    "the norm before fn divides by the root of the sum": _divided_by_the_sum,
    "the norm before fn puts the numbers channel by channel": _stream_by_stream,
}
CARRIED = {
    "the carried streams still have their fault": untransposed,
    "the carried streams are not mixed": without_mixing,
    "the carried streams are only weighed by comb's diagonal":
        lambda X, layer, pre, post, comb: site(X, layer, pre, post, comb * torch.eye(X.shape[2])),
    "the carried streams are missing": without_carried,
    "X itself is added to the carried streams": lambda X, *rest: X + site(X, *rest),
    "what the layer gives is mixed with the carried streams": mixes_what_was_written,
}
RIGHT_BEFORE = {
    "the factor 2 on post is gone": dict(write=lambda a, eps: a.sigmoid()),
    "the 1e-6 on pre is gone": dict(read=lambda a, eps: a.sigmoid()),
    "the sigmoid on pre is gone": dict(read=lambda a, eps: a + eps),
    "the sigmoid on post is gone": dict(write=lambda a, eps: 2 * a),
    "pre has the factor 2, too": dict(read=lambda a, eps: 2 * a.sigmoid() + eps),
    "pre is a softmax now": dict(read=lambda a, eps: a.softmax(-1) + eps),
    "pre and post are exchanged": dict(exchanged=True),
    "base is gone": dict(add=lambda a, scale, base: a * scale),
    "scale is gone": dict(add=lambda a, scale, base: a + base),
    "scale multiplies base, too": dict(add=lambda a, scale, base: (a + base) * scale),
    "comb no longer goes through Sinkhorn": dict(sinkhorn=lambda raw, iters, eps: raw),
    "comb is only a softmax": dict(sinkhorn=lambda raw, iters, eps: raw.softmax(-1) + eps),
}
SHOULD = {_norm_of_each_stream: "it should have none", untransposed: "they should have none"}
NORM_SHOULD = "it should be over other numbers than the colleague's, and otherwise as it was"
SUM_SHOULD = "each new stream should be a sum of the old ones, weighed with comb"


def _debug_mistakes():
    """{message: wrong version} for what is not repaired, or changed where nothing was wrong."""
    return {
        f"the carried streams are right now, but {norm}; {SHOULD.get(one, NORM_SHOULD)}":
            _whole(maps=_maps(norm=one)) for norm, one in NORMS.items()
    } | {
        f"the norm before fn is right now, but {carried}; {SHOULD.get(other, SUM_SHOULD)}":
            _whole(site=other) for carried, other in CARRIED.items()
    } | {
        f"{norm}, and {carried}; your version should have no fault":
            _whole(maps=_maps(norm=one), site=other)
        for norm, one in NORMS.items() for carried, other in CARRIED.items()
        if (one is _norm_of_each_stream) != (other is untransposed)
    } | {
        f"both faults are repaired, but {change}; this was right before, and should stay":
            _whole(maps=_maps(**changes)) for change, changes in RIGHT_BEFORE.items()
    }


# ---- exact doubly stochastic matrices ----

def mixture(raw, permutations):
    """A mean of permutation matrices with the weights softmax(raw): ... n n.

    raw: ... K; permutations: K n n.
    """
    return _weighted(raw.softmax(-1), permutations)


def _weighted(weights, permutations):
    return torch.einsum("...k,kij->...ij", weights, permutations)


def _weights(change):
    """`mixture` with the weights change(raw): ... K."""
    return lambda raw, permutations: _weighted(change(raw), permutations)


def _by_position(raw, permutations):
    return sum(raw.softmax(-1)[k] * permutations[k] for k in range(len(permutations)))


def _from_the_front(raw, permutations):
    return (raw.softmax(-1)[:, None, None] * permutations).sum(0)


def _viewed(raw, permutations):
    return (raw.softmax(-1).view(-1, 1, 1) * permutations).sum(0)


def _without_ellipsis(raw, permutations):
    return torch.einsum("k,kij->ij", raw.softmax(-1), permutations)


def _summed_over_the_first(raw, permutations):
    return (raw.softmax(-1)[..., None, None] * permutations).sum(0)


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
            "you do not transpose comb; stream k of the result should be the sum over j of "
            "comb[j, k] times stream j":
                _gain(step=lambda comb, P: comb @ P),
            "your product grows on the wrong side; a new site comes after all the others, and "
            "should join on the left":
                _gain(step=lambda comb, P: P @ comb.mT),
            "your two gains are exchanged; forward should be the largest row sum, backward the "
            "largest column sum, of a product that a new site joins on the left, transposed":
                _gain(axes=(0, 1)),
            "your two gains are the same; forward should sum rows, backward columns":
                _gain(axes=(1, 1)),
            "your two gains are the same, both of columns; forward should sum rows":
                _gain(axes=(0, 0)),
            "your signs cancel; absolute values should be taken before summing":
                _gain(measure=lambda P, axis: P.sum(axis).max()),
            "you take absolute values after summing; they should be taken before, so that signs "
            "do not cancel":
                _gain(measure=lambda P, axis: P.sum(axis).abs().max()),
            "you take the mean of the sums; it should be the largest, the worst case":
                _gain(measure=lambda P, axis: P.abs().sum(axis).mean()),
            "you sum all entries; it should be the largest sum of a row, or of a column":
                _gain(measure=lambda P, axis: P.abs().sum()),
            "you take the largest entry; it should be the largest sum of a row, or of a column":
                _gain(measure=lambda P, axis: P.abs().max()),
            "you take the square root of the sum of squares; absolute values should be summed":
                _gain(measure=lambda P, axis: P.square().sum(axis).max().sqrt()),
            "you take the spectral norm; it should be the largest sum of absolute values of a row, "
            "or of a column":
                _gain(measure=lambda P, axis: torch.linalg.matrix_norm(P, 2)),
            "you measure each site alone; the sites so far should be multiplied first":
                _gain(step=lambda comb, P: comb.mT),
            "you multiply the gains of the sites; the matrices should be multiplied, and their "
            "product measured": _product_of_gains,
            "you take absolute values before multiplying; the product itself should be measured":
                _gain(step=lambda comb, P: comb.mT.abs() @ P),
            "you add the sites; they should be multiplied":
                _gain(step=lambda comb, P: comb.mT + P),
            "you multiply entry by entry; it should be a matrix product":
                _gain(step=lambda comb, P: comb.mT * P),
            "you return the gains after all sites; they should be there for the first 1, 2, ... L "
            "sites": _after_all,
        },
        hints=(
            "Keep a matrix P, at first torch.eye(n). Each layer makes a new P from the old one "
            "and its comb.",
            "One layer: X' = comb.T @ X. After two: comb_2.T @ (comb_1.T @ X). So P becomes "
            "comb.T @ P.",
            "P.abs().sum(1) are the sums of the rows, P.abs().sum(0) those of the columns. "
            "Collect the largest of each.",
        ),
        gradient=False,
    ),
    Check(
        "mhc.sinkhorn", sinkhorn, _sinkhorn_cases,
        mistakes={
            "your softmax goes over the columns; it should make each row sum to 1 (the last axis)":
                _sinkhorn(start=lambda raw, eps: raw.softmax(dim=-2) + eps),
            "your softmax goes over the whole matrix; it should make each row sum to 1":
                _sinkhorn(start=_softmax_of_all),
            "you exchange rows and columns throughout; the softmax should go over the last axis, "
            "and the columns come after it":
                lambda raw, iters, eps: sinkhorn(raw.mT, iters, eps).mT,
            "you exchange rows and columns after the softmax; columns should come first, and M's "
            "column sums are sums over axis -2":
                _sinkhorn(first=(-1,), each=(-2, -1)),
            "you do one pass only; after the first columns, rows and columns should follow "
            "iters - 1 times":
                lambda raw, iters, eps: sinkhorn(raw, 1, eps),
            "there is no Sinkhorn, only the softmax; the columns should be divided by their sums, "
            "then rows and columns again":
                lambda raw, iters, eps: raw.softmax(dim=-1) + eps,
            "your rows come last; the columns should come last":
                _sinkhorn(first=(), each=(-2, -1)),
            "your rows come last, after `iters` rounds of columns and rows; the columns should "
            "come last":
                _one_round_more(first=(), each=(-2, -1)),
            "you do one round too many; the softmax is the first pass over the rows, so iters - 1 "
            "rounds should follow the first columns": _one_round_more(),
            "you do one round too few; iters - 1 rounds should follow the first columns":
                lambda raw, iters, eps: sinkhorn(raw, max(iters - 1, 1), eps),
            "you divide the rows once more right after the softmax; the columns should come first":
                _one_round_more(first=()),
            "the columns after the softmax are missing; they should be divided by their sums "
            "before the rounds of rows and columns": _sinkhorn(first=()),
            "your rounds divide the columns only; each should divide rows, then columns":
                _sinkhorn(each=(-2,)),
            "your rounds divide the rows only; each should divide rows, then columns":
                _sinkhorn(each=(-1,)),
            "your rounds go columns, then rows, after the first columns; each should go rows, then "
            "columns":
                _sinkhorn(each=(-2, -1)),
            "you forget eps; it should be added after the softmax and to each sum":
                lambda raw, iters, eps: sinkhorn(raw, iters, 0.0),
            "eps is missing after the softmax; it should be added there, too":
                _sinkhorn(start=_softmax_without_eps),
            "eps is missing where you divide by the sums; it should be added to them":
                _sinkhorn(eps_sums=False),
            "you add eps to the quotient; it should be added to the sum that divides":
                _eps_beside_the_quotient,
            "your axes count from the front, 0 and 1; any number of axes may stand before, so rows "
            "and columns should be -1 and -2":
                _axes_from_the_front(-1),
            "your axes count from the front, 0 and 1, in the softmax too; any number of axes may "
            "stand before, so rows and columns should be -1 and -2":
                _axes_from_the_front(1),
            "you count each pass as an iteration; one iteration should be rows and columns, and "
            "the first only columns, after the softmax":
                _half_rounds,
            "you divide exponentials by (their sum + eps); it should be a softmax, and eps should "
            "be added after it":
                _sinkhorn(start=_exp_with_eps),
            "you take exp instead of softmax, without eps, and normalise the rows as in each "
            "round; exp overflows, and it should be softmax plus eps":
                _sinkhorn(start=lambda raw, eps: raw.exp(), first=(-1, -2)),
            "you take exp instead of softmax; it overflows, and the rows should be divided by "
            "their sums first":
                _sinkhorn(start=lambda raw, eps: raw.exp() + eps),
            "you do not use `iters`, but always 20; it should be the argument":
                lambda raw, iters, eps: sinkhorn(raw, 20, eps),
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
            "the factor 2 on post is missing; post should lie between 0 and 2":
                _maps(write=lambda a, eps: a.sigmoid()),
            "the factor 2 on post is inside the sigmoid; it should multiply the sigmoid":
                _maps(write=lambda a, eps: (2 * a).sigmoid()),
            "the sigmoid on pre is missing; pre should lie between 0 and 1":
                _maps(read=lambda a, eps: a + eps),
            "the sigmoid on post is missing; post should lie between 0 and 2":
                _maps(write=lambda a, eps: 2 * a),
            "your pre is a softmax; each of its numbers should be its own sigmoid":
                _maps(read=lambda a, eps: a.softmax(-1) + eps),
            "your post is a softmax; it should be 2 * sigmoid":
                _maps(write=lambda a, eps: 2 * a.softmax(-1)),
            "your pre and post are a softmax; both should be sigmoids":
                _maps(read=lambda a, eps: a.softmax(-1) + eps,
                      write=lambda a, eps: 2 * a.softmax(-1)),
            "you exchange pre and post; the first n rows of fn should give pre, the next n post":
                _maps(exchanged=True),
            "you exchange the rows of fn and base for pre and post; the first n should give pre, "
            "the next n post": _rows_exchanged,
            "your pre has the factor 2 that should be on post":
                _maps(read=lambda a, eps: 2 * a.sigmoid() + eps, write=lambda a, eps: a.sigmoid()),
            "your pre has the factor 2, too; only post should have it":
                _maps(read=lambda a, eps: 2 * a.sigmoid() + eps),
            "you forget eps on pre; it should be added after the sigmoid":
                _maps(read=lambda a, eps: a.sigmoid()),
            "you add eps to post, too; only pre and the matrix should have it":
                _maps(write=lambda a, eps: 2 * a.sigmoid() + eps),
            "you add eps to post and not to pre; it should be the other way round":
                _maps(read=lambda a, eps: a.sigmoid(), write=lambda a, eps: 2 * a.sigmoid() + eps),
            "you take the RMS of each stream by itself; it should be one RMS over all n d numbers "
            "of a token":
                _maps(norm=_norm_of_each_stream),
            "the RMS is missing; x should be divided by it before fn": _maps(norm=_without_norm),
            "you subtract the mean first, as LayerNorm does; x should only be divided by its RMS":
                _maps(norm=_layer_norm),
            "you do not use the argument norm_eps; it should be added to the mean square, inside "
            "the root":
                lambda *args: maps(*args[:-1], norm_eps=0.0),
            "you add eps to the mean square; it should be norm_eps":
                lambda *args: maps(*args[:-1], norm_eps=args[-2]),
            "your norm_eps is outside the root; it should be added to the mean square, inside":
                _maps(norm=_eps_outside),
            "you divide by the root of the sum of squares; it should be the root of their mean":
                _maps(norm=_divided_by_the_sum),
            "you put the n d numbers of a token in the wrong order; they should come stream by "
            "stream":
                _maps(norm=_stream_by_stream),
            "your scale multiplies base as well; only the part that depends on X should be scaled":
                _maps(add=lambda a, scale, base: (a + base) * scale),
            "base is missing; it should be added to the scaled part":
                _maps(add=lambda a, scale, base: a * scale),
            "scale is missing; it should multiply the part that depends on X":
                _maps(add=lambda a, scale, base: a + base),
            "you take the RMS over the n streams of each channel; it should be one RMS over all n "
            "d numbers of a token":
                _maps(norm=_norm_over_streams),
            "you take one RMS over all tokens; each token should have its own, over its n d "
            "numbers":
                _maps(norm=_norm_over_tokens),
            "your post takes the first n numbers of base, which are pre's; it should take the next "
            "n":
                _maps(add=_base_of_pre_for_post),
            "your scale divides; it should multiply the part that depends on X":
                _maps(alpha=lambda scale: 1 / scale),
            "you take a softmax of comb's rows before Sinkhorn, which does that itself; it should "
            "get the numbers as they are":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw.softmax(-1), iters, eps)),
            "you take exp of comb before Sinkhorn, which begins with a softmax; it should get the "
            "numbers as they are":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw.exp(), iters, eps)),
            "you take a sigmoid of comb before Sinkhorn; it should get the numbers as they are":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw.sigmoid(), iters, eps)),
            "you exchange the scales of pre and post; scale[0] should be pre's, scale[1] post's":
                _maps(alpha=lambda scale: scale[[1, 0, 2]]),
        } | {
            f"base is missing in {part}; all three parts should have theirs": _without_base(part)
            for part in PARTS
        } | {
            f"scale is missing in {part}; all three parts should have theirs": _without_scale(part)
            for part in PARTS
        } | {
            "you use scale[0] for all three maps; each should have its own":
                _maps(alpha=lambda scale: scale[:1].expand(3)),
            "you read the n x n numbers of comb column by column; they should be read row by row":
                _maps(order="(k j)"),
            "you transpose comb after Sinkhorn; it should stay as it is, the transpose belongs to "
            "the site":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw, iters, eps).mT),
            "your comb is only a softmax; it should go through Sinkhorn":
                _maps(sinkhorn=lambda raw, iters, eps: raw.softmax(dim=-1) + eps),
            "your comb does not go through Sinkhorn; it should":
                _maps(sinkhorn=lambda raw, iters, eps: raw),
            "you always do 20 iterations; it should be the argument `iters`":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw, 20, eps)),
            "your Sinkhorn gets 1e-6 whatever eps is; it should get the argument":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw, iters, 1e-6)),
            "your Sinkhorn gets norm_eps; it should get eps":
                lambda *args: maps_with(*args, sinkhorn=lambda raw, iters, eps:
                                        sinkhorn(raw, iters, args[-1])),
            "your Sinkhorn always takes 20 iterations and an eps of 1e-6; it should get both "
            "arguments":
                _maps(sinkhorn=lambda raw, iters, eps: sinkhorn(raw, 20, 1e-6)),
            "you always take 20 iterations and an eps of 1e-6; both should be the arguments":
                lambda *args: maps(*args[:4], norm_eps=args[-1]),
            "you multiply by fn as it is, (2+n)n x nd; it should be transposed":
                _fn_not_transposed,
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
        mistakes=SITE_MISTAKES,
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
            "both faults are still there; your version should have none":
                _whole(maps=_maps(norm=_norm_of_each_stream), site=untransposed),
            "you transpose comb before Sinkhorn; the maps should stay as they are, and the sum "
            "over comb change":
                _whole(maps=_maps(order="(k j)"), site=untransposed),
            "you transpose comb twice; only the sum over comb should change":
                _whole(maps=_maps(order="(k j)")),
            "you transpose comb before Sinkhorn, and the norm before fn still has its fault; the "
            "sum over comb should change instead":
                _whole(maps=_maps(order="(k j)", norm=_norm_of_each_stream), site=untransposed),
            "the norm's eps is another; it was 1e-6, and should stay":
                lambda X, layer, fn, scale, base: whole_site(
                    X, layer, fn, scale, base, maps=lambda *args: maps(*args, norm_eps=0.0)),
            "the norm's eps is torch's own, as F.rms_norm has it where none is given; it was 1e-6, "
            "and should stay":
                lambda X, layer, fn, scale, base: whole_site(
                    X, layer, fn, scale, base, maps=lambda *args: maps(
                        *args, norm_eps=torch.finfo(torch.float32).eps)),
        } | _debug_mistakes(),
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
            "you do not normalise the weights; a softmax should make them positive with the sum 1":
                _weights(lambda raw: raw),
            "your weights are exponentials; they should be divided by their sum":
                _weights(torch.exp),
            "your weights are sigmoids, which do not sum to 1; they should be a softmax":
                _weights(torch.sigmoid),
            "your weights are sigmoids divided by their sum; they should be a softmax":
                _weights(lambda raw: raw.sigmoid() / raw.sigmoid().sum(-1, keepdim=True)),
            "you divide the numbers by their sum, which keeps the negative ones; the weights "
            "should be a softmax":
                _weights(lambda raw: raw / raw.sum(-1, keepdim=True)),
            "you divide absolute values by their sum, so a negative number weighs much; the "
            "weights should be a softmax":
                _weights(lambda raw: raw.abs() / raw.abs().sum(-1, keepdim=True)),
            "you divide squares by their sum, so a negative number weighs much; the weights should "
            "be a softmax":
                _weights(lambda raw: raw.square() / raw.square().sum(-1, keepdim=True)),
            "you set negative numbers to 0 and divide by the sum; the weights should be a softmax":
                _weights(lambda raw: raw.relu() / raw.relu().sum(-1, keepdim=True)),
            "you subtract the smallest number and divide by the sum; the weights should be a "
            "softmax":
                _weights(lambda raw: (raw - raw.amin(-1, keepdim=True))
                         / (raw - raw.amin(-1, keepdim=True)).sum(-1, keepdim=True)),
            "you take a softmax of a softmax; it should be one":
                _weights(lambda raw: raw.softmax(-1).softmax(-1)),
            "your weights are a logarithm; they should be the softmax itself":
                _weights(lambda raw: raw.log_softmax(-1)),
            "your weights are a softmax of -raw; it should be softmax(raw)":
                _weights(lambda raw: (-raw).softmax(-1)),
            "you take weight k from the first axis; raw may have axes before, so the weights of "
            "permutation k should be weights[..., k]":
                _by_position,
            "you put the new axes of the weights after the first axis, [:, None, None]; raw may "
            "have axes before, so they should come last, [..., None, None]":
                _from_the_front,
            "you view the weights as K 1 1; raw may have axes before, which should stay":
                _viewed,
            "your einsum takes raw as K numbers; it may have axes before, which an ellipsis should "
            "stand for":
                _without_ellipsis,
            "you sum over the first axis; raw may have axes before, so the sum should be over axis "
            "-3, the permutations":
                _summed_over_the_first,
            "your softmax goes over the first axis; it should go over the K permutations, the last":
                _weights(lambda raw: raw.softmax(0)),
            "your softmax goes over all numbers; it should go over the K permutations of each "
            "matrix":
                _weights(lambda raw: raw.flatten().softmax(0).view_as(raw)),
            "you divide by K after the softmax; the weights should sum to 1":
                _weights(lambda raw: raw.softmax(-1) / raw.shape[-1]),
            "you take the permutation with the largest weight; it should be the sum of all, "
            "weighted":
                _weights(lambda raw: torch.nn.functional.one_hot(
                    raw.argmax(-1), raw.shape[-1]).to(raw.dtype)),
            "your matrices are transposed; they should be weighted sums as they are":
                lambda raw, permutations: mixture(raw, permutations).mT,
            "you take the plain mean of all permutations; they should be weighed with "
            "softmax(raw)":
                _weights(lambda raw: torch.zeros_like(raw).softmax(-1)),
        },
        hints=(
            "A mean of permutation matrices with weights that are positive and sum to 1 is doubly "
            "stochastic, exactly.",
            "Weights: raw.softmax(-1), ... K. Then a sum over k of weight k times permutations[k].",
            "torch.einsum('...k,kij->...ij', weights, permutations).",
        ),
    ),
]
