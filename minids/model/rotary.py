"""Rotary embedding on the last channels of a head, and YaRN's stretched frequencies.

Report 2.3.3 ("partial rotary positional embedding"); YaRN: Peng et al., arXiv 2309.00071. Layers
without compression rotate with one base, layers with compression with another one and YaRN. For
what is rotated, and by which position, see `attention.py`, `compressor.py` and `indexer.py`.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minids.config import Config
from minids.model import kernels
from minids.model.kernels import rotary
from minids.system.devices import has_all_types, moved

FEW = 2**14     # numbers up to which a kernel runs in one thread


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
    """The rotations of vectors `width` channels wide: one for each pair of channels and position.

    A rotation is a unit complex number, since one product is the fastest way to rotate a pair. On a
    device without complex numbers it is two real ones: in the channels of the pair stand the cosine
    and the sine of the angle.

    Only the last `rope_head_dim` channels rotate: the pairs before them have frequency 0, so they
    are multiplied by 1. Rotations of one `kind` are equal, whichever layer they belong to.
    """

    def __init__(self, config: Config, ratio: int, width: int) -> None:
        self.kind = config.rope(ratio), width
        with torch.device("cpu"):    # also where the model is built without memory ("meta")
            still = torch.zeros((width - config.rope_head_dim) // 2)
            self.w = torch.cat([still, frequencies(config, ratio)]).tolist()     # width/2

    def __call__(self, start: int, count: int, device: torch.device | str, step: int = 1) -> Tensor:
        """For positions start, start + step, ...: see `at`."""
        return self.at(torch.arange(start, start + count * step, step, device=device))

    def at(self, positions: Tensor) -> Tensor:
        """e^(i position w) for a tensor of positions: complex64, ... x width/2; on a device without
        complex numbers float32, ... x width."""
        w = moved(torch.tensor(self.w, dtype=torch.float32), positions.device)
        angles = positions[..., None].float() * w                                # float32, as V4's
        if has_all_types(positions.device):
            return torch.complex(angles.cos(), angles.sin())
        return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)


def rotate(x: Tensor, rot: Tensor, inverse: bool = False) -> Tensor:
    """Rotate each pair of channels (2i, 2i+1) of x by its rotation in rot, or back if `inverse`.

    x: ... T c, or ... T H c with rot[..., None, :]. For rot see `Rotary.at`.
    """
    if kernels.on("rotary", x) and not rot.requires_grad:
        if torch.is_grad_enabled():
            return Rotate.apply(x, rot, inverse)
        return rotate_rows(x, rot, inverse)
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)                              # ... T c/2 2
    if rot.is_complex():
        y = torch.view_as_complex(pairs) * (rot.conj() if inverse else rot)
        return torch.view_as_real(y).flatten(-2).to(x.dtype)
    (a, b), (cos, sin) = pairs.unbind(-1), rot.unflatten(-1, (-1, 2)).unbind(-1)
    sin = -sin if inverse else sin
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class Rotate(torch.autograd.Function):
    """`rotate`, whose gradient is rotated the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rot: Tensor, inverse: bool) -> Tensor:
        ctx.inverse = inverse
        ctx.save_for_backward(rot)
        return rotate_rows(x, rot, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rot, = ctx.saved_tensors
        return rotate(grad, rot, not ctx.inverse), None, None


def rotate_rows(x: Tensor, rot: Tensor, inverse: bool) -> Tensor:
    """`rotate` as a kernel computes it."""
    x = x.contiguous()
    y, c = torch.empty_like(x), x.shape[-1]
    table, heads = rotation_rows(rot, x)
    compute = rotary.rotate if x.numel() > FEW else rotary.rotate_few
    compute(x.detach().numpy().reshape(-1, c), table, heads, -1.0 if inverse else 1.0,
            y.numpy().reshape(-1, c))
    return y


def rotation_rows(rot: Tensor, x: Tensor) -> tuple[np.ndarray, int]:
    """Rotations as kernels take them: a table R x c of pairs (cos, sin), and how many rows of x in
    succession share one. Row i of x, N x c, rotates by row i // heads, modulo R."""
    if rot.is_complex():
        rot = torch.view_as_real(rot.resolve_conj()).flatten(-2)
    shape, rows, heads = rot.shape[:-1], x.shape[:-1], 1
    if shape and rows and shape[-1] == 1:
        shape, rows, heads = shape[:-1], rows[:-1], rows[-1]
    if shape != rows[len(rows) - len(shape):]:          # broadcast along another axis
        rot, heads = rot.expand(x.shape), 1
    return rot.reshape(-1, x.shape[-1]).numpy(), heads
