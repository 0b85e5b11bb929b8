"""Checks of lesson 09: orthogonalised updates (V4 report, sections 2.4 and 4.2.2)."""

import math
from functools import partial
from itertools import combinations

import torch

from minids.config import Config
from minids.learn.exercise import Check
from minids.pretrain.optim import for_muon
from minids.weights import layout

LESSON = "09_muon"
STEEP, FLAT = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)
DIVISIONS = (torch.Tensor.div, torch.Tensor.__truediv__, torch.div)
TEN = (STEEP,) * 8 + (FLAT,) * 2


# ---- the iteration ----

class Watched(torch.Tensor):
    """A matrix that refuses products with more rows and more columns than its smaller side.

    Such a product is larger than needed: A = X X^T of a matrix that should have been transposed.
    """

    small = None

    def __deepcopy__(self, memo):
        return _watched(self.as_subclass(torch.Tensor).clone())

    def __format__(self, spec):
        return format(self.as_subclass(torch.Tensor), spec)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        small = next((a.small for a in args if isinstance(a, cls) and a.small), None)
        if isinstance(result, cls) and small:
            result.small = small
            if result.ndim == 2 and min(result.shape) > small:
                rows, columns = result.shape
                raise ValueError(f"you make a {rows} x {columns} matrix, but the smaller side "
                                 f"of G is {small}: transpose a tall matrix first, and no other")
            if largest := _runs_away(function, args, result):
                raise ValueError(f"the numbers grow past 10^{math.log10(largest):.0f}: a step is "
                                 "a X + b A X + c A A X with A = X X^T of its X; G is divided "
                                 "by its norm before")
        return result


def _runs_away(function, args, result):
    """The largest of some finite numbers whose result is not finite, other than by a division.

    0 if this is not so.
    """
    values = result.as_subclass(torch.Tensor)
    if function in DIVISIONS or values.dtype != torch.float32 or values.isfinite().all():
        return 0
    numbers = [a.as_subclass(torch.Tensor) for a in args if isinstance(a, torch.Tensor)]
    largest = max((number.abs().max().item() for number in numbers), default=0)
    return largest if math.isfinite(largest) else 0


def _watched(G):
    G = G.as_subclass(Watched)
    G.small = min(G.shape)
    return G


def orthogonalise(G, steps=TEN, norm=torch.linalg.matrix_norm, eps=1e-20,
                  transpose=lambda rows, columns: rows > columns, back=True):
    """Hybrid Newton-Schulz of one matrix, rows x columns. The keyword arguments make mistakes."""
    flip = transpose(*G.shape)
    X = G.mT if flip else G
    X = X / (norm(X) + eps)
    for a, b, c in steps:
        A = X @ X.mT
        X = a * X + b * A @ X + c * A @ A @ X
    return X.mT if flip and back else X


def _terms(side):
    """A version whose terms are side(A, X), with A the square of the smaller side."""
    def wrong(G):
        X = G.mT if G.shape[0] > G.shape[1] else G
        X = X / (X.norm() + 1e-20)
        for a, b, c in TEN:
            A = X @ X.mT
            X = a * X + b * side(A, X) + c * side(A, side(A, X))
        return X.mT if G.shape[0] > G.shape[1] else X
    return wrong


def _by_step(step):
    """A version with X = step(X, A, a, b, c), A = X X^T."""
    def wrong(G):
        X = G.mT if G.shape[0] > G.shape[1] else G
        X = X / (X.norm() + 1e-20)
        for coefficients in TEN:
            X = step(X, X @ X.mT, *coefficients)
        return X.mT if G.shape[0] > G.shape[1] else X
    return wrong


def _one_after_the_other(X, A, a, b, c):
    X = a * X
    X = X + b * A @ X
    return X + c * A @ A @ X


def _square_once(G):
    X = G.mT if G.shape[0] > G.shape[1] else G
    X = X / (X.norm() + 1e-20)
    A = X @ X.mT
    for a, b, c in TEN:
        X = a * X + b * A @ X + c * A @ A @ X
    return X.mT if G.shape[0] > G.shape[1] else X


def _other_square(G):
    X = G.mT if G.shape[0] > G.shape[1] else G
    X = X / (X.norm() + 1e-20)
    for a, b, c in TEN:
        A = X.mT @ X
        X = a * X + b * A @ X + c * A @ A @ X
    return X.mT if G.shape[0] > G.shape[1] else X


def _by_numbers(G):
    X = G / (G.norm() + 1e-20)
    for a, b, c in TEN:
        X = a * X + b * X**3 + c * X**5
    return X


def _by_svd(G):
    U, _, V = torch.linalg.svd(G, full_matrices=False)
    return U @ V


def _in_bfloat16(G):
    return orthogonalise(G.bfloat16()).to(G.dtype)


def _largest_entry(X):
    return X.abs().max()


def _sum_of_sizes(X):
    return X.abs().sum()


def _normalised_each_time(G):
    X = G.mT if G.shape[0] > G.shape[1] else G
    for a, b, c in TEN:
        X = X / (X.norm() + 1e-20)
        A = X @ X.mT
        X = a * X + b * A @ X + c * A @ A @ X
    return X.mT if G.shape[0] > G.shape[1] else X


def _sum_of_squares(X):
    return X.square().sum()


def _orthogonalise_cases(rng):
    """Each row and column has at most one strong number, and none is above 1.

    So most wrong ways to normalise leave the iteration finite, and can be told apart.
    """
    def strong(rows, columns, sizes, weak=0.02):
        G = weak * torch.randn(rows, columns, generator=rng)
        for i, size in enumerate(sizes):
            G[(2 * i + 1) % rows, (3 * i + 1) % columns] += size
        return _watched(G)

    yield "square", (strong(5, 5, (0.6, -0.5, 0.4, 0.3)),)
    yield "wide", (strong(4, 9, (0.5, 0.45, -0.3)),)
    yield "tall", (strong(11, 5, (-0.55, 0.5, 0.35, 0.3)),)
    yield "two directions a thousand times as strong as the others", (
        strong(6, 10, (0.7, -0.6), 0.0006),)
    apart = torch.zeros(6, 9)
    apart[0, 0], apart[1:, 1:] = 0.9, 1e-5 * torch.randn(5, 8, generator=rng)
    yield "one direction a hundred thousand times as strong as the others", (_watched(apart),)
    yield "all zeros, an expert that no token chose", (_watched(torch.zeros(3, 5)),)


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

def muon_step(W, G, M, lr, mu=0.95, decay=0.1):
    """One step of one matrix: (new W, new M)."""
    return _step(W, G, M, lr, mu, decay)


def _larger(rows, columns):
    return max(rows, columns) ** 0.5


def _step(W, G, M, lr, mu=0.95, decay=0.1, look=lambda mu, M, G, old: mu * M + G, coupled=False,
          gamma=0.18, scale=_larger, momentum=lambda mu, M, G: mu * M + G, shrink=None, move=None,
          stored=None):
    """`muon_step`; the arguments after `decay` make mistakes."""
    if coupled:
        G = G + decay * W
        shrink = _shrink_not
    old, M = M, momentum(mu, M, G)
    O = orthogonalise(look(mu, M, G, old)) * gamma * scale(*W.shape)
    kept = (shrink or _shrink)(W, lr, decay)
    new = move(W, kept, O, lr, decay) if move else kept - lr * O
    return new, stored(mu, M, G) if stored else M


def _damped(mu, M, G):
    return mu * M + (1 - mu) * G


def _shrink(W, lr, decay):
    return W * (1 - lr * decay)


def _shrink_not(W, lr, decay):
    return W


def _with(**changes):
    """A wrong step. It takes mu and decay as the right one does."""
    return partial(_step, **changes)


def _orthogonal_first(W, G, M, lr, mu=0.95, decay=0.1):
    M = mu * M + orthogonalise(G)
    O = (mu * M + orthogonalise(G)) * 0.18 * _larger(*W.shape)
    return W * (1 - lr * decay) - lr * O, M


def _decay_ahead(W, G, M, lr, mu=0.95, decay=0.1):
    M = mu * M + G
    return W - lr * 0.18 * _larger(*W.shape) * orthogonalise(mu * M + G + decay * W), M


def _fixed_mu(W, G, M, lr, mu=0.95, decay=0.1):
    return muon_step(W, G, M, lr, 0.95, decay)


def _fixed_decay(W, G, M, lr, mu=0.95, decay=0.1):
    return muon_step(W, G, M, lr, mu, 0.1)


def _step_cases(rng):
    for label, shape in (("a wide matrix", (4, 12)), ("a tall matrix", (10, 3))):
        W, G, M = (torch.randn(shape, generator=rng) for _ in range(3))
        yield label, (4 * W, G, 2 * M, 0.05)
    yield "the first step, from no momentum", (4 * W, G, torch.zeros_like(W), 0.2)
    W, G, M = (torch.randn(6, 6, generator=rng) for _ in range(3))
    yield "another momentum, mu = 0.8", (4 * W, G, 2 * M, 0.1, 0.8)
    yield "another decay, 0.3", (4 * W, G, 2 * M, 0.1, 0.95, 0.3)


FAULTS = {
    "you orthogonalise M; Nesterov looks one step ahead, at mu M + G with the new M":
        {"look": lambda mu, M, G, old: M},
    "you add the decay to the gradient, so it passes through the orthogonalisation; it should "
    "shrink W directly": {"coupled": True},
    "you scale with the smaller side; it should be the root of the LARGER of rows and columns":
        {"scale": lambda rows, columns: min(rows, columns) ** 0.5},
}


def _left_over():
    """{message: step} for each way to repair some of the three faults and leave others."""
    faults = {}
    for fault in FAULTS.values():
        faults |= fault
    steps = {"all three faults are still there": _with(**faults)}
    for fault in FAULTS:
        steps[f"one fault is left: {fault}"] = _with(**FAULTS[fault])
    for first, second in combinations(FAULTS, 2):
        steps[f"two faults are left. First: {first}. Second: {second}"] = _with(
            **FAULTS[first], **FAULTS[second])
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


def _by_ending(*without):
    return lambda shapes: {name for name in shapes
                           if name.endswith(".weight") and name not in without}


def _in_layers(shapes):
    """Of these names, those of Muon or with the ending "ape" that begin with "layers."."""
    names = choose(shapes) if isinstance(shapes, dict) else shapes
    return {name for name in names if name.startswith("layers.")}


def _in_attention(shapes):
    return {name for name in choose(shapes) if "attn" in name}


def _not_norm_or_bias(shapes):
    return {name for name in shapes if name not in ("embed.weight", "head.weight")
            and not any(word in name for word in ("norm", "bias"))}


CHECKS = [
    Check(
        "muon.orthogonalise", orthogonalise, _orthogonalise_cases,
        mistakes={
            "you do not transpose a tall matrix; X X^T is then the larger square, which makes a "
            "step cost many times as much":
                partial(orthogonalise, transpose=lambda rows, columns: False),
            "you transpose wide matrices and leave tall ones; it should be the other way round, so "
            "that X X^T is the smaller square":
                partial(orthogonalise, transpose=lambda rows, columns: rows < columns),
            "you transpose every matrix; only one with more rows than columns should be transposed":
                partial(orthogonalise, transpose=lambda rows, columns: True),
            "you transpose a tall matrix and leave it so; transpose it back at the end":
                partial(orthogonalise, back=False),
            "you do not normalise the matrix; divide it by its Frobenius norm first, or singular "
            "values above 1.26 run away":
                partial(orthogonalise, norm=torch.ones_like, eps=0.0),
            "you divide a matrix of zeros by its norm, 0; a tiny number should be added to the "
            "norm":
                partial(orthogonalise, eps=0.0),
            "you multiply with A = X X^T from the right, which only a square X allows; it should "
            "be A X and A A X":
                _terms(lambda A, X: X @ A),
            "you compute A = X^T X, the larger square; it should be A = X X^T, with A X and A A X":
                _other_square,
            "you only normalise the matrix; the ten steps should follow":
                lambda G: G / (G.norm() + 1e-20),
            "you apply the polynomial to each number; it should be applied to the matrix, by "
            "matrix products": _by_numbers,
            "you compute A = X X^T once, before the loop; each step needs A of its own new X":
                _square_once,
            "you take the steep steps only; the last two steps should be flat":
                partial(orthogonalise, steps=(STEEP,) * 8),
            "you take ten steep steps; the last two should have the coefficients (2, -1.5, 0.5)":
                partial(orthogonalise, steps=(STEEP,) * 10),
            "you take ten flat steps, in which small singular values only double; the first eight "
            "should be steep":
                partial(orthogonalise, steps=(FLAT,) * 10),
            "you take the two flat steps first; the eight steep ones should come first":
                partial(orthogonalise, steps=(FLAT,) * 2 + (STEEP,) * 8),
            "you take two steep steps and eight flat ones; it should be eight and two":
                partial(orthogonalise, steps=(STEEP,) * 2 + (FLAT,) * 8),
            "you take eight flat steps and then two steep ones; it should be eight steep ones, "
            "then two flat ones":
                partial(orthogonalise, steps=(FLAT,) * 8 + (STEEP,) * 2),
            "you take the first Muon's five steep steps; V4 takes eight, and two flat ones":
                partial(orthogonalise, steps=(STEEP,) * 5),
            "you take seven steep steps; it should be eight":
                partial(orthogonalise, steps=(STEEP,) * 7 + (FLAT,) * 2),
            "you take one flat step; it should be two":
                partial(orthogonalise, steps=(STEEP,) * 8 + (FLAT,)),
            "you divide by the largest singular value, which takes a decomposition to find; take "
            "the Frobenius norm, which is never smaller":
                partial(orthogonalise, norm=partial(torch.linalg.matrix_norm, ord=2)),
            "you divide by the largest entry, which can be far below the largest singular value; "
            "divide by the Frobenius norm":
                partial(orthogonalise, norm=_largest_entry),
            "you divide by the sum of the squares; the Frobenius norm is the root of it":
                partial(orthogonalise, norm=_sum_of_squares),
            "you divide each row by its own norm; the whole matrix should be divided by one number":
                partial(orthogonalise, norm=lambda X: X.norm(dim=1, keepdim=True)),
            "you compute U V^T with an SVD, which is exact but slow; here it should be ten steps "
            "of the iteration":
                _by_svd,
            "you compute in bfloat16; G is float32, and the iteration should stay in float32":
                _in_bfloat16,
            "you take three flat steps; it should be two":
                partial(orthogonalise, steps=(STEEP,) * 8 + (FLAT,) * 3),
            "you take nine steep steps and a flat one; it should be eight and two":
                partial(orthogonalise, steps=(STEEP,) * 9 + (FLAT,)),
            "you take five steep steps and five flat ones; it should be eight and two":
                partial(orthogonalise, steps=(STEEP,) * 5 + (FLAT,) * 5),
            "you take five steep steps and two flat ones; it should be eight and two":
                partial(orthogonalise, steps=(STEEP,) * 5 + (FLAT,) * 2),
            "you alternate steep and flat steps; it should be eight steep ones, then two flat "
            "ones": partial(orthogonalise, steps=(STEEP, FLAT) * 5),
            "you take one steep step and one flat one; it should be eight and two":
                partial(orthogonalise, steps=(STEEP, FLAT)),
            "you divide by the sum of the absolute values; it should be the Frobenius norm, the "
            "root of the sum of the squares": partial(orthogonalise, norm=_sum_of_sizes),
            "you multiply the result with the norm of G; its singular values should stay near 1":
                lambda G: orthogonalise(G) * G.norm(),
            "you normalise before every step; it should be once, before the first":
                _normalised_each_time,
            "you add far more than 1e-20 to the norm, which shows in weak directions; it should "
            "be 1e-20": partial(orthogonalise, eps=1e-3),
            "you multiply with A once in the last term, c A X; it should be twice, c A A X":
                _by_step(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ X),
            "you multiply with A three times in the last term; it should be twice, c A A X":
                _by_step(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ A @ A @ X),
            "you square the numbers of A one by one; A A should be a matrix product":
                _by_step(lambda X, A, a, b, c: a * X + (b * A + c * A**2) @ X),
            "you leave the first term out; a step should be a X + b A X + c A A X":
                _by_step(lambda X, A, a, b, c: b * A @ X + c * A @ A @ X),
            "you leave the last term out; a step should be a X + b A X + c A A X":
                _by_step(lambda X, A, a, b, c: a * X + b * A @ X),
            "you exchange b and c; a step should be a X + b A X + c A A X":
                _by_step(lambda X, A, a, b, c: a * X + c * A @ X + b * A @ A @ X),
            "you change X before the step has used it up; all three terms should have the same "
            "X": _by_step(_one_after_the_other),
            "you subtract b A X; b has its own sign already, so it should be added":
                _by_step(lambda X, A, a, b, c: a * X - b * A @ X + c * A @ A @ X),
            "you divide by the root of the mean of the squares; it should be that of their sum, "
            "the Frobenius norm": partial(orthogonalise, norm=lambda X: X.square().mean().sqrt()),
            "you divide each column by its own norm; the whole matrix should be divided by one "
            "number": partial(orthogonalise, norm=lambda X: X.norm(dim=0)),
        },
        hints=(
            "Three parts: divide by the Frobenius norm (plus 1e-20), eight steps with STEEP and "
            "two with FLAT, transpose back.",
            "One step: A = X @ X.mT, then a X + b (A X) + c (A A X). Each of the three terms has "
            "the shape of X.",
            "If rows > columns, work on G.mT and return X.mT: A is then the smaller of the two "
            "possible squares.",
        ),
        atol=2e-5, gradient=False,
    ),
    Check(
        "muon.flat", flat, _flat_cases,
        mistakes={
            "you take a + 2 b + 4 c for the slope at 1; x^3 has the slope 3 there and x^5 the "
            "slope 5":
                _solved(1, 2, 4, 0.0),
            "you take a + 2 b + 3 c for the slope at 1; the powers are x^3 and x^5, with the "
            "slopes 3 and 5":
                _solved(1, 2, 3, 0.0),
            "you leave a out of the slope at 1; it should be a + 3 b + 5 c":
                _solved(0, 3, 5, 0.0),
            "you make the second derivative 0 at 1; it should be the first":
                _solved(0, 3, 10, 0.0),
            "you make the slope 1 at 1; it should be 0": _solved(1, 3, 5, 1.0),
            "you make p(1) = 0; the three coefficients should sum to 1":
                _solved(1, 3, 5, 0.0, value=0.0),
            "you set c = 0, which only gives p(1) = 1; the slope at 1 should be 0 as well":
                lambda a: (1 - a, 0.0),
            "you set b = 0, which only gives p(1) = 1; the slope at 1 should be 0 as well":
                lambda a: (0.0, 1 - a),
            "you return c first, then b; it should be b, then c": lambda a: (a - 1.5, 2.5 - 2 * a),
            "you return V4's numbers whatever a is; b and c should be functions of a":
                lambda a: (-1.5, 0.5),
            "you return a as well; it should be b and c alone":
                lambda a: (a, 2.5 - 2 * a, a - 1.5),
            "both signs are wrong; a + b + c should be 1": lambda a: (2 * a - 2.5, 1.5 - a),
            "your c has the wrong sign; for a = 2 it should be 0.5":
                lambda a: (-0.5, 1.5 - a),
            "your c is right and b has the wrong sign; for a = 2 it should be -1.5":
                lambda a: (2 * a - 2.5, a - 1.5),
            "your c is twice as large as it should be: 2 c = 2 a - 3":
                lambda a: (4 - 3 * a, 2 * a - 3),
            "you scale V4's numbers in proportion to a, which is right for a = 2 only; both "
            "conditions should be solved for b and c": lambda a: (-0.75 * a, 0.25 * a),
            "you subtract a in the slope at 1; it should be a + 3 b + 5 c": _solved(-1, 3, 5, 0.0),
            "you leave a out of p(1); the sum of all three coefficients should be 1":
                lambda a: (1 + (a + 3) / 2, -(a + 3) / 2),
            "you set c = 0, which only makes the slope 0 at 1; the three coefficients should "
            "sum to 1 as well": lambda a: (-a / 3, 0.0),
            "you set b = 0, which only makes the slope 0 at 1; the three coefficients should "
            "sum to 1 as well": lambda a: (0.0, -a / 5),
            "your c is right, but you add it in b; b should be 1 - a - c":
                lambda a: (1 - a + (a - 1.5), a - 1.5),
            "your c is right, but your b does not make the slope at 1 zero: it should be 3 b = "
            "-a - 5 c": lambda a: (-a - 5 * (a - 1.5), a - 1.5),
            "you multiply 3 with a part of 1 - a - c only; each of the three should be "
            "multiplied": lambda a: (1 - a - (2 * a - 3) / 4, (2 * a - 3) / 4),
            "you multiply 3 with the 1 of 1 - a - c only; each of the three should be "
            "multiplied": lambda a: (1.75 - a, -0.75),
            "you return c alone; it should be b, then c": lambda a: a - 1.5,
            "you round to whole numbers; b and c can be fractions":
                lambda a: (int(2.5 - 2 * a), int(a - 1.5)),
        },
        hints=(
            "Two conditions, two unknowns: p(1) = a + b + c = 1 and p'(1) = a + 3 b + 5 c = 0.",
            "From the first b = 1 - a - c. Put it into the second: only c is left.",
            "a + 3 (1 - a - c) + 5 c = 0 gives c; for a = 2 the result must be b = -1.5, c = 0.5.",
        ),
        gradient=False,
    ),
    Check(
        "muon.step", muon_step, _step_cases,
        mistakes=_left_over() | {
            "you damp the gradient with 1 - mu; it should be M = mu M + G":
                _with(momentum=_damped),
            "you look ahead with mu M + (1 - mu) G; it should be mu M + G":
                _with(look=lambda mu, M, G, old: mu * M + (1 - mu) * G),
            "you look ahead with M + G; it should be mu M + G":
                _with(look=lambda mu, M, G, old: M + G),
            "you orthogonalise G and leave the momentum out; it should be mu M + G with the new M":
                _with(look=lambda mu, M, G, old: G),
            "you orthogonalise G first and then take the momentum of that; momentum should come "
            "first": _orthogonal_first,
            "you return mu M + G as the new M; the new M should be without the look ahead":
                _with(stored=lambda mu, M, G: mu * M + G),
            "you return the two in the wrong order; it should be W, then M":
                lambda *args: muon_step(*args)[::-1],
            "you return W alone; it should be W and M": lambda *args: muon_step(*args)[0],
            "you leave out the factor 0.18 sqrt(max(rows, columns)), or multiply it in before "
            "orthogonalise, which removes it; the update should be scaled after that":
                _with(gamma=1.0, scale=lambda rows, columns: 1.0),
            "you leave out 0.18; the update should be scaled by 0.18 sqrt(max(rows, columns))":
                _with(gamma=1.0),
            "you leave out sqrt(max(rows, columns)); the update should be scaled by 0.18 times it":
                _with(scale=lambda rows, columns: 1.0),
            "you leave out the root; it should be 0.18 sqrt(max(rows, columns))": _with(scale=max),
            "you scale with the number of rows; it should be the larger of rows and columns":
                _with(scale=lambda rows, columns: rows ** 0.5),
            "you scale with the number of columns; it should be the larger of rows and columns":
                _with(scale=lambda rows, columns: columns ** 0.5),
            "you scale with sqrt(rows x columns); it should be the root of the larger of the two":
                _with(scale=lambda rows, columns: (rows * columns) ** 0.5),
            "you scale with sqrt(max(1, rows / columns)), as the first Muon does; V4 takes 0.18 "
            "sqrt(max(rows, columns))":
                _with(gamma=1.0, scale=lambda rows, columns: max(1, rows / columns) ** 0.5),
            "you take 0.2 for the factor; V4 takes 0.18": _with(gamma=0.2),
            "you leave the decay out; W should shrink by 1 - lr * decay": _with(shrink=_shrink_not),
            "you decay by 1 - decay; it should be 1 - lr * decay":
                _with(shrink=lambda W, lr, decay: W * (1 - decay)),
            "your decay makes W larger; it should shrink by 1 - lr * decay":
                _with(shrink=lambda W, lr, decay: W * (1 + lr * decay)),
            "you multiply W with lr * decay; it should be 1 - lr * decay":
                _with(shrink=lambda W, lr, decay: W * lr * decay),
            "you decay the result, update included; the decay should act on W before the update":
                _with(move=lambda W, kept, O, lr, decay: (W - lr * O) * (1 - lr * decay)),
            "you add the update; a step goes against the gradient, so it should be subtracted":
                _with(move=lambda W, kept, O, lr, decay: kept + lr * O),
            "you subtract the update without the learning rate; it should be lr times the update":
                _with(move=lambda W, kept, O, lr, decay: kept - O),
            "you shrink the update by 1 - lr * decay; it is W that should shrink":
                _with(move=lambda W, kept, O, lr, decay: W - lr * O * (1 - lr * decay)),
            "you always take mu = 0.95; it should be the argument `mu`": _fixed_mu,
            "you always take a decay of 0.1; it should be the argument `decay`": _fixed_decay,
            "you damp the gradient with 1 - mu, in M and in the look ahead; it should be mu M + "
            "G both times": _with(momentum=_damped, look=lambda mu, M, G, old: _damped(mu, M, G)),
            "you weigh M with 1 - mu and G with mu; it should be M = mu M + G":
                _with(momentum=lambda mu, M, G: (1 - mu) * M + mu * G),
            "you add G to M without mu; it should be M = mu M + G":
                _with(momentum=lambda mu, M, G: M + G),
            "you multiply G with mu, not M; it should be M = mu M + G":
                _with(momentum=lambda mu, M, G: M + mu * G),
            "you look ahead with M + mu G; it should be mu M + G":
                _with(look=lambda mu, M, G, old: M + mu * G),
            "you look ahead with the old M, damped twice; it should be mu M + G with the new M":
                _with(look=lambda mu, M, G, old: mu * (old + G)),
            "you orthogonalise the old M; it should be mu M + G with the new M":
                _with(look=lambda mu, M, G, old: old),
            "you return the old M; it should be the new one, mu M + G":
                lambda W, G, M, *rest: (muon_step(W, G, M, *rest)[0], M.clone()),
            "you return the update alone; it should be the new W":
                _with(move=lambda W, kept, O, lr, decay: O),
            "you return the change of W; it should be the new W":
                _with(move=lambda W, kept, O, lr, decay: kept - lr * O - W),
            "you take the root of rows + columns; it should be that of the larger of the two":
                _with(scale=lambda rows, columns: (rows + columns) ** 0.5),
            "you take the root of 0.18 too; it should be 0.18 sqrt(max(rows, columns))":
                _with(gamma=1.0, scale=lambda rows, columns: (0.18 * max(rows, columns)) ** 0.5),
            "you square the larger side; it should be its root":
                _with(scale=lambda rows, columns: max(rows, columns) ** 2),
            "you divide by the root of the larger side; it should be multiplied with it":
                _with(scale=lambda rows, columns: max(rows, columns) ** -0.5),
            "you leave out the learning rate, in the decay and in the update; both should have "
            "it":
                _with(shrink=lambda W, lr, decay: W * (1 - decay),
                      move=lambda W, kept, O, lr, decay: kept - O),
            "you subtract lr * decay from W; W should be multiplied by 1 - lr * decay":
                _with(shrink=lambda W, lr, decay: W - lr * decay),
            "you multiply the decay with lr twice; W should shrink by 1 - lr * decay":
                _with(shrink=lambda W, lr, decay: W * (1 - lr * lr * decay)),
            "you scale the decay with 0.18 sqrt(max(rows, columns)) too; W should shrink by 1 - "
            "lr * decay":
                _with(shrink=lambda W, lr, decay: W * (1 - lr * decay * 0.18 * _larger(*W.shape))),
            "you add the decay to what is orthogonalised; it should shrink W directly":
                _decay_ahead,
        },
        hints=(
            "Go through the algorithm line by line: momentum, look ahead, orthogonalise, scale, "
            "decay and move.",
            "Decoupled decay: W shrinks by the factor (1 - lr * decay), apart from the update; G "
            "knows nothing of it.",
            "mu * M + G uses the NEW M. The scale: rows and columns of W, the larger one.",
        ),
        atol=2e-5, gradient=False,
    ),
    Check(
        "muon.choose", choose, _choose_cases,
        mistakes={
            "you give Muon the embedding and the head; they have two dimensions, but V4 leaves "
            "them to AdamW":
                _also("embed.weight", "head.weight"),
            "you give Muon the embedding; a step touches only the rows of the tokens it saw, and "
            "V4 leaves it to AdamW":
                _also("embed.weight"),
            "you give Muon the head; V4 leaves it to AdamW":
                lambda shapes: choose(shapes) | {"head.weight"},
            "you give Muon the compressors' ape, a table of biases that multiplies nothing; minids "
            "leaves it to AdamW":
                _also("ape"),
            "you give Muon all that has two dimensions; embedding, head and ape should go to AdamW":
                _also("embed.weight", "head.weight", "ape"),
            "you give Muon all parameters; norms, sinks, biases and scales are not matrices and "
            "should go to AdamW": set,
            "you give Muon everything but embedding and head; whatever is not a matrix, and ape, "
            "should go to AdamW":
                lambda shapes: set(shapes) - {"embed.weight", "head.weight"},
            "you give Muon the sinks and the gates' biases, which are vectors; they should go to "
            "AdamW": _also("attn_sink", ".bias"),
            "you give Muon the sinks, the gates' biases and ape; none of them is a matrix that "
            "multiplies, so they should go to AdamW": _also("attn_sink", ".bias", "ape"),
            "you give Muon mHC's base and scale; the report leaves them to AdamW":
                _also("_base", "_scale"),
            "you give Muon all weights, the norms' too; a norm's weight is a vector and should go "
            "to AdamW": _also("norm.weight"),
            "you leave out the matrices hc_..._fn of mHC; only their static biases (base) and "
            "gating factors (scale) should go to AdamW":
                _without("hc_"),
            "you leave out the routers; gate.weight is a matrix that multiplies tokens and should "
            "be Muon's":
                _without(".gate.weight"),
            "you leave out everything with 'gate' in its name; routers and the compressors' wgate "
            "are matrices and should be Muon's": _without("gate"),
            "you leave out the compressors; their wkv and wgate are matrices and should be Muon's":
                _without("compressor"),
            "you leave out the indexers; their matrices should be Muon's": _without("indexer"),
            "you leave out the routed experts; each of their matrices should be Muon's, by itself":
                _without(".experts."),
            "you leave out the MTP block; its matrices should be Muon's": _without("mtp."),
            "you leave out everything with 'head' in its name, the matrix hc_head_fn too; only "
            "head.weight should go to AdamW":
                _without("hc_head"),
            "you return AdamW's parameters; it should be Muon's":
                lambda shapes: set(shapes) - choose(shapes),
            "the names are right, in a list; it should be a set":
                lambda shapes: [name for name in shapes if name in choose(shapes)],
            "the names are right, in a dict; it should be a set of names":
                lambda shapes: {name: shapes[name] for name in choose(shapes)},
            "you choose by the ending .weight, so norms come in and mHC's matrices hc_..._fn "
            "are left out; you should choose by the number of dimensions":
                _by_ending("embed.weight", "head.weight"),
            "you take every name with the ending .weight; norms, embedding and head should go "
            "to AdamW, and hc_..._fn are matrices too": _by_ending(),
            "you give Muon ape and leave out mHC's matrices hc_..._fn; it should be the other "
            "way round":
                lambda shapes: _also("ape")(shapes) - {name for name in shapes if "hc_" in name},
            "you give Muon ape, and leave out all with 'head' in its name, hc_head_fn too; ape "
            "should go to AdamW, and of these only head.weight":
                lambda shapes: _also("ape")(shapes) - {name for name in shapes if "head" in name},
            "you take the numbered layers alone; the matrices of the MTP block and hc_head_fn "
            "should be Muon's too": _in_layers,
            "you take the numbered layers alone, and ape; the MTP block's matrices and "
            "hc_head_fn should be Muon's too, and ape AdamW's":
                lambda shapes: _in_layers(_also("ape")(shapes)),
            "you leave out mHC's matrices and all with 'gate' in its name; both kinds multiply "
            "tokens and should be Muon's": _without("hc_", "gate"),
            "you leave out the experts and everything else that is not attention; all matrices "
            "should be Muon's": _in_attention,
            "you exclude by name and forget sinks, base and scale, which are not matrices; you "
            "should choose by the number of dimensions": _not_norm_or_bias,
            "you take the vectors; Muon should get the matrices, with len(shape) == 2":
                lambda shapes: {name for name, shape in shapes.items() if len(shape) < 2},
            "you find no name at all; the shapes of matrices have the length 2":
                lambda shapes: set(),
            "you return the shapes; it should be the names":
                lambda shapes: {tuple(shapes[name]) for name in choose(shapes)},
        },
        hints=(
            "A parameter for Muon has two dimensions: len(shape) == 2.",
            "Of those, three kinds stay with AdamW: embed.weight, head.weight, and every name "
            "that ends with 'ape'.",
            "Return a set of names: {name for name, shape in shapes.items() if ...}.",
        ),
        gradient=False,
    ),
]
