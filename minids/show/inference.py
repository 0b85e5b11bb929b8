"""Figures and widgets of lesson 14: sampling, batches, drafts, pass@k, the report card.

For published scores and prices see `minids.show.start`.
"""

from contextlib import ExitStack
from math import comb
from unittest import mock

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from minids.config import Config
from minids.errors import MinidsError
from minids.inference import speculate as speculation
from minids.inference.evaluate import pass_at_k
from minids.inference.sampling import distribution
from minids.model import Model
from minids.show import start
from minids.show.drawing import arrow, bar_places, box, canvas, interval_bars
from minids.show.panel import INK, Panel
from minids.show.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    escaped,
    plain_ticks,
)

GREY = "#C8C8C8"
COLOURS = BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE


# ---- sampling ----

def plot_distributions(rows: dict, names):
    """Plot small distributions as bars side by side.

    rows: {label: probabilities}; names: one for each token.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.2))
    for i, ((label, p), colour) in enumerate(zip(rows.items(), COLOURS)):
        bars = ax.bar(bar_places(len(names), i, len(rows)), np.asarray(p), 0.736 / len(rows),
                      color=colour, label=label)
        ax.bar_label(bars, [f"{float(v):.2f}" for v in p], fontsize=8, padding=1)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="probability", ylim=(0, 1.08))
    ax.legend(loc="upper right", fontsize=10)
    return figure


def _curve(ax, logits, temperature: float, top_p: float) -> int:
    """Plot probability against rank, in grey what is cut off. Returns how many tokens are left."""
    p = distribution(logits, temperature, 1.0).sort(descending=True).values.numpy()
    left = int((distribution(logits, temperature, top_p) > 0).sum())
    rank = np.arange(1, len(p) + 1)
    ax.plot(rank[left - 1:], p[left - 1:], color=GREY, linewidth=2.5)
    ax.plot(rank[:left], p[:left], color=BLUE, linewidth=2.5, marker="o" if left < 4 else None,
            markersize=5)
    ax.axvline(left + 0.5, color=VERMILION, linestyle="--", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlim=(0.8, 1.2 * len(p)), ylim=(1e-8, 2),
           xlabel="rank of the token")
    return left


def plot_top_p(contexts: dict, temperature: float, top_p: float):
    """Plot which tokens of the vocabulary can be sampled. contexts: {beginning: logits}."""
    figure, axes = plt.subplots(1, len(contexts), figsize=(9.2, 3.6), sharey=True)
    for ax, (name, logits) in zip(axes, contexts.items()):
        left = _curve(ax, logits, temperature, top_p)
        ax.set_title(f'"{name} ..."\n{left} of {len(logits)} tokens can be sampled', fontsize=10)
    axes[0].set_ylabel("probability")
    figure.suptitle(f"temperature {temperature:g}, top-p {top_p:g}", x=0.01, ha="left", fontsize=11)
    return figure


def plot_temperatures(contexts: dict, temperatures=(0.5, 1.0, 2.0), top_p: float = 0.9):
    """The same for several temperatures; a dot marks where top-p cuts."""
    figure, axes = plt.subplots(1, len(contexts), figsize=(9.2, 3.6), sharey=True)
    for ax, (name, logits) in zip(axes, contexts.items()):
        for temperature, colour in zip(temperatures, COLOURS):
            p = distribution(logits, temperature, 1.0).sort(descending=True).values.numpy()
            left = int((distribution(logits, temperature, top_p) > 0).sum())
            ax.plot(np.arange(1, len(p) + 1), p, color=colour,
                    label=f"temperature {temperature:g}: {left} left")
            ax.plot(left, p[left - 1], "o", color=colour, markersize=8)
        ax.set(xscale="log", yscale="log", ylim=(1e-8, 2), xlabel="rank of the token")
        ax.set_title(f'"{name} ..."', fontsize=10)
        ax.legend(fontsize=9, loc="upper right")
    axes[0].set_ylabel("probability")
    return figure


# ---- the batch ----

def windows(tokens: int, ratio: int, pad: int) -> list[int]:
    """The compression window of each token of a text after `pad` padding tokens."""
    return [(pad + t) // ratio for t in range(tokens)]


def plot_padding(tokens: int = 8, ratio: int = 4):
    """Draw a text alone and after one padding token: other tokens share a compressed entry."""
    figure, axis = canvas(9.0, 3.0)
    shades = SKY, ORANGE, GREEN
    for row, (pad, label) in enumerate(((0, "alone"), (1, "one padding token in front"))):
        y, cut = 2.2 - 1.4 * row, windows(tokens, ratio, pad)
        axis.text(0.1, y + 0.52, label, fontsize=11)
        if pad:
            box(axis, 0.5, y, "pad", 0.7, 0.5, "white")
        for t in range(tokens):
            box(axis, 0.5 + 0.9 * (t + pad), y, f"t{t}", 0.7, 0.5, shades[cut[t]])
        for window in sorted(set(cut)):
            inside = [t for t in range(tokens) if cut[t] == window]
            left = 0.5 + 0.9 * (inside[0] + pad) - (0.9 if pad and window == 0 else 0)
            right = 0.5 + 0.9 * (inside[-1] + pad)
            axis.plot([left - 0.38, right + 0.38], [y - 0.36] * 2, color=BLACK, linewidth=2)
            full = (inside[-1] + pad + 1) % ratio == 0
            axis.text((left + right) / 2, y - 0.63, f"entry {window}" if full else "not complete",
                      ha="center", fontsize=9)
    return figure


def plot_batch_steps(new):
    """Show what each row of a batch does in each step.

    new: for each step a list over the rows: True where a row wrote a token, False where it read a
    token of its prompt, None where it had ended.
    """
    figure, ax = plt.subplots(figsize=(8.4, 0.42 * len(new[0]) + 1.3))
    for t, row in enumerate(new):
        for i, wrote in enumerate(row):
            colour = "white" if wrote is None else ORANGE if wrote else SKY
            ax.add_patch(plt.Rectangle((t + 0.05, i - 0.42), 0.9, 0.84, facecolor=colour,
                                       edgecolor=BLACK, linewidth=0.5))
    ax.set(xlim=(0, len(new)), ylim=(len(new[0]) - 0.5, -0.5), xlabel="step",
           yticks=range(len(new[0])), yticklabels=[f"row {i}" for i in range(len(new[0]))])
    ax.grid(False)
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor=BLACK, linewidth=0.5)
               for c in (SKY, ORANGE, "white")]
    ax.legend(handles, ["reads its prompt", "writes", "has ended, and idles"], ncols=3,
              loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9)
    return figure


def plot_throughput(batches, speed, wait):
    """Plot tokens a second of all rows, and milliseconds a step, against the batch size."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4))
    for ax, values, label, colour in zip(axes, (speed, wait),
                                         ("tokens a second, all rows", "ms for a step"),
                                         (BLUE, ORANGE)):
        ax.plot(batches, values, "o-", color=colour)
        ax.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel=label, xticks=batches,
               xticklabels=batches)
        ax.minorticks_off()
    axes[1].set(yscale="linear", ylim=(0, 1.1 * max(wait)))
    plain_ticks(axes[0].yaxis)
    axes[0].plot(batches, [speed[0] * b for b in batches], ":", color=BLACK, linewidth=1,
                 label="if a step cost the same")
    axes[0].legend(fontsize=9)
    return figure


def plot_weights_read(lines: dict):
    """Plot gigabytes of weights read per token against the batch size.

    lines: {model: (batches, gigabytes)}.
    """
    figure, ax = plt.subplots(figsize=(7.0, 3.4))
    for (name, (batches, gigabytes)), colour, marker in zip(lines.items(), (SKY, BLUE), "os"):
        ax.plot(batches, gigabytes, marker + "-", color=colour, label=name)
    ax.set(xscale="log", yscale="log", xlabel="tokens in one pass",
           ylabel="GB of weights read per token", xticks=batches, xticklabels=batches,
           yticks=[0.5, 1, 2, 5, 10, 20, 40], yticklabels=["0.5", "1", "2", "5", "10", "20", "40"])
    ax.minorticks_off()
    ax.legend()
    return figure


# ---- drafts ----

def plot_draft_pass():
    """Draw one pass with two drafts: guess, verify, accept, replace the first rejected draft."""
    figure, axis = canvas(9.2, 2.9)
    axis.text(0.1, 2.62, "1. the small block guesses", fontsize=10)
    axis.text(3.55, 2.62, "2. the model reads all of them in one pass", fontsize=10)
    axis.text(7.25, 2.62, "3. judge", fontsize=10)
    for i, (word, colour) in enumerate((("in", YELLOW), ("the", ORANGE), ("sea", ORANGE))):
        box(axis, 0.5 + 0.95 * i, 2.1, word, 0.75, 0.45, colour)
    axis.text(0.5, 1.65, "known", ha="center", fontsize=9)
    axis.text(1.92, 1.65, "guessed, from q", ha="center", fontsize=9)
    box(axis, 5.0, 2.1, "DeepSeek-V4: one pass over three tokens", 3.3, 0.45, SKY)
    arrow(axis, (2.85, 2.1), (3.3, 2.1))
    for i, text in enumerate(("p after\n\"in\"", "p after\n\"the\"", "p after\n\"sea\"")):
        box(axis, 3.9 + 1.1 * i, 1.15, text, 0.95, 0.62, SKY)
        arrow(axis, (3.9 + 1.1 * i, 1.85), (3.9 + 1.1 * i, 1.5))
    # a bracket below all three distributions, and an arrow from it to the third step
    axis.plot([3.5, 3.5, 6.5, 6.5], [0.75, 0.68, 0.68, 0.75], color=BLACK, linewidth=1)
    axis.plot([5.0, 5.0, 6.85, 6.85], [0.68, 0.6, 0.6, 1.55], color=BLACK, linewidth=1)
    arrow(axis, (6.85, 1.55), (7.15, 1.55))
    box(axis, 7.6, 1.9, "the", 0.7, 0.45, GREEN)
    axis.text(8.02, 1.9, "accepted", fontsize=9, va="center")
    box(axis, 7.6, 1.2, "sea", 0.7, 0.45, "white")
    axis.text(8.02, 1.2, "rejected", fontsize=9, va="center")
    box(axis, 7.6, 0.5, "mill", 0.7, 0.45, GREEN)
    axis.text(8.02, 0.5, "in its place, from\nmax(0, p - q)", fontsize=9, va="center")
    axis.text(0.1, 0.2,
              "A pass gives one token in any case, and one more\nfor each accepted guess.",
              fontsize=10, va="center")
    return figure


def plot_overlap(p, q, names):
    """Plot the model's p against the drafter's q.

    Green: what accepted drafts deliver; orange: what is missing; hatched: what is rejected.
    """
    figure, ax = plt.subplots(figsize=(7.2, 3.2))
    p, q = np.asarray(p), np.asarray(q)
    both, at = np.minimum(p, q), np.arange(len(names))
    ax.bar(at, both, 0.6, color=GREEN, label="min(p, q): accepted guesses")
    ax.bar(at, p - both, 0.6, bottom=both, color=ORANGE, label="max(0, p - q): sampled instead")
    ax.bar(at, q - both, 0.6, bottom=both, color="white", edgecolor=BLACK, hatch="//",
           label="q above p: rejected guesses")
    ax.set_xticks(at, names)
    ax.set(ylabel="probability", ylim=(0, 1.35 * max(p.max(), q.max())))
    ax.legend(fontsize=9, loc="upper right")
    return figure


def tiny_model() -> Model:
    """A whole V4 with MTP and a vocabulary of three tokens: every text can be enumerated."""
    config = Config.nano().replace(dim=16, n_layers=2, compress_ratios=(4, 8, 0), n_heads=2,
                                   head_dim=8, rope_head_dim=4, q_lora_rank=8, window_size=4,
                                   o_lora_rank=8, index_n_heads=2, index_head_dim=4,
                                   moe_inter_dim=8, n_routed_experts=2, n_activated_experts=1,
                                   n_hash_layers=0, vocab_size=3, hc_mult=2, hc_sinkhorn_iters=2,
                                   max_seq_len=64, eos_token_id=1, pad_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Model(config).eval().requires_grad_(False)
        for name, t in model.named_parameters():
            if t.ndim == 2 and not name.endswith("ape"):
                torch.nn.init.normal_(t, std=1.5 * t.shape[-1] ** -0.5)
    return model


@torch.inference_mode()
def text_chances(model, prompt, new: int) -> dict[tuple, float]:
    """{text: probability} of every text of `new` tokens after the prompt, by the model alone."""
    texts = torch.cartesian_prod(*[torch.arange(model.config.vocab_size)] * new)         # N new
    ids = torch.cat([torch.tensor(prompt).expand(len(texts), -1), texts], 1)
    p = model(ids).softmax(-1)[:, len(prompt) - 1:-1]                                    # N new V
    chances = p.gather(2, texts[..., None])[..., 0].double().prod(1)
    return dict(zip(map(tuple, texts.tolist()), chances.tolist()))


def text_chances_with_drafts(model, prompt, new: int, drafts: int,
                             judge=None) -> dict[tuple, float]:
    """{text: probability} of what `minids.inference.speculate` writes, exactly.

    Every random choice becomes a fork, and every branch is followed. `judge` replaces the rule that
    accepts drafts.
    """
    chances, todo = {}, [()]
    while todo:
        path, at, chance = list(todo.pop()), 0, 1.0

        def pick(weights):
            nonlocal at, chance
            weights = weights.double() / weights.double().sum()
            if at == len(path):     # a new fork: take the first way, keep the others for later
                ways = weights.nonzero()[:, 0].tolist()
                todo.extend((*path, i) for i in ways[1:])
                path.append(ways[0])
            chance *= float(weights[path[at]])
            at += 1
            return path[at - 1]

        with ExitStack() as stack:
            patches = {"sample_one": lambda p, generator: pick(p),
                       "bernoulli": lambda p, generator: bool(pick(torch.tensor([1 - p, p])))}
            for name, change in (patches | ({"accept": judge} if judge else {})).items():
                stack.enter_context(mock.patch.object(speculation, name, change))
            text = tuple(speculation.speculate(model, prompt, new, stop=(), drafts=drafts).ids)
        chances[text] = chances.get(text, 0.0) + chance
    return chances


def accept_all(guesses, q, p, generator) -> list[int]:
    """A faulty rule: it accepts every draft."""
    return [*guesses, speculation.sample_one(p[len(guesses)], generator)]


def resample_from_p(guesses, q, p, generator) -> list[int]:
    """A faulty rule: it samples the replacement from p itself."""
    for i, guess in enumerate(guesses):
        if not speculation.bernoulli(min(1.0, float(p[i, guess] / q[i, guess])), generator):
            return [*guesses[:i], speculation.sample_one(p[i], generator)]
    return accept_all(guesses, q, p, generator)


def total_variation(a: dict, b: dict) -> float:
    """Half the sum of absolute differences: the largest that any event's probability has."""
    return sum(abs(a.get(text, 0.0) - b.get(text, 0.0)) for text in {*a, *b}) / 2


def plot_enumerations(plain: dict, others: dict):
    """Plot the probability of every text against plain sampling's.

    others: {label: {text: probability}}.
    """
    figure, axes = plt.subplots(1, len(others), figsize=(3.1 * len(others) + 0.6, 3.5), sharey=True,
                                squeeze=False)
    most = 1.15 * max(max(plain.values()), *(max(o.values()) for o in others.values()))
    for ax, (label, other), colour in zip(axes[0], others.items(), (GREEN, VERMILION, ORANGE)):
        ax.plot([0, most], [0, most], color=BLACK, linewidth=0.8)
        ax.plot(list(plain.values()), [other.get(text, 0.0) for text in plain], "o", color=colour,
                markersize=5, alpha=0.8)
        ax.set(xlim=(0, most), ylim=(0, most), xlabel="plain sampling")
        ax.set_title(f"{label}\ntotal variation {total_variation(plain, other):.3f}", fontsize=10)
    axes[0, 0].set_ylabel("with drafts")
    return figure


def speculate_marked(model, ids, max_new_tokens: int, **options):
    """What `speculate` writes, and for each new token whether it was an accepted draft."""
    marks, right = [False], speculation.accept

    def judge(guesses, q, p, generator):
        new = right(guesses, q, p, generator)
        marks.extend([True] * (len(new) - 1) + [False])
        return new

    with mock.patch.object(speculation, "accept", judge):
        out = speculation.speculate(model, ids, max_new_tokens, **options)
    return out, marks[: len(out.ids)]


def mark_guesses(tokenizer, ids, marks) -> str:
    """The text, with the accepted drafts in brackets."""
    return "".join(f"[{tokenizer.decode([i])}]" if mark else tokenizer.decode([i])
                   for i, mark in zip(ids, marks))


def plot_acceptance(rates: dict):
    """Plot the share of judged drafts that were accepted, by depth.

    rates: {kind of text: shares}.
    """
    figure, ax = plt.subplots(figsize=(7.2, 3.2))
    for i, ((name, values), colour) in enumerate(zip(rates.items(), COLOURS)):
        ax.bar(bar_places(len(values), i, len(rates)), 100 * np.array(values), 0.736 / len(rates),
               color=colour, label=name)
    ax.set_xticks(range(len(values)), [f"draft {i + 1}" for i in range(len(values))])
    ax.set(ylabel="accepted, of those judged (%)", ylim=(0, 100))
    ax.legend(fontsize=9, ncols=len(rates), loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def plot_speedup(costs: dict):
    """Plot the speed-up with one draft against the acceptance rate.

    costs: {name: (cost of verifying, cost of drafting, rate to mark)}.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.5))
    rate = np.linspace(0, 1, 51)
    for (name, (verify, draft, marked)), colour in zip(costs.items(), COLOURS):
        ax.plot(rate, (1 + rate) / (verify + draft), color=colour, label=name)
        ax.plot(marked, (1 + marked) / (verify + draft), "o", color=colour, markersize=8)
    ax.axhline(1, color=BLACK, linewidth=0.9, linestyle="--", label="plain decoding")
    ax.set(xlabel="acceptance rate", ylabel="speed-up with one draft", xlim=(0, 1), ylim=(0, 2.05))
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0, 1.0))
    return figure


# ---- a talk ----

class Talk(Panel):
    """A text box and a choice of the mode, above the reply.

    `reply(question, mode)` gives (thoughts, answer, number of tokens); the answer is None where the
    reply did not get that far. `question.value` and `mode.value` can be set in code; `shown` holds
    what is shown.
    """

    def __init__(self, reply, modes, question: str):
        self.reply, self.shown = reply, {}
        self.question = ipywidgets.Text(value=question, description="question",
                                        continuous_update=False, layout={"width": "90%"})
        self.mode = ipywidgets.ToggleButtons(options=modes, value=modes[0])
        super().__init__([self.question, self.mode], "Run this cell to ask.")
        for part in (self.question, self.mode):
            part.observe(lambda change: self._update(), names="value")
        self._update()

    def _update(self) -> None:
        question = " ".join(self.question.value.split())
        self.shown = {"question": question, "mode": self.mode.value, "thoughts": "", "answer": None,
                      "tokens": 0}
        self._write(self._answer(question) if question else "Ask something, and press Enter.")

    def _answer(self, question: str) -> str:
        """The reply as HTML. Its parts go into `shown`."""
        try:
            thoughts, answer, tokens = self.reply(question, self.mode.value)
        except MinidsError as error:
            return escaped(str(error))
        self.shown |= {"thoughts": thoughts, "answer": answer, "tokens": tokens}
        thinks = f"<p><i>thinks: {escaped(thoughts)}</i></p>" if thoughts else ""
        bold = "(no answer)" if answer is None else f"<b>{escaped(answer)}</b>"
        return f"{thinks}<p>{bold}</p><p><small>{tokens} tokens written</small></p>"

    def _write(self, page: str) -> None:
        self.page.value = (f'<div class="minids-reply" style="color: {INK}">'
                           f"<p>{escaped(self.shown['question'])}</p>{page}</div>")

    def __repr__(self) -> str:
        modes = " | ".join(self.mode.options)
        return f"[text box: question] [{modes}] the reply, with its thoughts in italics"


def plot_conditions(results: dict):
    """Plot accuracy with intervals. results: {condition: {family: (share, low, high)}}."""
    figure, ax = plt.subplots(figsize=(9.0, 3.8))
    families = list(next(iter(results.values())))
    for i, ((name, shares), colour) in enumerate(zip(results.items(),
                                                     (SKY, BLUE, VERMILION, GREEN))):
        percent = 100 * np.array([shares[family] for family in families])
        interval_bars(ax, bar_places(len(families), i, len(results)), percent, 0.736 / len(results),
                      colour, name, capsize=2, linewidth=1)
    ax.set_xticks(range(len(families)), families)
    ax.set(ylabel="accuracy (%)", ylim=(0, 105))
    ax.legend(ncols=4, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


# ---- pass@k, the report card, the price ----

def plot_pass_at_k(curves: dict):
    """Plot pass@k against k with intervals. curves: {label: {k: (share, low, high)}}."""
    figure, ax = plt.subplots(figsize=(7.2, 3.5))
    for i, ((name, points), colour) in enumerate(zip(curves.items(), (BLUE, VERMILION, GREEN))):
        k = np.array(list(points))
        share, low, high = 100 * np.array(list(points.values())).T
        ax.errorbar(k + 0.06 * i, share, [share - low, high - share], fmt="os^"[i] + "-",
                    color=colour, capsize=3, label=name)
    ax.set(xlabel="k, answers that may be tried", ylabel="problems solved (%)", ylim=(0, 100),
           xticks=k)
    ax.legend(fontsize=10, loc="lower right")
    return figure


def expected_estimates(p: float, samples: int, k: int) -> tuple[float, float, float]:
    """Expected values of 1 - (1 - c/n)^k and of the unbiased estimate, and the true pass@k.

    c of n = `samples` answers are correct, each with probability p.
    """
    plug_in = unbiased = 0.0
    for right in range(samples + 1):
        chance = comb(samples, right) * p**right * (1 - p) ** (samples - right)
        plug_in += chance * (1 - (1 - right / samples) ** k)
        unbiased += chance * pass_at_k(samples, right, k)
    return plug_in, unbiased, 1 - (1 - p) ** k


def plot_bias(p: float, samples: int):
    """Plot the expected values of both estimators of pass@k against k, with the truth."""
    figure, ax = plt.subplots(figsize=(7.2, 3.3))
    k = range(1, samples + 1)
    plug_in, unbiased, truth = zip(*(expected_estimates(p, samples, i) for i in k))
    ax.plot(k, truth, color=BLACK, linewidth=5, alpha=0.25, label="truth")
    ax.plot(k, unbiased, "o-", color=BLUE, label="unbiased, mean")
    ax.plot(k, plug_in, "s--", color=VERMILION, label="1 - (1 - c/n)^k, mean")
    ax.set(xlabel=f"k, of n = {samples} answers, each correct with probability {p:g}",
           ylabel="pass@k", ylim=(0, 1))
    ax.legend(fontsize=10, loc="lower right")
    return figure


def plot_card(shares: dict):
    """Plot the report card's shares with intervals. shares: {question: (share, low, high)}."""
    figure, ax = plt.subplots(figsize=(8.2, 0.4 * len(shares) + 1.0))
    for row, (share, low, high) in enumerate(shares.values()):
        ax.barh(row, 100 * share, 0.62, color=SKY)
        ax.errorbar(100 * share, row, xerr=[[100 * (share - low)], [100 * (high - share)]],
                    fmt="none", ecolor=BLACK, elinewidth=1.2, capsize=3)
    ax.set(xlim=(0, 100), xlabel="accuracy (%), with 95 % interval", yticks=range(len(shares)),
           yticklabels=list(shares))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    return figure


EFFORTS = {"V4-Flash Non-think": (start.FLASH, SKY, "o", "none"),
           "V4-Flash Max": (start.FLASH, SKY, "o", "full"),
           "V4-Pro Non-think": (start.PRO, BLUE, "s", "none"),
           "V4-Pro Max": (start.PRO, BLUE, "s", "full")}


def effort_points(benchmark: str, longer: float, tokens: int = 500) -> dict[str,
                                                                            tuple[float, float]]:
    """{model and mode: (US dollars for a thousand answers, score)} at the newest price of output.

    Non-think is taken to write `tokens` tokens for an answer, Max `longer` times as many. Prompts
    are left out, and so are modes without a score.
    """
    newest = {row["model"]: row["output_usd_per_mtok"] for row in sorted(start.published("prices"),
                                                                         key=lambda r: r["as_of"])}
    scores = next(row for row in start.published("benchmarks_modes")
                  if row["benchmark"] == benchmark)
    return {name: (newest[model] * tokens * (longer if name.endswith("Max") else 1) / 1000,
                   scores[name]) for name, (model, *_) in EFFORTS.items()
            if scores[name] is not None}


def _effort(ax, benchmark, longer):
    points = effort_points(benchmark, longer)
    for name, (usd, score) in points.items():
        _, colour, marker, fill = EFFORTS[name]
        ax.plot(usd, score, marker=marker, color=colour, fillstyle=fill, markersize=10,
                markeredgewidth=2, linestyle="", label=name)
    for model in ("V4-Flash", "V4-Pro"):
        if f"{model} Non-think" in points:
            ends = points[f"{model} Non-think"], points[f"{model} Max"]
            ax.plot(*zip(*ends), color=GREY, linewidth=1.2, zorder=0)
    values = [score for _, score in points.values()]
    room = max(max(values) - min(values), 2)
    ax.set(xscale="log", xlim=(0.1, 70), ylim=(min(values) - 0.15 * room,
                                               max(values) + 0.15 * room),
           xlabel="US dollars for 1000 answers", xticks=[0.1, 1, 10],
           xticklabels=["0.1", "1", "10"])
    ax.minorticks_off()


def plot_effort(benchmark: str, longer: float):
    """Plot score against the price of an answer, without thinking and with the longest."""
    figure, ax = plt.subplots(figsize=(7.6, 3.9))
    _effort(ax, benchmark, longer)
    ax.set(ylabel="score",
           title=f"{benchmark}; Max writes {longer:g} times the tokens of Non-think")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_efforts(benchmark: str, lengths):
    """`plot_effort` for several lengths side by side."""
    figure, axes = plt.subplots(1, len(lengths), figsize=(9.2, 3.7), sharey=True)
    for ax, longer in zip(axes, lengths):
        _effort(ax, benchmark, longer)
        ax.set_title(f"Max writes {longer:g} x the tokens", fontsize=10)
    axes[0].set_ylabel(f"score, {benchmark}", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, fontsize=9,
                  loc="outside lower center")
    return figure
