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
    return _decode(code, e_bits, m_bits, bias)


def _decode(code, e_bits, m_bits, bias, hidden=True, power=1, part=lambda m, bits: m / 2**bits,
            bias_of=lambda bias, bits: bias, sign_of=lambda bit: (-1.0) ** bit, field_bits=0,
            flush=False, swapped=False, infinite=False, exponent=None, small=None):
    """`decode`; the arguments after `bias` make mistakes."""
    mantissa, field = code % 2**m_bits, code // 2**m_bits % 2 ** (e_bits + field_bits)
    if swapped:
        field, mantissa = code % 2**e_bits, code // 2**e_bits % 2**m_bits
    sign, bias = sign_of(code >> e_bits + m_bits), bias_of(bias, e_bits)
    if infinite and field == 2**e_bits - 1:
        return sign * math.inf
    if field == 0 and hidden:
        if small:
            return sign * small(part(mantissa, m_bits), bias)
        return 0.0 if flush else sign * part(mantissa, m_bits) * 2.0 ** (power - bias)
    shift = exponent(field, bias) if exponent else field - bias
    return sign * (1 + part(mantissa, m_bits)) * 2.0**shift


def _decode_with(**changes):
    return lambda *args: _decode(*args, **changes)


def _two_complement(code, e_bits, m_bits, bias):
    """The topmost bit is taken to count -2^(e_bits + m_bits), as in whole numbers."""
    bits = e_bits + m_bits
    return decode(code % 2**bits, e_bits, m_bits, bias) - 2.0**bits * (code >> bits)


def _whole_small(code, e_bits, m_bits, bias):
    number = decode(code, e_bits, m_bits, bias)
    return number * 2**m_bits if code // 2**m_bits % 2**e_bits == 0 else number


def _sign_last(code, e_bits, m_bits, bias):
    """The sign is taken to be the lowest bit."""
    bits = e_bits + m_bits
    return decode(code >> 1 | (code & 1) << bits, e_bits, m_bits, bias)


def _upside_down(code, e_bits, m_bits, bias):
    number = decode(code, e_bits, m_bits, 0)
    return number * 2.0**bias


def _normal_only_sign(code, e_bits, m_bits, bias):
    number = decode(code, e_bits, m_bits, bias)
    return abs(number) if code // 2**m_bits % 2**e_bits == 0 else number


def _decode_cases(rng):
    for code in (0b0110, 0b0011, 0b0111, 0b1101, 0b0001, 0b1000, 0b1001):
        yield f"E2M1, code {code:04b}", (code, 2, 1, 1)
    for code in (0b00111000, 0b01111110, 0b10111000, 0b00000001, 0b10000101, 0b11010011,
                 0b00101100):
        yield f"E4M3, code {code:08b}", (code, 4, 3, 7)
    yield "E3M2, code 110110", (0b110110, 3, 2, 3)
    for code in (0b01011, 0b00001, 0b11110):
        yield f"E3M1 with a bias of 5, code {code:05b}", (code, 3, 1, 5)


# ---- a block ----

def round_block(x):
    """32 numbers in FP4 with one scale: the rounded numbers, and the scale."""
    return _block(x)


def _nearest_even(a):
    """Numbers of the grid; of two nearest codes the even one wins. a: N -> N."""
    distance = (a[:, None] - GRID).abs()                               # N 8
    codes = distance.argmin(1)                                         # of two the smaller
    nearest = distance == distance.min(1, keepdim=True).values
    return GRID[torch.where((codes % 2 == 1) & (nearest.sum(1) == 2), codes + 1, codes)]


def _nearest_lower(a):
    return GRID[(a[:, None] - GRID).abs().argmin(1)]


def _nearest_upper(a):
    return GRID[7 - (a[:, None] - GRID.flip(0)).abs().argmin(1)]


def _downwards(a):
    return GRID[torch.bucketize(a, GRID, right=True) - 1]


def _codes(a):
    return (_nearest_even(a)[:, None] == GRID).float().argmax(1).float()


def _up(ratio):
    return 2.0 ** math.ceil(math.log2(ratio))


def _block(x, scale_of=lambda amax: _up(amax / 6), nearest=_nearest_even,
           amax=lambda x: x.abs().max(), back=lambda y, scale: y * scale, signed=True):
    """`round_block`; the arguments after `x` make mistakes."""
    scale = scale_of(amax(x).item())
    y = nearest((x / scale).abs())
    y = torch.where(torch.signbit(x), -y, y) if signed else y
    return back(y, scale), scale


def _without_sizes(a):
    """The nearest of the grid for numbers whose sign is still there: negative ones become 0."""
    return _nearest_even(a.clamp_min(0))


def _keeping_signs_away(x):
    scale = _up(x.abs().max().item() / 6)
    return _without_sizes(x / scale) * scale, scale


def _multiplied_first(x):
    scale = _up(x.abs().max().item() / 6)
    y = _nearest_even((x * scale).abs())
    return torch.where(torch.signbit(x), -y, y) / scale, scale


def _to_even_numbers(a):
    """At a tie the number that is a multiple of 2 wins, not the even code."""
    distance = (a[:, None] - GRID).abs() + 1e-7 * (GRID % 2 != 0)
    return GRID[distance.argmin(1)]


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


def _alternate(low, high):
    return torch.stack([low, high], dim=-1).flatten(1)


def _high_first(low, high):
    return _alternate(high, low)


def _powers(scale):
    return torch.exp2(scale.float() - 127)


def _each_32(s):
    return s.repeat_interleave(32, 1)


def _unpack(packed, scale, order=_alternate, power=_powers, spread=_each_32, values=FP4_VALUES):
    """`unpack`; the arguments after `scale` make mistakes."""
    codes = order(packed & 15, packed >> 4)                                     # o i
    return torch.tensor(values)[codes.long()] * spread(power(scale))


def _unpack_with(**changes):
    return lambda packed, scale: _unpack(packed, scale, **changes)


def _tiled(s):
    return s.repeat(1, 32)


def _scales_first(packed, scale):
    codes = _alternate(packed & 15, packed >> 4)
    return _powers(scale).repeat_interleave(32) * torch.tensor(FP4_VALUES)[codes.long()]


def _low_half_cut(packed, scale):
    codes = _alternate(packed & 7, packed >> 4)
    return torch.tensor(FP4_VALUES)[codes.long()] * _each_32(_powers(scale))


def _bytes_as_index(packed, scale):
    codes = _alternate(packed & 15, packed >> 4)
    return torch.tensor(FP4_VALUES)[codes] * _each_32(_powers(scale))


def _unpack_cases(rng):
    worked = torch.zeros(1, 16, dtype=torch.uint8)
    worked[0, :4] = torch.tensor([0x21, 0x7F, 0x90, 0x0A], dtype=torch.uint8)
    yield "the worked example", (worked, torch.tensor([[0x7C]], dtype=torch.uint8))
    packed = torch.randint(0, 256, (3, 48), generator=rng, dtype=torch.uint8)
    scale = torch.randint(118, 137, (3, 3), generator=rng, dtype=torch.uint8)
    yield "three rows of three blocks", (packed, scale)


# ---- the Hadamard transform ----

def hadamard_transform(x):
    """x H / sqrt(n) along the last axis, n a power of two."""
    return x @ _signs(x.shape[-1]) * x.shape[-1] ** -0.5


def _signs(n, corners=((1, 1), (1, -1))):
    """H by doubling; `corners` are the signs of the four parts."""
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([a * H for a in row], 1) for row in corners])
    return H


def _transform_with(*corners):
    return lambda x: x @ _signs(x.shape[-1], corners) * x.shape[-1] ** -0.5


def _one_stage(x):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a + b, a - b], -1).flatten(-2) * 2**-0.5


def _halves(x):
    a, b = x.chunk(2, -1)
    return torch.cat([a + b, a - b], -1) * 2**-0.5


def _both_axes(x):
    y = hadamard_transform(x)
    return _signs(x.shape[-2]) @ y if x.ndim > 1 else y


def _hadamard_cases(rng):
    yield "four channels", (torch.tensor([1.0, 2, 3, 5]),)
    yield "two channels of two vectors", (torch.tensor([[1.0, 2.0], [-0.5, 4.0]]),)
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


def _floor_log(x):
    return math.floor(math.log2(x))


def _spread_cases(rng):
    yield "FP4 in E4M3", (6.0, 0.5, 448.0, 2.0**-9)
    yield "FP4 in E5M2", (6.0, 0.5, 57344.0, 2.0**-16)
    yield "numbers 1 to 3 in E4M3", (3.0, 1.0, 448.0, 2.0**-9)
    yield "E3M2 in E4M3", (28.0, 0.0625, 448.0, 2.0**-9)
    yield "the largest numbers are 8 and 256", (8.0, 0.25, 256.0, 2.0**-4)
    yield "numbers 0.5 to 4 in E4M3", (4.0, 0.5, 448.0, 2.0**-9)
    yield "numbers 0.5 to 7.5 in E4M3", (7.5, 0.5, 448.0, 2.0**-9)


# ---- straight through ----

def straight_through(x, rounding):
    """rounding(x), whose gradient with respect to x is 1."""
    return x + (rounding(x) - x).detach()


def with_gradient(function):
    """A function that returns function(x, rounding) and the gradient of its weighted sum."""
    def both(x, rounding, weights):
        x = x.clone().requires_grad_()
        y = function(x, rounding)
        if not y.requires_grad:
            return y, torch.zeros_like(x)
        return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]
    return both


def _thirds(x):
    return (3 * x).round() / 3


class _OwnGradient(torch.autograd.Function):
    """Rounds to whole numbers and passes 0.75 of the gradient on."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return 0.75 * grad


def _straight_cases(rng):
    x, w = torch.randn(6, generator=rng) * 2, torch.randn(6, generator=rng)
    yield "whole numbers", (x, torch.round, w)
    yield "thirds", (torch.randn(2, 3, generator=rng), _thirds, torch.randn(2, 3, generator=rng))
    yield "a rounding that has a gradient of its own", (2 * x, _OwnGradient.apply, w)


SCALES = {
    "you round the scale's exponent down; it should be rounded up":
        {"scale_of": lambda amax: 2.0 ** math.floor(math.log2(amax / 6))},
    "you round the scale's exponent to the nearest; it should be rounded up":
        {"scale_of": lambda amax: 2.0 ** round(math.log2(amax / 6))},
    "you always go to the next power of two; it should be ceil, not floor plus 1":
        {"scale_of": lambda amax: 2.0 ** (math.floor(math.log2(amax / 6)) + 1)},
    "you take the rule of MXFP4; it should be ceil(log2(max / 6))":
        {"scale_of": lambda amax: 2.0 ** (math.floor(math.log2(amax)) - 2)},
    "your scale is max / 6 itself; it should be a power of two":
        {"scale_of": lambda amax: amax / 6},
    "you do not divide the largest number by 6; the scale should be that of max / 6":
        {"scale_of": _up},
    "you take the largest number with its sign; it should be the largest absolute value":
        {"amax": lambda x: x.max()},
    "you leave the numbers divided by the scale; they should be multiplied with it again":
        {"back": lambda y, scale: y},
    "you lose the signs; they should stay": {"signed": False},
}


def _with_wrong_ties():
    """{message: version} for these faults together with ties that go to the smaller number."""
    return {f"{fault}. And ties go to the smaller number; the even code should win":
            _block_with(nearest=_nearest_lower, **changes) for fault, changes in SCALES.items()}


CHECKS = [
    Check(
        "numbers.decode", decode, _decode_cases,
        mistakes={
            "you give every code the hidden 1; where the exponent's field is 0 (subnormal numbers) "
            "there should be none":
                _decode_with(hidden=False),
            "your subnormal numbers are too small by half; their power should be 2^(1 - bias), the "
            "same as that of field 1":
                _decode_with(power=0),
            "you return 0 for every code whose exponent's field is 0; it should be the mantissa's "
            "share of 2^(1 - bias)": _decode_with(flush=True),
            "your subnormal numbers lose their sign; it should apply to them as well":
                _normal_only_sign,
            "you do not subtract the bias from the exponent; it should be 2^(field - bias)":
                _decode_with(bias_of=lambda bias, bits: 0),
            "you add the bias to the exponent; it should be subtracted": _upside_down,
            "you compute the bias from the bits of the exponent; it should be the argument `bias`":
                _decode_with(bias_of=lambda bias, bits: 2 ** (bits - 1) - 1),
            "you do not use the sign; it should be the topmost bit":
                _decode_with(sign_of=lambda bit: 1.0),
            "your sign is the wrong way round; a topmost bit of 1 should mean negative":
                _decode_with(sign_of=lambda bit: -((-1.0) ** bit)),
            "you multiply with the sign bit, 0 or 1; it should be 1 or -1":
                _decode_with(sign_of=lambda bit: float(bit)),
            "you take the lowest bit for the sign; it should be the topmost": _sign_last,
            "you leave the sign bit in the exponent's field; it should be cut off":
                _decode_with(field_bits=1),
            "you take exponent and mantissa from each other's place; after the sign the exponent "
            "should come first": _decode_with(swapped=True),
            "you take the mantissa as a whole number; it is a fraction, so it should be divided by "
            "2^m_bits":
                _decode_with(part=lambda m, bits: m),
            "you divide the mantissa by 2^m_bits - 1; it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / (2**bits - 1)),
            "you divide the mantissa by 10; it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / 10),
            "you return infinity for the highest exponent; here all codes should be finite numbers":
                _decode_with(infinite=True),
            "you divide the mantissa by 8, which is right for three bits only; it should be "
            "2^m_bits": _decode_with(part=lambda m, bits: m / 8),
            "you lose the mantissa, as // does, which cuts; it should be divided by 2^m_bits "
            "with /": _decode_with(part=lambda m, bits: 0),
            "you divide the mantissa by 2, which is right for one bit only; it should be "
            "2^m_bits": _decode_with(part=lambda m, bits: m / 2),
            "you divide the mantissa by 16; it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / 16),
            "you divide the mantissa by m_bits; it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / bits),
            "you divide the mantissa by 2 m_bits; it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / (2 * bits)),
            "you divide the mantissa by 2^(m_bits + 1); it should be 2^m_bits":
                _decode_with(part=lambda m, bits: m / 2 ** (bits + 1)),
            "you take the mantissa of subnormal numbers as a whole number; it should be divided "
            "by 2^m_bits there too": _whole_small,
            "you return the mantissa's share alone for subnormal numbers; it should be times "
            "2^(1 - bias)": _decode_with(small=lambda part, bias: part),
            "you give subnormal numbers the hidden 1; with the exponent 1 - bias there should "
            "be none": _decode_with(small=lambda part, bias: (1 + part) * 2.0 ** (1 - bias)),
            "you take bias - 1 for the exponent of subnormal numbers; it should be 1 - bias":
                _decode_with(small=lambda part, bias: part * 2.0 ** (bias - 1)),
            "you add the bias to the exponent of normal numbers; it should be subtracted":
                _decode_with(exponent=lambda field, bias: field + bias),
            "you subtract the exponent's field from the bias; it should be field - bias":
                _decode_with(exponent=lambda field, bias: bias - field),
            "the exponent of your normal numbers is too large by 1; it should be field - bias":
                _decode_with(exponent=lambda field, bias: field - bias + 1),
            "the exponent of your normal numbers is too small by 1; it should be field - bias":
                _decode_with(exponent=lambda field, bias: field - bias - 1),
            "you always take 7 for the bias; it should be the argument `bias`":
                _decode_with(bias_of=lambda bias, bits: 7),
            "you subtract for the sign bit, as in whole numbers; it should only change the sign":
                _two_complement,
            "you shift a whole number by field - bias, which can be negative; it should be 2.0 "
            "** (field - bias)":
                _decode_with(exponent=lambda field, bias: (1 << field - bias).bit_length() - 1),
        },
        hints=(
            "Cut the code in three: code >> (e_bits + m_bits), then the next e_bits, then the "
            "last m_bits.",
            "field = code // 2**m_bits % 2**e_bits; mantissa = code % 2**m_bits, which counts "
            "steps of 1 / 2**m_bits.",
            "field 0: sign * mantissa / 2**m_bits * 2.0**(1 - bias). Otherwise: sign * (1 + ...) "
            "* 2.0**(field - bias).",
        ),
        atol=0.0, rtol=1e-6, gradient=False,
    ),
    Check(
        "numbers.round_block", round_block, _block_cases,
        mistakes=_with_wrong_ties() | {
            "you round the scale's exponent down, so the largest numbers get clipped at 6 scales; "
            "it should be rounded up":
                _block_with(scale_of=lambda amax: 2.0 ** math.floor(math.log2(amax / 6))),
            "you round the scale's exponent to the nearest, so at times the largest number gets "
            "clipped; it should be rounded up":
                _block_with(scale_of=lambda amax: 2.0 ** round(math.log2(amax / 6))),
            "you take the rule of MXFP4, floor(log2 max) - 2; V4 takes ceil(log2(max / 6))":
                _block_with(scale_of=lambda amax: 2.0 ** (math.floor(math.log2(amax)) - 2)),
            "you always go to the next power of two, even where max / 6 is one; it should be "
            "ceil, not floor plus 1":
                _block_with(scale_of=lambda amax: 2.0 ** (math.floor(math.log2(amax / 6)) + 1)),
            "your scale is max / 6 itself; it should be a power of two, the next one at or above":
                _block_with(scale_of=lambda amax: amax / 6),
            "you do not divide the largest number by 6; the scale should be that of max / 6":
                _block_with(scale_of=_up),
            "you divide the largest number by 448, which is FP8's; FP4's largest number is 6":
                _block_with(scale_of=lambda amax: _up(amax / 448),
                            nearest=lambda a: _nearest_even(a.clamp(max=6))),
            "you divide the largest number by 4; FP4's largest number is 6":
                _block_with(scale_of=lambda amax: _up(amax / 4)),
            "you let ties go to the smaller number; of two nearest codes the even one should win, "
            "so 0.75 becomes 1":
                _block_with(nearest=_nearest_lower),
            "you let ties go to the larger number; of two nearest codes the even one should win, "
            "so 0.25 becomes 0":
                _block_with(nearest=_nearest_upper),
            "you round down to the next FP4 number; it should be the nearest":
                _block_with(nearest=_downwards),
            "you round to whole numbers; it should be to the nearest of the eight numbers in GRID":
                _block_with(nearest=torch.round),
            "you return codes times the scale; it should be the numbers that the codes stand for":
                _block_with(nearest=_codes),
            "you take the largest number with its sign; it should be the largest absolute value":
                _block_with(amax=lambda x: x.max()),
            "you leave the numbers divided by the scale; they should be multiplied with it again":
                _block_with(back=lambda y, scale: y),
            "you divide by the scale a second time; the numbers should be multiplied with it":
                _block_with(back=lambda y, scale: y / scale),
            "you lose the signs; they should stay": _block_with(signed=False),
            "you return the scale first; it should be the numbers, then the scale":
                lambda x: _block(x)[::-1],
            "you return the numbers alone; it should be the numbers and the scale":
                lambda x: _block(x)[0],
            "you return the scale's exponent; it should be the scale, 2 to that power":
                lambda x: (_block(x)[0], math.log2(_block(x)[1])),
            "you return the inverse of the scale; it should be the scale":
                lambda x: (_block(x)[0], 1 / _block(x)[1]),
            "you look for the nearest of the eight numbers with the sign still there, so "
            "negative numbers become 0; it should be for the absolute value": _keeping_signs_away,
            "you multiply with the scale first and divide at the end; it should be the other "
            "way round": _multiplied_first,
            "at a tie you take the even number; it should be the even code (of 0.25 and 0.75 "
            "the codes 0 and 2)": _block_with(nearest=_to_even_numbers),
            "you round to halves everywhere; above 2 the numbers in GRID are 3, 4 and 6":
                _block_with(nearest=lambda a: (a * 2).round() / 2),
            "you take the natural logarithm; the scale should be a power of two, with log2":
                _block_with(scale_of=lambda amax: 2.0 ** math.ceil(math.log(amax / 6))),
            "you round max / 6 up to a whole number; it is its exponent, log2, that should be "
            "rounded up": _block_with(scale_of=lambda amax: float(math.ceil(amax / 6))),
            "you divide the exponent by 6; it should be the largest number, before the "
            "logarithm": _block_with(scale_of=lambda amax: 2.0 ** math.ceil(math.log2(amax) / 6)),
            "you subtract 6 from the exponent; the largest number should be divided by 6 before "
            "the logarithm":
                _block_with(scale_of=lambda amax: 2.0 ** (math.ceil(math.log2(amax)) - 6)),
            "you take the mean size for the largest number; it should be the largest absolute "
            "value": _block_with(amax=lambda x: x.abs().mean()),
            "you take the distance from the smallest number to the largest; it should be the "
            "largest absolute value": _block_with(amax=lambda x: x.max() - x.min()),
            "you leave out log2; the scale should be 2 to the power ceil(log2(max / 6))":
                _block_with(scale_of=lambda amax: 2.0 ** math.ceil(amax / 6)),
        },
        hints=(
            "Three steps: the scale from the largest absolute value, the nearest code of x / "
            "scale, times the scale.",
            "scale = 2.0 ** math.ceil(math.log2(amax / 6)). Then every |x| / scale is at most 6: "
            "nothing is clipped.",
            "At a tie take the even code (0, 1, 2, 4 of 0, .5, 1, 1.5, 2, 3, 4, 6): compare > and "
            ">= with the middles alternately.",
        ),
        atol=1e-9, rtol=1e-6, gradient=False,
    ),
    Check(
        "numbers.unpack", unpack, _unpack_cases,
        mistakes={
            "both faults are still there": _unpack_with(order=_high_first, spread=_tiled),
            "you lay the scales out correctly now, but swap neighbours; the low half of a byte "
            "should be the first of its two columns":
                _unpack_with(order=_high_first),
            "you take the halves in the right order now, but lay the scales out as a b c a b c; "
            "32 columns in a run should share one, a a a ... b b b":
                _unpack_with(spread=_tiled),
            "you take 128 for the scale's bias; it should be 127":
                _unpack_with(power=lambda s: _powers(s) / 2),
            "you take 126 for the scale's bias; it should be 127":
                _unpack_with(power=lambda s: _powers(s) * 2),
            "you subtract 127 from bytes, which have no negative numbers and wrap round; they "
            "should become floats first":
                _unpack_with(power=lambda s: torch.exp2((s - 127).float())),
            "you multiply with the scale's byte; it is an exponent and should be 2^(byte - 127)":
                _unpack_with(power=lambda s: s.float()),
            "you multiply with byte - 127; the scale should be 2 to that power":
                _unpack_with(power=lambda s: s.float() - 127),
            "you divide by the scale; the numbers should be multiplied with it":
                _unpack_with(power=lambda s: 1 / _powers(s)),
            "you do not use the scales; the numbers should be multiplied with them":
                _unpack_with(power=torch.ones_like),
            "you put all low halves first, then all high ones; they should alternate":
                _unpack_with(order=lambda low, high: torch.cat([low, high], 1)),
            "you put all low halves first, then all high ones, and lay the scales out as a b c a b "
            "c; both should change":
                _unpack_with(order=lambda low, high: torch.cat([low, high], 1), spread=_tiled),
            "you put all high halves first, then all low ones; they should alternate, low half "
            "first":
                _unpack_with(order=lambda low, high: torch.cat([high, low], 1)),
            "you lose the signs; codes 8 to 15 should be the negatives of 0 to 7":
                _unpack_with(values=FP4_VALUES[:8] * 2),
            "you take the codes as numbers; a code is the place of its number in FP4_VALUES":
                _unpack_with(values=[float(code) for code in range(16)]),
            "you index with a tensor of bytes, which torch takes for a mask; the codes should be "
            "int64 first": _bytes_as_index,
            "you repeat the scales without an axis, which flattens all rows into one; it should "
            "be along axis 1": _unpack_with(spread=lambda s: s.repeat_interleave(32)),
            "you repeat the scales without an axis, which makes one row of them all; it should "
            "be along axis 1": _scales_first,
            "you repeat the scales along axis 0; it should be axis 1, the columns":
                _unpack_with(spread=lambda s: s.repeat_interleave(32, 0)),
            "you repeat each scale 16 times; a scale serves 16 bytes, which are 32 numbers":
                _unpack_with(spread=lambda s: s.repeat_interleave(16, 1)),
            "you do not repeat the scales; each should serve 32 columns":
                _unpack_with(spread=lambda s: s),
            "you change the scale after 16 columns; it should be after 32":
                _unpack_with(spread=lambda s: s[:, (torch.arange(32 * s.shape[1]) // 16).clamp_max(
                    s.shape[1] - 1)]),
            "you cut the low half to three bits; it has four, so it should be packed & 15":
                _low_half_cut,
            "you read the scale's byte as an E4M3 number; it should be 2^(byte - 127)":
                _unpack_with(power=lambda s: s.view(torch.float8_e4m3fn).float()),
            "you leave the bias out of the scale; it should be 2^(byte - 127)":
                _unpack_with(power=lambda s: torch.exp2(s.float())),
            "you return the two halves in an axis of their own; they should be neighbours in "
            "one row": lambda packed, scale: torch.stack([packed & 15, packed >> 4], -1),
        },
        hints=(
            "Decode the worked example by hand and compare number by number. It has only one "
            "block, so it shows one fault; for the other, think of a row with three scales.",
            "Which half of byte 21 is column 0? And of three scales a, b, c in a row, which one "
            "serves column 1?",
            "packed & 15 is the low half. repeat_interleave gives a a a b b b c c c, repeat gives "
            "a b c a b c a b c.",
        ),
        atol=0.0, rtol=1e-6, gradient=False,
    ),
    Check(
        "numbers.hadamard_transform", hadamard_transform, _hadamard_cases,
        mistakes={
            "you leave out the factor 1 / sqrt(n), so vectors grow by sqrt(n); the product should "
            "be divided by it":
                lambda x: x @ _signs(x.shape[-1]),
            "you divide by n; it should be by sqrt(n), so that lengths stay":
                lambda x: x @ _signs(x.shape[-1]) / x.shape[-1],
            "you divide by sqrt(2) once; it should be by sqrt(n)":
                lambda x: x @ _signs(x.shape[-1]) / 2**0.5,
            "you multiply by sqrt(n); it should be divided by it":
                lambda x: x @ _signs(x.shape[-1]) * x.shape[-1] ** 0.5,
            "you divide by the root of all numbers in x; n should be the size of the last axis":
                lambda x: x @ _signs(x.shape[-1]) / x.numel() ** 0.5,
            "you combine neighbours once; the matrix should double until it is n x n": _one_stage,
            "you combine the two halves once; the matrix should double until it is n x n": _halves,
            "you have the minus in the lower left corner; below [H, H] should come [H, -H]":
                _transform_with((1, 1), (-1, 1)),
            "you have the minus in the upper left corner; it should be in the lower right":
                _transform_with((-1, 1), (1, 1)),
            "you have the minus in the upper right corner; it should be in the lower right":
                _transform_with((1, -1), (1, 1)),
            "you have no minus in the matrix; below [H, H] should come [H, -H]":
                _transform_with((1, 1), (1, 1)),
            "you have two minuses, in the lower row; below [H, H] should come [H, -H]":
                _transform_with((1, 1), (-1, -1)),
            "you return the matrix; it should be x times the matrix":
                lambda x: _signs(x.shape[-1]) * x.shape[-1] ** -0.5,
            "you multiply with the matrix from the left, which takes the first axis; x @ H "
            "should transform the last one":
                lambda x: _signs(x.shape[-1]) @ x * x.shape[-1] ** -0.5,
            "you take n from the first axis; it should be the size of the last one":
                lambda x: x @ _signs(len(x)) * len(x) ** -0.5,
            "you divide by the root of the first axis's size; it should be that of the last "
            "axis": lambda x: x @ _signs(x.shape[-1]) * len(x) ** -0.5,
            "you make the matrix for all numbers of x together; n should be the size of the "
            "last axis": lambda x: x @ _signs(x.numel()) * x.numel() ** -0.5,
            "you transform two axes; it should be the last alone": _both_axes,
            "you divide by 2, which is right for n = 4 only; it should be sqrt(n)":
                lambda x: x @ _signs(x.shape[-1]) / 2,
            "you divide by log2(n), the number of doublings; it should be sqrt(n)":
                lambda x: x @ _signs(x.shape[-1]) / math.log2(x.shape[-1]),
            "you scale each result to length 1; its length should stay that of x":
                lambda x: torch.nn.functional.normalize(x @ _signs(x.shape[-1]), dim=-1),
            "your result has the wrong sign; it should be x H / sqrt(n)":
                lambda x: -hadamard_transform(x),
        },
        hints=(
            "Begin with a 1 x 1 matrix of 1. Doubling: [H, H] above, [H, -H] below.",
            "torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)]) until the matrix has n rows.",
            "x @ H transforms the last axis, whatever axes come before it; then divide by the "
            "root of n.",
        ),
        gradient=False,
    ),
    Check(
        "numbers.largest_spread", largest_spread, _spread_cases,
        mistakes={
            "you take the wide format's smallest normal number (8 times its smallest, in E4M3); "
            "the subnormal ones, down to wide_min, should count too":
                lambda a, b, c, d: largest_spread(a, b, c, 8 * d),
            "you compute the whole range of the wide format; the codes have a range of their own, "
            "code_max / code_min, which should be taken off":
                lambda a, b, c, d: _floor_log(c / d),
            "you compute the range of the narrow format; it should be what the wide one has beyond "
            "it": lambda a, b, c, d: _floor_log(a / b),
            "you return the first difference that fails (or take 1 for the smallest code); it "
            "should be the last that is exact":
                lambda a, b, c, d: largest_spread(a, b, c, d) + 1,
            "you stop where code_min / scale equals wide_min; that number is still exact, so it "
            "should be >=": lambda a, b, c, d: largest_spread(a, b, c, d) - 1,
            "you round the wrong way, so the largest number does not fit; the wide scale's "
            "exponent should be rounded up, and the ratio of the ranges down":
                lambda a, b, c, d: _floor_log(b / d) - _floor_log(a / c),
            "you do not round; it should be a whole number, the largest that is exact":
                lambda a, b, c, d: math.log2(c / d / (a / b)),
            "you look only at whether the largest number fits; a wide scale makes it fit, and the "
            "smallest number should stay representable":
                lambda a, b, c, d: _floor_log(c / a),
            "you look only at the smallest number with a wide scale of 1; the scale should be the "
            "one that the largest number needs": lambda a, b, c, d: _floor_log(b / d),
            "you return the factor 2^d; it should be d":
                lambda a, b, c, d: 2 ** largest_spread(a, b, c, d),
            "you round to the nearest whole number; the wide scale's exponent should be rounded "
            "up, and the ratio of the ranges down":
                lambda a, b, c, d: round(math.log2(b / d * c / a)),
            "you round the ranges of both formats down, each by itself; it should be their "
            "ratio that is rounded": lambda a, b, c, d: _floor_log(c / d) - _floor_log(a / b),
            "you round the range of the wide format down and that of the narrow one up; it "
            "should be their ratio that is rounded":
                lambda a, b, c, d: _floor_log(c / d) - math.ceil(math.log2(a / b)),
            "you compare the wide format's largest number with the narrow one's smallest; it "
            "should be the ranges of both": lambda a, b, c, d: _floor_log(c / b),
            "you compare the narrow format's largest number with the wide one's smallest; it "
            "should be the ranges of both": lambda a, b, c, d: _floor_log(a / d),
            "you divide where you should multiply; it should be the wide range, wide_max / "
            "wide_min, by the narrow one, code_max / code_min":
                lambda a, b, c, d: _floor_log(c / a / (b / d)),
            "you subtract the ranges; they should be divided, for scales multiply":
                lambda a, b, c, d: math.floor((c - d) - (a - b)),
            "you take the natural logarithm; it should be log2, for scales are powers of two":
                lambda a, b, c, d: math.floor(math.log(b / d * c / a)),
        },
        hints=(
            "Take two codes: the largest at the largest scale, 2^d, and the smallest at the "
            "smallest scale, 1.",
            "The wide scale is 2^ceil(log2(code_max * 2^d / wide_max)). What is left of code_min "
            "after dividing by it?",
            "Exact as long as code_min / scale >= wide_min. Try d = 0, 1, 2, ... in a loop until "
            "it fails.",
        ),
        atol=0.0, rtol=0.0, gradient=False,
    ),
    Check(
        "numbers.straight_through", with_gradient(straight_through), _straight_cases,
        mistakes={
            "you return rounding(x), and its gradient is rounding's own, mostly 0; the gradient "
            "should be that of x: detach the difference between the two":
                with_gradient(lambda x, rounding: rounding(x) + 0 * x),
            "you add rounding(x) with its gradient, and rounding may have one; the whole "
            "difference, rounding(x) - x, should be detached":
                with_gradient(lambda x, rounding: x + rounding(x) - x.detach()),
            "your x cancels, or everything is detached, so no gradient reaches x; only the "
            "difference, rounding(x) - x, should be detached":
                with_gradient(lambda x, rounding: rounding(x).detach()),
            "you detach x in front, where its gradient should come from; only the difference "
            "should be detached":
                with_gradient(lambda x, rounding: x.detach() + rounding(x) - x),
            "your value is x; it should be rounding(x): detach the difference, not x":
                with_gradient(lambda x, rounding: x * 1.0),
            "your gradient is doubled, for x appears twice with one; it should appear once":
                with_gradient(lambda x, rounding: 2 * x + (rounding(x) - 2 * x).detach()),
            "your difference has the wrong sign; it should be rounding(x) - x":
                with_gradient(lambda x, rounding: x + (x - rounding(x)).detach()),
            "you add rounding(x) to x; it should be the difference, rounding(x) - x":
                with_gradient(lambda x, rounding: x + rounding(x).detach()),
            "your gradient is the quotient rounding(x) / x; it should be 1":
                with_gradient(lambda x, rounding: x * (rounding(x) / x).detach()),
            "you exchange the two: your value is x, and the gradient rounding's; it should be x "
            "plus a detached difference":
                with_gradient(lambda x, rounding: rounding(x) + (x - rounding(x)).detach()),
            "you return the difference alone; it should be added to x":
                with_gradient(lambda x, rounding: (rounding(x) - x).detach()),
            "you return the mean of x and rounding(x); it should be rounding(x), with the "
            "gradient of x": with_gradient(lambda x, rounding: (x + rounding(x)) / 2),
            "you start a new tensor that requires a gradient, so none reaches x; it should be x "
            "plus a detached difference":
                with_gradient(lambda x, rounding: rounding(x).detach().requires_grad_()),
        },
        hints=(
            "You need an expression whose value is rounding(x) and in which autograd sees x alone.",
            "Write rounding(x) as x plus a difference. Which of the two should have no gradient?",
            "x + (something).detach()",
        ),
        atol=1e-6, gradient=False,
    ),
]
