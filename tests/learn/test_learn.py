"""The doctor, threads, and the descriptions of figures."""

import os
import subprocess
import sys

import pytest

from minids.errors import MinidsError
from minids.learn.doctor import doctor
from minids.show import style
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
