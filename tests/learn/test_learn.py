"""Checks, hints, progress, the doctor, and the descriptions of figures."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from minids.errors import MinidsError
from minids.learn import checks, journal, judge
from minids.learn.checks import find
from minids.learn.doctor import doctor
from minids.learn.exercise import CheckFailed
from minids.learn.journal import progress
from minids.learn.judge import check, hint
from minids.system import paths, process

NAMES = list(itertools.chain.from_iterable(checks.lessons().values()))
MISTAKES = [(name, message) for name in NAMES for message in find(name).mistakes]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes_and_is_recorded(name, capsys):
    reference = find(name).reference

    def attempt(*args):
        return reference(*args)
    assert check(name, attempt) is attempt
    assert f"[passed] {name}. The notebook goes on with your version." in capsys.readouterr().out
    assert list(journal.read()) == [name]
    assert len(find(name).hints) == 3


@pytest.mark.parametrize("name, message", MISTAKES)
def test_every_known_mistake_is_named(name, message, capsys):
    exercise = find(name)
    assert check(name, exercise.mistakes[message]) is exercise.reference
    out = capsys.readouterr().out
    assert out.startswith(f"[not yet] {name}. Likely: {message}.")
    assert "goes on with the reference" in out
    assert journal.read() == {}


def not_written(x):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("attempt", [None, ..., not_written, lambda x: None, lambda x: ...])
def test_an_empty_attempt_gets_the_first_hint(attempt, capsys):
    exercise = find("whole.sqrtsoftplus")
    assert check("whole.sqrtsoftplus", attempt) is exercise.reference
    expected = f"[not attempted] whole.sqrtsoftplus. Hint 1 of 3: {exercise.hints[0]}"
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize("attempt, message", [
    (lambda x: x[0], "expected shape (7,), found ()"),
    (lambda x: torch.nn.functional.softplus(x).sqrt().double(),
     "expected dtype torch.float32, found torch.float64"),
    (lambda x: [1.0], "expected a tensor of shape (7,), found 1 values in a list"),
    (lambda x: torch.nn.functional.softplus(x).sqrt() + 0.25, "the largest difference is 0.25"),
    (lambda x: x + missing,  # noqa: F821
     "it raised NameError: name 'missing' is not defined"),
    (lambda x, y: x, "it raised TypeError"),
    (lambda x: torch.nn.functional.softplus(x).sqrt() / 0, "inf or nan"),
    (torch.ones(3), "Expected a function, found Tensor"),
])
def test_any_other_mistake_is_described(attempt, message, capsys):
    check("whole.sqrtsoftplus", attempt)
    out = capsys.readouterr().out
    assert out.startswith("[not yet] whole.sqrtsoftplus. ") and message in out


def test_changing_the_input_is_a_mistake(capsys):
    def attempt(x):
        result = torch.nn.functional.softplus(x).sqrt()
        x.zero_()
        return result
    check("whole.sqrtsoftplus", attempt)
    assert "changes its own input" in capsys.readouterr().out


def test_another_order_of_operations_passes_in_bfloat16():
    def attempt(x, weight, eps):
        mean_square = x.float().pow(2).sum(-1, keepdim=True) / x.shape[-1]
        return (weight * (x.float() / (mean_square + eps).sqrt())).to(x.dtype)
    assert check("whole.rms_norm", attempt) is attempt


def test_the_random_state_does_not_change():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("whole.sqrtsoftplus", lambda x: torch.rand(x.shape))
    assert torch.equal(torch.rand(3), expected)


def test_strict_raises_unless_it_passes(monkeypatch):
    monkeypatch.setenv("MINIDS_STRICT", "1")
    check("whole.sqrtsoftplus", find("whole.sqrtsoftplus").reference)
    for attempt in (not_written, torch.sigmoid):
        with pytest.raises(CheckFailed, match="whole.sqrtsoftplus"):
            check("whole.sqrtsoftplus", attempt)


def test_an_unknown_check_is_refused():
    for name in ("whole.nothing", "nothing.at.all", "", "../x"):
        with pytest.raises(MinidsError, match="expected one of .*whole.rms_norm"):
            check(name, None)


def test_hints_come_one_after_another(capsys, monkeypatch):
    monkeypatch.setattr(judge, "_hints_shown", {})
    for _ in range(4):
        hint("whole.rms_norm")
    a, b, c = find("whole.rms_norm").hints
    lines = [f"[hint 1 of 3] {a}", f"[hint 2 of 3] {b}", f"[hint 3 of 3] {c}",
             f"[hint 1 of 3] {a}"]
    assert capsys.readouterr().out.splitlines() == lines


def test_an_empty_attempt_counts_as_the_first_hint(capsys, monkeypatch):
    monkeypatch.setattr(judge, "_hints_shown", {})
    check("whole.rms_norm", None)
    check("whole.rms_norm", None)
    hint("whole.rms_norm")
    second = find("whole.rms_norm").hints[1]
    assert capsys.readouterr().out.splitlines()[-1] == f"[hint 2 of 3] {second}"


def test_progress_counts_and_keeps_the_first_date(own_home, capsys):
    file = own_home / "progress.json"
    old = {"whole.rms_norm": "2020-01-01", "of.another.version": "2020-01-01"}
    file.write_text(json.dumps({"passed": old}))
    check("whole.rms_norm", find("whole.rms_norm").reference)
    check("whole.sqrtsoftplus", find("whole.sqrtsoftplus").reference)
    passed = json.loads(file.read_text())["passed"]
    assert passed["whole.rms_norm"] == passed["of.another.version"] == "2020-01-01"
    assert passed["whole.sqrtsoftplus"] > "2020-01-01"
    total = len(checks.lessons()["08_whole_model"])
    assert journal.summary()["08_whole_model"] == (2, total)
    progress()
    assert f"2 of {total}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"passed": 3}',
                                    '{"passed": {"a": {}}}', "\udcff"])
def test_damaged_progress_is_set_aside_and_never_lost(own_home, damage, capsys):
    file = own_home / "progress.json"
    raw = damage.encode("utf-8", "surrogateescape")
    file.write_bytes(raw)
    check("whole.rms_norm", find("whole.rms_norm").reference)
    message = "was not readable. It is kept as progress.damaged-1.json"
    assert message in capsys.readouterr().out
    assert (own_home / "progress.damaged-1.json").read_bytes() == raw
    assert list(journal.read()) == ["whole.rms_norm"]
    file.write_bytes(raw)
    assert journal.read() == {}
    assert (own_home / "progress.damaged-2.json").read_bytes() == raw


def test_a_home_that_cannot_be_written_does_not_stop_the_lesson(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIDS_HOME", str(tmp_path / "file" / "below"))
    reference = find("whole.rms_norm").reference
    assert check("whole.rms_norm", reference) is reference
    assert "[progress] not saved: cannot make the folder" in capsys.readouterr().out


def test_the_doctor_names_each_problem_and_its_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    assert doctor() is False
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("PROBLEM") and "git checkout" in line]
    assert any("tokenizer.json does not load" in line for line in problems)
    assert any("nano is missing" in line for line in problems)
    monkeypatch.setattr(paths, "DATA", tmp_path / "nothing")
    assert doctor() is False
    assert "set MINIDS_DATA" in capsys.readouterr().out


@pytest.mark.slow
def test_missing_data_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(MinidsError, match="expected it in the clone"):
        paths.data("nothing.json")
    monkeypatch.setattr(paths, "DATA", tmp_path / "nothing")
    with pytest.raises(MinidsError, match="MINIDS_DATA"):
        paths.data("nothing.json")
    environment = {**os.environ, "MINIDS_DATA": str(tmp_path)}
    program = [sys.executable, "-c", "from minids.system import paths; print(paths.DATA)"]
    out = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert out.stdout.strip() == str(tmp_path)


def test_the_users_choice_of_threads_stays():
    environment = {"GOMP_SPINCOUNT": "5"}
    process.sleeping_threads(environment)
    assert environment == {"GOMP_SPINCOUNT": "5"}
    environment = {}
    process.sleeping_threads(environment)
    assert set(environment) == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


@pytest.mark.slow
def test_threads_are_set_before_torch_is_loaded():
    program = ("import sys, builtins\nreal = builtins.__import__\nimport os\n"
             "def spy(name, *a, **k):\n"
             "    if name == 'torch' and 'GOMP_SPINCOUNT' not in os.environ: print('late')\n"
             "    return real(name, *a, **k)\n"
             "builtins.__import__ = spy\nimport minids\nprint('torch' in sys.modules)")
    settings = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True,
                         text=True)
    assert out.stdout.split() == ["True"]
