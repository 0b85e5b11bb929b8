"""The doctor, and threads."""

import os
import subprocess
import sys

import pytest

from minids.errors import MinidsError
from minids.learn import doctor as doctor_module
from minids.learn.doctor import doctor
from minids.model.kernels import compiled
from minids.system import paths, process


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


@pytest.mark.parametrize("reason, problems", [
    ("numba is not installed", 0), ("MINIDS_KERNELS=0", 0),
    ("numba does not load: numpy is too new", 1)])
def test_the_doctor_says_why_kernels_are_off(monkeypatch, capsys, reason, problems):
    monkeypatch.setattr(compiled, "reason", reason)
    found = doctor_module._kernels()
    line = capsys.readouterr().out
    assert line.startswith("kernels") and reason in line and "slower" in line
    assert len(found) == problems and all("pip install" in problem for problem in found)
    assert ("pip install" in line) == ("not installed" in reason)


@pytest.mark.skipif(compiled.numba is None, reason="numba is not installed")
def test_the_doctor_names_the_kernels_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "reason", None)
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path / "kernels")
    assert doctor_module._kernels() == []
    line = capsys.readouterr().out
    assert f"of {len(compiled.KERNELS)} compiled, in kernels" in line and "threads by" in line
    monkeypatch.setattr(compiled, "cache_folder", lambda: None)
    assert "NUMBA_CACHE_DIR" in doctor_module._kernels()[0]


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
