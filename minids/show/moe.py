"""Figures of lesson 06: a layer of experts, affinities, clamps, sorting, loads, specialisation."""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import PowerNorm

from minids.show.drawing import arrow, box, canvas
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PALETTE, PURPLE, SKY, VERMILION, YELLOW

SETTINGS = {  # colour and line of each run, in every figure
    "no balancing": (VERMILION, "-"),
    "V4's numbers: u = 0.001, loss 0.0001": (BLUE, "--"),
    "bias, u = 0.01": (GREEN, "-."),
    "sequence-wise loss, 0.01": (PURPLE, ":"),
    "no balancing, no common direction": (ORANGE, (0, (5, 1)))}


def plot_layer(chosen=(1, 4), g=(1.1, 0.4), experts=6):
    """Draw one token's path: the router picks two of six experts, the shared one always works."""
    figure, axis = canvas(8.8, 3.9)
    xs = [2.0 + 0.95 * e for e in range(experts)]
    box(axis, 0.6, 1.9, "token\nx", 0.8, 0.7, YELLOW)
    box(axis, 4.0, 3.3, "router:  s = affinity(W x),  top K of s + bias", 6.4, 0.5, ORANGE)
    arrow(axis, (0.85, 2.28), (1.1, 3.02))
    shared = xs[-1] + 1.1
    for e, x in enumerate(xs):
        on = e in chosen
        box(axis, x, 1.9, f"E{e}", 0.66, 0.62, BLUE if on else "white", 0.35 if on else 0.25)
        if on:
            weight = g[chosen.index(e)]
            arrow(axis, (x, 3.02), (x, 2.24))
            axis.text(x + 0.06, 2.6, f"g = {weight}", fontsize=10)
            arrow(axis, (x, 1.57), (4.3 + 0.25 * (e - 2.5), 0.72), linewidth=1 + 2 * weight)
    box(axis, shared, 1.9, "shared", 0.9, 0.62, GREEN)
    arrow(axis, (shared, 1.57), (5.6, 0.78), linewidth=2)
    axis.text(shared, 2.38, "always, unweighed", ha="center", fontsize=10)
    box(axis, 4.5, 0.5, "y  =  g1 E1(x) + g4 E4(x) + shared(x)", 3.6, 0.5, SKY)
    return figure


def plot_affinities(low=-6.0, high=6.0):
    """Plot affinities that gates have used, against the gate's output, and their slopes."""
    x = torch.linspace(low, high, 200, requires_grad=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.3))
    curves = {"sqrt(softplus(x)), V4": lambda x: F.softplus(x).sqrt(),
              "sigmoid(x), V3": torch.sigmoid, "softplus(x)": F.softplus}
    for (name, f), colour, line in zip(curves.items(), (BLUE, ORANGE, BLACK), ("-", "--", "-.")):
        y = f(x)
        slope = torch.autograd.grad(y.sum(), x)[0]
        axes[0].plot(x.detach(), y.detach(), color=colour, linestyle=line, label=name)
        axes[1].plot(x.detach(), slope, color=colour, linestyle=line)
    axes[0].set_ylabel("affinity s")
    axes[1].set_ylabel("slope ds/dx")
    for axis in axes:
        axis.set_xlabel("gate's output x")
    axes[0].set_ylim(0, 4)
    axes[0].legend(loc="upper left")
    return figure


def plot_clamps(limit=10.0):
    """Plot the SiLU of the gate, clamped and not, and the largest product."""
    x = torch.linspace(-30, 30, 400)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.3))
    axes[0].plot(x, F.silu(x), color=ORANGE, linestyle="--", label="silu(w1 x)")
    axes[0].plot(x, F.silu(x.clamp(max=limit)), color=BLUE, label="clamped from above first")
    axes[0].set_xlabel("w1 x, the gate")
    axes[0].set_ylabel("factor from the gate")
    axes[1].plot(x, F.silu(x) * x, color=ORANGE, linestyle="--", label="no clamp")
    axes[1].plot(x, F.silu(x.clamp(max=limit)) * x.clamp(-limit, limit), color=BLUE,
                 label="V4's clamps")
    axes[1].set_xlabel("w1 x and w3 x, when both are equal")
    axes[1].set_ylabel("silu(w1 x) * w3 x")
    for axis in axes:
        axis.legend(loc="upper left")
    return figure


def plot_sorting(chosen, experts):
    """Draw four tokens' choices in the tokens' order and in the experts' order, joined by lines.

    chosen: N x K list.
    """
    N, K = len(chosen), len(chosen[0])
    flat = [e for row in chosen for e in row]
    order = sorted(range(N * K), key=lambda i: flat[i])
    figure, axis = plt.subplots(figsize=(9.0, 3.3))
    axis.set_xlim(-1.5, N * K - 0.4)
    axis.set_ylim(-0.35, 2.75)
    axis.axis("off")
    tones = [PALETTE[i] for i in (2, 1, 3, 7, 4)]
    for i, e in enumerate(flat):
        box(axis, i, 2.2, f"t{i // K} to E{e}", 0.8, 0.5, tones[e % 5])
        to = order.index(i)
        arrow(axis, (i, 1.9), (to, 1.05), color=tones[e % 5], linewidth=1.6)
        box(axis, to, 0.75, f"t{i // K}", 0.8, 0.45, tones[e % 5])
    for e in range(experts):
        at = [i for i in range(N * K) if flat[order[i]] == e]
        if at:
            axis.plot([at[0] - 0.38, at[-1] + 0.38], [0.38, 0.38], color=BLACK, linewidth=1.5)
            axis.text((at[0] + at[-1]) / 2, 0.2, f"one product: E{e}", ha="center", va="top",
                      fontsize=10)
    axis.text(-1.45, 2.2, "choices", va="center", fontsize=10)
    axis.text(-1.45, 0.75, "order", va="center", fontsize=10)
    return figure


def plot_zipf(frequencies, loads, control, bound):
    """Plot token frequencies by rank, and the imbalance of random hash tables.

    loads, control: largest over mean load of random tables, on text and on even frequencies.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.3))
    ranked = sorted((f for f in frequencies if f > 0), reverse=True)
    axes[0].loglog(range(1, len(ranked) + 1), ranked, color=BLUE, label="held-out text")
    axes[0].loglog([1, len(ranked)], [ranked[9] * 10, ranked[9] * 10 / len(ranked)], color=BLACK,
                   linestyle=":", label="1 / rank (Zipf)")
    axes[0].set_xlabel("rank of the token")
    axes[0].set_ylabel("share of the text")
    axes[0].legend()
    top = max(max(loads), max(control)) + 0.1
    bins = [1 + i * (top - 1) / 30 for i in range(31)]
    axes[1].hist(control, bins, color=SKY, label="all tokens equally often", alpha=0.8)
    axes[1].hist(loads, bins, color=ORANGE, label="as in the text", alpha=0.8)
    axes[1].axvline(bound, color=BLACK, linestyle=":", label="mean + std, by formula")
    axes[1].set_xlabel("largest load / mean load")
    axes[1].set_ylabel("random tables")
    axes[1].legend(fontsize=9)
    return figure


def plot_load_curves(runs, smooth=10):
    """Plot the largest load over the mean load against the step.

    runs: {name: S R E loads of R seeds}; bands are the seeds' range.
    """
    figure, axis = plt.subplots(figsize=(8.4, 4.5))
    for name, loads in runs.items():
        colour, line = SETTINGS.get(name, (BLACK, "-"))
        sums = loads.unfold(0, smooth, smooth).sum(-1)  # S/smooth R E
        largest = sums.max(-1).values / sums.mean(-1)  # S/smooth R
        steps = [smooth * (i + 0.5) for i in range(len(largest))]
        axis.plot(steps, largest.mean(1), color=colour, linestyle=line, label=name)
        axis.fill_between(steps, largest.min(1).values, largest.max(1).values, color=colour,
                          alpha=0.15, linewidth=0)
    axis.axhline(1, color=BLACK, linewidth=0.8)
    axis.set_ylim(bottom=0.9)
    axis.set_xlabel(f"training step (loads of {smooth} steps added up)")
    axis.set_ylabel("largest load / mean load")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10,
                  title="lines: mean of the seeds; bands: their range")
    return figure


def plot_load_maps(runs, top=8, smooth=4):
    """Plot load over mean load of each expert and step, one panel for each run.

    runs: {name: S E}; top: E / K, the largest possible value.
    """
    figure, axes = plt.subplots(1, len(runs), figsize=(9.4, 3.6), sharey=True)
    for axis, (name, loads) in zip(axes, runs.items()):
        loads = loads.unfold(0, smooth, smooth).sum(-1)
        image = axis.imshow((loads / loads.mean(1, keepdim=True)).T, aspect="auto",
                            norm=PowerNorm(0.5, 0, top), interpolation="nearest",
                            extent=(0, len(loads) * smooth, loads.shape[1] - 0.5, -0.5))
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("training step")
        axis.grid(False)
    axes[0].set_ylabel("expert")
    figure.colorbar(image, ax=axes, label="load / mean load", ticks=[0, 0.5, 1, 2, 4, 8],
                    format="{x:g}")
    return figure


def plot_loads_at(runs, step, smooth=10):
    """Plot each expert's load around one step, a row of bars for each run. runs: {name: S E}."""
    figure, axes = plt.subplots(1, len(runs), figsize=(9.4, 2.9), sharey=True)
    for axis, (name, loads) in zip(axes, runs.items()):
        now = loads[max(step - smooth, 0): step].sum(0)
        now = now / now.mean()
        axis.bar(range(len(now)), now, color=SETTINGS.get(name, (BLACK, "-"))[0])
        axis.axhline(1, color=BLACK, linewidth=0.8)
        axis.set_title(f"{name}: largest {now.max():.1f}", fontsize=11)
        axis.set_xlabel("expert")
        axis.grid(False, axis="x")
    axes[0].set_ylim(0, 8)
    axes[0].set_ylabel("load / mean load")
    figure.suptitle(f"steps {max(step - smooth, 0) + 1} to {step}", x=0.01, ha="left", fontsize=12)
    return figure


def plot_agreement(maps, steps):
    """Plot the share of choices on which the weights of two steps agree.

    maps: {name: S S}; steps: the S steps.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(8.6, 3.7), sharey=True)
    half = (steps[1] - steps[0]) / 2
    sides = steps[0] - half, steps[-1] + half
    for axis, (name, share) in zip(axes, maps.items()):
        image = axis.imshow(100 * share, vmin=0, vmax=100, origin="lower", interpolation="nearest",
                            extent=(*sides, *sides))
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("weights of step")
        axis.set_xticks(steps[::2])
        axis.set_yticks(steps[::2])
        axis.grid(False)
    axes[0].set_ylabel("weights of step")
    figure.colorbar(image, ax=axes, label="the same expert (%)")
    return figure


def plot_specialists(tables, classes, top=2.0):
    """Plot log2 of the lift of each expert for each class of tokens.

    tables: {panel: classes x experts}.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(10.0, 0.36 * len(classes) + 1.5),
                                sharey=True)
    for axis, (name, lift) in zip(axes, tables.items()):
        image = axis.imshow(lift.clamp_min(2**-9).log2(), cmap="PuOr_r", vmin=-top, vmax=top,
                            aspect="auto", interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("expert")
        axis.grid(False)
        if lift.shape[1] <= 8:
            axis.set_xticks(range(lift.shape[1]))
    axes[0].set_yticks(range(len(classes)), classes)
    bar = figure.colorbar(image, ax=axes, extend="both",
                          label="how often chosen,\nagainst its average")
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2 x", "4 x"])
    return figure


def plot_losses(changes, unit="change of the loss (nats per token)"):
    """Plot changes of the loss as bars, on a scale that shows small and large ones."""
    figure, axis = plt.subplots(figsize=(8.4, 0.42 * len(changes) + 1.2))
    bars = axis.barh(list(changes), list(changes.values()), color=BLUE)
    axis.bar_label(bars, [f"{value:+.4f}" if abs(value) < 0.1 else f"{value:+.2f}"
                          for value in changes.values()], padding=4)
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_xlim(min(-1e-3, 2 * min(changes.values())), 20)
    axis.set_xticks([0, 0.001, 0.01, 0.1, 1, 10], ["0", "0.001", "0.01", "0.1", "1", "10"])
    axis.invert_yaxis()
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_xlabel(unit)
    axis.grid(False, axis="y")
    return figure
