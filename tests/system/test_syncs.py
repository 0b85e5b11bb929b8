"""How often the host waits for a GPU: counted on a pretended one, in a process of its own."""

import pytest

from tests import pretended


@pytest.mark.slow(40)
def test_loops_wait_for_a_gpu_once_a_step():
    pretended.run("tests/system/on_syncs.py")
