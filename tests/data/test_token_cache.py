"""Token ids on disk: found again, never stale, never damaged, and never needed."""

import numpy as np
import pytest

from minids.data import mixture
from minids.data import token_cache as module
from minids.data.token_cache import cached_ids
from minids.data.tokenizer import Tokenizer
from minids.system import paths

IDS = np.array([0, 1, 2047, 65535], dtype=np.uint16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "minids")
    return tmp_path / "minids" / "tokens"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def never():
    raise AssertionError("computed again")


def test_ids_are_computed_once(folder, tokenizer):
    assert (cached_ids("some ids", tokenizer, lambda: IDS) == IDS).all()
    again = cached_ids("some ids", tokenizer, never)
    assert (again == IDS).all() and again.dtype == np.uint16 and again.flags.writeable
    assert [path.suffix for path in folder.iterdir()] == [".ids"]


def test_other_parameters_tokenizers_and_sources_are_other_ids(folder, tokenizer, monkeypatch):
    cached_ids("some ids", tokenizer, lambda: IDS)
    other = cached_ids("other ids", tokenizer, lambda: IDS[:2])
    assert len(other) == 2
    with pytest.raises(AssertionError):
        cached_ids("some ids", Tokenizer.load(paths.DATA / "v4_sample"), never)
    monkeypatch.setattr(module, "sources", lambda: "changed")
    with pytest.raises(AssertionError):
        cached_ids("some ids", tokenizer, never)


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: b"", lambda data: data[:9],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_made_again(folder, tokenizer, damage):
    cached_ids("some ids", tokenizer, lambda: IDS)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert (cached_ids("some ids", tokenizer, lambda: IDS) == IDS).all()
    assert path.read_bytes() == whole


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (None, tmp_path / "file"):
        monkeypatch.setattr(paths, "cache", lambda: place)
        assert (cached_ids("some ids", tokenizer, lambda: IDS) == IDS).all()


def test_few_files_are_kept(folder, tokenizer):
    for i in range(module.FILES + 3):
        cached_ids(f"ids {i}", tokenizer, lambda: IDS)
    assert len(list(folder.iterdir())) == module.FILES


def test_a_cached_stream_is_the_stream(folder, tokenizer):
    ids = mixture.stream("valid", 3000, tokenizer)
    for _ in range(2):
        assert np.array_equal(mixture.cached_stream("valid", 3000, tokenizer), ids)
