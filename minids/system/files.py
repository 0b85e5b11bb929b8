"""Files that are whole or absent, and checks of where they can be written.

Everything that `minids` writes goes to a temporary file beside the real one and is renamed when it
is complete, so that an interrupt, a crash or a full disk never leaves half a file under the real
name.
"""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from minids.errors import MinidsError


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; on success it replaces `path`, else it is removed.

    Raises `MinidsError` where the operating system refuses (no such folder, no space, no
    permission), and where `path` is a device or a pipe, which a file must not replace.
    """
    path = Path(path)
    _refuse_what_is_no_file(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MinidsError(f"could not write {path}: {error.strerror or error}. "
                          f"Nothing was changed.") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Write `text` as UTF-8, atomically; the same bytes on every system."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def read_small(path, limit: int) -> bytes:
    """A file of at most `limit` bytes; `MinidsError` for a larger one, before it takes memory."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise MinidsError(f"{path}: expected at most {limit} bytes, found {size}")
            return file.read(size)
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None


def check_writable(path, folder: bool = False) -> None:
    """Raise `MinidsError` unless a file can be written at `path`, or with `folder` files in it.

    To be called before long work. A folder may be missing, and so may its parents; the folder of a
    file may not. Nothing is created.
    """
    path = Path(path)
    where = path if folder else path.parent
    if not folder:
        _refuse_what_is_no_file(path)
    try:
        while folder and not where.exists():
            where = where.parent
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        what = f"cannot use the folder {path}" if folder else f"cannot write {path}"
        raise MinidsError(f"{what}: {error.strerror or error}; choose another one") from None


def _refuse_what_is_no_file(path: Path) -> None:
    """Raise `MinidsError` if there is a device, a pipe or the like at `path`."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise MinidsError(f"cannot write {path}: expected a new file or one to replace, found a "
                          f"device or a pipe; choose another name")
