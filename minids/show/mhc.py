"""Figures of lesson 07: connections, gains, the Birkhoff polytope, Sinkhorn, trained models."""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch

from minids.show.drawing import bar_places, heat
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, plain_ticks

KINDS = {"residual": (BLACK, "-"), "unconstrained": (VERMILION, "--"), "constrained": (BLUE, "-.")}
GREY = "#888888"


def plot_connections():
    """Draw a site with one stream, with freely mixed streams, and with streams mixed by shares."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.5))
    free = [[1.1, -0.4, 0.3], [0.5, 0.9, -0.6], [-0.3, 0.4, 1.2]]
    share = [[0.8, 0.15, 0.05], [0.05, 0.7, 0.25], [0.15, 0.15, 0.7]]
    panels = (("residual connection", [[1.0]], "always 1"),
              ("hyper-connections", free, "any numbers"),
              ("manifold-constrained", share, "shares: rows and\ncolumns sum to 1"))
    for axis, (title, mixing, note) in zip(axes, panels):
        n = len(mixing)
        ys = [0.55 * (i - (n - 1) / 2) for i in range(n)]
        for j, a in enumerate(ys):
            for k, b in enumerate(ys):
                value = mixing[j][k]
                axis.plot([0.1, 2.9], [a, b], color=VERMILION if value < 0 else BLUE,
                          linewidth=3.6 * abs(value), linestyle="--" if value < 0 else "-",
                          solid_capstyle="butt")
        for y in ys:
            axis.plot([0, 3], [y, y], "o", color=BLACK, markersize=9)
            axis.plot([0.1, 0.95], [y, 1.6], color=ORANGE, linewidth=1)
            axis.plot([2.05, 2.9], [1.6, y], color=GREEN, linewidth=1)
        axis.add_patch(FancyBboxPatch((0.95, 1.38), 1.1, 0.44, boxstyle="round,pad=0.02",
                                      facecolor="#bfe3f7", edgecolor=BLACK, zorder=3))
        axis.text(1.5, 1.6, "layer", ha="center", va="center", zorder=4)
        axis.text(0.85, 1.62, "read" if n == 1 else "read: pre", color="#9a6b00", fontsize=10,
                  ha="right")
        axis.text(2.15, 1.62, "write" if n == 1 else "write: post", color="#00704f", fontsize=10,
                  ha="left")
        axis.text(1.5, -1.0, ("carry: " if n == 1 else "carry: comb, ") + note, color=BLUE,
                  fontsize=10, ha="center", va="top")
        axis.set_title(title)
        axis.set_xlim(-0.2, 3.2)
        axis.set_ylim(-1.6, 2.0)
        axis.axis("off")
    return figure


def plot_through_depth(lines, limit=None):
    """Plot gain against layer. lines: {name: list of numbers, or several such lists}."""
    figure, axis = plt.subplots(figsize=(7.6, 3.6))
    for name, line in lines.items():
        colour, style = KINDS[name]
        for i, curve in enumerate(line if isinstance(line[0], (list, tuple)) else [line]):
            axis.plot(range(1, len(curve) + 1), curve, color=colour, linestyle=style,
                      label=name if i == 0 else None,
                      linewidth=1.2 if name == "unconstrained" else 2.4)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.2)
    if limit:
        axis.axhline(limit, color=GREY, linewidth=0.8, linestyle=":")
        axis.text(2, limit, "3000: the peak in a 27B model (arXiv 2512.24880)", va="bottom",
                  color="#555555", fontsize=10)
        axis.set_ylim(top=4 * limit)
    axis.set_xlabel("layers passed")
    axis.set_ylabel("gain, forward")
    axis.legend(loc="upper left", bbox_to_anchor=(0.0, 0.88))
    return figure


# ---- the polytope ----

def corners():
    """The six 3 x 3 permutation matrices, their places on a hexagon, and their orders."""
    orders = [[0, 1, 2], [0, 2, 1], [1, 2, 0], [1, 0, 2], [2, 0, 1], [2, 1, 0]]
    matrices = torch.stack([torch.eye(3)[order] for order in orders])                    # 6 3 3
    angles = torch.arange(6) * math.pi / 3 + math.pi / 2
    return matrices, torch.stack([angles.cos(), angles.sin()], 1), orders


def project(M):
    """Places of 3 x 3 matrices in the plane, N 2: linear; each permutation maps to its corner."""
    matrices, places, _ = corners()
    return torch.einsum("nij,kij->nk", M.float(), matrices) @ places / 3


def plot_polytope(two, three):
    """Plot the paths of 2 x 2 matrices (left) and 3 x 3 matrices (right, projected) under Sinkhorn.

    two: paths of (p, q), the first column of the matrix; three: paths, each K 3 3.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.2, 4.7))
    left.plot([0, 1], [1, 0], color=BLUE, linewidth=4, solid_capstyle="round", alpha=0.6)
    for path, colour in zip(two, (ORANGE, GREEN, VERMILION, PURPLE)):
        left.plot([p for p, _ in path], [q for _, q in path], ".-", color=colour, linewidth=1)
        left.plot(*path[0], "o", color=colour, markersize=8, markerfacecolor="white")
    left.annotate("identity", (1, 0), (0, 10), textcoords="offset points", ha="left")
    left.annotate("swap", (0, 1), (10, 2), textcoords="offset points")
    left.annotate("all 1/2", (0.5, 0.5), (8, 4), textcoords="offset points")
    left.plot(0.5, 0.5, "s", color=BLUE)
    left.set_xlabel("first entry of row 0")
    left.set_ylabel("first entry of row 1")
    left.set_title("n = 2: the doubly stochastic\nmatrices are a segment")
    left.set_xlim(-0.05, 1.22)
    left.set_aspect("equal")
    _, places, orders = corners()
    places = places.tolist()
    right.fill(*zip(*places), color=SKY, alpha=0.25)
    right.plot(*zip(*places, places[0]), color=BLUE, linewidth=1)
    for order, (x, y) in zip(orders, places):
        grid = "\n".join(" ".join("1" if c == column else "." for c in range(3))
                         for column in order)
        right.text(1.3 * x, 1.27 * y, grid, ha="center", va="center", family="monospace",
                   fontsize=9)
    for path, colour in zip(three, (ORANGE, GREEN, VERMILION, PURPLE)):
        points = project(path).tolist()
        right.plot(*zip(*points), ".-", color=colour, linewidth=1)
        right.plot(*points[0], "o", color=colour, markersize=8, markerfacecolor="white")
        right.plot(*points[-1], "o", color=colour, markersize=8)
    right.plot(0, 0, "s", color=BLUE)
    right.text(0.06, -0.12, "all 1/3", fontsize=10)
    right.set_title("n = 3: a solid with 6 corners,\nprojected from four dimensions")
    right.set_aspect("equal")
    right.set_xlim(-1.5, 1.5)
    right.set_ylim(-1.55, 1.55)
    right.axis("off")
    return figure


# ---- Sinkhorn ----

def plot_convergence(errors, rates):
    """Plot the largest error of a row sum against iterations, with the slope that theory gives.

    errors: {name: errors}; rates: {name: rate of convergence}.
    """
    figure, axis = plt.subplots(figsize=(7.6, 3.9))
    for (name, line), colour, mark in zip(errors.items(), (BLUE, GREEN, ORANGE, VERMILION), "os^D"):
        xs = range(1, len(line) + 1)
        axis.plot(xs, line, color=colour, marker=mark, markersize=4, markevery=2, label=name)
        if name in rates:
            at = max(i for i, e in enumerate(line) if e > 1e-10)  # the tail, above rounding
            slope = [line[at] * rates[name] ** (i - at) for i in range(len(line))]
            axis.plot(xs, slope, color=colour, linewidth=0.9, linestyle=":")
    axis.axvline(20, color=GREY, linewidth=0.8)
    axis.text(20.4, 4e-12, "V4 stops here", color="#555555", fontsize=10)
    axis.set_yscale("log")
    axis.set_ylim(1e-12, 3)
    axis.set_xlabel("iterations")
    axis.set_ylabel("largest error of a row sum")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5),
                title="dotted: slope by\nsingular value")
    return figure


def plot_sharpness(M, errors, iterations, sharpness):
    """Plot the matrix with its sums, and the error of the row sums over the iterations."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7), width_ratios=[1, 1.35])
    heat(left, M)
    for i, value in enumerate(M.sum(1).tolist()):
        left.text(3.62, i, f"{value:.3f}", va="center", fontsize=10,
                  color=VERMILION if abs(value - 1) > 0.01 else BLACK)
    for j, value in enumerate(M.sum(0).tolist()):
        left.text(j, 3.72, f"{value:.3f}", ha="center", va="center", fontsize=10)
    left.set_title(f"sharpness {sharpness:g}, iteration {iterations}")
    right.plot(range(1, len(errors) + 1), errors, color=BLUE)
    right.plot(iterations, errors[iterations - 1], "o", color=VERMILION, markersize=9)
    right.axhline(0.01, color=GREY, linewidth=0.8, linestyle=":")
    right.text(len(errors), 0.012, "1 percent", ha="right", color="#555555", fontsize=10)
    right.set_yscale("log")
    right.set_ylim(1e-7, 2)
    right.set_xlabel("iterations")
    right.set_ylabel("largest error of a row sum")
    return figure


def plot_errors_by_sharpness(sharpness, curves):
    """Plot errors against sharpness. curves: {iterations: errors, one for each sharpness}."""
    figure, axis = plt.subplots(figsize=(7.6, 3.6))
    for (iterations, line), style in zip(curves.items(), (":", "-.", "-", "--")):
        axis.plot(sharpness, line, style, marker="o", markersize=4,
                  label=f"{iterations} iterations")
    axis.axhline(0.01, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.set_ylim(1e-7, 2)
    axis.set_xlabel("sharpness: what the raw numbers are multiplied by")
    axis.set_ylabel("largest error of a row sum")
    axis.legend(loc="lower right")
    return figure


def plot_shares(ways):
    """Plot what reaches each of four streams through a stack.

    ways: {name: (row sums 4, column sums 4)}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.5), sharey=True)
    titles = ("forward: signal arriving in each stream",
              "backward: gradient arriving in each stream")
    for axis, title, which in zip(axes, titles, (0, 1)):
        for k, colour in enumerate((BLUE, ORANGE, GREEN, PURPLE)):
            values = [sums[which][k].item() for sums in ways.values()]
            places = bar_places(len(ways), k, 4)
            bars = axis.bar(places, values, width=0.18, color=colour, label=f"stream {k}")
            axis.bar_label(bars, [f"{v:.1f}" for v in values], fontsize=9, padding=2)
        axis.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(ways)), ways)
        axis.set_title(title)
        axis.set_ylim(0, 4.4)
        axis.grid(False, axis="x")
    axes[0].set_ylabel("sum of the weights")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_backward(curves):
    """Plot the largest gain over depth. curves: {name: list over layers}."""
    figure, axis = plt.subplots(figsize=(7.6, 3.6))
    styles = ((BLUE, "-"), (ORANGE, "-"), (VERMILION, "--"), (VERMILION, "-."), (GREEN, ":"))
    for (name, line), (colour, style) in zip(curves.items(), styles):
        axis.plot(range(1, len(line) + 1), line, color=colour, linestyle=style, label=name)
    axis.set_xlabel("layers passed")
    axis.set_ylabel("gain")
    axis.set_ylim(0.9, 4.2)
    axis.axhline(4, color=GREY, linewidth=0.8, linestyle=":")
    axis.text(64, 3.96, "no stack can pass n = 4", color="#555555", fontsize=10, va="top",
              ha="right")
    axis.legend(loc="upper left", fontsize=10, bbox_to_anchor=(0.0, 0.92))
    return figure


# ---- training ----

def plot_training(runs, gains):
    """Plot loss and gradient norm over training, and the gain over depth afterwards.

    runs: {kind: (losses, norms)}, steps S each; gains: {kind: layers S}. One line for each seed.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.7))
    for kind, (losses, norms) in runs.items():
        colour, style = KINDS[kind]
        for axis, lines in zip(axes, (losses, norms, gains[kind])):
            lines = lines.nan_to_num(nan=float("inf")).clamp(1e-6, 1e12)
            for i, line in enumerate(lines.T.tolist()):
                axis.plot(range(1, len(line) + 1), line, color=colour, linestyle=style,
                          linewidth=1.4, label=kind if i == 0 else None)
    axes[0].set_ylabel("loss (nats per byte)")
    axes[0].set_ylim(2.2, 5.2)
    axes[1].set_ylabel("gradient norm")
    axes[1].set_yscale("log")
    plain_ticks(axes[1].yaxis)
    axes[2].set_ylabel("forward gain after training")
    axes[2].set_yscale("log")
    for axis, name in zip(axes, ("training step", "training step", "layers passed")):
        axis.set_xlabel(name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# ---- a trained model ----

def plot_learned(sites):
    """Show comb, pre and post of each site, means over tokens; post has its own scale.

    sites: {name: (pre n, post n, comb n n)}.
    """
    loudest = max(post.max().item() for _, post, _ in sites.values())
    figure, axes = plt.subplots(3, len(sites), figsize=(11.4, 2.7), height_ratios=[4, 1, 1])
    for column, (name, (pre, post, comb)) in zip(axes.T, sites.items()):
        heat(column[0], comb, name, size=7.5)
        heat(column[1], pre[None], size=7.5)
        column[2].imshow((post[None] / loudest).tolist(), vmin=0, vmax=1, cmap="cividis")
        for j, value in enumerate(post.tolist()):
            column[2].text(j, 0, f"{value:.2f}".removeprefix("0"), ha="center", va="center",
                           fontsize=7.5, color="white" if value < 0.55 * loudest else BLACK)
        column[2].axis("off")
    for axis, name in zip(axes[:, 0], ("comb: from row\nto column", "pre",
                                       f"post: yellow\nmeans {loudest:.2f}")):
        axis.axis("on")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        axis.spines[:].set_visible(False)
    return figure


def plot_variation(models):
    """Plot how much the maps vary between tokens. models: {name: {map: list over sites}}."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.2), sharey=True)
    for axis, which in zip(axes, ("pre", "post", "comb")):
        for (name, lines), colour, mark in zip(models.items(), (ORANGE, BLUE), "so"):
            axis.plot(range(1, len(lines[which]) + 1), lines[which], marker=mark, color=colour,
                      label=name)
        axis.set_title(which)
        axis.set_xlabel("site")
        axis.set_yscale("log")
    axes[0].set_ylabel("standard deviation over tokens")
    axes[0].legend(loc="center left", bbox_to_anchor=(0.0, 0.38))
    return figure


def plot_losses(changes, control):
    """Plot the rise of the loss for each change as bars.

    changes: {name: nats}; control: names of the pale bars.
    """
    figure, axis = plt.subplots(figsize=(8.2, 0.36 * len(changes) + 1.1))
    colours = [SKY if name in control else ORANGE for name in changes]
    bars = axis.barh(list(changes), list(changes.values()), color=colours)
    axis.bar_label(bars, [f"{v:+.3f}".replace("-0.000", "+0.000") for v in changes.values()],
                   padding=4, fontsize=10)
    axis.invert_yaxis()
    axis.axvline(0, color=BLACK, linewidth=0.8)
    most = max(changes.values())
    least = min(changes.values())
    axis.set_xlim(least - 0.16 * most if least < 0 else 0, 1.22 * most)
    axis.set_xlabel("change of the loss (nats per token)")
    axis.grid(False, axis="y")
    return figure


def plot_costs(ns, parameters, traffic):
    """Plot parameters and memory traffic of mHC in Flash over the number of streams.

    traffic: {name: MB per token}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    left.plot(ns, [p / 1e6 for p in parameters], "o-", color=BLUE)
    left.set_ylabel("parameters of mHC (millions)")
    for (name, line), look in zip(traffic.items(), ("s--", "o-")):
        right.plot(ns, line, look, label=name, color=ORANGE if look[0] == "s" else BLUE)
    right.set_ylabel("read and written (MB per token)")
    right.legend()
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ns, ns)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_xlabel("streams n")
        axis.axvline(4, color=GREY, linewidth=0.8, linestyle=":")
    plain_ticks(right.yaxis)
    return figure
