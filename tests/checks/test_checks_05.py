"""Lesson 05: right answers written otherwise pass, slips are named, references are the package."""

import json

import matplotlib.pyplot as plt
import pytest
import torch

from minids import cost
from minids.config import Config
from minids.learn.checks import context as checks
from minids.learn.judge import check
from minids.model.state import CompressorState
from minids.recipes import million
from minids.show import context

CONFIGS = [Config.nano(), Config.mini(), Config.flash(), Config.pro()]


def ring_by_loop(seen, w):
    slots = torch.full((w,), -1)
    for p in range(seen):
        slots[p % w] = p
    return slots


def feed_one_by_one(new, waiting, before):
    m, c, slots, rest = len(before), new.shape[1] // 2, [], list(waiting)
    for token in new:
        rest.append(token)
        if len(rest) == m:
            window = torch.stack(rest)
            slots.append(torch.cat([before, window[:, c:]]))
            before, rest = window[:, :c], []
    return (torch.stack(slots) if slots else new.new_zeros(0, 2 * m, c),
            torch.stack(rest) if rest else new.new_zeros(0, 2 * c), before)


def reach_by_sets(picks, t, w, m, T, overlap):
    read = set(range(max(t - w + 1, 0), t + 1))
    for i in picks.tolist():
        if (i + 1) * m <= t + 1:
            read |= set(range(max(i - overlap, 0) * m, i * m + m))
    return torch.tensor([s in read for s in range(T)])


def cache_of_the_package(config, n):
    terms = cost.kv_bytes(config, n)
    del terms["total"]
    return terms


def operations_of_the_package(config, n):
    terms = cost.flops(config, n).items()
    return {term: number for term, number in terms if "weights" not in term and term != "total"}


def longest_by_steps(config, memory):
    n, step = 0, 2**40
    while step:
        if sum(cache_of_the_package(config, n + step).values()) <= memory:
            n += step
        else:
            step //= 2
    return n


@pytest.mark.parametrize("name, attempt", [
    ("context.ring", ring_by_loop), ("context.feed", feed_one_by_one),
    ("context.reach", reach_by_sets),
    ("context.cache", cache_of_the_package), ("context.operations", operations_of_the_package),
    ("context.longest", longest_by_steps)])
def test_other_right_answers_pass(name, attempt, capsys):
    assert check(name, attempt) is attempt, capsys.readouterr().out


def cache_twice(config, n):
    return {term: 2 * size for term, size in cache_of_the_package(config, n).items()}


def operations_with_all_index_keys(config, n):
    terms = operations_of_the_package(config, n)
    return terms | {"indexer": operations_of_the_package(config, 4 * n)["indexer"]}


@pytest.mark.parametrize("name, attempt, word", [
    ("context.ring", lambda seen, w: torch.arange(max(seen - w, 0), seen), "shape"),
    ("context.feed", lambda new, waiting, before: (checks.feed(new, waiting[:0], before)),
     "forgotten"),
    ("context.reach", lambda picks, t, w, m, T, o: reach_by_sets(picks, t, w, m, T, False),
     "no overlap"),
    ("context.cache", cache_twice, "case"),
    ("context.operations", operations_with_all_index_keys, "index keys"),
    ("context.longest", lambda config, memory: longest_by_steps(config, memory) // 128 * 128,
     "whole number"),
])
def test_slips_are_told(name, attempt, word, capsys):
    check(name, attempt)
    said = capsys.readouterr().out
    assert "[not yet]" in said and word in said, said


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["nano", "mini", "flash", "pro"])
def test_cost_is_what_the_lesson_says(config):
    for n in (1, 3, 4, 127, 1000, 2**20):
        assert sum(checks.cache(config, n).values()) == cost.kv_bytes(config, n)["total"]
        assert checks.operations(config, n) == pytest.approx(operations_of_the_package(config, n))


def test_feed_is_what_the_package_carries():
    """The same waiting tokens as `CompressorState.resume`."""
    tokens, state = torch.randn(30, 10), CompressorState(1, 64, 4, 5, torch.float32, "cpu")
    waiting, before = tokens[:0], torch.zeros(4, 5)
    for chunk in tokens.split([3, 2, 11, 1, 13]):
        _, waiting, before = checks.feed(chunk, waiting, before)
        state.resume(chunk[None], chunk[None], 4)
        torch.testing.assert_close(state.tail[0][0], waiting)


def test_runs_are_the_stretches():
    seen = torch.tensor([True, True, False, True, False, False])
    assert context.stretches(seen) == [(0, 2), (3, 4)]
    assert context.stretches(torch.zeros(3, dtype=torch.bool)) == []


def test_figures_of_an_unfinished_record(tmp_path):
    """The lesson shows a record at any stage of the run."""
    config, points = Config.nano(), []
    for n in (1024, 2048, 4096):
        held = million.formula_bytes(config, n)
        points.append({"n": n, "prefill_minutes": n / 1e4, "ms": 8.0, "cpu_ms": 7.0,
                       "state_bytes": sum(held.values()), "nats": 2.0, "nats_without_context": 1.5,
                       "resident_most": 5e8, "found": {"8": 3, "32": 2}, "state": held})
        record = {"complete": False, "cpu": "some", "cores": 2, "threads": 1, "torch": "2",
                  "dtype": "float32", "questions": 4, "rivals": 3,
                  "found_without_context": {"8": 4, "32": 3}, "points": points}
        record = json.loads(json.dumps(record))
        assert f"not finished yet: {n:,} tokens" in context.summary(record)
        plt.close(context.plot_record(record))


@pytest.mark.slow
def test_the_widget_draws_all_contexts():
    for n in (1024, 2**20):
        for ratio in (16, 512):
            plt.close(context.plot_cost_by_term(n, ratio))


def test_the_figures_draw():
    lengths, flash = [1024, 2048, 4096], Config.flash()
    operations = {"V3.2": [cost.flops_v32(n) for n in lengths],
                  "Flash": [cost.flops(flash, n) for n in lengths]}
    sizes = {"V3.2": [cost.kv_bytes_v32(n) for n in lengths],
             "Flash": [cost.kv_bytes(flash, n) for n in lengths]}
    ones = torch.arange(20) % 3 == 0
    shares = {"operations": {"Pro": [0.5, 0.4, 0.3]}, "bytes": {"Pro": [0.3, 0.2, 0.1]}}
    percent = {"Pro": 10}
    for figure in (context.plot_memory({"V4-Pro": 5e9, "other": 5e10}),
                   context.plot_state(13, 6, 4, 16),
                   context.plot_errors({"a": (4, {"x": torch.rand(9)}),
                                        "b": (6, {"y": torch.rand(9)})}),
                   context.plot_reach({"layer 0": {"entries": ones, "window": ~ones}}, 19),
                   context.plot_stacks(lengths, {"operations": operations, "bytes": sizes}),
                   context.plot_shares({name: points[-1] for name, points in operations.items()}),
                   context.plot_ratios(lengths, shares, {"operations": percent, "bytes": percent}),
                   context.plot_decode_time({1024: 2.0, 2048: 2.1})):
        figure.canvas.draw()
        plt.close(figure)
