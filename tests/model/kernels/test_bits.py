"""The same training step gives the same bits wherever its arrays lie in memory: so a resumed run is
equal to one that was never stopped."""

import random

import numpy as np
import pytest
import torch
from tiny import THREE_KINDS

from minids.model import Model
from minids.pretrain.batches import parts_of
from minids.pretrain.losses import losses
from minids.pretrain.settings import TrainConfig


def gradients(model, part, settings) -> list[torch.Tensor]:
    model.zero_grad()
    sums, _ = losses(model, part, settings, step=0)
    sum(sums.values()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow(6)
def test_the_bits_do_not_depend_on_addresses():
    """LLVM's vector loops have a scalar form for arrays that overlap. It finds out by addresses
    whether they do, and its guesses may be wrong: both forms have to give the same bits."""
    torch.manual_seed(0)
    model, settings = Model(THREE_KINDS).train(), TrainConfig(steps=7, batch=2, seq_len=32)
    ids = torch.randint(4, THREE_KINDS.vocab_size, (2, 33))
    ids[:, ::19] = THREE_KINDS.bos_token_id
    part, = parts_of(ids, settings, THREE_KINDS.bos_token_id, 1)
    first, rng, between = gradients(model, part, settings), random.Random(0), []
    for _ in range(100):
        between.append(np.empty(rng.randrange(1, 300_000), np.uint8))
        between.append(torch.empty(rng.randrange(1, 100_000)))
        if rng.random() < 0.6:
            del between[rng.randrange(len(between))]
        again = gradients(model, part, settings)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
