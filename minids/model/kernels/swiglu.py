"""SwiGLU with V4's clamps and an expert's weight: one pass over the numbers in each direction.

In torch the clamps, SiLU and the two products are five passes, and nine for the gradient.
"""

import numpy as np

from minids.model.kernels.compiled import kernel, prange
from minids.model.kernels.exponential import exp

f32 = np.float32


@kernel
def forward(gate_up: np.ndarray, weight: np.ndarray, limit: float, h: np.ndarray) -> None:
    """h = weight silu(a) b, a = min(gate, limit), b = up between -limit and limit.

    gate_up: N 2 I; weight: N; h: N I; silu(a) = a / (1 + e^-a). Limit is inf where nothing is
    clamped.
    """
    N, _, I = gate_up.shape
    top = f32(limit)
    for n in prange(N):
        gate, up = gate_up[n, 0], gate_up[n, 1]
        for i in range(I):
            a, b = gate[i], up[i]
            a = top if a > top else a               # so that NaN stays NaN
            b = top if b > top else b
            b = -top if b < -top else b
            h[n, i] = weight[n] * a * b / (f32(1.0) + exp(-a))


@kernel
def backward(gate_up: np.ndarray, weight: np.ndarray, limit: float, dh: np.ndarray,
             dgate_up: np.ndarray, dweight: np.ndarray) -> None:
    """With s = 1 / (1 + e^-a):

        dgate = dh weight b s (1 + a (1 - s)), dup = dh weight a s, dweight = sum_i dh a b s.

    dgate and dup are 0 where the clamp acts. h overwrites `dh`: it is computed again, so that
    nobody has to keep it.
    """
    N, _, I = gate_up.shape
    top, P = f32(limit), min(N, 64)
    for p in prange(P):
        shares = np.empty(I, f32)       # of dweight
        for n in range(N * p // P, N * (p + 1) // P):
            gate, up = gate_up[n, 0], gate_up[n, 1]
            dgate, dup = dgate_up[n, 0], dgate_up[n, 1]
            for i in range(I):
                a, b, g = gate[i], up[i], dh[n, i]
                free_a, free_b = a < top, (b < top) & (b > -top)
                a = top if a > top else a
                b = top if b > top else b
                b = -top if b < -top else b
                s = f32(1.0) / (f32(1.0) + exp(-a))
                shares[i] = g * a * b * s
                dh[n, i] = weight[n] * a * b * s
                dgate[i] = g * weight[n] * b * s * (f32(1.0) + a * (f32(1.0) - s)) if free_a \
                    else f32(0.0)
                dup[i] = g * weight[n] * a * s if free_b else f32(0.0)
            total = f32(0.0)
            for i in range(I):
                total += shares[i]
            dweight[n] = total
