"""Running a learner's function: with a time limit, and with global state as it was before."""

import contextlib
import ctypes
import random
import sys
import threading

import numpy as np
import torch

SECONDS = 30    # for one call


class TimeIsUp(BaseException):
    """A call took too long. Not an `Exception`, so that the learner's own `except` lets it pass."""


def call(function, args):
    """What `function(*args)` returns, as if called in a fresh process.

    Torch's seed is 0. Afterwards random states, default dtype and device, grad mode and stdout are
    as before. Raises what the function raises, and `TimeIsUp` after `SECONDS`.
    """
    with kept_state(), time_limit(SECONDS):
        return function(*args)


@contextlib.contextmanager
def kept_state():
    """Run with torch's usual settings and seed 0; afterwards all global state is restored."""
    stdout, stderr = sys.stdout, sys.stderr
    python, numpy = random.getstate(), np.random.get_state()
    dtype, grad, device = (torch.get_default_dtype(), torch.is_grad_enabled(),
                           torch.get_default_device())
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            if device.type != "cpu":
                torch.set_default_device(None)
            torch.default_generator.manual_seed(0)  # the CPU's, which is restored
            yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise `TimeIsUp` in this thread unless the block ends within `seconds`.

    It ends Python code that never stops, on every platform; one long call into C ends first.
    """
    thread, lock, ended = threading.get_ident(), threading.Lock(), False

    def interrupt():
        with lock:
            if not ended:
                _raise_in(thread, TimeIsUp)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        timer.start()
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()
        _raise_in(thread, None)     # drop an exception that came too late


def _raise_in(thread: int, error) -> None:
    """Raise an exception class in another thread at its next instruction; None takes it back."""
    error = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
