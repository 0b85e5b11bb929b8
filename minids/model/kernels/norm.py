"""RMS normalisation, and the rotation that follows it in attention: one pass over the numbers.

In torch the norm alone reads its input twice and passes over its output twice, and a rotation
copies that output two times more. Here a row is read from memory once: the second pass over it
finds it in the processor's cache.
"""

import numpy as np

from minids.model.kernels.compiled import inlined, kernel, prange

f32 = np.float32


@inlined
def first_turning(rot: np.ndarray, t: int) -> int:
    """The first channel that rotation t does not multiply by 1: those before it are copied."""
    j = 0
    while j < rot.shape[1] and rot[t, j] == f32(1.0) and rot[t, j + 1] == f32(0.0):
        j += 2
    return j


@kernel
def forward(x: np.ndarray, w: np.ndarray, eps: float, rot: np.ndarray, heads: int, y: np.ndarray,
            r: np.ndarray) -> None:
    """r = 1 / sqrt(mean(x^2) + eps), y = rotation of (w x r).

    x, y: N c, `heads` rows a token; w: c; rot: R c, pairs (cos, sin); token t rotates by row t
    modulo R, and R = 0 means no rotation. r: N.
    """
    N, c = x.shape
    R = len(rot)
    for t in prange(N // heads):
        start = first_turning(rot, t % R) if R else c
        for i in range(t * heads, (t + 1) * heads):
            square = f32(0.0)
            for j in range(c):
                square += x[i, j] * x[i, j]
            r[i] = f32(1.0) / np.sqrt(square / f32(c) + f32(eps))
            for j in range(start):
                y[i, j] = x[i, j] * r[i] * w[j]
            for j in range(start, c, 2):
                a, b = x[i, j] * r[i] * w[j], x[i, j + 1] * r[i] * w[j + 1]
                cos, sin = rot[t % R, j], rot[t % R, j + 1]
                y[i, j], y[i, j + 1] = a * cos - b * sin, a * sin + b * cos


@kernel
def backward(x: np.ndarray, w: np.ndarray, r: np.ndarray, rot: np.ndarray, heads: int,
             dy: np.ndarray, dx: np.ndarray, dw: np.ndarray) -> None:
    """With h = x r and g = dy rotated back: dx = r (w g - h mean(h w g)), dw = sum of h g.

    dx: N c; dw: P c, the sums of P parts of the tokens. For the others see `forward`.
    """
    N, c = x.shape
    R, P = len(rot), len(dw)
    tokens = N // heads
    for p in prange(P):
        for j in range(c):
            dw[p, j] = f32(0.0)
        for t in range(tokens * p // P, tokens * (p + 1) // P):
            start = first_turning(rot, t % R) if R else c
            for i in range(t * heads, (t + 1) * heads):
                for j in range(start):
                    dx[i, j] = dy[i, j]
                for j in range(start, c, 2):
                    cos, sin = rot[t % R, j], rot[t % R, j + 1]
                    dx[i, j] = dy[i, j] * cos + dy[i, j + 1] * sin
                    dx[i, j + 1] = dy[i, j + 1] * cos - dy[i, j] * sin
                mean = f32(0.0)
                for j in range(c):
                    h = x[i, j] * r[i] * dx[i, j]
                    dw[p, j] += h
                    mean += h * w[j]
                mean /= f32(c)
                for j in range(c):
                    dx[i, j] = r[i] * (w[j] * dx[i, j] - x[i, j] * r[i] * mean)
