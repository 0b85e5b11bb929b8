"""The family "knowledge": questions about TinyWorld's fixed facts, which a model can only have from its training text.

Follows the contract of `minids.data.tasks`. A problem belongs to the test split if one of its facts does, else to valid if
one does, else to train: so training never asks for a fact that valid and test keep back, though all are told as statements.
"""

import random

from minids.data.splits import SPLITS
from minids.data.tasks.problem import Problem
from minids.data.tinyworld import facts
from minids.data.tinyworld.facts import (
    ANSWERS,
    FACTS,
    PEOPLE,
    QUESTIONS,
    STATEMENTS,
    THINGS,
    TOWNS,
    WORLD,
    Fact,
    a,
    capital,
    fill,
)
from minids.data.tinyworld.stories import correct

# Who or where has this value? Asked where only one subject does. {V} and {aV} are the value.
REVERSE = {"job": "Who is {aV}?", "made": "Where is {V} made?", "landmark": "In which town stands {aV}?"}
# A subject that is named by a fact about another one. {S} is that other one.
THROUGH = {"home": "the town where {S} lives", "friend": "the friend of {S}", "neighbour": "the town next to {S}",
           "sold": "the town that sells {S}"}
SAME = {"home": "Do {0} and {1} live in the same town?", "job": "Do {0} and {1} have the same job?",
        "pet": "Do {0} and {1} keep the same kind of pet?", "food": "Do {0} and {1} like the same food best?",
        "region": "Are {0} and {1} in the same part of the land?"}
BY_FACT = {(f.subject, f.relation): f for f in WORLD}
UNIQUE = [f for f in WORLD if f.relation in REVERSE and sum((g.relation, g.value) == (f.relation, f.value) for g in WORLD) == 1]


def draw(rng: random.Random, difficulty: int) -> Problem:
    """Difficulty 1 asks for a fact's value, 2 for its subject, 3 takes two facts in a row, 4 compares two, 5 takes three."""
    return (one_hop, reverse, lambda r: hops(r, 2), comparison, lambda r: hops(r, 3))[difficulty - 1](rng)


def verify(problem: Problem, text: str) -> bool:
    """Does the first sentence of `text` name the accepted word and no other of its kind?"""
    return correct(text, problem.facts[0])


def identity(problem: Problem) -> str:
    """The facts that are used."""
    return "; ".join(sorted(problem.facts[1:]))


def split(problem: Problem) -> str:
    """The last split that one of the facts belongs to, in the order train, valid, test."""
    return max((facts.split(Fact(*used.split())) for used in problem.facts[1:]), key=SPLITS.index)


def one_hop(rng: random.Random) -> Problem:
    fact = rng.choice(WORLD)
    return _problem("one-hop", 1, facts.ask_fact(rng, fact).text, (fact,), fill(ANSWERS[fact.relation], fact), fact.value)


def reverse(rng: random.Random) -> Problem:
    fact = rng.choice(UNIQUE)
    answer = fill(STATEMENTS[fact.relation][0], fact)
    return _problem("reverse", 2, fill(REVERSE[fact.relation], fact), (fact,), answer, fact.subject)


def hops(rng: random.Random, count: int) -> Problem:
    """A fact about something that is named by another fact (two hops), or by two others (three hops)."""
    subject = rng.choice(PEOPLE if count == 3 else PEOPLE + TOWNS + THINGS)
    named, used = a(subject) if subject in THINGS else subject, []
    for _ in range(count - 1):
        visited = [subject, *(f.subject for f in used)]
        fact = rng.choice([f for f in FACTS[subject] if f.relation in THROUGH and f.value not in visited])
        named, subject = THROUGH[fact.relation].format(S=named), fact.value
        used.append(fact)
    visited = [f.subject for f in used]
    last = rng.choice([f for f in FACTS[subject] if f.value not in visited])
    question = fill(rng.choice(QUESTIONS[last.relation]), last, named)
    kind, difficulty = ("two-hop", 3) if count == 2 else ("three-hop", 5)
    return _problem(kind, difficulty, question, (*used, last), fill(ANSWERS[last.relation], last), last.value)


def comparison(rng: random.Random) -> Problem:
    """Is the value the same for both? Yes as often as no."""
    relation, same = rng.choice(list(SAME)), rng.random() < 0.5
    while True:
        x, y = (BY_FACT[s, relation] for s in rng.sample(TOWNS if relation == "region" else PEOPLE, 2))
        if (x.value == y.value) == same:
            break
    return _problem("comparison", 4, SAME[relation].format(x.subject, y.subject), (x, y), "Yes." if same else "No.",
                    "yes" if same else "no")


def _problem(kind, difficulty, question, used, answer, accepted) -> Problem:
    steps = " ".join(fill(STATEMENTS[f.relation][0], f) for f in used)
    return Problem("knowledge", kind, difficulty, capital(question), steps, answer,
                   (accepted, *(f"{f.subject} {f.relation} {f.value}" for f in used)))
