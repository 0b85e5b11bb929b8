"""How kernels are compiled, where the machine code is stored, and when they run.

The code is stored in the user's cache folder, which also serves an installation that cannot be
written to. numba compiles anew when the file of a kernel changes. It does not notice a change of a
file that kernels take functions from: so there is one such file, `exponential.py`, and the name of
the folder holds a digest of it. NUMBA_CACHE_DIR names another folder. MINIDS_KERNELS=0 switches all
kernels off.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

numba: Any
prange: Any
try:
    import numba
    from numba import prange
    from numba.core import event
except ImportError:             # the torch path computes the same
    numba, prange = None, range

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered, so that they run in SIMD registers; infinities and NaN keep their meaning.
FAST = {"nsz", "contract", "reassoc", "arcp", "afn"}
off: set[str] = set()           # names of kernels that torch replaces, see `switched_off`
local = threading.local()       # .threads: how many numba uses in this thread


def kernel(function: Function) -> Function:
    """Compile a loop over tokens when it is first called. `prange` runs in torch's number of
    threads."""
    return compiled(function, parallel=True, nogil=True)


def serial(function: Function) -> Function:
    """Compile a function that runs in one thread: a token's decoding has no work for several."""
    return compiled(function, nogil=True)


def inlined(function: Function) -> Function:
    """Compile a function that kernels call; it becomes part of them."""
    return numba.njit(fastmath=FAST, inline="always")(function) if numba else function


def compiled(function: Function, **options: bool) -> Function:
    if numba is None:
        return function
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache_folder()
    try:
        return numba.njit(fastmath=FAST, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:        # the cache cannot be written: compile anew in each process
        return numba.njit(fastmath=FAST, error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = before


def cache_folder() -> str:
    """Where compiled code is stored: NUMBA_CACHE_DIR, or a folder in the user's cache."""
    if numba.config.CACHE_DIR:
        return numba.config.CACHE_DIR
    sources = Path(__file__).read_bytes() + Path(__file__).with_name("exponential.py").read_bytes()
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        user = Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local")
    elif sys.platform == "darwin":
        user = home / "Library/Caches"
    else:
        user = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return str(user / "minids" / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}")


def why_off() -> str | None:
    """Why no kernel runs, or None."""
    if numba is None:
        return "numba is not installed"
    return "MINIDS_KERNELS=0" if os.environ.get("MINIDS_KERNELS") == "0" else None


READY = why_off() is None
if READY:
    class Announcement(event.Listener):
        """Says once what a first call waits for: numba reports each compilation to it. Code that
        comes from the cache is not compiled."""

        said = False

        def on_start(self, event: Any) -> None:
            module = event.data["dispatcher"].py_func.__module__
            if module.startswith("minids.") and not self.said:
                self.said = True
                print("minids: compiling its kernels for this processor. This happens once and "
                      "takes up to a minute.", file=sys.stderr, flush=True)

        def on_end(self, event: Any) -> None:
            """Compilation has ended; the first call goes on."""

    event.register("numba:compile", Announcement())


def on(name: str, *tensors: Tensor) -> bool:
    """Whether the kernel of this name computes with these tensors: float32 numbers on a CPU.

    Sets the number of numba's threads to torch's.
    """
    if not READY or name in off:
        return False
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
    threads = torch.get_num_threads()
    if getattr(local, "threads", 0) != threads:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        local.threads = threads
    return True


@contextmanager
def switched_off(*names: str) -> Iterator[None]:
    """Let torch compute what these kernels would: for tests, and to measure what each brings."""
    added = set(names) - off
    off.update(added)
    try:
        yield
    finally:
        off.difference_update(added)


def parts(count: int) -> int:
    """In how many parts a sum over `count` tokens is computed: a number that does not depend on the
    number of threads, so neither does the sum."""
    return min(16, -(-count // 64)) or 1
