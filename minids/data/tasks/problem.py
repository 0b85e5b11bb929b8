"""One problem of a task family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question, a way to its answer, and what a verifier needs."""

    family: str         # one of FAMILIES
    kind: str           # which generator within the family, such as "addition"
    difficulty: int     # 1 (easy) to 5 (hard)
    prompt: str         # what the user says
    steps: str          # a way to the answer: what a thinking model may write between <think> and </think>
    answer: str         # a right answer as a model should write it, short
    facts: tuple = ()   # what the verifier needs beside the answer, such as hidden test cases; hashable
