# %% [markdown]
# # 10 Pre-training: from noise to English
# **A whole DeepSeek-V4, scaled down to two million numbers, goes from noise to its first phrases in front of you, in less than a minute.**
#
# **After this you can**
# - cut a text into batches of inputs and targets, and say what the loss must be before the first step,
# - fit a unigram, a bigram and a trigram model, and use them as yardsticks,
# - compare losses across tokenizers, in bits per byte,
# - write a training step: two losses, clipping, AdamW with and without decay, warm-up and cosine,
# - train a model, read its log, and say after how many tokens it passed each yardstick,
# - compare two architectures fairly: same text, same seconds, same unit,
# - recognise three broken recipes by their curves,
# - kill a run, resume it exactly, and estimate what a run costs: memory, operations, years.
#
# **Time: 142 minutes, exercises included.** All cells together run in about a minute.
# **Before:** you have seen PyTorch's `backward` and `step`. Lesson 08 helps, but the model is only used here. Terms in bold are in the
# [glossary](GLOSSARY.md).

# %%
import json
import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import minids
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from minids import Config, Model, generate
from minids.data import books, mixture
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model.moe import balance
from minids.pretrain import train
from minids.pretrain.batches import batch_at, batch_of
from minids.pretrain.losses import stream_loss
from minids.pretrain.optim import make_optimiser
from minids.pretrain.run_folder import newest, read_log
from minids.pretrain.settings import TrainConfig
from minids.pretrain.trigram import Trigram
from minids.show import pretraining, style
from minids.system import paths
from torch import nn
from tqdm.auto import tqdm

style.use()
versions()

# %% [markdown]
# ## A cold open: the same network twice
# Both columns come from the same class with the same sizes. The left one has random weights. The right one is shipped with the
# course: it has been through what this lesson is about. Both go on after the same sentence.
#
# **Predict before you run:** what does a network with random weights write: random letters, random words, or one word again and again?

# %%
tokenizer = Tokenizer.load()
torch.manual_seed(0)
untrained = Model(Config.nano()).eval()
shipped = minids.load(paths.data("checkpoints", "nano"))

prompt = "On market day Nora went to the mill."
ids = tokenizer.encode(prompt, bos=True)
samples = {}
for name, model in (("untrained", untrained), ("trained", shipped)):
    new = generate(model, ids, max_new_tokens=90, temperature=0.8, top_p=0.9, seed=4)
    samples[name] = prompt + tokenizer.decode(new)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
pretraining.columns(samples)

# %% [markdown]
# (A mark like `<|end of sentence|>` is the token that ends a document.) The untrained text is no random keyboard noise. Can you tell why it holds whole words?
#
# <details><summary>Answer</summary>
#
# The tokenizer was trained. Many of its 2,048 tokens are whole English words, and the untrained model draws tokens almost evenly.
# </details>
#
# So count pairs of neighbouring words that occur in the training text. A model that knows only words gets few of those right.

# %%
def word_pairs(text):
    words = re.findall("[a-z]+", text.lower())
    return list(zip(words, words[1:]))

# {split: ids}, each document between the ids that begin and end a text
tokens = mixture.streams(1_000_000, tokenizer)
known = set(word_pairs(tokenizer.decode(tokens["train"].tolist())))
share = {name: np.mean([pair in known for pair in word_pairs(sample)])
         for name, sample in samples.items()}
assert share["trained"] > share["untrained"] + 0.2
print("The trained model's word pairs are known ones far more often than the untrained "
      "model's.")

# %% [markdown]
# ## From text to batches
# The shipped model read a **mixture**, as V4 did (report, section 4.1). Ours has five kinds of documents. One is real: the King James Bible,
# Shakespeare and Milton. The others are made by programs: scenes, stories and portraits of **TinyWorld**, and problems that are worked out step by step. A program writes as much
# as is wanted, it knows the right answers, and a world of twenty places and a few hundred words is one that two million parameters can hope to learn.

# %%
for kind, part in mixture.SHARES.items():
    example = " / ".join(mixture.document(kind, "train", 4).split("\n"))[:150] + " ..."
    print(f"{100 * part:2.0f} % {kind:9} {example}\n")

# %% [markdown]
# Three splits are kept apart. No document is in two of them: real books are split by book, problems and stories by the numbers that they are made from.
#
# - **train**: what the model learns from. Here a million tokens; the shipped model read more.
# - **valid**: looked at while training, to choose settings.
# - **heldout**: looked at once, for the number that is reported.

# %%
def raw_bytes(ids):
    """The text of ids as bytes, without the marks that begin and end documents."""
    marks = (tokenizer.bos_id, tokenizer.eos_id)
    return np.frombuffer(tokenizer.to_bytes(i for i in ids.tolist() if i not in marks),
                         np.uint8)

raw = {split: raw_bytes(tokens[split]) for split in books.SPLITS}
for split in books.SPLITS:
    size, n = len(raw[split]), len(tokens[split])
    begun = int((tokens[split] == tokenizer.bos_id).sum())
    print(f"{split:8} {begun:6,} documents {size:9,} bytes {n:9,} tokens = {size / n:.2f} "
          "bytes a token")

# %% [markdown]
# **Targets are the inputs, one place to the left.** A window of $T + 1$ tokens gives $T$ questions: after each of its first $T$ tokens,
# what comes next? Here is a window with $T = 5$.

# %%
line = np.array(tokenizer.encode("Let there be light", bos=True))
T = 5
window = line[: T + 1]                       # T+1
x, y = window[:-1], window[1:]               # T, T
for t in range(len(x)):
    seen = " ".join(pretraining.visible(tokenizer, i) for i in x[: t + 1] if i)
    print(f"t={t}  input {x[t]:4}  target {y[t]:4} = {pretraining.visible(tokenizer, y[t]):7}  "
          f"after: {seen}")

# %% [markdown]
# **A stream is cut into windows that touch; an epoch goes through them once, in a random order.** On a stream of the numbers 0 to 40 the
# cut is easy to see. *Predict before you run*: each row below has five numbers although $T = 4$. What will be the last number of a
# row, compared with the first number of the window that follows it in the stream?

# %% jupyter={"outputs_hidden": true}
toy = TrainConfig(steps=3, batch=3, seq_len=4)
for step in range(3):
    print(f"step {step}:", batch_at(np.arange(41), toy, step).tolist())    # B T+1
rows = np.concatenate([batch_at(np.arange(41), toy, step) for step in range(3)])
assert len(set(rows[:, 0])) == 9 and all(np.diff(row).tolist() == [1] * 4 for row in rows)

# %% [markdown]
# The same number: the last *target* of a window is the first *input* of the next. Every token is a target at most once: where the first window starts is drawn (here at 3), and what is cut off at both ends waits for another epoch.
#
# The batch of step $s$ depends on the seed and on $s$, on nothing else. Later this lets a killed run go on exactly. One thing we leave
# out: V4 packs documents into windows and keeps attention from crossing their borders (report, section 4.1). `minids.pretrain.train` does so too. In
# the plain loop that we write here, a story can see the one before it.

# %% [markdown]
# ## What is the loss before the first step?
# The **loss** is the mean of $-\log p(\text{target})$, the surprise, in *nats* (natural logarithm). A model that spreads its bet evenly over 2,048 tokens
# has the loss
#
# $$ -\log \tfrac{1}{2048} = \log 2048 = 7.62 . $$
#
# *Predict before you run*: the untrained model's logits are random, not equal. Is its loss below, at, or above $\log 2048$?

# %% jupyter={"outputs_hidden": true}
even = math.log(2048)
# B T+1
batch = torch.from_numpy(batch_of(tokens["valid"], rows=8, seq_len=256, seed=0, step=0))
x, y = batch[:, :-1], batch[:, 1:]           # B T
with torch.inference_mode():
    logits = untrained(x)                    # B T V
loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
print(f"even bet {even:.2f}, untrained model {loss:.2f}, deviation of its logits "
      f"{logits.std():.2f}")

# %% [markdown]
# Slightly above. Random preferences are wrong as often as right, and being wrong costs more. For logits that vary normally with deviation
# $\sigma$ around their mean the surplus is $\sigma^2 / 2$ on average (the mean of $e^z$ is $e^{\sigma^2/2}$).

# %%
surplus = loss.item() - even
assert abs(surplus - logits.var().item() / 2) < 0.03
style.say("The surplus over the even bet agrees with half the variance of the logits, within "
          "0.03 nats.")

# %% [markdown]
# This is the first check of any training run. A first loss of 7.6 is right for 2,048 tokens. A first loss of 20 means an initialisation that is
# far too loud; one well below 7.6 means a fault in the loss itself. (An answer that leaks in does not show here, since an untrained model cannot use it; it shows when the loss falls too fast, see *Sabotage*.)

# %% [markdown]
# ## Yardsticks: three models that only count
# A falling curve says little by itself. So fit three models that know no network at all, on the same tokens.
#
# - **Unigram**: how frequent is token $c$? $\;P(c) = (n_c + 1) / \sum_{c'} (n_{c'} + 1)$
# - **Bigram**: how often does $c$ follow $b$? Few counts are unreliable, so mix in $a$ imagined ones from the unigram:
#   $P(c \mid b) = (n_{bc} + a P(c)) / (n_b + a)$
# - **Trigram**: the same idea with two tokens of context, and with the best smoothing known for counts, Kneser and Ney's
#   (`minids.pretrain.trigram`).
#
# By hand, on the text `a b a b b` with $a = 2$: a occurs 2 times and b 3 times, so $P(b) = 4/7$. After a came b, twice out of 2:
# $P(b \mid a) = (2 + 2 \cdot 4/7) / (2 + 2) = 0.79$, a bit less than the raw 100 %.

# %%
def counts(stream, V):
    """Unigram probabilities V, and bigram counts V V."""
    stream = np.asarray(stream, dtype=np.int64)
    p = np.bincount(stream, minlength=V) + 1.0
    pairs = np.bincount(stream[:-1] * V + stream[1:], minlength=V * V).reshape(V, V)
    return p / p.sum(), pairs

def bigram(p, pairs, a):
    """P(c | b), V V: counts, mixed with `a` imagined ones from the unigram."""
    return (pairs + a * p) / (pairs.sum(1, keepdims=True) + a)

p, pairs = counts([0, 1, 0, 1, 1], V=2)
print(f"P(b) = {p[1]:.3f}   P(b | a) = {bigram(p, pairs, a=2)[0, 1]:.3f}")

# %% [markdown]
# Now on the training text. How many imagined counts $a$ are best is chosen on validation text, never on the text that is reported.
# *Predict before you run*: of 1, 10, 100 and 1,000, which is best, and what goes wrong on either side?

# %% jupyter={"outputs_hidden": true}
p, pairs = counts(tokens["train"], V=2048)
trigram = Trigram(tokens["train"], 2048)

valid = tokens["valid"].astype(np.int64)
for a in (1, 10, 100, 1000):
    loss = -np.log(bigram(p, pairs, a)[valid[:-1], valid[1:]]).mean()
    print(f"a = {a:4}: bigram {loss:.3f} nats per token on validation text")

# %% [markdown]
# Ten: fewer trust pairs that were seen once too much, more wash the counts out. We go on with 10. The next cell scores all three models, on exactly the
# targets on which the network will be judged while it trains.

# %%
best = bigram(p, pairs, 10)

def yardsticks(ids, which=slice(None), fitted=None):
    """Losses of the three in nats per token, means over the targets ids[1:], or over some of
    them."""
    ids = ids.astype(np.int64)
    each = {"unigram": -np.log(p[ids[1:]]), "bigram": -np.log(best[ids[:-1], ids[1:]]),
            "trigram": (fitted or trigram).nll(ids)}
    return {name: float(nll[which].mean()) for name, nll in each.items()}

# while a model trains, it looks at each eighth window of the validation text; the first token
# of a document is no target
looked_at = np.zeros(len(valid) - 1, dtype=bool)
# windows of 256 overlap by 64, which serve as context only
for begin in range(0, len(valid) - 1 - 64, 8 * 192):
    looked_at[begin + (64 if begin else 0) : begin + 256] = True
looked_at &= valid[1:] != tokenizer.bos_id
baselines = yardsticks(tokens["valid"], looked_at)
table = {"looks": baselines}
table |= {split: yardsticks(tokens[split]) for split in ("valid", "heldout")}
for where, losses in table.items():
    print(f"{where:8}", "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

# %% [markdown]
# (`looks` are the targets that a training network is asked for.) On validation text from 7.6 (nothing known) to 5.6 (frequencies), 2.9 (one token of context)
# and 2.2 (two): each step is large. These are no weak opponents.
# They saw all of the million tokens, and they count them all exactly. The network reads a window of 256 tokens at a time, and it has to
# learn even the frequencies by small steps.

# %% [markdown]
# ## Nats per token, bits per byte
# *Predict before you run*: a unigram over the 256 single **bytes** of the same text, and the unigram over our 2,048 tokens. Which has the lower
# loss per symbol? Which is the better model of the text?

# %% jupyter={"outputs_hidden": true}
p_byte, _ = counts(raw["train"], V=256)
per_byte = -np.log(p_byte[raw["valid"]]).mean()
per_token = yardsticks(tokens["valid"])["unigram"]
print(f"nats per symbol: bytes {per_byte:.2f}, tokens {per_token:.2f}")

# %% [markdown]
# The byte model looks far better: 3.3 against 5.6. But it is asked an easier question, 3.4 times as often. A loss per token depends on how
# large the tokens are. The fair unit pays for the whole text and divides by what no tokenizer can change, its bytes:
#
# $$ \text{bits per byte} = \frac{\text{nats per token} \times \text{tokens}}{\log 2 \times \text{bytes}} $$
#
# ### Exercise 1: bits per byte (easy, 5 minutes)
# Small example: 10 tokens at 2 nats each spell 25 bytes. The text costs 20 nats, which are $20 / 0.693 = 28.9$ bits, or 1.15 bits per byte.

# %%
def bits_per_byte(nats_per_token, n_tokens, n_bytes):
    """Mean loss in nats per token (a float), over n_tokens which spell n_bytes -> bits per
    byte, a float."""
    ### BEGIN SOLUTION
    bits = nats_per_token * n_tokens / math.log(2)
    return bits / n_bytes
    ### END SOLUTION

# %%
bits_per_byte = check("pretrain.bits_per_byte", bits_per_byte)

# %%
size = len(raw["valid"])
print(f"bytes as symbols: {bits_per_byte(per_byte, size, size):.2f} bits per byte")
for name, loss in yardsticks(tokens["valid"]).items():
    print(f"{name:8} tokens: {bits_per_byte(loss, len(tokens['valid']) - 1, size):.2f} bits "
          "per byte")

# %% [markdown]
# Per byte the order is reversed: the token unigram needs about half. Bits per byte is also a file size: a text coded with this model and an arithmetic
# coder takes that many bits for each of its 8-bit bytes.

# %% [markdown]
# ## The training step, part by part
# One step is: rate, forward, two losses, backward, clip, update, balance. You write the parts; then they must equal
# `minids.pretrain.train`, number by number.
#
# ### Exercise 2: the learning rate (easy, 8 minutes)
# A straight rise over the first `warmup` steps reaches `peak` with step `warmup - 1`. Then half a period of a cosine falls to a tenth of the
# peak at step `steps`:
#
# $$ \eta_s = \eta\,\tfrac{s + 1}{\text{warmup}} \;\text{ for } s < \text{warmup}, \qquad
# \eta_s = \eta\,\bigl(0.55 + 0.45 \cos \pi d\bigr), \quad d = \tfrac{s - \text{warmup}}{\text{steps} - \text{warmup}} . $$
#
# Check by hand: $d = 0$ gives $\eta$, and $d = 1$ gives $0.1\,\eta$.

# %%
def learning_rate(step, steps, peak, warmup):
    """The rate of step `step` (from 0) of a run of `steps`, a float."""
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))
    ### END SOLUTION

# %%
learning_rate = check("pretrain.learning_rate", learning_rate)

# %%
rates = [learning_rate(step, 48, 5e-3, 8) for step in range(48)]
style.show(pretraining.plot_schedule(rates, 5e-3),
           "The rate rises in a straight line for 8 steps, then falls along a cosine to a "
           "tenth of its peak")

# %% [markdown]
# V4 keeps the rate constant for most of the run and decays only near the end (report, section 4.2.2). For a short run the plain cosine
# is a common choice.
#
# ### Exercise 3: two losses (medium, 10 minutes)
# The **main loss** compares the logits at $t$ with token $t + 1$. Beside it the **multi-token prediction** (MTP) block looks one further: from the streams at
# $t$ and the token at $t + 1$ it predicts token $t + 2$. It only serves training here; its loss has the weight 0.3 (report, section 4.2.2).
#
#     ids           B T+1    a b c d e
#     logits        B T      . . . .        at a: is b right?    -> targets b c d e
#     mtp_logits    B T-1    . . .          at a: is c right?    -> targets ...?

# %%
def total_loss(logits, mtp_logits, ids, weight):
    """logits: B T V, mtp_logits: B T-1 V, ids: B T+1, int64
    -> (total, main loss, MTP loss), means in nats per token."""
    ### BEGIN SOLUTION
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())     # t predicts t + 1
    mtp = F.cross_entropy(mtp_logits.flatten(0, 1), ids[:, 2:].flatten())  # t predicts t + 2
    return loss + weight * mtp, loss, mtp
    ### END SOLUTION

# %%
total_loss = check("pretrain.total_loss", total_loss)

# %% [markdown]
# ### AdamW, one number at a time
# For each number $p$ with gradient $g$, AdamW keeps a running mean $m$ of $g$ and a running mean $v$ of $g^2$, both corrected for their start at 0:
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
#  p \leftarrow p - \eta \lambda p - \eta \frac{m / (1 - \beta_1^s)}{\sqrt{v / (1 - \beta_2^s)} + \epsilon} . $$
#
# $\lambda$ is the **weight decay**: it pulls $p$ towards zero, whatever the gradient says.
#
# *Predict before you run*: two numbers start at 1.0. One has the gradient 0.5, the other a thousandth of that. How far does each go in the
# first step, with $\eta = 0.1$ and no decay?

# %% jupyter={"outputs_hidden": true}
def adamw(p, g, state, lr, decay, betas=(0.9, 0.95), eps=1e-8):
    """One step for a tensor p with gradient g; the dict `state` keeps m, v and the number of
    steps. Changes p."""
    s = state["step"] = state.get("step", 0) + 1
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    p -= lr * decay * p
    p -= lr * (m / (1 - betas[0]**s)) / ((v / (1 - betas[1]**s)).sqrt() + eps)

p2, state = torch.tensor([1.0, 1.0]), {}
for g in (0.5, 0.4, -0.8):
    adamw(p2, torch.tensor([g, g / 1000]), state, lr=0.1, decay=0.0)
    print(f"gradient {g:4}:", [round(v, 3) for v in p2.tolist()])

# %% [markdown]
# Both go the same way: the first step is $\eta$ times the *sign* of the gradient, however small. That is why a warm-up exists. In the first steps
# $m$ and $v$ rest on very few gradients, and Adam steps just as boldly as later.
#
# Five steps of ours against five of PyTorch's own:

# %%
ours, theirs = torch.linspace(-1, 1, 6), torch.nn.Parameter(torch.linspace(-1, 1, 6))
reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
state = {}
for seed in range(5):
    theirs.grad = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    adamw(ours, theirs.grad, state, lr=0.1, decay=0.1)
    reference.step()
torch.testing.assert_close(ours, theirs.detach())
print("five steps equal torch.optim.AdamW")

# %% [markdown]
# ### Who decays, and clipping
# Decay keeps matrices small. Norm weights, attention sinks, and the scales and biases of the hyper-connections are no matrices: pulling a norm's weight of 1 towards
# 0 would only shut its channel. So there are two groups. `minids` also lets the second group learn five times as fast: these numbers start near one value, and a
# short run leaves them little time to move. **Clipping** bounds one step's damage: if the norm $\lVert g \rVert$ of all
# gradients together exceeds 1, all are scaled by $1 / \lVert g \rVert$. The direction stays.

# %%
def two_groups(model, settings):
    """Parameters for AdamW: matrices with decay; all others without, and faster.

    (`ape`, a table of positions, counts among the others.)"""
    matrices, others = [], []
    for name, p_ in model.named_parameters():
        (matrices if p_.ndim == 2 and not name.endswith("ape") else others).append(p_)
    return [{"params": matrices, "weight_decay": settings.weight_decay, "times": 1.0},
            {"params": others, "weight_decay": 0.0, "times": settings.vector_lr}]

def clip(model, largest):
    """Scale all gradients so that their common norm is at most `largest`. Returns the norm
    before."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    for g in grads:
        g *= (largest / norm).clamp(max=1.0)
    return norm

for group in two_groups(untrained, TrainConfig(steps=1)):
    numbers = sum(p_.numel() for p_ in group["params"])
    print(f"decay {group['weight_decay']}, rate x {group['times']:.0f}: "
          f"{len(group['params']):3} tensors, {numbers:9,} numbers")

# %% [markdown]
# ### The step, and the proof
# `backward_step` is everything but the update. For the proof we use a small V4 with all its parts, and run four steps twice from the same weights: once with
# your functions and the AdamW above, once with `minids.pretrain.train.train_step`.
# (We switch off two refinements of `minids`: masks between documents that share a row, and the sequence-wise balance loss of weight 0.0001.)

# %%
def backward_step(model, ids, settings):
    """Two losses, gradients, clipping. ids: B T+1 -> main loss, MTP loss, norm of the
    gradient; the experts' loads."""
    X, record = model.run(ids[:, :-1])  # B T n d: the streams after the last block
    logits = model.logits(X)            # B T V
    # B T-1 V: streams at t, token at t+1
    mtp_logits, mtp_record = model.run_mtp(X[:, :-1], ids[:, 1:-1])
    total, loss, mtp = total_loss(logits, mtp_logits, ids, settings.mtp_weight)
    model.zero_grad()
    total.backward()
    norm = clip(model, settings.max_grad_norm)
    return loss.item(), mtp.item(), norm.item(), (record + mtp_record).loads

# %%
SMALL = Config.nano().replace(dim=32, n_layers=3, compress_ratios=(0, 4, 16, 0), n_heads=2,
                              head_dim=16, rope_head_dim=8,
                              q_lora_rank=16, o_lora_rank=16, index_head_dim=8,
                              moe_inter_dim=16, n_routed_experts=4,
                              hc_sinkhorn_iters=4, max_seq_len=256)
settings = TrainConfig(steps=4, batch=2, seq_len=64, warmup=2, packed=False, sequence_balance=0)
models = []
for _ in range(2):
    torch.manual_seed(1)
    models.append(Model(SMALL).train())
plain, ready = models
groups, states = two_groups(plain, settings), {}
optimiser = make_optimiser(ready, settings)

# %%
for step in range(settings.steps):
    ids = torch.from_numpy(batch_at(tokens["train"], settings, step))  # B T+1
    theirs = train.train_step(ready, optimiser, ids, settings, step)
    loss, mtp, norm, load = backward_step(plain, ids, settings)
    for group in groups:
        for p_ in group["params"]:
            if p_.grad is not None:
                rate = (learning_rate(step, settings.steps, settings.lr, settings.warmup)
                        * group["times"])
                adamw(p_.data, p_.grad, states.setdefault(p_, {}), rate, group["weight_decay"])
    balance(plain, load, settings.balance)                             # experts: lesson 06
    expected = theirs["loss"], theirs["mtp_loss"], theirs["grad_norm"]
    torch.testing.assert_close((loss, mtp, norm), expected, rtol=1e-4, atol=1e-4)
    print(f"step {step}: loss {loss:.2f}; both losses and the norm equal "
          "minids.pretrain.train's within 1e-4")

# %% [markdown]
# Did every number get a gradient? Count those that got none.

# %%
silent = [name for name, p_ in plain.named_parameters() if p_.grad is None]
print(len(silent), "tensors, all of the indexer:", all(".indexer." in name for name in silent))

# %% [markdown]
# The **indexer** of compressed sparse attention only *picks* entries, and picking has no gradient. V4 trains it with a loss of its own (report, section 4.2.2,
# speaks of a stage that warms it up; lesson 04 builds it). At this size `index_topk` is so large that every entry is picked anyway.

# %% [markdown]
# ## Live: the nano model learns
# Now for real: `Config.nano()`, 2.1 million parameters, four layers with all three kinds of attention, eight experts, four streams, one MTP
# block. Each step reads 4 windows of 256 tokens. Watch the blue curve and the three lines of the yardsticks.
#
# *Predict before you run*: which yardsticks will it pass within 48 steps, about 49,000 tokens? And what will it learn first?

# %%
settings = TrainConfig(steps=48, batch=4, lr=5e-3, warmup=8)
torch.manual_seed(settings.seed)
live = Model(Config.nano()).train()
optimiser = torch.optim.AdamW(two_groups(live, settings), betas=(0.9, 0.95), fused=True)
picture = pretraining.LiveLoss(settings.steps, baselines)
loads, seconds, early = [], [], None

def continued(model):
    """The prompt, and how the model goes on."""
    new = generate(model, tokenizer.encode(prompt, bos=True), 60, temperature=0.8, top_p=0.9,
                   seed=4)
    return prompt + tokenizer.decode(new)

print(f"{settings.steps} steps of {settings.batch * settings.seq_len:,} tokens")

# %% tags=["nbval-ignore-output"]
display(picture)
for step in tqdm(range(settings.steps), desc="training", unit="step"):
    began = process_time()
    rate = learning_rate(step, settings.steps, settings.lr, settings.warmup)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["times"]
    ids = torch.from_numpy(batch_at(tokens["train"], settings, step))  # B T+1
    loss, mtp, norm, load = backward_step(live, ids, settings)
    optimiser.step()
    # E: tokens that each expert of layer 2 got
    loads.append(load[2 - live.config.n_hash_layers].tolist())
    balance(live, load, settings.balance)
    seconds.append(process_time() - began)
    look_now = (step + 1) % (settings.steps // 4) == 0
    picture.add(loss, stream_loss(live, tokens["valid"], 256, every=8)[0] if look_now else None)
    if step + 1 == settings.steps // 4:
        early = continued(live)

# %% jupyter={"outputs_hidden": true}
style.show(picture.figure(),
           "The training loss falls from near 7.6, quickly at first; dots on validation text "
           "stay close to it; three lines mark unigram, bigram and trigram")

# %% jupyter={"outputs_hidden": true}
final = picture.validation[-1][1]
assert final < baselines["unigram"] - 0.3
assert abs(final - np.mean(picture.losses[-10:])) < 0.7
style.say("It beats the unigram clearly, and does about as well on unseen documents as on its "
          "batches.")

# %% [markdown]
# Three things to see in the figure:
# - The first steps go to the *unigram*: which tokens are frequent at all. Then context takes over, and a sentence of TinyWorld does not need much of it.
# - Batches and validation text agree. No batch came twice, so nothing can be memorised yet: each training loss is measured on text the model has not
#   learned from.
# - The curve is still falling at the end. So short a run does not reach the bigram, let alone the trigram.

# %% tags=["nbval-ignore-output"]
pretraining.columns({"after a quarter of the steps": early, "after all steps": continued(live)})

# %% [markdown]
# **Do all experts work?** A gate's bias moves by 0.001 a step against the load, without a loss (lesson 06). With eight experts and two of them for each
# token, an even share is 12.5 %, and 50 % is the most that one expert can get.

# %%
style.show(
    pretraining.plot_load_over_time(loads,
                                    "Layer 2: what share of its tokens each expert gets"),
    "A field of eight rows, one for each expert, over the steps: bright rows are busy experts")

# %%
assert all(sum(load) == 2 * 1024 for load in loads)
print("Two experts for each of 1,024 tokens, in every step.")

# %% [markdown]
# Nobody told the gates to be fair, and at first they are not: a few experts take most tokens. A bias that moves by 0.001 a step has moved by 0.05 at most in
# this run. At this length we cannot show what balancing brings; the ablations at the end take longer runs.

# %% [markdown]
# ## Against a peer
# Is all this machinery worth its time? Compare with a plain transformer, and give it every chance: the recipe that Karpathy's *nanoGPT* recommends for a CPU.
# Four layers, four heads, width 128, windows of 64 tokens, 12 of them a step, AdamW at $10^{-3}$ with $\beta_2 = 0.99$, a warm-up over the first twentieth of the
# run (100 of 2,000 steps there), a cosine to a tenth (nanoGPT's README, and `config/train_shakespeare_char.py`). Here it is, whole.

# %%
class PeerBlock(nn.Module):
    """A block of GPT-2: full attention, then a network with one hidden layer; both are added
    to a single stream."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d, bias=False)
        self.norm2 = nn.LayerNorm(d, bias=False)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):                                                   # B T d
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for y in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)         # B heads T d/heads
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

# %%
class Peer(nn.Module):
    """A small GPT-2; embedding and head share one matrix. `features` and `logits` are what
    `evaluate` asks for."""

    def __init__(self, config, T=64, d=128, heads=4, layers=4):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, d)
        self.position = nn.Embedding(T, d)
        self.blocks = nn.Sequential(*(PeerBlock(d, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d, bias=False)
        for name, p_ in self.named_parameters():
            if p_.ndim == 2:                # what writes to the stream starts smaller
                nn.init.normal_(p_, std=0.02 / (2 * layers) ** 0.5
                                if name.endswith(("out.weight", "down.weight")) else 0.02)

    def features(self, ids, options=None):  # B T -> B T d
        return self.blocks(self.embed(ids) + self.position.weight[: ids.shape[1]])

    def logits(self, X):                    # B T d -> B T V
        return self.norm(X) @ self.embed.weight.T

torch.manual_seed(0)
peer = Peer(Config.nano())
print(f"{sum(p_.numel() for p_ in peer.parameters()):,} parameters in the "
      f"peer, {sum(p_.numel() for p_ in live.parameters()):,} in the nano model, its MTP block "
      "included")

# %% [markdown]
# Same text, same machine, and **the same seconds**: the peer stops when it has trained as long as the nano model did above. (Seconds of the processor, so that other programs do not disturb
# the race.) Its steps are cheaper, so it takes more of them. The judge
# is the first 10,000 tokens of the held-out text, in bits per byte.
#
# *Predict before you run*: who is ahead after the same seconds? Who has read more?

# %% tags=["nbval-ignore-output"]
groups = [{"params": [p_ for p_ in peer.parameters() if p_.ndim == 2], "weight_decay": 0.1},
          {"params": [p_ for p_ in peer.parameters() if p_.ndim == 1], "weight_decay": 0.0}]
peer_optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
shape = TrainConfig(steps=100_000, batch=12, seq_len=64)
limit = sum(seconds)
peer_losses = []
peer_seconds = []
while sum(peer_seconds) < limit:
    # done: share of the time
    began, step, done = process_time(), len(peer_losses), sum(peer_seconds) / limit
    for group in groups:
        group["lr"] = 1e-3 * min((done + 0.001) / 0.05, 0.55 + 0.45 * math.cos(math.pi * done))
    ids = torch.from_numpy(batch_at(tokens["train"], shape, step))          # B T+1
    loss = F.cross_entropy(peer.logits(peer.features(ids[:, :-1])).flatten(0, 1),
                           ids[:, 1:].flatten())
    peer_optimiser.zero_grad()
    loss.backward()
    clip(peer, 1.0)
    peer_optimiser.step()
    peer_losses.append(loss.item())
    peer_seconds.append(process_time() - began)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
judged = tokens["heldout"][:10_000]
n_judged, bytes_judged = len(judged) - 1, len(raw_bytes(judged))
scores = {name: bits_per_byte(loss, n_judged, bytes_judged)
          for name, loss in yardsticks(judged).items()}
for name, model, T in (("nano", live, 256), ("peer", peer, 64)):
    scores[name] = bits_per_byte(stream_loss(model, judged, T, packed=False)[0], n_judged,
                                 bytes_judged)
for name, score in sorted(scores.items(), key=lambda item: item[1]):
    print(f"{name:8} {score:.3f} bits per byte")
print(f"in {limit:.0f} processor seconds each: the nano model read {1024 * len(seconds):,} "
      f"tokens, the peer {768 * len(peer_losses):,}")

# %% jupyter={"outputs_hidden": true}
style.show(pretraining.plot_loss_over_time({"nano": (seconds, picture.losses),
                                            "peer": (peer_seconds, peer_losses)}, baselines),
           "Training losses of the nano model and the peer over seconds of training, with the "
           "three yardsticks")

# %% jupyter={"outputs_hidden": true}
assert (max(scores["nano"], scores["peer"]) < scores["unigram"]
        and len(peer_losses) > len(seconds))
print("Both beat the unigram, and the peer took more steps in the same time.")

# %% [markdown]
# On the server where this lesson was written it was **nearly a tie**: at one time 1.70 bits per byte each, at others the one or the other a little ahead (your table may say otherwise). Nano had learned more from each token; the peer, whose step is
# cheap, had read more than twice as many. In a longer race that we ran once, 80 steps of nano, the peer was a little ahead, 1.43 against 1.47. **So at this size the machinery does not pay for itself.**
# The nano model has two million numbers, twenty Sinkhorn steps at each site, a second loss, and many small operations that leave a CPU half idle. What V4's parts save
# (cache and operations over long texts) does not matter in windows of 64 or 256 tokens.
#
# One run each, one duration, one seed: this shows what a short run costs, not which design is better in the end. The recipes differ in more than the architecture: windows, rate, batch.
# A control that changes one thing at a time is an ablation; see the end of this lesson.
#
# ## The shipped run, from its log
# The shipped model comes from `minids train --preset nano --data mix` (an earlier version of the code and of the mixture), a much longer run. The main differences from our loop: Muon updates the matrices (lesson 09).
# A step reads more tokens, and the MTP loss is taken on a part of its windows, which makes a step cheaper. The rate stays constant for the larger part of the run. And there are
# stages, as in V4: short windows with dense attention (a query reads all entries); a warm-up in which only the indexer learns; long windows with sparse attention (a query reads what
# the indexer picks). Documents of a row are kept apart, and indexer and routers have small losses of their own. Its held-out text is that of its own time, close to today's and not the same.
# Every run writes `log.jsonl`, a record each step. The log of the shipped one lies beside its weights.

# %%
log = read_log(paths.data("checkpoints", "nano"))
preset = TrainConfig.preset("nano", "mix")
per_step = preset.tokens // preset.steps
print(f"{preset.steps:,} steps of {per_step:,} tokens = {preset.tokens:,} tokens")
for stage in preset.plan:
    print(f"{stage.attention:7} {stage.batch} windows of {stage.seq_len:5}: {stage.share:4.0%} "
          "of the steps")
style.show(pretraining.plot_run_log(log, per_step, baselines,
                                    [stage.attention for stage in preset.plan]),
           "Five panels over tokens read: the loss with three yardsticks, its last dots "
           "closer, the learning rate, the norm of the gradient, the speed; thin upright lines "
           "mark where the second and the third stage begin")

# %% [markdown]
# Look for the place between the two thin lines, after about four fifths of the tokens, where the norm of the gradient drops. There is the warm-up of the indexer, where nothing else learns; steps are cheaper, since nothing flows back through
# the rest of the model. From here on windows have 1,024 tokens; after the warm-up, with everything learning again, a step takes longer than in the first stage. The looks at validation text now fall on other pieces of it; hence the small step up of the dots after the first
# line, in the panel at the top right.
#
# ### Exercise 4: when did it beat what? (medium, 10 minutes)
# The log has the loss of each step, on windows that the model has not seen before; we take the mean of ten. Join the points by straight lines: after how many tokens did the loss first reach a baseline?
#
# Small example: loss 6 at 100 tokens, 5 at 200, and the baseline is 5.25. Three quarters of the way down, so after 175 tokens.

# %%
def tokens_to_beat(tokens, losses, baseline):
    """tokens, losses: lists of floats of equal length -> tokens read when the loss first
    reaches `baseline`, a float; math.inf if it never does. If the first point is below already:
    the first point's tokens."""
    ### BEGIN SOLUTION
    if losses[0] <= baseline:
        return float(tokens[0])
    for i in range(1, len(losses)):
        if losses[i] <= baseline:
            share = (losses[i - 1] - baseline) / (losses[i - 1] - losses[i])
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return math.inf
    ### END SOLUTION

# %%
tokens_to_beat = check("pretrain.tokens_to_beat", tokens_to_beat)

# %% tags=["nbval-ignore-output"]
steps = [r for r in log if "loss" in r]
read = [float(r["step"] * per_step) for r in steps]
losses = style.running_mean([r["loss"] for r in steps])
for name, loss in baselines.items():
    print(f"{name:8} {loss:.3f} nats: beaten after {tokens_to_beat(read, losses, loss):9,.0f} "
          "tokens")
heldout = next(r["heldout_loss"] for r in log if "heldout_loss" in r)
print(f"heldout text: {heldout:.3f} nats per token; the trigram of a million tokens "
      f"{trigram.loss(tokens['heldout']):.3f}")

# %%
passed = [tokens_to_beat(read, losses, baselines[name])
          for name in ("unigram", "bigram", "trigram")]
assert passed == sorted(passed) and heldout < yardsticks(tokens["heldout"])["trigram"] - 0.5
style.say("The shipped run passes the yardsticks in the order of their strength, and beats the "
          "trigram on held-out text by far.")

# %% [markdown]
# That race was not quite fair: the trigram had read a million tokens before the start. So a second question, of equal data: fit a trigram to only as many tokens of the mixture as the run had read by then.
# *Predict before you run*: who leads after the first 50,000 tokens? Who after 700,000?

# %% jupyter={"outputs_hidden": true}
looks, race = [r for r in log if "valid_loss" in r], {}
for count in (25_000, 50_000, 100_000, 200_000, 400_000, 700_000, 1_000_000):
    race[count] = yardsticks(tokens["valid"], looked_at,
                             Trigram(tokens["train"][:count], 2048))["trigram"]
begin = [i for i in range(9, len(read)) if read[i] < 1_050_000]
style.show(pretraining.plot_race([read[i] for i in begin], [losses[i] for i in begin], race),
           "Loss over tokens read, for the network and for a trigram fitted to as many tokens")

# %% jupyter={"outputs_hidden": true}
early_read, late_read = 50_000, 700_000
assert (np.interp(early_read, read, losses) > race[early_read]
        and np.interp(late_read, read, losses) < race[late_read])
print(f"The trigram leads after {early_read:,} tokens, the network after {late_read:,}.")

# %% [markdown]
# Counting is the quicker start: each count is used at once, while the network needs many examples for one fact, and its rate is still rising. But the network's curve is the steeper one, and they cross early in the run.
# At its end the network is far ahead of a trigram of all the tokens that the run read: the [checkpoint's README](../data/checkpoints/nano/README.md) has both numbers.
# Counting trigrams has a floor: more text cannot give it a third token of context. The network has all the other tokens of its window.
#
# ## Sabotage: three broken recipes
# Small models, 40 steps, each recipe with two seeds. The control is the recipe as it is. *Predict before you run* what each change does to
# the curve, and which one you would notice:
#
# 1. **The answer leaks**: targets are not shifted, so the model is asked for the token it stands on.
# 2. **Gradients pile up**: `zero_grad` is forgotten, so each step adds to all former gradients.
# 3. **No warm-up, ten times the rate.**

# %%
TWO_LAYERS = SMALL.replace(dim=64, n_layers=2, compress_ratios=(0, 4), n_mtp_layers=0,
                           head_dim=32, q_lora_rank=32,
                           o_lora_rank=32, moe_inter_dim=32)

def short_run(seed, leak=False, pile_up=False, lr=8e-3, warmup=8, steps=40):
    """Train a small model with a broken recipe; returns training losses and the honest loss
    on validation text."""
    settings = TrainConfig(steps=steps, batch=4, seq_len=64, lr=lr, warmup=warmup, seed=seed)
    torch.manual_seed(seed)
    model = Model(TWO_LAYERS).train()
    optimiser, losses = make_optimiser(model, settings), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup) * group["times"]
        ids = torch.from_numpy(batch_at(tokens["train"], settings, step))  # B T+1
        targets = ids[:, :-1] if leak else ids[:, 1:]
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), targets.flatten())
        if not pile_up:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimiser.step()
        losses.append(loss.item())
    return losses, stream_loss(model, tokens["valid"], 64, every=100)[0]

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
recipes = {"as it is": {}, "answer leaks": {"leak": True},
           "gradients pile up": {"pile_up": True},
           "10 x rate, no warm-up": {"lr": 8e-2, "warmup": 0}}
curves, honest = {}, {}
for name, change in recipes.items():
    runs = [short_run(seed, **change) for seed in (0, 1)]
    curves[name], honest[name] = [run[0] for run in runs], [run[1] for run in runs]
    ends = ", ".join(f"{np.mean(curve[-5:]):.2f}" for curve in curves[name])
    print(f"{name:22} last losses {ends}   validation "
          f"{', '.join(f'{loss:.2f}' for loss in honest[name])}")

# %% jupyter={"outputs_hidden": true}
style.show(pretraining.plot_sabotage(curves, baselines["trigram"]),
           "Losses over 40 steps, for each recipe the mean of two seeds, and their range as a "
           "band: the leaking recipe falls far below all others")

# %% jupyter={"outputs_hidden": true}
assert max(np.mean(curve[-5:]) for curve in curves["answer leaks"]) < baselines["trigram"]
assert min(honest["answer leaks"]) > even and max(honest["as it is"]) < even - 1
style.say("The leaking recipe passes the trigram in training; asked the honest question, it is "
          "worse than an even bet.")

# %% [markdown]
# - **The answer leaks.** The most dangerous one, since its curve is the best. A loss that falls below a strong yardstick within a few steps is
#   no triumph: look for the leak. The honest question (next token, unseen text) shows it at once: the model bets on repetition, and loses more than one that
#   knows nothing. The control, with the same seeds and the same question, shows that the question itself is fair.
# - **Gradients pile up.** Nothing crashes. Clipping hides the growing norm, and what remains is a slow, stale direction. The loss falls, only a little less far. Compare the
#   distance to the control with the spread between its two seeds: in so short a run it is smaller. It can be seen at all only because both share seeds and batches.
# - **Ten times the rate without a warm-up.** You may have expected a catastrophe. Look at the first steps, and then at the last: it stumbles, recovers, and ends behind.
#   Clipping, norms on queries and keys, and a small depth forgive much. We cannot show the instabilities that V4's report fights (section 4.2.3) with two layers and
#   40 steps.

# %% [markdown]
# ### Exercise 5: a loss that lies (debug, 10 minutes)
# Pre-training packs its windows full. Fine-tuning does not: answers differ in length, and short rows are filled with a **padding** token.
# A colleague wrote this loss. It runs, it falls, and it is wrong in two ways; mend the second within its mean of means, and there is a third.

# %%
def colleagues_loss(logits, ids, pad):
    """logits: B T V, the model's output for ids: B T."""
    losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")  # B T
    return losses.mean(1).mean()

row = torch.tensor([[0, 5, 6, 7, 2, 2, 2, 2], [0, 5, 6, 7, 8, 9, 5, 6]])  # pad is 2
copycat = 10.0 * F.one_hot(row, 11).float()  # a "model" that repeats its input
print(f"the copycat's loss is {colleagues_loss(copycat, row, pad=2):.4f}")

# %% [markdown]
# A model that repeats its input has learned nothing, and gets a loss of almost zero. Write the honest loss: position $t$ is asked for token $t + 1$; targets that are
# padding do not count; every target that counts has the same weight, whichever row it is in.

# %%
def masked_loss(logits, ids, pad):
    """logits: B T V from ids: B T -> mean next-token loss over targets other than `pad`, a
    tensor without axes."""
    ### BEGIN SOLUTION
    targets = ids[:, 1:]                                                                 # B T-1
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")  # B T-1
    return losses[targets != pad].mean()
    ### END SOLUTION

# %%
masked_loss = check("pretrain.masked_loss", masked_loss)
print(f"the copycat's honest loss is {masked_loss(copycat, row, pad=2):.2f}")

# %% [markdown]
# Stuck? `hint("pretrain.masked_loss")` in a new cell gives one of three hints; so for the others.

# %% [markdown]
# ## Kill it, resume it
# Long runs die: power, time limits, a laptop lid. A checkpoint holds what the next step depends on: weights, the two running means of AdamW, the number of the step.
# The batch follows from the seed and the step. Nothing else is random, so a resumed run must repeat the uninterrupted one **exactly**.
#
# *Predict before you run*: we save every 5 steps and kill after step 8. Which steps are computed twice?

# %% tags=["nbval-ignore-output"]
class PowerCut(Exception):
    pass

def cut_at_8(record):
    done.append(record["step"])
    if record["step"] == 8:
        raise PowerCut

settings = TrainConfig(steps=12, batch=2, seq_len=64, warmup=3, save_every=5)
little = {split: stream[:1000] for split, stream in tokens.items()}
with TemporaryDirectory() as folder:
    whole = train.train(SMALL, settings, Path(folder, "whole"), tokens=little)
    done = []
    try:
        train.train(SMALL, settings, Path(folder, "cut"), tokens=little, on_step=cut_at_8)
    except PowerCut:
        saved = newest(Path(folder, "cut")).name
    resumed = train.train(SMALL, settings, Path(folder, "cut"), tokens=little,
                          on_step=lambda r: done.append(r["step"]))

# %% jupyter={"outputs_hidden": true}
a, b = ([(r["loss"], r["mtp_loss"], r["grad_norm"]) for r in run if "loss" in r]
        for run in (whole, resumed))
assert a == b                                # equal floats, not merely close
print("saved:", saved, "  steps in order:", done)
print(len(a), "steps, every loss and norm bit for bit the same")

# %% [markdown]
# Steps 6 to 8 ran twice, and came out the same. The checkpoint is written beside the old one and then renamed, so that a kill while saving leaves the old one whole.
# V4's report goes much further: its kernels give the same bits whatever else is in the batch (section 3.3).

# %% [markdown]
# ## What training costs
# **Memory.** In float32 each parameter needs 4 bytes for itself, 4 for its gradient, and 8 for AdamW's $m$ and $v$: 16 bytes. *Predict*: how many of these does
# *using* the model need?

# %% jupyter={"outputs_hidden": true}
P = sum(p_.numel() for p_ in live.parameters())
kept = sum(v.numel() * v.element_size() for s in optimiser.state.values()
           for k, v in s.items() if k != "step")
got = sum(p_.numel() for p_ in live.parameters() if p_.grad is not None)
assert kept == 8 * got
style.say(f"{P:,} parameters, {got:,} of them with a gradient: 8 bytes of AdamW for each = "
          f"{kept / 1e6:.1f} MB")
print(f"weights {4 * P / 1e6:.1f} MB + gradients {4 * got / 1e6:.1f} MB + AdamW "
      f"{kept / 1e6:.1f} MB")
flash = minids.cost.params(Config.flash())
print(f"V4-Flash at 16 bytes a parameter: {16 * (flash['total'] + flash['mtp']) / 1e12:.2f} TB")

# %% [markdown]
# A quarter: to use a model you need the weights alone. Flash at this rate would take 4.66 TB, before a single activation. V4 does better than our plain recipe: Muon keeps one running
# mean where AdamW keeps two, and the states are spread over the machines (section 3.5.1).
#
# **Operations.** A matrix with $N$ numbers times a vector takes $N$ multiplications and $N$ additions: $2N$. Backward does this twice, for the gradient of the input and of the matrix.
# So a trained token costs about $6N$, where $N$ counts the *active* parameters: experts that a token does not use cost it nothing.

# %%
nano = minids.cost.params(Config.nano())
for name, cost in (("nano", nano), ("Flash", flash)):
    print(f"{name:5} {cost['total']:15,} parameters, {cost['active']:14,} active: "
          f"{6 * cost['active']:.2e} operations a token")
total = 6 * flash["active"] * 32e12
print(f"Flash, 32T tokens: {total:.2e} operations")

# %% tags=["nbval-ignore-output"]
a = torch.randn(1024, 1024)
times = []
for _ in range(8):
    began = process_time()
    a @ a
    times.append(process_time() - began)
peak = 2 * 1024**3 / min(times)
speed = 1024 / float(np.median(seconds))                  # tokens a second while training live
useful = 6 * nano["active"] * speed
years = total / useful / (365 * 86400)
print(f"this machine: {speed:,.0f} tokens/s = {useful / 1e9:.1f} of {peak / 1e9:.0f} GFLOP/s "
      f"of its matrix product ({100 * useful / peak:.0f} %)")
print(f"Flash's pre-training at this speed: {years:,.0f} years")

# %%
assert useful < peak and years > 1000
style.say("The model uses a part of what the machine could do; and Flash's pre-training would "
          "take it thousands of years at least.")

# %% [markdown]
# At 3,000 tokens a second, say, it is five million years. MTP, the scores of attention and the hyper-connections are left out of $6N$ and keep the processor busy too; at
# this size many small operations, and not the big products, set the pace.

# %% [markdown]
# ## Play: the next token, and how it is drawn
# A model gives probabilities; drawing from them is your decision. **Temperature** $\tau$ divides the logits: below 1 sharpens, above 1 flattens. **Top-p** keeps the
# likeliest tokens that together reach the probability $p$, and never draws the others (grey).
#
# *One question to answer by playing*: find the setting with the most tokens to draw from. Can top-p alone cut it back to a single token? If not, what else must move?

# %%
question = "And the LORD said unto"
with torch.inference_mode():
    last = shipped(torch.tensor([tokenizer.encode(question, bos=True)]))[0, -1]           # V

def draw(temperature, top_p):
    return pretraining.plot_next_tokens(last, tokenizer, temperature, top_p, question)

box = style.slider_image(
    draw, "Bars for the fifteen likeliest next tokens; grey ones are cut off by top-p",
    temperature=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0], top_p=[0.1, 0.5, 0.9, 0.99, 1.0],
    start={"temperature": 1.0, "top_p": 0.9})
box

# %%
style.show(pretraining.plot_temperatures(last, tokenizer, (0.5, 1.0, 2.0), 0.9, question),
           "The same prediction at three temperatures: few tall bars, more and lower bars, "
           "many low bars")

# %%
box.peek(temperature=4.0, top_p=0.1)
flat, sharp = (torch.softmax(last / t, -1).max() for t in (4.0, 0.25))
# top-p keeps a single token only if that one has the probability p by itself
assert flat < 0.1 < sharp
style.say("Temperature 4, top-p 1: all 2048 tokens. There the first token has less than 10 %, "
          "so top-p 0.1 leaves several:")
style.say("the temperature must fall as well. It never changes the order of the tokens, only "
          "how far they are apart.")

# %% [markdown]
# Greedy drawing (temperature 0) always takes the first bar. Small models then fall into loops. Too hot, and the long tail of unlikely tokens gets a large share together, although
# each is rare; top-p is there to cut it.

# %% [markdown]
# ## What each part brings
# A peer differs in everything at once. An **ablation** is the same run with one part taken away, or with a plainer one in its place. Here are eight such runs beside V4's own, each with three seeds. A seed sets the first
# weights and the order of the text: with one seed all variants read the same half a million tokens in the same order. Together they took an hour, so they were run before, by `python -m minids.recipes.ablations`, and their results are in the repository.
#
# They read one kind of text, TinyWorld's *scenes*: short stories that end in questions. Two numbers are measured beside the loss: what the right answer to a question costs, in nats for the whole answer, when its story has 30 words (*near*)
# and 100 words (*far*, some 200 tokens; V4 nano's window holds 32).
#
# **Predict before you run:** which change costs most? And which will not matter here, although it does in the real V4?

# %% jupyter={"outputs_hidden": true}
records = [json.loads(line)
           for line in (paths.DATA / "ablations" / "results.jsonl").read_bytes().splitlines()]
runs = {name: [r for r in records if r["variant"] == name]
        for name in dict.fromkeys(r["variant"] for r in records)}

def spread(name, key):
    """Mean, smallest and largest value over the seeds."""
    values = [r[key] for r in runs[name]]
    return sum(values) / len(values), min(values), max(values)

def verdict(name, key, base="V4 nano"):
    """A measure is better or worse only where the two ranges of seeds do not touch."""
    (_, low, high), (_, base_low, base_high) = spread(name, key), spread(base, key)
    return "worse" if low > base_high else "better" if high < base_low else "same"

print(f"{len(records)} runs, {len(records) // len(runs)} seeds each; (same): within the spread "
      "of the seeds\n")
print(f"{'':32} {'parameters':>10}   {'loss':28} {'near':>5} {'':9} {'far':>5}")
for name in runs:
    mean, low, high = spread(name, "loss")
    told = {key: "" if name == "V4 nano" else f"({verdict(name, key)})"
            for key in ("loss", "near", "far")}
    print(f"{name:32} {runs[name][0]['parameters']:10,}   {mean:.3f} ({low:.3f} "
          f"to {high:.3f}) {told['loss']:8} {spread(name, 'near')[0]:5.2f} {told['near']:9} "
          f"{spread(name, 'far')[0]:5.2f} {told['far']}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(pretraining.plot_ablations(records, "V4 nano"),
           "Nine rows of dots, one dot for each seed: the loss on held-out scenes, and the "
           "nats of answers about near and far; a grey band is the range of V4 nano")

# %% jupyter={"outputs_hidden": true}
free = "unconstrained hyper-connections"
assert verdict(free, "loss") == "better" and min(r["far"] for r in records) > 9
print("Beyond the spread:", ", ".join(f"{name} ({verdict(name, 'loss')})"
                                      for name in runs if verdict(name, "loss") != "same"))
style.say(f"A far answer costs at least {min(r['far'] for r in records):.1f} nats in every "
          f"run; the busiest expert has {spread('no balancing', 'load')[0]:.1f} times the mean "
          f"without balancing, {spread('V4 nano', 'load')[0]:.1f} with it")

# %% [markdown]
# **What to read from it.** First the grey bands: V4 nano's own seeds lie a tenth of a nat apart. That is much, and it has a reason. Learning to look something up is a *jump*: a run sits on a plateau of some 0.87 nats (so their logs said, which are not kept), then within a few dozen steps it finds out that a name told before helps, and falls. The seed
# decides when. What these runs compare is mostly **how early the jump comes**, and with three seeds that is known badly. So most differences are within the spread, and *this table does not show that those parts help or harm*. It says:
#
# - **Free hyper-connections learn fastest**, in every seed, below all of V4 nano's. So here the constraint of mHC seems to cost speed (the free matrices also start at the identity, not near it). It was never meant to buy any: it keeps sixty layers stable (lesson 07), and four layers have nothing to keep.
# - **With AdamW no seed left the plateau.** One of V4 nano's three did not leave it either, so the ranges touch, by two thousandths. A hint in favour of Muon, no more: AdamW has rates of its own here, which were not searched. (Lesson 09 races the two on their first steps.)
# - **Dense** has two thirds of the parameters and is ahead in two seeds, on the plateau in the third. Eight experts share half a million tokens, so each sees a quarter of them; experts pay where there is more to know than a small network can hold.
# - **Full attention** over all 256 tokens is ahead in every seed, too: perhaps it finds the way to a name sooner than compressed entries do, in which four tokens share 32 numbers. Compression is made for texts where full attention cannot be paid.
# - **Window only** comes out like V4 nano. In a scene most of what is asked stands near, and through four layers a window of 32 tokens reaches 125.
# - **Nobody answers far questions yet**: nearly ten nats and more an answer in every run, whatever the attention. So the part of V4 that is made for them cannot show what it is for at this length. The shipped models read seven and a half and eleven times as much, and mini answers 23 % of questions after 250 words.
# - **Without balancing** the busiest expert has nearly twice the mean load, with it some one and a half times. The loss does not mind, at eight experts on one machine.
#
# The lesson about ablations: with one seed each we would have found a winner in every row. And the report's claims, measured on models a hundred thousand times as large, cannot be checked here.

# %% [markdown]
# ## In the real V4
#
# | | our live run | V4-Flash | V4-Pro |
# | --- | ---: | ---: | ---: |
# | parameters (active) | 1.8 M (0.94 M) | 284 B (13 B) | 1.6 T (49 B) |
# | tokens | 0.05 M | 32 T | 33 T |
# | tokens in a step, at most | 1,024 | 75.5 M | 94.4 M |
# | length of a window | 256 | 4K, 16K, 64K, then 1M | the same |
# | peak rate | $5 \cdot 10^{-3}$ | $2.7 \cdot 10^{-4}$ | $2.0 \cdot 10^{-4}$ |
# | warm-up | 8 steps | 2,000 steps | as Flash |
# | decay of the rate | cosine from the start | constant, cosine to a tenth near the end | the same |
# | optimiser | AdamW | Muon for most matrices, AdamW for embedding, head, norms | the same |
# | MTP weight | 0.3 | 0.3, and 0.1 when the decay starts | the same |
#
# Source: report, sections 4.2.1 and 4.2.2; parameters without the MTP block.
#
# Three more things happen there that our run does not need: the batch grows from small to its full size; attention is dense for the first 1T tokens (Flash), and sparse from windows
# of 64K on, after a short stage that warms the indexer up; and two remedies against loss spikes, anticipatory routing and clamped SwiGLU (section 4.2.3). The clamp is in
# our model too.
#
# **What our scale can show**: that the whole machine learns; that every part of the step is right, to the number; how a run is judged. **What it cannot show**: which of V4's parts help at
# 284 B parameters, and what stability costs there.

# %% [markdown]
# ## Key points
# - A window of $T + 1$ tokens is $T$ questions. Targets are the inputs, one place to the left.
# - Before the first step the loss is $\log V$, plus half the variance of the logits. Measure it first.
# - Counting models are the yardstick. A curve that passes them too early is a leak until proven otherwise.
# - Losses per token compare only with the same tokenizer; bits per byte compare always.
# - Compare architectures on the same text, for the same seconds, in bits per byte; and say at which duration.
# - A step is rate, two losses, backward, clip, AdamW, balance. Adam's first steps are as bold as its later ones; hence the warm-up.
# - A run that depends on (seed, step) and saved state alone resumes bit for bit.
# - Training costs 16 bytes a parameter and $6N$ operations a token with this recipe.
#
# ## Questions to discuss
# **1. Model A (2,048 tokens in its vocabulary) has 3.4 nats per token, model B (129,280 tokens) has 4.5. Which is better?**
# <details><summary>Answer</summary>
#
# It cannot be said. B's tokens are longer, so it answers fewer and harder questions. "A, it has the lower loss" compares different questions; "B, larger vocabularies are
# better" confuses the tokenizer with the model. Convert both to bits per byte on the same text.
# </details>
#
# **2. The training loss and the validation loss agree closely in the live run. Does this show that the model will not overfit?**
# <details><summary>Answer</summary>
#
# No. Each token was read at most once, so memorising could not yet pay. Train the same model for many epochs and the two part. "Small models cannot overfit" is wrong as well: at about two bits of knowledge a number
# ([Allen-Zhu and Li, 2024](https://arxiv.org/abs/2404.05405)) two million numbers hold half a million bytes, a good share of what is new in our 3.4 million bytes of text. For V4, with 32T tokens, the question is rather which documents are near copies of each other.
# </details>
#
# **3. A run's loss jumps from 3.5 to 7 at step 9,000 and comes back after 200 steps. Name causes, and what you would look at.**
# <details><summary>Answer</summary>
#
# A strange batch (look at the text of that step: the batch follows from the seed and the step), too high a rate for this phase (look at the norms before the jump), or
# a few experts with outliers (look at the load and at activations). The report ties its spikes to outliers in the expert layers and to routing. "Just go on" works until it does not come back; a
# rollback alone did not keep spikes from recurring (section 4.2.3).
# </details>
#
# **4. Why not let AdamW decay all parameters?**
# <details><summary>Answer</summary>
#
# Decay pulls towards zero. For a matrix zero is neutral: less of everything. For a norm's weight zero means a dead channel, for an attention sink and a bias zero is an arbitrary
# place. It would not break the run at once, which is what makes the question worth asking. (That is our choice. The report gives AdamW one decay, 0.1, and names no exception.)
# </details>
#
# ## Links
# - Loshchilov and Hutter, *Decoupled weight decay regularization*: [arXiv 1711.05101](https://arxiv.org/abs/1711.05101), AdamW
# - Chen and Goodman, *An empirical study of smoothing techniques for language modeling*: [cmp-lg/9606011](https://arxiv.org/abs/cmp-lg/9606011)
# - Kaplan and others, *Scaling laws for neural language models*: [arXiv 2001.08361](https://arxiv.org/abs/2001.08361), where $6N$ comes from
# - Gloeckle and others, *Better and faster large language models via multi-token prediction*: [arXiv 2404.19737](https://arxiv.org/abs/2404.19737)
# - Karpathy, [nanoGPT](https://github.com/karpathy/nanoGPT): the peer's recipe
# - Karpathy, [A recipe for training neural networks](https://karpathy.github.io/2019/04/25/recipe/): verify the loss at init, overfit one batch, and more
