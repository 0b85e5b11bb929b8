"""How many minutes a lesson takes a learner, computed from its source.

Reading: 180 words a minute. Of folded text (`<details>`), which is read on demand, half the words
count. Visible code: 15 lines a minute; solutions and folded cells are not visible. A figure, a
table and a prediction take a minute each, a widget and a question to discuss two. An exercise takes
the minutes that it states. The total of a lesson holds the exercises of its core; those that are
marked `extra` are counted apart.

The total is printed in the lesson's header, in README's table and in the map: see `places`.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from minids.errors import MinidsError
from minids.learn import course
from minids.learn.lint import PREDICTION
from minids.system.files import write_text
from minids.system.paths import ROOT

WORDS, LINES = 180, 15      # a minute
DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)
TAG = re.compile(r"<[^<>]*>")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"\S*\w\S*")
TABLE_RULE = re.compile(r"^\|[ :|-]+\|$", re.MULTILINE)
PICTURE = re.compile(r"!\[|<img\b")
# "### Exercise 3: fix it (core, easy, 8 minutes)", or the words in brackets on the next line
EXERCISE = re.compile(r"^#{2,4} Exercise\b(.*(?:\n+.*)?)", re.MULTILINE)
STATED = re.compile(r"[(*]([^()*]*?)(\d+) minutes?\b")
DISCUSSION = re.compile(r"^## Questions to discuss$(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


@dataclass
class Minutes:
    """The minutes of a lesson, part by part; `extra` does not count in the total."""

    reading: float = 0
    code: float = 0
    figures: float = 0          # and tables
    predictions: float = 0
    widgets: float = 0
    exercises: float = 0
    discussion: float = 0
    extra: float = 0

    @property
    def total(self) -> int:
        return round(sum(getattr(self, field.name) for field in fields(self)) - self.extra)


def minutes(source) -> Minutes:
    """What the lesson of a source file takes. Raises `MinidsError` for an exercise without
    minutes."""
    result = Minutes()
    for cell in course.edition(source, "learner").cells:
        if cell.cell_type == "markdown":
            add_text(result, cell.source, source.name)
        elif not cell.metadata.get("jupyter", {}).get("source_hidden"):
            result.code += sum(map(bool, cell.source.split("\n"))) / LINES
        if cell.cell_type == "code":
            result.figures += len(re.findall(r"\bstyle\.show\(|\btable\(", cell.source))
            result.widgets += 2 * cell.source.count("slider_image(")
    return result


def add_text(result: Minutes, text: str, name: str) -> None:
    """Add what a cell of text takes."""
    for discussion in DISCUSSION.findall(text):
        result.discussion += 2 * discussion.count("<details>")
    folded = DETAILS.findall(text)
    result.reading += (words(text) - sum(map(words, folded)) / 2) / WORDS
    result.code += sum(block.count("\n") - 1 for block in FENCE.findall(text)) / LINES
    result.figures += len(TABLE_RULE.findall(text)) + len(PICTURE.findall(text))
    result.predictions += len(PREDICTION.findall(text))
    for heading in EXERCISE.findall(text):
        stated = STATED.search(heading)
        if not stated:
            raise MinidsError(f"{name}: expected minutes in the heading of exercise "
                              f"{heading.splitlines()[0].strip()!r}, as in (core, easy, 5 minutes)")
        if "extra" in stated[1].lower():
            result.extra += int(stated[2])
        else:
            result.exercises += int(stated[2])


def words(text: str) -> int:
    """The words of a text, without code blocks and HTML tags."""
    return len(WORD.findall(TAG.sub(" ", FENCE.sub("", text))))


def table(names=None, folder=None) -> str:
    """The minutes of the named lessons, a line each."""
    parts = [field.name for field in fields(Minutes)]
    lines = [f"{'lesson':28}" + "".join(f"{part:>12}" for part in [*parts, "total"])]
    for source in course.sources(names, folder):
        found = minutes(source)
        values = [*(getattr(found, part) for part in parts), found.total]
        lines.append(f"{source.stem:28}" + "".join(f"{value:12.0f}" for value in values))
    return "\n".join(lines)


def places(source: Path) -> list[tuple[Path, str]]:
    """Where the minutes of a lesson are printed: files, each with a pattern of three groups. The
    second is the number."""
    name = re.escape(source.stem)
    return [(source, r"(Time: )(\d+)( minutes, exercises included)"),
            (ROOT / "README.md", rf"(\| \[{name}\]\([^)]*\) \| )(\d+)( \|)"),
            (ROOT / "minids" / "show" / "start.py", rf'("{name}",.*?", )(\d+)(,\s+\()')]


def stale(names=None, folder=None) -> list[str]:
    """The places that print another number than the computed one, or none."""
    found = []
    for source in course.sources(names, folder):
        total = minutes(source).total
        for path, pattern in places(source):
            match = re.search(pattern, path.read_text(encoding="utf-8"), re.DOTALL)
            if match is None or int(match[2]) != total:
                found.append(f"{path.name}: expected {total} minutes for {source.stem}, found "
                             f"{match[2] if match else 'none'}: run `minids course time --write`")
    return found


def write(names=None, folder=None) -> None:
    """Put the computed minutes into all places."""
    for source in course.sources(names, folder):
        total = minutes(source).total
        for path, pattern in places(source):
            text = path.read_text(encoding="utf-8")
            text = re.sub(pattern, rf"\g<1>{total}\g<3>", text, count=1, flags=re.DOTALL)
            write_text(path, text)
