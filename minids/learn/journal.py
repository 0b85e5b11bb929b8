"""What a learner has tried: attempts, hints and passes, with their times, in the learner's folder.

The journal is `progress.jsonl`, one line for each event, which is only ever appended to:

    {"time": "2026-03-01T10:20:30+01:00", "check": "mhc.site", "verdict": "passed", "message": ""}

A lock lets several notebooks record at once. A line that cannot be read is skipped and stays in the
file. `progress.json`, in which earlier versions kept the dates of passes, is read as well. For the
tables that are made of it see `minids.learn.report`.
"""

import json
import os
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from minids.errors import MinidsError
from minids.learn import mine
from minids.learn.checks import lessons
from minids.system import paths

VERDICTS = ("passed", "not yet", "not attempted", "hint")
SECONDS_TO_WAIT = 10        # for another notebook that is recording


def record(name: str, verdict: str, message: str = "") -> None:
    """Append an event: a check's name, one of `VERDICTS`, and what the learner was told.

    If that is impossible, one line says why, and the lesson continues.
    """
    event = {"time": datetime.now().astimezone().isoformat(timespec="seconds"),
             "check": name, "verdict": verdict, "message": message[:500]}
    try:
        path = paths.home() / "progress.jsonl"
        with FileLock(path.with_name("progress.lock"), timeout=SECONDS_TO_WAIT):
            _append(path, json.dumps(event).encode())
    except (MinidsError, Timeout) as error:
        print(f"[progress] not saved: {error}")
    except (OSError, NotImplementedError) as error:     # the latter: a drive without locks
        print(f"[progress] not saved: cannot write in {path.parent}: "
              f"{getattr(error, 'strerror', None) or error}. "
              "Set MINIDS_HOME to a folder you can write to")


def _append(path: Path, line: bytes) -> None:
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":       # the last writer was interrupted
                line = b"\n" + line
        file.write(line + b"\n")


def events(home: Path | None = None) -> list[dict]:
    """All events in a learner's folder (default: your own), the oldest first.

    Passes that an earlier version recorded have a date in place of a time. Prints a line for what
    is damaged. Raises `MinidsError` if the folder cannot be read.
    """
    home = home or paths.home()
    found, damaged = _old_passes(home / "progress.json"), 0
    for line in _bytes(home / "progress.jsonl").splitlines():
        event = _event(line)
        if event:
            found.append(event)
        elif line.strip():
            damaged += 1
    if damaged:
        print(f"[progress] {damaged} damaged lines of {home / 'progress.jsonl'} are skipped; "
              "they stay in the file.")
    return found


def _event(line: bytes) -> dict | None:
    """The event of a line; None if it holds none."""
    try:
        event = json.loads(line)
        datetime.fromisoformat(event["time"]).astimezone()
        well_formed = (event["verdict"] in VERDICTS and isinstance(event["check"], str)
                       and isinstance(event["message"], str))
        return event if well_formed else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _old_passes(path: Path) -> list[dict]:
    """The passes in a file of an earlier version: {"passed": {check: date}}."""
    text = _bytes(path)
    if not text:
        return []
    try:
        passed = json.loads(text)["passed"]
        return [{"time": datetime.fromisoformat(date).date().isoformat(), "check": name,
                 "verdict": "passed", "message": ""} for name, date in passed.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        print(f"[progress] {path} is damaged and is skipped; it stays as it is.")
        return []


def _bytes(path: Path) -> bytes:
    """What a file holds; nothing if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise MinidsError(f"cannot read {path}: {error.strerror or error}") from error


def read() -> dict[str, str]:
    """{name of a check: date when it was first passed}. Raises `MinidsError` as `events` does."""
    passed = {}
    for event in events():
        if event["verdict"] == "passed":
            passed.setdefault(event["check"], event["time"][:10])
    return passed


def summary() -> dict[str, tuple[int, int]]:
    """{lesson: (exercises passed, exercises)} of the lessons that have exercises."""
    passed = read()
    return {lesson: (sum(name in passed for name in names), len(names))
            for lesson, names in lessons().items()}


def progress() -> None:
    """Print a line for each lesson that has exercises, and how much of my_v4 is yours.

    Where progress cannot be read, one line says why. Builds and tests of the course use an empty
    folder, so that the shipped notebooks show no one's progress. Tag a cell that calls this
    `nbval-ignore-output`: its output changes whenever the course gains an exercise.
    """
    try:
        for lesson, (passed, total) in summary().items():
            print(f"{lesson:24} {'#' * passed}{'.' * (total - passed)}  {passed} of {total}")
        print(f"my_v4: {mine.count()}")
    except MinidsError as error:
        print(f"[progress] cannot be read: {error}")
