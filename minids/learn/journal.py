"""Which exercises a learner has passed: one small JSON file in the learner's own folder, outside the repository."""

import json
import time

from minids.errors import MinidsError
from minids.learn.checks import lessons
from minids.system import paths
from minids.system.files import write_text


def _file():
    return paths.home() / "progress.json"


def read() -> dict[str, str]:
    """{name of the check: date when it was first passed}. A file that is not readable is set aside, never overwritten."""
    path = _file()
    try:
        passed = json.loads(path.read_text(encoding="utf-8"))["passed"]
        if not isinstance(passed, dict) or not all(isinstance(v, str) for v in passed.values()):
            raise ValueError("no dict of dates")
        return passed
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError):
        number = 1
        while (aside := path.with_name(f"progress.damaged-{number}.json")).exists():
            number += 1
        path.replace(aside)
        print(f"[progress] {path} was not readable. It is kept as {aside.name}; progress starts anew.")
        return {}
    except OSError as error:
        raise MinidsError(f"cannot read {path}: {error.strerror}. Set MINIDS_HOME to a folder you can use") from error


def record(name: str) -> None:
    """Note that a check was passed. Where the file cannot be written it says so, and the lesson goes on."""
    try:
        passed = read()
        if name not in passed:
            write_text(_file(), json.dumps({"passed": {**passed, name: time.strftime("%Y-%m-%d")}}, indent=1) + "\n")
    except MinidsError as error:
        print(f"[progress] not saved: {error}")


def summary() -> dict[str, tuple[int, int]]:
    """{lesson: (exercises passed, of how many)} of the lessons that have exercises."""
    passed = read()
    return {lesson: (sum(name in passed for name in names), len(names)) for lesson, names in lessons().items()}


def progress() -> None:
    """Print a line for each lesson that has exercises.

    The builds and tests of the course use a fresh folder, so that nobody's progress shows in the shipped notebooks.
    A cell with it is tagged `nbval-ignore-output`: the line changes as exercises are added to the course.
    """
    for lesson, (done, of) in summary().items():
        print(f"{lesson:24} {'#' * done}{'.' * (of - done)}  {done} of {of}")
