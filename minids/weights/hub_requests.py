"""Requests to the Hub for bytes of a repository's files: redirects, retries, and what can go wrong.

Requests go through `huggingface_hub`'s HTTP session, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and
proxies work as they do there. They ask for ranges of bytes of files at one commit, and resume where
a connection was cut. (`huggingface_hub.utils.http_stream_backoff` is not used: it waits for as long
as a server asks, a day if need be, and cannot be stopped while it waits.)

The Hub redirects requests for large files to signed links on other hosts, which expire after some
time. A link is used again for the next range of its file, without the token, until its host
refuses it; then the Hub is asked for a new one. For the cache of what was fetched see
`minids.weights.hub`.
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

from minids.errors import MinidsError

ATTEMPTS = 5                # tries without progress
BACKOFF, TIMEOUT, LONGEST = 1.0, 30.0, 120.0    # seconds: first wait, silence, longest wait
# 520 to 524: a content network did not reach the server that it stands for
TRY_AGAIN = (408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
EXPIRED = (401, 403, 410)   # what a host answers to a link that is no longer valid


class Unreachable(MinidsError):
    """No usable answer after all attempts."""


class Missing(MinidsError):
    """The repository has no such file."""


class _Again(Exception):
    """An attempt that may be repeated: what went wrong, and seconds to wait if the server asks."""

    def __init__(self, problem: str, wait: float | None = None):
        super().__init__(problem)
        self.problem, self.wait = problem, wait


class _Expired(Exception):
    """Another host than the Hub refuses the Hub's link to it."""


@dataclass
class Answer:
    """Bytes `start` to `end` of a file, or to its end, as far as they have come.

    `size` is the size of the whole file, `commit` the commit that it is of; None if not known.
    """

    file: str
    start: int
    end: int
    size: int | None = None
    commit: str | None = None
    data: bytearray = field(default_factory=bytearray)


class Requests:
    """Bytes of the files of a repository at one revision.

    `where` names the repository in messages. While `stop` is set, requests end with `MinidsError`.
    """

    def __init__(self, repo: str, revision: str):
        if find_spec("huggingface_hub") is None:
            raise MinidsError('reading from the Hub needs huggingface_hub: '
                              'pip install "minids[real]"')
        if not re.fullmatch(r"\w[\w.\-]{0,95}/\w[\w.\-]{0,95}", repo, re.ASCII):
            raise MinidsError(f"nothing is at {repo!r:.200}, and it is no repository's name: "
                              "expected a folder, or OWNER/NAME such as "
                              "deepseek-ai/DeepSeek-V4-Flash")
        if not re.fullmatch(r"[\w./\-]{1,200}", revision, re.ASCII):
            raise MinidsError(f"{revision!r:.60} is no revision: expected a branch, a tag "
                              f"or a commit")
        self.repo, self.revision, self.where, self.stop = repo, revision, repo, threading.Event()
        self._links: dict[str, str] = {}        # {file: signed link on another host}

    def get(self, file: str, start: int, end: int, size: int | None = None,
            arrived: Callable[[bytearray], None] = lambda _: None) -> Answer:
        """Bytes `start` to `end` of a file, or to its end.

        `size` is the file's size so far, if known. `arrived` is called with what has come, each
        time that more has. Raises `Missing` where the repository has no such file, `Unreachable`
        where no attempt brought more bytes.
        """
        answer, tries, refused = Answer(file, start, end, size), 0, False
        where = f"{self.where}: {file}"
        while True:
            before = len(answer.data)
            try:
                self._attempt(answer, arrived)
                return answer
            except _Expired as error:
                self._links.pop(file, None)
                if refused and len(answer.data) == before:
                    raise MinidsError(f"{where}: {error}, also to a new one. Try again later; "
                                      f"what was fetched is kept.") from None
                refused = True
                continue                        # the Hub gives a new link, at once
            except _Again as error:
                problem, wait = error.problem, error.wait
            progress = len(answer.data) > before
            tries, refused = 1 if progress else tries + 1, refused and not progress
            if tries >= ATTEMPTS or (wait or 0) > LONGEST:
                later = (f"It asks to wait {wait:.0f} s." if wait else
                         "Is there a network? Try again later; what was fetched is kept.")
                raise Unreachable(f"{where}: gave up after {tries} attempts at {endpoint()} "
                                  f"({problem}). {later}")
            if self.stop.wait(BACKOFF * 2 ** (tries - 1) if wait is None else wait):
                raise MinidsError(f"{where}: stopped")

    def _attempt(self, answer: Answer, arrived: Callable[[bytearray], None]) -> None:
        """One request for the bytes that are still missing."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session

        file, at = answer.file, answer.start + len(answer.data)
        link = self._links.get(file)
        url = link or hf_hub_url(self.repo, file, revision=self.revision, endpoint=endpoint())
        headers = build_hf_headers(token=False if link else None)   # the token is for the Hub alone
        headers |= {"Range": f"bytes={at}-{answer.end - 1}", "Accept-Encoding": "identity"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
                first, last = (response.history or [response])[0].url, response.url
                elsewhere = bool(link) or (first.host, first.port) != (last.host, last.port)
                status = response.status_code
                if status in TRY_AGAIN:
                    raise _Again(f"status {status}", _retry_after(response.headers))
                if status in EXPIRED and elsewhere:
                    raise _Expired(f"{last.host} refuses the Hub's link to it (status {status})")
                if status not in (200, 206):
                    raise self._refused(response, file)
                if elsewhere:
                    self._links[file] = str(last)
                self._receive(response, answer, arrived)
        except OfflineModeIsEnabled:
            raise Unreachable(f"{self.where}: {file}: HF_HUB_OFFLINE is set and it is not in the "
                              f"cache.") from None
        except HTTPError as error:
            raise _Again(f"{type(error).__name__}: {error}"[:200]) from None

    def _receive(self, response, answer: Answer, arrived: Callable[[bytearray], None]) -> None:
        """Append the body of a response to the bytes that came before."""
        data, start, where = answer.data, answer.start, f"{self.where}: {answer.file}"
        answer.size = _size(response, start + len(data), answer.end, answer.size, where)
        want = (answer.end if answer.size is None else min(answer.end, answer.size)) - start
        for chunk in response.iter_bytes():
            if self.stop.is_set():
                raise MinidsError(f"{where}: stopped")
            data += chunk
            if len(data) > want:
                raise MinidsError(f"{where}: asked for {want} bytes from byte {start}, more came. "
                                  f"Try again later.")
            arrived(data)
        if answer.size is None:         # a response without a length is whole when it ends
            answer.size = want = len(data)
        if len(data) != want:
            raise _Again(f"the connection ended after {len(data)} of {want} bytes")
        commits = (r.headers.get("X-Repo-Commit") for r in (*response.history, response))
        answer.commit = next(filter(None, commits), None)

    def _refused(self, response, file: str) -> MinidsError:
        """The error for a status that no second attempt would change."""
        from huggingface_hub import get_token

        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        repo = f"{endpoint()}/{self.repo}"
        if status == 404 and (code == "EntryNotFound" or (not code and file != "config.json")):
            return Missing(f"{self.where} has no {file}: expected a checkpoint of DeepSeek-V4 with "
                           "all its files")
        if status == 404 and code == "RevisionNotFound":
            return MinidsError(f"{self.where}: no revision {self.revision!r:.60}: expected a "
                               f"branch, a tag or a commit of {repo}")
        if status == 401 and not get_token():
            return MinidsError(f"{repo} is private, gated or does not exist (status 401), and "
                               f"there is no folder {self.repo} here: check the name; if it is "
                               "right, set HF_TOKEN")
        if status in (401, 403):
            return MinidsError(f"{repo} refuses your token (status {status}): expected one that "
                               "may read it; accept the terms on its page if it has any, and check "
                               "HF_TOKEN")
        if status == 404:
            return MinidsError(f"no repository {repo} (status 404 for {file}), and no folder "
                               f"{self.repo} here: expected one of them")
        if status == 416:
            return MinidsError(f"{self.where}: {file} ends before the bytes that its header "
                               "promises (status 416). It is damaged or has changed. Fetch it "
                               "again, with HF_HOME set to a new folder.")
        return MinidsError(f"{self.where}: {file}: expected status 200 or 206, found {status}")


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
            raise MinidsError(f"{request}, the whole file came: {endpoint()} does not serve "
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


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the official one."""
    from huggingface_hub import constants

    address = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if not re.match(r"https?://\w", address):
        raise MinidsError(f"HF_ENDPOINT: expected an address such as https://huggingface.co, "
                          f"found {address!r:.80}")
    return address.rstrip("/")
