"""Checks of lesson 00: the share of experts that works, the price of a mix of tokens, the bytes of
the cache (V4 report, section 2.3.4)."""

from minids.learn.exercise import Check

LESSON = "00_start_here"


# ---- the share of experts that works ----

def active_share(n_routed, n_active, n_shared):
    """The share of one layer's experts that works for one token, from 0 to 1.

    The shared experts always work.
    """
    return (n_active + n_shared) / (n_routed + n_shared)


def _share_cases(rng):
    yield "V4-Flash: 6 of 256, and 1 shared", (256, 6, 1)
    yield "V4-Pro: 6 of 384, and 1 shared", (384, 6, 1)
    yield "a small layer: 2 of 8, and 1 shared", (8, 2, 1)
    yield "two shared experts", (16, 3, 2)
    yield "no shared expert", (12, 5, 0)
    yield "all experts work", (4, 4, 3)


# ---- the price of a mix of tokens ----

def blended_price(input_usd, output_usd, tokens_in, tokens_out):
    """US dollars for a million tokens of a job that reads `tokens_in` and writes `tokens_out`.

    input_usd, output_usd: prices of a million tokens.
    """
    return (input_usd * tokens_in + output_usd * tokens_out) / (tokens_in + tokens_out)


def _bill(input_usd, output_usd, tokens_in, tokens_out):
    return input_usd * tokens_in + output_usd * tokens_out


def _as_given(input_usd, output_usd, tokens_in, tokens_out):
    """The lesson's broken version. It fails where tokens_out is 0."""
    return (input_usd * tokens_in / tokens_in + output_usd * tokens_out / tokens_out) / 2


def _without_the_half(input_usd, output_usd, tokens_in, tokens_out):
    return input_usd * tokens_in / tokens_in + output_usd * tokens_out / tokens_out


def _price_cases(rng):
    yield "as many tokens read as written", (0.435, 0.87, 500.0, 500.0)
    yield "three read for each one written", (2.5, 15.0, 3000, 1000)
    yield "mostly writing", (5.0, 25.0, 120.0, 4000.0)
    yield "nothing but reading", (1.74, 3.48, 700.0, 0.0)


# ---- the bytes of the cache ----

def cache_bytes(ratios, n, entry=576, index_key=64, window=128):
    """Bytes of cache after n tokens; `ratios` has a layer each: 0 window only, 4 CSA, more HCA."""
    return sum(_layer(m, n, entry, index_key, window) for m in ratios)


def _layer(m, n, entry, index_key, window, kept=min, entries=lambda n, m, window: n // m,
           keys=lambda m, entries, kept, n: entries if m == 4 else 0, windows=lambda m: True):
    """The bytes of one layer. The functions make mistakes.

    They say how many tokens the window holds, how many entries and index keys a layer has, and
    whether it has a window.
    """
    held = kept(n, window)
    compressed = entries(n, m, window) if m else 0
    total = windows(m) * held * entry + compressed * entry
    return total + (keys(m, compressed, held, n) * index_key if m else 0)


def _cache(total=sum, **changes):
    """`cache_bytes` with one thing changed: in each layer, or in how the layers are added up."""
    def version(ratios, n, entry=576, index_key=64, window=128):
        return total([_layer(m, n, entry, index_key, window, **changes) for m in ratios])
    return version


def _constant(**constants):
    """`cache_bytes` with numbers in place of some of its arguments."""
    def version(ratios, n, entry=576, index_key=64, window=128):
        sizes = {"entry": entry, "index_key": index_key, "window": window}
        return cache_bytes(ratios, n, **(sizes | constants))
    return version


def _one_window(ratios, n, entry=576, index_key=64, window=128):
    return cache_bytes(ratios, n, entry, index_key, window) - (len(ratios) - 1) * entry * min(
        n, window)


def _key_for_entry(ratios, n, entry=576, index_key=64, window=128):
    return cache_bytes(ratios, n, entry, index_key, window) - entry * sum(
        n // m for m in ratios if m == 4)


def _cache_cases(rng):
    yield "one window-only layer, 1000 tokens", ([0], 1000)
    yield "one HCA layer, 1024 tokens", ([128], 1024)
    yield "one CSA layer, 1024 tokens", ([4], 1024)
    ratios = [0, 0] + [4, 128] * 4
    yield "ten layers, 1003 tokens: the last compression window is not full", (ratios, 1003)
    yield "ten layers, 90 tokens: the window is not full either", (ratios, 90)
    yield "no token yet", (ratios, 0)
    other = ([0, 4, 16, 4, 16, 32], 203, 500, 30, 50)
    yield "other sizes of an entry, an index key and a window; HCA of 16 and 32", other


CHECKS = [
    Check(
        "start.active_share", active_share, _share_cases,
        mistakes={
            "you leave the shared expert out; it works for every token, and it is one of the "
            "layer's experts":
                lambda n_routed, n_active, n_shared: n_active / n_routed,
            "you count the shared expert above the line only; it belongs to the layer's experts "
            "below the line too":
                lambda n_routed, n_active, n_shared: (n_active + n_shared) / n_routed,
            "you count the shared expert below the line only; it works too, so it belongs above "
            "the line as well":
                lambda n_routed, n_active, n_shared: n_active / (n_routed + n_shared),
            "your expression lacks parentheses, and / goes before +; add up both counts first":
                lambda n_routed, n_active, n_shared: n_active + n_shared / n_routed + n_shared,
            "your sum above the line lacks parentheses, and / goes before +; add up the experts "
            "that work, then divide":
                lambda n_routed, n_active, n_shared: n_active + n_shared / (n_routed + n_shared),
            "your sum below the line lacks parentheses, and / goes before +; add up all experts, "
            "then divide":
                lambda n_routed, n_active, n_shared: (n_active + n_shared) / n_routed + n_shared,
            "you divide both counts by n_routed and add one whole n_shared; all experts, the "
            "shared ones too, should be below the line":
                lambda n_routed, n_active, n_shared: n_active / n_routed + n_shared,
            "you return percent, rounded; it should be a share from 0 to 1 with all of its digits":
                lambda *numbers: round(100 * active_share(*numbers), 1),
            "you return percent; it should be a share from 0 to 1":
                lambda *numbers: 100 * active_share(*numbers),
            "you return percent and leave the shared expert out; it should be a share from 0 to 1 "
            "that counts it":
                lambda n_routed, n_active, n_shared: 100 * n_active / n_routed,
            "your fraction is upside down; the experts that work should be above the line":
                lambda n_routed, n_active, n_shared: (n_routed + n_shared) / (n_active + n_shared),
            "you drop the fraction with // or int(); / should keep it":
                lambda n_routed, n_active, n_shared: (n_active + n_shared) // (n_routed + n_shared),
            "you round the share; return all of its digits":
                lambda *numbers: round(active_share(*numbers), 2),
            "you round the share to three digits; return all of them":
                lambda *numbers: round(active_share(*numbers), 3),
            "you round the share to four digits; return all of them":
                lambda *numbers: round(active_share(*numbers), 4),
            "you count one shared expert in every layer; a layer has n_shared of them":
                lambda n_routed, n_active, n_shared: active_share(n_routed, n_active, 1),
            "you return the share that rests; it should be the share that works":
                lambda *numbers: 1 - active_share(*numbers),
            "you return how many experts work; it should be their share of all experts":
                lambda n_routed, n_active, n_shared: n_active + n_shared,
            "you take the shared experts out of n_active; they work beside the chosen ones":
                lambda n_routed, n_active, n_shared: (n_active - n_shared) / n_routed,
            "you multiply the counts; the shared experts should be added":
                lambda n_routed, n_active, n_shared: n_active * n_shared / n_routed,
        },
        hints=(
            "Count first the experts that work for one token, then all experts of the layer.",
            "The shared expert belongs to both counts.",
            "For Flash: 6 + 1 experts work, of 256 + 1.",
        ),
        gradient=False,
    ),
    Check(
        "start.blended_price", blended_price, _price_cases,
        mistakes={
            "your version is still the broken one: the numbers of tokens cancel out, and the plain "
            "mean of the two prices remains; each price should weigh as much as it has tokens":
                _as_given,
            "you take the plain mean of the two prices; each should weigh as much as it has tokens":
                lambda input_usd, output_usd, tokens_in, tokens_out: (input_usd + output_usd) / 2,
            "you only took the 2 away: the numbers of tokens still cancel out; each price should "
            "weigh as much as it has tokens": _without_the_half,
            "you add up the two prices; each should weigh as much as it has tokens":
                lambda input_usd, output_usd, tokens_in, tokens_out: input_usd + output_usd,
            "your weights are exchanged; the input price belongs to tokens_in":
                lambda input_usd, output_usd, tokens_in, tokens_out:
                blended_price(output_usd, input_usd, tokens_in, tokens_out),
            "you return the bill for all tokens; divide it by their number, tokens_in + tokens_out":
                _bill,
            "you return half of the bill; divide it by the number of tokens, tokens_in + "
            "tokens_out": lambda *numbers: _bill(*numbers) / 2,
            "you return the bill in dollars; divide it by the number of tokens, and keep prices "
            "for a million": lambda *numbers: _bill(*numbers) / 1e6,
            "you return the price of one token; it should be that of a million, as the prices that "
            "go in": lambda *numbers: blended_price(*numbers) / 1e6,
            "you multiply by a million; the prices that go in are for a million tokens already":
                lambda *numbers: blended_price(*numbers) * 1e6,
            "you divide the bill by the tokens that are read; those written are paid for too":
                lambda *numbers: _bill(*numbers) / numbers[2],
            "you divide the bill by the tokens that are written; those read are paid for too":
                lambda *numbers: _bill(*numbers) / numbers[3],
            "your division lacks parentheses: only the last product is divided; divide the whole "
            "bill":
                lambda input_usd, output_usd, tokens_in, tokens_out: input_usd * tokens_in
                + output_usd * tokens_out / (tokens_in + tokens_out),
            "your division lacks parentheses: it divides by tokens_in alone and adds tokens_out; "
            "divide by their sum":
                lambda *numbers: _bill(*numbers) / numbers[2] + numbers[3],
            "you count what is read only; what is written costs too":
                lambda input_usd, output_usd, tokens_in, tokens_out:
                input_usd * tokens_in / (tokens_in + tokens_out),
            "you count what is written only; what is read costs too":
                lambda input_usd, output_usd, tokens_in, tokens_out:
                output_usd * tokens_out / (tokens_in + tokens_out),
            "you drop the fraction with // or int(); / should keep it":
                lambda *numbers: blended_price(*numbers) // 1,
            "you halve the price once more; dividing by all tokens is enough":
                lambda *numbers: blended_price(*numbers) / 2,
            "you round the price; return all of its digits":
                lambda *numbers: round(blended_price(*numbers), 2),
        },
        hints=(
            "Write the bill first: each price times its own number of tokens.",
            "A price is a bill divided by all the tokens that were paid for.",
            "Check by hand: 3000 tokens at 2.50 and 1000 at 15.00 are 5.625 dollars for a million.",
        ),
        gradient=False,
    ),
    Check(
        "start.cache_bytes", cache_bytes, _cache_cases,
        mistakes={
            "you leave the index keys out; a CSA layer keeps one beside each compressed entry":
                _cache(keys=lambda m, entries, kept, n: 0),
            "you give HCA layers index keys; only CSA layers (m == 4) have an indexer":
                _cache(keys=lambda m, entries, kept, n: entries),
            "you keep an index key for every token; there is one for each compressed entry, n // 4":
                _cache(keys=lambda m, entries, kept, n: n if m == 4 else 0),
            "you keep index keys for the tokens of the window too; only compressed entries have "
            "them": _cache(keys=lambda m, entries, kept, n: entries + kept if m == 4 else 0),
            "you keep one index key in a CSA layer; there is one for each compressed entry":
                _cache(keys=lambda m, entries, kept, n: int(m == 4)),
            "you keep an index key in place of the compressed entry; a CSA layer keeps both":
                _key_for_entry,
            "you leave the window out; each layer keeps the last tokens one by one":
                _cache(windows=lambda m: False),
            "you give the window to layers of ratio 0 only; every layer keeps its last tokens":
                _cache(windows=lambda m: not m),
            "you count the window once; every layer keeps its own": _one_window,
            "you count a full window always; before it is full it holds n tokens":
                _cache(kept=lambda n, window: window),
            "you keep all n tokens in the window; it holds no more than `window`":
                _cache(kept=lambda n, window: n),
            "you take the larger of n and window; the window holds the smaller":
                _cache(kept=max),
            "you compress only the tokens that have left the window; entries are made of all n "
            "tokens": _cache(entries=lambda n, m, window: max(n - window, 0) // m),
            "you count a part of an entry; a group that is not full should give none, n // m":
                _cache(entries=lambda n, m, window: n / m),
            "you round the number of entries up; a group that is not full should give none, n // m":
                _cache(entries=lambda n, m, window: -(-n // m)),
            "you round the number of entries to the nearest; a group that is not full should give "
            "none, n // m": _cache(entries=lambda n, m, window: round(n / m)),
            "you leave the compressed entries out; a layer with ratio m above 0 keeps n // m":
                _cache(entries=lambda n, m, window: 0,
                       keys=lambda m, entries, kept, n: n // m if m == 4 else 0),
            "you count the first layer only; is your `return` inside the loop? Add up all layers":
                _cache(total=lambda layers: layers[0]),
            "you return the last layer's bytes; add up all layers":
                _cache(total=lambda layers: layers[-1]),
            "your formula has the numbers 576, 64, and 128; take the arguments entry, index_key, "
            "and window": _constant(entry=576, index_key=64, window=128),
            "your formula has the number 128; take the argument window": _constant(window=128),
            "your formula has the numbers 576 and 64; take the arguments entry and index_key":
                _constant(entry=576, index_key=64),
            "your formula has the number 576; take the argument entry": _constant(entry=576),
            "your formula has the number 64; take the argument index_key": _constant(index_key=64),
            "you give entries to layers of ratio 4 and 128 only; any ratio above 0 compresses":
                _cache(entries=lambda n, m, window: n // m if m in (4, 128) else 0),
        },
        hints=(
            "Go through the layers. Each keeps the last min(n, window) tokens, each token as one "
            "entry.",
            "A layer with ratio m has n // m compressed entries as well; with ratio 0 it has none.",
            "In a CSA layer (m == 4) each compressed entry has an index key beside it.",
        ),
        gradient=False,
    ),
]
