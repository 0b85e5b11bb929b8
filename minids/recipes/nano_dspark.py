"""A DSpark module for the shipped nano model: `data/checkpoints/nano-dspark/`.

    python -m minids.recipes.nano_dspark

The loss is that of the DSpark paper (section 3.3) with its weights. The target is frozen. Blocks
begin at random places of the course's mixture, as it is: the paper has the target write the text.
Experts are stored in FP4 though the module was not trained for it: that costs 0.01 tokens per pass.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.model.dspark import DSpark, DSparkConfig, initialise, read_target
from minids.model.packing import Packing
from minids.model.passes import Options
from minids.pretrain.batches import batch_of
from minids.pretrain.optim import learning_rate, make_optimiser
from minids.pretrain.settings import RunSettings
from minids.system.files import check_writable
from minids.system.paths import DATA
from minids.weights.checkpoint import load
from minids.weights.dspark import save_dspark

# the padding token occurs in no text; three of four layers, as three of Flash's 43
DRAFTS = DSparkConfig(dspark_block_size=5, dspark_noise_token_id=2,
                      dspark_target_layer_ids=(1, 2, 3), dspark_markov_rank=32)
GAMMA = 4.0                                 # the weight of draft i, counted from 0: exp(-i / GAMMA)
CE, TV, CONFIDENCE = 0.1, 0.9, 1.0          # weights of the three losses
ROWS, SEQ_LEN, ANCHORS = 8, 256, 24         # of a step; blocks begin at the anchors of each row
SETTINGS = RunSettings(steps=600, optimiser="muon", lr=1e-2)


def blocks(model, dspark, ids, generator) -> dict:
    """Blocks of drafts at random places of a batch of text, and what the target says there.

    ids: B T, rows of whole documents one after another. With N = B * ANCHORS blocks of size k,
    "q" and "p": N k vocab, logits of the draft module and of the target; "confidence": N k, logits;
    "y": N k, the tokens; "counts": N k, whether a draft lies in the document of its anchor.
    """
    B, T = ids.shape
    size, w = dspark.drafts.dspark_block_size, model.config.window_size
    packing = Packing.of(ids, model.config.bos_token_id)
    with torch.no_grad():
        X, h = read_target(model, dspark, ids, options=Options(packing))
        hidden = model.hidden(X)                                                 # B T d
    anchor = torch.rand(B, T - 1, generator=generator).topk(ANCHORS).indices     # B A
    row = torch.arange(B)[:, None].expand_as(anchor).flatten()                   # N
    anchor = anchor.flatten()                                                    # N
    before = (anchor[:, None] + torch.arange(-w, 0)).clamp_min(0)                # N w
    keys = dspark.keys(dspark.context(h), packing.position)
    y = dspark(model, ids[row, anchor], packing.position[row, anchor],
               [k[row[:, None], before] for k in keys])                          # N k d
    at = (anchor[:, None] + torch.arange(size + 1)).clamp_max(T - 1)             # N k+1
    real = anchor[:, None] + torch.arange(1, size + 1) < T
    real &= packing.document[row[:, None], at[:, 1:]] == packing.document[row, anchor][:, None]
    text = ids[row[:, None], at]                                                 # N k+1
    with torch.no_grad():
        p = model.project(hidden[row[:, None], at[:, :-1]])                      # N k vocab
    return {"q": dspark.logits(model, y) + dspark.bias(text[:, :-1]), "p": p,
            "confidence": dspark.confidence(y, text[:, :-1]), "y": text[:, 1:], "counts": real}


def accept_rates(out: dict):
    """The chance of each draft to be accepted if those before it are: sum_v min(p, q), N k."""
    return torch.minimum(out["q"].softmax(-1), out["p"].softmax(-1)).sum(-1)


def loss_of(out: dict):
    """The paper's loss, equation 12: cross entropy, total variation, and that of the confidence."""
    weight = out["counts"] * torch.exp(-torch.arange(out["y"].shape[1]) / GAMMA)  # N k
    ce = F.cross_entropy(out["q"].transpose(1, 2), out["y"], reduction="none")
    rate = accept_rates(out)                                    # 1 - |p - q| / 2
    confidence = F.binary_cross_entropy_with_logits(out["confidence"], rate.detach(),
                                                    reduction="none")
    loss = CE * ce + TV * 2 * (1 - rate) + CONFIDENCE * confidence
    return (weight * loss).sum() / weight.sum()


def expected_length(out: dict) -> float:
    """Tokens a pass on the text itself: 1, and the chance of each draft that all up to it hold."""
    rate = accept_rates(out) * out["counts"]
    return 1 + float(rate.cumprod(-1).sum(-1)[out["counts"][:, -1]].mean())


def train(model, drafts: DSparkConfig = DRAFTS, settings: RunSettings = SETTINGS,
          show=print) -> DSpark:
    """A DSpark module for `model`, trained on the mixture."""
    tokenizer, seed = Tokenizer.load(), settings.seed
    stream = mixture.stream("train", settings.steps * ROWS * SEQ_LEN, tokenizer)
    valid = torch.from_numpy(batch_of(mixture.stream("valid", 60_000, tokenizer), 64, SEQ_LEN, 0,
                                      0))
    torch.manual_seed(seed)
    dspark = DSpark(model.config, drafts)
    initialise(dspark)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    optimiser = make_optimiser(dspark, settings)
    began = time.monotonic()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step) * group["times"]
        ids = torch.from_numpy(batch_of(stream, ROWS, SEQ_LEN, seed, step))
        dspark.train()
        loss = loss_of(blocks(model, dspark, ids, generator))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dspark.parameters(), settings.max_grad_norm)
        optimiser.step()
        if (step + 1) % settings.eval_every == 0:
            with torch.no_grad():
                dspark.eval()
                out = blocks(model, dspark, valid, torch.Generator().manual_seed(1))
            rates = accept_rates(out)[out["counts"].all(-1)].mean(0)
            show(f"step {step + 1:5}  loss {loss.item():.3f}  valid "
                 f"{loss_of(out).item():.3f}  {expected_length(out):.3f} tokens per pass  accepted "
                 f"{' '.join(f'{r:.0%}' for r in rates)}  {time.monotonic() - began:.0f} s")
    return dspark.eval().requires_grad_(False)


def main(argv=None) -> None:
    """Train the module, and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA / "checkpoints" / "nano-dspark")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    arguments = parser.parse_args(argv)
    check_writable(arguments.out, folder=True)
    torch.set_num_threads(1)
    settings = dataclasses.replace(SETTINGS, steps=arguments.steps)
    dspark = train(load(DATA / "checkpoints" / "nano"), settings=settings)
    save_dspark(dspark, arguments.out)


if __name__ == "__main__":
    main()
