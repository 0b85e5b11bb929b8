"""Attention with one shared key-value head, a sliding window, compressed entries and sinks.

Report 2.3. All three kinds of layer are here: window only (ratio 0), compressed sparse attention (CSA, ratio 4: the
entries that the indexer picks) and heavily compressed attention (HCA, larger ratios: all entries). `compressor.py` makes
the entries, `indexer.py` scores them, `state.py` remembers them between calls.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from minids.config import CSA_RATE
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer
from minids.model.norm import RMSNorm, rms
from minids.model.rope import Rotary, turn


class Attention(nn.Module):
    """p = exp(q.k / sqrt(c)) / (sum exp(q.k / sqrt(c)) + exp(sink)); keys are values, and the output is turned back."""

    def __init__(self, config, ratio: int):
        super().__init__()
        d, H, c, g = config.dim, config.n_heads, config.head_dim, config.o_groups
        self.config, self.ratio = config, ratio
        self.wq_a = nn.Linear(d, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank, config.norm_eps)
        self.wq_b = nn.Linear(config.q_lora_rank, H * c, bias=False)
        self.wkv = nn.Linear(d, c, bias=False)
        self.kv_norm = RMSNorm(c, config.norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(H, dtype=torch.float32))
        self.wo_a = nn.Linear(H * c // g, g * config.o_lora_rank, bias=False)       # g blocks, one below the other
        self.wo_b = nn.Linear(g * config.o_lora_rank, d, bias=False)
        self.rotary = Rotary(config, ratio, c)
        if ratio:
            self.compressor = Compressor(config, ratio, c)
        if ratio == CSA_RATE:
            self.indexer = Indexer(config)

    def forward(self, x, pos: int = 0, state=None):
        """x: B T d at positions pos, pos + 1, ... -> B T d. With a `LayerState`, x continues what it has seen."""
        cfg = self.config
        B, T, _ = x.shape
        rot = self.rotary(pos, T, x.device)                                              # T c/2
        qr = self.q_norm(self.wq_a(x))                                                   # B T q_lora_rank
        q = rms(self.wq_b(qr).view(B, T, cfg.n_heads, cfg.head_dim), cfg.norm_eps)
        q = turn(q, rot[:, None])                                                        # B T H c
        kv = turn(self.kv_norm(self.wkv(x)), rot)                                        # B T c
        kv = F.pad(kv, (0, 0, cfg.window_size, 0)) if state is None else state.extend(kv)   # B w+T c
        entries, unseen = self.compressed(x, qr, pos, state) if self.ratio else (None, None)
        o = attend(q, kv, pos, cfg.window_size, entries, unseen, self.attn_sink)         # B T H c
        o = turn(o, rot[:, None].conj())
        o = o.reshape(B * T, cfg.o_groups, -1).transpose(0, 1)                           # g BT Hc/g
        o = torch.bmm(o, self.wo_a.weight.unflatten(0, (cfg.o_groups, -1)).mT)           # g BT o_lora_rank
        return self.wo_b(o.transpose(0, 1).reshape(B, T, -1))

    def compressed(self, x, qr, pos, state):
        """The entries that queries may read, and which of them a query does not see (a mask, or None: it sees all).

        Either all entries, B S c, with a mask T S or B T S; or each query's own picks, B T k c, with a mask B T k.
        """
        T, k = x.shape[1], self.config.index_topk
        entries = self.compressor(x, state and state.compressor)                         # B S c
        S = entries.shape[1]
        unseen = incomplete(pos, T, S, self.ratio, x.device)                             # T S, or None
        if self.ratio != CSA_RATE:
            return entries, unseen
        with torch.no_grad():                                                            # picking has no gradient
            if state is not None or S > k:
                keys = self.indexer.keys(x, state and state.indexer)
            if S <= k:
                return entries, unseen
            scores = self.indexer(x, qr, pos, keys)                                      # B T S
            if unseen is not None:
                scores = scores + unseen
            best = scores.topk(k, sorted=False)                                          # B T k
            unseen = None if unseen is None else forbid(best.values == float("-inf"))
            if S <= 8 * k and T > 1:    # few entries: masking them is faster than copying each query's own
                mask = torch.full_like(scores, float("-inf"))
                return entries, mask.scatter_(2, best.indices, 0.0 if unseen is None else unseen)
        rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
        return entries[rows, best.indices], unseen


def attend(q, kv, pos: int, w: int, entries, unseen, sink):
    """Softmax attention over the window, the compressed entries and the sink. q: B T H c -> B T H c.

    kv: B w+T c, the w keys before the first query and then the queries' own. entries, unseen: see `Attention.compressed`.
    Queries are cut into blocks of w; a block needs only the keys of its own and of the block before.
    """
    B, T, H, c = q.shape
    if T == 1:
        kv = kv[:, 1:]                                                                   # decoding: just the window
    before = kv.shape[1] - T
    b = min(w, T)                                                                        # queries in a block
    n = -(-T // b)
    pad = n * b - T
    q = q * c ** -0.5
    qb = F.pad(q, (0, 0, 0, 0, 0, pad)) if pad else q
    qb = qb.reshape(B * n, b * H, c)                                                     # one block after another
    kb = F.pad(kv, (0, 0, 0, pad)) if pad else kv
    if n > 1:                                                                            # here before = b = w
        kb = kb.view(B, n + 1, b, c)
        kb = torch.cat([kb[:, :-1], kb[:, 1:]], dim=2)                                   # B n 2w c
    kb = kb.reshape(B * n, before + b, c)

    s = torch.bmm(qb, kb.mT).float().view(B, n * b, H, -1)[:, :T]                        # B T H before+b
    out = outside(pos, n, b, before, w, q.device)
    if out is not None:
        s = s + out[:T, None]
    parts = [s, sink[:, None].expand(B, T, H, 1)]
    if entries is not None:
        own = entries.ndim == 4                                                          # each query has its own picks
        flat = q if own else q.flatten(1, 2)                                             # B T H c or B TH c
        e = torch.matmul(flat, entries.mT).float().view(B, T, H, -1)                     # B T H S
        if unseen is not None:
            e = e + unseen.unsqueeze(-2)
        parts.append(e)
    p = torch.cat(parts, dim=-1).softmax(-1).to(q.dtype)                                 # B T H before+b+1+S

    pw = p[..., :before + b]
    pw = F.pad(pw, (0, 0, 0, 0, 0, pad)) if pad else pw
    o = torch.bmm(pw.reshape(B * n, b * H, -1), kb).view(B, n * b, H, c)[:, :T]
    if entries is not None:
        pe = p[..., before + b + 1:]
        o = o + torch.matmul(pe if own else pe.flatten(1, 2), entries).view(B, T, H, c)
    return o


@lru_cache(maxsize=4)      # layers and steps share masks; long chunks make large ones
@torch.inference_mode(False)     # kept masks serve training too, whoever asks first
def outside(pos: int, n: int, b: int, before: int, w: int, device):
    """nb x before+b: -inf where a key of the block is not among the w up to its query, or lies before position 0; else 0.
    None: 0 everywhere."""
    if b == 1 and before == w - 1 <= pos:
        return None
    query = torch.arange(n * b, device=device).view(n, b, 1)                             # from pos
    key = torch.arange(before + b, device=device) - before + b * torch.arange(n, device=device).view(n, 1, 1)
    return forbid((key > query) | (key <= query - w) | (key < -pos)).view(n * b, before + b)


@lru_cache(maxsize=4)      # layers and steps share masks; long chunks make large ones
@torch.inference_mode(False)     # kept masks serve training too, whoever asks first
def incomplete(pos: int, T: int, S: int, ratio: int, device):
    """T x S: -inf where entry s is not complete for the query at pos + t, s >= floor((pos + t + 1) / ratio); else 0.
    None: 0 everywhere."""
    if (pos + 1) // ratio >= S:
        return None
    query = torch.arange(pos + 1, pos + T + 1, device=device)
    return forbid(torch.arange(S, device=device) >= (query // ratio)[:, None])


def forbid(mask):
    """-inf where the mask holds, else 0: to be added to scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))
