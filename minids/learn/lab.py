"""`minids lab`: JupyterLab on the learner's own copies, with the kernel of this environment.

Its settings hold for this server only. Jupyter reads them from `lab_config/`, beside this file, and
what a learner sets in JupyterLab goes before them.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir, jupyter_runtime_dir

from minids.errors import MinidsError
from minids.learn import work
from minids.system import paths
from minids.system.files import check_writable

SETTINGS = Path(__file__).with_name("lab_config")


def lab(lesson: str | None = None, options=()) -> int:
    """Open JupyterLab at the learner's copy of a lesson, and wait for its end. Returns its exit
    status. `options` are passed on to JupyterLab."""
    name = work.lessons([lesson or "00"])[0]
    folder = work.prepare()
    with ExitStack() as stack:
        env = environment(stack)
        print(f"Your copies of the lessons are in {folder}", flush=True)
        return wait_for(subprocess.Popen(command(folder, name, options), env=env))


def wait_for(server: subprocess.Popen) -> int:
    """Wait for the end of JupyterLab; returns its exit status.

    It asks before it ends on Ctrl-C, so this process must not end first. A request to terminate is
    passed on.
    """
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: server.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return server.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(folder: Path, lesson: str, options=()) -> list[str]:
    """The command line of JupyterLab, at a lesson in `folder`.

    Its address is that of the lesson, also where no browser opens. It offers the kernel of this
    environment only, and keeps the list of open tabs with the copies.
    """
    return [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}",
            f"--LabApp.default_url=/lab/tree/{lesson}.ipynb",
            f"--LabApp.workspaces_dir={folder / '.minids' / 'workspaces'}",
            "--KernelSpecManager.allowed_kernelspecs=python3", "--Application.log_level=WARN",
            *options]


def environment(stack: ExitStack) -> dict[str, str]:
    """The environment variables of JupyterLab and its kernels.

    Where the home folder cannot be written to, Jupyter's files go to a temporary folder that
    `stack` removes, and progress goes to the folder of the copies. A line says so.
    """
    env = dict(os.environ)
    # Code of this clone goes before that of another one, kernels of this environment before others.
    put_first(env, "PYTHONPATH", paths.ROOT)
    put_first(env, "JUPYTER_PATH", Path(sys.prefix, "share", "jupyter"))
    put_first(env, "JUPYTER_PATH", SETTINGS)        # labextensions/
    put_first(env, "JUPYTER_CONFIG_PATH", SETTINGS)
    if not all(map(usable, (jupyter_config_dir(), jupyter_data_dir(), jupyter_runtime_dir()))):
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minids-")))
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
                         "IPYTHONDIR", "MPLCONFIGDIR"):
            env[variable] = str(scratch / variable.lower())
            Path(env[variable]).mkdir(mode=0o700)
        print("Your home folder cannot be written to: JupyterLab forgets its settings when it "
              "ends.", flush=True)
    if not own_home():
        env["MINIDS_HOME"] = str(paths.work() / ".minids" / "home")
        print(f"Progress is kept in {env['MINIDS_HOME']}. To keep it elsewhere, set MINIDS_HOME to "
              f"a folder you can write to.", flush=True)
    return env


def put_first(env: dict[str, str], variable: str, path: Path) -> None:
    """Put `path` before the folders that a variable names."""
    env[variable] = os.pathsep.join(filter(None, [str(path), env.get(variable)]))


def usable(folder) -> bool:
    """Whether files can be written in `folder`, which may be missing."""
    try:
        check_writable(folder, folder=True)
        return True
    except MinidsError:
        return False


def own_home() -> bool:
    """Whether progress can be written where it usually is."""
    try:
        return usable(paths.home())
    except MinidsError:
        return False
