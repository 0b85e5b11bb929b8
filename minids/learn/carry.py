"""Carrying a learner's answers from one version of a lesson to another: a three-way merge of cells.

Three notebooks take part: the `base` that the learner's copy came from, the copy itself (`mine`),
and the lesson as it is now (`new`). A cell is the learner's if its text differs from the base's.
The result has every cell of `new`, with the learner's text where the learner changed it and the
lesson did not. What has no place in the result is returned beside it, so nothing is lost.
"""

import copy
import re
from dataclasses import dataclass

STUB = re.compile(r'raise NotImplementedError\("your turn"\)|^\.\.\.  # your turn$', re.MULTILINE)
CHECK = re.compile(r'\bcheck\(\s*["\']([a-z0-9_]+\.[a-z0-9_]+)["\']\s*,\s*([A-Za-z_]\w*)')


@dataclass
class Unplaced:
    """A learner's cell that has no place in the new lesson, and why."""

    cell: dict
    reason: str


def merge(base, mine, new) -> tuple:
    """(the new lesson with the learner's answers, the list of `Unplaced` cells).

    `base` may be None, where it is not known: then a cell counts as changed if the new lesson's
    differs, and what is not in the new lesson is unplaced.
    """
    result, unplaced = copy.deepcopy(new), []
    start = new if base is None else base
    of_mine = pair(mine.cells, start.cells)                     # {index in mine: index in start}
    of_start = {i: i for i in range(len(new.cells))} if base is None else pair(base.cells,
                                                                               new.cells)
    exercises = named(new.cells)
    followed, added = None, {}          # {index in new, or None for the top: the learner's cells}
    for i, cell in enumerate(mine.cells):
        if i not in of_mine:
            if cell.source.strip() and base is None:
                unplaced.append(Unplaced(cell, "The lesson does not have this cell."))
            elif cell.source.strip():
                added.setdefault(followed, []).append(copy.deepcopy(cell))
            continue
        old = start.cells[of_mine[i]]
        place = of_start.get(of_mine[i])
        if place is None:
            if cell.source != old.source:
                unplaced.append(Unplaced(cell, "The lesson no longer has this cell."))
            continue
        followed = place
        kept = _place(result.cells[place], cell, None if base is None else old, place in exercises)
        if kept is not None:
            unplaced.append(Unplaced(cell, kept))
    result.cells = _insert(result.cells, added)
    _keep_widgets(mine, result)
    return result, unplaced


def _place(target, cell, old, is_exercise: bool) -> str | None:
    """Put what the learner has in `cell` into `target`, a cell of the new lesson, if it belongs
    there. Returns the reason if it does not. `old` is the cell of the base, if there is one."""
    same_as_new, changed = cell.source == target.source, old is None or cell.source != old.source
    if not same_as_new and not changed:
        return None                                     # the lesson changed, the learner did not
    if not same_as_new:
        lesson_changed = old is None or target.source != old.source
        if lesson_changed and is_exercise and STUB.search(cell.source):
            return "It has no complete answer, and the exercise has changed."
        if lesson_changed and not is_exercise:
            return "It differs from the lesson's cell." if old is None else \
                "You changed this cell, and the lesson has changed it as well."
        target.source = cell.source
    if cell.cell_type == "code" and (old is None or cell.outputs != old.outputs):
        target.outputs = copy.deepcopy(cell.outputs)
        target.execution_count = cell.execution_count
    if "attachments" in cell:
        target.attachments = copy.deepcopy(cell.attachments)
    view = cell.metadata.get("jupyter")                 # what the learner folded or opened
    if old is not None and view != old.metadata.get("jupyter"):
        target.metadata.pop("jupyter", None)
        if view is not None:
            target.metadata["jupyter"] = copy.deepcopy(view)
    return None


def _keep_widgets(mine, result) -> None:
    """Add the saved states of the learner's widgets to the new lesson's."""
    kept = copy.deepcopy(mine.metadata.get("widgets", {}))
    for mime, saved in result.metadata.get("widgets", {}).items():
        if mime in kept:
            kept[mime]["state"] = {**saved.get("state", {}), **kept[mime].get("state", {})}
        else:
            kept[mime] = saved
    if kept:
        result.metadata["widgets"] = kept


def _insert(cells: list, added: dict) -> list:
    """The cells, each followed by those that the learner added after it. Ids stay unique."""
    result, ids = list(added.get(None, [])), {cell.get("id") for cell in cells}
    for i, cell in enumerate(cells):
        result += [cell, *added.get(i, [])]
    for cell in (cell for group in added.values() for cell in group):
        number, stem = 2, cell.get("id") or "mine"
        while cell.get("id") is None or cell["id"] in ids:
            cell["id"] = f"{stem[:58]}-{number}"
            number += 1
        ids.add(cell["id"])
    return result


def pair(old: list, new: list) -> dict[int, int]:
    """{index in `old`: index in `new`} of the cells that are the same cell, each at most once.

    Cells are the same if they are the same exercise (of two, the one with the same id); or have the
    same id and text; or a text that no other cell has; or the same id; or else the same text.
    """
    pairs = {}

    def match(key_of):
        """Pair the free cells whose keys are equal, and those of each key in order."""
        free = {}
        for j, cell in enumerate(new):
            if j not in pairs.values() and (key := key_of(new, j)):
                free.setdefault(key, []).append(j)
        for i in range(len(old)):
            if i not in pairs and (key := key_of(old, i)) and free.get(key):
                pairs[i] = free[key].pop(0)

    names = {id(old): named(old), id(new): named(new)}
    match(lambda cells, i: names[id(cells)].get(i) and (names[id(cells)][i], cells[i].get("id")))
    match(lambda cells, i: names[id(cells)].get(i))
    match(lambda cells, i: (cells[i].get("id"), cells[i].source))
    match(lambda cells, i: cells[i].source if _count(cells, cells[i].source) == 1 else None)
    match(lambda cells, i: cells[i].get("id") and (cells[i]["id"], cells[i].cell_type))
    match(lambda cells, i: cells[i].source)
    return pairs


def _count(cells: list, source: str) -> int:
    return sum(cell.source == source for cell in cells)


def named(cells: list) -> dict[int, str]:
    """{index: name of its (first) check} of the cells that hold an exercise.

    A cell says so in its metadata. In older lessons it is the last cell, at or before
    `check("name", function)`, that defines this function.
    """
    names = {i: cell.metadata["minids"]["exercises"][0] for i, cell in enumerate(cells)
             if cell.metadata.get("minids", {}).get("exercises")}
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        for name, function in CHECK.findall(cell.source):
            if name not in names.values() and (home := _home(cells, i, function)) is not None:
                names.setdefault(home, name)
    return names


def _home(cells: list, last: int, function: str) -> int | None:
    """The index of the last code cell up to `last` that defines `function`."""
    defines = re.compile(rf"^(def|class) {function}\b|^{function}\b[^=\n]*=(?!=)(?!.*\bcheck\()",
                         re.MULTILINE)
    for i in range(last, -1, -1):
        if cells[i].cell_type == "code" and defines.search(cells[i].source):
            return i
    return None
