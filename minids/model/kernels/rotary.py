"""Rotation of pairs of channels, in one pass.

In torch the numbers become complex ones and back, and the channels that do not rotate are
multiplied by 1.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange

f32 = np.float32


@kernel
def rotate(x: np.ndarray, rot: np.ndarray, heads: int, sign: float, y: np.ndarray) -> None:
    """(a, b) -> (a cos - b sin, a sin + b cos) for each pair of channels, sin times `sign`.

    x, y: N c, `heads` rows a token; rot: R c, pairs (cos, sin); token t rotates by row t modulo R.
    The gradient rotates the other way.
    """
    N, c = x.shape
    R = len(rot)
    for t in prange(N // heads):
        start = 0           # the first channel that is not just copied
        while start < c and rot[t % R, start] == f32(1.0) and rot[t % R, start + 1] == f32(0.0):
            start += 2
        for i in range(t * heads, (t + 1) * heads):
            for j in range(start):
                y[i, j] = x[i, j]
            for j in range(start, c, 2):
                cos, sin = rot[t % R, j], rot[t % R, j + 1] * f32(sign)
                y[i, j] = x[i, j] * cos - x[i, j + 1] * sin
                y[i, j + 1] = x[i, j] * sin + x[i, j + 1] * cos
