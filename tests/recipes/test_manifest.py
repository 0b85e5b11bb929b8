"""The manifest lists every file of data/ with its size and hash, and reports changes."""

import json
import re

import pytest

from minids.recipes import manifest

ENTRIES = json.loads((manifest.DATA / "manifest.json").read_text(encoding="utf-8"))


def test_every_shipped_file_is_listed_as_it_is():
    assert manifest.problems() == []


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["path"] for entry in ENTRIES])
def test_an_entry_says_where_its_files_come_from(entry):
    assert entry.keys() == {"path", "what", "command", "commit", "minutes", "license", "source",
                            "note", "files"}
    assert entry["files"].keys() == manifest.files(manifest.DATA, entry["path"]).keys()
    assert entry["what"] and re.fullmatch("[0-9a-f]{7}", entry["commit"])
    assert entry["command"] or entry["source"]


def test_no_file_is_listed_twice():
    names = [name for entry in ENTRIES for name in entry["files"]]
    assert len(names) == len(set(names))


@pytest.fixture
def small(tmp_path):
    """A data folder with two files, both listed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(b"one")
    (tmp_path / "b.bin").write_bytes(b"two")
    (tmp_path / "folder" / "README.md").write_text("not listed")
    (tmp_path / "manifest.json").write_text(json.dumps([{"path": "folder"}, {"path": "b.bin"}]))
    manifest.write(tmp_path)
    assert manifest.problems(tmp_path) == []
    return tmp_path


def test_a_table_of_this_machine_need_not_be_listed(small):
    (small / "records").mkdir()
    (small / "records" / "bench-a-gpu.json").write_text("{}")
    assert manifest.problems(small) == []


def test_a_changed_file_is_found(small):
    (small / "b.bin").write_bytes(b"six")           # the same length
    (problem,) = manifest.problems(small)
    assert problem.startswith("b.bin differs")
    manifest.write(small)
    assert manifest.problems(small) == []


def test_a_missing_file_is_found(small):
    (small / "folder" / "a.bin").unlink()
    (problem,) = manifest.problems(small)
    assert problem.startswith("folder/a.bin is listed but missing")


def test_a_new_file_is_found_and_is_not_listed_without_an_entry(small):
    (small / "new.bin").write_bytes(b"new")
    manifest.write(small)
    (problem,) = manifest.problems(small)
    assert problem.startswith("new.bin is not listed")
