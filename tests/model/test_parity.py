"""minids equals transformers' DeepSeek-V4: logits and gradients, float32."""

import pytest
import torch
import torch.nn.functional as F
from tiny import CASES, SMALL
from twin import lively, to_hf, twin

from minids import Config


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case, seed):
    config = CASES[case]
    model = lively(config, seed)
    hf = twin(model)
    ids = torch.randint(0, config.vocab_size, (2, 150))     # beyond original_seq_len = 64
    targets = torch.randint(0, config.vocab_size, (2 * 150,))

    ours, theirs = model(ids), hf(ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    F.cross_entropy(ours.flatten(0, 1), targets).backward()
    F.cross_entropy(theirs.flatten(0, 1), targets).backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad
             for n, p in model.named_parameters()}
    grads = to_hf(grads, config)
    for name, p in hf.named_parameters():
        theirs = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(grads.pop(name), theirs, atol=2e-5, rtol=1e-4,
                                   msg=lambda m: f"{name}: {m}")
    assert not grads


def test_beyond_four_times_the_yarn_length():
    model = lively(SMALL, 3)
    ids = torch.randint(0, SMALL.vocab_size, (1, 4 * SMALL.original_seq_len + 44))
    with torch.no_grad():
        theirs = twin(model)(ids, use_cache=False).logits
        torch.testing.assert_close(model(ids), theirs, atol=1e-4, rtol=1e-4)


def test_real_yarn_ramp():
    """The published bounds of the ramp: pairs below 15 keep their frequency, pairs from 25 on are
    slower by the factor."""
    from minids.model.rotary import frequencies
    flash = Config.flash()
    w = flash.compress_rope_theta ** (-torch.arange(0, 64, 2) / 64)
    ratio = w / frequencies(flash, 4)
    torch.testing.assert_close(ratio[:16], torch.ones(16))
    torch.testing.assert_close(ratio[25:], torch.full((7,), 16.0))
    assert ((ratio[16:25] > 1) & (ratio[16:25] < 16)).all()
    torch.testing.assert_close(frequencies(flash, 0), 10000.0 ** (-torch.arange(0, 64, 2) / 64))
