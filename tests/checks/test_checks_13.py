"""Lesson 13: right answers written otherwise pass, slips are named, toys do as the text says."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import Config, Model
from minids.learn.checks import distillation as checks
from minids.learn.judge import check
from minids.posttrain import distill
from minids.show import distillation


def kl_by_torch(student, teacher):
    return F.kl_div(teacher.log_softmax(-1), student.log_softmax(-1), reduction="none",
                    log_target=True).sum(-1)


def kl_without_the_teacher(student, teacher):
    with torch.no_grad():
        logq = F.log_softmax(teacher, dim=1)
    logp = student - student.logsumexp(-1, keepdim=True)
    return torch.einsum("nv,nv->n", logp.exp(), logp - logq)


def kl_by_cross_entropy(student, teacher):
    p, logp = student.softmax(-1), student.log_softmax(-1)
    return F.cross_entropy(teacher, p, reduction="none") - -(p * logp).sum(-1)


def opd_with_plain_weights(kl, family, weights):
    means = {i: kl[family == i].mean() for i in set(family.tolist())}
    whole = sum(weights[i].item() for i in means)
    return sum(weights[i].item() / whole * mean for i, mean in means.items())


def mean_by_adding(states):
    mean, odd = {}, []
    for name, first in states[0].items():
        if first.dtype in (torch.float32, torch.bfloat16):
            total = torch.zeros(first.shape)
            for state in states:
                total += state[name]
            mean[name] = (total / len(states)).to(first.dtype)
        else:
            mean[name] = first
            if any((state[name] != first).any() for state in states):
                odd.append(name)
    return (mean, odd)


def token_loss_by_index(student, teacher, token):
    rows = torch.arange(len(token))
    p, q = student.log_softmax(-1)[rows, token], teacher.log_softmax(-1)[rows, token]
    with torch.no_grad():
        advantage = q - p
    return -advantage * p


def opd_by_loop(kl, family, weights):
    total, share = 0.0, 0.0
    for i, w in enumerate(weights):
        if (family == i).any():
            total, share = total + w * kl[family == i].mean(), share + w
    return total / share


@pytest.mark.parametrize("name, attempt", [
    ("distillation.reverse_kl", distill.divergence), ("distillation.reverse_kl", kl_by_torch),
    ("distillation.token_loss", checks.with_gradient(distill.token_loss)),
    ("distillation.opd_loss", opd_by_loop), ("distillation.reverse_kl", kl_without_the_teacher),
    ("distillation.reverse_kl", kl_by_cross_entropy),
    ("distillation.opd_loss", opd_with_plain_weights),
    ("distillation.mean_weights", mean_by_adding),
    ("distillation.token_loss", checks.with_gradient(token_loss_by_index)),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def kl_div_as_its_arguments_suggest(student, teacher):
    return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)


def average_everything(states):
    mean = {}
    for name, t in states[0].items():
        mean[name] = torch.stack([state[name].float() for state in states]).mean(0).to(t.dtype)
    return mean, []


def token_log(logits, token):
    return logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1)


def difference_of_losses(student, teacher, token):
    losses = (F.cross_entropy(x, token, reduction="none") for x in (teacher, student))
    return next(losses) - next(losses)


def compares(some):
    """A merge that looks at some of the other models when it names tables."""
    def attempt(states):
        mean, odd = mean_by_adding(states)
        return mean, [name for name, t in states[0].items() if not t.is_floating_point()
                      and any(not torch.equal(t, state[name]) for state in some(states))]
    return attempt


def mean_of_two(states):
    mean, odd = mean_by_adding(states)
    for name, t in mean.items():
        if t.is_floating_point():
            mean[name] = ((states[0][name].float() + states[1][name].float()) / 2).to(t.dtype)
    return mean, odd


@pytest.mark.parametrize("name, attempt, words", [
    ("distillation.token_loss", checks.with_gradient(lambda s, t, x: -(
        t.log_softmax(-1)[:, x] - s.log_softmax(-1)[:, x]).detach() * s.log_softmax(-1)[:, x]),
     "N x N"),
    ("distillation.opd_loss", lambda kl, f, w: (w / w.sum() * torch.stack(
        [kl[f == i].mean() for i in range(len(w))])).sum(), "a family without tokens"),
    ("distillation.reverse_kl", lambda s, t: (s.softmax(-1) * (
        s.softmax(-1) / t.softmax(-1)).log()).sum(-1), "the logarithm of a softmax"),
    ("distillation.reverse_kl", lambda s, t: (s.softmax(-1) * (
        s.softmax(-1).log() - t.softmax(-1).log())).sum(-1), "the logarithm of a softmax"),
    ("distillation.reverse_kl", lambda s, t: F.kl_div(
        s.log_softmax(-1), t.softmax(-1), reduction="batchmean"), "[not yet]"),
    ("distillation.mean_weights", compares(lambda states: states[1:2]), "the first two models"),
    ("distillation.mean_weights", compares(lambda states: states[-1:]), "with the last only"),
    ("distillation.mean_weights", mean_of_two, "you average the first two models only"),
    ("distillation.opd_loss", lambda kl, f, w: (w[f] * kl).sum() / w[f].sum(), "you weigh tokens"),
    ("distillation.opd_loss", lambda kl, f, w: sum(
        w[i] * kl[f == i].mean() for i in f.unique()), "you lose the weights"),
    ("distillation.token_loss", checks.with_gradient(lambda s, t, x: -(
        token_log(t, x) - token_log(s, x)) * token_log(s, x)), "you do not detach the advantage"),
    ("distillation.reverse_kl", kl_div_as_its_arguments_suggest, "forward KL"),
    ("distillation.reverse_kl", lambda s, t: s.softmax(-1) * (
        s.log_softmax(-1) - t.log_softmax(-1)), "you do not sum over"),
    ("distillation.reverse_kl", lambda s, t: (s.softmax(-1) * (s - t)).sum(-1),
     "you do not normalise"),
    ("distillation.token_loss", checks.with_gradient(difference_of_losses),
     "0 on average"),
    ("distillation.mean_weights", average_everything, "you still average tables"),
    ("distillation.opd_loss", lambda kl, f, w: (kl * w[f]).sum(), "you weigh tokens and sum"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_mean_is_the_packages():
    torch.manual_seed(0)
    models = [Model(Config.nano()) for _ in range(2)]
    table = next(name for name in models[0].state_dict() if name.endswith("tid2eid"))
    assert checks.mean_weights([m.state_dict() for m in models])[1] == [table]      # two bases
    models[1].state_dict()[table].copy_(models[0].state_dict()[table])
    mean, odd = checks.mean_weights([m.state_dict() for m in models])
    assert not odd
    for name, t in distill.average(models).state_dict().items():
        torch.testing.assert_close(mean[name], t)


def test_the_two_fits_cover_and_seek():
    """What the picture of the two divergences claims."""
    (_, wide), (centre, narrow) = distillation.best_fit("forward"), distillation.best_fit("reverse")
    assert wide > 2 * narrow and abs(centre) > 3


@pytest.mark.slow
def test_figures_draw():
    curves = torch.rand(3, 20)
    for figure in (distillation.plot_two_fits(), distillation.plot_student(0.0, 4.0),
                   distillation.plot_landscape(),
                   distillation.plot_lost({"a": curves[0], "b": curves[1]}),
                   distillation.plot_descents({"a": curves, "b": curves}),
                   distillation.plot_kl({"a": ([1.0, 2.0], [3.0, 2.0])}),
                   distillation.plot_report({"m": {"f": (0.1, 0.0, 0.3)},
                                             "n": {"f": (0.2, 0.1, 0.3)}}, "x")):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
