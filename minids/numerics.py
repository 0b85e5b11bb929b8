"""FP8 and FP4: encode, decode, pack, and round with straight-through gradients.

Report: section 3.4 (FP4 quantisation-aware training); the rest follows the released files. A number
is a small code times the scale of its block, and every scale is a power of two (E8M0: the byte b is
2^(b-127)):

    FP8 weight   float8_e4m3fn, one scale for 128 x 128 numbers
    FP4 weight   e2m1, two codes in a byte, one scale for 32 columns of a row
    activations  rounded in place while training, along the last axis: see `KINDS`

The scale is 2^ceil(log2(amax / largest code)), so nothing ever saturates; codes round to nearest,
ties to even. For the format of each tensor of a checkpoint see `minids.weights.layout`, for files
`minids.weights.checkpoint`.

`fake_quant` works on any device: it needs no type beyond float32 and int32. Codes and scales in
float8 exist on devices that have the type (`minids.system.devices`).
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from minids.errors import MinidsError
from minids.system.devices import moved

# by code
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
              -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# both numbers of every byte: the low nibble is the even column
FP4_PAIRS = torch.tensor([(FP4_VALUES[byte & 15], FP4_VALUES[byte >> 4]) for byte in range(256)])
MANTISSA = (1 << 23) - 1    # the bits of float32's mantissa
STRIPE = 1 << 24  # numbers that are coded at a time, so that scratch memory stays small

# kind: (rows of a block, columns of a block, largest code, least amax)
KINDS = {
    "fp8": (128, 128, 448.0, 0.0),              # weights
    "fp4": (1, 32, 6.0, 0.0),                   # weights of the routed experts
    "fp8_act": (1, 128, 448.0, 1e-4),           # inputs of FP8 and FP4 linears
    "fp8_kv": (1, 64, 448.0, 1e-4),             # the channels of keys that do not rotate
    "fp4_act": (1, 32, 6.0, 6 * 2.0**-126),     # the indexer's queries and keys
}


def fp8_encode(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a matrix [o, i]: codes float8_e4m3fn [o, i], and their scale, float8_e8m0fnu
    [ceil(o/128), ceil(i/128)].

    A block at the edge may be smaller. Raises `MinidsError` unless `w` is a matrix of finite
    numbers. Encoding decoded numbers gives the same numbers again, sometimes as twice the code with
    half the scale.
    """
    _check_matrix(w)
    rows, columns, _, _ = KINDS["fp8"]
    codes = torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=w.device)
    blocks = _blocks(w.shape, rows, columns)
    scale = torch.empty(blocks, dtype=torch.float8_e8m0fnu, device=w.device)
    for part, stripe in _stripes(w.shape, rows):
        x, s = _divide(w[part], "fp8")
        codes[part], scale[stripe] = x.to(torch.float8_e4m3fn), s.to(torch.float8_e8m0fnu)
    return codes, scale


def fp8_decode(codes: torch.Tensor, scale: torch.Tensor,
               dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers of an FP8 matrix: codes [o, i] times the scale of their 128 x 128 block, in E8M0
    or float32."""
    rows, columns, _, _ = KINDS["fp8"]
    _check_scale(codes, scale, _blocks(codes.shape, rows, columns), torch.float8_e4m3fn)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for part, blocks in _stripes(codes.shape, rows):
        _times(codes[part].to(_exact(scale, dtype)), scale[blocks], rows, columns, out[part])
    return out


def fp4_encode(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a matrix [o, i], i a multiple of 32: packed int8 [o, i/2], and their scale,
    float8_e8m0fnu [o, i/32].

    The low nibble of byte j is column 2j, the high nibble column 2j+1. Raises `MinidsError` as
    `fp8_encode` does.
    """
    _check_matrix(w)
    rows, columns, _, _ = KINDS["fp4"]
    o, i = w.shape
    if i % columns:
        raise MinidsError(f"FP4 needs a multiple of {columns} columns, found a matrix of {o} x {i}")
    packed = torch.empty(o, i // 2, dtype=torch.uint8, device=w.device)
    scale = torch.empty(o, i // columns, dtype=torch.float8_e8m0fnu, device=w.device)
    for part, blocks in _stripes(w.shape, rows):
        x, s = _divide(w[part], "fp4")
        codes = _fp4_codes(x)
        packed[part] = codes[:, 0::2] | codes[:, 1::2] << 4
        scale[blocks] = s.to(torch.float8_e8m0fnu)
    return packed.view(torch.int8), scale


def fp4_decode(packed: torch.Tensor, scale: torch.Tensor,
               dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers [o, i] of an FP4 matrix: packed int8 [o, i/2], scale [o, i/32] in E8M0 or
    float32."""
    rows, columns, _, _ = KINDS["fp4"]
    shape = (packed.shape[0], 2 * packed.shape[-1])
    _check_scale(packed, scale, _blocks(shape, rows, columns), torch.int8)
    pairs = FP4_PAIRS.to(packed.device, _exact(scale, dtype))
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    for part, blocks in _stripes(shape, rows):
        bytes = packed[part].view(torch.uint8).int()
        x = F.embedding(bytes, pairs).flatten(1)                 # o i/2 -> o i/2 2 -> o i
        _times(x, scale[blocks], rows, columns, out[part])
    return out


def decode(codes: torch.Tensor, scale: torch.Tensor,
           dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers of a matrix in FP4, whose codes are int8, or in FP8."""
    decoder = fp4_decode if codes.dtype == torch.int8 else fp8_decode
    return decoder(codes, scale, dtype)


def fake_quant(x: torch.Tensor, kind: str) -> torch.Tensor:
    """`x` rounded to the numbers that a format can hold; the gradient passes straight through.

    `kind` is a key of `KINDS`. Shape and dtype stay. Weights may be stacked in leading dimensions;
    activations are cut into blocks along the last axis. Raises `MinidsError` for an unknown kind
    and for NaN or infinity; on a GPU, which would have to be waited for, a block with one of these
    becomes NaN instead.
    """
    if kind not in KINDS:
        raise MinidsError(f"no number format {kind!r}: expected one of {', '.join(KINDS)}")
    if not x.is_floating_point():
        raise MinidsError(f"only floating-point numbers can be rounded to {kind}, found {x.dtype}")
    return _StraightThrough.apply(x, kind) if x.numel() else x


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: str) -> torch.Tensor:
        rows, columns, largest, _ = KINDS[kind]
        flat = x.unsqueeze(0) if x.dim() < 2 else x
        y, scale = _divide(flat, kind, wait=False)
        if largest == 448.0:
            y = _round_fp8(y)
        else:
            values = moved(torch.tensor(FP4_VALUES), x.device)
            y = F.embedding(_fp4_codes(y).int(), values.unsqueeze(1)).squeeze(-1)
        return (y * _spread(scale, y.shape, rows, columns)).view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def _divide(w: torch.Tensor, kind: str, wait: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """`w` in float32 divided by its blocks' scales, and the scales, powers of two in float32.

    NaN and infinity are an error, or without `wait` on a GPU a scale of NaN.
    """
    rows, columns, largest, least = KINDS[kind]
    w = w.float()
    o, i = w.shape[-2:]
    a = F.pad(w.abs(), (0, -i % columns, 0, -o % rows))                    # ... o i, whole blocks
    # ... o/rows rows i/columns columns
    a = a.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    amax = a.amax((-3, -1))
    finite, asks = amax.isfinite(), wait or w.device.type == "cpu"
    if asks and not finite.all():
        raise MinidsError(f"numbers to be rounded to {kind} must be finite, found NaN or infinity")
    # float32 has 8 bits of exponent and 23 of mantissa: compared so, the ceiling of log2 is exact
    amax = amax.clamp(min=least)
    bits, (code,) = amax.view(torch.int32), struct.unpack("<i", struct.pack("<f", largest))
    exponent = (bits >> 23) - (code >> 23) + ((bits & MANTISSA) > (code & MANTISSA))
    exponent = torch.where(amax == 0, 0, exponent.clamp(-127, 127))   # a block of zeros: scale 1
    scale = _power_of_two(exponent)
    scale = scale if asks else scale.masked_fill(~finite, torch.nan)
    return w / _spread(scale, w.shape, rows, columns), scale


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in float32, exactly, for int32 from -127 to 127."""
    bits = torch.where(exponent == -127, 1 << 22, (exponent + 127) << 23)   # 2^-127 is subnormal
    return bits.to(torch.int32).view(torch.float32)


def _round_fp8(x: torch.Tensor) -> torch.Tensor:
    """The nearest FP8 number, ties to even, of float32 numbers up to 448 in size."""
    exponent = (x.contiguous().view(torch.int32) >> 23 & 255) - 127
    step = _power_of_two(exponent.clamp(min=-6) - 3)        # three bits of mantissa
    return (x / step).round() * step


def _fp4_codes(x: torch.Tensor) -> torch.Tensor:
    """The code (uint8) of the nearest FP4 number; at a tie, the even code."""
    a, codes = x.abs(), torch.signbit(x).to(torch.uint8) << 3
    for middle in (0.25, 1.25, 2.5, 5.0):     # between codes 0|1, 2|3, 4|5, 6|7: the tie goes down
        codes += a > middle
    for middle in (0.75, 1.75, 3.5):          # between codes 1|2, 3|4, 5|6: the tie goes up
        codes += a >= middle
    return codes


def _exact(scale: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type to multiply codes and scales in, so that numbers of type `dtype` are rounded once:
    bfloat16, which takes half the memory, where it holds both exactly; else float32."""
    exact = dtype == torch.bfloat16 and scale.dtype == torch.float8_e8m0fnu
    return torch.bfloat16 if exact else torch.float32


def _times(x: torch.Tensor, scale: torch.Tensor, rows: int, columns: int,
           out: torch.Tensor) -> None:
    """Put into `out` the numbers `x`, o i, times the scales of their blocks. May overwrite `x`."""
    (o, i), scale = x.shape, scale.float().to(x.dtype)
    product = out if out.dtype == x.dtype else x
    if o % rows or i % columns:
        torch.mul(x, _spread(scale, x.shape, rows, columns), out=product)
    else:                                       # whole blocks: scales need not be spread first
        blocks = (o // rows, rows, i // columns, columns)
        torch.mul(x.view(blocks), scale[:, None, :, None], out=product.view(blocks))
    if product is x:
        out.copy_(x)


def _blocks(shape: Sequence[int], rows: int, columns: int) -> tuple[int, int]:
    return math.ceil(shape[0] / rows), math.ceil(shape[1] / columns)


def _spread(scale: torch.Tensor, shape: Sequence[int], rows: int, columns: int) -> torch.Tensor:
    """One scale for each number: ... o/rows i/columns -> ... o i."""
    scale = scale.repeat_interleave(columns, -1)[..., : shape[-1]]
    return scale if rows == 1 else scale.repeat_interleave(rows, -2)[..., : shape[-2], :]


def _stripes(shape: Sequence[int], rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows, and of rows of blocks, that cut a matrix into stripes of about `STRIPE`
    numbers."""
    height = max(STRIPE // max(shape[1], 1) // rows, 1) * rows
    for start in range(0, shape[0], height):
        end = min(start + height, shape[0])
        yield slice(start, end), slice(start // rows, math.ceil(end / rows))


def _check_matrix(w: torch.Tensor) -> None:
    if w.dim() != 2 or not w.is_floating_point() or not w.numel():
        raise MinidsError(f"expected a matrix of floating-point numbers, "
                          f"found shape {tuple(w.shape)} of {w.dtype}")


def _check_scale(codes: torch.Tensor, scale: torch.Tensor, blocks: tuple[int, int],
                 dtype: torch.dtype) -> None:
    if codes.dim() != 2 or codes.dtype != dtype:
        raise MinidsError(f"expected a matrix of {dtype}, "
                          f"found shape {tuple(codes.shape)} of {codes.dtype}")
    if tuple(scale.shape) != blocks or scale.dtype not in (torch.float8_e8m0fnu, torch.float32):
        raise MinidsError(f"codes of shape {tuple(codes.shape)} need scales of shape {blocks} in "
                          f"float8_e8m0fnu or float32, "
                          f"found {tuple(scale.shape)} of {scale.dtype}")
