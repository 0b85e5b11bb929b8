"""Where things are: the clone's folders and the learner's own.

The course lives in a clone of the repository and the package is installed from there
(`pip install -e .`), so corpus, tokenizer and checkpoints are in `data/` beside the package. Three
environment variables override this: `MINIDS_DATA` names another data folder, `MINIDS_HOME` another
place for progress (otherwise `~/.minids`), and `MINIDS_WORK` another place for the learner's copies
of the lessons (otherwise `work/` in the clone). What can be made again is in the user's cache.
"""

import os
import sys
from pathlib import Path

from minids.errors import MinidsError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MINIDS_DATA") or ROOT / "data")
NOTEBOOKS = ROOT / "notebooks"


def data(*parts: str) -> Path:
    """The path of a shipped file: `data("tokenizer", "tokenizer.json")`.

    Raises `MinidsError` if it is missing.
    """
    path = DATA.joinpath(*parts)
    if path.exists():
        return path
    if not DATA.is_dir():
        raise MinidsError(f"no data folder at {DATA}: install minids from a clone with "
                          f"`pip install -e .`, or set MINIDS_DATA to the clone's data folder")
    raise MinidsError(f"{path} is missing: expected it in the clone; `git status` shows deleted "
                      f"files, `git checkout -- data` brings them back")


def notebooks() -> Path:
    """The clone's notebooks folder. Raises `MinidsError` where minids is not used from a clone."""
    if not NOTEBOOKS.is_dir():
        raise MinidsError(f"no notebooks at {NOTEBOOKS}: clone the repository and install it with "
                          f"`pip install -e .`")
    return NOTEBOOKS


def home() -> Path:
    """The learner's own folder, made when it is missing; progress is kept here."""
    try:
        path = Path(os.environ.get("MINIDS_HOME") or Path.home() / ".minids")
    except RuntimeError:        # no HOME, and no entry in the list of users
        raise MinidsError("this user has no home folder. Set MINIDS_HOME to a folder you can "
                          "write to") from None
    return _made(path, "MINIDS_HOME")


def cache() -> Path | None:
    """The user's folder of files that can be made again: ~/.cache/minids on Linux. It may be
    missing. None where the user has no home."""
    try:
        if sys.platform == "win32":
            user = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
        elif sys.platform == "darwin":
            user = Path.home() / "Library/Caches"
        else:
            user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return user / "minids"


def work() -> Path:
    """The folder of the learner's copies of the lessons, made when it is missing.

    It is `MINIDS_WORK`, or `work/` in a clone of the learner's own, or `work/` in `home()` where
    the clone is read-only or belongs to someone else.
    """
    if named := os.environ.get("MINIDS_WORK"):
        path = Path(named).absolute()
    elif NOTEBOOKS.is_dir() and _own(ROOT):
        path = ROOT / "work"
    else:
        path = home() / "work"
    path = _made(path, "MINIDS_WORK")
    if not os.access(path, os.W_OK):
        raise MinidsError(f"cannot write to {path}. Set MINIDS_WORK to a folder you can write to")
    return path


def _own(folder: Path) -> bool:
    """Whether a folder can be written to and is this user's. The superuser owns everything."""
    user = getattr(os, "getuid", lambda: 0)()           # Windows has none
    return os.access(folder, os.W_OK) and user in (0, folder.stat().st_uid)


def _made(path: Path, variable: str) -> Path:
    """`path`, made when it is missing. The message of a failure names the variable to set."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinidsError(f"cannot make the folder {path}: {error.strerror}. "
                          f"Set {variable} to a folder you can write to") from error
    return path
