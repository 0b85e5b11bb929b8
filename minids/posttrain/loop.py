"""What SFT, GRPO and distillation share: the run, the optimiser step, replay, and evaluation.

Report section 5.1. A run is kept in a folder and resumed as in pre-training
(`minids.pretrain.run`): step s depends on (settings, s), on the model that the run started from,
and on the weights alone.
"""

import dataclasses
import math
from contextlib import contextmanager
from functools import cache

import torch

from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import solve
from minids.model.passes import Options
from minids.model.transformer import check_range
from minids.posttrain.records import Update, Validation
from minids.posttrain.settings import PostTrainConfig
from minids.pretrain.batches import Part, batch_of
from minids.pretrain.losses import floats, head_loss, mean
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.run import open_run
from minids.system.devices import moved
from minids.weights.digest import digest

REPLAY_TOKENS, REPLAY_ROW = 2**19, 256      # tokens of the replayed corpus, and of one row


@contextmanager
def post_training_run(model, settings: PostTrainConfig, out, name: str, resume: bool, **inputs):
    """A run that trains `model` in place: yields (run, optimiser), and saves the model at the end.

    `inputs` describe what else the run depends on, for run.json. For the run see
    `minids.pretrain.run`.
    """
    description = {"config": model.config.to_json(), "settings": dataclasses.asdict(settings),
                   "base": digest(model)} | inputs
    with open_run(out, description, settings, name, resume, model.embed.weight.device) as run:
        optimiser = make_optimiser(model, settings)
        run.restore(model, optimiser)
        model.train()
        yield run, optimiser
        run.save_model()


def optimiser_step(model, optimiser, settings: PostTrainConfig, step: int,
                   number: int | None = None) -> Update:
    """One update with the gradients that are there, plus that of replay; returns its log record.

    `number` picks the replayed rows; by default it is `step`. The gates' biases stay as
    pre-training left them.
    """
    numbers = {}
    if settings.replay:
        numbers["replay_loss"] = replay_loss(model, settings, step if number is None else number)
    lr = learning_rate(settings, step)
    for group in optimiser.param_groups:
        group["lr"] = lr * group["times"]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    record: Update = floats(numbers | {"grad_norm": norm})
    if not math.isfinite(record["grad_norm"]):
        raise MinidsError(
            f"the norm of the gradient is {record['grad_norm']} at step {step + 1}: expected a "
            f"finite number. The last checkpoint is complete; try a lower learning rate than "
            f"{settings.lr}.")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return record | {"lr": lr}


def replay_loss(model, settings: PostTrainConfig, number: int) -> torch.Tensor:
    """Add the gradient of the next-token loss on `settings.replay` rows of pre-training text.

    Returns that loss, in nats per token, as a tensor. Each number has other rows, until the
    replayed corpus is exhausted; runs with the same seed replay the same rows. A model forgets what
    it no longer sees, so it keeps seeing some of it (Ouyang et al., arXiv 2203.02155, "PPO-ptx").
    """
    ids = torch.from_numpy(batch_of(replayed_corpus(), settings.replay, REPLAY_ROW, settings.seed,
                                    number, whole_documents=True))                  # B T+1
    check_range(ids, model.config.vocab_size)
    part = Part(moved(ids, model.embed.weight.device), model.config.bos_token_id)
    X = model.features(part.x, options=Options(part.documents))                     # B T n d
    loss = mean(head_loss(model, model.hidden, X, part.y))
    loss.backward()
    return loss.detach()


@cache
def replayed_corpus():
    """The pre-training text that `replay_loss` reads: ids, document after document."""
    return mixture.cached_stream("train", REPLAY_TOKENS, Tokenizer.load())


def validate(model, tokenizer: Tokenizer, settings: PostTrainConfig) -> list[Validation]:
    """Greedy answers to problems of the validation split, one record for each mode.

    {"mode", "valid_accuracy": share of correct answers, "valid_length": mean length in tokens}.
    """
    problems = [settings.problem("valid", i) for i in range(settings.eval_problems)]
    records: list[Validation] = []
    for mode in settings.modes if problems else ():
        verdicts, lengths = solve(model, tokenizer, problems, mode)
        records.append({"mode": mode, "valid_accuracy": sum(verdicts) / len(problems),
                        "valid_length": sum(lengths) / len(problems)})
    return records
