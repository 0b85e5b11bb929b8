"""For lessons: exercise checks with hints, progress, the doctor, building and linting notebooks."""

from minids.learn.doctor import versions
from minids.learn.journal import progress
from minids.learn.judge import check, hint

__all__ = ["check", "hint", "progress", "versions"]
