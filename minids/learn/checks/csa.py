"""Checks of lesson 04: compressed sparse attention (V4 report, section 2.3.1) and how its indexer learns (V3.2, 2.1)."""

from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F

from minids.config import Config
from minids.learn.checks.hca import _all, _early, _strict, rms, visible
from minids.learn.exercise import Check
from minids.model.indexer import Indexer
from minids.model.rotary import rotate as rotate_pairs

LESSON = "04_csa"
INF = float("inf")


# ---- the compressor with overlap ----

def compress(x, wkv, wgate, ape, weight, eps, slots=None, cut=None, add=None, pool=None, norm=rms):
    """Entries with overlap, B n c, without rotary. x: B T d, wkv and wgate: 2c d, ape: m 2c, weight: c.

    The keyword arguments make the usual mistakes."""
    m, n, c = len(ape), x.shape[1] // len(ape), len(weight)
    kv, z = ((x @ w.mT)[:, :n * m].reshape(len(x), n, m, 2 * c) for w in (wkv, wgate))   # B n m 2c
    kv, z = (kv, z + ape) if add is None else add(kv, z, ape)
    if cut:
        kv, z = cut(kv), cut(z)
    kv, z = (slots or overlapped)(kv, 0.0), (slots or overlapped)(z, -INF)               # B n 2m c
    entries = (z.softmax(2) * kv).sum(2) if pool is None else pool(kv, z)                # B n c
    return norm(entries, weight, eps)


def overlapped(t, missing, shift=1):
    """B n m 2c -> B n 2m c: the a-half of the window before, then the b-half of this one."""
    a, b = t.chunk(2, -1)
    return torch.cat([_shifted(a, missing, shift), b], 2)


def _shifted(a, missing, shift):
    """Window i gets what window i - shift has, or `missing` where there is none."""
    gap = torch.full_like(a[:, :1], missing)
    return torch.cat([gap, a[:, :-1]] if shift == 1 else [a[:, 1:], gap], 1)[:, :a.shape[1]]


def _compress_cases(rng):
    def arguments(B, T, d, c, m):
        wkv, wgate = (torch.randn(2 * c, d, generator=rng) * d ** -0.5 for _ in range(2))
        return (torch.randn(B, T, d, generator=rng), wkv, 1.5 * wgate, torch.randn(m, 2 * c, generator=rng),
                0.5 + torch.rand(c, generator=rng), 0.05)
    yield "two windows", arguments(1, 8, 6, 5, 4)
    yield "one window: nothing comes before it", arguments(1, 4, 6, 5, 4)
    yield "four windows and a token more", arguments(2, 13, 6, 7, 3)
    yield "fewer tokens than a window has", arguments(2, 3, 6, 5, 4)


def _rolled(t, missing):
    a, b = t.chunk(2, -1)
    return torch.cat([a.roll(1, 1), b], 2)


def _swap(t):
    return torch.cat(t.chunk(2, -1)[::-1], -1)


def _two_softmaxes(kv, z):
    a, b = ((s.softmax(2).nan_to_num() * v).sum(2) for v, s in zip(kv.chunk(2, 2), z.chunk(2, 2)))
    return a + b


def _sum_of_sigmoids(kv, z):
    return (z.sigmoid() * kv).sum(2)


def _wide(x, wkv, wgate, ape, weight, eps):
    """A pool over m slots of 2c channels, the halves added at the end: no overlap at all."""
    return compress(x, wkv, wgate, ape, weight, eps, slots=lambda t, missing: t,
                    pool=lambda kv, z: sum((z.softmax(2) * kv).sum(2).chunk(2, -1)))


# ---- the indexer's scores ----

def turned(x, angles):
    """x: ... c with its last channels turned by angles (... r/2), neighbours as pairs."""
    r = 2 * angles.shape[-1]
    return torch.cat([x[..., :-r], rotate_pairs(x[..., -r:], torch.polar(torch.ones_like(angles), angles))], -1)


def scores(x, qr, keys, wq_b, weights_proj, angles, relu=F.relu, scale=None, weigh=None, heads=None, end=None, rotate=turned):
    """B T S, future entries included. x: B T d, qr: B T dc, keys: B S ci, wq_b: Hi ci x dc, weights_proj: Hi d, angles: T r/2.

    The keyword arguments make the usual mistakes."""
    B, T, Hi, ci = *x.shape[:2], len(weights_proj), keys.shape[-1]
    q = (qr @ wq_b.mT).view(B, T, Hi, ci) if heads is None else heads(x, qr, wq_b, Hi, ci)
    q = rotate(q, angles[:, None])                                                       # B T Hi ci
    w = (x @ weights_proj.mT) * ((Hi * ci) ** -0.5 if scale is None else scale(Hi, ci))  # B T Hi
    w = w if weigh is None else weigh(w, qr, weights_proj)
    s = relu(torch.einsum("bthc,bsc->bths", q, keys))                                    # B T Hi S
    return torch.einsum("bth,bths->bts", w, s) if end is None else end(w, s)


def _scores_cases(rng):
    def arguments(B, T, S, d, Hi, ci, r):
        return (torch.randn(B, T, d, generator=rng), torch.randn(B, T, d, generator=rng), torch.randn(B, S, ci, generator=rng),
                0.5 * torch.randn(Hi * ci, d, generator=rng), torch.randn(Hi, d, generator=rng),
                3 * torch.rand(T, r // 2, generator=rng))
    yield "one head", arguments(1, 4, 3, 6, 1, 6, 2)
    yield "four heads", arguments(2, 5, 3, 6, 4, 8, 4)


def _first_turn(x, angles):
    r = 2 * angles.shape[-1]
    return torch.cat([rotate_pairs(x[..., :r], torch.polar(torch.ones_like(angles), angles)), x[..., r:]], -1)


def _from_x(x, qr, wq_b, Hi, ci):
    return (x @ wq_b.mT).view(*x.shape[:2], Hi, ci)


def _exchanged(x, qr, wq_b, Hi, ci):
    return (qr @ wq_b.mT).view(*x.shape[:2], ci, Hi).mT


# ---- the choice ----

def pick(scores, m, k, sees=visible, late=False, fill=False, choose=None):
    """Which entries each query reads, B T S: the k best complete ones, or all. Keyword arguments: mistakes."""
    T, S = scores.shape[1:]
    seen = sees(T, S, m)                                                                 # T S
    ranked = scores if late else scores.masked_fill(~seen, -INF)
    best = ranked.topk(min(k, S)).indices if choose is None else choose(ranked, min(k, S))      # B T k
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True)
    return picked if fill else picked & seen


def _pick_cases(rng):
    def arguments(B, T, S, m, k):
        return torch.randn(B, T, S, generator=rng), m, k
    yield "the best 2 of 5 entries", arguments(1, 20, 5, 4, 2)
    yield "the best 3 of 8 entries, two sequences", arguments(2, 26, 8, 3, 3)
    yield "k is larger than the number of entries", arguments(1, 9, 2, 4, 5)


def _too_many(scores, m, k):
    return pick(scores, m, k, choose=lambda ranked, k: ranked.topk(k).indices) if k <= scores.shape[2] else scores.topk(k)


def _over_queries(scores, m, k):
    seen = scores.masked_fill(~visible(*scores.shape[1:], m), -INF)
    best = seen.topk(min(k, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True) & visible(*scores.shape[1:], m)


# ---- how the indexer learns ----

def divergence(p, scores, seen, heads=None, normalise=True, mask=-1e9, axis=-1, over=None, kl=None):
    """KL(attention, summed over heads and normalised || softmax of the scores), mean over queries that see an entry.

    p: B T H S, scores: B T S, seen: T S. The keyword arguments make the usual mistakes."""
    target = p.sum(2) if heads is None else heads(p)                                     # B T S
    mass = target.sum(-1, keepdim=True)
    target = target / mass.clamp_min(1e-20) if normalise else target
    log_q = (scores if mask is None else scores.masked_fill(~seen, mask)).log_softmax(axis)
    each = (torch.xlogy(target, target) - target * log_q).sum(-1) if kl is None else kl(target, log_q, seen)     # B T
    sees = seen.any(-1).expand_as(each)
    return (each * sees).sum() / sees.sum() if over is None else over(each, sees)


def _backwards(target, log_q, seen):
    q = log_q.exp() * seen
    return (q * (log_q - target.clamp_min(1e-20).log())).sum(-1)


def _each_head(p):
    return (p / p.sum(-1, keepdim=True).clamp_min(1e-20)).sum(2)


def _attention(rng, B, T, H, S, m):
    """Weights of a softmax in which window and sink take a part: p B T H S; and who sees what."""
    seen = visible(T, S, m)
    e = (1.5 * torch.randn(B, T, H, S, generator=rng)).exp() * seen[:, None]
    rest = torch.tensor([0.5, 3.0, 20.0])[torch.arange(H) % 3]
    return e / (e.sum(-1) + rest)[..., None], seen


def _divergence_cases(rng):
    p, seen = _attention(rng, 2, 16, 3, 4, 4)
    yield "every query sees an entry", (p[:, 3:], torch.randn(2, 13, 4, generator=rng), seen[3:])
    p, seen = _attention(rng, 1, 14, 2, 4, 3)
    yield "the first queries see none", (p, torch.randn(1, 14, 4, generator=rng), seen)


def learn(indexer, x, qr, p, seen, loss=divergence, free=()):
    """The indexer's loss, from inputs and a target that no gradient enters. `free`: those that are not detached, a mistake."""
    x, qr, p = (t if name in free else t.detach() for name, t in (("x", x), ("qr", qr), ("p", p)))
    return loss(p, indexer(x, qr, indexer.keys(x)), seen)


def with_gradients(loss_of):
    """A function of the same arguments that gives the loss and its gradients: for x, qr, p and the indexer's parameters."""
    def both(indexer, x, qr, p, seen):
        given = [t.clone().requires_grad_() for t in (x, qr, p)]
        loss = loss_of(indexer, *given, seen)
        gradients = torch.autograd.grad(loss, [*given, *indexer.parameters()], allow_unused=True, materialize_grads=True)
        return {"loss": loss.detach()} | dict(zip(("x", "qr", "p"), gradients)) | {
            "indexer": torch.cat([g.flatten() for g in gradients[3:]])}
    return both


def _slip(**slip):
    return with_gradients(lambda *a: learn(*a, **slip))


def _remaining():
    """The faults of the colleague's version, in every combination."""
    faults = "the direction of the KL", "the target's sum", "what must be detached"
    return [some for n in (1, 2, 3) for some in combinations(faults, n)]


def _with(faults):
    kl = _backwards if "the direction of the KL" in faults else None
    return {"loss": partial(divergence, kl=kl, normalise="the target's sum" not in faults),
            "free": ("x", "qr", "p") if "what must be detached" in faults else ()}


def _learn_cases(rng):
    config = Config.nano().replace(dim=12, q_lora_rank=8, index_n_heads=4, index_head_dim=6, rope_head_dim=4)
    indexer = Indexer(config)
    for name, weight in indexer.named_parameters():
        noise = torch.randn(weight.shape, generator=rng)
        weight.data = 1 + 0.3 * noise if "norm" in name else 0.6 * noise
    for label, first in (("every query sees an entry", 3), ("the first queries see none", 0)):
        p, seen = _attention(rng, 2, 14, 3, 3, 4)
        p[:, :first] = 0
        seen = seen.clone()
        yield label, (indexer, torch.randn(2, 14, 12, generator=rng), torch.randn(2, 14, 8, generator=rng), p, seen)


# ---- what it costs ----

def operations(config, n):
    """FP8-equivalent operations of all indexers in one token decoded after n tokens of context."""
    layers = _layers(config, lambda r: r == 4)
    return layers * 2 * config.index_n_heads * config.index_head_dim * (n // 4) * 0.5


def _operations_cases(rng):
    yield "V4-Flash at 1,048,576 tokens", (Config.flash(), 2**20)
    yield "V4-Pro at 100,003 tokens", (Config.pro(), 100_003)
    yield "nano at 1,003 tokens", (Config.nano(), 1003)


def _layers(config, which):
    return sum(map(which, config.compress_ratios[:config.n_layers]))


def _times(factor):
    return lambda config, n: operations(config, n) * factor(config, n)


CHECKS = [
    Check(
        "csa.compress", compress, _compress_cases,
        mistakes={
            "there is no overlap: an entry pools the b-half of its own window and the a-half of the window before":
                lambda *a: compress(*a, slots=lambda t, missing: t.chunk(2, -1)[1]),
            "there is no overlap: this pools the a-half of an entry's own window only":
                lambda *a: compress(*a, slots=lambda t, missing: t.chunk(2, -1)[0]),
            "both halves come from an entry's own window: the a-half comes from the window before":
                lambda *a: compress(*a, slots=lambda t, missing: torch.cat(t.chunk(2, -1), 2)),
            "the two halves of a token's channels are pooled side by side and added: cut them into 2m slots of c channels":
                _wide,
            "the halves are swapped: the FIRST c channels (a) serve the next window's entry, the LAST c (b) their own":
                lambda *a: compress(*a, cut=_swap),
            "the a-half comes from the window AFTER, which is the future: it comes from the window before":
                lambda *a: compress(*a, slots=lambda t, missing: overlapped(t, missing, shift=-1)),
            "window 0 takes the a-half of the LAST window (torch.roll wraps around): nothing comes before it":
                lambda *a: compress(*a, slots=_rolled),
            "the absent a-half of window 0 counts with weight: fill its gate with -inf, so that its weight is 0":
                lambda *a: compress(*a, slots=lambda t, missing: overlapped(t, 0.0)),
            "each half has a softmax of its own, over m slots: one softmax runs over all 2m":
                lambda *a: compress(*a, pool=_two_softmaxes),
            "the softmax runs over the channels: in each channel, the weights of the 2m slots must sum to 1":
                lambda *a: compress(*a, pool=lambda kv, z: (z.softmax(3).nan_to_num() * kv).sum(2)),
            "the weights are sigmoids: take a softmax over the 2m slots": lambda *a: compress(*a, pool=_sum_of_sigmoids),
            "ape has no effect: add it to the gate, row j for place j, before the halves are cut":
                lambda *a: compress(*a, add=lambda kv, z, ape: (kv, z)),
            "ape is added to kv: it belongs to the gate": lambda *a: compress(*a, add=lambda kv, z, ape: (kv + ape, z)),
            "ape's halves are swapped: its first c columns belong to the a-half":
                lambda *a: compress(*a, add=lambda kv, z, ape: (kv, z + _swap(ape))),
            "the a-half gets ape's b columns: each half has its own":
                lambda *a: compress(*a, add=lambda kv, z, ape: (kv, z + ape.chunk(2, -1)[1].repeat(1, 2))),
            "the b-half gets ape's a columns: each half has its own":
                lambda *a: compress(*a, add=lambda kv, z, ape: (kv, z + ape.chunk(2, -1)[0].repeat(1, 2))),
            "the a-half has no ape: both halves get it": lambda *a: compress(
                *a, add=lambda kv, z, ape: (kv, z + torch.cat([ape[:, :0].new_zeros(len(ape), ape.shape[1] // 2),
                                                               ape.chunk(2, -1)[1]], -1))),
            "wkv and wgate are exchanged": lambda x, wkv, wgate, *a: compress(x, wgate, wkv, *a),
            "the norm is missing": lambda *a: compress(*a, norm=lambda entries, weight, eps: entries),
            "the norm's weight is missing": lambda *a: compress(*a, norm=lambda e, w, eps: rms(e, torch.ones_like(w), eps)),
        },
        hints=(
            "Cut kv and z + ape into B n m 2c, then .chunk(2, -1) gives the a-half and the b-half, B n m c each.",
            "The a-half moves one window on: put a tensor B 1 m c before a[:, :-1]. Then torch.cat with b along axis 2.",
            "What stands before window 0: kv 0 and gate -inf. softmax(2) of the 2m gates gives -inf the weight 0.",
        ),
    ),
    Check(
        "csa.scores", scores, _scores_cases,
        mistakes={
            "the ReLU is missing: a head may only speak for an entry by w, never by a negative product":
                lambda *a: scores(*a, relu=lambda s: s),
            "the ReLU comes after the weighing by w: a head with a negative w then says nothing, and it should speak against":
                lambda *a: scores(*a, relu=lambda s: s, end=lambda w, s: F.relu(w[..., None] * s).sum(2)),
            "the ReLU comes after the sum over heads: each head has its own":
                lambda *a: scores(*a, relu=lambda s: s, end=lambda w, s: F.relu(torch.einsum("bth,bths->bts", w, s))),
            "the scale is missing: w = weights_proj x times ci^-1/2 Hi^-1/2": lambda *a: scores(*a, scale=lambda Hi, ci: 1.0),
            "half of the scale is missing: ci^-1/2 is there, Hi^-1/2 is not":
                lambda *a: scores(*a, scale=lambda Hi, ci: ci ** -0.5),
            "half of the scale is missing: Hi^-1/2 is there, ci^-1/2 is not":
                lambda *a: scores(*a, scale=lambda Hi, ci: Hi ** -0.5),
            "the scale lacks its root: (ci Hi)^-1/2, not (ci Hi)^-1": lambda *a: scores(*a, scale=lambda Hi, ci: 1 / (Hi * ci)),
            "the heads' weights come from qr: they come from x, the layer's input":
                lambda *a: scores(*a, weigh=lambda w, qr, p: (qr @ p.mT) * w.shape[-1] ** -0.5 * a[2].shape[-1] ** -0.5),
            "the queries come from x: they come from qr, the latent that the attention's queries come from":
                lambda *a: scores(*a, heads=_from_x),
            "queries come from x and weights from qr: it is the other way round":
                lambda x, qr, *a: scores(qr, x, *a),
            "the heads' weights went through a softmax: w may be negative, and need not sum to 1":
                lambda *a: scores(*a, weigh=lambda w, qr, p: w.softmax(-1)),
            "a softmax runs over the heads: the products only pass a ReLU": lambda *a: scores(*a, relu=lambda s: s.softmax(2)),
            "a softmax runs over the entries: scores are ranked, they need no softmax":
                lambda *a: scores(*a, relu=lambda s: s.softmax(3)),
            "the heads are added without their weights w": lambda *a: scores(*a, weigh=lambda w, qr, p: torch.ones_like(w)),
            "this is the mean over the heads: it is their sum": lambda *a: scores(*a) / len(a[4]),
            "the queries are not turned by their positions": lambda *a: scores(*a, rotate=lambda q, angles: q),
            "the queries are turned backwards": lambda *a: scores(*a[:-1], -a[-1]),
            "the first channels of the queries turn: the last ones do": lambda *a: scores(*a, rotate=_first_turn),
            "the rows of wq_b are cut wrongly: head h has the ci rows from h ci on: .view(B, T, Hi, ci)":
                lambda *a: scores(*a, heads=_exchanged),
        },
        hints=(
            "(qr @ wq_b.T).view(B, T, Hi, ci) are the queries; turned(q, angles[:, None]) turns all heads of a token alike.",
            "Products with all keys: torch.einsum('bthc,bsc->bths', q, keys), then relu, head by head.",
            "w = x @ weights_proj.T * (ci * Hi) ** -0.5 is B T Hi. The score is the sum over h of w times the ReLU's result.",
        ),
    ),
    Check(
        "csa.pick", pick, _pick_cases,
        mistakes={
            "topk fails where there are fewer than k entries: ask for min(k, S)": _too_many,
            "the best k of ALL entries are read, also of later tokens": lambda *a: pick(*a, sees=_all),
            "the top k are taken over all entries, the future ones dropped afterwards and lost: mask first, then rank":
                lambda *a: pick(*a, late=True),
            "where fewer than k entries are complete, others fill the places: a score of -inf is no reason to read":
                lambda *a: pick(*a, fill=True),
            "a window's entry is picked before the window is complete": lambda *a: pick(*a, sees=_early),
            "an entry is picked one token too late: the window's last token may read it": lambda *a: pick(*a, sees=_strict),
            "every complete entry is read: only the k best are": lambda *a: pick(*a[:2], a[0].shape[2]),
            "these are the k latest entries: the scores decide":
                lambda s, m, k: pick(torch.arange(s.shape[2]).expand_as(s) * 1.0, m, k),
            "these are the k worst: the largest scores win": lambda s, m, k: pick(-s, m, k),
            "the entries are ranked by the absolute value of their scores: a score of -2 ranks below one of 1":
                lambda s, m, k: pick(s.abs(), m, k),
            "the top k run over the queries: each query (row) has its own k entries (axis 2)": _over_queries,
            "one entry too few is picked": lambda s, m, k: pick(s, m, k - 1),
            "one entry too many is picked": lambda s, m, k: pick(s, m, k + 1),
        },
        hints=(
            "First visible(T, S, m), T x S: scores.masked_fill(~seen, -inf) ranks what must not be read last.",
            ".topk(min(k, S)).indices: B T k. torch.zeros_like(scores, dtype=torch.bool).scatter(2, indices, True) marks them.",
            "Where fewer than k are complete, topk also returns some at -inf: & seen takes them away.",
        ),
    ),
    Check(
        "csa.divergence", divergence, _divergence_cases,
        mistakes={
            "the result is nan: a query that sees no entry has only -inf, and a softmax of that is nan. "
            "Fill with -1e9, and leave those queries out of the mean": lambda *a: divergence(*a, mask=-INF),
            "the KL is the wrong way round: the attention's distribution comes first, it weighs the logarithms":
                lambda *a: divergence(*a, kl=_backwards),
            "the target is not normalised: summed over heads, a query's weights need not sum to 1; divide by their sum":
                lambda *a: divergence(*a, normalise=False),
            "the target is divided by the number of heads, not by its own sum: window and sink took a part of the weight":
                lambda *a: divergence(*a, heads=lambda p: p.mean(2), normalise=False),
            "the target is a softmax of the weights: they are weights already, divide by their sum":
                lambda p, s, seen: divergence(
                    p, s, seen, heads=lambda p: p.sum(2).masked_fill(~seen, -1e9).softmax(-1) * seen.any(-1)[:, None]),
            "each head is normalised before the sum: sum over heads first, so that a head that reads no entries has no say":
                lambda *a: divergence(*a, heads=_each_head),
            "only the first head is the target: sum over all heads": lambda *a: divergence(*a, heads=lambda p: p[:, :, 0]),
            "the target is the largest weight of any head: sum over the heads":
                lambda *a: divergence(*a, heads=lambda p: p.amax(2)),
            "entries that a query does not see take part in the softmax of the scores": lambda *a: divergence(*a, mask=None),
            "this is the cross-entropy: right gradient, but subtract the target's own entropy, so that 0 is a perfect match":
                lambda *a: divergence(*a, kl=lambda t, log_q, seen: -(t * log_q).sum(-1)),
            "the sign is wrong: KL is never negative": lambda *a: -divergence(*a),
            "the softmax of the scores runs over the queries: over the entries": lambda *a: divergence(*a, axis=1),
            "the mean runs over all queries: those that see no entry do not count":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).mean()),
            "this is the sum over queries: take the mean":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).sum()),
        },
        hints=(
            "target = p.sum(2), divided by its own sum over entries (guard it: some queries see none).",
            "scores.masked_fill(~seen, -1e9).log_softmax(-1) is the indexer's part: -inf would give nan where nothing is seen.",
            "KL = (torch.xlogy(target, target) - target * log_q).sum(-1); the mean over the queries where seen.any(-1) holds.",
        ),
    ),
    Check(
        "csa.learn", with_gradients(learn), _learn_cases,
        mistakes={
            "a gradient reaches the attention's weights p: the target is what the attention does, it must not move; detach p":
                _slip(free=("p",)),
            "a gradient reaches x: the model would change its features to please the indexer; detach x": _slip(free=("x",)),
            "a gradient reaches qr, the latent of the attention's queries; detach it too": _slip(free=("qr",)),
            "gradients reach x and qr: the model would change its features to please the indexer; detach both":
                _slip(free=("x", "qr")),
        } | {f"still to be mended: {', '.join(faults)}": _slip(**_with(faults)) for faults in _remaining()},
        hints=(
            "Three questions: which way round is the KL, does the target sum to 1, and whom may this loss change?",
            "Your divergence answers the first two. The third: only the indexer. t.detach() is t without its history.",
            "divergence(p.detach(), indexer(x, qr, indexer.keys(x)), seen), with x and qr detached before.",
        ),
    ),
    Check(
        "csa.operations", operations, _operations_cases,
        mistakes={
            "the indexer looks at n / 4 entries, not at n tokens": _times(lambda config, n: n / (n // 4)),
            "n / 4 must be a whole number of entries: n // 4": _times(lambda config, n: (n / 4) / (n // 4)),
            "a multiply-add is two operations": _times(lambda config, n: 0.5),
            "FP4 times FP4 counts a half": _times(lambda config, n: 2),
            "only one layer is counted: multiply by the number of CSA layers":
                _times(lambda config, n: 1 / _layers(config, lambda r: r == 4)),
            "every layer is counted: only those of ratio 4 have an indexer":
                _times(lambda config, n: config.n_layers / _layers(config, lambda r: r == 4)),
            "HCA layers are counted: they read all entries and need no indexer":
                _times(lambda config, n: _layers(config, bool) / _layers(config, lambda r: r == 4)),
            "one head is counted: multiply by index_n_heads": _times(lambda config, n: 1 / config.index_n_heads),
            "these are the attention's heads: the indexer has index_n_heads of index_head_dim":
                _times(lambda config, n: config.n_heads * config.head_dim / config.index_n_heads / config.index_head_dim),
        },
        hints=(
            "One product of a query head and a key: ci multiply-adds. How many heads, how many keys, how many layers?",
            "Keys: n // 4 in each CSA layer. CSA layers: those of config.compress_ratios[:config.n_layers] that are 4.",
            "layers * 2 * index_n_heads * index_head_dim * (n // 4) * 0.5",
        ),
    ),
]
