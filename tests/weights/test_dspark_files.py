"""A DSpark module in a folder, in the released number formats; what does not fit is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minids
from minids import Config, MinidsError
from minids.model.dspark import DSpark, DSparkConfig, initialise
from minids.system import paths
from minids.weights import rounding
from minids.weights.dspark import load_dspark, save_dspark

CONFIG = Config.nano().replace(vocab_size=64, n_layers=2, compress_ratios=(0, 4, 0),
                               n_routed_experts=2, expert_dtype="fp8")
DRAFTS = DSparkConfig(4, 2, (0, 1), 8)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    dspark = DSpark(CONFIG, DRAFTS)
    initialise(dspark)
    dspark.mtp[2].markov_head.markov_w2.weight.data.normal_()
    save_dspark(dspark, tmp_path / "dspark")
    return tmp_path / "dspark", dspark


def test_what_is_saved_is_read(folder):
    path, dspark = folder
    model = minids.Model(CONFIG)
    back = load_dspark(path, model)
    assert back.drafts == DRAFTS and not back.training
    original, read = dspark.state_dict(), back.state_dict()
    assert original.keys() == read.keys()
    for name, t in original.items():
        assert read[name].dtype == t.dtype == torch.float32
        error = (read[name] - t).abs().max() / t.abs().max().clamp_min(1e-9)
        assert error < 0.07, name
    with safe_open(path / "model.safetensors", "pt") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert stored["mtp.0.main_proj.weight"] == "F8_E4M3" and stored["mtp.0.main_proj.scale"]
    assert stored["mtp.2.markov_head.markov_w1.weight"] == "BF16"
    assert stored["mtp.1.attn.attn_sink"] == stored["mtp.2.hc_head_fn"] == "F32"
    half = load_dspark(path, minids.Model(CONFIG).to(torch.bfloat16)).mtp[0]
    assert half.main_proj.weight.dtype == torch.bfloat16
    assert half.main_norm.weight.dtype == half.hc_attn_fn.dtype == torch.float32


def test_fp4_experts_too(tmp_path):
    config = CONFIG.replace(expert_dtype="fp4")
    dspark = DSpark(config, DRAFTS)
    initialise(dspark)
    save_dspark(dspark, tmp_path / "fp4")
    w = load_dspark(tmp_path / "fp4", minids.Model(config)).mtp[1].ffn.experts[0].w1.weight
    torch.testing.assert_close(w, rounding.as_stored(dspark.mtp[1].ffn.experts[0].w1.weight, "FP4"))


def test_what_does_not_fit_is_refused(folder):
    path, _ = folder
    model = minids.Model(CONFIG)
    with pytest.raises(MinidsError, match="weight is F8_E4M3 .*, expected"):
        load_dspark(path, minids.Model(CONFIG.replace(dim=64)))
    tensors = load_file(path / "model.safetensors")
    gone = tensors.pop("mtp.2.markov_head.markov_w1.weight")
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(MinidsError, match="1 tensors missing .*markov_w1"):
        load_dspark(path, model)
    tensors |= {"mtp.2.markov_head.markov_w1.weight": gone, "mtp.0.enorm.weight": torch.ones(128)}
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(MinidsError, match="mtp.0.enorm.weight"):
        load_dspark(path, model)
    with pytest.raises(MinidsError, match="describes no DSpark"):
        load_dspark(paths.data("checkpoints", "nano"), model)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dspark_target_layer_ids": [7]}))
    with pytest.raises(MinidsError, match="expected layers 0 to 1"):
        load_dspark(path, model)
