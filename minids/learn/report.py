"""Tables of progress: a learner's own by lesson, and a class's, with those who are stuck first."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from textwrap import shorten

from minids.errors import MinidsError
from minids.learn import journal, mine
from minids.learn.checks import lessons


def learner(home: Path | None = None) -> dict:
    """The progress in a learner's folder (default: your own), for programs.

    {"lessons": {lesson: {"passed", "exercises", "attempts", "hints", "last", "checks"}},
     "my_v4": {"yours", "of"}}; for `checks` see `_check`. Times are in ISO format, or None.
    """
    by_check: dict[str, list] = {}
    for event in journal.events(home):
        by_check.setdefault(event["check"], []).append(event)
    table = {}
    for lesson, names in lessons().items():
        checks = {name: _check(by_check.get(name, [])) for name in names}
        table[lesson] = {
            "passed": sum(check["passed"] is not None for check in checks.values()),
            "exercises": len(names),
            "attempts": sum(check["attempts"] for check in checks.values()),
            "hints": sum(check["hints"] for check in checks.values()),
            "last": max((check["last"] for check in checks.values() if check["last"]),
                        key=_time, default=None),
            "checks": checks}
    yours = mine.count(home)
    return {"lessons": table, "my_v4": {"yours": yours.yours, "of": yours.of}}


def _check(events: list[dict]) -> dict:
    """What a learner has done in one exercise, the oldest event first.

    Attempts count up to the first pass. `message` is what was said of them most often.
    """
    passed, attempts, hints, first = None, 0, 0, None
    messages: Counter = Counter()
    for event in events:
        hints += event["verdict"] == "hint"
        if event["verdict"] in ("passed", "not yet") and passed is None:
            attempts += 1
            first = first or event["time"]
            if event["verdict"] == "passed":
                passed = event["time"]
            elif event["message"]:
                messages[event["message"]] += 1
    return {"passed": passed, "attempts": attempts, "hints": hints, "first": first,
            "last": events[-1]["time"] if events else None,
            "message": messages.most_common(1)[0][0] if messages else None}


def show(report: dict) -> str:
    """The table of a learner, a line for each lesson."""
    lines = [f"{'lesson':24} {'passed':>8} {'attempts':>9} {'hints':>6}   last activity"]
    for lesson, row in report["lessons"].items():
        passed = f"{row['passed']} of {row['exercises']}"
        last = (row["last"] or "").replace("T", " ")[:16]
        lines.append(f"{lesson:24} {passed:>8} {row['attempts']:9} {row['hints']:6}   {last}"
                     .rstrip())
    lines.append(f"my_v4: {mine.Count(**report['my_v4'])}")
    return "\n".join(lines)


# ---- for a teacher ----


def classroom(folder: Path) -> list[dict]:
    """A row for each learner's folder in `folder`, those who need help first.

    A learner's folder is a MINIDS_HOME, or a home with `.minids` in it. A row has `learner`,
    `passed`, `exercises`, `lesson` (of the last activity), `last`, `yours` (functions of my_v4),
    and `stuck`: None, or the check that has the most attempts and no pass, with `check`,
    `attempts`, `hints`, `minutes` since the first attempt and `message`, the mistake that was named
    most often. A folder that cannot be read has `learner` and `error`, and comes last.
    """
    if not folder.is_dir():
        raise MinidsError(f"no folder {folder}: expected one that holds a folder for each learner")
    if (folder / "progress.jsonl").exists() or (folder / ".minids").is_dir():
        raise MinidsError(f"{folder} belongs to one learner: expected the folder above, which "
                          f"holds a folder for each")
    try:
        homes = sorted(path for path in folder.iterdir()
                       if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise MinidsError(f"cannot read {folder}: {error.strerror}") from error
    return sorted((_row(home) for home in homes), key=_urgency)


def _row(folder: Path) -> dict:
    try:
        below = folder / ".minids"
        report = learner(below if below.is_dir() else folder)
    except (MinidsError, OSError) as error:
        return {"learner": folder.name, "error": str(error)}
    table = report["lessons"]
    active = {lesson: row for lesson, row in table.items() if row["last"]}
    here = max(active, key=lambda lesson: _time(active[lesson]["last"]), default=None)
    return {"learner": folder.name,
            "passed": sum(row["passed"] for row in table.values()),
            "exercises": sum(row["exercises"] for row in table.values()),
            "lesson": here, "last": here and active[here]["last"],
            "yours": report["my_v4"]["yours"], "stuck": _stuck(table)}


def _stuck(table: dict) -> dict | None:
    """The exercise without a pass that has the most attempts; None if there is none."""
    tried = {name: check for row in table.values() for name, check in row["checks"].items()
             if check["attempts"] and check["passed"] is None}
    if not tried:
        return None
    name = max(tried, key=lambda name: tried[name]["attempts"])
    check = tried[name]
    minutes = (datetime.now().astimezone() - _time(check["first"])).total_seconds() / 60
    return {"check": name, "attempts": check["attempts"], "hints": check["hints"],
            "minutes": max(int(minutes), 0), "message": check["message"]}


def _urgency(row: dict) -> tuple:
    """A key that sorts by need: many attempts without a pass, then much time, then few passes."""
    if "error" in row:
        return 1, 0, 0, 0, row["learner"]
    stuck = row["stuck"] or {"attempts": 0, "minutes": 0}
    return 0, -stuck["attempts"], -stuck["minutes"], row["passed"], row["learner"]


def _time(text: str) -> datetime:
    """The time of an event. One without a time zone, or a date, is in local time."""
    return datetime.fromisoformat(text).astimezone()


def show_classroom(rows: list[dict]) -> str:
    """The table of a class: two lines for each learner who is stuck, one for the others."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['learner']}: cannot be read: {row['error']}")
            continue
        done = f"{row['passed']} of {row['exercises']} passed, {row['yours']} functions in my_v4"
        where = f"in {row['lesson']}" if row["lesson"] else "not begun"
        lines.append(f"{row['learner']:16} {where}, {done}")
        if stuck := row["stuck"]:
            lines.append(f"    {stuck['check']}: {_some(stuck['attempts'], 'attempt')} without a "
                         f"pass, {_some(stuck['hints'], 'hint')}, first attempt "
                         f"{_ago(stuck['minutes'])} ago")
            if stuck["message"]:
                lines.append(f"    most often: {shorten(stuck['message'], 76)}")
    return "\n".join(lines) or "no learner's folder here"


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ago(minutes: int) -> str:
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 2 * 24 * 60 else f"{minutes // (24 * 60)} days"
