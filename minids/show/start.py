"""Figures and widgets of lesson 00: the course, the architecture, the lifecycle, published figures.

Published figures are read from `data/published`; its README names the sources.
"""

import csv
import html
import math

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.patches import FancyBboxPatch, Rectangle

from minids import cost
from minids.show.drawing import arrow, box, canvas
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from minids.system import paths

GREY = "#777777"
PRO, FLASH = "DeepSeek-V4-Pro", "DeepSeek-V4-Flash"

# file, what it teaches, what it shows and measures, minutes of study, lessons before it; for the
# minutes see `minids course time`
LESSONS = (("00_start_here", "the map, what V4 is, the doctor; the shipped model talks",
            "price and benchmark explorer", 74, ()),
           ("01_tokens_and_data", "byte-level BPE, packing, chat encoding, TinyWorld",
            "compression ratio; n-gram baselines", 151, ("00",)),
           ("02_attention",
            "shared-KV attention, partial rotary and its inverse, sinks, window, grouped output",
            "why the output is rotated back; sink ablation", 175, ("00",)),
           ("03_hca", "heavy compression",
            "what an entry keeps; causality by perturbation", 153, ("02",)),
           ("04_csa", "overlap, the lightning indexer, top-k, indexer training",
            "recall of the indexer against full attention", 166, ("03",)),
           ("05_million_tokens", "decode state, the cost of context",
            "the published 27/10 % and 10/7 % recomputed; flat decode time", 131, ("04",)),
           ("06_moe", "sqrt-softplus gates, bias balancing, hash layers, shared expert, clamp",
            "load with and without balancing", 169, ("00",)),
           ("07_mhc", "residual, hyper-connections, Sinkhorn",
            "gain through 64 layers; the Birkhoff polytope", 144, ("00",)),
           ("08_whole_model", "block, head, MTP, initialisation; equality with transformers",
            "parameters of Flash and Pro, exactly", 152, ("00",)),
           ("09_muon", "orthogonalised updates",
            "singular values before and after; Muon against AdamW", 124, ("08",)),
           ("10_pretraining", "training a nano model end to end, in front of you",
            "loss against n-gram baselines; samples; ablations", 142, ("08",)),
           ("11_numbers", "FP8, FP4, quantisation-aware training",
            "error per format; loss after rounding", 148, ("10",)),
           ("12_specialists", "SFT, then GRPO with verifiable rewards, thinking modes",
            "reward curves; accuracy before and after", 167, ("10",)),
           ("13_distillation", "many teachers, one student, on-policy, full vocabulary",
            "merged weights, off-policy and on-policy side by side", 126, ("12",)),
           ("14_inference", "sampling, batching, MTP drafts, evaluation",
            "acceptance rate and speed-up; the report card", 166, ("10",)),
           ("15_real_weights", "V4's files, byte-range reads, one real layer on a GPU",
            "mini against real: routers, mHC, sinks, errors", 144, ("08", "11")),)


# ---- tables ----

def table(header: list[str], rows: list[list], note: str = "") -> None:
    """Show a table as HTML and as plain text, with a note below it.

    A cell may hold a notebook's name.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    head = "".join(f'<th scope="col" style="text-align:left">{html.escape(name)}</th>'
                   for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells)
    below = f"<p><small>{html.escape(note)}</small></p>" if note else ""
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in [header, *cells]]
    text = "\n".join([*lines, *([note] if note else [])])
    page = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
    display({"text/html": page, "text/plain": text}, raw=True)


def _cell(text: str) -> str:
    """A table cell: the name of a notebook becomes a link, a short text stays on one line."""
    inner = html.escape(text)
    if text.endswith(".ipynb"):
        inner = f'<a href="{inner}"><u>{inner.removesuffix(".ipynb")}</u></a>'
    wrap = "nowrap" if len(text) < 20 else "normal"
    return f'<td style="text-align:left;white-space:{wrap}">{inner}</td>'


# ---- the map of the course ----

def is_built(name: str) -> bool:
    """Whether the lesson of this name is built. The first one always is: its reader is in it."""
    return name == LESSONS[0][0] or (paths.NOTEBOOKS / f"{name}.ipynb").is_file()


def course_table() -> None:
    """Show the lessons, one a row: a link where there is a notebook, else "in preparation"."""
    rows = [[f"{name}.ipynb" if is_built(name) else name, teaches, shows, ", ".join(before) or "-",
             minutes if is_built(name) else "in preparation"]
            for name, teaches, shows, minutes, before in LESSONS]
    table(["lesson", "teaches", "shows and measures", "before it", "minutes"], rows,
          "Minutes of study, exercises included, are computed from the text.")


def prerequisites(number: str) -> list[str]:
    """The numbers of all lessons that come before this one, in order."""
    direct = next(before for name, *_, before in LESSONS if name.startswith(number))
    return sorted({*direct, *(far for near in direct for far in prerequisites(near))})


def course_map() -> None:
    """Show the lessons as a list whose entries open: what a lesson teaches, and the way to it."""
    cards = "".join(map(_card, LESSONS))
    display({"text/html": cards, "text/plain": "[the lessons, one below the other]"}, raw=True)


def _card(lesson: tuple) -> str:
    """One entry of the map, closed, as HTML. JupyterLab opens a link to a notebook beside ours."""
    name, teaches, shows, minutes, before = lesson
    lines = [("teaches", teaches), ("shows and measures", shows), ("minutes", minutes),
             ("right before it", ", ".join(before) or "nothing"),
             ("the whole way there", " > ".join(prerequisites(name[:2])) or "none")]
    rows = "".join(f'<tr><th scope="row" style="text-align: left">{key}</th>'
                   f'<td style="text-align: left">{html.escape(str(value))}</td></tr>'
                   for key, value in lines)
    link = f'<a href="{name}.ipynb"><u>open {name}</u></a>'
    return (f'<details><summary style="cursor: pointer">{name}</summary><table>{rows}</table>'
            f"<p>{link if is_built(name) else 'in preparation'}</p></details>")


# ---- pieces of drawings ----

def _box(ax, x, y, width, height, text, colour, size=10.0):
    """Draw a box with its lower left corner at (x, y)."""
    box(ax, x + width / 2, y + height / 2, text, width, height, colour, alpha=1, fontsize=size,
        linewidth=0.8, boxstyle="round,pad=0,rounding_size=1.2")


def _arrow(ax, start, end, **look):
    arrow(ax, start, end, zorder=1, **{"arrowstyle": "-|>", "mutation_scale": 11} | look)


def _tag(ax, x, y, number):
    """Draw a round mark with the number of a lesson."""
    ax.text(x, y, number, ha="center", va="center", size=8, color="white", weight="bold",
            bbox={"boxstyle": "round,pad=0.25", "fc": BLACK, "ec": "white", "lw": 0.8}, zorder=5)


# ---- what V4 is ----

def plot_architecture():
    """Draw the whole network; black marks name the lesson that teaches a part."""
    figure, ax = canvas(9.2, 7.4, (100, 100))
    lanes = (4.5, 7, 9.5, 12)
    _box(ax, 2, 1, 40, 5.5, "text -> token ids", "white")
    _tag(ax, 42, 6.5, "01")
    _arrow(ax, (22, 6.5), (22, 9.5))
    _box(ax, 2, 9.5, 40, 5.5, "embedding, copied into 4 streams", YELLOW)
    _tag(ax, 42, 15, "08")
    for x in lanes:
        _arrow(ax, (x, 15), (x, 80), color=GREEN, linewidth=2, mutation_scale=9)
    ax.add_patch(FancyBboxPatch((1.5, 21), 42, 54, boxstyle="round,pad=0,rounding_size=1.5",
                                fc="none", ec=GREY, ls="--"))
    ax.text(29, 71.7, "one block: 43 in Flash, 61 in Pro", ha="center", size=9.5, color="#444444")
    parts = ((27, "attention:\nwindow only, CSA or HCA", SKY, "02"),
             (50, "mixture of experts", ORANGE, "06"))
    for y, name, colour, tag in parts:
        _box(ax, 19, y + 4, 22, 9, name, colour)
        _tag(ax, 41, y + 13, tag)
        ax.plot([lanes[0], 30], [y, y], color=GREEN, lw=1.4, marker="o", ms=4, markevery=[0])
        ax.plot(lanes, [y] * 4, "o", color=GREEN, ms=4)
        _arrow(ax, (30, y), (30, y + 4), color=GREEN)
        ax.plot([30, 30, 14], [y + 13, y + 16.5, y + 16.5], color=GREEN, lw=1.4)
        _arrow(ax, (15, y + 16.5), (lanes[-1] + 0.6, y + 16.5), color=GREEN)
        ax.text(16, y + 1, "read: 4 -> 1", size=8.5)
        ax.text(16, y + 17.5, "write: 1 -> 4, mix", size=8.5)
    _tag(ax, 3, 75, "07")
    _box(ax, 2, 80, 24, 6, "4 -> 1, norm, head", YELLOW)
    _tag(ax, 26, 86, "08")
    _box(ax, 30, 80, 13, 6, "MTP block", "#EEEEEE")
    _tag(ax, 43, 86, "08")
    _arrow(ax, (14, 86), (14, 89.5))
    _arrow(ax, (36.5, 86), (36.5, 89.5))
    ax.text(14, 92, "chances of the\nnext token", ha="center", va="center", size=9.5)
    ax.text(36.5, 92, "the token\nafter it", ha="center", va="center", size=9.5)
    ax.plot([lanes[-1], 28.5, 28.5], [77.5, 77.5, 83], color=GREY, lw=1)
    _arrow(ax, (28.5, 83), (30, 83), color=GREY)
    _compression(ax)
    _experts(ax)
    ax.text(49, 96, "What a query can see", weight="bold", size=11)
    ax.text(2, 96, "The network", weight="bold", size=11)
    ax.text(49, 23, "Where a token goes", weight="bold", size=11)
    return figure


def _squares(ax, x, y, n, colour, lit=(), w=2.6):
    for i in range(n):
        ax.add_patch(Rectangle((x + i * w, y), w * 0.82, 2.2, fc=colour if i in lit else "white",
                               ec=BLACK, lw=0.7))


def _compression(ax):
    """Draw three panels, each with 16 tokens and what a query at the last one reads."""
    x, n = 50, 16
    for y, tag, title, text in ((79, "02", "window (every layer)",
                                 "the last 128 tokens, one by one"),
                                (53, "04", "CSA: compressed sparse attention",
                                 "4 tokens -> 1 entry; the indexer picks 512 (Pro: 1024)"),
                                (30, "03", "HCA: heavily compressed attention",
                                 "128 tokens -> 1 entry; every entry is read")):
        top = y + (9 if tag == "02" else 17)
        ax.text(x, top, title, size=10)
        ax.text(x, top - 3.3, text, size=9, color="#444444")
        _tag(ax, 98, top + 0.5, tag)
        _squares(ax, x, y, n, SKY, lit=(12, 13, 14, 15))
        ax.text(x, y - 2.8, "tokens", size=8.5, color="#444444")
        ax.text(x + 15.4 * 2.6, y - 2.8, "now", size=8.5, ha="center", color="#444444")
    for i in range(4):
        left = x + i * 4 * 2.6
        ax.add_patch(Rectangle((left + 3.6, 61), 3, 3, fc=BLUE if i in (0, 2) else "white",
                               ec=BLACK, lw=0.8))
        for j in range(4):
            ax.plot([left + (j + 0.4) * 2.6, left + 5.1], [55.2, 61], color=GREY, lw=0.6)
    ax.text(x + 43, 62.5, "picked:\nblue", size=8.5, va="center")
    for i in range(2):
        left = x + i * 8 * 2.6
        ax.add_patch(Rectangle((left + 8.5, 38), 3.4, 3, fc=VERMILION, ec=BLACK, lw=0.8))
        for j in range(8):
            ax.plot([left + (j + 0.4) * 2.6, left + 10.2], [32.2, 38], color=GREY, lw=0.6)
    ax.text(x + 43, 39.5, "all\nread", size=8.5, va="center")


def _experts(ax):
    x = 50
    _box(ax, x, 6, 8, 9, "router", "#EEEEEE", 9)
    _tag(ax, 98, 23.5, "06")
    picked = (1, 4, 5, 9, 12, 13)
    _squares(ax, x + 13, 12.5, 14, ORANGE, lit=picked, w=2.5)
    ax.plot([x + 8, x + 13 + (picked[-1] + 0.4) * 2.5], [10, 10], color=GREY, lw=0.9)
    for i in picked:
        _arrow(ax, (x + 13 + (i + 0.4) * 2.5, 10), (x + 13 + (i + 0.4) * 2.5, 12.4), color=GREY,
               linewidth=0.9, mutation_scale=6)
    ax.text(x + 13, 16.5, "routed experts: 256 (Pro: 384), 6 work", size=9)
    ax.add_patch(Rectangle((x + 13, 3.5), 4, 3, fc=ORANGE, ec=BLACK, lw=0.8))
    ax.text(x + 18, 5, "one shared expert works for every token", size=9, va="center")


def plot_layers(configs: dict):
    """Draw the kinds of layers from first to last, a row for each config.

    configs: {name: config}.
    """
    figure, ax = plt.subplots(figsize=(9.2, 2.5))
    colours = {"window only": "white", "CSA, 4 to 1": BLUE, "HCA, 128 to 1": VERMILION}
    for row, config in enumerate(configs.values()):
        for i, ratio in enumerate(config.compress_ratios[: config.n_layers]):
            kind = "window only" if not ratio else "CSA, 4 to 1" if ratio == 4 else "HCA, 128 to 1"
            ax.add_patch(Rectangle((i + 0.08, row - 0.3), 0.84, 0.6, fc=colours[kind], ec=BLACK,
                                   lw=0.6))
            if config.is_hash(i):
                ax.plot(i + 0.5, row + 0.42, marker="v", color=BLACK, ms=4)
    handles = [Rectangle((0, 0), 1, 1, fc=colour, ec=BLACK, lw=0.6) for colour in colours.values()]
    handles.append(plt.Line2D([], [], marker="v", color=BLACK, ls="", ms=4))
    ax.legend(handles, [*colours, "experts by token id"], ncols=4, loc="upper center",
              bbox_to_anchor=(0.5, -0.32))
    ax.set(xlim=(-0.3, max(config.n_layers for config in configs.values()) + 0.3),
           ylim=(-0.5, len(configs) - 0.3), xlabel="layer, from the first",
           yticks=range(len(configs)), yticklabels=list(configs))
    ax.grid(False)
    return figure


def plot_context_cost(flash, pro):
    """Plot operations and cache bytes of one token against the context, with V3.2 to compare."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.9))
    lengths = [2 ** k for k in range(10, 21)]
    panels = ((cost.flops, cost.flops_v32, "GFLOP a token (FP8 equivalents)"),
              (cost.kv_bytes, cost.kv_bytes_v32, "GB of cache"))
    for ax, digits, (ours, theirs, label) in zip(axes, (1, 2), panels):
        rows = {"V3.2": [theirs(n)["total"] / 1e9 for n in lengths]}
        for name, config in (("V4-Pro", pro), ("V4-Flash", flash)):
            rows[name] = [ours(config, n)["total"] / 1e9 for n in lengths]
        for (name, values), colour, marker in zip(rows.items(), (BLACK, BLUE, SKY), "sod"):
            ax.plot(lengths, values, color=colour, marker=marker, ms=4, label=name)
            if name != "V3.2":
                share = f"{100 * values[-1] / rows['V3.2'][-1]:.{digits}f} %"
                dy = 1 if name == "V4-Pro" else -9
                ax.annotate(share, (lengths[-1], values[-1]), (7, dy), textcoords="offset points",
                            size=10)
        ax.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel=label,
               xlim=(900, 4e6), xticks=[2 ** 10, 2 ** 14, 2 ** 17, 2 ** 20],
               xticklabels=["1K", "16K", "128K", "1M"])
        ax.minorticks_off()
    axes[0].set(yticks=[20, 50, 100, 200, 500], yticklabels=["20", "50", "100", "200", "500"])
    axes[0].legend(loc="upper left")
    return figure


def plot_lifecycle():
    """Draw the way from text to the finished model; black marks name the lesson."""
    figure, ax = canvas(9.2, 3.9, (100, 44))
    _box(ax, 0.5, 18, 13, 10, "text,\ntokens", "white")
    _tag(ax, 13.5, 28, "01")
    _box(ax, 18, 18, 15, 10, "pre-training:\nguess the\nnext token", SKY, 9.5)
    _tag(ax, 33, 28, "10")
    _tag(ax, 28, 28, "09")
    _arrow(ax, (13.5, 23), (18, 23))
    ax.text(25.5, 13.8, "Flash 32T tokens\nPro 33T tokens", ha="center", va="center", size=8.5,
            color="#444444")
    for y, name in ((33, "mathematics"), (23.2, "code"), (13.4, "agents"),
                    (3.6, "instructions, ...")):
        _box(ax, 38.5, y, 21, 6.6, f"{name}:\nSFT, then GRPO", ORANGE, 8.5)
        _arrow(ax, (33, 23), (38.5, y + 3.3))
        _arrow(ax, (59.5, y + 3.3), (64.5, 23))
    _tag(ax, 59.5, 39.6, "12")
    ax.text(49, 42, "specialists", ha="center", va="center", size=9.5)
    _box(ax, 64.5, 18, 15.5, 10, "on-policy\ndistillation", GREEN, 9.5)
    _tag(ax, 80, 28, "13")
    ax.text(72.2, 13.8, "more than ten\nteachers, one student", ha="center", va="center", size=8.5,
            color="#444444")
    _arrow(ax, (80, 23), (84.5, 23))
    _box(ax, 84.5, 18, 15, 10, "one model:\nrun it,\nevaluate it", YELLOW, 9.5)
    _tag(ax, 99, 28, "14")
    ax.text(92, 13.8, "in FP8 and FP4", ha="center", va="center", size=8.5, color="#444444")
    _tag(ax, 92, 10.3, "11")
    return figure


# ---- published figures ----

MODELS = {  # the name in prices.csv: (column of the benchmarks, colour, marker)
    FLASH: ("V4-Flash Max", SKY, "o"),
    PRO: ("DeepSeek-V4-Pro Max", BLUE, "s"),
    "GPT-5.4": ("GPT-5.4 xHigh", GREEN, "^"),
    "Claude Opus 4.6": ("Claude Opus 4.6 Max", ORANGE, "D"),
    "Gemini 3.1 Pro": ("Gemini 3.1 Pro High", PURPLE, "v"),
    "Kimi K2.6": ("Kimi K2.6 Thinking", VERMILION, "P"),
}
# one benchmark has another name in the table of the modes
OTHER_NAMES = {"MCPAtlas Public (Pass@1)": "MCPAtlas (Pass@1)"}


def published(name: str) -> list[dict]:
    """The rows of data/published/NAME.csv. Numbers are floats; what was not published is None."""
    with open(paths.data("published", f"{name}.csv"), encoding="utf-8", newline="") as file:
        return [{key: _value(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _value(text: str):
    try:
        return float(text) if text else None
    except ValueError:
        return text


def scores() -> dict[str, dict[str, float | None]]:
    """{benchmark: {model: score of its strongest mode, or None}} for the models that have a price.

    None stands for a score that was not published.
    """
    modes = {row["benchmark"]: row for row in published("benchmarks_modes")}
    by_benchmark = {}
    for row in published("benchmarks_frontier"):
        name = row["benchmark"]
        both = {**modes.get(OTHER_NAMES.get(name, name), {}), **row}
        by_benchmark[name] = {model: both.get(column) for model, (column, *_) in MODELS.items()}
    return by_benchmark


def blended(row: dict, ratio: float) -> float:
    """US dollars for a million tokens when `ratio` tokens are read for each token written.

    row: one of prices.csv.
    """
    return (ratio * row["input_usd_per_mtok"] + row["output_usd_per_mtok"]) / (ratio + 1)


def price_table() -> None:
    """Show the prices with their dates and sources."""
    def usd(value):
        return "not known" if value is None else f"{value:g}"
    rows = [[r["model"], usd(r["input_usd_per_mtok"]), usd(r["output_usd_per_mtok"]),
             usd(r["cache_hit_usd_per_mtok"]), r["as_of"],
             "; ".join(filter(None, (r["note"], r["source"])))] for r in published("prices")]
    table(["model", "input", "output", "cached input", "as of", "note and source"], rows,
          "US dollars for a million tokens. "
          "Each row holds on its date and says nothing about later ones.")


def _model_point(ax, model: str, prices, value: float | None, floor: float, below: bool):
    """Draw a model's point, or a cross at `floor` where it has no score, with its name.

    prices: from the launch to the newest; below: whether the name stands below the point.
    """
    _, colour, marker = MODELS[model]
    newest = prices[-1]
    if value is None:
        ax.plot(newest, floor, marker="x", color=colour, ms=9, mew=2, ls="", clip_on=False)
        ax.annotate(f"{model}: no figure", (newest, floor), (0, -17 if below else 8),
                    textcoords="offset points", ha="center", size=8.5)
        return
    if len(prices) > 1 and not math.isclose(*prices):
        ax.plot(prices[0], value, marker=marker, mfc="white", mec=colour, mew=1.8, ms=9, ls="")
        _arrow(ax, (prices[0], value), (newest, value), color=colour, shrinkA=7, shrinkB=7)
    ax.plot(newest, value, marker=marker, color=colour, mec=BLACK, mew=0.6, ms=10, ls="")
    ax.annotate(f"{model} {value:g}", (newest, value), (0, -17 if below else 10),
                textcoords="offset points", ha="center", size=9.5)


def plot_price_quality(benchmark: str, read_per_written: float):
    """Plot score against price, one point a model.

    A hollow point marks the price at the launch where it has changed since.
    """
    figure, ax = plt.subplots(figsize=(8.2, 4.6))
    values = scores()[benchmark]
    known = [value for value in values.values() if value is not None]
    low, high = min(known), max(known)
    room = max(high - low, 1e-9)
    floor = low - 0.38 * room
    # points from the highest score down: a label goes below its point where one is close above
    placed = []
    for model in sorted(MODELS, key=lambda model: -(values[model] or 0)):
        rows = sorted((r for r in published("prices") if r["model"] == model),
                      key=lambda r: r["as_of"])
        prices = [blended(row, read_per_written) for row in rows]
        value = values[model]
        y = floor if value is None else value
        near = any(abs(math.log10(x / prices[-1])) < 0.55 and 0 <= other - y < 0.17 * room
                   for x, other in placed)
        placed.append((prices[-1], y))
        _model_point(ax, model, prices, value, floor, near)
    ax.axhspan(floor - 0.14 * room, floor + 0.2 * room, color="#EEEEEE", zorder=0)
    unit = "rating points" if benchmark.endswith(("(Rating)", "(Elo)")) else "%"
    ax.set(xscale="log", xlim=(0.08, 40), ylim=(floor - 0.14 * room, high + 0.25 * room),
           xlabel="US dollars for a million tokens", ylabel=f"score ({unit})",
           xticks=[0.1, 0.3, 1, 3, 10, 30], xticklabels=["0.1", "0.3", "1", "3", "10", "30"],
           title=f"{benchmark}; tokens read for each one written: {read_per_written:g}")
    ax.minorticks_off()
    ticks = [t for t in ax.get_yticks() if low - 0.15 * room <= t <= high + 0.25 * room]
    ax.set_yticks(ticks)
    ax.text(0.085, floor - 0.1 * room, "not published", size=8.5, color="#444444", va="bottom")
    figure.supxlabel("Hollow: price at the launch, 2026-04-24. "
                     "Scores: DeepSeek's model card, April 2026.", size=8.5,
                     x=0.02, ha="left")
    return figure


def plot_modes():
    """Plot three reasoning modes of Flash and Pro on every benchmark that is a percentage."""
    rows = [r for r in published("benchmarks_modes")
            if not r["benchmark"].endswith(("(Rating)", "(Elo)"))]
    rows.sort(key=lambda r: (r["V4-Pro Max"] - r["V4-Pro Non-think"])
              if r["V4-Pro Non-think"] is not None else -1)
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 6.2), sharey=True)
    for ax, model in zip(axes, ("V4-Flash", "V4-Pro")):
        for y, row in enumerate(rows):
            values = [row[f"{model} {mode}"] for mode in ("Non-think", "High", "Max")]
            known = [value for value in values if value is not None]
            ax.plot([min(known), max(known)], [y, y], color="#BBBBBB", lw=2, zorder=1)
            for value, colour, marker in zip(values, ("white", SKY, BLUE), "osD"):
                if value is not None:
                    ax.plot(value, y, marker=marker, mfc=colour, mec=BLACK, mew=0.8, ms=6.5, ls="")
            if values[0] is None:
                ax.text(1, y, "Non-think: no figure", size=8, va="center", color="#666666")
        ax.set(xlim=(-2, 102), xlabel="score (%)", title=model, yticks=range(len(rows)),
               yticklabels=[r["benchmark"] for r in rows])
        ax.tick_params(axis="y", labelsize=9)
    handles = [plt.Line2D([], [], marker=m, mfc=c, mec=BLACK, ls="", ms=6.5)
               for c, m in zip(("white", SKY, BLUE), "osD")]
    figure.legend(handles, ["Non-think", "High", "Max"], ncols=3, loc="outside lower center")
    return figure
