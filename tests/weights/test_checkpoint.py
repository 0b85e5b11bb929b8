"""Checkpoints: round trips in every format, partial reads, atomic writes, and transformers."""

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minids.config import Config
from minids.errors import MinidsError
from minids.model import Model
from minids.numerics import fake_quant
from minids.weights import layout
from minids.weights.checkpoint import Checkpoint, load
from minids.weights.folder import LocalFiles
from minids.weights.header import DTYPES
from minids.weights.save import QUANTISATION, save

IDS = torch.randint(0, 1024, (2, 40), generator=torch.Generator().manual_seed(0))


def random_model(config=None, seed=0):
    """A model in which every tensor is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(seed)
    model = Model(config or Config.nano()).eval()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith(("gate.bias", "attn_sink", "ape", "_base")):
                t.copy_(torch.randn_like(t) * 0.5)
            elif name.endswith("norm.weight"):
                t.copy_(1 + 0.2 * torch.randn_like(t))
            elif name.endswith("scale"):
                t.copy_(0.5 + 0.1 * torch.randn_like(t))
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


def state_of(path):
    return load(path).state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    same = lambda x, y: x.dtype == y.dtype and torch.equal(x, y)
    assert not [name for name in a if not same(a[name], b[name])]


# ---- formats ----

def test_fp32_is_exact(model, tmp_path):
    save(model, tmp_path / "c", format="fp32")
    loaded = load(tmp_path / "c")
    assert_same(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config and not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(tmp_path / "c")) == ["config.json", "model.safetensors"]


def test_bf16_rounds_matrices_and_keeps_what_is_float32_on_disk(model, tmp_path):
    save(model, tmp_path / "c")
    formats = layout.tensors(model.config)
    loaded = state_of(tmp_path / "c")
    for name, t in model.state_dict().items():
        stays = formats[name][0] in ("F32", "I64")
        assert torch.equal(loaded[name], t if stays else t.bfloat16().float()), name
    with Checkpoint(tmp_path / "c") as c:
        assert {c.info(name)[0] for name in c.names()} == {"BF16", "F32", "I64"}


@pytest.mark.slow
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_v4_is_the_released_layout(expert_dtype, tmp_path):
    config = Config.nano().replace(expert_dtype=expert_dtype)
    model = random_model(config)
    save(model, tmp_path / "c", format="v4")
    for file, names in layout.shards(config).items():
        with safe_open(tmp_path / "c" / file, framework="pt") as shard:
            assert set(shard.keys()) == set(names)
    with Checkpoint(tmp_path / "c") as c:
        assert {name: c.info(name) for name in c.names()} == layout.inventory(config)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == layout.disk_bytes(config)
    assert list(index["weight_map"]) == list(layout.inventory(config))
    quantised = {"FP8": lambda t: fake_quant(t, "fp8"), "FP4": lambda t: fake_quant(t, "fp4"),
                 "BF16": lambda t: t.bfloat16().float(), "F32": lambda t: t, "I64": lambda t: t}
    formats = {name: format for name, (format, _) in layout.tensors(config).items()}
    expected = {name: quantised[formats[name]](t) for name, t in model.state_dict().items()}
    loaded = load(tmp_path / "c")
    assert_same(loaded.state_dict(), expected)
    save(loaded, tmp_path / "again", format="v4")
    assert_same(state_of(tmp_path / "again"), expected)
    assert Config.from_json(tmp_path / "c") == config


def test_float32_scales(model, tmp_path):
    save(model, tmp_path / "c", format="v4")
    before = state_of(tmp_path / "c")
    for path in (tmp_path / "c").glob("*.safetensors"):
        tensors = {name: t.float() if name.endswith(".scale") else t
                   for name, t in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    assert_same(state_of(tmp_path / "c"), before)


def test_load_in_bfloat16(model, tmp_path):
    save(model, tmp_path / "c", format="fp32")
    loaded = load(tmp_path / "c", dtype=torch.bfloat16)
    assert {str(p.dtype) for p in loaded.parameters()} == {"torch.bfloat16", "torch.float32"}
    assert loaded.layers[0].ffn.experts[0].w1.weight.dtype == torch.bfloat16
    assert loaded.norm.weight.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    with torch.no_grad():
        assert loaded(IDS).isfinite().all()


def test_without_mtp_tensors_the_model_has_no_mtp_block(model, tmp_path):
    save(model, tmp_path / "c", format="v4")
    path = tmp_path / "c" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items()
                           if not name.startswith("mtp.")}
    path.write_text(json.dumps(index))
    loaded = load(tmp_path / "c")
    assert loaded.config.n_mtp_layers == 0 and len(loaded.mtp) == 0
    ratios = model.config.compress_ratios[:-1]
    assert loaded.config == model.config.replace(n_mtp_layers=0, compress_ratios=ratios)


def test_a_model_trains_on_after_loading(model, tmp_path):
    save(model, tmp_path / "c", format="fp32")
    loaded = load(tmp_path / "c").train()
    loaded(IDS).logsumexp(-1).mean().backward()
    assert loaded.embed.weight.grad.abs().sum() > 0
    save(loaded, tmp_path / "c", format="fp32")  # over the files that it was read from


# ---- partial reads ----

def test_single_tensors_are_read_without_the_other_shards(model, tmp_path):
    save(model, tmp_path / "c", format="v4")
    whole = state_of(tmp_path / "c")
    for file, names in layout.shards(model.config).items():
        if "layers.2.attn.wq_a.weight" not in names:
            (tmp_path / "c" / file).unlink()
    with Checkpoint(tmp_path / "c") as c:
        assert c.info("layers.2.ffn.experts.3.w2.weight") == ("I8", (128, 32))
        for name in ("layers.2.attn.wq_a.weight", "layers.2.ffn.experts.3.w2.weight",
                     "layers.2.attn.attn_sink"):
            assert torch.equal(c.read(name), whole[name])
        assert c.read("layers.2.ffn.experts.3.w2.weight", torch.bfloat16).dtype == torch.bfloat16
        assert c.raw("layers.2.ffn.experts.3.w2.scale").dtype == torch.float8_e8m0fnu
        assert "layers.2.attn.wq_a.scale" in c and "layers.9.attn.wq_a.scale" not in c
        with pytest.raises(MinidsError, match="missing"):
            c.read("layers.3.attn.wq_a.weight")
        with pytest.raises(MinidsError, match="no tensor"):
            c.read("layers.9.attn.wq_a.weight")
    with pytest.raises(MinidsError, match="is missing"):
        load(tmp_path / "c")


def test_checking_reads_no_tensor(model, tmp_path, monkeypatch):
    save(model, tmp_path / "c", format="v4")
    monkeypatch.setattr(LocalFiles, "read", lambda *_: pytest.fail("read a tensor"))
    with Checkpoint(tmp_path / "c") as c:
        c.check()


def test_a_folder_that_is_replaced_is_read_as_it_was(model, tmp_path):
    save(model, tmp_path / "c", format="fp32")
    with Checkpoint(tmp_path / "c") as c:
        c.check()
        save(random_model(seed=1), tmp_path / "c", format="fp32")
        assert torch.equal(c.read("norm.weight"), model.norm.weight)
    assert not torch.equal(load(tmp_path / "c").norm.weight, model.norm.weight)


def test_types_that_are_read_have_their_torch_type():
    for name in (*layout.FLOATS, *layout.INTEGERS, *layout.SCALES, *layout.CODES):
        assert DTYPES[name].torch_dtype.itemsize * 8 == DTYPES[name].bits


# ---- whole or not at all ----

def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@pytest.mark.parametrize("format", ["fp32", "v4"])
def test_a_full_disk_leaves_the_old_checkpoint(model, tmp_path, monkeypatch, format):
    save(model, tmp_path / "c", format="fp32")
    calls = []

    def full(tensors, path, metadata):
        calls.append(path)
        if format == "fp32" or len(calls) == 3:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    monkeypatch.setattr("minids.weights.save.save_file", full)
    for target in ("c", "new"):
        calls.clear()
        with pytest.raises(MinidsError, match="No space left.*Nothing was changed"):
            save(random_model(seed=1), tmp_path / target, format=format)
    assert_same(state_of(tmp_path / "c"), model.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["c"]


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupt_in_the_exchange_leaves_the_old_checkpoint(model, tmp_path, monkeypatch, step):
    save(model, tmp_path / "c", format="fp32")
    real, calls = os.rename, []

    def rename(a, b):
        calls.append(a)
        if len(calls) == step:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save(random_model(seed=1), tmp_path / "c", format="fp32")
    assert sorted(os.listdir(tmp_path)) == ["c"]
    assert_same(state_of(tmp_path / "c"), model.state_dict())


def test_the_next_load_or_save_recovers_from_a_kill_in_the_exchange(model, tmp_path):
    other = random_model(seed=1)
    for recover in (load, lambda path: save(other, path, format="fp32")):
        save(model, tmp_path / "c", format="fp32")
        (tmp_path / ".c.part").mkdir()          # as after a kill between the two renames
        os.rename(tmp_path / "c", tmp_path / ".c.old")
        recover(tmp_path / "c")
        assert not (tmp_path / ".c.old").exists()
    assert_same(state_of(tmp_path / "c"), other.state_dict())
    assert leftovers(tmp_path) == []                         # the next save removes the rest


def test_saving_replaces_checkpoints_and_nothing_else(model, tmp_path):
    save(model, tmp_path / "c", format="v4")
    save(model, tmp_path / "c", format="fp32")
    # no shard of the old one stays
    assert sorted(os.listdir(tmp_path / "c")) == ["config.json", "model.safetensors"]
    (tmp_path / "c" / "thesis.tex").write_text("years of work")
    with pytest.raises(MinidsError, match="thesis.tex"):
        save(model, tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(MinidsError, match="it is a file"):
        save(model, tmp_path / "file")
    with pytest.raises(MinidsError, match="could not write"):
        save(model, tmp_path / "file" / "c")
    assert (tmp_path / "c" / "thesis.tex").read_text() == "years of work"


def test_what_cannot_be_saved(model, tmp_path):
    with pytest.raises(MinidsError, match="format: expected bf16, fp32, v4"):
        save(model, tmp_path / "c", format="int8")
    with pytest.raises(MinidsError, match="no tokenizer"):
        save(model, tmp_path / "c", tokenizer=tmp_path / "none.json")
    broken = random_model()
    with torch.no_grad():
        broken.layers[1].attn.wq_a.weight[3, 3] = float("nan")
    with pytest.raises(MinidsError, match="layers.1.attn.wq_a.weight.*finite"):
        save(broken, tmp_path / "c", format="v4")
    narrow = Model(Config.nano().replace(moe_inter_dim=40))
    with pytest.raises(MinidsError, match="multiple of 32"):
        save(narrow, tmp_path / "c", format="v4")
    del broken.layers[1].attn.wq_a
    with pytest.raises(MinidsError, match="not a minids model.*missing"):
        save(broken, tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_the_tokenizer_comes_along(model, tmp_path):
    (tmp_path / "t.json").write_text('{"made": "up"}')
    save(model, tmp_path / "c", tokenizer=tmp_path / "t.json")
    assert (tmp_path / "c" / "tokenizer.json").read_text() == '{"made": "up"}'


# ---- transformers ----

@pytest.mark.slow
def test_transformers_reads_what_we_save(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    from_pretrained = transformers.DeepseekV4ForCausalLM.from_pretrained
    save(model, tmp_path / "c", format="fp32")
    theirs, info = from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(IDS).logits, model(IDS), atol=1e-4, rtol=0)
    save(model, tmp_path / "c", format="bf16")
    theirs, info = from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not info["missing_keys"] and theirs.dtype == torch.bfloat16
    theirs = from_pretrained(tmp_path / "c", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, load(tmp_path / "c")(IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shard_size", ["50GB", "1MB"])
def test_we_read_what_transformers_saves(tmp_path, shard_size):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DeepseekV4Config(**Config.nano().to_json())
    theirs = transformers.DeepseekV4ForCausalLM(config).eval()
    with torch.no_grad():
        for name, t in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name.endswith("tid2eid"):
                t.copy_(torch.rand(len(t), 8).argsort(1)[:, :2])
            elif name.endswith(("sinks", "position_bias", "e_score_correction_bias", "base",
                                "norm.weight")):
                t.add_(0.3 * torch.randn_like(t))
    theirs.save_pretrained(tmp_path / "c", max_shard_size=shard_size)
    assert (tmp_path / "c" / "model.safetensors").exists() == (shard_size == "50GB")
    ours = load(tmp_path / "c")
    assert ours.config.n_mtp_layers == 0
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, ours(IDS), atol=1e-4, rtol=0)
    theirs.bfloat16().save_pretrained(tmp_path / "c16", max_shard_size=shard_size)
    rounded = state_of(tmp_path / "c16")
    assert all(torch.equal(rounded[name], t if t.dtype == torch.int64 else t.bfloat16().float())
               for name, t in ours.state_dict().items())


# ---- the shipped configurations ----

def test_flash_and_pro_configurations():
    from minids.system.paths import data
    for name in ("flash", "pro"):
        path = data("v4", f"{name}.config.json")
        config = Config.preset(name)
        assert Config.from_json(path) == config
        values = json.loads(path.read_text())
        assert tuple(values["compress_ratios"]) == config.compress_ratios
        assert values["num_hash_layers"] == 3
        assert values["quantization_config"] == QUANTISATION
