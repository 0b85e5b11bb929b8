"""`make test` in several processes: their number, and what starts first."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests import workers


def item(path, *slow):
    """A test as pytest hands it to hooks, with the arguments of its mark `slow`, if it has one."""
    mark = SimpleNamespace(args=slow[0]) if slow else None
    return SimpleNamespace(path=Path(path), get_closest_marker=lambda name: mark)


def test_the_longest_files_start_first_and_stay_whole():
    quick, slow, slower = "test_a.py", "test_b.py", "test_c.py"
    items = [item(quick), item(slow, ()), item(slow), item(slower, (40,)), item(slower),
             item("01_tokens.ipynb"), item("13_distillation.ipynb"), item("13_distillation.ipynb")]
    ordered = workers.longest_first(items)
    assert [i.path.name for i in ordered] == [
        "13_distillation.ipynb", "13_distillation.ipynb", "01_tokens.ipynb", slower, slower, slow,
        slow, quick]
    assert [i for i in ordered if i in items[:5]] == [*items[3:5], *items[1:3], items[0]]


@pytest.mark.parametrize("gigabytes, number", [(1, 1), (5, 2), (64, 4)])
def test_there_are_no_more_processes_than_fit_into_memory(monkeypatch, gigabytes, number):
    free = SimpleNamespace(available=gigabytes << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    proposal = workers.pytest_xdist_auto_num_workers(None)
    next(proposal)
    with pytest.raises(StopIteration) as end:
        proposal.send(4)
    assert end.value.value == number
