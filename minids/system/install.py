"""The set-up of the course: makes `.venv` in the clone, and repairs it where it is damaged.

`make setup` runs this file with any Python that the course supports, before a package is installed,
so it uses the standard library only:

    python minids/system/install.py [--cpu] [--wheels DIR] [OPTION OF PIP ...]

The last step writes `.venv/.ready`, which names the folder of the clone and the pinned packages.
Where it fits, there is nothing to do. Otherwise what was left over from an interrupted, a moved or
an older set-up is repaired, and pip installs what is missing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

VERSIONS = (3, 11), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WINDOWS = os.name == "nt"
# Fails unless all pinned packages are installed, and this one works.
PROBE = """import importlib.metadata, minids
for line in open("requirements.txt", encoding="utf-8"):
    if "==" in line:
        importlib.metadata.version(line.split("==")[0])
"""


class SetupError(Exception):
    """The set-up cannot go on. The message says why and what to do."""


def main(root: Path, options: list[str]) -> None:
    """Set up `root/.venv`, unless it is ready. `options` are for pip, except --cpu and --wheels.

    Raises `SetupError`.
    """
    venv = root / ".venv"
    if is_ready(root):
        return
    if venv.is_symlink():
        raise SetupError(f"{venv} is a link and does not work: remove it, and run this again")
    if not os.access(root, os.W_OK):
        raise SetupError(f"{root} is not set up, and you cannot write to it: its owner has to run "
                         f"`make setup` there. Or clone the course into a folder of your own")
    started, pip_options = time.monotonic(), for_pip(options)
    check_python()
    print(f"Setting up {venv} with Python {sys.version.split()[0]}, once. The download of torch "
          f"takes minutes on a slow line ...", flush=True)
    (venv / ".ready").unlink(missing_ok=True)
    make_venv(venv)
    remove_halves(venv)
    pip = [str(python_of(venv)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
           *pip_options]
    # Without build isolation, the build uses the setuptools of requirements.txt, not the network's.
    run([*pip, "-r", "requirements.txt"], root)
    run([*pip, "--no-build-isolation", "--no-deps", "-e", "."], root)
    run([str(python_of(venv)), "-c", PROBE], root)
    compile_kernels(python_of(venv), root)
    (venv / ".ready").write_text(json.dumps(stamp(root)), encoding="utf-8")
    print(f"Ready after {time.monotonic() - started:.0f} s.")


def is_ready(root: Path) -> bool:
    """Whether `root/.venv` can be used as it is.

    Some are not ours to change: one that is a link belongs to another folder, one that uv made to
    uv, and one that cannot be written to belongs to someone else. They count as ready if the pinned
    packages are there.
    """
    python = python_of(root / ".venv")
    if not os.access(python, os.X_OK):
        return False
    try:
        if json.loads((root / ".venv" / ".ready").read_text(encoding="utf-8")) == stamp(root):
            return True
    except (OSError, ValueError):
        pass
    fixed = (root / ".venv").is_symlink() or not os.access(root, os.W_OK) or made_by_uv(root)
    return fixed and runs([python, "-c", PROBE], root)


def made_by_uv(root: Path) -> bool:
    """Whether `root/.venv` was made by `uv venv`, which leaves pip out."""
    try:
        return "\nuv = " in (root / ".venv" / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False


def stamp(root: Path) -> dict:
    """What `.ready` says: the folder of the clone, and a hash of what is to be installed."""
    files = [(root / name).read_bytes() for name in ("requirements.txt", "pyproject.toml")]
    return {"folder": str(root), "packages": hashlib.sha256(b"\0".join(files)).hexdigest()}


def python_of(venv: Path) -> Path:
    """The Python of a virtual environment."""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def for_pip(options: list[str]) -> list[str]:
    """The options with --cpu and --wheels DIR written as pip's own."""
    result, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        if option == "--cpu":
            result += ["--extra-index-url", CPU_INDEX]
        elif option == "--wheels":
            folder = Path(rest.pop(0) if rest else "").absolute()
            if not any(folder.glob("*.whl")):
                raise SetupError(f"no wheels in {folder}: expected a folder made by `pip download "
                                 f"-r requirements.txt -d {folder.name}`")
            result += ["--no-index", "--find-links", str(folder)]
        else:
            result.append(option)
    return result


def check_python() -> None:
    """Raise `SetupError` unless the running Python fits the course and can make environments."""
    low, high = VERSIONS
    if not low <= sys.version_info[:2] <= high:
        raise SetupError(f"expected Python 3.{low[1]} to 3.{high[1]}, found "
                         f"{sys.version.split()[0]} ({sys.executable}). Install one, or name one: "
                         f"make setup PYTHON=/path/to/python")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(f"{sys.executable} cannot make virtual environments (no ensurepip). On "
                         f"Debian and Ubuntu: sudo apt install python3-venv. Or name another "
                         f"Python: make setup PYTHON=/path/to/python") from None


def make_venv(venv: Path) -> None:
    """Make the environment, or make it anew where its pip does not run or a moved one cannot be
    repaired."""
    python = python_of(venv)
    works = os.access(python, os.X_OK) and runs([python, "-m", "pip", "--version"], venv.parent)
    moved = works and not belongs(venv)
    if works and not moved:
        return
    if moved:
        print("It was made in another folder: it is adapted to this one.", flush=True)
    elif venv.exists():
        print("An earlier set-up did not finish or is damaged: it starts again.", flush=True)
    if moved and not WINDOWS:       # keep the packages, and the Python they were installed for
        maker = os.path.realpath(python)
        run([maker, "-m", "venv", "--without-pip", str(venv)], venv.parent)
        repair_scripts(venv)
    else:
        run([sys._base_executable, "-m", "venv", "--clear", str(venv)], venv.parent)


def belongs(venv: Path) -> bool:
    """Whether the environment's pip says that it was made in this folder."""
    script = venv / ("Scripts/pip.exe" if WINDOWS else "bin/pip")
    try:
        return os.fsencode(venv) in script.read_bytes()
    except OSError:
        return False


def repair_scripts(venv: Path) -> None:
    """Let the scripts in `bin` start the Python of this folder, after the folder was moved."""
    python = os.fsencode(python_of(venv))
    header = b"#!" + python + b"\n"
    if b" " in python or len(header) > 127:     # too much for the kernel: as pip writes it then
        header = b"#!/bin/sh\n'''exec' \"" + python + b'" "$0" "$@"\n\' \'\'\'\n'
    for script in (venv / "bin").iterdir():
        text = b"" if script.is_symlink() or not script.is_file() else script.read_bytes()
        lines = text.split(b"\n", 3)
        if text.startswith(b"#!/bin/sh\n'''exec'"):
            script.write_bytes(header + lines[3])
        elif text.startswith(b"#!") and b"python" in lines[0]:
            script.write_bytes(header + text.split(b"\n", 1)[1])


def remove_halves(venv: Path) -> None:
    """Remove what an interrupted pip leaves, so that pip installs these packages again.

    The list of its files (RECORD) is the last thing of a package that pip writes.
    """
    for site in venv.glob("Lib/site-packages" if WINDOWS else "lib/python*/site-packages"):
        halves = [path for path in site.glob("*.dist-info") if not (path / "RECORD").exists()]
        for path in [*halves, *site.glob("~*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def compile_kernels(python: Path, root: Path) -> None:
    """Compile the kernels that models use on a CPU, so that no lesson waits for it. The course
    runs without them, slower: so a failure is said, and the set-up goes on."""
    try:
        failed = subprocess.run([str(python), "-m", "minids.recipes.kernels"], cwd=root).returncode
    except OSError:
        failed = True
    if failed:
        print("The kernels could not be compiled. The course runs without them, slower; "
              "`minids doctor` says why.", flush=True)


def runs(command: list, folder: Path) -> bool:
    """Whether a command runs in `folder` and succeeds. Its output is not shown."""
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def run(command: list[str], folder: Path) -> None:
    """Run a command in `folder`; raises `SetupError` if it fails. It has said why itself."""
    if subprocess.run(command, cwd=folder).returncode:
        raise SetupError("the set-up has not finished. The message above says why. Run it again "
                         "when that is fixed: it continues. `make clean` removes what is there")


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parents[2], sys.argv[1:])
    except SetupError as error:
        sys.exit(f"minids: {error}")
    except KeyboardInterrupt:
        sys.exit("minids: interrupted. Run the set-up again: it continues.")
