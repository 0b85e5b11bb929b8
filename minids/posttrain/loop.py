"""What SFT, GRPO and distillation share: a run from a given model on, the corpus that it may go on reading against
forgetting, and questions to models that answer in a mode.

Report section 5.1. A run is kept in a folder as in pre-training (`minids.pretrain.run_folder`) and resumes as exactly: what step s does
depends on (settings, s), the model it began with, and the weights alone. What a step learns is its module's business.
"""

import dataclasses
import hashlib
import json
import math
import time
from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import solve
from minids.model.passes import Options
from minids.posttrain.settings import Settings
from minids.pretrain.batches import Part, batch_of
from minids.pretrain.losses import cross_entropy, mean
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.run_folder import deferred_interrupt, newest, note, read_log, read_optimiser, save_step, start
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import Interrupted
from minids.system.files import write_text
from minids.weights.checkpoint import load
from minids.weights.save import save

REHEARSED, ROW = 2**19, 256     # tokens of the corpus that rehearsal draws from, and of one row


def run(model, settings: Settings, out, begun: dict, update, look=None, resume: bool = True, on_step=None,
        name: str = "post-training") -> list[dict]:
    """Train `model`, in place, for `settings.steps` steps, from the newest checkpoint in `out` if there is one. Gives the log.

    `update(optimiser, step)` takes one step and returns its record; `look(step)` measures the model and returns records: before
    the first step, every `eval_every`, and at the end. `begun` tells what else the run depends on, for run.json. `on_step` is
    called with each step's record. At the end the model is in out/model. Raises `MinidsError` for what cannot be trained or
    written, `Interrupted` on Ctrl-C, when all is saved.
    """
    out, tokenizer = Path(out), Tokenizer.load()
    begun = {"config": model.config.to_json(), "settings": dataclasses.asdict(settings), "base": digest(model)} | begun
    with deferred_interrupt() as pressed:
        start(out, begun, resume)
        optimiser, folder, step, log = make_optimiser(model, settings), newest(out), 0, []
        if folder is not None:
            step = int(folder.name[5:])
            model.load_state_dict(load(folder).state_dict())
            read_optimiser(optimiser, model, folder)
            log = [record for record in read_log(out) if record["step"] <= step]
        write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in log))
        stored_seconds, began = max((r.get("seconds", 0) for r in log), default=0.0), time.monotonic()

        def write(*records):
            for record in records:
                log.append(record)
                note(out, record)

        def measure():
            if look is not None and not any("seconds" not in record and record["step"] == step for record in log):
                write(*({"step": step} | record for record in look(step)))

        model.train()
        if step == 0:
            measure()
        with tqdm(total=settings.steps, initial=step, desc=name, unit="step", dynamic_ncols=True) as bar:
            while step < settings.steps:
                record = {"step": step + 1} | update(optimiser, step)
                step += 1
                record["seconds"] = round(stored_seconds + time.monotonic() - began, 3)
                write(record)
                bar.set_postfix_str(", ".join(f"{key} {record[key]:.3f}" for key in ("loss", "accuracy") if key in record))
                bar.update()
                if step % settings.eval_every == 0 or step == settings.steps:
                    measure()
                stopped = pressed()
                if step % settings.save_every == 0 or step == settings.steps or stopped:
                    save_step(model, optimiser, out, step, tokenizer)
                if on_step is not None:
                    on_step(record)
                if stopped:
                    raise Interrupted(f"interrupted after step {step} of {settings.steps}; the checkpoint is in {out}: "
                                      f"run the same command again to go on")
        if not (out / "model").is_dir():
            save(model, out / "model", format=settings.format, tokenizer=tokenizer)
    return log


def descend(model, optimiser, settings: Settings, step: int, reading: int | None = None) -> dict:
    """One step of the optimiser along the gradients that are there, and along that of `rehearse`, whose rows have the number
    `reading` where a step descends more than once. The gates' biases stay as pre-training left them."""
    record = {"rehearsal_loss": rehearse(model, settings, step if reading is None else reading)} if settings.rehearsal else {}
    lr = learning_rate(settings, step)
    for group in optimiser.param_groups:
        group["lr"] = lr * group["times"]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip).item()
    if not math.isfinite(norm):
        raise MinidsError(f"the gradient's norm is {norm} at step {step + 1}: expected a finite number. The last checkpoint is "
                          f"whole; try a lower learning rate than {settings.lr}.")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return record | {"grad_norm": norm, "lr": lr}


def rehearse(model, settings: Settings, number: int) -> float:
    """Add the gradient of the next-token loss on `settings.rehearsal` rows of the base's corpus, with a weight of 1; gives the
    loss, in nats per token. Each number has other rows, until all of `rehearsed` are through; runs of one seed read the same.

    As in Ouyang et al. (arXiv 2203.02155, "PPO-ptx"): what a model is no longer asked it forgets, unless it goes on reading.
    """
    reading = TrainConfig(settings.steps, batch=settings.rehearsal, seq_len=ROW, data="mix", seed=settings.seed)
    bos, place = model.config.bos_token_id, model.embed.weight.device
    part = Part(torch.from_numpy(batch_of(rehearsed(), reading, number)).to(place), reading, bos)
    loss = mean(cross_entropy(model.logits(model.features(part.x, options=Options(part.documents))), part.y))
    loss.backward()
    return loss.item()


@cache
def rehearsed():
    """The corpus that `rehearse` reads: ids, in documents."""
    return mixture.stream("train", REHEARSED, Tokenizer.load())


def digest(model) -> str:
    """16 hexadecimal digits that tell the weights of a model from others."""
    found = hashlib.sha256()
    for name, t in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def examine(model, tokenizer: Tokenizer, settings: Settings) -> list[dict]:
    """For each mode a record of greedy answers to problems of the valid split: the share of right ones, the mean length."""
    problems = [settings.problem("valid", i) for i in range(settings.eval_problems)]
    records = []
    for mode in settings.modes if problems else ():
        verdicts, lengths = solve(model, tokenizer, problems, mode)
        records.append({"mode": mode, "valid_accuracy": sum(verdicts) / len(problems),
                        "valid_length": sum(lengths) / len(problems)})
    return records
