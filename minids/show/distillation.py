"""Figures of lesson 13: two divergences, accumulated errors, descents, training."""

import matplotlib.pyplot as plt
import torch

from minids.show import style
from minids.show.drawing import bar_places, interval_bars

PLACES = torch.arange(-10.0, 11.0)                  # 21 tokens on a line
CENTRES = torch.arange(-7.0, 7.5, 0.5)
WIDTHS = torch.arange(0.8, 7.0, 0.2)


def bump(centre, width):
    """Log-probabilities over the tokens on the line: ... -> ... 21."""
    centre, width = torch.as_tensor(centre), torch.as_tensor(width)
    return (-((PLACES - centre[..., None]) / width[..., None]) ** 2 / 2).log_softmax(-1)


def two_humps():
    """A teacher with two ways to answer, the left one a little likelier: 21 log-probabilities."""
    return (0.55 * bump(-4.0, 1.2).exp() + 0.45 * bump(4.0, 1.2).exp()).log()


def kl(a, b):
    """KL(a || b) of log-probabilities, ... 21 -> ..."""
    return (a.exp() * (a - b)).sum(-1)


def divergences(centre, width) -> tuple[float, float]:
    """Forward KL(teacher || student) and reverse KL(student || teacher) of the bump, in nats."""
    student, teacher = bump(centre, width), two_humps()
    return kl(teacher, student).item(), kl(student, teacher).item()


def best_fit(which: str) -> tuple[float, float]:
    """Centre and width of the bump with the smallest "forward" or "reverse" KL, on a grid."""
    student, teacher = bump(CENTRES[:, None], WIDTHS), two_humps()
    loss = kl(teacher, student) if which == "forward" else kl(student, teacher)  # centres widths
    i, j = divmod(int(loss.argmin()), len(WIDTHS))
    return CENTRES[i].item(), WIDTHS[j].item()


def _bars(ax, centre, width, colour, title):
    ax.bar(PLACES.tolist(), two_humps().exp().tolist(), width=0.9, color="#C8C8C8", label="teacher")
    ax.plot(PLACES.tolist(), bump(centre, width).exp().tolist(), "o-", color=colour, markersize=3.5,
            label="student")
    ax.set(xlabel="token, in order on a line", ylim=(0, 0.36), title=title)


def plot_two_fits():
    """Plot the teacher and the two best students with one bump."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.2), sharey=True)
    names = {"forward": "least KL(teacher || student): covers",
             "reverse": "least KL(student || teacher): seeks"}
    for ax, (which, title), colour in zip(axes, names.items(), (style.ORANGE, style.BLUE)):
        _bars(ax, *best_fit(which), colour, title)
        ax.legend(fontsize=9)
    axes[0].set_ylabel("probability")
    return figure


def plot_student(centre, width):
    """Plot one student, and its two divergences as bars."""
    forward, reverse = divergences(centre, width)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.0), width_ratios=(2.4, 1))
    _bars(left, centre, width, style.BLUE, f"student: centre {centre:g}, width {width:g}")
    left.set_ylabel("probability")
    left.legend(fontsize=9)
    bars = right.bar(["forward", "reverse"], [min(forward, 6), min(reverse, 6)],
                     color=[style.ORANGE, style.BLUE])
    right.bar_label(bars, [f"{forward:.2f}", f"{reverse:.2f}"])
    right.set(ylabel="KL (nats)", ylim=(0, 6.6), title="cut off at 6")
    return figure


def plot_landscape():
    """Plot both divergences over centre and width; crosses mark the minima."""
    student, teacher = bump(CENTRES[:, None], WIDTHS), two_humps()
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharey=True)
    extent = [v.item() for v in (CENTRES[0] - 0.25, CENTRES[-1] + 0.25, WIDTHS[0] - 0.1,
                                 WIDTHS[-1] + 0.1)]
    for ax, which, loss in zip(axes, ("forward", "reverse"),
                               (kl(teacher, student), kl(student, teacher))):
        field = ax.imshow(loss.clamp(max=4).T.numpy(), origin="lower", aspect="auto", extent=extent,
                          vmin=0, vmax=4)
        ax.plot(*best_fit(which), "x", color="white", markersize=10, markeredgewidth=2.5)
        ax.set(xlabel="centre of the student", title=f"{which} KL")
    axes[0].set_ylabel("width of the student")
    figure.colorbar(field, ax=axes, label="nats, cut off at 4")
    return figure


def plot_lost(chance: dict):
    """Plot each writer's chance of being off the path over the steps. chance: {name: shares}."""
    figure, ax = plt.subplots(figsize=(7.0, 3.2))
    for (name, share), colour in zip(chance.items(), (style.VERMILION, style.BLUE, style.BLACK)):
        ax.plot(range(len(share)), (100 * torch.as_tensor(share)).tolist(), color=colour,
                label=name)
    ax.set(xlabel="steps", ylabel="more than 2 off the path (%)",
           title="Errors that nobody taught it to fix", ylim=(0, None))
    ax.legend(fontsize=10)
    return figure


def plot_descents(runs: dict):
    """Plot the true KL over steps, thin lines where there are several runs.

    runs: {name: R steps}.
    """
    figure, ax = plt.subplots(figsize=(7.0, 3.4))
    for (name, losses), colour in zip(runs.items(), (style.VERMILION, style.BLUE)):
        line = {"linewidth": 0.8, "alpha": 0.6} if len(losses) > 1 else {"linewidth": 2}
        for i, row in enumerate(torch.as_tensor(losses).tolist()):
            ax.plot(range(len(row)), row, color=colour, label=None if i else name, **line)
    ax.set(xlabel="step", ylabel="true KL (nats)", ylim=(0, None),
           title="The same step size for all")
    ax.legend(fontsize=10)
    return figure


def plot_kl(runs: dict):
    """Plot the student's KL to its teachers over seconds of training.

    runs: {name: (seconds of each step, KL of each step)}.
    """
    figure, ax = plt.subplots(figsize=(7.0, 3.4))
    for (name, (seconds, kls)), colour in zip(runs.items(),
                                              (style.BLUE, style.ORANGE, style.GREEN)):
        ax.plot(torch.tensor(seconds).cumsum(0).tolist(), kls, color=colour, label=name)
    ax.set(xlabel="seconds of training (processor time)", ylabel="KL(student || teacher), nats",
           ylim=(0, None), title="On the texts that each step learned from")
    ax.legend(fontsize=10)
    return figure


def plot_report(rows: dict, label: str, always: dict | None = None):
    """Plot bars with intervals.

    rows: {model: {family: (value, low, high)}}; always: {answer: accuracy of always saying it}.
    """
    figure, ax = plt.subplots(figsize=(8.0, 3.6))
    families = list(next(iter(rows.values())))
    for k, (family, colour) in enumerate(zip(families, (style.BLUE, style.ORANGE, style.GREEN,
                                                        style.PURPLE))):
        interval_bars(ax, bar_places(len(rows), k, len(families)),
                      [row[family] for row in rows.values()], 0.76 / len(families), colour, family)
    for i, (answer, share) in enumerate(sorted((always or {}).items(), key=lambda item: -item[1])):
        ax.axhline(share, color=style.BLACK, linestyle=":", linewidth=1.2, zorder=0,
                   label=None if i else "one answer to all of mathematics")
        ax.text(1.01, share, f'always "{answer}"', fontsize=9, va="top" if i else "bottom",
                transform=ax.get_yaxis_transform())
    ax.set_xticks(range(len(rows)), [name.replace(" ", "\n") for name in rows])
    ax.set(ylabel=label, ylim=(0, None))
    figure.legend(fontsize=10, loc="outside upper center", ncols=3)
    return figure
