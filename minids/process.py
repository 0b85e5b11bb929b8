"""Threads that sleep while they wait. Imported by `minids/__init__.py`, before torch.

torch on a CPU shares each operation among OpenMP threads. Between operations GNU's OpenMP lets waiting threads spin,
which is fine on an idle machine, and a disaster where two such processes share the cores: each one's spinning threads
keep the other's working ones from running. Measured on 2 cores, 2 threads each, iterations a second of small matrix
products: one process alone 480, two side by side 6 each. With waiting threads that sleep: alone 640, side by side 290 each.

OpenMP reads its settings once, when torch is loaded: so import minids before torch, as every notebook does.
Whatever the user's environment says already stays.
"""

import os


def set_defaults(environment=os.environ) -> None:
    """Let waiting threads sleep, unless the user chose otherwise. GNU's, LLVM's and Intel's OpenMP understand this."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(environment):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


set_defaults()
