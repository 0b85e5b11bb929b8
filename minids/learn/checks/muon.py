"""Checks of lesson 09: orthogonalised updates (V4 report, sections 2.4 and 4.2.2)."""

from functools import partial
from itertools import combinations

import torch

from minids.config import Config
from minids.learn.exercise import Check
from minids.pretrain.optim import for_muon
from minids.weights import layout

LESSON = "09_muon"
STEEP, FLAT = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)


# ---- the iteration ----

def orthogonalise(G, steps=(STEEP,) * 8 + (FLAT,) * 2, norm=torch.linalg.matrix_norm, eps=1e-20,
                  transpose=True, back=True):
    """Hybrid Newton-Schulz of one matrix, rows x columns. The keyword arguments make mistakes."""
    tall = transpose and G.shape[0] > G.shape[1]
    X = G.mT if tall else G
    X = X / (norm(X) + eps)
    for a, b, c in steps:
        A = X @ X.mT
        X = a * X + b * A @ X + c * A @ A @ X
    return X.mT if tall and back else X


def _other_side(G):
    """X A instead of A X, where A = X X^T: runs on square matrices only."""
    X = G / (G.norm() + 1e-20)
    for a, b, c in (STEEP,) * 8 + (FLAT,) * 2:
        A = X @ X.mT
        X = a * X + b * X @ A + c * X @ A @ A
    return X


def _largest_entry(X):
    return X.abs().max()


def _orthogonalise_cases(rng):
    yield "square", (torch.randn(6, 6, generator=rng),)
    yield "wide", (3 * torch.randn(4, 9, generator=rng),)
    yield "tall", (0.02 * torch.randn(11, 5, generator=rng),)
    G, a, b = (torch.randn(shape, generator=rng) for shape in ((6, 10), (6, 2), (2, 10)))
    yield "two directions a hundred times as strong as the others", (G + 100 * a @ b,)
    row = torch.randn(1, 8, generator=rng) + 12 * torch.eye(8)[2:3]
    yield "one row, most of it in one place", (row,)
    yield "all zeros, an expert that no token chose", (torch.zeros(3, 5),)


# ---- a polynomial that lands on 1 ----

def flat(a):
    """(b, c) of p(x) = a x + b x^3 + c x^5 with p(1) = 1 and p'(1) = 0."""
    return 2.5 - 2 * a, a - 1.5


def _flat_cases(rng):
    yield "slope 2 at zero", (2.0,)
    for a in (1.2 + 2 * torch.rand(3, generator=rng)).tolist():
        yield f"slope {a:.2f} at zero", (a,)


def _solved(one, three, five, slope, value=1.0):
    """(b, c) from the wrong conditions a + b + c = value and one a + three b + five c = slope."""
    def wrong(a):
        rest = slope - one * a - three * (value - a)
        c = rest / (five - three)
        return value - a - c, c
    return wrong


# ---- one step ----

def muon_step(W, G, M, lr, mu=0.95, decay=0.1, nesterov=True, coupled=False, scale="max",
              damped=False, own_scale=True, late=False):
    """One step of one matrix: (new W, new M). The arguments after `decay` make mistakes."""
    rows, columns = W.shape
    if coupled:
        G = G + decay * W
    M = mu * M + ((1 - mu) * G if damped else G)
    O = orthogonalise(mu * M + G if nesterov else M)
    O = O * (0.18 * {"max": max, "min": min}[scale](rows, columns) ** 0.5 if own_scale else 1.0)
    if late:
        return (W - lr * O) * (1 - lr * decay), M
    return W * (1 if coupled else 1 - lr * decay) - lr * O, M


def _step_cases(rng):
    for label, shape in (("a wide matrix", (4, 12)), ("a tall matrix", (10, 3))):
        W, G, M = (torch.randn(shape, generator=rng) for _ in range(3))
        yield label, (4 * W, G, 2 * M, 0.05)
    yield "the first step, from no momentum", (4 * W, G, torch.zeros_like(W), 0.2)


FAULTS = {
    "Nesterov's look ahead is missing: what is orthogonalised is mu M + G, with the new M":
        {"nesterov": False},
    "the decay goes through the gradient, and so through the orthogonalisation: it belongs on W "
    "directly": {"coupled": True},
    "the scale takes the smaller side: it is the square root of the LARGER of rows and columns":
        {"scale": "min"},
}


def _left_over():
    """{message: step} for each way to repair some of the three faults and leave others."""
    all_three = partial(muon_step, nesterov=False, coupled=True, scale="min")
    steps = {"all three faults are still there": all_three}
    for fault in FAULTS:
        steps[f"two are repaired; {fault}"] = partial(muon_step, **FAULTS[fault])
    for first, second in combinations(FAULTS, 2):
        two = partial(muon_step, **FAULTS[first], **FAULTS[second])
        steps[f"one is repaired. Still: {first}. And: {second}"] = two
    return steps


# ---- who goes where ----

def choose(shapes):
    """The names of Muon's parameters. shapes: {name: shape} of all parameters."""
    with torch.device("meta"):
        return {name for name, shape in shapes.items() if for_muon(name, torch.empty(shape))}


def parameters(config):
    """{name: shape} of a model's parameters."""
    tensors = layout.tensors(config).items()
    return {name: shape for name, (format, shape) in tensors if format != "I64"}


def _choose_cases(rng):
    yield "nano", (parameters(Config.nano()),)
    yield "a nano model with two window-only layers first", (
        parameters(Config.nano().replace(n_layers=5, compress_ratios=(0, 0, 4, 16, 4, 0))),)


def _also(*ends):
    return lambda shapes: choose(shapes) | {name for name in shapes if name.endswith(ends)}


def _without(*marks):
    def wrong(shapes):
        return {name for name in choose(shapes) if not any(mark in name for mark in marks)}
    return wrong


CHECKS = [
    Check(
        "muon.orthogonalise", orthogonalise, _orthogonalise_cases,
        mistakes={
            "the matrix is not normalised first: a singular value above 1.3 or so makes the "
            "iteration run away":
                partial(orthogonalise, norm=torch.ones_like, eps=0.0),
            "A = X X^T is on the wrong side: it is A X and A A X. X A has the shape for it "
            "only if X is square":
                _other_side,
            "a tall matrix was transposed and not transposed back":
                partial(orthogonalise, back=False),
            "only the steep steps are there: singular values end scattered between 0.7 and 1.1; "
            "the last two steps are flat":
                partial(orthogonalise, steps=(STEEP,) * 8),
            "all ten steps are steep: the last two have the coefficients (2, -1.5, 0.5)":
                partial(orthogonalise, steps=(STEEP,) * 10),
            "all ten steps are flat: small singular values grow only twofold a step and do not "
            "arrive":
                partial(orthogonalise, steps=(FLAT,) * 10),
            "the two stages are exchanged: first eight steep steps, then two flat ones":
                partial(orthogonalise, steps=(FLAT,) * 2 + (STEEP,) * 8),
            "the counts are exchanged: eight steep steps and two flat ones, not two and eight":
                partial(orthogonalise, steps=(STEEP,) * 2 + (FLAT,) * 8),
            "b and c are exchanged: b belongs to A X, c to A A X":
                partial(orthogonalise, steps=[(a, c, b) for a, b, c in (STEEP,) * 8 + (FLAT,) * 2]),
            "five steep steps are Muon's original recipe; V4 takes eight, and two flat ones":
                partial(orthogonalise, steps=(STEEP,) * 5),
            "this divides by the largest singular value, which takes a decomposition to find: the "
            "Frobenius norm is one sum, and never smaller":
                partial(orthogonalise, norm=partial(torch.linalg.matrix_norm, ord=2)),
            "this divides by the largest entry, which can be smaller than the largest singular "
            "value: take the Frobenius norm":
                partial(orthogonalise, norm=_largest_entry),
            "a matrix of zeros becomes 0/0: add a tiny number to the norm":
                partial(orthogonalise, eps=0.0),
        },
        hints=(
            "Three parts: divide by the Frobenius norm (plus 1e-20), eight steps with STEEP and "
            "two with FLAT, transpose back.",
            "One step: A = X @ X.mT, then a X + b (A X) + c (A A X). Each of the three terms has "
            "the shape of X.",
            "If rows > columns, work on G.mT and return X.mT: A is then the smaller of the two "
            "possible squares.",
        ),
        atol=2e-5,
    ),
    Check(
        "muon.flat", flat, _flat_cases,
        mistakes={
            "p'(1) is a + 3 b + 5 c: x^3 has the slope 3 at 1, x^5 the slope 5":
                _solved(1, 2, 4, 0.0),
            "p(1) = 1 holds, but the slope at 1 is 1, as if p(x) = x: it must be 0 there":
                _solved(1, 3, 5, 1.0),
            "p(1) is 0: the three coefficients must sum to 1": _solved(1, 3, 5, 0.0, value=0.0),
            "c = 0 leaves only p(1) = 1: the slope at 1 is not 0": lambda a: (1 - a, 0.0),
            "b = 0 leaves only p(1) = 1: the slope at 1 is not 0": lambda a: (0.0, 1 - a),
            "the two are exchanged: return b first, then c": lambda a: (a - 1.5, 2.5 - 2 * a),
            "these are V4's numbers whatever a is: write b and c as functions of a":
                lambda a: (-1.5, 0.5),
        },
        hints=(
            "Two conditions, two unknowns: p(1) = a + b + c = 1 and p'(1) = a + 3 b + 5 c = 0.",
            "From the first b = 1 - a - c. Put it into the second: only c is left.",
            "a + 3 (1 - a - c) + 5 c = 0 gives c; for a = 2 the result must be b = -1.5, c = 0.5.",
        ),
    ),
    Check(
        "muon.step", muon_step, _step_cases,
        mistakes=_left_over() | {
            "momentum is damped here: M = mu M + G, without a factor (1 - mu) at G":
                partial(muon_step, damped=True),
            "the factor 0.18 sqrt(max(rows, columns)) is missing":
                partial(muon_step, own_scale=False),
            "the decay acts on W before the update, not on the result":
                partial(muon_step, late=True),
        },
        hints=(
            "Go through the algorithm line by line: momentum, look ahead, orthogonalise, scale, "
            "decay and move.",
            "Decoupled decay: W shrinks by the factor (1 - lr * decay), apart from the update; G "
            "knows nothing of it.",
            "mu * M + G uses the NEW M. The scale: rows and columns of W, the larger one.",
        ),
        atol=2e-5,
    ),
    Check(
        "muon.choose", choose, _choose_cases,
        mistakes={
            "the embedding and the head are here: they have two dimensions, but V4 leaves them to "
            "AdamW":
                _also("embed.weight", "head.weight"),
            "the embedding is here: a step touches only the rows of the tokens it saw; V4 leaves "
            "it to AdamW":
                _also("embed.weight"),
            "the head is here: V4 leaves it to AdamW":
                lambda shapes: choose(shapes) | {"head.weight"},
            "the compressors' ape is here: a table of biases, one row for each place in a window, "
            "that multiplies nothing":
                _also("ape"),
            "embedding, head and ape are here: of the tensors with two dimensions these three go "
            "to AdamW":
                _also("embed.weight", "head.weight", "ape"),
            "all parameters are here: norms, sinks, biases and scales are no matrices": set,
            "the matrices hc_..._fn of mHC are missing: AdamW has only their static biases (base) "
            "and gating factors (scale)":
                _without("hc_"),
            "the routers are missing: gate.weight is a matrix that multiplies tokens":
                _without("gate.weight"),
            "the routed experts are missing: each of their matrices is Muon's, by itself":
                _without(".experts."),
            "the MTP block's matrices are missing": _without("mtp."),
            "everything whose name contains 'head' is out, the matrix hc_head_fn too: only "
            "head.weight is AdamW's":
                _without("hc_head"),
        },
        hints=(
            "A parameter for Muon has two dimensions: len(shape) == 2.",
            "Of those, three kinds stay with AdamW: embed.weight, head.weight, and every name "
            "that ends with 'ape'.",
            "Return a set of names: {name for name, shape in shapes.items() if ...}.",
        ),
    ),
]
