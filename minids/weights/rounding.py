"""Rounding as in serving: a model computes, in float32, with the numbers of the released one.

Report 3.4; which numbers are rounded follows the released code:

    weights           as a file in the released format holds them: FP4 experts, FP8 for other
                      matrices, BF16 for the rest
    linears' inputs   to FP8, in blocks of 128, before a product with an FP8 or FP4 matrix
    keys              the channels of window keys and compressed entries that do not rotate: to FP8,
                      in blocks of 64
    index             the indexer's queries and keys: Hadamard-transformed, then FP4, blocks of 32

One FP8 matrix is not like the others: the released code decodes `wo_a` to BF16, and does not round
its input. A row that is shorter than a block is a block of its own. Gradients pass straight
through. For formats see `minids.numerics`, for training with rounded numbers `minids.pretrain.qat`.
"""

import copy
from collections import defaultdict
from contextlib import contextmanager

import torch

from minids.errors import MinidsError
from minids.model.attention import Attention
from minids.model.linear import Linear
from minids.model.transformer import Model
from minids.numerics import fake_quant
from minids.weights import layout

PARTS = ("linears", "keys", "index")


def as_stored(w: torch.Tensor, format: str) -> torch.Tensor:
    """The numbers that a file holds of a weight, or of several in a stack. For the format of each
    weight see `minids.weights.layout.tensors`."""
    if format in ("FP8", "FP4"):
        return fake_quant(w, format.lower())
    return w.bfloat16().to(w.dtype) if format == "BF16" else w


@torch.no_grad()
def round_weights(model: Model, masters: Model, stored=as_stored) -> None:
    """Put into `model` what a file in the released format would hold of the weights of `masters`,
    which may be `model` itself.

    `stored(w, format)` may be another rule than the released one; it gets matrices of one shape in
    a stack, K x o x i.
    """
    formats, alike = layout.tensors(model.config), defaultdict(list)
    for (name, p), master in zip(model.named_parameters(), masters.parameters()):
        alike[formats[name][0], p.shape].append((p, master))
    for (format, _), pairs in alike.items():
        if format != "F32":
            rounded = stored(torch.stack([master for _, master in pairs]), format)
            torch._foreach_copy_([p for p, _ in pairs], list(rounded.unbind()))


def released(model: Model, stored=as_stored) -> Model:
    """A copy of the model with the weights that a file in the released format would hold: what
    saving and loading gives."""
    rounded = copy.deepcopy(model)
    round_weights(rounded, model, stored)
    return rounded


@contextmanager
def serving(model: Model, parts=PARTS):
    """Within this block `model` rounds its activations as in serving; `parts` names some of them.

        with serving(model):
            logits = model(ids)

    The weights stay as they are: see `released`. A decode state that is filled within a block holds
    rounded keys. After the block the model computes as before. Raises `MinidsError` for an unknown
    part.
    """
    if unknown := set(parts) - set(PARTS):
        raise MinidsError(f"parts: expected some of {', '.join(PARTS)}, "
                          f"found {', '.join(map(str, unknown))}")
    switches = [switch for part in parts for switch in switches_of(model, part)]
    for module, flag in switches:
        setattr(module, flag, True)
    try:
        yield model
    finally:
        for module, flag in switches:
            setattr(module, flag, False)


def switches_of(model: Model, part: str):
    """The (module, name of its flag) pairs that turn the rounding of a part on."""
    if part == "linears":
        formats = layout.tensors(model.config)
        for name, module in model.named_modules():
            if isinstance(module, Linear) and formats[f"{name}.weight"][0] in ("FP8", "FP4"):
                yield module, "round_input"
    for attn in (module for module in model.modules() if isinstance(module, Attention)):
        if part == "keys":
            yield attn, "round_keys"
            if attn.ratio:
                yield attn.compressor, "round_keys"
        if part == "index" and hasattr(attn, "indexer"):
            yield attn.indexer, "round_queries"
            yield attn.indexer.compressor, "round_index"
