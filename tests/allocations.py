"""Count the bytes of tensors that a computation holds at its peak, without taking that memory.

Tensors with shapes and types only (torch's "meta" device) go through the model's own code. Small
integers that decide what is computed, such as the experts of each token, are real.
"""

import weakref
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from minids.model.block import Block
from minids.weights import layout
from minids.weights.checkpoint import empty
from minids.weights.layout import scale_name


class Count(TorchDispatchMode):
    """Inside the `with` block: `now` and `peak` are bytes of the tensors on "meta" that live.

    Tensors that were there before count where they are given. An operator that gets tensors on
    "meta" and on the CPU is computed on "meta".
    """

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0
        self.add(tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(t.is_meta for t in given):
            args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result

    def add(self, tensors) -> None:
        """Count the memory of new tensors, until it is freed."""
        for t in tensors:
            if isinstance(t, Tensor) and t.is_meta:
                storage = t.untyped_storage()
                if id(storage) not in self.known:
                    self.known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


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
