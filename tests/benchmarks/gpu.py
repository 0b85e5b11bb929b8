"""An accelerator in one command of at most eight minutes: is what it computes right, and how fast?

    make bench-gpu
    python tests/benchmarks/gpu.py --small --device cpu     in small, on any machine

Five parts: what the device computes beside what the CPU computes; decoding with nano and mini;
their training step; a layer of V4-Flash's true sizes beside that of `transformers`; and reading two
such layers from the disk while they compute. The layers have random weights in the released format.
They take 7.2 GB of disk for the time of the run. Each row is printed as it is measured. The table
is kept in data/records, part by part, so that a run that is stopped keeps what it has. A part that
no longer fits into the time is skipped, and the table says so.
"""
# ruff: noqa: I001

import argparse
import json
import math
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import minids
import torch
from minids.config import Config
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.generate import stream
from minids.pretrain.optim import make_optimiser
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train_step
from minids.pretrain.mixed_precision import computing_copy
from minids.system import distributed
from minids.system.files import check_writable, write_text
from minids.system.paths import DATA, data
from minids.weights import one_layer
from minids.weights.checkpoint import Checkpoint, load
from test_full_size import config, print_streaming, write_layers

SHIPPED = ("nano", "mini")
TEXT = "The old king had three sons, and the youngest of them was the wisest. "
SMALL = 5           # seconds that a part needs in small
CLOSE = 1e-3        # the largest relative difference of float32 results on two devices


class Row(NamedTuple):
    """A line of the table: what was measured, the value, its unit; whether a comparison held."""

    what: str
    value: float
    unit: str
    held: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "   ok", False: "   NOT EQUAL"}[self.held]
        return f"  {self.what:<58} {self.value:>12,.4g} {self.unit}{verdict}"


class Bench:
    """The device and its clock, how large the parts are, and where the layers are written."""

    def __init__(self, device: torch.device, minutes: float, small: bool, folder=None) -> None:
        self.device, self.small, self.folder = device, small, folder
        self.end = time.monotonic() + 60 * minutes
        in_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = torch.bfloat16 if in_bfloat16 else torch.float32

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def seconds(self, run, repeats: int = 3) -> float:
        """Seconds of the fastest of some calls of `run`, after one that does not count."""
        run()
        fastest = math.inf
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            run()
            self.wait()
            fastest = min(fastest, time.perf_counter() - begin)
        return fastest

    def wait(self) -> None:
        """Wait until the device has computed what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def name(self) -> str:
        """What the device is called."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} of {platform.machine()}"


def ids_of_text(length: int) -> torch.Tensor:
    """1 x length token ids of plain text."""
    ids = Tokenizer.load().encode(TEXT * (length // 8), bos=True)
    return torch.tensor([ids[:length]])


# ---- 1. what the device computes, beside the CPU ----

def correctness(bench: Bench):
    """Rows: logits, decoding, gradients, greedy ids and decoded codes, on the device and the CPU.

    All in float32.
    """
    length = 64 if bench.small else 256
    for name in SHIPPED:
        folder, ids = data("checkpoints", name), ids_of_text(length)
        here, there = load(folder, "cpu"), load(folder, bench.device)
        with torch.inference_mode():
            expected, found = here(ids), there(ids.to(bench.device))
            yield compared(f"{name}: logits of {length} tokens", found, expected)
            state = there.new_state(1, length)
            steps = [there(part.to(bench.device), state) for part in ids.split([length // 2, 1,
                                                                length - length // 2 - 1], 1)]
            yield compared(f"{name}: logits in three steps", torch.cat(steps, 1), expected)
        yield compared(f"{name}: gradients of the loss", gradients(there, ids.to(bench.device)),
                       gradients(here, ids))
        prompt = ids[0, :24].tolist()
        greedy = [minids.generate(model, prompt, 32, temperature=0) for model in (here, there)]
        same = sum(a == b for a, b in zip(*greedy)) / len(greedy[0])
        yield Row(f"{name}: greedy ids that are the same", 100 * same, "%", same == 1)
    yield codes(bench)


def compared(what: str, found: torch.Tensor, expected: torch.Tensor) -> Row:
    """The largest difference, as a share of the largest number that was expected."""
    difference = (found.detach().cpu() - expected.detach()).abs().max() / expected.abs().max()
    return Row(what, difference.item(), "of the largest", difference.item() < CLOSE)


def gradients(model, ids: torch.Tensor) -> torch.Tensor:
    """The gradients of the next-token loss with respect to all parameters, in one vector."""
    model.zero_grad()
    logits = model.train()(ids[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    model.eval()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def codes(bench: Bench) -> Row:
    """FP8 and FP4 tensors of the sample, decoded on the device and on the CPU: the same bits."""
    with Checkpoint(data("v4_sample")) as checkpoint:
        names = [name for name in checkpoint.find("layers.*")
                 if checkpoint.info(name)[0] in ("F8_E4M3", "I8")]
        here, there = (checkpoint.read_all(names, torch.float32, device)
                       for device in ("cpu", bench.device))
    wrong = sum(not torch.equal(here[name], there[name].cpu()) for name in names)
    return Row(f"FP8 and FP4 matrices that differ, of {len(names)}", wrong, "", wrong == 0)


# ---- 2. and 3. decoding and training ----

def decoding(bench: Bench):
    """Rows: new tokens a second of nano and mini, one text and many, after 256 tokens each."""
    new, many = (4, 2) if bench.small else (64, 64)
    for name in SHIPPED:
        model = load(data("checkpoints", name), bench.device)
        for rows in (1, many):
            prompts = ids_of_text(64 if bench.small else 256).tolist() * rows
            options = dict(max_new_tokens=new + 1, temperature=1.0, seed=0, stop=())
            fastest = 0.0
            for _ in range(2):                  # the first one warms up
                tokens = stream(model, prompts, **options)
                next(tokens)                    # reads the prompts
                bench.wait()
                begin = time.perf_counter()
                assert sum(1 for _ in tokens) == new
                fastest = new * rows / (time.perf_counter() - begin)
            yield Row(f"{name}, float32: decoding {rows} texts", fastest, "tokens/s")


def training(bench: Bench):
    """Rows: tokens a second and peak memory of a training step, the losses of pre-training."""
    batch, length = (2, 64) if bench.small else (32, 1024)
    settings = TrainConfig(steps=10, batch=batch, seq_len=length)
    for name in SHIPPED:
        masters = minids.Model(Config.preset(name)).to(bench.device).train()
        model = masters if bench.dtype == torch.float32 else computing_copy(masters)
        optimiser = make_optimiser(masters, settings)
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(masters.config.vocab_size, (batch, length + 1), generator=random)
        ids = ids.to(bench.device)
        step = lambda: train_step(model, optimiser, ids, settings, 0, masters)
        with one_layer.PeakMemory(bench.device) as memory:
            seconds = bench.seconds(step, 1 if bench.small else 3)
        what = f"{name}, {str(bench.dtype).removeprefix('torch.')}: a step of {batch} x {length}"
        yield Row(what, batch * length / seconds, "tokens/s")
        yield Row(f"{name}: memory of that step, at most", memory.peak / 1e9, "GB")


# ---- 4. and 5. a layer of Flash's sizes ----

def layers(bench: Bench):
    """Rows: the first of two layers at 1 and 4,096 tokens beside `transformers`', then both of
    them read from the disk while they compute."""
    lengths = (1, 64) if bench.small else (1, 4096)
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="minids-layers-") as place:
        begin = time.monotonic()
        files = write_layers(Path(place), config(bench.small, 2))
        print(f"  (two layers written in {time.monotonic() - begin:.0f} s)")
        with Checkpoint(place) as checkpoint:
            for trial in one_layer.trials(checkpoint, 0, bench.device, bench.dtype, lengths,
                                          0.1 if bench.small else 2.0):
                yield from rows_of(trial)
        if bench.left < (SMALL if bench.small else 45):
            raise TimeoutError("no time is left for reading layers from the disk")
        share = print_streaming(place, files, bench.device, bench.dtype, lengths[-1])
        for name, value in share.items():
            yield Row("reading layers from the disk while they compute", 100 * value,
                      "% of plain reading")


def rows_of(trial):
    """The rows of a result as it comes: our layer's time and memory, or those of `transformers`'
    layer and how far the two differ."""
    at, ours, theirs = f"a layer, {trial.tokens:,} tokens", trial.ours, trial.theirs
    if theirs is None and trial.why:
        print(f"  {at}, {'minids' if ours is None else 'transformers'}: not run, {trial.why}")
    elif theirs is None:
        yield Row(f"{at}: minids", 1e3 * ours.seconds, "ms")
        yield Row(f"{at}: minids, memory", ours.memory / 1e9, "GB")
    else:
        yield Row(f"{at}: transformers", 1e3 * theirs.seconds, "ms")
        yield Row(f"{at}: transformers, memory", theirs.memory / 1e9, "GB")
        yield Row(f"{at}: transformers' time, in ours", theirs.seconds / ours.seconds, "")
        yield Row(f"{at}: tokens with the same experts", 100 * trial.same_experts, "%")
        yield Row(f"{at}: difference, median", trial.median_difference / trial.rms, "of the rms")


PARTS = {       # title: (function, seconds that it needs on a GPU)
    "beside the CPU": (correctness, 60),
    "decoding": (decoding, 60),
    "training": (training, 60),
    "a layer of V4-Flash's sizes": (layers, 180),
}


# ---- the table ----

def run(bench: Bench, out: Path) -> dict:
    """Measure all parts, print their rows, and keep the table in `out` after each part."""
    table = {"device": bench.name(), "torch": torch.__version__, "system": platform.system(),
             "small": bench.small, "rows": [], "skipped": []}
    print(f"{table['device']}, torch {table['torch']}")
    for title, (part, need) in PARTS.items():
        need = SMALL if bench.small else need
        if bench.left < need:
            table["skipped"].append(title)
            print(f"\n{title}: skipped, {max(bench.left, 0):.0f} s are left and it needs about "
                  f"{need}")
            write_text(out, json.dumps(table, indent=1) + "\n")
            continue
        print(f"\n{title}" + (" (small: the sample's sizes)" if bench.small else ""))
        try:
            for row in part(bench):
                print(row, flush=True)
                table["rows"].append(row._asdict())
        except (torch.OutOfMemoryError, MinidsError, TimeoutError) as error:
            problem = str(error).splitlines()[0]
            table["skipped"].append(f"{title}: {problem}")
            print(f"  the rest of this part is skipped: {problem}")
        write_text(out, json.dumps(table, indent=1) + "\n")
    return table


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description="Is what this accelerator computes right, and how "
                                                 "fast is it?")
    parser.add_argument("--device", help="cuda, mps, cpu ... (default: the accelerator)")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M",
                        help="begin no part that would end later (default: 8)")
    parser.add_argument("--folder", metavar="DIR",
                        help="where to write 7.2 GB of layers (default: the temporary folder)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the table (default: data/records/bench-DEVICE.json)")
    args = parser.parse_args(argv)
    try:
        device = distributed.device(args.device)
        if device.type == "cpu" and not args.small:
            raise MinidsError("no accelerator was found: expected a GPU that torch can use; "
                              "--small --device cpu tries the command here")
        bench = Bench(device, args.minutes, args.small, args.folder)
        slug = re.sub(r"[^a-z0-9]+", "-", bench.name().lower()).strip("-")
        out = args.out or DATA / "records" / f"bench-{slug}.json"
        check_writable(out)
        if not 0 < args.minutes <= 60:
            raise MinidsError(f"--minutes: expected more than 0, at most 60, found {args.minutes}")
        with tempfile.TemporaryDirectory(dir=args.folder):
            pass
        table = run(bench, out)
    except (MinidsError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [row["what"] for row in table["rows"] if row["held"] is False]
    print(f"\nthe table is in {out}")
    if wrong:
        print(f"{len(wrong)} comparisons with the CPU did not hold: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
