"""The picture of report cards: pass@1 of one or several models, family by family.

What is drawn comes from `minids.inference.evaluate.report`. Published figures of V4 and its rivals are in `minids.show.start`.
"""

import matplotlib.pyplot as plt
import numpy as np

from minids.errors import MinidsError
from minids.show.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

COLOURS = SKY, BLUE, YELLOW, ORANGE, VERMILION, GREEN, PURPLE


def bars(reports: dict[str, dict], mode: str = "think-high", measure: str = "pass@1"):
    """A figure with a group of bars for each family, a bar for each model, and the 95 % intervals.

    `reports` maps the names of models to their reports (`minids.inference.evaluate.report`, or eval.json as it was read). A model that
    was not asked a family has no bar there. Raises `MinidsError` where no report has this mode.
    """
    cells = {(name, row["family"]): row[measure] for name, report in reports.items() for row in report["problems"]
             if row["mode"] == mode and measure in row}
    families = list(dict.fromkeys(family for _, family in cells))
    if not cells:
        raise MinidsError(f"no report has {measure} in {mode}: expected at least one")
    figure, axes = plt.subplots()
    wide = 0.8 / len(reports)
    for i, name in enumerate(reports):
        asked = [j for j, family in enumerate(families) if (name, family) in cells]
        share, low, high = 100 * np.array([cells[name, families[j]] for j in asked]).reshape(-1, 3).T
        at = np.array(asked) + (i - (len(reports) - 1) / 2) * wide
        axes.bar(at, share, 0.92 * wide, color=COLOURS[i % len(COLOURS)], label=name)
        axes.errorbar(at, share, [share - low, high - share], fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_xticks(range(len(families)), families)
    axes.set(ylim=(0, 100), ylabel="right answers (%)", title=f"{measure} on problems never seen, {mode}")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(reports) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
