"""Exams about TinyWorld's stories."""

import numpy as np
import pytest

from minids import generate, load
from minids.evaluate import Item, answered, answered_by_trigram, exam, interval, recall
from minids.ngram import Trigram
from minids.paths import data
from minids.tokenizer import Tokenizer


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


def test_trigram_answers_what_it_has_counted(tokenizer):
    said = "Question: Who is it?\nAnswer: It is me."
    trigram = Trigram(np.array(tokenizer.encode(said * 20)), tokenizer.vocab_size)
    items = [Item("who", "Question: Who is it?\nAnswer:", " It is me.", 0), Item("who", "Who?\nAnswer:", " Nobody.", 0)]
    assert answered_by_trigram(trigram, tokenizer, items) == [True, False]


def test_interval():
    assert interval([True] * 50 + [False] * 50) == pytest.approx((0.5, 0.404, 0.596), abs=1e-3)     # Wilson's, known values
    assert interval([False] * 10) == pytest.approx((0, 0, 0.278), abs=1e-3)
