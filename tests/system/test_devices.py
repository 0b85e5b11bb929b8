"""Devices: what tests on a pretended accelerator find, each file in a process of its own."""

from tests import pretended


def test_the_pretended_accelerator():
    pretended.run("tests/system/on_pretended.py")
