"""Attention to a window, to compressed entries and to a sink, a block of queries at a time.

    s[j, r] = q[r] . k[j] scale
    p[j, r] = exp(s[j, r]) / (sum_j exp(s[j, r]) + exp(sink))
    o[r] = sum_j p[j, r] k[j]                                       (keys are values)

and the gradient, from do:

    ds[j, r] = p[j, r] (do[r] . k[j] - D[r])         D[r] = sum_j p[j, r] do[r] . k[j]
    dq[r] = sum_j ds[j, r] k[j] scale                dsink = -sum_r exp(sink - ...) D[r]
    dk[j] = sum_r ds[j, r] q[r] scale + p[j, r] do[r]

In torch this is a dozen passes over scores, which are larger than queries, keys and outputs
together; most of them are masked. Here scores stay in the processor's cache, and keys that no query
sees cost nothing. The gradient computes the scores again: nothing is kept for it but what the layer
has anyway.

A row r is a token's head. A block of tokens has the same keys, and its rows are processed 16 at a
time: one number of each of 16 rows, or 16 channels of one row, are the lanes of a value. Keys come
in groups of 4. A product computes 4 x 16 numbers in registers, then stores them. The sink is a row
of scores after those of the keys.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial
from minids.model.kernels.exponential import exp
from minids.model.kernels.lanes import LANES, lanes, load, madd, maximum, store

ROWS = 128          # of a block, about
HIDDEN = np.float32(-1e30)      # added to the score of a key that a query does not see
Array = np.ndarray
f32 = np.float32


@kernel
def attend(q: Array, kv: Array, window: Array, entries: Array, unseen: Array, sink: Array,
           scale: float, o: Array, weights: Array) -> None:
    """q: B T H c; kv: B before+T c; window: 1 T' before+b, or B T' before+b; entries: B S c;
    unseen: 1 T S, or B T S; sink: H -> o: B T H c; weights: B T H S, p of the entries, or
    B T H 0: not wanted. c is a multiple of 16.

    `window` and `unseen` hold 0, or -inf where a query does not see a key. Queries i b to i b + b
    have the keys i b to i b + b + before.
    """
    B, T, H, c = q.shape
    b = window.shape[2] - kv.shape[1] + T
    n, size = blocks(T, H, b)
    for i in prange(B * n):
        attend_block(i // n, block(i % n, T, b, size), q, kv, window, entries, unseen, sink,
                     f32(scale), o, weights)


@kernel
def attend_gradient(q: Array, kv: Array, window: Array, entries: Array, unseen: Array, sink: Array,
                    scale: float, do: Array, dq: Array, dkv: Array, dentries: Array,
                    dsink: Array) -> None:
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
                              unseen, sink, f32(scale), do, dq, dkv, dentries, dsink)


@serial
def attend_block(batch: int, where: tuple[int, int, int], q: Array, kv: Array, window: Array,
                 entries: Array, unseen: Array, sink: Array, scale: np.float32, o: Array,
                 weights: Array) -> None:
    """What `attend` does, for the block that lies `where` in a sequence."""
    base, start, stop = where
    H, c, W = q.shape[2], q.shape[3], window.shape[2]
    mask = masks(window[batch % len(window), start:stop], unseen[batch % len(unseen), start:stop])
    keys = gathered(kv[batch, base:base + W], entries[batch], W)
    groups, holes = np.empty(len(keys) // 4, np.int64), np.empty(len(keys) // 4, np.bool_)
    s, X = np.empty((len(keys) + 1, LANES), f32), np.zeros((c, LANES), f32)
    rows, outputs = q[batch, start:stop].reshape(-1, c), o[batch, start:stop].reshape(-1, c)
    p = weights[batch, start:stop].reshape(-1, weights.shape[3])
    for r in range(0, len(rows), LANES):
        n = min(LANES, len(rows) - r)
        own = mask[r // H:(r + n - 1) // H + 1]
        count = seen(own, groups, holes)
        transposed(rows[r:r + n], scale, X)
        scores(keys, groups[:count], X, s)
        hide(own, groups[:count], holes, r % H, H, s)
        softmax(s[:4 * count + 1], sink, r % H)
        mix(keys, groups[:count], s, outputs[r:r + n])
        if p.shape[1]:
            copy_weights(s, groups[:count], W, p[r:r + n])


@serial
def gradient_of_block(batch: int, part: int, where: tuple[int, int, int], q: Array, kv: Array,
                      window: Array, entries: Array, unseen: Array, sink: Array,
                      scale: np.float32, do: Array, dq: Array, dkv: Array, dentries: Array,
                      dsink: Array) -> None:
    """What `attend_gradient` does, for one block."""
    base, start, stop = where
    H, c, W = q.shape[2], q.shape[3], window.shape[2]
    mask = masks(window[batch % len(window), start:stop], unseen[batch % len(unseen), start:stop])
    keys = gathered(kv[batch, base:base + W], entries[batch], W)
    groups, holes = np.empty(len(keys) // 4, np.int64), np.empty(len(keys) // 4, np.bool_)
    p, X = np.empty((len(keys) + 1, LANES), f32), np.zeros((c, LANES), f32)
    ds, dk = np.empty_like(p), np.zeros_like(keys)
    rows, drows = q[batch, start:stop].reshape(-1, c), dq[batch, start:stop].reshape(-1, c)
    gradients = do[batch, start:stop].reshape(-1, c)
    for r in range(0, len(rows), LANES):
        n = min(LANES, len(rows) - r)
        own = mask[r // H:(r + n - 1) // H + 1]
        count = seen(own, groups, holes)
        transposed(rows[r:r + n], scale, X)
        scores(keys, groups[:count], X, p)
        hide(own, groups[:count], holes, r % H, H, p)
        softmax(p[:4 * count + 1], sink, r % H)
        transposed(gradients[r:r + n], f32(1.0), X)
        scores(keys, groups[:count], X, ds)
        through_softmax(p[:4 * count + 1], scale, ds)
        for i in range(n):
            dsink[batch, part, (r + i) % H] += ds[4 * count, i]
        mix(keys, groups[:count], ds, drows[r:r + n])
        outer(p, gradients[r:r + n], ds, rows[r:r + n], groups[:count], dk)
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
    """n K: both masks side by side, with HIDDEN for -inf, up to a multiple of 16 keys."""
    n, W, S = len(near), near.shape[1], far.shape[1]
    mask = np.full((n, -(-(W + S) // LANES) * LANES), HIDDEN)
    for t in range(n):
        for j in range(W):
            mask[t, j] = max(near[t, j], HIDDEN)
        other = mask[t, W:]
        for j in range(S):
            other[j] = max(far[t, j], HIDDEN)
    return mask


@serial
def gathered(kv: Array, entries: Array, W: int) -> Array:
    """K c: the keys of a block, which are fewer than W at the end of a text, and from W on entries;
    zeros elsewhere, up to a multiple of 16 keys."""
    S, c = entries.shape
    keys = np.zeros((-(-(W + S) // LANES) * LANES, c), f32)
    for i in range(0, c, LANES):
        for j in range(len(kv)):
            store(keys, j, i, load(kv, j, i))
        for j in range(S):
            store(keys, W + j, i, load(entries, j, i))
    return keys


@serial
def seen(mask: Array, groups: Array, holes: Array) -> int:
    """Where the groups of 4 keys begin of which some token sees one, and whether some token does
    not see all 4. Returns their number. mask: n K."""
    n, K = mask.shape
    spans, count = np.empty((2, LANES), f32), 0
    for j in range(0, K, LANES):
        best, total = lanes(HIDDEN), lanes(f32(0.0))
        for t in range(n):
            x = load(mask, t, j)
            best, total = maximum(best, x), madd(f32(1.0), x, total)
        store(spans, 0, 0, best)
        store(spans, 1, 0, total)
        for i in range(0, LANES, 4):
            some = spans[0, i:i + 4]
            if some[0] == 0 or some[1] == 0 or some[2] == 0 or some[3] == 0:
                every = spans[1, i:i + 4]
                groups[count] = j + i
                holes[count] = every[0] + every[1] + every[2] + every[3] < 0
                count += 1
    return count


@serial
def transposed(x: Array, scale: np.float32, X: Array) -> None:
    """X: c 16 = x times scale, one column for each row. x: n c."""
    for r in range(len(x)):
        for i in range(len(X)):
            X[i, r] = x[r, i] * scale


@serial
def scores(keys: Array, groups: Array, X: Array, s: Array) -> None:
    """s[j, r] = sum_i keys[j, i] X[i, r]: 4 rows of s for each group."""
    for g in range(len(groups)):
        j = groups[g]
        k0, k1, k2, k3 = keys[j], keys[j + 1], keys[j + 2], keys[j + 3]
        s0 = s1 = s2 = s3 = lanes(f32(0.0))
        for i in range(len(X)):
            x = load(X, i, 0)
            s0, s1 = madd(k0[i], x, s0), madd(k1[i], x, s1)
            s2, s3 = madd(k2[i], x, s2), madd(k3[i], x, s3)
        store(s, 4 * g, 0, s0)
        store(s, 4 * g + 1, 0, s1)
        store(s, 4 * g + 2, 0, s2)
        store(s, 4 * g + 3, 0, s3)


@serial
def hide(mask: Array, groups: Array, holes: Array, head: int, H: int, s: Array) -> None:
    """Add the mask to scores, in groups that have holes. The first row is that of `head`."""
    own = np.zeros((len(mask), LANES), f32)
    for r in range(min(LANES, len(mask) * H - head)):
        own[(head + r) // H, r] = f32(1.0)
    for g in range(len(groups)):
        if holes[g]:
            for u in range(4):
                x = load(s, 4 * g + u, 0)
                for t in range(len(mask)):
                    x = madd(mask[t, groups[g] + u], load(own, t, 0), x)
                store(s, 4 * g + u, 0, x)


@serial
def softmax(s: Array, sink: Array, head: int) -> None:
    """p in place of s; the last row is the sink's."""
    K = len(s) - 1
    for r in range(LANES):
        s[K, r] = sink[(head + r) % len(sink)]
    top, total = load(s, K, 0), lanes(f32(0.0))
    for j in range(K):
        top = maximum(top, load(s, j, 0))
    for j in range(K + 1):
        store(s, j, 0, madd(lanes(f32(-1.0)), top, load(s, j, 0)))
    x = s.reshape(-1)
    for i in range(len(x)):
        x[i] = f32(0.0) if x[i] < f32(-87.0) else exp(x[i])
    for j in range(K + 1):
        total = madd(f32(1.0), load(s, j, 0), total)
    share = np.empty((1, LANES), f32)
    store(share, 0, 0, total)
    for r in range(LANES):
        share[0, r] = f32(1.0) / share[0, r]
    total = load(share, 0, 0)
    for j in range(K + 1):
        store(s, j, 0, madd(load(s, j, 0), total, lanes(f32(0.0))))


@serial
def through_softmax(p: Array, scale: np.float32, ds: Array) -> None:
    """ds times scale in place of dp; the last row is dsink."""
    K, D = len(p) - 1, lanes(f32(0.0))
    for j in range(K):
        D = madd(load(p, j, 0), load(ds, j, 0), D)
    minus = madd(f32(-1.0), D, lanes(f32(0.0)))
    for j in range(K):
        x = madd(scale, load(p, j, 0), lanes(f32(0.0)))
        store(ds, j, 0, madd(x, madd(f32(1.0), load(ds, j, 0), minus), lanes(f32(0.0))))
    store(ds, K, 0, madd(load(p, K, 0), minus, lanes(f32(0.0))))


@serial
def mix(keys: Array, groups: Array, p: Array, o: Array) -> None:
    """o[r, i] = sum_j p[j, r] keys[j, i]. o: n c."""
    n, c = o.shape
    for r in range(0, n, 4):
        for i in range(0, c, LANES):
            o0 = o1 = o2 = o3 = lanes(f32(0.0))
            for g in range(len(groups)):
                for u in range(4):
                    k, x = load(keys, groups[g] + u, i), p[4 * g + u]
                    o0, o1 = madd(x[r], k, o0), madd(x[r + 1], k, o1)
                    o2, o3 = madd(x[r + 2], k, o2), madd(x[r + 3], k, o3)
            store(o, r, i, o0)
            if r + 1 < n:
                store(o, r + 1, i, o1)
            if r + 2 < n:
                store(o, r + 2, i, o2)
            if r + 3 < n:
                store(o, r + 3, i, o3)


@serial
def outer(p: Array, do: Array, ds: Array, q: Array, groups: Array, dk: Array) -> None:
    """dk[j, i] += sum_r p[j, r] do[r, i] + ds[j, r] q[r, i]. do, q: n c."""
    for g in range(len(groups)):
        j = groups[g]
        p0, p1, p2, p3 = p[4 * g], p[4 * g + 1], p[4 * g + 2], p[4 * g + 3]
        s0, s1, s2, s3 = ds[4 * g], ds[4 * g + 1], ds[4 * g + 2], ds[4 * g + 3]
        for i in range(0, dk.shape[1], LANES):
            d0, d1 = load(dk, j, i), load(dk, j + 1, i)
            d2, d3 = load(dk, j + 2, i), load(dk, j + 3, i)
            for r in range(len(q)):
                x, y = load(do, r, i), load(q, r, i)
                d0, d1 = madd(p0[r], x, d0), madd(p1[r], x, d1)
                d2, d3 = madd(p2[r], x, d2), madd(p3[r], x, d3)
                d0, d1 = madd(s0[r], y, d0), madd(s1[r], y, d1)
                d2, d3 = madd(s2[r], y, d2), madd(s3[r], y, d3)
            store(dk, j, i, d0)
            store(dk, j + 1, i, d1)
            store(dk, j + 2, i, d2)
            store(dk, j + 3, i, d3)


@serial
def add(x: Array, total: Array) -> None:
    """total += x, as far as it goes."""
    for i in range(0, total.shape[1], LANES):
        for j in range(len(total)):
            store(total, j, i, madd(f32(1.0), load(x, j, i), load(total, j, i)))


@serial
def copy_weights(p: Array, groups: Array, W: int, weights: Array) -> None:
    """p of the entries, which are the keys from W on: weights: n S."""
    n, S = weights.shape
    for r in range(n):
        for j in range(S):
            weights[r, j] = f32(0.0)
    for g in range(len(groups)):
        for u in range(4):
            j = groups[g] + u - W
            if 0 <= j < S:
                for r in range(n):
                    weights[r, j] = p[4 * g + u, r]
