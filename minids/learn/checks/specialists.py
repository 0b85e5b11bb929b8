"""Checks of lesson 12: the loss on replies, and the parts of GRPO's objective (V4 report, section
5.1; docs/specification.md, section 7).

The objective is that of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), as
`minids.posttrain.grpo.objective` has it.
"""

import math
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
    """A version with other targets, another mask, or another divisor."""
    def wrong(logits, ids, wrote):
        guesses, targets = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
        losses = F.cross_entropy(guesses.transpose(1, 2), targets, reduction="none")
        counted = mask(wrote)
        if reduce == "rows":
            return ((losses * counted).sum(1) / counted.sum(1)).mean()
        total = (losses * counted).sum()
        numbers = {"tokens": counted.sum(), "sum": 1, "all": counted.numel(), "batch": len(ids),
                   "wrote": wrote.sum()}
        return total / numbers[reduce]
    return wrong


def _backwards(logits, ids, wrote):
    return reply_loss(logits.flip(1), ids.flip(1), wrote.flip(1))


def _reply_from(losses, mask=lambda wrote: wrote[:, 1:], divisor=lambda wrote: wrote[:, 1:].sum()):
    """A version with other losses(logits, ids), B T-1, another mask and divisor."""
    def wrong(logits, ids, wrote):
        return (losses(logits, ids) * mask(wrote)).sum() / divisor(wrote)
    return wrong


def _next_losses(logits, ids):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def _losses_backwards(logits, ids):
    return F.cross_entropy(logits[:, 1:].transpose(1, 2), ids[:, :-1], reduction="none")


def _minus_probability(logits, ids):
    return -logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def _two_ahead(logits, ids, wrote):
    losses = F.cross_entropy(logits[:, :-2].transpose(1, 2), ids[:, 2:], reduction="none")
    return losses[wrote[:, 2:]].mean()


def _chosen_first(logits, ids, wrote):
    return F.cross_entropy(logits[wrote][:-1], ids[wrote][1:])


def _prompt_as_token_0(logits, ids, wrote):
    return _next_losses(logits, ids * wrote).mean()


def _reply_cases(rng):
    for label, wrote in (("one conversation", [[0, 0, 0, 1, 1, 1]]),
                         ("replies of two lengths", [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0]]),
                         ("two conversations in a row", [[0, 0, 1, 1, 0, 0, 0, 1, 1],
                                                         [0, 1, 1, 1, 1, 1, 1, 1, 0]]),
                         ("a row that begins within a reply", [[1, 1, 0, 0, 1],
                                                               [0, 1, 1, 1, 0]])):
        wrote = torch.tensor(wrote, dtype=torch.bool)
        logits = 2 * torch.randn(*wrote.shape, 11, generator=rng)
        yield label, (logits, torch.randint(11, wrote.shape, generator=rng), wrote)


# ---- advantages ----

def advantages(rewards, group):
    """Rewards less the mean of their group. rewards: B, group after group -> B."""
    return _grouped(lambda groups: groups - groups.mean(1, keepdim=True))(rewards, group)


def _grouped(function):
    """A version that computes function(groups), from prompts x group, and flattens it."""
    return lambda rewards, group: function(rewards.view(-1, group)).flatten()


def _divided(unbiased):
    def version(groups):
        std = groups.std(1, unbiased=unbiased, keepdim=True)
        return (groups - groups.mean(1, keepdim=True)) / (std + 1e-6)
    return _grouped(version)


def _others(groups):
    return groups - (groups.sum(1, keepdim=True) - groups) / (groups.shape[1] - 1)


def _across(rewards, group):
    groups = rewards.view(group, -1)
    return (groups - groups.mean(0, keepdim=True)).flatten()


def _neighbours_apart(rewards, group):
    """Takes every prompts-th reward for one group, and gives each reward its own place back."""
    groups = rewards.view(group, -1)
    return (groups - groups.mean(1, keepdim=True)).flatten()


def _advantage_cases(rng):
    for label, groups, group in (("one group", 1, 4), ("two groups", 2, 4),
                                 ("more groups than answers", 5, 3), ("as many groups as answers",
                                                                      4, 4)):
        number = torch.arange(groups).repeat_interleave(group)
        yield label, (torch.rand(groups * group, generator=rng) + number, group)


# ---- the clipped gain ----

def clipped_gain(ratio, A, clip):
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A). ratio: B R, A: B -> B R."""
    return _gain(lambda ratio, clamped, A: torch.minimum(ratio * A, clamped * A))(ratio, A, clip)


def _gain(choose, low=lambda clip: 1 - clip, high=lambda clip: 1 + clip):
    """A version from choose(ratio, clamped ratio, A), with other bounds."""
    def version(ratio, A, clip):
        return choose(ratio, ratio.clamp(low(clip), high(clip)), A[:, None])
    return version


def _least(ratio, clamped, A):
    return torch.minimum(ratio * A, clamped * A)


def _by_token(ratio, A, clip):
    """A is stretched over the answers instead of the tokens."""
    return torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)


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


def _one(p, o, f):
    return 1.0


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


def _mean_drift(p, o, m):
    return ((o - p) * m).sum(1) / m.sum(1)


def _kept(when=lambda A: A < 0, drift=_mean_drift, out=lambda bad, drift, bound:
          bad & (drift > bound)):
    """A version that leaves out(when(A), drift, bound) out."""
    def wrong(logprobs, old, A, mask, bound):
        return 1.0 - out(when(A), drift(logprobs, old, mask), bound).float()
    return wrong


def _always(A):
    return torch.ones_like(A, dtype=torch.bool)


def _per_token(logprobs, old, A, mask, bound):
    return 1.0 - ((A[:, None] < 0) & (old - logprobs > bound)).float()


def _any_token(p, o, m):
    return (o - p).masked_fill(~m, -math.inf).amax(1)


def _kept_cases(rng):
    """Answers that tell the mistakes apart: long ones drift a little, short ones far."""
    length = torch.tensor([6, 6, 2, 2, 1, 3, 6, 4, 5, 3, 5, 4])
    drift = torch.tensor([0.06, 0.3, 0.18, 0.3, -2.0, -0.3, 0.06, 0.3, 0.35, 0.02, 0.6, -0.5])
    A = torch.tensor([-0.5, -0.5, -0.25, 0.75, -0.5, 0.5, 0.75, -0.25, 0.0, -0.5, -0.5, -0.5])
    for label, scale in (("some drift", 1.0), ("a little more", 1.1)):
        mask = torch.arange(6) < length[:, None]
        wobble = 0.05 * torch.randn(len(A), 6, generator=rng) * mask
        wobble = (wobble - wobble.sum(1, keepdim=True) / length[:, None]) * mask
        old = -0.5 - torch.rand(len(A), 6, generator=rng)
        drifted = old - scale * drift[:, None] - wobble
        logprobs = torch.where(mask, drifted, torch.full_like(old, -4.0))
        yield label, (logprobs, old, A, mask, 0.2)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    old, logprobs = torch.full((2, 4), -0.75), torch.full((2, 4), -1.0)
    logprobs[:, 1] -= 0.25
    logprobs[:, 0] += 0.25
    yield "a drift that equals the bound", (logprobs, old, torch.tensor([-1.0, -1.0]), mask, 0.25)
    yield "another bound", (logprobs, old, torch.tensor([-1.0, 1.0]), mask, 0.125)


# ---- pass@k ----

def pass_at_k(samples, right, k):
    """The probability that at least one of k answers is right.

    The k are sampled without replacement from `samples`, of which `right` are right.
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def _for_all(function):
    """The function on a table of cases, as a tensor."""
    return lambda table: torch.tensor([float(function(*row)) for row in table], dtype=torch.float64)


@_for_all
def _by_factorials(n, c, k):
    wrong = math.factorial(n - c) / math.factorial(n - c - k)
    return 1 - wrong * math.factorial(n - k) / math.factorial(n)


def _pass_cases(rng):
    yield "k = 1", ([(4, 1, 1), (10, 3, 1), (7, 7, 1)],)
    yield "larger k", ([(4, 1, 2), (8, 2, 4), (16, 3, 5), (10, 0, 5)],)
    yield "fewer wrong answers than k", ([(6, 4, 3), (5, 5, 5), (8, 7, 2)],)
    yield "as many wrong answers as k", ([(5, 2, 3), (6, 3, 3), (4, 3, 1)],)


CHECKS = [
    Check(
        "specialists.reply_loss", reply_loss, _reply_cases,
        mistakes={
            "you count the prompt too; only tokens that the assistant wrote should count":
                _reply(mask=lambda wrote: torch.ones_like(wrote[:, 1:])),
            "you teach the prompt and leave the reply out; it should be the other way round":
                _reply(mask=lambda wrote: ~wrote[:, 1:]),
            "your mask is one place off, at who wrote the token that is read; it should be who "
            "wrote the token that is predicted":
                _reply(mask=lambda wrote: wrote[:, :-1]),
            "you do not shift the targets; the logits at t should be compared with token t + 1":
                _reply(False, lambda wrote: wrote),
            "you do not shift the targets, and count the prompt too; the logits at t should be "
            "compared with token t + 1, where the assistant wrote it":
                _reply(False, lambda wrote: torch.ones_like(wrote)),
            "you shift the wrong way, so that position t predicts token t - 1; it should be t + 1":
                _backwards,
            "you let each row count alike, so a token of a short reply weighs more; it should be "
            "the mean over all tokens that count":
                _reply(reduce="rows"),
            "you divide by all positions; it should be the number of tokens that count":
                _reply(reduce="all"),
            "you divide by the number of rows; it should be the number of tokens that count":
                _reply(reduce="batch"),
            "you divide by the number of all True in `wrote`; the first column is no target, so "
            "it should be wrote[:, 1:]":
                _reply(reduce="wrote"),
            "you return the sum; it should be the mean": _reply(reduce="sum"),
            "you give probabilities to cross_entropy, which takes logits; leave out the softmax":
                lambda logits, ids, wrote: reply_loss(logits.softmax(-1), ids, wrote),
            "your loss has the wrong sign; it should be minus the log-probability":
                lambda *args: -reply_loss(*args),
            "you return one loss for each token; it should be their mean":
                lambda logits, ids, wrote: F.cross_entropy(
                    logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") * wrote[:, 1:],
            "you count a token only if the one before it is the assistant's too, so the first "
            "of each reply is lost; only who wrote the predicted token should decide":
                _reply_from(_next_losses, lambda wrote: wrote[:, 1:] & wrote[:, :-1],
                            lambda wrote: (wrote[:, 1:] & wrote[:, :-1]).sum()),
            "you count a token if the one before it is the assistant's as well; only who wrote "
            "the predicted token should decide":
                _reply_from(_next_losses, lambda wrote: wrote[:, 1:] | wrote[:, :-1],
                            lambda wrote: (wrote[:, 1:] | wrote[:, :-1]).sum()),
            "you pick the assistant's tokens first and shift then, so the first of a reply is "
            "lost and replies run into each other; you should shift first": _chosen_first,
            "you compare with the token after the next; it should be the next": _two_ahead,
            "you divide by the number of the assistant's tokens that are read, wrote[:, :-1]; "
            "it should be those that are predicted, wrote[:, 1:]":
                _reply_from(_next_losses, divisor=lambda wrote: wrote[:, :-1].sum()),
            "you divide by all tokens of `ids`; it should be the number of tokens that count":
                _reply_from(_next_losses, divisor=torch.numel),
            "you set the prompt's targets to token 0 and count them; they should be left out":
                _prompt_as_token_0,
            "you shift the wrong way, and your mask is one place off; the logits at t should be "
            "compared with token t + 1, where the assistant wrote it":
                _reply_from(_losses_backwards),
            "you do not shift the targets, and divide by all positions; the logits at t should "
            "be compared with token t + 1, and the mean be over the tokens that count":
                _reply(False, lambda wrote: wrote, "all"),
            "you take minus the probability; it should be minus its logarithm":
                _reply_from(_minus_probability),
            "you give cross_entropy B T V, and it takes axis 1 for the vocabulary; flatten B "
            "and T first, or transpose to B V T":
                lambda logits, ids, wrote: F.cross_entropy(
                    logits[:, :-1], ids[:, 1:], reduction="none")[wrote[:, 1:]].mean(),
            "you mask the logits and count every target; it is the losses that should be masked":
                lambda logits, ids, wrote: _next_losses(logits * wrote[..., None], ids).mean(),
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
            "you divide by the group's standard deviation, so a group that is nearly always right "
            "counts as much as a hard one; it should be the difference alone":
                _divided(True),
            "you divide by the group's standard deviation (the biased one); it should be the "
            "difference alone":
                _divided(False),
            "you divide by the standard deviation of the batch; it should be the difference from "
            "the group's mean alone":
                lambda rewards, group: (rewards - rewards.mean()) / (rewards.std() + 1e-6),
            "you subtract the mean of the whole batch; it should be the mean of the group, the "
            "answers to one prompt":
                lambda rewards, group: rewards - rewards.mean(),
            "you take the mean over axis 0, across the prompts; it should be over the answers to "
            "one prompt": _grouped(lambda groups: groups - groups.mean(0, keepdim=True)),
            "you mix the groups with view(group, -1), and take the mean over axis 0; groups lie "
            "one after the other, so it should be view(-1, group) and axis 1":
                _across,
            "you mix the groups with view(group, -1); groups lie one after the other, so it should "
            "be view(-1, group)": _neighbours_apart,
            "you leave out keepdim=True, so the means do not stand beside their rows; they should "
            "have the shape prompts x 1":
                _grouped(lambda groups: groups - groups.mean(1)),
            "you leave the answer itself out of the mean, a usual variant, larger by G / (G - 1); "
            "here the whole group should count":
                _grouped(_others),
            "you subtract the group's sum; it should be the mean":
                _grouped(lambda groups: groups - groups.sum(1, keepdim=True)),
            "you subtract the group's median; it should be the mean":
                _grouped(lambda groups: groups - groups.median(1, keepdim=True).values),
            "you compare with the best answer of the group, so nothing is ever better than "
            "expected; it should be the mean":
                _grouped(lambda groups: groups - groups.amax(1, keepdim=True)),
            "you compare with the worst answer of the group; it should be the mean":
                _grouped(lambda groups: groups - groups.amin(1, keepdim=True)),
            "you divide by the group's mean; it should be subtracted":
                _grouped(lambda groups: groups / groups.mean(1, keepdim=True)),
            "you subtract nothing; it should be the mean of the group":
                lambda rewards, group: rewards.clone(),
            "you return the means; they should be subtracted from the rewards":
                _grouped(lambda groups: groups.mean(1, keepdim=True).expand_as(groups)),
            "your sign is wrong; better than the mean should be positive":
                lambda rewards, group: -advantages(rewards, group),
            "you return prompts x group; it should be flat, one number for each answer":
                lambda rewards, group: advantages(rewards, group).view(-1, group),
            "you divide by the group's variance; it should be the difference alone":
                _grouped(lambda groups: (groups - groups.mean(1, keepdim=True))
                         / groups.var(1, keepdim=True)),
            "you divide by the group's standard deviation with a larger number added; it should "
            "be the difference alone":
                _grouped(lambda groups: (groups - groups.mean(1, keepdim=True))
                         / (groups.std(1, keepdim=True) + 1e-4)),
            "you divide by the size of the group; the difference from the mean should stay as "
            "it is": lambda rewards, group: advantages(rewards, group) / group,
            "you drop the signs; worse than the mean should be negative":
                lambda rewards, group: advantages(rewards, group).abs(),
            "you compare with the first answer of the group; it should be the mean":
                _grouped(lambda groups: groups - groups[:, :1]),
            "you compare with the answer before it; it should be the mean of the group":
                lambda rewards, group: rewards - rewards.roll(1),
            "you repeat the means as a whole, a b a b; each should come `group` times in a run, "
            "a a b b":
                lambda rewards, group: rewards - rewards.view(-1, group).mean(1).repeat(group),
            "you subtract the groups' means from all rewards, and the sizes do not fit; each "
            "group should have its own mean beside it":
                lambda rewards, group: rewards - rewards.view(-1, group).mean(1),
            "you flatten prompts and answers in the wrong order; the result should stand as the "
            "rewards do, group after group":
                lambda rewards, group: advantages(rewards, group).view(-1, group).T.flatten(),
        },
        hints=(
            "Answers of one prompt are neighbours: the first `group` rewards belong together, "
            "then the next ones.",
            "rewards.view(-1, group) has a row for each prompt.",
            "Subtract each row's mean (keepdim=True), and make it flat again. Nothing else.",
        ),
        gradient=False,
    ),
    Check(
        "specialists.clipped", clipped_gain, _gain_cases,
        mistakes={
            "you take the maximum of the two, so that what must be called back gets slope 0; it "
            "should be the minimum":
                _gain(lambda ratio, clamped, A: torch.maximum(ratio * A, clamped * A)),
            "you only clamp, so nothing pushes back where the ratio went the wrong way (a bad "
            "answer has become likelier); it should be the minimum of this and ratio A":
                _gain(lambda ratio, clamped, A: clamped * A),
            "you bound the ratio from above for bad answers too; a good answer should be bounded "
            "from above, a bad one from below":
                _gain(lambda ratio, clamped, A: torch.minimum(ratio, clamped) * A),
            "you bound the ratio from below for all answers; a good answer should be bounded from "
            "above, a bad one from below":
                _gain(lambda ratio, clamped, A: torch.maximum(ratio, clamped) * A),
            "you clip good answers only; bad ones should be bounded from below":
                _gain(lambda ratio, clamped, A: torch.where(A > 0, torch.minimum(ratio, clamped),
                                                            ratio) * A),
            "you clamp good answers and leave bad ones alone; it should be the minimum of ratio A "
            "and clamped ratio A for both":
                _gain(lambda ratio, clamped, A: torch.where(A > 0, clamped, ratio) * A),
            "you leave A out of the clamped part; it should be the clamped ratio times A":
                _gain(lambda ratio, clamped, A: torch.minimum(ratio * A, clamped)),
            "you leave A out of the first part; it should be the ratio times A":
                _gain(lambda ratio, clamped, A: torch.minimum(ratio, clamped * A)),
            "you leave A out; both parts should be multiplied by it":
                _gain(lambda ratio, clamped, A: torch.minimum(ratio, clamped)),
            "you clamp the product ratio A; it should be the ratio that is clamped":
                lambda ratio, A, clip: torch.minimum(
                    ratio * A[:, None], (ratio * A[:, None]).clamp(1 - clip, 1 + clip)),
            "you clip nothing; it should be the minimum of ratio A and clamped ratio A":
                _gain(lambda ratio, clamped, A: ratio * A),
            "you return the loss; it should be the gain, which is to be made large":
                lambda *args: -clipped_gain(*args),
            "your lower bound is 1 / (1 + clip); it should be 1 - clip":
                _gain(_least, low=lambda clip: 1 / (1 + clip)),
            "your bounds are -clip and clip; the ratio is near 1, so they should be 1 - clip and 1 "
            "+ clip":
                _gain(_least, low=lambda clip: -clip, high=lambda clip: clip),
            "you always clip at 0.2; it should be the argument `clip`":
                _gain(_least, low=lambda clip: 0.8, high=lambda clip: 1.2),
            "you return the mean; it should be one number for each token":
                lambda *args: clipped_gain(*args).mean(),
            "you return the mean of each answer; it should be one number for each token":
                lambda *args: clipped_gain(*args).mean(1),
            "you multiply B R with B; A needs a second axis, so that it should be B 1": _by_token,
            "you clip bad answers only; good ones should be bounded from above":
                _gain(_least, high=lambda clip: None),
            "your upper bound is 1; it should be 1 + clip": _gain(_least, high=lambda clip: 1),
            "your lower bound is 1; it should be 1 - clip": _gain(_least, low=lambda clip: 1),
            "you take the exponential of the ratio; it is a quotient of probabilities already":
                lambda ratio, A, clip: clipped_gain(ratio.exp(), A, clip),
            "you take the logarithm of the ratio; it should be the ratio itself":
                lambda ratio, A, clip: clipped_gain(ratio.log(), A, clip),
            "you drop the sign of A; bad answers should have a negative gain":
                lambda ratio, A, clip: clipped_gain(ratio, A.abs(), clip),
            "you return minus the maximum; it should be the minimum, without a minus":
                _gain(lambda ratio, clamped, A: -torch.maximum(ratio * A, clamped * A)),
            "you set tokens outside the bounds to 0; it should be the minimum of ratio A and "
            "clamped ratio A": _gain(lambda ratio, clamped, A: ratio * A * (ratio == clamped)),
            "you return the sum; it should be one number for each token":
                lambda *args: clipped_gain(*args).sum(),
            "you return the smallest of all; it should be one number for each token":
                lambda *args: clipped_gain(*args).min(),
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
            "you leave out the ratio pi / pi_old; the tokens came from pi_old, and the gradient "
            "should be that of this divergence":
                _kl(ratio=_one),
            "your values are right, but you detach the ratio; the gradient should flow through it "
            "too":
                _kl(ratio=lambda p, o, f: (p - o).exp().detach()),
            "your values are right, but you detach r; the gradient should flow through it too":
                _kl(log_r=lambda p, o, f: (f - p).detach()),
            "your values are right, but everything is detached; the gradient should flow through "
            "ratio and r": with_gradient(lambda p, o, f: kl_estimate(p, o, f).detach()),
            "you take the ratio upside down; it should be pi / pi_old":
                _kl(ratio=lambda p, o, f: (o - p).exp()),
            "your ratio is log(pi / pi_old); it should be the quotient itself, exp of that":
                _kl(ratio=lambda p, o, f: p - o),
            "your ratio is the quotient of the logarithms; it should be exp(logprobs - old)":
                _kl(ratio=lambda p, o, f: p / o),
            "you take r upside down; it should be pi_ref / pi, so log r = reference - logprobs":
                _kl(log_r=lambda p, o, f: p - f),
            "your r compares pi_ref with pi_old; it should be pi_ref / pi":
                _kl(log_r=lambda p, o, f: f - o),
            "both quotients are upside down; they should be pi / pi_old and pi_ref / pi":
                _kl(ratio=lambda p, o, f: (o - p).exp(), log_r=lambda p, o, f: p - f),
            "you leave out the ratio and take r upside down; it should be pi / pi_old times the "
            "estimate with r = pi_ref / pi": _kl(ratio=_one, log_r=lambda p, o, f: p - f),
            "you add log r; it should be r - log r - 1, which is never negative":
                _kl(body=lambda s: s.exp() + s - 1),
            "you leave out the - 1; where policy and reference agree the estimate should be 0":
                _kl(body=lambda s: s.exp() - s),
            "you add 1; it should be r - log r - 1": _kl(body=lambda s: s.exp() - s + 1),
            "you take log r for r; it should be exp(log r) - log r - 1":
                _kl(body=lambda s: s - s.abs().log() - 1),
            "your sign is wrong; the estimate should never be negative":
                _kl(body=lambda s: 1 + s - s.exp()),
            "you take k1, -log r, with the ratio, which varies more and can be negative; it should "
            "be r - log r - 1":
                _kl(body=lambda s: -s),
            "you take k1, log(pi / pi_ref), which is useless as a loss; it should be ratio (r - "
            "log r - 1)": _kl(ratio=_one, body=lambda s: -s),
            "you take k2, half the square of log r, with the ratio; it should be r - log r - 1":
                _kl(body=lambda s: s.square() / 2),
            "you take k2, half the square of log r; it should be ratio (r - log r - 1)":
                _kl(ratio=_one, body=lambda s: s.square() / 2),
            "you multiply only r with the ratio; it should be the whole estimate":
                with_gradient(lambda p, o, f: (p - o).exp() * (f - p).exp() - (f - p) - 1),
            "you return the mean; it should be one number for each token":
                with_gradient(lambda p, o, f: kl_estimate(p, o, f).mean()),
            "you divide logarithms in both quotients, as if they were probabilities; a quotient "
            "should be exp of a difference of logs":
                with_gradient(lambda p, o, f: p / o * (f / p - (f / p).log() - 1)),
            "you divide logarithms for r, as if they were probabilities; r should be "
            "exp(reference - logprobs)":
                with_gradient(lambda p, o, f: (p - o).exp() * (f / p - (f / p).log() - 1)),
            "you divide logarithms for r and leave out the ratio; r should be exp(reference - "
            "logprobs), and the ratio exp(logprobs - old)":
                with_gradient(lambda p, o, f: f / p - (f / p).log() - 1),
            "you leave out exp, so that r and log r cancel; it should be exp(log r) - log r - 1":
                _kl(body=lambda s: s - s - 1),
            "your ratio compares pi_ref with pi_old; it should be pi / pi_old":
                _kl(ratio=lambda p, o, f: (f - o).exp()),
            "you exchange pi_old and pi_ref; it should be pi / pi_old for the ratio and r = "
            "pi_ref / pi": _kl(ratio=lambda p, o, f: (p - f).exp(), log_r=lambda p, o, f: o - p),
            "your r compares pi_old with pi; it should be pi_ref / pi":
                _kl(log_r=lambda p, o, f: o - p),
            "you clip the ratio; here it should stay as it is":
                _kl(ratio=lambda p, o, f: (p - o).exp().clamp(0.8, 1.2)),
            "you take the logarithm with base 2; it should be the natural one":
                _kl(body=lambda s: s.exp() - s / math.log(2) - 1),
            "you add the ratio; the estimate should be multiplied with it":
                with_gradient(lambda p, o, f: (p - o).exp() + (f - p).exp() - (f - p) - 1),
            "you weigh with the probability pi; tokens are sampled already, so it should be the "
            "ratio": _kl(ratio=lambda p, o, f: p.exp()),
            "you compute the terms of the KL, pi log(pi / pi_ref); it should be ratio (r - log "
            "r - 1)": _kl(ratio=lambda p, o, f: p.exp(), body=lambda s: -s),
            "your values are right, but you detach the ratio and r; the gradient should flow "
            "through both":
                with_gradient(lambda p, o, f: (p - o).exp().detach() * (
                    (f - p).exp().detach() - (f - p) - 1)),
            "your values are right, but you detach r in its first place; the gradient should "
            "flow through it there too": _kl(body=lambda s: s.exp().detach() - s - 1),
            "you return the sum; it should be one number for each token":
                with_gradient(lambda p, o, f: kl_estimate(p, o, f).sum()),
            "you return the mean of each answer; it should be one number for each token":
                with_gradient(lambda p, o, f: kl_estimate(p, o, f).mean(-1)),
        },
        hints=(
            "Two quotients: ratio = pi / pi_old says how much likelier a token is now; r = pi_ref "
            "/ pi looks at the reference.",
            "You have logs: log r = reference - logprobs, and r = exp(log r).",
            "ratio * (r - log r - 1), nothing detached. Where all three agree it is 0.",
        ),
        gradient=False,
    ),
    Check(
        "specialists.kept", kept, _kept_cases,
        mistakes={
            "you leave good answers out too; it should be only those with A < 0":
                _kept(when=_always),
            "you leave good answers out and keep bad ones; it should be the other way round":
                _kept(when=lambda A: A > 0),
            "you leave answers with A = 0 out; it should be only those with A < 0":
                _kept(when=lambda A: A <= 0),
            "you leave out every bad answer; it should be only those that have drifted too far":
                _kept(out=lambda bad, drift, bound: bad),
            "you leave out what is bad OR has drifted too far; it should be both together":
                _kept(out=lambda bad, drift, bound: bad | (drift > bound)),
            "you return 1 for the answers that are left out; it should be 0 for them":
                lambda *args: 1 - kept(*args),
            "you compare with >=; an answer whose drift equals the bound should stay":
                _kept(out=lambda bad, drift, bound: bad & (drift >= bound)),
            "you leave out what has drifted less than the bound; it should be what exceeds it":
                _kept(out=lambda bad, drift, bound: bad & (drift < bound)),
            "you take the quotient upside down; an answer that has become less likely should go, "
            "log(pi_old / pi) > bound":
                _kept(drift=lambda p, o, m: -_mean_drift(p, o, m)),
            "you take the sum over the tokens, so long answers always go; it should be the mean":
                _kept(drift=lambda p, o, m: ((o - p) * m).sum(1)),
            "you count padding; the mean should be over the tokens that are there, by `mask`":
                _kept(drift=lambda p, o, m: (o - p).mean(1)),
            "you zero the padding but divide by all positions; it should be the number of tokens "
            "that are there":
                _kept(drift=lambda p, o, m: ((o - p) * m).mean(1)),
            "you zero nothing in the sum and divide by the number of tokens; padding should not be "
            "in the sum": _kept(drift=lambda p, o, m: (o - p).sum(1) / m.sum(1)),
            "you leave out any change, in either direction; it should be only answers that have "
            "become less likely":
                _kept(drift=lambda p, o, m: _mean_drift(p, o, m).abs()),
            "you take the largest drift of a token; it should be the mean over the tokens":
                _kept(drift=_any_token),
            "you compare the quotient pi_old / pi with the bound; it should be its logarithm":
                _kept(drift=lambda p, o, m: ((o - p).exp() * m).sum(1) / m.sum(1)),
            "you take the mean over all answers; it should be one for each answer":
                _kept(drift=lambda p, o, m: ((o - p) * m).sum() / m.sum()),
            "you decide token by token; a whole answer should stay or go": _per_token,
            "you return True and False; it should be 1.0 and 0.0": lambda *args: kept(*args).bool(),
            "you square the differences of the logs, so answers that became likelier go too; it "
            "should be log(pi_old / pi) itself":
                _kept(drift=lambda p, o, m: ((o - p).square() * m).sum(1) / m.sum(1)),
            "you compare the drift with -bound; it should exceed +bound":
                _kept(out=lambda bad, drift, bound: bad & (drift > -bound)),
            "you compare the quotient pi_old / pi with 1 + bound; it should be its logarithm, "
            "with the bound": _kept(out=lambda bad, drift, bound: bad & (drift.exp() > 1 + bound)),
            "you compare the quotient pi / pi_old with the bound; it should be log(pi_old / pi) "
            "> bound": _kept(out=lambda bad, drift, bound: bad & ((-drift).exp() < bound)),
            "you take differences of probabilities; it should be those of their logarithms":
                _kept(drift=lambda p, o, m: ((o.exp() - p.exp()) * m).sum(1) / m.sum(1)),
            "you multiply with A; it should be 1 or 0 for each answer":
                lambda p, o, A, *rest: A * kept(p, o, A, *rest),
            "you return one number for each token; it should be one for each answer":
                lambda p, o, A, mask, bound: kept(p, o, A, mask, bound)[:, None] * mask,
            "you return whole numbers; it should be 1.0 and 0.0, floats":
                lambda *args: kept(*args).int(),
        },
        hints=(
            "For each answer one number: the mean over its tokens of old - logprobs. Positive: it "
            "has become less likely.",
            "The mean with a mask: ((old - logprobs) * mask).sum(1) / mask.sum(1).",
            "0.0 where (A < 0) & (drift > bound), else 1.0.",
        ),
        gradient=False,
    ),
    Check(
        "specialists.pass_at_k", _for_all(pass_at_k), _pass_cases,
        mistakes={
            "you sample with replacement, 1 - (1 - c / n)^k, which is too low; the k answers "
            "should be different ones":
                _for_all(lambda n, c, k: 1 - (1 - c / n) ** k),
            "you compute pass@1, the share of right answers; it should be that at least one of k "
            "is right": _for_all(lambda n, c, k: c / n),
            "you compute the probability that all k are right; one should be enough":
                _for_all(lambda n, c, k: comb(c, k) / comb(n, k)),
            "you compute the probability that none of the k is right; it should be 1 minus that":
                _for_all(lambda n, c, k: comb(n - c, k) / comb(n, k)),
            "you take 1 minus the probability that all k are right; it should be 1 minus that all "
            "k are wrong":
                _for_all(lambda n, c, k: 1 - comb(c, k) / comb(n, k)),
            "you compute the probability that exactly one is right; it should be at least one":
                _for_all(lambda n, c, k: c * comb(n - c, k - 1) / comb(n, k)),
            "you add up probabilities, k c / n; events that can happen together do not add, so it "
            "should be 1 minus that all are wrong":
                _for_all(lambda n, c, k: min(1.0, k * c / n)),
            "you add up probabilities, and reach values above 1; it should be 1 minus that all are "
            "wrong": _for_all(lambda n, c, k: k * c / n),
            "you get 1 wherever an answer is right, as // does, which cuts; it should be a "
            "probability, by /":
                _for_all(lambda n, c, k: 1 - comb(n - c, k) // comb(n, k)),
            "you exchange n - c and n; it should be 1 - (n - c over k) / (n over k)":
                _for_all(lambda n, c, k: 1 - comb(n, k) / comb(n - c, k)),
            "you return 0 where fewer than k answers are wrong; one of k is right there for "
            "sure, so it should be 1":
                _for_all(lambda n, c, k: 0.0 if n - c < k else pass_at_k(n, c, k)),
            "you return 1 where exactly k answers are wrong; all k can be wrong then, so only "
            "fewer than k should give 1":
                _for_all(lambda n, c, k: 1.0 if n - c <= k else pass_at_k(n, c, k)),
            "you return 0 where exactly k answers are wrong, or fewer; fewer should give 1, and "
            "exactly k the formula":
                _for_all(lambda n, c, k: 0.0 if n - c <= k else pass_at_k(n, c, k)),
            "you return 0 where fewer than k answers are right; one right answer should be "
            "enough": _for_all(lambda n, c, k: 0.0 if c < k else pass_at_k(n, c, k)),
            "you return 1 where at least k answers are right; it should be so only where fewer "
            "than k are wrong": _for_all(lambda n, c, k: 1.0 if c >= k else pass_at_k(n, c, k)),
            "you take factorials of negative numbers where fewer than k answers are wrong; "
            "there it should be 1": _by_factorials,
            "you divide by n in each factor; after each answer one less is left, so it should "
            "be n, n - 1, n - 2, ...":
                _for_all(lambda n, c, k: 1 - math.prod((n - c - i) / n for i in range(k))),
            "you leave out the last factor; it should be k factors, (n - c - i) / (n - i) for i "
            "from 0 to k - 1":
                _for_all(lambda n, c, k: 1 - math.prod(
                    (n - c - i) / (n - i) for i in range(k - 1))),
            "you sample with replacement, and compute that all k are wrong; it should be 1 "
            "minus that, with different answers": _for_all(lambda n, c, k: (1 - c / n) ** k),
            "you sample with replacement, and compute that all k are right; it should be at "
            "least one of k different answers": _for_all(lambda n, c, k: (c / n) ** k),
            "you choose from n - k; it should be k from the n - c wrong answers":
                _for_all(lambda n, c, k: 1 - comb(n - k, c) / comb(n, k)),
            "you count orders above the line and choices below; both should be choices":
                _for_all(lambda n, c, k: 1 - math.perm(n - c, k) / comb(n, k)),
            "you exchange k and c and sample with replacement, 1 - (1 - k / n)^c; it should be "
            "1 minus the probability that all k are wrong":
                _for_all(lambda n, c, k: 1 - (1 - k / n) ** c),
        },
        hints=(
            "Ask for the opposite: how likely is it that all k are wrong?",
            "Ways to choose k of the n - c wrong answers, divided by ways to choose k of all n.",
            "math.comb(a, k) is 0 where k > a: then at least one is right for sure.",
        ),
        atol=1e-9, gradient=False,
    ),
]
