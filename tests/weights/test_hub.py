"""Remote reads with the real client, huggingface_hub, from a local Hub that serves the sample."""

import errno
import gzip
import json
import struct
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import (
    COMMIT,
    TOKEN,
    LocalHub,
    cut,
    everything,
    grown,
    longer,
    other_range,
    shorter,
    status,
    used,
)
from safetensors import safe_open

from minids import load, save
from minids.cli import main
from minids.config import Config
from minids.errors import MinidsError
from minids.system.paths import DATA
from minids.weights import header, hub, hub_requests, layout
from minids.weights.checkpoint import Checkpoint
from minids.weights.hub_requests import Unreachable
from minids.weights.layout import INDEX, SINGLE
from minids.weights.streamed import streamed

constants = pytest.importorskip("huggingface_hub.constants")
close_session = pytest.importorskip("huggingface_hub.utils").close_session
SAMPLE = DATA / "v4_sample"
REPO = "owner/sample"
WQ = "layers.1.attn.wq_a.weight"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The local Hub, an empty cache, no token, and no time lost by waiting."""
    with used(SAMPLE, tmp_path, monkeypatch) as server:
        yield server


@cache
def model():
    """The sample, loaded from its folder."""
    return load(SAMPLE)


def equal(a, b):
    assert a.keys() == b.keys()
    same = lambda x, y: x.dtype == y.dtype and torch.equal(x, y)
    assert not [name for name in a if not same(a[name], b[name])]


def entry(name):
    file = json.loads((SAMPLE / INDEX).read_text())["weight_map"][name]
    return file, header.read(SAMPLE / file)[name]


# ---- what is read ----

@pytest.mark.parametrize("where", ["hub", "folder"])
def test_every_tensor_is_what_a_local_load_gives(server, where):
    remote = Checkpoint(REPO if where == "hub" else SAMPLE)
    config, state = model().config, model().state_dict()
    assert remote.config == config and remote.revision == (COMMIT if where == "hub" else None)
    assert remote.inventory() == layout.inventory(config)
    equal(remote.read_all(state), state)
    names = (WQ, "layers.1.attn.wq_a.scale", "norm.weight")
    for name, t in remote.raw_all(names).items():
        with safe_open(SAMPLE / entry(name)[0], "pt") as file:
            assert torch.equal(t.view(torch.uint8), file.get_tensor(name).view(torch.uint8))
            assert torch.equal(t.view(torch.uint8), remote.raw(name).view(torch.uint8))
    assert remote.read(WQ, torch.bfloat16).dtype == torch.bfloat16
    assert bool(server.log) == (where == "hub")


def test_only_the_bytes_of_the_tensors_are_fetched(server):
    remote = Checkpoint(REPO)
    assert server.sent() == []
    names = [WQ, "layers.1.attn.attn_sink"]
    price = remote.price(names)
    wanted = sorted(entry(n)[1][2:] for n in (*names, "layers.1.attn.wq_a.scale"))
    assert price == (3, 1, sum(end - start for start, end in wanted), 0)
    headers = len(server.sent())
    remote.read_all(names)
    requests = sorted((a, b + 1) for _, a, b in server.sent()[headers:])
    assert sum(b - a for a, b in requests) == price.fetch
    assert requests[0][0] == wanted[0][0] and requests[-1][1] == wanted[-1][1]
    assert remote.price(names) == (3, 1, 0, price.fetch)
    assert {file for file, _, _ in server.sent()} == {entry(WQ)[0]}


def test_the_inventory_reads_headers_only(server):
    Checkpoint(REPO).inventory()
    for file, first, last in server.sent():
        end = 8 + int.from_bytes(server.bytes(file)[:8], "little")
        assert last < max(end, hub.HEAD) and (first == 0 or last == end - 1)
    before = len(server.log)
    Checkpoint(REPO, COMMIT).inventory()        # all of it is in the cache now, the commit is known
    assert len(server.log) == before


def test_patterns(server):
    remote = Checkpoint(REPO)
    assert remote.find("layers.*.ffn.gate.bias", "layers.2.attn.attn_sink", "layers.2.*sink") == \
        ["layers.2.ffn.gate.bias", "layers.3.ffn.gate.bias", "layers.2.attn.attn_sink"]
    with pytest.raises(MinidsError, match=r"no tensor matches 'layer\.\*'"):
        remote.find("layer.*")
    with pytest.raises(MinidsError, match="no tensor layers.9.x"):
        remote.read("layers.9.x")
    with pytest.raises(MinidsError, match="it comes with layers.1.attn.wq_a.weight"):
        remote.read("layers.1.attn.wq_a.scale")


def test_small_neighbours_share_a_request(server, monkeypatch):
    monkeypatch.setattr(hub, "GAP", 2**17)
    remote = Checkpoint(REPO)
    names = [n for n in remote.names() if n.startswith("layers.0.") and n in remote.find("*")]
    remote.inventory(names)
    before = len(server.sent())
    remote.fetch(names)
    assert len(server.sent()) == before + 1


# ---- the cache ----

def test_a_second_read_needs_no_network(server):
    first = Checkpoint(REPO).read_all([WQ])
    server.close()
    close_session()
    equal(Checkpoint(REPO, COMMIT).read_all([WQ]), first)
    with pytest.warns(UserWarning, match="gave up after .* Going on with commit 0123456789ab"):
        again = Checkpoint(REPO)
    equal(again.read_all([WQ]), first)
    with pytest.raises(Unreachable, match="Is there a network"):
        again.read("layers.1.attn.wkv.weight")


def test_damage_in_the_cache_is_noticed_and_fixed(server, tmp_path):
    remote = Checkpoint(REPO)
    first = remote.read_all([WQ])
    path = next((tmp_path / "assets").rglob(WQ))
    for damaged in (b"\x01" + path.read_bytes()[1:], path.read_bytes()[:-1], b""):
        path.write_bytes(damaged)
        if len(damaged) == entry(WQ)[1].end - entry(WQ)[1].start + 32:
            with pytest.warns(UserWarning, match="is damaged: it is fetched again"):
                equal(remote.read_all([WQ]), first)
        else:
            equal(remote.read_all([WQ]), first)
    for path in [*(tmp_path / "assets").rglob("*.header"), *(tmp_path / "assets").rglob("*.json")]:
        path.write_bytes(path.read_bytes()[:-40])
    equal(Checkpoint(REPO).read_all([WQ]), first)


def test_an_interrupted_fetch_is_resumed(server, monkeypatch):
    monkeypatch.setattr(hub, "PIECE", 1000)
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    before = len(server.sent())
    server.faults = [None] * 5 + [status(418)]              # the scale, four pieces, then no more
    with pytest.raises(MinidsError, match="found 418"):
        remote.fetch([WQ])
    start, end = entry(WQ)[1][2:]
    pieces = [a for _, a, b in server.sent()[before:-1] if start <= a and b < end]
    assert pieces == [start + 1000 * i for i in range(len(pieces))] and len(pieces) >= 4
    before = len(server.sent())
    equal(Checkpoint(REPO).read_all([WQ]), {WQ: model().state_dict()[WQ]})
    requests = [a for _, a, b in server.sent()[before:] if start <= a and b < end]
    assert requests[0] == start + 1000 * len(pieces)        # nothing is fetched twice


@pytest.mark.parametrize("change", ["a byte", "the place", "no note", "no JSON", "too short"])
def test_pieces_are_used_only_if_they_match_their_note(server, tmp_path, monkeypatch, change):
    monkeypatch.setattr(hub, "PIECE", 1000)
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    server.faults = [None] * 5 + [status(418)]
    with pytest.raises(MinidsError, match="found 418"):
        remote.fetch([WQ])
    part = next((tmp_path / "assets").rglob("*.part"))
    note, data = part.with_name(part.name + ".json"), bytearray(part.read_bytes())
    assert len(data) >= 4000
    good = 0
    if change == "a byte":          # of the third piece: the first two stay
        data[2500] ^= 1
        part.write_bytes(data)
        good = 2000
    elif change == "too short":     # the disk lost the end of the third piece
        part.write_bytes(data[:2500])
        good = 2000
    elif change == "the place":
        text = json.loads(note.read_text())
        text["source"]["start"] += 8
        note.write_text(json.dumps(text))
    elif change == "no JSON":
        note.write_text("{")
    else:
        note.unlink()
    start, end = entry(WQ)[1][2:]
    before = len(server.sent())
    equal(Checkpoint(REPO).read_all([WQ]), {WQ: model().state_dict()[WQ]})
    requests = [a for _, a, b in server.sent()[before:] if start <= a and b < end]
    assert requests[0] == start + good
    assert not list((tmp_path / "assets").rglob("*.part*"))


def test_a_tensor_is_kept_as_soon_as_it_has_come(server, monkeypatch):
    """Neighbours share a request; where it ends early, those that came whole are here."""
    monkeypatch.setattr(hub, "GAP", 2**17)
    remote = Checkpoint(REPO)
    names = [n for n in remote.find("layers.1.*") if "experts" not in n]
    size = remote.price(names).fetch
    server.faults = [cut(size // 2), status(418)]
    with pytest.raises(MinidsError, match="found 418"):
        remote.fetch(names)
    price = remote.price(names)
    assert size // 3 < price.here <= size // 2 and price.fetch + price.here == size
    state = model().state_dict()
    equal(remote.read_all(names), {name: state[name] for name in names})


def test_an_error_stops_the_other_files_and_keeps_what_was_fetched(server):
    remote = Checkpoint(REPO)
    names = remote.find("layers.*.attn.wq_a.weight", "layers.*.attn.wkv.weight")
    remote.inventory(names)

    def refused_later(*answer):         # only when something has been kept
        while not remote.price(names).here:
            time.sleep(0.01)
        return status(418)(*answer)

    server.faults = [None, None, refused_later] + [None] * 50
    with pytest.raises(MinidsError, match="status 200 or 206, found 418|stopped"):
        remote.fetch(names)
    here = remote.price(names).here
    assert here > 0
    sent = lambda: sum(b - a + 1 for _, a, b in server.sent())
    before, server.faults = sent(), []
    remote.read_all(names)              # it can be resumed, and does not ask for what is here
    assert sent() - before == remote.price(names).here - here


def test_the_whole_fetch_needs_room_before_it_begins(server, monkeypatch):
    remote = Checkpoint(REPO)
    names = remote.find("layers.*.attn.wq_a.weight")
    price, before = remote.price(names), len(server.log)
    assert price.files == 4
    need = price.fetch + 32 * price.tensors         # each tensor is kept with its digest
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=need - 1))
    words = (f"{need:,} bytes are to be fetched, {need - 1:,} are free. What was fetched before is "
             f"kept.*HF_HOME")
    with pytest.raises(MinidsError, match=words):
        remote.fetch(names)
    assert len(server.log) == before and remote.price(names).here == 0
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=need))
    remote.fetch(names)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    remote.read_all(names)                          # what is here needs no room


def test_pieces_that_are_here_need_no_room(server, monkeypatch):
    monkeypatch.setattr(hub, "PIECE", 1000)
    remote = Checkpoint(REPO)
    size = remote.price([WQ]).fetch
    server.faults = [None] * 5 + [status(418)]      # the scale and four pieces of the codes
    with pytest.raises(MinidsError, match="found 418"):
        remote.fetch([WQ])
    scale = remote.price([WQ]).here
    free = size - scale - 4000 + 32
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(MinidsError, match=f"{free:,} bytes are to be fetched"):
        remote.fetch([WQ])
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    remote.fetch([WQ])


def test_a_disk_that_is_full_later(server, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = Checkpoint(REPO)
    remote.fetch(["norm.weight"])
    monkeypatch.setattr(hub.os, "fsync", lambda _: full(None, None))
    with pytest.raises(MinidsError, match="No space left on device. What was fetched before is "
                                          "kept. .*HF_HOME"):
        remote.fetch([WQ])
    monkeypatch.undo()
    assert remote.price(["norm.weight"]).here > 0


def test_a_read_only_cache_addressed_by_branch(server, monkeypatch):
    """Nothing is written where nothing has changed."""
    first = Checkpoint(REPO).read_all([WQ])

    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("atomic_write", "write_text", "check_writable"):
        monkeypatch.setattr(hub, name, refuse)
    again = Checkpoint(REPO)
    equal(again.read_all([WQ]), first)
    with pytest.raises(MinidsError, match="Read-only file system. What was fetched before is kept"):
        again.read("layers.2.attn.wq_a.weight")     # its header is not here


def test_a_cache_that_cannot_be_written(server, tmp_path):
    """A file lies where a folder should be, which stops even the superuser."""
    Checkpoint(REPO)
    commits = next((tmp_path / "assets").rglob("commits"))
    (commits / COMMIT).rename(commits / "aside")
    remote = Checkpoint(REPO, COMMIT)
    remote.price([WQ])
    (commits / COMMIT).rename(commits / "also")
    (commits / COMMIT).write_bytes(b"")
    with pytest.raises(MinidsError, match="cannot use the folder .* another one with HF_HOME"):
        remote.fetch([WQ])


# ---- faults of the network and of the server ----

def test_cut_connections_are_resumed(server):
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    server.faults = [None, cut(5000), cut(1), cut(0), cut(700)]     # the scale, then the codes
    before = len(server.sent())
    equal(remote.read_all([WQ]), {WQ: model().state_dict()[WQ]})
    starts = [a for _, a, b in server.sent()[before:] if b - a > 10]
    assert [b - a for a, b in zip(starts, starts[1:])] == [5000, 1, 0, 700]


@pytest.mark.parametrize("fault", [status(429, Retry_After="0"), status(429),
                                   status(429, RateLimit='"api";r=0;t=0'),
                                   status(503), status(500), status(520), status(522),
                                   status(524), shorter, cut(3)])
def test_temporary_faults_are_retried(server, fault):
    server.everywhere, server.faults = True, [fault] * 3
    remote = Checkpoint(REPO)
    server.faults = [None, fault, None, fault, fault]
    equal(remote.read_all([WQ]), {WQ: model().state_dict()[WQ]})


@pytest.mark.parametrize("fault, words", [(status(503), "status 503"),
                                          (cut(0), "RemoteProtocolError|ReadError")])
def test_permanent_faults_end_the_retries(server, fault, words):
    server.everywhere, server.faults = True, [fault] * 50
    tries = hub_requests.ATTEMPTS
    with pytest.raises(Unreachable, match=f"gave up after {tries} attempts .*({words})"):
        Checkpoint(REPO)
    assert len(server.faults) == 50 - tries


def test_a_long_wait_is_refused(server):
    server.everywhere, server.faults = True, [status(429, Retry_After="86400")]
    with pytest.raises(Unreachable, match="It asks to wait 86400 s"):
        Checkpoint(REPO)


@pytest.mark.parametrize("fault, words", [
    (status(416), "ends before the bytes that its header promises"),
    (longer, "more came|RemoteProtocolError"),
    (other_range, "the answer is about"),
    (grown, "when its header was read"),
    (status(206), "the answer is about ''"),
    (status(404), "has no model-00003"),
    (status(418), "expected status 200 or 206, found 418"),
    (status(403), r"localhost refuses the Hub's link to it \(status 403\), also to a new one"),
])
def test_wrong_answers(server, fault, words):
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    server.faults = [fault] * 9
    with pytest.raises(MinidsError, match=words) as caught:
        remote.read_all([WQ])
    assert len(str(caught.value).splitlines()) == 1
    server.faults = []
    equal(remote.read_all([WQ]), {WQ: model().state_dict()[WQ]})


def test_expired_links_are_renewed(server, monkeypatch):
    """Each link is good for three requests. The token is not to blame, and is not sent along."""
    monkeypatch.setattr(hub, "PIECE", 1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.private, server.uses = True, 3
    equal(Checkpoint(REPO).read_all([WQ]), {WQ: model().state_dict()[WQ]})
    requests = 2 + 1 + 17                           # the header, the scale, the codes
    assert server.links == [entry(WQ)[0]] * -(-requests // 3)
    assert len(server.sent()) == requests + len(server.links) - 1       # and one for each expiry
    assert {host: auth for host, *_, auth in server.log} == {
        "127.0.0.1": f"Bearer {TOKEN}", "localhost": None}


def test_a_link_that_is_refused_is_resolved_again_once(server):
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    links = len(server.links)
    server.faults = [status(403), None, status(403), status(403)]   # the scale, then the codes
    with pytest.raises(MinidsError, match="refuses the Hub's link .* what was fetched is kept"):
        remote.read_all([WQ])
    assert not server.faults and len(server.links) == links + 2
    remote.read_all([WQ])


def test_a_refusal_of_the_hub_itself_is_about_the_token(server, monkeypatch):
    """Also when a link expires and the Hub refuses to give another one."""
    monkeypatch.setattr(hub, "PIECE", 1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.private, server.uses = True, 6
    remote = Checkpoint(REPO)
    remote.inventory([WQ])
    monkeypatch.setenv("HF_TOKEN", "hf_withdrawn")
    with pytest.raises(MinidsError, match=r"refuses your token \(status 403\)"):
        remote.read_all([WQ])
    assert remote.price([WQ]).here > 0


def test_a_renamed_repository_gets_the_token_too(server, monkeypatch):
    server.private, server.renamed = True, ("owner/before",)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    equal(Checkpoint("owner/before").read_all([WQ]), {WQ: model().state_dict()[WQ]})
    assert {host for host, *_, auth in server.log if auth} == {"127.0.0.1"}


def test_a_server_without_ranges(server):
    remote = Checkpoint(REPO)
    server.faults = [everything(server, entry(WQ)[0])]
    with pytest.raises(MinidsError, match="does not serve ranges"):
        remote.read_all([WQ])


def test_small_files_may_come_whole_and_compressed(server, tmp_path):
    def zipped(handler, status, headers, body):
        whole = gzip.compress(server.bytes("config.json"))
        headers = {k: v for k, v in headers.items() if k != "Content-Range"}
        return 200, headers | {"Content-Encoding": "gzip"}, whole

    server.everywhere, server.faults = True, [zipped]
    assert Checkpoint(REPO).config == model().config and not server.faults
    for path in (tmp_path / "assets").rglob("config.json"):
        path.unlink()
    server.faults = [everything(server, "config.json")]     # without a commit: it is known by now
    assert Checkpoint(REPO, COMMIT).config == model().config and not server.faults


@pytest.mark.parametrize("repo, revision, words", [
    ("owner/other", None, "private, gated or does not exist .*HF_TOKEN"),
    (REPO, "v9", "no revision 'v9'"),
    (REPO, "a b", "is no revision"),
    (REPO, "../../x\n", "is no revision"),
    ("sample", None, "nothing is at .* no repository.s name"),
    ("../sample", None, "nothing is at .* no repository.s name"),
    ("a/b/c", None, "nothing is at .* no repository.s name"),
    ("x" * 5000, None, "nothing is at .* no repository.s name"),
])
def test_wrong_names(server, repo, revision, words):
    with pytest.raises(MinidsError, match=words):
        Checkpoint(repo, revision)


def test_tokens(server, monkeypatch):
    server.private = True
    with pytest.raises(MinidsError, match="set HF_TOKEN"):
        Checkpoint(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MinidsError, match="refuses your token"):
        Checkpoint(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(MinidsError, match="no repository"):
        Checkpoint("owner/other")
    Checkpoint(REPO).read_all([WQ])
    with_token = {host for host, *_, auth in server.log if auth == f"Bearer {TOKEN}"}
    assert with_token == {"127.0.0.1"}
    # the redirect leads to another host, without the token
    assert "localhost" in {host for host, *_ in server.log}


def test_offline(server, monkeypatch):
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        Checkpoint(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "127.0.0.1:80")
    with pytest.raises(MinidsError, match="HF_ENDPOINT: expected an address"):
        Checkpoint(REPO)


def test_something_else_than_a_hub(server):
    server.everywhere = True
    for headers, words in (({}, "found None"),
                           ({"X-Repo-Commit": "../../../etc"}, r"found '\.\./")):
        server.faults = [lambda h, s, old, body: LocalHub.send(h, 200, headers, body)]
        with pytest.raises(MinidsError, match="does not answer as a Hub does.*" + words):
            Checkpoint(REPO)


# ---- hostile files ----

def test_hostile_indices(server, tmp_path):
    good, shard = json.loads((SAMPLE / INDEX).read_text()), "model-00001-of-00007.safetensors"
    for change, words in (({"embed.weight": "../../x.safetensors"}, "names of .safetensors files"),
                          ({"embed.weight": "/etc/passwd"}, "names of .safetensors files"),
                          ({"../x": shard}, "is not a tensor's name"),
                          ({"model.embed.weight": shard}, "both mean embed.weight")):
        server.files[INDEX] = json.dumps({"weight_map": good["weight_map"] | change}).encode()
        with pytest.raises(MinidsError, match=words):
            Checkpoint(REPO)
        for path in (tmp_path / "assets").rglob(INDEX):
            path.unlink()
    server.files[INDEX] = b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'
    with pytest.raises(MinidsError, match="'a' appears twice"):
        Checkpoint(REPO)


def test_nothing_is_fetched_for_a_tensor_of_the_wrong_shape(server):
    file, _ = entry(WQ)
    data = server.bytes(file)
    n = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:8 + n])
    fields[WQ]["shape"] = [64, 256]
    text = json.dumps(fields).encode()
    server.files[file] = struct.pack("<Q", len(text)) + text + data[8 + n:]
    remote = Checkpoint(REPO)
    words = r"wq_a.weight is F8_E4M3 \[64, 256\], expected \[128, 128\]"
    for read in (remote.read, remote.raw):
        with pytest.raises(MinidsError, match=words):
            read(WQ)
    assert max(last for _, _, last in server.sent()) < max(8 + len(text), hub.HEAD)


def test_tensors_of_a_later_model_are_named_and_not_read(server):
    index = json.loads((SAMPLE / INDEX).read_text())
    index["weight_map"]["mtp.0.draft.weight"] = entry(WQ)[0]
    server.files[INDEX] = json.dumps(index).encode()
    remote = Checkpoint(REPO)
    assert remote.extra() == ["mtp.0.draft.weight"]
    words = "mtp.0.draft.weight is not read: .* may belong to a later model"
    for read in (remote.read, remote.raw):
        with pytest.raises(MinidsError, match=words):
            read("mtp.0.draft.weight")
    remote.read_all([WQ])
    with pytest.raises(MinidsError, match="only in the index"):
        remote.inventory()


def test_a_repository_of_another_kind(server):
    server.files["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(MinidsError, match="deepseek_v4"):
        Checkpoint(REPO)


def test_one_file_without_an_index(server, tmp_path):
    save(model(), tmp_path / "single", format="bf16")
    for source in (REPO, tmp_path / "single"):
        server.folder, server.files = tmp_path / "single", {}
        remote = Checkpoint(source)
        assert set(remote.names()) == model().state_dict().keys()
        assert torch.equal(remote.read("norm.weight"), model().norm.weight)
    assert {file for file, *_ in server.sent()} == {SINGLE}


def test_a_path_is_a_folder_and_never_a_repository(server):
    for read in (lambda: Checkpoint(Path(REPO)), lambda: load(REPO), lambda: streamed(REPO)):
        with pytest.raises(MinidsError, match="no checkpoint at owner.sample: expected a folder"):
            read()
    assert server.log == []


# ---- commands ----

def test_info_and_fetch(server, capsys):
    assert main(["real", "info", REPO]) == 0
    output = capsys.readouterr().out
    assert COMMIT[:12] in output and "2,094,381" in output
    assert main(["real", "fetch", REPO, "--tensors", "layers.*.ffn.gate.*", "norm.weight"]) == 0
    output = capsys.readouterr().out
    price = Checkpoint(REPO).price(Checkpoint(REPO).find("layers.*.ffn.gate.*", "norm.weight"))
    assert price.fetch == 0 and f"{price.tensors} tensors" in output
    assert main(["real", "fetch", REPO, "--tensors", "nothing.*"]) == 2
    assert "no tensor matches" in capsys.readouterr().err
    assert main(["real", "info", str(SAMPLE)]) == 0


def test_runs():
    far = 600 + hub.GAP + 1
    places = {"c": (500, 600), "a": (0, 100), "b": (100, 100), "far": (far, far + 100)}
    entries = {name: header.Entry("I8", (b - a,), a, b) for name, (a, b) in places.items()}
    assert header.runs(entries) == [["a", "b"], ["c"], ["far"]]
    assert header.runs(entries, hub.GAP, hub.PIECE) == [["a", "b", "c"], ["far"]]
    wide = {"x": header.Entry("I8", (1,), 0, 1), "y": header.Entry("I8", (1,), 1, hub.PIECE + 1)}
    assert header.runs(wide, hub.GAP, hub.PIECE) == [["x"], ["y"]]


# ---- at full size ----

def write_files(folder, config):
    """The released layout of a model, in files with headers and no data."""
    stored, shards = layout.inventory(config), layout.shards(config)
    for file, names in shards.items():
        entries, at = {}, 0
        for name in names:
            (dtype, shape), size = stored[name], layout.nbytes(stored[name])
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(entries).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_json()))


@pytest.mark.slow
def test_a_layer_takes_few_requests(server, tmp_path, monkeypatch):
    """Flash's number of experts, in matrices 4,096 times smaller."""
    config = model().config.replace(dim=64, moe_inter_dim=32, n_routed_experts=256, head_dim=32,
                                    rope_head_dim=16, n_activated_experts=6)
    flash, smaller = Config.flash(), 4096
    assert flash.dim * flash.moe_inter_dim == smaller * config.dim * config.moe_inter_dim
    server.folder = tmp_path / "files"
    server.folder.mkdir()
    write_files(server.folder, config)
    monkeypatch.setattr(hub, "PIECE", hub.PIECE // smaller)
    monkeypatch.setattr(hub, "GAP", 2**17 // smaller)
    remote = Checkpoint(REPO)
    names = remote.find("layers.2.*")
    price, before = remote.price(names), len(server.sent())
    assert price.tensors > 1500 and price.files == 1
    remote.fetch(names)
    assert len(server.sent()) - before <= 1.25 * price.fetch / hub.PIECE + 2
    assert len(server.links) == 1                   # one link serves the header and all pieces


def test_a_layer_of_flash_takes_117_requests():
    entries, at = {}, 0
    for name, spec in layout.inventory(Config.flash()).items():
        if name.startswith("layers.3."):
            entries[name] = header.Entry(*spec, at, at := at + layout.nbytes(spec))
    assert len(entries) > 1500 and len(header.runs(entries, hub.GAP, hub.PIECE)) == 117


@pytest.mark.slow
def test_flash_at_full_size(tmp_path):
    """The released layout of V4-Flash, in files with headers and no data: what reading costs."""
    config, stored = Config.flash(), layout.inventory(Config.flash())
    write_files(tmp_path, config)
    (tmp_path / "config.json").write_bytes((DATA / "v4" / "flash.config.json").read_bytes())
    remote = Checkpoint(tmp_path)
    assert remote.config == config and remote.extra() == []
    assert remote.inventory() == stored and len(stored) == 69_187
    everything = remote.price(remote.find("*"))
    assert (everything.tensors, everything.files, everything.here) == (69_187, 46, 159_609_485_896)
    expert = remote.find("layers.20.ffn.experts.7.*")
    # half a byte for each number, and a scale for 32
    assert remote.price(expert).here == 3 * 4096 * 2048 * 17 // 32
    assert remote.read("layers.20.ffn.gate.bias").shape == (256,)
