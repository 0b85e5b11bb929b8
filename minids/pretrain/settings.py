"""The settings of a pre-training run, and its stages."""

from dataclasses import dataclass

import numpy as np

from minids.errors import MinidsError


@dataclass(frozen=True)
class Stage:
    """A part of a run. `attention` is "dense": CSA layers read all entries; "warmup": they still do, and nothing but the
    indexer learns, from what attention reads; "sparse": they read what the indexer picks, and it learns on. V4 has this order.
    """

    share: float        # of the run's steps, relative to the shares of the other stages
    seq_len: int
    batch: int
    attention: str = "sparse"


def growing(rows: int) -> tuple[Stage, ...]:
    """The stages of the shipped checkpoints: sequences grow, and the indexer warms up before it has to choose."""
    return (Stage(0.8, 256, rows, "dense"), Stage(0.04, 1024, rows // 4, "warmup"), Stage(0.16, 1024, rows // 4, "sparse"))


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One step takes `batch` sequences of `seq_len` tokens, or, with `stages`, what its stage says."""

    steps: int
    optimiser: str = "adamw"    # or "muon": Muon for the matrices, AdamW for the rest
    batch: int = 8
    seq_len: int = 256
    stages: tuple[Stage, ...] = ()  # none: all steps are "sparse"
    data: str = "text"          # or "mix": text, stories and tasks (minids.data.mixture)
    packed: bool = True         # documents that share a row are kept apart
    lr: float = 3e-3            # after `warmup` steps; a cosine brings it to a tenth at the end
    vector_lr: float = 5.0      # times that for vectors: norms, sinks, ape, and the scales and bases of mHC
    warmup: int = 50
    decay_from: float = 0.0     # share of the steps after which the cosine begins; 0: right after the warm-up
    weight_decay: float = 0.1   # of matrices; vectors have none
    clip: float = 1.0           # largest norm of the gradient
    mtp_weight: float = 0.3     # weight of the MTP loss
    mtp_late: float = 0.1       # and from the start of the cosine on, where `decay_from` kept the rate constant before
    mtp_share: float = 1.0      # of the sequences of a step that the MTP loss is computed on: less is cheaper and noisier
    balance: float = 0.001      # how far a gate's bias moves in a step
    sequence_balance: float = 0.0001    # weight of the sequence-wise balance loss
    index_weight: float = 1.0   # weight of the indexer's loss, where sequences are so long that it has to choose
    anticipate: int = 0         # route by the experts that the weights of so many steps before would choose
    spike: float = 0.0          # only from the checkpoint before a loss of so many times the mean of the last ones; 0: always
    calm: int = 100             # until so many steps after that loss
    accumulate: int = 1         # parts that a process cuts its share of a batch into, to save memory
    dtype: str = "auto"         # "float32", or "bfloat16" with float32 masters; auto: bfloat16 on CUDA devices that have it
    eval_every: int = 100       # steps between looks at the validation text
    save_every: int = 200       # steps between checkpoints
    format: str = "bf16"        # of the trained model's file, or "v4": FP8 and FP4 as V4 is released
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        for name, choices in (("optimiser", ("adamw", "muon")), ("data", ("text", "mix")), ("format", ("bf16", "v4")),
                              ("dtype", ("auto", "float32", "bfloat16"))):
            if getattr(self, name) not in choices:
                raise MinidsError(f"{name}: expected {' or '.join(choices)}, found {getattr(self, name)!r}")
        for name in ("steps", "batch", "seq_len", "accumulate", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise MinidsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for stage in self.stages:
            if stage.share <= 0 or stage.seq_len < 1 or stage.batch < 1 or stage.attention not in ("dense", "warmup", "sparse"):
                raise MinidsError(f"stages: expected a share above 0, a length and a batch of at least 1, and attention dense, "
                                  f"warmup or sparse; found {stage}")
        if not 0 < self.mtp_share <= 1:
            raise MinidsError(f"mtp_share: expected above 0 and at most 1, found {self.mtp_share}")
        if not 0 <= self.decay_from < 1:
            raise MinidsError(f"decay_from: expected 0 or more and less than 1, found {self.decay_from}")
        if self.anticipate < 0 or (self.spike and (self.spike <= 1 or self.anticipate < 1)):
            raise MinidsError(f"anticipate and spike: expected a number of steps, and a factor above 1 where that is not 0, "
                              f"or 0; found {self.anticipate} and {self.spike}")
        if not 0 <= self.seed < 2**63:
            raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")

    @classmethod
    def preset(cls, name: str, data: str = "text", **changes) -> "TrainConfig":
        """The settings that belong to `Config.preset(name)`, "nano" or "mini", and to the text that it reads: those of the
        mixture made the shipped checkpoints. `changes` replace fields."""
        settings = {
            ("nano", "text"): dict(steps=520, optimiser="muon", lr=1e-2, vector_lr=4.0, warmup=30, mtp_share=0.25),
            ("nano", "mix"): dict(steps=1800, optimiser="muon", lr=1e-2, vector_lr=4.0, warmup=50, mtp_share=0.25, format="v4",
                                  decay_from=0.6, stages=growing(8)),
            ("mini", "text"): dict(steps=2000, optimiser="muon", lr=5e-3, vector_lr=4.0, warmup=100, mtp_share=0.25),
            ("mini", "mix"): dict(steps=2700, optimiser="muon", lr=8e-3, vector_lr=4.0, warmup=50, mtp_share=0.25, format="v4",
                                  decay_from=0.6, stages=growing(8), save_every=100)}
        if (name, data) not in settings:
            raise MinidsError(f"no training settings for {name!r} on {data!r}: expected nano or mini, on text or mix; larger "
                              f"models need a cluster")
        return cls(**(settings[name, data] | {"data": data} | changes))

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; a run without has one."""
        return self.stages or (Stage(1, self.seq_len, self.batch),)

    @property
    def tokens(self) -> int:
        """How many tokens the run reads."""
        stages = (self.at(step)[0] for step in range(self.steps))
        return sum(stage.batch * stage.seq_len for stage in stages)

    def at(self, step: int) -> tuple[Stage, int, int]:
        """The stage that a step belongs to, its number, from 0, and its first step."""
        shares = np.cumsum([stage.share for stage in self.plan])
        ends = [round(self.steps * share / shares[-1]) for share in shares]
        number = next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
        return self.plan[number], number, ends[number - 1] if number else 0
