"""Devices: tests on a pretended accelerator, each file of them in a process of its own."""

import pretended
import pytest


@pytest.mark.slow
def test_the_pretended_accelerator():
    pretended.run("tests/system/on_pretended.py")


@pytest.mark.slow(70)
def test_on_an_accelerator():
    """What takes longest runs on the device that lacks most number types, and there alone."""
    pretended.run("tests/system/on_devices.py", "-k", "not slow or least")
