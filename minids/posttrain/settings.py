"""The settings that all of post-training shares."""

from dataclasses import dataclass

from minids.data import tasks
from minids.data.chat import MODES
from minids.errors import MinidsError
from minids.pretrain.settings import RunSettings, require_least

DIFFICULTIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class PostTrainConfig(RunSettings):
    """The settings that all of post-training shares: problems, modes, replay."""

    steps: int = 100            # number of training steps
    families: tuple[str, ...] = ("mathematics",)    # families of problems, which alternate
    difficulties: tuple[int, ...] = DIFFICULTIES    # difficulties of the problems, 1 to 5
    modes: tuple[str, ...] = MODES  # thinking modes, which alternate
    optimiser: str = "muon"     # muon (Muon for the matrices, AdamW for the rest), or adamw
    lr: float = 3e-3            # peak learning rate; it falls to a tenth along a cosine
    vector_lr: float = 4.0      # learning rate of norms, sinks and scales, as a multiple of lr
    warmup: int = 5             # number of steps over which the learning rate rises
    decay_from: float = 0.5     # share of the steps before lr falls (0: only the warmup)
    replay: int = 0             # rows of pre-training text in each update, to limit forgetting
    eval_every: int = 50        # steps between evaluations on problems of the validation split
    eval_problems: int = 100    # validation problems in each mode
    save_every: int = 50        # steps between checkpoints

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("families", tasks.FAMILIES), ("modes", MODES),
                            ("difficulties", DIFFICULTIES)):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or not set(values) <= set(known):
                raise MinidsError(
                    f"{name}: expected some of {', '.join(map(str, known))}; found "
                    f"{', '.join(map(str, values)) or 'none'}")
        require_least(self, 0, "eval_problems", "replay")
        if self.seed >= 2**31:
            raise MinidsError(f"seed: expected 0 to 2^31 - 1, found {self.seed}")

    def numbers(self, step: int, count: int, fresh: bool = False) -> range:
        """The numbers of a step's `count` problems; each seed has a million of its own.

        `fresh` numbers are from the second half of it. The problems that models answer themselves
        come from there, so that no worked answer has given their solution before.
        """
        first = self.seed * 1_000_000 + fresh * 500_000 + step * count
        return range(first, first + count)

    def problem(self, split: str, i: int) -> tasks.Problem:
        """Problem number i of a split: families alternate, then difficulties."""
        family = self.families[i % len(self.families)]
        difficulty = self.difficulties[i // len(self.families) % len(self.difficulties)]
        return tasks.problem(family, split, i, difficulty)
