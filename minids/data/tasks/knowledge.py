"""The family "knowledge": questions about TinyWorld's fixed facts.

A family of `minids.data.tasks`. A model can know these facts only from its training text. A problem
belongs to the test split if one of its facts does, otherwise to valid if one of them does,
otherwise to train. So training never asks for a fact of valid or test, although all facts are
stated in it.
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
    capitalize,
    fill,
    with_article,
)
from minids.data.tinyworld.stories import is_correct

# Who or where has this value? For values of one subject only. {V} and {aV} are the value.
REVERSE = {"job": "Who is {aV}?", "made": "Where is {V} made?",
           "landmark": "In which town stands {aV}?"}
# A subject described by a fact about another subject, {S}.
THROUGH = {"home": "the town where {S} lives", "friend": "the friend of {S}",
           "neighbour": "the town next to {S}", "sold": "the town that sells {S}"}
SAME = {"home": "Do {0} and {1} live in the same town?",
        "job": "Do {0} and {1} have the same job?",
        "pet": "Do {0} and {1} keep the same kind of pet?",
        "food": "Do {0} and {1} like the same food best?",
        "region": "Are {0} and {1} in the same part of the land?"}
BY_SUBJECT_AND_RELATION = {(f.subject, f.relation): f for f in WORLD}
# The facts that REVERSE may ask for.
UNIQUE = [f for f in WORLD if f.relation in REVERSE
          and sum((g.relation, g.value) == (f.relation, f.value) for g in WORLD) == 1]


def generate(rng: random.Random, difficulty: int) -> Problem:
    """A random problem.

    Difficulty 1 asks for a fact's value, 2 for its subject, 3 chains two facts, 4 compares two, 5
    chains three.
    """
    if difficulty == 1:
        return one_hop(rng)
    if difficulty == 2:
        return reverse(rng)
    if difficulty == 4:
        return comparison(rng)
    return hops(rng, 2 if difficulty == 3 else 3)


def verify(problem: Problem, text: str) -> bool:
    """Whether the first sentence of `text` names the accepted word and no other of its kind."""
    return is_correct(text, problem.facts[0])


def identity(problem: Problem) -> str:
    """The facts that the problem uses."""
    return "; ".join(sorted(problem.facts[1:]))


def split_of(problem: Problem) -> str:
    """The last split that one of the facts belongs to, in the order train, valid, test."""
    splits = (facts.split_of(Fact(*fact.split())) for fact in problem.facts[1:])
    return max(splits, key=SPLITS.index)


def one_hop(rng: random.Random) -> Problem:
    """The value of a fact."""
    fact = rng.choice(WORLD)
    question = facts.question_about(rng, fact).text
    return _problem("one-hop", 1, question, (fact,), fill(ANSWERS[fact.relation], fact), fact.value)


def reverse(rng: random.Random) -> Problem:
    """The subject of a fact."""
    fact = rng.choice(UNIQUE)
    question = fill(REVERSE[fact.relation], fact)
    answer = fill(STATEMENTS[fact.relation][0], fact)
    return _problem("reverse", 2, question, (fact,), answer, fact.subject)


def hops(rng: random.Random, count: int) -> Problem:
    """A fact about a subject that another fact describes (two hops), or a chain of two (three)."""
    subject = rng.choice(PEOPLE if count == 3 else PEOPLE + TOWNS + THINGS)
    described, chain = with_article(subject) if subject in THINGS else subject, []
    for _ in range(count - 1):
        visited = [subject, *(f.subject for f in chain)]
        fact = rng.choice([f for f in FACTS[subject]
                           if f.relation in THROUGH and f.value not in visited])
        described, subject = THROUGH[fact.relation].format(S=described), fact.value
        chain.append(fact)
    visited = [f.subject for f in chain]
    last = rng.choice([f for f in FACTS[subject] if f.value not in visited])
    question = fill(rng.choice(QUESTIONS[last.relation]), last, described)
    answer = fill(ANSWERS[last.relation], last)
    kind, difficulty = ("two-hop", 3) if count == 2 else ("three-hop", 5)
    return _problem(kind, difficulty, question, (*chain, last), answer, last.value)


def comparison(rng: random.Random) -> Problem:
    """Whether two subjects have the same value; yes as often as no."""
    relation, same = rng.choice(list(SAME)), rng.random() < 0.5
    subjects = TOWNS if relation == "region" else PEOPLE
    while True:
        x, y = (BY_SUBJECT_AND_RELATION[s, relation] for s in rng.sample(subjects, 2))
        if (x.value == y.value) == same:
            break
    question = SAME[relation].format(x.subject, y.subject)
    answer, accepted = ("Yes.", "yes") if same else ("No.", "no")
    return _problem("comparison", 4, question, (x, y), answer, accepted)


def _problem(kind, difficulty, question, used, answer, accepted) -> Problem:
    """A problem whose steps state the facts that it uses."""
    steps = " ".join(fill(STATEMENTS[f.relation][0], f) for f in used)
    names = (f"{f.subject} {f.relation} {f.value}" for f in used)
    return Problem("knowledge", kind, difficulty, capitalize(question), steps, answer,
                   (accepted, *names))
