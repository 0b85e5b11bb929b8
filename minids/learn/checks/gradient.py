"""What a check compares where the gradient is the lesson: a result together with its gradient."""

import functools

import torch


def with_gradient(function):
    """A function that returns function(x, ...) and the gradient of its sum with respect to x.

    The gradient is 0 where there is none. A result that is not a tensor is returned alone.
    """
    @functools.wraps(function)
    def both(x, *others):
        x = x.detach().clone().requires_grad_()
        y = function(x, *others)
        if not isinstance(y, torch.Tensor):
            return y
        grad = None
        if y.requires_grad:
            grad, = torch.autograd.grad(y.sum(), x, allow_unused=True)
        return y.detach(), torch.zeros_like(x) if grad is None else grad
    return both
