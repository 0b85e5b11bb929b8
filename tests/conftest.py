"""Shared by all tests: minids before torch (see minids/system/process.py), a folder of their own for progress, no figure left open."""

import sys

import pytest

import minids  # noqa: F401


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the progress of the person who runs it; checks answer as in the learner's edition."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MINIDS_HOME", str(home))
    monkeypatch.delenv("MINIDS_STRICT", raising=False)
    return home


@pytest.fixture(autouse=True)
def no_figures():
    """What a test drew is closed behind it."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
