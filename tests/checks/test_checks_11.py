"""Lesson 11: right answers written otherwise pass, slips are named, claims hold, figures draw."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from minids.config import Config
from minids.learn.checks import numbers as checks
from minids.learn.judge import check
from minids.model import activations
from minids.numerics import FP4_VALUES, fake_quant, fp4_decode, fp8_decode, fp8_encode
from minids.show import numbers


def decode_with_strings(code, e_bits, m_bits, bias):
    bits = format(code, f"0{1 + e_bits + m_bits}b")
    e, m = int(bits[1:1 + e_bits], 2), int(bits[1 + e_bits:], 2)
    sign, whole = -1 if bits[0] == "1" else 1, 2**m_bits if e else 0
    return sign * (m + whole) * 2.0 ** (max(e, 1) - bias - m_bits)


def round_with_the_package(x):
    return fake_quant(x, "fp4"), 2.0 ** math.ceil(math.log2(x.abs().max() / 6))


def unpack_with_the_package(packed, scale):
    return fp4_decode(packed.view(torch.int8), scale.view(torch.float8_e8m0fnu))


def spread_by_formula(code_max, code_min, wide_max, wide_min):
    return math.floor(math.log2(code_min / wide_min)) - math.ceil(math.log2(code_max / wide_max))


def spread_by_ranges(code_max, code_min, wide_max, wide_min):
    return math.floor(math.log2(wide_max / wide_min / (code_max / code_min)))


def hadamard_by_butterflies(x):
    n, step, shape = x.shape[-1], 1, x.shape
    while step < n:
        x = x.reshape(*shape[:-1], n // (2 * step), 2, step)
        a, b = x.unbind(-2)
        x, step = torch.stack([a + b, a - b], -2).reshape(shape), 2 * step
    return x / math.sqrt(n)


def unpack_by_loops(packed, scale):
    rows = []
    for bytes_, scales in zip(packed.tolist(), scale.tolist()):
        codes = [half for byte in bytes_ for half in (byte % 16, byte // 16)]
        rows.append([FP4_VALUES[c] * 2.0 ** (scales[j // 32] - 127) for j, c in enumerate(codes)])
    return torch.tensor(rows)


def round_with_argmin(x):
    scale = 2.0 ** torch.ceil(torch.log2(x.abs().amax() / 6))
    a = (x / scale).abs()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])          # even codes first: they win ties
    near = order[(a[:, None] - checks.GRID[order]).abs().argmin(1)]
    return checks.GRID[near] * x.sign() * scale, scale


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounding):
        return rounding(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@pytest.mark.parametrize("name, attempt", [
    ("numbers.decode", decode_with_strings), ("numbers.round_block", round_with_the_package),
    ("numbers.unpack", unpack_with_the_package),
    ("numbers.hadamard_transform", activations.hadamard_transform),
    ("numbers.largest_spread", spread_by_formula),
    ("numbers.straight_through", checks.with_gradient(Straight.apply)),
    ("numbers.straight_through", checks.with_gradient(
        lambda x, rounding: rounding(x).detach() + x - x.detach())),
    ("numbers.largest_spread", spread_by_ranges),
    ("numbers.hadamard_transform", hadamard_by_butterflies),
    ("numbers.unpack", unpack_by_loops), ("numbers.round_block", round_with_argmin),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def decode_without_subnormals(code, e_bits, m_bits, bias):
    e, m = code >> m_bits & (1 << e_bits) - 1, code & (1 << m_bits) - 1
    return (1 - 2 * (code >> e_bits + m_bits)) * (1 + m / (1 << m_bits)) * 2.0 ** (e - bias)


def decode_in_eighths(code, e_bits, m_bits, bias):
    sign, e = code >> e_bits + m_bits, (code >> m_bits) & 2**e_bits - 1
    part = (code & 2**m_bits - 1) / 8
    number = (1 + part) * 2.0 ** (e - bias) if e else part * 2.0 ** (1 - bias)
    return -number if sign else number


def round_down(x):
    scale = 2.0 ** math.floor(math.log2(x.abs().max() / 6))
    y = fake_quant(torch.cat([(x / scale).clamp(-6, 6), torch.full((32,), 0.0)]), "fp4")[:32]
    return y * scale, scale


def unpack_high_first(packed, scale):
    codes = [c for byte in packed.flatten().tolist() for c in (byte >> 4, byte & 15)]
    values = torch.tensor([FP4_VALUES[c] for c in codes]).view(len(packed), -1, 32)
    return (values * torch.exp2(scale.float() - 127)[..., None]).flatten(1)


def decode_with_its_own_bias(code, e_bits, m_bits, bias):
    return checks.decode(code, e_bits, m_bits, 2 ** (e_bits - 1) - 1)


def round_by(scale_of, nearest=lambda a: checks.GRID[(a[:, None] - checks.GRID).abs().argmin(1)]):
    def attempt(x):
        scale = scale_of(x.abs().max().item())
        return torch.copysign(nearest((x / scale).abs()), x) * scale, scale
    return attempt


def power_up(amax):
    return 2.0 ** math.ceil(math.log2(amax / 6))


def ties_up(a):
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    return checks.GRID[torch.bucketize(a, middles, right=True)]


def ties_even(a):
    return fake_quant(torch.cat([a, torch.full((32,), 6.0)]).clamp(max=6.0), "fp4")[:32]


def unpack_with_bytes(packed, scale):
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return torch.tensor(FP4_VALUES)[codes.long()] * (2.0 ** (scale - 127)).repeat_interleave(32, 1)


def unpack_without_long(packed, scale):
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return torch.tensor(FP4_VALUES)[codes] * 2.0 ** (scale.float() - 127).repeat_interleave(32, 1)


@pytest.mark.parametrize("name, attempt, words", [
    ("numbers.largest_spread", lambda a, b, c, d: round(math.log2(b / d * c / a)),
     "to the nearest whole number"),
    ("numbers.largest_spread", lambda a, b, c, d: math.floor(math.log2(c / d)) - math.floor(
        math.log2(a / b)), "each by itself"),
    ("numbers.decode", decode_in_eighths, "you divide the mantissa by 8"),
    ("numbers.unpack", lambda packed, scale: torch.tensor(FP4_VALUES)[torch.stack(
        [packed & 15, packed >> 4], -1).flatten(1).long()] * torch.exp2(
            scale.float() - 127).repeat_interleave(32), "without an axis"),
    ("numbers.hadamard_transform",
     lambda x: checks._signs(x.shape[-1]) @ x * x.shape[-1] ** -0.5, "from the left"),
    ("numbers.straight_through", checks.with_gradient(lambda x, r: r(x) + (x - r(x)).detach()),
     "you exchange the two"),
    ("numbers.decode", decode_with_its_own_bias, "the argument `bias`"),
    ("numbers.round_block", round_by(power_up), "ties go to the smaller"),
    ("numbers.round_block", round_by(power_up, ties_up), "ties go to the larger"),
    ("numbers.round_block", round_by(lambda amax: 2.0 ** (math.floor(math.log2(amax)) - 2),
                                     ties_even), "rule of MXFP4"),
    ("numbers.round_block", round_by(lambda amax: amax / 6, ties_even), "a power of two"),
    ("numbers.unpack", unpack_with_bytes, "wrap round"),
    ("numbers.unpack", unpack_without_long, "takes for a mask"),
    ("numbers.hadamard_transform", lambda x: x / x.shape[-1] ** 0.5, "In the case"),
    ("numbers.largest_spread", lambda a, b, c, d: spread_by_formula(a, b, c, d) - 1,
     "that number is still exact"),
    ("numbers.straight_through", checks.with_gradient(lambda x, r: x + r(x) - x.detach()),
     "rounding may have one"),
    ("numbers.straight_through", checks.with_gradient(lambda x, r: x + r(x).detach() - x),
     "your x cancels"),
    ("numbers.straight_through", checks.with_gradient(lambda x, r: r(x.detach())),
     "no gradient reaches x"),
    ("numbers.decode", decode_without_subnormals, "every code the hidden 1"),
    ("numbers.round_block", round_down, "you round the scale's exponent down"),
    ("numbers.round_block", lambda x: (x, 1.0), "In the case"),
    ("numbers.unpack", unpack_high_first, "but swap neighbours"),
    ("numbers.unpack", lambda packed, scale: unpack_with_the_package(packed, scale)[:, ::2],
     "expected shape"),
    ("numbers.hadamard_transform", lambda x: activations.hadamard_transform(x) * x.shape[-1] ** 0.5,
     "you leave out the factor 1 / sqrt(n)"),
    ("numbers.largest_spread", lambda *sizes: 15, "In the case"),
    ("numbers.straight_through", checks.with_gradient(lambda x, rounding: rounding(x)),
     "its gradient is rounding's own"),
    ("numbers.straight_through", checks.with_gradient(lambda x, rounding: x), "your value is x"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("d", [0, 7, 14, 15])
def test_the_limit_of_the_exercise_is_that_of_the_formats(d):
    block = torch.zeros(128, 128)
    block[0, 0], block[1, :8] = 6.0 * 2.0**d, torch.tensor(FP4_VALUES[:8])
    exact = torch.equal(fp8_decode(*fp8_encode(block)), block)
    assert exact == (d <= checks.largest_spread(6.0, 0.5, 448.0, 2.0**-9))


def test_the_widget_rounds_as_the_package_does():
    for largest in (3.0, 6.0, 6.1, 12.0):
        scale = 2.0 ** math.ceil(math.log2(largest / 6))
        for number in torch.linspace(0, largest, 49).tolist():
            rounded = fake_quant(torch.tensor([number, largest]), "fp4")[0].item()
            assert numbers.rounded_to(number, scale) == rounded


def test_numbers_of_the_formats():
    e4m3 = numbers.positive_numbers(torch.float8_e4m3fn)
    assert len(e4m3) == 126 and e4m3[0] == 2**-9 and e4m3[-1] == 448
    assert numbers.positive_numbers(torch.float8_e5m2)[-1] == 57344


@pytest.mark.slow
def test_the_figures_draw():
    line, pair = [1.0, 0.5, 0.1], {"a": (0.1, 0.01), "b": (0.2, 0.02)}
    e4m3 = {"E4M3": numbers.positive_numbers(torch.float8_e4m3fn),
            "E5M2": numbers.positive_numbers(torch.float8_e5m2)}
    bars = {"Flash": dict.fromkeys(numbers.FORMATS, Config.nano().dim)}
    for figure in (numbers.plot_bit_fields(), numbers.plot_fp4_line(), numbers.plot_density(e4m3),
                   numbers.plot_rounding(0.5, 6.1),
                   numbers.plot_scale_rules(line, {"a": line}, [1]),
                   numbers.plot_roundings([(0.5, 6.0), (1.0, 3.0)]),
                   numbers.plot_format_errors({"a": {"FP8": 0.1, "FP4": 0.2}}),
                   numbers.plot_outlier(line, line, line, line),
                   numbers.plot_outlier_sweep(line, line, line),
                   numbers.plot_masters({"a": (line, line), "b": (line, line)}),
                   numbers.plot_changes(pair, "t"), numbers.plot_on_disk(bars)):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
