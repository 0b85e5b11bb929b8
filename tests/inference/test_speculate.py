"""Drafts change the speed, never the text: exact enumeration, greedy equality, and states that forget."""

import itertools

import pytest
import torch
from tiny import SMALL, THREE_TOKENS
from twin import lively

from minids import Config, MinidsError, generate
from minids.inference import speculate as module
from minids.inference.sampling import distribution
from minids.inference.speculate import Speculation, expected_acceptance, judge, speculate


@pytest.fixture(scope="module")
def model():
    return lively(SMALL, 4)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2), Config.nano()], ids=["small", "own picks", "nano"])
def test_a_state_forgets_what_the_last_call_brought(config):
    """Reading T tokens and forgetting n is reading T - n, at every offset in the windows of 4 and 16, and goes on alike."""
    model = lively(config, 0)
    ids = torch.randint(0, config.vocab_size, (2, 90))
    with torch.no_grad():
        whole = model(ids)
        state, rng = model.new_state(2, 90), torch.Generator().manual_seed(1)
        while state.pos < 80:
            pos, T = state.pos, int(torch.randint(1, 10, (1,), generator=rng))
            n = int(torch.randint(0, T + 1, (1,), generator=rng))
            torch.testing.assert_close(model(ids[:, pos:pos + T], state), whole[:, pos:pos + T], atol=5e-5, rtol=5e-5)
            state.rewind(n)
            assert state.pos == pos + T - n
    with pytest.raises(MinidsError, match="rewind: expected 0 to"):
        state.rewind(50)


def tree(model, prompt, new, drafts):
    """{text: probability}: every way that the draws and coins of `speculate` can fall, and how likely it is."""
    found, todo = {}, [()]
    while todo:
        path, at, chance = list(todo.pop()), 0, 1.0

        def pick(weights):
            nonlocal at, chance
            weights = weights / weights.sum()
            if at == len(path):         # a new fork: here the first way, the others later
                ways = [i for i, w in enumerate(weights.tolist()) if w > 0]
                todo.extend(tuple(path) + (i,) for i in ways[1:])
                path.append(ways[0])
            chance *= float(weights[path[at]])
            at += 1
            return path[at - 1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "draw", lambda p, generator: pick(p.double()))
            patch.setattr(module, "coin", lambda p, generator: bool(pick(torch.tensor([1 - p, p], dtype=torch.float64))))
            text = tuple(speculate(model, prompt, new, stop=(), drafts=drafts).ids)
        found[text] = found.get(text, 0.0) + chance
    return found


@pytest.mark.slow
@pytest.mark.parametrize("drafts, new", [(1, 4), (2, 4)])
def test_the_distribution_is_that_of_plain_sampling(drafts, new):
    """Exactly, by enumeration over a vocabulary of three: also where drafts cross the ends of compression windows."""
    model, prompt = lively(THREE_TOKENS, 1), [0, 2, 2, 1, 0, 1]
    found = tree(model, prompt, new, drafts)
    with torch.no_grad():
        texts = list(itertools.product(range(3), repeat=new))
        p = model(torch.tensor([prompt + list(text) for text in texts])).softmax(-1)
    at = len(prompt) - 1
    expected = {text: float(p[i, range(at, at + new), text].prod()) for i, text in enumerate(texts)}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.03                       # there is something to get wrong


def test_judging_keeps_any_distribution():
    """For one guess, up to chance: the first token comes as the model likes it."""
    torch.manual_seed(0)
    p, q = torch.randn(2, 6).softmax(-1), torch.randn(1, 6).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    drawn = [judge([int(torch.multinomial(q[0], 1))], q, p, generator)[0] for _ in range(4000)]
    torch.testing.assert_close(torch.bincount(torch.tensor(drawn), minlength=6) / 4000, p[0], atol=0.03, rtol=0)


@pytest.mark.slow
def test_every_prompt_has_dice_of_its_own(model):
    prompt = [5, 9, 33, 2, 7]
    first, second = generate(model, [prompt, prompt], 30, seed=4, stop=(), drafts=1)
    assert first == generate(model, prompt, 30, seed=4, stop=(), drafts=1) != second


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_greedy_is_greedy(model, drafts):
    prompt = [5, 9, 33, 2, 7]
    out = speculate(model, prompt, 60, temperature=0, stop=(), drafts=drafts)
    assert out.ids == generate(model, prompt, 60, temperature=0, stop=())
    assert generate(model, [prompt, [7]], 9, temperature=0, drafts=drafts) == generate(model, [prompt, [7]], 9, temperature=0)
    assert len(out.tried) == drafts and out.tried == sorted(out.tried, reverse=True)
    assert len(out.ids) == out.passes + sum(out.accepted)


def test_a_draft_that_is_always_right_saves_half_the_passes(model, monkeypatch):
    """The drafter is replaced by one that knows: everything stands, and each pass gives two tokens."""
    prompt = [5, 9, 33]
    text = generate(model, prompt, 41, temperature=0, stop=())
    known = prompt + text

    def guess(self, X, after, count, chosen, generator):
        self.pos += len(after)
        following = known[self.pos + 1:self.pos + 1 + count]
        return following, torch.nn.functional.one_hot(torch.tensor(following, dtype=torch.int64), SMALL.vocab_size).float()

    monkeypatch.setattr(module.Drafter, "guess", guess)
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
    assert len(speculate(model, [4] * 1014, 11, stop=(), drafts=2).ids) == 11            # to the end of the context
    a, b = (speculate(model, prompt, 20, seed=3, stop=()) for _ in range(2))
    assert a == b and isinstance(a, Speculation)


def test_expected_acceptance_is_the_overlap(model):
    ids = torch.randint(0, SMALL.vocab_size, (2, 20))
    with torch.no_grad():
        X = model.features(ids)
        p, q = distribution(model.logits(X), 1.0, 1.0), distribution(model.mtp_logits(X[:, :-1], ids[:, 1:]), 1.0, 1.0)
    length = torch.tensor([20, 12])
    overlaps = [float(torch.minimum(p[b, t - 1], q[b, t - 2]).sum()) for b in (0, 1) for t in range(7, int(length[b]))]
    assert expected_acceptance(model, ids, 7, length) == pytest.approx(sum(overlaps) / len(overlaps), rel=1e-5)


def test_what_cannot_be_drafted_is_told():
    without = lively(SMALL.replace(n_mtp_layers=0, compress_ratios=SMALL.compress_ratios[:-1]), 0)
    with pytest.raises(MinidsError, match="no MTP block"):
        speculate(without, [3])
    with pytest.raises(MinidsError, match="drafts: expected at least 1"):
        speculate(lively(SMALL, 0), [3], drafts=0)
    with pytest.raises(MinidsError, match="prompt is empty"):
        speculate(lively(SMALL, 0), [])
