"""How kernels are compiled, stored and switched off, each in processes of their own."""

import os
import subprocess
import sys

import pytest

from minids.model.kernels import compiled

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(compiled.numba is None, reason="numba is not installed")]

PROBE = '''
import torch
from minids.model.kernels import compiled
from minids.model.kernels.compiled import kernel, on, prange

@kernel
def double(x, y):
    for i in prange(len(x)):
        y[i] = 2 * x[i]

def run(x):
    """Twice x, and whether a kernel computed it."""
    if not on("double", x):
        return 2 * x, False
    y = torch.empty_like(x)
    double(x.numpy(), y.numpy())
    return y, True

def right(with_kernel=True):
    x = torch.randn(100_000)
    y, used = run(x)
    assert torch.equal(y, 2 * x) and used == with_kernel, compiled.why_off()
'''
HITS = "import minids_probe as p; p.right(); print(sum(p.double.stats.cache_hits.values()))"


@pytest.fixture
def child(tmp_path):
    """Run a program in a new process beside `minids_probe`; returns what it printed."""
    (tmp_path / "minids_probe.py").write_text(PROBE)

    def start(program, **environment):
        settings = {name: value for name, value in os.environ.items()
                    if not name.startswith(("NUMBA_", "MINIDS_KERNELS"))}
        settings |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_NUM_THREADS": "2",
                     "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])} | environment
        return subprocess.Popen([sys.executable, "-c", program], env=settings, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(program, **environment):
        process = start(program, **environment)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        return out.strip(), err

    run.start, run.cache = start, tmp_path / "cache"
    return run


def test_code_is_stored_and_compiling_is_announced(child):
    hits, said = child(HITS)
    assert hits == "0" and "compiling its kernels" in said
    assert child(HITS) == ("1", "")


DAMAGE = """
import importlib, pathlib, minids_probe as p

def hits():
    importlib.reload(p).right()         # the kernel is a new one, as in a new process
    return sum(p.double.stats.cache_hits.values())

p.right()
for kind in ("nbi", "nbc"):
    for damage in (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"foreign"):
        paths = list(pathlib.Path(CACHE).rglob(f"*.{kind}"))
        for path in paths:
            path.write_bytes(damage(path.read_bytes()))
        print(len(paths) > 0, hits(), hits())
"""


def test_damaged_code_is_compiled_anew(child):
    """Its index or its code: empty, cut short, or something else."""
    out, _ = child(DAMAGE.replace("CACHE", repr(str(child.cache))))
    assert out.split("\n") == ["True 0 1"] * 6


def test_code_that_cannot_be_stored_is_compiled_in_memory(child):
    child.cache.write_text("a file, where a folder should be")
    child(HITS)
    full = ("from numba.core.caching import IndexDataCacheFile as File\n"
            "def full(*_): raise OSError(28, 'No space left on device')\n"
            "File._save_index = File._save_data = full\n")
    child(full + HITS, NUMBA_CACHE_DIR=str(child.cache.parent / "other"))
    child("import os; os.environ.pop('HOME', None)\nfrom pathlib import Path\n"
          "def homeless(): raise RuntimeError\nPath.home = homeless\n" + HITS,
          NUMBA_CACHE_DIR="", XDG_CACHE_HOME="", LOCALAPPDATA="")


def test_two_processes_compile_at_once(child):
    both = [child.start(HITS) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    assert child(HITS)[0] == "1"


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_two_threads_run_kernels_at_once(child, layer):
    child("import threading, minids_probe as p\n"
          "p.right(); failed = []\n"
          "def many():\n"
          "    try:\n"
          "        for _ in range(300): p.right()\n"
          "    except BaseException as error: failed.append(error)\n"
          "threads = [threading.Thread(target=many) for _ in range(2)]\n"
          "for t in threads: t.start()\n"
          "for t in threads: t.join()\n"
          "assert not failed, failed", NUMBA_THREADING_LAYER=layer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_a_forked_process_computes_with_torch(child, layer):
    child("import os, torch, minids_probe as p\n"
          "torch.set_num_threads(1); p.right()\n"
          "pid = os.fork()\n"
          "if pid == 0: p.right(with_kernel=False); os._exit(7)\n"
          "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
          "p.right()", NUMBA_THREADING_LAYER=layer)


@pytest.mark.parametrize("name, value, why", [
    ("MINIDS_KERNELS", "0", "MINIDS_KERNELS=0"),
    ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT"),
    ("NUMBA_THREADING_LAYER", "tbb", "do not start"),
])
def test_why_kernels_are_off(child, name, value, why):
    out, _ = child("import minids_probe as p; p.right(with_kernel=False); "
                   "print(p.compiled.why_off())", **{name: value})
    assert why in out


@pytest.mark.parametrize("threads", [1, 2])
def test_starting_numba_leaves_the_number_of_torchs_threads(child, threads):
    out, _ = child(f"import torch, minids_probe as p; torch.set_num_threads({threads}); p.right(); "
                   "print(torch.get_num_threads())")
    assert out == str(threads)
