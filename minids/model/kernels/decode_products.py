"""Products of a few rows and a matrix, for decoding.

One token multiplies a dozen small matrices in each layer. Such a product takes a microsecond, but
torch takes three more to find the function that computes it. From some 8 rows on torch is faster.
"""

import numpy as np
from numpy.typing import NDArray

from minids.model.kernels.compiled import serial

Array = NDArray[np.float32]
f32 = np.float32


@serial
def product(x: Array, W: Array, y: Array) -> None:
    """y = W x, for each row and, where rows hold g groups, for each group with its own block of W.

    y[n, o] = sum_i W[o, i] x[n, group(o) i]; x: N x g i, W: g r x i, y: N x g r.
    """
    out, size = W.shape
    each = out // (x.shape[1] // size)                  # rows of W for a group
    for n in range(len(x)):
        for o in range(out):
            first = o // each * size
            total = f32(0.0)
            for i in range(size):
                total += W[o, i] * x[n, first + i]
            y[n, o] = total
