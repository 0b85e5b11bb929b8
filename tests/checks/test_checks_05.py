"""Lesson 05: right answers written otherwise pass, slips are named, references are the package."""

import json
import math

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


def longest_one_by_one(config, memory):
    n = 0
    while sum(cache_of_the_package(config, n + 1).values()) <= memory:
        n += 1
    return n


def cache_layer_by_layer(config, n):
    c, r, w = config.head_dim, config.rope_head_dim, config.window_size
    terms = dict.fromkeys(("window", "CSA entries", "CSA index keys", "HCA entries"), 0.0)
    for layer in range(config.n_layers):
        m = config.compress_ratios[layer]
        terms["window"] += min(n, w) * (c + r)
        if m == 4:
            terms["CSA entries"] += (c + r) * math.floor(n / m)
            terms["CSA index keys"] += config.index_head_dim * 4 / 8 * math.floor(n / m)
        elif m:
            terms["HCA entries"] += (c + r) * math.floor(n / m)
    return terms


def operations_layer_by_layer(config, n):
    terms = dict.fromkeys(("indexer", "CSA core", "HCA core", "window-only core"), 0)
    w = min(n, config.window_size)
    for m in config.compress_ratios[:config.n_layers]:
        keys, term = w, "window-only core"
        if m == 4:
            keys, term = w + min(config.index_topk, n // m), "CSA core"
            terms["indexer"] += config.index_n_heads * config.index_head_dim * (n // m)
        elif m:
            keys, term = w + n // m, "HCA core"
        terms[term] += 8 * config.n_heads * config.head_dim * keys
    return terms


def reach_by_clamped_slices(picks, t, w, m, T, overlap):
    mask = torch.zeros(T, dtype=torch.bool)
    mask[max(0, t + 1 - w):t + 1] = True
    for i in picks:
        if (i + 1) * m - 1 <= t:
            mask[max(0, (i - int(overlap)) * m):(i + 1) * m] = True
    return mask


def feed_by_lists(new, waiting, before):
    """A list of results in place of a tuple, and the windows one by one."""
    m, c = before.shape
    t = torch.cat([waiting, new])
    windows = list(t[:len(t) // m * m].split(m)) if len(t) >= m else []
    slots = []
    for window in windows:
        slots.append(torch.cat([before, window[:, c:]]))
        before = window[:, :c]
    return [torch.stack(slots) if slots else torch.zeros(0, 2 * m, c), t[len(windows) * m:], before]


@pytest.mark.parametrize("name, attempt", [
    ("context.ring", ring_by_loop),
    ("context.ring", lambda seen, w: torch.tensor(
        [max(range(j, seen, w), default=-1) for j in range(w)])),
    ("context.feed", feed_one_by_one), ("context.feed", feed_by_lists),
    ("context.reach", reach_by_sets), ("context.reach", reach_by_clamped_slices),
    ("context.cache", cache_of_the_package), ("context.cache", cache_layer_by_layer),
    ("context.operations", operations_of_the_package),
    ("context.operations", operations_layer_by_layer),
    ("context.longest", longest_by_steps),
    pytest.param("context.longest", longest_one_by_one, marks=pytest.mark.slow),
    ("context.longest", lambda config, memory: float(longest_by_steps(config, memory)))])
def test_other_right_answers_pass(name, attempt, capsys):
    assert check(name, attempt) is attempt, capsys.readouterr().out


def slots_of(p_to_slot, start=-1):
    def attempt(seen, w):
        slots = torch.full((w,), start)
        for p in range(seen):
            slots[p_to_slot(p, w)] = p
        return slots
    return attempt


def ring_of_the_last(seen, w):
    slots = torch.full((w,), -1)
    for i, p in enumerate(range(max(0, seen - w), seen)):
        slots[i] = p
    return slots


def feed_as_typed(new, waiting, before, t=None, n=None, slots=None, rest=None, last=None):
    """The solution as a learner might type it, with room for one slip."""
    m = before.shape[0]
    tokens = torch.cat([waiting, new]) if t is None else t(waiting, new)
    count = tokens.shape[0] // m if n is None else n(new, m)
    windows = tokens[:count * m].reshape(count, m, new.shape[1])
    c = before.shape[1]
    a, b = windows[..., :c], windows[..., c:]
    shifted = torch.cat([before[None], a[:-1]]) if count else a
    made = torch.cat([shifted, b], dim=1) if slots is None else slots(shifted, a, b, before)
    left = tokens[count * m:] if rest is None else rest(tokens, count * m, new, waiting)
    carried = (a[-1] if count else before) if last is None else last(a, b, before, shifted)
    return made, left, carried


def fed(**changes):
    return lambda *args: feed_as_typed(*args, **changes)


def reach_as_typed(window=lambda t, w: range(max(t - w + 1, 0), t + 1), ready=None,
                   inside=None):
    def attempt(picks, t, w, m, T, overlap):
        read = set(window(t, w))
        for i in picks.tolist():
            complete = (i + 1) * m <= t + 1 if ready is None else ready(i, m, t)
            if complete:
                first = (i - 1) * m if overlap else i * m
                read |= set(range(first, (i + 1) * m) if inside is None else inside(i, m, overlap))
        return torch.tensor([s in read for s in range(T)])
    return attempt


def reach_by_slices(picks, t, w, m, T, overlap):
    mask = torch.zeros(T, dtype=torch.bool)
    mask[max(0, t - w + 1):t + 1] = True
    for i in picks:
        if (i + 1) * m <= t + 1:
            mask[(i - 1 if overlap else i) * m:(i + 1) * m] = True
    return mask


def cache_as_typed(config, n, entry=None, key=None, hold=None, count=None, ratios=None):
    c, r, w = config.head_dim, config.rope_head_dim, config.window_size
    layers = config.compress_ratios[:config.n_layers] if ratios is None else ratios(config)
    one = c - r + 2 * r if entry is None else entry(c, r)
    count = count or (lambda n, m: n // m)
    csa = sum(count(n, 4) for m in layers if m == 4)
    return {"window": len(layers) * one * (min(n, w) if hold is None else hold(n, w)),
            "CSA entries": one * csa,
            "CSA index keys": csa * (config.index_head_dim / 2 if key is None else key(config)),
            "HCA entries": one * sum(count(n, m) for m in layers if m > 4)}


def cached(**changes):
    return lambda *args: cache_as_typed(*args, **changes)


def operations_as_typed(config, n, keys=None, csa_keys=None, hca_keys=None):
    ratios, w = config.compress_ratios[:config.n_layers], min(n, config.window_size)
    core, k = 2 * config.n_heads * 2 * config.head_dim * 2, config.index_topk
    keys = n // 4 if keys is None else keys(n, k)
    csa_keys = min(k, n // 4) + w if csa_keys is None else csa_keys(n, k, w)
    hca = (core * (n // m + w) if hca_keys is None else hca_keys(core, n, m, w, k)
           for m in ratios if m > 4)
    return {"indexer": ratios.count(4) * config.index_n_heads * config.index_head_dim * keys,
            "CSA core": ratios.count(4) * core * csa_keys, "HCA core": sum(hca),
            "window-only core": ratios.count(0) * core * w}


def operated(**changes):
    return lambda *args: operations_as_typed(*args, **changes)


def longest_by_halves(config, memory, limit=None, less=False):
    low, high = 0, limit(config) if limit else 2**30
    while low < high:
        middle = (low + high + 1) // 2
        size = sum(cache_of_the_package(config, middle).values())
        if size < memory if less else size <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def longest_by_the_mean(n):
    def attempt(config, memory):
        return int(memory // (sum(cache_of_the_package(config, n).values()) / n))
    return attempt


def longest_by_doubling(config, memory):
    n = 1
    while sum(cache_of_the_package(config, 2 * n).values()) <= memory:
        n *= 2
    return n


def first_that_does_not_fit(config, memory):
    return longest_by_halves(config, memory) + 1


@pytest.mark.parametrize("name, attempt, words", [
    ("context.ring", lambda seen, w: torch.arange(max(seen - w, 0), seen), "only the positions"),
    ("context.ring", slots_of(lambda p, w: (p + 1) % w), "slot (p + 1) % w"),
    ("context.ring", slots_of(lambda p, w: p % w, start=0), "empty slots hold 0"),
    ("context.ring", slots_of(lambda p, w: p), "which a full ring does not have"),
    ("context.ring", ring_of_the_last, "sort the slots by age"),
    ("context.ring", lambda seen, w: slots_of(lambda p, w: p % w)(seen + 1, w), "is at position"),
    ("context.ring", lambda seen, w: slots_of(lambda p, w: p % w)(seen - 1, w), "the newest token"),
    ("context.feed", lambda new, waiting, before: (checks.feed(new, waiting[:0], before)),
     "you forget the tokens that wait"),
    ("context.feed", fed(t=lambda waiting, new: new), "you forget the tokens that wait"),
    ("context.feed", fed(t=lambda waiting, new: torch.cat([new, waiting])), "should come first"),
    ("context.feed", fed(rest=lambda t, full, new, waiting: new[full:]), "from the new tokens"),
    ("context.feed", fed(rest=lambda t, full, new, waiting: t[full - len(t):]),
     "negative index"),
    ("context.feed", fed(rest=lambda t, full, new, waiting: new[:0]), "return no waiting tokens"),
    ("context.feed", fed(last=lambda a, b, before, shifted: a[-1]), "no window is complete"),
    ("context.feed", fed(last=lambda a, b, before, shifted: before), "`before` that came in"),
    ("context.feed", fed(last=lambda a, b, before, shifted: b[-1] if len(b) else before),
     "hand on a b-half"),
    ("context.feed", fed(last=lambda a, b, before, s: s[-1] if len(s) else before), "has used"),
    ("context.feed", fed(slots=lambda shifted, a, b, before: torch.cat([a, b], 1)),
     "the window's own a-half"),
    ("context.feed", fed(slots=lambda shifted, a, b, before: torch.cat([b, shifted], 1)),
     "put the b-half first"),
    ("context.feed", fed(slots=lambda shifted, a, b, before: torch.cat([shifted, b], 2)),
     "along the channels"),
    ("context.feed", fed(slots=lambda shifted, a, b, before: torch.cat([a.roll(1, 0), b], 1)),
     "roll the a-halves"),
    ("context.feed", fed(n=lambda new, m: len(new) // m), "the new tokens fill alone"),
    ("context.reach", lambda picks, t, w, m, T, o: reach_by_sets(picks, t, w, m, T, False),
     "do not overlap"),
    ("context.reach", lambda picks, t, w, m, T, o: reach_by_sets(picks, t, w, m, T, True),
     "overlap always"),
    ("context.reach", reach_as_typed(window=lambda t, w: range(max(t - w, 0), t + 1)),
     "holds w + 1 tokens"),
    ("context.reach", reach_as_typed(window=lambda t, w: range(max(t - w, 0), t)),
     "before the query and not"),
    ("context.reach", reach_as_typed(window=lambda t, w: range(max(t - w + 1, 0), t)),
     "does not see itself"),
    ("context.reach", reach_as_typed(window=lambda t, w: []), "the sliding window is missing"),
    ("context.reach", reach_as_typed(ready=lambda i, m, t: True), "before they are complete"),
    ("context.reach", reach_as_typed(ready=lambda i, m, t: i * m <= t), "its first token"),
    ("context.reach", reach_as_typed(ready=lambda i, m, t: i <= (t + 1) // m), "one entry too"),
    ("context.reach", reach_as_typed(ready=lambda i, m, t: (i + 1) * m <= t), "the query's own"),
    ("context.reach", reach_as_typed(inside=lambda i, m, o: range((i - o) * m, (i + 1 - o) * m)),
     "only the window before"),
    ("context.reach", reach_by_slices, "you lose entry 0"),
    ("context.cache", cached(entry=lambda c, r: c), "one byte for every channel"),
    ("context.cache", cached(entry=lambda c, r: 2 * c), "two bytes for every channel"),
    ("context.cache", cached(entry=lambda c, r: c + 2 * r), "add the rotary channels to c"),
    ("context.cache", cached(key=lambda config: config.index_head_dim), "index keys in FP8"),
    ("context.cache", cached(key=lambda config: config.index_n_heads * config.index_head_dim / 2),
     "for each indexer head"),
    ("context.cache", cached(hold=lambda n, w: w), "always holds w"),
    ("context.cache", cached(hold=lambda n, w: n), "grows with the context"),
    ("context.cache", cached(count=lambda n, m: n / m), "fractions of entries"),
    ("context.cache", cached(count=lambda n, m: math.ceil(n / m)), "the number of entries up"),
    ("context.cache", cached(count=lambda n, m: n), "an entry for each token"),
    ("context.cache", cached(ratios=lambda config: config.compress_ratios), "MTP block"),
    ("context.operations", operated(keys=lambda n, k: n),
     "one fault is still there, in how many index keys"),
    ("context.operations", operated(csa_keys=lambda n, k, w: k + w),
     "one fault is still there, in how many CSA entries"),
    ("context.operations", operated(hca_keys=lambda core, n, m, w, k: core * (n // m)),
     "in what an HCA layer reads"),
    ("context.operations", operated(keys=lambda n, k: k), "scores only k entries"),
    ("context.operations", operated(csa_keys=lambda n, k, w: min(k, n) + w), "reads at most n"),
    ("context.operations", operated(csa_keys=lambda n, k, w: min(k, n // 4)), "leaves the window"),
    ("context.operations", operated(hca_keys=lambda core, n, m, w, k: core * (n // m) + w),
     "adds w as a number of operations"),
    ("context.operations", operated(hca_keys=lambda core, n, m, w, k: core * (min(k, n // m) + w)),
     "HCA has no top k"),
    ("context.longest", lambda config, memory: longest_by_steps(config, memory) // 128 * 128,
     "steps of 128"),
    ("context.longest", lambda config, memory: longest_by_halves(config, memory, less=True),
     "takes less than `memory` bytes"),
    ("context.longest", lambda config, memory: longest_by_halves(
        config, memory, limit=lambda config: config.max_seq_len), "stop at the model's"),
    ("context.longest", lambda config, memory: longest_by_halves(
        config, memory, limit=lambda config: 2**20), "search up to 1,048,576 tokens only"),
    ("context.longest", longest_by_the_mean(2**20), "its windows do not grow"),
    ("context.longest", longest_by_the_mean(1000), "its windows do not grow"),
    ("context.reach", reach_as_typed(inside=lambda i, m, o: range(i * m - o, (i + 1) * m)),
     "reaches one token back"),
    ("context.operations", operated(hca_keys=lambda core, n, m, w, k: core * (n / m + w)),
     "fractions of entries"),
    ("context.longest", first_that_does_not_fit, "one token more than fits"),
    ("context.longest", longest_by_doubling, "largest power of 2"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    said = " ".join(capsys.readouterr().out.split())
    assert "Likely: " in said and words in said, said


def longest_by_a_line(config, memory):
    """Not a whole number of tokens, but near the right one."""
    sizes = [sum(cache_of_the_package(config, n).values()) for n in (2**19, 2**20)]
    slope = (sizes[1] - sizes[0]) / 2**19
    return (memory - sizes[1]) / slope + 2**20


@pytest.mark.parametrize("name, attempt", [
    ("context.reach", reach_by_slices),
    ("context.longest", lambda config, memory: longest_by_halves(config, memory, less=True)),
    ("context.longest", longest_by_a_line),
    ("context.longest", lambda config, memory: longest_by_steps(config, memory) + 0.6),
])
def test_what_is_nearly_right_does_not_pass(name, attempt):
    assert check(name, attempt) is not attempt


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
