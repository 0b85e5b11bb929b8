"""Tests of my_v4, the model of a learner's own functions: its logits beside others, and a training.

The weights are those of the shipped nano model, so that every parameter matters.
"""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from minids import plain
from minids.config import Config
from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.sampling import sample
from minids.learn import mine
from minids.learn.sources import said
from minids.pretrain.batches import batch_of
from minids.system.paths import data
from minids.weights.checkpoint import load
from minids.weights.save import save

TOLERANCE = 1e-3        # of a logit; logits are of size 1 to 10
TOKENS = 272            # of each text: more than every window, and more entries than CSA picks
BOOKS = 8               # to train on: more than a minute reads
BATCH, LENGTH = 4, 128  # of a training step
PEAK = 3e-3             # learning rate


# ---- equality ----


@torch.no_grad()
def check(model: mine.Model) -> bool:
    """Whether my_v4 gives the logits of `minids.Model`, of `minids.plain` and of transformers.

    Prints the largest differences and the verdict; where they differ, the functions at fault.
    """
    nano = load(data("checkpoints", "nano"))
    ids = _text()
    expected = nano(ids)
    others = {"minids.Model": expected, "minids.plain": _logits(plain, nano, ids),
              "transformers": _theirs(nano, ids)}
    try:
        logits = _logits(mine.as_module(model.text), nano, ids)
    except Exception as error:      # the learner's code: anything can happen
        print(f"my_v4 raised {said(error)}")
        _name_faults(model, nano, ids, expected)
        return False
    print(f"largest difference of a logit, on {ids.numel()} tokens with the weights of nano:")
    for name, other in others.items():
        if other is None:
            print("    transformers is not installed: pip install transformers")
        else:
            print(f"    my_v4 and {name:12} {(logits - other).abs().max():.2g}")
    if all(_equal(logits, other) for other in others.values() if other is not None):
        print("my_v4 computes what DeepSeek-V4 computes.")
        return True
    print(f"my_v4 differs: expected at most {TOLERANCE:g}.")
    _name_faults(model, nano, ids, expected)
    return False


def _text():
    """The beginnings of two documents that no shipped model was trained on: 2 x TOKENS ids."""
    tokenizer = Tokenizer.load()
    texts = [document.text[:4000] for document in books.documents("heldout")[:2]]
    return torch.tensor([tokenizer.encode(text, bos=True)[:TOKENS] for text in texts])


def _logits(module, nano, ids):
    """The logits of a module's `Model` with nano's weights."""
    model = module.Model(nano.config).eval()
    model.load_state_dict(nano.state_dict())
    return model(ids)


def _theirs(nano, ids):
    """transformers' logits with nano's weights; None where transformers is not installed."""
    if find_spec("transformers") is None:
        return None
    from transformers import DeepseekV4ForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save(nano, Path(folder) / "nano", format="fp32")
        model = DeepseekV4ForCausalLM.from_pretrained(Path(folder) / "nano").eval()
    return model(ids, use_cache=False).logits


def _equal(logits, expected) -> bool:
    return logits.shape == expected.shape and torch.allclose(logits, expected, atol=TOLERANCE,
                                                             rtol=TOLERANCE)


def _name_faults(model: mine.Model, nano, ids, expected) -> None:
    """Print which of the learner's functions make the difference."""
    def good(yours):
        try:
            return _equal(_logits(mine.as_module(mine.together(yours)), nano, ids), expected)
        except Exception:           # the learner's code: anything can happen
            return False

    yours = model.yours
    faults = [one for part, one in yours.items()
              if good({p: other for p, other in yours.items() if p != part})]
    if faults:
        print("With ours in its place, the model is right again:")
    else:
        faults = [one for part, one in yours.items() if not good({part: one})]
        print("By itself, among ours, each of these makes the model wrong:")
    for one in faults:
        print(f"    {one.part} ({one.label})")
    if not faults:
        print("    none: it takes several of yours together")
    print("Run the check again in its lesson.")


# ---- training ----


def train(module, seconds: float = 60, device="cpu") -> list[float]:
    """Train a nano model of a my_v4 for some time; returns the loss of each step, nats per token.

    In float32 on `device`, on some of the shipped books; the learning rate rises for a tenth of the
    time, then falls to zero. Shows a progress bar, the loss, and a text that the model writes.
    """
    torch.manual_seed(0)
    model = module.Model(Config.nano()).to(device)
    tokens = books.encode(books.documents("train")[:BOOKS], Tokenizer.load())
    adamw = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    losses, begin = [], time.monotonic()
    with tqdm(total=round(seconds), unit="s", desc="my_v4", bar_format=(
            "{desc} {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}")) as bar:
        while (passed := time.monotonic() - begin) < seconds or not losses:
            adamw.param_groups[0]["lr"] = PEAK * _rate(passed / seconds)
            batch = torch.from_numpy(batch_of(tokens, BATCH, LENGTH, 0, len(losses)))
            losses.append(_step(model, adamw, batch.to(device)))
            bar.update(min(passed, seconds) - bar.n)
            bar.set_postfix_str(f"step {len(losses)}, loss {losses[-1]:.2f}")
    print(f"{len(losses)} steps of {BATCH * LENGTH} tokens: the loss has gone from {losses[0]:.2f} "
          f"to {sum(losses[-10:]) / len(losses[-10:]):.2f} nats per token")
    print(f"A text that it writes:\n{write(model.eval(), 'And the ')}")
    return losses


def _rate(done: float) -> float:
    """The learning rate, as a share of its peak, when this share of the time is over."""
    return max(min(done / 0.1, (1 - done) / 0.9), 0.01)


def _step(model, optimiser, batch) -> float:
    """One step on ids B x T+1; returns the loss."""
    try:
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    except Exception as error:      # the learner's code: anything can happen
        raise MinidsError(f"my_v4 raised {said(error)}: `minids mine --check` says in which "
                          "function") from error
    if not norm.isfinite():
        raise MinidsError("a gradient is not finite: `minids mine --check` compares the functions")
    optimiser.step()
    return loss.item()


@torch.no_grad()
def write(model, prompt: str, tokens: int = 80) -> str:
    """A text that a plain model writes after the prompt, without a cache."""
    tokenizer, rng = Tokenizer.load(), torch.Generator().manual_seed(0)
    ids = tokenizer.encode(prompt, bos=True)
    for _ in range(tokens):
        logits = model(torch.tensor([ids], device=model.embed.weight.device))[:, -1].cpu()
        ids.append(int(sample(logits, temperature=0.7, top_p=0.9, generator=rng)))
    return tokenizer.decode(ids[1:])
