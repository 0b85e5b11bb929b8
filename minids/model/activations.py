"""Rounding of keys and of the indexer's vectors as in serving (report 3.4).

For which activations are rounded, and when, see `minids.weights.rounding.serving`. Gradients pass
straight through.
"""

import torch
from torch import Tensor

from minids.errors import MinidsError
from minids.numerics import fake_quant


def round_keys(kv: Tensor, r: int) -> Tensor:
    """Window keys or compressed entries, ... c, as the cache holds them: all but the last `r`
    channels, those that rotate, in FP8, in blocks of 64."""
    return torch.cat([fake_quant(kv[..., :-r], "fp8_kv"), kv[..., -r:]], dim=-1)


def round_index(x: Tensor) -> Tensor:
    """The indexer's queries or keys, ... ci: Hadamard-transformed, then FP4 in blocks of 32."""
    return fake_quant(hadamard_transform(x), "fp4_act")


def hadamard_transform(x: Tensor) -> Tensor:
    """x H / sqrt(n) along the last axis of n = 2^k numbers; its own inverse.

    H[i, j] = (-1)^(number of ones in i AND j). Computed in k rounds: each replaces the
    pairs of numbers 1, 2, 4, ... places apart by their sums and differences. Raises `MinidsError`
    unless n is a power of two.
    """
    n, shape = x.shape[-1], x.shape
    if n & (n - 1):
        raise MinidsError(f"a Hadamard transform needs a power of two, found {n} channels")
    apart = 1
    while apart < n:
        a, b = x.reshape(*shape[:-1], n // (2 * apart), 2, apart).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        apart *= 2
    return x * n**-0.5
