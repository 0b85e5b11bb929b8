"""Figures and helpers of lesson 01: tokens in boxes, merges, masks of packed rows, the corpus."""

import html
import json

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch
from tokenizers import Regex, pre_tokenizers

from minids.data.tokenizer import PIECES, SPECIAL
from minids.show.drawing import bar_places
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from minids.system import paths

# light: text stays readable
PAPER = {"special": "#F6DDB0", "system": "#E6E6E6", "user": "#CFE8F7", "assistant": "#CDEBDD"}
MARKS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", "-.", ":", (0, (5, 1)))


def plain(text: str) -> str:
    """Text in ASCII: the full-width bars of special tokens as |, other characters escaped."""
    return text.replace("\uff5c", "|").replace("\u2581", "_").encode("ascii",
                                                                     "backslashreplace").decode()


def label(tokenizer, token: int) -> str:
    """A token on one line, in ASCII: spaces as _, line ends as \\n.

    Bytes that are no whole character are written as <E4>.
    """
    raw = tokenizer.to_bytes([token])
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in raw)
    if text in SPECIAL:
        return plain(text)
    text = text.replace(" ", "_").replace("\n", "\\n")
    return text if text.isascii() else "".join(c if c.isascii() else f"\\u{ord(c):x}" for c in text)


def pieces(text: str) -> list[str]:
    """The pieces that merges never cross: words with the space before them, digits, signs, ..."""
    return [piece for piece, _ in pre_tokenizers.Split(Regex(PIECES),
                                                       behavior="isolated").pre_tokenize_str(text)]


def merges() -> list[tuple[int, int, int]]:
    """The merges of the shipped tokenizer, (a, b, new), in the order in which they were learned."""
    model = json.loads(paths.data("tokenizer",
                                  "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return [(model["vocab"][a], model["vocab"][b], model["vocab"][a + b])
            for a, b in model["merges"]]


def roles(ids, tokenizer) -> list[str]:
    """Whose part of a conversation each id belongs to, as the model reads it: a key of PAPER."""
    names = {tokenizer.id(SPECIAL[3]): "user", tokenizer.id(SPECIAL[4]): "assistant"}
    special, role, labels = {tokenizer.id(name) for name in SPECIAL}, "system", []
    for i in ids:
        role = names.get(i, role)
        labels.append("special" if i in special else role)
    return labels


def ribbon(ids, tokenizer, groups=None, trained=None) -> HTML:
    """Show tokens in boxes, each with its id.

    groups: names the background of each token; trained: marks tokens in bold, with a bar.
    """
    box = "display: inline-block; vertical-align: top; margin: 1px; padding: 0 3px; color: black;"
    bar = "font-weight: bold; border-bottom: 4px solid #0072B2;"
    boxes = []
    for n, i in enumerate(ids):
        paper = PAPER[groups[n]] if groups else list(PAPER.values())[1 + n % 3]
        bold = bar if trained and trained[n] else ""
        boxes.append(f'<span style="{box} background: {paper}; {bold}">'
                     f'{html.escape(label(tokenizer, int(i)))}<br>'
                     f'<small style="color: #444">{int(i)}</small></span>')
    name = "color: black; padding: 0 6px; margin-right: 6px;"
    legend = "".join(f'<span style="background: {PAPER[g]}; {name}">{g}</span>'
                     for g in PAPER if groups and g in groups)
    legend += ("<b>bold, with a bar: trained on</b>" if trained else "")
    return HTML('<div style="font-family: monospace; line-height: 1.25;">'
                f'{"".join(boxes)}<div>{legend}</div></div>')


def plot_boxes(rows: dict, title: str, width: int = 84):
    """Draw rows of tokens as boxes; long rows continue on the next line. rows: {name: labels}."""
    lines = []
    for name, tokens in rows.items():
        line, used = [], 0
        for token in tokens:
            if used + len(token) + 1 > width:
                lines.append((name, line))
                name, line, used = "", [], 0
            line.append((used, token))
            used += len(token) + 1
        lines.append((name, line))
    figure, axis = plt.subplots(figsize=(9.4, 0.36 * len(lines) + 0.75))
    colours = (SKY, YELLOW, GREEN, ORANGE)
    which = 0
    for n, (name, line) in enumerate(lines):
        axis.text(-1, -n, name, ha="right", va="center", fontsize=10)
        for at, token in line:
            axis.add_patch(FancyBboxPatch((at + 0.1, -n - 0.36), len(token) + 0.5, 0.72,
                                          facecolor=colours[which % 4],
                                          boxstyle="round,pad=0,rounding_size=0.2", alpha=0.45,
                                          edgecolor=BLACK, linewidth=0.5))
            axis.text(at + 0.35 + len(token) / 2, -n, token, ha="center", va="center",
                      family="monospace", fontsize=8.5)
            which += 1
    axis.set_xlim(-12, width + 1)
    axis.set_ylim(-len(lines) + 0.4, 0.6)
    axis.axis("off")
    axis.set_title(title, fontsize=11)
    return figure


def plot_compression(ratios: dict, shipped: int):
    """Plot bytes per token over the vocabulary's size. ratios: {kind of text: {size: ratio}}."""
    figure, axis = plt.subplots(figsize=(7.6, 3.9))
    for (kind, line), mark, dash in zip(ratios.items(), MARKS, LINES):
        axis.plot(list(line), list(line.values()), marker=mark, linestyle=dash, label=kind)
    axis.axvline(shipped, color=BLACK, linewidth=0.8, linestyle=":")
    axis.text(shipped, axis.get_ylim()[0], " shipped", fontsize=9, va="bottom")
    sizes = list(next(iter(ratios.values())))
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="ids in the vocabulary", ylabel="bytes per token")
    axis.legend(title="held-out text", fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_tokenizers(table: dict):
    """Plot bytes per token of two tokenizers.

    table: {text: (bytes, tokens of ours, tokens of V4's)}.
    """
    figure, axis = plt.subplots(figsize=(8.2, 0.55 * len(table) + 1.1))
    at = np.arange(len(table))
    for shift, column, name, colour, hatch in ((-0.2, 1, "ours", ORANGE, ""),
                                               (0.2, 2, "V4's", BLUE, "//")):
        bars = axis.barh(at + shift, [row[0] / row[column] for row in table.values()], 0.38,
                         color=colour, hatch=hatch, edgecolor="white", label=name)
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axis.set_yticks(at, list(table))
    axis.invert_yaxis()
    axis.set_xlabel("bytes per token")
    axis.legend(loc="lower right")
    return figure


def plot_masks(left, right, documents):
    """Show which keys each query of one row sees, without and with sample-level masks.

    Dark: seen. Lines: where documents begin.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.3))
    for axis, mask, title in zip(axes, (left, right), ("causal only", "sample-level")):
        axis.imshow(mask.numpy(), cmap=ListedColormap(["#F2F2F2", BLUE]), interpolation="nearest")
        for n in range(1, len(documents)):
            if documents[n] != documents[n - 1]:
                axis.axhline(n - 0.5, color=VERMILION, linewidth=1.2)
                axis.axvline(n - 0.5, color=VERMILION, linewidth=1.2)
        ticks = range(0, len(documents), 3)
        axis.set(title=title, xlabel="key s", ylabel="query t", xticks=ticks, yticks=ticks)
        axis.grid(False)
    return figure


def plot_windows(lengths, m: int):
    """Draw the windows of m tokens in a row of documents: cut by the row, and by the document."""
    figure, axis = plt.subplots(figsize=(9.2, 2.5))
    colours, starts = (SKY, YELLOW, GREEN), np.cumsum([0, *lengths])
    T = int(starts[-1])
    by_row = list(range(0, T - m + 1, m))
    by_document = [start + i for start, n in zip(starts, lengths) for i in range(0, n - m + 1, m)]
    for y, from_row in ((1.4, True), (0.0, False)):
        for n, (start, length) in enumerate(zip(starts, lengths)):
            for t in range(start, start + length):
                axis.add_patch(plt.Rectangle((t, y), 1, 0.6, facecolor=colours[n % 3],
                                             edgecolor=BLACK, linewidth=0.6))
                axis.text(t + 0.5, y + 0.3, str(t - (0 if from_row else start)), ha="center",
                          va="center", fontsize=9)
        for begin in by_row if from_row else by_document:
            mixed = any(begin < start < begin + m for start in starts)
            axis.plot([begin + 0.1, begin + m - 0.1], [y - 0.14] * 2,
                      color=VERMILION if mixed else BLACK, linewidth=4,
                      linestyle=(0, (1.2, 0.6)) if mixed else "-")
        axis.text(-0.2, y + 0.3, "cut from the row" if from_row else "cut from each document",
                  ha="right", va="center")
    axis.text(0, -0.55,
              "bars: windows; dotted: a window that mixes two documents; numbers: positions",
              fontsize=9)
    axis.set_xlim(-5.2, T + 0.1)
    axis.set_ylim(-0.7, 2.2)
    axis.axis("off")
    return figure


def plot_shares(table: dict, lengths: dict):
    """Plot the mixture by characters and by tokens, and the lengths of documents.

    table: {kind: (share, share)}; lengths: {kind: [tokens]}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.7))
    at = np.arange(len(table))
    for shift, column, name, colour, hatch in ((-0.2, 0, "characters", SKY, ""),
                                               (0.2, 1, "tokens", BLUE, "//")):
        left.barh(at + shift, [100 * row[column] for row in table.values()], 0.38, color=colour,
                  hatch=hatch, edgecolor="white", label=name)
    left.set_yticks(at, list(table))
    left.invert_yaxis()
    left.set_xlabel("share of the mixture (%)")
    left.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    right.boxplot(list(lengths.values()), orientation="horizontal", whis=(0, 100),
                  medianprops={"color": VERMILION, "linewidth": 2})
    right.set_yticks(range(1, len(lengths) + 1), list(lengths))
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel("tokens in a document (box: the middle half)")
    return figure


def plot_zipf(counts: dict):
    """Plot word frequency over rank, logarithmic, with Zipf's law. counts: {name: counts}."""
    figure, axis = plt.subplots(figsize=(7.2, 3.8))
    for (name, frequency), dash, colour in zip(counts.items(), LINES,
                                               (BLUE, ORANGE, GREEN, PURPLE)):
        frequency = np.sort(np.asarray(frequency, dtype=float))[::-1]
        axis.plot(np.arange(1, len(frequency) + 1), 100 * frequency / frequency.sum(),
                  linestyle=dash, color=colour, label=name)
    ranks = np.array([1, 10000])
    axis.plot(ranks, 10 / ranks, color=BLACK, linewidth=0.8, linestyle=":", label="10 % / rank")
    axis.set(xscale="log", yscale="log", xlabel="rank of the word", ylabel="share of all words (%)",
             ylim=(1e-4, 20))
    axis.legend(fontsize=9)
    return figure


def plot_baselines(table: dict):
    """Plot bits per byte of several models on each kind of text. table: {kind: {model: bits}}."""
    figure, axis = plt.subplots(figsize=(9.0, 3.7))
    names = list(next(iter(table.values())))
    colours, hatches = (BLACK, PURPLE, ORANGE, BLUE, GREEN), ("", "//", "..", "xx", "")
    for n, name in enumerate(names):
        bars = axis.bar(bar_places(len(table), n, len(names)),
                        [row[name] for row in table.values()], 0.752 / len(names), color=colours[n],
                        hatch=hatches[n], edgecolor="white", label=name)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axis.set_xticks(range(len(table)), list(table))
    axis.set_ylabel("bits per byte, held-out text")
    axis.legend(fontsize=9, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    axis.grid(False, axis="x")
    return figure


def plot_surprise(labels, bits, title: str):
    """Plot how many bits each token costs."""
    figure, axis = plt.subplots(figsize=(9.0, 3.0))
    bars = axis.bar(range(len(bits)), bits, color=[VERMILION if b > 4 else SKY for b in bits],
                    edgecolor=BLACK, linewidth=0.5)
    axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axis.set_xticks(range(len(bits)), labels, family="monospace", fontsize=9,
                    rotation=0 if len(bits) < 13 else 45)
    axis.set(ylabel="surprise (bits)", title=title, ylim=(0, 1.18 * max(bits)))
    axis.grid(False, axis="x")
    return figure
