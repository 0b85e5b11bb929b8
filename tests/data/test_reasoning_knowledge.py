import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader import PERSON, Reader

from minids.data import tasks
from minids.data.tasks import reasoning
from minids.data.tinyworld import facts, stories

FAMILIES = ("reasoning", "knowledge")


def sample(family, count=400, split="train"):
    return tasks.problems(family, split, count)


def test_a_guess_among_what_the_problem_names_earns_its_chance():
    """Guesses are judged by the verifier; the words come from the problem's text."""
    rng, chances, verdicts = random.Random(0), [], []
    for p in sample("reasoning", 1500):
        words = [[name for name in names if re.search(rf"\b{name}\b", p.prompt)]
                 for names in (facts.PEOPLE, stories.PLACES)]
        options = next((found for found in words if p.facts[0] in found),
                       ["Yes", "No", "It is not known"])
        verdicts.append(tasks.verify(p, f"{rng.choice(options)}."))
        chances.append(reasoning.chance(p))
    assert abs(sum(verdicts) - sum(chances)) < 60       # three standard deviations
    tracking = [reasoning.chance(p) for p in sample("reasoning", 1500) if p.kind == "tracking"]
    assert 0.53 < sum(tracking) / len(tracking) < 0.61


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_pass_and_others_do_not(family):
    by_kind = defaultdict(list)
    for p in sample(family):
        assert tasks.verify(p, p.answer) and tasks.verify(p, f" {p.answer}\n")
        assert p.answer not in p.prompt
        by_kind[p.kind].append(p)
    for kind, problems in by_kind.items():
        levels = {1, 2, 3, 4, 5} if family == "reasoning" else {problems[0].difficulty}
        assert {p.difficulty for p in problems} == levels
        for p in problems:
            accepted = p.facts[0]
            pool = next(pool for pool in stories.POOLS if accepted in pool)
            others = [word for word in pool if word != accepted]
            if accepted in p.answer:
                for word in others:
                    assert not tasks.verify(p, p.answer.replace(accepted, word))
            assert not tasks.verify(p, f"{accepted} or {others[0]}")
            assert not tasks.verify(p, " ".join(others + [accepted]))
        assert not any(tasks.verify(p, "") for p in problems)


@pytest.mark.parametrize("p", [p for family in FAMILIES for p in sample(family, 4)],
                         ids=lambda p: p.kind)
@given(text=st.text(max_size=80))
def test_verify_takes_any_text(p, text):
    assert tasks.verify(p, text) in (True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_short_and_plain(family):
    for p in sample(family):
        text = tasks.as_text(p)
        assert text.isascii() and not re.search(r"  |[{}_]|None", text) and p.prompt.endswith("?")
        assert len(p.prompt.split()) <= 90 and len(p.steps.split()) <= 60


@pytest.mark.parametrize("family", FAMILIES)
def test_no_constant_answer_scores_high(family):
    answers = defaultdict(Counter)
    for p in sample(family, 1500):
        answers[p.kind][p.facts[0]] += 1
    for kind, counted in answers.items():
        bound = 0.6 if kind == "comparison" else 0.35      # a comparison has two answers
        assert counted.most_common(1)[0][1] < bound * counted.total()


@pytest.mark.slow
def test_splits_share_no_problem():
    for family in FAMILIES:
        seen = [{tasks.identity(p) for p in sample(family, 300, split)} for split in tasks.SPLITS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_training_never_asks_for_facts_of_valid_and_test():
    for split in tasks.SPLITS:
        for p in sample("knowledge", 300, split):
            parts = {facts.split_of(facts.Fact(*used.split())) for used in p.facts[1:]}
            assert split in parts
            assert split != "train" or parts == {"train"}
            assert split == "test" or "test" not in parts


def test_tracking_agrees_with_the_reader():
    place_named_last = where_questions = 0
    for p in (p for p in sample("reasoning", 900) if p.kind == "tracking"):
        *_, question = re.split(r"(?<=\.) ", p.prompt)
        story = p.prompt.removesuffix(question)
        about, kind = question.rsplit(" the ", 1)[-1], "where_thing"
        if "the" not in question:
            about, kind = PERSON.findall(question)[0], "where_person"
        if question.startswith("Who"):
            kind = "who_has"
        accepted = Reader(f"A title\n\n{story}").answer(kind, about.rstrip("?"))
        last_step = p.steps.split(". ")[-1]
        assert tasks.verify(p, accepted) and accepted in last_step or accepted == "Nobody"
        if kind != "who_has":
            where_questions += 1
            place_named_last += story.split(" the ")[-1].startswith(accepted)
    # The place named last must not be the answer too often.
    assert place_named_last < 0.7 * where_questions


def test_ordering_follows_from_what_is_given():
    for p in (p for p in sample("reasoning") if p.kind == "ordering"):
        *premises, question = re.split(r"(?<=\.) ", p.prompt)
        more, most, *_ = next(order for order in reasoning.ORDERS
                              if order[0] in p.prompt or order[2] in p.prompt)
        above = set()
        for sentence in premises:
            x, word, y = re.fullmatch(r"(\w+) is (\w+) than (\w+)\.", sentence).groups()
            above.add((x, y) if word == more else (y, x))
        people = {person for pair in above for person in pair}
        for _ in people:
            above |= {(x, z) for x, y in above for w, z in above if y == w}
        if question.startswith("Who"):
            top = question.split()[-1] == f"{most}?"
            expected = [x for x in people
                        if all(((x, y) if top else (y, x)) in above for y in people - {x})]
            assert [p.facts[0]] == expected
        else:
            x, word, y = re.fullmatch(r"Is (\w+) (\w+) than (\w+)\?", question).groups()
            pair = (x, y) if word == more else (y, x)
            assert p.facts[0] == ("yes" if pair in above else "no")


def test_deduction_follows_from_the_rules():
    habits = "|".join(reasoning.HABITS)
    for p in (p for p in sample("reasoning", 900) if p.kind == "deduction"):
        *premises, question = re.split(r"(?<=\.) ", p.prompt)
        rules, does, never = [], set(), set()
        for sentence in premises:
            rule = rf"(Whoever|Nobody who) ({habits}) ({habits})\.|.*"
            who, x, y = re.fullmatch(rule, sentence).groups()
            if who:
                rules.append((who, x, y))
            else:
                does.add(tuple(re.fullmatch(rf"(\w+) ({habits})\.", sentence).groups()))
        for _ in rules:
            for who, x, y in rules:
                conclusions = {(person, y) for person, habit in does if habit == x}
                (does if who == "Whoever" else never).update(conclusions)
        assert not does & never
        if question.startswith("Who "):
            assert [person for person, habit in does if habit == question[4:-1]] == [p.facts[0]]
        else:
            person, base = re.fullmatch(r"Does (\w+) (.+)\?", question).groups()
            habit = next(habit for habit in reasoning.HABITS if reasoning._base(habit) == base)
            pair = person, habit
            assert p.facts[0] == ("yes" if pair in does else "no" if pair in never else "not known")


def test_knowledge_is_true_of_the_world():
    for p in sample("knowledge", 600) + sample("knowledge", 200, "test"):
        used = [fact.split() for fact in p.facts[1:]]       # subject, relation, value
        assert all(facts.VALUE[subject, relation] == value for subject, relation, value in used)
        if p.kind == "comparison":
            assert p.facts[0] == ("yes" if used[0][2] == used[1][2] else "no")
            assert all(subject in p.prompt for subject, *_ in used)
        elif p.kind == "reverse":
            _, relation, value = used[0]
            subjects = [s for (s, r), v in facts.VALUE.items() if (r, v) == (relation, value)]
            assert subjects == [p.facts[0]] and value in p.prompt.lower()
        else:
            assert all(x[2] == y[0] for x, y in zip(used, used[1:])) and used[-1][2] == p.facts[0]
            assert used[0][0] in p.prompt
            assert len(used) == {"one-hop": 1, "two-hop": 2, "three-hop": 3}[p.kind]
            assert p.facts[0] not in re.findall(r"\w+", p.prompt)


def test_the_wording_does_not_make_another_problem():
    prompts = defaultdict(set)
    for p in tasks.problems("knowledge", "train", 1500, difficulty=1):
        prompts[tasks.identity(p)].add(p.prompt)
    assert 280 < len(prompts) <= 300 and Counter(map(len, prompts.values()))[2] > 200
