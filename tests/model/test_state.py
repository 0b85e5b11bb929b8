"""Decoding: prefill in any chunking, then steps of any size, equals one full pass."""

import pytest
import torch
from tiny import SMALL
from twin import lively

from minids import Config, MinidsError

CUTS = {
    "steps of one": [1] * 60,
    "one chunk, then steps": [150] + [1] * 40,
    "not multiples of anything": [3, 1, 7, 33, 2, 65, 1, 1, 50, 17],
    "a chunk shorter than the window": [5, 6, 100, 30],
    "windows of exactly m": [4] * 20 + [16] * 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2), Config.nano()], ids=["small", "own picks", "nano"])
@pytest.mark.parametrize("cut", CUTS)
def test_any_chunking_equals_one_pass(config, cut):
    model = lively(config, 0)
    ids = torch.randint(0, config.vocab_size, (3, sum(CUTS[cut])))
    with torch.no_grad():
        state = model.new_state(3, ids.shape[1])
        chunks = torch.cat([model(part, state) for part in ids.split(CUTS[cut], dim=1)], dim=1)
        torch.testing.assert_close(chunks, model(ids), atol=5e-5, rtol=5e-5)
    assert state.pos == ids.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2)], ids=["small", "own picks"])
def test_gradients_flow_through_a_state_as_through_one_pass(config):
    model = lively(config, 0)
    ids = torch.randint(0, config.vocab_size, (2, 70))
    weight = torch.randn(2, 70, config.vocab_size)

    def gradients(logits):
        return torch.autograd.grad((logits * weight).sum(), list(model.parameters()), allow_unused=True)

    state = model.new_state(2, 70)
    chunks = torch.cat([model(part, state) for part in ids.split([33, 2, 1, 1, 20, 13], dim=1)], dim=1)
    for through, whole in zip(gradients(chunks), gradients(model(ids)), strict=True):
        if whole is None or through is None:                # no gradient, or none but zeros
            assert not any(t.any() for t in (through, whole) if t is not None)
        else:
            torch.testing.assert_close(through, whole, atol=2e-3 * whole.abs().max().item(), rtol=1e-3)


def test_rows_do_not_touch_each_other():
    model = lively(SMALL, 1)
    ids = torch.randint(0, SMALL.vocab_size, (4, 70))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[2:3], model(ids[2:3]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2)], ids=["small", "own picks"])
def test_causality_at_every_position(config):
    """Another token at position t leaves every earlier logit as it was, and changes the one at t."""
    model = lively(config, 2)
    T = 50
    ids = torch.randint(0, config.vocab_size, (1, T))
    changed = ids.repeat(T, 1)
    changed[range(T), range(T)] = (ids[0] + 1) % config.vocab_size                       # row t differs at t only
    with torch.no_grad():
        differs = (model(changed) - model(ids)).abs().amax(-1) > 1e-4                    # T T: rounding is 1e-6
    assert not differs.tril(-1).any()
    assert differs.diagonal().all()


def test_every_layer_kind_reaches_far_back():
    """Where the window ends only the entries carry on: with one layer, a token 60 positions back is seen through
    them or not at all."""
    for ratio, reaches in ((0, False), (4, True), (16, True)):
        config = SMALL.replace(n_layers=1, compress_ratios=(ratio, 0), n_hash_layers=0, index_topk=100)
        model = lively(config, 3)
        ids = torch.randint(0, config.vocab_size, (1, 80))
        other = ids.clone()
        other[0, 19] = (ids[0, 19] + 1) % config.vocab_size
        with torch.no_grad():
            differs = (model(other) - model(ids))[0, 79].abs().max() > 1e-4
        assert bool(differs) == reaches


def test_bad_states_and_ids():
    model = lively(SMALL, 0)
    with pytest.raises(MinidsError, match="max_len: expected 1 to 1024"):
        model.new_state(1, 1025)
    with pytest.raises(MinidsError, match="max_len: expected 1 to 1024.*found 0"):
        model.new_state(1, 0)
    state = model.new_state(2, 10)
    with pytest.raises(MinidsError, match="holds 2 sequences, found a batch of 1"):
        model(torch.zeros(1, 4, dtype=torch.int64), state)
    with pytest.raises(MinidsError, match="room for 10 tokens"):
        model(torch.zeros(2, 11, dtype=torch.int64), state)
    for ids, message in ((torch.tensor([[97]]), "expected 0 to 96, found 97"), (torch.tensor([[-1]]), "found -1"),
                         (torch.zeros(4, dtype=torch.int64), "B x T"), (torch.zeros(1, 4), "integers"),
                         (torch.zeros(1, 0, dtype=torch.int64), "non-empty"),
                         (torch.zeros(1, 1025, dtype=torch.int64), "at most 1024 tokens")):
        with pytest.raises(MinidsError, match=message):
            model(ids)
