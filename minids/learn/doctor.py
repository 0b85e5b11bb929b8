"""The doctor: is this machine ready for the course? Versions, device, threads, space, and what data/ ships."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.learn import journal
from minids.system import paths
from minids.weights.checkpoint import load

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "matplotlib", "jupyterlab", "ipykernel", "ipywidgets", "jupytext",
            "nbclient")
DISK_GB, MEMORY_GB = 1.0, 2.0  # below these something in the course fails


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> None:
    """Print what a lesson ran with, on one line."""
    torch = (_version("torch") or "missing").split("+")[0]
    print(f"minids {_version('minids')}, torch {torch}, Python {sys.version_info.major}.{sys.version_info.minor}")


def doctor() -> bool:
    """Print what was found and a line for each problem with its remedy. Returns whether there was no problem."""
    problems = []

    def line(name: str, value: str) -> None:
        print(f"{name:12} {value}")

    line("Python", f"{platform.python_version()} ({_short(sys.executable)})")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python {platform.python_version()} is untested: install 3.11, 3.12 or 3.13, then `make clean lab`")
    line("minids", _version("minids") or "not installed")
    if _version("minids") is None:
        problems.append("minids is not installed: run `pip install -e .` in the clone, or `make lab`")
    found = {name: _version(name) for name in PACKAGES}
    line("packages", ", ".join(f"{name} {version}" for name, version in found.items() if version))
    pinned = _pins()
    for name, version in found.items():
        if version is None:
            problems.append(f"{name} is missing: run `pip install -r requirements.txt`, or `make lab`")
        elif name in pinned and version.split("+")[0] != pinned[name]:
            problems.append(f"{name} is {version}, the course's outputs were made with {pinned[name]}: "
                            "run `pip install -r requirements.txt`")
    if found["torch"]:
        problems += _torch(line)
    problems += _room(line) + _shipped(line)

    for problem in problems:
        print(f"PROBLEM      {problem}")
    print("All is well." if not problems else f"{len(problems)} problem{'s' * (len(problems) > 1)}: see the lines above.")
    return not problems


def _pins() -> dict[str, str]:
    """{package: version} of the clone's requirements.txt, empty where there is none."""
    try:
        text = (paths.ROOT / "requirements.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(line.split("==") for line in text.split() if "==" in line)


def _torch(line) -> list[str]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return [f"torch does not load ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}): "
                "reinstall it with `pip install --force-reinstall torch`"]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    line("device", str(device) if device else "CPU (all lessons run on it)")
    cores = os.cpu_count()
    waiting = [f"{name}={os.environ[name]}" for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    line("threads", ", ".join([f"torch uses {torch.get_num_threads()} of {cores} cores", *waiting]))
    if cores and torch.get_num_threads() > cores:
        return [f"torch uses {torch.get_num_threads()} threads on {cores} cores, which slows it down: unset OMP_NUM_THREADS"]
    return []


def _room(line) -> list[str]:
    problems = []
    disk = shutil.disk_usage(paths.ROOT).free / 1e9
    line("free disk", f"{disk:.1f} GB")
    if disk < DISK_GB:
        problems.append(f"{disk:.1f} GB of disk is free: make room for at least {DISK_GB:.0f} GB")
    if importlib.util.find_spec("psutil"):
        import psutil
        memory = psutil.virtual_memory().available / 1e9
        line("free memory", f"{memory:.1f} GB")
        if memory < MEMORY_GB:
            problems.append(f"{memory:.1f} GB of memory is free: close other programs, until {MEMORY_GB:.0f} GB are")
    try:
        probe = paths.home() / ".probe"
        probe.write_text("")
        probe.unlink()
        line("progress", f"{len(journal.read())} exercises passed")
    except (MinidsError, OSError) as error:
        problems.append(f"progress cannot be saved ({error}): set MINIDS_HOME to a folder you can write to")
    return problems


def _shipped(line) -> list[str]:
    """Tokenizer and checkpoint: that they are there, and load."""
    if not paths.DATA.is_dir():
        return [f"no data folder at {paths.DATA}: run minids from a clone, or set MINIDS_DATA to the clone's data folder"]
    line("data", _short(paths.DATA))
    problems = []
    tokenizer, checkpoint = paths.DATA / "tokenizer" / "tokenizer.json", paths.DATA / "checkpoints" / "nano"
    for name, path, opener in (("tokenizer", tokenizer, _load_tokenizer), ("checkpoint", checkpoint, _load_checkpoint)):
        if not path.exists():
            problems.append(f"{_short(path)} is missing: bring it back with `git checkout -- {_short(path)}`")
            continue
        try:
            line(name, opener(path))
        except Exception as error:  # whatever a damaged file makes a reader raise
            problems.append(f"{_short(path)} does not load ({error}): bring it back with `git checkout -- {_short(path)}`")
    return problems


def _load_tokenizer(path: Path) -> str:
    return f"{Tokenizer.load(path).vocab_size} ids"


def _load_checkpoint(path: Path) -> str:
    return f"{sum(p.numel() for p in load(path).parameters()):,} parameters in {_short(path)}"


def _short(path) -> str:
    """A path as seen from the clone; elsewhere only its name, so that a stored output names nobody's folders."""
    path = Path(path)
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name
