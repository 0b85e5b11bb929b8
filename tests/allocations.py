"""Count the bytes of tensors that a computation holds at its peak, without taking that memory.

Tensors with shapes and types only (torch's "meta" device) go through the model's own code. Small
integers that decide what is computed, such as the experts of each token, are real.
"""

import threading
import weakref
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from minids.model import Model
from minids.model.block import Block
from minids.weights import layout
from minids.weights.checkpoint import empty
from minids.weights.layout import scale_name
from minids.weights.streamed import Layers, report

CPU = torch.device("cpu")


class Count(TorchDispatchMode):
    """Inside the `with` block: `now` and `peak` are bytes of the tensors on "meta" that live.

    Tensors that were there before count where they are given. An operator that gets tensors on
    "meta" and on the CPU is computed on "meta". Numbers that are asked for are made up.
    """

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0
        self.lock = threading.RLock()           # a thread may read the next layer
        self.add(tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [value for value in leaves((args, kwargs))
                 if isinstance(value, (Tensor, torch.device))]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if any(t.is_meta for t in tensors):
            name = function.name().split(".")[0]
            if name in ("aten::item", "aten::_local_scalar_dense"):
                return 1
            if name in ("aten::to", "aten::_to_copy") and CPU in given:
                return torch.zeros(tensors[0].shape, dtype=tensors[0].dtype)    # in tolist()
            if not all(t.is_meta for t in tensors):
                args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self.add(leaves(result))
        return result

    def add(self, tensors) -> None:
        """Count the memory of new tensors, until it is freed."""
        storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor) and t.is_meta]
        with self.lock:
            for storage in storages:
                if id(storage) not in self.known:
                    self.known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, id(storage), storage.nbytes())
            self.peak = max(self.peak, self.now)

    def free(self, key: int, size: int) -> None:
        with self.lock:
            self.known.discard(key)
            self.now -= size


def leaves(values):
    """What tuples, lists and dicts hold. torch's `tree_leaves` does it too, ten times slower."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from leaves(value)
    elif isinstance(values, dict):
        yield from leaves(list(values.values()))
    else:
        yield values


def layer(config, i: int, dtype: torch.dtype) -> Block:
    """Layer `i` on "meta", its routed experts as they are released, every token to other experts.
    """
    block = empty(lambda: Block(config, config.compress_ratios[i], config.is_hash(i)), dtype)
    types = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
             "BF16": dtype}
    inventory = layout.inventory(config)
    with torch.device("meta"):
        make = lambda name: torch.empty(inventory[name][1], dtype=types[inventory[name][0]])
        for e, expert in enumerate(block.ffn.experts):
            for w in ("w1", "w2", "w3"):
                name = f"layers.{i}.ffn.experts.{e}.{w}.weight"
                scale = scale_name(name)
                getattr(expert, w).store(make(name), make(scale) if scale in inventory else None,
                                         dtype)
    block.ffn.gate.register_forward_hook(spread)
    return block.eval()


def spread(gate, args, output) -> tuple[Tensor, Tensor]:
    """In place of a gate's choices on "meta": experts 0, 1, ... in turn, so that all work alike."""
    N, K = output[1].shape
    return output[0], (torch.arange(N * K) % gate.config.n_routed_experts).view(N, K)


def tensors(module) -> list[Tensor]:
    """The parameters, buffers, codes and scales of a module."""
    stored = [t for m in module.modules() for t in (getattr(m, "codes", None),
                                                    getattr(m, "scale", None))]
    return [t for t in [*module.parameters(), *module.buffers(), *stored]
            if isinstance(t, Tensor)]


@torch.inference_mode()
def of_layer(config, i: int, T: int, dtype: torch.dtype) -> SimpleNamespace:
    """Bytes of one layer's `weights`, and the `peak` of a pass of T tokens through it."""
    block = layer(config, i, dtype)
    X = torch.empty(1, T, config.hc_mult, config.dim, dtype=dtype, device="meta")
    ids = torch.empty(1, T, dtype=torch.int64, device="meta")
    with Count(*tensors(block)) as count:
        weights = count.now
        count.add([X, ids])
        block(X, ids)
    return SimpleNamespace(weights=weights, peak=count.peak)


class Pretended(Layers):
    """The layers of a streamed model on "meta". Each is in memory before the one before it begins.
    """

    def __init__(self, config, dtype: torch.dtype, count: Count) -> None:
        self.config, self.dtype, self.count = config, dtype, count
        self.on_block = lambda i, block: None
        self.queue, self.read = None, [threading.Event() for _ in range(config.n_layers)]

    def __len__(self) -> int:
        return self.config.n_layers

    def __iter__(self):
        for i, block in enumerate(super().__iter__()):
            self.read[min(i + 1, len(self) - 1)].wait(60)
            yield block

    def shell(self, i: int) -> None:
        return None

    def fill(self, shell, i: int) -> Block:
        block = layer(self.config, i, self.dtype)
        stored = sum(layout.nbytes(t) for name, t in layout.inventory(self.config).items()
                     if name.startswith(f"layers.{i}.") and ".experts." not in name)
        # a layer is read as one piece of memory, which lives as long as its experts
        block.stored = torch.empty(stored, dtype=torch.uint8, device="meta")
        self.count.add([*tensors(block), block.stored])
        self.read[i].set()
        return block


def of_report(config, T: int, dtype: torch.dtype) -> int:
    """The peak of `streamed.report` on a text of T tokens."""
    plain = config.replace(n_layers=1, compress_ratios=(0,), n_hash_layers=0, n_mtp_layers=0,
                           n_routed_experts=config.n_activated_experts)
    model = empty(lambda: Model(plain), dtype)
    del model.layers
    with Count(*model.parameters()) as count:
        model.layers, model.config = Pretended(config, dtype, count), config
        report(model, [1] * T)
    return count.peak
