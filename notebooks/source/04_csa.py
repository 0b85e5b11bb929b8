# %% [markdown]
# # 04 Compressed sparse attention
#
# **V4 makes one entry of every 4 tokens, and lets a small, cheap indexer decide which 512 (Flash) or 1,024 (Pro) of a quarter of a million entries a query reads. You build both, teach an
# indexer what the attention looks at, and measure what it finds.**
#
# **After this you can**
# - pool tokens with overlap, and show which pairs of tokens are torn apart without it,
# - score entries with the lightning indexer, and say what its ReLU is for,
# - pick the best k entries without a look into the future, and name two ways in which this goes wrong,
# - explain why the language-model loss cannot train the indexer, write the loss that does, and say what must be detached,
# - measure an indexer: recall and attention mass, against chance, the latest entries and an oracle,
# - compute what searching and reading cost at a million tokens.
#
# *Time: 166 minutes, exercises included.
# The code itself runs in less than a minute.*
# *Before this: lesson 03 (entries, complete windows, `ape`, one softmax for window, entries and sink).*

# %%
import contextlib
import functools
import math
import random
from unittest import mock

import minids
import torch
import torch.nn.functional as F
from minids import Config, Model, cost, numerics
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model import attention, passes
from minids.model.attention import Attention
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer
from minids.model.passes import Options
from minids.plain import angles, attend, frequencies, grouped_output, place, queries
from minids.plain import query_latent, rotate
from minids.plain import keys as token_keys, sees as in_window
from minids.show import csa, hca, style
from minids.system import paths
from torch import nn

style.use()
versions()

# %% [markdown]
# ## What does a token cost?
#
# V4-Flash has read 1,048,576 tokens and decodes one more. **Predict before you run:** which takes the most operations? The weights of its 43 layers (13 billion of them work for a token)? The attention over everything it has read?
# Or the lightning indexer, a helper whose values never enter the output?

# %% jupyter={"outputs_hidden": true}
flash = Config.from_json(paths.data("v4", "flash.config.json"))
terms = cost.flops(flash, 2**20)
total = terms.pop("total")
for name, operations_of_term in sorted(terms.items(), key=lambda term: -term[1]):
    print(f"{name:25} {operations_of_term / 1e9:6.1f} GFLOP  {operations_of_term / total:6.1%}")

# %% [markdown]
# (1 GFLOP is $10^9$ operations, a multiply-add is two, and they are counted in *FP8 equivalents*: BF16 counts 2, FP8 1, FP4 a half. `minids.cost` computes them from the configuration. A "core" is the attention itself: queries times keys, and the sum of the values.)
#
# The costliest part adds nothing to the output. The indexer looks at every entry of every CSA layer; its scores are *ranked*, it is noted *which* 512 entries are the best, and the
# scores forgotten. The "CSA core", which reads these 512, costs a thirteenth of the search.
#
# Why would anybody do that? Because of what it replaces:

# %%
csa_layers = sum(ratio == 4 for ratio in flash.compress_ratios)
keys = 2**20 // 4 + flash.window_size          # all entries and the sliding window
# c for a product with a key, c for adding up its value
multiply_adds = flash.n_heads * 2 * flash.head_dim * keys
read_all = csa_layers * multiply_adds * 2 * 2  # two operations each, and BF16 counts 2
print(f"CSA core reading all entries: {read_all / 1e9:,.0f} GFLOP")
print(f"searching, then reading 512:  {(terms['indexer'] + terms['CSA core']) / 1e9:,.0f} "
      "GFLOP")

# %% [markdown]
# ## 1. The map
#
# Compressed sparse attention (CSA) is lesson 03's layer with two changes:
# - the compressor makes an entry of m = 4 tokens, **with overlap**: it also looks at the 4 tokens before,
# - there are too many entries to read them all, so an **indexer** scores them and each query reads the k best.
#
# Sliding window, sink and the one softmax stay as they were. Symbols:
#
# | | meaning | Flash | Pro | nano |
# | --- | --- | ---: | ---: | ---: |
# | B, T | sequences, tokens | | | |
# | n, S | entries: n where they are made, S where they are read; floor(T / m) | | | |
# | m | tokens in an entry's own window | 4 | 4 | 4 |
# | k | entries that a query reads (`index_topk`) | 512 | 1024 | 64 |
# | H, c | heads of the attention, their width | 64, 512 | 128, 512 | 4, 32 |
# | Hi, ci | heads of the indexer, their width (the report's $n_h^I$, $c^I$) | 64, 128 | 64, 128 | 16, 16 |
# | d, dc | model width, width of the queries' latent `qr` | 4096, 1024 | 7168, 1536 | 128, 64 |
#
# In formulas an upper I marks what belongs to the indexer, as in the report. New words are in the [glossary](GLOSSARY.md).
#
# ## 2. Two halves
#
# Here are 12 tokens and 3 entries. Each token makes **two** values and two gates: an a-half and a b-half, c channels each. The b-half serves the entry of the token's own window. The a-half serves the **next** one.

# %% jupyter={"source_hidden": true}
style.show(csa.plot_overlap(4, 3, 1), "Entry 1 pools eight slots: the a-halves of tokens 0 to "
           "3 and the b-halves of tokens 4 to 7")

# %% [markdown]
# So an entry pools 2m slots, but there are still only T / m entries. In one softmax per channel (report 2.3.1, equations 9 to 12):
#
# $$e_i = \mathrm{RMS}\Big(\sum_{t \in \text{window } i-1} s^a_t \odot \mathrm{kv}^a_t + \sum_{t \in \text{window } i} s^b_t \odot \mathrm{kv}^b_t\Big) \odot g$$
#
# where the 2m weights $s^a, s^b$ are one softmax of the gates $z^a_t + \mathrm{ape}^a_{t \bmod m}$ and $z^b_t + \mathrm{ape}^b_{t \bmod m}$. In the files, `wkv`, `wgate` and `ape` are 2c wide: the **first** c channels are a. (The report
# writes the two letters the other way round. The files decide.)
#
# By hand, m = 2 and one channel, before the norm, ape already added:
#
# | token | a: kv, z | b: kv, z |
# | --- | --- | --- |
# | 0 | 8, 0 | 2, 0 |
# | 1 | 4, 0 | 6, 0 |
# | 2 | | 0, 0 |
# | 3 | | 12, ln 3 |
#
# Entry 1: the exponentials of the four gates are 1, 1 (a of tokens 0, 1) and 1, 3 (b of tokens 2, 3), their sum is 6. So it is (8 + 4 + 0 + 3 · 12) / 6 = 8.
# Entry 0 has no window before it: (2 + 6) / 2 = 4.
#
# **Predict before you run:** somebody fills the missing a-half of window 0 with zeros, value *and* gate. What becomes of entry 0?

# %% jupyter={"outputs_hidden": true}
for name, gate in (("-inf", -math.inf), ("0", 0.0)):
    # 2m slots: a, a, b, b
    kv, z = torch.tensor([0.0, 0, 2, 6]), torch.tensor([gate, gate, 0.0, 0])
    print(f"gate of the missing half {name:4} -> entry 0 = {(z.softmax(0) * kv).sum():.1f}")

# %% [markdown]
# A gate of 0 is a gate like any other: nothing gets half of the weight. Only $-\infty$ is absence.
#
# ### Exercise 1: compress with overlap
# *Medium, 15 minutes.* Lesson 03's function; what is new is the way from B n m 2c to B n 2m c.

# %%
def compress_overlapped(x, wkv, wgate, ape, weight, eps):
    """Entries of the complete windows, without rotary: B n c.

    x: B T d; wkv, wgate: 2c d, a above b; ape: m 2c, a before b; weight: c, the norm's; eps:
    the norm's.
    """
    ### BEGIN SOLUTION
    m, n = len(ape), x.shape[1] // len(ape)
    kv = (x @ wkv.T)[:, :n * m].unflatten(1, (n, m))              # B n m 2c
    z = (x @ wgate.T)[:, :n * m].unflatten(1, (n, m)) + ape       # B n m 2c

    def slots(t, missing):                                        # B n m 2c -> B n 2m c
        a, b = t.chunk(2, -1)                                     # B n m c each
        # each window gets the one before
        a = torch.cat([torch.full_like(a[:, :1], missing), a[:, :-1]], 1)
        return torch.cat([a, b], 2)
    e = (slots(z, -math.inf).softmax(2) * slots(kv, 0.0)).sum(2)  # B n c
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight
    ### END SOLUTION


# %%
compress_overlapped = check("csa.compress", compress_overlapped)

# %% [markdown]
# Equal to `minids`? As in lesson 03 an entry is turned to the first position of its own window, i m, and we compare with **lively** weights, where nothing hides behind a 1 or a 0.

# %%
NANO = Config.nano()
M, K = 4, 5                     # tokens in a window; entries to read


def lively(module, seed=0):
    """Give every parameter a value that matters. Returns the module, without gradients."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in module.requires_grad_(False).named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        plain = p.ndim == 1 or "ape" in name
        p.copy_(1 + 0.3 * noise if "norm" in name else noise if plain
                else 2 * noise * p.shape[1] ** -0.5)
    return module


def entries_of(comp, x, config):
    """The entries of a minids Compressor's weights, rotated to their positions: B n c."""
    e = compress_overlapped(x, comp.wkv.weight, comp.wgate.weight, comp.ape, comp.norm.weight,
                            config.norm_eps)
    return place(e, M, config)  # lesson 03

# %%
comp = lively(Compressor(NANO, M, NANO.head_dim))
x = torch.randn(2, 70, NANO.dim, generator=torch.Generator().manual_seed(1))        # B T d
torch.testing.assert_close(entries_of(comp, x, NANO), comp(x))
print(f"{x.shape[1]} tokens, {x.shape[1] // M} entries: equal to minids.Compressor")

# %% [markdown]
# ### What is the overlap for?
#
# Two tokens that belong together, say a name and its number, may fall into two windows. Then without overlap **no entry knows both**. Does that matter, or does a model find another way? We ask a trained compressor.
#
# The text: blanks, and every 4 tokens a *key* (one of 12) followed by a *value* (one of 12). In each text the key stands at the same place of its window: 0, 1, 2, or 3. At place 3 the pair is torn: the value is the first token of the next window.
# We train `compress` and a linear reader: name key and value from the entry whose window holds the value. Three seeds side by side; once with overlap, once without (b-halves only).
#
# **Predict before you run:** two versions, key and value, four places make 16 scores. Which of them fall to guessing (1/12), and which are the control?

# %%
def pairs(rng, n, kinds=12, blank=24):
    """Texts of 8 pairs for three seeds: ids 3 n 36; key and value 3 n 8 2; the key's place
    n; the value's window n 8."""
    told = torch.full((3, n, 8, M), blank)
    answer = torch.randint(0, kinds, (3, n, 8, 2), generator=rng)
    told[..., 0], told[..., 1] = answer[..., 0], answer[..., 1] + kinds
    place = torch.randint(0, M, (n,), generator=rng)
    told = F.pad(told.flatten(2), (0, M), value=blank)                              # 3 n 36
    ids = torch.stack([text.roll(p, -1) for text, p in zip(told.unbind(1), place.tolist())], 1)
    return ids, answer, place, torch.arange(8) + (place == 3)[:, None]

# %%
def learn_pairs(compress, steps=200, kinds=12, c=32):
    """Train a compressor and a linear reader; {"key" or "value": [accuracy of each seed] for
    each place}."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"wkv": (2 * c, 25), "wgate": (2 * c, 25), "ape": (M, 2 * c),
              "read": (c, 2 * kinds)}
    p = {name: (0.3 * torch.randn(3, *shape, generator=rng)).requires_grad_()
         for name, shape in shapes.items()}
    optimiser = torch.optim.AdamW(p.values(), lr=1e-2, weight_decay=0)
    pooled = torch.vmap(
        lambda x, wkv, wgate, ape: compress(x, wkv, wgate, ape, torch.ones(c), 1e-6))
    for step in range(steps + 1):
        ids, answer, place, window = pairs(rng, 32 if step < steps else 400)
        e = pooled(torch.eye(25)[ids], p["wkv"], p["wgate"], p["ape"])     # 3 n 9 c
        e = e.gather(2, window[None, :, :, None].expand(3, -1, -1, c))     # 3 n 8 c
        logits = (e.flatten(1, 2) @ p["read"]).view(*answer.shape, kinds)  # 3 n 8 2 kinds
        if step < steps:
            optimiser.zero_grad()
            F.cross_entropy(logits.flatten(0, 3), answer.flatten()).backward()
            optimiser.step()
    right = (logits.argmax(-1) == answer).float()                          # 3 n 8 2
    return {name: [right[:, place == q, :, j].mean((1, 2)).tolist() for q in range(M)]
            for j, name in enumerate(("key", "value"))}

# %%
def compress_alone(x, wkv, wgate, ape, weight, eps):
    """Without overlap: the a-halves are never read. The same parameters, the same number of
    entries."""
    own = [t.chunk(2, 0)[1] for t in (wkv, wgate)]                 # the b-halves, c d each
    kv, z = ((x @ w.T).unflatten(1, (-1, len(ape))) for w in own)  # B n m c
    e = ((z + ape.chunk(2, 1)[1]).softmax(2) * kv).sum(2)          # B n c
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


found = {"with overlap": learn_pairs(compress_overlapped),
         "without": learn_pairs(compress_alone)}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(csa.plot_places(found, 1 / 12),
           "Shares of right answers by the key's place. With overlap all are right. Without, "
           "the torn key is at the level of guessing, all else is right")
for version, scores_of in found.items():
    print(f"{version:13}", "; ".join(f"{name} torn {min(s[3]):.2f} to {max(s[3]):.2f}, else at "
                                     f"least {min(map(min, s[:3])):.2f}"
                                     for name, s in scores_of.items()))

# %% jupyter={"outputs_hidden": true}
assert (min(map(min, found["with overlap"]["key"])) > 0.95
        and max(found["without"]["key"][3]) < 0.2)
assert (min(map(min, found["without"]["key"][:3])) > 0.95
        and min(map(min, found["without"]["value"])) > 0.95)
style.say("torn keys: above 0.95 with overlap, below 0.2 without. Keys in one piece, and all "
          "values: above 0.95 both ways")

# %% [markdown]
# The control is everything else: whatever lies in one window is read both ways. Only the torn key is lost, and no training brings it back, since it is not there. With m = 4, one pair of neighbours in four is torn.
#
# (In a deep network the layers below have mixed neighbours already, and the sliding window holds what is near. So a real model would lose less. How much less, the report does not say: it has no ablation of the overlap.)
#
# ## 3. The lightning indexer
#
# Now there are T / 4 entries, and each query wants the best k. Best at what? At what the attention *would* look at. But to know that, one would have to compute the attention: H heads, c wide, for all entries. The indexer is a cheap guess of it:
#
# - **its own keys**: a second compressor, with overlap too, only ci channels wide (128 instead of 512 in V4),
# - **queries from `qr`**, the latent that the attention has computed anyway: Hi heads of ci channels, turned by their position like all queries,
# - **no softmax and no values**: only scores, to be ranked,
# - in the real model, products in FP4.
#
# $$I_{t,s} = \sum_{h=1}^{H_i} w^I_{t,h} \cdot \mathrm{ReLU}(q^I_{t,h} \cdot k^I_s) \qquad w^I_t = W^w x_t \cdot \frac{1}{\sqrt{c_i}\sqrt{H_i}}$$
#
# (report 2.3.1, equations 13 to 16; the factor is from the reference code.) $w^I_{t,h}$ says how much this token trusts head h, and it may be negative. By hand, without the factor, two heads, w = (1, -0.5), q = (1, 0) and (0, 1):
#
# | key | products | after ReLU | score | score without ReLU |
# | --- | --- | --- | ---: | ---: |
# | (2, 1) | 2, 1 | 2, 1 | 1.5 | 1.5 |
# | (2, -3) | 2, -3 | 2, 0 | **2.0** | **3.5** |
# | (-1, 2) | -1, 2 | 0, 2 | -1.0 | -2.0 |
#
# With the ReLU a head either recognises a key or keeps quiet. Without it the second key scores high for being *unlike* what head 2 looks for.
#
# **Predict before you run:** without the ReLU, how many heads would do the work of 64?

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(2)
# Hi ci; Hi; S ci
q, w, keys = (torch.randn(*shape, generator=rng) for shape in ((64, 128), (64,), (1000, 128)))
with_relu = w @ F.relu(q @ keys.T)  # S
without = w @ (q @ keys.T)
one_head = (w @ q) @ keys.T         # one query: the weighted sum of all
torch.testing.assert_close(without, one_head, rtol=1e-3, atol=1e-2)
print("64 heads without ReLU = one head. With ReLU: largest difference",
      "above 100" if (with_relu - one_head).abs().max() > 100 else "")

# %% [markdown]
# One. A sum of linear maps is a linear map. The ReLU is what makes 64 small heads more than one.
#
# ### Exercise 2: scores
# *Medium, 10 minutes.* Scores of all entries, future ones included; who may see what comes in the next section. Mind which input feeds what, and the factor. Head h has the rows h ci to h ci + ci - 1 of `wq_b`; `rotate(x, theta)` rotates queries.

# %%
def index_scores(x, latent, index_keys, wq_b, weights_proj, theta):
    """B T S. x: B T d; latent: B T dc; index_keys: B S ci; wq_b: Hi ci x dc; weights_proj: Hi
    d; theta: T r/2, of the queries.

    (y = x @ weight.T, as in all linear layers.)
    """
    ### BEGIN SOLUTION
    B, T, Hi, ci = *x.shape[:2], len(weights_proj), index_keys.shape[-1]
    q = rotate((latent @ wq_b.T).view(B, T, Hi, ci), theta[:, None])                # B T Hi ci
    w = x @ weights_proj.T * (ci * Hi) ** -0.5                                      # B T Hi
    s = F.relu(torch.einsum("bthc,bsc->bths", q, index_keys))                       # B T Hi S
    return torch.einsum("bth,bths->bts", w, s)
    ### END SOLUTION


# %%
index_scores = check("csa.scores", index_scores)

# %%
layer = lively(Attention(NANO, M), seed=3)
qr = layer.q_norm(layer.wq_a(x))                                                    # B T dc


def scores_of_layer(layer, x, qr):
    """The indexer's scores with the weights of `layer`, a minids Attention: B T S."""
    indexer, cfg = layer.indexer, layer.config
    theta = angles(torch.arange(x.shape[1]), frequencies(cfg, M))                   # T r/2
    return index_scores(x, qr, entries_of(indexer.compressor, x, cfg), indexer.wq_b.weight,
                        indexer.weights_proj.weight, theta)


mine = scores_of_layer(layer, x, qr)
torch.testing.assert_close(mine, layer.indexer(x, qr, layer.indexer.keys(x)), atol=1e-4,
                           rtol=1e-4)
print("equal to minids.Indexer:", tuple(mine.shape))

# %% [markdown]
# ### Few heads, many ties
#
# Where all heads keep quiet, the score is exactly 0. With random directions, each head is quiet half of the time. **Predict before you run:** which share of scores is 0 with 1, 2, 4, 16 heads?

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(4)
for Hi in (1, 2, 4, 16):
    q, w, keys = (torch.randn(*shape, generator=rng)
                  for shape in ((200, Hi, 16), (200, Hi, 1), (500, 16)))
    s = (w * F.relu(q @ keys.T)).sum(1)                                             # T S
    print(f"{Hi:2} heads: {(s == 0).float().mean():.3f} of the scores are 0; 2^-{Hi} = "
          f"{2**-Hi:.5f}")

# %% [markdown]
# About $2^{-H_i}$, up to the luck of the draw. Zeros tie, and how a tie is broken is up to the implementation: two correct programs then pick different entries. With few heads, never compare two implementations by their picks.
#
# ### Four bits
#
# V4 multiplies the indexer's queries and keys in FP4: 16 codes, and one scale for each 32 channels (report 3.4, format MXFP4). One large channel then crushes its 31 neighbours to zero. So both sides are first turned by a **Hadamard matrix** R: entries $\pm 1/\sqrt{c_i}$,
# orthogonal. It spreads every channel over all others, and $(Rq) \cdot (Rk) = q \cdot k$. (The report does not mention the turn; the reference code has it.)
#
# **Predict before you run:** 128 channels, and in the keys one channel of each block is 20 times as large as the others. Which share of the best 32 of 1,000 keys survives the rounding, with and without the turn? The control has no large channels.

# %%
R = torch.ones(1, 1)
while len(R) < 128:
    R = torch.cat([torch.cat([R, R], 1), torch.cat([R, -R], 1)]) / 2**0.5  # doubles both sides
rng = torch.Generator().manual_seed(5)
q, keys = torch.randn(100, 128, generator=rng), torch.randn(1000, 128, generator=rng)
torch.testing.assert_close((q @ R) @ (keys @ R).T, q @ keys.T, atol=1e-3, rtol=1e-3)


def survivors(a, b, k=32):
    """Share of the best k keys by exact products that are also the best k by products of FP4
    numbers."""
    rounded = numerics.fake_quant(a, "fp4_act") @ numerics.fake_quant(b, "fp4_act").T
    exact = torch.zeros(100, 1000).scatter(1, (a @ b.T).topk(k).indices, 1.0)
    return exact.gather(1, rounded.topk(k).indices).mean().item()


share = {}
for name, size in (("control", 1.0), ("large channels", 20.0)):
    large = torch.ones(128)
    large[::32] = size
    share[name] = survivors(q, keys * large), survivors(q @ R, keys * large @ R)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for name, (plain, spread) in share.items():
    print(f"{name:15} of the best 32 survive: {plain:.2f} as they are, {spread:.2f} after the "
          "Hadamard turn")

# %% jupyter={"outputs_hidden": true}
assert (abs(share["control"][0] - share["control"][1]) < 0.03 < 0.04
        < share["large channels"][1] - share["large channels"][0])
print("without large channels the turn changes nothing to speak of; with them it saves some "
      "picks")

# %% [markdown]
# The turn helps, and less than one might think: what it saves is a few picks in a hundred. Four bits alone cost more. These are made-up outliers and untrained numbers, though. In V4 the indexer is trained with the rounding in place (quantisation-aware training, lesson 11), and the report
# gives one number, for another rounding: index scores in BF16 instead of float32 make the top-k selector twice as fast and keep 99.7 % of the picks (3.4).
#
# ## 4. The choice
#
# Rank the entries that are complete, read the k best; read all where there are no more than k. It is k also where scores are equal. That sounds too simple to go wrong. It goes wrong in two ways, one loud and one silent:
# - **no mask**: later entries are ranked and read. The model sees the future.
# - **mask too late**: the best k of all entries are taken, and the future ones dropped *afterwards*. Nothing leaks, but those picks are lost.
#
# ### Exercise 3: pick
# *Medium, 10 minutes.*

# %%
def visible(T, S, m):
    """Whether entry s is complete for the query at t: T S (lesson 03)."""
    return torch.arange(S) < ((torch.arange(T) + 1) // m)[:, None]


def pick(scores, m, k):
    """Which entries each query reads: B T S, bool. scores: B T S, future entries included;
    m: tokens in a window."""
    ### BEGIN SOLUTION
    seen = visible(*scores.shape[1:], m)                                            # T S
    best = scores.masked_fill(~seen, -math.inf).topk(min(k, scores.shape[2])).indices   # B T k
    return torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True) & seen
    ### END SOLUTION


# %%
pick = check("csa.pick", pick)

# %% [markdown]
# How bad is the silent fault? **Predict before you run:** 256 tokens, 64 entries, k = 8, random scores. How many entries does a query between 32 and 63 read, and one of the last 32?

# %% jupyter={"outputs_hidden": true}
scores = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(6))
late = (torch.zeros(4, 256, 64).bool().scatter(2, scores.topk(8).indices, True)
        & visible(256, 64, 4))
for name, rows in (("queries 32 to 63", slice(32, 64)),
                   ("queries 224 to 255", slice(224, 256))):
    print(f"{name:18} entries read: {pick(scores, 4, 8)[:, rows].sum(-1).float().mean():.1f}, "
          f"with the mask too late {late[:, rows].sum(-1).float().mean():.1f}")

# %% [markdown]
# While training it only looks like a weaker model, above all at the beginning of texts. While decoding token by token, nothing is wrong: there the future does not exist. So the model behaves differently in training and in use, and no loss will tell you.
#
# Now the whole layer. Two lines are new since lesson 03: the scores, and the mask.

# %%
def csa_layer(layer, x, k):
    """A CSA layer with the weights of `layer`, a minids Attention. x: B T d -> B T d."""
    cfg, (B, T, _) = layer.config, x.shape
    theta = angles(torch.arange(T), frequencies(cfg, M))                    # T r/2
    picked = pick(scores_of_layer(layer, x, query_latent(layer, x)), M, k)  # B T S
    near = in_window(T, cfg.window_size).expand(B, T, T)
    # B T+S c
    kv = torch.cat([token_keys(layer, x, theta), entries_of(layer.compressor, x, cfg)], 1)
    # B T H c
    o = attend(queries(layer, x, theta), kv, torch.cat([near, picked], -1), layer.attn_sink)
    o = rotate(o, -theta[:, None])
    return grouped_output(o, layer.wo_a.weight, layer.wo_b.weight, cfg.o_groups)

# %%
layer.config = NANO.replace(index_topk=K)
torch.testing.assert_close(csa_layer(layer, x, K), layer(x), atol=1e-4, rtol=1e-4)
print(f"equal to minids.Attention: {x.shape[1]} tokens, {x.shape[1] // M} entries, {K} of them "
      "read")

# %% [markdown]
# **What can a query reach?** In Flash: 128 tokens one by one, and 512 entries that each look at 8 tokens. Neighbouring entries share four of them, so that makes some 2,050 tokens (512 entries in a row) to 4,096 (no two of them neighbours), *anywhere* in a million. Which ones is decided for each query and each layer anew.
#
# ### Causality, measured
#
# As in lesson 03: change token s, look which outputs t move. **Predict before you run:** the picture had a solid staircase there. What will it look like with k = 3 of 12 entries?

# %%
def perturbed(layer, T):
    """How much output t (row) moves, relative to its size, when token s (column) is changed:
    T T."""
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(T, layer.config.dim, generator=rng)  # T d
    batch = x.repeat(T + 1, 1, 1)                        # T+1 T d; the last one stays as it is
    batch[torch.arange(T), torch.arange(T)] += torch.randn(T, layer.config.dim, generator=rng)
    y = layer(batch)                                     # T+1 T d
    return ((y[:-1] - y[-1]).norm(dim=-1) / y[-1].norm(dim=-1)).T


# %% jupyter={"outputs_hidden": true}
def everything(pos, T, S, m, device):
    """The sabotage: minids' mask of entries, but all are allowed."""
    return torch.zeros(T, S)


small, maps = lively(Attention(NANO.replace(window_size=4, index_topk=3), M), seed=8), {}
for name, rule in (("right: 3 complete entries", passes.incomplete),
                   ("sabotage: 3 of all entries", everything)):
    with mock.patch.object(passes, "incomplete", rule):
        maps[name] = perturbed(small, 48)
    above = (maps[name].triu(1) > 1e-4).sum().item()
    print(f"{name:27} cells above the diagonal that change: "
          f"{'none' if above == 0 else 'more than 300' if above > 300 else above}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(hca.plot_changes(maps, 4), "Left: the band of the sliding window, below "
           "it a staircase with gaps where entries are not picked, nothing above the diagonal. "
           "Right: scattered cells above the diagonal")

# %% [markdown]
# Left: nothing above the diagonal. Below it the staircase has holes, since later queries leave most entries out. A picked entry brings 8 columns at once, its own window and the one before: that is the overlap. A token may also matter without being read:
# changed, it changes a key, a rank, and so *which* entries are read.
#
# ### What the leak does to training
#
# Text of 16 random symbols: nobody can predict it, the honest loss is ln 16 = 2.77. One CSA layer between an embedding and a head, k = 3 of 8 entries. Two runs from the same weights: with the right mask, and with none.
#
# **Predict before you run:** nothing trains the indexer here (section 5 says why), so the sabotaged model picks more or less at random. Will it still beat 2.77?

# %%
class Guess(nn.Module):
    """Embedding, one CSA layer beside a residual, norm, head."""

    def __init__(self, d=32):
        super().__init__()
        config = NANO.replace(dim=d, head_dim=d, window_size=4, index_topk=3,
                              original_seq_len=0)
        self.embed, self.attn = nn.Embedding(16, d), Attention(config, M)
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, 16, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(x + self.attn(x)))

# %%
def guess_run(rule, steps=120):
    """The loss of each training step on random symbols, with this mask of entries."""
    torch.manual_seed(0)
    model, losses = Guess(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95),
                                  weight_decay=0)
    with mock.patch.object(passes, "incomplete", rule):
        for _ in range(steps):
            ids = torch.randint(0, 16, (32, 33))                                    # B T+1
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
runs = {"right": guess_run(passes.incomplete),
        "sabotage: the best 3 of all entries": guess_run(everything)}
style.show(csa.plot_leak(runs, math.log(16)), "Loss over training steps on random symbols: the "
           "right model stays at guessing, the sabotaged one falls far below")

# %% jupyter={"outputs_hidden": true}
end = {name: sum(line[-10:]) / 10 for name, line in runs.items()}
assert end["right"] > 2.7 and end["sabotage: the best 3 of all entries"] < 2.5
print("right: stays at ln 16. sabotage: below 2.5, which no honest model can")

# %% [markdown]
# Even three blind looks into the future pay. **A loss below what is possible is an alarm**; the perturbation map finds the fault before any training.
#
# ## 5. How does the indexer learn?
#
# Train the layer on anything, and look at the gradients. **Predict before you run:** four matrices: the compressor's `wkv`, the attention's `wq_b`, and the same two of the indexer. Which get one?

# %% jupyter={"outputs_hidden": true}
torch.manual_seed(0)
trained = Attention(NANO.replace(index_topk=K), M)
trained(x).square().mean().backward()
for name in ("compressor.wkv", "wq_b", "indexer.wq_b", "indexer.compressor.wkv"):
    gradient = trained.get_parameter(name + ".weight").grad
    print(f"{name:23}", "no gradient" if gradient is None else "gradient")

# %% [markdown]
# The indexer gets none. A rank is a whole number: move a score a little, and nothing happens, until suddenly another entry is read. So the indexer needs a **loss of its own**: be like the attention.
#
# The report says that when sparsity is introduced there is "a short stage to warm up the lightning indexer", and sparse attention for the rest of the training (4.2.2; Flash is dense for its first 1T tokens and becomes sparse at 64K). **It does not say how.** V3.2, which has the
# same indexer over single tokens, does ([arXiv 2512.02556](https://arxiv.org/abs/2512.02556), section 2.1). `minids` applies that recipe to compressed entries:
#
# | stage | attention reads | what learns | the indexer's target |
# | --- | --- | --- | --- |
# | dense | all complete entries | the model | none |
# | warm-up, short | all complete entries | **only** the indexer | attention over all entries |
# | sparse | the indexer's picks | model and indexer, each by its own loss | attention over the picks |
#
# The target: the attention's weights on the entries, summed over heads and divided by their sum. The loss, for each query and then the mean: $\mathrm{KL}(\text{target} \,\|\, \mathrm{softmax}(I_t))$, where
# $\mathrm{KL}(p \,\|\, q) = \sum_s p_s \ln (p_s / q_s)$ is 0 if the two agree, and above 0 otherwise.
#
# By hand: two heads, two entries. Head 1 gives the entries 0.5 and 0.1 (the rest goes to window and sink), head 2 gives 0.1 and 0.1. Sum: 0.6 and 0.2. Divided by 0.8: **0.75 and 0.25**. Scores (ln 3, 0) have softmax 0.75, 0.25: KL = 0. Scores (0, 0) say a half each:
# KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.304 - 0.173 = 0.131.
#
# ### Exercise 4: the divergence
# *Medium, 10 minutes.* Entries that a query does not see take no part in its softmax, and queries that see none take no part in the mean. `torch.xlogy(p, p)` is p ln p, and 0 where p is 0. (Detach nothing yet: that is exercise 5.)

# %%
def divergence(p, scores, seen):
    """KL(target || softmax of the scores), in nats, mean over the queries that see an entry.

    p: B T H S, the attention's weights on entries, 0 where an entry is not seen; scores: B T S;
    seen: T S, bool.
    """
    ### BEGIN SOLUTION
    target = p.sum(2)  # B T S
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-20)
    log_q = scores.masked_fill(~seen, -1e9).log_softmax(-1)  # -inf gives nan where none is seen
    kl = (torch.xlogy(target, target) - target * log_q).sum(-1)  # B T
    return kl[:, seen.any(-1)].mean()
    ### END SOLUTION


# %%
divergence = check("csa.divergence", divergence)
p = torch.tensor([[0.5, 0.1], [0.1, 0.1]])[None, None]                              # B T H S
for guess in ([math.log(3), 0.0], [0.0, 0.0]):
    kl = divergence(p, torch.tensor([[guess]]), torch.ones(1, 2).bool())
    print(f"scores {guess[0]:.2f}, {guess[1]:.2f}: KL = {kl.abs():.3f}")

# %% [markdown]
# ### Exercise 5: whom may this loss change?
# *Hard, 15 minutes.* A colleague wrote the indexer's training loss. The loss falls nicely. The model gets worse. There are **three** faults. The wrapper `with_gradients` shows which inputs get a gradient. Use your `divergence`.

# %%
def colleagues_learn(indexer, x, qr, p, seen):
    """The indexer's loss. indexer: a minids Indexer; x: B T d; qr: B T dc; p: B T H S; seen:
    T S. Three faults."""
    target = p.sum(2)                                                               # B T S
    log_q = indexer(x, qr, indexer.keys(x)).masked_fill(~seen, -1e9).log_softmax(-1)
    kl = log_q.exp() * (log_q - target.clamp_min(1e-20).log())                      # B T S
    return (kl * seen).sum(-1)[:, seen.any(-1)].mean()


def with_gradients(loss_of):
    """A function of the same arguments that gives the loss, whether its gradient reaches x,
    qr and p, and the indexer's gradient."""
    @functools.wraps(loss_of)
    def both(indexer, x, qr, p, seen):
        given = [t.detach().clone().requires_grad_() for t in (x, qr, p)]
        loss = loss_of(indexer, *given, seen)
        found = torch.autograd.grad(loss, [*given, *indexer.parameters()], allow_unused=True,
                                    materialize_grads=True)
        reached = {name: bool((g != 0).any()) for name, g in zip(("x", "qr", "p"), found)}
        return {"loss": loss.detach(), **reached,
                "indexer": torch.cat([g.flatten() for g in found[3:]])}
    return both

# %%
sees = visible(70, 17, M)
weights = (torch.rand(2, 70, 4, 17, generator=torch.Generator().manual_seed(9)) / 20
           * sees[:, None])
for name, value in with_gradients(colleagues_learn)(trained.indexer,
                                                    x, trained.q_norm(trained.wq_a(x)), weights,
                                                    sees).items():
    print(f"{name:8}", f"{value:.3f}" if name == "loss"
          else "gradient" if torch.as_tensor(value).any() else "no gradient")

# %%
def learn(indexer, x, qr, p, seen):
    """The indexer's loss, which moves the indexer and nothing else. Arguments as above."""
    ### BEGIN SOLUTION
    x, qr = x.detach(), qr.detach()
    return divergence(p.detach(), indexer(x, qr, indexer.keys(x)), seen)
    ### END SOLUTION


# %%
learn_and_look = check("csa.learn", with_gradients(learn))
for name, value in learn_and_look(trained.indexer, x, trained.q_norm(trained.wq_a(x)), weights,
                                  sees).items():
    print(f"{name:8}", f"{value:.3f}" if name == "loss"
          else "gradient" if torch.as_tensor(value).any() else "no gradient")

# %% [markdown]
# If a gradient reaches p, the attention learns to be easy to guess, say flat. If it reaches x or qr, the features do. All of that makes this loss fall, at the price of the one that counts.
#
# Is it the loss that `minids` trains with? `Options` tell a pass what to do beside its usual work: here, attend to all entries, and keep the indexer's loss.

# %%
caught = {}


def catching(*args, original=attention.attend_blocks, **kwargs):
    """minids' attend, keeping the attention's weights on the entries."""
    o, caught["p"] = original(*args, **kwargs)  # B T H c, B T H S
    return o, caught["p"]


current = passes.Pass(trained.config, x.shape[1], x.device,
                      options=Options(dense=True, index=True))
with mock.patch.object(attention, "attend_blocks", catching):
    trained(x, current)
mine = learn_and_look(trained.indexer, x, trained.q_norm(trained.wq_a(x)), caught["p"],
                      sees)["loss"]
torch.testing.assert_close(mine, current.record.index_loss.detach())
print("equal to the loss that minids trains its indexers with")

# %% [markdown]
# ## 6. Teach an indexer
#
# The shipped nano model was trained in these three stages. We take its last CSA layer, throw its indexer away, and teach a fresh one: only the warm-up, on six stories. Then we test on four others, each 1,024 tokens long.
#
# First we let nano read all stories with dense attention and keep what the layer gets (x) and what it looks at (p).

# %%
nano = minids.load(paths.data("checkpoints", "nano")).eval().requires_grad_(False)
tokenizer, cfg, T = Tokenizer.load(), nano.config, 1024
L = max(i for i, ratio in enumerate(cfg.compress_ratios) if ratio == M)  # the last CSA layer
attn, S = nano.layers[L].attn, T // M
theta, sees = angles(torch.arange(T), frequencies(cfg, M)), visible(T, S, M)  # T r/2, T S


def watch(ids):
    """What layer L gets, B T d, and its weights on the entries when it may read all,
    B T H S."""
    kept = {}
    hook = attn.register_forward_pre_hook(lambda module, args: kept.update(x=args[0]))

    def looking(q, *args, original=attention.attend_blocks, **kwargs):
        o, p = original(q, *args, **kwargs)
        # the first one after layer L began
        kept.update({"p": p} if "x" in kept and "p" not in kept else {})
        return o, p
    with mock.patch.object(attention, "attend_blocks", looking):
        nano.features(ids, options=Options(dense=True, index=True))
    hook.remove()
    return kept["x"], kept["p"]


# %%
def documents(seed, n):
    """n TinyWorld documents of T tokens: n T."""
    texts = [stories.story_with_questions(random.Random(seed + i), 1200) for i in range(n)]
    return torch.tensor([tokenizer.encode(text, bos=True)[:T] for text in texts])


lessons, tests = documents(100, 6), documents(200, 4)
(x_train, p_train), (x_test, p_test) = watch(lessons), watch(tests)
qr_train, qr_test = (attn.q_norm(attn.wq_a(t)) for t in (x_train, x_test))
print(f"layer {L}: {len(lessons)} + {len(tests)} stories, {S} entries each")

# %% [markdown]
# How to measure an indexer? Rank the entries by its scores, pick k, and ask:
# - **mass**: which share of the attention (summed over heads, over all entries that the query sees) falls on the picked ones?
# - **recall**: which share of the *best possible* k, the k with the most attention, was picked?
#
# The **oracle** picks by the attention itself: recall 1, and the most mass that k entries can hold. Beside it we measure nano's own indexer (*shipped*), a *fresh* one, the same one *warmed up*, the k *latest* entries, and *random* ones.
# We ask queries from token 512 on, which see 128 to 256 entries.

# %%
KS = (4, 8, 16, 32, 64)


def measured(order, p, first=512):
    """{"mass": [share for each k], "recall": [...]} of picking by `order`, B T S."""
    target = p.sum(2)[:, first:]                                                    # B T' S
    rank = lambda t: t.masked_fill(~sees[first:], -math.inf).argsort(-1, descending=True)
    mine, best, found = rank(order[:, first:]), rank(target), {"mass": [], "recall": []}
    for k in KS:
        # B T' k
        hit = torch.zeros_like(target).scatter(2, best[..., :k], 1.0).gather(2, mine[..., :k])
        found["mass"].append((target.gather(2, mine[..., :k]).sum() / target.sum()).item())
        found["recall"].append(hit.mean().item())
    return found

# %% [markdown]
# **Predict before you run:** how does a fresh indexer compare with random picks? And after 80 steps, of 256 queries each?

# %%
def fresh_indexer(seed, heads=16):
    """An indexer with new random weights, as training begins."""
    torch.manual_seed(seed)
    return Model(cfg.replace(index_n_heads=heads, n_layers=L + 1, n_mtp_layers=0,
                             compress_ratios=cfg.compress_ratios[:L + 1])
             ).layers[L].attn.indexer


def warm_up(indexer, steps=80, seed=0, scores_by=index_scores):
    """Train an indexer on the kept features: only its own parameters. Returns the losses."""
    rng, losses = torch.Generator().manual_seed(seed), []
    optimiser = torch.optim.AdamW(indexer.parameters(), lr=1e-2, betas=(0.9, 0.95),
                                  weight_decay=0)
    for _ in range(steps):
        b = torch.randint(0, len(x_train), (2,), generator=rng)
        t = torch.randint(M, T, (128,), generator=rng)
        x, qr = x_train[b], qr_train[b]  # 2 T d, 2 T dc
        scores = scores_by(x[:, t], qr[:, t], indexer.keys(x), indexer.wq_b.weight,
                           indexer.weights_proj.weight, theta[t])
        loss = divergence(p_train[b][:, t], scores, sees[t])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses

# %%
def order_by(indexer, scores_by=index_scores):
    """The scores of the test stories, B T S."""
    with torch.no_grad():
        keys = indexer.keys(x_test)                                                 # B S ci
        return scores_by(x_test, qr_test, keys, indexer.wq_b.weight,
                         indexer.weights_proj.weight, theta)


indexer = fresh_indexer(0)
found = {"oracle": measured(p_test.sum(2), p_test),
         "shipped": measured(order_by(attn.indexer), p_test)}
before = measured(order_by(indexer), p_test)
losses = warm_up(indexer)
found |= {"warmed up": measured(order_by(indexer), p_test), "fresh": before,
          "latest": measured(torch.arange(float(S)).expand(4, T, S), p_test),
          "random": measured(torch.rand(4, T, S, generator=torch.Generator().manual_seed(10)),
                             p_test)}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(csa.plot_coverage(KS, found), "Attention mass and recall over k: the shipped "
           "indexer and the one just warmed up run close below the oracle in mass; fresh, "
           "latest and random picks lie together far below")
print(f"loss of the warm-up: {losses[0]:.3f} at the start, {sum(losses[-10:]) / 10:.3f} at the "
      "end (nats)")
for name, shares in found.items():
    print(f"{name:10} mass  " + "  ".join(f"k={k}: {v:.2f}" for k, v in zip(KS, shares["mass"]))
          + f"   recall at 16: {shares['recall'][2]:.2f}")

# %% jupyter={"outputs_hidden": true}
at16 = {name: (shares["mass"][2], shares["recall"][2]) for name, shares in found.items()}
assert abs(at16["fresh"][1] - at16["random"][1]) < 0.1 and at16["random"][1] < 0.2
assert (at16["warmed up"][1] > 0.4
        and at16["warmed up"][0] > 0.75 * at16["oracle"][0] > at16["random"][0] + 0.04)
assert losses[0] > 2 * sum(losses[-10:]) / 10
style.say("k = 16: a fresh indexer finds no more than chance; warmed up it finds over 40 % of "
          "the oracle's picks")
print("and more than three quarters of the attention that 16 entries can hold")

# %% [markdown]
# Read the two panels together. Recall may be well below 1 while the mass is nearly that of the oracle: the indexer misses entries, but what it picks instead carries almost as much. **Mass is what the layer feels, recall is what a test counts.**
#
# Look also at the oracle's curve: how much do even the best 16 entries hold? Where attention is *broad*, no choice of 16 can replace all. What a real model's curve looks like, the report does not show.
#
# ### Which parts of it matter here?
#
# The same warm-up, 50 steps of it, without the ReLU, and with one head; three seeds each. (One head also has a sixteenth of the weights that make queries: this ablation takes away more than heads.) **Predict before you run:** which of the two costs more recall?

# %%
def linear_scores(x, latent, index_keys, wq_b, weights_proj, theta):
    """index_scores without the ReLU: one effective query for each token, B T S."""
    B, T, Hi, ci = *x.shape[:2], len(weights_proj), index_keys.shape[-1]
    q = rotate((latent @ wq_b.T).view(B, T, Hi, ci), theta[:, None])                # B T Hi ci
    return (torch.einsum("bth,bthc->btc", x @ weights_proj.T * (ci * Hi) ** -0.5, q)
            @ index_keys.mT)


rows, names = {}, ("as it is: 16 heads, ReLU", "16 heads, no ReLU", "one head, ReLU")
for name, heads, scores_by in zip(names, (16, 16, 1),
                                  (index_scores, linear_scores, index_scores)):
    rows[name] = []
    for seed in range(3):
        variant = fresh_indexer(seed, heads)
        warm_up(variant, steps=50, seed=seed, scores_by=scores_by)
        rows[name].append(measured(order_by(variant, scores_by), p_test)["recall"][1])

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(csa.plot_variants(rows, 8), "Recall for three variants, a dot for each seed: 16 "
           "heads with the ReLU, 16 heads without it, one head with it")

# %% jupyter={"outputs_hidden": true}
assert (sum(rows[names[0]]) / 3 > sum(rows[names[2]]) / 3 - 0.02
        and min(min(line) for line in rows.values()) > 0.3)
style.say("on average 16 heads find no less than one, within 0.02; all variants find over 30 % "
          "of the oracle's picks")

# %% [markdown]
# When this lesson was written, one head found less. And the ReLU, which is what makes 16 heads more than one? Hold the gap between the first two rows against the spread of the dots: **here the ReLU buys some 0.04 of recall**, and all three seeds with it lie above all three without. (16 heads without it still have weights $w^I$ for each query, so their one effective query can be almost anything.) Three seeds of a small model: whether V4
# needs it we cannot show.
#
# ### Does the loss notice?
#
# Now the whole model, with both CSA layers, on the test stories: how much does its loss rise when each query reads k picked entries instead of all? Tokens from 256 on. The control, k = 256, reads all. **Predict before you run:** mass and recall set the indexer far above
# random and latest picks. Will the loss, too?

# %%
def loss_with(k, order=None):
    """Loss of each test story when CSA layers read k entries, picked by their indexers or by
    `order(B, T, S)`."""
    layers = [block.attn for block in nano.layers if block.attn.ratio == M]
    for layer in layers:
        layer.config = cfg.replace(index_topk=k)
    def by_order(self, x, qr, keys, current=None, part=None):
        return order(len(x), x.shape[1], keys.shape[1])

    by = mock.patch.object(Indexer, "forward", by_order)
    with by if order else contextlib.nullcontext():
        logits = nano(tests)[:, 256:-1]
    for layer in layers:
        layer.config = cfg
    return F.cross_entropy(logits.flatten(0, 1), tests[:, 257:].flatten(),
                           reduction="none").view(len(tests), -1).mean(1)


rng = torch.Generator().manual_seed(11)
pickers = {"indexer": None, "latest": lambda B, T, S: torch.arange(float(S)).expand(B, T, S),
           "random": lambda B, T, S: torch.rand(B, T, S, generator=rng)}
dense = loss_with(S)
rise = {f"k = {k:2}, {name}": loss_with(k, order) - dense for k in (16, 4)
        for name, order in pickers.items()}
rise = {"control: k = 256, random": loss_with(S, pickers["random"]) - dense} | rise

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(hca.plot_damage({name: (r.mean().item(), r.std().item() / len(r) ** 0.5)
                            for name, r in rise.items()}),
           "Change of the loss when only k entries are read, by who picks them, with its "
           "spread over stories; the control changes nothing, and all changes are small")
print(f"loss when all entries are read: {dense.mean():.3f} nats per token")

# %% jupyter={"outputs_hidden": true}
mean = {name: r.mean().item() for name, r in rise.items()}
assert abs(mean["control: k = 256, random"]) < 1e-4 and max(mean.values()) < 0.3
assert mean["k = 16, indexer"] < mean["k = 16, random"] + 0.005
print("the control changes nothing; no change is above 0.3 nats; with k = 16 the indexer's "
      "picks")
print("cost no more than random ones, within 0.005")

# %% [markdown]
# Be sober again, and read the bars: only what lies further apart than the bars are long is a difference. When this lesson was written, 16 picked entries were as good as all 256, and 16 random ones were not; but the *latest* 16 did about as well, and with k = 4 all three were alike. And look at the scale:
# hundredths of a nat. Most of what helps to guess the next token of these stories is in the sliding window. **This model's loss is a poor judge of indexers**; mass and recall tell them apart. A task that needs a fact from far away would be a better judge.
#
# ## 7. What does a query pick?
#
# A story with facts said once, and a question about one of them at the end. Each row is one of the last tokens, each column an entry, labelled with the words of its own window. Colour: what the layer looks at when it may read all. Rings: the 6 entries that nano's indexer ranks first. (Its own k is 64: of so short a text it reads everything.)

# %%
tale = stories.recall(random.Random(3), 40, "secret")
ids = tokenizer.encode(tale.context + tale.question + " " + tale.answer, bos=True)
pieces = [tokenizer.decode([i]).replace("\n", "/") for i in ids]
pieces[0] = "<bos>"
n = len(ids)
x_tale, p_tale = watch(torch.tensor([ids]))
with torch.no_grad():
    # 1 T S
    s_tale = attn.indexer(x_tale, attn.q_norm(attn.wq_a(x_tale)), attn.indexer.keys(x_tale))
mass, seen_tale = p_tale[0].sum(1), visible(n, n // M, M)                           # T S
print(tale.question, tale.answer)

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
last = range(n - 24, n)
words = ["".join(pieces[i * M:(i + 1) * M]) for i in range(n // M)]
style.show(csa.plot_picks(mass.masked_fill(~seen_tale, torch.nan)[-24:],
                          pick(s_tale, M, 6)[0, -24:], [pieces[t] for t in last], words),
           "The last 24 tokens (end of the story, question and answer) against the entries of "
           "the story: bright columns are entries that many queries look at, rings mark the "
           "picks, most of them on the strongest cells of their own row")

# %% [markdown]
# Three things to look for: columns that half of the queries pick; rings on dark cells (misses); queries whose picks differ from their neighbours'. Then ask whether the entry that holds the *answer* is picked at the end. In our run it is not, by any of these queries: the indexer copies where nano's attention looks, and nano has not learned to look there. (Being picked would not yet
# be being understood: whether nano then says the right word is another question.)
#
# Now as a text. The indexer's picks are framed; blue is what the attention would look at. **Find out:** move the query through the question. Which picks change with every token, and which stay? And with k = 2, what is left?

# %%
def draw(k, query):
    return csa.plot_story(pieces, n, query, mass[query], pick(s_tale, M, k)[0, query],
                          cfg.window_size, M)


box = style.slider_image(
    draw, "The story as one query sees it: picked entries framed, attention in blue, "
          "the sliding window underlined",
    k=[2, 4, 6, 12, 24], query=range(n - 24, n), start={"k": 6, "query": n - 1})
box

# %%
box.peek(k=2, query=n - 8)
print("with k = 2 the query reads", pick(s_tale, M, 2)[0, n - 8].sum().item(),
      "entries and its sliding window")

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
style.show(draw(6, n - 1), "The story at its last token, k = 6: the picked entries are framed; "
           "half of them are among the six bluest")

# %% [markdown]
# ## 8. What it costs
#
# ### Exercise 6: the price of searching
# *Easy, 5 minutes.* One decoded token; all indexers of the model; products of queries and keys only, as in the cold open.

# %%
def operations(config, n):
    """FP8-equivalent operations of all indexers for one token decoded after n tokens of
    context.

    A multiply-add is 2 operations, FP4 times FP4 counts a half.
    config.compress_ratios[:config.n_layers] is 4 in CSA layers.
    """
    ### BEGIN SOLUTION
    layers = sum(ratio == 4 for ratio in config.compress_ratios[:config.n_layers])
    return layers * 2 * config.index_n_heads * config.index_head_dim * (n // 4) * 0.5
    ### END SOLUTION


# %%
operations = check("csa.operations", operations)

# %% [markdown]
# **Predict before you run:** from which context on does searching (the indexer) cost Flash more than reading 512 entries (the CSA core, sliding window included)? Start with one entry: Hi ci multiply-adds in FP4 to score it, H (c + c) in BF16 to read it.

# %% jupyter={"outputs_hidden": true}
pro = Config.from_json(paths.data("v4", "pro.config.json"))
per_entry = [flash.index_n_heads * flash.index_head_dim * 0.5,
             flash.n_heads * 2 * flash.head_dim * 2]
style.say(f"one entry in Flash, FP8 equivalents: {2 * per_entry[0]:,.0f} to score "
          f"it, {2 * per_entry[1]:,.0f} to read it, {per_entry[1] / per_entry[0]:.0f} times as "
          "much")
# flat from 2,048 on
crossing = next(n for n in range(2048, 2**20, 4) if operations(flash, n) > terms["CSA core"])
print(f"from {crossing:,} tokens on, searching costs Flash more than reading")
for name, config in (("Flash", flash), ("Pro", pro)):
    shares = [f"{n:,}: {operations(config, n) / cost.flops(config, n)['total']:.1%}"
              for n in (2**14, 2**17, 2**20)]
    style.say(f"{name:5} share of the indexer in a decoded token at {', '.join(shares)}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
lengths = [2**j for j in range(10, 21)]
csa_core = csa_layers * 2 * flash.n_heads * 2 * flash.head_dim * 2
curves = {
    "CSA core, if it read all entries": [csa_core * (n // 4 + min(n, 128)) for n in lengths],
    "indexer": [operations(flash, n) for n in lengths],
    "CSA core, 512 entries": [csa_core * (min(n // 4, 512) + min(n, 128)) for n in lengths],
    "whole token, as V4 does it": [cost.flops(flash, n)["total"] for n in lengths]}
style.show(csa.plot_operations(lengths, curves), "Operations of one decoded token of Flash "
           "over the context, both axes logarithmic: reading all entries would dominate; the "
           "indexer's line runs in parallel 32 times lower; the CSA core is flat from 2K on")

# %% [markdown]
# Searching is still **linear** in the context: the indexer only makes the line 32 times lower than reading would be. V3.2 had the same indexer over single tokens, in FP8: 8 times as many operations a layer. Compression by 4 and FP4, which halves, bring it down.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | layers with CSA, of all | 21 of 43 | 30 of 61 | `compress_ratios` |
# | k | 512 | 1024 | 4.2.1, `index_topk` |
# | indexer: heads, width | 64, 128 | 64, 128 | 4.2.1 |
# | attention: heads, width | 64, 512 | 128, 512 | 4.2.1 |
# | entries at 1,048,576 tokens, read of them | 262,144, 0.20 % | 262,144, 0.39 % | arithmetic |
# | bytes in the cache: an entry, an index key | 576, 64 | 576, 64 | 2.3.4 (FP8 and BF16; FP4) |

# %%
for name, config in (("Flash", flash), ("Pro", pro)):
    held, n_params = cost.kv_bytes(config, 2**20), cost.parts(config)
    style.say(f"{name:5} cache at 2^20 tokens: CSA entries {held['CSA entries'] / 1e9:.2f} GB, "
              f"index keys {held['CSA index keys'] / 1e9:.2f} GB, of {held['total'] / 1e9:.2f} "
              f"GB; indexers' weights: {n_params['indexers'] / sum(n_params.values()):.2%} of "
              "all")

# %% [markdown]
# **The report claims** that the smaller k (V3.2 had 2,048 single tokens) makes short and medium texts cheaper, and that all measures together bring a token at 1M to 27 % (Pro) and 10 % (Flash) of V3.2's operations (2.3.4 and figure 1); lesson 05 recomputes these. It shows no ablation of overlap, indexer or k, and no
# recall of the indexer against full attention. **Here we have shown** that overlap saves torn pairs, that an indexer learns within 80 steps what a layer looks at, and what its picks are worth to one small model. **At this scale we cannot show** that 512 of 262,144 entries are enough.
#
# ## Key points
# - A CSA entry pools 2m slots in one softmax: the a-halves of the window before, the b-halves of its own. Absent means a gate of $-\infty$.
# - Without overlap, one pair in m is torn, and no entry knows both of its tokens.
# - The indexer scores entries by $\sum_h w^I_h\,\mathrm{ReLU}(q^I_h \cdot k^I_s)$. Without the ReLU all heads are one. With few heads scores tie at 0.
# - Mask first, then rank. No mask leaks: the loss is too good. Mask too late wastes picks, and no loss tells.
# - Ranks have no gradient. The indexer learns by KL from the attention's weights, summed over heads and normalised; x, qr and p are detached.
# - A fresh indexer picks at random. So V4 trains dense first, warms the indexer up, then goes sparse. The exact recipe is unpublished; ours is V3.2's.
# - Judge an indexer by the attention mass that it covers, beside an oracle and chance.
# - At a million tokens searching costs Flash 13 times what reading costs, and 32 times less than reading all.
#
# ## Questions to discuss
#
# <details><summary>1. Why not take the attention's own entries as the indexer's keys, and save a compressor?</summary>
#
# They are 512 wide, so each score would cost four times as much, in BF16 or FP8 instead of FP4. *"They would be better keys"* may be true; but the indexer only has to rank. Also the entries serve as values, the index keys need not.
# </details>
#
# <details><summary>2. Could the indexer be trained by the language-model loss, with a soft top-k?</summary>
#
# In principle: a differentiable relaxation, or the score added to the attention's logits. But then all entries take part while training, which is what one wants to avoid at 1M tokens. *"The gradient is just small"* is wrong: it is exactly none, ranks are piecewise constant.
# </details>
#
# <details><summary>3. In the sparse stage the target is the attention over the picked entries only. What can then never be learnt?</summary>
#
# That an entry outside the picks deserved to be in. Its score only moves through weights shared with others. That is why the warm-up, which sees all entries, must come first. *"Exploration by chance"* does not happen: the choice is deterministic.
# </details>
#
# <details><summary>4. Recall of 0.6 sounds bad. Is it?</summary>
#
# Not by itself. If the attention is broad, the entries around rank k have nearly the same weight, and swapping them costs little: look at the mass. *"Recall must be near 1 before sparse training may begin"* confuses ranks with weights. If the attention is peaked, recall at small k is what counts.
# </details>
#
# <details><summary>5. All heads of the attention read the same picks. What is lost?</summary>
#
# A head with a taste of its own is outvoted: the target is summed over heads. Picks per head would find its entries, and multiply the cost of gathering by H. With one shared key-value head (lesson 02), one set of picks is one block of memory to fetch.
# </details>
#
# <details><summary>6. Why does V4 not use the indexer in HCA layers?</summary>
#
# With 128 tokens to an entry there are 8,192 entries at 1M tokens: reading all of them costs about as much as one CSA layer's search. *"HCA is too coarse to be picked from"* is not the reason.
# </details>
#
# ## Links
# - DeepSeek-V4 report, sections 2.3.1 (CSA), 2.3.4 (cost), 3.4 (FP4), 4.2.2 (stages of training)
# - DeepSeek-V3.2, [arXiv 2512.02556](https://arxiv.org/abs/2512.02556), section 2.1: sparse attention with a lightning indexer, and how to train it
# - Yuan et al., Native Sparse Attention, [arXiv 2502.11089](https://arxiv.org/abs/2502.11089): the same house, blocks chosen by the attention to compressed blocks
# - Tang et al., Quest, [arXiv 2406.10774](https://arxiv.org/abs/2406.10774): picking blocks for each query without any training
# - Ashkboos et al., QuaRot, [arXiv 2404.00456](https://arxiv.org/abs/2404.00456): Hadamard turns against outliers
# - In this repository: `minids/model/compressor.py`, `minids/model/indexer.py`, `minids/model/passes.py` (options and record of a pass), `minids/pretrain/train.py` (the stages)
