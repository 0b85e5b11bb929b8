"""Attention to a window, to compressed entries and to a sink, a block of queries at a time.

    s[j, r] = q[r] . k[j] / sqrt(c)
    p[j, r] = exp(s[j, r]) / (sum_j exp(s[j, r]) + exp(sink))
    o[r] = sum_j p[j, r] k[j]                                       (keys are values)

and the gradient, from do:

    ds[j, r] = p[j, r] (do[r] . k[j] - D[r])         D[r] = sum_j p[j, r] do[r] . k[j]
    dq[r] = sum_j ds[j, r] k[j] / sqrt(c)            dsink = -sum_r exp(sink - ...) D[r]
    dk[j] = sum_r ds[j, r] q[r] / sqrt(c) + p[j, r] do[r]

In torch this is a dozen passes over scores, which are larger than queries, keys and outputs
together; most of them are masked. Here a block's scores stay in the processor's cache, and keys
that none of its queries sees cost nothing. The gradient computes the scores again: nothing is kept
for it but what the layer has anyway.

A row r is a token's head. Matrices have one column for each row of the block, so that the
innermost loops run over up to ROWS contiguous numbers. Keys come in groups of 4; the queries that
see some of group g are rows first[g] to last[g].
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial
from minids.model.kernels.exponential import exp

ROWS = 128          # of a block, about
Array = np.ndarray
f32 = np.float32


@kernel
def attend(q: Array, kv: Array, window: Array, entries: Array, unseen: Array, sink: Array,
           o: Array, weights: Array) -> None:
    """q: B T H c; kv: B before+T c; window: 1 T' before+b, or B T' before+b; entries: B S c;
    unseen: 1 T S, or B T S; sink: H -> o: B T H c; weights: B T H S, p of the entries, or
    B T H 0: not wanted.

    `window` and `unseen` hold 0, or -inf where a query does not see a key. Queries i b to i b + b
    have the keys i b to i b + b + before.
    """
    B, T, H, c = q.shape
    b = window.shape[2] - kv.shape[1] + T
    n, size = blocks(T, H, b)
    for i in prange(B * n):
        attend_block(i // n, block(i % n, T, b, size), q, kv, window, entries, unseen, sink, o,
                     weights)


@kernel
def attend_gradient(q: Array, kv: Array, window: Array, entries: Array, unseen: Array, sink: Array,
                    do: Array, dq: Array, dkv: Array, dentries: Array, dsink: Array) -> None:
    """As `attend`, and do: B T H c -> dq: B T H c; and, zero before, dkv: B parts before+T c,
    dentries: B parts S c and dsink: B parts H, whose sums over parts are the gradients."""
    B, T, H, c = q.shape
    b = window.shape[2] - kv.shape[1] + T
    n, size = blocks(T, H, b)
    P = dkv.shape[1]
    for i in prange(B * P):
        batch, part = i // P, i % P
        for number in range(n * part // P, n * (part + 1) // P):
            gradient_of_block(batch, part, block(number, T, b, size), q, kv, window, entries,
                              unseen, sink, do, dq, dkv, dentries, dsink)


@serial
def attend_block(batch: int, where: tuple[int, int, int], q: Array, kv: Array, window: Array,
                 entries: Array, unseen: Array, sink: Array, o: Array, weights: Array) -> None:
    """What `attend` does, for the block that lies `where` in a sequence."""
    base, start, stop = where
    H, c, W = q.shape[2], q.shape[3], window.shape[2]
    mask = masks(window[batch % len(window), start:stop], unseen[batch % len(unseen), start:stop])
    first, last, holes = spans(mask, H)
    keys = gathered(kv[batch, base:base + W], entries[batch], W)
    Q = transposed(q[batch, start:stop], keys.shape[1], f32(c ** -0.5))
    p = products(keys, Q, first, last)
    hide(p, mask, first, last, holes, H)
    softmax(p, sink, first, last)
    restore(mix(keys, p, first, last), o[batch, start:stop], f32(1.0))
    if weights.shape[3]:
        copy_weights(p, weights[batch, start:stop], W, first, last)


@serial
def gradient_of_block(batch: int, part: int, where: tuple[int, int, int], q: Array, kv: Array,
                      window: Array, entries: Array, unseen: Array, sink: Array, do: Array,
                      dq: Array, dkv: Array, dentries: Array, dsink: Array) -> None:
    """What `attend_gradient` does, for one block."""
    base, start, stop = where
    H, c, W = q.shape[2], q.shape[3], window.shape[2]
    mask = masks(window[batch % len(window), start:stop], unseen[batch % len(unseen), start:stop])
    first, last, holes = spans(mask, H)
    keys = gathered(kv[batch, base:base + W], entries[batch], W)
    Q = transposed(q[batch, start:stop], keys.shape[1], f32(c ** -0.5))
    dO = transposed(do[batch, start:stop], keys.shape[1], f32(1.0))
    p = products(keys, Q, first, last)
    hide(p, mask, first, last, holes, H)
    rest = softmax(p, sink, first, last)
    ds = products(keys, dO, first, last)
    D = through_softmax(p, ds, first, last)
    for r in range(len(D)):
        dsink[batch, part, r % H] -= rest[r] * D[r]
    restore(mix(keys, ds, first, last), dq[batch, start:stop], f32(c ** -0.5))
    dk = outer(p, dO, ds, Q, first, last)
    add(dk, dkv[batch, part, base:base + W])
    add(dk[W:], dentries[batch, part])


@serial
def blocks(T: int, H: int, b: int) -> tuple[int, int]:
    """How many blocks of queries there are, and how many tokens are in one: about ROWS / H, no more
    than the b queries that have the same keys."""
    size = min(max(ROWS // H, 1), b)
    return -(-T // b) * -(-b // size), size


@serial
def block(i: int, T: int, b: int, size: int) -> tuple[int, int, int]:
    """Where the keys of block i begin; its first token, and the one after its last."""
    each = -(-b // size)
    base = i // each * b
    start = min(base + i % each * size, T)
    return base, start, min(start + size, base + b, T)


@serial
def masks(near: Array, far: Array) -> Array:
    """n K: both masks side by side, -inf where the last group has no key."""
    n, W, S = len(near), near.shape[1], far.shape[1]
    mask = np.full((n, -(-(W + S) // 4) * 4), f32(-np.inf))
    for t in range(n):
        for j in range(W):
            mask[t, j] = near[t, j]
        for j in range(S):
            mask[t, W + j] = far[t, j]
    return mask


@serial
def spans(mask: Array, H: int) -> tuple[Array, Array, Array]:
    """For each group of 4 keys: the first row that sees one of them, the one after the last row,
    and whether some in between does not see all 4. mask: n K."""
    n, K = mask.shape
    low, high, count = np.full(K, n, np.int32), np.zeros(K, np.int32), np.zeros(K, np.int32)
    for t in range(n):
        for j in range(K):
            sees = mask[t, j] == f32(0.0)
            low[j] = min(low[j], np.int32(t) if sees else np.int32(n))
            high[j] = max(high[j], np.int32(t + 1) if sees else np.int32(0))
            count[j] += np.int32(sees)
    first, last = np.empty(K // 4, np.int64), np.empty(K // 4, np.int64)
    holes = np.empty(K // 4, np.bool_)
    for g in range(K // 4):
        a, z, seen = n, 0, 0
        for j in range(4 * g, 4 * g + 4):
            a, z, seen = min(a, low[j]), max(z, high[j]), seen + count[j]
        first[g], last[g] = min(a, z) * H, z * H
        holes[g] = seen < 4 * (z - a)
    return first, last, holes


@serial
def gathered(kv: Array, entries: Array, W: int) -> Array:
    """K C: the keys of a block, at W those of entries; zeros fill the last group, and channels up
    to a multiple of 4."""
    c = kv.shape[1]
    keys = np.zeros((-(-(W + len(entries)) // 4) * 4, -(-c // 4) * 4), np.float32)
    for j in range(len(kv)):
        for i in range(c):
            keys[j, i] = kv[j, i]
    for j in range(len(entries)):
        for i in range(c):
            keys[W + j, i] = entries[j, i]
    return keys


@serial
def transposed(x: Array, C: int, scale: np.float32) -> Array:
    """C R: x times scale, one column for each row r; zeros fill the channels. x: n H c."""
    n, H, c = x.shape
    X = np.zeros((C, n * H), np.float32)
    for t in range(n):
        for h in range(H):
            for i in range(c):
                X[i, t * H + h] = x[t, h, i] * scale
    return X


@serial
def restore(X: Array, x: Array, scale: np.float32) -> None:
    """The inverse of `transposed`: X: C R -> x: n H c."""
    n, H, c = x.shape
    for t in range(n):
        for h in range(H):
            for i in range(c):
                x[t, h, i] = X[i, t * H + h] * scale


@serial
def products(keys: Array, X: Array, first: Array, last: Array) -> Array:
    """s[j, r] = sum_i keys[j, i] X[i, r]: K R, where row r sees some of j's group."""
    s = np.empty((len(keys), X.shape[1]), np.float32)
    for j in range(0, len(keys), 2):
        a, z = first[j // 4], last[j // 4]
        s0, s1 = s[j, a:z], s[j + 1, a:z]
        for r in range(len(s0)):
            s0[r] = s1[r] = f32(0.0)
        for i in range(0, len(X), 4):
            x0, x1, x2, x3 = X[i, a:z], X[i + 1, a:z], X[i + 2, a:z], X[i + 3, a:z]
            k, l = keys[j, i:i + 4], keys[j + 1, i:i + 4]
            k0, k1, k2, k3, l0, l1, l2, l3 = k[0], k[1], k[2], k[3], l[0], l[1], l[2], l[3]
            for r in range(len(s0)):
                s0[r] += k0 * x0[r] + k1 * x1[r] + k2 * x2[r] + k3 * x3[r]
                s1[r] += l0 * x0[r] + l1 * x1[r] + l2 * x2[r] + l3 * x3[r]
    return s


@serial
def mix(keys: Array, p: Array, first: Array, last: Array) -> Array:
    """O[i, r] = sum_j p[j, r] keys[j, i]: C R."""
    O = np.zeros((keys.shape[1], p.shape[1]), np.float32)
    for j in range(0, len(keys), 4):
        a, z = first[j // 4], last[j // 4]
        p0, p1, p2, p3 = p[j, a:z], p[j + 1, a:z], p[j + 2, a:z], p[j + 3, a:z]
        for i in range(0, len(O), 2):
            o0, o1 = O[i, a:z], O[i + 1, a:z]
            k0, k1, k2, k3 = keys[j, i], keys[j + 1, i], keys[j + 2, i], keys[j + 3, i]
            l0, l1, l2, l3 = (keys[j, i + 1], keys[j + 1, i + 1], keys[j + 2, i + 1],
                              keys[j + 3, i + 1])
            for r in range(len(o0)):
                o0[r] += k0 * p0[r] + k1 * p1[r] + k2 * p2[r] + k3 * p3[r]
                o1[r] += l0 * p0[r] + l1 * p1[r] + l2 * p2[r] + l3 * p3[r]
    return O


@serial
def outer(p: Array, dO: Array, ds: Array, Q: Array, first: Array, last: Array) -> Array:
    """dk[j, i] = sum_r p[j, r] dO[i, r] + ds[j, r] Q[i, r]: K C."""
    dk = np.empty((len(p), len(Q)), np.float32)
    for j in range(0, len(dk), 2):
        a, z = first[j // 4], last[j // 4]
        p0, p1, s0, s1 = p[j, a:z], p[j + 1, a:z], ds[j, a:z], ds[j + 1, a:z]
        for i in range(0, len(Q), 2):
            o0, o1, q0, q1 = dO[i, a:z], dO[i + 1, a:z], Q[i, a:z], Q[i + 1, a:z]
            d00 = d01 = d10 = d11 = f32(0.0)
            for r in range(len(p0)):
                d00 += p0[r] * o0[r] + s0[r] * q0[r]
                d01 += p0[r] * o1[r] + s0[r] * q1[r]
                d10 += p1[r] * o0[r] + s1[r] * q0[r]
                d11 += p1[r] * o1[r] + s1[r] * q1[r]
            dk[j, i], dk[j, i + 1], dk[j + 1, i], dk[j + 1, i + 1] = d00, d01, d10, d11
    return dk


@serial
def add(x: Array, total: Array) -> None:
    """total += x, as far as it goes."""
    for j in range(len(total)):
        for i in range(total.shape[1]):
            total[j, i] += x[j, i]


@serial
def hide(s: Array, mask: Array, first: Array, last: Array, holes: Array, H: int) -> None:
    """s[j, r] = -inf where row r does not see key j, though others see its group."""
    for j in range(len(s)):
        if holes[j // 4]:
            for t in range(first[j // 4] // H, last[j // 4] // H):
                if mask[t, j] != f32(0.0):
                    for h in range(H):
                        s[j, t * H + h] = -np.inf


@serial
def softmax(s: Array, sink: Array, first: Array, last: Array) -> Array:
    """p in place of s: K R. Returns the sink's weight: R."""
    K, R = s.shape
    rest, top, total = np.empty(R, f32), np.empty(R, f32), np.empty(R, f32)
    for r in range(R):
        rest[r] = top[r] = sink[r % len(sink)]
    for j in range(K):
        a, z = first[j // 4], last[j // 4]
        x, y = s[j, a:z], top[a:z]
        for r in range(len(x)):
            y[r] = max(y[r], x[r])
    for r in range(R):
        rest[r] = total[r] = exp(rest[r] - top[r])
    for j in range(K):
        a, z = first[j // 4], last[j // 4]
        x, y, sum_ = s[j, a:z], top[a:z], total[a:z]
        for r in range(len(x)):
            d = x[r] - y[r]
            e = f32(0.0) if d < f32(-87.0) else exp(d)
            x[r] = e
            sum_[r] += e
    for r in range(R):
        total[r] = f32(1.0) / total[r]
        rest[r] *= total[r]
    for j in range(K):
        a, z = first[j // 4], last[j // 4]
        x, y = s[j, a:z], total[a:z]
        for r in range(len(x)):
            x[r] *= y[r]
    return rest


@serial
def through_softmax(p: Array, ds: Array, first: Array, last: Array) -> Array:
    """ds in place of dp: K R. Returns D: R."""
    K, R = p.shape
    D = np.zeros(R, np.float32)
    for j in range(K):
        a, z = first[j // 4], last[j // 4]
        x, y, sums = p[j, a:z], ds[j, a:z], D[a:z]
        for r in range(len(x)):
            sums[r] += x[r] * y[r]
    for j in range(K):
        a, z = first[j // 4], last[j // 4]
        x, y, sums = p[j, a:z], ds[j, a:z], D[a:z]
        for r in range(len(x)):
            y[r] = x[r] * (y[r] - sums[r])
    return D


@serial
def copy_weights(p: Array, weights: Array, W: int, first: Array, last: Array) -> None:
    """p of the entries, from W on, in another order: K R -> n H S."""
    n, H, S = weights.shape
    for t in range(n):
        for h in range(H):
            for j in range(S):
                weights[t, h, j] = f32(0.0)
    for j in range(S):
        for r in range(first[(W + j) // 4], last[(W + j) // 4]):
            weights[r // H, r % H, j] = p[W + j, r]
