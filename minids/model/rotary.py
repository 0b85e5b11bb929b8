"""Rotary embedding on the last channels of a head, and YaRN's stretched frequencies.

Report 2.3.3 ("partial rotary positional embedding"); YaRN: Peng et al., arXiv 2309.00071. Layers
without compression rotate with one base, layers with compression with another one and YaRN. For
what is rotated, and by which position, see `attention.py`, `compressor.py` and `indexer.py`.
"""

import math

import torch
from torch import Tensor

from minids.config import Config
from minids.system.devices import moved


def frequencies(config: Config, ratio: int) -> Tensor:
    """Radians per position of each rotated pair of channels in a layer with this compression
    ratio: float32, r / 2."""
    r = config.rope_head_dim
    base, original_seq_len = config.rope(ratio)
    w = 1.0 / base ** (torch.arange(0, r, 2, dtype=torch.float32) / r)
    if original_seq_len:
        # the pair that rotates b times within the original length; slower pairs are stretched
        at = lambda b: r * math.log(original_seq_len / (2 * math.pi * b)) / (2 * math.log(base))
        low = max(math.floor(at(config.beta_fast)), 0)
        high = min(math.ceil(at(config.beta_slow)), r - 1)
        ramp = ((torch.arange(r // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
        w = w / config.rope_factor * ramp + w * (1 - ramp)
    return w


class Rotary:
    """The rotations of vectors `width` channels wide: one unit complex number for each pair of
    channels and position.

    Only the last `rope_head_dim` channels rotate: the pairs before them have frequency 0, so they
    are multiplied by 1. Rotations of one `kind` are equal, whichever layer they belong to.
    """

    def __init__(self, config: Config, ratio: int, width: int) -> None:
        self.kind = config.rope(ratio), width
        with torch.device("cpu"):    # also where the model is built without memory ("meta")
            still = torch.zeros((width - config.rope_head_dim) // 2)
            self.w = torch.cat([still, frequencies(config, ratio)]).tolist()     # width/2

    def __call__(self, start: int, count: int, device: torch.device | str, step: int = 1) -> Tensor:
        """Complex64, count x width/2, for positions start, start + step, ..."""
        return self.at(torch.arange(start, start + count * step, step, device=device))

    def at(self, positions: Tensor) -> Tensor:
        """e^(i position w): complex64, ... x width/2, for a tensor of positions."""
        w = moved(torch.tensor(self.w, dtype=torch.float32), positions.device)
        angles = positions[..., None].float() * w                                # float32, as V4's
        return torch.complex(angles.cos(), angles.sin())


def rotate(x: Tensor, rot: Tensor) -> Tensor:
    """Rotate each pair of channels (2i, 2i+1) of x by rot[i].

    x: ... T c, or ... T H c with rot[..., None, :]. `rotate(x, rot.conj())` is the inverse.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))       # ... T c/2
    return torch.view_as_real(pairs * rot).flatten(-2).to(x.dtype)
