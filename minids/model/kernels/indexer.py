"""The lightning indexer's scores, with their gradient.

    s[j, r] = k[j] . q[r]        score[t, j] = sum over the heads r of token t: w[r] relu(s[j, r])

and the gradient, from d[t, j]:

    dw[r] = sum_j d[t, j] relu(s[j, r])           ds[j, r] = d[t, j] w[r] where s[j, r] > 0, else 0
    dq[r] = sum_j ds[j, r] k[j]                   dk[j] = sum_r ds[j, r] q[r]

The scores of single heads are Hi times as many as their sums. torch writes and reads them several
times, here they stay in the processor's cache, four entries at a time, for a block of tokens. A row
r is a token's head: first all tokens of one head, then those of the next, so that the innermost
loops run over contiguous numbers. The gradient computes the scores again.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial

ROWS = 256          # of a block, about
Array = np.ndarray
f32 = np.float32


@kernel
def score(q: Array, w: Array, keys: Array, scores: Array) -> None:
    """q: B T Hi ci; w: B T Hi; keys: B S ci -> scores: B T S."""
    B, T, H, _ = q.shape
    size = max(ROWS // H, 1)
    n = -(-T // size)
    for i in prange(B * n):
        b, start = i // n, i % n * size
        stop = min(start + size, T)
        score_block(q[b, start:stop], w[b, start:stop], keys[b], scores[b, start:stop])


@kernel
def score_gradient(q: Array, w: Array, keys: Array, d: Array, dq: Array, dw: Array,
                   dkeys: Array) -> None:
    """As `score`, and d: B T S -> dq: B T Hi ci; dw: B T Hi; and, zero before, dkeys: B parts S ci,
    whose sum over parts is the gradient."""
    B, T, H, _ = q.shape
    size, parts = max(ROWS // H, 1), dkeys.shape[1]
    n = -(-T // size)
    for i in prange(B * parts):
        b, part = i // parts, i % parts
        for number in range(n * part // parts, n * (part + 1) // parts):
            start, stop = number * size, min(number * size + size, T)
            gradient_of_block(q[b, start:stop], w[b, start:stop], keys[b], d[b, start:stop],
                              dq[b, start:stop], dw[b, start:stop], dkeys[b, part])


@serial
def score_block(q: Array, w: Array, keys: Array, scores: Array) -> None:
    """What `score` does, for a block of n tokens. q: n Hi ci; keys: S ci."""
    n, H, _ = q.shape
    Q, K = by_heads(q), padded(keys)
    s, sums = np.empty((4, n * H), f32), np.empty((4, n), f32)
    for j in range(0, len(K), 4):
        products(K[j:j + 4], Q, s)
        for u in range(min(4, len(keys) - j)):
            sum_ = sums[u]
            for t in range(n):
                sum_[t] = f32(0.0)
            for h in range(H):
                x = s[u, h * n:]
                for t in range(n):
                    sum_[t] += w[t, h] * max(x[t], f32(0.0))
            for t in range(n):
                scores[t, j + u] = sum_[t]


@serial
def gradient_of_block(q: Array, w: Array, keys: Array, d: Array, dq: Array, dw: Array,
                      dkeys: Array) -> None:
    """What `score_gradient` does, for a block."""
    n, H, c = q.shape
    Q, K = by_heads(q), padded(keys)
    W = np.empty((H, n), f32)
    for t in range(n):
        for h in range(H):
            W[h, t] = w[t, h]
    s, dQ, dW, dj = np.empty((4, n * H), f32), np.zeros_like(Q), np.zeros_like(W), np.empty(n, f32)
    for j in range(0, len(K), 4):
        products(K[j:j + 4], Q, s)
        for u in range(4):
            for t in range(n):
                dj[t] = d[t, j + u] if j + u < len(keys) else f32(0.0)
            for h in range(H):
                x, wh, dwh = s[u, h * n:], W[h], dW[h]
                for t in range(n):
                    dwh[t] += dj[t] * max(x[t], f32(0.0))
                    x[t] = dj[t] * wh[t] if x[t] > f32(0.0) else f32(0.0)
        mix(K[j:j + 4], s, dQ)
        for u in range(min(4, len(keys) - j)):
            outer(s[u], Q, dkeys[j + u])
    for t in range(n):
        for h in range(H):
            dw[t, h] = dW[h, t]
            for i in range(c):
                dq[t, h, i] = dQ[i, h * n + t]


@serial
def by_heads(q: Array) -> Array:
    """C R: one column for each row r; zeros fill the channels up to a multiple of 4. q: n Hi ci."""
    n, H, c = q.shape
    Q = np.zeros((-(-c // 4) * 4, n * H), f32)
    for t in range(n):
        for h in range(H):
            for i in range(c):
                Q[i, h * n + t] = q[t, h, i]
    return Q


@serial
def padded(keys: Array) -> Array:
    """Keys and channels filled with zeros up to multiples of 4."""
    S, c = keys.shape
    K = np.zeros((-(-S // 4) * 4, -(-c // 4) * 4), f32)
    for j in range(S):
        for i in range(c):
            K[j, i] = keys[j, i]
    return K


@serial
def products(K: Array, Q: Array, s: Array) -> None:
    """s[j, r] = sum_i K[j, i] Q[i, r], for four keys."""
    s[:] = f32(0.0)
    for j in range(0, 4, 2):
        s0, s1 = s[j], s[j + 1]
        for i in range(0, len(Q), 4):
            x0, x1, x2, x3 = Q[i], Q[i + 1], Q[i + 2], Q[i + 3]
            k0, k1, k2, k3 = K[j, i], K[j, i + 1], K[j, i + 2], K[j, i + 3]
            l0, l1, l2, l3 = K[j + 1, i], K[j + 1, i + 1], K[j + 1, i + 2], K[j + 1, i + 3]
            for r in range(len(s0)):
                s0[r] += k0 * x0[r] + k1 * x1[r] + k2 * x2[r] + k3 * x3[r]
                s1[r] += l0 * x0[r] + l1 * x1[r] + l2 * x2[r] + l3 * x3[r]


@serial
def mix(K: Array, s: Array, O: Array) -> None:
    """O[i, r] += sum_j s[j, r] K[j, i], over four keys."""
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    for i in range(0, len(O), 2):
        o0, o1 = O[i], O[i + 1]
        k0, k1, k2, k3 = K[0, i], K[1, i], K[2, i], K[3, i]
        l0, l1, l2, l3 = K[0, i + 1], K[1, i + 1], K[2, i + 1], K[3, i + 1]
        for r in range(len(o0)):
            o0[r] += k0 * s0[r] + k1 * s1[r] + k2 * s2[r] + k3 * s3[r]
            o1[r] += l0 * s0[r] + l1 * s1[r] + l2 * s2[r] + l3 * s3[r]


@serial
def outer(s: Array, Q: Array, dk: Array) -> None:
    """dk[i] += sum_r s[r] Q[i, r]."""
    for i in range(len(dk)):
        x = Q[i]
        total = f32(0.0)
        for r in range(len(s)):
            total += s[r] * x[r]
        dk[i] += total
