"""What one token's attention begins with: rotations, the norm of the latent query, the window key.

Each of these is a handful of torch calls on a few dozen numbers; here they are one or two calls.
"""

import numpy as np
from numpy.typing import NDArray

from minids.model.kernels.compiled import serial

Array = NDArray[np.float32]
f32 = np.float32


@serial
def rotation(position: int, w: Array, rot: Array) -> None:
    """rot = (cos, sin) of position w, pair by pair; w: c/2 in radians per position, rot: c."""
    for i in range(len(w)):
        angle = f32(position) * w[i]
        rot[2 * i] = np.cos(angle)
        rot[2 * i + 1] = np.sin(angle)


@serial
def latents(q: Array, q_norm: Array, kv: Array, kv_norm: Array, eps: float, rot: Array,
            keys: Array, at: int) -> None:
    """Normalise the latent queries in place, and write the tokens' window keys.

    q = q_norm q / rms(q); keys[n, at] = rotate(kv_norm kv / rms(kv)), rms(x)^2 = mean(x^2) + eps.
    q: N x q_lora_rank, kv: N x c, rot: c (as `rotation` gives it), keys: N x any x c.
    """
    latent, c = q.shape[1], kv.shape[1]
    for n in range(len(q)):
        total = f32(0.0)
        for i in range(latent):
            total += q[n, i] * q[n, i]
        r = f32(1.0) / np.sqrt(total / f32(latent) + f32(eps))
        for i in range(latent):
            q[n, i] *= r * q_norm[i]
        total = f32(0.0)
        for i in range(c):
            total += kv[n, i] * kv[n, i]
        r = f32(1.0) / np.sqrt(total / f32(c) + f32(eps))
        for i in range(c // 2):
            a, b = kv[n, 2 * i] * r * kv_norm[2 * i], kv[n, 2 * i + 1] * r * kv_norm[2 * i + 1]
            cos, sin = rot[2 * i], rot[2 * i + 1]
            keys[n, at, 2 * i] = a * cos - b * sin
            keys[n, at, 2 * i + 1] = a * sin + b * cos
