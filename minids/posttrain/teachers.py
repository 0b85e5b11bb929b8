"""Teachers of a distillation: they read texts, and what is kept of that is their last hidden states.

Report section 5.2.2. Logits of a whole vocabulary for each token would be far larger than the hidden states that they are made
from: those are cached, and a teacher's head is applied when its logits are needed. Losses are `minids.posttrain.distill`'s business.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minids.errors import MinidsError
from minids.system.distributed import device
from minids.weights.checkpoint import Checkpoint, load


@dataclass
class Texts:
    """Texts of one family, as a pass of training takes them."""

    ids: torch.Tensor           # B T: prompts and replies, padded behind
    reply: torch.Tensor         # B T-1: whether the token after a position is of the reply
    problems: list              # B
    replies: list[list[int]]    # B

    @classmethod
    def of(cls, prompts, replies, problems=(), pad_id: int = 2) -> "Texts":
        """From lists of ids."""
        rows = [prompt + reply for prompt, reply in zip(prompts, replies)]
        T = max(map(len, rows))
        at = torch.arange(1, T)
        within = torch.stack([(at >= len(prompt)) & (at < len(row)) for prompt, row in zip(prompts, rows)])
        return cls(torch.tensor([row + [pad_id] * (T - len(row)) for row in rows]), within, list(problems), replies)


class Teachers:
    """The teachers' folders, their models, and the hidden states of what they have read last.

    With a folder `cache` one teacher, or one head, is in memory at a time, and hidden states wait on disk: what V4 does with
    teachers of a trillion parameters. Without it all stay in memory.
    """

    def __init__(self, folders: dict, cache: Path | None = None):
        self.folders, self.cache = {family: Path(folder) for family, folder in folders.items()}, cache
        self._models, self._hidden, self._files = {}, {}, set()

    def model(self, family: str):
        """The teacher of a family."""
        model = self._models.get(family) or load(self.folders[family], device(), torch.float32)
        if self.cache is None:
            self._models[family] = model
        return model

    def check(self, family: str, vocab_size: int) -> None:
        """Raise `MinidsError` unless this teacher speaks of the same tokens."""
        with Checkpoint(self.folders[family]) as checkpoint:
            found = checkpoint.config.vocab_size
        if found != vocab_size:
            raise MinidsError(f"the teacher of {family} has {found} tokens, the student {vocab_size}: expected one vocabulary")

    def read(self, family: str, texts: Texts) -> None:
        """Let a teacher read its family's texts, and keep its last hidden states at the reply's positions, N d."""
        model = self.model(family)
        with torch.no_grad():
            X = model.features(texts.ids[:, :-1].to(model.embed.weight.device))
            hidden = model.hidden(X[texts.reply.to(X.device)][None])[0]                                # N d
        if self.cache is None:
            self._hidden[family] = hidden
            return
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            self._files.add(self.cache / f"{family}.safetensors")
            save_file({"hidden": hidden.contiguous()}, self.cache / f"{family}.safetensors")
        except (OSError, SafetensorError) as error:
            raise MinidsError(f"could not write {self.cache}: {error}; make room and run the same command again") from error

    def logits(self, family: str) -> torch.Tensor:
        """The teacher's logits for what it has read last, N vocab: its head on the cached states."""
        if self.cache is None:
            hidden, head = self._hidden[family], self.model(family).head.weight
        else:
            hidden = load_file(self.cache / f"{family}.safetensors")["hidden"].to(device())
            with Checkpoint(self.folders[family]) as checkpoint:
                head = checkpoint.read("head.weight", device=device())
        with torch.no_grad():
            return F.linear(hidden.float(), head.float())

    def forget(self) -> None:
        """Delete what it has written on disk, and nothing else."""
        for file in self._files:
            file.unlink(missing_ok=True)
        if self._files and not any(self.cache.iterdir()):
            self.cache.rmdir()
