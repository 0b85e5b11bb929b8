"""Exercises that answer: `check` compares a learner's function with the reference, `hint` helps.

    rms_norm = check("whole.rms_norm", rms_norm)

A check has the usual mistakes as wrong versions of the function. If an attempt agrees with one of
them on every random input, the learner made that mistake, and the message names it. The reference's
code is never shown. For how results are compared see `minids.learn.compare`, for the time limit and
restored state `minids.learn.attempt`.
"""

import copy
import difflib
import dis
import inspect
import linecache
import os
import textwrap
import traceback
from dataclasses import dataclass
from types import CodeType

import torch

from minids import plain
from minids.learn import journal, mine
from minids.learn.attempt import TimeIsUp, call
from minids.learn.checks import PARTS, find
from minids.learn.compare import Difference, difference, probe, same
from minids.learn.exercise import Check, CheckFailed, NotAttempted

WIDTH = 90      # columns of a message
SIZES = ("must match the size", "must match the existing size", "not broadcastable",
         "is invalid for input of size", "cannot be broadcast")
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "LOAD_CONST_IMMORTAL", "RETURN_CONST", "RETURN_VALUE",
         "PRECALL", "COPY_FREE_VARS"}

_attempts: dict[str, object] = {}       # {name of a check: what the learner last handed to it}
_hints_shown: dict[str, int] = {}       # {name of a check: hints that this kernel has shown}


def check(name: str, attempt):
    """Compare `attempt` with the reference of the check `name`, and print the result.

    Returns the function to continue with and prints which one it is: the attempt if it passed,
    otherwise the reference. If it is handed the reference back, it judges what the learner handed
    in before. With MINIDS_STRICT=1, anything but a pass raises `CheckFailed`. Global state, such as
    torch's random state, does not change.
    """
    exercise = find(name)
    if _is_reference(exercise, attempt):
        if name not in _attempts:
            return _fail(exercise, "not attempted", "This is the reference, not your own version. "
                         "Run the cell with your function first, then this one")
        attempt = _attempts[name]
    _attempts[name] = attempt
    verdict, text = judge(exercise, attempt)
    if verdict != "passed":
        return _fail(exercise, verdict, text)
    journal.record(name, "passed")
    if name in PARTS:
        mine.keep(name, attempt)
    _say(f"[passed] {name}. The notebook goes on with your version.")
    return attempt


def judge(exercise: Check, attempt) -> tuple[str, str]:
    """(verdict, text): "passed", "not yet" with what is wrong, or "not attempted"."""
    try:
        complaint = _complaint(exercise, attempt)
    except NotAttempted:
        stuck = f'Stuck? hint("{exercise.name}") gives the first of {len(exercise.hints)} hints'
        return "not attempted", stuck if exercise.hints else ""
    return ("not yet", complaint) if complaint else ("passed", "")


def hint(name: str) -> None:
    """Print the next hint of an exercise; after the last one it starts again."""
    hints = find(name).hints
    if not hints:
        _say(f"[hint] {name} has no hints.")
        return
    number = _hints_shown.get(name, 0) % len(hints)
    _hints_shown[name] = number + 1
    journal.record(name, "hint", f"{number + 1} of {len(hints)}")
    _say(f"[hint {number + 1} of {len(hints)}] {hints[number]}")


def demonstrate(name: str, attempt) -> None:
    """Print what `check` says about an attempt that is not the learner's; nothing is recorded."""
    exercise = find(name)
    verdict, text = judge(exercise, attempt)
    _say(f"[{verdict}] {name}. {_sentence(text)}".rstrip())


def _fail(exercise: Check, verdict: str, text: str):
    journal.record(exercise.name, verdict, text)
    message = f"[{verdict}] {exercise.name}. {_sentence(text)}".rstrip()
    if os.environ.get("MINIDS_STRICT") == "1":
        raise CheckFailed(message)
    _say(message)
    _say("The notebook goes on with the reference.")
    return exercise.reference


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".?!" else f"{text}."


def _say(text: str) -> None:
    print(textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False))


# ---- is there an attempt, and whose is it? ----

def _is_reference(exercise: Check, attempt) -> bool:
    """Whether this is the reference, or a function of minids.plain, instead of the learner's."""
    if not callable(attempt):
        return False
    function = inspect.unwrap(attempt)
    ours = [inspect.unwrap(exercise.reference), *plain.FUNCTIONS.values()]
    return any(function is one for one in ours)


def _codes(attempt) -> set[CodeType]:
    """The code objects of an attempt: of a function, or of a class with its methods."""
    function = inspect.unwrap(attempt)
    owners = vars(function).values() if isinstance(function, type) else [function]
    codes, todo = set(), [code for owner in owners
                          if isinstance(code := getattr(owner, "__code__", None), CodeType)]
    while todo:
        code = todo.pop()
        codes.add(code)
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
    return codes


def _is_empty(attempt) -> bool:
    """Whether the function has no more than a docstring, `pass`, or a constant to return."""
    code = getattr(inspect.unwrap(attempt), "__code__", None)
    return code is not None and all(step.opname in EMPTY for step in dis.get_instructions(code))


def _calls_reference(exercise: Check, attempt) -> str | None:
    """The name under which an attempt uses the reference that `check` handed back, if it does."""
    reference = inspect.unwrap(exercise.reference)
    space = getattr(inspect.unwrap(attempt), "__globals__", {})
    if space.get("__name__", "").startswith("minids."):
        return None         # a known mistake, not a learner's function
    for code in _codes(attempt):
        for name in code.co_names:
            if callable(space.get(name)) and inspect.unwrap(space[name]) is reference:
                return name
    return None


# ---- judging ----

@dataclass
class Outcome:
    """What an attempt did in one case, and what is wrong with it (None if nothing is)."""

    label: str
    args: tuple
    expected: object
    result: object
    used: tuple             # the arguments after the call
    problem: str | None = None
    difference: Difference | None = None


def _complaint(exercise: Check, attempt) -> str | None:
    """None if every case agrees, otherwise what is wrong."""
    if attempt is None or attempt is ...:
        raise NotAttempted
    if not callable(attempt):
        return (f"Expected a function, found {type(attempt).__name__}: pass the function itself, "
                "without calling it")
    if name := _calls_reference(exercise, attempt):
        return f"It calls the reference (as `{name}`): write the function yourself"
    outcomes = []
    for label, args in cases(exercise):
        outcome = _try(exercise, attempt, label, args, first=not outcomes)
        outcomes.append(outcome)
        if isinstance(outcome.result, TimeIsUp):
            return outcome.problem
    wrong = [outcome for outcome in outcomes if outcome.problem]
    if wrong:
        return _named(exercise, outcomes) or _described(exercise, attempt, wrong)
    return _gradient_complaint(exercise, attempt) if exercise.gradient else None


def cases(exercise: Check) -> list:
    """The cases with fresh arguments, the same ones on every call: (label, arguments)."""
    return call(lambda: list(exercise.cases(torch.Generator().manual_seed(0))), ())


def _try(exercise: Check, attempt, label: str, args, first: bool) -> Outcome:
    """Run one case. Raises `NotAttempted` if it is the first and shows that nothing is written."""
    expected = _expected(exercise, args)
    result, used = _run(attempt, args)
    outcome = Outcome(label, args, expected, result, used)
    if first and _shows_a_stub(attempt, result):
        raise NotAttempted
    case = f'In the case "{label}"'
    if isinstance(result, TimeIsUp):
        outcome.problem = f"{case} it did not finish in time: is there a loop that never ends?"
    elif isinstance(result, BaseException):
        outcome.problem = f"{case} it raised {_error(exercise, attempt, args, result)}"
    elif result is None and expected is not None:
        outcome.problem = f"{case} it returned None: is a `return` missing?"
    elif found := _differ(exercise, result, expected):
        also = "; it also changes its own input" if _differ(exercise, used, args) else ""
        outcome.problem, outcome.difference = f"{case}: {found}{also}", found
    elif _differ(exercise, used, args):
        outcome.problem = (f"{case} it changes its own input: work on a copy, without in-place "
                           "operations")
    return outcome


def _expected(exercise: Check, args):
    return call(exercise.reference, copy.deepcopy(args))


def _run(function, args) -> tuple:
    """What a function returns or raises, and its arguments afterwards; `args` stay as they are."""
    used = copy.deepcopy(args)
    return _result(function, used), used


def _result(attempt, args):
    """What the attempt returns, or the exception that it raises."""
    try:
        return call(attempt, args)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a learner's code raises is a result here
        return error


def _shows_a_stub(attempt, result) -> bool:
    if isinstance(result, NotImplementedError):
        *_, (frame, _) = traceback.walk_tb(result.__traceback__)
        return frame.f_code in _codes(attempt)
    return result is ... or result is None and _is_empty(attempt)


def _differ(exercise: Check, actual, expected) -> Difference | None:
    return difference(actual, expected, exercise.atol, exercise.rtol)


# ---- errors in words ----

def _error(exercise: Check, attempt, args, error: BaseException) -> str:
    """The error's name and message, its line, and what may have caused it."""
    text = f"{type(error).__name__}: {_message(error)}"
    if isinstance(error, TypeError) and (advice := _signature_advice(exercise, attempt, args)):
        return f"{text}. {advice}"
    line = _line(attempt, error)
    if suggestion := _nearest(attempt, error):
        advice = f". Did you mean `{suggestion}`?"
    elif any(words in text for words in SIZES):
        advice = _size_advice(line)
    else:
        advice = ""
    return text + (f", in the line `{line}`" if line else "") + advice


def _size_advice(line: str) -> str:
    """What may be wrong with sizes that do not fit, by the line of code where they meet."""
    if "repeat_interleave(" in line and "dim=" not in line:
        return ". Without dim=, repeat_interleave flattens"
    if "keepdim" in line or "None" in line:
        return ""
    return ". Is keepdim=True, or `[:, None]`, missing?"


def _message(error: BaseException) -> str:
    try:
        return (str(error).strip().splitlines() or ["(no message)"])[0][:160].rstrip(".")
    except Exception:
        return "(its message cannot be shown)"


def _line(attempt, error: BaseException) -> str:
    """The last line of the learner's own code that the error passed through."""
    codes = _codes(attempt)
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code in codes:
            return linecache.getline(frame.f_code.co_filename, number).strip()[:70]
    return ""


def _nearest(attempt, error: BaseException) -> str | None:
    """A name that exists and looks like the one that does not."""
    name = getattr(error, "name", None)
    if isinstance(error, NameError) and name:
        names = [*getattr(inspect.unwrap(attempt), "__globals__", {})]
        for code in _codes(attempt):
            names += [*code.co_varnames, *code.co_freevars]
    elif isinstance(error, AttributeError) and name:
        names = dir(error.obj)
    else:
        return None
    return next(iter(difflib.get_close_matches(name, set(names) - {name}, 1, 0.7)), None)


def _signature_advice(exercise: Check, attempt, args) -> str | None:
    """What is wrong with the parameters, if the arguments do not fit them or their order."""
    try:
        signature = inspect.signature(attempt)
        wanted = [*inspect.signature(exercise.reference).parameters][:len(args)]
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args)
    except TypeError:
        return f"The check calls it with ({', '.join(wanted)}); yours takes {signature}"
    have = [*signature.parameters][:len(wanted)]
    if have != wanted and sorted(have) == sorted(wanted):
        return f"It should take ({', '.join(wanted)}), in this order; yours takes {signature}"
    return None


# ---- values in words ----

def _described(exercise: Check, attempt, wrong: list[Outcome]) -> str:
    """A sentence on the first wrong case, with what all the wrong values have in common."""
    first = wrong[0]
    if first.difference is None:
        return first.problem
    if advice := _signature_advice(exercise, attempt, first.args):
        return advice
    pairs = [outcome.difference.pair for outcome in wrong
             if outcome.difference and outcome.difference.place == first.difference.place]
    if len(pairs) == len(wrong) and all(pairs) and (text := probe(pairs)):
        return f'In the case "{first.label}"{_at(first.difference)}: {text}'
    return first.problem


def _at(found: Difference) -> str:
    return f", {found.place}" if found.place else ""


def _named(exercise: Check, outcomes: list[Outcome]) -> str | None:
    """The known mistake that the attempt makes in all cases, or in most of its wrong ones."""
    wrong = [outcome for outcome in outcomes if outcome.problem]
    right = [outcome for outcome in outcomes if not outcome.problem]
    best, most = None, 0.5
    for message, version in exercise.mistakes.items():
        agreed = _agreements(exercise, version, wrong)
        if agreed.count(None) * 2 >= len(wrong):
            continue
        if not all(_agreement(exercise, version, outcome) for outcome in right):
            continue        # the attempt is right where this mistake is wrong
        evidence = "finite" in agreed or len(right) >= len(wrong)
        if all(agreed) and evidence:
            return f"Likely: {message}"
        share = agreed.count("finite") / len(wrong)
        if share > most:
            best, most = message, share
    return f"Perhaps: {best}" if best else None


def _agreements(exercise: Check, version, wrong: list[Outcome]) -> list[str | None]:
    """How a wrong version agrees in each wrong case; it stops when half of them disagree."""
    agreed = []
    for outcome in wrong:
        agreed.append(_agreement(exercise, version, outcome))
        if agreed.count(None) * 2 >= len(wrong):
            break
    return agreed


def _agreement(exercise: Check, version, outcome: Outcome) -> str | None:
    """How a wrong version agrees with the attempt in one case: not at all if None.

    "finite": results with finite values, or errors, that are the same. "nan": results whose only
    values are nan or inf; they are weak evidence, for many mistakes lead there.
    """
    result, used = _run(version, outcome.args)
    if isinstance(result, BaseException):
        same_error = type(result) is type(outcome.result)
        return "finite" if same_error and _message(result) == _message(outcome.result) else None
    tolerances = exercise.atol, exercise.rtol
    if (isinstance(outcome.result, BaseException) or not same(outcome.result, result, *tolerances)
            or not same(outcome.used, used, *tolerances)):
        return None
    return "finite" if _has_finite(result) else "nan"


def _has_finite(value) -> bool:
    """Whether a result has a value that is not nan or inf."""
    tensors = list(_tensors(value))
    return not tensors or any(t.isfinite().any() for t in tensors if t.numel()) or not any(
        t.numel() for t in tensors)


# ---- gradients ----

def _tensors(value):
    """All floating-point tensors in a result or in arguments, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _gradient_complaint(exercise: Check, attempt) -> str | None:
    """What is wrong with gradients in the first case where something is; the values are right."""
    for label, args in cases(exercise):
        try:
            wanted = _gradients(exercise.reference, args)
        except Exception:
            continue        # the reference cannot be differentiated in this case
        if wanted is None or not _can_be_compared(wanted):
            continue
        case = f'The values are right, but in the case "{label}"'
        found = _result(lambda: _gradients(attempt, args), ())
        if isinstance(found, BaseException):
            return f"{case}, with inputs that require gradients, it raised " \
                   f"{_error(exercise, attempt, args, found)}"
        if found is None:
            return (f"{case} no gradient passes through your function: is a result detached, or "
                    "computed by .item(), NumPy, or under no_grad?")
        coarsest = max([1e-3, *(4 * torch.finfo(x.dtype).eps for x in _tensors(args))])
        if not all(_same_gradient(a, b, coarsest) for a, b in zip(found, wanted)):
            return (f"{case} its gradient is wrong: is a part detached that should not be, or the "
                    "other way round?")
    return None


def _gradients(function, args) -> list[torch.Tensor | None] | None:
    """Gradients of a weighted sum of all results with respect to the floating-point inputs.

    None if no result requires grad; None for an input that no result depends on. Where an input is
    0 its gradient is left out (0): a learner may skip the work there, as for experts that are not
    chosen. So is the gradient of an input of -inf, a hidden score: the mask before drops it.
    """
    used = copy.deepcopy(args)
    inputs = [tensor.requires_grad_() for tensor in _tensors(used)]
    results = call(function, used)
    results = [tensor for tensor in _tensors(results) if tensor.requires_grad and tensor.numel()]
    if not results:
        return None
    if not inputs:
        return []           # only a module's parameters require gradients
    generator = torch.Generator().manual_seed(1)
    total = sum((result.float() * torch.randn(result.shape, generator=generator)).sum()
                for result in results)
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [grad if grad is None else grad.masked_fill((x == 0) | ~x.isfinite(), 0)
            for x, grad in zip(inputs, grads)]


def _can_be_compared(gradients) -> bool:
    """Whether the reference's gradients are finite, and not all 0 if there are any."""
    tensors = [grad for grad in gradients if grad is not None]
    finite = all(t.isfinite().all() for t in tensors)
    return finite and (not gradients or any(t.any() for t in tensors))


def _same_gradient(actual, expected, eps: float) -> bool:
    """Whether two gradients agree, up to rounding in another order of operations.

    eps: relative precision. An `actual` of None counts as 0; an `expected` of None is not compared.
    """
    if expected is None or not expected.numel():
        return True
    actual = torch.zeros_like(expected) if actual is None else actual
    largest = expected.abs().max().item()
    return torch.allclose(actual, expected, rtol=2 * eps, atol=1e-5 + eps * largest)
