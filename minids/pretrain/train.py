"""Pre-training as V4 does it, scaled down, and resumable to the bit.

Report sections 4.1 and 4.2: next-token loss and multi-token prediction, experts balanced mostly
without a loss, packed documents kept apart, and stages: dense attention, a warm-up of the indexer,
sparse attention. Step s of a run depends on (settings, seed, s) and the weights alone: there is no
other randomness. So on a CPU, with the same number of threads, a resumed run is equal to the bit to
one that was never stopped (commands choose the number, see `threads`; --threads N fixes it). On
CUDA that is not guaranteed: the gradient of `index_select`, which sorts tokens by expert, is added
up atomically, and the order of the additions changes their rounding.

The parts are in the modules beside this one: `run` (log, checkpoints, resuming), `batches` (what a
step reads), `losses`, `optim` (AdamW, Muon, the schedule), `anticipatory_routing` (against loss
spikes), `mixed_precision` (bfloat16). For several processes see `minids.system.distributed`.
"""

import dataclasses
import math

import numpy as np
import torch

from minids.config import CSA_RATE, Config
from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.model.moe import balance
from minids.model.transformer import Model
from minids.pretrain.anticipatory_routing import Anticipation
from minids.pretrain.batches import batch_at, parts_of, streams
from minids.pretrain.losses import choices, floats, loss_weights, losses, stream_loss, totals
from minids.pretrain.mixed_precision import computing_copy, refresh
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.records import Spike, TextLoss, TrainStep
from minids.pretrain.run import open_run
from minids.pretrain.run_folder import read_routes, step_of
from minids.pretrain.settings import TrainConfig
from minids.system import distributed
from minids.system.devices import moved
from minids.system.files import check_writable
from minids.weights.checkpoint import load


def train(config: Config, settings: TrainConfig, out, resume: bool = True, on_step=None,
          tokens=None, device=None,
          model: Model | None = None) -> list[TrainStep | TextLoss | Spike]:
    """Train a new model, or go on where `out` stopped; returns the log, one dict a record.

    `out` gets log.jsonl, a checkpoint folder step-NNNNNN (the newest only), and at the end
    `model/`, the trained model in `settings.format`. With `resume=False` a former run in `out` is
    deleted. `on_step(record)` is called after each step. `tokens` holds the id streams of the
    shipped tokenizer, {split: ids}; by default those that `settings.data` names. `device`: by
    default the one that MINIDS_DEVICE names, or the CPU. `model` is the model to train, in place;
    by default a new one with random weights from the seed. For the records see
    `minids.pretrain.records`.

    Under torchrun each process calls this; the first one writes, and its log alone has the losses
    on validation and held-out text. Raises `MinidsError` for what cannot be trained or written,
    `Interrupted` on Ctrl-C, when all is saved.
    """
    # 1. The text, checked against the sizes of the model before anything is written
    check_writable(out, folder=True)
    device = distributed.device_or_cpu(device)
    tokens = streams(settings) if tokens is None else tokens
    check(config, settings, tokens)
    if model is not None and model.config != config:
        raise MinidsError("model: expected a model of the configuration to train, found another")
    description = {"config": config.to_json(), "settings": dataclasses.asdict(settings),
                   "tokens": len(tokens["train"])}

    with open_run(out, description, settings, "training", resume, device) as run:
        # 2. The float32 weights that learn, a copy that computes in bfloat16 if wanted, Muon
        masters = (new_model(config, settings.seed) if model is None else model).to(device).train()
        model = computing_copy(masters) if in_bfloat16(settings, device) else masters
        optimiser, anticipation = make_optimiser(masters, settings), Anticipation(settings)

        # 3. Go on from the newest checkpoint
        run.restore(masters, optimiser, anticipation.state)
        refresh(model, masters)
        if run.checkpoint is not None and settings.anticipate:
            anticipation.restore(read_routes(run.checkpoint), device)
        elif run.checkpoint is None and settings.spike:
            run.save()              # a place to go back to

        def batch(step):
            ids = torch.from_numpy(batch_at(tokens["train"], settings, step))              # B T+1
            return moved(ids, device)

        # 4. The steps
        read = 0
        for step in run.steps(on_step):
            ids = batch(step)
            experts = anticipation.experts(
                step, lambda ahead: choices(model, batch(ahead), settings, ahead))
            record = train_step(model, optimiser, ids, settings, step, masters, experts)
            if settings.stages:
                record["stage"] = settings.at(step)[1] + 1
            spiked = anticipation.spiked(step, record["loss"], run.records)
            read += ids[:, 1:].numel()
            speed = f"{read / run.elapsed:,.0f} tokens/s"
            run.log_step(record, f"loss {record['loss']:.3f}, {speed}")
            if spiked:
                spike: Spike = {"spike": record["loss"], "back_to": step_of(run.checkpoint)}
                run.log(spike)
                run.go_back()
                refresh(model, masters)
            elif run.step % settings.eval_every == 0 and run.step < settings.steps and run.writes:
                run.log(text_loss(model, "valid", tokens, settings, step))

        # 5. The losses at the end, the file, and what its rounding costs
        if run.writes:
            last = settings.steps - 1
            for split in ("valid", "heldout"):
                if not run.has_logged(f"{split}_loss"):
                    run.log(text_loss(model, split, tokens, settings, last))
            run.save_model()
            if settings.format == "v4" and not run.has_logged("rounded_loss"):
                run.log(rounded_loss(run.out / "model", tokens, settings, device))
    return run.records


def new_model(config: Config, seed: int) -> Model:
    """The model that a run with this seed starts from."""
    torch.manual_seed(seed)
    return Model(config)


def in_bfloat16(settings: TrainConfig, device: torch.device) -> bool:
    """Whether the model computes in bfloat16; see `TrainConfig.dtype`."""
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.dtype == "bfloat16" or settings.dtype == "auto" and supported


def text_loss(model, split: str, tokens, settings: TrainConfig, step: int) -> TextLoss:
    """The loss on a split as the stage of `step` reads it: an eighth of "valid", all others whole.

    {"<split>_loss": nats per token, "<split>_bits_per_byte"}.
    """
    stage, every = settings.at(step)[0], 8 if split == "valid" else 1
    loss, per_byte = stream_loss(model, tokens[split], stage.seq_len, Tokenizer.load(), every,
                                 settings.packed, dense=stage.attention == "dense")
    return {f"{split}_loss": loss, f"{split}_bits_per_byte": per_byte}


def rounded_loss(folder, tokens, settings: TrainConfig, device) -> TextLoss:
    """The loss on held-out text of the model as its file holds it, rounded to FP8 and FP4."""
    model, stage = load(folder, dtype=torch.float32).to(device), settings.at(settings.steps - 1)[0]
    loss, per_byte = stream_loss(model, tokens["heldout"], stage.seq_len, Tokenizer.load(),
                                 packed=settings.packed)
    return {"rounded_loss": loss, "rounded_bits_per_byte": per_byte}


def train_step(model, optimiser, ids, settings: TrainConfig, step: int, masters=None,
               experts=None) -> TrainStep:
    """One update from `ids`, B x T+1, the batch of all processes; returns its log record.

    Each loss is the mean over the whole batch, whatever parts it is computed in. `masters` are the
    float32 weights of a model that computes in bfloat16, `experts` the choices to replay, one list
    for each part (see `minids.pretrain.losses.choices`).
    """
    masters = masters or model
    weights, lr = loss_weights(model.config, settings, step), learning_rate(settings, step)

    # 1. The losses and their gradients, part by part; of n processes each takes every n-th part
    optimiser.zero_grad(set_to_none=True)
    parts = parts_of(ids, settings, model.config.bos_token_id, distributed.size())
    count = totals(parts, weights)
    means, loads = dict.fromkeys(weights, torch.zeros((), device=ids.device)), []
    for i, part in enumerate(parts[distributed.rank()::distributed.size()]):
        sums, passed = losses(model, part, settings, step, experts and experts[i])
        shares = {name: loss / count[name] for name, loss in sums.items()}
        weighted = [weights[name] * share for name, share in shares.items() if weights[name]]
        if weighted:        # none in a warm-up where no document is long enough for an entry
            sum(weighted).backward()
        means |= {name: means[name] + share.detach() for name, share in shares.items()}
        loads = [sum(pair) for pair in zip(loads, passed.loads)] if loads else passed.loads
    distributed.total_gradients(masters.parameters())
    distributed.total(list(means.values()))

    # 2. The step of the optimiser, with the norm of the gradient clipped
    norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), settings.max_grad_norm)
    # without any gradient, torch's norm is a zero on the CPU
    record = floats(means | {"grad_norm": norm.to(ids.device)})
    if not all(map(math.isfinite, record.values())):
        raise MinidsError(
            f"the loss is {record['loss']} and the norm of the gradient {record['grad_norm']} at "
            f"step {step + 1}: expected finite numbers. The last checkpoint is complete; try a "
            f"lower learning rate than {settings.lr}.")
    for group in optimiser.param_groups:
        group["lr"] = lr * group["times"]
    optimiser.step()
    if masters is not model:
        refresh(model, masters)

    # 3. The experts: gates whose expert had too many tokens lower its bias, and the reverse
    if settings.at(step)[0].attention != "warmup":
        distributed.total(loads)
        balance(model, loads, settings.balance)
    return record | {"lr": lr}


def check(config: Config, settings: TrainConfig, tokens) -> None:
    """Raise `MinidsError` unless model, settings, text and number of processes fit each other."""
    longest = max(stage.seq_len for stage in settings.plan)
    processes, accumulate = distributed.size(), settings.accumulate
    if longest > config.max_seq_len:
        raise MinidsError(f"seq_len: expected at most the model's context of {config.max_seq_len}, "
                          f"found {longest}")
    for stage in settings.plan:
        if stage.batch % (accumulate * processes):
            raise MinidsError(f"batch: expected a multiple of accumulate = {accumulate} times "
                              f"{processes} processes, found {stage.batch}")
        has_entries = CSA_RATE in config.compress_ratios and stage.seq_len >= CSA_RATE
        if stage.attention == "warmup" and not has_entries:
            raise MinidsError("stages: a warm-up trains the indexer of CSA layers on compressed "
                              "entries, and this model or length has none")
    if settings.anticipate and processes > 1:
        raise MinidsError("anticipate: expected one process; the choices of one process are not "
                          "saved for the others")
    for split in books.SPLITS:
        if split not in tokens:
            raise MinidsError(f"tokens: expected id streams for {', '.join(books.SPLITS)}, found "
                              f"{', '.join(tokens) or 'none'}")
        ids = tokens[split]
        low, high, count = int(np.min(ids)), int(np.max(ids)), len(ids)
        if low < 0 or high >= config.vocab_size:
            raise MinidsError(f"{split}: expected token ids from 0 to {config.vocab_size - 1}, "
                              f"found {low} to {high}")
        if count < 3 * longest + 1:
            raise MinidsError(f"{split}: expected at least {3 * longest + 1} tokens (three "
                              f"sequences), found {count}")
