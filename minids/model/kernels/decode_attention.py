"""One token's attention: its queries, the window, the entries that it may read, and the sinks.

A head's scores are a few dozen numbers. They stay in the first-level cache, where torch would write
and read them ten times; keys and entries are read where the state keeps them, not copied together.
"""

import numpy as np
from numpy.typing import NDArray

from minids.model.kernels.compiled import inlined, kernel, prange, serial
from minids.model.kernels.exponential import exp

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]
f32 = np.float32


@inlined
def one_token(n: int, q: Array, eps: float, rot: Array, keys: Array, first: int, last: int,
              entries: Array, count: int, picks: Numbers, sink: Array, o: Array) -> None:
    """See `attend`."""
    H, c = len(sink), len(rot)
    T, k = last - first, picks.shape[1]
    S = T + count
    s = np.empty((H, S), f32)
    total = np.empty(H, f32)
    for h in range(H):                                  # the query
        square = f32(0.0)
        for i in range(c):
            square += q[n, h * c + i] * q[n, h * c + i]
        r = f32(1.0) / np.sqrt((square / f32(c) + f32(eps)) * f32(c))
        for i in range(c // 2):
            at = h * c + 2 * i
            a, b, cos, sin = q[n, at] * r, q[n, at + 1] * r, rot[2 * i], rot[2 * i + 1]
            q[n, at], q[n, at + 1] = a * cos - b * sin, a * sin + b * cos
    for j in range(S):                                  # its scores
        if j < T:
            key = keys[n, first + j]
        else:
            key = entries[n, picks[n, j - T] if k else j - T]
        for h in range(H):
            dot = f32(0.0)
            for i in range(c):
                dot += q[n, h * c + i] * key[i]
            s[h, j] = dot
    for h in range(H):                                  # their softmax, not divided yet
        top = sink[h]
        for j in range(S):
            top = max(top, s[h, j])
        total[h] = f32(0.0)
        for j in range(S):
            p = exp(s[h, j] - top) + f32(0.0) * s[h, j]             # NaN stays NaN
            s[h, j] = p
            total[h] += p
        total[h] += exp(sink[h] - top)
    for i in range(H * c):
        o[n, i] = f32(0.0)
    for j in range(S):                                  # the weighted sum of values
        if j < T:
            key = keys[n, first + j]
        else:
            key = entries[n, picks[n, j - T] if k else j - T]
        for h in range(H):
            p = s[h, j]
            for i in range(c):
                o[n, h * c + i] += p * key[i]
    for h in range(H):                                  # divided, and rotated back
        r = f32(1.0) / total[h]
        for i in range(c // 2):
            at = h * c + 2 * i
            a, b, cos, sin = o[n, at] * r, o[n, at + 1] * r, rot[2 * i], rot[2 * i + 1]
            o[n, at], o[n, at + 1] = a * cos + b * sin, b * cos - a * sin


@serial
def attend(q: Array, eps: float, rot: Array, keys: Array, first: int, last: int, entries: Array,
           count: int, picks: Numbers, sink: Array, o: Array) -> None:
    """o[n, h] = the inverse rotation of sum_j p[h, j] key[j]; keys are values.

    p[h, j] = exp(s[h, j]) / (sum_j exp(s[h, j]) + exp(sink[h])), s[h, j] = q[h] . key[j] / sqrt(c),
    q[h] = rotate(q[n, h] / rms(q[n, h])); j runs over keys[n, first:last] and `count` entries:
    entries[n, picks[n]], or the first ones where picks has 0 columns.

    q: N x H c, changed; rot: c (see `decode_queries.rotation`); keys, entries: N x any x c;
    picks: N x count or N x 0; sink: H; o: N x H c.
    """
    for n in range(len(q)):
        one_token(n, q, eps, rot, keys, first, last, entries, count, picks, sink, o)


@kernel
def attend_many(q: Array, eps: float, rot: Array, keys: Array, first: int, last: int,
                entries: Array, count: int, picks: Numbers, sink: Array, o: Array) -> None:
    """As `attend`; several threads share the rows."""
    for n in prange(len(q)):
        one_token(n, q, eps, rot, keys, first, last, entries, count, picks, sink, o)
