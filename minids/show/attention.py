"""Figures of lesson 02: the layer's path, caches, rotated channels, reach, sinks, faults."""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm

from minids.show.drawing import arrow, box, canvas, cell, plot_verdicts
from minids.show.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    running_mean,
    signed,
)


def plot_path():
    """Draw the path from x to the layer's output: queries above, the one key-value vector below."""
    figure, axis = canvas(9.6, 3.9)
    top, mid, low = 3.1, 1.95, 0.8
    box(axis, 0.45, mid, "x", 0.5, colour=YELLOW)
    axis.text(0.45, mid - 0.5, "B T d", ha="center", fontsize=10)
    chain = ((1.5, "wq_a, norm", 1.15, SKY), (2.85, "wq_b", 0.75, SKY),
             (4.25, "RMS of\neach head", 1.1, SKY), (5.6, "rotate by t", 0.95, ORANGE))
    for x, name, width, colour in chain:
        box(axis, x, top, name, width, colour=colour)
    for x, name, width, colour in ((1.5, "wkv, norm", 1.15, GREEN),
                                   (2.95, "rotate by s", 0.95, ORANGE)):
        box(axis, x, low, name, width, colour=colour)
    arrow(axis, (0.45, mid + 0.3), (0.45, top), (0.9, top))
    arrow(axis, (0.45, mid - 0.62), (0.45, low), (0.9, low))
    for a, b in ((2.1, 2.45), (3.25, 3.67), (4.83, 5.1)):
        arrow(axis, (a, top), (b, top))
    arrow(axis, (2.1, low), (2.45, low))
    box(axis, 5.6, mid, "softmax over window\nand sink", 1.75, 0.62, PURPLE)
    arrow(axis, (5.6, top - 0.3), (5.6, mid + 0.34))
    arrow(axis, (3.45, low), (4.0, low), (4.0, mid), (4.7, mid))
    axis.text(3.92, mid - 0.35, "as keys", ha="right", fontsize=10)
    box(axis, 7.4, mid, "weighted\nsum", 0.95, 0.62, PURPLE)
    arrow(axis, (6.5, mid), (6.9, mid))
    arrow(axis, (4.0, low), (7.4, low), (7.4, mid - 0.34))
    axis.text(5.7, low + 0.08, "and the same vectors as values", ha="center", fontsize=10)
    box(axis, 7.4, top, "rotate BACK\nby t", 1.05, 0.62, VERMILION)
    arrow(axis, (7.4, mid + 0.34), (7.4, top - 0.34))
    box(axis, 8.85, top, "wo_a\nin groups", 1.0, 0.62, SKY)
    box(axis, 8.85, mid, "wo_b", 0.75, 0.56, SKY)
    arrow(axis, (7.95, top), (8.32, top))
    arrow(axis, (8.85, top - 0.34), (8.85, mid + 0.3))
    arrow(axis, (8.85, mid - 0.3), (8.85, low + 0.2))
    for x, y, text in ((3.55, top + 0.42, "B T H c"),
                       (3.2, low - 0.5, "B T c: one vector for all heads"),
                       (8.1, top + 0.5, "B T H c"), (8.85, low, "B T d")):
        axis.text(x, y, text, ha="center", fontsize=10)
    return figure


def plot_by_position(curves):
    """Plot how two losses differ at the first positions, and both losses over the whole text.

    curves: two of {name: loss at each position}. The right panel shows means over 16 positions.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.4), width_ratios=[1, 1.8])
    first, second = curves.values()
    left.bar(range(8), [b - a for a, b in zip(first[:8], second[:8])], color=ORANGE)
    left.axhline(0, color=BLACK, linewidth=0.8)
    left.set_xticks(range(8))
    left.set_xlabel("position")
    left.set_ylabel("loss added (nats per token)")
    left.set_title("the first eight tokens")
    for (name, losses), style in zip(curves.items(), ("-", "--")):
        right.plot(range(8, len(losses) - 8), running_mean(losses, 16)[15:-1], style, label=name)
    right.set_xlabel("position, mean over 16")
    right.set_ylabel("loss (nats per token)")
    right.set_title("the whole text")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=2)
    return figure


def plot_cache(sizes):
    """Plot bytes per token and layer on a logarithmic axis. sizes: {name: bytes}."""
    figure, axis = plt.subplots(figsize=(8.6, 0.45 * len(sizes) + 0.9))
    colours = [VERMILION if "V4" in name else BLUE for name in sizes]
    bars = axis.barh(list(sizes), list(sizes.values()), color=colours)
    axis.bar_label(bars, [f"{size:,}" for size in sizes.values()], padding=4)
    axis.set_xscale("log")
    axis.set_xlim(100, 600000)
    axis.set_xlabel("bytes of cache for one token in one layer")
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    return figure


def plot_channels():
    """Show which of 12 channels rotate together when r = 8: V4's pairs, and two common mistakes."""
    rows = {"V4: the last r, neighbours": [None] * 4 + [0, 0, 1, 1, 2, 2, 3, 3],
            "slip: the first r": [0, 0, 1, 1, 2, 2, 3, 3] + [None] * 4,
            "slip: halves, (i, i + r/2)": [None] * 4 + [0, 1, 2, 3, 0, 1, 2, 3]}
    colours = [ORANGE, SKY, GREEN, PURPLE]
    figure, axis = plt.subplots(figsize=(8.4, 2.2))
    for y, pairs in enumerate(rows.values()):
        for x, pair in enumerate(pairs):
            cell(axis, x - 0.46, y - 0.4, 0.92, 0.8, "stays" if pair is None else f"pair {pair}",
                 fontsize=9, facecolor="white" if pair is None else colours[pair], edgecolor=BLACK,
                 alpha=0.8)
    axis.set_xlim(-0.6, 11.6)
    axis.set_ylim(2.6, -0.6)
    axis.set_yticks(range(3), rows)
    axis.set_xticks(range(12))
    axis.set_xlabel("channel of a head (here c = 12, r = 8)")
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def plot_compass_needles(before, after, times):
    """Draw a pair of channels of the output as needles, before and after the inverse rotation.

    before, after: angles in radians, one for each of the positions `times`.
    """
    figure, axes = plt.subplots(2, len(times), figsize=(8.4, 3.4))
    for row, (angles, name, colour) in enumerate(((before, "as it comes", VERMILION),
                                                  (after, "rotated back", BLUE))):
        for axis, angle, t in zip(axes[row], angles, times):
            axis.add_patch(plt.Circle((0, 0), 1, fill=False, linewidth=0.8))
            arrow(axis, (0, 0), (math.cos(angle), math.sin(angle)), arrowstyle="-|>", color=colour,
                  linewidth=2.2)
            axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(f"t = {t}", fontsize=10, loc="center")
        axes[row][0].set_ylabel(name)
    return figure


def plot_distance(results, shifts, chance):
    """Plot accuracy at each shift: the mean as a line, seeds as dots.

    results: {name: for each seed a list over the shifts}; chance: accuracy of guessing.
    """
    figure, axis = plt.subplots(figsize=(7.6, 3.5))
    for (name, runs), style, colour in zip(results.items(), ("-", "--", "-."),
                                           (BLUE, VERMILION, GREEN)):
        mean = [100 * sum(run[i] for run in runs) / len(runs) for i in range(len(shifts))]
        axis.plot(range(len(shifts)), mean, style, color=colour, label=name)
        for run in runs:
            axis.plot(range(len(shifts)), [100 * value for value in run], "o", color=colour,
                      markersize=4, alpha=0.6)
    axis.axhline(100 * chance, color=BLACK, linewidth=0.8, linestyle=":")
    axis.text(len(shifts) - 1, 100 * chance + 2, "guessing", ha="right", fontsize=10)
    axis.set_xticks(range(len(shifts)), shifts)
    axis.set_xlabel("positions by which the text is shifted (trained at 0)")
    axis.set_ylabel("distance predicted correctly (%)")
    axis.set_ylim(0, 104)
    axis.legend(loc="center right")
    return figure


def plot_reach(maps, window):
    """Plot how much each output (row) moves when one input (column) changes.

    maps: {number of layers: T T}; window: w.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(3.05 * len(maps) + 0.6, 3.6), sharey=True,
                                squeeze=False)
    for axis, (layers, moved) in zip(axes[0], maps.items()):
        shown = torch.where(moved > 1e-6, moved, torch.nan).numpy()
        image = axis.imshow(shown, norm=LogNorm(1e-4, 10), interpolation="nearest")
        axis.set_title(f"{layers} layer{'s' if layers > 1 else ''}, w = {window}")
        axis.set_xlabel("token that is changed")
        axis.grid(False)
        back = layers * (window - 1)
        text = f"reaches\n{back} back" if back < len(moved) - 1 else "reaches\nthe beginning"
        axis.text(0.95, 0.92, text, transform=axis.transAxes, ha="right", va="top", fontsize=10)
    axes[0][0].set_ylabel("output at")
    figure.colorbar(image, ax=axes[0].tolist(), label="change (norm)", shrink=0.8)
    return figure


def plot_sinks(mass, cost, shifts):
    """Plot the attention that heads spend on tokens, and the cost of removing or moving sinks.

    mass, cost: a list of heads for each layer; shifts: {added to all sinks: loss}.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.0, 3.5),
                                                 width_ratios=[1.1, 1.1, 1])
    for axis, values, name in ((left, mass, "sum of the weights on tokens"),
                               (middle, cost, "loss added by removing a sink")):
        table = torch.tensor(values)
        low, high = (0, 1) if axis is left else (0, max(float(table.max()), 0.01))
        axis.imshow(table.numpy(), vmin=low, vmax=high, aspect="auto")
        for i, line in enumerate(values):
            for h, value in enumerate(line):
                dark = value < (low + high) / 2
                axis.text(h, i, f"{value:.2f}" if axis is left else signed(value, 3), ha="center",
                          va="center", fontsize=10, color="white" if dark else BLACK)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        axis.set_xticks(range(len(values[0])))
        axis.set_yticks(range(len(values)))
        axis.grid(False)
    names = [name if isinstance(name, str) else f"{name:+d}" if name else "0" for name in shifts]
    right.plot(range(len(shifts)), list(shifts.values()), "o-", color=BLUE)
    right.set_xticks(range(len(shifts)), names, rotation=45)
    right.set_xlabel("added to all sinks")
    right.set_ylabel("loss (nats per token)")
    right.set_title("all sinks moved", fontsize=11)
    return figure


def plot_groups(matrix, g, savings):
    """Show the first output matrix in full, zeros white, beside the parameters that grouping saves.

    savings: {model: (plain, grouped)}, parameters of one layer.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.0), width_ratios=[1, 1.2])
    left.imshow(torch.where(matrix == 0, torch.nan, matrix).numpy(), interpolation="nearest")
    left.set_title(f"wo_a as one matrix, {g} groups")
    left.set_xlabel("channel of all heads")
    left.set_ylabel("rank")
    left.grid(False)
    for i, (name, (plain, grouped)) in enumerate(savings.items()):
        bars = right.barh([i - 0.19, i + 0.19], [plain / 1e6, grouped / 1e6], height=0.36,
                          color=[BLUE, ORANGE])
        right.bar_label(bars, [f"plain, {plain / 1e6:.0f}", f"grouped, {grouped / 1e6:.0f}"],
                        padding=4)
    right.set_yticks(range(len(savings)), savings)
    right.invert_yaxis()
    right.set_xlim(0, 1.35 * max(plain for plain, _ in savings.values()) / 1e6)
    right.set_xlabel("million parameters in one layer")
    right.grid(False, axis="y")
    return figure


def plot_periods(lines, marks):
    """Plot how many positions each pair of channels takes for a full rotation.

    lines: {name: frequencies}; marks: {name: number of positions}.
    """
    figure, axis = plt.subplots(figsize=(8.0, 3.8))
    for (name, w), style in zip(lines.items(), ("-", "--", "-.")):
        axis.plot((2 * math.pi / w).numpy(), style, label=name)
    for name, length in marks.items():
        axis.axhline(length, color=BLACK, linewidth=0.8, linestyle=":")
        axis.text(0, length * 1.15, name, fontsize=10)
    axis.set_yscale("log")
    axis.set_xlabel("pair of channels j (fast to slow)")
    axis.set_ylabel("positions for one full rotation")
    axis.legend(loc="lower right")
    return figure


def plot_faults(rows, columns, values, bounds):
    """Draw a table of numbers: rows are faults, columns are tests.

    A test detects the faults whose absolute number is above its bound. The last column holds
    differences of a loss.
    """
    texts = [[f"{value:.0e}" for value in line[:-1]] + [signed(line[-1], 3)] for line in values]
    seen = [[abs(value) > bound for value, bound in zip(line, bounds)] for line in values]
    return plot_verdicts(rows, columns, texts, seen, figsize=(9.2, 0.38 * len(rows) + 1.1),
                         fontsize=9)
