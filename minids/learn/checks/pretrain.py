"""Checks of lesson 10: the schedule, the loss of a step, and what a loss is measured in (V4 report,
section 4.2)."""

import math

import torch
import torch.nn.functional as F

from minids.learn.exercise import Check

LESSON = "10_pretraining"


# ---- the schedule ----

def learning_rate(step, steps, peak, warmup):
    """A straight rise over `warmup` steps to `peak`, then a cosine to a tenth of it.

    Steps count from 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))


def _cosine_to(floor):
    def wrong(step, steps, peak, warmup):
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(steps - warmup, 1)
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    return wrong


def _from_zero(step, steps, peak, warmup):
    return peak * step / warmup if step < warmup else learning_rate(step, steps, peak, warmup)


def _no_warmup(step, steps, peak, warmup):
    return learning_rate(max(step, warmup), steps, peak, warmup)


def _warmup_counted(step, steps, peak, warmup):
    return learning_rate(step, steps, peak, warmup if step < warmup else 0)


def _straight(step, steps, peak, warmup):
    if step < warmup:
        return learning_rate(step, steps, peak, warmup)
    return peak * (1 - 0.9 * (step - warmup) / (steps - warmup))


def _factor(step, steps, peak, warmup):
    return learning_rate(step, steps, 1.0, warmup)


def _schedule_cases(rng):
    a, b = (float(v) for v in torch.rand(2, generator=rng) * 3e-3 + 1e-3)
    yield "the first step", (0, 100, a, 10)
    for step in (4, 9):
        yield "in the warm-up", (step, 100, a, 10)
    yield "right after the warm-up", (10, 100, a, 10)
    for step in (31, 55, 84, 99):
        yield "on the cosine", (step, 100, b, 10)
    yield "another length", (700, 1000, b, 50)


# ---- the loss of a step ----

def total_loss(logits, mtp_logits, ids, weight):
    """The weighted sum of next-token loss and MTP loss, and these two.

    logits: B T V; mtp_logits: B T-1 V; ids: B T+1.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    mtp = F.cross_entropy(mtp_logits.flatten(0, 1), ids[:, 2:].flatten())
    return loss + weight * mtp, loss, mtp


def _with_targets(first, second):
    def wrong(logits, mtp_logits, ids, weight):
        loss = F.cross_entropy(logits.flatten(0, 1), first(ids).flatten())
        mtp = F.cross_entropy(mtp_logits.flatten(0, 1), second(ids).flatten())
        return loss + weight * mtp, loss, mtp
    return wrong


def _sum_with(mix):
    def wrong(logits, mtp_logits, ids, weight):
        _, loss, mtp = total_loss(logits, mtp_logits, ids, weight)
        return mix(loss, mtp, weight), loss, mtp
    return wrong


def _summed(logits, mtp_logits, ids, weight):
    _, loss, mtp = total_loss(logits, mtp_logits, ids, weight)
    loss, mtp = loss * ids[:, 1:].numel(), mtp * ids[:, 2:].numel()
    return loss + weight * mtp, loss, mtp


def _total_cases(rng):
    for label, B, T, weight in (("one sequence", 1, 4, 0.3), ("a batch", 3, 7, 0.3),
                                ("another weight", 2, 5, 0.1)):
        logits = torch.randn(B, T, 11, generator=rng) * 2
        mtp_logits = torch.randn(B, T - 1, 11, generator=rng) * 2
        yield label, (logits, mtp_logits, torch.randint(11, (B, T + 1), generator=rng), weight)


# ---- a loss with padding ----

def masked_loss(logits, ids, pad):
    """Mean next-token loss over the targets that are no padding.

    logits: B T V, from ids: B T. Position t predicts ids[t+1].
    """
    targets = ids[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")    # B T-1
    return losses[targets != pad].mean()


def _masked(shift=True, keep_pad=False, reduce="tokens"):
    def wrong(logits, ids, pad):
        guesses, targets = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
        losses = F.cross_entropy(guesses.transpose(1, 2), targets, reduction="none")
        mask = torch.ones_like(targets, dtype=torch.bool) if keep_pad else targets != pad
        if reduce == "rows":
            return ((losses * mask).sum(1) / mask.sum(1)).mean()
        total = (losses * mask).sum()
        numbers = {"tokens": mask.sum(), "sum": 1, "all": mask.numel(), "batch": len(ids)}
        return total / numbers[reduce]
    return wrong


def _backwards(logits, ids, pad):
    return masked_loss(logits.flip(1), ids.flip(1), pad)


def _input_mask(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses[ids[:, :-1] != pad].mean()


def _masked_cases(rng):
    pad = 2

    def rows(lengths, T):
        ids = torch.randint(3, 11, (len(lengths), T), generator=rng)
        for row, n in zip(ids, lengths):
            row[n:] = pad
        return torch.randn(len(lengths), T, 11, generator=rng) * 2, ids, pad

    yield "no padding", rows((6, 6), 6)
    yield "some padding", rows((6, 3), 6)
    yield "rows of very different lengths", rows((9, 2, 5), 9)


# ---- units ----

def bits_per_byte(nats_per_token, n_tokens, n_bytes):
    """Mean loss in nats per token, over n_tokens that spell n_bytes, in bits per byte."""
    return nats_per_token * n_tokens / (math.log(2) * n_bytes)


def _unit_cases(rng):
    for label, tokens, size in (("short text", 137, 391), ("long text", 128_770, 318_701)):
        yield label, (float(torch.rand(1, generator=rng)) * 4 + 1, tokens, size)


# ---- when a run beats a baseline ----

def tokens_to_beat(tokens, losses, baseline):
    """Tokens read when the line through (tokens, losses) first reaches `baseline`, or inf."""
    for i, loss in enumerate(losses):
        if loss <= baseline:
            if i == 0:
                return float(tokens[0])
            share = (losses[i - 1] - baseline) / (losses[i - 1] - loss)
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return math.inf


def _first_point(tokens, losses, baseline):
    return next((float(t) for t, loss in zip(tokens, losses) if loss <= baseline), math.inf)


def _last_above(tokens, losses, baseline):
    above = [i for i, loss in enumerate(losses) if loss > baseline]
    if not above or above[-1] + 1 == len(losses):
        return float(tokens[0]) if not above else math.inf
    i = above[-1] + 1
    return tokens_to_beat(tokens[i - 1 :], losses[i - 1 :], baseline)


def _never(value):
    def wrong(tokens, losses, baseline):
        first = tokens_to_beat(tokens, losses, baseline)
        return float(value(tokens)) if first == math.inf else first
    return wrong


def _which(tokens, losses, baseline):
    first = _first_point(tokens, losses, baseline)
    return list(map(float, tokens)).index(first) if first != math.inf else first


def _other_share(tokens, losses, baseline):
    for i in range(1, len(losses)):
        if losses[i] <= baseline:
            share = (baseline - losses[i]) / (losses[i - 1] - losses[i])
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return math.inf


def _beat_cases(rng):
    def run(n):
        tokens = (torch.rand(n, generator=rng) + 0.5).cumsum(0) * 1000
        losses = [7 - 0.8 * i + 0.3 * float(torch.rand(1, generator=rng)) for i in range(n)]
        return [float(t) for t in tokens], losses

    tokens, losses = run(4)
    yield "it falls below in the middle", (tokens, losses, 0.7 * losses[2] + 0.3 * losses[3])
    tokens, losses = run(6)
    yield "it falls below early", (tokens, losses, 0.4 * losses[0] + 0.6 * losses[1])
    tokens, losses = run(5)
    yield "it never falls below", (tokens, losses, losses[-1] - 0.5)
    tokens, losses = run(6)
    losses[3], baseline = losses[1] + 0.2, 0.5 * (losses[1] + losses[2])
    yield "it falls below, rises, and falls below again", (tokens, losses, baseline)


CHECKS = [
    Check(
        "pretrain.learning_rate", learning_rate, _schedule_cases,
        mistakes={
            "the first step has a rate of zero: steps count from 0, so the warm-up is (step + 1) "
            "/ warmup": _from_zero,
            "there is no warm-up: below `warmup` the rate rises in a straight line": _no_warmup,
            "the cosine starts at step 0; it starts where the warm-up ends: (step - warmup) / "
            "(steps - warmup)":
                _warmup_counted,
            "the cosine ends at zero; here it ends at a tenth of the peak": _cosine_to(0.0),
            "the decay is a straight line; it is half a period of a cosine": _straight,
            "`peak` is not used: the result is a share of the peak, not a rate": _factor,
        },
        hints=(
            "Two cases: below `warmup` a straight line that reaches `peak` at step warmup - 1, "
            "and after it the cosine.",
            "done = (step - warmup) / (steps - warmup) goes from 0 to 1; cos(pi * done) from 1 to "
            "-1.",
            "Map 1 to `peak` and -1 to peak / 10: the middle is 0.55 * peak, and half the "
            "distance is 0.45 * peak.",
        ),
        atol=1e-9,
    ),
    Check(
        "pretrain.total_loss", total_loss, _total_cases,
        mistakes={
            "the targets are not shifted: the logits at t are compared with token t, which the "
            "model has seen":
                _with_targets(lambda ids: ids[:, :-1], lambda ids: ids[:, 2:]),
            "the MTP targets are those of the next token: from t the MTP block predicts token t + "
            "2":
                _with_targets(lambda ids: ids[:, 1:], lambda ids: ids[:, 1:-1]),
            "the MTP targets are tokens that the model has seen: from t the MTP block predicts "
            "token t + 2":
                _with_targets(lambda ids: ids[:, 1:], lambda ids: ids[:, :-2]),
            "both targets are one token too early: t + 1 for the logits, t + 2 for MTP":
                _with_targets(lambda ids: ids[:, :-1], lambda ids: ids[:, 1:-1]),
            "the weight of the MTP loss is missing in the sum":
                _sum_with(lambda loss, mtp, weight: loss + mtp),
            "the weight is on the next-token loss; it belongs to the MTP loss":
                _sum_with(lambda loss, mtp, weight: weight * loss + mtp),
            "the two are averaged with weight and 1 - weight; the next-token loss keeps its full "
            "weight":
                _sum_with(lambda loss, mtp, weight: (1 - weight) * loss + weight * mtp),
            "the MTP loss is missing in the sum": _sum_with(lambda loss, mtp, weight: loss),
            "the losses are sums over tokens; a loss is a mean": _summed,
        },
        hints=(
            "Column 0 of ids is input only. The logits at t are for column t + 1, the MTP logits "
            "at t for column t + 2.",
            "ids[:, 1:] has T columns, as the logits have; ids[:, 2:] has T - 1, as the MTP "
            "logits have.",
            "torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) is the "
            "mean over all tokens.",
        ),
    ),
    Check(
        "pretrain.masked_loss", masked_loss, _masked_cases,
        mistakes={
            "the targets are not shifted: the model predicts the token that it has just read":
                _masked(shift=False),
            "not shifted, and padding is counted": _masked(shift=False, keep_pad=True),
            "the shift goes the wrong way: position t predicts token t + 1, not t - 1": _backwards,
            "padding is counted as a target": _masked(keep_pad=True),
            "the mask looks at the inputs; what counts is whether the target is padding":
                _input_mask,
            "this is the mean of the rows' means: a short row's tokens count more than a long "
            "one's": _masked(reduce="rows"),
            "this is a sum; divide by the number of targets that count": _masked(reduce="sum"),
            "padding is left out of the sum, yet counted in what it is divided by":
                _masked(reduce="all"),
            "the sum is divided by the number of rows; divide by the number of targets that count":
                _masked(reduce="batch"),
        },
        hints=(
            "Three questions: which token is each position compared with? Which targets count? "
            "What is the sum divided by?",
            "logits[:, :-1] against ids[:, 1:]; the last position has no target here.",
            "cross_entropy(..., reduction='none') gives one loss a token; keep those where the "
            "target is not pad, then mean.",
        ),
    ),
    Check(
        "pretrain.bits_per_byte", bits_per_byte, _unit_cases,
        mistakes={
            "these are nats per byte: divide by log(2), as a bit is log(2) nats":
                lambda x, t, b: x * t / b,
            "these are bits per token: the number of tokens and bytes is not used":
                lambda x, t, b: x / math.log(2),
            "a nat is more than a bit, 1 / log(2) bits: divide by log(2) where you multiply":
                lambda x, t, b: x * t / b * math.log(2),
            "tokens and bytes are swapped: total loss is per token times tokens, then divide by "
            "bytes":
                lambda x, t, b: x * b / t / math.log(2),
        },
        hints=(
            "Two steps: the loss of the whole text in nats, then the same in bits, for one byte.",
            "The whole text costs nats_per_token * n_tokens nats. Its bytes share that.",
            "A nat is 1 / log(2) = 1.443 bits.",
        ),
    ),
    Check(
        "pretrain.tokens_to_beat", tokens_to_beat, _beat_cases,
        mistakes={
            "this is the first measured point below the baseline; the line crosses it between two "
            "points": _first_point,
            "this is the number of the point; return the tokens read at it": _which,
            "the share is counted from the wrong end of the line between two points": _other_share,
            "this is the last time it falls below; return the first": _last_above,
            "where the baseline is never beaten, return math.inf, not the last point":
                _never(lambda tokens: tokens[-1]),
            "where the baseline is never beaten, return math.inf, not -1":
                _never(lambda tokens: -1),
            "where the baseline is never beaten, return math.inf, not 0": _never(lambda tokens: 0),
        },
        hints=(
            "Walk along the points until the loss is at or below the baseline.",
            "Between point i - 1 and i the loss falls in a straight line: which share of the way "
            "reaches the baseline?",
            "share = (losses[i-1] - baseline) / (losses[i-1] - losses[i]), and the tokens go the "
            "same share of their way.",
        ),
    ),
]
