"""Checks of lesson 14: sampling, drafts and their acceptance, and what a difference is worth (V4
report, sections 2.1, 5.3)."""

from math import ceil, exp

import torch

from minids.learn.exercise import Check

LESSON = "14_inference"


# ---- top-p ----

def top_p(p, top_p):
    """The likeliest tokens that together reach `top_p`; the others get 0. p: ... V -> ... V.

    Their probabilities are scaled to sum to 1.
    """
    return _kept(_right)(p, top_p)


def _all_of_a_row(left):
    return left.sum(-1, keepdim=True)


def _to_its_token(left, order):
    return torch.zeros_like(left).scatter(-1, order, left)


def _kept(rule, scale=lambda left: left / _all_of_a_row(left), back=_to_its_token):
    """A version of top_p that keeps what `rule(ranked, bound)` says."""
    def version(p, bound):
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        return scale(back(ranked * rule(ranked, bound), order))
    return version


def _right(ranked, bound):
    return ranked.cumsum(-1) - ranked < bound


def _one_more_at_the_bound(ranked, bound):
    return ranked.cumsum(-1) - ranked <= bound


def _one_too_few(ranked, bound):
    return ranked.cumsum(-1) < bound


def _up_to_the_bound(ranked, bound):
    return ranked.cumsum(-1) <= bound


def _with_the_first(rule):
    def version(ranked, bound):
        allowed = rule(ranked, bound).clone()
        allowed[..., 0] = True
        return allowed
    return version


def _one_too_many(ranked, bound):
    allowed = _right(ranked, bound)
    return torch.cat([allowed[..., :1], allowed[..., :-1]], -1)


def _share_of_the_vocabulary(ranked, bound):
    return torch.arange(ranked.shape[-1]) < ceil(bound * ranked.shape[-1])


def _smallest_first(p, bound):
    ranked, order = p.sort(dim=-1)
    left = torch.zeros_like(p).scatter(-1, order, ranked * (ranked.cumsum(-1) - ranked < bound))
    return left / left.sum(-1, keepdim=True)


def _unsorted(p, bound):
    left = p * (p.cumsum(-1) - p < bound)
    return left / left.sum(-1, keepdim=True)


def _flattened(p, bound):
    return top_p(p.flatten(), bound).view(p.shape)


def _without_sorting(allowed):
    """A version that keeps tokens by allowed(p, bound), and scales them to sum to 1."""
    def version(p, bound):
        left = p * allowed(p, bound)
        return left / _all_of_a_row(left)
    return version


def _mask_in_sorted_order(p, bound):
    return _right(p.sort(dim=-1, descending=True).values, bound)


def _mask_by_gather(p, bound):
    ranked, order = p.sort(dim=-1, descending=True)
    return _right(ranked, bound).gather(-1, order)


def _by_axis_0(p, bound):
    return top_p(p.movedim(0, -1), bound).movedim(-1, 0)


def _one_distribution(p, bound):
    """Goes through the order of `p` as if it had one axis."""
    order = p.argsort(descending=True)
    out, total = torch.zeros_like(p), 0.0
    for i in order:
        out[i] = p[i]
        total += p[i].item()
        if total >= bound:
            break
    return out / out.sum()


def _top_p_cases(rng):
    yield "four tokens by hand, two are kept", (torch.tensor([0.15, 0.5, 0.04, 0.31]), 0.7)
    yield "one token has more than top_p by itself", (torch.tensor([0.02, 0.93, 0.05]), 0.9)
    exact = torch.tensor([0.125, 0.25, 0.0625, 0.5, 0.0625])
    yield "a low bound, which the first token passes alone", (exact, 0.2)
    yield "the first token reaches 0.5 exactly", (exact, 0.5)
    yield "two tokens reach 0.75 exactly", (exact, 0.75)
    yield "top_p is 1: all are kept", (exact, 1.0)
    yield "B V", ((1.5 * torch.randn(3, 9, generator=rng)).softmax(-1), 0.8)
    yield "B T V, a low bound", ((1.5 * torch.randn(2, 4, 11, generator=rng)).softmax(-1), 0.35)


# ---- drafts and their acceptance ----

def accept(p, q, guess):
    """The probability with which a guess that was sampled from q is accepted.

    p: V, the model's probabilities; q: V, the helper's.
    """
    return min(1.0, float(p[guess] / q[guess]))


def _of_the_guess(function):
    """A version from the two probabilities of the guess, as floats."""
    return lambda p, q, guess: float(function(float(p[guess]), float(q[guess])))


def _sampled(p, q, guess):
    return float(torch.rand(()) < p[guess] / q[guess])


def residual(p, q):
    """The distribution of the token that replaces a rejected guess. p, q: V -> V.

    It is max(0, p - q), scaled to sum to 1.
    """
    left = (p - q).clamp_min(0)
    return left / left.sum()


def _to_one(weights):
    """A version that scales weights(p, q) to sum to 1."""
    def version(p, q):
        left = weights(p, q)
        return left / left.sum()
    return version


def _pair(rng, V):
    return [(1.2 * torch.randn(V, generator=rng)).softmax(-1) for _ in range(2)]


def _with_zeros():
    """p and q with tokens that one of them never says."""
    return torch.tensor([0.0, 0.5, 0.125, 0.375]), torch.tensor([0.25, 0.0, 0.25, 0.5])


def _accept_cases(rng):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    for guess in (0, 1, 2):
        yield f"three tokens by hand, guess {guess}", (p, q, guess)
    p, q = _pair(rng, 7)
    for guess in range(7):
        yield f"seven tokens, guess {guess}", (p, q, guess)
    yield "a guess that the model never says", (*_with_zeros(), 0)


def _shrunk(function):
    """A version from the two probabilities of the guess, without a division by 0."""
    return _of_the_guess(lambda p, q: function(p, q) if p and q else 0.0)


def _residual_cases(rng):
    yield "three tokens by hand", (torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2]))
    yield "seven tokens", tuple(_pair(rng, 7))
    yield "many tokens", tuple(_pair(rng, 200))
    yield "tokens that one of the two never says", _with_zeros()


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


def _closed(last=1, at_one=None):
    """Tokens by the sum's closed form, with `at_one(k)` at rate 1, where it divides by 0."""
    def tokens(rate, k):
        return at_one(k) if at_one and rate == 1 else (1 - rate ** (k + last)) / (1 - rate)
    return tokens


def _until_rejected(rate, k):
    """Tokens of the passes that end with a rejected draft."""
    return sum((i + 1) * rate**i * (1 - rate) for i in range(k))


def _speed_cases(rng):
    yield "one draft, free", (0.7, 1, 1.0, 0.0)
    yield "one draft", (0.85, 1, 1.3, 0.12)
    yield "three drafts", (0.6, 3, 1.5, 0.2)
    yield "drafts that cost more than the pass", (0.8, 4, 1.2, 0.5)
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


def _with_error(error=lambda d: d.std() / len(d) ** 0.5, errors=1.96):
    """`difference` with another standard error, error(d), or number of them."""
    return lambda before, after: _interval(_differences(before, after), error, errors)


def _as_others(error):
    """The problems are taken for different ones: the error comes from two lists of numbers."""
    def wrong(before, after):
        both = [torch.tensor(x, dtype=torch.float64) for x in (before, after)]
        return _interval(_differences(before, after), lambda d: error(*both))
    return wrong


def _shared(a, b, times, correction=1):
    """The standard error from two variances less `times` the covariance."""
    covariance = ((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1)
    total = a.var(correction=correction) + b.var(correction=correction) - times * covariance
    return (total / len(a)).sqrt()


def _results(choose):
    """A version that returns choose(mean, low, high)."""
    return lambda before, after: choose(*difference(before, after))


def _difference_cases(rng):
    yield "eight problems by hand", ([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0])
    for label, tries in (("24 problems", 1), ("24 problems, shares of four tries", 4)):
        hard = torch.rand(24, generator=rng)
        shares = []
        for at in (1.2, 0.8):
            solved = torch.rand(24, tries, generator=rng) > at * hard[:, None]
            shares.append(solved.float().mean(1).tolist())
        yield label, tuple(shares)
    yield "it becomes worse", ([1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0])


CHECKS = [
    Check(
        "inference.top_p", top_p, _top_p_cases,
        mistakes={
            "you keep one token too few, and none where the first has more than top_p by itself; "
            "the one with which the sum reaches top_p should be kept":
                _kept(_one_too_few),
            "you keep one token too few (only the first is safe here); the one with which the sum "
            "reaches top_p should be kept": _kept(_with_the_first(_one_too_few)),
            "you keep tokens while the sum, their own included, is at most top_p; the one with "
            "which the sum reaches top_p should be kept":
                _kept(_up_to_the_bound),
            "you keep the first token, and others while the sum, their own included, is at most "
            "top_p; the one with which the sum reaches top_p should be kept":
                _kept(_with_the_first(_up_to_the_bound)),
            "you keep one token too many where the sum before it equals top_p; it should be below "
            "it": _kept(_one_more_at_the_bound),
            "you keep one token too many; the one that brings the sum to top_p should be the last":
                _kept(_one_too_many),
            "your probabilities do not sum to 1; they should be divided by their sum":
                _kept(_right, scale=lambda left: left),
            "you divide by the sum of the whole tensor; it should be the sum of each last axis":
                _kept(_right, scale=lambda left: left / left.sum()),
            "you scale by softmax, which gives the cut tokens a share again; what is kept should "
            "be divided by its sum": _kept(_right, scale=lambda left: left.softmax(-1)),
            "you keep the tail and cut the likeliest tokens; it should be the other way round":
                _kept(lambda ranked, bound: ~_right(ranked, bound)),
            "you begin with the least likely tokens; it should be the likeliest, with "
            "descending=True": _smallest_first,
            "you add up in the order of the vocabulary; it should be from the likeliest down":
                _unsorted,
            "you sort all positions together; each row of the last axis should be cut by itself":
                _flattened,
            "your result is in the order of likelihood; each probability should go back to its own "
            "token":
                _kept(_right, back=lambda left, order: left),
            "you put probabilities back with the order itself, by gather or an index; each should "
            "go to its own token, by scatter or the inverse of the order":
                _kept(_right, back=lambda left, order: left.gather(-1, order)),
            "you compare single probabilities with 1 - top_p; it should be their running sum with "
            "top_p":
                _kept(lambda ranked, bound: ranked >= 1 - bound),
            "you compare single probabilities with top_p; it should be their running sum":
                _kept(_with_the_first(lambda ranked, bound: ranked >= bound)),
            "you keep a share of the vocabulary, as top-k would; top-p should keep a share of the "
            "probability":
                _kept(_share_of_the_vocabulary),
            "you keep only the likeliest token; it should be as many as reach top_p together":
                _kept(lambda ranked, bound: torch.arange(ranked.shape[-1]) < 1),
            "you return which tokens are kept; it should be their probabilities, scaled to sum to "
            "1": _kept(_right, scale=lambda left: (left > 0).to(left.dtype)),
            "you treat p as one distribution, so with more axes an index picks rows; it should "
            "work on the last axis of each row": _one_distribution,
            "you sort and add up along the first axis; it should be the last one, with axis -1":
                _by_axis_0,
            "you apply a softmax to p, which holds probabilities already; leave it out":
                lambda p, bound: top_p(p.softmax(-1), bound),
            "you take the logarithm of p first; it should be the probabilities themselves":
                lambda p, bound: top_p(p.log(), bound),
            "you keep single probabilities of at least top_p; it should be their running sum "
            "that is compared": _without_sorting(lambda p, bound: p >= bound),
            "you keep single probabilities above 1 - top_p; it should be their running sum that "
            "is compared with top_p": _without_sorting(lambda p, bound: p > 1 - bound),
            "you compare with a share of the largest probability, as min-p does; it should be "
            "the running sum that is compared with top_p":
                _without_sorting(lambda p, bound: p >= bound * p.amax(-1, keepdim=True)),
            "you apply the mask in sorted order to unsorted probabilities; it should go back to "
            "the tokens' own order": _without_sorting(_mask_in_sorted_order),
            "you put the mask back with the order itself, by gather; it should go to the "
            "tokens' own places, by scatter or the inverse of the order":
                _without_sorting(_mask_by_gather),
            "you keep a fixed number of tokens, as top-k does; it should be as many as reach "
            "top_p together": _kept(lambda ranked, bound: torch.arange(ranked.shape[-1]) < 2),
        },
        hints=(
            "Sort from the likeliest down and add up. A token stays while the sum of those BEFORE "
            "it is still below top_p.",
            "ranked, order = p.sort(dim=-1, descending=True); the sum before each token is "
            "ranked.cumsum(-1) - ranked.",
            "torch.zeros_like(p).scatter(-1, order, values) puts sorted values back; then divide "
            "by the sum of the last axis.",
        ),
        gradient=False,
    ),
    Check(
        "inference.accept", accept, _accept_cases,
        mistakes={
            "you take the ratio upside down; it should be the model's p over the helper's q":
                _of_the_guess(lambda p, q: min(1.0, q / p if p else float("inf"))),
            "you return values above 1; where the model likes the guess better than the helper, "
            "it should always be accepted":
                _of_the_guess(lambda p, q: p / q),
            "you forget how often the helper proposes the guess; p should be divided by q":
                _of_the_guess(lambda p, q: p),
            "you compute how often the guess is sampled AND accepted; it is sampled already, so "
            "this should be divided by q":
                _of_the_guess(min),
            "you compute the acceptance rate, the sum over all guesses; it should be for this "
            "guess":
                lambda p, q, guess: float(torch.minimum(p, q).sum()),
            "you accept every guess, and the text is the helper's; it should be accepted with "
            "probability min(1, p / q)":
                lambda p, q, guess: 1.0,
            "you set a hard threshold; a guess that the model likes less than the helper should be "
            "accepted with probability p / q":
                _of_the_guess(lambda p, q: p >= q),
            "you set a hard threshold, and reject where both agree; it should be min(1, p / q)":
                _of_the_guess(lambda p, q: p > q),
            "you compute the probability that the guess is rejected; it should be 1 minus that":
                _of_the_guess(lambda p, q: 1 - min(1.0, p / q)),
            "you take max for min; it should be min(1, p / q)":
                _of_the_guess(lambda p, q: max(1.0, p / q)),
            "you take the difference p - q; it should be the quotient, at most 1":
                _of_the_guess(lambda p, q: max(0.0, p - q)),
            "you compute p / (p + q); it should be min(1, p / q)":
                _of_the_guess(lambda p, q: p / (p + q)),
            "you multiply p with q; it should be divided by it": _of_the_guess(lambda p, q: p * q),
            "you decide with a random number; it should be the probability itself": _sampled,
            "you return one number for each token; it should be the one of the guess":
                lambda p, q, guess: (p / q).clamp_max(1),
            "you do not use `guess`; it should be the probabilities of that token":
                lambda p, q, guess: min(1.0, float(p[0] / q[0])) if q[0] else 1.0,
            "you take the largest probabilities of both; it should be those of the guess":
                lambda p, q, guess: min(1.0, float(p.max() / q.max())),
            "you take the difference p - q, which can be negative; it should be the quotient, "
            "at most 1": _of_the_guess(lambda p, q: p - q),
            "you take 1 minus the distance of p and q; it should be min(1, p / q)":
                _of_the_guess(lambda p, q: 1 - abs(p - q)),
            "you take 1 minus what q has more than p; that should be divided by q: min(1, p / "
            "q)": _of_the_guess(lambda p, q: min(1.0, 1 - (q - p))),
            "you take exp of p - q, as if they were logarithms; it should be p / q":
                _of_the_guess(lambda p, q: min(1.0, exp(p - q))),
            "you return q, how often the helper proposes the guess; it should be min(1, p / q)":
                _of_the_guess(lambda p, q: q),
            "you divide by 1 - q; it should be by q":
                _of_the_guess(lambda p, q: min(1.0, p / (1 - q))),
            "you accept only the model's likeliest token; it should be accepted with "
            "probability min(1, p / q)": lambda p, q, guess: float(p.argmax() == guess),
            "you divide what p has more than q; it should be p / q, at most 1":
                _of_the_guess(lambda p, q: max(0.0, p - q) / q),
            "you take the ratio upside down, and 0 for a guess that the model never says; it "
            "should be p over q": _shrunk(lambda p, q: min(1.0, q / p)),
        },
        hints=(
            "Where the helper proposes a token too often, q > p, some of its proposals must be "
            "rejected. Which share is accepted?",
            "Proposed with probability q and accepted with a gives q * a. It shall be p where p < "
            "q, and cannot exceed q.",
            "min(1, p / q) at the guess, as a float.",
        ),
        gradient=False,
    ),
    Check(
        "inference.residual", residual, _residual_cases,
        mistakes={
            "your numbers do not sum to 1; they should be divided by their sum":
                lambda p, q: (p - q).clamp_min(0),
            "you return p itself, so a token that q proposes and p likes comes too often; what the "
            "accepted guesses give should be taken off": lambda p, q: p,
            "you return q itself; it should be what p has more than q, scaled to sum to 1":
                lambda p, q: q,
            "you take q - p, where the helper gives too much; it should be p - q":
                _to_one(lambda p, q: (q - p).clamp_min(0)),
            "you take q - p and do not scale it; it should be p - q, divided by its sum":
                lambda p, q: (q - p).clamp_min(0),
            "you turn negative differences into positive ones; they should become 0":
                _to_one(lambda p, q: (p - q).abs()),
            "you turn negative differences into positive ones, and do not scale; they should "
            "become 0, and the rest sum to 1": lambda p, q: (p - q).abs(),
            "you leave negative numbers in; they should become 0, and the rest sum to 1":
                lambda p, q: p - q,
            "you scale by softmax; the differences should be divided by their sum":
                lambda p, q: (p - q).clamp_min(0).softmax(-1),
            "you take the softmax of p - q; it should be max(0, p - q), divided by its sum":
                lambda p, q: (p - q).softmax(-1),
            "you scale with negative differences in the sum, which is 0; they should become 0 "
            "first": _to_one(lambda p, q: p - q),
            "you return the overlap of both, which the accepted guesses deliver already; it should "
            "be the rest of p":
                _to_one(torch.minimum),
            "you take the larger of both; it should be what p has more than q":
                _to_one(torch.maximum),
            "you keep all of p where it exceeds q; it should be the difference p - q there":
                _to_one(lambda p, q: p * (p > q)),
            "you divide by the overlap, sum min(p, q); it should be 1 minus that, the sum of what "
            "is left": lambda p, q: (p - q).clamp_min(0) / torch.minimum(p, q).sum(),
            "you divide p by q; it should be the difference, where it is positive":
                _to_one(lambda p, q: p / q),
            "you return a token; it should be the distribution from which it is drawn":
                lambda p, q: (p - q).argmax(),
            "you divide by 1 - q at each token; it should be divided by one number, the sum of "
            "what is left": lambda p, q: (p - q).clamp_min(0) / (1 - q),
            "you weigh p with 1 / (1 - q); it should be the difference p - q, where it is "
            "positive": _to_one(lambda p, q: p / (1 - q)),
            "you weigh p with 1 - q; it should be the difference p - q, where it is positive":
                _to_one(lambda p, q: p * (1 - q)),
            "you take 1 - q, what the helper does not say; it should be the difference p - q, "
            "where it is positive": _to_one(lambda p, q: 1 - q),
            "you take the probability of rejection, 1 - min(1, p / q); it should be the "
            "difference p - q, where it is positive":
                _to_one(lambda p, q: 1 - torch.nan_to_num(p / q, posinf=1.0).clamp_max(1)),
            "you divide by p too; it should be the difference p - q itself, where it is "
            "positive": _to_one(lambda p, q: torch.nan_to_num(1 - q / p, neginf=0.0).clamp_min(0)),
            "you take the probability of acceptance, min(1, p / q); it should be the difference "
            "p - q, where it is positive": _to_one(lambda p, q: (p / q).clamp_max(1)),
            "you square the differences; they should stay as they are, negative ones as 0":
                _to_one(lambda p, q: (p - q).square()),
            "you give the same probability to each token where p exceeds q; it should be in "
            "proportion to p - q": _to_one(lambda p, q: (p > q).float()),
            "you divide by the largest number; it should be by the sum":
                lambda p, q: (p - q).clamp_min(0) / (p - q).max(),
            "you divide by the mean; it should be by the sum": lambda p, q: residual(p, q) * len(p),
            "you divide by the number of tokens; it should be by the sum of what is left":
                lambda p, q: (p - q).clamp_min(0) / len(p),
            "you divide by the sum of all absolute differences, which is twice too large; it "
            "should be that of the positive ones":
                lambda p, q: (p - q).clamp_min(0) / (p - q).abs().sum(),
            "you divide by the root of the sum of squares; it should be by the sum":
                lambda p, q: (p - q).clamp_min(0) / (p - q).clamp_min(0).norm(),
        },
        hints=(
            "The accepted guesses deliver min(p, q) of each token. What of p is still missing?",
            "p - min(p, q) is the same as max(0, p - q).",
            "(p - q).clamp_min(0), divided by its sum.",
        ),
        gradient=False,
    ),
    Check(
        "inference.speed_up", speed_up, _speed_cases,
        mistakes={
            "you leave out the token that each pass gives in any case; it should be added: 1 + "
            "rate + rate^2 + ...":
                _speed(tokens=lambda rate, k: sum(rate**i for i in range(1, k + 1))),
            "you count every draft by itself, k rate; a draft after one that was rejected is lost, "
            "so the second should count rate^2, the third rate^3":
                _speed(tokens=lambda rate, k: 1 + k * rate),
            "you count every draft by itself and leave out the token of each pass; it should be 1 "
            "+ rate + rate^2 + ...": _speed(tokens=lambda rate, k: k * rate),
            "you count only passes in which all drafts are accepted; those before the first that "
            "is rejected should count too":
                _speed(tokens=lambda rate, k: 1 + k * rate**k),
            "you add only the last power; it should be all of them, 1 + rate + rate^2 + ...":
                _speed(tokens=lambda rate, k: 1 + rate**k),
            "you have one term too many; k drafts should give at most k + 1 tokens":
                _speed(tokens=lambda rate, k: sum(rate**i for i in range(k + 2))),
            "you have one term too few; k drafts can give k + 1 tokens":
                _speed(tokens=lambda rate, k: sum(rate**i for i in range(k))),
            "you take all k + 1 tokens for certain; each draft should count with the probability "
            "that it is accepted": _speed(tokens=lambda rate, k: 1 + k),
            "you leave out what the guesses cost; it should be verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: verify),
            "you count the cost of one guess; it should come `drafts` times":
                _speed(cost=lambda k, verify, draft: verify + draft),
            "you take 1 for the model's pass; it should be `verify`":
                _speed(cost=lambda k, verify, draft: 1 + k * draft),
            "you leave the model's pass out of the cost; it should be verify + drafts * draft":
                lambda rate, k, verify, draft: sum(rate**i for i in range(k + 1)) / (k * draft)
                if draft else float("inf"),
            "you count `verify` for each draft; it is the cost of the whole pass and should come "
            "once": _speed(cost=lambda k, verify, draft: k * (verify + draft)),
            "you count `verify` for each token that is read; it is the cost of the whole pass and "
            "should come once": _speed(cost=lambda k, verify, draft: (k + 1) * verify + k * draft),
            "you count drafts + 1 guesses; it should be verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: verify + (k + 1) * draft),
            "you add a plain pass to the cost; it should be verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: 1 + verify + k * draft),
            "you compute the cost of a token; the speed-up should be its inverse":
                lambda *args: 1 / speed_up(*args),
            "you compute the tokens of a pass; they should be divided by what the pass costs":
                _speed(cost=lambda k, verify, draft: 1),
            "you subtract the cost; the tokens should be divided by it":
                lambda rate, k, verify, draft: (
                    sum(rate**i for i in range(k + 1)) - verify - k * draft),
            "you compute how much faster it is; it should be how many times as fast":
                lambda *args: speed_up(*args) - 1,
            "your closed form divides by 0 at rate 1, where the sum is drafts + 1; add the "
            "powers up instead, or treat rate 1 apart": _speed(tokens=_closed()),
            "your closed form has one term too few, and divides by 0 at rate 1; it should be 1 "
            "+ rate + ... + rate^drafts": _speed(tokens=_closed(last=0)),
            "you take `drafts` tokens at rate 1; it should be drafts + 1 there":
                _speed(tokens=_closed(at_one=lambda k: k)),
            "you take one token at rate 1; it should be drafts + 1 there":
                _speed(tokens=_closed(at_one=lambda k: 1)),
            "you sum to infinity, 1 / (1 - rate); it should end with rate^drafts":
                _speed(tokens=lambda rate, k: 1 / (1 - rate)),
            "you leave out the passes in which all drafts are accepted, with drafts + 1 tokens; "
            "they should count too": _speed(tokens=_until_rejected),
            "you count only drafts before one that is rejected, and no token of the pass; it "
            "should be 1 + rate + ... + rate^drafts":
                _speed(tokens=lambda rate, k: _until_rejected(rate, k) - (1 - rate**k)),
            "you start with rate^1 and go one too far; it should be 1 + rate + ... + "
            "rate^drafts": _speed(tokens=lambda rate, k: sum(rate**i for i in range(1, k + 2))),
            "you multiply the rate by 1, 2, 3, ...; it should be its powers, 1 + rate + rate^2 "
            "+ ...": _speed(tokens=lambda rate, k: 1 + sum(rate * i for i in range(1, k + 1))),
            "you count `verify` for each draft and `draft` once; it should be verify + drafts * "
            "draft": _speed(cost=lambda k, verify, draft: k * verify + draft),
            "you multiply the costs; they should be added: verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: verify * k * draft or 1.0),
            "you count `draft` in units of `verify`; both are in passes over a single token, so "
            "it should be verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: verify * (1 + k * draft)),
            "you subtract the cost of the guesses; it should be added: verify + drafts * draft":
                _speed(cost=lambda k, verify, draft: verify - k * draft),
            "you pay only for guesses that follow an accepted one; all `drafts` of them are "
            "made in any case":
                lambda rate, k, verify, draft: sum(rate**i for i in range(k + 1)) / (
                    verify + draft * sum(rate**i for i in range(k))),
            "you pay a guess for each token that comes out; all `drafts` of them are made in "
            "any case":
                lambda rate, k, verify, draft: (lambda tokens: tokens / (verify + draft * tokens))(
                    sum(rate**i for i in range(k + 1))),
            "you multiply by `verify`; without drafts a token costs 1, so it should be tokens "
            "divided by the cost":
                lambda rate, k, verify, draft: speed_up(rate, k, verify, draft) * verify,
            "you take the larger of the two costs; it should be their sum, verify + drafts * "
            "draft": _speed(cost=lambda k, verify, draft: max(verify, k * draft)),
        },
        hints=(
            "Tokens of a pass: one in any case, one more if the first draft is accepted, another "
            "if the second is accepted as well, ...",
            "1 + rate + rate^2 + ... + rate^drafts; without drafts a pass costs 1 and gives 1.",
            "The cost of a pass is verify + drafts * draft. Divide.",
        ),
        gradient=False,
    ),
    Check(
        "inference.difference", difference, _difference_cases,
        mistakes={
            "you add two variances, as if the problems were not the same; it should be the "
            "standard deviation of the differences":
                _as_others(lambda a, b: ((a.var() + b.var()) / len(a)) ** 0.5),
            "you add two variances, as if the problems were not the same, and divide by n instead "
            "of n - 1; it should be the standard deviation of the differences":
                _as_others(lambda a, b: ((a.var(correction=0) + b.var(correction=0))
                                         / len(a)) ** 0.5),
            "you subtract two variances; it should be the variance of the differences":
                _as_others(lambda a, b: ((a.var() - b.var()).abs() / len(a)) ** 0.5),
            "you subtract the wrong way round; it should be after minus before":
                lambda before, after: difference(after, before),
            "you compute the interval of one problem's difference; that of the mean is narrower, "
            "so s should be divided by sqrt(n)":
                _with_error(lambda d: d.std()),
            "you compute the interval of one problem's difference, with n instead of n - 1; it "
            "should be s / sqrt(n), with n - 1":
                _with_error(lambda d: d.std(correction=0)),
            "you divide the standard deviation by n; it should be by sqrt(n)":
                _with_error(lambda d: d.std() / len(d)),
            "you multiply the standard deviation with sqrt(n); it should be divided by it":
                _with_error(lambda d: d.std() * len(d) ** 0.5),
            "you divide the standard deviation by sqrt(n - 1); it should be by sqrt(n), with n - 1 "
            "inside s": _with_error(lambda d: d.std() / (len(d) - 1) ** 0.5),
            "you divide the variance by sqrt(n); it should be its root, s, divided by sqrt(n)":
                _with_error(lambda d: d.var() / len(d) ** 0.5),
            "you leave out the root of the variance; it should be sqrt(s^2 / n)":
                _with_error(lambda d: d.var() / len(d)),
            "your s divides by n; it should be n - 1 (numpy: ddof=1)":
                _with_error(lambda d: d.std(correction=0) / len(d) ** 0.5),
            "you take one standard error each way, a 68 % interval; it should be 1.96":
                _with_error(errors=1),
            "you take 2 standard errors each way; it should be 1.96": _with_error(errors=2),
            "you take 1.645 standard errors, a 90 % interval; it should be 1.96":
                _with_error(errors=1.645),
            "you take half of 1.96 standard errors each way; it should be all of it":
                _with_error(errors=0.98),
            "you drop the signs of the differences; they should stay": lambda before, after:
                _interval(_differences(before, after).abs()),
            "you sum the differences; it should be their mean": lambda before, after: (
                lambda d, mean, low, high: (float(d.sum()), float(d.sum()) - (mean - low),
                                            float(d.sum()) + (high - mean)))(
                    _differences(before, after), *difference(before, after)),
            "you return the ends first; it should be the mean, then the lower end, then the upper":
                _results(lambda mean, low, high: (low, high, mean)),
            "you return the mean in the middle; it should be first, then the two ends":
                _results(lambda mean, low, high: (low, mean, high)),
            "you exchange the ends; it should be the mean, the lower end, the upper end":
                _results(lambda mean, low, high: (mean, high, low)),
            "you return the mean and the half width; it should be the mean and both ends":
                _results(lambda mean, low, high: (mean, high - mean)),
            "you return the ends alone; it should be the mean and both ends":
                _results(lambda mean, low, high: (low, high)),
            "you return the half widths; it should be the ends, mean - half and mean + half":
                _results(lambda mean, low, high: (mean, low - mean, high - mean)),
            "you take the covariance off once; the variance of the differences should be both "
            "variances less twice the covariance": _as_others(lambda a, b: _shared(a, b, 1)),
            "you add twice the covariance; it should be taken off":
                _as_others(lambda a, b: _shared(a, b, -2)),
            "you mix n and n - 1, in variances and covariance; all three should be divided by n "
            "- 1": _as_others(lambda a, b: _shared(a, b, 2, correction=0)),
            "you add the standard deviations of the two lists; it should be the standard "
            "deviation of the differences":
                _as_others(lambda a, b: (a.std() + b.std()) / len(a) ** 0.5),
            "you subtract the standard deviations of the two lists; it should be the standard "
            "deviation of the differences":
                _as_others(lambda a, b: (a.std() - b.std()).abs() / len(a) ** 0.5),
            "you add the two standard errors' squares and halve them, as a mean; it should be "
            "the standard deviation of the differences":
                _as_others(lambda a, b: ((a.var() + b.var()) / (2 * len(a))) ** 0.5),
            "you pool both lists into one; it should be the standard deviation of the "
            "differences": _as_others(lambda a, b: torch.cat([a, b]).std() / len(a) ** 0.5),
            "you take the standard deviation of `after` alone; it should be that of the "
            "differences": _as_others(lambda a, b: b.std() / len(a) ** 0.5),
            "you take the standard deviation of `before` alone; it should be that of the "
            "differences": _as_others(lambda a, b: a.std() / len(a) ** 0.5),
            "you take the formula for shares, m (1 - m), of the mean difference; it should be "
            "the standard deviation of the differences":
                _with_error(lambda d: (d.mean().abs() * (1 - d.mean().abs()) / len(d)) ** 0.5),
            "you take 2n for the number of problems; it should be n, for each has one "
            "difference": _with_error(lambda d: d.std() / (2 * len(d)) ** 0.5),
            "you leave out 1.96 and the standard error; it should be 1.96 s / sqrt(n) to both "
            "sides": _with_error(errors=0),
            "you take 2.58 standard errors, a 99 % interval; it should be 1.96":
                _with_error(errors=2.58),
            "you drop the signs of the differences for s; they should stay":
                _with_error(lambda d: d.abs().std() / len(d) ** 0.5),
            "you take the median of the differences; it should be their mean":
                lambda before, after: (lambda d, mean, low, high: (
                    float(d.quantile(0.5)), float(d.quantile(0.5)) - (mean - low),
                    float(d.quantile(0.5)) + (high - mean)))(
                        _differences(before, after), *difference(before, after)),
            "you subtract the wrong way round, and add two variances; it should be after minus "
            "before, and the standard deviation of the differences":
                lambda before, after: _as_others(
                    lambda a, b: ((a.var() + b.var()) / len(a)) ** 0.5)(after, before),
        },
        hints=(
            "One number for each problem: what `after` has more than `before`. From there only "
            "this list matters.",
            "Its standard deviation s is that of one problem; the mean of n of them has s / "
            "sqrt(n).",
            "d.mean() and 1.96 * d.std(ddof=1) / sqrt(n) to both sides of it.",
        ),
        gradient=False,
    ),
]
