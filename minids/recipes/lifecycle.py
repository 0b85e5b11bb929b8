"""The whole life of a model in one command: pre-training, specialists, distillation, and the report card.

Report sections 4 and 5, in their order. Every stage is a run of its own module in a folder of its own below `out`:

    base                    pre-training (minids.pretrain.train), unless a base model is given
    sft-F, grpo-F           the specialist of each family F (minids.posttrain.sft, minids.posttrain.grpo)
    average, mixed          two simple ways to one model, to compare with: mean weights; fine-tuning on all families at once
    distilled               on-policy distillation from the specialists (minids.posttrain.distill), from `mixed` on
    cards, report.json      what was measured (minids.inference.evaluate), and the log of every stage

A stage that is done is left alone, one that was stopped goes on where it stopped.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from minids.config import Config
from minids.data.chat import MODES
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.evaluate import report, table
from minids.posttrain.distill import DistillConfig, distill
from minids.posttrain.grpo import GRPOConfig, grpo
from minids.posttrain.loop import digest
from minids.posttrain.sft import SFTConfig, sft
from minids.pretrain.run_folder import read_log
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train
from minids.system.distributed import device
from minids.system.files import write_text
from minids.weights.checkpoint import load

# name in the report, and where its models are: one for each family, or one for all
MODELS = {"after SFT": "sft-{family}", "specialists": "grpo-{family}", "mean weights": "average", "mixed SFT": "mixed",
          "distilled": "distilled"}
# of the steps of fine-tuning, for each family: until it answers in the right form and is often wrong, which leaves rewards
# something to choose; code is almost certain of itself after twice as many
SHARES = {"mathematics": 1.0, "coding": 0.25, "reasoning": 0.4, "knowledge": 0.4}
# rows of the corpus that each step of fine-tuning reads too. A specialist may forget what it will not be asked; but what the
# exam in knowledge asks stands in the corpus alone
REHEARSAL = {"mathematics": 0, "coding": 0, "reasoning": 0, "knowledge": 8}
# of the families in fine-tuning on all of them and in distillation: mathematics takes most problems to learn
WEIGHTS = {"mathematics": 3.0, "coding": 1.0, "reasoning": 1.0, "knowledge": 1.0}
# steps of pre-training, fine-tuning, GRPO and distillation
STEPS = {"nano": (300, 80, 16, 40), "nano-long": (2700, 200, 400, 400), "mini": (2700, 300, 300, 320)}


@dataclass(frozen=True)
class Plan:
    """The settings of all stages; families, and difficulties that are measured, are those of `distill`."""

    config: Config
    train: TrainConfig
    sft: SFTConfig
    grpo: GRPOConfig
    mixed: DistillConfig
    distill: DistillConfig
    problems: int = 96          # of each family, of the test split
    samples: int = 4            # answers to each of them
    modes: tuple[str, ...] = ("think-high",)    # that are measured

    @classmethod
    def preset(cls, name: str, seed: int = 0) -> "Plan":
        """The plan of a preset: "nano", meant for a quarter of an hour on two cores; "nano-long", where rewards and teachers
        get the hours that they need; or "mini"."""
        if name not in STEPS:
            raise MinidsError(f"no life cycle for {name!r}: expected {', '.join(STEPS)}")
        base, tuned, rewarded, distilled = STEPS[name]
        size, modes = (name, MODES[:2]) if name == "mini" else ("nano", ("think-high",))
        common = dict(difficulties=(1, 2), modes=modes, eval_every=10_000, seed=seed)   # looks: at the beginning and the end
        # scales and biases stay, and rates fall early: what an optimiser that normalises makes of small gradients is noise
        rewards = dict(problems=24, group=16, updates=3, vector_lr=0.0, decay_from=0.3, beta=0.0, penalty=0.0, pool=8192)
        taught = dict(lr=3e-3, vector_lr=0.0, decay_from=0.0)
        together = dict(families=tuple(WEIGHTS), weights=tuple(WEIGHTS.values()), rehearsal=max(REHEARSAL.values()))
        return cls(Config.preset(size), TrainConfig.preset(size, "mix", steps=base, seed=seed),
                   SFTConfig(steps=tuned, eval_problems=40, **common),
                   GRPOConfig(steps=rewarded, eval_problems=40, **rewards, **common),
                   DistillConfig(steps=tuned, method="sft", lr=8e-3, eval_problems=0, **together, **common),
                   DistillConfig(steps=distilled, eval_problems=18, format="v4", **taught, **together, **common),
                   problems=64 if name == "nano" else 96, modes=modes)


def lifecycle(plan: Plan, out, base=None, resume: bool = True) -> dict:
    """Carry out all stages in the folder `out`, from the base model in the folder `base` if there is one. Gives the report,
    {"base", "models": {name: a report of `minids.inference.evaluate`}, "logs": {stage: its log}}, also written to out/report.json.

    Without `resume` stages begin again. Raises `Interrupted` and `MinidsError` as the stages do: the same command goes on.
    """
    out, families = Path(out), plan.distill.families
    stages = ["average", "mixed", "distilled", *(f"{kind}-{family}" for kind in ("sft", "grpo") for family in families)]
    stages += [] if base else ["base"]
    told = json.dumps({"base": base and str(base), "families": families}, indent=2) + "\n"
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / "life.json").exists():
            raise MinidsError(f"{out} is not empty and holds no life cycle: choose another folder")
        if resume and (out / "life.json").exists() and (out / "life.json").read_text(encoding="utf-8") != told:
            raise MinidsError(f"{out} holds a life cycle with another base model or other families: start afresh (--fresh), or "
                              f"choose another folder (--out)")
        out.mkdir(parents=True, exist_ok=True)
        for folder in [] if resume else [out / name for name in (*stages, "cards")]:
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise MinidsError(f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    write_text(out / "life.json", told)
    number, total = 0, len(stages) + 1          # and the evaluation

    def stage(what):
        nonlocal number
        number += 1
        print(f"stage {number} of {total}: {what}", flush=True)

    if base is None:
        stage("pre-training")
        train(plan.config, plan.train, out / "base")
        base = out / "base" / "model"
    for family in families:
        stage(f"fine-tuning, {family}")
        changes = dict(families=(family,), steps=max(1, round(SHARES[family] * plan.sft.steps)), rehearsal=REHEARSAL[family])
        sft(base, dataclasses.replace(plan.sft, **changes), out / f"sft-{family}")
    for family in families:
        stage(f"GRPO, {family}")
        grpo(out / f"sft-{family}" / "model", dataclasses.replace(plan.grpo, families=(family,)), out / f"grpo-{family}")
    teachers = {family: out / f"grpo-{family}" / "model" for family in families}
    stage("mean weights of the specialists")
    distill(base, teachers, dataclasses.replace(plan.mixed, method="average"), out / "average")
    stage("fine-tuning on all families")
    distill(base, {}, plan.mixed, out / "mixed")
    stage("on-policy distillation")
    distill(out / "mixed" / "model", teachers, plan.distill, out / "distilled")
    stage("evaluation")
    return evaluation(plan, out, base)


def evaluation(plan: Plan, out: Path, base) -> dict:
    """Measure all models, those for one family on this family alone, and write the report. What is measured is not measured
    again as long as the model is the same."""
    cards, tokenizer = {}, Tokenizer.load()
    for name, folder in MODELS.items():
        several = "{family}" in folder
        found = {"problems": []}
        for family in plan.distill.families if several else (None,):
            where = folder.format(family=family)
            model = load(out / where / "model", device())
            asked = dict(families=(family,) if several else plan.distill.families, modes=plan.modes, count=plan.problems,
                         samples=plan.samples, difficulties=plan.distill.difficulties, seed=plan.distill.seed,
                         everything=name == "distilled")
            told = json.loads(json.dumps({"weights": digest(model), "asked": asked}))
            path = out / "cards" / f"{where}.json"
            card = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if card.get("told") != told:
                card = {"told": told, "report": report(model, tokenizer, **asked)}
                path.parent.mkdir(exist_ok=True)
                write_text(path, json.dumps(card, indent=2) + "\n")
            found = card["report"] | {"problems": found["problems"] + card["report"]["problems"]}
        cards[name] = found
    logs = {folder.name: [rounded(record) for record in read_log(folder)] for folder in sorted(out.iterdir())
            if (folder / "log.jsonl").exists()}
    found = {"base": str(base), "models": cards, "logs": logs}
    write_text(out / "report.json", json.dumps(found, indent=2) + "\n")
    return json.loads(json.dumps(found))


def rounded(record: dict) -> dict:
    """A record of a log with four digits of each number, which is all that a reader wants."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in record.items()}


def card(report: dict) -> str:
    """The report card as text: pass@1 and pass@k of every model in every family, with the means, and all about the distilled
    model."""
    models, lines = report["models"], []
    rows = {(name, row["family"], row["mode"]): row for name, model in models.items() for row in model["problems"]}
    keys = dict.fromkeys(("pass@1", *(f"pass@{row['samples']}" for row in rows.values())))
    for mode in dict.fromkeys(mode for _, _, mode in rows):
        families = [family for name, family, m in rows if (name, m) == ("distilled", mode)]
        for key in keys:
            lines += [f"{key}, {mode}", " " * 13 + "".join(f"    {name:<16}" for name in models)]
            for family in families:
                shares = [rows[name, family, mode][key] for name in models]
                lines.append(f"{family:<13}" + "".join(f"{s:>8.0%} ({low:3.0%} -{high:4.0%})" for s, low, high in shares))
            means = [sum(rows[name, family, mode][key][0] for family in families) / len(families) for name in models]
            lines += [f"{'mean':<13}" + "".join(f"{mean:>8.0%}" + " " * 12 for mean in means), ""]
    return "\n".join([*lines, "the distilled model:", table(models["distilled"])])


