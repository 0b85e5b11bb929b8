"""What all of post-training can set."""

from dataclasses import dataclass

from minids.data import tasks
from minids.data.chat import MODES
from minids.errors import MinidsError


@dataclass(frozen=True)
class Settings:
    """What all of post-training can set; the schedule is that of `minids.pretrain.optim`."""

    steps: int = 100
    families: tuple[str, ...] = ("mathematics",)
    difficulties: tuple[int, ...] = (1, 2, 3, 4, 5)
    modes: tuple[str, ...] = MODES
    optimiser: str = "muon"     # or "adamw"
    lr: float = 3e-3
    vector_lr: float = 4.0      # times that for vectors
    warmup: int = 5
    decay_from: float = 0.5
    weight_decay: float = 0.1
    clip: float = 1.0           # largest norm of the gradient
    rehearsal: int = 0          # rows of the corpus that each step of the optimiser reads too, against forgetting
    eval_every: int = 50        # steps between looks at problems of the valid split
    eval_problems: int = 100    # in each mode
    save_every: int = 50
    format: str = "bf16"        # of the file of the result, or "v4"
    seed: int = 0

    def __post_init__(self):
        for name, known in (("families", tasks.FAMILIES), ("modes", MODES), ("difficulties", (1, 2, 3, 4, 5))):
            found = tuple(getattr(self, name))
            object.__setattr__(self, name, found)
            if not found or not set(found) <= set(known):
                raise MinidsError(f"{name}: expected some of {', '.join(map(str, known))}; found {found}")
        for name, known in (("optimiser", ("muon", "adamw")), ("format", ("bf16", "v4", "fp32"))):
            if getattr(self, name) not in known:
                raise MinidsError(f"{name}: expected {' or '.join(known)}, found {getattr(self, name)!r}")
        for name in ("steps", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise MinidsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.decay_from < 1 or min(self.eval_problems, self.rehearsal) < 0 or not 0 <= self.seed < 2**31:
            raise MinidsError(f"expected decay_from from 0 and below 1, eval_problems and rehearsal from 0, a seed from 0 and "
                              f"below 2^31; found {self.decay_from}, {self.eval_problems}, {self.rehearsal}, {self.seed}")

    def numbers(self, step: int, count: int, fresh: bool = False) -> range:
        """The numbers of a step's `count` problems. Each seed has a million of its own; the second half is `fresh`: what models
        answer themselves comes from there, so that no worked answer has told it before."""
        first = self.seed * 1_000_000 + fresh * 500_000 + step * count
        return range(first, first + count)

    def problem(self, split: str, i: int) -> tasks.Problem:
        """The problem number i of a split: families and difficulties take turns."""
        family = self.families[i % len(self.families)]
        difficulty = self.difficulties[i // len(self.families) % len(self.difficulties)]
        return tasks.problem(family, split, i, difficulty)
