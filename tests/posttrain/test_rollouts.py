import pytest
import torch
from tiny import SPEAKER

from minids import Model
from minids.errors import MinidsError
from minids.inference.generate import generate
from minids.model.passes import Options
from minids.posttrain.rollouts import (
    allowed_ids,
    by_length,
    log_distribution,
    packed,
    rollouts,
    unpacked,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Model(SPEAKER).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.mul_(4)                           # lively, and routing by what is read
        torch.nn.init.normal_(model.head.weight, std=0.25)
        model.head.weight[1] *= 3                   # the eos comes now and then
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


PROMPTS = [[0, 9, 33, 2, 17]] * 4 + [[0, 9, 33, 2, 18]] * 3 + [[0, 40, 41, 42, 43]]


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (0, 1.0), (1e-9, 1.0),
                                                (1e-37, 0.9), (1e-38, 1.0)])
def test_logprobs_are_those_of_a_full_pass_that_replays_the_routing(model, temperature, top_p):
    r = rollouts(model, PROMPTS, 40, temperature, top_p, seeded(), record=True)
    assert r.length.min() < r.length.max()          # some rows left the batch before others
    with torch.no_grad():
        X = model.features(r.ids[:, :-1], options=Options(experts=r.experts))
        logits = model.logits(X[:, r.prompt - 1:].contiguous())
        logp = log_distribution(logits, temperature, r.choices(SPEAKER.vocab_size))
    again = logp.gather(-1, r.ids[:, r.prompt:, None])[..., 0]
    assert torch.allclose(again[r.mask], r.logprobs[r.mask], atol=2e-5)
    assert (r.logprobs[~r.mask] == 0).all()
    assert (r.ids[:, r.prompt:][~r.mask] == SPEAKER.pad_token_id).all()


def test_recorded_experts_are_those_of_the_full_pass(model):
    r = rollouts(model, PROMPTS, 20, generator=seeded(), record=True)
    with torch.no_grad():
        _, record = model.run(r.ids[:, :-1])
    there = (torch.arange(r.ids.shape[1] - 1) < r.length[:, None] - 1).flatten()
    assert len(r.experts) == 2                      # the third layer of the three routes by hash
    for mine, full in zip(r.experts, record.experts):
        assert mine.shape == full.shape
        assert torch.equal(mine[there].sort().values, full[there].sort().values)


def test_a_mask_leaves_what_top_p_leaves(model):
    r = rollouts(model, PROMPTS, 10, 0.9, 0.7, seeded(), record=True)
    with torch.no_grad():
        p = (model(r.ids[:, :-1])[:, r.prompt - 1:] / 0.9).softmax(-1)
    allowed = r.choices(SPEAKER.vocab_size)
    reached = (p * allowed).sum(-1)
    least = p.masked_fill(~allowed, 2).min(-1).values
    assert (reached > 0.7 - 1e-5)[r.mask].all() and (reached - least < 0.7 + 1e-5)[r.mask].all()
    assert (p.masked_fill(allowed, 0).amax(-1) <= least + 1e-6)[r.mask].all()
    assert allowed.gather(-1, r.ids[:, r.prompt:, None])[..., 0][r.mask].all()
    assert rollouts(model, PROMPTS, 3, record=True).allowed is None


def test_a_flat_distribution_keeps_many_tokens():
    logits = torch.zeros(2, 500)
    logits[1, 7] = 20.0
    assert allowed_ids(logits, 1.0, 0.901).sum(1).tolist() == [451, 1]
    assert allowed_ids(logits, 1.0, 0.9)[1, 7]


def test_greedy_is_generate(model):
    prompts = [[0, 5, 9], [0, 6, 9], [0, 50, 3], [0, 5, 9]]
    r = rollouts(model, prompts, 30, temperature=0)
    assert r.replies == generate(model, prompts, 30, temperature=0)


def test_a_row_does_not_depend_on_the_rows_after_it(model):
    all_rows = rollouts(model, PROMPTS, 30, generator=seeded(4)).replies
    assert rollouts(model, PROMPTS[:1], 30, generator=seeded(4)).replies == all_rows[:1]
    assert rollouts(model, PROMPTS[:5] + [[7, 7, 7, 7, 7]], 30,
                    generator=seeded(4)).replies[:5] == all_rows[:5]
    assert rollouts(model, PROMPTS, 30, generator=seeded(5)).replies != all_rows
    assert len({tuple(row) for row in all_rows[:4]}) == 4          # the same prompt, other numbers


def test_samples_follow_the_distribution(model):
    prompt = [0, 9, 33]
    with torch.no_grad():
        p = model(torch.tensor([prompt]))[0, -1].softmax(-1)
    r = rollouts(model, [prompt] * 20000, 1, generator=seeded())
    sampled = torch.tensor([reply[0] for reply in r.replies])
    assert torch.allclose(torch.bincount(sampled, minlength=60) / 20000, p, atol=0.015)


def test_rows_are_taken_with_all_that_belongs_to_them(model):
    r = rollouts(model, PROMPTS, 12, 1.0, 0.9, seeded(), record=True)
    part = r.rows([5, 1])
    assert part.replies == [r.replies[5], r.replies[1]]
    assert torch.equal(part.logprobs, r.logprobs[[5, 1]])
    B, T = r.ids.shape
    assert all(torch.equal(a.view(2, T - 1, -1), b.view(B, T - 1, -1)[[5, 1]])
               for a, b in zip(part.experts, r.experts))
    assert torch.equal(part.choices(60), r.choices(60)[[5, 1]])
    assert torch.equal(part.mask, r.mask[[5, 1]])


def test_a_state_keeps_rows(model):
    ids = torch.randint(2, 60, (3, 30), generator=seeded())
    with torch.no_grad():
        state = model.new_state(3, 30)
        model(ids[:, :13], state)
        state.select(torch.tensor([2, 0, 2]))
        assert torch.allclose(model(ids[[2, 0, 2], 13:], state), model(ids[[2, 0, 2]])[:, 13:],
                              atol=2e-4)


def test_bits_come_back():
    mask = torch.rand(3, 4, 61) < 0.5
    assert torch.equal(unpacked(packed(mask), 61), mask) and packed(mask).shape == (3, 4, 8)


def test_prompts_of_several_lengths(model):
    prompts = [[5], [6, 7], [8], [9, 9, 9]]
    with pytest.raises(MinidsError, match="one length, found lengths from 1 to 3.*by_length"):
        rollouts(model, prompts, 5)
    assert by_length(prompts) == [[0, 2], [1], [3]]


def test_results_can_be_trained_on(model):
    r = rollouts(model, PROMPTS, 5, generator=seeded(), record=True)
    model.logits(model.features(r.ids[:, :-1], options=Options(experts=r.experts))).sum().backward()
    model.zero_grad()
