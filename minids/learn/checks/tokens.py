"""Checks of lesson 01: merges, bits per byte, packed rows, replies, a verifier (V4 report, sections
4.1 and 5.1.1)."""

import math
import re
from collections import Counter

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


def _across(pieces):
    everything = [i for piece in pieces for i in piece]
    return list(zip(everything, everything[1:]))


def _other_ties(better):
    def wrong(pieces):
        counts = Counter(_inside(pieces))
        most = max(counts.values())
        return better([pair for pair in counts if counts[pair] == most])
    return wrong


def _pieces(rng, ids, lengths):
    return [torch.randint(ids, (n,), generator=rng).tolist() for n in lengths]


def _pair_cases(rng):
    yield "one pair stands out", ([[7, 3, 9], [3, 9, 5], [3, 9]],)
    yield "the same piece many times", ([[4, 2, 8]] * 3 + [[6, 1], [6, 1, 5], [1, 7]],)
    yield "a pair twice in a piece", ([[5, 8, 5, 8, 5, 8], [2, 6], [2, 6], [6, 9]],)
    short = [[9], [1], [9], [1], [9], [1], [4, 2], [4, 2], [2, 9], [1]]
    yield "short pieces: most neighbours belong to two of them", (short,)
    yield "ties", ([[8, 4, 1], [3, 9], [8, 4], [3, 9, 2], [5, 6, 5, 6]],)
    for ids in (3, 5):
        yield "random pieces", (_pieces(rng, ids, (1, 5, 3, 1, 4, 2, 6, 1)),)


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


def _merge_cases(rng):
    yield "one place", ([5, 1, 2, 7], (1, 2), 9)
    yield "two places, one at the end", ([1, 2, 5, 1, 2], (1, 2), 9)
    yield "nothing to merge", ([2, 1, 3], (1, 2), 9)
    yield "a a a", ([4, 4, 4], (4, 4), 9)
    yield "a a a a a b", ([4, 4, 4, 4, 4, 6], (4, 4), 9)
    yield "a single id", ([4], (4, 4), 9)
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


def _in_reverse(ids, merges):
    return encode(ids, merges[::-1])


def _encode_cases(rng):
    merges = [(2, 3, 10), (1, 2, 11), (11, 3, 12), (10, 4, 13), (11, 10, 14), (3, 3, 15),
              (1, 10, 16)]
    yield "no merges", ([1, 2, 3], [])
    yield "one after the other", ([5, 2, 3, 4], merges)
    yield "an early merge takes a part of a later one", ([1, 2, 3], merges)
    yield "two that compete", ([1, 2, 3, 4], merges)
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
                            ("both", "ni hao is \u4f60\u597d.", 6)):
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


def _contains(answer, pool, accepted):
    return accepted in answer


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
            ("inside of other words",
             ("She went on vacation.", "A cat with education and dogma.", "A scatter of bowls.")),
            ("capital letters", ("Cat.", "THE CAT!", "DOG")),
            ("more than one sentence",
             ("A cat. Ben has a dog.", "A dog. No, a cat.", "A cat!\nOr an owl?")),
            ("the same name twice", ("A cat, yes, a cat.",))):
        yield label, (answers, pets, "cat")


CHECKS = [
    Check(
        "tokens.best_pair", best_pair, _pair_cases,
        mistakes={
            "pairs are counted across the border of two pieces: the last id of one and the first "
            "of the next are no pair":
                _best(_across),
            "a piece that occurs several times is counted once: each of its occurrences counts":
                _best(lambda pieces: _inside(set(map(tuple, pieces)))),
            "a pair counts once for each piece, however often it occurs in it":
                _best(_once_a_piece),
            "of several pairs with the highest count this takes the one that it met first; the "
            "rule is the smallest pair, so that the result does not depend on the order of the "
            "text":
                _other_ties(lambda pairs: pairs[0]),
            "of several pairs with the highest count this takes the largest; the rule is the "
            "smallest": _other_ties(max),
            "this is the rarest pair, not the most frequent":
                _best(_inside, lambda n, pair: (n, pair)),
            "the order within a pair is lost: (a, b) and (b, a) are different pairs":
                _best(lambda pieces: [tuple(sorted(pair)) for pair in _inside(pieces)]),
        },
        hints=("zip(piece, piece[1:]) gives the pairs of one piece. A Counter adds them up over "
               "all pieces.",
               "Take the pieces one at a time: a pair may not begin in one and end in the next.",
               "min(counts, key=lambda pair: (-counts[pair], pair)) prefers high counts, then "
               "small pairs."),
    ),
    Check(
        "tokens.merge", merge, _merge_cases,
        mistakes={
            "pairs that overlap are both merged: in a a a the middle a is used twice. After a "
            "merge go on after the pair":
                _overlapping,
            "merging goes from the right: a a a becomes a X where left to right gives X a":
                _from_the_right,
            "only the first place is merged": _once,
            "the last id is lost where it is not part of a pair: look at the loop's end": _short,
            "the second half of a merged pair is still there": _kept,
            "the pair is matched the other way round, (b, a)":
                lambda ids, pair, new: merge(ids, pair[::-1], new),
        },
        hints=("Walk through ids with an index i and build a new list.",
               "Where ids[i] and ids[i + 1] are the pair, append new and go on by 2; otherwise "
               "append ids[i] and go on by 1.",
               "The last id has no neighbour: the loop runs while i < len(ids); ids[i : i + 2] "
               "may be shorter than the pair." ),
    ),
    Check(
        "tokens.encode", encode, _encode_cases,
        mistakes={
            "merges are tried in reverse order, the last learned first": _in_reverse,
            "of the merges that are possible this takes the one learned last; the first learned "
            "has priority": _latest_first,
            "this takes the first pair from the left that has a merge; the merge learned first "
            "has priority, wherever it is":
                _from_the_left,
            "this takes the longest known token at each place; BPE repeats its merges in order, "
            "whatever comes out":
                _longest,
            "each merge is done at one place only": _first_only,
        },
        hints=("Training did merge 1 everywhere, then merge 2 everywhere, and so on. Do the same "
               "to the new piece.",
               "One loop over merges; each time call merge(ids, (a, b), new).",
               "ids = merge(ids, (a, b), new) for each (a, b, new), then return ids."),
    ),
    Check(
        "tokens.bits_per_byte", bits_per_byte, _bits_cases,
        mistakes={
            "the sum is divided by the number of tokens: that depends on the tokenizer; the bytes "
            "do not":
                _bits(size=lambda nats, text: len(nats)),
            "these are nats per byte: divide by ln 2 to have bits": _bits(unit=1.0),
            "divided by characters: a character outside ASCII has 2 to 4 bytes, see text.encode()":
                _bits(size=lambda nats, text: len(text)),
            "the mean loss is divided by the bytes; the text costs the sum over its tokens":
                _bits(total=lambda nats, text: float(nats.mean())),
            "multiplied by ln 2 where it should be divided": _bits(unit=1 / math.log(2)),
            "this is the loss in nats per token, as it was":
                _bits(size=lambda nats, text: len(nats), unit=1.0),
        },
        hints=("The whole text costs nats.sum() nats.", "A nat is 1 / ln 2 = 1.443 bits.",
               "The bytes are len(text.encode()), not len(text)."),
    ),
    Check(
        "tokens.packed_mask", packed_mask, _mask_cases,
        mistakes={
            "the mask is causal only: tokens see the documents before their own":
                _packed(lambda t, document, first: t[:, None] >= t),
            "the mask keeps documents apart, but tokens see their future":
                _packed(lambda t, document, first: _same(document)),
            "rows and columns are swapped: mask[t, s] says whether query t sees key s, so its row "
            "t ends at column t":
                _packed(lambda t, document, first: _same(document) & (t[:, None] <= t)),
            "a token does not see itself":
                _packed(lambda t, document, first: _same(document) & (t[:, None] > t)),
            "the first token of a document is counted to the document before": _packed(_previous),
            "positions are not restarted at each document": _packed(position=lambda t, first: t),
            "positions count from 1": _packed(position=lambda t, first: packed_mask(first)[1] + 1),
            "the mask is causal only, and positions are not restarted: this treats the row as one "
            "document":
                _packed(lambda t, document, first: t[:, None] >= t, lambda t, first: t),
        },
        hints=("first.cumsum(0) gives each token the number of its document.",
               "mask[t, s] has two conditions: the same document, and s <= t. Compare document[:, "
               "None] with document.",
               "The start of a token's document is the largest index up to it where `first` "
               "holds: torch.where, then cummax."),
    ),
    Check(
        "tokens.reply_mask", reply_mask, _reply_cases,
        mistakes={
            "all three faults are still there": _reply(marker=True, opening=True, eos_too=False),
            "the token <Assistant> is still counted: the prompt gives it. And so is the opening "
            "after it":
                _reply(marker=True, opening=True),
            "the opening <think> or </think> right after <Assistant> is still counted: the "
            "prompt gives it":
                _reply(opening=True),
            "the token <Assistant> is counted: the prompt gives it": _reply(marker=True),
            "eos is left out: a model that is never taught eos does not stop":
                _reply(eos_too=False),
            "the opening is still counted, and eos is still left out":
                _reply(opening=True, eos_too=False),
            "the token <Assistant> is still counted, and eos is still left out":
                _reply(marker=True, eos_too=False),
            "only the last reply is counted; every reply is the assistant's":
                _reply(turns=lambda n, ends: len(ends) > 1 and n <= ends[-2]),
            "only the first reply is counted; writing must begin again at the next <Assistant>":
                _reply(turns=lambda n, ends: bool(ends) and n > ends[0]),
            "the prompt is counted, and the reply is not": _inverted,
            "the mask is shifted: it says whether the NEXT id is the assistant's. Here it is "
            "about the id itself":
                _next_targets,
        },
        hints=("Write down a short conversation and, below each id, whether the assistant wrote "
               "it.",
               "Append to the mask before `writing` changes to True, and remember the id before.",
               "Writing begins after the opening, that is when the id BEFORE this one is "
               "<Assistant>; it ends after eos."),
    ),
    Check(
        "tokens.verify", _as_list(verify), _verify_cases,
        mistakes={
            "it accepts a list of answers: naming other words of the pool as well must be wrong, "
            "or a policy lists them all":
                _as_list(_named),
            "it takes the first name and overlooks the others: a list that begins with the right "
            "one is accepted":
                _as_list(_named_first),
            "it accepts the word inside of other words and in any list (`accepted in answer`): "
            "compare whole words":
                _as_list(_contains),
            "it finds names inside of other words, a cat in education: compare whole words":
                _as_list(_substring),
            "it judges all of the text; only the first sentence is the answer":
                _as_list(_all_of_it),
            "it is strict about capital letters: Cat is a cat": _as_list(_case),
            "it wants the word alone: a whole sentence is a right answer, too": _as_list(_equal),
        },
        hints=("First cut off the first sentence, then make a set of its words in lower case.",
               "Which words of the pool are in that set? All of the pool, not only the accepted "
               "one.",
               "Right means that these are exactly the accepted one: no more, no fewer."),
    ),
]
