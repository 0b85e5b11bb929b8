"""Checks and pictures of lesson 00."""

import os
from fractions import Fraction

import numpy as np
import pytest

from minids import Config, cost
from minids.learn import judge
from minids.learn.checks import start as checks
from minids.learn.judge import check
from minids.show import start, style


def cache(ratios, n, entry=576, index_key=64, window=128):
    """As a learner may write it, with NumPy."""
    ratios = np.array(ratios)
    entries = n // ratios[ratios > 0]
    keys = n // 4 * np.count_nonzero(ratios == 4)
    return len(ratios) * np.minimum(n, window) * entry + entries.sum() * entry + keys * index_key


def cache_of_floats(ratios, n, entry=576, index_key=64, window=128):
    total = 0.0
    for m in ratios:
        full = n if n <= window else window
        total = total + full * entry
        if m > 0:
            total = total + float(n // m) * entry
            total = total + (float(n // m) * index_key if m == 4 else 0.0)
    return total


@pytest.mark.parametrize("name, attempt", [
    ("start.active_share", lambda r, a, s: 1 - (r - a) / (r + s)),
    ("start.active_share", lambda r, a, s: np.float32(a + s) / np.float32(r + s)),
    ("start.active_share", lambda r, a, s: float(Fraction(a + s, r + s))),
    ("start.blended_price", lambda i, o, n, m: i * (n / (n + m)) + o * (m / (n + m))),
    ("start.blended_price", lambda i, o, n, m: o + (i - o) * n / (n + m)),
    ("start.blended_price", lambda i, o, n, m: np.average([i, o], weights=[n, m])),
    ("start.cache_bytes", cache), ("start.cache_bytes", cache_of_floats),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def per_layer(layer):
    """`cache_bytes` as the sum of layer(m, n, entry, index_key, window) over the layers."""
    def attempt(ratios, n, entry=576, index_key=64, window=128):
        return sum(layer(m, n, entry, index_key, window) for m in ratios)
    return attempt


def returns_in_the_loop(ratios, n, entry=576, index_key=64, window=128):
    total = 0
    for m in ratios:
        total += min(n, window) * entry
        if m:
            total += n // m * (entry + index_key * (m == 4))
        return total


def key_for_each_compressed_layer(m, n, entry, index_key, window):
    total = min(n, window) * entry
    if m > 0:
        total += n // m * (entry + index_key)
    return total


def window_or_entries(m, n, entry, index_key, window):
    if m == 0:
        return min(n, window) * entry
    return n // m * (entry + (index_key if m == 4 else 0))


def fixed_sizes(m, n, entry, index_key, window):
    kept = min(n, 128) * 576
    return kept + (n // m * (576 + (64 if m == 4 else 0)) if m else 0)


@pytest.mark.parametrize("name, attempt, words", [
    ("start.active_share", lambda r, a, s: a / r, "leave the shared expert out"),
    ("start.active_share", lambda r, a, s: (a + s) / r, "above the line only"),
    ("start.active_share", lambda r, a, s: a / (r + s), "below the line only"),
    ("start.active_share", lambda r, a, s: (a + s) / (r + s) * 100, "return percent"),
    ("start.active_share", lambda r, a, s: a + s / r + s, "parentheses"),
    ("start.active_share", lambda r, a, s: a + s / (r + s), "your sum above the line lacks"),
    ("start.active_share", lambda r, a, s: (a + s) / r + s, "your sum below the line lacks"),
    ("start.active_share", lambda r, a, s: int((a + s) / (r + s)), "drop the fraction"),
    ("start.active_share", lambda r, a, s: (a + 1) / (r + 1), "one shared expert"),
    ("start.active_share", lambda r, a, s: (r + s) / (a + s), "upside down"),
    ("start.active_share", lambda r, a, s: round((a + s) / (r + s), 2), "round the share"),
    ("start.active_share", lambda r, a, s: (r - a) / (r + s), "the share that rests"),
    ("start.blended_price", lambda i, o, n, m: (i * n / n + o * m / m) / 2, "still the broken"),
    ("start.blended_price", lambda i, o, n, m: (i + o) / 2, "plain mean"),
    ("start.blended_price", lambda i, o, n, m: i * n / n + o * m / m, "took the 2 away"),
    ("start.blended_price", lambda i, o, n, m: i * n + o * m, "the bill for all tokens"),
    ("start.blended_price", lambda i, o, n, m: (i * n + o * m) / 2, "half of the bill"),
    ("start.blended_price", lambda i, o, n, m: (i * n + o * m) / 1_000_000, "bill in dollars"),
    ("start.blended_price", lambda i, o, n, m: (i * n + o * m) // (n + m), "drop the fraction"),
    ("start.blended_price", lambda i, o, n, m: (i * m + o * n) / (n + m), "exchanged"),
    ("start.blended_price", lambda i, o, n, m: i * n + o * m / (n + m), "lacks parentheses"),
    ("start.blended_price", lambda i, o, n, m: (i * n + o * m) / n + m, "lacks parentheses"),
    ("start.blended_price", lambda i, o, n, m: (i * n + o * m) / n, "by the tokens that are read"),
    ("start.cache_bytes", per_layer(key_for_each_compressed_layer), "HCA layers index keys"),
    ("start.cache_bytes", per_layer(window_or_entries), "to layers of ratio 0 only"),
    ("start.cache_bytes", returns_in_the_loop, "the first layer only"),
    ("start.cache_bytes", per_layer(fixed_sizes), "the numbers 576, 64, and 128"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: w * e + (n // m * (e + i * (m == 4)) if m else 0)),
     "count a full window always"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: min(n, w) * e + (n // m * e if m else 0)),
     "leave the index keys out"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: min(n, w) * e + (n // m * e + n * i * (m == 4) if m else 0)),
     "an index key for every token"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: min(n, w) * e
               + (max(n - w, 0) // m * (e + i * (m == 4)) if m else 0)),
     "that have left the window"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: min(n, w) * e + (n / m * (e + i * (m == 4)) if m else 0)),
     "a part of an entry"),
    ("start.cache_bytes",
     per_layer(lambda m, n, e, i, w: (n // m * (e + i * (m == 4)) if m else 0)),
     "leave the window out"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("constants", [
    dict(entry=576), dict(index_key=64), dict(window=128), dict(entry=576, window=128),
    dict(index_key=64, window=128)])
def test_each_size_matters(constants):
    def attempt(ratios, n, entry=576, index_key=64, window=128):
        sizes = {"entry": entry, "index_key": index_key, "window": window} | constants
        return checks.cache_bytes(ratios, n, **sizes)
    assert check("start.cache_bytes", attempt) is not attempt


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
