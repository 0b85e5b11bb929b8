"""Drafts change the speed, never the distribution: enumeration, greedy equality, rewound states."""

import itertools

import pytest
import torch
from helpers import every_outcome
from tiny import SMALL, THREE_TOKENS
from twin import lively

from minids import Config, MinidsError, generate
from minids.inference import speculate as module
from minids.inference.sampling import distribution
from minids.inference.speculate import Speculation, accept, expected_acceptance, speculate


@pytest.fixture(scope="module")
def model():
    return lively(SMALL, 4)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2), Config.nano()],
                         ids=["small", "own picks", "nano"])
def test_a_state_forgets_the_end_of_the_last_call(config):
    """Reading T tokens and rewinding n is reading T - n, at every offset in windows of 4 and 16."""
    model = lively(config, 0)
    ids = torch.randint(0, config.vocab_size, (2, 90))
    with torch.no_grad():
        whole = model(ids)
        state, rng = model.new_state(2, 90), torch.Generator().manual_seed(1)
        while state.pos < 80:
            pos, T = state.pos, int(torch.randint(1, 10, (1,), generator=rng))
            n = int(torch.randint(0, T + 1, (1,), generator=rng))
            logits = model(ids[:, pos:pos + T], state)
            torch.testing.assert_close(logits, whole[:, pos:pos + T], atol=5e-5, rtol=5e-5)
            state.rewind(n)
            assert state.pos == pos + T - n
    with pytest.raises(MinidsError, match="rewind: expected 0 to"):
        state.rewind(50)


def tree(model, prompt, new, drafts):
    """{text: probability} of `speculate`."""
    return every_outcome(
        lambda: tuple(speculate(model, prompt, new, stop=(), drafts=drafts).ids))


@pytest.mark.slow
@pytest.mark.parametrize("drafts, new", [(1, 4), (2, 4)])
def test_the_distribution_is_that_of_plain_sampling(drafts, new):
    """Exactly, by enumeration over three tokens, also where drafts cross compression windows."""
    model, prompt = lively(THREE_TOKENS, 1), [0, 2, 2, 1, 0, 1]
    chances = tree(model, prompt, new, drafts)
    with torch.no_grad():
        texts = list(itertools.product(range(3), repeat=new))
        p = model(torch.tensor([prompt + list(text) for text in texts])).softmax(-1)
    at = len(prompt) - 1
    expected = {text: float(p[i, range(at, at + new), text].prod()) for i, text in enumerate(texts)}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert chances == pytest.approx(expected, abs=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.03       # far from uniform


def test_acceptance_leaves_any_distribution_unchanged():
    """For one draft, up to chance: the first token follows the model's distribution."""
    torch.manual_seed(0)
    p, q = torch.randn(2, 6).softmax(-1), torch.randn(1, 6).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    ids = [accept([int(torch.multinomial(q[0], 1))], q, p, generator)[0] for _ in range(4000)]
    frequency = torch.bincount(torch.tensor(ids), minlength=6) / 4000
    torch.testing.assert_close(frequency, p[0], atol=0.03, rtol=0)


@pytest.mark.slow
def test_every_prompt_has_its_own_random_numbers(model):
    prompt = [5, 9, 33, 2, 7]
    first, second = generate(model, [prompt, prompt], 30, seed=4, stop=(), drafts=1)
    assert first == generate(model, prompt, 30, seed=4, stop=(), drafts=1) != second


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_greedy_is_greedy(model, drafts):
    prompt = [5, 9, 33, 2, 7]
    out = speculate(model, prompt, 60, temperature=0, stop=(), drafts=drafts)
    assert out.ids == generate(model, prompt, 60, temperature=0, stop=())
    prompts = [prompt, [7]]
    drafted = generate(model, prompts, 9, temperature=0, drafts=drafts)
    assert drafted == generate(model, prompts, 9, temperature=0)
    assert len(out.tried) == drafts and out.tried == sorted(out.tried, reverse=True)
    assert len(out.ids) == out.passes + sum(out.accepted)


def test_a_draft_that_is_always_accepted_saves_half_the_passes(model, monkeypatch):
    """With a drafter that knows the text every draft is accepted, and a pass gives two tokens."""
    prompt = [5, 9, 33]
    text = generate(model, prompt, 41, temperature=0, stop=())
    known = prompt + text

    def draft(self, X, after, count, to_probs, generator):
        self.state.pos += len(after)
        following = known[self.state.pos + 1:self.state.pos + 1 + count]
        ids = torch.tensor(following, dtype=torch.int64)
        return following, torch.nn.functional.one_hot(ids, SMALL.vocab_size).float()

    monkeypatch.setattr(module.Drafter, "draft", draft)
    out = speculate(model, prompt, 41, temperature=0, stop=())
    assert out.ids == text and out.acceptance == 1 and out.passes == 21


@pytest.mark.slow
def test_it_stops_and_counts_as_generate_does(model):
    prompt = [5, 9, 33, 2, 7]
    free = generate(model, prompt, 60, temperature=0, stop=())
    for end in set(free[:6]):
        expected = free[:free.index(end) + 1]
        assert speculate(model, prompt, 60, temperature=0, stop=(end,), drafts=3).ids == expected
    for new in (1, 2, 3):
        assert len(speculate(model, prompt, new, stop=(), drafts=3).ids) == new
    assert len(speculate(model, [4] * 1014, 11, stop=(), drafts=2).ids) == 11    # fills the context
    a, b = (speculate(model, prompt, 20, seed=3, stop=()) for _ in range(2))
    assert a == b and isinstance(a, Speculation)


def test_expected_acceptance_is_the_overlap(model):
    ids = torch.randint(0, SMALL.vocab_size, (2, 20))
    with torch.no_grad():
        X = model.features(ids)
        p = distribution(model.logits(X), 1.0, 1.0)
        q = distribution(model.mtp_logits(X[:, :-1], ids[:, 1:]), 1.0, 1.0)
    length = torch.tensor([20, 12])
    overlaps = [float(torch.minimum(p[b, t - 1], q[b, t - 2]).sum())
                for b in (0, 1) for t in range(7, int(length[b]))]
    mean = sum(overlaps) / len(overlaps)
    assert expected_acceptance(model, ids, 7, length) == pytest.approx(mean, rel=1e-5)


def test_bad_input_is_refused():
    without = lively(SMALL.replace(n_mtp_layers=0, compress_ratios=SMALL.compress_ratios[:-1]), 0)
    with pytest.raises(MinidsError, match="no MTP block"):
        speculate(without, [3])
    with pytest.raises(MinidsError, match="drafts: expected at least 1"):
        speculate(lively(SMALL, 0), [3], drafts=0)
    with pytest.raises(MinidsError, match="prompt is empty"):
        speculate(lively(SMALL, 0), [])
