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
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from minids.config import CSA_RATE, Config
from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.model.moe import balance
from minids.model.transformer import Model
from minids.pretrain.anticipatory_routing import Anticipation
from minids.pretrain.batches import batch_of, parts_of, streams
from minids.pretrain.losses import choices, counts, loss_weights, losses, stream_loss
from minids.pretrain.mixed_precision import computing_copy, refresh
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.run_folder import deferred_interrupt, newest, note, read_log, read_optimiser, read_routes, save_step, start
from minids.pretrain.settings import TrainConfig
from minids.system import distributed
from minids.system.files import write_text
from minids.weights.checkpoint import load
from minids.weights.save import save


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
        loss, per_byte = stream_loss(model, tokens[split], stage.seq_len, tokenizer, every, settings.packed,
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
            loss, per_byte = stream_loss(load(out / "model", dtype=torch.float32).to(device), tokens["heldout"],
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
    whole = {name: max(sum(counts(part)[name] for part in parts), 1) for name in weights}
    means, loads = dict.fromkeys(weights, torch.zeros((), device=ids.device)), []
    for i, part in enumerate(parts[distributed.rank()::distributed.size()]):
        sums, passed = losses(model, part, settings, step, experts and experts[i])
        shares = {name: loss / whole[name] for name, loss in sums.items()}
        loads = [sum(pair) for pair in zip(loads, passed.loads)] if loads else passed.loads
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
    if settings.at(step)[0].attention != "warmup":
        distributed.total(loads)
        balance(model, loads, settings.balance)
    return record | {"grad_norm": norm, "lr": lr}


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
