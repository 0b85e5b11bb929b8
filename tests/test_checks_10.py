"""Lesson 10's checks: each usual mistake is named, and is told from all others; the reference passes."""

import math

import pytest
import torch

from minids import train
from minids.learn import exercise
from minids.learn.checks import pretrain

MISTAKES = [(one, message) for one in pretrain.CHECKS for message in one.mistakes]


@pytest.fixture(autouse=True)
def learner(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDS_HOME", str(tmp_path))
    monkeypatch.setenv("MINIDS_STRICT", "0")


@pytest.mark.parametrize("one, message", MISTAKES, ids=[f"{one.name}-{i}" for i, (one, _) in enumerate(MISTAKES)])
def test_each_mistake_is_named(one, message, capsys):
    assert exercise.check(one.name, one.mistakes[message]) is one.reference
    out = capsys.readouterr().out
    assert f"[not yet] {one.name}. Likely: {message}." in out


@pytest.mark.parametrize("one", pretrain.CHECKS, ids=[one.name for one in pretrain.CHECKS])
def test_the_reference_passes(one, capsys):
    assert exercise.check(one.name, one.reference) is one.reference
    assert f"[passed] {one.name}" in capsys.readouterr().out


def test_the_schedule_is_the_one_that_training_uses():
    settings = train.TrainConfig(steps=120, lr=3e-3, warmup=20)
    for step in range(120):
        assert math.isclose(pretrain.learning_rate(step, 120, 3e-3, 20), train.learning_rate(settings, step), rel_tol=1e-12)


def test_padding_changes_nothing_in_the_masked_loss():
    rng = torch.Generator().manual_seed(3)
    logits, ids = torch.randn(2, 6, 9, generator=rng), torch.randint(3, 9, (2, 6), generator=rng)
    ids[1, 4:] = 2
    longer = torch.cat([ids, torch.full((2, 3), 2)], 1)
    more = torch.cat([logits, torch.randn(2, 3, 9, generator=rng)], 1)
    torch.testing.assert_close(pretrain.masked_loss(more, longer, 2), pretrain.masked_loss(logits, ids, 2))
