"""Building the course: one source file per lesson, two executed editions.

`notebooks/source/NN_name.py` (py:percent) becomes `notebooks/NN_name.ipynb`, the learner's edition with empty
exercises, and `notebooks/solutions/NN_name.ipynb`, the solved one. What a lesson must satisfy beyond that it runs
is checked in `minids.learn.lint`.

In a source file
- a code cell's lines between `### BEGIN SOLUTION` and `### END SOLUTION` are the teacher's; the learner gets a stub,
- a cell tagged `solution` exists in the teacher's edition only,
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
    """The lessons' source files in order; `names` picks some, by number ("08"), by name, or by path.

    `folder` is the notebooks folder. Raises `MinidsError` for a name that no lesson has.
    """
    found = sorted((Path(folder or paths.notebooks()) / "source").glob("[0-9][0-9]_*.py"))
    if not names:
        return found
    picked = []
    for name in names:
        stem = Path(name).name.removesuffix(".py").removesuffix(".ipynb")
        match = [path for path in found if path.stem == stem or path.stem.startswith(f"{stem}_")]
        if len(match) != 1:
            raise MinidsError(f"no lesson {name!r}: expected one of {', '.join(path.stem for path in found) or 'none yet'}")
        picked += match
    return picked


def target(source: Path, edition: str, folder=None) -> Path:
    """Where an edition of this source belongs; `folder` is the notebooks folder, by default the source's own."""
    folder = Path(folder or Path(source).parent.parent)
    return (folder / "solutions" if edition == "teacher" else folder) / f"{Path(source).stem}.ipynb"


def edition(source: Path, which: str):
    """One edition ("learner" or "teacher") of a source file as an unexecuted notebook."""
    try:
        lesson = jupytext.read(source, fmt="py:percent")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise MinidsError(f"{source} is not readable as py:percent: {error}") from error
    notebook = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    seen = {}
    for number, cell in enumerate(lesson.cells):
        if not cell.source.strip():
            continue
        where = f"{source.name}, cell {number + 1} ({cell.source.strip().splitlines()[0][:60]!r})"
        tags = cell.metadata.get("tags", [])
        if unknown := set(tags) - TAGS:
            raise MinidsError(f"{where}: unknown tag {sorted(unknown)[0]!r}: expected {', '.join(sorted(TAGS))}")
        if cell.source.count(BEGIN) != len(REGION.findall(cell.source)) or cell.source.count(END) != cell.source.count(BEGIN):
            raise MinidsError(f"{where}: each '{BEGIN}' needs its '{END}', both on lines of their own")
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        text = cell.source if which == "teacher" else REGION.sub(_stub, cell.source)
        if which == "learner" and "solution" in tags:
            continue
        new = nbformat.v4.new_code_cell(text) if cell.cell_type == "code" else nbformat.v4.new_markdown_cell(text)
        new.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if tags:
            new.metadata["tags"] = sorted(tags)
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            new.metadata["jupyter"] = {"source_hidden": True}
        notebook.cells.append(new)
    if not notebook.cells:
        raise MinidsError(f"{source} has no cells: expected py:percent, with cells that start with '# %%'")
    return notebook


def _stub(region: re.Match) -> str:
    """What a learner finds instead of a solution: inside a function it raises, so that `check` says "not attempted"."""
    indent = region.group(1)
    return f'{indent}raise NotImplementedError("your turn")' if indent else "...  # your turn"


def execute(notebook, folder: Path, strict=False, name="notebook"):
    """Run a notebook's cells in `folder` with a fresh kernel and keep their outputs. Returns the notebook.

    Progress is kept in a throw-away folder. Raises `MinidsError` that names the cell and the error.
    """
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "MINIDS_HOME": scratch, "MINIDS_STRICT": "1" if strict else "0"}
        env.pop("MPLBACKEND", None)
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", record_timing=False,
                                store_widget_state=False, extra_arguments=["--log-level=ERROR"],
                                resources={"metadata": {"path": str(folder)}})
        try:
            client.execute(env=env)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            number, cell = next(((i + 1, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code"
                                 and any(out.output_type == "error" for out in c.outputs)), (None, None))
            if cell is None:  # a timeout or a dead kernel leaves no error output: the last cell that began
                number, cell = max(((i + 1, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code"
                                    and c.execution_count), default=(1, notebook.cells[0]), key=lambda pair: pair[0])
            what = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error).strip()
            traceback = "\n".join(next((out.traceback for out in cell.get("outputs", []) if out.output_type == "error"), []))
            print(re.sub(r"\x1b\[[0-9;]*m", "", traceback), file=sys.stderr)
            raise MinidsError(f"{name}: cell {number} failed: {what}. The cell begins with "
                              f"{cell.source.strip().splitlines()[0]!r}. Nothing was written.") from None
    _normalise(notebook)
    return notebook


def _normalise(notebook) -> None:
    """Keep of the outputs what says something: streams in one piece, no widget handles, no metadata but `alt`."""
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        outputs, streams = [], {}
        for out in cell.outputs:
            if out.output_type == "stream":
                if out.name in streams:
                    streams[out.name].text += out.text
                    continue
                streams[out.name] = out
            elif "data" in out:
                out.data.pop("application/vnd.jupyter.widget-view+json", None)  # dead without its kernel
                out.metadata = nbformat.from_dict({mime: {"alt": out.metadata[mime]["alt"]} for mime in out.data
                                                   if "alt" in out.metadata.get(mime, {})})
                if out.output_type == "execute_result":
                    out.execution_count = count
            outputs.append(out)
        cell.outputs = outputs
    for key in set(notebook.metadata) - {"kernelspec", "language_info"}:
        del notebook.metadata[key]
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})


def keep_outputs(notebook, path: Path) -> bool:
    """Give a notebook the outputs of the one at `path`, if both have the same code; tells whether they have."""
    code = lambda nb: [cell for cell in nb.cells if cell.cell_type == "code"]
    new, old = code(notebook), code(nbformat.read(path, as_version=4)) if path.exists() else []
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, was in zip(new, old):
        cell.outputs = was.outputs
    _normalise(notebook)
    return True


def build(names=None, out=None, run=True, keep=False) -> list[Path]:
    """Build both editions of the named lessons (all when None); returns the files written.

    `out` is the notebooks folder to write to, the clone's own by default. `run=False` leaves the cells unexecuted; with `keep`
    an edition of which only texts have changed keeps its outputs, and is not run again.
    Both editions of a lesson are written after both have run, so that a failure changes nothing.
    """
    written = []
    for source in sources(names):
        built = {}
        for which in EDITIONS:
            path, start = target(source, which, out), time.monotonic()
            path.parent.mkdir(parents=True, exist_ok=True)
            notebook = edition(source, which)
            if keep and keep_outputs(notebook, path):
                print(f"{source.stem}: the code of the {which}'s edition is as it was, and so are its outputs", flush=True)
            elif run:
                print(f"{source.stem}: running the {which}'s edition ...", end=" ", flush=True)
                execute(notebook, path.parent, strict=which == "teacher", name=f"{source.stem} ({which}'s edition)")
                print(f"{time.monotonic() - start:.0f} s", flush=True)
            nbformat.validate(notebook)
            built[path] = nbformat.writes(notebook)
        for path, text in built.items():
            write_text(path, text.rstrip("\n") + "\n")
            written.append(path)
    return written
