"""Which exercises a learner has passed: a small JSON file in the learner's own folder."""

import json
import time
from pathlib import Path

from minids.errors import MinidsError
from minids.learn.checks import lessons
from minids.system import paths
from minids.system.files import write_text


def _file() -> Path:
    return paths.home() / "progress.json"


def read() -> dict[str, str]:
    """{name of a check: date when it was first passed}.

    A file that is not readable is set aside, never overwritten. Raises `MinidsError` if the folder
    cannot be used.
    """
    path = _file()
    try:
        passed = json.loads(path.read_text(encoding="utf-8"))["passed"]
        if not isinstance(passed, dict) or not all(isinstance(v, str) for v in passed.values()):
            raise ValueError("expected a dict of dates")
        return passed
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError):
        aside = _set_aside(path)
        print(f"[progress] {path} was not readable. It is kept as {aside.name}; "
              "progress starts anew.")
        return {}
    except OSError as error:
        raise MinidsError(f"cannot read {path}: {error.strerror}. "
                          "Set MINIDS_HOME to a folder you can use") from error


def _set_aside(path: Path) -> Path:
    """Rename a damaged file to the next free name, and return that."""
    number = 1
    while (aside := path.with_name(f"progress.damaged-{number}.json")).exists():
        number += 1
    path.replace(aside)
    return aside


def record(name: str, verdict: str = "passed", message: str = "") -> None:
    """Record that a check was passed. If that is impossible, print why; the lesson continues."""
    if verdict != "passed":
        return
    try:
        passed = read()
        if name not in passed:
            passed = {**passed, name: time.strftime("%Y-%m-%d")}
            write_text(_file(), json.dumps({"passed": passed}, indent=1) + "\n")
    except MinidsError as error:
        print(f"[progress] not saved: {error}")


def summary() -> dict[str, tuple[int, int]]:
    """{lesson: (exercises passed, exercises)} of the lessons that have exercises."""
    passed = read()
    return {lesson: (sum(name in passed for name in names), len(names))
            for lesson, names in lessons().items()}


def progress() -> None:
    """Print a line for each lesson that has exercises.

    Builds and tests of the course use an empty folder, so that the shipped notebooks show no one's
    progress. Tag a cell that calls this `nbval-ignore-output`: its output changes whenever the
    course gains an exercise.
    """
    for lesson, (passed, total) in summary().items():
        print(f"{lesson:24} {'#' * passed}{'.' * (total - passed)}  {passed} of {total}")
