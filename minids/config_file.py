"""Read a config.json: its keys, in every spelling, as the fields of a `minids.config.Config`.

A key that would change what the model computes is honoured, or refused by name. Keys that change
nothing here (`use_cache`, `torch_dtype`, `initializer_range`, ...) are ignored.
"""

import json
import re
from pathlib import Path
from typing import Any

from minids.errors import MinidsError
from minids.system.files import read_small

# reference key -> key in config.json, where the value is the same
HF_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_mtp_layers": "num_nextn_predict_layers",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "route_scale": "routed_scaling_factor",
    "swiglu_limit": "swiglu_limit",
    "q_lora_rank": "q_lora_rank",
    "head_dim": "head_dim",
    "rope_head_dim": "qk_rope_head_dim",
    "norm_eps": "rms_norm_eps",
    "o_groups": "o_groups",
    "o_lora_rank": "o_lora_rank",
    "window_size": "sliding_window",
    "rope_theta": "rope_theta",
    "compress_rope_theta": "compress_rope_theta",
    "index_n_heads": "index_n_heads",
    "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
    "hc_mult": "hc_mult",
    "hc_sinkhorn_iters": "hc_sinkhorn_iters",
    "hc_eps": "hc_eps",
    "max_seq_len": "max_position_embeddings",
    "expert_dtype": "expert_dtype",
}
SLIDING = "sliding_attention"
CSA = "compressed_sparse_attention"
HCA = "heavily_compressed_attention"
CSA_RATE = 4  # the ratio that means "with overlap and an indexer"; a larger one is an HCA layer
MAX_BYTES = 2**20  # of a config.json; V4's have 2 KB
# keys that other models set otherwise -> the value that V4 has
FIXED = {"scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "n_group": 1,
         "topk_group": 1, "norm_topk_prob": True, "router_jitter_noise": 0,
         "hidden_act": "silu", "first_k_dense_replace": 0, "moe_layer_freq": 1, "mlp_bias": False,
         "attention_bias": False, "attention_dropout": 0, "num_key_value_heads": 1,
         "tie_word_embeddings": False}
# the same in `quantization_config`; None: the released files have no such key
FIXED_QUANTISATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                      "quant_algo": None, "moe_quant_algo": None}
# keys whose values are not numbers or words; a dot leads into an object
LISTS = ("architectures", "layer_types", "mlp_layer_types", "compress_ratios")
OBJECTS = ("compress_rates", "rope_parameters", "rope_parameters.main", "rope_parameters.compress",
           "rope_scaling", "quantization_config")


class ConfigError(MinidsError):
    """A configuration that cannot be a DeepSeek-V4 model; the message says why."""


def require(ok: bool, name: str, expected: str, found: Any) -> None:
    """Raise `ConfigError` unless `ok`."""
    if not ok:
        huge = type(found) is int and found.bit_length() > 99
        text = f"a number of {found.bit_length()} bits" if huge else repr(found)
        raise ConfigError(f"{name}: expected {expected}, found {text}"[:500])


def read(path: Path) -> dict:
    """The JSON object of a config.json, or of the one in a folder."""
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ConfigError(f"no configuration at {path}: expected a config.json, "
                          f"or a folder with one")
    return parse(read_small(path, MAX_BYTES), str(path))


def parse(text: bytes, where: str) -> dict:
    """The JSON object that a config.json holds; `where` names the file in errors."""
    try:
        d = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not readable JSON: {str(error)[:160]}") from None
    if not isinstance(d, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(d).__name__}")
    return d


def fields_of(d: dict, required: list[str]) -> dict[str, Any]:
    """The fields of a `Config` that a config.json gives; those that are `required` are there.

    Raises `ConfigError` for what is not a V4 configuration.
    """
    _check_types(d)
    _check_model(d)
    _check_quantisation(d)
    fields = {key: d[hf] for key, hf in HF_KEYS.items() if d.get(hf) is not None}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if d.get(key) is not None:
            fields[key] = d[key][0] if isinstance(d[key], list) and d[key] else d[key]
    quantisation = d.get("quantization_config") or {}
    if "expert_dtype" in quantisation:
        fields.setdefault("expert_dtype", quantisation["expert_dtype"])
    factor = d.get("partial_rotary_factor")
    if "rope_head_dim" not in fields and "head_dim" in fields and factor is not None:
        fields["rope_head_dim"] = _rotating(fields["head_dim"], factor, "partial_rotary_factor")
    missing = [HF_KEYS[key] for key in required if key not in fields]
    if missing:
        raise ConfigError(f"not a DeepSeek-V4 configuration: no {', '.join(missing)}")
    if "n_mtp_layers" not in fields or has_dspark(d):
        fields["n_mtp_layers"] = 0
    for key in ("n_layers", "n_mtp_layers"):  # before they size anything
        n = fields[key]
        require(type(n) is int and 0 <= n <= 4096, HF_KEYS[key], "a whole number up to 4096", n)
    fields |= {"compress_ratios": _ratios_of(d, fields["n_layers"], fields["n_mtp_layers"]),
               "n_hash_layers": _hash_layers_of(d, fields["n_layers"])}
    return fields | _rope_of(d, fields["head_dim"], fields["rope_head_dim"])


def has_dspark(d: dict) -> bool:
    """Whether the modules below `mtp.` are those of DSpark, another draft module than MTP.

    So it is in Flash-0731 and Pro-0813, whose `num_nextn_predict_layers` is 1 all the same.
    """
    return any(value for key, value in d.items() if key.startswith("dspark_"))


def _check_types(d: dict) -> None:
    """Raise `ConfigError` if a key has a number or a word where a list or an object belongs, or the
    other way round."""
    for key in LISTS + OBJECTS:
        *outer, last = key.split(".")
        value = ((d.get(outer[0]) or {}) if outer else d).get(last)
        kind, expected = (list, "a list") if key in LISTS else (dict, "an object")
        require(value is None or isinstance(value, kind), key, expected, value)


def _check_model(d: dict) -> None:
    """Raise `ConfigError` if a key asks for another network than V4's."""
    model_type = d.get("model_type", "deepseek_v4")
    require(model_type == "deepseek_v4", "model_type",
            '"deepseek_v4" (V3, V4.1 and all others are other networks)', model_type)
    for key, value in FIXED.items():
        if d.get(key) is not None:
            require(d[key] == value, key, f"{json.dumps(value)}, as in every V4 model", d[key])
    names = d.get("architectures") or ["DeepseekV4Model"]
    require(any(re.match("DeepseekV4(For|Model)", str(name)) for name in names), "architectures",
            "DeepseekV4ForCausalLM", names)
    for key, name in (("intermediate_size", "moe_intermediate_size"),
                      ("num_local_experts", "n_routed_experts")):   # transformers: aliases
        if d.get(key) is not None and d.get(name) is not None:
            require(d[key] == d[name], key, f"{d[name]}, the file's {name}", d[key])


def _check_quantisation(d: dict) -> None:
    """Raise `ConfigError` if the weights are stored in a format that is not V4's own."""
    why = "(of the formats of weights, only those of the released files are read)"
    require(not d.get("quantization"), "quantization", f"no such key of mlx {why}",
            d.get("quantization"))
    quantisation = d.get("quantization_config")
    if not quantisation:
        return
    for key, value in FIXED_QUANTISATION.items():
        found = quantisation.get(key)
        optional = found is None and key != "quant_method"
        require(found == value or optional, f"quantization_config.{key}",
                f"{json.dumps(value) if value else 'none'} {why}", found)


def _ratios_of(d: dict, n_layers: int, n_mtp: int) -> tuple[int, ...]:
    """`compress_ratios`, from any spelling; those of MTP blocks are 0, whatever the file says."""
    rates, by_type, by_ratio = _rates_of(d), None, None
    if d.get("layer_types") is not None:
        types = _layers_of(d, "layer_types", n_layers)
        unknown = [t for t in types if t not in (SLIDING, CSA, HCA)]
        require(not unknown, "layer_types", f"{SLIDING}, {CSA} or {HCA}", unknown)
        by_type = [({SLIDING: 0, CSA: CSA_RATE, HCA: 128} | rates)[t] for t in types]
    if d.get("compress_ratios") is not None:
        by_ratio = _layers_of(d, "compress_ratios", n_layers)
        require(all(type(r) is int for r in by_ratio), "compress_ratios",
                "whole numbers", by_ratio)
        hca = rates.get(HCA)        # `transformers` takes 128 for the name of HCA, not for its rate
        by_ratio = [hca if hca and r == 128 else r for r in by_ratio]
        require(not hca or max(by_ratio, default=0) <= hca, "compress_ratios",
                f"at most {hca}, the rate of HCA layers in this file", max(by_ratio, default=0))
    if by_type is None and by_ratio is None:
        raise ConfigError("not a DeepSeek-V4 configuration: "
                          "neither compress_ratios nor layer_types")
    require(by_type is None or by_ratio in (None, by_type), "compress_ratios",
            f"{by_type}, as layer_types of this file says", by_ratio)
    return (*(by_type or by_ratio or ()), *[0] * n_mtp)


def _rates_of(d: dict) -> dict[str, int]:
    """{kind of layer: its compression ratio}, as far as the file gives them."""
    rates = {}
    for kind, key in ((CSA, "compress_rate_csa"), (HCA, "compress_rate_hca")):
        rate = d.get(key)
        if rate is None:
            key, rate = f"compress_rates[{kind}]", (d.get("compress_rates") or {}).get(kind)
        if rate is not None:
            expected = (f"{CSA_RATE}, the rate with overlap" if kind == CSA else
                        f"more than {CSA_RATE}")
            fits = type(rate) is int and (rate == CSA_RATE if kind == CSA else rate > CSA_RATE)
            require(fits, key, expected, rate)
            rates[kind] = rate
    return rates


def _layers_of(d: dict, key: str, n_layers: int) -> list:
    """The entries of a list for the layers. A longer list also covers MTP blocks, or layers that
    this file's model does not have."""
    entries = list(d[key])
    require(len(entries) >= n_layers, key,
            f"an entry for each of {n_layers} layers (num_hidden_layers)", len(entries))
    return entries[:n_layers]


def _hash_layers_of(d: dict, n_layers: int) -> int:
    """`n_hash_layers`, from either spelling."""
    n_hash = d.get("num_hash_layers")
    require(n_hash is None or type(n_hash) is int, "num_hash_layers", "a whole number", n_hash)
    if d.get("mlp_layer_types") is None:
        return min(n_layers, 3 if n_hash is None else n_hash)
    types = _layers_of(d, "mlp_layer_types", n_layers)
    is_hash = [t == "hash_moe" for t in types]
    hash_first = is_hash == sorted(is_hash, reverse=True)
    require(hash_first and all(t in ("hash_moe", "moe") for t in types), "mlp_layer_types",
            "hash_moe layers first, then moe", types)
    require(n_hash is None or min(n_layers, n_hash) == sum(is_hash), "num_hash_layers",
            f"{sum(is_hash)}, as mlp_layer_types of this file says", n_hash)
    return sum(is_hash)


def _rope_of(d: dict, head_dim: int, rope_head_dim: int) -> dict[str, Any]:
    """The fields of the rotary embedding, as far as nested entries give them."""
    rope, fields = d.get("rope_parameters") or {}, {}
    nested = {kind: rope.get(kind) or {} for kind in ("main", "compress")}
    for where, entry in (("", d), *((f"rope_parameters.{k}.", e) for k, e in nested.items())):
        if entry.get("partial_rotary_factor") is not None:
            found = _rotating(head_dim, entry["partial_rotary_factor"],
                              f"{where}partial_rotary_factor")
            require(found == rope_head_dim, f"{where}partial_rotary_factor x head_dim",
                    f"{rope_head_dim} (qk_rope_head_dim)", found)
    for kind, key in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        if "rope_theta" in nested[kind]:
            fields[key] = nested[kind]["rope_theta"]
    kind = nested["main"].get("rope_type", "default")
    require(kind == "default", "rope_parameters.main.rope_type", '"default"', kind)
    places = {"rope_scaling": d.get("rope_scaling"),
              "rope_parameters.compress": nested["compress"], "rope_parameters": rope}
    return fields | next((_yarn_of(entry, key) for key, entry in places.items() if entry), {})


def _rotating(head_dim: int, factor: float, key: str) -> int:
    """The channels of a head that rotate, as `transformers` counts them, from the value of `key`.
    """
    require(type(factor) in (int, float) and 0 <= factor <= 1, key, "a number from 0 to 1", factor)
    require(type(head_dim) is int and 0 < head_dim <= 2**20, "head_dim",
            "a whole number from 1 to 2^20", head_dim)
    return int(head_dim * factor)


def _yarn_of(scaling: dict, where: str) -> dict[str, Any]:
    """The fields of YaRN, from the entry that describes it; none without YaRN."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    require(kind in ("default", "yarn"), f"{where} type", '"yarn" or "default"', kind)
    if kind == "default":
        return {}
    for key in ("factor", "original_max_position_embeddings"):
        require(scaling.get(key) is not None, f"{where}.{key}", "a number with YaRN", None)
    for key, value in (("attention_factor", 1), ("truncate", True)):
        require(scaling.get(key) in (None, value), f"{where}.{key}",
                f"{json.dumps(value)}, as in every V4 model", scaling.get(key))
    return {"original_seq_len": scaling["original_max_position_embeddings"],
            "rope_factor": scaling["factor"],
            "beta_fast": scaling.get("beta_fast") or 32.0,
            "beta_slow": scaling.get("beta_slow") or 1.0}


def in_words_of_file(message: str, d: dict) -> str:
    """An error message of `Config` with the keys of the file in place of the names of fields."""
    keys = HF_KEYS | {
        "compress_ratios": "compress_ratios" if d.get("compress_ratios") else "layer_types",
        "n_hash_layers": "mlp_layer_types" if d.get("mlp_layer_types") else "num_hash_layers",
        "original_seq_len": "original_max_position_embeddings", "rope_factor": "factor"}
    if d.get("qk_rope_head_dim") is None:
        keys["rope_head_dim"] = "partial_rotary_factor x head_dim"
    return re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), message)
