"""Figures of lesson 08: the path through the model, MTP, faults, depth, parameters."""

import matplotlib.pyplot as plt

from minids.config import Config
from minids.show.drawing import arrow, box, canvas, plot_verdicts, stacked_shares
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

COLOURS = {"routed experts": BLUE, "shared experts": SKY, "attention": ORANGE, "embedding": YELLOW,
           "head": PURPLE, "compressors": GREEN, "all others": VERMILION}
BYTES = {"FP4": 0.5 + 1 / 32, "FP8": 1 + 1 / 128**2, "BF16": 2.0}    # of a number, scales included


def _arrows(axis, start, end, lines=1, **style):
    """Draw an arrow, or `lines` parallel ones: the residual streams."""
    for i in range(lines):
        shift = 0.09 * (i - (lines - 1) / 2)
        arrow(axis, (start[0], start[1] + shift), (end[0], end[1] + shift), **style)


def _up_and_right(axis, x, y, end):
    """Draw four streams from the top edge of a box around (x, y), up and then right to `end`."""
    for shift in (-0.135, -0.045, 0.045, 0.135):
        arrow(axis, (x + shift, y), (x + shift, end[1] - shift), (end[0], end[1] - shift))


def plot_pipeline():
    """Draw the path from ids to logits, and below it one of a block's two sites."""
    figure, axis = canvas(9.6, 4.6)
    y, names = 3.95, ["ids", "embed", "copy\nn times", "block 1", "...", "block L", "mHC\nhead",
                      "norm", "head\nmatrix"]
    colours = [YELLOW, SKY, ORANGE, GREEN, GREEN, GREEN, ORANGE, SKY, SKY]
    xs = [0.55 + 1.06 * i for i in range(len(names))]
    for x, name, colour in zip(xs, names, colours):
        box(axis, x, y, name, 0.74, 0.72, colour)
    for i in range(len(xs) - 1):
        _arrows(axis, (xs[i] + 0.4, y), (xs[i + 1] - 0.4, y), 4 if 2 <= i <= 5 else 1)
    axis.text(xs[4], y + 0.5, "n = 4 residual streams:  B T n d", ha="center", fontsize=10)
    axis.text(xs[1] + 0.53, y + 0.5, "B T d", ha="center", fontsize=10)
    axis.text(9.55, y - 0.62, "logits B T V", ha="right", fontsize=10)
    axis.plot([xs[3] - 0.4, 0.3], [y - 0.45, 2.85], color=BLACK, linewidth=0.7, linestyle=":")
    axis.plot([xs[3] + 0.4, 9.3], [y - 0.45, 2.85], color=BLACK, linewidth=0.7, linestyle=":")
    axis.text(0.3, 2.62, "one site; a block has two: attention, then the experts", fontsize=10)
    low, top = 1.0, 2.05
    for x, text, width, colour in ((0.75, "X\nB T n d", 0.9, ORANGE),
                                   (2.35, "read\nsum pre[j] X[j]", 1.45, ORANGE),
                                   (3.9, "norm", 0.8, SKY), (5.2, "layer\nB T d", 1.0, GREEN),
                                   (6.65, "write\npost[k] f", 1.15, ORANGE),
                                   (8.95, "X'\nB T n d", 0.9, ORANGE)):
        box(axis, x, low, text, width, 0.72, colour)
    plus = axis.add_patch(plt.Circle((7.9, low), 0.27, facecolor="white", edgecolor=BLACK))
    axis.text(7.9, low, "+", fontsize=17, ha="center", va="center")
    for a, b, lines in ((1.22, 1.6, 4), (3.1, 3.47, 1), (4.33, 4.67, 1), (5.73, 6.04, 1)):
        _arrows(axis, (a, low), (b, low), lines)
    _arrows(axis, (7.25, low), (7.9, low), 4, patchB=plus)
    _arrows(axis, (7.9, low), (8.47, low), 4, patchA=plus)
    box(axis, 4.6, top, "carry   sum_j comb[j, k] X[j]", 2.7, 0.42, ORANGE)
    _up_and_right(axis, 0.75, low + 0.38, (3.22, top))
    for shift in (-0.135, -0.045, 0.045, 0.135):
        arrow(axis, (5.97, top + shift), (7.9 + shift, top + shift), (7.9 + shift, low),
              patchB=plus)
    axis.text(0.3, 0.3,
              "pre, post and comb are computed from X itself, at each site anew (lesson 07).",
              fontsize=10)
    return figure


def plot_mtp_alignment(words=("In", "the", "beginning", "God", "created"), t=1):
    """Show which token the model and its MTP block get at position t, and which they predict."""
    figure, axis = canvas(8.2, 3.5)
    xs = [0.9 + 1.6 * i for i in range(len(words))]
    for i, (x, word) in enumerate(zip(xs, words)):
        box(axis, x, 0.5, word, 1.3, 0.5, YELLOW if i <= t + 1 else "white")
        axis.text(x, 0.02, f"t = {i}", ha="center", fontsize=10, weight="bold" if i == t else None)
    box(axis, xs[t], 1.75, "blocks", 1.2, 0.5, GREEN)
    box(axis, xs[t + 1], 2.75, "MTP block", 1.3, 0.5, ORANGE)
    for i in range(t + 1):
        _arrows(axis, (xs[i], 0.78), (xs[t] - 0.1 * (t - i), 1.47))
    _up_and_right(axis, xs[t], 2.02, (xs[t + 1] - 0.68, 2.75))
    axis.text(xs[t] - 0.25, 2.45, "streams X at t", ha="right", fontsize=10)
    _arrows(axis, (xs[t + 1], 0.78), (xs[t + 1], 2.47))
    axis.text(xs[t + 1] + 0.1, 1.35, "embedding of\ntoken t + 1", fontsize=10, va="center")
    _arrows(axis, (xs[t] + 0.63, 1.7), (xs[t + 1] - 0.25, 0.8), color=BLUE, linestyle="--")
    _arrows(axis, (xs[t + 1] + 0.68, 2.75), (xs[t + 2] + 0.3, 0.8), color=VERMILION, linestyle="--")
    axis.text(xs[t] + 0.06, 1.02, "predicts t + 1", fontsize=10, color=BLUE)
    axis.text(xs[t + 2] - 0.05, 1.9, "predicts t + 2", fontsize=10, color=VERMILION)
    return figure


def plot_faults(rows, columns, values, bounds):
    """Draw a table of numbers: rows are faults, columns are tests.

    A test detects the faults whose number is above its bound.
    """
    texts = [[f"{value:.2g}" for value in line] for line in values]
    seen = [[value > bound for value, bound in zip(line, bounds)] for line in values]
    return plot_verdicts(rows, columns, texts, seen, figsize=(7.6, 0.46 * len(rows) + 1.3),
                         fontsize=10)


def plot_depth(curves, spreads, by_hand=None):
    """Plot the size of the streams after each block, and how far they are from each other.

    curves, spreads: {name: list over blocks}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0))
    styles = ["-", "--", "-.", ":", (0, (5, 1))]
    for axis, lines in zip(axes, (curves, spreads)):
        for style, (name, line) in zip(styles, lines.items()):
            axis.plot(range(1, len(line) + 1), line, linestyle=style, label=name, linewidth=2.2)
        axis.set_xlabel("block")
    if by_hand is not None:
        axes[1].plot(range(1, len(by_hand) + 1), by_hand, color=BLACK, linewidth=0.9,
                     label="by hand")
    axes[0].set_ylabel("RMS of the streams")
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylabel("differences, as a share of the start")
    axes[1].set_yscale("log")
    axes[1].set_ylim(1e-5, 2)
    axes[0].set_title("how large the streams grow")
    axes[1].set_title("how different the streams stay")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  fontsize=9)
    return figure


def plot_leak(runs, chance):
    """Plot loss against training step, with the loss of a random guess. runs: {name: losses}."""
    figure, axis = plt.subplots(figsize=(7.4, 3.5))
    styles = ({"color": BLUE, "linewidth": 6, "alpha": 0.35}, {"color": ORANGE},
              {"color": BLACK, "linestyle": "--", "linewidth": 1.2})  # the third lies on the first
    for (name, losses), style in zip(runs.items(), styles):
        axis.plot(losses, label=name, **style)
    axis.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":")
    axis.text(len(next(iter(runs.values()))) / 2, chance - 0.4, "guessing: ln(vocabulary)",
              fontsize=10)
    axis.set_xlabel("training step")
    axis.set_ylabel("loss (nats per token)")
    axis.set_ylim(0, chance + 0.5)
    axis.legend(loc="center right")
    return figure


def _grouped(counts):
    groups = dict.fromkeys(COLOURS, 0)
    for part, number in counts.items():
        groups[part if part in groups else "all others"] += number
    return groups


def plot_parameters(models):
    """Plot parameters as stacked bars in percent. models: {label: {part: parameters}}."""
    figure, axis = plt.subplots(figsize=(9.0, 0.62 * len(models) + 1.5))
    stacked_shares(axis, {name: _grouped(counts) for name, counts in models.items()}, COLOURS,
                   least=4.5)
    axis.set_xlabel("share of the parameters (%)")
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=9)
    return figure


def scaled(layers, dim, experts, active) -> Config:
    """Flash with other sizes: the same pattern of layers, everything else as released."""
    pattern = ((0, 0) + (4, 128) * layers)[:layers]
    return Config.flash().replace(n_layers=layers, compress_ratios=(*pattern, 0), dim=dim,
                                  n_routed_experts=experts, n_activated_experts=active)


def plot_sizes(total, used, title):
    """Plot parameters, and the bytes they take in three formats.

    The axes are fixed so that figures can be compared.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 2.9))
    bars = left.barh(["total", "active"], [total / 1e9, used / 1e9], color=[BLUE, ORANGE])
    left.bar_label(bars, [f"{total / 1e9:,.1f}", f"{used / 1e9:,.1f}"], padding=4)
    left.set_xscale("log")
    left.set_xlim(0.3, 5000)
    left.set_xlabel("parameters (billions)")
    stored = [total * size / 1e9 for size in BYTES.values()]
    bars = right.barh(list(BYTES), stored, color=[GREEN, SKY, PURPLE])
    right.bar_label(bars, [f"{size:,.0f}" for size in stored], padding=4)
    right.set_xscale("log")
    right.set_xlim(0.3, 20000)
    right.set_xlabel("gigabytes, all numbers in this format")
    for axis in (left, right):
        axis.invert_yaxis()
        axis.grid(False, axis="y")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def plot_sweeps(experts, picks):
    """Plot parameters over the experts stored and over those used, on logarithmic axes.

    experts, picks: {number: (total, active)}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharey=True)
    for axis, points, name in zip(axes, (experts, picks),
                                  ("routed experts in a layer, E", "experts used by a token, K")):
        for i, (label, colour, style) in enumerate((("total", BLUE, "o-"),
                                                    ("active", ORANGE, "s--"))):
            values = [point[i] / 1e9 for point in points.values()]
            axis.plot(list(points), values, style, color=colour, label=label)
        axis.set_xlabel(name)
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(list(points), points)
        axis.minorticks_off()
    ticks = (10, 20, 50, 100, 200, 500)
    axes[0].set_yticks(ticks, ticks)
    axes[0].set_ylim(6, 800)
    axes[0].set_ylabel("parameters (billions)")
    axes[0].legend(loc="center right")
    return figure
