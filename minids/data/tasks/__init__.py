"""Task families with verifiers: problems for the specialists, and code that grades the answers.

Report: post-training trains a specialist per domain with verifiable rewards (section 5.1). Four
families mirror V4's domains: mathematics, coding, reasoning, knowledge. Each is a module in this
folder with

    generate(rng, difficulty) -> Problem    a random problem; `rng` is a `random.Random`
    verify(problem, text) -> bool           whether `text` is a correct answer; never raises
    identity(problem) -> str                what is asked, equal for trivially equal problems;
                                            optional, by default the kind and the prompt
    split_of(problem) -> str                optional, by default a hash of the identity decides

This file numbers the problems and keeps the splits apart. For prompts and rewards see
`minids.inference.answers`.
"""

import random
from functools import cache
from types import ModuleType

from minids.data.splits import SPLITS, split_by_hash, stable_hash
from minids.data.tasks import coding, knowledge, mathematics, reasoning
from minids.data.tasks.problem import Problem
from minids.errors import MinidsError

MODULES = {"mathematics": mathematics, "coding": coding, "reasoning": reasoning,
           "knowledge": knowledge}
FAMILIES = tuple(MODULES)
MAX_ANSWER_CHARS = 2000         # a longer text is never correct


def problem(family: str, split: str, index: int, difficulty: int | None = None) -> Problem:
    """Problem number `index` (0, 1, ...) of a split; the same arguments give the same problem.

    Without `difficulty`, one of 1 to 5 is chosen at random. Two numbers may give the same problem,
    more often if it is easy; two splits never share one. Raises `MinidsError` for an unknown family
    or split, or a number out of range.
    """
    module = _module(family)
    if split not in SPLITS:
        raise MinidsError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if index < 0 or difficulty not in (None, 1, 2, 3, 4, 5):
        raise MinidsError("expected an index of at least 0 and a difficulty from 1 to 5 or None, "
                          f"found {index} and {difficulty}")
    rng = random.Random(stable_hash(f"{family} {split} {index} {difficulty}"))
    level = difficulty or rng.randint(1, 5)
    for _ in range(10_000):
        candidate = module.generate(rng, level)
        if split_of(candidate) == split:
            return candidate
    raise MinidsError(f"{family} has no problem of difficulty {level} in the split {split}: "
                      "expected generate() to vary more")


def problems(family: str, split: str, count: int, difficulty: int | None = None,
             first: int = 0) -> list[Problem]:
    """`count` problems, from number `first` on."""
    return [problem(family, split, index, difficulty) for index in range(first, first + count)]


def distinct_problems(family: str, split: str, count: int,
                      difficulties=(1, 2, 3, 4, 5)) -> list[Problem]:
    """The first `count` distinct problems of a split, for an exam.

    The difficulties alternate over the problems that are considered, at most 20 times `count`.
    There are fewer distinct easy problems than hard ones, so an exam leans towards the hard ones,
    and a family with too few distinct problems gives fewer than `count`.
    """
    return list(_distinct(family, split, count, tuple(difficulties)))


@cache      # several models take the same exam, each of them several times
def _distinct(family: str, split: str, count: int,
              difficulties: tuple[int, ...]) -> tuple[Problem, ...]:
    by_identity = {}
    for index in range(20 * count):
        candidate = problem(family, split, index, difficulties[index % len(difficulties)])
        by_identity.setdefault(identity(candidate), candidate)
        if len(by_identity) == count:
            break
    return tuple(by_identity.values())


def verify(problem: Problem, text: str) -> bool:
    """Whether `text`, what a model wrote after its reasoning, is a correct answer. Never raises."""
    return len(text) <= MAX_ANSWER_CHARS and _module(problem.family).verify(problem, text)


def identity(problem: Problem) -> str:
    """What is asked, in one spelling: equal for problems that are trivially the same."""
    module = _module(problem.family)
    if hasattr(module, "identity"):
        question = module.identity(problem)
    else:
        question = f"{problem.kind}: {problem.prompt}"
    return f"{problem.family}: " + " ".join(question.lower().split())


def split_of(problem: Problem) -> str:
    """The one split that a problem belongs to, by a hash of its identity: splits cannot overlap."""
    module = _module(problem.family)
    if hasattr(module, "split_of"):
        return module.split_of(problem)
    return split_by_hash("split of " + identity(problem))


def as_text(problem: Problem) -> str:
    """The problem as plain text with steps and answer, for pre-training."""
    return f"Question: {problem.prompt}\nThinking: {problem.steps}\nAnswer: {problem.answer}\n"


def _module(family: str) -> ModuleType:
    if family not in FAMILIES:
        raise MinidsError(f"unknown task family {family!r}: expected one of {', '.join(FAMILIES)}")
    return MODULES[family]
