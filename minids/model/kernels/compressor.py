"""The compressor's pool: the softmax over a window's slots, and the mean that it weighs.

    p[t, i] = exp(z[t, i] + ape[t, i]) / sum over slots        e[i] = sum_t p[t, i] kv[t, i]

and the gradient, from de:

    dkv[t, i] = p[t, i] de[i]        dz[t, i] = p[t, i] (kv[t, i] - e[i]) de[i]        dape = sum dz

The slots of a window are its m tokens. With overlap they are the m tokens before it, with the first
half of their channels, and then its own, with the second half. torch copies the halves side by side
and passes over the slots five times; here windows are read where they lie, in one pass.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial
from minids.model.kernels.exponential import exp

Array = np.ndarray
f32 = np.float32


@kernel
def pool(x: Array, ape: Array, start: Array, number: Array, entries: Array) -> None:
    """x: B T 2fc, kv and then z; ape: m fc; start, number: 1 S, or B S: each window's first token,
    and its number in its document: the first, number 0, has no tokens before -> entries: B S c.

    f is 2 with overlap, else 1.
    """
    B, S, c = entries.shape
    for i in prange(B * S):
        b, s = i // S, i % S
        row = b % len(start)
        pool_window(x[b], ape, start[row, s], number[row, s] > 0, entries[b, s])


@kernel
def pool_gradient(x: Array, ape: Array, start: Array, number: Array, entries: Array,
                  dentries: Array, dx: Array, dape: Array) -> None:
    """As `pool`, and dentries: B S c -> zero before, dx: B T 2fc; dape: B parts m fc, whose sum
    over B and parts is the gradient. Each number of dx belongs to one window."""
    B, S, c = entries.shape
    parts = dape.shape[1]
    for i in prange(B * parts):
        b, part = i // parts, i % parts
        row = b % len(start)
        for s in range(S * part // parts, S * (part + 1) // parts):
            gradient_of_window(x[b], ape, start[row, s], number[row, s] > 0, entries[b, s],
                               dentries[b, s], dx[b], dape[b, part])


@serial
def weights(x: Array, ape: Array, start: int, before: bool, c: int) -> Array:
    """p of the slots of a window: 2m c, or m c; 0 where there is no token before."""
    m, fc = ape.shape
    earlier = fc // c * m - m                   # slots before the window: m with overlap, else 0
    p, top, total = np.zeros((earlier + m, c), f32), np.full(c, f32(-np.inf)), np.zeros(c, f32)
    for j in range(0 if before else earlier, earlier + m):
        half = 0 if j < earlier else fc - c
        z, a, pj = x[start - earlier + j, fc + half:], ape[j % m, half:], p[j]
        for i in range(c):
            pj[i] = z[i] + a[i]
            top[i] = max(top[i], pj[i])
    for j in range(0 if before else earlier, earlier + m):
        pj = p[j]
        for i in range(c):
            pj[i] = exp(pj[i] - top[i])
            total[i] += pj[i]
    for j in range(0 if before else earlier, earlier + m):
        pj = p[j]
        for i in range(c):
            pj[i] /= total[i]
    return p


@serial
def pool_window(x: Array, ape: Array, start: int, before: bool, entry: Array) -> None:
    """What `pool` does, for one window. x: T 2fc; entry: c."""
    (m, fc), c = ape.shape, len(entry)
    p = weights(x, ape, start, before, c)
    earlier = len(p) - m
    entry[:] = f32(0.0)
    for j in range(0 if before else earlier, len(p)):
        half = 0 if j < earlier else fc - c
        kv, pj = x[start - earlier + j, half:], p[j]
        for i in range(c):
            entry[i] += pj[i] * kv[i]


@serial
def gradient_of_window(x: Array, ape: Array, start: int, before: bool, entry: Array, dentry: Array,
                       dx: Array, dape: Array) -> None:
    """What `pool_gradient` does, for one window."""
    (m, fc), c = ape.shape, len(entry)
    p = weights(x, ape, start, before, c)
    earlier = len(p) - m
    for j in range(0 if before else earlier, len(p)):
        half, t = (0 if j < earlier else fc - c), start - earlier + j
        kv, pj, dkv, dz, da = x[t, half:], p[j], dx[t, half:], dx[t, fc + half:], dape[j % m, half:]
        for i in range(c):
            d = pj[i] * dentry[i]
            dkv[i] += d
            d *= kv[i] - entry[i]
            dz[i] += d
            da[i] += d
