"""Figures of lesson 12: the clipped objective, KL estimates, reward hacking, a run of GRPO."""

import matplotlib.pyplot as plt
import numpy as np

from minids.show.drawing import bar_places, interval_bars
from minids.show.start import published
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, running_mean

GREY = "#9A9A9A"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)


def _curve(ax, ratio, A: float, clip: float | None):
    """Plot min(ratio A, clip(ratio) A) over the ratio, the flat part thick."""
    gain = ratio * A
    flat = np.zeros_like(ratio, dtype=bool)
    if clip is not None:
        gain = np.minimum(gain, np.clip(ratio, 1 - clip, 1 + clip) * A)
        flat = ratio > 1 + clip if A > 0 else ratio < 1 - clip
        ax.axvspan(1 - clip, 1 + clip, color=SKY, alpha=0.25, linewidth=0)
    ax.plot(ratio, ratio * A, color=GREY, linestyle=":", linewidth=1.2)
    ax.plot(ratio, np.where(flat, np.nan, gain), color=BLUE, linewidth=2.4, label="slope A")
    ax.plot(ratio, np.where(flat, gain, np.nan), color=VERMILION, linewidth=3.4, label="slope 0")
    ax.axhline(0, color=BLACK, linewidth=0.6)
    ax.set(xlabel="ratio = pi / pi_old", ylabel="gain")
    return gain


def gain_at(ratio: float, A: float, clip: float) -> tuple[float, float]:
    """The clipped gain, and its slope with respect to the ratio."""
    outside = ratio > 1 + clip if A > 0 else ratio < 1 - clip
    bounded = min(max(ratio, 1 - clip), 1 + clip) * A
    return (bounded, 0.0) if outside and A else (ratio * A, A)


def plot_objective(ratio: float, advantage: float, clip: float = 0.2):
    """Plot the clipped gain over the ratio for one advantage, with a point and its tangent."""
    figure, ax = plt.subplots(figsize=(6.6, 3.6))
    _curve(ax, np.linspace(0.0, 2.0, 401), advantage, clip)
    gain, slope = gain_at(ratio, advantage, clip)
    near = np.array([ratio - 0.3, ratio + 0.3])
    ax.plot(near, gain + slope * (near - ratio), color=BLACK, linewidth=1.2)
    ax.plot([ratio], [gain], "o", color=BLACK, markersize=8)
    ax.set(xlim=(0, 2), ylim=(-2.1, 2.1),
           title=f"ratio {ratio:.2f}, advantage {advantage:+.2f}: "
                 f"gain {gain:+.2f}, slope {slope:+.2f}")
    ax.legend(loc="upper left" if advantage <= 0 else "lower right", fontsize=9)
    return figure


def plot_objective_pair(clip: float = 0.2):
    """Plot the clipped gain for a good answer and for a bad one."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharey=True)
    for ax, A, name in zip(axes, (1.0, -1.0), ("Good answer, A = +1", "Bad answer, A = -1")):
        _curve(ax, np.linspace(0.0, 2.0, 401), A, clip)
        ax.set_title(name)
        ax.legend(loc="lower right" if A > 0 else "upper right", fontsize=9)
    axes[0].text(1.62, 0.85, "gone far enough", ha="center", fontsize=9)
    axes[1].text(0.42, -1.12, "gone far enough", ha="center", fontsize=9)
    axes[1].text(1.5, -1.05, "wrong way:\nfull slope", ha="left", fontsize=9)
    axes[1].set_ylabel("")
    return figure


def plot_clipping(ratio, mask, A, included, clip: float, words):
    """Plot the tokens of some rollouts by their ratio: which are clipped, which are left out.

    ratio, mask: B R; A, included: B.
    """
    figure, ax = plt.subplots(figsize=(8.6, 3.4))
    ax.axvspan(1 - clip, 1 + clip, color=SKY, alpha=0.25, linewidth=0)
    ax.axvline(1, color=BLACK, linewidth=0.8)
    seen = set()
    for i in range(len(A)):
        for t in [t for t in range(mask.shape[1]) if mask[i, t]]:
            x, a = float(ratio[i, t]), float(A[i])
            clipped = gain_at(x, a, clip)[1] == 0
            kind = "left out" if not included[i] else "clipped: slope 0" if clipped else "counts"
            y = i + 0.25 * (t - (int(mask[i].sum()) - 1) / 2)
            ax.plot([x], [y], {"counts": "o", "clipped: slope 0": "s", "left out": "X"}[kind],
                    markersize=9, color={"counts": BLUE, "clipped: slope 0": VERMILION,
                                         "left out": GREY}[kind],
                    label=None if kind in seen else kind)
            ax.text(x + 0.03, y, words[i][t], va="center", fontsize=9)
            seen.add(kind)
    ax.set_yticks(range(len(A)), [f"rollout {i + 1}\nA = {float(a):+.2f}" for i, a in enumerate(A)])
    ax.invert_yaxis()
    ax.set(xlabel="ratio = pi / pi_old of the token (shaded: inside the clip)", xlim=(0, 2.05))
    ax.legend(loc="lower right", fontsize=9)
    return figure


def plot_estimators(exact: float, on: dict, off: dict):
    """Plot mean and standard deviation of KL estimates.

    on, off: {name: (mean, standard deviation)}, tokens from the policy and from an older one.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.4), sharex=True)
    for ax, table, title in zip(axes, (on, off), ("Tokens from the policy itself",
                                                  "Tokens from an older policy")):
        for i, (name, (mean, deviation)) in enumerate(table.items()):
            right = abs(mean - exact) < 1e-6
            ax.errorbar([mean], [i], xerr=[deviation], fmt="o" if right else "X",
                        color=BLUE if right else VERMILION, markersize=8, capsize=4, elinewidth=1.5)
        ax.axvline(exact, color=BLACK, linestyle="--", linewidth=1.2)
        ax.set_yticks(range(len(table)), list(table))
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.set_xticks([-0.5, 0, 0.5, 1], ["-0.5", "0", "0.5", "1"])
        ax.set(title=title, xlabel="nats: mean and standard deviation of a token")
    return figure


def plot_baselines(table: dict):
    """Plot the noise of the gradient estimate with several baselines. Returns figure and axis.

    table: {name: standard deviations, one for each prompt}.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.2))
    for i, ((name, values), mark) in enumerate(zip(table.items(), ("X", "s", "o", "^"))):
        ax.plot(range(len(values)), values, marker=mark, color=COLOURS[(1, 4, 0, 2)[i]], label=name)
    ax.set(ylabel="noise (standard deviation)", ylim=(0, None))
    ax.legend(fontsize=9)
    return figure, ax


def plot_hacking(runs: dict, sayings: dict):
    """Plot for each judge what a policy earns and how often it is correct, over steps.

    runs: {name: rows (reward, accuracy, ...)}.
    """
    figure, axes = plt.subplots(1, len(runs), figsize=(9.4, 3.6), sharey=True, squeeze=False)
    axes = axes[0]
    for ax, (name, log) in zip(axes, runs.items()):
        ax.plot([100 * row[0] for row in log], color=ORANGE, linewidth=4.5, alpha=0.7,
                label="what it earns")
        ax.plot([100 * row[1] for row in log], color=BLUE, linewidth=1.8,
                label="how often it is correct")
        ax.set(title=f"{name}\nat the end it says: {sayings[name]}", xlabel="step", ylim=(-3, 103))
        ax.title.set_fontsize(10)
        ax.legend(fontsize=9, loc="upper left")
    axes[0].set_ylabel("% of replies")
    return figure


def plot_seeds(curves: dict, ylabel: str, title: str):
    """Plot runs of several kinds over steps, a thin line for each seed. curves: {name: lines}."""
    figure, ax = plt.subplots(figsize=(7.4, 3.4))
    for (name, lines), colour in zip(curves.items(), COLOURS):
        for i, line in enumerate(lines):
            ax.plot(line, color=colour, linewidth=1.2, label=None if i else name)
    ax.set(xlabel="batch of answers", ylabel=ylabel, title=title, ylim=(-0.02, 1.02))
    ax.legend(fontsize=9)
    return figure


def plot_shares(table: dict):
    """Plot how often a policy takes the second of two equally correct words.

    table: {name: shares, one for each problem}.
    """
    figure, axes = plt.subplots(1, len(table), figsize=(9.0, 3.0), sharey=True)
    for ax, (name, values), colour in zip(axes, table.items(), (GREY, VERMILION, BLUE)):
        # 11 bins: 50 % is in the middle of one
        ax.hist([100 * v for v in values], bins=np.linspace(0, 100, 12),
                weights=[100 / len(values)] * len(values), color=colour, edgecolor="white")
        ax.set_title(name)
    axes[0].set_ylabel("problems (%)")
    figure.supxlabel("'seven' instead of '7' (% of correct answers)", fontsize=11)
    return figure


def plot_replay(without, replayed, changed: float):
    """Plot log ratios of a batch's tokens after one update: experts chosen anew, and replayed."""
    figure, (ax, how_far) = plt.subplots(1, 2, figsize=(9.4, 3.8))
    limit = 1.1 * max(np.abs(without).max(), np.abs(replayed).max(), 0.05)
    ax.plot([-limit, limit], [-limit, limit], color=BLACK, linewidth=0.8)
    ax.plot(replayed, without, ".", color=BLUE, markersize=5, alpha=0.6)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="log ratio, experts replayed",
           ylabel="log ratio, experts free")
    apart = np.maximum(np.abs(without - replayed), 1e-7)
    how_far.hist(apart, bins=np.geomspace(1e-7, max(apart.max(), 1e-6) * 1.1, 30), color=BLUE)
    how_far.set(xscale="log", xlabel="|free - replayed|", ylabel="tokens",
                title=f"{100 * changed:.1f} % of the tokens have an expert changed")
    how_far.title.set_fontsize(11)
    return figure


def plot_sft_loss(losses):
    """Plot the loss of fine-tuning over steps."""
    figure, ax = plt.subplots(figsize=(6.6, 2.8))
    ax.plot(range(1, len(losses) + 1), losses, color=SKY, linewidth=1.2)
    ax.plot(range(1, len(losses) + 1), running_mean(np.pad(losses, 3, mode="edge"), 7)[6:],
            color=BLUE)
    ax.set(xlabel="step", ylabel="nats a reply token", ylim=(0, None),
           title="SFT: loss on replies (mean of seven steps)")
    return figure


def plot_grpo_run(runs: dict, what: dict):
    """Plot runs of GRPO over steps, a panel for each measure.

    runs: {name: list of records}; what: {key of a record: label}.
    """
    rows = (len(what) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 2.6 * rows), sharex=True, squeeze=False)
    for ax, (key, label) in zip(axes.flat, what.items()):
        for (name, log), colour, mark in zip(runs.items(), (BLUE, VERMILION), ("o", "s")):
            values = np.array([record[key] for record in log])
            smooth = running_mean(np.pad(values, 2, mode="edge"), 5)[4:]
            ax.plot(range(1, len(values) + 1), values, mark, color=colour, markersize=3, alpha=0.45)
            ax.plot(range(1, len(values) + 1), smooth, color=colour, label=name)
        ax.set_title(label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    axes[0, 0].legend(fontsize=9)
    return figure


def plot_bars(table: dict, ylabel: str, guess: float | None = None):
    """Plot shares with intervals, in groups.

    table: {group: {name: (share, low, high)}}; guess: accuracy of always saying 12.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.6))
    names = list(next(iter(table.values())))
    for j, (name, colour) in enumerate(zip(names, (GREY, BLUE, VERMILION, GREEN))):
        percent = 100 * np.array([row[name] for row in table.values()])
        interval_bars(ax, bar_places(len(table), j, len(names)), percent, 0.736 / len(names),
                      colour, name, alpha=0.85)
    if guess is not None:
        ax.axhline(100 * guess, color=BLACK, linestyle=":", linewidth=1.2)
        ax.text(1.01, 100 * guess, "always\nsaying 12", fontsize=9, va="center",
                transform=ax.get_yaxis_transform())
    ax.set_xticks(range(len(table)), list(table))
    ax.set(ylabel=ylabel, ylim=(0, 100))
    ax.legend(fontsize=9, loc="upper left", ncol=len(names))
    return figure


def plot_pass_at_k(curves: dict):
    """Plot pass@k over k. curves: {name: list for k = 1, 2, ...}."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    for (name, line), colour, mark in zip(curves.items(), (GREY, BLUE, VERMILION), ("X", "o", "s")):
        ax.plot(range(1, len(line) + 1), [100 * v for v in line], marker=mark, color=colour,
                label=name)
    ax.set(xlabel="k: answers that may be tried", ylabel="pass@k (%)", ylim=(0, 102))
    ax.set_xticks(range(1, len(next(iter(curves.values()))) + 1))
    ax.legend(fontsize=9, loc="lower right")
    return figure


def plot_modes(names):
    """Plot published scores of V4 in its three modes. names: prefixes of benchmarks."""
    rows = [next(row for row in published("benchmarks_modes") if row["benchmark"].startswith(name))
            for name in names]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 0.42 * len(rows) + 1.3), sharey=True)
    for ax, model in zip(axes, ("V4-Flash", "V4-Pro")):
        for i, row in enumerate(rows):
            values = [row[f"{model} {mode}"] for mode in ("Non-think", "High", "Max")]
            ax.plot([min(values), max(values)], [i, i], color=GREY, linewidth=1)
            for value, mark, colour, mode in zip(values, "osD", ("white", SKY, BLUE),
                                                 ("Non-think", "High", "Max")):
                ax.plot([value], [i], mark, mfc=colour, mec=BLACK, mew=0.8, markersize=7,
                        label=mode if i == 0 else None)
        ax.set(title=model, xlabel="score (%)", xlim=(-3, 102))
    axes[0].set_yticks(range(len(rows)), [row["benchmark"].split(" (")[0] for row in rows])
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=9, loc="center left")
    return figure
