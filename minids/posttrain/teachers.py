"""The teachers of a distillation: they read texts, and their last hidden states are cached.

Report section 5.2.2. The logits of a whole vocabulary for each token would be far larger than the
hidden states that they are computed from. So the hidden states are cached, and a teacher's head is
applied when its logits are needed. For the losses see `minids.posttrain.distill`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minids.errors import MinidsError
from minids.system.devices import moved
from minids.weights.checkpoint import Checkpoint, load


@dataclass
class Texts:
    """Texts of one family, in the form that training takes."""

    ids: torch.Tensor           # B T: prompts and replies, padded at the end
    reply: torch.Tensor         # B T-1: whether the token after a position belongs to the reply
    problems: list              # B
    replies: list[list[int]]    # B

    @classmethod
    def of(cls, prompts, replies, problems=(), pad_id: int = 2) -> "Texts":
        """From lists of ids."""
        rows = [prompt + reply for prompt, reply in zip(prompts, replies)]
        T = max(map(len, rows))
        ids = torch.tensor([row + [pad_id] * (T - len(row)) for row in rows])            # B T
        place = torch.arange(1, T)
        reply = torch.stack([(place >= len(prompt)) & (place < len(row))
                             for prompt, row in zip(prompts, rows)])                     # B T-1
        return cls(ids, reply, list(problems), replies)


class Teachers:
    """The teachers' folders, their models, and the hidden states of the texts they read last.

    With a folder `cache`, one teacher or one head is in memory at a time, and hidden states wait on
    disk: V4 does so with teachers of a trillion parameters. Without it all stay in memory. The
    teachers are on `device`, on the CPU as `minids.load` puts models; a student may be elsewhere.
    """

    def __init__(self, folders: dict, cache: Path | None = None, device="cpu"):
        self.folders = {family: Path(folder) for family, folder in folders.items()}
        self.cache, self.device = cache, device
        self._models, self._hidden, self._files = {}, {}, set()

    def model(self, family: str):
        """The teacher of a family."""
        model = self._models.get(family)
        if model is None:
            model = load(self.folders[family], self.device, torch.float32)
        if self.cache is None:
            self._models[family] = model
        return model

    def check(self, family: str, vocab_size: int) -> None:
        """Raise `MinidsError` unless this teacher has the student's vocabulary size."""
        with Checkpoint(self.folders[family]) as checkpoint:
            tokens = checkpoint.config.vocab_size
        if tokens != vocab_size:
            raise MinidsError(f"the teacher of {family} has {tokens} tokens, the student "
                              f"{vocab_size}: expected one vocabulary")

    def read(self, family: str, texts: Texts) -> None:
        """Let a teacher read its family's texts; cache its last hidden states at the positions of
        the reply, N d."""
        model = self.model(family)
        device = model.embed.weight.device
        rows, places = moved(texts.reply.nonzero().T, device)                        # N, N
        with torch.no_grad():
            X = model.features(moved(texts.ids[:, :-1], device))                     # B T-1 n d
            hidden = model.hidden(X[rows, places][None])[0]                          # N d
        if self.cache is None:
            self._hidden[family] = hidden
            return
        path = self.cache / f"{family}.safetensors"
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            self._files.add(path)
            save_file({"hidden": hidden.contiguous()}, path)
        except (OSError, SafetensorError) as error:
            raise MinidsError(f"could not write {self.cache}: {error}; make room and run the same "
                              f"command again") from error

    def logits(self, family: str) -> torch.Tensor:
        """The teacher's logits for the texts it read last, N vocab: its head on cached states."""
        if self.cache is None:
            hidden, head = self._hidden[family], self.model(family).head.weight
        else:
            hidden = load_file(self.cache / f"{family}.safetensors")["hidden"].to(self.device)
            with Checkpoint(self.folders[family]) as checkpoint:
                head = checkpoint.read("head.weight", device=self.device)
        with torch.no_grad():
            return F.linear(hidden.float(), head.float())

    def forget(self) -> None:
        """Delete the files of the cache that were written here, and no others."""
        for path in self._files:
            path.unlink(missing_ok=True)
        if self._files and not any(self.cache.iterdir()):
            self.cache.rmdir()
