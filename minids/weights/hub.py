"""Files of a repository on the Hub: single tensors of them, and a cache of what was fetched.

Requests go through `huggingface_hub`'s HTTP session, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and
proxies work as they do there. They ask for ranges of bytes of files at one commit, and resume where
a connection was cut. (`huggingface_hub.utils.http_stream_backoff` is not used: it waits for as long
as a server asks, a day if need be, and cannot be stopped while it waits.)

The cache is in huggingface_hub's folder for assets (below HF_HOME): a file for each tensor,
followed by its sha256. For what the tensors mean see `minids.weights.checkpoint`.
"""

import hashlib
import os
import re
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

from minids.config_file import MAX_BYTES
from minids.errors import MinidsError
from minids.system.files import atomic_write, write_text
from minids.weights import header
from minids.weights.header import Entry
from minids.weights.layout import INDEX, SINGLE

WORKERS = 8                 # files at a time
PIECE = 2**23               # bytes of one request at most; larger tensors come in pieces
GAP = 2**17                 # unwanted bytes that are read and dropped rather than split a request
HEAD = 2**18                # bytes of the first request to a file: mostly its whole header
ATTEMPTS = 5                # tries without progress
BACKOFF, TIMEOUT, LONGEST = 1.0, 30.0, 120.0    # seconds: first wait, silence, longest wait
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
DIGEST = 32                 # bytes of sha256 at the end of every file of the cache


class Unreachable(MinidsError):
    """No usable answer after all attempts."""


class Missing(MinidsError):
    """The repository has no such file."""


class HubFiles:
    """The files of a repository at one commit, for `minids.weights.checkpoint.Checkpoint`.

    What was fetched of them is in the cache.
    """

    def __init__(self, repo: str, revision: str | None):
        if find_spec("huggingface_hub") is None:
            raise MinidsError('reading from the Hub needs huggingface_hub: '
                              'pip install "minids[real]"')
        from huggingface_hub import cached_assets_path

        if not re.fullmatch(r"\w[\w.\-]{0,95}/\w[\w.\-]{0,95}", repo, re.ASCII):
            raise MinidsError(f"{repo!r} is neither a folder nor a repository's name: expected "
                              f"OWNER/NAME, such as deepseek-ai/DeepSeek-V4-Flash")
        if revision is not None and not re.fullmatch(r"[\w./\-]{1,200}", revision, re.ASCII):
            raise MinidsError(f"{revision!r:.60} is no revision: expected a branch, a tag "
                              f"or a commit")
        self.repo, self.where, self.stop = repo, repo, threading.Event()
        self._headers, self._sizes = {}, {}     # {file: {name: Entry}}, {file: bytes}
        try:
            assets = os.environ.get("HF_ASSETS_CACHE")
            home = cached_assets_path("minids", repo, "commits", assets_dir=assets).parent
        except (OSError, ValueError) as error:
            raise MinidsError(f"cannot make a folder for the cache: {error}. "
                              f"Set HF_HOME to use another place.") from None
        self.cache = home / "commits"
        self.revision = self._commit(revision or "main", home / "refs")
        self.cache /= self.revision
        self.where = f"{repo} at {self.revision[:12]}"

    def _commit(self, revision: str, refs: Path) -> str:
        """The commit that a branch or tag means now; without a network, what it meant last."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        self.revision = revision
        ref = refs / hashlib.sha256(revision.encode()).hexdigest()[:16]
        try:
            config, size, commit = self._get("config.json", 0, MAX_BYTES)
        except Unreachable as error:
            if not ref.is_file():
                raise
            config, commit = None, ref.read_text(encoding="utf-8").strip()
            warnings.warn(f"{error} Going on with commit {commit[:12]}, which {revision} was when "
                          "last seen.", stacklevel=4)
        if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise MinidsError(f"{_endpoint()} does not answer as a Hub does: expected a commit in "
                              f"X-Repo-Commit, found {commit!r:.60}")
        if config is not None and size <= MAX_BYTES:
            _write_cached(self.cache / commit / "config.json", config)
        refs.mkdir(parents=True, exist_ok=True)
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
                data, size, _ = self._get(file, 0, limit)
            except Missing:
                return None
            if size > limit:
                raise MinidsError(f"{self.where}: {file}: expected at most {limit} bytes, "
                                  f"found {size}")
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
                head, size, _ = self._get(file, 0, HEAD)
                end = header.header_end(head, size, where)
                if end > len(head):
                    head += self._get(file, len(head), end, size)[0]
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

    def fetch(self, wanted: dict[str, dict[str, Entry]], done) -> None:
        """Bring tensors, {file: {name: entry}}, into the cache, several files at a time.

        Calls `done(n)` after each n bytes.
        """
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
                    self.stop.set()     # the others end soon; what they have fetched stays
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self.stop.clear()

    def _fetch_from(self, file: str, entries: dict[str, Entry], done) -> None:
        from huggingface_hub.utils import WeakFileLock

        folder = self.cache / file
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".lock"):            # another process may fetch the same tensors
            missing = {name: e for name, e in entries.items() if not self.has(file, name, e)}
            need = sum(e.end - e.start for e in missing.values())
            free = shutil.disk_usage(folder).free
            if need > free:
                raise MinidsError(f"{folder}: {need} bytes are to be fetched, {free} are free. "
                                  f"Set HF_HOME to use another place.")
            for run in header.runs(missing, GAP, PIECE):
                start, end = missing[run[0]].start, max(missing[name].end for name in run)
                if end - start > PIECE:
                    self._fetch_large(file, run[0], missing[run[0]], done)
                    continue
                data = bytearray()
                if end > start:
                    data = self._get(file, start, end, self._sizes[file])[0]
                for name in run:
                    e = missing[name]
                    part = memoryview(data)[e.start - start:e.end - start]
                    _write_cached(self._path(file, name), part)
                    done(len(part))

    def _fetch_large(self, file: str, name: str, entry: Entry, done) -> None:
        """One tensor in pieces. Pieces of an interrupted fetch are not fetched again."""
        path, size = self._path(file, name), entry.end - entry.start
        part = path.with_name(path.name + ".part")
        # a last piece that is not whole is fetched again
        at = min(part.stat().st_size // PIECE * PIECE, size) if part.exists() else 0
        done(at)
        try:
            with open(part, "r+b" if at else "wb") as out:
                out.truncate(at)
                out.seek(at)
                while at < size:
                    end = entry.start + min(at + PIECE, size)
                    piece = self._get(file, entry.start + at, end, self._sizes[file])[0]
                    out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                    at += len(piece)
                    done(len(piece))
            with open(part, "r+b") as out:
                digest = hashlib.file_digest(out, "sha256").digest()
                out.seek(0, os.SEEK_END)
                out.write(digest)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, path)
        except OSError as error:
            raise MinidsError(f"could not write {path}: {error.strerror or error}. "
                              f"What was fetched before is kept.") from error

    def _read_tensor(self, file: str, name: str, entry: Entry) -> bytearray:
        """The bytes of one tensor, from the cache.

        Bytes that no longer match their digest are fetched again.
        """
        path = self._path(file, name)
        data = _read_cached(path)
        if data is None or len(data) != entry.end - entry.start:
            warnings.warn(f"{path} is damaged: it is fetched again", stacklevel=4)
            path.unlink(missing_ok=True)
            self._fetch_from(file, {name: entry}, lambda _: None)
            data = _read_cached(path)
            if data is None:
                raise MinidsError(f"{path} is damaged as soon as it is written: check the disk")
        return data

    def _path(self, file: str, name: str) -> Path:
        return self.cache / file / name

    # ---- requests ----

    def _get(self, file: str, start: int, end: int,
             size: int | None = None) -> tuple[bytearray, int, str | None]:
        """(bytes `start` to `end` of a file, or to its end; its size; its commit).

        `size` is the file's size so far, if known. Raises `Missing` where the repository has no
        such file.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session

        where = f"{self.where}: {file}"
        url = hf_hub_url(self.repo, file, revision=self.revision, endpoint=_endpoint())
        data, tries = bytearray(), 0
        while True:
            before, wait = len(data), None
            headers = build_hf_headers()
            headers |= {"Range": f"bytes={start + before}-{end - 1}", "Accept-Encoding": "identity"}
            try:
                with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
                    if response.status_code in (200, 206):
                        size = _size(response, start + before, end, size, where)
                        want = min(end, size if size is not None else end) - start
                        self._receive(response, data, want, start, where)
                        if size is None:        # a response without a length is whole when it ends
                            size = want = len(data)
                        if len(data) == want:
                            return data, size, _commit_of(response)
                        problem = f"the connection ended after {len(data)} of {want} bytes"
                    elif response.status_code in TRY_AGAIN:
                        problem = f"status {response.status_code}"
                        wait = _retry_after(response.headers)
                    else:
                        raise self._refused(response, file)
            except OfflineModeIsEnabled:
                raise Unreachable(f"{where}: HF_HUB_OFFLINE is set and it is not in the "
                                  f"cache.") from None
            except HTTPError as error:
                problem = f"{type(error).__name__}: {error}"[:200]
            tries = 1 if len(data) > before else tries + 1
            if tries >= ATTEMPTS or (wait or 0) > LONGEST:
                later = (f"It asks to wait {wait:.0f} s." if wait else
                         "Is there a network? Try again later; what was fetched is kept.")
                raise Unreachable(f"{where}: gave up after {tries} attempts at {_endpoint()} "
                                  f"({problem}). {later}")
            if self.stop.wait(BACKOFF * 2 ** (tries - 1) if wait is None else wait):
                raise MinidsError(f"{where}: stopped")

    def _receive(self, response, data: bytearray, want: int, start: int, where: str) -> None:
        """Append the body of a response to `data`, which may reach `want` bytes."""
        for chunk in response.iter_bytes():
            if self.stop.is_set():
                raise MinidsError(f"{where}: stopped")
            data += chunk
            if len(data) > want:
                raise MinidsError(f"{where}: asked for {want} bytes from byte {start}, more came. "
                                  f"Try again later.")

    def _refused(self, response, file: str) -> Exception:
        """The error for a status that no second attempt would change."""
        from huggingface_hub import get_token

        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        repo = f"{_endpoint()}/{self.repo}"
        if status == 404 and (code == "EntryNotFound" or (not code and file != "config.json")):
            return Missing(f"{self.where} has no {file}: expected a checkpoint of DeepSeek-V4 with "
                           "all its files")
        if status == 404 and code == "RevisionNotFound":
            return MinidsError(f"{self.where}: no revision {self.revision!r:.60}: expected a "
                               f"branch, a tag or a commit of {repo}")
        if status == 401 and not get_token():
            return MinidsError(f"{repo} is private, gated or does not exist (status 401): check "
                               "the name; if it is right, set HF_TOKEN")
        if status in (401, 403):
            return MinidsError(f"{repo} refuses your token (status {status}): expected one that "
                               "may read it; accept the terms on its page if it has any, and check "
                               "HF_TOKEN")
        if status == 404:
            return MinidsError(f"no repository {repo} (status 404 for {file}): expected OWNER/NAME "
                               "as on the Hub")
        if status == 416:
            return MinidsError(f"{self.where}: {file} ends before the bytes that its header "
                               "promises (status 416). It is damaged or has changed; remove "
                               f"{self.cache} if it was read before.")
        return MinidsError(f"{self.where}: {file}: expected status 200 or 206, found {status}")


def _commit_of(response) -> str | None:
    commits = (r.headers.get("X-Repo-Commit") for r in (*response.history, response))
    return next(filter(None, commits), None)


def _size(response, start: int, end: int, size: int | None, where: str) -> int | None:
    """The size of the whole file, from a response that must be about the bytes from `start`.

    None where the response does not say it. `size` is the file's size so far, if known.
    """
    request = f"{where}: asked for bytes {start} to {end - 1}"
    if response.status_code == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        if first != start or last != min(end, total) - 1:
            raise MinidsError(f"{request}, the answer is about {content_range!r:.60}. "
                              f"Try again later.")
    else:
        length = response.headers.get("Content-Length")
        total = int(length) if length and "Content-Encoding" not in response.headers else None
        if start or (end if total is None else total) > end:
            raise MinidsError(f"{request}, the whole file came: {_endpoint()} does not serve "
                              f"ranges. Set HF_ENDPOINT to one that does.")
    if size is not None and total not in (size, None):
        raise MinidsError(f"{where} has {total} bytes now, {size} when its header was read. "
                          f"Start again.")
    return size if total is None else total


def _retry_after(headers) -> float | None:
    """Seconds that the server asks to wait, by Retry-After or the Hub's RateLimit, or None."""
    limits = re.findall(r"r=0;\s*t=(\d+)", headers.get("RateLimit", ""))
    seconds = headers.get("Retry-After", "").strip() or (limits[0] if limits else "")
    return float(seconds) if re.fullmatch(r"\d{1,9}", seconds) else None


def _endpoint() -> str:
    from huggingface_hub import constants

    address = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if not re.match(r"https?://\w", address):
        raise MinidsError(f"HF_ENDPOINT: expected an address such as https://huggingface.co, "
                          f"found {address!r:.80}")
    return address.rstrip("/")


def _write_cached(path: Path, data) -> None:
    """Write bytes, followed by their digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, open(part, "wb") as out:
        out.write(data)
        out.write(hashlib.sha256(data).digest())


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
