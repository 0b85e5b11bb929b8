"""The family "reasoning": following a story, ordering people, drawing conclusions from rules.

A family of `minids.data.tasks`. The prompt contains everything that is needed; no fact of TinyWorld
is asked for or contradicted. Difficulty is the number of events, people or rules. Much can be
guessed: see `chance`.
"""

import random
import re

from minids.data.tasks.problem import Problem
from minids.data.tinyworld.facts import PEOPLE, capitalize
from minids.data.tinyworld.stories import PLACES, Story, is_correct

ORDERS = (("taller", "tallest", "shorter", "shortest"), ("older", "oldest", "younger", "youngest"),
          ("faster", "fastest", "slower", "slowest"), ("richer", "richest", "poorer", "poorest"),
          ("stronger", "strongest", "weaker", "weakest"))
HABITS = ("wears a hat", "drinks milk", "plays chess", "sings at night", "owns a boat",
          "climbs trees", "collects stamps", "rides a horse", "grows roses", "reads poems",
          "sleeps late", "swims well", "knows magic", "paints doors")


def generate(rng: random.Random, difficulty: int) -> Problem:
    """A random problem of a random kind: "tracking", "ordering" or "deduction"."""
    return rng.choice((tracking, ordering, deduction))(rng, difficulty)


def verify(problem: Problem, text: str) -> bool:
    """Whether the first sentence of `text` names the accepted word and no other of its kind.

    The accepted word is a person, a place, "yes", "no" or "not known".
    """
    return is_correct(text, problem.facts[0])


def chance(problem: Problem) -> float:
    """The probability that a guess is correct: one of the people, or places, that the problem
    names, or one of yes, no and not known. Over all difficulties the mean is about 0.4, and 0.57
    in "tracking" alone."""
    for names in (PEOPLE, PLACES):
        if problem.facts[0] in names:
            return 1 / sum(bool(re.search(rf"\b{name}\b", problem.prompt)) for name in names)
    return 1 / 3


def identity(problem: Problem) -> str:
    """The events or the premises with the question, whatever the wording."""
    return f"{problem.kind}: {problem.facts[1]}"


def tracking(rng: random.Random, difficulty: int) -> Problem:
    """A story of 2 to 8 events: where is somebody or something, or who has it?"""
    story = _eventful_story(rng, difficulty)
    kinds = ("where_person", "where_thing", "who_has")
    questions = [q for q in story.askable() if q.kind in kinds]
    # The person or place named last in the story is the answer to one question in four at most.
    last = max((q.accepted for q in questions), key=story.text.rfind)
    easy = rng.random() < 0.25
    questions = [q for q in questions if (q.accepted == last) == easy] or questions
    kind = rng.choice(sorted({q.kind for q in questions}))
    question = rng.choice([q for q in questions if q.kind == kind])
    events = []
    for verb, person, words in story.events:
        values = [value for _, value in sorted(words.items())]
        events.append(" ".join((verb, person or "", *values)))
    facts = (question.accepted, f"{'; '.join(events)}; {kind} {question.about}")
    return Problem("reasoning", "tracking", difficulty, f"{story.text} {question.text}",
                   _follow(story, question.about), question.answer, facts)


def _eventful_story(rng: random.Random, difficulty: int) -> Story:
    """A story of `difficulty` + 1 to 3 events, with a thing and at least two places."""
    people = rng.sample(PEOPLE, 2 if difficulty < 4 else 3)
    n_events, places = difficulty + rng.randint(1, 3), ()
    while len(places) < 2:          # with one place the answer would be obvious
        story = Story(rng)
        story.enter(people[0])
        while len(story.events) < n_events or not story.things:
            if len(story.events) % 2 == 0:
                story.used.clear()  # what has been moved may be moved again
            story.step(people, talk=False)
        places = {words["P"] for verb, _, words in story.events if verb in ("appear", "move")}
    return story


def _follow(story: Story, about: str) -> str:
    """The changes that concern a person or a thing, in one short sentence each."""
    where, holder, lines = {}, None, []
    for verb, person, words in story.events:
        if verb in ("appear", "move"):
            where[person] = words["P"]
            if person in (about, holder):
                lines.append(f"{person} is in the {words['P']}.")
        elif words.get("T") == about:
            holder = {"give": words.get("O"), "see": None, "drop": None,
                      "put": None}.get(verb, person)
            if holder:
                lines += [f"{holder} has the {about}.", f"{holder} is in the {where[holder]}."]
            else:
                place = words["C"] if verb == "put" else words["P"]
                lines.append(f"The {about} is in the {place}.")
    return " ".join(lines)


def ordering(rng: random.Random, difficulty: int) -> Problem:
    """Three to seven people compared in pairs: who is the tallest, or is X taller than Y?"""
    people = rng.sample(PEOPLE, difficulty + 2)     # from the tallest to the shortest
    more, most, less, least = rng.choice(ORDERS)
    pairs = list(zip(people, people[1:]))
    if difficulty > 1:
        rng.shuffle(pairs)
    premises = [f"{x} is {more} than {y}." if rng.random() < 0.5 else f"{y} is {less} than {x}."
                for x, y in pairs]
    steps = " ".join(f"{x} > {y}." for x, y in pairs) + f" So {' > '.join(people)}."
    if rng.random() < 0.7:
        first = rng.random() < 0.5
        accepted, word = (people[0], most) if first else (people[-1], least)
        question, answer = f"Who is the {word}?", f"{accepted} is the {word}."
    else:
        i, j = sorted(rng.sample(range(len(people)), 2))
        true, upward = rng.random() < 0.5, rng.random() < 0.5
        x, y = (people[i], people[j]) if true == upward else (people[j], people[i])
        accepted = "yes" if true else "no"
        question = f"Is {x} {more if upward else less} than {y}?"
        answer = f"{capitalize(accepted)}."
    return Problem("reasoning", "ordering", difficulty, f"{' '.join(premises)} {question}", steps,
                   answer, (accepted, f"{more} {' '.join(people)} {question}"))


def deduction(rng: random.Random, difficulty: int) -> Problem:
    """A chain of rules and one person's habit: does that person have the last habit, or who has it?

    The answers "yes", "no", "not known" and a name are equally frequent. "Not known" is correct if
    a rule of the chain is reversed, or if the chain begins with somebody else's habit.
    """
    verdict = rng.choice(("yes", "no", "not known", "who"))
    habits = rng.sample(HABITS, len(HABITS))
    links = max(1, difficulty - rng.randint(0, 1))
    chain, others = habits[:links + 1], habits[links + 1:]
    person, other = rng.sample(PEOPLE, 2)
    rules = [(x, y, True) for x, y in zip(chain, chain[1:])]
    negative = verdict == "no" or verdict == "not known" and rng.random() < 0.5
    if negative:
        rules[-1] = (*rules[-1][:2], False)
    start, n_applied = person, links        # who has the first habit; how many rules apply
    if verdict == "not known":
        n_applied = rng.randrange(links)
        x, y, sign = rules[n_applied]
        if sign and rng.random() < 0.7:
            rules[n_applied] = (y, x, sign)
        else:
            start, n_applied = other, 0
    known = {start: chain[0]}
    if verdict == "who" or start == other or rng.random() < 0.4:
        known[other if start == person else person] = others.pop()
    for _ in range(difficulty // 2):        # rules that do not matter
        rules.append((others.pop(), others.pop(), negative or rng.random() < 0.5))
    premises = [f"Whoever {x} {y}." if sign else f"Nobody who {x} {y}." for x, y, sign in rules]
    premises += [f"{who} {habit}." for who, habit in known.items()]
    if difficulty > 1:
        rng.shuffle(premises)
    accepted = person if verdict == "who" else verdict
    last = chain[-1]
    question = f"Who {last}?" if verdict == "who" else f"Does {person} {_base(last)}?"
    answer = {"who": f"{person} {last}.", "yes": "Yes.", "no": "No.",
              "not known": "It is not known."}[verdict]
    steps = _conclusions(person, [known[person], *chain[1:n_applied + 1]], verdict)
    return Problem("reasoning", "deduction", difficulty, f"{' '.join(premises)} {question}", steps,
                   answer, (accepted, f"{' '.join(sorted(premises))} {question}"))


def _conclusions(person: str, habits: list[str], verdict: str) -> str:
    """The steps of a deduction: the person's known habit and those that follow from it."""
    first, *derived = habits
    steps = [f"{person} {first}."] + [f"So {person} {habit}." for habit in derived]
    if verdict == "no":
        steps[-1] = f"So {person} does not {_base(habits[-1])}."
    if verdict == "not known":
        steps.append("Nothing leads on.")
    return " ".join(steps)


def _base(habit: str) -> str:
    """wears a hat -> wear a hat"""
    verb, _, rest = habit.partition(" ")
    return f"{verb.removesuffix('s')} {rest}"
