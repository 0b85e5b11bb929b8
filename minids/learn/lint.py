"""What a lesson must satisfy to pass strict nbval on every machine, and to read like the others.

`lint()` checks the notebooks as they were built, whatever learners did to the files. For how they
are built see `minids.learn.course`; nbval itself runs in `make test`.
"""

import ast
import re
from pathlib import Path

from minids.learn import course, shipped

MAX_LINES = 30          # of a code cell that is not folded
MAX_IMPORT_LINES = 40   # of a cell that only imports and calls SETUP functions
MAX_COLUMNS = 96        # of a line of code: at 1366 pixels it needs no sideways scrolling
MAX_PRINTED = 90        # of a printed line: a longer one breaks inside a word
SETUP = {"use", "versions"}     # style.use(), versions()
MAX_OUTPUT = 1_500_000  # bytes of outputs in one notebook
TEXT_MIMES = ("text/plain", "text/html", "text/markdown", "text/latex", "application/json")
PICTURE_BYTES = re.compile(r"base64,[A-Za-z0-9+/=]+")
IMAGE_WITHOUT_ALT = re.compile(r"<img(?![^>]*\balt=[\"']?[^\"'>\s])")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}|<[^<>\n]*0x[0-9a-fA-F]{6,}[^<>\n]*>")
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])(?:/(?:home|root|Users|tmp|work|usr|opt|var|mnt|private)/[\w.-]+"
    r"|[A-Z]:\\\\?[\w.-]+)")
PLOT_CALLS = set("""
    plot imshow bar barh hist scatter step fill_between pcolormesh contour contourf matshow errorbar
    semilogx semilogy loglog axhline axvline legend title suptitle xlabel ylabel set_title
    set_xlabel set_ylabel set_xscale set_yscale set_xlim set_ylim xlim ylim text annotate colorbar
    grid set subplots figure stackplot violinplot boxplot eventplot""".split())
SLIDER = "use minids.show.style.slider_image"
UPDATES = "nbval does not follow updates of a display"
BANNED_NAMES = {"interact": SLIDER, "interactive": SLIDER, "Output": SLIDER,
                "clear_output": UPDATES, "update_display": UPDATES}
SECTIONS = {"After this": r"^#{1,3} .*After this|^\*{0,2}After this",
            "Key points": r"^#{1,3} .*Key points|^\*{0,2}Key points"}
PREDICTION = re.compile(r"\*Predict\b")     # **Predict before you run:** ...
WITHIN = 3      # code cells with outputs: among these after a prediction is its answer
EXERCISE = re.compile(r"^#{2,4} Exercise\b", re.MULTILINE)


def lint(names=None, folder=None) -> list[str]:
    """The findings in both built editions of the named lessons (all if None).

    A notebook that was changed by hand since it was built is judged as git has it; a line that
    says so is printed.
    """
    findings = []
    for source in course.sources(names, folder):
        for which in course.EDITIONS:
            path = course.target(source, which)
            label = path.relative_to(source.parent.parent.parent).as_posix()
            notebook, notice = shipped.judged(path)
            if notice:
                print(f"note: {notice}", flush=True)
            if notebook:
                texts = drift(source, which, notebook) + check_notebook(notebook, which)
                findings += [f"{label}: {text}" for text in texts]
            elif not path.exists():
                findings.append(f"{label}: not built: run `minids course build {source.stem}`")
    return findings


def drift(source: Path, which: str, built) -> list[str]:
    """The first difference of a built notebook from its source: in cells, ids or metadata."""
    expected = course.edition(source, which)
    rebuild = f"run `minids course build {source.stem}`"
    for number, (a, b) in enumerate(zip(expected.cells, built.cells), 1):
        for key in ("cell_type", "id", "source", "metadata"):
            if a[key] != b.get(key):
                return [f"cell {number}: {key} differs from the source's: {rebuild}"]
    if len(expected.cells) != len(built.cells):
        return [f"expected the source's {len(expected.cells)} cells, "
                f"found {len(built.cells)}: {rebuild}"]
    if expected.metadata != built.metadata:
        return [f"the notebook's metadata differ from the source's: {rebuild}"]
    return []


def check_notebook(notebook, which="learner") -> list[str]:
    """The findings in one built notebook, of the edition `which`."""
    findings = _metadata(notebook) + _text(notebook) + _predictions(notebook)
    if which == "learner":
        findings += _printed(notebook)
    order = 0
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        order += 1
        where = f"cell {number}"
        if cell.execution_count != order:
            findings.append(f"{where}: execution count {cell.execution_count}, expected {order}: "
                            "build the notebook again")
        findings += [f"{where}: {text}" for text in _code(cell) + _outputs(cell)]
    return findings


def _metadata(notebook) -> list[str]:
    """The kernel, the size of the outputs, and the order of the imports."""
    findings, metadata = [], notebook.metadata
    if metadata.get("kernelspec", {}).get("name") != "python3":
        findings.append("kernelspec must be python3")
    if "widgets" in metadata:
        findings.append("metadata.widgets must not be stored")
    size = sum(len(str(out)) for cell in notebook.cells for out in cell.get("outputs", []))
    if size > MAX_OUTPUT:
        findings.append(f"outputs take {size / 1e6:.1f} MB, at most {MAX_OUTPUT / 1e6} MB are "
                        "allowed")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    first = re.search(r"^(?:import|from) (minids|torch|transformers)\b", code, re.MULTILINE)
    if first and first.group(1) != "minids":
        findings.append("import minids before torch, so that torch's idle threads sleep "
                        "(minids/system/process.py)")
    return findings


def _text(notebook) -> list[str]:
    """The parts that every lesson has, and what its text may not contain."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    text, findings = "\n\n".join(cells), []
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        findings.append("the first cell must begin with the title, '# ...'")
    for name, pattern in SECTIONS.items():
        if not re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            findings.append(f"no section or paragraph begins with {name!r}")
    if 0 < (exercises := len(EXERCISE.findall(text))) < 3:
        findings.append(f"{exercises} headings begin with 'Exercise': expected three or more, "
                        "or none")
    for source in cells:
        if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=)", source):
            findings.append("a picture in the text has no alt text")
        if path := MACHINE_PATH.search(source):
            findings.append(f"a path of one machine in the text: {path.group()!r}")
    return findings


def _predictions(notebook) -> list[str]:
    """Predictions whose answer is on screen, since no cell after them hides its outputs."""
    findings = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown" and PREDICTION.search(cell.source):
            after = [other for other in notebook.cells[number:] if other.get("outputs")]
            if after and not any(_hides(other, "outputs") for other in after[:WITHIN]):
                findings.append(f"cell {number}: a prediction, but the cell that answers it has "
                                'no jupyter={"outputs_hidden": true}')
    return findings


def _hides(cell, what: str) -> bool:
    """Whether a cell is stored with its source, or its outputs, folded."""
    return bool(cell.metadata.get("jupyter", {}).get(f"{what}_hidden"))


def _printed(notebook) -> list[str]:
    """Printed sentences that are too long for one line; tables, with their columns, may be."""
    findings = []
    for number, cell in enumerate(notebook.cells, 1):
        texts = [out.text for out in cell.get("outputs", []) if out.output_type == "stream"]
        for line in "".join(texts).splitlines():
            if len(line) > MAX_PRINTED and not _is_row(line):
                findings.append(f"cell {number}: a printed line of {len(line)} characters, at "
                                f"most {MAX_PRINTED}: use style.say: {line[:40]!r} ...")
    return findings


def _is_row(line: str) -> bool:
    """Whether a printed line is a row of a table: with two spaces or more between columns."""
    return "  " in line.strip()


def _code(cell) -> list[str]:
    """What a code cell's source may not contain."""
    findings = []
    if not cell.source.isascii():
        findings.append(f"not ASCII in the code: {_non_ascii(cell.source)!r}")
    if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
        return findings + ["shell commands and magics (! and %) do not belong in a lesson"]
    if path := MACHINE_PATH.search(cell.source):
        findings.append(f"a path of one machine: {path.group()!r}")
    try:
        tree = ast.parse(cell.source)
    except SyntaxError as error:
        return findings + [f"does not parse: {error.msg}, line {error.lineno}"]
    if not _hides(cell, "source"):
        findings += _length(cell.source, tree)
    if (columns := max(map(len, cell.source.splitlines()), default=0)) > MAX_COLUMNS:
        findings.append(f"a line of {columns} columns, at most {MAX_COLUMNS}: wrap it")
    for node in ast.walk(tree):
        name = getattr(node, "id", getattr(node, "attr", None))
        if name in BANNED_NAMES:
            findings.append(f"{name} is not for lessons: {BANNED_NAMES[name]}")
    if (name := _last_call(tree)) in PLOT_CALLS:
        findings.append(f"ends in the plot call {name}(...), whose result is printed: "
                        "end with style.show(figure, alt)")
    if cell.source.rstrip().endswith(";"):
        findings.append("the last line ends in a semicolon")
    return findings


def _length(source: str, tree: ast.Module) -> list[str]:
    """Whether a cell is too long; one that only imports and sets up may be longer."""
    length = len(source.splitlines())
    only_setup = tree.body and all(_is_setup(statement) for statement in tree.body)
    limit = MAX_IMPORT_LINES if only_setup else MAX_LINES
    if length <= limit:
        return []
    return [f"{length} lines of code, at most {limit}: split the cell, move code to minids.show, "
            "or fold it"]


def _is_setup(statement: ast.stmt) -> bool:
    """Whether a statement is an import, or a call such as `style.use()` or `versions()`."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return True
    call = statement.value if isinstance(statement, ast.Expr) else None
    function = call.func if isinstance(call, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", None)) in SETUP


def _last_call(tree: ast.Module) -> str | None:
    """The name of the method that the last statement calls, if it calls one."""
    last = tree.body[-1] if tree.body else None
    call = last.value if isinstance(last, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        return call.func.attr
    return None


def _non_ascii(text: str) -> str:
    return next(char for char in text if not char.isascii())


def _outputs(cell) -> list[str]:
    """What a code cell's outputs may not contain."""
    findings = []
    ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
    for out in cell.outputs:
        if out.output_type == "error":
            findings.append(f"error output: {out.ename}")
            continue
        if out.output_type == "stream" and out.name == "stderr":
            findings.append(f"output on stderr: {out.text.strip()[:80]!r}")
        data = {"text/plain": out.text} if out.output_type == "stream" else out.data
        if "image/svg+xml" in data:
            findings.append("an SVG picture: nbval compares it; show a PNG")
        if "application/vnd.jupyter.widget-view+json" in data:
            findings.append("a stored widget handle, useless without its kernel: "
                            "build the notebook again")
        if "image/png" in data or IMAGE_WITHOUT_ALT.search(data.get("text/html", "")):
            findings.append("a picture without alt text: use style.show(figure, alt)")
        for mime in TEXT_MIMES:
            findings += _output_text(str(data.get(mime, "")), mime, ignored)
    return findings


def _output_text(text: str, mime: str, ignored: bool) -> list[str]:
    """What the text of an output may not contain; nbval does not compare it if `ignored`."""
    findings, text = [], PICTURE_BYTES.sub("", text)
    if not text.isascii() and not ignored:
        findings.append(f"not ASCII in the output: {_non_ascii(text)!r}")
    if address := ADDRESS.search(text):
        findings.append(f"an object's address in the output: {address.group()!r}")
    if (path := MACHINE_PATH.search(text)) and mime != "text/html":
        findings.append(f"a path of one machine in the output: {path.group()!r}")
    if "Warning:" in text:
        findings.append("a warning in the output")
    return findings
