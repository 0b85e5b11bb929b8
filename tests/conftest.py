"""Shared by all tests: each one has its own folder for progress, and no figure stays open.

minids is imported before torch, see minids/system/process.py.
"""

import sys

import pytest

import minids  # noqa: F401


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """Keep tests away from the progress, lessons and settings of the person who runs them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MINIDS_HOME", str(home))
    monkeypatch.setenv("MINIDS_WORK", str(home / "work"))
    for name in ("MINIDS_STRICT", "MINIDS_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def no_figures():
    """Close the figures that a test has drawn."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
