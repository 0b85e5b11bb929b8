"""The configuration of a DeepSeek-V4 model: every size, under the names of the reference code.

Report: section 4.2.1 (model setups). A `Config` is read from and written to the `config.json` of a
checkpoint, whose keys are named differently (`hidden_size` for `dim`, ...). For what a layer
computes with these numbers see `minids.model`, for what it costs `minids.cost`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minids import config_file
from minids.config_file import CSA, CSA_RATE, HCA, HF_KEYS, SLIDING, ConfigError, require
from minids.system.files import write_text

# the largest accepted values, where not 2^20: no product of sizes can exceed 64 bits
LARGEST = {"vocab_size": 2**24, "bos_token_id": 2**24, "eos_token_id": 2**24, "pad_token_id": 2**24,
           "hc_mult": 2**10, "hc_sinkhorn_iters": 2**10, "max_seq_len": 2**40,
           "original_seq_len": 2**40, "window_size": 2**40, "index_topk": 2**40}
POSITIVE = ("vocab_size", "dim", "n_layers", "n_heads", "head_dim", "rope_head_dim", "q_lora_rank",
            "o_groups", "o_lora_rank", "window_size", "index_n_heads", "index_head_dim",
            "index_topk", "moe_inter_dim", "n_routed_experts", "n_activated_experts", "hc_mult",
            "hc_sinkhorn_iters", "max_seq_len", "norm_eps")


@dataclass(frozen=True)
class Config:
    """Sizes of one model. Field names are the reference code's; comments give the report's symbol.

    `compress_ratios` has one entry for each layer and MTP block: 0 is window-only attention, 4 is
    compressed sparse attention (CSA), anything larger is heavily compressed attention (HCA).
    Raises `ConfigError` when the sizes do not fit together.
    """

    vocab_size: int
    dim: int                            # d
    n_layers: int                       # L
    compress_ratios: tuple[int, ...]    # m (CSA) and m' (HCA), layer by layer, then the MTP blocks
    # attention
    n_heads: int                        # n_h
    head_dim: int                       # c
    rope_head_dim: int                  # the last channels of a head, which rotate
    q_lora_rank: int                    # d_c
    o_groups: int                       # g
    o_lora_rank: int                    # d_g
    window_size: int                    # n_win
    index_n_heads: int                  # n_h^I
    index_head_dim: int                 # c^I
    index_topk: int                     # k
    # mixture of experts
    moe_inter_dim: int                  # width of an expert
    n_routed_experts: int               # N_r
    n_activated_experts: int            # K_r
    n_hash_layers: int                  # the first layers, which route by token id
    n_shared_experts: int = 1           # N_s
    route_scale: float = 1.5
    swiglu_limit: float = 10.0          # 0: no clamp
    # hyper-connections
    hc_mult: int = 4                    # n_hc
    hc_sinkhorn_iters: int = 20         # t_max
    hc_eps: float = 1e-6
    # multi-token prediction, norms, rotary embedding
    n_mtp_layers: int = 1
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    original_seq_len: int = 0           # YaRN's reference length; 0 switches YaRN off
    rope_factor: float = 16.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    max_seq_len: int = 4096
    # file formats and the ids that end a text
    expert_dtype: str = "fp4"           # in the released format: "fp4", or "fp8" in base models
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "compress_ratios", tuple(self.compress_ratios))
        for field in dataclasses.fields(self):
            if field.type is int:
                _check_int(field.name, getattr(self, field.name))
            elif field.type is float:
                _check_float(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name in POSITIVE:
            require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("rope_factor", "beta_fast", "beta_slow"):
            require(getattr(self, name) >= 1e-3, name, "at least 0.001", getattr(self, name))
        for name in ("rope_theta", "compress_rope_theta"):
            require(getattr(self, name) > 1, name, "above 1", getattr(self, name))
        self._check_ratios()
        self._check_sizes()

    def _check_ratios(self) -> None:
        """Raise `ConfigError` unless the compression ratios fit the layers."""
        name, ratios = "compress_ratios", self.compress_ratios
        require(len(ratios) == self.n_layers + self.n_mtp_layers, name,
                f"one entry for each of {self.n_layers} layers and {self.n_mtp_layers} MTP blocks",
                len(ratios))
        allowed = all(type(r) is int and (r == 0 or CSA_RATE <= r <= 2**20) for r in ratios)
        require(allowed, name,
                f"0 (window only), {CSA_RATE} (CSA) or more (HCA) in each entry", ratios)
        require(not any(ratios[self.n_layers:]), name, "0 for the MTP blocks", ratios)
        require(len({r for r in ratios if r > CSA_RATE}) <= 1, name,
                "one HCA ratio for the whole model", ratios)

    def _check_sizes(self) -> None:
        """Raise `ConfigError` unless the sizes fit each other."""
        r, E = self.rope_head_dim, self.n_routed_experts
        require(r % 2 == 0 and r <= self.head_dim, "rope_head_dim",
                f"even and at most head_dim = {self.head_dim}", r)
        require(r <= self.index_head_dim, "index_head_dim",
                f"at least rope_head_dim = {r}", self.index_head_dim)
        require(self.n_heads % self.o_groups == 0, "o_groups",
                f"a divisor of n_heads = {self.n_heads}", self.o_groups)
        require(self.n_activated_experts <= E, "n_activated_experts",
                f"at most n_routed_experts = {E}", self.n_activated_experts)
        require(self.n_shared_experts == 1, "n_shared_experts", "1, as in every V4 model",
                self.n_shared_experts)
        require(self.n_hash_layers <= self.n_layers, "n_hash_layers",
                f"at most n_layers = {self.n_layers}", self.n_hash_layers)
        require(self.expert_dtype in ("fp4", "fp8"), "expert_dtype", '"fp4" or "fp8"',
                self.expert_dtype)

    def is_hash(self, layer: int) -> bool:
        """Whether the experts of this layer are looked up by token id (report 2.1). MTP blocks
        route by score."""
        return layer < self.n_hash_layers

    def rope(self, ratio: int) -> tuple[float, int]:
        """Base and YaRN reference length of the rotary embedding of a layer with this ratio."""
        return (self.compress_rope_theta, self.original_seq_len) if ratio else (self.rope_theta, 0)

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    # ---- presets ----

    @classmethod
    def nano(cls) -> "Config":
        """About 2 M parameters: Flash's layout in four layers, for notebooks and tests."""
        return cls(
            vocab_size=2048, dim=128, n_layers=4, compress_ratios=(0, 4, 16, 4, 0),
            n_heads=4, head_dim=32, rope_head_dim=16, q_lora_rank=64, o_groups=2, o_lora_rank=64,
            window_size=32, index_n_heads=16, index_head_dim=16, index_topk=64,
            moe_inter_dim=64, n_routed_experts=8, n_activated_experts=2, n_hash_layers=1,
            original_seq_len=256, max_seq_len=4096)

    @classmethod
    def mini(cls) -> "Config":
        """About 10 M parameters: Flash's layout in six layers, with many small experts."""
        return cls(
            vocab_size=2048, dim=192, n_layers=6, compress_ratios=(0, 4, 32, 4, 32, 4, 0),
            n_heads=8, head_dim=64, rope_head_dim=16, q_lora_rank=96, o_groups=4, o_lora_rank=64,
            window_size=64, index_n_heads=16, index_head_dim=32, index_topk=64,
            moe_inter_dim=64, n_routed_experts=32, n_activated_experts=2, n_hash_layers=1,
            original_seq_len=1024, max_seq_len=16384)

    @classmethod
    def flash(cls) -> "Config":
        """DeepSeek-V4-Flash: 284 B parameters, 13 B active."""
        return cls(
            vocab_size=129280, dim=4096, n_layers=43,
            compress_ratios=(0, 0) + (4, 128) * 20 + (4, 0),
            n_heads=64, head_dim=512, rope_head_dim=64, q_lora_rank=1024, o_groups=8,
            o_lora_rank=1024, window_size=128,
            index_n_heads=64, index_head_dim=128, index_topk=512,
            moe_inter_dim=2048, n_routed_experts=256, n_activated_experts=6, n_hash_layers=3,
            original_seq_len=65536, max_seq_len=1048576)

    @classmethod
    def pro(cls) -> "Config":
        """DeepSeek-V4-Pro: 1.6 T parameters, 49 B active."""
        return cls(
            vocab_size=129280, dim=7168, n_layers=61,
            compress_ratios=(128, 128) + (4, 128) * 29 + (4, 0),
            n_heads=128, head_dim=512, rope_head_dim=64, q_lora_rank=1536, o_groups=16,
            o_lora_rank=1024, window_size=128,
            index_n_heads=64, index_head_dim=128, index_topk=1024,
            moe_inter_dim=3072, n_routed_experts=384, n_activated_experts=6, n_hash_layers=3,
            route_scale=2.5, original_seq_len=65536, max_seq_len=1048576)

    @classmethod
    def preset(cls, name: str) -> "Config":
        """The preset of this name: "nano", "mini", "flash" or "pro"."""
        if name not in ("nano", "mini", "flash", "pro"):
            raise ConfigError(f"no preset {name!r}: expected nano, mini, flash or pro")
        return getattr(cls, name)()

    # ---- config.json ----

    @classmethod
    def from_json(cls, source: str | Path | dict) -> "Config":
        """Read a checkpoint's configuration: `source` is a config.json, its folder, or a dict.

        All spellings are understood that `transformers` reads: `compress_ratios` and
        `num_hash_layers`, or `layer_types` and `mlp_layer_types`; `compress_rates`, or
        `compress_rate_csa` and `compress_rate_hca`. Lists that are longer than the model has layers
        are cut. A file with keys of DSpark (`dspark_block_size`, ...) has no MTP blocks: below
        `mtp.` it means another draft module. Raises `ConfigError` for what is not a V4
        configuration, and for weights in a format that the released files do not have.
        """
        d = source if isinstance(source, dict) else config_file.read(Path(source))
        required = [key for key in HF_KEYS if _has_no_default(key)]
        try:
            return cls(**config_file.fields_of(d, required))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise ConfigError(config_file.in_words_of_file(str(error), d)) from None
            raise ConfigError(f"not a DeepSeek-V4 configuration: "
                              f"{type(error).__name__}: {error}") from None

    def to_json(self, path: str | Path | None = None) -> dict:
        """The configuration as in `config.json`, written to `path` (a file) unless that is None.

        Layers are written as `layer_types`, `compress_rates` and `mlp_layer_types`, which can
        express any HCA rate.
        """
        ratios = self.compress_ratios[: self.n_layers]
        mlps = ["hash_moe" if self.is_hash(i) else "moe" for i in range(self.n_layers)]
        d: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"],
                             "model_type": "deepseek_v4"}
        d |= {hf: getattr(self, key) for key, hf in HF_KEYS.items()}
        d |= {
            "layer_types": [{0: SLIDING, CSA_RATE: CSA}.get(r, HCA) for r in ratios],
            "compress_rates": {CSA: CSA_RATE, HCA: next((r for r in ratios if r > CSA_RATE), 128)},
            "mlp_layer_types": mlps,
            "partial_rotary_factor": self.rope_head_dim / self.head_dim,
            "num_key_value_heads": 1,
            "scoring_func": "sqrtsoftplus",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }
        if self.original_seq_len:
            d["rope_scaling"] = {"type": "yarn", "factor": self.rope_factor,
                                 "beta_fast": self.beta_fast, "beta_slow": self.beta_slow,
                                 "original_max_position_embeddings": self.original_seq_len}
        if path is not None:
            write_text(path, json.dumps(d, indent=2) + "\n")
        return d


# ---- checks ----

def _check_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{name} must be a whole number of at least 0, found {value!r:.80}")
    largest = LARGEST.get(name, 2**20)
    require(value <= largest, name, f"at most {largest}", value)


def _check_float(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1e9:
        raise ConfigError(f"{name} must be a number from 0 to 1e9, found {value!r:.80}")


def _has_no_default(key: str) -> bool:
    field = next(f for f in dataclasses.fields(Config) if f.name == key)
    return field.default is dataclasses.MISSING
