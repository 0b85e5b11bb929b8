"""How time and memory grow: with context, experts, width and batch, measured and computed.

    python tests/benchmarks/scale.py            about ten minutes on an otherwise idle machine
    python tests/benchmarks/scale.py step       the rows of a training step alone, or of a token
    python tests/benchmarks/scale.py --small    fewer and smaller points, to try the script

For each row of the table one size of `Config.nano()` grows and all others stay. A quantity y that
grows like x^a has the exponent a: the slope of log y over log x, by least squares. Each point is
measured in three rounds; the table gives the lowest and the highest slope of the rounds. Beside it
stands the slope of what `minids.cost` computes for the same points.

Each point of a training step runs in a process of its own, which reports the time of a step and the
most memory that it held for weights, gradients and activations. Decoding with a long context starts
from a state full of random numbers: reading a million tokens first would take hours.
"""
# ruff: noqa: I001

import argparse
import json
import math
import subprocess
import sys
import time

import minids
import torch
from minids import cost
from minids.config import Config

ROUNDS, STEPS, TOKENS = 3, 3, 20


# ---- the points ----

def points(small: bool) -> dict:
    """{(what is measured, what grows): [(x, Config, batch, context), ...]}"""
    nano = Config.nano().replace(n_mtp_layers=0, compress_ratios=(0, 4, 16, 4))
    contexts = [2**i for i in ((8, 9, 10) if small else (10, 12, 14, 16, 18, 20))]
    lengths = [2**i for i in ((6, 7, 8) if small else (9, 10, 11, 12, 13))]
    experts = (8, 16) if small else (8, 32, 128, 256)
    widths = (64, 128) if small else (128, 256, 512, 1024)
    batches = (1, 2, 4) if small else (1, 4, 16, 64)
    long = lambda config, n: config.replace(max_seq_len=n + 2 * TOKENS)
    rows = {}
    for kind, n in (("step", 256), ("token", 1024)):
        grows = lengths if kind == "step" else contexts
        config = long(nano, n)
        rows[kind, "context"] = [(x, long(nano, x), 1, x) for x in grows]
        rows[kind, "experts"] = [(x, config.replace(n_routed_experts=x), 4, n) for x in experts]
        rows[kind, "width"] = [(x, wide(config, x), 4, n) for x in widths]
        rows[kind, "batch"] = [(x, config, x, n) for x in batches]
    return rows


def wide(config: Config, d: int) -> Config:
    """All matrices grow with the width: heads in number, not in size."""
    times = d / config.dim
    grow = lambda name: max(int(getattr(config, name) * times), 2)
    names = ("n_heads", "q_lora_rank", "o_lora_rank", "moe_inter_dim", "index_n_heads")
    return config.replace(dim=d, **{name: grow(name) for name in names})


# ---- one point ----

def step(config: Config, batch: int, length: int) -> dict:
    """Seconds of a training step (forward, backward) and its memory in bytes."""
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length + 1))

    def once(model, ids):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        model.zero_grad()

    tiny = config.replace(dim=64, n_routed_experts=4)
    once(minids.Model(tiny), ids[:1, :33])      # what is loaded once: kernels, threads
    before, seconds = peak_memory(), []
    model = minids.Model(config).train()
    for _ in range(STEPS):
        begin = time.perf_counter()
        once(model, ids)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": min(seconds), "bytes": peak_memory() - before}


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    import resource             # not on Windows
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.inference_mode()
def token(config: Config, batch: int, context: int) -> dict:
    """Seconds of a decoded token of each of `batch` rows, and the bytes of their state."""
    torch.manual_seed(0)
    model = minids.Model(config).eval()
    state = model.new_state(batch, context + TOKENS + 1)
    state.pos = context
    for layer in state.layers:
        layer.window.normal_()
        for part in layer.compressors:
            part.entries.normal_()
            part.count = context // part.ratio
    ids, seconds = torch.randint(config.vocab_size, (batch, 1)), []
    for _ in range(TOKENS):
        begin = time.perf_counter()
        ids = model.logits(model.features(ids, state)).argmax(-1)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": sorted(seconds)[TOKENS // 2], "bytes": sum(state.nbytes().values())}


# ---- what arithmetic says ----

def operations(config: Config, n: int) -> float:
    """Multiply-adds of one token after n tokens, all in one format (see `cost.flops`)."""
    weights = {"FP8 and FP4 weights": 1, "indexer": 0.5}        # all others count double
    terms = cost.flops(config, n)
    return sum(value / 2 / weights.get(name, 2) for name, value in terms.items() if name != "total")


def computed(kind: str, config: Config, batch: int, n: int) -> dict:
    """What is proportional to the time and the memory that a point should take."""
    if kind == "token":
        return {"seconds": batch * operations(config, n),
                "bytes": batch * cost.kv_bytes(config, n)["total"]}
    places = [n * (i + 0.5) / 16 for i in range(16)]        # the mean over the positions of a text
    mean = sum(operations(config, int(place)) for place in places) / len(places)
    return {"seconds": batch * n * mean, "bytes": None}


# ---- the table ----

def slope(xs, ys) -> float:
    """The exponent a of y ~ x^a, by least squares on logarithms."""
    xs, ys = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys)) / sum((x - x0) ** 2 for x in xs)


def measure(kind: str, config: Config, batch: int, n: int) -> dict:
    """A point in a process of its own."""
    point = json.dumps([kind, config.to_json(), batch, n])
    result = subprocess.run([sys.executable, __file__, "--point", point], capture_output=True,
                            text=True)
    if result.returncode:
        raise SystemExit(f"{kind}, batch {batch}, context {n}: {result.stderr[-2000:]}")
    return json.loads(result.stdout)


def row(kind: str, grows: str, cells: list) -> None:
    """Measure one row of the table and print it, twice: its time and its memory."""
    xs = [x for x, *_ in cells]
    rounds = [[measure(kind, *rest) for _, *rest in cells] for _ in range(ROUNDS)]
    for unit, name, scale in (("seconds", "time, ms", 1e3), ("bytes", "memory, MB", 1e-6)):
        slopes = [slope(xs, [point[unit] for point in one]) for one in rounds]
        best = [min(one[i][unit] for one in rounds) * scale for i in range(len(xs))]
        expected = [computed(kind, *rest)[unit] for _, *rest in cells]
        theory = "" if None in expected else f"{slope(xs, expected):.2f}"
        values = ", ".join(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in best)
        print(f"| {kind} | {name} | {grows} {xs[0]:,} to {xs[-1]:,} | {values} | "
              f"{min(slopes):.2f} to {max(slopes):.2f} | {theory} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="?", choices=("step", "token"), help="these rows alone")
    parser.add_argument("--small", action="store_true", help="fewer and smaller points")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        kind, config, batch, n = json.loads(args.point)
        task = {"step": step, "token": token}[kind]
        print(json.dumps(task(Config.from_json(config), batch, n)))
        return
    print("| of a | | grows | measured | exponent | computed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (kind, grows), cells in points(args.small).items():
        if args.kind in (None, kind):
            row(kind, grows, cells)


if __name__ == "__main__":
    main()
