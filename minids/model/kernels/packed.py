"""Products with FP4 and FP8 matrices straight from their codes, and decoding.

A product with a few tokens takes the time of reading the matrix, and codes take an eighth (FP4) or
a quarter (FP8) of the memory of float32 numbers. These kernels read codes, and make numbers of them
in registers. For the formats see `minids.numerics`.

    y_o = sum_i value(code_oi) scale_oi x_i

Codes are read as words of 32 bits, which hold 8 codes (FP4) or 4 (FP8), the lowest bits first. A
SIMD register holds 8 words side by side, so x is arranged by the place p of a code in its word:
x_p[w] = x[8w + p]. All codes of a word have the same scale.

The bits of a number are those of its code, shifted to where float32 has exponent and mantissa, plus
a difference of the exponents' biases. That makes numbers of the subnormal codes, exponent 0, which
are too large: u instead of 2u - 2^k, with 2^k the least normal number. The smaller of the two is
right for every code. Nothing passes through float32's subnormal numbers, which are slow.
"""

import numpy as np
from numpy import ndarray as Array

from minids.model.kernels.compiled import inlined, kernel, prange

f32, i32, u8 = np.float32, np.int32, np.uint8
SIGN = i32(-2**31)
NAN = i32(-0x7F7F7F80)      # the highest bit of each byte
ROWS = 16           # of a matrix, that a thread computes one after another


@inlined
def left(word: np.int32, n: int) -> np.int32:
    """A shift in 32 bits. Python's operator would take 64, and half as many numbers at a time."""
    return i32(np.left_shift(i32(word), i32(n)))


@inlined
def right(word: np.int32, n: int) -> np.int32:
    return i32(np.right_shift(i32(word), i32(n)))


@inlined
def fp4(word: np.int32) -> np.float32:
    """Twice the number of the highest four bits: sign, two bits of exponent, one of mantissa."""
    u = i32((right(word, 6) & i32(0x01C00000)) + i32(127 << 23)).view(f32)
    magnitude = f32(min(u, u + u - f32(2)))
    return i32(magnitude.view(i32) | (word & SIGN)).view(f32)


@inlined
def fp8(word: np.int32) -> np.float32:
    """The number of the highest eight bits: sign, four bits of exponent, three of mantissa. The
    codes of NaN give 480."""
    u = i32((right(word, 4) & i32(0x07F00000)) + i32(120 << 23)).view(f32)
    magnitude = f32(min(u, u + u - f32(2.0**-6)))
    return i32(magnitude.view(i32) | (word & SIGN)).view(f32)


@kernel
def fp4_one(x: Array, codes: Array, scale: Array, powers: Array, y: Array) -> None:
    """One token. x: 8 W; codes: O 4W bytes; scale: O W/4 bytes, whose `powers` (256) are half a
    scale each; y: O."""
    words = codes.view(i32)             # at any address
    O, W = words.shape
    for part in prange((O + ROWS - 1) // ROWS):
        s = np.empty(W, f32)
        for o in range(ROWS * part, min(ROWS * part + ROWS, O)):
            for j in range(W // 4):     # written out, so that it becomes one store
                power = powers[scale[o, j]]
                s[4 * j] = power
                s[4 * j + 1] = power
                s[4 * j + 2] = power
                s[4 * j + 3] = power
            total = f32(0)
            for w in range(W):
                word, a = words[o, w], f32(0)
                for p in range(8):
                    a += fp4(left(word, 28 - 4 * p)) * x[p, w]
                total += a * s[w]
            y[o] = total


@kernel
def fp4_four(x: Array, codes: Array, scale: Array, powers: Array, y: Array) -> None:
    """N tokens, four at a time. x: N/4 4 8 W; y: N O; the rest as in `fp4_one`."""
    words = codes.view(i32)             # at any address
    O, W = words.shape
    for part in prange((O + ROWS - 1) // ROWS):
        s = np.empty(W, f32)
        for o in range(ROWS * part, min(ROWS * part + ROWS, O)):
            for j in range(W // 4):     # written out, so that it becomes one store
                power = powers[scale[o, j]]
                s[4 * j] = power
                s[4 * j + 1] = power
                s[4 * j + 2] = power
                s[4 * j + 3] = power
            for n in range(len(x)):
                t0, t1, t2, t3 = f32(0), f32(0), f32(0), f32(0)
                for p in range(8):
                    for w in range(W):
                        v = fp4(left(words[o, w], 28 - 4 * p)) * s[w]
                        t0 += v * x[n, 0, p, w]
                        t1 += v * x[n, 1, p, w]
                        t2 += v * x[n, 2, p, w]
                        t3 += v * x[n, 3, p, w]
                y[4*n, o], y[4*n + 1, o], y[4*n + 2, o], y[4*n + 3, o] = t0, t1, t2, t3


@kernel
def fp8_one(x: Array, codes: Array, scale: Array, y: Array) -> None:
    """One token. x: 4 W; codes: O 4W bytes; scale: O/128 W/32, the last block may be smaller;
    y: O."""
    words = codes.view(i32)             # at any address
    O, W = words.shape
    for part in prange((O + ROWS - 1) // ROWS):
        s = np.empty(W, f32)
        for w in range(W):
            s[w] = scale[ROWS * part // 128, w // 32]
        for o in range(ROWS * part, min(ROWS * part + ROWS, O)):
            total, nan = f32(0), i32(0)
            for w in range(W):
                word, a = words[o, w], f32(0)
                nan = i32(nan | ((word & i32(0x7F7F7F7F)) + i32(0x01010101)))
                for p in range(4):
                    a += fp8(left(word, 24 - 8 * p)) * x[p, w]
                total += a * s[w]
            y[o] = f32(np.nan) if nan & NAN else total


@kernel
def fp8_four(x: Array, codes: Array, scale: Array, y: Array) -> None:
    """N tokens, four at a time. x: N/4 4 4 W; y: N O; the rest as in `fp8_one`."""
    words = codes.view(i32)             # at any address
    O, W = words.shape
    for part in prange((O + ROWS - 1) // ROWS):
        s = np.empty(W, f32)
        for w in range(W):
            s[w] = scale[ROWS * part // 128, w // 32]
        for o in range(ROWS * part, min(ROWS * part + ROWS, O)):
            nan = i32(0)
            for w in range(W):
                nan = i32(nan | ((words[o, w] & i32(0x7F7F7F7F)) + i32(0x01010101)))
            start = f32(np.nan) if nan & NAN else f32(0)
            for n in range(len(x)):
                t0, t1, t2, t3 = start, start, start, start
                for p in range(4):
                    for w in range(W):
                        v = fp8(left(words[o, w], 24 - 8 * p)) * s[w]
                        t0 += v * x[n, 0, p, w]
                        t1 += v * x[n, 1, p, w]
                        t2 += v * x[n, 2, p, w]
                        t3 += v * x[n, 3, p, w]
                y[4*n, o], y[4*n + 1, o], y[4*n + 2, o], y[4*n + 3, o] = t0, t1, t2, t3


@kernel
def fp4_decoded(codes: Array, scale: Array, powers: Array, out: Array) -> None:
    """The numbers, O I. codes: O I/2, uint8; scale: O I/32 bytes."""
    for o in prange(len(codes)):
        for j in range(scale.shape[1]):
            s = powers[scale[o, j]]
            for k in range(16):
                byte = i32(codes[o, 16 * j + k])
                out[o, 32 * j + 2 * k] = fp4(left(byte, 28)) * s
                out[o, 32 * j + 2 * k + 1] = fp4(left(byte, 24)) * s


@kernel
def fp8_decoded(codes: Array, scale: Array, out: Array) -> None:
    """The numbers, O I. codes: O I, uint8; scale: O/128 I/128, whole or begun blocks."""
    O, I = codes.shape
    for o in prange(O):
        for j in range(scale.shape[1]):
            s = scale[o // 128, j]
            for i in range(128 * j, min(128 * j + 128, I)):
                code = i32(codes[o, i])
                value = fp8(left(code, 24)) * s
                out[o, i] = f32(np.nan) if code & i32(127) == i32(127) else value
