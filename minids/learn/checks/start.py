"""Checks of lesson 00: the share of experts that works, the price of a mix of tokens, the bytes of
the cache (V4 report, section 2.3.4)."""

from minids.learn.exercise import Check

LESSON = "00_start_here"


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


def blended_price(input_usd, output_usd, tokens_in, tokens_out):
    """US dollars for a million tokens of a job that reads `tokens_in` and writes `tokens_out`.

    input_usd, output_usd: prices of a million tokens.
    """
    return (input_usd * tokens_in + output_usd * tokens_out) / (tokens_in + tokens_out)


def _bill(input_usd, output_usd, tokens_in, tokens_out):
    return input_usd * tokens_in + output_usd * tokens_out


def _price_cases(rng):
    yield "as many tokens read as written", (0.435, 0.87, 500.0, 500.0)
    yield "three read for each one written", (2.5, 15.0, 3000.0, 1000.0)
    yield "nothing but reading", (1.74, 3.48, 700.0, 0.0)
    yield "mostly writing", (5.0, 25.0, 120.0, 4000.0)


def cache_bytes(ratios, n, entry=576, index_key=64, window=128):
    """Bytes of cache after n tokens; `ratios` has a layer each: 0 window only, 4 CSA, more HCA."""
    total = 0
    for m in ratios:
        total += min(n, window) * entry
        if m:
            total += n // m * entry
        if m == 4:
            total += n // m * index_key
    return total


def _cache_cases(rng):
    yield "one window-only layer, 1000 tokens", ([0], 1000)
    yield "one HCA layer, 1024 tokens", ([128], 1024)
    yield "one CSA layer, 1024 tokens", ([4], 1024)
    ratios = [0, 0] + [4, 128] * 4
    yield "ten layers, 1003 tokens: the last compression window is not full", (ratios, 1003)
    yield "ten layers, 90 tokens: the window is not full either", (ratios, 90)


def _cache(min_of=min, divide=lambda n, m: n // m, keys=lambda m: m == 4, windows=True):
    """A version of cache_bytes with one thing changed."""
    def version(ratios, n, entry=576, index_key=64, window=128):
        total = windows * len(ratios) * min_of(n, window) * entry
        return total + sum(divide(n, m) * (entry + keys(m) * index_key) for m in ratios if m)
    return version


CHECKS = [
    Check(
        "start.active_share", active_share, _share_cases,
        mistakes={
            "the shared expert is missing: it works for every token, and it is one of the layer's "
            "experts":
                lambda n_routed, n_active, n_shared: n_active / n_routed,
            "the shared expert works, but it is not counted among the layer's experts; add it "
            "below the line too":
                lambda n_routed, n_active, n_shared: (n_active + n_shared) / n_routed,
            "the shared expert is counted among the experts but not among those that work; add it "
            "above the line too":
                lambda n_routed, n_active, n_shared: n_active / (n_routed + n_shared),
            "this is the share in percent; return a number from 0 to 1":
                lambda *numbers: 100 * active_share(*numbers),
            "the fraction is upside down":
                lambda n_routed, n_active, n_shared: (n_routed + n_shared) / (n_active + n_shared),
            "// drops the fraction; divide with /":
                lambda n_routed, n_active, n_shared: (n_active + n_shared) // (n_routed + n_shared),
        },
        hints=(
            "Count first the experts that work for one token, then all experts of the layer.",
            "The shared expert belongs to both counts.",
            "For Flash: 6 + 1 experts work, of 256 + 1.",
        ),
    ),
    Check(
        "start.blended_price", blended_price, _price_cases,
        mistakes={
            "this is the plain mean of the two prices; weigh each by its number of tokens":
                lambda input_usd, output_usd, tokens_in, tokens_out: (input_usd + output_usd) / 2,
            "the weights are exchanged: the input price belongs to tokens_in":
                lambda input_usd, output_usd, tokens_in, tokens_out:
                blended_price(output_usd, input_usd, tokens_in, tokens_out),
            "this is the bill for all tokens; divide by their number, tokens_in + tokens_out":
                _bill,
            "this is the bill in dollars; divide by the number of tokens, and keep prices per "
            "million":
                lambda *numbers: _bill(*numbers) / 1e6,
        },
        hints=(
            "Write the bill first: each price times its own number of tokens.",
            "A price is a bill divided by all the tokens that were paid for.",
            "Check by hand: 3000 tokens at 2.50 and 1000 at 15.00 are 5.625 dollars for a million.",
        ),
    ),
    Check(
        "start.cache_bytes", cache_bytes, _cache_cases,
        mistakes={
            "the index keys are missing: a CSA layer keeps one beside each entry":
                _cache(keys=lambda m: False),
            "HCA layers have no indexer: only CSA layers (ratio 4) keep index keys":
                _cache(keys=bool),
            "the window is missing: each layer keeps the last tokens one by one":
                _cache(windows=False),
            "before the window is full it holds n tokens: min(n, window)":
                _cache(min_of=lambda n, window: window),
            "a compression window that is not full gives no entry: n // m":
                _cache(divide=lambda n, m: n / m),
            "the last compression window is rounded up; one that is not full gives no entry: n // "
            "m":
                _cache(divide=lambda n, m: -(-n // m)),
        },
        hints=(
            "Go through the layers. Each keeps the last min(n, window) tokens, each token as one "
            "entry.",
            "A layer with ratio m has n // m compressed entries as well; with ratio 0 it has none.",
            "In a CSA layer (m == 4) each compressed entry has an index key beside it.",
        ),
    ),
]
