"""Products with a matrix that is stored as codes and scales, FP4 or FP8, see `minids.numerics`.

On a CPU, one to FEW tokens are multiplied with the codes directly, see `kernels.packed`: decoding
would write and read again four or eight times the bytes of the codes. For more tokens, the matrix
is decoded a stripe of rows at a time, and the stripe is used while it is in the processor's cache.
Elsewhere the whole matrix is decoded for each product.

All of them compute x W^T with W = `numerics.decode(codes, scale)` in float32, up to the order of
summation; a bfloat16 result is rounded once.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minids import numerics
from minids.model import kernels
from minids.model.kernels import packed as kernel

FEW = 16            # tokens, from which on decoding a stripe is faster
STRIPE = 2**21      # numbers that are decoded at a time
# half the scale of each byte in E8M0: the kernels make twice the numbers of FP4
POWERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float() / 2


def read_by_kernels(codes: Tensor, scale: Tensor) -> bool:
    """Whether kernels read these codes and scales: whole, contiguous, on a CPU. `numerics.decode`
    says what is wrong with others."""
    if codes.ndim != 2 or not (codes.is_contiguous() and scale.is_contiguous()):
        return False
    if codes.device.type != "cpu" or scale.device.type != "cpu" or not kernels.on("packed"):
        return False
    o, width = codes.shape
    if codes.dtype == torch.int8:
        return (scale.dtype == torch.float8_e8m0fnu and width % 16 == 0
                and scale.shape == (o, width // 16))
    blocks = math.ceil(o / 128), math.ceil(width / 128)
    return (codes.dtype == torch.float8_e4m3fn and scale.shape == blocks
            and scale.dtype in (torch.float8_e8m0fnu, torch.float32))


def stays_packed(device: torch.device | str) -> bool:
    """Whether a matrix in FP8 should stay as it is stored: where products take codes."""
    return torch.device(device).type == "cpu" and kernels.on("packed")


def decode(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`numerics.decode`, to the bit: the numbers of a matrix, o x i."""
    if not read_by_kernels(codes, scale):
        return numerics.decode(codes, scale, dtype)
    o, i = codes.shape[0], columns(codes)
    out = codes.new_empty(o, i, dtype=dtype)
    if dtype == torch.float32:
        decode_rows(codes, scale, slice(0, o), out)
        return out
    for rows, numbers in stripes(codes, scale):
        out[rows] = numbers
    return out


def linear(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T, for a matrix whose numbers are of type `dtype`. x: ... i -> ... o."""
    if not takes_codes(x, codes, scale, dtype):
        return F.linear(x, decode(codes, scale, dtype))
    rows = x.reshape(-1, x.shape[-1]).float()                                    # N i
    if len(rows) <= FEW and codes.shape[1] % 4 == 0:
        y = multiply(rows, codes, scale).to(x.dtype)                             # N o
    else:
        y = x.new_empty(len(rows), len(codes))
        for part, numbers in stripes(codes, scale):
            y[:, part] = F.linear(rows, numbers)
    return y.view(*x.shape[:-1], len(codes))


def takes_codes(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product need not decode the whole matrix first.

    It must where a gradient passes through it, and where W is rounded to `dtype`: codes times
    scales that are no powers of two, in bfloat16.
    """
    exact = dtype == torch.float32 or (dtype == torch.bfloat16
                                       and scale.dtype == torch.float8_e8m0fnu)
    return (exact and x.dtype == dtype and x.device.type == "cpu" and x.numel() > 0
            and x.shape[-1] == columns(codes) and not (torch.is_grad_enabled() and x.requires_grad)
            and read_by_kernels(codes, scale))


def columns(codes: Tensor) -> int:
    """How many numbers a row has."""
    return 2 * codes.shape[1] if codes.dtype == torch.int8 else codes.shape[1]


def multiply(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """A few tokens' product from codes, N i -> N o, float32."""
    places = 8 if codes.dtype == torch.int8 else 4      # codes of a word
    bytes = codes.view(torch.uint8).numpy()
    N, o = len(x), len(codes)
    if N > 1:
        x = F.pad(x, (0, 0, 0, -N % 4)).view(-1, 4, x.shape[1])                  # N/4 4 i
    else:
        x = x[0]                                                                 # i
    x = x.unflatten(-1, (-1, places)).transpose(-1, -2).contiguous()             # N/4 4 places W
    y = x.new_empty(o) if N == 1 else x.new_empty(4 * len(x), o)
    if places == 8:
        fp4 = kernel.fp4_one if N == 1 else kernel.fp4_four
        fp4(x.numpy(), bytes, scale.view(torch.uint8).numpy(), POWERS.numpy(), y.numpy())
    else:
        fp8 = kernel.fp8_one if N == 1 else kernel.fp8_four
        fp8(x.numpy(), bytes, scale.float().numpy(), y.numpy())
    return y.view(-1, o)[:N]


def stripes(codes: Tensor, scale: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(slice of rows, their numbers in float32), in one buffer that is used again."""
    o, i = codes.shape[0], columns(codes)
    height = max(STRIPE // i // 128, 1) * 128
    buffer = scale.new_empty(min(height, o), i, dtype=torch.float32)
    for start in range(0, o, height):
        rows = slice(start, min(start + height, o))
        numbers = buffer[:rows.stop - start]
        decode_rows(codes, scale, rows, numbers)
        yield rows, numbers


def decode_rows(codes: Tensor, scale: Tensor, rows: slice, out: Tensor) -> None:
    """Decode some rows, from a multiple of 128 on, into `out`, float32."""
    bytes = codes[rows].view(torch.uint8).numpy()
    if codes.dtype == torch.int8:
        scales = scale[rows].view(torch.uint8).numpy()
        kernel.fp4_decoded(bytes, scales, POWERS.numpy(), out.numpy())
    else:
        blocks = slice(rows.start // 128, math.ceil(rows.stop / 128))
        kernel.fp8_decoded(bytes, scale[blocks].float().numpy(), out.numpy())
