"""How many threads a run on a CPU uses: what is fastest here, and one while others need the cores.

Each operation of a small model is short. Where waking a thread is expensive, as on some virtual
machines, or where other processes keep the cores busy, a second thread costs more than it brings:
an operation ends when its last thread does, and that one may be waiting for a core. So a command
that trains for minutes measures before it begins, and looks after every step how long its thread
waited for a core. It then goes on with one thread, and later tries again.

Another number of threads adds numbers in another order, so the last bits of a result change. With
--threads N, or OMP_NUM_THREADS, the number is fixed and the bits are. Functions that are called
from Python, as in a notebook, use torch's number throughout.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from minids.config import Config
from minids.model.transformer import Model
from minids.system import distributed

TRIALS, GAIN = 3, 0.97      # more threads have to take less than this share of the time
SECONDS = 2.0               # between two looks, at least
CROWDED, FREE = 0.15, 0.03  # shares of the time that this thread waited for a core
PATIENCE, LONGEST = 30.0, 600.0     # seconds with one thread before more are tried again


class Watch:
    """Decides between `most` threads and one from how long this thread waits for a core."""

    def __init__(self, most: int, threads: int, now: float, waited: float):
        self.most, self.threads, self.patience = most, threads, PATIENCE
        self.now, self.waited, self.changed = now, waited, now - PATIENCE

    def decide(self, now: float, waited: float) -> int:
        """The number of threads from here on. `now` and `waited`, both in seconds: the time, and
        how long in all this thread has waited for a core."""
        if now - self.now < SECONDS:
            return self.threads
        share = (waited - self.waited) / (now - self.now)
        self.now, self.waited = now, waited
        if self.threads > 1 and share > CROWDED:
            self.back_to_one()
        elif self.threads == 1 and share > FREE:
            self.changed = now
        elif self.threads == 1 and now - self.changed > self.patience:
            self.threads, self.changed = self.most, now
        return self.threads

    def back_to_one(self) -> None:
        """One thread from here on; for twice as long as before, if the last attempt was in vain."""
        in_vain = self.now - self.changed < PATIENCE
        self.patience = min(2 * self.patience, LONGEST) if in_vain else PATIENCE
        self.threads, self.changed = 1, self.now


watch: Watch | None = None      # of a command that trains


def choose() -> None:
    """Measure one thread against torch's number, use the faster, say so, and watch from now on.

    The environment's OMP_NUM_THREADS takes precedence, and torchrun sets it.
    """
    global watch
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ or distributed.size() > 1:
        return
    began, before = time.monotonic(), waiting()
    one, several = measure(most)
    threads = most if several < GAIN * one else 1
    torch.set_num_threads(threads)
    print(f"threads: {threads} (a step takes {1e3 * one:.0f} ms with one, "
          f"{1e3 * several:.0f} ms with {most}; --threads N fixes the number)", flush=True)
    now, waited = time.monotonic(), waiting()
    if before is None or waited is None:
        return
    crowded = waited - before > CROWDED * (now - began)     # else waking is what costs, also later
    if threads > 1 or crowded:
        watch = Watch(most, threads, now, waited)


def measure(most: int) -> tuple[float, float]:
    """The seconds of a small training step with one thread and with `most`: the least of some."""
    with torch.random.fork_rng(devices=[]):     # the run's own random numbers stay as they are
        model = Model(Config.nano()).train()
        ids = torch.randint(model.config.vocab_size, (2, 257))
    best = {1: float("inf"), most: float("inf")}
    for trial in range(TRIALS + 1):             # the first one warms up
        for threads in best:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            if trial:
                best[threads] = min(best[threads], time.perf_counter() - began)
    torch.set_num_threads(most)
    return best[1], best[most]


def look() -> None:
    """After a step: change the number of threads if it has to be changed."""
    waited = waiting() if watch is not None else None
    if watch is None or waited is None:
        return
    before, now = watch.threads, watch.decide(time.monotonic(), waited)
    if now > before:
        one, several = measure(now)
        if several >= GAIN * one:
            watch.back_to_one()
            now = 1
            torch.set_num_threads(1)
    if now != before:
        torch.set_num_threads(now)
        why = "other processes need the cores" if now == 1 else "the cores are free again"
        print(f"\nthreads: {now}, {why}", file=sys.stderr, flush=True)


def waiting() -> float | None:
    """How many seconds in all this thread was ready to run and had no core; None where the system
    does not say so. Linux does."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
