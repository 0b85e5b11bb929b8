"""Exercises that answer: `check` compares a learner's function with the reference, `hint` helps.

    rms_norm = check("whole.rms_norm", rms_norm)

A check has the usual mistakes as wrong versions of the function. If an attempt agrees with one of
them on every random input, the learner made that mistake, and the message names it. The reference's
code is never shown.
"""

import copy
import os
import traceback

import torch

from minids.learn import journal
from minids.learn.checks import find
from minids.learn.exercise import Check, CheckFailed, NotAttempted

_hints_shown: dict[str, int] = {}   # {name of a check: hints that this kernel has shown}


def check(name: str, attempt):
    """Compare `attempt` with the reference of the check `name`, and print the result.

    Returns the function to continue with and prints which one it is: the attempt if it passed,
    otherwise the reference. With MINIDS_STRICT=1, anything but a pass raises `CheckFailed`. Torch's
    random state does not change.
    """
    exercise = find(name)
    try:
        complaint = _complaint(exercise, attempt)
    except NotAttempted:
        _hints_shown[name] = max(_hints_shown.get(name, 0), 1)
        hints = exercise.hints
        text = f"Hint 1 of {len(hints)}: {hints[0]}" if hints else ""
        return _fail(exercise, "not attempted", text)
    if complaint:
        return _fail(exercise, "not yet", complaint)
    journal.record(name, "passed")
    print(f"[passed] {name}. The notebook goes on with your version.")
    return attempt


def hint(name: str) -> None:
    """Print the next hint of an exercise; after the last one it starts again."""
    hints = find(name).hints
    if not hints:
        print(f"[hint] {name} has no hints.")
        return
    number = _hints_shown.get(name, 0) % len(hints)
    _hints_shown[name] = number + 1
    print(f"[hint {number + 1} of {len(hints)}] {hints[number]}")


def demonstrate(name: str, attempt) -> None:
    """Print what `check` says about an attempt that is not the learner's.

    It does not raise, even with MINIDS_STRICT=1.
    """
    strict = os.environ.pop("MINIDS_STRICT", None)
    try:
        check(name, attempt)
    finally:
        if strict is not None:
            os.environ["MINIDS_STRICT"] = strict


def _fail(exercise: Check, verdict: str, text: str):
    message = f"[{verdict}] {exercise.name}. {text}".rstrip()
    if os.environ.get("MINIDS_STRICT") == "1":
        raise CheckFailed(message)
    print(f"{message}\nThe notebook goes on with the reference.")
    return exercise.reference


def _complaint(exercise: Check, attempt) -> str | None:
    """None if every case agrees, otherwise one line that says what is wrong."""
    if attempt is None or attempt is ...:
        raise NotAttempted
    if not callable(attempt):
        return (f"Expected a function, found {type(attempt).__name__}: pass the function itself, "
                "without calling it.")
    complaint, outcomes = None, []
    for label, args in _cases(exercise):
        expected = _call(exercise.reference, args)
        args_used = copy.deepcopy(args)
        result = _outcome(attempt, args_used)
        if (result is None or result is ...) and not outcomes:
            raise NotAttempted
        outcomes.append((args, result))
        if complaint is None:
            problem = _problem(result, expected, args_used, args, exercise)
            complaint = f"In the case \"{label}\"{problem}" if problem else None
    if complaint is None:
        return None
    for message, version in exercise.mistakes.items():
        if all(_same(version, args, result, exercise) for args, result in outcomes):
            return f"Likely: {message}."
    return complaint


def _outcome(attempt, args):
    """What the attempt returns, or the exception that it raises."""
    try:
        return _call(attempt, args)
    except NotImplementedError as error:
        if _raised_by_torch(error):
            return error
        raise NotAttempted from None
    except Exception as error:  # whatever a learner's code raises is an outcome here
        return error


def _problem(result, expected, args_used, args, exercise: Check) -> str | None:
    """What is wrong in one case: an error, a different result, or changed arguments."""
    if isinstance(result, Exception):
        return f" it raised {type(result).__name__}: {_first_line(result)}"
    if difference := _difference(result, expected, exercise):
        return f": {difference}"
    if _difference(args_used, args, exercise):
        return " it changes its own input: work on a copy, without in-place operations."
    return None


def _raised_by_torch(error: Exception) -> bool:
    """Whether the error comes from torch, as when a module without forward is called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "torch"


def _cases(exercise: Check):
    """The cases with fresh arguments, the same ones on every call."""
    return list(exercise.cases(torch.Generator().manual_seed(0)))


def _call(function, args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function(*args)


def _same(version, args, result, exercise: Check) -> bool:
    """Whether a wrong version and the attempt agree: equal results, or errors of the same type."""
    try:
        wrong = _call(version, copy.deepcopy(args))
    except Exception as error:
        return type(result) is type(error)
    return not isinstance(result, Exception) and not _difference(result, wrong, exercise)


def _difference(actual, expected, exercise: Check) -> str | None:
    """The first difference: of type, length, shape, dtype, then values. None if there is none."""
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or set(actual) != set(expected):
            return f"expected a dict with the keys {sorted(expected)}, found {_kind(actual)}."
        return _first_difference(((f"[{key!r}]", actual[key], expected[key]) for key in expected),
                                 exercise)
    if isinstance(expected, (tuple, list)):
        if not isinstance(actual, (tuple, list)) or len(actual) != len(expected):
            return f"expected {len(expected)} results, found {_kind(actual)}."
        return _first_difference(((f"result {i + 1}: ", a, b)
                                  for i, (a, b) in enumerate(zip(actual, expected))), exercise)
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(actual, expected, exercise)
    if isinstance(expected, (int, float)) and isinstance(actual, (int, float, torch.Tensor)):
        if isinstance(actual, torch.Tensor) and actual.numel() != 1:
            return f"expected one number, found {_kind(actual)}."
        if isinstance(actual, int) and isinstance(expected, int):
            # Counts are exact, and may be too large for float32.
            return None if actual == expected else f"the number is off by {actual - expected:+,}."
        a, b = torch.tensor(float(actual)), torch.tensor(float(expected))
        return _value_difference(a, b, exercise)
    if isinstance(expected, torch.nn.Module):
        if not isinstance(actual, torch.nn.Module):
            return f"expected a module, found {_kind(actual)}."
        return _difference(dict(actual.state_dict()), dict(expected.state_dict()), exercise)
    try:
        same = bool(actual == expected)
    except (RuntimeError, TypeError, ValueError):
        return None     # objects that cannot be compared
    if same:
        return None
    return f"expected what the reference gives, found a different {_kind(actual)}."


def _first_difference(items, exercise: Check) -> str | None:
    """The first difference of some (name, actual, expected)."""
    for name, actual, expected in items:
        if text := _difference(actual, expected, exercise):
            return f"{name}{text}"
    return None


def _tensor_difference(actual, expected: torch.Tensor, exercise: Check) -> str | None:
    if not isinstance(actual, torch.Tensor):
        return f"expected a tensor of shape {tuple(expected.shape)}, found {_kind(actual)}."
    if actual.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, found {tuple(actual.shape)}."
    if actual.dtype != expected.dtype:
        return f"expected dtype {expected.dtype}, found {actual.dtype}."
    return _value_difference(actual, expected, exercise)


def _value_difference(actual: torch.Tensor, expected: torch.Tensor, exercise: Check) -> str | None:
    if not expected.is_floating_point():
        wrong = int((actual != expected).sum())
        return f"{wrong} of {expected.numel()} values differ." if wrong else None
    a, b = actual.detach().double(), expected.detach().double()
    # In bfloat16 another order of operations may round differently.
    rtol = max(exercise.rtol, 2 * torch.finfo(expected.dtype).eps)
    if torch.allclose(a, b, rtol=rtol, atol=exercise.atol, equal_nan=True):
        return None
    if not torch.isfinite(a[torch.isfinite(b)]).all():
        return "the result has inf or nan where the reference is finite."
    largest = (a - b).abs().nan_to_num().max()
    return ("shape and dtype are right, the values are not: "
            f"the largest difference is {largest:.3g}.")


def _kind(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values in a {type(value).__name__}"
    return type(value).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0][:160]
