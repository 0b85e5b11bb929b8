"""`make bench-gpu` in small, on the CPU: what it compares holds, and its table is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)


@pytest.mark.slow
def test_all_parts_in_small(tmp_path):
    out = tmp_path / "table.json"
    done = run("--small", "--device", "cpu", "--out", out, "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(out.read_text())
    assert table["skipped"] == []
    held = [row["held"] for row in table["rows"] if row["held"] is not None]
    assert len(held) == 9 and all(held)
    assert any("transformers" in row["what"] for row in table["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]     # no layers are left


def test_parts_that_do_not_fit_into_the_time_are_skipped(tmp_path):
    out = tmp_path / "table.json"
    done = run("--small", "--device", "cpu", "--out", out, "--minutes", "0.0001")
    assert done.returncode == 0, done.stderr
    table = json.loads(out.read_text())
    assert table["rows"] == [] and len(table["skipped"]) == 4
    assert done.stdout.count("skipped") == 4


@pytest.mark.parametrize("flags", [["--minutes", "-1"], ["--folder", "nowhere/at/all"]])
def test_bad_flags_are_one_line(tmp_path, flags):
    done = run("--small", "--device", "cpu", "--out", tmp_path / "table.json", *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_only_the_small_form_runs(tmp_path):
    done = run("--device", "cpu", "--out", tmp_path / "table.json")
    assert done.returncode == 2 and "no accelerator was found" in done.stderr
    assert list(tmp_path.iterdir()) == []
