"""Log-probabilities over the vocabulary, their gradient, and samples from them: a pass per row.

Logits are the largest tensor of a small model's step. In torch, softmax, logarithm, entropy and
their gradients pass over it ten times and more, and a sample takes a sum in float64 besides. Here a
row of logits is read from memory once, and the further passes find it in the first cache.
"""

from typing import Any

import numpy as np

from minids.model.kernels.compiled import inlined, kernel, prange
from minids.model.kernels.exponential import exp

f32 = np.float32
Array = Any       # a NumPy array, as compiled code takes it
LANES = 16      # running maxima of a row, next to each other: SIMD registers hold them
BLOCK = 128     # numbers that are summed in float32, before a sum in float64


@inlined
def largest(row: Array, lanes: Array) -> f32:
    """The largest number of a row; NaN anywhere may be overlooked. lanes: LANES, scratch."""
    V = len(row)
    whole = V // LANES * LANES
    lanes[:] = f32(-np.inf)
    for begin in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] = max(lanes[j], row[begin + j])
    top = f32(-np.inf)
    for j in range(LANES):
        top = max(top, lanes[j])
    for v in range(whole, V):
        top = max(top, row[v])
    return top


@kernel
def measure(z: Array, ids: Array, logz: Array, logp: Array, entropy: Array, n_parts: int) -> None:
    """Of each row i of logits z: log Z = log sum_v e^z_v, log p(ids_i), and the entropy
    H = log Z - sum_v p_v z_v, with p_v = e^(z_v - log Z).

    z: N V; ids: N, int64; logz, logp, entropy: N, written. A row whose id is negative gets log p 0.
    """
    N, V = z.shape
    for part in prange(n_parts):
        lanes = np.empty(LANES, f32)
        for i in range(part * N // n_parts, (part + 1) * N // n_parts):
            row = z[i]
            top = largest(row, lanes)
            total, weighted = f32(0.0), f32(0.0)
            for v in range(V):
                x = max(row[v] - top, f32(-87.0))
                e = exp(x)
                total += e
                weighted += e * x
            log_total = f32(np.log(total))
            logz[i] = top + log_total
            logp[i] = row[ids[i]] - logz[i] if ids[i] >= 0 else f32(0.0)
            entropy[i] = log_total - weighted / total


@kernel
def gradient(z: Array, ids: Array, logz: Array, scale: Array, dz: Array) -> None:
    """The gradient of sum_i scale_i log p(ids_i): dz_v = scale (1[v = id] - e^(z_v - log Z)).

    z, dz: N V, two arrays; ids, logz, scale: N. Rows with a negative id get 0.
    """
    N, V = z.shape
    for i in prange(N):
        row, out, shift = z[i], dz[i], logz[i]
        s = scale[i] if ids[i] >= 0 else f32(0.0)
        for v in range(V):
            out[v] = -s * exp(row[v] - shift)
        if ids[i] >= 0:
            out[ids[i]] += s


@kernel
def loss(z: Array, ids: Array, logp: Array, n_parts: int) -> None:
    """Of each row i of logits z: log p(ids_i). The gradient of -log p(ids_i) takes the row's place:
    p_v - 1[v = id], with p_v = e^z_v / sum_u e^z_u.

    z: N V; ids: N, int64; logp: N, written. A row whose id is negative gets 0 for both.
    """
    N, V = z.shape
    for part in prange(n_parts):
        lanes = np.empty(LANES, f32)
        for i in range(part * N // n_parts, (part + 1) * N // n_parts):
            row = z[i]
            if ids[i] < 0:
                row[:], logp[i] = f32(0.0), f32(0.0)
                continue
            top = largest(row, lanes)
            x = row[ids[i]] - top
            for v in range(V):
                row[v] = exp(row[v] - top)
            total = f32(0.0)
            for v in range(V):
                total += row[v]
            logp[i] = x - f32(np.log(total))
            inverse = f32(1.0) / total
            for v in range(V):
                row[v] *= inverse
            row[ids[i]] -= f32(1.0)


@kernel
def sample(z: Array, noise: Array, inverse_temperature: f32, ids: Array, logp: Array,
           n_parts: int) -> None:
    """The id of each row at which the cumulated probabilities exceed its noise, and its log p.

    p_v = e^x_v / sum e^x, x = (z - max z) / temperature. z: N V, -inf for ids that are not allowed;
    noise: N, uniform; ids, logp: N, written: -1 and NaN for a row of NaN. Sums are in float64.
    """
    N, V = z.shape
    blocks = -(-V // BLOCK)
    for part in prange(n_parts):
        lanes, e, sums = np.empty(LANES, f32), np.empty(V, f32), np.empty(blocks, np.float64)
        for i in range(part * N // n_parts, (part + 1) * N // n_parts):
            row = z[i]
            top = largest(row, lanes)
            for v in range(V):
                x = (row[v] - top) * inverse_temperature
                e[v] = exp(x) if x > f32(-87.0) else f32(0.0)
            total = 0.0
            for b in range(blocks):
                part_of_it = f32(0.0)
                for v in range(b * BLOCK, min(b * BLOCK + BLOCK, V)):
                    part_of_it += e[v]
                sums[b] = part_of_it
                total += sums[b]
            ids[i], logp[i] = -1, f32(np.nan)
            left, b = total * noise[i], 0
            while b < blocks - 1 and left >= sums[b]:
                left -= sums[b]
                b += 1
            for v in range(b * BLOCK, min(b * BLOCK + BLOCK, V)):
                if e[v] > f32(0.0):
                    ids[i] = v
                    left -= e[v]
                    if left < 0.0:
                        break
            if ids[i] >= 0:
                logp[i] = f32((row[ids[i]] - top) * inverse_temperature - np.log(total))


@kernel
def race(weights: Array, uniform: Array, ids: Array) -> None:
    """The id of each row whose weight / noise is largest, with noise = -log(1 - uniform).

    Since noise >= uniform, an id with weight / uniform below the best so far has lost: almost no
    logarithm is computed. weights: N V, float32; uniform: N V, float64; ids: N, written: -1 where
    the weights are NaN.
    """
    N, V = weights.shape
    for i in prange(N):
        row, u = weights[i], uniform[i]
        best, at = f32(-1.0), -1
        if row[0] == row[0]:
            for v in range(V):
                if u[v] * best * 0.999999 < row[v]:
                    score = row[v] / f32(-np.log1p(-u[v]))
                    if score > best:
                        best, at = score, v
        ids[i] = at

