"""Compile the kernels of `minids.model.kernels`, so that no lesson waits for it.

    python -m minids.recipes.kernels

The set-up of the course ends with this. The kernels are compiled by what uses them: a small model
trains for a few steps, reads prompts and decodes tokens, alone and in a batch, with drafts and from
packed weights. So they are compiled for exactly the types that lessons pass to them.
"""

import sys
import tempfile
import time
from collections.abc import Callable

import torch

from minids.config import Config
from minids.data.mixture import stream
from minids.data.tokenizer import Tokenizer
from minids.inference.generate import generate
from minids.inference.speculate import speculate
from minids.model import mhc, vocabulary
from minids.model.kernels import compiled
from minids.posttrain.rollouts import rollouts
from minids.pretrain.settings import Stage, TrainConfig
from minids.pretrain.train import train
from minids.system.paths import data
from minids.weights.checkpoint import load
from minids.weights.streamed import streamed

STAGES = tuple(Stage(1, 256, 2, attention) for attention in ("dense", "warmup", "sparse"))


def training() -> None:
    """One step in each stage of a run, with packed documents."""
    settings = TrainConfig.preset("nano", "mix", steps=3, stages=STAGES, seed=0, format="v4")
    ids = stream("train", 8192, Tokenizer.load())
    tokens = {split: ids for split in ("train", "valid", "heldout")}
    with tempfile.TemporaryDirectory() as folder:
        train(Config.nano(), settings, folder, tokens=tokens, device="cpu")


def decoding() -> None:
    """Tokens after prompts, one sequence and several, with drafts, recorded; a site; log-probs."""
    model = load(data("checkpoints", "nano"))
    ids = torch.arange(300, 600)
    for prompts in (ids[None, :20], ids[None], ids[:40].view(2, 20)):
        generate(model, prompts, 8, temperature=0)
    speculate(model, ids[:40].tolist(), 8, temperature=0)
    generate(model, ids[None, :20], 8, top_p=0.9)
    for top_p in (1.0, 0.9):
        rollouts(model, [ids[:20].tolist()] * 9, 8, top_p=top_p, record=True)
    X = torch.randn(1, 40, 4, 128, requires_grad=True)
    mhc.read(X, torch.rand(4, 40)).sum().backward()     # as lessons use it
    logits = torch.randn(9, 2048, requires_grad=True)
    vocabulary.log_probs(logits, ids[:9])[0].sum().backward()


def packed_weights() -> None:
    """A prompt and a few tokens from weights in FP8 and FP4."""
    model = streamed(data("v4_sample"), dtype=torch.float32)
    for T in (1, 3, 40):
        model(torch.arange(20, 20 + T)[None])


def compile_all(show: Callable[[str], None] = print) -> int:
    """Compile the kernels and store their code; returns how many there are. 0: they are off."""
    if compiled.why_off():
        show(f"kernels are not used: {compiled.why_off()}")
        return 0
    started = time.monotonic()
    compiled.announcement.said = True       # this is said here
    show("compiling the kernels for this processor, which takes up to a minute or two ...")
    for job in (training, decoding, packed_weights):
        job()
        ready = sum(bool(kernel.signatures) for kernel in compiled.KERNELS)
        show(f"  {(job.__doc__ or '').splitlines()[0]} {ready} kernels are ready after "
             f"{time.monotonic() - started:.0f} s")
    return ready


if __name__ == "__main__":
    compile_all(lambda line: print(line, flush=True))
    sys.exit(0)
