"""A compressor's step: one more token waits; a full window becomes an entry.

Most tokens only wait. Where a window is full, torch needs some twenty calls for one entry.
"""

import numpy as np
from numpy.typing import NDArray

from minids.model.kernels.compiled import serial
from minids.model.kernels.exponential import exp

Array = NDArray[np.float32]
f32 = np.float32


@serial
def wait(x: Array, wkv: Array, wgate: Array, kv: Array, z: Array, at: int) -> None:
    """kv[n, at] = wkv x[n], z[n, at] = wgate x[n]: a few rows; see `decode_products`.

    x: N x d, wkv and wgate: fc x d, kv and z: N x any x fc.
    """
    d = x.shape[1]
    for n in range(len(x)):
        for o in range(len(wkv)):
            value, gate = f32(0.0), f32(0.0)
            for i in range(d):
                value += wkv[o, i] * x[n, i]
                gate += wgate[o, i] * x[n, i]
            kv[n, at, o] = value
            z[n, at, o] = gate


@serial
def pool(kv: Array, z: Array, first: int, ape: Array, a_kv: Array, a_z: Array, next_kv: Array,
         next_z: Array, norm: Array, eps: float, rot: Array, entries: Array, at: int) -> None:
    """entries[n, at] = rotate(norm h / rms(h)), h = sum_t softmax_t(z)_t kv_t, for each channel.

    t runs over the m tokens from `first` on, of whose channels the last c count, with z + ape; and,
    with overlap, over the a-halves of the window before: a_kv, a_z (ape added; -inf: none). The
    window's own a-halves go into next_kv and next_z. Without overlap these four hold 0 tokens.

    kv, z: N x any x fc; ape: m x fc; a_kv ... next_z: N x m x c or N x 0 x c; norm, rot: c.
    """
    m, c = len(ape), len(norm)
    b = ape.shape[1] - c                                # where the b-half begins
    halves = a_kv.shape[1]
    top, total, h = np.empty(c, f32), np.empty(c, f32), np.empty(c, f32)
    for n in range(len(kv)):
        for i in range(c):
            top[i], total[i], h[i] = f32(-np.inf), f32(0.0), f32(0.0)
        for t in range(halves):
            for i in range(c):
                top[i] = max(top[i], a_z[n, t, i])
        for t in range(m):
            for i in range(c):
                top[i] = max(top[i], z[n, first + t, b + i] + ape[t, b + i])
        for t in range(halves):
            for i in range(c):
                p = exp(a_z[n, t, i] - top[i])
                total[i] += p
                h[i] += p * a_kv[n, t, i]
        for t in range(m):
            for i in range(c):
                gate = z[n, first + t, b + i] + ape[t, b + i]
                p = exp(gate - top[i]) + f32(0.0) * gate            # NaN stays NaN
                total[i] += p
                h[i] += p * kv[n, first + t, b + i]
        for t in range(halves):
            for i in range(c):
                next_kv[n, t, i] = kv[n, first + t, i]
                next_z[n, t, i] = z[n, first + t, i] + ape[t, i]
        square = f32(0.0)
        for i in range(c):
            h[i] /= total[i]
            square += h[i] * h[i]
        r = f32(1.0) / np.sqrt(square / f32(c) + f32(eps))
        for i in range(c // 2):
            x, y = h[2 * i] * r * norm[2 * i], h[2 * i + 1] * r * norm[2 * i + 1]
            cos, sin = rot[2 * i], rot[2 * i + 1]
            entries[n, at, 2 * i] = x * cos - y * sin
            entries[n, at, 2 * i + 1] = x * sin + y * cos
