"""Figures of lesson 03: what a query reads, frequencies, effects of changes, what entries keep."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap, PowerNorm
from matplotlib.patches import Patch

from minids.show.drawing import cell
from minids.show.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    length_ticks,
    signed,
)

WAYS = {"later than the query": "#EEEEEE", "only through an entry": SKY,
        "entry and sliding window": GREEN, "only in the sliding window": ORANGE,
        "not at all": VERMILION}


def ways(T, w, m):
    """How the query at t (row) reads the token at s (column): an index into WAYS, T T."""
    t, s = torch.arange(T)[:, None], torch.arange(T)
    entry, near = s < (t + 1) // m * m, s > t - w
    kind = torch.where(entry, torch.where(near, 2, 1), torch.where(near, 3, 4))
    return torch.where(s > t, 0, kind)


def plot_reading(t, w, m, T):
    """Draw one query: the tokens it reads, and the entries below them."""
    figure, axis = plt.subplots(figsize=(10.2, 2.7))
    colours, complete = list(WAYS.values()), (t + 1) // m
    for s, kind in enumerate(ways(T, w, m)[t].tolist()):
        cell(axis, s + 0.06, 1.55, 0.88, 0.8, s if T <= 32 or s % 4 == 0 or s == t else "",
             fontsize=8.5 if T <= 32 else 7, facecolor=colours[kind], edgecolor=BLACK,
             linewidth=2.2 if s == t else 0.6)
    axis.annotate("query", (t + 0.5, 2.36), (t + 0.5, 2.9), ha="center", fontsize=10,
                  arrowprops={"arrowstyle": "-", "color": BLACK})
    for i in range(T // m):
        done = i < complete
        text = f"entry {i}\nnot complete" if i == complete and i * m <= t else f"entry {i}"
        cell(axis, i * m + 0.1, 0.35, m - 0.2, 0.7, text, fontsize=9,
             ink=BLACK if done else "#666666", facecolor=SKY if done else "white", edgecolor=BLACK,
             linewidth=0.8, linestyle="-" if done else ":")
        for edge in (i * m + 0.1, (i + 1) * m - 0.1):
            axis.plot([edge, edge], [1.05, 1.5], color=BLACK if done else "#AAAAAA", linewidth=0.7)
    axis.set_xlim(-0.2, T + 0.2)
    axis.set_ylim(0.2, 3.2)
    axis.axis("off")
    axis.legend(handles=[Patch(facecolor=c, edgecolor=BLACK, linewidth=0.5, label=n)
                         for n, c in WAYS.items()], ncols=5, loc="upper center",
                bbox_to_anchor=(0.5, 0.02), fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def plot_reach(T, m, widths):
    """Plot all queries against all tokens, one panel for each width of the sliding window."""
    figure, axes = plt.subplots(1, len(widths), figsize=(10.2, 4.1), sharey=True)
    colours = ListedColormap(list(WAYS.values()))
    for axis, w in zip(axes, widths):
        axis.imshow(ways(T, w, m).numpy(), cmap=colours,
                    norm=BoundaryNorm(range(len(WAYS) + 1), len(WAYS)), interpolation="nearest")
        axis.set_title(f"m = {m}, w = {w}")
        axis.set_xlabel("token s")
        axis.set_xticks(range(0, T, m))
        axis.set_yticks(range(0, T, m))
        axis.grid(False)
    axes[0].set_ylabel("query t")
    figure.legend(handles=[Patch(facecolor=c, edgecolor=BLACK, linewidth=0.5, label=n)
                           for n, c in WAYS.items()], ncols=5, loc="outside lower center",
                  fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def plot_periods(curves, low, high, original, longest):
    """Plot the tokens in a full rotation of each pair of channels. curves: {name: periods}."""
    figure, axis = plt.subplots(figsize=(8.2, 4.2))
    for (name, line), style, colour in zip(curves.items(), ("--", "-.", "-"),
                                           (ORANGE, BLUE, GREEN)):
        axis.plot(line, linestyle=style, color=colour, label=name,
                  linewidth=2.4 if style == "-" else 1.8)
    axis.axvspan(low, high, color=BLACK, alpha=0.07)
    axis.text((low + high) / 2, 4e6, f"the ramp\npairs {low} to {high}", ha="center", fontsize=10)
    for y, text in ((original, f"{original:,} tokens: the original length"),
                    (longest, f"{longest:,} tokens: V4's context")):
        axis.axhline(y, color=BLACK, linewidth=0.8, linestyle=":")
        axis.text(0, y * 1.2, text, fontsize=10)
    axis.set_yscale("log")
    axis.set_ylim(3, 4e7)
    axis.set_xlabel("pair of channels (0 rotates fastest)")
    axis.set_ylabel("tokens in a full rotation")
    axis.legend(loc="lower right")
    return figure


def plot_changes(maps, m):
    """Plot how much output t moves when token s changes; white: not at all. maps: {title: T T}."""
    figure, axes = plt.subplots(1, len(maps), figsize=(10.2, 4.4), sharey=True)
    colours = plt.get_cmap("cividis").with_extremes(bad="white")
    for axis, (title, change) in zip(axes, maps.items()):
        T = len(change)
        seen = torch.where(change > 1e-4, change.clamp_min(1e-4).log10(), torch.nan)
        image = axis.imshow(seen.numpy(), cmap=colours, vmin=-2.5, vmax=0.5,
                            interpolation="nearest")
        axis.plot([-0.5, T - 0.5], [-0.5, T - 0.5], color=VERMILION, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel("token s that was changed")
        axis.set_xticks(range(0, T, m))
        axis.set_yticks(range(0, T, m))
        axis.grid(True, color=BLACK, alpha=0.2, linewidth=0.5)
    axes[0].set_ylabel("output t")
    figure.colorbar(image, ax=axes, label="size of the change (log10)", shrink=0.85)
    return figure


def plot_halves(runs, chance):
    """Plot losses over training on both halves of a text.

    runs: {name: [(first half, second half)]}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.7), sharey=True)
    titles = "first half: random, nobody can know it", "second half: a copy of the first"
    # the third may lie on the first
    styles = ({"color": BLUE, "linewidth": 6, "alpha": 0.35}, {"color": VERMILION},
              {"color": BLACK, "linestyle": "--", "linewidth": 1.2})
    for i, (axis, title) in enumerate(zip(axes, titles)):
        for (name, line), style in zip(runs.items(), styles):
            axis.plot([step[i] for step in line], label=name, **style)
        axis.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel("training step")
        axis.set_ylim(0, chance + 0.5)
    axes[0].text(0, chance + 0.15, "ln 16: pure guessing", fontsize=10)
    axes[0].set_ylabel("loss (nats per token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  fontsize=10)
    return figure


def plot_tasks(scores, chance):
    """Plot accuracies as dots, and the accuracy of a good guess as lines.

    scores: {task: {pooling: accuracies of several seeds}}; chance: {task: accuracy or None}.
    """
    figure, axes = plt.subplots(1, len(scores), figsize=(10.2, 3.6), sharey=True)
    for axis, (task, rows) in zip(axes, scores.items()):
        for x, (values, colour) in enumerate(zip(rows.values(), (BLACK, BLUE, ORANGE, GREEN))):
            axis.bar(x, sum(values) / len(values), color=colour, alpha=0.35, width=0.7)
            axis.scatter([x - 0.15 + 0.15 * i for i in range(len(values))], values, color=colour,
                         s=22, zorder=3)
        if chance[task] is not None:
            axis.axhline(chance[task], color=BLACK, linewidth=0.9, linestyle=":")
        axis.set_title(task)
        axis.set_xticks(range(len(rows)), rows)
        axis.set_ylim(0, 1.05)
        axis.grid(False, axis="x")
    axes[0].set_ylabel("accuracy")
    return figure


def plot_weights(fields):
    """Plot the weights of a window's tokens (rows) in each channel (columns).

    fields: {title: m c}.
    """
    figure, axes = plt.subplots(1, len(fields), figsize=(10.2, 3.6), sharey=True)
    for axis, (title, field) in zip(axes, fields.items()):
        image = axis.imshow(field.numpy(), norm=PowerNorm(0.5, 0, 1), aspect="auto",
                            interpolation="nearest")
        axis.set_title(title)
        axis.set_xlabel("channel")
        axis.grid(False)
    axes[0].set_ylabel("place in the window")
    figure.colorbar(image, ax=axes, label="weight (columns sum to 1)")
    return figure


def plot_recovery(rows, chance):
    """Plot accuracy for each place in the window. rows: {name: shares}."""
    figure, axis = plt.subplots(figsize=(8.6, 3.8))
    styles = zip(rows.items(), ("^", "o", "s", "x"), (BLACK, BLUE, ORANGE, PURPLE))
    for (name, values), marker, colour in styles:
        axis.plot(values, marker=marker, color=colour, label=name, linewidth=1.2)
    axis.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":")
    axis.text(len(values) - 0.55, chance + 0.01, "guessing", fontsize=10, va="bottom")
    axis.set_xlim(-0.5, len(values) + 1.0)
    axis.set_ylim(0, 1.02)
    axis.set_xticks(range(len(values)))
    axis.set_xlabel("place of the token in its window")
    axis.set_ylabel("picked out of 16 (share)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.48, 1.2), ncols=4, fontsize=9,
                columnspacing=1.2)
    return figure


def plot_damage(rows):
    """Plot changes of the loss. rows: {what was removed: (mean change, its standard error)}."""
    figure, axis = plt.subplots(figsize=(8.2, 0.5 * len(rows) + 1.1))
    for y, (mean, error) in enumerate(rows.values()):
        axis.errorbar(mean, y, xerr=2 * error, fmt="o", color=BLUE, capsize=4)
        axis.text(1.02, y, f"{signed(mean, 4)} +- {2 * error:.4f}",
                  transform=axis.get_yaxis_transform(), va="center", fontsize=10)
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("change of the held-out loss (nats per token; bars: two standard errors)")
    return figure


def plot_cache(lengths, curves, entry_bytes):
    """Plot the keys that a query reads in one layer over the context; the right axis counts bytes.

    curves: {name: counts}.
    """
    figure, axis = plt.subplots(figsize=(8.2, 4.0))
    for (name, counts), style, colour in zip(curves.items(), ("-", "-", "--"),
                                             (VERMILION, BLUE, ORANGE)):
        axis.plot(lengths, counts, linestyle=style, color=colour, label=name, linewidth=2.2)
        axis.annotate(f"{counts[-1]:,}", (lengths[-1], counts[-1]), (5, 0),
                      textcoords="offset points", va="center")
    length_ticks(axis, lengths)
    axis.set_yscale("log")
    axis.set_xlim(lengths[0], lengths[-1] * 4)
    axis.set_xlabel("context (tokens)")
    axis.set_ylabel("keys in one layer's cache")
    right = axis.secondary_yaxis("right", functions=(lambda y: y * entry_bytes / 1e6,
                                                     lambda y: y * 1e6 / entry_bytes))
    right.set_ylabel(f"megabytes ({entry_bytes} bytes a key)")
    axis.legend(loc="upper left")
    return figure
