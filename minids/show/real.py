"""Figures of lesson 15: the files of a checkpoint, and a large model beside a small one.

A checkpoint is "OWNER/NAME" on the Hub, a folder, or a `Checkpoint`. Functions that end in
`_of` measure one checkpoint and read only the tensors they need; `trace` needs a whole forward
pass and therefore a folder. The `plot_` functions of the same names take {name of the model:
checkpoint} (or traces) and show them side by side. A `Portrait` takes the place of a checkpoint
where its numbers are enough: for all but spectra and rounding.
"""

import json
import math
from fnmatch import fnmatchcase
from functools import cache

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.patches import Patch

from minids import numerics
from minids.config import Config
from minids.errors import MinidsError
from minids.model import mhc
from minids.show.drawing import bar_places, heat
from minids.show.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from minids.weights import layout, portrait
from minids.weights.checkpoint import Checkpoint
from minids.weights.folder import LocalFiles
from minids.weights.layout import scale_name
from minids.weights.portrait import NORMS, Portrait
from minids.weights.streamed import streamed

TYPES = {"F8_E4M3": BLUE, "I8": ORANGE, "F8_E8M0": VERMILION, "BF16": GREEN, "F32": PURPLE,
         "I64": YELLOW}
TYPE_NAMES = {"F8_E4M3": "FP8", "I8": "FP4, packed", "F8_E8M0": "scales", "BF16": "BF16",
              "F32": "float32", "I64": "int64"}
LINES = ("-", "--", "-.", ":", (0, (5, 1)))
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE)

# what the figures of single tensors read
ASPECTS = {
    "attention sinks": ("layers.*.attn.attn_sink",),
    "hash tables": ("layers.*.ffn.gate.tid2eid",),
    "hyper-connections, base and scale": ("layers.*.hc_*_base", "layers.*.hc_*_scale"),
    "compressor biases": ("layers.*.attn.compressor.ape",),
    "routers and their biases": ("layers.*.ffn.gate.weight", "layers.*.ffn.gate.bias"),
}
SPECTRA = ("attn.wq_a", "attn.wkv", "ffn.shared_experts.w1", "ffn.experts.0.w1")    # of one layer


# ---- files ----

def dump(data: bytes, start: int = 0, width: int = 16) -> None:
    """Print bytes as hexadecimal digits beside their ASCII characters."""
    for at in range(0, len(data), width):
        line = data[at:at + width]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in line)
        print(f"{start + at:6}  {line.hex(' '):{3 * width}} {text}")


def plot_anatomy(file: str, entries: dict, size: int):
    """Draw a safetensors file to scale: the eight bytes, the header, the tensors by type.

    entries: from `minids.weights.header`.
    """
    figure, axis = plt.subplots(figsize=(10.2, 2.9))
    axis.grid(False)
    first = min(e.start for e in entries.values())
    axis.barh(0, first, color=SKY, edgecolor=BLACK, linewidth=0.6)
    for name, e in entries.items():
        width = e.end - e.start
        axis.barh(0, width, left=e.start, color=TYPES[e.dtype], edgecolor="white", linewidth=0.4)
        if width > 0.02 * size:
            short = name.split(".", 2)[-1].removesuffix(".weight")
            axis.text(e.start + width / 2, 0, short, rotation=90, ha="center", va="center",
                      fontsize=8.5, color="white" if e.dtype in ("F8_E4M3", "F32") else BLACK)
    axis.annotate(f"8 bytes and the header: {first:,} bytes", (first / 2, 0.4), (0.03 * size, 0.62),
                  fontsize=10, arrowprops={"arrowstyle": "-", "linewidth": 0.8})
    axis.set_ylim(-0.4, 0.75)
    axis.set_xlim(0, size)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"byte of {file}")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    used = [dtype for dtype in TYPES if any(e.dtype == dtype for e in entries.values())]
    handles = [Patch(facecolor=TYPES[dtype], label=f"{dtype} ({TYPE_NAMES[dtype]})")
               for dtype in used]
    figure.legend(handles=[Patch(facecolor=SKY, label="header"), *handles],
                  loc="outside upper center", ncols=7, fontsize=9)
    return figure


@cache
def inventory(name: str) -> dict:
    """`minids.weights.layout.inventory` of a preset."""
    return layout.inventory(Config.preset(name))


@cache
def matching(pattern: str, name: str) -> tuple[int, dict[str, int]]:
    """Count the tensors of a preset's released files that match a pattern, and their bytes by type.

    The count leaves scales out; the bytes include them.
    """
    stored, count, sizes = inventory(name), 0, {}
    for tensor, entry in stored.items():
        if entry[0] != "F8_E8M0" and fnmatchcase(tensor, pattern):
            count += 1
            quantised = entry[0] in ("F8_E4M3", "I8")
            scale = stored.get(tensor.removesuffix("weight") + "scale") if quantised else None
            for part in filter(None, (entry, scale)):
                sizes[part[0]] = sizes.get(part[0], 0) + layout.nbytes(part)
    return count, sizes


def size(*patterns: str, model: str = "flash") -> int:
    """Bytes of the tensors of a preset's released files that match these patterns, with scales."""
    return sum(sum(matching(pattern, model)[1].values()) for pattern in patterns)


def json_sizes(name: str) -> tuple[int, int]:
    """Bytes of a preset's JSON, written as the sample's: the index, and the largest header."""
    files, entries, headers = layout.shards(Config.preset(name)), inventory(name), []
    for names in files.values():
        head, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor in names:
            dtype, shape = entries[tensor]
            head[tensor] = {"dtype": dtype, "shape": list(shape),
                            "data_offsets": [at, at := at + layout.nbytes(entries[tensor])]}
        headers.append(len(json.dumps(head, separators=(",", ":"))))
    where = {tensor: file for file, names in files.items() for tensor in names}
    return len(json.dumps({"metadata": {"total_size": layout.disk_bytes(Config.preset(name))},
                           "weight_map": where}, indent=2)), max(headers)


def amount(size: float) -> str:
    """Bytes in words: 1234567 as "1.23 MB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds in words: 7500 as "2.1 hours"."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2g} s"


def _byte_axis(axis, most: float) -> None:
    """Make the x axis logarithmic, from 1 kB to `most` bytes."""
    axis.set_xscale("log")
    axis.set_xlim(1e3, most)
    axis.set_xticks([1e3, 1e6, 1e9, 1e12], ["1 kB", "1 MB", "1 GB", "1 TB"])
    axis.minorticks_off()


def plot_download(model: str, pattern: str, bandwidth: float):
    """Plot the size of the tensors that match a pattern beside the whole, and the time to download.

    bandwidth: 10^6 bytes a second.
    """
    count, sizes = matching(pattern, model)
    chosen, total = sum(sizes.values()), layout.disk_bytes(Config.preset(model))
    figure, axis = plt.subplots(figsize=(9.2, 2.5))
    for y, (name, size) in enumerate((("the whole", total), ("chosen", chosen))):
        axis.barh(y, max(size, 1), color=SKY if y == 0 else ORANGE)
        text = f"{amount(size)}   {duration(size / bandwidth / 1e6)}" if size else "nothing"
        axis.text(max(size, 1.5e3) * 1.3, y, text, va="center", fontsize=11)
    axis.set_yticks([0, 1], ["the whole", f"{count:,} tensors"])
    axis.invert_yaxis()
    _byte_axis(axis, 1e14)
    axis.set_xlabel(f"bytes (logarithmic), and the time at {bandwidth:g} MB/s")
    axis.set_title(f"V4-{model.capitalize()}: {pattern}")
    axis.grid(False, axis="y")
    return figure


def plot_downloads(rows: dict):
    """Plot sizes on a logarithmic axis. rows: {what: bytes}."""
    figure, axis = plt.subplots(figsize=(9.2, 0.42 * len(rows) + 1.0))
    bars = axis.barh(list(rows), list(rows.values()), color=[BLUE] * (len(rows) - 1) + [SKY])
    axis.bar_label(bars, [amount(size) for size in rows.values()], padding=5, fontsize=10)
    axis.invert_yaxis()
    _byte_axis(axis, 2e13)
    axis.set_xlabel("bytes in V4-Flash's files (logarithmic)")
    axis.grid(False, axis="y")
    return figure


# ---- one checkpoint, tensor by tensor ----

def opened(source) -> Checkpoint:
    """A checkpoint, opened if it is not: on the Hub, or in a folder."""
    return source if isinstance(source, Checkpoint) else Checkpoint(source)


def by_layer(source, tensor: str) -> dict[int, torch.Tensor]:
    """{layer: values} of one tensor, such as "attn.attn_sink", of all layers that have it."""
    source = opened(source)
    return {int(name.split(".")[1]): t
            for name, t in source.read_all(source.find(f"layers.*.{tensor}")).items()}


def sinks_of(source) -> dict[int, torch.Tensor]:
    """{layer: the sinks of its heads, H}."""
    return source.sinks if isinstance(source, Portrait) else by_layer(source, "attn.attn_sink")


def tables_of(source, ids=None) -> dict[int, torch.Tensor]:
    """{hash layer: load of each expert over the mean load, E}.

    All ids count as equally frequent, or as frequent as in `ids`.
    """
    if isinstance(source, Portrait):
        if ids is not None:
            raise MinidsError("a portrait keeps the loads of a hash table, not the table: expected "
                              "no ids, or the checkpoint itself")
        return source.load
    source = opened(source)
    return {layer: portrait.load_of(table, source.config, ids)
            for layer, table in by_layer(source, "ffn.gate.tid2eid").items()}


def routers_of(source) -> dict[str, torch.Tensor]:
    """The gates' "bias", score layers x E, and each layer's mean "cosine" of two experts' rows."""
    if isinstance(source, Portrait):
        return {"bias": torch.stack(list(source.bias.values())),
                "cosine": torch.tensor([cosine.item() for cosine in source.cosine.values()])}
    cosines = [portrait.cosine_of(W) for W in by_layer(source, "ffn.gate.weight").values()]
    return {"bias": torch.stack(list(by_layer(source, "ffn.gate.bias").values())),
            "cosine": torch.stack(cosines)}


def connections_of(source) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The static part of all S = 2 L sites, from base and scale: pre S n, post S n, comb S n n."""
    source = source if isinstance(source, Portrait) else opened(source)
    config, n = source.config, source.config.hc_mult
    base, scale = _static_part(source)
    X, fn = torch.zeros(1, 1, n, 1), torch.zeros((2 + n) * n, n)  # streams that say nothing
    maps = [mhc.maps(X, fn, scale[site], base[site], config) for site in range(2 * config.n_layers)]
    return tuple(torch.stack([triple[k][..., 0] for triple in maps]) for k in range(3))


def _static_part(source) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """`base` and `scale` of all sites, numbered through the model."""
    if isinstance(source, Portrait):
        return source.base, source.scale
    layers = range(source.config.n_layers)
    sites = [f"layers.{i}.hc_{at}_" for i in layers for at in ("attn", "ffn")]
    read = source.read_all([site + part for site in sites for part in ("base", "scale")])
    base, scale = ({site: read[prefix + part] for site, prefix in enumerate(sites)}
                   for part in ("base", "scale"))
    return base, scale


def through_depth(comb) -> tuple[list[float], list[float]]:
    """After each site: the largest gain of the carried streams, and what is left of a difference.

    comb: S n n.
    """
    n = comb.shape[1]
    P, gains, left = torch.eye(n), [], []
    for M in comb:
        P = M.T @ P
        gains.append(P.abs().sum(1).max().item())
        left.append(torch.linalg.matrix_norm(P - 1 / n, 2).item())
    return gains, left


def biases_of(source) -> dict[int, tuple[int, torch.Tensor]]:
    """{layer: (ratio, weight of each slot)} that the compressor's bias `ape` alone would give.

    Weights are means over channels; 1 where all slots weigh the same. A CSA layer has 8 slots: the
    four tokens before its window, then its own.
    """
    if isinstance(source, Portrait):
        return {layer: (source.config.compress_ratios[layer], weights)
                for layer, weights in source.slots.items()}
    return {layer: (len(ape), portrait.slots_of(ape))
            for layer, ape in by_layer(source, "attn.compressor.ape").items()}


def reach_of(source: Portrait) -> tuple[torch.Tensor, torch.Tensor]:
    """How far a token moves pre, post and comb of each site, and the size of the static part.

    Both S 3. For the first see `minids.weights.portrait.reach_of`; the second is a root mean
    square.
    """
    n = source.config.hc_mult
    parts = [base.split([n, n, n * n]) for base in source.base.values()]
    sizes = [[part.square().mean().sqrt().item() for part in site] for site in parts]
    return torch.stack(list(source.reach.values())), torch.tensor(sizes)


def spectra_of(source, layer: int | None = None) -> dict[str, torch.Tensor]:
    """{matrix: singular values over the largest} of one layer (default: the middle one)."""
    source = opened(source)
    layer = source.config.n_layers // 2 if layer is None else layer
    matrices = source.read_all([f"layers.{layer}.{part}.weight" for part in SPECTRA])
    return {part: _spectrum(W) for part, W in zip(SPECTRA, matrices.values())}


def _spectrum(W):
    s = torch.linalg.svdvals(W)
    return s / s[0]


def effective_rank(s) -> float:
    """exp of the entropy of the squared singular values' shares, as a share of all directions."""
    p = s.square() / s.square().sum()
    return math.exp(-(p * p.clamp_min(1e-30).log()).sum().item()) / len(s)


def rounding_of(source, layer: int | None = None) -> dict[str, dict]:
    """{matrix: what its codes say about rounding}, for `SPECTRA` and two more experts of one layer.

    "format": FP4 or FP8. "error": relative error of rounding, estimated from codes and scales; a
    number may have been anywhere between the midpoints to its code's neighbours. FP4 also has
    "shares" of the eight code magnitudes, "bits" (entropy of the codes), and "spread", the largest
    difference of scale exponents within a block of 128 x 128.
    """
    source = opened(source)
    layer = source.config.n_layers // 2 if layer is None else layer
    parts = (*SPECTRA, "ffn.experts.0.w2", "ffn.experts.1.w1")
    names = [f"layers.{layer}.{part}.weight" for part in parts]
    with_scales = [n for name in names for n in (name, scale_name(name)) if n in source]
    stored, results = source.raw_all(with_scales), {}
    for part, name in zip(parts, names):
        codes, scale = stored[name], stored.get(scale_name(name))
        if codes.dtype == torch.int8:
            results[part] = {"format": "FP4", **_fp4_rounding(codes, scale)}
        elif codes.dtype == torch.float8_e4m3fn:
            values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
            ones = torch.ones(codes.shape).to(torch.float8_e4m3fn)
            results[part] = {"format": "FP8", "error": _error(numerics.fp8_decode(codes, scale),
                                                              numerics.fp8_decode(ones, scale),
                                                              codes.view(torch.uint8).long(),
                                                              values)}
    return results


def _fp4_rounding(packed, scale) -> dict:
    bytes_ = packed.view(torch.uint8)
    codes = torch.stack([bytes_ & 15, bytes_ >> 4], -1).flatten(1).long()                   # o i
    values = torch.tensor(numerics.FP4_VALUES)
    ones = torch.full_like(packed, 0x22)  # two codes of 1.0
    p = codes.flatten().bincount(minlength=16) / codes.numel()
    spread = 0
    if scale.dtype == torch.float8_e8m0fnu:
        s = scale.view(torch.uint8).int()
        spread = max(int(block.max() - block.min()) for rows in s.split(128)
                     for block in rows.split(4, dim=1))
    return {"error": _error(numerics.fp4_decode(packed, scale), numerics.fp4_decode(ones, scale),
                            codes, values), "shares": p[:8] + p[8:],
            "bits": -(p * p.clamp_min(1e-30).log2()).sum().item(), "spread": spread}


def _error(numbers, scales, codes, values) -> float:
    """Relative error of rounding, if numbers are spread evenly over the cells of their codes."""
    return ((_cells(values)[codes] * scales.square()).sum() / numbers.square().sum()).sqrt().item()


def _cells(values):
    """Mean squared distance to each code's value within its cell, the numbers that round to it."""
    sizes = values[values.isfinite()].abs().unique()
    middles = (sizes[1:] + sizes[:-1]) / 2
    low = sizes - torch.cat([-middles[:1], middles])
    high = torch.cat([middles, sizes[-1:]]) - sizes  # nothing lies beyond the largest
    square = (low ** 3 + high ** 3) / (3 * (low + high))
    return square[torch.searchsorted(sizes, values.abs().nan_to_num(0.0))]


# ---- one checkpoint, in a forward pass ----

@torch.inference_mode()
def trace(source, ids: list[int], device="cpu", dtype=torch.float32) -> dict[str, torch.Tensor]:
    """What one streamed pass over a text shows, layer by layer; the checkpoint must be a folder.

    "load": L E, choices of each expert. "sure": L, mean share of the heaviest expert in a token's
    weights. "loss": L, of the logit lens, which applies the head to the streams after each layer.
    "best", "chance": L T, the lens' likeliest token and its probability.
    """
    if isinstance(source, Checkpoint):
        if not isinstance(source.files, LocalFiles):
            raise MinidsError(f"a pass reads every layer of {source.where}: "
                              "fetch the files, and name the folder")
        source = source.files.path
    model = streamed(source, device, dtype)
    record = {key: [] for key in ("load", "sure", "loss", "best", "chance")}
    targets = torch.tensor(ids[1:], device=device)

    def gate(_, __, out):
        weights, chosen = out  # N K, N K
        record["load"].append(chosen.flatten().bincount(minlength=model.config.n_routed_experts))
        record["sure"].append((weights / weights.sum(1, keepdim=True)).amax(1).mean())

    def lens(_, __, X):
        logits = model.logits(X)[0]                                                         # T V
        record["loss"].append(F.cross_entropy(logits[:-1], targets))
        chance, best = logits.softmax(-1).max(-1)
        record["best"].append(best)
        record["chance"].append(chance)

    def watch(i, block):
        block.ffn.gate.register_forward_hook(gate)
        block.register_forward_hook(lens)

    model.layers.on_block = watch
    model.features(torch.tensor([ids], device=device))
    return {key: torch.stack(values).cpu() for key, values in record.items()}


def evenness(load) -> torch.Tensor:
    """exp(entropy of the load) over the number of experts: from 1/E to 1. load: ... E."""
    p = load / load.sum(-1, keepdim=True)
    return torch.exp(-(p * p.clamp_min(1e-30).log()).sum(-1)) / load.shape[-1]


# ---- side by side ----

def _panels(models, width=10.2, height=3.4, **options):
    figure, axes = plt.subplots(1, len(models), figsize=(width, height), squeeze=False, **options)
    for axis, name in zip(axes[0], models):
        axis.set_title(name)
    return figure, axes[0]


def _depth(values) -> list[float]:
    """Places from 0 to 1, one for each value."""
    return torch.linspace(0, 1, len(values)).tolist()


def plot_sinks(models):
    """Plot the sinks of all heads, layer by layer."""
    figure, axes = _panels(models, sharey=True)
    for axis, source in zip(axes, models.values()):
        for layer, values in sinks_of(source).items():
            axis.scatter([layer] * len(values), values.tolist(), s=26, color=BLUE, alpha=0.6,
                         edgecolor="none")
            axis.plot([layer - 0.3, layer + 0.3], [values.quantile(0.5).item()] * 2, color=BLACK,
                      linewidth=1.4)
        axis.axhline(0, color=BLACK, linewidth=0.7, linestyle=":")
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("sink of a head (line: median)")
    return figure


def plot_tables(models, texts):
    """Plot the loads that hash tables give, experts sorted: all ids alike, and as in a text."""
    figure, axes = _panels(models, sharey=True)
    for axis, (name, source) in zip(axes, models.items()):
        for label, ids, style in (("all ids equally frequent", None, "-"),
                                  ("as frequent as in a text", texts.get(name), "--")):
            if label.startswith("as") and ids is None:
                continue
            for (layer, load), colour in zip(tables_of(source, ids).items(), COLOURS):
                load = load.sort(descending=True).values.tolist()
                axis.plot(range(1, len(load) + 1), load, style, color=colour,
                          marker="o" if len(load) < 20 else None, label=f"layer {layer}, {label}")
        axis.axhline(1, color=BLACK, linewidth=0.7, linestyle=":")
        axis.set_xlabel("expert, by its load")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=9)
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("load / mean load")
    return figure


def plot_routers(models):
    """Plot the spread of the balancing biases by depth, and how alike the rows of a gate are.

    Small portraits do not know the rows.
    """
    routers = {name: routers_of(source) for name, source in models.items()}
    panels = 2 if any(len(one["cosine"]) for one in routers.values()) else 1
    figure, (axes,) = plt.subplots(1, panels, figsize=(5.1 * panels, 3.4), squeeze=False)
    for (name, one), colour, style in zip(routers.items(), COLOURS, LINES):
        bias = one["bias"]
        spread = (bias - bias.mean(1, keepdim=True)).square().mean(1).sqrt()
        axes[0].plot(_depth(spread), spread.tolist(), style, color=colour, marker="o",
                     label=name)
        if panels == 2:
            axes[1].plot(_depth(one["cosine"]), one["cosine"].tolist(), style, color=colour,
                         marker="o", label=name)
    for axis in axes:
        axis.set_xlabel("depth (0: first such layer, 1: last)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(models))
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("standard deviation over experts")
    axes[0].set_title("the balancing biases")
    if panels == 2:
        axes[1].set_ylabel("mean cosine of two rows")
        axes[1].set_title("the gates' rows")
    return figure


def plot_connections(models):
    """Show the static comb of three sites, and its effect through all layers; one row per model."""
    figure, axes = plt.subplots(len(models), 4, figsize=(10.2, 2.1 * len(models) + 0.4),
                                squeeze=False, width_ratios=[1, 1, 1, 2.2])
    combs = {name: connections_of(source)[2] for name, source in models.items()}
    lowest = min(through_depth(comb)[1][-1] for comb in combs.values())
    for (*small, axis), (name, comb) in zip(axes, combs.items()):
        S = len(comb)
        for k, site in enumerate((0, S // 2, S - 1)):
            heat(small[k], comb[site], f"{name}, site {site}" if k == 0 else f"site {site}")
        gains, left = through_depth(comb)
        axis.plot(range(1, S + 1), gains, color=BLUE, marker="o", markersize=4,
                  label="largest gain")
        axis.plot(range(1, S + 1), left, color=ORANGE, linestyle="--", marker="s", markersize=4,
                  label="left of a difference")
        axis.set_yscale("log")
        axis.set_ylim(10 ** math.floor(math.log10(max(lowest / 2, 1e-7))), 5)
        axis.set_ylabel("gain, what is left")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, -1].legend(fontsize=9, loc="lower left")
    axes[-1, -1].set_xlabel("sites passed")
    return figure


def plot_biases(models):
    """Plot the weight that the compressors' biases alone give to each slot of a window."""
    figure, axes = _panels(models, height=4.0, sharey=True)
    for axis, source in zip(axes, models.values()):
        layers = biases_of(source)
        kinds = [m == 4 for m, _ in layers.values()]
        many = max(kinds.count(True), kinds.count(False)) > 3
        styles = {True: [(BLUE, "o"), (SKY, "s"), (GREEN, "^")],
                  False: [(ORANGE, "D"), (PURPLE, "v"), (VERMILION, "P")]}
        for layer, (m, weights) in layers.items():
            colour, mark = styles[m == 4][0] if many else styles[m == 4].pop(0)
            x = [(slot + 0.5) / len(weights) for slot in range(len(weights))]
            axis.plot(x, weights.tolist(), "-" if m == 4 else "--", color=colour,
                      marker=mark if len(weights) < 20 else None, markersize=5,
                      label=f"layer {layer}: {'CSA' if m == 4 else f'HCA, {m} tokens'}")
        axis.axhline(1, color=BLACK, linewidth=0.7, linestyle=":")
        axis.set_xlabel("slot (0: oldest, 1: newest)")
        handles = [Patch(facecolor=BLUE, label="CSA"),
                   Patch(facecolor=ORANGE, label="HCA")] if many else None
        axis.legend(handles=handles, fontsize=9, loc="upper left")
    axes[0].set_ylabel("weight / even weight")
    axes[0].set_ylim(0, 1.45 * axes[0].get_ylim()[1])  # room for the legends
    return figure


def plot_reach(models):
    """Plot what a token adds to the hyper-connections' maps beside their static part, by site.

    models: {name: portrait}.
    """
    figure, axes = _panels(models, sharey=True)
    for axis, source in zip(axes, models.values()):
        reach, static = reach_of(source)
        for k, (what, colour) in enumerate(zip(("pre", "post", "comb"), COLOURS)):
            axis.plot(reach[:, k].tolist(), "-", color=colour, label=f"{what}: a token")
            axis.plot(static[:, k].tolist(), "--", color=colour, label=f"{what}: static")
        axis.set_xlabel("site")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  fontsize=9)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("size before the bounds")
    return figure


def plot_norms(models):
    """Plot the size of the norms' weights, layer by layer. models: {name: portrait}."""
    figure, axes = _panels(models, sharey=True)
    for axis, source in zip(axes, models.values()):
        norms = torch.stack(list(source.norms.values())).T
        for norm, values, colour, style in zip(NORMS, norms, COLOURS, LINES):
            axis.plot(values.tolist(), style, color=colour, label=norm)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("weights of a norm (r.m.s.)")
    return figure


def portrait_figures(portraits) -> dict:
    """{alternative text: figure} of what portraits say; of small ones there are three.

    portraits: {name of the model: portrait}, all of them whole or all small.
    """
    plots = {"The sink of each head, layer by layer": plot_sinks,
             "Static comb matrices of three sites, and their effect through all sites":
                 plot_connections,
             "The routers: spread of the balancing biases, similarity of rows": plot_routers}
    if not any(portrait.small for portrait in portraits.values()):
        plots |= {"Loads that the hash tables give to experts, if all ids were equally frequent":
                      lambda models: plot_tables(models, {}),
                  "Weights that the compressors' biases give to the slots of a window": plot_biases,
                  "What a token adds to the hyper-connections' maps, beside their static part":
                      plot_reach,
                  "The size of the norms' weights, by layer": plot_norms}
    names = " and ".join(portraits)
    return {f"{text}: {names}": plot(portraits) for text, plot in plots.items()}


def plot_spectra(models):
    """Plot singular values of some matrices of one layer, and of random numbers."""
    figure, axes = _panels(models, sharey=True)
    for axis, source in zip(axes, models.values()):
        source = opened(source)
        for (part, s), colour, style in zip(spectra_of(source).items(), COLOURS, LINES):
            axis.plot(_depth(s), s.tolist(), style, color=colour,
                      label=f"{part} ({effective_rank(s):.0%})")
        shape = (source.config.moe_inter_dim, source.config.dim)
        s = _spectrum(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        axis.plot(_depth(s), s.tolist(), color=BLACK, linewidth=1, linestyle=":",
                  label=f"random ({effective_rank(s):.0%})")
        axis.set_yscale("log")
        axis.set_ylim(3e-3, 1.3)
        axis.set_xlabel("singular value, from first to last")
        axis.legend(fontsize=8.5, loc="lower left")
    axes[0].set_ylabel("size, over the largest")
    return figure


def plot_rounding(models):
    """Plot how often FP4 experts use each code magnitude, and the estimated error of rounding."""
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.6), width_ratios=[1.4, 1])
    names = list(models)
    for k, (name, source) in enumerate(models.items()):
        matrices = rounding_of(source)
        shares = [matrix["shares"] for matrix in matrices.values() if matrix["format"] == "FP4"]
        if shares:
            mean = 100 * torch.stack(shares).mean(0)
            axes[0].bar(bar_places(8, k, len(models)), mean.tolist(), 0.76 / len(models),
                        color=COLOURS[k], label=name)
        for matrix in matrices.values():
            fp8 = matrix["format"] == "FP8"
            axes[1].scatter(k, 100 * matrix["error"], color=BLUE if fp8 else ORANGE,
                            marker="o" if fp8 else "s", s=34)
    axes[0].set_xticks(range(8), ["0", "0.5", "1", "1.5", "2", "3", "4", "6"])
    axes[0].set_xlabel("size of the code (FP4 experts)")
    axes[0].set_ylabel("share of the numbers (%)")
    axes[0].legend()
    axes[1].set_xticks(range(len(names)), names)
    axes[1].set_xlim(-0.5, len(names) - 0.5)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("estimated error (%)")
    axes[1].grid(False, axis="x")
    axes[1].legend(handles=[Patch(facecolor=BLUE, label="FP8"),
                            Patch(facecolor=ORANGE, label="FP4")], loc="center")
    return figure


def plot_loads(traces):
    """Plot each expert's load on a text, and how even each layer's load is.

    traces: {name: trace}.
    """
    figure, axes = plt.subplots(1, len(traces) + 1, figsize=(10.6, 3.4),
                                width_ratios=[1] * len(traces) + [1.2])
    for axis, (name, trace) in zip(axes, traces.items()):
        load = trace["load"].float()
        share = (load / load.mean(1, keepdim=True)).tolist()
        image = axis.imshow(share, aspect="auto", vmin=0, vmax=2.5, interpolation="nearest")
        axis.set_title(name)
        axis.set_xlabel("expert")
        axis.set_ylabel("layer")
        axis.grid(False)
        for side in (axis.xaxis, axis.yaxis):
            side.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes[:-1].tolist(), label="load / mean load", extend="max")
    for (name, trace), colour, style in zip(traces.items(), COLOURS, LINES):
        even = 100 * evenness(trace["load"].float())
        axes[-1].plot(_depth(even), even.tolist(), style, color=colour, marker="o", label=name)
    axes[-1].set_ylim(0, 105)
    axes[-1].set_xlabel("depth")
    axes[-1].set_ylabel("experts' worth of load (%)")
    axes[-1].set_title("evenness")
    axes[-1].legend(loc="lower right")
    return figure


def plot_lens(traces, chances):
    """Plot the loss of the logit lens after each layer.

    traces: {name: trace}; chances: {name: ln V}.
    """
    figure, axis = plt.subplots(figsize=(8.4, 3.4))
    for (name, trace), colour, style in zip(traces.items(), COLOURS, LINES):
        layers = range(1, len(trace["loss"]) + 1)
        axis.plot(layers, trace["loss"].tolist(), style, color=colour, marker="o", label=name)
    for chance in {chances[name] for name in traces}:
        axis.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":")
        alike = " and ".join(name for name in traces if chances[name] == chance)
        axis.text(1, chance, f"guessing, {alike}", fontsize=9, va="bottom")
    axis.set_xlabel("layers passed")
    axis.set_ylabel("loss of the lens (nats per token)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    axis.legend(loc="center left")
    return figure


def plot_lens_table(trace, words, spell, last=9):
    """Show what the lens predicts after each layer, and below it the token that comes next.

    words: the text's tokens; spell: id -> text; last: how many positions to show.
    """
    words = words[-last - 1:]
    L, T = len(trace["best"]), len(words) - 1
    best, chance = trace["best"][:, -T - 1:-1], trace["chance"][:, -T - 1:-1]
    figure, axis = plt.subplots(figsize=(10.6, 0.48 * (L + 1) + 1.2))
    image = axis.imshow(chance.tolist(), vmin=0, vmax=1, aspect="auto", cmap="cividis")
    for t in range(T):
        for i in range(L):
            axis.text(t, i, spell(int(best[i, t])), ha="center", va="center", fontsize=9,
                      color="white" if chance[i, t] < 0.5 else BLACK)
        axis.text(t, L, words[t + 1], ha="center", va="center", fontsize=9, weight="bold")
    figure.colorbar(image, label="probability")
    axis.set_ylim(L + 0.5, -0.5)
    axis.set_yticks(range(L + 1), [*(f"layer {i}" for i in range(L)), "comes next"])
    axis.set_xticks(range(T), words[:-1], fontsize=10)
    axis.xaxis.tick_top()
    axis.set_xlabel("above: the text, token by token; "
                    "below each: what the head would say comes next, and what does")
    axis.grid(False)
    axis.tick_params(length=0)
    return figure
