"""Read a checkpoint in V4's safetensors layout: a local folder, or a repository on the Hub.

    Checkpoint("data/v4_sample")                    a folder
    Checkpoint("deepseek-ai/DeepSeek-V4-Flash")     the real files

A checkpoint consists of these files:

    config.json                        the sizes, in either spelling (`minids.Config`)
    model.safetensors                  all tensors, or
    model-00001-of-000NN.safetensors   the released shards, with model.safetensors.index.json,
                                       which says what is where
    tokenizer.json                     the tokenizer, if one was given

Tensors are read one by one: headers first, then only the bytes that are asked for. So a laptop sees
the routers, tables, hyper-connections, sinks, compressor biases and norms of all layers of V4-Flash
(0.25 of its 160 GB), and single experts (13 MB each). Folders that `transformers` wrote with
`save_pretrained` are read too. Only safetensors are read: nothing is unpickled.

For the format of each tensor see `minids.weights.layout`, for codes and scales `minids.numerics`,
for local files `minids.weights.folder`, for the Hub and its cache `minids.weights.hub`.
"""

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from tqdm.auto import tqdm

from minids import numerics
from minids.config import Config
from minids.config_file import MAX_BYTES, ConfigError, parse
from minids.errors import MinidsError
from minids.model import Model
from minids.system.devices import has_all_types
from minids.weights import foreign, layout
from minids.weights.folder import LocalFiles
from minids.weights.header import DTYPES, Entry
from minids.weights.hub import HubFiles
from minids.weights.layout import CODES, FLOATS, INDEX, INTEGERS, Spec, count_and_names, scale_name
from minids.weights.names import to_v4

Files = LocalFiles | HubFiles
Device = str | torch.device
Module = TypeVar("Module", bound=nn.Module)


class Price(NamedTuple):
    """What reading some tensors costs: how many tensors, in how many files, and bytes.

    `fetch` are bytes to fetch, `here` bytes that are on this machine already.
    """

    tensors: int
    files: int
    fetch: int
    here: int


class Place(NamedTuple):
    """Where a tensor is: the file, its name in that file, and what the file's header says of it."""

    file: str
    name: str
    entry: Entry


class Checkpoint:
    """A checkpoint, read tensor by tensor. Use it in a `with` block, or call `close()`.

    `source` is a folder or "OWNER/NAME" on the Hub; a `Path` is always a folder. `revision` is a
    branch, a tag or a commit of the repository; folders have none.

    Opening reads config.json and the index, nothing else. Missing shards matter only when something
    is read from them, so a few downloaded shards are enough. Every tensor is compared with the
    configuration before its bytes are fetched or used, and NaN is refused as it is read. Raises
    `MinidsError` for whatever goes wrong.

    `config` is the configuration. Where the files hold no MTP block (`transformers` drops it,
    Flash-0731 and Pro-0813 have another draft module in its place), it is the configuration without
    MTP blocks: `config.n_mtp_layers == 0`. `left_alone()` says which tensors are not read. `where`
    names the source in messages, `revision` is the commit that is read (None for a folder).
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        local = isinstance(source, Path) or os.path.exists(source)
        if local and revision is not None:
            raise MinidsError(f"revision: expected none for {source}, which is on this machine; "
                              f"found {revision!r:.60}. Only a repository of the Hub has revisions")
        self.files: Files = LocalFiles(source) if local else HubFiles(str(source), revision)
        self.where, self.revision = self.files.where, self.files.revision
        try:
            config = _read_config(self.files)
            self.config, self._stored = _find_tensors(self.files.index(), config, self.where)
            self._layout: dict[str, Spec] = layout.expected(self.config, self._stored, self.where)
        except MinidsError:
            self.close()
            raise

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.files.close()

    # ---- what there is ----

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def names(self) -> list[str]:
        """The names of all tensors and scales, as V4 spells them. Reads nothing."""
        return list(self._stored)

    def find(self, *patterns: str) -> list[str]:
        """The names that match a pattern, such as "layers.*.ffn.gate.*"; without those of scales.

        `MinidsError` for a pattern that matches no tensor of this model, or one that the files do
        not have.
        """
        names: dict[str, None] = {}
        for pattern in patterns:
            matching = [n for n in self._stored if n in self._layout and fnmatchcase(n, pattern)]
            absent = [n for n in self.missing() if fnmatchcase(n, pattern)]
            if absent:
                raise self._not_the_model(absent)
            if not matching:
                examples = ", ".join(list(self._layout)[1:4])
                raise MinidsError(f"{self.where}: no tensor matches {pattern!r}: expected a name "
                                  f"or a pattern such as layers.*.ffn.gate.weight; names look like "
                                  f"{examples}")
            names |= dict.fromkeys(matching)
        return list(names)

    def below(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, such as "layers.3."; without those of scales.

        `MinidsError` unless these are all tensors that the files have there, and all that the model
        has: what is left is a module that can be read by itself.
        """
        absent, extra = ([name for name in names if name.startswith(prefix)]
                         for names in (self.missing(), self.extra()))
        if absent or extra:
            raise self._not_the_model(absent, extra)
        return self.find(f"{prefix}*")

    def missing(self) -> list[str]:
        """Weights of the model of config.json that the index does not have. Reads nothing."""
        return [name for name in self._layout if name not in self._stored]

    def left_alone(self) -> str:
        """One sentence: which tensors are not read, and why. Empty where all of them are."""
        return foreign.left_alone(self.extra())

    def extra(self) -> list[str]:
        """Tensors that the model of config.json does not have. They are not read.

        They may belong to a later model, for example to its draft module.
        """
        scales = {scale_name(name) for name, (format, _) in self._layout.items()
                  if format in ("FP8", "FP4")}
        return [name for name in self._stored if name not in self._layout and name not in scales]

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """What is stored under this name: (safetensors' type, shape). Reads a header only."""
        entry = self._place(name).entry
        return entry.dtype, entry.shape

    def inventory(self, names: Iterable[str] | None = None) -> dict[str, Spec]:
        """{name: `info(name)`} of `names` (default: all), to compare with `layout.inventory`.

        Reads the headers of the files in question, no tensor.
        """
        names = list(self._stored) if names is None else list(names)
        self._read_headers(names)
        return {name: self.info(name) for name in names}

    def check(self) -> None:
        """Raise `MinidsError` unless names, shapes and types are those of `config`.

        Further tensors below `mtp.` are left alone, and so are files with nothing else. Reads
        headers only.
        """
        by_file: dict[str, set[str]] = {}
        for file, stored in self._stored.values():
            by_file.setdefault(file, set()).add(stored)
        skipped = {name for name in self.extra() if name.startswith(foreign.DRAFT)}
        names = [name for name in self._stored if name not in skipped]
        for file in sorted({self._stored[name][0] for name in names}):
            in_file, in_index = set(self.files.header(file)), by_file[file]
            if in_file != in_index:
                raise MinidsError(f"{self.where}: {INDEX} and {file} disagree: "
                                  f"{count_and_names('only in the index', in_index - in_file)}"
                                  f"{count_and_names('only in the file', in_file - in_index)}"
                                  f"Fetch both again.")
        info = self.inventory(names)
        compared = [layout.mismatch(name, *self._layout[name], info)
                    for name in self._layout if name in info]
        wrong = [problem for problem, _ in compared if problem]
        missing = self._layout.keys() - info.keys()
        extra = info.keys() - self._layout.keys() - {scale for _, scale in compared}
        if missing or extra or wrong:
            raise self._not_the_model(missing, extra, wrong)

    def _not_the_model(self, missing: Iterable[str] = (), extra: Iterable[str] = (),
                       wrong: Iterable[str] = ()) -> MinidsError:
        hint = "What is unexpected may belong to a later model." if extra else ""
        return MinidsError(f"{self.where}: the files do not hold the model of config.json: "
                           f"{count_and_names('missing', missing)}"
                           f"{count_and_names('unexpected', extra)}"
                           f"{count_and_names('wrong', wrong)}{hint}".rstrip())

    # ---- reading ----

    def price(self, names: Iterable[str]) -> Price:
        """What `read_all(names)` would cost. Reads headers only."""
        places = self._compare(names).values()
        sizes = [(place.entry.end - place.entry.start, self.files.has(*place)) for place in places]
        here = sum(size for size, is_here in sizes if is_here)
        files = {place.file for place in places}
        return Price(len(sizes), len(files), sum(size for size, _ in sizes) - here, here)

    def fetch(self, names: Iterable[str], progress: bool = False) -> None:
        """Bring tensors to this machine. An interrupted fetch can be resumed."""
        self._fetch(self._compare(names), progress)

    def read(self, name: str, dtype: torch.dtype = torch.float32,
             device: Device = "cpu") -> torch.Tensor:
        """The numbers of one tensor as `dtype`, FP8 and FP4 decoded with their scale.

        Tables of integers come as int64. What is not on this machine is fetched first.
        """
        places = self._compare([name])
        self._fetch(places)
        raw = self._read(places)
        stored_as = places[name].entry.dtype
        scale = raw.get(scale_name(name))
        return decode(stored_as, raw[name], scale, dtype, device, f"{self.where}: {name}")

    def read_all(self, names: Iterable[str], dtype: torch.dtype = torch.float32,
                 device: Device = "cpu", progress: bool = False) -> dict[str, torch.Tensor]:
        """{name: `read(name)`}. Missing tensors are fetched first, several files at a time."""
        names = list(names)
        self.fetch(names, progress)
        return {name: self.read(name, dtype, device) for name in names}

    def raw(self, name: str) -> torch.Tensor:
        """One tensor as it is stored: FP8 codes, packed FP4 bytes, or a scale."""
        return self.raw_all([name])[name]

    def raw_all(self, names: Iterable[str], device: Device = "cpu") -> dict[str, torch.Tensor]:
        """{name: `raw(name)`}, on `device` if it has all of torch's types, else on the CPU.

        Neighbours in a file are read together and share memory.
        """
        names = list(names)
        places = self._compare(dict.fromkeys(self._weight_of(name) for name in names))
        for name in names:
            if name not in places:
                raise MinidsError(f"{self.where}: {name} is not read: the model has no such scale")
        self._fetch(places)
        device = device if has_all_types(device) else "cpu"
        return self._read({name: places[name] for name in names}, device)

    def _read(self, places: dict[str, Place],
              device: Device = "cpu") -> dict[str, torch.Tensor]:
        by_file: dict[str, dict[str, Entry]] = {}
        for place in places.values():
            by_file.setdefault(place.file, {})[place.name] = place.entry
        data = {file: self.files.read(file, entries, device) for file, entries in by_file.items()}
        raw = {name: view_bytes(data[file][stored], entry)
               for name, (file, stored, entry) in places.items()}
        self._refuse_nan(raw)
        return raw

    def _refuse_nan(self, raw: dict[str, torch.Tensor]) -> None:
        """Raise `MinidsError` if anything that was read would be decoded to NaN."""
        # an infinite scale is as bad as NaN: times a code of 0 it is NaN
        float_scales = {name for name, t in raw.items()
                        if name not in self._layout and t.dtype == torch.float32}
        flags = [holds_nan(0 * t if name in float_scales else t) for name, t in raw.items()]
        for name, is_nan in zip(raw, torch.stack(flags).tolist() if flags else []):
            if is_nan:
                is_power = raw[name].dtype == torch.float8_e8m0fnu
                raise MinidsError(f"{self.where}: {name} holds NaN"
                                  f"{' or infinity' * (name in float_scales)}; expected "
                                  f"{'powers of two' if is_power else 'numbers'}")

    def _fetch(self, places: dict[str, Place], progress: bool = False) -> None:
        missing: dict[str, dict[str, Entry]] = {}
        size = 0
        for file, stored, entry in places.values():
            if not self.files.has(file, stored, entry):
                missing.setdefault(file, {})[stored] = entry
                size += entry.end - entry.start
        if missing:
            with tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar:
                self.files.fetch(missing, bar.update)

    def _compare(self, names: Iterable[str]) -> dict[str, Place]:
        """{name: place} of tensors and their scales, each compared with the configuration."""
        names = list(names)
        for name in names:
            self._require_in_layout(name)
        self._read_headers(names)
        places = {name: self._place(name) for name in names}
        scales = [scale_name(name) for name, place in places.items() if place.entry.dtype in CODES]
        scales = [scale for scale in scales if scale in self._stored]
        self._read_headers(scales)
        places |= {scale: self._place(scale) for scale in scales}
        info = {name: (place.entry.dtype, place.entry.shape) for name, place in places.items()}
        for name in names:
            problem, _ = layout.mismatch(name, *self._layout[name], info)
            if problem:
                raise MinidsError(f"{self.where}: {problem}")
        return places

    def _require_in_layout(self, name: str) -> None:
        self._require_stored(name)
        if name not in self._layout:
            weight = self._weight_of(name)
            reason = (f"it comes with {weight}" if weight != name else
                      "the model of config.json has none, it may belong to a later model")
            raise MinidsError(f"{self.where}: {name} is not read: {reason}")

    def _require_stored(self, name: str) -> None:
        if name in self._layout and name not in self._stored:
            raise self._not_the_model([name])
        if name not in self._stored:
            raise MinidsError(f"{self.where}: no tensor {name}. `names()` lists what there is.")

    def _weight_of(self, name: str) -> str:
        """The weight that a scale belongs to; any other name as it is."""
        weight = name.removesuffix("scale") + "weight"
        return weight if name not in self._layout and weight in self._layout else name

    def _place(self, name: str) -> Place:
        self._require_stored(name)
        file, stored = self._stored[name]
        entries = self.files.header(file)
        if stored not in entries:
            raise MinidsError(f"{self.where}: {INDEX} and {file} disagree: {stored} is only in the "
                              "index. Fetch both again.")
        return Place(file, stored, entries[stored])

    def _read_headers(self, names: Iterable[str]) -> None:
        self.files.read_headers({self._stored[name][0] for name in names if name in self._stored})


def _read_config(files: Files) -> Config:
    text = files.text("config.json", MAX_BYTES)
    if text is None:
        raise MinidsError(f"no configuration at {files.where}: expected DeepSeek-V4's config.json")
    where = f"{files.where}: config.json"
    values = parse(text, where)
    try:
        return Config.from_json(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _find_tensors(index: dict[str, str], config: Config,
                  where: str) -> tuple[Config, dict[str, tuple[str, str]]]:
    """(config, {V4's name: (file, name in that file)}).

    The configuration is that without MTP blocks if the files have none. Names of formats that are
    not read are refused.
    """
    stored: dict[str, tuple[str, str]] = {}
    for name_in_file, file in index.items():
        name = to_v4(name_in_file)
        if name in stored:
            raise MinidsError(f"{where}: {name_in_file} and {stored[name][1]} both mean {name}; "
                              f"expected one of them")
        stored[name] = file, name_in_file
    foreign.refuse(stored, where)
    if config.n_mtp_layers and not foreign.has_mtp(stored):
        ratios = config.compress_ratios[: config.n_layers]
        config = config.replace(n_mtp_layers=0, compress_ratios=ratios)
    return config, stored


def view_bytes(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Bytes, uint8, as a tensor of the entry's type and shape."""
    dtype = DTYPES[entry.dtype].torch_dtype
    assert dtype is not None        # `Checkpoint._compare` refuses types that torch does not have
    aligned = data.clone() if data.storage_offset() % dtype.itemsize else data
    return aligned.view(dtype).view(entry.shape)


def holds_nan(t: torch.Tensor) -> torch.Tensor:
    """Whether any number of a tensor, or any code or scale in float8, is NaN: a bool on its device.

    Takes no memory: in float8, NaN are the bytes 0x7F and 0xFF (E4M3) or 0xFF (E8M0), which are the
    largest signed and the largest unsigned byte; and the maximum of floats with NaN is NaN.
    """
    if t.dtype == torch.float8_e4m3fn:
        return (t.view(torch.int8).amax() == 0x7F) | (t.view(torch.uint8).amax() == 0xFF)
    if t.dtype == torch.float8_e8m0fnu:
        return t.view(torch.uint8).amax() == 0xFF
    if not t.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device=t.device)
    return t.amax().isnan()


def decode(stored_as: str, raw: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype,
           device: Device, where: str) -> torch.Tensor:
    """The numbers of a tensor of safetensors' type `stored_as`, on `device`, in memory of its own.

    Codes are decoded where they are: not every device has float8.
    """
    if stored_as in CODES:
        assert scale is not None        # `Checkpoint._compare` has checked that
        try:
            return numerics.decode(raw, scale, dtype).to(device)    # float8 is not moved
        except MinidsError as error:
            raise MinidsError(f"{where}: {error}") from None
    if stored_as not in FLOATS + INTEGERS:
        raise MinidsError(f"{where} is stored as {stored_as}; "
                          f"expected one of {', '.join((*FLOATS, *INTEGERS, *CODES))}")
    return raw.to(device, torch.int64 if stored_as in INTEGERS else dtype, copy=True)


# ---- a whole model ----

def load(path: str | Path, device: Device = "cpu",
         dtype: torch.dtype = torch.float32) -> Model:
    """The model of a checkpoint folder, ready to use (in eval mode), on `device`.

    Any mixture of BF16, F32, FP8 and FP4 tensors is read. Matrices become `dtype`; what the model
    keeps in float32 (norms, sinks, hyper-connections, ...) stays float32. A checkpoint without MTP
    block gives a model without one: `model.config.n_mtp_layers == 0`. So do Flash-0731 and
    Pro-0813; `Checkpoint.left_alone` says which tensors are not read. Raises `MinidsError`, before
    it takes memory, where the files are not whole or do not hold the model of their config.json.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise MinidsError(f"dtype: expected a floating-point type such as torch.float32 or "
                          f"torch.bfloat16, found {dtype}")
    if dtype == torch.float64 and not has_all_types(device):
        raise MinidsError(f"dtype: {device} has no float64; expected torch.float32, or the CPU")
    with Checkpoint(Path(path)) as checkpoint:
        checkpoint.check()
        model = empty_model(checkpoint.config, dtype)
        state = {name: checkpoint.read(name, t.dtype, device)
                 for name, t in model.state_dict().items()}
    for name, t in state.items():
        if name.endswith("tid2eid"):
            check_table(t, checkpoint.config, f"{path}: {name}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def empty_model(config: Config, dtype: torch.dtype) -> Model:
    """A model that takes no memory: its tensors have shapes and types only."""
    return empty(lambda: Model(config), dtype)


def empty(make: Callable[[], Module], dtype: torch.dtype) -> Module:
    """The module that `make()` gives, with tensors that take no memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return make()
    finally:
        torch.set_default_dtype(before)


def check_table(table: torch.Tensor, config: Config, where: str) -> None:
    """Raise `MinidsError` unless all numbers of a hash layer's table are experts."""
    if table.min() < 0 or table.max() >= config.n_routed_experts:
        raise MinidsError(f"{where}: expected experts 0 to {config.n_routed_experts - 1}, "
                          f"found {int(table.min())} to {int(table.max())}")
