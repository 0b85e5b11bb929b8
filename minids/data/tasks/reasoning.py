"""The family "reasoning": following a story, putting people in order, drawing conclusions from rules.

Follows the contract of `minids.data.tasks`. All that is needed stands in the prompt; nothing of the fixed world is asked or
contradicted. Difficulty is the number of events, people or rules.
"""

import random

from minids.data.tasks.problem import Problem
from minids.data.tinyworld.facts import PEOPLE, capital
from minids.data.tinyworld.stories import Story, correct

ORDERS = (("taller", "tallest", "shorter", "shortest"), ("older", "oldest", "younger", "youngest"),
          ("faster", "fastest", "slower", "slowest"), ("richer", "richest", "poorer", "poorest"),
          ("stronger", "strongest", "weaker", "weakest"))
HABITS = ("wears a hat", "drinks milk", "plays chess", "sings at night", "owns a boat", "climbs trees", "collects stamps",
          "rides a horse", "grows roses", "reads poems", "sleeps late", "swims well", "knows magic", "paints doors")


def draw(rng: random.Random, difficulty: int) -> Problem:
    """One problem of a kind drawn at random: "tracking", "ordering" or "deduction"."""
    return rng.choice((tracking, ordering, deduction))(rng, difficulty)


def verify(problem: Problem, text: str) -> bool:
    """Does the first sentence of `text` name the right person, place, "yes", "no" or "not known", and no other?"""
    return correct(text, problem.facts[0])


def identity(problem: Problem) -> str:
    """What happens, or what is given, whatever the wording."""
    return f"{problem.kind}: {problem.facts[1]}"


def tracking(rng: random.Random, difficulty: int) -> Problem:
    """A story of 2 to 8 events: where is somebody or something, or who has it?"""
    people, events, places = rng.sample(PEOPLE, 2 if difficulty < 4 else 3), difficulty + rng.randint(1, 3), ()
    while len(places) < 2:          # a story in one place would ask nothing
        told = Story(rng)
        told.enter(people[0])
        while len(told.events) < events or not told.things:
            if len(told.events) % 2 == 0:
                told.used.clear()   # what was moved before may move again
            told.step(people, talk=False)
        places = {words["P"] for verb, _, words in told.events if verb in ("appear", "move")}
    asked = [q for q in told.askable() if q.kind in ("where_person", "where_thing", "who_has")]
    last = max((q.accepted for q in asked), key=told.text.rfind)     # whoever or whatever is named last is seldom the answer
    easy = rng.random() < 0.25
    asked = [q for q in asked if (q.accepted == last) == easy] or asked
    wanted = rng.choice(sorted({q.kind for q in asked}))
    asked = rng.choice([q for q in asked if q.kind == wanted])
    happened = "; ".join(" ".join((verb, person or "", *(v for _, v in sorted(w.items())))) for verb, person, w in told.events)
    steps = _follow(told, asked.about)
    return Problem("reasoning", "tracking", difficulty, f"{told.text} {asked.text}", steps, asked.answer,
                   (asked.accepted, f"{happened}; {wanted} {asked.about}"))


def _follow(told: Story, about: str) -> str:
    """What becomes of a person or a thing, one short sentence for each change."""
    where, holder, lines = {}, None, []
    for verb, person, words in told.events:
        if verb in ("appear", "move"):
            where[person] = words["P"]
            if person in (about, holder):
                lines.append(f"{person} is in the {words['P']}.")
        elif words.get("T") == about:
            holder = {"give": words.get("O"), "see": None, "drop": None, "put": None}.get(verb, person)
            if holder:
                lines += [f"{holder} has the {about}.", f"{holder} is in the {where[holder]}."]
            else:
                lines.append(f"The {about} is in the {words['C'] if verb == 'put' else words['P']}.")
    return " ".join(lines)


def ordering(rng: random.Random, difficulty: int) -> Problem:
    """Three to seven people compared in pairs: who is the tallest, or is one taller than another?"""
    people = rng.sample(PEOPLE, difficulty + 2)     # from the tallest to the shortest
    more, most, less, least = rng.choice(ORDERS)
    pairs = list(zip(people, people[1:]))
    if difficulty > 1:
        rng.shuffle(pairs)
    given = [f"{x} is {more} than {y}." if rng.random() < 0.5 else f"{y} is {less} than {x}." for x, y in pairs]
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
        question, answer = f"Is {x} {more if upward else less} than {y}?", f"{capital(accepted)}."
    return Problem("reasoning", "ordering", difficulty, f"{' '.join(given)} {question}", steps, answer,
                   (accepted, f"{more} {' '.join(people)} {question}"))


def deduction(rng: random.Random, difficulty: int) -> Problem:
    """Rules in a chain and what one person does: does that person do the last thing, or who does?

    The answers "yes", "no", "not known" and a name come up equally often. "Not known" is right where a rule of the chain
    stands the wrong way round, or where the chain begins with what someone else does.
    """
    wanted = rng.choice(("yes", "no", "not known", "who"))
    habits = rng.sample(HABITS, len(HABITS))
    links = max(1, difficulty - rng.randint(0, 1))
    chain, others = habits[:links + 1], habits[links + 1:]
    person, other = rng.sample(PEOPLE, 2)
    rules = [(x, y, True) for x, y in zip(chain, chain[1:])]
    negative = wanted == "no" or wanted == "not known" and rng.random() < 0.5
    if negative:
        rules[-1] = (*rules[-1][:2], False)
    start, broken = person, links       # how many rules apply
    if wanted == "not known":
        broken = rng.randrange(links)
        x, y, sign = rules[broken]
        if sign and rng.random() < 0.7:
            rules[broken] = (y, x, sign)
        else:
            start, broken = other, 0
    known = {start: chain[0]}
    if wanted == "who" or start == other or rng.random() < 0.4:
        known[other if start == person else person] = others.pop()
    for _ in range(difficulty // 2):
        rules.append((others.pop(), others.pop(), negative or rng.random() < 0.5))
    does = [f"{person} {known[person]}."] + [f"So {person} {habit}." for habit in chain[1:broken + 1]]
    if wanted == "no":
        does[-1] = f"So {person} does not {_base(chain[-1])}."
    steps = " ".join(does + ["Nothing leads on."] * (wanted == "not known"))
    given = [f"Whoever {x} {y}." if sign else f"Nobody who {x} {y}." for x, y, sign in rules]
    given += [f"{who} {habit}." for who, habit in known.items()]
    if difficulty > 1:
        rng.shuffle(given)
    accepted = person if wanted == "who" else wanted
    question = f"Who {chain[-1]}?" if wanted == "who" else f"Does {person} {_base(chain[-1])}?"
    answer = {"who": f"{person} {chain[-1]}.", "yes": "Yes.", "no": "No.", "not known": "It is not known."}[wanted]
    return Problem("reasoning", "deduction", difficulty, f"{' '.join(given)} {question}", steps, answer,
                   (accepted, f"{' '.join(sorted(given))} {question}"))


def _base(habit: str) -> str:
    """wears a hat -> wear a hat"""
    verb, _, rest = habit.partition(" ")
    return f"{verb.removesuffix('s')} {rest}"
