"""The doctor: whether this machine is ready for the course.

It checks versions, device, threads, kernels, free space, and the files that data/ ships. An
accelerator has to compute a little, with the result that the CPU has, before all is well.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import psutil
import torch
from torch.nn.functional import cross_entropy

from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.generate import generate
from minids.learn import journal
from minids.model.kernels import compiled
from minids.system import distributed, paths
from minids.weights.checkpoint import load

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "matplotlib", "jupyterlab", "ipykernel",
            "ipywidgets", "jupytext", "nbclient")       # numba: see `_kernels`
DISK_GB, MEMORY_GB = 1.0, 2.0   # with less than this, some part of the course fails


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> None:
    """Print the versions that a lesson runs with, on one line."""
    torch = (_version("torch") or "missing").split("+")[0]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"minids {_version('minids')}, torch {torch}, Python {python}")


def doctor() -> bool:
    """Print what is found and, for each problem, a line with its remedy. True if all is well."""
    problems = _python() + _packages() + _torch() + _kernels() + _space() + _shipped_data()
    for problem in problems:
        print(f"PROBLEM      {problem}")
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)}: see the lines above.")
    else:
        print("All is well.")
    return not problems


def _line(name: str, value: str) -> None:
    print(f"{name:12} {value}")


def _python() -> list[str]:
    """Problems with Python and the installation of minids."""
    problems = []
    _line("Python", f"{platform.python_version()} ({_short(sys.executable)})")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python {platform.python_version()} is untested: install 3.11, 3.12 or "
                        "3.13, then run `make clean lab`")
    _line("minids", _version("minids") or "not installed")
    if _version("minids") is None:
        problems.append("minids is not installed: run `pip install -e .` in the clone, "
                        "or `make lab`")
    return problems


def _packages() -> list[str]:
    """Packages that are missing or not of the pinned version."""
    problems, pinned = [], _pins()
    installed = {name: _version(name) for name in PACKAGES}
    _line("packages", ", ".join(f"{name} {version}" for name, version in installed.items()
                                if version))
    for name, version in installed.items():
        if version is None:
            problems.append(f"{name} is missing: run `pip install -r requirements.txt`, "
                            "or `make lab`")
        elif name in pinned and version.split("+")[0] != pinned[name]:
            problems.append(f"{name} is {version}, but the course's outputs were made with "
                            f"{pinned[name]}: run `pip install -r requirements.txt`")
    return problems


def _pins() -> dict[str, str]:
    """{package: version} of the clone's requirements.txt; empty if the file is missing."""
    try:
        text = (paths.ROOT / "requirements.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(entry.split("==") for entry in text.split() if "==" in entry)


def _torch() -> list[str]:
    """Problems with torch, its device and its threads."""
    try:
        device = distributed.device()
    except Exception as error:  # a name in MINIDS_DEVICE, or a driver
        return [f"no device can be used ({error}): set MINIDS_DEVICE to cpu"]
    is_cpu = device.type == "cpu"
    _line("device", "CPU (all lessons run on it)" if is_cpu else
          f"{device} (commands use it; lessons run on the CPU)")
    problems = [] if is_cpu else _accelerator(device)
    threads, cores = torch.get_num_threads(), os.cpu_count()
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
                if name in os.environ]
    _line("threads", ", ".join([f"torch uses {threads} of {cores} cores", *settings]))
    if cores and threads > cores:
        problems.append(f"torch uses {threads} threads on {cores} cores, which slows it down: "
                        "unset OMP_NUM_THREADS")
    return problems


def _kernels() -> list[str]:
    """Say whether models use compiled kernels on a CPU. Without numba the course runs, slower: that
    is no problem; a numba that does not work is one."""
    if why := compiled.why_off():
        slower = "models compute with torch, which is slower on a CPU"
        remedy = "; `pip install -r requirements.txt` brings it" * ("not installed" in why)
        _line("kernels", f"off: {why}; {slower}{remedy}")
        return [f"{why}: run `pip install -r requirements.txt`"] * ("does not load" in why)
    folder, count = compiled.cache_folder(), len(compiled.KERNELS)
    if folder is None:
        _line("kernels", f"numba {_version('numba')}, threads by {compiled.threading_layer()}, "
                         f"{count} kernels, compiled anew in each process")
        return ["compiled kernels cannot be stored: set NUMBA_CACHE_DIR to a folder that you can "
                "write to"]
    stored = compiled.stored()
    _line("kernels", f"numba {_version('numba')}, threads by {compiled.threading_layer()}, "
                     f"{stored} of {count} compiled, in {_home(folder)}"
          + ("; `python -m minids.recipes.kernels` compiles all" if stored < count else ""))
    return []


def _home(path: Path) -> str:
    """A path with ~ for the user's home: stored outputs must not show anyone's folders."""
    home = Path(os.path.expanduser("~"))
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else path.name


def _accelerator(device) -> list[str]:
    """Whether a small model, loaded to the device, gives there the loss that it gives on the CPU,
    and a gradient."""
    try:
        load(paths.DATA / "checkpoints" / "nano")
    except MinidsError:
        return []           # `_shipped_data` says why
    try:
        expected, _ = _loss_and_gradient("cpu")
        loss, norm = _loss_and_gradient(device)
        problem = ""
        if not abs(loss - expected) < 0.05 or not 0 < norm < float("inf"):
            problem = (f"a loss of {loss:.3f} and a gradient of {norm:.3g}, expected a loss of "
                       f"{expected:.3f}")
    except Exception as error:      # what a device cannot do, it refuses in many ways
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return [f"{device} does not compute as the CPU does ({problem}): use the CPU, by `--device "
            "cpu` in commands or MINIDS_DEVICE=cpu in the environment"] * bool(problem)


def _loss_and_gradient(device) -> tuple[float, float]:
    """The loss of the shipped model on a few ids, and the norm of its gradient, on a device."""
    model = load(paths.DATA / "checkpoints" / "nano", device).train()
    ids = torch.arange(300, 334, device=device)[None]                               # 1 T+1
    loss = cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    loss.backward()
    generate(model, ids[:, :8], 2, seed=0)
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.stack(squares).sum().sqrt().item()


def _space() -> list[str]:
    """Problems with disk, memory and the folder for progress."""
    problems = []
    disk = shutil.disk_usage(paths.ROOT).free / 1e9
    _line("free disk", f"{disk:.1f} GB")
    if disk < DISK_GB:
        problems.append(f"{disk:.1f} GB of disk space are free: free at least {DISK_GB:.0f} GB")
    memory = psutil.virtual_memory().available / 1e9
    _line("free memory", f"{memory:.1f} GB")
    if memory < MEMORY_GB:
        problems.append(f"{memory:.1f} GB of memory are free: close other programs until "
                        f"{MEMORY_GB:.0f} GB are")
    try:
        probe = paths.home() / ".probe"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
        _line("progress", f"{len(journal.read())} exercises passed")
    except (MinidsError, OSError, RuntimeError) as error:       # the last: no home folder
        problems.append(f"progress cannot be saved ({error}): set MINIDS_HOME to a folder that you "
                        "can write to")
    return problems


def _shipped_data() -> list[str]:
    """Whether the shipped tokenizer and checkpoint are present and load."""
    if not paths.DATA.is_dir():
        return [f"no data folder at {paths.DATA}: run minids from a clone, or set MINIDS_DATA to "
                "the clone's data folder"]
    _line("data", _short(paths.DATA))
    problems = []
    for name, path, describe in (
            ("tokenizer", paths.DATA / "tokenizer" / "tokenizer.json", _describe_tokenizer),
            ("checkpoint", paths.DATA / "checkpoints" / "nano", _describe_checkpoint)):
        restore = f"restore it with `git checkout -- {_short(path)}`"
        if not path.exists():
            problems.append(f"{_short(path)} is missing: {restore}")
            continue
        try:
            _line(name, describe(path))
        except Exception as error:  # a damaged file can make a reader raise anything
            problems.append(f"{_short(path)} does not load ({error}): {restore}")
    return problems


def _describe_tokenizer(path: Path) -> str:
    return f"{Tokenizer.load(path).vocab_size} ids"


def _describe_checkpoint(path: Path) -> str:
    return f"{sum(p.numel() for p in load(path).parameters()):,} parameters in {_short(path)}"


def _short(path) -> str:
    """A path relative to the clone, or a name: stored outputs must not show anyone's folders."""
    path = Path(path)
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name
