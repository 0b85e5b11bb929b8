"""The whole network: embedding, blocks on n residual streams, the head.

Report section 2 and figure 2. `Model.state_dict()` has exactly the tensor names of the released checkpoints. The
mechanisms are in the neighbouring files; training, files and sampling are elsewhere.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minids.errors import MinidsError
from minids.model import mhc
from minids.model.block import Block
from minids.model.moe import Gate
from minids.model.mtp import MTP
from minids.model.norm import RMSNorm
from minids.model.state import State


class Model(nn.Module):
    """DeepSeek-V4 at any size. `model(ids)` gives logits, float32, B x T x vocab.

    Norms, sinks, `ape`, gate biases and hyper-connections are float32 parameters; all others have torch's default type
    at construction. `ids` are int64, B x T, below `config.vocab_size`; others raise `MinidsError`.
    """

    def __init__(self, config):
        super().__init__()
        d, n = config.dim, config.hc_mult
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(config, config.compress_ratios[i], config.is_hash(i)) for i in range(config.n_layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.hc_head_fn = nn.Parameter(torch.empty(n, n * d, dtype=torch.float32))
        self.hc_head_base = nn.Parameter(torch.empty(n, dtype=torch.float32))
        self.hc_head_scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.n_mtp_layers))
        initialise(self)

    def forward(self, ids, state=None):
        """Logits for the token after each of `ids`. With a `State`, `ids` continue what it has seen, and it advances."""
        return self.logits(self.features(ids, state))

    def features(self, ids, state=None, ledger=None):
        """The streams after the last block, before the head: B T n d. A `Ledger` is for training passes."""
        self.check(ids)
        pos = 0
        if state is not None:
            state.check(ids)
            pos = state.pos
        X = self.embed(ids).unsqueeze(2).repeat(1, 1, self.config.hc_mult, 1)            # B T n d
        for i, block in enumerate(self.layers):
            X = block(X, ids, pos, state and state.layers[i], ledger)
        if state is not None:
            state.pos += ids.shape[1]
        return X

    def logits(self, X):
        """The head: streams B T n d -> logits B T vocab, float32."""
        return F.linear(self.hidden(X).float(), self.head.weight.float())

    def hidden(self, X):
        """The vectors that go into the output matrix: streams B T n d -> B T d."""
        return self.norm(mhc.head(X, self.hc_head_fn, self.hc_head_scale, self.hc_head_base, self.config))

    def mtp_logits(self, X, next_ids, depth: int = 0, ledger=None):
        """What MTP block `depth` predicts: token t + 2 from the streams X at t (B T n d) and the token at t + 1 (B T).
        A ledger's packing is that of the positions t."""
        self.check(next_ids)
        block = self.mtp[depth]
        y = block.head(block(X, self.embed(next_ids), next_ids, ledger=ledger))
        return F.linear(y.float(), self.head.weight.float())

    def new_state(self, batch: int = 1, max_len: int | None = None) -> State:
        """An empty decode state for `batch` sequences of at most `max_len` tokens (default: the model's context)."""
        weight, max_len = self.embed.weight, self.config.max_seq_len if max_len is None else max_len
        return State(self.config, batch, max_len, weight.dtype, weight.device)

    def check(self, ids):
        """Raise `MinidsError` unless `ids` is a B x T tensor of token ids that fits the context."""
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or ids.numel() == 0:
            raise MinidsError(f"ids: expected a non-empty B x T tensor of integers, found {tuple(ids.shape)} of {ids.dtype}")
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise MinidsError(f"ids: expected 0 to {self.config.vocab_size - 1}, found {low if low < 0 else high}")
        if ids.shape[1] > self.config.max_seq_len:
            raise MinidsError(f"ids: expected at most {self.config.max_seq_len} tokens (max_seq_len), found {ids.shape[1]}")


@torch.no_grad()
def initialise(model: Model) -> None:
    """Random weights from torch's generator. Matrices are normal with deviation 0.02, hash tables draw K experts a token.

    Hyper-connections start nearly static (Xie et al.: scales of 0.01) and like a plain residual stream: each site reads
    mostly one stream, in turn, writes its output to all, and carries the streams on almost unmixed.
    """
    config, n = model.config, model.config.hc_mult
    for name, p in model.named_parameters():
        if p.ndim == 2 and not name.endswith("ape"):
            nn.init.normal_(p, std=0.02)
        elif name.endswith("scale"):
            nn.init.constant_(p, 0.01)
        elif name.endswith("hc_head_base"):
            nn.init.constant_(p, torch.tensor(1 / n).logit())
    sites = [getattr(b, f"hc_{s}_base") for b in [*model.layers, *model.mtp] for s in ("attn", "ffn")]
    for i, base in enumerate(sites):
        pre = torch.full((n,), -3.0)
        pre[i % n] = 2.0
        base.copy_(torch.cat([pre, torch.zeros(n), 4.0 * torch.eye(n).flatten()]))
    for gate in (m for m in model.modules() if isinstance(m, Gate) and m.is_hash):
        chance = torch.rand(config.vocab_size, config.n_routed_experts, device=gate.tid2eid.device)
        gate.tid2eid.copy_(chance.argsort(1)[:, :config.n_activated_experts])
