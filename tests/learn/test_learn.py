"""Progress, the doctor, threads, and the descriptions of figures."""

import json
import os
import subprocess
import sys

import pytest

from minids.errors import MinidsError
from minids.learn import checks, journal
from minids.learn.checks import find
from minids.learn.doctor import doctor
from minids.learn.journal import progress
from minids.learn.judge import check
from minids.show import style
from minids.system import paths, process


def solved(name):
    """A right answer that is not the reference itself."""
    reference = find(name).reference
    return lambda *args: reference(*args)


def test_progress_counts_and_keeps_the_first_date(own_home, capsys):
    file = own_home / "progress.json"
    old = {"whole.rms_norm": "2020-01-01", "of.another.version": "2020-01-01"}
    file.write_text(json.dumps({"passed": old}))
    check("whole.rms_norm", solved("whole.rms_norm"))
    check("whole.sqrtsoftplus", solved("whole.sqrtsoftplus"))
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
    check("whole.rms_norm", solved("whole.rms_norm"))
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
    attempt = solved("whole.rms_norm")
    assert check("whole.rms_norm", attempt) is attempt
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


def test_a_figure_has_its_description(monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display",
                        lambda data, metadata=None, raw=None: shown.append((data, metadata)))
    style.show(style.plt.figure(), "a rising line")
    assert shown[0][1] == {"image/png": {"alt": "a rising line"}}
    assert "a rising line" in shown[1][0]["text/markdown"]
    assert not style.plt.get_fignums()
    with pytest.raises(ValueError, match="description"):
        style.show(style.plt.figure(), " ")


def test_a_slider_draws_what_it_says(monkeypatch):
    drawn = []

    def draw(width, height):
        drawn.append((width, height))
        return style.plt.figure(figsize=(width, height))
    box = style.slider_image(draw, "an empty figure", width=[1, 2, 3], height=[1, 2])
    first = box.image.value
    box.sliders["width"].value = 3
    assert box.shown == {"width": 3, "height": 1}
    assert box.image.value != first and first[:4] == b"\x89PNG"
    box.sliders["width"].value = 1
    assert box.image.value == first and drawn == [(1, 1), (3, 1)]   # each picture is drawn once
    data, metadata = box._repr_mimebundle_()
    assert data["text/plain"] == "[sliders: width, height] an empty figure"
    assert metadata["image/png"]["alt"] == "an empty figure"
