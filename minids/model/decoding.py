"""One token through an attention layer with its state, in a few calls instead of a few hundred.

The same mathematics as `attention.py`, `compressor.py` and `indexer.py`, for one token of each
sequence, plain float32 weights on a CPU, and no gradient. At one token the arithmetic takes some
microseconds, and each call of torch takes as long again. So a layer's weights are found once for a
state, and the kernels whose names begin with `decode` do the rest.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minids.config import CSA_RATE
from minids.model import kernels, passes
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer
from minids.model.kernels import (
    decode_attention,
    decode_compressor,
    decode_indexer,
    decode_products,
    decode_queries,
)
from minids.model.linear import Linear
from minids.model.norm import RMSNorm
from minids.model.passes import Pass
from minids.model.rotary import Rotary
from minids.model.state import CompressorState, LayerState

Array = NDArray[np.float32]
Weights = dict[str, Array]

FEW = 8         # so many rows multiply a matrix faster in a kernel than in torch


def functions() -> tuple[Any, ...]:
    """What this file computes in its own way; where a lesson has replaced one, it does not."""
    return (Linear.forward, RMSNorm.forward, Compressor.forward, Compressor.pool, Indexer.forward,
            Indexer.keys, Indexer.queries, passes.incomplete, passes.outside)


OURS = functions()


class LayerWeights:
    """A layer's parameters as arrays that share their memory. A state holds them."""

    def __init__(self, layer: Any) -> None:
        modules, parameters = list(layer.modules()), dict(layer.named_parameters())
        self.layer, self.inner = layer, modules[1:]
        self.linears = [module for module in modules if isinstance(module, Linear)]
        self.parts = [(parts, name, part) for module in modules
                      for parts in (module._modules, module._parameters)
                      for name, part in parts.items()]
        self.parameters = list(parameters.values())
        self.addresses = [p.data_ptr() for p in self.parameters]
        self.plain = (kernels.on("decode", *self.parameters)
                      and all(p.is_contiguous() for p in self.parameters)
                      and {type(module) for module in self.inner}
                      <= {Linear, RMSNorm, Compressor, Indexer})
        self.arrays = {name: p.detach().numpy() for name, p in parameters.items()} \
            if self.plain else {}

    def fit(self, layer: Any) -> bool:
        """Whether these still are the layer's parameters."""
        return (self.layer is layer
                and all(parts.get(name) is part for parts, name, part in self.parts)
                and [p.data_ptr() for p in self.parameters] == self.addresses)

    def usable(self) -> bool:
        """Whether the layer computes with its parameters as they are, and nobody watches it."""
        layer = self.layer
        if not self.plain or layer.round_keys:
            return False
        for linear in self.linears:
            if linear.codes is not None or linear.round_input:
                return False
        for module in self.inner:
            if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
                return False
        if not layer.ratio:
            return True
        rounds = layer.compressor.round_keys or layer.compressor.round_index
        if layer.ratio == CSA_RATE:
            inner = layer.indexer
            rounds |= inner.round_queries or inner.compressor.round_keys \
                or inner.compressor.round_index
        return not rounds


def possible(layer: Any, x: Tensor, current: Pass, state: LayerState) -> bool:
    """Whether `attention` can compute the layer's output for these inputs. x: B T d."""
    options = current.options
    if (x.shape != (len(state.keys), 1, layer.config.dim) or torch.is_grad_enabled()
            or current.packing or options.index or options.dense
            or not kernels.on("decode", x, state.keys) or functions() != OURS):
        return False
    for part in state.compressors:      # a lesson may have taken tokens out of a state
        if not part.has_read(current.pos):
            return False
    if state.weights is None or not state.weights.fit(layer):
        state.weights = LayerWeights(layer)
    return state.weights.usable()


def attention(layer: Any, x: Tensor, current: Pass, state: LayerState) -> Tensor:
    """The layer's output for one more token of each sequence: B 1 d -> B 1 d. See `Attention`."""
    cfg, w = layer.config, state.weights.arrays
    x = x.contiguous()
    rows: Array = x.detach().numpy()[:, 0]                                       # N d
    rot = rotation(layer.rotary, current.pos, current)                           # c

    qr, kv = product(rows, w["wq_a.weight"]), product(rows, w["wkv.weight"])
    keys, at = state.step()
    window = keys.numpy()
    decode_queries.latents(qr, w["q_norm.weight"], kv, w["kv_norm.weight"], cfg.norm_eps, rot,
                           window, at)
    q = product(qr, w["wq_b.weight"])                                            # N Hc

    entries, count, picks = window, 0, np.empty((1, 0), np.int64)
    if state.compressor is not None:
        entries = compressed(layer.compressor, "compressor.", rows, current, state.compressor, w)
        count = state.compressor.count
    if state.indexer is not None:
        index = compressed(layer.indexer.compressor, "indexer.compressor.", rows, current,
                           state.indexer, w)
        if count > cfg.index_topk:
            picks = chosen(layer.indexer, rows, qr, index, count, current, w)
            count = cfg.index_topk

    o = np.empty_like(q)
    begin = at + 1 - min(current.pos + 1, cfg.window_size)
    attend = decode_attention.attend if len(q) <= FEW else decode_attention.attend_many
    attend(q, cfg.norm_eps, rot, window, begin, at + 1, entries, count, picks, w["attn_sink"], o)
    y = torch.empty_like(x)
    product(product(o, w["wo_a.weight"]), w["wo_b.weight"], y.numpy()[:, 0])
    return y


def rotation(rotary: Rotary, position: int, current: Pass) -> Array:
    """The rotation of a position: c, see `decode_queries.rotation`. Made once a pass."""
    key = "decoding", rotary.kind, position
    if key not in current.tables:
        w = np.array(rotary.w, np.float32)
        current.tables[key] = np.empty(2 * len(w), np.float32)
        decode_queries.rotation(position, w, current.tables[key])
    return current.tables[key]


def product(x: Array, W: Array, y: Array | None = None) -> Array:
    """x W^T, or with g groups in a row of x, each with its own block of W; into y, where given.

    x: N gi, W: gr i -> N gr.
    """
    N, (out, size) = len(x), W.shape
    y = np.empty((N, out), np.float32) if y is None else y
    if N <= FEW:
        decode_products.product(x, W, y)
    elif x.shape[1] == size:
        torch.mm(torch.from_numpy(x), torch.from_numpy(W).T, out=torch.from_numpy(y))
    else:
        g = x.shape[1] // size
        groups = torch.from_numpy(x).view(N, g, size).transpose(0, 1)            # g N i
        grouped = torch.bmm(groups, torch.from_numpy(W).view(g, -1, size).mT)    # g N r
        torch.from_numpy(y).view(N, g, -1).copy_(grouped.transpose(0, 1))
    return y


def compressed(compressor: Any, name: str, x: Array, current: Pass, state: CompressorState,
               w: Weights) -> Array:
    """Read one more token of each sequence. The array of the entries, of which the first
    `state.count` are there: N any width. See `Compressor`."""
    wkv, wgate = w[name + "wkv.weight"], w[name + "wgate.weight"]
    tokens_kv, tokens_z, at = state.step()
    kv, z = tokens_kv.numpy(), tokens_z.numpy()                                  # N any fc
    if len(x) <= FEW:
        decode_compressor.wait(x, wkv, wgate, kv, z, at)
    else:
        kv[:, at], z[:, at] = product(x, wkv), product(x, wgate)
    entries: Array = state.entries.numpy()
    m, width = compressor.ratio, compressor.width
    if state.last - state.first == m:
        before = state.before or halves_before_the_first(len(x), m if compressor.overlap else 0,
                                                         width)
        a_kv, a_z = kernels.arrays(*before)
        after = torch.empty(a_kv.shape), torch.empty(a_z.shape)
        rot = rotation(compressor.rotary, state.count * m, current)
        decode_compressor.pool(kv, z, state.first, w[name + "ape"], a_kv, a_z, after[0].numpy(),
                               after[1].numpy(), w[name + "norm.weight"], compressor.norm.eps, rot,
                               entries, state.count)
        state.complete(after if compressor.overlap else None)
    return entries


def halves_before_the_first(N: int, m: int, width: int) -> tuple[Tensor, Tensor]:
    """a-halves that no window has left: N m width, m = 0 without overlap."""
    return torch.zeros(N, m, width), torch.full((N, m, width), -float("inf"))


def chosen(indexer: Any, x: Array, qr: Array, keys: Array, count: int, current: Pass,
           w: Weights) -> NDArray[np.int64]:
    """The numbers of the k of `count` entries that each token reads: N k. See `Indexer`.

    x: N d, qr: N q_lora_rank, keys: N any ci, the index keys of the entries."""
    q = product(qr, w["indexer.wq_b.weight"])                                    # N Hi ci
    weights = product(x, w["indexer.weights_proj.weight"])                       # N Hi
    scores = np.empty((len(x), count), np.float32)                             # N S
    decode_indexer.score(q, weights, indexer.scale, rotation(indexer.rotary, current.pos, current),
                         keys, scores)
    return torch.from_numpy(scores).topk(indexer.config.index_topk, sorted=False).indices.numpy()
