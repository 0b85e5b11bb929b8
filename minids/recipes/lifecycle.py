"""The whole life of a model in one command: pre-training, specialists, distillation, report card.

Report sections 4 and 5, in their order. Each stage is a run in its own folder below `out`:

    base                    pre-training (minids.pretrain.train), unless a base model is given
    sft-F, grpo-F           the specialist of each family F (minids.posttrain.sft and .grpo)
    average, mixed          two simple ways to one model, to compare with: the mean of the
                            specialists' weights, and fine-tuning on all families at once
    distilled               on-policy distillation from the specialists into `mixed`
    cards, report.json      what was measured (minids.inference.evaluate), and all logs

A finished stage is left as it is; one that was stopped continues where it stopped.
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
from minids.posttrain.sft import SFTConfig, sft
from minids.pretrain.run_folder import locked, read_log
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train
from minids.system import distributed
from minids.system.files import write_text
from minids.weights.checkpoint import load
from minids.weights.digest import digest

# name in the report, and the folder of its model: one for each family, or one for all
MODELS = {"after SFT": "sft-{family}", "specialists": "grpo-{family}", "mean weights": "average",
          "mixed SFT": "mixed", "distilled": "distilled"}
# Share of the fine-tuning steps that each family takes: until the model answers in the right form
# and is still often wrong, which leaves rewards something to select. With twice as many, coding
# would answer with almost no variation.
SHARES = {"mathematics": 1.0, "coding": 0.25, "reasoning": 0.4, "knowledge": 0.4}
# Rows of pre-training text that each step of fine-tuning replays. A specialist may forget what it
# will not be asked; but the exam in knowledge asks for facts that only the corpus has.
REPLAY = {"mathematics": 0, "coding": 0, "reasoning": 0, "knowledge": 8}
# Weights of the families in fine-tuning on all of them and in distillation: mathematics takes most
# problems to learn.
WEIGHTS = {"mathematics": 3.0, "coding": 1.0, "reasoning": 1.0, "knowledge": 1.0}
# Steps of pre-training, fine-tuning, GRPO and distillation
STEPS = {"nano": (300, 80, 16, 40), "nano-long": (2700, 200, 400, 400),
         "mini": (2700, 300, 300, 320)}


@dataclass(frozen=True)
class Plan:
    """The settings of all stages.

    The families, and the difficulties that are measured, are those of `distill`.
    """

    config: Config              # sizes of the model
    train: TrainConfig          # pre-training
    sft: SFTConfig              # fine-tuning of each specialist
    grpo: GRPOConfig            # GRPO of each specialist
    mixed: DistillConfig        # fine-tuning on all families at once
    distill: DistillConfig      # distillation
    problems: int = 96          # problems of each family in the exam, of the test split
    samples: int = 4            # answers sampled for each of them
    modes: tuple[str, ...] = ("think-high",)    # thinking modes of the exam

    @classmethod
    def preset(cls, name: str, seed: int = 0) -> "Plan":
        """The plan of a preset.

        "nano" takes about a quarter of an hour on two cores; "nano-long" gives rewards and teachers
        the hours that they need; "mini" is the larger model.
        """
        if name not in STEPS:
            raise MinidsError(f"no life cycle for {name!r}: expected {', '.join(STEPS)}")
        pretraining, fine_tuning, rewards, distillation = STEPS[name]
        size, modes = (name, MODES[:2]) if name == "mini" else ("nano", ("think-high",))
        # evaluate before the first step and after the last one only
        common = dict(difficulties=(1, 2), modes=modes, seed=seed, eval_every=10_000)
        together = dict(families=tuple(WEIGHTS), weights=tuple(WEIGHTS.values()),
                        replay=max(REPLAY.values()))
        # Scales and biases stay as they are (vector_lr 0), and rates fall early: an optimiser that
        # normalises turns small gradients into noise.
        return cls(
            config=Config.preset(size),
            train=TrainConfig.preset(size, "mix", steps=pretraining, seed=seed),
            sft=SFTConfig(steps=fine_tuning, eval_problems=40, **common),
            grpo=GRPOConfig(steps=rewards, num_prompts=24, num_generations=16,
                            steps_per_generation=3, pool_size=8192, beta=0.0, length_penalty=0.0,
                            vector_lr=0.0, decay_from=0.3, eval_problems=40, **common),
            mixed=DistillConfig(steps=fine_tuning, method="sft", lr=8e-3, eval_problems=0,
                                **together, **common),
            distill=DistillConfig(steps=distillation, lr=3e-3, vector_lr=0.0, decay_from=0.0,
                                  eval_problems=18, format="v4", **together, **common),
            problems=64 if name == "nano" else 96, modes=modes)


def lifecycle(plan: Plan, out, base=None, resume: bool = True, device=None) -> dict:
    """Carry out all stages in the folder `out`, from the base model in the folder `base` if given.

    Returns the report, also written to out/report.json: {"base", "models": {name: a report of
    `minids.inference.evaluate`}, "logs": {stage: its log}}. Without `resume` all stages begin
    again. `device`: by default the one that MINIDS_DEVICE names, or the CPU. Raises `Interrupted`
    and `MinidsError` as the stages do; the same command then continues.
    """
    with locked(Path(out), "life.json", "life cycle"):
        return carry_out(plan, Path(out), base, resume, device)


def carry_out(plan: Plan, out: Path, base, resume: bool, device) -> dict:
    """The stages of `lifecycle`, and its report."""
    families = plan.distill.families
    specialists = [f"{kind}-{family}" for kind in ("sft", "grpo") for family in families]
    stages = ["average", "mixed", "distilled", *specialists, *([] if base else ["base"])]
    prepare(out, {"base": base and str(base), "families": families}, resume, [*stages, "cards"])
    number, total = 0, len(stages) + 1          # and the evaluation

    def announce(stage):
        nonlocal number
        number += 1
        print(f"stage {number} of {total}: {stage}", flush=True)

    # 1. The base model
    if base is None:
        announce("pre-training")
        train(plan.config, plan.train, out / "base", device=device)
        base = out / "base" / "model"

    # 2. A specialist for each family
    for family in families:
        announce(f"fine-tuning, {family}")
        steps = max(1, round(SHARES[family] * plan.sft.steps))
        settings = dataclasses.replace(plan.sft, families=(family,), steps=steps,
                                       replay=REPLAY[family])
        sft(base, settings, out / f"sft-{family}", device=device)
    for family in families:
        announce(f"GRPO, {family}")
        settings = dataclasses.replace(plan.grpo, families=(family,))
        grpo(out / f"sft-{family}" / "model", settings, out / f"grpo-{family}", device=device)
    teachers = {family: out / f"grpo-{family}" / "model" for family in families}

    # 3. One model of all
    announce("mean weights of the specialists")
    settings = dataclasses.replace(plan.mixed, method="average")
    distill(base, teachers, settings, out / "average", device=device)
    announce("fine-tuning on all families")
    distill(base, {}, plan.mixed, out / "mixed", device=device)
    announce("on-policy distillation")
    distill(out / "mixed" / "model", teachers, plan.distill, out / "distilled", device=device)

    # 4. The exam
    announce("evaluation")
    return evaluation(plan, out, base, device)


def prepare(out: Path, description: dict, resume: bool, stages) -> None:
    """Write life.json, which says what the folder holds; another life cycle is refused.

    Without `resume` the stages are deleted.
    """
    text = json.dumps(description, indent=2) + "\n"
    try:
        if resume and (out / "life.json").exists() \
                and (out / "life.json").read_text(encoding="utf-8") != text:
            raise MinidsError(
                f"{out} holds a life cycle with another base model or other families: start afresh "
                f"(--fresh), or choose another folder (--out)")
        for folder in [] if resume else [out / name for name in stages]:
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise MinidsError(
            f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    write_text(out / "life.json", text)


def evaluation(plan: Plan, out: Path, base, device=None) -> dict:
    """Measure all models, and write the report. Specialists are measured on their own family.

    A measurement is not repeated while the model stays the same.
    """
    cards = {}
    for name, folder in MODELS.items():
        families = plan.distill.families
        if "{family}" not in folder:
            cards[name] = measure(plan, out, folder, families, device,
                                  everything=name == "distilled")
            continue
        reports = [measure(plan, out, folder.format(family=family), (family,), device)
                   for family in families]
        problems = [row for report in reports for row in report["problems"]]
        cards[name] = reports[-1] | {"problems": problems}
    logs = {folder.name: [rounded(record) for record in read_log(folder)]
            for folder in sorted(out.iterdir()) if (folder / "log.jsonl").exists()}
    life = {"base": str(base), "models": cards, "logs": logs}
    write_text(out / "report.json", json.dumps(life, indent=2) + "\n")
    return json.loads(json.dumps(life))


def measure(plan: Plan, out: Path, folder: str, families, device, everything: bool = False) -> dict:
    """The report on the model in `folder`/model, from cards/ if it is there already."""
    model = load(out / folder / "model", distributed.device_or_cpu(device))
    options = dict(families=families, modes=plan.modes, count=plan.problems, samples=plan.samples,
                   difficulties=plan.distill.difficulties, seed=plan.distill.seed,
                   everything=everything)
    key = json.loads(json.dumps({"weights": digest(model), "asked": options}))
    path = out / "cards" / f"{folder}.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if card.get("told") != key:
        card = {"told": key, "report": report(model, Tokenizer.load(), **options)}
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(card, indent=2) + "\n")
    return card["report"]


def rounded(record: dict) -> dict:
    """A record of a log with four digits of each number, which is as precise as a reader needs."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in record.items()}


def card(report: dict) -> str:
    """The report card as text: pass@1 and pass@k of all models in all families, with the means,
    and the full report on the distilled model."""
    models, lines = report["models"], []
    rows = {(name, row["family"], row["mode"]): row
            for name, model in models.items() for row in model["problems"]}
    measures = dict.fromkeys(("pass@1", *(f"pass@{row['samples']}" for row in rows.values())))
    for mode in dict.fromkeys(mode for _, _, mode in rows):
        families = [family for name, family, m in rows if (name, m) == ("distilled", mode)]
        for key in measures:
            lines += [f"{key}, {mode}",
                      " " * 13 + "".join(f"    {name:<16}" for name in models)]
            for family in families:
                shares = [rows[name, family, mode][key] for name in models]
                cells = [f"{s:>8.0%} ({low:3.0%} -{high:4.0%})" for s, low, high in shares]
                lines.append(f"{family:<13}" + "".join(cells))
            means = [sum(rows[name, family, mode][key][0] for family in families)
                     / len(families) for name in models]
            lines += [f"{'mean':<13}" + "".join(f"{mean:>8.0%}" + " " * 12 for mean in means), ""]
    return "\n".join([*lines, "the distilled model:", table(models["distilled"])])
