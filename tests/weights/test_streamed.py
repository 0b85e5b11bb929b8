"""The streamed model: the numbers of the loaded one, two layers in memory, experts as stored."""

import json
import shutil
import threading
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from minids import generate, load, save
from minids.cli import main
from minids.config import Config
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.model import Model, kernels
from minids.system.paths import DATA
from minids.weights import memory, one_layer
from minids.weights import streamed as streamed_module
from minids.weights.checkpoint import Checkpoint, view_bytes
from minids.weights.folder import LocalFiles
from minids.weights.header import Entry
from minids.weights.layout import INDEX
from minids.weights.streamed import Layers, bytes_of_a_pass, memory_of_a_pass, report, streamed

SAMPLE = DATA / "v4_sample"
IDS = torch.randint(0, 512, (2, 150), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole():
    return load(SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_loaded_model_computes(dtype):
    """With products from codes up to the order of sums; in torch bit for bit."""
    loaded, model = load(SAMPLE, dtype=dtype), streamed(SAMPLE, dtype=dtype)
    room = 1e-4 if dtype == torch.float32 else 0.1
    with torch.no_grad():
        for ids in (IDS, IDS[:, :1], IDS[:1, :9]):
            a, b = model(ids), loaded(ids)
            assert (a - b).abs().max() < room * b.std()
    with torch.no_grad(), kernels.switched_off("packed", "experts", "swiglu"):
        assert torch.equal(model(IDS), loaded(IDS))
        # a second pass reads every layer again
        assert torch.equal(model.features(IDS), loaded.features(IDS))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("format", ["bf16", "fp32", "v4"])
def test_other_formats(format, tmp_path):
    torch.manual_seed(0)
    save(Model(Config.nano().replace(expert_dtype="fp8")), tmp_path / "c", format=format)
    ids = IDS[:1, :40]
    with torch.no_grad():
        model, whole = streamed(tmp_path / "c"), load(tmp_path / "c")
        torch.testing.assert_close(model(ids), whole(ids), rtol=1e-5, atol=2e-5)


def test_decoding_and_generation(whole):
    model, ids = streamed(SAMPLE), IDS[:, :20]
    with torch.no_grad():
        a, b = model.new_state(2, 30), whole.new_state(2, 30)
        for part in (ids[:, :7], ids[:, 7:8], ids[:, 8:]):
            torch.testing.assert_close(model(part, a), whole(part, b), rtol=1e-5, atol=5e-5)
    assert generate(model, ids.tolist(), 4, seed=1) == generate(whole, ids.tolist(), 4, seed=1)


def test_at_most_two_layers_are_in_memory(monkeypatch):
    """Count the matrices that are alive after a layer was read, and before one computes."""
    alive, most, threads, fill = weakref.WeakSet(), [], set(), Layers.fill

    def counting(self, block, i):
        threads.add(threading.current_thread())
        block = fill(self, block, i)
        alive.add(block.attn.kv_norm.weight)
        most.append(len(alive))
        return block

    monkeypatch.setattr(Layers, "fill", counting)
    model = streamed(SAMPLE)
    model.layers.on_block = lambda i, block: most.append(len(alive))
    with torch.no_grad():
        model(IDS[:1, :50])
    assert max(most) == 2 and len(most) == 8 and len(alive) == 0
    assert threading.main_thread() not in threads


def test_the_next_layer_is_read_while_this_one_computes(monkeypatch):
    """Reading of layer i + 1 begins before layer i ends: here each of them waits for the other."""
    began, fill = [threading.Event() for _ in range(4)], Layers.fill

    def begin(self, block, i):
        began[i].set()
        return fill(self, block, i)

    monkeypatch.setattr(Layers, "fill", begin)
    model = streamed(SAMPLE)
    waited = []
    model.layers.on_block = lambda i, block: block.register_forward_hook(
        lambda *_: waited.append(began[min(i + 1, 3)].wait(20)))
    with torch.no_grad():
        model(IDS[:1, :8])
    assert waited == [True] * 4


def test_experts_stay_as_they_are_stored():
    seen = []
    model = streamed(SAMPLE)

    def look(i, block):
        matrices = [m for expert in block.ffn.experts for m in expert.children()]
        assert all(m.weight is None and m.codes.dtype == torch.int8 for m in matrices)
        seen.append(sum(t.nbytes for m in matrices for t in (m.codes, m.scale)))

    model.layers.on_block = look
    with torch.no_grad():
        model(IDS[:1, :8])
    with Checkpoint(SAMPLE) as c:
        size = lambda start: sum(c.raw(n).nbytes for n in c.names() if n.startswith(start))
        stored = [size(f"layers.{i}.ffn.experts.") for i in range(4)]
        assert bytes_of_a_pass(SAMPLE) == size("layers.")
    assert seen == stored


def test_an_error_while_reading_reaches_the_caller(tmp_path):
    for file in SAMPLE.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = streamed(tmp_path)
    shard = tmp_path / "model-00005-of-00007.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with torch.no_grad(), pytest.raises(MinidsError, match=f"{shard.name} ends before"):
        model(IDS)
    (tmp_path / "model-00004-of-00007.safetensors").unlink()
    with pytest.raises(MinidsError, match="model-00004-of-00007.safetensors is missing"):
        streamed(tmp_path)


def test_tensors_that_are_not_aligned(tmp_path):
    """Four numbers of two bytes begin at an odd byte, after a neighbour of three bytes."""
    file, numbers = tmp_path / "file", torch.tensor([1.5, -2.0, 0.0, 7.0], dtype=torch.bfloat16)
    file.write_bytes(b"\1\2\3" + bytes(numbers.view(torch.uint8).tolist()) + b"..." + b"\4")
    entries = {"last": Entry("I8", (1,), 14, 15), "odd": Entry("BF16", (2, 2), 3, 11),
               "first": Entry("I8", (3,), 0, 3)}
    data = LocalFiles(tmp_path).read("file", entries)
    assert data["first"].untyped_storage().data_ptr() == data["odd"].untyped_storage().data_ptr()
    assert torch.equal(view_bytes(data["odd"], entries["odd"]), numbers.view(2, 2))
    assert view_bytes(data["first"], entries["first"]).tolist() == [1, 2, 3]
    assert view_bytes(data["last"], entries["last"]).tolist() == [4]


def test_a_table_with_an_expert_that_does_not_exist(tmp_path):
    for file in SAMPLE.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "model-00003-of-00007.safetensors"
    tensors = load_file(shard)
    tensors["layers.1.ffn.gate.tid2eid"] = tensors["layers.1.ffn.gate.tid2eid"] + 1
    save_file(tensors, shard, {"format": "pt"})
    model = streamed(tmp_path)
    words = "layers.1.ffn.gate.tid2eid: expected experts 0 to 3, found 1 to 4"
    with torch.no_grad(), pytest.raises(MinidsError, match=words):
        model(IDS)


def test_the_report(whole):
    ids = IDS[0].tolist()
    model = streamed(SAMPLE)
    seen = report(model, ids)
    with torch.no_grad():
        logits = whole(IDS[:1])[0]
        X = whole.features(IDS[:1])
    torch.testing.assert_close(seen["next"], logits[-1], rtol=1e-5, atol=2e-5)
    losses = -logits.log_softmax(-1)[torch.arange(149), IDS[0, 1:]]
    assert torch.allclose(torch.tensor(seen["nats"]), losses, atol=1e-5)
    assert [sum(load) for load in seen["load"]] == [150 * 2] * 4
    table = whole.layers[0].ffn.gate.tid2eid[IDS[0]]
    assert seen["load"][0] == table.flatten().bincount(minlength=4).tolist()
    assert seen["rms"][-1] == pytest.approx(X.pow(2).mean().sqrt().item())
    with pytest.raises(MinidsError, match="at least 2 tokens"):
        report(model, ids[:1])


def test_the_command(capsys, tmp_path):
    assert main(["real", "run", "--model", str(SAMPLE), "--prompt", "The road went on",
                 "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr().out
    size = bytes_of_a_pass(SAMPLE)
    assert f"One pass reads {size:,} bytes" in output and "seconds at 1 GB a second" in output
    ids = Tokenizer.load(SAMPLE).encode("The road went on", bos=True)
    need = memory_of_a_pass(SAMPLE, len(ids))
    assert f"It takes about {need:,} bytes of memory; " in output
    assert f"2 new tokens read {2 * size:,} more" in output
    assert output.count("  layer ") == 4
    assert "perplexity of the text" in output and "The road went on" in output
    assert main(["real", "run", "--model", str(tmp_path / "none"), "--prompt", "x"]) == 2
    assert "no model at" in capsys.readouterr().err


def test_a_text_that_does_not_fit(capsys, monkeypatch):
    """Nothing is read."""
    monkeypatch.setattr(memory, "free", lambda device: 1_000_000)
    monkeypatch.setattr(streamed_module, "streamed", None)
    assert main(["real", "run", "--model", str(SAMPLE), "--prompt", "The road"]) == 2
    output, problem = capsys.readouterr()
    assert "1,000,000 are free." in output and problem.count("\n") == 1
    assert "bytes of memory, 1,000,000 are free on cpu. Close other programs" in problem


def test_what_was_seen_before_memory_ran_out(capsys, monkeypatch):
    """Layers are printed as they come."""
    fill = Layers.fill

    def short_of_memory(self, block, i):
        if i == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fill(self, block, i)

    monkeypatch.setattr(Layers, "fill", short_of_memory)
    assert main(["real", "run", "--model", str(SAMPLE), "--prompt", "The road went on"]) == 2
    output, problem = capsys.readouterr()
    assert [f"  layer  {i}: " in output for i in range(4)] == [True, True, True, False]
    assert problem.startswith("minids: a pass of 9 tokens: the memory of cpu ran out.")
    assert problem.count("\n") == 1


def test_the_report_computes_logits_part_by_part(monkeypatch):
    """Wherever the text is cut: also where the last part is one token, which has no target."""
    ids, model = IDS[0].tolist(), streamed(SAMPLE)
    whole = report(model, ids)
    for size in (149, 50, 64, 1):
        monkeypatch.setattr(streamed_module, "LOGITS", size)
        parts = report(model, ids)
        assert parts["nats"] == pytest.approx(whole["nats"], abs=1e-5)
        torch.testing.assert_close(parts["next"], whole["next"], atol=1e-5, rtol=1e-5)


# ---- what is refused before anything is read ----

@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SAMPLE, tmp_path / "X")


@pytest.fixture
def nothing_is_read(monkeypatch):
    monkeypatch.setattr(LocalFiles, "read", None)


def refused(capsys, folder, *options, prompt="The road went on") -> str:
    """The one line that `real run` prints where it refuses."""
    argv = ["real", "run", "--model", folder, "--prompt", prompt, *options]
    assert main([str(a) for a in argv]) == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1
    return problem


def add_tensor(folder, name):
    """A file more, with one tensor."""
    save_file({name: torch.zeros(2)}, folder / "model-00008-of-00007.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = "model-00008-of-00007.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["layers.99.foo", "layers.1_0.y", "layers.x.foo", "layers."])
def test_tensors_of_no_layer(name, copy, capsys, nothing_is_read):
    add_tensor(copy, name)
    words = f"the files do not hold the model of config.json: 1 unexpected ({name})"
    assert words in refused(capsys, copy)
    for count in (bytes_of_a_pass, lambda path: memory_of_a_pass(path, 9), streamed):
        with pytest.raises(MinidsError, match="1 unexpected"):
            count(copy)


def test_more_layers_than_config_json_says(copy, capsys, nothing_is_read):
    config = json.loads((copy / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "compress_ratios": config["compress_ratios"][:3] + [0]}
    (copy / "config.json").write_text(json.dumps(config))
    assert "unexpected (layers.3." in refused(capsys, copy)


def test_a_layer_that_is_not_there(copy, capsys, nothing_is_read):
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items()
                           if not name.startswith("layers.2.")}
    (copy / INDEX).write_text(json.dumps(index))
    assert "missing (layers.2.attn.attn_sink, " in refused(capsys, copy)
    assert main(["real", "layer", str(copy), "--layer", "2"]) == 2
    assert "missing (layers.2.attn.attn_sink, " in capsys.readouterr().err


@pytest.mark.parametrize("of", ["attn.wkv.scale", "ffn.experts.3.w2.scale", "ffn.gate.bias"])
def test_nan_in_a_layer(of, copy):
    """Also in what stays as it is stored."""
    shard = copy / "model-00005-of-00007.safetensors"
    tensors, name = load_file(shard), f"layers.3.{of}"
    tensors[name][..., -1] = torch.nan
    save_file(tensors, shard, {"format": "pt"})
    with torch.no_grad(), pytest.raises(MinidsError, match=f"{name} holds NaN"):
        streamed(copy)(IDS)
    with Checkpoint(copy) as c, pytest.raises(MinidsError, match=f"{name} holds NaN"):
        one_layer.read_layer(c, 3)


@pytest.mark.parametrize("prompt, new, words", [
    ("The road", -1, "max-new-tokens: expected 0 or more, found -1"),
    ("The road", 5000, "new ones exceed the model's context of 4096: ask for at most"),
    ("The road " * 3000, 0, "tokens, and the model's context is 4096: shorten the prompt"),
    ("", 0, "prompt: expected a text to read, found none"),
])
def test_texts_that_the_model_cannot_read(prompt, new, words, capsys, nothing_is_read):
    assert words in refused(capsys, SAMPLE, "--max-new-tokens", new, prompt=prompt)


def test_a_tokenizer_of_another_model(copy, capsys, nothing_is_read):
    Tokenizer.load().save(copy)
    words = (f"the tokenizer in {copy} has ids up to 2047, the model's end at 511: "
             "take both from the same checkpoint")
    assert words in refused(capsys, copy)


def test_a_repository_of_the_hub(capsys):
    words = "hf download deepseek-ai/DeepSeek-V4-Flash --local-dir DeepSeek-V4-Flash"
    assert words in refused(capsys, "deepseek-ai/DeepSeek-V4-Flash")
    for folder in ("nowhere", "runs/sft", SAMPLE / "none"):
        assert "hf download" not in refused(capsys, folder)


def test_a_loss_beyond_all_perplexities(copy, capsys):
    shard = copy / json.loads((copy / INDEX).read_text())["weight_map"]["head.weight"]
    tensors = load_file(shard)
    tensors["head.weight"] *= 1e6
    save_file(tensors, shard, {"format": "pt"})
    assert main(["real", "run", "--model", str(copy), "--prompt", "The road went on"]) == 0
    assert "perplexity of the text: inf (" in capsys.readouterr().out
