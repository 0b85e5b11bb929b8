"""Products from FP4 and FP8 codes, and decoding: what decoding in torch and a product give."""

import pytest
import torch
import torch.nn.functional as F

from minids import numerics
from minids.errors import MinidsError
from minids.model import kernels, packed
from minids.model.linear import Linear

if kernels.why_off():
    pytest.skip(f"no kernels: {kernels.why_off()}", allow_module_level=True)

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
FORMATS = ["fp4", "fp8"]


def random(seed):
    return torch.Generator().manual_seed(seed)


def matrix(format, o, i, scales=(120, 130), seed=0):
    """Codes and scales; every code occurs in a large matrix, but NaN."""
    bytes = torch.randint(0, 256, (o, i // 2 if format == "fp4" else i), generator=random(seed))
    blocks = (o, i // 32) if format == "fp4" else (-(-o // 128), -(-i // 128))
    scale = torch.randint(*scales, blocks, generator=random(seed + 1)).to(torch.uint8).view(E8M0)
    if format == "fp4":
        return bytes.to(torch.uint8).view(torch.int8), scale
    bytes[bytes % 128 == 127] -= 1
    return bytes.to(torch.uint8).view(E4M3), scale


def close(y, x, codes, scale, dtype=torch.float32):
    """Compare with decoded numbers, to float32's precision of the sum of absolute terms."""
    W = numerics.decode(codes, scale).double()
    x = x.double()
    room = 1e-6 * F.linear(x.abs(), W.abs())
    if dtype == torch.bfloat16:
        room += 2.0**-8 * F.linear(x, W).abs()
    assert y.dtype == dtype
    assert ((y.double() - F.linear(x, W)).abs() <= room).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N", [*range(1, 10), 16, 17, 100])
@pytest.mark.parametrize("format", FORMATS)
def test_products(format, N, dtype):
    """Odd numbers of rows and tokens, blocks at the edge, more than one stripe."""
    shapes = [(1, 32), (37, 96), (131, 320)]
    shapes += [(300, 132), (129, 4)] if format == "fp8" else []
    for o, i in shapes:
        codes, scale = matrix(format, o, i)
        x = torch.randn(N, i, generator=random(N)).to(dtype)
        close(packed.linear(x, codes, scale, dtype), x, codes, scale, dtype)


def test_a_matrix_of_several_stripes(monkeypatch):
    monkeypatch.setattr(packed, "STRIPE", 128 * 64)
    for format in FORMATS:
        codes, scale = matrix(format, 300, 64)
        x = torch.randn(20, 64, generator=random(0))
        close(packed.linear(x, codes, scale, torch.float32), x, codes, scale)
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(packed.decode(codes, scale, dtype),
                               numerics.decode(codes, scale, dtype))


@pytest.mark.parametrize("N", [1, 2])
def test_every_code(N):
    """One number in each row's product: the sum is exact."""
    bytes = torch.arange(256, dtype=torch.uint8).view(-1, 1)
    for place in (0, 1, 6, 15):
        four = torch.zeros(256, 16, dtype=torch.uint8)
        four[:, place] = bytes[:, 0]
        scale = torch.full((256, 1), 125, dtype=torch.uint8).view(E8M0)
        for column in (2 * place, 2 * place + 1):
            x = F.one_hot(torch.tensor([column] * N), 32).float()
            y = packed.linear(x, four.view(torch.int8), scale, torch.float32)
            assert torch.equal(y[0], numerics.fp4_decode(four.view(torch.int8), scale)[:, column])
        eight = torch.zeros(256, 16, dtype=torch.uint8)
        eight[:, place] = bytes[:, 0]
        scale = torch.tensor([[110], [140]], dtype=torch.uint8).view(E8M0)
        x = F.one_hot(torch.tensor([place] * N), 16).float()
        y = packed.linear(x, eight.view(E4M3), scale, torch.float32)
        expected = numerics.fp8_decode(eight.view(E4M3), scale)[:, place]
        assert torch.equal(y[-1].nan_to_num(7), expected.nan_to_num(7))
        assert y[0].isnan().nonzero().flatten().tolist() == [127, 255]      # the row's, no other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_decoding_is_equal_to_the_bit(format, dtype):
    """All codes, with all scales, NaN among them; and odd shapes."""
    bytes = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    if format == "fp4":
        codes = bytes[:, :16 * 16].view(torch.int8)
        scale = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 16).view(E8M0)
    else:
        codes = bytes.repeat(128, 1).view(E4M3)             # 256 rows of blocks
        scale = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 2).view(E8M0)
    for codes, scale in ((codes, scale), matrix(format, 5, 64), matrix(format, 200, 160)):
        ours, theirs = packed.decode(codes, scale, dtype), numerics.decode(codes, scale, dtype)
        assert ours.dtype == dtype and torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(0).view(-1), theirs.nan_to_num(0).view(-1))
        assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan())


@pytest.mark.parametrize("scales", [(0, 3), (60, 64), (230, 240), (255, 256)])
@pytest.mark.parametrize("format", FORMATS)
def test_extreme_scales(format, scales):
    """Subnormal ones, large ones, NaN."""
    codes, scale = matrix(format, 20, 64, scales)
    for N in (1, 3):
        x = torch.randn(N, 64, generator=random(1))
        y = packed.linear(x, codes, scale, torch.float32)
        if scales[0] == 255:
            assert y.isnan().all()
        else:
            W = numerics.decode(codes, scale)
            room = 2e-6 * F.linear(x.abs().double(), W.abs().double()) + 1e-43
            assert ((y.double() - F.linear(x.double(), W.double())).abs() <= room).all()


def test_float32_scales():
    """Of FP8, as Base files may have them; in bfloat16 the matrix itself is rounded first."""
    codes, _ = matrix("fp8", 200, 160)
    scale = torch.rand(2, 2, generator=random(2)) + 0.5
    for N in (1, 5, 20):
        x = torch.randn(N, 160, generator=random(3))
        close(packed.linear(x, codes, scale, torch.float32), x, codes, scale)
        expected = F.linear(x.bfloat16(), numerics.decode(codes, scale, torch.bfloat16))
        assert torch.equal(packed.linear(x.bfloat16(), codes, scale, torch.bfloat16), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_that_are_not_finite(format):
    codes, scale = matrix(format, 40, 64)
    for N in (1, 2):
        x = torch.randn(N, 64, generator=random(4))
        x[0, 3], x[-1, 40] = float("inf"), float("nan")
        y = packed.linear(x, codes, scale, torch.float32)
        expected = F.linear(x, numerics.decode(codes, scale))
        assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("format", FORMATS)
def test_strides_addresses_and_empty_inputs(format):
    codes, scale = matrix(format, 30, 64)
    piece = torch.zeros(codes.numel() + 3, dtype=torch.uint8)
    piece[3:] = codes.view(torch.uint8).flatten()
    odd = piece[3:].view(codes.dtype).view(codes.shape)         # as files have them
    x = torch.randn(64, 6, generator=random(5)).T
    expected = packed.linear(x.contiguous(), codes, scale, torch.float32)
    assert torch.equal(packed.linear(x, odd, scale, torch.float32), expected)
    deep = packed.linear(x.reshape(2, 3, 64), codes, scale, torch.float32)
    assert torch.equal(deep, expected.view(2, 3, 30))
    one = packed.linear(x[:1].expand(3, 64), codes, scale, torch.float32)
    assert torch.equal(one[0], one[2])
    assert packed.linear(x[:0], codes, scale, torch.float32).shape == (0, 30)
    wrong = torch.cat([scale, scale])
    with pytest.raises(MinidsError, match="need scales of shape"):
        packed.linear(x, codes, wrong, torch.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_change_nothing(format):
    codes, scale = matrix(format, 137, 256)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append([packed.linear(torch.randn(N, 256, generator=random(N)), codes, scale,
                                          torch.float32) for N in (1, 7)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_torch_computes_the_rest():
    """Other types, gradients, and everything with the kernels switched off."""
    codes, scale = matrix("fp4", 40, 64)
    linear = Linear(64, 40)
    x = torch.randn(3, 64, generator=random(6))
    linear.store(codes, scale, torch.float32)
    W = numerics.decode(codes, scale)
    with kernels.switched_off("packed"):
        assert not packed.stays_packed("cpu")
        assert torch.equal(linear(x), F.linear(x, W)) and torch.equal(linear.matrix(), W)
    assert packed.stays_packed("cpu") and not packed.stays_packed("cuda")
    torch.testing.assert_close(linear(x), F.linear(x, W))
    x.requires_grad_()
    linear(x).square().sum().backward()
    expected = 2 * F.linear(x, W) @ W
    torch.testing.assert_close(x.grad, expected.detach())
    linear.store(codes, scale, torch.float64)
    assert torch.equal(linear(x.double()), F.linear(x.double(), W.double()))
    linear.store(codes.to("meta"), scale.to("meta"), torch.float32)
    assert linear(torch.empty(2, 64, device="meta")).is_meta


def test_rounded_inputs_and_groups():
    """The product of serving, and a matrix whose groups of rows have inputs of their own."""
    codes, scale = matrix("fp8", 512, 128)
    linear, x = Linear(128, 512), torch.randn(4, 3, 128, generator=random(7))
    linear.store(codes, scale, torch.float32)
    W = numerics.decode(codes, scale)
    for groups, x in ((4, x), (2, x[:2, :1].expand(2, 2, 128)), (8, x.repeat(2, 1, 1))):
        y, expected = linear.grouped(x), torch.bmm(x, W.view(groups, -1, 128).mT)
        assert (y - expected).abs().max() < 1e-5 * expected.std()
    linear.round_input = True
    expected = F.linear(numerics.fake_quant(x, "fp8_act"), W)
    assert (linear(x) - expected).abs().max() < 1e-5 * expected.std()
