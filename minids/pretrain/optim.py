"""Muon, V4's optimiser for matrices; which parameters it updates; and the schedules of a run.

Report 2.4 and 4.2.2; Muon: Jordan et al., 2024; its scale beside AdamW: Liu et al., arXiv
2502.16982. `settings` are `minids.pretrain.settings.RunSettings`.
"""

import math
from collections import defaultdict

import torch

CACHED = 2**19      # numbers of the matrices that a CPU iterates on together: they fit its cache
STEEP, FLAT = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)


def orthogonalise(G: torch.Tensor) -> torch.Tensor:
    """Matrices with G's singular vectors and singular values near 1: K x rows x columns in and out.

    Hybrid Newton-Schulz: X <- a X + b (X X^T) X + c (X X^T)^2 X, eight times with steep
    coefficients, which raise small singular values fast, then twice with flat ones, which bring all
    of them to 1. A zero matrix stays zero.
    """
    if G.device.type == "cpu" and len(G) > (group := max(CACHED // G[0].numel(), 1)):
        return torch.cat([orthogonalise(part) for part in G.split(group)])
    X = G.mT if G.shape[1] > G.shape[2] else G
    X = X / (X.flatten(1).norm(dim=1)[:, None, None] + 1e-20)
    for a, b, c in [STEEP] * 8 + [FLAT] * 2:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)                                 # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)                                          # a X + B X
    return X.mT if G.shape[1] > G.shape[2] else X


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the size of AdamW's updates; decoupled decay.

    For matrices, each by itself: an expert's matrix is one matrix. Matrices of one shape are
    computed together.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, p.dtype, p.device].append(p)
            for (shape, _, _), ps in alike.items():
                for p in ps:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                grads, momenta = [p.grad for p in ps], [self.state[p]["momentum"] for p in ps]
                torch._foreach_mul_(momenta, momentum)
                torch._foreach_add_(momenta, grads)
                # K rows columns
                ahead = torch.stack(grads).add_(torch.stack(momenta), alpha=momentum)
                update, scale = orthogonalise(ahead), 0.18 * max(shape) ** 0.5
                torch._foreach_mul_(ps, 1 - lr * group["weight_decay"])
                torch._foreach_add_(ps, list(update.unbind()), alpha=-lr * scale)


def for_muon(name: str, p: torch.Tensor) -> bool:
    """Whether Muon updates a parameter: all matrices except embedding, head, and `ape`, which is a
    table of biases."""
    return p.ndim == 2 and name not in ("embed.weight", "head.weight") and not name.endswith("ape")


class Joined:
    """Several optimisers that step as one; each parameter belongs to one of them."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict:
        """{parameter: its optimiser's tensors}, to read."""
        return {p: state for part in self.parts for p, state in part.state.items()}

    def put(self, p, state: dict) -> None:
        """Set the state of one parameter."""
        for part in self.parts:
            if any(p is q for group in part.param_groups for q in group["params"]):
                part.state[p] = state

    def forget(self) -> None:
        """Clear all optimiser state."""
        for part in self.parts:
            part.state.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()


def make_optimiser(model, settings) -> Joined:
    """AdamW, or Muon for most matrices and AdamW for the rest.

    Vectors (norms, sinks, ape, the scales and bases of mHC) have no weight decay and learn faster
    than matrices: they start near one value and have to move far in a run as short as ours.
    """
    named = dict(model.named_parameters())
    matrices = [n for n, p in named.items() if p.ndim == 2 and not n.endswith("ape")]
    muon = [n for n in matrices if settings.optimiser == "muon" and for_muon(n, named[n])]
    adam = [n for n in matrices if n not in set(muon)]
    vectors = [n for n in named if n not in set(matrices)]

    def group(names, weight_decay, times):
        return {"params": [named[n] for n in names], "weight_decay": weight_decay, "times": times}

    adamw = torch.optim.AdamW(
        [group(adam, settings.weight_decay, 1.0), group(vectors, 0.0, settings.vector_lr)],
        lr=settings.lr, betas=(0.9, 0.95),
        eps=1e-20 if settings.optimiser == "muon" else 1e-8,        # V4's, or the usual one
        fused=next(model.parameters()).device.type in ("cpu", "cuda", "mps", "xpu"))
    if not muon:
        return Joined(adamw)
    return Joined(Muon([group(muon, settings.weight_decay, 1.0)], lr=settings.lr), adamw)


def learning_rate(settings, step: int) -> float:
    """A linear rise over `warmup` steps, `lr` up to `decay_start`, then a cosine to a tenth."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    begin = decay_start(settings)
    done = max(step - begin, 0) / max(settings.steps - begin, 1)
    return settings.lr * (0.55 + 0.45 * math.cos(math.pi * done))


def decay_start(settings) -> int:
    """The step from which the learning rate falls."""
    return max(settings.warmup, round(settings.decay_from * settings.steps))


def mtp_weight(settings, step: int) -> float:
    """The weight of the MTP loss: smaller from `decay_start` on, if `decay_from` is not 0."""
    late = settings.decay_from and step >= decay_start(settings)
    return settings.mtp_late if late else settings.mtp_weight
