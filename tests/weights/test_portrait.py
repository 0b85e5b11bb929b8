"""Portraits of checkpoints: what they read, keep and refuse."""

import dataclasses
import json
import os

import pytest
import torch
from hub_server import COMMIT, status, used
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minids.cli import main
from minids.config import Config
from minids.errors import MinidsError
from minids.model.mhc import affinity
from minids.show import real
from minids.system.paths import DATA, home
from minids.weights import layout, portrait
from minids.weights.checkpoint import Checkpoint

pytest.importorskip("huggingface_hub")
SAMPLE, NANO = DATA / "v4_sample", DATA / "checkpoints" / "nano"
REPO = "owner/sample"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The local Hub, an empty cache, and requests for exactly what is wanted."""
    with used(SAMPLE, tmp_path, monkeypatch) as server:
        yield server


def equal(a, b):
    for field in dataclasses.fields(portrait.Portrait):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.name in portrait.NUMBERS:
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[i], theirs[i]) for i in mine), field.name
        else:
            assert mine == theirs, field.name


def rewritten(path, change, **tensors):
    """The file at `path` with other metadata and other or more tensors, and a matching digest."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["portrait"])
    change(about)
    tensors = load_file(path) | tensors
    save_file(tensors, path)
    about.pop("sha256", None)
    about["sha256"] = portrait._digest(about, path.read_bytes())
    save_file(tensors, path, {"portrait": json.dumps(about)})


# ---- what is read ----

@pytest.mark.parametrize("preset, small, count, size", [
    ("flash", True, 255, 61_256), ("flash", False, 662, 250_592_328),
    ("pro", True, 363, 133_496), ("pro", False, 945, 701_049_720)])
def test_what_a_portrait_reads_of_the_real_models(preset, small, count, size):
    config = Config.preset(preset)
    names, stored = portrait.names(config, small), layout.inventory(config)
    assert (len(names), sum(layout.nbytes(stored[name]) for name in names)) == (count, size)
    assert {stored[name][0] for name in names} <= {"F32", "BF16", "I64"}     # nothing with a scale


@pytest.mark.parametrize("preset, limit", [("flash", 120_000), ("pro", 220_000)])
def test_what_a_portrait_keeps_of_the_real_models(preset, limit):
    shapes = portrait.shapes(Config.preset(preset), small=False)
    empty = {key: torch.zeros(shape) for key, shape in shapes.items()}
    assert limit / 2 < len(portrait.save_tensors(empty)) < limit < portrait.LARGEST


@pytest.mark.parametrize("small", [False, True])
def test_a_portrait_from_the_hub(server, small):
    checkpoint = Checkpoint(REPO)
    names = portrait.names(checkpoint.config, small)
    price, before = checkpoint.price(names), len(server.sent())
    taken = portrait.take(checkpoint, small)
    assert sum(b - a + 1 for _, a, b in server.sent()[before:]) == price.fetch
    assert (taken.name, taken.revision, taken.small) == (REPO, COMMIT, small)
    local = portrait.take(Checkpoint(SAMPLE), small)
    assert (local.name, local.revision) == ("v4_sample", None)
    equal(taken, dataclasses.replace(local, name=REPO, revision=COMMIT))
    assert portrait.names(checkpoint.config, True) == [
        name for name in portrait.names(checkpoint.config)
        if name.endswith(("attn_sink", "_base", "_scale", "gate.bias"))]


# ---- what is measured ----

def test_the_numbers_are_those_of_the_tensors():
    checkpoint = Checkpoint(SAMPLE)
    taken, config = portrait.take(checkpoint), checkpoint.config
    assert list(taken.sinks) == [0, 1, 2, 3] and list(taken.base) == list(range(8))
    assert list(taken.load) == [0, 1] and list(taken.bias) == [2, 3]
    assert list(taken.reach) == list(range(8)) and list(taken.norms) == [0, 1, 2, 3]
    assert torch.equal(taken.base[5], checkpoint.read("layers.2.hc_ffn_base"))
    assert torch.equal(taken.scale[4], checkpoint.read("layers.2.hc_attn_scale"))
    norm = checkpoint.read("layers.3.attn.q_norm.weight")
    torch.testing.assert_close(taken.norms[3][2], norm.square().mean().sqrt())
    torch.testing.assert_close(taken.load[0].sum(), torch.tensor(float(config.n_routed_experts)))
    assert {i: len(slots) for i, slots in taken.slots.items()} == {1: 8, 2: 128, 3: 8}
    for slots in taken.slots.values():
        torch.testing.assert_close(slots.mean(), torch.tensor(1.0))


def test_the_reach_is_what_random_streams_show():
    checkpoint = Checkpoint(SAMPLE)
    n = checkpoint.config.hc_mult
    fn = checkpoint.read("layers.2.hc_ffn_fn")
    scale = checkpoint.read("layers.2.hc_ffn_scale")
    x = torch.randn(1000, fn.shape[1], generator=torch.Generator().manual_seed(0))
    moved = affinity(x, fn, 1e-6).split([n, n, n * n])
    seen = torch.stack([part.square().mean().sqrt() for part in moved]) * scale.abs()
    torch.testing.assert_close(portrait.reach_of(fn, scale), seen, rtol=0.05, atol=0)


@pytest.mark.slow
def test_figures_take_portraits_as_they_take_checkpoints():
    for folder in (SAMPLE, NANO):
        whole = portrait.take(Checkpoint(folder))
        small = portrait.take(Checkpoint(folder), small=True)
        for measure in (real.sinks_of, real.tables_of, real.biases_of):
            a, b = measure(folder), measure(whole)
            assert a.keys() == b.keys()
            assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y))
                       for i in a for x, y in zip(a[i], b[i]))
        for key, values in real.routers_of(folder).items():
            torch.testing.assert_close(values, real.routers_of(whole)[key])
        for one in (whole, small):
            for x, y in zip(real.connections_of(folder), real.connections_of(one)):
                assert torch.equal(x, y)
        assert torch.equal(real.routers_of(small)["bias"], real.routers_of(folder)["bias"])
        assert len(real.portrait_figures({"a": whole, "b": whole})) == 7
        figures = real.portrait_figures({"a": small, "b": small})
        assert len(figures) == 3 and all("a and b" in text for text in figures)
        with pytest.raises(MinidsError, match="keeps the loads of a hash table, not the table"):
            real.tables_of(whole, torch.arange(9))


# ---- what is kept ----

def test_a_portrait_is_found_again(tmp_path):
    assert portrait.newest() is None
    small, whole = (portrait.take(Checkpoint(NANO), small) for small in (True, False))
    path = portrait.save(small)
    assert path == home() / "portraits" / "nano.small.safetensors" and small.title == "nano"
    flash = dataclasses.replace(small, name="deepseek-ai/DeepSeek-V4-Flash")
    assert flash.title == "V4-Flash"
    equal(portrait.newest(), small)
    assert path.stat().st_size < 20_000
    portrait.save(whole)
    equal(portrait.newest(), whole)
    sample = portrait.save(portrait.take(Checkpoint(SAMPLE)))
    os.utime(sample, (0, 0))
    equal(portrait.newest(), whole)       # newer than that of the sample
    os.utime(sample, (2**32, 2**32))
    assert portrait.newest().name == "v4_sample"
    (sample.parent / "gone.safetensors").symlink_to(tmp_path / "nowhere at all")
    assert portrait.newest().name == "v4_sample"
    assert portrait.place("a/b") == home() / "portraits" / "a--b.safetensors"
    out = portrait.save(small, tmp_path / "mine")
    equal(portrait.load(out), small)
    with pytest.raises(MinidsError, match="could not write"):
        portrait.save(small, tmp_path / "nowhere" / "mine")


def test_damaged_portraits_are_refused(tmp_path):
    path = portrait.save(portrait.take(Checkpoint(NANO)), tmp_path / "nano")
    good = path.read_bytes()
    for damaged, words in (
            (good[:-1], "is damaged: remove it"), (good[:100], "is damaged"), (b"", "is damaged"),
            (good[:-3] + bytes([good[-3] ^ 1]) + good[-2:], "is damaged: remove it"),
            (good.replace(b'"name\\": \\"nano', b'"name\\": \\"mini'), "is damaged"),
            (good.replace(b"__metadata__", b"__metbdata__"), "is damaged"),
            (bytes(portrait.LARGEST + 1), "expected at most")):
        path.write_bytes(damaged)
        with pytest.raises(MinidsError, match=words) as caught:
            portrait.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MinidsError, match="is no portrait: .* that `minids real portrait` wrote"):
        portrait.load(next(SAMPLE.glob("*00007-of*")))
    with pytest.raises(MinidsError, match="cannot be read"):
        portrait.load(tmp_path / "nowhere")


def test_another_file_is_not_replaced(tmp_path):
    other = tmp_path / "config.json"
    other.write_text("{}")
    with pytest.raises(MinidsError, match="config.json is no portrait: expected a new file"):
        portrait.save(portrait.take(Checkpoint(NANO), small=True), other)
    assert main(["real", "portrait", str(NANO), "--small", "--out", str(other)]) == 2
    assert other.read_text() == "{}"


@pytest.mark.parametrize("change, words", [
    (lambda about: about.update(config=Config.mini().to_json()), "not of the model of its conf"),
    (lambda about: about.update(small=True), "not of the model of its configuration"),
    (lambda about: about.update(config={"model_type": "llama"}), "deepseek_v4"),
    (lambda about: about.pop("config"), "is no portrait: expected"),
])
def test_portraits_of_another_model_are_refused(tmp_path, change, words):
    path = portrait.save(portrait.take(Checkpoint(NANO)), tmp_path / "nano")
    rewritten(path, lambda about: None)
    portrait.load(path)
    rewritten(path, change)
    with pytest.raises(MinidsError, match=words):
        portrait.load(path)


def test_numbers_that_are_none_are_refused(tmp_path):
    taken = portrait.take(Checkpoint(NANO))
    path = portrait.save(taken, tmp_path / "nano")
    nan = torch.full_like(taken.sinks[0], torch.nan)
    rewritten(path, lambda about: None, **{"sinks.0": nan})
    with pytest.raises(MinidsError, match="sinks.0 of the portrait: expected finite"):
        portrait.load(path)
    with pytest.raises(MinidsError, match="sinks.0 of the portrait: expected finite"):
        portrait.save(dataclasses.replace(taken, sinks={**taken.sinks, 0: nan}), path)


def test_a_table_of_experts_that_do_not_exist(server):
    name = "layers.0.ffn.gate.tid2eid"
    checkpoint = Checkpoint(REPO)
    file, _, entry = checkpoint._place(name)
    data = bytearray(server.bytes(file))
    data[entry.start:entry.start + 8] = (99).to_bytes(8, "little")
    server.files[file] = bytes(data)
    with pytest.raises(MinidsError, match="table of layer 0: expected experts 0 to 3, found"):
        portrait.take(checkpoint)


# ---- the command ----

def test_the_command(server, capsys, tmp_path):
    server.faults = [None] * 12 + [status(418)]
    assert main(["real", "portrait", REPO]) == 2
    assert "found 418" in capsys.readouterr().err and portrait.newest() is None
    server.faults = []
    before = len(server.sent())
    assert main(["real", "portrait", REPO]) == 0
    output = capsys.readouterr().out
    sizes = layout.inventory(Checkpoint(REPO).config)
    size = sum(layout.nbytes(sizes[name]) for name in portrait.names(Checkpoint(REPO).config))
    fetched = sum(b - a + 1 for _, a, b in server.sent()[before:])
    assert f"{fetched:,} bytes to fetch, {size - fetched:,} already here" in output
    assert 0 < fetched < size                       # it went on where it was interrupted
    assert "owner--sample.safetensors" in output and "the last lesson draws it" in output
    equal(portrait.newest(), portrait.take(Checkpoint(REPO)))
    assert main(["real", "portrait", str(SAMPLE), "--small", "--out", str(tmp_path / "s")]) == 0
    assert portrait.load(tmp_path / "s").small
    assert main(["real", "portrait", REPO, "--out", str(tmp_path / "no" / "s")]) == 2
    assert "cannot write" in capsys.readouterr().err
