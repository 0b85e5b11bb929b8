# %% [markdown]
# # 05 A million tokens
#
# **Behind 1,048,576 tokens V4-Flash decodes the next one for a tenth of what V3.2 pays, and keeps them in 3.6 GB instead of 49. You take the memory apart, recompute the published
# percentages term by term, and let the nano model read a text sixteen times as long as any it was trained on.**
#
# **After this you can**
# - say what a decoder must remember of the past, part by part, and what it may forget,
# - cut a text anywhere and get the same logits, and find the part that somebody forgot to carry,
# - draw which tokens one query reaches through its window, CSA and HCA,
# - compute bytes of cache and operations of a decoded token from a `config.json`, at any context,
# - rebuild the report's percentages of V3.2 (operations 27 for Pro and 10 for Flash, cache 10 and 7), and say which term each lives on,
# - tell what a long context costs from what it is good for.
#
# *Time: 131 minutes, exercises included.
# The code itself runs in about half a minute.*
# *Before this: lessons 02 to 04 (window, HCA, CSA, indexer).*

# %%
import json
from unittest import mock

import minids
import torch
from minids import Config, cost
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model.indexer import Indexer
from minids.recipes import million
from minids.show import context, style
from minids.system import paths

style.use()
versions()

# %% [markdown]
# ## How many bytes is a million tokens?
#
# A million tokens are a shelf of novels. While a model writes, each layer keeps something of every one of them: the *cache*. A common design (grouped-query attention, 8 key-value heads of 128 channels, BF16) takes 262 GB at
# the 61 layers that V3.2 and V4-Pro have, more than three accelerators of 80 GB for a single text. V3.2 brought that down to 49 GB.
#
# **Predict before you run:** what does V4-Pro take, with as many layers?

# %% jupyter={"outputs_hidden": true}
flash, pro = (Config.from_json(paths.data("v4", f"{name}.config.json"))
              for name in ("flash", "pro"))
MILLION = 2**20
# layers, key and value, heads, channels, bytes
held = {"grouped queries, 61 layers": 61 * 2 * 8 * 128 * 2 * MILLION,
        "V3.2": cost.kv_bytes_v32(MILLION)["total"],
        "V4-Pro": cost.kv_bytes(pro, MILLION)["total"],
        "V4-Flash": cost.kv_bytes(flash, MILLION)["total"]}
style.show(context.plot_memory(held), "Bytes of cache at a million tokens, on a logarithmic "
           "axis: grouped queries 262 GB, V3.2 49 GB, V4-Pro 5.2 GB, V4-Flash 3.6 GB")
print(f"V4-Pro takes {held['V4-Pro'] / held['V3.2']:.1%} of V3.2, and "
      f"{held['V4-Pro'] / held['grouped queries, 61 layers']:.1%} of grouped queries")

# %% [markdown]
# The report says 10 % (figure 1; section 6 comes back to the difference) and "approximately 2 %" of grouped queries (section 2.3.4). By the end of this lesson you have computed all of these numbers yourself. First: what is it that is kept?
#
# ## 1. What one token leaves for the next
#
# When token t has been read, its hidden states are thrown away. What stays is the **decode state** (report 3.6.1). Each layer keeps at most five things:
#
# | part | what | in which layers | grows? |
# | --- | --- | --- | --- |
# | the **ring** | key-value vectors of the last w tokens | all | no: w of them |
# | **entries** | one for each complete window of m tokens | CSA (m = 4), HCA (m = 128; nano 16) | n / m |
# | **index keys** | one for each entry, narrower | CSA | n / 4 |
# | **waiting tokens** | value and gate of the tokens whose window is not complete | CSA, HCA | no: fewer than m |
# | the **a-half** | value and gate of the last complete window, for the overlap | CSA | no: m |
#
# n is the number of tokens read. In CSA the last two parts exist twice: once for the entries and once, narrower, for the index keys.
#
# Here is one CSA layer with w = 6 and m = 4 after 14 tokens. Move it on in your head: what changes with token 14, 15, 16?

# %% jupyter={"source_hidden": true}
style.show(context.plot_state(14, 6, 4, 20),
           "A CSA layer after 14 tokens: tokens 8 to 13 are in the window, 12 and 13 wait, the "
           "a-half of tokens 8 to 11 is kept, and entries 0 to 2 with their index keys")

# %% [markdown]
# Token 14 pushes token 8 out of the window and waits. Token 15 completes window 3: entry 3 is made from the a-half (tokens 8 to 11) and from tokens 12 to 15, nobody waits any more, and the a-half is now that of 12 to 15.
#
# Token 15 makes an index key for window 3, too. Token 16 waits again, alone. Each of the three pushes the oldest token out of the window. In the figure tokens 0 to 7 are gone already. What is left of them are entries 0 and 1, a share of entry 2 (tokens 4 to 7, by the overlap), and the index keys. **A context of V4 is mostly a list of summaries.**
#
# ### The ring
#
# The last w vectors could be kept in order, the oldest thrown out and all others moved. It is cheaper to let the token at position p overwrite slot $p \bmod w$. By hand, w = 3, after 5 tokens (positions 0 to 4):
#
# | slot | 0 | 1 | 2 |
# | --- | --- | --- | --- |
# | written by positions | 0, 3 | 1, 4 | 2 |
# | holds | 3 | 4 | 2 |
#
# The order is lost: 3, 4, 2. **Predict before you run:** does the attention mind?

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(0)
keys = torch.randn(6, 8, generator=rng)  # w c: vectors of a window, turned already
query, mixed = torch.randn(8, generator=rng), torch.tensor([3, 4, 5, 0, 1, 2])
in_order = (keys @ query).softmax(0) @ keys  # c
as_ring = (keys[mixed] @ query).softmax(0) @ keys[mixed]  # c
torch.testing.assert_close(in_order, as_ring)
print("the same output: a softmax and a sum do not know an order")

# %% [markdown]
# Where a key stands is written in the key itself: it was turned by its position before it was kept (lesson 02). So slots may come in any order.
#
# ### Exercise 1: who is in the ring?
# *Easy, 5 minutes.*

# %%
def ring(seen, w):
    """The position of the token that each slot holds after `seen` tokens, positions 0 to seen -
    1.

    -> w, int64; -1 where nothing was written yet.
    """
    ### BEGIN SOLUTION
    slots = torch.full((w,), -1)
    for p in range(seen):
        slots[p % w] = p
    return slots
    ### END SOLUTION


# %%
ring = check("context.ring", ring)
for seen in (2, 5, 200):
    print(f"after {seen:3} tokens the three slots hold", ring(seen, 3).tolist())

# %% [markdown]
# (`minids` keeps its vectors in order in a buffer with some room, and moves them to the beginning when the room is used up: `LayerState.step`. Serving code writes a ring.)
#
# ### What a compressor carries
#
# The other small parts are the compressor's. New tokens come in chunks of any size: a prompt of thousands, then one token at a time. The windows must come out as if the text had come in one piece.
#
# ### Exercise 2: feed a compressor
# *Medium, 15 minutes.* As in lesson 04 each token makes 2c numbers, the first c are its a-half. (Values and gates go the same way, so we take one tensor for both. Before the first window `before` is 0 for values and $-\infty$ for gates.)

# %%
def feed(new, waiting, before):
    """Take new tokens; give the slots of all windows that are complete now, and what to carry
    to the next call.

    new: T 2c; waiting: n0 2c, tokens of an incomplete window (n0 < m); before: m c, the last
    complete window's a-half.
    Returns slots: n 2m c (the a-half of the window before, then the own b-half); the tokens
    that wait now; the new `before`.
    """
    ### BEGIN SOLUTION
    m = len(before)
    t = torch.cat([waiting, new])                                                   # r+T 2c
    n = len(t) // m
    a, b = t[:n * m].view(n, m, t.shape[1]).chunk(2, -1)                            # n m c each
    slots = torch.cat([torch.cat([before[None], a])[:n], b], 1)                     # n 2m c
    return slots, t[n * m:], a[-1] if n else before
    ### END SOLUTION


# %%
feed = check("context.feed", feed)
tokens, m = torch.randn(23, 10, generator=rng), 4                                   # T 2c
whole, _, _ = feed(tokens, tokens[:0], torch.zeros(m, 5))
waiting, before, pieces = tokens[:0], torch.zeros(m, 5), []
for chunk in tokens.split([9, 1, 1, 2, 7, 3]):
    slots, waiting, before = feed(chunk, waiting, before)
    pieces.append(slots)
    print(f"{len(chunk)} tokens come: {len(slots)} windows complete, {len(waiting)} tokens "
          "wait")
torch.testing.assert_close(torch.cat(pieces), whole)

# %% [markdown]
# ## 2. However you cut it
#
# *Prefill* is reading a prompt, many tokens at a time; *decoding* is one token at a time. With the whole state carried there is no difference: any cut gives the logits of one pass. (192 tokens make 48 entries, fewer than k = 64: the indexer does not choose yet, each query reads all. The tests of `minids` also cut texts in which it chooses.) The shipped nano model, 192 tokens of text it has not seen in training:

# %%
nano, tokenizer = minids.load(paths.data("checkpoints", "nano")), Tokenizer.load()
text = million.stream(2**14, tokenizer)  # held-out documents, one after another
ids = text[None, :192]                   # B T
with torch.inference_mode():
    right = nano(ids)                    # B T vocab
    for name, cuts in {"one token at a time": [1] * 192,
                       "a prompt of 150, then single tokens": [150] + [1] * 42,
                       "any cuts": [3, 50, 1, 29, 64, 2, 43]}.items():
        state = nano.new_state(1, 192)
        parts = torch.cat([nano(part, state) for part in ids.split(cuts, 1)], 1)
        torch.testing.assert_close(parts, right, atol=1e-3, rtol=1e-3)
        print(f"{name}: equal")

# %% [markdown]
# Now somebody forgets one part between the first call and the second. **Predict before you run:** which tokens go wrong, and for how long, when the second call starts
# - with an empty ring?
# - without the waiting tokens?
# - without the a-halves?
#
# And does it matter where the text is cut? We cut once at token 83, once at 96, a multiple of 4 and of 16.

# %%
def forget(state, part):
    """Lose one part of the decode state in every layer."""
    for layer in state.layers:
        if part == "the ring":
            layer.window = torch.zeros_like(layer.window)
        for compressor in layer.compressors:  # CSA has two: the indexer has its own
            if part == "waiting tokens":
                compressor.tail = None
            if part == "a-halves":
                compressor.before = None


@torch.inference_mode()
def errors(cut, part):
    """The largest error of a logit for each token, T, where `part` is lost behind token cut
    - 1."""
    state = nano.new_state(1, 192)
    first = nano(ids[:, :cut], state)
    forget(state, part)
    return (torch.cat([first, nano(ids[:, cut:], state)], 1) - right)[0].abs().amax(-1)


PARTS = "nothing", "the ring", "waiting tokens", "a-halves"
lost = {cut: {part: errors(cut, part) for part in PARTS} for cut in (83, 96)}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(
    context.plot_errors({"cut at token 83": (83, lost[83]),
                         "cut at token 96, where no token waits": (96, lost[96])}),
    "Errors of the logits by token and by what was forgotten. Before the cut nothing is wrong "
    "(white: below 0.001); each lost part spoils all that follows, an empty ring most just "
    "behind the cut. At 96 nobody waits, so forgetting waiting tokens does no harm")

# %% jupyter={"outputs_hidden": true}
for cut in lost:
    assert (lost[cut]["nothing"].max() < 1e-3
            and all(lost[cut][part][:cut].max() < 1e-3 for part in PARTS))
    assert lost[cut]["the ring"][cut] > 0.1 and lost[cut]["a-halves"][cut:].max() > 0.01
assert lost[83]["waiting tokens"][-60:].min() > 1e-3 and lost[96]["waiting tokens"].max() < 1e-3
print("cut at 83: each forgotten part is seen. Cut at 96: lost waiting tokens are NOT seen")

# %% [markdown]
# - **The ring**: in its window the token at the cut finds only itself and zeros, the next ones little more. The entries are still there. The harm fades as the ring fills, but it does not end there: wrong vectors have gone into entries.
# - **Waiting tokens**: three of them are lost, so each later window holds tokens three places further on. Its entry is turned to a wrong position. Here, where many tokens come in one call, it is also seen up to three tokens too early: the future leaks. Nothing ever mends that.
# - **The a-halves**: one entry and one index key of each CSA layer are made without them. The error begins where that window is complete (at once behind the cut at 83, at token 99 behind the cut at 96), and whatever reads the entry passes it on. Smaller than an empty ring's, but for good.
#
# And the negative control: at 96 nobody waits, so forgetting those who wait does nothing. Chunks of 512 or 1,024 tokens never show this fault; the first decoded tokens do. **Test with cuts that are multiples of nothing.**
#
# ## 3. What one query reaches
#
# The state holds something of every token. What does one query *read* of it? In layer after layer something else:
# - through the **window**: the last w tokens, one by one,
# - through **CSA**: the k entries that its indexer ranks first; each holds the 4 tokens of its own window and, by the overlap, the 4 before,
# - through **HCA**: all complete entries.
#
# ### Exercise 3: draw it
# *Medium, 10 minutes.*

# %%
def reach(picks, t, w, m, T, overlap):
    """Which of T tokens the query at position t reads in one layer: T, bool.

    Those of its window of w tokens (its own among them), and those in the picked entries that
    are complete.
    picks: numbers of entries, int64; m: tokens in an entry's own window; overlap: whether it
    holds the window before, too.
    """
    ### BEGIN SOLUTION
    s = torch.arange(T)
    mask = (s <= t) & (s > t - w)
    for i in picks.tolist():
        if i < (t + 1) // m:
            mask |= (s >= (i - overlap) * m) & (s < (i + 1) * m)
    return mask
    ### END SOLUTION


# %%
reach = check("context.reach", reach)

# %% [markdown]
# Now the real picks: the nano model reads 1,024 tokens, we keep its indexers' scores and look at the last query.

# %%
kept = []


def keeping(*args, original=Indexer.forward):
    """The indexer's scores, kept for us."""
    kept.append(original(*args))                                 # B T S
    return kept[-1]


T, w, k = 1024, nano.config.window_size, nano.config.index_topk
with mock.patch.object(Indexer, "forward", keeping), torch.inference_mode():
    nano(text[None, :T])
best = iter([scores[0, -1].topk(k).indices for scores in kept])  # k, for each CSA layer
rows = {}
for i, ratio in enumerate(nano.config.compress_ratios[:nano.config.n_layers]):
    name = (f"layer {i}: " + {0: "window only", 4: f"CSA, {k} of {T // 4} "
                              "entries"}.get(ratio, f"HCA, all {T // (ratio or 1)} entries"))
    picks = next(best) if ratio == 4 else torch.arange(T // ratio if ratio else 0)
    rows[name] = {"window": reach(picks[:0], T - 1, w, ratio or 1, T, False),
                  "entries": reach(picks, T - 1, 0, ratio or 1, T, ratio == 4)}

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
style.show(context.plot_reach(rows, T - 1),
           "One query in the four layers of nano: the window at the right end in all of them, "
           "scattered stretches of the text in the CSA layers, the whole text in the HCA layer")
for name, parts in rows.items():
    print(f"{name:34} reaches {(parts['window'] | parts['entries']).sum():5} of {T} tokens")

# %%
(_, plain), (_, first_csa), (_, hca), (_, second_csa) = rows.items()
assert plain["window"].sum() == w and hca["entries"].all() and not first_csa["entries"].all()
assert (first_csa["entries"] != second_csa["entries"]).any()
print("window only: 32 tokens. HCA: all of them. CSA: a part, and another one in each layer")

# %% [markdown]
# In V4-Flash at a million tokens a query reads 128 tokens one by one; in 21 layers 512 entries, which hold at most 4,096 tokens, 0.4 % of the text; and in 20 layers 8,192 entries of 128 tokens, which hold all of it. HCA sees the whole text,
# blurred; CSA sees a few places, sharply. The layers take turns.
#
# ## 4. Bytes
#
# An entry has c = 512 channels. The last r = 64, which turn, are kept in BF16 (2 bytes), the others in FP8 (1 byte): $448 + 128 = 576$ bytes. An index key has 128 channels in FP4: 64 bytes. By hand, for Flash with its 21 CSA
# layers and 20 HCA layers, each further token takes on average
#
# $$21 \cdot \frac{576 + 64}{4} + 20 \cdot \frac{576}{128} = 3360 + 90 = 3450 \text{ bytes}$$
#
# and all rings together $43 \cdot 128 \cdot 576$ bytes, once. V3.2 keeps $512 + 2 \cdot 64 = 640$ bytes (lesson 02) and an index key of 128 channels in FP8, 128 bytes, in each of 61 layers: 46,848 bytes a token. $3450 / 46848 = 7.4\,\%$.
#
# ### Exercise 4: from config.json to bytes
# *Medium, 10 minutes.* Leave out the waiting tokens, the a-halves and the scales: we assume that the published figure does so, too.

# %%
def cache(config, n):
    """Bytes of the cache after n tokens of one sequence: {"window", "CSA entries", "CSA index
    keys", "HCA entries"}.

    config.compress_ratios[:config.n_layers] (what follows belongs to the MTP block): 0 is
    window only, 4 is CSA, any larger number m is HCA. Sizes: head_dim (c), rope_head_dim (r),
    index_head_dim (ci), window_size (w).
    """
    ### BEGIN SOLUTION
    ratios = config.compress_ratios[:config.n_layers]
    entry = config.head_dim + config.rope_head_dim  # (c - r) + 2 r
    csa = ratios.count(4) * (n // 4)
    return {"window": len(ratios) * entry * min(n, config.window_size),
            "CSA entries": csa * entry,
            "CSA index keys": csa * config.index_head_dim // 2,
            "HCA entries": sum(entry * (n // m) for m in ratios if m > 4)}
    ### END SOLUTION


# %%
cache = check("context.cache", cache)
for name, config in (("V4-Flash", flash), ("V4-Pro", pro)):
    mine = cache(config, MILLION)
    assert sum(mine.values()) == cost.kv_bytes(config, MILLION)["total"]
    print(f"{name:9}", ", ".join(f"{part} {size / 1e9:.3f}" for part, size in mine.items()),
          f"GB; total {sum(mine.values()) / 1e9:.3f}")

# %% [markdown]
# Seven eighths of it are CSA entries, a tenth their index keys. HCA, which sees everything, costs Flash 2.6 percent of the cache.
#
# ### Exercise 5: how far does a card reach?
# *Easy, 10 minutes.* Turn the question round. Count as if positions had no limit: do not stop at `max_seq_len`. A hint of a difficulty: the cache grows in steps.

# %%
def longest(config, memory):
    """The largest number of tokens whose cache, as `cache` counts, takes at most `memory`
    bytes."""
    ### BEGIN SOLUTION
    fits = lambda n: sum(cache(config, n).values()) <= memory
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
    ### END SOLUTION


# %%
longest = check("context.longest", longest)
print(f"in 24 GB, beside the weights: V4-Flash {longest(flash, 24e9):,} tokens, V4-Pro "
      f"{longest(pro, 24e9):,}, V3.2 {24 * 10**9 // 46848:,}")

# %% [markdown]
# The models take at most 1,048,576 positions. So read this as many texts at once: 24 GB hold the caches of six texts of a million tokens for Flash, four for Pro. The weights (160 and 865 GB) need memory of their own.
#
# ## 5. Operations
#
# One decoded token goes through the weights, whatever the context, and through the attention. Operations are counted in **FP8 equivalents**: a multiply-add is two operations, BF16 and float32 count twice, FP8 once, FP4 times FP4 a half. An expert's FP4 weight meets an
# FP8 activation, which counts as FP8: once. The report does not give these factors: ours are inferred, and reproduce its 27 and 10 percent. (The percentages of the cache are bytes, and need none.) One product of a query with a key is c multiply-adds, adding up its value another c.
# So with H query heads a *core*, the scores and the weighted sum, costs
#
# $$2 \cdot H \cdot (c + c) \cdot 2 \quad \text{for each key that is read}$$
#
# The first 2 is the multiply-add, the last is BF16: keys are kept in FP8 for the most part, but multiplied in BF16.
#
# ### Exercise 6: a colleague's estimate
# *Medium, 15 minutes.* A colleague computed the attention's operations. **Three** faults. Find them. Below, both versions are printed for V4-Flash at a million tokens, and at a thousand, where another fault shows.

# %%
def colleagues_operations(config, n):
    """Operations of the attention over the context, for one token decoded after n others, by
    term. Three faults."""
    ratios, w = config.compress_ratios[:config.n_layers], min(n, config.window_size)
    core = 2 * config.n_heads * 2 * config.head_dim * 2
    return {
        "indexer": ratios.count(4) * 2 * config.index_n_heads * config.index_head_dim * n * 0.5,
        "CSA core": ratios.count(4) * core * (config.index_topk + w),
        "HCA core": sum(core * (n // m) for m in ratios if m > 4),
        "window-only core": ratios.count(0) * core * w,
    }


# %%
def operations(config, n):
    """The same without the faults."""
    ### BEGIN SOLUTION
    ratios, w = config.compress_ratios[:config.n_layers], min(n, config.window_size)
    core = 2 * config.n_heads * 2 * config.head_dim * 2
    return {
        "indexer": ratios.count(4) * 2 * config.index_n_heads * config.index_head_dim * (n // 4)
        * 0.5,
        "CSA core": ratios.count(4) * core * (min(config.index_topk, n // 4) + w),
        "HCA core": sum(core * (n // m + w) for m in ratios if m > 4),
        "window-only core": ratios.count(0) * core * w,
    }
    ### END SOLUTION


# %%
operations = check("context.operations", operations)
for n in (MILLION, 1000):
    for name, version in (("the colleague", colleagues_operations), ("mended", operations)):
        terms = ", ".join(f"{term} {number / 1e9:.2f}"
                          for term, number in version(flash, n).items())
        print(f"{n:9,} {name:13}  {terms} (10^9)")

# %% [markdown]
# ## 6. Every term of the published figure
#
# `cost.flops` has the same four terms, and the weights (exactly counted in lesson 08). V3.2 has 61 layers. In each an indexer (64 heads of 128 channels, FP8) scores every token, and 128 heads read the 2,048 best. **Predict before you run:** on which single term does it spend 88 percent?

# %% jupyter={"outputs_hidden": true}
sides = {"V3.2": (cost.flops_v32(MILLION), cost.kv_bytes_v32(MILLION)),
         "V4-Pro": (cost.flops(pro, MILLION), cost.kv_bytes(pro, MILLION)),
         "V4-Flash": (cost.flops(flash, MILLION), cost.kv_bytes(flash, MILLION))}
assert all(sides["V4-Pro"][0][term] == number
           for term, number in operations(pro, MILLION).items())
for i, what in enumerate(("10^9 operations of one token", "10^9 bytes of cache")):
    old = sides["V3.2"][i]["total"]
    print(what)
    for name, terms in ((name, side[i]) for name, side in sides.items()):
        for term, number in terms.items():
            print(f"    {name:9} {term:26} {number / 1e9:9.3f}"
                  + (f"   {number / old:7.2%} of V3.2" if term == "total" else ""))

# %% jupyter={"outputs_hidden": true}
share = {name: [side[i]["total"] / sides["V3.2"][i]["total"] for i in (0, 1)]
         for name, side in sides.items()}
assert ([round(100 * x) for x in share["V4-Pro"]] == [27, 11]
        and [round(100 * x) for x in share["V4-Flash"]] == [10, 7])
print("Pro: 27 % of the operations and 10.55 % of the bytes; Flash: 10 % and 7 %")

# %% [markdown]
# The report says 27 and 10 percent for Pro, 10 and 7 for Flash (figure 1). Our cache of Pro rounds to 11 where the report has 10. Rounding down is no explanation, since 26.8 became 27. The report may count something differently; 10.55 is what the sizes give.
#
# V3.2 by hand: the indexer $61 \cdot 2 \cdot 64 \cdot 128 \cdot 2^{20} = 1048 \cdot 10^9$. The core $61 \cdot 2 \cdot 128 \cdot (576 + 512) \cdot 2048 \cdot 2 = 69.6 \cdot 10^9$: a key has $512 + 64$ channels, a value 512. The weights: the 37 billion active ones contain an embedding
# table, which is not multiplied, and a head of the same size in BF16, which counts twice. The two cancel: $2 \cdot 37 = 74 \cdot 10^9$.
#
# V3.2 spends 88 percent on its indexer, which scores every single token in every layer. In V4 half of the layers have an indexer, over a quarter of the keys, in FP4: $\frac{30}{61} \cdot \frac14 \cdot \frac12$ of V3.2's, a sixteenth for Pro.
# What is left is spread: weights, indexer, HCA. So it goes on with the context:

# %% jupyter={"source_hidden": true}
lengths = [2**j for j in range(10, 21)]
models = {"DeepSeek-V3.2": (cost.flops_v32, cost.kv_bytes_v32),
          "V4-Pro": (lambda n: cost.flops(pro, n), lambda n: cost.kv_bytes(pro, n)),
          "V4-Flash": (lambda n: cost.flops(flash, n), lambda n: cost.kv_bytes(flash, n))}
what = {measure: {name: [pair[i](n) for n in lengths] for name, pair in models.items()}
        for i, measure in enumerate(("operations", "bytes"))}
style.show(context.plot_stacks(lengths, what), "Operations and bytes by term from 1K to 1M "
           "tokens for V3.2, Pro and Flash, one scale for each row: V3.2's indexer and "
           "latents dwarf all else; in V4 the weights, the indexer and the HCA core share the "
           "operations, CSA entries are the bytes. Terms too thin to be seen are not named")

# %% jupyter={"source_hidden": true}
style.show(context.plot_shares({f"{name}, {style.length(n)}": pair[0](n) for n in (2**14, 2**20)
                                for name, pair in models.items()}),
           "What the operations of one decoded token are spent on, in percent: at 16K "
           "the weights take 46 of V3.2's and over 80 of V4's; at 1M V3.2's indexer takes 88, "
           "while Pro and Flash divide theirs among weights, HCA core and indexer")

# %% [markdown]
# **Predict before you run:** V4-Pro has 49 billion active parameters, V3.2 has 37. From which context on is a token of V4-Pro the cheaper one?

# %% jupyter={"outputs_hidden": true}
curves = {measure: {name: [point["total"] / old["total"]
                           for point, old in zip(points, by_model["DeepSeek-V3.2"])]
                    for name, points in by_model.items() if name != "DeepSeek-V3.2"}
          for measure, by_model in what.items()}
style.show(context.plot_ratios(lengths, curves, {"operations": {"V4-Pro": 27, "V4-Flash": 10},
                                                 "bytes": {"V4-Pro": 10, "V4-Flash": 7}}),
           "Cost relative to V3.2 over the context: Pro's operations begin at 100 percent, are "
           "near 80 from 2K to 16K and fall to 27; the bytes fall quickly and stay at 10.6 and "
           "7.4 percent. Squares: the published values")
for n in (2**10, 2**12, 2**17):
    at = lengths.index(n)
    print(f"at {n:7,} tokens: Pro {curves['operations']['V4-Pro'][at]:.0%} of the operations, "
          f"{curves['bytes']['V4-Pro'][at]:.1%} of the bytes")

# %% [markdown]
# From just above 1K on. But from 2K to 16K the gain is only about a fifth. (The curve rises from 2K to 4K: V3.2 reads its full 2,048 tokens from 2K on, Pro its full 1,024 entries only from 4K on.) **The famous 27 percent is a statement about a million tokens.** The bytes gain everywhere, since each token is kept in fewer of them.
#
# ## 7. Play: what if?
#
# The sliders start at a million tokens and V4's own HCA ratio. **Find out:** what would it cost to compress HCA less, 16 tokens to an entry as in nano? Which of the two, bytes or operations, forbids it? And at which context does it hardly matter?

# %%
box = style.slider_image(
    context.plot_cost_by_term,
    "Operations and cache of V3.2, Flash and Pro by term, at a chosen context and HCA ratio",
    n=lengths, hca_ratio=[16, 32, 64, 128, 256, 512], start={"n": 2**20, "hca_ratio": 128})
box

# %%
box.peek(hca_ratio=16)
fine = context.with_hca_ratio(flash, 16)
print("Flash with HCA over 16 "
      f"tokens: {cost.flops(fine, MILLION)['total'] / cost.flops(flash, MILLION)['total']:.1f} "
      "times the operations, "
      f"{cost.kv_bytes(fine, MILLION)['total'] / cost.kv_bytes(flash, MILLION)['total']:.2f} "
      "times the bytes")

# %% jupyter={"source_hidden": true}
style.show(context.plot_cost_by_term(MILLION, 16),
           "The same as a figure: with 16 tokens to an HCA entry the HCA core becomes the "
           "largest term of Flash and Pro, and the cache grows by a fifth at most")

# %% [markdown]
# Operations forbid it: HCA reads *all* its entries with all heads, and at a million tokens Pro would cost more than V3.2. At 16K it adds an eighth, at 4K some 3 percent: there it hardly matters. That is why there are two kinds of compression: many fine entries, of which few are read, and few coarse ones, of which all are read.
#
# ## 8. The nano model reads on
#
# Nano was trained on texts of at most 1,024 tokens. Nothing in its code ends there: the rotary frequencies are set by the configuration (YaRN from 256 tokens, factor 16), not by the length of the text. Only the state grows. We let it read 16,384 tokens in chunks.
# At each power of two we compare the bytes of its state with the formula (float32, a-halves counted; nobody waits at these lengths, so a test takes others). There we also time some decoded tokens, and then *rewind* the state, as if these had never been read: entries are only ever added, so it is enough to remember how many there were, and the small parts.

# %%
reader = million.long_model(2**14)
state, times = reader.new_state(1, 2**14 + million.ROOM), {}
for n in (2**10, 2**11, 2**12, 2**13, 2**14):
    million.prefill(reader, text[state.pos:n], state)
    held, formula = million.state_bytes(state), million.formula_bytes(reader.config, n)
    assert held == formula
    print(f"{n:6,} tokens: {sum(held.values()):9,} bytes of state, equal to the formula; "
          f"{sum(held.values()) / n:.0f} a token")
    times[n] = million.step_ms(reader, state, steps=24)["cpu_ms"]

# %% tags=["nbval-ignore-output"]
style.show(context.plot_decode_time(times), "Milliseconds of processor time for one decoded "
           "token, 1K to 16K: nearly flat, far below a line in proportion to the context")
print(", ".join(f"{n:,}: {ms:.1f} ms" for n, ms in times.items()))

# %%
assert times[2**14] < 3 * times[2**10]
print("16 times the context, less than 3 times the time of a token")

# %% [markdown]
# (By hand: two CSA layers keep $(32 + 16) \cdot 4$ bytes for 4 tokens, one HCA layer $32 \cdot 4$ for 16, which makes $96 + 8 = 104$ bytes a token, and the small parts.)
#
# Do not credit CSA with the nearly flat times. At this length the fixed costs of a token, the calls of very many small operations, hide the context, and might hide full attention's, too: we have not run that control. Bytes and counts are the evidence, not these times.
#
# So does it *work*?
#
# A fact is planted ("Emil went to the barn."), a story about other people in other places follows, then the question. The fact counts as found if its place is likelier as the answer than three places that nobody told: chance is 3 of 12. Once
# on an empty state, once behind the 16,384 tokens.

# %% tags=["nbval-ignore-output"]
empty = reader.new_state(1, million.ROOM)
found = {d: [million.recall(reader, s, tokenizer, d, rounds=12) for s in (empty, state)]
         for d in (8, 32, 128)}
for d, (alone, behind) in found.items():
    print(f"told {d:3} tokens before: found {alone:2} of 12 without any context, {behind:2} of "
          "12 behind 16,384 tokens")

# %%
assert found[8][0] >= 8
style.say("told just before, nothing else read: most are found. What is left of that behind "
          "16,384 tokens, see above")

# %% [markdown]
# **Long is not the same as good.** The machinery reads on without a fault, in little memory, at a cost that grows slowly. But the model has never seen a position beyond 1,024, nor an indexer's choice among 4,096 entries. Nor has it ever seen other documents in front of its own: training kept them apart (lesson 01). It finds fewer of the near facts than on an empty state. Those told 128 tokens before it hardly finds in either case: both are near chance. V4 was trained in stages of 4K, 16K, 64K
# and 1M tokens (report 4.2.2): that, and not only the code, makes a context of a million tokens worth having.
#
# ## 9. A million tokens for real
#
# `python -m minids.recipes.million` does what the cells above did, up to 1,048,576 tokens, and keeps a record. Each of the two indexers scores $n^2 / 8$ pairs of a query and an entry, some $1.4 \cdot 10^{11}$, with 16 heads. That takes one core an hour or two.

# %%
path = paths.DATA / "records" / "million.json"
record = json.loads(path.read_bytes()) if path.exists() else None
print(context.summary(record) if record else "The record of the long run is not here yet. "
      "`python -m minids.recipes.million` makes it.")

# %% jupyter={"source_hidden": true}
if record:
    style.show(context.plot_record(record), "The recorded run over the context: the time "
               "of a decoded token, uneven but nearly flat up to 64K, then growing, far below "
               "proportion; minutes of reading; bytes of the state and of the process; the "
               "share of planted facts that were found")

# %%
if record:
    done = {point["n"]: point for point in record["points"]}
    assert all(point["state"] == million.formula_bytes(nano.config, n)
               for n, point in done.items())
    print("the state's bytes equal the formula at each power of two")
    if MILLION in done:
        slower = done[MILLION]["cpu_ms"] / done[2**14]["cpu_ms"]
        assert slower <= 5
        style.say(f"a token behind 1,048,576 tokens takes {slower:.1f} times as long as behind "
                  "16,384. In proportion it would be 64 times")

# %% [markdown]
# By count the indexer's work grows in a straight line: V4 too is linear in the context, only with a small factor. The measured times follow that roughly: 5.6 ms at 64K, 10.3 at 256K, 17.6 at 512K, but only 19.0 at 1M. Single times scatter (other programs ran on the other core). Reading shows it better:
# the step from 512K to 1M takes 3.6 times the minutes of that from 256K to 512K, nearly the 4 of a quadratic cost. What the text is worth to *this* model, the summary says: behind 1M tokens the next ones cost 1.74 nats instead of the 0.92 without any context, and at each length the context makes it worse.
# Facts told 8 tokens before fall from 24 of 24 to between 5 and 21 past 128K, without any order.
#
# ## In the real V4
#
# | at 1,048,576 tokens | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | cache | 3.62 GB | 5.18 GB | section 6; 7 and 10 percent of V3.2's in figure 1 |
# | operations of a token | 120.7 GFLOP | 319.4 GFLOP | section 6; 10 and 27 percent in figure 1 |
# | of these the indexer | 37 % | 20 % | section 6 |
# | of these the HCA core | 36 % | 42 % | section 6 |
# | bytes of all rings | 3.2 MB | 4.5 MB | section 4: 43 (61) layers of 128 vectors of 576 bytes |
#
# Serving keeps two pools (report 3.6.1): blocks for entries, each of lcm(4, 128) = 128 tokens, and a small block of fixed size for each user with rings and waiting tokens. A shared beginning of many prompts is kept on disk (3.6.2): the entries are small enough,
# the window vectors of *all* tokens would be some 7 times as large ($43 \cdot 576 / 3450$ in Flash), so they are kept now and then, or computed again.
#
# **The report claims** 27 / 10 and 10 / 7 percent. **Here we have shown** that they follow from the configuration, with inferred factors for the number formats, and that code of this kind reads a million tokens on one core, with a state of exactly the predicted size (109 MB in nano) and little more than 1 GB for the process. **At this scale we cannot show** that a model finds what it read a million
# tokens ago: nano was not trained for that.
#
# ## Key points
# - The decode state: a ring of w vectors in each layer, entries and index keys that grow by n / m, waiting tokens, and with overlap the last a-half (in CSA both also for the index keys). Nothing else.
# - Any cut gives the same logits. Test cuts that are multiples of nothing: a cut at a multiple of m hides lost waiting tokens.
# - Keys carry their position, so a ring needs no order.
# - CSA reads a few fine entries, HCA all coarse ones, the window the last tokens one by one.
# - Flash keeps 3,450 bytes a token, V3.2 46,848. Seven eighths of Flash's are CSA entries.
# - 88 % of V3.2's operations at a million tokens are its indexer. V4 divides that by 16 (Pro) or 23 (Flash).
# - At 4K tokens V4-Pro saves 17 % of V3.2's operations, at 1M 73 %: say the context when you say a percentage.
# - Being able to read a million tokens is code. Making use of them is training.
#
# ## Questions to discuss
#
# <details><summary>1. Why are the waiting tokens not simply put into the cache as they are, and compressed later from the ring?</summary>
#
# The ring holds other vectors: keys made by `wkv` of the attention, normed and turned. The compressor has its own `wkv` and gate. One could keep the layer's input x instead and compute both later: d = 4096 numbers a token. Value and gate with 2c channels each, and the same for the indexer, are $4 \cdot (512 + 128) = 2560$ in CSA, and $2c = 1024$ in HCA.
# *"The ring is too short"* is wrong: of its 128 tokens at most 3 wait in CSA, and at most 127 in HCA, which just fits.
# </details>
#
# <details><summary>2. Two users share a prompt of 100,001 tokens. What can be shared of the cache?</summary>
#
# All entries and index keys of complete windows: they depend on earlier tokens only. The ring, the a-half and the waiting tokens (1 in CSA layers, 33 in HCA layers) are also the same at the end of the prompt, but they change with the first new token, so each user needs a copy. *"Nothing, since the answers differ"* forgets that the past
# does not know the future.
# </details>
#
# <details><summary>3. Flash at 1M spends as much on HCA as on the indexer. Would a larger HCA ratio not be better?</summary>
#
# Cheaper: with 512 the HCA core would fall to about a quarter. Whether the model stays as good, only training tells; the report has no such ablation. *"Yes, since HCA holds the whole text anyway"* ignores that an entry has 512 channels, for 128 tokens or for 512.
# </details>
#
# <details><summary>4. The cache of V4-Pro is a tenth of V3.2's. Does a server then serve ten times as many users?</summary>
#
# At long contexts nearly, if memory for caches was the limit. Not if weights are: Pro's take 865 GB, though most are FP4; V3.2's 671 billion in FP8 take some 670 GB. And not if time is: at 1M it is 27 percent of the operations, at 4K more than 80.
# </details>
#
# <details><summary>5. The time of a decoded nano token grows by about a third from 1K to 16K, while the context grows 16 times. Is its attention nearly free?</summary>
#
# No: most of it is hidden behind fixed costs, mostly the calls of many small operations. The count of operations grows from the first token on. In Flash at 16K the attention over the context is 17 percent of the operations. *"Top-k makes it constant"* is true of the CSA core only: the indexer scores all entries, HCA reads all.
# </details>
#
# ## Links
# - DeepSeek-V4 report, sections 2.3.4 (efficiency), 3.6 (inference: cache layout, cache on disk), 4.2.2 (stages of training), figure 1
# - DeepSeek-V3.2, [arXiv 2512.02556](https://arxiv.org/abs/2512.02556): the baseline of the comparison
# - Ainslie et al., GQA, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245): the 262 GB baseline
# - Kwon et al., PagedAttention, [arXiv 2309.06180](https://arxiv.org/abs/2309.06180): a cache in blocks, and what V4's mixture of caches breaks
# - Hsieh et al., RULER, [arXiv 2404.06654](https://arxiv.org/abs/2404.06654): how long a context a model really uses
# - In this repository: `minids/model/state.py` (the state), `minids/cost.py` (the formulae), `minids/recipes/million.py` (the long run)
