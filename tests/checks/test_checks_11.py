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
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def decode_without_subnormals(code, e_bits, m_bits, bias):
    e, m = code >> m_bits & (1 << e_bits) - 1, code & (1 << m_bits) - 1
    return (1 - 2 * (code >> e_bits + m_bits)) * (1 + m / (1 << m_bits)) * 2.0 ** (e - bias)


def round_down(x):
    scale = 2.0 ** math.floor(math.log2(x.abs().max() / 6))
    y = fake_quant(torch.cat([(x / scale).clamp(-6, 6), torch.full((32,), 0.0)]), "fp4")[:32]
    return y * scale, scale


def unpack_high_first(packed, scale):
    codes = [c for byte in packed.flatten().tolist() for c in (byte >> 4, byte & 15)]
    values = torch.tensor([FP4_VALUES[c] for c in codes]).view(len(packed), -1, 32)
    return (values * torch.exp2(scale.float() - 127)[..., None]).flatten(1)


@pytest.mark.parametrize("name, attempt, words", [
    ("numbers.decode", decode_without_subnormals, "every code gets the hidden 1"),
    ("numbers.round_block", round_down, "rounded down"),
    ("numbers.round_block", lambda x: (x, 1.0), "In the case"),
    ("numbers.unpack", unpack_high_first, "neighbours are still swapped"),
    ("numbers.unpack", lambda packed, scale: unpack_with_the_package(packed, scale)[:, ::2],
     "expected shape"),
    ("numbers.hadamard_transform", lambda x: activations.hadamard_transform(x) * x.shape[-1] ** 0.5,
     "the factor 1 / sqrt(n) is missing"),
    ("numbers.largest_spread", lambda *sizes: 15, "In the case"),
    ("numbers.straight_through", checks.with_gradient(lambda x, rounding: rounding(x)),
     "the gradient is 0"),
    ("numbers.straight_through", checks.with_gradient(lambda x, rounding: x), "the value is x"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


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
