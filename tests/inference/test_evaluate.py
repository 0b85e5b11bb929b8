"""Exams about TinyWorld's stories, problems with verifiers, and the report card."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from tiny import TINY

from minids import MinidsError, Model, generate, load
from minids.data import tasks
from minids.data.tokenizer import SPECIAL, Tokenizer
from minids.inference import answers, evaluate
from minids.inference.evaluate import (
    Item,
    answer_nats,
    answered,
    answered_by_trigram,
    exam,
    interval,
    recall,
)
from minids.pretrain.trigram import Trigram
from minids.system.paths import data


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def test_exams_are_deterministic_and_of_all_kinds():
    items = exam(40, words=120, seed=1)
    assert items == exam(40, words=120, seed=1) and items != exam(40, words=120, seed=2)
    assert len({item.kind for item in items}) == 7
    for item in items:
        assert item.prompt.endswith("Answer:") and item.answer[0] == " " and item.answer[-1] == "."
        assert 0 < item.back < len(item.prompt)


def test_a_planted_fact_is_as_far_back_as_requested():
    for words in (20, 400):
        for item in recall(5, words):
            secret = item.answer.split()[-1].rstrip(".")    # "The secret word of Irma is thunder."
            assert item.prompt.count(secret) == 1
            between = item.prompt[item.prompt.index(secret):].split("Question:")[0].split()
            assert words - 5 <= len(between) <= words + 60


def test_answered_is_what_greedy_decoding_writes(tokenizer):
    """The model's greedy continuations count as answered; with another last word they do not."""
    model = load(data("checkpoints", "nano"))
    items, wrong = [], []
    for item in exam(6, words=60):
        prompt, stop = tokenizer.encode(item.prompt, bos=True), tokenizer.encode(".")
        ids = generate(model, prompt, 12, temperature=0, stop=stop)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
        items.append(Item("greedy", item.prompt, tokenizer.decode(ids), 0))
        wrong.append(Item("greedy", item.prompt, tokenizer.decode(ids[:-2]) + " nowhere", 0))
    assert answered(model, tokenizer, items, batch=4) == [True] * 6
    assert not any(answered(model, tokenizer, wrong, batch=4))


def test_nats_of_an_answer_are_those_of_its_tokens_one_by_one(tokenizer):
    model, items = load(data("checkpoints", "nano")), exam(3, words=40)
    for item, measured in zip(items, answer_nats(model, tokenizer, items, batch=2)):
        ids, nats = tokenizer.encode(item.prompt, bos=True), 0.0
        for token in tokenizer.encode(item.answer):
            with torch.no_grad():
                nats -= model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        assert measured == pytest.approx(nats, rel=1e-3)


def test_trigram_answers_what_it_has_counted(tokenizer):
    text = "Question: Who is it?\nAnswer: It is me."
    trigram = Trigram(np.array(tokenizer.encode(text * 20)), tokenizer.vocab_size)
    items = [Item("who", "Question: Who is it?\nAnswer:", " It is me.", 0),
             Item("who", "Who?\nAnswer:", " Nobody.", 0)]
    assert answered_by_trigram(trigram, tokenizer, items) == [True, False]


def test_interval():
    """Known values of Wilson's interval."""
    assert interval([True] * 50 + [False] * 50) == pytest.approx((0.5, 0.404, 0.596), abs=1e-3)
    assert interval([False] * 10) == pytest.approx((0, 0, 0.278), abs=1e-3)


# ---- problems with verifiers ----

LONG = TINY.replace(max_seq_len=1024)


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 7):
        for c in range(n + 1):
            tries = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(tries, k))
                mean = sum(map(any, subsets)) / len(subsets)
                assert evaluate.pass_at_k(n, c, k) == pytest.approx(mean)
    for wrong in ((4, 5, 1), (4, 2, 0), (4, 2, 5), (4, -1, 1)):
        with pytest.raises(MinidsError, match="pass@k"):
            evaluate.pass_at_k(*wrong)


def test_scores_count_correct_and_ended_answers(tokenizer, monkeypatch):
    """A model that is always correct, one that ends half its replies, one that is never correct."""
    problems = tasks.distinct_problems("mathematics", "test", 10, (1,))
    eos = tokenizer.eos_id

    def says(answers):
        monkeypatch.setattr(evaluate, "replies", lambda model, prompts, *args, **options:
                            [answers(i // 2) for i in range(len(prompts))])
        return evaluate.score(None, tokenizer, "mathematics", "non-think", count=10, samples=2,
                              difficulties=(1,))

    correct = lambda i: tokenizer.encode(problems[i].answer)
    score, texts = says(lambda i: correct(i) + [eos])
    assert score.correct == [2] * 10 and score.ended == 1
    assert score.pass_at(1)[0] == score.pass_at(2)[0] == 1
    for i, text in enumerate(texts):
        assert tokenizer.decode(text).endswith(problems[i // 2].answer + SPECIAL[1])
    score, _ = says(lambda i: correct(i) + [eos] if i % 2 else correct(i))
    assert score.correct == [0, 2] * 5 and score.ended == 0.5 and score.pass_at(1)[0] == 0.5
    score, _ = says(lambda i: tokenizer.encode("x") + [eos])
    assert score.correct == [0] * 10 and score.pass_at(2)[0] == 0


def test_replies_are_in_the_order_of_their_prompts():
    torch.manual_seed(0)
    model = Model(LONG).eval()
    torch.nn.init.normal_(model.head.weight)
    prompts = [[9] * n for n in (5, 2, 9, 2, 30, 1)]
    replies = answers.replies(model, prompts, 6, temperature=0, batch=2)
    assert replies == [generate(model, p, 6, temperature=0) for p in prompts]
    (reply,) = answers.replies(model, [[9] * 1021], 6)
    assert len(reply) <= 4                              # what the context leaves


def test_what_guesses_earn_is_told_beside_the_score():
    row = {"family": "reasoning", "mode": "think-high", "samples": 1, "pass@1": (0.5, 0.4, 0.6),
           "tokens": 20.0, "ended": 1.0}
    guessed = evaluate.guessed(100, (1, 2))
    assert 0.55 < guessed["tracking"] < 0.7 and 0.35 < guessed["all"] < 0.5
    text = evaluate.table({"problems": [row | {"guessed": guessed}]})
    shares = f"all {guessed['all']:.0%}, tracking {guessed['tracking']:.0%}"
    assert f"guessing one of the names or places in a problem: {shares}" in text
    assert "guessing" not in evaluate.table({"problems": [row]})     # of an older file


@pytest.mark.slow
def test_a_report_has_all_parts_and_a_table(tokenizer, monkeypatch):
    torch.manual_seed(0)
    model = Model(LONG).eval()
    monkeypatch.setattr(evaluate, "bits_per_byte", partial(evaluate.bits_per_byte, tokens=1000))
    monkeypatch.setattr(evaluate, "exam", lambda count, seed: exam(3, 60, seed))
    monkeypatch.setattr(evaluate, "recall",
                        lambda count, words, seed: recall(2, words, seed=seed))
    options = dict(families=("mathematics", "reasoning"), modes=("non-think",), count=2, samples=2)
    card = evaluate.report(model, tokenizer, **options)
    problems = evaluate.report(model, tokenizer, **options, everything=False)
    assert problems == {"problems": card["problems"]}
    assert json.loads(json.dumps(card))["problems"][0]["family"] == "mathematics"
    row, second = card["problems"]
    assert "guessed" in second and "guessed" not in row
    assert len(row["pass@1"]) == len(row["pass@2"]) == 3
    assert set(card["recall"]) == {"25", "100", "400"}
    assert 3 < card["bits_per_byte"]["text"] < 6                    # the model knows nothing
    assert 0 < card["drafts"]["expected"] < 1
    assert card["drafts"]["accepted"] <= card["drafts"]["tried"]
    text = evaluate.table(card)
    for words in ("mathematics", "non-think", "bits per byte, text", "400 words", "MTP drafts"):
        assert words in text
