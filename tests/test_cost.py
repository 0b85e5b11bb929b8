"""Parameters, tensors, bytes, operations and cache of Flash and Pro, from their configurations."""

import math

import pytest
import torch

from minids import cost
from minids.config import Config
from minids.model import Model
from minids.weights import layout

FLASH, PRO = Config.flash(), Config.pro()
MILLION = 1 << 20


@pytest.mark.parametrize("config, total, mtp, active", [
    (FLASH, 284_332_240_471, 6_610_048_891, 13_270_101_591),
    (PRO, 1_572_997_201_763, 25_840_145_979, 48_852_402_019),
])
def test_parameters(config, total, mtp, active):
    assert cost.params(config) == {"total": total, "mtp": mtp, "active": active}
    assert sum(cost.parts(config).values()) == total


@pytest.mark.parametrize("config, tensors, size, files", [
    (FLASH, 69_187, 159_609_485_896, 46),
    (PRO, 145_116, 864_704_792_696, 64),
])
def test_files(config, tensors, size, files):
    inventory, shards = layout.inventory(config), layout.shards(config)
    assert len(inventory) == tensors and layout.disk_bytes(config) == size and len(shards) == files
    assert [name for names in shards.values() for name in names] == list(inventory)
    names = list(shards.values())
    assert names[0] == ["embed.weight"]
    assert list(shards)[0] == f"model-00001-of-{files:05d}.safetensors"
    for i in range(config.n_layers):
        assert all(name.startswith(f"layers.{i}.") for name in names[i + 1])
    assert set(names[-2]) == {"norm.weight", "head.weight", "hc_head_fn", "hc_head_base",
                              "hc_head_scale"}
    assert all(name.startswith("mtp.0.") for name in names[-1])


def test_payload_of_a_flash_layer():
    inventory = layout.inventory(FLASH)
    layers = list(layout.shards(FLASH).values())[1:-2]
    payloads = [sum(layout.nbytes(inventory[name]) for name in names) for names in layers]
    assert {round(payload / 1e9, 2) for payload in payloads} == {3.57, 3.59, 3.6}


def test_formats_on_disk():
    inventory = layout.inventory(FLASH)
    assert inventory["layers.0.ffn.experts.7.w2.weight"] == ("I8", (4096, 1024))
    assert inventory["layers.0.ffn.experts.7.w2.scale"] == ("F8_E8M0", (4096, 64))
    assert inventory["layers.2.attn.wq_b.scale"] == ("F8_E8M0", (256, 8))
    assert inventory["layers.2.ffn.gate.tid2eid"] == ("I64", (129280, 6))
    assert "layers.3.ffn.gate.tid2eid" not in inventory
    base = layout.inventory(FLASH.replace(expert_dtype="fp8"))
    assert base["layers.0.ffn.experts.7.w2.weight"] == ("F8_E4M3", (4096, 2048))
    assert base["layers.0.ffn.experts.7.w2.scale"] == ("F8_E8M0", (32, 16))
    nano = layout.inventory(Config.nano())
    assert nano["layers.0.attn.wq_a.scale"] == ("F8_E8M0", (1, 1))      # 64 x 128: one block


def test_headline_percentages():
    v32 = cost.flops_v32(MILLION)["total"], cost.kv_bytes_v32(MILLION)["total"]
    pro, flash = cost.flops(PRO, MILLION)["total"], cost.flops(FLASH, MILLION)["total"]
    assert [round(x / 1e9, 1) for x in (pro, flash, v32[0])] == [319.4, 120.7, 1191.6]
    assert [round(100 * x / v32[0], 1) for x in (pro, flash)] == [26.8, 10.1]
    caches = [cost.kv_bytes(config, MILLION)["total"] for config in (PRO, FLASH)]
    assert [round(100 * cache / v32[1], 2) for cache in caches] == [10.55, 7.37]


def test_totals_are_the_sums_of_the_terms_and_grow_with_the_context():
    for config in (FLASH, PRO, Config.nano(), Config.mini()):
        for term in (cost.flops, cost.kv_bytes):
            totals = []
            for n in (0, 1, 100, 10_000, MILLION):
                terms = term(config, n)
                totals.append(terms.pop("total"))
                assert totals[-1] == sum(terms.values())
            assert totals == sorted(totals) and totals[0] < totals[-1]
    assert cost.kv_bytes(FLASH, 0)["total"] == 0


WITHOUT_MTP = Config.nano().replace(n_mtp_layers=0,
                                    compress_ratios=Config.nano().compress_ratios[:-1])


@pytest.mark.parametrize("config", [Config.nano(), Config.mini(), WITHOUT_MTP])
def test_layout_is_the_models_state_dict(config):
    with torch.device("meta"):
        state = Model(config).state_dict()
    formats = layout.tensors(config)
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    assert shapes == {name: shape for name, (_, shape) in formats.items()}
    assert {name for name in layout.inventory(config) if not name.endswith(".scale")} == set(state)
    tables = {name for name, t in state.items() if t.dtype == torch.int64}
    assert tables == {name for name, (format, _) in formats.items() if format == "I64"}


def test_transformers_counts_the_same_parameters():
    transformers = pytest.importorskip("transformers")
    for config in (FLASH, PRO):
        with torch.device("meta"):
            their_config = transformers.DeepseekV4Config(**config.to_json())
            model = transformers.DeepseekV4ForCausalLM(their_config)
        biases = sum(math.prod(t.shape) for name, t in model.named_buffers()
                     if name.endswith("e_score_correction_bias"))
        parameters = sum(math.prod(p.shape) for p in model.parameters())
        assert parameters + biases == cost.params(config)["total"]
