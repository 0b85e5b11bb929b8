"""The life cycle: all stages in their order, left alone when they are done, gone on with when they
were stopped."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers import without_time
from tiny import NARROW

from minids import MinidsError, Model, load, save
from minids.data import tasks
from minids.data.tokenizer import Tokenizer
from minids.inference import answers
from minids.posttrain.distill import DistillConfig
from minids.posttrain.grpo import GRPOConfig
from minids.posttrain.sft import SFTConfig
from minids.pretrain.run_folder import newest
from minids.pretrain.settings import TrainConfig
from minids.recipes import lifecycle
from minids.recipes.lifecycle import MODELS, Plan, card
from minids.show import life, style
from minids.weights.digest import digest

FAMILIES = ("mathematics", "knowledge")
COMMON = dict(steps=1, modes=("think-high",), difficulties=(1,), eval_problems=0)
DISTILL = DistillConfig(families=FAMILIES, batch=2, **COMMON)
PLAN = Plan(NARROW, TrainConfig(steps=1), SFTConfig(batch=2, **COMMON),
            GRPOConfig(num_prompts=1, num_generations=2, steps_per_generation=1, pool_size=4,
                       **COMMON),
            dataclasses.replace(DISTILL, method="sft"), DISTILL,
            problems=2, samples=2, modes=("think-high",))


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """A whole life of a tiny model, without pre-training: (folder, report, calls of `train`)."""
    out, calls = tmp_path_factory.mktemp("life") / "out", []

    def pretrain(config, settings, where, device=None):
        calls.append((config, settings))
        torch.manual_seed(0)
        save(Model(config), where / "model", format="fp32", tokenizer=Tokenizer.load())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(answers.LIMITS, "think-high", 4)
        patch.setattr(lifecycle, "train", pretrain)
        patch.setattr(lifecycle, "report", short(lifecycle.report))
        report = lifecycle.lifecycle(PLAN, out)
    return out, report, calls


def short(report):
    return lambda model, tokenizer, **options: report(model, tokenizer,
                                                      **options | {"everything": False})


@pytest.fixture(autouse=True)
def quick(monkeypatch, lived):
    monkeypatch.setitem(answers.LIMITS, "think-high", 4)
    monkeypatch.setattr(lifecycle, "report", short(lifecycle.report))


@pytest.mark.slow
def test_every_stage_begins_where_the_one_before_ended(lived):
    out, report, calls = lived
    assert calls == [(NARROW, PLAN.train)]
    begun = lambda folder: json.loads((out / folder / "run.json").read_text())
    weights = lambda folder: digest(load(out / folder / "model"))
    for family in FAMILIES:
        assert begun(f"sft-{family}")["base"] == weights("base")
        assert begun(f"sft-{family}")["settings"]["families"] == [family]
        assert begun(f"grpo-{family}")["base"] == weights(f"sft-{family}")
    assert begun("mixed")["base"] == weights("base")
    assert begun("distilled")["base"] == weights("mixed")
    specialists = {family: weights(f"grpo-{family}") for family in FAMILIES}
    assert begun("distilled")["teachers"] == begun("average")["teachers"] == specialists
    others = map(weights, ("base", "mixed", "average", "distilled"))
    assert len({*specialists.values(), *others}) == 6


def test_the_report_has_every_model_and_family(lived):
    out, report, _ = lived
    assert report == json.loads((out / "report.json").read_text())
    assert list(report["models"]) == list(MODELS)
    for model in report["models"].values():
        assert [row["family"] for row in model["problems"]] == list(FAMILIES)
    assert set(report["logs"]) == {path.parent.name for path in out.glob("*/log.jsonl")}
    assert len(report["logs"]["distilled"]) == 1
    text = card(report)
    assert all(word in text for word in (*MODELS, *FAMILIES, "pass@1, think-high",
                                         "pass@2, think-high", "mean"))


def test_lives_become_tables_and_figures(lived):
    other = json.loads(json.dumps(lived[1]))
    rows = other["models"]["distilled"]["problems"]
    rows[0]["pass@1"], rows[1]["pass@1"] = [1.0, 0.9, 1.0], [0.5, 0.4, 0.6]
    reports = [other, json.loads(json.dumps(other))]
    reports[1]["models"]["distilled"]["problems"][0]["pass@1"] = [0.0, 0.0, 0.1]
    name, *cells = life.table(reports, models=("distilled",)).splitlines()[1].split("  ")
    assert name == "distilled"
    assert " ".join(cells).split() == "50% ( 0% -100%) 50% (50% - 50%) 50% (25% - 75%)".split()
    for plot in (life.plot_grpo_gains, life.plot_grpo_logs, life.plot_combined):
        assert style.png(plot(reports))
    assert set(life.minutes(other)) == {stage for stage in other["logs"] if stage != "average"}


def test_the_shipped_records_belong_together():
    reports = life.reports("nano")
    assert len(reports) > 1 and len({json.dumps(report) for report in reports}) == len(reports)
    for report in reports + life.reports("mini"):
        assert set(life.shares(report)["distilled"]) == {*tasks.FAMILIES, "mean"}
        assert set(report["models"]) == set(MODELS)
        assert {f"grpo-{family}" for family in tasks.FAMILIES} <= set(report["logs"])


@pytest.mark.slow
def test_what_is_done_is_left_alone_and_what_is_missing_is_made_again(lived, monkeypatch):
    """As after a kill in the last stage; nothing is measured again, for the models come out the
    same."""
    out, report, _ = lived
    monkeypatch.setattr(lifecycle, "train", lambda config, settings, where, device=None: None)
    monkeypatch.setattr(lifecycle, "report", None)
    when = {p: p.stat().st_mtime_ns for p in out.glob("*/step-*/*") if "distilled" not in str(p)}
    shutil.rmtree(newest(out / "distilled"))
    shutil.rmtree(out / "distilled" / "model")
    again = lifecycle.lifecycle(PLAN, out)
    assert {stage: without_time(log) for stage, log in again["logs"].items()} == \
        {stage: without_time(log) for stage, log in report["logs"].items()}
    assert {**again, "logs": None} == {**report, "logs": None}
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/step-*/*")
            if "distilled" not in str(p)} == when
    assert (out / "distilled" / "model").is_dir()


@pytest.mark.slow
def test_post_training_begins_afresh_from_the_same_base(lived, tmp_path):
    """Also where the base stands among the stages that are made again."""
    shutil.copytree(lived[0], tmp_path / "life")
    base = tmp_path / "life" / "base" / "model"
    with pytest.raises(MinidsError, match="another base model or other families"):
        lifecycle.lifecycle(PLAN, tmp_path / "life", base)
    assert newest(tmp_path / "life" / "distilled")
    again = lifecycle.lifecycle(PLAN, tmp_path / "life", base, resume=False)
    assert again["models"] == lived[1]["models"] and again["base"] == str(base)


def test_foreign_folders_and_presets_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(MinidsError, match="holds no life cycle"):
            lifecycle.lifecycle(PLAN, tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(MinidsError, match="no life cycle for 'flash'"):
        Plan.preset("flash")
    plan = Plan.preset("nano", seed=3)
    assert plan.distill.families == tasks.FAMILIES
    assert plan.train.seed == plan.grpo.seed == plan.distill.seed == 3
