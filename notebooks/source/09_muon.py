# %% [markdown]
# # 09 Muon: updates in all directions
#
# **A gradient pushes a matrix hard in a few directions and hardly at all in the others. Muon, V4's optimiser, keeps the directions and makes all
# pushes equal: ten rounds of matrix products do it, without any decomposition.**
#
# **After this you can**
# - read a gradient's singular values, and say what plain descent, AdamW and Muon make of them,
# - orthogonalise a 2 x 2 matrix by hand, and any matrix with the iteration of the V4 report,
# - explain the two triples of coefficients: why eight steps are steep, and why the last two are flat,
# - find the faults in a Muon step, and say why $0.18 \sqrt{\max(n, m)}$ lets it share AdamW's learning rate,
# - say which of V4's tensors Muon updates and which stay with AdamW, and why experts must not be stacked into one matrix,
# - run a fair race between two optimisers, and tell what it shows from what it does not.
#
# *Time: 124 minutes, exercises included. The code itself runs in less than a minute, most of it the race in section 8.*
# *Before this: `backward`, matrix products, and what AdamW does: it keeps running means m of the gradient and v of its square, and moves each number by m / sqrt(v) (lesson 10 builds it). What a singular value is, this lesson says. Terms are in the
# [glossary](GLOSSARY.md).*

# %%
import math

import minids
import torch
import torch.nn.functional as F
from minids import Config, Model, cost
from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.pretrain import optim
from minids.show import muon, style
from minids.system import paths
from minids.weights import layout

style.use()
versions()

# %% [markdown]
# ## A gradient is lopsided
#
# We take the shipped model, eight pieces of a text it was not trained on, and the gradient of one matrix: `wq_b` of layer 1, which makes queries, 128 x 64 numbers.
# Any such matrix can be taken apart into 64 *directions*, each with a strength (its *singular value*; more on this below).
#
# **Predict before you run:** of the 64 directions, how many does it take to make up 90 % of the gradient (of the sum of its squared entries)? And of the update that AdamW makes of it?

# %%
folder = paths.data("checkpoints", "nano")
tokenizer = Tokenizer.load(folder)
shipped = minids.load(folder).train().requires_grad_(True)
piece = tokenizer.encode(books.documents("valid")[0].text[:12000])
ids = torch.tensor(piece[:8 * 129]).view(8, 129)                                     # B T+1
X, record = shipped.run(ids[:, :-1])                                                 # B T n d
logits = shipped.logits(X)                                                           # B T V
F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
gradients = {name: p.grad for name, p in shipped.named_parameters() if p.grad is not None}
G = gradients["layers.1.attn.wq_b.weight"]                                           # 128 64

updates = {"gradient": G,
           "AdamW's first update": G.sign(),  # m / sqrt(v) of a single gradient is its sign
           "Muon's first update": optim.orthogonalise(G[None])[0]}
# 64, descending
strengths = {name: torch.linalg.svdvals(update) for name, update in updates.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def directions(s, share=0.9):
    """How many of the singular values s, strongest first, make up this share of the squared
    norm."""
    part = s.square().cumsum(0) / s.square().sum()
    return int((part < share).sum()) + 1

for name, s in strengths.items():
    print(f"{name:22} 90 % in {directions(s):2} of {len(s)} directions; weakest / strongest "
          f"{s[-1] / s[0]:.4f}")
style.show(muon.plot_spectra(strengths), "The gradient's singular values fall off steeply and "
           "a few directions hold most of its norm; AdamW's update is less lopsided; in Muon's "
           "all directions are equally strong")

# %% jupyter={"outputs_hidden": true}
few, some, all_ = (directions(s) for s in strengths.values())
assert few <= 22 < some < 48 and all_ == 58
style.say("90 %: less than a third of the directions in the gradient, about half of them in "
          "AdamW's update, 58 of 64 in Muon's.")

# %% [markdown]
# AdamW looks at each *number* by itself: every entry of its first update is +1 or -1. Yet as a matrix this update is still lopsided: numbers of equal size can conspire to one strong direction.
# Muon looks at the *matrix*. Its update is the one in which no direction is stronger than another (58 is 90 % of 64, rounded up).
#
# Is that matrix an exception? Here are all matrices of the model that got a gradient and have at least 24 directions.

# %% tags=["nbval-ignore-output"]
matrices = {name: g for name, g in gradients.items() if optim.for_muon(name, g)
            and min(g.shape) >= 24 and g.any()}
needed = {}
for kind, make in (("gradient", lambda g: g), ("its sign", torch.sign)):
    shares = torch.tensor([directions(torch.linalg.svdvals(make(g))) / min(g.shape)
                           for g in matrices.values()])
    needed[kind] = shares
    print(f"{kind:9} {len(shares)} matrices: 90 % in {shares.median():.0%} of the directions "
          f"(median), from {shares.min():.0%} to {shares.max():.0%}")

# %%
assert needed["gradient"].median() < 0.3 < needed["its sign"].median() < 0.8
style.say("No exception: half of the matrices need fewer than 30 % of their directions; the "
          "signs need more, but not 90 %.")

# %% [markdown]
# ## 1. What the directions are: a circle, an ellipse, a circle
#
# A matrix turns a circle into an ellipse. Take
#
# $$ G = \begin{pmatrix} 3 & 0 \\ 4 & 5 \end{pmatrix} . $$
#
# The half axes of the ellipse are the **singular values** $\sigma$. The inputs that end up on the axes are at right angles, and so are the axes. That is the **singular value
# decomposition** (SVD): $G = U \Sigma V^T$. Turn ($V^T$), stretch ($\Sigma$, a diagonal of singular values), turn ($U$).
#
# By hand: $\sigma_1^2 + \sigma_2^2$ is the sum of all squares, $9 + 16 + 25 = 50$. And $\sigma_1 \sigma_2$ is the determinant, 15. So $\sigma_1^2 = 45$ and $\sigma_2^2 = 5$.
#
# **To orthogonalise** means: leave out the stretching. $U V^T$ has the same directions, and all its singular values are 1. For a 2 x 2 matrix with a positive
# determinant there is a shortcut: to $\begin{pmatrix} a & b \\ c & d \end{pmatrix}$ add $\begin{pmatrix} d & -c \\ -b & a \end{pmatrix}$, and divide by the length of a row:
#
# $$ \begin{pmatrix} 3 + 5 & 0 - 4 \\ 4 - 0 & 5 + 3 \end{pmatrix} = \begin{pmatrix} 8 & -4 \\ 4 & 8 \end{pmatrix}
#  \;\longrightarrow\; \frac{1}{\sqrt{5}} \begin{pmatrix} 2 & -1 \\ 1 & 2 \end{pmatrix} . $$

# %%
G2 = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
U, s, Vt = torch.linalg.svd(G2)
Q2 = U @ Vt
print("singular values squared:", [round(v, 3) for v in s.square().tolist()])
print("U V^T:", [[round(v, 3) for v in row] for row in Q2.tolist()])
torch.testing.assert_close(Q2, torch.tensor([[2.0, -1.0], [1.0, 2.0]]) / 5**0.5)
torch.testing.assert_close(Q2 @ Q2.T, torch.eye(2))
style.show(muon.plot_circles(G2, Q2), "A circle of inputs, the ellipse that G makes of it, and "
           "the circle that its orthogonalised matrix makes; two arrows at right angles stay "
           "at right angles, and in the end have equal length again")

# %% [markdown]
# ### Why should equal be better?
#
# How good is an update $O$, a step of $-O$? To first order the loss falls by the sum of the products of entries, $\langle G, O \rangle = \sum_{ij} G_{ij} O_{ij}$. A larger update gains more, so the question only makes sense with a bound.
# **Each optimiser is the best one for its own bound:**
#
# | the bound | the best update | who does that |
# | --- | --- | --- |
# | sum of squared entries | $G$ itself, scaled | gradient descent |
# | every single entry | $\mathrm{sign}(G)$ | AdamW, roughly |
# | every singular value: no input may be stretched by more than 1 | $U V^T$ | Muon |
#
# The last bound is about what a matrix *does*: however the input points, the layer's output moves by at most a given length.
#
# **Predict before you run:** all three updates of our $G$ below are scaled so that no input is stretched by more than 1. Which gains most?

# %% jupyter={"outputs_hidden": true}
for name, O in (("G", G2), ("sign(G)", G2.sign()), ("U V^T", Q2)):
    O = O / torch.linalg.matrix_norm(O, ord=2)  # divide by the largest singular value
    print(f"{name:8} gain {(G2 * O).sum():.2f}")

# %% [markdown]
# $U V^T$ gains $\sigma_1 + \sigma_2 = 6.71 + 2.24 = 8.94$, and no other matrix under this bound can gain more. That is a sound reason, but not a proof that training goes faster: the loss is no straight line, and the gradient of a
# batch is noisy. A second argument is that rare directions matter: what few tokens need is a weak direction in the mean gradient. Why it works as well as it does is still
# debated; so we will measure.
#
# ## 2. Orthogonalise without an SVD
#
# An SVD of a large matrix is slow, and matrix products are what a GPU does best. The way out: **a polynomial in the matrix is a polynomial of its singular values.** Since $U$ and $V$ are turns,
#
# $$ X X^T X = U \Sigma V^T \; V \Sigma U^T \; U \Sigma V^T = U \Sigma^3 V^T . $$
#
# So $a X + b X X^T X + c (X X^T)^2 X$ leaves the directions alone and maps each singular value by itself, $\sigma \mapsto a \sigma + b \sigma^3 + c \sigma^5$. Repeat with good coefficients,
# and all of them drift to 1. This is a **Newton-Schulz iteration** (report, section 2.4, equation 28).
#
# One step by hand. First divide by the **Frobenius norm**, the root of the sum of squares, here $\sqrt{50}$. Then $\sigma_1 = \sqrt{0.9} = 0.949$ and $\sigma_2 = \sqrt{0.1} = 0.3162$:
# no singular value can be above 1. With V4's first coefficients, $(3.4445, -4.7750, 2.0315)$,
#
# $$ 0.3162: \quad 3.4445 \cdot 0.3162 - 4.775 \cdot 0.0316 + 2.0315 \cdot 0.00316 = 0.945 . $$
#
# **Predict before you run:** 0.316 becomes 0.945. What becomes of 0.949: larger than 1, about 1, or less than 0.945?

# %% jupyter={"outputs_hidden": true}
STEEP, FLAT = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)
HYBRID = [STEEP] * 8 + [FLAT] * 2                          # V4's ten steps
X = G2 / G2.norm()                                         # the Frobenius norm
one, two = torch.linalg.svdvals(X).tolist()
print(f"start          {one:.4f}  {two:.4f}")
for number, (a, b, c) in enumerate(HYBRID, 1):
    A = X @ X.T                                            # 2 2
    X = a * X + b * A @ X + c * A @ A @ X
    one, two = (a * v + b * v**3 + c * v**5 for v in (one, two))
    torch.testing.assert_close(torch.linalg.svdvals(X),
                               torch.tensor(sorted([one, two], reverse=True)))
    print(f"after step {number:2}  {one:.4f}  {two:.4f}   {'steep' if number <= 8 else 'flat'}")
torch.testing.assert_close(X, Q2, atol=1e-3, rtol=0)
print("the matrix is U V^T within 0.001")

# %% [markdown]
# It becomes 0.752: the large one falls below the small one. The steep steps do not converge at all, both values wander about between 0.7 and 1.1. Two flat steps then bring
# them to 1. Each line was checked against the SVD of the matrix.
#
# ## 3. Eight steep steps, two flat ones

# %% jupyter={"source_hidden": true}
style.show(muon.plot_polynomials(),
           "Left: the steep polynomial rises fast from zero and then swings between about 0.7 "
           "and 1.1. Right: the flat polynomial maps everything between 0.7 and 1.1 close to 1")

# %% [markdown]
# **Steep.** Near zero a step multiplies by $a = 3.4445$. Eight steps multiply by $3.4445^8$, about 20,000. To be steep there, the polynomial must overshoot further right: it does not keep 1 at 1 ($a + b + c = 0.701$). It
# maps the shaded range into itself, so values that have arrived stay within it.
#
# **Flat.** $(2, -1.5, 0.5)$ sums to 1, so 1 stays at 1. And its slope there is $2 - 3 \cdot 1.5 + 5 \cdot 0.5 = 0$. With slope 0, an error $e$ becomes about $e^2 / 2$ (half the second derivative,
# which is 1): errors are *squared*, not just shrunk.
#
# **Predict before you run:** the shaded range reaches down to 0.68, an error of 0.32. How large is the worst error after one flat step, and after two?

# %% jupyter={"outputs_hidden": true}
# where eight steep steps leave those above 2e-4
v = torch.linspace(0.6818, 1.1344, 1001, dtype=torch.float64)
for steps in (0, 1, 2):
    after = muon.apply_steps(v, [FLAT] * steps)  # the polynomial, number by number
    print(f"after {steps} flat steps: from {after.min():.4f} to {after.max():.4f}")

# %% [markdown]
# From 0.32 to 0.04 to 0.0005. A third step would be a waste.
#
# ### Exercise 1: design a flat polynomial
# *Easy, 8 minutes.* The slope $a$ at zero is free. Find $b$ and $c$ such that $p(1) = 1$ and $p'(1) = 0$, for $p(x) = a x + b x^3 + c x^5$. For $a = 2$ you must get V4's.

# %%
def flat(a):
    """a: slope at zero, a float -> (b, c), floats."""
    ### BEGIN SOLUTION
    c = a - 1.5
    return 1 - a - c, c
    ### END SOLUTION


# %%
flat = check("muon.flat", flat)

# %% [markdown]
# Now the choice of $a$. **Predict before you run:** which slope leaves the smallest error after two steps: small, so that nothing overshoots, or large?

# %% jupyter={"outputs_hidden": true}
for a in (1.5, 1.7, 1.875, 1.9, 2.0, 2.1, 2.3, 2.5):
    p = (a, *flat(a))
    worst = [(muon.apply_steps(v, [p] * steps) - 1).abs().max() for steps in (1, 2)]
    note = {1.5: "the classic cubic one, c = 0", 1.875: "p'' is 0 at 1, too",
            2.0: "V4's"}.get(a, "")
    print(f"a = {a:5}: worst error {worst[0]:.4f}, then {worst[1]:.5f}   {note}")

# %% [markdown]
# Neither. Between 1.875 and 2.1 lies a valley, and 2 is the round number in it. Even a polynomial that is flatter *at* 1 ($a = 1.875$) is no better: what counts is the whole range.
#
# ### All ten together

# %% jupyter={"source_hidden": true}
style.show(muon.plot_all_steps(),
           "The map of all steps over the size of a singular value. Five steep steps scatter "
           "between about 0.7 and 1.2 and leave values below 0.001 small; eight steep steps "
           "reach further down; with two flat steps the result is a straight line at 1")

# %% [markdown]
# The dashed line, "5 steep", is Muon as first published (Jordan et al., 2024): five steep steps. It leaves values scattered, and lifts only what is above about 0.001 of the norm. V4's ten reach further down, and end on the line.

# %%
x = torch.logspace(-5, 0, 100_001, dtype=torch.float64)
y = muon.apply_steps(x, HYBRID)
reached = x[(y - 1).abs() > 0.05].max()
inside = x > 2e-4
print(f"within 5 % of 1: everything above {reached:.1e} of the norm")
print(f"above 2e-4: from {y[inside].min():.4f} to {y[inside].max():.4f}")

# %% [markdown]
# ### Play
# The gradient from the beginning, step by step. **Find out:** after how many steps has the weakest direction passed 0.5? And after which step does the histogram become narrow?

# %%
normed = torch.linalg.svdvals(G / G.norm())                                          # 64


def draw(steps):
    return muon.plot_after_steps(steps, normed)


box = style.slider_image(
    draw, "The map after some steps, and a histogram of the singular values it makes of "
          "this gradient", steps=range(11))
box

# %%
box.peek(steps=9)
spread = [float(muon.apply_steps(normed, HYBRID[:n]).std()) for n in (8, 9, 10)]
assert spread[0] > 5 * spread[1] > 25 * spread[2]
assert (muon.apply_steps(normed, HYBRID) - 1).abs().max() < 0.02
first = next(n for n in range(11) if muon.apply_steps(normed, HYBRID[:n]).min() > 0.5)
assert 3 <= first <= 8
print("The histogram becomes narrow in step 9, the first flat one.")

# %% tags=["nbval-ignore-output"]
style.say(f"The weakest direction starts at {normed.min():.4f} and passes 0.5 in step {first}: "
          "each step multiplies it by 3.4.")

# %% [markdown]
# The same as a figure, each direction a line:

# %% jupyter={"source_hidden": true}
style.show(muon.plot_paths(normed),
           "Sixty-four lines, one for each direction: they rise at a common slope, tangle near "
           "1 while the steps are steep, and meet at 1 in the two flat steps")

# %% [markdown]
# ## 4. The iteration for any matrix
#
# $X X^T$ of a tall matrix is large: 128 x 64 gives 128 x 128. So a tall matrix is turned on its side (transposed) first, and turned back at the end; the singular values are the same. A step costs
# $4 r^2 s + 2 r^3$ operations, with $r$ the smaller and $s$ the larger side (a product of $n \times k$ and $k \times m$ takes $2nkm$).
#
# **Predict before you run:** Flash's `wq_b` is 32,768 x 1,024. How many times as much would the iteration cost, if you forgot to turn it?

# %% jupyter={"outputs_hidden": true}
def operations(rows, columns, steps=10):
    """Of the whole iteration, without turning: r is what X X^T is made of."""
    r, s = rows, columns
    return steps * (4 * r * r * s + 2 * r**3)


rows, columns = layout.tensors(Config.flash())["layers.2.attn.wq_b.weight"][1]
print(f"{rows} x {columns}: {operations(rows, columns) / operations(columns, rows):.0f} times "
      "as many operations")

# %% [markdown]
# ### Exercise 2: the hybrid iteration
# *Medium, 15 minutes.* Normalise and iterate. Transpose a tall matrix before and after; the check counts what the products cost. A matrix of zeros (an expert that no token chose) must stay zero: add `1e-20` to the norm.

# %%
def orthogonalise(G):
    """G: rows x columns, float32 -> a matrix of the same shape with G's directions and singular
    values near 1.

    STEEP and FLAT hold the coefficients (a, b, c): eight steps with the one, then two with the
    other."""
    ### BEGIN SOLUTION
    tall = G.shape[0] > G.shape[1]
    X = G.mT if tall else G                                # r s, r <= s
    X = X / (X.norm() + 1e-20)
    for a, b, c in [STEEP] * 8 + [FLAT] * 2:
        A = X @ X.mT                                       # r r
        X = a * X + (b * A + c * A @ A) @ X                # r s
    return X.mT if tall else X
    ### END SOLUTION


# %%
orthogonalise = check("muon.orthogonalise", orthogonalise)

# %% [markdown]
# Two judges: `minids.pretrain.optim`, which computes matrices of one shape together, and PyTorch's SVD, which knows nothing of polynomials. (`hint("muon.orthogonalise")` helps you on.)

# %%
rng = torch.Generator().manual_seed(0)
for shape in ((64, 128), (128, 64), (96, 96)):
    M = torch.randn(3, *shape, generator=rng)  # three matrices of one shape
    mine = torch.stack([orthogonalise(m) for m in M])
    torch.testing.assert_close(mine, optim.orthogonalise(M), atol=1e-4, rtol=1e-3)
    U, s, Vt = torch.linalg.svd(M, full_matrices=False)
    near = bool((mine - U @ Vt).abs().max() < 1e-3)
    print(f"{shape[0]:3} x {shape[1]:3}: equal to minids; within 0.001 of U V^T: {near} "
          f"(weakest / strongest was {s[:, -1].min() / s.max():.4f})")

# %% [markdown]
# ### Sabotage: how much does the normalisation matter?
# The Frobenius norm is never smaller than the largest singular value, and usually larger than needed. **Predict before you run:** what if we divide by a smaller number, so that we start closer to 1?
# And what if we divide by one that is far too large?

# %% jupyter={"outputs_hidden": true}
def iterate(X):
    for a, b, c in HYBRID:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X


R = torch.randn(24, 48, generator=rng)
R = R / torch.linalg.svdvals(R)[0]                         # largest singular value 1
for start in (1e-6, 1e-4, 0.01, 1.0, 1.2, 1.3):
    X = iterate(start * R)
    s = torch.linalg.svdvals(X) if X.isfinite().all() else None
    print(f"largest at the start {start:6g}:",
          "runs away to infinity" if s is None else f"then {s[-1]:.2f} to {s[0]:.2f}")

# %% [markdown]
# Too small costs nothing over a wide range: ten steps have slack. Too large is fatal: above about 1.26 the steep polynomial grows without bound.
#
# ## 5. The step
#
# For each matrix $W$ with $n$ rows and $m$ columns (report, algorithm 1; $\mu = 0.95$, $\gamma = 0.18$, $\lambda = 0.1$, section 4.2.2):
#
# $$ M \leftarrow \mu M + G, \qquad O = \mathrm{orthogonalise}(\mu M + G) \cdot \gamma \sqrt{\max(n, m)}, \qquad W \leftarrow W (1 - \eta \lambda) - \eta\, O . $$
#
# $M$ is the **momentum**, a running sum of gradients. $\mu M + G$ looks one step ahead, as if the same gradient came once more: **Nesterov's** trick. $\eta$ is the learning rate and $\lambda$ the weight decay,
# which is *decoupled*: it shrinks $W$ directly and never enters the gradient.
#
# Note what is **not** there: no second moment, no epsilon to tune. Muon keeps one number for each weight where AdamW keeps two.
#
# ### Exercise 3: three faults
# *Medium, 10 minutes.* A colleague's step runs, and a model trains with it. It has **three** faults. Two of them leave symptoms in the cell below; for the third, compare line by line with the
# equations. Write the repaired version.

# %%
def colleagues_step(W, G, M, lr, mu=0.95, decay=0.1):
    rows, columns = W.shape
    G = G + decay * W
    M = mu * M + G
    O = orthogonalise(M)
    O = O * 0.18 * min(rows, columns)**0.5
    return W - lr * O, M


W, zero = 0.1 * torch.randn(16, 64, generator=rng), torch.zeros(16, 64)
new, _ = colleagues_step(W, zero, zero, lr=0.1)
print("no gradient at all: W should shrink to 0.990 of its norm, it shrinks to "
      f"{new.norm() / W.norm():.3f}")
new, _ = colleagues_step(zero, W, zero, lr=0.1)
print("a gradient, W = 0: the move / lr should have an RMS of 0.180, it has "
      f"{new.square().mean().sqrt() / 0.1:.3f}")

# %%
def muon_step(W, G, M, lr, mu=0.95, decay=0.1):
    """W, G, M: rows x columns; lr: a float -> (new W, new M). Uses your orthogonalise."""
    ### BEGIN SOLUTION
    rows, columns = W.shape
    M = mu * M + G
    O = orthogonalise(mu * M + G)
    O = O * 0.18 * max(rows, columns)**0.5
    return W * (1 - lr * decay) - lr * O, M
    ### END SOLUTION


# %%
muon_step = check("muon.step", muon_step)

# %% [markdown]
# Five steps of yours against five of `minids`:

# %%
W = torch.randn(48, 20, generator=rng)
p, M = torch.nn.Parameter(W.clone()), torch.zeros_like(W)
packaged = optim.Muon([p], lr=0.02)
for step in range(5):
    p.grad = torch.randn(48, 20, generator=rng)
    W, M = muon_step(W, p.grad, M, lr=0.02)
    packaged.step()
torch.testing.assert_close(W, p.detach(), atol=1e-4, rtol=1e-4)
print("five steps equal minids.pretrain.optim.Muon")

# %% [markdown]
# PyTorch ships a Muon as well: five steep steps, in bfloat16, with 0.2 in place of 0.18. It should agree in direction, not in digits. The angle between two updates says how far:

# %% tags=["nbval-ignore-output"]
def first_update(kind, g, **options):
    p = torch.nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    kind([p], lr=1.0, weight_decay=0.0, **options).step()
    return -p.detach()


ours = first_update(optim.Muon, G)
theirs = first_update(torch.optim.Muon, G, adjust_lr_fn="match_rms_adamw")
alike = {"torch.optim.Muon": F.cosine_similarity(ours.flatten(), theirs.flatten(),
                                                 dim=0).item(),
         "AdamW's sign": F.cosine_similarity(ours.flatten(), G.sign().flatten(), dim=0).item()}
print("cosine with minids.pretrain.optim.Muon:",
      {name: round(c, 3) for name, c in alike.items()})

# %%
assert alike["torch.optim.Muon"] > 0.9 > 0.7 > alike["AdamW's sign"]
print("The cosine with PyTorch's Muon is above 0.9; with AdamW's sign it is below 0.7.")

# %% [markdown]
# ### Why 0.18 times the root of the larger side?
#
# An orthogonalised $n \times m$ matrix has $\min(n, m)$ singular values of 1. Their squares sum to the sum of all squared entries, so the mean square of an entry is $\min(n, m) / (n m) = 1 / \max(n, m)$. Its root
# (RMS) is $1 / \sqrt{\max(n, m)}$: entries of *large* matrices would move *less*. Times $0.18 \sqrt{\max(n, m)}$ makes it 0.18 for every shape.
#
# And why 0.18? AdamW's updates $m / \sqrt{v}$ have an RMS of about 0.2 to 0.4 in practice (Liu et al., 2025). With a similar size, Muon can share AdamW's learning rate and decay: that is what the report says the
# factor is for (section 4.2.2).
#
# **Predict before you run:** by what factor do the unscaled updates of the first and the last matrix differ?

# %% jupyter={"outputs_hidden": true}
for rows, columns in ((16, 16), (16, 64), (256, 64), (24, 512), (1024, 256), (2048, 1024)):
    O = optim.orthogonalise(torch.randn(1, rows, columns, generator=rng))[0]
    rms = O.square().mean().sqrt()
    print(f"{rows:5} x {columns:4}: RMS {rms:.4f} unscaled, "
          f"{0.18 * max(rows, columns)**0.5 * rms:.3f} scaled")

# %% [markdown]
# By $\sqrt{2048 / 16} = 11.3$. With one learning rate for all, the small matrices would race and the large ones would crawl.
#
# ## 6. Each expert by itself
#
# The report orthogonalises "each logically independent weight". For speed, matrices of one shape may be computed *side by side*. They must not be *stacked* into one tall matrix. The smallest example: two experts, each a single row, and
# the second one saw few tokens, so its gradient is small.

# %%
two_experts = torch.tensor([[[1.0, 0.0]], [[0.001, 0.0]]])         # 2 experts, 1 x 2 each
apart = optim.orthogonalise(two_experts)
stacked = optim.orthogonalise(two_experts.flatten(0, 1)[None])[0]  # one matrix of 2 x 2
print("each by itself:", [[round(v, 3) + 0.0 for v in row] for row in apart[:, 0].tolist()])
print("stacked:       ", [[round(v, 3) + 0.0 for v in row] for row in stacked.tolist()])

# %% [markdown]
# By itself, each row gets length 1. In the stack, both rows point the same way, so they are *one* direction, and the second expert stays 1,000 times slower.
#
# Now the real thing: the gradients of `w1` of all eight experts in layer 3 of the shipped model. **Predict before you run:** if one expert's gradient grows threefold, what happens to the updates of the *other* seven?

# %%
layer = shipped.layers[3].ffn
load = record.loads[3 - shipped.config.n_hash_layers]
share = 100 * load / load.sum()                                # 8: who was chosen how often
E = torch.stack([expert.w1.weight.grad for expert in layer.experts])                # 8 64 128


def in_a_stack(E):
    return optim.orthogonalise(E.flatten(0, 1)[None]).view_as(E)  # 512 x 128 as one matrix


louder = E.clone()
louder[0] *= 3
change = {name: ((make(louder) - make(E))[1:].norm() / make(E)[1:].norm()).item()
          for name, make in (("stacked", in_a_stack), ("each by itself", optim.orthogonalise))}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print("the other seven change by", {name: f"{c:.1%}" for name, c in change.items()})
together, apart = (make(E).flatten(1).norm(dim=1).tolist()
                   for make in (in_a_stack, optim.orthogonalise))
within = torch.linalg.svdvals(in_a_stack(E)[0])
print(f"inside the stack, expert 0's own singular values run from {within[-1]:.2f} to "
      f"{within[0]:.2f}")
style.show(muon.plot_experts(share.tolist(), together, apart),
           "Left: experts are chosen unequally often. Right: taken each by itself, all experts "
           "with enough tokens move equally far; in the stack all but the busiest move less")

# %% jupyter={"outputs_hidden": true}
assert change["stacked"] > 0.05 and change["each by itself"] < 1e-6
assert (max(together) > 1.3 * min(together) and max(apart) < 8.01
        and within[-1] < 0.5 * within[0])
style.say("In the stack, experts disturb each other: the loudest takes most of the directions. "
          "Each by itself, the others stay.")

# %% [markdown]
# If a blue bar is short, look at its share: the gradient of an expert that saw only $k$ tokens is a sum of $k$ products of one column and one row. It has at most $k$ directions, and its update has the norm $\sqrt{k}$ instead of
# $\sqrt{64} = 8$. Muon evens out the directions that are there, and invents none. (With momentum, directions of earlier steps are still there.)
#
# There is a price: with AdamW or Muon alike, an expert that saw two tokens moves along those two as far as others move on hundreds. That is noise; balancing (lesson 06) keeps such experts rare.
#
# ## 7. Who goes where
#
# V4 keeps AdamW for the embedding, the head, all norm weights, and mHC's static biases and gating factors (`hc_..._base`, `hc_..._scale`). "All other modules are updated with Muon" (section 2.4).
# What about small tensors that the report does not mention? `attn_sink` and the gates' `bias` are vectors: orthogonalising them would only normalise. `ape`, a table of biases in the compressors, has two dimensions but
# multiplies nothing: it is added. `minids` gives it to AdamW, and that is our reading, not the report's word.
#
# ### Exercise 4: choose
# *Easy, 8 minutes.* Look at one block's names first, then pick Muon's.

# %%
for name, (_, shape) in layout.tensors(Config.nano()).items():
    if not name.startswith(("layers.0.", "layers.2.", "layers.3.",
                            "mtp.")) and (".experts." not in name or ".experts.0." in name):
        print(f"{name:46} {' x '.join(map(str, shape))}")

# %%
def choose(shapes):
    """shapes: {name: shape, a tuple} of all parameters -> the set of the names that Muon
    updates."""
    ### BEGIN SOLUTION
    adamw = ("embed.weight", "head.weight")
    return {name for name, shape in shapes.items()
            if len(shape) == 2 and name not in adamw and not name.endswith("ape")}
    ### END SOLUTION


# %%
choose = check("muon.choose", choose)

# %% [markdown]
# Counted for the real models. (The tables of the hash layers are no parameters; MTP is included.)

# %%
def parameters(config):
    return {name: shape
            for name, (kind, shape) in layout.tensors(config).items() if kind != "I64"}


for name, config in (("Flash", Config.flash()), ("Pro", Config.pro())):
    shapes = parameters(config)
    picked = choose(shapes)
    numbers, everything = (sum(math.prod(shapes[n]) for n in names)
                           for names in (picked, shapes))
    print(f"{name:6}{len(picked):7,} matrices of {len(shapes):,} tensors, "
          f"{len({shapes[n] for n in picked})} shapes; {numbers:,} numbers = "
          f"{numbers / everything:.2%}")

# %% [markdown]
# Fifteen shapes at most: so the 34,446 matrices of Flash become a few batches. The report merges matrices of one shape for that reason (section 3.5.1).
#
# ## 8. The race
#
# A fair race needs: the same model, the same batches, the same learning-rate schedule, and **each optimiser at its own best rate**. A small V4 with 3 layers learns to predict *bytes* of the shipped text, so that the embedding is small and matrices do the
# work. The only difference is who updates the matrices, and at which rate. All other parameters get AdamW with the rate 0.016 in both, which was not varied.

# %%
def as_bytes(split):
    return torch.frombuffer(bytearray("".join(d.text for d in books.documents(split)).encode()),
                            dtype=torch.uint8)


BYTES = {split: as_bytes(split) for split in ("train", "valid")}
SMALL = Config.nano().replace(vocab_size=256, dim=64, n_layers=3, compress_ratios=(0, 4, 16),
                              n_mtp_layers=0,
                              q_lora_rank=32, o_lora_rank=32, moe_inter_dim=32)


def windows(split, number, rng, length=128):
    start = torch.randint(len(BYTES[split]) - length, (number, 1), generator=rng)
    return BYTES[split][start + torch.arange(length + 1)].long()  # B T+1


def loss_of(model, ids):
    # nats per byte
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


LOOK = windows("valid", 64, torch.Generator().manual_seed(99))  # the same for all runs

# %%
def race(kind, lr, seed, steps=100):
    """Train a new model; kind: "AdamW" or "Muon"; lr: the matrices' rate
    -> (model, losses of the steps, loss on LOOK, the matrices' optimiser)."""
    torch.manual_seed(seed)
    model, rng, losses = Model(SMALL).train(), torch.Generator().manual_seed(seed), []
    matrices = [p for name, p in model.named_parameters() if optim.for_muon(name, p)]
    others = [p for name, p in model.named_parameters() if not optim.for_muon(name, p)]
    adamw = dict(betas=(0.9, 0.95), eps=1e-20, fused=True)  # V4's betas and eps
    first = (optim.Muon(matrices, lr) if kind == "Muon"
             else torch.optim.AdamW(matrices, weight_decay=0.1, **adamw))
    both = first, torch.optim.AdamW(others, weight_decay=0.0, **adamw)
    for step in range(steps):
        # warm-up, then a cosine to a tenth
        part = min((step + 1) / 10, 0.55 + 0.45 * math.cos(math.pi * step / steps))
        for optimiser, rate in zip(both, (lr, 0.016)):
            for group in optimiser.param_groups:
                group["lr"] = rate * part
        loss = loss_of(model, windows("train", 8, rng))
        model.zero_grad()
        loss.backward()
        for optimiser in both:
            optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        return model, losses, loss_of(model.eval(), LOOK).item(), first

# %% [markdown]
# ### First the learning rates
# Seven rates for AdamW, six for Muon (without the smallest), three seeds: 39 runs of `race`. That takes several minutes, so it was done once, and their losses are kept in `minids.show.muon`. To run them again:
#
#     rates = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
#     {kind: {lr: [race(kind, lr, seed)[2] for seed in range(3)] for lr in tried}
#      for kind, tried in (("AdamW", rates), ("Muon", rates[1:]))}
#
# **Predict before you run:** the factor 0.18 makes Muon's updates as large as AdamW's. Do both have the same best rate?

# %% jupyter={"outputs_hidden": true}
style.show(muon.plot_sweep(), "Validation loss after 100 steps over the learning rate, both "
           "optimisers, with a mark for each seed")
best = {kind: min(losses, key=lambda rate: sum(losses[rate]))
        for kind, losses in muon.SWEEP.items()}
for kind, rate in best.items():
    runs = muon.SWEEP[kind][rate]
    print(f"{kind:6} best rate {rate:g}: mean loss {sum(runs) / len(runs):.3f}, seeds from "
          f"{min(runs):.3f} to {max(runs):.3f}")

# %% [markdown]
# Three things to see, all at this size and length:
# - At the rate 0.001 AdamW is ahead. At 0.002 the two are alike: their means differ by less than the seeds do.
# - Muon goes on improving up to 0.016, where AdamW has lost ground since 0.002. AdamW's best rate is 0.001 or 0.002 (a tie), so Muon's is 8 to 16 times as large. **The lead comes from steps that are larger and still safe.**
# - So an equal RMS does not mean an equal *best* rate. The factor 0.18 makes the rates comparable, and a rate tuned for AdamW safe to start from. It does not spare the search.
#
# ### Now live
# Both at their best rates, 100 steps of 8 x 128 bytes. One seed each is enough here: the figure above has three, and their spread. **Predict before you run:** how many steps does Muon
# need for the loss that AdamW has after 100?

# %%
runs = {kind: race(kind, best[kind], seed=0) for kind in ("AdamW", "Muon")}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
curves = {kind: torch.tensor(losses) for kind, (_, losses, _, _) in runs.items()}   # steps
style.show(muon.plot_race(curves),
           "Training loss over steps: Muon's line lies below AdamW's from early on")
for kind, (_, _, end, _) in runs.items():
    print(f"{kind:6} validation loss after 100 steps: {end:.3f}")
goal = curves["AdamW"][-10:].mean()  # the last ten steps
# the first ten that reach it
early = 10 + int((curves["Muon"].unfold(0, 10, 1).mean(-1) <= goal).nonzero()[0])
print(f"Muon reaches AdamW's final training loss after {early} steps")

# %% jupyter={"outputs_hidden": true}
stored = {kind: muon.SWEEP[kind][best[kind]] for kind in runs}
assert (runs["Muon"][2] < runs["AdamW"][2] - 0.05
        and max(stored["Muon"]) < min(stored["AdamW"]) - 0.05 and early < 85)
style.say("Muon is ahead, here and with the three stored seeds, by more than those differ; it "
          "needs fewer than 85 of the 100 steps.")

# %% [markdown]
# ### Are AdamW's updates of the size that was promised?
#
# AdamW's state holds $m$ and $v$ of the last step, so its last update can be computed: $m / \sqrt{v}$, both corrected for their start at 0.

# %% tags=["nbval-ignore-output"]
def last_update(state, betas=(0.9, 0.95)):
    m = state["exp_avg"] / (1 - betas[0]**state["step"])
    v = state["exp_avg_sq"] / (1 - betas[1]**state["step"])
    return m / (v.sqrt() + 1e-20)


adamw = runs["AdamW"][3]
sizes = torch.tensor([last_update(state).square().mean().sqrt()
                      for state in adamw.state.values()])
print(f"RMS of AdamW's last update over {len(sizes)} matrices: median {sizes.median():.2f}, "
      f"half of them from {sizes.quantile(0.25):.2f} to {sizes.quantile(0.75):.2f}")

# %%
assert 0.12 < sizes.median() < 0.45
style.say("Of the size that Liu et al. report, 0.2 to 0.4, or slightly below: Muon's 0.18 is a "
          "fair match.")

# %% [markdown]
# ### What the weights look like afterwards
#
# **Effective rank** says over how many directions a matrix spreads: $\exp(-\sum_i q_i \ln q_i)$ with $q_i = \sigma_i^2 / \sum_j \sigma_j^2$. It is 1 if one direction has all, and the number of
# directions if all are equal. We divide by that number.

# %%
def effective_rank(W):
    """Between 0 and 1: the share of its directions that W uses."""
    q = torch.linalg.svdvals(W).square()
    q = (q / q.sum()).clamp_min(1e-20)
    return ((-(q * q.log()).sum()).exp() / len(q)).item()


def mean_rank(model):
    ranks = [effective_rank(p.detach())
             for name, p in model.named_parameters() if optim.for_muon(name, p)]
    return sum(ranks) / len(ranks)


torch.manual_seed(0)
print(f"before training: {mean_rank(Model(SMALL)):.2f}")

# %% tags=["nbval-ignore-output"]
ranks = {kind: mean_rank(model) for kind, (model, *_) in runs.items()}
for kind, value in ranks.items():
    print(f"{kind:6} after 100 steps: {value:.2f}")

# %%
assert ranks["Muon"] > ranks["AdamW"] + 0.04
print("Muon's matrices use more of their directions than AdamW's.")

# %% [markdown]
# Liu et al. (2025) report the same of models with billions of parameters: Muon's weights are spread over more directions. Whether that *causes* the lower loss, neither they nor we have shown.
#
# ### Which part does it?
#
# The same race with the orthogonalisation replaced, three seeds each (`minids.show.muon` keeps the losses). "Not orthogonalised" divides $\mu M + G$ by its norm and scales it to the same RMS: updates of Muon's
# size, with the singular values in the proportions that they had. **Predict before you run:** who loses more at the rate 0.016, five rough steps or no orthogonalisation?

# %% jupyter={"outputs_hidden": true}
for name, losses in muon.VARIANTS.items():
    print(f"{name:44} {sum(losses) / len(losses):.3f}   seeds from {min(losses):.3f} to "
          f"{max(losses):.3f}")

# %% [markdown]
# - **Orthogonalising makes large steps possible.** Without it, the same size of update at the same rate ends far behind. At 0.002 its seeds overlap with AdamW's, and with Muon's at that rate.
# - **How exactly does not matter here.** Five rough steps, V4's ten, and the exact SVD lie within the spread of the seeds: at this scale we see no use of the last steps.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | matrices that Muon updates | 34,446 | 72,352 | counted above |
# | share of all parameters | 99.64 % | 99.88 % | counted above |
# | Muon: momentum, decay, scale | 0.95, 0.1, 0.18 | the same | report 4.2.2 |
# | AdamW: betas, eps, decay | 0.9, 0.95, 1e-20, 0.1 | the same | 4.2.2 |
# | learning rate, at the end | 2.7e-4, 2.7e-5 | 2.0e-4, 2.0e-5 | 4.2.2 |
# | tokens in a step, at most | 75.5 million | 94.4 million | 4.2.2 |
#
# **What it costs.** The iteration's work depends on the matrices only, not on the batch. The model's own work is about six operations for each active parameter and token (lesson 10 counts them). **Predict before you run:** what does Muon add to a step of Flash,
# 10 %, 1 % or 0.1 %? And to a step of our nano model with 2,048 tokens?

# %% jupyter={"outputs_hidden": true}
def iteration(config):
    """Operations of the ten steps for all of a model's matrices, without the MTP block."""
    shapes = parameters(config)
    # the model's step has no MTP either
    names = [name for name in choose(shapes) if not name.startswith("mtp.")]
    return sum(operations(min(shapes[name]), max(shapes[name])) for name in names)


def model_step(config, tokens):
    """Operations of forward and backward, about: attention over the context is left out."""
    return 6 * cost.params(config)["active"] * tokens


batches = {"nano": (Config.nano(), 2048), "Flash": (Config.flash(), 75_500_000),
           "Pro": (Config.pro(), 94_400_000)}
adds = {name: 100 * iteration(config) / model_step(config, tokens)
        for name, (config, tokens) in batches.items()}
print("added to a step:", {name: f"{share:.1f} %" for name, share in adds.items()})
assert max(adds["Flash"], adds["Pro"]) < 1 and adds["nano"] > 20

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
sizes = [2**k for k in range(9, 29)]
points = {name: (tokens, adds[name]) for name, (_, tokens) in batches.items()}
lines = {name: [share * tokens / n for n in sizes] for name, (tokens, share) in points.items()}
style.show(muon.plot_cost_share(sizes, lines, points),
           "The share falls in proportion to the tokens in a step: a large part for nano, less "
           "than one percent for V4 at its batch sizes")

# %% [markdown]
# For nano the iteration adds about a third of the model's own operations, and time per step counts as well as steps. For V4 it is less than one percent of the operations. Operations are not all: a matrix must be *whole* on one device to be orthogonalised, while AdamW's work can be cut anywhere. The report
# describes how V4 deals with that: whole matrices are assigned to devices so that each has about equal work (a knapsack problem), experts are never split, equal shapes are merged, and the products can run in BF16 (section 3.5.1).
#
# **No QK-clip.** With Muon, attention logits can grow without bound; other large models that use Muon clip the query and key weights. V4 has a norm on queries and on keys, which bounds the logits by construction, so it needs no clip (section 2.4).
#
# **The report claims** faster convergence and better stability than before (2.4), without publishing a comparison. **Here we have shown** that the iteration does what it says, what each coefficient is for, and that at this size (less than half a million parameters, 100 steps) Muon gets lower at the same number of steps, over three seeds, each at its best rate.
# **At this scale we cannot show** that the gap stays over trillions of tokens, and nothing about stability: our runs are too short to be unstable.
#
# ## Key points
# - A gradient's norm sits in a few of its directions. AdamW evens out numbers; Muon evens out directions: $U \Sigma V^T \to U V^T$.
# - A polynomial of odd powers in the matrix is that polynomial of its singular values. So ten rounds of products replace an SVD.
# - Steep steps ($a = 3.44$) lift small values fast and do not converge; flat steps ($p(1) = 1$, $p'(1) = 0$) square the error.
# - Dividing by the Frobenius norm keeps every singular value at or below 1. Much above 1 the iteration runs away.
# - RMS of the update: $1 / \sqrt{\max(n, m)}$ by itself, 0.18 after scaling, for every shape. That is about AdamW's size, so AdamW's learning rate is a place to start.
# - In our race, orthogonalising made larger steps safe: at the rate 0.002 all were alike, at 0.016 only the orthogonalised updates were good.
# - Each expert is its own matrix. In a stack, experts disturb each other and weak ones stay behind.
# - Embedding, head, norms, and mHC's biases and factors stay with AdamW. Muon has over 99.6 % of V4's parameters.
#
# ## Questions to discuss
#
# <details><summary>1. Multiply the loss by 1,000. Which of gradient descent, AdamW and Muon notices?</summary>
#
# Gradient descent: its steps become 1,000 times as large. AdamW does not, apart from its epsilon (V4's is 1e-20). Muon does not either: the Frobenius norm divides the factor away. *"Muon notices, since it has no second
# moment"* is wrong: normalisation is by the matrix's own norm, at every step.
# </details>
#
# <details><summary>2. Why not run Muon on the embedding? It is a matrix.</summary>
#
# It is a table: a token reads one row, the rows do not act together on a common input. In a batch most rows of a 129,280-row table have little or no gradient; orthogonalising ties the frequent and the rare rows together, which is just what went wrong with stacked experts.
# *"Because it is too large"* is not it: 129,280 x 4,096 costs no more per number than other matrices whose smaller side is 4,096, such as `wo_b`. The report states the choice (2.4), not the reason; this is the usual one.
# </details>
#
# <details><summary>3. Without the last two flat steps the singular values end mostly between 0.7 and 1.1. Did that make training worse here?</summary>
#
# Look at the table of variants: compare the difference with the spread of the seeds. Jordan et al. (2024) found no harm in values that scatter; the report says the flat steps "stabilize the singular values precisely at 1". A step costs little, and an exact result has an RMS that is known. *"More exact is always better for training"* does not follow.
# </details>
#
# <details><summary>4. The dampened momentum, M = mu M + (1 - mu) G, differs from Muon's only by a constant factor, and orthogonalisation forgets factors. So is it the same?</summary>
#
# Without Nesterov's look ahead, yes, exactly. With it, no: mu M + G weighs the fresh gradient against the momentum, and a dampened M is 20 times smaller, so the fresh gradient would dominate. (PyTorch's Muon dampens both terms, which is the same again.)
# </details>
#
# <details><summary>5. Half of the directions of a gradient are nothing but the noise of a batch. Muon makes them as strong as the rest. Is that not mad?</summary>
#
# It is the best objection to Muon. Momentum is the answer: before orthogonalising, some 20 gradients are averaged, noise partly cancels, and signal adds up. Large batches help too, and V4's have 75 million tokens. *"The iteration removes noise"* is wrong: it amplifies weak directions, whatever they are.
# </details>
#
# <details><summary>6. Is the race fair by wall-clock time?</summary>
#
# It compares equal steps and equal data. On a small model a Muon step takes longer (see the nano line in the figure of costs), so part of the lead is eaten up; with V4's batches the extra is less than one percent of the operations. Which budget is fair depends on what is scarce: data, or time.
# </details>
#
# ## Links
# - Jordan et al., [Muon: An optimizer for hidden layers in neural networks](https://kellerjordan.github.io/posts/muon/), 2024: where it began, and where the steep coefficients come from
# - Liu et al., Muon is Scalable for LLM Training, [arXiv 2502.16982](https://arxiv.org/abs/2502.16982): weight decay, the scale that matches AdamW, the spectra of weights
# - Bernstein and Newhouse, Old Optimizer, New Norm, [arXiv 2409.20325](https://arxiv.org/abs/2409.20325): optimisers as steepest descent under different norms
# - Loshchilov and Hutter, Decoupled Weight Decay Regularization, [arXiv 1711.05101](https://arxiv.org/abs/1711.05101): AdamW
# - In this repository: `minids/pretrain/optim.py` (Muon for many matrices at once), `tests/pretrain/test_optim.py`; the shipped models were trained with it (lesson 10 reads such a run)
