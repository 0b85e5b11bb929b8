"""All releases of V4 open: Flash and Pro, their base models, Flash-0731 and Pro-0813.

At full size from their configurations and indices, whose numbers are published; whole from samples
of the same shape in data/.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minids import load, plain
from minids.cli import main
from minids.config import Config
from minids.errors import MinidsError
from minids.system.paths import DATA, data
from minids.weights import foreign, header, layout, one_layer
from minids.weights.checkpoint import Checkpoint
from minids.weights.layout import INDEX
from minids.weights.streamed import bytes_of_a_pass, streamed

BASE, LATER = DATA / "v4_sample_base", DATA / "v4_sample_0731"
TWICE = ["mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"]
IDS = torch.randint(0, 320, (2, 150), generator=torch.Generator().manual_seed(0))


def values(name: str) -> dict:
    return json.loads(data("v4", f"{name}.config.json").read_text(encoding="utf-8"))


def without_mtp(config: Config) -> Config:
    ratios = config.compress_ratios[:config.n_layers]
    return config.replace(n_mtp_layers=0, compress_ratios=ratios)


def opened(folder, d: dict, inventory: dict) -> Checkpoint:
    """A checkpoint of which config.json and the index are there, and no shard."""
    weight_map = {name: file for file, names in layout.in_shards(inventory).items()
                  for name in names}
    (folder / "config.json").write_text(json.dumps(d))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return Checkpoint(folder)


# ---- at full size ----

@pytest.mark.slow
@pytest.mark.parametrize("name, config, rank, tensors, size, shards", [
    ("flash-0731", Config.flash(), 256, 72_317, 166_878_536_440, 48),
    ("pro-0813", Config.pro(), 512, 149_782, 892_727_580_904, 66),
])
def test_0731_and_0813(tmp_path, name, config, rank, tensors, size, shards):
    d, trunk = values(name), without_mtp(config)
    assert d["num_nextn_predict_layers"] == 1
    assert len(d["compress_ratios"]) == config.n_layers + 3
    assert Config.from_json(d) == trunk
    dspark = layout.stored(layout.dspark(trunk, len(d["dspark_target_layer_ids"]), rank))
    inventory = layout.inventory(trunk) | dspark
    assert len(inventory) == tensors and sum(map(layout.nbytes, inventory.values())) == size
    assert len(layout.in_shards(inventory)) == shards
    c = opened(tmp_path, d, inventory)
    assert c.config == trunk and c.extra() == list(dspark)
    assert c.left_alone() == (f"left alone: {len(dspark):,} tensors of mtp.0, mtp.1 and mtp.2 "
                              "(DSpark, a draft module that takes the place of the MTP block)")
    # without the keys of DSpark the names of the tensors tell it
    plain_keys = {key: value for key, value in d.items() if not key.startswith("dspark_")}
    assert Config.from_json(plain_keys).n_mtp_layers == 1
    assert opened(tmp_path, plain_keys, inventory).config == trunk


def test_the_types_of_flash_0731():
    """The published inventory: tensors and bytes of each type; DSpark's tensors by module."""
    trunk = without_mtp(Config.flash())
    dspark = layout.stored(layout.dspark(trunk, 3, 256))
    assert [sum(name.startswith(f"mtp.{i}.") for name in dspark) for i in range(3)] == [
        1568, 1565, 1572]
    counts = {}
    for dtype, shape in (layout.inventory(trunk) | dspark).values():
        count, size = counts.get(dtype, (0, 0))
        counts[dtype] = count + 1, size + layout.nbytes((dtype, shape))
    assert counts == {
        "I8": (35_328, 148_176_371_712), "F8_E8M0": (35_718, 9_261_408_000),
        "F8_E4M3": (390, 6_304_038_912), "BF16": (445, 2_967_134_976),
        "F32": (433, 150_966_520), "I64": (3, 18_616_320)}


@pytest.mark.slow
@pytest.mark.parametrize("name, config, tensors", [("flash", Config.flash(), 69_187),
                                                   ("pro", Config.pro(), 145_116)])
@pytest.mark.parametrize("base", [False, True])
def test_the_first_release_and_its_base_models(tmp_path, name, config, tensors, base):
    config = config.replace(expert_dtype="fp8") if base else config
    inventory = layout.inventory(config)
    if base:
        copies = [inventory["embed.weight"], inventory["head.weight"]]
        inventory |= dict(zip(TWICE, copies))
    c = opened(tmp_path, values(name) | {"expert_dtype": config.expert_dtype}, inventory)
    assert len(c.names()) == tensors + 2 * base
    assert c.config == config and c.extra() == TWICE * base
    assert c.left_alone() == (
        "left alone: mtp.0.emb.tok_emb.weight and mtp.0.head.weight "
        "(the MTP block shares embed.weight and head.weight)" if base else "")


@pytest.mark.slow
def test_mtp_was_dropped_and_its_ratios_were_not(tmp_path):
    trunk = without_mtp(Config.flash())
    for changes in ({}, {"num_nextn_predict_layers": 0}):
        c = opened(tmp_path, values("flash-0731") | changes, layout.inventory(trunk))
        assert c.config == trunk and c.left_alone() == ""


# ---- the samples ----

@pytest.mark.slow
def test_0731_is_the_trunk(tmp_path):
    """What is below `mtp.` changes nothing, and its shards need not be there."""
    loaded = load(LATER)
    assert loaded.config == Config.from_json(LATER) and loaded.config.n_mtp_layers == 0
    reference = plain.Model(loaded.config)
    reference.load_state_dict(loaded.state_dict())
    with torch.no_grad():
        logits = loaded(IDS)
        assert torch.allclose(reference(IDS), logits, atol=1e-4, rtol=0)
    weight_map = json.loads((LATER / INDEX).read_text())["weight_map"]
    files = {file for name, file in weight_map.items() if not name.startswith("mtp.")}
    for file in [*files, "config.json", INDEX]:
        shutil.copy(LATER / file, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(IDS), logits)
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {
            name: file for name, file in weight_map.items() if file in files}}))
        assert torch.equal(load(tmp_path)(IDS), logits)


def test_what_stands_below_mtp_in_0731():
    with Checkpoint(LATER) as c:
        d = json.loads((LATER / "config.json").read_text())
        formats = layout.dspark(c.config, len(d["dspark_target_layer_ids"]),
                                d["dspark_markov_rank"])
        assert c.inventory() == layout.inventory(c.config) | layout.stored(formats)
        assert c.extra() == list(layout.stored(formats))
        assert c.inventory()["mtp.0.main_proj.weight"] == ("F8_E4M3", (32, 96))
        with pytest.raises(MinidsError, match="main_proj.weight is not read"):
            c.read("mtp.0.main_proj.weight")


def test_base_has_float32_scales_and_two_tensors_more():
    with Checkpoint(BASE) as c:
        assert c.config.expert_dtype == "fp8" and c.config.n_mtp_layers == 1
        assert c.extra() == TWICE
        scales = {c.info(name)[0] for name in c.names() if name.endswith(".scale")}
        assert scales == {"F32"}
        for name in ("layers.0.attn.wq_b.weight", "layers.2.attn.wo_b.weight",
                     "layers.1.ffn.experts.3.w2.weight"):       # 2 x 1, 1 x 2 and 1 x 1 blocks
            codes = c.raw(name).float()
            scale = c.raw(layout.scale_name(name))
            rows, columns = codes.shape
            block = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            assert torch.equal(c.read(name), codes * block)
            assert len(scale) == -(-rows // 128) and (scale.log2() % 1 != 0).all()
    model = load(BASE)
    assert torch.equal(model.layers[0].attn.wq_b.weight,
                       Checkpoint(BASE).read("layers.0.attn.wq_b.weight"))
    with torch.no_grad():
        assert model(IDS).isfinite().all() and len(model.mtp) == 1


@pytest.mark.parametrize("sample", [BASE, LATER], ids=["base", "0731"])
def test_streamed_and_layer_by_layer_as_loaded(sample):
    whole, model = load(sample), streamed(sample)
    equal = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-5)
    with torch.no_grad():
        equal(model(IDS), whole(IDS))
        with Checkpoint(sample) as c:
            for i in range(c.config.n_layers):
                X, ids = one_layer.random_input(c.config, 150)
                block = one_layer.read_layer(c, i)
                equal(block(X, ids), whole.layers[i](X, ids))
    assert bytes_of_a_pass(sample) < sum(p.stat().st_size for p in sample.iterdir())


@pytest.mark.slow(7)
@pytest.mark.parametrize("sample, left", [
    (BASE, "left alone: mtp.0.emb.tok_emb.weight and mtp.0.head.weight "),
    (LATER, "left alone: 169 tensors of mtp.0, mtp.1 and mtp.2 (DSpark"),
], ids=["base", "0731"])
def test_the_commands(sample, left, capsys, monkeypatch):
    monkeypatch.setattr(one_layer, "SECONDS", 0)        # each pass once
    assert main(["real", "info", str(sample)]) in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(left) for line in lines].count(True) == 1
    assert main(["real", "layer", str(sample), "--layer", "1", "--device", "cpu"]) in (0, None)
    assert "layer 1 (CSA, experts by hash)" in capsys.readouterr().out
    assert main(["real", "run", "--model", str(sample), "--prompt", "Hello", "--device", "cpu",
                 "--max-new-tokens", "2"]) in (0, None)
    assert "perplexity of the text" in capsys.readouterr().out


# ---- types ----

def edited(tmp_path, change):
    """The 0731 sample with the tensors of its first layer changed."""
    shutil.copytree(LATER, tmp_path / "c")
    path = next((tmp_path / "c").glob("model-00002-*"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return tmp_path / "c"


def run(path) -> list[str]:
    return ["real", "run", "--model", str(path), "--prompt", "Hello", "--device", "cpu"]


def test_tables_of_32_bits_are_read_everywhere(tmp_path, capsys):
    name = "layers.0.ffn.gate.tid2eid"
    path = edited(tmp_path, lambda t: t.update({name: t[name].int()}))
    with Checkpoint(path) as c:
        assert c.info(name)[0] == "I32" and c.read(name).dtype == torch.int64
        assert torch.equal(one_layer.read_layer(c, 0).ffn.gate.tid2eid, c.read(name))
    with torch.no_grad():
        assert torch.equal(load(path)(IDS), load(LATER)(IDS))
        assert torch.equal(streamed(path)(IDS), streamed(LATER)(IDS))
    assert main(run(path)) in (0, None)
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("dtype, stored", [
    (torch.uint8, "U8"), (torch.uint32, "U32"), (torch.int16, "I16"), (torch.float64, "F64"),
    (torch.complex64, "C64"), (torch.bool, "BOOL"), (torch.float8_e5m2, "F8_E5M2"),
    (torch.float8_e4m3fnuz, "F8_E4M3FNUZ"),
])
def test_other_types_are_listed_and_refused(tmp_path, capsys, dtype, stored):
    name = "layers.0.attn.wkv.weight"
    path = edited(tmp_path, lambda t: t.update({name: t[name].float().to(dtype)}))
    with Checkpoint(path) as c:
        assert c.inventory()[name] == (stored, (64, 32))
        with pytest.raises(MinidsError, match=f"wkv.weight is {stored}"):
            c.read(name)
    for job in (run(path), ["real", "layer", str(path), "--layer", "0", "--device", "cpu"]):
        assert main(job) == 2
        assert f"wkv.weight is {stored}" in " ".join(capsys.readouterr().err.split())


def test_every_type_of_safetensors_is_known():
    from safetensors.torch import _TYPES
    assert header.DTYPES.keys() >= _TYPES.keys() | {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}


def test_has_mtp():
    assert foreign.has_mtp(["embed.weight", "mtp.0.enorm.weight"])
    assert not foreign.has_mtp(["embed.weight", "mtp.0.norm.weight", "mtp.0.main_proj.weight"])


def test_a_folder_that_lacks_a_file(tmp_path, capsys):
    """What is there is listed, and what is not is named."""
    copy = shutil.copytree(LATER, tmp_path / "X")
    (copy / "model-00009-of-00009.safetensors").unlink()
    assert main(["real", "info", str(copy)]) == 0
    output = capsys.readouterr().out
    assert "\n353 tensors, " in output
    assert "model-00009-of-00009.safetensors is not here: 60 tensors of it (mtp.2." in output
    assert "left alone: 169 tensors of mtp.0, mtp.1 and mtp.2" in output


def test_an_index_that_lacks_tensors(tmp_path, capsys):
    copy = shutil.copytree(LATER, tmp_path / "X")
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items()
                           if not name.startswith("layers.1.attn.")}
    (copy / INDEX).write_text(json.dumps(index))
    assert main(["real", "info", str(copy)]) == 0
    assert "tensors of the model (layers.1.attn.attn_sink, " in capsys.readouterr().out
