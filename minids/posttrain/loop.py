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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from minids.data import mixture, tasks
from minids.data.chat import MODES, encode_chat, parse_reply
from minids.data.tokenizer import Tokenizer
from minids.inference.generate import generate
from minids.model.ledger import Ledger
from minids.model.moe import balance
from minids.pretrain.batches import Part, batch_of
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.run_folder import deferred_interrupt, newest, note, read_log, read_optimiser, save_step, start
from minids.pretrain.train import Interrupted, TrainConfig, cross_entropy
from minids.system.files import MinidsError, write_text
from minids.weights.checkpoint import load, save

LIMITS = {"non-think": 48, "think-high": 128, "think-max": 224}     # tokens of a reply; eos is one of them
REHEARSED, ROW = 2**19, 256     # tokens of the corpus that rehearsal draws from, and of one row


@dataclass(frozen=True)
class Settings:
    """What all of post-training can set; the schedule is that of `minids.pretrain.optim`."""

    steps: int = 100
    families: tuple[str, ...] = ("mathematics",)
    difficulties: tuple[int, ...] = (1, 2, 3, 4, 5)
    modes: tuple[str, ...] = MODES
    optimiser: str = "muon"     # or "adamw"
    lr: float = 3e-3
    vector_lr: float = 4.0      # times that for vectors
    warmup: int = 5
    decay_from: float = 0.5
    weight_decay: float = 0.1
    clip: float = 1.0           # largest norm of the gradient
    rehearsal: int = 0          # rows of the corpus that each step of the optimiser reads too, against forgetting
    eval_every: int = 50        # steps between looks at problems of the valid split
    eval_problems: int = 100    # in each mode
    save_every: int = 50
    format: str = "bf16"        # of the file of the result, or "v4"
    seed: int = 0

    def __post_init__(self):
        for name, known in (("families", tasks.FAMILIES), ("modes", MODES), ("difficulties", (1, 2, 3, 4, 5))):
            found = tuple(getattr(self, name))
            object.__setattr__(self, name, found)
            if not found or not set(found) <= set(known):
                raise MinidsError(f"{name}: expected some of {', '.join(map(str, known))}; found {found}")
        for name, known in (("optimiser", ("muon", "adamw")), ("format", ("bf16", "v4", "fp32"))):
            if getattr(self, name) not in known:
                raise MinidsError(f"{name}: expected {' or '.join(known)}, found {getattr(self, name)!r}")
        for name in ("steps", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise MinidsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.decay_from < 1 or min(self.eval_problems, self.rehearsal) < 0 or not 0 <= self.seed < 2**31:
            raise MinidsError(f"expected decay_from from 0 and below 1, eval_problems and rehearsal from 0, a seed from 0 and "
                              f"below 2^31; found {self.decay_from}, {self.eval_problems}, {self.rehearsal}, {self.seed}")

    def numbers(self, step: int, count: int, fresh: bool = False) -> range:
        """The numbers of a step's `count` problems. Each seed has a million of its own; the second half is `fresh`: what models
        answer themselves comes from there, so that no worked answer has told it before."""
        first = self.seed * 1_000_000 + fresh * 500_000 + step * count
        return range(first, first + count)

    def problem(self, split: str, i: int) -> tasks.Problem:
        """The problem number i of a split: families and difficulties take turns."""
        family = self.families[i % len(self.families)]
        difficulty = self.difficulties[i // len(self.families) % len(self.difficulties)]
        return tasks.problem(family, split, i, difficulty)


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
    balance(model, 0.0)         # forgets the load of the experts
    return record | {"grad_norm": norm, "lr": lr}


def rehearse(model, settings: Settings, number: int) -> float:
    """Add the gradient of the next-token loss on `settings.rehearsal` rows of the base's corpus, with a weight of 1; gives the
    loss, in nats per token. Each number has other rows, until all of `rehearsed` are through; runs of one seed read the same.

    As in Ouyang et al. (arXiv 2203.02155, "PPO-ptx"): what a model is no longer asked it forgets, unless it goes on reading.
    """
    reading = TrainConfig(settings.steps, batch=settings.rehearsal, seq_len=ROW, data="mix", seed=settings.seed)
    bos, place = model.config.bos_token_id, model.embed.weight.device
    part = Part(torch.from_numpy(batch_of(rehearsed(), reading, number)).to(place), reading, bos)
    loss = cross_entropy(model.logits(model.features(part.x, ledger=Ledger(part.documents))), part.y)
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


def question(problem: tasks.Problem, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a problem's prompt, up to the opening of the reply."""
    return encode_chat([{"role": "user", "content": problem.prompt}], tokenizer, mode)


def right(problem: tasks.Problem, reply: list[int], tokenizer: Tokenizer, mode: str) -> bool:
    """Whether a reply has come to its end and says a right answer."""
    answer = parse_reply(reply, tokenizer, mode)[1] if tokenizer.eos_id in reply else None
    return answer is not None and tasks.verify(problem, answer)


def replies(model, prompts, max_new: int, temperature: float = 1.0, seed: int = 0, batch: int = 96) -> list[list[int]]:
    """A reply to each prompt of any length; prompts of like length share a batch, which waits for its longest. Long prompts
    leave less room."""
    order, found = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [[] for _ in prompts]
    for number, some in enumerate(order[i : i + batch] for i in range(0, len(order), batch)):
        room = model.config.max_seq_len + 1 - max(len(prompts[i]) for i in some)
        new = generate(model, [prompts[i] for i in some], max(min(max_new, room), 1), temperature,
                       seed=(seed * 1_000_003 + number) % 2**63)
        for i, ids in zip(some, new):
            found[i] = ids
    return found


def solve(model, tokenizer: Tokenizer, problems, mode: str, temperature: float = 0.0, batch: int = 64,
          seed: int = 0) -> tuple[list[bool], list[int]]:
    """One reply to each problem: whether it is right, and its length in tokens, eos included. Greedy by default."""
    prompts = [question(problem, tokenizer, mode) for problem in problems]
    found = replies(model, prompts, LIMITS[mode], temperature, seed=seed, batch=batch)
    return [right(p, r, tokenizer, mode) for p, r in zip(problems, found)], [len(r) for r in found]


def examine(model, tokenizer: Tokenizer, settings: Settings) -> list[dict]:
    """For each mode a record of greedy answers to problems of the valid split: the share of right ones, the mean length."""
    problems = [settings.problem("valid", i) for i in range(settings.eval_problems)]
    records = []
    for mode in settings.modes if problems else ():
        verdicts, lengths = solve(model, tokenizer, problems, mode)
        records.append({"mode": mode, "valid_accuracy": sum(verdicts) / len(problems),
                        "valid_length": sum(lengths) / len(problems)})
    return records
