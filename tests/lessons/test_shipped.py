"""A built notebook that a learner opened or solved: tests judge what git has, builds keep it."""

import subprocess

import nbformat
import pytest

from minids.errors import MinidsError
from minids.learn import course, lint, shipped
from minids.system import paths

TEXT = '''# %% [markdown]
# # A tiny lesson
# After this you can add.

# %%
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% [markdown]
# ## Key points
'''
LANGUAGE = {"name": "python", "version": "3.12.3", "file_extension": ".py"}


def git(folder, *argv):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *argv], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The learner's edition of lesson 99, built (as if run) and committed."""
    (tmp_path / "notebooks" / "source").mkdir(parents=True)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(course, "execute", lambda notebook, *args, **kw: numbered(notebook))
    (tmp_path / "notebooks" / "source" / "99_tiny.py").write_text(TEXT)
    course.build()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "built")
    return tmp_path / "notebooks" / "99_tiny.ipynb"


def numbered(notebook):
    """Number the code cells, as running them does."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
    return notebook


def change(path, edit):
    """Change the notebook at `path`, as a person or JupyterLab does."""
    notebook = nbformat.read(path, 4)
    edit(notebook)
    nbformat.write(notebook, path)


def opened(notebook):
    notebook.metadata.language_info = nbformat.from_dict(LANGUAGE)


def run_again(notebook):
    notebook.cells[1].execution_count = 7
    notebook.cells[1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="x",
                                                        traceback=["/home/me/x.py"])]


def solved(notebook):
    opened(notebook)
    notebook.cells[1].source = "def double(x):\n    return x + x"


def added(notebook):
    notebook.cells.append(nbformat.v4.new_code_cell("!pip install x"))


@pytest.mark.parametrize("edit", [opened, run_again, solved, added])
def test_what_learners_do_is_no_finding(built, edit, tmp_path, capsys):
    change(built, edit)
    bytes_ = built.read_bytes()
    assert lint.lint() == []
    assert "note: notebooks/99_tiny.ipynb was changed by hand" in capsys.readouterr().out
    copies = course.copy_shipped(tmp_path / "copies")
    assert [nbformat.read(path, 4) for path in copies] == [shipped.from_git(built)]
    assert built.read_bytes() == bytes_


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{}"),
                                    lambda path: path.write_text("<<<<<<< HEAD"),
                                    lambda path: path.unlink()])
def test_a_notebook_that_is_no_more_is_no_finding(built, damage, capsys):
    damage(built)
    assert lint.lint() == []
    assert "note: notebooks/99_tiny.ipynb" in capsys.readouterr().out


def test_an_intact_notebook_is_judged_without_a_word(built, tmp_path, capsys):
    assert lint.lint() == [] and len(course.copy_shipped(tmp_path / "copies")) == 1
    assert capsys.readouterr().out == ""


def test_a_build_is_judged_before_it_is_committed(built, capsys):
    source = course.sources()[0]
    source.write_text(TEXT.replace("add.", "add, in /home/me/x."))
    assert "differs from the source's" in lint.lint()[0]
    course.build()
    capsys.readouterr()
    assert "a path of one machine in the text" in lint.lint()[0]
    assert "note" not in capsys.readouterr().out
    # And it may be built again: the maker of the lesson has edited no notebook.
    source.write_text(TEXT)
    course.build()
    assert lint.lint() == []


def test_an_edited_notebook_in_git_is_a_finding(built):
    change(built, solved)
    git(built.parent, "commit", "-qam", "solved")
    assert any("differs from the source's" in text for text in lint.lint())


def test_without_git_an_edited_notebook_is_not_judged(built, capsys, monkeypatch):
    change(built, solved)
    monkeypatch.setattr(shipped, "from_git", lambda path: None)
    assert lint.lint() == []
    assert "is not judged: there is no version of it in git" in capsys.readouterr().out


def test_git_is_asked_about_this_folder_whatever_a_hook_has_set(built, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert shipped.from_git(built) == nbformat.read(built, 4)


def test_a_build_overwrites_no_answer(built, capsys):
    change(built, solved)
    answer = built.read_bytes()
    with pytest.raises(MinidsError, match="99_tiny.ipynb: changed by hand .*--force"):
        course.build()
    assert built.read_bytes() == answer
    for kept in ("99_tiny.mine.ipynb", "99_tiny.mine-2.ipynb"):
        course.build(force=True)
        assert built.with_name(kept).read_bytes() == answer
        assert kept in capsys.readouterr().out and lint.lint() == []
        built.write_bytes(answer)


def test_a_notebook_that_was_only_opened_may_be_built_again(built):
    change(built, opened)
    course.build()
    assert lint.lint() == [] and list(built.parent.glob("*.mine*")) == []


def test_kept_outputs_are_those_that_were_built(built):
    change(built, run_again)
    course.build(keep=True)
    assert nbformat.read(built, 4) == shipped.from_git(built)


def test_notebooks_from_before_the_digest_are_compared_with_git(built):
    change(built, lambda notebook: notebook.metadata.pop("minids"))
    git(built.parent, "commit", "-qam", "old")
    assert not shipped.edited(built)
    change(built, solved)
    assert shipped.edited(built)
