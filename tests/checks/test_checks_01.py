"""Lesson 01's checks name each usual mistake, agree with the package, and the figures draw."""

import random

import matplotlib.pyplot as plt
import pytest
import torch

from minids.data import chat
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer, train
from minids.learn.checks import tokens as checks
from minids.model.packing import Packing
from minids.show import tokens as show


def test_merges_learned_by_hand_are_those_of_the_library():
    sentence = "In the town of Alder there was a mill, and the miller's mule ran round the mill. "
    text = sentence * 3 + "It is banana aaaa aaaa."
    base = train([], 263)
    pieces = [base.encode(piece) for piece in show.pieces(text)]
    learned = []
    for new in range(263, 303):
        pair = checks.best_pair(pieces)
        pieces = [checks.merge(piece, pair, new) for piece in pieces]
        learned.append((*pair, new))
    assert sum(pieces, []) == train([text], 303).encode(text)
    assert [checks.encode(base.encode(piece), learned) for piece in show.pieces(text)] == pieces


def test_the_shipped_merges_applied_in_order_give_the_shipped_tokenizer():
    tokenizer, merges = Tokenizer.load(), show.merges()
    base = train([], 263)
    assert len(merges) == tokenizer.vocab_size - 263
    for text in ("And it came to pass.", "12 + 345 = 357", "na\u00efve \u4f60\u597d"):
        pieces = (checks.encode(base.encode(piece), merges) for piece in show.pieces(text))
        assert sum(pieces, []) == tokenizer.encode(text)


def test_the_mask_is_that_of_packing():
    ids = torch.tensor([[0, 5, 6, 0, 7, 0, 8, 9, 9, 4]])
    packing = Packing.of(ids, 0)
    mask, position = checks.packed_mask(ids[0] == 0)
    same = packing.document[0][:, None] == packing.document[0]
    assert torch.equal(mask, same.tril()) and torch.equal(position, packing.position[0])


def test_the_reply_mask_is_that_of_chat():
    tokenizer = Tokenizer.load()
    messages = [{"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "reasoning": "twice 2", "content": "4"},
                {"role": "user", "content": "And 3 + 3?"},
                {"role": "assistant", "reasoning": "twice 3", "content": "6"}]
    for mode in chat.MODES:
        ids = chat.encode_chat(messages, tokenizer, mode)
        mask = checks.reply_mask(ids, tokenizer.eos_id, tokenizer.id(chat.ASSISTANT))
        assert mask == chat.reply_mask(ids, tokenizer)


def test_the_verifier_agrees_with_the_one_that_judges_tinyworld():
    pool = next(pool for pool in stories.POOLS if "cat" in pool)
    rng = random.Random(0)
    for _ in range(200):
        pieces = ["cat", "dog", "A", "Cat", "catalogue", "or", ".", "\n", "owl"]
        answer = " ".join(rng.choices(pieces, k=5))
        assert checks.verify(answer, pool, "cat") == stories.is_correct(answer, "cat")


@pytest.mark.slow
def test_the_figures_draw():
    line = {"a": {300: 1.0, 600: 2.0}}
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    for figure in (show.plot_compression(line, 600), show.plot_tokenizers({"a": (10, 5, 4)}),
                   show.plot_boxes({"ours": ["a", "_b"]}, "t"),
                   show.plot_masks(mask, mask, [0, 0, 1, 1]), show.plot_windows([6, 3, 7], 4),
                   show.plot_shares({"a": (0.5, 0.6)}, {"a": [3, 40]}),
                   show.plot_zipf({"a": [5, 3, 1]}),
                   show.plot_baselines({"a": {"x": 1.0, "y": 2.0}}),
                   show.plot_surprise(["a"], [1.0], "t")):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
    assert show.ribbon([7, 8], Tokenizer.load(), ["user", "special"], [True, False]).data.isascii()
