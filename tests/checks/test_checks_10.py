"""Lesson 10: the references are those of the package."""

import math

import matplotlib.pyplot as plt
import torch

from minids.data.tokenizer import Tokenizer
from minids.learn.checks import pretrain
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
