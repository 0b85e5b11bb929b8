"""Token ids that were computed once: files in the user's cache, so that a run starts at once.

The name of a file holds a digest of all that decides about its ids: the shipped text, the
tokenizer, the source code of `minids.data`, and what was asked for. When one of them changes, the
name does, and the ids are computed anew. The file begins with a digest of its ids, so a damaged one
is not believed. Where nothing can be written, ids are computed in each run.
"""

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.system import paths
from minids.system.files import atomic_write

DIGEST = 32         # bytes of sha256
FILES = 12          # at most so many are kept: those written last


def cached_ids(what: str, tokenizer: Tokenizer, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The ids, uint16, that `compute()` returns, read from a file if it has returned them before.

    `what` describes them: a name and all parameters, such as "mixture train 60000".
    """
    user = paths.cache()
    if user is None:
        return compute()
    key = hashlib.sha256(f"{what} {sources()} {tokenizer.digest()}".encode()).hexdigest()
    path = user / "tokens" / f"{key[:32]}.ids"
    ids = read(path)
    if ids is None:
        ids = compute()
        write(path, ids)
    return ids


def read(path: Path) -> np.ndarray | None:
    """The ids in a file; None if there is none, or its digest is not that of its ids."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) % 2 or data[:DIGEST] != hashlib.sha256(data[DIGEST:]).digest():
        return None
    return np.frombuffer(data, "<u2", offset=DIGEST).astype(np.uint16)


def write(path: Path, ids: np.ndarray) -> None:
    """Keep the ids in a file, if it can be written, and remove files that are old."""
    data = ids.astype("<u2").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_bytes(hashlib.sha256(data).digest() + data)
        files = sorted(path.parent.glob("*.ids"), key=lambda file: file.stat().st_mtime)
        for file in files[:-FILES]:
            file.unlink()
    except (OSError, MinidsError):      # a full disk, a folder of someone else
        pass


@cache
def sources() -> str:
    """A digest of the code and the text that ids come from, and of the versions they depend on."""
    digest = hashlib.sha256(f"{platform.python_version_tuple()[:2]} {np.__version__} "
                            f"{version('tokenizers')}".encode())
    folder = Path(__file__).parent
    text = paths.DATA / "text" / "documents.jsonl.xz"
    for path in [*sorted(folder.rglob("*.py")), text]:
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()
