"""What lessons are made with: exercise checks with hints, progress, the doctor, building and linting both editions."""

from minids.learn.doctor import versions
from minids.learn.journal import progress
from minids.learn.judge import check, hint

__all__ = ["check", "hint", "progress", "versions"]
