"""Manifold-constrained hyper-connections (mHC): n residual streams instead of one.

Report 2.2; Xie et al., arXiv 2512.24880. In the report's letters: A = pre, B = comb transposed,
C = post. Here are the three maps that a site computes from its streams, and how a layer reads from
the streams and writes to them. The parameters of a site live in `block.Block`, under the
checkpoint's flat names.

The streams are the largest tensors of a training step, and mHC does little arithmetic on them, so
its time goes into passes over memory. The gradients are therefore written by hand: they make as few
passes as possible, and tests compare them with autograd's. The maps are computed with the tokens
last, so that a step of Sinkhorn's runs over contiguous memory. Where nothing is recorded, the
functions are called without autograd: a decoded token takes 0.95 of the time that way. On a CPU in
float32, `kernels.mhc` computes all of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids.config import Config
from minids.model import kernels
from minids.model.kernels import mhc as fused
from minids.model.norm import inverse_rms

Maps = Callable[[Tensor, Tensor, Tensor, Tensor, Config], tuple[Tensor, Tensor, Tensor]]


def maps(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor,
         config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """The three maps of one site, float32, for N = B T tokens: pre n N, post n N, comb n n N.

    X: B T n d; fn: (2+n)n nd; scale: 3, for pre, post and comb; base: (2+n)n.
    """
    if kernels.on("mhc", X, fn, scale, base):
        return site(X, fn, scale, base, config)[:3]
    eps = config.hc_eps
    pre, post, comb = affinities(X, fn, scale, base, config)
    comb = comb.softmax(1) + eps
    return pre.sigmoid() + eps, 2 * post.sigmoid(), sinkhorn(comb, config.hc_sinkhorn_iters, eps)


OWN_MAPS = maps                 # a site computes these and reads in one pass


def enter(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor, config: Config,
          maps: Maps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A site's maps, and what its layer reads: u B T d, X, post and comb.

    maps: `maps`, or another function in its place. Write to the X that this returns: it equals the
    argument, and its gradient is added to that of the maps and of u in one pass.
    """
    if maps is OWN_MAPS and kernels.on("mhc", X, fn, scale, base):
        _, post, comb, u, X = site(X, fn, scale, base, config)
        return u, X, post, comb
    pre, post, comb = maps(X, fn, scale, base, config)
    return read(X, pre), X, post, comb


def site(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor,
         config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """pre, post, comb, u and X by kernels; of a head, post and comb are empty."""
    B, T, n, d = X.shape
    inputs = X.reshape(-1, n, d).contiguous(), fn, scale, base
    constants = config.hc_sinkhorn_iters, config.hc_eps, config.norm_eps
    if torch.is_grad_enabled():
        pre, post, comb, u, Y = Site.apply(*inputs, *constants)
    else:
        *_, pre, post, comb, u = fused_site(*inputs, *constants)
        Y = inputs[0]
    return pre, post, comb, u.view(B, T, d), Y.view(X.shape)


def affinities(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor,
               config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """What the three maps are made of, before any bound: n N, n N and n n N. See `maps`."""
    n = config.hc_mult
    # which of the three scales each output takes
    owner = (torch.arange((2 + n) * n, device=X.device) // n).clamp_(max=2)
    a = affinity(X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)        # (2+n)n N
    a = torch.addcmul(base[:, None], a, scale[owner][:, None])
    pre, post, comb = a.split([n, n, n * n])
    return pre, post, comb.view(n, n, -1)


def read(X: Tensor, pre: Tensor) -> Tensor:
    """The layer's input, sum_j pre[j] X[j]: B T d. X: B T n d; pre: n N."""
    B, T, n, d = X.shape
    X, pre = X.reshape(-1, n, d), pre.to(X.dtype)
    y = Read.apply(X, pre) if torch.is_grad_enabled() else read_streams(X, pre)
    return y.view(B, T, d)


def write(X: Tensor, f: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The streams after a layer with output f, X'[k] = post[k] f + sum_j comb[j, k] X[j]: B T n d.

    X: B T n d; f: B T d; post: n N; comb: n n N.
    """
    B, T, n, d = X.shape
    parts = X.reshape(-1, n, d), comb.to(X.dtype), post.to(X.dtype), f.reshape(-1, d)
    Y = Write.apply(*parts) if torch.is_grad_enabled() else write_streams(*parts)
    return Y.view(X.shape)


def head(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor, config: Config) -> Tensor:
    """One vector per token out of the streams, y = sum_j g[j] X[j]: B T d.

    X: B T n d; fn: n nd; scale: 1; base: n.
    """
    if kernels.on("mhc", X, fn, scale, base):
        return site(X, fn, scale, base, config)[3]
    a = affinity(X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)        # n N
    g = torch.addcmul(base[:, None], a, scale).sigmoid() + config.hc_eps
    return read(X, g)


# ---- the functions and their gradients; tokens are flat, N = B T ----

def affinity(x: Tensor, fn: Tensor, eps: float) -> Tensor:
    """fn @ x / sqrt(mean(x^2) + eps) for each token: x: N nd, fn: o nd -> o N."""
    if torch.is_grad_enabled():
        return Affinity.apply(x, fn, eps)
    return (fn @ x.T).mul_(inverse_rms(x, eps).T)


class Affinity(torch.autograd.Function):
    """`affinity`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fn: Tensor, eps: float) -> Tensor:
        r = inverse_rms(x, eps).T                                                # 1 N
        raw = fn @ x.T                                                           # o N
        ctx.save_for_backward(x, fn, raw, r)
        return raw * r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, fn, raw, r = ctx.saved_tensors
        # N: the gradient of r, times dr/dx = -x r^3 / nd
        dr = (grad * raw).sum(0) * r[0] ** 3 / -x.shape[1]
        grad = grad * r
        return torch.mm(grad.T, fn).addcmul_(x, dr[:, None]), grad @ x, None


def sinkhorn(M: Tensor, iters: int, eps: float) -> Tensor:
    """Make positive n x n x N matrices, the tokens last, nearly doubly stochastic.

    Alternately divides columns (axis 0 is summed) and rows by eps + their sums; columns first.
    """
    if torch.is_grad_enabled():
        return Sinkhorn.apply(M, iters, eps)
    if M.shape[2] == 1 and M.device.type == "cpu":
        return torch.from_numpy(sinkhorn_of_one(M[..., 0].numpy(), iters, eps)[..., None])
    return sinkhorn_steps(M, iters, eps)[0]


def sinkhorn_steps(M: Tensor, iters: int, eps: float) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """`sinkhorn`, and what each step divided by: [(axis, 1 n N or n 1 N), ...]."""
    M, steps = M.clone(), []
    for axis in [0] + [1, 0] * (iters - 1):
        sums = M.sum(axis, keepdim=True).add_(eps)
        M.div_(sums)
        steps.append((axis, sums))
    return M, steps


def sinkhorn_of_one(M: np.ndarray, iters: int, eps: float) -> np.ndarray:
    """`sinkhorn` of one n x n NumPy array. In decoding this pays: NumPy's calls cost less than
    torch's, and a token takes 0.8 of the time. Products with ones cost half as much as sums."""
    ones, small = np.ones_like(M), np.float32(eps)
    for columns in [True] + [False, True] * (iters - 1):
        M = M / ((ones.dot(M) if columns else M.dot(ones)) + small)
    return M


class Sinkhorn(torch.autograd.Function):
    """`sinkhorn`, with its gradient.

    One step is M' = M / s. The gradient is shorter for logarithms: with G = M dM,
    G = G' - M' * (sums of G'). A training step keeps the sums s, 1/n of a matrix each, and the
    backward pass undoes step by step, M = M' s.
    """

    @staticmethod
    def forward(ctx: Any, M: Tensor, iters: int, eps: float) -> Tensor:
        M, ctx.steps = sinkhorn_steps(M, iters, eps)
        ctx.save_for_backward(M)
        return M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        M = ctx.saved_tensors[0].clone()
        G = grad * M
        for axis, sums in reversed(ctx.steps):
            G.sub_(M * G.sum(axis, keepdim=True))
            M.mul_(sums)
        return G / M, None, None


def fused_site(X: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, hc_eps: float,
               norm_eps: float) -> tuple[Tensor, ...]:
    """raw, r, pre, post, comb, u, see `kernels.mhc`; X: N n d."""
    (N, n, d), o = X.shape, len(fn)
    k = n if o > n else 0                                       # a head writes nothing
    out = [torch.empty(shape) for shape in ((o, N), (N,), (n, N), (k, N), (k, k, N), (N, d))]
    fused.site(*kernels.arrays(X, fn, scale, base), iters, np.float32(hc_eps),
               np.float32(norm_eps), *kernels.arrays(*out))
    return tuple(out)


class Site(torch.autograd.Function):
    """`site` for X: N n d, with its gradient: kernels and two products."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, fn: Tensor, scale: Tensor, base: Tensor,
                *constants: Any) -> tuple[Tensor, ...]:
        raw, r, *outputs = fused_site(X, fn, scale, base, *constants)
        ctx.save_for_backward(X, fn, scale, base, raw, r)
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        return *outputs, X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        X, fn, scale, base, raw, r = ctx.saved_tensors
        iters, eps, _ = ctx.constants
        N, n, d = X.shape
        o, k = len(fn), n if len(fn) > n else 0
        shapes = (n, N), (k, N), (k, k, N), (N, d), (N, n, d)
        given = [torch.zeros(shape) if g is None else g for g, shape in zip(grads, shapes)]
        dX, draw = torch.empty_like(X), torch.empty(N, o)
        dscale, dbase = np.empty((2, -(-N // fused.CHUNK), o), np.float32)
        fused.site_gradient(*kernels.arrays(X, raw, r, scale, base), iters, np.float32(eps),
                            *kernels.arrays(*given, dX, draw), dscale, dbase)
        dX.view(N, -1).addmm_(draw, fn)
        dfn = draw.T @ X.view(N, -1)
        rows = torch.from_numpy(dscale.sum(0))
        by_scale = torch.stack([part.sum() for part in rows.split([n, n, n * n] if k else [n])])
        return (dX, dfn, by_scale, torch.from_numpy(dbase.sum(0)), None, None, None)


def read_streams(X: Tensor, pre: Tensor) -> Tensor:
    """sum_j pre[j] X[j] for each token: X: N n d, pre: n N -> N d."""
    if kernels.on("mhc", X, pre):
        u = X.new_empty(X.shape[0], X.shape[2])
        fused.read(*kernels.arrays(X, pre, u))
        return u
    return mix(pre[:, None], X).squeeze(1)


class Read(torch.autograd.Function):
    """`read_streams`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(X, pre)
        return read_streams(X, pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        X, pre = ctx.saved_tensors
        if kernels.on("mhc", X, pre, grad):
            dX, dpre = X.new_empty(X.shape), pre.new_empty(pre.shape)
            fused.read_gradient(*kernels.arrays(X, pre, grad, dX, dpre))
            return dX, dpre
        grad = grad[:, None]                                                     # N 1 d
        return mix(pre[None], grad), tokens_last(torch.bmm(grad, X.mT))[0]


def write_streams(X: Tensor, comb: Tensor, post: Tensor, f: Tensor) -> Tensor:
    """post[k] f + sum_j comb[j, k] X[j] for each token.

    X: N n d, comb: n n N, post: n N, f: N d -> N n d.
    """
    if kernels.on("mhc", X, comb, post, f):
        Y = X.new_empty(X.shape)
        fused.write(*kernels.arrays(X, f, post, comb, Y))
        return Y
    if few(X):
        return torch.baddbmm(post.T[:, :, None] * f[:, None], comb.permute(2, 1, 0), X)
    return sums(torch.cat([comb, post[None]]), [*X.unbind(1), f])


class Write(torch.autograd.Function):
    """`write_streams`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, comb: Tensor, post: Tensor, f: Tensor) -> Tensor:
        ctx.save_for_backward(X, comb, post, f)
        return write_streams(X, comb, post, f)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        X, comb, post, f = ctx.saved_tensors
        if kernels.on("mhc", X, comb, post, f, grad):
            dX, df, dpost, dcomb = (t.new_empty(t.shape) for t in (X, f, post, comb))
            fused.write_gradient(*kernels.arrays(X, f, post, comb, grad, dX, df, dpost, dcomb))
            return dX, dcomb, dpost, df
        # N 1 n: a row times a matrix, four times as fast as its transpose
        dpost = torch.bmm(f[:, None], grad.mT)
        return (mix(comb.transpose(0, 1), grad), tokens_last(torch.bmm(X, grad.mT)),
                tokens_last(dpost)[0], mix(post[:, None], grad).squeeze(1))


def mix(w: Tensor, X: Tensor) -> Tensor:
    """Y[k] = sum_j w[j, k] X[j] for each token: w: n o N, X: N n d -> N o d."""
    return torch.bmm(w.permute(2, 1, 0), X) if few(X) else sums(w, X.unbind(1))


def few(X: Tensor) -> bool:
    """Whether a batched product serves the streams X. On a CPU a product of many tiny matrices is
    slow, and `sums` is not."""
    return len(X) < 64 or X.device.type != "cpu"


def sums(w: Tensor, streams: Sequence[Tensor]) -> Tensor:
    """`mix`, stream by stream; streams: n of N d."""
    Y = streams[0].new_empty(w.shape[2], w.shape[1], streams[0].shape[1])
    for y, column in zip(Y.unbind(1), w.unsqueeze(-1).unbind(1)):                # N d, n N 1
        scales = column.unbind()
        torch.mul(streams[0], scales[0], out=y)
        for x, scale in zip(streams[1:], scales[1:]):
            y.addcmul_(x, scale)
    return Y


def tokens_last(t: Tensor) -> Tensor:
    """N a b -> a b N."""
    return t.permute(1, 2, 0).contiguous()
