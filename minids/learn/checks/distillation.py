"""Checks of lesson 13: two losses of distillation, the mean of weights, weights by domain (V4
report, section 5.1.2).

The references compute what `minids.posttrain.distill` does: `divergence`, `token_loss`, `average`,
and the sum over families in `add_gradients`.
"""

import torch
import torch.nn.functional as F

from minids.learn.checks.gradient import with_gradient
from minids.learn.exercise import Check

LESSON = "13_distillation"


# ---- the reverse KL ----

def reverse_kl(student, teacher):
    """KL(student || teacher) at each position, in nats. student, teacher: N V, logits -> N.

    No gradient flows to the teacher.
    """
    logp, logq = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def _unnormalised(student, teacher):
    return (student.softmax(-1) * (student - teacher)).sum(-1)


def _terms(student, teacher):
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return logp.exp() * (logp - logq)


def _weighed_by(weights):
    """A version whose terms log p - log q have the weights(p, q)."""
    def wrong(student, teacher):
        logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
        return (weights(logp.exp(), logq.exp()) * (logp - logq)).sum(-1)
    return wrong


def _log_of_softmax(student, teacher, weights=lambda p, q: p):
    p, q = student.softmax(-1), teacher.softmax(-1)
    return (weights(p, q) * (p / q).log()).sum(-1)


def _half_way(student, teacher):
    p, q = student.softmax(-1), teacher.softmax(-1)
    middle = ((p + q) / 2).log()
    return ((p * (p.log() - middle) + q * (q.log() - middle)) / 2).sum(-1)


def _by_positions(student, teacher):
    logp, logq = student.log_softmax(0), teacher.log_softmax(0)
    return (logp.exp() * (logp - logq)).sum(-1)


def _by_columns(student, teacher):
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(0)


def _logits(rng, *shape):
    """Logits whose mean is not 0, so that it shows where normalising was forgotten."""
    return 1.5 * torch.randn(*shape, generator=rng) + 2 * torch.randn(*shape[:-1], 1, generator=rng)


def _kl_cases(rng):
    for label, N, V in (("one position", 1, 3), ("several positions", 4, 7),
                        ("a larger vocabulary", 3, 50)):
        yield label, (_logits(rng, N, V), _logits(rng, N, V))
    apart = torch.tensor([[0.0, -200.0, -1.0, 150.0], [100.0, 0.0, -100.0, 99.0]])
    yield "logits 200 apart, whose probabilities are 0 in float32", (apart, apart.flip(-1) / 2)


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


def _picked(pick):
    """A version that picks the tokens' numbers from log-probabilities with pick(logs, token)."""
    def wrong(student, teacher, token):
        p, q = (pick(x.log_softmax(-1), token) for x in (student, teacher))
        return -(q - p).detach() * p
    return with_gradient(wrong)


def _from_probabilities(student, teacher, token):
    p, q = (x.softmax(-1).gather(-1, token[:, None])[:, 0] for x in (student, teacher))
    return -(q - p).detach() * p


def _over_positions(student, teacher, token):
    p, q = (x.log_softmax(0).gather(-1, token[:, None])[:, 0] for x in (student, teacher))
    return -(q - p).detach() * p


def _token_cases(rng):
    for label, N, V in (("three positions", 3, 4), ("several positions", 5, 11)):
        yield label, (_logits(rng, N, V), _logits(rng, N, V), torch.randint(V, (N,), generator=rng))


# ---- the mean of weights ----

def mean_weights(states):
    """The mean of state dicts of one shape, and the names of tables of integers that differ.

    Floating-point tensors: the mean, computed in float32, in the tensor's own type. Tables of
    integers: the first model's.
    """
    return _mean(_first)(states)


def _differ(tables):
    return not all(torch.equal(tables[0], table) for table in tables)


def _mean(integers, odd=_differ, combine=lambda x: x.mean(0)):
    """A version that treats tables of integers as `integers(tables)` says.

    `odd(tables)` says whether they are named.
    """
    def version(states):
        mean, names = {}, []
        for name, t in states[0].items():
            same = [state[name] for state in states]
            if t.is_floating_point():
                mean[name] = combine(torch.stack([s.float() for s in same])).to(t.dtype)
                continue
            mean[name] = integers(same)
            if odd(same):
                names.append(name)
        return mean, names
    return version


def _never(tables):
    return False


def _first(tables):
    return tables[0].clone()


def _rounded(tables):
    return torch.stack([t.double() for t in tables]).mean(0).round().to(tables[0].dtype)


def _cut(tables):
    return torch.stack([t.double() for t in tables]).mean(0).to(tables[0].dtype)


def _floats(tables):
    return torch.stack([t.float() for t in tables]).mean(0)


def _in_bfloat16(states):
    mean, odd = mean_weights(states)
    for name, t in mean.items():
        if t.is_floating_point():
            mean[name] = sum(state[name] for state in states) / len(states)
    return mean, odd


def _plain_average(states):
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}, []


def _all_float32(states):
    mean, odd = mean_weights(states)
    stack = {n: torch.stack([s[n].float() for s in states]) for n in mean}
    return {n: stack[n].mean(0) if t.is_floating_point() else t for n, t in mean.items()}, odd


def _floats_named_too(states):
    mean, _ = mean_weights(states)
    return mean, [name for name in mean if _differ([state[name] for state in states])]


def _tables_left_out(states):
    mean, odd = mean_weights(states)
    return {name: t for name, t in mean.items() if t.is_floating_point()}, odd


def _named_for_each(states):
    mean, names = mean_weights(states)[0], []
    for state in states[1:]:
        names += [name for name, t in state.items()
                  if not t.is_floating_point() and not torch.equal(t, states[0][name])]
    return mean, names


def _pairs_averaged(x):
    """The mean of the mean so far and the next one."""
    mean = x[0]
    for t in x[1:]:
        mean = (mean + t) / 2
    return mean


def _in_double(states):
    mean, odd = mean_weights(states)
    return {n: torch.stack([s[n].double() for s in states]).mean(0) if t.is_floating_point()
            else t for n, t in mean.items()}, odd


def _odd_left_out(states):
    mean, odd = mean_weights(states)
    return {name: t for name, t in mean.items() if name not in odd}, odd


def _all_in_float32(states):
    return {n: torch.stack([s[n].float() for s in states]).mean(0) for n in states[0]}, []


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
    yield "only the last of three differs", (
        [state([t, u]) for t, u in ((others[0], table), (others[0], table), (table, others[1]))],)
    yield "only the first of three differs", (
        [state([t]) for t in (table, others[2], others[2])],)
    yield "only the second of three differs", (
        [state([t]) for t in (table, others[0], table)],)


# ---- many teachers ----

def opd_loss(kl, family, weights):
    """sum_i w_i (mean KL of family i's tokens): a tensor without axes.

    The weights of the families that occur are scaled to sum to 1. kl: N, the KL of each token to
    its teacher; family: N, the number of its family; weights: F. No gradient flows to the weights.
    """
    return _opd()(kl, family, weights.detach())


def _share(weights, there):
    return weights[there] / weights[there].sum()


def _opd(weighing=_share, each=lambda x: x.mean()):
    """A version from the weights of the families that occur, and what `each` makes of a family."""
    def version(kl, family, weights):
        there = family.unique()
        losses = torch.stack([each(kl[family == i]) for i in there])
        return (weighing(weights, there) * losses).sum()
    return version


def _in_order_of_appearance(kl, family, weights):
    numbers = list(dict.fromkeys(family.tolist()))
    means = torch.stack([kl[family == i].mean() for i in numbers])
    w = weights[: len(numbers)]
    return (w * means).sum() / w.sum()


def _empty_means(share):
    """A version that takes the mean of every family, missing ones too, times share(weights)."""
    def wrong(kl, family, weights):
        means = torch.stack([kl[family == i].mean() for i in range(len(weights))])
        return (share(weights) * means).sum()
    return wrong


def _opd_cases(rng):
    for label, family, number in (("two families", [0, 0, 0, 0, 0, 1, 1], 2),
                                  ("out of order", [2, 0, 1, 0, 0, 2, 0, 0, 1, 0], 3),
                                  ("a family is missing", [3, 0, 0, 3, 0, 0, 0], 4)):
        family = torch.tensor(family)
        weights = 0.5 + torch.rand(number, generator=rng) + torch.arange(number)
        kl = torch.rand(len(family), generator=rng) + 2.0 * family
        yield label, (kl, family, weights / weights.sum())
    whole = torch.tensor([1, 0, 0, 3, 2, 0, 1])
    yield "weights that do not sum to 1", (kl, whole, torch.tensor([2.0, 1.0, 1.0, 3.0]))
    yield "one token of each family", (kl[:4], torch.arange(4),
                                       torch.tensor([0.1, 0.2, 0.3, 0.4]))
    yield "the first family is missing", (kl, (family + 3) // 3, torch.tensor([0.5, 0.2, 0.3]))


CHECKS = [
    Check(
        "distillation.reverse_kl", reverse_kl, _kl_cases,
        mistakes={
            "you compute the forward KL, KL(teacher || student); the weights in the sum should be "
            "the student's probabilities, and its log should come first":
                lambda s, t: reverse_kl(t, s),
            "you do not sum over the vocabulary; it should be one number for each position": _terms,
            "you take the mean over the vocabulary; the probabilities are the weights already, so "
            "it should be the sum":
                lambda s, t: _terms(s, t).mean(-1),
            "you do not normalise the logits, so a constant added to all of a position changes the "
            "result; log_softmax should come first": _unnormalised,
            "your sign is wrong; KL should never be negative": lambda s, t: -reverse_kl(s, t),
            "you weigh the student's terms with the teacher's probabilities; KL(student || "
            "teacher) should have the student's":
                _weighed_by(lambda p, q: q),
            "you do not weigh the terms; they should be weighed by the student's probabilities":
                _weighed_by(lambda p, q: 1.0),
            "you weigh with p - q, which is the forward KL and the reverse KL together; it should "
            "be p alone": _weighed_by(lambda p, q: p - q),
            "you take the mean of forward and reverse KL; it should be the reverse KL alone":
                _weighed_by(lambda p, q: (p - q) / 2),
            "you compute the cross-entropy, which is not 0 where both agree; the student's own "
            "entropy should be subtracted":
                lambda s, t: -(s.softmax(-1) * t.log_softmax(-1)).sum(-1),
            "you compute the cross-entropy of the forward KL; the sum should be p (log p - log q)":
                lambda s, t: -(t.softmax(-1) * s.log_softmax(-1)).sum(-1),
            "you weigh with logarithms; the weights should be the student's probabilities":
                _weighed_by(lambda p, q: p.log()),
            "you take the difference of the probabilities; it should be that of their logarithms":
                lambda s, t: (s.softmax(-1) * (s.softmax(-1) - t.softmax(-1))).sum(-1),
            "you take the softmax over the positions; it should be over axis -1, the vocabulary":
                _by_positions,
            "you sum over the positions; it should be over axis -1, the vocabulary": _by_columns,
            "you compute in bits; it should be the natural logarithm":
                lambda s, t: reverse_kl(s, t) / torch.tensor(2.0).log(),
            "you take the mean over the positions; it should be one number for each":
                lambda s, t: reverse_kl(s, t).mean(),
            "you take the sum over the positions; it should be one number for each":
                lambda s, t: reverse_kl(s, t).sum(),
            "you take the mean over positions and vocabulary; it should be the sum over the "
            "vocabulary, at each position":
                lambda s, t: _terms(s, t).mean(),
            "you compute the forward KL, as one number; it should be the reverse KL, one number "
            "for each position": lambda s, t: reverse_kl(t, s).mean(),
            "you compute the forward KL, summed over all; it should be the reverse KL, one number "
            "for each position": lambda s, t: reverse_kl(t, s).sum(),
            "you compute the forward KL and do not sum over the vocabulary; it should be the "
            "reverse KL, summed": lambda s, t: _terms(t, s),
            "you take the logarithm of a softmax, which is -inf for small probabilities; it "
            "should be log_softmax": _log_of_softmax,
            "you give kl_div logits for its first argument; it should be log-probabilities":
                lambda s, t: F.kl_div(t, s.softmax(-1), reduction="none").sum(-1),
            "you compute the forward KL, as the mean over positions and vocabulary; it should "
            "be the reverse KL, summed at each position": lambda s, t: _terms(t, s).mean(),
            "you take the softmax and the sum over the positions; both should be over axis -1, "
            "the vocabulary": lambda s, t: _terms(s.T, t.T).sum(-1),
            "you compute the student's negative entropy; the teacher's log should be subtracted":
                lambda s, t: (s.softmax(-1) * s.log_softmax(-1)).sum(-1),
            "you add the teacher's log; it should be subtracted":
                lambda s, t: (s.softmax(-1) * (s.log_softmax(-1) + t.log_softmax(-1))).sum(-1),
            "you compute the Jensen-Shannon divergence, against the mean of both; it should be "
            "against the teacher": _half_way,
            "you take only the student's likeliest token; it should be the sum over the "
            "vocabulary":
                lambda s, t: (s.log_softmax(-1) - t.log_softmax(-1)).gather(
                    -1, s.argmax(-1, keepdim=True))[:, 0],
            "you keep the summed axis; it should be one number for each position, without an "
            "axis of 1": lambda s, t: reverse_kl(s, t)[:, None],
            "you square differences of logits; it should be the sum of p (log p - log q)":
                lambda s, t: (s - t).square().sum(-1),
            "you add up absolute differences of the probabilities; it should be the sum of p "
            "(log p - log q)": lambda s, t: (s.softmax(-1) - t.softmax(-1)).abs().sum(-1),
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
            "you do not detach the advantage, so the loss has a second gradient; it should only "
            "have that of log p":
                _token(lambda p, q: -(q - p) * p),
            "you detach log p, and let the gradient flow through the advantage; it should be the "
            "other way round": _token(lambda p, q: -(q - p) * p.detach()),
            "you return the estimate of the KL's value, log p - log q, whose gradient is 0 on "
            "average; it should be minus the detached advantage times log p":
                _token(lambda p, q: p - q),
            "you return the advantage; it should be minus the advantage, detached, times log p":
                _token(lambda p, q: q - p),
            "your sign is wrong and pushes the student away from the teacher; the loss should be "
            "minus the advantage times log p":
                _token(lambda p, q: (q - p).detach() * p),
            "your sign is wrong and the advantage has a gradient; it should be minus the detached "
            "advantage times log p":
                _token(lambda p, q: (q - p) * p),
            "you detach the whole loss, so nothing can be learned; only the advantage should be "
            "detached":
                _token(lambda p, q: (-(q - p) * p).detach()),
            "you learn log q; the last factor should be log p":
                _token(lambda p, q: -(q - p).detach() * q),
            "you weigh the loss with the probability once more; tokens are sampled as often as "
            "they are likely already, so it should be left out":
                _token(lambda p, q: -(q - p).detach() * p * p.exp().detach()),
            "your advantage is log q alone; it should be log q - log p":
                _token(lambda p, q: -q.detach() * p),
            "your advantage is a difference of probabilities; it should be that of their "
            "logarithms": _token(lambda p, q: -(q.exp() - p.exp()).detach() * p),
            "your advantage is the quotient q / p; it should be its logarithm":
                _token(lambda p, q: -(q - p).exp().detach() * p),
            "you use raw logits; log_softmax should come before you pick the token":
                with_gradient(_raw_logits),
            "you leave the advantage out, which is cross-entropy on what the student wrote itself; "
            "it should be multiplied with it":
                _token(lambda p, q: -p),
            "your last factor is a probability; it should be log p":
                _token(lambda p, q: -(q - p).detach() * p.exp()),
            "you return the mean; it should be a loss for each position":
                _token(lambda p, q: (-(q - p).detach() * p).mean()),
            "you return the sum; it should be a loss for each position":
                _token(lambda p, q: (-(q - p).detach() * p).sum()),
            "you take every token at every position, N x N; each position should have its own "
            "token": _picked(lambda logs, token: logs[:, token]),
            "you pick rows by the tokens; it should be the token's column, in its own row":
                _picked(lambda logs, token: logs[token % len(logs)]),
            "you keep the axis of the picked token, N x 1; it should be one number for each "
            "position": _picked(lambda logs, token: logs.gather(-1, token[:, None])),
            "you pick the likeliest token; it should be the sampled one, `token`":
                _picked(lambda logs, token: logs.amax(-1)),
            "you take all tokens of the vocabulary; it should be the sampled one, `token`":
                _picked(lambda logs, token: logs),
            "you take the softmax over the positions; it should be over axis -1, the vocabulary":
                with_gradient(_over_positions),
            "you take probabilities; log_softmax should come before you pick the token":
                with_gradient(_from_probabilities),
            "you return the detached advantage alone, so nothing can be learned; it should be "
            "minus that times log p": _token(lambda p, q: -(q - p).detach()),
            "your advantage is q / p - 1; it should be log q - log p":
                _token(lambda p, q: -((q - p).exp() - 1).detach() * p),
            "you subtract the mean advantage; it should be log q - log p alone":
                _token(lambda p, q: -((q - p) - (q - p).mean()).detach() * p),
            "you add log p; it should be multiplied with the advantage":
                _token(lambda p, q: -((q - p).detach() + p)),
            "you compute the teacher's surprise, -log q, which has no gradient; it should be "
            "minus the detached advantage times log p": _token(lambda p, q: -q),
            "you compute the whole reverse KL; it should be from the sampled token alone":
                with_gradient(lambda student, teacher, token: reverse_kl(student, teacher)),
        },
        hints=(
            "Two numbers for each position: the log-probability that each model gives to the "
            "token which was sampled.",
            "x.log_softmax(-1).gather(-1, token[:, None])[:, 0] is such a number.",
            "-(logq - logp).detach() * logp",
        ),
        gradient=False,
    ),
    Check(
        "distillation.mean_weights", mean_weights, _mean_cases,
        mistakes={
            "you still average tables of integers, cut them to whole numbers, and name none; "
            "tid2eid holds numbers of experts, so the first model's should be kept, and those that "
            "differ named":
                _mean(_cut, _never),
            "you average tables of integers, round them, and name none; tid2eid holds numbers of "
            "experts, so the first model's should be kept, and those that differ named":
                _mean(_rounded, _never),
            "you average tables of integers and round them; tid2eid holds numbers of experts, and "
            "the first model's should be kept": _mean(_rounded),
            "you average tables of integers and cut them to whole numbers; tid2eid holds numbers "
            "of experts, and the first model's should be kept":
                _mean(_cut),
            "you average tables of integers, and they come out as floats; the first model's should "
            "be kept":
                _mean(_floats),
            "you average tables of integers, which come out as floats, and name none; the first "
            "model's should be kept, and those that differ named":
                _mean(_floats, _never),
            "you average all tensors alike, tables of integers too; the first model's tables "
            "should be kept, those that differ named, and weights added in float32":
                _plain_average,
            "you name all tables of integers; it should be only those that differ between the "
            "models":
                _mean(_first, lambda tables: True),
            "you name no table; it should be those that differ between the models":
                _mean(_first, _never),
            "you name the tables that are the same; it should be those that differ":
                _mean(_first, lambda tables: not _differ(tables)),
            "you compare the first two models only; it should be all of them":
                _mean(_first, lambda tables: not torch.equal(tables[0], tables[1])),
            "you compare the first model with the last only; it should be all of them":
                _mean(_first, lambda tables: not torch.equal(tables[0], tables[-1])),
            "you name a table only if all other models differ from the first; one should be enough":
                _mean(_first, lambda tables: not any(torch.equal(tables[0], table)
                                                     for table in tables[1:])),
            "you name a table once for each model that differs; it should be named once":
                _named_for_each,
            "you name weights that differ as well; it should be tables of integers alone":
                _floats_named_too,
            "you keep the last model's tables; it should be the first's":
                _mean(lambda tables: tables[-1].clone()),
            "you leave the tables out of the mean; it should hold the first model's":
                _tables_left_out,
            "you sum the weights; the sum should be divided by the number of models":
                _mean(_first, combine=lambda x: x.sum(0)),
            "you divide by 2 whatever the number of models; it should be their number":
                _mean(_first, combine=lambda x: x.sum(0) / 2),
            "you average the first two models only; it should be all of them":
                _mean(_first, combine=lambda x: x[:2].mean(0)),
            "you return the first model's weights; it should be the mean":
                _mean(_first, combine=lambda x: x[0]),
            "you take the mean of all numbers of a tensor; it should be over the models":
                _mean(_first, combine=lambda x: x.mean()),
            "you add bfloat16 tensors in bfloat16; it should be in float32, and then back":
                _in_bfloat16,
            "your mean stays in float32; each tensor should get its own type back": _all_float32,
            "you return the mean alone; it should be the mean and the names":
                lambda states: mean_weights(states)[0],
            "you take each entry that most models have; the first model's table should be kept "
            "as it is": _mean(lambda tables: torch.stack(tables).mode(0).values),
            "you take the median of tables of integers; the first model's should be kept":
                _mean(lambda tables: torch.stack(tables).median(0).values),
            "you name a table only if every entry differs; one entry should be enough":
                _mean(_first, lambda tables: any(bool((tables[0] != t).all()) for t in tables[1:])),
            "you compare the tables' sums; tables with the same sum can differ, so it should be "
            "each entry": _mean(_first, lambda tables: len({int(t.sum()) for t in tables}) > 1),
            "you average the mean so far with the next model, so later models count more; each "
            "should count alike": _mean(_first, combine=_pairs_averaged),
            "you take the median of the weights; it should be the mean":
                _mean(_first, combine=lambda x: x.median(0).values),
            "your mean stays in float64; each tensor should get its own type back": _in_double,
            "you leave the tables that differ out of the mean; it should hold the first model's":
                _odd_left_out,
            "you average all tensors in float32 and leave them so, and name none; the first "
            "model's tables should be kept, those that differ named, and each tensor get its "
            "own type back": _all_in_float32,
            "you return the number of names; it should be their list":
                lambda states: (mean_weights(states)[0], len(mean_weights(states)[1])),
        },
        hints=(
            "Two kinds of tensors: numbers that have a mean, and numbers that are names.",
            "t.is_floating_point() tells them apart; torch.equal(a, b) tells whether two tables "
            "are the same.",
            "torch.stack([s[name].float() for s in states]).mean(0).to(t.dtype), or "
            "states[0][name] and a note in `odd`.",
        ),
        gradient=False,
    ),
    Check(
        "distillation.opd_loss", opd_loss, _opd_cases,
        mistakes={
            "you take the mean over all tokens, so the family with the longest answers decides; "
            "it should be the mean of each family, by weight":
                lambda kl, f, w: kl.mean(),
            "you weigh tokens, so a family with long answers counts more than its weight says; it "
            "should be each family's mean first":
                lambda kl, f, w: (w[f] * kl).sum() / w[f].sum(),
            "you weigh tokens and divide by their number; it should be each family's mean first":
                lambda kl, f, w: (w[f] * kl).mean(),
            "you weigh tokens and sum them; it should be each family's mean first":
                lambda kl, f, w: (w[f] * kl).sum(),
            "you forget the weights, and each family counts alike; it should be the sum by weight":
                _opd(lambda w, there: 1 / len(there)),
            "you forget the weights and add up the families' means; it should be the sum by weight":
                _opd(lambda w, there: 1.0),
            "you lose the weights of families that are not in the batch; those that are there "
            "should be scaled to sum 1":
                _opd(lambda w, there: w[there]),
            "you divide by the sum of all weights; it should be the sum of those of the families "
            "that are there": _opd(lambda w, there: w[there] / w.sum()),
            "you divide by the number of families; it should be by the sum of the weights of those "
            "that are there": _opd(lambda w, there: w[there] / len(there)),
            "you scale the weights to sum 1 and divide by the number of families as well; it "
            "should be the sum":
                _opd(lambda w, there: _share(w, there) / len(there)),
            "you scale the weights by softmax; they should be divided by their sum":
                _opd(lambda w, there: w[there].softmax(0)),
            "you sum a family's tokens; it should be their mean": _opd(each=lambda x: x.sum()),
            "you take the first weights; w[i] belongs to the family with the number i":
                _opd(lambda w, there: w[: len(there)] / w[: len(there)].sum()),
            "you take the families in the order in which they appear; w[i] belongs to the family "
            "with the number i": _in_order_of_appearance,
            "you return one number for each family; it should be their sum":
                lambda kl, f, w: torch.stack([kl[f == i].mean() for i in f.unique()]) * _share(
                    w, f.unique()),
            "you take the mean of a family without tokens, which is nan; families that are not "
            "in the batch should be left out, and their weights too":
                _empty_means(lambda w: w / w.sum()),
            "you take the mean of a family without tokens, which is nan, and do not scale the "
            "weights; those of the families that are there should be scaled to sum 1":
                _empty_means(lambda w: w),
            "you divide by the number of weights; it should be by the sum of the weights of the "
            "families that are there":
                lambda kl, f, w: _opd(lambda w, there: w[there])(kl, f, w) / len(w),
            "you scale all weights by softmax; those of the families that are there should be "
            "divided by their sum": _opd(lambda w, there: w.softmax(0)[there]),
            "you divide by the weights; they should be multiplied with":
                _opd(lambda w, there: (1 / w[there]) / (1 / w[there]).sum()),
            "you take the largest family mean; it should be the sum by weight":
                lambda kl, f, w: torch.stack([kl[f == i].mean() for i in f.unique()]).max(),
            "you take the median of a family's tokens; it should be their mean":
                _opd(each=lambda x: x.median()),
        },
        hints=(
            "First one number for each family, then the sum of these by weight.",
            "family.unique() are the numbers of the families that are there; kl[family == "
            "i].mean() is one family's mean.",
            "Divide by the sum of the weights of the families that are there.",
        ),
    ),
]
