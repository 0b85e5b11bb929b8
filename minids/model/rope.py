"""Rotary embedding on the last channels of a head, and YaRN's stretched frequencies.

Report 2.3.3 ("partial rotary positional embedding"); YaRN: Peng et al., arXiv 2309.00071. Layers without
compression turn with one base, layers with compression with another one and YaRN. Who is turned, and by
which position, is decided in `attention.py`, `compressor.py` and `indexer.py`.
"""

import math
from functools import lru_cache

import torch


@lru_cache(maxsize=32)
def frequencies(config, ratio: int, device=None) -> torch.Tensor:
    """Radians per position of each pair of channels, float32, shape `rope_head_dim / 2`."""
    r = config.rope_head_dim
    base, original_seq_len = config.rope(ratio)
    w = 1.0 / base ** (torch.arange(0, r, 2, dtype=torch.float32) / r)
    if original_seq_len:
        # the pair that turns b times within the original length; slower pairs are stretched, faster ones kept
        at = lambda b: r * math.log(original_seq_len / (2 * math.pi * b)) / (2 * math.log(base))
        low, high = max(math.floor(at(config.beta_fast)), 0), min(math.ceil(at(config.beta_slow)), r - 1)
        ramp = ((torch.arange(r // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
        w = w / config.rope_factor * ramp + w * (1 - ramp)
    return w.to(device)


def rotation(config, ratio: int, start: int, count: int, device, step: int = 1) -> torch.Tensor:
    """Unit complex numbers for positions start, start + step, ...: complex64, shape `count x rope_head_dim / 2`."""
    positions = torch.arange(start, start + count * step, step, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies(config, ratio, device)
    return torch.polar(torch.ones_like(angles), angles)


def turn(x: torch.Tensor, rot: torch.Tensor) -> torch.Tensor:
    """Turn the last channels of `x` (... T c, or ... T H c with `rot` unsqueezed): pairs (2i, 2i+1) times rot[i].

    Turning back is turning with the conjugate: `turn(x, rot.conj())`.
    """
    r = 2 * rot.shape[-1]
    still, pairs = x[..., :-r], x[..., -r:].float().unflatten(-1, (-1, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * rot).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)
