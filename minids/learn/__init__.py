"""For lessons: exercise checks with hints, progress, a model of the learner's own functions, the
doctor, building and linting notebooks."""

from minids.learn import mine
from minids.learn.doctor import versions
from minids.learn.journal import progress
from minids.learn.judge import check, hint

__all__ = ["check", "hint", "mine", "progress", "versions"]
