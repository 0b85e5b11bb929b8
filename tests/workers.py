"""`make test` in several processes: how many, with how many threads, and what starts first.

Models in tests are small, and so is what threads can share: two processes of one thread each test
nearly twice as much in a second as one process of two threads. A process runs whole files and whole
notebooks, whose cells and fixtures belong together: pytest-xdist's `--dist loadfile`. It shares
nothing with the others but the clone, which tests do not write to. Loaded by `-p tests.workers`.
"""

import os
from collections import Counter
from pathlib import Path

import psutil
import pytest

MEMORY = 2 << 30        # bytes for a process: torch, transformers, and the kernel of a notebook
SECONDS = 3             # that a test marked `slow` takes, unless the mark says otherwise

# Set in each process by xdist. torch reads the number of threads when it is loaded; notebooks'
# kernels and commands that tests start inherit it.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
if workers:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """As many processes as xdist proposes, which is one for each core, if memory suffices."""
    proposed = yield
    return max(1, min(proposed, psutil.virtual_memory().available // MEMORY))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if workers:
        items[:] = longest_first(items)


def longest_first(items: list) -> list:
    """The tests file by file, so that no process is left with a long file at the end: notebooks,
    of which the later ones train longer, then files by the seconds of their slow tests."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] += mark.args[0] if mark.args else SECONDS

    def rank(item) -> tuple:
        notebook = item.path.suffix == ".ipynb"
        return notebook, item.path.name if notebook else seconds[item.path]
    return sorted(items, key=rank, reverse=True)
