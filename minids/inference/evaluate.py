"""How well a model answers: problems of the four families, questions about TinyWorld's stories near and far, plain text.

Report sections 4.3 and 5.3 measure on public benchmarks; these are ours. Problems may be answered in several ways, and
`minids.data.tasks` judges what was sampled: pass@1 and pass@k. A question about a story counts as answered when greedy
decoding would write the whole answer, word for word; one pass over the prompt with its answer tells. All shares come with
their 95 % interval.
"""

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from math import comb

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from minids.data import mixture, tasks
from minids.data.chat import END_THINK, THINK
from minids.data.tinyworld import stories
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, question, replies
from minids.inference.answers import right as is_right
from minids.inference.speculate import expected_acceptance, speculate
from minids.pretrain.losses import evaluate

DISTANCES = 25, 100, 400        # words between a fact and the question about it


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
        told = stories.story(rng, words)
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
        r = stories.recall(random.Random(f"recall {seed} {i}"), words_between, kind)
        items.append(Item(kind, r.context + r.question, f" {r.answer}", len(r.context)))
    return items


def answered(model, tokenizer, items, batch: int = 16) -> list[bool]:
    """For each item whether greedy decoding writes its answer."""
    return _judged(model, tokenizer, items, batch, lambda logits, answer: bool((logits.argmax(-1) == answer).all()))


def answer_nats(model, tokenizer, items, batch: int = 16) -> list[float]:
    """For each item the nats of its answer: -log of the probability of writing just that."""
    nats = lambda logits, answer: F.cross_entropy(logits, answer, reduction="sum").item()
    return _judged(model, tokenizer, items, batch, nats)


@torch.inference_mode()
def _judged(model, tokenizer, items, batch, judge) -> list:
    """judge(logits of the answer's tokens, their ids) for each item: one pass over prompt and answer tells."""
    training, device = model.training, model.embed.weight.device
    model.eval()
    pairs = [(tokenizer.encode(item.prompt, bos=True), tokenizer.encode(item.answer)) for item in items]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))    # equal lengths share a batch
    found = [None] * len(pairs)
    for some in (order[i : i + batch] for i in range(0, len(order), batch)):
        longest = max(sum(map(len, pairs[i])) for i in some)
        rows = [sum(pairs[i], []) for i in some]
        ids = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in rows])   # what is behind is not seen
        logits = model(ids.to(device))                                                   # B T vocab
        for i, of in zip(some, logits):
            prompt, answer = pairs[i]
            end = len(prompt) + len(answer) - 1
            found[i] = judge(of[len(prompt) - 1 : end], torch.tensor(answer, device=device))
    model.train(training)
    return found


def answered_by_trigram(trigram, tokenizer, items) -> list[bool]:
    """The same for a trigram model."""
    def greedy(item):
        ids = tokenizer.encode(item.prompt, bos=True)
        answer = tokenizer.encode(item.answer)
        everything = np.arange(trigram.vocab_size)
        for wanted in answer:
            if int(trigram.prob(ids[-2], ids[-1], everything).argmax()) != wanted:
                return False
            ids.append(wanted)
        return True
    return [greedy(item) for item in items]


def interval(right) -> tuple[float, float, float]:
    """Share of right answers and its 95 % interval (Wilson, 1927).

    `right` has a number from 0 to 1 for each question. Where these are means of several tries they vary less than single
    ones, and the interval is wider than it needs to be, never narrower.
    """
    n, p, z = len(right), sum(right) / len(right), 1.96
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return p, max(middle - half, 0.0) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


# ---- problems with verifiers ----

@dataclass(frozen=True)
class Score:
    """How a family's problems were answered in one thinking mode: `samples` times each."""

    family: str
    mode: str
    right: list[int]            # of the answers to each problem
    samples: int
    tokens: float               # mean length of a reply
    ended: float                # share of the replies that came to their end

    def pass_at(self, k: int = 1) -> tuple[float, float, float]:
        """pass@k over the problems, and its interval."""
        return interval([pass_at_k(self.samples, right, k) for right in self.right])


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that of k answers, taken from `samples` of which `right` are right, at least one is right: Chen et al.'s
    unbiased estimate (arXiv 2107.03374)."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise MinidsError(f"pass@k: expected 0 <= right <= samples and 1 <= k <= samples, found {right}, {samples} and {k}")
    return 1 - comb(samples - right, k) / comb(samples, k)


def score(model, tokenizer, family: str, mode: str = "think-high", split: str = "test", count: int = 100, samples: int = 1,
          difficulties=(1, 2, 3, 4, 5), temperature: float = 1.0, seed: int = 0):
    """Answer `count` different problems of a split, `samples` times each: a `Score`, and the texts, prompt and reply, as ids.

    Difficulties take turns; a family may have fewer problems (`minids.data.tasks.different`). A reply that outgrows its mode's
    limit (`minids.inference.answers.LIMITS`) has no end, and is wrong.
    """
    problems = tasks.different(family, split, count, difficulties)
    prompts = [question(problem, tokenizer, mode) for problem in problems for _ in range(samples)]
    found = replies(model, prompts, LIMITS[mode], temperature, seed=seed)
    right = [is_right(problems[i // samples], reply, tokenizer, mode) for i, reply in enumerate(found)]
    each = [sum(right[i : i + samples]) for i in range(0, len(right), samples)]
    ended = [reply[-1] == tokenizer.eos_id for reply in found]
    return (Score(family, mode, each, samples, float(np.mean([len(reply) for reply in found])), float(np.mean(ended))),
            [prompt + reply for prompt, reply in zip(prompts, found)])


# ---- all of it ----

def report(model, tokenizer, families=tasks.FAMILIES, modes=("think-high",), count: int = 100, samples: int = 4,
           difficulties=(1, 2, 3, 4, 5), seed: int = 0, everything: bool = True) -> dict:
    """The report card, ready for JSON: {"problems": a list with a dict for each family and mode, and with `everything` also
    "bits_per_byte", "questions", "recall" and "drafts"}. Shares are [share, low, high]; that of "greedy" answers takes the
    likeliest token each time, the others sample."""
    measured, texts = [], []
    jobs = [(family, mode) for family in families for mode in modes]
    with tqdm(total=len(jobs) + 4 * everything, desc="evaluating", unit="part", dynamic_ncols=True) as bar:
        for family, mode in jobs:
            found, written = score(model, tokenizer, family, mode, "test", count, samples, difficulties, seed=seed)
            greedy, _ = score(model, tokenizer, family, mode, "test", count, 1, difficulties, temperature=0.0)
            texts += written[:: max(len(written) // 32, 1)]
            measured.append({"family": family, "mode": mode, "difficulties": list(difficulties),
                             "problems": len(found.right), "samples": samples, "pass@1": found.pass_at(1),
                             f"pass@{samples}": found.pass_at(samples), "greedy": greedy.pass_at(1),
                             "tokens": round(found.tokens, 1), "ended": round(found.ended, 4)})
            bar.update()
        found = {"problems": measured}
        if not everything:
            return found
        found["bits_per_byte"] = bits_per_byte(model, tokenizer)
        bar.update()
        ask = partial(answered, model, tokenizer)
        found["questions"] = interval(ask(exam(105, seed=seed)))
        bar.update()
        found["recall"] = {str(words): interval(ask(recall(50, words, seed=seed))) for words in DISTANCES}
        bar.update()
        found["drafts"] = drafts(model, texts, tokenizer, seed) if model.mtp else None
        bar.update()
    return found


def bits_per_byte(model, tokenizer, tokens: int = 20_000) -> dict[str, float]:
    """Of held-out documents of the mixture, and of the real text among them."""
    kinds = {"mixture": tuple(mixture.SHARES), "text": ("text",)}
    length = min(1024, model.config.max_seq_len)
    streams = {name: mixture.stream("heldout", tokens, tokenizer, of)[: tokens + 1] for name, of in kinds.items()}
    return {name: evaluate(model, stream, length, tokenizer)[1] for name, stream in streams.items()}


def drafts(model, texts, tokenizer, seed: int = 0) -> dict:
    """How often MTP's first draft stands: the exact expectation on `texts` that the model wrote after their prompts (lists of
    ids, where the reply follows the first `<think>` or `</think>`; its first token is no draft), and what came out when 8 of
    them were written anew."""
    opening = {tokenizer.id(THINK), tokenizer.id(END_THINK)}
    first = [next(i for i, token in enumerate(ids) if token in opening) + 1 for ids in texts]      # of the reply
    ids = torch.full((len(texts), max(map(len, texts))), tokenizer.pad_id)
    for row, text in zip(ids, texts):
        row[: len(text)] = torch.tensor(text)
    device = model.embed.weight.device
    expected = expected_acceptance(model, ids.to(device), torch.tensor(first, device=device) + 1,
                                   torch.tensor([len(text) for text in texts], device=device))
    some = list(zip(texts, first))[:: max(len(texts) // 8, 1)][:8]
    written = [speculate(model, text[:n], 64, seed=seed + i) for i, (text, n) in enumerate(some)]
    tried, passes = sum(sum(out.tried) for out in written), sum(out.passes for out in written)
    return {"expected": round(expected, 4), "tried": tried, "accepted": sum(sum(out.accepted) for out in written),
            "tokens_per_pass": round(sum(len(out.ids) for out in written) / passes, 3)}


def table(report: dict) -> str:
    """A report as lines of text."""
    share = lambda s: f"{s[0]:6.1%} ({s[1]:.0%} to {s[2]:.0%})"
    lines = [f"{'family':<12} {'mode':<11} {'pass@1':<22} {'pass@k':<28} tokens  ended"]
    for row in report["problems"]:
        k = row["samples"]
        many = f"{share(row[f'pass@{k}'])} k={k}" if k > 1 else ""
        lines.append(f"{row['family']:<12} {row['mode']:<11} {share(row['pass@1']):<22} {many:<28} "
                     f"{row['tokens']:6.1f} {row['ended']:6.1%}")
    for name, bits in report.get("bits_per_byte", {}).items():
        lines.append(f"bits per byte, {name}: {bits:.3f}")
    if "questions" in report:
        lines.append(f"questions about stories of 250 words: {share(report['questions']).strip()}")
    for words, right in report.get("recall", {}).items():
        lines.append(f"a fact planted {words} words before: {share(right).strip()}")
    if report.get("drafts"):
        d = report["drafts"]
        lines.append(f"MTP drafts: {d['expected']:.1%} expected to stand; {d['accepted']} of {d['tried']} did, "
                     f"{d['tokens_per_pass']:.2f} tokens a pass")
    return "\n".join(lines)
