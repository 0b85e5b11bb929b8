"""Exercises that answer back: `check` compares a learner's function with the reference, `hint` helps on.

    rms_norm = check("whole.rms_norm", rms_norm)

A check knows the usual mistakes as wrong versions of the function. An attempt that is wrong and agrees with one of
these on every random input made that mistake, and hears it by name. The reference's code is never shown.
"""

import copy
import os
import traceback

import torch

from minids.learn import journal
from minids.learn.checks import find
from minids.learn.exercise import Check, CheckFailed, NotAttempted

_given: dict[str, int] = {}  # hints that this kernel has shown


def check(name: str, attempt):
    """Compare `attempt` with the reference of the check `name` and say how it went.

    Returns the function to go on with: the attempt when it passed, the reference otherwise, and says which of the two.
    With MINIDS_STRICT=1 anything but a pass raises `CheckFailed`. Torch's random state is left as it was.
    """
    this = find(name)
    try:
        complaint = _judge(this, attempt)
    except NotAttempted:
        _given[name] = max(_given.get(name, 0), 1)
        first = f" Hint 1 of {len(this.hints)}: {this.hints[0]}" if this.hints else ""
        return _fail(this, "not attempted", first.strip())
    if complaint:
        return _fail(this, "not yet", complaint)
    journal.record(name)
    print(f"[passed] {name}. The notebook goes on with your version.")
    return attempt


def hint(name: str) -> None:
    """Print the next hint of an exercise; after the last one it starts again."""
    this = find(name)
    if not this.hints:
        print(f"[hint] {name} has no hints.")
        return
    number = _given.get(name, 0) % len(this.hints)
    _given[name] = number + 1
    print(f"[hint {number + 1} of {len(this.hints)}] {this.hints[number]}")


def demonstrate(name: str, attempt) -> None:
    """Print what `check` says to an attempt that is not the learner's, also where a failed check would stop the notebook."""
    strict = os.environ.pop("MINIDS_STRICT", None)
    try:
        check(name, attempt)
    finally:
        if strict is not None:
            os.environ["MINIDS_STRICT"] = strict


def _fail(this: Check, verdict: str, text: str):
    message = f"[{verdict}] {this.name}. {text}".rstrip()
    if os.environ.get("MINIDS_STRICT") == "1":
        raise CheckFailed(message)
    print(f"{message}\nThe notebook goes on with the reference.")
    return this.reference


def _judge(this: Check, attempt) -> str | None:
    """None when every case agrees, else what is wrong in one line."""
    if attempt is None or attempt is ...:
        raise NotAttempted
    if not callable(attempt):
        return f"Expected a function, found {type(attempt).__name__}: pass the function itself, without calling it."
    wrong, outcomes = None, []
    for label, args in _cases(this):
        expected = _call(this.reference, args)
        given = copy.deepcopy(args)
        try:
            found = _call(attempt, given)
        except NotImplementedError as error:
            if not _raised_by_torch(error):
                raise NotAttempted from None
            found = error
        except Exception as error:  # whatever a learner's code raises is an answer here
            found = error
        if found is None or found is ...:
            if not outcomes:
                raise NotAttempted
        outcomes.append((args, found))
        if wrong is None:
            if isinstance(found, Exception):
                wrong = f"In the case \"{label}\" it raised {type(found).__name__}: {_first_line(found)}"
            elif difference := _difference(found, expected, this):
                wrong = f"In the case \"{label}\": {difference}"
            elif _difference(given, args, this):
                wrong = f"In the case \"{label}\" it changes its own input: work on a copy, without in-place operations."
    if wrong is None:
        return None
    for message, version in this.mistakes.items():
        if all(_same(version, args, found, this) for args, found in outcomes):
            return f"Likely: {message}."
    return wrong


def _raised_by_torch(error: Exception) -> bool:
    """Whether the error comes from torch, as when a module without forward is called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "torch"


def _cases(this: Check):
    """The cases with fresh arguments, the same ones on every call."""
    return list(this.cases(torch.Generator().manual_seed(0)))


def _call(function, args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function(*args)


def _same(version, args, found, this: Check) -> bool:
    """Whether a wrong version gives what the attempt gave: an equal result, or an error of the same kind."""
    try:
        result = _call(version, copy.deepcopy(args))
    except Exception as error:
        return type(found) is type(error)
    return not isinstance(found, Exception) and not _difference(found, result, this)


def _difference(found, expected, this: Check) -> str | None:
    """What differs first: kind, length, shape, dtype, then values."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or set(found) != set(expected):
            return f"expected a dict with the keys {sorted(expected)}, found {_kind(found)}."
        pairs = [(f"[{key!r}]", found[key], expected[key]) for key in expected]
    elif isinstance(expected, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(found) != len(expected):
            return f"expected {len(expected)} results, found {_kind(found)}."
        pairs = [(f"result {i + 1}: ", a, b) for i, (a, b) in enumerate(zip(found, expected))]
    elif isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return f"expected a tensor of shape {tuple(expected.shape)}, found {_kind(found)}."
        if found.shape != expected.shape:
            return f"expected shape {tuple(expected.shape)}, found {tuple(found.shape)}."
        if found.dtype != expected.dtype:
            return f"expected dtype {expected.dtype}, found {found.dtype}."
        return _apart(found, expected, this)
    elif isinstance(expected, (int, float)) and isinstance(found, (int, float, torch.Tensor)):
        if isinstance(found, torch.Tensor) and found.numel() != 1:
            return f"expected one number, found {_kind(found)}."
        if isinstance(found, int) and isinstance(expected, int):  # counts are exact, and too large for float32
            return None if found == expected else f"the number is off by {found - expected:+,}."
        return _apart(torch.tensor(float(found)), torch.tensor(float(expected)), this)
    elif isinstance(expected, torch.nn.Module):
        if not isinstance(found, torch.nn.Module):
            return f"expected a module, found {_kind(found)}."
        return _difference(dict(found.state_dict()), dict(expected.state_dict()), this)
    else:
        try:
            return None if bool(found == expected) else f"expected what the reference gives, found another {_kind(found)}."
        except (RuntimeError, TypeError, ValueError):
            return None  # objects that cannot be compared
    return next((f"{name}{text}" for name, a, b in pairs if (text := _difference(a, b, this))), None)


def _apart(found, expected, this: Check) -> str | None:
    if not expected.is_floating_point():
        wrong = int((found != expected).sum())
        return f"{wrong} of {expected.numel()} values differ." if wrong else None
    a, b = found.detach().double(), expected.detach().double()
    rtol = max(this.rtol, 2 * torch.finfo(expected.dtype).eps)  # bfloat16: another order of operations may round otherwise
    if torch.allclose(a, b, rtol=rtol, atol=this.atol, equal_nan=True):
        return None
    if not torch.isfinite(a[torch.isfinite(b)]).all():
        return "the result has inf or nan where the reference is finite."
    return f"shape and dtype are right, the values are not: the largest difference is {(a - b).abs().nan_to_num().max():.3g}."


def _kind(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} values in a {type(value).__name__}" if isinstance(value, (tuple, list)) else type(value).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0][:160]
