"""Devices: tests on a pretended accelerator, each file of them in a process of its own."""

import pretended
import pytest


def test_the_pretended_accelerator():
    pretended.run("tests/system/on_pretended.py")


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    ("-m", "not slow"), ("-m", "slow", "-k", "not all and not apple")])
def test_on_an_accelerator(options):
    """What takes longest runs on the device that lacks most number types, and there alone."""
    pretended.run("tests/system/on_devices.py", *options)
