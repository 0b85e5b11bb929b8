"""Lesson 10: the references are those of the package."""

import math

import torch

from minids.learn.checks import pretrain
from minids.pretrain import optim
from minids.pretrain.settings import TrainConfig


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
