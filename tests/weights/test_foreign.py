"""Formats that others made of V4 are refused for a reason, before a shard is asked for."""

import json

import pytest
from hub_server import LocalHub

from minids.cli import main
from minids.config import Config, ConfigError
from minids.errors import MinidsError
from minids.system.paths import DATA
from minids.weights.checkpoint import Checkpoint
from minids.weights.layout import INDEX

SAMPLE, REPO = DATA / "v4_sample", "owner/sample"
VALUES = json.loads((SAMPLE / "config.json").read_text(encoding="utf-8"))
WEIGHTS = json.loads((SAMPLE / INDEX).read_text(encoding="utf-8"))["weight_map"]
FP8 = VALUES["quantization_config"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The sample on a local Hub, and an empty cache."""
    utils = pytest.importorskip("huggingface_hub.utils")
    server = LocalHub(SAMPLE)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    utils.close_session()
    yield server
    server.close()
    utils.close_session()


def requested(server) -> set[str]:
    """The files of the repository that were requested; the client's own request has no name."""
    return {file for file, _, _ in server.sent(shards=False) if file}


CONFIGS = {     # what config.json of a derivative has -> the key that the message names
    "AWQ": ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}},
            'quantization_config.quant_method: expected "fp8" .*, found \'awq\''),
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": False}},
             "found 'gptq'"),
    "compressed-tensors": ({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}},
        "found 'compressed-tensors'"),
    "NVFP4 in FP8": ({"quantization_config": FP8 | {
        "quant_algo": "MIXED_PRECISION", "moe_quant_algo": "NVFP4", "group_size": 16}},
        "quantization_config.quant_algo: expected none .*, found 'MIXED_PRECISION'"),
    "NVFP4 experts": ({"quantization_config": FP8 | {"moe_quant_algo": "NVFP4"}},
                      "quantization_config.moe_quant_algo: expected none .*, found 'NVFP4'"),
    "NVFP4": ({"quantization_config": {"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}},
              "quantization_config.quant_method: .* found None"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"},
             "quantization_config": {"group_size": 64, "bits": 4, "mode": "affine"}},
            "quantization: expected no .*mlx.*, found {'group_size': 64"),
    "EXL3": ({"quantization_config": {"quant_method": "exl3", "bits": 2}}, "found 'exl3'"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    "smaller blocks": ({"quantization_config": FP8 | {"weight_block_size": [32, 32]}},
                       r"weight_block_size: expected \[128, 128\] .*, found \[32, 32\]"),
    "another FP8": ({"quantization_config": FP8 | {"fmt": "e5m2"}}, "fmt: expected \"e4m3\""),
    "V4.1": ({"model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"]},
             "model_type: expected \"deepseek_v4\" .*V4.1.*, found 'deepseek_v41'"),
    "V4.1 by its class": ({"architectures": ["DeepseekV41ForCausalLM"]},
                          "architectures: expected DeepseekV4ForCausalLM"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_but_config_json_is_asked_for(server, kind):
    changes, words = CONFIGS[kind]
    server.files["config.json"] = json.dumps(VALUES | changes).encode()
    with pytest.raises(MinidsError, match=f"^{REPO} at .*: config.json: .*{words}") as caught:
        Checkpoint(REPO)
    assert requested(server) == {"config.json"}
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=words):
        Config.from_json(VALUES | changes)


def renamed(change) -> dict:
    """The index with `change(name)`, a list of names, in place of each routed expert's tensor."""
    weight_map = {}
    for name, file in WEIGHTS.items():
        names = change(name) if ".ffn.experts." in name else [name]
        weight_map |= dict.fromkeys(names, file)
    return {"weight_map": weight_map}


def with_endings(*endings):
    """Instead of weight and scale, the stems of the matrices with these endings."""
    return renamed(lambda name: [f"{name.rpartition('.')[0]}.{ending}" for ending in endings])


def stacked(name: str):
    """One tensor for the experts of a layer, in place of one for each."""
    return renamed(lambda old: [f"{old.partition('ffn.experts')[0]}{name}"])


INDICES = {     # names in the index of a derivative -> what the message says
    "NVFP4": (with_endings("weight", "weight_scale", "weight_scale_2", "input_scale"), "NVFP4"),
    "compressed-tensors": (with_endings("weight_packed", "weight_scale", "weight_shape"),
                           "compressed-tensors"),
    "NVFP4 of compressed-tensors": (
        with_endings("weight_packed", "weight_scale", "weight_global_scale"), "NVFP4"),
    "AWQ": (with_endings("qweight", "qzeros", "scales"), "AWQ or GPTQ"),
    "GPTQ": (with_endings("qweight", "qzeros", "scales", "g_idx"), "AWQ or GPTQ"),
    "mlx, not stacked": (with_endings("weight", "scales", "biases"), "mlx"),
    "mlx": (stacked("ffn.switch_mlp.gate_proj.scales"), "mlx"),
    "mlx in BF16": (stacked("ffn.switch_mlp.gate_proj.weight"), "stacked in one tensor"),
    "EXL3": (with_endings("trellis", "suh", "svh"), "EXL3"),
    "W8A8": (with_endings("weight", "weight_scale", "weight_offset"), "weight_scale"),
    "names of V3": (with_endings("weight", "weight_scale_inv"), "V3"),
    "transformers' stacks": (stacked("mlp.experts.gate_up_proj"), "stacked in one tensor"),
    "packed stacks": (stacked("ffn.experts.w13_weight"), "stacked in one tensor"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_nothing_but_config_json_and_the_index_is_asked_for(server, kind, capsys):
    index, words = INDICES[kind]
    server.files[INDEX] = json.dumps(index).encode()
    with pytest.raises(MinidsError, match=words) as caught:
        Checkpoint(REPO)
    assert "which is not read: expected the layout of the released files" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    for job in (["info", REPO], ["fetch", REPO, "--tensors", "embed.weight"], ["layer", REPO]):
        assert main(["real", *job]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert requested(server) == {"config.json", INDEX} and server.sent() == []


@pytest.mark.parametrize("name", ["mtp.0.ffn.experts.0.w1.weight_scale_2",
                                  "mtp.0.ffn.switch_mlp.gate_proj.scales"])
def test_a_draft_module_may_have_any_format(server, name):
    server.files[INDEX] = json.dumps({"weight_map": WEIGHTS | {name: "a.safetensors"}}).encode()
    checkpoint = Checkpoint(REPO)
    assert checkpoint.extra() == [name]
    assert checkpoint.left_alone() == (
        "left alone: 1 tensor of mtp.0 (not part of the model of config.json)")
