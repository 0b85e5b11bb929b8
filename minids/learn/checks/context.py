"""Checks of lesson 05: decode state and the cost of context (V4 report, sections 2.3.4, 3.6.1)."""

import operator
from functools import partial
from itertools import combinations

import torch

from minids import cost
from minids.config import Config
from minids.learn.exercise import Check

LESSON = "05_million_tokens"


# ---- the ring ----

def ring(seen, w, last=None, empty=-1):
    """The position that each of w slots holds after `seen` tokens, -1 if none: w, int64."""
    last = seen - 1 if last is None else last
    held = last - (last - torch.arange(w)) % w
    return torch.where(held < 0, empty, held)


def _by_age(seen, w):
    """The positions that are held, the oldest first: w or fewer."""
    return torch.arange(max(seen - w, 0), max(seen, 0))


def _filled(held, w, front=False):
    """Positions, filled up to w with -1."""
    missing = torch.full((w - len(held),), -1)
    return torch.cat([missing, held] if front else [held, missing])


def _every_slot_of_this_round(seen, w):
    return seen // w * w + torch.arange(w)


def _only_this_round(seen, w):
    held = _every_slot_of_this_round(seen, w)
    return torch.where(held < seen, held, -1)


def _slot_by_position(seen, w):
    slots = torch.full((w,), -1)
    for p in range(seen):
        slots[p] = p                       # out of range where the ring should wrap around
    return slots


def _ring_cases(rng):
    yield "half full", (3, 5)
    yield "just full", (5, 5)
    yield "one token overwrites another", (6, 5)
    yield "three times round", (23, 7)
    yield "twice round, exactly", (12, 6)
    yield "nothing seen", (0, 4)


# ---- what a compressor carries from call to call ----

def feed(new, waiting, before, front=None, left=None, first=None, keep=None, join=None,
         count=None):
    """Slots of the windows that are now complete, the tokens that wait, and the last a-half.

    new: T 2c; waiting: r 2c with r < m; before: m c -> n 2m c, r 2c, m c. The keyword arguments
    make mistakes.
    """
    m = len(before)
    t = torch.cat([waiting, new]) if front is None else front(waiting, new)
    n = len(t) // m if count is None else count(new, m)
    a, b = t[:n * m].reshape(n, m, new.shape[1]).chunk(2, -1)
    start = before if first is None else first(before)
    slots = (_join if join is None else join)(start, a, b)
    rest = t[n * m:] if left is None else left(t, n * m, waiting, new)
    a_half = (a[-1] if n else before) if keep is None else keep(a, b, before)
    return slots, rest, a_half


def _shifted(start, a):
    """The a-half of the window before, for each window: n m c."""
    return torch.cat([start[None], a])[:len(a)]


def _join(start, a, b):
    """Each window's own b-half, after the a-half of the window before: n 2m c."""
    return torch.cat([_shifted(start, a), b], 1)


def _all_but_whole_windows(t, full, waiting, new):
    """What waits, by an index from the end, which is 0 where nothing waits."""
    return t[-(len(t) - full):]


def _ambiguous(new, waiting, before):
    """A reshape with -1, which torch refuses where there are no windows."""
    t = torch.cat([waiting, new])
    t[:len(t) // len(before) * len(before)].reshape(len(t) // len(before), len(before), -1)
    return feed(new, waiting, before)


def _lost(a, b, before):
    return a[-1] if len(a) else torch.zeros_like(before)


def _of_the_last(half):
    """The half of the last window, or `before`."""
    return lambda a, b, before: half(a, b, before) if len(a) else before


def _feed(**changes):
    return lambda *args: feed(*args, **changes)


def _halves_by_token_swapped(new, waiting, before):
    c = new.shape[1] // 2
    return feed(new, waiting, before,
                front=lambda waiting, new: torch.cat([waiting, new]).roll(c, 1),
                left=lambda t, full, waiting, new: t.roll(c, 1)[full:])


def _feed_cases(rng):
    def arguments(T, r, m, c):
        new, waiting = torch.randn(T, 2 * c, generator=rng), torch.randn(r, 2 * c, generator=rng)
        return new, waiting, torch.randn(m, c, generator=rng)

    yield "two windows, nothing waits", arguments(8, 0, 4, 3)
    yield "two windows and three tokens more", arguments(11, 0, 4, 3)
    yield "one token waits, and ten come", arguments(10, 1, 4, 3)
    yield "three windows of three tokens", arguments(9, 2, 3, 5)
    yield "three tokens wait, and five complete two windows", arguments(5, 3, 4, 3)
    yield "one token comes and completes a window", arguments(1, 3, 4, 3)
    yield "one token comes, and no window is complete", arguments(1, 1, 4, 3)


# ---- what a query reaches ----

def reach(picks, t, w, m, T, overlap, complete=None, near=None, span=None):
    """Which of T tokens the query at t reads: T, bool.

    It reads them through its window of w, or through the entries that are picked and complete.
    """
    s = torch.arange(T)
    mask = (s <= t) & (s > t - w) if near is None else near(s)
    for i in picks.tolist():
        if i < ((t + 1) // m if complete is None else complete):
            low, high = ((i - overlap) * m, (i + 1) * m) if span is None else span(i)
            mask = mask | (s >= low) & (s < high)
    return mask


def _near(change):
    """`reach` with another rule for the window: change(s, t, w)."""
    def wrong(picks, t, w, m, T, overlap):
        return reach(picks, t, w, m, T, overlap, near=lambda s: change(s, t, w))
    return wrong


def _complete(change):
    """`reach` with another number of complete entries: change(t, m, T)."""
    def wrong(picks, t, w, m, T, overlap):
        return reach(picks, t, w, m, T, overlap, complete=change(t, m, T))
    return wrong


def _span(change):
    """`reach` with other tokens in an entry, from and to: change(i, m, overlap)."""
    def wrong(picks, t, w, m, T, overlap):
        return reach(picks, t, w, m, T, overlap, span=lambda i: change(i, m, overlap))
    return wrong


def _by_slices(window, entries):
    """`reach` with slices, which count a negative start from the end, where these say so."""
    def wrong(picks, t, w, m, T, overlap):
        mask = torch.zeros(T, dtype=torch.bool)
        mask[slice(t - w + 1 if window else max(t - w + 1, 0), t + 1)] = True
        for i in picks.tolist():
            if i < (t + 1) // m:
                low = (i - overlap) * m
                mask[slice(low if entries else max(low, 0), (i + 1) * m)] = True
        return mask
    return wrong


def _clipped(picks, t, w, m, T, overlap):
    """All picks, complete or not, as far as t."""
    return reach(picks, t, w, m, T, overlap, complete=T) & (torch.arange(T) <= t)


def _all_entries(picks, t, w, m, T, overlap):
    return reach(torch.arange(T // m), t, w, m, T, overlap)


def _picks_as_tokens(picks, t, w, m, T, overlap):
    near = reach(picks[:0], t, w, m, T, overlap)
    return near | torch.isin(torch.arange(T), picks)


def _reach_cases(rng):
    yield "HCA: all entries, then the window", (torch.arange(5), 33, 3, 8, 40, False)
    yield "picks without overlap", (torch.tensor([4, 2]), 37, 3, 5, 45, False)
    yield "CSA: two picks", (torch.tensor([6, 2]), 33, 4, 4, 40, True)
    yield "CSA: an entry that is complete just now", (torch.tensor([7]), 31, 2, 4, 40, True)
    picks = torch.tensor([3, 7, 8, 9])
    yield "CSA: entries that are not complete are among the picks", (picks, 30, 2, 4, 40, True)
    yield "CSA: entry 0, which has no window before its own", (torch.tensor([0, 4]), 29, 3, 4, 36,
                                                               True)
    yield "the first query", (torch.arange(2), 0, 3, 4, 8, True)
    yield "an early query: fewer tokens than the window holds", (torch.arange(6), 5, 9, 3, 30,
                                                                 False)


# ---- bytes ----

def cache(config, n, entry=None, key=None, rows=None, layers=None, hold=None, times=1):
    """Bytes of the cache after n tokens of one sequence, by what they hold."""
    ratios = config.compress_ratios[:config.n_layers] if layers is None else layers(config)
    csa, hca = [m for m in ratios if m == 4], [m for m in ratios if m > 4]
    r, c = config.rope_head_dim, config.head_dim
    entry = times * ((c - r) + 2 * r if entry is None else entry(c, r))
    key = config.index_head_dim / 2 if key is None else key(config.index_head_dim)
    rows = rows or (lambda n, m: n // m)
    held = min(n, config.window_size) if hold is None else hold(n, config.window_size)
    csa_rows, hca_rows = sum(rows(n, m) for m in csa), sum(rows(n, m) for m in hca)
    return {"window": len(ratios) * entry * held, "CSA entries": entry * csa_rows,
            "CSA index keys": key * csa_rows, "HCA entries": entry * hca_rows}


def _cache(**changes):
    return lambda *args: cache(*args, **changes)


def _changed(term, change):
    """`cache` with one term made by change(config, n, terms)."""
    def wrong(config, n):
        terms = cache(config, n)
        return terms | {term: change(config, n, terms)}
    return wrong


def _keys_of_all_layers(config, n, terms):
    return config.index_head_dim / 2 * sum(n // m for m in config.compress_ratios if m)


def _keys_for_all_tokens(config, n, terms):
    return config.index_head_dim / 2 * config.compress_ratios[:config.n_layers].count(4) * n


def _one_window(config, n, terms):
    return terms["window"] / config.n_layers


def _only_window_layers(config, n, terms):
    return _one_window(config, n, terms) * config.compress_ratios[:config.n_layers].count(0)


def _no_window_layers(config, n, terms):
    return terms["window"] - _only_window_layers(config, n, terms)


def _entry(config, n, terms):
    return _one_window(config, n, terms) / min(n, config.window_size)


def _hca_entries_of(tokens):
    def wrong(config, n, terms):
        hca = sum(m > 4 for m in config.compress_ratios[:config.n_layers])
        return _entry(config, n, terms) * (n // tokens) * hca
    return wrong


def _one_layer_of_each(config, n):
    ratios, terms = config.compress_ratios[:config.n_layers], cache(config, n)
    csa, hca = ratios.count(4), sum(m > 4 for m in ratios)
    return {"window": terms["window"] / config.n_layers, "CSA entries": terms["CSA entries"] / csa,
            "CSA index keys": terms["CSA index keys"] / csa,
            "HCA entries": terms["HCA entries"] / hca}


def _entries_after_the_window(config, n):
    return cache(config, n, rows=lambda n, m: max(n - config.window_size, 0) // m)


def _configs():
    yield "nano, 1,003 tokens", (Config.nano(), 1003)
    yield "Flash, 100,001 tokens", (Config.flash(), 100_001)
    yield "fewer tokens than the window holds", (Config.pro(), 90)


def _cache_cases(rng):
    yield from _configs()
    yield "Pro, a million tokens", (Config.pro(), 2**20)


# ---- operations ----

FAULTS = ("how many index keys there are", "how many CSA entries are read",
          "what an HCA layer reads")


def operations(config, n, faults=(), scored=None, read=None, hca_core=None, **factors):
    """FP8-equivalent operations of the attention over the context, by term.

    They are those of one token, decoded after n others. The other arguments make mistakes.
    """
    ratios, k = config.compress_ratios[:config.n_layers], config.index_topk
    csa, hca, plain = ratios.count(4), [m for m in ratios if m > 4], ratios.count(0)
    w = min(n, config.window_size)
    core = 2 * config.n_heads * 2 * config.head_dim * 2
    scored = (n if FAULTS[0] in faults else n // 4) if scored is None else scored(n, k)
    if read is None:
        read = (k if FAULTS[1] in faults else min(k, n // 4)) + w
    else:
        read = read(n, k, w)
    if hca_core is None:
        beside = 0 if FAULTS[2] in faults else w
        hca_core = sum(core * (n // m + beside) for m in hca)
    else:
        hca_core = hca_core(n, k, w, hca, core)
    terms = {"indexer": csa * 2 * config.index_n_heads * config.index_head_dim * scored * 0.5,
             "CSA core": csa * core * read, "HCA core": hca_core,
             "window-only core": plain * core * w}
    for term in terms:
        terms[term] *= factors.get(term.split()[0].replace("-", "_"), 1)
    return terms


def _operations(**changes):
    return lambda config, n: operations(config, n, **changes)


def _window_only(keys):
    """`operations` whose window-only layers read keys(n, w)."""
    def wrong(config, n):
        w = min(n, config.window_size)
        return operations(config, n, window_only=keys(n, w) / w)
    return wrong


def _operations_cases(rng):
    yield "nano, 1,003 tokens", (Config.nano(), 1003)
    yield "Flash, 100,001 tokens", (Config.flash(), 100_001)
    yield "Pro, a short text: fewer entries than k", (Config.pro(), 2000)
    yield "Pro, fewer tokens than k", (Config.pro(), 603)
    yield "Flash, fewer tokens than the window holds", (Config.flash(), 90)


def _left(faults):
    """The message for a repair that leaves these faults."""
    if len(faults) == len(FAULTS):
        return "all three faults are still there: your version should have none"
    number = "one fault is" if len(faults) == 1 else "two faults are"
    return f"{number} still there, in {' and in '.join(faults)}: your version should have none"


def _remaining():
    return [*combinations(FAULTS, 1), *combinations(FAULTS, 2), FAULTS]


# ---- the longest context ----

def longest(config, memory, fits=operator.le):
    """The most tokens whose cache takes at most `memory` bytes."""
    low, high = 0, 1
    while fits(cost.kv_bytes(config, high)["total"], memory):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(cost.kv_bytes(config, middle)["total"], memory):
            low = middle
        else:
            high = middle
    return low


def _per_token(config):
    return sum(bytes / 2**20 for term, bytes in cache(config, 2**20).items() if term != "window")


def _window(config):
    return cache(config, 2**20)["window"]


def _by_a_line(config, memory):
    return (memory - _window(config)) / _per_token(config)


def _by_the_mean(n):
    """`longest` by the mean bytes of a token in a context of n."""
    return lambda config, memory: int(memory // (sum(cache(config, n).values()) / n))


def _up_to(limit):
    """`longest` that searches up to a limit."""
    return lambda config, memory: min(longest(config, memory), limit)


def _whole_windows(config, memory, m):
    return longest(config, memory) // m * m


def _longest_cases(rng):
    yield "Flash in 100,000,000 bytes", (Config.flash(), 1e8)
    yield "Pro in 80,000,003 bytes", (Config.pro(), 80_000_003)
    yield "nano in 50,001 bytes", (Config.nano(), 50_001)
    yield "exactly the bytes of 4,000 tokens of nano", (
        Config.nano(), sum(cache(Config.nano(), 4000).values()))
    yield "nano, in less than its windows take", (Config.nano(), 2_500)
    yield "nano, in enough for more than its max_seq_len", (Config.nano(), 300_000)
    small = Config.nano().replace(n_layers=1, compress_ratios=(4, 0))
    yield "one CSA layer, in enough for more than 2**20 tokens", (
        small, sum(cache(small, 2**20 + 100).values()))


CHECKS = [
    Check(
        "context.ring", ring, _ring_cases,
        mistakes={
            "your newest token is at position `seen`; positions start at 0, so it should be at "
            "seen - 1":
                lambda seen, w: ring(seen, w, last=seen),
            "you leave out the newest token; `seen` tokens should have the positions 0 to "
            "seen - 1":
                lambda seen, w: ring(seen - 1, w),
            "you count positions from 1; the first token should have position 0":
                lambda seen, w: torch.where(ring(seen, w) < 0, -1, ring(seen, w) + 1),
            "you return only the positions that are held; all w slots should be there, with -1 in "
            "the empty ones": _by_age,
            "you sort the slots by age; the token at position p should stay in slot p % w until it "
            "is overwritten":
                lambda seen, w: _filled(_by_age(seen, w), w),
            "you sort the slots by age, the newest last; the token at position p should stay in "
            "slot p % w until it is overwritten":
                lambda seen, w: _filled(_by_age(seen, w), w, front=True),
            "you sort the slots by age, the newest first; the token at position p should stay in "
            "slot p % w":
                lambda seen, w: _filled(_by_age(seen, w).flip(0), w),
            "your empty slots hold 0, which is the position of a token; they should hold -1":
                lambda seen, w: ring(seen, w, empty=0),
            "your empty slots hold other negative numbers; each should hold -1":
                lambda seen, w: (seen - 1) - (seen - 1 - torch.arange(w)) % w,
            "you count back from the newest token over w slots, below 0 where there are fewer; "
            "slot p % w should hold position p, and empty slots -1":
                lambda seen, w: torch.arange(seen - w, seen),
            "your ring does not wrap around; once it is full, each new token should overwrite the "
            "oldest one":
                lambda seen, w: torch.where(torch.arange(w) < seen, torch.arange(w), -1),
            "you write position p to slot p, which a full ring does not have; it should go to slot "
            "p % w": _slot_by_position,
            "your ring wraps around only once; it should go on to do so":
                lambda seen, w: torch.where(torch.arange(w) + w < seen, torch.arange(w) + w,
                                            torch.where(torch.arange(w) < seen, torch.arange(w),
                                                        -1)),
            "you give every slot a position of the newest round; a slot that this round has not "
            "reached should keep what the round before left there": _every_slot_of_this_round,
            "you empty the slots that the newest round has not reached; they should keep what the "
            "round before left there": _only_this_round,
            "position p is in your slot (p + 1) % w; it should be in slot p % w":
                lambda seen, w: ring(seen, w).roll(1),
            "position p is in your slot (p - 1) % w; it should be in slot p % w":
                lambda seen, w: ring(seen, w).roll(-1),
            "your slots run from the last to the first; position p should be in slot p % w":
                lambda seen, w: ring(seen, w).flip(0),
        },
        hints=(
            "Write the positions 0, 1, 2, ... into slots 0, 1, ..., w - 1, 0, 1, ... on paper, "
            "for w = 3.",
            "A loop will do: for p in range(seen): slots[p % w] = p.",
            "slots = torch.full((w,), -1), then the loop; or last - (last - arange(w)) % w with "
            "last = seen - 1.",
        ),
    ),
    Check(
        "context.feed", feed, _feed_cases,
        mistakes={
            "you forget the tokens that wait; they should come in front of the new ones":
                _feed(front=lambda waiting, new: new),
            "you put the waiting tokens after the new ones; they are older and should come first":
                _feed(front=lambda waiting, new: torch.cat([new, waiting])),
            "you count the windows that the new tokens fill alone; the waiting ones should count "
            "too": _feed(count=lambda new, m: len(new) // m),
            "you let all new tokens wait; only those that do not fill a window should":
                _feed(left=lambda t, full, waiting, new: new),
            "you return the tokens that waited before; you should return those that wait now":
                _feed(left=lambda t, full, waiting, new: waiting),
            "you return no waiting tokens; what does not fill a window should be kept for the next "
            "call":
                _feed(left=lambda t, full, waiting, new: t[:0]),
            "you return all tokens as waiting; only those that do not fill a window should wait":
                _feed(left=lambda t, full, waiting, new: t),
            "you cut the rest from the new tokens alone; it should be cut from waiting and new "
            "tokens together":
                _feed(left=lambda t, full, waiting, new: new[full:]),
            "you take the rest from the end by a negative index; where nothing is left over this "
            "index is 0 and takes everything, and it should take nothing":
                _feed(left=_all_but_whole_windows),
            "you do not use `before`; it should be the a-half of the first window's slots":
                _feed(first=torch.zeros_like),
            "you put `before` in front of every window; only the first should get it, and each "
            "other one the a-half of the window before":
                _feed(join=lambda start, a, b: torch.cat([start.expand_as(a), b], 1)),
            "you roll the a-halves round, so the first window gets that of the last; it should get "
            "`before`":
                _feed(join=lambda start, a, b: torch.cat([a.roll(1, 0), b], 1)),
            "you hand on the `before` that came in; you should hand on the a-half of the last "
            "complete window":
                _feed(keep=lambda a, b, before: before),
            "you hand on a b-half; the next call should get the last window's a-half":
                _feed(keep=_of_the_last(lambda a, b, before: b[-1])),
            "you hand on both halves of the last window; it should be its a-half alone":
                _feed(keep=_of_the_last(lambda a, b, before: torch.cat([a[-1], b[-1]], 1))),
            "you carry the b-halves from window to window; it should be the a-halves, the first c "
            "channels":
                _feed(join=lambda start, a, b: torch.cat([_shifted(start, b), b], 1),
                      keep=_of_the_last(lambda a, b, before: b[-1])),
            "you stack an empty list where no window is complete; there should be 0 slots, "
            "0 2m c": lambda new, waiting, before:
                feed(new, waiting, before) if len(new) + len(waiting) >= len(before)
                else torch.stack([]),
            "you hand on the first window's a-half; it should be the last window's":
                _feed(keep=_of_the_last(lambda a, b, before: a[0])),
            "you hand on the a-half that the last window has used; it should be the last window's "
            "own":
                _feed(keep=_of_the_last(lambda a, b, before: _shifted(before, a)[-1])),
            "you lose `before` in a call that completes no window; there it should stay as it was":
                _feed(keep=_lost),
            "you take the last window's a-half where no window is complete; there `before` should "
            "stay as it was":
                _feed(keep=lambda a, b, before: a[-1]),
            "you leave a size to torch (-1) in a reshape, which fails where no window is complete; "
            "the size should be 2c":
                _ambiguous,
            "your slots hold the window's own a-half; they should hold that of the window before":
                _feed(join=lambda start, a, b: torch.cat([a, b], 1)),
            "you exchange the halves; the first c channels (a) should serve the next window, the "
            "last c (b) their own": _halves_by_token_swapped,
            "you put the b-half first; the a-half should come first, then the b-half":
                _feed(join=lambda start, a, b: torch.cat([b, _shifted(start, a)], 1)),
            "you join the halves along the channels, n m 2c; they should be joined along the "
            "tokens, n 2m c":
                _feed(join=lambda start, a, b: torch.cat([_shifted(start, a), b], -1)),
        },
        hints=(
            "t = torch.cat([waiting, new]); it fills n = len(t) // m windows, and t[n * m:] waits.",
            "a, b = t[:n * m].view(n, m, 2c).chunk(2, -1). Window i takes the a-half of window i "
            "- 1; window 0 takes `before`.",
            "torch.cat([before[None], a])[:n] is what the windows get. Carry a[-1] over, or "
            "`before` where n is 0.",
        ),
    ),
    Check(
        "context.reach", reach, _reach_cases,
        mistakes={
            "your window holds w + 1 tokens; it should hold w, the query's own among them":
                _near(lambda s, t, w: (s <= t) & (s >= t - w)),
            "your window holds w - 1 tokens; it should hold w, the query's own among them":
                _near(lambda s, t, w: (s <= t) & (s > t - w + 1)),
            "your query does not see itself; its own token should be the newest of the window":
                _near(lambda s, t, w: (s < t) & (s > t - w)),
            "your window holds w tokens before the query and not the query's own; that should be "
            "one of the w":
                _near(lambda s, t, w: (s < t) & (s >= t - w)),
            "your query sees the future; its window should end at t":
                _near(lambda s, t, w: s > t - w),
            "your query sees all tokens before it one by one; its window should hold only the last "
            "w":
                _near(lambda s, t, w: s <= t),
            "the sliding window is missing; its w tokens should be read too":
                _near(lambda s, t, w: s < 0),
            "the entries are missing; the tokens in the picked ones should be read too":
                _complete(lambda t, m, T: 0),
            "you read all complete entries; you should read those among the picks":
                _all_entries,
            "you read the picks as positions of tokens; they should be numbers of entries, of m "
            "tokens each": _picks_as_tokens,
            "you read entries before they are complete; entry i should count once (i + 1) m tokens "
            "are there":
                _complete(lambda t, m, T: T),
            "you read entries that are not complete, as far as t; an entry should count once all "
            "its tokens are there": _clipped,
            "you leave out an entry whose last token is the query's own; it is complete and should "
            "count":
                _complete(lambda t, m, T: t // m),
            "you count one entry too many as complete; entry i should count once (i + 1) m tokens "
            "are there":
                _complete(lambda t, m, T: (t + 1) // m + 1),
            "you read an entry once its first token is there; it should count once all m of its "
            "own window are":
                _complete(lambda t, m, T: t // m + 1),
            "your entries do not overlap; in CSA an entry should also hold the window before its "
            "own":
                _span(lambda i, m, o: (i * m, (i + 1) * m)),
            "your entries overlap always; only where `overlap` is true should they hold the window "
            "before their own":
                _span(lambda i, m, o: ((i - 1) * m, (i + 1) * m)),
            "your overlap goes the wrong way, to the window after; an entry should also hold the "
            "window before its own":
                _span(lambda i, m, o: (i * m, (i + 1 + o) * m)),
            "with overlap your entry holds only the window before; it should hold its own, too":
                _span(lambda i, m, o: ((i - o) * m, (i + 1 - o) * m)),
            "the last token of each entry's window is missing; entry i should hold the tokens up "
            "to (i + 1) m - 1":
                _span(lambda i, m, o: ((i - o) * m, (i + 1) * m - 1)),
            "you read one token more than an entry holds; it should end at (i + 1) m - 1":
                _span(lambda i, m, o: ((i - o) * m, (i + 1) * m + 1)),
            "you shift each entry by one token; entry i should hold the tokens from i m, or from "
            "(i - 1) m under overlap, to (i + 1) m - 1":
                _span(lambda i, m, o: ((i - o) * m + 1, (i + 1) * m + 1)),
            "your overlap reaches one token back; an entry should also hold the whole window of m "
            "tokens before its own":
                _span(lambda i, m, o: (i * m - o, (i + 1) * m)),
            "you read the two windows before an entry's own under overlap; it should be one":
                _span(lambda i, m, o: ((i - 2 * o) * m, (i + 1) * m)),
            "your entries begin at their number, not at their window; entry i should begin at i m":
                _span(lambda i, m, o: (i - o * m, i + m)),
            "you read one token of each entry; it should stand for all tokens of its window":
                _span(lambda i, m, o: (i * m, i * m + 1)),
            "you lose entry 0 under overlap; a slice counts a negative start from the end, so the "
            "start should be at least 0": _by_slices(window=False, entries=True),
            "you lose the window of early queries; a slice counts a negative start from the end, "
            "so the start should be at least 0": _by_slices(window=True, entries=False),
            "you lose entry 0 under overlap and the window of early queries; a slice counts a "
            "negative start from the end, so the start should be at least 0":
                _by_slices(window=True, entries=True),
        },
        hints=(
            "s = torch.arange(T). The window: (s <= t) & (s > t - w).",
            "Entry i counts if i < (t + 1) // m. Its own window is i * m to i * m + m - 1.",
            "With overlap it begins at (i - 1) * m. Join with |: mask = mask | (s >= low) & (s < "
            "(i + 1) * m).",
        ),
    ),
    Check(
        "context.cache", cache, _cache_cases,
        mistakes={
            "you count one byte for every channel; the r rotary channels are kept in BF16 and "
            "should count two bytes each":
                _cache(entry=lambda c, r: c),
            "you count two bytes for every channel; only the r rotary channels are kept in BF16, "
            "the others in FP8 should count one":
                _cache(entry=lambda c, r: 2 * c),
            "you exchange FP8 and BF16; the r rotary channels should take two bytes, the c - r "
            "others one":
                _cache(entry=lambda c, r: 2 * (c - r) + r),
            "you add the rotary channels to c; they are the last r of the c channels and should "
            "not count again":
                _cache(entry=lambda c, r: c + 2 * r),
            "you leave the rotary channels out; they should count two bytes each":
                _cache(entry=lambda c, r: c - r),
            "you count the rotary channels alone; the c - r others should count one byte each":
                _cache(entry=lambda c, r: 2 * r),
            "you count keys and values apart; one vector serves as both and should count once":
                _cache(times=2),
            "you give each head its own keys; all heads share one, which should count once":
                lambda config, n: cache(config, n, times=config.n_heads),
            "you count index keys in FP8; they are FP4, so a number should take half a byte":
                _cache(key=lambda ci: ci),
            "you count index keys in BF16; they are FP4, so a number should take half a byte":
                _cache(key=lambda ci: 2 * ci),
            "you count an index key for each indexer head; they share one of ci numbers, which "
            "should count once":
                lambda config, n: cache(config, n, key=lambda ci: config.index_n_heads * ci / 2),
            "you count an index key for each token; there should be one for each CSA entry":
                _changed("CSA index keys", _keys_for_all_tokens),
            "you give HCA layers index keys; they have no indexer, so only CSA layers should have "
            "keys":
                _changed("CSA index keys", _keys_of_all_layers),
            "you count the window in window-only layers; every layer has one and should count":
                _changed("window", _only_window_layers),
            "you leave the window of the window-only layers out; every layer has one and should "
            "count":
                _changed("window", _no_window_layers),
            "you count the window of a single layer; every layer has one and should count":
                _changed("window", _one_window),
            "you count one layer of each kind; each term should be the sum over all its layers":
                _one_layer_of_each,
            "you count the MTP block's entry of compress_ratios; only the first n_layers should "
            "count":
                _cache(layers=lambda config: config.compress_ratios),
            "your window always holds w tokens; it should hold at most the n that there are":
                _cache(hold=lambda n, w: w),
            "your window grows with the context; it should hold at most w tokens":
                _cache(hold=lambda n, w: n),
            "you count an entry for each token; there should be one for m tokens, n // m in all":
                _cache(rows=lambda n, m: n),
            "you round the number of entries up; only complete windows have one, so you should "
            "round n / m down":
                _cache(rows=lambda n, m: -(-n // m)),
            "you count fractions of entries; there are only whole ones, so it should be n // m":
                _cache(rows=lambda n, m: n / m),
            "you leave the tokens of the sliding window out of the entries; every complete window "
            "of m tokens should have its entry": _entries_after_the_window,
            "you count twice as many bytes for CSA entries; an entry should have c channels there, "
            "too, however many a token gives":
                _changed("CSA entries", lambda config, n, terms: 2 * terms["CSA entries"]),
            "you count HCA entries as if each were made of 4 tokens; it should be m, the layer's "
            "own ratio":
                _changed("HCA entries", _hca_entries_of(4)),
            "you count HCA entries as if each were made of 128 tokens; it should be m, the layer's "
            "own ratio in compress_ratios":
                _changed("HCA entries", _hca_entries_of(128)),
            "you count the CSA entries among the HCA entries, too; only layers with a ratio above "
            "4 should count there":
                _changed("HCA entries", lambda config, n, terms:
                         terms["HCA entries"] + terms["CSA entries"]),
        },
        hints=(
            "One entry: (c - r) + 2 r bytes. One index key: ci / 2 bytes. Which layers have which?",
            "ratios = config.compress_ratios[:config.n_layers]. 4 is CSA, more is HCA; every "
            "layer has a window of min(n, w).",
            "CSA entries: ratios.count(4) * entry * (n // 4). HCA entries: the sum of entry * (n "
            "// m) over m > 4.",
        ),
        atol=1e-6, rtol=1e-7, gradient=False,
    ),
    Check(
        "context.operations", operations, _operations_cases,
        mistakes={_left(faults): partial(operations, faults=faults)
                  for faults in _remaining()} | {
            "your indexer scores only k entries; to find the best k it should score all n // 4":
                _operations(scored=lambda n, k: k),
            "your indexer scores at most k entries; to find the best k it should score all n // 4":
                _operations(scored=lambda n, k: min(k, n // 4)),
            "you count fractions of index keys; there are only whole ones, so it should be n // 4":
                _operations(scored=lambda n, k: n / 4),
            "your CSA core reads at most n entries; after n tokens there should be n // 4 to pick "
            "from":
                _operations(read=lambda n, k, w: min(k, n) + w),
            "your CSA core reads all entries; it should read at most k of them":
                _operations(read=lambda n, k, w: n // 4 + w),
            "your CSA core leaves the window out; it should be read beside the entries":
                _operations(read=lambda n, k, w: min(k, n // 4)),
            "your CSA core takes the window as part of the k; it should be read beside them":
                _operations(read=lambda n, k, w: min(k, n // 4 + w)),
            "your CSA core reads whole windows of 4 tokens; an entry should be read as one key":
                _operations(read=lambda n, k, w: 4 * min(k, n // 4) + w),
            "your HCA core reads at most k entries; HCA has no top k and should read all":
                _operations(hca_core=lambda n, k, w, hca, core:
                            sum(core * (min(k, n // m) + w) for m in hca)),
            "your HCA core counts the window once for all layers; each layer should read its own":
                _operations(hca_core=lambda n, k, w, hca, core:
                            sum(core * (n // m) for m in hca) + core * w),
            "your HCA core adds w as a number of operations; it should be w keys more, each of "
            "which costs a core":
                _operations(hca_core=lambda n, k, w, hca, core:
                            sum(core * (n // m) + w for m in hca)),
            "your HCA core reads the window alone; it should read all complete entries, too":
                _operations(hca_core=lambda n, k, w, hca, core: len(hca) * core * w),
            "your HCA core reads every token; it should read n // m entries and the window":
                _operations(hca_core=lambda n, k, w, hca, core: len(hca) * core * (n + w)),
            "your HCA core counts fractions of entries; there are only whole ones, n // m":
                _operations(hca_core=lambda n, k, w, hca, core:
                            sum(core * (n / m + w) for m in hca)),
            "your HCA core reads n // 4 entries; it should be n // m, with the layer's own ratio":
                _operations(hca_core=lambda n, k, w, hca, core: len(hca) * core * (n // 4 + w)),
            "your HCA core counts one layer; it should be the sum over all HCA layers":
                _operations(hca_core=lambda n, k, w, hca, core: core * (n // hca[0] + w)),
            "your window-only core reads the whole context; it was right, and should read w keys":
                _window_only(lambda n, w: n),
            "the window-only core is gone; it was right, and should be there":
                _operations(window_only=0),
            "you count the indexer's products as FP8; they are FP4 times FP4, and each should "
            "count a half":
                _operations(indexer=2),
            "your cores count half; BF16 should count 2, and c multiply-adds go into a score, c "
            "more into the sum of the values":
                _operations(CSA=0.5, HCA=0.5, window_only=0.5),
            "everything counts half; a multiply-add should be two operations":
                _operations(indexer=0.5, CSA=0.5, HCA=0.5, window_only=0.5),
        },
        hints=(
            "For each kind of layer: how many keys are there, how many of these are read, and "
            "what is read beside them?",
            "Two faults sit in the CSA layers, one in the HCA layers. One of the three shows only "
            "in short texts.",
            "Index keys: n // 4. CSA reads min(k, n // 4) + w. HCA reads n // m + w.",
        ),
        atol=1e-6, rtol=1e-7, gradient=False,
    ),
    Check(
        "context.longest", longest, _longest_cases,
        mistakes={
            "you return one token more than fits; the cache should take at most `memory` bytes":
                lambda config, memory: longest(config, memory) + 1,
            "you return one token fewer than fits; the cache may take exactly `memory` bytes, and "
            "the last token that fits should count":
                lambda config, memory: max(longest(config, memory) - 1, 0),
            "your cache takes less than `memory` bytes; it may take exactly that many: \"at most\" "
            "should be <=, not <": lambda config, memory:
                longest(config, memory, fits=operator.lt),
            "you forget the windows; they take memory too and should be subtracted":
                lambda config, memory: int(memory / _per_token(config)),
            "you draw a straight line through a staircase; an entry should take memory once its "
            "window is complete, so some tokens more fit":
                lambda config, memory: int(_by_a_line(config, memory)),
            "you draw a straight line through a staircase and return a fraction; it should be the "
            "whole number of tokens up to the next step": _by_a_line,
            "you divide by the bytes that a token adds and return a fraction, without the windows; "
            "it should be the whole number of tokens, after the windows are subtracted":
                lambda config, memory: memory / _per_token(config),
        } | {
            f"you divide by the mean bytes of a token, in a context of {n:,}, but its windows do "
            "not grow; the bytes of n tokens should be computed by `cache`, for each n that you "
            "try": _by_the_mean(n)
            for n in (2**20, 1_000_000, 1 << 17, 100_000, 4096, 1024, 1000, 128, 1)
        } | {
            f"you search up to {limit:,} tokens only; the upper bound should grow until it no "
            "longer fits": _up_to(limit)
            for limit in (2**20, 2**20 - 1, 10**6, 10**6 - 1)
        } | {
            "you return a whole number of HCA windows; some tokens more should fit, as long as no "
            "entry is added": lambda config, memory:
                _whole_windows(config, memory, max(config.compress_ratios)),
            "you return a whole number of CSA windows; up to 3 tokens more should fit, which wait "
            "for their window":
                lambda config, memory: _whole_windows(config, memory, 4),
            "you count in steps of 128 tokens; some tokens more should fit":
                lambda config, memory: _whole_windows(config, memory, 128),
            "you stop at the model's max_seq_len; the question is what fits into the memory, and "
            "the answer should not be cut there":
                lambda config, memory: min(longest(config, memory), config.max_seq_len),
            "you return the largest power of 2 that fits; you should then search between it and "
            "its double": lambda config, memory:
                1 << longest(config, memory).bit_length() - 1,
        },
        hints=(
            "sum(cache(config, n).values()) never decreases as n grows. What is the largest n for "
            "which it is at most `memory`?",
            "Double n until it is too much, then halve the interval again and again.",
            "low fits, high does not; middle = (low + high) // 2 becomes one of them, until high "
            "= low + 1.",
        ),
        atol=0.0, rtol=0.0, gradient=False,
    ),
]
