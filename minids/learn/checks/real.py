"""Checks of lesson 15: byte ranges of tensors, scales and codes as they are stored, the bytes of a
layer (V4 report, section 3.4)."""

import json
import math
from functools import cache

import torch

from minids.config import Config
from minids.learn.exercise import Check
from minids.numerics import FP4_VALUES
from minids.weights import layout

LESSON = "15_real_weights"


# ---- where a tensor's bytes are ----

def byte_range(head, name):
    """The HTTP header "Range" for one tensor's bytes.

    head: a file's first bytes, with the whole header among them.
    """
    return _range(head, name)


def _range(head, name, before=8, header=True, last=-1, order="little"):
    n = int.from_bytes(head[:8], order)
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    at = before + (n if header else 0)
    return f"bytes={at + start}-{at + end + last}"


def _range_with(**changes):
    return lambda head, name: _range(head, name, **changes)


def _head(sizes, rng):
    """A file's first bytes: a header for float32 tensors of these sizes, and 20 bytes more."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for i, size in enumerate(sizes):
        end = start + 4 * size
        entry = {"dtype": "F32", "shape": [size], "data_offsets": [start, end]}
        header[f"layers.{i}.attn.attn_sink"] = entry
        start = end
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode() + _bytes_of(0, 256, 20, rng)


def _bytes_of(low, high, n, rng):
    """n random bytes from low to high - 1."""
    return bytes(torch.randint(low, high, (n,), generator=rng).tolist())


def _range_cases(rng):
    yield "the first tensor of two", (_head([3, 5], rng), "layers.0.attn.attn_sink")
    yield "the second one", (_head([3, 5], rng), "layers.1.attn.attn_sink")
    sizes = torch.randint(1, 90, (40,), generator=rng).tolist()
    yield "one of forty, after a long header", (_head(sizes, rng), "layers.27.attn.attn_sink")


# ---- E8M0 ----

def e8m0(codes):
    """The scales of bytes, 2^(b - 127); 255 is not a number. codes: any shape, uint8 -> float32."""
    return codes.view(torch.float8_e8m0fnu).float()


def _shifted(codes):
    return (codes.int() << 23).view(torch.float32)


def _subtracted_as_bytes(codes):
    return torch.exp2((codes - 127).float()).masked_fill(codes == 255, math.nan)


def _e8m0_cases(rng):
    yield "the bytes 127, 124 and 130", (torch.tensor([127, 124, 130], dtype=torch.uint8),)
    yield "a matrix of scales", (torch.randint(100, 140, (3, 5), generator=rng, dtype=torch.uint8),)
    yield "the byte 255", (torch.tensor([126, 255], dtype=torch.uint8),)
    yield "the bytes 254, 1 and 0", (torch.tensor([254, 1, 0], dtype=torch.uint8),)


# ---- FP4 ----

def fp4_matrix(data, scales, o, i):
    """The numbers o x i of an FP4 matrix, from its bytes and the bytes of its scales."""
    return _matrix(data, scales, o, i)


def _matrix(data, scales, o, i, low_first=True, apart=False, tile=False, transposed=False,
            values=FP4_VALUES, scaled=True):
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2)
    s = e8m0(torch.frombuffer(bytearray(scales), dtype=torch.uint8))
    s = s.view(i // 32, o).T if transposed else s.view(o, i // 32)
    low, high = packed & 15, packed >> 4
    if apart:
        codes = torch.cat([low, high], 1)
    else:
        codes = torch.stack([low, high] if low_first else [high, low], -1).flatten(1)    # o i
    s = s.repeat(1, 32) if tile else s.repeat_interleave(32, 1)
    return torch.tensor(values)[codes.long()] * (s if scaled else 1.0)


def _matrix_with(**changes):
    return lambda data, scales, o, i: _matrix(data, scales, o, i, **changes)


def _matrix_cases(rng):
    yield "the worked example", (bytes([0x21, 0x7F, 0x90, 0x0A]) + bytes(12), bytes([0x7C]), 1, 32)
    for label, o, i in (("two rows of one block", 2, 32), ("three rows of four blocks", 3, 128)):
        data = _bytes_of(0, 256, o * i // 2, rng)
        yield label, (data, _bytes_of(118, 130, o * i // 32, rng), o, i)


# ---- the bytes of a layer ----

_layout = cache(layout.tensors)
EACH = {"FP8": 1, "FP4": 0.5, "BF16": 2, "F32": 4, "I64": 8}


def layer_bytes(config, i):
    """Bytes that layer `i` takes in the released files, scales included."""
    return _bytes(config, i)


def _bytes(config, i, dot=".", scale=1, each=(), scales=True, fp4_block=(1, 32),
           fp8_block=(128, 128)):
    total = 0
    for name, (format, shape) in _layout(config).items():
        if name.startswith(f"layers.{i}{dot}"):
            total += int((EACH | dict(each))[format] * math.prod(shape))
            if format in ("FP8", "FP4") and scales:
                rows, columns = fp8_block if format == "FP8" else fp4_block
                total += scale * math.ceil(shape[0] / rows) * math.ceil(shape[1] / columns)
    return total


def _bytes_with(**changes):
    return lambda config, i: _bytes(config, i, **changes)


def _bytes_cases(rng):
    yield "nano, layer 0", (Config.nano(), 0)
    yield "Flash, layer 5", (Config.flash(), 5)
    yield "Flash, layer 2, which routes by hash", (Config.flash(), 2)
    yield "Flash, layer 4", (Config.flash(), 4)


CHECKS = [
    Check(
        "real.byte_range", byte_range, _range_cases,
        mistakes={
            "this still has both faults": _range_with(before=0, last=0),
            "the beginning is right now; the end is one byte too far: HTTP counts the last byte "
            "in, data_offsets do not":
                _range_with(last=0),
            "the end is one byte before the next tensor's now; the eight bytes before the header "
            "are still left out":
                _range_with(before=0),
            "data_offsets are counted from the end of the header, not from the beginning of the "
            "file":
                _range_with(before=0, header=False),
            "data_offsets are counted from the end of the header: you added 8, but not the "
            "header's own length":
                _range_with(header=False),
            "the length is read with its bytes the wrong way round: the first one is the smallest "
            "(little-endian)":
                _range_with(order="big"),
        },
        hints=(
            "Draw the file: 8 bytes, the header, the tensors. Where is byte 0 of data_offsets?",
            "A range of ten bytes from byte 100 is bytes=100-109. What does yours ask for?",
            "The data begin at 8 + n. The range goes from 8 + n + start to 8 + n + end - 1.",
        ),
    ),
    Check(
        "real.e8m0", e8m0, _e8m0_cases,
        mistakes={
            "the byte is taken as a number: it is an exponent, 2^(b - 127)":
                lambda codes: codes.float(),
            "the bias is 127, not 128": lambda codes: e8m0(codes) / 2,
            "bytes have no negative numbers, so the difference wraps round: go to float before "
            "you subtract":
                _subtracted_as_bytes,
            "bytes have no negative numbers: go to float before you subtract 127; and the byte "
            "255 is not a number":
                lambda codes: torch.exp2((codes - 127).float()),
            "this is the inverse of the scale: 2^(b - 127), not 2^(127 - b)":
                lambda codes: 1 / e8m0(codes),
            "the byte is read as an E4M3 number: E8M0 has neither sign nor mantissa":
                lambda codes: codes.view(torch.float8_e4m3fn).float(),
            "the byte was moved into the exponent of a float32; that is right for 1 to 254, but 0 "
            "means 2^-127 here and 255 is not a number": _shifted,
            "all is right but the byte 255, which is not a number: torch.nan":
                lambda codes: e8m0(codes).nan_to_num(nan=float("inf")),
        },
        hints=(
            "By hand: 127 gives 1, 128 gives 2, 124 gives 1/8.",
            "torch.exp2(x) is 2^x for floats; bytes have no negative numbers, so leave uint8 "
            "before you subtract.",
            "torch.exp2(codes.float() - 127), then masked_fill(codes == 255, float('nan')).",
        ),
        atol=0.0, rtol=1e-6,
    ),
    Check(
        "real.fp4_matrix", fp4_matrix, _matrix_cases,
        mistakes={
            "neighbours are swapped: the low half of a byte is the first of its two columns":
                _matrix_with(low_first=False),
            "all low halves come first, then all high ones: they alternate":
                _matrix_with(apart=True),
            "the scales are laid out as a b c a b c: 32 columns in a run share one, a a ... b b "
            "...": _matrix_with(tile=True),
            "the scales are read column by column: they are stored row after row, o x i/32":
                _matrix_with(transposed=True),
            "the signs are lost: codes 8 to 15 are the negatives of 0 to 7":
                _matrix_with(values=FP4_VALUES[:8] * 2),
            "the codes are taken as whole numbers; a code is an index into 0, .5, 1, 1.5, 2, 3, "
            "4, 6 and their negatives":
                _matrix_with(values=[float(code) for code in range(16)]),
            "the codes are taken as 4-bit whole numbers with a sign: E2M1 is a small float, see "
            "FP4_VALUES":
                _matrix_with(values=[float(code if code < 8 else code - 16) for code in range(16)]),
            "the scales are not used": _matrix_with(scaled=False),
        },
        hints=(
            "torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2) gives the bytes "
            "as a matrix.",
            "packed & 15 and packed >> 4, stacked in a new last axis and flattened, give the "
            "codes o x i.",
            "torch.tensor(FP4_VALUES)[codes.long()] times e8m0(scales).view(o, i // "
            "32).repeat_interleave(32, 1).",
        ),
        atol=0.0, rtol=1e-6,
    ),
    Check(
        "real.layer_bytes", layer_bytes, _bytes_cases,
        mistakes={
            "the scales are left out: FP4 has one byte for 32 columns of a row, FP8 one for 128 x "
            "128 numbers":
                _bytes_with(scales=False),
            "an FP4 number is counted as a whole byte: two share one":
                _bytes_with(each=(("FP4", 1),)),
            "layer 4 has layers 40 to 42 in it: the names begin alike, so compare with the dot "
            "after the number":
                _bytes_with(dot=""),
            "a scale takes one byte (E8M0), not four": _bytes_with(scale=4),
            "the tables of the hash layers are int64: 8 bytes a number, not 4":
                _bytes_with(each=(("I64", 4),)),
            "the scales of FP4 are counted in blocks of 128 x 128: they stand for 32 columns of a "
            "single row":
                _bytes_with(fp4_block=(128, 128)),
            "the scales of FP8 are counted by 32 columns of a row: they stand for blocks of 128 x "
            "128":
                _bytes_with(fp8_block=(1, 32)),
        },
        hints=(
            "Walk through layout.tensors(config).items() and take the names that begin with "
            "f'layers.{i}.'.",
            "Bytes of a number: FP8 1, FP4 a half, BF16 2, F32 4, I64 8. math.prod(shape) counts "
            "the numbers.",
            "Scales: ceil(o / 128) * ceil(i / 128) bytes for FP8, o * ceil(i / 32) for FP4; none "
            "for the others.",
        ),
    ),
]
