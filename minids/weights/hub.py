"""Files of a repository on the Hub: single tensors of them, and a cache of what was fetched.

The cache is in huggingface_hub's folder for assets (below HF_HOME): a file for each tensor,
followed by its sha256. What it holds is read without a network, and where it is read-only nothing
is written as long as nothing is missing. For the requests see `minids.weights.hub_requests`, for
what the tensors mean `minids.weights.checkpoint`.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from minids.config_file import MAX_BYTES
from minids.errors import MinidsError
from minids.system.files import atomic_write, check_writable, read_small, write_text
from minids.weights import header
from minids.weights.header import Entry
from minids.weights.hub_requests import Missing, Requests, Unreachable, endpoint
from minids.weights.layout import INDEX, SINGLE

WORKERS = 8                 # files at a time
PIECE = 2**25               # bytes of one request at most; larger tensors come in pieces
GAP = 2**17                 # unwanted bytes that are read and dropped rather than split a request
HEAD = 2**18                # bytes of the first request to a file: mostly its whole header
DIGEST = 32                 # bytes of sha256 at the end of every file of the cache


class HubFiles:
    """The files of a repository at one commit, for `minids.weights.checkpoint.Checkpoint`.

    What was fetched of them is in the cache.
    """

    def __init__(self, repo: str, revision: str | None):
        self.repo, self.hub = repo, Requests(repo, revision or "main")
        self._headers: dict[str, dict[str, Entry]] = {}
        self._sizes: dict[str, int] = {}                    # bytes of each file
        home = _cache_of(repo)
        self.cache = home / "commits"
        self.revision = self.hub.revision = self._commit(self.hub.revision, home / "refs")
        self.cache /= self.revision
        self.where = self.hub.where = f"{repo} at {self.revision[:12]}"

    def _commit(self, revision: str, refs: Path) -> str:
        """The commit that a branch or tag means now; without a network, what it meant last."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        ref = refs / hashlib.sha256(revision.encode()).hexdigest()[:16]
        known = read_small(ref, 100).decode("utf-8", "replace").strip() if ref.is_file() else None
        try:
            config = self.hub.get("config.json", 0, MAX_BYTES)
            commit = config.commit
        except Unreachable as error:
            if known is None:
                raise Unreachable(f"{error} (There is no folder {self.repo} here, either.)") \
                    from None
            config, commit = None, known
            warnings.warn(f"{error} Going on with commit {commit[:12]}, which {revision} was when "
                          "last seen.", stacklevel=4)
        if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise MinidsError(f"{endpoint()} does not answer as a Hub does: expected a commit in "
                              f"X-Repo-Commit, found {commit!r:.60}")
        path = self.cache / commit / "config.json"
        if config and config.size <= MAX_BYTES and _read_cached(path) != config.data:
            _write_cached(path, config.data)
        if commit != known:
            _make_folder(refs)
            write_text(ref, commit + "\n")
        return commit

    def close(self) -> None:
        """Nothing to do: no file stays open."""

    # ---- files and tensors ----

    def text(self, file: str, limit: int) -> bytes | None:
        """A small file, whole; None where there is none."""
        data = _read_cached(self.cache / file)
        if data is None:
            try:
                answer = self.hub.get(file, 0, limit)
            except Missing:
                return None
            data = answer.data
            if answer.size > limit:
                raise MinidsError(f"{self.where}: {file}: expected at most {limit} bytes, "
                                  f"found {answer.size}")
            _write_cached(self.cache / file, data)
        return bytes(data)

    def index(self) -> dict[str, str]:
        """{name as stored: file name}, from the index or from the header of the single file."""
        text = self.text(INDEX, header.MAX_INDEX)
        if text is None:
            return dict.fromkeys(self.header(SINGLE), SINGLE)
        return header.index(text, f"{self.where}: {INDEX}")

    def header(self, file: str) -> dict[str, Entry]:
        """The entries of a file's header."""
        if file not in self._headers:
            where, path = f"{self.where}: {file}", self.cache / f"{file}.header"
            data = _read_cached(path)              # 8 bytes: the size of the file; then its header
            if data is None:
                answer = self.hub.get(file, 0, HEAD)
                head, size = answer.data, answer.size
                end = header.header_end(head, size, where)
                if end > len(head):
                    head += self.hub.get(file, len(head), end, size).data
                data = size.to_bytes(8, "little") + head[:end]
                header.tensors(head[:end], size, where)
                _write_cached(path, data)
            self._sizes[file] = int.from_bytes(data[:8], "little")
            self._headers[file] = header.tensors(bytes(data[8:]), self._sizes[file], where)
        return self._headers[file]

    def read_headers(self, files) -> None:
        """Have the headers of these files for `header`, several at a time."""
        self._in_parallel(self.header, sorted(set(files) - self._headers.keys()))

    def has(self, file: str, name: str, entry: Entry) -> bool:
        """Whether a tensor's bytes are on this machine."""
        path = self._path(file, name)
        return path.is_file() and path.stat().st_size == entry.end - entry.start + DIGEST

    def fetch(self, wanted: dict[str, dict[str, Entry]], done: Callable[[int], object]) -> None:
        """Bring tensors, {file: {name: entry}}, into the cache, several files at a time.

        Calls `done(n)` after each n bytes. Raises `MinidsError` before the first request where
        there is no room for all of them.
        """
        self._check_room(wanted)
        self._in_parallel(lambda file: self._fetch_from(file, wanted[file], done), list(wanted))

    def read(self, file: str, entries: dict[str, Entry], device="cpu") -> dict[str, torch.Tensor]:
        """{name: its bytes, uint8} of tensors of one file that were fetched."""
        data = {name: self._read_tensor(file, name, entry) for name, entry in entries.items()}
        return {name: torch.frombuffer(bytes_, dtype=torch.uint8).to(device)
                for name, bytes_ in data.items()}

    def _in_parallel(self, job, files: list[str]) -> None:
        if not files:
            return
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                try:
                    for result in [pool.submit(job, file) for file in files]:
                        result.result()
                except BaseException:
                    self.hub.stop.set()     # the others end soon; what they have fetched stays
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self.hub.stop.clear()

    def _check_room(self, wanted: dict[str, dict[str, Entry]]) -> None:
        """Raise `MinidsError` unless the cache can be written and has room for these tensors."""
        try:
            check_writable(self.cache, folder=True)
        except MinidsError as error:
            raise MinidsError(f"{error} with HF_HOME") from None
        need = 0
        for file, entries in wanted.items():
            for name, entry in entries.items():
                if not self.has(file, name, entry):
                    part = _Part(self._path(file, name), entry, self._sizes[file])
                    need += entry.end - entry.start + DIGEST - part.on_disk()
        free = shutil.disk_usage(self.cache.parent).free
        if need > free:
            raise MinidsError(f"{self.cache}: {need:,} bytes are to be fetched, {free:,} are free. "
                              f"What was fetched before is kept. Make room, or set HF_HOME to "
                              f"another place.")

    def _fetch_from(self, file: str, entries: dict[str, Entry], done) -> None:
        from huggingface_hub.utils import WeakFileLock

        folder = self.cache / file
        _make_folder(folder)
        with WeakFileLock(folder / ".lock"):            # another process may fetch the same tensors
            missing = {name: e for name, e in entries.items() if not self.has(file, name, e)}
            for run in header.runs(missing, GAP, PIECE):
                if _bytes(missing[run[0]]) > PIECE:         # it is alone in its run
                    self._fetch_large(file, run[0], missing[run[0]], done)
                else:
                    self._fetch_run(file, {name: missing[name] for name in run}, done)

    def _fetch_run(self, file: str, entries: dict[str, Entry], done) -> None:
        """Neighbours by one request. Each is kept as soon as its bytes have come."""
        start, waiting = min(e.start for e in entries.values()), list(entries)

        def keep(data: bytearray) -> None:
            while waiting and entries[waiting[0]].end - start <= len(data):
                name = waiting.pop(0)
                entry = entries[name]
                _write_cached(self._path(file, name), data[entry.start - start:entry.end - start])
                done(_bytes(entry))

        keep(bytearray())               # tensors without numbers need no request
        if waiting:
            self.hub.get(file, start, entries[waiting[-1]].end, self._sizes[file], keep)

    def _fetch_large(self, file: str, name: str, entry: Entry, done) -> None:
        """One tensor in pieces. Pieces of an interrupted fetch are not fetched again."""
        path, size = self._path(file, name), _bytes(entry)
        part = _Part(path, entry, self._sizes[file])
        try:
            at = part.verified()
            done(at)
            while at < size:
                end = entry.start + min(at + PIECE, size)
                piece = self.hub.get(file, entry.start + at, end, self._sizes[file]).data
                part.append(piece, at)
                at += len(piece)
                done(len(piece))
            part.finish()
        except OSError as error:
            raise _not_written(path, error) from error

    def _read_tensor(self, file: str, name: str, entry: Entry) -> bytearray:
        """The bytes of one tensor, from the cache.

        Bytes that no longer match their digest are fetched again.
        """
        path = self._path(file, name)
        data = _read_cached(path)
        if data is None or len(data) != _bytes(entry):
            warnings.warn(f"{path} is damaged: it is fetched again", stacklevel=4)
            self._check_room({file: {name: entry}})
            path.unlink(missing_ok=True)
            self._fetch_from(file, {name: entry}, lambda _: None)
            data = _read_cached(path)
            if data is None:
                raise MinidsError(f"{path} is damaged as soon as it is written: check the disk")
        return data

    def _path(self, file: str, name: str) -> Path:
        return self.cache / file / name


class _Part:
    """The first pieces of a large tensor: NAME.part, and a note of what they are.

    The note, NAME.part.json, has the size of the file on the Hub, the tensor's place in it, and
    the sha256 of each piece that was written. Bytes that do not match it are not used. (The folder
    is that of the commit.)
    """

    def __init__(self, path: Path, entry: Entry, size: int):
        self.path, self.bytes = path, _bytes(entry)
        self.part = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.source = {"size": size, "start": entry.start, "end": entry.end, "piece": PIECE}
        self.digests: list[str] = []

    def on_disk(self) -> int:
        """Bytes that the part takes on the disk, good or not."""
        return min(self.part.stat().st_size, self.bytes) if self.part.is_file() else 0

    def verified(self) -> int:
        """How many bytes are good."""
        try:
            note = json.loads(read_small(self.note, 2**20))
            digests = note["pieces"] if note["source"] == self.source else []
            with open(self.part, "rb") as part:
                for digest in digests:
                    if hashlib.sha256(part.read(PIECE)).hexdigest() != digest:
                        break
                    self.digests.append(digest)
        except (MinidsError, ValueError, KeyError, TypeError, FileNotFoundError):
            pass                        # no note, or none that can be used: nothing is good
        return min(len(self.digests) * PIECE, self.bytes)

    def append(self, piece: bytearray, at: int) -> None:
        """Write a piece at byte `at`, and note it once it is on the disk."""
        with open(self.part, "r+b" if self.part.exists() else "wb") as part:
            part.truncate(at)
            part.seek(at)
            part.write(piece)
            part.flush()
            os.fsync(part.fileno())
        self.digests.append(hashlib.sha256(piece).hexdigest())
        write_text(self.note, json.dumps({"source": self.source, "pieces": self.digests}))

    def finish(self) -> None:
        """Make the part, which is whole, the tensor's file in the cache."""
        with open(self.part, "r+b") as part:
            part.truncate(self.bytes)
            digest = hashlib.file_digest(part, "sha256").digest()
            part.seek(0, os.SEEK_END)
            part.write(digest)
            part.flush()
            os.fsync(part.fileno())
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)


def _cache_of(repo: str) -> Path:
    """The folder of the cache that belongs to a repository."""
    from huggingface_hub import cached_assets_path

    try:
        assets = os.environ.get("HF_ASSETS_CACHE")
        return cached_assets_path("minids", repo, "commits", assets_dir=assets).parent
    except (OSError, ValueError) as error:
        raise MinidsError(f"cannot make a folder for the cache: {error}. "
                          f"Set HF_HOME to use another place.") from None


def _bytes(entry: Entry) -> int:
    return entry.end - entry.start


def _not_written(path: Path, error: Exception) -> MinidsError:
    reason = getattr(error, "strerror", None) or error
    return MinidsError(f"could not write {path}: {reason}. What was fetched before is kept. "
                       f"Set HF_HOME to use another place.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _write_cached(path: Path, data) -> None:
    """Write bytes, followed by their digest."""
    _make_folder(path.parent)
    try:
        with atomic_write(path) as part, open(part, "wb") as out:
            out.write(data)
            out.write(hashlib.sha256(data).digest())
    except (MinidsError, OSError) as error:
        raise _not_written(path, error.__cause__ or error) from error


def _read_cached(path: Path) -> bytearray | None:
    """The bytes that `_write_cached` wrote; None where there are none or they have changed."""
    try:
        with open(path, "rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None
    digest = bytes(data[-DIGEST:])
    del data[-DIGEST:]
    return data if hashlib.sha256(data).digest() == digest else None
