"""Checkpoints in V4's safetensors layout: save, load, and read single tensors without reading the rest.

The layout is that of the released files (what each tensor is stored as: `minids.layout.tensors`). A checkpoint is a folder:

    config.json                        the sizes, in either spelling (`minids.Config`)
    model.safetensors                  all tensors, or
    model-00001-of-000NN.safetensors   the released shards with model.safetensors.index.json, which says what is where
    tokenizer.json                     the tokenizer, if one was given

Folders that `transformers` wrote with `save_pretrained` are read too. Only safetensors are read: nothing is unpickled.
Codes and scales are `minids.numerics`' business, fetching from afar is `minids.weights.remote`'s.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minids import numerics
from minids.config import Config
from minids.errors import MinidsError
from minids.model import Model
from minids.system.files import read_small
from minids.weights import header, layout
from minids.weights.folder import _recover

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS, INTEGERS, SCALES = ("F32", "BF16", "F16"), ("I64", "I32"), ("F8_E8M0", "F32")  # what a reader accepts
CODES = {"F8_E4M3": "FP8", "I8": "FP4"}  # stored type -> number format, with a scale beside
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# ---- reading ----

class Checkpoint:
    """A checkpoint folder, read tensor by tensor. Opening reads config.json and the index, no tensor.

    `config` is the configuration. Where the files hold no MTP tensor at all (`transformers` drops them), it is the
    configuration without MTP blocks: `config.n_mtp_layers == 0`. Shards that are missing matter only when something is
    read from them, so a few downloaded shards are enough. Use it in a `with` block, or call `close()`.
    """

    def __init__(self, path):
        self.path = Path(path)
        _recover(self.path)
        if not self.path.is_dir():
            raise MinidsError(f"no checkpoint at {self.path}: expected a folder with config.json and {SINGLE} or {INDEX}")
        self.config = Config.from_json(self.path)
        self._open_files = {}   # file -> (its header, what reads it)
        self.config, self._where = placed(self._index(), self.config, self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._open_files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """The names of all tensors, those of the scales included, as V4 spells them."""
        return list(self._where)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """What is stored under this name: (dtype as safetensors says, shape). Reads the file's header only."""
        _, entry = self.entry(name)
        return entry.dtype, entry.shape

    def entry(self, name: str) -> tuple[Path, header.Entry]:
        """Where a tensor is: the file, and what the file's header says of it. Reads the header only."""
        file, stored = self._find(name)
        held = self._file(file)[0]
        if stored not in held:
            raise MinidsError(f"{self.path}: {INDEX} and {file} disagree: {stored} is only in the index. Fetch both again.")
        return self.path / file, held[stored]

    def raw(self, name: str) -> torch.Tensor:
        """The tensor as it is stored: FP8 codes, packed FP4 bytes, scales."""
        file, stored = self._find(name)
        try:
            return self._file(file)[1].get_tensor(stored)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise MinidsError(f"{self.path / file}: cannot read {name}: {error}. Fetch the file again.") from None

    def read(self, name: str, dtype: torch.dtype = torch.float32, device="cpu") -> torch.Tensor:
        """The numbers of one tensor as `dtype`, FP8 and FP4 decoded with their scale; tables of integers as int64."""
        stored, _ = self.info(name)
        scale = self.raw(scale_name(name)) if stored in CODES else None
        return numbers(stored, self.raw(name), scale, dtype, device, f"{self.path}: {name}")

    def check(self) -> None:
        """Raise `MinidsError` unless names, shapes and types are those of `config`. Reads the headers only."""
        for file in sorted({file for file, _ in self._where.values()}):
            held, named = set(self._file(file)[0]), {stored for f, stored in self._where.values() if f == file}
            if held != named:
                raise MinidsError(f"{self.path}: {INDEX} and {file} disagree: {listed('only in the index', named - held)}"
                                  f"{listed('only in the file', held - named)} Fetch both again.")
        formats = expected(self.config, self._where, self.path)
        info = {name: self.info(name) for name in self._where}
        checked = {name: mismatch(name, *formats[name], info) for name in formats if name in info}
        wrong = [problem for problem, _ in checked.values() if problem]
        missing, extra = formats.keys() - info.keys(), info.keys() - formats.keys() - {scale for _, scale in checked.values()}
        if missing or extra or wrong:
            raise MinidsError(f"{self.path}: the files do not hold the model of config.json: {listed('missing', missing)}"
                              f"{listed('unexpected', extra)}{listed('wrong', wrong)}"
                              f"{'What is unexpected may belong to a later model.' if extra else ''}".rstrip())

    def _index(self) -> dict[str, str]:
        """{name as stored: file name}, from the index or from the header of the single file."""
        index, single = self.path / INDEX, self.path / SINGLE
        if index.exists() and single.exists():
            raise MinidsError(f"{self.path} holds both {SINGLE} and {INDEX}: remove the one that does not belong there")
        if single.exists():
            return dict.fromkeys(self._file(SINGLE)[0], SINGLE)
        if not index.exists():
            pickle = min((p.name for p in self.path.iterdir() if p.suffix in PICKLES), default=None)
            hint = pickle and f"; {pickle} is a pickle, which could run code, and is never read: convert it to safetensors"
            raise MinidsError(f"no weights in {self.path}: expected {SINGLE} or {INDEX}{hint or ''}")
        return header.index(read_small(index, header.MAX_INDEX), index)

    def _find(self, name: str) -> tuple[str, str]:
        if name not in self._where:
            raise MinidsError(f"{self.path}: no tensor {name}. `names()` lists what there is.")
        return self._where[name]

    def _file(self, file: str) -> tuple:
        """A shard's header, checked, and what reads its tensors."""
        if file not in self._open_files:
            if not (self.path / file).is_file():
                raise MinidsError(f"{self.path / file} is missing, and the index names it. Fetch it, and try again.")
            held = header.read(self.path / file)
            try:
                self._open_files[file] = held, safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise MinidsError(f"{self.path / file} is not a whole safetensors file ({error}). Fetch it again.") from None
        return self._open_files[file]


def placed(index: dict[str, str], config, where) -> tuple[Config, dict[str, tuple[str, str]]]:
    """Where each tensor is, {V4's name: (file, name in that file)}, and `config`, without MTP blocks if the files have none."""
    places = {}
    for stored, file in index.items():
        name = _v4_name(stored)
        if name in places:
            raise MinidsError(f"{where}: {stored} and {places[name][1]} both mean {name}; expected one of them")
        places[name] = file, stored
    if config.n_mtp_layers and not any(name.startswith("mtp.") for name in places):
        config = config.replace(n_mtp_layers=0, compress_ratios=config.compress_ratios[: config.n_layers])
    return config, places


def expected(config, names, where) -> dict:
    """`layout.tensors(config)`; `MinidsError` where it would have far more tensors than `names`, before it is made."""
    experts = 3 * config.n_layers * config.n_routed_experts
    if experts > len(names):
        raise MinidsError(f"{where}: config.json speaks of {experts} expert matrices, the files hold "
                          f"{len(names)} tensors. Take both from the same checkpoint.")
    return layout.tensors(config)


def mismatch(name: str, format: str, shape, info: dict) -> tuple[str | None, str | None]:
    """What is wrong with a stored tensor, or None, and the name of its scale, if it has one.

    `format` and `shape` are those of `layout.tensors`, `info` says what is stored: {name: (dtype, shape)}.
    """
    dtype, found = info[name]
    if dtype in CODES and format != "I64" and len(shape) == 2:
        (_, coded), (scale, (_, blocks)) = layout.on_disk(name, CODES[dtype], shape).items()
        coded = coded[1]
        if found != coded or (dtype == "I8" and shape[1] % 32):
            return f"{name} is {dtype} {list(found)}, expected {list(coded)}", scale
        if scale not in info:
            return f"{name} has no {scale}", None
        scale_dtype, scale_shape = info[scale]
        if scale_dtype not in SCALES or scale_shape != blocks:
            return f"{scale} is {scale_dtype} {list(scale_shape)}, expected {' or '.join(SCALES)} {list(blocks)}", scale
        return None, scale
    types = INTEGERS if format == "I64" else FLOATS
    if dtype in types and found == shape:
        return None, None
    return f"{name} is {dtype} {list(found)}, expected {' or '.join(types)} {list(shape)}", None


def numbers(stored: str, raw: torch.Tensor, scale, dtype: torch.dtype, device, where: str) -> torch.Tensor:
    """The numbers of a tensor that is `stored` so (safetensors' name of the type), in memory of its own."""
    if stored in CODES:
        decode = numerics.fp8_decode if stored == "F8_E4M3" else numerics.fp4_decode
        try:
            return decode(raw.to(device), scale.to(device), dtype)
        except MinidsError as error:
            raise MinidsError(f"{where}: {error}") from None
    if stored not in FLOATS + INTEGERS:
        raise MinidsError(f"{where} is stored as {stored}; expected one of {', '.join((*FLOATS, *INTEGERS, *CODES))}")
    return raw.to(device, torch.int64 if stored in INTEGERS else dtype, copy=True)


def load(path, device="cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The model of a checkpoint folder, ready to use (in eval mode), on `device`.

    Any mixture of BF16, F32, FP8 and FP4 tensors is read. Matrices become `dtype`; what the model keeps in float32
    (norms, sinks, hyper-connections, ...) stays float32. A checkpoint without MTP tensors gives a model without MTP
    blocks: `model.config.n_mtp_layers == 0`. Raises `MinidsError`, before it takes memory, where the files are not whole
    or do not hold the model of their config.json.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise MinidsError(f"dtype: expected a floating-point type such as torch.float32 or torch.bfloat16, found {dtype}")
    with Checkpoint(path) as checkpoint:
        checkpoint.check()
        model = empty_model(checkpoint.config, dtype)
        state = {name: checkpoint.read(name, t.dtype, device) for name, t in model.state_dict().items()}
    for name, table in state.items():
        if name.endswith("tid2eid"):
            check_table(table, checkpoint.config, f"{path}: {name}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def empty_model(config, dtype: torch.dtype) -> Model:
    """A model that takes no memory: its tensors have shapes and types only."""
    return empty(lambda: Model(config), dtype)


def empty(make, dtype: torch.dtype):
    """The module that `make()` gives, with tensors that take no memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return make()
    finally:
        torch.set_default_dtype(before)


def check_table(table: torch.Tensor, config, where: str) -> None:
    """Raise `MinidsError` unless all numbers of a hash layer's table are experts."""
    if table.min() < 0 or table.max() >= config.n_routed_experts:
        raise MinidsError(f"{where}: expected experts 0 to {config.n_routed_experts - 1}, "
                          f"found {int(table.min())} to {int(table.max())}")


def scale_name(name: str) -> str:
    return name.removesuffix("weight") + "scale"


def _v4_name(name: str) -> str:
    """V4's name for a name that `transformers` 5 writes: it adds a prefix and keeps three names of its own."""
    name = name.removeprefix("model.")
    name = re.sub(r"^embed_tokens\.", "embed.", name)
    name = re.sub(r"^hc_head\.hc_(fn|base|scale)$", r"hc_head_\1", name)
    return re.sub(r"^(layers\.\d+\.attn)\.norm\.weight$", r"\1.kv_norm.weight", name)


def listed(what: str, names) -> str:
    """`3 missing (a, b, c). `, with at most three names; nothing for no names."""
    names = sorted(names)
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). " if names else ""


# ---- writing ----
