"""A million tokens for real: the nano model reads and decodes with a context of 1,048,576 tokens, and a record is kept.

    python -m minids.recipes.million --tokens 1048576 --threads 1

writes `data/records/million.json` at each power of two from 1 K on, so that an interrupted run leaves what it found:
minutes, resident bytes, the state's bytes (which must equal `formula_bytes`; report 2.3.4 and 3.6.1), milliseconds of a
decoded token, nats per token with this context and without, how often a fact is found that was told just before.

The model is the shipped one. Only `max_seq_len` grows: the rotary frequencies come from the length that the model was
trained with, so positions past it are new to it, and the record says what that costs. Chunks shrink as the context grows,
so that the largest temporary (a chunk's scores of all entries) stays at `SCORES` numbers.

Each of the two indexers scores n^2 / 8 pairs of token and entry with 16 heads: past 64 K this dominates. One token of the
prefill takes a core of an AMD EPYC 0.5 ms behind 16 K tokens, 0.9 behind 64 K, 2.6 behind 256 K and 9.3 behind 1 M: an hour
and a half in all, three quarters of it for the second half. The process holds little more than 1 GB.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from minids.config import CSA_RATE
from minids.data import books, mixture
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.sampling import enough_threads
from minids.system import paths
from minids.system.files import write_text
from minids.weights import checkpoint

FIRST = 1024                        # the first power of two that is measured
SCORES = 2**23                      # float32 numbers of a chunk's scores of all entries: 32 MB
STEPS = 48                          # decoded tokens that are timed
DISTANCES = (8, 32, 128, 512)       # tokens between a planted fact and the question about it
ROUNDS, RIVALS = 24, 3              # questions at each distance, and places not told that compete with the right one
NEXT = 512                          # tokens behind the context whose nats are measured
ROOM = 2048                         # for decoded tokens and questions behind the context, which are forgotten again


def long_model(tokens: int):
    """The shipped nano model, with room for `tokens` and the questions behind them."""
    model = checkpoint.load(paths.data("checkpoints", "nano"))
    model.config = model.config.replace(max_seq_len=tokens + ROOM)
    return model


def stream(tokens: int, tokenizer, split: str = "heldout"):
    """`tokens` ids, int64: TinyWorld's documents, real English and problems, as in training, but not seen there."""
    parts, size, source = [], 0, mixture.documents(split)
    while size < tokens:
        part = books.encode_texts([found for _, (_, found) in zip(range(64), source)], tokenizer)
        parts.append(torch.from_numpy(part.astype("int64")))
        size += len(part)
    return torch.cat(parts)[:tokens]


def chunk_size(pos: int) -> int:
    """Tokens to read at once behind `pos` others: 16 to 512, a power of two, at most SCORES scores of entries."""
    return min(512, max(16, SCORES // 2 ** max(pos // CSA_RATE, 1).bit_length()))


@torch.inference_mode()
def prefill(model, ids, state, done=lambda n: None) -> None:
    """Let the state read ids (1-D) in chunks; `done` is called with the tokens of each."""
    while len(ids):
        n = min(chunk_size(state.pos), len(ids))
        model(ids[None, :n], state)
        ids = ids[n:]
        done(n)


# ---- what is measured ----

def state_bytes(state) -> dict[str, int]:
    """Bytes of the tensors that hold what a state knows, by what they are; room for later entries is not counted."""
    found = dict.fromkeys(("window", "CSA entries", "CSA index keys", "HCA entries", "overlap", "waiting"), 0)
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors or ())
    for layer in state.layers:
        found["window"] += size([layer.window])
        for part in layer.compressors:
            name = "HCA entries" if layer.indexer is None else "CSA entries" if part is layer.compressor else "CSA index keys"
            found[name] += size([part.all()])
            found["overlap"] += size(part.before)
            found["waiting"] += size(part.tail)
    return found


def formula_bytes(config, n: int, width: int = 4) -> dict[str, int]:
    """What `state_bytes` must be after n tokens of one sequence, from the configuration alone; `width` bytes a number.

    As `minids.cost.kv_bytes`, but with every number in float32 and with the few tokens beside the entries: kv and gate
    of the window before (its a-half) where windows overlap, and of the tokens whose window is not complete.
    """
    ratios = config.compress_ratios[:config.n_layers]
    csa, hca = ratios.count(CSA_RATE), [m for m in ratios if m > CSA_RATE]
    c, ci, m = config.head_dim, config.index_head_dim, CSA_RATE
    return {
        "window": width * len(ratios) * config.window_size * c,
        "CSA entries": width * csa * (n // m) * c,
        "CSA index keys": width * csa * (n // m) * ci,
        "HCA entries": width * sum(n // m * c for m in hca),
        "overlap": 4 * csa * 2 * m * (c + ci) * (n >= m),
        "waiting": 4 * (csa * 2 * (n % m) * 2 * (c + ci) + sum(2 * (n % m) * c for m in hca)),
    }


@torch.inference_mode()
def step_ms(model, state, steps: int = STEPS) -> dict[str, float]:
    """Milliseconds of one decoded token behind what the state has read: median by the clock, and by the processor's time."""
    before, token = state.mark(), torch.tensor([[model.config.bos_token_id]])
    clock, busy = [], []
    for _ in range(steps + 3):
        start, cpu = time.perf_counter(), time.process_time()
        with enough_threads(model, 1):                                                   # as `minids.generate` does
            token = model(token, state)[:, -1:].argmax(-1)
        clock.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - cpu))
    state.restore(before)
    return {"ms": round(statistics.median(clock[3:]), 3), "cpu_ms": round(statistics.median(busy[3:]), 3)}


@torch.inference_mode()
def nats(model, state, ids) -> float:
    """Nats per token of ids (1-D), read behind what the state holds and forgotten again."""
    before = state.mark()
    logits = torch.cat([model(part[None], state)[0] for part in ids.split(chunk_size(state.pos))])   # T vocab
    state.restore(before)
    return round(cross_entropy(logits[:-1], ids[1:]).item(), 4)


@torch.inference_mode()
def recall(model, state, tokenizer, distance: int, rounds: int = ROUNDS) -> int:
    """How many of `rounds` questions find a fact that was told `distance` tokens before, behind what the state holds.

    Told is where somebody went; a story of other people in other places follows, then the question. The fact counts as
    found if its place is likelier as the answer than each of RIVALS places that nobody told: chance finds one in RIVALS + 1.
    """
    before, found = state.mark(), 0
    for i in range(rounds):
        who, place, rivals, story = scene(random.Random(f"{distance} {i}"), distance)
        ids = tokenizer.encode(f"{who} went to the {place}.\n\n", bos=True) + tokenizer.encode(story)[:distance]
        ids += tokenizer.encode(f"\n\nQuestion: Where is {who}?\nAnswer: {who} is in the")
        for part in torch.tensor(ids).split(chunk_size(state.pos)):
            logits = model(part[None], state)[0, -1]
        first, *others = (logits[tokenizer.encode(f" {p}")[0]] for p in (place, *rivals))        # a place is one token
        found += bool(first > max(others))
        state.restore(before)
    return found


def scene(rng, words: int):
    """A person, a place, RIVALS other places, and a story of at least `words` words without any of these."""
    while True:
        told = stories.story(rng, words).text
        people, places = ([name for name in names if name not in told] for names in (stories.PEOPLE, stories.PLACES))
        if people and len(places) > RIVALS:
            place, *rivals = rng.sample(places, RIVALS + 1)
            return rng.choice(people), place, rivals, told


def resident() -> dict[str, int]:
    """The process's memory: at most so far and, where the system tells it, now."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = Path("/proc/self/statm")
    return {"resident_most": most} | ({"resident": int(now.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
                                      if now.exists() else {})


def cpu_kind() -> str:
    """What the system calls its processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


# ---- the run ----

def run(tokens: int, out: Path, threads: int = 1, show=print) -> dict:
    """Read `tokens` tokens (a power of two), measure at each power of two, write the record to `out` each time."""
    if tokens < FIRST or tokens & (tokens - 1):
        raise MinidsError(f"tokens: expected a power of two of at least {FIRST}, found {tokens}")
    torch.set_num_threads(threads)
    tokenizer = Tokenizer.load()
    model = long_model(tokens)
    ids = stream(tokens + NEXT, tokenizer)
    state = model.new_state(1, tokens + ROOM)
    record = {"tokens": tokens, "complete": False, "system": platform.system(), "cpu": cpu_kind(), "cores": os.cpu_count(),
              "threads": threads, "torch": torch.__version__, "dtype": "float32", "questions": ROUNDS, "rivals": RIVALS,
              "found_without_context": {str(d): recall(model, state, tokenizer, d) for d in DISTANCES}, "points": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    n, seconds, busy = FIRST, 0.0, 0.0
    bar = tqdm(total=tokens, unit="token", desc="reading", disable=None)                 # only on a terminal
    while n <= tokens:
        start, cpu = time.perf_counter(), time.process_time()
        prefill(model, ids[state.pos:n], state, bar.update)
        seconds, busy = seconds + time.perf_counter() - start, busy + time.process_time() - cpu
        held, expected = state_bytes(state), formula_bytes(model.config, n)
        if held != expected:
            raise MinidsError(f"the state of {n} tokens holds {held}, and the formula says {expected}")
        after = ids[n:n + NEXT]
        point = {"n": n, "prefill_minutes": round(seconds / 60, 3), "prefill_cpu_minutes": round(busy / 60, 3),
                 **step_ms(model, state), "state_bytes": sum(held.values()), **resident(),
                 "nats": nats(model, state, after), "nats_without_context": nats(model, model.new_state(1, NEXT), after),
                 "found": {str(d): recall(model, state, tokenizer, d) for d in DISTANCES}, "state": held}
        record["points"].append(point)
        record["complete"] = n == tokens
        write_text(out, json.dumps(record, indent=1) + "\n")
        show(json.dumps(point))
        n *= 2
    bar.close()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minids.recipes.million", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2**20, help="a power of two (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=paths.DATA / "records" / "million.json")
    arguments = parser.parse_args()
    try:
        run(arguments.tokens, arguments.out, arguments.threads)
    except MinidsError as error:
        sys.exit(f"minids.recipes.million: {error}")


if __name__ == "__main__":
    main()
