"""Figures of lesson 09: singular values, polynomials, stacked experts, the race of optimisers."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from minids.pretrain.optim import FLAT, STEEP
from minids.show.drawing import arrow
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION, running_mean

HYBRID = [STEEP] * 8 + [FLAT] * 2
LOOKS = {"gradient": (VERMILION, "-"), "AdamW's first update": (ORANGE, "--"),
         "Muon's first update": (BLUE, "-")}

# Results of the lesson's own `race` for the seeds 0, 1 and 2: the loss on validation bytes after
# 100 steps, by learning rate.
SWEEP = {
    "AdamW": {
        0.0005: [2.416, 2.391, 2.369],
        0.001: [2.346, 2.332, 2.333],
        0.002: [2.351, 2.339, 2.313],
        0.004: [2.334, 2.418, 2.392],
        0.008: [2.352, 2.377, 2.476],
        0.016: [2.458, 2.47, 2.622],
        0.032: [2.375, 2.435, 2.409],
    },
    "Muon": {
        0.001: [2.391, 2.4, 2.394],
        0.002: [2.321, 2.339, 2.325],
        0.004: [2.235, 2.242, 2.248],
        0.008: [2.194, 2.138, 2.147],
        0.016: [2.162, 2.103, 2.163],
        0.032: [2.233, 2.191, 2.202],
    },
}
# The same with another orthogonalisation, at the rate that was best for Muon.
VARIANTS = {
    "Muon: 8 steep + 2 flat steps, rate 0.016": [2.162, 2.103, 2.163],
    "5 steep steps, rate 0.016": [2.17, 2.106, 2.155],
    "exact, by SVD, rate 0.016": [2.166, 2.102, 2.166],
    "not orthogonalised, rate 0.016": [2.569, 2.601, 2.553],
    "not orthogonalised, rate 0.004": [2.456, 2.429, 2.449],
    "not orthogonalised, rate 0.002": [2.36, 2.353, 2.33],
    "AdamW at its best rate, 0.002": [2.351, 2.339, 2.313],
}


def plot_spectra(values: dict[str, torch.Tensor]):
    """Plot singular values of several matrices, and what share of the squared norm they add up to.

    values: {name: singular values, descending}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    for name, s in values.items():
        colour, dash = LOOKS[name]
        place = np.arange(1, len(s) + 1)
        left.plot(place, (s / s[0]).clamp_min(1e-6), dash, color=colour, label=name)
        right.plot(place, 100 * s.square().cumsum(0) / s.square().sum(), dash, color=colour)
    left.set(yscale="log", ylim=(5e-4, 2), xlabel="direction, strongest first",
             ylabel="singular value / largest", title="How strong is each direction?")
    right.set(ylim=(0, 103), xlabel="directions counted, strongest first",
              ylabel="share of the squared norm (%)", title="How many directions matter?")
    right.axhline(90, color=BLACK, linewidth=0.8, linestyle=":")
    right.text(len(s), 88, "90 %", ha="right", va="top", fontsize=10)
    left.legend(fontsize=10, loc="lower left")
    return figure


def plot_circles(G, Q):
    """Draw a circle under the 2 x 2 matrix G and under its orthogonalised Q."""
    Vt = np.linalg.svd(np.asarray(G, dtype=float))[2]
    Vt = np.where(Vt[:, 1:] < 0, -Vt, Vt)                                # rows that point upwards
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.5))
    for ax, matrix, title in zip(axes, (np.eye(2), np.asarray(G, dtype=float),
                                        np.asarray(Q, dtype=float)),
                                 ("inputs of length 1", "G: an ellipse",
                                  "orthogonalised: a circle")):
        ax.plot(*(matrix @ circle), color=BLACK, linewidth=1.2)
        for v, colour in zip(Vt, (VERMILION, BLUE)):
            end = matrix @ v
            arrow(ax, (0, 0), end, arrowstyle="-|>", color=colour, linewidth=2)
            ax.text(*(end * (1 + 0.22 * max(1,
                                            np.abs(matrix @ circle).max()) / np.linalg.norm(end))),
                    f"{np.linalg.norm(end):.2f}", color=colour, ha="center", va="center",
                    fontsize=10)
        reach = 1.35 * max(1.0, np.abs(matrix @ circle).max())
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    return figure


def apply_steps(x, steps):
    """Apply the polynomials a x + b x^3 + c x^5 of `steps`, one after the other."""
    for a, b, c in steps:
        x = a * x + b * x**3 + c * x**5
    return x


def plot_polynomials():
    """Plot one steep and one flat step as functions of a singular value."""
    x = np.linspace(0, 1.3, 400)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.7), sharey=True)
    for ax, step, name, colour in zip(axes, (STEEP, FLAT), ("steep, 8 times", "flat, 2 times"),
                                      (VERMILION, BLUE)):
        ax.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
        ax.plot(x, x, color=BLACK, linewidth=0.8, label="unchanged")
        ax.plot(x, apply_steps(x, [step]), color=colour, label="after one step")
        ax.set(xlabel="singular value before",
               title=f"{name}: ({', '.join(f'{k:g}' for k in step)})", ylim=(0, 1.65))
        ax.axvspan(0.68, 1.134, color=SKY, alpha=0.25, linewidth=0)
        ax.legend(fontsize=10, loc="upper left")
    axes[0].text(0.70, 0.06, "where the steep\nsteps end", fontsize=10)
    axes[1].text(0.70, 0.06, "where the flat\nsteps begin", fontsize=10)
    axes[0].set_ylabel("singular value after")
    return figure


def plot_all_steps(low: float = 1e-5):
    """Plot all steps together for singular values from `low` to 1, with Muon's original five."""
    x = np.logspace(np.log10(low), 0, 4000)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.7), width_ratios=(3, 2))
    for ax in axes:
        ax.plot(x, apply_steps(x, [STEEP] * 8), color=ORANGE, linewidth=1.2, label="8 steep")
        ax.plot(x, apply_steps(x, [STEEP] * 5), "--", color=BLACK, linewidth=1.2,
                label="5 steep (Muon, 2024)")
        ax.plot(x, apply_steps(x, HYBRID), color=BLUE, linewidth=2.2, label="8 steep + 2 flat (V4)")
        ax.set(xscale="log", xlabel="singular value / Frobenius norm")
    axes[0].set(ylabel="singular value after", ylim=(0, 1.3), title="Steep, then flat")
    axes[0].legend(fontsize=10, loc="lower right")
    axes[1].set(xlim=(0.01, 1), ylim=(0.6, 1.25), title="The same, closer")
    return figure


def plot_paths(values, steps=HYBRID):
    """Plot each singular value's path through the steps.

    values: singular values divided by the Frobenius norm.
    """
    path = [np.asarray(values, dtype=float)]
    for step in steps:
        path.append(apply_steps(path[-1], [step]))
    path = np.stack(path)                                                  # steps+1 values
    figure, ax = plt.subplots(figsize=(8.4, 4.0))
    colours = plt.cm.cividis(np.linspace(0, 0.95, path.shape[1]))
    for i in range(path.shape[1]):
        ax.plot(range(len(path)), path[:, i], color=colours[i], linewidth=1.0)
    ax.axvline(8, color=BLACK, linewidth=0.8, linestyle=":")
    ax.text(7.9, 1.5 * path[0].min(), "8 steep steps", ha="right", fontsize=10)
    ax.text(8.1, 1.5 * path[0].min(), "2 flat", fontsize=10)
    ax.set(yscale="log", xlabel="steps done", ylabel="singular value",
           title="One line for each direction of the gradient", xticks=range(len(path)))
    return figure


def plot_after_steps(steps: int, values):
    """Plot the map after so many steps of the hybrid, and what it makes of some singular values.

    values: divided by the Frobenius norm.
    """
    x = np.logspace(-5, 0, 2000)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6))
    left.plot(x, apply_steps(x, HYBRID[:steps]), color=BLUE)
    here = np.asarray(values, dtype=float)
    left.plot(here, apply_steps(here, HYBRID[:steps]), "o", color=VERMILION, markersize=3)
    left.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
    left.set(xscale="log", ylim=(0, 1.3), xlabel="singular value / Frobenius norm",
             ylabel=f"after {steps} steps", title="The map (dots: this gradient)")
    right.hist(apply_steps(here, HYBRID[:steps]).clip(0, 1.299), bins=np.linspace(0, 1.3, 53),
               color=VERMILION)
    right.axvline(1, color=BLACK, linewidth=0.8, linestyle=":")
    right.set(xlabel="singular value", ylabel="directions", xlim=(0, 1.3),
              title=f"All {len(here)} directions")
    return figure


def plot_experts(share, together, apart):
    """Plot each expert's share of the choices (%) and the norm of its update.

    together, apart: norms with all experts stacked into one matrix, and with each by itself.
    """
    place = np.arange(len(share))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5))
    left.bar(place, share, color=SKY)
    left.set(xlabel="expert", ylabel="share of the choices (%)", title="Who was chosen",
             xticks=place)
    right.bar(place - 0.2, together, 0.4, color=VERMILION, label="all stacked into one matrix")
    right.bar(place + 0.2, apart, 0.4, color=BLUE, label="each by itself")
    right.set(xlabel="expert", ylabel="norm of the update", title="How far each expert moves",
              xticks=place, ylim=(0, 1.35 * max(*together, *apart)))
    right.legend(fontsize=10, loc="upper left")
    return figure


def plot_race(curves: dict[str, list[float]], width: int = 8):
    """Plot training losses of one run of each kind, running means over `width` steps."""
    figure, ax = plt.subplots(figsize=(7.6, 3.8))
    for (name, losses), colour, dash in zip(curves.items(), (ORANGE, BLUE), ("--", "-")):
        mean = running_mean(losses, width)[width - 1:]
        ax.plot(range(width, len(losses) + 1), mean, dash, color=colour, linewidth=1.6, label=name)
    ax.set(xlabel="step", ylabel=f"loss (nats per byte, mean of {width} steps)",
           title="The same batches, two optimisers")
    ax.legend()
    return figure


def plot_sweep(results=None):
    """Plot losses against the learning rate, a dot for each seed.

    results: {optimiser: {learning rate: losses of the seeds}}.
    """
    results = SWEEP if results is None else results
    figure, ax = plt.subplots(figsize=(7.6, 3.8))
    for (name, losses), colour, dash in zip(results.items(), (ORANGE, BLUE), ("o--", "s-")):
        rates = sorted(losses)
        ax.plot(rates, [np.mean(losses[r]) for r in rates], dash, color=colour, markersize=5,
                label=name)
        for rate in rates:
            ax.plot([rate] * len(losses[rate]), losses[rate], "_", color=colour, markersize=9)
    rates = sorted(next(iter(results.values())))
    ax.set_xscale("log", base=2)
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.set(xlabel="learning rate", ylabel="validation loss (nats per byte)",
           title="After 100 steps (dashes: single seeds)")
    ax.legend()
    return figure


def plot_cost_share(tokens, shares: dict[str, list[float]], real: dict[str, tuple[float, float]]):
    """Plot the iteration's share of a training step's operations (%) over the tokens in a step.

    real: {name: (tokens, share)} at V4's batch sizes.
    """
    figure, ax = plt.subplots(figsize=(7.6, 3.6))
    for (name, share), colour in zip(shares.items(), (GREEN, SKY, BLUE)):
        ax.plot(tokens, share, color=colour, label=name)
        if name in real:
            x, y = real[name]
            ax.plot([x], [y], "o", color=colour)
            below = name == "Flash"                                      # its dot is close to Pro's
            ax.annotate(f"{y:.1f} %", (x, y), xytext=(-4, -6) if below else (6, 4),
                        textcoords="offset points", fontsize=10, color=colour,
                        ha="right" if below else "left", va="top" if below else "bottom")
    ax.set(xscale="log", yscale="log", xlabel="tokens in a step",
           ylabel="operations beside the model's (%)",
           title="What orthogonalising adds to a step (dots: at the batch used)")
    ax.legend()
    return figure
