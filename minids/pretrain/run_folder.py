"""The folder of a training run: who owns it, its log, its checkpoints, and stopping it between two steps.

A run's folder holds run.json (what is trained, and how), log.jsonl, a checkpoint step-NNNNNN (the newest only), and at the end
`model/`. What is in them is `minids.pretrain.train`'s business.
"""

import json
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minids.errors import MinidsError
from minids.system.files import write_text
from minids.weights.save import save


def start(out: Path, run: dict, resume: bool) -> None:
    """Make the folder; a run that is in it must be the same one, or is deleted where `resume` is off."""
    path, run = out / "run.json", json.loads(json.dumps(run))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(out.iterdir()):
            raise MinidsError(f"{out} is not empty and holds no training run: choose another folder")
        if not resume:
            for old in [*out.glob("step-*"), *out.glob("model"), *out.glob("*.part")]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            (out / "log.jsonl").unlink(missing_ok=True)
        elif path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found if isinstance(found, dict) else {}
            differs = [f"{part}.{key}" if isinstance(run[part], dict) else part for part in run
                       for key in (run[part] if isinstance(run[part], dict) else [part])
                       if _item(run, part, key) != _item(found, part, key)]
            if differs:
                raise MinidsError(f"{out} holds a run with other settings ({', '.join(differs[:5])}): start afresh (--fresh), "
                                  f"or choose another folder (--out)")
    except json.JSONDecodeError as error:
        raise MinidsError(f"{path} is damaged ({error}): start afresh (--fresh), or choose another folder (--out)") from None
    except OSError as error:
        raise MinidsError(f"cannot use the folder {out}: {error.strerror}; choose another one") from None
    write_text(path, json.dumps(run, indent=2) + "\n")


def _item(run, part, key):
    value = run.get(part)
    return value.get(key) if isinstance(value, dict) else value


def newest(out: Path) -> Path | None:
    """The checkpoint folder with the largest step, if there is one."""
    found = [p for p in Path(out).glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def read_log(out) -> list[dict]:
    """The records of a run's log.jsonl; a last line that was cut short by a kill is left out."""
    records = []
    try:
        lines = (Path(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MinidsError(f"cannot read {Path(out) / 'log.jsonl'}: {error.strerror}; expected a run's log") from None
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if i + 1 < len(lines):
                raise MinidsError(f"{Path(out) / 'log.jsonl'}: line {i + 1} is not JSON") from None
    return records


def note(out: Path, record: dict) -> None:
    """Add a line to the log."""
    try:
        with open(out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise MinidsError(f"could not write {out / 'log.jsonl'}: {error.strerror}; the last checkpoint is whole") from error


def save_step(model, optimiser, out: Path, step: int, tokenizer=None, routes=None) -> None:
    """Write out/step-NNNNNN: the model in float32, the optimiser's state, and the tensors `routes` if there are any. It appears
    whole; then older ones go."""
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
        raise MinidsError(f"could not write {final}: {getattr(error, 'strerror', None) or error}. "
                          f"The checkpoint before it is whole: make room and run the same command again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_optimiser(optimiser, model, folder: Path) -> None:
    """Give the optimiser the state that `save_step` wrote, and no other."""
    path = folder / "optimizer.safetensors"
    optimiser.forget()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, p in model.named_parameters():
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq", "momentum") if f"{name}.{key}" in names]
                if not keys:
                    continue  # never had a gradient
                state = {key: file.get_tensor(f"{name}.{key}").to(p.device) for key in keys}
                for key in set(keys) - {"step"}:
                    if state[key].shape != p.shape:
                        raise MinidsError(f"{path}: {name}.{key} has shape {tuple(state[key].shape)}, "
                                          f"expected {tuple(p.shape)}")
                optimiser.put(p, state)
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"cannot read {path}: {error}; start afresh (--fresh)") from None


def read_routes(folder: Path) -> dict:
    """The tensors that `save_step` got as `routes`."""
    try:
        return load_file(folder / "routes.safetensors")
    except (OSError, SafetensorError) as error:
        raise MinidsError(f"cannot read {folder / 'routes.safetensors'}: {error}; start afresh (--fresh)") from None


@contextmanager
def deferred_interrupt():
    """Hold the first Ctrl-C back until a step is complete: yields a function that tells whether there was one."""
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
