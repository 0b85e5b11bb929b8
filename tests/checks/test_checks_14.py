"""Lesson 14: right answers written otherwise pass, slips are named, drafts change no text."""

import statistics

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minids import MinidsError
from minids.inference import speculate
from minids.inference.sampling import distribution
from minids.learn.checks import inference as checks
from minids.learn.judge import check
from minids.show import inference, start


def top_p_by_loops(p, bound):
    if p.ndim > 1:
        return torch.stack([top_p_by_loops(row, bound) for row in p])
    kept, total = torch.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        kept[token] = p[token]
        total += float(p[token])
        if total >= bound:
            break
    return kept / kept.sum()


def by_statistics(before, after):
    d = [b - a for a, b in zip(before, after)]
    error = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(d) / len(d) ** 0.5
    return [statistics.mean(d), statistics.mean(d) - error, statistics.mean(d) + error]


def closed_form(rate, drafts, verify, draft):
    tokens = drafts + 1 if rate == 1 else (1 - rate ** (drafts + 1)) / (1 - rate)
    return tokens / (verify + drafts * draft)


def residual_by_overlap(p, q):
    overlap = torch.minimum(p, q)
    return (p - overlap) / (1 - overlap.sum())


def top_p_in_numpy_order(p, top_p):
    order = p.argsort(-1, descending=True)
    ranked = p.gather(-1, order)
    before = torch.cat([torch.zeros_like(ranked[..., :1]), ranked.cumsum(-1)[..., :-1]], -1)
    ranked = ranked.masked_fill(before >= top_p, 0)
    return (ranked / ranked.sum(-1, keepdim=True)).gather(-1, order.argsort(-1))


def by_numpy(before, after):
    d = np.array(after, dtype=float) - np.array(before, dtype=float)
    half = 1.96 * d.std(ddof=1) / np.sqrt(len(d))
    return np.array([d.mean(), d.mean() - half, d.mean() + half]).tolist()


@pytest.mark.parametrize("name, attempt", [
    ("inference.top_p", top_p_by_loops), ("inference.top_p", top_p_in_numpy_order),
    ("inference.accept", lambda p, q, guess: (p / q).clamp_max(1)[guess]),
    ("inference.accept", lambda p, q, guess: 1 if p[guess] >= q[guess] else p[guess] / q[guess]),
    ("inference.residual", residual_by_overlap),
    ("inference.residual", lambda p, q: torch.where(p > q, p - q, 0) / (p - q).relu().sum()),
    ("inference.speed_up", closed_form),
    ("inference.difference", by_statistics), ("inference.difference", by_numpy),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def top_p_with(keep):
    """keep(sum with the token, sum before it, top_p)."""
    def attempt(p, top_p):
        ranked, order = torch.sort(p, descending=True)
        total = ranked.cumsum(-1)
        kept = torch.where(keep(total, total - ranked, top_p), ranked, 0.0)
        result = torch.zeros_like(p).scatter_(-1, order, kept)
        return result / result.sum(-1, keepdim=True)
    return attempt


def top_p_or_the_first(p, top_p):
    ranked, order = torch.sort(p, descending=True)
    keep = ranked.cumsum(-1) <= top_p
    keep[..., 0] = True
    result = torch.zeros_like(p).scatter_(-1, order, ranked * keep)
    return result / result.sum(-1, keepdim=True)


def interval_with(half):
    def attempt(before, after):
        a, b = np.array(before, float), np.array(after, float)
        mean, h = (b - a).mean(), half(a, b)
        return mean, mean - h, mean + h
    return attempt


@pytest.mark.parametrize("name, attempt, words", [
    ("inference.speed_up", lambda rate, k, verify, draft: (1 - rate ** (k + 1)) / (1 - rate) / (
        verify + k * draft), "divides by 0 at rate 1"),
    ("inference.top_p", top_p_with(lambda total, before, top_p: before <= top_p),
     "one token too many where the sum before it equals"),
    ("inference.top_p", top_p_with(lambda total, before, top_p: total < top_p),
     "you keep one token too few, and none"),
    ("inference.top_p", top_p_with(lambda total, before, top_p: total <= top_p),
     "their own included"),
    ("inference.top_p", top_p_or_the_first, "you keep the first token, and others"),
    ("inference.top_p", lambda p, top_p: torch.where(p >= 1 - top_p, p, 0.0), "[not yet]"),
    ("inference.accept", lambda p, q, guess: (p / q)[guess], "you return values above 1"),
    ("inference.accept", lambda p, q, guess: torch.clamp(p / q, max=1), "for each token"),
    ("inference.accept", lambda p, q, guess: min(p[guess], q[guess]), "sampled AND accepted"),
    ("inference.residual", lambda p, q: torch.relu(p - q), "do not sum to 1"),
    ("inference.residual", lambda p, q: torch.softmax(p - q, -1), "the softmax of p - q"),
    ("inference.residual", lambda p, q: torch.relu(q - p) / torch.relu(q - p).sum(),
     "you take q - p"),
    ("inference.speed_up", lambda rate, k, verify, draft: (1 + rate * k) / (verify + k * draft),
     "every draft by itself"),
    ("inference.speed_up", lambda rate, k, verify, draft: sum(
        rate ** i for i in range(k)) / (verify + k * draft), "one term too few"),
    ("inference.difference", interval_with(
        lambda a, b: 1.96 * ((a.var(ddof=1) + b.var(ddof=1)) / len(a)) ** 0.5),
     "you add two variances"),
    ("inference.difference", interval_with(lambda a, b: 1.96 * (b - a).std() / len(a) ** 0.5),
     "your s divides by n"),
    ("inference.difference", interval_with(lambda a, b: 2 * (b - a).std(ddof=1) / len(a) ** 0.5),
     "you take 2 standard errors"),
    ("inference.difference", interval_with(lambda a, b: 1.96 * (b - a).std(ddof=1)),
     "one problem's difference"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_references_are_the_package():
    rng = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(5, 50, generator=rng)
    for bound in (0.2, 0.5, 0.9, 0.99):
        p = checks.top_p((logits / 0.7).softmax(-1), bound)
        torch.testing.assert_close(p, distribution(logits, 0.7, bound))
    p, q = (2 * torch.randn(2, 9, generator=rng)).softmax(-1)
    stands = torch.tensor([checks.accept(p, q, g) for g in range(9)])
    torch.testing.assert_close(q * stands + (1 - (q * stands).sum()) * checks.residual(p, q), p)


@pytest.mark.slow
def test_only_the_right_judge_keeps_the_texts_distribution():
    model, prompt = inference.tiny_model(), [0, 2, 1, 1, 0]
    plain = inference.text_chances(model, prompt, 3)
    assert len(plain) == 27 and sum(plain.values()) == pytest.approx(1, abs=1e-5)
    right = inference.text_chances_with_drafts(model, prompt, 3, 1)
    assert inference.total_variation(plain, right) < 1e-5
    for judge in (inference.accept_all, inference.resample_from_p):
        wrong = inference.text_chances_with_drafts(model, prompt, 3, 1, judge)
        assert inference.total_variation(plain, wrong) > 0.01
    again = inference.text_chances_with_drafts(model, prompt, 3, 1)    # the right judge once more
    assert again == pytest.approx(right)


def test_the_guessed_tokens_are_marked():
    model = inference.tiny_model()
    out, marks = inference.speculate_marked(model, [0, 2, 1], 12, temperature=0, stop=())
    assert out.ids == speculate.speculate(model, [0, 2, 1], 12, temperature=0, stop=()).ids
    assert len(marks) == 12 and not marks[0] and sum(marks) == sum(out.accepted)


def test_talk_shows_thoughts_and_answer():
    calls = []

    def reply(question, mode):
        calls.append((question, mode))
        if len(question) > 200:
            raise MinidsError("the prompt is too <long>")
        return ("", "<b>7</b>", 5) if mode == "at once" else ("<i>3 + 4</i>", None, 10)

    talk = inference.Talk(reply, ("at once", "first <think>"), "What is\n 3 + 4?")
    assert calls == [("What is 3 + 4?", "at once")]
    assert talk.shown["answer"] == "<b>7</b>" and talk.shown["tokens"] == 5
    assert "<b>7</b>" not in talk.page.value.replace("<b>&lt;", "")
    assert "&lt;b&gt;7" in talk.page.value
    talk.mode.value = "first <think>"
    assert calls[1:] == [("What is 3 + 4?", "first <think>")]
    assert talk.shown["thoughts"] == "<i>3 + 4</i>"
    assert talk.shown["answer"] is None and talk.shown["tokens"] == 10
    assert "&lt;i&gt;3 + 4" in talk.page.value
    assert "(no answer)" in talk.page.value and "None" not in talk.page.value
    talk.question.value = "   "
    assert talk.shown["answer"] is None and "Ask something" in talk.page.value
    talk.question.value = 300 * "x"
    assert talk.shown["answer"] is None and "too &lt;long&gt;" in talk.page.value
    assert "7" not in repr(talk)


def test_windows_move_with_padding():
    assert inference.windows(8, 4, 0) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert inference.windows(8, 4, 1) == [0, 0, 0, 1, 1, 1, 1, 2]


def test_estimators_of_pass_at_k_in_expectation():
    """The exact mean over all outcomes: the unbiased one hits, the other one is below for k > 1."""
    for k in (1, 2, 5):
        plug_in, unbiased, truth = inference.expected_estimates(0.2, 10, k)
        assert unbiased == pytest.approx(truth)
        assert plug_in == pytest.approx(truth) if k == 1 else plug_in < truth - 0.01


def test_the_price_of_an_effort():
    points = inference.effort_points("HLE (Pass@1)", 10, 500)
    assert set(points) == {"V4-Flash Non-think", "V4-Flash Max", "V4-Pro Non-think", "V4-Pro Max"}
    usd = {name: point[0] for name, point in points.items()}
    assert usd["V4-Flash Max"] == pytest.approx(10 * usd["V4-Flash Non-think"])
    rows = (row for row in start.published("prices") if row["model"] == start.FLASH)
    price = next(row for row in rows if row["as_of"] == "2026-05-22")
    assert usd["V4-Flash Non-think"] == pytest.approx(500 * price["output_usd_per_mtok"] / 1000)


@pytest.mark.slow
def test_every_picture_draws():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    logits = {"sure": torch.randn(50) * 5, "unsure": torch.randn(50)}
    share = (0.5, 0.4, 0.6)
    texts = {(i,): 1 / 3 for i in range(3)}
    for figure in (inference.plot_distributions({"a": p, "b": q}, ["x", "y", "z"]),
                   inference.plot_top_p(logits, 1.0, 0.9), inference.plot_temperatures(logits),
                   inference.plot_padding(),
                   inference.plot_batch_steps([[False, True], [True, None]]),
                   inference.plot_throughput([1, 2], [1.0, 2.0], [3.0, 4.0]),
                   inference.plot_weights_read({"Flash": ([1, 2], [3.0, 2.0])}),
                   inference.plot_overlap(p, q, ["x", "y", "z"]), inference.plot_draft_pass(),
                   inference.plot_enumerations(texts, {"same": texts}),
                   inference.plot_acceptance({"a": [0.7, 0.5]}),
                   inference.plot_speedup({"nano": (1.3, 0.3, 0.6)}),
                   inference.plot_conditions({"at once": {"all": share}, "thinks": {"all": share}}),
                   inference.plot_pass_at_k({"b": {1: share}}), inference.plot_bias(0.2, 10),
                   inference.plot_card({"a": share}), inference.plot_effort("HLE (Pass@1)", 10),
                   inference.plot_efforts("HLE (Pass@1)", (1, 10))):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
