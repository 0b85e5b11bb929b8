"""Rotation of pairs of channels, in one pass; torch copies the numbers twice on their way."""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial

f32 = np.float32


def rotate(x: np.ndarray, rot: np.ndarray, heads: int, sign: float, y: np.ndarray) -> None:
    """(a, b) -> (a cos - b sin, a sin + b cos) for each pair of channels, sin times `sign`.

    x, y: N c, `heads` rows a token; rot: R c, pairs (cos, sin): token t rotates by row t modulo R.
    The gradient rotates the other way.
    """
    N, c = x.shape
    R = len(rot)
    for t in prange(N // heads):
        for i in range(t * heads, (t + 1) * heads):
            for k in range(c // 2):
                cos, sin = rot[t % R, 2 * k], rot[t % R, 2 * k + 1] * f32(sign)
                a, b = x[i, 2 * k], x[i, 2 * k + 1]
                y[i, 2 * k] = a * cos - b * sin
                y[i, 2 * k + 1] = a * sin + b * cos


rotate_few, rotate = serial(rotate), kernel(rotate)         # waking a thread costs microseconds
