"""Pre-training as V4 does it, scaled down, resumable to the bit.

Report sections 4.1 and 4.2: next-token loss and multi-token prediction, experts balanced mostly without a loss, packed
documents kept apart, and stages: dense attention, a warm-up of the indexer, sparse attention. Neighbours: `minids.pretrain.batches`
(what a step reads), `minids.pretrain.optim` (AdamW, Muon, the schedule), `minids.pretrain.anticipatory_routing` (against spikes), `minids.pretrain.mixed_precision`
(bfloat16), `minids.system.distributed` (several processes), `minids.pretrain.run_folder` (the folder). Step s of a run depends on (settings, seed,
s) and the weights alone: there is no other randomness.
"""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from minids.config import CSA_RATE, Config
from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.model.ledger import Ledger
from minids.model.moe import Gate, balance
from minids.model.transformer import Model
from minids.pretrain.anticipatory_routing import Anticipation
from minids.pretrain.batches import IGNORED, Part, batch_of, corpus, packing, parts_of, streams, targets, tokens_read
from minids.pretrain.mixed_precision import computing_copy, refresh
from minids.pretrain.optim import learning_rate, make_optimiser, mtp_weight
from minids.pretrain.run_folder import deferred_interrupt, newest, note, read_log, read_optimiser, read_routes, save_step, start
from minids.system import distributed
from minids.system.files import MinidsError, write_text
from minids.weights.checkpoint import load, save

__all__ = ["Interrupted", "Stage", "TrainConfig", "batch_of", "corpus", "evaluate", "learning_rate", "make_optimiser", "newest",
           "read_log", "streams", "tokens_read", "train", "train_step"]


@dataclass(frozen=True)
class Stage:
    """A part of a run. `attention` is "dense": CSA layers read all entries; "warmup": they still do, and nothing but the
    indexer learns, from what attention reads; "sparse": they read what the indexer picks, and it learns on. V4 has this order.
    """

    share: float        # of the run's steps, relative to the shares of the other stages
    seq_len: int
    batch: int
    attention: str = "sparse"


def growing(rows: int) -> tuple[Stage, ...]:
    """The stages of the shipped checkpoints: sequences grow, and the indexer warms up before it has to choose."""
    return (Stage(0.8, 256, rows, "dense"), Stage(0.04, 1024, rows // 4, "warmup"), Stage(0.16, 1024, rows // 4, "sparse"))


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One step takes `batch` sequences of `seq_len` tokens, or, with `stages`, what its stage says."""

    steps: int
    optimiser: str = "adamw"    # or "muon": Muon for the matrices, AdamW for the rest
    batch: int = 8
    seq_len: int = 256
    stages: tuple[Stage, ...] = ()  # none: all steps are "sparse"
    data: str = "text"          # or "mix": text, stories and tasks (minids.data.mixture)
    packed: bool = True         # documents that share a row are kept apart
    lr: float = 3e-3            # after `warmup` steps; a cosine brings it to a tenth at the end
    vector_lr: float = 5.0      # times that for vectors: norms, sinks, ape, and the scales and bases of mHC
    warmup: int = 50
    decay_from: float = 0.0     # share of the steps after which the cosine begins; 0: right after the warm-up
    weight_decay: float = 0.1   # of matrices; vectors have none
    clip: float = 1.0           # largest norm of the gradient
    mtp_weight: float = 0.3     # weight of the MTP loss
    mtp_late: float = 0.1       # and from the start of the cosine on, where `decay_from` kept the rate constant before
    mtp_share: float = 1.0      # of the sequences of a step that the MTP loss is computed on: less is cheaper and noisier
    balance: float = 0.001      # how far a gate's bias moves in a step
    sequence_balance: float = 0.0001    # weight of the sequence-wise balance loss
    index_weight: float = 1.0   # weight of the indexer's loss, where sequences are so long that it has to choose
    anticipate: int = 0         # route by the experts that the weights of so many steps before would choose
    spike: float = 0.0          # only from the checkpoint before a loss of so many times the mean of the last ones; 0: always
    calm: int = 100             # until so many steps after that loss
    accumulate: int = 1         # parts that a process cuts its share of a batch into, to save memory
    dtype: str = "auto"         # "float32", or "bfloat16" with float32 masters; auto: bfloat16 on CUDA devices that have it
    eval_every: int = 100       # steps between looks at the validation text
    save_every: int = 200       # steps between checkpoints
    format: str = "bf16"        # of the trained model's file, or "v4": FP8 and FP4 as V4 is released
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        for name, choices in (("optimiser", ("adamw", "muon")), ("data", ("text", "mix")), ("format", ("bf16", "v4")),
                              ("dtype", ("auto", "float32", "bfloat16"))):
            if getattr(self, name) not in choices:
                raise MinidsError(f"{name}: expected {' or '.join(choices)}, found {getattr(self, name)!r}")
        for name in ("steps", "batch", "seq_len", "accumulate", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise MinidsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for stage in self.stages:
            if stage.share <= 0 or stage.seq_len < 1 or stage.batch < 1 or stage.attention not in ("dense", "warmup", "sparse"):
                raise MinidsError(f"stages: expected a share above 0, a length and a batch of at least 1, and attention dense, "
                                  f"warmup or sparse; found {stage}")
        if not 0 < self.mtp_share <= 1:
            raise MinidsError(f"mtp_share: expected above 0 and at most 1, found {self.mtp_share}")
        if not 0 <= self.decay_from < 1:
            raise MinidsError(f"decay_from: expected 0 or more and less than 1, found {self.decay_from}")
        if self.anticipate < 0 or (self.spike and (self.spike <= 1 or self.anticipate < 1)):
            raise MinidsError(f"anticipate and spike: expected a number of steps, and a factor above 1 where that is not 0, "
                              f"or 0; found {self.anticipate} and {self.spike}")
        if not 0 <= self.seed < 2**63:
            raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")

    @classmethod
    def preset(cls, name: str, data: str = "text", **changes) -> "TrainConfig":
        """The settings that belong to `Config.preset(name)`, "nano" or "mini", and to the text that it reads: those of the
        mixture made the shipped checkpoints. `changes` replace fields."""
        settings = {
            ("nano", "text"): dict(steps=520, optimiser="muon", lr=1e-2, vector_lr=4.0, warmup=30, mtp_share=0.25),
            ("nano", "mix"): dict(steps=1800, optimiser="muon", lr=1e-2, vector_lr=4.0, warmup=50, mtp_share=0.25, format="v4",
                                  decay_from=0.6, stages=growing(8)),
            ("mini", "text"): dict(steps=2000, optimiser="muon", lr=5e-3, vector_lr=4.0, warmup=100, mtp_share=0.25),
            ("mini", "mix"): dict(steps=2700, optimiser="muon", lr=8e-3, vector_lr=4.0, warmup=50, mtp_share=0.25, format="v4",
                                  decay_from=0.6, stages=growing(8), save_every=100)}
        if (name, data) not in settings:
            raise MinidsError(f"no training settings for {name!r} on {data!r}: expected nano or mini, on text or mix; larger "
                              f"models need a cluster")
        return cls(**(settings[name, data] | {"data": data} | changes))

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; a run without has one."""
        return self.stages or (Stage(1, self.seq_len, self.batch),)

    @property
    def tokens(self) -> int:
        """How many tokens the run reads."""
        stages = (self.at(step)[0] for step in range(self.steps))
        return sum(stage.batch * stage.seq_len for stage in stages)

    def at(self, step: int) -> tuple[Stage, int, int]:
        """The stage that a step belongs to, its number, from 0, and its first step."""
        shares = np.cumsum([stage.share for stage in self.plan])
        ends = [round(self.steps * share / shares[-1]) for share in shares]
        number = next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
        return self.plan[number], number, ends[number - 1] if number else 0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was saved. The message says where."""


def train(config: Config, settings: TrainConfig, out, resume: bool = True, on_step=None, tokens=None) -> list[dict]:
    """Train a new model, or go on where `out` stopped; returns the log, one dict a record.

    `out` gets log.jsonl, a checkpoint folder step-NNNNNN (the newest only), and at the end `model/`, the trained model
    in `settings.format`. With `resume=False` a former run in `out` is deleted. `on_step(record)` is called after each step.
    `tokens` is a dict of the shipped tokenizer's id streams for each split; by default those of `settings.data`.
    Records: {"step", "loss", "mtp_loss", "balance_loss", "index_loss", "grad_norm", "lr", "stage", "seconds"} each step, as far
    as there is such a thing, losses in nats per token, stages from 1;
    {"step", "valid_loss", "valid_bits_per_byte"} now and then, on an eighth of that text, read as the stage reads;
    {"step", "spike", "back_to"} where a spike of the loss sent the run back: the steps since then come again;
    {"step", "heldout_loss", "heldout_bits_per_byte"} last, on all of it, and {"step", "rounded_loss",
    "rounded_bits_per_byte"} of the file in the released formats.
    Under torchrun each process calls this; the first one writes, and its log alone has the looks at other texts.
    Raises `MinidsError` for what cannot be trained or written, `Interrupted` on Ctrl-C, when all is saved.
    """
    out, device = Path(out), distributed.device()
    tokenizer = Tokenizer.load()
    tokens = streams(settings) if tokens is None else tokens
    check(config, settings, tokens)
    run = {"config": config.to_json(), "settings": dataclasses.asdict(settings), "tokens": len(tokens["train"])}
    with distributed.joined(device), deferred_interrupt() as pressed:
        if distributed.rank() == 0:
            start(out, run, resume)
        distributed.wait()
        return _train(config, settings, out, on_step, tokens, tokenizer, device, pressed)


def _train(config, settings, out, on_step, tokens, tokenizer, device, pressed) -> list[dict]:
    """`train`, when all is checked: from the newest checkpoint, if there is one, to the last step."""
    lead = distributed.rank() == 0
    torch.manual_seed(settings.seed)
    masters = Model(config).to(device).train()
    low = settings.dtype == "bfloat16" or settings.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    model = computing_copy(masters) if low else masters
    optimiser, anticipation = make_optimiser(masters, settings), Anticipation(settings)
    log, folder, step = [], newest(out), 0

    def keep():
        if lead:
            save_step(masters, optimiser, out, step, tokenizer, anticipation.state())

    def go_back(folder) -> int:
        masters.load_state_dict(load(folder).state_dict())
        refresh(model, masters)
        read_optimiser(optimiser, masters, folder)
        return int(folder.name[5:])

    def write(record):
        log.append(record)
        if lead:
            note(out, record)

    def look(split):
        stage, every = settings.at(step - 1)[0], 1 if split == "heldout" else 8
        loss, per_byte = evaluate(model, tokens[split], stage.seq_len, tokenizer, every, settings.packed,
                                  dense=stage.attention == "dense")
        write({"step": step, f"{split}_loss": loss, f"{split}_bits_per_byte": per_byte})

    def choose(step):       # the experts of a step to come, see `minids.pretrain.anticipatory_routing`
        return choices(model, batch(step), settings, step)

    def batch(step):
        return torch.from_numpy(batch_of(tokens["train"], settings, step)).to(device)               # B T+1

    if folder is not None:
        step = go_back(folder)
        log = [record for record in read_log(out) if record["step"] <= step]
        if settings.anticipate:
            anticipation.restore(read_routes(folder), device)
    elif settings.spike:
        keep()              # a place to go back to
    if lead:
        write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in log))

    saved, stored_seconds, read = step, max((r.get("seconds", 0) for r in log), default=0.0), 0
    began = time.monotonic()
    with tqdm(total=settings.steps, initial=step, desc="training", unit="step", dynamic_ncols=True, disable=not lead) as bar:
        while step < settings.steps:
            ids, experts = batch(step), anticipation.experts(step, choose)
            record = {"step": step + 1} | train_step(model, optimiser, ids, settings, step, masters, experts)
            step, read = step + 1, read + ids[:, 1:].numel()
            record["seconds"] = round(stored_seconds + time.monotonic() - began, 3)
            if settings.stages:
                record["stage"] = settings.at(step - 1)[1] + 1
            spiked = anticipation.spiked(step - 1, record["loss"], log)
            write(record)
            bar.set_postfix_str(f"loss {record['loss']:.3f}, {read / (time.monotonic() - began):,.0f} tokens/s", refresh=False)
            if spiked:
                write({"step": step, "spike": record["loss"], "back_to": int(newest(out).name[5:])})
                step = go_back(newest(out))
                bar.reset()
            bar.update(step - bar.n)
            if spiked:
                continue
            if step % settings.eval_every == 0 and step < settings.steps and lead:
                look("valid")
            interrupted = distributed.anyone(pressed(), device)
            if step % settings.save_every == 0 or step == settings.steps or interrupted:
                keep()
                saved = step
            if on_step is not None:
                on_step(record)
            if interrupted and saved == step:
                raise Interrupted(f"interrupted after step {step} of {settings.steps}; the checkpoint is in {out}: "
                                  f"run the same command again to go on")
    if lead:
        for split in ("valid", "heldout"):
            if not any(f"{split}_loss" in record and record["step"] == step for record in log):
                look(split)
        save(masters, out / "model", format=settings.format, tokenizer=tokenizer)
        if settings.format == "v4":         # rounding costs something: what is the loss of the model as it is in the file?
            loss, per_byte = evaluate(load(out / "model", dtype=torch.float32).to(device), tokens["heldout"],
                                      settings.at(step - 1)[0].seq_len, tokenizer, packed=settings.packed)
            write({"step": step, "rounded_loss": loss, "rounded_bits_per_byte": per_byte})
    return log


def train_step(model, optimiser, ids, settings: TrainConfig, step: int, masters=None, experts=None) -> dict:
    """One update from `ids`, B x T+1, the batch of all processes; returns what the log says of it.

    Each loss is the mean over the whole batch, whatever parts it is computed in. `masters` are the float32 weights of a model
    that computes in bfloat16, `experts` the choices to replay (`choices`).
    """
    masters, lr, weights = masters or model, learning_rate(settings, step), loss_weights(model.config, settings, step)
    for group in optimiser.param_groups:
        group["lr"] = lr * group["times"]
    optimiser.zero_grad(set_to_none=True)
    parts = parts_of(ids, settings, model.config.bos_token_id, distributed.size())
    whole = {name: sum(part.count(name) for part in parts) for name in weights}
    means = dict.fromkeys(weights, torch.zeros((), device=ids.device))
    for i, part in enumerate(parts[distributed.rank()::distributed.size()]):
        found, _ = losses(model, part, settings, step, experts and experts[i])
        shares = {name: loss * (part.count(name) / max(whole[name], 1)) for name, loss in found.items()}
        teaching = [weights[name] * share for name, share in shares.items() if weights[name]]
        if teaching:        # not so in a warm-up where no document is long enough for an entry
            sum(teaching).backward()
        means |= {name: means[name] + share.detach() for name, share in shares.items()}
    distributed.total_gradients(masters.parameters())
    distributed.total(list(means.values()))
    record = {name: mean.item() for name, mean in means.items()}
    norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), settings.clip).item()
    if not all(map(math.isfinite, (norm, *record.values()))):
        raise MinidsError(f"the loss is {record['loss']} and the gradient's norm {norm} at step {step + 1}: expected "
                          f"finite numbers. The last checkpoint is whole; try a lower learning rate than {settings.lr}.")
    optimiser.step()
    if masters is not model:
        refresh(model, masters)
    distributed.total([m.load for m in model.modules() if isinstance(m, Gate) and m.load is not None])
    balance(model, 0.0 if settings.at(step)[0].attention == "warmup" else settings.balance)
    return record | {"grad_norm": norm, "lr": lr}


def loss_weights(config: Config, settings: TrainConfig, step: int) -> dict[str, float]:
    """The losses of a step and their weights; what has the weight 0 is for the log."""
    stage = settings.at(step)[0]
    if stage.attention == "warmup":
        return {"loss": 0.0, "index_loss": 1.0}
    chooses = CSA_RATE in config.compress_ratios and stage.seq_len // CSA_RATE > config.index_topk
    weights = {"loss": 1.0, "mtp_loss": mtp_weight(settings, step) if config.n_mtp_layers else 0.0,
               "balance_loss": settings.sequence_balance,
               "index_loss": settings.index_weight if stage.attention == "sparse" and chooses else 0.0}
    return {name: weight for name, weight in weights.items() if weight}


def losses(model, part: Part, settings: TrainConfig, step: int, experts=None) -> tuple[dict, list]:
    """The losses of one part of a batch, means over that part, in nats where they are nats; and the experts chosen."""
    wanted, attention = loss_weights(model.config, settings, step), settings.at(step)[0].attention
    ledger = Ledger(part.documents, dense=attention != "sparse", experts=experts,
                    balance="balance_loss" in wanted, index="index_loss" in wanted)
    X = model.features(part.x, ledger=ledger)                                                        # B T n d
    found = {"loss": cross_entropy(model.logits(X), part.y)}
    if "mtp_loss" in wanted:  # from the streams at t and the token at t + 1: the token at t + 2
        x = part.x[part.some]                                                                        # b T
        ledger = dataclasses.replace(ledger, packing=part.packing(x[:, :-1]))                        # the same lists go on
        found["mtp_loss"] = cross_entropy(model.mtp_logits(X[part.some, :-1], x[:, 1:], ledger=ledger), part.z)
    found |= {"balance_loss": ledger.balance_loss, "index_loss": ledger.index_loss}
    return {name: loss for name, loss in found.items() if loss is not None}, ledger.chosen


def cross_entropy(logits, y):
    """logits: B T vocab, y: B T -> the mean over targets that count; 0 where none does."""
    total = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (y != IGNORED).sum().clamp(1)


@torch.no_grad()
def choices(model, ids, settings: TrainConfig, step: int) -> list[list]:
    """The experts that the weights as they are choose for the batch `ids` of a step: for each part, a list of N x K."""
    parts = parts_of(ids, settings, model.config.bos_token_id, processes=1)
    model.eval()            # these choices are no load
    chosen = [losses(model, part, settings, step)[1] for part in parts]
    model.train()
    return chosen


@torch.inference_mode()
def evaluate(model, stream, seq_len: int, tokenizer=None, every: int = 1, packed: bool = True,
             dense: bool = False) -> tuple[float, float | None]:
    """Mean loss in nats per token on the stream; with a tokenizer also in bits per byte of text: the marks where documents
    begin and end are predicted like all else, but are no text.

    The stream is cut into windows of `seq_len` that overlap by a quarter, so that each token but the first is counted once
    and, past the first window, has at least that much to go by. Of the windows each `every`-th counts. `packed` reads each
    document by itself, and does not count the token that begins one. `dense` lets CSA layers read all entries.
    """
    training, device, bos_id = model.training, model.embed.weight.device, model.config.bos_token_id
    model.eval()
    stream, overlap = np.asarray(stream).astype(np.int64), seq_len // 4
    starts = range(0, max(len(stream) - 1 - overlap, 1), seq_len - overlap)[::every]
    windows = [(stream[s : s + seq_len + 1], overlap if s else 0) for s in starts]                   # ids, targets not counted
    total, counted = 0.0, []
    for alike in sorted({(len(ids), skip) for ids, skip in windows}):
        group = np.stack([ids for ids, skip in windows if (len(ids), skip) == alike])
        for ids in torch.from_numpy(group).to(device).split(max(4096 // seq_len, 1)):
            x, y = ids[:, :-1], targets(ids, bos_id, packed)[:, alike[1] :]
            X = model.features(x, ledger=Ledger(packing(x, bos_id, packed), dense))
            logits = model.logits(X)[:, alike[1] :]                                                  # B T vocab
            total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum").item()
            counted.append(y[y != IGNORED].cpu().numpy())
    model.train(training)
    counted = np.concatenate(counted)
    said = tokenizer and len(tokenizer.to_bytes(counted[~np.isin(counted, (tokenizer.bos_id, tokenizer.eos_id))]))
    return total / max(len(counted), 1), tokenizer and total / math.log(2) / said


def check(config: Config, settings: TrainConfig, tokens) -> None:
    """Raise `MinidsError` unless these sizes fit each other, the text and the number of processes."""
    longest, processes = max(stage.seq_len for stage in settings.plan), distributed.size()
    if longest > config.max_seq_len:
        raise MinidsError(f"seq_len: expected at most the model's context of {config.max_seq_len}, found {longest}")
    for stage in settings.plan:
        if stage.batch % (settings.accumulate * processes):
            raise MinidsError(f"batch: expected a multiple of accumulate = {settings.accumulate} times {processes} processes, "
                              f"found {stage.batch}")
        if stage.attention == "warmup" and (CSA_RATE not in config.compress_ratios or stage.seq_len < CSA_RATE):
            raise MinidsError("stages: a warm-up trains the indexer of CSA layers on compressed entries, and here are none")
    if settings.anticipate and processes > 1:
        raise MinidsError("anticipate: expected one process; what one process chose is not saved for the others")
    for split in books.SPLITS:
        if split not in tokens:
            raise MinidsError(f"tokens: expected id streams for {', '.join(books.SPLITS)}, found {', '.join(tokens) or 'none'}")
        low, high = int(np.min(tokens[split])), int(np.max(tokens[split]))
        if low < 0 or high >= config.vocab_size:
            raise MinidsError(f"{split}: expected token ids from 0 to {config.vocab_size - 1}, found {low} to {high}")
        if len(tokens[split]) < 3 * longest + 1:
            raise MinidsError(f"{split}: expected at least {3 * longest + 1} tokens (three sequences), "
                              f"found {len(tokens[split])}")
