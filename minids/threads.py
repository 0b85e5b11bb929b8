"""Threads that sleep while they wait. Imported by `minids/__init__.py`, before torch.

torch on a CPU shares each operation among OpenMP threads. Between operations GNU's OpenMP lets waiting threads spin,
which is fine on an idle machine, and a disaster where two such processes share the cores: each one's spinning threads
keep the other's working ones waiting. Measured on 2 cores, 2 threads each, with small matrices: one process alone 480
iterations a second, two side by side 6 each. With waiting threads that sleep: alone 640, side by side 290 each.

The OpenMP library reads its settings once, when torch is loaded: so import minids before torch, as every notebook does.
Whatever the user's environment says already stays.
"""

import os

SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # GNU's and LLVM's OpenMP: sleep instead of spin
    "KMP_BLOCKTIME": "0",  # Intel's OpenMP: milliseconds of spinning before sleep
}


def set_defaults(environment=os.environ) -> None:
    """Put SETTINGS into the environment where the user has set nothing of the kind."""
    if not any(name in environment for name in (*SETTINGS, "GOMP_SPINCOUNT")):
        environment.update(SETTINGS)


set_defaults()
