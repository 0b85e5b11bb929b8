"""The family "coding": write a small program f(x); running it on hidden inputs verifies it.

A family of `minids.data.tasks`. Four kinds: arithmetic on a number, a choice between two results, a
list that is filtered, mapped and summarised, and induction of f from examples. A program is correct
if it gives the right output for every hidden input; `minids.data.tasks.interpreter` runs it. The
steps name the parts of the program and their code.
"""

import re

from minids.data.tasks.interpreter import ProgramError, run
from minids.data.tasks.problem import Problem

# Inputs common to all problems; a program's outputs for them are its identity. Further hidden
# inputs depend on the numbers in the program.
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 13, 18, 31, -1, -2, -20)
LISTS = ((3, 1, 2), (8, 5, 12, 7, 7, 20, 1), (4,), (0, -3, 6, -8), (9, 30, 2, 15, 14, 11),
         (10, 6, 16, 18))

# Operations on a number: words, code, and the precedence of the code (1 sums, 2 products, 3 powers,
# 4 calls). A half is added where the operand must bind more tightly than the operation itself.
OPERATIONS = (
    ("add {k} to {it}", "{e} + {k}", 1),
    ("subtract {k} from {it}", "{e} - {k}", 1),
    ("subtract {it} from {k}", "{k} - {e}", 1.5),
    ("double {it}", "{e} * 2", 2),
    ("triple {it}", "{e} * 3", 2),
    ("multiply {it} by {k}", "{e} * {k}", 2),
    ("divide {it} by {k} and round down", "{e} // {k}", 2),
    ("take the remainder of {it} divided by {k}", "{e} % {k}", 2),
    ("square {it}", "{e} ** 2", 3.5),
    ("take the absolute value of {it}", "abs({e})", 4),
    ("take the larger of {it} and {k}", "max({e}, {k})", 4),
    ("take the smaller of {it} and {k}", "min({e}, {k})", 4),
)
CONDITIONS = (("even", "{v} % 2 == 0"), ("odd", "{v} % 2 == 1"),
              ("divisible by {k}", "{v} % {k} == 0"), ("greater than {k}", "{v} > {k}"),
              ("less than {k}", "{v} < {k}"))
MAPS = (("squared", "v * v"), ("doubled", "v * 2"), ("plus {k}", "v + {k}"),
        ("minus {k}", "v - {k}"), ("times {k}", "v * {k}"))
SUMMARIES = (("the sum of {}", "sum({})"), ("{} in increasing order", "sorted({})"),
             ("{} in reverse order", "{}[::-1]"))
# Not after a filter, which may leave an empty list.
EXTREMES = (("the largest of {}", "max({})"), ("the smallest of {}", "min({})"))
# Not after a map, which does not change the count.
COUNT = (("the count of {}", "len({})"),)


def generate(rng, difficulty: int) -> Problem:
    """A random problem of a random kind.

    Programs whose output is constant, or always equal to x, are rejected.
    """
    while True:
        kind = rng.choice(list(KINDS))
        prompt, steps, answer = KINDS[kind](rng, difficulty)
        cases = _cases(rng, answer, LISTS if kind == "list" else NUMBERS)
        outputs = {str(output) for _, output in cases}
        if len(outputs) > 1 and any(argument != output for argument, output in cases):
            return Problem("coding", kind, difficulty, prompt, steps, answer, cases)


def identity(problem: Problem) -> str:
    """What the program does: its outputs for the common inputs, whatever wording and kind."""
    common = LISTS if problem.kind == "list" else NUMBERS
    return repr(problem.facts[: len(common)])


def verify(problem: Problem, text: str) -> bool:
    """Whether the program `text` runs and gives the right output for every hidden input."""
    try:
        return all(repr(_frozen(run(text, argument))) == repr(output)
                   for argument, output in problem.facts)
    except ProgramError:
        return False


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


def _cases(rng, answer: str, common: tuple) -> tuple:
    """The hidden (input, output) pairs of the program `answer`.

    The inputs are the common ones, neighbours and multiples of each number in the program, and
    random ones.
    """
    constants = [int(c) for c in re.findall("[0-9]+", answer)]
    near = [c + step for c in constants for step in (-1, 0, 1)]
    if common is NUMBERS:
        multiples = [c * m for c in constants for m in (-7, -3, 5)]
        extra = near + multiples + [rng.randint(-150, 150) for _ in range(6)]
    else:
        multiples = [c * m for c in constants for m in (2, 3)]
        pool = near + multiples + [rng.randint(-20, 50) for _ in range(8)]
        extra = [(), tuple(near)] + [tuple(rng.sample(pool, 8)) for _ in range(5)]
    cases = []
    for argument in dict.fromkeys((*common, *extra)):
        try:
            cases.append((argument, _frozen(run(answer, argument))))
        except ProgramError:    # max or min of an empty list: not a hidden input
            assert argument == ()
    return tuple(cases)


def _constant(rng, difficulty: int) -> int:
    return rng.randint(2, 9 if difficulty < 4 else 20)


def _chain(rng, difficulty: int, count: int, code: str = "x") -> tuple[list[str], list[str]]:
    """Words and code of a chain of `count` operations on x, after each operation.

    The code has only the brackets that Python needs.
    """
    words, codes, binding = [], [], 4
    for place, (phrase, form, level) in enumerate(rng.sample(OPERATIONS, count)):
        k = _constant(rng, difficulty)
        code = form.format(k=k, e=f"({code})" if binding < level < 4 else code)
        binding = int(level)
        words.append(phrase.format(k=k, it="it" if place else "x"))
        codes.append(code)
    return words, codes


def _arithmetic(rng, difficulty):
    words, codes = _chain(rng, difficulty, (1, 2, 2, 3, 3)[difficulty - 1])
    template = rng.choice(("Write f(x): {}.", "Write a program f(x): {}.",
                           "f(x) should {}. Write f(x).", "Write f: {}."))
    steps = "; ".join(f"{word}: {code}" for word, code in zip(words, codes, strict=True))
    return template.format(", then ".join(words)), steps, codes[-1]


def _choice(rng, difficulty):
    word, test = (part.format(k=_constant(rng, difficulty), v="x")
                  for part in _same_constant(rng, CONDITIONS, difficulty))
    sides = []
    for count in ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2))[difficulty - 1]:
        if count:
            words, codes = _chain(rng, difficulty, count)
            sides.append((", then ".join(words), codes[-1]))
        else:
            k = str(rng.randint(0, 9))
            sides.append((f"give {k}", k))
    (yes, code), (no, other) = sides
    template = rng.choice(("Write f(x): if x is {w}, {y}; otherwise {n}.",
                           "When x is {w}, {y}. When it is not, {n}. Write f(x)."))
    steps = f"x is {word}: {test}; {yes}: {code}; {no}: {other}"
    return template.format(w=word, y=yes, n=no), steps, f"{code} if {test} else {other}"


def _same_constant(rng, choices, difficulty):
    """Words and code of one of the choices, with the same number in both."""
    k = _constant(rng, difficulty)
    return [part.replace("{k}", str(k)) for part in rng.choice(choices)]


def _list(rng, difficulty):
    parts = rng.sample(("keep", "map", "end"), (1, 2, 2, 3, 3)[difficulty - 1])
    what, code, test, steps = "the numbers of x", "v", "", []
    if "keep" in parts:
        word, form = _same_constant(rng, CONDITIONS, difficulty)
        what, test = f"the numbers of x that are {word}", " if " + form.format(v="v")
        steps.append(f"{word}:{test}")
    if "map" in parts:
        word, code = _same_constant(rng, MAPS, difficulty)
        what += f", each {word}"
        steps.append(f"each {word}: {code}")
    answer = f"[{code} for v in x{test}]" if "keep" in parts or "map" in parts else "x"
    if "end" in parts:
        extremes, count = EXTREMES * ("keep" not in parts), COUNT * ("map" not in parts)
        words, form = rng.choice(SUMMARIES + extremes + count)
        comma = "," if "map" in parts and words.startswith("{}") else ""
        what, answer = words.format(what + comma), form.format(answer)
        steps.append(f"{words.format('them')}: {form.format('')}")
    template = rng.choice(("x is a list. Write f(x): {}.", "Write f(x) for a list x: {}.",
                           "x is a list. f(x) gives {}. Write f."))
    return template.format(what), "; ".join(steps), answer


def _induction(rng, difficulty):
    first, square = rng.randint(0, 4), difficulty == 5 and rng.random() < 0.7
    slopes = (1, rng.randint(2, 40), rng.randint(2, 9), -rng.randint(2, 9), rng.randint(10, 30))
    slope, largest = slopes[difficulty - 1], (40, 1, 9, 20, 60)[difficulty - 1]
    offset = rng.choice((-1, 1)) * rng.randint(1, largest) * (difficulty != 2)
    core = "x * x" if square else "x" if slope == 1 else f"x * {slope}"
    answer = core + (f" {'+' if offset > 0 else '-'} {abs(offset)}" if offset else "")
    inputs = (first, first + 1, first + 2)
    a, b, c = outputs = [run(answer, x) for x in inputs]
    steps = (f"{b} - {a} = {b - a}; {c} - {b} = {c - b}; so {core}; "
             f"at {first}: {a} - {a - offset} = {offset}; so {answer}")
    examples = ", ".join(f"f({x}) = {y}" for x, y in zip(inputs, outputs, strict=True))
    template = rng.choice(("{}. Write f(x).", "Find f(x): {}.", "What is f(x) if {}?"))
    return template.format(examples), steps, answer


KINDS = {"arithmetic": _arithmetic, "choice": _choice, "list": _list, "induction": _induction}
