"""Checks and pictures of lesson 00."""

import os

import pytest

from minids import Config, cost
from minids.learn import judge
from minids.learn.checks import start as checks
from minids.show import start, style


@pytest.mark.parametrize("config", [Config.flash(), Config.pro()])
@pytest.mark.parametrize("n", [0, 1, 100, 127, 128, 1003, 1 << 20])
def test_the_cache_reference_counts_as_cost_does(config, n):
    ratios = config.compress_ratios[:config.n_layers]
    assert checks.cache_bytes(ratios, n) == cost.kv_bytes(config, n)["total"]


def test_a_demonstration_is_not_strict_and_leaves_the_setting(monkeypatch, capsys):
    monkeypatch.setenv("MINIDS_STRICT", "1")
    judge.demonstrate("start.active_share", lambda *args: 0.5)
    assert capsys.readouterr().out.startswith("[not yet]") and os.environ["MINIDS_STRICT"] == "1"


def test_what_was_not_published_is_missing_and_not_zero():
    scores = start.scores()
    assert len(scores) == 22 and scores["LiveCodeBench (Pass@1)"]["GPT-5.4"] is None
    for row in scores.values():
        assert set(row) == set(start.MODELS)
        assert all(value is None or value > 0 for value in row.values())
        assert row[start.PRO] is not None and row[start.FLASH] is not None


def test_both_tables_agree_where_they_name_the_same_model():
    modes = {row["benchmark"]: row["V4-Pro Max"] for row in start.published("benchmarks_modes")}
    for benchmark, row in start.scores().items():
        assert modes[start.OTHER_NAMES.get(benchmark, benchmark)] == row[start.PRO]


def test_prices_have_a_date_and_a_source():
    rows = start.published("prices")
    assert {row["model"] for row in rows} == set(start.MODELS)
    for row in rows:
        assert row["as_of"] and row["source"]
        assert row["input_usd_per_mtok"] < row["output_usd_per_mtok"]
    assert start.blended({"input_usd_per_mtok": 2.5, "output_usd_per_mtok": 15.0}, 3) == 5.625


def test_the_map_knows_each_lesson_and_the_way_to_it():
    numbers = [name[:2] for name, *_ in start.LESSONS]
    assert numbers == [f"{i:02d}" for i in range(16)]
    for name, *_, before in start.LESSONS:
        assert all(number < name[:2] for number in before)
    assert start.prerequisites("00") == [] and start.prerequisites("15") == ["00", "08", "10", "11"]


def test_the_map_links_lessons_beside_the_open_one(monkeypatch):
    """A link without a folder works in notebooks/ and in a learner's copies alike."""
    shown = []
    monkeypatch.setattr(start, "display", lambda data, raw=None: shown.append(data["text/html"]))
    start.course_map()
    cards = dict(zip([name for name, *_ in start.LESSONS], shown[0].split("</details>")))
    for name, card in cards.items():
        assert f">{name}</summary>" in card
        assert (f'<a href="{name}.ipynb">' in card) == start.is_built(name)
        assert ("in preparation" in card) != start.is_built(name)
    assert " > ".join(start.prerequisites("13")).replace(">", "&gt;") in cards["13_distillation"]


def test_a_table_escapes_its_cells_and_links_notebooks(monkeypatch):
    shown = []
    monkeypatch.setattr(start, "display", lambda data, raw=None: shown.append(data))
    start.table(["a", "b"], [["x < y", "01_some.ipynb"]], "a note")
    page = shown[0]["text/html"]
    assert "x &lt; y" in page and '<a href="01_some.ipynb"><u>01_some</u></a>' in page
    assert shown[0]["text/plain"].splitlines()[-1] == "a note"


@pytest.mark.slow
def test_every_picture_draws():
    flash, pro = Config.flash(), Config.pro()
    worst = max(start.scores(),
                key=lambda name: sum(value is None for value in start.scores()[name].values()))
    for figure in (start.plot_architecture(), start.plot_layers({"Flash": flash, "Pro": pro}),
                   start.plot_context_cost(flash, pro), start.plot_lifecycle(), start.plot_modes(),
                   start.plot_price_quality(worst, 30)):
        assert style.png(figure)[:4] == b"\x89PNG"
