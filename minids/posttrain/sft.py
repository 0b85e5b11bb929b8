"""Supervised fine-tuning: a base model learns to answer problems, in V4's three thinking modes.

Report section 5.1: the first step to a specialist. Problems of the training split become
conversations (`minids.data.chat`). Whole conversations are packed into rows and kept apart, and the
loss counts the tokens that the assistant writes. The optimiser is Muon, as in pre-training.
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
from minids.model.transformer import check_range
from minids.posttrain.loop import optimiser_step, post_training_run, validate
from minids.posttrain.records import SFTStep, Validation
from minids.posttrain.settings import PostTrainConfig
from minids.pretrain.batches import IGNORED
from minids.pretrain.losses import floats, head_loss, mean, mtp_loss
from minids.pretrain.settings import require_least
from minids.system import distributed
from minids.system.devices import moved
from minids.system.files import check_writable
from minids.weights.checkpoint import load


@dataclass(frozen=True)
class SFTConfig(PostTrainConfig):
    """The settings of supervised fine-tuning."""

    steps: int = 200            # number of training steps
    lr: float = 8e-3            # peak learning rate; it falls to a tenth along a cosine
    batch: int = 48             # conversations per step
    seq_len: int = 256          # most tokens in a row; a longer conversation has its own row
    mtp_weight: float = 0.1     # weight of the multi-token prediction loss, which keeps drafts good
    mtp_share: float = 0.25     # share of the rows that the multi-token prediction loss covers

    def __post_init__(self):
        super().__post_init__()
        require_least(self, 1, "batch")
        require_least(self, 2, "seq_len")
        if not 0 < self.mtp_share <= 1:
            raise MinidsError(f"mtp_share: expected above 0 and at most 1, found {self.mtp_share}")

    def problem_and_mode(self, i: int) -> tuple[int, str]:
        """The number of the problem of conversation i, and its mode.

        Each problem comes in all modes before the next one does. The numbers of both stay in the
        million of a seed (`PostTrainConfig.numbers`).
        """
        million, place = divmod(i, 1_000_000)
        number = million * 1_000_000 + place // len(self.modes)
        return number, self.modes[place % len(self.modes)]


def sft(base, settings: SFTConfig, out, resume: bool = True, on_step=None,
        device=None) -> list[SFTStep | Validation]:
    """Fine-tune the model in the folder `base`, in the folder `out`; returns the log.

    For the records of the log see `minids.posttrain.records`, for the other arguments, the files
    and the errors `minids.pretrain.train.train`.
    """
    # 1. The model
    check_writable(out, folder=True)
    device = distributed.device_or_cpu(device)
    model, tokenizer = load(base, device, torch.float32), Tokenizer.load()
    longest = model.config.max_seq_len
    if settings.seq_len > longest:
        raise MinidsError(f"seq_len: expected at most the model's context of {longest}, found "
                          f"{settings.seq_len}")

    def evaluate() -> list[Validation]:
        return valid_loss(model, tokenizer, settings) + validate(model, tokenizer, settings)

    with post_training_run(model, settings, out, "SFT", resume) as (run, optimiser):
        if run.step == 0:
            run.log(*evaluate())
        for step in run.steps(on_step):
            # 2. Worked answers as conversations, packed into rows
            numbers = settings.numbers(step, settings.batch)
            rows = packed_rows([conversation(settings, "train", i) for i in numbers],
                               settings.seq_len, tokenizer)                             # B T, B T

            # 3. The loss on what the assistant writes
            parts = losses(model, *rows, settings)
            loss = parts["loss"] + settings.mtp_weight * parts.get("mtp_loss", 0.0)
            loss.backward()

            # 4. The update
            record: SFTStep = floats({name: part.detach() for name, part in parts.items()})
            record["tokens"] = int(rows[1].sum())
            run.log_step(record | optimiser_step(model, optimiser, settings, step))
            if run.is_due(settings.eval_every):
                run.log(*evaluate())
    return run.records


def valid_loss(model, tokenizer: Tokenizer, settings: SFTConfig) -> list[Validation]:
    """The loss on conversations of the validation split, as a record; none without problems."""
    conversations = [conversation(settings, "valid", i) for i in range(settings.eval_problems)]
    if not conversations:
        return []
    rows = packed_rows(conversations, settings.seq_len, tokenizer)
    with torch.no_grad():
        return [{"valid_loss": losses(model, *rows, settings)["loss"].item()}]


# ---- conversations ----

def conversation(settings: SFTConfig, split: str, i: int) -> list[int]:
    """The ids of conversation number i of a split."""
    number, mode = settings.problem_and_mode(i)
    return worked(settings.problem(split, number), Tokenizer.load(), mode)


def worked(problem: tasks.Problem, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a question and its worked reply."""
    message = {"role": "assistant", "content": problem.answer,
               "reasoning": reasoning(problem, mode)}
    return encode_chat([{"role": "user", "content": problem.prompt}, message], tokenizer, mode)


def reasoning(problem: tasks.Problem, mode: str) -> str:
    """The text between <think> and </think>: the steps, in "think-max" twice, the second time as
    a check."""
    return {"non-think": "", "think-high": problem.steps,
            "think-max": f"{problem.steps}\nCheck: {problem.steps}"}[mode]


def packed_rows(conversations, seq_len: int, tokenizer: Tokenizer):
    """Whole conversations in rows, packed by first-fit decreasing.

    Returns ids, B T, padded at the end, and B T, whether the assistant wrote the token. T is at
    most `seq_len`, or the length of the longest conversation.
    """
    rows = []
    for ids in sorted(conversations, key=len, reverse=True):
        row = next((row for row in rows if len(row) + len(ids) <= seq_len), None)
        if row is None:
            rows.append(row := [])
        row += ids
    T = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_id] * (T - len(row)) for row in rows])
    wrote = [reply_mask(row, tokenizer) + [False] * (T - len(row)) for row in rows]
    return ids, torch.tensor(wrote)


# ---- the loss ----

def losses(model, ids, wrote, settings: SFTConfig) -> dict:
    """The mean loss on the tokens that the assistant wrote, in nats: {"loss": of the next token,
    "mtp_loss": of the token after the next, on the first `mtp_share` of the rows}.

    ids, wrote: B T, see `packed_rows`.
    """
    bos, device = model.config.bos_token_id, model.embed.weight.device
    check_range(ids, model.config.vocab_size)
    ids, wrote = moved(ids, device), moved(wrote, device)
    x, y = ids[:, :-1], ids.masked_fill(~wrote, IGNORED)[:, 1:]                     # B T-1
    X = model.features(x, options=Options(Packing.of(x, bos)))                      # B T-1 n d
    parts = {"loss": mean(head_loss(model, model.hidden, X, y))}
    if model.config.n_mtp_layers and settings.mtp_weight:
        rows = slice(math.ceil(settings.mtp_share * len(ids)))
        options = Options(Packing.of(x[rows, :-1], bos))
        parts["mtp_loss"] = mean(mtp_loss(model, X[rows], x[rows], y[rows, 1:], options)[0])
    return parts
