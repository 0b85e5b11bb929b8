"""Names of cells: they stay when code and text are edited, and both editions share them."""

import re

import jupytext
import nbformat
import pytest

from minids.learn import cell_ids, checks, course

LESSON = '''# %% [markdown]
# # 07 Four roads
# Text.

# %%
import math

# %% [markdown]
# ## 2. Rows & columns
# ```
# # no heading
# ```

# %%
def other():
    pass

# %% tags=["solution"]
print(other())

# %%
def sinkhorn(x):
    ### BEGIN SOLUTION
    return x
    ### END SOLUTION

def with_gradient(f):
    return f

# %%
def site(x):
    ### BEGIN SOLUTION
    return x
    ### END SOLUTION

# %%
share = 0
### BEGIN SOLUTION
share = 0.5
### END SOLUTION
share = check("mhc.share", share)

# %%
sinkhorn = check("mhc.sinkhorn", with_gradient(sinkhorn))
site = check("mhc.site", site)

# %%
print(1)

# %% [markdown]
# ## 3. Rows & columns

# %%
print(2)
'''


@pytest.fixture
def ids(tmp_path):
    """A function from the text of a lesson and the name of an edition to the ids of its cells."""
    def ids(text, which="learner"):
        path = tmp_path / "99_tiny.py"
        path.write_text(text)
        return [cell.id for cell in course.edition(path, which).cells]
    return ids


def test_cells_are_named_after_checks_and_places(ids):
    learner = ["four-roads-01", "four-roads-02", "rows-columns-01", "rows-columns-02",
               "mhc-sinkhorn", "mhc-site", "mhc-share", "mhc-sinkhorn-check", "rows-columns-03",
               "rows-columns-01-2", "rows-columns-02-2"]
    assert ids(LESSON) == learner
    teacher = ids(LESSON, "teacher")
    assert teacher == [*learner[:4], "rows-columns-solved-01", *learner[4:]]


def test_an_edit_changes_no_id(ids):
    edited = (LESSON.replace("print(1)", "print(3)").replace("Text.", "Another text.")
              .replace("return x", "return x + 0"))
    assert ids(edited) == ids(LESSON)
    # A cell that comes first in its section moves no exercise.
    longer = ids(LESSON.replace("# %%\ndef other", "# %%\nx = 1\n\n# %%\ndef other"))
    assert {i for i in ids(LESSON) if i.startswith("mhc")} <= set(longer)


def test_several_stubs_of_one_check_are_numbered():
    cells = [nbformat.v4.new_code_cell(f"def {name}():\n    ### BEGIN SOLUTION\n"
                                       "    return 1\n    ### END SOLUTION") for name in "ab"]
    cells.append(nbformat.v4.new_code_cell('check("muon.step", lambda: (a(), b()))'))
    assert cell_ids.cell_ids(cells) == ["muon-step", "muon-step-2", "muon-step-check"]


@pytest.mark.slow
def test_each_check_of_the_course_has_one_cell_that_its_learner_fills_in():
    for source in course.sources():
        cells = jupytext.read(source, fmt="py:percent").cells
        learner, teacher = (course.edition(source, which) for which in course.EDITIONS)
        stubs = course.exercise_ids(learner)
        assert stubs == course.exercise_ids(teacher)
        # each check once, and no stub is left over
        assert sorted(sum(stubs.values(), [])) == sorted(checks.lessons()[source.stem])
        assert len(stubs) == sum(cell_ids.BEGIN in cell.source for cell in cells)
        names = [cell.id for cell in teacher.cells]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch("[a-z0-9-]{1,64}", name) for name in names)
        shared = [cell.id for cell in teacher.cells
                  if "solution" not in cell.metadata.get("tags", [])]
        assert shared == [cell.id for cell in learner.cells]
