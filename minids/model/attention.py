"""Attention with one shared key-value head, a sliding window, compressed entries and sinks.

Report 2.3. All three kinds of layer are here: window only (ratio 0), compressed sparse attention
(CSA, ratio 4: the entries that the indexer picks) and heavily compressed attention (HCA, larger
ratios: all entries). `compressor.py` makes the entries, `indexer.py` scores them, `state.py`
remembers them between calls.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.config import CSA_RATE, Config
from minids.model.activations import round_keys
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer, index_divergence
from minids.model.linear import Linear
from minids.model.masks import forbid
from minids.model.norm import RMSNorm, rms
from minids.model.passes import Pass
from minids.model.rotary import Rotary, rotate
from minids.model.state import LayerState


class Attention(nn.Module):
    """p = exp(q.k / sqrt(c)) / (sum exp(q.k / sqrt(c)) + exp(sink)).

    Keys are values, and the output is rotated back by the query's position.
    """

    def __init__(self, config: Config, ratio: int) -> None:
        super().__init__()
        d, H, c, g = config.dim, config.n_heads, config.head_dim, config.o_groups
        self.config, self.ratio = config, ratio
        self.wq_a = Linear(d, config.q_lora_rank)
        self.q_norm = RMSNorm(config.q_lora_rank, config.norm_eps)
        self.wq_b = Linear(config.q_lora_rank, H * c)
        self.wkv = Linear(d, c)
        self.kv_norm = RMSNorm(c, config.norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(H, dtype=torch.float32))
        self.wo_a = Linear(H * c // g, g * config.o_lora_rank)    # g blocks, stacked
        self.wo_b = Linear(g * config.o_lora_rank, d)
        self.rotary = Rotary(config, ratio, c)
        self.round_keys = False                              # in serving, see `activations`
        if ratio:
            self.compressor = Compressor(config, ratio, c)
        if ratio == CSA_RATE:
            self.indexer = Indexer(config)

    def forward(self, x: Tensor, current: Pass | None = None,
                state: LayerState | None = None) -> Tensor:
        """x: B T d -> B T d. With a `LayerState`, x continues what it has seen."""
        cfg = self.config
        B, T, _ = x.shape
        current = current or Pass(cfg, T, x.device)
        rot = current.rotation(self.rotary)                                      # T c/2, or B T c/2
        qr = self.q_norm(self.wq_a(x))                                           # B T q_lora_rank
        q = rms(self.wq_b(qr).view(B, T, cfg.n_heads, cfg.head_dim), cfg.norm_eps)
        q = rotate(q, rot[..., None, :])                                         # B T H c
        kv = rotate(self.kv_norm(self.wkv(x)), rot)                              # B T c
        if self.round_keys:
            kv = round_keys(kv, cfg.rope_head_dim)
        if state is None:
            kv = F.pad(kv, (0, 0, cfg.window_size, 0))                           # B w+T c
        else:
            kv = state.extend(kv)
        if T == 1:
            kv = kv[:, 1:]                       # the window ends with the query's own key
        entries = entry_mask = scores = None
        if self.ratio:
            entries, entry_mask, scores = self.compressed(x, qr, current, state)
        window_mask = current.window_mask(cfg.window_size, kv.shape[1] - T)
        if T == 1 and window_mask is None and entry_mask is None:
            o, p = attend_step(q, kv, entries, self.attn_sink)                   # B 1 H c
        else:
            o, p = attend_blocks(q, kv, window_mask, entries, entry_mask, self.attn_sink)
        if current.options.index and scores is not None and p is not None and scores.shape[2]:
            current.record.index.append(index_divergence(p, scores, entry_mask))
        o = rotate(o, rot[..., None, :], inverse=True)
        o = o.reshape(B * T, cfg.o_groups, -1).transpose(0, 1)                   # g BT Hc/g
        wo_a = self.wo_a.matrix().view(cfg.o_groups, -1, o.shape[-1])      # g o_lora_rank Hc/g
        o = torch.bmm(o, wo_a.mT)                                                # g BT o_lora_rank
        return self.wo_b(o.transpose(0, 1).reshape(B, T, -1))

    def compressed(self, x: Tensor, qr: Tensor, current: Pass,
                   state: LayerState | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The entries that queries may read; which of them a query does not see (a mask to add to
        scores, or None: it sees all); the indexer's scores of them where the pass needs its loss.

        Either all entries, B S c, with a mask T S or B T S; or, where CSA has so many that a mask
        would waste work, each query's own picks, B T k c, with a mask B T k.
        """
        entries = self.compressor(x, current, state.compressor if state else None)   # B S c
        S, k = entries.shape[1], self.config.index_topk
        mask = current.entry_mask(self.ratio, S)
        if self.ratio != CSA_RATE:
            return entries, mask, None
        learn, pick = current.options.index, S > k and not current.options.dense
        # picking has no gradient, and the gradient of the indexer's loss stays in the indexer
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            x, qr = x.detach(), qr.detach()
            scores = None
            if pick or learn or state is not None:       # a state needs the keys in any case
                keys = self.indexer.keys(x, current, state.indexer if state else None)
            if pick or learn:
                scores = self.indexer(x, qr, keys, current)                      # B T S
        if not pick or scores is None:
            return entries, mask, scores
        seen = scores.detach() if mask is None else scores.detach() + mask
        best = seen.topk(k, sorted=False)                                        # B T k
        picks_mask = None if mask is None else forbid(best.values == float("-inf"))
        if S <= 8 * k and x.shape[1] > 1:       # masking few entries is faster than copying picks
            mask = torch.full_like(seen, float("-inf"))
            mask.scatter_(2, best.indices, 0.0 if picks_mask is None else picks_mask)
            return entries, mask, scores
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        picks = entries[rows, best.indices]                                      # B T k c
        return picks, picks_mask, scores.gather(2, best.indices) if learn else None


def attend_step(q: Tensor, kv: Tensor, entries: Tensor | None,
                sink: Tensor) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of one token (decoding) that sees the whole window and all entries.

    q: B 1 H c; kv: B w c; entries: B S c, B 1 S c or None; sink: H -> the output, B 1 H c, and the
    weights of the entries, B 1 H S.
    """
    B, _, H, c = q.shape
    w = kv.shape[1]
    keys = kv if entries is None else torch.cat([kv, entries.flatten(1, -2)], dim=1)     # B w+S c
    s = torch.bmm(q[:, 0] * c ** -0.5, keys.mT).float()                          # B H w+S
    s = torch.cat([s, sink.expand(B, H)[:, :, None]], dim=2)
    p = s.softmax(-1)[:, :, :-1].to(q.dtype)                                     # B H w+S
    return torch.bmm(p, keys)[:, None], p[:, None, :, w:]


def attend_blocks(q: Tensor, kv: Tensor, window_mask: Tensor | None, entries: Tensor | None,
                  entry_mask: Tensor | None, sink: Tensor) -> tuple[Tensor, Tensor | None]:
    """Softmax attention over the window, the compressed entries and the sink.

    q: B T H c; kv: B before+T c, the `before` keys before the first query and then the queries'
    own; window_mask: see `Pass.window_mask`; entries, entry_mask: see `Attention.compressed`;
    sink: H -> the output, B T H c, and the weights of the entries, B T H S (None without entries).

    Queries are cut into blocks; a block needs only its own keys and the `before` keys before it.
    """
    B, T, H, c = q.shape
    before = kv.shape[1] - T
    b = min(before, T) or T              # queries in a block; before is 0 where w = T = 1
    n = -(-T // b)
    pad = n * b - T
    q = q * c ** -0.5
    qb = F.pad(q, (0, 0, 0, 0, 0, pad)) if pad else q
    qb = qb.reshape(B * n, b * H, c)         # one block after another
    kb = F.pad(kv, (0, 0, 0, pad)) if pad else kv
    if n > 1:                                                                    # here before = b
        kb = kb.view(B, n + 1, b, c)
        kb = torch.cat([kb[:, :-1], kb[:, 1:]], dim=2)                           # B n 2b c
    kb = kb.reshape(B * n, before + b, c)

    s = torch.bmm(qb, kb.mT).float().view(B, n * b, H, -1)[:, :T]                # B T H before+b
    if window_mask is not None:
        s = s + window_mask[..., :T, None, :]
    parts = [s, sink[:, None].expand(B, T, H, 1)]
    if entries is not None:
        own = entries.ndim == 4          # each query has its own picks
        flat = q if own else q.flatten(1, 2)                                     # B T H c or B TH c
        e = torch.matmul(flat, entries.mT).float().view(B, T, H, -1)             # B T H S
        parts.append(e if entry_mask is None else e + entry_mask.unsqueeze(-2))
    p = torch.cat(parts, dim=-1).softmax(-1).to(q.dtype)                 # B T H before+b+1+S

    pw = p[..., :before + b]
    pw = F.pad(pw, (0, 0, 0, 0, 0, pad)) if pad else pw
    o = torch.bmm(pw.reshape(B * n, b * H, -1), kb).view(B, n * b, H, c)[:, :T]
    if entries is None:
        return o, None
    pe = p[..., before + b + 1:]                                                 # B T H S
    return o + torch.matmul(pe if own else pe.flatten(1, 2), entries).view(B, T, H, c), pe
