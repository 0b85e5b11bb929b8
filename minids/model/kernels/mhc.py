"""Hyper-connections: a site's maps, what it reads and writes, and their gradients.

Why fusing pays here: the streams are the largest tensors of a training step, and the maps are many
small ones: torch passes over them some 60 times a site, 39 of these in Sinkhorn's steps. Here the
streams are read once for everything that needs them, and the maps are computed in arrays of a chunk
of tokens, which stay in the processor's cache. In these arrays the tokens are last: the innermost
loop runs over tokens, eight at a time. The product of the maps has so few outputs that it is
computed here, too, from the same chunk of streams; torch computes the two of its gradient.

Tokens are flat, N of them. X: N n d, the streams; u and f: N d, what a layer reads and writes;
fn: o nd; raw: o N, the product fn X, with o = (2+n) n rows for pre, post and comb; r: N, the
inverse RMS of each token's streams. The head of the model is a site that only reads: o = n.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial
from minids.model.kernels.exponential import exp

Array = np.ndarray
CHUNK = 64                          # tokens
f32 = np.float32


# ---- the maps of a chunk of m tokens ----

@serial
def product(x: Array, fn: Array, begin: int, raw: Array) -> None:
    """raw_oi = fn_o x_i, four outputs at a time; x: m nd, the tokens from `begin` on."""
    o, (m, channels) = len(fn), x.shape
    for row in range(0, o, 4):
        # of fewer outputs than four, the last one is computed more than once
        row1, row2, row3 = min(row + 1, o - 1), min(row + 2, o - 1), min(row + 3, o - 1)
        f0, f1, f2, f3 = fn[row], fn[row1], fn[row2], fn[row3]
        for i in range(m):
            a0, a1, a2, a3 = f32(0), f32(0), f32(0), f32(0)
            for c in range(channels):
                a0 += x[i, c] * f0[c]
                a1 += x[i, c] * f1[c]
                a2 += x[i, c] * f2[c]
                a3 += x[i, c] * f3[c]
            raw[row, begin + i], raw[row1, begin + i] = a0, a1
            raw[row2, begin + i], raw[row3, begin + i] = a2, a3


@serial
def affinities(begin: int, raw: Array, r: Array, scale: Array, base: Array, n: int,
               a: Array) -> None:
    """a_o = raw_o r scale + base_o; pre, post and comb have a scale each."""
    o, m = a.shape
    for row in range(o):
        s, x, y = scale[min(row // n, 2)], raw[row, begin:begin + m], r[begin:begin + m]
        for t in range(m):
            a[row, t] = x[t] * y[t] * s + base[row]


@serial
def sigmoid(a: Array) -> None:
    """a = 1 / (1 + exp(-a)), in place."""
    o, m = a.shape
    for row in range(o):
        for t in range(m):
            a[row, t] = f32(1) / (f32(1) + exp(-a[row, t]))


@serial
def softmax(a: Array, eps: np.float32, M: Array, MT: Array) -> None:
    """M_jk = exp(a_jk) / (sum_k exp(a_jk)) + eps, and its transpose; a: n n rows, one for jk."""
    n, m = len(M), a.shape[1]
    top, total = np.empty(m, f32), np.empty(m, f32)
    for j in range(n):
        for t in range(m):
            top[t] = a[j * n, t]
            total[t] = f32(0)
        for k in range(1, n):
            for t in range(m):
                top[t] = max(top[t], a[j * n + k, t])
        for k in range(n):
            for t in range(m):
                M[j, k, t] = exp(a[j * n + k, t] - top[t])
                total[t] += M[j, k, t]
        for k in range(n):
            for t in range(m):
                M[j, k, t] = M[j, k, t] / total[t] + eps
                MT[k, j, t] = M[j, k, t]


@serial
def rescale(M: Array, p: Array, q: Array, eps: np.float32, new: Array) -> None:
    """Half a step of Sinkhorn's, on p_j M_jk q_k: divide the rows by eps + their sums.

    new_j = p_j / (eps + p_j sum_k M_jk q_k). With M transposed it divides the columns.
    """
    n, m = p.shape
    total = np.empty(m, f32)
    for j in range(n):
        for t in range(m):
            total[t] = f32(0)
        for k in range(n):
            for t in range(m):
                total[t] += M[j, k, t] * q[k, t]
        for t in range(m):
            new[j, t] = p[j, t] / (eps + p[j, t] * total[t])


@serial
def rescale_gradient(M: Array, p: Array, q: Array, eps: np.float32, new: Array, dnew: Array,
                     dM: Array, dq: Array) -> None:
    """The gradient of `rescale`. dnew becomes that of p, the others are added to dM and dq.

    With s_j = sum_k M_jk q_k: ds_j = -dnew_j new_j^2, dp_j = dnew_j eps (new_j / p_j)^2,
    dM_jk = ds_j q_k, dq_k = sum_j M_jk ds_j.
    """
    n, m = p.shape
    ds = np.empty(m, f32)
    for j in range(n):
        for t in range(m):
            ds[t] = -dnew[j, t] * new[j, t] * new[j, t]
            ratio = new[j, t] / p[j, t]
            dnew[j, t] *= eps * ratio * ratio
        for k in range(n):
            for t in range(m):
                dM[j, k, t] += ds[t] * q[k, t]
                dq[k, t] += M[j, k, t] * ds[t]


# ---- a site: N tokens ----

@kernel
def site(X: Array, fn: Array, scale: Array, base: Array, iters: int, hc_eps: np.float32,
         norm_eps: np.float32, raw: Array, r: Array, pre: Array, post: Array, comb: Array,
         u: Array) -> None:
    """The maps, pre n N, post n N and comb n n N, and u = sum_j pre_j X_j; also raw and r.

    With a = raw r scale + base: pre = sigmoid(a) + eps, post = 2 sigmoid(a),
    comb = Sinkhorn(softmax(a) + eps).
    """
    for chunk in prange(-(-len(X) // CHUNK)):
        chunk_of_site(np.int64(chunk), X, fn, scale, base, iters, hc_eps, norm_eps, raw, r, pre,
                      post, comb, u)


@serial
def chunk_of_site(chunk: int, X: Array, fn: Array, scale: Array, base: Array, iters: int,
                  hc_eps: np.float32, norm_eps: np.float32, raw: Array, r: Array, pre: Array,
                  post: Array, comb: Array, u: Array) -> None:
    """`site` for one chunk."""
    N, n, d = X.shape
    begin = chunk * CHUNK
    m = min(CHUNK, N - begin)
    for i in range(begin, begin + m):
        total = f32(0)
        for j in range(n):
            for c in range(d):
                total += X[i, j, c] * X[i, j, c]
        r[i] = f32(1) / np.sqrt(total / f32(n * d) + norm_eps)
    product(X.reshape(N, n * d)[begin:begin + m], fn, begin, raw)
    a = np.empty((len(raw), m), f32)
    affinities(begin, raw, r, scale, base, n, a)
    sigmoid(a[:2 * n])                      # of a head only n
    for j in range(n):
        y = pre[j, begin:begin + m]
        for t in range(m):
            y[t] = a[j, t] + hc_eps
    for i in range(begin, begin + m):
        for c in range(d):
            u[i, c] = f32(0)
        for j in range(n):
            for c in range(d):
                u[i, c] += pre[j, i] * X[i, j, c]
    if len(raw) == n:
        return
    for k in range(n):
        y = post[k, begin:begin + m]
        for t in range(m):
            y[t] = f32(2) * a[n + k, t]
    M, MT = np.empty((n, n, m), f32), np.empty((n, n, m), f32)
    softmax(a[2 * n:], hc_eps, M, MT)
    p, q = np.ones((n, m), f32), np.ones((n, m), f32)
    rescale(MT, q, p, hc_eps, q)
    for _ in range(iters - 1):
        rescale(M, p, q, hc_eps, p)
        rescale(MT, q, p, hc_eps, q)
    for j in range(n):
        for k in range(n):
            y = comb[j, k, begin:begin + m]
            for t in range(m):
                y[t] = p[j, t] * M[j, k, t] * q[k, t]


@kernel
def site_gradient(X: Array, raw: Array, r: Array, scale: Array, base: Array, iters: int,
                  eps: np.float32, dpre: Array, dpost: Array, dcomb: Array, du: Array, dY: Array,
                  dX: Array, draw: Array, dscale: Array, dbase: Array) -> None:
    """Of `site`: dX N n d, without the product draw fn; draw N o; dscale and dbase, chunks o.

    dpre_j += du X_j; dX_j = dY_j + pre_j du - dr r^3 X_j / nd, where dY is the gradient of the
    streams from elsewhere; dscale and dbase are to be summed over the chunks, dscale also over the
    rows that share a scale. Sinkhorn's steps are computed anew, which costs less than keeping them.
    """
    for chunk in prange(len(dbase)):
        chunk_of_site_gradient(np.int64(chunk), X, raw, r, scale, base, iters, eps, dpre, dpost,
                               dcomb, du, dY, dX, draw, dscale, dbase)


@serial
def chunk_of_site_gradient(chunk: int, X: Array, raw: Array, r: Array, scale: Array, base: Array,
                           iters: int, eps: np.float32, dpre: Array, dpost: Array, dcomb: Array,
                           du: Array, dY: Array, dX: Array, draw: Array, dscale: Array,
                           dbase: Array) -> None:
    """`site_gradient` for one chunk."""
    N, n, d = X.shape
    begin = chunk * CHUNK
    o, m = len(raw), min(CHUNK, N - begin)
    a, da, dr = np.empty((o, m), f32), np.empty((o, m), f32), np.zeros(m, f32)
    pre, slope = np.empty((n, m), f32), np.empty(m, f32)        # slope X is the part of r in dX
    affinities(begin, raw, r, scale, base, n, a)
    sigmoid(a[:2 * n])
    for j in range(n):
        for t in range(m):
            total = f32(0)
            for c in range(d):
                total += du[begin + t, c] * X[begin + t, j, c]
            da[j, t] = total
        dy = dpre[j, begin:begin + m]
        for t in range(m):
            pre[j, t] = a[j, t] + eps
            da[j, t] = (da[j, t] + dy[t]) * a[j, t] * (f32(1) - a[j, t])
    if o > n:
        for k in range(n):
            y = dpost[k, begin:begin + m]
            for t in range(m):
                da[n + k, t] = f32(2) * y[t] * a[n + k, t] * (f32(1) - a[n + k, t])
        comb_gradient(begin, a[2 * n:], iters, eps, dcomb, da[2 * n:])
    for row in range(o):
        s, sum_scale, sum_base = scale[min(row // n, 2)], f32(0), f32(0)
        x, y, dx = raw[row, begin:begin + m], r[begin:begin + m], draw[begin:begin + m]
        for t in range(m):
            sum_scale += da[row, t] * x[t] * y[t]
            sum_base += da[row, t]
        for t in range(m):
            dr[t] += da[row, t] * s * x[t]
        for t in range(m):
            dx[t, row] = da[row, t] * s * y[t]
        dscale[chunk, row] = sum_scale
        dbase[chunk, row] = sum_base
    y = r[begin:begin + m]
    for t in range(m):                      # dr/dX = -r^3 X / nd
        slope[t] = -dr[t] * y[t] * y[t] * y[t] / f32(n * d)
    for t in range(m):
        i = begin + t
        for j in range(n):
            for c in range(d):
                dX[i, j, c] = dY[i, j, c] + slope[t] * X[i, j, c] + pre[j, t] * du[i, c]


@serial
def comb_gradient(begin: int, a: Array, iters: int, eps: np.float32, dcomb: Array,
                  da: Array) -> None:
    """Of comb = Sinkhorn(softmax(a) + eps) for a chunk; a and da: n n rows, one for jk."""
    n, m = len(dcomb), a.shape[1]
    M, MT = np.empty((n, n, m), f32), np.empty((n, n, m), f32)
    softmax(a, eps, M, MT)
    p, q = np.ones((iters, n, m), f32), np.ones((iters + 1, n, m), f32)
    rescale(MT, q[0], p[0], eps, q[1])
    for i in range(1, iters):
        rescale(M, p[i - 1], q[i], eps, p[i])
        rescale(MT, q[i], p[i], eps, q[i + 1])

    dp, dq = np.zeros((n, m), f32), np.zeros((n, m), f32)
    dM, dMT = np.empty((n, n, m), f32), np.zeros((n, n, m), f32)
    for j in range(n):
        for k in range(n):
            y = dcomb[j, k, begin:begin + m]
            for t in range(m):
                dp[j, t] += y[t] * M[j, k, t] * q[iters, k, t]
                dq[k, t] += y[t] * M[j, k, t] * p[iters - 1, j, t]
                dM[j, k, t] = y[t] * p[iters - 1, j, t] * q[iters, k, t]
    for i in range(iters - 1, 0, -1):
        rescale_gradient(MT, q[i], p[i], eps, q[i + 1], dq, dMT, dp)
        rescale_gradient(M, p[i - 1], q[i], eps, p[i], dp, dM, dq)
    rescale_gradient(MT, q[0], p[0], eps, q[1], dq, dMT, dp)

    mean = np.empty(m, f32)                 # of the softmax: dS_jk, weighed by S_jk = M_jk - eps
    for j in range(n):
        for t in range(m):
            mean[t] = f32(0)
        for k in range(n):
            for t in range(m):
                dM[j, k, t] += dMT[k, j, t]
                mean[t] += (M[j, k, t] - eps) * dM[j, k, t]
        for k in range(n):
            for t in range(m):
                da[j * n + k, t] = (M[j, k, t] - eps) * (dM[j, k, t] - mean[t])


# ---- read and write, for any maps ----

@kernel
def read(X: Array, pre: Array, u: Array) -> None:
    """u = sum_j pre_j X_j"""
    N, n, d = X.shape
    for i in prange(N):
        for c in range(d):
            u[i, c] = f32(0)
        for j in range(n):
            for c in range(d):
                u[i, c] += pre[j, i] * X[i, j, c]


@kernel
def read_gradient(X: Array, pre: Array, du: Array, dX: Array, dpre: Array) -> None:
    """dX_j = pre_j du; dpre_j = X_j du"""
    N, n, d = X.shape
    for i in prange(N):
        for j in range(n):
            total = f32(0)
            for c in range(d):
                dX[i, j, c] = pre[j, i] * du[i, c]
            for c in range(d):
                total += X[i, j, c] * du[i, c]
            dpre[j, i] = total


@kernel
def write(X: Array, f: Array, post: Array, comb: Array, Y: Array) -> None:
    """Y_k = post_k f + sum_j comb_jk X_j"""
    N, n, d = X.shape
    for i in prange(N):
        for k in range(n):
            for c in range(d):
                Y[i, k, c] = post[k, i] * f[i, c]
            for j in range(n):
                for c in range(d):
                    Y[i, k, c] += comb[j, k, i] * X[i, j, c]


@kernel
def write_gradient(X: Array, f: Array, post: Array, comb: Array, dY: Array, dX: Array, df: Array,
                   dpost: Array, dcomb: Array) -> None:
    """dX_j = sum_k comb_jk dY_k; df = sum_k post_k dY_k; dpost_k = f dY_k; dcomb_jk = X_j dY_k"""
    N, n, d = X.shape
    for i in prange(N):
        for c in range(d):
            df[i, c] = f32(0)
        for k in range(n):
            total = f32(0)
            for c in range(d):
                df[i, c] += post[k, i] * dY[i, k, c]
            for c in range(d):
                total += f[i, c] * dY[i, k, c]
            dpost[k, i] = total
        for j in range(n):
            for c in range(d):
                dX[i, j, c] = f32(0)
            for k in range(n):
                total = f32(0)
                for c in range(d):
                    dX[i, j, c] += comb[j, k, i] * dY[i, k, c]
                for c in range(d):
                    total += X[i, j, c] * dY[i, k, c]
                dcomb[j, k, i] = total
