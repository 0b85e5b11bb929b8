"""DSpark: three blocks that draft five tokens in one pass, in place of the MTP block.

The checkpoints of July and August 2026 (Flash-0731, Pro-0813) and the DSpark variants of the first
release hold it under `mtp.0` to `mtp.2`. Paper: DSpark (DeepSeek-AI, 2026, in the repository
deepseek-ai/DeepSpec), sections 3.1 (the blocks, the Markov head), 3.2.1 (confidence) and 5.1 (V4's
own sizes); what is special to V4 is in the inference code of these releases.

The target model has read the tokens 0 to a - 1 of a text, and has written token a, the *anchor*,
which it has not read. With the target's streams X_l after its layer l, d wide each:

    h_t = concat of mean over the streams of X_l at t, for the target layers l   (`read_target`)
    c_t = RMS(main_proj h_t) * main_norm                                             the context
    X   = embed(anchor, noise, noise, ...), repeated for n streams, at positions a, a + 1, ...
    X   = each of the blocks in turn
    y   = hc_head(X);   z = head(RMS(y) * norm)                                      base logits
    q_i = softmax(z_i + markov_w2 markov_w1[token a + i])                            of token a+i+1

A block is V4's, with other keys: the last w positions of the context, c_t through the block's own
`wkv`, and the positions of the block of drafts, all of them for each of them. Embedding and output
matrix are the target's. The blocks run once for all drafts; only the Markov head waits for the
draft before. For sampling and verification see `minids.inference.block_drafts`.

Left out: how many drafts a busy server verifies, which is no part of the released files; and the
rounding of keys and inputs to FP8 in serving (`minids.weights.rounding`).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.config import Config
from minids.errors import MinidsError
from minids.model import mhc, transformer
from minids.model.attention import Attention
from minids.model.block import Block
from minids.model.linear import Linear
from minids.model.masks import forbid
from minids.model.norm import RMSNorm, rms
from minids.model.passes import Options, Pass
from minids.model.rotary import Rotary, rotate
from minids.model.state import State
from minids.model.transformer import Model


@dataclass(frozen=True)
class DSparkConfig:
    """The sizes that DSpark adds to a `Config`, under the names of config.json."""

    dspark_block_size: int = 5                      # drafts in a block
    dspark_noise_token_id: int = 128799             # stands where no token is known yet
    dspark_target_layer_ids: tuple[int, ...] = (40, 41, 42)
    dspark_markov_rank: int = 256
    n_blocks: int = 3               # `mtp.0` ...; config.json says 1, so they are counted in files

    @classmethod
    def from_json(cls, values: dict, n_blocks: int = 3) -> "DSparkConfig":
        """From config.json's values. Raises `MinidsError` where they describe no DSpark module."""
        names = list(cls.__dataclass_fields__)[:-1]
        missing = [name for name in names if name not in values]
        if missing:
            raise MinidsError(f"config.json has no {', '.join(missing)}: it describes no DSpark "
                              f"module. Flash-0731's has.")
        size, noise, layers, rank = (values[name] for name in names)
        return cls(size, noise, tuple(layers), rank, n_blocks)

    def to_json(self) -> dict:
        """The values of config.json."""
        return {"dspark_block_size": self.dspark_block_size,
                "dspark_noise_token_id": self.dspark_noise_token_id,
                "dspark_target_layer_ids": list(self.dspark_target_layer_ids),
                "dspark_markov_rank": self.dspark_markov_rank}


class DSpark(nn.Module):
    """The draft module of a target model with this configuration, with the released names."""

    def __init__(self, config: Config, drafts: DSparkConfig) -> None:
        super().__init__()
        layers, last = drafts.dspark_target_layer_ids, config.n_layers - 1
        if not layers or not all(0 <= layer <= last for layer in layers):
            raise MinidsError(f"dspark_target_layer_ids: expected layers 0 to {last}, found "
                              f"{list(layers)}")
        if not 0 <= drafts.dspark_noise_token_id < config.vocab_size:
            raise MinidsError(f"dspark_noise_token_id: expected 0 to {config.vocab_size - 1}, "
                              f"found {drafts.dspark_noise_token_id}")
        self.config, self.drafts = config, drafts
        end = drafts.n_blocks - 1
        self.layers = nn.ModuleList()                       # it has none beside the target's
        self.mtp = nn.ModuleList(DraftBlock(config, drafts, first=i == 0, last=i == end)
                                 for i in range(end + 1))

    @property
    def blocks(self) -> list["DraftBlock"]:
        """The blocks, in their order."""
        return [cast(DraftBlock, block) for block in self.mtp]

    def context(self, h: Tensor) -> Tensor:
        """The context that all blocks read: h: B T kd, from `read_target` -> c: B T d."""
        first = self.blocks[0]
        return first.main_norm(first.main_proj(h))

    def keys(self, c: Tensor, positions: Tensor) -> list[Tensor]:
        """Each block's keys of a context: c: B T d; positions: T, or B T -> B T c, for each."""
        return [block.attn.keys(c, block.attn.rotary.at(positions)) for block in self.blocks]

    def forward(self, model: Model, anchors: Tensor, start: Tensor,
                windows: list[Tensor]) -> Tensor:
        """Run the blocks, once for all drafts: y, B size d.

        anchors: B tokens; start: B, their positions; windows: for each block B w c, the keys of
        the w positions before the anchor (those before position 0 are ignored).
        """
        ids = anchors.new_full((len(anchors), self.drafts.dspark_block_size),
                               self.drafts.dspark_noise_token_id)
        ids[:, 0] = anchors
        X = model.embed(ids).unsqueeze(2).repeat(1, 1, self.config.hc_mult, 1)   # B size n d
        current = DraftPass(self.config, start, ids.shape[1])
        for block, window in zip(self.blocks, windows):
            X = block(X, ids, current, window)
        last = self.blocks[-1]
        return mhc.head(X, last.hc_head_fn, last.hc_head_scale, last.hc_head_base, self.config)

    def logits(self, model: Model, y: Tensor) -> Tensor:
        """The base logits, before the Markov head: y: ... d -> ... vocab, float32."""
        return model.project(self.blocks[-1].norm(y))

    def bias(self, before: Tensor) -> Tensor:
        """What the Markov head adds to the logits of what follows `before`: ids -> ... vocab."""
        return self.blocks[-1].markov_head(before)

    def confidence(self, y: Tensor, before: Tensor) -> Tensor:
        """A logit for each draft: its sigmoid estimates the chance that the draft is accepted if
        those before it are. y: ... d; before: ..., the token before each draft -> ... ."""
        last = self.blocks[-1]
        e = last.markov_head.markov_w1(before)
        return last.confidence_head.proj(torch.cat([y, e], dim=-1)).squeeze(-1)


class DraftBlock(Block):
    """One of the blocks. The first also reads the target's layers, the last has the heads."""

    def __init__(self, config: Config, drafts: DSparkConfig, first: bool, last: bool) -> None:
        super().__init__(config, ratio=0, is_hash=False)
        self.attn: DraftAttention
        d, n, eps = config.dim, config.hc_mult, config.norm_eps
        self.attn = DraftAttention(config, ratio=0)
        if first:
            self.main_proj = Linear(len(drafts.dspark_target_layer_ids) * d, d)
            self.main_norm = RMSNorm(d, eps)
        if last:
            self.norm = RMSNorm(d, eps)
            self.hc_head_fn = nn.Parameter(torch.empty(n, n * d, dtype=torch.float32))
            self.hc_head_base = nn.Parameter(torch.empty(n, dtype=torch.float32))
            self.hc_head_scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
            self.markov_head = MarkovHead(config.vocab_size, drafts.dspark_markov_rank)
            self.confidence_head = ConfidenceHead(d + drafts.dspark_markov_rank)


class DraftAttention(Attention):
    """Attention of a block of drafts: to the window before it, and to all of itself."""

    def keys(self, x: Tensor, rot: Tensor) -> Tensor:
        """x: B T d, rot: its rotations -> B T c, each rotated by its position."""
        return rotate(self.kv_norm(self.wkv(x)), rot)

    def forward(self, x: Tensor, current: "DraftPass",            # type: ignore[override]
                window: Tensor) -> Tensor:
        """x: B size d; window: B w c, keys of the context -> B size d."""
        cfg, rot = self.config, current.rotation(self.rotary)                    # B size c/2
        B, T, _ = x.shape
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(B, T, cfg.n_heads, cfg.head_dim)
        q = rotate(rms(q, cfg.norm_eps), rot[..., None, :])                      # B size H c
        keys = torch.cat([window.to(x.dtype), self.keys(x, rot)], dim=1)         # B w+size c
        s = torch.einsum("bthc,bsc->bths", q * cfg.head_dim ** -0.5, keys).float()
        s = s + current.missing(window.shape[1])[:, None, None]                  # B size H w+size
        sink = self.attn_sink[:, None].expand(B, T, cfg.n_heads, 1)
        p = torch.cat([s, sink], dim=-1).softmax(-1)[..., :-1].to(q.dtype)
        o = torch.einsum("bths,bsc->bthc", p, keys)
        o = rotate(o, rot[..., None, :], inverse=True).reshape(B, T, cfg.o_groups, -1)
        wo_a = self.wo_a.matrix().view(cfg.o_groups, -1, o.shape[-1])       # g o_lora_rank Hc/g
        return self.wo_b(torch.einsum("btgi,goi->btgo", o, wo_a).flatten(2))


class MarkovHead(nn.Module):
    """A table of V x V biases, of a low rank: row v is what token v says about the next one."""

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = Linear(rank, vocab_size)

    def forward(self, before: Tensor) -> Tensor:
        """before: ids -> ... vocab, float32."""
        return F.linear(self.markov_w1(before).float(), self.markov_w2.matrix().float())


class ConfidenceHead(nn.Module):
    """One logit for each draft. See `DSpark.confidence`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Linear(width, 1)


class DraftPass(Pass):
    """What the blocks of one pass share: each row of drafts begins at its own position."""

    def __init__(self, config: Config, start: Tensor, size: int) -> None:
        super().__init__(config, size, start.device)
        self.start = start                                                       # B

    def rotation(self, rotary: Rotary) -> Tensor:
        """B x size x width/2."""
        key = "tokens", rotary.kind
        if key not in self.tables:
            self.tables[key] = rotary.at(self.start[:, None]
                                         + torch.arange(self.T, device=self.device))
        return self.tables[key]

    def missing(self, w: int) -> Tensor:
        """B x w+size: -inf for the keys of positions before 0, which there are none of; else 0."""
        key = "missing", w
        if key not in self.tables:
            before = torch.arange(-w, self.T, device=self.device)
            self.tables[key] = forbid(self.start[:, None] + before < 0)
        return self.tables[key]


def read_target(model: Model, dspark: DSpark, ids: Tensor, state: State | None = None,
                options: Options = Options()) -> tuple[Tensor, Tensor]:
    """One pass of the target: the streams after its last layer, B T n d, and h, B T kd.

    h holds the mean over the streams after each target layer, in their order.
    """
    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable:
        return lambda block, inputs, X: means.__setitem__(layer, X.mean(2))

    layers = dspark.drafts.dspark_target_layer_ids
    with ExitStack() as hooks:
        for layer in layers:
            hook = model.layers[layer].register_forward_hook(keep(layer))
            hooks.callback(hook.remove)
        X = model.features(ids, state, options)
    return X, torch.cat([means[layer] for layer in layers], dim=-1)


def initialise(dspark: DSpark) -> None:
    """Random weights, as `transformer.initialise` makes them; the Markov head starts at zero."""
    transformer.initialise(dspark)                                # type: ignore[arg-type]
    nn.init.zeros_(dspark.blocks[-1].markov_head.markov_w2.weight)
