"""The layout of V4's checkpoints: which tensors a `Config` has, in which number formats, and in which files.

The file layout follows the released checkpoints. All of it is arithmetic: nothing is built, nothing is read.
"""

import math

from minids.config import CSA_RATE

# safetensors' name of a type -> bytes of an element
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}


def tensors(config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor name: (number format in the released files, shape of the numbers)}, in the order of the model.

    Formats: "FP8" and "FP4" (with a scale beside), "BF16", "F32", and "I64" for the tables of the hash layers.
    The names are those of `Model.state_dict()`.
    """
    d = config.dim
    found = {"embed.weight": ("BF16", (config.vocab_size, d))}
    for i in range(config.n_layers):
        found |= _block(config, f"layers.{i}.", config.compress_ratios[i], config.is_hash(i))
    found |= {"norm.weight": ("BF16", (d,)), "head.weight": ("BF16", (config.vocab_size, d)), **_hc_head(config, "")}
    for i in range(config.n_mtp_layers):
        at = f"mtp.{i}."
        found |= _block(config, at, 0, False)
        found |= {at + "e_proj.weight": ("FP8", (d, d)), at + "h_proj.weight": ("FP8", (d, d))}
        found |= {at + name + ".weight": ("BF16", (d,)) for name in ("enorm", "hnorm", "norm")}
        found |= _hc_head(config, at)
    return found


def _block(config, at: str, ratio: int, is_hash: bool) -> dict:
    d, n, c, I, E = config.dim, config.hc_mult, config.head_dim, config.moe_inter_dim, config.n_routed_experts
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
        t |= {"attn.indexer.wq_b.weight": ("FP8", (hi * ci, q)), "attn.indexer.weights_proj.weight": ("BF16", (hi, d))}
    t["ffn.gate.weight"] = ("BF16", (E, d))
    if is_hash:
        t["ffn.gate.tid2eid"] = ("I64", (config.vocab_size, config.n_activated_experts))
    else:
        t["ffn.gate.bias"] = ("F32", (E,))
    routed = config.expert_dtype.upper()
    for expert, format in [*((f"experts.{e}", routed) for e in range(E)), ("shared_experts", "FP8")]:
        for w, shape in (("w1", (I, d)), ("w2", (d, I)), ("w3", (I, d))):
            t[f"ffn.{expert}.{w}.weight"] = (format, shape)
    for site in ("attn", "ffn"):
        t |= {f"hc_{site}_fn": ("F32", ((2 + n) * n, n * d)), f"hc_{site}_base": ("F32", ((2 + n) * n,)),
              f"hc_{site}_scale": ("F32", (3,))}
    return {at + name: tensor for name, tensor in t.items()}


def _compressor(config, at: str, ratio: int, width: int) -> dict:
    wide = 2 * width if ratio == CSA_RATE else width    # with overlap: one half for this window, one for the next
    return {at + "wkv.weight": ("BF16", (wide, config.dim)), at + "wgate.weight": ("BF16", (wide, config.dim)),
            at + "ape": ("F32", (ratio, wide)), at + "norm.weight": ("BF16", (width,))}


def _hc_head(config, at: str) -> dict:
    n = config.hc_mult
    shapes = {"fn": (n, n * config.dim), "base": (n,), "scale": (1,)}
    return {f"{at}hc_head_{name}": ("F32", shape) for name, shape in shapes.items()}


def on_disk(name: str, format: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the released files hold for one tensor of `tensors`: {name: (dtype as safetensors says, shape)}, scale included.

    FP8 has a scale for each 128 x 128 block; FP4 is two numbers in a byte, with a scale for 32 columns of a row.
    """
    if format not in ("FP8", "FP4"):
        return {name: (format, shape)}
    o, i = shape
    scale = name.removesuffix("weight") + "scale"
    if format == "FP8":
        return {name: ("F8_E4M3", shape), scale: ("F8_E8M0", (math.ceil(o / 128), math.ceil(i / 128)))}
    return {name: ("I8", (o, i // 2)), scale: ("F8_E8M0", (o, math.ceil(i / 32)))}


def inventory(config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor name: (dtype as safetensors says, shape)} of the released layout, in the order of the shards."""
    return {disk_name: tensor for name, (format, shape) in tensors(config).items()
            for disk_name, tensor in on_disk(name, format, shape).items()}


def disk_bytes(config) -> int:
    """Bytes of all tensors in the released layout, without the files' headers."""
    return sum(nbytes(tensor) for tensor in inventory(config).values())


def nbytes(tensor: tuple[str, tuple[int, ...]]) -> int:
    """Bytes of one entry of `inventory`."""
    dtype, shape = tensor
    return BYTES[dtype] * math.prod(shape)


def shards(config) -> dict[str, list[str]]:
    """{file name: names of its tensors} as released: the embedding, a file for each layer, the head, then MTP if any."""
    groups = {}
    for name in inventory(config):
        first, second = name.split(".")[0], name.split(".")[1:2]
        group = ("layers", second[0]) if first == "layers" else first if first in ("embed", "mtp") else "head"
        groups.setdefault(group, []).append(name)
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(groups.values(), 1)}
