# %% [markdown]
# # 12 Specialists: taught by a program that says right or wrong
#
# **Two minutes turn a model that continues texts into one that answers, and then into one that thinks before it answers, because thinking pays.**
#
# **After this you can**
# - write a conversation in V4's three thinking modes, and a loss that counts the reply alone,
# - compute GRPO's objective for four rollouts by hand, number by number, and prove that yours equals `minids.posttrain.grpo.objective`,
# - say why a group's mean does the work of a value network, and which side of the clip bites when,
# - tell five estimates of a KL divergence apart, by their mean, their spread and the gradient that they give,
# - explain what is recorded while sampling, and why training replays it,
# - run SFT and GRPO, and read their curves with intervals,
# - recognise four broken recipes: a judge that can be fooled, a group of one, no clip, no KL.
#
# *Time: 167 minutes, exercises included. All cells together run in about a minute and a half.*
# *Before this: you know softmax, cross-entropy and `backward`. Lesson 01 has the chat encoding and verifiers, lesson 10 a training loop; both are recalled here.*

# %%
import copy
import math
import random
from itertools import combinations_with_replacement

import minids
import torch
import torch.nn.functional as F
from minids.data import tasks
from minids.data.chat import MODES, encode_chat, reply_mask
from minids.data.tasks import mathematics
from minids.data.tokenizer import Tokenizer
from minids.inference.answers import LIMITS, is_correct, prompt_ids, solve
from minids.inference.evaluate import interval
from minids.inference.generate import generate
from minids.learn import check, hint, versions
from minids.model.packing import Packing
from minids.model.passes import Options
from minids.posttrain import grpo
from minids.posttrain.grpo import GRPOConfig
from minids.posttrain.loop import optimiser_step
from minids.posttrain.rollouts import by_length, rollouts
from minids.posttrain.sft import SFTConfig, packed_rows
from minids.pretrain.optim import make_optimiser
from minids.show import life, specialists, style, tokens
from minids.system import paths
from tqdm.auto import tqdm

# %%
style.use()
versions()

# %% [markdown]
# ## The same question, asked twice
#
# The shipped nano model has read thousands of worked problems in its pre-training, as plain text. Here are six questions. Each is asked twice: once as it stood in those texts, once as a
# **conversation**, with the tokens that mark who speaks.
#
# **Predict before you run:** does the conversation get worse answers, the same, or none at all?

# %%
tokenizer = Tokenizer.load()
base = minids.load(paths.data("checkpoints", "nano")).float()
asked = tasks.problems("mathematics", "valid", 6, difficulty=1)
as_texts = [tokenizer.encode(f"Question: {p.prompt}\nThinking:", bos=True) for p in asked]
as_chats = [prompt_ids(p, tokenizer, "non-think") for p in asked]
texts, chats = (generate(base, prompts, 48, temperature=0.0)
                for prompts in (as_texts, as_chats))

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for p, text, chat in list(zip(asked, texts, chats))[:3]:
    print(f"asked:           {p.prompt}")
    print(f"as a text:       {tokens.plain(tokenizer.decode(text))[:100]!r}")
    style.say(f"as conversation: {tokens.plain(tokenizer.decode(chat))[:100]!r}\n")

# %% jupyter={"outputs_hidden": true}
answers = sum("\nAnswer:" in tokenizer.decode(text) for text in texts)
ends = sum(tokenizer.eos_id in chat for chat in chats)
assert answers >= 4 and ends <= 1
style.say("As a text nearly every question is taken up and gets some answer. As a conversation "
          "hardly one reply ends.")

# %% [markdown]
# The weights are the same. As a text the question is taken up and answered in the old form. (The sums are mostly wrong: that comes later.) As a conversation the model goes on with the *user's* words, and answers something that nobody asked. (The text does not stop either: it goes on with the next question.) What is missing is a *role*: the base model has never seen the tokens `<|User|>` and `<|Assistant|>`, and nobody has told it that it is the one who answers, or when to stop.
#
# This lesson gives it the role, in the two steps by which V4 raises each of its **specialists** (report, 5.1.1):
# - **SFT**, supervised fine-tuning: imitate good answers,
# - **GRPO**: try, be judged by a program, and do more of what went well.
#
# ## 1. A conversation, three modes, one loss
#
# V4 has three **modes** of thinking. The mode shows in the tokens (report, tables 2 and 3):
#
# | mode | the prompt ends with | the model writes |
# | --- | --- | --- |
# | non-think | <code>&lt;&#124;Assistant&#124;&gt;&lt;/think&gt;</code> | answer, end |
# | think-high | <code>&lt;&#124;Assistant&#124;&gt;&lt;think&gt;</code> | thoughts, `</think>`, answer, end |
# | think-max | the same; an instruction stands in front | the same, longer |
#
# Bold with a bar: what the assistant wrote. Notice that the opening `<think>` is the prompt's, the closing `</think>` is the model's.

# %%
talk = [{"role": "user", "content": "2 + 3 = ?"},
        {"role": "assistant", "reasoning": "2 + 3 = 5", "content": "5"}]
for mode in MODES:
    ids = encode_chat(talk, tokenizer, mode)
    wrote = reply_mask(ids, tokenizer)
    print(f"{mode:11} {len(ids):2} tokens, the assistant wrote {sum(wrote)}; a reply may have "
          f"{LIMITS[mode]} tokens")
ids = encode_chat(talk, tokenizer, "think-high")
tokens.ribbon(ids, tokenizer, tokens.roles(ids, tokenizer), reply_mask(ids, tokenizer))

# %% [markdown]
# **The loss of SFT is that of pre-training, on the bold tokens alone.** The user's words are given. To learn to write them would teach the model to ask.
#
# By hand, for a prompt of two tokens and a reply of two: the model gave the tokens the probabilities
#
# | | `User` | `2+3?` | `5` | end |
# | --- | --- | --- | --- | --- |
# | probability | - | 0.01 | 0.50 | 0.25 |
# | surprise $-\ln p$ | - | 4.61 | 0.69 | 1.39 |
#
# Loss on the reply: (0.69 + 1.39) / 2 = 1.04. On all tokens: (4.61 + 0.69 + 1.39) / 3 = 2.23, most of it for a question that the model need not invent.
#
# ### Exercise 1: the loss on the reply
# *Easy, 8 minutes.* Two shifts by one: the logits at t are a guess at token t + 1, and what counts is who wrote the token that is *predicted*.

# %%
def reply_loss(logits, ids, wrote):
    """The mean loss over the tokens that the assistant wrote, in nats: a tensor without axes.

    logits: B T V, the model's output for ids: B T; wrote: B T, did the assistant write the
    token?
    """
    ### BEGIN SOLUTION
    # B T-1
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses[wrote[:, 1:]].mean()
    ### END SOLUTION


# %%
reply_loss = check("specialists.reply_loss", reply_loss)

# %% [markdown]
# (`hint("specialists.reply_loss")` in a new cell gives one of three hints; so for the other exercises.)
#
# ## 2. SFT, live
#
# **What to teach.** Our families of problems (lesson 01) have sums, stories, comparisons. We tried them: what a model of two million numbers learns of them in half a minute is too little to reward. It copies
# digits without a fault, and gets the sums wrong, since a sum is a table to be learned by heart. So today's specialist has a small domain of the same form: **sums of five numbers from 1 to 4**.
# Steps, wordings and verifier are those of the family *mathematics*.
#
# A domain is a generator, a verifier, and a split. There are 56 ways to choose five numbers when their order does not matter. We deal these out once, for three purposes:
# - **worked**: SFT sees these, with their answers,
# - **tried**: GRPO practises on these. Nobody writes answers for them; the verifier is enough,
# - **exam**: no training sees these.

# %%
SETS = list(combinations_with_replacement(range(1, 5), 5))
random.Random(0).shuffle(SETS)
DEALT = {"worked": SETS[:28], "tried": SETS[28:46], "exam": SETS[46:]}


def problems(purpose, count):
    """`count` problems: numbers of this purpose in any order, in one of three wordings."""
    rng, found = random.Random(purpose), []
    for _ in range(count):
        numbers = rng.choice(DEALT[purpose])
        terms = rng.sample(numbers, len(numbers))
        asked = rng.choice(("What is {}?", "{} = ?",
                            "Work out {}.")).format(" + ".join(map(str, terms)))
        found.append(tasks.Problem("mathematics", "terms", 1, asked,
                                   mathematics.total_steps(terms), str(sum(terms)), numbers))
    return found


worked, tried, exam = problems("worked", 2600), problems("tried", 800), problems("exam", 100)
p = worked[0]
print(f"asked:  {p.prompt}\nsteps:  {p.steps}\nanswer: {p.answer}, "
      f"{tasks.verify(p, p.answer)};  7: {tasks.verify(p, '7')}")
print({purpose: len(sets) for purpose, sets in DEALT.items()}, "sets of numbers")

# %% [markdown]
# **What the examples look like.** One third are in non-think: the bare answer. Two thirds are in think-high, and **half of these leave the thoughts empty**. We do so on purpose. Real examples differ in how
# much they think, too; SFT learns to imitate the mixture. Whether thinking is *worth it* is a question for the reward.

# %%
def conversation(i):
    """The ids of example number i."""
    p, lazy = worked[i % len(worked)], random.Random(i).random() < 0.5
    mode = "non-think" if i % 3 == 0 else "think-high"
    reply = {"role": "assistant", "content": p.answer,
             "reasoning": "" if lazy or mode == "non-think" else p.steps}
    return encode_chat([{"role": "user", "content": p.prompt}, reply], tokenizer, mode)


for i in range(4):
    style.say(tokens.plain(tokenizer.decode(conversation(i))))

# %% [markdown]
# Whole conversations share a row, each read by itself (`Packing`, lesson 01). `packed_rows` gives the rows and says who wrote what. The optimiser is Muon, as in pre-training (lesson 09).
#
# **Predict before you run:** with even bets over 2,048 tokens the loss is ln 2048 = 7.6. Where does *this* model's loss start: above, near or below?

# %%
recipe = SFTConfig(steps=90, batch=32, lr=8e-3)
sft_model, sft_losses = minids.load(paths.data("checkpoints", "nano")).float().train(), []
optimiser = make_optimiser(sft_model, recipe)

# %% tags=["nbval-ignore-output"]
for step in tqdm(range(recipe.steps), desc="SFT", unit="step"):
    batch = range(step * recipe.batch, (step + 1) * recipe.batch)
    ids, wrote = packed_rows([conversation(i) for i in batch], 256, tokenizer)  # B T, B T
    X = sft_model.features(ids, options=Options(Packing.of(ids, tokenizer.bos_id)))  # B T n d
    loss = reply_loss(sft_model.logits(X), ids, wrote)
    loss.backward()
    # rate, clipping, a step of Muon, gradients back to zero
    optimiser_step(sft_model, optimiser, recipe, step)
    sft_losses.append(loss.item())

# %% jupyter={"outputs_hidden": true}
style.show(specialists.plot_sft_loss(sft_losses),
           "The loss on replies falls steeply within ten steps, then slowly")

# %% jupyter={"outputs_hidden": true}
assert 1.2 < sft_losses[0] < 6 and sum(sft_losses[-5:]) / 5 < 0.3
style.say("It starts below 7.6: digits and plus signs are no news to it. It ends below 0.3 "
          "nats for each reply token.")

# %% [markdown]
# In our run it goes from 3.9 to 0.06 nats. Most of the tokens that count are thoughts, in the wording of pre-training; that is why it starts well below 7.6. At the end the *worked* sums are known by heart; that says little about others. A small rest cannot go: whether thoughts come is a coin toss,
# $\ln 2 = 0.69$ nats at one token of each think-high reply.
#
# ## 3. Judges
#
# GRPO needs no good answers, only a **verifier**: a program that says whether an answer is right. For tasks that are easy to verify the report names "simple rule-based verifiers or test cases"; where answers cannot be checked, the model itself is
# trained as a judge, with rubrics (5.1.1, *generative reward model*). Ours is a program. A reply is right if it came to its end **and** what stands behind `</think>` is the number, and no more.
#
# **Predict before you run:** which of these five replies to $2 + 3 + 1 + 4$ are right?

# %% jupyter={"outputs_hidden": true}
p = tasks.Problem("mathematics", "terms", 1, "2 + 3 + 1 + 4 = ?", "", "10")
THINK_END, END = "</think>", tokenizer.decode([tokenizer.eos_id])
for reply in ("2 + 3 = 5" + THINK_END + "10" + END, THINK_END + "10" + END, "10" + END,
              THINK_END + "10", THINK_END + "9 10 11" + END):
    verdict = is_correct(p, tokenizer.encode(reply, special=True), tokenizer, "think-high")
    print(f"{tokens.plain(reply):45} {verdict}")

# %% [markdown]
# The first two. The third has no answer: all of it is thoughts. The fourth does not end. The fifth says several numbers. Notice the second: whether the thoughts are any good is **not judged**. Only the result counts; thoughts
# must earn their place by making it right.
#
# How good is our model? It is asked each exam problem twice, at temperature 1 (as in the report's own evaluation, 5.3.1). Intervals are 95 % (Wilson's) over replies; but the exam has only ten sets of numbers, and replies to one set are alike. So the true uncertainty is larger. (A reply of more than 8 tokens counts as thinking: without thoughts it has 3 or 4: `</think>`, digits, end.)

# %%
def examine(model, seed=5):
    """For each mode: the share of right replies with its interval; and of think-high
    replies: right, length, thoughts or not."""
    found, sample = {}, []
    for mode in ("non-think", "think-high"):
        verdicts, lengths = solve(model, tokenizer, exam * 2, mode, temperature=1.0, seed=seed)
        found[mode] = interval(verdicts)
        sample = list(zip(verdicts, lengths, [n > 8 for n in lengths]))
    return found, sample


def share(values):
    """The mean of some numbers; 0 where there are none."""
    values = list(values)
    return sum(values) / max(len(values), 1)


after_sft, sample_sft = examine(sft_model)

# %% tags=["nbval-ignore-output"]
for mode, (middle, low, high) in after_sft.items():
    print(f"{mode:11} {middle:.0%} right ({low:.0%} to {high:.0%})")
for thinks in (True, False):
    some = [ok for ok, _, thought in sample_sft if thought == thinks]
    kind = "with" if thinks else "without"
    print(f"think-high, replies {kind} thoughts: {len(some) / len(sample_sft):.0%} of all, "
          f"{share(some):.0%} right")

# %%
thinks_sft = share(thought for *_, thought in sample_sft)
with_thoughts, without = (share(ok for ok, _, thought in sample_sft if thought == t)
                          for t in (True, False))
assert 0.2 < thinks_sft < 0.8 and with_thoughts > without + 0.1
style.say("It thinks about half of the time, as the examples did. Replies with thoughts are "
          "right clearly more often.")

# %% [markdown]
# To compare: whoever says 12 to every exam problem is right in 19 %. So without thoughts the model does little better than a good guess.
#
# That is what imitation gives: a policy that *knows* two ways and tosses a coin. (**Policy** is the name for a model that chooses: here it chooses tokens.) A reward should move it to the better way. How?
#
# ## 4. GRPO by hand: four rollouts
#
# A **rollout** is a reply that the policy has sampled. A **group** is G rollouts of one prompt. Here are four to "3 + 4 = ?". For each token: its probability when it was sampled, $\pi_{old}$; its probability now, $\pi$, after
# some updates; and under the model before all training by rewards, the **reference** $\pi_{ref}$.
#
# | | tokens | $\pi_{old}$ | $\pi$ | $\pi_{ref}$ | reward |
# | --- | --- | --- | --- | --- | --- |
# | 1 | `7` end | 0.4, 0.5 | 0.6, 0.5 | 0.3, 0.5 | 1 |
# | 2 | `8` end | 0.3, 0.5 | 0.15, 0.5 | 0.3, 0.5 | 0 |
# | 3 | `9` end | 0.16, 0.5 | 0.2, 0.5 | 0.2, 0.5 | 0 |
# | 4 | `hm` `3` end | 0.1, 0.5, 0.5 | 0.02, 0.25, 0.5 | 0.1, 0.5, 0.5 | 0 |
#
# The objective is DeepSeek-V3.2's (arXiv 2512.02556, section 3.1); V4 keeps its hyper-parameters "closely aligned" with earlier work (5.1.1). It is the mean over rollouts, and over the tokens of each, of
#
# $$\min\bigl(\rho\,A,\ \mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon)\,A\bigr)\,M \;-\; \beta\,\rho\,(r - \ln r - 1),
#   \qquad \rho = \frac{\pi}{\pi_{old}}, \quad r = \frac{\pi_{ref}}{\pi}.$$
#
# $\varepsilon$: how far a ratio may go before it stops to count. $M$: 1, or 0 for a rollout that is left out (step 4). $\beta$: the price of distance from the reference, measured by an estimate of a KL divergence (lesson 04; why this one: section 6).
#
# Take $\varepsilon = 0.2$, $\beta = 0.1$. Five steps, on paper first.
#
# **Step 1, advantages.** $A$ = reward minus the mean of the group. The mean is 1/4. So $A = +0.75, -0.25, -0.25, -0.25$. *Better than usual* is what counts, not *good*.
#
# **Step 2, ratios.** $\rho = \pi / \pi_{old}$ says how much likelier a token has become since it was sampled. First tokens: 0.6/0.4 = **1.5**, 0.15/0.3 = **0.5**, 0.2/0.16 = **1.25**, 0.02/0.1 = **0.2**. The second of rollout 4: 0.25/0.5 = **0.5**. All
# others: 1.
#
# **Step 3, clip.** Rollout 1: $\min(1.5 \cdot 0.75,\ 1.2 \cdot 0.75) = 0.9$, clipped: it may not be pushed further. Rollout 2: $\min(-0.125,\ -0.2) = -0.2$, clipped: it has sunk enough. Rollout 3: $\min(-0.3125,\ -0.3) = -0.3125$. **Not** clipped:
# a bad answer has become *likelier*, and this must be undone.
#
# **Step 4, the off-policy mask.** (*Off-policy* text was written by another policy, or by an older state of this one; *on-policy* text by the policy as it is now.) $M = 0$ for a bad rollout whose tokens' mean of $\ln(\pi_{old} / \pi)$ exceeds a bound; take 0.5. Rollout 2: $(\ln 2 + 0) / 2 = 0.35$, stays. Rollout 4: $(\ln 5 + \ln 2 + 0) / 3 = 0.77$, **goes**. The policy would hardly
# write it any more; pushing it down further teaches nothing and can do harm.
#
# **Step 5, the KL estimate.** $r = \pi_{ref} / \pi$. Rollout 1: $r = 0.5$, and $1.5\,(0.5 + 0.693 - 1) = 0.290$. Rollout 2: $r = 2$, $0.5\,(2 - 0.693 - 1) = 0.153$. Rollout 3: $r = 1$: 0. Rollout 4: $0.2\,(5 - 1.609 - 1) = 0.478$ and 0.153.
#
# | rollout | A | gain of its tokens | mean | M | KL of its tokens | mean |
# | --- | --- | --- | --- | --- | --- | --- |
# | 1 | +0.75 | 0.9, 0.75 | 0.825 | 1 | 0.290, 0 | 0.145 |
# | 2 | -0.25 | -0.2, -0.25 | -0.225 | 1 | 0.153, 0 | 0.077 |
# | 3 | -0.25 | -0.3125, -0.25 | -0.281 | 1 | 0, 0 | 0 |
# | 4 | -0.25 | | | 0 | 0.478, 0.153, 0 | 0.211 |
#
# Means over the four: gain (0.825 - 0.225 - 0.281 + 0) / 4 = 0.0797; KL 0.108. Objective: $0.0797 - 0.1 \cdot 0.108$ = **0.0689**. The loss is its negative.
#
# **Predict before you run:** does `minids.posttrain.grpo.objective` agree to the last digit? (In the shapes B counts rollouts and R the tokens of the longest reply. In formulas R is a reward.)

# %% jupyter={"outputs_hidden": true}
PAD = 1.0           # stands where rollouts 1 to 3 have no third token; the mask leaves it out
# B R
old = torch.tensor([[0.4, 0.5, PAD], [0.3, 0.5, PAD], [0.16, 0.5, PAD], [0.1, 0.5, 0.5]]).log()
# B R
now = torch.tensor([[0.6, 0.5, PAD], [0.15, 0.5, PAD], [0.2, 0.5, PAD],
                    [0.02, 0.25, 0.5]]).log()
# B R
ref = torch.tensor([[0.3, 0.5, PAD], [0.3, 0.5, PAD], [0.2, 0.5, PAD], [0.1, 0.5, 0.5]]).log()
mask = torch.tensor([[True, True, False]] * 3 + [[True, True, True]])  # B R
rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
A = rewards - rewards.mean()                                           # B

loss, told = grpo.objective(now, old, ref, A, mask, epsilon=0.2, beta=0.1,
                            off_policy_mask_threshold=0.5)
print(f"objective {-loss:.4f}, KL {told['kl']:.3f}")
print(f"clipped {told['clip_fraction']:.3f} of the tokens, left out "
      f"{told['masked_fraction']:.2f} of the rollouts")

# %% [markdown]
# It does. (Clipped: 4 of 9 tokens have a slope of 0 by the clip, two of them in rollout 4, which is left out anyway.) The same as a picture:

# %% jupyter={"source_hidden": true}
words = [["7", "end"], ["8", "end"], ["9", "end"], ["hm", "3", "end"]]
style.show(
    specialists.plot_clipping((now - old).exp(), mask, A, [True, True, True, False], 0.2,
                              words),
    "The tokens of four rollouts by their ratio: the 7 of rollout 1 and the 8 of rollout 2 are "
    "clipped, the 9 of rollout 3 lies outside the clip and counts, rollout 4 is left out")

# %% [markdown]
# Now the same in code, part by part: four exercises, then the proof.
#
# ### Exercise 2: advantages
# *Easy, 5 minutes.* Rewards come group after group. The first GRPO (DeepSeekMath, arXiv 2402.03300) also divided by the group's standard deviation; V3.2's formula does not, and neither do we: see question 2 at the end.

# %%
def advantages(rewards, group):
    """rewards: B, group after group; group: answers to each prompt -> B, each reward less
    the mean of its group."""
    ### BEGIN SOLUTION
    groups = rewards.view(-1, group)                            # prompts group
    return (groups - groups.mean(1, keepdim=True)).flatten()    # B
    ### END SOLUTION


# %%
advantages = check("specialists.advantages", advantages)
print([round(a, 2) for a in advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), 4).tolist()])

# %% [markdown]
# Two prompts, one hard, one easy. The single success on the hard one and the single failure on the easy one get the largest advantages: surprises teach most. And where all four are right, or all four wrong, all advantages are 0.
#
# ### Why the group, and not a value network?
#
# We want a larger mean reward $\sum_y \pi(y) R(y)$ over replies y. Its gradient is $\sum_y R\,\nabla\pi = \sum_y \pi(y)\,R\,\nabla\ln\pi(y)$: the mean, over sampled replies, of $R\,\nabla\ln\pi$. This is the **policy gradient**, and the objective contains it: at $\rho = 1$ the slope of $\rho A$ is $A\,\nabla\ln\pi$.
#
# As it stands it needs no mean of a group: $R\,\nabla \ln \pi$ is right on average. It is also terribly noisy. Any **baseline** b that does not depend on the answer may be subtracted, $(R - b)\,\nabla \ln \pi$, without changing the mean. The best
# simple choice is the value of the prompt: the reward one expects there. PPO (arXiv 1707.06347) trains a **value network** for it, usually another model of the policy's size. For V4-Pro that would be 1.6 trillion more parameters to train and to keep. GRPO samples a few
# answers to the same prompt and takes their mean.
#
# How much is lost? Take the noisiest kind of token: one that has **nothing to do** with the reward, say a reply that opens with "So" half of the time. Its true gradient is 0. Whatever an estimate says about it is noise. Six prompts, which the policy solves with probabilities
# from 0.05 to 0.95; groups of 8. The first column of the table is for another token, the one that makes the answer right: how much of its true gradient is left. (In code $\nabla \ln \pi$ by the logit of a yes-or-no choice is 1 - p or -p: hence the `- solved` and the `- 0.5`.)
#
# **Predict before you run:** rank these baselines by noise, the deviation of one prompt's gradient estimate from batch to batch: none; the mean of the whole batch; the group's mean; a perfect value network.

# %% jupyter={"outputs_hidden": true}
rng = torch.Generator().manual_seed(0)
solved = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])                # prompts
R = (torch.rand(4000, 6, 8, generator=rng) < solved[:, None]).float()  # batches prompts group
# the same: does it open with "So"?
opens = (torch.rand(4000, 6, 8, generator=rng) < 0.5).float()
BASELINES = {"none": torch.zeros(1), "mean of the batch": R.mean((1, 2), keepdim=True),
             "mean of the group": R.mean(2, keepdim=True),
             "perfect value network": solved[:, None]}
noise = {}
for name, b in BASELINES.items():
    # prompts: mean / exact
    useful = ((R - b) * (R - solved[:, None])).mean((0, 2)) / (solved * (1 - solved))
    noise[name] = ((R - b) * (opens - 0.5)).mean(2).std(0).tolist()  # prompts
    print(f"{name:22} gradient by being right: {useful.mean():.2f} of the exact one;  noise "
          f"{sum(noise[name]) / 6:.3f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
figure, ax = specialists.plot_baselines(noise)
ax.set_xticks(range(6), [f"{p:.0%}" for p in solved.tolist()])
ax.set_xlabel("how often the policy solves the prompt")
style.show(figure, "Noise of the gradient estimate for six prompts: without a baseline "
           "it grows with the share of right answers; the group's mean is as good as a perfect "
           "value network; with the batch's mean it is about the same for every prompt")

# %% [markdown]
# The group's mean seems to beat a *perfect* value network (0.061 against 0.065). It does not: its gradient has shrunk more, to 0.87. Divide gradient by noise: 14.3 against 15.4. So it is about as good, and costs nothing but the answers that one samples anyway. What it keeps is 7/8 of the gradient, since each answer is a part of its own baseline: a smaller step in
# the same direction. Without a baseline the easy prompts are the noisiest, although there is least to learn. The mean of the batch helps on average, but for the hard prompts it is worse than none. (A real value network can also spread credit over the *tokens* of an answer. GRPO gives all tokens of an answer the same advantage.)

# %% [markdown]
# ## 5. The clipped ratio
#
# Sampling is expensive, so a batch of rollouts serves for several updates. From the second on the policy is no longer the one that sampled, and the ratio $\rho$ corrects for that: it weighs a token by how much likelier it is now. But the correction is only good nearby. So the objective
# stops paying once a token has moved by $\varepsilon$ **in the direction it was pushed**:

# %% jupyter={"source_hidden": true}
style.show(specialists.plot_objective_pair(),
           "The gain over the ratio. For a good answer it is flat above 1.2, for a bad one "
           "flat below 0.8; on the other sides the slope is A, however far")

# %% [markdown]
# ### Exercise 3: the clipped gain
# *Debug, 8 minutes.* A colleague found the minimum superfluous and simply clamps. Look at the second line: a bad answer has become 1.5 times as likely as when it was sampled, and the slope is 0: nothing calls it back. Write the right version.

# %%
def colleagues_gain(ratio, A, clip):
    return ratio.clamp(1 - clip, 1 + clip) * A[:, None]


for a in (1.0, -1.0):
    x = torch.tensor([[1.5]], requires_grad=True)
    y = colleagues_gain(x, torch.tensor([a]), 0.2)
    print(f"A {a:+.0f}, ratio 1.5: gain {y.item():+.2f}, slope "
          f"{torch.autograd.grad(y.sum(), x)[0].item():+.2f}")


# %%
def clipped_gain(ratio, A, clip):
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A). ratio: B R, A: B, clip: a number
    -> B R."""
    ### BEGIN SOLUTION
    A = A[:, None]                                                              # B 1
    return torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)        # B R
    ### END SOLUTION


# %%
clipped_gain = check("specialists.clipped", clipped_gain)
print([[round(v, 4) for v in row]
       for row in clipped_gain((now - old).exp(), A, 0.2).tolist()[:3]])

# %% [markdown]
# The third number of each row is padding; the first two are the gains of the table above.
#
# **Play.** Move ratio and advantage. *One question:* there are four corners, a good or a bad answer, likelier or less likely than when sampled. In which of them is the slope 0, and what would happen without the clip in just these?

# %%
def draw_objective(ratio, advantage):
    return specialists.plot_objective(ratio, advantage)


box = style.slider_image(
    draw_objective, "The clipped gain over the ratio, with its slope at one point",
    ratio=[0.25, 0.5, 0.75, 1.0, 1.1, 1.3, 1.5, 1.75], advantage=[-1.0, -0.5, 0.0, 0.5, 1.0],
    start={"ratio": 1.0, "advantage": 1.0})
box

# %%
zero = []
for sign in (1.0, -1.0):
    for ratio in (0.5, 1.5):
        box.peek(ratio=ratio, advantage=sign)
        zero += [(sign, ratio)] if specialists.gain_at(ratio, sign, 0.2)[1] == 0 else []
assert zero == [(1.0, 1.5), (-1.0, 0.5)]
print("slope 0: good and likelier, bad and less likely. There the work is done.")
print("Without the clip both would be pushed on and on by the same few answers.")

# %% [markdown]
# ## 6. How far from the start? Five estimates of a divergence
#
# A reward speaks of one thing. All else that the model can do should stay. So the objective charges for the distance to the reference,
#
# $$\mathrm{KL}(\pi \,\|\, \pi_{ref}) = \sum_v \pi(v) \ln \frac{\pi(v)}{\pi_{ref}(v)},$$
#
# and estimates it from the sampled tokens alone. With $r = \pi_{ref}/\pi$ three estimates are common (the names are Schulman's): $k_1 = -\ln r$, $k_2 = \frac12 (\ln r)^2$, $k_3 = r - \ln r - 1$. Two more are $k_1$ and $k_3$, times the ratio $\rho$.
#
# A vocabulary of three tokens lets us compute all means exactly: no sampling, a sum over three.
#
# | token | a | b | c |
# | --- | --- | --- | --- |
# | policy $\pi$ | 0.6 | 0.3 | 0.1 |
# | reference $\pi_{ref}$ | 0.3 | 0.3 | 0.4 |
# | older policy $\pi_{old}$, which sampled | 0.4 | 0.4 | 0.2 |
#
# By hand: $\mathrm{KL} = 0.6 \ln 2 + 0 + 0.1 \ln \frac14 = 0.416 - 0.139 = 0.277$. And $k_1$ of the tokens is 0.693, 0, -1.386: its mean under $\pi$ is 0.277, right. Under $\pi_{old}$ it is $0.4 \cdot 0.693 - 0.2 \cdot 1.386 = $ ... compute it. **It is exactly 0**: with tokens
# from the older policy $k_1$ says that nothing has moved.
#
# **Predict before you run:** which of the three is right for tokens from $\pi$? Which for tokens from $\pi_{old}$?

# %% jupyter={"outputs_hidden": true}
# three times V
POLICY, REFERENCE, OLDER = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]])
ESTIMATES = {"k1": lambda ratio, r: -r.log(), "k2": lambda ratio, r: r.log() ** 2 / 2,
             "k3": lambda ratio, r: r - r.log() - 1,
             "ratio k1": lambda ratio, r: ratio * -r.log(),
             "ratio k3": lambda ratio, r: ratio * (r - r.log() - 1)}


def moments(estimate, sampler):
    """Mean and deviation of an estimate for tokens from `sampler`, by a sum over the
    vocabulary."""
    values = estimate(POLICY / sampler, REFERENCE / POLICY)  # V
    mean = (sampler * values).sum()
    return mean.item(), (sampler * (values - mean) ** 2).sum().sqrt().item()


kl_exact = (POLICY * (POLICY / REFERENCE).log()).sum().item()
on, off = ({name: moments(f, sampler) for name, f in ESTIMATES.items()}
           for sampler in (POLICY, OLDER))
print(f"exact {kl_exact:.3f}")
for name in ESTIMATES:
    here, there = ((round(mean, 3) + 0.0, deviation)
                   for mean, deviation in (on[name], off[name]))
    print(f"{name:9} from the policy {here[0]:6.3f} +- {here[1]:.3f}     from the older one "
          f"{there[0]:6.3f} +- {there[1]:.3f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(specialists.plot_estimators(kl_exact, on, off), "Means (blue where exact, red "
           "crosses where not) and deviations of five estimates. From the policy itself only "
           "k2 is off; from an older policy only the two with the ratio are exact")

# %% [markdown]
# $k_1$ is right on-policy but varies most, and is often negative. $k_2$ is biased. $k_3$ is right on-policy and never negative. Off-policy all three are wrong. Times the ratio each gets its on-policy mean back, since $\pi_{old} \cdot \pi/\pi_{old} = \pi$: $k_1$ and $k_3$ become right, $k_2$ would keep its bias. V3.2 takes
# $\rho\, k_3$, and calls it unbiased.
#
# **But a loss is used for its gradient**, and here is the trap: *the gradient of a right estimate need not be the gradient of the KL.* Sampling has a derivative, too, which the estimate does not see.

# %%
def mean_gradient(estimate, sampler):
    """The mean gradient by the policy's logits, tokens from `sampler`, as autograd computes
    it for a loss."""
    logits = POLICY.log().requires_grad_()
    p = logits.softmax(-1)
    # sampler: no gradient
    return torch.autograd.grad((sampler * estimate(p / sampler, REFERENCE / p)).sum(),
                               logits)[0]


wanted = mean_gradient(ESTIMATES["ratio k1"], OLDER)  # sampler * ratio = policy: the KL itself
print("the KL's own  ", [round(v, 3) for v in wanted.tolist()])
for name, f in ESTIMATES.items():
    found = [mean_gradient(f, sampler) for sampler in (POLICY, OLDER)]
    verdicts = ["right" if torch.allclose(g, wanted, atol=1e-6) else "wrong" for g in found]
    print(f"{name:9} on-policy {verdicts[0]} "
          f"{[round(v, 3) + 0.0 for v in found[0].tolist()]!s:24} off-policy {verdicts[1]}")

# %% [markdown]
# On-policy, $k_1$ as a loss has the mean gradient **zero**: it does nothing but add noise. $k_3$ without the ratio pulls in another direction (it is the gradient of the *other* KL, $\mathrm{KL}(\pi_{ref} \| \pi)$). $k_2$, whose value is biased, has the right gradient on-policy. Only with the ratio, through
# which the gradient flows, is the gradient right on- and off-policy. Of these two, $\rho\,k_3$ varies less.
#
# ### Exercise 4: the KL estimate
# *Medium, 10 minutes.* From three log-probabilities of the sampled tokens. The check looks at the gradient, too.

# %%
def kl_estimate(logprobs, old, reference):
    """ratio (r - log r - 1), token by token. All B R: ln of the tokens' probabilities under
    policy, sampler, reference -> B R."""
    ### BEGIN SOLUTION
    ratio = (logprobs - old).exp()
    log_r = reference - logprobs
    return ratio * (log_r.exp() - log_r - 1)
    ### END SOLUTION


def with_gradient(function):
    """A function that returns function(logprobs, ...) and the slope of each value by its
    logprob."""
    def both(logprobs, *others):
        x = logprobs.clone().requires_grad_()
        y = function(x, *others)
        return y.detach(), torch.autograd.grad(y.sum(), x, allow_unused=True,
                                               materialize_grads=True)[0]
    return both


# %%
kl_and_slope = check("specialists.kl", with_gradient(kl_estimate))
print([[round(v, 3) for v in row] for row in kl_and_slope(now, old, ref)[0].tolist()])

# %% [markdown]
# ## 7. Too far off-policy: leave it out
#
# The clip works token by token. V3.2 adds a rule for whole answers: $M = 0$ where A < 0 and the mean of $\ln(\pi_{old}/\pi)$ over the answer's tokens exceeds a bound. *Why only bad answers?* A good answer that has become unlikely should be called back. A bad answer that the policy would no longer write is no
# mistake *of this policy*; to push against it moves probability to who knows where.
#
# ### Exercise 5: the off-policy mask
# *Medium, 8 minutes.* Mind the padding.

# %%
def kept(logprobs, old, A, mask, bound):
    """1.0 for each answer that counts, 0.0 for one that is left out. logprobs, old, mask:
    B R; A: B -> B."""
    ### BEGIN SOLUTION
    drift = ((old - logprobs) * mask).sum(1) / mask.sum(1)  # B: mean of log(pi_old / pi)
    return 1.0 - ((A < 0) & (drift > bound)).float()
    ### END SOLUTION


# %%
kept = check("specialists.kept", kept)
print(kept(now, old, A, mask, 0.5).tolist())

# %% [markdown]
# ### The proof
# Your four parts make the whole loss. It must equal `minids.posttrain.grpo.objective`, and so must its gradient: on the four rollouts, and on random ones of several lengths.

# %%
def kl_tokens(logprobs, old, reference):
    value, slope = kl_and_slope(logprobs.detach(), old, reference)
    return value + slope * (logprobs - logprobs.detach())  # the same values, the same gradient


def grpo_loss(logprobs, old, reference, rewards, group, mask, clip, beta, bound):
    """The loss, from your parts. logprobs, old, reference, mask: B R; rewards: B."""
    A = advantages(rewards, group)                                                  # B
    gain = clipped_gain((logprobs - old).exp(), A, clip)                            # B R
    mean = lambda t: (t * mask).sum(1) / mask.sum(1)                                # B R -> B
    return -(mean(gain) * kept(logprobs.detach(), old, A, mask,
                               bound) - beta * mean(kl_tokens(logprobs, old, reference))).mean()


# %%
rng = torch.Generator().manual_seed(1)
B, R = 8, 6
olds = -0.2 - 2 * torch.rand(B, R, generator=rng)                               # B R
news, refs = (olds + 0.4 * torch.randn(B, R, generator=rng) for _ in range(2))  # B R
lengths = torch.tensor([6, 3, 1, 4, 5, 2, 6, 6])
several = (news, olds, refs, torch.randn(B, generator=rng), 4,
           torch.arange(R) < lengths[:, None])
for x, o, f, earned, group, m in ((now, old, ref, rewards, 4, mask), several):
    x = x.clone().requires_grad_()
    mine = grpo_loss(x, o, f, earned, group, m, 0.2, 0.1, 0.1)
    theirs = grpo.objective(x, o, f, advantages(earned, group), m, epsilon=0.2, beta=0.1,
                            off_policy_mask_threshold=0.1)[0]
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, x)[0],
                               torch.autograd.grad(theirs, x)[0])
print("loss and gradient equal minids.posttrain.grpo.objective, on four rollouts and on eight")

# %% [markdown]
# ## 8. What sampling must leave behind
#
# The ratio compares two probabilities of the *same choice*. Two things that are decided while sampling are easily forgotten.
#
# **Top-p.** Rollouts are often drawn from the likeliest tokens only. By hand: probabilities 0.5, 0.3, 0.15, 0.05, top-p 0.9 keeps three tokens with 0.95 together. So the first was drawn with $0.5 / 0.95 = 0.526$. If training takes the plain 0.5, the ratio is 0.95
# although nothing has changed, for every token: the policy seems to drift before the first update. V3.2 keeps the *sampling mask*, and training chooses among the same tokens.
#
# **Experts.** A router picks K of E experts. After an update, or in another numeric format, a close race ends otherwise: the token takes *another path through the network*, and its probability jumps. V3.2 records the experts of the rollout and replays them in training.
#
# Here: 32 rollouts of the SFT model with top-p 0.9, everything recorded. Then one update.

# %%
settings = GRPOConfig(steps=8, lr=2e-3, warmup=1, num_prompts=8, num_generations=4,
                      steps_per_generation=1, length_penalty=0.0)
pool = tried
same_length = max(by_length([prompt_ids(p, tokenizer, "think-high") for p in pool]), key=len)
chosen = [pool[i] for i in same_length[:8] for _ in range(4)]  # B = 32
prompts = [prompt_ids(p, tokenizer, "think-high") for p in chosen]
r = rollouts(sft_model, prompts, 48, top_p=0.9, generator=torch.Generator().manual_seed(3),
             record=True)


@torch.no_grad()
def log_ratios(model, routing=True, masks=True):
    """ln(pi / pi_old) of the sampled tokens, with or without replay."""
    switches = GRPOConfig(keep_sampling_mask=masks)
    logprobs, _ = grpo.policy(model, r, switches, keep_routing=routing)             # B R
    return (logprobs - r.logprobs)[r.mask]                                          # tokens


largest = {name: log_ratios(sft_model, *flags).abs().max().item()
           for name, flags in (("both", (True, True)), ("experts only", (True, False)))}
assert largest["both"] < 1e-3 < 0.02 < largest["experts only"]
style.say("Before any update, with both replays: every ratio is 1, within 0.001. Without the "
          "masks some are off by more than 2 %.")

# %%
moved = copy.deepcopy(sft_model)
verdicts = [is_correct(p, reply, tokenizer, "think-high")
            for p, reply in zip(chosen, r.replies)]
scores = advantages(torch.tensor(verdicts).float(), 4)
grpo.update_policy(moved, sft_model, make_optimiser(moved, settings), r, scores, settings,
                   step=0)


@torch.no_grad()
def paths_taken(model):
    """For each gate that routes by score, and each position, the set of experts: gates
    B(T-1) K, sorted."""
    _, record = model.run(r.ids[:, :-1])
    return torch.stack([e.sort(-1).values for e in record.experts])


before = torch.stack([e.sort(-1).values for e in r.experts])  # gates B(T-1) K


def share_changed(model):
    """The share of the reply's tokens that take another expert in some layer than when they
    were sampled."""
    differs = (paths_taken(model) != before).any(-1).any(0).view(len(r.ids), -1)  # B T-1
    return differs[:, r.prompt - 1:][r.mask].float().mean().item()


unmoved, changed = share_changed(sft_model), share_changed(moved)
free, replayed = log_ratios(moved, routing=False), log_ratios(moved)

# %% tags=["nbval-ignore-output"]
print(f"{changed:.1%} of the tokens have an expert changed in some layer; before the update "
      f"(control) {unmoved:.1%}")
print(f"|log ratio|: replayed {replayed.abs().mean():.4f} on average, free "
      f"{free.abs().mean():.4f}")
print(f"free minus replayed: {(free - replayed).abs().mean():.4f} on average, at most "
      f"{(free - replayed).abs().max():.3f}")

# %% jupyter={"source_hidden": true}
style.show(specialists.plot_replay(free.numpy(), replayed.numpy(), changed),
           "Left: log ratios of tokens after one update, experts free against experts "
           "replayed, all near the diagonal. Right: the distance from it on a logarithmic "
           "scale; the bar at 1e-7 stands for none")

# %%
assert unmoved < changed / 10 and changed < 0.6 and (free - replayed).abs().max() > 1e-3
style.say("One update changes experts of some tokens; without it (nearly) none change. What is "
          "off the diagonal is not learning, but a jump of the path.")

# %% [markdown]
# In the left picture all points seem to lie on the diagonal: the largest jump is about a tenth of a nat, while a few log ratios moved by one to three nats (0.08 on average). The right picture shows the jumps by themselves; its tall bar holds all tokens without a visible one. At our size they are mild: eight experts, two of them used, and the shared one beside. At 384 experts and 61 layers some race is close for nearly every token, and V4 samples rollouts with FP4 weights (5.2.1). What *instability* that causes without replay is not
# something that we can show here.

# %% [markdown]
# ## 9. GRPO, live
#
# ### The price of a token
# V4's modes come from training "under divergent RL configurations", with "distinct length penalties and context windows" (5.1.1). Ours: the reward is 1 for a right reply, less a penalty in proportion to its length over what the mode permits,
#
# $$R = [\text{right}] - \lambda \cdot \frac{\text{length}}{\text{limit of the mode}}.$$
#
# By hand, with $\lambda = 0.1$: a right reply of 40 tokens earns $1 - 0.1 \cdot 40/48 = 0.92$ in non-think and $1 - 0.1 \cdot 40/128 = 0.97$ in think-high. So the same length is dearer where less is permitted.
#
# We start **twice** from the same SFT model, on the same problems in think-high, from the sets that SFT has not seen. Two things differ: $\lambda$ (0.1: a token costs next to nothing; 5: a lot), and the number of steps, 14 and 7, since the dear run needs no more. A reply with thoughts has some 30 tokens here, one without 4:
# at $\lambda = 5$ they cost $5 \cdot 30 / 128 = 1.17$, more than being right earns, and 0.16; at 0.1 they cost 0.02 and 0.003. (A rollout may have 56 tokens: enough for five numbers; what is longer has not ended, so it is wrong. Each step's rollouts serve two updates, half of them each, so ratios differ from 1 in the second only.)
#
# **Predict before you run:** which of the two will think more than the SFT model, which less? Which will be right more often?

# %%
@torch.no_grad()
def sampled(model, step, settings):
    """A batch of judged rollouts: the rollouts, their rewards (B), and what to note."""
    rng = random.Random(step)
    numbers = rng.choice([group for group in lengths if len(group) >= settings.num_prompts])
    # B
    chosen = [pool[i] for i in rng.sample(numbers, settings.num_prompts)
              for _ in range(settings.num_generations)]
    prompts = [prompt_ids(p, tokenizer, "think-high") for p in chosen]
    r = rollouts(model, prompts, 56, generator=torch.Generator().manual_seed(step), record=True)
    verdicts = [is_correct(p, reply, tokenizer, "think-high")
                for p, reply in zip(chosen, r.replies)]
    rewards = [grpo.reward(ok, len(reply), "think-high", settings)
               for ok, reply in zip(verdicts, r.replies)]
    note = {"right": share(verdicts), "thinks": share(len(reply) > 8 for reply in r.replies),
            "length": share(map(len, r.replies))}
    return r, torch.tensor(rewards), note


lengths = by_length([prompt_ids(p, tokenizer, "think-high") for p in pool])

# %%
def practise_live(penalty, steps):
    """GRPO from the SFT model; the new model and a record for each step."""
    settings = GRPOConfig(steps=steps, lr=1e-3, length_penalty=penalty, num_prompts=8,
                          num_generations=8,
                          steps_per_generation=2, decay_from=0.8)
    model, log = copy.deepcopy(sft_model), []
    optimiser = make_optimiser(model, settings)
    for step in tqdm(range(steps), desc=f"GRPO, penalty {penalty}", unit="step"):
        r, rewards, note = sampled(model, step, settings)
        scores = advantages(rewards, settings.num_generations)                      # B
        # the objective, twice, on half each
        told = grpo.update_policy(model, sft_model, optimiser, r, scores, settings, step)
        log.append(note | {"reward": rewards.mean().item(), "kl": told["kl"]})
    return model, log


# %% tags=["nbval-ignore-output"]
cheap, cheap_log = practise_live(0.1, 14)
dear, dear_log = practise_live(5.0, 7)

# %% jupyter={"outputs_hidden": true}
style.show(specialists.plot_grpo_run(
    {"penalty 0.1": cheap_log, "penalty 5": dear_log},
    {"reward": "mean reward", "right": "share of right replies", "thinks": "share that thinks",
     "kl": "KL to the SFT model (nats)"}),
           "GRPO over steps, two runs from one start. The reward rises in both; with cheap "
           "tokens the share of replies that think rises, with dear ones it falls to nearly "
           "none. Dots are batches, lines means of five")

# %% [markdown]
# Nobody showed either model how much to think. The first found out that replies with thoughts are right more often, and took to thinking. The second found out that they cost more than they bring. (The KL estimate jumps at times: a single token that the reference finds much likelier than the policy has a huge r.) Now the exam, on the third kind of sets, which neither SFT nor GRPO has seen:

# %%
after = {"after SFT": (after_sft, sample_sft), "GRPO, cheap": examine(cheap),
         "GRPO, dear": examine(dear)}
table = {mode: {name: found[mode] for name, (found, _) in after.items()}
         for mode in ("non-think", "think-high")}
guess = share(p.answer == "12" for p in exam)           # whoever always says 12
style.show(
    specialists.plot_bars(table, "right on the exam (%)", guess),
    "Share of right replies by mode with 95 % intervals: after SFT, and after GRPO with cheap "
    "and with dear tokens, which practised think-high only; a dotted line for always saying 12")

# %% tags=["nbval-ignore-output"]
for name, (found, sample) in after.items():
    print(f"{name:12}", "  ".join(f"{mode} {middle:.0%} ({low:.0%} to {high:.0%})"
                                  for mode, (middle, low, high) in found.items()),
          f"  thinks {share(thought for *_, thought in sample):.0%}, "
          f"{share(n for _, n, _ in sample):.1f} tokens")

# %%
accuracy = {name: found["think-high"][0] for name, (found, _) in after.items()}
habit = {name: share(thought for *_, thought in sample) for name, (_, sample) in after.items()}
assert (habit["GRPO, cheap"] > habit["after SFT"] + 0.2
        and habit["GRPO, dear"] < habit["after SFT"] - 0.2)
assert (accuracy["GRPO, cheap"] > accuracy["after SFT"] + 0.04
        and accuracy["GRPO, cheap"] > accuracy["GRPO, dear"])
style.say("Cheap tokens: it thinks more, and is right more often. Dear tokens: it hardly "
          "thinks, and is right less often.")

# %% [markdown]
# **What has GRPO taught?** Two things, and only one of them carries over. It moved the *choice* between two ways that the SFT model already knew: in 14 steps, with little more than one bit for each reply, nearly all replies came to think. On the 18 sets that it
# practised it ends near 90 %. On the exam's sets it is right in 64 % (57 to 70 %), where replies with thoughts were right in 58 % after SFT (section 3): a gain, if it is one, of six points (eleven in another run). This suggests that new sums were mostly learned by heart, and that what helps on the exam is mostly the choice. To teach sums in general the same bits would have to
# do what SFT does with a whole worked answer. As far as is known, it is so beyond our size, too: rewards sharpen what a policy sometimes does already. What it never does cannot be rewarded.
#
# ### pass@k: right at all, or right each time?
# **pass@k** is the probability that at least one of k replies is right. It asks what a policy *can* do, where pass@1 asks what it does. If GRPO only sharpened, it would lift pass@1, and leave pass@8 where it was.
#
# From n samples with c right ones the unbiased estimate is (Chen et al., arXiv 2107.03374)
#
# $$\text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}.$$
#
# By hand, n = 4, c = 1, k = 2: of the 6 pairs 3 hold no right reply, so pass@2 = 1/2. The tempting $1 - (1 - c/n)^k = 1 - (3/4)^2 = 0.44$ draws the same reply twice now and then: too low.
#
# ### Exercise 6: pass@k
# *Easy, 5 minutes.* `math.comb(a, b)` is 0 where b > a.

# %%
def pass_at_k(samples, right, k):
    """The probability that of k replies out of `samples`, `right` of them right, at least
    one is right: a float."""
    ### BEGIN SOLUTION
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)
    ### END SOLUTION


def for_all(function):
    """The function on a table of cases, as a tensor."""
    return lambda table: torch.tensor([float(function(*row)) for row in table],
                                      dtype=torch.float64)


# %%
pass_for_all = check("specialists.pass_at_k", for_all(pass_at_k))
print([round(v, 3) for v in pass_for_all([(4, 1, 2), (8, 2, 4)]).tolist()])

# %% tags=["nbval-ignore-output"]
def curve(model, n=8, some=30):
    """pass@1 to pass@n on some of the exam's problems, think-high, temperature 1."""
    verdicts, _ = solve(model, tokenizer, [p for p in exam[:some] for _ in range(n)],
                        "think-high", temperature=1.0, seed=9)
    right_ones = [sum(verdicts[i : i + n]) for i in range(0, len(verdicts), n)]
    return [pass_for_all([(n, c, k) for c in right_ones]).mean().item()
            for k in range(1, n + 1)]


curves = {"after SFT": curve(sft_model), "after GRPO, cheap tokens": curve(cheap)}
style.show(specialists.plot_pass_at_k(curves), "pass@k over k after SFT and after GRPO with "
           "cheap tokens: both rise with k, GRPO starts higher")

# %%
first, last = curves.values()
assert last[0] > first[0] and first[-1] > first[0] + 0.05
print("GRPO lifts pass@1. (That pass@k rises with k is no finding: it can never fall.)")

# %% [markdown]
# Do your curves meet at k = 8? In ours nearly: 67 and 73 % (77 in another run), closer than 30 problems from ten sets can tell apart. That is what sharpening looks like: GRPO finds at the first or second try what SFT finds in eight. (An earlier version of this cell gave SFT's eight tries 50 %. All batches of 64 replies had the same random numbers, so that 240 replies were
# hardly more than 64, and we had explained a gap that was chance. Look at how samples are drawn before you explain what they show.)
#
# ### Recorded: four whole families
# Sums of five small numbers are a toy within a toy. `minids lifecycle --preset nano-long` raises a specialist for each family of lesson 01, on problems of difficulty 1 and 2. SFT sees worked answers and stops while it is often wrong: 200 steps of 48 problems in mathematics, 50 in coding, 80 in the two others. (In knowledge it also goes on reading the base model's corpus: why, comes below.)
# GRPO sees no answers: 400 steps of up to 24 problems, 16 replies to each, 144,000 to 154,000 verdicts a family, on problems that no worked answer has told; three updates a step, no KL, no length penalty. (The 16 replies share one pass over their prompt, in training too: see `grpo.policy`.) The exam is the test split: 96 different problems of each family (25 in knowledge, one for each fact kept back), four sampled replies to each and a greedy one. Two seeds, which change training and sampling, not the exam. One core each; training took 92 and 89 minutes, an hour of them GRPO. In the tables: the mean of the seeds, and in brackets the lower and the higher one (no intervals).
#
# **Predict before you run:** four families. In how many does GRPO lift the exam's pass@1 by more than ten points?

# %% jupyter={"outputs_hidden": true}
recorded = life.reports()
print(life.table(recorded, "pass@1", ("after SFT", "specialists")))
print(life.table(recorded, "greedy", ("after SFT", "specialists")))
print(life.table(recorded, "pass@4", ("after SFT", "specialists")))

# %% jupyter={"outputs_hidden": true}
style.show(life.plot_grpo_gains(recorded),
           "Arrows from SFT to GRPO for four families and two seeds. At pass@1 mathematics, "
           "coding and reasoning rise by 9 to 41 points, past the greedy answers before GRPO "
           "(red marks), knowledge hardly; at pass@4 coding rises, reasoning falls")

# %% jupyter={"outputs_hidden": true}
style.show(life.plot_grpo_logs(recorded),
           "Share of right replies in the batches of practice, and entropy of the policy, "
           "for four families and two seeds: mathematics, coding and reasoning rise slowly and "
           "unsteadily, knowledge is near 100 % from the start; the entropies fall")

# %% [markdown]
# In three. Mathematics goes from 37 to 48 %, coding from 34 to 74 %, reasoning from 47 to 65 %, in both seeds by similar steps (the interval of 96 problems is ten points each way). We had hoped for fifteen points in each; mathematics misses that by three and a half.
#
# - **Sharpening, and more.** Part of the gain is lost doubt: pass@4, the share of problems with a right reply among four, stays where it was in mathematics (59 and 58 %) and falls in reasoning (79 to 70 %), so GRPO finds at the first try what took four, and tries less else. But it also passes the greedy answers before (43, 49 and 57 %), which is about what a policy gives that has only lost its doubts; and in coding even pass@4 rises, from 56 to 78 %. That is more than sharpening.
# - **Practice is not the exam.** In mathematics practice ends at 80 %, the exam at 48. One reason: in practice the same small sums come again and again, an exam asks 96 different things. The other: sums of the exam, single-digit facts included, stand in no training. So we put the same exam together from the three splits (pass@1, mean of two seeds; not in the record):
#
# | 96 different problems of the split | train | valid | test |
# | --- | ---: | ---: | ---: |
# | mathematics, SFT | 51 % | 42 % | 37 % |
# | mathematics, GRPO | 70 % | 64 % | 48 % |
# | coding, SFT | 41 % | 38 % | 34 % |
# | coding, GRPO | 76 % | 77 % | 74 % |
# | reasoning, SFT | 37 % | 39 % | 47 % |
# | reasoning, GRPO | 59 % | 63 % | 65 % |
#
# Coding and reasoning do not care which split is asked: their rules carry over. Mathematics does: 51 % of what training might have shown, 42 and 37 % of what it cannot have shown, before GRPO; 70, 64 and 48 % after it. Part of addition is known by heart here. GRPO's gain is 19, 21 and 11 points, once more than we hoped for and once less: so far apart are two exams of 96 problems. (We had fixed beforehand that the test split counts.) Longer practice is not what is missing: an earlier life of 300 steps, whose practice ended at 71 %, gained 13 points on this exam.
#
# - **Knowledge cannot be practised so.** 97 % of the replies in practice are right from the first steps on, so nearly all groups are of one mind. The exam asks for *other* facts, which the base has read but was never asked. 46 % of the answers to these are right before, 45 % after: nothing.
# - **Where worked answers exist, they are cheaper.** Coding after twice as many steps of SFT, one minute more, was right in 66 and 73 % of the exam (two seeds), nearly as much as GRPO reached in 22 minutes. Rewards are for what nobody can write down.
#
# **What it took.** In a first version 64 steps of GRPO lifted coding by seven points and nothing else. So we measured what a batch *says*: 32 batches of 384 replies in mathematics, without any update. Signal is the squared length of the mean gradient (less what 32 batches leave of the noise), noise the variance of one batch's gradient.
#
# | parameters | numbers | noise / signal |
# | --- | ---: | ---: |
# | matrices of attention, gates, compressors | 357,376 | 28 |
# | embedding | 262,144 | 31 |
# | experts | 1,105,920 | 45 |
# | output matrix | 262,144 | 90 |
# | scales of mHC | 32 | 380 |
#
# One part signal, thirty parts noise and more: the step of a single batch is nearly a random walk, and only the sum of many has a direction. From there:
#
# - **Many steps, and a rate that falls.** In a run whose rate stayed constant for half of the time, practice in mathematics stood near 43 % for 200 steps and rose to about 50 % as the rate fell.
# - **Scales and biases stay.** mHC's 32 scales alone have four tenths of the gradient's noise, and AdamW makes a whole step of it. In these runs vectors do not learn. (We changed this together with the rate, and cannot say what each has brought.)
# - **SFT must leave doubts.** After 100 steps coding had 0.045 nats of entropy a token, and four replies were much alike (pass@4 of 62 % beside pass@1 of 59 %, on an earlier exam of difficulty 1 that repeated questions): nothing to choose from, and in 60 steps of practice nothing rose.
# - **Practice must be within reach.** At difficulty 3, which SFT had not shown, 0.3 % of the replies in mathematics were right. Groups that are all wrong teach nothing.
# - **Verdicts are few bits.** 150,000 of them are at most as many bits, and fewer, because a group of one mind says nothing. SFT's 9,600 worked answers in mathematics have some eighteen tokens each, and each token says something.
#
# **What fine-tuning forgets.** In a first version SFT on knowledge ended at 11 % of its exam. Yet the base *has* the facts: asked directly, as a text (`Question: ... Answer:`), it tells 84 % of 67 facts that no training asks for. They were lost in 80 steps of SFT on other facts. So we tried what could hold them (greedy answers to the 67, and the loss on held-out documents of the corpus, in rows of 256 tokens; one seed; the interval of 67 is twelve points each way):
#
# | SFT on knowledge, 80 steps | facts told | held-out corpus, nats per token |
# | --- | ---: | ---: |
# | none: the base, asked as a text | 84 % | 1.49 |
# | no rehearsal, as in the other families | 25 % | 6.92 |
# | a quarter of the rate, scales and biases fixed | 48 % | 1.83 |
# | **8 rows of the corpus in each step** | 63 % | 1.70 |
# | 16 rows | 61 % | 1.67 |
# | 8 rows, three times their weight | 60 % | 1.70 |
# | 8 rows, scales and biases fixed | 57 % | 1.69 |
# | 8 rows at a rate of 3e-3, scales and biases fixed | 66 % | 1.56 |
# | 8 rows without the portraits (lesson 01: texts that tell the facts) | 36 % | 1.83 |
# | 8 rows of portraits alone | 90 % | 3.18 |
#
# Nobody contradicted these facts. But weights are shared, and what no gradient holds is free to drift. **Rehearsal** holds it: each step also reads some rows of what the base read, with the next-token loss (`SFTConfig.replay`; Ouyang et al. did so in RL, as "PPO-ptx"). More rows bring no more here; a lower rate perhaps a little, which the record does not use. But look at the two lines with and without portraits: a model keeps what it *reads*. Other documents hold the corpus' loss, and hardly the facts; portraits hold the facts, perhaps teach them anew, and hardly the rest. So rehearsal needs what is to be kept.
# The other three specialists do not rehearse: what they are asked does not stand in the corpus alone, and a specialist may forget the rest. GRPO forgot little in our knowledge specialist (300 steps without rehearsal: held-out loss 1.78 instead of 1.70), at a sixteenth of SFT's rate and with next to no gradient. Whether V4's stages rehearse, the report does not say.
#
# ## 10. Sabotage
#
# Now we break the recipe, one part at a time. That takes many runs, so we leave the network. A **table policy** has a number for each problem, place and token, nothing else; the objective is still `minids.posttrain.grpo.objective`. There are 32 problems, whose answers are digits.
# Tokens: ten digits (`7`), the same ten as words (`seven`), and the end. A reply is right that says the digit *or* the word, and then ends.

# %%
PROBLEMS, STOP = 32, 20              # tokens 0 to 9: digits; 10 to 19: words; 20: the end
DIGIT = torch.arange(PROBLEMS) % 10  # the right answers


def sample_table(table, group, rng):
    """group replies to each problem. table: PROBLEMS (or 1) R 21 -> tokens B R, mask B R
    (the end included)."""
    p = table.softmax(-1).expand(PROBLEMS, -1, -1).repeat_interleave(group, 0)         # B R 21
    said = torch.multinomial(p.flatten(0, 1), 1, generator=rng).view(len(p), -1)       # B R
    return said, ((said == STOP).cumsum(1) - (said == STOP).long()) == 0


def chosen_logprobs(table, said, group):
    logp = table.log_softmax(-1).expand(PROBLEMS, -1, -1).repeat_interleave(group, 0)  # B R 21
    return logp.gather(2, said[..., None])[..., 0]                                     # B R


def strict(said, mask, digit):
    """Right: the digit or the word, then the end. said, mask: B R; digit: B -> B, 1 or 0."""
    return ((said[:, 0] != STOP) & (said[:, 0] % 10 == digit) & (said[:, 1] == STOP)).float()

# %%
def practise_table(start, judge, steps, group=8, updates=1, clip=0.2, beta=0.0, lr=40.0, seed=0,
                   wrong_verdicts=0.0):
    """GRPO on a table: the new table, and for each step (mean reward, share right, largest
    ratio after the updates)."""
    rng = torch.Generator().manual_seed(seed)
    policy = torch.nn.Parameter(start.clone())
    log = []
    digit = DIGIT.repeat_interleave(group)  # B
    for _ in range(steps):
        with torch.no_grad():
            said, mask = sample_table(policy, group, rng)
            rewards = judge(said, mask, digit)
            note = [rewards.mean().item(), strict(said, mask, digit).mean().item()]
            flips = torch.rand(len(rewards), generator=rng) < wrong_verdicts
            A = advantages(torch.where(flips, 1 - rewards, rewards), group)
            old, ref = chosen_logprobs(policy, said, group), chosen_logprobs(start, said, group)
        for _ in range(updates):
            loss, _ = grpo.objective(chosen_logprobs(policy, said, group), old, ref, A, mask,
                                     clip, beta, None)
            policy.data -= lr * torch.autograd.grad(loss, policy)[0]
        with torch.no_grad():
            note.append((chosen_logprobs(policy, said, group) - old).exp()[mask].max().item())
        log.append(note)
    return policy.detach(), log

# %%
def beginner():
    """Says the right digit or word a little more often than others, and then mostly ends."""
    table = torch.zeros(PROBLEMS, 3, 21)
    table[:, 1:, STOP] = 4.0
    for kind in (0, 10):
        table[torch.arange(PROBLEMS), 0, DIGIT + kind] = 1.0
    return table

# %% [markdown]
# ### A judge that can be fooled
# The obvious judge asks: *is the right digit somewhere in the reply?* (Lesson 01 warned.) To make the point clear the policy here is **blind**: its table is the same for all problems, so it cannot know any answer. It may say up to ten digits.
#
# **Predict before you run:** what can it earn from the strict judge at best? And from the obvious one?

# %% jupyter={"outputs_hidden": true}
def obvious(said, mask, digit):
    return ((said == digit[:, None]) & mask).any(1).float()


blind = torch.zeros(1, 10, 21)              # one table for all problems: 1 R 21
blind[:, :, 10:20], blind[:, 0, STOP], blind[:, 1:, STOP] = -20.0, -20.0, 1.0
runs, sayings = {}, {}
for name, judge in (("Strict judge (control)", strict), ("Obvious judge", obvious)):
    table_, runs[name] = practise_table(blind, judge, steps=150, lr=10.0)
    said, mask = sample_table(table_, 1, torch.Generator().manual_seed(0))
    sayings[name] = " ".join(str(t) for t in said[0][mask[0]].tolist() if t != STOP)
style.show(specialists.plot_hacking(runs, sayings),
           "Left, strict judge: reward and share of right replies are one curve, around 10 %. "
           "Right, obvious judge: the reward rises far above, while no reply is right any more")

# %% jupyter={"outputs_hidden": true}
(control, fooled) = (torch.tensor(log)[-20:, :2].mean(0).tolist() for log in runs.values())
assert control[0] == control[1] < 0.15 and fooled[0] > 0.5 and fooled[1] < 0.02
print("strict: earns what is right, about one in ten;  obvious: earns more than half, right "
      "less than 2 %")

# %% [markdown]
# At best: the strict judge gives 4 of 32, to a policy that always says 0 or always 1, since these two are the answer to four problems each. The obvious judge gives everything to a reply that names all ten digits.
#
# A policy that cannot see the question earns most of the reward, by **listing digits**. That is *reward hacking*. It was not clever; every digit more was rewarded a little. The curve of the reward looks splendid, so never look at that curve alone: read replies, and measure with a second, stricter judge.
#
# ### A group of one
# With a single answer the mean of the group *is* the answer's reward. `minids` refuses:

# %%
try:
    GRPOConfig(num_generations=1)
except minids.errors.MinidsError as error:
    print(error)
still, _ = practise_table(beginner(), strict, steps=20, group=1)
taught, log = practise_table(beginner(), strict, steps=20, group=8)
print("group of 1: largest change of any number in the table:",
      (still - beginner()).abs().max().item())
print("group of 8: changed:", bool((taught - beginner()).abs().max() > 0.1))

# %% [markdown]
# Exactly 0. No error, no warning, no learning. The same happens in a group of 8 whose rewards are all equal: problems that are far too easy or far too hard cost samples and teach nothing.
#
# ### No clip, many updates
# Sixteen updates on each batch of answers. To make it harder, 30 % of all verdicts are wrong, as with a shaky judge. **Predict before you run:** without the clip, does it learn faster, slower, or not at all? Three seeds each; the control takes one update a batch.

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
RECIPES = {"1 update, clip (control)": dict(updates=1), "16 updates, clip": dict(updates=16),
           "16 updates, no clip": dict(updates=16, clip=None)}
lines, far, ends = {}, {}, {}
for name, recipe_ in RECIPES.items():
    logs = [practise_table(beginner(), strict, 50, seed=seed, wrong_verdicts=0.3, **recipe_)[1]
            for seed in range(3)]
    lines[name] = [[row[1] for row in log] for log in logs]
    far[name] = max(log[0][2] for log in logs)
    ends[name] = [share(line[-10:]) for line in lines[name]]
    print(f"{name:25} right at the end {', '.join(f'{end:.0%}' for end in ends[name])};  "
          f"largest ratio after the first batch {far[name]:.1f}")
style.show(specialists.plot_seeds(lines, "share of right replies",
                                  "A judge that is wrong in 30 % of all cases"),
           "Share of right replies over batches: 16 updates with the clip climb highest; "
           "without the clip the curves stay below")

# %% jupyter={"outputs_hidden": true}
assert min(ends["16 updates, clip"]) > max(ends["16 updates, no clip"]) + 0.05
assert far["16 updates, no clip"] > 5 > far["16 updates, clip"]
style.say("Without the clip one batch moves single tokens many times as far, and the end is "
          "worse, in each of three seeds.")

# %% [markdown]
# Faster at first, then stuck: in the picture the unclipped curves lead for some batches and then stay where they are. (The control is lowest because it takes a sixteenth of the updates. It still rises. The fair comparison is 16 updates with and without the clip.)
#
# Without the clip a single lucky verdict makes a token twenty times as likely within one batch; a table that is sure of a wrong answer samples nothing else, and has nothing to compare. With the clip each batch may say only so much. (1.7 is above 1.2: the clip bounds what the objective pays, not the step. One step may overshoot; after it the slope is 0.) (With a judge that is never wrong the unclipped table learns *fastest*: in a copy of the cell above, set
# `wrong_verdicts` to 0 and see. The assertion holds for 0.3 only. In a table updates on one problem cannot harm another. In a network they can.)
#
# ### KL off
# Digit and word are equally right, and the beginner says both equally often. The reward does not care. **Predict before you run:** what becomes of the habit of saying either, with and without the charge for distance?

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def words_share(table):
    """For each problem: how often a right answer is the word."""
    p = table.softmax(-1)[torch.arange(PROBLEMS), 0]  # PROBLEMS 21
    digit, word = (p[torch.arange(PROBLEMS), DIGIT + kind] for kind in (0, 10))
    return (word / (digit + word)).tolist()


ends, final = {"at the start": words_share(beginner())}, {}
for name, beta in (("KL off", 0.0), ("KL, beta = 0.1", 0.1)):
    both = [practise_table(beginner(), strict, 120, beta=beta, seed=seed) for seed in range(2)]
    ends[name] = sum((words_share(table_) for table_, _ in both), [])
    final[name] = share(share(row[1] for row in log[-10:]) for _, log in both)
    extreme = share(s < 0.2 or s > 0.8 for s in ends[name])
    print(f"{name:15} right {final[name]:.0%}; problems that say the same of the two in over "
          f"80 %: {extreme:.0%}")
style.show(specialists.plot_shares(ends),
           "How often the word is said instead of the digit, as shares of the problems: 32 at "
           "the start, the same 32 in two seeds afterwards. At the start all are at 50 %; with "
           "KL off most are near 0 or 100 %; with KL most stay in between")

# %% jupyter={"outputs_hidden": true}
off_extreme, on_extreme = (share(s < 0.2 or s > 0.8 for s in ends[name])
                           for name in ("KL off", "KL, beta = 0.1"))
assert off_extreme > 0.6 and on_extreme < 0.3 and min(final.values()) > 0.7
style.say("Without KL luck decides which of two right answers survives. With KL both stay, at "
          "a small price in reward.")

# %% [markdown]
# Whichever of the two was right *first* was sampled more, so rewarded more, so sampled more. Nobody wanted that. What a reward does not speak of is free to drift: variety, style, other skills. The KL term holds it. Its price is visible too: with a charge for distance the policy stays a little less right.

# %% [markdown]
# ## In the real V4
#
# | | V4 | here | source |
# | --- | --- | --- | --- |
# | a specialist per domain | yes, later distilled into one model from "more than ten" teachers (lesson 13) | one live, for small sums; four recorded | report 5.1.1, 5.1.2 |
# | order | fine-tuning, then RL with GRPO | the same | 5.1.1 |
# | rewards | rules and tests where answers can be verified; else a *generative* reward model: the policy itself judges by rubrics, and is trained to | rules | 5.1.1 |
# | modes | by separate RL configurations: length penalties, context windows | two penalties, one mode | 5.1.1 |
# | context when evaluated (non-think, high, max) | 8K, 128K, 384K tokens | replies of at most 48, 128, 224 tokens | 5.3.1; `minids.posttrain.loop` |
# | number format of rollouts, references, teachers | FP4 weights | float32 | 5.2.1 |
# | an interrupted rollout | goes on from a log of its tokens; to start it anew would favour short replies | none | 5.2.3 |
# | optimiser, clip, beta, group | "closely aligned" with earlier work, not stated | Muon, 0.2, 0.02, 8 (recorded lives: no KL, groups of 16) | 5.1.1; `GRPOConfig` |
#
# What do modes bring? Published scores (report, table 7):

# %% jupyter={"source_hidden": true}
style.show(specialists.plot_modes(("HLE (", "Apex (", "HMMT", "LiveCodeBench", "GPQA",
                                   "SWE Verified", "SimpleQA", "MMLU-Pro")),
           "Scores of V4-Flash and V4-Pro in three modes on eight benchmarks: far apart "
           "on hard mathematics, HLE and LiveCodeBench; close on MMLU-Pro and SWE Verified; in "
           "between on SimpleQA")

# %% [markdown]
# Flash on HMMT 2026: 40.8 without thoughts, 91.9 in High, 94.8 in Max. On MMLU-Pro: 83.0, 86.4, 86.2. As in our small sums, thinking pays most where an answer has to be *worked out*. The border is not sharp: SimpleQA, pure recall, still gains 11 (Flash) and 13 (Pro) points from Non-think to Max, SWE Verified only 5 and 7.
#
# **The report claims** that Max, with longer contexts and smaller length penalties in RL, beats High on the hardest tasks (5.3.2). **Here we have shown** the mechanism: the objective is right (equal to `minids`, gradient included), a reward alone moves a model to think or not to think, and how each part fails when it
# is missing. **At this scale we cannot show** that RL teaches new skills, what off-policy masks and replay bring over weeks of training, or how a generative judge behaves. Whole families took an hour of practice, and there GRPO
# lifted three of four: see the record in section 9.
#
# ## Key points
# - A base model goes on with texts but has no role. SFT on conversations gives it one, with the loss on what the assistant writes, and on nothing else.
# - An advantage is a reward minus the mean of its group. It replaces a value network as large as the policy. Equal rewards teach nothing.
# - The clip is one-sided: good answers are bounded from above, bad ones from below. In the other direction the pull stays whole.
# - As a loss, only an estimate of the KL whose gradient is right will do: $\rho\,(r - \ln r - 1)$, on- and off-policy.
# - What sampling decided (experts, the tokens left by top-p) is recorded and replayed, or ratios differ from 1 without any learning.
# - A reward moves what a policy already does at times. It finds every gap in its judge, and leaves to chance what it does not speak of.
#
# ## Questions to discuss
#
# <details><summary>1. All eight answers of a group are right. Why does GRPO not reinforce them?</summary>
#
# All advantages are 0: none is better than usual. *"That is wasteful, they should get +1"* is how it works without a baseline: then easy prompts make the largest noise (section 4). Sensible: draw fewer of such problems.
# </details>
#
# <details><summary>2. The first GRPO divided advantages by the group's standard deviation. What does this change?</summary>
#
# With success in 1 of 8 answers the deviation is about a third, with 4 of 8 about a half. So prompts that are nearly always or never solved count more than their gradient says. *"It only normalises"* is wrong: it weighs prompts by their difficulty. Liu et al. (arXiv 2503.20783) discuss this and the
# bias by length. V3.2's formula leaves the division out.
# </details>
#
# <details><summary>3. A machine fails in the middle of a rollout. Why not simply start this one again?</summary>
#
# Long rollouts meet more failures than short ones. Whoever starts them anew keeps more short ones: the policy learns to be brief, and nobody has asked for it. V4 logs each token and goes on from there (5.2.3). *"It only costs time"* overlooks that which samples survive is a choice.
# </details>
#
# <details><summary>4. Should the reference model replay the policy's experts, too?</summary>
#
# `minids` lets it take its own: it is another model, and its probabilities are what the KL compares with. The *sampling mask* is different: both must choose among the same tokens, or the KL would not be 0 where they are equal.
# </details>
#
# <details><summary>5. In think-high only the end of the reply is judged. Can thoughts be nonsense?</summary>
#
# Yes, as long as the answer comes out right. In our sums nonsense in the steps mostly ruins the answer, so steps are held in order *indirectly*. *"Then judge the steps as well"* sounds good, but such a judge can be fooled too, and a way to think that no example shows could never be found.
# </details>
#
# ## Links
# - DeepSeek-V3.2, [arXiv 2512.02556](https://arxiv.org/abs/2512.02556): section 3.1 has the objective, the unbiased KL estimate, the off-policy mask, and what is replayed
# - Shao et al., DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300): the first GRPO; before it, PPO: Schulman et al., [arXiv 1707.06347](https://arxiv.org/abs/1707.06347)
# - Schulman, Approximating KL Divergence, [joschu.net/blog/kl-approx.html](http://joschu.net/blog/kl-approx.html): the names $k_1$, $k_2$, $k_3$
# - Liu et al., Understanding R1-Zero-Like Training, [arXiv 2503.20783](https://arxiv.org/abs/2503.20783): what dividing by deviation and by length does
# - Ouyang et al., Training language models to follow instructions with human feedback, [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): rehearsal in RL, as PPO-ptx
# - Chen et al., Evaluating Large Language Models Trained on Code, [arXiv 2107.03374](https://arxiv.org/abs/2107.03374): pass@k
# - In this repository: `minids/posttrain/sft.py`, `minids/posttrain/rollouts.py`, `minids/posttrain/grpo.py` (your loss, with replay), `minids/posttrain/loop.py` (runs that can be resumed)
