"""The sample checkpoint: made again it is the same, and its format is the released one."""

import json

import pytest
import torch

from minids import MinidsError, load
from minids.config import CSA_RATE, Config
from minids.data.tokenizer import Tokenizer
from minids.model.moe import Gate
from minids.recipes import books, v4_sample
from minids.system.paths import DATA, data
from minids.weights import layout
from minids.weights.checkpoint import Checkpoint
from minids.weights.layout import INDEX

HERE = DATA / "v4_sample"
SAMPLES = [HERE, DATA / "v4_sample_base", DATA / "v4_sample_0731"]


def test_the_script_makes_the_shipped_files(tmp_path):
    v4_sample.build(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in SAMPLES)
    for sample, limit in zip(SAMPLES, (3_000_000, 1_000_000, 1_000_000)):
        made = {p.name: p.read_bytes() for p in (tmp_path / sample.name).iterdir()}
        shipped = {p.name: p.read_bytes() for p in sample.iterdir() if p.name != "README.md"}
        assert made.keys() == shipped.keys()
        assert not [name for name in made if made[name] != shipped[name]]
        assert sum(map(len, shipped.values())) < limit


def test_the_siblings_differ_from_the_sample_as_the_releases_do():
    first, base, later = (json.loads((p / "config.json").read_text()) for p in SAMPLES)
    words = lambda d: {k: v for k, v in d.items() if isinstance(v, (str, bool, dict))}
    assert words(base) == words(first) | {"expert_dtype": "fp8"}
    assert words(later) == words(first)
    assert first.keys() == base.keys() == later.keys() - v4_sample.DSPARK.keys()
    flash = json.loads(data("v4", "flash-0731.config.json").read_text(encoding="utf-8"))
    assert later.keys() == flash.keys()
    assert len(later["compress_ratios"]) == later["num_hidden_layers"] + 3
    index = [json.loads((p / INDEX).read_text()) for p in SAMPLES]
    for d, folder in zip(index, SAMPLES):
        with Checkpoint(folder) as c:
            assert d["metadata"]["total_size"] == sum(map(layout.nbytes, c.inventory().values()))
            assert layout.in_shards(c.names()) == {
                file: [name for name in d["weight_map"] if d["weight_map"][name] == file]
                for file in sorted(set(d["weight_map"].values()))}
    assert len(set(index[2]["weight_map"].values())) == later["num_hidden_layers"] + 2 + 3


@pytest.mark.parametrize("sample", SAMPLES[1:], ids=["base", "0731"])
def test_blocks_of_fp8_and_all_kinds_of_layers_occur_in_the_siblings(sample):
    config = Config.from_json(sample)
    kinds = {(min(r, CSA_RATE + 1), config.is_hash(i))
             for i, r in enumerate(config.compress_ratios[:config.n_layers])}
    assert {(0, True), (4, True), (4, False), (5, False)} == kinds
    with Checkpoint(sample) as c:
        scales = {shape for name, (_, shape) in c.inventory().items() if ".attn." in name
                  and name.endswith(".scale")}
    assert {(1, 1), (2, 1), (1, 2)} <= scales


def test_the_format_is_the_released_one():
    config = Config.from_json(HERE)
    with Checkpoint(HERE) as c:
        c.check()
        assert {name: c.info(name) for name in c.names()} == layout.inventory(config)
    where = json.loads((HERE / INDEX).read_text())["weight_map"]
    assert where == {name: file for file, names in layout.shards(config).items() for name in names}
    flash, ours = (json.loads(p.read_text()) for p in (data("v4", "flash.config.json"),
                                                       HERE / "config.json"))
    assert flash.keys() == ours.keys()
    assert {k: v for k, v in flash.items() if isinstance(v, (str, bool))} == \
           {k: v for k, v in ours.items() if isinstance(v, (str, bool))}
    assert flash["quantization_config"] == ours["quantization_config"]


def test_no_scale_block_is_ragged():
    for name, (format, shape) in layout.tensors(Config.from_json(HERE)).items():
        block = {"FP8": (128, 128), "FP4": (1, 32)}.get(format, (1,) * len(shape))
        assert not any(n % b for n, b in zip(shape, block)), name


def test_every_kind_of_layer_occurs():
    config = Config.from_json(HERE)
    kinds = {(min(r, CSA_RATE + 1), config.is_hash(i))
             for i, r in enumerate(config.compress_ratios)}
    assert {(0, True), (4, True), (4, False), (5, False), (0, False)} <= kinds


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_it_runs_and_balances_no_expert_away(sample):
    model, tokenizer = load(sample), Tokenizer.load(sample)
    text = "The wind was cold, and the road went on for many miles. " * 12
    ids = tokenizer.encode(text, bos=True)
    assert tokenizer.decode(ids[1:]) == text and max(ids) < model.config.vocab_size
    assert len(ids) > model.config.window_size
    chosen = []
    for gate in (m for m in model.modules() if isinstance(m, Gate)):
        gate.register_forward_hook(lambda _, __, out: chosen.append(out[1].unique().numel()))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))
    assert logits.isfinite().all()
    assert chosen == [model.config.n_routed_experts] * model.config.n_layers


@pytest.mark.parametrize("vocab_size", [300, 512])
def test_a_cut_tokenizer_is_one(tmp_path, vocab_size):
    (tmp_path / "tokenizer.json").write_text(json.dumps(v4_sample.cut_tokenizer(vocab_size)))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == vocab_size and tokenizer.eos_id == 1
    assert tokenizer.decode(tokenizer.encode("Über 7 miles\n")) == "Über 7 miles\n"


def test_a_recipe_refuses_an_output_that_cannot_be_written_before_it_works(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MinidsError, match="cannot use the folder"):
        v4_sample.build(tmp_path / "file" / "sample")
    with pytest.raises(MinidsError, match="cannot write"):
        books.build(tmp_path / "no such archive", tmp_path / "no" / "documents.jsonl.xz")
