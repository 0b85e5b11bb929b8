"""The mixture of experts on a CPU: matrix products by torch, all else by kernels.

`moe.py` computes the same with torch alone, and is easier to read. The gradients are written by
hand, so that no product waits for a copy: results go straight to their place in one array for all
experts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids.model.kernels import array, swiglu
from minids.model.kernels import experts as kernel

FEW = 64            # tokens up to which one kernel computes everything,
SMALL = 2**18       # and numbers of a matrix up to which it does;
LARGE = 2**20       # above, `Experts` would copy more than it saves;
ALONE = 2**21       # products up to which it does so in one thread: waking another takes longer


class Choice(torch.autograd.Function):
    """A gate's affinities, its choice, and the weights of the chosen experts: s, experts, g.

    z: N E, the products; bias: E, or None where `chosen` experts are given, N K. s: N E; experts,
    g: N K. For the equations see the kernels `gate` and `gate_backward`.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor | None, chosen: Tensor | None, K: int,
                scale: float) -> tuple[Tensor, Tensor, Tensor]:
        s, experts, g = choose(z, bias, chosen, K, scale)
        ctx.scale = scale
        ctx.save_for_backward(z, s, experts)
        ctx.mark_non_differentiable(experts)
        return s, experts, g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ds: Tensor, _: Tensor, dg: Tensor) -> tuple[Tensor | None, ...]:
        z, s, experts = ctx.saved_tensors
        dz = torch.empty_like(s)
        kernel.gate_backward(array(z), s.numpy(), array(experts), ctx.scale, array(dg), array(ds),
                             dz.numpy())
        return dz, None, None, None, None


def choose(z: Tensor, bias: Tensor | None, chosen: Tensor | None, K: int,
           scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `Choice`."""
    N, E = z.shape
    s, g = torch.empty(N, E), torch.empty(N, K)
    experts = torch.empty(N, K, dtype=torch.int64) if chosen is None else chosen
    biases = np.zeros(E, np.float32) if bias is None else array(bias)
    compute = kernel.gate if N > FEW else kernel.gate_few
    compute(array(z), biases, scale, chosen is None, s.numpy(), array(experts), g.numpy())
    return s, experts, g


class Swiglu(torch.autograd.Function):
    """weight silu(gate) up with V4's clamps; see the kernels. gate_up: N 2 I; weight: N."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        ctx.save_for_backward(gate_up, weight)
        h = torch.empty(len(weight), gate_up.shape[2])
        swiglu.forward(array(gate_up), array(weight), limit, h.numpy())
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, weight = ctx.saved_tensors
        dh = dh.clone(memory_format=torch.contiguous_format)    # becomes h
        dgate_up, dweight = torch.empty(gate_up.shape), torch.empty(weight.shape)
        swiglu.backward(array(gate_up), array(weight), ctx.limit, dh.numpy(), dgate_up.numpy(),
                        dweight.numpy())
        return dgate_up, dweight, None


class Sorted:
    """The choices of N tokens, sorted by expert.

    experts, g: N K -> counts: E; slots: N K, where a choice stands; tokens, weights: NK+N, those of
    each row. Each token is also a row of the shared expert, of weight 1: these stand last.
    """

    def __init__(self, experts: Tensor, g: Tensor, E: int) -> None:
        N, K = experts.shape
        self.counts, self.tokens = np.empty(E, np.int64), np.empty(N * K, np.int64)
        self.slots, self.weights = np.empty((N, K), np.int64), np.ones(N * K + N, np.float32)
        kernel.sort(array(experts), array(g), self.counts, self.slots, self.tokens, self.weights)

    def gathered(self, x: Tensor) -> Tensor:
        """The row of each choice: N d -> NK d."""
        rows = torch.empty(len(self.tokens), x.shape[1])
        kernel.gather(array(x), self.tokens, rows.numpy())
        return rows

    def combined(self, rows: Tensor) -> Tensor:
        """For each token the sum of its rows: NK+N d -> N d."""
        y = torch.empty(len(self.slots), rows.shape[1])
        kernel.combine(rows.numpy(), self.slots, y.numpy())
        return y


class Experts(torch.autograd.Function):
    """The shared expert and the chosen ones, with their gradients; x: N d -> N d.

    g, experts: N K; `used` numbers the routed experts whose `matrices` follow: w1, w3 and w2 of
    each of them and then of the shared one. An expert's w1 and w3 are copied into one matrix, which
    halves the number of products: those that are left are larger, and read their input once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, order: Sorted, used: Sequence[int], limit: float,
                *matrices: Tensor) -> Tensor:
        rows = order.gathered(x)                                                 # NK d
        R, I = len(rows) + len(x), len(matrices[0])
        w2s = matrices[2::3]
        w13s = torch.cat([w for i, w in enumerate(matrices) if i % 3 < 2])
        w13s = w13s.view(-1, 2 * I, x.shape[1])                                  # U+1 2I d
        gate_up, h, out = torch.empty(R, 2 * I), torch.empty(R, I), torch.empty(R, x.shape[1])
        runs = Runs(order.counts, used, len(x))
        for run, a, w13 in zip(runs.inputs(rows, x), runs(gate_up), w13s):
            torch.mm(run, w13.T, out=a)
        swiglu.forward(gate_up.view(R, 2, I).numpy(), order.weights, limit, h.numpy())
        for a, b, w2 in zip(runs(h), runs(out), w2s):
            torch.mm(a, w2.T, out=b)
        ctx.order, ctx.runs, ctx.limit = order, runs, limit
        ctx.save_for_backward(x, rows, gate_up, w13s, *w2s)
        return order.combined(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, gate_up, w13s, *w2s = ctx.saved_tensors
        order, runs, dy = ctx.order, ctx.runs, dy.contiguous()
        R, I = len(gate_up), w2s[0].shape[1]
        dout = order.gathered(dy)                                                # NK d
        h = torch.empty(R, I)
        for run, a, w2 in zip(runs.inputs(dout, dy), runs(h), w2s):
            torch.mm(run, w2, out=a)        # dh, which becomes h
        dgate_up, dweight = torch.empty(R, 2 * I), np.empty(R, np.float32)
        swiglu.backward(gate_up.view(R, 2, I).numpy(), order.weights, ctx.limit, h.numpy(),
                        dgate_up.view(R, 2, I).numpy(), dweight)
        drows = torch.empty(R, x.shape[1])
        gradients: list[Tensor | None] = []
        needed = triples(ctx.needs_input_grad[5:])
        for run, dout_run, drun, a, hidden, w13, (n1, n3, n2) in zip(
                runs.inputs(rows, x), runs.inputs(dout, dy), runs(drows), runs(dgate_up), runs(h),
                w13s, needed):
            torch.mm(a, w13, out=drun)
            d1, d3 = (a.T @ run).split(I) if n1 or n3 else (None, None)
            gradients += [d1, d3, dout_run.T @ hidden if n2 else None]
        dg = torch.from_numpy(dweight[order.slots])                              # N K
        return order.combined(drows), dg, None, None, None, *gradients


class Runs:
    """Cuts an array of sorted rows into the runs of the experts that are used; the shared expert's
    N rows come last."""

    def __init__(self, counts: np.ndarray, used: Sequence[int], N: int) -> None:
        self.sizes = [*counts[used].tolist(), N]

    def __call__(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split(self.sizes)

    def inputs(self, rows: Tensor, x: Tensor) -> Sequence[Tensor]:
        """The runs of `rows`, and x for the shared expert."""
        return *rows.split(self.sizes[:-1]), x


def triples(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """(w1, w3, w2) of each expert."""
    return (items[i:i + 3] for i in range(0, len(items), 3))


def few(x: Tensor, experts: Tensor, g: Tensor, used: Sequence[int], limit: float,
        matrices: Sequence[Tensor]) -> Tensor:
    """As `Experts`, for a few tokens, without a gradient."""
    addresses = np.array([matrix.data_ptr() for matrix in matrices]).reshape(-1, 3)
    y, I = torch.empty(x.shape), len(matrices[0])
    work = 3 * (experts.numel() + len(x)) * matrices[0].numel()
    compute = kernel.one_by_one if work <= ALONE else kernel.side_by_side
    compute(array(x), array(experts), array(g), np.array(used), addresses, limit, I, y.numpy())
    return y
