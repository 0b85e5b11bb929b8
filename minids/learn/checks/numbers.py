"""Checks of lesson 11: FP4 and FP8 codes, block scales, the Hadamard transform, straight-through
gradients (V4 report, section 3.4)."""

import math

import torch

from minids.learn.exercise import Check
from minids.numerics import FP4_VALUES

LESSON = "11_numbers"
GRID = torch.tensor(FP4_VALUES[:8])


# ---- one number ----

def decode(code, e_bits, m_bits, bias):
    """The number of a code: sign, e_bits of exponent, m_bits of mantissa."""
    sign, exponent, mantissa = _fields(code, e_bits, m_bits)
    if exponent == 0:
        return sign * mantissa / 2**m_bits * 2.0 ** (1 - bias)
    return sign * (1 + mantissa / 2**m_bits) * 2.0 ** (exponent - bias)


def _fields(code, e_bits, m_bits):
    mantissa, exponent = code % 2**m_bits, code // 2**m_bits % 2**e_bits
    return (-1.0) ** (code >> e_bits + m_bits), exponent, mantissa


def _decode_with(always_one=False, subnormal=1, mantissa_of=lambda m, bits: m / 2**bits,
                 no_bias=False, unsigned=False):
    def wrong(code, e_bits, m_bits, bias):
        sign, exponent, mantissa = _fields(code, e_bits, m_bits)
        bias, sign = 0 if no_bias else bias, 1.0 if unsigned else sign
        part = mantissa_of(mantissa, m_bits)
        if exponent == 0 and not always_one:
            return sign * part * 2.0 ** (subnormal - bias)
        return sign * (1 + part) * 2.0 ** (exponent - bias)
    return wrong


def _decode_cases(rng):
    for code in (0b0110, 0b0011, 0b0111, 0b1101, 0b0001, 0b1000):
        yield f"E2M1, code {code:04b}", (code, 2, 1, 1)
    for code in (0b00111000, 0b01111110, 0b10111000, 0b00000001, 0b00000101, 0b11010011):
        yield f"E4M3, code {code:08b}", (code, 4, 3, 7)
    yield "E3M2, code 110110", (0b110110, 3, 2, 3)


# ---- a block ----

def round_block(x):
    """32 numbers in FP4 with one scale: the rounded numbers, and the scale."""
    return _block(x)


def _block(x, exponent=math.ceil, power=True, even=True, amax=lambda x: x.abs().max(), back=True,
           signed=True):
    ratio = amax(x).item() / 6
    scale = 2.0 ** exponent(math.log2(ratio)) if power else ratio
    distance = ((x / scale).abs()[:, None] - GRID).abs()               # 32 8
    codes = distance.argmin(1)                                         # of two the smaller
    if even:
        nearest = distance == distance.min(1, keepdim=True).values
        codes = torch.where((codes % 2 == 1) & (nearest.sum(1) == 2), codes + 1, codes)
    y = GRID[codes] * (scale if back else 1.0)
    return torch.where(torch.signbit(x), -y, y) if signed else y, scale


def _block_with(**changes):
    return lambda x: _block(x, **changes)


def _block_cases(rng):
    easy = torch.zeros(32)
    easy[:4] = torch.tensor([6.0, -1.0, 0.4, 2.2])
    yield "largest number 6: scale 1", (easy,)
    yield "random numbers", (torch.randn(32, generator=rng),)
    x = torch.randn(32, generator=rng).clamp(-2, 2)
    x[3] = 7.0
    yield "the largest number is 7", (x,)
    x = torch.cat([torch.rand(31, generator=rng), torch.tensor([-4.7])])
    yield "the largest size is negative", (x,)
    ties = torch.zeros(32)
    ties[:9] = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -2.5])
    yield "ties", (ties * 2.0**-5,)
    yield "small numbers", (torch.randn(32, generator=rng) * 2e-3,)


# ---- packed bytes ----

def unpack(packed, scale):
    """Bytes o i/2 and scale bytes o i/32, both uint8 -> numbers o i, float32."""
    return _unpack(packed, scale)


def _unpack(packed, scale, low_first=True, bias=127, tile=False):
    low, high = packed & 15, packed >> 4
    codes = torch.stack([low, high] if low_first else [high, low], dim=-1).flatten(1)    # o i
    s = torch.exp2(scale.float() - bias)
    s = s.repeat(1, 32) if tile else s.repeat_interleave(32, 1)
    return torch.tensor(FP4_VALUES)[codes.long()] * s


def _unpack_halves(packed, scale):
    codes = torch.cat([packed & 15, packed >> 4], dim=1)
    s = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    return torch.tensor(FP4_VALUES)[codes.long()] * s


def _unpack_with(**changes):
    return lambda packed, scale: _unpack(packed, scale, **changes)


def _unpack_cases(rng):
    worked = torch.zeros(1, 16, dtype=torch.uint8)
    worked[0, :4] = torch.tensor([0x21, 0x7F, 0x90, 0x0A], dtype=torch.uint8)
    yield "the worked example", (worked, torch.tensor([[0x7C]], dtype=torch.uint8))
    packed = torch.randint(0, 256, (3, 48), generator=rng, dtype=torch.uint8)
    scale = torch.randint(118, 130, (3, 3), generator=rng, dtype=torch.uint8)
    yield "three rows of three blocks", (packed, scale)


# ---- the Hadamard transform ----

def hadamard_transform(x):
    """x H / sqrt(n) along the last axis, n a power of two."""
    return x @ _signs(x.shape[-1]) * x.shape[-1] ** -0.5


def _signs(n):
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def _one_stage(x):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a + b, a - b], -1).flatten(-2) * 2**-0.5


def _grown_wrongly(x):
    H = torch.ones(1, 1)
    while len(H) < x.shape[-1]:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([-H, H], 1)])
    return x @ H * x.shape[-1] ** -0.5


def _hadamard_cases(rng):
    yield "four channels", (torch.tensor([1.0, 2, 3, 5]),)
    yield "16 channels of three vectors", (torch.randn(3, 16, generator=rng),)
    yield "T H c", (torch.randn(4, 2, 8, generator=rng),)


# ---- from FP4 to FP8 ----

def largest_spread(code_max, code_min, wide_max, wide_min):
    """By how much scale exponents may differ within a block of the wide format."""
    d = 0
    while True:
        exponent = math.ceil(math.log2(code_max * 2.0 ** (d + 1) / wide_max))      # of the scale
        if code_min / 2.0**exponent < wide_min:
            return d
        d += 1


def _spread_cases(rng):
    yield "FP4 in E4M3", (6.0, 0.5, 448.0, 2.0**-9)
    yield "FP4 in E5M2", (6.0, 0.5, 57344.0, 2.0**-16)
    yield "numbers 1 to 3 in E4M3", (3.0, 1.0, 448.0, 2.0**-9)
    yield "E3M2 in E4M3", (28.0, 0.0625, 448.0, 2.0**-9)


# ---- straight through ----

def straight_through(x, rounding):
    """rounding(x), whose gradient with respect to x is 1."""
    return x + (rounding(x) - x).detach()


def with_gradient(function):
    """A function that returns function(x, rounding) and the gradient of its weighted sum."""
    def both(x, rounding, weights):
        x = x.clone().requires_grad_()
        y = function(x, rounding)
        total = (y * weights).sum()
        if not total.requires_grad:
            return y.detach(), torch.full_like(x, float("nan"))
        return y.detach(), torch.autograd.grad(total, x)[0]
    return both


def _thirds(x):
    return (3 * x).round() / 3


def _straight_cases(rng):
    x, w = torch.randn(6, generator=rng) * 2, torch.randn(6, generator=rng)
    yield "whole numbers", (x, torch.round, w)
    yield "thirds", (torch.randn(2, 3, generator=rng), _thirds, torch.randn(2, 3, generator=rng))


CHECKS = [
    Check(
        "numbers.decode", decode, _decode_cases,
        mistakes={
            "every code gets the hidden 1: where the exponent's field is 0 there is none "
            "(subnormal numbers)":
                _decode_with(always_one=True),
            "subnormal numbers are too small by half: their power is 2^(1 - bias), the same as "
            "that of field 1":
                _decode_with(subnormal=0),
            "the bias is not subtracted from the exponent": _decode_with(no_bias=True),
            "the sign is not used: it is the topmost bit": _decode_with(unsigned=True),
            "the mantissa is taken as a whole number: it is a fraction, divide it by 2^m_bits":
                _decode_with(mantissa_of=lambda m, bits: m),
        },
        hints=(
            "Cut the code in three: code >> (e_bits + m_bits), then the next e_bits, then the "
            "last m_bits.",
            "field = code // 2**m_bits % 2**e_bits; mantissa = code % 2**m_bits, which counts "
            "steps of 1 / 2**m_bits.",
            "field 0: sign * mantissa / 2**m_bits * 2.0**(1 - bias). Otherwise: sign * (1 + ...) "
            "* 2.0**(field - bias).",
        ),
        atol=0.0, rtol=1e-6,
    ),
    Check(
        "numbers.round_block", round_block, _block_cases,
        mistakes={
            "the scale's exponent is rounded down: the largest number is above 6 scales and gets "
            "clipped":
                _block_with(exponent=math.floor),
            "the scale's exponent is rounded to the nearest: at times the largest number gets "
            "clipped":
                _block_with(exponent=round),
            "the scale is amax / 6 itself: it has to be a power of two, the next one at or above":
                _block_with(power=False),
            "ties all go to the smaller number: of two nearest codes the even one wins, so 0.75 "
            "becomes 1":
                _block_with(even=False),
            "the largest number is taken without its sign removed: use the largest absolute value":
                _block_with(amax=lambda x: x.max()),
            "the numbers are left divided by the scale: multiply them with it again":
                _block_with(back=False),
            "the signs are lost": _block_with(signed=False),
        },
        hints=(
            "Three steps: the scale from the largest absolute value, the nearest code of x / "
            "scale, times the scale.",
            "scale = 2.0 ** math.ceil(math.log2(amax / 6)). Then every |x| / scale is at most 6: "
            "nothing is clipped.",
            "At a tie take the even code (0, 1, 2, 4 of 0, .5, 1, 1.5, 2, 3, 4, 6): compare > and "
            ">= with the middles alternately.",
        ),
        atol=1e-9, rtol=1e-6,
    ),
    Check(
        "numbers.unpack", unpack, _unpack_cases,
        mistakes={
            "this still has both faults": _unpack_with(low_first=False, tile=True),
            "the scales are right now; neighbours are still swapped: the low half of a byte is "
            "the first column":
                _unpack_with(low_first=False),
            "the halves of the bytes are right now; the scales are still laid out wrongly: 32 "
            "columns in a run share one":
                _unpack_with(tile=True),
            "the scale's bias is 127, not 128": _unpack_with(bias=128),
            "all low halves come first, then all high ones: they alternate": _unpack_halves,
        },
        hints=(
            "Decode the worked example by hand and compare number by number. It has only one "
            "block, so it shows one fault; for the other, think of a row with three scales.",
            "Which half of byte 21 is column 0? And of three scales a, b, c in a row, which one "
            "serves column 1?",
            "packed & 15 is the low half. repeat_interleave gives a a a b b b c c c, repeat gives "
            "a b c a b c a b c.",
        ),
        atol=0.0, rtol=1e-6,
    ),
    Check(
        "numbers.hadamard_transform", hadamard_transform, _hadamard_cases,
        mistakes={
            "the factor 1 / sqrt(n) is missing: vectors grow by sqrt(n)":
                lambda x: x @ _signs(x.shape[-1]),
            "the factor is 1 / n: it is 1 / sqrt(n), so that lengths stay":
                lambda x: x @ _signs(x.shape[-1]) / x.shape[-1],
            "only neighbours are combined: the matrix doubles until it is n x n": _one_stage,
            "the minus is in the wrong corner: below [H, H] comes [H, -H]": _grown_wrongly,
        },
        hints=(
            "Begin with a 1 x 1 matrix of 1. Doubling: [H, H] above, [H, -H] below.",
            "torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)]) until the matrix has n rows.",
            "x @ H transforms the last axis, whatever axes come before it; then divide by the "
            "root of n.",
        ),
    ),
    Check(
        "numbers.largest_spread", largest_spread, _spread_cases,
        mistakes={
            "FP8's smallest number is taken as its smallest normal one: the subnormal ones, down "
            "to 2^-9, count too":
                lambda a, b, c, d: largest_spread(a, b, c, 8 * d),
            "this is the whole range of the wide format; the codes bring a range of their own, "
            "code_max / code_min":
                lambda a, b, c, d: math.floor(math.log2(c / d)),
            "one too many: this is the first difference that fails (or the smallest code was "
            "taken as 1; it is 0.5)":
                lambda a, b, c, d: largest_spread(a, b, c, d) + 1,
        },
        hints=(
            "Take two codes: the largest at the largest scale, 2^d, and the smallest at the "
            "smallest scale, 1.",
            "The wide scale is 2^ceil(log2(code_max * 2^d / wide_max)). What is left of code_min "
            "after dividing by it?",
            "Exact as long as code_min / scale >= wide_min. Try d = 0, 1, 2, ... in a loop until "
            "it fails.",
        ),
        atol=0.0, rtol=0.0,
    ),
    Check(
        "numbers.straight_through", with_gradient(straight_through), _straight_cases,
        mistakes={
            "the gradient is 0: rounding is flat, and autograd knows it. Let it see x only: "
            "detach the difference":
                with_gradient(lambda x, rounding: rounding(x) + 0 * x),
            "the value is x, not the rounded number: detach the difference, not x":
                with_gradient(lambda x, rounding: x * 1.0),
            "no gradient reaches x: detaching everything cuts it off":
                with_gradient(lambda x, rounding: rounding(x).detach()),
            "the gradient is doubled: x appears twice with a gradient":
                with_gradient(lambda x, rounding: 2 * x + (rounding(x) - 2 * x).detach()),
        },
        hints=(
            "You need an expression whose value is rounding(x) and in which autograd sees x alone.",
            "Write rounding(x) as x plus a difference. Which of the two should have no gradient?",
            "x + (something).detach()",
        ),
        atol=1e-6,
    ),
]
