"""Lesson 10: the references are those of the package."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minids.data.tokenizer import Tokenizer
from minids.learn.checks import pretrain
from minids.learn.judge import check
from minids.pretrain import optim
from minids.pretrain.settings import TrainConfig
from minids.show import pretraining


def test_the_schedule_is_the_one_that_training_uses():
    settings = TrainConfig(steps=120, lr=3e-3, warmup=20)
    for step in range(120):
        assert math.isclose(pretrain.learning_rate(step, 120, 3e-3, 20),
                            optim.learning_rate(settings, step), rel_tol=1e-12)


def test_padding_changes_nothing_in_the_masked_loss():
    rng = torch.Generator().manual_seed(3)
    logits, ids = torch.randn(2, 6, 9, generator=rng), torch.randint(3, 9, (2, 6), generator=rng)
    ids[1, 4:] = 2
    longer = torch.cat([ids, torch.full((2, 3), 2)], 1)
    more = torch.cat([logits, torch.randn(2, 3, 9, generator=rng)], 1)
    torch.testing.assert_close(pretrain.masked_loss(more, longer, 2),
                               pretrain.masked_loss(logits, ids, 2))


def rate_from_both_ends(step, steps, peak, warmup):
    if step + 1 <= warmup:
        return (step + 1) / warmup * peak
    low, d = 0.1 * peak, np.float64(step - warmup) / (steps - warmup)
    return low + (peak - low) * (1 + np.cos(np.pi * d)) / 2


def losses_by_gather(logits, mtp_logits, ids, weight):
    def loss(scores, targets):
        return -scores.log_softmax(-1).gather(-1, targets[..., None]).mean()
    main, mtp = loss(logits, ids[:, 1:]), loss(mtp_logits, ids[:, 2:])
    return [main + mtp * weight, main, mtp]


def loss_with_ignore_index(logits, ids, pad):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)


def loss_by_loops(logits, ids, pad):
    logp = logits.log_softmax(-1)
    B, T = ids.shape
    return -sum(logp[b, t, ids[b, t + 1]] for b in range(B) for t in range(T - 1)
                if ids[b, t + 1] != pad) / sum(
        ids[b, t + 1] != pad for b in range(B) for t in range(T - 1))


def crossing_by_intersection(tokens, losses, baseline):
    points = list(zip(tokens, losses))
    if points[0][1] <= baseline:
        return points[0][0]
    for (t0, l0), (t1, l1) in zip(points, points[1:]):
        if l0 > baseline >= l1:
            return t0 + (baseline - l0) * (t1 - t0) / (l1 - l0)
    return float("inf")


@pytest.mark.parametrize("name, attempt", [
    ("pretrain.learning_rate", rate_from_both_ends),
    ("pretrain.total_loss", losses_by_gather),
    ("pretrain.masked_loss", loss_with_ignore_index), ("pretrain.masked_loss", loss_by_loops),
    ("pretrain.bits_per_byte", lambda x, t, b: math.log2(math.exp(x)) * t / b),
    ("pretrain.bits_per_byte", lambda x, t, b: np.float64(x) * t / np.log(2) / b),
    ("pretrain.tokens_to_beat", crossing_by_intersection),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def colleagues_loss(logits, ids, pad):
    return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1).mean()


def masked_both(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses[(ids[:, :-1] != pad) & (ids[:, 1:] != pad)].mean()


def keeps_larger_ids(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses[ids[:, 1:] > pad].mean()


def mean_of_means(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    keep = (ids[:, 1:] != pad).float()
    return ((losses * keep).sum(1) / keep.sum(1)).mean()


def padding_is_two(logits, ids, pad):
    return loss_with_ignore_index(logits, ids, 2)


def strictly_below(tokens, losses, baseline):
    if losses[0] < baseline:
        return tokens[0]
    for i in range(1, len(losses)):
        if losses[i] < baseline:
            share = (losses[i - 1] - baseline) / (losses[i - 1] - losses[i])
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return math.inf


def without_the_first_point(tokens, losses, baseline):
    for i in range(1, len(losses)):
        if losses[i] <= baseline:
            share = (losses[i - 1] - baseline) / (losses[i - 1] - losses[i])
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return math.inf


def zero_at_the_first_point(tokens, losses, baseline):
    return 0.0 if losses[0] <= baseline else crossing_by_intersection(tokens, losses, baseline)


def first_measured(tokens, losses, baseline):
    return next((t for t, loss in zip(tokens, losses) if loss <= baseline), math.inf)


def rate_with(d, rise=lambda step, warmup: (step + 1) / warmup):
    def attempt(step, steps, peak, warmup):
        if step < warmup:
            return peak * rise(step, warmup)
        return peak * (0.55 + 0.45 * math.cos(math.pi * d(step, steps, warmup)))
    return attempt


def totals(main, mtp, total=lambda main, mtp, w: main + w * mtp):
    def attempt(logits, mtp_logits, ids, weight):
        a = F.cross_entropy(logits.transpose(1, 2), main(ids))
        b = F.cross_entropy(mtp_logits.transpose(1, 2), mtp(ids))
        return total(a, b, weight), a, b
    return attempt


@pytest.mark.parametrize("name, attempt, words", [
    ("pretrain.masked_loss", masked_both, "where input or target is padding"),
    ("pretrain.tokens_to_beat", lambda tokens, losses, baseline: np.interp(
        baseline, losses[::-1], tokens[::-1]), "the lists backwards"),
    ("pretrain.learning_rate", rate_with(lambda s, n, w: s / n), "your cosine starts at step 0"),
    ("pretrain.learning_rate", rate_with(lambda s, n, w: (s - w) / (n - w),
                                         lambda s, w: s / w), "your first step has the rate 0"),
    ("pretrain.learning_rate", rate_with(lambda s, n, w: 2 * (s - w) / (n - w)),
     "you take a whole period"),
    ("pretrain.total_loss", totals(lambda ids: ids[:, 1:], lambda ids: ids[:, 1:-1]),
     "you compare the MTP logits with the next token"),
    ("pretrain.total_loss", totals(lambda ids: ids[:, :-1], lambda ids: ids[:, 2:]),
     "you compare the logits at t with token t"),
    ("pretrain.total_loss", totals(lambda ids: ids[:, 1:], lambda ids: ids[:, 2:],
                                   lambda a, b, w: a + 0.3 * b), "you always take the weight 0.3"),
    ("pretrain.total_loss", totals(lambda ids: ids[:, 1:], lambda ids: ids[:, 2:],
                                   lambda a, b, w: a + b), "without its weight"),
    ("pretrain.masked_loss", colleagues_loss, "both faults are still there"),
    ("pretrain.masked_loss", mean_of_means, "the mean of the rows' means"),
    ("pretrain.masked_loss", keeps_larger_ids, "the targets above `pad`"),
    ("pretrain.masked_loss", padding_is_two, "token 2 always"),
    ("pretrain.masked_loss", lambda logits, ids, pad: loss_with_ignore_index(logits, ids, -100),
     "you count padding as a target"),
    ("pretrain.bits_per_byte", lambda x, t, b: x * t / b, "nats per byte"),
    ("pretrain.bits_per_byte", lambda x, t, b: x / math.log(2), "bits per token"),
    ("pretrain.bits_per_byte", lambda x, t, b: x * t / math.log(2), "bits of the whole text"),
    ("pretrain.tokens_to_beat", strictly_below, "you compare with <"),
    ("pretrain.tokens_to_beat", without_the_first_point, "you extend the line before the first"),
    ("pretrain.tokens_to_beat", zero_at_the_first_point, "you return 0 if the first point"),
    ("pretrain.tokens_to_beat", first_measured, "the first measured point below"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_figures_draw():
    baselines = {"unigram": 6.0, "bigram": 4.0, "trigram": 3.0}
    losses = [7 - 0.1 * i for i in range(40)]
    log = [{"step": i + 1, "loss": loss, "lr": 1e-3, "grad_norm": 0.5, "seconds": 0.1 * i,
            "stage": i // 20} for i, loss in enumerate(losses)]
    log += [{"step": step, "valid_loss": 3.5} for step in (10, 30, 38, 40)]
    tokenizer, logits = Tokenizer.load(), torch.arange(2048) / 300
    records = [{"variant": name, "loss": 2.0 + i, "near": 1.0, "far": 3.0}
               for name in ("base", "other") for i in range(2)]
    for figure in (pretraining.plot_loss(50, losses, [(1, 7.0), (20, 5.0)], baselines),
                   pretraining.plot_schedule(losses, 5e-3),
                   pretraining.plot_load_over_time([[1, 2, 3]] * 4),
                   pretraining.plot_run_log(log, 1000, baselines, ["dense", "sparse"]),
                   pretraining.plot_next_tokens(logits, tokenizer, 1.0, 0.9, "In the"),
                   pretraining.plot_temperatures(logits, tokenizer, (0.5, 1.0), 0.9, "In the"),
                   pretraining.plot_sabotage({"recipe": [losses, losses[::-1]]}, 3.0),
                   pretraining.plot_race([1e6, 2e6], [3, 2], {1e6: 4}),
                   pretraining.plot_loss_over_time({"a": ([1.0, 2.0], [3.0, 2.0])}, baselines),
                   pretraining.plot_ablations(records, "base")):
        figure.canvas.draw()
        plt.close(figure)


def test_the_live_figure_changes_with_the_losses():
    live = pretraining.LiveLoss(20, {"trigram": 3.0})
    empty = live.page.value
    live.add(6.0)
    assert live.page.value == empty     # it draws every tenth loss, and each one on validation text
    live.add(5.0, 5.5)
    assert live.page.value != empty and live.losses == [6.0, 5.0]
    assert not plt.get_fignums()
