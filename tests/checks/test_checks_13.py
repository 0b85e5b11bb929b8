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


def opd_by_loop(kl, family, weights):
    total, share = 0.0, 0.0
    for i, w in enumerate(weights):
        if (family == i).any():
            total, share = total + w * kl[family == i].mean(), share + w
    return total / share


@pytest.mark.parametrize("name, attempt", [
    ("distillation.reverse_kl", distill.divergence), ("distillation.reverse_kl", kl_by_torch),
    ("distillation.token_loss", checks.with_gradient(distill.token_loss)),
    ("distillation.opd_loss", opd_by_loop),
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


def difference_of_losses(student, teacher, token):
    losses = (F.cross_entropy(x, token, reduction="none") for x in (teacher, student))
    return next(losses) - next(losses)


@pytest.mark.parametrize("name, attempt, words", [
    ("distillation.reverse_kl", kl_div_as_its_arguments_suggest, "forward KL"),
    ("distillation.reverse_kl", lambda s, t: s.softmax(-1) * (s.softmax(-1) / t.softmax(-1)).log(),
     "not summed over"),
    ("distillation.reverse_kl", lambda s, t: (s.softmax(-1) * (s - t)).sum(-1), "not normalised"),
    ("distillation.token_loss", checks.with_gradient(difference_of_losses),
     "0 on average"),
    ("distillation.mean_weights", average_everything, "In the case"),
    ("distillation.opd_loss", lambda kl, f, w: (kl * w[f]).sum(), "In the case"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(checks.CHECKS)))
def test_every_known_mistake_hears_its_message(number, capsys):
    this = checks.CHECKS[number]
    for message, wrong in this.mistakes.items():
        check(this.name, wrong)
        assert f"Likely: {message}." in capsys.readouterr().out


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
