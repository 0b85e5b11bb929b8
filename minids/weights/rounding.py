"""Rounding as in serving: a model computes with the numbers that the released one would have, though in float32.

Report 3.4; which numbers are rounded follows the released code:

    weights           as a file in the released format holds them: FP4 experts, FP8 for other matrices, BF16 for the rest
    linears' inputs   to FP8, in blocks of 128, before a product with an FP8 or FP4 matrix
    keys              the channels of window keys and compressed entries that do not turn: to FP8, in blocks of 64
    index             the indexer's queries and keys: turned by a Hadamard matrix, then FP4 in blocks of 32

One FP8 matrix is not like the others: the released code decodes `wo_a` to BF16, and does not round what enters it. A row
that is shorter than a block is a block of its own. Gradients pass straight through. Formats are `minids.numerics`'
business, training with rounded numbers is `minids.pretrain.qat`'s.
"""

import copy
from collections import defaultdict
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from minids.errors import MinidsError
from minids.model.attention import Attention
from minids.model.transformer import Model
from minids.numerics import fake_quant
from minids.weights import layout

PARTS = ("linears", "keys", "index")


def as_stored(w: torch.Tensor, format: str) -> torch.Tensor:
    """The numbers that a file keeps of a weight (or of several in a stack). `format` as `minids.layout.tensors` says it."""
    if format in ("FP8", "FP4"):
        return fake_quant(w, format.lower())
    return w.bfloat16().to(w.dtype) if format == "BF16" else w


@torch.no_grad()
def round_weights(model: Model, masters: Model, stored=as_stored) -> None:
    """Put into `model` what a file in the released format would hold of the weights of `masters`, which may be `model` itself.

    `stored(w, format)` may be another rule than the released one; it gets matrices of one shape in a stack, K x o x i.
    """
    formats, alike = layout.tensors(model.config), defaultdict(list)
    for (name, p), master in zip(model.named_parameters(), masters.parameters()):
        alike[formats[name][0], p.shape].append((p, master))
    for (format, _), pairs in alike.items():
        if format != "F32":
            rounded = stored(torch.stack([master for _, master in pairs]), format)
            torch._foreach_copy_([p for p, _ in pairs], list(rounded.unbind()))


def released(model: Model, stored=as_stored) -> Model:
    """A copy of the model with the weights that a file in the released format would hold: what saving and loading gives."""
    rounded = copy.deepcopy(model)
    round_weights(rounded, model, stored)
    return rounded


@contextmanager
def serving(model: Model, parts=PARTS):
    """Within this block `model` rounds its activations as in serving, wherever it is called; `parts` names some of them.

        with serving(model):
            logits = model(ids)

    The weights stay as they are: see `released`. A decode state that is filled within a block holds rounded keys. Outside,
    the model computes as ever. Raises `MinidsError` for an unknown part.
    """
    if unknown := set(parts) - set(PARTS):
        raise MinidsError(f"parts: expected some of {', '.join(PARTS)}, found {', '.join(map(str, unknown))}")
    with ExitStack() as stack:
        for attn in (module for module in model.modules() if isinstance(module, Attention)):
            if "keys" in parts:
                for norm in [attn.kv_norm, *([attn.compressor.norm] if attn.ratio else [])]:
                    stack.callback(norm.register_forward_hook(_keys_of(attn.config.rope_head_dim)).remove)
            if "index" in parts and hasattr(attn, "indexer"):
                _after(stack, attn.indexer, "queries", round_index)
                _after(stack, attn.indexer.compressor, "pool", round_index)
        if "linears" in parts:
            formats = layout.tensors(model.config)
            stack.enter_context(_Linears(p for name, p in model.named_parameters() if formats[name][0] in ("FP8", "FP4")))
        yield model


def round_keys(kv: torch.Tensor, r: int) -> torch.Tensor:
    """Window keys or compressed entries, ... c, as the cache holds them: all but the last `r` channels in FP8."""
    return torch.cat([fake_quant(kv[..., :-r], "fp8_kv"), kv[..., -r:]], dim=-1)


def round_index(x: torch.Tensor) -> torch.Tensor:
    """The indexer's queries or keys, ... ci: turned by the Hadamard matrix, then FP4."""
    return fake_quant(hadamard_turn(x), "fp4_act")


def hadamard_turn(x: torch.Tensor) -> torch.Tensor:
    """x H / sqrt(n) along the last axis of n = 2^k numbers; H[i, j] = (-1)^(number of ones in i AND j). Its own inverse.

    k times: of each pair of numbers that are 1, 2, 4, ... places apart, the sum and the difference. Raises `MinidsError`
    where n is no power of two.
    """
    n, shape = x.shape[-1], x.shape
    if n & (n - 1):
        raise MinidsError(f"a Hadamard turn needs a power of two, found {n} channels")
    apart = 1
    while apart < n:
        a, b = x.reshape(*shape[:-1], n // (2 * apart), 2, apart).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        apart *= 2
    return x * n**-0.5


class _Linears(TorchFunctionMode):
    """Rounds what enters `F.linear` with one of these weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {w.data_ptr() for w in weights}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and args[1].data_ptr() in self.weights:
            args = fake_quant(args[0], "fp8_act"), *args[1:]
        return func(*args, **(kwargs or {}))


def _keys_of(r: int):
    """A hook for the norm before the turn: the turn leaves these channels alone, so they may be rounded first."""
    return lambda norm, args, kv: round_keys(kv, r)


def _after(stack: ExitStack, module, method: str, change) -> None:
    """Until the stack closes, this module's method returns `change` of what it returns."""
    plain = getattr(module, method)
    setattr(module, method, lambda *args: change(plain(*args)))
    stack.callback(delattr, module, method)
