"""Lesson 01's checks name each usual mistake, agree with the package, and the figures draw."""

import math
import random
import re
import string
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minids.data import chat
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer, train
from minids.learn.checks import tokens as checks
from minids.learn.judge import check
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


def pair_by_sorting(pieces):
    counts = defaultdict(int)
    for piece in pieces:
        for n in range(len(piece) - 1):
            counts[piece[n], piece[n + 1]] += 1
    ordered = sorted(counts.items(), key=lambda item: item[0])
    return list(max(ordered, key=lambda item: item[1])[0])      # max takes the first of equals


def merge_with_a_flag(ids, pair, new):
    out, skip = [], False
    for n in range(len(ids)):
        if skip:
            skip = False
        elif n + 1 < len(ids) and ids[n] == pair[0] and ids[n + 1] == pair[1]:
            out, skip = out + [new], True
        else:
            out = out + [ids[n]]
    return out


def merge_by_popping(ids, pair, new):
    rest, out = list(ids), []
    while rest:
        out.append(rest.pop(0))
        if rest and (out[-1], rest[0]) == tuple(pair):
            rest.pop(0)
            out[-1] = new
    return out


def encode_until_nothing_changes(ids, merges):
    ids = list(ids)
    while True:
        before = ids
        for a, b, new in merges:
            ids = merge_by_popping(ids, (a, b), new)
        if ids == before:
            return ids


def encode_by_rank(ids, merges):
    """Of the merges that are possible, always the one learned first."""
    while True:
        possible = [n for n, (a, b, _) in enumerate(merges) if (a, b) in zip(ids, ids[1:])]
        if not possible:
            return tuple(ids)
        a, b, new = merges[possible[0]]
        ids = merge_with_a_flag(ids, (a, b), new)


def mask_by_loops(first):
    T, document, position = len(first), [], []
    for n, new in enumerate(first.tolist()):
        document.append((document[-1] if document else 0) + int(new))
        position.append(0 if new or n == 0 else position[-1] + 1)
    mask = [[document[t] == document[s] and s <= t for s in range(T)] for t in range(T)]
    return [torch.tensor(mask), torch.tensor(position)]


def reply_by_index(ids, eos, assistant):
    mask, n = [False] * len(ids), 0
    while n < len(ids):
        if ids[n] == assistant:
            n += 2
            while n < len(ids):
                mask[n] = True
                n += 1
                if ids[n - 1] == eos:
                    break
        else:
            n += 1
    return mask


def verify_by_stripping(answer, pool, accepted):
    words = [word.strip(string.punctuation).lower()
             for word in re.split("[.!?\n]", answer)[0].split()]
    return accepted in words and not any(other in words for other in pool if other != accepted)


def verify_by_patterns(answer, pool, accepted):
    sentence = re.match(r"[^.!?\n]*", answer).group()
    return [w for w in pool if re.search(rf"\b{w}\b", sentence, re.I)] == [accepted]


def for_many(function):
    return lambda answers, pool, accepted: [int(bool(function(a, pool, accepted))) for a in answers]


@pytest.mark.parametrize("name, attempt", [
    ("tokens.best_pair", pair_by_sorting), ("tokens.merge", merge_with_a_flag),
    ("tokens.merge", merge_by_popping), ("tokens.encode", encode_until_nothing_changes),
    ("tokens.encode", encode_by_rank),
    ("tokens.bits_per_byte", lambda nats, w: (nats / math.log(2)).sum() / len(bytes(w, "utf-8"))),
    ("tokens.bits_per_byte", lambda nats, w: np.log2(np.e) * nats.double().sum().item()
     / sum(len(letter.encode()) for letter in w)),
    ("tokens.bits_per_byte", lambda nats, w: nats.mean() * len(nats) / np.log(2) / len(w.encode())),
    ("tokens.packed_mask", mask_by_loops), ("tokens.reply_mask", reply_by_index),
    ("tokens.reply_mask", lambda *args: tuple(int(said) for said in reply_by_index(*args))),
    ("tokens.verify", for_many(verify_by_stripping)),
    ("tokens.verify", for_many(verify_by_patterns)),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def counted(pieces):
    counts = Counter()
    for piece in pieces:
        counts.update(zip(piece, piece[1:]))
    return counts


def joined(pieces):
    ids = sum(pieces, [])
    counts = Counter(zip(ids, ids[1:]))
    return min(counts, key=lambda pair: (-counts[pair], pair))


def counter_made_anew(pieces):
    for piece in pieces:
        counts = Counter(zip(piece, piece[1:]))
    return min(counts, key=lambda pair: (-counts[pair], pair))


def merge_in_a_for_loop(ids, pair, new):
    out = []
    for n in range(len(ids)):
        if n < len(ids) - 1 and (ids[n], ids[n + 1]) == pair:
            out.append(new)
        else:
            out.append(ids[n])
    return out


def merge_that_looks_ahead(ids, pair, new):
    out, n = [], 0
    while n < len(ids):
        if ids[n] == pair[0] and ids[n + 1] == pair[1]:
            out, n = out + [new], n + 2
        else:
            out, n = out + [ids[n]], n + 1
    return out


def merge_to_the_last_but_one(ids, pair, new):
    out, n = [], 0
    while n < len(ids) - 1:
        if (ids[n], ids[n + 1]) == pair:
            out, n = out + [new], n + 2
        else:
            out, n = out + [ids[n]], n + 1
    return out


def merge_in_text(ids, pair, new):
    text = " ".join(map(str, ids)).replace(" ".join(map(str, pair)), str(new))
    return list(map(int, text.split()))


def encode_once(ids, merges):
    for a, b, new in merges:
        ids = merge_by_popping(ids, (a, b), new)
        return ids
    return ids


def encode_without_a_result(ids, merges):
    for a, b, new in merges:
        merge_by_popping(ids, (a, b), new)
    return ids


def encode_from_the_left(ids, merges):
    known, ids, n = {(a, b): new for a, b, new in merges}, list(ids), 0
    while n < len(ids) - 1:
        if (ids[n], ids[n + 1]) in known:
            ids[n:n + 2] = [known[ids[n], ids[n + 1]]]
            n = 0
        else:
            n += 1
    return ids


def mask_with(mask=None, position=None):
    def attempt(first):
        t, document = torch.arange(len(first)), first.cumsum(0)
        right = (document[:, None] == document) & (t[:, None] >= t)
        places = torch.tensor([0] * len(first))
        for n in range(1, len(first)):
            places[n] = 0 if first[n] else places[n - 1] + 1
        return (mask(t, document) if mask else right), (position(first) if position else places)
    return attempt


def colleagues_mask(ids, eos, assistant):
    mask, writing = [], False
    for i in ids:
        if i == assistant:
            writing = True
        if i == eos:
            writing = False
        mask.append(writing)
    return mask


def colleagues_mask_appended_first(ids, eos, assistant):
    mask, writing = [], False
    for i in ids:
        mask.append(writing)
        if i == assistant:
            writing = True
        if i == eos:
            writing = False
    return mask


def colleagues_mask_with_eos(ids, eos, assistant):
    mask, writing = [], False
    for i in ids:
        if i == assistant:
            writing = True
        mask.append(writing)
        if i == eos:
            writing = False
    return mask


def said(answer, ends=r"[.!?\n]"):
    return re.split(ends, answer.strip())[0].lower()


def words_at_spaces(answer, pool, accepted):
    words = said(answer).split()
    return accepted in words and not any(w in words for w in pool if w != accepted)


def over_new_lines(answer, pool, accepted):
    words = re.findall(r"\w+", said(answer, "[.!?]"))
    return accepted in words and not any(w in words for w in pool if w != accepted)


def full_stops_alone(answer, pool, accepted):
    words = re.findall(r"\w+", answer.split(".")[0].lower())
    return accepted in words and not any(w in words for w in pool if w != accepted)


def with_capitals(answer, pool, accepted):
    words = re.findall(r"[A-Za-z]+", re.split(r"[.!?\n]", answer)[0])
    return accepted in words and not any(w in words for w in pool if w != accepted)


@pytest.mark.parametrize("name, attempt, words", [
    ("tokens.best_pair", joined, "across the border"),
    ("tokens.best_pair", lambda p: counted(p).most_common(1)[0][0], "first in the text"),
    ("tokens.best_pair", lambda p: max(counted(p), key=counted(p).get), "first in the text"),
    ("tokens.best_pair", lambda p: counted(p).most_common(1)[0], "together with its count"),
    ("tokens.best_pair", lambda p: max(counted(p), key=lambda k: (counted(p)[k], k)),
     "you take the largest"),
    ("tokens.best_pair", counter_made_anew, "the last piece only"),
    ("tokens.best_pair", lambda p: min(counted(p), key=lambda k: (counted(p)[k], k)),
     "the rarest pair"),
    ("tokens.merge", merge_in_a_for_loop, "keep the second half"),
    ("tokens.merge", merge_that_looks_ahead, "has no neighbour"),
    ("tokens.merge", merge_to_the_last_but_one, "lose the last id"),
    ("tokens.merge", merge_in_text, "compare whole ids"),
    ("tokens.merge", lambda ids, pair, new: merge_by_popping(ids, pair[::-1], new),
     "the other way round"),
    ("tokens.encode", encode_once, "stop after the first merge"),
    ("tokens.encode", encode_without_a_result, "the result of each merge() should replace them"),
    ("tokens.encode", lambda ids, m: encode_by_rank(ids, m[::-1]), "Likely: of the merges"),
    ("tokens.encode", encode_from_the_left, "the first pair from the left"),
    ("tokens.bits_per_byte", lambda n, w: n.sum() / len(w.encode()), "nats per byte"),
    ("tokens.bits_per_byte", lambda n, w: n.sum() / math.log(2) / len(w), "number of characters"),
    ("tokens.bits_per_byte", lambda n, w: n.mean() / math.log(2), "divide the sum by the number"),
    ("tokens.bits_per_byte", lambda n, w: n.mean() / math.log(2) / len(w.encode()),
     "divide the mean loss"),
    ("tokens.bits_per_byte", lambda n, w: n.sum() * math.log(2) / len(w.encode()), "by ln 2"),
    ("tokens.bits_per_byte", lambda n, w: n.sum() / math.log(2), "bits of the whole text"),
    ("tokens.bits_per_byte", lambda n, w: n.sum() / len(w), "nats per character"),
    ("tokens.packed_mask", mask_with(lambda t, d: t[:, None] >= t), "causal only"),
    ("tokens.packed_mask", mask_with(lambda t, d: d[:, None] == d), "see their future"),
    ("tokens.packed_mask", mask_with(lambda t, d: (d[:, None] == d) & (t >= t[:, None])),
     "rows and columns exchanged"),
    ("tokens.packed_mask", mask_with(lambda t, d: (d[:, None] == d) & (t[:, None] > t)),
     "leaves the diagonal out"),
    ("tokens.packed_mask", mask_with(None, lambda f: torch.arange(len(f))), "positions run on"),
    ("tokens.packed_mask", mask_with(None, lambda f: f.cumsum(0) - 1), "numbers of the documents"),
    ("tokens.packed_mask", lambda first: mask_by_loops(first)[::-1], "return the position first"),
    ("tokens.packed_mask",
     mask_with(None, lambda f: torch.arange(len(f)) - f.nonzero()[:, 0][f.cumsum(0) - 1]),
     "begins inside a document"),
    ("tokens.best_pair", lambda pieces: min(Counter(pairs := [
        (piece[i], piece[i + 1]) for piece in pieces for i in range(len(piece) - 2)]),
        key=lambda pair: (-pairs.count(pair), pair)), "Likely: you leave out the last pair"),
    ("tokens.best_pair", lambda pieces: min(
        Counter(pair for piece in pieces for pair in zip(piece, piece[1:])).items(),
        key=lambda item: (-item[1], item[0])), "Likely: you return the pair together with its"),
    ("tokens.reply_mask", lambda ids, eos, assistant: [said or i == eos for i, said in zip(
        ids, reply_by_index(ids, eos, assistant))], "you count every eos"),
    ("tokens.reply_mask", colleagues_mask, "all three faults"),
    ("tokens.reply_mask", colleagues_mask_appended_first, "the opening <think> or </think>"),
    ("tokens.reply_mask", colleagues_mask_with_eos, "still count the token <Assistant> and the op"),
    ("tokens.verify", for_many(words_at_spaces), "cut words at spaces only"),
    ("tokens.verify", for_many(over_new_lines), "over a new line"),
    ("tokens.verify", for_many(full_stops_alone), "at a full stop only"),
    ("tokens.verify", for_many(with_capitals), "capital letters"),
    ("tokens.verify", for_many(lambda a, pool, accepted: accepted in a.lower()), "in any case"),
    ("tokens.verify", for_many(lambda a, pool, accepted: accepted in a), "accepted in answer"),
    ("tokens.verify", for_many(lambda a, pool, accepted: accepted in re.findall(r"\w+", said(a))),
     "accept a list of answers"),
    ("tokens.verify",
     for_many(lambda a, pool, accepted: [w for w in pool if w in said(a)] == [accepted]),
     "inside of other words"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


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
