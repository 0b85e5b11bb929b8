"""Compiling all kernels at once, as the set-up does."""

import subprocess
import sys

import pytest

from minids.model.kernels import compiled
from minids.recipes.kernels import compile_all


def test_nothing_is_compiled_where_kernels_are_off(monkeypatch):
    monkeypatch.setattr(compiled, "reason", "numba is not installed")
    lines = []
    assert compile_all(lines.append) == 0
    assert lines == ["kernels are not used: numba is not installed"]


CHECK = """
from minids.model.kernels import compiled
from minids.recipes.kernels import compile_all
compile_all(lambda line: None)
before = [list(kernel.signatures) for kernel in compiled.KERNELS]
compile_all(lambda line: None)
assert [list(kernel.signatures) for kernel in compiled.KERNELS] == before
assert all(len(signatures) <= 1 for signatures in before), "a kernel gets several types"
"""


@pytest.mark.slow(60)
@pytest.mark.skipif(compiled.why_off() is not None, reason="kernels are off")
def test_a_small_model_compiles_every_kernel_that_it_uses():
    """A second time nothing is left to compile. In a process of its own: other tests call kernels
    with types that a model does not use."""
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
