"""The notebooks as they were built, whatever became of the files since.

A learner may open a built notebook by mistake: JupyterLab rewrites its metadata as it saves, and
cells may be edited. A built notebook therefore carries a digest of its cells. A file that is no
longer as it was built is judged by the version that git has, and the file itself is left alone.
"""

import hashlib
import os
import subprocess
from pathlib import Path

import nbformat


def digest(notebook) -> str:
    """A hash of the sources of all cells; a built notebook has its own in its metadata."""
    text = "\0".join(f"{cell.cell_type}\n{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_built(notebook) -> bool:
    """Whether a notebook is as it was built: not opened and saved in between, not edited."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    in_order = list(range(1, len(counts) + 1))
    return (notebook.metadata.get("minids", {}).get("digest") == digest(notebook)
            and notebook.metadata.get("language_info") == {"name": "python"}
            and counts in (in_order, [None] * len(counts)))


def read(path: Path):
    """The notebook at `path`; None if it is missing or not readable."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError):
        return None


def from_git(path: Path):
    """The notebook that the last commit has at `path`; None without git, or if it has none."""
    path = Path(path)
    # A hook sets GIT_DIR and the like, which would name another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, env=env,
                              capture_output=True)
        return nbformat.reads(done.stdout.decode(), as_version=4) if not done.returncode else None
    except (OSError, ValueError, nbformat.ValidationError):
        return None


def judged(path: Path):
    """(notebook, notice) for tests to judge: the file if it is as built, else what git has.

    `notice` is None or one line that says what was found. The notebook is None where there is
    neither a file nor a version in git, and where a file was changed and there is no git.
    """
    notebook = read(path)
    if notebook and as_built(notebook):
        return notebook, None
    committed = from_git(path)
    if notebook == committed:
        return notebook, None
    name = f"{path.parent.name}/{path.name}"
    if not path.exists():
        return committed, f"{name} is missing; `git checkout -- {name}` brings it back"
    changed = f"{name} was changed by hand"
    if committed is None:
        return None, f"{changed} and is not judged: there is no version of it in git"
    return committed, (f"{changed}; its cells are judged as shipped (your work belongs in work/, "
                       "where `make lab` puts it)")


def edited(path: Path) -> bool:
    """Whether the cells of the file at `path` differ from those that were built there.

    A file that is no notebook counts as edited, a missing one does not.
    """
    if not path.exists():
        return False
    notebook = read(path)
    if notebook is None:
        return True
    built = notebook.metadata.get("minids", {}).get("digest")
    if built is None and (committed := from_git(path)):
        built = digest(committed)       # built before notebooks had a digest
    return built != digest(notebook)


def kept_as(path: Path) -> Path:
    """Where an edited notebook is kept when it is built anew: the first free NN_name.mine.ipynb."""
    path, number = Path(path), 1
    other = path.with_name(f"{path.stem}.mine.ipynb")
    while other.exists():
        number += 1
        other = path.with_name(f"{path.stem}.mine-{number}.ipynb")
    return other


def keep(path: Path) -> Path:
    """Rename an edited notebook out of the way; returns its new path."""
    return Path(path).rename(kept_as(path))
