"""What a configuration costs: parameters, and operations and cache bytes of a decoded token.

Report: sections 2.3.4 (efficiency) and 4.2.1 (model setups). All of it is arithmetic on a `Config`:
nothing is built. For tensors and bytes on disk see `minids.weights.layout`.
"""

import math

from minids.config import CSA_RATE, Config
from minids.weights.layout import tensors

# ---- parameters ----

# the first of these that occurs in a tensor's name says which part it belongs to
PARTS = {
    ".indexer.": "indexers", ".compressor.": "compressors", ".experts.": "routed experts",
    ".shared_experts.": "shared experts", ".gate.": "routers", "hc_": "hyper-connections",
    "norm.": "norms", ".attn.": "attention", "embed.": "embedding", "head.": "head",
}


def parts(config: Config) -> dict[str, int]:
    """Parameters of the model without its MTP blocks, part by part.

    The hash layers' tables are not parameters.
    """
    counts = dict.fromkeys(("embedding", "attention", "compressors", "indexers", "routers",
                            "routed experts", "shared experts", "hyper-connections", "norms",
                            "head"), 0)
    for name, (format, shape) in tensors(config).items():
        if format != "I64" and not name.startswith("mtp."):
            counts[_part(name)] += math.prod(shape)
    return counts


def _part(name: str) -> str:
    return next(part for mark, part in PARTS.items() if mark in name)


def params(config: Config) -> dict[str, int]:
    """Parameters: "total" without MTP, "mtp", and "active".

    "active" is what one token uses of the total, without the embedding's table.
    """
    counts, E = parts(config), config.n_routed_experts
    mtp = sum(math.prod(shape) for name, (_, shape) in tensors(config).items()
              if name.startswith("mtp."))
    idle = counts["routed experts"] * (E - config.n_activated_experts) // E
    total = sum(counts.values())
    return {"total": total, "mtp": mtp, "active": total - idle - counts["embedding"]}


# ---- one decoded token ----

# Operations are counted in FP8 equivalents, a multiply-add as two: BF16 and float32 weigh 2, FP8 1,
# FP4 x FP4 1/2. The report does not give its factors; these reproduce its 27 and 10 percent of
# operations.

def flops(config: Config, n: int) -> dict[str, float]:
    """FP8-equivalent operations of one token decoded after `n` tokens of context.

    Term by term, and their "total".
    """
    low = high = 0.0    # active matrices in FP8 and FP4, and in BF16 and float32
    share = config.n_activated_experts / config.n_routed_experts
    for name, (format, shape) in tensors(config).items():
        is_matrix = len(shape) == 2 and format != "I64" and not name.endswith(".ape")
        if not is_matrix or name.startswith(("mtp.", "embed.")):
            continue
        weights = math.prod(shape) * (share if ".experts." in name else 1)
        if format in ("FP8", "FP4"):
            low += weights
        else:
            high += weights
    csa, hca, window = _layers(config)
    w = min(n, config.window_size)
    # of one query and one key: scores and sums, in BF16
    core = 2 * config.n_heads * 2 * config.head_dim * 2
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


def kv_bytes(config: Config, n: int) -> dict[str, float]:
    """Bytes of cache after `n` tokens of one sequence, term by term, and their "total".

    An entry holds its rotary channels in BF16 and the others in FP8, an index key is FP4. Scales,
    and the few tokens that wait for their window to fill, are left out, as in the published figure.
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
    """`flops` of DeepSeek-V3.2, for comparison.

    61 layers, 128 heads on a latent of 512 + 64, top 2048 of an FP8 indexer.
    """
    head = 129280 * 7168
    return _with_total({
        "FP8 weights": 2 * (37e9 - 2 * head),
        "BF16 weights": 2 * 2 * head,
        "indexer": 61 * 2 * 64 * 128 * n,
        "core": 61 * 2 * 128 * (576 + 512) * min(n, 2048) * 2,
    })


def kv_bytes_v32(n: int) -> dict[str, float]:
    """`kv_bytes` of DeepSeek-V3.2.

    For each token and layer 512 channels in FP8, 64 in BF16, and an index key of 128 bytes.
    """
    return _with_total({"latents": 61 * 640 * n, "index keys": 61 * 128 * n})


def _layers(config: Config) -> tuple[list[int], list[int], list[int]]:
    """The layers with CSA, with HCA, and with a window only."""
    ratios = list(enumerate(config.compress_ratios[: config.n_layers]))
    csa = [i for i, ratio in ratios if ratio == CSA_RATE]
    hca = [i for i, ratio in ratios if ratio > CSA_RATE]
    window = [i for i, ratio in ratios if ratio == 0]
    return csa, hca, window


def _with_total(terms: dict[str, float]) -> dict[str, float]:
    return {**terms, "total": sum(terms.values())}
