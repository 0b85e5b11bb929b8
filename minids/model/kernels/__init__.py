"""Fused kernels: what would be several passes over memory in torch is one here, compiled by numba.

The model's arithmetic, apart from its matrix products, does little with each number that it reads.
On a CPU its time is the time of reading and writing. A kernel is a loop over tokens that reads each
number once: one small file a mechanism, with the equation in the docstring. Where kernels cannot
run (no numba, another device or type), the neighbouring modules compute the same with torch.

    @kernel                             # compiled when it is first called
    def double(x: Array, y: Array) -> None:
        for i in prange(len(x)):        # tokens are shared among threads
            y[i] = 2 * x[i]

    if kernels.on("double", x):         # else: torch
        kernels.double(x.numpy(), y.numpy())

A kernel takes contiguous NumPy arrays, which share their memory with tensors, and writes into
arrays that its caller made. Its result does not depend on the number of threads: each token is
computed by one thread, and sums over tokens are sums of `parts` of a fixed number. For how kernels
are compiled, and where the machine code is stored, see `compiled.py`.
"""

from minids.model.kernels.compiled import NAMES, array, arrays, on, parts, switched_off, why_off

__all__ = ["NAMES", "array", "arrays", "on", "parts", "switched_off", "why_off"]
