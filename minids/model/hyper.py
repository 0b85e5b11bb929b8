"""Manifold-constrained hyper-connections (mHC): n residual streams instead of one.

Report 2.2; Xie et al., arXiv 2512.24880. In the report's letters: A = pre, B = comb transposed, C = post. Here are the
three maps that a site computes from its streams, and how a layer reads from the streams and writes to them.
The parameters of a site live in `transformer.Block`, under the checkpoint's flat names.
"""

import torch
import torch.nn.functional as F


class Sinkhorn(torch.autograd.Function):
    """Turn positive n x n matrices into nearly doubly stochastic ones, with a gradient that keeps no recorded steps.

    Input and output: n x n x N, the tokens last, so that each of the small divisions runs over contiguous memory.
    One step is M' = M / s with s = sum(M) + eps along an axis; its gradient is dM = (dM' - sum(dM' * M')) / s. The
    backward pass runs the steps again to have each M' and s.
    """

    @staticmethod
    def steps(M, iters, eps):
        for axis in [0] + [1, 0] * (iters - 1):     # columns first: axis 0 is summed away, then rows, columns, ...
            s = M.sum(axis, keepdim=True).add_(eps)
            M = M / s
            yield M, s, axis

    @staticmethod
    def forward(ctx, M, iters, eps):
        ctx.save_for_backward(M)
        ctx.iters, ctx.eps = iters, eps
        for M, _, _ in Sinkhorn.steps(M, iters, eps):
            pass
        return M

    @staticmethod
    def backward(ctx, grad):
        for M, s, axis in reversed(list(Sinkhorn.steps(*ctx.saved_tensors, ctx.iters, ctx.eps))):
            grad = (grad - (grad * M).sum(axis, keepdim=True)).div_(s)
        return grad, None, None


def maps(X, fn, scale, base, config):
    """The three maps of one site: pre and post, N x n, and comb, N x n x n, for N = B T tokens. All float32.

    X: B T n d; fn: (2+n)n x nd; scale: 3; base: (2+n)n.
    """
    n, eps = config.hc_mult, config.hc_eps
    x = X.flatten(2).float()                                                             # B T nd
    a = F.linear(x, fn) * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_eps)
    pre, post, comb = a.flatten(0, 1).split([n, n, n * n], dim=-1)                       # N n, N n, N nn
    base_pre, base_post, base_comb = base.split([n, n, n * n])
    pre = torch.sigmoid(pre * scale[0] + base_pre) + eps
    post = 2 * torch.sigmoid(post * scale[1] + base_post)
    comb = (comb * scale[2] + base_comb).T.reshape(n, n, -1)                             # n n N, for Sinkhorn
    comb = Sinkhorn.apply(torch.softmax(comb, dim=1) + eps, config.hc_sinkhorn_iters, eps)
    return pre, post, comb.permute(2, 0, 1)


def read(X, pre):
    """The layer's input, u = sum_j pre[j] X[j]: B T d."""
    B, T, n, d = X.shape
    u = torch.bmm(pre[:, None].to(X.dtype), X.view(-1, n, d))                            # N 1 d
    return u.view(B, T, d)


def write(X, f, post, comb):
    """The streams after a layer with output f, X'[k] = post[k] f + sum_j comb[j, k] X[j]: B T n d."""
    B, T, n, d = X.shape
    new = torch.bmm(post[:, :, None].to(X.dtype), f.view(-1, 1, d))                      # N n d
    new = torch.baddbmm(new, comb.mT.to(X.dtype), X.view(-1, n, d))
    return new.view(B, T, n, d)


def head(X, fn, scale, base, config):
    """One vector per token out of the streams, y = sum_j g[j] X[j]: B T d. fn: n x nd; scale: 1; base: n."""
    x = X.flatten(2).float()
    a = F.linear(x, fn) * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_eps)
    g = torch.sigmoid(a * scale + base) + config.hc_eps                                  # B T n
    return read(X, g.flatten(0, 1))
