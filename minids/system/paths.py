"""Where things are: the clone's folders and the learner's own folder.

The course lives in a clone of the repository and the package is installed from there
(`pip install -e .`), so corpus, tokenizer and checkpoints are in `data/` beside the package. Two
environment variables override this: `MINIDS_DATA` names another data folder, `MINIDS_HOME` another
place for progress (otherwise `~/.minids`).
"""

import os
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
    except RuntimeError:                # HOME is not set, and the system does not know this user
        raise MinidsError("no home folder is known for this user: set MINIDS_HOME to a folder you "
                          "can write to") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinidsError(f"cannot make the folder {path}: {error.strerror}. "
                          f"Set MINIDS_HOME to a folder you can write to") from error
    return path
