"""Attention with one shared key-value head, a sliding window, compressed entries and sinks.

Report 2.3. All three kinds of layer are here: window only (ratio 0), compressed sparse attention
(CSA, ratio 4: the entries that the indexer picks) and heavily compressed attention (HCA, larger
ratios: all entries). `compressor.py` makes the entries, `indexer.py` scores them, `state.py`
remembers them between calls.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.config import CSA_RATE, Config
from minids.model import decoding, kernels
from minids.model.activations import round_keys
from minids.model.compressor import Compressor
from minids.model.indexer import Indexer, index_divergence
from minids.model.kernels import attention as kernel
from minids.model.kernels.lanes import LANES
from minids.model.linear import Linear
from minids.model.masks import forbid
from minids.model.norm import RMSNorm, rms
from minids.model.passes import Pass
from minids.model.rotary import Rotary, rotate
from minids.model.state import LayerState

# Where no gradient is needed, queries that have more than WHOLE scores and channels, all heads
# together, are processed in stripes of about STRIPE: so memory grows little with the text.
WHOLE, STRIPE = 2**26, 2**24
MASKED = 8      # times k: of so many entries a mask hides those that are not picked
NARROW = 128    # channels of a head: wider ones are large matrices, where torch is faster


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
        B, T, _ = x.shape
        current = current or Pass(self.config, T, x.device)
        if state is not None and decoding.possible(self, x, current, state):
            return decoding.attention(self, x, current, state)
        qr = self.q_norm(self.wq_a(x))                                           # B T q_lora_rank
        kv = self.window(x, current, state)                                      # B before+T c
        entries = keys = None
        if self.ratio:
            entries, keys = self.compressed(x, current, state)
        size = T            # what a gradient needs is kept in any case
        if not (torch.is_grad_enabled() or current.options.index):
            S = 0 if entries is None else entries.shape[1]
            size = stripe_size(self.config, self.ratio, B, T, S)
        if size >= T:
            return self.attend(x, qr, kv, entries, keys, current)
        stripes = [slice(start, min(start + size, T)) for start in range(0, T, size)]
        before = kv.shape[1] - T
        return torch.cat([self.attend(x[:, part], qr[:, part],
                                      kv[:, part.start:before + part.stop], entries, keys,
                                      current, part) for part in stripes], dim=1)

    def window(self, x: Tensor, current: Pass, state: LayerState | None) -> Tensor:
        """The keys that the queries' windows see: B before+T c, the `before` keys before the first
        query and then the queries' own."""
        cfg, T = self.config, x.shape[1]
        kv = self.kv_norm(self.wkv(x), current.rotation(self.rotary))            # B T c
        if self.round_keys:
            kv = round_keys(kv, cfg.rope_head_dim)
        if state is None:
            kv = F.pad(kv, (0, 0, cfg.window_size, 0))                           # B w+T c
        else:
            kv = state.extend(kv)
        # the window ends with the query's own key
        return kv[:, 1:] if T == 1 else kv

    def compressed(self, x: Tensor, current: Pass,
                   state: LayerState | None) -> tuple[Tensor, Tensor | None]:
        """All entries, B S c; the indexer's keys of them, B S ci, where they are needed."""
        entries = self.compressor(x, current, state.compressor if state else None)   # B S c
        if self.ratio != CSA_RATE:
            return entries, None
        learn = current.options.index
        # a state needs the keys in any case
        if not (learn or state is not None or self.picks(entries, current)):
            return entries, None
        # picking has no gradient, and the gradient of the indexer's loss stays in the indexer
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            return entries, self.indexer.keys(x.detach(), current, state.indexer if state else None)

    def picks(self, entries: Tensor, current: Pass) -> bool:
        """Whether queries read a choice of the entries, not all."""
        return entries.shape[1] > self.config.index_topk and not current.options.dense

    def attend(self, x: Tensor, qr: Tensor, kv: Tensor, entries: Tensor | None,
               keys: Tensor | None, current: Pass, part: slice | None = None) -> Tensor:
        """The output of the pass's queries, or of `part` of them: B T d.

        x: B T d, qr: B T q_lora_rank and kv: B before+T c are those of these queries.
        """
        cfg = self.config
        B, T, _ = x.shape
        rot = current.rotation(self.rotary)                                      # T c/2, or B T c/2
        window_mask = current.window_mask(cfg.window_size, kv.shape[1] - T)
        if part is not None:
            rot = rot[..., part, :]
            window_mask = None if window_mask is None else window_mask[..., part, :kv.shape[1]]
        q = self.wq_b(qr).view(B, T, cfg.n_heads, cfg.head_dim)
        q = rms(q, cfg.norm_eps, rot[..., None, :])                              # B T H c
        read, entry_mask, scores = entries, None, None
        if entries is not None:
            read, entry_mask, scores = self.chosen(x, qr, entries, keys, current, part)
        if T == 1 and window_mask is None and entry_mask is None:
            o, p = attend_step(q, kv, read, self.attn_sink)                      # B 1 H c
        else:
            o, p = attend_blocks(q, kv, window_mask, read, entry_mask, self.attn_sink,
                                 current.options.index)
        if current.options.index and scores is not None and p is not None and scores.shape[2]:
            current.record.index.append(index_divergence(p, scores, entry_mask))
        o = rotate(o, rot[..., None, :], inverse=True)
        o = o.reshape(B * T, cfg.o_groups, -1).transpose(0, 1)                   # g BT Hc/g
        o = self.wo_a.grouped(o)                                                 # g BT o_lora_rank
        return self.wo_b(o.transpose(0, 1).reshape(B, T, -1))

    def chosen(self, x: Tensor, qr: Tensor, entries: Tensor, keys: Tensor | None, current: Pass,
               part: slice | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The entries that the queries may read; which of them a query does not see (a mask
        to add to scores, or None: it sees all); the indexer's scores of them where the pass needs
        its loss.

        Either all entries, B S c, with a mask T S or B T S; or, where CSA has so many that a mask
        would waste work, each query's own picks, B T k c, with a mask B T k.
        """
        S, k = entries.shape[1], self.config.index_topk
        mask = current.entry_mask(self.ratio, S)
        if mask is not None and part is not None:
            mask = mask[..., part, :]
        learn = current.options.index
        pick = self.ratio == CSA_RATE and self.picks(entries, current)
        if keys is None or not (pick or learn):
            return entries, mask, None
        # see `compressed`
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            scores = self.indexer(x.detach(), qr.detach(), keys, current, part)  # B T S
        if not pick:
            return entries, mask, scores
        seen = scores.detach() if mask is None else scores.detach() + mask
        best = seen.topk(k, sorted=False)                                        # B T k
        picks_mask = None if mask is None else forbid(best.values == float("-inf"))
        if S <= MASKED * k and x.shape[1] > 1:  # masking few entries is faster than copying picks
            mask = torch.full_like(seen, float("-inf"))
            mask.scatter_(2, best.indices, 0.0 if picks_mask is None else picks_mask)
            return entries, mask, scores
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        picks = entries[rows, best.indices]                                      # B T k c
        return picks, picks_mask, scores.gather(2, best.indices) if learn else None


def stripe_size(config: Config, ratio: int, B: int, T: int, S: int) -> int:
    """How many of T queries, which read S entries, to process at once: all of them, or as many
    windows as give about STRIPE numbers."""
    if ratio == CSA_RATE:
        S = min(S, MASKED * config.index_topk)
    each = B * config.n_heads * (2 * config.window_size + S + config.head_dim)
    if T * each <= WHOLE:
        return T
    return max(STRIPE // each // config.window_size, 1) * config.window_size


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
                  entry_mask: Tensor | None, sink: Tensor,
                  weigh: bool = False) -> tuple[Tensor, Tensor | None]:
    """Softmax attention over the window, the compressed entries and the sink.

    q: B T H c; kv: B before+T c, the `before` keys before the first query and then the queries'
    own; window_mask: see `Pass.window_mask`; entries, entry_mask: see `Attention.chosen`;
    sink: H -> the output, B T H c, and, where `weigh` asks for them, the weights of the entries,
    B T H S (None without entries). Their gradient need not be known.
    """
    # queries that copy their own picks are for long texts
    own = entries is not None and entries.ndim == 4
    read = () if entries is None else (entries,)
    if own or q.shape[3] > NARROW or not kernels.on("attention", q, kv, sink, *read):
        return attend_in_torch(q, kv, window_mask, entries, entry_mask, sink)
    B, T, _, c = q.shape
    before = kv.shape[1] - T
    W = before + (min(before, T) or T) if window_mask is None else window_mask.shape[-1]
    if entries is None:
        entries = kv.new_empty(B, 0, c)
    window = full_mask(window_mask, T, W, q)
    unseen = full_mask(entry_mask, T, entries.shape[1], q)
    o, p = Attend.apply(q.contiguous(), kv.contiguous(), window, entries.contiguous(), unseen,
                        sink, weigh)
    return o, p if weigh and read else None


def full_mask(mask: Tensor | None, T: int, keys: int, like: Tensor) -> Tensor:
    """A mask as the kernel takes it: 1 T keys, or B T keys."""
    if mask is None:
        return like.new_zeros(1, T, keys)
    return (mask if mask.ndim == 3 else mask[None]).contiguous()


class Attend(torch.autograd.Function):
    """`attend_blocks` in one kernel, see `kernels.attention`. Nothing is kept for its gradient but
    what goes in: the scores are computed again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, window: Tensor, entries: Tensor, unseen: Tensor,
                sink: Tensor, weigh: bool) -> tuple[Tensor, Tensor]:
        c, inputs = q.shape[3], (widened(q), widened(kv), window, widened(entries), unseen, sink)
        o = torch.empty_like(inputs[0])
        p = q.new_empty(*q.shape[:3], entries.shape[1] if weigh else 0)
        kernel.attend(*kernels.arrays(*inputs), c ** -0.5, *kernels.arrays(o, p))
        ctx.save_for_backward(q, kv, window, entries, unseen, sink)
        ctx.mark_non_differentiable(p)
        return o[..., :c], p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, window, entries, unseen, sink = ctx.saved_tensors
        if not kernels.on("attention", q):
            grads = gradient_in_torch(q, kv, window, entries, unseen, sink, do)
            dq, dkv, dentries, dsink = grads
            return dq, dkv, None, dentries, None, dsink, None
        B, T, H, c = q.shape
        parts = max(kernels.parts(B * T) // B, 1)
        inputs = widened(q), widened(kv), window, widened(entries), unseen, sink
        dq, dsink = torch.empty_like(inputs[0]), kv.new_zeros(B, parts, H)
        dkv, dentries = (t.new_zeros(B, parts, *t.shape[1:]) for t in (inputs[1], inputs[3]))
        kernel.attend_gradient(*kernels.arrays(*inputs), c ** -0.5,
                               *kernels.arrays(widened(do), dq, dkv, dentries, dsink))
        return (dq[..., :c], dkv.sum(1)[..., :c], None, dentries.sum(1)[..., :c], None,
                dsink.sum((0, 1)), None)


def widened(t: Tensor) -> Tensor:
    """Channels as the kernel takes them: zeros fill them up to a multiple of 16."""
    extra = -t.shape[-1] % LANES
    return F.pad(t, (0, extra)) if extra else t


def gradient_in_torch(q: Tensor, kv: Tensor, window: Tensor, entries: Tensor, unseen: Tensor,
                      sink: Tensor, do: Tensor) -> tuple[Tensor, ...]:
    """The gradients of q, kv, entries and sink where the kernel has been switched off since."""
    with torch.enable_grad():
        q, kv, entries, sink = (t.detach().requires_grad_() for t in (q, kv, entries, sink))
        o, _ = attend_in_torch(q, kv, window, entries, unseen, sink)
        return torch.autograd.grad(o, (q, kv, entries, sink), do)


def attend_in_torch(q: Tensor, kv: Tensor, window_mask: Tensor | None, entries: Tensor | None,
                    entry_mask: Tensor | None, sink: Tensor) -> tuple[Tensor, Tensor | None]:
    """As `attend_blocks`, with the weights in any case, and their gradient.

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
