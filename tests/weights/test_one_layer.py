"""One layer alone: the numbers of the whole model, experts as stored, and transformers' layer."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minids import load, save
from minids.cli import describe, main
from minids.config import Config
from minids.errors import MinidsError
from minids.model import Model, kernels
from minids.system.paths import DATA
from minids.weights import layout, memory, one_layer
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
            with kernels.switched_off("packed", "experts", "swiglu"):
                assert torch.equal(block(X, ids), whole(X, ids))
            torch.testing.assert_close(block(X, ids), whole(X, ids), rtol=1e-4, atol=1e-4)
    matrices = [m for expert in block.ffn.experts for m in expert.children()]
    assert all(m.weight is None and m.codes.dtype == torch.int8 for m in matrices)
    assert (block.attn.wq_b.codes is None) == (kernels.why_off() is not None)


@pytest.mark.parametrize("i", range(4))
def test_trials(remote, i):
    """Results come one by one: first those of the layer, then those with transformers' layer."""
    lengths = (1, 300)
    trials = list(one_layer.trials(remote, i, lengths=lengths, seconds=0))
    assert [trial.tokens for trial in trials] == [1, 300, 1, 300]
    assert all(trial.ours and not trial.theirs and not trial.why for trial in trials[:2])
    picks = remote.config.compress_ratios[i] == 4
    for trial, T in zip(trials[2:], lengths, strict=True):
        assert trial.why == "" and trial.same_experts == trial.alike == 1
        assert trial.same_entries == 1 or (math.isnan(trial.same_entries)
                                           and not (picks and T == 300))
        assert trial.rms > 0.5 and trial.max_difference < 1e-4 * trial.rms
        assert 0 < trial.median_difference < trial.max_difference
        assert min(trial.ours.memory, trial.theirs.memory) > 2**26


def test_rounding_changes_picks(remote):
    """In BF16 some picks differ, and with them some outputs by more than rounding: the differences
    that are reported are those of tokens with the same experts and entries."""
    *_, trial = one_layer.trials(remote, 3, dtype=torch.bfloat16, lengths=(1000,), seconds=0)
    assert 0.5 < trial.same_entries < 1 and 0.1 < trial.alike < trial.same_experts <= 1
    assert trial.median_difference < 0.1 * trial.rms
    assert trial.median_difference < trial.max_difference < trial.rms
    text = describe(trial)
    assert f"{trial.same_entries:.1%} of the picked entries are the same" in text
    assert f"where these are the same, {trial.alike:.1%} of tokens" in text


def test_what_counts_as_the_same_picks():
    """Our indexer gives scores, stripe by stripe; transformers' gives numbers, or -1."""
    scores = torch.tensor([[[0, 9, 9.0]] * 3 + [[1, 9, 9]] * 4 + [[1, 2, 9]],
                           [[0, 0, 0]] * 8]).split([3, 5], dim=1)
    # 8 tokens have 2 entries of 4; the third does not exist
    ours = one_layer._picks([part[..., :2] for part in scores], 1)
    theirs = one_layer._picks([torch.tensor([[[-1]] * 3 + [[0]] * 4 + [[1]]])], None)
    assert ours.tolist() == [[False, False]] * 3 + [[True, False]] * 4 + [[False, True]]
    assert torch.equal(ours, theirs)
    assert one_layer._picks([], 1) is None


def test_other_formats(tmp_path):
    """Experts in BF16, as `save` writes them: stored without scales."""
    torch.manual_seed(0)
    save(Model(Config.nano()), tmp_path / "c")
    remote = Checkpoint(tmp_path / "c")
    X, ids = one_layer.random_input(remote.config, 40)
    with torch.no_grad():
        block, whole = one_layer.read_layer(remote, 1), load(tmp_path / "c").layers[1]
        torch.testing.assert_close(block(X, ids), whole(X, ids), rtol=1e-4, atol=1e-4)
    *_, trial = one_layer.trials(remote, 1, lengths=(40,), seconds=0)
    assert trial.max_difference < 1e-4 * trial.rms


def test_where_memory_or_transformers_is_missing(remote, monkeypatch):
    monkeypatch.setattr(one_layer, "find_spec", lambda name: None)
    ours, trial = one_layer.trials(remote, 0, lengths=(5,), seconds=0)
    assert trial.theirs is None and "not installed" in trial.why
    assert trial.ours == ours.ours and trial.ours.seconds < float("inf")
    monkeypatch.undo()
    room = one_layer.estimate_reference_memory(remote, 2, 1000, torch.float32) - 1
    monkeypatch.setattr(memory, "free", lambda device: room)
    *_, short, long = one_layer.trials(remote, 2, lengths=(5, 1000), seconds=0)
    assert short.theirs and long.theirs is None and "bytes of memory" in long.why
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    need = memory.weights(remote, 3, torch.float32)
    words = f"layer 3 takes {need:,} bytes of memory, 1,000 are free"
    with pytest.raises(MinidsError, match=words):
        one_layer.read_layer(remote, 3)


def test_a_device_that_lacks_what_transformers_needs(remote, monkeypatch):
    def reference_layer(block):
        layer, arguments = original(block)
        layer.forward = lambda **_: (_ for _ in ()).throw(NotImplementedError("no histc\nhere"))
        return layer, arguments

    original = one_layer.reference_layer
    monkeypatch.setattr(one_layer, "reference_layer", reference_layer)
    ours, trial = one_layer.trials(remote, 0, lengths=(5,), seconds=0)
    assert ours.ours and trial.why == "cpu lacks an operation that it needs: no histc"


def test_lengths_that_do_not_fit_are_skipped(remote, monkeypatch):
    """With a sentence, and the others are run. Where none fits, nothing is read."""
    whole = memory.weights(remote, 3, torch.float32)
    need = {T: whole + memory.activations(remote.config, 4, T, torch.float32) for T in (5, 4096)}
    monkeypatch.setattr(memory, "free", lambda device: need[4096] - 1)
    trials = list(one_layer.trials(remote, 3, lengths=(4096, 5), seconds=0))
    assert [(t.tokens, bool(t.ours), bool(t.theirs)) for t in trials] == [
        (4096, False, False), (5, True, False), (5, True, True)]
    assert trials[0].why == (f"it needs about {need[4096]:,} bytes of memory, "
                             f"{need[4096] - 1:,} are free")
    assert describe(trials[0]) == f"4,096 tokens: skipped, {trials[0].why}"
    monkeypatch.setattr(memory, "free", lambda device: need[5] - 1)
    monkeypatch.setattr(one_layer, "read_layer", None)
    monkeypatch.setattr(Checkpoint, "fetch", None)
    words = f"layer 3 with 5 tokens: it needs about {need[5]:,} bytes of memory, {need[5] - 1:,} "
    with pytest.raises(MinidsError, match=words):
        next(one_layer.trials(remote, 3, lengths=(4096, 5), seconds=0))
    monkeypatch.setattr(one_layer, "LENGTHS", (4096, 5))
    assert main(["real", "layer", str(SAMPLE)]) == 2


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 400000000000000 bytes. Error code 12")])
def test_running_out_of_memory_is_one_line(error, monkeypatch, capsys):
    """The results so far are there."""
    measure, calls = one_layer.measure, []

    def short_of_memory(run, *args):
        calls.append(run)
        if len(calls) == 2:
            raise error
        return measure(run, *args)

    monkeypatch.setattr(one_layer, "measure", short_of_memory)
    monkeypatch.setattr(one_layer, "LENGTHS", (1, 64))
    monkeypatch.setattr(one_layer, "SECONDS", 0)
    assert main(["real", "layer", str(SAMPLE), "--layer", "2"]) == 2
    output, problem = capsys.readouterr()
    assert "    1 tokens:    0.0" in output and "   64 tokens:    0.0" not in output
    assert problem == ("minids: layer 2 with 64 tokens: the memory of cpu ran out. Close other "
                       "programs, or choose a shorter text.\n")


def test_only_the_layer_is_read(remote):
    names = one_layer.layer_names(remote, 2)
    assert names and all(name.startswith("layers.2.") for name in names)
    for i in (-1, 4):
        with pytest.raises(MinidsError, match=f"layer: expected 0 to 3, found {i}"):
            one_layer.layer_names(remote, i)


def test_the_command(remote, capsys, monkeypatch):
    monkeypatch.setattr(one_layer, "LENGTHS", (1, 64))
    monkeypatch.setattr(one_layer, "SECONDS", 0)
    assert main(["real", "layer", str(SAMPLE), "--layer", "2"]) == 0
    output = capsys.readouterr().out
    assert "This is a sample" in output and "layer 2 (HCA, experts by score)" in output
    assert "0 bytes to fetch" in output and "bytes are free" in output
    for T in (1, 64):
        need = memory.weights(remote, 2, torch.float32)
        need += memory.activations(remote.config, 128, T, torch.float32)
        assert f"{T:5} tokens: weights and activations take about {need:,} bytes" in output
        assert f"{T:5} tokens:    0." in output
        assert f"transformers' layer, {T:5} tokens:    0." in output
    assert output.count("of tokens have the same experts") == 2
    assert "of the picked entries" not in output            # HCA reads all
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
    monkeypatch.setattr(full_size, "has_memory", lambda *_: False)
    assert list(full_size.bench(tmp_path)) == ["streaming"]
    assert "too little memory is free" in capsys.readouterr().out


def test_a_disk_without_room(full_size, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=7 * 10**8)
    monkeypatch.setattr(full_size.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MinidsError, match="bytes are to be written, 700,000,000 are free"):
        full_size.bench(tmp_path)
    assert not list(tmp_path.iterdir())
    assert full_size.main(["--folder", str(tmp_path)]) == 2
