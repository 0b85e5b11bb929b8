"""The floors of the house (docs/design.md): a module imports only from its own floor and from those below it, in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import minids

PACKAGE = Path(minids.__file__).parent
# From the ground up. `plain` stands beside `model`: neither imports the other.
FLOORS = ("errors", "system", "numerics", "config", "data", "model", "plain", "weights", "cost", "pretrain", "inference", "learn",
          "posttrain", "recipes", "show", "flags", "cli")
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}
ROOTS = {"minids", "minids.__main__"}      # the front door: it opens rooms of every floor


def room(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path):
    """(module, whether at the top of the file), for each module of the package that a file imports from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minids":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else node.module), node in tree.body
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names if alias.name in MODULES)


def all_imports():
    for module, path in MODULES.items():
        if module not in ROOTS:
            for imported, top in imports(path):
                yield module, imported, top


def test_every_module_stands_on_a_floor():
    assert {room(module) for module in MODULES if module not in ROOTS} == set(FLOORS)


def test_no_module_imports_from_a_floor_above_its_own():
    wrong = [f"{module} imports {imported}" for module, imported, _ in all_imports()
             if imported not in ROOTS and FLOORS.index(room(imported)) > FLOORS.index(room(module))]
    assert not wrong


def test_lessons_and_pictures_are_imported_by_the_command_line_alone():
    wrong = [f"{module} imports {imported}" for module, imported, _ in all_imports()
             if imported not in ROOTS and room(imported) in ("learn", "show") and room(module) not in (room(imported), "cli")]
    assert not wrong


def test_there_is_no_circle():
    graph = {module: set() for module in MODULES}
    for module, imported, _ in all_imports():
        if imported not in ROOTS:
            graph[module].add(imported)
    TopologicalSorter(graph).prepare()      # raises CycleError, which names the circle


def test_no_import_hides_in_a_function():
    """The command line alone imports when a command needs it: `minids --help` answers at once."""
    assert not [f"{module} imports {imported}" for module, imported, top in all_imports() if not top and module != "minids.cli"]


def test_nobody_imports_from_the_front_door_what_is_behind_it():
    """`from minids import Model` is for users: inside, a module names the file that it needs."""
    wrong = [f"{module} imports {imported}" for module, imported, _ in all_imports() if imported == "minids"]
    assert not wrong
