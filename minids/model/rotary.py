"""Rotary embedding on the last channels of a head, and YaRN's stretched frequencies.

Report 2.3.3 ("partial rotary positional embedding"); YaRN: Peng et al., arXiv 2309.00071. Layers without
compression turn with one base, layers with compression with another one and YaRN. Who is turned, and by
which position, is decided in `attention.py`, `compressor.py` and `indexer.py`.
"""

import math
from functools import lru_cache

import torch


def frequencies(config, ratio: int) -> torch.Tensor:
    """Radians per position of each turning pair of channels in a layer with this compression ratio: float32, r / 2."""
    r = config.rope_head_dim
    base, original_seq_len = config.rope(ratio)
    w = 1.0 / base ** (torch.arange(0, r, 2, dtype=torch.float32) / r)
    if original_seq_len:
        # the pair that turns b times within the original length; slower pairs are stretched, faster ones kept
        at = lambda b: r * math.log(original_seq_len / (2 * math.pi * b)) / (2 * math.log(base))
        low, high = max(math.floor(at(config.beta_fast)), 0), min(math.ceil(at(config.beta_slow)), r - 1)
        ramp = ((torch.arange(r // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
        w = w / config.rope_factor * ramp + w * (1 - ramp)
    return w


class Rotary:
    """The turns of vectors `width` channels wide: one unit complex number for each pair of channels and position.

    Only the last `rope_head_dim` channels turn: the pairs before them have frequency 0, so their number is 1.
    """

    def __init__(self, config, ratio: int, width: int):
        with torch.device("cpu"):    # also where the model is built without memory ("meta"), to be loaded
            still = torch.zeros((width - config.rope_head_dim) // 2)
            self.w = tuple(torch.cat([still, frequencies(config, ratio)]).tolist())      # width/2

    def __call__(self, start: int, count: int, device, step: int = 1) -> torch.Tensor:
        """Complex64, count x width/2, for positions start, start + step, ..."""
        return turns(self.w, start, count, step, device)

    def at(self, positions):
        """Complex64, ... width/2, for a tensor of positions."""
        return units(positions, self.w)


@lru_cache(maxsize=8)      # layers share them, and training's steps
@torch.inference_mode(False)     # what is kept serves training too, whoever asks first
def turns(w: tuple, start: int, count: int, step: int, device) -> torch.Tensor:
    """What `Rotary` gives, for frequencies w."""
    return units(torch.arange(start, start + count * step, step, device=device), w)


def units(positions, w: tuple):
    """e^(i position w): ... and one axis more, as long as w."""
    angles = positions[..., None].float() * torch.tensor(w, dtype=torch.float32, device=positions.device)   # float32, as V4's
    return torch.complex(angles.cos(), angles.sin())


def turn(x: torch.Tensor, rot: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (2i, 2i+1) of `x` (... T c; or ... T H c with rot[..., None, :]) by rot[i].

    Turning back is turning with the conjugate: `turn(x, rot.conj())`.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))               # ... T c/2
    return torch.view_as_real(pairs * rot).flatten(-2).to(x.dtype)
