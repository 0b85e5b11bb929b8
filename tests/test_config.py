"""config.json as `transformers` reads it: other spellings, lists that are too long, messages in
the file's own words."""

import json
import re

import pytest

from minids import Config
from minids.config import CSA, HCA, SLIDING, ConfigError
from minids.system.paths import DATA

NANO = Config.nano().to_json()
KINDS = {0: SLIDING, 4: CSA}


def spelled(*without, **changes) -> dict:
    """Nano's config.json without some keys, and with others."""
    return {key: value for key, value in (NANO | changes).items() if key not in without}


def old(*without, **changes) -> dict:
    """The same as the released files spell it."""
    lists = {"compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1}
    return spelled("layer_types", "compress_rates", "mlp_layer_types", *without,
                   **lists | changes)


FLASH = Config.flash()
SPELLINGS = {
    "as we write it": spelled(),
    "as released": old(),
    "lists of another model's layers": spelled(
        num_hidden_layers=2, layer_types=[HCA, CSA] * 20,
        mlp_layer_types=["hash_moe"] + ["moe"] * 39),
    "ratios of another model's layers": old(
        num_hidden_layers=3, compress_ratios=list(FLASH.compress_ratios)),
    "ratios without MTP": old(compress_ratios=[128, 4, 128, 4]),
    "MTP stripped": old(num_hidden_layers=3, compress_ratios=[4, 128, 4, 4]),
    "the rate of HCA by itself": spelled("compress_rates", compress_rate_hca=16),
    "both rates by themselves": old(compress_rate_csa=4, compress_rate_hca=32),
    "rates beside ratios": old(compress_rates={CSA: 4, HCA: 64}),
    "a rate against rates": spelled(compress_rates={CSA: 4, HCA: 64}, compress_rate_hca=32),
    "no word of rates": spelled("compress_rates"),
    "no word of hash layers": spelled("mlp_layer_types"),
    "two layers, no word of hash layers": spelled("mlp_layer_types", num_hidden_layers=2),
    "more hash layers than layers": old(num_hidden_layers=2, num_hash_layers=3),
    "one layer": old(num_hidden_layers=1),
    "no hash layers": old(num_hash_layers=0),
    "as released, with another draft module": old(
        compress_ratios=[0, 4, 128, 4, 0, 0, 0], dspark_block_size=5,
        dspark_target_layer_ids=[1, 2, 3]),
    "nested rotary entries": spelled(
        "rope_scaling", "rope_theta", "compress_rope_theta",
        rope_parameters={"main": {"rope_type": "default", "rope_theta": 500.0,
                                  "partial_rotary_factor": 0.5},
                         "compress": {"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0,
                                      "original_max_position_embeddings": 64,
                                      "partial_rotary_factor": 0.5, "attention_factor": 1.0}}),
    "the sizes twice": spelled(intermediate_size=64, num_local_experts=8),
    "nulls": spelled(compress_ratios=None, num_hash_layers=None, compress_rate_hca=None),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_are_read_as_transformers_reads_them(name):
    transformers = pytest.importorskip("transformers")
    ours = Config.from_json(dict(SPELLINGS[name]))
    theirs = transformers.DeepseekV4Config(**SPELLINGS[name])
    ratios = ours.compress_ratios[:ours.n_layers]
    assert [KINDS.get(ratio, HCA) for ratio in ratios] == theirs.layer_types
    assert [ratio for ratio in ratios if ratio] == [
        theirs.compress_rates[kind] for kind in theirs.layer_types if kind != SLIDING]
    assert ["hash_moe" if ours.is_hash(i) else "moe" for i in range(ours.n_layers)] \
        == theirs.mlp_layer_types
    has_dspark = "dspark_block_size" in SPELLINGS[name]     # transformers builds no draft module
    assert ours.n_mtp_layers == (0 if has_dspark else theirs.num_nextn_predict_layers)
    rotary = theirs.rope_parameters
    assert (ours.rope_theta, ours.compress_rope_theta) == (
        rotary["main"]["rope_theta"], rotary["compress"]["rope_theta"])
    assert not any(ours.compress_ratios[ours.n_layers:])
    assert Config.from_json(theirs.to_dict()) == ours == Config.from_json(ours.to_json())


@pytest.mark.parametrize("path", sorted([
    *(DATA / "v4").glob("*.config.json"), *DATA.glob("v4_sample*/config.json"),
    *DATA.glob("checkpoints/*/config.json")]), ids=lambda path: str(path.relative_to(DATA)))
def test_shipped_files_have_the_layers_that_transformers_reads(path):
    transformers = pytest.importorskip("transformers")
    ours = Config.from_json(path)
    theirs = transformers.DeepseekV4Config(**json.loads(path.read_text(encoding="utf-8")))
    assert theirs.layer_types == [KINDS.get(r, HCA) for r in ours.compress_ratios[:ours.n_layers]]
    assert theirs.mlp_layer_types.count("hash_moe") == ours.n_hash_layers
    assert len(theirs.mlp_layer_types) == ours.n_layers


# each key that would change what is computed, with a value that V4 does not have
OTHER_MODELS = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "scoring_func": "softmax", "topk_method": "greedy", "n_group": 8, "topk_group": 4,
    "norm_topk_prob": False, "router_jitter_noise": 0.1, "hidden_act": "gelu",
    "first_k_dense_replace": 3, "moe_layer_freq": 2, "mlp_bias": True, "attention_bias": True,
    "attention_dropout": 0.1, "num_key_value_heads": 8, "tie_word_embeddings": True,
    "intermediate_size": 18432, "num_local_experts": 7, "n_shared_experts": 2,
}


@pytest.mark.parametrize("key", OTHER_MODELS)
@pytest.mark.parametrize("spelling", [spelled, old])
def test_what_v4_does_not_compute_is_refused_by_name(spelling, key):
    words = f"^{key}: expected .*, found {re.escape(repr(OTHER_MODELS[key]))}"
    with pytest.raises(ConfigError, match=words):
        Config.from_json(spelling(**{key: OTHER_MODELS[key]}))
    assert Config.from_json(spelling(**{key: None} if key != "model_type" else {}))


HARMLESS = {"use_cache": False, "torch_dtype": "float16", "dtype": "float16", "auto_map": {},
            "initializer_range": 1, "router_aux_loss_coef": 1, "output_router_logits": True,
            "transformers_version": "5.0.0", "quantization_config": {}, "ep_size": 4,
            "pretraining_tp": 2, "hidden_act": "silu", "attention_dropout": 0.0, "n_group": None}


@pytest.mark.parametrize("key", HARMLESS)
def test_what_changes_nothing_is_ignored(key):
    assert Config.from_json(spelled(**{key: HARMLESS[key]})) == Config.nano()


YARN = NANO["rope_scaling"]


@pytest.mark.parametrize("changes, words", [
    ({"rope_scaling": YARN | {"type": "linear"}}, "rope_scaling type: expected"),
    ({"rope_scaling": YARN | {"attention_factor": 1.3}}, "rope_scaling.attention_factor: expec"),
    ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate: expected true"),
    ({"partial_rotary_factor": 0.25}, r"partial_rotary_factor x head_dim: expected 16 .*, found 8"),
    ({"rope_parameters": {"main": {"partial_rotary_factor": 1.0}}},
     "rope_parameters.main.partial_rotary_factor x head_dim: expected 16"),
    ({"rope_parameters": {"main": {"rope_type": "yarn", "factor": 2}}},
     "rope_parameters.main.rope_type: expected \"default\", found 'yarn'"),
])
def test_other_rotary_embeddings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        Config.from_json(spelled(**changes))


def test_the_draft_module_of_later_releases_is_no_mtp_block():
    d = old(compress_ratios=[0, 4, 128, 4, 0, 0, 0])
    assert Config.from_json(d).n_mtp_layers == 1
    assert Config.from_json(d | {"dspark_block_size": 0}).n_mtp_layers == 1
    later = Config.from_json(d | {"dspark_block_size": 5})
    assert later.n_mtp_layers == 0 and later.compress_ratios == (0, 4, 128, 4)


@pytest.mark.parametrize("d, message", [
    (spelled(layer_types=[CSA, HCA]), "layer_types: expected an entry for each of 4 layers "
                                      r"\(num_hidden_layers\), found 2"),
    (spelled(mlp_layer_types=["moe"]), "mlp_layer_types: expected an entry for each of 4"),
    (old(compress_ratios=[0, 4]), "compress_ratios: expected an entry for each of 4"),
    (old(compress_ratios=[0, 4, 2, 4]), "compress_ratios: expected 0 "),
    (old(num_hash_layers="3"), "num_hash_layers: expected a whole number, found '3'"),
    (old(num_hash_layers=-1), "num_hash_layers must be a whole number of at least 0, found -1"),
    (spelled(compress_rate_csa=8), "compress_rate_csa: expected 4"),
    (spelled(compress_rate_hca=2), "compress_rate_hca: expected more than 4"),
    (spelled(compress_rates={CSA: 8}), rf"compress_rates\[{CSA}\]: expected 4"),
    (old(compress_ratios=[0, 4, 16, 4], compress_rate_hca=8),
     "compress_ratios: expected at most 8"),
    (spelled(compress_ratios=[0, 4, 0, 4, 0]),
     r"compress_ratios: expected \[0, 4, 16, 4\], as layer_types .*, found \[0, 4, 0, 4\]"),
    (spelled(num_hash_layers=2), "num_hash_layers: expected 1, as mlp_layer_types .*, found 2"),
    (spelled(architectures="DeepseekV4ForCausalLM"),
     "architectures: expected a list, found 'DeepseekV4ForCausalLM'"),
    (old(compress_ratios=[0, 4, 128, "4"]), r"compress_ratios: expected whole numbers, found \[0"),
    (spelled(layer_types=[[SLIDING], CSA, HCA, CSA]), "layer_types: expected .*, found .*sliding"),
    (spelled(rope_scaling="yarn"), "rope_scaling: expected an object, found 'yarn'"),
    (spelled(rope_scaling={"type": "yarn", "factor": 16}),
     "rope_scaling.original_max_position_embeddings: expected a number with YaRN, found None"),
    (spelled(compress_rates=5), "compress_rates: expected an object, found 5"),
    (spelled(compress_rate_hca="16"), "compress_rate_hca: expected more than 4, found '16'"),
    (spelled(rope_parameters={"main": 5}), "rope_parameters.main: expected an object, found 5"),
    (spelled("qk_rope_head_dim", partial_rotary_factor="half"),
     "partial_rotary_factor: expected a number from 0 to 1, found 'half'"),
    (spelled(hidden_size=0), "^hidden_size: expected above 0"),
    (spelled(hidden_size="64"), "^hidden_size must be a whole number"),
    (spelled(o_groups=3), "o_groups: expected a divisor of num_attention_heads = 4"),
    (spelled(num_experts_per_tok=9), "num_experts_per_tok: expected at most n_routed_experts = 8"),
    (spelled("partial_rotary_factor", qk_rope_head_dim=15), "qk_rope_head_dim: expected even"),
])
def test_messages_name_the_keys_of_the_file(d, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_json(d)


def test_both_spellings_that_agree_are_read():
    both = spelled(compress_ratios=[0, 4, 128, 4, 0], num_hash_layers=1)
    assert Config.from_json(both) == Config.nano()


WRONG = (5, -1, 1e300, 10**400, True, "x", [], [5], ["x"], [[]], [None, {}], {}, {"main": 5},
         {"type": "yarn"}, {"type": ["yarn"], "factor": "x"}, {"main": {"rope_theta": []}})


@pytest.mark.parametrize("spelling", [spelled, old])
def test_no_value_gives_an_error_of_python(spelling):
    keys = NANO | old() | {"rope_parameters": 0, "quantization_config": 0, "compress_rate_csa": 0,
                           "compress_rate_hca": 0, "quantization": 0, "dspark_block_size": 0}
    for key in keys:
        for value in WRONG:
            for without in ((), ("qk_rope_head_dim", "rope_scaling")):
                try:
                    Config.from_json(spelling(*without) | {key: value})
                except ConfigError as error:
                    assert not re.search(r"\w+Error: ", str(error)), (key, value, str(error))
