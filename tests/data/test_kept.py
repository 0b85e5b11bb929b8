"""Token ids kept on disk: found again, never stale, never damaged, and never needed."""

import numpy as np
import pytest

from minids.data import kept as module
from minids.data import mixture
from minids.data.kept import kept
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
    assert (kept("some ids", tokenizer, lambda: IDS) == IDS).all()
    again = kept("some ids", tokenizer, never)
    assert (again == IDS).all() and again.dtype == np.uint16 and again.flags.writeable
    assert [path.suffix for path in folder.iterdir()] == [".ids"]


def test_other_parameters_tokenizers_and_sources_are_other_ids(folder, tokenizer, monkeypatch):
    kept("some ids", tokenizer, lambda: IDS)
    other = kept("other ids", tokenizer, lambda: IDS[:2])
    assert len(other) == 2
    with pytest.raises(AssertionError):
        kept("some ids", Tokenizer.load(paths.DATA / "v4_sample"), never)
    monkeypatch.setattr(module, "sources", lambda: "changed")
    with pytest.raises(AssertionError):
        kept("some ids", tokenizer, never)


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: b"", lambda data: data[:9],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_made_again(folder, tokenizer, damage):
    kept("some ids", tokenizer, lambda: IDS)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert (kept("some ids", tokenizer, lambda: IDS) == IDS).all()
    assert path.read_bytes() == whole


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (None, tmp_path / "file"):
        monkeypatch.setattr(paths, "cache", lambda: place)
        assert (kept("some ids", tokenizer, lambda: IDS) == IDS).all()


def test_few_files_are_kept(folder, tokenizer):
    for i in range(module.FILES + 3):
        kept(f"ids {i}", tokenizer, lambda: IDS)
    assert len(list(folder.iterdir())) == module.FILES


def test_a_kept_stream_is_the_stream(folder, tokenizer):
    ids = mixture.stream("valid", 3000, tokenizer)
    for _ in range(2):
        assert np.array_equal(mixture.kept_stream("valid", 3000, tokenizer), ids)
