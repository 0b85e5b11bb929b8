"""What several lessons' pictures are made of: boxes, arrows, and the table of faults against tests."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from minids.show.style import BLACK, BLUE, ORANGE, SKY


def canvas(width: float, height: float):
    """A figure of this size in inches, whose axis has the same units and shows nothing."""
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.axis("off")
    return figure, axis


def box(axis, x, y, text, width, height, colour=SKY, alpha=0.45):
    """A box around (x, y) with a text in it."""
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                                  facecolor=colour, edgecolor=BLACK, alpha=alpha, linewidth=1))
    axis.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(axis, *points, **style):
    """A line through the points, the last piece of which is an arrow. `style` goes to matplotlib's `arrowprops`."""
    for a, b in zip(points[:-2], points[1:-1]):
        axis.plot(*zip(a, b), color=BLACK, linewidth=1.1)
    style = {"arrowstyle": "->", "color": BLACK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0} | style
    axis.annotate("", points[-1], points[-2], arrowprops=style)


def plot_verdicts(rows, columns, texts, seen, figsize, fontsize):
    """A table: rows are faults, columns are tests. texts and seen: a line for each row, what to write and whether the test
    sees the fault."""
    figure, axis = plt.subplots(figsize=figsize)
    axis.grid(False)
    for i in range(len(rows)):
        for j in range(len(columns)):
            axis.add_patch(plt.Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=ORANGE if seen[i][j] else BLUE))
            axis.text(j, i, f"{texts[i][j]}   {'seen' if seen[i][j] else 'not seen'}", ha="center", va="center",
                      fontsize=fontsize, color=BLACK if seen[i][j] else "white")
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure
