"""Supervised fine-tuning: a base model learns to answer a family's problems, in V4's three thinking modes.

Report section 5.1: the first step to a specialist. Problems of the train split become conversations (`minids.data.chat`), whole
conversations share rows, each read by itself, and the loss counts what the assistant writes. Muon as in pre-training.
"""

import math
from dataclasses import dataclass

import torch

from minids.data import tasks
from minids.data.chat import encode_chat, reply_mask
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.model.packing import Packing
from minids.model.passes import Options
from minids.posttrain.loop import descend, examine, run
from minids.posttrain.settings import Settings
from minids.pretrain.batches import IGNORED
from minids.pretrain.losses import cross_entropy, mean, mtp_loss
from minids.system.distributed import device
from minids.weights.checkpoint import load


@dataclass(frozen=True)
class SFTConfig(Settings):
    """How to fine-tune."""

    steps: int = 200
    lr: float = 8e-3
    batch: int = 48             # conversations of a step
    seq_len: int = 256          # tokens of a row, at most; a longer conversation has one of its own
    mtp_weight: float = 0.1     # weight of the MTP loss, so that drafts stay good
    mtp_share: float = 0.25     # of the rows, on which it is computed

    def __post_init__(self):
        super().__post_init__()
        if self.batch < 1 or self.seq_len < 2 or not 0 < self.mtp_share <= 1:
            raise MinidsError(f"expected a batch from 1, seq_len from 2, mtp_share above 0 and at most 1; found {self.batch}, "
                              f"{self.seq_len}, {self.mtp_share}")

    def turn(self, i: int) -> tuple[int, str]:
        """The number of the problem of conversation i, and its mode: all modes have their turn with a problem's family and
        difficulty before the next problem comes. Both stay in the million of a seed (`Settings.numbers`)."""
        million, at = divmod(i, 1_000_000)
        return million * 1_000_000 + at // len(self.modes), self.modes[at % len(self.modes)]


def sft(base, settings: SFTConfig, out, resume: bool = True, on_step=None) -> list[dict]:
    """Fine-tune the model in the folder `base`, in the folder `out`; returns the log (see `minids.posttrain.loop.run`).

    Its records: {"step", "loss", "mtp_loss", "tokens", "rehearsal_loss", "grad_norm", "lr", "seconds"} each step, as far as
    there is such a thing, losses in nats per token of replies, or of the corpus; {"step", "valid_loss"} and, for each mode,
    {"step", "mode", "valid_accuracy", "valid_length"} now and then.
    """
    model, tokenizer = load(base, device(), torch.float32), Tokenizer.load()
    longest = model.config.max_seq_len
    if settings.seq_len > longest:
        raise MinidsError(f"seq_len: expected at most the model's context of {longest}, found {settings.seq_len}")

    def update(optimiser, step):
        numbers = settings.numbers(step, settings.batch)
        rows = packed_rows([conversation(settings, "train", i) for i in numbers], settings.seq_len, tokenizer)
        found = losses(model, *rows, settings)
        total = found["loss"] + settings.mtp_weight * found.get("mtp_loss", 0.0)
        total.backward()
        record = {name: loss.item() for name, loss in found.items()}
        return record | {"tokens": int(rows[1].sum())} | descend(model, optimiser, settings, step)

    def look(step):
        rows = [conversation(settings, "valid", i) for i in range(settings.eval_problems)]
        with torch.no_grad():
            loss = losses(model, *packed_rows(rows, settings.seq_len, tokenizer), settings)["loss"] if rows else None
        return [{"valid_loss": loss.item()} for _ in rows[:1]] + examine(model, tokenizer, settings)

    return run(model, settings, out, {}, update, look, resume, on_step, name="SFT")


def conversation(settings: SFTConfig, split: str, i: int) -> list[int]:
    """The ids of conversation number i of a split."""
    number, mode = settings.turn(i)
    return worked(settings.problem(split, number), Tokenizer.load(), mode)


def worked(problem: tasks.Problem, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a question and its worked reply."""
    message = {"role": "assistant", "content": problem.answer, "reasoning": reasoning(problem, mode)}
    return encode_chat([{"role": "user", "content": problem.prompt}, message], tokenizer, mode)


def reasoning(problem: tasks.Problem, mode: str) -> str:
    """What stands between <think> and </think>: the steps, and in "think-max" the steps again as a check."""
    return {"non-think": "", "think-high": problem.steps, "think-max": f"{problem.steps}\nCheck: {problem.steps}"}[mode]


def packed_rows(conversations, seq_len: int, tokenizer: Tokenizer):
    """Whole conversations in as few rows as first fit finds, the longest first: ids B x T, padded behind; and B x T, whether
    the assistant wrote the token. T is at most `seq_len`, or the longest conversation."""
    rows = []
    for ids in sorted(conversations, key=len, reverse=True):
        row = next((row for row in rows if len(row) + len(ids) <= seq_len), None)
        if row is None:
            rows.append(row := [])
        row += ids
    T = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_id] * (T - len(row)) for row in rows])
    return ids, torch.tensor([reply_mask(row, tokenizer) + [False] * (T - len(row)) for row in rows])


def losses(model, ids, taught, settings: SFTConfig) -> dict:
    """Of conversations in rows, B x T, the mean losses of the tokens that are `taught`, in nats: the next token's, and with
    MTP the token's after the next, on some of the rows."""
    bos, place = model.config.bos_token_id, model.embed.weight.device
    ids, taught = ids.to(place), taught.to(place)
    x, y = ids[:, :-1], ids.masked_fill(~taught, IGNORED)[:, 1:]                          # B T-1
    X = model.features(x, options=Options(Packing.of(x, bos)))
    found = {"loss": mean(cross_entropy(model.logits(X), y))}
    if model.config.n_mtp_layers and settings.mtp_weight:
        some = slice(math.ceil(settings.mtp_share * len(ids)))
        options = Options(Packing.of(x[some, :-1], bos))
        found["mtp_loss"] = mean(mtp_loss(model, X[some], x[some], y[some, 1:], options)[0])
    return found
