"""RMS normalisation, and the rotation that follows it in attention: one pass over the numbers.

In torch the norm alone reads its input twice and passes over its output twice, and a rotation
copies that output two times more. Here a row is read from memory once: the second pass over it
finds it in the processor's cache.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange, serial

f32 = np.float32


def forward(x: np.ndarray, w: np.ndarray, eps: float, rot: np.ndarray, heads: int, y: np.ndarray,
            r: np.ndarray) -> None:
    """r = 1 / sqrt(mean(x^2) + eps), y = w x r, rotated.

    x, y: N c, `heads` rows a token; w: c; r: N. rot: R c, pairs (cos, sin): token t rotates by row
    t modulo R. R = 0 means no rotation.
    """
    N, c = x.shape
    R = len(rot)
    for i in prange(N):
        square = f32(0.0)
        for j in range(c):
            square += x[i, j] * x[i, j]
        ri = f32(1.0) / np.sqrt(square / f32(c) + f32(eps))
        r[i] = ri
        if R == 0:
            for j in range(c):
                y[i, j] = x[i, j] * ri * w[j]
        else:
            t = i // heads % R
            for k in range(c // 2):
                a, b = x[i, 2 * k] * ri * w[2 * k], x[i, 2 * k + 1] * ri * w[2 * k + 1]
                cos, sin = rot[t, 2 * k], rot[t, 2 * k + 1]
                y[i, 2 * k] = a * cos - b * sin
                y[i, 2 * k + 1] = a * sin + b * cos


forward_few, forward = serial(forward), kernel(forward)     # waking a thread costs microseconds


@kernel
def backward(x: np.ndarray, w: np.ndarray, r: np.ndarray, dy: np.ndarray, dx: np.ndarray,
             dw: np.ndarray) -> None:
    """With h = x r: dx = r (w dy - h mean(h w dy)), dw = sum of h dy.

    x, dy, dx: N c; w: c; r: N. dw: P c, the sums of P parts of the rows. What was rotated, `dy` is
    already rotated back.
    """
    N, c = x.shape
    P = len(dw)
    for p in prange(P):
        h = np.empty(c, f32)        # h dy of a row
        for j in range(c):
            dw[p, j] = f32(0.0)
        for i in range(N * p // P, N * (p + 1) // P):
            ri, mean = r[i], f32(0.0)
            for j in range(c):
                h[j] = x[i, j] * ri * dy[i, j]
                dw[p, j] += h[j]
            for j in range(c):
                mean += h[j] * w[j]
            mean *= ri / f32(c)
            for j in range(c):
                dx[i, j] = ri * (w[j] * dy[i, j] - x[i, j] * mean)
