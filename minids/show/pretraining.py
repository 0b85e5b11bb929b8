"""Figures of lesson 10: samples, a loss that is drawn during training, a run's log, next tokens."""

import html

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML

from minids.show import panel, style
from minids.show.style import running_mean

LINES = {"unigram": (style.PURPLE, ":"), "bigram": (style.ORANGE, "--"),
         "trigram": (style.VERMILION, "-.")}


def columns(texts: dict[str, str]) -> HTML:
    """Show texts side by side, each under its title; what is not ASCII as HTML entities."""
    look = f"vertical-align: top; text-align: left; width: {100 // len(texts)}%; padding: 0 1em;"
    cells = "".join(f'<td style="{look}"><b>{html.escape(title)}</b>'
                    f'<pre style="white-space: pre-wrap;">{style.escaped(text)}</pre></td>'
                    for title, text in texts.items())
    return HTML(f'<table style="width: 100%;"><tr>{cells}</tr></table>')


def visible(tokenizer, token: int) -> str:
    """A token's text on one line: spaces as _, line ends as \\n, other bytes escaped."""
    text = tokenizer.to_bytes([token]).decode("utf-8", errors="replace").replace(" ", "_")
    return text.encode("unicode_escape").decode("ascii")


def _baselines(ax, baselines) -> None:
    """Draw the baselines as lines, with their names to the right of the axes."""
    for name, loss in baselines.items():
        colour, dash = LINES[name]
        ax.axhline(loss, color=colour, linestyle=dash, linewidth=1.4)
        ax.text(1.01, loss, name, transform=ax.get_yaxis_transform(), color=colour, va="center",
                fontsize=10)


def plot_loss(steps: int, losses, validation, baselines):
    """Plot the loss of a run of `steps` steps so far.

    losses: one a step; validation: (step, loss) on validation text; baselines: {name: loss}.
    """
    figure, ax = plt.subplots()
    ax.set(xlim=(0, steps), ylim=(1.8, 7.8), xlabel="step", ylabel="loss (nats per token)",
           title="Loss while training")
    step = np.arange(1, len(losses) + 1)
    ax.plot(step, losses, color=style.SKY, linewidth=0.8, label="training batches")
    # in the middle of its steps: no lag
    ax.plot(running_mean(step), running_mean(losses), color=style.BLUE, label="mean of 10")
    if validation:
        ax.plot(*zip(*validation), "o", color=style.BLACK, markersize=5, label="validation text",
                clip_on=False)
    _baselines(ax, baselines)
    ax.legend(loc="upper right", ncol=3, fontsize=9)
    return figure


class LiveLoss(panel.Panel):
    """A picture by `plot_loss` that changes while a model trains.

    Display it, then `add` each step's loss.
    """

    def __init__(self, steps: int, baselines: dict[str, float]):
        self.steps, self.baselines, self.losses, self.validation = steps, baselines, [], []
        super().__init__([], "Run this cell to see the loss while training. "
                             "The figure below shows the same at the end.")
        self.draw()

    def add(self, loss: float, validation: float | None = None, every: int = 10) -> None:
        """Add a step's loss, and the loss on validation text where it was checked.

        The picture is drawn again every `every` steps and after each validation check.
        """
        self.losses.append(loss)
        if validation is not None:
            self.validation.append((len(self.losses), validation))
        if validation is not None or len(self.losses) % every == 0:
            self.draw()

    def draw(self) -> None:
        self.page.value = style.picture(style.drawn(self.figure), "the loss while training")

    def figure(self):
        return plot_loss(self.steps, self.losses, self.validation, self.baselines)

    def __repr__(self) -> str:
        return "[live figure] the loss while training"

    def _ipython_display_(self) -> None:
        panel.show(self, "", self.note)     # the picture changes too often to keep it


def plot_load_over_time(loads, title: str = "Experts of one layer"):
    """Plot the share of the choices of each expert, step by step.

    loads: steps x experts, tokens that each expert got.
    """
    share = np.asarray(loads, dtype=float)
    share = 100 * share / share.sum(1, keepdims=True)
    figure, ax = plt.subplots(figsize=(7.0, 2.8))
    extent = (0.5, len(share) + 0.5, share.shape[1] - 0.5, -0.5)
    field = ax.imshow(share.T, aspect="auto", interpolation="nearest", vmin=0, extent=extent)
    ax.set(xlabel="step", ylabel="expert", title=title)
    ax.grid(False)
    figure.colorbar(field, label="share of choices (%)")
    return figure


def plot_run_log(log, tokens_per_step: int, baselines, stages):
    """Plot a run's records over the tokens read: loss, learning rate, gradient norm, speed.

    Thin lines mark where a stage begins; `stages` are their names.
    """
    steps = [r for r in log if "loss" in r]
    validation = [r for r in log if "valid_loss" in r]
    tokens = np.array([r["step"] for r in steps]) * tokens_per_step / 1e6
    losses = [r["loss"] for r in steps]
    dots = [r["step"] * tokens_per_step / 1e6 for r in validation], [r["valid_loss"]
                                                                     for r in validation]
    figure = plt.figure(figsize=(10.0, 6.2))
    top, bottom = figure.subfigures(2, 1)
    (loss, close), (rate, norm, speed) = top.subplots(1, 2), bottom.subplots(1, 3)
    loss.plot(tokens, losses, color=style.SKY, linewidth=0.6, label="single batches")
    loss.plot(running_mean(tokens, 20), running_mean(losses, 20), color=style.BLUE,
              label="mean of 20")
    loss.plot(*dots, "o", color=style.BLACK, markersize=4, label="validation text", zorder=3)
    _baselines(loss, baselines)
    loss.set(title="Loss", ylabel="nats per token", ylim=(0, 9))
    loss.legend(fontsize=9)
    left = 0.7 * tokens[-1]
    last = [y for x, y in zip(*dots) if x > left]
    close.plot(*dots, "o-", color=style.BLACK, markersize=4, linewidth=0.7)
    close.set(title="Loss on validation text, the end", ylabel="nats per token",
              xlim=(left, 1.01 * tokens[-1]), ylim=(min(last) - 0.03, max(last) + 0.06))
    rate.plot(tokens, [1e3 * r["lr"] for r in steps])
    rate.set(title="Learning rate", ylabel="thousandths", ylim=(0, None))
    norm.plot(tokens, [r["grad_norm"] for r in steps], linewidth=0.8)
    norm.axhline(1.0, color=style.VERMILION, linestyle="--", linewidth=1.2)
    norm.set(title="Gradient norm\n(dashed: clipped above)", ylabel="norm", yscale="log")
    norm.set_yticks([0.1, 1], ["0.1", "1"])
    pace = np.diff([r["seconds"] for r in steps])
    speed.plot(tokens[1:], running_mean(tokens_per_step / np.maximum(pace, 0.2 * np.median(pace)),
                                        10) / 1e3)
    speed.set(title="Speed\n(dips: checks and saves)", ylabel="thousand tokens a second",
              ylim=(0, None))
    begins = [tokens[i] for i in range(1, len(steps)) if steps[i]["stage"] != steps[i - 1]["stage"]]
    for ax in (loss, close, rate, norm, speed):
        ax.set_xlabel("million tokens read")
        for begin in begins:
            ax.axvline(begin, color=style.BLACK, linewidth=0.7)
    for name, a, b in zip(stages, [left, *begins], [*begins, tokens[-1]]):
        close.text((a + b) / 2, max(last) + 0.045, name, ha="center", fontsize=8.5)
    return figure


def _bars(ax, logits, tokenizer, temperature: float, top_p: float, rows: int) -> str:
    p = torch.softmax(logits.double() / temperature, -1)
    ranked, order = p.sort(descending=True, stable=True)
    nucleus = (ranked.cumsum(0) - ranked) < top_p
    ax.barh(range(rows), 100 * ranked[:rows].numpy(),
            color=[style.BLUE if k else "#C8C8C8" for k in nucleus[:rows].tolist()])
    ax.set_yticks(range(rows), [visible(tokenizer, i) for i in order[:rows].tolist()],
                  family="monospace")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="probability (%)", xlim=(0, max(10, 105 * ranked[0].item())))
    return f"{int(nucleus.sum())} of {len(p)} can be sampled"


def plot_next_tokens(logits, tokenizer, temperature: float, top_p: float, prompt: str,
                     rows: int = 15):
    """Plot the likeliest next tokens; those that top-p cuts off are grey."""
    figure, ax = plt.subplots(figsize=(7.0, 4.4))
    count = _bars(ax, logits, tokenizer, temperature, top_p, rows)
    ax.set_title(f'"{prompt} ..."   temperature {temperature:g}, top-p {top_p:g}\n{count}',
                 fontsize=11)
    return figure


def plot_temperatures(logits, tokenizer, values, top_p: float, prompt: str, rows: int = 12):
    """`plot_next_tokens` for several temperatures side by side."""
    figure, axes = plt.subplots(1, len(values), figsize=(3.1 * len(values), 3.8))
    widest = 105 * torch.softmax(logits.double() / min(values), -1).max().item()
    for ax, temperature in zip(axes, values):
        count = _bars(ax, logits, tokenizer, temperature, top_p, rows)
        ax.set_xlim(0, max(10, widest))
        ax.set_title(f"temperature {temperature:g}\n{count}", fontsize=9)
    figure.suptitle(f'"{prompt} ..."   top-p {top_p:g}', fontsize=11, x=0.01, ha="left")
    return figure


def plot_schedule(rates, peak: float):
    """Plot the learning rate over steps."""
    figure, ax = plt.subplots(figsize=(7.0, 2.6))
    ax.plot(range(len(rates)), [1e3 * r for r in rates])
    ax.axhline(1e2 * peak, color=style.VERMILION, linestyle="--", linewidth=1.2)
    ax.set(xlabel="step", ylabel="rate (thousandths)", ylim=(0, None),
           title="Warm-up, then a cosine to a tenth (dashed)")
    return figure


def plot_sabotage(curves: dict[str, list[list[float]]], floor: float):
    """Plot training losses: for each kind the mean of its runs and their range.

    curves: {kind: runs}; floor: the trigram's loss.
    """
    figure, ax = plt.subplots()
    styles = (style.BLACK, "-"), (style.VERMILION, "-"), (style.GREEN, "--"), (style.PURPLE, "-.")
    for (name, runs), (colour, dash) in zip(curves.items(), styles):
        step = range(1, len(runs[0]) + 1)
        ax.fill_between(step, np.min(runs, 0), np.max(runs, 0), color=colour, alpha=0.15,
                        linewidth=0)
        ax.plot(step, np.mean(runs, 0), dash, color=colour, linewidth=1.6, label=name)
    ax.axhline(floor, color=style.BLACK, linestyle=":", linewidth=1.3)
    ax.text(1, floor, " trigram", va="bottom", fontsize=9)
    ax.set(xlabel="step", ylabel="training loss (nats per token)",
           title="The recipe, and three ways to break it")
    ax.legend(fontsize=9)
    return figure


def plot_race(read, losses, fitted: dict[float, float]):
    """Plot the network's losses over tokens read, against trigrams fitted to as many tokens."""
    figure, ax = plt.subplots(figsize=(7.0, 3.4))
    ax.plot([r / 1e6 for r in read], losses, color=style.BLUE,
            label="the network (training batches, mean of 10)")
    ax.plot([r / 1e6 for r in fitted], list(fitted.values()), "s--", color=style.VERMILION,
            markersize=4, label="a trigram fitted to as many tokens")
    ax.set(xlabel="million tokens read", ylabel="loss (nats per token)",
           title="The same amount of data for both")
    ax.legend(fontsize=10)
    return figure


def plot_loss_over_time(runs: dict, baselines: dict[str, float]):
    """Plot training losses over seconds of training.

    runs: {name: (seconds of each step, losses of each step)}.
    """
    figure, ax = plt.subplots(figsize=(7.0, 3.6))
    for (name, (seconds, losses)), colour in zip(runs.items(), (style.BLUE, style.GREEN)):
        ax.plot(running_mean(np.cumsum(seconds)), running_mean(losses), color=colour,
                label=f"{name}, {len(losses)} steps")
    _baselines(ax, baselines)
    ax.set(xlabel="seconds of training (processor time)", ylabel="loss (nats per token)",
           title="Training batches, mean of ten steps")
    ax.legend(loc="upper right", fontsize=10)
    return figure


def plot_ablations(records, base: str):
    """Plot final results of each variant of a run, a dot for each seed; the base's range in grey.

    records: of `minids.recipes.ablations`, with the loss and near and far questions.
    """
    names = list(dict.fromkeys(r["variant"] for r in records))
    shown = {"loss": "loss on held-out scenes\n(nats per token)",
             "near": "questions, 30 words\n(nats per answer)",
             "far": "questions, 100 words\n(nats per answer)"}
    figure, axes = plt.subplots(1, 3, figsize=(10.0, 0.4 * len(names) + 1.2), sharey=True)
    for ax, (key, label) in zip(axes, shown.items()):
        values = {name: [r[key] for r in records if r["variant"] == name] for name in names}
        ax.axvspan(min(values[base]), max(values[base]), color="0.88", zorder=0)
        for row, name in enumerate(names):
            ax.plot(values[name], [row] * len(values[name]), "o", markersize=6, alpha=0.8,
                    color=style.BLUE if name == base else style.VERMILION)
        ax.set(xlabel=label)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure
