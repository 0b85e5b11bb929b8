"""my_v4: `minids.plain` with a learner's functions in place of ours.

`keep` stores the source of a function that passed its check, in a file of its own in
`solutions/` of the learner's folder. `assemble` puts these files together with the text of
`minids/plain.py`; `write` makes `my_v4.py` of it. In a lesson:

    v4 = mine.load()
    model = v4.Model(config)            # calls the learner's functions

For how a function's source is found see `minids.learn.sources`; for tests and training of the
result see `minids.learn.trial`.
"""

import ast
import builtins
import hashlib
import inspect
import linecache
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from minids import plain
from minids.errors import MinidsError
from minids.learn.checks import PARTS, lessons
from minids.learn.sources import (
    NotWritable,
    first_line,
    global_names,
    local_names,
    rename,
    said,
    standalone,
)
from minids.system import paths
from minids.system.files import check_writable, write_text

FUNCTIONS = list(dict.fromkeys(PARTS.values()))     # what exercises write, in the order of lessons
LESSON_OF = {check: lesson for lesson, names in lessons().items() for check in names}
SEALED = "# sha256 of the text below: "

_passed: dict = {}      # {function that this kernel has kept: its name in `minids.plain`}


class Count(NamedTuple):
    """How many of the functions that exercises write are the learner's."""

    yours: int
    of: int

    def __str__(self):
        return f"{self.yours} of {self.of} functions are yours"


@dataclass(frozen=True)
class Kept:
    """A function that passed its check."""

    check: str
    text: str       # what it needs, then the function itself
    time: str       # when it passed, in ISO format; "" if the file does not say

    @property
    def part(self) -> str:
        """The function of `minids.plain` that it replaces."""
        return PARTS[self.check]

    @property
    def label(self) -> str:
        when = f", passed {self.time[:10]}" if self.time else ""
        return f"lesson {LESSON_OF[self.check]}, check {self.check}{when}"


class Model(NamedTuple):
    """The text of a my_v4, the functions in it that are the learner's, and what was left out."""

    text: str
    yours: dict[str, Kept]          # {function of plain: the learner's}
    problems: dict[str, str]        # {check: why its file is not used}


# ---- keeping ----


def keep(name: str, attempt) -> None:
    """Store the source of a function that passed the check `name`, which is one of `PARTS`.

    A later pass replaces an earlier one. What cannot be kept is said in one line, and the lesson
    continues. Two kernels may keep at once: each file is replaced as a whole.
    """
    original = inspect.unwrap(attempt) if callable(attempt) else attempt
    try:
        text = standalone(attempt, PARTS[name], _passed)
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        folder = paths.home() / "solutions"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{name}.py", f'"""{name}, passed {time}."""\n\n{text}')
    except NotWritable as reason:
        print(f"[my_v4] {name} has passed, but cannot become part of my_v4: {reason}.")
    except (MinidsError, OSError) as error:
        print(f"[my_v4] not kept: {error}")
    if inspect.isfunction(original):
        _passed[original] = PARTS[name]


def kept(home: Path | None = None) -> tuple[dict[str, Kept], dict[str, str]]:
    """({check: what is kept for it}, {check: why its file cannot be used}), in a learner's folder.

    Nothing is run. Raises `MinidsError` if the folder cannot be used.
    """
    folder, found, problems = (home or paths.home()) / "solutions", {}, {}
    for check in PARTS:
        path = folder / f"{check}.py"
        try:
            text = path.read_text(encoding="utf-8")
            body = ast.parse(text).body
            if not body or not isinstance(body[-1], ast.FunctionDef):
                raise SyntaxError("expected a function at its end")
        except FileNotFoundError:
            continue
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            problems[check] = f"{path} cannot be used ({said(error)})"
            continue
        time = re.search(r"passed (\S+?)\.?\"", text.partition("\n")[0])
        found[check] = Kept(check, text, time.group(1) if time else "")
    return found, problems


def chosen(found: dict[str, Kept]) -> dict[str, Kept]:
    """{function of plain: what replaces it}: where two checks ask for it, what passed later."""
    yours = {}
    for one in sorted(found.values(), key=lambda one: one.time):
        yours[one.part] = one
    return {part: yours[part] for part in FUNCTIONS if part in yours}


def count(home: Path | None = None) -> Count:
    """How many functions are the learner's. Raises `MinidsError` as `kept` does."""
    return Count(len(chosen(kept(home)[0])), len(FUNCTIONS))


# ---- assembling ----


def assemble() -> Model:
    """my_v4 of everything that is kept and runs. Raises `MinidsError` as `kept` does."""
    found, problems = kept()
    for check, one in list(found.items()):
        try:
            exec(compile(one.text, check, "exec"), {"__name__": check})
            together({one.part: one})
        except Exception as error:      # the learner's code: anything can happen
            problems[check] = (f"{paths.home() / 'solutions' / f'{check}.py'} cannot be used "
                               f"({said(error)})")
            del found[check]
    yours = chosen(found)
    return Model(together(yours), yours, problems)


def together(yours: dict[str, Kept]) -> str:
    """The text of `plain.py` with these functions in place of ours.

    What a function needs stands before it, as `_function__name`, so that no two names collide.
    """
    lines = inspect.getsource(plain).splitlines()
    tree = ast.parse("\n".join(lines))
    bound = _bound(tree)
    imports: dict[str, str] = {}            # {name: statement}
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name in yours:
            blocks = _blocks(yours[node.name], bound, imports)
            lines[node.lineno - 1:node.end_lineno] = "\n\n\n".join(blocks).splitlines()
    last = max(node.end_lineno for node in tree.body
               if isinstance(node, ast.Import | ast.ImportFrom))
    lines[last:last] = sorted(imports.values())
    about = [f"# my_v4: minids/plain.py with your functions in place of ours. "
             f"{Count(len(yours), len(FUNCTIONS))}.",
             "# Written by `minids mine`, which keeps a copy before it replaces a file that you "
             "have edited."]
    text = "\n".join(about + lines) + "\n"
    return f"{SEALED}{_digest(text)}\n{text}"


def _bound(tree: ast.Module) -> dict[str, str]:
    """{name: what it is} of all names that plain.py binds at its top, as `_imported` says it."""
    bound = {name: f"builtins.{name}" for name in dir(builtins)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound.update((name, origin) for name, origin, _ in _imported(node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound[node.name] = f"minids.plain.{node.name}"
        elif isinstance(node, ast.Assign):
            bound.update((target.id, f"minids.plain.{target.id}") for target in node.targets)
    return bound


def _imported(node):
    """(name, what it is, a statement that imports it) for each name that an import binds."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            origin, statement = alias.name, f"import {alias.name}"
        else:
            origin = f"{node.module}.{alias.name}"
            statement = f"from {node.module} import {alias.name}"
        yield alias.asname or alias.name, origin, statement


def _blocks(one: Kept, bound: dict, imports: dict) -> list[str]:
    """What a function needs, then the function, under the names that they have in my_v4.

    Adds to `imports`, and to `bound`, what my_v4 has to import for it.
    """
    part, body = one.part, ast.parse(one.text).body
    names, blocks = {}, []                  # {name in the kept text: name in my_v4}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            names[node.name] = _beside(part, node.name)
        elif isinstance(node, ast.Assign):
            names.update((target.id, _beside(part, target.id)) for target in node.targets)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, origin, statement in _imported(node):
                ours = _ours(origin, part)
                new = _name_of_import(one, name, origin, ours, bound)
                names[name] = new
                if new not in bound and ours:
                    blocks.append(f"def {new}(*args, **options):\n"
                                  f"    return {ours}(*args, **options)")
                elif new not in bound:
                    imports[new] = _import(statement, new)
                bound.setdefault(new, origin)
    names[body[-1].name] = part
    _refuse_capture(one, body[-1].name)
    lines, constants = rename(one.text, names).splitlines(), []
    for node in body:
        text = "\n".join(lines[first_line(node) - 1:node.end_lineno])
        if isinstance(node, ast.Assign):
            constants.append(text)
        elif isinstance(node, ast.FunctionDef):
            blocks.append(text)
    needed = [*(["\n".join(constants)] if constants else []), *blocks[:-1]]
    return [*(f"# For {part}, below.\n{block}" for block in needed),
            f"# Yours: {one.label}.\n{blocks[-1]}"]


def _beside(part: str, name: str) -> str:
    """The name in my_v4 of something that a function needs: no name of plain.py looks like it."""
    return f"_{part}__{name}"


def _ours(origin: str, part: str) -> str | None:
    """The name in my_v4 of a function or class of plain.py; None for anything else.

    A function that calls the function of plain.py in whose place it stands goes on calling that.
    """
    module, _, name = origin.rpartition(".")
    return name if module == "minids.plain" and name != part and hasattr(plain, name) else None


def _name_of_import(one: Kept, name: str, origin: str, ours: str | None, bound: dict) -> str:
    """The name in my_v4 of something that a kept text imports as `name`."""
    if ours:        # no function may have a local variable of the new name
        fits = ours == name or ours not in local_names(one.text)
    else:           # no other thing may have the name
        fits = bound.get(name, origin) == origin
    return (ours or name) if fits else _beside(one.part, name)


def _import(statement: str, name: str) -> str:
    return statement if statement.rpartition(" ")[2] == name else f"{statement} as {name}"


def _refuse_capture(one: Kept, name: str) -> None:
    """Raise `NotWritable` if a function that calls itself has a local variable of its new name."""
    if name != one.part and name in global_names(one.text) and one.part in local_names(one.text):
        raise NotWritable(f"call the function itself {one.part!r}, and its variable otherwise")


# ---- the file and the module ----


def table(model: Model) -> str:
    """A line for each function that exercises write, and how many are the learner's."""
    lines = [f"{'function':20} {'lesson':16} whose"]
    for part in FUNCTIONS:
        checks = [check for check in PARTS if PARTS[check] == part]
        one = model.yours.get(part)
        lesson = LESSON_OF[one.check if one else checks[0]]
        others = [check for check in checks if one and check != one.check]
        whose = f"yours: {one.check}, {one.time[:10]}" if one else "ours"
        if others:
            whose += f" (before {', '.join(others)})"
        if any(check in model.problems for check in checks):
            whose += ", see below"
        lines.append(f"{part:20} {lesson:16} {whose}")
    lines += [f"{problem}: ours is used" for problem in model.problems.values()]
    lines.append(str(Count(len(model.yours), len(FUNCTIONS))))
    return "\n".join(lines)


def write(model: Model, out: Path | None = None) -> Path:
    """Write my_v4.py, to `out` or into the folder of the learner's lessons; returns its path.

    A file there that `write` did not make, or that was edited since, is kept beside it.
    """
    path = Path(out) if out else paths.work() / "my_v4.py"
    check_writable(path)
    try:
        before = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        before = None
    except (OSError, ValueError) as error:
        raise MinidsError(f"{path} is there and is no text ({said(error)}): "
                          f"choose another file") from error
    if before is not None and not _is_sealed(before):
        number = 1
        while (aside := path.with_name(f"{path.stem}.edited-{number}{path.suffix}")).exists():
            number += 1
        write_text(aside, before)
        print(f"{path} had been edited: it is kept as {aside.name}")
    write_text(path, model.text)
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_sealed(text: str) -> bool:
    """Whether a text is as `together` made it."""
    first, _, rest = text.partition("\n")
    return first == SEALED + _digest(rest)


def load() -> ModuleType:
    """my_v4 of everything that is kept, as a module. Prints what cannot be used, and why."""
    model = assemble()
    for problem in model.problems.values():
        print(f"[my_v4] {problem}: ours is used")
    return as_module(model.text)


def as_module(text: str) -> ModuleType:
    """The module of a my_v4. Its lines appear in error messages."""
    module, file = ModuleType("my_v4"), f"<my_v4 {_digest(text)[:8]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), vars(module))
    return module
