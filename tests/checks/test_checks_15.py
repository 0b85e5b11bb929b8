"""Lesson 15: right answers written otherwise pass, slips are named, measures agree."""

import json
import math
import struct

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minids import load, numerics
from minids.errors import MinidsError
from minids.learn.judge import check
from minids.numerics import FP4_VALUES
from minids.recipes import v4_sample
from minids.show import real
from minids.system.paths import data
from minids.weights import header, layout
from minids.weights.checkpoint import Checkpoint

SAMPLE, NANO = data("v4_sample"), data("checkpoints", "nano")


def range_by_hand(head, name):
    n = head[0] + 256 * head[1]
    entry = json.JSONDecoder().raw_decode(head[8:8 + n].decode().strip())[0][name]
    start, stop = (8 + n + at for at in entry["data_offsets"])
    return f"bytes={range(start, stop)[0]}-{range(start, stop)[-1]}"


def e8m0_by_powers(codes):
    scales = [math.nan if b == 255 else 2.0 ** (b - 127) for b in codes.flatten().tolist()]
    return torch.tensor(scales).view(codes.shape)


def fp4_by_loops(data, scales, o, i):
    W = torch.zeros(o, i)
    for row in range(o):
        for j in range(i):
            byte = data[row * i // 2 + j // 2]
            code, scale = byte >> 4 if j % 2 else byte & 15, scales[(row * i + j) // 32]
            W[row, j] = FP4_VALUES[code] * 2.0 ** (scale - 127)
    return W


def bytes_by_inventory(config, i):
    own = ["layers", str(i)]
    tensors = layout.inventory(config).items()
    return sum(layout.nbytes(entry) for name, entry in tensors if name.split(".")[:2] == own)


def fp4_unpacked(codes_of, scales_of):
    """A version from codes_of(low, high) and scales_of(s), with s: o i/32."""
    def attempt(data, scales, o, i):
        packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2)
        s = 2.0 ** (torch.tensor(list(scales)).float() - 127).view(o, i // 32)
        return torch.tensor(FP4_VALUES)[codes_of(packed & 15, packed >> 4)] * scales_of(s)
    return attempt


def layer_with(fp8, fp4):
    def attempt(config, i):
        total = 0
        for name, (format, (*shape,)) in layout.tensors(config).items():
            if not name.startswith(f"layers.{i}."):
                continue
            each = {"FP8": 1, "FP4": 0.5, "BF16": 2, "F32": 4, "I64": 8}[format]
            total += math.prod(shape) * each
            if format == "FP8":
                total += fp8(*shape)
            if format == "FP4":
                total += fp4(*shape)
        return int(total)
    return attempt


def right_fp8(rows, columns):
    return -(-rows // 128) * -(-columns // 128)


def range_by_struct(head, name):
    n, = struct.unpack("<Q", head[:8])
    start, end = json.loads(head[8:8 + n].decode("utf-8"))[name]["data_offsets"]
    return "bytes=%d-%d" % (start + n + 8, end + n + 7)


@pytest.mark.parametrize("name, attempt", [
    ("real.byte_range", range_by_hand), ("real.e8m0", e8m0_by_powers),
    ("real.fp4_matrix", fp4_by_loops),
    ("real.layer_bytes", bytes_by_inventory),
    ("real.layer_bytes", layer_with(right_fp8, lambda o, i: o * math.ceil(i / 32))),
    ("real.byte_range", range_by_struct),
    ("real.fp4_matrix", fp4_unpacked(lambda low, high: torch.stack(
        [low, high], 2).reshape(len(low), -1).int(),
        lambda s: s[:, :, None].expand(-1, -1, 32).flatten(1))),
    ("real.e8m0", lambda b: torch.exp2(b.float() - 127).masked_fill(b == 255, math.nan)),
    ("real.fp4_matrix", lambda data, scales, o, i: numerics.fp4_decode(
        torch.frombuffer(bytearray(data), dtype=torch.int8).view(o, i // 2),
        torch.frombuffer(bytearray(scales), dtype=torch.float8_e8m0fnu).view(o, i // 32))),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def json_up_to_the_end(head, name):
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"


def big_endian(head, name):
    n = int.from_bytes(head[:8], "big")
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    return f"bytes={8 + n + start}-{8 + n + end - 1}"


def range_without_the_eight(head, name):
    n = int.from_bytes(head[:8], "little")
    start, end = json.loads(head[8:8 + n])[name]["data_offsets"]
    return f"bytes={n + start}-{n + end - 1}"


def layer_with_names_that_begin_alike(config, i):
    tensors = layout.inventory(config).items()
    return sum(layout.nbytes(entry) for name, entry in tensors if name.startswith(f"layers.{i}"))


def fp4_high_first(data, *rest):
    return fp4_by_loops(bytes(b >> 4 | (b & 15) << 4 for b in data), *rest)


def fp4_with_bytes(data, scales, o, i):
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(o, i // 2)
    s = torch.frombuffer(bytearray(scales), dtype=torch.uint8).view(o, i // 32)
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return torch.tensor(FP4_VALUES)[codes.long()] * (2.0 ** (s - 127)).repeat_interleave(32, 1)


@pytest.mark.parametrize("name, attempt, words", [
    ("real.fp4_matrix", fp4_with_bytes, "wrap round"),
    ("real.byte_range", json_up_to_the_end, "you read JSON up to the end"),
    ("real.byte_range", big_endian, "the wrong way round"),
    ("real.fp4_matrix", fp4_unpacked(lambda low, high: torch.stack(
        [low, high], -1).flatten(1), lambda s: s.repeat_interleave(32, 1)),
     "takes for a mask"),
    ("real.fp4_matrix", fp4_unpacked(lambda low, high: torch.cat(
        [low, high], 1).long(), lambda s: s.repeat_interleave(32, 1)), "all low halves first"),
    ("real.fp4_matrix", fp4_unpacked(lambda low, high: torch.stack(
        [low, high], -1).flatten(1).long(), lambda s: s.repeat(1, 32)), "a b c a b c"),
    ("real.layer_bytes", layer_with(lambda o, i: o * i // 128**2, lambda o, i: o * i // 32),
     "round down"),
    ("real.layer_bytes", layer_with(lambda o, i: math.ceil(o * i / 128**2),
                                    lambda o, i: o * i // 32), "round up"),
    ("real.layer_bytes", layer_with(lambda o, i: (o // 128) * (i // 128),
                                    lambda o, i: o * i // 32), "incomplete blocks"),
    ("real.layer_bytes", layer_with(right_fp8, lambda o, i: 0), "the scales of FP8 only"),
    ("real.byte_range", range_without_the_eight,
     "eight bytes before the header are left out"),
    ("real.byte_range", lambda head, name: 5, "In the case"),
    ("real.e8m0", lambda codes: torch.exp2(codes - 127.0), "all is right but the byte 255"),
    ("real.e8m0", lambda codes: 2.0 ** (codes - 127), "which have no negative numbers"),
    ("real.e8m0", lambda codes: (codes.to(torch.int32) << 23).view(torch.float32),
     "0 should be 2^-127"),
    ("real.e8m0", lambda codes: torch.exp2(codes.float() - 128).masked_fill(codes == 255, math.nan),
     "you take 128 for the bias"),
    ("real.fp4_matrix", lambda *args: fp4_by_loops(*args).abs(), "you lose the signs"),
    ("real.fp4_matrix", fp4_high_first,
     "you swap neighbours"),
    ("real.layer_bytes", layer_with_names_that_begin_alike, "layers 40 to 42"),
    ("real.layer_bytes", lambda c, i: bytes_by_inventory(c, i) + 1, "[not yet]"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_price_of_a_pattern_is_that_of_the_tensors(monkeypatch):
    """Against the sizes of the sample's own tensors, as its files have them."""
    remote = Checkpoint(SAMPLE)
    stored = remote.inventory()
    monkeypatch.setattr(real, "inventory", lambda name: stored)
    for pattern in ("layers.*.ffn.gate.weight", "layers.1.*", "*.experts.0.*", "*"):
        names = remote.find(pattern)
        assert real.matching(pattern, "this sample")[0] == len(names)
        assert real.size(pattern, model="this sample") == remote.price(names).here


def test_the_tables_of_contents_of_flash_have_their_size():
    index, head = real.json_sizes("flash")
    assert 5e6 < index < header.MAX_INDEX and 1e5 < head < header.MAX_HEADER


def test_loads_of_a_table_are_those_of_a_pass():
    """The hash layers' loads from table and frequencies equal those of the forward pass."""
    ids = torch.randint(0, 512, (200,), generator=torch.Generator().manual_seed(0))
    walk, tables = real.trace(SAMPLE, ids.tolist()), real.tables_of(SAMPLE, ids)
    for layer, load_ in tables.items():
        counted = walk["load"][layer].float()
        torch.testing.assert_close(load_, counted / counted.mean())
    assert list(tables) == [0, 1] and walk["load"].sum(1).tolist() == [400] * 4


def test_a_walk_ends_with_the_model_itself():
    ids = torch.randint(0, 512, (1, 40), generator=torch.Generator().manual_seed(1))
    walk = real.trace(Checkpoint(SAMPLE), ids[0].tolist())
    with torch.no_grad():
        logits = load(SAMPLE)(ids)[0]
    assert torch.equal(walk["best"][-1], logits.argmax(-1))
    torch.testing.assert_close(walk["loss"][-1],
                               torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]))


def test_a_walk_of_a_model_far_away_is_refused():
    far = Checkpoint(SAMPLE)
    far.files = type("Elsewhere", (), {})()
    far.where = "owner/name"
    with pytest.raises(MinidsError, match="a pass reads every layer of owner/name"):
        real.trace(far, [1, 2])


def test_the_estimated_error_is_near_the_true_one():
    rng = np.random.default_rng(v4_sample.SEED)
    shapes = {name: shape for name, (_, shape) in layout.tensors(v4_sample.CONFIG).items()}
    originals = {}
    for name, shape in shapes.items():
        originals[name] = torch.from_numpy(v4_sample.numbers(name, shape, rng))
    stored = Checkpoint(SAMPLE)
    for part, result in real.rounding_of(SAMPLE, 1).items():
        name = f"layers.1.{part}.weight"
        true = (stored.read(name) - originals[name]).norm() / originals[name].norm()
        assert abs(result["error"] / true - 1) < 0.15


def test_a_cell_is_what_rounds_to_a_code():
    """The mean squared error in a cell, against many numbers rounded."""
    x = torch.linspace(0, 6, 600_001, dtype=torch.float64)
    cells = real._cells(torch.tensor(FP4_VALUES))
    values = torch.tensor(FP4_VALUES[:8], dtype=torch.float64)
    nearest = (x[:, None] - values).abs().argmin(1)
    for code in range(8):
        near = x[nearest == code]
        assert abs((near - values[code]).square().mean() / cells[code] - 1) < 1e-2
    assert torch.equal(cells[:8], cells[8:])


def test_static_maps_are_doubly_stochastic_and_differences_shrink():
    pre, post, comb = real.connections_of(SAMPLE)
    assert pre.shape == post.shape == (8, 4) and comb.shape == (8, 4, 4)
    torch.testing.assert_close(comb.sum(1), torch.ones(8, 4), atol=1e-4, rtol=0)
    gains, left = real.through_depth(comb)
    assert all(a >= b - 1e-6 for a, b in zip(left, left[1:])) and max(gains) < 1.001
    identity = torch.eye(4).expand(3, 4, 4)
    assert real.through_depth(identity)[1] == pytest.approx([1, 1, 1])


def test_biases_of_a_compressor_have_mean_one():
    biases = real.biases_of(NANO)
    sizes = {layer: (m, len(w)) for layer, (m, w) in biases.items()}
    assert sizes == {1: (4, 8), 2: (16, 16), 3: (4, 8)}
    for _, weights in biases.values():
        assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_words_for_amounts():
    amounts = {999: "999 bytes", 11008: "11 kB", 13369344: "13.4 MB", 159609485896: "160 GB"}
    assert {n: real.amount(n) for n in amounts} == amounts
    durations = {0.5: "0.5 s", 51: "51 s", 200: "3.3 minutes", 7500: "2.1 hours",
                 200000: "2.3 days"}
    assert {s: real.duration(s) for s in durations} == durations


def test_a_dump_has_the_bytes_and_their_letters(capsys):
    real.dump(bytes([0, 65, 66, 255]), start=8)
    assert capsys.readouterr().out.split() == ["8", "00", "41", "42", "ff", ".AB."]


@pytest.mark.slow
def test_the_figures_draw():
    models = {"sample": SAMPLE, "nano": Checkpoint(NANO)}
    walks = {"sample": real.trace(SAMPLE, list(range(60)))}
    path = SAMPLE / "model-00002-of-00007.safetensors"
    figures = [real.plot_anatomy(path.name, header.read(path), path.stat().st_size),
               real.plot_download("flash", "*.attn_sink", 12),
               real.plot_download("pro", "nothing", 12),
               real.plot_downloads({"a": 10**4, "b": 10**8}), real.plot_loads(walks),
               real.plot_lens(walks, {"sample": math.log(512)}),
               real.plot_lens_table(walks["sample"], ["x"] * 9, str),
               real.plot_tables(models, {"nano": torch.arange(9)})]
    figures += [draw(models) for draw in (real.plot_sinks, real.plot_routers, real.plot_connections,
                                          real.plot_biases, real.plot_spectra, real.plot_rounding)]
    for figure in figures:
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
