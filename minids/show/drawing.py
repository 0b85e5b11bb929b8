"""Pieces that figures of several lessons are made of: boxes, arrows, cells, bars, tables."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from minids.show.style import BLACK, BLUE, ORANGE, SKY

# ---- diagrams ----

def canvas(width: float, height: float, units: tuple[float, float] | None = None):
    """A figure of this size in inches with one empty axis.

    The axis goes from (0, 0) to `units` (default: the size in inches).
    """
    figure, axis = plt.subplots(figsize=(width, height))
    right, top = units or (width, height)
    axis.set_xlim(0, right)
    axis.set_ylim(0, top)
    axis.axis("off")
    return figure, axis


def box(axis, x, y, text, width, height=0.56, colour=SKY, alpha=0.45, fontsize=10, linewidth=1.0,
        boxstyle="round,pad=0.02,rounding_size=0.08"):
    """Draw a rounded box around (x, y) with a text in it."""
    corner = x - width / 2, y - height / 2
    axis.add_patch(FancyBboxPatch(corner, width, height, boxstyle=boxstyle, facecolor=colour,
                                  edgecolor=BLACK, alpha=alpha, linewidth=linewidth))
    axis.text(x, y, text, ha="center", va="center", fontsize=fontsize)


def cell(axis, x, y, width, height, text="", fontsize=10.0, ink=BLACK, **look):
    """Draw a rectangle with its lower left corner at (x, y) and a text in its middle.

    look: goes to matplotlib's patch.
    """
    axis.add_patch(plt.Rectangle((x, y), width, height, **look))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=fontsize,
              color=ink)


def arrow(axis, *points, zorder=3, **look):
    """Draw a line through the points that ends in an arrow.

    look: goes to matplotlib's `arrowprops`.
    """
    for a, b in zip(points[:-2], points[1:-1]):
        axis.plot(*zip(a, b), color=BLACK, linewidth=1.1)
    look = {"arrowstyle": "->", "color": BLACK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0} | look
    axis.annotate("", points[-1], points[-2], arrowprops=look, zorder=zorder)


# ---- charts ----

def bar_places(groups: int, k: int, n: int) -> np.ndarray:
    """Where the k-th of n bars stands in each group.

    A group is one unit wide, and its bars fill 0.8 of it.
    """
    return np.arange(groups) + (k - (n - 1) / 2) * 0.8 / n


def interval_bars(axis, places, shares, width, colour, label=None, alpha=None, capsize=3.0,
                  linewidth=1.2):
    """Draw bars with their intervals.

    shares: (value, low, high) of each bar, in the axis' units.
    """
    value, low, high = np.array(shares, dtype=float).T
    axis.bar(places, value, width, color=colour, label=label, alpha=alpha)
    axis.errorbar(places, value, [value - low, high - value], fmt="none", ecolor=BLACK,
                  elinewidth=linewidth, capsize=capsize)


def stacked_shares(axis, rows, colours, least):
    """Draw a horizontal bar for each row, divided in percent.

    rows: {name: {part: amount}}; colours: {part: colour}. Shares above `least` percent are written
    into their part.
    """
    for y, amounts in enumerate(rows.values()):
        left, total = 0.0, sum(amounts.values())
        for part in (part for part in colours if part in amounts):
            share, colour = 100 * amounts[part] / total, colours[part]
            axis.barh(y, share, left=left, color=colour, edgecolor="white",
                      label=part if y == 0 else None)
            if share > least:
                axis.text(left + share / 2, y, f"{share:.0f} %", ha="center", va="center",
                          fontsize=10, color="white" if colour == BLUE else BLACK)
            left += share
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.grid(False)


def heat(axis, M, title=None, size=10.0):
    """Draw a small matrix with its numbers, in cividis from 0 to 1."""
    axis.imshow(M.tolist(), vmin=0, vmax=1, cmap="cividis")
    for i, row in enumerate(M.tolist()):
        for j, value in enumerate(row):
            text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
            axis.text(j, i, text, ha="center", va="center", fontsize=size,
                      color="white" if value < 0.55 else BLACK)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=size + 1)


def plot_verdicts(rows, columns, texts, detected, figsize, fontsize):
    """Draw a table of faults (rows) against tests (columns).

    texts, detected: a list for each row, what to write and whether the test detects the fault.
    """
    figure, axis = plt.subplots(figsize=figsize)
    axis.grid(False)
    for i in range(len(rows)):
        for j in range(len(columns)):
            seen = detected[i][j]
            cell(axis, j - 0.48, i - 0.46, 0.96, 0.92,
                 f"{texts[i][j]}   {'seen' if seen else 'not seen'}", fontsize,
                 ink=BLACK if seen else "white", facecolor=ORANGE if seen else BLUE)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure
