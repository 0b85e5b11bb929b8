"""The checks, a module for each lesson. A module has `LESSON`, the lesson's name, and `CHECKS`."""

from itertools import chain

from minids.errors import MinidsError
from minids.learn.checks import (
    attention,
    context,
    csa,
    distillation,
    hca,
    inference,
    mhc,
    moe,
    muon,
    numbers,
    pretrain,
    real,
    specialists,
    start,
    tokens,
    whole,
)
from minids.learn.exercise import Check

MODULES = (start, tokens, attention, hca, csa, context, moe, mhc,
           whole, muon, pretrain, numbers, specialists, distillation, inference, real)       # in the order of the course


def lessons() -> dict[str, list[str]]:
    """{lesson: names of its checks}, in the order of the course."""
    return {module.LESSON: [check.name for check in module.CHECKS] for module in MODULES}


def find(name: str) -> Check:
    """The check of this name. Raises `MinidsError`, with the names that exist, for any other."""
    for check in chain.from_iterable(module.CHECKS for module in MODULES):
        if check.name == name:
            return check
    known = ", ".join(chain.from_iterable(lessons().values()))
    raise MinidsError(f"no check {name!r}: expected one of {known}")
