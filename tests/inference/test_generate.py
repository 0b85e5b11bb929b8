"""Continuing ids: greedy against full passes, batches against single prompts, sampling."""

import copy

import pytest
import torch
from tiny import SPEAKER

from minids import Model
from minids.errors import MinidsError
from minids.inference.generate import generate, stream
from minids.inference.sampling import distribution, nucleus, pick, sample


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Model(SPEAKER).eval()
    torch.nn.init.normal_(model.head.weight)    # the most likely id differs between positions
    return model


def greedy(model, prompt, n):
    """By definition: a full pass over the whole text for each new id."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]


def test_greedy_equals_full_passes(model):
    prompt = [5, 9, 33, 2]
    assert generate(model, prompt, 40, temperature=0, stop=()) == greedy(model, prompt, 40)


def test_ragged_prompts_equal_each_alone(model):
    prompts = [[7], [7, 8, 9, 10, 11, 12, 13, 14, 15], [50, 3, 3, 8]]
    together = generate(model, prompts, 20, temperature=0, stop=())
    assert together == [greedy(model, p, 20) for p in prompts]
    equal = torch.tensor([[5, 6], [7, 8]])
    together = generate(model, equal, 5, temperature=0, stop=())
    assert together == [greedy(model, p, 5) for p in equal.tolist()]


def test_a_row_ends_with_a_stop_id_and_the_others_go_on(model):
    prompts = [[5, 9, 33, 2], [7]]
    free = generate(model, prompts, 20, temperature=0, stop=())
    end = free[0][4]
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    assert generate(model, prompts, 20, temperature=0, stop=(end,)) == expected
    assert len(expected[0]) <= 5


def test_the_context_can_be_filled(model):
    assert len(generate(model, [4] * 40, 25, stop=())) == 25        # the last id is not read
    assert len(generate(model, [4] * 64, 1, stop=())) == 1


def test_a_seed_fixes_the_text_and_the_training_mode_stays(model):
    a, b, c = (generate(model, [[1], [2, 3]], 15, seed=s, stop=()) for s in (1, 1, 2))
    assert a == b != c
    model.train()
    generate(model, [4], 3)
    assert model.training
    model.eval()


def test_streaming_yields_what_generate_collects(model):
    rows = list(stream(model, [[7], [7, 8, 9]], 4, temperature=0, stop=()))
    collected = [[new[i] for new in rows if new[i] is not None] for i in (0, 1)]
    assert collected == generate(model, [[7], [7, 8, 9]], 4, temperature=0, stop=())
    assert [new[1] for new in rows[:2]] == [new[0] for new in rows[4:]] == [None, None]


def test_sampling_follows_temperature_and_top_p():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().expand(20000, 4)

    def shares(temperature, top_p):
        ids = sample(logits, temperature, top_p, torch.Generator().manual_seed(0))
        return torch.bincount(ids, minlength=4) / len(ids)

    assert torch.allclose(shares(1.0, 1.0), p, atol=0.015)
    assert torch.allclose(shares(0.5, 1.0), p**2 / (p**2).sum(), atol=0.015)
    assert torch.allclose(shares(1.0, 0.75), torch.tensor([5 / 8, 3 / 8, 0, 0]), atol=0.015)
    assert shares(1.0, 0.81)[3] == 0 < shares(1.0, 0.81)[2]
    assert shares(1.0, 1e-6)[0] == shares(0, 1.0)[0] == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30, 1e-37, 1e-38, 1e-45, 1e-46, 5e-324])
def test_tiny_temperatures_are_greedy(model, temperature):
    """Down to those that a float32 cannot hold, whatever the size of the logits."""
    for scale in (1.0, 1e4, 1e30):
        logits = scale * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
        logits[:, 3] = 4.5 * scale
        for top_p in (1.0, 0.9):
            p = distribution(logits, temperature, top_p)
            assert (p.sum(-1) - 1).abs().max() < 1e-6
            assert torch.equal(p.argmax(-1), logits.argmax(-1))
            assert torch.equal(sample(logits, temperature, top_p), logits.argmax(-1))
    for options in ({}, {"drafts": 2}):
        written = generate(model, [5, 6, 7], 12, temperature, stop=(), seed=0, **options)
        assert written == generate(model, [5, 6, 7], 12, temperature=0, stop=())


def test_usual_temperatures_divide_the_logits():
    """Bit for bit: texts that were sampled once are sampled again."""
    logits = 5 * torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    for temperature in (0.3, 0.8, 1.0, 1.7):
        expected = (logits / temperature).softmax(-1)
        assert torch.equal(distribution(logits, temperature, 1.0), expected)


def test_the_nucleus_is_the_shortest_prefix_that_reaches_top_p():
    """In vocabularies below and above the number of ids that are sorted first."""
    for vocab in (5, 200, 1000):
        p = torch.randn(20, vocab, generator=torch.Generator().manual_seed(vocab)).softmax(-1)
        for top_p in (1e-6, 0.3, 0.9, 0.999):
            for row, allowed in zip(p.tolist(), nucleus(p, top_p).tolist()):
                total, expected = 0.0, set()
                for i in sorted(range(vocab), key=lambda i: -row[i]):
                    if total >= top_p:
                        break
                    total += row[i]
                    expected.add(i)
                assert {i for i, yes in enumerate(allowed) if yes} == expected


@pytest.mark.parametrize("prompt, options, message", [
    ([], {}, "prompt is empty"),
    ([[3], []], {}, "prompt is empty"),
    ([3, 60], {}, "60: expected token ids from 0 to 59"),
    ([[3], [-1]], {}, "-1: expected token ids from 0 to 59"),
    ([3] * 65, {}, "65 tokens, and the model's context is 64"),
    ([3] * 60, {"max_new_tokens": 10}, "at most 5 new tokens"),
    ([3], {"max_new_tokens": 0}, "max_new_tokens"),
    ([3], {"temperature": -1.0}, "temperature"),
    ([3], {"temperature": float("nan")}, "temperature"),
    ([3], {"top_p": 0.0}, "top_p"),
    ([3], {"top_p": 1.5}, "top_p"),
])
def test_bad_input_is_refused(model, prompt, options, message):
    with pytest.raises(MinidsError, match=message):
        generate(model, prompt, **options)


def test_weights_that_are_no_numbers_are_an_error(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.norm.weight[0] = torch.nan
    for drafts in (0, 1):
        with pytest.raises(MinidsError, match="logits are NaN"):
            generate(broken, [0, 5, 9], 4, drafts=drafts)


def test_picking_is_a_race_of_exponential_noise():
    """`torch.multinomial` runs the same race, with noise that depends on the processor's maker."""
    weights = torch.rand(5, 97).square()
    weights[:, 40:] = 0
    for seed in range(50):
        a, b = (torch.Generator().manual_seed(seed) for _ in range(2))
        u = torch.rand(weights.shape, dtype=torch.float64, generator=a)
        expected = (weights / -torch.log1p(-u).float()).argmax(-1)
        assert torch.equal(pick(weights, b), expected)
        assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (1.0, 1.0), (0.8, 0.7)])
def test_a_row_does_not_notice_that_others_end(temperature, top_p):
    """Rows that have ended leave the state; the others get the same random numbers as before."""
    torch.manual_seed(3)
    model = Model(SPEAKER)
    with torch.no_grad():
        model.head.weight.normal_(std=0.5)
    prompts = [[1 + i, *range(2, 3 + i % 3)] for i in range(9)]
    stop = tuple(range(0, SPEAKER.vocab_size, 4))
    whole = generate(model, prompts, 20, temperature, top_p, seed=5, stop=())
    ended = generate(model, prompts, 20, temperature, top_p, seed=5, stop=stop)
    lengths = [next((i + 1 for i, token in enumerate(row) if token in stop), 20) for row in whole]
    assert len(set(lengths)) > 3
    assert ended == [row[:n] for row, n in zip(whole, lengths)]
