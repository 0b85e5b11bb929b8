"""The number of threads of a run: measured at the start, one beside busy processes."""

import pytest
import torch

from minids.pretrain import threads
from minids.pretrain.threads import LONGEST, PATIENCE, Watch


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "watch", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def passing(watch, shares, seconds=5.0):
    """The numbers of threads after periods in which the thread waited for these shares of time."""
    return [watch.decide(watch.now + seconds, watch.waited + share * seconds) for share in shares]


def test_one_thread_beside_a_busy_process_and_more_afterwards():
    watch = Watch(4, 4, 0.0, 0.0)
    assert passing(watch, [0.0, 0.1]) == [4, 4]
    assert passing(watch, [0.5, 0.4, 0.2]) == [1, 1, 1]
    free = passing(watch, [0.0] * 8)
    assert free[0] == 1 and free[-1] == 4


def test_attempts_in_vain_become_rare():
    watch, changes = Watch(2, 2, 0.0, 0.0), []
    for _ in range(2000):       # it waits whenever it has two threads
        before = watch.threads
        passing(watch, [0.5 if before == 2 else 0.0])
        if watch.threads != before and watch.threads == 2:
            changes.append(watch.now)
    gaps = [late - early for early, late in zip(changes, changes[1:])]
    assert PATIENCE < gaps[0] < gaps[1] < gaps[-1] <= LONGEST + 15


def test_looks_are_not_too_frequent():
    watch = Watch(2, 2, 0.0, 0.0)
    assert watch.decide(0.1, 0.1) == 2


@pytest.mark.parametrize("one, several, expected", [(0.2, 0.1, 2), (0.1, 0.2, 1), (0.1, 0.1, 1)])
def test_the_faster_number_is_used(monkeypatch, capsys, one, several, expected):
    monkeypatch.setattr(threads, "measure", lambda most: (one, several))
    threads.choose()
    assert torch.get_num_threads() == expected
    assert capsys.readouterr().out.startswith(f"threads: {expected} ")


def test_the_users_choice_stays(monkeypatch, capsys):
    monkeypatch.setattr(threads, "measure", lambda most: 1 / 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads.choose()
    threads.look()
    assert torch.get_num_threads() == 2 and not capsys.readouterr().out


def test_a_look_changes_torchs_threads(monkeypatch, capsys):
    watch = Watch(2, 2, -100.0, 0.0)
    monkeypatch.setattr(threads, "watch", watch)
    monkeypatch.setattr(threads.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(threads, "waiting", lambda: 50.0)
    threads.look()
    assert torch.get_num_threads() == 1 and "other processes" in capsys.readouterr().err


@pytest.mark.parametrize("several, expected", [(0.1, 2), (0.3, 1)])
def test_more_threads_are_measured_again_once_the_cores_are_free(monkeypatch, several, expected):
    watch = Watch(2, 1, -100.0, 0.0)
    monkeypatch.setattr(threads, "watch", watch)
    monkeypatch.setattr(threads.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(threads, "waiting", lambda: 0.0)
    monkeypatch.setattr(threads, "measure", lambda most: (0.2, several))
    torch.set_num_threads(1)
    threads.look()
    assert torch.get_num_threads() == watch.threads == expected


@pytest.mark.parametrize("share, watched", [(0.5, True), (0.0, False)])
def test_one_thread_stays_where_waking_is_what_costs(monkeypatch, share, watched):
    times = iter([0.0, 10.0])
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(times))
    waits = iter([0.0, 10.0 * share])
    monkeypatch.setattr(threads, "waiting", lambda: next(waits))
    monkeypatch.setattr(threads, "measure", lambda most: (0.1, 0.2))
    threads.choose()
    assert (threads.watch is not None) == watched


def test_measuring_leaves_the_random_numbers_and_the_threads():
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    assert min(threads.measure(2)) > 0
    assert torch.equal(torch.randn(3), expected) and torch.get_num_threads() == 2
