"""The records of a pre-training log: one JSON object a line of log.jsonl.

Losses are in nats per token. A key is left out where there is no such thing. What makes a record
leaves out `step` and `seconds`: the run adds them when it logs the record (`minids.pretrain.run`).
"""

from typing import TypedDict


class TrainStep(TypedDict, total=False):
    """One step of pre-training."""

    step: int               # number of steps taken, from 1
    loss: float             # of the next token
    mtp_loss: float         # of the token after the next
    balance_loss: float     # the sequence-wise balance loss; 1 when all experts are used equally
    index_loss: float       # of the indexer
    grad_norm: float        # norm of the gradient, before clipping
    lr: float               # learning rate
    stage: int              # stage of the run, from 1
    seconds: float          # of training so far, in all processes that continued the run


class TextLoss(TypedDict, total=False):
    """The loss on other text, read as the stage of the step reads.

    On an eighth of the validation split every `eval_every` steps; at the end also on all of the
    held-out split, and on it with the weights as the file rounds them (format "v4").
    """

    step: int
    valid_loss: float
    valid_bits_per_byte: float
    heldout_loss: float
    heldout_bits_per_byte: float
    rounded_loss: float
    rounded_bits_per_byte: float


class Spike(TypedDict, total=False):
    """A spike of the loss, which sent the run back to a checkpoint: later steps come again."""

    step: int
    spike: float            # the loss
    back_to: int            # the step of the checkpoint
