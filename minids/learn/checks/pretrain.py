"""Checks of lesson 10: the schedule, the loss of a step, and what a loss is measured in (V4 report,
section 4.2)."""

import math

import numpy as np
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


def _schedule(rise=lambda s, w: (s + 1) / w, shape=lambda d: 0.55 + 0.45 * math.cos(math.pi * d),
              done=lambda s, n, w: (s - w) / (n - w), rising=lambda s, w: s < w):
    """A version with another rise, shape of the decay, share of it that is done, or border."""
    def wrong(step, steps, peak, warmup):
        if rising(step, warmup):
            return peak * rise(step, warmup)
        return peak * shape(done(step, steps, warmup))
    return wrong


def _times(factor):
    return lambda step, steps, peak, warmup: factor(peak) * learning_rate(step, steps, 1.0, warmup)


def _to_a_tenth_itself(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / warmup
    share = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
    return 0.1 + (peak - 0.1) * share


def _schedule_cases(rng):
    a, b = (float(v) for v in torch.rand(2, generator=rng) * 3e-3 + 1e-3)
    yield "the first step", (0, 100, a, 10)
    for step in (4, 9):
        yield "in the warm-up", (step, 100, a, 10)
    yield "right after the warm-up", (10, 100, a, 10)
    for step in (31, 55, 84, 99):
        yield "on the cosine", (step, 100, b, 10)
    yield "the end, step `steps`", (100, 100, b, 10)
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


def _scaled(scale):
    """Both losses times scale(targets), where targets are the ids that they compare with."""
    def wrong(logits, mtp_logits, ids, weight):
        _, loss, mtp = total_loss(logits, mtp_logits, ids, weight)
        loss, mtp = loss * scale(ids[:, 1:]), mtp * scale(ids[:, 2:])
        return loss + weight * mtp, loss, mtp
    return wrong


def _softmax_first(logits, mtp_logits, ids, weight):
    return total_loss(logits.softmax(-1), mtp_logits.softmax(-1), ids, weight)


def _no_log(logits, mtp_logits, ids, weight):
    def loss_of(scores, targets):
        return F.nll_loss(scores.flatten(0, 1), targets.flatten())
    loss, mtp = loss_of(logits, ids[:, 1:]), loss_of(mtp_logits, ids[:, 2:])
    return loss + weight * mtp, loss, mtp


def _mtp_from_logits(logits, mtp_logits, ids, weight):
    return total_loss(logits, logits[:, :-1], ids, weight)


def _with_parts(first, second):
    """A version from (logits, targets) of both losses, chosen by first and second."""
    def wrong(logits, mtp_logits, ids, weight):
        losses = [F.cross_entropy(scores.flatten(0, 1), targets.flatten())
                  for scores, targets in (first(logits, ids), second(mtp_logits, ids))]
        return losses[0] + weight * losses[1], *losses
    return wrong


def _main(logits, ids):
    return logits, ids[:, 1:]


def _mtp(logits, ids):
    return logits, ids[:, 2:]


def _axes_as_they_are(logits, mtp_logits, ids, weight):
    loss, mtp = F.cross_entropy(logits, ids[:, 1:]), F.cross_entropy(mtp_logits, ids[:, 2:])
    return loss + weight * mtp, loss, mtp


def _one_divisor(logits, mtp_logits, ids, weight):
    _, loss, mtp = total_loss(logits, mtp_logits, ids, weight)
    mtp = mtp * ids[:, 2:].numel() / ids[:, 1:].numel()
    return loss + weight * mtp, loss, mtp


def _roles_exchanged(logits, mtp_logits, ids, weight):
    _, loss, mtp = total_loss(logits, mtp_logits, ids, weight)
    return mtp + weight * loss, mtp, loss


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


def _masked(shift=True, keep=lambda targets, pad: targets != pad, reduce="tokens"):
    """A version that keeps the targets that `keep` says. `reduce` says what it divides by."""
    def wrong(logits, ids, pad):
        guesses, targets = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
        losses = F.cross_entropy(guesses.transpose(1, 2), targets, reduction="none")
        mask = keep(targets, pad)
        if reduce == "rows":
            return ((losses * mask).sum(1) / mask.sum(1)).mean()
        total = (losses * mask).sum()
        numbers = {"tokens": mask.sum(), "sum": 1, "all": mask.numel(), "batch": len(ids),
                   "inputs": (ids != pad).sum()}
        return total / numbers[reduce]
    return wrong


def _everything(targets, pad):
    return torch.ones_like(targets, dtype=torch.bool)


def _backwards(logits, ids, pad):
    return masked_loss(logits.flip(1), ids.flip(1), pad)


def _input_mask(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses[ids[:, :-1] != pad].mean()


def _masked_by(losses, keep=lambda ids, pad: ids[:, 1:] != pad,
               divisor=lambda ids, kept, pad: kept.sum()):
    """A version with other losses(logits, ids), B T-1, others that it keeps, and divisor."""
    def wrong(logits, ids, pad):
        kept = keep(ids, pad)
        return (losses(logits, ids) * kept).sum() / divisor(ids, kept, pad)
    return wrong


def _next_losses(logits, ids):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def _same_losses(logits, ids):
    return F.cross_entropy(logits[:, 1:].transpose(1, 2), ids[:, 1:], reduction="none")


def _losses_just_read(logits, ids):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, :-1], reduction="none")


def _minus_probability(logits, ids):
    return -logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def _two_ahead(logits, ids, pad):
    losses = F.cross_entropy(logits[:, :-2].transpose(1, 2), ids[:, 2:], reduction="none")
    return losses[ids[:, 2:] != pad].mean()


def _zeroed_logits(logits, ids, pad):
    logits = logits * (ids != pad)[..., None]
    return _next_losses(logits, ids).mean()


def _pad_forbidden(logits, ids, pad):
    logits = logits.index_fill(2, torch.tensor([pad]), -1e9)
    return masked_loss(logits, ids, pad)


def _masked_cases(rng):
    def rows(lengths, T, pad):
        ids = torch.randint(0, 10, (len(lengths), T), generator=rng)
        ids += ids >= pad                       # every id from 0 to 10 but pad
        for row, n in zip(ids, lengths):
            row[n:] = pad
        return torch.randn(len(lengths), T, 11, generator=rng) * 2, ids, pad

    yield "no padding", rows((6, 6), 6, 2)
    yield "some padding", rows((6, 3), 6, 2)
    yield "another padding token, 7", rows((6, 4), 6, 7)
    yield "padding is token 0, rows of very different lengths", rows((9, 2, 5), 9, 0)
    logits, ids, pad = rows((7, 7), 7, 3)
    ids[0, :3] = pad
    yield "padding in front", (logits, ids, pad)


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
    return _beat(tokens, losses, baseline)


def _beat(tokens, losses, baseline, reached=lambda loss, baseline: loss <= baseline,
          first=lambda tokens, losses, baseline: float(tokens[0]), start=0,
          share=lambda high, low, baseline: (high - baseline) / (high - low),
          point=lambda before, after, share: before + share * (after - before),
          never=lambda tokens: math.inf):
    """`tokens_to_beat`; the arguments after `baseline` make mistakes."""
    for i in range(start, len(losses)):
        if reached(losses[i], baseline):
            if i == 0:
                return first(tokens, losses, baseline)
            part = share(losses[i - 1], losses[i], baseline)
            return float(point(tokens[i - 1], tokens[i], part))
    return never(tokens)


def _beat_with(**changes):
    return lambda tokens, losses, baseline: _beat(tokens, losses, baseline, **changes)


def _last_above(tokens, losses, baseline):
    above = [i for i, loss in enumerate(losses) if loss > baseline]
    if not above or above[-1] + 1 == len(losses):
        return float(tokens[0]) if not above else math.inf
    i = above[-1] + 1
    return tokens_to_beat(tokens[i - 1 :], losses[i - 1 :], baseline)


def _which(tokens, losses, baseline):
    return next((i for i, loss in enumerate(losses) if loss <= baseline), math.inf)


def _from_the_last(tokens, losses, baseline):
    share = (losses[-1] - baseline) / (losses[-1] - losses[0])
    return float(tokens[-1] + share * (tokens[0] - tokens[-1]))


def _only_between(tokens, losses, baseline, below=lambda loss, baseline: loss <= baseline):
    """Looks only at pairs of points with the earlier one at the baseline or above."""
    for i in range(1, len(losses)):
        if losses[i - 1] >= baseline and below(losses[i], baseline):
            share = (losses[i - 1] - baseline) / (losses[i - 1] - losses[i])
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return math.inf


def _strictly_between(tokens, losses, baseline):
    above = [math.nan if loss == baseline else loss for loss in losses]
    return _only_between(tokens, above, baseline)


def _nearest(tokens, losses, baseline):
    return tokens[min(range(len(losses)), key=lambda i: abs(losses[i] - baseline))]


def _whole_line(tokens, losses, baseline):
    if losses[-1] > baseline:
        return math.inf
    share = (losses[0] - baseline) / (losses[0] - losses[-1])
    return tokens[0] + share * (tokens[-1] - tokens[0])


def _extended(tokens, losses, baseline):
    found = tokens_to_beat(tokens, losses, baseline)
    if math.isfinite(found):
        return found
    slope = (tokens[-1] - tokens[-2]) / (losses[-2] - losses[-1])
    return tokens[-1] + (losses[-1] - baseline) * slope


def _last_point_below(tokens, losses, baseline):
    return max((t for t, loss in zip(tokens, losses) if loss <= baseline), default=math.inf)


def _interp(tokens, losses, baseline):
    return float(np.interp(baseline, losses, tokens))


def _interp_reversed(tokens, losses, baseline):
    return float(np.interp(baseline, losses[::-1], tokens[::-1]))


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
    tokens, losses = run(4)
    yield "the first point is below already", (tokens, losses, losses[0] + 0.4)
    yield "the first point is the baseline exactly", ([150.0, 300.0, 450.0], [5.0, 4.0, 3.0], 5.0)
    yield "the last point is the baseline exactly", ([100.0, 200.0, 300.0], [6.0, 5.5, 4.5], 4.5)
    yield "a point is the baseline exactly, then the loss rises", (
        [100.0, 200.0, 300.0, 400.0], [6.0, 5.0, 5.5, 4.0], 5.0)


CHECKS = [
    Check(
        "pretrain.learning_rate", learning_rate, _schedule_cases,
        mistakes={
            "your first step has the rate 0; steps count from 0, so the rise should be (step + 1) "
            "/ warmup": _schedule(rise=lambda s, w: s / w),
            "your warm-up goes on at step `warmup`, above the peak; the cosine should begin there":
                _schedule(rising=lambda s, w: s <= w),
            "you hold the peak in the warm-up; below `warmup` the rate should rise in a straight "
            "line": _schedule(rise=lambda s, w: 1.0),
            "you have no warm-up, and the cosine begins at step 0; below `warmup` the rate should "
            "rise in a straight line, and the cosine should follow":
                _schedule(rising=lambda s, w: False, done=lambda s, n, w: s / n),
            "you use the cosine in the warm-up too; below `warmup` the rate should rise in a "
            "straight line": _schedule(rising=lambda s, w: False),
            "your cosine starts at step 0; it should start where the warm-up ends: (step - "
            "warmup) / (steps - warmup)":
                _schedule(done=lambda s, n, w: s / n),
            "you divide by `steps`; the cosine lasts steps - warmup steps":
                _schedule(done=lambda s, n, w: (s - w) / n),
            "you do not subtract the warm-up from `step`; the cosine should start at step `warmup`":
                _schedule(done=lambda s, n, w: s / (n - w)),
            "your cosine is one step ahead; d should be 0 at step `warmup`":
                _schedule(done=lambda s, n, w: (s + 1 - w) / (n - w)),
            "your cosine ends one step early; d should be 1 at step `steps`":
                _schedule(done=lambda s, n, w: (s - w) / (n - w - 1)),
            "your cosine ends at zero; it should end at a tenth of the peak":
                _schedule(shape=lambda d: (1 + math.cos(math.pi * d)) / 2),
            "you cut the cosine off at a tenth; it should come down to a tenth only at the end":
                _schedule(shape=lambda d: max(0.1, (1 + math.cos(math.pi * d)) / 2)),
            "you exchange 0.55 and 0.45; the middle should be 0.55 and the swing 0.45":
                _schedule(shape=lambda d: 0.45 + 0.55 * math.cos(math.pi * d)),
            "your cosine rises; it should be 0.55 plus 0.45 cos(pi d)":
                _schedule(shape=lambda d: 0.55 - 0.45 * math.cos(math.pi * d)),
            "you leave pi out; d from 0 to 1 should be half a period, cos(pi d)":
                _schedule(shape=lambda d: 0.55 + 0.45 * math.cos(d)),
            "you take a whole period, cos(2 pi d), and end at the peak; it should be half a "
            "period": _schedule(shape=lambda d: 0.55 + 0.45 * math.cos(2 * math.pi * d)),
            "you take a quarter of a period, cos(pi d / 2); it should be half a period":
                _schedule(shape=lambda d: 0.55 + 0.45 * math.cos(math.pi * d / 2)),
            "you take a sine; it should be a cosine":
                _schedule(shape=lambda d: 0.55 + 0.45 * math.sin(math.pi * d)),
            "your decay is a straight line; it should be half a period of a cosine":
                _schedule(shape=lambda d: 1 - 0.9 * d),
            "you do not use `peak`; the result should be a rate, not a share of the peak":
                _times(lambda peak: 1.0),
            "you use `peak` in the warm-up only; the cosine should be multiplied by it too":
                lambda s, n, peak, w: learning_rate(s, n, peak if s < w else 1.0, w),
            "you multiply only 0.55 with the peak; both terms should be: peak * (0.55 + ...)":
                lambda s, n, peak, w: learning_rate(s, n, peak, w) if s < w else (
                    peak * 0.55 + 0.45 * math.cos(math.pi * (s - w) / (n - w))),
            "you divide by warmup + 1, so the last step of the warm-up is below the peak; it "
            "should be (step + 1) / warmup": _schedule(rise=lambda s, w: (s + 1) / (w + 1)),
            "you rise from 0 with step / (warmup - 1); it should be (step + 1) / warmup":
                _schedule(rise=lambda s, w: s / (w - 1)),
            "you start the warm-up at a tenth of the peak; it should be (step + 1) / warmup of "
            "it": _schedule(rise=lambda s, w: 0.1 + 0.9 * (s + 1) / w),
            "you divide whole numbers with //, which cuts; it should be (step + 1) / warmup":
                _schedule(rise=lambda s, w: (s + 1) // w),
            "your warm-up ends a step early; the cosine should begin at step `warmup`":
                _schedule(rising=lambda s, w: s + 1 < w),
            "your cosine begins at 1.1 times the peak; its middle should be 0.55 and its "
            "amplitude 0.45 times the peak":
                _schedule(shape=lambda d: 0.1 + 0.5 * (1 + math.cos(math.pi * d))),
            "your cosine has the amplitude 0.9, which takes it below 0; it should be 0.55 plus "
            "0.45 cos(pi d)": _schedule(shape=lambda d: 0.1 + 0.9 * math.cos(math.pi * d)),
            "your cosine goes from 0.9 of the peak to 0; it should go from the peak to a tenth":
                _schedule(shape=lambda d: 0.45 * (1 + math.cos(math.pi * d))),
            "you take a quarter of a period, cos(pi d / 2); it should be half a period, cos(pi "
            "d)": _schedule(shape=lambda d: 0.1 + 0.9 * math.cos(math.pi / 2 * d)),
            "your decay is exponential; it should be half a period of a cosine":
                _schedule(shape=lambda d: 0.1**d),
            "you stay at the peak after the warm-up; half a period of a cosine should follow":
                _schedule(shape=lambda d: 1.0),
            "you give cos an angle in degrees; it should be in radians, pi d":
                _schedule(shape=lambda d: 0.55 + 0.45 * math.cos(180 * d)),
            "your cosine is a step ahead; d should be 0 at step `warmup` and 1 at step `steps`":
                _schedule(done=lambda s, n, w: (s - w + 1) / (n - w + 1)),
            "your first step has the rate 0, and your cosine starts at step 0; it should be "
            "(step + 1) / warmup, and (step - warmup) / (steps - warmup)":
                _schedule(rise=lambda s, w: s / w, done=lambda s, n, w: s / n),
            "your first step has the rate 0, and the cosine ends at 0; it should be (step + 1) "
            "/ warmup, and a tenth of the peak":
                _schedule(rise=lambda s, w: s / w,
                          shape=lambda d: 0.5 * (1 + math.cos(math.pi * d))),
            "your cosine ends at a hundredth of the peak; it should be a tenth":
                _schedule(shape=lambda d: 0.505 + 0.495 * math.cos(math.pi * d)),
            "your cosine ends at the rate 0.1; it should be a tenth of the peak":
                _to_a_tenth_itself,
            "you multiply the warm-up with a cosine that starts at step 0; the cosine should "
            "start after the warm-up":
                lambda step, steps, peak, warmup: peak * min(1.0, (step + 1) / warmup) * (
                    0.55 + 0.45 * math.cos(math.pi * step / steps)),
        },
        hints=(
            "Two cases: below `warmup` a straight line that reaches `peak` at step warmup - 1, "
            "and after it the cosine.",
            "done = (step - warmup) / (steps - warmup) goes from 0 to 1; cos(pi * done) from 1 to "
            "-1.",
            "Map 1 to `peak` and -1 to peak / 10: the middle is 0.55 * peak, and half the "
            "distance is 0.45 * peak.",
        ),
        atol=1e-9, gradient=False,
    ),
    Check(
        "pretrain.total_loss", total_loss, _total_cases,
        mistakes={
            "you compare the logits at t with token t, which the model has seen; they should be "
            "compared with token t + 1":
                _with_targets(lambda ids: ids[:, :-1], lambda ids: ids[:, 2:]),
            "you compare the MTP logits with the next token; from t the MTP block should predict "
            "token t + 2":
                _with_targets(lambda ids: ids[:, 1:], lambda ids: ids[:, 1:-1]),
            "you compare the MTP logits with tokens that the model has seen; from t the MTP block "
            "should predict token t + 2":
                _with_targets(lambda ids: ids[:, 1:], lambda ids: ids[:, :-2]),
            "both of your targets are one token early; they should be t + 1 for the logits and t "
            "+ 2 for MTP":
                _with_targets(lambda ids: ids[:, :-1], lambda ids: ids[:, 1:-1]),
            "you do not shift either target; they should be t + 1 for the logits and t + 2 for MTP":
                _with_targets(lambda ids: ids[:, :-1], lambda ids: ids[:, :-2]),
            "you compute the MTP loss from `logits`; it should be from `mtp_logits`":
                _mtp_from_logits,
            "you add the MTP loss without its weight; it should be weight * MTP loss":
                _sum_with(lambda loss, mtp, weight: loss + mtp),
            "you put the weight on the next-token loss; it should be on the MTP loss":
                _sum_with(lambda loss, mtp, weight: weight * loss + mtp),
            "you put the weight on both losses; it should be on the MTP loss alone":
                _sum_with(lambda loss, mtp, weight: weight * (loss + mtp)),
            "you average with weight and 1 - weight; the next-token loss should keep its full "
            "weight":
                _sum_with(lambda loss, mtp, weight: (1 - weight) * loss + weight * mtp),
            "you divide by 1 + weight; the total should be the plain sum, main loss + weight * "
            "MTP loss":
                _sum_with(lambda loss, mtp, weight: (loss + weight * mtp) / (1 + weight)),
            "you always take the weight 0.3; it should be the argument `weight`":
                _sum_with(lambda loss, mtp, weight: loss + 0.3 * mtp),
            "you leave the MTP loss out of the sum; it should be added with its weight":
                _sum_with(lambda loss, mtp, weight: loss),
            "you return the MTP loss with its weight; only the sum should have the weight":
                lambda *args: (lambda total, loss, mtp: (total, loss, args[3] * mtp))(
                    *total_loss(*args)),
            "you return the total alone; it should be total, main loss, MTP loss":
                lambda *args: total_loss(*args)[0],
            "you return two losses; it should be three: total, main loss, MTP loss":
                lambda *args: total_loss(*args)[1:],
            "you return the main loss first; it should be total, main loss, MTP loss":
                lambda *args: (lambda total, loss, mtp: (loss, mtp, total))(*total_loss(*args)),
            "you return the MTP loss before the main loss; it should be total, main loss, MTP loss":
                lambda *args: (lambda total, loss, mtp: (total, mtp, loss))(*total_loss(*args)),
            "you sum over tokens; each loss should be the mean": _scaled(torch.Tensor.numel),
            "you sum over tokens and divide by the number of rows; each loss should be the mean "
            "over all tokens": _scaled(lambda targets: targets.shape[1]),
            "you measure in bits; it should be nats": _scaled(lambda targets: 1 / math.log(2)),
            "you give probabilities to cross_entropy, which takes logits; leave out the softmax":
                _softmax_first,
            "you take the negative logit of the target; it should be the negative log-probability, "
            "so log_softmax comes first": _no_log,
            "your losses have the wrong sign; a loss should be minus the log-probability":
                _scaled(lambda targets: -1),
            "you divide the sum by 2; it should be main loss + weight * MTP loss":
                _sum_with(lambda loss, mtp, weight: (loss + weight * mtp) / 2),
            "you give the main loss the weight, and the MTP loss the rest; it should be main "
            "loss + weight * MTP loss":
                _sum_with(lambda loss, mtp, weight: weight * loss + (1 - weight) * mtp),
            "you subtract the MTP loss; it should be added with its weight":
                _sum_with(lambda loss, mtp, weight: loss - weight * mtp),
            "you divide the MTP loss by the weight; it should be multiplied with it":
                _sum_with(lambda loss, mtp, weight: loss + mtp / weight),
            "you exchange the two losses; the main loss comes from `logits`, and the weight "
            "belongs to the MTP loss": _roles_exchanged,
            "you divide the MTP loss by the number of targets of the main loss; it should be "
            "its own mean": _one_divisor,
            "you cut the last position of `logits` off; ids has a column more, so each of the T "
            "positions should have a target":
                _with_parts(lambda x, ids: (x[:, :-1], ids[:, 1:-1]), _mtp),
            "you cut the last position of both kinds of logits off; ids has a column more, so "
            "each position should have a target":
                _with_parts(lambda x, ids: (x[:, :-1], ids[:, 1:-1]),
                            lambda x, ids: (x[:, :-1], ids[:, 2:-1])),
            "you shift twice, so that the logits at t are compared with token t + 2; it should "
            "be t + 1": _with_parts(lambda x, ids: (x[:, :-1], ids[:, 2:]), _mtp),
            "you shift twice, so that the MTP logits at t are compared with token t + 3; it "
            "should be t + 2": _with_parts(_main, lambda x, ids: (x[:, :-1], ids[:, 3:])),
            "you shift both twice; it should be t + 1 for the logits and t + 2 for MTP":
                _with_parts(lambda x, ids: (x[:, :-1], ids[:, 2:]),
                            lambda x, ids: (x[:, :-1], ids[:, 3:])),
            "you flatten logits and targets in different orders; both should go row by row":
                _with_parts(lambda x, ids: (x.transpose(0, 1), ids[:, 1:]),
                            lambda x, ids: (x.transpose(0, 1), ids[:, 2:])),
            "you give cross_entropy B T V, and it takes axis 1 for the vocabulary; flatten B "
            "and T first, or transpose to B V T": _axes_as_they_are,
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
            "you compare each position with the token that it has just read; it should be the next "
            "one":
                _masked(shift=False),
            "both faults are still there: you compare with the token just read, and count padding":
                _masked(shift=False, keep=_everything),
            "you compare with the token just read, and average the rows' means; it should be the "
            "next token, and the mean over all targets that count":
                _masked(shift=False, reduce="rows"),
            "you shift the wrong way, so that position t predicts token t - 1; it should be t + 1":
                _backwards,
            "you count padding as a target; it should be left out": _masked(keep=_everything),
            "you mask where the input is padding; it should be where the target is":
                _input_mask,
            "you take padding to be token 2 always; it should be the argument `pad`":
                _masked(keep=lambda targets, pad: targets != 2),
            "you take padding to be token 0 always; it should be the argument `pad`":
                _masked(keep=lambda targets, pad: targets != 0),
            "you keep the targets above `pad`; it should be all that differ from it":
                _masked(keep=lambda targets, pad: targets > pad),
            "you keep the padding and leave out the rest; it should be the other way round":
                _masked(keep=lambda targets, pad: targets == pad),
            "you take the mean of the rows' means, so a short row's tokens count more; it should "
            "be the mean over all targets that count": _masked(reduce="rows"),
            "you return the sum; it should be divided by the number of targets that count":
                _masked(reduce="sum"),
            "you leave padding out of the sum and still divide by all positions; it should be the "
            "number of targets that count":
                _masked(reduce="all"),
            "you divide by the number of rows; it should be the number of targets that count":
                _masked(reduce="batch"),
            "you divide by the number of tokens in `ids`, the first column with them; it should be "
            "the number of targets": _masked(reduce="inputs"),
            "you give probabilities to cross_entropy, which takes logits; leave out the softmax":
                lambda logits, ids, pad: masked_loss(logits.softmax(-1), ids, pad),
            "your loss has the wrong sign; it should be minus the log-probability":
                lambda *args: -masked_loss(*args),
            "you return one loss for each target; it should be their mean":
                lambda logits, ids, pad: F.cross_entropy(
                    logits[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=pad,
                    reduction="none"),
            "you mask where input or target is padding; only the target should decide":
                _masked_by(_next_losses,
                           lambda ids, pad: (ids[:, 1:] != pad) & (ids[:, :-1] != pad)),
            "you compare each position but the last with the token that it has just read; it "
            "should be the next one":
                _masked_by(_losses_just_read, lambda ids, pad: ids[:, :-1] != pad),
            "you shift logits and targets alike, so each position is compared with the token "
            "that it has just read; it should be logits[:, :-1] and ids[:, 1:]":
                _masked_by(_same_losses),
            "you compare with the token just read, and divide by all positions; it should be "
            "the next token, and the number of targets that count":
                _masked(shift=False, reduce="all"),
            "you compare with the token after the next; it should be the next": _two_ahead,
            "you divide by all tokens of `ids`; it should be the number of targets that count":
                _masked_by(_next_losses, divisor=lambda ids, kept, pad: ids.numel()),
            "you divide by the number of inputs that are no padding; it should be that of the "
            "targets":
                _masked_by(_next_losses, divisor=lambda ids, kept, pad: (ids[:, :-1] != pad).sum()),
            "you take minus the probability; it should be minus its logarithm":
                _masked_by(_minus_probability),
            "you set logits to 0 and still count every target; padding should be left out of "
            "the mean": _zeroed_logits,
            "you take the logit of padding away; padding should be left out as a target, and "
            "the logits stay": _pad_forbidden,
            "you take the median; it should be the mean":
                lambda logits, ids, pad: _next_losses(logits, ids)[ids[:, 1:] != pad].median(),
            "you give cross_entropy B T V, and it takes axis 1 for the vocabulary; flatten B "
            "and T first, or transpose to B V T":
                lambda logits, ids, pad: F.cross_entropy(
                    logits[:, :-1], ids[:, 1:], ignore_index=pad),
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
            "you compute nats per byte; a bit is log(2) nats, so it should be divided by log(2)":
                lambda x, t, b: x * t / b,
            "you compute bits per token; it should be multiplied by the tokens and divided by the "
            "bytes":
                lambda x, t, b: x / math.log(2),
            "you multiply by log(2); a nat is 1 / log(2) bits, so it should be divided by log(2)":
                lambda x, t, b: x * t / b * math.log(2),
            "you exchange tokens and bytes; it should be multiplied by the tokens and divided by "
            "the bytes":
                lambda x, t, b: x * b / t / math.log(2),
            "you exchange tokens and bytes, and multiply by log(2); it should be times tokens, by "
            "bytes, by log(2)":
                lambda x, t, b: x * b / t * math.log(2),
            "you compute the bits of the whole text; it should be divided by the bytes":
                lambda x, t, b: x * t / math.log(2),
            "you do not multiply by the tokens; the loss is per token, so it should be":
                lambda x, t, b: x / math.log(2) / b,
            "you multiply by the bytes (a product needs brackets after a `/`); it should be "
            "divided by them":
                lambda x, t, b: x * t / math.log(2) * b,
            "you use log2 or log10 of the number; nats should be divided by log(2)":
                lambda x, t, b: x * t / math.log10(2) / b,
            "you take the logarithm of the loss, which is one already; it should be divided by "
            "log(2)": lambda x, t, b: math.log2(x) * t / b,
            "you divide by 8; bits per byte are what one byte costs, so there is no 8":
                lambda x, t, b: x * t / math.log(2) / b / 8,
            "you multiply by 8; bits per byte are what one byte costs, so there is no 8":
                lambda x, t, b: x * t / math.log(2) / b * 8,
            "you divide by 2; a bit is log(2) = 0.693 nats": lambda x, t, b: x * t / 2 / b,
            "you compute bytes per bit; it should be the inverse":
                lambda x, t, b: 1 / bits_per_byte(x, t, b),
            "you compute nats of the whole text; it should be divided by the bytes and by "
            "log(2)": lambda x, t, b: x * t,
            "you do not multiply by the tokens, nor divide by log(2); it should be both":
                lambda x, t, b: x / b,
            "you divide by log(10), which gives decimal digits; it should be log(2)":
                lambda x, t, b: x * t / b / math.log(10),
            "you multiply by 8 instead of changing the unit; a nat is 1 / log(2) bits":
                lambda x, t, b: x * t / b * 8,
            "you divide by 8 instead of changing the unit; a nat is 1 / log(2) bits":
                lambda x, t, b: x * t / b / 8,
            "you take the logarithm of the whole loss, which is one already; it should be "
            "divided by log(2)": lambda x, t, b: math.log2(x * t) / b,
            "you take exp of the loss; it should be divided by log(2)":
                lambda x, t, b: math.exp(x) * t / b,
            "you compute a perplexity, 2 to the power of the result; it should be the bits "
            "themselves": lambda x, t, b: 2 ** bits_per_byte(x, t, b),
            "you divide tokens by bytes with //, which cuts to 0; it should be /":
                lambda x, t, b: x * (t // b) / math.log(2),
        },
        hints=(
            "Two steps: the loss of the whole text in nats, then the same in bits, for one byte.",
            "The whole text costs nats_per_token * n_tokens nats. Its bytes share that.",
            "A nat is 1 / log(2) = 1.443 bits.",
        ),
        gradient=False,
    ),
    Check(
        "pretrain.tokens_to_beat", tokens_to_beat, _beat_cases,
        mistakes={
            "you return the first measured point below the baseline; it should be where the line "
            "between two points crosses it":
                _beat_with(point=lambda before, after, share: after),
            "you return the last measured point above the baseline; it should be where the line "
            "between two points crosses it":
                _beat_with(point=lambda before, after, share: before),
            "you return the middle between two points; it should be where the line between them "
            "crosses the baseline":
                _beat_with(point=lambda before, after, share: (before + after) / 2),
            "you return the number of the point; it should be the tokens read at it": _which,
            "you count the share from the wrong end of the line between two points; it should be "
            "how far the loss has come down from the earlier one":
                _beat_with(share=lambda high, low, baseline: (baseline - low) / (high - low)),
            "your share has the wrong sign; both differences should be earlier minus later":
                _beat_with(share=lambda high, low, baseline: (baseline - high) / (high - low)),
            "you take the share upside down; it should be below 1":
                _beat_with(share=lambda high, low, baseline: (high - low) / (high - baseline)
                           if high > baseline else 0.0),
            "you return only the way between two points; the earlier point's tokens should be "
            "added": _beat_with(point=lambda before, after, share: share * (after - before)),
            "you multiply the share with the later point; it should be with the distance between "
            "the two": _beat_with(point=lambda before, after, share: before + share * after),
            "you compare with <, so a loss that equals the baseline does not count; it should be "
            "<=": _beat_with(reached=lambda loss, baseline: loss < baseline),
            "you return the last time it falls below; it should be the first": _last_above,
            "you look for the loss to rise above the baseline; it should be where it falls to it":
                _beat_with(reached=lambda loss, baseline: loss >= baseline),
            "you extend the line before the first point if that is below already; the answer "
            "should be the first point's tokens": _beat_with(start=1),
            "you return 0 if the first point is below already; it should be that point's tokens":
                _beat_with(first=lambda tokens, losses, baseline: 0.0),
            "you return math.inf if the first point is below already; it should be that point's "
            "tokens": _beat_with(first=lambda tokens, losses, baseline: math.inf),
            "you take the point before the first, which in Python is the last one; a first point "
            "below the baseline should give that point's tokens":
                _beat_with(first=_from_the_last),
            "you return the last point if the baseline is never reached; it should be math.inf":
                _beat_with(never=lambda tokens: float(tokens[-1])),
            "you return -1 if the baseline is never reached; it should be math.inf":
                _beat_with(never=lambda tokens: -1.0),
            "you return 0 if the baseline is never reached; it should be math.inf":
                _beat_with(never=lambda tokens: 0.0),
            "you return None if the baseline is never reached; it should be math.inf":
                _beat_with(never=lambda tokens: None),
            "you return nan if the baseline is never reached; it should be math.inf":
                _beat_with(never=lambda tokens: math.nan),
            "you look only between points, so a first point below the baseline is missed; it "
            "should give that point's tokens": _only_between,
            "you look for the baseline strictly between two points, so points that equal it and "
            "a first point below it are missed; they should count": _strictly_between,
            "you return the measured point that is nearest to the baseline; it should be where "
            "the line between two points crosses it": _nearest,
            "you draw one line from the first point to the last; it should be the line between "
            "the two points around the crossing": _whole_line,
            "you extend the line beyond the last point if the baseline is never reached; it "
            "should be math.inf": _extended,
            "you return the last measured point below the baseline; it should be where the line "
            "first crosses it": _last_point_below,
            "you give np.interp losses that fall, and it needs rising ones; for losses that "
            "rise and fall, walk along the points instead": _interp,
            "you give np.interp the lists backwards: it finds the last crossing and stops at "
            "the ends; it should be the first one, or math.inf": _interp_reversed,
            "you round down to whole tokens; the crossing can be a fraction":
                lambda *args: (lambda found: found if math.isinf(found) else int(found))(
                    tokens_to_beat(*args)),
        },
        hints=(
            "Walk along the points until the loss is at or below the baseline.",
            "Between point i - 1 and i the loss falls in a straight line: which share of the way "
            "reaches the baseline?",
            "share = (losses[i-1] - baseline) / (losses[i-1] - losses[i]), and the tokens go the "
            "same share of their way.",
        ),
        gradient=False,
    ),
]
