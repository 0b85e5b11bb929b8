"""A pretended accelerator: tests of code for devices, on a machine without one.

Its tensors say that they are on the device "pretended:0", are kept and computed on the CPU, and
raise as CUDA's do when devices mix. It is registered with torch for the whole process, as a real
one would be, so such tests run in a process of their own: write them in a file `on_*.py`, which
pytest does not collect by itself, and let a test call `run("tests/.../on_something.py")`. In
there:

    device = pretended.start()                  # once; torch.device("pretended", 0)
    with pretended.rules("apple"): ...          # what the device lacks: see RULES
    with pretended.syncs() as count: ...        # count.total, count.by (Counter of reasons)

How it works: the device is registered through torch's interface for backends in Python; tensors
are wrappers around CPU tensors, and each operator passes through `__torch_dispatch__`. What it does
not imitate: streams, events, pinned memory, several devices of the kind, autocast.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from minids.system import devices

NAME = "pretended"
ROOT = Path(__file__).resolve().parent.parent
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz,
          torch.float8_e5m2fnuz)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
# what a device lacks, by the name of its rules: number types, and operators
RULES = {
    "all": ((), ()),
    "apple": ((torch.float64, torch.complex128, *FLOAT8), ("mps",)),
    "no complex": ((torch.float64, *COMPLEX, *FLOAT8), ("frexp",)),
    "least": ((torch.float64, *COMPLEX, *FLOAT8), ("mps", "frexp")),    # what either lacks
}
_rules = "all"
_counters, _makers = [], []

aten = torch.ops.aten
COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd
# a CPU tensor may take part in these: as a source, or as indices that are moved by themselves
MIXES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default, aten._unsafe_index.Tensor,
           aten._unsafe_index_put.default}
# operators that wait for the device, since the host needs a result or the result's size
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default,
         aten.is_nonzero.default, aten.masked_select.default, aten._unique2.default,
         aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default,
         aten.repeat_interleave.Tensor, aten.allclose.default}
# views that torch resolves later, by a flag that a wrapped tensor would lose
PHYSICAL = {aten._conj.default: aten.conj_physical.default,
            aten._neg_view.default: aten.neg.default}


class Count:
    """How often the host waited for the device, and why: {reason: times}."""

    def __init__(self):
        self.by = Counter()

    @property
    def total(self) -> int:
        return sum(self.by.values())


@contextmanager
def syncs():
    """Counts, inside, each wait of the host for the device: `item`, `tolist`, `bool` and `nonzero`,
    indexing with a mask, copies to the host, and copies from it without `non_blocking`."""
    count = Count()
    _counters.append(count)
    try:
        yield count
    finally:
        _counters.remove(count)


@contextmanager
def rules(name: str):
    """Inside, the device lacks what these rules say: see `RULES`."""
    global _rules
    before, _rules = _rules, name
    devices._can_compute.cache_clear()
    try:
        yield
    finally:
        _rules = before
        devices._can_compute.cache_clear()


class Made:
    """How many tensors came to the device."""

    count = 0


@contextmanager
def made():
    """Counts, inside, the tensors that come to the device or are made there."""
    tensors = Made()
    _makers.append(tensors)
    try:
        yield tensors
    finally:
        _makers.remove(tensors)


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device; `raw` is the CPU tensor with its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=_device())
        tensor.raw = raw
        return tensor

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.raw = value.raw

    # torch lets subclasses do less than tensors of a real device, here and there
    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to "
                        "copy the tensor to host memory first.")

    __array__ = numpy

    def __format__(self, spec):
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __deepcopy__(self, memo):
        copy = self.detach().clone()
        if getattr(self, "_is_param", False):
            copy = torch.nn.Parameter(copy)
        copy.requires_grad_(self.requires_grad)
        copy.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
        return memo.setdefault(id(self), copy)

    def data_ptr(self):
        return self.raw.data_ptr()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    def storage(self):
        return self.raw.storage()

    def __repr__(self, *, tensor_contents=None):
        return f"{self.raw!r:.200} on {NAME}:0"

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


def _run(operator, args, kwargs):
    """Compute an operator on the CPU tensors that its tensors wrap, and wrap the results."""
    if torch.is_inference_mode_enabled() and _is_composed(operator):
        return operator.decompose(*args, **kwargs)      # else its parts would not come by here
    tensors = []
    raw_args = _to_cpu(args, tensors)
    raw_kwargs = {key: _to_cpu(value, tensors) for key, value in kwargs.items()}
    _check_operator(operator)
    _check_devices(operator, args, kwargs, tensors)
    target = kwargs.get("device")
    here = target is None or torch.device(target).type == NAME
    if operator in MIXES and not isinstance(args[0], PretendedTensor):
        here = False                                        # a copy into a tensor of the CPU
    _count(operator, args, kwargs, here)
    result = PHYSICAL.get(operator, operator)(*raw_args, **raw_kwargs)
    if _written(operator):
        for x in tensors:
            if type(x) is PretendedTensor and x.raw.shape != x.shape:
                raise NotImplementedError(f"{operator} resizes its output: unknown to {NAME}")
    return _to_here(result, tensors) if here else result


@cache
def _is_composed(operator) -> bool:
    return operator.has_kernel_for_dispatch_key(COMPOSED)


def _to_cpu(x, tensors: list):
    """An argument with CPU tensors in place of those of the device; adds all tensors to a list."""
    kind = type(x)
    if kind is PretendedTensor:
        tensors.append(x)
        return x.raw
    if kind in (list, tuple):
        return kind([_to_cpu(item, tensors) for item in x])
    if isinstance(x, torch.Tensor):
        tensors.append(x)
    return torch.device("cpu") if kind is torch.device else x


def _to_here(x, tensors: list):
    """A result with tensors of the device; one that is an argument comes back as itself."""
    if isinstance(x, torch.Tensor):
        for known in tensors:
            if type(known) is PretendedTensor and known.raw is x:
                return known
        if x.is_inference() == torch.is_inference_mode_enabled():
            return wrap(x)
        with torch.inference_mode(x.is_inference()):     # a view of a tensor made outside of it
            return wrap(x)
    if isinstance(x, list | tuple):
        items = [_to_here(item, tensors) for item in x]
        return items if isinstance(x, list) else tuple(items)
    return x


def wrap(raw: torch.Tensor) -> PretendedTensor:
    """A tensor of the pretended device with the numbers of `raw`, whose memory it shares."""
    _check_type(raw.dtype)
    for tensors in _makers:
        tensors.count += 1
    return PretendedTensor(raw)


def _check_type(dtype: torch.dtype) -> None:
    if dtype in RULES[_rules][0]:
        raise TypeError(f"Cannot convert a {NAME} Tensor to {dtype} dtype as the {NAME} framework "
                        f"doesn't support {dtype}")


def _check_operator(operator) -> None:
    if _lacks(operator, _rules):
        raise NotImplementedError(f"The operator '{operator}' is not currently implemented for the "
                                  f"{NAME} device")


@cache
def _lacks(operator, rules: str) -> bool:
    lacks = RULES[rules][1]
    name = operator._schema.name.removeprefix("aten::")
    return name in lacks or "mps" in lacks and not _on_apple(operator)


def _check_devices(operator, args, kwargs, tensors) -> None:
    """Raise where CUDA does: CPU tensors take part only as numbers, as indices, or to be copied."""
    if "generator" in kwargs:
        _check_generator(kwargs["generator"])
    foreign = [x for x in tensors if type(x) is not PretendedTensor]
    if not foreign or operator in MIXES:
        return
    if operator in INDEXES:
        if isinstance(args[0], PretendedTensor) and all(
                isinstance(x, PretendedTensor) or not x.dim() for x in args[2:3]):
            return
    elif all(x.dim() == 0 for x in foreign) and _takes_numbers(operator):
        written = []
        for i in _written(operator):
            _to_cpu(args[i] if i < len(args) else list(kwargs.values()), written)
        if all(type(x) is PretendedTensor for x in written):
            return
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two "
                       f"devices, {NAME}:0 and cpu! (in {operator})")


@cache
def _written(operator) -> list[int]:
    """The numbers of the arguments that an operator writes to."""
    return [i for i, argument in enumerate(operator._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write]


def _check_generator(generator) -> None:
    if generator is not None and generator._cdata not in _generators:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


@cache
def _takes_numbers(operator) -> bool:
    """Whether an operator takes a tensor without dimensions from the CPU as a number."""
    return (torch.Tag.pointwise in operator.tags or operator._schema.name in (
        "aten::fill_", "aten::masked_fill", "aten::masked_fill_", "aten::where", "aten::lerp")
        or operator._schema.name.startswith("aten::_foreach"))


def _count(operator, args, kwargs, here) -> None:
    if not _counters:
        return
    reason = None
    if operator in WAITS:
        reason = str(operator)
    elif operator in INDEXES:
        kinds = {x.dtype for x in args[1] if x is not None}
        if kinds & {torch.bool, torch.uint8}:
            reason = "index with a mask"
        elif any(not isinstance(x, PretendedTensor) for x in args[1] if x is not None):
            reason = "index from the host"
    elif operator is aten._to_copy.default and not here:
        reason = "copy to the host"
    elif operator is aten.copy_.default:
        if not isinstance(args[0], PretendedTensor):
            reason = "copy to the host"
        elif not isinstance(args[1], PretendedTensor):
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            reason = "copy from the host" if blocks else None
    if reason:
        for counter in _counters:
            counter.by[reason] += 1


@cache
def _on_apple(operator) -> bool:
    """Whether torch has this operator for Apple's GPUs, by its list of native functions."""
    name = operator._schema.name.removeprefix("aten::")
    overload = operator._overloadname.replace("default", "")
    # what is for all devices may call its own form with `out=`, which is not: frexp
    forms = f"{name}.{overload}".rstrip("."), f"{name}.{overload}_out".replace("._", ".")
    return all(_kernels(form) & {"MPS", "all"} for form in forms)


def _kernels(name: str) -> set[str]:
    """Which devices an operator has kernels for; "all" if it is composed of other operators, or is
    not in the list, as many generated variants are not."""
    entry = _native_functions().get(name, "")
    if delegate := re.search(r"structured_delegate: (\S+)", entry):
        entry = _native_functions()[delegate[1]]
    keys = re.findall(r"^    ([\w, ]+): \w+", entry.partition("dispatch:")[2], re.M)
    kernels = {key.strip() for line in keys for key in line.split(",")}
    return kernels | {"all"} if not kernels or any("Composite" in key for key in kernels) \
        else kernels


@cache
def _native_functions() -> dict[str, str]:
    """{name: entry} of the list of native functions that torch's wheel carries."""
    import torchgen
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = path.read_text(encoding="utf-8").split("\n- func: ")[1:]
    return {entry.partition("(")[0]: entry for entry in entries}


class PretendedGenerator(torch.Generator):
    """A generator that says it is on the pretended device."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type != NAME:
            return _Generator(device)
        generator = super().__new__(cls, "cpu")
        _generators[generator._cdata] = generator
        return generator

    @property
    def device(self):
        return torch.device(NAME, 0)


_Generator = torch.Generator
_generators = WeakValueDictionary()     # by address: operators see other Python objects


class _Module:
    """What torch asks of `torch.pretended`."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    set_device = synchronize = manual_seed = manual_seed_all = staticmethod(lambda *_: None)
    is_bf16_supported = staticmethod(lambda: True)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    get_rng_state = staticmethod(lambda device=0: torch.random.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=0: torch.random.set_rng_state(state))


# they make tensors from nothing; what is not named here fills an empty tensor
FACTORIES = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step",
             "eye", "eye.m", "linspace", "logspace", "randperm", "randperm.generator",
             "tril_indices", "triu_indices", "scalar_tensor", "_efficientzerotensor", "range",
             "range.step")


@cache
def start() -> torch.device:
    """Register the device for the rest of this process, and return it.

    It has to be done before the first backward pass: torch then starts a thread for each device.
    """
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in FACTORIES:
        base, _, overload = name.partition(".")
        library.impl(name, _factory(getattr(getattr(aten, base), overload or "default")))
    library.impl("_copy_from", _copy_from)      # where torch leaves `__torch_dispatch__` out
    start.library = library                     # it ends with its last reference
    # a module's parameters become new ones: torch's way to change them in place skips `raw`
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Generator = PretendedGenerator
    return _device()


@cache
def _device() -> torch.device:
    return torch.device(NAME, 0)


def _factory(operator):
    def make(*args, device=None, pin_memory=None, generator=None, **kwargs):
        _check_generator(generator)
        if kwargs.get("dtype") is not None:
            _check_type(kwargs["dtype"])
        _check_operator(operator)
        extra = {} if generator is None else {"generator": generator}
        return wrap(operator(*args, **kwargs, **extra, device="cpu"))
    return make


def _copy_from(source, target, non_blocking=False):
    _run(aten.copy_.default, (target, source), {"non_blocking": non_blocking})
    return target


def run(file: str, *options: str) -> None:
    """Run a file of tests in a process of its own; fail with its output if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
               "-p", "no:nbval", file, *options]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
