"""config.json as `transformers` reads it: other spellings, lists that are too long, messages in
the file's own words."""

import pytest

from minids import Config
from minids.config import CSA, HCA, SLIDING, ConfigError

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
    assert ours.n_mtp_layers == theirs.num_nextn_predict_layers
    assert not any(ours.compress_ratios[ours.n_layers:])
    assert Config.from_json(theirs.to_dict()) == ours == Config.from_json(ours.to_json())


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
    (spelled(hidden_size=0), "^hidden_size: expected above 0"),
    (spelled(hidden_size="64"), "^hidden_size must be a whole number"),
    (spelled(o_groups=3), "o_groups: expected a divisor of num_attention_heads = 4"),
    (spelled(num_experts_per_tok=9), "num_experts_per_tok: expected at most n_routed_experts = 8"),
    (spelled("partial_rotary_factor", qk_rope_head_dim=15), "qk_rope_head_dim: expected even"),
])
def test_messages_name_the_keys_of_the_file(d, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_json(d)
