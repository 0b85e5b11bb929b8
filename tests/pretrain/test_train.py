import dataclasses
import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch
from helpers import Killed, interrupt_at, kill_at
from tiny import THREE_KINDS

from minids import Model
from minids.errors import MinidsError
from minids.pretrain import run_folder
from minids.pretrain import train as module
from minids.pretrain.batches import batch_at
from minids.pretrain.losses import stream_loss
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.run import Interrupted
from minids.pretrain.run_folder import newest, read_log
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train
from minids.system import distributed
from minids.weights.checkpoint import load

SETTINGS = TrainConfig(steps=7, batch=2, seq_len=32, warmup=2, eval_every=3, save_every=3, seed=5,
                       optimiser="muon")


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    sizes = {"train": 2000, "valid": 200, "heldout": 300}
    return {split: (rng.zipf(1.2, n) % 1024).astype(np.uint16) for split, n in sizes.items()}


def losses(log):
    return [(r["step"], r["loss"], r["mtp_loss"], r["grad_norm"]) for r in log if "loss" in r]


def looks(log):
    return [{k: v for k, v in r.items()} for r in log if "loss" not in r]


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(THREE_KINDS, SETTINGS, out, tokens=tokens)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_killed_run_goes_on_exactly(tokens, tmp_path, whole, at):
    with pytest.raises(Killed):
        train(THREE_KINDS, SETTINGS, tmp_path / "run", on_step=kill_at(at), tokens=tokens)
    log = train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens)
    assert losses(log) == losses(whole[1]) and looks(log) == looks(whole[1])
    assert read_log(tmp_path / "run") == log
    a, b = (load(newest(p)).state_dict() for p in (tmp_path / "run", whole[0]))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.slow
def test_interrupt_saves_and_goes_on_exactly(tokens, tmp_path, whole):
    before = signal.getsignal(signal.SIGINT)        # a shell's background jobs ignore it
    with pytest.raises(Interrupted, match="interrupted after step 3 of 7.*again to go on"):
        train(THREE_KINDS, SETTINGS, tmp_path / "run", on_step=interrupt_at(2), tokens=tokens)
    assert newest(tmp_path / "run").name == "step-000003"
    assert losses(train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens)) == losses(whole[1])
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_run_leaves(tokens, whole):
    out, log = whole
    assert sorted(p.name for p in out.iterdir()) == [".lock", "log.jsonl", "model", "run.json",
                                                     "step-000007"]
    assert [r["step"] for r in log if "loss" in r] == list(range(1, 8))
    assert [r["step"] for r in log if "valid_loss" in r] == [3, 6, 7]
    model = load(newest(out))
    loss, _ = stream_loss(model, tokens["heldout"], 32)
    assert loss == pytest.approx(log[-1]["heldout_loss"], rel=1e-6)
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings == json.loads(json.dumps(dataclasses.asdict(SETTINGS)))
    trained, in_bf16 = model.state_dict(), load(out / "model").state_dict()
    assert all(torch.allclose(trained[name].float(), t.float(), rtol=0.01)
               for name, t in in_bf16.items())


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_fresh_starts_again(tokens, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    assert train(THREE_KINDS, SETTINGS, out, tokens=tokens) == whole[1]
    steps = []
    train(THREE_KINDS, SETTINGS, out, resume=False, on_step=lambda r: steps.append(r["step"]),
          tokens=tokens)
    assert steps == list(range(1, 8))


@pytest.mark.slow
def test_training_learns(tokens, tmp_path):
    """Text that repeats: the loss falls far below that of the unigram distribution."""
    repeated = {split: np.tile(np.arange(7, 27, dtype=np.uint16), 10) for split in tokens}
    settings = dataclasses.replace(SETTINGS, optimiser="adamw", steps=30, lr=1e-2, eval_every=30,
                                   save_every=30)
    log = train(THREE_KINDS, settings, tmp_path / "run", tokens=repeated)
    assert log[-1]["heldout_loss"] < math.log(20) / 3


def test_loss_is_next_token_plus_weighted_mtp(tokens):
    torch.manual_seed(0)
    model = Model(THREE_KINDS).train()
    optimiser = make_optimiser(model, SETTINGS)
    ids = torch.from_numpy(batch_at(tokens["train"], SETTINGS, 0))
    with torch.no_grad():
        X = model.features(ids[:, :-1])
        logp = model.logits(X).log_softmax(-1)
        loss = -logp.gather(-1, ids[:, 1:, None]).mean()
        # streams at t, token t + 1: token t + 2
        logp = model.mtp_logits(X[:, :-1], ids[:, 1:-1]).log_softmax(-1)
        mtp = -logp.gather(-1, ids[:, 2:, None]).mean()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    record = module.train_step(model, optimiser, ids, SETTINGS, 0)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["mtp_loss"] == pytest.approx(mtp.item(), rel=1e-5)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    sinks = {n for n in before if n.endswith("sink")}
    assert {n for n in before if ".indexer." not in n} <= moved | sinks


def test_gate_biases_move_against_the_load(tokens, tmp_path):
    train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens)
    moves = load(newest(tmp_path / "run")).state_dict()["layers.1.ffn.gate.bias"] / SETTINGS.balance
    assert torch.allclose(moves, moves.round(), atol=1e-3) and 0 < moves.abs().max() < 7.01


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_decay_only_where_it_belongs(optimiser):
    model = Model(THREE_KINDS)
    groups = make_optimiser(model, dataclasses.replace(SETTINGS, optimiser=optimiser)).param_groups
    decayed, others = ({id(p) for g in groups if bool(g["weight_decay"]) == yes
                        for p in g["params"]} for yes in (True, False))
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed | others == set(names) and not decayed & others
    ends = ("norm.weight", "sink", "ape", "_base", "_scale")
    assert {n.endswith(ends) for n in (names[i] for i in others)} == {True}
    assert not any(names[i].endswith(ends) for i in decayed)


def test_rows_of_the_mixture_begin_where_documents_do():
    stream = np.arange(1000)
    # windows of 32: 5 and 310 share one, 990 has no row after it
    stream[[0, 5, 40, 300, 310, 700, 990]] = 0
    settings = TrainConfig(steps=8, batch=1, seq_len=32, data="mix")
    rows = [batch_at(stream, settings, step)[0] for step in range(8)]
    assert all(row[0] == 0 and len(row) == 33 for row in rows)
    for epoch in rows[:4], rows[4:]:
        assert sorted(row[1] - 1 for row in epoch) == [0, 40, 300, 700]


def test_an_epoch_sees_every_window_once(tokens):
    stream = np.arange(2000)
    windows = (len(stream) - 1) // SETTINGS.seq_len - 1
    steps = range(math.ceil(windows / 2))
    first = np.concatenate([batch_at(stream, SETTINGS, s)[:, 0] for s in steps])[:windows]
    assert len(set(first)) == windows and set(np.diff(np.sort(first))) == {SETTINGS.seq_len}
    again = batch_at(stream, SETTINGS, 10_000)
    assert np.array_equal(again, batch_at(stream, SETTINGS, 10_000))
    assert not np.array_equal(again, batch_at(stream, SETTINGS, 10_001))
    assert not np.array_equal(again, batch_at(stream, dataclasses.replace(SETTINGS, seed=6),
                                              10_000))
    assert (np.diff(again) == 1).all() and again.shape == (2, 33)


def test_learning_rate_rises_then_falls_to_a_tenth():
    s = TrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(s, i) for i in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[55] == pytest.approx(0.55)


def test_stream_loss_counts_every_token_once(tokens):
    torch.manual_seed(1)
    model = Model(THREE_KINDS).eval()
    # 300 ids: windows of 32 from 0, 24, 48, ... and a shorter last one
    ids = tokens["heldout"].astype(np.int64)

    def window(begin):
        """Losses of the targets that count: past the first window, all but the first 8."""
        with torch.no_grad():
            logp = model(torch.tensor(ids[None, begin : min(begin + 32, 299)]))[0].log_softmax(-1)
        targets = ids[begin + 1 : begin + 33]
        return [-logp[k, token].item() for k, token in enumerate(targets)][8 if begin else 0 :]

    losses = [window(begin) for begin in range(0, 291, 24)]
    assert sum(map(len, losses)) == 299
    assert stream_loss(model, ids, 32)[0] == pytest.approx(np.mean(sum(losses, [])), rel=1e-5)
    every_third = np.mean(sum(losses[::3], []))
    assert stream_loss(model, ids, 32, every=3)[0] == pytest.approx(every_third, rel=1e-5)


def test_other_settings_are_refused(tokens, whole):
    with pytest.raises(MinidsError, match="other settings .settings.lr, settings.seed.*fresh"):
        train(THREE_KINDS, dataclasses.replace(SETTINGS, lr=1e-4, seed=6), whole[0], tokens=tokens)
    with pytest.raises(MinidsError, match="config.sliding_window"):
        train(THREE_KINDS.replace(window_size=16), SETTINGS, whole[0], tokens=tokens)


def test_a_run_whose_settings_have_other_names_is_refused(tokens, whole, tmp_path):
    """As from an earlier version, which called one of them something else."""
    shutil.copytree(whole[0], tmp_path / "run")
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    description["settings"]["clip"] = description["settings"].pop("max_grad_norm")
    (tmp_path / "run" / "run.json").write_text(json.dumps(description))
    message = r"another version of minids.*other names \(clip, max_grad_norm\).*start afresh"
    with pytest.raises(MinidsError, match=message):
        train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens)
    assert newest(tmp_path / "run").name == "step-000007"


def test_the_device_is_the_callers_choice(tokens, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "device", lambda: pytest.fail("not asked for"))
    log = train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens, device="cpu")
    assert losses(log) == losses(whole[1])


def test_foreign_folder_is_left_alone(tokens, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(MinidsError, match="holds no training run"):
            train(THREE_KINDS, SETTINGS, tmp_path, resume=resume, tokens=tokens)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(MinidsError, match="cannot use the folder"):
        train(THREE_KINDS, SETTINGS, tmp_path / "thesis.txt", tokens=tokens)


def test_a_folder_that_cannot_be_used_is_found_before_the_text_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("minids.pretrain.train.streams", lambda settings: pytest.fail("read"))
    with pytest.raises(MinidsError, match="cannot use the folder"):
        train(THREE_KINDS, SETTINGS, tmp_path / "file")


@pytest.mark.slow
def test_full_disk_keeps_the_checkpoint_before(tokens, tmp_path, monkeypatch, whole):
    out = tmp_path / "run"
    real = run_folder.save_file

    def full(state, path):
        if run_folder.newest(out) is not None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(run_folder, "save_file", full)
    with pytest.raises(MinidsError, match="No space left on device"):
        train(THREE_KINDS, SETTINGS, out, tokens=tokens)
    assert [p.name for p in out.glob("*step*")] == ["step-000003"]
    monkeypatch.undo()
    assert losses(train(THREE_KINDS, SETTINGS, out, tokens=tokens)) == losses(whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["optimizer.safetensors", "model.safetensors", "config.json"])
def test_truncated_checkpoint_is_refused(tokens, tmp_path, file):
    with pytest.raises(Killed):
        train(THREE_KINDS, SETTINGS, tmp_path / "run", on_step=kill_at(4), tokens=tokens)
    path = tmp_path / "run" / "step-000003" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MinidsError, match=file):
        train(THREE_KINDS, SETTINGS, tmp_path / "run", tokens=tokens)


def test_impossible_settings_are_refused(tokens, tmp_path):
    bad = [(THREE_KINDS.replace(vocab_size=500), SETTINGS, "token ids from 0 to 499"),
           (THREE_KINDS, dataclasses.replace(SETTINGS, seq_len=65), "context of 64"),
           (THREE_KINDS.replace(max_seq_len=512), dataclasses.replace(SETTINGS, seq_len=100),
            "three sequences")]
    for config, settings, message in bad:
        with pytest.raises(MinidsError, match=message):
            train(config, settings, tmp_path / "run", tokens=tokens)
    assert not (tmp_path / "run").exists()
    with pytest.raises(MinidsError, match="steps: expected at least 1"):
        TrainConfig(steps=0)
    with pytest.raises(MinidsError, match="nano or mini"):
        TrainConfig.preset("flash")


def test_a_loss_that_is_no_number_stops_the_run(tokens, tmp_path):
    with pytest.raises(MinidsError, match="expected finite numbers"):
        train(THREE_KINDS, dataclasses.replace(SETTINGS, lr=1e30, warmup=0), tmp_path / "run",
              tokens=tokens)
    assert newest(tmp_path / "run") is None or newest(tmp_path / "run").name != "step-000007"
