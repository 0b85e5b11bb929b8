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


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in x's type."""
    x32 = x.float()
    return (x32 * inverse_rms(x32, eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalisation times a learned weight, which stays float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        return (x32 * inverse_rms(x32, self.eps) * self.weight).to(x.dtype)
