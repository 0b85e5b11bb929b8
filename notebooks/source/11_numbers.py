# %% [markdown]
# # 11 Numbers in 4 and 8 bits
#
# **Nearly all of V4's weights are one of fifteen numbers times a scale. Our small model hardly notices such rounding; where rounding hurts, training with it in view repairs a good part.**
#
# **After this you can**
# - read any small float from its bits, and say which numbers FP8 and FP4 hold,
# - round a block of numbers to FP4 with a power-of-two scale, and unpack the bytes of a released file,
# - measure what a format costs, in error of weights and in loss of a model, and tell noise from damage,
# - name three ways to get it wrong that run without an error message,
# - explain what a Hadamard turn does for outliers, and where it stops helping,
# - prove when FP4 becomes FP8 without any loss,
# - train through rounding, and say why float32 masters are needed,
# - account for the bytes of V4-Flash and V4-Pro, format by format.
#
# *Time: 148 minutes, exercises included. The code itself
# runs in about a minute on two idle cores.*
# *Before this: PyTorch. Experts (lesson 06) and the indexer (lesson 04) are used here, but you need not have taken them.*

# %%
import copy
import math
import tempfile
from pathlib import Path
from unittest import mock

import minids
import torch
from minids import Config, cost
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.learn import check, hint, versions
from minids.model import activations
from minids.numerics import FP4_VALUES, fake_quant, fp4_decode, fp8_decode, fp8_encode
from minids.pretrain import qat
from minids.pretrain.batches import batch_at
from minids.pretrain.losses import stream_loss
from minids.pretrain.optim import make_optimiser
from minids.pretrain.run_folder import read_log
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train_step
from minids.show import numbers, style
from minids.system import paths
from minids.weights import layout, rounding
from minids.weights.checkpoint import Checkpoint

style.use()
versions()

# %% [markdown]
# ## A cold open: how many different numbers?
#
# Here is the shipped nano model: two million weights that tell stories. Look at one row of one of its experts, the first 32 weights, divided by the power of two that goes with them.

# %%
folder = paths.data("checkpoints", "nano")
shipped = minids.load(folder)
w = shipped.layers[1].ffn.experts[0].w1.weight.detach()             # 64 128
scale = 2.0 ** math.ceil(math.log2(w[0, :32].abs().max() / 6))
print(f"first weights: {[round(v, 4) for v in w[0, :8].tolist()]}")
style.say(f"divided by {scale}: {(w[0, :32] / scale).tolist()}")

# %% [markdown]
# **Predict before you run:** we divide *all* expert weights of the model by the scales of their blocks of 32. How many different numbers are left? And by how much did the loss rise when
# the trained model was rounded for its file (experts to these, other matrices to FP8 and BF16)?

# %% jupyter={"outputs_hidden": true}
experts, codes = [name for name in shipped.state_dict() if ".experts." in name], []
with Checkpoint(folder) as file:
    for name in experts:
        scale = file.raw(name.replace("weight", "scale")).float()               # o i/32
        codes.append(file.read(name).unflatten(1, (-1, 32)) / scale[..., None])     # o i/32 32
codes = torch.cat([c.flatten() for c in codes])
log = read_log(folder)
before, after = (next(r[key] for r in log if key in r)
                 for key in ("heldout_loss", "rounded_loss"))
style.say(f"{len(codes):,} weights, {len(codes.unique())} different numbers: "
          f"{codes.unique().tolist()}")
style.say(f"held-out loss of the trained model: {before:.4f} nats; after rounding: {after:.4f} "
          "(from the run's log)")

# %% [markdown]
# Fifteen (+0 and -0 count as one number: 16 codes). Nearly a million weights hold fifteen different numbers between them, and the loss rose in the third digit after the point. Real V4 stores 97 % of its weights this way (lesson 08).
# This lesson shows how that works, how it goes wrong, and why it is *too easy* at our scale.
#
# ## 1. A number from its bits
#
# A **float** is a sign, an exponent and a mantissa. V4 uses two small floats, and a format for scales that is only an exponent:

# %% jupyter={"source_hidden": true}
style.show(numbers.plot_bit_fields(), "The bits of E2M1, E4M3 and E8M0: sign, exponent, "
           "mantissa; E8M0 has only an exponent")

# %% [markdown]
# The name tells the bits: **E4M3** has 4 bits of exponent and 3 of mantissa. With the exponent's field $e$, the mantissa's field $m$ of $M$ bits, and the bias $b$:
#
# $$ x = \begin{cases} \pm\,(1 + m / 2^M) \cdot 2^{\,e - b} & e > 0 \quad \text{(normal)} \\ \pm\,(m / 2^M) \cdot 2^{\,1 - b} & e = 0 \quad \text{(subnormal)} \end{cases} $$
#
# The bias is 1 for E2M1 (FP4) and 7 for E4M3 (FP8). E4M3 here has no infinities; only the codes 7F and FF are "not a number". E8M0 is only an exponent: the byte $k$ means $2^{k - 127}$, and FF is "not a number".
#
# By hand, E2M1: `0 10 1` has $e = 2, m = 1$: $(1 + 1/2) \cdot 2^{2-1} = 3$. `0 00 1` is subnormal: $(1/2) \cdot 2^0 = 0.5$.
# E4M3: byte 7E = `0 1111 110`: $(1 + 6/8) \cdot 2^{15-7} = 448$, the largest. Byte 01: $(1/8) \cdot 2^{-6} = 2^{-9}$, the smallest.
#
# ### Exercise 1: any small float
# *Easy, 8 minutes.* Cut the code into its three fields, then follow the equation. Whole-number operations are enough: `//`, `%` and `>>`.

# %%
def decode(code, e_bits, m_bits, bias):
    """The number that the whole number `code` stands for: its top bit is the sign, then e_bits
    of exponent, then m_bits of mantissa. All codes are finite numbers here. -> float"""
    ### BEGIN SOLUTION
    mantissa, field = code % 2**m_bits, code // 2**m_bits % 2**e_bits
    sign = -1.0 if code >> (e_bits + m_bits) else 1.0
    if field == 0:
        return sign * mantissa / 2**m_bits * 2.0 ** (1 - bias)
    return sign * (1 + mantissa / 2**m_bits) * 2.0 ** (field - bias)
    ### END SOLUTION


# %%
decode = check("numbers.decode", decode)
assert [decode(code, 2, 1, 1) for code in range(16)] == list(FP4_VALUES)
bytes_ = torch.tensor([code for code in range(256) if code not in (0x7F, 0xFF)],
                      dtype=torch.uint8)
assert (bytes_.view(torch.float8_e4m3fn).float().tolist()
        == [decode(code, 4, 3, 7) for code in bytes_.tolist()])
print("equal to minids' 16 numbers of FP4, and to torch's float8_e4m3fn for all 254 codes")

# %% jupyter={"source_hidden": true}
style.show(numbers.plot_fp4_line(), "All numbers of FP4 on a line with their codes: dense near "
           "0, at most 6; the positive ones are 0, 0.5, 1, 1.5, 2, 3, 4, 6 (0 has a second "
           "code, 1000, which is not shown)")

# %% [markdown]
# **Predict before you run:** FP8 (E4M3) has 126 numbers above 0. How many of them are below 1?

# %% jupyter={"outputs_hidden": true}
positive = {"E4M3": numbers.positive_numbers(torch.float8_e4m3fn),
            "E5M2": numbers.positive_numbers(torch.float8_e5m2)}
print("E4M3:", sum(positive["E4M3"] < 1), "of", len(positive["E4M3"]),
      "positive numbers are below 1")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_density(positive), "Left: E4M3 has 8 numbers in each octave from "
           "2^-6 to 2^7, E5M2 has 4 over a wider range. Right: the distance to the next number "
           "stays between 6 and 12 percent for E4M3 until it grows among subnormals")

# %% [markdown]
# A little less than half: 7 subnormal ones and 6 octaves of 8. A float gives each *octave*, each doubling, equally many numbers: 8 in E4M3. So its **relative** error is about the same everywhere: at most half of 1/8, 6 %, down to $2^{-6}$. E5M2, the other 8-bit format,
# trades one bit of precision for range. V4's files have no E5M2: a block's scale brings all the range that is needed.
#
# ## 2. A block and its scale
#
# FP4's largest number is 6. Weights are 0.1 or 0.001. So a **block** of numbers shares a **scale** $s$, and the code is that of $x / s$:
#
# $$ s = 2^{\lceil \log_2 (\max |x| / 6) \rceil}, \qquad \hat x = s \cdot \mathrm{nearest}(x / s) $$
#
# The exponent is rounded **up**, so that nothing exceeds 6. A **tie**, halfway between two FP4 numbers, goes to the one whose *code* is even (its last bit is 0): 0, 1, 2 or 4. FP4 weights in V4 have a scale for 32 columns of a row (report 3.4).
# The bytes are those of MXFP4 (Rouhani et al., 2023); the rule for the scale is V4's: theirs is $2^{\lfloor \log_2 \max|x| \rfloor - 2}$, which clips what lies between 6 and 8 scales. FP8 weights have one for 128 x 128 numbers, with 448 instead of 6.
#
# By hand: the block (0.70, -0.11, 0.26, 0.04). $0.70 / 6 = 0.117$, so $s = 2^{-3} = 0.125$. Divided: (5.6, -0.88, 2.08, 0.32). Nearest: (6, -1, 2, 0.5). Times $s$: (0.75, -0.125, 0.25, 0.0625).
#
# **Predict before you run:** a block's largest number is 6.0. Now it becomes 6.1. What happens to the scale, and what to a 0.5 in the same block?

# %% jupyter={"outputs_hidden": true}
for largest in (6.0, 6.1):
    block = torch.zeros(32)
    block[:4] = torch.tensor([largest, 0.5, 2.9, 0.2])
    print(f"largest {largest}:", [round(v, 4) for v in block[:4].tolist()], "->",
          fake_quant(block, "fp4")[:4].tolist())

# %% [markdown]
# The scale doubles, and with it the distance between codes. The 0.5 is now in the middle of 0 and 1, which have the codes 0000 and 0001, and the tie goes to the even one: **a neighbour's growth has erased it.** The largest number of a block decides
# for all.
#
# ### Exercise 2: round a block
# *Medium, 10 minutes.* The equation above for one block. Test yours on (0.70, -0.11, 0.26, 0.04), filled up with zeros, before you run the check.

# %%
GRID = torch.tensor(FP4_VALUES[:8])         # 0, .5, 1, 1.5, 2, 3, 4, 6: the codes 0 to 7


def round_block(x):
    """x: 32 numbers, float32, not all 0 -> (the rounded numbers, 32, float32; the scale, a
    float).

    Signs stay. Of two nearest codes the even one wins.
    """
    ### BEGIN SOLUTION
    scale = 2.0 ** math.ceil(math.log2(x.abs().max().item() / 6))
    a = (x / scale).abs()
    codes = sum((a > t).int() for t in (0.25, 1.25, 2.5,
                                        5.0)) + sum((a >= t).int() for t in (0.75, 1.75, 3.5))
    return torch.copysign(torch.tensor(FP4_VALUES)[codes], x) * scale, scale
    ### END SOLUTION


# %%
round_block = check("numbers.round_block", round_block)
row = torch.randn(128, generator=torch.Generator().manual_seed(0))
mine = torch.cat([round_block(block)[0] for block in row.split(32)])
torch.testing.assert_close(mine, fake_quant(row, "fp4"), atol=0, rtol=0)
print("equal to minids.numerics.fake_quant, bit for bit")

# %% [markdown]
# ### Why powers of two?
#
# A scale of exactly max / 6 would use the whole range. What does the power of two cost, and what would it cost to round its exponent *down*, so that blocks use the range better and a few numbers are clipped at 6?
# **Predict before you run:** for which largest numbers is rounding down better?

# %%
def error_with(rule, x):
    """Relative error of blocks x, N 32, when the scale's exponent is chosen by `rule`;
    beyond 6 numbers are clipped."""
    s = 2.0 ** rule((x.abs().amax(1, keepdim=True) / 6).log2())              # N 1
    a = (x / s).abs().clamp(max=6)
    y = GRID[(a[..., None] - GRID).abs().argmin(-1)] * s                     # N 32
    return ((y - x.abs()).square().mean() / x.square().mean()).sqrt().item()


blocks = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
blocks = blocks / blocks.abs().amax(1, keepdim=True)                         # largest number 1
largest = [2 ** (k / 16) for k in range(-8, 41)]
rules = {"rounded up": torch.ceil, "rounded down": torch.floor, "not rounded": lambda e: e}
errors = {name: [error_with(rule, blocks * size) for size in largest]
          for name, rule in rules.items()}

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_scale_rules(largest, errors, [0.75, 1.5, 3, 6]),
           "Error of normally distributed blocks over their largest number, the same in each "
           "octave. Rounding down is slightly better just above 1.5 and 3, and much worse just "
           "below 3 and 6; scales that are not rounded give a flat line")

# %% jupyter={"outputs_hidden": true}
mean = {name: sum(values) / len(values) for name, values in errors.items()}
for name, value in mean.items():
    print(f"{name:13} mean error {value:.1%}, worst {max(errors[name]):.1%}")
assert mean["not rounded"] < mean["rounded up"] < mean["rounded down"]

# %% [markdown]
# Rounding up costs little against an exact scale. Rounding down wins right above 0.75, 1.5 and 3 (and 6, 12, ...): there max / 6 is just above a power of two, and clipping is slight. It loses far more elsewhere. What one gets for the power of two:
# - the scale is one byte (E8M0), half of a BF16 number,
# - multiplying with it **is exact**: only the exponent changes. Rounding twice changes nothing: either the scale stays, or the largest number became 3 scales; then the scale halves, and twice 0, 0.5, 1, 1.5, 2, 3 are FP4 numbers too. And FP4 fits into FP8 (section 6),
# - a chip can apply it by adding integers.
#
# ## 3. The bytes of a file
#
# Two FP4 codes share a byte: the **low** half (the last hexadecimal digit) is column $2j$, the **high** half is column $2j + 1$. By hand, the bytes `21 7F 90 0A` with the scale byte `7C`:
#
# | byte | low half | high half | numbers | times $2^{124 - 127} = 2^{-3}$ |
# | --- | --- | --- | --- | --- |
# | 21 | 1 | 2 | 0.5, 1 | 0.0625, 0.125 |
# | 7F | F | 7 | -6, 6 | -0.75, 0.75 |
# | 90 | 0 | 9 | 0, -0.5 | 0, -0.0625 |
# | 0A | A | 0 | -1, 0 | -0.125, 0 |
#
# And FP8: the bytes `38 7E B8 01` with the scale byte `75`, $2^{117 - 127} = 2^{-10}$. **Predict before you run:** `38` is `0 0111 000`. Which number is that? And the four with the scale?

# %% jupyter={"outputs_hidden": true}
codes8 = torch.tensor([[0x38, 0x7E, 0xB8, 0x01]], dtype=torch.uint8).view(torch.float8_e4m3fn)
scale8 = torch.tensor([[0x75]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
print("codes:  ", codes8.float().tolist()[0])
print("numbers:", fp8_decode(codes8, scale8).tolist()[0])

# %% [markdown]
# ### Exercise 3: find two faults
# *Medium, 12 minutes.* A colleague unpacks FP4 like this. It runs, shapes are right, and the numbers look like weights. There are **two** faults. Decode the worked example with it: that shows one of them. For the other think of a row of several blocks. Then write the repaired version.

# %%
def colleagues_unpack(packed, scale):
    """packed: o i/2, scale: o i/32, both uint8 -> o i, float32. Two faults."""
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)          # o i
    s = torch.exp2(scale.float() - 127)                                         # o i/32
    return torch.tensor(FP4_VALUES)[codes.long()] * s.repeat(1, 32)


worked = torch.tensor([[0x21, 0x7F, 0x90, 0x0A] + [0] * 12], dtype=torch.uint8)
print(colleagues_unpack(worked, torch.tensor([[0x7C]], dtype=torch.uint8))[0, :8].tolist())


# %%
def unpack(packed, scale):
    """Your version. packed: o i/2, scale: o i/32, both uint8 -> o i, float32."""
    ### BEGIN SOLUTION
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)          # o i
    s = torch.exp2(scale.float() - 127).repeat_interleave(32, dim=1)            # o i
    return torch.tensor(FP4_VALUES)[codes.long()] * s
    ### END SOLUTION


# %%
unpack = check("numbers.unpack", unpack)
name = experts[5]
with Checkpoint(folder) as file:
    packed, scales = file.raw(name), file.raw(name.replace("weight", "scale"))
mine = unpack(packed.view(torch.uint8), scales.view(torch.uint8))
torch.testing.assert_close(mine, fp4_decode(packed, scales), atol=0, rtol=0)
torch.testing.assert_close(mine, shipped.state_dict()[name], atol=0, rtol=0)
print(f"{name}: {tuple(packed.shape)} bytes, {tuple(mine.shape)} numbers, equal to minids.load")

# %% [markdown]
# ### Sabotage: wrong numbers that look right
#
# What does a model make of such faults? We damage **all** of nano's experts in four ways and measure the loss on text that it has not seen.
# 1. *halves swapped*: each pair of neighbouring columns changes places,
# 2. *scales down*: codes were made with the scale rounded down, and numbers beyond 6 clipped (the code divides by 6.001, so that a largest number stored as exactly 6 counts as below 6: before it was rounded it mostly lay between 5 and 6, and its scale rounded down would have been half as large),
# 3. *scales of another axis*: the scales, stored row by row ($o \times i/32$), are read as if stored column by column ($i/32 \times o$): most blocks get the scale of another row,
# 4. *rounded twice*: FP4 once more, as it should be (the control).
#
# **Predict before you run:** sort the four by damage.

# %%
tokenizer = Tokenizer.load()
tokens = mixture.streams(100_000, tokenizer)
WINDOWS = [tokens["valid"][i * 1024 : (i + 1) * 1024 + 1] for i in range(6)]


def nats(model, parts=()):
    """Mean loss of each of six windows of 1,024 tokens; `parts` are rounded as in serving."""
    with rounding.serving(model, parts):
        return torch.tensor([stream_loss(model, window, 1024)[0] for window in WINDOWS])  # 6


def against(found, base):
    """Difference of two models on the same windows: its mean and its standard error."""
    difference = found - base
    return difference.mean().item(), difference.std().item() / len(difference) ** 0.5


# %%
def swapped(w):
    return w.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def scaled_down(w):
    x = w.unflatten(-1, (-1, 32))                                               # K o i/32 32
    s = 2.0 ** (x.abs().amax(-1, keepdim=True) / 6.001).log2().floor()
    a = (x / s).abs().clamp(max=6)
    return (torch.copysign(GRID[(a[..., None] - GRID).abs().argmin(-1)], x) * s).flatten(-2)


def scales_elsewhere(w):
    x = w.unflatten(-1, (-1, 32))
    s = 2.0 ** (x.abs().amax(-1, keepdim=True) / 6).log2().ceil()               # K o i/32 1
    return (x / s * s.flatten(1).view(len(s), s.shape[2], -1).mT.reshape(s.shape)).flatten(-2)


# %%
FAULTS = {"rounded twice (control)": lambda w: fake_quant(w, "fp4"), "scales down": scaled_down,
          "scales of another axis": scales_elsewhere, "halves swapped": swapped}
base, damage = nats(shipped), {}
for fault, change in FAULTS.items():
    damaged = rounding.released(shipped, lambda w, format: change(w) if format == "FP4" else w)
    damage[fault] = against(nats(damaged), base)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for fault, (difference, error) in damage.items():
    print(f"{fault:24} loss {difference:+.4f} +- {error:.4f} nats per token")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_changes(damage, "the same model, its experts written or read wrongly"),
           "The control changes nothing at all; scales rounded down and wrong scales change "
           "little; swapped halves cost by far most")

# %% jupyter={"outputs_hidden": true}
assert damage["rounded twice (control)"] == (0.0, 0.0)
assert (damage["halves swapped"][0] > 10 * damage["scales down"][0]
        and damage["halves swapped"][0] > 0.2)
style.say("control: exactly 0. Swapped halves cost more than 0.2 nats and more than ten times "
          "what scales rounded down cost.")

# %% [markdown]
# - **The control is exactly 0**: rounding what is rounded changes nothing.
# - **Swapped halves** are the worst kind of fault: every number is one that was in the matrix, so no histogram, no norm and no check of ranges sees it. But an expert then multiplies each input by its neighbour's weight.
# - **Scales** are powers of two of similar size, so wrong ones hurt less than one would think. That makes the fault easy to overlook.
#
# (Losses from here on are of six windows of validation text, 1.30 nats on the mean, so they differ from the log's 1.44.) Even with the worst of the four the loss is about 2.4 nats, far below the 7.6 of a model that knows nothing (ln 2048): experts are only a part of what it knows. **Compare bytes with a worked example, not text with expectations.**
#
# ## 4. What a format costs
#
# Now the error of honest rounding, on nano's own matrices. The error is the RMS of $\hat x - x$ in percent of the RMS of $x$.
# Experts and attention cannot take part: they *are* FP4 and FP8 in the file, where rounding again does nothing. We take three matrices that the file keeps in BF16, shaken by 0.2 % so that BF16 is not exact either, and normal random numbers beside them.

# %%
def relative(y, x):
    return ((y - x).square().mean() / x.square().mean()).sqrt().item()


def fp4_tile(x):
    """FP4 with one scale for a tile of 32 x 32 instead of 1 x 32."""
    t = x.unflatten(0, (-1, 32)).unflatten(2, (-1, 32)).transpose(1, 2)  # o/32 i/32 32 32
    s = 2.0 ** (t.abs().amax((2, 3), keepdim=True) / 6).log2().ceil()
    y = torch.copysign(GRID[((t / s).abs()[..., None] - GRID).abs().argmin(-1)], t) * s
    return y.transpose(1, 2).flatten(2).flatten(0, 1)


FORMATS = {"BF16": lambda x: x.bfloat16().float(), "FP8": lambda x: fake_quant(x, "fp8"),
           "FP4": lambda x: fake_quant(x, "fp4"), "FP4, tiles": fp4_tile}
matrices = {"embedding": shipped.embed.weight, "head": shipped.head.weight,
            "compressor": shipped.layers[2].attn.compressor.wkv.weight,
            "normal": torch.randn(256, 128, generator=torch.Generator().manual_seed(2))}
noise = torch.Generator().manual_seed(3)
errors = {}
for name, x in matrices.items():
    # off the BF16 grid of the file
    x = x.detach() * (1 + 0.002 * torch.randn(x.shape, generator=noise))
    errors[name] = {format: relative(f(x), x) for format, f in FORMATS.items()}
    print(f"{name:11}",
          "  ".join(f"{format} {error:6.2%}" for format, error in errors[name].items()))

# %% jupyter={"source_hidden": true}
style.show(numbers.plot_format_errors(errors),
           "Relative errors on a log axis: BF16 near 0.15 to 0.17 percent, FP8 near 2.7, FP4 "
           "near 12, FP4 with scales for whole tiles somewhat more")

# %% [markdown]
# One bit less of mantissa doubles the error: BF16 has 7 bits, E4M3 3, E2M1 1. The shape of the distribution matters little (11.5 to 13.2 %): **12 % is what FP4 costs; in mean squares 1.4 %, about a seventieth.** (BF16's 0.15 % is a little too low: our shake is smaller than its steps. The normal numbers' 0.17 % is the honest value.)
# That sounds like much. A product of a row of $n$ weights with an input has a relative error of 12 %, too: the sum and its error both grow like the root of $n$. But the error points nowhere in particular, and a trained model is near a minimum, where such small changes hardly move the loss (section 7 and question 1).
#
# A larger block has a larger largest number, which pushes up the scale for all: a tile of 32 x 32 costs 13 % more in the embedding, about 30 % in the compressor and the normal numbers, and 54 % in the head, whose numbers differ more in size. (For normal numbers the price is between some 7 and 31 %, depending on where the largest number stands between two powers of two.)
#
# **And along which axis?** The scale serves 32 *columns of a row*, which are inputs of one output. A product sums over inputs, so within a block the scale can be pulled out of the sum:
# $\sum_{j} s\, c_j x_j = s \sum_j c_j x_j$. A block down the *outputs* would have another scale for each term.
#
# ## 5. Outliers, and a turn before rounding
#
# The indexer's queries and keys are *activations*: they are rounded to FP4 as they come (report 3.4), in blocks of 32. Activations have **outliers**, single channels that are far larger than the rest.
# **Predict before you run:** 128 channels like V4's index keys, 127 of them with RMS 1 and one at 24. What becomes of the other channels in its block?

# %% jupyter={"outputs_hidden": true}
x = torch.randn(128, generator=torch.Generator().manual_seed(4))
x[5] = 24.0
y = fake_quant(x, "fp4_act")
style.say(f"scale of the block: 24 / 6 = {24 / 6} -> numbers below 1 (half of the smallest "
          "code: 0.25 x 4) become 0")
inside, elsewhere = ((part == 0).sum().item() for part in (y[:32], y[32:]))
print(f"zeros in the block of the outlier: {inside} of 32;  in the other blocks: {elsewhere} "
      "of 96")

# %% [markdown]
# The remedy: multiply the vector by an orthogonal matrix whose entries are all of equal size. That spreads each channel over all. V4 takes the **Hadamard matrix**, whose entries are $\pm 1$:
#
# $$ H_1 = (1), \qquad H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix}, \qquad x' = \frac{1}{\sqrt n}\, x H_n $$
#
# $H_n H_n = n I$, with the identity $I$, so queries and keys that are both turned have the same products as before: $q' \cdot k' = q \cdot k$. By hand: (8, 0, 0, 0) becomes (4, 4, 4, 4).
#
# ### Exercise 4: the turn
# *Medium, 8 minutes.* Build the matrix by doubling, then multiply.

# %%
def hadamard_transform(x):
    """x: ... n, n a power of two -> ... n: the last axis times H_n, divided by the root of
    n."""
    ### BEGIN SOLUTION
    H = torch.ones(1, 1)
    while len(H) < x.shape[-1]:
        H = torch.cat([torch.cat([H, H], dim=1), torch.cat([H, -H], dim=1)])
    return x @ H / x.shape[-1] ** 0.5                                           # ... n
    ### END SOLUTION


# %%
hadamard_transform = check("numbers.hadamard_transform", hadamard_transform)
q, k = torch.randn(2, 128, generator=torch.Generator().manual_seed(5))
torch.testing.assert_close(hadamard_transform(q) @ hadamard_transform(k), q @ k, atol=1e-4,
                           rtol=1e-4)
torch.testing.assert_close(hadamard_transform(q), activations.hadamard_transform(q))
print("products stay, and it equals minids.weights.rounding")

# %% jupyter={"source_hidden": true}
turned = hadamard_transform(x)
style.show(numbers.plot_outlier(x[:32], y[:32], turned[:32],
                                fake_quant(turned, "fp4_act")[:32]),
           "Left: one tall bar, and in FP4 most of the others in its block are 0. Right: after "
           "the turn no bar stands out, and hardly any becomes 0")

# %% [markdown]
# **Predict before you run:** does this work for an outlier of any size? We measure what is lost of the *other* channels: the error, in percent of their RMS.

# %% jupyter={"outputs_hidden": true}
def loss_of_others(size, change, back):
    """RMS error of 200 vectors of 128 channels with one outlier, as a share of the RMS of
    the others."""
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(6))
    x[:, 5] = size
    error = (back(fake_quant(change(x), "fp4_act")) - x).square()
    error[:, 5] = 0  # the others only
    return (error.sum(1) / 127).mean().sqrt().item()


sizes = [1, 2, 4, 8, 16, 32, 64, 128]
as_it_is = [loss_of_others(size, lambda x: x, lambda x: x) for size in sizes]
after_turn = [loss_of_others(size, hadamard_transform, hadamard_transform) for size in sizes]
for size, a, b in zip(sizes, as_it_is, after_turn):
    print(f"outlier {size:4}: as it is {a:6.1%}, turned {b:6.1%}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_outlier_sweep(sizes, as_it_is, after_turn), "Over the size of the "
           "outlier: as it is, the error climbs to half of the others' RMS and stays there; "
           "turned, it is lower up to an outlier of about 50, and higher beyond")

# %% [markdown]
# The turn does not remove the outlier, it shares it out. Up to a size of some 50 that is a bargain: a quarter of the channels (one block of four) would have been lost. Beyond that everybody pays for the one, and the block that was sacrificed would have been cheaper.
# So the turn is for *moderate* outliers. (Counted with the outlier's own error it looks better still: an outlier that is not an FP4 number times the scale is itself rounded.)
#
# ### On nano's own index keys

# %%
def index_scores(model, parts=()):
    """The indexer's scores of the last 128 queries of each CSA layer: {layer: B 128 S}."""
    found, handles = {}, []
    for i in (1, 3):
        handles.append(model.layers[i].attn.indexer.register_forward_hook(
            lambda module, args, scores, i=i: found.__setitem__(i, scores[:, -128:])))
    # 4 1024
    ids = torch.stack([torch.from_numpy(window[:1024].astype("int64"))
                       for window in WINDOWS[:4]])
    with torch.inference_mode(), rounding.serving(model, parts):
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def kept(scores, base, k=64):
    """Share of the k best entries (of those that all the queries see) that are still among
    the k best."""
    best = torch.zeros_like(base).scatter(2, base[..., :224].topk(k).indices, 1.0)
    return best.gather(2, scores[..., :224].topk(k).indices).mean().item()


# %% tags=["nbval-ignore-output"]
plain = index_scores(shipped)
recall = {"FP4 after the turn": index_scores(shipped, ["index"])}
with mock.patch.object(activations, "hadamard_transform", lambda x: x):
    recall["FP4 without the turn"] = index_scores(shipped, ["index"])
recall["picked at random"] = {i: torch.rand(scores.shape) for i, scores in plain.items()}
recall = {name: [kept(scores[i], plain[i]) for i in (1, 3)] for name, scores in recall.items()}
for name, values in recall.items():
    print(f"{name:21} of the 64 entries that a query picks, these stay: layer 1 "
          f"{values[0]:.0%}, layer 3 {values[1]:.0%}")

# %%
assert (min(recall["FP4 after the turn"] + recall["FP4 without the turn"]) > 0.7
        and max(recall["picked at random"]) < 0.35)
print("With either more than 70 % of the picks stay; random picks would keep 64 of 224, 29 %.")

# %% [markdown]
# On nano the turn makes little difference: its index keys have only 16 channels, a single block each, and FP4 without the turn already keeps most of the picks. **At this scale we cannot show that the turn is needed**, only how it works.
#
# ## 6. From FP4 to FP8 without loss
#
# V4 trains its experts with FP8 hardware: masters are rounded to FP4, and the FP4 numbers are then written as FP8 (report 3.4). Is that second step exact?
#
# A 128 x 128 block of FP8 has **one** scale, while its FP4 rows had 512 of them. E4M3 has two bits of exponent more than E2M1; they must hold the differences between those scales. By hand, for scales that differ by
# a factor $2^d$:
#
# - the largest number there can be is $6 \cdot 2^d$ (smallest scale 1). The FP8 scale is $2^{\lceil \log_2 (6 \cdot 2^d / 448) \rceil} = 2^{d - 6}$, since $6 \cdot 2^6 = 384$ fits and $6 \cdot 2^7$ does not;
# - the smallest number above 0 is $0.5$; divided by that scale it is $2^{-1 - d + 6} = 2^{5 - d}$;
# - FP8 goes down to $2^{-9}$. So $5 - d \ge -9$, and **$d \le 14$**.
#
# And those between? Each FP4 number has at most two significant bits, and E4M3 keeps four: in FP8's normal range it is exact. In the subnormal range every multiple of $2^{-9}$ is there. **Predict before you run:** at $d = 15$, what becomes of the 0.5?

# %% jupyter={"outputs_hidden": true}
def through_fp8(d):
    """A block with an FP4 number 6 at scale 2^d and 0.5, 1, 1.5 at scale 1: the last three,
    written as FP8 and read again."""
    block = torch.zeros(128, 128)
    block[0, 0], block[1, :3] = 6.0 * 2.0**d, torch.tensor([0.5, 1.0, 1.5])
    return fp8_decode(*fp8_encode(block))[1, :3].tolist()


for d in (6, 14, 15, 16):
    print(f"scales 2^{d} apart: 0.5, 1, 1.5 become {through_fp8(d)}")

# %% [markdown]
# At 15 the half is in the middle between 0 and the smallest FP8 number, 1 (in these units); the tie goes to the even code, 0. And 1.5 becomes 2. So the answer is: exact up to 14, and beyond that wrong **silently**.
#
# ### Exercise 5: the limit, for any two formats
# *Hard, 15 minutes.* Put the calculation by hand into code, for any narrow format inside any wide one. A loop over $d$ is fine.

# %%
def largest_spread(code_max, code_min, wide_max, wide_min):
    """The largest d for which a block stays exact whose narrow scales are 1 to 2^d, given the
    largest number and the smallest number above 0 of both formats, for narrow numbers that are
    multiples of code_min, with no longer mantissa. -> int"""
    ### BEGIN SOLUTION
    d = 0
    while True:
        scale = 2.0 ** math.ceil(math.log2(code_max * 2.0 ** (d + 1) / wide_max))
        if code_min / scale < wide_min:
            return d
        d += 1
    ### END SOLUTION


# %%
largest_spread = check("numbers.largest_spread", largest_spread)
print("FP4 in E4M3:", largest_spread(6.0, 0.5, 448.0, 2.0**-9), "  FP4 in E5M2:",
      largest_spread(6.0, 0.5, 57344.0, 2.0**-16))

# %% [markdown]
# The report says that the weights satisfy the condition, checked "empirically". So we check nano's:

# %%
with Checkpoint(folder) as file:
    spreads = [scale.max() - scale.min() for scale in
               (file.raw(name.replace("weight", "scale")).view(torch.uint8).int()
                for name in experts)]
print(f"{len(spreads)} expert matrices, scale exponents within a block differ by at most "
      f"{max(spreads)}")
for name in experts:
    w = shipped.state_dict()[name]
    assert torch.equal(fp8_decode(*fp8_encode(w)), w)
print("all of them are exact in FP8")

# %% [markdown]
# Far from 14. (An expert's matrix in nano is no larger than 128 x 128, so it is one block.) 32 weights would have to be 32,768 times smaller than 32 others in the same 128 x 128 block to break it.
#
# ## 7. Rounding as in serving
#
# So far weights. A served V4 also rounds **activations**, block by block, as it computes:
#
# | what | to | where |
# | --- | --- | --- |
# | `linears` | FP8, blocks of 128 | what enters a product with an FP8 or FP4 matrix (all but `wo_a`, the first half of attention's output matrix, which is decoded to BF16) |
# | `keys` | FP8, blocks of 64 | the channels of window keys and compressed entries that rotary embedding (lesson 02) leaves alone; the rotated ones stay BF16 |
# | `index` | Hadamard turn, FP4, blocks of 32 | the indexer's queries and keys |
#
# Never rounded: the gates, the compressors' products, the indexer's head weights, the hyper-connections, the output head. Small differences there would change *which* expert or entry is picked, or touch every token.
# `minids.weights.rounding.serving(model)` switches this on for a block of code. It is off otherwise: pre-training here runs in float32.

# %%
# N d
expert = shipped.layers[1].ffn.shared_experts
x = torch.randn(5, 128, generator=torch.Generator().manual_seed(7))
with torch.inference_mode(), rounding.serving(shipped):
    served = expert(x)
by_hand = fake_quant(x, "fp8_act")                     # N d: one block of 128 a row
gate = (by_hand @ expert.w1.weight.T).clamp(max=10.0)  # N I
up = (by_hand @ expert.w3.weight.T).clamp(-10.0, 10.0)
by_hand = fake_quant(torch.nn.functional.silu(gate) * up, "fp8_act") @ expert.w2.weight.T
torch.testing.assert_close(served, by_hand.detach(), atol=1e-5, rtol=1e-4)
print("an expert in serving equals three products whose inputs are rounded by hand")

# %% [markdown]
# **Predict before you run:** the weights are in their released formats already. Which of the three kinds of activations costs most loss?

# %%
PARTS = {"linears": ["linears"], "keys": ["keys"], "index": ["index"],
         "all three": ["linears", "keys", "index"]}
served = {name: against(nats(shipped, parts), base) for name, parts in PARTS.items()}
everything = rounding.released(shipped,
                               lambda w, format: fake_quant(w, "fp4") if w.dim() == 3 else w)
served["all matrices FP4"] = against(nats(everything), base)

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
for name, (difference, error) in served.items():
    print(f"{name:17} loss {difference:+.4f} +- {error:.4f} nats per token")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_changes(served, "what rounding costs the shipped model"),
           "Rounded activations change the loss by hardly anything; FP4 for all matrices, "
           "embedding and head included, costs clearly more")

# %% jupyter={"outputs_hidden": true}
assert max(abs(served[name][0]) for name in PARTS) < 0.01
assert served["all matrices FP4"][0] > max(served["all three"][0], 0.004)
style.say("Activations: less than 0.01 nats, all three together. All matrices in FP4: more "
          "than 0.004 nats, and more than all activations.")

# %% [markdown]
# So which costs most? None: all are a few ten-thousandths of a nat, of either sign, and do not even add up. No order can be read from them, and a model is not better for rounding its index. The last line is a format that V4 does *not* use, for comparison: attention, embedding and head in FP4 as well. Even that costs little here.
#
# **Honest limit:** nano is a small model of a simple language. Its weights have no extreme outliers, and it has read a few million tokens where Flash has read 32 trillion. A result like "FP4 is free" does not carry
# over to a model whose numbers hold so much more.
#
# ## 8. Training through rounding
#
# If rounding hurts, train with it: **quantisation-aware training** (QAT). The forward pass uses rounded weights, so the loss sees the damage. But rounding is a staircase: its slope is 0 nearly everywhere, and the gradient with it.
# The **straight-through** estimator pretends, in the backward pass, that nothing had been rounded:
#
# $$ \hat w = \mathrm{round}(w) \ \text{(forward)}, \qquad \frac{\partial \hat w}{\partial w} := 1 \ \text{(backward)} $$
#
# ### Exercise 6: straight through
# *Medium, 5 minutes.* One line, if you know which part of it autograd must not see.

# %%
def straight_through(x, rounding):
    """The value is rounding(x), a function of tensors; the gradient with respect to x is
    that of x itself."""
    ### BEGIN SOLUTION
    return x + (rounding(x) - x).detach()
    ### END SOLUTION


def with_gradient(function):
    """A function that returns function(x, rounding) and the gradient of its weighted sum."""
    def both(x, rounding, weights):
        x = x.clone().requires_grad_()
        y = function(x, rounding)
        if not y.requires_grad:
            return y, torch.zeros_like(x)
        return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]
    return both


# %%
value_and_gradient = check("numbers.straight_through", with_gradient(straight_through))
x, weights = torch.randn(2, 32, generator=torch.Generator().manual_seed(8))
mine = value_and_gradient(x, lambda x: fake_quant(x, "fp4"), weights)
theirs = with_gradient(lambda x, rounding: rounding(x))(x, lambda x: fake_quant(x, "fp4"),
                                                        weights)
torch.testing.assert_close(mine, theirs)
style.say("value and gradient equal minids.numerics.fake_quant, which has the straight-through "
          "gradient built in")

# %% [markdown]
# ### Why masters?
#
# Steps are small: here +0.06 each, on a weight that starts at 1, with FP4's numbers 0.5, 1, 1.5, 2 around it. **Predict before you run:** after 12 steps, where is the weight
# 1. if each step is added to the rounded weight, and the result is rounded again,
# 2. if steps are added to a float32 *master*, and the model computes with its rounded copy?

# %% jupyter={"outputs_hidden": true}
def nearest(w):
    return GRID[(w - GRID).abs().argmin()].item()


alone, master, copies = [1.0], [1.0], [1.0]
for _ in range(12):
    alone.append(nearest(torch.tensor(alone[-1] + 0.06)))
    master.append(master[-1] + 0.06)
    copies.append(nearest(torch.tensor(master[-1])))
print("rounded weight alone:", alone[-1], "   copy of a master:", copies[-1])

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
style.show(numbers.plot_masters({"without a master": (alone, alone),
                                 "with a master": (master, copies)}),
           "Left: a flat line at 1, every step is lost. Right: the master rises in a straight "
           "line, and its copy jumps to 1.5 when the master passes 1.25")

# %% [markdown]
# Without masters *no* step ever arrives: each is smaller than half the distance to the next code. Masters remember. This is why V4 keeps "FP32 master weights" and rounds them anew in each step (report 3.4),
# and why QAT saves no memory in training: it makes a model for *serving*.
#
# ### Live: a format that hurts
#
# FP4 as released costs nano almost nothing, so there is nothing for QAT to win back. To see it work we need a format that hurts. **Three numbers**, -1, 0 and 1, times a power of two for each block of 32: 1.6 bits a weight, and 0.25 for the scale.

# %%
def three(w, format):
    """Experts (FP4 in the file) in three numbers, all else as released."""
    if format != "FP4":
        return rounding.as_stored(w, format)
    x = w.unflatten(-1, (-1, 32))  # K o i/32 32
    # normal numbers: 1.53 is best
    s = torch.exp2((1.4 * x.abs().mean(-1, keepdim=True)).log2().round())
    return ((x / s).round().clamp(-1, 1) * s).flatten(-2)


with torch.no_grad():
    w = shipped.layers[1].ffn.experts[0].w1.weight
    print(f"error of an expert in three numbers: {relative(three(w, 'FP4'), w):.0%}")
    print("its numbers, in scales:",
          (three(w, "FP4")[0, :32] / three(w, "FP4")[0, :32].abs().max()).unique().tolist())

# %% [markdown]
# Four models start from the shipped weights: one is only rounded, three are trained for 16 steps on the *same* batches, and are then rounded.
# - *float*: trains without rounding, is rounded at the end,
# - *QAT, FP4*: trains with everything as it will be served: weights in FP8 and FP4, activations, the index,
# - *QAT, three*: the same with the three-number experts.
#
# `minids.pretrain.qat` does it in a few lines on top of the pre-training step: a copy computes with rounded weights, and hands its gradients to the masters as they are.
# **Predict before you run:** which trained model is best in FP4, and which in three numbers? How much of the damage can 16 steps repair?

# %%
settings = TrainConfig(steps=16, batch=1, seq_len=1024, optimiser="muon", lr=1e-3,
                       vector_lr=1.0, warmup=2, mtp_weight=0.0)


def trained(stored):
    """The shipped model after 16 steps: its float32 masters. `stored` is the rule of
    rounding; None trains in float."""
    masters = copy.deepcopy(shipped).train()
    optimiser = make_optimiser(masters, settings)
    computing = masters if stored is None else qat.rounded_copy(masters, stored)
    for number in range(settings.steps):
        ids = torch.from_numpy(batch_at(tokens["train"], settings, number))             # 1 T+1
        if stored is None:
            train_step(masters, optimiser, ids, settings, number)
        else:
            qat.step(computing, masters, optimiser, ids, settings, number, stored)
    return masters.eval()


# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
arms = {"only rounded": shipped, "float": trained(None),
        "QAT, FP4": trained(rounding.as_stored),
        "QAT, three": trained(three)}
table, parts = {}, rounding.PARTS
for name, masters in arms.items():  # masters: in float, nothing rounded
    table[name] = {"masters": nats(masters)} if name == "float" else {}
    for stored, rule in (("FP4", rounding.as_stored), ("three", three)):
        if name != f"QAT, {'three' if stored == 'FP4' else 'FP4'}":  # each for its own format
            table[name][stored] = nats(rounding.released(masters, rule), parts)
print(f"{'':14}{'masters':>9}{'FP4':>9}{'three':>9}   (nats per token)")
for name, row in table.items():
    print(f"{name:14}" + "".join(f"{row[key].mean():9.4f}" if key in row else f"{'':9}"
                                 for key in ("masters", "FP4", "three")))

# %% jupyter={"outputs_hidden": true}
rows = {f"{name}, served in {key}": against(row[key], base)
        for key in ("FP4", "three") for name, row in table.items() if key in row}
style.show(numbers.plot_changes(rows, "against the shipped model in float32"),
           "In FP4 all arms lie within hundredths of a nat of each other; in three numbers the "
           "arm trained with rounding has lost clearly less than the other two")

# %% jupyter={"outputs_hidden": true}
only, late, aware = (table[name]["three"].mean()
                     for name in ("only rounded", "float", "QAT, three"))
assert aware < min(only, late) - 0.01
assert abs(table["QAT, FP4"]["FP4"].mean() - table["float"]["FP4"].mean()) < 0.02
style.say("In three numbers QAT is better than rounding afterwards, by more than 0.01 nats; in "
          "FP4 the two are within 0.02.")

# %% [markdown]
# - **In three numbers** the model loses much when it is rounded, and training in float before does not help. QAT repairs a good part of the damage with the same 16 steps (about half, on the server that built this page):
#   only it has the damage in its loss.
# - **In FP4** there was nothing to repair, and QAT repairs nothing: our negative control. It is an easy one: the shipped experts *are* FP4, so "only rounded" changes nothing in them, and the others leave the codes for 16 steps only. The three models lie closer together than their bars are long.
# - One run each and 6,144 tokens of text: the bars show the spread between windows, not between seeds.
#
# ### What the next step would see is what the file holds

# %%
masters = arms["QAT, FP4"]
with tempfile.TemporaryDirectory() as scratch:
    minids.save(masters, Path(scratch) / "model", format="v4")
    loaded = minids.load(Path(scratch) / "model").state_dict()
for name, t in qat.rounded_copy(masters).state_dict().items():
    assert torch.equal(loaded[name], t)
style.say(f"{len(loaded)} tensors: the saved file gives exactly the numbers that a further "
          "step, or serving, would compute with")

# %% [markdown]
# ## 9. Play: where does a number land?
#
# Blue: FP4's numbers at the scale of the block. Black square: the block's largest number. The orange mark is another number of the block, the arrow says what it becomes.
# **Find out:** how far can the largest number grow before 0.5 is lost? Is there a number above 1 that becomes worse than 15 % wrong?

# %%
box = style.slider_image(numbers.plot_rounding,
                         "FP4's numbers at a block's scale, and where a number lands",
                         number=[0.1, 0.2, 0.3, 0.5, 0.9, 1.2, 1.25, 1.7, 2.4, 2.5],
                         largest=[3.0, 4.0, 6.0, 6.1, 8.0, 10.0, 12.0],
                         start={"number": 0.5, "largest": 6.0})
box

# %%
box.peek(largest=6.1)
for largest in (6.0, 6.1):
    print(f"0.5 beside {largest}: "
          f"{numbers.rounded_to(0.5, 2.0 ** math.ceil(math.log2(largest / 6)))}")
print(f"1.25 beside 6.0: {numbers.rounded_to(1.25, 1.0)}, {1 - 1 / 1.25:.0%} wrong")

# %% jupyter={"source_hidden": true}
style.show(numbers.plot_roundings([(0.5, 3.0), (0.5, 6.0), (0.5, 6.1), (1.25, 6.0)]),
           "The same for four cases: 0.5 stays 0.5 beside 3 and 6, becomes 0 beside 6.1; 1.25 "
           "becomes 1 beside 6")

# %% [markdown]
# The largest number may grow to 6: just above it the scale doubles, and 0.5 becomes a tie that goes to 0. And yes: a number halfway between two neighbours is wrong by up to 20 % (1.25 becomes 1, 2.5 becomes 2).

# %% [markdown]
# ## In the real V4
#
# Which formats do the released files have? From the configurations alone:

# %%
def kind_of(name, dtype, names):
    """The format of one stored tensor; a scale belongs to FP4 or FP8 as its weight does."""
    if dtype == "F8_E8M0":
        return ("FP4 scales" if names[name.removesuffix("scale") + "weight"][0] == "I8"
                else "FP8 scales")
    return {"I8": "FP4", "F8_E4M3": "FP8", "BF16": "BF16", "F32": "float32",
            "I64": "tables"}[dtype]


def bytes_by_format(config):
    names, found = layout.inventory(config), {}
    for name, (dtype, shape) in names.items():
        kind = kind_of(name, dtype, names)
        found[kind] = found.get(kind, 0) + layout.nbytes((dtype, shape))
    return found


# %%
models = {name: bytes_by_format(config) for name, config in
          (("Flash", Config.flash()), ("Pro", Config.pro()), ("nano", Config.nano()))}
print(f"{'bytes':11}" + "".join(f"{name:>18}" for name in models))
for kind in numbers.FORMATS:
    print(f"{kind:11}" + "".join(f"{found[kind]:18,}" for found in models.values()))
totals = {name: sum(found.values()) for name, found in models.items()}
print(f"{'all':11}" + "".join(f"{total:18,}" for total in totals.values()))
assert totals["Flash"] == 159_609_485_896 and totals["Pro"] == 864_704_792_696

# %% jupyter={"source_hidden": true}
style.show(numbers.plot_on_disk(models), "Shares of bytes: in Flash and Pro FP4 and its scales "
           "fill more than nine tenths, FP8 most of the rest; in nano BF16, mostly embedding "
           "and head, takes the largest part")

# %%
for name, config in (("Flash", Config.flash()), ("Pro", Config.pro())):
    counts = cost.params(config)
    everything = counts["total"] + counts["mtp"]
    print(f"{name:6}{totals[name] / 1e9:7.1f} GB released;  all FP8 {everything / 1e9:7.0f} "
          f"GB;  all BF16 {2 * everything / 1e9:7.0f} GB;  {8 * totals[name] / everything:.2f} "
          "bits a parameter")

# %% [markdown]
# | what the report claims (3.4) | what we could show |
# | --- | --- |
# | experts in FP4, by QAT in post-training, masters in float32 | the mechanism; at this scale plain rounding is as good |
# | FP4 to FP8 is lossless: scales within a block do not differ too much | why the limit is 14, and that nano's differ by far less |
# | the indexer's queries and keys in FP4 | most of nano's picks stay |
# | index scores in BF16: a twice as fast top-k that keeps 99.7 % of the entries | not tried: a question of speed on a GPU |
#
# Of the 4.39 bits, 3.90 are FP4 codes and 0.24 their scales; the 2.6 % of the numbers in wider formats make up the other 0.25. The report gives no number for what FP4 costs V4 in quality, and no ablation of the Hadamard turn (it is in the released code). The base models are released with FP8 experts.
#
# ## Key points
# - A small float is sign, exponent, mantissa; FP4 has 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Relative error: about 12 % for FP4, 2.7 % for FP8, 0.17 % for BF16.
# - A block shares a power-of-two scale, its exponent rounded up: nothing clips, rounding twice changes nothing. Its largest number decides what becomes of the small ones.
# - Low half first, 32 columns a scale. Swapped halves pass every check of ranges, norms and histograms; a comparison of numbers finds them at once.
# - A Hadamard turn spreads an outlier over all channels. It helps against moderate ones, and changes no product.
# - FP4 to FP8 is exact while the scales within a block differ by at most $2^{14}$.
# - QAT: round in the forward pass, pass the gradient straight through, add it to float32 masters. It helps where rounding hurts.
#
# ## Questions to discuss
#
# <details><summary>1. FP4 has an error of 12 %. Why does the loss not rise by 12 %?</summary>
#
# The two have different units: one is a distance of weights, the other a surprise at tokens. Rounding errors are independent and of either sign; in sums over hundreds of inputs, experts and layers they average out, and the loss is flat near its minimum, so that
# small changes of weights count in the second order. *"Because FP4 is precise enough"* only repeats the observation. Compare an error of the same size that is *not* independent: all experts' weights times 0.88 cost nano $0.011 \pm 0.003$ nats, random noise of 12 % in them $0.001 \pm 0.001$.
# </details>
#
# <details><summary>2. Why not one scale for each single row, or for each 4 numbers?</summary>
#
# A scale costs 8 bits. For 4 numbers that is 2 bits each: with these one could have 6-bit floats. For a whole row of 4,096 it is nothing, but one outlier then ruins 4,096 numbers. 32 costs a quarter bit. *"Smaller is always better"* forgets to count the scale's own bits.
# </details>
#
# <details><summary>3. A team trains QAT without masters, "since the weights are FP4 anyway". The loss does not move. What happened?</summary>
#
# Every step was smaller than half the distance between codes, and was rounded away. With a rate so high that steps get through, each would jump by a whole code. *"The gradient is 0 because rounding is flat"* is wrong here if they use straight-through: the gradient was fine, its result was thrown away.
# Rounding at random, up or down in proportion (stochastic rounding), is another remedy.
# </details>
#
# <details><summary>4. Why does V4 round what enters a linear to FP8 and not to FP4, when the weights are FP4?</summary>
#
# Weights are known in advance: they can be trained for their codes, and their outliers are mild. Activations come as they come, and outliers are worse; with 3 bits of mantissa instead of 1 the error is a quarter of FP4's. *"To save memory"* is wrong: activations of a linear are not stored in serving. Where they *are* stored and read again a million times,
# in the index, V4 does go down to FP4, with the turn.
# </details>
#
# <details><summary>5. You save a model in FP4, load it, train one more step in float32, and save it in FP4 again. What is in the second file?</summary>
#
# Mostly the first file, but not quite. Most weights round to the codes they come from. The exception is section 2: in some blocks the largest number stands at exactly 6 scales. If the step makes it a little larger, the scale doubles, and the block's 0.5s and 1.5s are rounded anew. With normal numbers that is about one block in six, however small the step. Keep the masters' checkpoint: the released file is an end product.
# </details>
#
# ## Links
# - Rouhani et al., Microscaling data formats for deep learning, [arXiv 2310.10537](https://arxiv.org/abs/2310.10537): MXFP4 and its relatives
# - Micikevicius et al., FP8 formats for deep learning, [arXiv 2209.05433](https://arxiv.org/abs/2209.05433): E4M3 and E5M2
# - Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, [arXiv 1712.05877](https://arxiv.org/abs/1712.05877): QAT
# - Bengio, Leonard, Courville, [arXiv 1308.3432](https://arxiv.org/abs/1308.3432): the straight-through estimator
# - Ashkboos et al., QuaRot, [arXiv 2404.00456](https://arxiv.org/abs/2404.00456): Hadamard turns against outliers
# - In this repository: `minids/numerics.py` (formats), `minids/weights/rounding.py` (serving), `minids/pretrain/qat.py`, `tests/weights/test_rounding.py` (every rounding written out)
