"""Headers and indices of safetensors files, checked before anything in them is used.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header in
JSON: for each tensor its type, its shape, and where its bytes lie. The index of a sharded
checkpoint says which file holds which tensor. Both may come from a stranger. Names that are paths,
sizes that do not fit, overlaps, gaps and repeated names are refused with one `MinidsError`, and
nothing is allocated because a header promises it. For the tensors that a model has see
`minids.weights.layout`.
"""

import json
import math
import re
from typing import NamedTuple

import torch

from minids.errors import MinidsError

MAX_HEADER, MAX_INDEX = 2**24, 2**25                       # bytes; V4's largest: 0.3 MB, 12 MB
NAME = re.compile(r"\w[\w.\-]{0,199}", re.ASCII)           # of a tensor: also a safe file name
FILE = re.compile(r"\w[\w.\-]{0,99}\.safetensors", re.ASCII)


class DType(NamedTuple):
    """The bits of an element, and PyTorch's type.

    That is None where no file of V4 uses the type: such tensors are listed, not read.
    """

    bits: int
    torch_dtype: torch.dtype | None = None


DTYPES = {      # under safetensors' names
    "F64": DType(64), "F32": DType(32, torch.float32),
    "F16": DType(16, torch.float16), "BF16": DType(16, torch.bfloat16),
    "F8_E4M3": DType(8, torch.float8_e4m3fn), "F8_E5M2": DType(8),
    "F8_E4M3FNUZ": DType(8), "F8_E5M2FNUZ": DType(8), "F8_E8M0": DType(8, torch.float8_e8m0fnu),
    "F6_E2M3": DType(6), "F6_E3M2": DType(6), "F4": DType(4),
    "I64": DType(64, torch.int64), "I32": DType(32, torch.int32), "I16": DType(16),
    "I8": DType(8, torch.int8),
    "U64": DType(64), "U32": DType(32), "U16": DType(16), "U8": DType(8), "BOOL": DType(8),
    "C64": DType(64),
}


class Entry(NamedTuple):
    """One tensor of a file: bytes `start` to `end` (exclusive) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_end(first: bytes, size: int, where) -> int:
    """The byte at which the header ends, from a file's first 8 bytes and the file's size."""
    n = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= n <= size - 8:
        raise MinidsError(f"{where} is not a whole safetensors file (it has {size} bytes, and a "
                          f"header of {n} is promised). Fetch it again.")
    if n > MAX_HEADER:
        raise MinidsError(f"{where} is not a whole safetensors file that can be read here: "
                          f"expected a header of at most {MAX_HEADER} bytes, found {n}")
    return 8 + n


def tensors(head: bytes, size: int, where) -> dict[str, Entry]:
    """{tensor name: entry}, from a file's first bytes (the whole header) and the file's size.

    The tensors fill the file without gap or overlap. Raises `MinidsError` for anything else;
    `where` names the file in it.
    """
    end = header_end(head, size, where)
    try:
        return _entries(_json_object(head[8:end], "header"), end, size)
    except ValueError as error:
        raise MinidsError(f"{where} is not a whole safetensors file ({error}). "
                          f"Fetch it again.") from None


def _entries(header: dict, end: int, size: int) -> dict[str, Entry]:
    """The entries of a header that ends at byte `end` of a file; `ValueError` if one is wrong."""
    header.pop("__metadata__", None)
    entries = {name: _entry(name, fields, end) for name, fields in header.items()}
    position = end
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != position:
            raise ValueError(f"{name} begins at byte {entry.start}, expected {position}: tensors "
                             "must neither overlap nor leave gaps")
        position = entry.end
    if position != size:
        raise ValueError(f"the header describes {position} bytes, the file has {size}")
    return entries


def _entry(name: str, fields, header_end: int) -> Entry:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a tensor's name: "
                         f"expected letters, digits, dots, - and _")
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: the type {str(dtype)[:40]!r} is unknown")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise ValueError(f"{name}: expected a shape of at most 8 whole numbers, "
                         f"found {str(shape)[:80]}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: expected two whole numbers as data_offsets, "
                         f"found {str(offsets)[:80]}")
    start, end = offsets
    if DTYPES[dtype].bits * math.prod(shape) != 8 * (end - start):
        raise ValueError(f"{name}: {dtype} {shape} does not take {end - start} bytes")
    return Entry(dtype, tuple(shape), header_end + start, header_end + end)


def read(path) -> dict[str, Entry]:
    """The `tensors` of a file on disk. Reads the header only."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(8)
            return tensors(first + file.read(header_end(first, size, path) - 8), size, path)
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None


def index(text: bytes, where) -> dict[str, str]:
    """{tensor name: file name}, from the bytes of model.safetensors.index.json.

    No file name leads out of the folder.
    """
    if len(text) > MAX_INDEX:
        raise MinidsError(f"{where}: expected at most {MAX_INDEX} bytes, found {len(text)}")
    try:
        files = _json_object(text, "index").get("weight_map")
    except ValueError as error:
        raise MinidsError(f'{where}: expected a JSON object with a "weight_map" '
                          f"({error})") from None
    if not isinstance(files, dict) or not files:
        raise MinidsError(f'{where}: expected "weight_map" to be {{tensor name: file name}}, '
                          f"found {type(files).__name__}")
    for name, file in files.items():
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise MinidsError(f"{where}: expected names of .safetensors files in this folder, "
                              f"found {str(file)[:80]!r}")
        if not NAME.fullmatch(name):
            raise MinidsError(f"{where}: weight_map: {name[:80]!r} is not a tensor's name: "
                              "expected letters, digits, dots, - and _")
    return files


def runs(entries: dict[str, Entry], gap: int = 0, limit: float = math.inf) -> list[list[str]]:
    """Names in the order of their bytes, grouped: one read brings each group.

    Within a group at most `gap` unwanted bytes lie between neighbours. A group spans at most
    `limit` bytes, unless it is a single tensor.
    """
    groups, start, end = [], 0, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if groups and entry.start - end <= gap and entry.end - start <= limit:
            groups[-1].append(name)
        else:
            groups.append([name])
            start = entry.start
        end = entry.end
    return groups


def _json_object(text: bytes, what: str) -> dict:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {error}"[:200]) from None
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def _whole_numbers(values) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _unique_names(pairs) -> dict:
    """A JSON object as a dict. A repeated name could mean one thing here and another elsewhere."""
    values = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:80]!r} appears twice")
        values[name] = value
    return values
