"""Distillation: losses against exact sums, cached states against whole teachers, runs that resume,
means of weights."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import Killed, kill_at, without_time
from tiny import NARROW, SPEAKER
from twin import lively

from minids import MinidsError, Model, generate, load, save
from minids.data import tasks
from minids.data.tokenizer import Tokenizer
from minids.inference import answers
from minids.posttrain.distill import (
    DistillConfig,
    add_gradients,
    average,
    distill,
    divergence,
    losses,
    noise,
    token_loss,
    write_texts,
)
from minids.posttrain.teachers import Teachers, Texts
from minids.pretrain.run_folder import newest, read_log
from minids.system import distributed

FAMILIES = ("mathematics", "knowledge")
SETTINGS = DistillConfig(steps=4, families=FAMILIES, modes=("non-think",), difficulties=(1,),
                         batch=4, eval_problems=0,
                         save_every=2, warmup=1, seed=3, format="fp32")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(answers.LIMITS, "non-think", 6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student and its two teachers, optimiser_stepants of one base model."""
    path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    base = Model(NARROW)
    for i, name in enumerate(("student", *FAMILIES)):
        torch.manual_seed(i)
        model = Model(NARROW)
        model.load_state_dict({n: t for n, t in base.state_dict().items() if n.endswith("tid2eid")},
                              strict=False)
        torch.nn.init.normal_(model.head.weight, std=0.3)
        save(model, path / name, format="fp32", tokenizer=Tokenizer.load())
    return path


def teachers(folders):
    return {family: folders / family for family in FAMILIES}


# ---- losses ----

def logits(n, vocab, seed=0):
    torch.manual_seed(seed)
    a, b = (torch.randn(n, vocab, dtype=torch.float64) for _ in range(2))
    return a, 1.5 * b


def test_the_whole_vocabulary_is_summed():
    a, b = logits(3, 7)
    p, q = a.softmax(-1), b.softmax(-1)
    for n in range(3):
        exact = sum(float(p[n, v]) * (float(p[n, v].log()) - float(q[n, v].log()))
                    for v in range(7))
        assert float(divergence(a, b)[n]) == pytest.approx(exact, rel=1e-12)
    assert (divergence(a, b) > 0.1).all() and divergence(a, a).abs().max() < 1e-15
    token = torch.tensor([0, 3, 6])
    assert torch.equal(losses(a, b, token, "on-policy"), divergence(a, b))
    assert torch.equal(losses(a, b, token, "off-policy"), divergence(b, a))
    assert (divergence(a, b) - divergence(b, a)).abs().max() > 0.01
    torch.testing.assert_close(losses(a, b, token, "sft"), -p[range(3), token].log())


def test_one_token_has_the_right_gradient_on_average_and_the_noise_that_is_said():
    """Over all tokens, weighted by its probability: the mean of the gradients, and their
    variance."""
    a, b = logits(1, 6)
    a.requires_grad_()
    p = a.detach().softmax(-1)[0]
    (exact,) = torch.autograd.grad(divergence(a, b).sum(), a)
    each = torch.stack([torch.autograd.grad(token_loss(a, b, torch.tensor([x])).sum(), a)[0][0]
                        for x in range(6)])
    torch.testing.assert_close(p @ each, exact[0])
    variance = sum(p[x] * (each[x] - exact[0]).square().sum() for x in range(6))
    signal, spread = noise(a.detach(), b)
    torch.testing.assert_close(signal[0], exact.square().sum())
    torch.testing.assert_close(spread[0], variance)


# ---- teachers ----

@pytest.mark.slow
@pytest.mark.parametrize("lean", [False, True])
def test_cached_states_and_the_head_are_the_teacher(folders, tmp_path, lean):
    school = Teachers(teachers(folders), tmp_path / "cache" if lean else None)
    torch.manual_seed(1)
    prompts = [torch.randint(7, 2048, (n,)).tolist() for n in (3, 9, 5)]
    texts = Texts.of(prompts, [torch.randint(7, 2048, (n,)).tolist() for n in (6, 2, 1)])
    for family in FAMILIES:
        school.read(family, texts)
    for family in FAMILIES:
        whole = load(folders / family)
        with torch.no_grad():
            direct = whole(texts.ids[:, :-1])
            expected = whole.logits(whole.features(texts.ids[:, :-1])[texts.reply][None])[0]
        # rounds by where memory lies
        torch.testing.assert_close(school.logits(family), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(expected, direct[texts.reply], atol=1e-5, rtol=1e-5)
    assert len(expected) == 6 + 2 + 1
    message = "the teacher of knowledge has 2048 tokens, the student 60"
    with pytest.raises(MinidsError, match=message):
        school.check("knowledge", 60)


def test_replies_are_what_counts():
    texts = Texts.of([[5, 6, 7], [8]], [[9, 1], [3, 4, 5, 1]])
    assert texts.ids.tolist() == [[5, 6, 7, 9, 1], [8, 3, 4, 5, 1]]
    taught = [[texts.ids[b, t + 1].item() for t in range(4) if texts.reply[b, t]] for b in (0, 1)]
    assert taught == [[9, 1], [3, 4, 5, 1]]


@pytest.mark.slow
def test_the_student_comes_to_equal_its_teacher(tmp_path):
    """On the student's own texts, the KL falls below a tenth where student and teacher can be
    equal."""
    config = SPEAKER.replace(n_layers=1, compress_ratios=(4, 0), n_hash_layers=0,
                             n_routed_experts=1, n_activated_experts=1,
                             hc_mult=2, vocab_size=8)
    teacher, student = lively(config, 1), lively(config, 1)
    with torch.no_grad():
        for p in (p for p in student.parameters() if p.ndim == 2):
            p.add_(0.2 * p.std() * torch.randn_like(p))
    save(teacher, tmp_path / "teacher", format="fp32")
    school = Teachers({"mathematics": tmp_path / "teacher"})
    settings = DistillConfig(families=("mathematics",), mtp_weight=0.0)
    optimiser, kls = torch.optim.Adam(student.parameters(), lr=5e-3), []
    for step in range(100):
        prompts = torch.randint(3, 8, (32, 1)).tolist()
        texts = Texts.of(prompts, generate(student, prompts, 4, seed=step, stop=()))
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 100)
        kls.append(add_gradients(student.train(), school, {"mathematics": texts}, settings)["kl"])
        optimiser.step()
        optimiser.zero_grad()
    assert kls[0] > 0.1 and sum(kls[-5:]) / 5 < kls[0] / 10, kls


def test_domains_count_by_their_weights(folders):
    """Gradients are linear in the weights, and each family's mean counts, however long its texts
    are."""
    school, tokenizer = Teachers(teachers(folders)), Tokenizer.load()
    model = load(folders / "student").train()
    problems = [SETTINGS.problem("train", i) for i in range(6)]
    texts = write_texts(model, school, problems, "non-think", SETTINGS, tokenizer, seed=0)
    assert {family: {p.family for p in part.problems}
            for family, part in texts.items()} == {f: {f} for f in FAMILIES}

    def gradient(weights):
        model.zero_grad()
        record = add_gradients(model, school, texts, dataclasses.replace(SETTINGS, weights=weights))
        return model.head.weight.grad.clone(), record

    (first, a), (second, b), (both, c) = (gradient(w) for w in ((1, 0), (0, 1), (3, 1)))
    torch.testing.assert_close(both, 0.75 * first + 0.25 * second, atol=1e-7, rtol=1e-4)
    assert c["kl"] == pytest.approx(0.75 * a["kl"] + 0.25 * b["kl"])
    assert c["kl_knowledge"] == b["kl"]


def test_the_mtp_block_alone_learns_from_its_loss(folders):
    school, model = Teachers(teachers(folders)), load(folders / "student").train()
    texts = write_texts(model, school, [SETTINGS.problem("train", i) for i in range(4)],
                        "non-think", SETTINGS, Tokenizer.load(), 0)

    def gradients(mtp_weight):
        model.zero_grad()
        record = add_gradients(model, school, texts,
                               dataclasses.replace(SETTINGS, mtp_weight=mtp_weight))
        return {name: p.grad.clone() for name, p in model.named_parameters()
                if p.grad is not None}, record

    (without, record), (trained, mtp_record) = gradients(0.0), gradients(0.5)
    assert "mtp_loss" not in record and mtp_record["mtp_loss"] > 0
    assert all(torch.equal(trained[name], g) for name, g in without.items())
    assert set(trained) > set(without)
    assert all(name.startswith("mtp.") for name in set(trained) - set(without))
    assert any(trained[name].abs().max() > 0 for name in set(trained) - set(without))


def test_families_take_turns_as_often_as_they_weigh():
    settings = dataclasses.replace(SETTINGS, families=tasks.FAMILIES, weights=(3, 1, 1, 1),
                                   batch=12, difficulties=(1, 2))
    for step in range(3):
        counts = Counter((p.family, p.difficulty)
                        for p in (settings.problem("train", i) for i in settings.numbers(step, 12)))
        assert counts == {(family, d): 3 if family == "mathematics" else 1
                         for family in tasks.FAMILIES for d in (1, 2)}
    alike = dataclasses.replace(settings, weights=(), batch=6, difficulties=(1, 2, 3))
    problems = [alike.problem("train", i) for i in range(18)]
    assert [p.family for p in problems[:6]] == [*tasks.FAMILIES, *tasks.FAMILIES[:2]]
    assert {p.difficulty for p in problems if p.family == "knowledge"} == {1, 2, 3}


# ---- runs ----

@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(answers.LIMITS, "non-think", 6)
        return out, distill(folders / "student", teachers(folders), SETTINGS, out)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(folders, tmp_path, whole):
    with pytest.raises(Killed):
        distill(folders / "student", teachers(folders), SETTINGS, tmp_path / "run",
                on_step=kill_at(3))
    log = distill(folders / "student", teachers(folders), SETTINGS, tmp_path / "run")
    assert without_time(log) == without_time(whole[1]) and [r["step"] for r in log] == [1, 2, 3, 4]
    a, b = (load(newest(p)).state_dict() for p in (tmp_path / "run", whole[0]))
    assert all(torch.equal(a[name], b[name]) for name in b)
    with pytest.raises(MinidsError, match="other settings .teachers.mathematics"):
        distill(folders / "student", dict.fromkeys(FAMILIES, folders / "knowledge"), SETTINGS,
                tmp_path / "run")


def test_the_device_is_the_callers_choice(folders, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(distributed, "device", lambda: pytest.fail("not asked for"))
    log = distill(folders / "student", teachers(folders), SETTINGS, tmp_path / "run", device="cpu")
    assert without_time(log) == without_time(whole[1])


@pytest.mark.slow
def test_lean_computes_the_same(folders, tmp_path, whole):
    log = distill(folders / "student", teachers(folders), dataclasses.replace(SETTINGS, lean=True),
                  tmp_path / "run")
    assert without_time(log) == without_time(whole[1]) and not (tmp_path / "run" / "cache").exists()


def test_a_refused_folder_stays_as_it_is(folders, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(MinidsError, match="holds no training run"):
        distill(folders / "student", teachers(folders), dataclasses.replace(SETTINGS, lean=True),
                tmp_path)
    assert (tmp_path / "cache" / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["token", "off-policy", "sft"])
def test_other_methods_learn_from_what_they_should(folders, tmp_path, whole, method):
    settings = dataclasses.replace(SETTINGS, steps=2, method=method)
    log = distill(folders / "student", {} if method == "sft" else teachers(folders), settings,
                  tmp_path / "run")
    assert [r["step"] for r in log] == [1, 2]
    assert ("kl" in log[0]) == ("accuracy" in log[0]) == (method != "sft")
    # the same texts and the same KL as with the whole vocabulary, before the first step
    if method == "token":
        assert log[0]["kl"] == whole[1][0]["kl"] and log[0]["loss"] != whole[1][0]["loss"]
        assert log[0]["noise"] > 0 and log[0]["grad_norm"] != whole[1][0]["grad_norm"]
    if method == "off-policy":
        assert log[0]["kl"] != whole[1][0]["kl"]
    if method == "sft":
        model = load(folders / "student")
        problems = [settings.problem("train", i) for i in settings.numbers(0, 4)]
        texts = write_texts(model, None, problems, "non-think", settings, Tokenizer.load(), 0)
        expected = 0
        for part in texts.values():
            with torch.no_grad():
                at, y = model(part.ids[:, :-1])[part.reply], part.ids[:, 1:][part.reply]
            expected += F.cross_entropy(at, y).item() / 2
            assert all(tasks.verify(p, Tokenizer.load().decode(r[:-1]))
                       for p, r in zip(part.problems, part.replies))
        assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_average_is_the_mean_of_the_weights(folders, tmp_path):
    settings = dataclasses.replace(SETTINGS, method="average", eval_problems=1)
    log = distill(folders / "student", teachers(folders), settings, tmp_path / "run")
    assert [(r["step"], r["family"]) for r in log] == [(0, f) for f in FAMILIES]
    again = distill(folders / "student", teachers(folders), settings, tmp_path / "run")
    assert again == log == read_log(tmp_path / "run")
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["settings"]["method"] == "average"
    mean = load(tmp_path / "run" / "model").state_dict()
    parts = [load(folders / f).state_dict() for f in FAMILIES]
    for name, t in mean.items():
        if name.endswith("tid2eid"):
            assert torch.equal(t, parts[0][name]) and torch.equal(t, parts[1][name])
        else:
            assert torch.equal(t, (parts[0][name] + parts[1][name]) / 2)
    torch.manual_seed(9)
    with pytest.raises(MinidsError, match="different layers.0.ffn.gate.tid2eid"):
        average([Model(NARROW), Model(NARROW)])
    with pytest.raises(MinidsError, match="several configurations"):
        average([Model(NARROW), Model(NARROW.replace(n_routed_experts=2))])


def test_bad_settings_are_refused(folders, tmp_path):
    for changes, message in (({"method": "magic"}, "method: expected on-policy"),
                             ({"weights": (1,)}, "weights: expected one"),
                             ({"batch": 1}, "a batch of at least 2"),
                             ({"mtp_weight": -1.0}, "an mtp_weight of at least 0")):
        with pytest.raises(MinidsError, match=message):
            dataclasses.replace(SETTINGS, **changes)
    message = "teachers: expected one for each of mathematics, knowledge; found mathematics"
    with pytest.raises(MinidsError, match=message):
        distill(folders / "student", {"mathematics": folders / "mathematics"}, SETTINGS,
                tmp_path / "run")
    torch.manual_seed(0)
    save(Model(NARROW.replace(vocab_size=3000)), tmp_path / "wide", format="fp32")
    message = "the teacher of knowledge has 3000 tokens, the student 2048"
    with pytest.raises(MinidsError, match=message):
        distill(folders / "student", teachers(folders) | {"knowledge": tmp_path / "wide"}, SETTINGS,
                tmp_path / "run")
    assert not (tmp_path / "run").exists()
