"""A checkpoint folder that is written whole or not at all."""

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from minids.errors import MinidsError

# what a folder that `save` replaces may hold
OURS = re.compile(r"((generation_)?config|tokenizer(_config)?|model.safetensors.index)\.json|model(-\d+-of-\d+)?\.safetensors")


@contextmanager
def whole_folder(path):
    """Yield an empty folder beside `path`; on success it takes `path`'s place, on any error it is removed.

    A checkpoint that was there before is moved aside for the moment of the exchange; should the process be killed just
    then, the next `save` or `load` moves it back. Raises `MinidsError` where the operating system refuses, and where
    `path` holds anything that is not a checkpoint's.
    """
    path = Path(path).resolve()
    part, old = path.with_name(f".{path.name}.part"), _old(path)
    _recover(path)
    if path.exists() and not path.is_dir():
        raise MinidsError(f"cannot save to {path}: it is a file; expected a new folder or a checkpoint to replace")
    foreign = sorted(p.name for p in path.iterdir() if not OURS.fullmatch(p.name)) if path.exists() else []
    if foreign:
        raise MinidsError(f"cannot save to {path}: it holds {foreign[0]}, which is not part of a checkpoint; "
                          f"expected a new folder or a checkpoint to replace")
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
                _recover(path)
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


def _recover(path: Path) -> None:
    """Move back what a `save` that was killed in the middle of the exchange had moved aside."""
    path = Path(path).resolve()
    if path.name and not path.exists() and _old(path).is_dir():
        os.rename(_old(path), path)
