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
from minids.inference.evaluate import Item, answer_nats, answered, answered_by_trigram, exam, interval, recall
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


def test_recall_stands_as_far_back_as_asked():
    for words in (20, 400):
        for item in recall(5, words):
            said = item.answer.split()[-1].rstrip(".")                 # "The secret word of Irma is thunder."
            assert item.prompt.count(said) == 1
            between = item.prompt[item.prompt.index(said):].split("Question:")[0].split()
            assert words - 5 <= len(between) <= words + 60


def test_answered_is_what_greedy_decoding_writes(tokenizer):
    """Items made of the model's own greedy continuations count as answered, and with another last word they don't."""
    model = load(data("checkpoints", "nano"))
    items, wrong = [], []
    for item in exam(6, words=60):
        ids = generate(model, tokenizer.encode(item.prompt, bos=True), 12, temperature=0, stop=tokenizer.encode("."))
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
        items.append(Item("greedy", item.prompt, tokenizer.decode(ids), 0))
        wrong.append(Item("greedy", item.prompt, tokenizer.decode(ids[:-2]) + " nowhere", 0))
    assert answered(model, tokenizer, items, batch=4) == [True] * 6
    assert not any(answered(model, tokenizer, wrong, batch=4))


def test_nats_of_an_answer_are_those_of_its_tokens_one_by_one(tokenizer):
    model, items = load(data("checkpoints", "nano")), exam(3, words=40)
    for item, found in zip(items, answer_nats(model, tokenizer, items, batch=2)):
        ids, nats = tokenizer.encode(item.prompt, bos=True), 0.0
        for token in tokenizer.encode(item.answer):
            with torch.no_grad():
                nats -= model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        assert found == pytest.approx(nats, rel=1e-3)


def test_trigram_answers_what_it_has_counted(tokenizer):
    said = "Question: Who is it?\nAnswer: It is me."
    trigram = Trigram(np.array(tokenizer.encode(said * 20)), tokenizer.vocab_size)
    items = [Item("who", "Question: Who is it?\nAnswer:", " It is me.", 0), Item("who", "Who?\nAnswer:", " Nobody.", 0)]
    assert answered_by_trigram(trigram, tokenizer, items) == [True, False]


def test_interval():
    assert interval([True] * 50 + [False] * 50) == pytest.approx((0.5, 0.404, 0.596), abs=1e-3)     # Wilson's, known values
    assert interval([False] * 10) == pytest.approx((0, 0, 0.278), abs=1e-3)

# ---- problems with verifiers ----

LONG = TINY.replace(max_seq_len=1024)


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 7):
        for c in range(n + 1):
            tries = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(tries, k))
                assert evaluate.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    for wrong in ((4, 5, 1), (4, 2, 0), (4, 2, 5), (4, -1, 1)):
        with pytest.raises(MinidsError, match="pass@k"):
            evaluate.pass_at_k(*wrong)


def test_scores_count_right_and_ended_answers(tokenizer, monkeypatch):
    """A model that always gives the right answer, one that gives it to every second question, one that never ends."""
    problems = tasks.different("mathematics", "test", 10, (1,))
    eos = tokenizer.eos_id

    def says(answers):
        monkeypatch.setattr(evaluate, "replies", lambda model, prompts, *a, **k: [answers(i // 2) for i in range(len(prompts))])
        return evaluate.score(None, tokenizer, "mathematics", "non-think", count=10, samples=2, difficulties=(1,))

    right = lambda i: tokenizer.encode(problems[i].answer)
    found, texts = says(lambda i: right(i) + [eos])
    assert found.right == [2] * 10 and found.ended == 1 and found.pass_at(1)[0] == found.pass_at(2)[0] == 1
    assert all(tokenizer.decode(text).endswith(problems[i // 2].answer + SPECIAL[1]) for i, text in enumerate(texts))
    found, _ = says(lambda i: right(i) + [eos] if i % 2 else right(i))
    assert found.right == [0, 2] * 5 and found.ended == 0.5 and found.pass_at(1)[0] == 0.5
    found, _ = says(lambda i: tokenizer.encode("x") + [eos])
    assert found.right == [0] * 10 and found.pass_at(2)[0] == 0


def test_replies_stand_where_their_prompts_stood():
    torch.manual_seed(0)
    model = Model(LONG).eval()
    torch.nn.init.normal_(model.head.weight)
    prompts = [[9] * n for n in (5, 2, 9, 2, 30, 1)]
    found = answers.replies(model, prompts, 6, temperature=0, batch=2)
    assert found == [generate(model, p, 6, temperature=0) for p in prompts]
    assert all(len(r) <= 4 for r in answers.replies(model, [[9] * 1021], 6))             # what the context leaves


def test_a_report_has_all_parts_and_can_be_told(tokenizer, monkeypatch):
    torch.manual_seed(0)
    model = Model(LONG).eval()
    monkeypatch.setattr(evaluate, "bits_per_byte", partial(evaluate.bits_per_byte, tokens=1000))
    monkeypatch.setattr(evaluate, "exam", lambda count, seed: exam(3, 60, seed))
    monkeypatch.setattr(evaluate, "recall", lambda count, words, seed: recall(2, words, seed=seed))
    asked = dict(families=("mathematics",), modes=("non-think",), count=2, samples=2)
    found = evaluate.report(model, tokenizer, **asked)
    assert evaluate.report(model, tokenizer, **asked, everything=False) == {"problems": found["problems"]}
    assert json.loads(json.dumps(found))["problems"][0]["family"] == "mathematics"
    (row,) = found["problems"]
    assert len(row["pass@1"]) == len(row["pass@2"]) == 3
    assert set(found["recall"]) == {"25", "100", "400"} and 3 < found["bits_per_byte"]["text"] < 6     # knows nothing
    assert 0 < found["drafts"]["expected"] < 1 and found["drafts"]["accepted"] <= found["drafts"]["tried"]
    text = evaluate.table(found)
    assert all(word in text for word in ("mathematics", "non-think", "bits per byte, text", "400 words", "MTP drafts"))
