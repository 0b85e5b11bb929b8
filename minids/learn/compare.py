"""Comparing an attempt's result with the expected one, and putting the difference into words."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

SEQUENCES = (tuple, list)


@dataclass
class Difference:
    """The first place where two results differ.

    `place` is where, such as "result 2" or "['x']", empty for the result itself. `text` says what
    is wrong, as a sentence without its period. `pair` holds (actual, expected) as two float64
    tensors of one shape where only the values differ, otherwise None.
    """

    text: str | Callable[[], str]       # what takes long to say is said when it is needed
    place: str = ""
    pair: tuple | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def difference(actual, expected, atol: float, rtol: float) -> Difference | None:
    """The first difference: of kind, length, shape, dtype, device, then values; None if none.

    A float is wrong if it is off by more than atol + rtol * |expected|.
    """
    try:
        found = _difference(actual, expected, atol, rtol, "")
        if found and callable(found.text):
            found.text = found.text()
        return found
    except Exception as error:      # a learner's object may refuse any operation
        return Difference(f"the result cannot be compared with {kind(expected)} "
                          f"({type(error).__name__}), found {kind(actual)}")


def same(actual, expected, atol: float, rtol: float) -> bool:
    """Whether there is no difference; quicker than to say which one."""
    try:
        return _difference(actual, expected, atol, rtol, "") is None
    except Exception:
        return False


def _difference(actual, expected, atol, rtol, place) -> Difference | None:
    if isinstance(expected, Mapping):
        return _of_mappings(actual, expected, atol, rtol, place)
    if isinstance(expected, SEQUENCES):
        return _of_sequences(actual, expected, atol, rtol, place)
    if isinstance(expected, torch.Tensor):
        return _of_tensors(actual, expected, atol, rtol, place)
    if is_number(expected) and not isinstance(expected, (bool, np.bool_)):
        return _of_numbers(actual, expected, atol, rtol, place)
    if isinstance(expected, torch.nn.Module):
        if not isinstance(actual, torch.nn.Module):
            return Difference(f"expected a module, found {kind(actual)}", place)
        return _of_mappings(dict(actual.state_dict()), dict(expected.state_dict()), atol, rtol,
                            place)
    return _of_objects(actual, expected, place)


def _of_mappings(actual, expected, atol, rtol, place) -> Difference | None:
    if not isinstance(actual, Mapping):
        return Difference(f"expected a dict with the keys {sorted(expected, key=str)}, "
                          f"found {kind(actual)}", place)
    missing, extra = set(expected) - set(actual), set(actual) - set(expected)
    if missing or extra:
        parts = [f"{sorted(missing, key=str)} are missing"] * bool(missing)
        parts += [f"{sorted(extra, key=str)} do not belong there"] * bool(extra)
        return Difference(f"the dict's keys are wrong: {' and '.join(parts)}", place)
    return _first(((actual[key], expected[key], f"{place}[{key!r}]") for key in expected),
                  atol, rtol)


def _of_sequences(actual, expected, atol, rtol, place) -> Difference | None:
    given = actual
    if isinstance(given, (torch.Tensor, np.ndarray)) and given.ndim:
        actual = list(given)        # three results in a tensor are three results
    if not isinstance(actual, SEQUENCES) or len(actual) != len(expected):
        return Difference(f"expected a {type(expected).__name__} of {len(expected)}, "
                          f"found {kind(given)}", place)
    start = f"{place}, " if place else ""
    found = _first(((a, b, f"{start}result {i}")
                    for i, (a, b) in enumerate(zip(actual, expected), 1)), atol, rtol)
    if found and _exchanged(actual, expected, atol, rtol):
        return Difference("the results are right, but they stand in the wrong order", place)
    return found


def _first(triples, atol, rtol) -> Difference | None:
    """The first difference of some (actual, expected, place)."""
    for actual, expected, place in triples:
        if found := _difference(actual, expected, atol, rtol, place):
            return found
    return None


def _exchanged(actual, expected, atol, rtol) -> bool:
    """Whether two to four results are right but for their order."""
    if not 2 <= len(expected) <= 4:
        return False
    left = list(expected)
    for a in actual:
        match = next((i for i, b in enumerate(left) if same(a, b, atol, rtol)), None)
        if match is None:
            return False
        del left[match]
    return True


def _of_tensors(actual, expected, atol, rtol, place) -> Difference | None:
    if is_number(actual) and expected.ndim == 0:
        return _of_numbers(actual, expected.item(), atol, rtol, place)
    if not isinstance(actual, torch.Tensor):
        return Difference(f"expected {kind(expected)}, found {kind(actual)}", place)
    if actual.layout != expected.layout:
        return Difference("expected a dense tensor, found a sparse one", place)
    if actual.device != expected.device:
        return Difference(f"expected a tensor on the device {expected.device}, found one on "
                          f"{actual.device}", place)
    if actual.shape != expected.shape:
        return Difference(lambda: _shapes(actual, expected, atol, rtol), place)
    if actual.dtype != expected.dtype:
        return Difference(f"expected dtype {expected.dtype}, found {actual.dtype}", place)
    if expected.is_floating_point():
        # In bfloat16 another order of operations may round differently.
        rtol = max(rtol, 2 * torch.finfo(expected.dtype).eps)
    a, b = _wide(actual), _wide(expected)
    if torch.allclose(a, b, rtol=rtol, atol=atol if expected.is_floating_point() else 0.0,
                      equal_nan=True):
        return None
    return Difference(lambda: _values(a, b, actual, expected, atol, rtol), place,
                      None if expected.is_complex() else (a, b))


def _shapes(actual, expected, atol, rtol) -> str:
    text = f"expected shape {tuple(expected.shape)}, found {tuple(actual.shape)}"
    if actual.ndim >= 2 and actual.mT.shape == expected.shape and same(
            actual.mT, expected, atol, rtol):
        return f"{text}: the result is transposed"
    if actual.numel() == expected.numel() and same(actual.reshape(expected.shape), expected, atol,
                                                   rtol):
        return f"{text}: the numbers are right, their shape is not"
    return text


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The values in double precision, or as integers that compare exactly."""
    tensor = tensor.detach()
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor


def _values(a, b, actual, expected, atol, rtol) -> str:
    """What to say of values that differ. a, b: actual and expected in double precision."""
    if expected.is_floating_point() and not torch.isfinite(a[torch.isfinite(b)]).all():
        if torch.isinf(a[torch.isfinite(b)]).any():
            return "the result is infinite where it should be finite: the numbers run away"
        return ("the result is nan where it should be finite: 0 / 0, the mean of nothing, or "
                "numbers that run away?")
    wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol if expected.is_floating_point() else 0.0,
                           equal_nan=True)
    if not expected.is_floating_point():
        place = tuple(wrong.nonzero()[0].tolist())
        at = f" at {list(place)}" if place else ""
        return (f"{int(wrong.sum())} of {wrong.numel()} values differ; the first{at} is "
                f"{actual[place].item()} and should be {expected[place].item()}")
    largest = (a - b).abs().nan_to_num().max()
    count = f"{int(wrong.sum())} of {wrong.numel()} values are not"
    count = "the values are not" if wrong.all() else count
    return f"shape and dtype are right, {count}: the largest difference is {largest:.3g}"


def _of_numbers(actual, expected, atol, rtol, place) -> Difference | None:
    if isinstance(actual, (torch.Tensor, np.ndarray)):
        if actual.size != 1 if isinstance(actual, np.ndarray) else actual.numel() != 1:
            return Difference(f"expected one number, found {kind(actual)}", place)
        actual = actual.item()
    if not is_number(actual):
        return Difference(f"expected a number, found {kind(actual)}", place)
    if is_whole(actual) and is_whole(expected):
        # Counts are exact, and may be too large for a float.
        if int(actual) == int(expected):
            return None
        return Difference(f"the number is off by {int(actual) - int(expected):+,}", place,
                          _pair(actual, expected))
    a, b = float(actual), float(expected)
    # A learner's float may come from float32.
    if a == b or a != a and b != b or math.isfinite(b) and abs(a - b) <= atol + rtol * abs(b):
        return None
    return Difference(f"the number is {a:.6g} and should be {b:.6g}", place, _pair(a, b))


def _pair(a, b) -> tuple:
    return torch.tensor(float(a), dtype=torch.double), torch.tensor(float(b), dtype=torch.double)


def is_number(value) -> bool:
    """Whether this is a real number, of Python's or NumPy's."""
    return isinstance(value, (numbers.Real, np.number, np.bool_))


def is_whole(value) -> bool:
    return isinstance(value, (numbers.Integral, np.integer))


def _of_objects(actual, expected, place) -> Difference | None:
    try:
        if actual is expected or bool(actual == expected):
            return None
    except Exception:       # two objects of one class that cannot be compared count as equal
        if type(actual) is type(expected):
            return None
    if isinstance(expected, (bool, np.bool_)):
        if isinstance(actual, (bool, np.bool_)) or actual is None:
            return Difference(f"the answer is {actual}, and should be {expected}", place)
        return Difference(f"expected True or False, found {kind(actual)}", place)
    if isinstance(expected, str) and isinstance(actual, str):
        return Difference(f"the text is {_short(actual)}, and should be {_short(expected)}", place)
    if isinstance(expected, (set, frozenset)) and isinstance(actual, (set, frozenset)):
        missing, extra = expected - actual, actual - expected
        parts = [f"{_some(missing)} missing"] * bool(missing)
        parts += [f"{_some(extra)} too many"] * bool(extra)
        return Difference(f"the set is wrong: {', '.join(parts)}", place)
    if type(actual) is not type(expected):
        return Difference(f"expected {kind(expected)}, found {kind(actual)}", place)
    if callable(expected) or type(expected).__eq__ is object.__eq__:
        return None     # objects that cannot be compared
    return Difference(f"the {type(expected).__name__} is not the expected one", place)


def _some(values) -> str:
    shown = sorted(map(repr, values))[:3]
    return ", ".join(shown) + (f" and {len(values) - 3} more" if len(values) > 3 else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def kind(value) -> str:
    """What sort of value this is, with its article: "a str", "a tensor of shape (2, 3)"."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape}"
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIO" else "a"
    if isinstance(value, Sequence) and not isinstance(value, str) or isinstance(
            value, (set, frozenset)):
        return f"{article} {name} of {len(value)}"
    return f"{article} {name}"


# ---- what sort of mistake the numbers show ----

def probe(pairs) -> str | None:
    """What is wrong with the values in all of these cases, in words; None if no probe knows.

    pairs: (actual, expected) of each wrong case, float64 tensors of one shape each.
    """
    if not pairs or not all(a.isfinite().all() and b.isfinite().all() for a, b in pairs):
        return None
    for test in (_factor, _shift, _order, _rows):
        if text := test(pairs):
            return text
    return None


def _constant(values: list[torch.Tensor]) -> list[float] | None:
    """One constant for each case, if each case has one; a single number is no evidence."""
    if not all(len(v) and torch.allclose(v, v[0].expand_as(v), rtol=2e-4, atol=1e-9)
               for v in values):
        return None
    constants = [v[0].item() for v in values]
    if max(map(len, values)) == 1 and (
            len(values) < 2 or not all(abs(c - constants[0]) <= 2e-4 * abs(constants[0])
                                       for c in constants)):
        return None
    return constants


def _factor(pairs) -> str | None:
    if not all(torch.equal(a.abs() < 1e-9, b.abs() < 1e-9) for a, b in pairs):
        return None
    constants = _constant([(a / b)[b.abs() >= 1e-9] for a, b in pairs])
    if not constants or all(abs(c - 1) < 1e-3 for c in constants):
        return None
    if all(abs(c + 1) < 1e-3 for c in constants):
        return "every value has the wrong sign"
    return f"every value is {constants[0]:.4g} times what it should be"


def _shift(pairs) -> str | None:
    constants = _constant([(a - b).flatten() for a, b in pairs])
    if not constants:
        return None
    word = "large" if constants[0] > 0 else "small"
    return f"every value is too {word} by {abs(constants[0]):.4g}"


def _order(pairs) -> str | None:
    if not all(a.numel() > 2 and torch.allclose(a.flatten().sort()[0], b.flatten().sort()[0],
                                                rtol=1e-4, atol=1e-6) for a, b in pairs):
        return None
    if all(a.ndim >= 2 and a.mT.shape == b.shape and torch.allclose(a.mT, b, rtol=1e-4, atol=1e-6)
           for a, b in pairs):
        return "the result is transposed"
    return "the numbers are the right ones, but they stand in another order"


def _rows(pairs) -> str | None:
    """Whether only the first, or all but the first (or last), along some axis are right."""
    for axis in range(-1, -min(a.ndim for a, _ in pairs) - 1, -1):
        right = [torch.isclose(a, b, rtol=1e-4, atol=1e-5).transpose(axis, 0).flatten(1).all(1)
                 if a.ndim > 1 else torch.isclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs]
        if not all(len(r) >= 3 and r.any() for r in right):
            continue
        which = f"along axis {axis}"
        if all(r[0] and not r[1:].any() for r in right):
            return f"only the first entry {which} is right"
        if all(r[1:].all() for r in right):
            return f"all entries {which} are right but the first"
        if all(r[:-1].all() for r in right):
            return f"all entries {which} are right but the last"
    return None
