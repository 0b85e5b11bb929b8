"""The layers of the package (docs/design.md): a module imports only from its own layer or from
lower ones, and no imports form a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import minids

PACKAGE = Path(minids.__file__).parent
# The lowest first. `plain` and `model` do not import each other.
LAYERS = ("errors", "system", "numerics", "config_file", "config", "data", "model", "plain",
          "weights", "cost", "pretrain", "inference", "learn", "posttrain", "recipes", "show",
          "flags", "cli")
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))}
ENTRY_POINTS = {"minids", "minids.__main__"}      # they may import from every layer


def layer(module: str) -> str:
    """minids.model.moe -> model."""
    return module.split(".")[1]


def height(module: str) -> int:
    """The number of the module's layer, counted from the lowest."""
    return LAYERS.index(layer(module))


def imports(path: Path):
    """(module, whether at the top of the file), for each module of minids that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.module and node.module.split(".")[0] == "minids":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield (full if full in MODULES else node.module), node in tree.body
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, node in tree.body


@cache
def all_imports():
    """(module, imported module, whether at the top of the file), without the entry points' own."""
    return [(module, imported, top) for module, path in MODULES.items()
            if module not in ENTRY_POINTS for imported, top in imports(path)]


def imports_between_layers():
    """(module, imported module), where neither is an entry point."""
    return [(module, imported) for module, imported, _ in all_imports()
            if imported not in ENTRY_POINTS]


def test_every_module_belongs_to_a_layer():
    assert {layer(module) for module in MODULES if module not in ENTRY_POINTS} == set(LAYERS)


def test_no_module_imports_from_a_higher_layer():
    wrong = [f"{module} imports {imported}" for module, imported in imports_between_layers()
             if height(imported) > height(module)]
    assert not wrong


def test_only_the_command_line_imports_lessons_and_plots():
    wrong = [f"{module} imports {imported}" for module, imported in imports_between_layers()
             if layer(imported) in ("learn", "show")
             and layer(module) not in (layer(imported), "cli")]
    assert not wrong


def test_no_import_is_relative():
    """`imports` sees absolute imports only."""
    wrong = [f"{module}, line {node.lineno}" for module, path in MODULES.items()
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.ImportFrom) and node.level != 0]
    assert not wrong


def test_no_imports_form_a_circle():
    graph = {module: set() for module in MODULES}
    for module, imported in imports_between_layers():
        graph[module].add(imported)
    TopologicalSorter(graph).prepare()      # raises CycleError, which names the circle


def test_only_the_command_line_imports_inside_functions():
    """It imports what a command needs when the command runs, so `minids --help` answers at once."""
    wrong = [f"{module} imports {imported}" for module, imported, top in all_imports()
             if not top and module != "minids.cli"]
    assert not wrong


def test_no_module_imports_from_minids_itself():
    """`from minids import Model` is for users. A module of the package names the file it needs."""
    wrong = [f"{module} imports {imported}" for module, imported, _ in all_imports()
             if imported == "minids"]
    assert not wrong
