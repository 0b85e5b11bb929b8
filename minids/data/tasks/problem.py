"""One problem of a task family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question, worked steps that lead to its answer, and what a verifier needs."""

    family: str         # one of FAMILIES
    kind: str           # the generator within the family, such as "addition"
    difficulty: int     # 1 (easy) to 5 (hard)
    prompt: str         # what the user says
    steps: str          # reasoning that leads to the answer; belongs between <think> and </think>
    answer: str         # a correct answer as a model should write it, short
    facts: tuple = ()   # what the verifier needs besides, such as hidden test cases; hashable
