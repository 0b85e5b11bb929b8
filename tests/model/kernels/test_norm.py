"""The kernels of RMS normalisation against torch's autograd, in value and gradient."""

import pytest
import torch

from minids import plain
from minids.config import Config
from minids.model import kernels
from minids.model.norm import RMSNorm, normalise, rms
from minids.model.rotary import Rotary, rotate

pytestmark = pytest.mark.skipif(kernels.why_off() is not None, reason="kernels are off")

EPS = 1e-6
SHAPES = [(1, 1, 4), (1, 1, 1, 4), (3, 65, 10), (2, 7, 3, 12), (1, 33, 4, 32), (2, 40, 128)]
CONFIG = Config.nano().replace(rope_head_dim=4)


def rotations(shape, packed=False):
    """Rotations of tokens at positions 0, 1, ..., for x of this shape: B T c or B T H c."""
    B, T, c = shape[0], shape[1], shape[-1]
    rotary = Rotary(CONFIG, 0, c)
    rot = rotary.at(torch.arange(B * T).view(B, T)) if packed else rotary(0, T, "cpu")
    return rot if len(shape) == 3 else rot[..., None, :]


def reference(x, w, rot):
    """The equation, in float64."""
    y = x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()
    y = y if w is None else y * w.double()
    return y if rot is None else rotate(y.float(), rot) if False else turned(y, rot)


def turned(y, rot):
    z = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * rot.to(torch.complex128)
    return torch.view_as_real(z).flatten(-2)
