"""The files of a training run: run.json, the log, the checkpoints; and an interrupt that waits.

A run's folder holds run.json (what is trained, and how), log.jsonl, a checkpoint step-NNNNNN (the
newest only), and at the end `model/`. One process at a time uses it: the file `.lock` is locked
meanwhile. For the run itself see `minids.pretrain.run`.
"""

import json
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minids.errors import MinidsError
from minids.system.files import write_text
from minids.weights.save import save

RESTART = "start afresh (--fresh), or choose another folder (--out)"
LOCK = ".lock"


# ---- the folder ----

@contextmanager
def locked(out: Path, mark: str = "run.json", what: str = "training run"):
    """Make the folder; inside, no other process can use it for a run.

    The system drops the lock of a process that ends, however it ends. Raises `MinidsError` where
    another process uses the folder, and where it holds other files, and no file called `mark`.
    """
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / mark).exists() and any(path.name != LOCK for path in out.iterdir()):
            raise MinidsError(f"{out} is not empty and holds no {what}: choose another folder")
        lock.acquire(blocking=False)
    except Timeout:
        raise MinidsError(f"{out} is in use by another process: wait until it has ended, or "
                          f"choose another folder (--out)") from None
    except OSError as error:
        raise MinidsError(
            f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    try:
        yield
    finally:
        lock.release()


def prepare(out: Path, description: dict, resume: bool) -> None:
    """Write run.json into a `locked` folder. A run that is there must have the same description.

    Without `resume` it is deleted instead.
    """
    path, description = out / "run.json", json.loads(json.dumps(description))
    try:
        if not resume:
            for old in [*out.glob("step-*"), *out.glob("model"), *out.glob("*.part")]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            (out / "log.jsonl").unlink(missing_ok=True)
        elif path.exists():
            check_same_run(out, json.loads(path.read_text(encoding="utf-8")), description)
    except json.JSONDecodeError as error:
        raise MinidsError(f"{path} is damaged ({error}): {RESTART}") from None
    except OSError as error:
        raise MinidsError(
            f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    write_text(path, json.dumps(description, indent=2) + "\n")


def check_same_run(out: Path, saved, description: dict) -> None:
    """Raise `MinidsError` unless the description in run.json is that of the run to continue."""
    saved = saved if isinstance(saved, dict) else {}
    settings = saved.get("settings")
    if isinstance(settings, dict) and settings.keys() != description["settings"].keys():
        unknown = sorted(settings.keys() ^ description["settings"].keys())
        raise MinidsError(
            f"{out} holds a run of another version of minids, or of another command: its settings "
            f"have other names ({', '.join(unknown[:5])}). Please {RESTART}")
    old, new = flatten(saved), flatten(description)
    differs = [name for name in new if new[name] != old.get(name)]
    if differs:
        raise MinidsError(
            f"{out} holds a run with other settings ({', '.join(differs[:5])}): {RESTART}")


def flatten(description: dict) -> dict:
    """{"settings.lr": 0.1, ...}: one entry for each value of a description of two levels."""
    flat = {}
    for part, value in description.items():
        if isinstance(value, dict):
            flat |= {f"{part}.{key}": item for key, item in value.items()}
        else:
            flat[part] = value
    return flat


# ---- the log ----

def write_log(out: Path, records) -> None:
    """Write the whole log anew."""
    write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def append_record(out: Path, record: dict) -> None:
    """Add a line to the log."""
    path = out / "log.jsonl"
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise MinidsError(f"could not write {path}: {error.strerror}; the last checkpoint is "
                          f"complete") from error


def read_log(out) -> list[dict]:
    """The records of a run's log.jsonl; a last line that was cut short by a kill is left out."""
    path, records = Path(out) / "log.jsonl", []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MinidsError(
            f"cannot read {path}: {error.strerror}; expected the log of a run") from None
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if i + 1 < len(lines):
                raise MinidsError(f"{path}: line {i + 1} is not JSON") from None
    return records


# ---- checkpoints ----

def newest(out: Path) -> Path | None:
    """The checkpoint folder with the largest step, if there is one."""
    folders = [p for p in Path(out).glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return max(folders, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of steps taken before a checkpoint: step-000120 is 120."""
    return int(checkpoint.name.removeprefix("step-"))


def save_step(model, optimiser, out: Path, step: int, tokenizer=None, routes=None) -> None:
    """Write out/step-NNNNNN: the model in float32, the optimiser's state, the tensors `routes`.

    The folder appears when it is complete; then older checkpoints are deleted.
    """
    final, part = out / f"step-{step:06d}", out / f"step-{step:06d}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        save(model, part, format="fp32", tokenizer=tokenizer)
        states = optimiser.state
        state = {f"{name}.{key}": value.contiguous() for name, p in model.named_parameters()
                 for key, value in states.get(p, {}).items()}
        save_file(state, part / "optimizer.safetensors")
        if routes:
            save_file(routes, part / "routes.safetensors")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        for old in out.glob("step-*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MinidsError(
            f"could not write {final}: {reason}. The checkpoint before it is complete: make room "
            f"and run the same command again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_optimiser(optimiser, model, folder: Path) -> None:
    """Set the optimiser's whole state to what `save_step` wrote."""
    path = folder / "optimizer.safetensors"
    optimiser.forget()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, p in model.named_parameters():
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq", "momentum")
                        if f"{name}.{key}" in names]
                if not keys:
                    continue            # it never had a gradient
                state = {key: file.get_tensor(f"{name}.{key}").to(p.device) for key in keys}
                for key in set(keys) - {"step"}:
                    if state[key].shape != p.shape:
                        raise MinidsError(
                            f"{path}: {name}.{key} has shape {tuple(state[key].shape)}, "
                            f"expected {tuple(p.shape)}")
                optimiser.put(p, state)
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"cannot read {path}: {error}; start afresh (--fresh)") from None


def read_routes(folder: Path) -> dict:
    """The tensors that `save_step` got as `routes`."""
    path = folder / "routes.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"cannot read {path}: {error}; start afresh (--fresh)") from None


# ---- stopping ----

@contextmanager
def deferred_interrupt():
    """Let the first Ctrl-C wait until a step is complete: yields a function that says whether
    there was one. A second Ctrl-C interrupts at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def handler(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
