"""Names of the cells of a lesson that stay the same when its text or code is edited.

An exercise's cell is named after its check (`mhc-sinkhorn`), the cell that calls the check
`mhc-sinkhorn-check`, and every other cell after its place: the heading above it and its number
within this section (`the-gain-of-a-stack-03`). Both editions of a lesson give a cell the same name.
"""

import ast
import re

LIMIT = 64          # characters of a cell's id, by nbformat's rule
BEGIN = "### BEGIN SOLUTION"


def cell_ids(cells) -> list[str]:
    """The id of each cell of a lesson's source; all are different."""
    stubs, checks = exercises(cells)
    taken, section = set(), "top"
    ids = [None] * len(cells)
    for number, names in stubs.items():
        ids[number] = _free(_slug(names[0]), taken)
    for number, names in checks.items():
        if number not in stubs:
            ids[number] = _free(_slug(names[0]) + "-check", taken)
    count, solved = 0, 0            # cells of this section; those of the solved edition only
    for number, cell in enumerate(cells):
        if heading := _heading(cell):
            section, count, solved = _slug(heading) or "section", 0, 0
        if ids[number]:
            continue
        if "solution" in cell.metadata.get("tags", []):
            solved += 1
            ids[number] = _free(f"{section}-solved-{solved:02}", taken)
        else:
            count += 1
            ids[number] = _free(f"{section}-{count:02}", taken)
    return ids


def exercises(cells) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """({number of a cell: the checks that judge what it defines}, {... the checks it calls}).

    The first has the cells with a solution that define a function or value that is handed to
    `check(...)`.
    """
    defined, stubs, checks = {}, {}, {}         # defined: {name: number of the stub's cell}
    for number, cell in enumerate(cells):
        tree = _tree(cell)
        if tree is None:
            continue
        if BEGIN in cell.source:
            defined |= {name: number for name in _definitions(tree)}
        for name, used in _checks(tree):
            checks.setdefault(number, []).append(name)
            for stub in sorted({defined[other] for other in used if other in defined}):
                if name not in stubs.setdefault(stub, []):
                    stubs[stub].append(name)
    return stubs, checks


def _tree(cell) -> ast.Module | None:
    """The parsed code of a cell; None for text, and for code that does not parse."""
    try:
        return ast.parse(cell.source) if cell.cell_type == "code" else None
    except SyntaxError:
        return None


def _definitions(tree: ast.Module) -> list[str]:
    """The names that a cell defines at its outermost level, other than by calling a check."""
    names = []
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign):
            names += [node.id for target in statement.targets for node in ast.walk(target)
                      if isinstance(node, ast.Name)]
    return names


def _checks(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """(check, the names in what is handed to it), for each call of `check` in a cell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "check":
            name, *attempt = node.args
            used = [inner.id for arg in attempt for inner in ast.walk(arg)
                    if isinstance(inner, ast.Name)]
            if isinstance(name, ast.Constant):
                found.append((name.value, used))
    return found


def _heading(cell) -> str | None:
    """The first heading in a text cell; what is in a block of code is none."""
    if cell.cell_type != "markdown":
        return None
    text = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
    match = re.search(r"^#{1,6} +(.*)", text, re.MULTILINE)
    return match.group(1) if match else None


def _slug(text: str) -> str:
    """Text in small letters, digits and hyphens, short enough for an id: "2. The gain" the-gain."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^\d+\W+", "", text).lower()).strip("-")
    return slug[:LIMIT - 16].strip("-")


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with a number if it is taken: name-2, name-3."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free
