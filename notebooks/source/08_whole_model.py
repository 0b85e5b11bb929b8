# %% [markdown]
# # 08 The whole model
#
# **One screen of code puts the parts together, and one page of arithmetic turns a `config.json` into 284,332,240,471 parameters.**
#
# **After this you can**
# - write V4's forward pass from its parts, and prove that yours equals `minids` and `transformers`,
# - say which token the multi-token prediction (MTP) block is given and which it predicts, and catch an off-by-one with random tokens,
# - explain why a fresh model hides faults, and test so that it cannot,
# - predict the loss before the first training step, and how the residual streams behave over 43 layers,
# - compute total and active parameters of V4-Flash and V4-Pro from their configuration, to the last digit,
# - say where these parameters are, and how many bytes they take.
#
# *Time: 152 minutes, exercises included. The code itself runs in about half a minute.*
# *Before this: PyTorch modules. Lessons 02 to 07 open the parts that stay closed here; you can take this one first.*

# %%
import functools
import math
import tempfile
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import minids
import torch
import torch.nn.functional as F
from minids import Config, cost
from minids.learn import check, hint, versions
from minids.model import mhc
from minids.model.attention import Attention
from minids.model.moe import MoE
from minids.plain import attention, moe_forward, site_maps
from minids.show import style, whole
from minids.system import paths
from minids.weights import layout
from torch import nn

style.use()
versions()

# %% [markdown]
# ## A fault that nobody sees
#
# V4 keeps four copies of each token's state, the *residual streams*, and mixes them at every layer with a small square matrix (section 3 says how). Here are two runs of the same small
# model with the same weights. In the second run **every layer** mixes with the wrong matrix: it is transposed. The slip is easily made: the matrix is square, so both ways run.
#
# **Predict before you run:** by how much does the loss change?

# %% jupyter={"outputs_hidden": true}
def loss_of(logits):
    """The mean loss of predicting each next token of `ids` (below), in nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


def transposed_maps(*args, original=mhc.maps):
    """The maps of a site, the mixing matrix comb transposed."""
    pre, post, comb = original(*args)                   # comb: n n BT
    return pre, post, comb.transpose(0, 1)


torch.manual_seed(0)
model = minids.Model(Config.nano()).eval().requires_grad_(False)
ids = torch.randint(0, 2048, (4, 128), generator=torch.Generator().manual_seed(1))      # B T
right = model(ids)
with mock.patch.object(mhc, "maps", transposed_maps):
    wrong = model(ids)
print(f"loss: right {loss_of(right):.3f}, wrong {loss_of(wrong):.3f}")
print("largest difference of any logit below 0.0001:", bool((right - wrong).abs().max() < 1e-4))

# %% [markdown]
# Nothing. The model runs, its loss is as it should be, no logit moves by more than a ten-thousandth. Now the same two runs with **lively** weights:
# no norm weight is 1, no scale is small, no bias is 0, as training leaves them.

# %%
def lively(model, seed=0):
    """Give every parameter a value that matters. Returns the model."""
    rng = torch.Generator().manual_seed(seed)
    for name, t in model.state_dict().items():
        noise = torch.randn(t.shape, generator=rng)
        if name.endswith("norm.weight"):
            t.copy_(1 + 0.3 * noise)
        elif name.endswith(("scale", "base", "sink", "ape", "bias")):
            t.copy_(0.5 * noise)
        elif not name.endswith("tid2eid"):
            t.copy_(1.5 * t.shape[-1] ** -0.5 * noise)
    return model


living = lively(minids.Model(Config.nano()).eval().requires_grad_(False))
right = living(ids)
with mock.patch.object(mhc, "maps", transposed_maps):
    wrong = living(ids)
print(f"largest difference of a logit: {(right - wrong).abs().max():.1f}")

# %% [markdown]
# Now logits are off by whole units: with weights like these, and trained ones are like these, it is another model. You will see below *why* the fresh model could not show it,
# and find such a fault yourself. From here on we test with lively weights.
#
# ## 1. The map

# %% jupyter={"source_hidden": true}
style.show(whole.plot_pipeline(),
           "The path from token ids to logits through four residual streams, and one site of a "
           "block: read, layer, write, with the streams carried past the layer")

# %% [markdown]
# Each part in one sentence. Symbols: B sequences, T tokens, d model width, n = 4 streams, V vocabulary.
#
# | part | what it does | opened in |
# | --- | --- | --- |
# | `embed` | looks up one row of d numbers for each token id | here |
# | residual streams X | n copies of a token's state, B T n d, that layers read from and write to | here, 07 |
# | `maps` | computes from X the three small maps `pre`, `post`, `comb` of a site | 07 |
# | `RMSNorm` | scales a vector to mean square 1 | here |
# | `Attention` | lets a token look at the last 128 tokens and at compressed older ones | 02 - 05 |
# | `MoE` | sends a token through a shared expert and K of E routed ones (mixture of experts) | 06 |
# | mHC head | weighs the n streams together to one vector | here |
# | `head` | one row of d numbers for each vocabulary entry; products with it are the logits | here |
# | `mtp` | one more block that predicts the token after the next | here, 14 |
#
# mHC is short for *manifold-constrained hyper-connections*, the report's section 2.2. A *site* is a place where a layer reads from the streams and writes to
# them. A block has two: one for attention, one for the experts.
# New words are in the [glossary](GLOSSARY.md).
#
# ## 2. Two small functions
#
# ### RMS norm
#
# $$\mathrm{RMS}(x) = \frac{x}{\sqrt{\frac{1}{d}\sum_i x_i^2 + \varepsilon}} \cdot w$$
#
# By hand: x = (3, 4) has mean square (9 + 16) / 2 = 12.5, whose root is 3.536. So RMS(x) = (3, 4) / 3.536 = (0.849, 1.131).
#
# **Predict before you run:** what becomes of (300, 400)?

# %% jupyter={"outputs_hidden": true}
norm = nn.RMSNorm(2, eps=1e-6)
for x in ([3.0, 4.0], [300.0, 400.0], [0.003, 0.004]):
    print(x, "->", [round(v, 3) for v in norm(torch.tensor(x)).tolist()])

# %% [markdown]
# The same: a layer behind a norm sees the direction of its input, not its length. The third line differs a little: its mean square is 1.25e-5, only twelve times
# eps. That is what eps is for: it keeps a vector of almost nothing from being blown up.
#
# ### Exercise 1: RMS norm
# *Easy, 5 minutes.* Complete the function. Compute in float32, return x's own type.

# %%
def rms_norm(x, weight, eps):
    """x: ... d, any float type; weight: d, float32; eps: a number -> ... d, x's type."""
    ### BEGIN SOLUTION
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)
    ### END SOLUTION


# %%
rms_norm = check("whole.rms_norm", rms_norm)
x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
torch.testing.assert_close(rms_norm(x, living.norm.weight, 1e-6), living.norm(x))
print("equal to the last norm of minids.Model")

# %% [markdown]
# ### The gate's affinity, and a gradient that kills a training run
#
# A gate says how well an expert suits a token: $s = \sqrt{\mathrm{softplus}(x)} = \sqrt{\ln(1 + e^x)}$, where x is a product of the token with the
# expert's row (report 2.1; V3 had a sigmoid). **Predict before you run:** which of these inputs has a gradient that is not a number?

# %% jupyter={"outputs_hidden": true}
x = torch.tensor([2.0, 0.0, -20.0, -80.0, -120.0], requires_grad=True)
s = F.softplus(x).sqrt()
s.sum().backward()
for value, y, slope in zip(x.tolist(), s.tolist(), x.grad.tolist()):
    print(f"x {value:6.0f}   affinity {y:9.3g}   slope {slope:9.3g}")

# %% [markdown]
# At -120, softplus is smaller than any float32 and becomes exactly 0. The root's slope there is 1/0, softplus' own slope is 0, and infinity times 0 is
# not a number. One such value, anywhere in a batch, makes **every** gradient of the step nan, once gradients are summed or clipped by their norm.
#
# ### Exercise 2: an affinity with a finite gradient
# *Medium, 10 minutes.* First the plain function, then one with the same values whose gradient is finite for every x.

# %%
def sqrtsoftplus(x):
    """The affinity sqrt(softplus(x)). x: any shape, float32 -> the same shape."""
    ### BEGIN SOLUTION
    return F.softplus(x).sqrt()
    ### END SOLUTION


def affinity(x):
    """The values of sqrtsoftplus (to within 1e-18), with a finite gradient for every x."""
    ### BEGIN SOLUTION
    return F.softplus(x).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    ### END SOLUTION


def with_gradient(function):
    """A function that returns function(x) and its gradient."""
    @functools.wraps(function)
    def both(x):
        x = x.clone().requires_grad_()
        y = function(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]
    return both


# %%
sqrtsoftplus = check("whole.sqrtsoftplus", sqrtsoftplus)
value_and_gradient = check("whole.safe_affinity", with_gradient(affinity))
print("slope at -120:", value_and_gradient(torch.tensor([-120.0]))[1].item())

# %% [markdown]
# ## 3. A block: two sites
#
# At a site the layer $\mathcal{F}$ (attention, or the experts) **reads** one vector from the n streams, works on it, and **writes** its result back to all
# of them, while the streams themselves are mixed and **carried** past it:
#
# $$u = \sum_j \mathrm{pre}_j X_j \qquad f = \mathcal{F}(\mathrm{norm}(u)) \qquad X'_k = \mathrm{post}_k\, f + \sum_j \mathrm{comb}_{jk} X_j$$
#
# This is the report's equation (1), $X_{l+1} = B_l X_l + C_l \mathcal{F}_l(A_l X_l)$, with A = pre, C = post and **B = comb transposed**: the sum runs over
# the *first* index of comb. Read `comb[j, k]` as "how much of stream j goes to stream k".
#
# By hand, with three streams of a single number each:
#
# | | stream 0 | stream 1 | stream 2 |
# | --- | --- | --- | --- |
# | X | 2 | 5 | 11 |
# | pre | 0.5 | 0.5 | 0.5 |
# | post | 1 | 0 | 0 |
#
# comb sends stream 0 to 1, 1 to 2, and 2 to 0. The layer doubles what it reads. So u = (2 + 5 + 11) / 2 = 9 and f = 18.
#
# **Predict before you run:** what are the three streams afterwards? And what would the transposed comb give?

# %% jupyter={"outputs_hidden": true}
X = torch.tensor([2.0, 5.0, 11.0])
comb = torch.tensor([[0.0, 1, 0],      # stream 0 goes to 1
                     [0.0, 0, 1],      # stream 1 goes to 2
                     [1.0, 0, 0]])     # stream 2 goes to 0
post, f = torch.tensor([1.0, 0, 0]), 2 * (0.5 * X).sum()
print("right:", (post * f + comb.T @ X).tolist())
print("wrong:", (post * f + comb @ X).tolist())

# %% [markdown]
# Right: stream 2's 11 arrives in stream 0, where 18 is written on top: 29, 2, 5. The transposed matrix turns the round trip backwards. (With *two* streams you would
# not see it: a 2 x 2 matrix whose rows and columns all sum to 1 is symmetric. Tests with n = 2 cannot find this fault.)
#
# The next cell computes the three maps of a site from its parameters. Lesson 07 derives it; today it is a black box.

# %%
pre, post, comb = (m[0, 0]
                   for m in site_maps(living.layers[0],
                                      living.embed(ids)[:, :, None].repeat(1, 1, 4, 1), "attn"))
print("pre ", [round(v, 2) for v in pre.tolist()])
print("post", [round(v, 2) for v in post.tolist()])
print("comb", *[[round(v, 2) for v in row] for row in comb.tolist()], sep="\n    ")
print("rows sum to", [round(v, 2) for v in comb.sum(1).tolist()], "columns to",
      [round(v, 2) for v in comb.sum(0).tolist()])

# %% [markdown]
# pre lies between 0 and 1, post between 0 and 2; the rows and the columns of comb sum to 1, and it is not symmetric.
#
# ### Exercise 3: the site and the block
# *Medium, 10 minutes.* `site_maps(block, X, "attn")` gives the three maps of a site; `attention(block.attn, u)` and `moe_forward(block.ffn, u, ids)` are the two layers. Write the site as the equation reads, then the block: attention first, then the experts, each behind
# its norm. The second site works on what the first one wrote, its maps too.

# %%
def site(X, layer, pre, post, comb):
    """The streams after one site: B T n d.

    X: B T n d; layer: a function, B T d -> B T d (its norm included); pre, post: B T n; comb:
    B T n n.
    """
    ### BEGIN SOLUTION
    u = (pre[..., None] * X).sum(2)                             # B T d
    f = layer(u)                                                # B T d
    return post[..., None] * f[:, :, None] + comb.mT @ X        # B T n d
    ### END SOLUTION


def block_forward(block, X, ids):
    """One block. It has attn, attn_norm(u), ffn, ffn_norm(u). X: B T n d, ids: B T
    -> B T n d."""
    ### BEGIN SOLUTION
    X = site(X, lambda u: attention(block.attn, block.attn_norm(u)),
             *site_maps(block, X, "attn"))
    return site(X, lambda u: moe_forward(block.ffn, block.ffn_norm(u), ids),
                *site_maps(block, X, "ffn"))
    ### END SOLUTION


# %%
site = check("whole.site", site)
block_forward = check("whole.block", block_forward)

# %%
X = torch.randn(2, 40, 4, 128, generator=torch.Generator().manual_seed(3))      # B T n d
some = ids[:2, :40]                                                             # B T
for i, block in enumerate(living.layers):
    torch.testing.assert_close(block_forward(block, X, some), block(X, some), atol=1e-4,
                               rtol=1e-4)
    print(f"layer {i}: compression {living.config.compress_ratios[i]:2}, by token id "
          f"{living.config.is_hash(i)}: equal")

# %% [markdown]
# One `block_forward` serves all kinds of layer: window only (0), compressed sparse attention (CSA, 4) and heavily compressed attention (HCA, here 16; 128 in V4).
#
# ## 4. From ids to logits
#
# $$X^{(0)}_j = \mathrm{embed}(\mathrm{ids}) \ \text{for all } j \qquad X^{(l+1)} = \mathrm{block}_l(X^{(l)}) \qquad
#   y = \sum_j g_j X^{(L)}_j \qquad \mathrm{logits} = W_\mathrm{head}\,\mathrm{RMS}(y)$$
#
# The weighted sum is the mHC head. Its gates come from the streams, all n d numbers of a token under one norm, and a learned matrix `fn`:
#
# $$g = \sigma(\mathrm{scale} \cdot \mathrm{fn}\, \mathrm{RMS}(\mathrm{flatten}(X)) + \mathrm{base}) + \varepsilon$$
#
# Each gate is a sigmoid of its own: they need not sum to 1.

# %%
def gates(model, X):
    """The gates of the mHC head from the streams X: B T n d -> B T n."""
    x = X.flatten(2)                                                                    # B T nd
    # B T n
    a = rms_norm(x, torch.ones(x.shape[-1]), model.config.norm_eps) @ model.hc_head_fn.T
    return torch.sigmoid(a * model.hc_head_scale + model.hc_head_base) + model.config.hc_eps


print("fresh: ", [round(g, 2) for g in gates(model, model.features(ids))[0, 0].tolist()])
print("lively:", [round(g, 2) for g in gates(living, living.features(ids))[0, 0].tolist()])

# %% [markdown]
# The fresh model takes the mean of its streams, the lively one has preferences.
#
# ### Exercise 4: the forward pass
# *Medium, 10 minutes.* Use `block_forward`, `gates` and `rms_norm`.

# %%
def model_forward(model, ids):
    """The logits, B T V, of ids, B T.

    The model has embed, layers, norm.weight, head.weight; its config says hc_mult (n) and
    norm_eps.
    """
    ### BEGIN SOLUTION
    X = model.embed(ids)[:, :, None].repeat(1, 1, model.config.hc_mult, 1)  # B T n d
    for block in model.layers:
        X = block_forward(block, X, ids)
    y = (gates(model, X)[..., None] * X).sum(2)  # B T d
    return rms_norm(y, model.norm.weight, model.config.norm_eps) @ model.head.weight.T  # B T V
    ### END SOLUTION


# %%
model_forward = check("whole.forward", model_forward)
torch.testing.assert_close(model_forward(living, ids), living(ids), atol=1e-4, rtol=1e-4)
print("equal to minids.Model on", ids.numel(), "tokens, every logit")

# %% [markdown]
# ### The names are the checkpoint's names
#
# A module's attributes name its tensors. So if you name the attributes as DeepSeek does, a released file needs no translation. Here is the whole network as classes; the
# parts are `minids`', the assembly is yours.

# %%
class Block(nn.Module):
    def __init__(self, config, ratio, is_hash):
        super().__init__()
        self.config, n = config, config.hc_mult
        self.attn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config, ratio)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = MoE(config, is_hash)
        for at in ("attn", "ffn"):
            for name, shape in (("fn", ((2 + n) * n, n * config.dim)), ("base", ((2 + n) * n,)),
                                ("scale", (3,))):
                setattr(self, f"hc_{at}_{name}", nn.Parameter(torch.empty(shape)))

# %%
class WholeModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, n, d = config, config.hc_mult, config.dim
        self.embed = nn.Embedding(config.vocab_size, d)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        kinds = [(config.compress_ratios[i], config.is_hash(i)) for i in range(config.n_layers)]
        self.layers = nn.ModuleList(Block(config, ratio, is_hash) for ratio, is_hash in kinds)
        self.norm = nn.RMSNorm(d, eps=config.norm_eps)
        for name, shape in (("fn", (n, n * d)), ("base", (n,)), ("scale", (1,))):
            setattr(self, f"hc_head_{name}", nn.Parameter(torch.empty(shape)))

# %%
mine = WholeModel(living.config).requires_grad_(False)
weights = {name: t for name, t in living.state_dict().items() if not name.startswith("mtp.")}
print(mine.load_state_dict(weights, strict=True))
torch.testing.assert_close(model_forward(mine, ids), living(ids), atol=1e-4, rtol=1e-4)
assert set(living.state_dict()) == set(layout.tensors(living.config))
print(f"{len(weights)} tensors, for example:", *list(weights)[1:4], *list(weights)[-3:],
      sep="\n    ")

# %% [markdown]
# `minids.weights.layout.tensors` lists the tensors of a released checkpoint. The assertion says that `minids.Model` has exactly these names, in V4's format.
#
# ### The independent judge
#
# You and `minids` could share a misunderstanding. `transformers` has an implementation of its own, `DeepseekV4ForCausalLM`. So: save the lively model as a checkpoint, let
# `transformers` open the folder, and compare.

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


theirs = judged(living, ids)
if theirs is None:
    print("transformers is not installed here: pip install transformers, then run this cell "
          "again")
else:
    torch.testing.assert_close(model_forward(living, ids), theirs, atol=1e-4, rtol=1e-4)
    print("your forward pass equals transformers' DeepseekV4ForCausalLM, every logit")

# %% [markdown]
# ## 5. Before the first step: what a fresh model looks like
#
# ### Its loss, by hand
#
# The last norm makes $|y|^2 \approx d$. With head weights of deviation 0.02 a logit then has deviation $\sigma = 0.02 \sqrt{d}$: for d = 128, 0.226. A guess spread
# evenly over V words costs $\ln V$; random logits cost about $\sigma^2 / 2$ more. So the loss should be near
# $\ln 2048 + 0.226^2 / 2 = 7.625 + 0.026 = 7.650$.

# %%
losses = []
for seed in range(5):
    torch.manual_seed(seed)
    with torch.no_grad():
        losses.append(loss_of(minids.Model(Config.nano()).eval()(ids)))
mean = sum(losses) / 5
print("ln V           ", round(math.log(2048), 2))
print("by hand        ", round(math.log(2048) + (0.02 * 128**0.5) ** 2 / 2, 2))
print(f"five models     {mean:.2f}, from {min(losses):.2f} to {max(losses):.2f}")

# %% [markdown]
# A first loss far above ln V means a model that is sure of nonsense: look for a missing norm, or weights too large. The rule depends on the width: at Flash's d = 4096 a deviation of
# 0.02 would give $\sigma = 1.28$ and a loss 0.82 above ln V. DeepSeek-V3 used 0.006 (arXiv 2412.19437, section 4.2); the V4 report does not state its own.
#
# ### Its streams
#
# All n streams start as copies. The report says that the gating factors (our `scale`) begin small (2.2), and the paper on mHC takes 0.01; the rest is `minids`' own choice: `pre` reads mostly one stream,
# `post` is near 1 for all streams, `comb` comes from a softmax over a matrix with 4 on its diagonal and 0 elsewhere.
#
# By hand: that softmax gives $e^4 / (e^4 + 3) = 0.948$ on the diagonal and 0.017 beside it. A *difference* between streams shrinks by 0.948 - 0.017 = 0.931 at each
# site, their mean stays. Two sites a block, 43 blocks: $0.931^{86} = 0.002$. (The figure will end a little above: layers write small differences.)
#
# Now sabotage. We build a narrow model of Flash's depth, 43 blocks, and take parts away. Each model walks twice: once from four copies, as always, and once from four *different* streams, to
# follow their differences.
#
# **Predict before you run.** Which of these shrinks the streams, which makes them one at once, which keeps them apart for ever, and which does nothing?
# 1. `post` without its factor 2,
# 2. `comb`'s base 0 instead of 4 on the diagonal,
# 3. all scales 1 instead of 0.01,
# 4. `comb` transposed (the fault of the beginning).

# %%
def altered_site(change):
    """`site` with a fault."""
    if change == "transposed":
        return lambda X, layer, pre, post, comb: site(X, layer, pre, post, comb.mT)
    if change == "post / 2":
        return lambda X, layer, pre, post, comb: site(X, layer, pre, post / 2, comb)
    return site


def altered_block(block, X, ids, change=None):
    """`block_forward` with a fault at its sites, or with one norm used twice ("wrong norm")."""
    at = altered_site(change)
    second = block.attn_norm if change == "wrong norm" else block.ffn_norm
    X = at(X, lambda u: block.attn(block.attn_norm(u)), *site_maps(block, X, "attn"))
    return at(X, lambda u: block.ffn(second(u), ids), *site_maps(block, X, "ffn"))


# %%
DEEP = Config.nano().replace(n_layers=43, compress_ratios=(0, 0) + (4, 16) * 20 + (4, 0),
                             dim=64, vocab_size=256,
                             n_routed_experts=4, moe_inter_dim=32)


def deep_model(seed, change=None):
    """A fresh model of 43 blocks; `change` may be "comb 0" or "scale 1"."""
    torch.manual_seed(seed)
    model = minids.Model(DEEP).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if change == "scale 1" and name.endswith(("attn_scale", "ffn_scale")):
            p.fill_(1.0)
        if change == "comb 0" and name.endswith(("attn_base", "ffn_base")):
            p[8:] = 0.0  # after pre and post: comb's 16
    return model


# %%
def spread(X):
    """How far the streams are from their mean, RMS. X: B T n d."""
    return (X - X.mean(2, keepdim=True)).square().mean().sqrt().item()


def walk(model, X, ids, change=None):
    """RMS of the streams and spread between them, after each block."""
    sizes, spreads = [], []
    for block in model.layers:
        X = altered_block(block, X, ids, change)
        sizes.append(X.square().mean().sqrt().item())
        spreads.append(spread(X))
    return sizes, spreads


# %% jupyter={"outputs_hidden": true}
CHANGES = {"as initialised": None, "post without the 2": "post / 2", "comb base 0": "comb 0",
           "scales 1": "scale 1",
           "comb transposed": "transposed"}
short = ids[:2, :32] % 256                                                          # B T
sizes, spreads, ends = {}, {}, {}
for name, change in CHANGES.items():
    ends[name] = []
    for seed in range(3):
        deep = deep_model(seed, change)
        copies = deep.embed(short)[:, :, None].repeat(1, 1, 4, 1)                   # B T n d
        ends[name].append(walk(deep, copies, short, change)[0][-1])
    different = (copies + 0.02
                 * torch.randn(copies.shape, generator=torch.Generator().manual_seed(4)))
    sizes[name] = walk(deep, copies, short, change)[0]
    spreads[name] = [s / spread(different) for s in walk(deep, different, short, change)[1]]
for name, values in ends.items():
    print(f"{name:20} RMS after 43 blocks: {min(values):.2f} to {max(values):.2f} (three "
          "seeds)")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
eigenvalue = (math.exp(4) - 1) / (math.exp(4) + 3)
style.show(whole.plot_depth(sizes, spreads, [eigenvalue ** (2 * i) for i in range(1, 44)]),
           "Left: the streams' size over 43 blocks; only the line without the factor 2 "
           "is apart. Right: differences between streams fall along the line computed by hand; "
           "with comb base 0 they vanish in the first block; with scales 1 they stay")

# %% jupyter={"outputs_hidden": true}
half, control = (max(abs(a - b) / a for a, b in zip(sizes["as initialised"], sizes[name]))
                 for name in ("post without the 2", "comb transposed"))
assert half > 0.4 and control < 1e-3
assert (spreads["comb base 0"][0] < 0.05
        and abs(spreads["as initialised"][9] / eigenvalue**20 - 1) < 0.1)
assert spreads["as initialised"][-1] < 0.05 < spreads["scales 1"][-1]
print("without the 2 the streams change by more than 40 %; transposed by less than 0.1 %")

# %% [markdown]
# - **The factor 2** is what makes a fresh `post` equal $2\sigma(0) = 1$: layers write their whole output, as in a plain residual network. Without it they write half.
# - **comb with base 0** averages the streams away at the first site: four streams, one content. The left panel cannot see it, since copies do not care how they are averaged.
# - **Scales of 1** leave the sizes alone. But now `post` differs from stream to stream and token to token, so the layers keep writing differences: the streams never become one.
# - **The transposed comb** is our negative control, and the point: nothing moves. Rows and columns of comb both sum to 1, so *equal* streams come out the same whichever way it stands. And
#   a base of "4 on the diagonal" is symmetric. Only training makes streams differ and comb lopsided.
#
# None of this says which initialisation *trains* best: that takes training runs (lesson 10) and at V4's scale nobody outside can repeat them.
#
# ### Which test sees which fault?
#
# Three tests that people use: the loss of a fresh model, the logits of a fresh model against a reference, the logits with lively weights against a reference.

# %%
def faulty_logits(model, ids, change):
    """Logits with one fault."""
    X = model.embed(ids)[:, :, None].repeat(1, 1, 4, 1)                             # B T n d
    for block in model.layers:
        X = altered_block(block, X, ids, change)
    if change != "no last norm":
        return model.logits(X)
    return (gates(model, X)[..., None] * X).sum(2) @ model.head.weight.T


FAULTS = {"none (control)": None, "comb transposed": "transposed",
          "attn_norm used twice": "wrong norm",
          "post without the 2": "post / 2", "last norm missing": "no last norm"}
table = []
for change in FAULTS.values():
    off = [faulty_logits(m, ids, change) for m in (model, living)]
    relative = [((a - m(ids)).norm() / a.norm()).item() for a, m in zip(off, (model, living))]
    table.append([abs(loss_of(off[0]) - loss_of(model(ids))), *relative])

# %% jupyter={"source_hidden": true}
bounds = [0.03, 1e-4, 1e-4]
tests = ["loss, fresh\n(change)", "logits, fresh\n(relative)", "logits, lively\n(relative)"]
style.show(whole.plot_faults(list(FAULTS), tests, table, bounds),
           "Faults in rows, tests in columns: the fresh loss sees no fault, fresh logits see "
           "two of four, lively logits see all four; the control is clean")

# %%
seen = [[value > bound for value, bound in zip(line, bounds)] for line in table]
assert (seen[0] == [False] * 3 and not any(line[0] for line in seen)
        and all(line[2] for line in seen[1:]))
print("faults seen: fresh loss 0 of 4, fresh logits", sum(line[1] for line in seen[1:]),
      "of 4, lively logits 4 of 4")

# %% [markdown]
# (A change of the loss counts as seen above 0.03: fresh models of ten seeds lie between 7.638 and 7.664 on this batch. A change of logits counts above 1e-4, well above float32 rounding.)
# Even a missing last norm hides from the loss: without it the logits are tiny, and the loss falls by the 0.026 that random logits cost, to ln V. Swapped norms hide because all norm weights start at 1.
# **A fresh model is the worst test there is; give every parameter a value that matters.**
#
# ### Exercise 5: find the faults
# *Hard, 15 minutes.* A colleague wrote this block. Training starts well, the loss falls. But with released weights it fails. There are **two** faults, both hidden in a
# fresh model. Find them by comparing with yours step by step, on a block of the lively model, then write the repaired version. `hint("whole.debug")` helps.

# %%
def colleagues_block(block, X, ids):
    """X: B T n d, ids: B T -> B T n d. Two faults."""
    for at, layer in (("attn", lambda u: attention(block.attn, u)),
                      ("ffn", lambda u: moe_forward(block.ffn, u, ids))):
        pre, post, comb = site_maps(block, X, at)
        u = torch.einsum("btn,btnd->btd", pre, X)
        f = layer(block.attn_norm(u))
        carried = torch.einsum("btjk,btkd->btjd", comb, X)
        X = carried + torch.einsum("btn,btd->btnd", post, f)
    return X


X = torch.randn(2, 40, 4, 128, generator=torch.Generator().manual_seed(3))
for name, m in (("fresh", model), ("lively", living)):
    start = m.embed(some)[:, :, None].repeat(1, 1, 4, 1) if name == "fresh" else X
    theirs = colleagues_block(m.layers[2], start, some)
    apart = (theirs - block_forward(m.layers[2], start, some)).abs().max()
    print(f"{name:7} the two blocks differ by more than 0.0001: {bool(apart > 1e-4)}")


# %%
def repaired_block(block, X, ids):
    """Your repaired version. X: B T n d, ids: B T -> B T n d."""
    ### BEGIN SOLUTION
    for at, layer, norm in (("attn", lambda u: attention(block.attn, u), block.attn_norm),
                            ("ffn", lambda u: moe_forward(block.ffn, u, ids), block.ffn_norm)):
        pre, post, comb = site_maps(block, X, at)
        u = torch.einsum("btn,btnd->btd", pre, X)
        f = layer(norm(u))                                  # the site's own norm
        carried = torch.einsum("btjk,btjd->btkd", comb, X)  # summed over j, the first index
        X = carried + torch.einsum("btn,btd->btnd", post, f)
    return X
    ### END SOLUTION


# %%
repaired_block = check("whole.debug", repaired_block)

# %% [markdown]
# ## 6. Multi-token prediction: which token from which?
#
# V4 trains one more block that predicts the token *after the next* (report 2.1, as in DeepSeek-V3). At position t it takes the streams X (which know tokens 0 to t) and the embedding e
# of the token at t + 1:
#
# $$X^{(0)}_j = W_e\,\mathrm{RMS}(e_{t+1}) + W_h\,\mathrm{RMS}(X_{t,j}) \quad\rightarrow\quad \text{a whole block} \quad\rightarrow\quad \text{token } t + 2$$
#
# Its block is like the others (window-only attention, routing by score). It has its own mHC head and last norm; embedding and output matrix are the model's.

# %% jupyter={"source_hidden": true}
style.show(whole.plot_mtp_alignment(),
           "At position t = 1 the blocks have read 'In the' and predict 'beginning'; the MTP "
           "block takes their streams and the embedding of 'beginning', and predicts 'God'")

# %% [markdown]
# **Predict before you run.** We change the token at position 5 of 8. Rows are positions t. Which is the first row of the *model's* logits that changes, and which is the first of
# the *MTP block's*?

# %% jupyter={"outputs_hidden": true}
eight, changed = ids[:1, :8], ids[:1, :8].clone()                   # 1 T
changed[0, 5] = (changed[0, 5] + 1) % 2048


def rows(ids):
    """Logits of the model, and of its MTP block: row t uses the streams at t and the token
    at t + 1."""
    X = living.features(ids)                                        # 1 T n d
    return living.logits(X), living.mtp_logits(X[:, :-1], ids[:, 1:])


for name, a, b in zip(("model", "MTP"), rows(eight), rows(changed)):
    print(f"{name:5} rows that change:",
          [t for t in range(a.shape[1]) if (a - b)[0, t].abs().max() > 1e-3])

# %% [markdown]
# The model's row 5 is the first that has read token 5. The MTP block's row **4** has it as its "next token". Row 4 predicts token 6, so nothing has leaked. Had row 3 changed, the block
# would see the token it shall predict.
#
# ### Exercise 6: the MTP loss
# *Medium, 10 minutes.* Line up streams, next tokens and targets, and mind the end: the last two positions have no token two places on.

# %%
def mtp_loss(model, ids):
    """The mean cross-entropy of the MTP block over all positions that have a target. ids: B T
    -> one number.

    model.features(ids): B T n d; model.mtp_logits(X, next_ids): B T' V from X: B T' n d and
    next_ids: B T'.
    """
    ### BEGIN SOLUTION
    X = model.features(ids)[:, :-2]             # B T-2 n d, the streams at t
    logits = model.mtp_logits(X, ids[:, 1:-1])  # B T-2 V, given the tokens at t + 1
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())
    ### END SOLUTION


# %%
mtp_loss = check("whole.mtp_loss", mtp_loss)

# %% [markdown]
# ### A test with random tokens
#
# Nothing in a stream of random tokens can be predicted. So a loss **below ln V on random tokens proves a leak**. We train the MTP block for 40 steps on fresh random tokens, with three alignments.
#
# **Predict before you run:** which of them falls?
# - given t + 1, target t + 2 (right),
# - given t + 1, target t + 1 (off by one in the target),
# - given t, target t + 2 (off by one in the input).

# %%
SMALL = Config.nano().replace(vocab_size=64, dim=64, n_layers=1, compress_ratios=(0, 0),
                              n_routed_experts=4,
                              moe_inter_dim=32)


def train_mtp(given, target, steps=40):
    """Losses of training an MTP block and the head on random tokens."""
    torch.manual_seed(0)
    small, rng, losses = minids.Model(SMALL), torch.Generator().manual_seed(2), []
    optimiser = torch.optim.AdamW([*small.mtp.parameters(), small.head.weight], lr=3e-3)
    for _ in range(steps):
        ids = torch.randint(0, 64, (8, 26), generator=rng)                          # B T
        with torch.no_grad():
            X = small.features(ids)                                                 # B T n d
        logits = small.mtp_logits(X[:, :24], ids[:, given:given + 24])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, target:target + 24].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
runs = {"given t + 1, target t + 2 (right)": train_mtp(1, 2),
        "given t + 1, target t + 1": train_mtp(1, 1),
        "given t, target t + 2": train_mtp(0, 2)}
style.show(whole.plot_leak(runs, math.log(64)),
           "MTP loss on random tokens: it falls far below ln V only where the target is the "
           "token that was given; the other two lines lie on each other, one pale and thick, "
           "one thin and dashed")

# %% jupyter={"outputs_hidden": true}
end = [sum(losses[-5:]) / 5 for losses in runs.values()]
assert end[0] > math.log(64) - 0.1 and end[1] < 2.0 and end[2] > math.log(64) - 0.1
style.say("ln 64 = 4.16. Right alignment: stays there. Target t + 1: falls below 2. Given t: "
          "stays there.")

# %% [markdown]
# The second line copies. A loss that falls too well is a warning, not a success. The third line shows the limit of this test: an alignment that gives *less* than it should leaks nothing, and
# stays hidden. The perturbation test above finds it (its first changed row would be 5), and so does a comparison with the reference.
#
# In training the MTP loss is added with weight 0.3, and 0.1 from the start of the learning-rate decay (report 4.2.2). What the block is good for, drafting tokens to generate faster, is lesson 14.
#
# ## 7. Count the parameters
#
# Here is one block's list of tensors, of a CSA layer, with its experts folded into one line each. (An HCA layer lacks the indexer, a window-only layer the compressor too.)

# %%
for name, (_, shape) in layout.tensors(Config.nano()).items():
    before, _, tensor = name.partition("layers.1.")                # layer 1 has ratio 4
    if tensor and not before and (".experts." not in name or ".experts.0." in name):
        times = "8 times " if ".experts.0." in name else ""
        print(f"{tensor.replace('experts.0.', 'experts.*.'):38} "
              f"{times}{' x '.join(map(str, shape))}")

# %% [markdown]
# By hand for Flash (d = 4096, expert width I = 2048): an expert has three matrices, $3 \cdot 4096 \cdot 2048 = 25{,}165{,}824$ numbers. A layer has 256 routed experts, the model 43 layers:
#
# $$43 \cdot 256 \cdot 25{,}165{,}824 = 277{,}025{,}390{,}592$$
#
# Of 284 billion. **All the rest, attention and streams and head, is in the remaining 7.**
#
# ### Exercise 7: count, exactly
# *Hard, 15 minutes.* Embedding, attention, norms and routers are done. Add routed and shared experts, the two mHC sites of a block, the compressors and the indexers.
# The shapes above tell all: nano has d = 128, n = 4, c = 32 (`head_dim`), I = 64 (`moe_inter_dim`), 16 indexer heads (`index_n_heads`) of width 16 (`index_head_dim`). (The 64 columns of both `wq_b` are `q_lora_rank`, not I.) With `ratio` 4 a compressor is
# twice as wide (f = 2), and an indexer comes with a narrower compressor of its own. An HCA layer (any other `ratio` above 0) has f = 1 and no indexer.

# %%
def compressor(d, ratio, width):
    """Numbers in wkv, wgate, ape and norm of one compressor."""
    f = 2 if ratio == 4 else 1
    return 2 * (f * width * d) + ratio * f * width + width


# %%
def count(config):
    """{part: parameters} without the MTP block, with the names below. The tables tid2eid do
    not count."""
    c, d, n, E = config, config.dim, config.hc_mult, config.n_routed_experts
    heads, ranks = c.n_heads * c.head_dim, c.o_groups * c.o_lora_rank
    parts = dict.fromkeys(("embedding", "attention", "compressors", "indexers", "routers",
                           "routed experts", "shared experts",
                           "hyper-connections", "norms", "head"), 0)
    parts["embedding"] = parts["head"] = c.vocab_size * d
    # the last norm, the mHC head
    parts["norms"], parts["hyper-connections"] = d, n * n * d + n + 1
    for i in range(c.n_layers):
        ratio = c.compress_ratios[i]
        # wq_a, wq_b, wkv, attn_sink
        parts["attention"] += c.q_lora_rank * (d + heads) + c.head_dim * d + c.n_heads
        parts["attention"] += ranks * heads // c.o_groups + d * ranks  # wo_a, wo_b
        parts["norms"] += 2 * d + c.q_lora_rank + c.head_dim
        parts["routers"] += E * d + (0 if c.is_hash(i) else E)
        ### BEGIN SOLUTION
        parts["routed experts"] += E * 3 * d * c.moe_inter_dim
        parts["shared experts"] += 3 * d * c.moe_inter_dim
        parts["hyper-connections"] += 2 * ((2 + n) * n * n * d + (2 + n) * n + 3)
        if ratio:
            parts["compressors"] += compressor(d, ratio, c.head_dim)
        if ratio == 4:
            matrices = c.index_n_heads * (c.index_head_dim * c.q_lora_rank + d)
            parts["indexers"] += compressor(d, ratio, c.index_head_dim) + matrices
        ### END SOLUTION
    return parts


# %%
count = check("whole.count", count)

# %% [markdown]
# And what works for one token: everything, but only K of the E routed experts, and not the embedding table, of which a token reads a single row.

# %%
def active(config):
    """Parameters that one token uses, without MTP and the embedding table. `count(config)`
    may help."""
    ### BEGIN SOLUTION
    parts, E = count(config), config.n_routed_experts
    idle = parts["routed experts"] * (E - config.n_activated_experts) // E
    return sum(parts.values()) - idle - parts["embedding"]
    ### END SOLUTION


# %%
active = check("whole.active", active)

# %% [markdown]
# Now from V4's `config.json` to the number on the cover.

# %%
flash, pro = (Config.from_json(paths.data("v4", f"{name}.config.json"))
              for name in ("flash", "pro"))
parts = {"Flash": count(flash), "Pro": count(pro)}
print(f"{'':18}{'Flash':>18}{'Pro':>21}")
for part in parts["Flash"]:
    print(f"{part:18}{parts['Flash'][part]:18,}{parts['Pro'][part]:21,}")
totals = [sum(counts.values()) for counts in parts.values()]
used = [active(flash), active(pro)]
print(f"{'total':18}{totals[0]:18,}{totals[1]:21,}\n{'active':18}{used[0]:18,}{used[1]:21,}")
print(f"{'active / total':18}{used[0] / totals[0]:18.1%}{used[1] / totals[1]:21.1%}")

# %%
assert (totals == [284_332_240_471, 1_572_997_201_763]
        and used == [13_270_101_591, 48_852_402_019])
assert [cost.params(c) for c in (flash, pro)] == [
    {"total": total, "active": part,
     "mtp": mtp} for total, part, mtp in zip(totals, used, (6_610_048_891, 25_840_145_979))]
style.say("to the last digit, and equal to minids.cost. The report says 284B / 13B and 1.6T / "
          "49B (section 4.2.1).")

# %% jupyter={"source_hidden": true}
def working(config, counts):
    routed = counts["routed experts"] * config.n_activated_experts // config.n_routed_experts
    return counts | {"routed experts": routed, "embedding": 0}


bars = {"Flash, total": parts["Flash"], "Flash, active": working(flash, parts["Flash"]),
        "Pro, total": parts["Pro"], "Pro, active": working(pro, parts["Pro"])}
style.show(
    whole.plot_parameters(bars),
    "Routed experts hold 97 percent of Flash's and 98 percent of Pro's parameters, but only "
    "half of those that work for one token; attention is the next largest part of these")

# %% [markdown]
# **What "active" leaves out.** The embedding table (one row is read). The MTP block (6.6 billion more in Flash, 25.8 in Pro; only for training and drafts). The arithmetic of attention over the context, which
# has no parameters and grows with the context (lesson 05). And memory: a batch of many tokens touches *all* experts, so all 284 billion must be at hand.
#
# ### On disk
#
# The released files keep routed experts in FP4 (4 bits, and an 8-bit scale for each 32), most other matrices in FP8, the rest in BF16 or float32 (lesson 11).
# **Predict before you run:** how many bits does Flash take per parameter?

# %% jupyter={"outputs_hidden": true}
for name, config in (("Flash", flash), ("Pro", pro)):
    size, numbers = layout.disk_bytes(config), cost.params(config)
    print(f"{name:6}{len(layout.inventory(config)):8,} tensors {size:16,} "
          f"bytes in {len(layout.shards(config))} files, "
          f"{8 * size / (numbers['total'] + numbers['mtp']):.2f} bits per parameter (MTP "
          "included)")

# %% [markdown]
# FP4 with its scales is 4.25 bits. Since 97 % of the numbers are experts, the few in wider formats add little.
#
# ## 8. Play: what makes a model large, what makes it slow?
#
# The sliders start at Flash. **Find out:** which one slider doubles the total and leaves the active parameters almost alone? Which one changes the active parameters and leaves the total exactly as it is?
# (K is the number of routed experts that a token uses. All other sizes stay Flash's; the bytes are those of all numbers in one format, scales included.)

# %%
def draw(layers, dim, experts, active_experts):
    config = whole.scaled(layers, dim, experts, active_experts)
    title = f"{layers} layers, width {dim}, {experts} experts, {active_experts} for a token"
    return whole.plot_sizes(sum(count(config).values()), active(config), title)


box = style.slider_image(
    draw, "Total and active parameters, and the bytes they take in FP4, FP8 and BF16",
    layers=[8, 16, 32, 43, 61], dim=[1024, 2048, 4096, 7168],
    experts=[64, 128, 256, 384, 512], active_experts=[1, 2, 4, 6, 8, 16],
    start={"layers": 43, "dim": 4096, "experts": 256, "active_experts": 6})
box

# %%
box.peek(experts=512)
more, wider = whole.scaled(43, 4096, 512, 6), whole.scaled(43, 4096, 256, 16)
for name, config in (("512 experts:", more), ("K = 16:", wider)):
    print(f"{name:14}total x {sum(count(config).values()) / totals[0]:.2f}, active x "
          f"{active(config) / used[0]:.2f}")

# %% [markdown]
# The number of experts makes the model larger and hardly slower (the gates get more rows). K makes it slower and not larger. This freedom is what a mixture of experts is for. The same as a figure:

# %% jupyter={"source_hidden": true}
def point(experts, picks):
    config = whole.scaled(43, 4096, experts, picks)
    return sum(count(config).values()), active(config)


by_experts = {e: point(e, 6) for e in (64, 128, 256, 384, 512)}
by_picks = {k: point(256, k) for k in (1, 2, 4, 6, 8, 16)}
style.show(
    whole.plot_sweeps(by_experts, by_picks),
    "Left: with more experts the total rises nearly in proportion, the active parameters "
    "hardly. Right: with more experts per token only the active rise. All axes are logarithmic")

# %% [markdown]
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | layers, width d | 43, 4096 | 61, 7168 | report 4.2.1 |
# | first two layers | window only | HCA | 4.2.1 |
# | routed experts, used, width | 256, 6, 2048 | 384, 6, 3072 | 4.2.1 |
# | layers that route by token id | 3 | 3 | 4.2.1 |
# | streams n, rounds of rows and columns for comb | 4, 20 | 4, 20 | 4.2.1 |
# | MTP blocks, loss weight | 1, 0.3 then 0.1 | 1, 0.3 then 0.1 | 4.2.1, 4.2.2 |
# | parameters, active | 284B, 13B | 1.6T, 49B | 4.2.1; exact counts above |
#
# **The report claims** that the constraint on comb keeps signals stable over depth, where unconstrained hyper-connections "frequently exhibit numerical instability" (2.2). **Here we have shown** that the assembly is right (equal to two
# other implementations), how many numbers it has, and how a fresh model behaves. **At this scale we cannot show** that four streams or MTP make V4 better: that takes training at size.
#
# ## Key points
# - A block is two sites; a site reads with pre, writes with post, and carries the streams on with comb *transposed*.
# - Streams start as copies and comb's rows and columns sum to 1: so a fresh model hides a transposed comb, and norm weights of 1 hide a swapped norm. Test with lively weights and an independent judge.
# - A fresh model's loss is ln V plus half the variance of its logits. That is necessary, and proves little.
# - MTP: streams at t and token t + 1 in, token t + 2 out. Loss below ln V on random tokens means a leak.
# - 97 % of Flash's parameters are routed experts. One token uses 4.7 % of all parameters, in Pro 3.1 %.
# - Names are the interface: the attributes of the modules are the tensors' names in the released files.
#
# ## Questions to discuss
#
# <details><summary>1. Suppose you train from scratch with comb transposed in every layer. Does the model get worse?</summary>
#
# Very likely not. The transpose of a matrix whose rows and columns sum to 1 has the same property, so training simply learns the other one; the model can express the same things (nearly: dividing rows and columns by their sums in turn, which is *Sinkhorn's* method, stops after 20 rounds, and the last step
# is the columns'). *"It trains badly"* is therefore wrong, and *"it trains well, so it is right"* is the dangerous conclusion. The fault matters when weights cross from one implementation to another.
# </details>
#
# <details><summary>2. "Flash has 13B active parameters, so it is as fast and as small as a dense 13B model." Which half is wrong?</summary>
#
# Both, in part. *Small*: wrong, all 284B must be stored, and a batch touches most of them. *Fast*: about right for the matrix products of one token at short context; but weights must be read from memory, and attention over the context comes on top.
# </details>
#
# <details><summary>3. Why does the MTP block get the embedding of token t + 1, when it could predict t + 2 from the streams alone?</summary>
#
# It could, but that asks for more than one can know: the token at t + 2 depends on which token t + 1 turned out to be. In training that token is known; in drafting it is the one just sampled. *"To save parameters"* is wrong: the extra matrix `e_proj` costs d x d.
# *"Because otherwise it would leak"* is the wrong way round: giving more is what can leak.
# </details>
#
# <details><summary>4. Your new implementation starts at loss 7.65 with V = 2048. What do you know?</summary>
#
# That the logits are small and the targets in range. In the table of faults *no* fault moved this number by more than another seed does, not even a missing last norm. Compare logits with a reference, with lively weights.
# </details>
#
# <details><summary>5. Sharing one matrix between embedding and head would save 0.53 billion parameters in Flash. Is that much?</summary>
#
# It is 0.2 % of the total, and as much as 4 % of the active parameters. V4 keeps them apart. In the nano model the same step would save 15 % of all parameters (MTP not counted): what is worth sharing depends on the scale.
# </details>
#
# ## Links
# - Xie et al., mHC: Manifold-Constrained Hyper-Connections, [arXiv 2512.24880](https://arxiv.org/abs/2512.24880); before it: Zhu et al., Hyper-Connections, [arXiv 2409.19606](https://arxiv.org/abs/2409.19606)
# - DeepSeek-V3 Technical Report, [arXiv 2412.19437](https://arxiv.org/abs/2412.19437): MTP in section 2.2, which V4 adopts
# - Gloeckle et al., Better & Faster Large Language Models via Multi-token Prediction, [arXiv 2404.19737](https://arxiv.org/abs/2404.19737)
# - Zhang and Sennrich, Root Mean Square Layer Normalization, [arXiv 1910.07467](https://arxiv.org/abs/1910.07467)
# - In this repository: `minids/model/transformer.py` (your assembly, with the decode state), `minids/cost.py` (your counting, with bytes and operations), `tests/model/test_parity.py` (the judge, with gradients)
