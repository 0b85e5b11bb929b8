# %% [markdown]
# # 06 Mixture of experts
#
# **A layer of V4-Flash has 257 experts, and a token wakes seven of them. This lesson builds the router that picks them, and keeps it from always picking the same.**
#
# **After this you can**
# - write V4's router: affinities, a top K with a bias that picks and never weighs, normalised weights,
# - write an expert with V4's clamps, and say which side of what is clamped, and why,
# - compute a layer of experts token by token and expert by expert, and prove both equal to `minids`,
# - predict how uneven a hash layer's load is from the frequencies of tokens alone,
# - watch a router collapse onto a few experts, and say why the loss does not tell,
# - balance a router without a loss, and say what the small loss beside it is for,
# - measure what an expert has specialised in, with controls that keep you from seeing too much.
#
# *Time: 169 minutes, exercises included. The code
# itself runs in about a minute.*
# *Before this: PyTorch modules and the words "token" and "loss". Lesson 08 shows where the layer stands in the model.*

# %%
from types import SimpleNamespace
from unittest import mock

import minids
import torch
import torch.nn.functional as F
from minids import Config, cost
from minids.data import books, mixture, tasks
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model.moe import Gate, MoE, balance
from minids.model.moe import sequence_balance as minids_balance
from minids.model.passes import Options, Pass
from minids.pretrain.anticipatory_routing import Anticipation
from minids.pretrain.batches import packing
from minids.pretrain.losses import stream_loss
from minids.show import moe as pictures
from minids.show import style
from minids.system import paths
from torch import nn

CHECKPOINT = "mini"         # the shipped model that this lesson looks into
style.use()
versions()

# %% [markdown]
# ## Destroy most of a model
#
# Here is a trained model. We give it a single token and note what it predicts. Then we overwrite every routed expert that this token did not use with **nan**, "not a number":
# whatever touches it becomes nan as well.
#
# **Predict before you run:** what is left of the prediction?

# %% jupyter={"outputs_hidden": true}
folder = paths.data("checkpoints", CHECKPOINT)
model = minids.load(folder, dtype=torch.float32).eval().requires_grad_(False)
tokenizer, config = Tokenizer.load(), model.config
wreck = minids.load(folder, dtype=torch.float32).eval().requires_grad_(False)
one = torch.tensor([[tokenizer.bos_id]])                                    # B T = 1 1
used = []
for block in wreck.layers:
    block.ffn.gate.register_forward_hook(
        lambda gate, args, out: used.append(set(out[1].flatten().tolist())))
before = wreck(one)
destroyed = 0
for block, alive in zip(wreck.layers, used):
    for e, expert in enumerate(block.ffn.experts):
        if e not in alive:
            for p in expert.parameters():
                destroyed += p.fill_(torch.nan).numel()
total = sum(p.numel() for block in wreck.layers for p in block.ffn.experts.parameters())
print(f"destroyed: {destroyed:,} of {total:,} numbers in routed experts")
print("the prediction is the same, bit for bit:", torch.equal(before, wreck(one)))

# %% [markdown]
# Nothing happened. For this token those numbers were never read. And for a whole sentence, from the same wreck?

# %%
# 1 T
sentence = torch.tensor([tokenizer.encode("Anna is in the kitchen. Where is Anna?", bos=True)])
print("the prediction after the sentence is broken:",
      bool(wreck(sentence)[0, -1].isnan().all()))

# %% [markdown]
# Other tokens need other experts, and find rubble, and one broken token breaks all that attend to it. That is a **mixture of experts**: much is stored, little is used for a token, and *which* depends on the token. The part that decides is the **router**,
# also called gate. It is a single matrix, and this lesson is about its troubles. New words are in the [glossary](GLOSSARY.md).
#
# ## 1. The router

# %% jupyter={"source_hidden": true}
style.show(pictures.plot_layer(), "A token goes to the router, which picks two of six routed "
           "experts with weights; the shared expert always works; the results are added up")

# %% [markdown]
# Symbols: N tokens (all sequences in one list), d model width, E routed experts, I their width, K of them for each token, V ids in the vocabulary. $W$ is the gate's matrix, E d, and $b$ its bias, E numbers. The report, section 2.1, and DeepSeek-V3's report, whose
# design it keeps:
#
# $$s = \sqrt{\mathrm{softplus}(W x)} \qquad \text{chosen} = \text{top K of } (s + b) \qquad
#   g_e = \frac{s_e}{\sum_{j\ \text{chosen}} s_j} \cdot \text{scale}$$
#
# $$y = \sum_{e\ \text{chosen}} g_e\, \mathrm{expert}_e(x) + \mathrm{shared}(x)$$
#
# Here $s$ is the **affinity** of the token with each expert, softplus(x) is $\ln(1 + e^x)$, and `route_scale` is a fixed number (Flash 1.5, Pro 2.5). Mind the bias: it takes part in the choice, and nowhere else.
#
# By hand, four experts, K = 2, scale 1.5:
#
# | expert | 0 | 1 | 2 | 3 |
# | --- | --- | --- | --- | --- |
# | W x | 2 | 1 | 0 | -1 |
# | s | 1.458 | 1.146 | 0.833 | 0.560 |
# | b | 0 | 0 | 0.4 | 0 |
# | s + b | 1.458 | 1.146 | 1.233 | 0.560 |
#
# **Predict before you run:** which two experts work? And what are their weights?

# %% jupyter={"outputs_hidden": true}
s = F.softplus(torch.tensor([2.0, 1.0, 0.0, -1.0])).sqrt()
b = torch.tensor([0.0, 0.0, 0.4, 0.0])
chosen = (s + b).topk(2).indices
print("chosen:", chosen.tolist())
print("weights:        ", [round(v, 3) for v in (s[chosen] / s[chosen].sum() * 1.5).tolist()])
wrong = (s + b)[chosen]
print("if b weighed:   ", [round(v, 3) for v in (wrong / wrong.sum() * 1.5).tolist()])

# %% [markdown]
# Expert 2 overtakes expert 1 thanks to its bias, 1.233 against 1.146. Yet it weighs with its affinity, 0.833 / (1.458 + 0.833) = 0.364, times 1.5. Why so? The bias is no opinion about the token. It serves the
# administration: it moves work to idle experts (section 5), and should not make them louder.
#
# ### Exercise 1: the router
# *Easy, 10 minutes.* Give the weights as a table, N E, with 0 where an expert was not chosen. Stuck? `hint("moe.route")` in a new cell gives one of three hints; so for the other exercises.

# %%
def route(x, weight, bias, K, scale):
    """The weight of each expert for each token. x: N d, weight: E d, bias: E -> N E, K
    entries of a row are not 0."""
    ### BEGIN SOLUTION
    s = F.softplus(x @ weight.T).sqrt()                                     # N E
    chosen = (s + bias).topk(K).indices                                     # N K
    g = s.gather(1, chosen)                                                 # N K
    g = g / g.sum(1, keepdim=True) * scale
    return torch.zeros_like(s).scatter(1, chosen, g)                        # N E
    ### END SOLUTION


# %%
route = check("moe.route", route)

# %%
rng = torch.Generator().manual_seed(0)
gate, x = model.layers[1].ffn.gate, torch.randn(50, config.dim, generator=rng)  # x: N d
g, chosen = gate(x, None)  # N K, N K, as minids gives them
mine = route(x, gate.weight, gate.bias, config.n_activated_experts, config.route_scale)
torch.testing.assert_close(mine.gather(1, chosen), g)
torch.testing.assert_close(mine.sum(1), torch.full((50,), config.route_scale))
print("equal to the gate of layer 1 of the shipped model; each row sums to", config.route_scale)

# %% [markdown]
# ### Why this affinity?
#
# DeepSeek-V3 took a sigmoid. The report states the change (2.1) and gives no reason. What we can see is the shape.

# %% jupyter={"source_hidden": true}
style.show(pictures.plot_affinities(),
           "Left: sqrt(softplus) keeps growing where the sigmoid levels off at 1. Right: its "
           "slope fades slowly on both sides, the sigmoid's is almost gone at 6 and -6")

# %% [markdown]
# A sigmoid says at most 1: two experts at 4 and at 6 look alike, and the gate gets hardly any gradient. sqrt(softplus) grows like $\sqrt{x}$ and never quite levels off. To the left it falls like $e^{x/2}$, the
# sigmoid like $e^x$. (Dash-dotted: softplus without the root grows like x itself, and soon one expert would outweigh all others. That, too, is our reading.)
#
# The slope of sqrt(softplus) by the rules: $\frac{ds}{dx} = \frac{\sigma(x)}{2 s}$. For very negative x this is $e^{x/2} / 2$, tiny and harmless. **Predict before you run:** what does autograd say at -120?

# %% jupyter={"outputs_hidden": true}
x = torch.tensor([-20.0, -80.0, -120.0], requires_grad=True)
F.softplus(x).sqrt().sum().backward()
plain, x.grad = x.grad, None
F.softplus(x).clamp_min(torch.finfo(torch.float32).tiny).sqrt().sum().backward()
print("plain:  ", plain.tolist()[2], "at -120;", plain.isfinite().tolist())
print("guarded:", x.grad.tolist()[2], "at -120;", x.grad.isfinite().tolist())

# %% [markdown]
# At -120 softplus is too small for float32 and becomes 0. Autograd multiplies the slope of the root there, 1/0, with the slope of softplus, 0: nan. A lower bound *before* the root mends it, and changes only affinities below
# 1.1e-19, which weigh nothing. One unguarded value poisons the whole step: gradients are summed over tokens and clipped by their common norm. (Lesson 08 has an exercise on it.)
#
# ## 2. An expert
#
# Each expert is a small feed-forward network, a *SwiGLU*: $w_2(\mathrm{silu}(w_1 x) \odot w_3 x)$ with silu(v) = v sigmoid(v). V4 clamps what goes in (report 4.2.3): the gate part $w_1 x$ from above at 10, the
# linear part $w_3 x$ to [-10, 10].
#
# By hand: $w_1 x = 30$ and $w_3 x = -25$ give 30 x (-25) = -750 without clamps, and silu(10) x (-10) = 9.9995 x (-10) = -99.995 with them. So the product is never larger than 100 in size.
#
# **Predict before you run:** why is $w_1 x$ not clamped from *below*?

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(pictures.plot_clamps(), "Left: the SiLU of the gate levels off at 10 when clamped; "
           "on the negative side it is almost 0 by itself. Right: the product grows like a "
           "square without clamps, and stays below 100 with them")

# %% [markdown]
# Because silu is never below -0.28: on that side there is nothing to cut. The linear part has no such brake, so it needs both sides.
#
# The weight $g$ multiplies the hidden numbers, before $w_2$. **Predict:** does it matter, before or after $w_2$? And before or after the SiLU?

# %% jupyter={"outputs_hidden": true}
expert, x = model.layers[1].ffn.experts[0], torch.randn(6, config.dim, generator=rng)  # N d
w1, w2, w3 = (getattr(expert, name).weight for name in ("w1", "w2", "w3"))
g = torch.rand(6, 1, generator=rng) + 0.2  # N 1
hidden = F.silu(x @ w1.T) * (x @ w3.T)     # N I
before_w2, after_w2 = (hidden * g) @ w2.T, (hidden @ w2.T) * g
before_silu = (F.silu(x @ w1.T * g) * (x @ w3.T)) @ w2.T
scale = before_w2.abs().max()
print("before or after w2 differ by less than a millionth:",
      bool((before_w2 - after_w2).abs().max() < 1e-6 * scale))
print("before the SiLU differs by more than a hundredth:",
      bool((before_w2 - before_silu).abs().max() > 1e-2 * scale))

# %% [markdown]
# $w_2$ is linear: in float32 only rounding tells the two apart, and a check has no right to call either wrong. (With FP8 numbers between, the order decides what is rounded; V4's reference code has it before.) The SiLU is not linear.
#
# ### Exercise 2: an expert
# *Easy, 10 minutes.* `limit` 0 means: no clamp.

# %%
def expert_forward(x, w1, w2, w3, limit, g):
    """x: N d; w1, w3: I d; w2: d I (as in torch.nn.Linear); limit: a number; g: N 1 -> N d."""
    ### BEGIN SOLUTION
    gate, up = x @ w1.T, x @ w3.T                                           # N I
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (F.silu(gate) * up * g) @ w2.T                                   # N d
    ### END SOLUTION


# %%
expert_forward = check("moe.expert", expert_forward)
torch.testing.assert_close(expert_forward(30 * x, w1, w2, w3, 10.0, g), expert(30 * x, g),
                           rtol=1e-4, atol=1e-4)
print("equal to minids' expert, with inputs large enough for the clamps")

# %% [markdown]
# ## 3. The layer: token by token, or expert by expert
#
# ### Exercise 3: the layer, as the equation reads
# *Easy, 10 minutes.* One loop over the experts, with your `expert_forward`; column e of g holds the weights of expert e. `ffn.experts[e]` and `ffn.shared_experts` hold their matrices as `w1.weight`, `w2.weight` and `w3.weight`;
# the limit is `ffn.gate.config.swiglu_limit`. The shared expert has the weight 1.

# %%
def mix_experts(ffn, x, g):
    """The output of a layer of experts. x: N d; g: N E, as `route` gives it -> N d."""
    ### BEGIN SOLUTION
    limit, shared = ffn.gate.config.swiglu_limit, ffn.shared_experts
    y = expert_forward(x, shared.w1.weight, shared.w2.weight, shared.w3.weight, limit, 1.0)
    for e, expert in enumerate(ffn.experts):
        y = (y + expert_forward(x, expert.w1.weight, expert.w2.weight, expert.w3.weight, limit,
                                g[:, e, None]))
    return y
    ### END SOLUTION


# %%
mix_experts = check("moe.layer", mix_experts)
layer, x = model.layers[1].ffn, torch.randn(40, config.dim, generator=rng)  # N d
# N E
g = route(x, layer.gate.weight, layer.gate.bias, config.n_activated_experts, config.route_scale)
torch.testing.assert_close(mix_experts(layer, x, g), layer(x[None], None)[0], atol=1e-5,
                           rtol=1e-4)
print("equal to minids.model.moe.MoE on 40 tokens")

# %% [markdown]
# Right, and wasteful: every expert works on every token, and most of what it computes is multiplied by 0. So we sort: list all N K choices, put those of one expert beside each other, run each expert once on its rows, and put
# the results back. Four tokens, K = 2:

# %%
choices = [[2, 0], [0, 1], [2, 1], [0, 2]]                                  # N K
flat = torch.tensor(choices).flatten()                                      # NK
order = flat.argsort(stable=True)
print("choices  ", flat.tolist())
print("order    ", order.tolist(), " row i of the sorted list is choice number order[i]")
print("token    ", (order // 2).tolist(), " and belongs to token order[i] // K")
print("expert   ", flat[order].tolist())
print("way back ", order.argsort().tolist(), " choice i lies in row order.argsort()[i]")

# %% jupyter={"source_hidden": true}
style.show(pictures.plot_sorting(choices, 3), "Eight choices of four tokens, sorted so that "
           "each of three experts finds its rows side by side")

# %%
for name, c in (("nano", Config.nano()), ("mini", Config.mini()), ("Flash", Config.flash()),
                ("Pro", Config.pro())):
    print(f"{name:6} every expert on every token: {c.n_routed_experts:4} rows a token; sorted: "
          f"{c.n_activated_experts}; {c.n_routed_experts / c.n_activated_experts:.0f} times "
          "less")

# %% [markdown]
# ### Exercise 4: a colleague's sort
# *Medium, 15 minutes.* A colleague wrote the sorted version. It has the right shape, no error, and **two** faults. On some inputs you see neither: if the list of choices happens to be sorted already. Repair it.

# %%
def colleagues_moe(ffn, x, g):
    """x: N d; g: N E -> N d. Two faults."""
    N, K = len(x), ffn.gate.config.n_activated_experts
    weights, chosen = g.topk(K)                    # N K, N K
    order = chosen.flatten().argsort(stable=True)  # NK
    counts = torch.bincount(chosen.flatten(), minlength=len(ffn.experts)).tolist()
    runs = x[order // K].split(counts)             # E runs of rows, NK d together
    y = torch.cat([expert(run) for expert, run in zip(ffn.experts, runs)])
    y = y * weights.flatten()[:, None]
    y = y[order]                                   # back to the tokens
    return y.view(N, K, -1).sum(1) + ffn.shared_experts(x)


apart = (colleagues_moe(layer, x, g) - mix_experts(layer, x, g)).abs().max()
print("the colleague's result is wrong:", bool(apart > 1e-2))


# %%
def grouped(ffn, x, g):
    """Your repaired version. x: N d; g: N E -> N d."""
    ### BEGIN SOLUTION
    N, K = len(x), ffn.gate.config.n_activated_experts
    weights, chosen = g.topk(K)                    # N K, N K
    order = chosen.flatten().argsort(stable=True)  # NK
    counts = torch.bincount(chosen.flatten(), minlength=len(ffn.experts)).tolist()
    runs = x[order // K].split(counts)
    y = torch.cat([expert(run) for expert, run in zip(ffn.experts, runs)])
    y = y * weights.flatten()[order][:, None]      # sorted like the rows
    y = y[order.argsort()]                         # the inverse of the sort
    return y.view(N, K, -1).sum(1) + ffn.shared_experts(x)
    ### END SOLUTION


# %%
grouped = check("moe.grouped", grouped)
torch.testing.assert_close(grouped(layer, x, g), layer(x[None], None)[0], atol=1e-5, rtol=1e-4)
print("equal to minids, which also sorts")

# %% [markdown]
# ## 4. Hash layers: a table decides
#
# In the first three layers of V4 no matrix chooses. A fixed table `tid2eid`, V K, says for each token id which K experts work (report 2.1; Roller et al.). Our small models have one such layer, the first. There is nothing to collapse and nothing to balance. Or is there?
#
# What is left of the gate: its affinities still *weigh* the experts of the table.
#
# ### Exercise 5: a hash layer's weights
# *Easy, 5 minutes.*

# %%
def hash_route(x, ids, weight, table, scale):
    """As `route`, with experts from the table. x: N d, ids: N, weight: E d, table: V K
    -> N E."""
    ### BEGIN SOLUTION
    s = F.softplus(x @ weight.T).sqrt()                                     # N E
    chosen = table[ids]                                                     # N K
    g = s.gather(1, chosen)
    return torch.zeros_like(s).scatter(1, chosen, g / g.sum(1, keepdim=True) * scale)
    ### END SOLUTION


# %%
hash_route = check("moe.hash_route", hash_route)
gate, x = model.layers[0].ffn.gate, torch.randn(30, config.dim, generator=rng)  # N d
some = torch.randint(0, config.vocab_size, (30,), generator=rng)  # N
g, chosen = gate(x, some)
mine = hash_route(x, some, gate.weight, gate.tid2eid, config.route_scale)
torch.testing.assert_close(mine.gather(1, chosen), g)
print("equal to the hash layer of the shipped model")

# %% [markdown]
# Does this gate do anything after training? We take a frequent word, " the", in a stretch of held-out text and look at the weight of the first of its two experts, in all its contexts. **Predict before you run:** with two experts and scale 1.5 the weights are
# 0.75 each if the gate has no opinion. Does the context of a word move them?

# %%
def watch(model, ids):
    """The weights and experts, N K each, of every gate in the order of the layers, on ids:
    B T."""
    seen, hooks = [], []
    for block in model.layers:
        hooks.append(
            block.ffn.gate.register_forward_hook(lambda gate, args, out: seen.append(out)))
    # options tell a pass what to do beside its work: here, to keep documents of a row apart
    with torch.no_grad():
        model.features(ids, options=Options(packing(ids, tokenizer.bos_id)))
    for hook in hooks:
        hook.remove()
    return seen


heldout = torch.from_numpy(mixture.stream("heldout", 6145, tokenizer).astype("int64"))
ids = heldout[:6144].view(24, 256)                                          # B T
seen = watch(model, ids)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
word = tokenizer.encode(" the")[0]
g, chosen = (part[ids.flatten() == word] for part in seen[0])  # of all places with " the"
print(f"' the' comes {len(g)} times; experts {chosen.unique(dim=0).tolist()}")
print(f"weight of the first one: {g[:, 0].min():.3f} to {g[:, 0].max():.3f}, deviation "
      f"{g[:, 0].std():.3f}; uniform would be {config.route_scale / 2:.3f}")

# %% jupyter={"outputs_hidden": true}
assert len(chosen.unique(dim=0)) == 1 and g[:, 0].std() > 0.002
print("the experts are always the same two; their weights differ from place to place")

# %% [markdown]
# ### How even is a table?
#
# An expert's **load** is the number of choices that fall on it. Random tables give each expert nearly the same number of *ids*. But ids are not equally frequent. Let $p_t$ be the share of token t in the text. An expert has token t with probability K/E. So its load, divided by the mean load, has the
# variance
#
# $$\sum_t p_t^2 \cdot \frac{E - K}{K}$$
#
# By hand: if one token made up half of all text and the others were rare, the sum is about 0.25; with E = 8, K = 2 the deviation is $\sqrt{0.25 \cdot 3} = 0.87$: the two experts of that token have far more
# than their share. **Predict:** 300 random tables for our text. Where will most of them be, in largest load over mean load?

# %% jupyter={"outputs_hidden": true}
def loads_of(table, p, E):
    """Load of each expert over the mean load, if tokens come with the shares p. table: V K,
    p: V -> E."""
    load = torch.bincount(table.flatten(), weights=p.repeat_interleave(table.shape[1]).double(),
                          minlength=E)
    return load / load.mean()


V, E, K = config.vocab_size, config.n_routed_experts, config.n_activated_experts
p = torch.bincount(heldout, minlength=V) / len(heldout)                     # V
even = torch.full((V,), 1 / V)
rng = torch.Generator().manual_seed(3)
tables = [torch.rand(V, E, generator=rng).argsort(1)[:, :K] for _ in range(300)]
worst = {name: torch.stack([loads_of(t, q, E).max() for t in tables])
         for name, q in (("text", p), ("even", even))}
deviation = (p.square().sum() * (E - K) / K).sqrt().item()
measured = torch.stack([loads_of(t, p, E) for t in tables]).std().item()
print(f"deviation of a load: by formula {deviation:.3f}, over 300 tables {measured:.3f}")
print(f"largest load, median of the tables: {worst['text'].median():.2f}; all tokens equally "
      f"often: {worst['even'].median():.2f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(pictures.plot_zipf(p.tolist(), worst["text"].tolist(), worst["even"].tolist(),
                              1 + deviation),
           "Left: frequencies of tokens fall along a straight line on logarithmic axes, as "
           "Zipf found. Right: on such text, random tables are uneven; with all tokens equally "
           "often they would be nearly even")

# %% [markdown]
# The unevenness comes from a handful of frequent tokens, and no bias can mend it: the table is fixed. More experts make it worse. The factor $(E - K)/K$ is 3 for nano's E = 8 and K = 2, 15 for mini's 32 and 2, and 42 for Flash's 256 and 6.
# On text as concentrated as ours the loads of a purely random table of Flash's size would have the deviation below. How V4's tables were made, the report does not say ("a predefined hash function"). They are in the released weights.

# %%
print("a random table of Flash's size on a text as concentrated as ours: "
      f"{(p.square().sum() * 250 / 6).sqrt():.2f}")

# %% [markdown]
# ### Exercise 6: a fairer table
# *Medium, 15 minutes.* If the frequencies are known, one can do better (Roller et al. call this "balanced hash"). Go through the tokens from the most frequent to the rarest; give each the K experts that have the least load so far. One bound holds for every table: the
# experts of the most frequent token have at least *its* share. So the largest load over mean load is at least $p_{\max} E / K$.

# %%
def balanced_table(p, E, K):
    """p: V, the tokens' shares -> V K int64, each row K different experts, sorted. Ties: the
    lower number first."""
    ### BEGIN SOLUTION
    table, load = torch.zeros(len(p), K, dtype=torch.int64), torch.zeros(E, dtype=torch.float64)
    for token in p.argsort(descending=True).tolist():
        picked = load.argsort(stable=True)[:K]
        load[picked] += p[token]
        table[token] = picked.sort().values
    return table
    ### END SOLUTION


# %%
balanced_table = check("moe.balanced_table", balanced_table)
print(f"largest load over mean load: {loads_of(balanced_table(p, E, K), p, E).max():.3f}; "
      f"no table is below {max(1.0, p.max().item() * E / K):.3f}")

# %% [markdown]
# ## 5. Keeping a learned router even
#
# A chosen expert gets gradients, and gets better; so the router likes it more, and chooses it more. An expert that is never chosen gets no gradient and stays as it is. Nothing in the loss pulls it back.
#
# To watch this we build the smallest network with a real V4 layer of experts in it: embeddings of a token and of the one before, `minids`' MoE with 16 experts of which 2 work, and a head. One more ingredient: all embeddings share
# a **common direction**, one vector that is added to each of them. To the gate it acts like a constant: some experts are favoured by *every* token.

# %%
SMALL = config.replace(dim=64, moe_inter_dim=32, n_routed_experts=16, n_activated_experts=2)
# both experts always work: a dense layer of equal active size
DENSE = SMALL.replace(n_routed_experts=2)


class Small(nn.Module):
    def __init__(self, config, common):
        super().__init__()
        d = config.dim
        self.embed, self.previous = nn.Embedding(V, d), nn.Embedding(V, d)
        self.norm, self.last = nn.RMSNorm(d), nn.RMSNorm(d)
        self.ffn, self.head = MoE(config, is_hash=False), nn.Linear(d, V, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std={"ffn.gate.weight": 0.05,
                                        "head.weight": 0.02}.get(name, d**-0.5))
        with torch.no_grad():
            self.embed.weight += common * d**-0.5 * torch.randn(d)

    def forward(self, ids, current=None, experts=None):
        x = self.embed(ids) + self.previous(ids.roll(1, 1))  # B T d; row 0 gets the last one
        x = x + self.ffn(self.norm(x), ids, current, experts)
        return self.head(self.last(x))                       # B T V

# %% [markdown]
# Is such a direction far-fetched? What a gate of the shipped model sees has one, too. We measure which share of its squared length lies in the mean over all tokens. (Independent vectors would have 1/N.)

# %% tags=["nbval-ignore-output"]
def common_share(x):
    """Share of the squared length of vectors, N d, that lies in their mean."""
    return (x.mean(0).square().sum() / x.square().sum(1).mean()).item()


def gate_inputs(network, gates):
    """What each of these gates gets, N d, while the network reads the held-out text."""
    inputs = []
    hooks = [gate.register_forward_pre_hook(lambda gate, args: inputs.append(args[0]))
             for gate in gates]
    with torch.no_grad():
        network(ids)
    for hook in hooks:
        hook.remove()
    return inputs


torch.manual_seed(0)
toy = Small(SMALL, common=1.5)
at_gates = [common_share(x)
            for x in gate_inputs(model, [block.ffn.gate for block in model.layers])]
in_toy = common_share(gate_inputs(toy, [toy.ffn.gate])[0])
print("gates of the shipped model:", [f"{share:.0%}" for share in at_gates],
      " our small network:", f"{in_toy:.0%}")

# %%
assert 0.02 < min(at_gates) and max(at_gates) < in_toy
style.say("Every gate of the shipped model sees a common direction, with more than 2 % of the "
          "squared length.")
print("In our small network it is stronger: we want to see the collapse within 120 steps.")

# %%
STEPS, PROBES = 120, range(0, 121, 10)
stream = torch.from_numpy(mixture.stream("train", 60_000, tokenizer).astype("int64"))
probe = heldout[:2048].view(32, 64)                                         # B T


def next_loss(net, ids, experts=None):
    """Mean loss of the next token; the record of the pass."""
    current = Pass(net.ffn.gate.config, ids.shape[1] - 1, ids.device,
                   options=Options(balance=True))
    logits = net(ids[:, :-1], current, experts)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), current.record


def look(net):
    """Loss and choices on the probe."""
    with torch.no_grad():
        loss, record = next_loss(net.eval(), probe)
    net.train()
    return loss.item(), record.experts[0]


# %%
def train_small(seed, config=None, u=0.0, loss_weight=0.0, common=1.5, probes=()):
    """Train for STEPS steps. Returns loads (S E), the held-out loss, choices on the probe,
    and the network."""
    torch.manual_seed(seed)
    net, rng = Small(config or SMALL, common), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.95), fused=True)
    loads, choices = [], []
    for step in range(STEPS + 1):
        if step in probes:
            choices.append(look(net)[1])
        if step == STEPS:
            break
        at = torch.randint(len(stream) - 65, (4, 1), generator=rng)
        loss, record = next_loss(net, stream[at + torch.arange(65)])
        optimiser.zero_grad()
        (loss + loss_weight * record.balance_loss).backward()
        optimiser.step()
        loads.append(record.loads[0])
        balance(net, record.loads, u)                                       # moves the bias
    return SimpleNamespace(loads=torch.stack(loads).float(), loss=look(net)[0], choices=choices,
                           net=net, optimiser=optimiser)


# %% [markdown]
# There are two remedies, which you will write further below. The **bias step**: after each training step the gate's bias $b_e$ goes down by u where expert e had more than the mean load, and up by u where it had less. The **sequence-wise loss**: a small extra loss
# that is lowest when a sequence uses all experts alike.
#
# Six settings, three seeds each, same data in the same order. "V4's numbers" are u = 0.001 and a loss of weight 0.0001 (report 4.2.2), which are meant for many thousands of steps. In our 120 steps a bias
# can move by 0.12 at most with that u, so we also try a larger one.
#
# **Predict before you run:** with 16 experts and K = 2, what is the worst possible largest load over mean load? Which of the settings come near it? And which of them has the lowest loss?

# %%
SETTINGS = {"no balancing": {},
            "V4's numbers: u = 0.001, loss 0.0001": {"u": 0.001, "loss_weight": 1e-4},
            "bias, u = 0.01": {"u": 0.01}, "sequence-wise loss, 0.01": {"loss_weight": 1e-2},
            "no balancing, no common direction": {"common": 0.0},
            "dense, equal active size": {"config": DENSE}}
FOLLOWED = ("no balancing", "bias, u = 0.01")
runs = {name: [train_small(seed, **changes,
                           probes=PROBES if name in FOLLOWED and seed == 0 else ())
               for seed in range(3)] for name, changes in SETTINGS.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def worst_load(run):
    """Largest over mean load, and the experts with less than a tenth of the mean, in the
    last 20 steps."""
    load = run.loads[-20:].sum(0)
    return (load.max() / load.mean()).item(), int((load < 0.1 * load.mean()).sum())


print(f"{'':38}largest / mean load    idle experts   held-out loss")
for name, group in runs.items():
    worst, idle = zip(*map(worst_load, group))
    peaks, idles = "  ".join(f"{w:4.1f}" for w in worst), "  ".join(f"{i:2}" for i in idle)
    print(f"{name:38}{peaks:>19}{idles:>16}"
          f"    {'  '.join(f'{run.loss:.2f}' for run in group)}")

# %% jupyter={"outputs_hidden": true}
end = {name: [worst_load(run)[0] for run in group] for name, group in runs.items()}
losses = {name: [run.loss for run in group] for name, group in runs.items()}
assert min(end["no balancing"]) > 5 and max(end["bias, u = 0.01"]) < 4.5
assert max(end["no balancing, no common direction"]) < 3.5
assert sum(end["sequence-wise loss, 0.01"]) > sum(end["bias, u = 0.01"])
assert all(abs(a - b) < 0.4 for a, b in zip(losses["no balancing"], losses["bias, u = 0.01"]))
style.say("Without balancing, the busiest expert has more than 5 times the mean; the bias "
          "brings it down, for every seed.")
print("The losses of the two differ by less than 0.4.")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
alone = {name: torch.stack([run.loads for run in group], 1)
         for name, group in runs.items() if "dense" not in name}
style.show(pictures.plot_load_curves(alone),
           "Without balancing the largest load stays high, near the worst possible, 8 times "
           "the mean; with a bias step of 0.01 it comes down within the run; V4's small step "
           "has hardly begun; without a common direction there is no collapse. Lines are means "
           "of three seeds, bands reach from the lowest to the highest")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(pictures.plot_load_maps({name: runs[name][0].loads for name in FOLLOWED}),
           "Loads of 16 experts over training. Left, no balancing: soon three bright rows do "
           "most of the work. Right, with the bias: one expert after the other wakes up, until "
           "most rows have about the same colour; one, once busy, is idle now")

# %% [markdown]
# - **The worst possible is E / K = 8**: two experts do everything. Without balancing the network comes near it: the busiest expert takes 84 to 99 % of the tokens, and 7 to 12 of the 16 are idle. This is called *routing collapse*.
# - **The loss does not tell.** Look at the last column: in this short run the collapsed router predicts as well as the balanced one, or a little better, and about as well as the dense layer of equal active size, which it nearly is.
#   In each seed the balanced network is a little behind (0.02 to 0.10); against a spread of up to 0.06 between three seeds that is not much. Loads must be measured; no loss curve shows them.
# - **So what is balance for?** Here, for nothing that our loss could show. At scale, experts live on different machines: the busiest one sets the pace, and idle ones are memory paid for nothing. And more
#   experts that work mean more room for knowledge, once there is more to know than 16 small experts can hold. (`python -m minids.recipes.ablations` trains whole nano models with and without.)
# - **The control** without a common direction shows that we provoked our collapse. A good initialisation can avoid it for a while; nothing guarantees that it stays away. (Its loss is the highest here: it is another start, not a remedy.)
# - **The sequence-wise loss alone**, even at a hundred times V4's weight, does less than the bias. It has another task, see below.
#
# ### Balance without a loss
#
# You have seen what it does. After each step: $b_e \leftarrow b_e - u \cdot \mathrm{sign}(\mathrm{load}_e - \text{mean load})$ (Wang et al.). That is all. No gradient is involved, so nothing pulls at the features for the sake of balance.
#
# By hand, loads (6, 2, 0, 4), mean 3, u = 0.001: the bias moves by (-0.001, +0.001, +0.001, -0.001). The expert with 6 moves no further than the one with 4.
#
# ### Exercise 7: the bias and the loss
# *Medium, 15 minutes.* First the bias step; the loss follows below.

# %%
def bias_step(bias, load, u):
    """The bias after a step. bias: E, load: E whole numbers, u: a number -> E."""
    ### BEGIN SOLUTION
    load = load.float()
    return bias - u * torch.sign(load - load.mean())
    ### END SOLUTION


# %%
bias_step = check("moe.bias_step", bias_step)
gate = Gate(SMALL, is_hash=False)
load = torch.randint(0, 50, (16,), generator=rng)
mine = bias_step(gate.bias, load, 0.001)
balance(gate, [load], 0.001)
torch.testing.assert_close(mine, gate.bias)
print("equal to minids.model.moe.balance")

# %% [markdown]
# The bias balances the sum over many sequences. A single sequence may still send all its tokens to two experts, say one that is all digits. Against the extreme cases there is a slight loss *for each sequence* (report 2.1 and 4.2.2, V3's report for
# the formula), over its T tokens:
#
# $$L = \sum_e f_e P_e \qquad f_e = \frac{E}{K T} \cdot \#(\text{tokens that chose } e) \qquad P_e = \frac{1}{T} \sum_t \frac{s_{te}}{\sum_j s_{tj}}$$
#
# By hand, E = 2, K = 1, T = 4. Three tokens choose expert 0: f = (1.5, 0.5). Let P = (0.6, 0.4): L = 0.9 + 0.2 = 1.1. Even use gives 1, and if all tokens choose expert 0 with certainty, L = 2 = E / K.
#
# f counts choices, and counting has no gradient. P has one. **Predict:** what does gradient descent do with a busy expert (large f)?

# %%
def sequence_balance(s, experts):
    """The mean over B sequences of sum_e f_e P_e. s: B T E affinities; experts: B T K chosen
    ones -> one number."""
    ### BEGIN SOLUTION
    B, T, E = s.shape
    K = experts.shape[-1]
    f = F.one_hot(experts, E).sum(2).float().sum(1) * E / (K * T)           # B E
    P = (s / s.sum(-1, keepdim=True)).mean(1)                               # B E
    return (f * P).sum(-1).mean()
    ### END SOLUTION


def with_gradient(function):
    """A function that returns function(s, experts) and its gradient by s."""
    def both(s, experts):
        s = s.detach().clone().requires_grad_()
        loss = function(s, experts)
        grad = (torch.autograd.grad(loss, s)[0] if torch.is_tensor(loss) and loss.requires_grad
                else torch.zeros_like(s))
        return loss.detach() if torch.is_tensor(loss) else loss, grad
    return both


# %% jupyter={"outputs_hidden": true}
loss_and_gradient = check("moe.sequence_balance", with_gradient(sequence_balance))
s = (torch.rand(3, 20, 8, generator=rng) + 0.1) * torch.linspace(0.5, 1.5, 8)  # B T E
experts = s.topk(2).indices  # B T K
loss, slope = loss_and_gradient(s, experts)
total, sequences = minids_balance(s.flatten(0, 1), experts.flatten(0, 1), 3)
torch.testing.assert_close(loss, total / sequences)
busy = slope.mean((0, 1))
print("equal to minids; L =", round(loss.item(), 3))
print("load of each expert:       ", torch.bincount(experts.flatten(), minlength=8).tolist())
print("descent moves its affinity:", ["up" if v < 0 else "down" for v in busy.tolist()])

# %% [markdown]
# It lowers the affinity of experts that are busy in this sequence and raises the others'. In contrast to the bias this *is* a pull at the gate, and through it at the features. So its weight is tiny.
#
# ## 6. Play: watch the load move
#
# Move the slider through the training with three of the settings (seed 0). **Find out:** with the bias at u = 0.01, at which step does the busiest expert first have less than twice the mean? And does any expert that once was busy fall
# far below the mean on the way?

# %%
shown = {name: runs[name][0].loads
         for name in ("no balancing", "bias, u = 0.01", "sequence-wise loss, 0.01")}
box = style.slider_image(lambda step: pictures.plot_loads_at(shown, step),
                         "Load of each expert, over the mean, in the ten steps before",
                         step=range(10, STEPS + 1, 10))
box

# %%
box.peek(step=STEPS)
print("the last picture: the ten steps before step", STEPS)

# %% [markdown]
# The heat maps above say the same at one look: the bright rows of the right panel fade as others light up. A bias step is blind to size, so biases overshoot and come back: u sets both how fast the load evens out and
# how much it trembles afterwards.
#
# ## 7. Anticipatory routing: who chose, and when?
#
# Weights and routing drive each other: routing decides which experts learn, and what they learned decides the routing. How fast does the routing of the *same* text change while weights learn? Each square below compares
# the experts that two steps' weights choose for the same 2,016 held-out tokens.

# %% jupyter={"source_hidden": true}
def share_alike(choices):
    """For each pair of steps, the share of choices that are the same. choices: a list of
    N K."""
    hot = torch.stack([F.one_hot(c, 16).sum(1).flatten() for c in choices]).float()  # S NE
    return hot @ hot.T / hot[0].sum()


maps = {name: share_alike(runs[name][0].choices) for name in FOLLOWED}
style.show(pictures.plot_agreement(maps, list(PROBES)), "Share of choices on which two steps "
           "agree. Left, no balancing: soon all steps agree on the same few experts. Right, "
           "with the bias: neighbouring steps agree, distant ones hardly do")

# %% [markdown]
# While loads are being balanced, a quarter to a third of the choices differ from those of ten steps ago, and after 100 steps most do. So it makes a difference *whose* choice is used. The report's trillion-parameter runs had loss spikes, tied to outliers in the expert layers, which the
# routing seemed to make worse (4.2.3). Its remedy: at step t compute with the weights of step t, but take the experts that the weights of step t - delta would choose. The vicious circle then has a delay in it.
#
# Old weights need not be kept. The data of step t is known in advance: at step t - delta, the weights of that step choose for the batch of step t, and the choice waits. For delta = 3:

# %%
settings = SimpleNamespace(anticipate=3, spike=0.0, steps=8)
anticipation, now = Anticipation(settings), 0
for now in range(8):
    # "the experts" are just the number of the step that chose
    chosen_by = anticipation.experts(now, lambda batch: now)
    print(f"step {now}: weights of step {now}, experts chosen by the weights of step "
          f"{chosen_by}")

# %% [markdown]
# The first steps have nothing to look back to, and take what the weights of step 0 choose. V4 switches this on only after a spike, for a while; it costs about 20 % more time while it is on (4.2.3).
#
# **Can we show the vicious circle?** We try. We take the trained small networks, hit each with one bad update (a batch of one token repeated, 20 times the learning rate), and ask on held-out text: how many choices moved at
# once? And is the damaged network better off with its own new choices, or with the old ones?

# %% tags=["nbval-ignore-output"]
def hit(run):
    """One bad update. Returns the share of choices that moved, and losses: before, new
    choices, old choices."""
    net, (loss, old) = run.net, look(run.net)
    run.optimiser.param_groups[0]["lr"] = 0.2
    run.optimiser.zero_grad()
    next_loss(net, torch.full((4, 65), word))[0].backward()
    run.optimiser.step()
    after, new = look(net)
    hot = [F.one_hot(c, 16).sum(1) for c in (old, new)]
    with torch.no_grad():
        replayed = next_loss(net.eval(), probe, old)[0].item()
    return 1 - (hot[0] * hot[1]).sum().item() / old.numel(), loss, after, replayed


moved = [hit(run) for run in runs["bias, u = 0.01"]]
for seed, (share, loss, after, replayed) in enumerate(moved):
    style.say(f"seed {seed}: {100 * share:.0f} % of the choices moved; loss {loss:.2f} before, "
              f"then {after:.2f} with new choices, {replayed:.2f} with the old ones")

# %%
assert all(share > 0.1 and after > loss + 0.1 for share, loss, after, _ in moved)
style.say("In every seed one bad update moves more than a tenth of all choices at once, and "
          "raises the loss.")

# %% [markdown]
# The first half of the story is real, even here: one bad update reroutes much of the text at once. For the second half, compare the last two numbers of each line. When this lesson was built, the old choices were a little better, by far less than the damage: the experts and
# the features themselves were hit, too. One bad update is no training run, and three seeds are few.
# **We cannot show that anticipatory routing prevents spikes**: a network this small has none by itself. Nor does the report claim to understand it: a theory "remains an open question" (4.2.3). `minids` has it
# (`TrainConfig(anticipate=..., spike=...)`), and off it costs nothing.
#
# ## 8. What did the experts of a trained model become?
#
# The shipped model, on held-out text of each kind of its mixture (lesson 01). First look, then measure. For each expert of one layer: the tokens that it gets most above its average share.

# %% tags=["nbval-ignore-output"]
def favourites(ids, chosen, E, top=7):
    """For each expert the tokens that it gets more often than its share of the text says, by
    excess."""
    hot = torch.zeros(len(chosen), E).scatter(1, chosen, 1.0)  # N E
    got = torch.zeros(V, E).index_add(0, ids, hot)
    excess = got - torch.bincount(ids, minlength=V)[:, None] * hot.mean(0)  # V E
    return [[tokenizer.decode([t]) for t in column.topk(top).indices.tolist()]
            for column in excess.T]


# the first layer that scores
at = next(i for i in range(config.n_layers) if not config.is_hash(i))
for e, tokens in enumerate(favourites(ids.flatten(), seen[at][1], E)[:12]):
    style.say(f"layer {at}, expert {e}: {ascii(tokens)[1:-1]}")

# %% [markdown]
# Such lists are easily read as professions: names here, commas there. Now be careful. Three ways to fool oneself:
# 1. With many tokens and experts, *something* stands out by chance. Control: shuffle the classes among the tokens.
# 2. Frequent classes dominate a list. So we measure **lift**: how often class c goes to expert e, divided by how often any token does. By hand: an expert gets 15 of 100 tokens, but 30 of 100 digits. Its lift for digits is 2; a lift of 1 means no preference.
# 3. A router is a function of the token, so even an *untrained* one sends equal tokens to equal experts. Control: a fresh model.

# %%
FUNCTION = set("the a an of in to and or is was are were that it he she his her has had have "
               "for with on at by not be as from who".split())
KINDS = {kind: mixture.stream("heldout", 1500, tokenizer, (kind,)) for kind in mixture.SHARES}
KINDS["code"] = books.encode_texts([tasks.as_text(task) for task
                                    in tasks.problems("coding", "test", 40)], tokenizer)


def token_class(token):
    """The class of a token by its own text: a word of this list, a digit, a name of the
    stories, or a sign."""
    word = tokenizer.decode([token]).strip()
    if not word:
        return "line breaks, spaces"
    if word.isdigit():
        return "digits"
    if word in stories.PEOPLE:
        return "names"
    if word.lower() in FUNCTION:
        return "function words"
    return "other words" if word.isalpha() else "punctuation"


# %%
BY_TOKEN = ("digits", "names", "function words", "other words", "punctuation",
            "line breaks, spaces")
CLASSES = [*BY_TOKEN, "code problems", "stories", "real text"]
# B T
ids = torch.cat([torch.from_numpy(stream[:1280].astype("int64")).view(5, 256)
                 for stream in KINDS.values()])
kind = torch.arange(len(KINDS)).repeat_interleave(5 * 256)                        # N
names, kinds = [token_class(t) for t in range(V)], list(KINDS)
of_token = torch.tensor([BY_TOKEN.index(name) for name in names])[ids.flatten()]  # N
inside = torch.stack([*(of_token == c for c in range(6)),
                      *(kind == kinds.index(k) for k in ("code", "stories", "text"))])
# inside: C N
sizes = {name: int(n) for name, n in zip(CLASSES, inside.sum(1))}
style.say(f"tokens in each class: {sizes}")


def lift(chosen, inside, E):
    """How often tokens of a class go to an expert, over how often any token does. chosen:
    N K, inside: C N -> C E."""
    hot = torch.zeros(len(chosen), E).scatter(1, chosen, 1.0)  # N E
    return inside.float() @ hot / inside.sum(1, keepdim=True) / hot.mean(0).clamp_min(1e-6)


# %%
torch.manual_seed(0)
fresh = minids.Model(config).eval().requires_grad_(False)
layers = [i for i in range(config.n_layers) if not config.is_hash(i)]
shuffled = inside[:,
                  torch.randperm(inside.shape[1], generator=torch.Generator().manual_seed(0))]
trained, untrained = watch(model, ids), watch(fresh, ids)
tables = {"trained": [lift(trained[i][1], inside, E) for i in layers],
          "fresh": [lift(untrained[i][1], inside, E) for i in layers],
          "shuffled classes": [lift(trained[i][1], shuffled, E) for i in layers]}

# %% jupyter={"source_hidden": true}
some = [0, len(layers) // 2, len(layers) - 1]
style.show(
    pictures.plot_specialists({f"layer {layers[i]}": tables["trained"][i] for i in some},
                              CLASSES),
    "The trained model: lift of each expert (columns) for each class of tokens (rows) in three "
    "layers; strong colours in most rows, and each class has experts that it prefers or avoids")
style.show(pictures.plot_specialists({name: tables[name][some[1]] for name in tables}, CLASSES),
           "One layer of the trained model, of a fresh one, and of the trained one with "
           "shuffled classes, which is far paler")

# %% tags=["nbval-ignore-output"]
def strength(table):
    """Mean over classes and experts of |log2 lift|: 1 means a factor of 2 up or down."""
    return table.clamp_min(2**-6).log2().abs().mean().item()


for name, group in tables.items():
    print(f"{name:18}",
          "  ".join(f"layer {i}: {strength(t):.2f}" for i, t in zip(layers, group)))

# %%
mean = {name: sum(map(strength, group)) / len(group) for name, group in tables.items()}
assert (mean["trained"] > 3 * mean["shuffled classes"]
        and mean["fresh"] > 3 * mean["shuffled classes"])
style.say("Trained and fresh routers both prefer classes more than three times as strongly as "
          "chance would.")

# %% [markdown]
# Read the lines of numbers before you tell a story. The shuffled control is lowest by far, so the preferences are real. But the *fresh* router has clear ones as well: equal tokens get equal experts, trained or not. What training adds is
# the distance between these two lines, and what the *experts* then learn about their tokens. "This expert does names" is a fact about one model; "training made it a specialist" needs the fresh model beside it.
#
# ### What does each part do for the trained model?
#
# Sabotage: we take parts of the router away in the trained model, without training it again, and look at the loss on held-out text. The **control** renumbers the experts of each layer at random, together with the rows of the gate and the tables.
#
# **Predict before you run:** which costs more, experts chosen at random or a model without its shared expert? And the classic mistake, a bias that weighs?

# %% jupyter={"source_hidden": true}
def faulty(fault, generator):
    """A Gate.forward with a fault."""
    def forward(self, x, ids, *others):
        s = F.softplus(x @ self.weight.T).sqrt()  # N E
        bias = 0 if self.is_hash else self.bias
        chosen = (self.tid2eid[ids.flatten()] if self.is_hash
                  else (s + bias).topk(self.config.n_activated_experts).indices)
        if fault == "random experts":
            chosen = torch.rand(s.shape, generator=generator).argsort(1)[:, :chosen.shape[1]]
        g = ((s + bias) if fault == "the bias weighs" else s).gather(1, chosen)
        if fault == "weights uniform":
            g = torch.ones_like(g)
        if fault != "not renormalised":
            g = g / g.sum(1, keepdim=True)
        return g * (1.0 if fault == "route_scale missing" else self.config.route_scale), chosen
    return forward


def renumbered(model, generator):
    """Give the experts of each layer new numbers, everywhere."""
    for block in model.layers:
        new = torch.randperm(E, generator=generator)  # new expert i is old expert new[i]
        gate, old = block.ffn.gate, list(block.ffn.experts)
        block.ffn.experts = nn.ModuleList(old[i] for i in new.tolist())
        gate.weight.copy_(gate.weight[new])
        if gate.is_hash:
            gate.tid2eid.copy_(new.argsort()[gate.tid2eid])
        else:
            gate.bias.copy_(gate.bias[new])
    return model

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def loss_with(fault=None, change=None):
    victim = (minids.load(folder, dtype=torch.float32).eval().requires_grad_(False) if change
              else model)
    if change:
        change(victim)
    with mock.patch.object(Gate, "forward", faulty(fault, torch.Generator().manual_seed(1))):
        return stream_loss(victim, heldout[:4096].numpy(), 256)[0]


def silent(model):
    for block in model.layers:
        block.ffn.shared_experts.w2.weight.zero_()


right = loss_with()
changes = {"experts renumbered (control)": loss_with(
    change=lambda m: renumbered(m, torch.Generator().manual_seed(2))) - right}
for fault in ("the bias weighs", "weights uniform", "not renormalised", "route_scale missing",
              "random experts"):
    changes[fault] = loss_with(fault) - right
changes["no shared expert"] = loss_with(change=silent) - right
print(f"loss as it is: {right:.3f}")
style.show(pictures.plot_losses(changes),
           "Change of the held-out loss for each fault, on a logarithmic scale: the control is "
           "at zero, random experts cost by far the most, a bias that weighs far less")

# %% jupyter={"outputs_hidden": true}
assert abs(changes["experts renumbered (control)"]) < 1e-3
assert (changes["random experts"] > 1
        + max(loss for fault, loss in changes.items() if fault != "random experts"))
assert abs(changes["the bias weighs"]) < 0.5 * changes["random experts"]
style.say("The control changes nothing. Random experts cost most by far: more than a nat above "
          "any other fault.")
print("A bias that weighs costs less than half of that.")

# %% [markdown]
# - **Renumbering** changes nothing: the number of an expert has no meaning.
# - **The bias as a weight** is the classic mistake, and look how little it costs: although the biases are not small (from -1.8 to 1.1, beside affinities of about 1). How loud the two chosen experts are matters little here. A loss hardly finds such a fault. A comparison with a reference does.
# - **Missing scale or normalisation**, or weights all alike, change how loud the routed experts are, not which of them work.
# - **Random experts** cost the most: *which* experts work matters more than how loud each of them is. It would not matter if all did the same.
# - **The shared expert** is one of three that work for a token, yet losing it costs less than losing the choice.
#
# ## 9. What it costs
#
# Stored against used, exactly from the configurations (lesson 08 counts every part):

# %%
print(f"{'':7}{'E':>4}{'K':>3}{'total':>20}{'active':>17}{'share':>8}   width of a dense rival")
for name in ("nano", "mini", "flash", "pro"):
    c = Config.preset(name)
    n = cost.params(c)
    active = f"{n['active']:17,}{n['active'] / n['total']:8.1%}"
    print(f"{name:7}{c.n_routed_experts:4}{c.n_activated_experts:3}{n['total']:20,}{active}"
          f"   {(c.n_activated_experts + 1) * c.moe_inter_dim:,}")
flash, pro = cost.params(Config.flash()), cost.params(Config.pro())
assert (flash["total"], flash["active"]) == (284_332_240_471, 13_270_101_591)
assert (pro["total"], pro["active"]) == (1_572_997_201_763, 48_852_402_019)
print("Flash and Pro: the report's 284B / 13B and 1.6T / 49B (section 4.2.1)")

# %% [markdown]
# (Parameters, without MTP blocks; "active" leaves out the embedding table.) The last column: K + 1 experts of width I side by side compute as much as one dense SwiGLU of width (K + 1) I. That is the fair rival, "dense at equal
# active size", which you trained above.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | routed experts E, used K, shared | 256, 6, 1 | 384, 6, 1 | report 4.2.1 |
# | width of an expert, model width | 2048, 4096 | 3072, 7168 | 4.2.1 |
# | `route_scale` | 1.5 | 2.5 | config.json |
# | layers that route by hash | 3 of 43 | 3 of 61 | 4.2.1 |
# | clamp of the SwiGLU | 10 | 10 | 4.2.3 |
# | bias step u, weight of the sequence-wise loss | 0.001, 0.0001 | the same | 4.2.2 |
# | experts stored as | FP4 | FP4 | config.json |
#
# **The report claims** that clamping and anticipatory routing stabilised training, "without compromising performance", and admits that why is open (4.2.3). It dropped V3's limit on the number of machines a token may visit (2.1).
# **Here we have shown** that the router, expert and layer are right, equal to `minids`; that a router can collapse and a bias cures it; that loads of hash layers follow from token frequencies; what lift says and does not say.
# **At this scale we cannot show** that more experts make a better model at equal cost, that hash layers help, or that anticipatory routing prevents spikes.
#
# ## Key points
# - The bias picks and never weighs. Weights are affinities, divided by the sum over the chosen, times the scale.
# - Clamp before the SiLU: the gate part from above, the linear part on both sides.
# - Sorted by expert, each expert runs once; the way back is the *inverse* of the sort, and weights are sorted like rows.
# - Hash layers fix the experts and still learn the weights. Their load follows the frequencies of tokens.
# - A collapsed router shows in its loads, not in the loss. The worst largest load over mean load is E / K.
# - The bias moves by u, whatever the excess, and has no gradient. The sequence-wise loss has one, and is kept slight.
# - Lift needs two controls: shuffled classes, and a fresh model.
#
# ## Questions to discuss
#
# <details><summary>1. Why not add the balance loss with a large weight, and drop the bias?</summary>
#
# Its gradient goes through the gate into the features, and asks for evenness rather than use: the larger the weight, the more it disturbs (Wang et al. measure this). *"A loss is needed because the bias does not learn"* is wrong: the bias need not learn, it has to
# follow. *"The bias alone is enough"* is nearly right; it evens out the sum over many sequences and says nothing about a single one.
# </details>
#
# <details><summary>2. Two experts are exact copies of each other. Will training ever tell them apart?</summary>
#
# Their gate rows differ, so they get different tokens, different gradients, and drift apart. If the gate rows were equal too, both would be in the top K for the same tokens, get the same gradients, and stay copies; only at the edge of the
# top K a tie lets one of them in, and then loads, biases and gradients part them. *"No, copies stay copies"* holds for neurons that see the same data; these do not.
# </details>
#
# <details><summary>3. "K = 6 of 256 experts work, so a batch needs only 2 % of the expert weights in memory." What is wrong?</summary>
#
# That holds for one token. A batch of a few hundred tokens touches nearly all experts in each layer. Sparse activation saves arithmetic, not storage. *"Then it saves nothing"* is the opposite mistake: arithmetic is what training at scale costs most.
# </details>
#
# <details><summary>4. Should one balance the load of a hash layer with a bias?</summary>
#
# There is nothing to bias: no top K. One could rewrite the table during training, but then an id's experts would change and what they learned about it would be lost. Balance the table beforehand, by frequencies (exercise 6), or live with it.
# </details>
#
# <details><summary>5. Your router's largest load over mean load is 1.05. Are the experts used well?</summary>
#
# Not necessarily: a router that draws at random is perfectly even and knows nothing. Even load is a condition, not a goal. Ask also whether choice matters (replace it by a random one and look at the loss).
# </details>
#
# ## Links
# - Dai et al., DeepSeekMoE: fine-grained and shared experts, [arXiv 2401.06066](https://arxiv.org/abs/2401.06066)
# - Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, [arXiv 2408.15664](https://arxiv.org/abs/2408.15664)
# - DeepSeek-V3 Technical Report, [arXiv 2412.19437](https://arxiv.org/abs/2412.19437), section 2.1.2: the router that V4 inherits
# - Roller et al., Hash Layers For Large Sparse Models, [arXiv 2106.04426](https://arxiv.org/abs/2106.04426)
# - Shazeer et al., Outrageously Large Neural Networks, [arXiv 1701.06538](https://arxiv.org/abs/1701.06538): the sparse layer, and the imbalance that feeds itself
# - In this repository: `minids/model/moe.py` (the layer), `minids/pretrain/anticipatory_routing.py`
