"""Where files can be written is known before the work."""

import os

import pytest

from minids.errors import MinidsError
from minids.system.files import check_writable, write_text


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "old.json")
    check_writable(tmp_path / "new.json")
    check_writable(tmp_path, folder=True)
    check_writable(tmp_path / "a" / "b", folder=True)
    assert os.listdir(tmp_path) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_relative_paths_are_those_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("new.json")
    check_writable("runs/mine", folder=True)


@pytest.mark.parametrize("path, folder, message", [
    ("nowhere/x.json", False, "cannot write .*x.json:"),
    ("folder", False, "cannot write .*folder: Is a directory"),
    ("file/x.json", False, "cannot write .*x.json:"),
    ("file", True, "cannot use the folder .*file: .*; choose another one"),
    ("file/runs/mine", True, "cannot use the folder .*mine:"),
])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, path, folder, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MinidsError, match=message):
        check_writable(tmp_path / path, folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for write in (check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(MinidsError, match="pipe: expected a new file or one to replace"):
            write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for path, folder in (("locked/x.json", False), ("locked", True), ("locked/runs/mine", True)):
        with pytest.raises(MinidsError, match="Permission denied"):
            check_writable(tmp_path / path, folder)
