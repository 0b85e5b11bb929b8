"""What a configuration costs: parameters, tensors and bytes on disk, operations and cache bytes of a decoded token.

Report: sections 2.3.4 (efficiency) and 4.2.1 (model setups); the file layout follows the released checkpoints. All of it
is arithmetic on a `Config`: nothing is built. Reading and writing such files is `minids.weights.checkpoint`'s business.
"""

import math

from minids.config import CSA_RATE

# safetensors' name of a type -> bytes of an element
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}


# ---- tensors ----

def layout(config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor name: (number format in the released files, shape of the numbers)}, in the order of the model.

    Formats: "FP8" and "FP4" (with a scale beside), "BF16", "F32", and "I64" for the tables of the hash layers.
    The names are those of `Model.state_dict()`.
    """
    d = config.dim
    tensors = {"embed.weight": ("BF16", (config.vocab_size, d))}
    for i in range(config.n_layers):
        tensors |= _block(config, f"layers.{i}.", config.compress_ratios[i], config.is_hash(i))
    tensors |= {"norm.weight": ("BF16", (d,)), "head.weight": ("BF16", (config.vocab_size, d)), **_hc_head(config, "")}
    for i in range(config.n_mtp_layers):
        at = f"mtp.{i}."
        tensors |= _block(config, at, 0, False)
        tensors |= {at + "e_proj.weight": ("FP8", (d, d)), at + "h_proj.weight": ("FP8", (d, d))}
        tensors |= {at + name + ".weight": ("BF16", (d,)) for name in ("enorm", "hnorm", "norm")}
        tensors |= _hc_head(config, at)
    return tensors


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
    """What the released files hold for one tensor of `layout`: {name: (dtype as safetensors says, shape)}, scale included.

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
    return {disk_name: tensor for name, (format, shape) in layout(config).items()
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


# ---- parameters ----

def parts(config) -> dict[str, int]:
    """Parameters of the model without its MTP blocks, part by part. The hash layers' tables are not parameters."""
    counts = dict.fromkeys(("embedding", "attention", "compressors", "indexers", "routers", "routed experts", "shared experts",
                            "hyper-connections", "norms", "head"), 0)
    for name, (format, shape) in layout(config).items():
        if format != "I64" and not name.startswith("mtp."):
            counts[_part(name)] += math.prod(shape)
    return counts


def _part(name: str) -> str:
    for mark, part in ((".indexer.", "indexers"), (".compressor.", "compressors"), (".experts.", "routed experts"),
                       (".shared_experts.", "shared experts"), (".gate.", "routers"), ("hc_", "hyper-connections"),
                       ("norm.", "norms"), (".attn.", "attention"), ("embed.", "embedding")):
        if mark in name:
            return part
    return "head"


def params(config) -> dict[str, int]:
    """Parameters: "total" without MTP, "mtp", and "active": what one token uses of the total, the embedding's table aside."""
    counts = parts(config)
    mtp = sum(math.prod(shape) for name, (_, shape) in layout(config).items() if name.startswith("mtp."))
    idle = counts["routed experts"] * (config.n_routed_experts - config.n_activated_experts) // config.n_routed_experts
    total = sum(counts.values())
    return {"total": total, "mtp": mtp, "active": total - idle - counts["embedding"]}


# ---- one decoded token ----

# Operations are counted in FP8 equivalents, a multiply-add as two: BF16 and float32 weigh 2, FP8 1, FP4 x FP4 1/2.
# The report does not give its factors; these reproduce its 27 and 10 percent of operations.

def flops(config, n: int) -> dict[str, float]:
    """FP8-equivalent operations of one token decoded after `n` tokens of context, term by term, and their "total"."""
    low = high = 0    # active matrices in FP8 and FP4, and in BF16 and float32
    share = config.n_activated_experts / config.n_routed_experts
    for name, (format, shape) in layout(config).items():
        if name.startswith(("mtp.", "embed.")) or len(shape) < 2 or format == "I64" or name.endswith(".ape"):
            continue
        weights = math.prod(shape) * (share if ".experts." in name else 1)
        if format in ("FP8", "FP4"):
            low += weights
        else:
            high += weights
    csa, hca, window = _layers(config)
    w = min(n, config.window_size)
    core = 2 * config.n_heads * 2 * config.head_dim * 2    # of one query and one key: scores and sums, in BF16
    index = 2 * config.index_n_heads * config.index_head_dim * 0.5
    entries = n // CSA_RATE
    return _with_total({
        "FP8 and FP4 weights": 2 * low,
        "BF16 and float32 weights": 2 * 2 * high,
        "indexer": len(csa) * index * entries,
        "CSA core": len(csa) * core * (min(config.index_topk, entries) + w),
        "HCA core": sum(core * (n // config.compress_ratios[i] + w) for i in hca),
        "window-only core": len(window) * core * w,
    })


def kv_bytes(config, n: int) -> dict[str, float]:
    """Bytes of cache after `n` tokens of one sequence, term by term, and their "total".

    An entry holds its unturned channels in FP8 and its rotary channels in BF16, an index key is FP4; scales and the
    few tokens that wait for their window to fill are left out, as in the published figure.
    """
    csa, hca, _ = _layers(config)
    entry = (config.head_dim - config.rope_head_dim) + 2 * config.rope_head_dim
    return _with_total({
        "window": config.n_layers * entry * min(n, config.window_size),
        "CSA entries": len(csa) * entry * (n // CSA_RATE),
        "CSA index keys": len(csa) * config.index_head_dim / 2 * (n // CSA_RATE),
        "HCA entries": sum(entry * (n // config.compress_ratios[i]) for i in hca),
    })


def flops_v32(n: int) -> dict[str, float]:
    """`flops` of DeepSeek-V3.2, for comparison: 61 layers, 128 heads on a latent of 512 + 64, top 2048 of an FP8 indexer."""
    head = 129280 * 7168
    return _with_total({
        "FP8 weights": 2 * (37e9 - 2 * head),
        "BF16 weights": 2 * 2 * head,
        "indexer": 61 * 2 * 64 * 128 * n,
        "core": 61 * 2 * 128 * (576 + 512) * min(n, 2048) * 2,
    })


def kv_bytes_v32(n: int) -> dict[str, float]:
    """`kv_bytes` of DeepSeek-V3.2: 512 channels in FP8 and 64 in BF16, and an index key of 128 bytes, a token and layer."""
    return _with_total({"latents": 61 * 640 * n, "index keys": 61 * 128 * n})


def _layers(config) -> tuple[list[int], list[int], list[int]]:
    """The layers with CSA, with HCA, and with a window only."""
    ratios = list(enumerate(config.compress_ratios[: config.n_layers]))
    return ([i for i, r in ratios if r == CSA_RATE], [i for i, r in ratios if r > CSA_RATE], [i for i, r in ratios if not r])


def _with_total(terms: dict) -> dict:
    return {**terms, "total": sum(terms.values())}
