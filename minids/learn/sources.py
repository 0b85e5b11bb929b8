"""The source of a function, with all that it needs; and names in a source replaced by others.

A function of a notebook may use other functions of the notebook, constants and imports.
`standalone` writes them down together, as a text that runs by itself.
"""

import ast
import dis
import inspect
import math
import re
import sys
import sysconfig
import textwrap
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import torch

from minids.system.paths import ROOT

LOADS = ("LOAD_GLOBAL", "LOAD_NAME")
STORES = ("STORE_GLOBAL", "DELETE_GLOBAL")
# instructions that stand for no expression
NO_PLACE = ("RESUME", "MAKE_CELL", "COPY_FREE_VARS", "RETURN_VALUE", "RETURN_CONST")
LONGEST_CONSTANT = 10_000                               # characters


class NotWritable(Exception):
    """A function cannot be written down; the message says why."""


def standalone(function, name: str, known: dict) -> str:
    """A text that defines `function`, after the imports, constants and functions that it needs.

    The last statement defines the function: under its own name, or as `name` if it is a lambda.
    What `known` holds, {function: name}, is imported from `minids.plain` under that name, as are
    functions of `minids.plain` themselves. Of a function that was wrapped (`functools.wraps`) the
    original is taken, with the decorators that its source has. Raises `NotWritable`.
    """
    original = _original(function)
    if not isinstance(original, FunctionType):
        raise NotWritable(f"it is a {type(original).__name__}, not a function that you defined")
    if not _is_yours(original):
        raise NotWritable(f"it was not written by you: it belongs to {original.__module__}")
    writer = _Writer(known)
    writer.define(name if original.__name__ == "<lambda>" else original.__name__, function)
    text = writer.text()
    try:
        exec(compile(text, f"<{name}>", "exec"), {"__name__": name})
    except Exception as error:      # the learner's code: anything can happen
        raise NotWritable(f"its source does not run by itself ({said(error)})") from error
    return text


class _Writer:
    """Collects what a function needs, each thing under the name that the function calls it by."""

    def __init__(self, known: dict):
        self.known = known
        self.values: dict = {}              # {name: what is called by it}
        self.imports: set[str] = set()
        self.constants: list[str] = []
        self.definitions: list[str] = []    # what a definition needs comes before it

    def text(self) -> str:
        parts = ["\n".join(sorted(self.imports)), "\n".join(self.constants), *self.definitions]
        return "\n\n\n".join(part for part in parts if part) + "\n"

    def add(self, name: str, value) -> None:
        """Write down that `name` is `value`."""
        original = _original(value)
        if name in self.values:
            before = self.values[name]
            if before is not original and not _same_constant(before, value):
                raise NotWritable(f"it uses two different things that are called {name!r}")
            return
        self.values[name] = original
        if statement := self.import_of(name, original):
            self.imports.add(statement)
        elif isinstance(original, FunctionType):
            self.define(name, value)
        else:
            self.constants.append(f"{name} = {_constant(name, value)}")

    def import_of(self, name: str, value) -> str | None:
        """The import that binds `name` to `value`; None if it cannot be imported."""
        if isinstance(value, ModuleType):
            module = value.__name__
            return f"import {module}" if module == name else f"import {module} as {name}"
        if isinstance(value, torch.dtype):
            module, own = str(value).split(".")
        elif isinstance(value, FunctionType) and value in self.known:
            module, own = "minids.plain", self.known[value]
        elif isinstance(value, FunctionType) and _is_yours(value):
            return None
        else:
            module, own = _home(value)
        as_name = "" if own == name else f" as {name}"
        return f"from {module} import {own}{as_name}" if module else None

    def define(self, name: str, value) -> None:
        """Write a function, after what it needs."""
        function = _original(value)
        self.values[name] = function
        text = _definition(name, function, decorated=function is not value)
        around = function.__globals__ | _closure(function)
        for needed in global_names(text):
            if needed in around:
                self.add(needed, around[needed])
        self.definitions.append(text.rstrip())


def _original(value):
    """The function that was wrapped, or the value itself."""
    return inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value


def _is_yours(function: FunctionType) -> bool:
    """Whether a learner wrote it: it comes from no library, and not from the course."""
    module = sys.modules.get(function.__module__)
    if function.__module__ == "__main__" or not getattr(module, "__file__", None):
        return True
    file = Path(module.__file__).resolve()
    installed = (Path(sysconfig.get_path("stdlib")), ROOT / "minids")
    return not ({"site-packages", "dist-packages"} & set(file.parts)
                or any(file.is_relative_to(folder.resolve()) for folder in installed))


def _home(value) -> tuple[str | None, str]:
    """(a module that has `value`, its name there), the simplest one; (None, "") if none has it."""
    own, module = getattr(value, "__name__", None), getattr(value, "__module__", None)
    if not isinstance(own, str):
        return None, ""
    if isinstance(module, str):
        candidates = [module.partition(".")[0], module]
    else:                           # as for torch.cat
        public = [name for name in sys.modules if "._" not in f".{name}"]
        candidates = sorted(public, key=lambda name: (name.count("."), name))
    for name in candidates:
        if name != "__main__" and vars(sys.modules.get(name) or object).get(own) is value:
            return name, own
    return None, ""


def _constant(name: str, value) -> str:
    """An expression for a number, a string, or a tuple, list, set or dict of them."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    text = repr(value)
    try:
        if len(text) <= LONGEST_CONSTANT and _same_constant(ast.literal_eval(text), value):
            return text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise NotWritable(f"it uses {name!r}, a {type(value).__name__} of your notebook that cannot be "
                      f"written down: make it inside the function")


def _same_constant(a, b) -> bool:
    return type(a) is type(b) and isinstance(
        a, (int, float, complex, str, bytes, tuple, list, set, frozenset, dict, type(None))
    ) and repr(a) == repr(b)


def _closure(function: FunctionType) -> dict:
    """{name: value} of what a function uses from the function around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:          # not assigned yet
            pass
    return found


# ---- the text of one function ----


def _definition(name: str, function: FunctionType, decorated: bool) -> str:
    """The source of a function as a `def name`, not indented, perhaps with its decorators."""
    try:
        lines, _ = inspect.findsource(function)
        node = _node(ast.parse("".join(lines)), function.__code__)
    except (OSError, TypeError, SyntaxError, IndexError) as error:
        raise NotWritable("its source is not at hand") from error
    if isinstance(node, ast.Lambda):
        body = ast.get_source_segment("".join(lines), node.body)
        body = f"({body})" if "\n" in body else body
        return f"def {name}({ast.unparse(node.args)}):\n    return {body}\n"
    first = first_line(node) if decorated else node.lineno
    text = textwrap.dedent("".join(lines[first - 1:node.end_lineno]))
    try:
        compile(text, "<source>", "exec")
    except SyntaxError as error:
        raise NotWritable(f"its source does not stand alone ({error.msg})") from error
    return re.sub(r"^def\s+\w+", f"def {name}", text, count=1, flags=re.MULTILINE)


def first_line(node) -> int:
    """The line on which a definition begins, with its decorators."""
    decorators = getattr(node, "decorator_list", ())
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _node(tree: ast.Module, code: CodeType):
    """The `def` or `lambda` of a function's code in the tree of its file."""
    if code.co_name == "<lambda>":
        return _lambda(tree, code)
    for node in ast.walk(tree):
        if (isinstance(node, ast.FunctionDef) and node.name == code.co_name
                and first_line(node) <= code.co_firstlineno <= node.lineno):
            return node
    raise OSError("no such function")


def _lambda(tree: ast.Module, code: CodeType) -> ast.Lambda:
    """The lambda of this code: of those that begin on its line, the smallest around its body."""
    places = [(at.lineno, at.col_offset) for instruction in dis.get_instructions(code)
              if (at := instruction.positions).col_offset is not None
              and instruction.opname not in NO_PLACE]
    around = [node for node in ast.walk(tree)
              if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
              and all((node.body.lineno, node.body.col_offset) <= place
                      <= (node.body.end_lineno, node.body.end_col_offset) for place in places)]
    if not around:
        raise OSError("no such lambda")
    return max(around, key=lambda node: node.body.col_offset)


# ---- names in a text ----


def global_names(text: str) -> list[str]:
    """The names that the text's functions look up outside of themselves, in order.

    Raises `NotWritable` if a function assigns one of them.
    """
    names: dict = {}
    for code in _codes(compile(text, "<source>", "exec")):
        for instruction in dis.get_instructions(code):
            if instruction.opname in STORES:
                raise NotWritable(f"it changes the global name {instruction.argval!r}")
            if instruction.opname in LOADS and not instruction.argval.startswith("__"):
                names[instruction.argval] = True
    return list(names)


def local_names(text: str) -> set[str]:
    """The names that any function in the text binds for itself."""
    top, *codes = _codes(compile(text, "<source>", "exec"))
    return {name for code in codes for name in (*code.co_varnames, *code.co_cellvars)}


def rename(text: str, names: dict[str, str]) -> str:
    """The text with other names, {old: new}, for what is defined at its top or looked up there.

    Local names stay. Lines keep their numbers.
    """
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    for line, column, old in sorted(_places(text, names), reverse=True):
        row, end = lines[line - 1], column + len(old.encode())
        if row[column:end].decode() != old:
            raise NotWritable(f"{old!r} cannot be replaced by {names[old]!r} in its source")
        lines[line - 1] = row[:column] + names[old].encode() + row[end:]
    return b"".join(lines).decode()


def _places(text: str, names: dict[str, str]) -> set[tuple[int, int, str]]:
    """(line, column in bytes, name), wherever one of `names` has to be replaced."""
    places = set()
    for code in _codes(compile(text, "<source>", "exec")):
        for instruction in dis.get_instructions(code):
            if instruction.opname in LOADS and instruction.argval in names:
                at = instruction.positions
                places.add((at.lineno, at.col_offset, instruction.argval))
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            line = text.splitlines()[node.lineno - 1]
            places.add((node.lineno, re.match(r"def\s+", line).end(), node.name))
        elif isinstance(node, ast.Assign):
            places |= {(target.lineno, target.col_offset, target.id) for target in node.targets
                       if isinstance(target, ast.Name) and target.id in names}
    return places


def _codes(code: CodeType):
    """A code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def said(error: Exception) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
