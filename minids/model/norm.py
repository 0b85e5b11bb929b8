"""RMS normalisation, computed in float32 whatever comes in, and the rotation that may follow it.

The gradient is written by hand: in torch it takes fewer passes over memory than autograd's, and a
kernel computes it in one. A test compares it with autograd's.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.model import kernels
from minids.model.kernels import norm
from minids.model.rotary import FEW, rotate, rotation_rows

NO_ROTATION = np.empty((0, 2), np.float32)      # for kernels


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, kept as an axis of 1. Float32 in and out."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()


def normalise(x: Tensor, w: Tensor | None, eps: float, rot: Tensor | None = None) -> Tensor:
    """w x / sqrt(mean(x^2) + eps) over the last axis, float32; w may be None, for 1. Then rotated
    by rot, if it is given (see `rotary.rotate`)."""
    # in decoding, an autograd Function costs as much as the arithmetic in it
    if torch.is_grad_enabled():
        return Normalise.apply(x, w, eps, rot)
    return normalised(x, w, eps, rot)[0]


def normalised(x: Tensor, w: Tensor | None, eps: float,
               rot: Tensor | None) -> tuple[Tensor, Tensor]:
    """`normalise`, and r = 1 / sqrt(mean(x^2) + eps), ... x 1, for its gradient."""
    if kernels.on("norm", x):
        x = x.contiguous()
        y, r = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
        table, heads = (NO_ROTATION, 1) if rot is None else rotation_rows(rot, x)
        compute = norm.forward if x.numel() > FEW else norm.forward_few
        compute(rows(x), weights(x, w), eps, table, heads, rows(y), r.numpy().ravel())
        return y, r
    r = inverse_rms(x, eps)
    y = x * r
    if w is not None:
        y.mul_(w)
    return (y if rot is None else rotate(y, rot)), r


def rows(x: Tensor) -> np.ndarray:
    """Contiguous ... c as an array N c."""
    return x.detach().numpy().reshape(-1, x.shape[-1])


def weights(x: Tensor, w: Tensor | None) -> np.ndarray:
    """The weight of each channel, also where there is none: c."""
    return np.ones(x.shape[-1], np.float32) if w is None else w.detach().contiguous().numpy()


class Normalise(torch.autograd.Function):
    """`normalise`, with its gradient.

    With h = x r, r = 1 / sqrt(mean(x^2) + eps): dx = r (w dy - h mean(h w dy)), dw = sum of h dy.
    A rotation first rotates dy back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor | None, eps: float,
                rot: Tensor | None = None) -> Tensor:
        y, r = normalised(x, w, eps, rot)
        ctx.save_for_backward(x, w, r, rot)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, r, rot = ctx.saved_tensors
        if rot is not None:
            grad = rotate(grad, rot, inverse=True)
        if kernels.on("norm", x, grad):
            return *normalise_backward(x, w, r, grad), None, None
        h = x * r
        dh = grad * h
        if w is None:
            mean = dh.sum(-1, keepdim=True) / -x.shape[-1]
            return torch.addcmul(grad, h, mean).mul_(r), None, None, None
        mean = torch.matmul(dh, w).unsqueeze(-1) / -x.shape[-1]
        dx = torch.mul(grad, w).addcmul_(h, mean).mul_(r)
        return dx, dh.flatten(0, -2).sum(0), None, None


def normalise_backward(x: Tensor, w: Tensor | None, r: Tensor,
                       grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and w, as a kernel computes them."""
    x, grad = x.contiguous(), grad.contiguous()
    dx, dw = torch.empty_like(x), torch.empty(kernels.parts(r.numel()), x.shape[-1])
    norm.backward(rows(x), weights(x, w), r.numpy().ravel(), rows(grad), rows(dx), dw.numpy())
    return dx, None if w is None else dw.sum(0)


def rms(x: Tensor, eps: float, rot: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in x's type; then rotated by rot, if given."""
    return in_type_of(x, None, eps, rot)


class RMSNorm(nn.Module):
    """RMS normalisation times a learned weight, which stays float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.float32))

    def forward(self, x: Tensor, rot: Tensor | None = None) -> Tensor:
        """x: ... c -> ... c; then rotated by rot, if it is given."""
        return in_type_of(x, self.weight, self.eps, rot)


def in_type_of(x: Tensor, w: Tensor | None, eps: float, rot: Tensor | None) -> Tensor:
    """`normalise` in x's type, which the rotation also takes its input in."""
    if rot is None or x.dtype == torch.float32:
        return normalise(x.float(), w, eps, rot).to(x.dtype)
    return rotate(normalise(x.float(), w, eps).to(x.dtype), rot)
