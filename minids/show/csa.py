"""Figures of lesson 04: overlap, torn pairs, leaks, an indexer's recall, a query's picks, costs."""

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from minids.show.drawing import cell
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, length_ticks


def plot_overlap(m, n, chosen):
    """Draw tokens, with two halves each, around the entries, and the slots that one entry pools."""
    figure, axis = plt.subplots(figsize=(10.2, 3.7))
    for t in range(n * m):
        for half, y in (("a", 2.6), ("b", 0.0)):
            pooled = t // m == (chosen - 1 if half == "a" else chosen)
            cell(axis, t + 0.06, y, 0.88, 0.62, half, edgecolor=BLACK, linewidth=0.6,
                 facecolor=(ORANGE if half == "a" else SKY) if pooled else "#EEEEEE")
        axis.text(t + 0.5, 3.45, t, ha="center", va="center", fontsize=9)
    for text, y in (("token", 3.45), ("a-halves", 2.91), ("entries", 1.61), ("b-halves", 0.31)):
        axis.text(-0.2, y, text, ha="right", va="center", fontsize=10)
    for i in range(n):
        cell(axis, i * m + 0.1, 1.3, m - 0.2, 0.62, f"entry {i}", edgecolor=BLACK,
             linewidth=2.2 if i == chosen else 0.6, facecolor=GREEN if i == chosen else "white")
    for first, ends, colour in (((chosen - 1) * m, (2.6, 1.92), ORANGE),
                                (chosen * m, (0.62, 1.3), SKY)):
        for j in range(m):
            axis.plot([first + j + 0.5, chosen * m + j + 0.5], ends, color=colour, linewidth=1.5,
                      zorder=0)
    axis.set_xlim(-1.6, n * m + 0.2)
    axis.set_ylim(-0.1, 3.7)
    axis.axis("off")
    return figure


def plot_places(scores, chance):
    """Plot accuracy by the key's place in its window.

    scores: {version: {answer: [[seeds] for each place]}}.
    """
    answers = list(next(iter(scores.values())))
    figure, axes = plt.subplots(1, len(answers), figsize=(9.6, 3.6), sharey=True)
    for axis, answer in zip(axes, answers):
        for v, (version, colour) in enumerate(zip(scores, (BLUE, VERMILION))):
            for place, seeds in enumerate(scores[version][answer]):
                x = place + 0.4 * v - 0.2
                axis.bar(x, sum(seeds) / len(seeds), width=0.36, color=colour, alpha=0.45,
                         label=version if place == 0 else None)
                axis.scatter([x - 0.08 + 0.08 * i for i in range(len(seeds))], seeds, color=colour,
                             s=14, zorder=3)
        axis.axhline(chance, color=BLACK, linewidth=0.9, linestyle=":")
        axis.set_title(f"name the {answer}")
        axis.set_xticks(range(4), ["0", "1", "2", "3: torn"])
        axis.set_xlabel("place of the key in its window")
    axes[0].set_ylabel("accuracy")
    axes[0].set_ylim(0, 1.08)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside upper right",
                  fontsize=10)
    return figure


def plot_leak(runs, floor):
    """Plot losses over training on text that nobody can predict. runs: {name: losses}."""
    figure, axis = plt.subplots(figsize=(8.2, 3.6))
    for (name, line), style, colour in zip(runs.items(), ("-", "--", ":"),
                                           (BLUE, VERMILION, GREEN)):
        axis.plot(line, linestyle=style, color=colour, label=name, linewidth=2.2)
    axis.axhline(floor, color=BLACK, linewidth=0.8, linestyle=":")
    axis.text(len(line), floor - 0.03, "ln 16: pure guessing", ha="right", va="top", fontsize=10)
    axis.set_xlabel("training step")
    axis.set_ylabel("loss (nats per token)")
    axis.legend(loc="lower left")
    return figure


STYLES = {"oracle": (BLACK, "-", "s"), "shipped": (GREEN, "-", "o"), "warmed up": (BLUE, "-", "^"),
          "fresh": (ORANGE, "--", "v"), "latest": (PURPLE, "--", "x"),
          "random": (VERMILION, ":", ".")}


def plot_coverage(ks, results):
    """Plot attention mass and recall over k.

    results: {who picks: {"mass": shares, "recall": shares}}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 4.0), sharey=True)
    for axis, measure in zip(axes, ("mass", "recall")):
        for name, shares in results.items():
            colour, line, marker = STYLES[name]
            axis.plot(ks, shares[measure], color=colour, linestyle=line, marker=marker, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, ks)
        axis.set_ylim(0, 1.05)
        axis.set_xlabel("entries picked, k")
    axes[0].set_title("attention mass on the picked entries")
    axes[1].set_title("recall of the oracle's picks")
    axes[0].set_ylabel("share")
    axes[0].legend(loc="upper left", fontsize=10)
    return figure


def plot_variants(rows, k):
    """Plot recall as dots. rows: {variant: recall of each seed}."""
    figure, axis = plt.subplots(figsize=(8.2, 0.45 * len(rows) + 1.1))
    for y, values in enumerate(rows.values()):
        axis.scatter(values, [y] * len(values), color=BLUE, s=45, alpha=0.7)
        axis.text(1.02, y, f"{min(values):.2f} to {max(values):.2f}",
                  transform=axis.get_yaxis_transform(), va="center", fontsize=10)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"recall of the oracle's {k} entries, one dot for each seed")
    return figure


def plot_picks(mass, picked, queries, entries):
    """Plot queries (rows) against entries (columns): attention as colour, picks as rings.

    mass: Q S, NaN where an entry is not complete; picked: Q S bool.
    """
    figure, axis = plt.subplots(figsize=(10.6, 0.2 * len(queries) + 2.4))
    colours = plt.get_cmap("cividis").with_extremes(bad="white")
    image = axis.imshow(mass.sqrt().numpy(), cmap=colours, aspect="auto", interpolation="nearest",
                        vmin=0)
    y, x = picked.nonzero(as_tuple=True)
    axis.scatter(x, y, s=26, facecolors="none", edgecolors=VERMILION, linewidths=1.5)
    axis.set_yticks(range(len(queries)), queries, fontsize=8, family="monospace")
    axis.set_xticks(range(len(entries)), entries, rotation=90, fontsize=7, family="monospace")
    axis.set_xlabel("entries, by the four tokens of their own window")
    axis.set_ylabel("query")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="root of the attention, summed over heads", shrink=0.9)
    return figure


def plot_story(pieces, tokens, t, mass, picked, w, m):
    """Draw a text as the query at t sees it: entries coloured by attention, picked ones framed.

    pieces: the words of each token; mass: S, attention of the query; picked: S bool; w: sliding
    window, underlined in orange.
    """
    top, columns, complete = max(mass.max().item(), 1e-9), 128, (t + 1) // m
    boxes, column, line = [], 0, 0
    for i in range(-(-tokens // m)):
        length = sum(map(len, pieces[i * m:(i + 1) * m])) + 1
        if column + length > columns:
            column, line = 0, line + 1
        boxes.append((i, column, line, length))
        column += length
    figure, axis = plt.subplots(figsize=(10.6, 0.5 * line + 1.1))
    for i, column, line, length in boxes:
        words, done = pieces[i * m:(i + 1) * m], i < complete
        strength = (mass[i].item() / top) ** 0.5 if done else 0.0
        blue = [1 - strength * (1 - channel) * 0.8 for channel in to_rgb(BLUE)]
        axis.add_patch(plt.Rectangle((column, -line - 0.40), length - 0.4, 0.8, facecolor=blue,
                                     edgecolor=VERMILION if done and picked[i] else "#CCCCCC",
                                     linewidth=2.4 if done and picked[i] else 0.5, zorder=2 if done
                                     and picked[i] else 1))
        at = column + 0.35
        for j, word in enumerate(words):
            s = i * m + j
            colour = "#AAAAAA" if s > t else "white" if strength > 0.8 else BLACK
            axis.text(at, -line, word, fontsize=9, family="monospace", va="center", color=colour,
                      zorder=4)
            if s <= t and s > t - w:
                axis.plot([at, at + len(word) - 0.15], [-line - 0.31] * 2,
                          color=BLACK if s == t else ORANGE, linewidth=4 if s == t else 2.4,
                          zorder=3)
            at += len(word)
    axis.set_xlim(-0.5, columns)
    axis.set_ylim(-line - 0.7, 0.7)
    axis.axis("off")
    handles = [Patch(facecolor="white", edgecolor=VERMILION, linewidth=2.4, label="picked entry"),
               Patch(facecolor=BLUE, label="much attention, if all were read"),
               Patch(facecolor=ORANGE, label="sliding window"),
               Patch(facecolor=BLACK, label="the query")]
    axis.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=9)
    return figure


def plot_operations(lengths, curves):
    """Plot operations of one decoded token over the context. curves: {name: counts}."""
    figure, axis = plt.subplots(figsize=(8.6, 4.3))
    styles = zip(curves.items(), ("--", "-", "-", "-."), (VERMILION, BLUE, GREEN, BLACK))
    for (name, counts), style, colour in styles:
        axis.plot(lengths, [count / 1e9 for count in counts], linestyle=style, color=colour,
                  label=name, linewidth=2.2)
        axis.annotate(f"{counts[-1] / 1e9:,.1f}", (lengths[-1], counts[-1] / 1e9), (5, 0),
                      textcoords="offset points", va="center")
    length_ticks(axis, lengths)
    axis.set_yscale("log")
    axis.set_xlim(lengths[0], lengths[-1] * 2.2)
    axis.set_xlabel("context (tokens)")
    axis.set_ylabel("10^9 operations, FP8 equivalents")
    axis.legend(loc="upper left", fontsize=10)
    return figure
