# %% [markdown]
# # 02 Attention
#
# **One vector is key and value for all heads; so the output must be rotated back, and a head must be able to say "nothing here".**
#
# **After this you can**
# - write V4's window attention from its equations, and prove that yours equals `minids` and `transformers`,
# - say what one shared key-value vector saves, and what it costs,
# - rotate the right channels by the right angles, and explain why the output is rotated *back*,
# - read a sink: what it lets a head do, and what a trained model does with it,
# - say which tokens a query reaches through L layers of windows, and prove it by perturbation,
# - count what the grouped output projection saves in Flash and Pro,
# - tell from a symptom which of the usual faults an implementation has.
#
# *Time: 175 minutes, exercises included. The code itself runs in about half a minute.*
# *Before this: softmax attention in PyTorch. This lesson is about layers that see a window only; compressed entries come in lessons 03 and 04.*

# %%
import math
import tempfile
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from unittest import mock

import minids
import torch
import torch.nn.functional as F
from minids import Config, cost
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.learn.checks.attention import FAULTS, diagnosed
from minids.model import attention, rotary
from minids.model.attention import Attention
from minids.plain import frequencies
from minids.show import attention as figures
from minids.show import style
from minids.system import paths
from torch import nn

style.use()
versions()

# %% [markdown]
# ## One line that looks like a mistake
#
# V4's attention turns queries and keys by their position, as many models do. After the weighted sum it turns the *output* too: **backwards**. At first sight the line undoes
# work that was just done. In `minids/model/attention.py` it reads `o = rotate(o, rot[..., None, :], inverse=True)`. We take it out of the shipped nano model and measure the loss on the beginnings
# of documents that the model never saw in training (lesson 01).
#
# **Predict before you run:** does the loss rise? By how much at the very first token, and by how much later?

# %%
shipped = minids.load(paths.data("checkpoints", "nano")).eval().requires_grad_(False)
tokenizer = Tokenizer.load()
unread = (tokenizer.encode(words, bos=True)
          for _, words in mixture.documents("valid", ("text", "stories", "problems")))
# 32 beginnings of documents, B T+1
rows = torch.tensor(list(islice((ids[:257] for ids in unread if len(ids) > 256), 32)))


def losses(model, rows):
    """The mean loss at each position, in nats. rows: B T+1 -> T."""
    logits = model(rows[:, :-1])                                    # B T V
    return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(0)


def forwards_only(x, rot, inverse=False, rotate=attention.rotate):
    """What should be rotated back stays as it is."""
    return x if inverse else rotate(x, rot)


whole = losses(shipped, rows)
with mock.patch.object(attention, "rotate", forwards_only):
    cut = losses(shipped, rows)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print(f"loss, mean over 256 positions: with the line {whole.mean():.2f}, without "
      f"{cut.mean():.2f}")
print(f"added at position 0: {(cut - whole)[0].abs():.5f}; from position 1 on: "
      f"{(cut - whole)[1:].mean():.2f}")
style.show(figures.plot_by_position({"as shipped": whole.tolist(),
                                     "output not turned back": cut.tolist()}),
           "Without the inverse turn the first position is as before, later ones are worse, "
           "all through the text")

# %% jupyter={"outputs_hidden": true}
assert (cut - whole)[0].abs() < 1e-4 and (cut - whole)[1:].mean() > 0.1
style.say("Without the line the model is clearly worse, except at position 0, where nothing "
          "changes at all.")

# %% [markdown]
# That a model suffers without a part that it was trained with is no surprise. The surprise is the shape: **nothing** at position 0, harm behind it. The output carries something that
# depends on *where in the text* it stands. By the end of section 4 you can say what, and why it is there in the first place.
#
# ## 1. The map

# %% jupyter={"source_hidden": true}
style.show(figures.plot_path(), "The path through one attention layer: queries through "
           "two matrices, one key-value vector for all heads, both turned by position; softmax "
           "over window and sink; the weighted sum turned back; two output matrices")

# %% [markdown]
# The symbols of this lesson, and their sizes (report 4.2.1; nano from `minids.Config`):
#
# | here | report | meaning | nano | Flash | Pro |
# | --- | --- | --- | ---: | ---: | ---: |
# | d | $d$ | width of the model | 128 | 4096 | 7168 |
# | H | $n_h$ | query heads | 4 | 64 | 128 |
# | c | $c$ | channels of a head | 32 | 512 | 512 |
# | r | (none) | how many of these turn | 16 | 64 | 64 |
# | `q_lora_rank` | $d_c$ | width of the queries' latent | 64 | 1024 | 1536 |
# | w | $n_{win}$ | window, in tokens | 32 | 128 | 128 |
# | g, rank | $g$, $d_g$ | groups of the output, and the width of each | 2, 64 | 8, 1024 | 16, 1024 |
#
# B is the number of sequences, T of tokens, S of keys; t is a query's position, s a key's. A *latent* is a narrow vector from which wider ones are made.
# New words are in the [glossary](GLOSSARY.md).
#
# ## 2. One vector is key and value
#
# Usual attention makes for each token and each head a *key*, which is compared, and a *value*, which is summed. V4 makes **one** vector of c numbers for each token. All heads use it, as key and as value
# (report 2.3.1, "Shared Key-Value MQA"; MQA, multi-query attention, is the older idea of one key and one value for all heads):
#
# $$\mathrm{score}_{t,h,s} = \frac{q_{t,h} \cdot k_s}{\sqrt{c}} \qquad p = \mathrm{softmax}(\mathrm{score}) \qquad o_{t,h} = \sum_s p_{t,h,s}\; k_s$$
#
# By hand, with c = 2: keys (1, 0) and (0, 2), query (1, 1). The scores are 1 and 2, over $\sqrt 2$: 0.707 and 1.414. Their softmax is 0.330 and 0.670. The output is
# 0.330 (1, 0) + 0.670 (0, 2).

# %%
k, q = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0])
p = (k @ q / 2**0.5).softmax(-1)                                    # S
print("weights", [round(v, 3) for v in p.tolist()], "output",
      [round(v, 3) for v in (p @ k).tolist()])

# %% [markdown]
# **Is that not too little?** 64 heads and one vector. **Predict before you run:** take 4 heads that each have a key matrix $K_h$ and a value matrix $V_h$ of their own, working on a shared vector x of a
# token. Can heads *without* such matrices, which share x itself, give the same result?

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(0)
x = torch.randn(6, 8, generator=rng)  # S c: a shared vector for each of 6 tokens
K, V, q = (torch.randn(4, *shape, generator=rng) for shape in ((8, 8), (8, 8), (8,)))
# H S: each head compares with its own keys
own = torch.einsum("hsi,hi->hs", x @ K, q).softmax(-1)
own = torch.einsum("hs,hsi->hi", own, x @ V)  # H c: and sums its own values
shared = (torch.einsum("hij,hj->hi", K, q) @ x.T).softmax(-1)  # H S: K moved into the query
shared = torch.einsum("hi,hij->hj", shared @ x, V)  # H c: V moved behind the sum
torch.testing.assert_close(own, shared, atol=1e-4, rtol=1e-4)
print("the same: K_h can move into the query matrix, V_h into the output matrix")

# %% [markdown]
# A key matrix can be moved into the query, a value matrix behind the sum. Both places have matrices of their own for each head already: `wq_b` and `wo_a`. So what sharing costs is not the heads'
# independence, it is *width*: all a head can read of a token is in these c numbers. A width of 512, four times the usual 128, is meant to make up for it. (In the channels that turn with the position, section 3, the argument ends: a
# matrix cannot be moved past a turn. Nor past the RMS norm of a query head, which rescales that head's scores for each token.)
#
# What it saves is the *cache*, the vectors of earlier tokens that a model keeps while it writes. For one token in one layer (a number takes two bytes in BF16, one in FP8; lesson 11):
#
# | | numbers | bytes |
# | --- | ---: | ---: |
# | keys and values for 64 heads of 128, in BF16 (MHA) | 2 x 64 x 128 | 32,768 |
# | for 8 groups of heads of 128, in BF16 (GQA8, the report's baseline in 2.3.4) | 2 x 8 x 128 | 4,096 |
# | one latent of 512 and 64 turned channels, FP8 and BF16 (MLA as in V3.2) | 576 | 640 |
# | one vector of 512, of which 64 turn: 448 in FP8, 64 in BF16 (V4) | 512 | 576 |
# | one key and one value of 128, in BF16 (MQA) | 2 x 128 | 512 |

# %%
sizes = {"64 heads of 512, keys and values, BF16": 2 * 64 * 512 * 2,
         "MHA: 64 heads of 128, BF16": 2 * 64 * 128 * 2,
         "GQA8: 8 heads of 128, BF16": 2 * 8 * 128 * 2,
         "MLA (V3.2): 512 FP8, 64 BF16": 512 + 64 * 2,
         "V4: 448 FP8, 64 BF16": 448 + 64 * 2, "MQA: one head of 128, BF16": 2 * 128 * 2}
assert sizes["MLA (V3.2): 512 FP8, 64 BF16"] * 61 == cost.kv_bytes_v32(1)["latents"]
assert sizes["V4: 448 FP8, 64 BF16"] * 43 == cost.kv_bytes(Config.flash(), 1)["window"]
style.show(figures.plot_cache(sizes), "Bytes of cache for one token in one layer: V4 takes a "
           "seventh of GQA8, a little less than MLA, a little more than MQA")

# %% [markdown]
# Sharing alone brings V4 hardly below V3.2. The large saving comes from keeping only the last 128 tokens like this, and compressed entries for all before (lessons 03 to 05).
#
# ## 3. Position: turn a little, at the end
#
# Attention itself does not know order. *Rotary embedding* (RoPE) gives it: cut a vector into pairs of channels and turn each pair by an angle proportional to the position. With $R(\alpha)$ for the turn by $\alpha$, the
# product of two turned vectors depends only on how far apart they are:
#
# $$\langle R(t\theta)\, q,\; R(s\theta)\, k \rangle = \langle R((t - s)\theta)\, q,\; k \rangle$$
#
# By hand: one pair, q = k = (1, 0), 30 degrees a position. Then the product is the cosine of $30 (t - s)$ degrees.
#
# **Predict before you run:** four pairs of positions (t, s): (3, 1), (10, 8), (1000, 998), (3, 0). Which give the same product?

# %% jupyter={"outputs_hidden": true}
for t, s in ((3, 1), (10, 8), (1000, 998), (3, 0)):
    a, b = math.radians(30 * t), math.radians(30 * s)
    product = math.cos(a) * math.cos(b) + math.sin(a) * math.sin(b)
    print(f"query at {t:4}, key at {s:3}: distance {t - s}, product {product:.3f}")

# %% [markdown]
# The first three: distance 2, cos 60 = 0.5. V4 turns (report 2.3.3, "Partial Rotary Positional Embedding")
# - only the **last r** channels of a head; the others carry content that has no place,
# - in **neighbouring** pairs (2i, 2i + 1), not (i, i + r/2) as many other models do,
# - pair j by $\theta_j = \mathrm{base}^{-2j/r}$ radians a position, j = 0 ... r/2 - 1. Layers without compression have base 10,000 (`rope_theta`).

# %% jupyter={"source_hidden": true}
style.show(figures.plot_channels(),
           "Which channels turn together: V4 turns the last 8 of these 12 in neighbouring "
           "pairs; the two usual slips turn the first ones, or pair the halves")

# %% [markdown]
# Both slips turn *something*, lengths stay right, and products still depend on distance only. A model trained with them would most likely be as good. With released weights they are wrong, and nothing crashes.
#
# ### Exercise 1: angles and rotation
# *Easy, 10 minutes.* `hint("attention.rotate")` gives a hint, and another one when called again. The turn of a pair (a, b) by the angle $\alpha$ is $(a \cos\alpha - b \sin\alpha,\; a \sin\alpha + b \cos\alpha)$.

# %%
def rope_frequencies(r, base):
    """Radians per position of each pair: base^(-2j/r), so r/2 numbers."""
    return base ** (-torch.arange(0, r, 2) / r)


def angles(positions, w):
    """The angle of each pair at each position. positions: T, integers; w: r/2, radians per
    position -> T r/2."""
    ### BEGIN SOLUTION
    return positions[:, None].float() * w
    ### END SOLUTION


def rotate(x, theta):
    """Rotate the last r channels of x in neighbouring pairs. x: ... c; theta: ... r/2, which
    broadcasts -> ... c."""
    ### BEGIN SOLUTION
    r = 2 * theta.shape[-1]
    a, b = x[..., -r:].unflatten(-1, (-1, 2)).unbind(-1)            # ... r/2, twice
    cos, sin = theta.cos(), theta.sin()
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)  # ... r/2 2
    return torch.cat([x[..., :-r], rotated.flatten(-2)], -1)
    ### END SOLUTION


# %%
angles = check("attention.angles", angles)
rotate = check("attention.rotate", rotate)

# %%
flash = Config.flash()
w = rope_frequencies(flash.rope_head_dim, flash.rope_theta)  # r/2: the angles at position 1
torch.testing.assert_close(w, rotary.frequencies(flash, ratio=0))
print("equal to minids' frequencies of a window-only layer of Flash")
print("positions for a full turn, fastest to slowest pair:",
      [round(2 * math.pi / v) for v in w[[0, 8, 16, 24, 31]].tolist()])

# %% [markdown]
# The fastest pair goes round in 6 tokens, the slowest in 47,117: together they are hands of a clock. In a window of 128 only the fast hands move visibly.
#
# ### Queries: a latent, and an RMS for each head
#
# $$q_t = \mathrm{turn}\big(\mathrm{RMS}_{\text{each head}}(W_b\, \mathrm{RMS}(W_a x_t))\big) \qquad k_s = \mathrm{turn}\big(\mathrm{RMS}(W_{kv}\, x_s)\big)$$
#
# $W_a$ (`wq_a`, the report's $W^{DQ}$) makes the latent, $W_b$ (`wq_b`, $W^{UQ}$) all heads from it: equations (13) and (18), with the norms of 2.3.3. RMS norm divides a vector by the root of the mean of its squares (lesson 08). The latent's norm (`q_norm`) and the keys' (`kv_norm`) have
# learned weights; **the RMS of the heads has none**. Two matrices instead of one: in Flash 37.7 million numbers a layer instead of 4096 x 32,768 = 134.2 million.
#
# The norms bound the scores. After them |q| is $\sqrt c$, and |k| is $\sqrt c$ too while the weights are 1. So $|q \cdot k| / \sqrt c \le \sqrt c$, which is 22.6 for c = 512: no score can explode, whatever training does to $W_b$. The report gives this as the reason why V4 needs no
# QK-Clip (2.4), a trick that holds large scores down.
#
# We take a layer whose parameters are **lively**: no norm weight 1, no sink 0 (lesson 08 tells why fresh models hide faults).

# %%
def lively(model, seed=0):
    """Give every parameter a value that matters. Returns the model."""
    rng = torch.Generator().manual_seed(seed)
    for name, t in model.state_dict().items():
        noise = torch.randn(t.shape, generator=rng)
        if name.endswith("norm.weight"):
            t.copy_(1 + 0.3 * noise)
        elif name.endswith(("scale", "base", "sink", "ape", "bias")):
            t.copy_(0.7 * noise)
        elif not name.endswith("tid2eid"):
            t.copy_(1.5 * t.shape[-1] ** -0.5 * noise)
    return model


nano = Config.nano()
# one entry for each layer and MTP block
WINDOW_ONLY = nano.replace(compress_ratios=(0,) * len(nano.compress_ratios))
living = lively(minids.Model(WINDOW_ONLY).eval().requires_grad_(False))
attn = living.layers[0].attn
for name, t in attn.named_parameters():
    print(f"{name:15} {' x '.join(map(str, t.shape))}")

# %% [markdown]
# ### Exercise 2: the queries
# *Medium, 10 minutes.* Use `rms` and `rotate`. The modules are `attn.wq_a`, `attn.q_norm`, `attn.wq_b`; the sizes are in `attn.config`.

# %%
def rms(x, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def queries(attn, x, theta):
    """The rotated queries of all heads. x: B T d; theta: T r/2 -> B T H c (H = n_heads, c =
    head_dim)."""
    ### BEGIN SOLUTION
    latent = attn.q_norm(attn.wq_a(x))     # B T q_lora_rank
    q = attn.wq_b(latent).unflatten(-1, (attn.config.n_heads, attn.config.head_dim))   # B T H c
    return rotate(rms(q), theta[:, None])  # the angles as T 1 r/2
    ### END SOLUTION


def keys(attn, x, theta):
    """The rotated vectors that are keys and values. x: B T d; theta: T r/2 -> B T c."""
    return rotate(attn.kv_norm(attn.wkv(x)), theta)


# %%
queries = check("attention.queries", queries)

# %% [markdown]
# **Each head by itself: why?** A sabotage. We make head 0 a hundred times louder, by its rows of `wq_b`. **Predict before you run:** what becomes of the lengths of head 1's queries, with an RMS for each head, and with one RMS over all
# heads?

# %% jupyter={"outputs_hidden": true}
loud = Attention(WINDOW_ONLY, 0).requires_grad_(False)
loud.load_state_dict(attn.state_dict())
loud.wq_b.weight[:32] *= 100                                             # the rows of head 0
x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(1))  # B T d
theta = angles(torch.arange(40), rope_frequencies(16, 10000.0))          # T r/2
for name, layer in (("as it was", attn), ("head 0 louder", loud)):
    raw = layer.wq_b(layer.q_norm(layer.wq_a(x)))                        # B T Hc
    together = rms(raw).unflatten(-1, (4, 32))
    print(f"{name:14} length of head 1's query: RMS of each "
          f"head {queries(layer, x, theta)[:, :, 1].norm(dim=-1).mean():.2f}, of all heads "
          f"{together[:, :, 1].norm(dim=-1).mean():.2f}")

# %% [markdown]
# With an RMS for each head the length is $\sqrt{32} = 5.66$, always. With one RMS for all, a loud head silences the others: their scores shrink towards 0 and their attention towards an average.
#
# ## 4. Why the output is turned back
#
# Keys must be turned. But the key *is* the value, so what is summed is turned as well. Take a head that finds its token and gives it all its weight:
#
# $$o_t = k_s = R(s\theta)\, v \qquad\text{turned back:}\qquad R(-t\theta)\, o_t = R(-(t - s)\theta)\, v$$
#
# Without the last step the output tells the *absolute* position s. With it, the *distance* t - s. (Report 2.3.3: the naive output "will carry absolute position embeddings".) By hand: v = (1, 0), 30 degrees a position, and the key always two tokens back.

# %%
times = [2, 3, 5, 8, 11, 14]
before = angles(torch.tensor([t - 2 for t in times]), torch.tensor([math.radians(30)]))[:, 0]
v = torch.tensor([[1.0, 0.0]]).repeat(6, 1)                                     # T 2
o = rotate(v, before[:, None])  # the output as it comes
# turned back by the query's position
back = rotate(o, -torch.tensor(times)[:, None] * math.radians(30))
after = torch.atan2(back[:, 1], back[:, 0])
print("as it comes:", [round(math.degrees(b)) % 360 for b in before], "degrees")
print("turned back:", [round(math.degrees(b)) for b in after], "degrees")
style.show(figures.plot_compass_needles(before.tolist(), after.tolist(), times),
           "Needles of one pair of channels for queries at six positions: as they come they "
           "point everywhere, turned back they all point the same way, two positions behind")

# %% [markdown]
# The needle of the second row says "two tokens ago", wherever the text stands. In usual attention values are not turned at all, so nothing needs turning back, and nothing is said about distance. V4's countermeasure
# (the report's word) brings a gift: **the output knows how far away it looked.**
#
# ### Does that matter? An experiment
#
# A task for one single attention: 16 tokens, one of them a marker, all others noise. The query is at the last token. *How far back is the marker?* We train three versions at positions 0 to 15, then test
# them on the same kind of texts, **shifted** to other positions.
#
# **Predict before you run:** which version learns it? Which survives the shift?
# 1. turned back (V4), 2. not turned back, 3. values not turned (usual attention).

# %%
class Reader(nn.Module):
    """One attention with shared keys and values, whose last token says how far back the
    marker is."""

    def __init__(self, kind, d=32, H=2, c=16, T=16):
        super().__init__()
        self.kind, self.H = kind, H
        self.embed, self.out = nn.Embedding(12, d), nn.Linear(H * c, T)
        self.wq, self.wkv = nn.Linear(d, H * c, bias=False), nn.Linear(d, c, bias=False)

    def forward(self, ids, start):
        x = rms(self.embed(ids))                                                   # B T d
        # T r/2
        theta = angles(torch.arange(start, start + ids.shape[1]), rope_frequencies(8, 100.0))
        q = rotate(rms(self.wq(x[:, -1]).unflatten(-1, (self.H, -1))), theta[-1])  # B H c
        still = rms(self.wkv(x))                                                   # B T c
        k = rotate(still, theta)
        p = (q @ k.mT / k.shape[-1] ** 0.5).softmax(-1)                            # B H T
        o = p @ (still if self.kind == "values not turned" else k)                 # B H c
        o = rotate(o, -theta[-1]) if self.kind == "turned back" else o
        return self.out(o.flatten(1))


# %%
def texts(n, rng, T=16):
    """n texts of noise (ids 1 to 11) with one marker (0), and its distance from the end."""
    ids = torch.randint(1, 12, (n, T), generator=rng)
    far = torch.randint(0, T, (n,), generator=rng)
    ids[torch.arange(n), T - 1 - far] = 0
    return ids, far

# %%
def experiment(kind, seed, shifts, steps=150):
    """Train at positions 0 to 15; returns the share of right answers at each shift."""
    torch.manual_seed(seed)
    reader, rng = Reader(kind), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=0.01)
    for _ in range(steps):
        ids, far = texts(64, rng)
        loss = F.cross_entropy(reader(ids, 0), far)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ids, far = texts(1000, rng)
    with torch.no_grad():
        return [(reader(ids, shift).argmax(-1) == far).float().mean().item()
                for shift in shifts]


SHIFTS = [0, 1, 2, 5, 40, 1000]
KINDS = ("turned back", "not turned back", "values not turned")
results = {kind: [experiment(kind, seed, SHIFTS) for seed in range(3)] for kind in KINDS}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(figures.plot_distance(results, SHIFTS, 1 / 16),
           "Share of right answers by shift, three seeds each: turned back is right "
           "everywhere; not turned back is right where it was trained and fails after a small "
           "shift; values not turned is the same at all shifts, but learns more slowly")

# %% jupyter={"outputs_hidden": true}
lowest = {kind: [min(run[i] for run in runs) for i in range(6)]
          for kind, runs in results.items()}
highest = {kind: [max(run[i] for run in runs) for i in range(6)]
           for kind, runs in results.items()}
assert min(lowest["turned back"]) > 0.95
assert lowest["not turned back"][0] > 0.95 and max(highest["not turned back"][3:]) < 0.5
assert (max(abs(run[0] - run[i]) for run in results["values not turned"] for i in range(6))
        < 0.02)
print("turned back:       above 95 % at all shifts, all three seeds")
print("not turned back:   above 95 % where it was trained, below 50 % from a shift of 5 on")
print("values not turned: the same at every shift, within 2 points")

# %% [markdown]
# - **Not turned back**: it learned "the marker is at position 11", which is right only where it was trained. Shifted by 5, it is no better than guessing.
# - **Values not turned** is the negative control: no position in the values, so no harm from shifts. It learns the distance too, presumably by a detour, in how *strongly* it attends. After the same 150 steps it is behind.
# - **Turned back** reads the distance from the needle.
#
# *Limits:* one layer, one task, made to need distances. A model whose training covers all positions could learn to ignore the turned channels. What holds at every scale is the equation: with the inverse turn the output of
# a window-only layer cannot depend on absolute position.
#
# ## 5. The window
#
# A query at t sees the keys s = t - w + 1, ..., t: itself and the w - 1 tokens before it. Report 2.3.3 calls this the additional branch of sliding window attention; in layers with compression it runs beside the compressed entries, for
# recent details; in Flash's first two layers it is all there is.
#
# ### Exercise 3: the window
# *Easy, 5 minutes.*

# %%
def sees(T, w):
    """Which keys a query sees: bool, T T; row t is the query, column s the key."""
    ### BEGIN SOLUTION
    t, s = torch.arange(T)[:, None], torch.arange(T)
    return (s <= t) & (s > t - w)
    ### END SOLUTION


# %%
sees = check("attention.window", sees)
for line in sees(6, 3):
    print("".join("#" if seen else "." for seen in line))

# %% [markdown]
# ### How far does a stack of windows reach?
#
# The key at t - w + 1 has itself looked w - 1 tokens back, one layer below. So L layers reach $L (w - 1)$ tokens back. This is a bound; is it attained? We ask by **perturbation**: change one input, see which outputs
# move.
#
# **Predict before you run:** w = 8. How far back does a stack of 4 layers reach? Does it reach evenly?

# %%
def influence(layers, window, T=40):
    """How much each output (row) moves when one input (column) changes, through a stack with
    residuals: T T."""
    stack = [lively(Attention(WINDOW_ONLY.replace(window_size=window), 0).requires_grad_(False),
                    seed) for seed in range(layers)]
    plain = torch.randn(1, T, 128, generator=torch.Generator().manual_seed(2))  # 1 T d
    changed = plain + 0.5 * torch.eye(T)[:, :, None]  # T T d: in row s, token s is changed
    x = torch.cat([changed, plain])  # T+1 T d
    for layer in stack:
        x = x + layer(rms(x))
    return (x[:-1] - x[-1]).norm(dim=-1).T  # output, changed input

# %% jupyter={"outputs_hidden": true}
maps = {layers: influence(layers, 8) for layers in (1, 2, 4)}
for layers, moved in maps.items():
    t, s = (moved > 1e-4).nonzero().T
    assert (t >= s).all() and (t - s).max() == layers * 7
    print(f"{layers} layers: reach {(t - s).max()} tokens back, none forward")
style.show(figures.plot_reach(maps, 8), "Perturbation maps: the outputs that move reach back 7 "
           "tokens for one layer, 14 for two, 28 for four, and fade towards the edge")

# %% [markdown]
# The bound is attained, and the map is causal: nothing above the diagonal. But the far edge is faint: a token 28 back is reached by one path through 4 layers, a near one by many.
#
# **Play.** Which is the shortest stack that reaches 39 tokens back with w = 8? With w = 14? And how does a wide window differ from a deep stack of the same reach?

# %%
def draw(window, layers):
    return figures.plot_reach({layers: influence(layers, window)}, window)


box = style.slider_image(draw, "How much each output moves when one input changes",
                         window=[2, 4, 8, 14, 40], layers=[1, 2, 3, 4, 5, 6],
                         start={"window": 8})
box

# %%
box.peek(window=14, layers=3)
for window, layers in ((8, 6), (14, 3), (40, 1)):
    edge = influence(layers, window)[39, 0]
    print(f"w = {window:2}, {layers} layers: reach {min(layers * (window - 1), 39)} back, the "
          f"edge moves: {bool(edge > 1e-6)}")

# %% [markdown]
# With w = 8 it takes 6 layers, since 5 reach 35 back; with w = 14 it takes 3. A wide window is bright all the way to its edge; a deep stack fades. (The static figure above shows the same for w = 8.)
#
# Now the real model. **By hand:** if all 43 layers of Flash saw a window of 128 only, the reach would be 43 x 127 = 5,461 tokens, half a percent of a million, and the far edge much
# fainter than above. Windows alone do not reach: hence the compressed entries of lessons 03 and 04.
#
# ## 6. The sink
#
# Softmax weights sum to 1. A head *must* attend, even if nothing in the window concerns it. V4 gives each head a learned number $z'_h$, the **sink**, that joins the denominator (report 2.3.3, equation 27):
#
# $$p_{t,h,s} = \frac{\exp(\mathrm{score}_{t,h,s})}{\sum_{s'} \exp(\mathrm{score}_{t,h,s'}) + \exp(z'_h)}$$
#
# By hand: scores 0 and 0, sink 0: all three exponentials are 1, so the weights are 1/3 and 1/3, sum 2/3. **Predict before you run:** eight tokens that do not fit, score -3 each, and sink 3. What is the sum of the weights? And if one token fits
# with score 8?
#
# ### Exercise 4: softmax with a sink
# *Medium, 10 minutes.* Large scores must not overflow.

# %%
def sink_weights(scores, sink):
    """The weights. scores: B T H S (-inf where a query does not see), sink: H -> B T H S.

    A query that sees no key at all has weights of 0.
    """
    ### BEGIN SOLUTION
    column = sink[:, None].expand(*scores.shape[:-1], 1)            # B T H 1
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    ### END SOLUTION


# %% jupyter={"outputs_hidden": true}
sink_weights = check("attention.sink", sink_weights)
nothing, something = torch.full((1, 1, 1, 8), -3.0), torch.full((1, 1, 1, 8), -3.0)
something[..., 5] = 8.0
for name, scores in (("nothing fits", nothing), ("one token fits", something)):
    print(f"{name:15} sum "
          f"of weights: sink 3 {sink_weights(scores, torch.tensor([3.0])).sum():.3f}, no sink "
          f"{scores.softmax(-1).sum():.3f}")

# %% [markdown]
# With the sink a head that finds nothing gives 0.02 of an average; without, it gives a whole average of eight tokens that do not concern it. When something fits, the sink hardly shows. In other words: **the sink is how well a token
# must fit before the head speaks.**
#
# Two facts, each an equality. A sink is the same as one more key whose score is given and whose value is zero. And softmax ignores a number that is added to all scores, but the sink gives the scores a zero point:

# %%
# B T H S; S c
scores, v = torch.randn(1, 2, 3, 5, generator=rng), torch.randn(5, 4, generator=rng)
sink = torch.tensor([0.5, -1.0, 2.0])
more = (torch.cat([scores, sink[:, None].expand(1, 2, 3, 1)], -1).softmax(-1)
        @ torch.cat([v, torch.zeros(1, 4)]))
torch.testing.assert_close(sink_weights(scores, sink) @ v, more)
# the control
torch.testing.assert_close(sink_weights(scores + 3, sink + 3), sink_weights(scores, sink))
moved = sink_weights(scores + 3, sink).sum(-1) - sink_weights(scores, sink).sum(-1)
style.say("3 added to scores and sinks: nothing changes; to scores alone: the sums of weights "
          f"rise by {moved.min():.2f} to {moved.max():.2f}")

# %% [markdown]
# Models without sinks make one of their own: they park attention on the first token of the text, whatever it is (Xiao et al., arXiv 2309.17453). In a window that first token is soon out of sight; a learned sink stays.
#
# ### What a trained model does with its sinks
#
# We look into the shipped nano model: how much of its attention does each head spend on tokens and entries at all? What happens to the loss when one head's sink is removed, and when all sinks move up or down together?
#
# **Predict before you run:** raise all sinks by 4, or lower them all by 4. Which of the two raises the loss, and which more?

# %% jupyter={"source_hidden": true}
def spent(model, ids):
    """The mean sum of the weights of each head, one list for each layer: a channel of ones
    rides along as a value."""
    seen = []  # filled layer by layer

    def attend(q, kv, mask, entries, *others, attend=attention.attend_blocks):
        # attend scales by the wider c
        wide = F.pad(q, (0, 1)) * ((q.shape[-1] + 1) / q.shape[-1]) ** 0.5
        kv, entries = (t if t is None else F.pad(t, (0, 1), value=1.0) for t in (kv, entries))
        o, p = attend(wide, kv, mask, entries, *others)
        seen.append(o[..., -1].mean((0, 1)).tolist())
        return o[..., :-1].contiguous(), p

    with mock.patch.object(attention, "attend_blocks", attend):
        logits = model(ids)
    # the passenger changes nothing
    torch.testing.assert_close(logits, model(ids), atol=1e-3, rtol=1e-3)
    return seen


def with_sinks(model, rows, change):
    """The loss when change(layer, sinks) gives the sinks. The model is left as it was."""
    kept = [block.attn.attn_sink.clone() for block in model.layers]
    for i, block in enumerate(model.layers):
        block.attn.attn_sink.copy_(change(i, kept[i]))
    loss = losses(model, rows).mean().item()
    for block, sinks in zip(model.layers, kept):
        block.attn.attn_sink.copy_(sinks)
    return loss


def removed(layer, head):
    """A change that takes one head's sink away."""
    gone = torch.zeros(shipped.config.n_heads)
    gone[head] = -1e9
    return lambda i, sinks: sinks + gone if i == layer else sinks

# %%
some = rows[:8, :161]                                                           # B T+1
as_it_is = with_sinks(shipped, some, lambda i, sinks: sinks)
mass = spent(shipped, some[:, :-1])
heads, depth = range(shipped.config.n_heads), range(shipped.config.n_layers)
price = [[with_sinks(shipped, some, removed(i, h)) - as_it_is for h in heads] for i in depth]
steps = {"none": -1e9, **{step: step for step in (-4, -2, -1, 0, 1, 2, 4)}}
moved = {name: with_sinks(shipped, some, lambda i, sinks, step=step: sinks + step)
         for name, step in steps.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print(f"loss {as_it_is:.2f}, without any sink {moved['none']:.2f}")
print("sinks of layer 0:", [round(v, 1) for v in shipped.layers[0].attn.attn_sink.tolist()])
style.show(figures.plot_sinks(mass, price, moved), "Left: sum of the weights of each head, "
           "some well below 1. Middle: the loss that the removal of one head's sink adds. "
           "Right: the loss with all sinks moved, lowest about where they are")

# %% jupyter={"outputs_hidden": true}
assert min(min(line) for line in mass) < 0.9 and moved["none"] > as_it_is
assert moved[4] > moved[-4] > as_it_is
style.say("Some heads spend less than 90 % of their attention on tokens. Moved by 4 either "
          "way, or removed, the sinks raise the loss.")

# %% [markdown]
# The trained sinks are about where they should be: far off on both sides it goes uphill (the control). Up is steeper: heads fall silent. Compare the left panel with the middle one: a head whose weights sum to nearly 1 has no use for its
# sink and does not miss it (most of the differences in the middle are below 0.003 nats on 8 texts, and section 9 would not count them). Among the others, how silent a head is need not say what the removal costs.
#
# **What this does not show.** Taking a part from a *trained* model shows what that model relies on. A model trained without sinks would arrange itself in another way, and at this size it might end as well. The report claims no
# number for sinks; it says that they let a head's "total attention scores" be "not equal to 1, and even to be near 0" (2.3.3). Not equal to 1 we have seen; near 0 only with scores made by hand.
#
# ## 7. The output, in groups
#
# After the sum there are H c numbers for each token: 32,768 in Flash, eight times the model's width. One plain matrix back to d = 4096 would be the largest of the layer. V4 cuts the heads into g groups; each group goes through a matrix
# of its own to `o_lora_rank` numbers; these, side by side, go through `wo_b` (report 2.3.1, "Grouped Output Projection"):
#
# $$u_i = W^a_i\, [o_{\text{heads of group } i}] \qquad y = W^b\, [u_1; \dots; u_g]$$
#
# By hand for Flash: a group has 32,768 / 8 = 4096 channels. $W^a$: 8 x 1024 x 4096 = 33.6 million numbers, $W^b$: 4096 x 8192 = 33.6 million. Plain: 4096 x 32,768 = 134.2 million. Half. **Predict before you run**, for Pro (d = 7168, H = 128, g = 16): more
# or less saved?
#
# ### Exercise 5: the grouped output
# *Medium, 10 minutes.* `wo_a` holds the g blocks one below the other.

# %%
def grouped_output(o, wo_a, wo_b, groups):
    """o: B T H c; wo_a: g rank x Hc/g; wo_b: d x g rank -> B T d. Group 0 has the first H/g
    heads."""
    ### BEGIN SOLUTION
    o = o.flatten(2).unflatten(-1, (groups, -1))                    # B T g Hc/g
    blocks = wo_a.unflatten(0, (groups, -1))                        # g rank Hc/g
    u = torch.einsum("btgi,gri->btgr", o, blocks)                   # B T g rank
    return u.flatten(2) @ wo_b.T                                    # B T d
    ### END SOLUTION


# %%
grouped_output = check("attention.output", grouped_output)
# g rank x Hc: zeros beside the blocks
full = torch.block_diag(*attn.wo_a.weight.unflatten(0, (2, -1)))
o = torch.randn(2, 5, 4, 32, generator=rng)  # B T H c
same = o.flatten(2) @ full.T @ attn.wo_b.weight.T
torch.testing.assert_close(grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, 2), same,
                           atol=1e-4, rtol=1e-4)
print("equal to two plain matrices, the first of which is zero outside its blocks")

# %% jupyter={"outputs_hidden": true}
def output_parameters(c):
    """Numbers in a plain output matrix, and in wo_a and wo_b, of one layer."""
    ranks = c.o_groups * c.o_lora_rank
    return (c.dim * c.n_heads * c.head_dim,
            ranks * c.n_heads * c.head_dim // c.o_groups + c.dim * ranks)


savings = {name: output_parameters(config)
           for name, config in (("Flash", Config.flash()), ("Pro", Config.pro()))}
for (name, (plain, grouped)), layers in zip(savings.items(), (43, 61)):
    print(f"{name:6} plain {plain:12,}, grouped {grouped:12,}: {grouped / plain:.0%}; "
          f"{2 * layers * (plain - grouped) / 1e9:.1f} GFLOP saved for each token in {layers} "
          "layers")
style.show(figures.plot_groups(full, 2, savings),
           "Left: wo_a as one matrix, two blocks on the diagonal. Right: the grouped "
           "projection has half of the plain one's parameters in Flash, 39 percent in Pro")

# %% [markdown]
# (A multiply-add counts as two operations.) What is given up: a group's 4096 numbers pass through 1024, so no more than 1024 directions of them reach the layer's output; and only heads of one group can be weighed against each other before that.
#
# ## 8. The whole layer
#
# ### Exercise 6: put it together
# *Medium, 15 minutes.* You have all parts: `angles`, `queries`, `keys`, `sees`, `sink_weights`, `rotate`, `grouped_output`. The frequencies are `frequencies(attn.config, attn.ratio)`, which exercise 8 is about; the window is `attn.config.window_size`, the sinks `attn.attn_sink`.

# %%
def window_attention(attn, x):
    """The layer's output. x: B T d -> B T d."""
    ### BEGIN SOLUTION
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))                  # T r/2
    q, kv = queries(attn, x, theta), keys(attn, x, theta)  # B T H c; B T c
    scores = torch.einsum("bthc,bsc->bths", q, kv) / config.head_dim ** 0.5  # B T H T
    scores = scores.masked_fill(~sees(T, config.window_size)[:, None], -math.inf)
    # B T H c: keys are values
    o = torch.einsum("bths,bsc->bthc", sink_weights(scores, attn.attn_sink), kv)
    o = rotate(o, -theta[:, None])  # back by the query's position
    return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)  # B T d
    ### END SOLUTION


# %%
window_attention = check("attention.layer", window_attention)
x = torch.randn(2, 80, 128, generator=torch.Generator().manual_seed(1))  # B T d
for i, block in enumerate(living.layers):
    torch.testing.assert_close(window_attention(block.attn, x), block.attn(x), atol=1e-4,
                               rtol=1e-4)
torch.testing.assert_close(window_attention(shipped.layers[0].attn, x),
                           shipped.layers[0].attn(x), atol=1e-4, rtol=1e-4)
print("equal to minids' Attention in four lively layers, and in layer 0 of the trained nano "
      "model")

# %% [markdown]
# **The independent judge.** You and `minids` could share a misunderstanding. `transformers` has an implementation of its own. We put *your* attention into a whole window-only model, save its weights, let `transformers`
# open them, and compare every logit.

# %%
def judged(model, ids):
    """transformers' logits for the checkpoint that minids saves; None where it is not
    installed."""
    if find_spec("transformers") is None:
        return None
    from transformers import DeepseekV4ForCausalLM
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        minids.save(model, Path(folder) / "checkpoint", format="fp32")
        theirs = DeepseekV4ForCausalLM.from_pretrained(Path(folder) / "checkpoint").eval()
    with torch.no_grad():
        return theirs(ids, use_cache=False).logits

# %%
ids = torch.randint(0, 1000, (2, 80), generator=torch.Generator().manual_seed(3))  # B T
with mock.patch.object(Attention, "forward",
                       lambda self, x, *others: window_attention(self, x)):
    mine = living(ids)
theirs = judged(living, ids)
if theirs is None:
    print("transformers is not installed here: pip install transformers, then run this cell "
          "again")
else:
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    print("a model with your attention equals transformers' DeepseekV4ForCausalLM, every logit")

# %% [markdown]
# ## 9. Break it: which test sees which fault?
#
# `FAULTS` holds fourteen wrong versions of the layer; each makes one of the usual mistakes. Four tests that people use:
# - **fresh, short**: a layer as initialised, 20 tokens, compared with a right one,
# - **lively, long**: lively weights, 80 tokens, compared with a right one,
# - **shift**: the same 80 tokens at position 0 and at 1000. Needs no reference at all!
# - **trained**: the fault in layer 0 of the shipped nano model; the change of its loss.
#
# A difference counts as seen above 0.0001, for the shift above 0.001 (float32 angles of a thousand radians are rounded), for the loss above 0.003 nats.
#
# **Predict before you run:** which faults does a fresh, short test miss? Which does the shift find?

# %%
torch.manual_seed(0)
fresh = Attention(WINDOW_ONLY, 0).requires_grad_(False)  # norm weights 1, sinks 0


def off(layer, attn, x):
    """Relative difference from the right layer."""
    return ((layer(attn, x) - attn(x)).norm() / attn(x).norm()).item()


def shifted(layer, attn, x):
    """The layer's output for x when it comes after 1,000 other tokens. B T d -> B T d."""
    others = torch.randn(len(x), 1000, x.shape[-1], generator=torch.Generator().manual_seed(4))
    return layer(attn, torch.cat([others, x], 1))[:, 1000:]


def tested(layer):
    # windows within x
    here, there = (y[:, attn.config.window_size + 1:]
                   for y in (layer(attn, x), shifted(layer, attn, x)))
    shift = ((there - here).norm() / here.norm()).item()
    first = shipped.layers[0].attn
    with mock.patch.object(first, "forward", lambda x, *others: layer(first, x)):
        loss = losses(shipped, some).mean().item()
    return [off(layer, fresh, x[:, :20]), off(layer, attn, x), shift, loss - as_it_is]


table = {"none (control)": tested(window_attention),
         **{name: tested(layer) for name, layer in FAULTS.items()}}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true, "source_hidden": true}
names = ["fresh, short\n(relative)", "lively, long\n(relative)", "shift by 1000\n(relative)",
         "trained, layer 0\n(added loss)"]
style.show(figures.plot_faults(list(table), names, list(table.values()),
                               [1e-4, 1e-4, 1e-3, 0.003]),
           "Faults in rows, tests in columns: lively and long sees all; the fresh and short "
           "test misses windows off by one and the fixed sink; the shift finds the two faults "
           "of the inverse turn and no other")

# %% jupyter={"outputs_hidden": true}
seen = {name: [line[0] > 1e-4, line[1] > 1e-4, line[2] > 1e-3] for name, line in table.items()}
assert seen.pop("none (control)") == [False] * 3 and abs(table["none (control)"][3]) < 1e-4
assert all(line[1] for line in seen.values())
print("missed by fresh, short: ", *[name for name, line in seen.items() if not line[0]],
      sep="\n    ")
print("found by the shift: ", *[name for name, line in seen.items() if line[2]], sep="\n    ")

# %% [markdown]
# - A **window off by one** cannot show in a text shorter than the window. A **sink fixed at 0** cannot show while sinks are 0.
# - The shift needs no reference. It finds exactly the faults that let absolute position out, and is blind to all others: wrong, but wrong in the same way everywhere.
# - The last column says what a fault *costs* a trained model in one of its layers. Some faults cost next to nothing there, and are faults all the same. Never judge an implementation by "the loss looks fine".
#
# ### Exercise 7: find the faults
# *Hard, 15 minutes.* A colleague's layer passes the fresh, short test. With lively weights and a long text it fails. There are **two** faults. Find them by experiment or by reading, then write the repaired version, and name both faults as the table of
# section 9 does.

# %%
def colleagues_attention(attn, x):
    """Two faults."""
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))
    q, kv = queries(attn, x, theta), keys(attn, x, theta)
    scores = torch.einsum("bthc,bsc->bths", q, kv) / config.head_dim ** 0.5
    distance = torch.arange(T)[:, None] - torch.arange(T)
    scores = scores.masked_fill(((distance < 0) | (distance > config.window_size))[:, None],
                                -math.inf)
    top = scores.amax(-1, keepdim=True)
    e = (scores - top).exp()
    o = torch.einsum("bths,bsc->bthc", e / (e.sum(-1, keepdim=True) + (-top).exp()), kv)
    return grouped_output(rotate(o, -theta[:, None]), attn.wo_a.weight, attn.wo_b.weight,
                          config.o_groups)


print("fresh, short: differs", off(colleagues_attention, fresh, x[:, :20]) > 1e-4)
print("lively, long: differs", off(colleagues_attention, attn, x) > 1e-4)


# %%
def repaired_attention(attn, x):
    """Your repaired version. x: B T d -> (its output, B T d; the names of the two faults,
    from the table)."""
    ### BEGIN SOLUTION
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio))
    q, kv = queries(attn, x, theta), keys(attn, x, theta)
    scores = torch.einsum("bthc,bsc->bths", q, kv) / config.head_dim ** 0.5
    distance = torch.arange(T)[:, None] - torch.arange(T)
    # w keys in all
    scores = scores.masked_fill(((distance < 0) | (distance >= config.window_size))[:, None],
                                -math.inf)
    top = scores.amax(-1, keepdim=True)
    e = (scores - top).exp()
    # each head's own sink
    total = e.sum(-1, keepdim=True) + (attn.attn_sink[:, None] - top).exp()
    o = torch.einsum("bths,bsc->bthc", e / total, kv)
    output = grouped_output(rotate(o, -theta[:, None]), attn.wo_a.weight, attn.wo_b.weight,
                            config.o_groups)
    return output, ("window one too wide", "sink fixed at 0")
    ### END SOLUTION


# %%
# counts your names, right and wrong ones, once the output is right
diagnosis = check("attention.debug", diagnosed(repaired_attention))

# %% [markdown]
# ## 10. The other base: layers with compression
#
# Layers with compression turn everything in them with another base, 160,000 (`compress_rope_theta`), and stretch the slow pairs with **YaRN** (Peng et al., arXiv 2309.00071): after training at 65,536 tokens the model is extended to
# 1,048,576, 16 times as many. Pairs that go round often in 65,536 positions know all their angles; those that do not even complete one turn would meet new angles, so they are slowed down by 16.
# With $\theta_j$ the plain frequencies of section 3 and length = 65,536:
#
# $$\mathrm{at}(b) = \frac{r \ln(\mathrm{length} / 2\pi b)}{2 \ln \mathrm{base}} \qquad \mathrm{low} = \max(\lfloor \mathrm{at}(32) \rfloor, 0) \qquad \mathrm{high} = \min(\lceil \mathrm{at}(1) \rceil, r - 1)$$
#
# $$\mathrm{ramp}_j = \mathrm{clamp}\left(\frac{j - \mathrm{low}}{\mathrm{high} - \mathrm{low}}, 0, 1\right) \qquad \theta'_j = \frac{\theta_j}{16}\, \mathrm{ramp}_j + \theta_j\, (1 - \mathrm{ramp}_j)$$
#
# at(b) is the pair that turns b times within the length: 32 times or more (`config.beta_fast`), keep; once or less (`config.beta_slow`), stretch; between, in part. By hand for V4: at(32) = 15.5 and at(1) = 24.7, so low = 15, high = 25.
# (The report does not write this out; it is in the released configuration and reference code. YaRN also proposes to scale the scores; V4 does not.)
#
# ### Exercise 8: stretched frequencies
# *Hard, 15 minutes.* For any layer: `base, length = config.rope(ratio)` gives the base and the length of a layer with this compression ratio. A length of 0 means that nothing is stretched. The factor is `config.rope_factor`.

# %%
def frequencies(config, ratio):
    """Radians per position of each pair in a layer with this compression ratio: r/2. Ratio
    0: no compression."""
    ### BEGIN SOLUTION
    r = config.rope_head_dim
    base, length = config.rope(ratio)
    w = base ** (-torch.arange(0, r, 2) / r)                                    # r/2
    if length == 0:
        return w

    def at(rotations):
        return r * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(base))

    low = max(math.floor(at(config.beta_fast)), 0)
    high = min(math.ceil(at(config.beta_slow)), r - 1)
    ramp = ((torch.arange(r // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    return w / config.rope_factor * ramp + w * (1 - ramp)
    ### END SOLUTION


# %%
frequencies = check("attention.yarn", frequencies)
stretched = frequencies(flash, 4)
torch.testing.assert_close(stretched, rotary.frequencies(flash, ratio=4))
style.say("equal to minids' frequencies of Flash's layers with compression; slowest pair: one "
          f"turn in {2 * math.pi / stretched[-1] / 1e6:.2f} million positions")
lines = {"base 10,000: window-only layers": rope_frequencies(64, 10000.0),
         "base 160,000": rope_frequencies(64, 160000.0),
         "base 160,000 with YaRN: layers with compression": stretched}
style.show(figures.plot_periods(lines,
                                {"window, 128": 128, "65,536": 65536, "1,048,576": 1048576}),
           "Positions for a full turn, pair by pair: fast pairs alike, slow ones slower with "
           "the larger base, and 16 times slower from pair 25 on with YaRN")

# %% [markdown]
# A window of 128 needs no slow hands, so window-only layers keep base 10,000 and no YaRN. One base for all layers is a usual slip; the figure of section 9 has it as "the other base".
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | heads, channels of a head, of which turn | 64, 512, 64 | 128, 512, 64 | report 4.2.1, 2.3.3 |
# | layers that see a window only | the first 2 of 43 | none of 61 | 4.2.1 |
# | window | 128 | 128 | 4.2.1 |
# | queries: latent | 1024 | 1536 | 4.2.1 |
# | output: groups, rank | 8, 1024 | 16, 1024 | 4.2.1 |
# | output parameters of a layer, share of a plain matrix | 67.1 million, 50 % | 184.5 million, 39 % | section 7 |
# | window keys in the cache, all layers | 3.17 MB | 4.50 MB | `minids.cost.kv_bytes` |
#
# The MTP block of both models also sees a window only. In all other layers everything of this lesson holds as well, with more keys: compressed entries stand in the same softmax as the window's keys, over the same sink.
#
# **The report claims** that the norms on queries and keys avoid exploding scores (2.3.3, 2.4), that the inverse turn makes the output carry relative positions (2.3.3), and that V4's cache at a million tokens is about 2 % of a GQA8
# baseline's (2.3.4; lesson 05 counts the cache). **Here we have shown** the second as an equation and in a trained toy, and what a small trained model does with its sinks. **At this scale we cannot show** that shared keys and values cost no quality, nor that sinks
# make V4 better: that takes training at size.
#
# ## Key points
# - One vector of c numbers for each token is key and value for all heads. Each head's own key and value matrices live in the query and output matrices.
# - Only the last r channels turn, in neighbouring pairs. Because the key is the value, the output is turned back by the query's position: then it tells distances, not places.
# - An RMS for each head, without a weight, bounds the scores. A head cannot silence the others.
# - The sink joins the denominator, as one more key with a zero value. It sets how well a token must fit before a head speaks.
# - L layers of windows reach L (w - 1) tokens back, faintly. It takes compressed entries to see a million.
# - Test with lively weights, a text longer than the window, and a shift. The shift needs no reference.
#
# ## Questions to discuss
#
# <details><summary>1. Does it matter whether the RMS of a head comes before or after the turn?</summary>
#
# No. A turn keeps lengths, so the mean square is the same before and after, and there is no weight that would hit other channels. With a weight it would matter: that is one reason why the order for `kv` is fixed (norm with weight, then turn). *"Yes, since
# operations do not commute"* is the reflex, but these two do.
# </details>
#
# <details><summary>2. Why was the loss at position 0 unchanged in the first cell?</summary>
#
# All angles at position 0 are 0, so turning back does nothing, in every layer; and a query at position 0 sees only itself. *"Because the window is empty there"* is nearly right and not the reason: the query sees one key, itself, and a wrong turn of it would show if its angle were not 0.
# </details>
#
# <details><summary>3. Usual attention turns keys and leaves values alone. Why does V4 not do the same and skip the inverse turn?</summary>
#
# It would need both versions of each vector in the cache (or turn all keys anew at every step): the one that is turned, for scores, and the one that is not, for sums. Only r = 64 of 512 channels differ, so it would be 64 numbers more, much as MLA keeps 64 turned numbers apart.
# V4 turns the output once instead, which costs nothing that grows with the context. *"Because the model needs absolute positions"* is wrong: the inverse turn removes them.
# </details>
#
# <details><summary>4. A head's sink is -20. What does the head do? And at +20?</summary>
#
# At -20 its weights sum to 1 in practice: a head of usual attention. At +20 it is silent unless a score comes near 20; the bound is sqrt(512) = 22.6 with norm weights of 1, so in Flash such a head could speak for a nearly perfect match only; in nano (sqrt(32) = 5.7) never.
# *"It attends to the first token"* confuses the learned sink with the habit of models that have none.
# </details>
#
# <details><summary>5. A colleague widens the window from 128 to 256 in a released model, "more context cannot hurt". What happens?</summary>
#
# Nothing crashes. Queries see keys at distances that no training has shown them; twice as many keys stand in each denominator, so the sink weighs relatively less. Expect some harm, measure it. *"Nothing, softmax ignores what does not fit"* assumes that unseen distances get low scores; nobody trained them to.
# </details>
#
# ## Links
# - Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, [arXiv 2104.09864](https://arxiv.org/abs/2104.09864); Peng et al., YaRN, [arXiv 2309.00071](https://arxiv.org/abs/2309.00071)
# - Shazeer, Fast Transformer Decoding: One Write-Head is All You Need, [arXiv 1911.02150](https://arxiv.org/abs/1911.02150): MQA; Ainslie et al., GQA, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245)
# - Xiao et al., Efficient Streaming Language Models with Attention Sinks, [arXiv 2309.17453](https://arxiv.org/abs/2309.17453)
# - DeepSeek-V2, [arXiv 2405.04434](https://arxiv.org/abs/2405.04434): MLA, and why matrices can be absorbed
# - In this repository: `minids/model/attention.py` (your layer, in blocks and with compressed entries), `minids/model/rotary.py`, `tests/model/test_parity.py` (the judge, with gradients)
