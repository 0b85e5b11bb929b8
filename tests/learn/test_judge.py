"""What `check` says: every known mistake is named, and nothing wrong passes."""

import contextlib
import functools
import itertools
import random
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import said

from minids import plain
from minids.errors import MinidsError
from minids.learn import attempt as running
from minids.learn import checks, compare, journal, judge
from minids.learn.checks import find
from minids.learn.exercise import Check, CheckFailed
from minids.learn.judge import check, hint

NAMES = list(itertools.chain.from_iterable(checks.lessons().values()))


@pytest.fixture(autouse=True)
def a_new_kernel(monkeypatch):
    monkeypatch.setattr(judge, "_attempts", {})
    monkeypatch.setattr(judge, "_hints_shown", {})


def solved(name):
    """A right answer that is not the reference itself."""
    reference = find(name).reference
    return lambda *args: reference(*args)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_passes_and_is_recorded(name, capsys):
    attempt = solved(name)
    assert check(name, attempt) is attempt
    assert f"[passed] {name}. The notebook goes on with your version." in said(capsys)
    assert list(journal.read()) == [name]
    assert len(find(name).hints) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_known_mistake_is_named(name, monkeypatch):
    exercise = find(name)
    run_each_version_once(exercise, monkeypatch)
    unnamed = {}
    for message, version in exercise.mistakes.items():
        verdict, text = judge.judge(exercise, version)
        if (verdict, text) != ("not yet", f"Likely: {message}"):
            unnamed[message] = text
    assert unnamed == {}


def run_each_version_once(exercise, monkeypatch):
    """Let the judge remember what each version does in each case."""
    known = judge.cases(exercise)
    run, expected, memory = judge._run, judge._expected, {}

    def remember(key, function, *args):
        if key not in memory:
            memory[key] = function(*args)
        return memory[key]
    monkeypatch.setattr(judge, "cases", lambda exercise: known)
    monkeypatch.setattr(judge, "_run", lambda version, args: remember(
        (id(version), id(args)), run, version, args))
    monkeypatch.setattr(judge, "_expected", lambda exercise, args: remember(
        id(args), expected, exercise, args))


def test_a_known_mistake_is_printed_and_not_recorded(capsys):
    exercise = find("mhc.sinkhorn")
    message, version = next(iter(exercise.mistakes.items()))
    assert check("mhc.sinkhorn", version) is exercise.reference
    assert said(capsys) == (f"[not yet] mhc.sinkhorn. Likely: {message}. "
                            "The notebook goes on with the reference.")
    assert journal.read() == {}


# ---- whose function is it? ----

def half(x):
    return F.softplus(x)


def test_running_the_check_cell_twice_judges_the_learners_function_again(capsys):
    given = check("whole.sqrtsoftplus", half)
    assert "Likely" in said(capsys)
    again = check("whole.sqrtsoftplus", given)
    assert again is given is find("whole.sqrtsoftplus").reference
    assert said(capsys).startswith("[not yet]") and journal.read() == {}
    right = solved("whole.sqrtsoftplus")
    assert check("whole.sqrtsoftplus", check("whole.sqrtsoftplus", right)) is right


def test_the_reference_itself_is_nobodys_answer(capsys):
    for reference in (find("mhc.sinkhorn").reference, plain.sinkhorn, plain.maps):
        check("mhc.sinkhorn", reference)
        assert "[not attempted]" in (out := said(capsys)) and "not your own" in out
    wrapped = functools.wraps(plain.sinkhorn)(lambda *args: plain.sinkhorn(*args))
    check("mhc.sinkhorn", wrapped)
    assert "[not attempted]" in said(capsys) and journal.read() == {}


def test_a_function_that_calls_the_reference_does_not_pass(capsys):
    space = {}
    exec("def sinkhorn(raw, iters, eps):\n    return handed_back(raw, iters, eps)", space)
    space["handed_back"] = find("mhc.sinkhorn").reference
    check("mhc.sinkhorn", space["sinkhorn"])
    assert "It calls the reference (as `handed_back`)" in said(capsys)


# ---- empty, or without return ----

def not_written(x):
    """What it will do."""
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("attempt", [None, ..., not_written, lambda x: None, lambda x: ...])
def test_an_empty_attempt_is_told_of_hints_and_gets_none(attempt, capsys):
    exercise = find("whole.sqrtsoftplus")
    assert check("whole.sqrtsoftplus", attempt) is exercise.reference
    out = said(capsys)
    assert out.startswith("[not attempted] whole.sqrtsoftplus. ")
    assert 'hint("whole.sqrtsoftplus")' in out and exercise.hints[0] not in out


def test_a_missing_return_is_named(capsys):
    def attempt(x):
        result = F.softplus(x).sqrt()
        result + 1
    check("whole.sqrtsoftplus", attempt)
    assert "it returned None: is a `return` missing?" in said(capsys)


def test_not_implemented_counts_as_empty_only_in_the_attempt_itself(capsys):
    check("whole.sqrtsoftplus", lambda x: not_written(x))
    assert "raised NotImplementedError: your turn" in said(capsys)

    def later(x):
        if x.ndim > 1:
            raise NotImplementedError("only vectors")
        return F.softplus(x).sqrt()
    check("whole.sqrtsoftplus", later)
    assert "raised NotImplementedError: only vectors" in said(capsys)


# ---- errors ----

def without_an_axis(x):
    return x + torch.ones(3)


@pytest.mark.parametrize("attempt, message", [
    (lambda x: x[0], "expected shape (7,), found ()"),
    (lambda x: F.softplus(x).sqrt().double(),
     "expected dtype torch.float32, found torch.float64"),
    (lambda x: [1.0], "expected a tensor of shape (7,), found a list of 1"),
    (lambda x: F.softplus(x).sqrt() + 0.25, "every value is too large by 0.25"),
    (lambda x: 3 * F.softplus(x).sqrt(), "every value is 3 times what it should be"),
    (lambda x: -F.softplus(x).sqrt(), "every value has the wrong sign"),
    (lambda x: F.softplus(x).sqrt().flatten().flip(0).view(x.shape), "in another order"),
    (lambda x: x + missing, "NameError: name 'missing' is not defined"),  # noqa: F821
    (lambda x, y: x, "The check calls it with (x); yours takes (x, y)"),
    (lambda x: F.softplus(x).sqrt() / 0, "the numbers run away"),
    (torch.ones(3), "Expected a function, found Tensor"),
    (lambda x: F.softpluss(x).sqrt(), "Did you mean `softplus`?"),
    (lambda x: xs + 1, "Did you mean"),  # noqa: F821
    (without_an_axis, "Is keepdim=True, or `[:, None]`, missing?"),
    (lambda x: sys.exit("bye"), "raised SystemExit: bye"),
    (lambda x: F.softplus(x).sqrt().to_sparse(), "expected a dense tensor"),
    (lambda x: F.softplus(x).sqrt().to("meta"), "on the device cpu, found one on meta"),
])
def test_any_other_mistake_is_described(attempt, message, capsys):
    xt = 1  # noqa: F841
    check("whole.sqrtsoftplus", attempt)
    out = said(capsys)
    assert out.startswith("[not yet] whole.sqrtsoftplus. ") and message in out


class Rude(Exception):
    def __str__(self):
        raise ValueError


class NoNumber:
    def __eq__(self, other):
        raise ValueError

    def __len__(self):
        raise ValueError


def rude(x):
    raise Rude


@pytest.mark.parametrize("attempt", [rude, lambda x: NoNumber(), lambda x: (i for i in x)])
def test_no_attempt_breaks_the_check(attempt, capsys):
    check("whole.sqrtsoftplus", attempt)
    assert said(capsys).startswith("[not yet] whole.sqrtsoftplus. ")


def test_exchanged_parameters_are_named(capsys):
    check("whole.rms_norm", lambda weight, x, eps: plain.rms_norm(x, weight, eps))
    assert "It should take (x, weight, eps), in this order" in said(capsys)


def test_changing_the_input_is_a_mistake(capsys):
    def attempt(x):
        result = F.softplus(x).sqrt()
        x.zero_()
        return result
    check("whole.sqrtsoftplus", attempt)
    assert "changes its own input" in said(capsys)


def test_a_call_that_never_ends_is_ended(capsys, monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 0.3)

    def attempt(x):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                pass
    check("whole.sqrtsoftplus", attempt)
    assert "did not finish in time: is there a loop that never ends?" in said(capsys)


def test_no_interruption_comes_too_late():
    for length in (0.5, 0.9, 0.99, 1, 1.01, 1.1, 2):
        with contextlib.suppress(running.TimeIsUp), running.time_limit(0.02):
            time.sleep(0.02 * length)
        for _ in range(20_000):     # here it would arrive
            pass
    time.sleep(0.05)


# ---- global state ----

@pytest.mark.slow
def test_global_state_does_not_change(capsys):
    def sabotage(x):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        sys.stdout = None
        random.random(), np.random.rand(), torch.rand(3)
        return x
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for name in NAMES:
        check(name, solved(name))
    check("whole.sqrtsoftplus", sabotage)
    assert said(capsys)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(),
                      torch.get_rng_state().tolist())
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.get_default_device() == torch.device("cpu")


def test_a_lesson_without_gradients_or_in_float64_is_judged_alike():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            attempt = solved("mhc.sinkhorn")
            assert check("mhc.sinkhorn", attempt) is attempt
            assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


# ---- gradients ----

def test_a_result_without_gradient_does_not_pass(capsys):
    def detached(x):
        return F.softplus(x).sqrt().detach()

    def by_numpy(x):
        return torch.from_numpy(np.sqrt(np.logaddexp(0, x.numpy()))).to(x.dtype)

    @torch.no_grad()
    def under_no_grad(x):
        return F.softplus(x).sqrt()

    def in_part(x):
        return F.softplus(x).sqrt() + (x - x.detach()) * 0.5
    for attempt, words in ((detached, "no gradient passes"), (by_numpy, "raised RuntimeError"),
                           (under_no_grad, "no gradient passes"),
                           (in_part, "its gradient is wrong")):
        check("whole.sqrtsoftplus", attempt)
        assert "The values are right, but in the case" in (out := said(capsys)) and words in out


def test_the_gradient_of_a_hidden_score_is_not_judged():
    """logsumexp of nothing but -inf has the gradient nan there; the mask before drops it."""
    def attempt(scores, sink):
        total = torch.logaddexp(scores.logsumexp(-1), sink)
        return (scores - total[..., None]).exp()

    def detached(scores, sink):
        return attempt(scores, sink.detach())
    assert check("attention.sink", attempt) is attempt
    assert check("attention.sink", detached) is not detached


# ---- numbers, sequences, text ----

@pytest.mark.parametrize("actual, expected, words", [
    (3, 3, None), (np.int64(3), 3, None), (np.float32(0.5), 0.5, None), (True, 1, None),
    (torch.tensor(3), 3, None), (2, torch.tensor(2.0), None), (3.0, 3, None),
    ([1, 2, 3], (1, 2, 3), None), (np.array([1, 2, 3]), (1, 2, 3), None),
    (torch.tensor([1.0, 2.0, 3.0]), [1, 2, 3], None), (np.True_, True, None),
    (float("nan"), float("nan"), None), (float("inf"), float("inf"), None),
    (10**20 + 1, 10**20, "the number is off by +1"),
    ("a", 1, "expected a number, found a str"),
    (1.5, float("inf"), "the number is 1.5 and should be inf"),
    (7, [7], "expected a list of 1, found an int"),
    ([1, 2], [1, 2, 3], "expected a list of 3, found a list of 2"),
    (torch.ones(4, 2), (torch.ones(2), torch.ones(2)),
     "expected a tuple of 2, found a tensor of shape (4, 2)"),
    ((2, 1), (1, 2), "the results are right, but they stand in the wrong order"),
    ([3, 4], {3, 4}, "expected a set of 2, found a list of 2"),
    ({3}, {3, 4}, "the set is wrong: 4 missing"),
    (False, True, "the answer is False, and should be True"),
    ("ab", "abc", "the text is 'ab', and should be 'abc'"),
    ({"a": 1}, {"a": 2}, "['a']: the number is off by -1"),
    ({"b": 1}, {"a": 1}, "['a'] are missing and ['b'] do not belong there"),
    (torch.tensor([False, True]), torch.tensor([False, False]),
     "1 of 2 values differ; the first at [1] is True and should be False"),
    (torch.ones(2, 3), torch.ones(3, 2), "the result is transposed"),
    (torch.ones(6), torch.ones(3, 2), "the numbers are right, their shape is not"),
    (None, True, "the answer is None, and should be True"),
])
def test_results_in_words(actual, expected, words):
    found = compare.difference(actual, expected, 1e-5, 1e-4)
    assert str(found) == words if words and ":" in words[:8] else (
        found is None if words is None else words in str(found))


def rows(x):
    return torch.cat([x[:1].softmax(-1), x[1:]])


@pytest.mark.parametrize("wrong, words", [
    (lambda x: x.softmax(-1).mT, "the result is transposed"),
    (rows, "only the first entry along axis -2 is right"),
    (lambda x: torch.cat([x[:1], x[1:].softmax(-1)]), "right but the first"),
    (lambda x: torch.cat([x[:-1].softmax(-1), x[-1:]]), "right but the last"),
])
def test_what_the_values_have_in_common_is_said(wrong, words, monkeypatch, capsys):
    exercise = Check("x", lambda x: x.softmax(-1),
                     lambda rng: [("square", (torch.randn(4, 4, generator=rng),))])
    monkeypatch.setattr(judge, "find", lambda name: exercise)
    check("x", wrong)
    assert words in said(capsys)


# ---- which mistake is named ----

def fake(monkeypatch, mistakes):
    def power_cases(rng):
        for n in (1.0, 2.0, 3.0, 4.0):
            yield f"{n}", (torch.tensor([n, 0.5]),)
    exercise = Check("x", lambda x: x**2, power_cases, mistakes)
    monkeypatch.setattr(judge, "find", lambda name: exercise)


def test_nan_and_inf_are_no_evidence_for_a_mistake(monkeypatch, capsys):
    fake(monkeypatch, {"you divide by zero": lambda x: x / 0,
                       "you take log of it": lambda x: (x - 9).log()})
    for attempt in (lambda x: x * torch.inf, lambda x: x * torch.nan):
        check("x", attempt)
        assert "run away" in (out := said(capsys)) and "Likely" not in out


def test_overflow_in_one_case_is_named(monkeypatch, capsys):
    def overflows(x):
        return torch.where(x > 3.5, torch.inf, x**2)
    fake(monkeypatch, {"it overflows": overflows})
    check("x", lambda x: overflows(x))
    assert "Likely: it overflows" in said(capsys)


def test_errors_agree_only_with_the_same_message(monkeypatch, capsys):
    def slip(x):
        raise ValueError("one thing")

    def other(x):
        raise ValueError("another thing")
    fake(monkeypatch, {"it does one thing": slip})
    check("x", lambda x: other(x))
    assert "raised ValueError: another thing" in said(capsys)
    check("x", lambda x: slip(x))
    assert "Likely: it does one thing" in said(capsys)


def test_a_mistake_that_fits_most_cases_is_named_with_perhaps(monkeypatch, capsys):
    fake(monkeypatch, {"you cube": lambda x: x**3})
    check("x", lambda x: x**3 + (x == 4))
    assert "Perhaps: you cube." in said(capsys)
    check("x", lambda x: torch.where(x > 2.5, x**2, x**3))
    assert "you cube" not in said(capsys)       # right in two cases where cubing is wrong


# ---- the rest ----

def test_another_order_of_operations_passes_in_bfloat16():
    def attempt(x, weight, eps):
        mean_square = x.float().pow(2).sum(-1, keepdim=True) / x.shape[-1]
        return (weight * (x.float() / (mean_square + eps).sqrt())).to(x.dtype)
    assert check("whole.rms_norm", attempt) is attempt


def test_strict_raises_unless_it_passes(monkeypatch):
    monkeypatch.setenv("MINIDS_STRICT", "1")
    check("whole.sqrtsoftplus", solved("whole.sqrtsoftplus"))
    for attempt in (not_written, torch.sigmoid):
        with pytest.raises(CheckFailed, match="whole.sqrtsoftplus"):
            check("whole.sqrtsoftplus", attempt)


def test_a_demonstration_is_not_recorded(capsys):
    judge.demonstrate("whole.sqrtsoftplus", solved("whole.sqrtsoftplus"))
    assert said(capsys) == "[passed] whole.sqrtsoftplus." and journal.read() == {}


def test_an_unknown_check_is_refused():
    for name in ("whole.nothing", "nothing.at.all", "", "../x"):
        with pytest.raises(MinidsError, match="expected one of .*whole.rms_norm"):
            check(name, None)


def test_hints_come_one_after_another(capsys):
    check("whole.rms_norm", None)
    said(capsys)
    a, b, c = find("whole.rms_norm").hints
    for number, text in ((1, a), (2, b), (3, c), (1, a)):
        hint("whole.rms_norm")
        assert said(capsys) == f"[hint {number} of 3] {text}"


def test_lines_wrap_between_words(capsys):
    check("mhc.site", lambda X, layer, pre, post, comb: X)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= judge.WIDTH
