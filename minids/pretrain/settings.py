"""The settings of a training run, and the stages of pre-training.

The comment on a setting is also the help text of its command-line option.
"""

from dataclasses import dataclass

import numpy as np

from minids.errors import MinidsError

OPTIMISERS, FORMATS = ("adamw", "muon"), ("bf16", "fp32", "v4")


@dataclass(frozen=True)
class RunSettings:
    """What every training run can set: its length, its optimiser, and when it evaluates and saves.

    For the schedule of the learning rate see `minids.pretrain.optim`.
    """

    steps: int                  # number of training steps
    optimiser: str = "adamw"    # adamw, or muon: Muon for the matrices, AdamW for the rest
    lr: float = 3e-3            # peak learning rate; it falls to a tenth along a cosine
    vector_lr: float = 5.0      # learning rate of norms, sinks and scales, as a multiple of lr
    warmup: int = 50            # number of steps over which the learning rate rises
    decay_from: float = 0.0     # share of the steps before lr falls (0: only the warmup)
    weight_decay: float = 0.1   # weight decay of the matrices; vectors have none
    max_grad_norm: float = 1.0  # largest norm of the gradient; longer ones are scaled down to it
    eval_every: int = 100       # steps between evaluations on the validation split
    save_every: int = 200       # steps between checkpoints
    format: str = "bf16"        # file format of the result: bf16, fp32, or v4 (FP8 and FP4)
    seed: int = 0               # seed of everything random: weights, order of the data, samples

    def __post_init__(self):
        require_choice(self, "optimiser", OPTIMISERS)
        require_choice(self, "format", FORMATS)
        require_least(self, 1, "steps", "eval_every", "save_every")
        if not 0 <= self.decay_from < 1:
            raise MinidsError(
                f"decay_from: expected 0 or more and less than 1, found {self.decay_from}")
        if not 0 <= self.seed < 2**63:
            raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")


def require_choice(settings, name: str, choices) -> None:
    """Raise `MinidsError` unless the setting is one of `choices`."""
    if getattr(settings, name) not in choices:
        raise MinidsError(
            f"{name}: expected {' or '.join(choices)}, found {getattr(settings, name)!r}")


def require_least(settings, least: int, *names: str) -> None:
    """Raise `MinidsError` unless each of these settings is at least `least`."""
    for name in names:
        if getattr(settings, name) < least:
            raise MinidsError(f"{name}: expected at least {least}, found {getattr(settings, name)}")


@dataclass(frozen=True)
class Stage:
    """A part of a pre-training run. V4 has the three kinds of attention in this order:

    "dense": CSA layers read all entries; "warmup": they still do, and only the indexer learns, from
    the weights of attention; "sparse": they read the entries that the indexer selects, and it
    continues to learn.
    """

    share: float        # share of the run's steps, relative to the shares of the other stages
    seq_len: int        # tokens of a sequence
    batch: int          # sequences of a step
    attention: str = "sparse"   # dense, warmup or sparse


def growing(rows: int) -> tuple[Stage, ...]:
    """The stages of the shipped checkpoints: sequences grow, and the indexer warms up first."""
    return (Stage(0.8, 256, rows, "dense"), Stage(0.04, 1024, rows // 4, "warmup"),
            Stage(0.16, 1024, rows // 4, "sparse"))


@dataclass(frozen=True)
class TrainConfig(RunSettings):
    """The settings of pre-training.

    A step takes `batch` sequences of `seq_len` tokens; with `stages`, as many as its stage says.
    """

    batch: int = 8              # sequences per step
    seq_len: int = 256          # tokens per sequence
    stages: tuple[Stage, ...] = ()  # stages of different lengths and attention; none: all sparse
    data: str = "text"          # training text: text, the shipped books; mix, stories and tasks too
    packed: bool = True         # keep the documents that share a row apart
    mtp_weight: float = 0.3     # weight of the multi-token prediction loss
    mtp_late: float = 0.1       # the same weight once lr falls, if decay_from is not 0
    mtp_share: float = 1.0      # share of the sequences that the multi-token prediction loss covers
    balance: float = 0.001      # how far each step moves a gate's bias, to balance the experts
    sequence_balance: float = 0.0001    # weight of the sequence-wise balance loss
    index_weight: float = 1.0   # weight of the indexer's loss
    anticipate: int = 0         # choose experts with the weights of N steps ago (0: off)
    spike: float = 0.0          # anticipate only after a loss this many times the mean (0: always)
    calm: int = 100             # number of steps that anticipation stays on after a spike
    accumulate: int = 1         # parts into which a process splits its batch, to save memory
    dtype: str = "auto"         # float32, bfloat16 (weights stay float32), or auto: by the device

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "stages", tuple(self.stages))
        require_choice(self, "data", ("text", "mix"))
        require_choice(self, "dtype", ("auto", "float32", "bfloat16"))
        require_least(self, 1, "batch", "seq_len", "accumulate")
        for stage in self.stages:
            if (min(stage.seq_len, stage.batch) < 1 or stage.share <= 0
                    or stage.attention not in ("dense", "warmup", "sparse")):
                raise MinidsError(
                    f"stages: expected a share above 0, a length and a batch of at least 1, and "
                    f"attention dense, warmup or sparse; found {stage}")
        if not 0 < self.mtp_share <= 1:
            raise MinidsError(f"mtp_share: expected above 0 and at most 1, found {self.mtp_share}")
        if self.anticipate < 0 or (self.spike and (self.spike <= 1 or self.anticipate < 1)):
            raise MinidsError(
                f"anticipate and spike: expected a number of steps, and a factor above 1 where "
                f"that is not 0, or 0; found {self.anticipate} and {self.spike}")

    @classmethod
    def preset(cls, name: str, data: str = "text", **changes) -> "TrainConfig":
        """The settings for `Config.preset(name)`, "nano" or "mini", and the text that it reads.

        Those for "mix" made the shipped checkpoints. `changes` replace fields.
        """
        common = dict(optimiser="muon", vector_lr=4.0, mtp_share=0.25)
        mix = dict(warmup=50, format="v4", decay_from=0.6, stages=growing(8))
        settings = {
            ("nano", "text"): dict(steps=520, lr=1e-2, warmup=30),
            ("nano", "mix"): dict(steps=1800, lr=1e-2, **mix),
            ("mini", "text"): dict(steps=2000, lr=5e-3, warmup=100),
            ("mini", "mix"): dict(steps=2700, lr=8e-3, save_every=100, **mix)}
        if (name, data) not in settings:
            raise MinidsError(
                f"no training settings for {name!r} on {data!r}: expected nano or mini, on text or "
                f"mix; larger models need a cluster")
        return cls(**(common | settings[name, data] | {"data": data} | changes))

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; a run without has one."""
        return self.stages or (Stage(1, self.seq_len, self.batch),)

    @property
    def tokens(self) -> int:
        """The number of tokens that the run reads."""
        stages = (self.at(step)[0] for step in range(self.steps))
        return sum(stage.batch * stage.seq_len for stage in stages)

    def at(self, step: int) -> tuple[Stage, int, int]:
        """The stage that a step belongs to, its number, from 0, and its first step."""
        shares = np.cumsum([stage.share for stage in self.plan])
        ends = [round(self.steps * share / shares[-1]) for share in shares]
        number = next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
        return self.plan[number], number, ends[number - 1] if number else 0
