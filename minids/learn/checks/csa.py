"""Checks of lesson 04: compressed sparse attention (V4 report, section 2.3.1) and the training of
its indexer (V3.2 report, section 2.1).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import math
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from minids import plain
from minids.config import Config
from minids.learn.checks.attention import rotate_first
from minids.learn.checks.hca import (
    early,
    everything,
    late,
    pooled,
    windows,
    without_norm,
    without_weight,
)
from minids.learn.exercise import Check
from minids.model.indexer import Indexer
from minids.plain import previous, rms_norm, visible

LESSON = "04_csa"


# ---- the compressor with overlap ----


def compress_overlapped_with(x, wkv, wgate, ape, weight, eps, add=None, slots=None, pool=pooled,
                             norm=rms_norm):
    """`compress_overlapped` with another way to add ape, other slots, pooling, or norm."""
    m, slots = len(ape), slots or overlapped
    kv, z = windows(x @ wkv.T, m), windows(x @ wgate.T, m)             # B S m 2c
    kv, z = (kv, z + ape) if add is None else add(kv, z, ape)
    kv, z = slots(kv, 0.0), slots(z, -math.inf)                        # B S 2m c
    return norm(pool(kv, z), weight, eps)


def overlapped(windows, missing):
    """The first half of the previous window, then the second half of its own: B S 2m c."""
    first, second = windows.chunk(2, dim=-1)
    return torch.cat([previous(first, missing), second], dim=2)


def _first_half(windows, missing):
    return windows.chunk(2, dim=-1)[0]


def _second_half(windows, missing):
    return windows.chunk(2, dim=-1)[1]


def _own_halves(windows, missing):
    return torch.cat(windows.chunk(2, dim=-1), dim=2)


def _from_the_next(windows, missing):
    first, second = windows.chunk(2, dim=-1)
    return torch.cat([previous(first.flip(1), missing).flip(1), second], dim=2)


def _rolled(windows, missing):
    first, second = windows.chunk(2, dim=-1)
    return torch.cat([first.roll(1, 1), second], dim=2)


def _zero_for_missing(windows, missing):
    return overlapped(windows, 0.0)


def _swap(x):
    """The two halves of the channels in the other order."""
    return torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)


def _swapped(windows, missing):
    return overlapped(_swap(windows), missing)


def _side_by_side(windows, missing):
    return windows


def _two_sums(kv, z):
    """The pooled 2c channels, their halves added: no overlap at all."""
    first, second = pooled(kv, z).chunk(2, dim=-1)
    return first + second


def _two_softmaxes(kv, z):
    parts = zip(kv.chunk(2, dim=2), z.chunk(2, dim=2))
    return sum((z.softmax(dim=2).nan_to_num() * kv).sum(dim=2) for kv, z in parts)


def _softmax_of_channels(kv, z):
    return (z.softmax(dim=3).nan_to_num() * kv).sum(dim=2)


def _sigmoids(kv, z):
    return (z.sigmoid() * kv).sum(dim=2)


def _ape(change):
    """`compress_overlapped` with change(first half of ape, second half) in place of ape."""
    def add(kv, z, ape):
        return kv, z + torch.cat(change(*ape.chunk(2, dim=-1)), dim=-1)
    return _compress(add=add)


def _compress(**changes):
    return lambda *args: compress_overlapped_with(*args, **changes)


def _compress_cases(rng):
    def arguments(B, T, d, c, m):
        wkv, wgate = (torch.randn(2 * c, d, generator=rng) * d ** -0.5 for _ in range(2))
        x, ape = torch.randn(B, T, d, generator=rng), torch.randn(m, 2 * c, generator=rng)
        return x, wkv, 1.5 * wgate, ape, 0.5 + torch.rand(c, generator=rng), 0.05

    yield "two windows", arguments(1, 8, 6, 5, 4)
    yield "one window: nothing comes before it", arguments(1, 4, 6, 5, 4)
    yield "four windows and a token more", arguments(2, 13, 6, 7, 3)
    yield "fewer tokens than a window has", arguments(2, 3, 6, 5, 4)


# ---- the indexer's scores ----


def index_scores_with(x, latent, index_keys, wq_b, weights_proj, theta, heads="(Hi ci)",
                      rotate=plain.rotate, scale=None, weigh=None, relu=F.relu, end=None):
    """`index_scores` with another order of channels, rotation, scale, weights, ReLU, or sum."""
    Hi, ci = len(weights_proj), index_keys.shape[-1]
    q = rearrange(latent @ wq_b.T, f"B T {heads} -> B T Hi ci", Hi=Hi)
    q = rotate(q, theta[:, None])
    weights = x @ weights_proj.T * ((Hi * ci) ** -0.5 if scale is None else scale(Hi, ci))
    weights = weights if weigh is None else weigh(weights)
    s = relu(einsum(q, index_keys, "B T Hi ci, B S ci -> B T Hi S"))
    return einsum(weights, s, "B T Hi, B T Hi S -> B T S") if end is None else end(weights, s)


def _scores(**changes):
    return lambda *args: index_scores_with(*args, **changes)


def _relu_of_weighted(weights, s):
    return F.relu(weights[..., None] * s).sum(dim=2)


def _relu_of_sum(weights, s):
    return F.relu(einsum(weights, s, "B T Hi, B T Hi S -> B T S"))


def _identity(s):
    return s


def _weights_from_latent(x, latent, index_keys, wq_b, weights_proj, theta):
    Hi, ci = len(weights_proj), index_keys.shape[-1]
    weights = latent @ weights_proj.T / math.sqrt(Hi * ci)
    arguments = x, latent, index_keys, wq_b, weights_proj, theta
    return index_scores_with(*arguments, weigh=lambda _: weights)


def _queries_from_x(x, latent, *rest):
    return _weights_from_latent(latent, x, *rest)


def _scores_cases(rng):
    def arguments(B, T, S, d, Hi, ci, r):
        x, latent = torch.randn(B, T, d, generator=rng), torch.randn(B, T, d, generator=rng)
        index_keys = torch.randn(B, S, ci, generator=rng)
        wq_b = torch.randn(Hi * ci, d, generator=rng)
        weights_proj = torch.randn(Hi, d, generator=rng)
        theta = 3 * torch.rand(T, r // 2, generator=rng)
        return x, latent, index_keys, 0.5 * wq_b, weights_proj, theta

    yield "one head", arguments(1, 4, 3, 6, 1, 6, 2)
    yield "four heads", arguments(2, 5, 3, 6, 4, 8, 4)


# ---- the choice ----


def pick_with(scores, m, k, sees=visible, late=False, fill=False):
    """`pick` with another rule for complete entries, the mask after ranking, or no last mask."""
    B, T, S = scores.shape
    seen = sees(T, S, m)
    ranked = scores if late else scores.masked_fill(~seen, -math.inf)
    best = ranked.topk(min(k, S)).indices
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True)
    return picked if fill else picked & seen


def _pick_cases(rng):
    def arguments(B, T, S, m, k):
        return torch.randn(B, T, S, generator=rng), m, k

    yield "the best 2 of 5 entries", arguments(1, 20, 5, 4, 2)
    yield "the best 3 of 8 entries, two sequences", arguments(2, 26, 8, 3, 3)
    yield "k is larger than the number of entries", arguments(1, 9, 2, 4, 5)


def _too_many(scores, m, k):
    scores.topk(k)                   # RuntimeError where there are fewer than k entries
    return plain.pick(scores, m, k)


def _latest(scores, m, k):
    return plain.pick(torch.arange(scores.shape[2]).expand_as(scores) * 1.0, m, k)


def _over_queries(scores, m, k):
    T, S = scores.shape[1:]
    best = scores.masked_fill(~visible(T, S, m), -math.inf).topk(min(k, T), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True) & visible(T, S, m)


# ---- how the indexer learns ----


def divergence(p, scores, seen, heads=None, normalise=True, mask=-1e9, axis=-1, over=None, kl=None):
    """KL(attention, summed over heads and normalised || softmax of the scores).

    The mean over the queries that see an entry. p: B T H S; scores: B T S; seen: T S. The keyword
    arguments make mistakes.
    """
    target = p.sum(2) if heads is None else heads(p)                   # B T S
    mass = target.sum(-1, keepdim=True)
    target = target / mass.clamp_min(1e-20) if normalise else target
    log_q = (scores if mask is None else scores.masked_fill(~seen, mask)).log_softmax(axis)
    if kl is None:
        each = (torch.xlogy(target, target) - target * log_q).sum(-1)  # B T
    else:
        each = kl(target, log_q, seen)
    sees = seen.any(-1).expand_as(each)
    return (each * sees).sum() / sees.sum() if over is None else over(each, sees)


def _reverse_kl(target, log_q, seen):
    q = log_q.exp() * seen
    return (q * (log_q - target.clamp_min(1e-20).log())).sum(-1)


def _softmax_of_weights(p, scores, seen):
    def heads(p):
        return p.sum(2).masked_fill(~seen, -1e9).softmax(-1) * seen.any(-1)[:, None]
    return divergence(p, scores, seen, heads)


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
    """The indexer's loss. No gradient enters x, qr, and p, except those named in `free`."""
    x, qr, p = (t if name in free else t.detach() for name, t in (("x", x), ("qr", qr), ("p", p)))
    return loss(p, indexer(x, qr, indexer.keys(x)), seen)


def with_gradients(loss_of):
    """A function of the same arguments that gives the loss and its gradients: a dict.

    The gradients are those of x, qr, p, and all parameters of the indexer in one tensor.
    """
    def both(indexer, x, qr, p, seen):
        inputs = [t.clone().requires_grad_() for t in (x, qr, p)]
        loss = loss_of(indexer, *inputs, seen)
        of_x, of_qr, of_p, *others = torch.autograd.grad(
            loss, [*inputs, *indexer.parameters()], allow_unused=True, materialize_grads=True)
        return {"loss": loss.detach(), "x": of_x, "qr": of_qr, "p": of_p,
                "indexer": torch.cat([gradient.flatten() for gradient in others])}
    return both


def _learn(**changes):
    return with_gradients(lambda *args: learn(*args, **changes))


def _remaining():
    """The faults of the colleague's version, in every combination."""
    faults = "the direction of the KL", "the target's sum", "what must be detached"
    return [*combinations(faults, 1), *combinations(faults, 2), faults]


def _with(faults):
    kl = _reverse_kl if "the direction of the KL" in faults else None
    return {"loss": partial(divergence, kl=kl, normalise="the target's sum" not in faults),
            "free": ("x", "qr", "p") if "what must be detached" in faults else ()}


def _learn_cases(rng):
    config = Config.nano().replace(dim=12, q_lora_rank=8, index_n_heads=4, index_head_dim=6,
                                   rope_head_dim=4)
    indexer = Indexer(config)
    for name, weight in indexer.named_parameters():
        noise = torch.randn(weight.shape, generator=rng)
        weight.data = 1 + 0.3 * noise if "norm" in name else 0.6 * noise
    for label, first in (("every query sees an entry", 3), ("the first queries see none", 0)):
        p, seen = _attention(rng, 2, 14, 3, 3, 4)
        p[:, :first] = 0
        seen = seen.clone()
        x, qr = torch.randn(2, 14, 12, generator=rng), torch.randn(2, 14, 8, generator=rng)
        yield label, (indexer, x, qr, p, seen)


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


def _attention_heads(config, n):
    index_channels = config.index_n_heads * config.index_head_dim
    return config.n_heads * config.head_dim / index_channels


def _times(factor):
    return lambda config, n: operations(config, n) * factor(config, n)


CHECKS = [
    Check(
        "csa.compress", plain.compress_overlapped, _compress_cases,
        mistakes={
            "there is no overlap: an entry pools the b-half of its own window and the a-half of "
            "the window before": _compress(slots=_second_half),
            "there is no overlap: this pools the a-half of an entry's own window only":
                _compress(slots=_first_half),
            "both halves come from an entry's own window: the a-half comes from the window before":
                _compress(slots=_own_halves),
            "the two halves of a token's channels are pooled side by side and added: cut them into "
            "2m slots of c channels": _compress(slots=_side_by_side, pool=_two_sums),
            "the halves are swapped: the FIRST c channels (a) serve the next window's entry, the "
            "LAST c (b) their own": _compress(slots=_swapped),
            "the a-half comes from the window AFTER, which is the future: it comes from the window "
            "before": _compress(slots=_from_the_next),
            "window 0 takes the a-half of the LAST window (torch.roll wraps around): nothing "
            "comes before it": _compress(slots=_rolled),
            "the absent a-half of window 0 counts with weight: fill its gate with -inf, so that "
            "its weight is 0": _compress(slots=_zero_for_missing),
            "each half has its own softmax, over m slots: one softmax runs over all 2m":
                _compress(pool=_two_softmaxes),
            "the softmax runs over the channels: in each channel, the weights of the 2m slots must "
            "sum to 1": _compress(pool=_softmax_of_channels),
            "the weights are sigmoids: take a softmax over the 2m slots": _compress(pool=_sigmoids),
            "ape has no effect: add it to the gate, row j for place j, before the halves are cut":
                _compress(add=lambda kv, z, ape: (kv, z)),
            "ape is added to kv: it belongs to the gate":
                _compress(add=lambda kv, z, ape: (kv + ape, z)),
            "ape's halves are swapped: its first c columns belong to the a-half":
                _ape(lambda first, second: (second, first)),
            "the a-half gets ape's b columns: each half has its own":
                _ape(lambda first, second: (second, second)),
            "the b-half gets ape's a columns: each half has its own":
                _ape(lambda first, second: (first, first)),
            "the a-half has no ape: both halves get it":
                _ape(lambda first, second: (torch.zeros_like(first), second)),
            "wkv and wgate are exchanged":
                lambda x, wkv, wgate, *rest: plain.compress_overlapped(x, wgate, wkv, *rest),
            "the norm is missing": _compress(norm=without_norm),
            "the norm's weight is missing": _compress(norm=without_weight),
        },
        hints=(
            "Cut kv and z + ape into B S m 2c, then .chunk(2, -1) gives the a-half and the "
            "b-half, B S m c each.",
            "The a-half moves one window on: put a tensor B 1 m c before a[:, :-1]. Then torch.cat "
            "with b along axis 2.",
            "What comes before window 0: kv 0 and gate -inf. softmax(2) of the 2m gates gives -inf "
            "the weight 0.",
        ),
    ),
    Check(
        "csa.scores", plain.index_scores, _scores_cases,
        mistakes={
            "the ReLU is missing: a head may only speak for an entry by w, never by a negative "
            "product":
                _scores(relu=_identity),
            "the ReLU comes after the weighing by w: a head with a negative w then says nothing, "
            "and it should speak against": _scores(relu=_identity, end=_relu_of_weighted),
            "the ReLU comes after the sum over heads: each head has its own":
                _scores(relu=_identity, end=_relu_of_sum),
            "the scale is missing: w = weights_proj x times ci^-1/2 Hi^-1/2":
                _scores(scale=lambda Hi, ci: 1.0),
            "half of the scale is missing: ci^-1/2 is there, Hi^-1/2 is not":
                _scores(scale=lambda Hi, ci: ci ** -0.5),
            "half of the scale is missing: Hi^-1/2 is there, ci^-1/2 is not":
                _scores(scale=lambda Hi, ci: Hi ** -0.5),
            "the scale lacks its root: (ci Hi)^-1/2, not (ci Hi)^-1":
                _scores(scale=lambda Hi, ci: 1 / (Hi * ci)),
            "the heads' weights come from the latent: they come from x, the layer's input":
                _weights_from_latent,
            "the queries come from x: they come from the latent that the attention's queries come "
            "from": _queries_from_x,
            "queries come from x and weights from the latent: it is the other way round":
                lambda x, latent, *rest: plain.index_scores(latent, x, *rest),
            "the heads' weights went through a softmax: w may be negative, and need not sum to 1":
                _scores(weigh=lambda w: w.softmax(-1)),
            "a softmax runs over the heads: the products only pass a ReLU":
                _scores(relu=lambda s: s.softmax(2)),
            "a softmax runs over the entries: scores are ranked, they need no softmax":
                _scores(relu=lambda s: s.softmax(3)),
            "the heads are added without their weights w": _scores(weigh=torch.ones_like),
            "this is the mean over the heads: it is their sum":
                lambda *args: plain.index_scores(*args) / len(args[4]),
            "the queries are not rotated by their positions": _scores(rotate=lambda q, theta: q),
            "the queries are rotated backwards":
                lambda *args: plain.index_scores(*args[:-1], -args[-1]),
            "the first channels of the queries rotate: the last ones do":
                _scores(rotate=rotate_first),
            "the rows of wq_b are cut wrongly: head h has the ci rows from h ci on: "
            ".view(B, T, Hi, ci)": _scores(heads="(ci Hi)"),
        },
        hints=(
            "(latent @ wq_b.T).view(B, T, Hi, ci) are the queries; rotate(q, theta[:, None]) "
            "rotates all heads of a token alike.",
            "Products with all keys: torch.einsum('bthc,bsc->bths', q, index_keys), then relu, "
            "head by head.",
            "w = x @ weights_proj.T * (ci * Hi) ** -0.5 is B T Hi. The score is the sum over h of "
            "w times the ReLU's result.",
        ),
    ),
    Check(
        "csa.pick", plain.pick, _pick_cases,
        mistakes={
            "topk fails where there are fewer than k entries: ask for min(k, S)": _too_many,
            "the best k of ALL entries are read, also of later tokens":
                lambda *args: pick_with(*args, sees=everything),
            "the top k are taken over all entries, the future ones dropped afterwards and lost: "
            "mask first, then rank": lambda *args: pick_with(*args, late=True),
            "where fewer than k entries are complete, others fill the places: a score of -inf is "
            "no reason to read": lambda *args: pick_with(*args, fill=True),
            "a window's entry is picked before the window is complete":
                lambda *args: pick_with(*args, sees=early),
            "an entry is picked one token too late: the window's last token may read it":
                lambda *args: pick_with(*args, sees=late),
            "every complete entry is read: only the k best are":
                lambda scores, m, k: plain.pick(scores, m, scores.shape[2]),
            "these are the k latest entries: the scores decide": _latest,
            "these are the k worst: the largest scores win":
                lambda scores, m, k: plain.pick(-scores, m, k),
            "the entries are ranked by the absolute value of their scores: a score of -2 ranks "
            "below one of 1": lambda scores, m, k: plain.pick(scores.abs(), m, k),
            "the top k run over the queries: each query (row) has its own k entries (axis 2)":
                _over_queries,
            "one entry too few is picked": lambda scores, m, k: plain.pick(scores, m, k - 1),
            "one entry too many is picked": lambda scores, m, k: plain.pick(scores, m, k + 1),
        },
        hints=(
            "First visible(T, S, m), T x S: scores.masked_fill(~seen, -inf) ranks what must not be "
            "read last.",
            ".topk(min(k, S)).indices: B T k. torch.zeros_like(scores, dtype=torch.bool)"
            ".scatter(2, indices, True) marks them.",
            "Where fewer than k are complete, topk also returns some at -inf: & seen takes them "
            "away.",
        ),
    ),
    Check(
        "csa.divergence", divergence, _divergence_cases,
        mistakes={
            "the result is nan: a query that sees no entry has only -inf, and a softmax of that "
            "is nan. Fill with -1e9, and leave those queries out of the mean":
                lambda *a: divergence(*a, mask=-math.inf),
            "the KL is the wrong way round: the attention's distribution comes first, it weighs "
            "the logarithms":
                lambda *a: divergence(*a, kl=_reverse_kl),
            "the target is not normalised: summed over heads, a query's weights need not sum to "
            "1; divide by their sum":
                lambda *a: divergence(*a, normalise=False),
            "the target is divided by the number of heads, not by its own sum: window and sink "
            "took a part of the weight":
                lambda *a: divergence(*a, heads=lambda p: p.mean(2), normalise=False),
            "the target is a softmax of the weights: they are weights already, divide by their sum":
                _softmax_of_weights,
            "each head is normalised before the sum: sum over heads first, so that a head that "
            "reads no entries has no say":
                lambda *a: divergence(*a, heads=_each_head),
            "only the first head is the target: sum over all heads":
                lambda *a: divergence(*a, heads=lambda p: p[:, :, 0]),
            "the target is the largest weight of any head: sum over the heads":
                lambda *a: divergence(*a, heads=lambda p: p.amax(2)),
            "entries that a query does not see take part in the softmax of the scores":
                lambda *a: divergence(*a, mask=None),
            "this is the cross-entropy: right gradient, but subtract the target's own entropy, so "
            "that 0 is a perfect match":
                lambda *a: divergence(*a, kl=lambda t, log_q, seen: -(t * log_q).sum(-1)),
            "the sign is wrong: KL is never negative": lambda *a: -divergence(*a),
            "the softmax of the scores runs over the queries: over the entries":
                lambda *a: divergence(*a, axis=1),
            "the mean runs over all queries: those that see no entry do not count":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).mean()),
            "this is the sum over queries: take the mean":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).sum()),
        },
        hints=(
            "target = p.sum(2), divided by its own sum over entries (guard it: some queries see "
            "none).",
            "scores.masked_fill(~seen, -1e9).log_softmax(-1) is the indexer's part: -inf would "
            "give nan where nothing is seen.",
            "KL = (torch.xlogy(target, target) - target * log_q).sum(-1); the mean over the "
            "queries where seen.any(-1) holds.",
        ),
    ),
    Check(
        "csa.learn", with_gradients(learn), _learn_cases,
        mistakes={
            "a gradient reaches the attention's weights p: the target is what the attention does, "
            "it must not move; detach p":
                _learn(free=("p",)),
            "a gradient reaches x: the model would change its features to please the indexer; "
            "detach x": _learn(free=("x",)),
            "a gradient reaches qr, the latent of the attention's queries; detach it too":
                _learn(free=("qr",)),
            "gradients reach x and qr: the model would change its features to please the indexer; "
            "detach both":
                _learn(free=("x", "qr")),
        } | {f"still to be fixed: {', '.join(faults)}": _learn(**_with(faults))
             for faults in _remaining()},
        hints=(
            "Three questions: which way round is the KL, does the target sum to 1, and whom may "
            "this loss change?",
            "Your divergence answers the first two. The third: only the indexer. t.detach() is t "
            "without its history.",
            "divergence(p.detach(), indexer(x, qr, indexer.keys(x)), seen), with x and qr "
            "detached before.",
        ),
    ),
    Check(
        "csa.operations", operations, _operations_cases,
        mistakes={
            "the indexer looks at n / 4 entries, not at n tokens":
                _times(lambda config, n: n / (n // 4)),
            "n / 4 must be a whole number of entries: n // 4":
                _times(lambda config, n: (n / 4) / (n // 4)),
            "a multiply-add is two operations": _times(lambda config, n: 0.5),
            "FP4 times FP4 counts a half": _times(lambda config, n: 2),
            "only one layer is counted: multiply by the number of CSA layers":
                _times(lambda config, n: 1 / _layers(config, lambda r: r == 4)),
            "every layer is counted: only those of ratio 4 have an indexer":
                _times(lambda config, n: config.n_layers / _layers(config, lambda r: r == 4)),
            "HCA layers are counted: they read all entries and need no indexer":
                _times(lambda config, n: _layers(config, bool) / _layers(config, lambda r: r == 4)),
            "one head is counted: multiply by index_n_heads":
                _times(lambda config, n: 1 / config.index_n_heads),
            "these are the attention's heads: the indexer has index_n_heads of index_head_dim":
                _times(_attention_heads),
        },
        hints=(
            "One product of a query head and a key: ci multiply-adds. How many heads, how many "
            "keys, how many layers?",
            "Keys: n // 4 in each CSA layer. CSA layers: those of "
            "config.compress_ratios[:config.n_layers] that are 4.",
            "layers * 2 * index_n_heads * index_head_dim * (n // 4) * 0.5",
        ),
    ),
]
