"""The whole network: embedding, blocks on n residual streams, the head.

Report section 2 and figure 2. `Model.state_dict()` has exactly the tensor names of the released
checkpoints. The mechanisms are in the neighbouring files.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.config import Config
from minids.errors import MinidsError
from minids.model import mhc
from minids.model.block import Block
from minids.model.linear import Linear
from minids.model.moe import Gate
from minids.model.mtp import MTP
from minids.model.norm import RMSNorm
from minids.model.passes import Options, Pass, Record
from minids.model.state import State
from minids.numerics import STRIPE


class Model(nn.Module):
    """DeepSeek-V4 at any size. `model(ids)` gives logits, float32, B x T x vocab.

    Norms, sinks, `ape`, gate biases and hyper-connections are float32 parameters; all others have
    torch's default type at construction. `ids` are int64, B x T, below `config.vocab_size`; others
    raise `MinidsError`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, n = config.dim, config.hc_mult
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(config, config.compress_ratios[i], config.is_hash(i))
                                    for i in range(config.n_layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.head = Linear(d, config.vocab_size)
        self.hc_head_fn = nn.Parameter(torch.empty(n, n * d, dtype=torch.float32))
        self.hc_head_base = nn.Parameter(torch.empty(n, dtype=torch.float32))
        self.hc_head_scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.n_mtp_layers))
        if self.embed.weight.device.type != "meta":     # there are no numbers yet
            initialise(self)

    def forward(self, ids: Tensor, state: State | None = None) -> Tensor:
        """Logits for the token after each of `ids`: B x T x vocab.

        With a `State`, `ids` continue what it has seen, and it advances.
        """
        if ids.device.type != "cpu":
            check_range(ids, self.config.vocab_size)
        return self.logits(self.features(ids, state))

    def features(self, ids: Tensor, state: State | None = None,
                 options: Options = Options()) -> Tensor:
        """The streams after the last block, before the head: B T n d."""
        return self.run(ids, state, options)[0]

    def run(self, ids: Tensor, state: State | None = None,
            options: Options = Options()) -> tuple[Tensor, Record]:
        """One pass through the layers: the streams after the last block, B T n d; its `Record`."""
        self.check(ids)
        if state is not None:
            state.check(ids)
        current = Pass(self.config, ids.shape[1], ids.device, state.pos if state else 0, options)
        X = self.embed(ids).unsqueeze(2).repeat(1, 1, self.config.hc_mult, 1)    # B T n d
        for i, block in enumerate(self.layers):
            X = block(X, ids, current, state and state.layers[i], self.replayed(options, i))
        if state is not None:
            state.pos += ids.shape[1]
        return X, current.record

    def logits(self, X: Tensor) -> Tensor:
        """The head: streams B T n d -> logits B T vocab, float32."""
        return self.project(self.hidden(X))

    def hidden(self, X: Tensor) -> Tensor:
        """The vectors that go into the output matrix: streams B T n d -> B T d."""
        y = mhc.head(X, self.hc_head_fn, self.hc_head_scale, self.hc_head_base, self.config)
        return self.norm(y)

    def project(self, y: Tensor) -> Tensor:
        """The output matrix, a float32 product in a model of any type: ... d -> ... vocab."""
        W, y = self.head.matrix(), y.float()
        if W.dtype == torch.float32:
            return F.linear(y, W)
        # stripe by stripe: a float32 copy of the whole matrix would be 2.1 GB in V4-Flash
        stripes = W.split(max(STRIPE // W.shape[1], 1))
        return torch.cat([F.linear(y, stripe.float()) for stripe in stripes], dim=-1)

    def mtp_logits(self, X: Tensor, next_ids: Tensor, depth: int = 0,
                   options: Options = Options()) -> Tensor:
        """What MTP block `depth` predicts, token t + 2: B T vocab. See `run_mtp`."""
        return self.run_mtp(X, next_ids, depth, options)[0]

    def run_mtp(self, X: Tensor, next_ids: Tensor, depth: int = 0,
                options: Options = Options()) -> tuple[Tensor, Record]:
        """One pass through MTP block `depth`: logits of token t + 2, B T vocab, and the `Record`.

        X: B T n d, the streams at t; next_ids: B T, the tokens at t + 1. The options' packing is
        that of the positions t.
        """
        Y, record = self.run_mtp_block(X, next_ids, depth, options)
        block = self.mtp[depth]
        assert isinstance(block, MTP)
        return self.project(block.head(Y)), record

    def run_mtp_block(self, X: Tensor, next_ids: Tensor, depth: int = 0,
                      options: Options = Options(),
                      state: State | None = None) -> tuple[Tensor, Record]:
        """As `run_mtp`, but before the head: the block's streams, B T n d, and the `Record`.

        A state for the block alone is `new_state(..., mtp=True)`.
        """
        self.check(next_ids)
        if state is not None:
            state.check(next_ids)
        T, pos = next_ids.shape[1], state.pos if state else 0
        current = Pass(self.config, T, next_ids.device, pos, options)
        experts = self.replayed(options, self.config.n_layers + depth)
        Y = self.mtp[depth](X, self.embed(next_ids), next_ids, current,
                            state and state.layers[0], experts)
        if state is not None:
            state.pos += T
        return Y, current.record

    def replayed(self, options: Options, i: int) -> Tensor | None:
        """The choices that layer i has to replay, or None. MTP blocks follow the layers."""
        gate = i - self.config.n_hash_layers         # the gates of hash layers do not choose
        return options.experts[gate] if options.experts and gate >= 0 else None

    def new_state(self, batch: int = 1, max_len: int | None = None, mtp: bool = False) -> State:
        """An empty decode state for `batch` sequences of at most `max_len` tokens (default: the
        model's context); with `mtp` the state of one MTP block."""
        weight, max_len = self.embed.weight, self.config.max_seq_len if max_len is None else max_len
        ratios = (0,) if mtp else self.config.compress_ratios[:self.config.n_layers]
        return State(self.config, ratios, batch, max_len, weight.dtype, weight.device)

    def check(self, ids: Tensor) -> None:
        """Raise `MinidsError` unless `ids` is a B x T tensor of token ids that fits the context,
        and what V4 keeps in float32 is float32.

        Of ids on a GPU only `forward` checks the range: loops call `run` or `features`, with ids
        that were checked before they came to the GPU.
        """
        longest = self.config.max_seq_len
        kept = self.hc_head_fn.dtype
        if kept != torch.float32:
            raise MinidsError(f"the whole model was made {kept}; expected norms, sinks and "
                              f"hyper-connections in float32. minids.load(path, dtype={kept}) "
                              f"gives the other matrices that type; model.float() makes all "
                              f"float32")
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or ids.numel() == 0:
            raise MinidsError(f"ids: expected a non-empty B x T tensor of integers, "
                              f"found {tuple(ids.shape)} of {ids.dtype}")
        if ids.device.type == "cpu":
            check_range(ids, self.config.vocab_size)
        if ids.shape[1] > longest:
            raise MinidsError(f"ids: expected at most {longest} tokens (max_seq_len), "
                              f"found {ids.shape[1]}")


def check_range(ids: Tensor, vocab_size: int) -> None:
    """Raise `MinidsError` unless all of `ids` are in the vocabulary. For a GPU's ids the host has
    to wait."""
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise MinidsError(f"ids: expected 0 to {vocab_size - 1}, "
                          f"found {low if low < 0 else high}")


@torch.no_grad()
def initialise(model: Model) -> None:
    """Random weights from torch's generator. Matrices are normal with a standard deviation of 0.02,
    hash tables hold K random experts for each token.

    Hyper-connections start nearly static (Xie et al.: scales of 0.01) and like a plain residual
    stream: each site reads mostly one stream, alternately, writes its output to all, and carries
    the streams on almost unmixed.
    """
    config, n = model.config, model.config.hc_mult
    for name, p in model.named_parameters():
        if p.ndim == 2 and not name.endswith("ape"):
            nn.init.normal_(p, std=0.02)
        elif name.endswith("scale"):
            nn.init.constant_(p, 0.01)
        elif name.endswith("hc_head_base"):
            p.fill_(torch.tensor(1 / n).logit())
    blocks = [*model.layers, *model.mtp]
    bases = [base for block in blocks for base in (block.hc_attn_base, block.hc_ffn_base)]
    for i, base in enumerate(bases):
        pre = torch.full((n,), -3.0)
        pre[i % n] = 2.0
        base.copy_(torch.cat([pre, torch.zeros(n), 4.0 * torch.eye(n).flatten()]))
    for gate in model.modules():
        if isinstance(gate, Gate) and gate.is_hash:
            device = gate.tid2eid.device
            chance = torch.rand(config.vocab_size, config.n_routed_experts, device=device)
            gate.tid2eid.copy_(chance.argsort(1)[:, :config.n_activated_experts])
