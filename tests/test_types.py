"""Types: mypy, as `make lint` runs it; here it runs beside other tests."""

import subprocess
import sys

import pytest

from minids.system import paths


@pytest.mark.slow(10)
def test_types():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=paths.ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
