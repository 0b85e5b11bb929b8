"""A portrait of a checkpoint: what the small tensors of all its layers say, in a small file.

    taken = portrait.take(Checkpoint("deepseek-ai/DeepSeek-V4-Flash"))
    portrait.save(taken)
    portrait.newest()                 # later, without a network

A whole portrait reads sinks, routers and their biases, hash tables, hyper-connections, the
compressors' biases and norms: 0.25 of the 160 GB of V4-Flash. A small one reads sinks, the static
part of the hyper-connections and the routers' biases, 61 kB. Both keep the numbers that figures
need: for example not the rows of a router, only how alike they are. (For Flash that makes about
0.11 MB.) The file is a safetensors file of float32 numbers. Its metadata say whose portrait it is.

Sites of the hyper-connections are numbered through the model: 2 i is before the attention of layer
i, 2 i + 1 before its experts. For the figures see `minids.show.real`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from minids.config import CSA_RATE, Config
from minids.errors import MinidsError
from minids.system.files import atomic_write, read_small
from minids.system.paths import home
from minids.weights import header, layout
from minids.weights.checkpoint import Checkpoint, check_table
from minids.weights.hub import HubFiles

# what is read of each layer
SMALL = ("attn.attn_sink", "hc_*_base", "hc_*_scale", "ffn.gate.bias")
WHOLE = (*SMALL, "hc_*_fn", "ffn.gate.weight", "ffn.gate.tid2eid", "attn.compressor.ape",
         "*norm.weight")
NORMS = ("attn_norm", "ffn_norm", "attn.q_norm", "attn.kv_norm")
LARGEST = 2**23             # bytes of a portrait; that of V4-Pro has less than 2^18

Numbers = dict[int, Tensor]     # {layer or site: numbers}


@dataclass(frozen=True)
class Portrait:
    """Numbers of a checkpoint, layer by layer or site by site. What a small one lacks is empty.

    With H heads, E experts, n streams:
    """

    name: str                   # OWNER/NAME, or the name of the folder
    revision: str | None        # the commit; None for a folder
    small: bool
    config: Config
    sinks: Numbers              # {layer: H}
    bias: Numbers               # {layer routed by score: E}, the balancing biases
    base: Numbers               # {site: (2+n)n}, the static part
    scale: Numbers              # {site: 3}, for pre, post and comb
    reach: Numbers              # {site: 3}, see `reach_of`
    cosine: Numbers             # {layer: one number}, see `cosine_of`
    load: Numbers               # {layer routed by hash: E}, see `load_of`
    slots: Numbers              # {layer with a compressor: slots of a window}, see `slots_of`
    norms: Numbers              # {layer: 4}, root mean squares of the weights of `NORMS`

    @property
    def title(self) -> str:
        """The model's name in figures: V4-Flash for deepseek-ai/DeepSeek-V4-Flash."""
        return self.name.split("/")[-1].removeprefix("DeepSeek-")


NUMBERS = tuple(field.name for field in fields(Portrait) if field.type is Numbers)


# ---- taking one ----

def names(config: Config, small: bool = False) -> list[str]:
    """The tensors that a portrait reads."""
    patterns = SMALL if small else WHOLE
    return [name for name in layout.tensors(config) if name.startswith("layers.")
            and any(fnmatchcase(name.split(".", 2)[2], pattern) for pattern in patterns)]


def take(checkpoint: Checkpoint, small: bool = False) -> Portrait:
    """The portrait of a checkpoint. Tensors that are not on this machine are fetched first."""
    config, wanted = checkpoint.config, names(checkpoint.config, small)
    checkpoint.fetch(wanted)
    files = checkpoint.files

    def each(tensor: str) -> Iterator[tuple[int, Tensor]]:
        """(layer, values) of one tensor, of all layers that have it and are read."""
        for layer in range(config.n_layers):
            name = f"layers.{layer}.{tensor}"
            if name in wanted:
                yield layer, checkpoint.read(name)

    def sites(part: str) -> Numbers:
        return dict(sorted((2 * layer + k, values) for k, at in enumerate(("attn", "ffn"))
                           for layer, values in each(f"hc_{at}_{part}")))

    for layer, table in each("ffn.gate.tid2eid"):
        check_table(table, config, f"{checkpoint.where}: the hash table of layer {layer}")
    scale, norms = sites("scale"), {}
    for norm in NORMS:
        for layer, weight in each(f"{norm}.weight"):
            norms.setdefault(layer, []).append(weight.square().mean().sqrt())
    return Portrait(
        name=files.repo if isinstance(files, HubFiles) else files.path.resolve().name,
        revision=checkpoint.revision, small=small, config=config,
        sinks=dict(each("attn.attn_sink")), bias=dict(each("ffn.gate.bias")),
        base=sites("base"), scale=scale,
        reach={site: reach_of(fn, scale[site]) for site, fn in sites("fn").items()},
        cosine={layer: cosine_of(W) for layer, W in each("ffn.gate.weight")},
        load={layer: load_of(table, config) for layer, table in each("ffn.gate.tid2eid")},
        slots={layer: slots_of(ape) for layer, ape in each("attn.compressor.ape")},
        norms={layer: torch.stack(values) for layer, values in norms.items()})


def reach_of(fn: Tensor, scale: Tensor) -> Tensor:
    """How far a token moves pre, post and comb (before their bounds) of one site: 3.

    It is the standard deviation over streams whose entries are independent, of mean 0 and equal
    size: |scale| times the size of a row of `fn`, root mean square over the rows of a map. What it
    is to be compared with is the static part, `base`. fn: (2+n)n nd; scale: 3.
    """
    n = round((len(fn) + 1) ** 0.5) - 1                     # (n + 1)^2 = (2+n)n + 1
    rows = fn.square().sum(1)
    return torch.stack([part.mean().sqrt() for part in rows.split([n, n, n * n])]) * scale.abs()


def cosine_of(W: Tensor) -> Tensor:
    """The mean cosine of the rows of two experts in a router. W: E d."""
    C = F.normalize(W, dim=1) @ F.normalize(W, dim=1).T
    return (C.sum() - len(C)) / (len(C) * (len(C) - 1))


def load_of(table: Tensor, config: Config, ids: Tensor | None = None) -> Tensor:
    """The load that a hash table gives to each expert, over the mean load: E.

    All ids count as equally frequent, or as frequent as in `ids`. table: V K.
    """
    times = torch.ones(config.vocab_size)
    if ids is not None:
        times = ids.flatten().bincount(minlength=config.vocab_size).float()
    choices = times.repeat_interleave(table.shape[1])
    load = torch.zeros(config.n_routed_experts).index_add_(0, table.flatten(), choices)
    return load / load.mean()


def slots_of(ape: Tensor) -> Tensor:
    """The weight that a compressor's bias alone gives to each slot of a window, over even weights.

    Mean over channels. A CSA layer has 8 slots: the four tokens before its window, then its own.
    ape: m f, with f channels, or twice that in a CSA layer.
    """
    slots = torch.cat(ape.chunk(2, dim=1)) if len(ape) == CSA_RATE else ape  # 2m c or m c
    return slots.softmax(0).mean(1) * len(slots)


# ---- files ----

def place(name: str, small: bool = False) -> Path:
    """Where the portrait of a model is kept by default: in the learner's own folder."""
    file = name.strip("/").replace("/", "--") + (".small" if small else "") + ".safetensors"
    return home() / "portraits" / file


def save(portrait: Portrait, path: str | Path | None = None) -> Path:
    """Write a portrait, whole or not at all, to `path` or to its `place`. Returns the path."""
    if path is None:
        path = place(portrait.name, portrait.small)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinidsError(f"cannot make the folder {path.parent}: {error.strerror}. "
                              f"Name a file with --out") from None
    tensors = {f"{kind}.{i}": values.contiguous()
               for kind in NUMBERS for i, values in getattr(portrait, kind).items()}
    _compare(tensors, portrait.config, portrait.small, portrait.name)
    about = {"name": portrait.name, "revision": portrait.revision, "small": portrait.small,
             "config": portrait.config.to_json()}
    about["sha256"] = _digest(about, save_tensors(tensors))
    check_target(path)
    with atomic_write(path) as part:
        part.write_bytes(save_tensors(tensors, {"portrait": json.dumps(about)}))
    return Path(path)


def check_target(path: str | Path) -> None:
    """Raise `MinidsError` if `path` is a file that is no portrait: it must not be replaced."""
    path = Path(path)
    if path.is_file() and b'"portrait"' not in path.read_bytes()[:2**12]:
        raise MinidsError(f"{path} is no portrait: expected a new file, or a portrait to replace")


def load(path: str | Path) -> Portrait:
    """Read a portrait. `MinidsError` for a damaged one, and for any other file."""
    data = read_small(path, LARGEST)
    damaged = MinidsError(f"{path} is damaged: remove it, and take the portrait again")
    try:
        entries = header.tensors(data, len(data), path)
    except MinidsError:
        raise damaged from None
    about = _about(data[8:header.header_end(data, len(data), path)], path)
    if about.pop("sha256") != _digest(about, data):
        raise damaged
    config, small, tensors = Config.from_json(about["config"]), about["small"], load_tensors(data)
    _compare(tensors, config, small, path)
    numbers: dict[str, Numbers] = {kind: {} for kind in NUMBERS}
    for key in sorted(entries, key=lambda key: int(key.split(".")[1])):
        kind, i = key.split(".")
        numbers[kind][int(i)] = tensors[key]
    return Portrait(name=about["name"], revision=about["revision"], small=small, config=config,
                    **numbers)


def _about(text: bytes, path) -> dict:
    """What a portrait's metadata say: name, revision, small, config and sha256."""
    try:
        about = json.loads(json.loads(text)["__metadata__"]["portrait"])
        typed = (isinstance(about["name"], str), isinstance(about["revision"], str | None),
                 isinstance(about["small"], bool), isinstance(about["config"], dict),
                 isinstance(about["sha256"], str))
    except (KeyError, TypeError, ValueError):
        typed = (False,)
    if not all(typed):
        raise MinidsError(f"{path} is no portrait: expected a file that `minids real portrait` "
                          f"wrote")
    return about


def newest() -> Portrait | None:
    """The portrait in the learner's own folder that was taken last; None where there is none."""
    paths = [path for path in (home() / "portraits").glob("*.safetensors") if path.is_file()]
    if not paths:
        return None
    return load(max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def shapes(config: Config, small: bool) -> dict[str, tuple[int, ...]]:
    """{"sinks.0": shape, ...} of all numbers in a portrait of a model."""
    n, layers, S = config.hc_mult, range(config.n_layers), range(2 * config.n_layers)
    ratios = config.compress_ratios
    kinds: dict[str, dict[int, tuple[int, ...]]] = {
        "sinks": {i: (config.n_heads,) for i in layers},
        "bias": {i: (config.n_routed_experts,) for i in layers if not config.is_hash(i)},
        "base": {s: ((2 + n) * n,) for s in S},
        "scale": {s: (3,) for s in S}}
    if not small:
        kinds |= {
            "reach": {s: (3,) for s in S},
            "cosine": {i: () for i in layers},
            "load": {i: (config.n_routed_experts,) for i in layers if config.is_hash(i)},
            "slots": {i: (2 * ratios[i] if ratios[i] == CSA_RATE else ratios[i],)
                      for i in layers if ratios[i]},
            "norms": {i: (len(NORMS),) for i in layers}}
    return {f"{kind}.{i}": shape for kind, each in kinds.items() for i, shape in each.items()}


def _compare(tensors: dict[str, Tensor], config: Config, small: bool, where) -> None:
    """Raise `MinidsError` unless these are finite numbers of the model of `config`."""
    expected, found = shapes(config, small), {key: tuple(t.shape) for key, t in tensors.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys()
                       if expected.get(key) != found.get(key))
        raise MinidsError(f"{where}: the portrait is not of the model of its configuration: "
                          f"{wrong[0]}: expected {expected.get(wrong[0], 'none')}, "
                          f"found {found.get(wrong[0], 'none')}. Take it again.")
    for key, t in tensors.items():
        if t.dtype != torch.float32 or not t.isfinite().all():
            raise MinidsError(f"{where}: {key} of the portrait: expected finite float32 numbers, "
                              f"found {'NaN or infinity' if t.is_floating_point() else t.dtype}")


def _digest(about: dict, data: bytes) -> str:
    """sha256 of what the metadata say, and of what follows the header of a safetensors file."""
    numbers = data[8 + int.from_bytes(data[:8], "little"):]
    return hashlib.sha256(json.dumps(about).encode() + numbers).hexdigest()
