"""Figures of lesson 05: decode state, what a query reads, the cost of context, a million tokens."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch

from minids import cost
from minids.config import Config
from minids.show.drawing import cell, stacked_shares
from minids.show.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    length,
    length_ticks,
    plain_ticks,
)

TERMS = {  # of `minids.cost`, in the order of the stacks
    "FP8 and FP4 weights": BLUE, "FP8 weights": BLUE,
    "BF16 and float32 weights": SKY, "BF16 weights": SKY,
    "CSA core": GREEN, "core": GREEN, "HCA core": ORANGE, "window-only core": PURPLE,
    "indexer": VERMILION, "window": PURPLE, "CSA entries": GREEN, "latents": GREEN,
    "HCA entries": ORANGE, "CSA index keys": VERMILION, "index keys": VERMILION}
OF_V32 = {"CSA core": "CSA core (V3.2: core)", "CSA entries": "CSA entries (V3.2: latents)",
          "CSA index keys": "index keys"}
NAMES = {"operations": "10^9 operations (FP8 equivalents)", "bytes": "gigabytes of cache"}


def plot_memory(sizes):
    """Plot bytes of cache as bars. sizes: {name: bytes}."""
    figure, axis = plt.subplots(figsize=(8.6, 0.5 * len(sizes) + 0.9))
    for y, (name, size) in enumerate(sizes.items()):
        axis.barh(y, size / 1e9, color={"V4-Pro": BLUE, "V4-Flash": SKY}.get(name, "#999999"))
        axis.text(size / 1e9 * 1.06, y, f"{size / 1e9:,.1f} GB", va="center", fontsize=10)
    axis.set_yticks(range(len(sizes)), sizes)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(1, 900)
    axis.set_xlabel("cache of one text of 1,048,576 tokens (10^9 bytes, logarithmic)")
    axis.grid(False, axis="y")
    return figure


def plot_state(seen, w, m, T):
    """Show what one CSA layer keeps after `seen` of T tokens: window, waiting tokens, entries."""
    figure, axis = plt.subplots(figsize=(10.2, 3.6))
    full = seen // m * m
    kinds = {"in the window": ORANGE, "waiting for its window": VERMILION,
             "a-half kept for the next entry": PURPLE}
    for y, kind in ((2.45, "in the window"), (1.6, "waiting for its window"),
                    (0.75, "a-half kept for the next entry")):
        for t in range(T):
            inside = {"in the window": seen - w <= t < seen,
                      "waiting for its window": full <= t < seen,
                      "a-half kept for the next entry": full - m <= t < full}[kind]
            cell(axis, t + 0.07, y, 0.86, 0.6, t, fontsize=8.5,
                 ink=BLACK if t < seen else "#BBBBBB", linewidth=0.6,
                 edgecolor=BLACK if t < seen else "#CCCCCC",
                 facecolor=kinds[kind] if inside else "white")
        axis.text(-0.25, y + 0.3, kind, ha="right", va="center", fontsize=10)
    for i in range(T // m):
        done = i < seen // m
        cell(axis, i * m + 0.1, -0.15, m - 0.2, 0.6, f"entry {i}, index key {i}" if done else "",
             fontsize=9, linewidth=0.8, edgecolor=BLACK if done else "#CCCCCC",
             facecolor=SKY if done else "white")
    axis.text(-0.25, 0.15, "kept permanently", ha="right", va="center", fontsize=10)
    axis.plot([seen, seen], [-0.3, 3.3], color=BLACK, linewidth=1.4)
    axis.text(seen + 0.1, 3.2, f"{seen} tokens read", fontsize=10, va="center")
    axis.set_xlim(-6.2, T + 0.1)
    axis.set_ylim(-0.35, 3.45)
    axis.axis("off")
    return figure


def plot_errors(panels):
    """Show which tokens go wrong, and how much.

    panels: {title: (cut, {fault: error of each token, T})}.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(10.2, 2.15 * len(panels) + 0.4),
                                sharex=True)
    colours = plt.get_cmap("cividis").with_extremes(under="white")
    for axis, (title, (cut, rows)) in zip(axes, panels.items()):
        image = axis.imshow(torch.stack(list(rows.values())).clamp(1e-9).numpy(), aspect="auto",
                            interpolation="nearest", cmap=colours, norm=LogNorm(1e-3, 10))
        axis.axvline(cut - 0.5, color=VERMILION, linewidth=1.6)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(title)
        axis.grid(False)
    axes[-1].set_xlabel("token (red line: the first call ends, the second begins)")
    figure.colorbar(image, ax=axes, label="largest error of a logit")
    return figure


def plot_reach(rows, t):
    """Show which tokens the query at t reads in each layer, one by one or in entries.

    rows: {layer: {"window": T, "entries": T}}, bool.
    """
    figure, axis = plt.subplots(figsize=(10.2, 0.62 * len(rows) + 1.5))
    for y, parts in enumerate(rows.values()):
        for name, colour in (("entries", BLUE), ("window", ORANGE)):
            for first, last in stretches(parts[name]):
                axis.barh(y, last - first, left=first, height=0.62, color=colour, edgecolor="none")
        axis.barh(y, t + 1, height=0.62, facecolor="none", edgecolor="#999999", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlim(0, t + 1)
    axis.set_xlabel(f"token (the query is token {t}, at the right)")
    axis.grid(False)
    axis.legend(handles=[Patch(facecolor=ORANGE, label="one by one, in the window"),
                         Patch(facecolor=BLUE, label="in an entry"),
                         Patch(facecolor="white", edgecolor="#999999", label="not at all")],
                ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=10)
    return figure


def stretches(mask):
    """The stretches of a bool tensor where it is true, as (first, last + 1)."""
    edges = torch.diff(torch.nn.functional.pad(mask.int(), (1, 1)))
    return list(zip((edges == 1).nonzero().flatten().tolist(),
                    (edges == -1).nonzero().flatten().tolist()))


def plot_stacks(lengths, what):
    """Plot stacked areas over the context, a column for each model.

    what: {"operations" or "bytes": {model: [terms at each length]}}.
    """
    figure, axes = plt.subplots(len(what), 3, figsize=(10.4, 3.5 * len(what)), sharex=True,
                                sharey="row", layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for line, (measure, models) in zip(axes, what.items()):
        top = max(points[-1]["total"] for points in models.values())
        for axis, (model, points) in zip(line, models.items()):
            terms = [name for name in TERMS if name in points[0]]
            areas = axis.stackplot(lengths, [[point[name] / 1e9 for point in points]
                                             for name in terms],
                                   colors=[TERMS[name] for name in terms])
            seen = [(area, name) for area, name in zip(areas, terms)
                    if points[-1][name] > top / 1000]  # others are too thin
            total = points[-1]["total"] / 1e9
            axis.annotate(f"{total:,.1f}", (lengths[-1], total), (-4, 4),
                          textcoords="offset points", ha="right", fontsize=10)
            length_ticks(axis, lengths)
            axis.set_xlim(lengths[0], lengths[-1])
            axis.set_title(model)
            axis.legend(*zip(*seen[::-1]), loc="upper left", fontsize=8.5)
        line[0].set_ylabel(NAMES[measure])
        line[0].set_ylim(0, top / 1e9 * 1.08)
    for axis in axes[-1]:
        axis.set_xlabel("context (tokens)")
    return figure


def plot_shares(rows):
    """Plot what each total is made of, in percent. rows: {name: terms}."""
    figure, axis = plt.subplots(figsize=(9.6, 0.5 * len(rows) + 1.5))
    stacked_shares(axis, {name: {term: terms[term] for term in TERMS if term in terms}
                          for name, terms in rows.items()}, TERMS, least=5)
    axis.set_xlabel("share of the operations of one decoded token (%)")
    labels = {TERMS[term]: OF_V32.get(term, term) for terms in rows.values() for term in TERMS
              if term in terms}
    axis.legend(handles=[Patch(facecolor=colour, label=name) for colour, name in labels.items()],
                ncols=3, fontsize=9, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    return figure


def plot_ratios(lengths, curves, published):
    """Plot operations and bytes as a share of V3.2's over the context.

    curves: {measure: {model: shares}}; published: {measure: {model: percent at 1M}}.
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(10.2, 3.7))
    for axis, (measure, models) in zip(axes, curves.items()):
        for (model, shares), colour, style in zip(models.items(), (BLUE, SKY), ("-", "--")):
            axis.plot(lengths, [100 * share for share in shares], color=colour, linestyle=style,
                      label=model)
            axis.scatter([lengths[-1]], [published[measure][model]], color=colour, marker="s", s=42,
                         zorder=3, clip_on=False)
        axis.axhline(100, color=BLACK, linewidth=0.8, linestyle=":")
        length_ticks(axis, lengths)
        axis.set_xlim(lengths[0], lengths[-1])
        axis.set_ylim(0, 112 if max(max(s) for s in models.values()) > 0.5 else 25)
        axis.set_title({"operations": "operations of one decoded token",
                        "bytes": "bytes of the cache"}[measure])
        axis.set_xlabel("context (tokens)")
        axis.legend(loc="upper right")
    axes[0].set_ylabel("percent of DeepSeek-V3.2")
    return figure


def plot_cost_by_term(n, hca_ratio):
    """Plot operations and bytes of three models at a context of n tokens, by term."""
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.6))
    models = {name: with_hca_ratio(config, hca_ratio) for name, config in (("Pro", Config.pro()),
                                                                     ("Flash", Config.flash()))}
    for axis, (measure, old, new) in zip(axes, (("operations", cost.flops_v32, cost.flops),
                                                ("bytes", cost.kv_bytes_v32, cost.kv_bytes))):
        points = {"V3.2": old(n)} | {name: new(config, n) for name, config in models.items()}
        for x, point in enumerate(points.values()):
            bottom = 0.0
            for name in (name for name in TERMS if name in point):
                axis.bar(x, point[name] / 1e9, bottom=bottom, color=TERMS[name], width=0.62)
                bottom += point[name] / 1e9
            total = f"{bottom:,.0f}" if bottom >= 100 else f"{bottom:.3g}"
            share = 100 * point["total"] / points["V3.2"]["total"]
            text = total if x == 0 else f"{total}\n{share:.1f} %"
            axis.text(x, bottom, text, ha="center", va="bottom", fontsize=10)
        axis.set_ylim(0, 1.25 * max(point["total"] for point in points.values()) / 1e9)
        axis.set_xticks(range(3), points)
        axis.set_ylabel(NAMES[measure])
        axis.grid(False, axis="x")
        # from the top, as in the bars
        terms = [name for name in TERMS if name in points["Flash"]][::-1]
        axis.legend(handles=[Patch(facecolor=TERMS[name], label=OF_V32.get(name, name))
                             for name in terms], fontsize=9, loc="upper left",
                    bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(f"{n:,} tokens of context; an HCA entry stands for {hca_ratio} tokens", x=0.01,
                    ha="left", fontsize=12)
    return figure


def with_hca_ratio(config, hca_ratio):
    """The same configuration with another HCA ratio."""
    return config.replace(compress_ratios=tuple(hca_ratio if m > 4 else m
                                                for m in config.compress_ratios))


def plot_decode_time(points):
    """Plot the time of a decoded token over the context, beside growth in proportion to it.

    points: {n: milliseconds}.
    """
    figure, axis = plt.subplots(figsize=(8.2, 3.8))
    ns, first = list(points), next(iter(points.values()))
    axis.plot(ns, points.values(), "o-", color=BLUE, label="measured")
    axis.plot(ns, [first * n / ns[0] for n in ns], "--", color=VERMILION,
              label="in proportion to the context")
    length_ticks(axis, ns, every=1)
    axis.set_yscale("log")
    plain_ticks(axis.yaxis)
    axis.set_xlabel("context (tokens)")
    axis.set_ylabel("milliseconds a token")
    axis.legend(loc="upper left")
    return figure


def plot_record(record):
    """Plot the recorded long run in four panels. record: what `minids.recipes.million` wrote."""
    figure, axes = plt.subplots(2, 2, figsize=(10.2, 7.0))
    points = record["points"]
    ns = [point["n"] for point in points]
    axes[0, 0].plot(ns, [point["cpu_ms"] for point in points], "o-", color=BLUE, label="measured")
    base = next((p for p in points if p["n"] == 2**14), points[0])
    far = [n for n in ns if n >= base["n"]]
    axes[0, 0].plot(far, [base["cpu_ms"] * n / base["n"] for n in far], "--", color=VERMILION,
                    label=f"in proportion, from {length(base['n'])} on")
    axes[0, 0].set(title="one decoded token", ylabel="milliseconds of processor time", yscale="log")
    axes[0, 0].legend(loc="upper left", fontsize=10)
    axes[0, 1].plot(ns, [point["prefill_minutes"] for point in points], "o-", color=BLUE)
    axes[0, 1].set(title="reading the text so far", ylabel="minutes", yscale="log")
    axes[1, 0].plot(ns, [point["state_bytes"] / 1e6 for point in points], "o-", color=BLUE,
                    label="the state, as computed")
    axes[1, 0].plot(ns, [point["resident_most"] / 1e6 for point in points], "s--", color=ORANGE,
                    label="the process, at most")
    axes[1, 0].set(title="memory", ylabel="megabytes", yscale="log")
    axes[1, 0].legend(loc="lower right", fontsize=10)
    for (distance, alone), colour, marker in zip(record["found_without_context"].items(),
                                                 (BLUE, GREEN, ORANGE, PURPLE), "os^x"):
        shares = [point["found"][distance] / record["questions"] for point in points]
        axes[1, 1].plot([ns[0] / 2, *ns], [alone / record["questions"], *shares], marker=marker,
                        color=colour, label=f"{distance} tokens before", clip_on=False)
    axes[1, 1].axhline(1 / (1 + record["rivals"]), color=BLACK, linewidth=0.9, linestyle=":")
    axes[1, 1].set(title="facts found (dotted: chance)", ylabel="share", ylim=(0, 1))
    axes[1, 1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, fontsize=9)
    for axis in axes.flat:
        length_ticks(axis, ns)
    axes[1, 1].set_xticks([ns[0] / 2, *ns[1::2]], ["none", *(length(n) for n in ns[1::2])])
    for axis in axes[1]:
        axis.set_xlabel("context (tokens)")
    return figure


def summary(record):
    """The recorded run in words."""
    points = {point["n"]: point for point in record["points"]}
    last = max(points)
    end = points[last]
    state = "" if record["complete"] else "not finished yet: "
    lines = [f"{record['cpu']}, {record['cores']} cores, {record['threads']} thread(s), "
             f"torch {record['torch']}, {record['dtype']}",
             f"{state}{last:,} tokens read in {end['prefill_minutes']:.0f} minutes",
             f"the state: {end['state_bytes']:,} bytes; "
             f"the process: at most {end['resident_most'] / 1e9:.2f} GB"]
    lines += [f"one decoded token after {n:9,} tokens: {points[n]['cpu_ms']:5.1f} ms"
              for n in sorted(points) if n in (2**10, 2**14, 2**17, 2**20, last)]
    lines.append(f"the text that follows: {end['nats']:.2f} nats a token after all this, "
                 f"{end['nats_without_context']:.2f} by itself")
    return "\n".join(lines)
