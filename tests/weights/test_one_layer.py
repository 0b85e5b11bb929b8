"""One layer alone: the numbers of the whole model, experts as stored, and transformers' layer."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minids import load, save
from minids.cli import main
from minids.config import Config
from minids.errors import MinidsError
from minids.model import Model
from minids.system.paths import DATA
from minids.weights import layout, one_layer
from minids.weights.checkpoint import Checkpoint

SAMPLE = DATA / "v4_sample"


@pytest.fixture(scope="module")
def remote():
    return Checkpoint(SAMPLE)


@pytest.mark.parametrize("i", range(4))
def test_it_is_the_layer_of_the_model(remote, i):
    block, whole = one_layer.read_layer(remote, i), load(SAMPLE).layers[i]
    for T in (1, 150):
        X, ids = one_layer.random_input(remote.config, T)
        with torch.no_grad():
            assert torch.equal(block(X, ids), whole(X, ids))
    matrices = [m for expert in block.ffn.experts for m in expert.children()]
    assert all(m.weight is None and m.codes.dtype == torch.int8 for m in matrices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("i", range(4))
def test_estimate_memory(remote, i, dtype):
    """The estimate from the configuration is what the tensors take, here and in transformers."""
    block = one_layer.read_layer(remote, i, dtype=dtype)
    matrices = [m for m in block.modules() if getattr(m, "codes", None) is not None]
    packed = [t for m in matrices for t in (m.codes, m.scale)]
    size = lambda tensors: sum(t.nbytes for t in tensors)
    estimate = one_layer.estimate_memory(remote, i, dtype)
    assert estimate == size((*block.state_dict().values(), *packed))
    with Checkpoint(SAMPLE) as c:
        assert size(packed) == size(c.raw(n) for n in c.names() if f"layers.{i}.ffn.experts." in n)
    theirs, _ = one_layer.reference_layer(block)
    estimate = one_layer.estimate_memory(remote, i, dtype, packed=False)
    assert estimate == size(theirs.state_dict().values())


@pytest.mark.parametrize("i", range(4))
def test_trials(remote, i):
    trials = one_layer.trials(remote, i, lengths=(1, 300), seconds=0)
    for trial, T in zip(trials, (1, 300), strict=True):
        assert trial.tokens == T and trial.why == "" and trial.same_experts == 1
        assert trial.rms > 0.5 and trial.max_difference < 1e-4 * trial.rms
        assert min(trial.ours.memory, trial.theirs.memory) > 2**26


def test_other_formats(tmp_path):
    """Experts in BF16, as `save` writes them: stored without scales."""
    torch.manual_seed(0)
    save(Model(Config.nano()), tmp_path / "c")
    remote = Checkpoint(tmp_path / "c")
    X, ids = one_layer.random_input(remote.config, 40)
    with torch.no_grad():
        block, whole = one_layer.read_layer(remote, 1), load(tmp_path / "c").layers[1]
        assert torch.equal(block(X, ids), whole(X, ids))
    (trial,) = one_layer.trials(remote, 1, lengths=(40,), seconds=0)
    assert trial.max_difference < 1e-4 * trial.rms


def test_where_memory_or_transformers_is_missing(remote, monkeypatch):
    monkeypatch.setattr(one_layer, "find_spec", lambda name: None)
    (trial,) = one_layer.trials(remote, 0, lengths=(5,), seconds=0)
    assert trial.theirs is None and "not installed" in trial.why
    assert trial.ours.seconds < float("inf")
    monkeypatch.undo()
    room = one_layer.estimate_reference_memory(remote, 3, 5, torch.float32)
    monkeypatch.setattr(one_layer, "free", lambda device: room)
    short, long = one_layer.trials(remote, 3, lengths=(5, 300), seconds=0)
    assert short.theirs and long.theirs is None and "GB of memory" in long.why
    monkeypatch.setattr(one_layer, "free", lambda device: 1000)
    words = "layer 3 takes 1,531,760 bytes of memory, 1,000 are free"
    with pytest.raises(MinidsError, match=words):
        one_layer.read_layer(remote, 3)


def test_only_the_layer_is_read(remote):
    names = one_layer.layer_names(remote, 2)
    assert names and all(name.startswith("layers.2.") for name in names)
    for i in (-1, 4):
        with pytest.raises(MinidsError, match=f"layer: expected 0 to 3, found {i}"):
            one_layer.layer_names(remote, i)


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr(one_layer, "LENGTHS", (1, 64))
    monkeypatch.setattr(one_layer, "SECONDS", 0)
    assert main(["real", "layer", str(SAMPLE), "--layer", "2"]) == 0
    output = capsys.readouterr().out
    assert "This is the sample" in output and "layer 2 (HCA, experts by score)" in output
    assert "0 bytes to fetch" in output
    assert "    1 tokens:" in output and "   64 tokens:" in output
    assert output.count("transformers' layer") == 2
    assert main(["real", "layer", str(SAMPLE), "--layer", "9"]) == 2
    assert "layer: expected 0 to 3, found 9" in capsys.readouterr().err


# ---- the benchmark of full-size layers, on layers of the sample's sizes ----

@pytest.fixture(scope="module")
def full_size():
    path = Path(__file__).parents[1] / "benchmarks" / "test_full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_that_are_written(full_size, tmp_path, monkeypatch):
    """Complete files in the released format, written in chunks that are smaller than a tensor."""
    monkeypatch.setattr(full_size, "CHUNK", 1000)
    config = full_size.config(True, 2)
    files = full_size.write_layers(tmp_path, config)
    inventory = {n: t for n, t in layout.inventory(config).items() if n.startswith("layers.")}
    assert len(files) == 2 and Checkpoint(tmp_path).inventory(inventory) == inventory
    with Checkpoint(tmp_path) as c:
        assert c.config == config
        assert all(c.read(n).isfinite().all() for n in inventory if not n.endswith("scale"))
        w = c.read("layers.0.ffn.experts.1.w2.weight"), c.read("layers.1.attn.wo_b.weight")
    assert all(0.5 < m.square().sum(1).mean().sqrt() < 2 for m in w)
    assert layout.nbytes(inventory["layers.0.ffn.experts.1.w2.weight"]) > 1000


def test_layers_of_flash_are_true(full_size):
    """What the benchmark writes for V4-Flash is what V4-Flash has, apart from the indices."""
    of = lambda config, i: {n.split(".", 2)[2]: t for n, t in layout.inventory(config).items()
                            if n.startswith(f"layers.{i}.")}
    ours, flash = full_size.config(False, 2), Config.flash()
    assert (of(ours, 0), of(ours, 1)) == (of(flash, 4), of(flash, 3))
    assert 3.5e9 < sum(map(layout.nbytes, of(ours, 0).values())) < 3.6e9


def test_the_benchmark(full_size, tmp_path, capsys, monkeypatch):
    ratios = full_size.bench(tmp_path, small=True, lengths=(1, 64), seconds=0)
    output = capsys.readouterr().out
    assert len(ratios) == 9 and all(ratio > 0 for ratio in ratios.values())
    assert "say nothing about V4-Flash" in output and "of a copy's speed" in output
    assert "plain reading of the same files" in output
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    little = full_size.config(True, 2)
    monkeypatch.setattr(full_size, "config", lambda small, n: little)
    assert list(full_size.bench(tmp_path)) == ["streaming"] and "no GPU" in capsys.readouterr().out


def test_a_disk_without_room(full_size, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=7 * 10**9)
    monkeypatch.setattr(full_size.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MinidsError, match="bytes are to be written, 7,000,000,000 are free"):
        full_size.bench(tmp_path)
    assert not list(tmp_path.iterdir())
    assert full_size.main(["--folder", str(tmp_path)]) == 2
