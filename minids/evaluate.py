"""How well a base model answers: questions about TinyWorld's stories, near and far, against baselines of counting.

Not part of the report, whose base models are measured on public benchmarks (section 4.3). A question counts as answered
when greedy decoding would write the whole answer, word for word; one pass over the prompt with its answer tells. The
specialists' problems, which may be answered in several ways, are judged by `minids.data.tasks`.
"""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from minids.data import world


@dataclass(frozen=True)
class Item:
    """One question of an exam. The text to be continued is `prompt`, with `answer` as the only right continuation."""

    kind: str           # what is asked, as `world` names it
    prompt: str         # ends in "Answer:"
    answer: str         # begins with a space, ends with a full stop
    back: int           # characters from the furthest sentence needed to the question


def exam(count: int, words: int = 250, seed: int = 0) -> list[Item]:
    """`count` questions, each about a story of its own of some `words` words; all kinds alike often, as far as can be asked."""
    asked, items, i = Counter(), [], 0
    while len(items) < count:
        rng = random.Random(f"exam {seed} {i}")
        i += 1
        told = world.story(rng, words)
        found = told.askable()
        if not found:
            continue
        kind = min(sorted({q.kind for q in found}), key=lambda kind: asked[kind])
        asked[kind] += 1
        q = rng.choice([q for q in found if q.kind == kind])
        items.append(Item(kind, f"{told.text}\nQuestion: {q.text}\nAnswer:", f" {q.answer}", q.back))
    return items


def recall(count: int, words_between: int, kind: str = "secret", seed: int = 0) -> list[Item]:
    """`count` questions about a fact planted some `words_between` words before."""
    items = []
    for i in range(count):
        r = world.recall(random.Random(f"recall {seed} {i}"), words_between, kind)
        items.append(Item(kind, r.context + r.question, f" {r.answer}", len(r.context)))
    return items


@torch.inference_mode()
def answered(model, tokenizer, items, batch: int = 16) -> list[bool]:
    """For each item whether greedy decoding writes its answer."""
    training = model.training
    model.eval()
    pairs = [(tokenizer.encode(item.prompt, bos=True), tokenizer.encode(item.answer)) for item in items]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))    # equal lengths share a batch
    right = [False] * len(pairs)
    for some in (order[i : i + batch] for i in range(0, len(order), batch)):
        longest = max(sum(map(len, pairs[i])) for i in some)
        rows = [sum(pairs[i], []) for i in some]
        ids = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in rows])   # what is behind is not seen
        best = model(ids.to(model.embed.weight.device)).argmax(-1).cpu()                 # B T
        for i, row in zip(some, best):
            prompt, answer = pairs[i]
            right[i] = row[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist() == answer
    model.train(training)
    return right


def answered_by_trigram(trigram, tokenizer, items) -> list[bool]:
    """The same for a trigram model."""
    def greedy(item):
        ids = tokenizer.encode(item.prompt, bos=True)
        begin, answer = len(ids), tokenizer.encode(item.answer)
        everything = np.arange(trigram.vocab_size)
        for wanted in answer:
            if int(trigram.prob(ids[-2], ids[-1], everything).argmax()) != wanted:
                return False
            ids.append(wanted)
        return len(ids) == begin + len(answer)
    return [greedy(item) for item in items]


def interval(right) -> tuple[float, float, float]:
    """Share of right answers and its 95 % interval (Wilson, 1927)."""
    n, p, z = len(right), sum(right) / len(right), 1.96
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return p, max(middle - half, 0.0) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
