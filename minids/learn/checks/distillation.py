"""Checks of lesson 13: two losses of distillation, the mean of weights, weights by domain (V4
report, section 5.1.2).

The references compute what `minids.posttrain.distill` does: `divergence`, `token_loss`, `average`,
and the sum over families in `add_gradients`.
"""

import torch

from minids.learn.checks.gradient import with_gradient
from minids.learn.exercise import Check

LESSON = "13_distillation"


# ---- the reverse KL ----

def reverse_kl(student, teacher):
    """KL(student || teacher) at each position, in nats. student, teacher: N V, logits -> N."""
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def _unnormalised(student, teacher):
    return (student.softmax(-1) * (student - teacher)).sum(-1)


def _terms(student, teacher):
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return logp.exp() * (logp - logq)


def _logits(rng, *shape):
    """Logits whose mean is not 0, so that it shows where normalising was forgotten."""
    return 1.5 * torch.randn(*shape, generator=rng) + 2 * torch.randn(*shape[:-1], 1, generator=rng)


def _kl_cases(rng):
    for label, N, V in (("one position", 1, 3), ("several positions", 4, 7),
                        ("a larger vocabulary", 3, 50)):
        yield label, (_logits(rng, N, V), _logits(rng, N, V))


# ---- the loss from one token ----

def token_loss(student, teacher, token):
    """-a log p(token), with a = log q(token) - log p(token), which has no gradient: N.

    student, teacher: N V; token: N.
    """
    logp = student.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    logq = teacher.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    return -(logq - logp).detach() * logp


def _token(loss):
    """A version of the loss from log p and log q of the token."""
    def wrong(student, teacher, token):
        logs = (x.log_softmax(-1).gather(-1, token[:, None])[:, 0] for x in (student, teacher))
        return loss(*logs)
    return with_gradient(wrong)


def _raw_logits(student, teacher, token):
    p, q = (x.gather(-1, token[:, None])[:, 0] for x in (student, teacher))
    return -(q - p).detach() * p


def _token_cases(rng):
    for label, N, V in (("one position", 1, 3), ("several positions", 5, 11)):
        yield label, (_logits(rng, N, V), _logits(rng, N, V), torch.randint(V, (N,), generator=rng))


# ---- the mean of weights ----

def mean_weights(states):
    """The mean of state dicts of one shape, and the names of tables of integers that differ.

    Floating-point tensors: the mean, computed in float32, in the tensor's own type. Tables of
    integers: the first model's.
    """
    mean, odd = {}, []
    for name, t in states[0].items():
        same = [state[name] for state in states]
        if t.is_floating_point():
            mean[name] = torch.stack([s.float() for s in same]).mean(0).to(t.dtype)
        else:
            mean[name] = t.clone()
            if not all(torch.equal(t, s) for s in same):
                odd.append(name)
    return mean, odd


def _mean(integers, odd=None, combine=lambda x: x.mean(0)):
    """A version that treats tables of integers as `integers(tables)` says.

    `odd(tables)` says whether they are named.
    """
    def differ(tables):
        return not all(torch.equal(tables[0], table) for table in tables)

    def wrong(states):
        mean, names = {}, []
        for name, t in states[0].items():
            same = [state[name] for state in states]
            if t.is_floating_point():
                mean[name] = combine(torch.stack([s.float() for s in same])).to(t.dtype)
                continue
            mean[name] = integers(same)
            if (odd or differ)(same):
                names.append(name)
        return mean, names
    return wrong


def _first(tables):
    return tables[0].clone()


def _rounded(tables):
    return torch.stack([t.double() for t in tables]).mean(0).round().to(tables[0].dtype)


def _cut(tables):
    return torch.stack(tables).sum(0) // len(tables)


def _in_bfloat16(states):
    mean, odd = mean_weights(states)
    for name, t in mean.items():
        if t.is_floating_point():
            mean[name] = sum(state[name] for state in states) / len(states)
    return mean, odd


def _all_float32(states):
    mean, odd = mean_weights(states)
    stack = {n: torch.stack([s[n].float() for s in states]) for n in mean}
    return {n: stack[n].mean(0) if t.is_floating_point() else t for n, t in mean.items()}, odd


def _mean_cases(rng):
    def state(tables):
        return {"embed.weight": torch.randn(6, 4, generator=rng),
                "layers.0.attn.wq_a.weight": (8 * torch.randn(64, 16, generator=rng)).bfloat16(),
                **{f"layers.{i}.ffn.gate.tid2eid": t.clone() for i, t in enumerate(tables)},
                "layers.3.ffn.gate.bias": torch.randn(8, generator=rng)}
    table = torch.randint(8, (6, 2), generator=rng)
    yield "two specialists of one base", ([state([table]), state([table])],)
    yield "three specialists", ([state([table, table.flip(0)]) for _ in range(3)],)
    others = [torch.randint(8, (6, 2), generator=rng) for _ in range(3)]
    yield "models of two bases", ([state([table, other]) for other in others],)


# ---- many teachers ----

def opd_loss(kl, family, weights):
    """sum_i w_i (mean KL of family i's tokens): a tensor without axes.

    The weights of the families that occur are scaled to sum to 1. kl: N, the KL of each token to
    its teacher; family: N, the number of its family; weights: F.
    """
    there = family.unique()
    means = torch.stack([kl[family == i].mean() for i in there])
    return (weights[there] * means).sum() / weights[there].sum()


def _opd(weighing=lambda w, there: w[there] / w[there].sum(), each=lambda x: x.mean()):
    def wrong(kl, family, weights):
        there = family.unique()
        losses = torch.stack([each(kl[family == i]) for i in there])
        return (weighing(weights, there) * losses).sum()
    return wrong


def _opd_cases(rng):
    for label, family, F in (("two families", [0, 0, 0, 0, 0, 1, 1], 2),
                             ("out of order", [2, 0, 1, 0, 0, 2, 0, 0, 1, 0], 3),
                             ("a family is missing", [3, 0, 0, 3, 0, 0, 0], 4)):
        family = torch.tensor(family)
        weights = 0.5 + torch.rand(F, generator=rng) + torch.arange(F)
        kl = torch.rand(len(family), generator=rng) + 2.0 * family
        yield label, (kl, family, weights / weights.sum())


CHECKS = [
    Check(
        "distillation.reverse_kl", reverse_kl, _kl_cases,
        mistakes={
            "this is the forward KL, KL(teacher || student): the weights in the sum are the "
            "student's probabilities, and its log comes first":
                lambda s, t: reverse_kl(t, s),
            "it is not summed over the vocabulary: one number for each position": _terms,
            "this is the mean over the vocabulary: KL is a sum, the probabilities are its weights "
            "already":
                lambda s, t: _terms(s, t).mean(-1),
            "the logits are not normalised: a constant added to all logits of a position would "
            "change the result. Take log_softmax first": _unnormalised,
            "the sign is wrong: KL is never negative": lambda s, t: -reverse_kl(s, t),
            "the teacher's probabilities weigh the student's terms: KL(student || teacher) has "
            "the student's":
                lambda s, t: (t.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1),
            "the terms are not weighed by the student's probabilities":
                lambda s, t: (s.log_softmax(-1) - t.log_softmax(-1)).sum(-1),
            "this is the cross-entropy: the student's own entropy is not subtracted, so it is not "
            "0 where both agree":
                lambda s, t: -(s.softmax(-1) * t.log_softmax(-1)).sum(-1),
            "the softmax runs over the positions: axis -1 is the vocabulary":
                lambda s, t: (s.softmax(0) * (s.log_softmax(0) - t.log_softmax(0))).sum(-1),
            "this is in bits: take the natural logarithm":
                lambda s, t: reverse_kl(s, t) / torch.tensor(2.0).log(),
            "this is the mean over the positions: keep one number for each":
                lambda s, t: reverse_kl(s, t).mean(),
        },
        hints=(
            "A weighted mean of log p - log q. Whose probabilities are the weights when the "
            "student speaks?",
            "logp = student.log_softmax(-1), and the same for the teacher. Then probabilities are "
            "logp.exp().",
            "(logp.exp() * (logp - logq)).sum(-1)",
        ),
    ),
    Check(
        "distillation.token_loss", with_gradient(token_loss), _token_cases,
        mistakes={
            "the advantage is not detached: the loss then has a second gradient, which does not "
            "belong to it":
                _token(lambda p, q: -(q - p) * p),
            "this is the estimate of the KL's value, log p - log q. As a loss it is useless: its "
            "gradient is 0 on average":
                _token(lambda p, q: p - q),
            "the sign is wrong: this pushes the student away from the teacher":
                _token(lambda p, q: (q - p).detach() * p),
            "the whole loss is detached: nothing can be learned from it":
                _token(lambda p, q: (-(q - p) * p).detach()),
            "the advantage is upside down and the sign with it: log q is learned, log p should be":
                _token(lambda p, q: -(q - p).detach() * q),
            "the probability weighs the loss once more: tokens are already sampled as often as "
            "they are likely":
                _token(lambda p, q: -(q - p).detach() * p * p.exp().detach()),
            "the advantage is log q alone: without - log p the student would collapse onto the "
            "teacher's likeliest token":
                _token(lambda p, q: -q.detach() * p),
            "these are raw logits: take log_softmax before you pick the token":
                with_gradient(_raw_logits),
            "the advantage is missing: this is cross-entropy on what the student wrote itself":
                _token(lambda p, q: -p),
            "the last factor is a probability: it is log p":
                _token(lambda p, q: -(q - p).detach() * p.exp()),
        },
        hints=(
            "Two numbers for each position: the log-probability that each model gives to the "
            "token which was sampled.",
            "x.log_softmax(-1).gather(-1, token[:, None])[:, 0] is such a number.",
            "-(logq - logp).detach() * logp",
        ),
    ),
    Check(
        "distillation.mean_weights", mean_weights, _mean_cases,
        mistakes={
            "tables of integers are averaged and rounded: tid2eid holds numbers of experts, and "
            "the mean of expert 2 and expert 6 is not expert 4": _mean(_rounded),
            "tables of integers are averaged and cut to whole numbers: tid2eid holds numbers of "
            "experts, which have no mean":
                _mean(_cut),
            "tables of integers are averaged: they come out as floats, which no table of experts "
            "can be":
                _mean(lambda tables: torch.stack([t.float() for t in tables]).mean(0)),
            "all tables of integers are named: only those that differ between the models":
                _mean(_first, lambda tables: True),
            "no table is named: say which ones differ between the models":
                _mean(_first, lambda tables: False),
            "the last model's tables are kept: keep the first's":
                _mean(lambda tables: tables[-1].clone()),
            "weights are summed: divide by the number of models":
                _mean(_first, combine=lambda x: x.sum(0)),
            "they are divided by 2, whatever the number of models":
                _mean(_first, combine=lambda x: x.sum(0) / 2),
            "this is the first model, not the mean": _mean(_first, combine=lambda x: x[0]),
            "bfloat16 tensors are added in bfloat16: add in float32, then convert back":
                _in_bfloat16,
            "the mean stays in float32: give each tensor its own type back": _all_float32,
        },
        hints=(
            "Two kinds of tensors: numbers that have a mean, and numbers that are names.",
            "t.is_floating_point() tells them apart; torch.equal(a, b) tells whether two tables "
            "are the same.",
            "torch.stack([s[name].float() for s in states]).mean(0).to(t.dtype), or "
            "states[0][name] and a note in `odd`.",
        ),
    ),
    Check(
        "distillation.opd_loss", opd_loss, _opd_cases,
        mistakes={
            "this is the mean over all tokens: the family with the longest answers decides":
                lambda kl, f, w: kl.mean(),
            "tokens are weighed, so a family with long answers counts more than its weight says: "
            "take each family's mean first":
                lambda kl, f, w: (w[f] * kl).sum() / w[f].sum(),
            "tokens are weighed and divided by their number: take each family's mean first":
                lambda kl, f, w: (w[f] * kl).mean(),
            "the weights are forgotten: each family counts alike":
                _opd(lambda w, there: 1 / len(there)),
            "the weights of families that are not in the batch are lost: scale those that are "
            "there to sum 1":
                _opd(lambda w, there: w[there]),
            "a family's tokens are summed: take their mean": _opd(each=lambda x: x.sum()),
            "these are the first weights: w[i] belongs to the family with the number i":
                _opd(lambda w, there: w[: len(there)] / w[: len(there)].sum()),
        },
        hints=(
            "First one number for each family, then the sum of these by weight.",
            "family.unique() are the numbers of the families that are there; kl[family == "
            "i].mean() is one family's mean.",
            "Divide by the sum of the weights of the families that are there.",
        ),
    ),
]
