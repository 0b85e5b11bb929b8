"""`make bench-gpu` in small, on the CPU: what it compares holds, and its table is kept."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


@pytest.mark.slow(12)
def test_all_parts_in_small(tmp_path):
    out = tmp_path / "table.json"
    command = [sys.executable, SCRIPT, "--small", "--device", "cpu", "--out", out, "--folder",
               tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(out.read_text())
    assert table["skipped"] == []
    held = [row["held"] for row in table["rows"] if row["held"] is not None]
    assert len(held) == 9 and all(held)
    assert any("transformers" in row["what"] for row in table["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]     # no layers are left


def test_parts_that_do_not_fit_into_the_time_are_skipped(gpu, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert gpu.main(["--small", "--device", "cpu", "--out", str(out), "--minutes", "0.0001"]) == 0
    table = json.loads(out.read_text())
    assert table["rows"] == [] and len(table["skipped"]) == 4
    assert capsys.readouterr().out.count("skipped") == 4


@pytest.mark.parametrize("flags", [["--minutes", "-1"], ["--folder", "nowhere/at/all"]])
def test_bad_flags_are_one_line(gpu, tmp_path, flags, capsys):
    out = str(tmp_path / "table.json")
    assert gpu.main(["--small", "--device", "cpu", "--out", out, *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_only_the_small_form_runs(gpu, tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "table.json")]) == 2
    assert "no accelerator was found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
