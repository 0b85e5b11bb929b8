"""Checks of lesson 12: the loss on replies, and the parts of GRPO's objective (V4 report, section
5.1; docs/specification.md, section 7).

The objective is that of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), as
`minids.posttrain.grpo.objective` has it.
"""

from math import comb

import torch
import torch.nn.functional as F

from minids.learn.checks.gradient import with_gradient
from minids.learn.exercise import Check

LESSON = "12_specialists"


# ---- the loss on replies ----

def reply_loss(logits, ids, wrote):
    """Mean loss of the tokens that the assistant wrote.

    logits: B T V, from ids: B T. Position t predicts ids[t+1]. wrote: B T, bool.
    """
    guesses = logits[:, :-1].transpose(1, 2)
    losses = F.cross_entropy(guesses, ids[:, 1:], reduction="none")    # B T-1
    return losses[wrote[:, 1:]].mean()


def _reply(shift=True, mask=lambda wrote: wrote[:, 1:], reduce="tokens"):
    def wrong(logits, ids, wrote):
        guesses, targets = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
        losses = F.cross_entropy(guesses.transpose(1, 2), targets, reduction="none")
        counted = mask(wrote)
        if reduce == "rows":
            return ((losses * counted).sum(1) / counted.sum(1)).mean()
        total = (losses * counted).sum()
        return {"tokens": total / counted.sum(), "sum": total,
                "all": total / counted.numel()}[reduce]
    return wrong


def _reply_cases(rng):
    for label, wrote in (("one conversation", [[0, 0, 0, 1, 1, 1]]),
                         ("replies of two lengths", [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0]]),
                         ("two conversations in a row", [[0, 0, 1, 1, 0, 0, 0, 1, 1],
                                                         [0, 1, 1, 1, 1, 1, 1, 1, 0]])):
        wrote = torch.tensor(wrote, dtype=torch.bool)
        logits = 2 * torch.randn(*wrote.shape, 11, generator=rng)
        yield label, (logits, torch.randint(11, wrote.shape, generator=rng), wrote)


# ---- advantages ----

def advantages(rewards, group):
    """Rewards less the mean of their group. rewards: B, group after group -> B."""
    groups = rewards.view(-1, group)
    return (groups - groups.mean(1, keepdim=True)).flatten()


def _divided(unbiased):
    def wrong(rewards, group):
        std = rewards.view(-1, group).std(1, unbiased=unbiased, keepdim=True)
        return (advantages(rewards, group).view(-1, group) / (std + 1e-6)).flatten()
    return wrong


def _others(rewards, group):
    groups = rewards.view(-1, group)
    return (groups - (groups.sum(1, keepdim=True) - groups) / (group - 1)).flatten()


def _across(rewards, group):
    groups = rewards.view(group, -1)
    return (groups - groups.mean(0, keepdim=True)).flatten()


def _best(rewards, group):
    groups = rewards.view(-1, group)
    return (groups - groups.max(1, keepdim=True).values).flatten()


def _advantage_cases(rng):
    for label, groups, group in (("one group", 1, 4), ("two groups", 2, 4),
                                 ("more groups than answers", 5, 3)):
        number = torch.arange(groups).repeat_interleave(group)
        yield label, (torch.rand(groups * group, generator=rng) + number, group)


# ---- the clipped gain ----

def clipped_gain(ratio, A, clip):
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A). ratio: B R, A: B -> B R."""
    A = A[:, None]
    return torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)


def _maximum(ratio, A, clip):
    A = A[:, None]
    return torch.maximum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)


def _bounded(ratio, A, low, high):
    A = A[:, None]
    return torch.minimum(ratio * A, ratio.clamp(low, high) * A)


def _always_above(ratio, A, clip):
    return ratio.clamp_max(1 + clip) * A[:, None]


def _gain_cases(rng):
    even = 0.5 + torch.rand(3, 5, generator=rng)
    yield "good answers", (even, 0.5 + torch.rand(3, generator=rng), 0.2)
    yield "bad answers", (even, -0.5 - torch.rand(3, generator=rng), 0.2)
    ratio = torch.randn(4, 6, generator=rng).exp()
    yield "both, another clip", (ratio, torch.randn(4, generator=rng), 0.3)


# ---- the KL estimate ----

def kl_estimate(logprobs, old, reference):
    """ratio (r - log r - 1), with ratio = pi / pi_old and r = pi_ref / pi: B R.

    logprobs, old, reference: B R, the logs of the sampled tokens' probabilities.
    """
    ratio, log_r = (logprobs - old).exp(), reference - logprobs
    return ratio * (log_r.exp() - log_r - 1)


def _kl(ratio=lambda p, o, f: (p - o).exp(), log_r=lambda p, o, f: f - p,
        body=lambda s: s.exp() - s - 1):
    return with_gradient(lambda p, o, f: ratio(p, o, f) * body(log_r(p, o, f)))


def _kl_cases(rng):
    def logs(B, R):
        return -0.2 - 2.5 * torch.rand(B, R, generator=rng)
    same = logs(2, 4)
    yield "on-policy: old is the policy", (same, same.clone(), logs(2, 4))
    yield "off-policy", (logs(3, 5), logs(3, 5), logs(3, 5))


# ---- the off-policy mask ----

def kept(logprobs, old, A, mask, bound):
    """1 or 0 for each answer: B.

    0 where A < 0 and the mean of log(pi_old / pi) over the answer's tokens exceeds the bound.
    """
    drift = ((old - logprobs) * mask).sum(1) / mask.sum(1)
    return 1.0 - ((A < 0) & (drift > bound)).float()


def _kept(when=lambda A: A < 0, drift=lambda p, o, m: ((o - p) * m).sum(1) / m.sum(1)):
    def wrong(logprobs, old, A, mask, bound):
        return 1.0 - (when(A) & (drift(logprobs, old, mask) > bound)).float()
    return wrong


def _per_token(logprobs, old, A, mask, bound):
    return 1.0 - ((A[:, None] < 0) & (old - logprobs > bound)).float()


def _kept_cases(rng):
    """Answers that tell the mistakes apart: long ones drift a little, short ones far."""
    length = torch.tensor([6, 6, 2, 2, 1, 3, 6, 4])
    drift = torch.tensor([0.06, 0.3, 0.18, 0.3, -0.4, -0.3, 0.06, 0.3])
    A = torch.tensor([-0.5, -0.5, -0.25, 0.75, -0.5, 0.5, 0.75, -0.25])
    for label, scale in (("some drift", 1.0), ("a little more", 1.1)):
        mask = torch.arange(6) < length[:, None]
        wobble = 0.05 * torch.randn(8, 6, generator=rng) * mask
        wobble = (wobble - wobble.sum(1, keepdim=True) / length[:, None]) * mask
        old = -0.5 - torch.rand(8, 6, generator=rng)
        drifted = old - scale * drift[:, None] - wobble
        logprobs = torch.where(mask, drifted, torch.full_like(old, -4.0))
        yield label, (logprobs, old, A, mask, 0.2)


# ---- pass@k ----

def pass_at_k(samples, right, k):
    """The probability that at least one of k answers is right.

    The k are sampled without replacement from `samples`, of which `right` are right.
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def _for_all(function):
    """The function on a table of cases, as a tensor."""
    return lambda table: torch.tensor([float(function(*row)) for row in table], dtype=torch.float64)


def _pass_cases(rng):
    yield "k = 1", ([(4, 1, 1), (10, 3, 1), (7, 7, 1)],)
    yield "larger k", ([(4, 1, 2), (8, 2, 4), (16, 3, 5), (10, 0, 5)],)
    yield "fewer wrong answers than k", ([(6, 4, 3), (5, 5, 5), (8, 7, 2)],)


CHECKS = [
    Check(
        "specialists.reply_loss", reply_loss, _reply_cases,
        mistakes={
            "the prompt counts too: what the user wrote is given, only tokens that the assistant "
            "wrote are taught":
                _reply(mask=lambda wrote: torch.ones_like(wrote[:, 1:])),
            "it is the other way round: this teaches the prompt and leaves the reply out":
                _reply(mask=lambda wrote: ~wrote[:, 1:]),
            "the mask is one place off: what decides is who wrote the token that is predicted, "
            "not the one that is read":
                _reply(mask=lambda wrote: wrote[:, :-1]),
            "the targets are not shifted: the logits at t are a guess at token t + 1":
                _reply(False, lambda wrote: wrote),
            "each row counts alike, so a token of a short reply weighs more: take the mean over "
            "all tokens that count":
                _reply(reduce="rows"),
            "divided by all positions: the mean is over the tokens that count":
                _reply(reduce="all"),
            "this is the sum: take the mean": _reply(reduce="sum"),
        },
        hints=(
            "Two shifts by one place: logits against targets, and the mask against the logits.",
            "F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction='none') has a "
            "loss for each target, B T-1.",
            "A target counts where wrote[:, 1:] is True. Index with it, then take the mean.",
        ),
    ),
    Check(
        "specialists.advantages", advantages, _advantage_cases,
        mistakes={
            "these are divided by the group's standard deviation: a group that is nearly always "
            "right would count as much as a hard one":
                _divided(True),
            "these are divided by the group's standard deviation (the biased one): leave them as "
            "they are":
                _divided(False),
            "the mean is over the whole batch: it is over the group, answers to one prompt":
                lambda rewards, group: rewards - rewards.mean(),
            "the groups lie one after the other: view(-1, group), and the mean over axis 1":
                _across,
            "the mean leaves the answer itself out: a usual variant, larger by G / (G - 1); here "
            "the whole group counts":
                _others,
            "this compares with the best answer of the group: then nothing is ever better than "
            "expected": _best,
            "nothing is subtracted": lambda rewards, group: rewards.clone(),
            "the sign is wrong: better than the mean is positive":
                lambda rewards, group: -advantages(rewards, group),
        },
        hints=(
            "Answers of one prompt are neighbours: the first `group` rewards belong together, "
            "then the next ones.",
            "rewards.view(-1, group) has a row for each prompt.",
            "Subtract each row's mean (keepdim=True), and make it flat again. Nothing else.",
        ),
    ),
    Check(
        "specialists.clipped", clipped_gain, _gain_cases,
        mistakes={
            "this is the maximum of the two: it bounds good answers from below, bad ones from "
            "above. What must be called back gets slope 0, and what has gone far enough is pushed "
            "on":
                _maximum,
            "this only clamps: where the ratio went the wrong way (a bad answer has become "
            "likelier) nothing pushes it back; take the minimum with ratio A":
                lambda ratio, A, clip: ratio.clamp(1 - clip, 1 + clip) * A[:, None],
            "the clip works on the wrong side of bad answers: a good answer is bounded from "
            "above, a bad one from below":
                _always_above,
            "nothing is clipped": lambda ratio, A, clip: ratio * A[:, None],
            "this is the loss: return the gain, which is to be made large":
                lambda *args: -clipped_gain(*args),
            "the lower bound is 1 - clip, not 1 / (1 + clip)":
                lambda ratio, A, clip: _bounded(ratio, A, 1 / (1 + clip), 1 + clip),
            "the bounds are 1 - clip and 1 + clip: the ratio is near 1":
                lambda ratio, A, clip: _bounded(ratio, A, -clip, clip),
        },
        hints=(
            "Two candidates for each token, ratio A and clamped ratio A. Which one is the more "
            "careful promise?",
            "A has one number for each answer: A[:, None] stretches over its tokens.",
            "torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A): A is inside both, so "
            "its sign reverses the order.",
        ),
    ),
    Check(
        "specialists.kl", with_gradient(kl_estimate), _kl_cases,
        mistakes={
            "the ratio pi / pi_old is missing: the tokens came from pi_old, and the gradient is "
            "another divergence's":
                _kl(ratio=lambda p, o, f: 1.0),
            "the ratio is detached: the values are right, the gradient is not. It flows through "
            "the ratio, too":
                _kl(ratio=lambda p, o, f: (p - o).exp().detach()),
            "the ratio is upside down: it is pi / pi_old": _kl(ratio=lambda p, o, f: (o - p).exp()),
            "r is upside down: it is pi_ref / pi, so log r = reference - logprobs":
                _kl(log_r=lambda p, o, f: p - f),
            "r compares with pi_old: it is pi_ref / pi": _kl(log_r=lambda p, o, f: f - o),
            "the sign of log r is wrong: r - log r - 1 is never negative":
                _kl(body=lambda s: s.exp() + s - 1),
            "the - 1 is missing: where policy and reference agree the estimate must be 0":
                _kl(body=lambda s: s.exp() - s),
            "this is k1, -log r, with the ratio: right in the mean, but it varies more and can be "
            "negative":
                _kl(body=lambda s: -s),
            "this is k1, log(pi / pi_ref): right in the mean only on-policy, and of no use as a "
            "loss": _kl(
                ratio=lambda p, o, f: 1.0, body=lambda s: -s),
            "the ratio multiplies r only: it weighs the whole estimate":
                with_gradient(lambda p, o, f: (p - o).exp() * (f - p).exp() - (f - p) - 1),
        },
        hints=(
            "Two quotients: ratio = pi / pi_old says how much likelier a token is now; r = pi_ref "
            "/ pi looks at the reference.",
            "You have logs: log r = reference - logprobs, and r = exp(log r).",
            "ratio * (r - log r - 1), nothing detached. Where all three agree it is 0.",
        ),
    ),
    Check(
        "specialists.kept", kept, _kept_cases,
        mistakes={
            "good answers are left out too: only those with A < 0":
                _kept(when=lambda A: torch.ones_like(A, dtype=torch.bool)),
            "it is the other way round: good answers stay whatever happened, bad ones may go":
                _kept(when=lambda A: A > 0),
            "the quotient is upside down: an answer goes that has become less likely, log(pi_old "
            "/ pi) > bound":
                _kept(drift=lambda p, o, m: ((p - o) * m).sum(1) / m.sum(1)),
            "this is the sum over the tokens: long answers would always go. Take the mean": _kept(
                drift=lambda p, o, m: ((o - p) * m).sum(1)),
            "padding counts: the mean is over the tokens that are there, by `mask`": _kept(
                drift=lambda p, o, m: (o - p).mean(1)),
            "padding is zeroed, but the sum is divided by all positions":
                _kept(drift=lambda p, o, m: ((o - p) * m).mean(1)),
            "any change goes, in either direction: only answers that have become less likely":
                _kept(
                drift=lambda p, o, m: (((o - p) * m).sum(1) / m.sum(1)).abs()),
            "this decides token by token: a whole answer stays or goes": _per_token,
        },
        hints=(
            "For each answer one number: the mean over its tokens of old - logprobs. Positive: it "
            "has become less likely.",
            "The mean with a mask: ((old - logprobs) * mask).sum(1) / mask.sum(1).",
            "0.0 where (A < 0) & (drift > bound), else 1.0.",
        ),
    ),
    Check(
        "specialists.pass_at_k", _for_all(pass_at_k), _pass_cases,
        mistakes={
            "this samples with replacement, 1 - (1 - c / n)^k: biased, too low. The k answers are "
            "different ones":
                _for_all(lambda n, c, k: 1 - (1 - c / n) ** k),
            "this is pass@1, the share of right answers": _for_all(lambda n, c, k: c / n),
            "this is the probability that all k are right: one is enough":
                _for_all(lambda n, c, k: comb(c, k) / comb(n, k)),
            "this is the probability that none of the k is right: take it from 1":
                _for_all(lambda n, c, k: comb(n - c, k) / comb(n, k)),
            "probabilities of events that can happen together do not add":
                _for_all(lambda n, c, k: min(1.0, k * c / n)),
        },
        hints=(
            "Ask for the opposite: how likely is it that all k are wrong?",
            "Ways to choose k of the n - c wrong answers, divided by ways to choose k of all n.",
            "math.comb(a, k) is 0 where k > a: then at least one is right for sure.",
        ),
        atol=1e-9,
    ),
]
