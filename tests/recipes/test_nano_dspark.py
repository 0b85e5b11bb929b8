"""Training a DSpark module: what its blocks are compared with, the loss, the shipped file."""

import math

import pytest
import torch
from tiny import SMALL
from twin import lively

import minids
from minids.data.tokenizer import Tokenizer
from minids.inference.block_drafts import speculate_blocks
from minids.model.dspark import DSpark, DSparkConfig, initialise
from minids.recipes import nano_dspark
from minids.system import paths
from minids.weights.dspark import load_dspark

DRAFTS = DSparkConfig(5, 3, (1, 3, 4), 6)


@pytest.fixture(scope="module")
def batch():
    """A target, a draft module, two rows of text with a document that begins in the middle."""
    torch.manual_seed(0)
    dspark = DSpark(SMALL, DRAFTS)
    initialise(dspark)
    ids = torch.randint(3, SMALL.vocab_size, (2, 40))
    ids[0, 17] = SMALL.bos_token_id
    return lively(SMALL, 4).requires_grad_(False), dspark, ids


def test_drafts_are_compared_with_the_target_at_the_same_token(batch, monkeypatch):
    model, dspark, ids = batch
    monkeypatch.setattr(nano_dspark, "ANCHORS", 30)
    out = nano_dspark.blocks(model, dspark, ids, torch.Generator().manual_seed(0))
    anchors = torch.rand(2, 39, generator=torch.Generator().manual_seed(0)).topk(30).indices
    documents = {(0, 0): model(ids[:1, :17]), (0, 17): model(ids[:1, 17:]), (1, 0): model(ids[1:])}
    for n, anchor in enumerate(anchors.flatten().tolist()):
        row = n // 30
        begin = 17 if row == 0 and anchor >= 17 else 0
        end = 17 if row == 0 and anchor < 17 else 40
        for i in range(5):
            inside = anchor + 1 + i < end
            assert bool(out["counts"][n, i]) == inside
            if inside:
                assert out["y"][n, i] == ids[row, anchor + 1 + i]
                expected = documents[row, begin][0, anchor + i - begin]
                torch.testing.assert_close(out["p"][n, i], expected, atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_paper_s():
    """Equations 8 to 12, for one block of two drafts over three tokens, by hand."""
    q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    p = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.1, 0.8]])
    out = {"q": q.log()[None], "p": (p + 1e-30).log()[None], "y": torch.tensor([[0, 1]]),
           "confidence": torch.tensor([[0.0, 2.0]]), "counts": torch.ones(1, 2, dtype=torch.bool)}
    torch.testing.assert_close(nano_dspark.accept_rates(out), torch.tensor([[0.5, 1.0]]))
    sure = 1 / (1 + math.exp(-2))
    first = 0.1 * math.log(2) + 0.9 * 1.0 + math.log(2)
    second = 0.1 * math.log(10) + 0.9 * 0.0 - math.log(sure)
    expected = (first + math.exp(-1 / 4) * second) / (1 + math.exp(-1 / 4))
    assert nano_dspark.loss_of(out).item() == pytest.approx(expected, abs=1e-5)
    assert nano_dspark.expected_length(out) == pytest.approx(1 + 0.5 + 0.5 * 1.0)
    out["counts"][0, 1] = False                 # the draft in another document does not count
    assert nano_dspark.loss_of(out).item() == pytest.approx(first, abs=1e-5)


@pytest.mark.slow
def test_training_lowers_the_loss(batch, monkeypatch):
    """And leaves the target as it is."""
    model, dspark, ids = batch
    monkeypatch.setattr(nano_dspark, "ANCHORS", 30)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimiser = torch.optim.Adam(dspark.train().parameters(), 1e-2)
    losses = []
    for step in range(12):
        loss = nano_dspark.loss_of(nano_dspark.blocks(model, dspark, ids,
                                                      torch.Generator().manual_seed(step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.slow
def test_the_shipped_module_drafts_for_nano():
    """More than two tokens a pass on a held-out text, and the greedy text is nano's own."""
    nano = minids.load(paths.data("checkpoints", "nano"))
    dspark = load_dspark(paths.data("checkpoints", "nano-dspark"), nano)
    assert dspark.drafts == nano_dspark.DRAFTS
    prompt = Tokenizer.load().encode("And the LORD said unto", bos=True)
    out = speculate_blocks(nano, dspark, prompt, 40, temperature=0, stop=())
    assert out.ids == minids.generate(nano, prompt, 40, temperature=0, stop=())
    assert len(out.ids) / out.passes > 2
