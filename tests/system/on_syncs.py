"""How often loops wait for a device, and that their numbers are the CPU's. Run by `test_syncs.py`.

Each case is counted in a model of two layers and in one of four: a wait in every layer would show.
"""

import copy

import numpy as np
import pytest
import torch
from tiny import TINY

from minids import Model
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.generate import generate, stream
from minids.inference.speculate import speculate
from minids.model import moe
from minids.model.packing import Packing
from minids.model.passes import Options
from minids.numerics import KINDS, fake_quant
from minids.posttrain import distill, rollouts, sft
from minids.posttrain.grpo import GRPOConfig, update_policy
from minids.posttrain.loop import optimiser_step
from minids.posttrain.teachers import Teachers, Texts
from minids.pretrain import qat
from minids.pretrain.losses import floats, stream_loss
from minids.pretrain.optim import make_optimiser
from minids.pretrain.settings import Stage, TrainConfig
from minids.pretrain.train import train, train_step
from minids.weights.save import save
from tests import pretended

LAYERS, BOS = (2, 4), 0
WARM_UP = (Stage(1, 40, 4, "warmup"),)
STEPS = {"plain": dict(packed=False), "packed": {}, "without a balance loss": {
    "sequence_balance": 0.0}, "in two parts": dict(accumulate=2, mtp_share=0.5),
    "indexers": dict(stages=WARM_UP)}


@pytest.fixture(scope="module")
def device():
    return pretended.start()


def settings_of(**changes) -> TrainConfig:
    return TrainConfig(**(dict(steps=9, batch=4, seq_len=40, optimiser="muon") | changes))


def new_model(layers: int) -> Model:
    torch.manual_seed(layers)
    ratios = (0, 4, 16, 4)[:layers] + (0,)
    return Model(TINY.replace(n_layers=layers, compress_ratios=ratios, max_seq_len=512))


def texts() -> torch.Tensor:
    """4 x 41 ids; a row has up to four documents."""
    ids = torch.randint(3, 2048, (4, 41), generator=torch.Generator().manual_seed(0))
    ids[0, [9, 11, 30]] = ids[1, [19]] = BOS
    return ids


def waits(prepare) -> list[int]:
    """How often `prepare(model)()` waits, for each number of layers; called once before."""
    found = []
    for layers in LAYERS:
        work = prepare(new_model(layers).to(pretended.start()).train())
        work()
        with pretended.syncs() as count:
            work()
        found.append(count.total)
    return found


# ---- decoding ----

@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (1.0, 1.0), (0.8, 0.9)])
def test_a_decoded_token_is_one_wait(device, temperature, top_p):
    def prepare(model):
        tokens = stream(model, [[0, 5, 9], [0, 5]], 40, temperature, top_p, seed=0, stop=())
        for _ in range(3):
            next(tokens)                    # beyond both prompts
        return lambda: [next(tokens) for _ in range(8)]
    assert waits(prepare) == [8, 8]


def test_a_pass_with_a_draft_is_two_waits(device):
    passes = []

    def prepare(model):
        def work():
            passes.append(speculate(model, [0, 5, 9], 20, seed=0, stop=()).passes)
        return work
    few, many = waits(prepare)
    assert few <= 2 * passes[1] and many <= 2 * passes[3]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_token_of_rollouts_is_one_wait(device, top_p):
    def prepare(model):
        return lambda: rollouts.rollouts(model, [[0, 5, 9]] * 4, 8, 1.0, top_p,
                                         torch.Generator().manual_seed(0), record=True)
    assert waits(prepare) == [8, 8]


def test_the_ids_are_those_of_the_cpu(device):
    model = new_model(4)
    there = copy.deepcopy(model).to(device)
    for options in (dict(temperature=0), dict(temperature=0.8, top_p=0.9, seed=1),
                    dict(seed=2, drafts=2)):
        ids = [generate(m, [[0, 5, 9, 7], [0, 5]], 8, stop=(), **options) for m in (model, there)]
        assert ids[0] == ids[1], options
    a, b = (rollouts.rollouts(m, [[0, 5, 9]] * 3 + [[0, 5, 8]] * 2, 6, 0.9, 0.9,
                              torch.Generator().manual_seed(0), record=True)
            for m in (model, there))
    assert a.replies == b.replies and torch.equal(a.allowed, b.allowed.cpu())
    assert all(torch.equal(x, y.cpu()) for x, y in zip(a.experts, b.experts, strict=True))
    assert torch.equal(a.choices(2048), b.choices(2048).cpu())


def test_with_many_experts_each_layer_is_one_wait(device, monkeypatch):
    """Their products are left out where no token goes, so the host needs the choices."""
    monkeypatch.setattr(moe, "ALL_AT_ONCE", 1)
    for layers in LAYERS:
        model, ids = new_model(layers).eval(), texts()
        there = copy.deepcopy(model).to(device)
        for rows in (ids, ids[:1, :1]):
            with torch.no_grad():
                expected, rows = model.features(rows), rows.to(device)
                with pretended.syncs() as count:
                    X = there.features(rows)
            assert count.total == layers
            torch.testing.assert_close(X.cpu(), expected, atol=1e-5, rtol=1e-5)


# ---- training ----

@pytest.mark.parametrize("case", STEPS)
def test_a_training_step_is_one_wait(device, case):
    settings = settings_of(**STEPS[case])

    def prepare(model):
        optimiser, ids = make_optimiser(model, settings), texts().to(device)
        return lambda: train_step(model, optimiser, ids, settings, 5)
    assert waits(prepare) == [1, 1]


def test_a_step_with_rounded_numbers_is_one_wait(device):
    def prepare(model):
        settings = settings_of()
        optimiser, ids, rounded = make_optimiser(model, settings), texts().to(device), \
            qat.rounded_copy(model)
        return lambda: qat.step(rounded, model, optimiser, ids, settings, 5)
    assert waits(prepare) == [1, 1]


def test_a_step_of_a_run_is_one_wait(device, tmp_path):
    """Log, progress bar and Ctrl-C included."""
    settings, seen = settings_of(steps=4, batch=2, accumulate=2, eval_every=9, save_every=9), []
    ids = texts().repeat(2, 1).flatten().numpy()
    with pretended.syncs() as count:
        train(new_model(2).config, settings, tmp_path / "run", device=device,
              tokens=dict.fromkeys(("train", "valid", "heldout"), ids),
              on_step=lambda record: seen.append(count.total))
    assert np.diff(seen)[:2].tolist() == [1, 1]        # the last step also saves a checkpoint


@pytest.mark.parametrize("case", STEPS)
def test_a_training_step_is_that_of_the_cpu(device, case):
    settings, model = settings_of(**STEPS[case]), new_model(4).train()
    there = copy.deepcopy(model).to(device)
    records = [train_step(m, make_optimiser(m, settings), texts().to(m.head.weight.device),
                          settings, 5) for m in (model, there)]
    assert records[0] == pytest.approx(records[1], rel=1e-4, abs=1e-6)
    for (name, p), q in zip(model.named_parameters(), there.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad.cpu(), p.grad, atol=1e-5, rtol=1e-3, msg=name)
    for p, q in zip(model.buffers(), there.buffers()):
        torch.testing.assert_close(q.cpu(), p)


def test_packed_rows_compute_what_they_do_on_the_cpu(device):
    """There are windows that do not exist in more rows, and rows of one document are packed too."""
    model, ids = new_model(4), texts()[:, :-1]
    there = copy.deepcopy(model).to(device)
    for rows in (ids, ids[2:], ids[:1, :12]):
        for options in (dict(), dict(dense=True)):
            with torch.no_grad():
                packed = [m.run(i, options=Options(Packing.of(i, BOS), index=True, **options))
                          for m, i in ((model, rows), (there, rows.to(device)))]
            (X, record), (Y, other) = packed
            torch.testing.assert_close(Y.cpu(), X, atol=1e-5, rtol=1e-5)
            assert len(record.index) <= len(other.index)    # the CPU skips layers without windows
            total, more = (sum(float(loss) for loss, _ in r.index) for r in (record, other))
            assert more == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_the_loss_of_a_stream_is_that_of_the_cpu(device):
    model, ids = new_model(2), texts().flatten().numpy()
    here, there = stream_loss(model, ids, 32)[0], model.to(device)
    with pretended.syncs() as count:
        assert stream_loss(there, ids, 32)[0] == pytest.approx(here, rel=1e-5)
    assert count.total == 1


# ---- post-training ----

def test_a_step_of_sft_is_two_waits(device):
    settings, tokenizer = sft.SFTConfig(steps=9), Tokenizer.load()
    rows = sft.packed_rows([sft.conversation(settings, "train", i) for i in range(4)], 256,
                           tokenizer)

    def prepare(model):
        optimiser = make_optimiser(model, settings)

        def work():
            parts = sft.losses(model, *rows, settings)
            (parts["loss"] + parts["mtp_loss"]).backward()
            floats({name: part.detach() for name, part in parts.items()})
            optimiser_step(model, optimiser, settings, 0)
        return work
    assert waits(prepare) == [2, 2]


def test_a_step_of_a_run_of_sft_is_two_waits(device, tmp_path):
    save(new_model(2), tmp_path / "base", format="fp32", tokenizer=Tokenizer.load())
    settings, seen = sft.SFTConfig(steps=3, batch=2, eval_problems=0), []
    with pretended.syncs() as count:
        sft.sft(tmp_path / "base", settings, tmp_path / "run", device=device,
                on_step=lambda record: seen.append(count.total))
    assert np.diff(seen)[0] == 2            # the last step also saves a checkpoint


@pytest.mark.parametrize("options", [dict(), dict(beta=0.0, top_p=0.9), dict(replay=1)])
def test_an_update_of_grpo_is_a_few_waits(device, options):
    settings = GRPOConfig(steps=9, num_prompts=2, num_generations=4, steps_per_generation=1,
                          **options)
    scores = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5, 0.5, -0.5, -0.5])

    def prepare(model):
        reference = copy.deepcopy(model) if settings.beta else None
        optimiser = make_optimiser(model, settings)
        r = rollouts.rollouts(model, [[0, 5, 9]] * 8, 8, 1.0, settings.top_p,
                              torch.Generator().manual_seed(0), record=True)
        return lambda: update_policy(model, reference, optimiser, r, scores, settings, 0)
    few, many = waits(prepare)
    assert few == many <= 4         # two for the log, one for the prompts of each model


def test_a_step_of_distillation_is_two_waits(device):
    settings = distill.DistillConfig(steps=9, families=("knowledge", "coding"))
    school = Teachers(dict.fromkeys(settings.families, "unread"), device=device)
    school._models = {family: new_model(2).to(device) for family in settings.families}
    of_family = {family: Texts.of([[0, 5, 9], [0, 7]], [[4, 5, 6, 1], [8, 1]])
                 for family in settings.families}

    def prepare(model):
        optimiser = make_optimiser(model, settings)

        def work():
            distill.add_gradients(model, school, of_family, settings)
            optimiser_step(model, optimiser, settings, 0)
        return work
    assert waits(prepare) == [2, 2]


# ---- what is no longer asked at each call is still found ----

def test_ids_out_of_range_are_refused(device):
    model = new_model(2).to(device)
    for bad in (-1, 2048):
        with pytest.raises(MinidsError, match=f"expected 0 to 2047, found {bad}"):
            model(torch.tensor([[5, bad]], device=device))
        with pytest.raises(MinidsError, match=f"expected 0 to 2047, found {bad}"):
            sft.losses(model, torch.tensor([[5, bad]]), torch.ones(1, 2, dtype=torch.bool),
                       sft.SFTConfig())
        with pytest.raises(MinidsError, match="the prompt holds"):
            generate(model, [5, bad])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_keeps_nan_and_makes_it_of_infinity(device, kind, bad):
    x = torch.ones(2, 512)
    x[1, 300] = bad
    rounded = fake_quant(x.to(device), kind).cpu()
    assert rounded[1, 300].isnan() and (rounded[:, :128] == 1).all()


def test_a_step_that_diverged_is_found(device):
    model, settings = new_model(2).to(device).train(), settings_of()
    rounded = qat.rounded_copy(model)
    with torch.no_grad():
        model.layers[0].ffn.experts[0].w1.weight[0, 0] = torch.nan
        rounded.layers[0].ffn.experts[0].w1.weight[0, 0] = torch.nan
    before = model.head.weight.cpu()
    with pytest.raises(MinidsError, match="expected finite numbers"):
        qat.step(rounded, model, make_optimiser(model, settings), texts().to(device), settings, 5)
    assert torch.equal(model.head.weight.cpu(), before)
