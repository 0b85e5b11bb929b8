"""The exponential function as kernels compute it: in SIMD registers, eight numbers at a time.

exp(x) = 2^k exp(r) with k = round(x / log 2) and r = x - k log 2, |r| <= 0.35. exp(r) is a
polynomial of degree 7 (the coefficients are those of Cephes' expf, S. Moshier), and 2^k is a float
whose exponent bits are k. Exact to 2e-7 of its size from -87 to 88; below it gives 2e-38, not 0.
"""

import numpy as np

from minids.model.kernels.compiled import inlined

f32, i32 = np.float32, np.int32


@inlined
def exp(x: np.float32) -> np.float32:
    """e^x; x: float32, or -inf, which gives 1.6e-38."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    k = np.floor(x * f32(1.44269504) + f32(0.5))
    r = (x - k * f32(0.693359375)) + k * f32(2.12194440e-4)         # log 2 in two parts
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    power = i32((i32(k) + 127) << 23).view(f32)                                  # 2^k
    return (p * r * r + r + f32(1.0)) * power
