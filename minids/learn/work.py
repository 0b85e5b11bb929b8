"""A learner's own copies of the lessons, in `work/` (see `minids.system.paths.work`).

Beside the copies, `.minids/` keeps each lesson as it was when the copy was made or last updated.
A cell that differs from it is the learner's. Nothing that a learner wrote is overwritten or
deleted: what has no place any more is kept in a file beside the copy.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import nbformat

from minids.errors import MinidsError
from minids.learn import carry, course
from minids.system import paths
from minids.system.files import atomic_write, write_text

LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
RELOAD = "If a lesson is open in JupyterLab: File, Reload Notebook from Disk."


def lessons(names=None) -> list[str]:
    """The names of the shipped lessons in order; `names` selects some by number ("07" or "7"),
    name or path. Raises `MinidsError` for a name that fits no lesson."""
    known = sorted(path.stem for path in paths.notebooks().glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return known
    chosen = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb").removesuffix(".py")
        stem = stem.zfill(2) if stem.isdecimal() else stem
        fits = [lesson for lesson in known if lesson == stem] or [
            lesson for lesson in known if lesson.startswith(f"{stem}_")]
        if not fits or not stem:
            raise MinidsError(f"no lesson {name!r}: {expected(known)}")
        chosen += fits
    return list(dict.fromkeys(chosen))


def expected(known: list[str]) -> str:
    """What a lesson may be called, for messages."""
    if not known:
        return "there are no lessons"
    first, last = known[0], known[-1]
    return f"expected a number from {first[:2]} to {last[:2]}, or a name such as {last}"


def prepare(say=print) -> Path:
    """Make the learner's copies: those that are missing, and those of older lessons in which
    nothing was changed. Returns their folder, and says what a learner should know."""
    folder, waiting = paths.work(), []
    for copy in copies(folder):
        copy.take_over_edits(say)
        if copy.mine is None:
            copy.start(say)
        elif copy.is_old() and copy.is_changed():
            waiting.append(copy.name)
        elif copy.is_old():
            copy.write(copy.shipped)
    if waiting:
        say(f"Newer versions of {', '.join(waiting)} are there. `minids course update` brings them "
            f"and keeps your answers.")
    copy_linked_files(folder)
    return folder


def update(names=None, say=print) -> None:
    """Bring the newest version of some lessons (default: all) into the learner's copies, and keep
    their answers. Says for each what was done."""
    folder, reload = paths.work(), False
    for copy in copies(folder, names):
        copy.take_over_edits(say)
        if copy.mine is None:
            copy.start(say)
            say(f"{copy.name}: your copy is {copy.path}")
        elif copy.is_old():
            copy.update(say)
            reload = True
        else:
            say(f"{copy.name}: up to date")
    if reload:
        say(RELOAD)
    copy_linked_files(folder)


def reset(name: str, say=print) -> None:
    """Start a lesson again. The old copy is kept beside the new one."""
    copy, = copies(paths.work(), lessons([name])[:1])
    kept = keep(copy.path.read_bytes(), copy.path, "old") if copy.path.exists() else None
    copy.write(copy.shipped)
    say(f"{copy.name}: started again"
        + (f"; your old copy is {kept.name}. {RELOAD}" if kept else ""))


def status(say=print) -> None:
    """Say for each lesson whether the learner changed it, and whether a newer one is there."""
    folder = paths.work()
    say(f"Your copies are in {folder}")
    for copy in copies(folder):
        if copy.mine is None:
            text = "your copy cannot be read" if copy.path.exists() else "no copy yet"
        else:
            text = "changed by you" if copy.is_changed() else "as shipped"
            text += "; a newer version is there: minids course update" if copy.is_old() else ""
        say(f"{copy.name:32} {text}")


def copies(folder: Path, names=None) -> list:
    """The learner's copies of some lessons (default: all)."""
    changed = changed_files()
    return [Copy(name, folder, changed) for name in lessons(names)]


class Copy:
    """The learner's copy of one lesson.

    `mine` is the notebook, None if it is missing or cannot be read. `base` is the shipped lesson
    that it came from, None if that is not known. `shipped` is the lesson as it is shipped now.
    """

    def __init__(self, name: str, folder: Path, changed: set[str]):
        self.name = name
        self.path = folder / f"{name}.ipynb"
        self.records = folder / ".minids"
        self.mine = read(self.path)
        self.base = read(self.records / f"{name}.ipynb")
        self.shipped, self.edited = shipped(name, changed)

    def is_old(self) -> bool:
        """Whether the shipped lesson differs from the one that the copy came from."""
        return self.base != self.shipped

    def is_changed(self) -> bool:
        """Whether the learner changed, added or removed a cell."""
        return texts(self.mine) != texts(self.base or self.shipped)

    def holds_work(self) -> bool:
        """Whether the file of the copy holds what only the learner has."""
        return self.path.exists() and (self.mine is None or self.is_changed())

    def write(self, notebook) -> None:
        """Write the copy, and then the version that it now comes from."""
        self.records.mkdir(parents=True, exist_ok=True)
        write_text(self.path, as_text(notebook))
        write_text(self.records / f"{self.name}.ipynb", as_text(self.shipped))
        self.mine, self.base = notebook, self.shipped

    def start(self, say) -> None:
        """Make the copy from the shipped lesson. A file that cannot be read is kept."""
        if self.path.exists():
            kept = keep(self.path.read_bytes(), self.path, "unreadable")
            say(f"{self.name}: your copy could not be read. It is kept as {kept.name}, and the "
                f"lesson starts again.")
        before = self.under_another_number()
        if before is None:
            self.write(self.shipped)
        else:
            kept = keep(before.read_bytes(), before, "old")
            self.bring(read(self.records / before.name), read(before), say)
            before.unlink()
            say(f"{before.stem} is now {self.name}, with your answers. Your old copy is kept as "
                f"{kept.name}.")

    def under_another_number(self):
        """The path of a copy from when the lesson had another number; None if there is none."""
        subject, known = self.name.partition("_")[2], lessons()
        found = [path for path in self.path.parent.glob(f"[0-9][0-9]_{subject}.ipynb")
                 if path.stem not in known and read(path)]
        return found[0] if found else None

    def update(self, say) -> None:
        """Bring the shipped lesson, with the learner's answers."""
        self.records.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.records / f"{self.name}.before-update.ipynb") as part:
            part.write_bytes(self.path.read_bytes())
        answers = ", with your answers" if self.is_changed() else ""
        self.bring(self.base, self.mine, say)
        say(f"{self.name}: updated{answers}")

    def bring(self, base, mine, say) -> None:
        """Write the shipped lesson with the answers in `mine`, which came from `base`."""
        notebook, unplaced = carry.merge(base, mine, self.shipped)
        kept = self.keep_unplaced(unplaced)
        self.write(notebook)
        if kept:
            say(f"{self.name}: {len(unplaced)} of your cells had no place in it, see {kept.name}")

    def take_over_edits(self, say) -> None:
        """Where the learner edited the shipped notebook: let the copy begin with it.

        What was taken over once is remembered, in `.minids/NAME.edited`.
        """
        if self.edited is None:
            return
        where, memory = f"notebooks/{self.name}.ipynb", self.records / f"{self.name}.edited"
        notebook = parse(self.edited)
        content = json.dumps(texts(notebook)) if notebook else self.edited.decode(errors="replace")
        if not memory.exists() or memory.read_text(encoding="utf-8") != content:
            if notebook is None or self.holds_work():
                kept = keep(self.edited, self.path, "from-notebooks")
                reason = "cannot be read" if notebook is None else \
                    "was edited, and so was your own copy"
                say(f"{where} {reason}. It is kept as {kept}.")
            else:
                merged, unplaced = carry.merge(self.shipped, notebook, self.shipped)
                self.keep_unplaced(unplaced)
                self.write(merged)
                say(f"{where} was edited. What you wrote is now in your own copy, {self.path}.")
            self.records.mkdir(parents=True, exist_ok=True)
            write_text(memory, content)
        say(f"To restore the shipped lesson, so that `git pull` works: git checkout -- {where}")

    def keep_unplaced(self, unplaced) -> Path | None:
        """Write cells that have no place to a notebook beside the copy; returns its path."""
        if not unplaced:
            return None
        beside = nbformat.v4.new_notebook(metadata=self.shipped.metadata)
        beside.cells = [nbformat.v4.new_markdown_cell(
            f"Cells of yours that had no place in a newer version of {self.name}.")]
        for item in unplaced:
            beside.cells += [nbformat.v4.new_markdown_cell(item.reason),
                             nbformat.from_dict({**item.cell, "id": f"cell-{len(beside.cells)}"})]
        return keep(as_text(beside).encode(), self.path, "unplaced")


def shipped(name: str, changed: set[str]) -> tuple:
    """(the lesson as shipped, the bytes of its file if a learner edited it, or else None).

    `changed` are the files in `notebooks/` that differ from git's. Of an edited lesson, git has the
    shipped version. A notebook that agrees with its source was not edited but built anew, and so
    was one whose source has changed as well. Raises `MinidsError` for a damaged file without git.
    """
    file = paths.notebooks() / f"{name}.ipynb"
    raw = file.read_bytes()
    notebook, source = parse(raw), paths.notebooks() / "source" / f"{name}.py"
    if file.name in changed and source.name not in changed:
        built = notebook is not None and source.exists() and \
            texts(notebook) == texts(course.edition(source, "learner"))
        original = None if built else parse(git("show", f"HEAD:./notebooks/{file.name}"))
        if original is not None:
            return original, None if texts(original) == texts(notebook) else raw
    if notebook is None:
        raise MinidsError(f"{file} is not a notebook that can be read: "
                          f"`git checkout -- notebooks/{file.name}` restores it")
    return notebook, None


def changed_files() -> set[str]:
    """The names of the files in `notebooks/` that differ from git's.

    None where git cannot tell, and none in a course that belongs to someone else.
    """
    if not os.access(paths.notebooks(), os.W_OK):
        return set()
    lines = git("diff", "--relative", "--name-only", "HEAD", "--", "notebooks").decode()
    return {Path(line).name for line in lines.splitlines()}


def git(*words: str) -> bytes:
    """What a git command prints in the clone; nothing if it fails or there is no git."""
    try:
        return subprocess.run(["git", "--no-optional-locks", "-C", str(paths.ROOT), *words],
                              capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def read(path: Path):
    """The notebook at `path`; None if it is missing or is not a notebook."""
    try:
        return parse(path.read_bytes()) if path.exists() else None
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None


def parse(raw: bytes):
    """A notebook from the bytes of its file; None for anything else, such as half of one."""
    try:
        notebook = nbformat.reads(raw.decode("utf-8"), as_version=4)
        return notebook if texts(notebook) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError,
            nbformat.ValidationError):      # nbformat raises whatever it stumbles over
        return None


def texts(notebook) -> list | None:
    """What a learner can change in a notebook: (type, text) of its cells that are not empty."""
    return notebook and [[cell.cell_type, cell.source] for cell in notebook.cells
                         if cell.source.strip()]


def as_text(notebook) -> str:
    """The text of a notebook's file."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def keep(content: bytes, path: Path, word: str) -> Path:
    """Write `content` beside `path` as NAME.word-1.ipynb, or with the next number that is free."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.{word}-{number}.ipynb")).exists():
        number += 1
    with atomic_write(kept) as part:
        part.write_bytes(content)
    return kept


def copy_linked_files(folder: Path) -> None:
    """Copy the glossary and other shipped texts that lessons link to, so that the links work.

    JupyterLab shows nothing above its own folder, and takes `../data/x` there for `data/x`. A file
    that the learner changed stays.
    """
    for link in linked_files():
        text = (paths.notebooks() / link).read_text(encoding="utf-8")
        place = folder / link.removeprefix("../")
        memory = folder / ".minids" / link.removeprefix("../")
        same = [path.exists() and path.read_text(encoding="utf-8") for path in (place, memory)]
        if place.exists() and (same[0] != same[1] or same[0] == text):
            continue
        for path in (place, memory):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


def linked_files() -> set[str]:
    """The links of all lessons to texts (.md) of the clone, as they are written."""
    links = set()
    for name in lessons():
        file = paths.notebooks() / f"{name}.ipynb"
        links.update(LINK.findall(file.read_text(encoding="utf-8", errors="replace")))
    return {link for link in links if link.endswith(".md") and "://" not in link
            and (paths.notebooks() / link).is_file()}
