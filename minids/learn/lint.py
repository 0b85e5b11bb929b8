"""What a lesson must satisfy so that strict nbval passes on every machine, and so that it reads like the others.

`lint()` looks at the built notebooks; `minids.learn.course` builds them; nbval itself runs in `make test`.
"""

import ast
import re
from pathlib import Path

import nbformat

from minids.learn import course

MAX_LINES = 25  # of a code cell that is not folded
MAX_OUTPUT = 1_500_000  # bytes of outputs in one notebook
TEXT_MIMES = ("text/plain", "text/html", "text/markdown", "text/latex", "application/json")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}|<[^<>\n]*0x[0-9a-fA-F]{6,}[^<>\n]*>")
MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|root|Users|tmp|work|usr|opt|var|mnt|private)/[\w.-]+|[A-Z]:\\\\?[\w.-]+)")
PLOT_CALLS = set("""
    plot imshow bar barh hist scatter step fill_between pcolormesh contour contourf matshow errorbar semilogx semilogy loglog
    axhline axvline legend title suptitle xlabel ylabel set_title set_xlabel set_ylabel set_xscale set_yscale set_xlim set_ylim
    xlim ylim text annotate colorbar grid set subplots figure stackplot violinplot boxplot eventplot""".split())
SLIDER, UPDATES = "use minids.show.style.slider_image", "nbval does not follow updates of a display"
BANNED_NAMES = {"interact": SLIDER, "interactive": SLIDER, "Output": SLIDER, "clear_output": UPDATES, "update_display": UPDATES}
SECTIONS = (r"^#{1,3} .*After this|^\*{0,2}After this", r"^#{1,3} .*Key points|^\*{0,2}Key points")
EXERCISE = re.compile(r"^#{2,4} Exercise\b", re.MULTILINE)


def lint(names=None, folder=None) -> list[str]:
    """Check both built editions of the named lessons (all when None). Prints and returns the findings, none if all is well."""
    findings = []
    for source in course.sources(names, folder):
        for which in course.EDITIONS:
            path = course.target(source, which)
            label = path.relative_to(source.parent.parent.parent).as_posix()
            if not path.is_file():
                findings.append(f"{label}: not built: run `minids course build {source.stem}`")
                continue
            texts = drift(source, which, path) + check_notebook(nbformat.read(path, as_version=4))
            findings += [f"{label}: {text}" for text in texts]
    for finding in findings:
        print(finding)
    return findings


def drift(source: Path, which: str, path: Path) -> list[str]:
    """Where a built edition differs from what its source gives: cells, ids, metadata."""
    want, have = course.edition(source, which), nbformat.read(path, as_version=4)
    rebuild = f"run `minids course build {source.stem}`"
    if want.metadata != have.metadata:
        return [f"the notebook's metadata differ from the source's: {rebuild}"]
    for number, (a, b) in enumerate(zip(want.cells, have.cells), 1):
        for key in ("cell_type", "id", "source", "metadata"):
            if a[key] != b[key]:
                return [f"cell {number}: {key} differs from the source's: {rebuild}"]
    if len(want.cells) != len(have.cells):
        return [f"{len(have.cells)} cells, the source gives {len(want.cells)}: {rebuild}"]
    return []


def check_notebook(notebook) -> list[str]:
    """The findings in one built notebook, in words."""
    found = []
    meta = notebook.metadata
    if meta.get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec must be python3")
    if "widgets" in meta:
        found.append("metadata.widgets must not be stored")
    if size := sum(len(str(out)) for cell in notebook.cells for out in cell.get("outputs", [])):
        if size > MAX_OUTPUT:
            found.append(f"outputs take {size / 1e6:.1f} MB, at most {MAX_OUTPUT / 1e6} MB are allowed")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    first = re.search(r"^(?:import|from) (minids|torch|transformers)\b", code, re.MULTILINE)
    if first and first.group(1) != "minids":
        found.append("import minids before torch, so that torch's threads sleep while they wait (minids/system/process.py)")
    found += _text(notebook)
    order = 0
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        order += 1
        where = f"cell {number}"
        if cell.execution_count != order:
            found.append(f"{where}: executed as {cell.execution_count}, expected {order}: build the notebook again")
        found += [f"{where}: {text}" for text in _code(cell) + _outputs(cell)]
    return found


def _text(notebook) -> list[str]:
    """The parts every lesson has."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = []
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        found.append("the first cell must begin with the title, '# ...'")
    for pattern, name in zip(SECTIONS, ("After this", "Key points")):
        if not re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            found.append(f"no section or paragraph begins with {name!r}")
    if 0 < len(EXERCISE.findall(text)) < 3:
        found.append(f"{len(EXERCISE.findall(text))} headings begin with 'Exercise': three or more, or none")
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=)", cell.source):
            found.append("a picture in the text has no alt text")
        if cell.cell_type == "markdown" and MACHINE_PATH.search(cell.source):
            found.append(f"a path of one machine in the text: {MACHINE_PATH.search(cell.source).group()!r}")
    return found


def _code(cell) -> list[str]:
    """What a code cell's source may not contain."""
    found, lines = [], cell.source.splitlines()
    if not cell.source.isascii():
        found.append(f"not ASCII in the code: {next(c for c in cell.source if not c.isascii())!r}")
    if len(lines) > MAX_LINES and not cell.metadata.get("jupyter", {}).get("source_hidden"):
        found.append(f"{len(lines)} lines of code, at most {MAX_LINES}: split the cell, move code to minids.show, or fold it")
    if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
        return found + ["shell commands and magics (! and %) do not belong in a lesson"]
    if path := MACHINE_PATH.search(cell.source):
        found.append(f"a path of one machine: {path.group()!r}")
    try:
        tree = ast.parse(cell.source)
    except SyntaxError as error:
        return found + [f"does not parse: {error.msg}, line {error.lineno}"]
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if name in BANNED_NAMES:
            found.append(f"{name} is not for lessons: {BANNED_NAMES[name]}")
    last = tree.body[-1] if tree.body else None
    call = last.value if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else None
    if call and isinstance(call.func, ast.Attribute) and call.func.attr in PLOT_CALLS:
        found.append(f"ends in the plot call {call.func.attr}(...), whose result is printed: end with style.show(figure, alt)")
    if lines and lines[-1].rstrip().endswith(";"):
        found.append("the last line ends in a semicolon")
    return found


def _outputs(cell) -> list[str]:
    """What a code cell's outputs may not contain."""
    found, ignored = [], "nbval-ignore-output" in cell.metadata.get("tags", [])
    for out in cell.outputs:
        if out.output_type == "error":
            found.append(f"error output: {out.ename}")
            continue
        if out.output_type == "stream" and out.name == "stderr":
            found.append(f"output on stderr: {out.text.strip()[:80]!r}")
        data = {"text/plain": out.text} if out.output_type == "stream" else out.data
        if "image/svg+xml" in data:
            found.append("an SVG picture: nbval compares it; show a PNG")
        if "application/vnd.jupyter.widget-view+json" in data:
            found.append("a stored widget handle, dead without its kernel: build the notebook again")
        if "image/png" in data and not out.metadata.get("image/png", {}).get("alt"):
            found.append("a picture without alt text: use style.show(figure, alt)")
        for mime in TEXT_MIMES:
            text = data.get(mime, "")
            text = text if isinstance(text, str) else str(text)
            if not text.isascii() and not ignored:
                found.append(f"not ASCII in the output: {next(c for c in text if not c.isascii())!r}")
            if address := ADDRESS.search(text):
                found.append(f"an object's address in the output: {address.group()!r}")
            if (path := MACHINE_PATH.search(text)) and not mime == "text/html":
                found.append(f"a path of one machine in the output: {path.group()!r}")
            if "Warning:" in text:
                found.append("a warning in the output")
    return found
