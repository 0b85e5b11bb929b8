"""Checks of lesson 05: decode state and the cost of context (V4 report, sections 2.3.4, 3.6.1)."""

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
    """The last w positions, the oldest first; where fewer are there, the first slots are filled."""
    held = torch.arange(max(seen - w, 0), max(seen, 0))
    return torch.cat([held, torch.full((w - len(held),), -1)])


def _by_age_backwards(seen, w):
    held = torch.arange(max(seen - w, 0), max(seen, 0)).flip(0)
    return torch.cat([held, torch.full((w - len(held),), -1)])


def _ring_cases(rng):
    yield "half full", (3, 5)
    yield "just full", (5, 5)
    yield "one token overwrites another", (6, 5)
    yield "three times round", (23, 7)
    yield "nothing seen", (0, 4)


# ---- what a compressor carries from call to call ----

def feed(new, waiting, before, front=None, left=None, first=None, keep=None, join=None):
    """Slots of the windows that are now complete, the tokens that wait, and the last a-half.

    new: T 2c; waiting: r 2c with r < m; before: m c -> n 2m c, r 2c, m c. The keyword arguments
    make mistakes.
    """
    m = len(before)
    t = torch.cat([waiting, new]) if front is None else front(waiting, new)
    n = len(t) // m
    a, b = t[:n * m].reshape(n, m, new.shape[1]).chunk(2, -1)
    start = before if first is None else first(before)
    join = _join if join is None else join
    slots = join(start, a, b)
    rest = t[n * m:] if left is None else left(t, n * m, waiting, new)
    a_half = (a[-1] if n else before) if keep is None else keep(a, b, before)
    return slots, rest, a_half


def _join(start, a, b):
    """Each window's own b-half, after the a-half of the window before: n 2m c."""
    return torch.cat([torch.cat([start[None], a])[:len(a)], b], 1)


def _lost(a, b, before):
    return a[-1] if len(a) else torch.zeros_like(before)


def _halves_exchanged(start, a, b):
    return torch.cat([b, torch.cat([start[None], a])[:len(a)]], 1)


def _feed_cases(rng):
    def arguments(T, r, m, c):
        new, waiting = torch.randn(T, 2 * c, generator=rng), torch.randn(r, 2 * c, generator=rng)
        return new, waiting, torch.randn(m, c, generator=rng)

    yield "two windows, nothing waits", arguments(8, 0, 4, 3)
    yield "two windows and three tokens more", arguments(11, 0, 4, 3)
    yield "one token waits, and ten come", arguments(10, 1, 4, 3)
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
    def wrong(picks, t, w, m, T, overlap):
        return reach(picks, t, w, m, T, overlap, complete=change(t, m, T))
    return wrong


def _span(change):
    def wrong(picks, t, w, m, T, overlap):
        return reach(picks, t, w, m, T, overlap, span=lambda i: change(i, m, overlap))
    return wrong


def _reach_cases(rng):
    yield "HCA: all entries, then the window", (torch.arange(5), 33, 3, 8, 40, False)
    yield "CSA: two picks", (torch.tensor([6, 2]), 33, 4, 4, 40, True)
    yield "CSA: an entry that is complete just now", (torch.tensor([7]), 31, 2, 4, 40, True)
    picks = torch.tensor([3, 7, 8, 9])
    yield "CSA: entries that are not complete are among the picks", (picks, 30, 2, 4, 40, True)
    yield "the first query", (torch.arange(2), 0, 3, 4, 8, True)


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


def _changed(term, change):
    """`cache` with one term made by change(config, n, terms)."""
    def wrong(config, n):
        terms = cache(config, n)
        return terms | {term: change(config, n, terms)}
    return wrong


def _keys_of_all_layers(config, n, terms):
    return config.index_head_dim / 2 * sum(n // m for m in config.compress_ratios if m)


def _only_window_layers(config, n, terms):
    ratios = config.compress_ratios[:config.n_layers]
    return terms["window"] / config.n_layers * ratios.count(0)


def _entries_of_4_tokens(config, n, terms):
    entry = terms["window"] / config.n_layers / min(n, config.window_size)
    return entry * (n // 4) * sum(m > 4 for m in config.compress_ratios)


def _configs():
    yield "nano, 1,003 tokens", (Config.nano(), 1003)
    yield "Flash, 100,001 tokens", (Config.flash(), 100_001)
    yield "fewer tokens than the window holds", (Config.pro(), 90)


def _cache_cases(rng):
    return _configs()


# ---- operations ----

FAULTS = ("how many index keys there are", "how many CSA entries are read",
          "what an HCA layer reads")


def operations(config, n, faults=(), **factors):
    """FP8-equivalent operations of the attention over the context, by term.

    They are those of one token, decoded after n others.
    """
    ratios = config.compress_ratios[:config.n_layers]
    csa, hca, plain = ratios.count(4), [m for m in ratios if m > 4], ratios.count(0)
    w = min(n, config.window_size)
    core = 2 * config.n_heads * 2 * config.head_dim * 2
    scored = n if FAULTS[0] in faults else n // 4
    read = config.index_topk if FAULTS[1] in faults else min(config.index_topk, n // 4)
    beside = 0 if FAULTS[2] in faults else w
    terms = {"indexer": csa * 2 * config.index_n_heads * config.index_head_dim * scored * 0.5,
             "CSA core":
                 csa * core * (read + w), "HCA core": sum(core * (n // m + beside) for m in hca),
             "window-only core": plain * core * w}
    for term in terms:
        terms[term] *= factors.get(term.split()[0].replace("-", "_"), 1)
    return terms


def _hca_with_top_k(config, n):
    terms, ratios = operations(config, n), config.compress_ratios[:config.n_layers]
    hca = sum(m > 4 for m in config.compress_ratios)
    return terms | {"HCA core": terms["CSA core"] / ratios.count(4) * hca}


def _operations_cases(rng):
    yield "nano, 1,003 tokens", (Config.nano(), 1003)
    yield "Flash, 100,001 tokens", (Config.flash(), 100_001)
    yield "Pro, a short text: fewer entries than k", (Config.pro(), 2000)


def _remaining():
    return [*combinations(FAULTS, 1), *combinations(FAULTS, 2), FAULTS]


# ---- the longest context ----

def longest(config, memory):
    """The most tokens whose cache takes at most `memory` bytes."""
    low, high = 0, 1
    while cost.kv_bytes(config, high)["total"] <= memory:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if cost.kv_bytes(config, middle)["total"] <= memory:
            low = middle
        else:
            high = middle
    return low


def _per_token(config):
    return sum(bytes / 2**20 for term, bytes in cache(config, 2**20).items() if term != "window")


def _window(config):
    return cache(config, 2**20)["window"]


def _whole_windows(config, memory, m):
    return longest(config, memory) // m * m


def _longest_cases(rng):
    yield "Flash in 1,000,000,000 bytes", (Config.flash(), 1_000_000_000)
    yield "Pro in 80,000,000,003 bytes", (Config.pro(), 80_000_000_003)
    yield "nano in 50,001 bytes", (Config.nano(), 50_001)


CHECKS = [
    Check(
        "context.ring", ring, _ring_cases,
        mistakes={
            "`seen` tokens have the positions 0 to seen - 1: the newest is seen - 1, not seen":
                lambda seen, w: ring(seen, w, last=seen),
            "the slots are sorted by age: in a ring the token at position p stays in slot p % w "
            "until it is overwritten":
                _by_age,
            "the slots are sorted by age, the newest first: the token at position p stays in slot "
            "p % w": lambda seen, w:
                _by_age_backwards(seen, w),
            "an empty slot holds -1: position 0 is a token": lambda seen, w: ring(seen, w, empty=0),
            "positions below 0 do not exist: where nothing was written the slot holds -1":
                lambda seen, w: (seen - 1) - (seen - 1 - torch.arange(w)) % w,
            "the ring does not wrap around: a full one overwrites its oldest token":
                lambda seen, w: torch.where(torch.arange(w) < seen, torch.arange(w), -1),
            "position p is in slot p % w, not in slot (p + 1) % w":
                lambda seen, w: ring(seen, w).roll(1),
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
            "the waiting tokens are forgotten: they come in front of the new ones":
                lambda *a: feed(*a, front=lambda waiting, new: new),
            "the waiting tokens are older than the new ones: put them in front":
                lambda *a: feed(*a, front=lambda waiting, new: torch.cat([new, waiting])),
            "all new tokens wait: only those that do not fill a window do":
                lambda *a: feed(*a, left=lambda t, full, waiting, new: new),
            "the tokens that waited before are returned: return those that wait now":
                lambda *a: feed(*a, left=lambda t, full, waiting, new: waiting),
            "nobody waits: what does not fill a window must be kept for the next call":
                lambda *a: feed(*a, left=lambda t, full, waiting, new: t[:0]),
            "`before` is not used: it is the a-half of the first window of this call":
                lambda *a: feed(*a, first=torch.zeros_like),
            "`before` stays what it was: the last complete window's a-half serves the next call":
                lambda *a: feed(*a, keep=lambda a, b, before: before),
            "the b-half is carried over: the a-half serves the next window":
                lambda *a: feed(*a, keep=lambda a, b, before: b[-1] if len(b) else before),
            "the FIRST window's a-half is carried over: the last one's is needed":
                lambda *a: feed(*a, keep=lambda a, b, before: a[0] if len(a) else before),
            "`before` is lost in a call that completes no window: then it stays as it was":
                lambda *a: feed(*a, keep=_lost),
            "an entry gets the a-half of its own window: it gets that of the window before":
                lambda *a: feed(*a, join=lambda start, a, b: torch.cat([a, b], 1)),
            "the halves are swapped: the first c channels (a) serve the next window, the last c "
            "(b) their own": lambda *a: feed(
                *a, front=lambda waiting, new: torch.cat([waiting, new]).roll(new.shape[1] // 2, 1),
                left=lambda t, full, waiting, new: t.roll(new.shape[1] // 2, 1)[full:]),
            "right slots in the wrong order: the a-half comes first, then the b-half":
                lambda *a: feed(*a, join=_halves_exchanged),
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
            "the sliding window is off by one: it holds w tokens, t among them":
                _near(lambda s, t, w: (s <= t) & (s >= t - w)),
            "the query does not see itself: its own token is the newest of the window":
                _near(lambda s, t, w: (s < t) & (s > t - w)),
            "the query sees the future: the window ends at t": _near(lambda s, t, w: s > t - w),
            "the sliding window is missing": _near(lambda s, t, w: s < 0),
            "the entries are missing": _complete(lambda t, m, T: 0),
            "entries count before they are complete: entry i is, once (i + 1) m tokens are there":
                _complete(lambda t, m, T: T),
            "an entry whose last token is the query's own is complete: i < (t + 1) // m":
                _complete(lambda t, m, T: t // m),
            "there is no overlap: a CSA entry also holds the window before its own":
                _span(lambda i, m, o: (i * m, (i + 1) * m)),
            "the overlap goes the wrong way: an entry also holds the window BEFORE its own":
                _span(lambda i, m, o: (i * m, (i + 1 + o) * m)),
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
            "every channel counts one byte: the r rotary channels are kept in BF16, two bytes each":
                lambda *a: cache(*a, entry=lambda c, r: c),
            "every channel counts two bytes: only the r rotary channels are kept in BF16, the "
            "others in FP8":
                lambda *a: cache(*a, entry=lambda c, r: 2 * c),
            "FP8 and BF16 are exchanged: the r rotary channels take two bytes, the c - r others "
            "one":
                lambda *a: cache(*a, entry=lambda c, r: 2 * (c - r) + r),
            "the rotary channels are added to c: they are the last r of the c channels":
                lambda *a: cache(*a, entry=lambda c, r: c + 2 * r),
            "keys and values are counted apart: one vector serves as both":
                lambda *a: cache(*a, times=2),
            "each head has its own keys: all heads share one":
                lambda config, n: cache(config, n, times=config.n_heads),
            "index keys are counted in FP8: an FP4 number takes half a byte":
                lambda *a: cache(*a, key=lambda ci: ci),
            "index keys are counted in BF16: an FP4 number takes half a byte":
                lambda *a: cache(*a, key=lambda ci: 2 * ci),
            "there is one index key for all indexer heads: ci numbers, not Hi ci":
                lambda config, n: cache(config, n, key=lambda ci: config.index_n_heads * ci / 2),
            "HCA layers have no indexer, and so no index keys":
                _changed("CSA index keys", _keys_of_all_layers),
            "the window is counted in the window-only layers: every layer has one":
                _changed("window", _only_window_layers),
            "the MTP block's entry of compress_ratios is counted: take the first n_layers":
                lambda *a: cache(*a, layers=lambda config: config.compress_ratios),
            "a window holds at most the n tokens that there are: min(n, w)":
                lambda *a: cache(*a, hold=lambda n, w: w),
            "the window does not grow with the context: min(n, w)":
                lambda *a: cache(*a, hold=lambda n, w: n),
            "an entry stands for m tokens: count n // m, not n":
                lambda *a: cache(*a, rows=lambda n, m: n),
            "only complete windows have an entry: round n / m down, not up":
                lambda *a: cache(*a, rows=lambda n, m: -(-n // m)),
            "there are only whole entries: n // m, not n / m":
                lambda *a: cache(*a, rows=lambda n, m: n / m),
            "HCA entries are counted as if each were made of 4 tokens":
                _changed("HCA entries", _entries_of_4_tokens),
        },
        hints=(
            "One entry: (c - r) + 2 r bytes. One index key: ci / 2 bytes. Which layers have which?",
            "ratios = config.compress_ratios[:config.n_layers]. 4 is CSA, more is HCA; every "
            "layer has a window of min(n, w).",
            "CSA entries: ratios.count(4) * entry * (n // 4). HCA entries: the sum of entry * (n "
            "// m) over m > 4.",
        ),
    ),
    Check(
        "context.operations", operations, _operations_cases,
        mistakes={f"still to be fixed: {', '.join(faults)}": partial(operations, faults=faults)
                  for faults in _remaining()} | {
            "HCA reads all of its entries: it has no top-k": _hca_with_top_k,
            "the indexer's products are FP4 times FP4: each counts a half":
                lambda *a: operations(*a, indexer=2),
            "every core counts half: BF16 counts 2, and c multiply-adds go into a score, c into "
            "the sum of the values":
                lambda *a: operations(*a, CSA=0.5, HCA=0.5, window_only=0.5),
            "everything counts half: a multiply-add is two operations":
                lambda *a: operations(*a, indexer=0.5, CSA=0.5, HCA=0.5, window_only=0.5),
        },
        hints=(
            "For each kind of layer: how many keys are there, how many of these are read, and "
            "what is read beside them?",
            "Two faults sit in the CSA layers, one in the HCA layers. One of the three shows only "
            "in short texts.",
            "Index keys: n // 4. CSA reads min(k, n // 4) + w. HCA reads n // m + w.",
        ),
    ),
    Check(
        "context.longest", longest, _longest_cases,
        mistakes={
            "one token more than fits: the cache must take at most `memory` bytes":
                lambda config, memory: longest(config, memory) + 1,
            "the windows are forgotten: they take memory, too":
                lambda config, memory: int(memory / _per_token(config)),
            "a straight line through a staircase: an entry is only there when its window is "
            "complete, so some tokens more fit":
                lambda config, memory: int((memory - _window(config)) / _per_token(config)),
            "this is a whole number of HCA windows: some tokens more fit, as long as no entry is "
            "added": lambda config, memory:
                _whole_windows(config, memory, max(config.compress_ratios)),
            "this is a whole number of CSA windows: up to 3 tokens more fit, which wait for their "
            "window":
                lambda config, memory: _whole_windows(config, memory, 4),
        },
        hints=(
            "sum(cache(config, n).values()) never decreases as n grows. What is the largest n for "
            "which it is at most `memory`?",
            "Double n until it is too much, then halve the interval again and again.",
            "low fits, high does not; middle = (low + high) // 2 becomes one of them, until high "
            "= low + 1.",
        ),
    ),
]
