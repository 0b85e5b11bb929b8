"""Figures of lesson 11: codes on a line, scales, outliers, master weights, bytes by format."""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from minids.numerics import FP4_VALUES
from minids.show.drawing import canvas, cell, stacked_shares
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

GRID = FP4_VALUES[:8]
FORMATS = {"FP4": BLUE, "FP4 scales": SKY, "FP8": ORANGE, "FP8 scales": YELLOW, "BF16": GREEN,
           "float32": VERMILION, "tables": PURPLE}


def plot_bit_fields():
    """Draw three formats as rows of boxes: sign, exponent, mantissa."""
    figure, axis = canvas(9.0, 2.7)
    rows = [("E2M1 (FP4)", 1, 2, 1, "0.5 to 6, and 0"),
            ("E4M3 (FP8)", 1, 4, 3, "2^-9 to 448, and 0"),
            ("E8M0 (scale)", 0, 8, 0, "2^-127 to 2^127")]
    for row, (name, sign, exponent, mantissa, span) in enumerate(rows):
        y = 2.1 - 0.8 * row
        axis.text(0.1, y + 0.22, name, va="center", fontsize=11)
        kinds = ["s"] * sign + ["e"] * exponent + ["m"] * mantissa
        for i, kind in enumerate(kinds):
            x = 1.9 + 0.5 * (8 - len(kinds) + i)
            cell(axis, x, y, 0.46, 0.46, edgecolor=BLACK, alpha=0.6,
                 facecolor={"s": VERMILION, "e": SKY, "m": YELLOW}[kind])
            axis.text(x + 0.23, y + 0.22, kind, ha="center", va="center", fontsize=11)
        axis.text(6.2, y + 0.22, span, va="center", fontsize=11)
    axis.text(1.9, 0.02, "s: sign      e: exponent      m: mantissa", fontsize=10)
    return figure


def plot_fp4_line():
    """Draw all FP4 numbers on a line, with their codes."""
    figure, axis = plt.subplots(figsize=(9.0, 1.9))
    for code, value in enumerate(FP4_VALUES):
        axis.plot([value, value], [0, 0.35], color=BLUE if code < 8 else ORANGE, linewidth=2.5)
        if code != 8:
            axis.text(value, 0.45, f"{value:g}", ha="center", fontsize=10)
            axis.text(value, -0.42, f"{code:04b}", ha="center", fontsize=8,
                      rotation=90 if abs(value) < 2 else 0, va="center")
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.set_ylim(-0.8, 0.8)
    axis.set_yticks([])
    axis.set_xticks([])
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_visible(False)
    return figure


def plot_density(positive):
    """Plot how many FP8 numbers lie in each octave, and the relative distance to the next number.

    positive: {name: its numbers above 0, in order}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    for (name, numbers), colour, shift in zip(positive.items(), (ORANGE, BLUE), (-0.2, 0.2)):
        octaves = np.floor(np.log2(numbers))
        which, count = np.unique(octaves, return_counts=True)
        left.bar(which + shift, count, 0.4, color=colour, label=name)
        steps = np.diff(numbers)
        right.step(numbers[:-1], 100 * steps / numbers[:-1], where="post", color=colour, label=name)
    left.set_xlabel("octave k: numbers from 2^k to 2^(k+1)")
    left.set_ylabel("how many numbers")
    left.set_title("8 an octave, fewer at both ends")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_yticks((5, 10, 20, 50, 100), (5, 10, 20, 50, 100))
    right.minorticks_off()
    right.set_xlabel("number")
    right.set_ylabel("distance to the next (% of the number)")
    right.set_title("the relative step stays within a factor 2")
    left.legend()
    return figure


def plot_scale_rules(amax, errors, marks):
    """Plot a block's relative error over its largest number, for several rules for the scale.

    errors: {name: list}; marks: where to label the axis.
    """
    figure, axis = plt.subplots(figsize=(8.4, 3.6))
    for (name, values), style, colour in zip(errors.items(), ("-", "--", ":"),
                                             (BLUE, VERMILION, BLACK)):
        axis.plot(amax, [100 * v for v in values], style, color=colour, label=name, linewidth=2.2)
    for k in marks:
        axis.axvline(k, color=BLACK, linewidth=0.6, alpha=0.5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(marks, [f"{k:g}" for k in marks])
    axis.set_xlabel("largest number of the block")
    axis.set_ylabel("RMS error (% of the RMS)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", ncols=3, fontsize=10)
    axis.set_ylim(0, 1.35 * 100 * max(max(v) for v in errors.values()))
    return figure


def plot_rounding(number, largest):
    """Show where a number lands on the FP4 grid when the largest number of its block is given."""
    scale = 2.0 ** math.ceil(math.log2(largest / 6))
    figure, axis = plt.subplots(figsize=(8.6, 2.2))
    where = rounded_to(number, scale)
    _grid_line(axis, scale, number, where, largest)
    error = abs(where - number) / number
    axis.set_title(f"scale 2^{int(math.log2(scale))}: {number:g} becomes {where:g} "
                   f"(error {error:.0%})")
    axis.set_xlim(-0.3, 12.6)
    axis.set_xlabel("number")
    return figure


def rounded_to(number: float, scale: float) -> float:
    """The nearest FP4 number at this scale, ties to the even code; for numbers from 0 on."""
    distance = [abs(value - number / scale) for value in GRID]
    best = min(range(8), key=lambda code: (distance[code], code % 2))
    return GRID[best] * scale


def plot_roundings(cases):
    """`plot_rounding` for several (number, largest), one a row."""
    figure, axes = plt.subplots(len(cases), 1, figsize=(8.6, 1.25 * len(cases) + 0.6), sharex=True)
    for axis, (number, largest) in zip(axes, cases):
        scale = 2.0 ** math.ceil(math.log2(largest / 6))
        where = rounded_to(number, scale)
        _grid_line(axis, scale, number, where, largest)
        axis.set_title(f"largest {largest:g}, scale {scale:g}: {number:g} becomes {where:g}",
                       fontsize=10)
    axes[-1].set_xlim(-0.3, 12.6)
    axes[-1].set_xlabel("number")
    return figure


def _grid_line(axis, scale, number, where, largest):
    for value in GRID:
        axis.plot([value * scale] * 2, [0, 0.5], color=BLUE, linewidth=2)
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.plot(largest, 0.25, "s", color=BLACK, markersize=6)
    axis.plot(number, 0.75, "v", color=ORANGE, markersize=10)
    axis.annotate("", (where, 0.52), (number, 0.75),
                  arrowprops={"arrowstyle": "->", "color": VERMILION, "linewidth": 1.8})
    axis.set_ylim(-0.1, 1.05)
    axis.set_yticks([])
    axis.grid(False)
    axis.spines["left"].set_visible(False)


def plot_format_errors(errors):
    """Plot relative errors as bars. errors: {kind of matrix: {format: error}}."""
    figure, axis = plt.subplots(figsize=(9.0, 3.4))
    formats = list(next(iter(errors.values())))
    for i, (format, colour) in enumerate(zip(formats, (GREEN, ORANGE, BLUE, VERMILION))):
        xs = [k + 0.2 * (i - (len(formats) - 1) / 2) for k in range(len(errors))]
        bars = axis.bar(xs, [100 * e[format] for e in errors.values()], 0.19, color=colour,
                        label=format)
        axis.bar_label(bars, [f"{100 * e[format]:.3g}" for e in errors.values()], fontsize=8,
                       padding=2)
    axis.set_yscale("log")
    axis.set_ylim(0.05, 120)
    axis.set_xticks(range(len(errors)), errors)
    axis.set_ylabel("RMS error (% of the RMS)")
    axis.legend(ncols=4, loc="upper left", fontsize=10)
    axis.grid(False, axis="x")
    return figure


def plot_outlier(plain, rounded, rotated, rotated_rounded):
    """Plot a vector with one large channel, and its Hadamard transform, before and after FP4."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
    panels = ((plain, rounded, "as it is"),
              (rotated, rotated_rounded, "after the Hadamard transform"))
    for axis, (before, after, title) in zip(axes, panels):
        x = np.arange(len(before))
        axis.bar(x, before, 0.8, color=SKY, label="number")
        axis.plot(x, after, "_", color=VERMILION, markersize=11, markeredgewidth=2.2,
                  label="in FP4")
        axis.axhline(0, color=BLACK, linewidth=0.7)
        axis.set_title(f"{title}: {int((np.asarray(after) == 0).sum())} of {len(before)} become 0")
        axis.set_xlabel("channel")
        axis.grid(False, axis="x")
    axes[0].set_ylabel("value")
    axes[0].legend(fontsize=10)
    return figure


def plot_outlier_sweep(sizes, plain, rotated):
    """Plot a vector's error in FP4 over the size of its outlier, relative to the other channels."""
    figure, axis = plt.subplots(figsize=(7.6, 3.2))
    axis.plot(sizes, [100 * e for e in plain], "o-", color=VERMILION, label="as it is")
    axis.plot(sizes, [100 * e for e in rotated], "s--", color=BLUE,
              label="after the Hadamard transform")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("one channel's size (the others have RMS 1)")
    axis.set_ylabel("RMS error (% of the others' RMS)")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def plot_masters(tracks):
    """Plot weights over steps, one panel each.

    tracks: {title: (what the steps add to, what the model computes with)}.
    """
    figure, axes = plt.subplots(1, len(tracks), figsize=(9.6, 3.2), sharey=True)
    for axis, (title, (stored, used)) in zip(axes, tracks.items()):
        for value in (0.5, 1.0, 1.5):
            axis.axhline(value, color=BLACK, linewidth=0.6, alpha=0.4)
        axis.plot(stored, "-", color=BLUE, label="what steps add to", linewidth=2.2)
        axis.step(range(len(used)), used, where="post", color=ORANGE, linestyle="--",
                  label="what the model computes with")
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(False)
    axes[0].set_ylabel("weight")
    axes[-1].legend(fontsize=9, loc="lower right")
    return figure


def plot_changes(rows, title):
    """Plot differences of a loss with their standard errors, as dots.

    rows: {name: (difference, error)}, in nats per token.
    """
    figure, axis = plt.subplots(figsize=(8.6, 0.42 * len(rows) + 1.2))
    for y, (difference, error) in enumerate(rows.values()):
        axis.errorbar(difference, y, xerr=2 * error, fmt="o", color=BLUE, ecolor=ORANGE,
                      elinewidth=3, capsize=4)
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlabel("change of the loss (nats per token; bars: twice the standard error)")
    axis.set_title(title)
    axis.margins(y=0.15)
    return figure


def plot_on_disk(models):
    """Plot bytes by format as stacked bars. models: {name: {format: bytes}}."""
    figure, axis = plt.subplots(figsize=(9.0, 0.75 * len(models) + 1.3))
    rows = {name: {format: counts.get(format, 0) for format in FORMATS}
            for name, counts in models.items()}
    stacked_shares(axis, rows, FORMATS, least=4)
    axis.set_xlabel("share of the bytes (%)")
    axis.legend(ncols=7, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=9,
                columnspacing=1.0, handlelength=1.2)
    return figure


def positive_numbers(dtype) -> np.ndarray:
    """All finite numbers above 0 of an 8-bit float type, in order."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    numbers = numbers[torch.isfinite(numbers) & (numbers > 0)]
    return np.sort(numbers.numpy())
