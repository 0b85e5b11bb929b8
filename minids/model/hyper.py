"""Manifold-constrained hyper-connections (mHC): n residual streams instead of one.

Report 2.2; Xie et al., arXiv 2512.24880. In the report's letters: A = pre, B = comb transposed, C = post. Here are the
three maps that a site computes from its streams, and how a layer reads from the streams and writes to them.
The parameters of a site live in `transformer.Block`, under the checkpoint's flat names.

The streams are the largest tensors of a training step, and mHC does little arithmetic on them, so that its time is the
time of walking through memory. Hence the gradients written by hand: each walks as seldom as it can, and tests hold each
to autograd's. The maps are computed with the tokens last, so that a step of Sinkhorn's runs over contiguous memory.
"""

from functools import lru_cache

import torch

from minids.model.norm import constant, inverse_rms


class Affinity(torch.autograd.Function):
    """a = fn @ x / sqrt(mean(x^2) + eps) for each token: x: N nd, fn: o x nd -> o N."""

    @staticmethod
    def forward(ctx, x, fn, eps):
        r = inverse_rms(x, eps).T                                                        # 1 N
        raw = fn @ x.T                                                                   # o N
        ctx.save_for_backward(x, fn, raw, r)
        return raw * r

    @staticmethod
    def backward(ctx, grad):
        x, fn, raw, r = ctx.saved_tensors
        dr = (grad * raw).sum(0) * r[0] ** 3 / -x.shape[1]                               # N: of r, times dr/dx = -x r^3 / nd
        grad = grad * r
        return torch.mm(grad.T, fn).addcmul_(x, dr[:, None]), grad @ x, None


class Sinkhorn(torch.autograd.Function):
    """Turn positive n x n x N matrices, the tokens last, into nearly doubly stochastic ones.

    One step is M' = M / s with s = eps + the sums of the columns (or rows); its gradient is
    dM = (dM' - sums of dM' * M') / s. The backward pass runs the steps again to have each M' and s, so that a training
    step keeps only the input.
    """

    @staticmethod
    def forward(ctx, M, iters, eps):
        ctx.save_for_backward(M)
        ctx.axes, ctx.eps = [0] + [1, 0] * (iters - 1), constant(eps, M.device)          # axis 0 sums columns
        sums = M[:1].clone(), M[:, :1].clone()
        M = M.clone()
        for axis in ctx.axes:
            M.div_(torch.sum(M, axis, keepdim=True, out=sums[axis]).add_(ctx.eps))
        return M

    @staticmethod
    def backward(ctx, grad):
        M, = ctx.saved_tensors
        done = []
        for axis in ctx.axes:
            s = M.sum(axis, keepdim=True).add_(ctx.eps)
            M = M / s
            done.append((M, s, axis))
        for M, s, axis in reversed(done):
            grad = (grad - (grad * M).sum(axis, keepdim=True)).div_(s)
        return grad, None, None


class Mix(torch.autograd.Function):
    """Y[k] = sum_j w[k, j] X[j] for each token: w: o n N, X: N n d -> N o d."""

    @staticmethod
    def forward(ctx, w, X):
        ctx.save_for_backward(w, X)
        return mix(w, X)

    @staticmethod
    def backward(ctx, grad):
        w, X = ctx.saved_tensors
        return torch.bmm(grad, X.mT).permute(1, 2, 0).contiguous(), mix(w.transpose(0, 1), grad)


def mix(w, X):
    """`Mix` without its gradient. A batch of tiny products is slow on a CPU, sums of scaled streams are not."""
    if len(X) < 64 or X.device.type != "cpu":
        return torch.bmm(w.permute(2, 0, 1), X)
    Y = X.new_empty(len(X), len(w), X.shape[2])
    for k, row in enumerate(w.unsqueeze(-1)):                                            # n N 1
        torch.mul(X[:, 0], row[0], out=Y[:, k])
        for j in range(1, len(row)):
            Y[:, k].addcmul_(X[:, j], row[j])
    return Y


class Write(torch.autograd.Function):
    """carried[k] + post[k] f for each token: carried: N n d, post: n N, f: N d."""

    @staticmethod
    def forward(ctx, carried, post, f):
        ctx.save_for_backward(post, f)
        return torch.addcmul(carried, post.T[:, :, None], f[:, None])                    # N n d

    @staticmethod
    def backward(ctx, grad):
        post, f = ctx.saved_tensors
        return grad, torch.bmm(grad, f[:, :, None]).squeeze(2).T.contiguous(), mix(post[None], grad).squeeze(1)


def maps(X, fn, scale, base, config):
    """The three maps of one site, float32, for N = B T tokens: pre n x N, post n x N, comb n x n x N.

    X: B T n d; fn: (2+n)n x nd; scale: 3, for pre, post and comb; base: (2+n)n.
    """
    n, eps = config.hc_mult, constant(config.hc_eps, X.device)
    scale = scale.index_select(0, owners(n, X.device))                                   # (2+n)n
    a = Affinity.apply(X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)          # (2+n)n N
    pre, post, comb = torch.addcmul(base[:, None], a, scale[:, None]).split([n, n, n * n])
    pre = pre.sigmoid() + eps
    post = post.sigmoid() * constant(2.0, X.device)
    comb = comb.view(n, n, -1).softmax(1) + eps
    return pre, post, Sinkhorn.apply(comb, config.hc_sinkhorn_iters, config.hc_eps)


@lru_cache(maxsize=8)
@torch.inference_mode(False)     # what is kept serves training too, whoever asks first
def owners(n: int, device):
    """Which of the three scales each of the (2+n)n outputs takes."""
    return torch.tensor([0] * n + [1] * n + [2] * n * n, device=device)


def read(X, pre, comb):
    """The layer's input, sum_j pre[j] X[j]: B T d, and the streams carried past it, sum_j comb[j, k] X[j]: B T n d."""
    B, T, n, d = X.shape
    both = torch.cat([pre[None], comb.transpose(0, 1)]).to(X.dtype)                      # n+1 n N
    u, carried = Mix.apply(both, X.view(-1, n, d)).split([1, n], dim=1)
    return u.reshape(B, T, d), carried.view(B, T, n, d)


def write(carried, f, post):
    """The streams after a layer with output f, X'[k] = post[k] f + carried[k]: B T n d."""
    return Write.apply(carried.flatten(0, 1), post.to(f.dtype), f.flatten(0, 1)).view(carried.shape)


def head(X, fn, scale, base, config):
    """One vector per token out of the streams, y = sum_j g[j] X[j]: B T d. fn: n x nd; scale: 1; base: n."""
    B, T, n, d = X.shape
    a = Affinity.apply(X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)          # n N
    g = torch.addcmul(base[:, None], a, scale).sigmoid() + config.hc_eps
    return Mix.apply(g[None].to(X.dtype), X.view(-1, n, d)).view(B, T, d)
