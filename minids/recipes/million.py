"""A million tokens for real: the nano model reads and decodes with a context of 1,048,576 tokens.

    python -m minids.recipes.million --tokens 1048576 --threads 1

writes `data/records/million.json` at each power of two from 1 K on, so that an interrupted run
keeps what it measured: minutes, resident bytes, the bytes of the state (which must equal
`formula_bytes`; report 2.3.4 and 3.6.1), milliseconds of a decoded token, nats per token with this
context and without, and how often the model finds a fact that it read shortly before.

The model is the shipped one. Only `max_seq_len` grows: the rotary frequencies come from the length
that the model was trained with, so positions past it are new to it, and the record says what that
costs. Chunks shrink as the context grows, so that the largest temporary (a chunk's scores of all
entries) stays at `SCORES` numbers.

Each of the two indexers scores n^2 / 8 pairs of token and entry with 16 heads: past 64 K this
dominates. One token of the prefill takes a core of an AMD EPYC 0.5 ms after 16 K tokens, 0.9 after
64 K, 2.6 after 256 K and 9.3 after 1 M: an hour and a half in all, three quarters of it for the
second half. The process holds little more than 1 GB.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import psutil
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
from minids.system.files import check_writable, write_text
from minids.system.process import check_threads
from minids.weights import checkpoint

try:
    import resource
except ImportError:         # Windows
    resource = None

FIRST = 1024                        # the first power of two that is measured
SCORES = 2**23                      # float32 numbers of a chunk's scores of all entries: 32 MB
STEPS = 48                          # decoded tokens that are timed
DISTANCES = (8, 32, 128, 512)       # tokens between a planted fact and the question about it
ROUNDS, RIVALS = 24, 3              # questions at each distance; other places beside the answer
NEXT = 512                          # tokens after the context whose nats are measured
ROOM = 2048                         # for decoded tokens and questions, which are forgotten again


def long_model(tokens: int):
    """The shipped nano model, with room for `tokens` and the questions after them."""
    model = checkpoint.load(paths.data("checkpoints", "nano"))
    model.config = model.config.replace(max_seq_len=tokens + ROOM)
    return model


def stream(tokens: int, tokenizer, split: str = "heldout"):
    """`tokens` ids, int64: TinyWorld's documents, real English and problems, as in training, but
    from the held-out split."""
    parts, size, documents = [], 0, mixture.documents(split)
    while size < tokens:
        texts = [text for _, (_, text) in zip(range(64), documents)]
        part = torch.from_numpy(books.encode_texts(texts, tokenizer).astype("int64"))
        parts.append(part)
        size += len(part)
    return torch.cat(parts)[:tokens]


def chunk_size(pos: int) -> int:
    """Tokens to read at once after `pos` others: 16 to 512, a power of two, at most SCORES scores
    of entries."""
    return min(512, max(16, SCORES // 2 ** max(pos // CSA_RATE, 1).bit_length()))


@torch.inference_mode()
def prefill(model, ids, state, done=lambda n: None) -> None:
    """Let the state read ids (1-D) in chunks; `done` is called with the tokens of each."""
    while len(ids):
        n = min(chunk_size(state.pos), len(ids))
        model(ids[None, :n], state)
        ids = ids[n:]
        done(n)


# ---- measurements ----

def state_bytes(state) -> dict[str, int]:
    """Bytes of the tensors of a state, by what they hold; see `State.nbytes`."""
    return state.nbytes()


def formula_bytes(config, n: int, width: int = 4) -> dict[str, int]:
    """`state_bytes` after n tokens of one sequence, computed from the configuration alone.

    As `minids.cost.kv_bytes`, but with every number in float32, and with the few tokens beside the
    entries: kv and gate of the previous window (its a-half) where windows overlap, and of the
    tokens whose window is not complete. `width`: bytes of a number.
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
    """Milliseconds of one decoded token after the state's context, the median of `steps`: by the
    clock, and of processor time."""
    before, token = state.mark(), torch.tensor([[model.config.bos_token_id]])
    clock, cpu = [], []
    for _ in range(steps + 3):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        with enough_threads(model, 1):                              # as `minids.generate` does
            token = model(token, state)[:, -1:].argmax(-1)
        clock.append(1000 * (time.perf_counter() - begin))
        cpu.append(1000 * (time.process_time() - cpu_begin))
    state.restore(before)
    return {"ms": round(statistics.median(clock[3:]), 3),           # the first three warm up
            "cpu_ms": round(statistics.median(cpu[3:]), 3)}


@torch.inference_mode()
def nats(model, state, ids) -> float:
    """Nats per token of ids (1-D), read after the state's context and forgotten again."""
    before = state.mark()
    parts = ids.split(chunk_size(state.pos))
    logits = torch.cat([model(part[None], state)[0] for part in parts])             # T vocab
    state.restore(before)
    return round(cross_entropy(logits[:-1], ids[1:]).item(), 4)


@torch.inference_mode()
def recall(model, state, tokenizer, distance: int, rounds: int = ROUNDS) -> int:
    """How many of `rounds` questions find a fact `distance` tokens before, after the state's
    context.

    The fact is where somebody went; a story of other people in other places follows, then the
    question. The fact counts as found if its place is likelier as the answer than each of RIVALS
    places that are not mentioned: guessing finds one in RIVALS + 1.
    """
    start, correct = state.mark(), 0
    for i in range(rounds):
        who, place, rivals, story = scene(random.Random(f"{distance} {i}"), distance)
        ids = tokenizer.encode(f"{who} went to the {place}.\n\n", bos=True)
        ids += tokenizer.encode(story)[:distance]
        ids += tokenizer.encode(f"\n\nQuestion: Where is {who}?\nAnswer: {who} is in the")
        for part in torch.tensor(ids).split(chunk_size(state.pos)):
            logits = model(part[None], state)[0, -1]                                # vocab
        first = [tokenizer.encode(f" {name}")[0] for name in (place, *rivals)]      # one token each
        correct += bool(logits[first[0]] > logits[first[1:]].max())
        state.restore(start)
    return correct


def scene(rng, words: int):
    """A person, a place, RIVALS other places, and a story of at least `words` words that mentions
    none of them."""
    while True:
        story = stories.story(rng, words).text
        people = [name for name in stories.PEOPLE if name not in story]
        places = [name for name in stories.PLACES if name not in story]
        if people and len(places) > RIVALS:
            place, *rivals = rng.sample(places, RIVALS + 1)
            return rng.choice(people), place, rivals, story


def resident() -> dict[str, int]:
    """Bytes of memory of this process: the most so far, and now."""
    memory = psutil.Process().memory_info()
    if resource is None:
        most = getattr(memory, "peak_wset", memory.rss)     # Windows
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"resident_most": most, "resident": memory.rss}


def cpu_kind() -> str:
    """The system's name for its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---- the run ----

def run(tokens: int, out: Path, threads: int = 1, show=print) -> dict:
    """Read `tokens` tokens (a power of two); at each power of two measure, and write the record.

    `show` gets each point as a line of JSON. Raises `MinidsError` where the record cannot be
    written, before the work, and where the state is not as large as the formula says.
    """
    if tokens < FIRST or tokens & (tokens - 1):
        raise MinidsError(f"tokens: expected a power of two of at least {FIRST}, found {tokens}")
    check_writable(out.parent, folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_threads(threads)
    torch.set_num_threads(threads)
    tokenizer, model = Tokenizer.load(), long_model(tokens)
    ids, state = stream(tokens + NEXT, tokenizer), model.new_state(1, tokens + ROOM)
    record = {"tokens": tokens, "complete": False, "system": platform.system(), "cpu": cpu_kind(),
              "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__,
              "dtype": "float32", "questions": ROUNDS, "rivals": RIVALS,
              "found_without_context": recall_at_distances(model, state, tokenizer), "points": []}
    n, seconds, cpu_seconds = FIRST, 0.0, 0.0
    bar = tqdm(total=tokens, unit="token", desc="reading", disable=None)    # only on a terminal
    while n <= tokens:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        prefill(model, ids[state.pos:n], state, bar.update)
        seconds += time.perf_counter() - begin
        cpu_seconds += time.process_time() - cpu_begin
        held, expected = state_bytes(state), formula_bytes(model.config, n)
        if held != expected:
            raise MinidsError(f"the state of {n} tokens: expected {expected} bytes, found {held}")
        after = ids[n:n + NEXT]
        point = {"n": n, "prefill_minutes": round(seconds / 60, 3),
                 "prefill_cpu_minutes": round(cpu_seconds / 60, 3),
                 **step_ms(model, state), "state_bytes": sum(held.values()), **resident(),
                 "nats": nats(model, state, after),
                 "nats_without_context": nats(model, model.new_state(1, NEXT), after),
                 "found": recall_at_distances(model, state, tokenizer), "state": held}
        record["points"].append(point)
        record["complete"] = n == tokens
        write_text(out, json.dumps(record, indent=1) + "\n")
        show(json.dumps(point))
        n *= 2
    bar.close()
    return record


def recall_at_distances(model, state, tokenizer) -> dict[str, int]:
    """`recall` at each of DISTANCES."""
    return {str(distance): recall(model, state, tokenizer, distance) for distance in DISTANCES}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minids.recipes.million",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2**20,
                        help="length of the context, a power of two (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=paths.DATA / "records" / "million.json",
                        help="file of the record (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        run(arguments.tokens, arguments.out, arguments.threads)
    except MinidsError as error:
        sys.exit(f"minids.recipes.million: {error}")


if __name__ == "__main__":
    main()
