"""Tensor names: V4's and transformers', against the state_dict of transformers' model."""

import pytest
import torch

from minids.config import Config
from minids.weights import layout
from minids.weights.names import NAMES, STACKS, to_transformers, to_v4


@pytest.mark.parametrize("preset", ["nano", "mini", "flash",
                                    pytest.param("pro", marks=pytest.mark.slow)])
def test_every_name_has_its_counterpart_in_transformers(preset):
    transformers = pytest.importorskip("transformers")
    config = Config.preset(preset)
    with torch.device("meta"):
        their_config = transformers.DeepseekV4Config(**config.to_json())
        theirs = transformers.DeepseekV4ForCausalLM(their_config)
    shapes = {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
    ours = {name: shape for name, (_, shape) in layout.tensors(config).items()
            if not name.startswith("mtp.")}
    assert {to_transformers(name) for name in ours} == shapes.keys()
    for name, shape in ours.items():
        if ".ffn.experts." not in name:
            assert shapes[to_transformers(name)] == shape
            assert to_v4(to_transformers(name)) == name
    for i in range(config.n_layers):
        for stack, matrices in STACKS.items():
            stacked = [shape for name, shape in ours.items()
                       if name.startswith(f"layers.{i}.") and to_transformers(name).endswith(stack)]
            rows = sum(shape[0] for shape in stacked) // config.n_routed_experts
            assert len(stacked) == len(matrices) * config.n_routed_experts
            expected = config.n_routed_experts, rows, stacked[0][1]
            assert shapes[f"model.layers.{i}.{stack}"] == expected


def test_names_of_v4_stay_as_they_are():
    config = Config.nano()
    assert all(to_v4(name) == name for name in layout.inventory(config))
    assert len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("written, name", [
    ("model.layers.0.attn.wq_a.weight", "layers.0.attn.wq_a.weight"),
    ("model.layers.12.attn.norm.weight", "layers.12.attn.kv_norm.weight"),
    ("model.layers.1.attn.compressor.norm.weight", "layers.1.attn.compressor.norm.weight"),
    ("model.embed_tokens.weight", "embed.weight"),
    ("model.hc_head.hc_fn", "hc_head_fn"),
    ("model.norm.weight", "norm.weight"),
    ("model.layers.0.ffn.experts.3.w1.weight", "layers.0.ffn.experts.3.w1.weight"),
    ("model.layers.0.mlp.experts.down_proj", "layers.0.mlp.experts.down_proj"),
    ("something.else", "something.else"),
])
def test_names_that_save_pretrained_writes(written, name):
    assert to_v4(written) == name


def test_what_transformers_does_not_have():
    for name in ("mtp.0.e_proj.weight", "layers.0.attn.unknown"):
        with pytest.raises(KeyError):
            to_transformers(name)
