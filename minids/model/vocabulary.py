"""Log-probabilities over the vocabulary, where a target is, and their gradients.

The logits of all tokens are the largest tensor of a small model's training step. On a CPU
`head_loss` never has all of them: a stripe of tokens at a time goes through the output matrix, its
loss and its gradient, and stays in the processor's cache meanwhile.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids.model import kernels
from minids.model.kernels import vocabulary as compiled

STRIPE = 2**20      # logits of a stripe: 4 MB


def head_loss(h: Tensor, W: Tensor, ids: Tensor) -> Tensor:
    """The sum of -log p(ids_i), in nats; rows whose id is -100 do not count.

    h: N d, float32, the vectors that go into the output matrix W: vocab d; ids: N.
    """
    if not torch.is_grad_enabled():
        h, W = h.detach(), W.detach()
    if kernels.on("vocabulary", h, W):
        return HeadLoss.apply(h, W, ids)
    return F.cross_entropy(F.linear(h, W), ids, ignore_index=-100, reduction="sum")


def log_probs(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log p(ids_i), and the entropy of row i, which has no gradient: N each.

    logits: N vocab, float32, -inf where a token is not allowed; ids: N.
    """
    if kernels.on("vocabulary", logits):
        return LogProbs.apply(logits.contiguous(), ids.contiguous())
    logp = logits.log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)                       # 0 log 0 = 0
    return logp.gather(1, ids[:, None])[:, 0], entropy


class LogProbs(torch.autograd.Function):
    """See `log_probs`. The gradient with respect to z_v is g (1[v = id] - p_v)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logz, logp, entropy = measured(logits, ids)
        ctx.save_for_backward(logits, ids, logz)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, ids, logz = ctx.saved_tensors
        dz = torch.empty_like(logits)
        if kernels.on("vocabulary", logits, g):
            gradient(logits, ids, logz, g.contiguous(), dz)
        else:
            torch.sub(logits, logz[:, None], out=dz).exp_().mul_(-g[:, None])
            dz.scatter_add_(1, ids[:, None], g[:, None])
        return dz, None


class HeadLoss(torch.autograd.Function):
    """See `head_loss`. With logits z = W h the gradients are dz = p - 1[v = id], dh = W^T dz and
    dW = dz h^T: they are computed with the loss, while a stripe's logits are there."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor, ids: Tensor) -> Tensor:
        rows = max(STRIPE // len(W), 1)
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        dW = torch.zeros_like(W) if ctx.needs_input_grad[1] else None
        z, logp = h.new_empty(min(rows, len(h)), len(W)), h.new_empty(min(rows, len(h)))
        total = h.new_zeros(())
        for begin in range(0, len(h), rows):
            stripe, y = h[begin:begin + rows], ids[begin:begin + rows].contiguous()
            z, logp = z[:len(y)], logp[:len(y)]
            torch.mm(stripe, W.mT, out=z)
            compiled.loss(*kernels.arrays(z, y, logp), kernels.parts(len(y)))        # z is now dz
            total -= logp.sum()
            if dh is not None:
                torch.mm(z, W, out=dh[begin:begin + rows])
            if dW is not None:
                dW.addmm_(z.mT, stripe)
        ctx.save_for_backward(dh, dW)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dh, dW = ctx.saved_tensors
        return None if dh is None else dh * g, None if dW is None else dW * g, None


def measured(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Z, log p(ids_i) and the entropy of each row of z: N each. log p is 0 where the id is
    negative."""
    logz, logp, entropy = (z.new_empty(len(z)) for _ in range(3))
    compiled.measure(z.detach().numpy(), ids.numpy(), logz.numpy(), logp.numpy(), entropy.numpy(),
                     kernels.parts(len(z)))
    return logz, logp, entropy


def gradient(z: Tensor, ids: Tensor, logz: Tensor, scale: Tensor, dz: Tensor) -> None:
    """Write the gradient of sum_i scale_i log p(ids_i) into dz: N vocab, as z. Rows with a negative
    id have none."""
    compiled.gradient(z.detach().numpy(), ids.numpy(), logz.numpy(), scale.detach().numpy(),
                      dz.numpy())
