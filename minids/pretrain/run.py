"""One training run: its folder, log, checkpoints and progress bar, and how it stops and resumes.

Pre-training and post-training share it:

    with open_run(out, description, settings, "training", resume, device) as run:
        run.restore(model, optimiser)           # from the newest checkpoint, if there is one
        for step in run.steps(on_step):
            record = ...                        # take the step
            run.log_step(record)
        run.save_model()

For the files in the folder see `minids.pretrain.run_folder`, for the records of the log
`minids.pretrain.records`.
"""

import time
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm.auto import tqdm

from minids.data.tokenizer import Tokenizer
from minids.pretrain import threads
from minids.pretrain.run_folder import (
    append_record,
    deferred_interrupt,
    locked,
    newest,
    prepare,
    read_log,
    read_optimiser,
    save_step,
    step_of,
    write_log,
)
from minids.system import distributed
from minids.weights.checkpoint import load
from minids.weights.save import save


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was saved. The message says where."""


@contextmanager
def open_run(out, description: dict, settings, name: str, resume: bool, device):
    """The `Run` in the folder `out`, new or continued; inside, Ctrl-C waits for the end of a step.

    `description` goes into run.json: a folder with another description is refused. With
    `resume=False` a former run in `out` is deleted. `settings` are `RunSettings`; `name` labels
    the progress bar. Under torchrun each process opens the run, and the first one locks and writes.
    Raises `MinidsError` where the folder cannot be used, or is in use.
    """
    out, first = Path(out), distributed.rank() == 0
    with (distributed.joined(device), locked(out) if first else nullcontext(),
          deferred_interrupt() as interrupted):
        if first:
            prepare(out, description, resume)
        distributed.wait()
        run = Run(out, settings, name, device, interrupted)
        try:
            yield run
        finally:
            run.bar.close()


class Run:
    """A run between its newest checkpoint and its last step; see `open_run`.

    `step` is the number of steps taken, `records` the log up to it.
    """

    def __init__(self, out: Path, settings, name: str, device, interrupted):
        self.out, self.settings, self.device, self.interrupted = out, settings, device, interrupted
        self.writes = distributed.rank() == 0
        self.step = 0 if self.checkpoint is None else step_of(self.checkpoint)
        self.records = []
        if self.checkpoint is not None:
            self.records = [record for record in read_log(out) if record["step"] <= self.step]
        if self.writes:
            write_log(out, self.records)        # what a killed run did after its checkpoint is lost
        self.earlier = max((record.get("seconds", 0) for record in self.records), default=0.0)
        self.began, self.trained = time.monotonic(), False
        self.bar = tqdm(total=settings.steps, initial=self.step, desc=name, unit="step",
                        dynamic_ncols=True, disable=not self.writes)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint, if there is one."""
        return newest(self.out)

    @property
    def elapsed(self) -> float:
        """Seconds since this process began to train."""
        return time.monotonic() - self.began

    def restore(self, model, optimiser, extra_state=dict) -> None:
        """Bring model and optimiser to the newest checkpoint; without one they stay as they are.

        From here on the run saves them. `extra_state()` returns further tensors to save.
        """
        self.model, self.optimiser, self.extra_state = model, optimiser, extra_state
        if self.checkpoint is not None:
            self._read_checkpoint()
        self.began = time.monotonic()

    def steps(self, on_step=None):
        """Yield the number of each step to take, from 0. The caller takes it, and calls `log_step`.

        After each step: a checkpoint every `save_every` steps, `on_step(record)`, and `Interrupted`
        if Ctrl-C was pressed, once all is saved. A step that ended in `go_back` is not one.
        """
        total = self.settings.steps
        while self.step < total:
            step = self.step
            yield step
            threads.look()
            if self.step <= step:
                continue        # back at a checkpoint
            interrupted = distributed.anyone(self.interrupted(), self.device)
            if self.is_due(self.settings.save_every) or interrupted:
                self.save()
            if on_step is not None:
                on_step(self.record)
            if interrupted:
                raise Interrupted(
                    f"interrupted after step {self.step} of {total}; the checkpoint is in "
                    f"{self.out}: run the same command again to go on")

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step % every == 0 or self.step == self.settings.steps

    def log_step(self, record: Mapping, progress: str = "") -> None:
        """Count a step, and log its record with the seconds of training so far."""
        self.step, self.trained = self.step + 1, True
        seconds = round(self.earlier + self.elapsed, 3)
        self.record = {"step": self.step} | record | {"seconds": seconds}
        self._append(self.record)
        shown = ", ".join(f"{key} {record[key]:.3f}" for key in ("loss", "accuracy")
                          if key in record)
        self.bar.set_postfix_str(progress or shown, refresh=False)
        self.bar.update(self.step - self.bar.n)

    def log(self, *records: Mapping) -> None:
        """Log further records of the current step: what was measured after it."""
        for record in records:
            self._append({"step": self.step} | record)

    def has_logged(self, key: str) -> bool:
        """Whether the current step has a record with this key."""
        return any(record["step"] == self.step and key in record for record in self.records)

    def save(self) -> None:
        """Write a checkpoint of the current step; it replaces the one before."""
        if self.writes:
            save_step(self.model, self.optimiser, self.out, self.step, Tokenizer.load(),
                      self.extra_state())

    def go_back(self) -> None:
        """Return to the newest checkpoint: the steps since then are taken again."""
        self._read_checkpoint()
        self.step = step_of(self.checkpoint)
        self.bar.update(self.step - self.bar.n)

    def save_model(self) -> None:
        """Write the trained model to `out`/model, in the format of the settings."""
        folder = self.out / "model"
        if self.writes and (self.trained or not folder.is_dir()):
            save(self.model, folder, format=self.settings.format, tokenizer=Tokenizer.load())

    def _append(self, record: Mapping) -> None:
        self.records.append(record)
        if self.writes:
            append_record(self.out, record)

    def _read_checkpoint(self) -> None:
        self.model.load_state_dict(load(self.checkpoint).state_dict())
        read_optimiser(self.optimiser, self.model, self.checkpoint)
