"""Attention with one shared key-value head, a sliding window, compressed entries and sinks.

Report 2.3. All three kinds of layer are here: window only (ratio 0), compressed sparse attention (CSA, ratio 4: the
entries that the indexer picks) and heavily compressed attention (HCA, larger ratios: all entries). `compressor.py` makes
the entries, `indexer.py` scores them, `state.py` remembers them between calls.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minids.config import CSA_RATE
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer
from minids.model.ledger import index_divergence
from minids.model.masks import forbid, incomplete, outside
from minids.model.norm import RMSNorm, rms
from minids.model.rotary import Rotary, turn


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

    def forward(self, x, pos: int = 0, state=None, ledger=None):
        """x: B T d at positions pos, pos + 1, ... -> B T d. With a `LayerState`, x continues what it has seen."""
        cfg = self.config
        B, T, _ = x.shape
        packing = ledger and ledger.packing
        rot = self.rotary.at(packing.position) if packing else self.rotary(pos, T, x.device)   # T c/2, or B T c/2
        qr = self.q_norm(self.wq_a(x))                                                   # B T q_lora_rank
        q = rms(self.wq_b(qr).view(B, T, cfg.n_heads, cfg.head_dim), cfg.norm_eps)
        q = turn(q, rot[..., None, :])                                                       # B T H c
        kv = turn(self.kv_norm(self.wkv(x)), rot)                                        # B T c
        kv = F.pad(kv, (0, 0, cfg.window_size, 0)) if state is None else state.extend(kv)   # B w+T c
        entries, unseen, scores = self.compressed(x, qr, pos, state, ledger) if self.ratio else (None, None, None)
        o, p = attend(q, kv, pos, cfg.window_size, entries, unseen, self.attn_sink, packing)   # B T H c
        if ledger and ledger.index and scores is not None and scores.shape[2]:
            ledger.index_losses.append(index_divergence(p, scores, unseen))
        o = turn(o, rot[..., None, :].conj())
        o = o.reshape(B * T, cfg.o_groups, -1).transpose(0, 1)                           # g BT Hc/g
        o = torch.bmm(o, self.wo_a.weight.view(cfg.o_groups, -1, o.shape[-1]).mT)        # g BT o_lora_rank
        return self.wo_b(o.transpose(0, 1).reshape(B, T, -1))

    def compressed(self, x, qr, pos, state, ledger):
        """The entries that queries may read, which of them a query does not see (a mask, or None: it sees all), and the
        indexer's scores of them where the ledger asks for its loss.

        Either all entries, B S c, with a mask T S or B T S; or each query's own picks, B T k c, with a mask B T k.
        """
        T, k = x.shape[1], self.config.index_topk
        packing = ledger and ledger.packing
        entries = self.compressor(x, state and state.compressor, packing)                # B S c
        S = entries.shape[1]
        unseen = packing.incomplete(self.ratio) if packing else incomplete(pos, T, S, self.ratio, x.device)
        if self.ratio != CSA_RATE:
            return entries, unseen, None
        pick = S > k and not (ledger and ledger.dense)
        learn = bool(ledger and ledger.index)
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):                  # picking has no gradient
            x, qr = x.detach(), qr.detach()                                              # and learning to pick stays here
            if pick or learn or state is not None:
                keys = self.indexer.keys(x, state and state.indexer, packing)
            scores = self.indexer(x, qr, pos, keys, packing) if pick or learn else None  # B T S
        if not pick:
            return entries, unseen, scores
        seen = scores.detach() if unseen is None else scores.detach() + unseen
        best = seen.topk(k, sorted=False)                                                # B T k
        unseen = None if unseen is None else forbid(best.values == float("-inf"))
        if S <= 8 * k and T > 1:        # few entries: masking them is faster than copying each query's own
            mask = torch.full_like(seen, float("-inf"))
            return entries, mask.scatter_(2, best.indices, 0.0 if unseen is None else unseen), scores
        rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
        return entries[rows, best.indices], unseen, scores.gather(2, best.indices) if learn else None


def attend(q, kv, pos: int, w: int, entries, unseen, sink, packing=None):
    """Softmax attention over the window, the compressed entries and the sink. q: B T H c -> B T H c, and the weights of
    the entries, B T H S (None without entries).

    kv: B w+T c, the w keys before the first query and then the queries' own. entries, unseen: see `Attention.compressed`.
    Queries are cut into blocks of w; a block needs only the keys of its own and of the block before.
    """
    B, T, H, c = q.shape
    q = q * c ** -0.5
    if T == 1:
        kv = kv[:, 1:]                                                                   # decoding: just the window
        if pos >= w - 1 and unseen is None and packing is None:                          # all is seen: one softmax over it
            keys = kv if entries is None else torch.cat([kv, entries.flatten(1, -2)], dim=1)  # B w+S c
            s = torch.bmm(q[:, 0], keys.mT).float()                                      # B H w+S
            p = torch.cat([s, sink.expand(B, H)[:, :, None]], dim=2).softmax(-1)[:, :, :-1].to(q.dtype)
            return torch.bmm(p, keys)[:, None], p[:, None, :, w:]
    before = kv.shape[1] - T
    b = min(w, T)                                                                        # queries in a block
    n = -(-T // b)
    pad = n * b - T
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
    if packing:
        s = s + packing.apart(n, b, before)[:, :T, None]
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
    pe = None
    if entries is not None:
        pe = p[..., before + b + 1:]                                                     # B T H S
        o = o + torch.matmul(pe if own else pe.flatten(1, 2), entries).view(B, T, H, c)
    return o, pe
