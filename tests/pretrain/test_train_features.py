"""What a training step can do beside the plain one: stages, packed documents, anticipation, parts
of a batch, bfloat16."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import without_time
from tiny import CHOOSING

from minids import Model
from minids.data import mixture
from minids.errors import MinidsError
from minids.pretrain import anticipatory_routing
from minids.pretrain import train as module
from minids.pretrain.anticipatory_routing import Anticipation
from minids.pretrain.batches import batch_at
from minids.pretrain.losses import choices, stream_loss
from minids.pretrain.mixed_precision import computing_copy
from minids.pretrain.optim import decay_start, learning_rate, make_optimiser, mtp_weight
from minids.pretrain.run_folder import newest, read_log
from minids.pretrain.settings import Stage, TrainConfig
from minids.pretrain.train import train, train_step
from minids.weights.checkpoint import load

STAGES = (Stage(3, 16, 4, "dense"), Stage(2, 16, 4, "warmup"), Stage(2, 32, 2, "sparse"))
SETTINGS = TrainConfig(steps=7, batch=4, seq_len=32, warmup=2, eval_every=3, save_every=3, seed=5,
                       optimiser="muon")


@pytest.fixture(scope="module")
def tokens():
    """Documents of 3 to 39 tokens."""
    rng = np.random.default_rng(0)
    streams = {}
    for split, n in {"train": 2000, "valid": 200, "heldout": 200}.items():
        documents = [np.append(0, rng.zipf(1.3, rng.integers(2, 39)) % 62 + 2)
                     for _ in range(n // 3)]
        streams[split] = np.concatenate(documents)[:n].astype(np.uint16)
    return streams


def new_model(config=CHOOSING):
    torch.manual_seed(0)
    model = Model(config).train()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.mul_(4)       # livelier than at the beginning, so that differences show
    return model


def stepped(tokens, settings, steps=1, model=None, first=0):
    """A model after some steps, and their records."""
    model = model or new_model()
    optimiser = make_optimiser(model, settings)
    ids = (torch.from_numpy(batch_at(tokens["train"], settings, first + step))
           for step in range(steps))
    return model, [train_step(model, optimiser, x, settings, first + i) for i, x in enumerate(ids)]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def change(settings=SETTINGS, **changes):
    return dataclasses.replace(settings, **changes)


# ---- stages ----

def test_stages_share_the_steps(tokens):
    settings = change(stages=STAGES)
    attention = [settings.at(step)[0].attention for step in range(7)]
    assert attention == ["dense"] * 3 + ["warmup"] * 2 + ["sparse"] * 2
    assert [settings.at(step)[2] for step in (2, 3, 6)] == [0, 3, 5]
    assert [change(settings, steps=70).at(step)[1]
            for step in (29, 30, 49, 50, 99)] == [0, 1, 1, 2, 2]
    assert batch_at(tokens["train"], settings, 4).shape == (4, 17)
    assert batch_at(tokens["train"], settings, 5).shape == (2, 33)
    assert change(stages=[Stage(1, 32, 4)]).at(3)[0] == SETTINGS.at(3)[0]


def test_a_dense_stage_reads_all_entries(tokens):
    _, (dense,) = stepped(tokens, change(stages=[Stage(1, 32, 4, "dense")]))
    _, (every,) = stepped(tokens, SETTINGS, model=new_model(CHOOSING.replace(index_topk=8)))
    _, (sparse,) = stepped(tokens, SETTINGS)
    assert dense["loss"] == pytest.approx(every["loss"], rel=1e-5)
    assert "index_loss" not in dense | every
    assert abs(sparse["loss"] - dense["loss"]) > 1e-5 and sparse["index_loss"] > 0


def test_in_the_warm_up_the_indexer_alone_learns(tokens):
    settings = change(stages=[Stage(1, 32, 4, "warmup")], optimiser="adamw", warmup=0, steps=30)
    before = copy.deepcopy(new_model().state_dict())
    model, (record,) = stepped(tokens, settings)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert all(".indexer." in name for name in moved)
    assert {f"layers.0.attn.indexer.{n}.weight"
            for n in ("wq_b", "weights_proj", "compressor.wkv")} <= moved
    assert record["loss"] > 0 and "mtp_loss" not in record
    x = torch.from_numpy(batch_at(tokens["train"], settings, 0))
    optimiser = make_optimiser(model, settings)
    again = [train_step(model, optimiser, x, settings, step)["index_loss"] for step in range(20)]
    assert again[-1] < again[0] * 0.9


def test_a_warm_up_step_without_entries_changes_nothing():
    settings = change(stages=[Stage(1, 8, 2, "warmup")])
    before = copy.deepcopy(new_model().state_dict())
    ids = torch.tensor([[0, 3, 4] * 3, [0, 5, 6] * 3])
    record = train_step(model := new_model(), make_optimiser(model, settings), ids, settings, 0)
    assert record["index_loss"] == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_indexers_loss_is_for_the_indexer(tokens):
    models = [stepped(tokens, change(index_weight=weight, max_grad_norm=1e9))[0]
              for weight in (1.0, 0.0)]
    with_loss, without = (gradients(model) for model in models)
    indexers = {name for name in with_loss if ".indexer." in name}
    assert with_loss.keys() - without.keys() == indexers != set()
    assert all(torch.equal(with_loss[name], without[name]) for name in without)


# ---- packed documents ----

def test_packed_documents_are_read_by_themselves(tokens):
    """Both losses are means over what each document gives alone."""
    # 18, 10 and 6 tokens
    row = np.concatenate([[0], np.arange(3, 20), [0], np.arange(20, 29), [0], np.arange(30, 35)])
    model, near, far = new_model(), [], []
    with torch.no_grad():
        for document in np.split(row, [18, 28]):
            ids = torch.from_numpy(document)[None]
            X = model.features(ids[:, :-1])
            near.append(F.cross_entropy(model.logits(X)[0], ids[0, 1:], reduction="none"))
            far.append(F.cross_entropy(model.mtp_logits(X[:, :-1], ids[:, 1:-1])[0], ids[0, 2:],
                                       reduction="none"))
    expected = torch.cat(near).mean().item(), torch.cat(far).mean().item()
    settings = change(batch=1, seq_len=33)
    record = train_step(model, make_optimiser(model, settings), torch.from_numpy(row)[None],
                        settings, 0)
    assert (record["loss"], record["mtp_loss"]) == pytest.approx(expected, rel=1e-4)
    assert stream_loss(new_model(), row, 33)[0] == pytest.approx(expected[0], rel=1e-4)
    other = train_step(model := new_model(), make_optimiser(model, settings),
                       torch.from_numpy(row)[None],
                       change(settings, packed=False), 0)
    assert abs(other["loss"] - expected[0]) > 1e-3


# ---- weights and rates ----

def test_the_balance_loss_is_added_with_its_weight(tokens):
    grads = []
    for weight in (0.0, 1.0, 2.0):
        model, (record,) = stepped(tokens, change(sequence_balance=weight, max_grad_norm=1e9))
        grads.append(gradients(model)["layers.0.ffn.gate.weight"])
        assert ("balance_loss" in record) == bool(weight)
    torch.testing.assert_close(grads[2] - grads[0], 2 * (grads[1] - grads[0]), rtol=1e-3, atol=1e-5)
    assert (grads[1] - grads[0]).abs().max() > 1e-3


def test_the_rate_stays_then_falls_and_the_mtp_weight_with_it():
    s = TrainConfig(steps=100, warmup=10, lr=1.0, decay_from=0.6)
    rates = [learning_rate(s, step) for step in range(101)]
    assert decay_start(s) == 60 and set(rates[9:61]) == {1.0}
    assert (rates[80], rates[100]) == pytest.approx((0.55, 0.1))
    assert rates[60:] == sorted(rates[60:], reverse=True) and rates[61] < 1
    assert [mtp_weight(s, step) for step in (0, 59, 60, 99)] == [0.3, 0.3, 0.1, 0.1]
    assert {mtp_weight(change(s, decay_from=0.0), step) for step in range(100)} == {0.3}


# ---- anticipatory routing ----

def same(a, b):
    return all(torch.equal(x, y) for part, other in zip(a, b, strict=True)
               for x, y in zip(part, other, strict=True))


@pytest.mark.slow
def test_anticipated_experts_are_those_of_older_weights(tokens):
    settings, model = change(anticipate=2, accumulate=2, lr=0.05, warmup=0), new_model()
    optimiser, anticipation = make_optimiser(model, settings), Anticipation(settings)
    older, differs = [], False
    batch = lambda step: torch.from_numpy(batch_at(tokens["train"], settings, step))
    for step in range(6):
        older.append(copy.deepcopy(model))
        experts = anticipation.experts(
            step, lambda ahead: choices(model, batch(ahead), settings, ahead))
        expected = choices(older[max(step - 2, 0)], batch(step), settings, step)
        # parts; two layers and the MTP block
        assert len(experts) == 2 and [len(gates) for gates in experts] == [3, 3]
        assert same(experts, expected)
        differs |= not same(experts, choices(model, batch(step), settings, step))
        replay = copy.deepcopy(model)
        record = train_step(model, optimiser, batch(step), settings, step, experts=experts)
        own = train_step(replay, make_optimiser(replay, settings), batch(step), settings, step)
        assert step == 0 or record["loss"] != own["loss"]
    # chosen in advance for the last step of the run
    assert differs and list(anticipation.routes) == [6]


def spiking(monkeypatch, at):
    """Let the loss of one step leap when it routes by itself."""
    real, seen = module.train_step, []

    def step(model, optimiser, ids, settings, step, masters=None, experts=None):
        record = real(model, optimiser, ids, settings, step, masters, experts)
        seen.append((step, experts is not None))
        return record | {"loss": record["loss"] * 3} if step == at and experts is None else record

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(anticipatory_routing, "RECENT", 3)
    return seen


@pytest.mark.slow
def test_a_spike_sends_the_run_back(tokens, tmp_path, monkeypatch):
    settings = change(anticipate=1, spike=2.0, calm=2, steps=12, save_every=4, eval_every=50)
    seen = spiking(monkeypatch, at=6)
    log = train(CHOOSING, settings, tmp_path / "whole", tokens=tokens)
    assert [step for step, _ in seen] == [*range(7), *range(4, 12)]
    assert [step for step, replayed in seen if replayed] == [4, 5, 6, 7, 8]
    spike, = (record for record in log if "spike" in record)
    assert (spike["step"], spike["back_to"]) == (7, 4)

    for at in (5, 7):       # killed in the second pass, right before and after its checkpoint
        second = []

        def kill(record):
            second.append(record["step"])
            if second.count(5) == 2 and record["step"] == at:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            train(CHOOSING, settings, tmp_path / str(at), tokens=tokens, on_step=kill)
        resumed = train(CHOOSING, settings, tmp_path / str(at), tokens=tokens)
        assert without_time(resumed) == without_time(log)
        assert without_time(read_log(tmp_path / str(at))) == without_time(log)


# ---- parts, resuming, bfloat16 ----

def test_parts_of_a_batch_add_up_to_it(tokens):
    """Documents of all lengths, so that parts differ in how many targets and entries they have."""
    settings = change(batch=8, mtp_share=0.5, max_grad_norm=1e9)
    (whole, records), (parts, again) = (stepped(tokens, change(settings, accumulate=n))
                                        for n in (1, 4))
    assert again[0] == pytest.approx(records[0], rel=1e-5) and "index_loss" in records[0]
    a, b = gradients(whole), gradients(parts)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-6) for name in a)
    biases = [{n: t for n, t in m.state_dict().items() if n.endswith("gate.bias")}
              for m in (whole, parts)]
    assert all(torch.equal(biases[0][name], t) for name, t in biases[1].items())
    assert any(t.any() for t in biases[1].values())


@pytest.mark.slow
def test_resuming_is_exact_with_all_of_it(tokens, tmp_path):
    """Killed before the first checkpoint, one step into stage 2, and one before stage 3."""
    settings = change(stages=STAGES, accumulate=2, anticipate=2, dtype="bfloat16", save_every=2,
                      decay_from=0.5)
    deaths = [1, 4, 5]

    def kill(record):
        if deaths and record["step"] == deaths[0]:
            raise InterruptedError(deaths.pop(0))

    for _ in range(3):
        with pytest.raises(InterruptedError):
            train(CHOOSING, settings, tmp_path / "cut", tokens=tokens, on_step=kill)
    cut, log = (train(CHOOSING, settings, tmp_path / name, tokens=tokens)
                for name in ("cut", "whole"))
    assert [r["stage"] for r in log if "stage" in r] == [1, 1, 1, 2, 2, 3, 3]
    assert without_time(cut) == without_time(log)
    a, b = (load(newest(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    description = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert description["settings"]["stages"][1]["attention"] == "warmup"


@pytest.mark.slow
def test_bfloat16_computes_and_float32_learns(tokens, tmp_path):
    repeated = {split: np.tile(np.arange(7, 27, dtype=np.uint16), 20) for split in tokens}
    settings = change(dtype="bfloat16", optimiser="adamw", steps=20, lr=2e-2, eval_every=30,
                      save_every=30)
    log = train(CHOOSING, settings, tmp_path / "run", tokens=repeated)
    assert log[-1]["heldout_loss"] < math.log(20) / 2
    masters = load(newest(tmp_path / "run"))
    weight = masters.embed.weight
    assert not torch.equal(weight, weight.bfloat16().float())       # finer than bfloat16
    model = computing_copy(masters)
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.hc_head_fn.data_ptr() == masters.hc_head_fn.data_ptr()
    model.features(torch.tensor([[1, 2, 3, 4, 5]])).float().sum().backward()
    assert masters.embed.weight.grad.dtype == torch.float32
    assert masters.embed.weight.grad.abs().sum() > 0


# ---- what cannot be ----

def test_impossible_settings_are_refused(tokens, tmp_path):
    for changes, message in ((dict(stages=[Stage(1, 32, 4, "sparce")]), "dense, warmup or sparse"),
                             (dict(stages=[Stage(0, 32, 4)]), "share above 0"),
                             (dict(accumulate=0), "accumulate"),
                             (dict(dtype="float16"), "float32 or bfloat16"),
                             (dict(data="web"), "text or mix"),
                             (dict(decay_from=1.0), "decay_from"),
                             (dict(spike=2.0), "anticipate and spike")):
        with pytest.raises(MinidsError, match=message):
            change(**changes)
    for config, changes, message in ((CHOOSING, dict(accumulate=3), "multiple of accumulate = 3"),
                                     (CHOOSING.replace(compress_ratios=(0, 16, 0)),
                                      dict(stages=STAGES), "CSA layers"),
                                     (CHOOSING, dict(stages=[Stage(1, 128, 4)]),
                                      "context of 64, found 128")):
        with pytest.raises(MinidsError, match=message):
            train(config, change(**changes), tmp_path / "run", tokens=tokens)
    assert not (tmp_path / "run").exists()


def test_the_mixture_is_read_where_settings_say_so(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "streams", lambda size, tokenizer: tokens)
    log = train(CHOOSING, change(data="mix", steps=1), tmp_path / "run")
    expected, _ = stream_loss(load(newest(tmp_path / "run")), tokens["heldout"], 32)
    assert log[-1]["heldout_loss"] == pytest.approx(expected, rel=1e-5)
