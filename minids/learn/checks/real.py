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


def _start(n, start, end):
    return 8 + n + start


def _last(n, start, end):
    return 8 + n + end - 1


def _range(head, name, first=_start, last=_last, length=lambda head: int.from_bytes(
           head[:8], "little"), text="bytes={}-{}"):
    n = length(head)
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    return text.format(first(n, start, end), last(n, start, end))


def _range_with(**changes):
    return lambda head, name: _range(head, name, **changes)


def _without_eight():
    return {"first": lambda n, start, end: n + start, "last": lambda n, start, end: n + end - 1}


def _offsets_alone(end=1):
    return {"first": lambda n, start, stop: start, "last": lambda n, start, stop: stop - end}


def _header_to_n(head, name):
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:n])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"


def _header_from_0(head, name):
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[:n])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"


def _header_to_the_end(head, name):
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"


def _numbers(head, name):
    return tuple(int(part) for part in byte_range(head, name).removeprefix("bytes=").split("-"))


def _head(sizes, rng, more=20):
    """A file's first bytes: a header for float32 tensors of these sizes, and `more` bytes."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for i, size in enumerate(sizes):
        end = start + 4 * size
        entry = {"dtype": "F32", "shape": [size], "data_offsets": [start, end]}
        header[f"layers.{i}.attn.attn_sink"] = entry
        start = end
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode() + _bytes_of(0, 256, more, rng)


def _bytes_of(low, high, n, rng):
    """n random bytes from low to high - 1."""
    return bytes(torch.randint(low, high, (n,), generator=rng).tolist())


def _range_cases(rng):
    yield "the first tensor of two", (_head([3, 5], rng), "layers.0.attn.attn_sink")
    yield "the second one", (_head([3, 5], rng), "layers.1.attn.attn_sink")
    sizes = torch.randint(1, 90, (40,), generator=rng).tolist()
    yield "one of forty, after a long header", (_head(sizes, rng), "layers.27.attn.attn_sink")
    yield "the header and no byte more", (_head([2, 9, 4], rng, 0), "layers.1.attn.attn_sink")


# ---- E8M0 ----

def e8m0(codes):
    """The scales of bytes, 2^(b - 127); 255 is not a number. codes: any shape, uint8 -> float32."""
    return codes.view(torch.float8_e8m0fnu).float()


def _shifted(codes):
    return (codes.int() << 23).view(torch.float32)


def _powers(codes):
    """2^(b - 127) for every byte, 255 too."""
    return torch.exp2(codes.double() - 127).float()


def _subtracted_as_bytes(codes):
    return torch.exp2((codes - 127).float()).masked_fill(codes == 255, math.nan)


def _for_255(value):
    return lambda codes: _powers(codes).masked_fill(codes == 255, value)


def _of_e(codes):
    return (codes.float() - 127).exp().masked_fill(codes == 255, math.nan)


def _e8m0_cases(rng):
    yield "the bytes 127, 124 and 130", (torch.tensor([127, 124, 130], dtype=torch.uint8),)
    yield "a matrix of scales", (torch.randint(100, 140, (3, 5), generator=rng, dtype=torch.uint8),)
    yield "the byte 255", (torch.tensor([126, 255], dtype=torch.uint8),)
    yield "the bytes 254, 1 and 0", (torch.tensor([254, 1, 0], dtype=torch.uint8),)


# ---- FP4 ----

def fp4_matrix(data, scales, o, i):
    """The numbers o x i of an FP4 matrix, from its bytes and the bytes of its scales."""
    return _matrix(data, scales, o, i)


def _alternate(low, high):
    return torch.stack([low, high], -1).flatten(1)                              # o i


def _high_first(low, high):
    return _alternate(high, low)


def _apart(low, high):
    return torch.cat([low, high], 1)


def _each_32(s):
    return s.repeat_interleave(32, 1)


def _tiled(s):
    return s.repeat(1, 32)


def _rows(bytes_, rows, columns):
    return bytes_.view(rows, columns)


def _columns(bytes_, rows, columns):
    return bytes_.view(columns, rows).T


def _matrix(data, scales, o, i, order=_alternate, spread=_each_32, laid=_rows, packed_as=_rows,
            values=FP4_VALUES, power=e8m0, index=torch.Tensor.long):
    """`fp4_matrix`; the arguments after `i` make mistakes."""
    packed = packed_as(torch.frombuffer(bytearray(data), dtype=torch.uint8), o, i // 2)
    s = laid(power(torch.frombuffer(bytearray(scales), dtype=torch.uint8)), o, i // 32)
    codes = order(packed & 15, packed >> 4)
    return torch.tensor(values)[index(codes)] * spread(s)


def _matrix_with(**changes):
    return lambda data, scales, o, i: _matrix(data, scales, o, i, **changes)


def _one_code(data, scales, o, i):
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2) & 15
    s = e8m0(torch.frombuffer(bytearray(scales), dtype=torch.uint8)).view(o, i // 32)
    return torch.tensor(FP4_VALUES)[codes.long()] * s.repeat_interleave(16, 1)


def _tuple_as_table(data, scales, o, i):
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2)
    return FP4_VALUES[_alternate(packed & 15, packed >> 4)]


def _matrix_cases(rng):
    yield "the worked example", (bytes([0x21, 0x7F, 0x90, 0x0A]) + bytes(12), bytes([0x7C]), 1, 32)
    for label, o, i in (("two rows of one block", 2, 32), ("three rows of four blocks", 3, 128)):
        data = _bytes_of(0, 256, o * i // 2, rng)
        yield label, (data, _bytes_of(118, 137, o * i // 32, rng), o, i)


# ---- the bytes of a layer ----

_layout = cache(layout.tensors)
EACH = {"FP8": 1, "FP4": 0.5, "BF16": 2, "F32": 4, "I64": 8}


def layer_bytes(config, i):
    """Bytes that layer `i` takes in the released files, scales included."""
    return _bytes(config, i)


def _blocks(rows, columns, round=math.ceil):
    """The number of scales of a matrix, one for a block of rows x columns."""
    return lambda shape: round(shape[0] / rows) * round(shape[1] / columns)


def _all_numbers(size, round):
    return lambda shape: round(math.prod(shape) / size)


def _none(shape):
    return 0


def _named(name, i):
    return name.startswith(f"layers.{i}.")


@cache
def _tensors(config, i, own):
    """(format, shape) of the tensors whose names are own(name, i)."""
    return [tensor for name, tensor in _layout(config).items() if own(name, i)]


def _bytes(config, i, own=_named, each=(), fp8=_blocks(128, 128), fp4=_blocks(1, 32), scale=1):
    """`layer_bytes`; the arguments after `i` make mistakes."""
    sizes, scales = EACH | dict(each), {"FP8": fp8, "FP4": fp4}
    total = 0
    for format, shape in _tensors(config, i, own):
        total += int(sizes[format] * math.prod(shape))
        total += scale * scales.get(format, _none)(shape)
    return total


def _with_bf16_scales(config, i):
    return layer_bytes(config, i) + sum(
        _blocks(128, 128)(shape if len(shape) > 1 else (1, *shape))
        for name, (format, shape) in _layout(config).items()
        if format == "BF16" and _named(name, i))


def _all_of_two_bytes():
    return {"each": dict.fromkeys(EACH, 2)}


def _bytes_with(**changes):
    return lambda config, i: _bytes(config, i, **changes)


def _bytes_cases(rng):
    yield "nano, layer 0", (Config.nano(), 0)
    yield "Flash, layer 5", (Config.flash(), 5)
    yield "Flash, layer 2, which routes by hash", (Config.flash(), 2)
    yield "Flash, layer 4", (Config.flash(), 4)
    yield "mini, layer 1, whose matrices end within a block", (Config.mini(), 1)


CHECKS = [
    Check(
        "real.byte_range", byte_range, _range_cases,
        mistakes={
            "both faults are still there": _range_with(
                first=lambda n, start, end: n + start, last=lambda n, start, end: n + end),
            "your beginning is right now, but the end is one byte too far; HTTP counts the last "
            "byte in, data_offsets do not, so it should be one less":
                _range_with(last=lambda n, start, end: 8 + n + end),
            "your end is one byte before the next tensor's now, but the eight bytes before the "
            "header are left out; they should be added to both":
                _range_with(**_without_eight()),
            "you add the eight bytes to the beginning only; they should be added to both":
                _range_with(last=lambda n, start, end: n + end - 1),
            "you add the eight bytes to the end only; they should be added to both":
                _range_with(first=lambda n, start, end: n + start),
            "you subtract 1 at both ends; only the last byte should be one less":
                _range_with(first=lambda n, start, end: 8 + n + start - 1),
            "you add 1 at the end; HTTP counts the last byte in, data_offsets do not, so 1 should "
            "be subtracted": _range_with(last=lambda n, start, end: 8 + n + end + 1),
            "you count from the beginning of the file; data_offsets count from the end of the "
            "header, so 8 and its length should be added":
                _range_with(**_offsets_alone()),
            "you count from the beginning of the file, and the end is one byte too far; 8 and the "
            "header's length should be added, and 1 subtracted at the end":
                _range_with(**_offsets_alone(end=0)),
            "you add 8 alone; data_offsets count from the end of the header, so its own length "
            "should be added too":
                _range_with(first=lambda n, start, end: 8 + start,
                            last=lambda n, start, end: 8 + end - 1),
            "you give the number of bytes as the end; it should be the place of the last byte":
                _range_with(last=lambda n, start, end: end - start),
            "you read the length with its bytes the wrong way round; the first byte should be the "
            "smallest (little-endian)":
                _range_with(length=lambda head: int.from_bytes(head[:8], "big")),
            "you read the length from one byte; it has eight, the first the smallest":
                _range_with(length=lambda head: head[0]),
            "you read the header up to byte n; it begins after the first eight bytes, so it should "
            "be head[8:8 + n]": _header_to_n,
            "you read JSON up to the end of `head`; it should be the n bytes after the first eight":
                _header_to_the_end,
            "you leave out bytes= in front; it should be bytes=first-last":
                _range_with(text="{}-{}"),
            "you write Range: in front, the header's name; it should be its value, "
            "bytes=first-last": _range_with(text="Range: bytes={}-{}"),
            "you put spaces in; it should be bytes=first-last": _range_with(text="bytes={} - {}"),
            "you return two numbers; it should be the text bytes=first-last": _numbers,
            "your beginning is one byte too far; both kinds of counting include the first byte, "
            "so it should be 8 + n + start":
                _range_with(first=lambda n, start, end: 8 + n + start + 1),
            "you add the eight bytes twice; they should be added once":
                _range_with(first=lambda n, start, end: 16 + n + start,
                            last=lambda n, start, end: 16 + n + end - 1),
            "you subtract the eight bytes; they come before the header, so they should be added":
                _range_with(first=lambda n, start, end: n - 8 + start,
                            last=lambda n, start, end: n - 8 + end - 1),
            "you add four bytes before the header; its length takes eight":
                _range_with(first=lambda n, start, end: 4 + n + start,
                            last=lambda n, start, end: 4 + n + end - 1),
            "you give the number of bytes less 1 as the end; it should be the place of the last "
            "byte": _range_with(last=lambda n, start, end: end - start - 1),
            "you add the number of bytes to the header's end instead of the tensor's beginning; "
            "it should be 8 + n + end - 1":
                _range_with(last=lambda n, start, end: 8 + n + end - start - 1),
            "you move the end only; data_offsets count from the end of the header, so the "
            "beginning should be moved as well": _range_with(first=lambda n, start, end: start),
            "you move the beginning only; data_offsets count from the end of the header, so the "
            "end should be moved as well": _range_with(last=lambda n, start, end: end - 1),
            "you read the header from byte 0, and eight bytes with its length come first; it "
            "should be head[8:8 + n]": _header_from_0,
            "you write a colon after bytes; it should be bytes=first-last":
                _range_with(text="bytes:{}-{}"),
            "you write a space after bytes; it should be bytes=first-last":
                _range_with(text="bytes {}-{}"),
            "you put a colon between the two numbers; it should be bytes=first-last":
                _range_with(text="bytes={}:{}"),
            "you put a comma between the two numbers; it should be bytes=first-last":
                _range_with(text="bytes={},{}"),
            "you write the total size after the range, as an answer has it; it should be "
            "bytes=first-last": _range_with(text="bytes={}-{}/*"),
            "you return the header in a dict; it should be its value alone, the text "
            "bytes=first-last": lambda head, name: {"Range": byte_range(head, name)},
            "you return bytes; it should be a text, a str":
                lambda head, name: byte_range(head, name).encode(),
        },
        hints=(
            "Draw the file: 8 bytes, the header, the tensors. Where is byte 0 of data_offsets?",
            "A range of ten bytes from byte 100 is bytes=100-109. What does yours ask for?",
            "The data begin at 8 + n. The range goes from 8 + n + start to 8 + n + end - 1.",
        ),
        gradient=False,
    ),
    Check(
        "real.e8m0", e8m0, _e8m0_cases,
        mistakes={
            "you take the byte as a number; it is an exponent and should be 2^(b - 127)":
                lambda codes: codes.float(),
            "you return b - 127, the exponent; it should be 2 to that power":
                lambda codes: codes.float() - 127,
            "you take 128 for the bias; it should be 127": lambda codes: e8m0(codes) / 2,
            "you take 128 for the bias, and 255 for a scale; it should be 127, and 255 is not a "
            "number": lambda codes: _powers(codes) / 2,
            "you take 126 for the bias; it should be 127": lambda codes: e8m0(codes) * 2,
            "you leave the bias out; it should be 2^(b - 127)":
                lambda codes: torch.exp2(codes.float()),
            "you subtract from bytes, which have no negative numbers, so the difference wraps "
            "round; they should become floats first":
                _subtracted_as_bytes,
            "you subtract from bytes, which have no negative numbers; they should become floats "
            "before you subtract 127, and the byte 255 should be nan":
                lambda codes: torch.exp2((codes - 127).float()),
            "you compute the inverse of the scale, 2^(127 - b); it should be 2^(b - 127)":
                lambda codes: 1 / e8m0(codes),
            "you compute the inverse of the scale, 2^(127 - b), and 255 is not nan; it should be "
            "2^(b - 127), and nan for 255": lambda codes: 1 / _powers(codes),
            "you take powers of e; it should be powers of 2": _of_e,
            "you take powers of e, and 255 is not nan; it should be powers of 2, and nan for 255":
                lambda codes: (codes.float() - 127).exp(),
            "you square b - 127; it should be 2 to the power b - 127":
                lambda codes: (codes.float() - 127) ** 2,
            "you read the byte as an E4M3 number; E8M0 has neither sign nor mantissa, so it should "
            "be 2^(b - 127)":
                lambda codes: codes.view(torch.float8_e4m3fn).float(),
            "you move the byte into the exponent of a float32, which is right for 1 to 254; 0 "
            "should be 2^-127, and 255 should be nan": _shifted,
            "all is right but the byte 255, which you turn into 2^128 or infinity; it should be "
            "nan": _powers,
            "all is right but the byte 255, which you turn into 0; it should be nan":
                _for_255(0.0),
            "all is right but the byte 255, which you turn into 1; it should be nan":
                _for_255(1.0),
            "all is right but the byte 0, which you turn into 0; it should be 2^-127":
                lambda codes: e8m0(codes).masked_fill(codes == 0, 0.0),
            "your scales are float64; they should be float32": lambda codes: e8m0(codes).double(),
            "your scales are bfloat16; they should be float32":
                lambda codes: e8m0(codes).bfloat16(),
            "you turn 0 into nan as well; only 255 should be":
                lambda codes: e8m0(codes).masked_fill(codes == 0, math.nan),
            "you turn 254 into nan as well; only 255 should be":
                lambda codes: e8m0(codes).masked_fill(codes == 254, math.nan),
            "you read the byte with a sign, from -128 to 127; it should be from 0 to 255, less "
            "127": lambda codes: torch.exp2(codes.to(torch.int8).float()),
            "you read the byte with a sign before you subtract 127, so 128 and above become "
            "negative; it should be from 0 to 255":
                lambda codes: torch.exp2(codes.to(torch.int8).float() - 127).masked_fill(
                    codes == 255, math.nan),
            "you take powers of the whole number 2, which have no fractions; it should be 2.0 "
            "** (b - 127), a float": lambda codes: 2 ** (codes.int() - 127),
            "you multiply b - 127 by 2; it should be 2 to that power":
                lambda codes: (codes.float() - 127) * 2,
            "you divide the byte by 127; it should be subtracted, 2^(b - 127)":
                lambda codes: torch.exp2(codes.float() / 127),
            "you return a list; it should be a tensor of the shape of `codes`":
                lambda codes: e8m0(codes).tolist(),
            "you compute in float16, which ends at 2^-24; it should be float32":
                lambda codes: torch.exp2(codes.half() - 127).float().masked_fill(
                    codes == 255, math.nan),
        },
        hints=(
            "By hand: 127 gives 1, 128 gives 2, 124 gives 1/8.",
            "torch.exp2(x) is 2^x for floats; bytes have no negative numbers, so leave uint8 "
            "before you subtract.",
            "torch.exp2(codes.float() - 127), then masked_fill(codes == 255, float('nan')).",
        ),
        atol=0.0, rtol=1e-6, gradient=False,
    ),
    Check(
        "real.fp4_matrix", fp4_matrix, _matrix_cases,
        mistakes={
            "you swap neighbours; the low half of a byte should be the first of its two columns":
                _matrix_with(order=_high_first),
            "you put all low halves first, then all high ones; they should alternate":
                _matrix_with(order=_apart),
            "you put all low halves first, and lay the scales out as a b c a b c; the halves "
            "should alternate, and the scales be a a ... b b ...":
                _matrix_with(order=_apart, spread=_tiled),
            "you put all high halves first, then all low ones; they should alternate, low half "
            "first": _matrix_with(order=lambda low, high: torch.cat([high, low], 1)),
            "you lay the scales out as a b c a b c; 32 columns in a run should share one, a a ... "
            "b b ...": _matrix_with(spread=_tiled),
            "you swap neighbours, and lay the scales out as a b c a b c; the low half should be "
            "first, and the scales a a ... b b ...":
                _matrix_with(order=_high_first, spread=_tiled),
            "you read the scales column by column; they are stored row after row and should be o x "
            "i/32":
                _matrix_with(laid=_columns),
            "you read the bytes column by column; they are stored row after row and should be o x "
            "i/2": _matrix_with(packed_as=_columns),
            "you lose the signs; codes 8 to 15 should be the negatives of 0 to 7":
                _matrix_with(values=FP4_VALUES[:8] * 2),
            "you take the codes as whole numbers; a code should be an index into 0, .5, 1, 1.5, 2, "
            "3, 4, 6 and their negatives":
                _matrix_with(values=[float(code) for code in range(16)]),
            "you take the codes as 4-bit whole numbers with a sign; E2M1 is a small float, so they "
            "should be looked up in FP4_VALUES":
                _matrix_with(values=[float(code if code < 8 else code - 16) for code in range(16)]),
            "you do not use the scales; the numbers should be multiplied with them":
                _matrix_with(power=torch.ones_like),
            "you multiply with the scale's byte; it should be 2^(byte - 127), as e8m0 gives it":
                _matrix_with(power=torch.Tensor.float),
            "you divide by the scale; the numbers should be multiplied with it":
                _matrix_with(power=lambda s: 1 / e8m0(s)),
            "you take 128 for the scale's bias; it should be 127":
                _matrix_with(power=lambda s: e8m0(s) / 2),
            "you index with a tensor of bytes, which torch takes for a mask; the codes should be "
            "int64 first": _matrix_with(index=lambda codes: codes),
            "you index the tuple FP4_VALUES with a tensor; it should be a tensor of its sixteen "
            "numbers": _tuple_as_table,
            "you return all numbers in one row; it should be o x i":
                lambda *args: fp4_matrix(*args).flatten(),
            "you subtract 127 from the scales' bytes, which have no negative numbers and wrap "
            "round; they should become floats first, as in e8m0":
                _matrix_with(power=lambda s: torch.exp2((s - 127).float())),
            "you repeat the scales without an axis, which flattens all rows into one; it should "
            "be along axis 1": _matrix_with(spread=lambda s: s.repeat_interleave(32)),
            "you repeat the scales along axis 0; it should be axis 1, the columns":
                _matrix_with(spread=lambda s: s.repeat_interleave(32, 0)),
            "you repeat each scale 16 times; a scale serves 32 numbers":
                _matrix_with(spread=lambda s: s.repeat_interleave(16, 1)),
            "you do not repeat the scales; each should serve 32 columns":
                _matrix_with(spread=lambda s: s),
            "you take 126 for the scale's bias; it should be 127":
                _matrix_with(power=lambda s: e8m0(s) * 2),
            "you leave the bias out of the scale; it should be 2^(byte - 127)":
                _matrix_with(power=lambda s: torch.exp2(s.float())),
            "you multiply with byte - 127; the scale should be 2 to that power":
                _matrix_with(power=lambda s: s.float() - 127),
            "you read the scale's byte as an E4M3 number; it should be 2^(byte - 127)":
                _matrix_with(power=lambda s: s.view(torch.float8_e4m3fn).float()),
            "your numbers are float64; they should be float32":
                lambda *args: fp4_matrix(*args).double(),
            "you return the matrix transposed; it should be o x i, one row after the other":
                lambda *args: fp4_matrix(*args).T,
            "you take one code from a byte, its low half; it holds two": _one_code,
            "you view the bytes as o x i; a byte holds two numbers, so it should be o x i/2":
                lambda data, scales, o, i: torch.frombuffer(
                    bytearray(data), dtype=torch.uint8).view(o, i),
        },
        hints=(
            "torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2) gives the bytes "
            "as a matrix.",
            "packed & 15 and packed >> 4, stacked in a new last axis and flattened, give the "
            "codes o x i.",
            "torch.tensor(FP4_VALUES)[codes.long()] times e8m0(scales).view(o, i // "
            "32).repeat_interleave(32, 1).",
        ),
        atol=0.0, rtol=1e-6, gradient=False,
    ),
    Check(
        "real.layer_bytes", layer_bytes, _bytes_cases,
        mistakes={
            "you leave the scales out; FP4 should have one byte for 32 columns of a row, FP8 one "
            "for 128 x 128 numbers":
                _bytes_with(fp8=_none, fp4=_none),
            "you count the scales of FP8 only; FP4 should have one byte for 32 columns of a row":
                _bytes_with(fp4=_none),
            "you count the scales of FP4 only; FP8 should have one byte for 128 x 128 numbers":
                _bytes_with(fp8=_none),
            "you drop incomplete blocks of FP8; one at an edge should have a scale too, so round "
            "up, rows and columns each":
                _bytes_with(fp8=_blocks(128, 128, math.floor)),
            "you divide the number of FP8 numbers by 128 x 128 and round down; rows and columns "
            "should be rounded up each, for blocks do not cross edges":
                _bytes_with(fp8=_all_numbers(128 * 128, math.floor)),
            "you divide the number of FP8 numbers by 128 x 128 and round up; rows and columns "
            "should be rounded up each, for blocks do not cross edges":
                _bytes_with(fp8=_all_numbers(128 * 128, math.ceil)),
            "you count one scale for 128 numbers of FP8; it should be one for 128 x 128":
                _bytes_with(fp8=_blocks(1, 128)),
            "you count the scales of FP4 in blocks of 128 x 128; they should be one for 32 columns "
            "of a single row":
                _bytes_with(fp4=_blocks(128, 128)),
            "you count the scales of FP4 in blocks of 32 x 32; they should be one for 32 columns "
            "of a single row":
                _bytes_with(fp4=_blocks(32, 32)),
            "you count the scales of FP8 by 32 columns of a row; they should be one for blocks of "
            "128 x 128":
                _bytes_with(fp8=_blocks(1, 32)),
            "you exchange the scales of FP8 and FP4; it should be blocks of 128 x 128 for FP8, 32 "
            "columns of a row for FP4": _bytes_with(fp8=_blocks(1, 32), fp4=_blocks(128, 128)),
            "you count one FP4 scale for 16 columns of a row; it should be one for 32":
                _bytes_with(fp4=_blocks(1, 16)),
            "you count an FP4 number as a whole byte; two should share one":
                _bytes_with(each=(("FP4", 1),)),
            "you count an FP8 number as two bytes; it should be one":
                _bytes_with(each=(("FP8", 2),)),
            "you count a float32 number as two bytes; it should be four":
                _bytes_with(each=(("F32", 2),)),
            "you count a BF16 number as four bytes; it should be two":
                _bytes_with(each=(("BF16", 4),)),
            "you count int64 as 4 bytes a number; the tables of the hash layers should be 8":
                _bytes_with(each=(("I64", 4),)),
            "you count numbers; it should be bytes, by format, and their scales":
                _bytes_with(each=dict.fromkeys(EACH, 1), fp8=_none, fp4=_none),
            "you count bits; it should be bytes": lambda config, i: 8 * layer_bytes(config, i),
            "you compare names without the dot after the number, so layer 4 gets layers 40 to 42 "
            "too; it should be compared with the dot":
                _bytes_with(own=lambda name, i: name.startswith(f"layers.{i}")),
            "you look for the number anywhere in the name, so you count experts of that number "
            "too; names should begin with layers, the number and a dot":
                _bytes_with(own=lambda name, i: f".{i}." in name),
            "you count the whole model; it should be the one layer":
                _bytes_with(own=lambda name, i: True),
            "you count scales of four bytes; E8M0 should have one byte": _bytes_with(scale=4),
            "you count scales of two bytes; E8M0 should have one byte": _bytes_with(scale=2),
            "you count one scale for each matrix; it should be one for 128 x 128 numbers of "
            "FP8, and for 32 columns of a row of FP4":
                _bytes_with(fp8=lambda shape: 1, fp4=lambda shape: 1),
            "you count one FP8 scale for 128 rows of a column; it should be one for 128 x 128":
                _bytes_with(fp8=_blocks(128, 1)),
            "you count FP8 scales in blocks of 64 x 64; they should be of 128 x 128":
                _bytes_with(fp8=_blocks(64, 64)),
            "you round the number of FP8 blocks to the nearest; an incomplete block has a scale "
            "too, so round up": _bytes_with(fp8=_blocks(128, 128, round)),
            "you count two bytes for every number; it should be 1 for FP8, a half for FP4, 2 "
            "for BF16, 4 for F32, 8 for I64": _bytes_with(**_all_of_two_bytes()),
            "you count two bytes for every number, and no scales; the formats have different "
            "sizes, and FP8 and FP4 have scales":
                _bytes_with(**_all_of_two_bytes(), fp8=_none, fp4=_none),
            "you leave out tensors of I64; the tables of the hash layers should be 8 bytes a "
            "number": _bytes_with(each=(("I64", 0),)),
            "you leave out tensors of F32; they should be 4 bytes a number":
                _bytes_with(each=(("F32", 0),)),
            "you leave out tensors of BF16; they should be 2 bytes a number":
                _bytes_with(each=(("BF16", 0),)),
            "you leave out tensors of F32 and I64; they should be 4 and 8 bytes a number":
                _bytes_with(each=(("F32", 0), ("I64", 0))),
            "you count int64 as one byte a number; the tables of the hash layers should be 8":
                _bytes_with(each=(("I64", 1),)),
            "you count int64 as two bytes a number; the tables of the hash layers should be 8":
                _bytes_with(each=(("I64", 2),)),
            "you count int64 and float32 as two bytes a number; they should be 8 and 4":
                _bytes_with(each=(("I64", 2), ("F32", 2))),
            "you compare the number in the second part of the name alone, so the MTP block "
            "counts too; names should begin with layers":
                _bytes_with(own=lambda name, i: name.split(".")[1:2] == [str(i)]),
            "you count from 1, so it is the next layer; layers are numbered from 0, as in the "
            "names": _bytes_with(own=lambda name, i: _named(name, i + 1)),
            "you count the feed-forward part alone; attention, norms and mHC belong to the "
            "layer too": _bytes_with(own=lambda name, i: name.startswith(f"layers.{i}.ffn")),
            "you count the attention alone; experts, norms and mHC belong to the layer too":
                _bytes_with(own=lambda name, i: name.startswith(f"layers.{i}.attn")),
            "you compare names without the dot after the number, and leave the scales out; "
            "layer 4 gets layers 40 to 42 then, and FP8 and FP4 have scales":
                _bytes_with(own=lambda name, i: name.startswith(f"layers.{i}"), fp8=_none,
                            fp4=_none),
            "you count an FP4 number as a whole byte, and leave the scales out; two should "
            "share one, and FP8 and FP4 have scales":
                _bytes_with(each=(("FP4", 1),), fp8=_none, fp4=_none),
            "you add scales to BF16 too; only FP8 and FP4 have them": _with_bf16_scales,
        },
        hints=(
            "Walk through layout.tensors(config).items() and take the names that begin with "
            "f'layers.{i}.'.",
            "Bytes of a number: FP8 1, FP4 a half, BF16 2, F32 4, I64 8. math.prod(shape) counts "
            "the numbers.",
            "Scales: ceil(o / 128) * ceil(i / 128) bytes for FP8, o * ceil(i / 32) for FP4; none "
            "for the others.",
        ),
        gradient=False,
    ),
]
