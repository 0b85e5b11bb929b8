"""A checkpoint folder on disk: read as bytes, and written whole or not at all."""

import os
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from minids.errors import MinidsError
from minids.system.files import read_small
from minids.weights import header
from minids.weights.header import Entry
from minids.weights.layout import INDEX, SINGLE

PIECE = 2**25       # bytes that are read at a time
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# what a folder that `save` replaces may hold
OURS = re.compile(r"((generation_)?config|tokenizer(_config)?|model.safetensors.index)\.json"
                  r"|model(-\d+-of-\d+)?\.safetensors")


# ---- reading ----

class LocalFiles:
    """The files of a checkpoint folder, for `minids.weights.checkpoint.Checkpoint`.

    A file is opened when its header is read, and stays open until `close`: a folder that is
    replaced meanwhile is read as it was.
    """

    revision = None

    def __init__(self, path):
        self.path, self.where = Path(path), str(path)
        recover(self.path)
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise MinidsError(f"no checkpoint at {self.path}: expected a folder with config.json "
                              f"and {SINGLE} or {INDEX}, found {found}")
        self._headers, self._open = {}, {}
        self._lock = threading.Lock()       # a file has one position for all threads

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def text(self, file: str, limit: int) -> bytes | None:
        """A small file, whole; None where there is none."""
        path = self.path / file
        return read_small(path, limit) if path.is_file() else None

    def index(self) -> dict[str, str]:
        """{name as stored: file name}, from the index or from the header of the single file."""
        text, single = self.text(INDEX, header.MAX_INDEX), self.path / SINGLE
        if text is not None and single.exists():
            raise MinidsError(f"{self.path} holds both {SINGLE} and {INDEX}: remove the one that "
                              "does not belong there")
        if single.exists():
            return dict.fromkeys(self.header(SINGLE), SINGLE)
        if text is None:
            pickle = min((p.name for p in self.path.iterdir() if p.suffix in PICKLES), default=None)
            hint = pickle and (f"; {pickle} is a pickle, which could run code, and is never read: "
                               f"convert it to safetensors")
            raise MinidsError(f"no weights in {self.path}: "
                              f"expected {SINGLE} or {INDEX}{hint or ''}")
        return header.index(text, self.path / INDEX)

    def header(self, file: str) -> dict[str, Entry]:
        """The entries of a file's header."""
        if file not in self._headers:
            if not (self.path / file).is_file():
                raise MinidsError(f"{self.path / file} is missing, and the index names it. "
                                  f"Fetch it, and try again.")
            self._headers[file] = header.read(self.path / file)
            self._file(file)
        return self._headers[file]

    def read_headers(self, files) -> None:
        """Nothing to do in advance: `header` reads them one by one."""

    def has(self, file: str, name: str, entry: Entry) -> bool:
        """Whether a tensor's bytes are on this machine."""
        return True

    def fetch(self, wanted: dict[str, dict[str, Entry]], done) -> None:
        """Nothing to do: the files are here."""

    def read(self, file: str, entries: dict[str, Entry], device="cpu") -> dict[str, torch.Tensor]:
        """{name: its bytes, uint8} of tensors of one file, in the order of the file.

        Neighbours in the file are read together and share memory.
        """
        tensors = {}
        for run in header.runs(entries):
            start, end = entries[run[0]].start, entries[run[-1]].end
            data = self._read_bytes(file, start, end, device)
            for name in run:
                tensors[name] = data[entries[name].start - start:entries[name].end - start]
        return tensors

    def _read_bytes(self, name: str, start: int, end: int, device) -> torch.Tensor:
        """Bytes of a file, uint8, read piece by piece; for an accelerator by way of the CPU's
        memory, pinned for CUDA."""
        data = torch.empty(end - start, dtype=torch.uint8, device=device)
        staging = None
        if data.device.type != "cpu":
            staging = torch.empty(min(PIECE, len(data)), dtype=torch.uint8,
                                  pin_memory=data.is_cuda)
        try:
            with self._lock:
                file = self._file(name)
                file.seek(start)
                for part in data.split(PIECE):
                    piece = part if staging is None else staging[:len(part)]
                    if file.readinto(piece.numpy()) != len(part):
                        raise MinidsError(f"{self.path / name} ends before byte {end}: it changed "
                                          "since it was opened")
                    if staging is not None:
                        part.copy_(piece)
        except OSError as error:
            reason = error.strerror or error
            raise MinidsError(f"{self.path / name} cannot be read: {reason}") from None
        return data

    def _file(self, name: str):
        if name not in self._open:
            self._open[name] = open(self.path / name, "rb", buffering=0)
        return self._open[name]


# ---- writing ----

@contextmanager
def whole_folder(path):
    """Yield an empty folder beside `path`.

    On success it takes the place of `path`, on any error it is removed. An existing checkpoint is
    moved aside for the moment of the exchange. If the process is killed just then, the next `save`
    or `load` moves it back. Raises `MinidsError` where the operating system refuses, and where
    `path` holds anything that is not part of a checkpoint.
    """
    path = Path(path).resolve()
    part, old = path.with_name(f".{path.name}.part"), _old(path)
    recover(path)
    if path.exists() and not path.is_dir():
        raise MinidsError(f"cannot save to {path}: it is a file; expected a new folder or "
                          f"a checkpoint to replace")
    existing = [p.name for p in path.iterdir()] if path.exists() else []
    foreign = sorted(name for name in existing if not OURS.fullmatch(name))
    if foreign:
        raise MinidsError(f"cannot save to {path}: it holds {foreign[0]}, which is not part of a "
                          "checkpoint; expected a new folder or a checkpoint to replace")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            try:
                os.rename(path, old)
                os.rename(part, path)
            except BaseException:
                recover(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(part, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MinidsError(f"could not write {path}: {reason}. Nothing was changed.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Move back a checkpoint that a `save` had moved aside when it was killed."""
    path = Path(path).resolve()
    if path.name and not path.exists() and _old(path).is_dir():
        os.rename(_old(path), path)
