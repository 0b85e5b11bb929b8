"""The mixture of experts around its matrix products, and all of it for a few tokens.

For many tokens torch computes the products, expert by expert, and kernels what is between them:
affinities, choice and weights; sorting the choices; gathering rows and adding up the results. For
a few tokens a product takes less time than torch needs to call it, so one kernel computes them all.
It takes the matrices by their addresses: their number differs from model to model.
"""

from typing import Any

import numpy as np

from minids.model.kernels.compiled import inlined, kernel, numba, prange, serial
from minids.model.kernels.exponential import exp

f32 = np.float32

pointer: Any
carray: Any
if numba is not None:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        """An address as a pointer to float32 numbers."""
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return types.CPointer(types.float32)(types.int64), generate

    carray = numba.carray


@inlined
def log1p(x: np.float32) -> np.float32:
    """log(1 + x) for 0 <= x <= 1: 2 artanh(u) with u = x / (2 + x), as its power series."""
    u = x / (f32(2.0) + x)
    q = u * u
    p = f32(1 / 15)
    p = p * q + f32(1 / 13)
    p = p * q + f32(1 / 11)
    p = p * q + f32(1 / 9)
    p = p * q + f32(1 / 7)
    p = p * q + f32(1 / 5)
    p = p * q + f32(1 / 3)
    return f32(2.0) * (u + u * q * p)


@inlined
def beats(a: np.float32, b: np.float32) -> Any:
    """Whether a is larger than b, or NaN."""
    return a > b or a != a


def gate(z: np.ndarray, bias: np.ndarray, scale: float, choose: bool, s: np.ndarray,
         experts: np.ndarray, g: np.ndarray) -> None:
    """s = sqrt(log(1 + e^z)); the K experts of largest s + bias, unless they are given; their
    weights g = scale s / (sum of the K s).

    z, s: N E; bias: E; experts, g: N K. Of equal numbers the first is chosen; NaN counts as
    largest.
    """
    N, E = z.shape
    K = experts.shape[1]
    logits, affinities = z.reshape(-1), s.reshape(-1)
    for part in prange((N + 63) // 64):
        first, last = part * 64, min(part * 64 + 64, N)
        for i in range(E * (last - first)):
            x = logits[first * E + i]
            e = exp(-abs(x))
            affinities[first * E + i] = np.sqrt((f32(0.0) if x <= f32(0.0) else x) + log1p(e))
        for n in range(first, last):
            if choose:          # g holds the K best so far, in falling order
                for k in range(K):
                    g[n, k] = f32(-np.inf)
                for i in range(E):
                    value = s[n, i] + bias[i]
                    k = min(i, K - 1)
                    if i >= K and not beats(value, g[n, k]):
                        continue
                    while k > 0 and beats(value, g[n, k - 1]):
                        g[n, k], experts[n, k] = g[n, k - 1], experts[n, k - 1]
                        k -= 1
                    g[n, k], experts[n, k] = value, i
            total = f32(0.0)
            for k in range(K):
                total += s[n, experts[n, k]]
            for k in range(K):
                g[n, k] = s[n, experts[n, k]] / total * f32(scale)


gate_few, gate = serial(gate), kernel(gate)     # up to 64 tokens are work for one thread


@kernel
def gate_backward(z: np.ndarray, s: np.ndarray, experts: np.ndarray, scale: float, dg: np.ndarray,
                  ds: np.ndarray, dz: np.ndarray) -> None:
    """With S = sum_k s_k: ds_k += scale / S (dg_k - sum_j dg_j s_j / S), and
    dz = ds sigmoid(z) / (2 s).

    ds: N E, the gradient of s itself; dz: N E. For the others see `gate`.
    """
    N, E = z.shape
    K = experts.shape[1]
    for n in prange(N):
        total, mean = f32(0.0), f32(0.0)
        for k in range(K):
            total += s[n, experts[n, k]]
            mean += dg[n, k] * s[n, experts[n, k]]
        for i in range(E):
            dz[n, i] = ds[n, i]
        for k in range(K):
            dz[n, experts[n, k]] += f32(scale) / total * (dg[n, k] - mean / total)
        for i in range(E):
            dz[n, i] *= f32(0.5) / (s[n, i] * (f32(1.0) + exp(-z[n, i])))


@serial
def sort(experts: np.ndarray, g: np.ndarray, counts: np.ndarray, slots: np.ndarray,
         tokens: np.ndarray, weights: np.ndarray) -> None:
    """Sort the choices by expert: choice n, k comes to slots[n, k], and there stand its token and
    its weight. Counts the choices of each expert.

    experts, g, slots: N K; counts: E; tokens, weights: NK.
    """
    N, K = experts.shape
    counts[:] = 0
    for n in range(N):
        for k in range(K):
            counts[experts[n, k]] += 1
    begin = np.cumsum(counts) - counts
    for n in range(N):
        for k in range(K):
            slot = begin[experts[n, k]]
            begin[experts[n, k]] += 1
            slots[n, k], tokens[slot], weights[slot] = slot, n, g[n, k]


@kernel
def gather(x: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> None:
    """rows[i] = x[tokens[i]]. Its gradient is `combine`."""
    for i in prange(len(tokens)):
        for j in range(x.shape[1]):
            rows[i, j] = x[tokens[i], j]


@inlined
def add_up(rows: np.ndarray, slots: np.ndarray, n: int, y: np.ndarray) -> None:
    """What `combine` does, for token n."""
    N, K = slots.shape
    d = y.shape[1]
    for j in range(d):
        y[n, j] = rows[N * K + n, j]
    for k in range(K):
        slot = slots[n, k]
        for j in range(d):
            y[n, j] += rows[slot, j]


@kernel
def combine(rows: np.ndarray, slots: np.ndarray, y: np.ndarray) -> None:
    """y[n] = rows[NK + n] + sum_k rows[slots[n, k]]: the shared expert's row and the K chosen ones.

    rows: NK+N d; slots: N K; y: N d. Its gradient is `gather`.
    """
    for n in prange(len(slots)):
        add_up(rows, slots, n, y)


@inlined
def times_row(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """y = w x. w: o i, x: i, y: o."""
    for o in range(w.shape[0]):
        a = f32(0.0)
        for j in range(w.shape[1]):
            a += w[o, j] * x[j]
        y[o] = a


@inlined
def times_four_rows(w: np.ndarray, x0: np.ndarray, x1: np.ndarray, x2: np.ndarray, x3: np.ndarray,
                    y0: np.ndarray, y1: np.ndarray, y2: np.ndarray, y3: np.ndarray) -> None:
    """As `times_row`, for four rows: each number of w is read once for all of them."""
    for o in range(w.shape[0]):
        a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        for j in range(w.shape[1]):
            v = w[o, j]
            a += v * x0[j]
            b += v * x1[j]
            c += v * x2[j]
            d += v * x3[j]
        y0[o], y1[o], y2[o], y3[o] = a, b, c, d


def few(x: np.ndarray, experts: np.ndarray, g: np.ndarray, used: np.ndarray,
        addresses: np.ndarray, limit: float, I: int, y: np.ndarray) -> None:
    """y = the shared expert's output and the K chosen experts', for a few tokens.

    x, y: N d; experts, g: N K. used: U, the numbers of the experts that some token chose, rising.
    addresses: U+1 3, of their w1, w3 (I d) and w2 (d I), and of the shared expert's.
    """
    N, K = experts.shape
    U, d = len(used), x.shape[1]
    top = f32(limit)
    place = np.empty(used[-1] + 1, np.int64)        # expert -> its number among those used
    for u in range(U):
        place[used[u]] = u
    chosen = np.empty((N, K), np.int64)
    for n in range(N):
        for k in range(K):
            chosen[n, k] = place[experts[n, k]]
    counts, slots = np.empty(U, np.int64), np.empty((N, K), np.int64)
    tokens, weights = np.empty(N * K, np.int64), np.empty(N * K, np.float32)
    sort(chosen, g, counts, slots, tokens, weights)
    ends = np.cumsum(counts)
    rows = np.empty((N * K + N, d), np.float32)
    for u in prange(U + 1):
        count = counts[u] if u < U else N
        begin = ends[u] - count if u < U else N * K
        w1 = carray(pointer(addresses[u, 0]), (I, d))
        w3 = carray(pointer(addresses[u, 1]), (I, d))
        w2 = carray(pointer(addresses[u, 2]), (d, I))
        h, up = np.empty((4, I), np.float32), np.empty((4, I), np.float32)
        for first in range(begin, begin + count, 4):
            size = min(4, begin + count - first)
            # of fewer rows than four, the last one is computed more than once
            i0, i1, i2, i3 = first, first + min(1, size - 1), first + min(2, size - 1), \
                first + size - 1
            if u < U:
                t0, t1, t2, t3 = tokens[i0], tokens[i1], tokens[i2], tokens[i3]
            else:
                t0, t1, t2, t3 = i0 - begin, i1 - begin, i2 - begin, i3 - begin
            if size == 1:
                times_row(w1, x[t0], h[0])
                times_row(w3, x[t0], up[0])
            else:
                times_four_rows(w1, x[t0], x[t1], x[t2], x[t3], h[0], h[1], h[2], h[3])
                times_four_rows(w3, x[t0], x[t1], x[t2], x[t3], up[0], up[1], up[2], up[3])
            for r in range(1 if size == 1 else 4):
                weight = weights[first + min(r, size - 1)] if u < U else f32(1.0)
                for i in range(I):
                    a, b = h[r, i], up[r, i]
                    a = top if a > top else a
                    b = top if b > top else b
                    b = -top if b < -top else b
                    h[r, i] = weight * a * b / (f32(1.0) + exp(-a))
            if size == 1:
                times_row(w2, h[0], rows[i0])
            else:
                times_four_rows(w2, h[0], h[1], h[2], h[3], rows[i0], rows[i1], rows[i2], rows[i3])
    for n in prange(N):
        add_up(rows, slots, n, y)


one_by_one, side_by_side = serial(few), kernel(few)       # expert by expert, or all at a time
