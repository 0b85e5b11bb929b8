"""How kernels are compiled, where the machine code is stored, and when they run.

The code is stored in the user's cache folder, which also serves an installation that cannot be
written to. numba compiles anew when the file of a kernel changes. It does not notice a change of a
file that kernels take functions from: there are two, `exponential.py` and `lanes.py`, and the name
of the folder holds a digest of them. NUMBA_CACHE_DIR names another folder. Stored code that cannot
be read is compiled anew, and what cannot be stored is compiled in memory: the store never stops a
run. MINIDS_KERNELS=0 switches all kernels off.

torch is imported before numba: so numba's OpenMP threads are torch's own, not a second set that
would compete for the cores. Where numba has no OpenMP it uses threads of its own, which only one
thread of Python may use at a time: then a lock guards them. A process that was forked from this one
cannot use these threads: it computes with torch.
"""

import hashlib
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minids.system import paths

numba: Any
prange: Any
FunctionCache: Any
numba, prange, FunctionCache = None, range, object
reason: str | None              # why no kernel runs, or None
if os.environ.get("MINIDS_KERNELS") == "0":
    reason = "MINIDS_KERNELS=0"
elif os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    reason = "NUMBA_DISABLE_JIT is set"     # kernels would run as Python, very slowly
else:
    try:
        import numba
        from numba.core import event
        from numba.core.caching import FunctionCache
        prange, reason = numba.prange, None
    except ModuleNotFoundError:
        reason = "numba is not installed"
    except (ImportError, OSError) as error:     # it does not fit this numpy, or lacks a library
        numba, reason = None, f"numba does not load: {error}"

# Sums may be reordered, so that they run in SIMD registers; infinities and NaN keep their meaning.
# Without "arcp" a quotient is the same in SIMD registers and outside of them. LLVM decides between
# the two by the addresses of arrays, and the same step has to give the same bits each time. So a
# loop that adds up numbers does nothing else: with a store in it, the order of the sum would depend
# on addresses. Nor does an innermost loop count from an offset, as in x[begin + t]: take a slice.
# LLVM reckons that the offset may be negative, and then arrays seem to overlap that do not.
FAST = {"nsz", "contract", "reassoc"}
KERNELS: list[Any] = []         # all that are compiled, when they are first called
started = False                 # whether numba's threads run
lock = threading.Lock()         # see `one_at_a_time`
NAMES = ("mhc", "norm", "rotary", "swiglu", "experts", "attention", "compressor", "indexer",
         "vocabulary", "decode", "packed")      # one a mechanism, see `on`
off: set[str] = set()           # those that torch replaces, see `switched_off`
local = threading.local()       # .threads: how many numba uses in this thread


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop over tokens when it is first called. `prange` runs in torch's number of
    threads."""
    return one_at_a_time(compiled(function, parallel=True, nogil=True))


def one_at_a_time(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, after a lock where numba's threads serve only one thread of Python at a time."""
    if threading_layer() != "workqueue":
        return kernel

    @wraps(kernel)
    def locked(*arguments: Any) -> None:
        with lock:
            kernel(*arguments)

    return locked


def serial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that runs in one thread: a token's decoding has no work for several."""
    return compiled(function, nogil=True)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that kernels call; it becomes part of them."""
    return numba.njit(fastmath=FAST, inline="always")(function) if numba else function


def compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    if numba is None:
        return function
    dispatcher = numba.njit(fastmath=FAST, error_model="numpy", **options)(function)
    KERNELS.append(dispatcher)
    folder = cache_folder()
    if folder is not None:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            dispatcher._cache = Store(function)     # as numba's `cache=True` does
        finally:
            numba.config.CACHE_DIR = before
    return dispatcher


class Store(FunctionCache):
    """A kernel's machine code on disk. Where it cannot be read or written, compiling goes on."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        # Processes that compile at the same time each write files of their own names.
        file = self._cache_file
        file._data_name_pattern = file._data_name_pattern.replace(
            "{number:d}", f"{uuid.uuid4().hex[:12]}-{{number:d}}")

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:       # a damaged file makes a reader raise anything
            with suppress(Exception):
                self.flush()    # else it would stay damaged
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        with suppress(OSError):
            super().save_overload(signature, code)


def cache_folder() -> Path | None:
    """Where compiled code is stored, made if it is missing: NUMBA_CACHE_DIR, or a folder in the
    user's cache. None where neither can be written to."""
    if numba is None:
        return None
    if numba.config.CACHE_DIR:
        folder = Path(numba.config.CACHE_DIR)
    elif (user := paths.cache()) is not None:
        here = Path(__file__)
        shared = here, here.with_name("exponential.py"), here.with_name("lanes.py")
        sources = b"".join(file.read_bytes() for file in shared)
        folder = user / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
    else:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def stored() -> int:
    """For how many kernels of the modules that are loaded there is stored code."""
    count = 0
    for kernel in KERNELS:
        with suppress(Exception):       # no store, or a damaged one
            count += bool(kernel._cache._cache_file._load_index())
    return count


@cache
def threading_layer() -> str:
    """Which threads numba is going to use: "omp" (OpenMP), "tbb", or its own, "workqueue"."""
    if numba is None:
        return "none"
    wanted = numba.config.THREADING_LAYER.lower()
    layers = [wanted] if wanted in ("tbb", "omp") else numba.config.THREADING_LAYER_PRIORITY
    for layer in layers if wanted not in ("workqueue", "forksafe") else ():
        with suppress(ImportError):
            import_module(f"numba.np.ufunc.{layer}pool")
            return layer
    return "workqueue"


def why_off() -> str | None:
    """Why no kernel runs, or None."""
    return reason


def switch_off(why: str) -> None:
    """Let torch compute everything in this process from now on."""
    global reason
    reason = why


def after_fork() -> None:
    """In a process that was forked while numba's threads ran: they do not exist here."""
    if started:
        switch_off("this process was forked from one that computes in several threads")


if hasattr(os, "register_at_fork"):     # Windows does not fork
    os.register_at_fork(after_in_child=after_fork)


if numba:
    class Announcement(event.Listener):
        """Says once what a first call waits for, where nothing has been compiled before: numba
        reports each compilation to it. Code that comes from the cache is not compiled."""

        said = False

        def on_start(self, event: Any) -> None:
            module = event.data["dispatcher"].py_func.__module__
            if module.startswith("minids") and not self.said:
                self.said, folder = True, cache_folder()
                if folder is None or not any(folder.rglob("*.nbi")):
                    print("minids: compiling its kernels for this processor. This happens once "
                          "and takes a minute or two.", file=sys.stderr, flush=True)

        def on_end(self, event: Any) -> None:
            """Compilation has ended; the first call goes on."""

    announcement = Announcement()
    event.register("numba:compile", announcement)


def on(name: str, *tensors: Tensor) -> bool:
    """Whether the kernel of this name computes with these tensors: float32 numbers on a CPU.

    Sets the number of numba's threads to torch's.
    """
    if reason is not None or name in off:
        return False
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
    threads = torch.get_num_threads()
    return getattr(local, "threads", 0) == threads or use_threads(threads)


def use_threads(threads: int) -> bool:
    """Set the number of numba's threads, and start them if this is the first time. False where
    they do not start: then kernels are off."""
    global started
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    except Exception as error:      # of NUMBA_THREADING_LAYER and its like
        switch_off(f"numba's threads do not start: {error}")
        return False
    torch.set_num_threads(threads)      # numba's start sets OpenMP's number, which is torch's
    local.threads, started = threads, True
    return True


@contextmanager
def switched_off(*names: str) -> Iterator[None]:
    """Let torch compute what these kernels would: for tests, and to measure what each brings."""
    assert set(names) <= set(NAMES), f"expected names of kernels, found {names}"
    added = set(names) - off
    off.update(added)
    try:
        yield
    finally:
        off.difference_update(added)


def array(t: Tensor) -> np.ndarray:
    """A tensor as kernels take it: a contiguous array, in the same memory if the tensor is so."""
    if t.requires_grad:     # not always: a step asks a thousand times
        t = t.detach()
    return t.contiguous().numpy()


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """`array` of each."""
    return [array(t) for t in tensors]


def parts(count: int) -> int:
    """In how many parts a sum over `count` tokens is computed: a number that does not depend on the
    number of threads, so neither does the sum."""
    return min(16, -(-count // 64)) or 1
