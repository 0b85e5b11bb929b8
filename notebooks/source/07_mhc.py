# %% [markdown]
# # 07 Four roads past every layer: mHC
#
# **V4 replaces the residual stream by four, mixes them at every layer, and keeps the mixture from blowing up with a trick from 1967: divide rows and columns by their sums, in turn.**
#
# **After this you can**
# - say what residual connections, hyper-connections, and manifold-constrained hyper-connections (mHC) do, and measure the *gain* of a stack of them,
# - show why rows and columns that sum to 1 keep a signal in bounds through any number of layers,
# - write Sinkhorn and Knopp's iteration in V4's exact order, and predict how many rounds a matrix needs,
# - say when the result is *not* doubly stochastic, in which direction the error shows, and how large it can get,
# - compute the three maps pre, post and comb of a site, and find two faults that a fresh model hides,
# - read what a trained model has learnt in its maps, and what it loses when you touch them,
# - say what mHC costs in V4-Flash, in parameters, operations and memory traffic.
#
# *Time: 144 minutes, exercises included.
# The code itself runs in about half a minute.*
# *Before this: PyTorch, matrix products. Lesson 08 puts a site into the whole model; it may come before or after.*

# %%
import itertools
import math
from unittest import mock

import minids
import numpy as np
import torch
import torch.nn.functional as F
from minids import Config, cost
from minids.data import books
from minids.data import mixture as corpus
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model import mhc
from minids.show import mhc as figures
from minids.show import style
from minids.system import paths

style.use()
versions()

# %% [markdown]
# ## A layer that changes almost nothing, 64 times
#
# Four numbers pass through 64 layers. Each layer multiplies them with a 4 x 4 matrix: the identity plus a little noise, of deviation 0.2. So each layer hands
# each number on, and mixes in a bit of the others.
#
# **Predict before you run:** how large can four numbers between -1 and 1 become?

# %% jupyter={"outputs_hidden": true}
def noisy(seed, layers=64):
    """Raw noise for the matrices of one stack: L 4 4."""
    return 0.2 * torch.randn(layers, 4, 4, generator=torch.Generator().manual_seed(seed))


def largest(matrices):
    """The largest number that inputs between -1 and 1 can become: after each layer."""
    P, out = torch.eye(4), []
    for M in matrices:
        P = M @ P
        # a row's absolute sum: all inputs pull the same way
        out.append(P.abs().sum(1).max().item())
    return out


free = [largest(torch.eye(4) + noisy(seed)) for seed in range(8)]
print("after 64 layers:",
      *[f"{line[-1]:.3g}" for line in sorted(free, key=lambda line: line[-1])])

# %% [markdown]
# Eight networks, eight answers, from a third to three hundred. Nobody chose these factors (we shall call them *gains*): each is the product of 64 harmless steps. In a model with 27 billion parameters, trained with free mixing matrices,
# the same measure rose to **3000** (Xie et al., section 3.1), and the loss surged in mid-training.
#
# Now the same noise again, but each matrix goes through one function first. It has no parameters. You will write V4's version of it below (in the other order, since comb acts transposed).

# %%
def tamed(noise):
    """The same noise, but with rows and columns that sum to 1. L 4 4 -> L 4 4."""
    M = (4 * torch.eye(4) + 20 * noise).softmax(-1)
    for _ in range(20):
        M = M / M.sum(-2, keepdim=True)
        M = M / M.sum(-1, keepdim=True)
    return M


bounded = [largest(tamed(noisy(seed))) for seed in range(8)]
print("after 64 layers:", *[f"{line[-1]:.4f}" for line in bounded])

# %% jupyter={"source_hidden": true}
style.show(figures.plot_through_depth({"residual": [1.0] * 64, "unconstrained": free,
                                       "constrained": bounded}, limit=3000),
           "Gain over 64 layers on a log scale: eight stacks of free matrices wander apart, "
           "most of them far up; the constrained ones stay at 1 like a residual connection")

# %% [markdown]
# 1, for every seed. (The noise is even taken 20 times, but it sits in a softmax now.) This is mHC, the report's section 2.2. The rest of this lesson says why it works, how nearly, and what it costs.
#
# ## 1. From one stream to four

# %% jupyter={"source_hidden": true}
style.show(figures.plot_connections(),
           "One layer with a residual connection; with three streams mixed by any numbers, "
           "negative ones dashed; and with three streams mixed by shares that sum to 1")

# %% [markdown]
# - **Residual connection**: $x' = x + \mathcal{F}(x)$. The layer $\mathcal{F}$ (attention, or the experts) adds to what passes beside it. The factor on $x$ is 1, at every layer, for ever.
# - **Hyper-connections** (HC; Zhu et al., 2024): n streams, each as wide as the layers; three in the picture, four in V4. A layer *reads* a mixture of them, *writes* its result to all, and the streams are mixed on their way past it. All three mixtures are learnt.
#   The model gets a wider memory, while the layers stay as narrow as they were.
# - **mHC** (Xie et al., 2025): the same, with the three mixtures kept in bounds.
#
# The report's equation (1), with its letters and ours. $X$ holds a token's streams, n d: n rows of the model width d.
#
# $$X' = B\,X + C\,\mathcal{F}(A\,X) \qquad A = \mathrm{pre}\ (1 \times n), \quad B = \mathrm{comb}^T\ (n \times n), \quad C = \mathrm{post}\ (n \times 1)$$
#
# **comb acts transposed**: `comb[j, k]` says how much of stream j goes to stream k. We count in *sites*: a site is one layer with its reading and writing. A block of V4 has two, attention and experts. So 64 layers here are 32 blocks.
# (In shape comments B and T are sequences and tokens, as in all lessons; $B$ in an equation is the report's matrix.)
#
# ### The gain of a stack
#
# Forget the layers for a moment and follow what passes beside them. After L sites the streams are $P\,X$ with $P = B_L \cdots B_2 B_1$. Two numbers say how badly this can end (Xie et al., section 3.1, "Amax gain"):
#
# $$\text{forward gain} = \max_k \sum_j |P_{kj}| \qquad\qquad \text{backward gain} = \max_j \sum_k |P_{kj}|$$
#
# The first is the largest row sum: how much a stream can grow. The second is the largest column sum: how much the gradient can grow on its way back, for gradients pass through $P^T$.
#
# By hand, one site with two streams: comb = ((0.9, 0.3), (-0.2, 1.1)). Then $P = \mathrm{comb}^T$ = ((0.9, -0.2), (0.3, 1.1)). Row sums without signs: 1.1 and 1.4. Column sums: 1.2 and 1.3.
# So the gains are 1.4 forward and 1.3 backward. If every site were like this one: $1.4^{64}$ is more than two billion. (An upper bound; the true gain is smaller.)
#
# ### Exercise 1: the gain
# *Easy, 8 minutes.* Keep the product P of the sites so far. Mind the side on which a new site joins it, and the transpose. Stuck? `hint("mhc.gain")` in a new cell gives one of three hints; so for the other exercises.

# %%
def gain(combs):
    """Gains of the first 1, 2, ... L sites. combs: L n n -> (forward, backward), each a
    tensor of L numbers."""
    ### BEGIN SOLUTION
    P, forward, backward = torch.eye(combs.shape[-1]), [], []
    for comb in combs:
        P = comb.T @ P                                  # n n, what is new stands on the left
        forward.append(P.abs().sum(1).max())
        backward.append(P.abs().sum(0).max())
    return torch.stack(forward), torch.stack(backward)
    ### END SOLUTION


# %%
gain = check("mhc.gain", gain)
for L in (1, 8, 64):
    # seeds 2
    both = torch.stack([torch.stack(gain(torch.eye(4) + noisy(seed, L)))[:, -1]
                        for seed in range(8)])
    print(f"{L:2} free sites, median of 8 stacks: forward {both[:, 0].median():.3g}, backward "
          f"{both[:, 1].median():.3g}")

# %% [markdown]
# ## 2. Rows and columns that sum to 1
#
# A matrix with entries of at least 0, whose rows and columns all sum to 1, is called **doubly stochastic**. The report (equation 2) wants every B to be one. Three facts, each of one line:
#
# 1. *Nothing is lost or made.* Columns of B that sum to 1: the sum over the streams is the same before and after. Rows that sum to 1: each new stream is a weighted mean of old ones, so it lies between them.
# 2. *No direction grows.* The spectral norm is at most $\sqrt{\text{largest row sum} \cdot \text{largest column sum}} = 1$.
# 3. *Products stay inside.* With $\mathbf{1}$ the vector of ones: $(B_2 B_1)\mathbf{1} = B_2 (B_1 \mathbf{1}) = B_2 \mathbf{1} = \mathbf{1}$, and the same for columns. So 64 of them are as safe as one.
#
# By hand: B = ((0.8, 0.2), (0.2, 0.8)) takes streams (10, 0) to (8, 2), then to (6.8, 3.2), then (6.08, 3.92). The sum stays 10.
#
# **Predict before you run:** and after 64 of them?

# %% jupyter={"outputs_hidden": true}
B = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
X = torch.tensor([10.0, 0.0], dtype=torch.float64)
for L in (1, 2, 3, 10, 64):
    print(L, [round(v, 3) for v in (torch.linalg.matrix_power(B, L) @ X).tolist()])

# %% [markdown]
# (5, 5). What survives for certain is the *mean* of the streams. Differences shrink here by 0.8 - 0.2 = 0.6 a site: that is the second singular value of B, a number that we shall meet again. A model
# that wants to keep its streams *different* over many sites has to keep these matrices close to the identity, or to some other permutation.
#
# ### The shape of the set
#
# Doubly stochastic 2 x 2 matrices have one free number: ((p, 1 - p), (1 - p, p)). So they form a segment, from the identity (p = 1) to the swap (p = 0). For n = 3 there are four free numbers,
# and six corners: the permutation matrices. In general (Birkhoff, von Neumann): **a matrix is doubly stochastic exactly if it is a weighted mean of permutations.** The set is called the *Birkhoff polytope*.
#
# The paths in the figure are what Sinkhorn's iteration does. It starts from any positive matrix and walks onto the set.

# %%
def walk(raw, rounds=12):
    """A matrix after its softmax and after each round of columns and rows: K n n."""
    path = [raw.softmax(-1)]
    for _ in range(rounds):
        M = path[-1] / path[-1].sum(-2, keepdim=True)           # columns sum to 1
        path.append(M / M.sum(-1, keepdim=True))                # rows sum to 1
    return torch.stack(path)


starts = torch.tensor([[[4.0, 0], [2, 0]], [[0, 2], [0, 1]], [[0, 0], [-9, 0]]])
two = [walk(raw)[:, :, 0].tolist() for raw in starts]           # the first column: p and q
rng = torch.Generator().manual_seed(3)
three = [walk(scale * torch.randn(3, 3, generator=rng)) for scale in (1.5, 3, 6)]
print("ends of the three paths for n = 2:", [[round(v, 2) for v in path[-1]] for path in two])

# %% jupyter={"source_hidden": true}
style.show(figures.plot_polytope(two, three),
           "Left: 2 x 2 matrices walk onto the segment between identity and swap; "
           "the third walks along the lower edge and is slow. Right: the hexagon of six 3 x 3 "
           "permutation matrices with three paths inside, from open to filled circles")

# %% [markdown]
# Left, each point is a matrix whose rows sum to 1, by the first entries of its two rows; on the segment the columns sum to 1, too. Two starts jump onto it. The third creeps towards the corner, ever more slowly: remember it. (Right, four dimensions
# are pressed into two, so a path can look finished when it is not.)
#
# ## 3. Sinkhorn and Knopp
#
# $$M^{(0)} = \mathrm{softmax}_{\text{rows}}(\text{raw}) + \varepsilon \qquad M \leftarrow \frac{M}{\text{column sums} + \varepsilon} \qquad
#   \text{then } t_{\max} - 1 \text{ times:}\quad M \leftarrow \frac{M}{\text{row sums} + \varepsilon},\quad M \leftarrow \frac{M}{\text{column sums} + \varepsilon}$$
#
# V4 takes $t_{\max} = 20$ and $\varepsilon = 10^{-6}$ (the first: report 4.2.1; the second: `config.json`; the order is the reference code's). A softmax is exp and a first division of the rows in one, without overflow. The report's equation (8) says "columns, then
# rows"; it speaks of B, and B is comb transposed.
#
# By hand, with raw = ((ln 3, 0), (0, 0)) and no eps:
#
# | | | row sums |
# | --- | --- | --- |
# | exp | ((3, 1), (1, 1)) | |
# | rows | ((0.750, 0.250), (0.500, 0.500)) | 1, 1 |
# | columns | ((0.600, 0.333), (0.400, 0.667)) | 0.933, 1.067 |
# | rows, columns | ((0.632, 0.364), (0.368, 0.636)) | 0.995, 1.005 |
# | in the end | ((0.634, 0.366), (0.366, 0.634)) | 1, 1 |
#
# The end can be had without walking. Scaling rows and columns never changes $ad / (bc)$, here 3. At the end the matrix is ((p, 1-p), (1-p, p)), so $p^2 / (1-p)^2 = 3$ and $p = \sqrt 3 / (1 + \sqrt 3) = 0.634$.
#
# ### Exercise 2: Sinkhorn
# *Medium, 10 minutes.* In V4's order, for any number of leading axes. Mind how often the loop runs.

# %%
def sinkhorn(raw, iters, eps):
    """Nearly doubly stochastic matrices, columns normalised last. raw: ... n n, any numbers
    -> ... n n."""
    ### BEGIN SOLUTION
    M = raw.softmax(-1) + eps
    M = M / (M.sum(-2, keepdim=True) + eps)                     # columns
    for _ in range(iters - 1):
        M = M / (M.sum(-1, keepdim=True) + eps)                 # rows
        M = M / (M.sum(-2, keepdim=True) + eps)                 # columns
    return M
    ### END SOLUTION


# %%
sinkhorn = check("mhc.sinkhorn", sinkhorn)
for iters in (1, 2, 20):
    M = sinkhorn(torch.tensor([[math.log(3), 0], [0, 0]]), iters, 1e-6)
    print(iters, [[round(v, 3) for v in row] for row in M.tolist()])

# %% [markdown]
# `minids` has the tokens *last*, so that one step runs over long rows of memory, and its gradient is written by hand. Same numbers, same gradients:

# %%
# N n n
raw = (2 * torch.randn(500, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
weights = torch.randn(500, 4, 4, generator=torch.Generator().manual_seed(1))
mine = sinkhorn(raw, 20, 1e-6)
theirs = mhc.Sinkhorn.apply((raw.softmax(-1) + 1e-6).permute(1, 2, 0), 20, 1e-6)
theirs = theirs.permute(2, 0, 1)
grads = [torch.autograd.grad((M * weights).sum(), raw)[0] for M in (mine, theirs)]
torch.testing.assert_close(mine, theirs)
torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
print("equal to minids.model.mhc.Sinkhorn, values and gradients, for 500 matrices")

# %% [markdown]
# ### How many rounds?
#
# After each iteration the columns are right and the rows are not quite. How fast does their error fall? Near the end, one round of rows and columns multiplies the error by $\sigma_2^2$, where $\sigma_2$ is the
# **second singular value** of the matrix at which the walk ends (the first is always 1). Check by hand: above, $\sigma_2 = 0.634 - 0.366 = 0.268$, squared 0.072, and the error fell from 0.067 to 0.005.
#
# Four inputs: *mild* (raw numbers of deviation 1), *firm* (3), *harsh* (6), and the slow one of the polytope figure, which we call the *corner case*: raw = ((0, 0), (-40, 0)). (The figure had -9 in place of -40. Now the entry is 0 as far as one can see.)
#
# **Predict before you run:** which of them are done, say to 0.1 percent, after V4's 20 iterations?

# %% jupyter={"outputs_hidden": true}
def row_errors(raw, iterations):
    """The largest error of a row sum after 1, 2, ... iterations, eps = 0, in double
    precision. raw: n n."""
    M, errors = raw.double().softmax(-1), []
    for _ in range(iterations):
        M = M / M.sum(-2, keepdim=True)
        errors.append((M.sum(-1) - 1).abs().max().item())
        M = M / M.sum(-1, keepdim=True)
    return errors, M


inputs = {f"{name}, {size} x N(0, 1)": size
          * torch.randn(4, 4, generator=torch.Generator().manual_seed(6))
          for name, size in (("mild", 1), ("firm", 3), ("harsh", 6))}
inputs["corner case"] = torch.tensor([[0.0, 0], [-40, 0]])
errors = {name: row_errors(raw, 60)[0] for name, raw in inputs.items()}
sigma = {name: torch.linalg.svdvals(row_errors(raw, 3000)[1])[1].item()
         for name, raw in inputs.items()}
for name, line in errors.items():
    print(f"{name:18} sigma_2 {sigma[name]:.3f}, rate {sigma[name] ** 2:.3f}, error after 20: "
          f"{line[19]:.1e}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
rates = {name: value**2 for name, value in sigma.items() if name != "corner case"}
style.show(figures.plot_convergence(errors, rates), "Error of the row sums against iterations "
           "on a log scale: mild falls steeply, firm less, harsh and the corner case are not "
           "done at 20; dotted lines by the second singular value fit the tails")

# %% [markdown]
# The dotted lines fit the tails of the curves: the theory holds. (Harsh comes to its tail only after some 35 rounds; before, other directions die out.) Its message: **the nearer the result is to a permutation, the slower the walk.** For a permutation $\sigma_2 = 1$, and the rate is 1: no speed at all.
#
# The corner case shows it in whole numbers. After iteration t its error is $1/(2t+1)$: 1/3, 1/5, 1/7. (Try it by hand: ((1/2, 1/2), (0, 1)), then ((1, 1/3), (0, 2/3)).) After 20 iterations:

# %%
slow = errors["corner case"]
print(*[f"1/{1 / e:.0f}" for e in slow[:4]],
      f"... after 20: 1/{1 / slow[19]:.0f} = {slow[19]:.4f}, after 60: {slow[59]:.4f}")

# %% [markdown]
# Still 2.4 percent. The reason: the matrix ((1, 1), (0, 1)) has a zero at a place where its only possible end, the identity, has one too, but also a 1 where the end has a 0. That entry must be ground down,
# and each round takes less of it. With eps no entry is exactly zero, so the walk ends somewhere.
#
# **And eps itself?** It has two effects. It makes each sum of a column $s / (s + \varepsilon)$, too small by one millionth. Over 64 sites: $(1 - 10^{-6})^{64} = 0.99994$, which is harmless. But it also lifts every entry of the softmax, so that entries far below $10^{-6}$ become $10^{-6}$,
# and for sharp matrices that is another walk: for eight times our random numbers the error after 20 rounds is 2.7 % with eps and 5.3 % without, after 60 rounds 0.5 % with and 0.04 % without. The curves above are without eps; the slider at the end of this section has it.
#
# ### On which side does the error show?
#
# V4 ends with the columns of comb. These are the rows of B: **the forward gain is right** (but for eps). What is left of the error sits in the rows of comb, the columns of B: **the gradients carry it.** Xie et al. saw it in their 27B
# model: "the backward gradient gain deviates slightly from 1", and up to about 1.6 through the whole stack (section 5.4).
#
# Does it average out over 64 sites? **Predict before you run** for harsh matrices: (a) 64 different ones, (b) 64 alike.

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(1)
raws = 6 * torch.randn(512, 4, 4, generator=rng)  # N n n
# a bad one of 512, not the worst
worst = (sinkhorn(raws, 20, 1e-6).sum(-1) - 1).abs().amax(-1).argsort()[-32]
one = raws[worst]                                 # n n
alike = one + 0.3 * torch.randn(64, 4, 4, generator=rng)
curves = {
    "64 different, backward": gain(sinkhorn(raws[:64], 20, 1e-6))[1],
    "64 nearly alike, backward": gain(sinkhorn(alike, 20, 1e-6))[1],
    "64 times the same, backward": gain(sinkhorn(one.expand(64, 4, 4), 20, 1e-6))[1],
    "the same, 100 iterations": gain(sinkhorn(one.expand(64, 4, 4), 100, 1e-6))[1],
    "64 times the same, forward": gain(sinkhorn(one.expand(64, 4, 4), 20, 1e-6))[0],
}
for name, line in curves.items():
    print(f"{name:28} {line[-1]:.2f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(
    figures.plot_backward({name: line.tolist() for name, line in curves.items()}),
    "Backward gain over depth: different sites stay near 1, nearly equal sites and equal sites "
    "rise towards 3, more iterations rise less, the forward gain is flat at 1")

# %% [markdown]
# Different errors cancel, equal ones add up. So we get values like the published 1.6 from *many sites with similar, nearly permuting matrices*; trained matrices do lie there (section 6). That the 27B model's errors
# arose this way is our reading; the paper does not say.
#
# The dotted line at 4: if columns of comb sum to 1, then every entry of P is at most 1, and a column of P with n = 4 of them sums to at most 4. **Ending with the columns alone forbids an explosion, in both directions.** Then what are the rows for?
#
# ### What each half is for
#
# The same raw numbers (64 sites, deviation 4) four times: rows normalised only (a softmax over the last axis), columns only, one pass of each, and 20 iterations. The bars show the row sums and the column sums of P.

# %%
raws = 4 * torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(5))         # L n n
ways = {"rows only": raws.softmax(-1), "columns only": raws.softmax(-2),
        "one pass": sinkhorn(raws, 1, 1e-6),
        "20 iterations": sinkhorn(raws, 20, 1e-6)}
# n n
products = {name: torch.linalg.multi_dot(list(combs.mT.flip(0)))
            for name, combs in ways.items()}
for name, P in products.items():
    print(f"{name:14} to each stream: {[round(v, 2) for v in P.sum(1).tolist()]}"
          f"   gradient to each: {[round(v, 2) for v in P.sum(0).tolist()]}")

# %% jupyter={"source_hidden": true}
style.show(figures.plot_shares({name: (P.sum(1), P.sum(0)) for name, P in products.items()}),
           "A bar for each stream. Rows only: forward shares differ widely, backward all 1. "
           "Columns only: forward all 1, two streams get nearly all of the gradient. One pass: "
           "still uneven. 20 iterations: all about 1")

# %% [markdown]
# With the columns alone nothing explodes, but the gradient goes almost wholly to some streams and the others **starve**: nobody tells them what to carry. Rows alone starve the forward signal instead. One pass of both does not mend it for matrices as sharp as these: what
# is left of the error adds up. 20 iterations make all shares nearly 1. So the honest sentence is: *bounds come from one normalisation, fairness from both.*
#
# ### Play: when is 20 not enough?
#
# The sliders set a sharpness (what the raw numbers are multiplied by) and the iterations. Red numbers beside a row are sums that are off by more than a percent.
# **Find out:** at which sharpness do 20 iterations first leave more than 1 percent? What do the columns say meanwhile, and what does the matrix look like there?

# %%
RAW = torch.randn(4, 4, generator=torch.Generator().manual_seed(6))


def draw(sharpness, iterations):
    errors = [(sinkhorn(sharpness * RAW, i, 1e-6).sum(-1) - 1).abs().max().item()
              for i in range(1, 61)]
    return figures.plot_sharpness(sinkhorn(sharpness * RAW, iterations, 1e-6), errors,
                                  iterations, sharpness)


box = style.slider_image(draw, "A Sinkhorn matrix with the sums of "
                         "its rows and columns, and the error of the rows over the iterations",
                         sharpness=[1, 2, 3, 4, 6, 8, 12],
                         iterations=[1, 2, 3, 5, 10, 20, 40, 60])
box

# %%
box.peek(sharpness=6, iterations=20)
SHARP = [1, 2, 3, 4, 5, 6, 8, 10, 12]
by_sharpness = {i: [(sinkhorn(s * RAW, i, 1e-6).sum(-1) - 1).abs().max().item() for s in SHARP]
                for i in (1, 5, 20, 60)}
first = next(s for s, e in zip(SHARP, by_sharpness[20]) if e > 0.01)
assert by_sharpness[20][0] < 1e-4
style.say(f"20 iterations first leave more than 1 percent at sharpness {first}; at sharpness 1 "
          "less than 0.01 percent")

# %% jupyter={"source_hidden": true}
style.show(figures.plot_errors_by_sharpness(SHARP, by_sharpness),
           "The error of the row sums against sharpness for 1, 5, 20 and 60 iterations: it "
           "rises steeply with sharpness and falls with iterations")

# %% [markdown]
# The columns always say 1.000: they came last. And the matrix is nearly decided: two rows have almost all their weight in one column each, and only the other two rows still share two columns.
#
# ## 4. Where the three maps come from
#
# pre, post and comb are computed for **every token at every site**, from the streams themselves. $x$ is all n d numbers of a token in one vector:
#
# $$a = \mathrm{fn}\;\frac{x}{\sqrt{\mathrm{mean}(x^2) + \varepsilon_{\mathrm{norm}}}} \qquad
# \begin{aligned}
# \mathrm{pre} &= \sigma(\alpha_0\, a_{\mathrm{pre}} + \mathrm{base}_{\mathrm{pre}}) + \varepsilon \\
# \mathrm{post} &= 2\,\sigma(\alpha_1\, a_{\mathrm{post}} + \mathrm{base}_{\mathrm{post}}) \\
# \mathrm{comb} &= \mathrm{Sinkhorn}(\alpha_2\, a_{\mathrm{comb}} + \mathrm{base}_{\mathrm{comb}})
# \end{aligned}$$
#
# These are the report's equations (3) to (8). `base` is the **static** part (its S), `fn` gives the **dynamic** part, and the three numbers $\alpha$ in `scale` say how much the dynamic part counts. They start small: 0.01 here. For n streams `fn` has
# n rows for pre, n for post and n n for comb: (2 + n) n in all, 24 for n = 4.
#
# *Why a sigmoid?* Numbers of one sign cannot cancel each other (report 2.2). *Why a 2 on post?* With base 0 a fresh post is then $2 \sigma(0) = 1$: the layer writes its whole result, as in a residual network. The $\varepsilon$ on pre is the reference code's.
#
# By hand, pre with two streams of one number each: x = (3, 4), RMS 3.536, so x / RMS = (0.849, 1.131). A row of fn of (1, -1) gives a = -0.283. With $\alpha_0 = 1$ and base 2: $\sigma(1.717) = 0.848$.
#
# ### Exercise 3: the maps
# *Medium, 12 minutes.* Use your `sinkhorn`.

# %%
def maps(X, fn, scale, base, iters=20, eps=1e-6, norm_eps=1e-6):
    """The three maps of one site for every token: pre (B T n), post (B T n), comb (B T n n).

    X: B T n d; fn: (2+n)n x nd, its rows for pre, then post, then comb row by row; scale: 3;
    base: (2+n)n.
    """
    ### BEGIN SOLUTION
    n, x = X.shape[2], X.flatten(2)              # B T nd
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps)
    a = (x @ fn.T).split([n, n, n * n], dim=-1)  # B T n, B T n, B T nn
    pre, post, comb = (part * scale[i] + b
                       for i, (part, b) in enumerate(zip(a, base.split([n, n, n * n]))))
    return (pre.sigmoid() + eps, 2 * post.sigmoid(),
            sinkhorn(comb.unflatten(-1, (n, n)), iters, eps))
    ### END SOLUTION


# %%
maps = check("mhc.maps", maps)

# %% [markdown]
# ### Exercise 4: the site
# *Easy, 5 minutes.* Read, work, write, carry. By hand, three streams of one number, X = (2, 5, 11), pre all 0.5, post (1, 0, 0), a layer that doubles, and a comb that sends stream 0 to 1, 1 to 2, 2 to 0: the layer reads 9 and gives 18;
# the new streams are (11 + 18, 2, 5).

# %%
def site(X, layer, pre, post, comb):
    """The streams after a site: B T n d. X: B T n d; layer: B T d -> B T d; pre, post:
    B T n; comb: B T n n."""
    ### BEGIN SOLUTION
    f = layer((pre[..., None] * X).sum(2))                                          # B T d
    return post[..., None] * f[:, :, None] + comb.mT @ X                            # B T n d
    ### END SOLUTION


# %%
site = check("mhc.site", site)

# %% [markdown]
# ### Equal to minids, on the shipped model
#
# Your maps and your site, in place of those of the shipped nano model, at all 8 sites, on texts that it has not been trained on: pages of real books, and TinyWorld stories (lesson 01).

# %%
nano = minids.load(paths.data("checkpoints", "nano")).eval().requires_grad_(False)
tokenizer = Tokenizer.load()


def held_out(kind, rows):
    """The beginnings of the first `rows` held-out documents that have at least 256 tokens."""
    found = (tokenizer.encode(corpus.document(kind, "heldout", i), bos=True)
             for i in itertools.count())
    return [line[:256]
            for line in itertools.islice((line for line in found if len(line) >= 256), rows)]


ids = torch.tensor(held_out("text", 3) + held_out("stories", 3))                    # B T

# %%
def by_hand(model, ids):
    """The streams after the last block, with your functions: B T n d."""
    X = model.embed(ids)[:, :, None].repeat(1, 1, model.config.hc_mult, 1)          # B T n d
    for block in model.layers:
        three = maps(X, block.hc_attn_fn, block.hc_attn_scale, block.hc_attn_base)
        X = site(X, lambda u: block.attn(block.attn_norm(u)), *three)
        three = maps(X, block.hc_ffn_fn, block.hc_ffn_scale, block.hc_ffn_base)
        X = site(X, lambda u: block.ffn(block.ffn_norm(u), ids), *three)
    return X


torch.testing.assert_close(nano.logits(by_hand(nano, ids)), nano(ids), atol=1e-3, rtol=1e-3)
print("equal to minids.Model on", ids.numel(), "tokens, every logit")

# %% [markdown]
# ### Exercise 5: find the faults
# *Hard, 12 minutes.* A colleague wrote a whole site. It has **two** faults. On the streams of a fresh model nobody sees them; on streams that differ it is wrong. Find them, then write the repaired version.
# `hint("mhc.debug")` helps.

# %%
def colleagues_site(X, layer, fn, scale, base):
    """One site from its parameters, as V4 sets iters and eps. X: B T n d -> B T n d. Two
    faults."""
    n = X.shape[2]
    x = F.rms_norm(X, X.shape[-1:], eps=1e-6).flatten(2)  # B T nd
    pre, post, comb = (x @ fn.T).split([n, n, n * n], dim=-1)
    pre = torch.sigmoid(pre * scale[0] + base[:n]) + 1e-6
    post = 2 * torch.sigmoid(post * scale[1] + base[n:2 * n])
    comb = sinkhorn((comb * scale[2] + base[2 * n:]).unflatten(-1, (n, n)), 20, 1e-6)
    f = layer(torch.einsum("btn,btnd->btd", pre, X))
    return torch.einsum("btn,btd->btnd", post, f) + torch.einsum("btij,btjd->btid", comb, X)


torch.manual_seed(0)
fresh = minids.Model(nano.config).requires_grad_(False)
rng = torch.Generator().manual_seed(2)
d = nano.config.dim
# B T n d, four equal streams
copies = torch.randn(1, 50, 1, d, generator=rng).repeat(1, 1, 4, 1)
differ = copies * torch.tensor([0.5, 1, 1.5,
                                2]).view(4, 1) + torch.randn(1, 50, 4, d, generator=rng)
for name, one, X in (("fresh", fresh.layers[0], copies), ("trained", nano.layers[0], differ)):
    parameters = one.hc_attn_fn, one.hc_attn_scale, one.hc_attn_base
    apart = (colleagues_site(X, torch.tanh, *parameters)
             - site(X, torch.tanh, *maps(X, *parameters))).abs().max()
    print(f"{name:8} the two sites differ by more than 0.01: {bool(apart > 0.01)}")


# %%
def repaired_site(X, layer, fn, scale, base):
    """Your repaired version. X: B T n d -> B T n d."""
    ### BEGIN SOLUTION
    n, x = X.shape[2], X.flatten(2)
    x = F.rms_norm(x, x.shape[-1:], eps=1e-6)  # one RMS over all n d numbers
    pre, post, comb = (x @ fn.T).split([n, n, n * n], dim=-1)
    pre = torch.sigmoid(pre * scale[0] + base[:n]) + 1e-6
    post = 2 * torch.sigmoid(post * scale[1] + base[n:2 * n])
    comb = sinkhorn((comb * scale[2] + base[2 * n:]).unflatten(-1, (n, n)), 20, 1e-6)
    f = layer(torch.einsum("btn,btnd->btd", pre, X))
    # over the first index
    return torch.einsum("btn,btd->btnd", post, f) + torch.einsum("btji,btjd->btid", comb, X)
    ### END SOLUTION


# %%
repaired_site = check("mhc.debug", repaired_site)

# %% [markdown]
# ## 5. The ablation: 64 sites, trained in front of you
#
# A toy that is deep and narrow: 64 sites, 24 numbers wide, that predicts the next *byte* of real text from what it has seen. Its layers are as plain as can be (a small network on the current and the previous position), so that only one thing differs:
#
# - **residual**: one stream (four that stay equal: comb the identity, post 1),
# - **unconstrained**: four streams, comb is 16 free numbers a site,
# - **constrained**: four streams, comb through your Sinkhorn, 20 iterations.
#
# All else is equal: the same start (the free comb begins as the *result* of the constrained one), the same data, sigmoids on pre and post, AdamW with five times the rate for the three maps, clipping of the gradient's norm at 1, three seeds each. The maps are static here, `base`
# without `fn`: that is faster, and enough to see it.

# %%
KINDS, SEEDS, LAYERS, N, D, T = ("residual", "unconstrained", "constrained"), 3, 64, 4, 24, 32
RUNS = len(KINDS) * SEEDS  # all nine train at once, side by side


def start():
    """Parameters of all runs, R first. A kind's seeds begin like the other kinds'."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape, std):
        numbers = std * torch.randn(SEEDS, *shape, generator=rng)
        return numbers.repeat(len(KINDS), *[1] * len(shape))
    p = {"embed": normal(128, D, std=1.0), "head": normal(D, 128, std=0.06),
         "w1": normal(LAYERS, 2 * D, 2 * D, std=(2 * D) ** -0.5),
         "w2": normal(LAYERS, 2 * D, D, std=(2 * D * LAYERS) ** -0.5)}
    p["pre"] = torch.full((RUNS, LAYERS, N), -3.0)
    # each site reads mostly one stream
    p["pre"][:, range(LAYERS), [i % N for i in range(LAYERS)]] = 2.0
    p["post"] = torch.zeros(RUNS, LAYERS, N)
    p["comb"] = (4 * torch.eye(N)).repeat(RUNS, LAYERS, 1, 1)
    p["comb"][SEEDS:2 * SEEDS] = sinkhorn(p["comb"][SEEDS:2 * SEEDS], 20, 1e-6)
    return {name: t.requires_grad_() for name, t in p.items()}

# %%
def connections(p):
    """pre R L n, post R L n, comb R L n n: fixed for the residual runs, free, constrained."""
    S = SEEDS
    post = torch.cat([torch.ones(S, LAYERS, N), 2 * p["post"][S:].sigmoid()])
    comb = torch.cat([torch.eye(N).expand(S, LAYERS, N, N), p["comb"][S:2 * S],
                      sinkhorn(p["comb"][2 * S:], 20, 1e-6)])
    return p["pre"].sigmoid(), post, comb

# %%
def logits(p, ids, sizes=None):
    """Logits of all runs, R BT 128. ids: B T. `sizes` collects the RMS of the streams after
    each site."""
    pre, post, comb = connections(p)
    mix = torch.cat([pre[:, :, None], comb.mT], 2)  # R L 1+n n: read, and carry
    X = p["embed"][:, ids.flatten()].flatten(1)[:, None].repeat(1, N, 1)  # R n BTD
    for i in range(LAYERS):
        Y = mix[:, i] @ X  # R 1+n BTD
        u = F.rms_norm(Y[:, 0].unflatten(1, (-1, D)), (D,), eps=1e-6)  # R BT D
        # the previous position
        before = F.pad(u.unflatten(1, (-1, T))[:, :, :-1], (0, 0, 1, 0)).flatten(1, 2)
        f = F.gelu(torch.cat([u, before], -1) @ p["w1"][:, i]) @ p["w2"][:, i]  # R BT D
        X = Y[:, 1:] + post[:, i, :, None] * f.flatten(1)[:, None]  # R n BTD
        if sizes is not None:
            sizes.append(X.square().mean((1, 2)).sqrt())
    return F.rms_norm(X.mean(1).unflatten(1, (-1, D)), (D,), eps=1e-6) @ p["head"]

# %%
book = np.frombuffer("".join(d.text for d in books.documents("train")[:3]).encode(), np.uint8)


def train(lr, steps=50, batch=4):
    """Train all runs. Returns the parameters, and of each step and run (steps R) the loss
    and the norm of the gradient."""
    p, rng, losses, norms = start(), np.random.default_rng(7), [], []
    matrices, three = ([p[name] for name in names]
                       for names in (("embed", "head", "w1", "w2"), ("pre", "post", "comb")))
    adam = torch.optim.AdamW([{"params": matrices}, {"params": three, "weight_decay": 0.0}],
                             betas=(0.9, 0.95), fused=True)
    for step in range(steps):
        rate = lr * min(1, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        # the maps have further to go
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = rate, 5 * rate
        rows = np.stack([book[at:at + T + 1]
                         for at in rng.integers(len(book) - T - 1, size=batch)])
        ids = torch.from_numpy(rows.astype(np.int64)).clamp(max=127)  # B T+1
        out = logits(p, ids[:, :-1])  # R BT 128
        target = ids[:, 1:].flatten().expand(RUNS, -1)  # R BT
        loss = F.cross_entropy(out.mT, target, reduction="none").mean(1)  # R
        adam.zero_grad()
        loss.sum().backward()  # the runs do not touch each other
        norm = sum(t.grad.flatten(1).square().sum(1) for t in p.values()).sqrt()  # R
        for t in p.values():
            t.grad.mul_((1 / norm.clamp_min(1)).view(-1, *[1] * (t.ndim - 1)))
        adam.step()
        losses.append(loss.detach())
        norms.append(norm)
    return p, torch.stack(losses), torch.stack(norms)

# %% [markdown]
# **Predict before you run.** (a) Before training: which of the three has the largest gain? (b) After 50 steps at a brisk learning rate of 0.01? (c) Does the constrained model end at a lower loss than the plain residual one?

# %%
def facts(p, losses, norms):
    """{kind: facts, each a list over seeds} of trained (or fresh) runs."""
    with torch.no_grad():
        sizes, combs = [], connections(p)[2]
        logits(p, torch.from_numpy(book[:128].astype(np.int64)).clamp(max=127).view(4, 32),
               sizes)
        both = torch.stack([torch.stack(gain(c)) for c in combs])                   # R 2 L
    found = {"forward": both[:, 0, -1], "backward": both[:, 1, -1], "size": sizes[-1],
             "loss": losses[-10:].mean(0), "norm": norms[5:].max(0).values}
    split = {k: {name: v[i * SEEDS:(i + 1) * SEEDS].tolist() for name, v in found.items()}
             for i, k in enumerate(KINDS)}
    return split, {k: both[i * SEEDS:(i + 1) * SEEDS, 0].T for i, k in enumerate(KINDS)}


DIGITS = {"loss": 3, "forward": 2, "backward": 2, "size": 1}


def table(split):
    print(f"{'3 seeds each':13}{'loss':>18}{'forward gain':>21}{'backward gain':>21}"
          f"{'RMS of streams':>21}")
    for kind, row in split.items():
        cells = [" ".join(f"{v:.{digits}f}" if v < 1000 else f"{v:.0e}" for v in row[name])
                 for name, digits in DIGITS.items()]
        print(f"{kind:13}{cells[0]:>18}{cells[1]:>21}{cells[2]:>21}{cells[3]:>21}")

# %% jupyter={"outputs_hidden": true}
none = torch.zeros(20, RUNS)
before, _ = facts(start(), none, none)
print("before training: forward gain",
      {kind: round(max(row["forward"]), 3) for kind, row in before.items()})
print("                backward gain",
      {kind: round(max(row["backward"]), 3) for kind, row in before.items()})

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
brisk = train(1e-2)
after, lines = facts(*brisk)
print("after 50 steps at learning rate 0.01:")
table(after)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true, "source_hidden": true}
by_kind = {kind: tuple(t[:, i * SEEDS:(i + 1) * SEEDS] for t in brisk[1:])
           for i, kind in enumerate(KINDS)}
style.show(figures.plot_training(by_kind, lines), "Loss, gradient norm and gain over depth for "
           "three kinds and three seeds: residual and constrained lie on each other, the "
           "unconstrained runs have a higher loss and gains far from 1")

# %% jupyter={"outputs_hidden": true}
worst = max(max(g, 1 / g) if g > 0 else math.inf for g in after["unconstrained"]["forward"])
kept = [g for way in ("forward", "backward") for g in after["constrained"][way]]
mean = {kind: sum(row["loss"]) / SEEDS for kind, row in after.items()}
assert all(abs(row["forward"][0] - 1) < 1e-3 for row in before.values())
assert worst > 3 and max(kept) < 2 and min(after["constrained"]["forward"]) > 0.999
assert (not mean["unconstrained"] < mean["constrained"] + 0.02
        and abs(mean["constrained"] - mean["residual"]) < 0.1)
print("Before: all three have gain 1.")
print("After: unconstrained off by more than a factor 3; constrained 1 forward, below 2 "
      "backward.")
style.say("Loss: unconstrained is behind by more than 0.02; constrained and residual are less "
          "than 0.1 apart.")

# %% [markdown]
# All three begin as the same function. Then the free matrices drift: each step moves an entry a little, in 64 sites at once, and the gain is that of the product of them all. In the right panel the free lines drift away from 1 site by site:
# each adds its small factor, on a log scale a small step. The size of the streams goes with them.
#
# Why does the loss not suffer far more? Every layer, and the head, has a norm in front, which divides the size away. So the fault grows unseen for a while; in one seed or another a spike of the gradient shows it. float32 also has room for such
# numbers. The 27B model of Xie et al. trained well for some 12,000 steps before its loss surged (section 3.1).
#
# **The honest part.** The constrained model ends where the plain residual one does: compare the differences between the two rows with the spread between seeds. At this size mHC does no harm and brings nothing that we can measure. What it
# brings, Xie et al. measured at 27B: 0.021 nats less loss than the residual baseline (section 5.2).
#
# ### Is it only the learning rate?
#
# A control: everything again at a gentle rate of 0.002, and for 25 steps only, to save time: so the matrices move less for two reasons. Look for gains *below* 1, too: a product can also fade.

# %% tags=["nbval-ignore-output"]
gentle, _ = facts(*train(2e-3, steps=25))
print("after 25 steps at learning rate 0.002:")
table(gentle)

# %%
drift = [max(abs(math.log(g)) for g in split["unconstrained"]["forward"])
         for split in (gentle, after)]
assert drift[0] < drift[1] and max(gentle["constrained"]["forward"]) < 1.001
close = [abs(sum(gentle[k]["loss"]) / SEEDS - sum(gentle["residual"]["loss"]) / SEEDS)
         for k in KINDS]
assert max(close) < 0.15
style.say("With a gentle rate the free gains stay closer to 1 than with the brisk one, and the "
          "three losses are within 0.15.")

# %% [markdown]
# So the constraint is no magic: free mixing works as long as it moves little. It takes away a *limit on how far the matrices may move* (here we varied rate and steps, not depth). A large run cannot afford to find out where that limit lies.
#
# ## 6. What the shipped nano has learnt
#
# Now the real mechanism, dynamic parts and all, in the shipped model (4 blocks, 8 sites), on the text from above. First: do the maps use the dynamic part? We compare how far they vary from token to token, fresh and trained.

# %%
def recorded(model, ids):
    """The maps of every site on these ids, tokens first: list of (pre N n, post N n, comb
    N n n)."""
    kept = []

    def maps_and_keep(*args, original=mhc.maps):
        pre, post, comb = original(*args)  # n N, n N, n n N
        kept.append((pre.T, post.T, comb.permute(2, 0, 1)))
        return pre, post, comb
    with mock.patch.object(mhc, "maps", maps_and_keep), torch.no_grad():
        model.features(ids)
    return kept


torch.manual_seed(0)
newborn = minids.Model(nano.config).eval()
sites_fresh, sites = recorded(newborn, ids), recorded(nano, ids)
vary = {name: {which: [one[i].std(0).mean().item() for one in some]
               for i, which in enumerate(("pre", "post", "comb"))}
        for name, some in (("fresh, scale 0.01", sites_fresh), ("trained", sites))}

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
style.show(figures.plot_variation(vary), "How far pre, post and comb vary over tokens at each "
           "site: below one percent in the fresh model, many times as much in the trained one")

# %%
mean = {name: {which: sum(line) / len(line) for which, line in lines.items()}
        for name, lines in vary.items()}
for which in ("pre", "post", "comb"):
    assert mean["trained"][which] > 5 * mean["fresh, scale 0.01"][which]
print("Trained maps vary more than 5 times as much over tokens as fresh ones: pre, post and "
      "comb.")

# %% [markdown]
# A fresh model's maps are nearly the same for all tokens: that is what "scales start at 0.01" means. Training has turned the dynamic part on.
#
# Now the maps themselves, means over the tokens.

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
names = [f"{i + 1} {kind}" for i in range(len(nano.layers)) for kind in ("attn", "experts")]
style.show(figures.plot_learned({name: tuple(t.mean(0) for t in one)
                                 for name, one in zip(names, sites)}),
           "comb, pre and post of the sites of the nano model: comb is bright on the diagonal "
           "at most sites, pre picks some streams; post, with a colour scale of its own, "
           "writes to the streams with different strength")

# %% tags=["nbval-ignore-output"]
P = torch.eye(4).expand(ids.numel(), 4, 4)                                          # N n n
for _, _, comb in sites:
    P = comb.mT @ P
forward, backward = P.sum(-1).amax(-1).mean(), P.sum(-2).amax(-1).mean()
off = torch.stack([(comb.sum(-1) - 1).abs().amax(-1) for _, _, comb in sites])      # sites N
print(f"through 8 sites, mean over tokens: forward gain {forward:.4f}, backward gain "
      f"{backward:.3f}")
print(f"row sums of comb: off by {off.mean():.1%} on average, by {off.max():.1%} at worst")
for name, which in (("read", 0), ("written", 1)):
    means = torch.stack([one[which].mean(0) for one in sites]).mean(0)              # n
    print(f"how much each stream is {name}, mean over sites and tokens:",
          [round(v, 2) for v in means.tolist()])

# %%
peak = torch.stack([comb.amax(-1).mean() for _, _, comb in sites])                  # sites
assert peak.mean() > 0.6 and abs(forward - 1) < 1e-3 and 1 < backward < 2 and off.max() > 1e-2
print("The largest entry of a row of comb is above 0.6 on average.")
print("Forward gain 1; backward gain between 1 and 2. Rows are off by percents for some "
      "tokens.")

# %% [markdown]
# How to read the picture:
# - **comb**: a bright diagonal means that streams stay where they are. A bright entry beside it means that a stream is handed over to another place. Such sharp matrices lie near a corner of the polytope, on the slow side of Sinkhorn: so the
#   error of the rows is percents for some tokens, not one millionth. (Most sites are near the identity; "1 experts" is not.)
# - **pre** says what a site looks at. How many sites look at one or two streams, rather than at a mean of all? We began it that way (lesson 08), so this alone is no discovery of training.
# - **post** says where results go. (It began at 1. A small post need not mean a weak layer: the layer's last matrix may be large.) Is there a stream that gets next to nothing at several sites in a row? Then these layers leave it alone, and with comb near the identity it carries what it holds past all of them, unchanged, for whoever
#   reads it later. Streams with jobs of their own: a single residual stream has nothing like it.
#
# ### Sabotage
#
# What is each part worth to this model? We replace the maps in all sites, without training, and look at the loss. The first line is the negative control: your functions instead of `minids`'. **Predict before you run:** which costs most: maps without their dynamic part,
# comb transposed, or comb all 1/4? And is a *better* Sinkhorn, with 100 iterations instead of 20, better?

# %%
def loss_with(change=lambda pre, post, comb: (pre, post, comb), iters=20):
    """Loss of the nano with altered maps. change: (pre B T n, post B T n, comb B T n n)
    -> the same three."""
    def replaced(X, fn, scale, base, config):
        pre, post, comb = change(*maps(X, fn, scale, base, iters, config.hc_eps,
                                       config.norm_eps))
        return pre.flatten(0, 1).T, post.flatten(0, 1).T, comb.flatten(0, 1).permute(1, 2, 0)
    with mock.patch.object(mhc, "maps", replaced), torch.no_grad():
        return F.cross_entropy(nano(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

# %%
def steady(t):
    """Every token gets the mean over the tokens."""
    return t.mean((0, 1), keepdim=True).expand_as(t)


with torch.no_grad():
    usual = F.cross_entropy(nano(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
changes = {
    "your functions (control)": loss_with(),
    "maps static: means over tokens": loss_with(lambda *three: tuple(steady(t) for t in three)),
    "comb transposed": loss_with(lambda a, c, comb: (a, c, comb.mT)),
    "comb the identity": loss_with(lambda a, c, comb: (a, c, torch.eye(4).expand_as(comb))),
    "comb all 1/4": loss_with(lambda a, c, comb: (a, c, torch.full_like(comb, 0.25))),
    "post without the 2": loss_with(lambda a, c, comb: (a, c / 2, comb)),
    **{f"Sinkhorn, t_max = {i}": loss_with(iters=i) for i in (1, 2, 5, 10, 100)},
}
rise = {name: value - usual for name, value in changes.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(figures.plot_losses(rise, control=["your functions (control)"]),
           "Change of the nano's loss for each altered map: the control changes nothing; "
           "static maps, comb all 1/4 and post without the 2 are dear, other faults cheaper")

# %% jupyter={"outputs_hidden": true}
assert abs(rise["your functions (control)"]) < 1e-3
dear = min(rise[name]
           for name in ("maps static: means over tokens", "comb all 1/4", "post without the 2"))
assert dear > 0.02 and rise["comb transposed"] < rise["comb all 1/4"]
assert (rise["Sinkhorn, t_max = 1"] > abs(rise["Sinkhorn, t_max = 10"])
        and rise["Sinkhorn, t_max = 100"] > -0.01)
style.say("The control changes nothing. Static maps, comb all 1/4, post without the 2 cost "
          "more than 0.02 nats each.")
style.say("comb transposed costs less than comb all 1/4. 1 iteration costs more than 10; 100 "
          "bring nothing over 20.")

# %% [markdown]
# Two surprises.
# - **A transposed comb can cost next to nothing.** It is wrong at every site and token; yet a matrix near the identity is nearly symmetric, and then the loss hardly tells. (When this lesson was written it cost the shipped model 0.007 nats. It cost 0.16 in another
#   nano, trained on books alone for 520 steps.) So even on a trained model, "the loss looks right" proves little; compare logits with a reference (lesson 08).
# - **100 iterations bring nothing**, although their matrices are *more* doubly stochastic. The model was trained with 20. Where the walk is slow, "after 20 steps" is a definite matrix, and the other weights have never met another. Nano's loss hardly
#   notices any of this (at most 0.003 from 2 rounds on); logits do. **To reproduce a model keep the number of iterations, the order of rows and columns, and eps**, as you keep the shape of an activation function.
#
# ## 7. Extend: doubly stochastic without iterating
#
# Birkhoff's theorem gives another way: learn weights for the n! permutations, softmax them, and take the weighted mean. It is exact, whatever the numbers (mHC-lite, arXiv 2601.05732).
#
# ### Exercise 6: a mixture of permutations
# *Medium, 8 minutes.* Then compare its error with Sinkhorn's.

# %%
def mixture(raw, permutations):
    """Exactly doubly stochastic matrices. raw: ... K, any numbers; permutations: K n n
    -> ... n n."""
    ### BEGIN SOLUTION
    return torch.einsum("...k,kij->...ij", raw.softmax(-1), permutations)
    ### END SOLUTION


# %%
mixture = check("mhc.mixture", mixture)
# 24 4 4
four = torch.stack([torch.eye(4)[list(order)] for order in itertools.permutations(range(4))])
rng = torch.Generator().manual_seed(5)
for sharpness in (1, 6, 12):
    exact = mixture(sharpness * torch.randn(2000, 24, generator=rng), four)
    walked = sinkhorn(sharpness * torch.randn(2000, 4, 4, generator=rng), 20, 1e-6)
    worst = [max((M.sum(axis) - 1).abs().max().item() for axis in (-1, -2))
             for M in (exact, walked)]
    print(f"sharpness {sharpness:2}: mixture off by less than 1e-5: {worst[0] < 1e-5}, "
          f"Sinkhorn by {worst[1]:.0e} at worst")
for n in (2, 3, 4, 8):
    print(f"n = {n}: outputs of fn for comb, Sinkhorn {n * n}, mixture {math.factorial(n)}")

# %% [markdown]
# For n = 4 the exact way needs 24 outputs instead of 16. For n = 8 it would need 40,320. V4 iterates.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | streams n | 4 | 4 | report 4.2.1 |
# | Sinkhorn iterations, eps | 20, 1e-6 | 20, 1e-6 | 4.2.1; eps from `config.json` |
# | layers, sites | 43, 86 | 61, 122 | 4.2.1 |
# | number format of mHC's parameters | float32 | float32 | released files |
#
# ### Parameters and operations
#
# By hand for Flash (d = 4096): a site has fn with 24 x 16,384 numbers, base with 24, scale with 3: 393,243. Times 86 sites, plus the head's 4 x 16,384 + 5 (the head weighs the streams together at the end, lesson 08):

# %%
flash = Config.from_json(paths.data("v4", "flash.config.json"))
n, d, layers = flash.hc_mult, flash.dim, flash.n_layers
by_hand_count = 2 * layers * ((2 + n) * n * (n * d + 1) + 3) + n * (n * d + 1) + 1
counted = cost.parts(flash)["hyper-connections"]
assert by_hand_count == counted
active = cost.params(flash)["active"]
weights = 2 * 2 * counted  # a multiply-add is two operations, float32 weighs 2
mixing = 2 * 2 * 2 * layers * (n + n * n + n) * d  # read, carry and write at 86 sites
total = cost.flops(flash, 4096)["total"]
print(f"parameters  {counted:,}: {counted / active:.2%} of the active ones")
share = (weights + mixing) / (total + mixing)
print(f"operations  {(weights + mixing) / 1e9:.2f} of {(total + mixing) / 1e9:.1f} GFLOP of a "
      f"token after 4,096: {share:.2%}")

# %% [markdown]
# (FP8 equivalents, as in lesson 05; reading, carrying and writing take n, n n and n multiply-adds for each of d channels and come on top of `cost.flops`. Sinkhorn itself is some 1,300 operations a site: nothing.)
#
# So mHC is nearly free? Not yet.
#
# ### Memory traffic
#
# It does little arithmetic on *much data*. Xie et al. (table 2) count what a site reads and writes for each token beside its layer, in units of d numbers: a residual connection 3 (read two, write one). Hyper-connections, written naively, 8n + 2. With their fused
# kernels (section 4.3.1) we count 4n + 2: read the streams for the maps, read them for pre, write u; read streams and f, write the streams.

# %%
unit = 2 * layers * d * 2 / 1e6  # MB for one vector of d numbers in BF16, all 86 sites
for name, units in (("residual", 3), ("hyper-connections, naive", 8 * n + 2),
                    ("hyper-connections, fused", 4 * n + 2)):
    print(f"{name:26} {units:3} vectors a site, {units * unit:5.1f} MB for each token through "
          "Flash")

# %% jupyter={"source_hidden": true}
NS = [1, 2, 4, 8, 16]
style.show(figures.plot_costs(
    NS, [cost.parts(flash.replace(hc_mult=k))["hyper-connections"] for k in NS],
    {"naive": [(8 * k + 2) * unit for k in NS], "fused": [(4 * k + 2) * unit for k in NS]}),
           "Left: parameters of mHC in Flash rise steeply with the number of streams, 34 "
           "million at 4. Right: memory traffic rises nearly in proportion, fused kernels "
           "about halve it. All axes are logarithmic")

# %% [markdown]
# Traffic grows six-fold with fused kernels, eleven-fold without. So DeepSeek wrote kernels, recomputes most of mHC in the backward pass instead of keeping it, and reports an overhead of **6.7 %** in the wall time of a stage of the training pipeline (report 3.5.2).
#
# ### Why four?
#
# The report gives no reason. What we can compute: the parameters of fn grow as $n^3 d$ (there are (2 + n) n rows of n d numbers). Eight streams would take 226 million parameters and twice the traffic, sixteen 1.6 billion. What others measured: the authors of xHC (arXiv 2607.14530) report that mHC beyond n = 4 brings "diminishing performance gains and rapidly increasing training cost".
#
# **The report claims** that the constraint makes training stable where free hyper-connections "frequently exhibit numerical instability when stacking multiple layers" (2.2). **Here we have shown** the instability and its cure in a toy of 64 sites, and that
# 20 iterations leave errors that one can measure. **At this scale we cannot show** that four streams make a better model than one: our toy ends level, within the spread.
#
# ## Key points
# - A site reads with pre, writes with post, and carries n streams on with comb *transposed*. What passes beside the layers is multiplied by a product of matrices, one a site.
# - Free matrices have free products: the gain of 64 sites can be hundreds, or nearly nothing. Doubly stochastic ones have products that are doubly stochastic.
# - V4's Sinkhorn: softmax of the rows + eps, columns, then 19 times rows and columns. Columns last: the forward gain is exact, the backward gain carries the error.
# - Each round multiplies what is left of the error by $\sigma_2^2$: fast for well-mixed matrices, slow near permutations, where trained matrices often lie. After 20 rounds percents can be left.
# - One normalisation bounds the gains by n. Both together also share the signal and the gradient fairly.
# - Iterations, order and eps belong to the model, even where its loss hardly notices. More iterations later are no improvement.
# - 0.26 % of Flash's active parameters, but six times a residual connection's memory traffic, with good kernels.
#
# ## Questions to discuss
#
# <details><summary>1. With n = 2, a colleague forgets the transpose of comb, and all tests pass. Why?</summary>
#
# A doubly stochastic 2 x 2 matrix is ((p, 1 - p), (1 - p, p)): symmetric. From n = 3 on there are cyclic permutations, which are not. *"Because Sinkhorn makes matrices symmetric"* is wrong for n > 2. Test with n of at least 3, and with streams that differ.
# </details>
#
# <details><summary>2. "The constraint costs expressive power: a doubly stochastic B can neither amplify nor forget." True?</summary>
#
# Half. The carried streams cannot be amplified or wiped out by B alone. But a layer writes with post, up to 2, and can write the negative of what is there: forgetting has to be *learnt as a layer's output*, as in every residual network. *"So mHC cannot forget"* is wrong;
# *"so nothing is lost"* too: free B could do it without a layer's help.
# </details>
#
# <details><summary>3. Orthogonal matrices also keep norms, and products of them are orthogonal. Why not use these?</summary>
#
# They would bound the gain as well (by the square root of n in our measure). But they have negative entries, so streams can cancel, their sum is not kept, and the path from a fresh identity to a mixture turns streams into differences of each other. The report wants signs that cannot cancel (2.2). Whether
# orthogonal ones train worse is a question for experiments; "they would explode" is wrong.
# </details>
#
# <details><summary>4. Your backward gain through 60 sites is 1.5, the forward gain 1.0000. Is something broken?</summary>
#
# No: that is what ending with the columns after 20 rounds looks like when many sites have similar, nearly permuting matrices. If the *forward* gain is 1.5 and the backward one exact, somebody ends with the rows (or forgot the transpose).
# </details>
#
# <details><summary>5. Why is the RMS taken over all n d numbers, and not of each stream by itself?</summary>
#
# One RMS keeps what the streams' *relative sizes* say; a norm for each would erase it. In a fresh model all streams are equal and both give the same, which is why the fault hides. *"For speed"* is not the reason, both are cheap.
# </details>
#
# ## Links
# - Xie et al., mHC: Manifold-Constrained Hyper-Connections, [arXiv 2512.24880](https://arxiv.org/abs/2512.24880): section 3.1 the instability, 4.3 the kernels, 5.4 the gains
# - Zhu et al., Hyper-Connections, [arXiv 2409.19606](https://arxiv.org/abs/2409.19606)
# - Sinkhorn and Knopp, Concerning nonnegative matrices and doubly stochastic matrices, [Pacific J. Math. 21, 1967](https://msp.org/pjm/1967/21-2/p14.xhtml)
# - mHC-lite: You Don't Need 20 Sinkhorn-Knopp Iterations, [arXiv 2601.05732](https://arxiv.org/abs/2601.05732); xHC: Expanded Hyper-Connections, [arXiv 2607.14530](https://arxiv.org/abs/2607.14530)
# - In this repository: `minids/model/mhc.py` (your maps and site, with gradients by hand), `tests/model/test_parity.py` (the judge)
