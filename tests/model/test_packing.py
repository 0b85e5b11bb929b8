"""Packed documents compute what they would alone; the losses of a pass, and replay."""

import pytest
import torch
import torch.nn.functional as F
from tiny import SMALL
from twin import lively

from minids.model.indexer import index_divergence
from minids.model.moe import sequence_balance, sqrt_softplus
from minids.model.packing import Packing
from minids.model.passes import Options

BOS = 0
LENGTHS = [[1, 37, 16, 4, 62], [90, 3, 27], [5, 5, 5, 5, 100]]      # documents of each row: 120 tokens
CONFIGS = {"small": SMALL, "own picks": SMALL.replace(index_topk=2), "few of few": SMALL.replace(index_topk=500)}


def rows(seed=0):
    """Three packed rows, B T, and their documents."""
    generator = torch.Generator().manual_seed(seed)
    documents = [[torch.cat([torch.tensor([BOS]), torch.randint(1, SMALL.vocab_size, (n - 1,), generator=generator)])
                  for n in row] for row in LENGTHS]
    return torch.stack([torch.cat(row) for row in documents]), documents


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_each_document_alone(name):
    model = lively(CONFIGS[name], 0)
    ids, documents = rows()
    with torch.no_grad():
        packed = model.logits(model.features(ids, options=Options(Packing.of(ids, BOS))))
        for row, parts in zip(packed, documents):
            alone = torch.cat([model(part[None])[0] for part in parts])
            torch.testing.assert_close(row, alone, atol=2e-5, rtol=2e-5)


def test_packed_mtp_equals_each_document_alone():
    model = lively(SMALL, 1)
    ids, documents = rows()
    with torch.no_grad():
        X = model.features(ids, options=Options(Packing.of(ids, BOS)))
        options = Options(Packing.of(ids[:, :-1], BOS))
        packed = model.mtp_logits(X[:, :-1], ids[:, 1:], options=options)
        for row, parts in zip(packed, documents):
            at = 0
            for part in parts:
                if len(part) > 1:
                    alone = model.mtp_logits(model.features(part[None])[:, :-1], part[None, 1:])[0]
                    torch.testing.assert_close(row[at : at + len(part) - 1], alone, atol=2e-5, rtol=2e-5)
                at += len(part)


def test_packed_gradients_equal_those_of_the_documents():
    model = lively(SMALL, 2)
    ids, documents = rows()
    weigh = torch.randn(SMALL.vocab_size)
    (model.logits(model.features(ids, options=Options(Packing.of(ids, BOS)))).tanh() @ weigh).sum().backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in documents:
        for part in row:
            (model(part[None]).tanh() @ weigh).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            scale = p.grad.abs().max().clamp_min(1e-3)
            torch.testing.assert_close(packed[name] / scale, p.grad / scale, atol=2e-4, rtol=1e-3, msg=lambda m: f"{name}: {m}")


def test_one_document_is_no_packing():
    model = lively(SMALL, 3)
    ids = torch.randint(1, SMALL.vocab_size, (2, 75))
    with torch.no_grad():
        torch.testing.assert_close(model.features(ids, options=Options(Packing.of(ids, BOS))), model.features(ids))


def test_same_document():
    packing = Packing.of(torch.tensor([[5, 6, BOS, 7, 8, BOS]]), BOS)
    assert packing.position.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert packing.same(1).tolist() == [[True, False, True, True, False, False]]
    assert packing.same(2).tolist() == [[False, False, True, False, False, False]]


def test_dense_attention_reads_all_entries():
    """`dense` equals a model whose top k takes all, and differs from one that picks."""
    sparse, full = lively(SMALL.replace(index_topk=2), 4), lively(SMALL.replace(index_topk=500), 4)
    ids = torch.randint(0, SMALL.vocab_size, (2, 80))
    with torch.no_grad():
        torch.testing.assert_close(sparse.features(ids, options=Options(dense=True)), full.features(ids))
        assert (sparse.features(ids) - full.features(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("topk", [3, 500])
def test_index_loss_trains_the_indexer_alone(dense, packed, topk):
    model = lively(SMALL.replace(index_topk=topk), 5)
    ids, _ = rows()
    options = Options(Packing.of(ids, BOS) if packed else None, dense=dense, index=True)
    _, record = model.run(ids, options=options)
    assert len(record.index) == SMALL.compress_ratios.count(4) and record.index_loss > 0
    record.index_loss.backward()
    for name, p in model.named_parameters():
        moved = p.grad is not None and p.grad.abs().max() > 0
        assert moved == (".indexer." in name), name


@pytest.mark.slow
def test_index_loss_falls_and_leaves_the_logits():
    """Fitted to full attention, the indexer's divergence falls; what the dense model computes stays as it is."""
    model = lively(SMALL, 6)
    ids = torch.randint(0, SMALL.vocab_size, (4, 100))
    mine = [p for n, p in model.named_parameters() if ".indexer." in n]
    optimiser = torch.optim.Adam(mine, lr=3e-3)
    before = model.features(ids, options=Options(dense=True)).detach()
    losses = []
    for _ in range(30):
        _, record = model.run(ids, options=Options(dense=True, index=True))
        optimiser.zero_grad()
        record.index_loss.backward()
        optimiser.step()
        losses.append(record.index_loss.item())
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(model.features(ids, options=Options(dense=True)), before)


def test_index_divergence_is_its_equation():
    torch.manual_seed(0)
    p, scores = torch.rand(2, 5, 3, 4), torch.randn(2, 5, 4, requires_grad=True)
    unseen = torch.zeros(5, 4)
    for t, sees in enumerate((0, 1, 2, 2, 4)):
        unseen[t, sees:] = float("-inf")
    p = p * (unseen == 0)[:, None]
    by_hand = []
    for b in range(2):
        for t, sees in enumerate((1, 2, 2, 4), start=1):
            target = p[b, t].sum(0)[:sees] / p[b, t].sum()
            by_hand.append(F.kl_div(scores[b, t, :sees].log_softmax(-1), target, reduction="sum"))
    total, count = index_divergence(p, scores, unseen)
    assert count == len(by_hand)
    loss = total / count
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    loss.backward()
    assert scores.grad.isfinite().all() and (scores.grad[:, 0] == 0).all()


def test_balance_loss_is_its_equation():
    torch.manual_seed(0)
    B, T, E, K = 2, 6, 5, 2
    s = sqrt_softplus(torch.randn(B * T, E))
    experts = s.topk(K).indices
    total = 0.0
    for b in range(B):
        for e in range(E):
            f = E / (K * T) * sum(e in experts[b * T + t].tolist() for t in range(T))
            total += f * sum((s[b * T + t, e] / s[b * T + t].sum()).item() for t in range(T)) / T
    loss, count = sequence_balance(s, experts, B)
    assert count == B and loss.item() == pytest.approx(total, rel=1e-5)


def test_balance_loss_reaches_the_gates():
    model = lively(SMALL, 7)
    ids = torch.randint(0, SMALL.vocab_size, (2, 30))
    _, record = model.run(ids, options=Options(balance=True))
    assert len(record.balance) == SMALL.n_layers - SMALL.n_hash_layers
    record.balance_loss.backward()
    assert all(model.layers[i].ffn.gate.weight.grad.abs().max() > 0 for i in range(SMALL.n_hash_layers, SMALL.n_layers))


def test_replay():
    """Replaying a pass's own choices changes nothing; another model's choices are taken as they are."""
    model, other = lively(SMALL, 8), lively(SMALL, 9)
    ids = torch.randint(0, SMALL.vocab_size, (2, 30))
    with torch.no_grad():
        X, record = model.run(ids)
        record += model.run_mtp(X[:, :-1], ids[:, 1:])[1]
        _, foreign = other.run(ids)
        options = Options(experts=record.experts)
        again, replayed = model.run(ids, options=options)
        torch.testing.assert_close(again, X)
        replayed += model.run_mtp(X[:, :-1], ids[:, 1:], options=options)[1]
        moved, taken = model.run(ids, options=Options(experts=foreign.experts))
        assert (moved - X).abs().max() > 1e-3
    assert len(record.experts) == SMALL.n_layers - SMALL.n_hash_layers + 1
    assert all(torch.equal(a, b) for a, b in zip(replayed.experts, record.experts, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(taken.experts, foreign.experts, strict=True))


def test_loads_count_the_choices():
    model = lively(SMALL, 10)
    with torch.no_grad():
        _, record = model.run(torch.randint(0, SMALL.vocab_size, (2, 30)))
    assert all(load.sum() == 60 * SMALL.n_activated_experts for load in record.loads)
    for experts, load in zip(record.experts, record.loads, strict=True):
        assert load.tolist() == [int((experts == e).sum()) for e in range(SMALL.n_routed_experts)]
