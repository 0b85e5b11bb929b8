"""What a checkpoint's files say about themselves, checked before anything of it is believed.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, JSON: for each tensor its
type, its shape, and where its bytes lie. The index of a sharded checkpoint says which file holds which tensor. Both may
come from a stranger: names that are paths, sizes that do not fit, overlaps, gaps and names said twice are refused with one
`MinidsError`, and nothing is allocated by what they promise. Which tensors a model has is `minids.weights.checkpoint`'s business.
"""

import json
import math
import re
from typing import NamedTuple

from minids.errors import MinidsError

# safetensors' name of a type -> bits of an element
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
        "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
MAX_HEADER, MAX_INDEX = 2**24, 2**25                       # bytes; V4's largest: 0.3 MB, 12 MB
NAME = re.compile(r"\w[\w.\-]{0,199}", re.ASCII)           # of a tensor: also a safe name for a file
FILE = re.compile(r"\w[\w.\-]{0,99}\.safetensors", re.ASCII)


class Entry(NamedTuple):
    """One tensor of a file: its bytes are `start` to `end` (exclusive), counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def length(first: bytes, size: int, where) -> int:
    """Where the header ends, from a file's first 8 bytes and the file's size."""
    n = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= n <= size - 8:
        raise MinidsError(f"{where} is not a whole safetensors file (it has {size} bytes, a header of {n} is promised). "
                          f"Fetch it again.")
    if n > MAX_HEADER:
        raise MinidsError(f"{where} is not a whole safetensors file that is read here: a header of {n} bytes, expected at "
                          f"most {MAX_HEADER}")
    return 8 + n


def tensors(head: bytes, size: int, where) -> dict[str, Entry]:
    """{tensor name: what the header says}, from a file's first bytes (the whole header) and the file's size.

    The tensors fill the file without gap or overlap. Raises `MinidsError` for anything else; `where` names the file in it.
    """
    end = length(head, size, where)
    bad = lambda why: MinidsError(f"{where} is not a whole safetensors file ({why}). Fetch it again.")
    try:
        said = json.loads(head[8:end].decode("utf-8"), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise bad(f"header: {error}"[:200]) from None
    if not isinstance(said, dict):
        raise bad("header: expected a JSON object")
    said.pop("__metadata__", None)
    found = {}
    for name, entry in said.items():
        if not NAME.fullmatch(name):
            raise bad(f"{name[:80]!r} is not a tensor's name: expected letters, digits, dots, - and _")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise bad(f"{name}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise bad(f"{name}: the type {str(dtype)[:40]!r} is unknown")
        if not _whole_numbers(shape) or len(shape) > 8:
            raise bad(f"{name}: expected a shape of at most 8 whole numbers, found {str(shape)[:80]}")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise bad(f"{name}: expected two whole numbers as data_offsets, found {str(offsets)[:80]}")
        start, stop = offsets
        if BITS[dtype] * math.prod(shape) != 8 * (stop - start):
            raise bad(f"{name}: {dtype} {shape} does not take {stop - start} bytes")
        found[name] = Entry(dtype, tuple(shape), end + start, end + stop)
    at = end
    for name, entry in sorted(found.items(), key=lambda item: item[1][2:]):
        if entry.start != at:
            raise bad(f"{name} begins at byte {entry.start}, expected {at}: tensors must neither overlap nor leave gaps")
        at = entry.end
    if at != size:
        raise bad(f"the header speaks of {at} bytes, the file has {size}")
    return found


def read(path) -> dict[str, Entry]:
    """`tensors` of a file on disk. Reads the header only."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(8)
            return tensors(first + file.read(length(first, size, path) - 8), size, path)
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None


def index(text: bytes, where) -> dict[str, str]:
    """{tensor name: file name}, from the bytes of model.safetensors.index.json. No file name leads out of the folder."""
    if len(text) > MAX_INDEX:
        raise MinidsError(f"{where}: expected at most {MAX_INDEX} bytes, found {len(text)}")
    try:
        files = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise MinidsError(f'{where}: expected a JSON object with a "weight_map", found {found}') from None
    if not isinstance(files, dict) or not files:
        raise MinidsError(f'{where}: expected "weight_map" to be {{tensor name: file name}}, found {type(files).__name__}')
    for name, file in files.items():
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise MinidsError(f"{where}: expected names of .safetensors files in this folder, found {str(file)[:80]!r}")
        if not NAME.fullmatch(name):
            raise MinidsError(f"{where}: weight_map: {name[:80]!r} is not a tensor's name: expected letters, digits, dots, - "
                              f"and _")
    return files


def _whole_numbers(values) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _no_name_twice(pairs) -> dict:
    """A JSON object as a dict; a name said twice could mean one thing here and another elsewhere."""
    d = {}
    for name, value in pairs:
        if name in d:
            raise ValueError(f"{name[:80]!r} is said twice")
        d[name] = value
    return d
