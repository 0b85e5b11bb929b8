"""Manifold-constrained hyper-connections (mHC): n residual streams instead of one.

Report 2.2; Xie et al., arXiv 2512.24880. In the report's letters: A = pre, B = comb transposed, C = post. Here are the
three maps that a site computes from its streams, and how a layer reads from the streams and writes to them.
The parameters of a site live in `transformer.Block`, under the checkpoint's flat names.

The streams are the largest tensors of a training step, and mHC does little arithmetic on them, so that its time is the
time of walking through memory. Hence the gradients written by hand: each walks as seldom as it can, and tests hold each
to autograd's. The maps are computed with the tokens last, so that a step of Sinkhorn's runs over contiguous memory.
"""

from functools import lru_cache

import numpy as np
import torch

from minids.model.norm import call, constant, inverse_rms


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

    One step is M' = M / s with s = eps + the sums of the columns (or rows). The gradient is shorter for logarithms: with
    G = M dM, G = G' - M' * (sums of G'). A training step keeps the sums, a quarter of a matrix each, and the backward pass
    undoes step by step, M = M' s.
    """

    @staticmethod
    def forward(ctx, M, iters, eps):
        if M.device.type == "cpu" and M.shape[2] == 1 and not ctx.needs_input_grad[0]:
            return torch.from_numpy(sinkhorn_of_one(small(M)[..., 0], iters, np.float32(eps))[..., None])
        M, ctx.steps = small(M.clone()), []
        for axis in [0] + [1, 0] * (iters - 1):                                          # axis 0 sums columns
            s = M.sum(axis, keepdims=True)
            s += eps
            M /= s
            ctx.steps.append((axis, s))
        M = torch.as_tensor(M)
        ctx.save_for_backward(M)
        return M

    @staticmethod
    def backward(ctx, grad):
        M = small(ctx.saved_tensors[0].clone())
        G = small(grad) * M
        for axis, s in reversed(ctx.steps):
            G -= M * G.sum(axis, keepdims=True)
            M *= s
        return torch.as_tensor(G / M), None, None


def sinkhorn_of_one(M, iters: int, eps: float):
    """The same for one n x n array. Products with ones cost half as much as NumPy's sums where n is small."""
    ones = np.ones_like(M)
    for columns in [True] + [False, True] * (iters - 1):
        M = M / ((ones.dot(M) if columns else M.dot(ones)) + eps)
    return M


def small(M):
    """On a CPU the same memory as a NumPy array: a call costs less, and NumPy does not share a few thousand numbers among
    cores, which takes longer than the sum itself."""
    return M.detach().numpy() if M.device.type == "cpu" else M


class Read(torch.autograd.Function):
    """sum_j pre[j] X[j] for each token: X: N n d, pre: n N -> N d."""

    @staticmethod
    def forward(ctx, X, pre):
        ctx.save_for_backward(X, pre)
        return mix(pre[:, None], X).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        X, pre = ctx.saved_tensors
        grad = grad[:, None]                                                             # N 1 d
        return mix(pre[None], grad), tokens_last(torch.bmm(grad, X.mT))[0]


class Write(torch.autograd.Function):
    """post[k] f + sum_j comb[j, k] X[j] for each token: X: N n d, comb: n n N, post: n N, f: N d -> N n d."""

    @staticmethod
    def forward(ctx, X, comb, post, f):
        ctx.save_for_backward(X, comb, post, f)
        f = f[:, None]                                                                   # N 1 d
        if few(X):
            return torch.baddbmm(post.T[:, :, None] * f, comb.permute(2, 1, 0), X)
        return sums(torch.cat([comb, post[None]]), [*X.unbind(1), f.squeeze(1)])

    @staticmethod
    def backward(ctx, grad):
        X, comb, post, f = ctx.saved_tensors
        dpost = torch.bmm(f[:, None], grad.mT)         # N 1 n: a row times a matrix, four times as fast as its transpose
        return (mix(comb.transpose(0, 1), grad), tokens_last(torch.bmm(X, grad.mT)), tokens_last(dpost)[0],
                mix(post[:, None], grad).squeeze(1))


def mix(w, X):
    """Y[k] = sum_j w[j, k] X[j] for each token: w: n o N, X: N n d -> N o d."""
    return torch.bmm(w.permute(2, 1, 0), X) if few(X) else sums(w, X.unbind(1))


def few(X):
    """Whether a batched product serves the streams X. On a CPU one of many tiny matrices is slow, and `sums` are not."""
    return len(X) < 64 or X.device.type != "cpu"


def sums(w, streams):
    """`mix`, stream by stream; streams: n of N d."""
    Y = streams[0].new_empty(w.shape[2], w.shape[1], streams[0].shape[1])
    for y, column in zip(Y.unbind(1), w.unsqueeze(-1).unbind(1)):                        # N d, n N 1
        scales = column.unbind()
        torch.mul(streams[0], scales[0], out=y)
        for x, scale in zip(streams[1:], scales[1:]):
            y.addcmul_(x, scale)
    return Y


def tokens_last(t):
    """N a b -> a b N."""
    return t.permute(1, 2, 0).contiguous()


def maps(X, fn, scale, base, config):
    """The three maps of one site, float32, for N = B T tokens: pre n x N, post n x N, comb n x n x N.

    X: B T n d; fn: (2+n)n x nd; scale: 3, for pre, post and comb; base: (2+n)n.
    """
    eps = constant(config.hc_eps, X.device)
    pre, post, comb = affinities(X, fn, scale, base, config)
    pre = pre.sigmoid() + eps
    post = post.sigmoid() * constant(2.0, X.device)
    comb = comb.softmax(1) + eps
    return pre, post, call(Sinkhorn, comb, config.hc_sinkhorn_iters, config.hc_eps)


def affinities(X, fn, scale, base, config):
    """What the three maps are made of, before any bound: n x N, n x N and n x n x N, of the same arguments."""
    n = config.hc_mult
    scale = scale.index_select(0, owners(n, X.device))                                   # (2+n)n
    a = call(Affinity, X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)          # (2+n)n N
    pre, post, comb = torch.addcmul(base[:, None], a, scale[:, None]).split([n, n, n * n])
    return pre, post, comb.view(n, n, -1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)     # what is kept serves training too, whoever asks first
def owners(n: int, device):
    """Which of the three scales each of the (2+n)n outputs takes."""
    return torch.tensor([0] * n + [1] * n + [2] * n * n, device=device)


def read(X, pre):
    """The layer's input, sum_j pre[j] X[j]: B T d. X: B T n d."""
    B, T, n, d = X.shape
    return call(Read, X.view(-1, n, d), pre.to(X.dtype)).view(B, T, d)


def write(X, f, post, comb):
    """The streams after a layer with output f, X'[k] = post[k] f + sum_j comb[j, k] X[j]: B T n d. f: B T d."""
    B, T, n, d = X.shape
    return call(Write, X.view(-1, n, d), comb.to(X.dtype), post.to(X.dtype), f.reshape(-1, d)).view(X.shape)


def head(X, fn, scale, base, config):
    """One vector per token out of the streams, y = sum_j g[j] X[j]: B T d. fn: n x nd; scale: 1; base: n."""
    a = call(Affinity, X.flatten(2).flatten(0, 1).float(), fn, config.norm_eps)          # n N
    g = torch.addcmul(base[:, None], a, scale).sigmoid() + config.hc_eps
    return read(X, g)
