"""The indexer's scores of all entries, for one token: no head's own scores are stored."""

import numpy as np
from numpy.typing import NDArray

from minids.model.kernels.compiled import serial

Array = NDArray[np.float32]
f32 = np.float32


@serial
def score(q: Array, w: Array, scale: float, rot: Array, keys: Array, scores: Array) -> None:
    """scores[n, s] = scale sum_h w[n, h] relu(rotate(q[n, h]) . keys[n, s]).

    q: N x Hi ci, rotated in place; w: N x Hi; rot: ci (see `decode_queries.rotation`); keys: N x
    any x ci, of which as many count as there are scores, N x S.
    """
    N, heads = w.shape
    c = len(rot)
    for n in range(N):
        for h in range(heads):
            for i in range(c // 2):
                k = h * c + 2 * i
                a, b, cos, sin = q[n, k], q[n, k + 1], rot[2 * i], rot[2 * i + 1]
                q[n, k], q[n, k + 1] = a * cos - b * sin, a * sin + b * cos
        for s in range(scores.shape[1]):
            total = f32(0.0)
            for h in range(heads):
                dot = f32(0.0)
                for i in range(c):
                    dot += q[n, h * c + i] * keys[n, s, i]
                total += w[n, h] * (dot if dot > f32(0.0) else f32(0.0) * dot)      # NaN stays NaN
            scores[n, s] = total * f32(scale)
