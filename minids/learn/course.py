"""Building the course: each lesson has one source file and two executed editions.

`notebooks/source/NN_name.py` (py:percent) becomes `notebooks/NN_name.ipynb`, the learner's edition
with empty exercises, and `notebooks/solutions/NN_name.ipynb`, the teacher's edition with solutions.
For what a lesson must satisfy besides running see `minids.learn.lint`.

In a source file,
- the lines between `### BEGIN SOLUTION` and `### END SOLUTION` are in the teacher's edition only;
  the learner gets a stub,
- a cell tagged `solution` is in the teacher's edition only,
- a cell tagged `nbval-ignore-output` runs in the tests, but its output is not compared.
"""

import hashlib
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
from minids.system import paths
from minids.system.files import write_text

EDITIONS = ("learner", "teacher")
TAGS = {"solution", "nbval-ignore-output", "nbval-skip", "nbval-raises-exception"}
CELL_TIMEOUT = 300  # seconds
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
REGION = re.compile(rf"^([ \t]*){BEGIN}[ \t]*\n.*?^[ \t]*{END}[ \t]*$", re.DOTALL | re.MULTILINE)


def sources(names=None, folder=None) -> list[Path]:
    """The lessons' source files in order; `names` selects lessons by number ("08"), name or path.

    `folder` is the notebooks folder. Raises `MinidsError` for a name that fits no lesson.
    """
    folder = Path(folder or paths.notebooks())
    lessons = sorted((folder / "source").glob("[0-9][0-9]_*.py"))
    if not names:
        return lessons
    selected = []
    for name in names:
        stem = Path(name).name.removesuffix(".py").removesuffix(".ipynb")
        matches = [path for path in lessons
                   if path.stem == stem or path.stem.startswith(f"{stem}_")]
        if len(matches) != 1:
            known = ", ".join(path.stem for path in lessons) or "none yet"
            raise MinidsError(f"no lesson {name!r}: expected one of {known}")
        selected += matches
    return selected


def target(source: Path, edition: str, folder=None) -> Path:
    """The path of an edition of this source.

    `folder` is the notebooks folder, by default the source's own.
    """
    folder = Path(folder or Path(source).parent.parent)
    folder = folder / "solutions" if edition == "teacher" else folder
    return folder / f"{Path(source).stem}.ipynb"


def edition(source: Path, which: str):
    """One edition ("learner" or "teacher") of a source file, as a notebook that has not been run.

    Raises `MinidsError` for a file that is not py:percent, an unknown tag, or a solution without
    end.
    """
    try:
        lesson = jupytext.read(source, fmt="py:percent")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise MinidsError(f"{source} is not readable as py:percent: {error}") from error
    notebook = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python",
                       "name": "python3"},
        "language_info": {"name": "python"},
    })
    count = {}      # {digest: cells with this content}
    for number, cell in enumerate(lesson.cells, 1):
        if not cell.source.strip():
            continue
        _check_cell(cell, f"{source.name}, cell {number} ({_first_line(cell)[:60]!r})")
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        count[digest] = count.get(digest, 0) + 1
        if which == "learner" and "solution" in cell.metadata.get("tags", []):
            continue
        cell_id = digest if count[digest] == 1 else f"{digest}-{count[digest]}"
        notebook.cells.append(_edition_cell(cell, which, cell_id))
    if not notebook.cells:
        raise MinidsError(f"{source} has no cells: expected py:percent, "
                          "with cells that start with '# %%'")
    return notebook


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
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        new.metadata["jupyter"] = {"source_hidden": True}
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

    Each stream becomes one output; widget handles and all metadata except `alt` are removed.
    """
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _normalised(cell.outputs, count)
    for key in set(notebook.metadata) - {"kernelspec", "language_info"}:
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
            alts = {mime: {"alt": out.metadata[mime]["alt"]} for mime in out.data
                    if "alt" in out.metadata.get(mime, {})}
            out.metadata = nbformat.from_dict(alts)
            if out.output_type == "execute_result":
                out.execution_count = count
        result.append(out)
    return result


def _code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keep_outputs(notebook, path: Path) -> bool:
    """Copy the outputs of the notebook at `path` if its code is the same; return whether it is."""
    new = _code_cells(notebook)
    old = _code_cells(nbformat.read(path, as_version=4)) if path.exists() else []
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, old_cell in zip(new, old):
        cell.outputs = old_cell.outputs
    _normalise(notebook)
    return True


def build(names=None, out=None, run=True, keep=False) -> list[Path]:
    """Build both editions of the named lessons (all if None); returns the files written.

    `out` is the notebooks folder to write to, by default the clone's own. `run=False` leaves the
    cells unexecuted; with `keep`, an edition whose code has not changed keeps its outputs and is
    not run again. Both editions of a lesson are written after both have run, so a failure changes
    nothing.
    """
    written = []
    for source in sources(names):
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
        for path, text in texts.items():
            write_text(path, text.rstrip("\n") + "\n")
            written.append(path)
    return written
