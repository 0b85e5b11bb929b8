"""Damaged, foreign and hostile files: each gives one `MinidsError`, nothing is ever unpickled."""

import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import FEW_BYTES

from minids.config import SLIDING
from minids.errors import MinidsError
from minids.model import Model
from minids.weights import checkpoint
from minids.weights.checkpoint import Checkpoint, holds_nan, load
from minids.weights.layout import INDEX, SINGLE
from minids.weights.one_layer import read_layer
from minids.weights.save import save
from minids.weights.streamed import streamed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One good checkpoint of each layout; tests work on copies."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("good")
    save(Model(FEW_BYTES), root / "single", format="fp32")
    save(Model(FEW_BYTES), root / "sharded", format="v4")
    return root


@pytest.fixture
def copy(folders, tmp_path):
    def make(name):
        target = tmp_path / name
        target.mkdir()
        for path in (folders / name).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target
    return make


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refused(path, words):
    with pytest.raises(MinidsError, match=words) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


# ---- the folder ----

def test_no_such_folder(tmp_path):
    refused(tmp_path / "none", "no checkpoint at .*expected a folder.*, found nothing")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "no checkpoint at .*found a file")
    with pytest.raises(MinidsError, match="no checkpoint at .*found a file"):
        Checkpoint(str(tmp_path / "file"))
    with pytest.raises(MinidsError, match="nothing is at './none', and it is no repository's"):
        Checkpoint("./none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no configuration at")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "llama"}', "{}", "\x00",
                                     "[" * 100_000])
def test_a_foreign_configuration(copy, content):
    path = copy("single")
    (path / "config.json").write_text(content)
    with pytest.raises(MinidsError):
        load(path)


def test_a_configuration_of_another_size(copy, monkeypatch):
    monkeypatch.setattr(checkpoint, "empty_model",
                        lambda *_: pytest.fail("took memory before the check"))
    for layout in ("single", "sharded"):
        for key, value in (("hidden_size", 64), ("hidden_size", 10**9), ("n_routed_experts", 3),
                           ("n_routed_experts", 10**12), ("vocab_size", 41), ("hc_mult", 3),
                           ("num_attention_heads", 8)):
            path = copy(layout)
            edit_json(path / "config.json", lambda d: d.update({key: value}))
            refused(path, "do not hold the model of config.json|expert matrices|expected at most")
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_a_pickle_is_not_opened(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = copy("single")
    (path / SINGLE).unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(path, "no weights in .*pytorch_model.bin is a pickle")
    torch.save({"embed.weight": Trap()}, path / SINGLE)          # a pickle under the right name
    refused(path, "not a whole safetensors file")
    assert not (tmp_path / "sprung").exists()


def test_both_layouts_in_one_folder(copy):
    path = copy("single")
    (path / INDEX).write_text("{}")
    refused(path, "holds both")


# ---- the index ----

@pytest.mark.parametrize("file", ["../single/model.safetensors", "/etc/passwd", "a/b.safetensors",
                                  "..", "", "model.bin", "..\\x.safetensors", "C:\\x.safetensors",
                                  "a\n.safetensors", 7, None, ["a"]])
def test_an_index_that_points_elsewhere(copy, file):
    path = copy("sharded")
    edit_json(path / INDEX, lambda d: d["weight_map"].update({"embed.weight": file}))
    refused(path, "names of .safetensors files in this folder")


@pytest.mark.parametrize("content", ["", "[]", "7", "{}", '{"weight_map": 3}', '{"weight_map": {}}',
                                     "[" * 100_000, "\x00"])
def test_an_index_that_is_none(copy, content):
    path = copy("sharded")
    (path / INDEX).write_text(content)
    refused(path, "weight_map")


def test_an_index_that_does_not_match(copy):
    path = copy("sharded")
    move = lambda file: lambda d: d["weight_map"].update({"embed.weight": file})
    edit_json(path / INDEX, move("model-00009-of-00005.safetensors"))
    refused(path, "model-00009-of-00005.safetensors is missing")
    edit_json(path / INDEX, move("model-00002-of-00005.safetensors"))
    refused(path, r"disagree: 1 only in the index \(embed.weight\)")
    edit_json(path / INDEX, lambda d: d["weight_map"].pop("embed.weight"))
    edit_json(path / INDEX, lambda d: d["weight_map"].pop("layers.0.attn.attn_sink"))
    refused(path, r"disagree: 1 only in the file \(layers.0.attn.attn_sink\)")


def test_tensors_that_the_index_lacks(copy):
    path, name = copy("sharded"), "layers.1.ffn.gate.bias"
    with Checkpoint(path) as files:
        assert files.missing() == [] and files.below("layers.1.") == files.find("layers.1.*")
    edit_json(path / INDEX, lambda d: d["weight_map"].pop(name))
    words = rf"{path.name}: the files do not hold the model of config.json: 1 missing \({name}\)"
    with Checkpoint(path) as files:
        assert files.missing() == [name]
        for read in (lambda: files.read(name), lambda: files.find("layers.*.ffn.gate.bias"),
                     lambda: files.below("layers.1."), lambda: read_layer(files, 1)):
            with pytest.raises(MinidsError, match=words):
                read()
        assert read_layer(files, 0)
    edit_json(path / INDEX, lambda d: [d["weight_map"].pop(n) for n in list(d["weight_map"])
                                       if n.startswith("layers.1.")])
    with Checkpoint(path) as files, pytest.raises(MinidsError, match=r"6 missing \(layers.1.ffn"):
        files.find("layers.1.ffn.experts.*")


def test_a_layer_with_more_than_its_configuration_says(copy):
    path = copy("sharded")
    values = json.loads((path / "config.json").read_text())
    assert values["layer_types"][1] != SLIDING
    edit_json(path / "config.json", lambda d: d["layer_types"].__setitem__(1, SLIDING))
    with Checkpoint(path) as files:
        words = r"unexpected \(layers.1.attn.(compressor|indexer).* may belong to a later model"
        with pytest.raises(MinidsError, match=words):
            read_layer(files, 1)
        assert files.read("layers.1.attn_norm.weight").isfinite().all()


def test_mtp_blocks_that_are_not_stored(copy):
    path = copy("single")
    edit_json(path / "config.json", lambda d: d.update(num_nextn_predict_layers=2))
    with Checkpoint(path) as files:
        assert files.config.n_mtp_layers == 2
        assert files.missing() and all(n.startswith("mtp.1.") for n in files.missing())
    edit_json(path / "config.json", lambda d: d.update(num_nextn_predict_layers=4096))
    refused(path, f"describes {3 * 2 * (FEW_BYTES.n_layers + 4096)} expert matrices")


def test_a_folder_has_no_revision(copy):
    path = copy("single")
    for source in (path, str(path)):
        with pytest.raises(MinidsError, match="revision: expected none for .*; found 'main'"):
            Checkpoint(source, "main")


# ---- the tensors ----

TABLE = "layers.0.ffn.gate.tid2eid"


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("norm.weight"), r"1 missing \(norm.weight\)"),
    (lambda t: t.pop("layers.1.ffn.gate.bias"), r"1 missing \(layers.1.ffn.gate.bias\)"),
    (lambda t: t.update({"layers.7.extra": torch.zeros(2)}), r"1 unexpected \(layers.7.extra\)"),
    (lambda t: t.update({"norm.scale": torch.zeros(2)}), r"1 unexpected \(norm.scale\)"),
    (lambda t: t.update({"norm.weight": torch.zeros(31)}),
     r"norm.weight is F32 \[31\], expected F32 or BF16 or F16 \[32\]"),
    (lambda t: t.update({"layers.0.ffn.experts.1.w1.weight": torch.zeros(64, 16).byte()}),
     r"w1.weight is U8 \[64, 16\], expected I8 \[64, 16\] or F32 or BF16 or F16 \[64, 32\]"),
    (lambda t: t.update({"layers.0.attn.wq_a.weight": torch.zeros(64, 32).byte()}),
     r"wq_a.weight is U8 \[64, 32\], expected F8_E4M3 \[64, 32\] or F32 or BF16 or F16 \[64, 32\]"),
    (lambda t: t.update({"head.weight": t["head.weight"].T.contiguous()}),
     r"head.weight is F32 \[32, 40\]"),
    (lambda t: t.update({"head.weight": t["head.weight"].long()}), "head.weight is I64"),
    (lambda t: t.update({"head.weight": t["head.weight"].to(torch.float8_e5m2)}),
     "head.weight is F8_E5M2"),
    (lambda t: t.update({"head.weight": t["head.weight"].to(torch.float8_e4m3fn)}),
     "head.weight has no head.scale"),
    (lambda t: t.update({TABLE: torch.zeros(40, 2)}), "tid2eid is F32"),
    (lambda t: t.update({TABLE: torch.full((40, 2), 2)}), "expected experts 0 to 1, found 2 to 2"),
    (lambda t: t.update({TABLE: torch.full((40, 2), -1)}),
     "expected experts 0 to 1, found -1 to -1"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(32)}), "both mean norm.weight"),
    (lambda t: [t.pop(name) for name in list(t) if name.startswith("mtp.0.attn")],
     r"missing \(mtp.0.attn"),
])
def test_wrong_tensors(copy, change, words):
    path = copy("single")
    edit_tensors(path / SINGLE, change)
    refused(path, words)


@pytest.mark.parametrize("name, change, words", [
    ("layers.0.attn.wq_a.scale", lambda t: t.repeat(2, 1),
     r"wq_a.scale is F8_E8M0 \[2, 1\], expected F8_E8M0 or F32 \[1, 1\]"),
    ("layers.0.attn.wq_a.scale", lambda t: t.to(torch.bfloat16), "wq_a.scale is BF16"),
    ("layers.0.attn.wq_a.weight", lambda t: t[:-1].contiguous(),
     r"wq_a.weight is F8_E4M3 \[63, 32\], expected \[64, 32\]"),
    ("layers.0.ffn.experts.1.w1.weight", lambda t: t[:, :8].contiguous(),
     r"w1.weight is I8 \[64, 8\], expected \[64, 16\]"),
    ("layers.0.ffn.experts.1.w1.scale", lambda t: t[:1].contiguous(),
     r"w1.scale is F8_E8M0 \[1, 1\]"),
])
def test_wrong_codes_and_scales(copy, name, change, words):
    path = copy("sharded")
    shard = path / "model-00002-of-00005.safetensors"
    edit_tensors(shard, lambda t: t.update({name: change(t[name])}))
    refused(path, words)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 20_000, -1])
def test_truncated_files(copy, keep):
    shard = "model-00003-of-00005.safetensors"
    for path, file in ((copy("single"), SINGLE), (copy("sharded"), shard)):
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[:keep])
        refused(path, "not a whole safetensors file")


@pytest.mark.parametrize("name", ["layers.0.attn.wq_a.scale", "layers.1.ffn.experts.0.w1.scale"])
def test_a_scale_that_is_nan(copy, name):
    path = copy("sharded")
    file = json.loads((path / INDEX).read_text())["weight_map"][name]

    def change(tensors):
        tensors[name].view(torch.uint8)[-1, -1] = 255
    edit_tensors(path / file, change)
    refused(path, f"{name} holds NaN; expected powers of two")
    weight = name.replace("scale", "weight")
    with Checkpoint(path) as files:
        for read in (lambda: files.read(weight), lambda: files.raw(name),
                     lambda: files.read_all([weight])):
            with pytest.raises(MinidsError, match=f"{name} holds NaN"):
                read()
    with pytest.raises(MinidsError, match=f"{name} holds NaN"), torch.inference_mode():
        streamed(path)(torch.arange(9)[None])


@pytest.mark.parametrize("name, code", [("layers.0.attn.wq_a.weight", 0x7F),
                                        ("layers.1.attn.wq_a.weight", 0xFF)])
def test_a_code_that_is_nan(copy, name, code):
    path = copy("sharded")
    file = json.loads((path / INDEX).read_text())["weight_map"][name]

    def change(tensors):
        tensors[name].view(torch.uint8)[0, 0] = code
    edit_tensors(path / file, change)
    refused(path, f"{name} holds NaN")


@pytest.mark.parametrize("name", ["embed.weight", "layers.1.attn_norm.weight", "hc_head_base"])
def test_a_number_that_is_nan(copy, name):
    path = copy("single")
    edit_tensors(path / SINGLE, lambda tensors: tensors[name].view(-1)[-1:].fill_(float("nan")))
    refused(path, f"{name} holds NaN; expected numbers")


@pytest.mark.parametrize("name", [
    "embed.weight", "head.weight", "layers.1.attn_norm.weight", "layers.1.ffn.gate.weight",
    "layers.1.hc_attn_fn", "layers.1.attn.wq_a.weight", "layers.1.ffn.shared_experts.w2.weight"])
def test_nan_is_refused_however_it_is_read(copy, name):
    path = copy("sharded")
    file = json.loads((path / INDEX).read_text())["weight_map"][name]

    def change(tensors):
        t = tensors[name]
        t.view(-1)[-1:] = torch.tensor([float("nan")]).to(t.dtype)
    edit_tensors(path / file, change)
    words = f"{name} holds NaN; expected numbers"
    with Checkpoint(path) as files:
        reads = [lambda: files.read(name), lambda: files.raw(name), lambda: files.read_all([name]),
                 lambda: streamed(path)(torch.arange(9)[None])]
        if name.startswith("layers.1."):
            reads.append(lambda: read_layer(files, 1))
        for read in reads:
            with pytest.raises(MinidsError, match=words), torch.inference_mode():
                read()
    refused(path, words)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_float32_scale_that_is_not_finite(copy, value):
    path, name = copy("sharded"), "layers.0.attn.wq_a.scale"

    def change(tensors):
        tensors[name] = tensors[name].float()
        tensors[name][0, 0] = value
    edit_tensors(path / "model-00002-of-00005.safetensors", change)
    refused(path, f"{name} holds NaN or infinity; expected numbers")


def test_holds_nan_knows_every_code():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu):
        for t in bytes_.view(dtype).split(1):
            assert holds_nan(t) == t.float().isnan().any()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        numbers = torch.tensor([1, float("inf"), -float("inf"), 0]).to(dtype)
        assert not holds_nan(numbers)
        for i in range(4):
            assert holds_nan(numbers.index_fill(0, torch.tensor(i), float("nan")))
    assert not holds_nan(torch.tensor([-1, 127], dtype=torch.int8))


def test_a_header_that_promises_too_much(copy):
    path = copy("single")
    data = (path / SINGLE).read_bytes()
    (path / SINGLE).write_bytes(struct.pack("<Q", 2**62) + data[8:])
    refused(path, "not a whole safetensors file")


def test_asking_for_an_impossible_type(copy):
    with pytest.raises(MinidsError, match="dtype: expected"):
        load(copy("single"), dtype=torch.int64)


# ---- anything else: a model or a MinidsError, never another exception ----

def load_or_refuse(path):
    try:
        load(path)
    except MinidsError as error:
        assert str(error)


FUZZ = settings(max_examples=40, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(at=st.integers(0, 3000), patch=st.binary(min_size=1, max_size=4))
def test_fuzzed_header(folders, tmp_path, at, patch):
    data = bytearray((folders / "single" / SINGLE).read_bytes())
    data[at:at + len(patch)] = patch
    (tmp_path / SINGLE).write_bytes(data)
    (tmp_path / "config.json").write_bytes((folders / "single" / "config.json").read_bytes())
    load_or_refuse(tmp_path)


WORD = st.text(max_size=8)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | WORD,
                    lambda inner: (st.lists(inner, max_size=3)
                                   | st.dictionaries(WORD, inner, max_size=3)),
                    max_leaves=6)


@pytest.mark.slow
@FUZZ
@given(key=st.sampled_from(sorted(FEW_BYTES.to_json())), value=JSON)
@example(key="rope_scaling", value=1)
def test_fuzzed_configuration(folders, tmp_path, key, value):
    (tmp_path / SINGLE).write_bytes((folders / "single" / SINGLE).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(FEW_BYTES.to_json() | {key: value}))
    load_or_refuse(tmp_path)


@FUZZ
@given(name=st.sampled_from(["weight_map", "embed.weight", "layers.0.attn_norm.weight", "new"]),
       value=JSON)
def test_fuzzed_index(folders, tmp_path, name, value):
    index = json.loads((folders / "sharded" / INDEX).read_text())
    (index if name == "weight_map" else index["weight_map"])[name] = value
    for path in (folders / "sharded").iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / INDEX).write_text(json.dumps(index))
    load_or_refuse(tmp_path)
    try:
        with Checkpoint(tmp_path) as c:
            for tensor in c.names()[:3]:
                c.read(tensor)
    except MinidsError:
        pass
