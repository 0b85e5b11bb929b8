"""Building the course: each lesson has one source file and two executed editions.

`notebooks/source/NN_name.py` (py:percent) becomes `notebooks/NN_name.ipynb`, the learner's edition
with empty exercises, and `teaching/NN_name.ipynb`, the teacher's edition with solutions. For what a
lesson must satisfy besides running see `minids.learn.lint`, for what is done about a notebook that
was edited by hand `minids.learn.shipped`.

In a source file,
- the lines between `### BEGIN SOLUTION` and `### END SOLUTION` are in the teacher's edition only;
  the learner gets a stub,
- a cell tagged `solution` is in the teacher's edition only,
- a cell tagged `nbval-ignore-output` runs in the tests, but its output is not compared,
- a cell with `jupyter={"source_hidden": true}` is folded, and one with
  `jupyter={"outputs_hidden": true}` shows its outputs when the learner opens them: it answers a
  prediction.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from minids.errors import MinidsError
from minids.learn import cell_ids, shipped
from minids.system import paths
from minids.system.files import write_text

EDITIONS = ("learner", "teacher")
TAGS = {"solution", "nbval-ignore-output", "nbval-skip", "nbval-raises-exception"}
CELL_TIMEOUT = 300  # seconds
BEGIN, END = cell_ids.BEGIN, "### END SOLUTION"
HIDDEN = ("source_hidden", "outputs_hidden")    # what of a cell is folded
REGION = re.compile(rf"^([ \t]*){BEGIN}[ \t]*\n.*?^[ \t]*{END}[ \t]*$", re.DOTALL | re.MULTILINE)


def sources(names=None, folder=None) -> list[Path]:
    """The lessons' source files in order; `names` selects lessons by number ("08"), name or path.

    A number selects all parts of a lesson. `folder` is the notebooks folder. Raises `MinidsError`
    for a name that fits no lesson.
    """
    folder = Path(folder or paths.notebooks())
    lessons = sorted((folder / "source").glob("[0-9][0-9]_*.py"))
    if not names:
        return lessons
    selected = []
    for name in names:
        stem = Path(name).name.removesuffix(".py").removesuffix(".ipynb")
        matches = [path for path in lessons if path.stem == stem]
        if re.fullmatch(r"\d\d", stem):
            matches = [path for path in lessons if path.stem.startswith(f"{stem}_")]
        if not matches:
            known = ", ".join(path.stem for path in lessons) or "none yet"
            raise MinidsError(f"no lesson {name!r}: expected one of {known}")
        selected += matches
    return selected


def target(source: Path, edition: str, root=None) -> Path:
    """The path of an edition of this source; `root` is the course's folder, by default its own."""
    root = Path(root or Path(source).parent.parent.parent)
    folder = root / ("teaching" if edition == "teacher" else "notebooks")
    return folder / f"{Path(source).stem}.ipynb"


def edition(source: Path, which: str):
    """One edition ("learner" or "teacher") of a source file, as a notebook that has not been run.

    Raises `MinidsError` for a file that is not py:percent, an unknown tag, or a solution without
    end.
    """
    cells = _source_cells(source)
    stubs, _ = cell_ids.exercises(cells)
    notebook = nbformat.v4.new_notebook()
    for number, (cell, cell_id) in enumerate(zip(cells, cell_ids.cell_ids(cells))):
        if which == "learner" and "solution" in cell.metadata.get("tags", []):
            continue
        new = _edition_cell(cell, which, cell_id)
        if number in stubs:
            new.metadata["minids"] = {"exercises": stubs[number]}
        notebook.cells.append(new)
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python",
                       "name": "python3"},
        "language_info": {"name": "python"},
        "minids": {"digest": shipped.digest(notebook)},
    })
    return notebook


def _source_cells(source: Path) -> list:
    """The cells of a source file, without empty ones."""
    try:
        lesson = jupytext.read(source, fmt="py:percent")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise MinidsError(f"{source} is not readable as py:percent: {error}") from error
    for number, cell in enumerate(lesson.cells, 1):
        if cell.source.strip():
            _check_cell(cell, f"{source.name}, cell {number} ({_first_line(cell)[:60]!r})")
    cells = [cell for cell in lesson.cells if cell.source.strip()]
    if not cells:
        raise MinidsError(f"{source} has no cells: expected py:percent, "
                          "with cells that start with '# %%'")
    return cells


def exercise_ids(notebook) -> dict[str, list[str]]:
    """{id of a cell in which the learner solves an exercise: names of its checks}."""
    return {cell.id: list(cell.metadata["minids"]["exercises"]) for cell in notebook.cells
            if "exercises" in cell.metadata.get("minids", {})}


def _first_line(cell) -> str:
    return cell.source.strip().splitlines()[0]


def _check_cell(cell, where: str) -> None:
    """Raise `MinidsError` for an unknown tag, or a solution without begin or end."""
    if unknown := set(cell.metadata.get("tags", [])) - TAGS:
        raise MinidsError(f"{where}: unknown tag {sorted(unknown)[0]!r}: "
                          f"expected one of {', '.join(sorted(TAGS))}")
    begins, ends = cell.source.count(BEGIN), cell.source.count(END)
    if not begins == ends == len(REGION.findall(cell.source)):
        raise MinidsError(f"{where}: each '{BEGIN}' needs its '{END}', both on their own lines")


def _edition_cell(cell, which: str, cell_id: str):
    """The cell of one edition that a cell of the source becomes."""
    text = cell.source if which == "teacher" else REGION.sub(_stub, cell.source)
    if cell.cell_type == "code":
        new = nbformat.v4.new_code_cell(text)
    else:
        new = nbformat.v4.new_markdown_cell(text)
    new.id = cell_id
    if tags := cell.metadata.get("tags", []):
        new.metadata["tags"] = sorted(tags)
    folded = cell.metadata.get("jupyter", {})
    if hidden := {key: True for key in HIDDEN if folded.get(key)}:
        new.metadata["jupyter"] = hidden
    return new


def _stub(region: re.Match) -> str:
    """What the learner's edition has in place of a solution.

    Inside a function the stub raises, so that `check` says "not attempted".
    """
    indent = region.group(1)
    if indent:
        return f'{indent}raise NotImplementedError("your turn")'
    return "...  # your turn"


def execute(notebook, folder: Path, strict=False, name="notebook"):
    """Run a notebook in `folder` with a new kernel, keep its outputs, and return it.

    Progress goes to a temporary folder. Raises `MinidsError` that names the cell and the error.
    """
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "MINIDS_HOME": home, "MINIDS_STRICT": "1" if strict else "0"}
        env.pop("MPLBACKEND", None)
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3",
                                record_timing=False, store_widget_state=False,
                                extra_arguments=["--log-level=ERROR"],
                                resources={"metadata": {"path": str(folder)}})
        try:
            client.execute(env=env)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            number, cell = _failed_cell(notebook)
            traceback = "\n".join("\n".join(out.traceback) for out in _errors(cell)[:1])
            print(re.sub(r"\x1b\[[0-9;]*m", "", traceback), file=sys.stderr)
            reason = str(error).strip()
            if isinstance(error, CellExecutionError):
                reason = f"{error.ename}: {error.evalue}"
            raise MinidsError(f"{name}: cell {number} failed: {reason}. The cell begins with "
                              f"{_first_line(cell)!r}. Nothing was written.") from None
    _normalise(notebook)
    return notebook


def _errors(cell) -> list:
    return [out for out in cell.get("outputs", []) if out.output_type == "error"]


def _failed_cell(notebook) -> tuple:
    """(number, cell) of the cell that failed."""
    cells = [(i, c) for i, c in enumerate(notebook.cells, 1) if c.cell_type == "code"]
    failed = [(i, c) for i, c in cells if _errors(c)]
    # A timeout or a dead kernel leaves no error output: take the last cell that was started.
    started = [(i, c) for i, c in cells if c.execution_count]
    return (failed[:1] or started[-1:] or [(1, notebook.cells[0])])[0]


def _normalise(notebook) -> None:
    """Reduce the outputs to what does not change between runs.

    Each stream becomes one output; widget handles and all metadata are removed.
    """
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _normalised(cell.outputs, count)
    for key in set(notebook.metadata) - {"kernelspec", "language_info", "minids"}:
        del notebook.metadata[key]
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})


def _normalised(outputs, count: int) -> list:
    """The outputs of the code cell number `count`, see `_normalise`."""
    result, streams = [], {}
    for out in outputs:
        if out.output_type == "stream":
            if out.name in streams:
                streams[out.name].text += out.text
                continue
            streams[out.name] = out
        elif "data" in out:
            # A widget's handle is useless without its kernel.
            out.data.pop("application/vnd.jupyter.widget-view+json", None)
            out.metadata = nbformat.from_dict({})
            if out.output_type == "execute_result":
                out.execution_count = count
        result.append(out)
    return result


def _code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keep_outputs(notebook, path: Path) -> bool:
    """Copy the outputs that were built at `path` if its code is the same; return whether it is."""
    new, built = _code_cells(notebook), shipped.judged(path)[0]
    old = _code_cells(built) if built else []
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, old_cell in zip(new, old):
        cell.outputs = old_cell.outputs
    _normalise(notebook)
    return True


def build(names=None, out=None, run=True, keep=False, force=False) -> list[Path]:
    """Build both editions of the named lessons (all if None); returns the files written.

    `out` is the folder to write to, in which `notebooks` and `teaching` are made; by default the
    course's own. `run=False` leaves the cells unexecuted; with `keep`, an edition whose code has
    not changed keeps its outputs and is not run again. Both editions of a lesson are written after
    both have run, so a failure changes nothing. A notebook that was edited by hand is not
    overwritten: `MinidsError`; with `force` it is renamed to NN_name.mine.ipynb first.
    """
    chosen = sources(names)
    paths_out = [target(source, which, out) for source in chosen for which in EDITIONS]
    edited = [path for path in paths_out if shipped.edited(path)]
    if edited and not force:
        raise MinidsError(f"{', '.join(map(str, edited))}: changed by hand since it was built; "
                          "--force builds it anew and keeps the changed one beside it, as "
                          f"{shipped.kept_as(edited[0]).name}. Nothing was written")
    written = []
    for source in chosen:
        for path, text in _built(source, out, run, keep).items():
            if path in edited:
                print(f"{path.name}: what was there is kept as {shipped.keep(path)}", flush=True)
            write_text(path, text.rstrip("\n") + "\n")
            written.append(path)
    return written


def _built(source: Path, out, run: bool, keep: bool) -> dict[Path, str]:
    """{path: text} of both editions of one lesson, see `build`."""
    texts = {}
    for which in EDITIONS:
        path, start = target(source, which, out), time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = edition(source, which)
        if keep and keep_outputs(notebook, path):
            print(f"{source.stem}: the code of the {which}'s edition has not changed, "
                  "its outputs are kept", flush=True)
        elif run:
            print(f"{source.stem}: running the {which}'s edition ...", end=" ", flush=True)
            execute(notebook, path.parent, strict=which == "teacher",
                    name=f"{source.stem} ({which}'s edition)")
            print(f"{time.monotonic() - start:.0f} s", flush=True)
        nbformat.validate(notebook)
        texts[path] = nbformat.writes(notebook)
    return texts


def copy_shipped(folder: Path, names=None, which="learner") -> list[Path]:
    """Write the named lessons (all if None) to `folder` as they were built; returns the files.

    What learners did to the course's own files does not get into the copies: see
    `shipped.judged`. A line is printed for each such file, and for each lesson left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for source in sources(names):
        notebook, notice = shipped.judged(target(source, which))
        if notice:
            print(f"note: {notice}", flush=True)
        if notebook:
            copies.append(folder / f"{source.stem}.ipynb")
            write_text(copies[-1], nbformat.writes(notebook))
    return copies
