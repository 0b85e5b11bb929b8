# %% [markdown]
# # 13 Distillation: many teachers, one student
#
# **Two specialists become one model. It writes answers of its own, and at every token the right teacher tells it the probability of every token of the vocabulary.**
#
# **After this you can**
# - compute both KL divergences by hand, and say which one covers and which one seeks,
# - write the reverse KL over a whole vocabulary, and the estimate of it from a single token, and tell how much noisier that is,
# - explain why a student should practise on its own texts, and show errors that compound,
# - say why V4 caches hidden states and sorts samples by teacher, in bytes,
# - average the weights of several models, and know when that is no use,
# - distil two specialists into one model, and compare it fairly with three other ways,
# - tell a laboratory's own distillation from what the dispute about "distillation attacks" is about.
#
# *Time: 126 minutes, exercises included. All cells together
# run in less than two minutes on one core of a server.*
# *Before this: lesson 12 (what a specialist is). Terms in bold are in the [glossary](GLOSSARY.md).*

# %%
import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import minids
import torch
import torch.nn.functional as F
from minids import Config
from minids.data import tasks
from minids.data.tokenizer import Tokenizer
from minids.inference.answers import prompt_ids, solve
from minids.inference.evaluate import interval
from minids.learn import check, hint, versions
from minids.posttrain import distill
from minids.posttrain.distill import DistillConfig, add_gradients, write_texts
from minids.posttrain.loop import optimiser_step
from minids.posttrain.sft import SFTConfig, sft
from minids.posttrain.teachers import Teachers, Texts
from minids.pretrain.optim import make_optimiser
from minids.show import distillation, life, style
from minids.system import paths

style.use()
versions()

# %% [markdown]
# ## A cold open: two experts, both right
# Each of these small networks computes the absolute value of x, without any error: $|x| = \mathrm{relu}(x) + \mathrm{relu}(-x)$. They differ in one respect: the
# second has its two hidden units in the other order.
#
# **Predict before you run:** what does the network with the *mean* of their weights compute?

# %% jupyter={"outputs_hidden": true}
def network(x, w_in, w_out):
    """x: N, w_in: 2, w_out: 2 -> N. Two hidden units."""
    return (x[:, None] * w_in).relu() @ w_out


x = torch.tensor([-3.0, -1.0, 0.5, 2.0])
first = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
second = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0])
mean = [(a + b) / 2 for a, b in zip(first, second)]
for name, weights in (("first expert", first), ("second expert", second),
                      ("mean of weights", mean)):
    print(f"{name:15}", network(x, *weights).tolist())

# %% [markdown]
# Nothing at all. Two perfect experts, and their mean has forgotten everything. What a network *knows* is not in its weights one by one.
# It is in the function that they compute together, and that can be taught: let one network show another what it would say. This is **distillation**.
#
# V4 has this problem on a large scale. After pre-training, more than ten specialists are raised, one for each domain, by fine-tuning and reinforcement learning (lesson 12).
# Users want *one* model. V4 makes it by **on-policy distillation** (report, section 5.1.2), with this loss:
#
# $$ \mathcal{L}(\theta) = \sum_{i=1}^{N} w_i \, D_{\mathrm{KL}}\!\left(\pi_\theta \,\|\, \pi_{E_i}\right) $$
#
# $\pi_\theta$ is the student, $\pi_{E_i}$ the teacher of domain i, one of N, who is asked only about prompts of this domain; $w_i$ is its weight. (In code below, N counts positions.) Each part of this line is a decision:
# which KL (1), over which tokens (2), on whose texts (3), with which weights (5). Section 4 asks where ten teachers fit. Then we do it (6).
#
# ## 1. Which KL? Covering and seeking
#
# For a student's probabilities p and a teacher's q there are two divergences, and they are different questions:
#
# $$ \text{reverse: } \mathrm{KL}(p \,\|\, q) = \sum_v p_v \ln \frac{p_v}{q_v} \qquad\qquad \text{forward: } \mathrm{KL}(q \,\|\, p) = \sum_v q_v \ln \frac{q_v}{p_v} $$
#
# Both are 0 where p = q, and positive elsewhere. The **reverse KL** is a mean over what the *student* says: it pays where the student says what its teacher would not. The
# **forward KL** is a mean over what the *teacher* says: it pays where the teacher says what the student would not.
#
# By hand. A teacher knows two good answers, A and C, and never writes B: q = (0.49, 0.02, 0.49). Suppose that the student is too small to say "A or C, not B". It can be even,
# or sure of one answer:
#
# | student p | reverse, $\sum p \ln (p/q)$ | forward, $\sum q \ln (q/p)$ |
# | --- | --- | --- |
# | even (1/3, 1/3, 1/3) | (-0.385 + 2.813 - 0.385) / 3 = **0.68** | 0.189 - 0.056 + 0.189 = **0.32** |
# | sure (0.90, 0.05, 0.05) | 0.547 + 0.046 - 0.114 = **0.48** | -0.298 - 0.018 + 1.118 = **0.80** |
#
# The forward KL prefers the even student, which **covers** both answers, and writes B a third of the time. The reverse KL prefers the sure one, which **seeks** one answer, and
# leaves the other out.

# %%
q = torch.tensor([0.49, 0.02, 0.49])
for name, p in (("even", torch.full((3,), 1 / 3)), ("sure", torch.tensor([0.90, 0.05, 0.05]))):
    reverse, forward = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    print(f"{name}: reverse {reverse:.2f}, forward {forward:.2f}")

# %% [markdown]
# The same on a line of 21 tokens. The teacher has two humps; the student can only be one hump, wide or narrow. **Predict before you run:** where will the best student of each KL be?

# %% jupyter={"outputs_hidden": true}
style.show(distillation.plot_two_fits(),
           "The best student by forward KL is one wide hump over both of the teacher's, the "
           "one by reverse KL sits on the larger of the two")

# %% [markdown]
# A model that *generates* pays for what it writes. The covering student puts about 27 % on the three tokens between the humps, where the teacher has 1.6 % together. The seeking one
# writes nothing that is wrong, and less than all that is right. V4 takes the reverse KL.
#
# The price: it may forget rare answers. And where the student is large enough to match its teacher, the two agree: both KLs are 0 there and only there. V4's student is as large as its teachers.
#
# ### Exercise 1: the reverse KL over the vocabulary
# *Easy, 5 minutes.* From logits. Remember that logits are not log-probabilities: adding 7 to all of them changes nothing.

# %%
def reverse_kl(student, teacher):
    """KL(student || teacher) at each position, in nats. student, teacher: N V, logits -> N."""
    ### BEGIN SOLUTION
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)       # N V
    return (logp.exp() * (logp - logq)).sum(-1)                         # N
    ### END SOLUTION


# %%
reverse_kl = check("distillation.reverse_kl", reverse_kl)
a, b = torch.randn(2, 5, 2048, generator=torch.Generator().manual_seed(0))      # N V each
torch.testing.assert_close(reverse_kl(a, b), distill.divergence(a, b))
print("equal to minids.posttrain.distill.divergence")

# %% [markdown]
# Stuck? `hint("distillation.reverse_kl")` in a new cell gives one of three hints; so for the others.
#
# ### Play: which student does which KL like?
# The sliders move the student. **Find out:** start at centre 0 and width 4.4, and make it narrower (3.0, then 2.0, 1.2, 0.8). Which KL rises faster? Then find students with a reverse KL below 0.9. How many
# places are there?

# %%
box = style.slider_image(lambda centre, width: distillation.plot_student(centre, width),
                         "The teacher's two humps, the student, and its two divergences",
                         centre=[-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0],
                         width=[0.8, 1.2, 2.0, 3.0, 4.4, 6.0],
                         start={"centre": 0.0, "width": 4.4})
box

# %%
box.peek(width=1.2)
for centre, width in ((0.0, 4.4), (0.0, 1.2), (-4.0, 1.2), (4.0, 1.2)):
    forward, reverse = distillation.divergences(centre, width)
    print(f"centre {centre:4}, width {width}: forward {forward:5.2f}, reverse {reverse:5.2f}")

# %% [markdown]
# Both rise. Down to width 2 by about the same; then the forward KL runs away (from 0.55 to 4.87 in all; the reverse KL from 1.13 to 3.52), since the humps' own tokens get almost no probability. A narrow student between the humps is bad for both. On a hump, either hump, the reverse KL is small: two places. Then the forward KL is large, because the other hump is left out. As a map of all students:

# %%
style.show(distillation.plot_landscape(),
           "Over centre and width the forward KL has one valley, in the middle and wide; the "
           "reverse KL has two, one on each hump; crosses mark the least")

# %% [markdown]
# ## 2. The whole vocabulary, or the one token that was drawn?
#
# The sum runs over all 129,280 tokens of V4's vocabulary, at each position. Before V4, many implementations avoided it: take only the token that the student drew, and treat
# $\ln q - \ln p$ of that token as a *reward* in a policy gradient (report, section 5.1.2). With sg for "no gradient":
#
# $$ \text{loss} = -\,\mathrm{sg}\!\left[\ln q_x - \ln p_x\right] \ln p_x, \qquad x \sim p $$
#
# The mean of its gradient is right. By the student's logits, with $\ell = \ln p - \ln q$ and K = KL(p || q):
#
# - whole vocabulary: $g_v = p_v (\ell_v - K)$,
# - one token x: $\ell_x (e_x - p)$, where $e_x$ is 1 at x and 0 elsewhere.
#
# By hand, with p = (0.7, 0.2, 0.1) and q = (0.2, 0.5, 0.3): $\ell$ = (1.253, -0.916, -1.099), K = 0.877 - 0.183 - 0.110 = 0.584, and the first number of g is 0.7 (1.253 - 0.584) = 0.468.
#
# | drawn | how often | its gradient |
# | --- | --- | --- |
# | A | 0.7 | 1.253 (0.3, -0.2, -0.1) = (0.376, -0.251, -0.125) |
# | B | 0.2 | -0.916 (-0.7, 0.8, -0.1) = (0.641, -0.733, 0.092) |
# | C | 0.1 | -1.099 (-0.7, -0.2, 0.9) = (0.769, 0.220, -0.989) |
#
# **Predict before you go on:** does drawing B push B's logit up or down? (Steps go *against* the gradient.)
#
# ### Exercise 2: the loss from one token
# *Medium, 10 minutes.* Return a loss for each position whose gradient is that of the formula.

# %%
def token_loss(student, teacher, token):
    """The one-token loss. student, teacher: N V, logits; token: N, ids that the student drew
    -> N."""
    ### BEGIN SOLUTION
    logp = student.log_softmax(-1).gather(-1, token[:, None])[:, 0]     # N
    logq = teacher.log_softmax(-1).gather(-1, token[:, None])[:, 0]     # N
    return -(logq - logp).detach() * logp
    ### END SOLUTION


def with_gradient(function):
    """A function that returns function(student, ...) and the gradient of its sum by the
    student's logits."""
    def both(student, *others):
        x = student.clone().requires_grad_()
        y = function(x, *others)
        grad = (torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad
                else None)
        return y.detach(), torch.zeros_like(x) if grad is None else grad
    return both


# %%
loss_and_gradient = check("distillation.token_loss", with_gradient(token_loss))

# %% [markdown]
# (The next cells use what `check` gave back, with its gradient.) All three tokens, each as often as it is drawn. The variance of a vector is the mean of its squared length less the squared length of its mean; here $0.7 \cdot 0.220 + 0.2 \cdot 0.957 + 0.1 \cdot 1.617 = 0.507$, less 0.338 is 0.169:

# %% jupyter={"outputs_hidden": true}
p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])
student, teacher = p.log(), q.log()                     # 1 V: log-probabilities are logits too
# V V
each = torch.cat([loss_and_gradient(student, teacher, torch.tensor([x]))[1] for x in range(3)])
exact = with_gradient(reverse_kl)(student, teacher)[1]  # 1 V
for name, row in zip("ABC", each):
    print(f"drawn {name}:", [round(v, 3) for v in row.tolist()])
print("mean:   ", [round(v, 3) for v in (p @ each)[0].tolist()])
print("whole:  ", [round(v, 3) for v in exact[0].tolist()])
signal, noise = distill.noise(student, teacher)
print(f"squared length of the whole gradient {signal.item():.3f}, variance of the one-token "
      f"gradient {noise.item():.3f}")

# %% [markdown]
# The mean is the whole gradient, to the digit. But a single draw is off: even with three tokens the variance is half the square of what it estimates. Both grow with the square of $\ell$; their ratio depends on how many tokens share the probability, and below we measure it on a real vocabulary. (Drawing B gives its
# logit the gradient -0.733, and a step against it pushes it up: the teacher likes B more.)
#
# **A trap.** One might take the estimate of the *value*, $\ln p_x - \ln q_x$, and call `backward` on it. Its mean is the KL, after all. **Predict before you run:** what is the mean of its gradient?

# %% jupyter={"outputs_hidden": true}
value = with_gradient(lambda s, t, x: s.log_softmax(-1)[0, x] - t.log_softmax(-1)[0, x])
means = [sum(p[0, x] * value(student, teacher, torch.tensor([x]))[i] for x in range(3))
         for i in (0, 1)]
print(f"mean value {means[0].item():.3f}, mean gradient",
      [round(abs(v), 3) for v in means[1][0].tolist()])

# %% [markdown]
# Zero. The gradient of $\ln p_x$ is $e_x - p$, and its mean over $x \sim p$ is $p - p$. The value depends on p in two ways, through the logarithm and through *which* tokens are drawn, and the second is what matters
# here. Code with this fault runs, shows a sensible loss, and learns nothing.
#
# Now a descent: 50 tokens, a random teacher, the student starts even. In orange: each step draws 2 tokens, and takes the mean of their gradients; eight runs. In blue: the whole vocabulary, once.

# %%
def descent(draws, seed=0, steps=150, V=50, lr=1.0):
    """The true KL over steps of plain gradient descent; `draws` tokens a step, or the whole
    vocabulary (0)."""
    rng = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(1, V, generator=torch.Generator().manual_seed(99))    # 1 V
    student, kls = torch.zeros(1, V), []
    for _ in range(steps):
        kls.append(reverse_kl(student, teacher).item())
        if draws:
            x = torch.multinomial(student.softmax(-1)[0], draws, replacement=True,
                                  generator=rng)
            wide = student.expand(draws, V)                                         # draws V
            g = loss_and_gradient(wide, teacher.expand(draws, V), x)[1].mean(0, keepdim=True)
        else:
            g = with_gradient(reverse_kl)(student, teacher)[1]                      # 1 V
        student = student - lr * g
    return kls


runs = {"2 drawn tokens a step, 8 runs": [descent(2, seed) for seed in range(8)],
        "whole vocabulary": [descent(0)]}
style.show(distillation.plot_descents(runs),
           "The whole vocabulary gives one smooth curve. Runs from drawn tokens are jagged, "
           "differ from each other, and end higher on average")

# %%
ends = torch.tensor([run[-1] for run in runs["2 drawn tokens a step, 8 runs"]])
whole = runs["whole vocabulary"][0][-1]
assert ends.mean() > 3 * whole and ends.max() > 3 * ends.min()
print("Drawn tokens end higher on average than the whole vocabulary, and differ from run to "
      "run.")

# %% [markdown]
# Some runs stand still far up, one of ours to the end of the picture: an unlucky step makes a token so unlikely that it is hardly ever drawn again, and what is not drawn is not mended. (Early on a lucky run may even be ahead of the blue curve.) Four draws a step, or
# smaller steps, tame most of it at a price (try `descent(4)`); in a network of many layers one cannot know beforehand how many are enough. The report names the same two troubles, high variance and training that is "often" unstable, as its reason for the whole vocabulary (section 5.1.2).
# This teacher is a hard one: it starts 3 nats away. With 12 other random teachers of the same kind, most of them closer at the start, drawn tokens ended more than three times higher only for 3, and about as well for the rest. Noise hurts most where the student is far off.
# The blue curve is not free: V logits of the teacher at each position instead of one. Section 4 is about that bill.
#
# ## 3. On whose texts?
#
# A loss needs texts on which teacher and student are compared. The easy way is **off-policy**: let the teacher write, and train the student on that. The student then sees only places to which a *teacher* comes.
#
# By hand: a student slips with probability 0.01 at each of 50 steps. If it recovers at once, 50 x 0.01 = 0.5 steps are wrong on average. If it knows no way back, all later steps are wrong too:
# about 0.01 x 50 x 50 / 2 = 12.5. Errors that nobody mends **compound**: they grow with the square of the length.
#
# A toy that can be computed exactly, without drawing. A walker should stay on a path; it can step left, stay, or step right. The teacher stays on the path with 98 %, and off it steps *back* with 98 %. The student is a table of
# logits, one row for each place; its hand shakes, so that 6 % of its steps are random. The only difference between two students: where they are compared with the teacher.

# %%
D, T = 8, 50  # places -8 ... 8, steps of a walk
place, moves = torch.arange(-D, D + 1), torch.tensor([-1, 0, 1])
guide = torch.full((2 * D + 1, 3), 0.01)
# places 3: back to the path, or stay on it
guide[torch.arange(2 * D + 1), 1 - place.sign()] = 0.98


def policy(z, shake=0.06):
    """Logits -> probabilities of the moves, places 3."""
    return (1 - shake) * z.softmax(-1) + shake / 3


def visits(p):
    """The probability of each place at each step of a walk from the path: T places."""
    to = (place[:, None] + moves).clamp(-D, D) + D  # places 3: where a move leads
    M = torch.zeros(2 * D + 1, 2 * D + 1).scatter_add(1, to, p)  # from, to
    at, rows = F.one_hot(torch.tensor(D), 2 * D + 1).float(), []
    for _ in range(T):
        rows.append(at)
        at = at @ M
    return torch.stack(rows)


# %%
def kl_of(p):
    return (p * (p / guide).log()).sum(-1)                          # places


def practise(own, steps=200):
    """Gradient descent on the reverse KL, weighed by how often a place is visited: by the
    student, or by the teacher."""
    z = torch.zeros(2 * D + 1, 3, requires_grad=True)
    for _ in range(steps):
        p = policy(z)
        weight = visits(p.detach() if own else guide).mean(0)       # places
        (g,) = torch.autograd.grad((weight * kl_of(p)).sum(), z)
        z.data -= g
    return policy(z).detach()


students = {"trained on the teacher's walks": practise(False),
            "trained on its own walks": practise(True)}
for name, p in students.items():
    print(f"{name:31} KL on the teacher's walks: "
          f"{(visits(guide).mean(0) * kl_of(p)).sum():.3f} nats a step")

# %% [markdown]
# Judged on the teacher's walks both are good. The second is even a little better there, though it was not trained on them: it comes to the places beside the path more often and is done with them sooner. (With 2,000 steps the two scores are 0.009 and
# 0.0085.) **Predict before you run:** now they walk by themselves. How often is each more than 2 places off the path after 49 steps?

# %% jupyter={"outputs_hidden": true}
lost = {name: visits(p)[:, place.abs() > 2].sum(1)
        for name, p in (students | {"the teacher": guide}).items()}
for name, share in lost.items():
    print(f"{name:31} lost after {T - 1} steps: {100 * share[-1]:.1f} %")
off, on = (students[name][D:D + 5, 0] for name in list(students)[:2])
for name, back in (("first student", off), ("second student", on)):
    print(f"chance of the {name} to step back at distance 1, 2, 3, 4:",
          [round(v, 2) for v in back[1:].tolist()])
style.show(distillation.plot_lost(lost),
           "The share of walks more than 2 places off the path grows step by step for the "
           "student trained on the teacher's walks, and stays near 0 for the others")

# %% jupyter={"outputs_hidden": true}
first, second = lost["trained on the teacher's walks"][-1], lost["trained on its own walks"][-1]
assert first > 10 * second
style.say("Both are good on the teacher's walks; by itself the first is lost more than ten "
          "times as often.")

# %% [markdown]
# The lines before the figure say why. Two places off the path the first student steps at random (0.33 is one of three moves): its teacher goes there once in 10,000 steps, so it was told next to nothing about what to do. The second student goes there
# by its own slips, at first very often, and learns the way back.
#
# This is the reason for **on-policy**: texts by the student, judged by the teacher. It is an old lesson of imitation learning (Ross et al., 2011), and the loss on the teacher's text hides it. For language models see Agarwal et al. (2023).
# A negative control that you can run: set `shake=0.0` in the definition of `policy` and `steps=2000` in `practise`, and run the three cells again. Then 0.25 % and 0.02 % are lost: with a steady hand and enough practice there is little left to mend.
#
# ## 4. Ten teachers, one memory
#
# The whole vocabulary at each position: how much must be stored between "the teachers read" and "the student learns"? A teacher's logits are a product of its **last hidden state**, d numbers, with its head, V x d numbers. So keep the
# hidden state, and apply the head when the logits are needed (report, section 5.2.2). **Predict before you run:** how much smaller is that, for V4-Flash?

# %% jupyter={"outputs_hidden": true}
flash, pro = (Config.from_json(paths.data("v4", f"{name}.config.json"))
              for name in ("flash", "pro"))
print("for a million tokens of text, 2 bytes a number:")
for name, c in (("nano", Config.nano()), ("Flash", flash), ("Pro", pro)):
    logits, hidden, head = (2 * numbers / 1e9 for numbers
                            in (1e6 * c.vocab_size, 1e6 * c.dim, c.vocab_size * c.dim))
    print(f"{name:5} logits {logits:7.2f} GB, hidden states {hidden:6.2f} GB "
          f"({c.vocab_size / c.dim:4.1f} times less), one teacher's head {head:6.4f} GB")

# %% [markdown]
# Nothing is lost by the detour: the same state and the same head give the same logits. (The cell keeps float32; at the table's 2 bytes a number both logits and states would be rounded.) Check it on the shipped model, whose streams are first read by the mHC head and normed (lesson 08); that is the hidden state.

# %%
base = minids.load(paths.data("checkpoints", "nano")).eval()
ids = torch.randint(3, 2000, (2, 20), generator=torch.Generator().manual_seed(0))  # B T
with torch.no_grad():
    hidden = base.hidden(base.features(ids))  # B T d: what is cached
    torch.testing.assert_close(F.linear(hidden, base.head.weight.float()), base(ids))  # B T V
print("cached", tuple(hidden.shape), "gives", (*hidden.shape[:2], base.config.vocab_size),
      "- equal to the model's logits")

# %% [markdown]
# What remains is the heads. One head of Pro is 1.85 GB, and there are more than ten teachers. If samples come in any order, heads go in and out of memory again and again. So V4 **orders the samples by teacher**: each
# head comes in once a batch, and one at a time is enough.

# %%
# 64 samples, 10 teachers
teacher_of = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(0))
loads = lambda order: 1 + int((order[1:] != order[:-1]).sum())  # changes of the head in memory
print(f"any order: {loads(teacher_of)} loads of a head; by teacher: "
      f"{loads(teacher_of.sort().values)}")

# %% [markdown]
# ## 5. One student, many weights
#
# Which teacher speaks at a token? The one of the prompt's domain: the mathematics expert for mathematics (report, section 5.1.2). A batch holds several domains, so the loss is a sum by weight. There is a trap in "mean": knowledge answers
# may have 6 tokens, say, and mathematics answers 2. A mean over all *tokens* would give knowledge three times the say.
#
# By hand: family 0 has 6 tokens with KL 1, family 1 has 2 tokens with KL 5, weights 1/2 each. By family: (1 + 5) / 2 = **3**. Over tokens: (6 x 1 + 2 x 5) / 8 = **2**.
#
# ### Exercise 3: weights by domain
# *Medium, 10 minutes.* The mean within each family, then the weighted sum. A batch may lack a family: scale the weights of those that are there to sum 1.

# %%
def opd_loss(kl, family, weights):
    """kl: N, each token's KL to its teacher; family: N, numbers of families; weights: F -> a
    tensor without axes."""
    ### BEGIN SOLUTION
    there = family.unique()  # the families of this batch
    means = torch.stack([kl[family == i].mean() for i in there])
    return (weights[there] * means).sum() / weights[there].sum()
    ### END SOLUTION


# %%
opd_loss = check("distillation.opd_loss", opd_loss)
kl, family = torch.tensor([1.0] * 6 + [5.0] * 2), torch.tensor([0] * 6 + [1] * 2)
print("by hand 3, found", opd_loss(kl, family, torch.tensor([0.5, 0.5])).item())

# %% [markdown]
# ### Exercise 4: a colleague merges models (debug)
# *Medium, 10 minutes.* The rival way to one model: the mean of the weights. A colleague wrote the function below. It runs. The model that it gives loads. Something in it is nonsense.

# %%
def colleagues_mean(states):
    return {name: torch.stack([s[name].float() for s in states]).mean(0).to(t.dtype)
            for name, t in states[0].items()}, []


tables = [{"layers.0.ffn.gate.tid2eid": torch.tensor([[2, 7], [0, 3]])},
          {"layers.0.ffn.gate.tid2eid": torch.tensor([[6, 1], [1, 3]])}]
print("token 0 goes to experts 2 and 7, or 6 and 1; in the mean to",
      colleagues_mean(tables)[0]["layers.0.ffn.gate.tid2eid"][0].tolist())

# %% [markdown]
# To expert 4, twice. `tid2eid` (lesson 06) holds *names* of experts, and names have no mean. Specialists of one base share this table, so nobody notices, until models of two bases meet. Write the mean that says so.

# %%
def mean_weights(states):
    """states: a list of state dicts with the same names and shapes -> (mean, odd).

    mean: floating-point tensors are averaged, in float32, and come back in their own type; of
    tables of integers the first model's is kept. odd: the names of the tables of integers that
    are not the same in all models, in order.
    """
    ### BEGIN SOLUTION
    mean, odd = {}, []
    for name, t in states[0].items():
        same = [state[name] for state in states]
        if t.is_floating_point():
            mean[name] = torch.stack([s.float() for s in same]).mean(0).to(t.dtype)
            continue
        mean[name] = t.clone()
        if not all(torch.equal(t, s) for s in same):
            odd.append(name)
    return mean, odd
    ### END SOLUTION


# %%
mean_weights = check("distillation.mean_weights", mean_weights)
print("named:", mean_weights(tables)[1])

# %% [markdown]
# ## 6. Live: two specialists, one model
#
# Two short fine-tunings of the shipped nano model, each on one family of problems (lesson 12 does this at length, with reinforcement learning after it). *Knowledge* asks for facts of TinyWorld, *mathematics* for small
# sums. All answers are given without thinking, and all problems are of the easiest kind: that is what two million parameters can begin to learn in seconds.

# %%
FAMILIES, MODE, tokenizer = ("knowledge", "mathematics"), "non-think", Tokenizer.load()
shelf = TemporaryDirectory()
COMMON = dict(difficulties=(1,), modes=(MODE,), mtp_weight=0.0, eval_problems=0, format="fp32")
for name in FAMILIES:
    p = tasks.problem(name, "test", 3, 1)
    print(f"{name:12} {p.prompt} -> {p.answer}")

# %% tags=["nbval-ignore-output"]
folders = {}
for name in FAMILIES:
    settings = SFTConfig(steps=28, batch=24, families=(name,), **COMMON)
    log = sft(paths.data("checkpoints", "nano"), settings, Path(shelf.name, name))
    folders[name] = Path(shelf.name, name, "model")
    print(f"{name:12} reply loss of a batch: {log[0]['loss']:.2f} -> {log[-1]['loss']:.2f} "
          "nats per token")

# %%
school = Teachers(folders)
teachers = {name: school.model(name).eval() for name in FAMILIES}
mean, odd = mean_weights([teacher.state_dict() for teacher in teachers.values()])
start = copy.deepcopy(base)
start.load_state_dict(mean)
print("tables that differ:", odd)

# %% [markdown]
# The replies' loss is that of the last training batch: on new problems it is higher (table below), since 28 steps have begun to learn the questions by heart.
#
# The student starts from the mean of the weights: both teachers speak the chat format, and they are close relatives. It is the one use of the mean here, a start and not a result; we have not compared it with other starts.
#
# `Teachers` (in `minids/posttrain/teachers.py`) is section 4 in code: `read` lets a teacher read its family's texts and keeps the hidden states, `logits` applies its head.
#
# ### A step, and the proof
# One step: the student answers problems of both families; each teacher reads the answers of its own and leaves its hidden states; the student reads all, and the reverse KL is taken at the positions of the **reply**, and of the reply only.
# The text counts as given: we do not differentiate through the drawing. (Is that not the trap of section 2? No: at each position the sum runs over the whole vocabulary, so the next token's draw is in it exactly. Left out is how a token leads to later ones. That is a choice, and it saves
# noise.) (`Texts.reply` says at which positions a token of the reply comes next.)

# %%
def write(model, problems, seed):
    """The model answers: {family: Texts}, ordered by teacher."""
    prompts = [prompt_ids(p, tokenizer, MODE) for p in problems]
    replies = minids.generate(model, prompts, max_new_tokens=48, seed=seed)
    parts = {}
    for name in FAMILIES:
        some = [i for i, p in enumerate(problems) if p.family == name]
        parts[name] = Texts.of([prompts[i] for i in some], [replies[i] for i in some],
                               [problems[i] for i in some])
    return parts

# %%
def opd_backward(model, parts, kl=reverse_kl, head_of=lambda name: name):
    """Gradients of the distillation loss. Returns the loss, a float."""
    cache, kls, family = {}, [], []
    for name, texts in parts.items():                       # first all teachers read
        with torch.no_grad():
            X = teachers[name].features(texts.ids[:, :-1])  # B T-1 n d
            cache[name] = teachers[name].hidden(X[texts.reply][None])[0]                # N d
    for i, (name, texts) in enumerate(parts.items()):       # then one head after the other
        X = model.features(texts.ids[:, :-1])               # B T-1 n d
        student = model.logits(X[texts.reply][None])[0]     # N V
        teacher = F.linear(cache[name], teachers[head_of(name)].head.weight.detach())   # N V
        kls.append(kl(student, teacher))
        family.append(torch.full((len(student),), i))
    loss = opd_loss(torch.cat(kls), torch.cat(family), torch.tensor([0.5, 0.5]))
    loss.backward()
    return loss.item()

# %%
SETTINGS = DistillConfig(steps=16, families=FAMILIES, batch=32, lr=2e-3, warmup=3, **COMMON)
problems = [SETTINGS.problem("train", i) for i in range(32)]
parts = write(start, problems, seed=0)
found = {}
for name, backward in (("ours", lambda m: opd_backward(m, parts)),
                       ("minids", lambda m: add_gradients(m, school, parts, SETTINGS)["loss"])):
    model = copy.deepcopy(start).train()
    loss = backward(model)
    found[name] = ([torch.tensor(loss)]
                   + [p_.grad for p_ in model.parameters() if p_.grad is not None])
torch.testing.assert_close(found["ours"], found["minids"], atol=1e-4, rtol=1e-3)
print("loss and all gradients equal those of minids.posttrain.distill.add_gradients")

# %% [markdown]
# From here on the package does the same work: `write_texts` writes the texts, `add_gradients` makes the gradients. First look at the noise of section 2, at the very positions of this batch.

# %% tags=["nbval-ignore-output"]
ratio = []
for name, texts in parts.items():
    school.read(name, texts)
    with torch.no_grad():
        student = start.logits(start.features(texts.ids[:, :-1])[texts.reply][None])[0]  # N V
        signal, noise = distill.noise(student, school.logits(name))
    ratio.append((noise.mean() / signal.mean()).item())
    print(f"{name:12} {len(student):4} tokens: variance of the one-token gradient is "
          f"{ratio[-1]:.0f} times its squared mean")

# %%
assert min(ratio) > 1
print("On both families the noise of one token is larger than what it estimates.")

# %% [markdown]
# (At a single position, and by its logits. A step averages over about a hundred positions, and its gradient scatters less.)

# %% [markdown]
# ### Four ways to one model
# All begin with the mean of the weights and share harness, problems, optimiser and rate (which has been tuned for the on-policy way, not for the others).
#
# - **mean weights**: no training at all.
# - **on-policy**: 16 steps of the above.
# - **off-policy**: the teachers write, and the student learns from their whole distribution, KL(teacher || student).
# - **mixed SFT**: worked answers of both families, no teacher.
#
# The last two get as many seconds of the processor as the on-policy student used. Their steps are cheaper or dearer, so they take more or fewer. **Predict before you run:** who will be nearest to the teachers? Who will answer best?

# %%
def train_student(method, limit=None, steps=16):
    """From the mean weights on: `steps` steps, or as many as fit into `limit` processor
    seconds."""
    settings, model = replace(SETTINGS, method=method), copy.deepcopy(start).train()
    optimiser, seconds, kls = make_optimiser(model, settings), [], []
    while len(seconds) < steps if limit is None else sum(seconds) < limit:
        began, s = process_time(), len(seconds)
        problems = [settings.problem("train", i)
                    for i in range(s * settings.batch, (s + 1) * settings.batch)]
        texts = write_texts(model, school, problems, MODE, settings, tokenizer, seed=s)
        record = add_gradients(model, school, texts, settings)
        # the rate follows the share of the time
        at = s if limit is None else int(steps * sum(seconds) / limit)
        optimiser_step(model, optimiser, settings, min(at, steps - 1))
        seconds.append(process_time() - began)
        kls.append(record.get("kl"))
    return model.eval(), seconds, kls


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
models, curves = {"mean weights": start.eval()}, {}
for name, method in (("on-policy", "on-policy"), ("off-policy", "off-policy"),
                     ("mixed SFT", "sft")):
    limit = sum(curves["on-policy"][0]) if curves else None
    models[name], seconds, kls = train_student(method, limit)
    curves[name] = seconds, kls
    print(f"{name:12} {len(seconds):3} steps in {sum(seconds):.0f} processor seconds")

# %% jupyter={"outputs_hidden": true}
style.show(distillation.plot_kl({name: curves[name] for name in ("on-policy", "off-policy")}),
           "The student's KL to its teachers falls while it learns, on its own texts and on "
           "the teachers'")

# %% [markdown]
# (The two curves are measured on different texts: each on those that its method learns from. They cannot be compared with each other. Nor can the first point be compared with the table below: other problems, and a mean in which a few long replies weigh much.)
#
# Now the same questions for all, on the test split, whose problems no fine-tuning has seen: the share of right greedy answers among 64, with its 95 % interval; and on 40 of them the KL to the family's teacher on texts that the model itself writes, and the loss on worked replies.

# %% tags=["nbval-ignore-output"]
def judge(model, name):
    """Of one family: right answers with interval, KL to the teacher on the model's own
    texts, loss on worked replies."""
    problems = tasks.problems(name, "test", 64, 1)
    accuracy, measured = interval(solve(model, tokenizer, problems, MODE)[0]), {}
    for method in ("on-policy", "sft"):
        texts = write_texts(model, school, problems[:40], MODE,
                            replace(SETTINGS, method=method), tokenizer, 7)[name]
        school.read(name, texts)
        with torch.no_grad():
            # N V
            logits = model.logits(model.features(texts.ids[:, :-1])[texts.reply][None])[0]
        if method == "on-policy":
            measured[method] = distill.divergence(logits, school.logits(name)).mean().item()
        else:
            measured[method] = F.cross_entropy(logits, texts.ids[:, 1:][texts.reply]).item()
    return accuracy, measured["on-policy"], measured["sft"]


rows = {f"teacher of {name}": teachers[name] for name in FAMILIES} | models
results = {row: {name: judge(model, name) for name in FAMILIES} for row, model in rows.items()}
print(f"{'':24}" + "".join(f"{name + ': right':>26}{'KL':>7}{'loss':>7}" for name in FAMILIES))
for row, found in results.items():
    cells = (f"{a:>13.0%} ({low:4.0%} -{high:4.0%}){kl:7.2f}{loss:7.2f}"
             for (a, low, high), kl, loss in found.values())
    print(f"{row:24}" + "".join(cells))

# %%
answers = [p.answer for p in tasks.problems("mathematics", "test", 64, 1)]
style.show(
    distillation.plot_report(
        {row: {name: one[0] for name, one in found.items()} for row, found in results.items()},
        "share of right answers", {one: answers.count(one) / len(answers) for one in "14"}),
    "Right answers with 95 percent intervals, for each teacher on both families, and for the "
    "four single models; dotted: what always the same answer would get in mathematics")

# %%
total = {row: sum(one[1] for one in found.values()) for row, found in results.items()}
assert total["on-policy"] < total["mean weights"] / 2
assert total["on-policy"] < min(total[f"teacher of {name}"] for name in FAMILIES)
style.say("Summed over both families, the distilled student is nearer to the right teachers "
          "than the mean weights are,")
print("and nearer than either teacher is to the other's domain.")

# %% [markdown]
# What to read from the table, and what not:
#
# - **A teacher is of no use in the other's domain.** Its KL there is large: a specialist answers everything in its own manner.
# - **First the guess.** Always "1" is right in 16 % of these mathematics problems, always "4" in 12 %. So no row of that column shows arithmetic. What can be read there is the KL and the loss: the students come near to a teacher that hardly more than guesses.
# - **Mean weights** keep the manner of one family (mathematics) and lose the other (knowledge). In none of our runs did they match both teachers. In knowledge their loss on worked replies looks tolerable (1.26; the other family's teacher has 6.54), but their own texts are nearly six nats from the teacher's, and never right: section 3 in one row.
# - **On-policy and off-policy** both come near to both teachers. In this run they are level in knowledge, and off-policy is a hair nearer in mathematics. Which of them is ahead depends on the run: answers of a few tokens leave no room for errors to compound, and that is what on-policy is for. *At this length we cannot show its advantage*; the toy of section 3 can. And nearer is not better: in mathematics the on-policy student has a smaller KL than the mean weights, but no more right answers and no lower loss. Its loss asks for the teacher's manner, and this teacher hardly more than guesses.
# - **Mixed SFT** is farther from the teachers, since nobody asked it to be near. Its loss on *worked replies* is the lowest: it trains on that very loss, and took more steps in the same time. Its share in mathematics is the highest, but its interval still holds the 16 % of a constant "1".
#   V4's teachers have gone on from SFT with reinforcement learning: what they learned there was in no worked answer, so SFT on worked answers cannot pass it on.
# - **Can a student beat its teacher?** In our run it answered more *knowledge* questions, and its loss on worked replies is lower there. In mathematics it is the other way round. All these intervals overlap: possible, not shown. The KL to a teacher is a means, the right answers are the end.
# - Intervals of 64 problems are wide, over ten points each way, and in knowledge they should be wider still: these 64 questions are 37 different ones, about 25 facts, and a repeated question is no new evidence. (With 25 independent ones, 55 % would be 36 % to 73 %.) Where two overlap much, do not call a winner. One seed, one duration.
#
# ### Recorded: four specialists, one model
# The live run has two teachers and seconds. `minids lifecycle --preset nano-long` takes four specialists from SFT and GRPO (lesson 12 shows how they came out), and makes one model: by the mean of their weights; by mixed SFT, 200 steps of 64 worked answers, half of them mathematics, which has most to learn; and
# by on-policy distillation, 400 steps of 64 answers, which starts from the mixed SFT model. In both, each step also rehearses eight rows of the base model's corpus (lesson 12). Two seeds, on 96 different problems of each family (25 in knowledge), difficulties 1 and 2, four sampled answers each; brackets hold the lower and the higher seed. "After SFT" and "specialists" are four models, each asked in its own family alone.
#
# **Predict before you run:** will the one distilled model come near the four specialists?

# %% jupyter={"outputs_hidden": true}
recorded = life.reports()
print(life.table(recorded))

# %% jupyter={"outputs_hidden": true}
style.show(life.plot_combined(recorded),
           "Right answers in four families and on the mean, two seeds: the distilled model "
           "is level with the specialists in reasoning, a little below them in mathematics and "
           "coding, above them in knowledge; on the mean twenty points above mixed SFT; mean "
           "weights are at the bottom")

# %% [markdown]
# It does: mathematics 44 % (the specialist 48 %), coding 69 % (74 %), reasoning 65 % (65 %), knowledge 70 % (45 %). On the mean the four specialists have 58 %, the one distilled model 62 %, mixed SFT 42 %, mean weights 4 %. (Knowledge makes that difference, with its 25 questions; in the three others the specialists lead by 63 to 59 %.)
#
# - **Mean weights** of four children of one base are useless here, perhaps because they have gone too far apart.
# - **Distillation does what its loss says.** The student's KL to its teachers falls from 0.46 to 0.07 nats per token (the first five steps and the last twenty, both seeds), and the answers follow: the student starts from mixed SFT, 21 to 33 points below its teachers in the three families in which rewards helped (lesson 12), and comes to within five, in reasoning to the same.
# - **But count the steps.** The student took 200 of mixed SFT and 400 of its own. Mixed SFT for 600 steps with the same rehearsal (two seeds, not in the record) gets 61, 76, 61 and 77 %, 69 % on the mean: *more* than the distilled model, except in reasoning. So that the gain is owed to the teachers' rewards is not shown. Where worked answers can be had in any number, nothing here beats them; our teachers' SFT was stopped early, to leave rewards something to do.
#   Distillation is for what nobody can write down. It also disturbed less: real English costs 2.9 bits a byte after it, and 3.4 after the long SFT (2.3 before). But its rate was less than half as high.
# - **Knowledge does not come from the teacher.** The exam's facts are in no prompt that student and teacher talk about: on-policy distillation teaches where the student goes, and nowhere else. The student has them from the base, and from the rows that it rehearses. Mixed SFT already has 57 %, more than the specialist, which rehearsed for 80 steps instead of 200.
#
# **What rehearsal is worth.** Two earlier lives (300 steps of GRPO, 320 of distillation) with and without it, on the same exam (not in the record):
#
# | mean of two seeds | mathematics | coding | reasoning | knowledge | English, bits a byte |
# | --- | ---: | ---: | ---: | ---: | ---: |
# | mixed SFT, without rehearsal | 28 % | 53 % | 50 % | 9 % | 5.0 |
# | mixed SFT, with | 26 % | 44 % | 46 % | 62 % | 2.7 |
# | distilled, without | 47 % | 68 % | 63 % | 10 % | 5.2 |
# | distilled, with | 46 % | 67 % | 65 % | 68 % | 2.8 |
#
# In 200 steps of SFT it may cost something, in coding; at the end of distillation nothing that can be seen. Where only SFT rehearses and distillation does not (first seed), 46 % of the questions of knowledge are answered instead of 68, the corpus costs 1.0 bits a byte instead of 0.76, English 2.9. So distillation forgets, too, if less than SFT does at its higher rate.
#
# **What it took.** A first version took 80 steps at a rate that stayed constant for half of them, gave all families an equal part, and ended eight points below its teachers. Four trials from one start, and the student's KL in mathematics after 120 steps:
#
# | rate | it falls after | scales and biases learn | mathematics' part | KL in mathematics |
# | --- | --- | --- | --- | --- |
# | 8e-3 | 0.3 of the steps | four times faster | a half | 0.56 |
# | 4e-3 | not yet | four times faster | a quarter | 0.67 |
# | 4e-3 | 0.1 of the steps | no | a half | 0.38 |
# | 1.5e-3 | 0.1 of the steps | as fast | a half | 0.41 |
#
# A KL that does not fall need not be a student that cannot learn: at a high rate it may tremble around its teacher by more than it is away from it. (The trials change several things at once; which of them brought how much we cannot say.) The record takes 3e-3, falling from the first step, with scales and biases fixed.
#
# ## 7. Sabotage
# Five steps from the mean weights, broken in three ways, and judged like the right recipe: KL(student || right teacher) on new texts of the student. Two controls: no step at all, and the right recipe on *other problems*. The
# distance between the two right ones says how much chance there is.
#
# 1. **The KL turned round**: KL(teacher || student), on the student's texts.
# 2. **The wrong head**: the cached states of the knowledge teacher go through the mathematics teacher's head, and the other way round.
# 3. **The prompt counts too**: the KL is taken at all positions, not only where the reply is.
#
# **Predict before you run:** which of the three stops the learning?

# %%
def everywhere(parts):
    """The same texts, with every position before the padding counted."""
    return {name: replace(texts, reply=texts.ids[:, 1:] != tokenizer.pad_id)
            for name, texts in parts.items()}


def forward_kl(student, teacher):
    """KL(teacher || student) at each position. student, teacher: N V, logits -> N."""
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(logp, logq, reduction="none", log_target=True).sum(-1)


def broken(steps=5, first=10_000, change=lambda parts: parts, **fault):
    """The mean KL to the right teachers after a few steps of a recipe."""
    model, settings = copy.deepcopy(start).train(), replace(SETTINGS, steps=8)
    optimiser = make_optimiser(model, settings)
    for step in range(steps):
        problems = [settings.problem("train", first + 32 * step + i) for i in range(32)]
        opd_backward(model, change(write(model, problems, seed=step)), **fault)
        optimiser_step(model, optimiser, settings, step)
    judged = write(model, [settings.problem("valid", i) for i in range(48)], seed=1)
    return opd_backward(model, judged)


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
other = dict(zip(FAMILIES, FAMILIES[::-1]))
recipes = {"no step": dict(steps=0), "as it is": {},
           "as it is, other problems": dict(first=20_000),
           "KL turned round": dict(kl=forward_kl),
           "wrong head": dict(head_of=other.get),
           "prompt counts too": dict(change=everywhere)}
after = {name: broken(**recipe) for name, recipe in recipes.items()}
for name, kl in after.items():
    print(f"{name:26} {kl:6.2f} nats from the right teachers")

# %% jupyter={"outputs_hidden": true}
right = max(after["as it is"], after["as it is, other problems"])
assert right < 0.7 * after["no step"]
print("The right recipe comes nearer on both sets of problems.")

# %% [markdown]
# Now compare the broken lines with the distance between the two right ones. In our run **none of the three stopped the learning**:
#
# - **The wrong head** and **the counted prompt** could not be told from the right recipe. The two specialists are children of one base, and five steps first teach what both heads say alike: how to answer at all. Prompts are read by a teacher of the right
#   family, so they do not pull the wrong way; they only take a share of the work.
# - **The KL turned round** was behind, by more than the chance that the two right recipes show. But it is judged by a KL that it did not train. Where a student can match its teacher, both KLs lead to the same place; section 1 shows a student that cannot.
#
# This is a warning. A faulty recipe *learns*, and a short curve does not tell. So do not look at curves to find such faults: **test the wiring**, with a question whose answer is known.
#
# - A student that *is* the teacher must have the loss 0. **Predict:** which of the three faults does that find?
# - The number of positions must be the number of tokens in the replies.
# - On random logits, the loss must equal a second implementation's (exercise 1).

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def zero_test(change=lambda parts: parts, **fault):
    """The loss of the knowledge teacher as a student of itself, and the number of positions."""
    part = change({"knowledge": parts["knowledge"]})
    return opd_backward(copy.deepcopy(teachers["knowledge"]), part,
                        **fault), int(part["knowledge"].reply.sum())


written = sum(len(reply) for reply in parts["knowledge"].replies)
print(f"tokens in the replies: {written}")
tests = {name: zero_test(**recipe)
         for name, recipe in recipes.items() if not {"steps", "first"} & set(recipe)}
for name, (loss, positions) in tests.items():
    print(f"{name:18} loss of the teacher itself {abs(loss):.3f}, at {positions} positions")

# %% jupyter={"outputs_hidden": true}
assert [abs(loss) < 1e-4 for loss, _ in tests.values()] == [True, True, False, True]
assert [positions == written for _, positions in tests.values()] == [True, True, True, False]
print("The zero test finds the wrong head; the count finds the prompt.")
style.say("Neither finds the KL that was turned round: for that one, compare random logits "
          "with a second implementation.")
shelf.cleanup()

# %% [markdown]
# ## In the real V4
#
# | | here | V4 | source |
# | --- | --- | --- | --- |
# | teachers | 2, by 28 steps of SFT each (4 by SFT and GRPO in `minids lifecycle`) | more than ten, by SFT and GRPO | report 5.1.2 |
# | loss | reverse KL, whole vocabulary of 2,048 | reverse KL, whole vocabulary ("&#124;V&#124; > 100k") | 5.1.2, 5.2.2 |
# | texts | the student's | the student's | 5.1.2 |
# | teachers' weights | in memory | in a distributed store, loaded on demand, sharded | 5.2.2 |
# | what is cached | last hidden states | last hidden states | 5.2.2 |
# | order of samples | by family | by teacher, so that each head is loaded once a mini-batch | 5.2.2 |
# | the exact KL | three lines of PyTorch | a kernel of its own, in TileLang | 5.2.2 |
# | teachers compute in | float32 | FP4 weights in the routed experts | 5.2.1 |
#
# The report says that this step *replaces* the mixed reinforcement learning of V3.2 (5.1), and that it avoids the losses that come with merging weights or mixing rewards (5.1.2). It gives no figures for that, and we can confirm only
# a part of it: in our run mean weights failed in one family. **What our scale cannot show**: long answers, in which errors compound; ten teachers that disagree; a head that has moved far.
#
# ## Distillation in the world
#
# Hinton, Vinyals and Dean named it in 2015 ([arXiv 1503.02531](https://arxiv.org/abs/1503.02531), 9 March 2015): a small network learns from the *probabilities* of a large one, not only from its answers. Today the word is also used for training
# on another model's *text*.
#
# The dispute is about that second kind, across companies. On 12 February 2026 OpenAI told a committee of the US House that accounts of DeepSeek's employees had got round its access limits to collect outputs for distillation
# ([Reuters, 13 February 2026](https://www.devdiscourse.com/article/technology/3803421-update-1-openai-says-chinas-deepseek-trained-its-ai-by-distilling-us-models-memo-shows)). On 23 February Anthropic wrote that DeepSeek, Moonshot and MiniMax had made over
# 16 million exchanges through some 24,000 fraudulent accounts, and called this distillation attacks ([Anthropic, 23 February 2026](https://www.anthropic.com/news/detecting-and-preventing-distillation-attacks)). These are claims of competitors; we know of no
# court that has decided on them. DeepSeek did not answer Reuters at once; in September 2025 it had said that its V3 base may hold text of other models found on the web, but none put in on purpose
# ([36Kr, September 2025](https://eu.36kr.com/en/p/3471329256641924)). Critics hold that the term blames a common technique for what is a breach of contract
# ([N. Lambert, 4 May 2026](https://podparley.com/Episode/Details/the-distillation-panic-18ad52247d869fbe-697e22)), and that copyright fits it badly ([Monash, 2026](https://lens.monash.edu/ai-distillation-and-the-law-why-learning-from-claude-or-gpt-may-not-be-copyright-infringement)).
#
# This lesson's distillation is another thing. Teachers and student belong to one laboratory and descend from one base. The loss needs every token's probability from the teacher's own head, at places that the student chose; an interface that sells text
# does not give that ([Lambert, February 2026](https://www.interconnects.ai/p/how-much-does-distillation-really)). Whether V4's specialists ever saw another model's text is a question about their *data*, which this method does not answer.
#
# ## Key points
# - The mean of two networks is not the mean of what they know. Names (`tid2eid`) have no mean at all.
# - Reverse KL, the student's probabilities first: do not say what the teacher would not. Forward KL: leave out nothing that it says.
# - One drawn token gives the right gradient on average, with a variance that at a single position of the live run was many times its square. The whole vocabulary has no such noise.
# - The gradient of the *value's* estimate is 0 on average: a loss that looks right and teaches nothing.
# - Who practises only where the teacher goes has never learned the way back. Loss on the teacher's text does not show it.
# - Keep hidden states, not logits: 32 times less in Flash, and the same logits, up to rounding.
# - Means first within a family, then by weight; on the reply, not on the prompt.
#
# ## Questions to discuss
#
# <details><summary>1. Your student has a reverse KL of 0.01 to its teacher, and the teacher's best rare answer never comes. How can that be?</summary>
#
# Reverse KL is a mean over what the *student* writes. An answer that it never writes costs almost nothing. *"Then 0.01 must be a bug"* is wrong. *"Take the forward KL"* is a fair idea, at the price of a student that also writes what lies between the teacher's answers, if it is too small to match.
# </details>
#
# <details><summary>2. Off-policy distillation computes the teachers' texts once and can use them for many students. Why pay for new texts at each step?</summary>
#
# Because the student's mistakes are its own, and change while it learns. *"Because the teacher's texts are worse"* is wrong: they are better, and that is the trouble; they never show a mistake and its repair. For short answers, as here, the cheaper way may well be good enough.
# </details>
#
# <details><summary>3. Would it be simpler to let all teachers vote at each token, and learn from their mean?</summary>
#
# Simpler, and bad: outside its domain a specialist is wrong in its own manner (0 % right, and many nats from the right teacher). The mean of one expert and nine strangers is mostly strangers. V4 picks the teacher by the prompt's domain. *"The weights w_i do that already"* is half right: they say how much a domain counts, not who speaks where.
# </details>
#
# <details><summary>4. Why not go on with reinforcement learning on all domains at once, as V3.2 did?</summary>
#
# It works, and needs no teachers. But rewards of different domains have different scales and different noise, and a reward is one number for a whole answer, while a teacher gives a whole distribution at each token. *"Distillation makes reinforcement learning needless"* is wrong: the teachers came from it.
# </details>
#
# <details><summary>5. Teacher and student have different tokenizers. What breaks?</summary>
#
# Everything here: the sum over the vocabulary pairs token v with token v. One could only learn from *text* then. `minids distill` refuses such teachers.
# </details>
#
# ## Links
# - Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, [arXiv 1503.02531](https://arxiv.org/abs/1503.02531)
# - Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, [arXiv 2306.13649](https://arxiv.org/abs/2306.13649)
# - Gu et al., MiniLLM: Knowledge Distillation of Large Language Models (reverse KL), [arXiv 2306.08543](https://arxiv.org/abs/2306.08543)
# - Ross, Gordon, Bagnell, A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning, [arXiv 1011.0686](https://arxiv.org/abs/1011.0686): why errors compound
# - In this repository: `minids/posttrain/distill.py` (the five methods and the noise), `minids/posttrain/teachers.py` (the cache), `minids/recipes/lifecycle.py` (the whole life in one command)
