"""The journal of a learner's attempts: nothing is lost, nothing stops a lesson; and its tables."""

import json
import multiprocessing
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from minids import cli
from minids.errors import MinidsError
from minids.learn import checks, journal, mine, report
from minids.learn.journal import progress
from minids.system import paths

FUNCTIONS = len(mine.FUNCTIONS)


def lines(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "progress.jsonl").read_text().splitlines()]


# ---- recording ----


def test_an_event_is_a_line_with_its_time(own_home):
    before = datetime.now().astimezone().replace(microsecond=0)
    journal.record("mhc.site", "not yet", "comb is\nthe wrong way round \N{SNOWMAN}")
    journal.record("mhc.site", "hint")
    journal.record("mhc.site", "passed")
    first, hint, passed = lines(own_home)
    assert before <= datetime.fromisoformat(first.pop("time")) <= datetime.now().astimezone()
    assert first == {"check": "mhc.site", "verdict": "not yet",
                     "message": "comb is\nthe wrong way round \N{SNOWMAN}"}
    assert [event["verdict"] for event in journal.events()] == ["not yet", "hint", "passed"]
    assert journal.read() == {"mhc.site": passed["time"][:10]}


def test_an_unfinished_line_costs_no_other(own_home, capsys):
    journal.record("mhc.site", "passed")
    with open(own_home / "progress.jsonl", "ab") as file:
        file.write(b'{"time": "2026-01-01T00:0')          # the computer was switched off
    journal.record("mhc.maps", "passed")
    assert set(journal.read()) == {"mhc.site", "mhc.maps"}
    out = capsys.readouterr().out
    assert out.startswith("[progress] 1 damaged lines of ") and out.count("\n") == 1


@pytest.mark.parametrize("damage", [
    b"\xff\xfe\x00", b"[]", b"null", b"3", b'{"check": "mhc.maps"}', b"[" * 100_000,
    b'{"time": "yesterday", "check": "mhc.maps", "verdict": "passed", "message": ""}',
    b'{"time": "0001-01-01T00:00:00", "check": "mhc.maps", "verdict": "x", "message": ""}',
    b'{"time": 3, "check": "mhc.maps", "verdict": "passed", "message": ""}',
    b'{"time": "2026-01-01T00:00:00", "check": [], "verdict": "passed", "message": ""}'])
def test_a_damaged_line_is_skipped_and_stays(own_home, damage, capsys):
    file = own_home / "progress.jsonl"
    file.write_bytes(damage + b"\n")
    journal.record("mhc.site", "passed")
    assert list(journal.read()) == ["mhc.site"]
    assert "damaged lines" in capsys.readouterr().out
    assert file.read_bytes().startswith(damage + b"\n")


def test_passes_of_an_earlier_version_count(own_home):
    old = {"whole.rms_norm": "2020-01-01", "of.another.version": "2020-01-01"}
    file = own_home / "progress.json"
    file.write_text(json.dumps({"passed": old}))
    journal.record("whole.rms_norm", "passed")
    journal.record("whole.site", "passed")
    passed = journal.read()
    assert passed["whole.rms_norm"] == passed["of.another.version"] == "2020-01-01"
    assert passed["whole.site"] > "2020-01-01"
    assert json.loads(file.read_text()) == {"passed": old}
    assert journal.summary()["08_whole_model"][0] == 2
    assert report.learner()["lessons"]["08_whole_model"]["passed"] == 2


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"passed": 3}', '{"passed": {"a": {}}}',
                                    '{"passed": {"a": "soon"}}', "\udcff"])
def test_a_damaged_file_of_an_earlier_version_stays_as_it_is(own_home, damage, capsys):
    file = own_home / "progress.json"
    raw = damage.encode("utf-8", "surrogateescape")
    file.write_bytes(raw)
    journal.record("whole.site", "passed")
    assert list(journal.read()) == ["whole.site"]
    assert "progress.json is damaged and is skipped" in capsys.readouterr().out
    assert file.read_bytes() == raw


def _record_in_another_kernel(home: str, kernel: int) -> None:
    os.environ["MINIDS_HOME"] = home
    for i in range(50):
        journal.record(f"kernel {kernel}", "not yet", f"{i} " + "x" * 400)


@pytest.mark.slow
def test_several_kernels_that_record_at_once_lose_nothing(own_home):
    """They are forked from one process that has imported minids, where the system can."""
    fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if fork else "spawn")
    if fork:
        context.set_forkserver_preload(["minids"])
    kernels = [context.Process(target=_record_in_another_kernel, args=(str(own_home), n))
               for n in range(4)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join()
    assert [kernel.exitcode for kernel in kernels] == [0] * 4
    found = journal.events()
    for n in range(4):
        messages = [event["message"] for event in found if event["check"] == f"kernel {n}"]
        assert [int(message.split()[0]) for message in messages] == list(range(50))


# ---- folders that cannot be used ----


def one_line(capsys) -> str:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out


def test_a_home_that_cannot_be_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIDS_HOME", str(tmp_path / "file" / "below"))
    journal.record("mhc.site", "passed")
    assert one_line(capsys).startswith("[progress] not saved: cannot make the folder")
    progress()
    assert one_line(capsys).startswith("[progress] cannot be read: cannot make the folder")


def test_a_user_without_a_home(monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("MINIDS_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(MinidsError, match="this user has no home folder.*MINIDS_HOME"):
        paths.home()
    journal.record("mhc.site", "passed")
    assert one_line(capsys).startswith("[progress] not saved: this user has no home folder")
    progress()
    assert one_line(capsys).startswith("[progress] cannot be read: this user has no home folder")


def test_files_that_cannot_be_opened(own_home, capsys):
    (own_home / "progress.jsonl").mkdir()
    journal.record("mhc.site", "passed")
    assert "[progress] not saved: cannot write in" in one_line(capsys)
    progress()
    assert "[progress] cannot be read: cannot read" in one_line(capsys)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"),
                                   OSError(28, "No space left on device"),
                                   NotImplementedError("no flock here")])
def test_a_lock_that_cannot_be_had(own_home, monkeypatch, capsys, error):
    def refuse(self, *args, **kwargs):
        raise error
    monkeypatch.setattr(FileLock, "acquire", refuse)
    journal.record("mhc.site", "passed")
    assert "[progress] not saved: cannot write in" in one_line(capsys)


def test_a_lock_that_another_program_keeps(own_home, monkeypatch, capsys):
    monkeypatch.setattr(journal, "SECONDS_TO_WAIT", 0.1)
    with FileLock(own_home / "progress.lock"):
        journal.record("mhc.site", "passed")
    assert "[progress] not saved: The file lock" in one_line(capsys)


# ---- tables ----


@pytest.fixture
def class_folder(tmp_path):
    return tmp_path / "class"


def write_events(home: Path, *events) -> None:
    """Events (minutes ago, check, verdict, message) as a learner's journal."""
    home.mkdir(parents=True)
    now = datetime.now().astimezone()
    text = [json.dumps({"time": (now - timedelta(minutes=ago)).isoformat(timespec="seconds"),
                        "check": check, "verdict": verdict, "message": "".join(message)})
            for ago, check, verdict, *message in events]
    (home / "progress.jsonl").write_text("\n".join(text) + "\n")


def fill(folder: Path) -> None:
    write_events(folder / "ada", (90, "attention.angles", "passed"), (1, "hca.place", "passed"))
    write_events(folder / "bob" / ".minids",
                 (50, "attention.angles", "not attempted"),
                 (40, "attention.angles", "not yet", "A"),
                 (30, "attention.angles", "not yet", "B"), (20, "attention.angles", "hint"),
                 (10, "attention.angles", "not yet", "B"), (5, "attention.rotate", "not yet", "C"))
    write_events(folder / "cy", (300, "mhc.site", "not yet", "D"))
    write_events(folder / "dot", (2, "mhc.site", "not yet", "D"), (1, "mhc.site", "passed"))
    (folder / "eve").mkdir()
    (folder / "fay" / "progress.jsonl").mkdir(parents=True)
    (folder / "notes.txt").write_text("not a learner")


def test_progress_shows_lessons_and_functions(capsys):
    journal.record("whole.site", "passed")
    progress()
    out = capsys.readouterr().out.splitlines()
    total = len(checks.lessons()["08_whole_model"])
    assert f"08_whole_model           #{'.' * (total - 1)}  1 of {total}" in out
    assert out[-1] == f"my_v4: 0 of {FUNCTIONS} functions are yours"


def test_a_learners_table(own_home, capsys):
    own_home.rmdir()
    write_events(own_home, (9, "mhc.site", "not attempted"), (8, "mhc.site", "not yet", "A"),
                 (7, "mhc.site", "hint"), (6, "mhc.site", "passed"), (5, "mhc.site", "passed"),
                 (4, "mhc.site", "not yet", "changed since"))
    assert cli.main(["progress"]) == 0
    out = capsys.readouterr().out
    row, = (line for line in out.splitlines() if line.startswith("07_mhc"))
    count = len(checks.lessons()["07_mhc"])
    assert row.split()[:6] == ["07_mhc", "1", "of", str(count), "2", "1"]
    assert max(map(len, out.splitlines())) <= 90
    assert cli.main(["progress", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["my_v4"] == {"yours": 0, "of": FUNCTIONS}
    check = data["lessons"]["07_mhc"]["checks"]["mhc.site"]
    assert (check["attempts"], check["hints"], check["message"]) == (2, 1, "A")
    assert check["first"] < check["passed"] < check["last"]


def test_a_class_with_those_who_need_help_first(class_folder, capsys):
    fill(class_folder)
    assert cli.main(["progress", "--all", str(class_folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["learner"] for row in rows] == ["bob", "cy", "eve", "dot", "ada", "fay"]
    bob, cy, eve, dot, ada, fay = rows
    stuck = bob["stuck"]
    assert 39 <= stuck.pop("minutes") <= 41
    assert stuck == {"check": "attention.angles", "attempts": 3, "hints": 1, "message": "B"}
    assert bob["lesson"] == "02_attention" and bob["passed"] == 0
    assert cy["stuck"]["check"] == "mhc.site" and dot["stuck"] is None
    assert ada["lesson"] == "03_hca" and ada["passed"] == 2 and eve["lesson"] is None
    assert "cannot read" in fay["error"]
    assert cli.main(["progress", "--all", str(class_folder)]) == 0
    out = capsys.readouterr().out
    assert "attention.angles: 3 attempts without a pass, 1 hint, first attempt 40 min ago" in out
    assert "most often: B" in out and "fay: cannot be read" in out and "notes.txt" not in out


def test_what_is_damaged_is_no_part_of_the_json(class_folder, capsys):
    home = class_folder / "zed"
    home.mkdir(parents=True)
    (home / "progress.jsonl").write_text("{\n")
    assert cli.main(["progress", "--all", str(class_folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["learner"] == "zed" and "1 damaged lines" in err


def test_the_folder_of_one_learner_is_not_a_class(class_folder, capsys):
    (class_folder / "ada" / ".minids").mkdir(parents=True)
    (class_folder / ".snapshots").mkdir()
    assert cli.main(["progress", "--all", str(class_folder / "ada")]) == 2
    assert "belongs to one learner: expected the folder above" in capsys.readouterr().err
    assert cli.main(["progress", "--all", str(class_folder)]) == 0
    out = capsys.readouterr().out
    assert "ada" in out and "snapshots" not in out


def test_a_class_folder_that_is_missing(tmp_path, capsys):
    assert cli.main(["progress", "--all", str(tmp_path / "nobody")]) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["progress", "--all", str(tmp_path / "empty")]) == 0
    assert "no learner's folder here" in capsys.readouterr().out


def test_a_teachers_machine_runs_nothing_of_the_learners(class_folder, tmp_path):
    folder = class_folder / "gus" / "solutions"
    folder.mkdir(parents=True)
    trace = tmp_path / "it ran"
    (folder / "mhc.site.py").write_text(f"open({str(trace)!r}, 'w')\ndef site(): pass\n")
    row, = report.classroom(class_folder)
    assert row["yours"] == 1 and not trace.exists()


@pytest.mark.slow
def test_the_command_without_a_home(tmp_path):
    """HOME is a folder that cannot be written to, or made."""
    environment = {key: value for key, value in os.environ.items() if key != "MINIDS_HOME"}
    (tmp_path / "file").write_text("")
    out = subprocess.run([sys.executable, "-m", "minids", "progress"], text=True,
                         env={**environment, "HOME": str(tmp_path / "file"),
                              "USERPROFILE": str(tmp_path / "file")}, capture_output=True)
    assert out.returncode == 2 and "Set MINIDS_HOME" in out.stderr
    assert "Traceback" not in out.stderr and out.stderr.count("\n") == 1
