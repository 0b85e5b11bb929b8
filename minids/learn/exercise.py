"""What an exercise is: a reference, cases to try, and the usual mistakes.

For how attempts are compared with the reference see `minids.learn.judge`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Check:
    """One exercise.

    `cases(rng)` yields pairs (what the case tries, arguments), from the fundamental to the subtle;
    `rng` is a seeded torch.Generator. `mistakes` maps a message to a wrong version of the
    reference. Functions return a tensor, a number, or a tuple, list or dict of these. A difference
    above atol + rtol * |expected| counts as wrong. `gradient` says whether gradients are compared,
    too.
    """

    name: str
    reference: Callable
    cases: Callable[[torch.Generator], Iterable]
    mistakes: dict[str, Callable] = field(default_factory=dict)
    hints: tuple[str, ...] = ()
    atol: float = 1e-5
    rtol: float = 1e-4
    gradient: bool = True


class CheckFailed(AssertionError):
    """A check did not pass while MINIDS_STRICT=1."""


class NotAttempted(Exception):
    """The exercise is still empty."""
