"""Pre-training: AdamW or Muon, a warm-up and a cosine, resumable to the bit.

Report sections 4.1 and 4.2, scaled down: next-token loss, the multi-token-prediction loss beside it, experts balanced
without a loss. Muon is in `minids.optim`. Not here: the sequence-wise balance loss, masks
between packed documents. Step s of a run depends on (settings, seed, s) and the weights alone: there is no other randomness.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from minids.checkpoint import load, save
from minids.config import Config
from minids.data import text
from minids.files import MinidsError, write_text
from minids.model.moe import balance
from minids.model.transformer import Model
from minids.optim import Joined, Muon, for_muon
from minids.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One step takes `batch` sequences of `seq_len` tokens."""

    steps: int
    optimiser: str = "adamw"    # or "muon": Muon for the matrices, AdamW for the rest
    batch: int = 8
    seq_len: int = 256
    lr: float = 3e-3            # after `warmup` steps; a cosine brings it to a tenth at the end
    vector_lr: float = 5.0      # times that for vectors: norms, sinks, ape, and the scales and bases of mHC
    warmup: int = 50
    weight_decay: float = 0.1   # of matrices; vectors have none
    clip: float = 1.0           # largest norm of the gradient
    mtp_weight: float = 0.3     # weight of the MTP loss
    mtp_share: float = 1.0      # of the sequences of a step that the MTP loss is computed on: less is cheaper and noisier
    balance: float = 0.001      # how far a gate's bias moves in a step
    eval_every: int = 100       # steps between looks at the validation text
    save_every: int = 200       # steps between checkpoints
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch", "seq_len", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise MinidsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 < self.mtp_share <= 1:
            raise MinidsError(f"mtp_share: expected above 0 and at most 1, found {self.mtp_share}")
        if self.optimiser not in ("adamw", "muon"):
            raise MinidsError(f"optimiser: expected adamw or muon, found {self.optimiser!r}")
        if not 0 <= self.seed < 2**63:
            raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")

    @classmethod
    def preset(cls, name: str, **changes) -> "TrainConfig":
        """The settings that belong to `Config.preset(name)`: "nano" or "mini". `changes` replace fields."""
        settings = {"nano": dict(steps=520, optimiser="muon", lr=1e-2, vector_lr=4.0, warmup=30, mtp_share=0.25),
                    "mini": dict(steps=6000, optimiser="muon", lr=5e-3, batch=16, warmup=200)}
        if name not in settings:
            raise MinidsError(f"no training settings for {name!r}: expected nano or mini; larger models need a cluster")
        return cls(**(settings[name] | changes))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was saved. The message says where."""


def train(config: Config, settings: TrainConfig, out, resume: bool = True, on_step=None, tokens=None) -> list[dict]:
    """Train a new model, or go on where `out` stopped; returns the log, one dict a record.

    `out` gets log.jsonl, a checkpoint folder step-NNNNNN (the newest only), and at the end `model/`, the trained model
    in BF16. With `resume=False` a former run in `out` is deleted. `on_step(record)` is called after each step. `tokens`
    is a dict of the shipped tokenizer's id streams for "train", "valid" and "heldout"; by default the shipped text (`corpus`).
    Records: {"step", "loss", "mtp_loss", "grad_norm", "lr", "seconds"} each step, losses in nats per token;
    {"step", "valid_loss", "valid_bits_per_byte"} now and then, on an eighth of that text;
    {"step", "heldout_loss", "heldout_bits_per_byte"} last, on all of it.
    Raises `MinidsError` for what cannot be trained or written, `Interrupted` on Ctrl-C, when all is saved.
    """
    out = Path(out)
    tokenizer = Tokenizer.load()
    tokens = corpus() if tokens is None else tokens
    check(config, settings, tokens)
    run = {"config": config.to_json(), "settings": dataclasses.asdict(settings), "tokens": len(tokens["train"])}
    start(out, run, resume)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    folder = newest(out)
    if folder is None:
        torch.manual_seed(settings.seed)
        model, first, log = Model(config), 0, []
    else:
        model, first = load(folder, dtype=torch.float32), int(folder.name[5:])
        log = [record for record in read_log(out) if record["step"] <= first]
    model.to(device).train()
    optimiser = make_optimiser(model, settings)
    if folder is not None:
        read_optimiser(optimiser, model, folder)
    write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in log))

    def note(record):
        log.append(record)
        try:
            with open(out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise MinidsError(f"could not write {out / 'log.jsonl'}: {error.strerror}; the last checkpoint is whole") from error

    def look(split):
        every = 1 if split == "heldout" else 8
        loss, per_byte = evaluate(model, tokens[split], settings.seq_len, tokenizer, every)
        note({"step": step, f"{split}_loss": loss, f"{split}_bits_per_byte": per_byte})

    step, saved, stored_seconds = first, first, max((r.get("seconds", 0) for r in log), default=0.0)
    began = time.monotonic()
    bar = tqdm(total=settings.steps, initial=first, desc="training", unit="step", dynamic_ncols=True)
    with bar, deferred_interrupt() as interrupted:
        while step < settings.steps:
            ids = torch.from_numpy(batch_of(tokens["train"], settings, step)).to(device)            # B T+1
            record = {"step": step + 1} | train_step(model, optimiser, ids, settings, step)
            step += 1
            record["seconds"] = round(stored_seconds + time.monotonic() - began, 3)
            note(record)
            bar.update()
            speed = (step - first) * settings.batch * settings.seq_len / (time.monotonic() - began)
            bar.set_postfix_str(f"loss {record['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if step % settings.eval_every == 0 and step < settings.steps:
                look("valid")
            if step % settings.save_every == 0 or step == settings.steps or interrupted():
                save_step(model, optimiser, out, step, tokenizer)
                saved = step
            if on_step is not None:
                on_step(record)
            if interrupted() and saved == step:
                raise Interrupted(f"interrupted after step {step} of {settings.steps}; the checkpoint is in {out}: "
                                  f"run the same command again to go on")
    for split in ("valid", "heldout"):
        if not any(f"{split}_loss" in record and record["step"] == step for record in log):
            look(split)
    save(model, out / "model", format="bf16", tokenizer=tokenizer)
    return log


def train_step(model, optimiser, ids, settings: TrainConfig, step: int) -> dict:
    """One update from `ids`, B x T+1; returns what the log says of it."""
    lr = learning_rate(settings, step)
    for group in optimiser.param_groups:
        group["lr"] = lr * group["times"]
    x, y = ids[:, :-1], ids[:, 1:]                                                                   # B T
    X = model.features(x)                                                                            # B T n d
    loss = F.cross_entropy(model.logits(X).flatten(0, 1), y.flatten())
    total, mtp_loss = loss, None
    if model.config.n_mtp_layers:  # from the streams at t and the token at t + 1: the token at t + 2
        some = slice(math.ceil(settings.mtp_share * len(x)))
        mtp_loss = F.cross_entropy(model.mtp_logits(X[some, :-1], x[some, 1:]).flatten(0, 1), y[some, 1:].flatten())
        total = loss + settings.mtp_weight * mtp_loss
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    if not math.isfinite(total.item()) or not math.isfinite(norm.item()):
        raise MinidsError(f"the loss is {total.item()} and the gradient's norm {norm.item()} at step {step + 1}: expected "
                          f"finite numbers. The last checkpoint is whole; try a lower learning rate than {settings.lr}.")
    optimiser.step()
    balance(model, settings.balance)
    record = {"loss": loss.item(), "grad_norm": norm.item(), "lr": lr}
    return record if mtp_loss is None else record | {"mtp_loss": mtp_loss.item()}


def learning_rate(settings: TrainConfig, step: int) -> float:
    """A straight rise over `warmup` steps, then a cosine from `lr` to a tenth of it."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.lr * (0.55 + 0.45 * math.cos(math.pi * done))


def make_optimiser(model, settings: TrainConfig) -> Joined:
    """AdamW, or Muon for most matrices and AdamW for the rest. Norms, sinks, ape, and the scales and bases of mHC do not
    decay and learn faster than matrices: they start near one value, and have to move far in a run as short as ours."""
    named = dict(model.named_parameters())
    matrices = [n for n, p in named.items() if p.ndim == 2 and not n.endswith("ape")]
    muon = [n for n in matrices if settings.optimiser == "muon" and for_muon(n, named[n])]
    adam = [n for n in matrices if n not in set(muon)]
    vectors = [n for n in named if n not in set(matrices)]
    group = lambda names, decay, times: {"params": [named[n] for n in names], "weight_decay": decay, "times": times}
    fused = next(model.parameters()).device.type in ("cpu", "cuda", "mps", "xpu")
    eps = 1e-20 if settings.optimiser == "muon" else 1e-8                                            # V4's, or the usual one
    adamw = torch.optim.AdamW([group(adam, settings.weight_decay, 1.0), group(vectors, 0.0, settings.vector_lr)],
                              lr=settings.lr, betas=(0.9, 0.95), eps=eps, fused=fused)
    return Joined(Muon([group(muon, settings.weight_decay, 1.0)], lr=settings.lr), adamw) if muon else Joined(adamw)


# ---- the text ----

@cache
def corpus() -> dict[str, np.ndarray]:
    """The shipped text as id streams of the shipped tokenizer: {"train", "valid", "heldout"}."""
    return {split: text.encode(text.documents(split), Tokenizer.load()) for split in text.SPLITS}


def batch_of(stream, settings: TrainConfig, step: int):
    """The batch of one step, B x T+1, int64. An epoch goes once through windows that touch, in a random order;
    where the first window starts is random too, so that epochs cut the text differently."""
    T = settings.seq_len
    windows = (len(stream) - 1) // T - 1  # one is lost to the random start
    rows = []
    for i in range(step * settings.batch, (step + 1) * settings.batch):
        begin, order = epoch_order(settings.seed, i // windows, windows, T)
        at = begin + order[i % windows] * T
        rows.append(stream[at : at + T + 1])
    return np.stack(rows).astype(np.int64)


def tokens_read(stream, settings: TrainConfig) -> np.ndarray:
    """All that a run reads, batch after batch: what a baseline of equal data is fitted to."""
    return np.concatenate([batch_of(stream, settings, step).ravel() for step in range(settings.steps)])


@cache
def epoch_order(seed: int, epoch: int, windows: int, seq_len: int):
    rng = np.random.default_rng((seed, epoch))
    return int(rng.integers(seq_len)), rng.permutation(windows)


@torch.inference_mode()
def evaluate(model, stream, seq_len: int, tokenizer=None, every: int = 1, batch: int = 16) -> tuple[float, float | None]:
    """Mean loss in nats per token on the stream; with a tokenizer also in bits per byte.

    The stream is cut into windows of `seq_len` that overlap by a quarter, so that each token but the first is counted once
    and, past the first window, has at least that much to go by. Of the windows each `every`-th counts.
    """
    training, device = model.training, model.embed.weight.device
    model.eval()
    stream, overlap = np.asarray(stream).astype(np.int64), seq_len // 4
    starts = range(0, max(len(stream) - 1 - overlap, 1), seq_len - overlap)[::every]
    windows = [(stream[s : s + seq_len + 1], overlap if s else 0) for s in starts]                   # ids, targets not counted
    targets = np.concatenate([ids[1 + skip :] for ids, skip in windows])
    total = 0.0
    for alike in sorted({(len(ids), skip) for ids, skip in windows}):
        group = np.stack([ids for ids, skip in windows if (len(ids), skip) == alike])
        for ids in torch.from_numpy(group).to(device).split(batch):
            logits = model(ids[:, :-1])[:, alike[1] :]                                               # B T vocab
            total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1 + alike[1] :].flatten(), reduction="sum").item()
    model.train(training)
    return total / len(targets), tokenizer and total / math.log(2) / len(tokenizer.to_bytes(targets))


# ---- the run's folder ----

def check(config: Config, settings: TrainConfig, tokens) -> None:
    """Raise `MinidsError` unless these sizes fit each other and the text."""
    if settings.seq_len > config.max_seq_len:
        raise MinidsError(f"seq_len: expected at most the model's context of {config.max_seq_len}, found {settings.seq_len}")
    for split in text.SPLITS:
        if split not in tokens:
            raise MinidsError(f"tokens: expected id streams for {', '.join(text.SPLITS)}, found {', '.join(tokens) or 'none'}")
        low, high = int(np.min(tokens[split])), int(np.max(tokens[split]))
        if low < 0 or high >= config.vocab_size:
            raise MinidsError(f"{split}: expected token ids from 0 to {config.vocab_size - 1}, found {low} to {high}")
        if len(tokens[split]) < 3 * settings.seq_len + 1:
            raise MinidsError(f"{split}: expected at least {3 * settings.seq_len + 1} tokens (three sequences), "
                              f"found {len(tokens[split])}")


def start(out: Path, run: dict, resume: bool) -> None:
    """Make the folder; a run that is in it must be the same one, or is deleted where `resume` is off."""
    path = out / "run.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(out.iterdir()):
            raise MinidsError(f"{out} is not empty and holds no training run: choose another folder")
        if not resume:
            for old in [*out.glob("step-*"), *out.glob("model"), *out.glob("*.part")]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            (out / "log.jsonl").unlink(missing_ok=True)
        elif path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found if isinstance(found, dict) else {}
            differs = [f"{part}.{key}" if isinstance(run[part], dict) else part for part in run
                       for key in (run[part] if isinstance(run[part], dict) else [part])
                       if _item(run, part, key) != _item(found, part, key)]
            if differs:
                raise MinidsError(f"{out} holds a run with other settings ({', '.join(differs[:5])}): start afresh (--fresh), "
                                  f"or choose another folder (--out)")
    except json.JSONDecodeError as error:
        raise MinidsError(f"{path} is damaged ({error}): start afresh (--fresh), or choose another folder (--out)") from None
    except OSError as error:
        raise MinidsError(f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    write_text(path, json.dumps(run, indent=2) + "\n")


def _item(run, part, key):
    value = run.get(part)
    return value.get(key) if isinstance(value, dict) else value


def newest(out: Path) -> Path | None:
    """The checkpoint folder with the largest step, if there is one."""
    found = [p for p in Path(out).glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def read_log(out) -> list[dict]:
    """The records of a run's log.jsonl; a last line that was cut short by a kill is left out."""
    records = []
    try:
        lines = (Path(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MinidsError(f"cannot read {Path(out) / 'log.jsonl'}: {error.strerror}; expected a run's log") from None
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if i + 1 < len(lines):
                raise MinidsError(f"{Path(out) / 'log.jsonl'}: line {i + 1} is not JSON") from None
    return records


def save_step(model, optimiser, out: Path, step: int, tokenizer=None) -> None:
    """Write out/step-NNNNNN: the model in float32 and the optimiser's state. It appears whole; then older ones go."""
    final, part = out / f"step-{step:06d}", out / f"step-{step:06d}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        save(model, part, format="fp32", tokenizer=tokenizer)
        states = optimiser.state
        state = {f"{name}.{key}": value.contiguous() for name, p in model.named_parameters()
                 for key, value in states.get(p, {}).items()}
        save_file(state, part / "optimizer.safetensors")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        for old in out.glob("step-*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"could not write {final}: {getattr(error, 'strerror', None) or error}. "
                          f"The checkpoint before it is whole: make room and run the same command again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_optimiser(optimiser, model, folder: Path) -> None:
    """Give the optimiser the state that `save_step` wrote."""
    path = folder / "optimizer.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, p in model.named_parameters():
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq", "momentum") if f"{name}.{key}" in names]
                if not keys:
                    continue  # never had a gradient
                state = {key: file.get_tensor(f"{name}.{key}").to(p.device) for key in keys}
                for key in set(keys) - {"step"}:
                    if state[key].shape != p.shape:
                        raise MinidsError(f"{path}: {name}.{key} has shape {tuple(state[key].shape)}, "
                                          f"expected {tuple(p.shape)}")
                optimiser.put(p, state)
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"cannot read {path}: {error}; start afresh (--fresh)") from None


@contextmanager
def deferred_interrupt():
    """Hold the first Ctrl-C back until a step is complete: yields a function that tells whether there was one."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def handler(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
