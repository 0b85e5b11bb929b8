# %% [markdown]
# # 14 Inference: from probabilities to answers
#
# **A model gives probabilities. How a token is drawn, how fast, after how much thought, and what a score means, is decided behind it; and a small
# helper may write half of the tokens.**
#
# **After this you can**
# - draw tokens with temperature and top-p, and say what each does to the distribution,
# - say why rows of a batch stand at one position here, and why a batch is nearly free until it is not,
# - measure whether thinking pays, with a control that tells content from form,
# - write speculative decoding, prove in four lines that it leaves the distribution as it was, and catch a judge that does not,
# - predict from an acceptance rate and two costs whether drafts make a model faster, here and in V4,
# - estimate pass@k without bias and put an interval beside it,
# - read a report card, and a table of scores against the price of an answer.
#
# *Time: 166 minutes, exercises included. The code itself runs in about a minute.*
# *Before this: lesson 10; lessons 12 and 13 for the ends of sections 6 and 7. Lessons 05 (decode state) and 08 (MTP block) help.*

# %%
import time
from unittest import mock

import minids
import numpy as np
import torch
from IPython.display import display
from minids import Config
from minids.data import tasks
from minids.data.chat import MODES, encode_chat, parse_reply
from minids.data.tokenizer import Tokenizer
from minids.inference import evaluate, sampling
from minids.inference.answers import LIMITS, solve
from minids.inference.generate import generate, stream
from minids.inference.sampling import distribution, enough_threads
from minids.inference.speculate import Drafter, expected_acceptance, speculate
from minids.learn import check, hint, versions
from minids.show import inference, life, start, style
from minids.system.paths import data
from minids.weights import layout

style.use()
versions()

# %% [markdown]
# ## A helper that may be wrong
#
# V4 has an extra block that predicts one token further (MTP, lesson 08). Let it *guess* the next token; the model then reads the guess together with
# the token before it, in one pass, and checks it. Guesses that fall are replaced.
#
# Below the shipped nano model writes greedily: always the likeliest token. Then it writes again, with guesses.
#
# **Predict before you run:** the helper is one block against the model's four, and is sometimes wrong. How many of the tokens will differ? How many passes of the model does
# the second text take?

# %%
tokenizer, model = Tokenizer.load(), minids.load(data("checkpoints", "nano"))
scene = "Late in the evening Jonas was in the mill. Nora was in the cellar."
ids = tokenizer.encode(scene, bos=True)
plain = generate(model, ids, 40, temperature=0)
fast, marks = inference.speculate_marked(model, ids, 40, temperature=0)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print(f"without guesses: {len(plain)} tokens in {len(plain)} passes")
print(f"with guesses:    {len(fast.ids)} tokens in {fast.passes} passes; guesses that stood "
      "are in brackets:\n")
print(scene + inference.mark_guesses(tokenizer, [i for i in fast.ids if i != tokenizer.eos_id],
                                     marks))

# %% jupyter={"outputs_hidden": true}
assert fast.ids == plain and fast.passes < 0.9 * len(plain)
print("The same tokens, all of them, in fewer passes of the model.")

# %% [markdown]
# No token differs, and a good part of the passes is saved. With greedy decoding this is no wonder: a guess stands only if it is the token that the model would
# have taken. The wonder is that the same holds when tokens are **drawn**: section 4 proves that every text keeps exactly its probability, however bad the
# helper is.
#
# First: what does it mean to draw?
#
# ## 1. One distribution, many ways to draw
#
# A model gives a logit $z_v$ for each token $v$ of its vocabulary of V tokens. **Temperature** $\tau$ divides the logits before the softmax:
#
# $$p_\tau(v) = \frac{e^{z_v/\tau}}{\sum_u e^{z_u/\tau}} = \frac{p(v)^{1/\tau}}{\sum_u p(u)^{1/\tau}}$$
#
# where $p = p_1$ are the probabilities at temperature 1; `temperature=0` in the code means the limit, always the likeliest token. The second form says what happens: each probability is raised to the power $1/\tau$, then all are scaled to sum to 1. **Top-p** ranks the tokens, keeps the likeliest ones until their
# sum *reaches* the bound, called top-p, and scales what is kept.
#
# By hand, with four tokens of probability 0.5, 0.3, 0.15, 0.05:
# - Temperature 0.5 squares them: 0.25, 0.09, 0.0225, 0.0025, in all 0.365. Divided: **0.685, 0.247, 0.062, 0.007**.
# - Top-p 0.7: the first has 0.5, too little; with the second it is 0.8, enough. Two are kept and divided by 0.8: **0.625, 0.375**.
#
# **Predict before you run:** and temperature 2? Which of the two, temperature or top-p, will in general bring the *second* token nearer to the first?

# %% jupyter={"outputs_hidden": true}
hand = torch.tensor([0.5, 0.3, 0.15, 0.05])
rows = {"as it is": hand, "temperature 0.5": distribution(hand.log(), 0.5, 1.0),
        "temperature 2": distribution(hand.log(), 2.0, 1.0),
        "top-p 0.7": distribution(hand.log(), 1.0, 0.7)}
for name, p in rows.items():
    print(f"{name:16}", " ".join(f"{v:.3f}" for v in p.tolist()),
          f"  first : second = {p[0] / p[1]:.2f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(
    inference.plot_distributions(rows, ["a", "b", "c", "d"]),
    "Four tokens: temperature 0.5 makes the first bar taller and the others lower, temperature "
    "2 evens them out, top-p 0.7 removes the last two and scales the first two alike")

# %% [markdown]
# Temperature above 1 does, below 1 the opposite. Top-p never: it scales all that it keeps by one factor, leaves the odds among the kept tokens as they were, and cuts off what is unlikely.
#
# ### Exercise 1: top-p
# *Easy, 8 minutes.* Complete the function. The token that brings the sum to the bound is kept.

# %%
def top_p_filter(p, top_p):
    """p: ... V, probabilities in any order; 0 < top_p <= 1.

    -> ... V in the same order: 0 for what is cut, the rest sums to 1.
    """
    ### BEGIN SOLUTION
    ranked, order = p.sort(dim=-1, descending=True, stable=True)  # ... V
    kept = ranked.cumsum(-1) - ranked < top_p  # what stands before it does not reach top_p yet
    # back to the order of the vocabulary
    q = torch.zeros_like(p).scatter(-1, order, ranked * kept)
    return q / q.sum(-1, keepdim=True)
    ### END SOLUTION


# %%
top_p_filter = check("inference.top_p", top_p_filter)
with torch.inference_mode():
    logits = model(torch.tensor([ids]))[0]                              # T V
torch.testing.assert_close(top_p_filter(torch.softmax(logits / 0.7, -1), 0.9),
                           distribution(logits, 0.7, 0.9))
print("equal to minids, at every position of the scene")

# %% [markdown]
# Stuck? `hint("inference.top_p")` in a new cell gives one of three hints; so for the other exercises.
#
# ### Play: what is left to draw from
#
# The picture shows the whole vocabulary, from the likeliest token to the last, on logarithmic axes; grey is cut. Left a beginning after which the model is nearly sure, right one
# after which it is not.
#
# **One question to answer by playing:** raise the temperature to 2. What happens on the left, where the model was sure? Leave it there: how low must top-p go to bring back a single token, and
# how many are left on the right then? Could a fixed number of tokens ("always the best 20", top-k) do the same?

# %%
beginnings = {"Jonas is in the": "Late in the evening Jonas was in the mill.\n\nQuestion: "
              "Where is Jonas?\nAnswer: Jonas is in the",
              "In those days": "In those days"}
with torch.inference_mode():
    contexts = {name: model(torch.tensor([tokenizer.encode(text, bos=True)]))[0, -1]      # V
                for name, text in beginnings.items()}


def draw(temperature, top_p):
    return inference.plot_top_p(contexts, temperature, top_p)


box = style.slider_image(
    draw, "Probability against rank for two beginnings; grey is what top-p cuts",
    temperature=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0], top_p=[0.3, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0],
    start={"temperature": 1.0, "top_p": 0.9})
box

# %%
box.peek(temperature=2.0, top_p=0.99)
sure, unsure = ([int((distribution(z, t, 0.9) > 0).sum()) for t in (0.5, 1.0, 2.0)]
                for z in contexts.values())
assert sure[1] < 5 and unsure[1] > 20 and sure == sorted(sure) and unsure == sorted(unsure)
style.say("At temperature 1, top-p 0.9 leaves fewer than 5 tokens where the model is sure, "
          "more than 20 where it is not.")
print("The hotter, the more are left.")

# %% tags=["nbval-ignore-output"]
for top_p in (0.3, 0.5, 0.8, 0.9):
    kept = {name: int((distribution(z, 2.0, top_p) > 0).sum()) for name, z in contexts.items()}
    print(f"temperature 2, top-p {top_p}: tokens left", kept)

# %%
style.show(inference.plot_temperatures(contexts),
           "Probability against rank at three temperatures: a high temperature lays the curve "
           "flatter, and the dot where top-p 0.9 cuts moves to the right")

# %% [markdown]
# On these axes temperature turns the curve, and top-p cuts it where enough is collected. The number of tokens left follows the model's certainty. Top-k cannot do that: the same k is too
# many on the left and too few on the right. But heat reaches the left too: even a token of which the model is sure loses a good part to the long tail, and then only a low top-p saves it, which still leaves many on the right.
#
# ### Sabotage: the cut on the wrong side
#
# Two slips, both easily made. *Wrong half*: what should be cut is kept, and the rest thrown away. *Wrong order*: the tokens are sorted from the unlikely end, and kept until they
# reach 0.9. Nothing crashes: the sampler scales whatever it is given to sum to 1. How bad are they? The model may judge: **surprise** is
# $-\log_2 p(\text{token})$, the model's own probability, in bits. The yardstick beside it is what the model *expects* at the same places, its entropy $-\sum p \log_2 p$.
#
# **Predict before you run:** we try five ways: as it is, top-p 0.9, temperature 0.5, wrong half, wrong order. In which does surprise equal the expectation? In which is it less, in which more?

# %%


def sabotaged(wrong_half):
    """Top-p with one of the two slips."""
    def wrong(logits, temperature, top_p):
        # B V
        ranked, order = torch.softmax(logits / temperature, -1).sort(-1, descending=wrong_half)
        kept = ranked.cumsum(-1) - ranked < top_p
        # multinomial takes weights
        return torch.zeros_like(ranked).scatter(-1, order, ranked * (kept ^ wrong_half))
    return wrong


def judged(new, start):
    """Surprise at the new tokens and what was expected, bits per token. new: rows of ids,
    start: the prompt they follow."""
    full = torch.tensor([start + row for row in new])                           # B T
    with torch.inference_mode():
        logp = model(full)[:, len(start) - 1 : -1].log_softmax(-1)              # B T' V
    came = logp.gather(2, full[:, len(start):, None])                           # B T' 1
    return (-came.mean().item() / np.log(2),
            -(logp.exp() * logp).sum(-1).mean().item() / np.log(2))


# %%
begin, ways = tokenizer.encode("In those days", bos=True), {}
settings = {"as it is": (1.0, 1.0), "top-p 0.9": (1.0, 0.9), "temperature 0.5": (0.5, 1.0),
            "wrong half": (1.0, 0.9),
            "wrong order": (1.0, 0.9)}
for name, options in settings.items():
    way = sabotaged(name == "wrong half") if "wrong" in name else distribution
    with mock.patch.object(sampling, "distribution", way):
        ways[name] = generate(model, [begin] * 16, 32, *options, seed=1, stop=())
verdicts = {name: judged(new, begin) for name, new in ways.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for name, (surprise, expected) in verdicts.items():
    print(f"{name:16} surprise {surprise:5.2f} bits, expected {expected:5.2f}   "
          f"...{tokenizer.decode(ways[name][0][:14])!r}")

# %% jupyter={"outputs_hidden": true}
gap = {name: surprise - expected for name, (surprise, expected) in verdicts.items()}
assert (abs(gap["as it is"]) < 0.6 and gap["top-p 0.9"] < -0.1 and gap["temperature 0.5"] < -0.3
        and gap["wrong half"] > 2)
assert gap["wrong order"] > gap["top-p 0.9"]
style.say("As it is: surprise is what was expected, the control. Top-p and a low temperature: "
          "less than expected.")
style.say("Wrong half: several bits a token above it, on the mean. Wrong order: more than with "
          "top-p, and nothing to see at a glance.")

# %% [markdown]
# Plain sampling is the control: its surprise must equal the entropy, up to chance. Both tools make the text *more* predictable than the model's own idea of text. The wrong half gives
# noise, although each single token that it draws is one that the model holds possible: that fault is found in a minute.
#
# The wrong order is the dangerous one. By hand, 0.5, 0.3, 0.15, 0.05: counted from the unlikely end, the sums before each token are 0, 0.05, 0.2 and 0.5, all below 0.9, so all four are kept. Top-p is off, silently, wherever a token has more than 0.1; where none has, something *is* cut: the best tokens. The text reads like plain sampling, and its surprise even equals the expectation. That is the symptom: with top-p 0.9 it should lie well below it. ("Equals" means up to a few tenths of a bit: these are 512 tokens.)
#
# ## 2. Many at once: the batch
#
# A server writes many answers together. All rows of a batch go through the model in one pass, so its weights are read once for all of them. But prompts have different
# lengths. The usual trick is to pad short ones on the left. In V4 this goes wrong:

# %% jupyter={"source_hidden": true}
style.show(inference.plot_padding(),
           "Eight tokens in compression windows of four, alone and with one padding token in "
           "front: the windows are cut at other places, so that other tokens share an entry, "
           "and the last one is no longer complete")

# %% [markdown]
# Compression windows are cut from position 0 (lessons 03 and 04). One padding token in front, and *every* entry pools other tokens: not a masked-out
# disturbance, another computation. So `minids` never pads in front: all rows stand at one position, and a row whose prompt is longer goes on reading it while
# the others write. Report section 3.6.1 says what the decode state must keep for that; lesson 05 built it.
#
# **Predict before you run:** three prompts of 3, 9 and 6 tokens, five new tokens each. How many steps until all are done, and who idles?

# %% jupyter={"outputs_hidden": true}
prompts = [ids[:3], ids[:9], ids[:6]]
wrote, left = [], [5, 5, 5]
# a token of each row, None while it reads or has ended
for new in stream(model, prompts, 5, temperature=0, stop=()):
    wrote.append([None if left[i] == 0 else token is not None for i, token in enumerate(new)])
    left = [n - (token is not None) for n, token in zip(left, new)]
style.show(inference.plot_batch_steps(wrote),
           "Three rows over eleven steps: the row with the shortest prompt writes at once and "
           "then idles, the longest prompt is read for six steps, and its row ends last")

# %% jupyter={"outputs_hidden": true}
together = generate(model, prompts, 5, temperature=0, stop=())
alone = [generate(model, prompt, 5, temperature=0, stop=()) for prompt in prompts]
assert together == alone
print(len(wrote), "steps; each row wrote what it writes alone.")

# %% [markdown]
# Eleven: the first three tokens of all prompts are read in one pass, which already gives row 0 its first token; the longest prompt then needs 6 more steps to be read, and 5 tokens take
# one step each, the first of which comes with its last prompt token. Row 0 idles for 6 steps, row 2 for 3. Prompts of like length make good batches.
#
# **Predict before you run:** if one row writes N tokens a second, what do 32 rows write together? (a) N, (b) 32 N, (c) in between. And how much longer does each row wait?

# %%
def seconds_a_step(rows, steps=10):
    """Processor seconds for a step of so many rows, after a prompt of 16 tokens."""
    with torch.inference_mode():
        state = model.new_state(rows, 64)
        model(torch.tensor([ids[:16]] * rows), state)
        model(torch.tensor([[5]] * rows), state)      # warm
        began = time.process_time()
        for _ in range(steps):
            model(torch.tensor([[5]] * rows), state)  # rows 1 V
    return (time.process_time() - began) / steps


batches, threads = [1, 2, 4, 8, 16, 32, 64], torch.get_num_threads()
torch.set_num_threads(1)                              # processor seconds of one core
spent = {rows: min(seconds_a_step(rows) for _ in range(3)) for rows in batches}
torch.set_num_threads(threads)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print(f"1 row: {1 / spent[1]:,.0f} tokens a second; 32 rows: {32 / spent[32]:,.0f}, "
      f"and a step takes {spent[32] / spent[1]:.1f} times as long")
style.show(inference.plot_throughput(batches, [rows / spent[rows] for rows in batches],
                                     [1000 * spent[rows] for rows in batches]),
           "Left: tokens a second rise with the batch, less than in proportion. Right: the "
           "time of a step rises too, far less than the batch")

# %% jupyter={"outputs_hidden": true}
assert 2 / spent[1] < 32 / spent[32] < 32 / spent[1]
print("In between: 32 rows write more than twice as much as one, and less than 32 times.")

# %% [markdown]
# At our size a small step is mostly Python and the start of small operations; 32 rows share that. Then arithmetic takes over and a step gets longer: whoever sells tokens by the
# million wants large batches, whoever waits for one wants small ones.
#
# In the real model the fixed cost is something else: **reading the weights** from memory. A mixture of experts adds a twist. In Flash a token uses K = 6 of E = 256 routed experts in each layer (Pro: of 384), another
# token others. If $B$ tokens chose independently, they would touch this share of all experts:
#
# $$1 - \left(1 - \tfrac{K}{E}\right)^{B}$$
#
# **Predict before you run:** what share do 64 tokens touch? And by which factor do the gigabytes read *per token* fall from one token to 256?

# %%
def stored(config):
    """Bytes: the model, its routed experts; the MTP block with the output matrix that it
    shares, its routed experts."""
    found = np.zeros(4)
    for name, tensor in layout.inventory(config).items():
        # of these tables one row is read
        if name != "embed.weight" and not name.endswith("tid2eid"):
            at, size = 2 * name.startswith("mtp."), layout.nbytes(tensor)
            found[at] += size
            found[at + 1] += size * (".experts." in name)
            found[2] += size * (name == "head.weight")
    return found


real = {"V4-Flash": Config.flash(), "V4-Pro": Config.pro()}
disk = {name: stored(config) for name, config in real.items()}


def weights_read(name, tokens):
    """Bytes of weights that a pass over `tokens` tokens reads: of the model, of the MTP
    block."""
    idle = (1 - real[name].n_activated_experts / real[name].n_routed_experts) ** tokens
    whole, experts, mtp, mtp_experts = disk[name]
    return whole - idle * experts, mtp - idle * mtp_experts


# %% jupyter={"outputs_hidden": true}
sizes = [1, 4, 16, 64, 256]
lines = {name: (sizes, [weights_read(name, n)[0] / n / 1e9 for n in sizes]) for name in real}
for name, (_, gigabytes) in lines.items():
    print(f"{name:9} GB per token:",
          ", ".join(f"{n} tokens {g:.2f}" for n, g in zip(sizes, gigabytes)))
print(f"64 tokens touch {1 - (1 - 6 / 256) ** 64:.0%} of Flash's routed experts")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(inference.plot_weights_read(lines),
           "Gigabytes of weights read per token against the tokens in one pass: they fall "
           "for both models, slowest in the middle, where more tokens touch more experts, and "
           "fastest once all experts are read anyway")

# %% [markdown]
# A single token of Flash reads 11 GB; in a pass over 256 tokens each accounts for 0.6: 19 times less (Pro: 12), not 256 times. (Computed from the released layout; independent choice is our assumption, the experts that
# real tokens choose are correlated.) The cache of each row comes on top, and the arithmetic.
#
# ## 3. Drafts: the idea
#
# If a pass over two tokens costs hardly more than one over a single token, then let a **helper** guess the next token, and have the model verify it on the way. That is
# **speculative decoding** ([Leviathan et al.](https://arxiv.org/abs/2211.17192), [Chen et al.](https://arxiv.org/abs/2302.01318)). V4's helper is its MTP block, which it
# keeps from V3 without modification (report, section 2.1).

# %% jupyter={"source_hidden": true}
style.show(inference.plot_draft_pass(),
           "The small block guesses two tokens; the model reads the known token and both "
           "guesses in one pass and gives three distributions; the first guess stands, the "
           "second falls and is replaced")

# %% [markdown]
# When tokens are drawn, "the guess is right" has no meaning: nothing is *the* right token. What must be right is the **distribution** of what comes out. So:
#
# 1. The helper draws a guess $g$ from its own distribution $q$.
# 2. The model's distribution at that place is $p$. The guess **stands** with probability $\min\left(1, \frac{p(g)}{q(g)}\right)$.
# 3. If it falls, a token is drawn from the **residual**: $\max(0, p - q)$, scaled to sum to 1. The guesses behind it are lost.
# 4. If all stand, one more token is drawn from $p$ behind the last.
#
# By hand, with three tokens:
#
# | | sea | mill | king | sum |
# | --- | --- | --- | --- | --- |
# | model p | 0.5 | 0.3 | 0.2 | 1 |
# | helper q | 0.2 | 0.6 | 0.2 | 1 |
# | stands with | 1 | 0.5 | 1 | |
# | guessed and stands, min(p, q) | 0.2 | 0.3 | 0.2 | **0.7** |
# | max(0, p - q) | 0.3 | 0 | 0 | **0.3** |
#
# A guess falls with probability 0.3, and then "sea" comes: 0.2 + 0.3 = 0.5, as p says. "mill" is guessed twice too often, and half of its guesses fall.

# %% jupyter={"source_hidden": true}
p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
style.show(
    inference.plot_overlap(p, q, ["sea", "mill", "king"]),
    "Bars of p and q over three tokens: what both share is delivered by guesses that stand; "
    "what p has above q is drawn instead, and is as large as what q has above p, which falls")

# %% [markdown]
# ### Exercise 2: does the guess stand?
# *Easy, 5 minutes.* Complete the function.

# %%
def accept(p, q, guess):
    """p, q: V, the model's and the helper's distributions; guess: a token drawn from q.

    -> the probability that the guess stands.
    """
    ### BEGIN SOLUTION
    return min(1.0, float(p[guess] / q[guess]))
    ### END SOLUTION


# %%
accept = check("inference.accept", accept)

# %% [markdown]
# ### Exercise 3: what comes instead?
# *Medium, 8 minutes.* Complete the function. (It is asked only where a guess can fall, so p and q differ.)

# %%
def residual(p, q):
    """p, q: V -> V: the distribution of the token that replaces a guess that fell."""
    ### BEGIN SOLUTION
    left = (p - q).clamp_min(0)                     # what the guesses that stand do not deliver
    return left / left.sum()
    ### END SOLUTION


# %%
residual = check("inference.residual", residual)

# %% [markdown]
# ## 4. Drafts: the proof
#
# **Claim:** the token that comes out has distribution $p$, whatever $q$ is. For any token $t$:
#
# 1. It is guessed and stands with probability $q(t)\,\min\left(1, \frac{p(t)}{q(t)}\right) = \min(p(t), q(t))$.
# 2. So some guess falls with probability $\beta = 1 - \sum_v \min(p(v), q(v))$.
# 3. The residual's scale is the same number: $\sum_v \max(0, p - q) = \sum_v \left(p - \min(p, q)\right) = 1 - \sum_v \min(p, q) = \beta$.
# 4. Together: $\min(p, q)(t) + \beta \cdot \frac{\max(0, p - q)(t)}{\beta} = p(t)$. $\qquad\blacksquare$
#
# A whole text is a product of such steps, each with the text so far in its condition. So all texts keep their probabilities. Temperature and top-p change $p$ and $q$ before the judge sees
# them; the proof does not care. The **acceptance rate** is $\sum_v \min(p, q) = 1 - \beta$, one minus the *total variation* between helper and model: half the sum of $|p - q|$, 0 where they agree, 1 where they share nothing.
#
# Do not take a proof on trust when you can enumerate. With three tokens there are three guesses, and each stands or falls:

# %%
def emitted(p, q, accept=accept, residual=residual):
    """The distribution of the token that comes out, over every guess and every coin. p, q: V
    -> V."""
    out = torch.zeros_like(p)
    for guess in range(len(p)):
        stands = accept(p, q, guess)
        out[guess] += q[guess] * stands
        out += q[guess] * (1 - stands) * residual(p, q)
    return out


# %%
p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
torch.testing.assert_close(emitted(p, q), p)
wide = (2 * torch.randn(2, 200, generator=torch.Generator().manual_seed(0))).softmax(-1)
torch.testing.assert_close(emitted(*wide), wide[0])
print("what comes out:", [round(v, 4) for v in emitted(p, q).tolist()], " p:",
      [round(v, 4) for v in p.tolist()])
print(f"200 random tokens: equal as well, though only {torch.minimum(*wide).sum():.0%} of the "
      "guesses stand")

# %% [markdown]
# ### Sabotage: two judges that look right
#
# - **All stand.** Why check at all? The helper is good.
# - **Resample from p.** A guess fell, so draw from the model's own distribution. What could be more correct?
#
# **Predict before you run:** which tokens come too often in the second case, those that the helper likes or those that the model likes? Compute it for the table above first.

# %% jupyter={"outputs_hidden": true}
judges = {"right": (accept, residual), "all stand": (lambda p, q, guess: 1.0, residual),
          "resample from p": (accept, lambda p, q: p)}
print("                     sea   mill   king   total variation from p")
for name, (rule, instead) in judges.items():
    out = emitted(p, q, rule, instead)
    print(f"{name:18}", " ".join(f"{v:6.3f}" for v in out.tolist()),
          f"{(out - p).abs().sum() / 2:12.3f}")

# %% [markdown]
# *All stand* writes the helper's text: its distance is the whole $\beta$. *Resample from p* is wrong by half as much here, and what comes too often is all that the helper proposes often enough (q >= p): "mill", and also "king". They have already come
# through guesses as often as they should, and now they get a second chance. "sea", the only token still missing, gets too little. That is why what was given out must be taken off first.
#
# And whole texts, with a whole model? Here is a V4 with a vocabulary of three tokens, untrained, with an MTP block, compression windows and all. We let `minids.inference.speculate` write three tokens, and
# **follow every way that its draws and coins can fall**. There are 27 texts. (For two drafts we need a fourth token, 81 texts: the first comes from the pass over the prompt, the last of a pass needs no guess.)

# %%
tiny, prompt = inference.tiny_model(), [0, 2, 1, 1, 0]
exact = inference.text_chances(tiny, prompt, 3)  # {text: probability}, from full passes
texts = {"right, 1 draft": inference.text_chances_with_drafts(tiny, prompt, 3, 1)}
wrong = {"all stand": inference.accept_all, "resample from p": inference.resample_from_p}
wrong = {name: inference.text_chances_with_drafts(tiny, prompt, 3, 1, fault)
         for name, fault in wrong.items()}
for name, other in (texts | wrong).items():
    apart = inference.total_variation(exact, other)
    print(f"{name:16} probabilities sum to {sum(other.values()):.3f}, total variation "
          f"{apart:.3f}")
longer = inference.text_chances(tiny, prompt, 4)
two = inference.text_chances_with_drafts(tiny, prompt, 4, 2)
print(f"right, 2 drafts, four tokens: {len(two)} texts, total variation "
      f"{inference.total_variation(longer, two):.3f}")

# %%
with_drafts = torch.tensor([texts["right, 1 draft"][text] for text in exact])
torch.testing.assert_close(with_drafts, torch.tensor(list(exact.values())), atol=1e-5,
                           rtol=1e-4)
style.show(inference.plot_enumerations(exact,
                                       {"right, 1 draft": texts["right, 1 draft"]} | wrong),
           "The probability of each of 27 texts with drafts against plain sampling: on the "
           "diagonal with the right judge, off it with both sabotaged ones")

# %% [markdown]
# The right judge puts all 27 texts on the diagonal; with two drafts all 81 agree as well. The others give the texts other probabilities. With a trained model each text would still read well, and no reader of a few samples would notice. This is the test
# to write for a speculative decoder.
#
# ## 5. Drafts: what they bring
#
# How often do the guesses of nano's MTP block stand? It depends on the text. We draw at temperature 1, with three drafts a pass: the second and third are made from the block's *own* streams
# and guesses, for which it was not trained.
#
# **Predict before you run:** rank a scene of TinyWorld, the Bible, and a sum worked out. And how does the second draft fare against the first?

# %%
kinds = {"a scene": scene, "the Bible": "And the LORD said unto",
         "a sum": "Question: What is 47 + 85?\nThinking:"}
rates, per_pass, written = {}, {}, {}
for name, text in kinds.items():
    start_ids = tokenizer.encode(text, bos=True)
    runs = [speculate(model, start_ids, 64, seed=seed, stop=(), drafts=3) for seed in range(3)]
    tried, stood = (np.array([getattr(run, what) for run in runs]).sum(0)
                    for what in ("tried", "accepted"))
    rates[name] = (stood / np.maximum(tried, 1)).tolist()
    per_pass[name] = sum(len(run.ids) for run in runs) / sum(run.passes for run in runs)
    written[name] = torch.tensor([start_ids + run.ids for run in runs]), len(start_ids)
overlaps = {name: expected_acceptance(model, full, n) for name, (full, n) in written.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for name in kinds:
    print(
        f"{name:10} drafts that stood:", " ".join(f"{r:4.0%}" for r in rates[name]),
        f"  first draft, computed: {overlaps[name]:.0%}   tokens a pass: {per_pass[name]:.2f}")
style.show(inference.plot_acceptance(rates),
           "Share of judged drafts that stood, for three kinds of text: most of the first "
           "drafts stand, fewer of the second and the third")

# %% jupyter={"outputs_hidden": true}
first, second = (np.mean([r[i] for r in rates.values()]) for i in (0, 1))
assert all(abs(rates[name][0] - overlaps[name]) < 0.25 for name in kinds)
assert first > 0.4 and second < first and min(per_pass.values()) > 1.3
style.say("First drafts: more than 40 % stand, close to the sum of min(p, q), which is "
          "computed without drawing anything.")
style.say("Second drafts do worse. A pass with three drafts gives more than 1.3 tokens on each "
          "kind of text.")

# %% [markdown]
# The scene has the best first drafts, but its second ones fall most often, and in tokens a pass little is left of its lead. Three texts of 64 tokens have luck.
#
# Two ways to nearly the same number: the drawn share counts only the places where a pass began, and has luck; $\sum \min(p, q)$ is the mean over *all* places of the text, and draws nothing. Use the second when you compare helpers.
#
# ### Exercise 4: is it worth it?
# *Medium, 10 minutes.* Measure all costs in plain passes (one token). With k drafts the model's pass reads k + 1 tokens and costs `verify`; each guess costs `draft`. Say that each draft stands with probability `rate`,
# if those before it stood. By hand: rate 0.5 and two drafts give 1 token in any case, one more half of the time, another a quarter of the time: 1.75 tokens a pass. If
# verify = 1.25 and draft = 0.25, a pass costs 1.25 + 2 x 0.25 = 1.75: no gain, no loss.

# %%
def speed_up(rate, drafts, verify, draft):
    """All arguments are numbers; `drafts` is an integer from 1.

    -> how many times as fast as plain decoding it is, in tokens a second.
    """
    ### BEGIN SOLUTION
    tokens = sum(rate ** i for i in range(drafts + 1))
    return tokens / (verify + drafts * draft)
    ### END SOLUTION


# %%
speed_up = check("inference.speed_up", speed_up)
print(f"by hand: {speed_up(0.5, 2, 1.25, 0.25):.2f}")

# %% [markdown]
# Now the costs on this machine. **Predict before you run:** the MTP block is one block of a model of four, and both use the same large output matrix. Is a draft a quarter of a pass?

# %%
def processor_seconds(times, **works):
    """For each of `works` the shortest of several runs, taken in turn."""
    found = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            began = time.process_time()
            work()
            found[name].append(time.process_time() - began)
    return {name: min(seconds) for name, seconds in found.items()}


def read(tokens):
    """A pass over so many tokens behind the scene, whose `state` stands below; then back to
    where it was."""
    model.logits(model.features(torch.tensor([[5] * tokens]), state))
    state.rewind(tokens)


with torch.inference_mode(), enough_threads(model, 1):
    state = model.new_state(1, 200)
    drafter = Drafter(model)
    dice = torch.Generator().manual_seed(0)
    # 1 1 n d: what the block guesses from
    X = model.features(torch.tensor([ids]), state)[:, -1:]
    parts = processor_seconds(
        30, one=lambda: read(1), two=lambda: read(2),
        guess=lambda: drafter.draft(X, [5], 1, lambda z: distribution(z[0], 1.0, 1.0), dice))
whole = processor_seconds(3, plain=lambda: generate(model, ids, 64, seed=0, stop=()),
                          drafts=lambda: generate(model, ids, 64, seed=0, stop=(), drafts=1))

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
verify = parts["two"] / parts["one"]
draft = parts["guess"] / parts["one"]
rate = overlaps["a scene"]
print(f"reading 2 tokens costs {verify:.2f} passes, a draft {draft:.2f}; acceptance {rate:.0%}")
print(f"speed-up: predicted {speed_up(rate, 1, verify, draft):.2f}, measured "
      f"{whole['plain'] / whole['drafts']:.2f}")

# %% jupyter={"outputs_hidden": true}
assert verify + draft > 1 and whole["plain"] / whole["drafts"] < 1.9
style.say("A pass with a draft costs more than a plain one; so drafts give less than the "
          "two-fold of a perfect, free helper.")

# %% [markdown]
# Count and clock disagree: most guesses stand, and yet little time is saved, if any. At this size a pass is bound by the number of small operations, not by reading weights: the draft, with its block, its
# head and its own bookkeeping, costs a good part of a pass of four blocks. (Predicted and measured differ, here by a tenth: our two costs
# leave out drawing and judging, and clocks vary.) **A high acceptance rate is not yet a speed-up.**
#
# (`minids` drafts for one sequence only: rows of a batch would accept different numbers of drafts and part company. A server keeps a position for each row.)
#
# What does the arithmetic say for V4? We count bytes of weights, as in section 2: verifying means a pass over 2B tokens instead of B, and the draft is one block of 44 and the head once
# more. V3's report gives an acceptance of 85 to 90 % for the second token, and 1.8 times the tokens per second ([section 5.4.3](https://arxiv.org/abs/2412.19437)). We know of no such figure
# for V4, and take 85 %.
#
# **Predict before you run:** for which batch are drafts worth least: 1, 16, or 256?

# %% jupyter={"outputs_hidden": true}
table = {}
for name in real:
    for n in sizes:
        once, guess_bytes = weights_read(name, n)
        # verify, draft
        table[name, n] = weights_read(name, 2 * n)[0] / once, guess_bytes / once
    print(f"{name}: batch",
          ", ".join(f"{n}: {speed_up(0.85, 1, *table[name, n]):.2f}" for n in sizes))
print(f"Flash, batch 16: verifying reads {table['V4-Flash', 16][0]:.2f} times the bytes, "
      f"drafting {table['V4-Flash', 16][1]:.2f}")

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
marked = {"nano here, 1 row": (verify, draft, rate)}
marked |= {f"V4-Flash, batch {n}, bytes": (*table["V4-Flash", n], 0.85) for n in (1, 16, 256)}
style.show(inference.plot_speedup(marked),
           "Speed-up with one draft against the acceptance rate: of the three batches V4-Flash "
           "gains most with 256, least with 16; nano on this machine gains little. Dots: the "
           "acceptance measured for nano, 85 percent for Flash")

# %% [markdown]
# The middle is worst (Flash at 4 and 16, Pro at 16). Flash reads 7.8 GB in every pass, whatever comes, and the experts of each token besides:
#
# - **One token** reads 3.4 GB of experts, 11.2 GB in all; a second one adds at most 3.4.
# - **16 tokens** read 46 GB of experts, 54 in all; 16 more bring in mostly *new* ones: 1.6 times the bytes.
# - **256 tokens** read nearly all experts anyway. The second token is free, as far as bytes go, and V3's 1.8 is in reach.
#
# Three things are left out: each row's cache, read in every pass; at large batches arithmetic, not memory, may set the pace, and then verified tokens cost their full price; and neighbouring tokens choose more similar experts than independent ones.
#
# ## 6. Thinking modes
#
# V4 answers in three modes. What differs in the prompt is the opening of the reply (report, section 5.1.1, tables 2 and 3; `minids.data.chat`):
#
# | mode | the assistant's turn begins with | then comes |
# | --- | --- | --- |
# | Non-think | `</think>` | the answer |
# | Think High | `<think>` | thoughts, `</think>`, the answer |
# | Think Max | `<think>`, and an instruction before the system text | the same, longer |
#
# The shipped nano is a *base* model: it knows no chat tokens. But a quarter of its text were problems of this form, and we can open the reply in two ways:
#
#     Question: ...                          Question: ...
#     Answer:                                Thinking:
#     (at once)                              (think first; then "Answer:" is put behind)

# %%
ENDS = tuple(i for i in range(tokenizer.vocab_size) if i == tokenizer.eos_id
             or "\n" in tokenizer.decode([i]))


def write_lines(prompts, limit, temperature=0.0, seed=0):
    """For each prompt a line of text after it, and the number of its tokens."""
    rows = generate(model, [tokenizer.encode(text, bos=True) for text in prompts], limit,
                    temperature, seed=seed, stop=ENDS)
    return [tokenizer.decode(row[:-1] if row[-1] in ENDS else row).strip()
            for row in rows], [len(row) for row in rows]


def answers(problems, thoughts=None, **options):
    """An answer to each problem: at once, or behind these thoughts; and the numbers of
    tokens."""
    behind = ([""] * len(problems) if thoughts is None
              else [f"Thinking: {text}\n" for text in thoughts])
    return write_lines([f"Question: {p.prompt}\n{text}Answer:"
                        for p, text in zip(problems, behind)], 24, **options)


def think(problems, **options):
    """Thoughts on each problem, and the numbers of tokens."""
    return write_lines([f"Question: {p.prompt}\nThinking:" for p in problems], 96, **options)


# %% [markdown]
# ### Play: talk to it
#
# Type a question and press Enter; switch the mode. It knows TinyWorld's people and towns, sums, small programs and short scenes; try "Where is wine made?", "What is 8 + 5 - 3?",
# "Nora was in the hall. Emil came to the mill. Who is in the mill?", and then something that it cannot know.
#
# **One question to answer by playing:** find a question that it gets wrong at once and right after thinking. Do its thoughts *contain* the answer when the answer is right?

# %%
def ask(question, mode):
    """(thoughts, answer, number of tokens) of the base model."""
    prompt, thoughts, spent = f"Question: {question}\n", "", 0
    if mode == "think first":
        (thoughts,), (spent,) = write_lines([f"{prompt}Thinking:"], 96)
        prompt += f"Thinking: {thoughts}\n"
    (answer,), (more,) = write_lines([f"{prompt}Answer:"], 24)
    return thoughts, answer, spent + more


talk = inference.Talk(ask, ("answer at once", "think first"), "Where is wine made?")
talk

# %% tags=["nbval-ignore-output"]
QUESTIONS = ("Where is wine made?", "What is 8 + 5 - 3?",
             "Nora was in the hall. Emil came to the mill. Who is in the mill?")


def in_every_mode(talk, questions):
    """Ask all questions in all modes of a talk, and print what came."""
    for question in questions:
        style.say(f"Question: {question}")
        for mode in talk.mode.options:
            talk.question.value, talk.mode.value = question, mode
            thoughts = f"({talk.shown['thoughts']}) " if talk.shown["thoughts"] else ""
            print(f"  {mode:15} {thoughts}{talk.shown['answer']}   [{talk.shown['tokens']} "
                  "tokens]")


in_every_mode(talk, QUESTIONS)

# %%
talk.question.value, talk.mode.value = "What is 2 + 3?", "think first"
assert (talk.shown["question"] == "What is 2 + 3?" and talk.shown["thoughts"]
        and talk.shown["answer"] in talk.page.value)
talk.question.value = ""
assert talk.shown["answer"] is None
print("The talk shows thoughts and an answer; an empty question gets a request to ask "
      "something.")

# %% [markdown]
# Of the three suggestions only the question about wine turned for us: the town stands in the thought and is copied. The sum and the scene stayed wrong.
#
# ### Does thinking pay?
#
# A few questions prove nothing. We take 30 *different* problems of each family (test split, difficulties 1 to 3) and greedy answers, judged by the verifiers. And since more right answers after thinking could come from the *form* alone
# (the model saw problems only with a "Thinking:" line), there are two controls:
#
# - **another's thoughts**: the worked steps of another problem of the same family, with another answer. The form is perfect, the content is wrong.
# - **the right thoughts**: the steps that the problem's author wrote.
#
# **Predict before you run:** put the four in order. Does form without content beat the answer at once? In which family might it?

# %%
def another(p, some):
    """The steps of the next problem of the same family whose answer would be wrong here."""
    later = some[some.index(p) + 1:] + some
    return next(other.steps for other in later if other.family == p.family
                and not tasks.verify(p, other.answer))


# %%
problems = [p for family in tasks.FAMILIES
            for p in tasks.distinct_problems(family, "test", 30, (1, 2, 3))]
own, thought = think(problems)
others = [another(p, problems) for p in problems]
given = {"at once": None, "own thoughts": own, "another's thoughts": others,
         "the right thoughts": [p.steps for p in problems]}
replies = {name: answers(problems, thoughts) for name, thoughts in given.items()}
right = {name: np.array([tasks.verify(p, text) for p, text in zip(problems, texts)])
         for name, (texts, _) in replies.items()}

# %%
def by_family(right):
    """{family: (share, low, high)} and all together."""
    found = {f: evaluate.interval([bool(r) for r, p in zip(right, problems) if p.family == f])
             for f in tasks.FAMILIES}
    return found | {"all": evaluate.interval([bool(r) for r in right])}


results = {name: by_family(of) for name, of in right.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for name, of in results.items():
    tokens = np.mean(replies[name][1]) + (np.mean(thought) if name == "own thoughts" else 0)
    share, low, high = of["all"]
    print(f"{name:20} right {share:4.0%} ({low:.0%} to {high:.0%})   {tokens:5.1f} tokens "
          "written")
style.show(inference.plot_conditions(results),
           "Right answers by family with intervals: own thoughts beat the answer at once "
           "on the whole, most of all in knowledge; the right thoughts beat all; another's "
           "thoughts help in no family")

# %% jupyter={"outputs_hidden": true}
worked_out = np.array([p.family != "knowledge" for p in problems])
share = {name: of[worked_out].mean() for name, of in right.items()}
assert right["own thoughts"].mean() > right["at once"].mean() + 0.05
assert share["the right thoughts"] > share["own thoughts"] > share["another's thoughts"] + 0.03
print("All families: own thoughts are more than 5 points better than an answer at once.")
style.say("Mathematics, coding, reasoning: the right thoughts are better still, another's "
          "thoughts worse than own ones.")

# %% [markdown]
# Own thoughts help, at three times the tokens. Another's thoughts in the same perfect form harm (5 % right in all, 19 % at once): it is the content that pays. Knowledge gains most (from 27 % to 83 % for us), although nothing is to be worked out there: the fact lies in the weights, and the thought is the sentence in which training told it.
# The answer copies it. In mathematics own thoughts brought nothing: this model cannot do the sums. (Do look at the control when you build one. In a first version of this cell "another's thoughts" were at times those of *the same* question, drawn twice, and the control looked better than the thinking.)
#
# The right thoughts show what is lost on the way: the model can mostly *read off* the answer (67 to 97 %), and fails to work it out. In the report's words, performance on reasoning tasks is
# "fundamentally governed by the computational effort expended" (section 5.1.1).
#
# **Limits.** Of *problems* this base model never saw one answered at once (questions about its scenes it did), so "at once" is a little unfair. And single families have wide intervals: 30 problems.
#
# ### The same, of a model that was taught both modes
#
# The shipped `mini-distilled` has been through a whole life: a base of 11 million parameters (nano has 2), four specialists by SFT and GRPO (lesson 12), one model distilled from them (lesson 13).
# `minids lifecycle --preset mini --base data/checkpoints/mini` makes it in two hours and a quarter on two cores. Half of all that it practised was Non-think, half Think High, with V4's own tokens.
# (Think Max is left out: our examples for it only repeat the steps, so it would cost time and show nothing.)
#
# **Predict before you run:** in which of the four families will thinking help this model, in which will it change nothing?
#
# First talk to it. It knows problems like those of lesson 01, and nothing else; each family's first exam problem stands below. **One question to answer by playing:** find a question that the two modes answer differently. Read the thoughts: at which step does it go wrong?

# %% jupyter={"outputs_hidden": true}
trained = minids.load(data("checkpoints", "mini-distilled"))


def chat(question, mode):
    """(thoughts, answer, number of tokens) of the distilled model."""
    prompt = encode_chat([{"role": "user", "content": question}], tokenizer, mode)
    # at most 48 tokens at once, 128 with thoughts
    reply = generate(trained, prompt, LIMITS[mode], temperature=0)
    thoughts, answer = parse_reply(reply, tokenizer, mode)
    return thoughts, answer, len(reply)


firsts = [tasks.distinct_problems(family, "test", 1, (1, 2))[0] for family in tasks.FAMILIES]
taught = inference.Talk(chat, MODES[:2], firsts[0].prompt)
taught

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
in_every_mode(taught, [p.prompt for p in firsts])
print("Expected:", *(p.answer for p in firsts), sep="   ")

# %% [markdown]
# Four replies prove nothing, but they show the manner: thoughts have the right form, and a wrong step in the middle is carried to the end. (The verifier of knowledge and reasoning looks for the name in an answer, and takes no offence at the rest.)
#
# Now a whole exam: 96 different problems of each family (knowledge has 25), difficulties 1 and 2, greedy answers in both modes. (Nano's exam above went up to difficulty 3: compare modes, not heights.)

# %%
asked = {family: tasks.distinct_problems(family, "test", 96, (1, 2))
         for family in tasks.FAMILIES}
# for each mode and family two lists: whether the greedy answer to a problem is right, and its
# number of tokens
taken = {mode: {family: solve(trained, tokenizer, some, mode) for family, some in asked.items()}
         for mode in MODES[:2]}

# %% tags=["nbval-ignore-output"]
for family in tasks.FAMILIES:
    print(f"{family:12}", "   ".join(f"{mode} {np.mean(of[family][0]):4.0%} "
                                     f"({np.mean(of[family][1]):4.1f} tokens)"
                                     for mode, of in taken.items()))
style.show(
    inference.plot_conditions(
        {mode: {family: evaluate.interval(won) for family, (won, _) in of.items()}
         for mode, of in taken.items()}),
    "Right answers of the distilled mini by family and mode with intervals: thinking is ahead "
    "in mathematics, the answer at once in coding; in reasoning and knowledge both are alike")

# %%
gain = {family: np.mean(taken["think-high"][family][0]) - np.mean(taken["non-think"][family][0])
        for family in asked}
assert gain["mathematics"] > 0.04 and gain["coding"] < -0.06
print("Thoughts: more right answers in mathematics, fewer in coding.")

# %% [markdown]
# Thinking is ahead in mathematics alone: 35 % against 22 %. In coding it *harms*: 41 % instead of 58, at three times the tokens. In reasoning and knowledge it changes nothing. (Whether such gaps are more than luck, although their intervals overlap: section 7.) V4's report shows the opposite of V4: more effort, better scores (its table 7).
#
# Why? We do not know, but can say what it is not. It is not coding as such: nano's life, taught Think High alone, writes its programs *with* thoughts and gets more of them right (section 7). Perhaps a thought takes more practice than a program of ten tokens, and each mode had only half of it.
# Knowledge tells why nano, the base, gained so much above: it had never told a fact without the sentence before it. This model was taught both ways, and tells the fact at once.
#
# So whether thinking pays depends on what the model has practised, and on whether its steps are easier for it than the answer. It is to be measured, not assumed. And this is one seed of one small model.

# %% [markdown]
# ## 7. What a score means
#
# ### Intervals
#
# 3 right of 24: the share is $\hat p$ = 12.5 %. The textbook interval is $\hat p \pm 1.96\sqrt{\hat p(1-\hat p)/n}$. `minids` takes [Wilson's](https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval): every $p$ that would make the observed share plausible, $|\hat p - p| \le 1.96\sqrt{p(1-p)/n}$, with the deviation computed from $p$ itself.
# By hand, none of 24: $p \le 1.96\sqrt{p(1-p)/24}$; squared and divided by p, $p \le 3.84\,(1-p)/24$; so $p \le 3.84 / 27.84$, 13.8 %.
#
# **Predict before you run:** what does the textbook say when *none* is right?

# %% jupyter={"outputs_hidden": true}
for right_ones in (0, 3, 12):
    p, low, high = evaluate.interval([True] * right_ones + [False] * (24 - right_ones))
    half = 1.96 * (p * (1 - p) / 24) ** 0.5
    print(f"{right_ones:2} of 24: textbook {p - half:6.1%} to {p + half:5.1%}   Wilson "
          f"{low:5.1%} to {high:5.1%}")

# %% [markdown]
# None of 24 is no proof of 0 %: up to 14 % is compatible with it. The textbook's "0 % to 0 %" is certain, and wrong; from 1 to 3 right ones it even promises negative shares.
#
# ### Two modes, the same problems
#
# Two intervals that overlap do not prove that there is no difference. Both modes answered the *same* problems, and what is hard for one is hard for the other: that luck is shared, and falls out of the difference. So look at the differences themselves, $d_i$ = (right with thoughts) - (right at once), each 1, 0 or -1: their mean is $\bar d \pm 1.96\,s/\sqrt n$, where
# $s^2 = \sum_i (d_i - \bar d)^2 / (n - 1)$.
#
# By hand, eight problems. At once: 1 1 1 1 0 0 0 0. With thoughts: 1 1 1 1 1 1 1 0. Differences: 0 0 0 0 1 1 1 0, on the mean 0.375. $s^2 = (3 \cdot 0.625^2 + 5 \cdot 0.375^2)/7 = 0.268$, $1.96 \sqrt{0.268/8} = 0.359$. From **0.016 to 0.734**: more than luck, just so.
#
# ### Exercise 5: mend the comparison
# *Debug, 10 minutes.* A colleague takes the two lists for two different sets of problems and adds their variances. On the eight problems she finds that nothing is shown. Write it for the same problems.

# %%
def colleagues_difference(before, after):
    before, after = np.array(before, dtype=float), np.array(after, dtype=float)     # n, n
    mean = after.mean() - before.mean()
    half = 1.96 * ((before.var(ddof=1) + after.var(ddof=1)) / len(before)) ** 0.5
    return mean, mean - half, mean + half


at_once, with_thoughts = [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]
print("the colleague: {:.3f}, from {:.3f} to "
      "{:.3f}".format(*colleagues_difference(at_once, with_thoughts)))

# %%
def difference(before, after):
    """Lists of n numbers from 0 to 1, for the same n problems.

    -> three numbers: the mean of after - before, and the ends of its interval.
    """
    ### BEGIN SOLUTION
    d = np.array(after, dtype=float) - np.array(before, dtype=float)                # n
    half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
    return d.mean(), d.mean() - half, d.mean() + half
    ### END SOLUTION


# %%
difference = check("inference.difference", difference)
print("by hand: {:.3f}, from {:.3f} to {:.3f}".format(*difference(at_once, with_thoughts)))

# %% [markdown]
# **Predict before you run:** which of the four differences between the modes of section 6 are more than luck?

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for family in asked:
    won = [of[family][0] for of in taken.values()]
    (mean, low, high), (_, wide_low, wide_high) = difference(*won), colleagues_difference(*won)
    print(f"{family:12} {100 * mean:+6.1f} points, from {100 * low:+6.1f} to "
          f"{100 * high:+6.1f}   (as if of different problems: from {100 * wide_low:+6.1f} to "
          f"{100 * wide_high:+6.1f})")

# %% jupyter={"outputs_hidden": true}
for family in asked:
    won = [of[family][0] for of in taken.values()]
    (_, low, high), (_, wide_low, wide_high) = difference(*won), colleagues_difference(*won)
    assert high - low < wide_high - wide_low
print("Compared on the same problems, the interval is narrower in every family.")

# %% [markdown]
# Two of them: thoughts help in mathematics and harm in coding. In reasoning the same problems narrow the interval most, to less than half: both modes fail at nearly the same ones. It costs nothing but to keep the verdict of each problem, and not the share alone.
#
# (An interval says how lucky *this exam* was. Another seed of training gives another model, and no number of problems tells how different: that takes more runs.)
#
# ### pass@k
#
# Draw k answers, and count a problem as solved if *one* of them is right. This is fair where a verifier picks the right one for you (unit tests, a proof checker). From $n$ answers of which $c$ are right, lesson 12 estimates it as
# ([Chen et al.](https://arxiv.org/abs/2107.03374)):
#
# $$\text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}$$
#
# The tempting estimate is $1 - (1 - c/n)^k$: it puts each answer *back* before the next is taken, so that the same wrong answer can count twice.
#
# **Predict before you run:** answers are right with probability 0.2. Which of the two hits the truth on the mean, for k = 1, and for k = 8?

# %% jupyter={"outputs_hidden": true}
for k in (1, 2, 4, 8):
    naive, unbiased, truth = inference.expected_estimates(0.2, 8, k)
    print(f"k = {k}: truth {truth:.3f}, mean of the right estimate {unbiased:.3f}, of the "
          f"tempting one {naive:.3f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(inference.plot_bias(0.2, 8),
           "The mean of both estimators over everything that can happen, eight answers: the "
           "unbiased one lies on the truth, the other one falls below it as k grows")

# %% [markdown]
# These are exact means: every number of right answers from 0 to 8, weighed with its probability. For k = 1 both are right; for every k > 1 the tempting one is too low, here the more, the larger k is.
#
# Report section 5.3.1 has a relative of this for Codeforces: 32 candidates for each problem, of which 10 are taken *without replacement*, and the rating is the expectation over all
# such choices.
#
# **Predict before you run:** nano solves easy sums at temperature 1 and at 0.4. Which temperature has the better pass@1? Which one gains more from eight tries?

# %%
sums, tries = tasks.distinct_problems("mathematics", "test", 20, (1,)), 8
many, solved = [p for p in sums for _ in range(tries)], {}
for temperature in (0.4, 1.0):
    thoughts, _ = think(many, temperature=temperature, seed=1)
    said, _ = answers(many, thoughts, temperature=temperature, seed=2)
    # problems tries
    judged_right = np.array([tasks.verify(p, text)
                             for p, text in zip(many, said)]).reshape(-1, tries)
    solved[temperature] = judged_right.sum(1).tolist()
curves = {f"temperature {t}": {k: evaluate.interval([evaluate.pass_at_k(tries, c, k)
                                                     for c in found]) for k in (1, 2, 4, 8)}
          for t, found in solved.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(inference.plot_pass_at_k(curves),
           "pass@k against k at two temperatures with intervals: both rise with k, and the "
           "intervals overlap everywhere")
for name, points in curves.items():
    print(name, " ".join(f"pass@{k} {share:.0%}" for k, (share, *_) in points.items()))

# %% jupyter={"outputs_hidden": true}
cold, warm = (points[8][0] - points[1][0] for points in curves.values())
assert cold > 0.02 and warm > 0.05
assert all(points[1][0] <= points[2][0] <= points[4][0] <= points[8][0]
           for points in curves.values())
style.say("pass@k rises with k, as it must: from 1 to 8 by more than 2 points at 0.4, by more "
          "than 5 at temperature 1.")

# %% [markdown]
# A sharp distribution repeats itself: its eighth answer is often its first. A warm one is more often wrong, and more different. So *the best temperature may depend on k* (in ours the cold one stays ahead up to eight tries, by less and less; 20 problems cannot prove it); and a table that says pass@8 beside one that says pass@1
# compares eight times the price. With 20 problems the intervals are wide: do not read more than the slopes.
#
# ### The report card of the shipped base model

# %%
def share_of(items):
    return evaluate.interval(evaluate.answered(model, tokenizer, items))


bits = evaluate.bits_per_byte(model, tokenizer)
shares = {f"questions about stories of {words} words": share_of(evaluate.exam(42, words))
          for words in (30, 250)}
for words in (25, 400):
    shares[f"a secret word, told {words} words before"] = share_of(evaluate.recall(24, words))
for family in tasks.FAMILIES:
    shares[f"{family}, own thoughts"] = results["own thoughts"][family]

# %% tags=["nbval-ignore-output"]
print(f"bits per byte of unseen text: {bits['mixture']:.2f} of the whole mixture, "
      f"{bits['text']:.2f} of its real English")
print(f"first MTP drafts expected to stand, in a scene it wrote: {overlaps['a scene']:.0%}")
style.show(inference.plot_card(shares),
           "Right answers of the base model with intervals: stories, secrets near and far, and "
           "four families of problems after thinking")

# %%
assert bits["mixture"] < bits["text"] < 3
assert all(0.1 < high - low < 0.45 for _, low, high in shares.values())
assert (shares["questions about stories of 30 words"][0]
        > shares["questions about stories of 250 words"][0])
style.say("The mixture costs fewer bits than its real English. Each interval is wider than 10 "
          "points: so small are these samples.")

# %% [markdown]
# Read it as a teacher would. Where a bar is at 0, look at the whisker. Compare near and far: of a short story it answers more than of a long one. A secret word is the hardest, a few rare tokens that were
# said once; a fact of the family "knowledge" was told again and again in training. And real English costs several times the bits of the mixture, most of which a program wrote. `minids eval` makes the full card, with more problems and V4's modes, of any model that you train.
#
# ### The report card of a whole life
# Lessons 12 and 13 show recorded runs of `minids lifecycle`: four specialists, distilled into one model. Below is the card of the model at the end, of the first seed, as the command printed it.
#
# **Predict before you run:** the base's card stands above. Problems will be answered better. What has suffered, and what not: real English, the mixture, facts, drafts?

# %% jupyter={"outputs_hidden": true}
recorded = life.reports()[0]
end = recorded["models"]["distilled"]
print(evaluate.table(end))
minutes = life.minutes(recorded)
print(f"\nthis life took {sum(minutes.values()):.0f} minutes of training; the longest stages:")
for name, spent in sorted(minutes.items(), key=lambda item: -item[1])[:5]:
    print(f"    {name:18} {spent:4.1f} minutes")

# %% jupyter={"outputs_hidden": true}
style.show(life.plot_combined([recorded]),
           "Right answers of one life's models in four families and on the mean: after SFT, "
           "specialists, mean weights, mixed SFT and the distilled model")

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for kind, name in (("text", "real English"), ("mixture", "the whole mixture")):
    print(f"bits per byte of {name}: {bits[kind]:.2f} before, {end['bits_per_byte'][kind]:.2f} "
          "after")

# %% [markdown]
# - **Risen**: mathematics, coding and reasoning. (The exams are not quite the same: the base was asked as a text, with difficulties 1 to 3.)
# - **Suffered**: real English, 2.9 bits a byte instead of 2.3, and the mixture, 0.77 instead of 0.66. Stories and secrets cannot tell: there was little to lose.
# - **Held**: facts. Greedy answers tell 83 % of them before, after a thought, and 88 % after (the card samples: 70 %). And the drafts.
#
# That so little is lost is not a matter of course. An earlier life without *rehearsal* (eight rows of the base model's corpus in each step; lesson 12) ended at 5.2 bits a byte of English, 2.8 of the mixture, and 6 % of the facts: a few hundred steps on four families alone had overwritten them. This is *forgetting*, and a table of mathematics, coding and reasoning would not have shown it: a reason to put things on a report card that nobody trained for.
#
# ### The life of the model that you talked to
# `mini-distilled` was recorded as well: from the shipped mini, in both modes, one seed. ("After SFT" and "specialists" are four models, each asked in its own family.)
#
# **Predict before you run:** mini has five times the parameters of nano. Will its distilled model end above nano's, whose mean in Think High is 62 %?

# %% jupyter={"outputs_hidden": true}
for mode in MODES[:2]:
    print(mode)
    print(life.table(life.reports("mini"), mode=mode), "\n")

# %% [markdown]
# No: 50 % in Think High. Only in knowledge is mini ahead (83 against 70 %). Two things differ besides size: each mode had half of the steps, and fewer in all (300 of GRPO and 320 of distillation for both modes, nano's 400 and 400 for one); and mini's base read 5.5 million tokens, half as many again as nano's, for five times the parameters. Which of the two matters we did not test. A larger model is an offer that must be paid for, with data and with practice.
#
# - GRPO lifts coding by 22 and 23 points in Non-think and Think High, reasoning by 11 and 16, mathematics by 3 and 11, knowledge by 1 and 3 (from unrounded shares).
# - The one distilled model has 54 % on the mean, as its teachers, in Non-think, and 50 against 53 in Think High. Knowledge makes that, where it is ahead, perhaps because it rehearsed longest. In the three other families the teachers lead by 48 to 44 and by 48 to 40. It beats mixed SFT in both modes (46 and 37 %).
#
# ## 8. Quality against cost
#
# Lesson 00 drew scores against the price of a million tokens, and had to admit that this is not the price of an *answer*: nobody publishes how many tokens a mode writes. Now we can say what follows from that. The explorer below
# lets **you** choose how many times the tokens of Non-think the mode Max writes. Scores are DeepSeek's own (report, table 7); prices of output as of 2026-05-22; we assume that Non-think writes 500 tokens for an answer,
# in Flash as in Pro, and that Max is longer by the same factor in both. The 500 itself moves all points alike; the equality does not. Prompts are left out.
#
# **One question to answer by playing:** on HLE, how long may Flash Max think before its answer costs more than one of Pro Non-think?

# %%
scored = [row["benchmark"] for row in start.published("benchmarks_modes")
          if None not in (row["V4-Flash Non-think"], row["V4-Flash Max"],
                          row["V4-Pro Non-think"], row["V4-Pro Max"])]
explorer = style.slider_image(
    inference.plot_effort,
    "Score against the price of 1000 answers for both models, without thinking and with the "
    "longest",
    benchmark=["HLE (Pass@1)"] + [name for name in scored if not name.startswith("HLE")],
    longer=[1, 2, 3, 4, 5, 10, 20, 50], start={"longer": 10})
display(explorer)

# %%
explorer.peek(longer=3)
for longer in (1, 3, 4, 10):
    usd = {name: point[0]
           for name, point in inference.effort_points("HLE (Pass@1)", longer).items()}
    print(f"Max writes {longer:2} x: Flash Max {usd['V4-Flash Max']:5.2f} dollars for 1000 "
          f"answers, Pro Non-think {usd['V4-Pro Non-think']:5.2f}")

# %%
style.show(inference.plot_efforts("HLE (Pass@1)", (1, 3, 10)),
           "Three panels: the longer Max thinks, the further its points move to the right; at "
           "three times the tokens Flash Max still costs a little less than Pro Non-think and "
           "scores far higher, at ten times it costs several times as much")

# %% [markdown]
# A little more than three times: that is the ratio of the two output prices, 0.87 to 0.28. Beyond that Flash Max is no longer the cheaper of these two. It still scores 34.8 against 7.7, and costs a third of Pro Max (37.7) if both write the same. Whether it is a bargain depends on how many tokens it writes, and a price per token hides exactly that.
#
# For one task the report does publish tokens. Table 10: a search answer of V4-Pro takes 10,453 tokens of prompt and 1,308 of output with plain retrieval, 13,649 and 1,526 with agentic search.

# %%
price = max((row for row in start.published("prices") if row["model"] == start.PRO),
            key=lambda row: row["as_of"])
bill = {name: (read_ * price["input_usd_per_mtok"] + wrote_ * price["output_usd_per_mtok"])
        / 1e6
        for name, read_, wrote_
        in (("retrieval", 10_453, 1_308), ("agentic search", 13_649, 1_526))}
for name, usd in bill.items():
    print(f"{name:15} {1000 * usd:.2f} dollars for 1000 answers (prices of {price['as_of']})")
print(f"agentic search: {bill['agentic search'] / bill['retrieval'] - 1:+.0%}")

# %% [markdown]
# About a quarter more, if no token is found in the cache; and it wins 61.7 % of the comparisons and loses 18.3 % (table 9). Tokens *and* quality, from one source: this is how a comparison should look.
#
# ## In the real V4
#
# | | what | source |
# | --- | --- | --- |
# | sampling in its benchmarks | temperature 1.0 for reasoning and knowledge | report 5.3.1 |
# | context in its benchmarks | 8K, 128K, 384K tokens for Non-think, High, Max | 5.3.1 |
# | modes | three, trained with different length penalties and context windows | 5.1.1 |
# | MTP | one block, as in V3, "without modification" | 2.1 |
# | acceptance, speed-up | V3: 85 to 90 %, 1.8 times; for V4 we know of none | V3 report, 5.4.3 |
# | a token's weights, alone | 11 GB (Flash), 40 GB (Pro) read | computed above |
# | same bits whatever else is in the batch | yes: kernels are batch-invariant and deterministic | 3.3 |
# | pass@k | Pass@8 for Putnam-200; Codeforces: 10 of 32 without replacement | figure 8, 5.3.1 |
#
# **What our scale can show**: that sampling, batching, drafts and estimators are right, to the probability; that it is the content of thoughts that pays, where they pay. **What it cannot show**: the speed-up of drafts on a machine
# bound by memory, and how much thinking gains on problems worth thinking about.
#
# ## Key points
# - Temperature raises probabilities to a power; top-p cuts the tail and scales the rest alike. Plain sampling is as surprised as it expects to be.
# - Compression windows are cut from position 0: no padding in front. Rows share a position; a long prompt is read while others write.
# - A batch shares what is paid once: Python here, the reading of weights in V4.
# - Drafts: accept with min(1, p/q), replace from max(0, p - q). Then every text keeps its probability. Accept all, or resample from p, and it does not, unseen.
# - Acceptance is $\sum\min(p,q)$. A speed-up needs cheap drafts and cheap verifying as well; with experts it is worst at middle batches.
# - Thoughts pay by their content: another problem's thoughts harm. Whether a mode pays depends on what the model has practised: measure it.
# - pass@k without replacement is unbiased; none right of n is not 0 %; a price per token is not a price per answer.
#
# ## Questions to discuss
#
# <details><summary>1. The helper is replaced by one that guesses uniformly at random. What happens to the text, to the acceptance rate, and to the speed?</summary>
#
# The text's distribution stays p, exactly: the proof holds for any q. Acceptance falls to the sum of min(p, 1/V), nearly 0, and each pass now costs more for one token. *"The text becomes random"* is wrong: a bad guess falls. *"It breaks
# where q is 0"* does not apply: a uniform q is 0 nowhere, and with any other q no guess is drawn where it is 0; what p has there comes through the residual.
# </details>
#
# <details><summary>2. A service draws with top-p 0.9. May its helper guess without top-p?</summary>
#
# Yes. p is the model's distribution *after* top-p; a guess that top-p has cut has p = 0 and falls for certain. It is right, only slower: guesses are wasted. *"Both must use the same"* confuses speed with correctness. The reverse slip is the
# dangerous one: to judge with p before top-p writes tokens that top-p should have cut.
# </details>
#
# <details><summary>3. Two runs of the same prompt with temperature 0 differ on a server. How can that be?</summary>
#
# Another batch, another order of additions, other last digits; where two logits are nearly equal the likeliest token changes, and then everything behind it. *"Somebody left the temperature on"* is possible, and the first thing to check. V4's kernels are built so that a row's
# bits do not depend on its batch (report 3.3), which also makes reinforcement learning honest: what is trained is what was sampled.
# </details>
#
# <details><summary>4. Model A has pass@1 of 40 %, model B pass@10 of 70 %. Which is better?</summary>
#
# It cannot be said. If A's answers were independent with 40 % on every problem, its pass@10 would be above 99 %; if it solves 40 % of the problems always and the others never, its pass@10 is 40 %. *"B, 70 is more"* compares ten tries with one. Ask for the curve over k, at the same
# temperature, or for the price of a solved problem.
# </details>
#
# <details><summary>5. A server regenerates interrupted answers from the start. Why does the report call that mathematically incorrect (section 5.2.3)?</summary>
#
# Short answers survive an interruption more often. Who starts again after each one draws from a distribution that prefers short answers. *"It only wastes time"* is the plausible wrong answer. It is the same lesson as with the judges above: a sampler can change the distribution
# without a single false token.
# </details>
#
# ## Links
# - Leviathan, Kalman and Matias, *Fast inference from transformers via speculative decoding*: [arXiv 2211.17192](https://arxiv.org/abs/2211.17192)
# - Chen et al., *Accelerating large language model decoding with speculative sampling*: [arXiv 2302.01318](https://arxiv.org/abs/2302.01318)
# - Holtzman et al., *The curious case of neural text degeneration* (top-p): [arXiv 1904.09751](https://arxiv.org/abs/1904.09751)
# - Chen et al., *Evaluating large language models trained on code* (pass@k): [arXiv 2107.03374](https://arxiv.org/abs/2107.03374)
# - DeepSeek-V3 technical report, sections 2.2 and 5.4.3 (MTP): [arXiv 2412.19437](https://arxiv.org/abs/2412.19437)
# - In this repository: `minids/inference/generate.py`, `minids/inference/speculate.py` (your judge, with the decode state), `minids/inference/evaluate.py`, `tests/inference/test_speculate.py` (the enumeration)
