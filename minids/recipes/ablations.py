"""What each part of V4 contributes at this size: the same run with one part replaced, over seeds.

    python -m minids.recipes.ablations

Report 4.3 compares whole models; ablations of single parts are in the papers of the parts. Each
variant trains on the same tokens in the same order: half a million of TinyWorld's scenes, short
stories with questions. On these a model learns to look things up with a fraction of the tokens that
the whole mixture takes. Measured are the loss on held-out scenes and the loss of the answers to
questions, near and far. The results are in data/ablations/.
"""

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minids.config import Config
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.evaluate import answer_nats, exam
from minids.model import mhc
from minids.pretrain.losses import stream_loss
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import new_model, train
from minids.system.files import check_writable
from minids.system.paths import DATA
from minids.weights.checkpoint import load

RESULTS = DATA / "ablations" / "results.jsonl"
SEQ_LEN = 256               # tokens of a row
NEAR, FAR = 30, 100         # words of the stories that questions refer to
QUESTIONS = 210             # questions about stories of each length
KINDS = ("scenes",)         # kinds of documents


def base() -> tuple[Config, TrainConfig]:
    """The run that each variant changes in one point: nano on scenes."""
    settings = TrainConfig.preset("nano", "mix", steps=240, decay_from=0.7, seq_len=SEQ_LEN,
                                  stages=(), format="bf16", eval_every=10**6, save_every=10**6)
    return Config.nano(), settings


def streams(tokens: int, tokenizer) -> dict:
    """The id streams of a run that reads `tokens` tokens: {split: ids}."""
    sizes = {"train": 2 * tokens, "valid": 8 * SEQ_LEN, "heldout": 40_000}
    return {split: mixture.stream(split, size, tokenizer, KINDS) for split, size in sizes.items()}


def residual(X, fn, scale, base, config):
    """In place of `mhc.maps`: one stream, with weights of 1."""
    ones = X.new_ones(1, X.shape[0] * X.shape[1])                                   # 1 N
    return ones, ones, ones[None]


def unconstrained(X, fn, scale, base, config):
    """In place of `mhc.maps`: V4's `pre` and `post`, but `comb` is any matrix (Zhu et al., arXiv
    2409.19606), at first the identity: V4's bases start at 4 on its diagonal, so it is a quarter
    of them."""
    pre, post, comb = mhc.affinities(X, fn, scale, base, config)
    return pre.sigmoid() + config.hc_eps, 2 * post.sigmoid(), comb / 4


# {name: (changes of the Config, changes of the TrainConfig, the function in place of `mhc.maps`)}
VARIANTS = {
    "V4 nano": ({}, {}, None),
    "AdamW": ({}, {"optimiser": "adamw", "lr": 3e-3, "vector_lr": 5.0}, None),
    "unconstrained hyper-connections": ({}, {}, unconstrained),
    "plain residual": ({"hc_mult": 1}, {}, residual),
    "no balancing": ({}, {"balance": 0.0, "sequence_balance": 0.0}, None),
    "dense, equal active size": ({"n_routed_experts": 2, "n_hash_layers": 0}, {}, None),
    "window only": ({"compress_ratios": (0, 0, 0, 0, 0)}, {}, None),
    "full attention": ({"compress_ratios": (0, 0, 0, 0, 0), "window_size": SEQ_LEN}, {}, None),
    "no MTP": ({"n_mtp_layers": 0, "compress_ratios": (0, 4, 16, 4)}, {}, None),
}


def with_maps(model, maps):
    """The model, with `maps` in place of `mhc.maps` in all of its blocks; None changes nothing."""
    for block in (*model.layers, *model.mtp):
        block.maps = maps
    return model


def run(name: str, seed: int, tokens=None) -> dict:
    """Train one variant and measure it; returns its record.

    "loss" in nats per token, "near" and "far" in nats per answer, "load": the largest load of an
    expert over the mean load.
    """
    if name not in VARIANTS:
        raise MinidsError(f"no variant {name!r}: expected one of {', '.join(VARIANTS)}")
    changes, training, maps = VARIANTS[name]
    config, settings = base()
    config = config.replace(**changes)
    settings = TrainConfig(**(vars(settings) | training | {"seed": seed}))
    tokenizer = Tokenizer.load()
    tokens = tokens or streams(settings.tokens, tokenizer)

    def answer_loss(model, words):
        return sum(answer_nats(model, tokenizer, exam(QUESTIONS, words))) / QUESTIONS

    with TemporaryDirectory() as folder:
        begin = time.monotonic()
        model = with_maps(new_model(config, seed), maps)
        train(config, settings, Path(folder) / "run", tokens=tokens, model=model)
        seconds = time.monotonic() - begin
        model = with_maps(load(Path(folder) / "run" / "model", dtype=torch.float32), maps)
        return {"variant": name, "seed": seed,
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens": settings.tokens, "seconds": round(seconds, 1),
                "threads": torch.get_num_threads(),
                "loss": round(stream_loss(model, tokens["heldout"], SEQ_LEN)[0], 4),
                "near": round(answer_loss(model, NEAR), 4),
                "far": round(answer_loss(model, FAR), 4),
                "load": round(largest_load(model, tokens["heldout"]), 3)}


@torch.no_grad()
def largest_load(model, stream) -> float:
    """The largest load of an expert over the mean load, averaged over the gates that route by
    score."""
    ids = torch.from_numpy(stream[: 8 * SEQ_LEN].astype("int64")).view(8, -1)      # 8 T
    loads = [load.float() for load in model.eval().run(ids)[1].loads]
    return sum((load.max() / load.mean()).item() for load in loads) / len(loads)


def main() -> None:
    """Run all variants whose results are not in the file yet; each result is a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m minids.recipes.ablations",
                                     description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS),
                        metavar="NAME", help=f"any of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS,
                        help="file of the results (default: %(default)s)")
    args = parser.parse_args()
    check_writable(args.out.parent, folder=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        results = map(json.loads, args.out.read_text(encoding="utf-8").splitlines())
        done = {(result["variant"], result["seed"]) for result in results}
    tokens = streams(base()[1].tokens, Tokenizer.load())
    for seed in range(args.seeds):
        for name in args.variants:
            if (name, seed) in done:
                continue
            line = json.dumps(run(name, seed, tokens)) + "\n"
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            print(line, end="", flush=True)


if __name__ == "__main__":
    main()
