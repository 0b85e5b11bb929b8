# %% [markdown]
# # 00 Start here: DeepSeek-V4 on your machine
# **You can build DeepSeek-V4 yourself.** The same Python class makes the 1.6-trillion-parameter model and one with 2
# million that runs on this machine.
#
# **After this you can**
# 1. run a tiny DeepSeek-V4, test what it can do with a control, and say how much it has learned, in bits,
# 2. say what V4 is, in a dozen numbers that you can compute,
# 3. point at each part of the network and name the lesson that builds it,
# 4. work on exercises with `check` and `hint`,
# 5. read a table of prices and benchmarks, and say what it does not tell.
#
# **Time: 74 minutes, exercises included.** All cells run in less than a minute. **Before it**: some Python; a first network trained
# in PyTorch helps.
#
# New words are in the [glossary](GLOSSARY.md).

# %%
import math
import random

import minids
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from minids import cost
from minids.data import mixture
from minids.data.books import documents
from minids.data.tinyworld import stories
from minids.data.tokenizer import Tokenizer
from minids.inference import evaluate
from minids.learn import check, hint, progress, versions
from minids.learn.doctor import doctor
from minids.learn.judge import demonstrate
from minids.pretrain.settings import TrainConfig
from minids.show import start, style
from minids.system.paths import data
from minids.weights import layout

style.use()
versions()

# %% [markdown]
# ## 1. It answers
# `data/checkpoints/nano` holds a DeepSeek-V4 with all of its mechanisms, in four layers. One core of a server CPU trained it
# (its [README](../data/checkpoints/nano/README.md) says how long), on a mixture: the King James Bible, Shakespeare and
# Milton; short scenes and stories of **TinyWorld**, a made-up world where people walk about and carry things, with questions;
# and small problems that are worked out step by step.
#
# It only learned to go on with a text. So we write the beginning, and it writes the rest; ours is in brackets. It reads and writes
# **tokens**, pieces of words (lesson 01).
#
# **Predict before you run.** It has 2 million parameters. What will it make of each beginning?
# 1. *The robot said unto the king,* and no robot is in its text. (a) random letters, (b) the right tone without
#    much sense, (c) an answer about robots?
# 2. *Jonas was in the mill. Where is Jonas?* (a) something else, (b) the right answer?
# 3. *What is 62 + 31?* (a) something else, (b) the right form and a wrong sum, (c) the right sum?

# %%
tokenizer = Tokenizer.load()
model = minids.load(data("checkpoints", "nano"))
config = model.config
size = sum(p.numel() for p in model.parameters())
print(f"{size:,} parameters, {config.n_layers} layers, {config.vocab_size} token ids")

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
def go_on(prompt, n, temperature):
    """Print the prompt in brackets, and n tokens that the model writes after it, or fewer if
    it ends the text."""
    new = minids.generate(model, tokenizer.encode(prompt, bos=True), max_new_tokens=n,
                          temperature=temperature, top_p=0.9, seed=1)
    style.say(f"[{prompt}]{tokenizer.decode(new)}\n\n" + 72 * "-")


go_on("The robot said unto the king,", 60, 0.7)
go_on("Late in the evening Jonas was in the mill.\n\nQuestion: Where is Jonas?\nAnswer:", 7, 0)
go_on("Question: What is 62 + 31?\nThinking:", 40, 0)

# %% [markdown]
# The first is (b): the tone is there, the sense is not. The third has the form of written addition, digits and carries; check its
# digits yourself before you believe the sum. (Another machine may write another text: the last digits of its numbers differ from
# one CPU to the next.)
#
# The second is right. **Does it understand, then?** One answer is no proof. Ask sixty times, with other people and places; then put
# more people into the scene, each in a place of their own, and ask for one of them. Beside the model stands a simple trick that knows
# nothing of people: *name any place of the scene*. It is right once in as many times as there are people.
#
# **Predict before you run**: how many right in a hundred with one person? With two? With four?

# %%
def scenes(count, people, asked):
    """Questions about scenes of so many people, each in a place of their own; `asked`: the
    number of the one asked for."""
    rng, items = random.Random(0), []
    for _ in range(count):
        who, where = rng.sample(stories.PEOPLE, people), rng.sample(stories.PLACES, people)
        told = " ".join(f"{a} was in the {b}." for a, b in zip(who, where))
        answer = f" {who[asked]} is in the {where[asked]}."
        items.append(evaluate.Item(
            "scene", f"{told}\n\nQuestion: Where is {who[asked]}?\nAnswer:", answer, 0))
    return items


kinds = {"one person": (1, 0), "two, asked for the first": (2, 0),
         "two, asked for the last": (2, 1),
         "four, asked for the second": (4, 1)}
right = {name: np.mean(evaluate.answered(model, tokenizer, scenes(60, *kind)))
         for name, kind in kinds.items()}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print("right, word for word         model   the trick")
for name, share in right.items():
    print(f"{name:26} {100 * share:5.0f} % {100 / kinds[name][0]:9.0f} %")

# %% jupyter={"outputs_hidden": true}
assert (right["one person"] > 0.9
        and right["four, asked for the second"] < right["one person"] + 0.05)
style.say("One person: more than 90 % right. But one person cannot tell the model from the "
          "trick; two and four can.")

# %% [markdown]
# With one person it finds the place, among twenty places that it knows: that is a skill, and no table of word pairs has it. Whether it looks for *whose* place it
# is, only the other lines can say. Where the two columns are alike, nothing is shown but the trick; a model that is asked for the *last* person and names the last place
# has not shown more either. Keep this in mind when a model impresses you: what would a simpler trick have answered?
#
# **How much has it learned altogether?** Ask the model to guess each next token of texts that it never saw. There are 2048 tokens, so
# pure guessing costs $\log_2 2048 = 11$ bits a token. Who has learned needs fewer. As a control, the same network before training.

# %%
@torch.inference_mode()
def bits_per_token(model, text):
    """The mean of -log2 P(next token) over the first 1024 tokens of a text."""
    ids = torch.tensor([tokenizer.encode(text, bos=True)[:1024]])    # 1 x T
    logits = model(ids[:, :-1])                                      # 1 x T-1 x vocab
    return F.cross_entropy(logits[0], ids[0, 1:]).item() / math.log(2)


unseen = {"a story of TinyWorld": mixture.document("stories", "heldout", 6),
          "Ecclesiastes": next(d
                               for d in documents("heldout") if d.name == "Ecclesiastes").text}
torch.manual_seed(0)
untrained = minids.Model(config)
bits = {name: [bits_per_token(m, text) for m in (untrained, model)]
        for name, text in unseen.items()}

# %% tags=["nbval-ignore-output"]
print(f"guessing blindly: {math.log2(config.vocab_size):.2f} bits a token")
for name, (before, after) in bits.items():
    print(f"{name:22} before training {before:5.2f}, after {after:5.2f}")

# %%
story, book = bits.values()
assert story[1] < 2 and book[1] < 6.5 < 10.5 < min(story[0], book[0])
style.say("On a story that the model never saw, training saves more than four fifths of the "
          "bits, on a book of the Bible more than two fifths.")
print("The untrained control saves nothing.")

# %% [markdown]
# TinyWorld is small enough for two million parameters; English is not. (Ecclesiastes is a book of the Bible, kept out of the training text.) Lesson 12 goes on from here with
# problems whose answers can be checked.
#
# Lesson 10 trains such a model in front of you. The command that made this one is `minids train --preset nano --data mix`.
#
# ## 2. The doctor
# One call says whether this machine is ready, and what to do if not. In a terminal it is `minids doctor`.

# %% tags=["nbval-ignore-output"]
ready = doctor()

# %%
with torch.inference_mode():
    logits = model(torch.tensor([[0, 5, 7]]))         # 1 x 3 x vocab
assert logits.shape == (1, 3, config.vocab_size) and logits.isfinite().all()
print("The shipped model loads and computes: you can go on.")
print("If a line above begins with PROBLEM, it says what to mend.")

# %% [markdown]
# ## 3. What V4 is, in numbers
# DeepSeek released two models on 2026-04-24, with open weights: **Flash** and **Pro**. Their `config.json` files are in
# `data/v4`. `minids.cost` counts what
# follows from them. Nothing is downloaded, and nothing is built.
#
# A few words first, each in one sentence. An **expert** is a small network, of which a layer has hundreds; for each token a router chooses a few. The tokens read so far are the
# **context**; the **cache** is what the model keeps of them. **FP8** and **FP4** are numbers of eight and of four bits, **BF16** of sixteen. **MTP** is one more block, which guesses the token after
# the next. **V3.2** is DeepSeek's model before V4.
#
# **Predict before you run.** Pro has 5.5 times the parameters of Flash. After a million tokens of context, how many times
# the work of Flash does Pro do
# for the next token? (a) 5.5, (b) about 2.6, (c) 1, since the context decides.

# %% jupyter={"outputs_hidden": true}
nano = config
flash = minids.Config.from_json(data("v4", "flash.config.json"))
pro = minids.Config.from_json(data("v4", "pro.config.json"))
million = 2**20  # 1,048,576 tokens: the longest context of V4
sizes = [cost.params(c)["total"] for c in (pro, flash)]
work = [cost.flops(c, million)["total"] for c in (pro, flash)]
print(f"parameters, Pro : Flash              {sizes[0] / sizes[1]:.2f}")
print(f"work for a token at 1M, Pro : Flash  {work[0] / work[1]:.2f}")

# %% [markdown]
# (b). Most parameters rest while a token passes, and a part of the work grows with the context instead of the parameters.
# The whole picture:

# %% jupyter={"source_hidden": true}
MEANS = {
    "parameters": "numbers that training sets, without the MTP block",
    "active parameters": "take part in one token, without the table of embeddings",
    "active share": "the rest: experts not chosen, and the embeddings",
    "layers": "blocks, one after another",
    "routed experts at work": "chosen anew for each token, in each layer",
    "tensors on disk": "arrays in the released files, MTP included",
    "bytes on disk": "Flash, Pro: mostly FP4 experts, half a byte a number",
    "work for a token at 1M": "operations, in FP8 equivalents",
    "... of V3.2's work": "published: 10 % (Flash), 27 % (Pro)",
    "cache at 1M": "what one conversation keeps in memory",
    "... of V3.2's cache": "published: 7 % (Flash), 10 % (Pro)",
}


def column(c, by, unit):
    """What one configuration costs, line by line, as text."""
    n = cost.params(c)
    lines = [f"{n['total'] / by:,.2f} {unit}", f"{n['active'] / by:.2f} {unit}",
             f"{100 * n['active'] / n['total']:.1f} %", c.n_layers,
             f"{c.n_activated_experts} of {c.n_routed_experts}",
             f"{len(layout.inventory(c)):,}",
             f"{layout.disk_bytes(c) / by:.1f} {unit.replace('B', 'G')}B"]
    if c.max_seq_len < million:
        return lines + ["-"] * 4
    ops, kept = cost.flops(c, million)["total"], cost.kv_bytes(c, million)["total"]
    return [*lines, f"{ops / 1e9:.1f} GFLOP",
            f"{100 * ops / cost.flops_v32(million)['total']:.1f} %",
            f"{kept / 1e9:.2f} GB", f"{100 * kept / cost.kv_bytes_v32(million)['total']:.2f} %"]


columns = column(nano, 1e6, "M"), column(flash, 1e9, "B"), column(pro, 1e9, "B")
rows = list(map(list, zip(MEANS, *columns, MEANS.values())))
start.table(["", "nano", "Flash", "Pro", "what it means"], rows,
            "Computed from the configurations. Published: V4 report, abstract and section 1.")

# %% [markdown]
# (GFLOP: a billion operations. *FP8 equivalents*: a product of two FP4 numbers counts half, one of two 16-bit numbers twice.)
#
# Two notes on the comparison with V3.2. The report does not say how it weighs FP4, FP8 and BF16 operations; `minids.cost`
# infers weights that come close to both percentages of work; those of the cache follow from the bytes of its entries.
# And 10.55 % would round to 11, where the report prints 10: it truncates, or it counts a little differently.
#
# ### One number by hand
# Where are Flash's 284 billion parameters? An expert is three matrices between width $d$ and width $I$: two in, one out. So
# all $L$ layers with $N_r$ routed experts
# hold
# $$L \cdot N_r \cdot 3\,d\,I = 43 \cdot 256 \cdot 3 \cdot 4096 \cdot 2048$$
# ($L$, $N_r$, $d$: report, section 4.2.1). Work it out on paper to two digits, then run.

# %%
by_hand = 43 * 256 * 3 * 4096 * 2048
counted = cost.parts(flash)["routed experts"]
torch.testing.assert_close(by_hand, counted, rtol=0, atol=0)
print(f"{by_hand:,} by hand, {counted:,} by minids")
print(f"{100 * counted / cost.params(flash)['total']:.1f} % of all parameters")

# %% [markdown]
# ### What the context costs
# A model reads its own past for each new token. V4's claim is that a long past becomes cheap, since it is read in summaries: compressed sparse attention (**CSA**) makes an entry
# of every 4 tokens and reads the few that matter (an **indexer** picks them by a short **index key**, which is kept beside each entry); heavily compressed attention (**HCA**) makes one of every 128 and reads all. The last 128 tokens, the **window**, are read as they are.
# Two pictures, both axes logarithmic: a step up is a factor.

# %%
style.show(start.plot_context_cost(flash, pro),
           "Left: operations for one token against tokens of context: V4-Pro begins level with "
           "V3.2, V4-Flash far below, and both grow more slowly. Right: bytes of cache, below "
           "V3.2 at every length. At 1M the percentages of V3.2 are written beside the lines.")

# %% [markdown]
# ### Sabotage: take the compression away
# Let every layer of Flash look at every token: no CSA, no HCA, only a window as long as the context. **Predict**: how many times the work
# is that at a million tokens? Does compression help at 100 tokens too?

# %% jupyter={"outputs_hidden": true}
full = flash.replace(compress_ratios=(0,) * len(flash.compress_ratios), window_size=million)
print("  tokens   work, full : Flash   cache, full : Flash")
for n in (100, 1_000, 10_000, 100_000, million):
    ops = cost.flops(full, n)["total"] / cost.flops(flash, n)["total"]
    kept = cost.kv_bytes(full, n)["total"] / cost.kv_bytes(flash, n)["total"]
    print(f"{n:8} {ops:16.2f} x {kept:18.2f} x")

# %% [markdown]
# Without compression a token at 1M takes 98 times the work, and the cache 7 times the bytes. The control is the first line:
# at 100 tokens V4 is
# *dearer* than plain attention: in work because compressors and indexers run, in cache because entries are kept beside
# the window. At a thousand tokens compression already pays.
#
# This is arithmetic about cost. It says nothing about quality: lessons 03 to 05 measure what is lost.

# %% [markdown]
# ## 4. The network in one picture
# Black marks name the lesson that teaches a part. Start at the bottom left and follow the four green streams.
# (MTP is simplified: it reads all four streams, and the next token.)

# %%
style.show(start.plot_architecture(),
           "Left: tokens become vectors, copied into four streams; each block reads one vector "
           "from the streams, runs attention, writes back, and does the same with experts. "
           "Right: a query sees the last tokens one by one, entries of 4 tokens that the "
           "indexer picks, or all entries of 128 tokens. Below: a router sends a token to 6 "
           "experts; one shared expert always works.")

# %% [markdown]
# | part | what it does | lesson | report |
# | --- | --- | --- | --- |
# | tokens | cut text into pieces with ids | 01 | - |
# | window, sinks | every layer sees the last 128 tokens exactly; a sink lets a head look at nothing | 02 | 2.3.3 |
# | HCA | sums up 128 tokens in one entry, reads all entries | 03 | 2.3.2 |
# | CSA, its indexer | sums up stretches of 4 tokens (each entry also looks at the 4 before), reads the few that matter | 04 | 2.3.1 |
# | cache | what one token leaves for the next | 05 | 2.3.4, 3.6.1 |
# | experts | many small networks, of which a router wakes six | 06 | 2.1 |
# | four streams (mHC) | a wider road past the layers that cannot blow up | 07 | 2.2 |
# | block, head, MTP | puts it together; MTP guesses one token further | 08 | 2.1 |
# | Muon | the optimiser for the matrices | 09 | 2.4 |
# | FP8, FP4 | a number in one byte, or in half a byte | 11 | 3.4 |
#
# The kinds of attention alternate. Read the strip below from left to right as a token passes. **Which two differences
# between Flash and Pro do you see?**

# %%
style.show(start.plot_layers({"Flash": flash, "Pro": pro}),
           "Layers of Flash and Pro in order: CSA and HCA take turns. Flash begins with two "
           "window-only layers, Pro with two HCA layers. In both, the first three layers "
           "choose experts by token id.")

# %% [markdown]
# Flash has 43 layers and begins with two that see the window alone; Pro has 61 and begins with two HCA layers. A triangle
# marks a layer in which a fixed table, and not the router's score, picks the experts (lesson 06).
#
# ## 5. The life of a model in one picture
# A model is not trained once. First it learns to guess the next token of everything. Then copies of it become
# **specialists**: fine-tuned on good answers (SFT), then
# rewarded for answers that prove right (GRPO). At last one student learns from all of them, on answers that it wrote
# itself: **on-policy distillation** (report, section 5.1).

# %%
style.show(
    start.plot_lifecycle(),
    "Text is pre-trained into a base model, from which specialists for mathematics, code, "
    "agents and instructions are made; on-policy distillation joins more than ten teachers "
    "into one student, which is run and evaluated. Marks name lessons 01 and 09 to 14.")

# %% [markdown]
# ## 6. The map of the course
# Each lesson stands alone: it starts from what `data/` ships. "Before it" says what makes it easier.

# %% tags=["nbval-ignore-output"]
start.course_table()

# %% [markdown]
# Choose a lesson. **Question to play with**: you want to understand lesson 13. What is the whole way there?

# %% tags=["nbval-ignore-output"]
start.course_map()

# %%
assert start.prerequisites("13") == ["00", "08", "10", "12"]
print("to 13 by way of", " > ".join(start.prerequisites("13")))

# %% [markdown]
# ## 7. How to work
# Run a cell with Shift+Enter. Where it says *predict*, write your answer down first: who guesses first remembers more.
# Exercises answer back:
# you write a function, `check` tries it on inputs that you do not see.
#
# ### Exercise 1: how much of a layer works? (easy, 3 minutes)
# A layer has `n_routed` experts that a router chooses from, and `n_shared` that always work. Return the share of all of the
# layer's experts
# that works for one token.

# %%
def active_share(n_routed, n_active, n_shared):
    """n_active of the n_routed experts are chosen for a token; returns a number from 0 to 1."""
    ### BEGIN SOLUTION
    return (n_active + n_shared) / (n_routed + n_shared)
    ### END SOLUTION


active_share = check("start.active_share", active_share)

# %% [markdown]
# There are three answers:
#
# | answer | means | what happens next |
# | --- | --- | --- |
# | `[passed]` | all cases agree | the notebook goes on with *your* function |
# | `[not yet]` | something differs; the usual mistakes are named | the notebook goes on with the reference |
# | `[not attempted]` | the exercise is empty | the notebook goes on with the reference |
#
# So you never get stuck. This is what two wrong attempts hear:

# %%
demonstrate("start.active_share", lambda n_routed, n_active, n_shared: n_active / n_routed)
demonstrate("start.active_share", lambda n_routed, n_active, n_shared: n_active + 0.5)

# %%
hint("start.active_share")

# %%
for name, c in (("Flash", flash), ("Pro", pro), ("nano", nano)):
    share = active_share(c.n_routed_experts, c.n_activated_experts, c.n_shared_experts)
    print(f"{name:6} {100 * share:5.2f} % of a layer's experts work for one token")

# %% [markdown]
# Fewer than the 4.7 % and 3.1 % of *all* parameters in section 3: there attention and the last matrix, the head, are counted too, which work for every token.
#
# **Start again.** Empty one exercise: delete your lines and write `raise NotImplementedError`. The whole notebook: *Restart*
# in the menu *Kernel*; `git checkout -- notebooks/00_start_here.ipynb` in a terminal brings back the shipped file. Progress:
# delete `progress.json` in the folder `.minids` of your home (or where `MINIDS_HOME` points).

# %% [markdown]
# ## 8. Quality against price
# Why does the world care? Because of pictures like the next ones. Read them slowly: **every score is DeepSeek's own**, from
# its model card of April 2026, the rivals'
# columns included. Prices are per million tokens, and each has a date.

# %%
start.price_table()

# %% [markdown]
# A job reads tokens and writes tokens, and writing is dearer. So one price needs a mix.
#
# ### Exercise 2: mend the bill (debug, 5 minutes)
# `broken_price` should give dollars for a million tokens of a job that reads `tokens_in` and writes `tokens_out`. It is
# wrong. Run it, find out why, write it right.
# Small enough for paper: 3000 tokens read at 2.50 dollars a million, 1000 written at 15.00 dollars a million.

# %%
def broken_price(input_usd, output_usd, tokens_in, tokens_out):
    return (input_usd * tokens_in / tokens_in + output_usd * tokens_out / tokens_out) / 2


print(f"3000 read, 1000 written: {broken_price(2.50, 15.00, 3000, 1000)}")
print(f"1000 read, 3000 written: {broken_price(2.50, 15.00, 1000, 3000)}")

# %%
def blended_price(input_usd, output_usd, tokens_in, tokens_out):
    """Prices in US dollars for a million tokens -> the price of a million tokens of this
    mix."""
    ### BEGIN SOLUTION
    return (input_usd * tokens_in + output_usd * tokens_out) / (tokens_in + tokens_out)
    ### END SOLUTION


blended_price = check("start.blended_price", blended_price)

# %%
print(f"3000 read, 1000 written: {blended_price(2.50, 15.00, 3000, 1000)}")
print(f"1000 read, 3000 written: {blended_price(2.50, 15.00, 1000, 3000)}")

# %% [markdown]
# Now the picture. The price axis is logarithmic; up and to the left is better. A hollow mark is Pro's launch price, the
# arrow leads to the price since 2026-05-22. A cross in
# the grey strip has a price and **no published score**: missing is not zero.

# %%
style.show(start.plot_price_quality("LiveCodeBench (Pass@1)", 3),
           "Score on LiveCodeBench against the price of a million tokens, three read for each "
           "one written: V4-Flash and V4-Pro are cheapest, V4-Pro has the highest score; for "
           "GPT-5.4 no score was published.")

# %% [markdown]
# Choose a benchmark and a mix. **Questions to play with**: on which benchmarks does the cheapest model come last? As more
# tokens are read for each one written, does Pro's lead in
# price over Claude Opus 4.6 grow or shrink, and why?

# %%
explorer = style.slider_image(
    start.plot_price_quality, "Score against price for one benchmark and one mix",
    benchmark=list(start.scores()), read_per_written=[1, 3, 10, 30, 100])
display(explorer)

# %%
explorer.peek(benchmark="SWE Pro (Resolved)", read_per_written=30)
rows = start.published("prices")
opus = next(row for row in rows if row["model"] == "Claude Opus 4.6")
launch, later = (row for row in rows if row["model"] == start.PRO)
print("read per written   Opus 4.6 costs ... times V4-Pro at launch, since 2026-05-22")
for ratio in (1, 3, 10, 30, 100):
    usd = start.blended(opus, ratio)
    print(f"{ratio:16} {usd / start.blended(launch, ratio):21.1f} "
          f"{usd / start.blended(later, ratio):24.1f}")

# %% [markdown]
# The lead shrinks: Opus charges five times its input price for output, V4-Pro twice. So "so many times cheaper" is a
# statement about a mix and a date.
#
# **Who wins?** Count before you believe the picture above, which shows one benchmark out of 22.

# %%
wins = {}
for benchmark, row in start.scores().items():
    known = {name: score for name, score in row.items() if score is not None}
    best = max(known, key=known.get)
    wins[best] = wins.get(best, 0) + 1
    if best == start.PRO:
        missing = [name for name in row if name not in known]
        print(f"V4-Pro is first on {benchmark}; without a figure: "
              f"{', '.join(missing) or 'nobody'}")
style.say("first on: " + ", ".join(f"{name} {wins.get(name, 0)}" for name in start.MODELS))

# %%
last = [benchmark for benchmark, row in start.scores().items()
        if row[start.FLASH] == min(score for score in row.values() if score is not None)]
print(f"V4-Flash, the cheapest, is last or level with the last of six on {len(last)} of "
      f"{len(start.scores())}:")
style.say(", ".join(last))

# %% [markdown]
# V4-Pro has the highest of these scores three times in 22, and on two of the three a rival has no figure. The picture that
# we chose first was one of these two.
# That is how a picture persuades.
#
# ### What thinking buys
# V4 has three modes: **Non-think** answers at once, **High** thinks before it answers, **Max** thinks as long as it takes
# (report, section 5.1.1).
#
# **Predict before you run**: Flash in mode Max against Pro in mode Non-think, 18 benchmarks that have both figures. On how
# many is Flash ahead?

# %% jupyter={"outputs_hidden": true}
style.show(start.plot_modes(),
           "Scores of V4-Flash and V4-Pro in the modes Non-think, High and Max. Thinking buys "
           "most in mathematics, code contests and the two tests of long contexts (top rows), "
           "little in software engineering and general knowledge (bottom). Two benchmarks have "
           "no figure for Non-think.")

# %% jupyter={"outputs_hidden": true}
both = [row
        for row in start.published("benchmarks_modes") if row["V4-Pro Non-think"] is not None]
ahead = [row for row in both if row["V4-Flash Max"] > row["V4-Pro Non-think"]]
print(f"Flash Max is ahead of Pro Non-think on {len(ahead)} of {len(both)} benchmarks, not on:")
for row in both:
    if row not in ahead:
        print(f"  {row['benchmark']:26} {row['V4-Flash Max']} against "
              f"{row['V4-Pro Non-think']}")

# %% [markdown]
# A small model that thinks beats a large one that does not, almost everywhere. The largest gap of the three that remain is
# SimpleQA, plain facts: thinking helps to recall them (Flash goes from 23 to 34), but does not make up for what a small
# model has not stored.
#
# **What you cannot conclude**
# - *That a score is right.* All are the vendor's own; nobody else's run is in the table.
# - *What an answer costs.* A price is for a million tokens. How many tokens a mode writes is not in the table; the modes
#   were trained with different length penalties (report, section 5.1.1).
# - *That the efforts are alike.* The columns say "xHigh", "Max", "High", "Thinking": each maker's own setting.
# - *That the price holds.* Pro's fell by 75 % in four weeks. Only the DeepSeek rows carry two dates. Gemini's row holds for
#   prompts up to 200K tokens.
# - *That architecture makes the price.* A price contains hardware, margin and market.
# - *Anything about a missing figure.* GLM-5.1 has scores but no price in our tables, so it is not drawn.

# %% [markdown]
# ## 9. One more exercise
# ### Exercise 3: what the cache holds (extend, 10 minutes)
# Section 3 counted 3.62 GB of cache for Flash at a million tokens. Count it yourself. After `n` tokens
# - each layer keeps the last `window` tokens, each as one entry (fewer while there are not as many),
# - a layer with ratio `m` above 0 also keeps one compressed entry for every `m` tokens; a group that is not full gives none,
# - a CSA layer (`m == 4`) keeps an index key beside each compressed entry.
#
# An entry takes 576 bytes: 448 channels in FP8 and 64 in BF16. An index key takes 64: 128 channels in FP4 (report, sections
# 2.3.4 and 4.2.1).

# %%
def cache_bytes(ratios, n, entry=576, index_key=64, window=128):
    """ratios: one number a layer (0 window only, 4 CSA, more HCA) -> bytes of cache after n
    tokens"""
    ### BEGIN SOLUTION
    total = 0
    for m in ratios:
        total += min(n, window) * entry
        if m:
            total += n // m * (entry + (index_key if m == 4 else 0))
    return total
    ### END SOLUTION


cache_bytes = check("start.cache_bytes", cache_bytes)

# %%
for name, c in (("Flash", flash), ("Pro", pro)):
    mine = cache_bytes(c.compress_ratios[: c.n_layers], million)
    theirs = cost.kv_bytes(c, million)["total"]
    torch.testing.assert_close(float(mine), float(theirs), rtol=0, atol=0)
    print(f"{name:6} {mine / 1e9:.2f} GB, as minids.cost counts it")
for kind, m in (("CSA", 4), ("HCA", 128), ("window-only", 0)):
    print(f"one {kind} layer: {cache_bytes([m], million) / 1e6:.2f} MB")

# %% [markdown]
# ### Your progress
# Passed exercises are remembered in your own folder, across restarts.

# %% tags=["nbval-ignore-output"]
progress()

# %% [markdown]
# ## 10. Alone, or with a class
# **Alone.** One lesson in one sitting. Cover the output below a *predict*. Try an exercise for its minutes, then take a
# hint, then another. After the lesson, write down
# one thing that you could not have said before. If you have little time: 00, 08, 10.
#
# **With a class.** Everybody runs `minids doctor` the day before. Predictions by show of hands, before anybody runs the
# cell. Pairs for exercises.
#
# | path | lessons | drop first |
# | --- | --- | --- |
# | 90 minutes | 00 up to section 5 (30), 08 the block (30), 10 the training run (30) | in section 3 the sabotage and *one number by hand* |
# | half a day | 00 (40), 02 and 04 (60), 08 (50), 10 (50), discussion (20) | section 8 here |
# | two days | first day 00 to 08, second day 09 to 14, 15 as a demonstration | 03 and 11 as reading |
#
# The solved edition, with notes for teachers, is in
# `notebooks/solutions/`.

# %% [markdown] tags=["solution"]
# ### Notes for teachers
# - Section 1 carries the room: let three people shout prompts (a scene of TinyWorld goes best), and run `go_on` with them;
#   take the vote on one, two and four people before the cell runs. Say early that the model is
#   158,700 times smaller than Flash.
# - The common error in exercise 1 is to forget the shared expert; in exercise 3, to give HCA layers index keys. Both are
#   named by the check.
# - Section 3 can be cut to the table and the sabotage. Section 8 is a lesson of its own on reading vendors' tables: 20
#   minutes with discussion, or none.
# - Somebody will ask which model is best. The cell that counts the wins, and the list after the modes, is the answer.

# %% [markdown]
# ## 11. In the real V4, and what our scale can show
# The nano model has every mechanism of the real one, and the real one's file format. It has 1/158,700 of Flash's parameters
# (both without MTP), a vocabulary of 2048 tokens instead of 129,280, and it read
# some million tokens (counted below), most of them made by a program, where Flash read 32 trillion (report, section 4.2.2).
#
# **At this scale we can show** that the code is right (equal to `transformers`, number by number), what each mechanism
# computes and costs, and that
# training works. **We cannot show** that V4's choices are the best ones at a trillion parameters, nor reasoning, nor
# knowledge, nor a useful million-token context.
# For these we quote the report, and say so.

# %%
ratio = cost.params(flash)["total"] / cost.params(nano)["total"]
print(f"Flash has {ratio:,.0f} times the parameters of nano")
read = TrainConfig.preset("nano", "mix").tokens           # what the command in section 1 reads
print(f"... and read {32e12 / read:,.0f} times its tokens: 32 T against {read / 1e6:.1f} M")

# %% [markdown]
# ## Key points
# - One class, `minids.Model`, is both the tiny model here and the real one; only the `Config` differs.
# - Of Flash's parameters 97.4 % are routed experts, and 4.7 % of all parameters work for one token.
# - V4 compresses its past: 4 to 1 with a choice (CSA), 128 to 1 without (HCA), the last 128 tokens exactly.
# - At a million tokens this leaves Pro 26.8 % and Flash 10.1 % of V3.2's work, and 10.55 % and 7.37 % of its cache. At a
#   hundred tokens compression saves nothing: the same model without it is cheaper.
# - Benchmarks are claims with an author and a date. Missing is not zero, and a price is not a cost.
#
# ## Questions to discuss
# <details><summary>1. Flash has 284 B parameters and 13 B work for a token. Why keep the other 271 B in memory at
# all?</summary>
#
# Another token needs others of them: the router chooses anew for each token and layer. *"They are spare parts"* is wrong:
# over a long text nearly all are used.
# *"They could stay on disk"* is half right: one sequence could read them on demand, slowly; a server with many users needs
# all of them all the time.
# </details>
#
# <details><summary>2. Pro has 3.7 times the active parameters of Flash. Why is its token at 1M only 2.6 times the
# work?</summary>
#
# The weights cost in proportion to the active parameters. Attention over the past costs in proportion to layers, heads and
# entries read, and an indexer has
# the same size in both models. At 1M the indexer alone is 37 % of Flash's work and 20 % of Pro's. *"Because of FP4"* is
# wrong: both use it alike.
# </details>
#
# <details><summary>3. A headline says "V4-Pro: 93.5 on LiveCodeBench for a 23rd of the price of Opus". What would you
# ask?</summary>
#
# Who measured (DeepSeek). Which mode (Max), and how many tokens it wrote (not in the table). Which mix (one token read for
# each one written; at 100 to 1 the factor is 12). Which
# date (since 2026-05-22; at launch it was 6). Which other benchmarks (Opus is ahead on several). *"Is it true?"* is not the
# best question: each number is in the tables.
# </details>
#
# <details><summary>4. Our model needs few bits for a token of a story, and several times as many for one of Ecclesiastes. Has it understood stories?</summary>
#
# It predicts, which is all that bits measure. TinyWorld's sentences follow a few dozen patterns, so most of a sentence is known once it has
# begun: low bits do not need understanding. The tests with two and four people asked for more than that. *"No, it only memorised"* does not follow either: the story
# was not in its text. A table of token triples predicts too; lesson 10 compares the two.
# </details>
#
# ## Links
# - [DeepSeek-V4's weights and technical report](https://huggingface.co/collections/deepseek-ai/deepseek-v4)
# - [DeepSeek-V3's report](https://arxiv.org/abs/2412.19437): experts without a balance loss, MTP
# - [Karpathy, nanochat](https://github.com/karpathy/nanochat): a whole chat model in readable code
# - [The annotated transformer](https://nlp.seas.harvard.edu/annotated-transformer/), if attention is new to you
# - The published tables of this course and their sources: [data/published/README.md](../data/published/README.md)
