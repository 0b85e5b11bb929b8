"""Checks of lesson 08: the parts of a block that have no lesson of their own (V4 report, sections 2.1 and 2.2)."""

import torch
import torch.nn.functional as F

from minids.learn.exercise import Check

LESSON = "08_whole_model"


def sqrtsoftplus(x):
    """The affinity of a token with each expert, sqrt(softplus(x)). x: any shape, float32."""
    return F.softplus(x).sqrt()


def _affinity_cases(rng):
    yield "a few numbers", (torch.randn(7, generator=rng) * 2,)
    yield "B T E", (torch.randn(2, 3, 5, generator=rng) * 4,)
    yield "large numbers, which overflow exp", (torch.tensor([60.0, 90.0, 200.0]) + torch.rand(3, generator=rng),)


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32, then times weight; the result has x's dtype."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _norm_cases(rng):
    weight = torch.rand(6, generator=rng) + 0.5
    yield "one vector", (torch.randn(6, generator=rng) + 0.3, weight, 1e-6)
    yield "B T d", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 1e-6)
    yield "a large eps", (torch.randn(2, 3, 6, generator=rng) + 0.3, weight, 0.5)
    yield "bfloat16 in, bfloat16 out", ((torch.randn(2, 3, 6, generator=rng) + 0.3).bfloat16(), weight, 1e-6)


CHECKS = [
    Check(
        "whole.sqrtsoftplus", sqrtsoftplus, _affinity_cases,
        mistakes={
            "this is softplus without the square root": F.softplus,
            "this is sigmoid, the gate of DeepSeek-V3; V4 takes sqrt(softplus(x))": torch.sigmoid,
            "the order is the other way round: first softplus, then the square root": lambda x: F.softplus(x.sqrt()),
            "exp overflows for large x: torch.nn.functional.softplus is safe there": lambda x: torch.log1p(x.exp()).sqrt(),
        },
        hints=(
            "softplus(x) is log(1 + exp(x)): always above zero, and about x where x is large.",
            "torch.nn.functional.softplus computes it without overflow.",
            "One line: the square root of softplus, element by element.",
        ),
    ),
    Check(
        "whole.rms_norm", rms_norm, _norm_cases,
        mistakes={
            "the weight is missing": lambda x, weight, eps: rms_norm(x, torch.ones_like(weight), eps),
            "the mean is over all axes: it belongs over the last axis only":
                lambda x, weight, eps: (x.float() * torch.rsqrt(x.float().square().mean() + eps) * weight).to(x.dtype),
            "this divides by the root of the sum; RMS takes the mean of the squares":
                lambda x, weight, eps: (x.float() / (x.float().square().sum(-1, True) + eps).sqrt() * weight).to(x.dtype),
            "the mean was subtracted first, as LayerNorm does; RMS leaves it":
                lambda x, weight, eps: rms_norm(x.float() - x.float().mean(-1, keepdim=True), weight, eps).to(x.dtype),
            "eps stands outside the square root; the report has it inside":
                lambda x, weight, eps: (x.float() / (x.float().square().mean(-1, True).sqrt() + eps) * weight).to(x.dtype),
            "eps is not used": lambda x, weight, eps: rms_norm(x, weight, 0.0),
            "the result has another dtype than x: compute in float32, then go back with .to(x.dtype)":
                lambda x, weight, eps: rms_norm(x.float(), weight, eps),
        },
        hints=(
            "Square, mean over the last axis (keepdim=True), add eps, then the reciprocal of the square root.",
            "Compute in float32: x.float(). The weight has one number for each channel and is multiplied at the end.",
            "torch.rsqrt(v) is 1 / sqrt(v); the last step is .to(x.dtype).",
        ),
        atol=1e-4,
    ),
]
