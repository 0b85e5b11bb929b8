"""All that minids does with a model, on a pretended accelerator: run by `test_devices.py`.

Tests run twice: on a device that has all of torch's number types, and on one that lacks whatever
an accelerator lacks: `devices.has_all_types` decides what is computed otherwise. Expected is what
the CPU gives.
"""

import copy
import dataclasses
import functools

import numpy as np
import pretended
import pytest
import torch
from tiny import NARROW, ROUNDED, SPEAKER

from minids import Model, cli, generate, load, numerics, plain, save
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.inference import answers, evaluate
from minids.inference.block_drafts import speculate_blocks
from minids.inference.speculate import speculate
from minids.learn import trial
from minids.learn.doctor import doctor
from minids.model import kernels
from minids.posttrain import loop
from minids.posttrain.distill import METHODS, DistillConfig, add_gradients, distill, write_texts
from minids.posttrain.grpo import GRPOConfig, advantages, grpo, update_policy
from minids.posttrain.loop import optimiser_step
from minids.posttrain.rollouts import rollouts
from minids.posttrain.sft import SFTConfig, sft
from minids.posttrain.teachers import Teachers
from minids.pretrain.losses import stream_loss
from minids.pretrain.optim import make_optimiser
from minids.pretrain.qat import rounded_copy, step
from minids.pretrain.settings import Stage, TrainConfig
from minids.pretrain.train import train
from minids.recipes import lifecycle as recipe
from minids.recipes.lifecycle import Plan, lifecycle
from minids.system import devices, distributed, paths
from minids.weights.checkpoint import Checkpoint
from minids.weights.digest import digest
from minids.weights.dspark import load_dspark
from minids.weights.one_layer import random_input, read_layer
from minids.weights.rounding import released, serving
from minids.weights.streamed import report, streamed

SAMPLE = paths.DATA / "v4_sample"
FAMILIES = ("mathematics", "knowledge")
# as ROUNDED, for any text
LEARNER = ROUNDED.replace(vocab_size=2048, hc_sinkhorn_iters=2, max_seq_len=128)


@pytest.fixture(scope="module", params=("all", "least"))
def device(request):
    device = pretended.start()
    with pretended.rules(request.param):
        yield device


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Replies are short, for the models are untrained; and so is what is replayed."""
    for mode in answers.LIMITS:
        monkeypatch.setitem(answers.LIMITS, mode, 5)
    monkeypatch.setattr(loop, "REPLAY_TOKENS", 20_000)
    yield
    loop.replayed_corpus.cache_clear()


def lively(config, seed=0) -> Model:
    """A model whose routing and texts depend on what it reads."""
    torch.manual_seed(seed)
    model = Model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)
    torch.nn.init.normal_(model.head.weight, std=0.25)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model that can read conversations."""
    save(lively(NARROW), path := tmp_path_factory.mktemp("base") / "model", format="fp32",
         tokenizer=Tokenizer.load())
    return path


def is_on(model, device) -> bool:
    return {t.device for t in model.state_dict().values()} == {torch.device(device)}


def same(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=tolerance,
                               rtol=tolerance)


def same_numbers(log, expected, tolerance=1e-3):
    """The records of two logs, in order."""
    assert len(log) == len(expected)
    for record, other in zip(log, expected):
        assert record.keys() == other.keys()
        for key in record.keys() - {"seconds"}:
            value = other[key]
            assert record[key] == (pytest.approx(value, abs=tolerance, rel=tolerance)
                                   if isinstance(value, float) else value), key


# ---- forward, decode, drafts ----

def test_what_the_device_has():
    device = pretended.start()
    with pretended.rules("all"):
        assert devices.has_all_types(device)
    for rules in ("apple", "no complex", "least"):
        with pretended.rules(rules):
            assert not devices.has_all_types(device)


@pytest.mark.parametrize("kind", [Model, plain.Model])
def test_logits_and_gradients(device, kind):
    usual = kind(SPEAKER)
    usual.load_state_dict(lively(SPEAKER).state_dict())
    there = copy.deepcopy(usual).to(device)
    assert is_on(there, device)
    ids = torch.randint(0, 60, (2, 30))
    for model, x in (usual, ids), (there, ids.to(device)):
        logits = model(x)
        far = model.mtp_logits(model.features(x[:, :-1]), x[:, 1:])
        (logits.square().mean() + far.square().mean()).backward()
    assert logits.device == device
    same(logits, usual(ids))
    for (name, p), q in zip(there.named_parameters(), usual.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            same(p.grad, q.grad)


def test_decoding_and_drafts(device):
    usual = lively(SPEAKER)
    model = copy.deepcopy(usual).to(device)
    prompts = [list(range(5, 15)), [7, 8, 9, 10, 11, 12, 13]]
    for options in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"drafts": 2}):
        options |= {"max_new_tokens": 4, "seed": 1, "stop": ()}
        assert generate(model, prompts, **options) == generate(usual, prompts, **options)
    assert generate(model, torch.tensor([[5, 6]], device=device), 3, temperature=0) \
        == generate(usual, [[5, 6]], 3, temperature=0)
    assert speculate(model, [5, 6, 7], 6, temperature=0.0).ids \
        == generate(usual, [5, 6, 7], 6, temperature=0.0)


def test_a_decode_state(device):
    usual = lively(SPEAKER)
    model = copy.deepcopy(usual).to(device)
    ids = torch.randint(0, 60, (2, 23))
    states = usual.new_state(2, 24), model.new_state(2, 24)
    with torch.no_grad():
        for part in ids.split([7, 1, 5, 4, 1, 5], dim=1):
            same(model(part.to(device), states[1]), usual(part, states[0]))


# ---- training ----

def texts(vocab):
    random = np.random.default_rng(0)
    return {split: (random.zipf(1.2, size) % (vocab // 2)).astype(np.uint16)
            for split, size in {"train": 2000, "valid": 200, "heldout": 200}.items()}


PLANS = {
    "packed, with Muon": dict(optimiser="muon", sequence_balance=1e-3, accumulate=2),
    "stages": dict(optimiser="muon", steps=3, stages=(
        Stage(1, 16, 2, "dense"), Stage(1, 32, 2, "warmup"), Stage(1, 32, 2))),
    "AdamW, rows of one text": dict(optimiser="adamw", packed=False),
    "anticipated routing": dict(optimiser="muon", anticipate=1),
}


@pytest.mark.parametrize("plan", [*list(PLANS)[:2], *(
    pytest.param(plan, marks=pytest.mark.slow) for plan in list(PLANS)[2:])])
def test_training(device, plan, tmp_path):
    options = dict(steps=2, batch=2, seq_len=32, warmup=1, eval_every=9, save_every=2, format="v4")
    settings, tokens = TrainConfig(**options | PLANS[plan]), texts(LEARNER.vocab_size)
    expected = train(LEARNER, settings, tmp_path / "usual", tokens=tokens)
    log = train(LEARNER, settings, tmp_path / "there", tokens=tokens, device=device)
    same_numbers(log, expected)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on(device, tmp_path):
    settings = TrainConfig(steps=3, batch=1, seq_len=32, warmup=1, save_every=1, optimiser="muon",
                           format="fp32")
    tokens = texts(LEARNER.vocab_size)

    def cut(record):
        if record["step"] == 2:
            raise KeyboardInterrupt

    whole = train(LEARNER, settings, tmp_path / "whole", tokens=tokens, device=device)
    with pytest.raises(KeyboardInterrupt):
        train(LEARNER, settings, tmp_path / "cut", tokens=tokens, device=device, on_step=cut)
    same_numbers(train(LEARNER, settings, tmp_path / "cut", tokens=tokens, device=device),
                 whole, 1e-6)


@pytest.mark.slow
def test_bfloat16(device, tmp_path):
    settings = TrainConfig(steps=2, batch=2, seq_len=32, warmup=1, optimiser="muon",
                           dtype="bfloat16")
    log = train(LEARNER, settings, tmp_path / "run", device=device,
                tokens=texts(LEARNER.vocab_size))
    assert all(np.isfinite(record["loss"]) for record in log if "loss" in record)
    model = load(tmp_path / "run" / "model", device, torch.bfloat16)
    assert len(generate(model, [5, 6, 7], 4, seed=0, stop=())) == 4


def test_quantisation_aware_training(device):
    settings = TrainConfig(steps=2, batch=2, seq_len=32, warmup=1, optimiser="muon")
    usual = lively(LEARNER).train()
    there, ids, logs = copy.deepcopy(usual).to(device), torch.randint(0, 999, (2, 33)), []
    for masters in usual, there:
        rounded, optimiser = rounded_copy(masters), make_optimiser(masters, settings)
        x = ids.to(masters.embed.weight.device)
        logs.append([step(rounded, masters, optimiser, x, settings, 0)])
    same_numbers(logs[1], logs[0], 1e-2)        # a number near a tie may be rounded otherwise
    for kind in numerics.KINDS:
        x = torch.randn(64, 256)
        assert torch.equal(numerics.fake_quant(x.to(device), kind).cpu(),
                           numerics.fake_quant(x, kind))


# ---- post-training ----

COMMON = dict(steps=1, difficulties=(1,), modes=("non-think",), eval_problems=1, warmup=1,
              format="fp32")


def test_supervised_fine_tuning(device, base, tmp_path):
    settings = SFTConfig(batch=3, seq_len=192, replay=1, **COMMON | {"steps": 2})
    log, expected = (sft(base, settings, tmp_path / str(place), device=place)
                     for place in (device, "cpu"))
    same_numbers(log, expected)


@pytest.mark.parametrize("options", [
    {"beta": 0.05, "top_p": 0.9}, pytest.param({"beta": 0.0}, marks=pytest.mark.slow)], ids=str)
def test_grpo(device, base, tmp_path, options):
    settings = GRPOConfig(num_prompts=2, num_generations=2, steps_per_generation=2, pool_size=20,
                          **COMMON | options)
    # Where all rewards are equal, the KL's gradient is rounding, and the optimiser scales it up. In
    # torch policy and reference round alike.
    with kernels.switched_off(*kernels.NAMES):
        log, expected = (grpo(base, settings, tmp_path / str(place), device=place)
                         for place in (device, "cpu"))
    same_numbers(log, expected)


@pytest.mark.parametrize("options", [
    {"lean": True}, *(pytest.param({"method": method}, marks=pytest.mark.slow)
                      for method in METHODS)], ids=str)
def test_distillation(device, base, tmp_path, options):
    settings = DistillConfig(families=FAMILIES, batch=2, **COMMON | options)
    teachers = {} if settings.method == "sft" else dict.fromkeys(FAMILIES, base)
    log, expected = (distill(base, teachers, settings, tmp_path / str(place), device=place)
                     for place in (device, "cpu"))
    same_numbers(log, expected)


@pytest.mark.slow
def test_a_life(device, tmp_path, base, monkeypatch):
    """All stages, by one call that names the device."""
    monkeypatch.setattr(recipe, "report", lambda *args, **options: evaluate.report(
        *args, **options | {"everything": False}))
    common = COMMON | {"eval_problems": 0, "modes": ("think-high",)}
    settings = DistillConfig(families=("knowledge",), batch=1, **common)
    plan = Plan(NARROW, TrainConfig(steps=1), SFTConfig(batch=2, **common),
                GRPOConfig(num_prompts=1, num_generations=2, steps_per_generation=1, pool_size=4,
                           **common),
                dataclasses.replace(settings, method="sft"), settings,
                problems=1, samples=2, modes=("think-high",))
    life = lifecycle(plan, tmp_path / "life", base, device=device)
    assert life["models"]["distilled"]["problems"]


@pytest.mark.slow
def test_evaluation(device, base, monkeypatch):
    monkeypatch.setattr(evaluate, "exam", lambda *_, seed=0: exams[:2])
    monkeypatch.setattr(evaluate, "recall", lambda *_, seed=0: exams[2:4])
    monkeypatch.setattr(evaluate, "bits_per_byte", lambda model, tokenizer: {
        "text": stream_loss(model, stream, 64, tokenizer)[1]})
    exams = evaluate_exam(4, words=60)
    stream = mixture.stream("heldout", 300, Tokenizer.load(), ("text",))[:300]
    cards = [evaluate.report(load(base, place), Tokenizer.load(), ("knowledge",), count=1,
                             samples=1) for place in ("cpu", device)]
    assert cards[1]["bits_per_byte"]["text"] == pytest.approx(cards[0]["bits_per_byte"]["text"])
    assert cards[1]["drafts"]["expected"] == pytest.approx(cards[0]["drafts"]["expected"], abs=1e-3)
    assert cards[1]["problems"] == cards[0]["problems"]


evaluate_exam = evaluate.exam


# ---- files ----

DRAFTS = paths.DATA / "checkpoints" / "nano-dspark"      # a module for nano, not a model
SHIPPED = {*paths.DATA.glob("v4_sample*"), *paths.DATA.glob("checkpoints/*")} - {DRAFTS}


@pytest.mark.parametrize("folder", [
    pytest.param(path, id=path.name, marks=pytest.mark.slow if "mini" in path.name else ())
    for path in sorted(SHIPPED)])
def test_shipped_checkpoints(device, folder):
    model, usual = load(folder, device), load(folder)
    assert is_on(model, device) and digest(model) == digest(usual)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        same(model(ids.to(device)), usual(ids), 1e-3)


def test_a_draft_module(device):
    written = []
    for place in device, "cpu":
        model = load(DRAFTS.parent / "nano", place)
        dspark = load_dspark(DRAFTS, model)
        assert is_on(dspark, torch.device(place))
        written.append(speculate_blocks(model, dspark, [5, 6, 7], 8, temperature=0.0, stop=()).ids)
    assert written[0] == written[1]


@pytest.mark.parametrize("format", ["fp32", "bf16", "v4"])
def test_saving(device, tmp_path, format):
    usual = lively(LEARNER)
    for place in (device, "cpu"):
        save(copy.deepcopy(usual).to(place), tmp_path / str(place), format=format)
    assert digest(load(tmp_path / str(device))) == digest(load(tmp_path / "cpu"))


def test_parts_of_a_checkpoint(device):
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        same(streamed(SAMPLE, device)(ids.to(device)), load(SAMPLE)(ids))
    text, usual = (report(streamed(SAMPLE, place), ids[0].tolist()) for place in (device, "cpu"))
    assert text["nats"] == pytest.approx(usual["nats"], abs=1e-4) and text["load"] == usual["load"]
    with Checkpoint(SAMPLE) as checkpoint, torch.inference_mode():
        for layer in range(checkpoint.config.n_layers):
            X, ids = random_input(checkpoint.config, 40, device)
            same(read_layer(checkpoint, layer, device)(X, ids),
                 read_layer(checkpoint, layer)(X.cpu(), ids.cpu()))
        name = "layers.0.attn.wq_a.weight"
        assert torch.equal(checkpoint.read(name, device=device).cpu(), checkpoint.read(name))


def test_as_it_is_served(device):
    usual = lively(LEARNER)
    model, ids = copy.deepcopy(usual).to(device), torch.randint(0, 999, (2, 40))
    for one in usual, model:
        released(one)
    with serving(usual), serving(model), torch.no_grad():
        same(model(ids.to(device)), usual(ids))


# ---- commands, lessons, my_v4, the doctor ----

def test_a_command_uses_it(device, capsys):
    command = ["generate", "--prompt", "In the", "--max-new-tokens", "3", "--seed", "0"]
    printed = []
    for flags in [], ["--device", "cpu"]:
        with pretended.made() as tensors:
            assert cli.main([*command, *flags]) == 0
        assert bool(tensors.count) == (not flags)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].startswith("In the")


def test_the_doctor_computes_on_it(device, capsys):
    doctor()
    out = capsys.readouterr().out
    assert f"device       {device}" in out and "does not compute as the CPU does" not in out


def test_my_v4_trains_on_it(device, capsys, monkeypatch):
    for name, value in {"BOOKS": 1, "BATCH": 1, "LENGTH": 16}.items():
        monkeypatch.setattr(trial, name, value)
    monkeypatch.setattr(trial.Config, "nano", lambda: LEARNER)
    monkeypatch.setattr(trial, "write", functools.partial(trial.write, tokens=2))
    losses = trial.train(plain, seconds=0.01, device=device)
    assert 5 < losses[0] < 9 and "A text that it writes" in capsys.readouterr().out


def test_what_a_lesson_makes_is_on_the_cpu(base, tmp_path):
    """Whatever accelerator there is: lessons 10 and 13 call these functions without a device."""
    device = pretended.start()
    assert distributed.device() == device and distributed.device_or_cpu() == torch.device("cpu")
    with pretended.made() as tensors:
        settings = TrainConfig(steps=1, batch=1, seq_len=16, optimiser="muon")
        train(LEARNER, settings, tmp_path / "run", tokens=texts(LEARNER.vocab_size))
        common = COMMON | {"eval_problems": 0}
        sft(base, SFTConfig(batch=2, seq_len=192, **common), tmp_path / "sft")
        grpo(base, GRPOConfig(num_prompts=1, num_generations=2, steps_per_generation=1,
                              pool_size=4, **common), tmp_path / "grpo")
        distill(base, dict.fromkeys(FAMILIES, base),
                DistillConfig(families=FAMILIES, batch=2, **common), tmp_path / "distill")
        assert is_on(Teachers({"knowledge": base}).model("knowledge"), "cpu")
    assert tensors.count == 0


@pytest.mark.parametrize("teachers_too", [True, False])
def test_lesson_13_with_a_student_on_the_device(device, base, teachers_too):
    """A step of the lesson's: texts, teachers, gradients, update."""
    settings = DistillConfig(families=FAMILIES, batch=4, **COMMON)
    records = []
    for place in ("cpu", device):
        where = {"device": place} if teachers_too else {}
        school = Teachers(dict.fromkeys(FAMILIES, base), **where)
        model = load(base, place).train()
        torch.nn.init.zeros_(model.head.weight)
        problems = [settings.problem("train", i) for i in range(4)]
        parts = write_texts(model, school, problems, "non-think", settings, Tokenizer.load(), 0)
        record = add_gradients(model, school, parts, settings)
        optimiser = make_optimiser(model, settings)
        records.append(record | optimiser_step(model, optimiser, settings, 0))
    same_numbers(records[1:], records[:1])


def test_lesson_12_with_a_policy_on_the_device(device, base):
    """A step of the lesson's: rollouts from a seed, rewards, an update beside a reference."""
    settings = GRPOConfig(num_prompts=2, num_generations=2, beta=0.05, steps_per_generation=1,
                          **COMMON)
    stats, replies = [], []
    for place in ("cpu", device):
        policy, reference = (load(base, place).train() for _ in range(2))
        r = rollouts(policy, [[5, 6, 7]] * 2 + [[8, 9, 10]] * 2, 6, top_p=0.9, record=True,
                     generator=torch.Generator().manual_seed(3))
        assert {t.device for t in (r.ids, r.logprobs, r.allowed, *r.experts)} \
            == {torch.device(place)}
        replies.append(r.replies)
        scores = advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), settings)
        stats.append(update_policy(policy, reference, make_optimiser(policy, settings), r, scores,
                                   settings, 0))
    assert replies[0] == replies[1]
    same_numbers(stats[1:], stats[:1])
