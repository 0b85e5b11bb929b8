"""FP8 and FP4 codes, scales, packing, rounding and their gradients."""

import math

import pytest
import torch

from minids import numerics
from minids.errors import MinidsError
from minids.numerics import KINDS, fake_quant, fp4_decode, fp4_encode, fp8_decode, fp8_encode

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def raw(tensor):
    return tensor.view(torch.uint8)


def test_worked_example():
    packed = torch.tensor([[0x21, 0x7F, 0x90, 0x0A] + [0] * 12], dtype=torch.uint8).view(torch.int8)
    numbers = fp4_decode(packed, torch.tensor([[0x7C]], dtype=torch.uint8).view(E8M0))
    assert numbers[0, :8].tolist() == [0.0625, 0.125, -0.75, 0.75, 0, -0.0625, -0.125, 0]
    codes = torch.tensor([[0x38, 0x7E, 0xB8, 0x01]], dtype=torch.uint8).view(E4M3)
    numbers = fp8_decode(codes, torch.tensor([[0x75]], dtype=torch.uint8).view(E8M0))
    assert numbers.tolist() == [[2.0**-10, 0.4375, -(2.0**-10), 2.0**-19]]


def test_every_fp8_code_round_trips():
    no_nan = [c for c in range(256) if c not in (0x7F, 0xFF)]
    codes = torch.tensor(no_nan, dtype=torch.uint8)[None]
    # 256 columns: 448 is in the first block, and -448 in the second
    wide = torch.nn.functional.pad(codes, (0, 2)).view(E4M3)
    raw(wide)[0, -1] = 0xFE
    numbers = fp8_decode(wide, torch.tensor([[120, 130]], dtype=torch.uint8).view(E8M0))
    again, scale = fp8_encode(numbers)
    assert torch.equal(raw(again), raw(wide)) and raw(scale).tolist() == [[120, 130]]


def test_every_fp4_byte_round_trips():
    codes = torch.arange(256, dtype=torch.uint8).view(-1, 1)
    sixes = torch.full((256, 15), 0x77, dtype=torch.uint8)               # 6 in each block
    packed = torch.cat([codes, sixes], dim=1).view(torch.int8)
    scale = torch.arange(20, 20 + 128, dtype=torch.uint8).repeat(2).view(256, 1).view(E8M0)
    numbers = fp4_decode(packed, scale)
    values = set(numbers[:, :2].div(scale.float()).flatten().tolist())
    assert len(values) == 15                                     # 16 codes, two of them zero
    again, again_scale = fp4_encode(numbers)
    assert torch.equal(again, packed) and torch.equal(raw(again_scale), raw(scale))


@pytest.mark.parametrize("encode, decode", [(fp8_encode, fp8_decode), (fp4_encode, fp4_decode)])
@pytest.mark.parametrize("shape", [(1, 32), (64, 64), (128, 256), (130, 320), (257, 96)])
def test_rounded_numbers_stay(encode, decode, shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02
    once = decode(*encode(w))
    assert torch.equal(decode(*encode(once)), once)
    assert torch.equal(numerics.decode(*encode(w)), once)       # finds the format
    assert torch.equal(decode(*encode(once * 2.0**9)), once * 2.0**9)  # scales are powers of two
    assert decode(*encode(w.bfloat16()), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_fp8_error_bound():
    w = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    codes, scale = fp8_encode(w)
    error = (fp8_decode(codes, scale) - w).abs()
    spread = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    # half a step: 3 mantissa bits, or subnormal
    assert (error <= torch.maximum(w.abs() * 2.0**-4, spread * 2.0**-10)).all()
    largest = w.abs().unflatten(0, (2, 128)).unflatten(2, (3, 128)).amax((1, 3)) / scale.float()
    assert (largest > 224).all() and (largest <= 448).all()


def test_fp4_is_the_nearest_number_and_ties_go_to_the_even_code():
    grid = torch.arange(-96, 97) / 16.0                            # steps of 1/16 hold every tie
    w = torch.cat([grid, torch.full((31,), 6.0)]).view(-1, 32)
    w = torch.cat([w, torch.full((w.shape[0], 32), 6.0)], dim=1).view(-1, 2, 32)
    w[:, :, -1] = 6.0                                              # scale 1 in each block
    numbers = fp4_decode(*fp4_encode(w.view(-1, 64))).view(w.shape)
    table = torch.tensor(numerics.FP4_VALUES[:8])
    for x, y in zip(w.flatten().tolist(), numbers.flatten().tolist(), strict=True):
        distance = (table - abs(x)).abs()
        nearest = (distance == distance.min()).nonzero().flatten().tolist()
        code = nearest[0] if len(nearest) == 1 else next(c for c in nearest if c % 2 == 0)
        assert abs(y) == table[code] and math.copysign(1, y) == math.copysign(1, x)


def test_fp4_nibble_order():
    w = torch.zeros(1, 32)
    w[0, :3] = torch.tensor([0.5, 6.0, -1.0])
    packed, scale = fp4_encode(w)
    assert raw(packed)[0, :2].tolist() == [0x71, 0x0A] and scale.float().item() == 1.0


@pytest.mark.parametrize("amax, exponent", [
    (448.0, 0), (448.0 + 2**-15, 1), (448.0 * 2**-3, -3), (1.0, -8), (224.0, -1)])
def test_fp8_scale_is_the_ceiling_of_the_logarithm(amax, exponent):
    assert fp8_encode(torch.tensor([[amax]]))[1].float().item() == 2.0**exponent


def test_zeros_and_the_smallest_numbers():
    for encode, decode in ((fp8_encode, fp8_decode), (fp4_encode, fp4_decode)):
        codes, scale = encode(torch.zeros(2, 32))
        assert not raw(codes).any() and (scale.float() == 1).all()
        tiny = torch.full((1, 32), 2.0**-128)        # below the range of normal float32
        assert torch.equal(decode(*encode(tiny)), tiny)
        assert (decode(*encode(torch.full((1, 32), 3e38))) > 2.5e38).all()


def test_float32_scales():
    codes, scale = fp8_encode(torch.randn(140, 130))
    assert torch.equal(fp8_decode(codes, scale.float()), fp8_decode(codes, scale))
    assert torch.equal(fp8_decode(codes, scale.float() * 3), fp8_decode(codes, scale) * 3)


def test_stripes_change_nothing(monkeypatch):
    w = torch.randn(300, 160)
    whole = fp8_encode(w), fp4_encode(w)
    numbers = fp8_decode(*whole[0]), fp4_decode(*whole[1])
    monkeypatch.setattr(numerics, "STRIPE", 1000)
    for (codes, scale), (codes2, scale2) in zip(whole, (fp8_encode(w), fp4_encode(w)), strict=True):
        assert torch.equal(raw(codes), raw(codes2)) and torch.equal(raw(scale), raw(scale2))
    assert torch.equal(fp8_decode(*whole[0]), numbers[0])
    assert torch.equal(fp4_decode(*whole[1]), numbers[1])


def test_fp4_to_fp8_is_exact_up_to_a_spread_of_14_exponents():
    generator = torch.Generator().manual_seed(0)
    for spread, exact in ((14, True), (15, False)):
        sample = lambda high, *shape: torch.randint(0, high, shape, generator=generator,
                                                    dtype=torch.uint8)
        packed = sample(256, 128, 64).view(torch.int8)
        exponents = sample(spread + 1, 128, 4) + 100
        exponents[0, 0], exponents[1, 0] = 100, 100 + spread
        packed[0, 0], packed[1, 0] = 0x11, 0x77  # 0.5 at the smallest scale, 6 at the largest
        numbers = fp4_decode(packed, exponents.view(E8M0))
        assert torch.equal(fp8_decode(*fp8_encode(numbers)), numbers) == exact


@pytest.mark.parametrize("kind", KINDS)
def test_fake_quant_rounds_to_the_format_and_passes_the_gradient(kind):
    x = torch.randn(3, 5, 160, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = fake_quant(x, kind)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(x.grad, grad)
    assert torch.equal(fake_quant(y.detach(), kind), y) and not torch.equal(y, x)
    assert fake_quant(x.bfloat16(), kind).dtype == torch.bfloat16
    for i in range(3):                               # stacked weights round one by one
        assert torch.equal(fake_quant(x[i], kind), y[i])


def test_fake_quant_of_weights_is_encode_then_decode():
    w = torch.randn(200, 160)
    assert torch.equal(fake_quant(w, "fp8"), fp8_decode(*fp8_encode(w)))
    assert torch.equal(fake_quant(w, "fp4"), fp4_decode(*fp4_encode(w)))


@pytest.mark.parametrize("kind, block", [("fp8_act", 128), ("fp8_kv", 64), ("fp4_act", 32)])
def test_activation_blocks_and_their_least_scale(kind, block):
    x = torch.randn(4, 2 * block)
    bumped = x.clone()
    bumped[:, 0] = 1000.0            # changes the scale of the first block only
    y, z = fake_quant(x, kind), fake_quant(bumped, kind)
    assert torch.equal(y[:, block:], z[:, block:]) and not torch.equal(y[:, 1:block], z[:, 1:block])
    if kind.startswith("fp8"):       # 1e-4 / 448 gives 2^-22: a step of 2^-31
        step = 2.0**-31
        row = torch.tensor([[step, 0.49 * step, 0.51 * step]])
        assert fake_quant(row, kind).tolist() == [[step, 0.0, step]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    w = torch.zeros(130, 64)
    w[129, 63] = bad
    rounds = (lambda w, kind=kind: fake_quant(w, kind) for kind in KINDS)
    for action in (fp8_encode, fp4_encode, *rounds):
        with pytest.raises(MinidsError, match="finite"):
            action(w)


def test_wrong_input_is_refused():
    for action, words in (
        (lambda: fp4_encode(torch.zeros(2, 40)), "multiple of 32"),
        (lambda: fp8_encode(torch.zeros(2, 2, 2)), "matrix"),
        (lambda: fp8_encode(torch.zeros(2, 2, dtype=torch.int64)), "matrix"),
        (lambda: fp8_decode(torch.zeros(200, 8, dtype=E4M3), torch.zeros(1, 1)),
         r"scales of shape \(2, 1\)"),
        (lambda: fp4_decode(torch.zeros(2, 16, dtype=torch.int8),
                            torch.zeros(2, 1, dtype=torch.int32)), "or float32"),
        (lambda: fake_quant(torch.zeros(2), "fp6"), "no number format"),
        (lambda: fake_quant(torch.zeros(2, dtype=torch.int64), "fp8"), "floating-point"),
    ):
        with pytest.raises(MinidsError, match=words):
            action()


@pytest.mark.parametrize("encode, decode", [(fp8_encode, fp8_decode), (fp4_encode, fp4_decode)])
def test_half_precision_is_rounded_once(encode, decode):
    """The numbers of float32, rounded, for every scale, in whole blocks and others."""
    codes, scale = encode(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))
    every = torch.arange(scale.numel()).remainder(255).to(torch.uint8).view(E8M0).view(scale.shape)
    for s in (scale, every, every.float() * 1.1):
        for part in (codes, codes[:200]):
            blocks = s[: -(-len(part) // (256 // len(s)))]
            exact = decode(part, blocks)
            for dtype in (torch.bfloat16, torch.float16):
                assert torch.equal(decode(part, blocks, dtype), exact.to(dtype))
