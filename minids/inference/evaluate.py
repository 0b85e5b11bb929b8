"""How well a model answers: problems of four families, questions about stories, held-out text.

Report sections 4.3 and 5.3 evaluate on public benchmarks; these evaluations are ours. Answers to a
problem are sampled and verified by `minids.data.tasks`: pass@1 and pass@k. A question about a
TinyWorld story counts as answered if greedy decoding would write the whole answer, word for word,
which one pass over the prompt with its answer shows. All shares come with their 95 % interval.
"""

import random
from collections import Counter
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from minids.data import mixture, tasks
from minids.data.chat import END_THINK, THINK
from minids.data.tasks import reasoning
from minids.data.tinyworld import stories
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, is_correct, prompt_ids, replies
from minids.inference.speculate import expected_acceptance, speculate
from minids.pretrain.losses import stream_loss

DISTANCES = 25, 100, 400        # words between a fact and the question about it


# ---- questions about stories ----

@dataclass(frozen=True)
class Item:
    """One question of an exam: a text to continue, and the only correct continuation."""

    kind: str           # of question, as `minids.data.tinyworld.stories` names it
    prompt: str         # ends in "Answer:"
    answer: str         # begins with a space, ends with a full stop
    back: int           # characters from the furthest sentence needed to the question


def exam(count: int, words: int = 250, seed: int = 0) -> list[Item]:
    """`count` questions, each about its own story of about `words` words.

    All kinds of question are equally frequent, as far as the stories permit.
    """
    frequency, items, number = Counter(), [], 0
    while len(items) < count:
        rng = random.Random(f"exam {seed} {number}")
        number += 1
        story = stories.story(rng, words)
        questions = story.askable()
        if not questions:
            continue
        kind = min(sorted({q.kind for q in questions}), key=lambda kind: frequency[kind])
        frequency[kind] += 1
        q = rng.choice([q for q in questions if q.kind == kind])
        prompt = f"{story.text}\nQuestion: {q.text}\nAnswer:"
        items.append(Item(kind, prompt, f" {q.answer}", q.back))
    return items


def recall(count: int, words_between: int, kind: str = "secret", seed: int = 0) -> list[Item]:
    """`count` questions about a fact planted about `words_between` words before."""
    items = []
    for i in range(count):
        r = stories.recall(random.Random(f"recall {seed} {i}"), words_between, kind)
        items.append(Item(kind, r.context + r.question, f" {r.answer}", len(r.context)))
    return items


def answered(model, tokenizer, items, batch: int = 16) -> list[bool]:
    """Whether greedy decoding writes the answer, for each item."""
    greedy = lambda logits, answer: bool((logits.argmax(-1) == answer).all())
    return _measure(model, tokenizer, items, batch, greedy)


def answer_nats(model, tokenizer, items, batch: int = 16) -> list[float]:
    """The nats of the answer, for each item: -log of the probability of writing exactly that."""
    nats = lambda logits, answer: F.cross_entropy(logits, answer, reduction="sum").item()
    return _measure(model, tokenizer, items, batch, nats)


@torch.inference_mode()
def _measure(model, tokenizer, items, batch: int, measure) -> list:
    """measure(logits of the answer's tokens, N vocab, and their ids, N) for each item."""
    training, device = model.training, model.embed.weight.device
    model.eval()
    pairs = [(tokenizer.encode(item.prompt, bos=True), tokenizer.encode(item.answer))
             for item in items]
    length = lambda i: len(pairs[i][0]) + len(pairs[i][1])
    order = sorted(range(len(pairs)), key=length)               # similar lengths share a batch
    results = [None] * len(pairs)
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        longest = max(map(length, rows))
        texts = [pairs[i][0] + pairs[i][1] for i in rows]       # padding follows: never read
        ids = [text + [tokenizer.pad_id] * (longest - len(text)) for text in texts]
        X = model.features(torch.tensor(ids, device=device))    # B T n d
        for i, row in zip(rows, X):
            prompt, answer = pairs[i]
            first, last = len(prompt) - 1, length(i) - 1        # the logits at t are of token t + 1
            logits = model.logits(row[None, first:last])[0]     # N vocab
            results[i] = measure(logits, torch.tensor(answer, device=device))
    model.train(training)
    return results


def answered_by_trigram(trigram, tokenizer, items) -> list[bool]:
    """Whether greedy decoding with a trigram model writes the answer, for each item."""
    vocabulary = np.arange(trigram.vocab_size)

    def greedy(item):
        ids = tokenizer.encode(item.prompt, bos=True)
        for token in tokenizer.encode(item.answer):
            if int(trigram.prob(ids[-2], ids[-1], vocabulary).argmax()) != token:
                return False
            ids.append(token)
        return True

    return [greedy(item) for item in items]


def interval(correct) -> tuple[float, float, float]:
    """The mean of `correct` and its 95 % interval (Wilson, 1927): accuracy, low, high.

    `correct` has a number from 0 to 1 for each question. Means of several attempts vary less than
    single ones; for them the interval is wider than it needs to be, never narrower.
    """
    n, p, z = len(correct), sum(correct) / len(correct), 1.96
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return p, max(middle - half, 0.0) / scale, (middle + half) / scale


# ---- problems with verifiers ----

@dataclass(frozen=True)
class Score:
    """The result of a family's problems in one thinking mode, each answered `samples` times."""

    family: str
    mode: str
    correct: list[int]          # answers to each problem that were correct
    samples: int
    tokens: float               # mean length of a reply
    ended: float                # share of the replies that ended with eos

    def pass_at(self, k: int = 1) -> tuple[float, float, float]:
        """pass@k over the problems, and its interval."""
        return interval([pass_at_k(self.samples, correct, k) for correct in self.correct])


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that at least one of k answers is correct: Chen et al.'s unbiased estimate.

    The k answers are chosen among `samples`, `correct` of which are correct (arXiv 2107.03374).
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise MinidsError(f"pass@k: expected 0 <= correct <= samples and 1 <= k <= samples, found "
                          f"{correct}, {samples} and {k}")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def score(model, tokenizer, family: str, mode: str = "think-high", split: str = "test",
          count: int = 100, samples: int = 1, difficulties=(1, 2, 3, 4, 5),
          temperature: float = 1.0, seed: int = 0) -> tuple[Score, list[list[int]]]:
    """Answer `count` different problems of a split, `samples` times each.

    Returns the `Score`, and the texts (prompt and reply) as lists of ids. The problems alternate
    between difficulties; a family may have fewer problems (`minids.data.tasks.distinct_problems`).
    A reply longer than its mode's limit (`minids.inference.answers.LIMITS`) has no eos and counts
    as wrong.
    """
    problems = tasks.distinct_problems(family, split, count, difficulties)
    repeated = [problem for problem in problems for _ in range(samples)]
    prompts = [prompt_ids(problem, tokenizer, mode) for problem in repeated]
    written = replies(model, prompts, LIMITS[mode], temperature, seed=seed)
    correct = [is_correct(problem, reply, tokenizer, mode)
               for problem, reply in zip(repeated, written)]
    per_problem = [sum(correct[i : i + samples]) for i in range(0, len(correct), samples)]
    tokens = float(np.mean([len(reply) for reply in written]))
    ended = float(np.mean([reply[-1] == tokenizer.eos_id for reply in written]))
    texts = [prompt + reply for prompt, reply in zip(prompts, written)]
    return Score(family, mode, per_problem, samples, tokens, ended), texts


# ---- the report card ----

def report(model, tokenizer, families=tasks.FAMILIES, modes=("think-high",), count: int = 100,
           samples: int = 4, difficulties=(1, 2, 3, 4, 5), seed: int = 0,
           everything: bool = True) -> dict:
    """The report card, ready for JSON: {"problems": a dict for each family and mode}.

    With `everything`, also "bits_per_byte", "questions", "recall" and "drafts". Shares are [share,
    low, high]. "greedy" is the share of correct greedy answers; pass@k is of sampled answers.
    "guessed", of reasoning, is what guesses would earn (`minids.data.tasks.reasoning.chance`).
    """
    jobs = [(family, mode) for family in families for mode in modes]
    card, texts = {"problems": []}, []
    total = len(jobs) + 4 * everything
    with tqdm(total=total, desc="evaluating", unit="part", dynamic_ncols=True) as bar:
        for family, mode in jobs:
            sampled, written = score(model, tokenizer, family, mode, "test", count, samples,
                                     difficulties, seed=seed)
            greedy, _ = score(model, tokenizer, family, mode, "test", count, 1, difficulties,
                              temperature=0.0)
            texts += written[:: max(len(written) // 32, 1)]
            card["problems"].append({
                "family": family, "mode": mode, "difficulties": list(difficulties),
                "problems": len(sampled.correct), "samples": samples,
                "pass@1": sampled.pass_at(1), f"pass@{samples}": sampled.pass_at(samples),
                "greedy": greedy.pass_at(1),
                "tokens": round(sampled.tokens, 1), "ended": round(sampled.ended, 4)}
                | ({"guessed": guessed(count, difficulties)} if family == "reasoning" else {}))
            bar.update()
        if not everything:
            return card
        card["bits_per_byte"] = bits_per_byte(model, tokenizer)
        bar.update()
        card["questions"] = interval(answered(model, tokenizer, exam(105, seed=seed)))
        bar.update()
        card["recall"] = {
            str(words): interval(answered(model, tokenizer, recall(50, words, seed=seed)))
            for words in DISTANCES}
        bar.update()
        card["drafts"] = drafts(model, texts, tokenizer, seed) if model.mtp else None
        bar.update()
    return card


def guessed(count: int, difficulties) -> dict[str, float]:
    """The share of the reasoning problems of an exam that guesses solve on average: of "all", and
    of "tracking" if there are any."""
    chances = {"all": [], "tracking": []}
    for problem in tasks.distinct_problems("reasoning", "test", count, difficulties):
        chances["all"].append(reasoning.chance(problem))
        if problem.kind == "tracking":
            chances["tracking"].append(chances["all"][-1])
    return {kind: round(float(np.mean(values)), 4) for kind, values in chances.items() if values}


def bits_per_byte(model, tokenizer, tokens: int = 20_000) -> dict[str, float]:
    """Bits per byte of held-out documents of the mixture, and of the real text among them."""
    kinds = {"mixture": tuple(mixture.SHARES), "text": ("text",)}
    length = min(1024, model.config.max_seq_len)
    bits = {}
    for name, documents in kinds.items():
        stream = mixture.stream("heldout", tokens, tokenizer, documents)[: tokens + 1]
        bits[name] = stream_loss(model, stream, length, tokenizer)[1]
    return bits


def drafts(model, texts, tokenizer, seed: int = 0) -> dict:
    """How often MTP's first draft is accepted: the expectation, and what was counted.

    The expectation is exact, over the replies in `texts`, lists of ids that the model wrote after
    its prompts; a reply follows the first `<think>` or `</think>`, and its first token is no draft.
    The counts are of 8 of the replies written again, with drafts.
    """
    opening = {tokenizer.id(THINK), tokenizer.id(END_THINK)}
    first = [next(i for i, token in enumerate(ids) if token in opening) + 1 for ids in texts]
    ids = torch.full((len(texts), max(map(len, texts))), tokenizer.pad_id)               # B T
    for row, text in zip(ids, texts):
        row[: len(text)] = torch.tensor(text)
    device = model.embed.weight.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    expected = expected_acceptance(model, ids.to(device),
                                   torch.tensor(first, device=device) + 1, lengths)
    chosen = list(zip(texts, first))[:: max(len(texts) // 8, 1)][:8]
    outputs = [speculate(model, text[:n], 64, seed=seed + i) for i, (text, n) in enumerate(chosen)]
    passes, new = sum(out.passes for out in outputs), sum(len(out.ids) for out in outputs)
    return {"expected": round(expected, 4), "tried": sum(sum(out.tried) for out in outputs),
            "accepted": sum(sum(out.accepted) for out in outputs),
            "tokens_per_pass": round(new / passes, 3)}


def table(report: dict) -> str:
    """A report as lines of text."""
    share = lambda s: f"{s[0]:6.1%} ({s[1]:.0%} to {s[2]:.0%})"
    lines = [f"{'family':<12} {'mode':<11} {'pass@1':<22} {'pass@k':<28} tokens  ended"]
    for row in report["problems"]:
        k = row["samples"]
        pass_k = f"{share(row[f'pass@{k}'])} k={k}" if k > 1 else ""
        lines.append(f"{row['family']:<12} {row['mode']:<11} {share(row['pass@1']):<22} "
                     f"{pass_k:<28} {row['tokens']:6.1f} {row['ended']:6.1%}")
    guesses = [row["guessed"] for row in report["problems"] if "guessed" in row]
    if guesses:
        kinds = ", ".join(f"{kind} {value:.0%}" for kind, value in guesses[0].items())
        lines.append(f"reasoning, by guessing one of the names or places in a problem: {kinds}")
    for name, bits in report.get("bits_per_byte", {}).items():
        lines.append(f"bits per byte, {name}: {bits:.3f}")
    if "questions" in report:
        lines.append("questions about stories of 250 words: " + share(report["questions"]).strip())
    for words, correct in report.get("recall", {}).items():
        lines.append(f"a fact planted {words} words before: {share(correct).strip()}")
    if report.get("drafts"):
        d = report["drafts"]
        lines.append(f"MTP drafts: {d['expected']:.1%} expected to be accepted; {d['accepted']} of "
                     f"{d['tried']} were, {d['tokens_per_pass']:.2f} tokens a pass")
    return "\n".join(lines)
