"""Manifold-constrained hyper-connections (mHC): n residual streams instead of one.

Report 2.2; Xie et al., arXiv 2512.24880. In the report's letters: A = pre, B = comb transposed, C = post. Here are the
three maps that a site computes from its streams, and how a layer reads from the streams and writes to them.
The parameters of a site live in `transformer.Block`, under the checkpoint's flat names.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from minids.model.norm import constant, inverse_rms


@lru_cache(maxsize=8)
def sums(n: int, device):
    """Matrices that replace each entry of an n x n matrix, laid flat, by the sum of its column, or of its row: nn x nn."""
    one, eye = torch.ones(n, n, device=device), torch.eye(n, device=device)
    return torch.kron(one, eye), torch.kron(eye, one)


class Sinkhorn(torch.autograd.Function):
    """Turn positive n x n matrices, laid flat (N x nn), into nearly doubly stochastic ones.

    One step is M' = M / s with s = eps + the sums of the columns (or rows); its gradient is
    dM = (dM' - sums of dM' * M') / s. The backward pass runs the steps again to have each M' and s, so that a training
    step keeps only the input. As a product with a constant matrix, a step is two operations on contiguous memory.
    """

    @staticmethod
    def steps(M, iters):
        columns, rows = sums(math.isqrt(M.shape[1]), M.device)
        return [columns] + [rows, columns] * (iters - 1)

    @staticmethod
    def forward(ctx, M, iters, eps):
        ctx.save_for_backward(M)
        ctx.iters, ctx.eps = iters, constant(eps, M.device)
        M, s = M.clone(), torch.empty_like(M)
        for total in Sinkhorn.steps(M, iters):
            M.div_(torch.mm(M, total, out=s).add_(ctx.eps))
        return M

    @staticmethod
    def backward(ctx, grad):
        M, = ctx.saved_tensors
        done = []
        for total in Sinkhorn.steps(M, ctx.iters):
            s = torch.mm(M, total).add_(ctx.eps)
            M = M / s
            done.append((M, s, total))
        for M, s, total in reversed(done):
            grad = torch.addmm(grad, grad * M, total, alpha=-1).div_(s)
        return grad, None, None


class Write(torch.autograd.Function):
    """carried + post (outer) f, for N tokens: the sum that autograd would take apart into five passes over N n d."""

    @staticmethod
    def forward(ctx, carried, post, f):
        ctx.save_for_backward(post, f)
        return torch.addcmul(carried, post[:, :, None], f[:, None])                      # N n d

    @staticmethod
    def backward(ctx, grad):
        post, f = ctx.saved_tensors
        return grad, torch.bmm(grad, f[:, :, None]).squeeze(2), torch.bmm(post[:, None], grad).squeeze(1)


def affinities(X, fn, scale, base, eps):
    """a * scale + base for a = fn @ x / sqrt(mean(x^2) + eps), with x = all of a token's streams: N rows for N = B T tokens."""
    x = X.flatten(2).flatten(0, 1).float()                                               # N nd
    return torch.addcmul(base, F.linear(x, fn) * inverse_rms(x, eps), scale)


def maps(X, fn, scale, base, config):
    """The three maps of one site, float32, for N = B T tokens: pre N x n, post N x n, comb N x n x n.

    X: B T n d; fn: (2+n)n x nd; scale: 3, for pre, post and comb; base: (2+n)n.
    """
    n, eps = config.hc_mult, constant(config.hc_eps, X.device)
    scale = scale.index_select(0, owners(n, X.device))                                   # (2+n)n
    pre, post, comb = affinities(X, fn, scale, base, config.norm_eps).split([n, n, n * n], dim=-1)
    pre = pre.sigmoid() + eps                                                            # N n
    post = post.sigmoid() * constant(2.0, X.device)                                      # N n
    comb = comb.view(-1, n, n).softmax(-1).view(-1, n * n) + eps                         # N nn
    comb = Sinkhorn.apply(comb, config.hc_sinkhorn_iters, config.hc_eps)
    return pre, post, comb.view(-1, n, n)


@lru_cache(maxsize=8)
def owners(n: int, device):
    """Which of the three scales each of the (2+n)n outputs takes."""
    return torch.tensor([0] * n + [1] * n + [2] * n * n, device=device)


def read(X, pre, comb):
    """The layer's input, sum_j pre[j] X[j]: B T d, and the streams carried past it, sum_j comb[j, k] X[j]: B T n d.

    Both are sums over the streams, so one product does: N n+1 n times N n d.
    """
    B, T, n, d = X.shape
    both = torch.cat([pre[:, None], comb.mT], dim=1).to(X.dtype)                         # N n+1 n
    u, carried = torch.bmm(both, X.view(-1, n, d)).split([1, n], dim=1)
    return u.reshape(B, T, d), carried.view(B, T, n, d)


def write(carried, f, post):
    """The streams after a layer with output f, X'[k] = post[k] f + carried[k]: B T n d."""
    return Write.apply(carried.flatten(0, 1), post.to(f.dtype), f.flatten(0, 1)).view_as(carried)


def head(X, fn, scale, base, config):
    """One vector per token out of the streams, y = sum_j g[j] X[j]: B T d. fn: n x nd; scale: 1; base: n."""
    g = affinities(X, fn, scale, base, config.norm_eps).sigmoid() + config.hc_eps        # N n
    B, T, n, d = X.shape
    return torch.bmm(g[:, None].to(X.dtype), X.view(-1, n, d)).view(B, T, d)
