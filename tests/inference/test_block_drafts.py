"""Drafts of a DSpark module change the speed, never the distribution."""

import itertools

import pytest
import torch
from helpers import every_outcome
from tiny import SMALL, THREE_TOKENS
from twin import lively

from minids import generate
from minids.inference.block_drafts import speculate_blocks
from minids.model.dspark import DSpark, DSparkConfig, initialise


def module(config, drafts, seed=0):
    """A random draft module, with a Markov head that counts."""
    torch.manual_seed(seed)
    dspark = DSpark(config, drafts)
    initialise(dspark)
    with torch.no_grad():
        for p in dspark.parameters():
            p += (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5) * torch.randn(p.shape)
    return dspark.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("size, new", [(1, 3), (2, 4)])
def test_the_distribution_is_that_of_plain_sampling(size, new):
    """Exactly, by enumeration over three tokens: every outcome of every random choice."""
    model, prompt, accepted = lively(THREE_TOKENS, 1), [0, 2, 2, 1, 0, 1], set()
    dspark = module(THREE_TOKENS, DSparkConfig(size, 2, (0, 1), 2, n_blocks=2))

    def run():
        out = speculate_blocks(model, dspark, prompt, new, stop=())
        accepted.add(sum(out.accepted))
        return tuple(out.ids)

    chances = every_outcome(run)
    with torch.no_grad():
        texts = list(itertools.product(range(3), repeat=new))
        p = model(torch.tensor([prompt + list(text) for text in texts])).softmax(-1)
    at = len(prompt) - 1
    expected = {text: float(p[i, range(at, at + new), text].prod()) for i, text in enumerate(texts)}
    assert chances == pytest.approx(expected, abs=1e-5)
    assert accepted == set(range(max(accepted) + 1)) and max(accepted) >= size


@pytest.mark.slow
def test_greedy_ids_are_those_without_drafts():
    model = lively(SMALL, 4)
    dspark = module(SMALL, DSparkConfig(5, 3, (1, 3, 4), 6))
    for prompt in ([5, 9, 33, 2, 7], [7]):
        out = speculate_blocks(model, dspark, prompt, 60, temperature=0, stop=())
        assert out.ids == generate(model, prompt, 60, temperature=0, stop=())
        assert len(out.tried) == 5 and out.tried == sorted(out.tried, reverse=True)
        assert len(out.ids) == out.passes + sum(out.accepted)


@pytest.mark.slow
def test_drafts_that_are_always_accepted_give_six_tokens_a_pass(monkeypatch):
    """The target's own distributions as drafts: every draft is accepted."""
    model = lively(SMALL, 4)
    dspark = module(SMALL, DSparkConfig(5, 3, (1, 3, 4), 6))
    prompt = [5, 9, 33]
    known = prompt + generate(model, prompt, 61, temperature=0, stop=())

    def draft(self, anchor, count, to_probs, generator):
        at = self.pos + 1
        assert anchor == known[self.pos]
        ids = known[at:at + count]
        return ids, torch.nn.functional.one_hot(torch.tensor(ids), SMALL.vocab_size).float()

    monkeypatch.setattr("minids.inference.block_drafts.BlockDrafter.draft", draft)
    out = speculate_blocks(model, dspark, prompt, 61, temperature=0, stop=())
    assert out.ids == known[3:] and out.passes == 11      # 1 for the prompt, then 6 tokens each
    assert out.acceptance == 1


@pytest.mark.slow
def test_a_text_ends_where_it_should():
    model = lively(SMALL, 4)
    dspark = module(SMALL, DSparkConfig(5, 3, (1, 3, 4), 6))
    whole = speculate_blocks(model, dspark, [5, 9], 20, temperature=0, stop=()).ids
    end = whole[7]
    cut = speculate_blocks(model, dspark, [5, 9], 20, temperature=0, stop=(end,)).ids
    assert cut == whole[:whole.index(end) + 1]
    assert speculate_blocks(model, dspark, [5, 9], 1, temperature=0, stop=()).ids == whole[:1]


@pytest.mark.slow
def test_bfloat16():
    """Target and module in bfloat16, but for what stays float32."""
    model, dspark = lively(SMALL, 4), module(SMALL, DSparkConfig(5, 3, (1, 3, 4), 6))
    for name, p in (*model.named_parameters(), *dspark.named_parameters()):
        if p.ndim == 2 and "hc_" not in name:
            p.data = p.data.bfloat16()
    out = speculate_blocks(model, dspark, [5, 9], 20, seed=0, stop=())
    assert len(out.ids) == 20 == out.passes + sum(out.accepted)
