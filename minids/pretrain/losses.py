"""The losses of a training step, and the loss of a stream of text."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from minids.config import CSA_RATE, Config
from minids.model.ledger import Ledger
from minids.pretrain.batches import IGNORED, Part, packing, parts_of, targets
from minids.pretrain.optim import mtp_weight
from minids.pretrain.settings import TrainConfig


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
