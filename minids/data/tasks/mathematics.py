"""Mathematics: whole-number problems with their working, and a verifier that reads one number.

A family of `minids.data.tasks`. Steps are local: one column or one term at a time, with what is written so far
repeated, so that each number to write next depends on few numbers before it. Answers are whole numbers from 0.
"""

import re

from minids.data.tasks.problem import Problem

DIGITS = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (3, 3), 5: (4, 4)}     # of the two operands, by difficulty
PEOPLE = ("Ann", "Ben", "Cora", "Dan", "Eve", "Finn", "Grace", "Hugo", "Iris", "Jack")
THINGS = ("apples", "pens", "coins", "books", "shells", "cards", "stones", "eggs", "keys", "stamps")
MORE = ("{who} buys {n} more.", "{who} finds {n} more.", "{friend} gives {n} to {who}.", "{who} gets {n} from {friend}.")
FEWER = ("{who} gives {n} to {friend}.", "{who} loses {n}.", "{who} sells {n}.", "{friend} takes {n} away.")
NUMBER = re.compile(r"\s*\+?(0|[1-9][0-9]{0,2}(,[0-9]{3})+|[1-9][0-9]*)\s*\.?\s*")


def draw(rng, difficulty: int) -> Problem:
    """One problem of a kind that `rng` picks."""
    kind = rng.choice(list(KINDS))
    prompt, steps, answer, facts = KINDS[kind](rng, difficulty)
    return Problem("mathematics", kind, difficulty, prompt, steps, str(answer), facts)


def identity(problem: Problem) -> str:
    """The numbers and what to do with them, whatever the words: 12 + 5, 5 + 12, 17 - 5 and 12 + ? = 17 are one fact."""
    return " ".join(map(str, problem.facts))


def verify(problem: Problem, text: str) -> bool:
    """Is `text` the right number and no more? So naming several numbers earns nothing.

    Spaces around it, a plus sign, commas between thousands and a full stop do no harm.
    """
    found = NUMBER.fullmatch(text)
    return found is not None and found[1].replace(",", "") == problem.answer


def _number(rng, digits: int) -> int:
    """A number of that many digits; zero has one."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _pair(rng, difficulty: int) -> tuple[int, int]:
    return tuple(_number(rng, digits) for digits in DIGITS[difficulty])


def _fact(terms: list[int]) -> tuple:
    """A sum of signed terms in one spelling. Two terms are a fact a + b, of which a subtraction is another side."""
    if len(terms) == 2:
        return ("sum", *sorted(terms if min(terms) >= 0 else (-min(terms), sum(terms))))
    return ("terms", *sorted(terms))


def add_steps(a: int, b: int) -> str:
    """Column by column from the right: 47 + 85 is "7 + 5 = 12, write 2, carry 1; 4 + 8 + 1 = 13, write 132"."""
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
    """Column by column from the right, a >= b: 42 - 15 is "12 - 5 = 7, write 7, borrow 1; 4 - 1 - 1 = 2, write 27"."""
    steps, written, borrow = [], "", 0
    for x, y in _columns(a, b):
        taken = f"{y}{' - 1' if borrow else ''}"
        x += 10 if y + borrow > x else 0
        left = x - y - borrow
        written, borrow = f"{left}{written}", int(x > 9)
        steps.append(f"{x} - {taken} = {left}, write {written}{', borrow 1' if borrow else ''}")
    return "; ".join(steps) + ("" if written == str(a - b) else f"; so {a - b}")


def multiply_steps(a: int, b: int) -> str:
    """Column by column from the right, b of one digit: 47 * 8 is "7 * 8 = 56, write 6, carry 5; 4 * 8 + 5 = 37, write 376"."""
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
    """The digits of both numbers from the right, the shorter one filled with zeros."""
    width = max(len(str(a)), len(str(b)))
    return [(int(x), int(y)) for x, y in zip(f"{a:0{width}}"[::-1], f"{b:0{width}}"[::-1], strict=True)]


def _addition(rng, difficulty):
    a, b = _pair(rng, difficulty)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    asked = rng.choice(("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "Find the sum of {a} and {b}."))
    return asked.format(a=a, b=b), add_steps(a, b), a + b, _fact([a, b])


def _subtraction(rng, difficulty):
    a, b = sorted(_pair(rng, difficulty), reverse=True)
    asked = rng.choice(("What is {a} - {b}?", "Take {b} from {a}.", "{a} - {b} = ?", "Subtract {b} from {a}."))
    return asked.format(a=a, b=b), subtract_steps(a, b), a - b, _fact([a, -b])


def _multiplication(rng, difficulty):
    a, b = _number(rng, DIGITS[difficulty][0]), rng.randint(2, 4 if difficulty == 2 else 9)
    asked = rng.choice(("What is {a} * {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?", "What is {a} times {b}?"))
    return asked.format(a=a, b=b), multiply_steps(a, b), a * b, ("product", *sorted((a, b)))


def _signed(rng, count: int, largest: int, first: int = 0) -> list[int]:
    """Terms of which no running total is negative, the first one drawn where it is not given."""
    terms = [first or rng.randint(1, largest)]
    while len(terms) < count:
        term = rng.randint(1, largest)
        terms.append(-term if term <= sum(terms) and rng.random() < 0.4 else term)
    return terms


def _terms(rng, difficulty):
    terms = _signed(rng, (3, 4, 3, 4, 5)[difficulty - 1], 9 if difficulty < 3 else 99)
    written = f"{terms[0]}" + "".join(f" {'+' if t >= 0 else '-'} {abs(t)}" for t in terms[1:])
    asked = rng.choice(("What is {}?", "{} = ?", "Work out {}."))
    return asked.format(written), total_steps(terms), sum(terms), _fact(terms)


def _story(rng, difficulty):
    who, friend = rng.sample(PEOPLE, 2)
    things, largest = rng.choice(THINGS), 9 if difficulty < 2 else 20 if difficulty < 4 else 60
    shape = rng.choice(("changes", "changes", "boxes", "compare" if difficulty < 3 else "changes"))
    if shape == "compare":
        a, b = rng.sample(range(1, largest + 1), 2)
        more = a > b and rng.random() < 0.5
        asked = f"{who} has {a} {things} and {friend} has {b}. How many "
        asked += f"more does {who} have than {friend}?" if more else f"{things} do they have together?"
        terms = [a, -b if more else b]
        return asked, total_steps(terms), sum(terms), _fact(terms)
    count = (2, 2, 3, 3, 4)[difficulty - 1]
    if shape == "boxes":
        boxes, each = rng.randint(2, 9), rng.randint(2, 9)
        terms = _signed(rng, count - 1, largest, first=boxes * each)
        asked, steps = f"{who} has {boxes} boxes with {each} {things} in each.", [f"{boxes} * {each} = {terms[0]}"]
        facts = ("product", *sorted((boxes, each)), *sorted(terms[1:]))
    else:
        terms = _signed(rng, count, largest)
        asked, steps, facts = f"{who} has {terms[0]} {things}.", [], _fact(terms)
    for term in terms[1:]:
        asked += " " + rng.choice(MORE if term >= 0 else FEWER).format(who=who, friend=friend, n=abs(term))
    asked += " " + rng.choice((f"How many {things} does {who} have now?", f"How many {things} has {who} now?"))
    return asked, "; ".join(steps + [total_steps(terms)] * (len(terms) > 1)), sum(terms), facts


def _comparison(rng, difficulty):
    count, digits = (2, 3, 3, 4, 5)[difficulty - 1], (2, 2, 3, 3, 4)[difficulty - 1]
    near = _number(rng, digits)
    numbers = set()
    while len(numbers) < count:     # half of them share the first digits
        numbers.add(near - near % 10 + rng.randrange(10) if rng.random() < 0.5 else _number(rng, digits))
    numbers = sorted(numbers)
    rng.shuffle(numbers)
    pick, word = rng.choice(((max, "largest"), (min, "smallest")))
    asked = rng.choice(("Which number is the {w}: {n}?", "Find the {w} of {n}.", "What is the {w} of these numbers: {n}?"))
    steps, best = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{best} {'>' if best > number else '<'} {number}, keep {pick(best, number)}")
        best = pick(best, number)
    return asked.format(w=word, n=", ".join(map(str, numbers))), "; ".join(steps), best, (word, *sorted(numbers))


def _missing(rng, difficulty):
    b, a = sorted(_pair(rng, max(1, difficulty - 1)))
    shape = rng.choice(("a + ? = c", "? + a = c", "? - b = c", "a - ? = c") + ("a * ? = c",) * (difficulty < 3))
    if shape == "a * ? = c":
        a, b = rng.randint(2, 9), rng.randint(2, 9 if difficulty == 1 else 20)
        written, steps, facts = f"{a} * ? = {a * b}", f"? = {a * b} / {a}; {a} * {b} = {a * b}", ("product", *sorted((a, b)))
    elif shape == "? - b = c":
        a, b = a + b, a
        written, steps, facts = f"? - {b} = {a - b}", f"? = {a - b} + {b}; {add_steps(a - b, b)}", _fact([b, a - b])
        b = a
    elif shape == "a - ? = c":
        written, steps, facts = f"{a} - ? = {a - b}", f"? = {a} - {a - b}; {subtract_steps(a, a - b)}", _fact([b, a - b])
    else:
        written = shape.replace("a", str(a)).replace("c", str(a + b))
        steps, facts = f"? = {a + b} - {a}; {subtract_steps(a + b, a)}", _fact([a, b])
    asked = rng.choice(("{}. What number is ?", "Find the missing number: {}", "What is ? in {}?"))
    return asked.format(written), steps, b, facts


KINDS = {"addition": _addition, "subtraction": _subtraction, "multiplication": _multiplication, "terms": _terms,
         "story": _story, "comparison": _comparison, "missing": _missing}
