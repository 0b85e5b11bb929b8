# %% [markdown]
# # 03 Heavily compressed attention
#
# **V4 turns 128 tokens into one vector, and lets every query read all of these vectors: a million tokens become 8,192 keys. You build this, see exactly what a query can
# reach, and measure what gets lost.**
#
# **After this you can**
# - pool a window of tokens into one entry, with a softmax for each channel, and say why the order of the tokens survives,
# - place an entry with rotary embedding, and explain why V4 stretches the slow turns (YaRN) and leaves the fast ones,
# - say which entries a query may read, to the token, and show by perturbation that nothing leaks,
# - let sliding window, entries and sink share one softmax, and prove your layer equal to `minids`,
# - tell what an entry can keep from what a small trained model makes it keep, with numbers,
# - compress a sequence that arrives in pieces, token by token if need be,
# - compute the cache of such a layer at any context.
#
# *Time: 153 minutes, exercises included.
# The code itself runs in less than a minute.*
# *Before this: lesson 02 (one head of keys and values for all query heads, the sliding window, rotary embedding, sinks).*

# %%
import math
from itertools import islice
from unittest import mock

import minids
import torch
import torch.nn.functional as F
from minids import Config, Model, cost
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model import masks, passes
from minids.model.attention import Attention
from minids.model.compressor import Compressor
from minids.model.rotary import frequencies as minids_frequencies
from minids.plain import angles, grouped_output, keys, queries, rotate, sees, sink_weights
from minids.show import hca, style
from minids.system import paths

style.use()
versions()

# %% [markdown]
# ## Who bit whom?
#
# *The dog bites the man today. The man bites the dog today.* The same six words, in two orders. Each sentence shall become **one** vector of 16 numbers. Three ways to do it:
#
# 1. *mean*: the mean of the six token vectors,
# 2. *gate*: a weighted mean, channel by channel; the weights come from the tokens through a matrix that a model can learn,
# 3. *gate + place*: the same, and the weights also depend on the place of a token in the sentence.
#
# **Predict before you run:** which of the three vectors differ between the two sentences?

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(0)
words = {word: torch.randn(16, generator=rng)
         for word in ("the", "dog", "bites", "man", "today")}
gate, place_bias = torch.randn(16, 16, generator=rng), torch.randn(6, 16, generator=rng)


def one_vector(sentence, way):
    x = torch.stack([words[word] for word in sentence.split()])                     # 6 16
    z = torch.zeros(6, 16) if way == "mean" else x @ gate                           # 6 16
    z = z + place_bias if way == "gate + place" else z
    return (z.softmax(0) * x).sum(0)                                                # 16


for way in ("mean", "gate", "gate + place"):
    a, b = (one_vector(s, way)
            for s in ("the dog bites the man today", "the man bites the dog today"))
    print(f"{way:13} largest difference {(a - b).abs().max():.2f}")

# %% [markdown]
# Only the third. The gate looks clever: it has 256 numbers to learn, and they do not help. A softmax-weighted sum is a sum over a **set**: each word brings its own weight along wherever it stands.
# It is the 6 x 16 numbers of `place_bias` that know who bit whom. V4 has them too; its files call them `ape`.
#
# (In a deep network the tokens have looked around before, so their vectors carry some order themselves. The compressor alone is blind without `ape`.)
#
# ## 1. The map
#
# Two things are called window; keep them apart.
# - The **sliding window** of a query: the last w tokens, each with a key of its own (lesson 02).
# - The **window of an entry**: m neighbouring tokens that are pooled. Window i holds the tokens i m to i m + m - 1. A *complete* window has all its m tokens.
#
# A **compressed entry** is the one vector made of a window. As everywhere in V4, it is key and value at once. Here m = 5, w = 6, and the query is token 21:

# %% jupyter={"source_hidden": true}
style.show(hca.plot_reading(21, 6, 5, 25), "The query at 21 reads four complete entries, which "
           "cover tokens 0 to 19, and the last six tokens one by one; entry 4 is not complete")

# %% [markdown]
# Heavily compressed attention (HCA) is this picture with m = 128 and w = 128. In one sentence: *pool complete windows, read all entries beside the sliding window, in one softmax*.
# The report writes m' for this m, to tell it from the m = 4 of CSA (lesson 04). Symbols:
#
# | here | report | meaning | in V4 | in the nano model |
# | --- | --- | --- | --- | --- |
# | B, T | T is $n$ | sequences, tokens | | |
# | d | $d$ | model width | 4096, 7168 | 128 |
# | c, r | $c$ | width of a key; of these the last r turn | 512, 64 | 32, 16 |
# | m | $m'$ | tokens in an entry | 128 | 16 |
# | n, S | $n / m'$ | number of entries, floor(T / m); S where they are columns of scores or masks | | |
# | w | $n_{win}$ | width of the sliding window | 128 | 32 |
#
# New words are in the [glossary](GLOSSARY.md).
#
# ## 2. From m tokens to one entry
#
# By hand, with two tokens and two channels. Each token brings a *value* kv and a *gate* z, both of c numbers:
#
# | | kv | z |
# | --- | --- | --- |
# | token 0 | 1, 10 | 0, ln 3 |
# | token 1 | 3, 30 | 0, 0 |
#
# Channel 0: both gates are 0, so the weights are 1/2 and 1/2, and the pooled value is 2. Channel 1: $e^{\ln 3} = 3$ against $e^0 = 1$, so 3/4 and 1/4, and it is 0.75 x 10 + 0.25 x 30 = 15.
# **Each channel has its own weights.** An entry can take one channel from the first token and another from the last.
#
# **Predict before you run:** the wrong softmax runs over the channels instead of the tokens. Does the result look wrong?

# %% jupyter={"outputs_hidden": true}
kv = torch.tensor([[1.0, 10], [3, 30]])                                             # m c
z = torch.tensor([[0.0, math.log(3)], [0, 0]])                                      # m c
print("over the tokens:  ", [round(v, 2) for v in (z.softmax(0) * kv).sum(0).tolist()])
print("over the channels:", [round(v, 2) for v in (z.softmax(1) * kv).sum(0).tolist()])

# %% [markdown]
# It runs and gives numbers. Nothing tells you, except that its weights for channel 1 (0.75 and 0.5) do not sum to 1.
#
# The equation (report 2.3.2, equations 20 to 23, and the norm of 2.3.3), for window i and each channel:
#
# $$\mathrm{kv}_t = W^{KV} x_t \qquad z_t = W^{Z} x_t + \mathrm{ape}_{t \bmod m} \qquad
#   e_i = \mathrm{RMS}\Big(\sum_{t=im}^{im+m-1} \frac{\exp z_t}{\sum_{t'} \exp z_{t'}} \odot \mathrm{kv}_t\Big) \odot g$$
#
# The report writes C for our kv, Z for the gate without `ape`, and S for the softmax. `ape` is an m x c table, its B: one row for each *place* in a window. $g$ is the norm's learned weight, and $\mathrm{RMS}(y) = y / \sqrt{\mathrm{mean}(y^2) + \varepsilon}$ is
# taken over the channels.
#
# ### Exercise 1: compress
# *Medium, 10 minutes; `hint("hca.compress")` helps, three times.* Tokens after the last complete window make no entry; so fewer than m tokens give a tensor B 0 c. `t.unflatten(1, (n, m))` cuts axis 1, of n m places, into two.

# %%
def compress(x, wkv, wgate, ape, weight, eps):
    """Entries of the complete windows, without rotary: B n c.

    x: B T d; wkv, wgate: c d (y = x @ wkv.T); ape: m c; weight: c, the norm's; eps: the norm's.
    """
    ### BEGIN SOLUTION
    m = len(ape)
    n = x.shape[1] // m
    kv = (x @ wkv.T)[:, :n * m].unflatten(1, (n, m))                                # B n m c
    z = (x @ wgate.T)[:, :n * m].unflatten(1, (n, m)) + ape                         # B n m c
    e = (z.softmax(2) * kv).sum(2)                                                  # B n c
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight
    ### END SOLUTION


# %%
compress = check("hca.compress", compress)

# %% [markdown]
# Is it what `minids` computes? We take the compressor of a nano layer with **lively** weights (no norm weight is 1, no bias 0, so that nothing hides). The package's entries are already turned to their
# positions, which is section 3; but only the last r channels turn, so the first c - r can be compared now.

# %%
NANO = Config.nano()
M, W, C, R = 16, NANO.window_size, NANO.head_dim, NANO.rope_head_dim


def lively(module, seed=0):
    """Give every parameter a value that matters. Returns the module, without gradients."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in module.requires_grad_(False).named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        plain = p.ndim == 1 or "ape" in name
        p.copy_(1 + 0.3 * noise if "norm" in name else noise if plain
                else 2 * noise * p.shape[1] ** -0.5)
    return module


comp = lively(Compressor(NANO, M, C))
x = torch.randn(2, 100, NANO.dim, generator=torch.Generator().manual_seed(1))       # B T d
# B n c
entries = compress(x, comp.wkv.weight, comp.wgate.weight, comp.ape, comp.norm.weight,
                   NANO.norm_eps)
torch.testing.assert_close(entries[..., :-R], comp(x)[..., :-R])
print(f"{x.shape[1]} tokens give {entries.shape[1]} entries: equal to minids in the channels "
      "that do not turn")

# %% [markdown]
# ## 3. Where is an entry?
#
# An entry stands for m positions. Rotary embedding wants one. V4 takes the **first**, i m (the report leaves it open; the reference code decides).
#
# Rotary embedding turns a pair of channels by position times frequency, query and key alike, so that their product depends on the **distance** only. Count positions in tokens, also for entries:
# query and keys share the scale. **Predict before you run:** the query at t = 1000, m = 16, and its newest complete entry. How far away is that entry if its position is i m? And if somebody takes i?

# %% jupyter={"outputs_hidden": true}
t, m = 1000, 16
i = (t + 1) // m - 1
print(f"entry {i} covers tokens {i * m} to {i * m + m - 1}")
print(f"distance with position i m: {t - i * m};  with position i: {t - i}")

# %% [markdown]
# With i, the *newest* entry seems 939 tokens away, and entry 0 a thousand: old and new nearly coincide, and everything drifts off as the text grows.
#
# ### The wrong clock for a million tokens
#
# Pair j of r/2 turns with frequency $\theta_j = \mathrm{base}^{-2j/r}$ radians per token, a full turn takes $2\pi / \theta_j$ tokens. Fast pairs tell neighbours apart, slow ones tell far from near. A pair that has
# gone round more than once cannot tell one lap from the next.
#
# - Layers **without** compression see the last 128 tokens only. They use base 10,000 (`rope_theta`).
# - Layers **with** compression see a million. They use base 160,000 (`compress_rope_theta`) for everything in them: queries, sliding keys and entries.
#
# And V4 was trained at 4K, 16K and 64K tokens before it saw a million (report 4.2.2). So its slow pairs met only a small part of their turn, and angles beyond that were new to the model. **YaRN** (Peng et al., 2023; lesson 02
# has the formula in section 10) makes long contexts look like the trained ones. It asks how often a pair turns within the original length of 65,536:
#
# - more than 32 times (`beta_fast`): leave it. It measures short distances, which have not changed.
# - less than once (`beta_slow`): divide its frequency by 16 (`rope_factor`). A context 16 times as long then covers the same angles.
# - between: a ramp from the one to the other.

# %%
def frequencies(config, ratio):
    """Radians per token of each rotating pair in a layer with this compression ratio: r/2
    (lesson 02)."""
    r = config.rope_head_dim
    base, length = config.rope(ratio)         # a length of 0: no YaRN
    w = base ** (-torch.arange(0, r, 2) / r)  # r/2
    if length == 0:
        return w

    def pair(rotations):                      # the pair that rotates so often
        return r * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(base))
    low = max(math.floor(pair(config.beta_fast)), 0)
    high = min(math.ceil(pair(config.beta_slow)), r - 1)
    ramp = ((torch.arange(r // 2) - low) / max(high - low, 0.001)).clamp(0, 1)    # r/2
    return w / config.rope_factor * ramp + w * (1 - ramp)


flash = Config.from_json(paths.data("v4", "flash.config.json"))
for config, ratio in ((flash, 128), (NANO, M)):
    torch.testing.assert_close(frequencies(config, ratio), minids_frequencies(config, ratio))
print("equal to minids, for Flash and for nano")

# %% [markdown]
# **Predict before you run:** how often does the slowest pair of base 10,000 go round in 1,048,576 tokens? More or less than once?

# %% jupyter={"outputs_hidden": true}
plain = flash.replace(original_seq_len=0)
clocks = {"base 10,000": frequencies(flash, 0), "base 160,000": frequencies(plain, 128),
          "base 160,000 and YaRN": frequencies(flash, 128)}
periods = {name: (2 * math.pi / w).tolist() for name, w in clocks.items()}
print(f"tokens in a full turn {'':8}"
      + "".join(f"pair {j:2}{'':6}" for j in (0, 8, 15, 20, 25, 31)))
for name, line in periods.items():
    print(f"{name:24}"
          + "".join(f"{float(f'{line[j]:.4g}'):13,.0f}" for j in (0, 8, 15, 20, 25, 31)))
print("turns of the slowest pair in 1,048,576 tokens: "
      f"{', '.join(f'{2**20 / line[-1]:.2f}' for line in periods.values())}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(
    hca.plot_periods(periods, 15, 25, flash.original_seq_len, flash.max_seq_len),
    "Tokens in a full turn over pairs of channels: base 10,000 never reaches a million tokens; "
    "with YaRN the fast pairs stay, the pairs above the ramp turn sixteen times slower")

# %% [markdown]
# Twenty-two laps with base 10,000. With base 160,000 the slowest pair still laps once and a half; with YaRN it makes 0.09 of a turn: exactly what plain base
# 160,000 made in 65,536 tokens. Up to pair 15 the green line
# *is* the blue one: nothing changed for near tokens.
#
# ### Exercise 2: place the entries
# *Medium, 10 minutes.* `rotate(x, theta)` rotates the last r channels of a tensor, and `angles(positions, w)` gives the angles (lesson 02). You decide the positions and the frequencies.

# %%
def place(entries, m, config):
    """The entries, rotated to their positions, in a layer with compression. entries: B n c;
    m: tokens in an entry -> B n c."""
    ### BEGIN SOLUTION
    positions = torch.arange(entries.shape[1]) * m                     # n
    return rotate(entries, angles(positions, frequencies(config, m)))  # angles n r/2
    ### END SOLUTION


# %%
place = check("hca.place", place)
torch.testing.assert_close(place(entries, M, NANO), comp(x))
print("all channels equal to minids' compressor")

# %% [markdown]
# ## 4. What may a query read?
#
# A query may read an entry only when **all** its tokens are known, the query's own included: after the query at t there are t + 1 tokens, so
#
# $$\text{entry } s \text{ is visible at } t \iff s < \Big\lfloor \frac{t + 1}{m} \Big\rfloor$$
#
# (The report writes floor(t / m), with positions from 1: section 2.3.1. Positions from 0 need the + 1.) **Predict before you run:** m = 4. How many entries does each of the queries 0 to 8 see? Does token 3 see entry 0?
#
# ### Exercise 3: visible
# *Easy, 5 minutes.*

# %%
def visible(T, S, m):
    """Whether the query at t (row) sees entry s (column): T S, bool."""
    ### BEGIN SOLUTION
    return torch.arange(S) < ((torch.arange(T) + 1) // m)[:, None]
    ### END SOLUTION


# %% jupyter={"outputs_hidden": true}
visible = check("hca.visible", visible)
print("query:       ", list(range(9)))
print("entries seen:", visible(9, 2, 4).sum(1).tolist())

# %% [markdown]
# Token 3 sees entry 0: the entry ends with token 3 itself, and a token may know itself. Token 4, the first of the next window, sees no more entries than token 3 did.
#
# So who looks after the tokens of a window that is not complete? The sliding window. That is one reason why the report adds it (2.3.3: a query "cannot access information from other tokens within its own compressed block").
# Play with it. **Find out:** at w = 8 no token is read "not at all", wherever you put t. Which is the smallest w for which that holds, when m = 8?

# %%
def draw(w, t):
    return hca.plot_reading(t, w, 8, 32)


box = style.slider_image(
    draw, "What the query at t reads: through an entry, in its sliding window, or not at all",
    w=[2, 4, 5, 6, 7, 8], t=range(21, 32), start={"w": 8})
box

# %%
box.peek(w=4, t=22)
row = hca.ways(32, 4, 8)[22].tolist()
print("w = 4, t = 22: read in no way:",
      [s for s, way in enumerate(row) if list(hca.WAYS)[way] == "not at all"])

# %% [markdown]
# The same for all queries at once:

# %% jupyter={"source_hidden": true}
style.show(hca.plot_reach(32, 8, [8, 7, 4]),
           "Queries in rows, tokens in columns: entries cover a staircase, the sliding window "
           "a band along the diagonal; with w = 4 red gaps open below the band")

# %% [markdown]
# ### Exercise 4: the blind gap
# *Easy, 10 minutes.* Which tokens up to t does the query at t read neither in its sliding window nor through an entry?

# %%
def unseen(t, w, m):
    """A list of positions, in order; empty when every token up to t is read."""
    ### BEGIN SOLUTION
    return list(range((t + 1) // m * m, t - w + 1))
    ### END SOLUTION


# %%
unseen = check("hca.unseen", unseen)
for name, w, m in (("V4", 128, 128), ("nano", W, M), ("too narrow", 64, 128)):
    gaps = [len(unseen(t, w, m)) for t in range(1024)]
    print(f"{name:11} w = {w:3}, m = {m:3}: at most {max(gaps):2} tokens unread, by "
          f"{sum(g > 0 for g in gaps)} of 1024 queries")

# %% [markdown]
# At most m - 1 tokens wait for their window, so w = m - 1 is enough, and V4's w = m = 128 leaves nobody out.
#
# ## 5. One softmax for three
#
# A query compares itself with the keys of its sliding window and with all visible entries, and a head may give weight to its sink, which carries no value:
#
# $$p_s = \frac{e^{q \cdot k_s / \sqrt{c}}}{\sum_{\text{sliding window}} e^{q \cdot k / \sqrt{c}} + \sum_{\text{entries}} e^{q \cdot k / \sqrt{c}} + e^{\text{sink}}} \qquad o = \sum_s p_s\, k_s$$
#
# By hand: two sliding keys with scores 1 and 0, an entry with score 1, a sink of 0. The exponentials are 2.718, 1, 2.718 and 1, their sum is 7.437. So the weights are 0.366, 0.134, 0.366, and the last
# 0.134 go nowhere. The entry, which stands for m tokens, gets no bonus for its size: it competes like any single token.
#
# ### Exercise 5: attend, and the whole layer
# *Hard, 15 minutes.* First `attend`, densely: one matrix of scores for all keys, and a mask. `sink_weights(scores, sink)` is lesson 02's. Then the layer: its keys are those of all tokens, followed by its
# entries, in one tensor; its mask is `sees(T, w)` (lesson 02) beside your `visible(T, S, m)`. All else is lesson 02's as well: `angles`, `queries(layer, x, theta)`, `keys(layer, x, theta)`, the rotation back, `grouped_output`.

# %%
def attend(q, kv, seen, sink):
    """What each head reads: B T H c. q: B T H c; kv: B S c, keys and values; seen: T S or
    B T S, bool; sink: H.

    All are rotated already. `seen` says whether the query at t may read key s.
    """
    ### BEGIN SOLUTION
    scores = torch.einsum("bthc,bsc->bths", q, kv) * q.shape[-1] ** -0.5            # B T H S
    scores = scores.masked_fill(~seen[..., None, :], -torch.inf)
    return torch.einsum("bths,bsc->bthc", sink_weights(scores, sink), kv)
    ### END SOLUTION


# %%
def hca_attention(attn, x):
    """An HCA layer. x: B T d -> B T d.

    attn has a compressor (wkv, wgate, ape, norm), wo_a, wo_b, attn_sink, and ratio, its m; its
    config has norm_eps, window_size, o_groups.
    """
    ### BEGIN SOLUTION
    config, comp, m, T = attn.config, attn.compressor, attn.ratio, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, m))                         # T r/2
    entries = compress(x, comp.wkv.weight, comp.wgate.weight, comp.ape, comp.norm.weight,
                       config.norm_eps)
    kv = torch.cat([keys(attn, x, theta), place(entries, m, config)], 1)            # B T+n c
    # T T+n
    seen = torch.cat([sees(T, config.window_size), visible(T, entries.shape[1], m)], -1)
    o = attend(queries(attn, x, theta), kv, seen, attn.attn_sink)                   # B T H c
    o = rotate(o, -theta[:, None])
    return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)   # B T d
    ### END SOLUTION


# %%
attend = check("hca.attend", attend)
hca_attention = check("hca.layer", hca_attention)

# %%
layer = lively(Attention(NANO, M), seed=2)
torch.testing.assert_close(hca_attention(layer, x), layer(x), atol=1e-4, rtol=1e-4)
print("equal to minids.Attention:", x.shape[1], "tokens,", x.shape[1] // M, "entries,",
      x.shape[1] % M, "tokens waiting")

# %% [markdown]
# ## 6. Causality, measured
#
# Does anything of a later token reach an earlier output? Do not reason: **perturb**. Change the input of one token, look which outputs move, repeat for all tokens. A small layer with m = 8 and w = 3 gives a picture that
# can be read. We draw it twice: with the right rule, and with the sabotage that is easiest to write: entry s is visible as soon as its window has *begun*, s <= t // m.
#
# **Predict before you run:** what will the columns of the first picture look like, below the band of the sliding window? And how many cells above the diagonal change in the second, with 6 windows of 8 tokens?

# %%
def early(pos, T, S, m, device):
    """The sabotage: minids' mask of entries, but a window is visible as soon as it has
    begun."""
    return masks.forbid(torch.arange(S) > ((pos + torch.arange(T)) // m)[:, None])


def late(pos, T, S, m, device):
    """The control: a window is visible one token later than it could be."""
    return masks.forbid(torch.arange(S) >= ((pos + torch.arange(T)) // m)[:, None])


def perturbed(layer, T):
    """How much output t (row) moves, relative to its size, when token s (column) is changed:
    T T."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(T, layer.config.dim, generator=rng)  # T d
    batch = x.repeat(T + 1, 1, 1)                        # T+1 T d; the last one stays as it is
    batch[torch.arange(T), torch.arange(T)] += torch.randn(T, layer.config.dim, generator=rng)
    y = layer(batch)                                     # T+1 T d
    return ((y[:-1] - y[-1]).norm(dim=-1) / y[-1].norm(dim=-1)).T

# %% jupyter={"outputs_hidden": true}
small = lively(Attention(NANO.replace(window_size=3), 8), seed=4)
maps = {}
for name, rule in (("right: complete windows only", passes.incomplete),
                   ("sabotage: s <= t // m", early)):
    with mock.patch.object(passes, "incomplete", rule):
        maps[name] = perturbed(small, 48)
    above = (maps[name].triu(1) > 1e-4).sum().item()
    print(f"{name:31} cells above the diagonal that change: {above}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(hca.plot_changes(maps, 8),
           "Left: a band along the diagonal and a staircase of windows below it, nothing above "
           "the diagonal. Right: triangles above the diagonal, one for each window")

# %% [markdown]
# Left: the band is the sliding window. Below it each window of 8 columns starts to matter at the row of its **last** token, all eight at once: a staircase. Between band and staircase lies white, the blind gap: with w = 3 a token
# is out of sight from its third successor on until its window is complete.
#
# Right: each window leaks its later tokens to its earlier queries, 7 + 6 + ... + 1 = 28 cells, times 6 windows: 168. (And the blind gap is gone: cheating pays.)
#
# ### What a leak does to training
#
# A **copy task**: 18 random tokens out of 16 kinds, then the same 18 once more. The first half cannot be predicted by anyone: its loss cannot honestly go below ln 16 = 2.77. The second half can, by reading
# what stood 18 places before, which is out of the sliding window (w = 6). One layer, m = 6. The control, `late`, delays entries by one token: that is wrong too, but leaks nothing.
#
# **Predict before you run:** which of the three runs falls below 2.77 on the first half?

# %%
COPY = NANO.replace(vocab_size=16, dim=64, n_layers=1, n_mtp_layers=0, compress_ratios=(6,),
                    window_size=6, hc_mult=2,
                    n_routed_experts=2, n_activated_experts=1, n_hash_layers=0,
                    original_seq_len=0, max_seq_len=64)


def copy_run(rule, steps=120):
    """[(loss on the first half, loss on the second)] of each training step, with this mask
    of entries."""
    torch.manual_seed(0)
    model, losses = Model(COPY), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95),
                                  weight_decay=0)
    with mock.patch.object(passes, "incomplete", rule):
        for _ in range(steps):
            ids = torch.randint(0, 16, (32, 18)).repeat(1, 2)                       # B 36
            logits = model(ids)[:, :-1].flatten(0, 1)
            loss = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(32, 35)
            optimiser.zero_grad()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append((loss[:, :17].mean().item(), loss[:, 17:].mean().item()))
    return losses


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
runs = {"right": copy_run(passes.incomplete), "sabotage: too early": copy_run(early),
        "control: too late": copy_run(late)}
style.show(hca.plot_halves(runs, math.log(16)), "Loss over training steps. On the random half "
           "only the sabotaged run falls below guessing; the right run (pale, thick) and the "
           "control (thin, dashed) lie on each other. On the copied half all runs learn")

# %% jupyter={"outputs_hidden": true}
end = {name: [sum(step[i] for step in line[-10:]) / 10 for i in (0, 1)]
       for name, line in runs.items()}
assert (end["right"][0] > 2.65 and end["control: too late"][0] > 2.65
        and end["sabotage: too early"][0] < 2.0)
assert end["right"][1] < 2.2
style.say("random half: right and late stay at ln 16; early falls below 2.0, which no honest "
          "model can")
print("copied half: the right run falls below 2.2")

# %% [markdown]
# The sabotaged model looks *better* in both panels. It is worthless: when it generates, the later tokens of the window do not exist yet. **A loss below what is possible is an alarm.** On real text nobody knows what is possible, so the
# perturbation map is the test to trust; one run of it finds what months of training would not.
#
# ## 7. What does an entry keep?
#
# 16 tokens of nano go through a bottleneck of 32 numbers, 128 tokens of V4 through one of 512. Something must go. Two questions: what *can* an entry keep when training asks for it, and what *does* it keep in a trained model?
#
# ### What it can keep: three tasks for a compressor
#
# Windows of 8 random tokens out of 12 kinds. Each token's vector also has an *importance*, a random number along one fixed direction. We train only a compressor (32 channels) and a matrix that reads the answer off the entry:
#
# - **order**: name the token at each of the 8 places,
# - **important**: name the most important token,
# - **count**: how often does token 0 occur?
#
# Four versions: mean (neither gate nor ape learns, both stay 0), gate only, ape only, both. Three seeds each, trained side by side (`torch.vmap` runs your `compress` for all three at once).
#
# **Predict before you run:** which version fails at which task? One task is a negative control that even the mean can do.

# %%
def questions(task, rng, n, tokens=12, m=8):
    """Random windows for three seeds: ids and importance, 3 n m, and the right answers, 3 n
    places."""
    ids = torch.randint(0, tokens, (3, n, m), generator=rng)
    importance = torch.randn(3, n, m, generator=rng)
    if task == "order":
        return ids, importance, ids
    if task == "important":
        return ids, importance, ids.gather(-1, importance.argmax(-1, keepdim=True))
    return ids, importance, (ids == 0).sum(-1, keepdim=True)

# %%
def learn(task, gate, ape, steps=250, tokens=12, m=8, d=24, c=32):
    """Train a compressor and a linear reader; the share of right answers on new windows, for
    each of three seeds."""
    rng = torch.Generator().manual_seed(0)
    embed, direction = torch.randn(tokens, d, generator=rng), torch.randn(d, generator=rng)
    places = m if task == "order" else 1
    shapes = {"wkv": (c, d), "wgate": (c, d), "ape": (m, c), "read": (c, places * tokens)}
    p = {name: (0.3 * torch.randn(3, *shape, generator=rng)).requires_grad_()
         for name, shape in shapes.items()}
    for name, used in (("wgate", gate), ("ape", ape)):
        p[name] = p[name] if used else torch.zeros(3, *shapes[name])
    optimiser = torch.optim.AdamW([t for t in p.values() if t.requires_grad], lr=1e-2,
                                  weight_decay=0)
    pooled = torch.vmap(
        lambda x, wkv, wgate, ape: compress(x, wkv, wgate, ape, torch.ones(c), 1e-6))

    def answer(n):
        ids, importance, right = questions(task, rng, n)
        # 3 n m d, then B = 1 row of n windows
        x = embed[ids] + importance[..., None] * direction
        # 3 n c
        entries = pooled(x.flatten(1, 2)[:, None], p["wkv"], p["wgate"], p["ape"])[:, 0]
        return (entries @ p["read"]).view(3, n, places, tokens), right
    for _ in range(steps):
        logits, right = answer(128)
        optimiser.zero_grad()
        F.cross_entropy(logits.flatten(0, 2), right.flatten()).backward()
        optimiser.step()
    logits, right = answer(2000)
    return (logits.argmax(-1) == right).float().mean((1, 2)).tolist()

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
VERSIONS = {"mean": (False, False), "gate": (True, False), "ape": (False, True),
            "both": (True, True)}
scores = {task: {name: learn(task, *used) for name, used in VERSIONS.items()}
          for task in ("order", "important", "count")}
ids = questions("order", torch.Generator().manual_seed(9), 2000)[0]  # 3 n m
# name the window's commonest token
bag = F.one_hot(ids, 12).sum(2).amax(-1).float().mean().item() / 8
style.show(
    hca.plot_tasks(scores, {"order": bag, "important": bag, "count": None}),
    "Shares of right answers: order needs ape, the important token needs the gate, counting "
    "needs neither; the dotted line is naming the commonest token of the window")
for task, rows in scores.items():
    print(f"{task:10}",
          "   ".join(f"{name} {min(v):.2f} to {max(v):.2f}" for name, v in rows.items()))

# %% jupyter={"outputs_hidden": true}
worst = {task: {name: min(values) for name, values in rows.items()}
         for task, rows in scores.items()}
best = {task: {name: max(values) for name, values in rows.items()}
        for task, rows in scores.items()}
assert (max(best["order"][name] for name in ("mean", "gate")) < 0.4 < 0.5
        < min(worst["order"][name] for name in ("ape", "both")))
assert (max(best["important"][n] for n in ("mean", "ape")) < 0.5 < 0.85
        < min(worst["important"][n] for n in ("gate", "both")))
assert (max(best["count"].values()) - min(worst["count"].values()) < 0.1
        and min(worst["count"].values()) > 0.85)
style.say("order: without ape below 0.4, with ape above 0.5. important: without the gate below "
          "0.5, with it above 0.85.")
print("count, the control: all four above 0.85, and within 0.1 of each other")

# %% [markdown]
# - **Mean pooling makes a bag of words.** It counts well and knows no order: no better than naming the commonest token of the window (dotted line).
# - **ape gives each place its own channels**: the softmax of a channel can settle on one place. 32 channels hold most of 8 tokens.
# - **The gate binds**: it lets the token that matters push the others aside. A mean cannot, even with the importance in plain sight.
# - **Both** does what either does; in the order task it stays a little behind ape alone after these 250 steps.
#
# ### What it does keep: the shipped nano model
#
# Now the HCA layer of the trained nano model, on the beginnings of held-out documents that are long enough: old English books and TinyWorld's stories (lesson 01). One document in a row, so that no entry comes from another one. We catch
# what goes into the layer's compressor.

# %%
nano = minids.load(paths.data("checkpoints", "nano")).eval().requires_grad_(False)
# the first HCA layer
L = next(i for i, ratio in enumerate(nano.config.compress_ratios) if ratio > 4)
comp, m = nano.layers[L].attn.compressor, nano.config.compress_ratios[L]
tokenizer = Tokenizer.load()
texts = (tokenizer.encode(words, bos=True)
         for _, words in mixture.documents("heldout", ("text", "stories")))
rows = torch.tensor(list(islice((ids[:512] for ids in texts if len(ids) >= 512), 48)))  # B T
caught = []
hook = comp.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
nano.features(rows)
hook.remove()
x = caught[0]  # B T d
print(f"layer {L}: {x.shape[0]} rows of {x.shape[1]} tokens, windows of {m}: "
      f"{x.shape[0] * x.shape[1] // m} entries")

# %% [markdown]
# **Its weights.** A channel with weight 1 on a single token has picked; a channel with 1/m everywhere has averaged. The *effective number of tokens* says which: $e^{\text{entropy}}$ is 1 for a pick and m for a mean.

# %%
def pooling_weights(x, comp, m):
    """The weights of each window's tokens: windows m c."""
    z = (x @ comp.wgate.weight.T).unflatten(1, (-1, m)) + comp.ape                  # B n m c
    return z.softmax(2).flatten(0, 1)


torch.manual_seed(0)
fresh = Model(nano.config).eval().requires_grad_(False).layers[L].attn.compressor
p_fresh, p_nano = pooling_weights(x, fresh, m), pooling_weights(x, comp, m)
effective = [(-(p * p.clamp_min(1e-30).log()).sum(1)).exp().mean().item()
             for p in (p_fresh, p_nano)]

# %% tags=["nbval-ignore-output"]
style.show(hca.plot_weights({"fresh: one window": p_fresh[5], "nano: one window": p_nano[5],
                             "nano: mean of all windows": p_nano.mean(0)}),
           "Weights by place and channel. Fresh: all nearly equal. Trained: in one window most "
           "channels pick a few tokens; over many windows the places even out")
print(f"effective number of tokens, of {m}: fresh {effective[0]:.1f}, trained "
      f"{effective[1]:.1f}")

# %%
assert effective[0] > 0.85 * m and effective[1] < 0.6 * m
print("the fresh compressor takes nearly the mean; the trained one has learned to pick")

# %% [markdown]
# Look at the third picture. Where a column is even over many windows, its channel picks by *content* (the gate); where one cell of it stays bright, by *place* (ape). Here no cell stays bright: nano's compressor picks by content, and setting ape to 0 will cost nothing (section 7).
#
# **Its memory: a line-up.** Can you tell from an entry alone what the token at place j was? We fit a linear guess of the token's vector x (what the compressor got) from the entry, on three quarters of the windows. On the rest we put
# the true vector among 15 vectors from other windows and count how often the guess is closest to it (cosine). Guessing gives 1/16. Beside nano's entries:
# the token's own kv, before pooling (the ceiling); mean pooling of the same kv; and entries of *other* windows, the negative control.

# %%
def guess(a, b, split):
    """The linear guess of b (N d) from a (N c), by ridge regression on the first `split`
    rows, for the other rows."""
    a = torch.cat([(a - a.mean(0)) / a.std(0), torch.ones(len(a), 1)], 1)           # N c+1
    known = a[:split]
    solved = torch.linalg.solve(known.T @ known + 1e-3 * split * torch.eye(a.shape[1]),
                                known.T @ b[:split])
    return a[split:] @ solved


def line_up(source, x, split):
    """Share of right picks out of 16, for each place. source: N c, or N m c (one for each
    place); x: N m d."""
    shares, rng = [], torch.Generator().manual_seed(0)
    for j in range(x.shape[1]):
        true = x[split:, j] - x[:split, j].mean(0)                                  # N' d
        found = (guess(source if source.ndim == 2 else source[:, j], x[:, j], split)
                 - x[:split, j].mean(0))
        alike = F.normalize(found, dim=-1) @ F.normalize(true, dim=-1).T            # N' N'
        others = torch.randint(0, len(true), (len(true), 15), generator=rng)
        picks = torch.cat([alike.diagonal()[:, None], alike.gather(1, others)], 1)  # N' 16
        shares.append((picks.argmax(1) == 0).float().mean().item())
    return shares

# %%
windows = x.unflatten(1, (-1, m)).flatten(0, 1)         # N m d
order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
windows, split = windows[order], len(windows) * 3 // 4  # so that texts are mixed
values = windows @ comp.wkv.weight.T                    # N m c
entries = (((windows @ comp.wgate.weight.T) + comp.ape).softmax(1) * values).sum(1)
# N c
entries = entries * torch.rsqrt(entries.square().mean(-1, keepdim=True) + nano.config.norm_eps)
shares = {"one token's own kv": line_up(values, windows, split),
          "nano's entry": line_up(entries, windows, split),
          "mean of the kv": line_up(values.mean(1), windows, split),
          "another window's entry": line_up(entries.roll(1, 0), windows, split)}
mean_share = {name: sum(line) / m for name, line in shares.items()}

# %% tags=["nbval-ignore-output"]
style.show(hca.plot_recovery(shares, 1 / 16),
           "Share of right picks by place in the window: a token's own kv far above, entries "
           "between it and guessing, another window's entry at the level of guessing")
style.say("mean over the places: "
          + ", ".join(f"{name} {value:.2f}" for name, value in mean_share.items()))

# %%
assert (mean_share["one token's own kv"] > 1.3 * mean_share["nano's entry"]
        and mean_share["nano's entry"] > 0.08)
assert mean_share["another window's entry"] < min(0.12, mean_share["nano's entry"] - 0.01)
style.say("an entry tells more than the control about its tokens, and clearly less than a "
          "token's own kv tells")

# %% [markdown]
# So an entry of this small model is a *gist*: it says something about each of its tokens and pins down none. Compare the order task: 32 channels held most of 8 tokens once the loss asked for exactly that.
#
# Where does mean pooling stand in your figure? If it is above nano's entry, do not conclude that the mean is the better memory: it keeps a little of *all* tokens, and this line-up asks for all of them alike. A compressor that picks gives the others up. And a
# linear guess is a lower bound: attention and the layers above may read more.
#
# **Its worth.** Now the only question that counts for the model: how much does the held-out loss rise when we damage the layer's compressor, or take all its entries away? Same rows before and after; the bars are two standard
# errors over rows. The control adds 3 to all of ape. **Predict before you run:** what does that do?

# %%
def row_losses(model, rows):
    """The loss of each row, B."""
    losses = F.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten(),
                             reduction="none")
    return losses.view(len(rows), -1).mean(1)


def damaged(change, rows):
    """The rows' losses after `change(compressor)`; the weights are put back."""
    kept = {name: t.clone() for name, t in comp.state_dict().items()}
    change(comp)
    losses = row_losses(nano, rows)
    comp.load_state_dict(kept)
    return losses


def no_entries(pos, T, S, ratio, device, original=passes.incomplete):
    return torch.full((T, S), -torch.inf) if ratio == m else original(pos, T, S, ratio, device)

# %%
few = rows[::2]
base = row_losses(nano, few)
after = {"control: ape + 3": damaged(lambda c: c.ape.add_(3.0), few),
         "ape = 0": damaged(lambda c: c.ape.zero_(), few),
         "gate = 0": damaged(lambda c: c.wgate.weight.zero_(), few),
         "both 0: mean pooling": damaged(lambda c: (c.ape.zero_(), c.wgate.weight.zero_()),
                                         few)}
with mock.patch.object(passes, "incomplete", no_entries):
    after["no entries at all"] = row_losses(nano, few)
changes = {name: ((loss - base).mean().item(), ((loss - base).std() / len(few) ** 0.5).item())
           for name, loss in after.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(hca.plot_damage(changes), "Change of the held-out loss for each damage, with its "
           "spread over rows; the control changes nothing")
print(f"loss before: {base.mean():.3f} nats per token")

# %% jupyter={"outputs_hidden": true}
assert abs(changes["control: ape + 3"][0]) < 1e-4
assert all(abs(mean) < 0.01 * base.mean() for mean, _ in changes.values())
print("the control changes nothing: a softmax does not see what is added to all its inputs")
print("no damage, not even taking all entries away, moves the mean loss by a hundredth of "
      "itself")

# %% [markdown]
# Read the figure with its bars: a change whose bar reaches across zero is no finding. Then compare the numbers with the loss below the figure, and be sober: **this small model leans little on its HCA layer.** It has learned to pick in
# its compressor, and yet, without a single entry of this layer, its loss is nearly what it was. The sliding window of 32 in every layer and the finer CSA entries in two others do most of the work, and most of what helps
# to guess the next token is near.
#
# So whether heavy compression pays at a million tokens, a model of this size cannot show. What we could show is above: the mechanism is right, it does not leak, and it keeps order and picks what matters when training asks for it.
#
# ## 8. When tokens come one by one
#
# While generating, the model gets one token at a time. An entry needs m. So the layer keeps the kv and the gate of tokens that **wait** until their window is complete. Here is what `minids` remembers in nano's HCA layer:

# %%
state = nano.new_state(batch=1, max_len=64)
for t in range(40):
    nano(rows[:1, t:t + 1], state)
    memory = state.layers[L].compressor
    if t in (0, m - 2, m - 1, m, 2 * m - 1, 39):
        print(f"after token {t:2}: {memory.count} entries, {memory.tail[0].shape[1]:2} tokens "
              "waiting")

# %% [markdown]
# Prefill (a whole prompt at once), chunks of any size and single steps must agree. Here on nano's logits, over 100 tokens:

# %%
whole = nano(rows[:1, :100])                                                        # 1 100 V
for lengths in ([100], [37, 41, 22], [50] + [1] * 50):
    state, parts = nano.new_state(batch=1, max_len=128), []
    for chunk in rows[:1, :100].split(lengths, 1):
        parts.append(nano(chunk, state))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-3, rtol=1e-3)
    print(f"{len(lengths):2} pieces, the first of {lengths[0]:3} tokens: equal to one pass")

# %% [markdown]
# ### Exercise 6: find the faults
# *Hard, 15 minutes.* A colleague wrote the compressor for a sequence in pieces (pooled windows only; norm and rotary come later). It passes its tests: one chunk, and chunks of whole windows. In service the model babbles.
# There are **two** faults. Find them by comparing different ways to cut the same tokens, then write the repaired version. A chunk does not stay in memory: pool its
# complete windows before you take the next one.

# %%
def colleagues_stream(chunks, wkv, wgate, ape):
    """Pooled windows, B n c, of a sequence that arrives in chunks, a list of B T_i d. Two
    faults."""
    m, waiting, pooled = len(ape), None, []
    for x in chunks:
        kv, z = x @ wkv.T, x @ wgate.T                                              # B T_i c
        z = z + ape[torch.arange(x.shape[1]) % m]
        if waiting is not None:
            kv, z = (torch.cat([old, new], 1) for old, new in zip(waiting, (kv, z)))
        n = kv.shape[1] // m
        if n == 0:
            continue
        waiting = kv[:, n * m:], z[:, n * m:]
        kv, z = (t[:, :n * m].unflatten(1, (n, m)) for t in (kv, z))                # B n m c
        pooled.append((z.softmax(2) * kv).sum(2))
    return torch.cat(pooled, 1)


rng = torch.Generator().manual_seed(5)
tokens = torch.randn(1, 24, 8, generator=rng)                                       # B T d
# wkv, wgate: c d; ape: m c
weights = [torch.randn(*shape, generator=rng) for shape in ((6, 8), (6, 8), (4, 6))]
once = colleagues_stream([tokens], *weights)
for name, lengths in (("whole windows", [8, 12, 4]), ("one odd cut", [6, 18]),
                      ("small pieces", [5, 2, 2, 2, 13])):
    parts = colleagues_stream(tokens.split(lengths, 1), *weights)
    same = parts.shape == once.shape and torch.allclose(parts, once, atol=1e-5)
    print(f"{name:14} {parts.shape[1]} entries instead of {once.shape[1]}: "
          f"{'equal' if same else 'not equal'} to one pass")


# %%
def stream(chunks, wkv, wgate, ape):
    """Pooled windows, B n c, of a sequence that arrives in chunks, B T_i d each: `for x in
    chunks`. wkv, wgate: c d; ape: m c."""
    ### BEGIN SOLUTION
    m, B = len(ape), chunks[0].shape[0]
    kv = z = chunks[0].new_zeros(B, 0, len(wkv))  # what waits, its gate without ape
    pooled = []
    for x in chunks:
        # the first one has place 0
        kv, z = torch.cat([kv, x @ wkv.T], 1), torch.cat([z, x @ wgate.T], 1)
        n = kv.shape[1] // m
        values, gates = (t[:, :n * m].unflatten(1, (n, m)) for t in (kv, z))  # B n m c
        pooled.append(((gates + ape).softmax(2) * values).sum(2))  # B n c
        kv, z = kv[:, n * m:], z[:, n * m:]  # also where n is 0
    return torch.cat(pooled, 1)
    ### END SOLUTION


# %%
stream = check("hca.stream", stream)
for lengths in ([24], [6, 18], [5, 2, 2, 2, 13], [1] * 24):
    torch.testing.assert_close(stream(tokens.split(lengths, 1), *weights), once)
print("one pass, odd cuts, small pieces and single tokens: equal")

# %% [markdown]
# A test that feeds everything at once, or in whole windows, cannot find either fault. **Cut where it hurts.**
#
# ## 9. What it costs
#
# The keys that a layer keeps, and that each query reads, at context T: full attention T; sliding window only min(T, 128); HCA min(T, 128) + floor(T / 128). A key of V4 takes 576 bytes: 448 channels in FP8 and 64 turning ones
# in BF16 (report 2.3.4).
#
# **Predict before you run:** at which context does an HCA layer keep twice as much as a sliding window alone?

# %% jupyter={"outputs_hidden": true}
lengths = [2**k for k in range(10, 21)]
curves = {"full attention": lengths, "HCA, m = 128": [min(n, 128) + n // 128 for n in lengths],
          "sliding window only": [min(n, 128) for n in lengths]}
entry = flash.head_dim - flash.rope_head_dim + 2 * flash.rope_head_dim              # bytes
for n in (2**10, 2**14, 2**17, 2**20):
    print(f"context {n:9,}: "
          + ", ".join(f"{name} {line[lengths.index(n)]:,}" for name, line in curves.items()))

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(hca.plot_cache(lengths, curves, entry), "Keys in a layer over the context, both "
           "axes logarithmic: full attention rises in proportion, HCA stays near the sliding "
           "window up to some 16 thousand tokens and then rises 128 times lower")

# %% [markdown]
# At 16,384 tokens: 128 entries beside 128 keys. Up to there an HCA layer keeps at most twice what a sliding window keeps, and has a view of everything. Far beyond, it grows in proportion to the context, on a line 128 times lower
# than full attention's.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | layers with HCA, of all | 20 of 43 | 31 of 61 | 4.2.1 and `compress_ratios` |
# | m' | 128 | 128 | 4.2.1 |
# | sliding window | 128 | 128 | 4.2.1 |
# | width of a key, of it turning | 512, 64 | 512, 64 | 4.2.1, 2.3.3 |
# | entries at 1,048,576 tokens | 8,192 | 8,192 | 1,048,576 / 128 |
# | bases, YaRN factor, original length | 10,000 and 160,000, 16, 65,536 | the same | config.json |

# %%
pro = Config.from_json(paths.data("v4", "pro.config.json"))
for name, config in (("Flash", flash), ("Pro", pro)):
    heavy = [i for i, ratio in enumerate(config.compress_ratios) if ratio == 128]
    held = cost.kv_bytes(config, 2**20)
    style.say(f"{name:5} HCA in {len(heavy)} of {config.n_layers} layers, the first: "
              f"{heavy[:3]}; cache at 2^20 tokens: HCA entries {held['HCA entries'] / 1e6:.0f} "
              f"MB of {held['total'] / 1e9:.2f} GB")
gqa8 = 2 * 8 * 128 * 2 * pro.n_layers * 2**20  # keys and values, 8 heads of 128, BF16
print(f"Pro's cache is {cost.kv_bytes(pro, 2**20)['total'] / gqa8:.1%} of BF16 GQA with 8 "
      "heads of 128 in as many layers")

# %% [markdown]
# **The report claims** about 2 % of that baseline at a million tokens (2.3.4), which the last line reproduces. HCA's part of the cache is small: nearly all of it belongs to CSA. HCA is the cheap, coarse view of everything; CSA, next lesson,
# is the finer view of what an indexer picks. **The report shows no ablation** of HCA alone, and no choice of m' against others. **Here we have shown** what the mechanism computes, that it is causal, what pooling can and cannot keep, and how
# much or little the loss of one small model depends on it. **At this scale we cannot show** that it helps at a million tokens.
#
# ## Key points
# - An entry is a softmax-weighted mean over m tokens, with weights for each channel by itself; then RMS; then rotary at position i m.
# - A gate without `ape` sees a set: only `ape`, m x c numbers, brings the order in. A gate is needed to pick what matters. The mean can count.
# - Layers with compression turn with base 160,000 and YaRN: fast pairs stay, slow pairs turn 16 times slower, with a ramp between.
# - Entry s is visible at t when s < floor((t + 1) / m). One token earlier is a leak, and shows as a loss that is too good. One token later leaks nothing, and no loss will tell you: compare with a reference.
# - Sliding window, entries and sink share one softmax. With w >= m - 1 no token is out of sight.
# - While decoding, up to m - 1 tokens wait. Test with cuts that are no multiple of m.
# - The cache grows by one key for each 128 tokens.
#
# ## Questions to discuss
#
# <details><summary>1. Why not simply let the gate's matrix do all, and save ape?</summary>
#
# Because the softmax-weighted sum is the same for any order of the tokens. *"The rotary embedding gives the order"*: an entry is turned as a whole, by one position; the tokens inside are not turned before they are pooled. *"The layers below give it"* is partly true:
# contextual vectors carry traces of order, and that is all such a model would have.
# </details>
#
# <details><summary>2. ape could be indexed by the absolute position t. What would break?</summary>
#
# It would need a million rows instead of 128, and rows for positions that training never saw. Also the same phrase would be pooled differently in every window. (Adding one row to *all* tokens of a window does nothing at all: a softmax ignores it. That was the control of section 7.)
# </details>
#
# <details><summary>3. Entry i is placed at its window's first token. Would the last one have been better?</summary>
#
# It shifts all entries by the same m - 1 positions against the sliding keys. A model trained so would learn the other convention; no information is gained or lost. *"The first is wrong since the query would look into the future"* is wrong: a position is not content. But weights trained with one
# convention fail with the other.
# </details>
#
# <details><summary>4. The sabotaged run of section 6 had the lowest loss. Could a test set have caught it?</summary>
#
# Not if it is evaluated the same way: whole sequences in one pass leak there too. Generating token by token catches it (the decode state has no future to leak), and so do the perturbation map and a comparison of prefill with single steps.
# </details>
#
# <details><summary>5. An entry competes with single tokens in one softmax. Is that not unfair to 128 tokens?</summary>
#
# It has no bonus for its size, true. But the norm's weight, the learned kv and the query can give entries higher scores where that pays, and heads differ. *"So HCA is ignored"* does not follow; whether it is must be measured, as we did for nano.
# </details>
#
# <details><summary>6. What does YaRN cost while decoding?</summary>
#
# Nothing. It changes r/2 constants before the first token. *"It interpolates positions"* is loosely said: positions stay whole numbers; frequencies change, each pair by its own factor between 1 and 1/16.
# </details>
#
# ## Links
# - DeepSeek-V4 report, sections 2.3.2 to 2.3.4; the table of sizes in 4.2.1
# - Peng et al., YaRN: Efficient Context Window Extension of Large Language Models, [arXiv 2309.00071](https://arxiv.org/abs/2309.00071)
# - Su et al., RoFormer (rotary embedding), [arXiv 2104.09864](https://arxiv.org/abs/2104.09864)
# - Rae et al., Compressive Transformers, [arXiv 1911.05507](https://arxiv.org/abs/1911.05507): an earlier memory of pooled tokens, with several ways to pool
# - Yuan et al., Native Sparse Attention, [arXiv 2502.11089](https://arxiv.org/abs/2502.11089): compressed blocks beside a sliding window, from the same house
# - In this repository: `minids/model/compressor.py` (your `compress`, with overlap and decode state), `minids/model/rotary.py`, `minids/model/masks.py`
