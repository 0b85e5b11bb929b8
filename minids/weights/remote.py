"""Single tensors of a checkpoint that is far away: headers first, then only the bytes that are asked for.

    with the real files        RemoteCheckpoint("deepseek-ai/DeepSeek-V4-Flash")
    with a folder on disk      RemoteCheckpoint("data/v4_sample")

So a laptop sees the routers, tables, hyper-connections, sinks, compressor biases and norms of all layers of V4-Flash (0.25 of
its 160 GB), and single experts (13 MB each). Requests and the cache on disk are `minids.weights.hub`' business, what headers and
indices may say is `minids.weights.header`'s, formats are `minids.weights.checkpoint`'s.
"""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from minids.config import MAX_BYTES, Config
from minids.errors import MinidsError
from minids.system.files import read_small
from minids.weights import header
from minids.weights.checkpoint import CODES, INDEX, SINGLE, expected, mismatch, numbers, placed, scale_name
from minids.weights.header import Entry
from minids.weights.hub import Hub

WORKERS = 8    # files at a time
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64, "I32": torch.int32,
          "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}


class Price(NamedTuple):
    """What reading some tensors costs: how many there are, in how many files, bytes to fetch, bytes that are here already."""

    tensors: int
    files: int
    fetch: int
    here: int


class RemoteCheckpoint:
    """A V4 checkpoint on the Hub ("OWNER/NAME"), or in a local folder, read tensor by tensor.

    Opening reads config.json and the index; nothing else comes before it is asked for. `config` is the configuration (without
    MTP blocks where the files have none), `revision` the commit that is read (None for a folder). Every tensor is compared
    with the configuration before its bytes are fetched. Raises `MinidsError` for whatever goes wrong.
    """

    def __init__(self, repo, revision: str | None = None):
        self.source = Folder(repo) if os.path.isdir(repo) else Hub(str(repo), revision)
        self.where, self.revision = self.source.where, self.source.revision
        text = self.source.text("config.json", MAX_BYTES)
        if text is None:
            raise MinidsError(f"{self.where} has no config.json: expected a checkpoint of DeepSeek-V4")
        try:
            said = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise MinidsError(f"{self.where}: config.json is not readable JSON: {error}"[:300]) from None
        if not isinstance(said, dict):
            raise MinidsError(f"{self.where}: config.json: expected a JSON object, found {type(said).__name__}")
        index = self.source.text(INDEX, header.MAX_INDEX)
        files = (dict.fromkeys(self.source.header(SINGLE), SINGLE) if index is None else
                 header.index(index, f"{self.where}: {INDEX}"))
        self.config, self._places = placed(files, Config.from_json(said), self.where)
        self._layout = expected(self.config, self._places, self.where)

    def names(self) -> list[str]:
        """The names of all tensors, those of the scales included, as V4 spells them. Reads nothing."""
        return list(self._places)

    def find(self, *patterns: str) -> list[str]:
        """The names that fit a pattern, such as "layers.*.ffn.gate.*"; scales come with what they scale.

        `MinidsError` for a pattern that fits no tensor of this model.
        """
        found = {}
        for pattern in patterns:
            fits = [name for name in self._places if name in self._layout and fnmatchcase(name, pattern)]
            if not fits:
                some = ", ".join(list(self._layout)[1:4])
                raise MinidsError(f"no tensor fits {pattern!r}: expected a name or a pattern such as layers.*.ffn.gate.weight; "
                                  f"names look like {some}")
            found |= dict.fromkeys(fits)
        return list(found)

    def extra(self) -> list[str]:
        """Tensors that the model of config.json does not have, such as those of a later model's draft module. Not read."""
        scales = {scale_name(name) for name, (format, _) in self._layout.items() if format in ("FP8", "FP4")}
        return [name for name in self._places if name not in self._layout and name not in scales]

    def inventory(self, names=None) -> dict[str, tuple[str, tuple[int, ...]]]:
        """{name: (dtype as safetensors says, shape)} of `names` (default: all), as `minids.layout.inventory` says it.

        Reads the headers of the files in question, no tensor.
        """
        names = list(self._places) if names is None else _listed(names)
        self._headers(names)
        return {name: self._entry(name)[2][:2] for name in names}

    def price(self, names) -> Price:
        """What `read(names)` would cost. Reads headers only."""
        return self._price(self._jobs(names))

    def fetch(self, names, progress: bool = False) -> None:
        """Bring tensors here without reading them. An interrupted fetch goes on where it stopped."""
        jobs = self._jobs(names)
        with tqdm(total=self._price(jobs).fetch, unit="B", unit_scale=True, disable=not progress) as bar:
            self._each(jobs, lambda file: self.source.fetch(file, jobs[file], bar.update))

    def raw(self, names, progress: bool = False) -> dict[str, torch.Tensor]:
        """{name: tensor as it is stored}: FP8 codes, packed FP4 bytes; the scales are there under their own names."""
        names = _listed(names)
        self.fetch(names, progress)
        found = {}
        for name in names:
            for part in self._with_scale(name):
                found[part] = self._stored(part)
        return found

    def read(self, names, dtype: torch.dtype = torch.float32, device="cpu", progress: bool = False) -> dict[str, torch.Tensor]:
        """{name: numbers as `dtype`}, FP8 and FP4 decoded with their scales; tables of integers as int64.

        What is not here is fetched first.
        """
        names = _listed(names)
        self.fetch(names, progress)
        found = {}
        for name in names:
            codes, scale = (*map(self._stored, self._with_scale(name)), None)[:2]
            kind = self._entry(name)[2].dtype
            found[name] = numbers(kind, codes, scale, dtype, device, f"{self.where}: {name}")
        return found

    def _stored(self, name: str) -> torch.Tensor:
        file, stored, entry = self._entry(name)
        data = self.source.read(file, stored, entry)
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).view(entry.shape)

    def _price(self, jobs) -> Price:
        sizes = [(e.end - e.start, self.source.has(file, stored, e)) for file, es in jobs.items() for stored, e in es.items()]
        here = sum(n for n, there in sizes if there)
        return Price(len(sizes), len(jobs), sum(n for n, _ in sizes) - here, here)

    def _jobs(self, names) -> dict[str, dict[str, Entry]]:
        """{file: {name there: entry}} of tensors and their scales, each compared with the configuration."""
        names = _listed(names)
        for name in names:
            if name not in self._places:
                raise MinidsError(f"{self.where}: no tensor {name}. `names()` lists what there is.")
            if name not in self._layout:
                weight = name.removesuffix("scale") + "weight"
                why = (f"it comes with {weight}" if name.endswith("scale") and weight in self._layout else
                       "the model of config.json has none, it may belong to a later model")
                raise MinidsError(f"{self.where}: {name} is not read: {why}")
        self._headers(names)
        self._headers([n for name in names for n in self._with_scale(name)])
        jobs = {}
        for name in names:
            with_scale = self._with_scale(name)
            info = {n: self._entry(n)[2][:2] for n in with_scale}
            problem, _ = mismatch(name, *self._layout[name], info)
            if problem:
                raise MinidsError(f"{self.where}: {problem}")
            for n in with_scale:
                file, stored, entry = self._entry(n)
                jobs.setdefault(file, {})[stored] = entry
        return jobs

    def _with_scale(self, name: str) -> list[str]:
        scaled = self._entry(name)[2].dtype in CODES and scale_name(name) in self._places
        return [name, scale_name(name)] if scaled else [name]

    def _entry(self, name: str) -> tuple[str, str, Entry]:
        """(file, name in the file, what its header says)."""
        if name not in self._places:
            raise MinidsError(f"{self.where}: no tensor {name}. `names()` lists what there is.")
        file, stored = self._places[name]
        held = self.source.header(file)
        if stored not in held:
            raise MinidsError(f"{self.where}: {INDEX} and {file} disagree: {stored} is only in the index")
        return file, stored, held[stored]

    def _headers(self, names) -> None:
        """Have the headers of these tensors' files, several files at a time."""
        files = {self._places[name][0] for name in names if name in self._places}
        self._each(sorted(files - self.source.headers.keys()), self.source.header)

    def _each(self, files, job) -> None:
        if not files:
            return
        self.source.stop.clear()
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for done in [pool.submit(job, file) for file in files]:
                    done.result()
            except BaseException:
                self.source.stop.set()     # the others end soon; what they have is kept
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class Folder:
    """A checkpoint's files in a local folder."""

    revision = None

    def __init__(self, path):
        self.path = Path(path)
        self.where = str(path)
        self.stop = threading.Event()
        self.headers = {}

    def text(self, file: str, limit: int) -> bytes | None:
        """A small file, whole; None where there is none."""
        path = self.path / file
        return read_small(path, limit) if path.is_file() else None

    def header(self, file: str) -> dict[str, Entry]:
        """What the tensors of a file are and where."""
        if file not in self.headers:
            if not (self.path / file).is_file():
                raise MinidsError(f"{self.path / file} is missing: expected it beside config.json")
            self.headers[file] = header.read(self.path / file)
        return self.headers[file]

    def has(self, file, stored, entry) -> bool:
        """Whether a tensor's bytes are on this machine."""
        return True

    def fetch(self, file, entries, done) -> None:
        """Nothing to do: the files are here."""

    def read(self, file: str, stored: str, entry: Entry) -> bytearray:
        """The bytes of one tensor."""
        data = bytearray(entry.end - entry.start)
        with open(self.path / file, "rb") as opened:
            opened.seek(entry.start)
            if opened.readinto(data) != len(data):
                raise MinidsError(f"{self.path / file} ends inside {stored}: it changed since it was opened")
        return data


def _listed(names) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
