"""The losses of a training step, as (sum, count), and the loss over a stream of text."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from minids.config import CSA_RATE, Config
from minids.model import vocabulary
from minids.model.passes import Options, Record
from minids.model.transformer import check_range
from minids.pretrain.batches import IGNORED, Part, packing, parts_of, targets
from minids.pretrain.optim import mtp_weight
from minids.pretrain.settings import TrainConfig
from minids.system.devices import moved


def cross_entropy(logits, y):
    """(the sum over targets that count, in nats; their number). logits: B T vocab, y: B T."""
    total = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED,
                            reduction="sum")
    return total, (y != IGNORED).sum()


def head_loss(model, head, X, y, learn: bool = True):
    """(the sum over targets that count, in nats; their number): as `cross_entropy` of the logits.

    head: `model.hidden`, or the head of an MTP block; X: B T n d, streams; y: B T. Positions
    without a target do not go through the head; a GPU would have to be asked where they are. The
    output matrix gets no gradient without `learn`.
    """
    y = y.flatten()
    count = (y != IGNORED).sum()
    if y.device.type == "cpu" and 0 < count < 0.9 * len(y):
        at = (y != IGNORED).nonzero()[:, 0]
        X, y = X.flatten(0, 1).index_select(0, at)[None], y[at]                      # 1 N n d, N
    h, W = head(X.contiguous()).flatten(0, 1), model.head.matrix()                   # N d
    if W.dtype != torch.float32:
        return cross_entropy(model.project(h)[None], y[None])
    return vocabulary.head_loss(h.float(), W if learn else W.detach(), y), count


def mean(loss):
    """The mean of a loss (sum, count); 0 where nothing counts."""
    total, count = loss
    return total / count.clamp(1)


def floats(numbers: dict) -> dict:
    """{name: float} for the log. The host waits for a GPU once, not for each of the numbers.

    numbers: {name: tensor of one float32 number}, on one device.
    """
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist())) if numbers else {}


def mtp_loss(model, X, x, far, options: Options = Options(), alone: bool = False):
    """The loss of the first MTP block, (sum, count) in nats, and the `Record` of its pass.

    X: B T n d, the streams of the tokens x: B T; far: B T-1, the token after the next of each
    position but the last, `IGNORED` where it does not count. The options' packing is that of
    x[:, :-1]. `alone`: nothing but the block learns.
    """
    X = X[:, :-1].detach() if alone else X[:, :-1]
    Y, record = model.run_mtp_block(X, x[:, 1:], options=options)
    return head_loss(model, model.mtp[0].head, Y, far, learn=not alone), record


def loss_weights(config: Config, settings: TrainConfig, step: int) -> dict[str, float]:
    """The losses of a step and their weights; a loss of weight 0 is for the log."""
    stage = settings.at(step)[0]
    if stage.attention == "warmup":
        return {"loss": 0.0, "index_loss": 1.0}
    many_entries = stage.seq_len // CSA_RATE > config.index_topk    # so that indexers have to pick
    picks = CSA_RATE in config.compress_ratios and many_entries
    train_indexer = stage.attention == "sparse" and picks
    weights = {"loss": 1.0,
               "mtp_loss": mtp_weight(settings, step) if config.n_mtp_layers else 0.0,
               "balance_loss": settings.sequence_balance,
               "index_loss": settings.index_weight if train_indexer else 0.0}
    return {name: weight for name, weight in weights.items() if weight}


def counts(part: Part) -> dict:
    """What each of the losses of `losses` is a sum over: targets, sequences, or queries."""
    packed, (B, T) = part.documents, part.x.shape
    queries = (packed.position >= CSA_RATE - 1).sum() if packed else B * max(T - CSA_RATE + 1, 0)
    return {"loss": (part.y != IGNORED).sum(), "mtp_loss": (part.z != IGNORED).sum(),
            "balance_loss": B, "index_loss": queries}        # queries: those that see an entry


def totals(parts: list[Part], names) -> dict:
    """The sums of `counts` over all parts, at least 1, for the losses with these names."""
    counted = [counts(part) for part in parts]
    return {name: torch.as_tensor(sum(count[name] for count in counted)).clamp(min=1)
            for name in names}


def losses(model, part: Part, settings: TrainConfig, step: int,
           experts=None) -> tuple[dict, Record]:
    """The losses of one part of a batch, {name: sum} (see `counts`), in nats where they are nats;
    and the record of the pass. experts: choices to replay, see `minids.model.passes.Options`."""
    weights, attention = loss_weights(model.config, settings, step), settings.at(step)[0].attention
    options = dict(dense=attention != "sparse", experts=experts,
                   balance="balance_loss" in weights, index="index_loss" in weights)
    X, record = model.run(part.x, options=Options(part.documents, **options))            # B T n d
    with torch.set_grad_enabled(torch.is_grad_enabled() and weights["loss"] > 0):
        sums = {"loss": head_loss(model, model.hidden, X, part.y)[0]}
    if "mtp_loss" in weights:
        x = part.x[part.mtp_rows]                                                            # b T
        mtp_options = Options(part.packing(x[:, :-1]), **options)
        (sums["mtp_loss"], _), mtp_record = mtp_loss(model, X[part.mtp_rows], x, part.z,
                                                     mtp_options)
        record += mtp_record
    if record.balance:
        sums["balance_loss"] = record.balance_loss * len(part.x)
    if record.index:
        sums["index_loss"] = record.index_loss * record.index[0][1]
    return sums, record


@torch.no_grad()
def choices(model, ids, settings: TrainConfig, step: int) -> list[list]:
    """The experts that the current weights choose for the batch `ids` of a step: for each part, the
    `Record.experts` of its pass."""
    parts = parts_of(ids, settings, model.config.bos_token_id, processes=1)
    return [losses(model, part, settings, step)[1].experts for part in parts]


@torch.inference_mode()
def stream_loss(model, stream, seq_len: int, tokenizer=None, every: int = 1, packed: bool = True,
                dense: bool = False) -> tuple[float, float | None]:
    """Mean loss of a stream of ids in nats per token; with a tokenizer also in bits per byte.

    The marks where documents begin and end are predicted like all else, but are no text. The
    stream is cut into windows of `seq_len` that overlap by a quarter, so that each token but the
    first counts once and, after the first window, has at least that much context. Only each
    `every`-th window counts. `packed` reads each document by itself, and does not count the token
    that begins one. `dense` lets CSA layers read all entries.
    """
    training, device, bos_id = model.training, model.embed.weight.device, model.config.bos_token_id
    model.eval()
    stream, overlap = np.asarray(stream).astype(np.int64), seq_len // 4
    starts = range(0, max(len(stream) - 1 - overlap, 1), seq_len - overlap)[::every]
    # (ids, how many targets at the beginning do not count)
    windows = [(stream[start : start + seq_len + 1], overlap if start else 0) for start in starts]
    sums, counted = [], []
    for length, skip in sorted({(len(ids), skip) for ids, skip in windows}):
        alike = np.stack([ids for ids, n in windows if (len(ids), n) == (length, skip)])
        for ids in torch.from_numpy(alike).split(max(4096 // seq_len, 1)):
            check_range(ids, model.config.vocab_size)
            y = targets(ids, bos_id, packed)[:, skip:]
            counted.append(y[y != IGNORED].numpy())
            x, y = moved(ids[:, :-1], device), moved(y, device)
            X = model.features(x, options=Options(packing(x, bos_id, packed), dense))
            sums.append(cross_entropy(model.logits(X[:, skip:]), y)[0])
    model.train(training)
    counted, total = np.concatenate(counted), sum(torch.stack(sums).tolist())
    nats = total / max(len(counted), 1)
    if tokenizer is None:
        return nats, None
    text = counted[~np.isin(counted, (tokenizer.bos_id, tokenizer.eos_id))]
    return nats, total / math.log(2) / len(tokenizer.to_bytes(text))
