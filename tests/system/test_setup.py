"""The set-up: `make setup` in small clones of their own, without a network.

A clone here has the Makefile and `install.py` of the course, and a package `minids` of one line. It
pins one package, `pebble`, whose wheel is made here. Nothing is downloaded.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minids.system import install, paths

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs make and POSIX paths")
# Builds the editable package of the small clone in place of setuptools, which is not installed.
BACKEND = '''
import os, sys
sys.path.insert(0, os.path.dirname(__file__))
from wheel_of import wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    return wheel(folder, "minids", "0.1", {"minids.pth": os.getcwd() + "\\n"})

def get_requires_for_build_editable(config_settings=None):
    return []
'''


def wheel(folder, name, version, files):
    """Write a wheel with these files to `folder`; returns its name."""
    info = f"{name}-{version}.dist-info"
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\n"
                                          f"Version: {version}\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                              "Tag: py3-none-any\n",
             f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:main\n"}
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    target = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, target), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return target


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "clone")


def make_clone(root):
    """A small clone with a wheelhouse."""
    for folder in ("minids/system", "wheelhouse", "build_backend"):
        (root / folder).mkdir(parents=True)
    shutil.copy(paths.ROOT / "Makefile", root)
    shutil.copy(install.__file__, root / "minids" / "system")
    (root / "minids" / "__init__.py").write_text("def main():\n    print(__file__)\n")
    (root / "minids" / "system" / "__init__.py").write_text("")
    (root / "requirements.txt").write_text("# pins\npebble==1.0\n")
    (root / "pyproject.toml").write_text(
        '[project]\nname = "minids"\nversion = "0.1"\n[build-system]\nrequires = ["setuptools"]\n'
        'build-backend = "backend"\nbackend-path = ["build_backend"]\n')
    (root / "build_backend" / "backend.py").write_text(BACKEND)
    source = Path(__file__).read_text(encoding="utf-8")
    start, end = source.index("def wheel("), source.index("@pytest.fixture\ndef clone")
    (root / "build_backend" / "wheel_of.py").write_text(
        "import base64, hashlib, os, zipfile\n\n" + source[start:end])
    wheel(root / "wheelhouse", "pebble", "1.0",
          {"pebble.py": "import sys\ndef main():\n    print(sys.executable)\n"})
    return root


def environment(**more):
    """Neither the network nor this machine's settings of pip."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PIP_", "MINIDS_", "PYTHON", "MAKE"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", **more}


def offline():
    """The start of a command line that cuts a command from the network, where the system can."""
    words = ["unshare", "-rn"]
    try:
        works = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    return words if works else []


def make(clone, *words, **env):
    words = [*offline(), "make", "-C", str(clone), *words, f"PYTHON={sys.executable}"]
    return subprocess.run(words, env=environment(**env), capture_output=True, text=True)


def set_up(clone, *words):
    """Run the set-up from the wheelhouse; returns what it printed."""
    done = make(clone, "--no-print-directory", "setup", "WHEELS=wheelhouse", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said_by(clone, words):
    """What a command of the environment prints, run elsewhere."""
    script, *options = words.split()
    done = subprocess.run([clone / ".venv" / "bin" / script, *options], cwd="/",
                          env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_works(clone):
    """The environment is this clone's own: its packages, its code, its scripts."""
    assert said_by(clone, "pebble-tool") == str(clone / ".venv" / "bin" / "python")
    assert said_by(clone, "minids-tool") == str(clone / "minids" / "__init__.py")
    assert json.loads((clone / ".venv" / ".ready").read_text())["folder"] == str(clone)
    assert install.is_ready(clone)


# ---- set-ups and repairs, without a network ----

@POSIX
@pytest.mark.slow(10)
def test_a_set_up_goes_on_after_a_failure_and_brings_newer_pins(clone):
    done = make(clone, "setup")
    assert done.returncode and "No matching distribution found for pebble==1.0" in done.stderr
    assert "the set-up has not finished" in done.stderr and "Traceback" not in done.stderr
    assert not (clone / ".venv" / ".ready").exists()

    done = make(clone, "setup", PIP_FIND_LINKS=str(clone / "wheelhouse"))
    assert done.returncode == 0 and "Ready after" in done.stdout, done.stdout + done.stderr
    assert_works(clone)
    assert set_up(clone) == ""                  # nothing is left to do

    (clone / "requirements.txt").write_text("pebble==2.0\n")
    wheel(clone / "wheelhouse", "pebble", "2.0", {"pebble.py": "def main():\n    print('two')\n"})
    assert "Ready after" in set_up(clone)
    assert said_by(clone, "pebble-tool") == "two"


@POSIX
@pytest.mark.slow(10)
def test_an_interrupted_set_up_is_repaired(tmp_path):
    """First an environment without pip, then a package of which pip wrote only a part."""
    clone = make_clone(tmp_path / "a folder, 深度")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    assert "did not finish" in set_up(clone)
    assert_works(clone)

    site, = (clone / ".venv" / "lib").glob("python*/site-packages")
    (site / "pebble-1.0.dist-info" / "RECORD").unlink()
    (site / "pebble.py").unlink()
    (site / "~ebble").mkdir()
    (clone / ".venv" / ".ready").unlink()
    assert "Ready after" in set_up(clone)
    assert_works(clone)
    assert not (site / "~ebble").exists()


@POSIX
@pytest.mark.slow(10)
def test_a_moved_and_a_copied_clone_use_their_own_code(clone, tmp_path):
    """They need no wheels: what is installed stays."""
    set_up(clone)
    copied = shutil.copytree(clone, tmp_path / "copied", symlinks=True)
    moved = clone.rename(tmp_path / "moved to a folder, 深度")
    for place in (copied, moved):
        shutil.rmtree(place / "wheelhouse")
        assert not install.is_ready(place)
        done = make(place, "setup")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "made in another folder" in done.stdout
        assert_works(place)
        assert f"from {place}/" in said_by(place, "pip --version")
    assert_works(copied)


@POSIX
def test_an_environment_whose_python_was_removed_is_made_anew(clone, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "run", lambda command, folder: calls.append(command))
    python = fake_venv(clone)
    (clone / ".venv" / ".ready").write_text(json.dumps(install.stamp(clone)))
    assert install.is_ready(clone)
    python.unlink()
    python.symlink_to("/removed/python3")
    assert not install.is_ready(clone)
    install.make_venv(clone / ".venv")
    assert calls == [[sys._base_executable, "-m", "venv", "--clear", str(clone / ".venv")]]


@POSIX
def test_the_set_up_goes_on_where_kernels_cannot_be_compiled(tmp_path, capfd):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    install.compile_kernels(failing, tmp_path)
    assert "runs without them" in capfd.readouterr().out


def test_an_empty_folder_of_wheels_is_refused(tmp_path):
    for options in (["--wheels", str(tmp_path)], ["--wheels"]):
        with pytest.raises(install.SetupError, match="no wheels in .*pip download"):
            install.for_pip(options)


# ---- what is not ours to change ----

def fake_venv(clone, works=True):
    """An environment whose Python is a script, and a `.ready` of nobody."""
    python = install.python_of(clone / ".venv")
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {int(not works)}\n")
    python.chmod(0o755)
    return python


@POSIX
def test_a_read_only_clone_is_used_as_it_is_or_its_owner_is_asked(clone, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(install.SetupError, match="its owner has to run `make setup`"):
        install.main(clone, [])
    python = fake_venv(clone)
    install.main(clone, [])
    assert not (clone / ".venv" / ".ready").exists()
    python.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(install.SetupError, match="its owner has to run `make setup`"):
        install.main(clone, [])


@POSIX
def test_a_linked_environment_is_never_changed(clone, tmp_path):
    python = fake_venv(clone)
    shared = (clone / ".venv").rename(tmp_path / "shared")
    (clone / ".venv").symlink_to(shared)
    before = sorted(shared.rglob("*"))
    install.main(clone, [])
    (shared / "bin" / python.name).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(install.SetupError, match="is a link and does not work"):
        install.main(clone, [])
    assert sorted(shared.rglob("*")) == before


@POSIX
def test_an_environment_of_uv_is_used_without_pip(clone):
    fake_venv(clone)
    assert not install.is_ready(clone)
    (clone / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    assert install.is_ready(clone)


# ---- options and messages ----

@POSIX
def test_options_reach_every_call_of_pip(clone, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "make_venv", lambda venv: venv.mkdir())
    monkeypatch.setattr(install, "run", lambda command, folder: calls.append(command))
    install.main(clone, ["--cpu", "--index-url", "https://mirror.example/simple"])
    pip = [call for call in calls if "pip" in call]
    assert len(pip) == 2
    for call in pip:
        at = call.index("--extra-index-url")
        assert call[at:at + 4] == ["--extra-index-url", install.CPU_INDEX, "--index-url",
                                   "https://mirror.example/simple"]
    assert "--no-build-isolation" in pip[1]     # a build of its own would not see these options


@POSIX
def test_make_passes_its_variables_on(clone):
    done = make(clone, "-n", "setup", "CPU=1", "WHEELS=my wheels",
                "PIP_OPTIONS=--index-url https://x")
    assert 'install.py --cpu --wheels "my wheels" --index-url https://x' in done.stdout
    done = make(clone, "-n", "lab", "LESSON=07", "ARGS=--no-browser --port 8890")
    assert "-m minids lab 07 --no-browser --port 8890" in done.stdout


@POSIX
def test_help_lists_every_command(clone):
    lines = make(clone, "--no-print-directory", "help").stdout.splitlines()
    text = (clone / "Makefile").read_text()
    commands = next(line for line in text.splitlines() if line.startswith(".PHONY")).split()[1:]
    assert [line.split()[0] for line in lines] == commands
    assert all(line[13] == " " and line[14] != " " for line in lines)   # no tabs


def test_an_unsuitable_python_is_refused(clone, monkeypatch):
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 1))
    with pytest.raises(install.SetupError, match="expected Python 3.11 to 3.13"):
        install.main(clone, [])
    assert not (clone / ".venv").exists()


def test_a_python_without_ensurepip_is_refused(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(install.SetupError, match="apt install python3-venv"):
        install.main(clone, [])


def test_the_pins_include_what_builds_this_package():
    """Without it, a set-up from a folder of wheels would look for setuptools in the network."""
    assert "\nsetuptools==" in (paths.ROOT / "requirements.txt").read_text(encoding="utf-8")
