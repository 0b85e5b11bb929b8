"""The records of post-training logs: one JSON object a line of log.jsonl.

Losses and KLs are in nats per token, lengths in tokens. A key is left out where there is no such
thing. Names are those of TRL where it logs the same. What makes a record leaves out `step` and
`seconds`: the run adds them when it logs the record (`minids.pretrain.run`).
"""

from typing import TypedDict


class Update(TypedDict, total=False):
    """The part that all steps share."""

    step: int               # number of steps taken, from 1
    mode: str               # thinking mode of the step, where it has one
    loss: float
    tokens: int             # tokens of replies that the loss counts, or that were sampled
    replay_loss: float      # next-token loss on the replayed pre-training text
    grad_norm: float        # norm of the gradient, before clipping
    lr: float               # learning rate
    seconds: float          # of training so far


class SFTStep(Update, total=False):
    """One step of supervised fine-tuning."""

    mtp_loss: float         # of the token after the next


class GRPOStep(Update, total=False):
    """One step of GRPO: sampled replies, and means over the updates on them."""

    reward: float           # mean reward of the replies
    accuracy: float         # share of correct replies
    length: float           # mean length of the replies
    kl: float               # estimated KL to the model that the run started from
    clip_fraction: float    # share of the tokens whose ratio is clipped
    masked_fraction: float  # share of the replies that the off-policy mask leaves out
    entropy: float          # of the policy, over the replies that are read in the updates


class DistillStep(Update, total=False):
    """One step of distillation. There is also a `kl_<family>` for each family of the step."""

    kl: float               # KL(student || teacher), whatever the method
    signal: float           # squared norm of the KL's gradient with respect to the logits
    noise: float            # variance of its estimate from one sampled token
    accuracy: float         # share of correct replies, where a model wrote them
    length: float           # mean length of the replies, where a model wrote them
    mtp_loss: float         # of the token after the next, from which the MTP block alone learns


class Validation(TypedDict, total=False):
    """Greedy answers to problems of the validation split; SFT also logs a loss on worked ones."""

    step: int
    family: str             # in distillation, each family by itself
    mode: str
    valid_accuracy: float   # share of correct answers
    valid_length: float     # mean length of the replies
    valid_loss: float
