"""Quantisation-aware training: compute with rounded numbers, let float32 masters take the steps.

Report 3.4. In each step the masters are rounded as the released file will hold them (FP4 experts,
FP8 for other matrices), the pass rounds activations as serving will, the indexer's queries and keys
included, and the gradient with respect to the rounded weights goes to the masters as it is
("straight through"). V4 does this in post-training. The loop is the caller's:

    copy = rounded_copy(masters)
    for number in range(settings.steps):
        step(copy, masters, optimiser, batch(number), settings, number)
    minids.save(masters, path, format="v4")     # loads as `copy`
"""

import torch

from minids.model.transformer import Model
from minids.pretrain.mixed_precision import computing_copy
from minids.pretrain.train import train_step
from minids.weights import layout
from minids.weights.rounding import as_stored, round_weights, serving


def rounded_copy(masters: Model, stored=as_stored) -> Model:
    """A copy that computes with the rounded weights of `masters`, and hands its gradients to them.

    What the file keeps in float32 is shared, not copied. For `stored` see
    `minids.weights.rounding.round_weights`.
    """
    copy = computing_copy(masters, torch.float32)
    formats = layout.tensors(masters.config)
    for name, p in copy.named_parameters():
        if formats[name][0] != "F32":
            p.data = p.data.clone()
    round_weights(copy, masters, stored)
    return copy


def step(copy: Model, masters: Model, optimiser, ids, settings, number: int,
         stored=as_stored) -> dict:
    """One update of the masters, computed as it will be served; their copy follows.

    For ids (B x T+1) and the record see `minids.pretrain.train.train_step`.
    """
    with serving(copy):
        record = train_step(copy, optimiser, ids, settings, number, masters)
    round_weights(copy, masters, stored)
    return record
