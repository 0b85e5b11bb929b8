import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data import tasks
from minids.data.tasks import (
    as_text,
    coding,
    identity,
    mathematics,
    problem,
    problems,
    split_of,
    verify,
)
from minids.data.tasks.interpreter import ProgramError, run
from minids.errors import MinidsError

FAMILIES = ("mathematics", "coding")
KINDS = {"mathematics": set(mathematics.KINDS), "coding": set(coding.KINDS)}
SAMPLE = {(family, level): problems(family, "train", 100, level)
          for family in FAMILIES for level in range(1, 6)}
EVERY = [p for sample in SAMPLE.values() for p in sample]
MATHS, CODE = ([p for p in EVERY if p.family == family] for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_always_gives_the_same_problem(family):
    expected = [problem(family, "valid", index) for index in range(5, 25)]
    assert problems(family, "valid", 20, first=5) == expected
    assert len({problem(family, "train", index).prompt for index in range(200)}) > 150


def test_an_exam_has_no_problem_twice():
    """The test split has a tenth of the facts, so many numbers give the same problem."""
    exam = tasks.distinct_problems("knowledge", "test", 60, (1,))
    known = {identity(problem("knowledge", "test", index, 1)) for index in range(500)}
    assert len(exam) < 60 and {identity(p) for p in exam} == known and len(known) == len(exam)
    sums = tasks.distinct_problems("mathematics", "valid", 12, (1, 3))
    assert len({identity(p) for p in sums}) == 12 and {p.difficulty for p in sums} == {1, 3}
    first, second = (problem("mathematics", "valid", i, level) for i, level in enumerate((1, 3)))
    assert sums[:2] == [first, second]


@pytest.mark.slow
def test_another_process_makes_the_same_problems():
    program = ("from minids.data.tasks import problems\n"
               f"print([problems(family, 'test', 5) for family in {FAMILIES}])")
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True,
                           text=True)
    assert other.stdout == f"{[problems(family, 'test', 5) for family in FAMILIES]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("family, count", [("mathematics", 1500), ("coding", 150)])
def test_splits_share_no_problem(family, count):
    counts = {"train": 3 * count, "valid": count, "test": count}
    sample = {split: problems(family, split, counts[split]) for split in tasks.SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {identity(p) for p in sample[a]} & {identity(p) for p in sample[b]}
        assert not {p.prompt for p in sample[a]} & {p.prompt for p in sample[b]}


def test_a_sum_asked_another_way_stays_in_its_split():
    def sums(split):
        pairs = set()
        for p in problems("mathematics", split, 1500):
            if p.kind in ("addition", "subtraction"):
                a, b = sorted(map(int, re.findall(r"\d+", p.prompt)))
                pairs.add((a, b) if p.kind == "addition" else tuple(sorted((a, b - a))))
        return pairs

    train, test = sums("train"), sums("test")
    assert len(train) > 200 and len(test) > 100 and not train & test


@pytest.mark.parametrize("family", FAMILIES)
def test_about_a_tenth_of_what_can_be_asked_is_for_testing(family):
    rng, generate = random.Random(0), tasks.MODULES[family].generate
    sample = [generate(rng, rng.randint(3, 5)) for _ in range(1000)]
    splits = list({identity(p): split_of(p) for p in sample}.values())
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        assert abs(splits.count(split) / len(splits) - share) < 0.04


@pytest.mark.parametrize("family, level", SAMPLE)
def test_right_answers_are_right_for_every_kind(family, level):
    sample = SAMPLE[family, level]
    assert {p.kind for p in sample} == KINDS[family]
    for p in sample:
        assert verify(p, p.answer) and verify(p, f"  {p.answer}\n")
        assert p.difficulty == level and p.family == family and hash(p) is not None
        assert as_text(p).isascii() and "\n" not in p.prompt + p.steps + p.answer


def test_every_equation_in_the_steps_of_mathematics_is_true():
    count = 0
    for p in MATHS:
        for left, right in re.findall(r"((?:\d+ [-+*/] )+\d+) = (\d+)", p.steps):
            assert run(left.replace("/", "//"), 0) == int(right), p
            count += 1
        for a, sign, b, best in re.findall(r"(\d+) ([<>]) (\d+), keep (\d+)", p.steps):
            assert run(f"{a} {sign} {b}", 0) is True and best in (a, b)
        last = re.findall(r"\d+", re.sub(r", (carry|borrow) 1$", "", p.steps))[-1]
        assert p.kind == "missing" and "/" in p.steps or last == p.answer, p
    assert count > 700


def test_answers_of_mathematics_are_those_of_the_question():
    for p in MATHS:
        numbers = list(map(int, re.findall(r"\d+", p.prompt)))
        if p.kind == "comparison":
            assert int(p.answer) == (max(numbers) if "largest" in p.prompt else min(numbers))
        if p.kind == "missing":
            left, right = re.search(r"([\d?]+ [-+*] [\d?]+) = (\d+)", p.prompt).groups()
            assert run(left.replace("?", p.answer), 0) == int(right)
        elif m := re.search(r"\d+( [-+*] \d+)+", p.prompt):
            assert run(m[0], 0) == int(p.answer)
        if p.kind == "story" and " and " in p.prompt:
            difference = " more does " in p.prompt
            assert int(p.answer) == (abs(numbers[0] - numbers[1]) if difference else sum(numbers))
        elif p.kind == "story":
            start, *events, _ = p.prompt.split(". ")
            who = start.split()[0]
            left = run(" * ".join(re.findall(r"\d+", start)), 0)
            for event in events:
                gained = re.search(f"buys|finds|gets|to {who}", event)
                left += int(re.search(r"\d+", event)[0]) * (1 if gained else -1)
                assert left >= 0
            assert int(p.answer) == left


def test_wrong_numbers_and_lists_of_numbers_are_wrong():
    for p in MATHS:
        n = int(p.answer)
        every = " ".join(map(str, range(300)))
        for text in (str(n + 1), str(n - 1), f"-{n}", f"- {n}", f"{n}{n}", f"{n} {n}",
                     f"{n + 1} or {n}", f"{n}, {n + 1}", f"{n}.0", f"0{n}", f"{n}?", f"not {n}",
                     f"{n}-0", f"{n}\n{n}", f"{n + 1}. {n}", every, f"{every} {n}", f"{n},000",
                     f"\u2212{n}", "", " ", "?", ".", p.steps + f" = {n} {n}"):
            assert not verify(p, text), (text, p.answer)


def test_spellings_of_a_number():
    p = next(p for p in MATHS if len(p.answer) == 4)
    grouped = f"{int(p.answer):,}"
    for text in (f"+{p.answer}", f" {p.answer} .", grouped, f"{grouped}."):
        assert verify(p, text)
    for text in (grouped.replace(",", ", "), f"{p.answer[:2]},{p.answer[2:]}", f"{p.answer},"):
        assert not verify(p, text)
    assert not verify(p, p.answer.translate({ord("0") + d: 0x660 + d for d in range(10)}))


def test_equivalent_programs_pass():
    for p in CODE:
        assert verify(p, f"def f(y):\n    return {re.sub(r'(?<![a-z])x(?![a-z])', 'y', p.answer)}")
        body = f"    a = {p.answer}\n    if a == a:\n        return a\n    return 0"
        assert verify(p, f"def f(x):\n{body}")
        gives_list = p.kind == "list" and isinstance(p.facts[0][1], tuple)
        assert verify(p, f"({p.answer})[:]" if gives_list else f"({p.answer})")


def test_perturbed_programs_fail():
    tried = passed = 0
    rng = random.Random(0)
    swaps = (("+", "-"), (" - ", " + "), (" * ", " + "), ("%", "//"), (">", "<"), ("<", "<="),
             ("max", "min"), ("min", "max"), ("sum", "max"), ("sorted", ""), ("[::-1]", ""),
             ("==", "!="), (" if v", " if not v"), (" else ", " else 1 + "))
    inputs = [rng.randint(-150, 150) for _ in range(200)]
    lists = [[rng.randint(-30, 45) for _ in range(rng.randint(0, 12))] for _ in range(100)]
    for p in CODE:
        changed = {p.answer.replace(old, new, 1) for old, new in swaps}
        for number in re.finditer(r"\d+", p.answer):
            before, after = p.answer[:number.start()], p.answer[number.end():]
            changed |= {f"{before}{int(number[0]) + step}{after}" for step in (-1, 1)}
        for text in changed - {p.answer}:
            tried += 1
            if verify(p, text):     # nearly all of these do the same
                passed += any(outcome(text, x) != outcome(p.answer, x)
                              for x in (lists if p.kind == "list" else inputs))
    assert tried > 2500 and passed < 0.002 * tried


def outcome(source, argument):
    try:
        return repr(run(source, argument))
    except ProgramError:
        return None


def test_a_table_of_the_shown_examples_fails():
    for p in (p for p in CODE if p.kind == "induction"):
        shown = {int(a): int(b) for a, b in re.findall(r"f\((-?\d+)\) = (-?\d+)", p.prompt)}
        assert len(shown) == 3 and all(run(p.answer, a) == b for a, b in shown.items())
        (a, fa), (b, fb), (_, fc) = shown.items()
        assert not verify(p, f"{fa} if x == {a} else {fb} if x == {b} else {fc}")
        assert len({argument for argument, _ in p.facts} - set(shown)) >= 10


def test_programs_that_ignore_the_question_fail():
    for text in ("x", "0", "1", "5", "[]", "[0]", "True", "x == x", "None", "f(x)", "",
                 "while 1: pass", "x" * 10**6):
        assert not any(verify(p, text) for p in CODE), text[:20]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(EVERY[::11]),
       st.one_of(st.text(), st.from_regex(r"[-+0-9,. ]{0,12}"),
                 st.from_regex(r"[xv0-9\[\]() +*%<>=a-z]*")))
def test_verify_never_raises(p, text):
    assert verify(p, text) in (True, False)


def test_wrong_arguments_give_one_message():
    for arguments in (("poetry", "train", 0), ("coding", "dev", 0), ("coding", "train", -1),
                      ("coding", "train", 0, 6)):
        with pytest.raises(MinidsError, match="expected"):
            problem(*arguments)


def test_a_family_without_variety_is_reported(monkeypatch):
    only = problem("mathematics", "train", 0)
    monkeypatch.setattr(mathematics, "generate", lambda rng, difficulty: only)
    assert tasks.problem("mathematics", "train", 3) == only
    with pytest.raises(MinidsError, match="no problem"):
        tasks.problem("mathematics", "test", 3)
