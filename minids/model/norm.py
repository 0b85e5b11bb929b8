"""RMS normalisation, computed in float32 whatever comes in."""

from functools import lru_cache

import torch
from torch import nn


@lru_cache(maxsize=32)
@torch.inference_mode(False)     # what is kept serves training too, whoever asks first
def constant(value: float, device) -> torch.Tensor:
    """A float32 tensor of one number, made once: an operation with it is cheaper than with a Python number."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, kept as an axis of 1. Float32 in and out."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(constant(eps, x.device), norm, norm, value=1 / x.shape[-1]).rsqrt()


class Normalised(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps) over the last axis, float32; w may be None, for 1.

    With h = x r, r = 1 / sqrt(mean(x^2) + eps), the gradient is dx = r (w dy - h mean(h w dy)), dw = sum of h dy: half as
    many walks through memory as autograd makes of it. A test holds it to autograd's.
    """

    @staticmethod
    def forward(ctx, x, w, eps):
        r = inverse_rms(x, eps)
        ctx.save_for_backward(x, w, r)
        return x * r if w is None else (x * r).mul_(w)

    @staticmethod
    def backward(ctx, grad):
        x, w, r = ctx.saved_tensors
        h = x * r
        t = grad * h
        dw = None if w is None else t.flatten(0, -2).sum(0)
        mean = (t.sum(-1, keepdim=True) if w is None else torch.matmul(t, w).unsqueeze(-1)) / -x.shape[-1]
        dx = torch.addcmul(grad, h, mean) if w is None else torch.mul(grad, w).addcmul_(h, mean)
        return dx.mul_(r), dw, None


def call(function, *args):
    """`function.apply`, or its forward pass alone where nothing is recorded: in decoding `apply` costs as much as the sums."""
    return function.apply(*args) if torch.is_grad_enabled() else function.forward(Unrecorded(), *args)


class Unrecorded:
    """Stands for the context of a function whose gradient nobody will ask for."""

    needs_input_grad = (False,)

    def save_for_backward(self, *tensors):
        pass


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in x's type."""
    return call(Normalised, x.float(), None, eps).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalisation times a learned weight, which stays float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return call(Normalised, x.float(), self.weight, self.eps).to(x.dtype)
