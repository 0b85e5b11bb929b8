"""Checks of lesson 14: sampling, drafts and their acceptance, and what a difference is worth (V4
report, sections 2.1, 5.3)."""

from math import ceil

import torch

from minids.learn.exercise import Check

LESSON = "14_inference"


# ---- top-p ----

def top_p(p, bound):
    """The likeliest tokens that together reach `bound`; the others get 0. p: ... V -> ... V.

    Their probabilities are scaled to sum to 1.
    """
    return _kept(lambda ranked: ranked.cumsum(-1) - ranked < bound)(p, bound)


def _kept(rule, scale=True, back=True):
    """A version of top_p that keeps what `rule(ranked)` or `rule(ranked, bound)` says."""
    def version(p, bound):
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        allowed = rule(ranked) if rule.__code__.co_argcount == 1 else rule(ranked, bound)
        left = ranked * allowed
        left = torch.zeros_like(p).scatter(-1, order, left) if back else left
        return left / left.sum(-1, keepdim=True) if scale else left
    return version


def _right(ranked, bound):
    return ranked.cumsum(-1) - ranked < bound


def _one_too_few(ranked, bound):
    return ranked.cumsum(-1) < bound


def _first_at_least(ranked, bound):
    allowed = ranked.cumsum(-1) < bound
    allowed[..., 0] = True
    return allowed


def _one_too_many(ranked, bound):
    allowed = _right(ranked, bound)
    return torch.cat([allowed[..., :1], allowed[..., :-1]], -1)


def _share_of_the_vocabulary(ranked, bound):
    return torch.arange(ranked.shape[-1]) < ceil(bound * ranked.shape[-1])


def _smallest_first(p, bound):
    ranked, order = p.sort(dim=-1)
    left = torch.zeros_like(p).scatter(-1, order, ranked * (ranked.cumsum(-1) - ranked < bound))
    return left / left.sum(-1, keepdim=True)


def _top_p_cases(rng):
    yield "four tokens by hand, two are kept", (torch.tensor([0.15, 0.5, 0.04, 0.31]), 0.7)
    yield "one token has more than top_p by itself", (torch.tensor([0.02, 0.93, 0.05]), 0.9)
    yield "B V", ((1.5 * torch.randn(3, 9, generator=rng)).softmax(-1), 0.8)
    yield "B T V, a low bound", ((1.5 * torch.randn(2, 4, 11, generator=rng)).softmax(-1), 0.35)


# ---- drafts and their acceptance ----

def accept(p, q, guess):
    """The probability with which a guess that was sampled from q is accepted.

    p: V, the model's probabilities; q: V, the helper's.
    """
    return min(1.0, float(p[guess] / q[guess]))


def residual(p, q):
    """The distribution of the token that replaces a rejected guess. p, q: V -> V.

    It is max(0, p - q), scaled to sum to 1.
    """
    left = (p - q).clamp_min(0)
    return left / left.sum()


def _pair(rng, V):
    return [(1.2 * torch.randn(V, generator=rng)).softmax(-1) for _ in range(2)]


def _accept_cases(rng):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    for guess in (0, 1, 2):
        yield f"three tokens by hand, guess {guess}", (p, q, guess)
    p, q = _pair(rng, 7)
    for guess in range(7):
        yield f"seven tokens, guess {guess}", (p, q, guess)


def _residual_cases(rng):
    yield "three tokens by hand", (torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2]))
    yield "seven tokens", tuple(_pair(rng, 7))
    yield "many tokens", tuple(_pair(rng, 200))


def speed_up(rate, drafts, verify, draft):
    """Tokens of a pass with `drafts` guesses, divided by the cost of such a pass.

    A guess is accepted with probability `rate` if those before it are. Costs are in passes over a
    single token: `verify` for the model's pass, `draft` for each guess.
    """
    return sum(rate**i for i in range(drafts + 1)) / (verify + drafts * draft)


def _speed(tokens=None, cost=None):
    """`speed_up` with other tokens(rate, k), or another cost(k, verify, draft)."""
    def wrong(rate, k, verify, draft):
        number = tokens(rate, k) if tokens else sum(rate**i for i in range(k + 1))
        return number / (cost(k, verify, draft) if cost else verify + k * draft)
    return wrong


def _speed_cases(rng):
    yield "one draft, free", (0.7, 1, 1.0, 0.0)
    yield "one draft", (0.85, 1, 1.3, 0.12)
    yield "three drafts", (0.6, 3, 1.5, 0.2)
    yield "drafts that are always accepted", (1.0, 4, 1.1, 0.1)
    yield "drafts that are never accepted", (0.0, 2, 1.2, 0.3)


# ---- two modes, the same problems ----

def difference(before, after):
    """The mean of after - before over the same problems, and the ends of its 95 % interval.

    before, after: lists of n numbers.
    """
    return _interval(_differences(before, after))


def _differences(before, after):
    return torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)


def _interval(d, error=lambda d: d.std() / len(d) ** 0.5, errors=1.96):
    """The mean of d, and the ends of an interval of so many standard errors on both sides."""
    mean, half = float(d.mean()), errors * float(error(d))
    return mean, mean - half, mean + half


def _with_error(error, errors=1.96):
    """`difference` with another standard error: error(d)."""
    return lambda before, after: _interval(_differences(before, after), error, errors)


def _as_others(before, after):
    both = [torch.tensor(x, dtype=torch.float64) for x in (before, after)]
    d = _differences(before, after)
    return _interval(d, lambda d: (sum(x.var() for x in both) / len(d)) ** 0.5)


def _difference_cases(rng):
    yield "eight problems by hand", ([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0])
    for label, tries in (("24 problems", 1), ("24 problems, shares of four tries", 4)):
        hard = torch.rand(24, generator=rng)
        shares = []
        for at in (1.2, 0.8):
            solved = torch.rand(24, tries, generator=rng) > at * hard[:, None]
            shares.append(solved.float().mean(1).tolist())
        yield label, tuple(shares)


CHECKS = [
    Check(
        "inference.top_p", top_p, _top_p_cases,
        mistakes={
            "one token too few: the one with which the sum reaches top_p belongs to those that "
            "are kept. Where the first token has more than top_p by itself nothing is left":
                _kept(_one_too_few),
            "one token too few: the one with which the sum reaches top_p belongs to those that "
            "are kept (only the first token is safe here)": _kept(_first_at_least),
            "one token too many: stop with the one that brings the sum to top_p":
                _kept(_one_too_many),
            "the kept probabilities do not sum to 1: divide by their sum":
                _kept(_right, scale=False),
            "this keeps the wrong side: the tail is left, and the likeliest tokens are cut":
                _kept(lambda ranked, bound: ~_right(ranked, bound)),
            "this begins with the least likely tokens: sort with descending=True": _smallest_first,
            "the result is in the order of likelihood: put each probability back to its own "
            "token":
                _kept(_right, back=False),
            "single probabilities are compared with the bound: it is their running sum that has "
            "to reach top_p":
                _kept(lambda ranked, bound: ranked >= 1 - bound),
            "this keeps a share of the vocabulary, as top-k would: top-p keeps a share of the "
            "probability":
                _kept(_share_of_the_vocabulary),
        },
        hints=(
            "Sort from the likeliest down and add up. A token stays while the sum of those BEFORE "
            "it is still below top_p.",
            "ranked, order = p.sort(dim=-1, descending=True); the sum before each token is "
            "ranked.cumsum(-1) - ranked.",
            "torch.zeros_like(p).scatter(-1, order, values) puts sorted values back; then divide "
            "by the sum of the last axis.",
        ),
    ),
    Check(
        "inference.accept", accept, _accept_cases,
        mistakes={
            "the ratio is upside down: it is the model's p over the helper's q":
                lambda p, q, guess: min(1.0, float(q[guess] / p[guess])),
            "a probability above 1: where the model likes the guess better than the helper, it "
            "is always accepted":
                lambda p, q, guess: float(p[guess] / q[guess]),
            "this forgets how often the helper proposes the guess: divide p by q":
                lambda p, q, guess: float(p[guess]),
            "this is the probability that the guess is sampled AND accepted; it has been "
            "sampled already, so divide by q":
                lambda p, q, guess: min(float(p[guess]), float(q[guess])),
            "this is the mean over all guesses, the acceptance rate; here one guess is on the "
            "table":
                lambda p, q, guess: float(torch.minimum(p, q).sum()),
            "every guess is accepted: then the text is the helper's, not the model's":
                lambda p, q, guess: 1.0,
            "a hard threshold: a guess that the model likes less than the helper must still be "
            "accepted with probability p / q":
                lambda p, q, guess: float(p[guess] >= q[guess]),
            "this is the probability that the guess is rejected":
                lambda p, q, guess: 1 - min(1.0, float(p[guess] / q[guess])),
        },
        hints=(
            "Where the helper proposes a token too often, q > p, some of its proposals must be "
            "rejected. Which share is accepted?",
            "Proposed with probability q and accepted with a gives q * a. It shall be p where p < "
            "q, and cannot exceed q.",
            "min(1, p / q) at the guess, as a float.",
        ),
    ),
    Check(
        "inference.residual", residual, _residual_cases,
        mistakes={
            "the sum is not 1: divide by it": lambda p, q: (p - q).clamp_min(0),
            "this is p itself: then a token that q proposes and p likes comes too often; what has "
            "been given out already must be taken off": lambda p, q: p,
            "the wrong way round: this is where the helper gives too much; what is missing is "
            "where p exceeds q":
                lambda p, q: residual(q, p),
            "negative differences have become positive: clamp at 0, do not take the absolute value":
                lambda p, q: (p - q).abs() / (p - q).abs().sum(),
            "negative weights are left: clamp at 0": lambda p, q: p - q,
            "the difference is scaled by softmax: divide by its sum":
                lambda p, q: (p - q).clamp_min(0).softmax(-1),
            "this is the overlap of both, which the accepted guesses deliver already; it is the "
            "rest of p that is missing":
                lambda p, q: torch.minimum(p, q) / torch.minimum(p, q).sum(),
        },
        hints=(
            "The accepted guesses deliver min(p, q) of each token. What of p is still missing?",
            "p - min(p, q) is the same as max(0, p - q).",
            "(p - q).clamp_min(0), divided by its sum.",
        ),
    ),
    Check(
        "inference.speed_up", speed_up, _speed_cases,
        mistakes={
            "the token is missing that each pass gives in any case: after the drafts, or in place "
            "of the first that is rejected":
                _speed(tokens=lambda rate, k: sum(rate**i for i in range(1, k + 1))),
            "drafts after one that was rejected are lost: the second is accepted with rate^2, the "
            "third with rate^3":
                _speed(tokens=lambda rate, k: 1 + k * rate),
            "this counts only passes in which all drafts are accepted; those before the first that "
            "is rejected count too":
                _speed(tokens=lambda rate, k: 1 + k * rate**k),
            "one term too many: k drafts give at most k + 1 tokens":
                _speed(tokens=lambda rate, k: sum(rate**i for i in range(k + 2))),
            "the guesses cost time as well: drafts * draft":
                _speed(cost=lambda k, verify, draft: verify),
            "each guess is a pass of the helper: its cost comes `drafts` times":
                _speed(cost=lambda k, verify, draft: verify + draft),
            "verifying several tokens costs `verify`, which need not be 1":
                _speed(cost=lambda k, verify, draft: 1 + k * draft),
            "this is the cost of a token: the speed-up is its inverse":
                lambda rate, drafts, verify, draft: 1 / speed_up(rate, drafts, verify, draft)
                if speed_up(rate, drafts, verify, draft) else float("inf"),
            "these are the tokens of a pass: divide by what the pass costs":
                _speed(cost=lambda k, verify, draft: 1),
        },
        hints=(
            "Tokens of a pass: one in any case, one more if the first draft is accepted, another "
            "if the second is accepted as well, ...",
            "1 + rate + rate^2 + ... + rate^drafts; without drafts a pass costs 1 and gives 1.",
            "The cost of a pass is verify + drafts * draft. Divide.",
        ),
    ),
    Check(
        "inference.difference", difference, _difference_cases,
        mistakes={
            "this adds two variances, as if the problems were not the same: take the differences "
            "first": _as_others,
            "the wrong way round: after minus before":
                lambda before, after: difference(after, before),
            "this is the interval of one problem's difference; that of the mean is narrower by "
            "sqrt(n)":
                _with_error(lambda d: d.std()),
            "divide the standard deviation by sqrt(n), not by n":
                _with_error(lambda d: d.std() / len(d)),
            "this divides the variance by sqrt(n): take its root first":
                _with_error(lambda d: d.var() / len(d) ** 0.5),
            "s divides by n - 1 (numpy: ddof=1)":
                _with_error(lambda d: d.std(correction=0) / len(d) ** 0.5),
            "one standard deviation each way is a 68 % interval: take 1.96 of them":
                _with_error(lambda d: d.std() / len(d) ** 0.5, errors=1),
            "these are the sizes of the differences: keep their signs": lambda before, after:
                _interval(_differences(before, after).abs()),
        },
        hints=(
            "One number for each problem: what `after` has more than `before`. From there only "
            "this list matters.",
            "Its standard deviation s is that of one problem; the mean of n of them has s / "
            "sqrt(n).",
            "d.mean() and 1.96 * d.std(ddof=1) / sqrt(n) to both sides of it.",
        ),
    ),
]
