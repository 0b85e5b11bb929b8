"""Checks of lesson 01: merges, bits per byte, packed rows, replies, a verifier (V4 report, sections
4.1 and 5.1.1)."""

import functools
import math
import re
from collections import Counter
from itertools import combinations

import torch

from minids.learn.exercise import Check

LESSON = "01_tokens_and_data"


# ---- the pair to merge next ----

def best_pair(pieces):
    """The pair (a, b) of neighbours that occurs most often inside the pieces.

    Of several that occur as often, the smallest.
    """
    counts = Counter(pair for piece in pieces for pair in zip(piece, piece[1:]))
    return min(counts, key=lambda pair: (-counts[pair], pair))


def _best(count, rank=lambda n, pair: (-n, pair)):
    def wrong(pieces):
        counts = Counter(count(pieces))
        return min(counts, key=lambda pair: rank(counts[pair], pair))
    return wrong


def _inside(pieces):
    return [pair for piece in pieces for pair in zip(piece, piece[1:])]


def _once_a_piece(pieces):
    return [pair for piece in pieces for pair in set(zip(piece, piece[1:]))]


def _apart(piece):
    """The pairs of neighbours, but in a run a a a the pair (a, a) once: the second overlaps it."""
    pairs = []
    for i, pair in enumerate(zip(piece, piece[1:])):
        if not (pairs and pairs[-1] == (i - 1, pair)):
            pairs.append((i, pair))
    return [pair for _, pair in pairs]


def _across(pieces):
    everything = [i for piece in pieces for i in piece]
    return list(zip(everything, everything[1:]))


def _other_ties(better):
    def wrong(pieces):
        counts = Counter(_inside(pieces))
        most = max(counts.values())
        return better([pair for pair in counts if counts[pair] == most])
    return wrong


def _all_but_the_last(pieces):
    """ValueError, from `min`, where all pieces are short."""
    return [pair for piece in pieces for pair in zip(piece, piece[1:-1])]


def _with_its_count(pieces):
    pair = best_pair(pieces)
    return pair, _inside(pieces).count(pair)


def _first_with_its_count(pieces):
    return Counter(_inside(pieces)).most_common(1)[0]


def _pieces(rng, ids, lengths):
    return [torch.randint(ids, (n,), generator=rng).tolist() for n in lengths]


def _pair_cases(rng):
    yield "one pair stands out", ([[7, 3, 9], [3, 9, 5], [3, 9]],)
    yield "the same piece many times", ([[4, 2, 8]] * 3 + [[6, 1], [6, 1, 5], [1, 7]],)
    yield "a pair twice in a piece", ([[5, 8, 5, 8, 5, 8], [2, 6], [2, 6], [6, 9]],)
    yield "a run of one id: pairs that overlap count", ([[7, 7, 7]] * 2 + [[3, 5]] * 3,)
    short = [[4, 2], [9], [1], [9], [1], [9], [1], [4, 2], [1], [2, 9]]
    yield "short pieces: most neighbours belong to two of them", (short,)
    yield "ties", ([[9, 7], [8, 4, 1], [3, 9], [8, 4], [3, 9, 2], [5, 6, 5, 6]],)
    for ids in (3, 5):
        yield "random pieces", (_pieces(rng, ids, (2, 5, 3, 1, 4, 1, 6, 3)),)


# ---- one merge ----

def merge(ids, pair, new):
    """ids with each (a, b) replaced by new, from left to right; no id is merged twice."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == tuple(pair):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _overlapping(ids, pair, new):
    out = []
    for i, this in enumerate(ids):
        if tuple(ids[i : i + 2]) == tuple(pair):
            out.append(new)
        elif not (i and tuple(ids[i - 1 : i + 1]) == tuple(pair)):
            out.append(this)
    return out


def _from_the_right(ids, pair, new):
    return merge(ids[::-1], pair[::-1], new)[::-1]


def _once(ids, pair, new):
    at = next((i for i in range(len(ids) - 1) if tuple(ids[i : i + 2]) == tuple(pair)), None)
    return list(ids) if at is None else ids[:at] + [new] + ids[at + 2 :]


def _short(ids, pair, new):
    out, i = [], 0
    while i < len(ids) - 1:
        hit = (ids[i], ids[i + 1]) == tuple(pair)
        out.append(new if hit else ids[i])
        i += 2 if hit else 1
    return out


def _kept(ids, pair, new):
    out = []
    for i, this in enumerate(ids):
        out.append(new if tuple(ids[i : i + 2]) == tuple(pair) else this)
    return out


def _last_twice(ids, pair, new):
    """After a loop that ends before the last id, the last id is appended in any case."""
    return _short(ids, pair, new) + [ids[-1]]


def _without_the_others(ids, pair, new):
    return [i for i in merge(ids, pair, new) if i == new]


def _either_order(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        hit = sorted(ids[i : i + 2]) == sorted(pair)
        out.append(new if hit else ids[i])
        i += 2 if hit else 1
    return out


def _in_text(ids, pair, new):
    """The pair is replaced in the text of the ids, where 1 2 is also in 11 25."""
    text = " ".join(map(str, ids)).replace(f"{pair[0]} {pair[1]}", str(new))
    return [int(i) for i in text.split()]


def _past_the_end(ids, pair, new):
    """`merge` with a look at ids[i + 1], also where i is the last place."""
    a, b = pair
    out, i = [], 0
    while i < len(ids):
        if ids[i] == a and ids[i + 1] == b:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _past_the_end_always(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if (ids[i], ids[i + 1]) == tuple(pair):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _merge_cases(rng):
    yield "one place", ([5, 1, 2, 7], (1, 2), 9)
    yield "two places, one at the end", ([1, 2, 5, 1, 2], (1, 2), 9)
    yield "nothing to merge", ([2, 1, 3], (1, 2), 9)
    yield "a a a", ([4, 4, 4], (4, 4), 9)
    yield "a a a a a b", ([4, 4, 4, 4, 4, 6], (4, 4), 9)
    yield "a single id", ([4], (4, 4), 9)
    yield "ids of two digits", ([11, 2, 1, 25, 1, 2, 12, 1], (1, 2), 90)
    yield "the first of the pair is the last id", ([3, 1, 2, 1], (1, 2), 9)
    for pair in ((0, 1), (1, 1)):
        yield "random ids", (torch.randint(2, (15,), generator=rng).tolist(), pair, 9)


# ---- a tokenizer from its merges ----

def encode(ids, merges):
    """Apply merges (a, b, new) to a piece, in the order in which they were learned."""
    for a, b, new in merges:
        ids = merge(ids, (a, b), new)
    return list(ids)


def _latest_first(ids, merges):
    while True:
        rank = {(a, b): (n, new) for n, (a, b, new) in enumerate(merges)}
        pairs = [(rank[pair], pair) for pair in zip(ids, ids[1:]) if pair in rank]
        if not pairs:
            return list(ids)
        (_, new), pair = max(pairs)
        ids = merge(ids, pair, new)


def _from_the_left(ids, merges):
    table, ids = {(a, b): new for a, b, new in merges}, list(ids)
    while True:
        at = next((i for i, pair in enumerate(zip(ids, ids[1:])) if pair in table), None)
        if at is None:
            return ids
        ids[at : at + 2] = [table[ids[at], ids[at + 1]]]


def _longest(ids, merges):
    spelled = {}
    for a, b, new in merges:
        spelled[new] = spelled.get(a, (a,)) + spelled.get(b, (b,))
    known = {parts: new for new, parts in spelled.items()}
    out, i = [], 0
    while i < len(ids):
        n = next((n for n in range(len(ids) - i, 1, -1) if tuple(ids[i : i + n]) in known), 1)
        out.append(known[tuple(ids[i : i + n])] if n > 1 else ids[i])
        i += n
    return out


def _first_only(ids, merges):
    for a, b, new in merges:
        ids = _once(ids, (a, b), new)
    return list(ids)


def _first_merge_alone(ids, merges):
    for a, b, new in merges:
        return merge(ids, (a, b), new)
    return list(ids)


def _last_merge_alone(ids, merges):
    """Each merge is applied to the ids of the beginning."""
    out = list(ids)
    for a, b, new in merges:
        out = merge(ids, (a, b), new)
    return out


def _until_one_fails(ids, merges):
    for a, b, new in merges:
        merged = merge(ids, (a, b), new)
        if merged == list(ids):
            break
        ids = merged
    return list(ids)


def _in_reverse(ids, merges):
    return encode(ids, merges[::-1])


def _encode_cases(rng):
    merges = [(2, 3, 10), (1, 2, 11), (11, 3, 12), (10, 4, 13), (11, 10, 14), (3, 3, 15),
              (1, 10, 16)]
    yield "no merges", ([1, 2, 3], [])
    yield "one after the other", ([5, 2, 3, 4], merges)
    yield "an early merge takes a part of a later one", ([1, 2, 3], merges)
    yield "two that compete", ([1, 2, 3, 4], merges)
    yield "three merges of bytes", ([3, 3, 2, 3, 1, 2, 3, 3], [(2, 3, 10), (1, 2, 11), (3, 3, 15)])
    yield "a place twice", ([2, 3, 5, 2, 3, 1, 2, 1, 2], merges)
    yield "a long piece", ([1, 2, 1, 2, 3, 3, 3, 4, 2, 3], merges)
    yield "random ids", (torch.randint(1, 5, (24,), generator=rng).tolist(), merges)


# ---- units ----

def bits_per_byte(nats, text):
    """nats: one loss for each token of text -> bits per byte of it in UTF-8."""
    return float(nats.sum()) / math.log(2) / len(text.encode("utf-8"))


def _bits(total=None, unit=math.log(2), size=None):
    """`bits_per_byte` with another total, unit, or size of the text."""
    def wrong(nats, text):
        sum_of_nats = total(nats, text) if total else float(nats.sum())
        return sum_of_nats / unit / (size(nats, text) if size else len(text.encode("utf-8")))
    return wrong


def _bits_cases(rng):
    for label, words, n in (("English", "It came to pass in those days.", 9),
                            ("Chinese", "\u4f60\u597d\uff0c\u4e16\u754c", 7),
                            ("both", "ni hao is \u4f60\u597d.", 6),
                            ("a face, four bytes", "na\u00efve \U0001f600", 5)):
        yield label, (torch.rand(n, generator=rng) * 5 + 0.5, words)


# ---- the mask of a packed row ----

def packed_mask(first):
    """The mask of a packed row, T T, and the position of each token in its document, T.

    first: T, True where a document begins. mask[t, s] says whether t may see s.
    """
    document = first.cumsum(0)
    t = torch.arange(len(first))
    mask = (document[:, None] == document) & (t[:, None] >= t)
    start = torch.where(first, t, 0).cummax(0).values
    return mask, t - start


def _packed(mask=None, position=None):
    def wrong(first):
        t = torch.arange(len(first))
        document = first.cumsum(0)
        right, places = packed_mask(first)
        right = mask(t, document, first) if mask else right
        return right, position(t, first) if position else places
    return wrong


def _same(document):
    return document[:, None] == document


def _previous(t, document, first):
    late = document - first.long()      # the first token still counts to the document before
    return (late[:, None] == late) & (t[:, None] >= t)


def _from_a_start(t, first):
    """Positions by a list of starts: before the first one, index -1 takes the last."""
    return t - first.nonzero().flatten()[first.cumsum(0) - 1]


def _mask_cases(rng):
    def row(*lengths):
        first = torch.zeros(sum(lengths), dtype=torch.bool)
        first[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
        return (first,)
    yield "one document", row(5)
    yield "two documents", row(3, 4)
    yield "documents of one token among others", row(2, 1, 1, 5)
    cut = row(3, 6, 2)[0]
    cut[0] = False
    yield "a row that begins inside a document", (cut,)
    first = torch.rand(20, generator=rng) < 0.3
    first[0] = True
    yield "random lengths", (first,)


# ---- who wrote a token ----

def reply_mask(ids, eos, assistant):
    """Whether the assistant wrote each id: a list.

    It wrote eos; it did not write its own marker, nor the opening after that.
    """
    mask, writing, before = [], False, None
    for i in ids:
        mask.append(writing)
        writing = True if before == assistant else writing and i != eos
        before = i
    return mask


def _reply(marker=False, opening=False, eos_too=True, turns=None):
    def wrong(ids, eos, assistant):
        mask = reply_mask(ids, eos, assistant)
        for n, i in enumerate(ids):
            if i == assistant and marker:
                mask[n] = True
            if n and ids[n - 1] == assistant and opening:
                mask[n] = True
            if mask[n] and i == eos and not eos_too:
                mask[n] = False
        if turns is not None:
            ends = [n for n, i in enumerate(ids) if i == eos]
            for n in range(len(ids)):
                if turns(n, ends):
                    mask[n] = False
        return mask
    return wrong


def _never_ends(ids, eos, assistant):
    """Writing begins after the opening and does not end at eos."""
    begun = [n + 2 for n, i in enumerate(ids) if i == assistant]
    return [bool(begun) and n >= begun[0] for n in range(len(ids))]


def _begins_late(ids, eos, assistant):
    """The first token of each reply is left out."""
    mask = reply_mask(ids, eos, assistant)
    return [said and n > 0 and mask[n - 1] for n, said in enumerate(mask)]


def _every_eos(ids, eos, assistant):
    return [said or i == eos for i, said in zip(ids, reply_mask(ids, eos, assistant))]


def _next_targets(ids, eos, assistant):
    return reply_mask(ids, eos, assistant)[1:] + [False]


def _inverted(ids, eos, assistant):
    return [not said for said in reply_mask(ids, eos, assistant)]


def _reply_cases(rng):
    bos, eos, user, assistant, think, end = 0, 1, 3, 4, 5, 6

    def some(n):
        return torch.randint(7, 40, (n,), generator=rng).tolist()
    once = [bos, user, *some(4), assistant, end, *some(3), eos]
    yield "one turn", (once, eos, assistant)
    yield "a question that waits", (once[:8], eos, assistant)
    reasoning = [bos, user, *some(3), assistant, think, *some(4), end, *some(2), eos]
    yield "with reasoning", (reasoning, eos, assistant)
    twice = once + [user, *some(2), assistant, think, *some(3), end, *some(2), eos]
    yield "two turns", (twice, eos, assistant)
    yield "after a system text", ([bos, *some(3), *twice[1:]], eos, assistant)
    empty = [bos, user, *some(2), assistant, end, eos, user, *some(2), assistant, end, *some(2)]
    yield "an empty reply, and one without an end", (empty, eos, assistant)
    document = [bos, *some(4), eos]
    yield "after a document, whose eos ends no reply", (document + twice, eos, assistant)
    other = [9, 8, 7, 5, 6, 3, 4, 2, 8, 0, 5, 1, 6, 2]
    yield "other ids for eos and <Assistant>", (other, 2, 5)


# ---- a verifier ----

def verify(answer, pool, accepted):
    """Whether the first sentence of the answer names the accepted word, and no other of the pool.

    Whole words count, in any case.
    """
    sentence = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    said = set(re.findall(r"\w+", sentence.lower()))
    return {word for word in pool if word.lower() in said} == {accepted.lower()}


def _words(answer):
    return re.findall(r"\w+", re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0].lower())


def _named(answer, pool, accepted):
    return accepted.lower() in _words(answer)


def _named_first(answer, pool, accepted):
    return next((word for word in _words(answer) if word in pool), None) == accepted


def _substring(answer, pool, accepted):
    sentence = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0].lower()
    return [word for word in pool if word in sentence] == [accepted]


def _others_in_words(answer, pool, accepted):
    """The accepted word must be a whole word, and no other may be in the text of the sentence."""
    sentence = " ".join(_words(answer))
    others = [word for word in pool if word != accepted and word in sentence]
    return accepted in _words(answer) and not others


def _contains(answer, pool, accepted):
    return accepted in answer


def _contains_in_any_case(answer, pool, accepted):
    return accepted in answer.lower()


def _one_of_the_pool(answer, pool, accepted):
    return len({word for word in pool if word in _words(answer)}) == 1


def _never(answer, pool, accepted):
    """The accepted word must be named, and no word of the pool, which holds it."""
    return accepted in _words(answer) and not any(word in _words(answer) for word in pool)


def _once_only(answer, pool, accepted):
    return [word for word in _words(answer) if word in pool] == [accepted]


def _first_lines(ends):
    """`verify` for sentences that end at one of these signs only."""
    def wrong(answer, pool, accepted):
        said = set(re.findall(r"\w+", re.split(ends, answer.strip())[0].lower()))
        return {word for word in pool if word in said} == {accepted}
    return wrong


def _by_spaces(answer, pool, accepted):
    """Words are what stands between spaces: a comma stays on its word."""
    said = set(re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0].lower().split())
    return {word for word in pool if word in said} == {accepted}


def _all_of_it(answer, pool, accepted):
    said = set(re.findall(r"\w+", answer.lower()))
    return {word for word in pool if word in said} == {accepted}


def _case(answer, pool, accepted):
    said = set(re.findall(r"\w+", re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]))
    return {word for word in pool if word in said} == {accepted}


def _equal(answer, pool, accepted):
    return answer.strip().rstrip(".").lower() == accepted


def _as_list(function):
    """A verdict for each of several answers, as 0 and 1."""
    @functools.wraps(function)
    def judged(answers, pool, accepted):
        return [int(bool(function(answer, pool, accepted))) for answer in answers]
    return judged


def _verify_cases(rng):
    pets = ("cat", "dog", "goat", "owl")
    for label, answers in (
            ("right and wrong sentences", ("Mira has a cat.", "Mira has a dog.", "It is a goat.")),
            ("a single word", ("cat", "owl")),
            ("nothing, or nothing of the kind", ("", "I do not know.", "...")),
            ("an answer with more than one name",
             ("A cat or a dog.", "dog cat goat owl", "cat dog goat owl", "cat, not dog")),
            ("a comma or another sign at the word",
             ("A cat, I think.", "a cat and a dog,", "The animal: (cat).", "cat; owl",
              "\"Cat\", he said.")),
            ("inside of other words",
             ("She went on vacation.", "A cat with education and dogma.", "A scatter of bowls.")),
            ("capital letters", ("Cat.", "THE CAT!", "DOG", "A Cat or a Dog")),
            ("more than one sentence",
             ("A cat. Ben has a dog.", "A dog. No, a cat.", "I think. A cat.")),
            ("a sentence that ends at ! or ?",
             ("A cat! Or an owl?", "A cat? No, a dog.", "A dog! A cat.")),
            ("a sentence that ends at a new line",
             ("Mira has a cat\nand a dog.", "A dog\nA cat.", "A cat!\nOr an owl?")),
            ("the same name twice", ("A cat, yes, a cat.",))):
        yield label, (answers, pets, "cat")
    yield "another word, another pool", (
        ("In the mill.", "The barn, not the mill.", "A cat in the mill."), ("barn", "mill"), "mill")


CHECKS = [
    Check(
        "tokens.best_pair", best_pair, _pair_cases,
        mistakes={
            "you count pairs across the border of two pieces; the last id of one piece and the "
            "first of the next are no pair":
                _best(_across),
            "you count a piece that occurs several times once; each of its occurrences should "
            "count": _best(lambda pieces: _inside(set(map(tuple, pieces)))),
            "you count a pair once for each piece; it should count as often as it occurs in it":
                _best(_once_a_piece),
            "in a run a a a you count the pair (a, a) once; it occurs twice, at both places":
                _best(lambda pieces: [pair for piece in pieces for pair in _apart(piece)]),
            "of several pairs with the highest count you take the one that comes first in the "
            "text; the rule is the smallest pair, so that the order of the text does not matter":
                _other_ties(lambda pairs: pairs[0]),
            "of several pairs with the highest count you take the one that comes last in the "
            "text; the rule is the smallest pair": _other_ties(lambda pairs: pairs[-1]),
            "of several pairs with the highest count you take the largest; the rule is the "
            "smallest": _other_ties(max),
            "you return the pair together with its count; return the pair (a, b) alone":
                _with_its_count,
            "you return the pair together with its count, and of several with the highest count "
            "the first in the text; return the smallest, the pair (a, b) alone":
                _first_with_its_count,
            "you return how often the pair occurs; return the pair (a, b)":
                lambda pieces: max(Counter(_inside(pieces)).values()),
            "you take the rarest pair; it should be the most frequent":
                _best(_inside, lambda n, pair: (n, pair)),
            "you take the rarest pair, the first one in the text; it should be the most frequent, "
            "and the smallest of several": _best(_inside, lambda n, pair: n),
            "you take the smallest pair of all; it should be the most frequent, and the smallest "
            "only where several are": _best(_inside, lambda n, pair: pair),
            "you lose the order within a pair; (a, b) and (b, a) are different pairs":
                _best(lambda pieces: [tuple(sorted(pair)) for pair in _inside(pieces)]),
            "you count all pairs of ids in a piece; only neighbours are pairs here":
                _best(lambda pieces: [p for piece in pieces for p in combinations(piece, 2)]),
            "you cut the pieces into pairs, every id once; each id makes a pair with the one "
            "before it and with the one after it":
                _best(lambda pieces: [p for piece in pieces for p in zip(piece[::2], piece[1::2])]),
            "you leave out the last pair of each piece; a piece of n ids has n - 1 pairs":
                _best(_all_but_the_last),
            "you count the last piece only; is the counter made anew in the loop? It should add up "
            "over all pieces": _best(lambda pieces: _inside(pieces[-1:])),
            "you count the first piece only; is your `return` inside the loop? Add up all pieces":
                _best(lambda pieces: _inside(pieces[:1])),
        },
        hints=("zip(piece, piece[1:]) gives the pairs of one piece. A Counter adds them up over "
               "all pieces.",
               "Take the pieces one at a time: a pair may not begin in one and end in the next.",
               "min(counts, key=lambda pair: (-counts[pair], pair)) prefers high counts, then "
               "small pairs."),
        gradient=False,
    ),
    Check(
        "tokens.merge", merge, _merge_cases,
        mistakes={
            "you merge pairs that overlap: in a a a you use the middle a twice; after a merge, go "
            "on after the pair":
                _overlapping,
            "you merge from the right, so a a a becomes a X; from left to right it should become "
            "X a":
                _from_the_right,
            "you merge the first place only; every place should be merged": _once,
            "you lose the last id where it is not part of a pair; your loop should reach it":
                _short,
            "you append the last id in any case; it should not be there again after a merge at "
            "the end": _last_twice,
            "you look at ids[i + 1] where i may be the last place, which has no neighbour; the "
            "last id should be copied as it is": _past_the_end,
            "you look at ids[i + 1] at every place, and the last one has no neighbour; the last "
            "id should be copied as it is": _past_the_end_always,
            "you keep the second half of a merged pair; after a merge, go on by 2": _kept,
            "you match the pair the other way round, as (b, a); a should come first":
                lambda ids, pair, new: merge(ids, pair[::-1], new),
            "you merge (b, a) as well; only a followed by b is the pair": _either_order,
            "you keep the new ids only; all other ids should stay where they are":
                _without_the_others,
            "you return the ids as they were (a list never equals a tuple); each place of the pair "
            "should become the new id":
                lambda ids, pair, new: list(ids),
            "you replace digits in a text, and 1 2 is also in 11 25; compare whole ids": _in_text,
        },
        hints=("Walk through ids with an index i and build a new list.",
               "Where ids[i] and ids[i + 1] are the pair, append new and go on by 2; otherwise "
               "append ids[i] and go on by 1.",
               "The last id has no neighbour: the loop runs while i < len(ids); ids[i : i + 2] "
               "may be shorter than the pair." ),
        gradient=False,
    ),
    Check(
        "tokens.encode", encode, _encode_cases,
        mistakes={
            "you do the merges in reverse order; the one learned first should come first":
                _in_reverse,
            "of the merges that are possible you take the one learned last; the one learned first "
            "should have priority": _latest_first,
            "you take the first pair from the left that has a merge; the merge learned first "
            "should have priority, wherever it is":
                _from_the_left,
            "you take the longest known token at each place; BPE repeats its merges in order, "
            "whatever comes out":
                _longest,
            "you do each merge at one place only; it should be done at every place": _first_only,
            "you leave out the last merge; all should be done":
                lambda ids, merges: encode(ids, merges[:-1]),
            "you leave out the first merge; all should be done":
                lambda ids, merges: encode(ids, merges[1:]),
            "you look for (b, a); the pair of a merge is (a, b)":
                lambda ids, merges: encode(ids, [(b, a, new) for a, b, new in merges]),
            "you stop after the first merge; is your `return` inside the loop? All merges should "
            "be done": _first_merge_alone,
            "you start again from the bytes with each merge; it should go on with the ids that "
            "the merges before have made": _last_merge_alone,
            "you stop at the first merge that finds nothing; later merges may still find "
            "something": _until_one_fails,
            "you return the ids as they were; the result of each merge() should replace them":
                lambda ids, merges: list(ids),
        },
        hints=("Training did merge 1 everywhere, then merge 2 everywhere, and so on. Do the same "
               "to the new piece.",
               "One loop over merges; each time call merge(ids, (a, b), new).",
               "ids = merge(ids, (a, b), new) for each (a, b, new), then return ids."),
        gradient=False,
    ),
    Check(
        "tokens.bits_per_byte", bits_per_byte, _bits_cases,
        mistakes={
            "you divide the sum by the number of tokens, which depends on the tokenizer; divide by "
            "the number of bytes":
                _bits(size=lambda nats, text: len(nats)),
            "you return nats per byte; divide by ln 2 to have bits": _bits(unit=1.0),
            "you divide by the number of characters, but one outside ASCII has 2 to 4 bytes; "
            "divide by the number of bytes, see text.encode()":
                _bits(size=lambda nats, text: len(text)),
            "you return nats per character; it should be bits per byte":
                _bits(size=lambda nats, text: len(text), unit=1.0),
            "you divide the mean loss by the bytes; the text costs the sum over its tokens":
                _bits(total=lambda nats, text: float(nats.mean())),
            "you divide the mean loss by the bytes, in nats; the text costs the sum, and a bit is "
            "ln 2 nats": _bits(total=lambda nats, text: float(nats.mean()), unit=1.0),
            "you multiply by ln 2; it should be divided": _bits(unit=1 / math.log(2)),
            "you return the loss in nats per token, as it was; it should be bits per byte":
                _bits(size=lambda nats, text: len(nats), unit=1.0),
            "you return the bits of the whole text; divide them by its bytes":
                _bits(size=lambda nats, text: 1),
            "you take the log2 of the nats; a number of nats becomes bits when divided by ln 2":
                _bits(total=lambda nats, text: math.log2(float(nats.sum())), unit=1.0),
            "you divide by 2; a bit is ln 2 nats": _bits(unit=2.0),
            "you divide by ln 10; a bit is ln 2 nats": _bits(unit=math.log(10)),
            "you divide by the number of words; divide by the number of bytes":
                _bits(size=lambda nats, text: len(text.split())),
            "you return the perplexity of a token; it should be bits per byte":
                lambda nats, text: math.exp(float(nats.mean())),
            "you count eight bits for each byte of the text; divide by the number of bytes":
                _bits(size=lambda nats, text: 8 * len(text.encode())),
            "your fraction is upside down: bytes per bit; it should be bits per byte":
                lambda nats, text: 1 / bits_per_byte(nats, text),
        },
        hints=("The whole text costs nats.sum() nats.", "A nat is 1 / ln 2 = 1.443 bits.",
               "The bytes are len(text.encode()), not len(text)."),
        gradient=False,
    ),
    Check(
        "tokens.packed_mask", packed_mask, _mask_cases,
        mistakes={
            "your mask is causal only, so tokens see the documents before; they should see their "
            "own alone":
                _packed(lambda t, document, first: t[:, None] >= t),
            "your mask keeps documents apart, but tokens see their future; t should see s <= t "
            "only":
                _packed(lambda t, document, first: _same(document)),
            "you let a token see what is in its document OR before it; both conditions should "
            "hold": _packed(lambda t, document, first: _same(document) | (t[:, None] >= t)),
            "your mask has rows and columns exchanged; mask[t, s] should say whether query t sees "
            "key s, so that row t ends at column t":
                _packed(lambda t, document, first: _same(document) & (t[:, None] <= t)),
            "your mask leaves the diagonal out; a token should see itself":
                _packed(lambda t, document, first: _same(document) & (t[:, None] > t)),
            "your mask is True where a token does not see; it should be True where it does":
                lambda first: (~packed_mask(first)[0], packed_mask(first)[1]),
            "you count the first token of a document to the document before; it belongs to its own":
                _packed(_previous),
            "your positions run on; they should start again from 0 at each document":
                _packed(position=lambda t, first: t),
            "your positions count from 1; the first token of a document should have 0":
                _packed(position=lambda t, first: packed_mask(first)[1] + 1),
            "your positions are the numbers of the documents; count the tokens within a document":
                _packed(position=lambda t, first: first.cumsum(0)),
            "your positions are the numbers of the documents, from 0; count the tokens within a "
            "document": _packed(position=lambda t, first: first.cumsum(0) - 1),
            "your positions are where a token's document starts; subtract this start from t":
                _packed(position=lambda t, first: t - packed_mask(first)[1]),
            "your positions skip a step at each document and run on; they should start again from "
            "0": _packed(position=lambda t, first: (~first).cumsum(0)),
            "where a row begins inside a document, you take the start of the last document (index "
            "-1); there positions should count from the row's start":
                _packed(position=_from_a_start),
            "your mask is causal only and your positions run on: you treat the row as one "
            "document; it has several":
                _packed(lambda t, document, first: t[:, None] >= t, lambda t, first: t),
            "you return the position first; return the mask, then the position":
                lambda first: packed_mask(first)[::-1],
        },
        hints=("first.cumsum(0) gives each token the number of its document.",
               "mask[t, s] has two conditions: the same document, and s <= t. Compare document[:, "
               "None] with document.",
               "The start of a token's document is the largest index up to it where `first` "
               "holds: torch.where, then cummax."),
        gradient=False,
    ),
    Check(
        "tokens.reply_mask", reply_mask, _reply_cases,
        mistakes={
            "all three faults are still there; look at who writes <Assistant>, the opening, and "
            "eos": _reply(marker=True, opening=True, eos_too=False),
            "you still count the token <Assistant> and the opening after it; the prompt gives both":
                _reply(marker=True, opening=True),
            "you still count the opening <think> or </think> right after <Assistant>; the prompt "
            "gives it":
                _reply(opening=True),
            "you count the token <Assistant>; the prompt gives it": _reply(marker=True),
            "you leave eos out; it should count, since a model that is never taught eos does not "
            "stop":
                _reply(eos_too=False),
            "you still count the opening and still leave eos out; the prompt gives the opening, "
            "the assistant writes eos":
                _reply(opening=True, eos_too=False),
            "you still count the token <Assistant> and still leave eos out; the prompt gives "
            "<Assistant>, the assistant writes eos":
                _reply(marker=True, eos_too=False),
            "you count the last reply only; every reply is the assistant's":
                _reply(turns=lambda n, ends: len(ends) > 1 and n <= ends[-2]),
            "you count the first reply only; writing should begin again at the next <Assistant>":
                _reply(turns=lambda n, ends: bool(ends) and n > ends[0]),
            "you count every eos; one that ends a document, or comes before the reply, is not the "
            "assistant's": _every_eos,
            "you go on counting after eos; what the user writes next should not count":
                _never_ends,
            "you leave out the first token of each reply; writing should begin right after the "
            "opening": _begins_late,
            "you count the prompt and leave the reply out; it should be the other way round":
                _inverted,
            "your mask is shifted: it says whether the NEXT id is the assistant's; it should be "
            "about the id itself":
                _next_targets,
        },
        hints=("Write down a short conversation and, below each id, whether the assistant wrote "
               "it.",
               "Append to the mask before `writing` changes to True, and remember the id before.",
               "Writing begins after the opening, that is when the id BEFORE this one is "
               "<Assistant>; it ends after eos."),
        gradient=False,
    ),
    Check(
        "tokens.verify", _as_list(verify), _verify_cases,
        mistakes={
            "you accept a list of answers; an answer that names other words of the pool as well "
            "should be wrong, or a policy lists them all":
                _as_list(_named),
            "you take the first name and overlook the others; a list that begins with the right "
            "one should be wrong":
                _as_list(_named_first),
            "you look for the word anywhere in the text (`accepted in answer`), so a list of all "
            "words passes, and education holds a cat; compare the whole words of the first "
            "sentence":
                _as_list(_contains),
            "you look for the word anywhere in the text, in any case, so a list of all words "
            "passes, and education holds a cat; compare the whole words of the first sentence":
                _as_list(_contains_in_any_case),
            "you find names inside of other words, a cat in education; compare whole words":
                _as_list(_substring),
            "you find other names inside of other words, a dog in dogma; compare whole words":
                _as_list(_others_in_words),
            "you judge all of the text; only the first sentence is the answer":
                _as_list(_all_of_it),
            "your first sentence goes on after ! and ?; they end a sentence, as a new line does":
                _as_list(_first_lines(r"[.\n]")),
            "your first sentence ends at a full stop only; !, ? and a new line should end it too":
                _as_list(_first_lines(r"[.]")),
            "your first sentence goes on over a new line; a new line should end it":
                _as_list(_first_lines(r"[.!?]")),
            "you cut words at spaces only, so that a comma stays on its word; `cat,` is a cat":
                _as_list(_by_spaces),
            "you are strict about capital letters; Cat is a cat": _as_list(_case),
            "you want the word alone; a whole sentence is a right answer too": _as_list(_equal),
            "you accept any answer that names one word of the pool; it should be the accepted one":
                _as_list(_one_of_the_pool),
            "you reject the accepted word where it is said twice; only OTHER words of the pool "
            "make an answer wrong": _as_list(_once_only),
            "no answer is ever right: the pool holds the accepted word too; only OTHER words of "
            "the pool make an answer wrong": _as_list(_never),
            "your verdicts are the wrong way round; True should mean that the answer is right":
                _as_list(lambda *arguments: not verify(*arguments)),
        },
        hints=("First cut off the first sentence, then make a set of its words in lower case.",
               "Which words of the pool are in that set? All of the pool, not only the accepted "
               "one.",
               "Right means that these are exactly the accepted one: no more, no fewer."),
        gradient=False,
    ),
]
