"""The minutes of a lesson are computed, and printed everywhere alike."""

import pytest

from minids.errors import MinidsError
from minids.learn import minutes

LESSON = '''# %% [markdown]
# # 99 A lesson
# {words}
#
# **Predict before you run:** what comes out?
#
# | a | b |
# | --- | --- |
# | 1 | 2 |
#
# ### Exercise 1: add (core, easy, 5 minutes)

# %%
def add(a, b):
    """a + b"""
    ### BEGIN SOLUTION
    total = a
    total += b
    return total
    ### END SOLUTION

# %% jupyter={{"source_hidden": true}}
hidden = 1
style.show(figure, "a line")

# %% [markdown]
# ### Exercise 2: more
# *Extra, 8 minutes.* On your own.
#
# ## Questions to discuss
# <details><summary>1. Why?</summary>
#
# {answer}
# </details>
'''


def lesson(tmp_path, text=LESSON):
    path = tmp_path / "notebooks" / "source" / "99_lesson.py"
    path.parent.mkdir(parents=True)
    path.write_text(text.format(words="word " * 360, answer="word " * 180))
    return path


def test_each_part_counts(tmp_path):
    found = minutes.minutes(lesson(tmp_path))
    assert 2.5 < found.reading < 2.7        # 360 words, half of 180, and those of the headings
    assert found.code == 3 / 15             # the stub; neither the solution nor the folded cell
    assert (found.figures, found.predictions, found.widgets) == (2, 1, 0)
    assert (found.exercises, found.extra, found.discussion) == (5, 8, 2)
    assert found.total == round(found.reading + 0.2 + 2 + 1 + 5 + 2)


def test_an_exercise_states_its_minutes(tmp_path):
    path = lesson(tmp_path, LESSON.replace(" (core, easy, 5 minutes)", ""))
    with pytest.raises(MinidsError, match="expected minutes in the heading of exercise"):
        minutes.minutes(path)


def test_all_places_print_the_computed_minutes():
    assert minutes.stale() == []
