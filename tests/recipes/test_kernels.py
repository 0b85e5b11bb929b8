"""Compiling all kernels at once, as the set-up does."""

import pytest

from minids.model.kernels import compiled
from minids.recipes.kernels import compile_all


def test_nothing_is_compiled_where_kernels_are_off(monkeypatch):
    monkeypatch.setattr(compiled, "reason", "numba is not installed")
    lines = []
    assert compile_all(lines.append) == 0
    assert lines == ["kernels are not used: numba is not installed"]


@pytest.mark.slow
@pytest.mark.skipif(compiled.why_off() is not None, reason="kernels are off")
def test_a_small_model_compiles_every_kernel_that_it_uses():
    """A second time nothing is left to compile."""
    compile_all(lambda line: None)
    before = [list(kernel.signatures) for kernel in compiled.KERNELS]
    compile_all(lambda line: None)
    assert [list(kernel.signatures) for kernel in compiled.KERNELS] == before
    assert all(len(signatures) <= 1 for signatures in before), "a kernel gets several types"
