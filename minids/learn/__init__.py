"""What lessons are made with: exercise checks with hints, progress, the doctor, building and linting both editions."""

from minids.learn.doctor import versions
from minids.learn.exercise import check, hint
from minids.learn.journal import progress

__all__ = ["check", "hint", "progress", "versions"]
