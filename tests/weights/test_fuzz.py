"""Headers, indices and configurations from a stranger are read, or refused with a `MinidsError`.

No memory is allocated because they promise it.
"""

import json
import struct
import tracemalloc
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minids.config import Config
from minids.errors import MinidsError
from minids.system.paths import DATA
from minids.weights import header
from minids.weights.checkpoint import Checkpoint, empty_model
from minids.weights.layout import INDEX, expected

SAMPLE = DATA / "v4_sample"
SHARD = "model-00003-of-00007.safetensors"
FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                       HealthCheck.data_too_large])


@contextmanager
def little_memory(limit=2**24):
    """Whatever happens inside takes less than `limit` bytes at any time."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


@contextmanager
def nothing_but_our_error():
    try:
        yield
    except MinidsError as error:
        text = str(error)
        assert text and len(text.splitlines()) == 1 and len(text) < 2000


# ---- headers ----

WHOLE = st.integers(-2, 40) | st.sampled_from([2**31, 2**53, 2**62, 2**63, 2**64, 10**30])
ODD = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | WHOLE
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from([*header.DTYPES, "f32", "I128", ""]) | ODD,
    "shape": st.lists(WHOLE, max_size=4) | st.lists(ODD, max_size=10) | ODD,
    "data_offsets": st.lists(WHOLE, min_size=2, max_size=2) | st.lists(ODD, max_size=3) | ODD,
})
NAMES = st.sampled_from(["a", "b.weight", "../a", "/a", "", ".", "a/b", "a\x00", "a\n", "x" * 300,
                         "__metadata__", "\udc80"])
HEADER = st.dictionaries(NAMES, ENTRY | ODD, max_size=4)


def raw(text: str | bytes, payload: bytes = b"") -> bytes:
    text = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + payload


@FUZZ
@given(values=HEADER | ODD | st.lists(ODD), payload=st.integers(0, 64))
def test_any_header(values, payload):
    data = raw(json.dumps(values), bytes(payload))
    with little_memory(2**20), nothing_but_our_error():
        covers(header.tensors(data, len(data), "f"), data)


@FUZZ
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
       change=st.tuples(st.integers(0, 3), st.sampled_from(["shape", "data_offsets", "dtype"]),
                        ODD | st.lists(WHOLE, max_size=3)),
       payload=st.integers(-3, 3), changed=st.booleans())
def test_nearly_right_headers(shapes, change, payload, changed):
    fields, at = {}, 0
    for i, shape in enumerate(shapes):
        size = 4 * torch.Size(shape).numel()
        fields[f"t{i}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    which, key, value = change
    if changed and f"t{which}" in fields:
        fields[f"t{which}"][key] = value
    data = raw(json.dumps(fields), bytes(max(at + payload, 0)))
    with nothing_but_our_error():
        entries = header.tensors(data, len(data), "f")
        covers(entries, data)
        assert entries.keys() == fields.keys()
    if not changed and not payload:
        assert header.tensors(data, len(data), "f").keys() == fields.keys()


def covers(entries, data):
    """Every byte after the header belongs to one tensor, and to one only."""
    at = 8 + int.from_bytes(data[:8], "little")
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        bits = header.DTYPES[entry.dtype].bits * torch.Size(entry.shape).numel()
        assert entry.start == at and 8 * (entry.end - entry.start) == bits
        at = entry.end
    assert at == len(data)


@pytest.mark.parametrize("text, words", [
    ('{"a":%s,"a":%s}', "'a' appears twice"),
    ('{"a":%s,"b":%s}', "b begins at byte .* neither overlap nor leave gaps"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "a begins at byte"),
    ('{"a":%s}#', "header:"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"dtype":"I32"}}',
     "'dtype' appears twice"),
    ('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "whole numbers"),
    ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "whole numbers"),
    ('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "whole numbers"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "does not take -4 bytes"),
    ('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
     "does not take 4 bytes"),
    ('{"a":{"dtype":"F32","shape":[' + "1," * 99 + '1],"data_offsets":[0,4]}}', "at most 8"),
    ('{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,4]}}', "unknown"),
    ('{"../a":%s}', "is not a tensor's name"),
    ("{" + '"a":{' * 5000, "header:"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + "9" * 5000 + "]}}", "header:"),
    ("{}", "the header describes"),
])
def test_hostile_headers(text, words):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    data = raw(text.replace("%s", entry), b"1234")
    with pytest.raises(MinidsError, match=words), little_memory(2**20):
        header.tensors(data, len(data), "f")


@pytest.mark.parametrize("promised", [0, 1, 100, 2**24 + 1, 2**40, 2**64 - 1])
def test_a_header_that_is_longer_than_anything_takes_no_memory(tmp_path, promised):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", promised))
        file.truncate(2**26 if 100 < promised < 2**30 else 20)       # a hole: takes no disk
    with pytest.raises(MinidsError, match="not a whole safetensors file"), little_memory(2**20):
        header.read(path)


# ---- whole folders ----

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sample, with links instead of copies, so that single files can be replaced."""
    path = tmp_path_factory.mktemp("fuzzed")
    for file in SAMPLE.iterdir():
        (path / file.name).symlink_to(file)
    return path


@contextmanager
def replaced(path, content: bytes):
    path.unlink()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink()
        path.symlink_to(SAMPLE / path.name)


def look_into(folder):
    """Read what there is to read: some tensors after `check`, all of them without it."""
    with nothing_but_our_error(), Checkpoint(folder) as c:
        with nothing_but_our_error():
            c.check()
        for name in ("layers.1.attn.wq_a.weight", "layers.1.ffn.gate.tid2eid",
                     "layers.1.attn.attn_sink"):
            with nothing_but_our_error():
                c.read(name)
    with nothing_but_our_error(), Checkpoint(folder) as c:
        with nothing_but_our_error():
            c.inventory()
        for name in c.names():
            with nothing_but_our_error():
                c.read_all([name])
                c.raw_all([name])


BYTES = (SAMPLE / SHARD).read_bytes()
HEADER_END = 8 + int.from_bytes(BYTES[:8], "little")
HEAD = json.loads(BYTES[8:HEADER_END])
CHANGED = ("layers.1.attn.wq_a.weight", "layers.1.attn.wq_a.scale", "layers.1.ffn.gate.tid2eid",
           "layers.1.attn.attn_sink")


@pytest.mark.slow
@settings(FUZZ, max_examples=25)
@given(name=st.sampled_from(CHANGED), key=st.sampled_from(["dtype", "shape", "data_offsets", None]),
       value=st.sampled_from([*header.DTYPES]) | st.lists(WHOLE, max_size=3) | ODD)
@example(name=CHANGED[0], key="dtype", value="I8")
@example(name=CHANGED[0], key="dtype", value="U8")
@example(name=CHANGED[0], key="shape", value=[64, 256])
@example(name=CHANGED[1], key="dtype", value="U8")
@example(name=CHANGED[3], key="dtype", value="I32")
@example(name=CHANGED[2], key="dtype", value="F64")
def test_a_changed_shard(folder, name, key, value):
    fields = {n: dict(e) for n, e in HEAD.items()}
    if key is None:
        fields.pop(name)
    else:
        fields[name][key] = value
    content = raw(json.dumps(fields), BYTES[HEADER_END:])
    with replaced(folder / SHARD, content), little_memory():
        look_into(folder)


@settings(FUZZ, max_examples=25)
@given(change=st.dictionaries(st.sampled_from(["embed.weight", "layers.1.attn.attn_sink", "new",
                                               "model.embed.weight", "../x", "mtp.0.new.weight",
                                               "\udc80", "a\nb"]),
                              st.sampled_from([SHARD, "model-00001-of-00007.safetensors",
                                               "config.json", "../x.safetensors", "",
                                               "/etc/passwd", "none.safetensors",
                                               "\udc80.safetensors"]) | ODD,
                              max_size=3),
       top=st.none() | ODD | st.lists(ODD, max_size=2))
def test_a_changed_index(folder, change, top):
    index = json.loads((SAMPLE / INDEX).read_text())
    index["weight_map"] = index["weight_map"] | change if top is None else top
    with replaced(folder / INDEX, json.dumps(index).encode()), little_memory():
        look_into(folder)


@pytest.mark.parametrize("file", ["config.json", INDEX])
@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5,
                                     b"[]", b"null", b'"' + b"a" * 10**5,
                                     b"{" + b'"a":0,' * 10**4 + b'"a":0}',
                                     b'{"weight_map": {"a": NaN}}', b"\xef\xbb\xbf{}"])
def test_foreign_json(folder, file, content):
    with replaced(folder / file, content), little_memory(), pytest.raises(MinidsError):
        Checkpoint(folder)


def test_a_huge_configuration_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**31)
    with open(tmp_path / INDEX, "wb") as file:
        file.truncate(2**31)
    with little_memory(), pytest.raises(MinidsError, match="at most 1048576 bytes"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes((SAMPLE / "config.json").read_bytes())
    with little_memory(), pytest.raises(MinidsError, match="at most 33554432 bytes"):
        Checkpoint(tmp_path)


# ---- configurations ----

SPELLED = [json.loads((SAMPLE / "config.json").read_text()), Config.from_json(SAMPLE).to_json()]
EXTREME = st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**18, 10**400, 0.0, -0.0, 0.5,
                           1e-320, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"),
                           True, None, "", "fp8", "4", [], {}, [1], [[]]])
ROPE = st.dictionaries(st.sampled_from(["type", "rope_type", "factor", "beta_fast", "beta_slow",
                                        "rope_theta", "main", "compress",
                                        "original_max_position_embeddings"]),
                       EXTREME | st.just("yarn"), max_size=6)
RATES = st.dictionaries(st.sampled_from(["sliding_attention", "heavily_compressed_attention",
                                         "compressed_sparse_attention"]), EXTREME, max_size=3)
LISTS = st.lists(st.sampled_from([0, 1, 4, 128, -4, 10**400, 4.0, "sliding_attention", "moe",
                                  "hash_moe", None]), max_size=6)
YARN = {"type": "yarn", "factor": 16, "original_max_position_embeddings": 256}


@pytest.mark.slow
@settings(FUZZ, max_examples=40)
@given(base=st.sampled_from(SPELLED), data=st.data())
@example(base=SPELLED[0], data=None)
def test_any_configuration(base, data):
    keys = st.sampled_from(sorted({*SPELLED[0], *SPELLED[1], "rope_parameters"}))
    values = EXTREME | ROPE | RATES | LISTS
    changes = data.draw(st.dictionaries(keys, values, min_size=1, max_size=4)) if data else {}
    with nothing_but_our_error():
        with little_memory():
            config = Config.from_json(base | changes)
            assert Config.from_json(config.to_json()) == config
            expected(config, range(1000), "f")         # for a thousand names the layout stays small
        if max(config.n_layers, config.n_routed_experts, config.rope_head_dim) < 100:
            empty_model(config, torch.float32)


@pytest.mark.parametrize("changes", [
    {"rope_scaling": YARN | {"beta_fast": 1e-320}}, {"rope_scaling": YARN | {"beta_fast": 1e308}},
    {"rope_scaling": YARN | {"factor": 1e-320}},
    {"rope_scaling": YARN | {"original_max_position_embeddings": 10**400}},
    {"compress_rope_theta": 1}, {"compress_rope_theta": 1e-320}, {"compress_rope_theta": 1e308},
    {"rope_theta": 1e-320}, {"hidden_size": 2**62}, {"vocab_size": 2**63},
    {"moe_intermediate_size": 10**30}, {"index_n_heads": 10**400},
])
def test_extreme_sizes(changes):
    with nothing_but_our_error():
        empty_model(Config.from_json(SPELLED[0] | changes), torch.float32)
