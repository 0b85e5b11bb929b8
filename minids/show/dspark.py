"""Figures of lesson 15's last section: DSpark, the module that drafts a block in one pass."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch

from minids.data import mixture
from minids.inference.speculate import Speculation
from minids.model.dspark import DSpark
from minids.show.drawing import arrow, bar_places, box, canvas, interval_bars
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, SKY, YELLOW

COLOURS = (BLUE, SKY, ORANGE, GREEN)


def plot_block():
    """Draw how five drafts come from one pass: what the target hands over, the blocks, the Markov
    head."""
    figure, axis = canvas(10.0, 4.5)
    for i, word in enumerate(("Can", "you", "help", "?")):
        box(axis, 0.75 + 0.9 * i, 0.55, word, 0.75, 0.45, YELLOW)
        arrow(axis, (0.75 + 0.9 * i, 0.8), (0.75 + 0.9 * i, 1.3))
        box(axis, 0.75 + 0.9 * i, 2.6, f"$c_{i}$", 0.46, 0.4, SKY)
        arrow(axis, (0.75 + 0.9 * i, 1.88), (0.75 + 0.9 * i, 2.36))
    box(axis, 2.1, 1.58, "the model, layers 0 to 42", 3.5, 0.52, SKY)
    axis.text(2.1, 3.0, "one vector per token, from layers 40 to 42", ha="center", fontsize=9)
    axis.text(2.1, 0.1, "read by the model", ha="center", fontsize=9)
    axis.plot([0.5, 0.5, 3.7, 3.7], [2.28, 2.2, 2.2, 2.28], color=BLACK, linewidth=1.1)
    arrow(axis, (3.7, 2.2), (4.1, 2.2), (4.1, 1.58), (4.55, 1.58))
    box(axis, 7.1, 1.58, "three blocks, run once: every position sees\nthe last 128 vectors c "
        "and all five positions", 5.0, 0.62, GREEN)
    drafts = (",", "of", "course", "!", "How")
    for i, (word, draft) in enumerate(zip(("Yes", *["noise"] * 4), drafts)):
        x = 5.1 + i
        box(axis, x, 0.55, word, 0.82, 0.45, YELLOW if i == 0 else "white")
        arrow(axis, (x, 0.8), (x, 1.22))
        arrow(axis, (x, 1.94), (x, 2.36))
        box(axis, x, 2.6, "logits", 0.82, 0.4, SKY)
        arrow(axis, (x, 2.83), (x, 3.38))
        box(axis, x, 3.65, draft, 0.82, 0.45, ORANGE)
        if i:
            arrow(axis, (x - 0.55, 3.42), (x - 0.08, 3.02), linestyle="--")
    axis.plot([4.66, 4.35, 4.35], [0.78, 1.0, 3.35], color=BLACK, linewidth=1.1, linestyle="--")
    arrow(axis, (4.35, 3.35), (5.02, 3.02), linestyle="--")
    axis.text(5.1, 0.1, "anchor", ha="center", fontsize=9)
    axis.text(7.6, 0.1, "no token is known here yet", ha="center", fontsize=9)
    axis.text(7.1, 4.05, "five drafts, sampled from left to right;\n"
              "dashed: the Markov head adds a bias for the previous token", ha="center", fontsize=9)
    return figure


def prompts(tokenizer, kinds: Sequence[str], count: int, tokens: int) -> list[list[int]]:
    """The first `tokens` ids of `count` held-out documents of each kind of `minids.data.mixture`,
    long enough to go on."""
    chosen = []
    for kind in kinds:
        found, i = 0, 0
        while found < count:
            ids = tokenizer.encode(mixture.document(kind, "heldout", i), bos=True)
            if len(ids) > 2 * tokens:
                chosen.append(ids[:tokens])
                found += 1
            i += 1
    return chosen


def tokens_per_pass(runs: Sequence[Speculation], samples: int = 2000) -> tuple[float, float, float]:
    """Tokens per pass of the target after the one over the prompt, and a 95 % interval over
    the documents (bootstrap). runs: one for each document."""
    tokens, passes = np.array([(len(run.ids) - 1, run.passes - 1) for run in runs]).T
    pick = np.random.default_rng(0).integers(len(runs), size=(samples, len(runs)))
    ratios = tokens[pick].sum(1) / passes[pick].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return tokens.sum() / passes.sum(), low, high


def acceptance(runs: Sequence[Speculation]) -> list[float]:
    """The share of drafts that were accepted, of those whose predecessors were: by depth."""
    tried = np.array([run.tried for run in runs]).sum(0)
    accepted = np.array([run.accepted for run in runs]).sum(0)
    return (accepted / np.maximum(tried, 1)).tolist()


def without_markov_head(dspark: DSpark) -> DSpark:
    """A copy whose Markov head adds nothing."""
    with torch.device("meta"):
        copy = DSpark(dspark.config, dspark.drafts)
    state = dict(dspark.state_dict())
    name = f"mtp.{len(dspark.mtp) - 1}.markov_head.markov_w2.weight"
    copy.load_state_dict(state | {name: torch.zeros_like(state[name])}, assign=True)
    return copy.eval().requires_grad_(False)


def plot_drafts(runs: dict[str, Sequence[Speculation]]):
    """Plot the acceptance of drafts by depth, and the tokens that a pass of the target brings.

    runs: {drafter: one `Speculation` for each document}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 3.8), width_ratios=(1.7, 1))
    for k, ((name, some), colour) in enumerate(zip(runs.items(), COLOURS)):
        rates = acceptance(some)
        left.bar(bar_places(len(rates), k, len(runs)), 100 * np.array(rates), 0.736 / len(runs),
                 color=colour, label=name)
        interval_bars(right, [k], [tokens_per_pass(some)], 0.7, colour)
    depth = max(len(some[0].tried) for some in runs.values())
    left.set_xticks(range(depth), [f"draft {i + 1}" for i in range(depth)])
    left.set(ylabel="accepted, if those before were (%)", ylim=(0, 100))
    left.legend(fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    names = [name.replace(", ", ",\n").replace("no ", "no\n") for name in runs]
    right.set_xticks(range(len(runs)), names, fontsize=9)
    right.set(ylabel="tokens per pass (1 without drafts)", ylim=(0, None))
    return figure
