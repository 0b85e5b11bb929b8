"""The layout of V4's checkpoints: the tensors of a `Config`, their number formats, and their files.

The layout follows the released checkpoints. All of it is arithmetic: nothing is built, nothing is
read.
"""

import math
from collections.abc import Iterable

from minids.config import CSA_RATE
from minids.errors import MinidsError
from minids.weights.header import DTYPES

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# what a reader accepts, under safetensors' names of the types
FLOATS, INTEGERS, SCALES = ("F32", "BF16", "F16"), ("I64", "I32"), ("F8_E8M0", "F32")
CODES = {"F8_E4M3": "FP8", "I8": "FP4"}     # stored type -> number format, with a scale beside

DSPARK_BLOCKS = 3

Spec = tuple[str, tuple[int, ...]]          # a number format or a stored type, and a shape


def tensors(config) -> dict[str, Spec]:
    """{tensor name: (number format in the released files, shape)}, in the order of the model.

    Formats: "FP8" and "FP4" (with a scale beside), "BF16", "F32", and "I64" for the tables of the
    hash layers. The names are those of `Model.state_dict()`.
    """
    d = config.dim
    t = {"embed.weight": ("BF16", (config.vocab_size, d))}
    for i in range(config.n_layers):
        t |= _block(config, f"layers.{i}.", config.compress_ratios[i], config.is_hash(i))
    t |= {"norm.weight": ("BF16", (d,)), "head.weight": ("BF16", (config.vocab_size, d))}
    t |= _hc_head(config, "")
    for i in range(config.n_mtp_layers):
        prefix = f"mtp.{i}."
        t |= _block(config, prefix, 0, False)
        t |= {prefix + name: ("FP8", (d, d)) for name in ("e_proj.weight", "h_proj.weight")}
        norms = ("enorm.weight", "hnorm.weight", "norm.weight")
        t |= {prefix + name: ("BF16", (d,)) for name in norms}
        t |= _hc_head(config, prefix)
    return t


def dspark(config, targets: int, rank: int, blocks: int = DSPARK_BLOCKS) -> dict[str, Spec]:
    """The tensors of DSpark, the draft module of Flash-0731 and Pro-0813; {name: as in `tensors`}.

    It is stored below `mtp.` as `blocks` blocks, in place of the MTP block. It reads `targets`
    layers of the model (`dspark_target_layer_ids`); its Markov head has width `rank`
    (`dspark_markov_rank`). `minids.Model` has none of them.
    """
    d, last = config.dim, f"mtp.{blocks - 1}."
    t = {"mtp.0.main_proj.weight": ("FP8", (d, targets * d)),
         "mtp.0.main_norm.weight": ("BF16", (d,))}
    for i in range(blocks):
        t |= _block(config, f"mtp.{i}.", 0, False)
    t |= {last + "norm.weight": ("BF16", (d,))} | _hc_head(config, last)
    return t | {
        last + "markov_head.markov_w1.weight": ("BF16", (config.vocab_size, rank)),
        last + "markov_head.markov_w2.weight": ("BF16", (config.vocab_size, rank)),
        last + "confidence_head.proj.weight": ("BF16", (1, d + rank)),
    }


def _block(config, prefix: str, ratio: int, is_hash: bool) -> dict:
    d, n, c = config.dim, config.hc_mult, config.head_dim
    I, E = config.moe_inter_dim, config.n_routed_experts
    heads, q, o = config.n_heads * c, config.q_lora_rank, config.o_groups * config.o_lora_rank
    t = {
        "attn_norm.weight": ("BF16", (d,)),
        "ffn_norm.weight": ("BF16", (d,)),
        "attn.wq_a.weight": ("FP8", (q, d)),
        "attn.q_norm.weight": ("BF16", (q,)),
        "attn.wq_b.weight": ("FP8", (heads, q)),
        "attn.wkv.weight": ("FP8", (c, d)),
        "attn.kv_norm.weight": ("BF16", (c,)),
        "attn.attn_sink": ("F32", (config.n_heads,)),
        "attn.wo_a.weight": ("FP8", (o, heads // config.o_groups)),
        "attn.wo_b.weight": ("FP8", (d, o)),
    }
    if ratio:
        t |= _compressor(config, "attn.compressor.", ratio, c)
    if ratio == CSA_RATE:
        ci, hi = config.index_head_dim, config.index_n_heads
        t |= _compressor(config, "attn.indexer.compressor.", ratio, ci)
        t |= {"attn.indexer.wq_b.weight": ("FP8", (hi * ci, q)),
              "attn.indexer.weights_proj.weight": ("BF16", (hi, d))}
    t["ffn.gate.weight"] = ("BF16", (E, d))
    if is_hash:
        t["ffn.gate.tid2eid"] = ("I64", (config.vocab_size, config.n_activated_experts))
    else:
        t["ffn.gate.bias"] = ("F32", (E,))
    experts = dict.fromkeys((f"experts.{e}" for e in range(E)), config.expert_dtype.upper())
    for expert, format in (experts | {"shared_experts": "FP8"}).items():
        for w, shape in (("w1", (I, d)), ("w2", (d, I)), ("w3", (I, d))):
            t[f"ffn.{expert}.{w}.weight"] = (format, shape)
    for site in ("attn", "ffn"):
        t[f"hc_{site}_fn"] = ("F32", ((2 + n) * n, n * d))
        t[f"hc_{site}_base"] = ("F32", ((2 + n) * n,))
        t[f"hc_{site}_scale"] = ("F32", (3,))
    return {prefix + name: tensor for name, tensor in t.items()}


def _compressor(config, prefix: str, ratio: int, width: int) -> dict:
    # with overlap (CSA): one half for this window, one for the next
    wide = 2 * width if ratio == CSA_RATE else width
    t = {
        "wkv.weight": ("BF16", (wide, config.dim)),
        "wgate.weight": ("BF16", (wide, config.dim)),
        "ape": ("F32", (ratio, wide)),
        "norm.weight": ("BF16", (width,)),
    }
    return {prefix + name: tensor for name, tensor in t.items()}


def _hc_head(config, prefix: str) -> dict:
    n = config.hc_mult
    shapes = {"fn": (n, n * config.dim), "base": (n,), "scale": (1,)}
    return {f"{prefix}hc_head_{name}": ("F32", shape) for name, shape in shapes.items()}


def scale_name(name: str) -> str:
    """The name of the scale that belongs to a weight in FP8 or FP4."""
    return name.removesuffix("weight") + "scale"


def on_disk(name: str, format: str, shape: tuple[int, ...]) -> dict[str, Spec]:
    """What the released files hold for one of the `tensors`: {name: (safetensors' type, shape)}.

    FP8 has a scale for each 128 x 128 block. FP4 is two numbers in a byte, with a scale for each 32
    columns of a row.
    """
    if format not in ("FP8", "FP4"):
        return {name: (format, shape)}
    o, i = shape
    scale = scale_name(name)
    if format == "FP8":
        blocks = math.ceil(o / 128), math.ceil(i / 128)
        return {name: ("F8_E4M3", shape), scale: ("F8_E8M0", blocks)}
    return {name: ("I8", (o, i // 2)), scale: ("F8_E8M0", (o, math.ceil(i / 32)))}


def inventory(config) -> dict[str, Spec]:
    """{tensor name: (safetensors' type, shape)} as released, in the order of the shards."""
    return stored(tensors(config))


def stored(formats: dict[str, Spec]) -> dict[str, Spec]:
    """What the released files hold for these tensors: {name: (safetensors' type, shape)}."""
    return {name: tensor for weight, (format, shape) in formats.items()
            for name, tensor in on_disk(weight, format, shape).items()}


def disk_bytes(config) -> int:
    """Bytes of all tensors in the released layout, without the files' headers."""
    return sum(nbytes(tensor) for tensor in inventory(config).values())


def nbytes(tensor: Spec) -> int:
    """Bytes of one entry of `inventory`."""
    dtype, shape = tensor
    return DTYPES[dtype].bits * math.prod(shape) // 8


def shards(config) -> dict[str, list[str]]:
    """{file name: names of its tensors} as released.

    The embedding, a file for each layer, the head, then a file for each MTP block.
    """
    return in_shards(inventory(config))


def in_shards(names: Iterable[str]) -> dict[str, list[str]]:
    """{file name: names}, cut as `shards` says. `names` are in the order of the model."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        first, second, *_ = name.split(".") + [""]
        if first in ("layers", "mtp"):
            group = first, second
        else:
            group = "embed" if first == "embed" else "head", ""
        groups.setdefault(group, []).append(name)
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group
            for i, group in enumerate(groups.values(), 1)}


# ---- what files hold, compared with the layout ----

def expected(config, names, where) -> dict:
    """`tensors(config)`, refused with `MinidsError` if it would have far more tensors than `names`.

    So a hostile configuration does not take memory.
    """
    experts = 3 * (config.n_layers + config.n_mtp_layers) * config.n_routed_experts
    if experts > len(names):
        raise MinidsError(f"{where}: config.json describes {experts} expert matrices, the files "
                          f"hold {len(names)} tensors. Take both from the same checkpoint.")
    return tensors(config)


def mismatch(name: str, format: str, shape, info: dict) -> tuple[str | None, str | None]:
    """What is wrong with a stored tensor, or None; and the name of its scale, or None.

    `format` and `shape` are those of `tensors`, `info` is what is stored: {name: (type, shape)}.
    """
    dtype, stored_shape = info[name]
    if dtype in CODES and format != "I64" and len(shape) == 2:
        (_, codes_shape), (_, scale_shape) = on_disk(name, CODES[dtype], shape).values()
        return _mismatch_of_codes(name, shape, info, codes_shape, scale_shape)
    types = INTEGERS if format == "I64" else FLOATS
    if dtype in types and stored_shape == shape:
        return None, None
    (released, released_shape), *_ = on_disk(name, format, shape).values()
    codes = f"{released} {list(released_shape)} or " if released in CODES else ""
    return (f"{name} is {dtype} {list(stored_shape)}, "
            f"expected {codes}{' or '.join(types)} {list(shape)}"), None


def _mismatch_of_codes(name: str, shape, info: dict, codes_shape, scale_shape):
    dtype, stored_shape = info[name]
    scale = scale_name(name)
    if stored_shape != codes_shape or (dtype == "I8" and shape[1] % 32):
        return f"{name} is {dtype} {list(stored_shape)}, expected {list(codes_shape)}", scale
    if scale not in info:
        return f"{name} has no {scale}", None
    scale_dtype, stored_shape = info[scale]
    if scale_dtype not in SCALES or stored_shape != scale_shape:
        return (f"{scale} is {scale_dtype} {list(stored_shape)}, "
                f"expected {' or '.join(SCALES)} {list(scale_shape)}"), scale
    return None, scale


def count_and_names(what: str, names) -> str:
    """`3 missing (a, b, c). `, with at most three names; nothing for no names. For messages."""
    names = sorted(names)
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). "
