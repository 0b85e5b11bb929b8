"""A small Hub: serves a folder as the real one serves a repository, with faults on request."""

import hashlib
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"


class LocalHub:
    """`OWNER/NAME` is the repository, `main` its branch.

    Large files redirect to signed links on another origin, as on the real Hub. A link is good for
    `uses` requests, then it has expired, and the other origin answers 403. `renamed` are former
    names of the repository, which redirect to it. `log` has an entry for each request that is not
    answered by a redirect: (host, file, first byte, last byte, Authorization); `links` the file of
    each link that was given out. `faults` are used up one a request, for requests of shards or,
    with `everywhere`, of any file: None, or a function of the handler and of the answer (status,
    headers, body) that changes the answer, or returns None when it has done everything itself.
    """

    def __init__(self, folder, repo="owner/sample"):
        self.folder, self.repo, self.private = folder, repo, False
        self.log, self.faults, self.everywhere, self.files = [], [], False, {}
        self.links, self.left, self.uses, self.renamed = [], {}, 10**9, ()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def bytes(self, file):
        if file not in self.files and (self.folder / file).is_file():
            self.files[file] = (self.folder / file).read_bytes()
        return self.files.get(file)

    def sent(self, shards=True):
        """(file, first byte, last byte) of the requests for shards' bytes, in their order."""
        return [(file, a, b) for host, file, a, b, _ in self.log
                if host == "localhost" or not shards]

    def answer(self, handler):
        path = unquote(urlsplit(handler.path).path)
        host = handler.headers["Host"].split(":")[0]
        authorization = handler.headers.get("Authorization")
        common = {"X-Repo-Commit": COMMIT}
        if path.startswith("/cdn/"):
            file, common = path.removeprefix("/cdn/"), {}
            signature = urlsplit(handler.path).query.removeprefix("signature=")
            self.left[signature] = self.left.get(signature, 0) - 1
            if self.left[signature] < 0:
                status, headers, body = 403, {}, b"expired"
            else:
                status, headers, body = self.ranged(handler, self.bytes(file), file)
        elif path.lstrip("/").partition("/resolve/")[0] in self.renamed:
            rest = path.partition("/resolve/")[2]
            self.send(handler, 307, {"Location": f"/{self.repo}/resolve/{rest}"}, b"")
            return
        else:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            data = self.bytes(file)
            allowed = authorization == f"Bearer {TOKEN}" or (not self.private and not authorization)
            if not allowed:
                status, headers, body = 403 if authorization else 401, {}, b"no"
            elif repo != self.repo:
                status, headers, body = 404 if authorization else 401, {}, b"no"
                headers["X-Error-Code"] = "RepoNotFound"
            elif revision not in ("main", COMMIT):
                status, headers, body = 404, {"X-Error-Code": "RevisionNotFound"}, b"no"
            elif data is None:
                status, headers, body = 404, {"X-Error-Code": "EntryNotFound"}, b"no"
            elif file.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                status, body = 302, b""
                self.links.append(file)
                signature = str(len(self.links))
                self.left[signature] = self.uses
                signed = f"http://localhost:{self.port}/cdn/{file}?signature={signature}"
                headers = {"Location": signed,
                           "X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"'}
            else:
                status, headers, body = self.ranged(handler, data, file)
        if path.startswith("/cdn/") or status != 302:
            byte_range = handler.headers.get("Range") or "bytes=0-0"
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            self.log.append((host, file, int(first), int(last), authorization))
            if self.faults and (path.startswith("/cdn/") or self.everywhere):
                fault = self.faults.pop(0)
                changed = status, headers, body
                if fault:
                    changed = fault(handler, status, {**common, **headers}, body)
                if changed is None:
                    handler.close_connection = True
                    return
                status, headers, body = changed
        self.send(handler, status, {**common, **headers}, body)

    def ranged(self, handler, data, file):
        headers = {"ETag": f'"{hashlib.sha1(file.encode()).hexdigest()}"', "Accept-Ranges": "bytes"}
        byte_range = handler.headers.get("Range")
        if not byte_range:
            return 200, headers, data
        first, last = map(int, byte_range.removeprefix("bytes=").split("-"))
        if first >= len(data):
            return 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b""
        last = min(last, len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, headers, data[first:last + 1]

    @staticmethod
    def send(handler, status, headers, body):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


# ---- faults ----

def cut(after):
    """The connection ends after some bytes of the body."""
    def fault(handler, status, headers, body):
        LocalHub.send(handler, status, {"Content-Length": str(len(body)), **headers}, body[:after])
        handler.wfile.flush()
        handler.connection.shutdown(2)
    return fault


def status(code, **extra):
    """Another status, with headers (underscores become hyphens)."""
    headers = {name.replace("_", "-"): value for name, value in extra.items()}
    return lambda *_: (code, headers, b"")


def longer(handler, code, headers, body):
    """More bytes than were requested, and an honest length."""
    return code, headers, body + b"more"


def shorter(handler, code, headers, body):
    """Fewer bytes than Content-Range says."""
    return code, headers, body[:-1]


def other_range(handler, code, headers, body):
    """An answer about other bytes."""
    first, _, rest = headers["Content-Range"].removeprefix("bytes ").partition("-")
    return code, {**headers, "Content-Range": f"bytes {int(first) + 1}-{rest}"}, body


def grown(handler, code, headers, body):
    """The file has another size than before."""
    byte_range, _, size = headers["Content-Range"].partition("/")
    return code, {**headers, "Content-Range": f"{byte_range}/{int(size) + 8}"}, body


def everything(hub, file):
    """The whole file, as from a server that ignores ranges."""
    return lambda *_: (200, {}, hub.bytes(file))


@contextmanager
def used(folder, tmp_path, monkeypatch):
    """A `LocalHub` that `minids` uses: with an empty cache, no token, no time lost by waiting, and
    requests for exactly what is wanted."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    from minids.weights import hub, hub_requests

    server = LocalHub(folder)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_requests, "BACKOFF", 0.001)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(hub, "HEAD", 4096)      # headers of the sample take one or two requests
    monkeypatch.setattr(hub, "GAP", 0)
    close_session()
    yield server
    server.close()
    close_session()
