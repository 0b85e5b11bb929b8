"""A learner's copies of the lessons: made, refreshed, updated and reset, with every answer kept."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minids import cli
from minids.errors import MinidsError
from minids.learn import carry, work
from minids.learn import lab as jupyter
from minids.system import paths

STUB = 'def double(x):\n    """Twice x."""\n    raise NotImplementedError("your turn")'
ANSWER = 'def double(x):\n    """Twice x."""\n    return 2 * x'


def code(source, id, **metadata):
    return new_code_cell(source, id=id, metadata=metadata)


def lesson():
    """A lesson with one exercise."""
    return new_notebook(cells=[
        new_markdown_cell("# Doubling\n[glossary](GLOSSARY.md), [data](../data/x/README.md)",
                          id="doubling-1"),
        code("import math", "doubling-2"),
        code(STUB, "a-double", minids={"exercises": ["a.double"]}),
        code('double = check("a.double", double)', "a-double-check"),
        new_markdown_cell("What did you find?", id="end-1"),
        code("print(double(2))", "end-2"),
    ])


def newer():
    """The next version: a cell is new, one has another text, one is gone, the stub has changed."""
    notebook = lesson()
    notebook.cells[1].source = "import math, torch"
    notebook.cells[2].source = STUB.replace("Twice x", "2 x")
    notebook.cells.insert(1, new_markdown_cell("New here.", id="doubling-new"))
    del notebook.cells[-1]
    return notebook


def cell(notebook, id):
    return next(cell for cell in notebook.cells if cell.get("id") == id)


def sources(notebook):
    return [cell.source for cell in notebook.cells]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A clone with two lessons in a git repository; the copies are in its work/."""
    root = tmp_path / "clone"
    (root / "notebooks").mkdir(parents=True)
    (root / "data" / "x").mkdir(parents=True)
    (root / "data" / "x" / "README.md").write_text("About x.\n")
    (root / "notebooks" / "GLOSSARY.md").write_text("Words.\n")
    (root / ".gitignore").write_text("work/\n")
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "NOTEBOOKS", root / "notebooks")
    monkeypatch.delenv("MINIDS_WORK", raising=False)
    ship(root, "00_start_here")
    ship(root, "07_double")
    git(root, "init", "-q")
    commit(root)
    return root


def ship(root, name, notebook=None):
    nbformat.write(notebook or lesson(), root / "notebooks" / f"{name}.ipynb")


def release(root, *names):
    """The next version of these lessons arrives, as with `git pull`."""
    for name in names:
        ship(root, name, newer())
    commit(root)


def git(root, *words):
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return subprocess.run(["git", *settings, *words], cwd=root, check=True, capture_output=True,
                          text=True).stdout


def commit(root):
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a version")


def copy_of(root, name="07_double"):
    return nbformat.read(root / "work" / f"{name}.ipynb", as_version=4)


def edit(root, change, name="07_double", folder="work"):
    """Let `change` edit the notebook's cells, as a learner does."""
    path = root / folder / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def answer(notebook):
    solved = cell(notebook, "a-double")
    solved.source, solved.execution_count = ANSWER, 3
    cell(notebook, "a-double-check").outputs = [new_output("stream", name="stdout", text="passed")]


# ---- copies ----

def test_missing_copies_are_made_with_what_their_links_need(course):
    folder = work.prepare()
    assert folder == course / "work"
    assert copy_of(course) == lesson()
    assert (folder / "GLOSSARY.md").read_text() == "Words.\n"
    assert (folder / "data" / "x" / "README.md").read_text() == "About x.\n"
    assert git(course, "status", "--porcelain") == ""


def test_a_copy_without_changes_is_refreshed_and_one_with_changes_waits(course, capsys):
    work.prepare()
    edit(course, answer, "00_start_here")
    edit(course, lambda notebook: setattr(cell(notebook, "end-2"), "outputs",
                                          [new_output("stream", text="4")]))
    release(course, "00_start_here", "07_double")
    before = copy_of(course, "00_start_here")
    work.prepare()
    assert copy_of(course) == newer()
    assert copy_of(course, "00_start_here") == before
    out = capsys.readouterr().out
    assert "Newer versions of 00_start_here are there" in out and "course update" in out


def test_what_the_learner_ran_stays_where_the_lesson_is_the_same(course):
    work.prepare()
    edit(course, lambda notebook: setattr(cell(notebook, "end-2"), "outputs",
                                          [new_output("stream", text="4")]))
    before = copy_of(course)
    work.prepare()
    assert copy_of(course) == before


@pytest.mark.parametrize("damage", ["", "{", "<<<<<<< HEAD\n{}\n=======\n", "[]", "\x00\xff"])
def test_an_unreadable_copy_is_kept_and_the_lesson_starts_anew(course, damage, capsys):
    work.prepare()
    path = course / "work" / "07_double.ipynb"
    path.write_text(damage, encoding="utf-8")
    work.prepare()
    assert copy_of(course) == lesson()
    assert path.with_name("07_double.unreadable-1.ipynb").read_text(encoding="utf-8") == damage
    assert "kept as 07_double.unreadable-1.ipynb" in capsys.readouterr().out


def test_a_glossary_with_the_learners_notes_stays(course):
    work.prepare()
    glossary = course / "work" / "GLOSSARY.md"
    (course / "notebooks" / "GLOSSARY.md").write_text("More words.\n")
    work.prepare()
    assert glossary.read_text() == "More words.\n"
    glossary.write_text("My words.\n")
    (course / "notebooks" / "GLOSSARY.md").write_text("Other words.\n")
    work.prepare()
    assert glossary.read_text() == "My words.\n"


# ---- updates ----

def test_an_update_brings_the_lesson_and_keeps_the_answer(course, capsys):
    work.prepare()
    edit(course, answer)
    release(course, "07_double")
    work.update(["07"])
    updated = copy_of(course)
    assert [cell.id for cell in updated.cells] == [cell.id for cell in newer().cells]
    assert cell(updated, "a-double").source == ANSWER
    assert cell(updated, "a-double-check").outputs[0].text == "passed"
    assert cell(updated, "doubling-2").source == "import math, torch"
    out = capsys.readouterr().out
    assert "07_double: updated, with your answers\n" in out and out.count("Reload") == 1
    assert not list((course / "work").glob("*unplaced*"))
    work.update(["07"])
    assert copy_of(course) == updated and "up to date" in capsys.readouterr().out


def test_answers_are_mentioned_only_where_there_are_some(course, capsys):
    work.prepare()
    edit(course, answer)
    release(course, "00_start_here", "07_double")
    work.update()
    out = capsys.readouterr().out
    assert "00_start_here: updated\n" in out and "07_double: updated, with your answers\n" in out
    assert out.count("Reload Notebook") == 1


def test_a_copy_that_came_without_its_records_is_updated(course, capsys):
    work.prepare()
    edit(course, answer)
    shutil.rmtree(course / "work" / ".minids")      # as when only the notebooks were copied
    work.update()
    assert cell(copy_of(course), "a-double").source == ANSWER
    capsys.readouterr()
    work.update()
    assert capsys.readouterr().out.count("up to date") == 2


def test_what_cannot_be_placed_is_kept_beside(course, capsys):
    work.prepare()

    def change(notebook):
        cell(notebook, "doubling-2").source = "import math  # mine"     # the lesson changes it too
        cell(notebook, "end-2").source = "print(double(3))"             # the lesson drops it
    edit(course, change)
    release(course, "07_double")
    work.update()
    beside = nbformat.read(course / "work" / "07_double.unplaced-1.ipynb", as_version=4)
    nbformat.validate(beside)
    assert {"import math  # mine", "print(double(3))"} <= set(sources(beside))
    assert "The lesson no longer has this cell." in sources(beside)
    assert "2 of your cells had no place in it, see 07_double.unplaced-1" in capsys.readouterr().out
    edit(course, lambda notebook: setattr(notebook.cells[1], "source", "Mine."))
    ship(course, "07_double")
    commit(course)
    work.update()
    again = nbformat.read(course / "work" / "07_double.unplaced-2.ipynb", as_version=4)
    assert "Mine." in sources(again)
    assert beside == nbformat.read(course / "work" / "07_double.unplaced-1.ipynb", as_version=4)


def test_a_half_answer_to_a_changed_exercise_is_kept_beside():
    mine = lesson()
    half = STUB.replace("    raise", "    # first 2 * x, then ...\n    raise")
    cell(mine, "a-double").source = half
    merged, unplaced = carry.merge(lesson(), mine, newer())
    assert cell(merged, "a-double").source == cell(newer(), "a-double").source
    assert [item.cell.source for item in unplaced] == [half]


def test_cells_that_the_learner_added_stay_behind_the_cell_they_followed():
    mine = lesson()
    mine.cells.insert(0, new_markdown_cell("my title", id="m0"))
    mine.cells.insert(3, code("# try 1", "m1"))
    mine.cells.insert(4, code("# try 2", "doubling-new"))           # an id that the lesson takes
    mine.cells.append(code("# my end", "m3"))
    mine.cells.append(code("  ", "m4"))
    merged, unplaced = carry.merge(lesson(), mine, newer())
    assert not unplaced
    texts = sources(merged)
    assert texts[0] == "my title"
    at = texts.index("import math, torch")
    assert texts[at + 1:at + 3] == ["# try 1", "# try 2"]
    assert texts[-2:] == ["What did you find?", "# my end"]
    ids = [cell.id for cell in merged.cells]
    assert len(set(ids)) == len(ids)
    nbformat.validate(merged)


def test_an_answer_in_a_moved_and_in_a_copied_cell_is_found():
    mine = lesson()
    answer(mine)
    solved = mine.cells.pop(2)
    mine.cells.append(solved)
    merged, unplaced = carry.merge(lesson(), mine, newer())
    assert cell(merged, "a-double").source == ANSWER and not unplaced

    mine = lesson()
    second = code(ANSWER, "pasted", minids={"exercises": ["a.double"]})
    mine.cells.insert(2, second)                        # the exercise's own cell is below
    merged, unplaced = carry.merge(lesson(), mine, lesson())
    assert cell(merged, "a-double").source == STUB
    assert cell(merged, "pasted").source == ANSWER and not unplaced


def test_a_cell_that_the_learner_deleted_comes_back():
    mine = lesson()
    del mine.cells[3]
    merged, unplaced = carry.merge(lesson(), mine, newer())
    assert sources(merged) == sources(newer()) and not unplaced


def test_a_new_number_in_the_ids_does_not_confuse_cells():
    """A heading's cells are numbered: a new cell in front shifts the ids of all others."""
    base = new_notebook(cells=[code(f"x = {i}", f"part-{i}") for i in range(1, 5)])
    new = new_notebook(cells=[code("x = 0", "part-1")]
                       + [code(f"x = {i}", f"part-{i + 1}") for i in range(1, 5)])
    mine = new_notebook(cells=[code(f"x = {i}", f"part-{i}") for i in range(1, 5)])
    mine.cells[1].source = "x = 22"
    merged, unplaced = carry.merge(base, mine, new)
    assert sources(merged) == ["x = 0", "x = 1", "x = 22", "x = 3", "x = 4"] and not unplaced


def test_answers_move_to_a_lesson_with_other_ids():
    """Older lessons have other ids, and no metadata that names the exercise."""
    base = lesson()
    for number, old in enumerate(base.cells):
        old.id, old.metadata = f"{number:012x}", nbformat.from_dict({})
    mine = nbformat.from_dict(json.loads(json.dumps(base)))
    mine.cells[2].source = ANSWER
    mine.cells.insert(3, code("# mine", "m1"))
    merged, unplaced = carry.merge(base, mine, newer())
    assert cell(merged, "a-double").source == ANSWER and not unplaced
    texts = sources(merged)
    assert texts[texts.index(ANSWER) + 1] == "# mine"


def test_without_the_version_it_came_from_nothing_is_lost():
    mine = lesson()
    answer(mine)
    cell(mine, "end-2").source = "print(double(3))"
    mine.cells.append(code("# mine", "m1"))
    merged, unplaced = carry.merge(None, mine, newer())
    assert cell(merged, "a-double").source == ANSWER
    everything = sources(merged) + [item.cell.source for item in unplaced]
    assert {ANSWER, "print(double(3))", "# mine"} <= set(everything)
    assert len(merged.cells) == len(newer().cells)


@pytest.mark.slow
def test_every_word_of_the_learner_is_in_the_lesson_or_beside():
    """Random edits of all kinds, random new versions: no text that the learner wrote is lost."""
    for seed in range(300):
        rng = random.Random(seed)
        base = new_notebook(cells=[code(f"cell {i}", f"c-{i}") for i in range(8)])
        mine, new = (nbformat.from_dict(json.loads(json.dumps(base))) for _ in range(2))
        for number in range(rng.randrange(6)):
            edited = rng.choice(mine.cells)
            how = rng.randrange(4)
            if how == 0:
                edited.source = f"mine {number}"
            elif how == 1:
                place = rng.randrange(len(mine.cells) + 1)
                mine.cells.insert(place, code(f"mine {number}", f"m-{number}"))
            elif how == 2 and not edited.source.startswith("mine"):
                mine.cells.remove(edited)
            else:
                rng.shuffle(mine.cells)
        for number in range(rng.randrange(6)):
            how = rng.randrange(3)
            if how == 0:
                rng.choice(new.cells).source = f"new {number}"
            elif how == 1:
                place = rng.randrange(len(new.cells) + 1)
                new.cells.insert(place, code(f"new {number}", f"n-{number}"))
            elif len(new.cells) > 1:
                new.cells.remove(rng.choice(new.cells))
        merged, unplaced = carry.merge(base if seed % 4 else None, mine, new)
        nbformat.validate(merged)
        kept = sources(merged) + [item.cell.source for item in unplaced]
        written = [text for text in sources(mine) if text.startswith("mine")]
        assert sorted(text for text in kept if text.startswith("mine")) == sorted(written), seed


def test_outputs_and_folds_are_the_learners_where_they_changed_them():
    base, mine, new = lesson(), lesson(), newer()
    for notebook in (base, mine):
        cell(notebook, "doubling-2").outputs = [new_output("stream", text="old")]
    cell(new, "doubling-2").outputs = [new_output("stream", text="new")]
    cell(base, "a-double-check").metadata["jupyter"] = {"outputs_hidden": True}
    cell(new, "a-double-check").metadata["jupyter"] = {"outputs_hidden": True}
    mine.metadata["widgets"] = {"state": {"state": {"mine": 1}}}
    new.metadata["widgets"] = {"state": {"state": {"new": 1}}}
    merged, _ = carry.merge(base, mine, new)
    assert cell(merged, "doubling-2").outputs[0].text == "new"
    assert "jupyter" not in cell(merged, "a-double-check").metadata
    assert merged.metadata["widgets"]["state"]["state"] == {"mine": 1, "new": 1}


def test_a_lesson_with_another_number_takes_the_answers_along(course, capsys):
    work.prepare()
    edit(course, answer)
    git(course, "mv", "notebooks/07_double.ipynb", "notebooks/09_double.ipynb")
    release(course, "09_double")
    work.prepare()
    assert cell(copy_of(course, "09_double"), "a-double").source == ANSWER
    assert not (course / "work" / "07_double.ipynb").exists()
    assert cell(copy_of(course, "07_double.old-1"), "a-double").source == ANSWER
    assert "07_double is now 09_double, with your answers" in capsys.readouterr().out
    work.update()
    assert "09_double: up to date" in capsys.readouterr().out


# ---- reset, status, names ----

def test_a_reset_keeps_the_old_copy_beside(course, capsys):
    work.prepare()
    for number in (1, 2):
        edit(course, answer)
        work.reset("07")
        assert copy_of(course) == lesson()
        assert cell(copy_of(course, f"07_double.old-{number}"), "a-double").source == ANSWER
    assert "07_double: started again; your old copy is 07_double.old-2" in capsys.readouterr().out


def test_the_commands_say_what_they_do(course, capsys):
    assert cli.main(["course", "update", "07"]) == 0
    edit(course, answer)
    release(course, "07_double")
    assert cli.main(["course", "status"]) == 0
    out = capsys.readouterr().out
    assert "07_double                        changed by you; a newer version is there" in out
    assert cli.main(["course", "reset", "08"]) == 2
    assert "no lesson '08': expected a number" in capsys.readouterr().err


def test_a_number_means_the_core_lesson_first(course):
    ship(course, "07_double_deeper")
    assert work.lessons(["07"]) == ["07_double", "07_double_deeper"]
    assert work.lessons(["07_double"]) == ["07_double"]
    assert work.lessons(["7", "0"]) == ["07_double", "07_double_deeper", "00_start_here"]
    assert work.lessons(["notebooks/07_double.ipynb"]) == ["07_double"]
    for name in ("7x", "", "8890"):
        with pytest.raises(MinidsError, match="no lesson .*: expected a number from 00 to 07, or"):
            work.lessons([name])


# ---- edits of the shipped notebooks ----

def test_edits_in_notebooks_become_the_copy_and_pull_works_after_the_named_command(course, capsys):
    edit(course, answer, folder="notebooks")
    work.prepare()
    assert cell(copy_of(course), "a-double").source == ANSWER
    out = capsys.readouterr().out
    assert "What you wrote is now in your own copy" in out
    assert "git checkout -- notebooks/07_double.ipynb" in out
    work.prepare()
    assert "What you wrote" not in capsys.readouterr().out
    git(course, "checkout", "--", "notebooks/07_double.ipynb")
    work.prepare()
    assert capsys.readouterr().out == ""
    assert cell(copy_of(course), "a-double").source == ANSWER
    release(course, "07_double")
    work.update()
    assert cell(copy_of(course), "a-double").source == ANSWER


def test_edits_in_notebooks_become_a_copy_in_which_nothing_was_changed(course, capsys):
    work.prepare()
    edit(course, answer, folder="notebooks")
    work.prepare()
    assert "What you wrote is now in your own copy" in capsys.readouterr().out
    assert cell(copy_of(course), "a-double").source == ANSWER
    assert not list((course / "work").glob("*from-notebooks*"))


def test_edits_in_notebooks_are_kept_beside_a_copy_that_was_changed(course, capsys):
    work.prepare()
    note = new_markdown_cell("Mine.", id="mine")
    edit(course, lambda notebook: notebook.cells.append(note))
    edit(course, answer, folder="notebooks")
    for _ in range(2):
        work.prepare()
        assert cell(copy_of(course), "a-double").source == STUB
        assert copy_of(course).cells[-1].source == "Mine."
    kept = copy_of(course, "07_double.from-notebooks-1")
    assert cell(kept, "a-double").source == ANSWER
    assert len(list((course / "work").glob("*from-notebooks*"))) == 1


def test_a_damaged_shipped_notebook_is_kept_and_git_has_the_lesson(course, capsys):
    path = course / "notebooks" / "07_double.ipynb"
    text = "<<<<<<< Updated upstream\n" + path.read_text()
    path.write_text(text)
    work.prepare()
    assert copy_of(course) == lesson()
    assert (course / "work" / "07_double.from-notebooks-1.ipynb").read_text() == text
    assert "git checkout -- notebooks/07_double.ipynb" in capsys.readouterr().out


def test_a_notebook_that_was_only_opened_counts_as_shipped(course, capsys):
    edit(course, lambda notebook: notebook.metadata.update(language_info={"name": "python"}),
         folder="notebooks")
    work.prepare()
    assert copy_of(course) == lesson() and capsys.readouterr().out == ""


def test_a_lesson_that_was_built_anew_counts_as_shipped(course, capsys):
    source = course / "notebooks" / "source"
    source.mkdir()
    (source / "07_double.py").write_text("# %%\nx = 1\n")
    commit(course)
    ship(course, "07_double", new_notebook(cells=[code("x = 1", "a")]))     # agrees with the source
    work.prepare()
    assert sources(copy_of(course)) == ["x = 1"]
    (source / "07_double.py").write_text("# %%\nx = 2\n")                  # edited after the build
    work.prepare()
    assert sources(copy_of(course)) == ["x = 1"]
    assert "was edited" not in capsys.readouterr().out


def test_without_git_the_file_is_the_lesson(course, monkeypatch):
    monkeypatch.setenv("PATH", "")
    edit(course, answer, folder="notebooks")
    work.prepare()
    assert cell(copy_of(course), "a-double").source == ANSWER
    (course / "notebooks" / "00_start_here.ipynb").write_text("{")
    with pytest.raises(MinidsError, match="git checkout -- notebooks/00_start_here.ipynb"):
        work.prepare()


# ---- where the copies are ----

def test_copies_of_a_course_that_cannot_be_written_to_are_in_the_home(course, own_home,
                                                                       monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and (
        mode != os.W_OK or not Path(path).is_relative_to(course)))
    assert work.prepare() == own_home / "work"
    assert nbformat.read(own_home / "work" / "07_double.ipynb", as_version=4) == lesson()
    assert not (course / "work").exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users on Windows")
def test_copies_of_someone_elses_course_are_in_the_home(course, own_home, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: course.stat().st_uid + 1)
    assert paths.work() == own_home / "work"


def test_the_environment_names_another_folder(course, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDS_WORK", str(tmp_path / "here" / "deep"))
    assert work.prepare() == tmp_path / "here" / "deep"
    monkeypatch.setenv("MINIDS_WORK", str(course / ".gitignore"))
    with pytest.raises(MinidsError, match="cannot make .* Set MINIDS_WORK to a folder"):
        paths.work()
    monkeypatch.setenv("MINIDS_WORK", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MinidsError, match="cannot write to .* Set MINIDS_WORK to a folder"):
        paths.work()


def test_no_home_is_one_message(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("MINIDS_HOME")
    monkeypatch.setattr(paths.Path, "home", none)
    with pytest.raises(MinidsError, match="no home folder. Set MINIDS_HOME"):
        paths.home()


def test_copies_can_be_written_though_the_shipped_file_cannot(course):
    path = course / "notebooks" / "07_double.ipynb"
    path.chmod(stat.S_IRUSR)
    work.prepare()
    assert (course / "work" / "07_double.ipynb").stat().st_mode & stat.S_IWUSR


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                    reason="only the superuser can become someone else")
def test_a_stranger_uses_a_read_only_course(course):
    """As another user, with a home of their own, on a clone that only its owner may write to."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "import nbformat\n"
        "from minids.learn import work\n"
        "from minids.system import paths\n"
        "nbformat.read('clone/notebooks/07_double.ipynb', 4)     # loads what validation needs\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "paths.ROOT = Path('clone').absolute(); paths.NOTEBOOKS = paths.ROOT / 'notebooks'\n"
        "print(work.prepare())\n")
    with tempfile.TemporaryDirectory() as folder:       # pytest's own are closed to others
        os.chmod(folder, 0o755)
        home = Path(folder, "home")
        home.mkdir()
        os.chown(home, 65534, 65534)
        clone = shutil.copytree(course, Path(folder, "clone"))
        package = Path(work.__file__).parents[2]
        env = {**os.environ, "MINIDS_HOME": str(home / "own"), "PYTHONPATH": str(package)}
        done = subprocess.run([sys.executable, "-c", program], env=env, cwd=folder,
                              capture_output=True, text=True)
        assert done.stdout.strip() == str(home / "own" / "work"), done.stderr
        assert (home / "own" / "work" / "07_double.ipynb").stat().st_uid == 65534
        assert not (clone / "work").exists() and git(clone, "status", "--porcelain") == ""


# ---- JupyterLab ----

def test_jupyterlab_opens_the_copy_with_our_kernel_and_settings(course, monkeypatch):
    for variable in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONPATH"):
        monkeypatch.setenv(variable, "/elsewhere")
    command = jupyter.command(course / "work", "07_double", ["--no-browser"])
    assert command[0] == sys.executable and command[-1] == "--no-browser"
    assert f"--ServerApp.root_dir={course / 'work'}" in command
    assert "--LabApp.default_url=/lab/tree/07_double.ipynb" in command
    with ExitStack() as stack:
        env = jupyter.environment(stack)
    assert env["PYTHONPATH"] == f"{course}{os.pathsep}/elsewhere"
    extensions, share = env["JUPYTER_PATH"].split(os.pathsep)[:2]
    assert os.path.isfile(os.path.join(extensions, "labextensions", "minids", "package.json"))
    assert share.startswith(sys.prefix)
    settings = env["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0]
    with open(os.path.join(settings, "labconfig", "default_setting_overrides.json")) as file:
        overrides = json.load(file)
    news = overrides["@jupyterlab/apputils-extension:notification"]
    assert news == {"fetchNews": "false", "checkForUpdates": False}
    # sliders stay with the thread that draws: see minids/show/panel.py
    assert overrides["@jupyterlab/apputils-extension:kernels-settings"] == {
        "commsOverSubshells": "disabled"}


def test_a_home_that_cannot_be_written_to_is_replaced_and_said(course, monkeypatch, capsys):
    monkeypatch.setattr(jupyter, "usable", lambda folder: False)
    with ExitStack() as stack:
        env = jupyter.environment(stack)
        folders = [env[name] for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR",
                                          "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")]
        assert all(map(os.path.isdir, folders))
    assert not any(map(os.path.exists, folders))
    assert env["MINIDS_HOME"] == str(course / "work" / ".minids" / "home")
    out = capsys.readouterr().out
    assert "JupyterLab forgets its settings" in out and "set MINIDS_HOME" in out


@pytest.mark.parametrize("argv, own, passed_on", [
    (["lab"], ["lab"], []),
    (["lab", "07"], ["lab", "07"], []),
    (["lab", "--port", "8890"], ["lab"], ["--port", "8890"]),
    (["lab", "07", "--no-browser", "--ip", "0.0.0.0"], ["lab", "07"],
     ["--no-browser", "--ip", "0.0.0.0"]),
    (["lab", "--help"], ["lab", "--help"], []),
    (["course", "update", "07"], ["course", "update", "07"], []),
])
def test_options_of_jupyterlab_are_passed_on(argv, own, passed_on):
    assert cli.options_of_lab(argv) == (own, passed_on)
