"""Devices: tests on a pretended accelerator, each file of them in a process of its own."""

import pretended
import pytest


def test_the_pretended_accelerator():
    pretended.run("tests/system/on_pretended.py")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-m", "not slow"), ("-m", "slow", "-k", "not all")])
def test_on_an_accelerator(options):
    """What takes longest is left out on the device that has all number types."""
    pretended.run("tests/system/on_devices.py", *options)
