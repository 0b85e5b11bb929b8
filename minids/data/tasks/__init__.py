"""Task families with verifiers: what the specialists learn, and what says whether an answer is right.

Report: post-training trains a specialist per domain with verifiable rewards (section 5.1). Four families mirror V4's
domains: mathematics, coding, reasoning, knowledge. Each is a module beside this one, with

    draw(rng, difficulty) -> Problem      one problem, from a `random.Random` and a difficulty of 1 to 5
    verify(problem, text) -> bool         is `text` a right answer? Code decides, and never raises
    identity(problem) -> str              what is asked, the same for problems that are trivially equal; may be left
                                          out where the kind and the words of the prompt say it
    split(problem) -> str                 only where something other than the hash of the identity decides the split

This file numbers the problems and keeps the splits apart. Special tokens, rewards and training are left to others.
"""

import random
from functools import cache
from types import ModuleType

from minids.data.splits import SPLITS, _hash, split_by_hash
from minids.data.tasks import coding, knowledge, mathematics, reasoning
from minids.data.tasks.problem import Problem
from minids.errors import MinidsError

MODULES = {"mathematics": mathematics, "coding": coding, "reasoning": reasoning, "knowledge": knowledge}
FAMILIES = tuple(MODULES)
LONGEST = 2000                                                   # characters; a longer text is no answer


def problem(family: str, split: str, index: int, difficulty: int | None = None) -> Problem:
    """The problem number `index` (0, 1, ...) of a split: always the same one for the same arguments.

    Without `difficulty` one of 1 to 5 is drawn. Two numbers may give the same problem, the more often the easier it
    is; two splits never do. Raises `MinidsError` for an unknown family or split, or a number out of range.
    """
    module = _module(family)
    if split not in SPLITS:
        raise MinidsError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
    if index < 0 or difficulty not in (None, 1, 2, 3, 4, 5):
        raise MinidsError(f"expected an index from 0 and a difficulty from 1 to 5 or None, found {index} and {difficulty}")
    rng = random.Random(_hash(f"{family} {split} {index} {difficulty}"))
    level = difficulty or rng.randint(1, 5)
    for _ in range(10_000):
        found = module.draw(rng, level)
        if split_of(found) == split:
            return found
    raise MinidsError(f"{family} has no problem of difficulty {level} in the split {split}: expected draw() to vary more")


def problems(family: str, split: str, count: int, difficulty: int | None = None, first: int = 0) -> list[Problem]:
    """The `count` problems from number `first` on."""
    return [problem(family, split, index, difficulty) for index in range(first, first + count)]


def different(family: str, split: str, count: int, difficulties=(1, 2, 3, 4, 5)) -> list[Problem]:
    """The first `count` problems of a split that ask different things: what an exam wants, since the same question asked again
    tells nothing new. Difficulties take turns among the problems that are looked at, 20 times `count` at most; of easy ones
    there are fewer different ones, so an exam leans to the hard ones, and a family that has no more gives fewer."""
    return list(_different(family, split, count, tuple(difficulties)))


@cache      # an exam is taken many times, greedily and by samples, by one model after another
def _different(family: str, split: str, count: int, difficulties: tuple[int, ...]) -> tuple[Problem, ...]:
    found = {}
    for index in range(20 * count):
        one = problem(family, split, index, difficulties[index % len(difficulties)])
        found.setdefault(identity(one), one)
        if len(found) == count:
            break
    return tuple(found.values())


def verify(problem: Problem, text: str) -> bool:
    """Is `text`, what a model wrote after its thoughts, a right answer? Never raises, whatever the text."""
    return len(text) <= LONGEST and _module(problem.family).verify(problem, text)


def identity(problem: Problem) -> str:
    """What is asked, in one spelling: equal for problems that are trivially the same."""
    module = _module(problem.family)
    asked = module.identity(problem) if hasattr(module, "identity") else f"{problem.kind}: {problem.prompt}"
    return f"{problem.family}: " + " ".join(asked.lower().split())


def split_of(problem: Problem) -> str:
    """The one split that a problem can be in: its identity's hash decides, so splits cannot overlap."""
    module = _module(problem.family)
    if hasattr(module, "split"):
        return module.split(problem)
    return split_by_hash("split of " + identity(problem))


def as_text(problem: Problem) -> str:
    """The problem as plain text with its worked answer, for pre-training."""
    return f"Question: {problem.prompt}\nThinking: {problem.steps}\nAnswer: {problem.answer}\n"


def _module(family: str) -> ModuleType:
    if family not in FAMILIES:
        raise MinidsError(f"no task family {family!r}: expected one of {', '.join(FAMILIES)}")
    return MODULES[family]

