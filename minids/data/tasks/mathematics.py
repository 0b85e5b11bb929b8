"""The family "mathematics": whole-number problems with worked steps, and a verifier of one number.

A family of `minids.data.tasks`. The steps are local: they treat one column or one term at a time
and repeat the digits written so far, so that each number to write depends on few numbers before it.
Answers are whole numbers of at least 0.
"""

import re

from minids.data.tasks.problem import Problem

# Number of digits of the two operands, by difficulty.
DIGITS = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (3, 3), 5: (4, 4)}
PEOPLE = ("Ann", "Ben", "Cora", "Dan", "Eve", "Finn", "Grace", "Hugo", "Iris", "Jack")
THINGS = ("apples", "pens", "coins", "books", "shells", "cards", "stones", "eggs", "keys",
          "stamps")
MORE = ("{who} buys {n} more.", "{who} finds {n} more.", "{friend} gives {n} to {who}.",
        "{who} gets {n} from {friend}.")
FEWER = ("{who} gives {n} to {friend}.", "{who} loses {n}.", "{who} sells {n}.",
         "{friend} takes {n} away.")
NUMBER = re.compile(r"\s*\+?(0|[1-9][0-9]{0,2}(,[0-9]{3})+|[1-9][0-9]*)\s*\.?\s*")


def generate(rng, difficulty: int) -> Problem:
    """A random problem of a random kind."""
    kind = rng.choice(list(KINDS))
    prompt, steps, answer, facts = KINDS[kind](rng, difficulty)
    return Problem("mathematics", kind, difficulty, prompt, steps, str(answer), facts)


def identity(problem: Problem) -> str:
    """The numbers and the operation, whatever the wording.

    12 + 5, 5 + 12, 17 - 5 and 12 + ? = 17 have the same identity.
    """
    return " ".join(map(str, problem.facts))


def verify(problem: Problem, text: str) -> bool:
    """Whether `text` is the right number and nothing else: a list of guesses is not correct.

    Spaces around it, a plus sign, commas between thousands and a full stop are allowed.
    """
    match = NUMBER.fullmatch(text)
    return match is not None and match[1].replace(",", "") == problem.answer


def _number(rng, digits: int) -> int:
    """A random number of that many digits; zero has one digit."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _pair(rng, difficulty: int) -> tuple[int, int]:
    return tuple(_number(rng, digits) for digits in DIGITS[difficulty])


def _fact(terms: list[int]) -> tuple:
    """The identity of a sum of signed terms; a subtraction of two terms counts as its addition."""
    if len(terms) == 2:
        return ("sum", *sorted(terms if min(terms) >= 0 else (-min(terms), sum(terms))))
    return ("terms", *sorted(terms))


def add_steps(a: int, b: int) -> str:
    """Column by column from the right.

    47 + 85 is "7 + 5 = 12, write 2, carry 1; 4 + 8 + 1 = 13, write 132".
    """
    steps, written, carry = [], "", 0
    columns = _columns(a, b)
    for place, (x, y) in enumerate(columns, 1):
        total = x + y + carry
        written = (str(total) if place == len(columns) else str(total % 10)) + written
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}, write {written}")
        carry = total // 10
        if carry and place < len(columns):
            steps[-1] += ", carry 1"
    return "; ".join(steps)


def subtract_steps(a: int, b: int) -> str:
    """Column by column from the right, for a >= b.

    42 - 15 is "12 - 5 = 7, write 7, borrow 1; 4 - 1 - 1 = 2, write 27".
    """
    steps, written, borrow = [], "", 0
    for x, y in _columns(a, b):
        taken = f"{y}{' - 1' if borrow else ''}"
        x += 10 if y + borrow > x else 0
        left = x - y - borrow
        written, borrow = f"{left}{written}", int(x > 9)
        steps.append(f"{x} - {taken} = {left}, write {written}{', borrow 1' if borrow else ''}")
    return "; ".join(steps) + ("" if written == str(a - b) else f"; so {a - b}")


def multiply_steps(a: int, b: int) -> str:
    """Column by column from the right, for b of one digit.

    47 * 8 is "7 * 8 = 56, write 6, carry 5; 4 * 8 + 5 = 37, write 376".
    """
    steps, written, carry = [], "", 0
    for place, x in enumerate(map(int, reversed(str(a))), 1):
        total, last = x * b + carry, place == len(str(a))
        written = (str(total) if last else str(total % 10)) + written
        steps.append(f"{x} * {b}{f' + {carry}' if carry else ''} = {total}, write {written}")
        carry = total // 10
        if carry and not last:
            steps[-1] += f", carry {carry}"
    return "; ".join(steps)


def total_steps(terms: list[int]) -> str:
    """Term by term: 4 + 7 - 2 is "4 + 7 = 11; 11 - 2 = 9"."""
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total} {'+' if term >= 0 else '-'} {abs(term)} = {total + term}")
        total += term
    return "; ".join(steps)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both numbers from the right; the shorter number is padded with zeros."""
    width = max(len(str(a)), len(str(b)))
    digits = zip(f"{a:0{width}}"[::-1], f"{b:0{width}}"[::-1], strict=True)
    return [(int(x), int(y)) for x, y in digits]


def _addition(rng, difficulty):
    a, b = _pair(rng, difficulty)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    template = rng.choice(("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?",
                           "Find the sum of {a} and {b}."))
    return template.format(a=a, b=b), add_steps(a, b), a + b, _fact([a, b])


def _subtraction(rng, difficulty):
    a, b = sorted(_pair(rng, difficulty), reverse=True)
    template = rng.choice(("What is {a} - {b}?", "Take {b} from {a}.", "{a} - {b} = ?",
                           "Subtract {b} from {a}."))
    return template.format(a=a, b=b), subtract_steps(a, b), a - b, _fact([a, -b])


def _multiplication(rng, difficulty):
    a, b = _number(rng, DIGITS[difficulty][0]), rng.randint(2, 4 if difficulty == 2 else 9)
    template = rng.choice(("What is {a} * {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?",
                           "What is {a} times {b}?"))
    return template.format(a=a, b=b), multiply_steps(a, b), a * b, ("product", *sorted((a, b)))


def _signed(rng, count: int, largest: int, first: int = 0) -> list[int]:
    """Random terms whose running total is never negative; the first one may be given."""
    terms = [first or rng.randint(1, largest)]
    while len(terms) < count:
        term = rng.randint(1, largest)
        terms.append(-term if term <= sum(terms) and rng.random() < 0.4 else term)
    return terms


def _terms(rng, difficulty):
    terms = _signed(rng, (3, 4, 3, 4, 5)[difficulty - 1], 9 if difficulty < 3 else 99)
    rest = "".join(f" {'+' if term >= 0 else '-'} {abs(term)}" for term in terms[1:])
    template = rng.choice(("What is {}?", "{} = ?", "Work out {}."))
    return template.format(f"{terms[0]}{rest}"), total_steps(terms), sum(terms), _fact(terms)


def _story(rng, difficulty):
    who, friend = rng.sample(PEOPLE, 2)
    things, largest = rng.choice(THINGS), 9 if difficulty < 2 else 20 if difficulty < 4 else 60
    shape = rng.choice(("changes", "changes", "boxes", "compare" if difficulty < 3 else "changes"))
    if shape == "compare":
        return _story_of_two(rng, who, friend, things, largest)
    count = (2, 2, 3, 3, 4)[difficulty - 1]
    if shape == "boxes":
        boxes, each = rng.randint(2, 9), rng.randint(2, 9)
        terms = _signed(rng, count - 1, largest, first=boxes * each)
        prompt = f"{who} has {boxes} boxes with {each} {things} in each."
        steps = [f"{boxes} * {each} = {terms[0]}"]
        facts = ("product", *sorted((boxes, each)), *sorted(terms[1:]))
    else:
        terms = _signed(rng, count, largest)
        prompt, steps, facts = f"{who} has {terms[0]} {things}.", [], _fact(terms)
    for term in terms[1:]:
        change = rng.choice(MORE if term >= 0 else FEWER)
        prompt += " " + change.format(who=who, friend=friend, n=abs(term))
    prompt += " " + rng.choice((f"How many {things} does {who} have now?",
                                f"How many {things} has {who} now?"))
    if len(terms) > 1:
        steps.append(total_steps(terms))
    return prompt, "; ".join(steps), sum(terms), facts


def _story_of_two(rng, who, friend, things, largest):
    """Two people have some things: how many together, or how many more has the first?"""
    a, b = rng.sample(range(1, largest + 1), 2)
    more = a > b and rng.random() < 0.5
    prompt = f"{who} has {a} {things} and {friend} has {b}. How many "
    prompt += f"more does {who} have than {friend}?" if more else f"{things} do they have together?"
    terms = [a, -b if more else b]
    return prompt, total_steps(terms), sum(terms), _fact(terms)


def _comparison(rng, difficulty):
    count, digits = (2, 3, 3, 4, 5)[difficulty - 1], (2, 2, 3, 3, 4)[difficulty - 1]
    near = _number(rng, digits)
    numbers = set()
    while len(numbers) < count:     # half of them share the first digits
        same_tens = rng.random() < 0.5
        numbers.add(near - near % 10 + rng.randrange(10) if same_tens else _number(rng, digits))
    numbers = sorted(numbers)
    rng.shuffle(numbers)
    pick, word = rng.choice(((max, "largest"), (min, "smallest")))
    template = rng.choice(("Which number is the {w}: {n}?", "Find the {w} of {n}.",
                           "What is the {w} of these numbers: {n}?"))
    steps, best = [], numbers[0]
    for number in numbers[1:]:
        sign = ">" if best > number else "<"
        steps.append(f"{best} {sign} {number}, keep {pick(best, number)}")
        best = pick(best, number)
    prompt = template.format(w=word, n=", ".join(map(str, numbers)))
    return prompt, "; ".join(steps), best, (word, *sorted(numbers))


def _missing(rng, difficulty):
    b, a = sorted(_pair(rng, max(1, difficulty - 1)))
    shapes = ("a + ? = c", "? + a = c", "? - b = c", "a - ? = c")
    shape = rng.choice(shapes + ("a * ? = c",) * (difficulty < 3))
    if shape == "a * ? = c":
        a, answer = rng.randint(2, 9), rng.randint(2, 9 if difficulty == 1 else 20)
        c = a * answer
        equation, steps = f"{a} * ? = {c}", f"? = {c} / {a}; {a} * {answer} = {c}"
        facts = ("product", *sorted((a, answer)))
    elif shape == "? - b = c":
        answer, facts = a + b, _fact([a, b])
        equation, steps = f"? - {a} = {b}", f"? = {b} + {a}; {add_steps(b, a)}"
    elif shape == "a - ? = c":
        answer, c, facts = b, a - b, _fact([b, a - b])
        equation, steps = f"{a} - ? = {c}", f"? = {a} - {c}; {subtract_steps(a, c)}"
    else:
        answer, c, facts = b, a + b, _fact([a, b])
        equation = shape.replace("a", str(a)).replace("c", str(c))
        steps = f"? = {c} - {a}; {subtract_steps(c, a)}"
    template = rng.choice(("{}. What number is ?", "Find the missing number: {}",
                           "What is ? in {}?"))
    return template.format(equation), steps, answer, facts


KINDS = {"addition": _addition, "subtraction": _subtraction, "multiplication": _multiplication,
         "terms": _terms, "story": _story, "comparison": _comparison, "missing": _missing}
