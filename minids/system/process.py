"""Defaults of the process: threads that soon sleep, memory that glibc keeps.

Imported by `minids/__init__.py`, before torch.

*Threads.* torch on a CPU shares each operation among OpenMP threads. Between operations GNU's
OpenMP lets waiting threads spin for a long time. That is fine on an idle machine, and a disaster
where two such processes share the cores: each one's spinning threads keep the other's working ones
from running (10 to 80 times slower, on 2 cores). Threads that sleep at once cost an idle machine a
third of its speed, because the operations of small models are short. So: spin for some
microseconds, then sleep. OpenMP reads its settings once, when torch is loaded: import minids before
torch, as every notebook does.

*Memory.* A training step allocates and frees the same large tensors again and again. By default
glibc returns them to the system each time, and the system clears each page anew. Here glibc keeps
them, which changes nothing but speed.

Settings in the user's environment take precedence. How many threads a command that trains uses is
decided in `minids.pretrain.threads`.
"""

import ctypes
import os
import sys

from minids.errors import MinidsError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3     # of glibc's malloc.h


def sleeping_threads(environment=os.environ) -> None:
    """Let waiting threads spin briefly and then sleep: GNU's OpenMP by its spin count, Intel's and
    LLVM's by milliseconds."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(environment):
        environment["GOMP_SPINCOUNT"] = "3000"
        environment["KMP_BLOCKTIME"] = "1"


def check_threads(count: int) -> None:
    """Raise `MinidsError` unless this machine can run so many threads: OpenMP crashes where it
    cannot start them."""
    most = max(64, os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise MinidsError(f"threads: expected 1 to {most}, found {count}")


def kept_memory(environment=os.environ) -> None:
    """Let glibc keep freed blocks of up to 32 MB, its limit. Other allocators do so anyway."""
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in environment):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return      # not glibc
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


sleeping_threads()
kept_memory()
