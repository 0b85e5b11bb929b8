"""Files of a repository on the Hub: chosen bytes of them, and a cache of what was fetched.

Requests go through `huggingface_hub`'s HTTP session, so that HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and proxies work as
there; HTTP ranges, pinned to one commit; cut connections go on where they were cut. The cache is in huggingface_hub's
folder for assets (below HF_HOME): a file for each tensor, its sha256 behind its bytes. Which tensors of a checkpoint are
wanted, and what they mean, is `minids.weights.remote`'s business.
"""

import hashlib
import os
import re
import shutil
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path

from minids.config import MAX_BYTES
from minids.errors import MinidsError
from minids.system.files import atomic_write, write_text
from minids.weights import header
from minids.weights.header import Entry

PIECE = 2**23               # bytes of one request at most; larger tensors come in pieces
GAP = 2**17                 # bytes that are read and dropped rather than asked around
HEAD = 2**18                # bytes of the first request to a file: mostly its whole header
ATTEMPTS, BACKOFF, TIMEOUT, LONGEST = 5, 1.0, 30.0, 120.0   # tries without progress; seconds: first wait, silence, a wait
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
DIGEST = 32                 # bytes of sha256 behind everything in the cache


class Unreachable(MinidsError):
    """No answer, or none that helps, after all attempts."""


class Missing(MinidsError):
    """The repository has no such file."""


class Hub:
    """A checkpoint's files on the Hub at one commit, and the cache of what was fetched of them."""

    def __init__(self, repo: str, revision: str | None):
        if find_spec("huggingface_hub") is None:
            raise MinidsError('reading from the Hub needs huggingface_hub: pip install "minids[real]"')
        from huggingface_hub import cached_assets_path

        if not re.fullmatch(r"\w[\w.\-]{0,95}/\w[\w.\-]{0,95}", repo, re.ASCII):
            raise MinidsError(f"{repo!r} is neither a folder nor a repository's name: expected OWNER/NAME, such as "
                              f"deepseek-ai/DeepSeek-V4-Flash")
        if revision is not None and not re.fullmatch(r"[\w./\-]{1,200}", revision, re.ASCII):
            raise MinidsError(f"{revision!r:.60} is no revision: expected a branch, a tag or a commit")
        self.repo, self.where, self.stop = repo, repo, threading.Event()
        self.headers, self._sizes = {}, {}    # of the files so far: {file: {name: Entry}}, {file: bytes}
        try:
            home = cached_assets_path("minids", repo, "commits", assets_dir=os.environ.get("HF_ASSETS_CACHE")).parent
        except (OSError, ValueError) as error:
            raise MinidsError(f"cannot make a folder for the cache: {error}. HF_HOME names another place.") from None
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
            warnings.warn(f"{error} Going on with commit {commit[:12]}, which {revision} was when last seen.", stacklevel=4)
        if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise MinidsError(f"{_endpoint()} does not answer as a Hub does: expected a commit in X-Repo-Commit, "
                              f"found {commit!r:.60}")
        if config is not None and size <= MAX_BYTES:
            _keep(self.cache / commit / "config.json", config)
        refs.mkdir(parents=True, exist_ok=True)
        write_text(ref, commit + "\n")
        return commit

    # ---- files and tensors ----

    def text(self, file: str, limit: int) -> bytes | None:
        """A small file, whole; None where there is none."""
        found = _recall(self.cache / file)
        if found is None:
            try:
                found, size, _ = self._get(file, 0, limit)
            except Missing:
                return None
            if size > limit:
                raise MinidsError(f"{self.where}: {file}: expected at most {limit} bytes, found {size}")
            _keep(self.cache / file, found)
        return bytes(found)

    def header(self, file: str) -> dict[str, Entry]:
        """What the tensors of a file are and where."""
        if file not in self.headers:
            where, path = f"{self.where}: {file}", self.cache / f"{file}.header"
            found = _recall(path)              # 8 bytes: the size of the file; then its header
            if found is None:
                head, size, _ = self._get(file, 0, HEAD)
                end = header.length(head, size, where)
                if end > len(head):
                    head += self._get(file, len(head), end, size)[0]
                found = size.to_bytes(8, "little") + head[:end]
                header.tensors(head[:end], size, where)
                _keep(path, found)
            self._sizes[file] = int.from_bytes(found[:8], "little")
            self.headers[file] = header.tensors(bytes(found[8:]), self._sizes[file], where)
        return self.headers[file]

    def has(self, file: str, stored: str, entry: Entry) -> bool:
        """Whether a tensor's bytes are on this machine."""
        path = self._path(file, stored)
        return path.is_file() and path.stat().st_size == entry.end - entry.start + DIGEST

    def fetch(self, file: str, entries: dict[str, Entry], done) -> None:
        """Bring tensors of one file into the cache; `done` is told how many bytes came."""
        from huggingface_hub.utils import WeakFileLock

        if all(self.has(file, *item) for item in entries.items()):
            return
        folder = self.cache / file
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".lock"):            # another process may be at it
            missing = {stored: e for stored, e in entries.items() if not self.has(file, stored, e)}
            need, free = sum(e.end - e.start for e in missing.values()), shutil.disk_usage(folder).free
            if need > free:
                raise MinidsError(f"{folder}: {need} bytes are to come, {free} are free. HF_HOME names another place.")
            for run in runs(missing):
                start, end = missing[run[0]].start, max(missing[stored].end for stored in run)
                if end - start > PIECE:
                    self._large(file, run[0], missing[run[0]], done)
                    continue
                data = self._get(file, start, end, self._sizes[file])[0] if end > start else bytearray()
                for stored in run:
                    e = missing[stored]
                    _keep(self._path(file, stored), memoryview(data)[e.start - start:e.end - start])
                    done(e.end - e.start)

    def _large(self, file: str, stored: str, entry: Entry, done) -> None:
        """One tensor in pieces: what a fetch before this one brought stays."""
        path, size = self._path(file, stored), entry.end - entry.start
        part = path.with_name(path.name + ".part")
        at = min(part.stat().st_size // PIECE * PIECE, size) if part.exists() else 0      # a torn last piece comes again
        done(at)
        try:
            with open(part, "r+b" if at else "wb") as out:
                out.truncate(at)
                out.seek(at)
                while at < size:
                    piece = self._get(file, entry.start + at, entry.start + min(at + PIECE, size), self._sizes[file])[0]
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
            raise MinidsError(f"could not write {path}: {error.strerror or error}. What came before is kept.") from error

    def read(self, file: str, stored: str, entry: Entry) -> bytearray:
        """The bytes of one tensor, from the cache; bytes that do not have their digest any more come again."""
        data = _recall(self._path(file, stored))
        if data is None or len(data) != entry.end - entry.start:
            warnings.warn(f"{self._path(file, stored)} is damaged: it is fetched again", stacklevel=4)
            self._path(file, stored).unlink(missing_ok=True)
            self.fetch(file, {stored: entry}, lambda _: None)
            data = _recall(self._path(file, stored))
            if data is None:
                raise MinidsError(f"{self._path(file, stored)} is damaged as soon as it is written: is the disk in order?")
        return data

    def _path(self, file: str, stored: str) -> Path:
        return self.cache / file / stored

    # ---- requests ----

    def _get(self, file: str, start: int, end: int, size: int | None = None) -> tuple[bytearray, int, str | None]:
        """Bytes `start` to `end` (exclusive) of a file, fewer where it ends before; the file's size; its commit.

        `size` is what the file has had so far. Raises `Missing` where the repository has no such file.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session

        where = f"{self.where}: {file}"
        url = hf_hub_url(self.repo, file, revision=self.revision, endpoint=_endpoint())
        data, tries, wait = bytearray(), 0, None
        while True:
            before = len(data)
            ask = {**build_hf_headers(), "Range": f"bytes={start + before}-{end - 1}", "Accept-Encoding": "identity"}
            try:
                with get_session().stream("GET", url, headers=ask, timeout=TIMEOUT) as answer:
                    if answer.status_code in (200, 206):
                        size = _size(answer, start + before, end, size, where)
                        want = min(end, size if size is not None else end) - start
                        for chunk in answer.iter_bytes():
                            if self.stop.is_set():
                                raise MinidsError(f"{where}: stopped")
                            data += chunk
                            if len(data) > want:
                                raise MinidsError(f"{where}: asked for {want} bytes from byte {start}, more came. "
                                                  f"Try again later.")
                        if size is None:            # an answer without a length is whole when it ends
                            size = want = len(data)
                        if len(data) == want:
                            commits = (a.headers.get("X-Repo-Commit") for a in (*answer.history, answer))
                            return data, size, next(filter(None, commits), None)
                        problem = f"the connection ended after {len(data)} of {want} bytes"
                    elif answer.status_code in TRY_AGAIN:
                        problem, wait = f"status {answer.status_code}", _retry_after(answer.headers)
                    else:
                        raise self._refused(answer, file)
            except OfflineModeIsEnabled:
                raise Unreachable(f"{where}: HF_HUB_OFFLINE is set and it is not in the cache.") from None
            except HTTPError as error:
                problem = f"{type(error).__name__}: {error}"[:200]
            tries = 1 if len(data) > before else tries + 1
            if tries >= ATTEMPTS or (wait or 0) > LONGEST:
                later = f"It asks to wait {wait:.0f} s." if wait else "Is there a network? Try again later; what came is kept."
                raise Unreachable(f"{where}: no luck after {tries} attempts at {_endpoint()} ({problem}). {later}")
            if self.stop.wait(BACKOFF * 2 ** (tries - 1) if wait is None else wait):
                raise MinidsError(f"{where}: stopped")
            wait = None

    def _refused(self, answer, file: str) -> Exception:
        """The error for an answer that no second attempt would change."""
        from huggingface_hub import get_token

        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        at = f"{_endpoint()}/{self.repo}"
        if status == 404 and (code == "EntryNotFound" or (not code and file != "config.json")):
            return Missing(f"{self.where} has no {file}: expected a checkpoint of DeepSeek-V4 with all its files")
        if status == 404 and code == "RevisionNotFound":
            return MinidsError(f"{self.where}: no revision {self.revision!r:.60}: expected a branch, a tag or a commit of {at}")
        if status == 401 and not get_token():
            return MinidsError(f"{at} is private, gated or not there (status 401): check the name; if it is right, set "
                               f"HF_TOKEN")
        if status in (401, 403):
            return MinidsError(f"{at} refuses your token (status {status}): expected one that may read it; accept the terms on "
                               f"its page if it has any, and check HF_TOKEN")
        if status == 404:
            return MinidsError(f"no repository {at} (status 404 for {file}): expected OWNER/NAME as on the Hub")
        if status == 416:
            return MinidsError(f"{self.where}: {file} ends before the bytes that its header promises (status 416). It is "
                               f"damaged or has changed; remove {self.cache} if it was read before.")
        return MinidsError(f"{self.where}: {file}: expected status 200 or 206, found {status}")


def runs(entries: dict[str, Entry]) -> list[list[str]]:
    """Names in the order of their bytes, grouped so that one request brings each group: small ones that lie close."""
    groups, start, end = [], 0, 0
    for name, e in sorted(entries.items(), key=lambda item: item[1][2:]):
        if groups and e.start - end <= GAP and e.end - start <= PIECE:
            groups[-1].append(name)
        else:
            groups.append([name])
            start = e.start
        end = e.end
    return groups


def _size(answer, start: int, end: int, size: int | None, where: str) -> int | None:
    """The size of the whole file, by an answer that must be about the bytes from `start`; None where it does not say."""
    if answer.status_code == 206:
        said = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", said)
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if first != start or last != min(end, total) - 1:
            raise MinidsError(f"{where}: asked for bytes {start} to {end - 1}, the answer is about {said!r:.60}. "
                              f"Try again later.")
    else:
        total = answer.headers.get("Content-Length")
        total = int(total) if total and "Content-Encoding" not in answer.headers else None
        if start or (end if total is None else total) > end:
            raise MinidsError(f"{where}: asked for bytes {start} to {end - 1}, the whole file came: {_endpoint()} "
                              f"does not serve ranges. Set HF_ENDPOINT to one that does.")
    if size is not None and total not in (size, None):
        raise MinidsError(f"{where} has {total} bytes now, {size} when its header was read. Start again.")
    return size if total is None else total


def _retry_after(headers) -> float | None:
    """Seconds that the server asks to wait: Retry-After, or the Hub's RateLimit; None if it does not say."""
    said = headers.get("Retry-After", "").strip() or next(iter(re.findall(r"r=0;\s*t=(\d+)", headers.get("RateLimit", ""))), "")
    return float(said) if re.fullmatch(r"\d{1,9}", said) else None


def _endpoint() -> str:
    from huggingface_hub import constants

    said = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if not re.match(r"https?://\w", said):
        raise MinidsError(f"HF_ENDPOINT: expected an address such as https://huggingface.co, found {said!r:.80}")
    return said.rstrip("/")


def _keep(path: Path, data) -> None:
    """Write bytes and their digest behind them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, open(part, "wb") as out:
        out.write(data)
        out.write(hashlib.sha256(data).digest())


def _recall(path: Path) -> bytearray | None:
    """The bytes that `_keep` wrote; None where there are none or they have changed."""
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
