"""Figures of lessons 12 to 14: the recorded runs of `minids lifecycle`, one for each seed."""

import json

import matplotlib.pyplot as plt
import numpy as np

from minids.recipes.lifecycle import MODELS
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, running_mean
from minids.system import paths

GREY = "#9A9A9A"
HUES = {"after SFT": GREY, "specialists": BLACK, "mean weights": SKY, "mixed SFT": ORANGE,
        "distilled": BLUE}


def reports(base: str = "nano") -> list[dict]:
    """The reports of recorded life cycles from a shipped base model, in the order of seeds."""
    files = sorted(paths.data("records").glob(f"lifecycle-{base}-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def families(reports: list[dict]) -> list[str]:
    """The families of problems in the reports."""
    return list(dict.fromkeys(row["family"]
                              for row in reports[0]["models"]["distilled"]["problems"]))


def shares(report: dict, measure: str = "pass@1",
           mode: str = "think-high") -> dict[str, dict[str, float]]:
    """{model: {family: accuracy, "mean": their mean}} of one report, in one mode."""
    by_model = {name: {row["family"]: row[measure][0] for row in report["models"][name]["problems"]
                       if row["mode"] == mode} for name in MODELS}
    return {name: row | {"mean": sum(row.values()) / len(row)} for name, row in by_model.items()}


def pass_at_k_name(report: dict) -> str:
    """The report's measure with several answers, such as "pass@4"."""
    return f"pass@{report['models']['distilled']['problems'][0]['samples']}"


def plot_grpo_gains(reports: list[dict]):
    """Plot what GRPO did to each specialist on unseen problems: an arrow for each seed.

    The pass@1 panel also marks the accuracy of greedy answers before GRPO, which a policy reaches
    that only becomes more certain and learns nothing.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.4), sharey=True)
    for ax, measure in zip(axes, ("pass@1", pass_at_k_name(reports[0]))):
        for i, family in enumerate(families(reports)):
            for j, report in enumerate(reports):
                before, after = (100 * shares(report, measure)[name][family]
                                 for name in ("after SFT", "specialists"))
                at = i + 0.18 * (j - (len(reports) - 1) / 2)
                ax.annotate("", (at, after), (at, before),
                            arrowprops=dict(arrowstyle="->", color=BLUE, linewidth=1.8))
                ax.plot([at], [before], "o", color=GREY, markersize=6)
                if measure == "pass@1":
                    greedy = 100 * shares(report, "greedy")["after SFT"][family]
                    ax.plot([at], [greedy], "_", color=VERMILION, markersize=11, markeredgewidth=2,
                            label=None if i or j else "greedy answers before")
        ax.set_xticks(range(len(families(reports))), families(reports))
        ax.set(title=measure, ylim=(0, 100), xlim=(-0.5, len(families(reports)) - 0.5))
        ax.grid(axis="y")
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(fontsize=9, loc="lower left")
    return figure


def plot_grpo_logs(reports: list[dict]):
    """Plot GRPO's batches in every specialist, a line for each seed.

    Left: accuracy of the replies. Right: the policy's entropy in the groups that it learns from.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.4))
    labels = {"accuracy": "correct replies in a batch (%)",
              "entropy": "entropy in mixed groups\n(nats per token)"}
    for ax, (key, label) in zip(axes, labels.items()):
        for family, colour in zip(families(reports), (BLUE, ORANGE, GREEN, PURPLE)):
            for j, report in enumerate(reports):
                line = np.array([row[key] for row in report["logs"][f"grpo-{family}"]
                                 if key in row])
                half = len(line) // 24
                line = running_mean(line, 2 * half + 1)[2 * half:]
                line = 100 * line if key == "accuracy" else line
                ax.plot(np.arange(len(line)) + half + 1, line, color=colour, linewidth=1.3,
                        label=None if j else family)
        ax.set(xlabel=f"step (mean of {2 * half + 1})", ylabel=label, ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, ncol=4,
                  loc="outside upper center")
    return figure


def plot_combined(reports: list[dict], measure: str = "pass@1"):
    """Plot every way to one model, by family and on average: dots for seeds, a line at the mean."""
    columns = [*families(reports), "mean"]
    figure, ax = plt.subplots(figsize=(9.4, 3.6))
    for k, (name, colour) in enumerate(HUES.items()):
        for i, column in enumerate(columns):
            values = [100 * shares(report, measure)[name][column] for report in reports]
            at = i + 0.15 * (k - (len(HUES) - 1) / 2)
            ax.plot([at] * len(values), values, "o", color=colour, markersize=6, alpha=0.8,
                    clip_on=False, label=None if i else name)
            if len(reports) > 1:
                ax.plot([at - 0.06, at + 0.06], [np.mean(values)] * 2, color=colour, linewidth=2,
                        clip_on=False)
    ax.axvspan(len(columns) - 1.5, len(columns) - 0.5, color=VERMILION, alpha=0.07, linewidth=0)
    ax.set_xticks(range(len(columns)), columns)
    ax.set(ylabel=f"{measure} (%)", ylim=(0, 100), xlim=(-0.5, len(columns) - 0.5))
    ax.grid(axis="y")
    ax.legend(fontsize=9, ncol=len(HUES), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def table(reports: list[dict], measure: str = "pass@1", models=tuple(MODELS),
          mode: str = "think-high") -> str:
    """The accuracy of some models as text: the mean over seeds, with the lowest and the highest."""
    columns = [*families(reports), "mean"]
    lines = [f"{measure:14}" + "".join(f"{column:>20}" for column in columns)]
    for name in models:
        cells = [[shares(report, measure, mode)[name][column] for report in reports]
                 for column in columns]
        spread = [f" ({min(c):3.0%} -{max(c):4.0%})" if len(c) > 1 else "" for c in cells]
        lines.append(f"{name:14}" + "".join(f"{f'{sum(c) / len(c):>8.0%}{s}':>20}"
                                            for c, s in zip(cells, spread)))
    return "\n".join(lines)


def minutes(report: dict) -> dict[str, float]:
    """{stage: minutes} of the stages that have steps."""
    return {name: max(row["seconds"] for row in log if "seconds" in row) / 60
            for name, log in report["logs"].items() if any("seconds" in row for row in log)}
