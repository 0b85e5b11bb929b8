"""Checks of lesson 04: compressed sparse attention (V4 report, section 2.3.1) and the training of
its indexer (V3.2 report, section 2.1).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import functools
import math
from itertools import combinations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from minids import plain
from minids.config import Config
from minids.learn.checks.attention import rotate_first
from minids.learn.checks.hca import (
    NORMS,
    cut_from_the_front,
    early,
    everything,
    late,
    pooled,
    windows,
)
from minids.learn.exercise import Check
from minids.model.indexer import Indexer
from minids.plain import previous, rms_norm, visible

LESSON = "04_csa"


# ---- the compressor with overlap ----


def compress_overlapped_with(x, wkv, wgate, ape, weight, eps, add=None, slots=None, pool=pooled,
                             norm=rms_norm, gate_slots=None):
    """`compress_overlapped` with another way to add ape, other slots, pooling, or norm.

    `gate_slots` are those of the gate, where they differ from those of kv.
    """
    m, slots = len(ape), slots or overlapped
    kv, z = windows(x @ wkv.T, m), windows(x @ wgate.T, m)             # B S m 2c
    kv, z = (kv, z + ape) if add is None else add(kv, z, ape)
    kv, z = slots(kv, 0.0), (gate_slots or slots)(z, -math.inf)        # B S 2m c
    return norm(pool(kv, z), weight, eps)


def overlapped(windows, missing):
    """The first half of the previous window, then the second half of its own: B S 2m c."""
    first, second = windows.chunk(2, dim=-1)
    return torch.cat([previous(first, missing), second], dim=2)


def _without_entry_0(*args):
    return plain.compress_overlapped(*args)[:, 1:]


def _wide_windows(windows, missing):
    """Both halves of the previous window and of the own one: B S 2m 2c -> its a-half."""
    both = torch.cat([previous(windows, missing), windows], dim=2)
    return both.chunk(2, dim=-1)[0]


def _two_wide_windows(windows, missing):
    both = torch.cat([previous(windows, missing), windows], dim=2)
    return both.chunk(2, dim=-1)[1]


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


def _angles_at_heads(x, latent, index_keys, wq_b, weights_proj, theta):
    """The angles T r/2 meet the queries B T Hi ci at the axis of the heads."""
    def rotate(q, _):
        return plain.rotate(q, theta)
    return index_scores_with(x, latent, index_keys, wq_b, weights_proj, theta, rotate=rotate)


def _first_head(x, latent, index_keys, wq_b, weights_proj, theta):
    def end(weights, s):
        return weights[..., :1] * s[:, :, 0]
    return index_scores_with(x, latent, index_keys, wq_b, weights_proj, theta, end=end)


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
    yield "as many tokens as heads", arguments(1, 3, 6, 5, 3, 6, 6)


# ---- the choice ----


def pick_with(scores, m, k, sees=visible, late=False, fill=False, hidden=-math.inf):
    """`pick` with another rule for complete entries, the mask after ranking, or no last mask.

    `hidden` is the score of incomplete entries when they are ranked.
    """
    B, T, S = scores.shape
    seen = sees(T, S, m)
    ranked = scores if late else scores.masked_fill(~seen, hidden)
    best = ranked.topk(min(k, S)).indices
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True)
    return picked if fill else picked & seen


def _pick(**changes):
    return lambda *args: pick_with(*args, **changes)


def _pick_cases(rng):
    def arguments(B, T, S, m, k):
        return torch.randn(B, T, S, generator=rng), m, k

    yield "the best 2 of 5 entries", arguments(1, 20, 5, 4, 2)
    yield "the best 3 of 8 entries, two sequences", arguments(2, 26, 8, 3, 3)
    yield "k is larger than the number of entries", arguments(1, 9, 2, 4, 5)
    yield "scores below 0 only", (-1 - torch.rand(1, 24, 8, generator=rng), 3, 2)
    yield "two entries with the same score, of which one is read", (torch.zeros(1, 9, 2), 4, 1)


def _too_many(scores, m, k):
    scores.topk(k)                   # RuntimeError where there are fewer than k entries
    return plain.pick(scores, m, k)


def _latest(scores, m, k):
    return plain.pick(torch.arange(scores.shape[2]).expand_as(scores) * 1.0, m, k)


def _over_queries(scores, m, k):
    T, S = scores.shape[1:]
    best = scores.masked_fill(~visible(T, S, m), -math.inf).topk(min(k, T), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True) & visible(T, S, m)


def _by_threshold(scores, m, k):
    """All entries that reach the k-th best score: with ties, more than k."""
    seen = visible(*scores.shape[1:], m)
    ranked = scores.masked_fill(~seen, -math.inf)
    return (ranked >= ranked.topk(min(k, scores.shape[2])).values[..., -1:]) & seen


def _above_the_threshold(scores, m, k):
    """Only what is above the k-th best score."""
    seen = visible(*scores.shape[1:], m)
    ranked = scores.masked_fill(~seen, -math.inf)
    return (ranked > ranked.topk(min(k, scores.shape[2])).values[..., -1:]) & seen


def _order_for_ranks(scores, m, k):
    """argsort says which entry has a rank, not which rank an entry has."""
    seen = visible(*scores.shape[1:], m)
    order = scores.masked_fill(~seen, -math.inf).argsort(dim=2, descending=True, stable=True)
    return (order < k) & seen


def _picks_of_the_last(scores, m, k):
    """The picks of the last query, for all queries that may read them."""
    return plain.pick(scores[:, -1:].expand_as(scores), m, k)


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


def _kl_of_each_head(p, scores, seen):
    """The mean over heads of the KL of each one."""
    return sum(divergence(p[:, :, h:h + 1], scores, seen) for h in range(p.shape[2])) / p.shape[2]


def _scores_times_mask(p, scores, seen):
    """Hidden entries have the score 0."""
    return divergence(p, scores * seen, seen, mask=None)


def _zero_times_log_zero(p, scores, seen):
    return divergence(p, scores, seen, kl=lambda t, log_q, seen: (t * (t.log() - log_q)).sum(-1))


def _hidden_at_minus_inf(p, scores, seen):
    return divergence(p, scores, seen, mask=-math.inf)


def _unguarded_sum(p, scores, seen):
    """A query that sees no entry is divided by its sum, 0."""
    return divergence(p, scores, seen, heads=lambda p: p.sum(2) / p.sum((2, 3))[..., None])


def _over_each(divide):
    """The sum over queries divided by divide(p, seen)."""
    def wrong(p, scores, seen):
        total = divergence(p, scores, seen, over=lambda each, sees: (each * sees).sum())
        return total / divide(p, seen)
    return wrong


def _attention(rng, B, T, H, S, m, left_out=False):
    """Weights of a softmax in which window and sink take a part: p B T H S; and who sees what.

    With `left_out` no head gives weight to one of the entries, another one for each query.
    """
    seen = visible(T, S, m)
    e = (1.5 * torch.randn(B, T, H, S, generator=rng)).exp() * seen[:, None]
    if left_out:
        entry = torch.arange(T)[:, None] % S == torch.arange(S)
        e = e * ~(entry & (seen.sum(-1) > 1)[:, None])[:, None]
    rest = torch.tensor([0.5, 3.0, 20.0])[torch.arange(H) % 3]
    return e / (e.sum(-1) + rest)[..., None], seen


def _divergence_cases(rng):
    def all_seen(B, T, H, S, **how):
        p, seen = _attention(rng, B, S - 1 + T, H, S, 1, **how)
        return p[:, S - 1:], torch.randn(B, T, S, generator=rng), seen[S - 1:]

    yield "one query, one head, two entries", all_seen(1, 1, 1, 2)
    yield "every query sees all entries", all_seen(1, 6, 3, 4)
    yield "two sequences", all_seen(2, 5, 2, 3)
    yield "entries to which no head gives weight: 0 ln 0 counts as 0", all_seen(
        2, 6, 2, 4, left_out=True)
    p, seen = _attention(rng, 2, 16, 3, 4, 4)
    yield ("some entries are not seen; their target is 0, and 0 times -inf would be nan",
           (p[:, 3:], torch.randn(2, 13, 4, generator=rng), seen[3:]))
    p, seen = _attention(rng, 1, 14, 2, 4, 3)
    yield ("the first queries see no entry; their softmax of -inf would be nan",
           (p, torch.randn(1, 14, 4, generator=rng), seen))


def learn(indexer, x, qr, p, seen, loss=divergence, free=()):
    """The indexer's loss. No gradient enters x, qr, and p, except those named in `free`."""
    x, qr, p = (t if name in free else t.detach() for name, t in (("x", x), ("qr", qr), ("p", p)))
    return loss(p, indexer(x, qr, indexer.keys(x)), seen)


def with_gradients(loss_of):
    """A function of the same arguments that gives the loss and what its gradient reaches: a dict.

    Whether the gradients of x, qr, and p are other than 0, and those of all parameters of the
    indexer in one tensor.
    """
    @functools.wraps(loss_of)
    def both(indexer, x, qr, p, seen):
        inputs = [t.clone().requires_grad_() for t in (x, qr, p)]
        loss = loss_of(indexer, *inputs, seen)
        found = torch.autograd.grad(loss, [*inputs, *indexer.parameters()], allow_unused=True,
                                    materialize_grads=True)
        reached = {name: bool((g != 0).any()) for name, g in zip(("x", "qr", "p"), found)}
        return {"loss": loss.detach(), **reached,
                "indexer": torch.cat([g.flatten() for g in found[3:]])}
    return both


def _learn(**changes):
    return with_gradients(lambda *args: learn(*args, **changes))


def _without_keys(indexer, x, qr, p, seen):
    """No gradient reaches the compressor that makes the indexer's keys."""
    x, qr, p = x.detach(), qr.detach(), p.detach()
    return divergence(p, indexer(x, qr, indexer.keys(x).detach()), seen)


def _scores_detached(indexer, x, qr, p, seen):
    return divergence(p, indexer(x, qr, indexer.keys(x)).detach(), seen)


def _remaining():
    """The faults of the colleague's version, in every combination."""
    faults = "the direction of the KL", "the target's sum", "what must be detached"
    return [*combinations(faults, 1), *combinations(faults, 2), faults]


def _with(faults):
    kl = _reverse_kl if "the direction of the KL" in faults else None
    normalise = "the target's sum" not in faults
    return {"loss": functools.partial(divergence, kl=kl, normalise=normalise),
            "free": ("x", "qr", "p") if "what must be detached" in faults else ()}


def _partly_detached():
    """One or two inputs are not detached, and a fault of the divergence is left."""
    subsets = [*combinations(("x", "qr", "p"), 1), *combinations(("x", "qr", "p"), 2)]
    return {f"still to be fixed: {', '.join(faults)}; and a gradient still reaches "
            f"{' and '.join(free)}": _learn(**(_with(faults) | {"free": free}))
            for faults in _remaining() if "what must be detached" not in faults
            for free in subsets}


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
    yield "nano at 31 tokens, fewer than index_topk entries", (Config.nano(), 31)


def _layers(config, which):
    return sum(map(which, config.compress_ratios[:config.n_layers]))


def _attention_heads(config, n):
    index_channels = config.index_n_heads * config.index_head_dim
    return config.n_heads * config.head_dim / index_channels


def _of_each_ratio(config, n):
    """Every layer with compression searches its own n // m entries."""
    ratios = [ratio for ratio in config.compress_ratios[:config.n_layers] if ratio]
    return sum(n // ratio for ratio in ratios) / (_layers(config, lambda r: r == 4) * (n // 4))


def _times(factor):
    return lambda config, n: operations(config, n) * factor(config, n)


CHECKS = [
    Check(
        "csa.compress", plain.compress_overlapped, _compress_cases,
        mistakes={
            "you have no overlap, only b-halves of an entry's own window; the a-halves of the "
            "window before belong to it too": _compress(slots=_second_half),
            "you have no overlap, only a-halves of an entry's own window; it should pool the "
            "b-halves of its own window and the a-halves of the one before":
                _compress(slots=_first_half),
            "your entry takes its own window's a-half; it should take the previous window's":
                _compress(slots=_own_halves),
            "your entry pools the a-halves of both windows; from its own window it should take "
            "the b-halves": _compress(slots=_wide_windows),
            "your entry pools the b-halves of both windows; from the window before it should take "
            "the a-halves": _compress(slots=_two_wide_windows),
            "you pool the two halves of a token's channels side by side and add them; cut them "
            "into 2m slots of c channels": _compress(slots=_side_by_side, pool=_two_sums),
            "your halves are swapped; the FIRST c channels (a) serve the next window's entry, the "
            "LAST c (b) their own": _compress(slots=_swapped),
            "your a-half comes from the window AFTER, which is the future; it should come from the "
            "window before": _compress(slots=_from_the_next),
            "your window 0 takes the a-half of the LAST window (torch.roll wraps around); nothing "
            "comes before it": _compress(slots=_rolled),
            "the absent a-half of window 0 counts with weight; fill its gate with -inf, so that "
            "its weight is 0": _compress(slots=_zero_for_missing),
            "you drop entry 0; it has no window before it, and pools its own b-halves":
                _without_entry_0,
            "you move the a-half of kv one window on and leave that of the gate; both should move":
                _compress(gate_slots=_own_halves),
            "you move the a-half of the gate one window on and leave that of kv; both should move":
                _compress(slots=_own_halves, gate_slots=overlapped),
            "each half has its own softmax, over m slots; one softmax should run over all 2m":
                _compress(pool=_two_softmaxes),
            "your softmax runs over the channels; in each channel, the weights of the 2m slots "
            "should sum to 1": _compress(pool=_softmax_of_channels),
            "your weights are sigmoids; take a softmax over the 2m slots":
                _compress(pool=_sigmoids),
            "you do not divide the exponentials by their sum; take a softmax over the 2m slots":
                _compress(pool=lambda kv, z: (z.exp() * kv).sum(dim=2)),
            "you take the mean of the weighted slots; the weights sum to 1 already, so take the "
            "sum": _compress(pool=lambda kv, z: pooled(kv, z) / kv.shape[2]),
            "your ape has no effect; add it to the gate, row j for place j, before the halves are "
            "cut":
                _compress(add=lambda kv, z, ape: (kv, z)),
            "you add ape to kv; it belongs to the gate":
                _compress(add=lambda kv, z, ape: (kv + ape, z)),
            "ape's halves are swapped; its first c columns belong to the a-half":
                _ape(lambda first, second: (second, first)),
            "your a-half gets ape's b columns; each half should have its own":
                _ape(lambda first, second: (second, second)),
            "your b-half gets ape's a columns; each half should have its own":
                _ape(lambda first, second: (first, first)),
            "your a-half has no ape; both halves should get it":
                _ape(lambda first, second: (torch.zeros_like(first), second)),
            "your b-half has no ape; both halves should get it":
                _ape(lambda first, second: (first, torch.zeros_like(second))),
            "your wkv and wgate are exchanged; kv should come from wkv, the gate from wgate":
                lambda x, wkv, wgate, *rest: plain.compress_overlapped(x, wgate, wkv, *rest),
            "you drop tokens in front; the windows should begin at token 0, and the last tokens "
            "wait": cut_from_the_front(plain.compress_overlapped),
        } | {message: _compress(norm=norm) for message, norm in NORMS.items()},
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
            "you leave out the ReLU, so that all heads together are no more than one; apply it to "
            "each head's products before they are weighed by w":
                _scores(relu=_identity),
            "you apply the ReLU after the weighing by w, so that a head with a negative w says "
            "nothing; apply it before, to the products": _scores(
                relu=_identity, end=_relu_of_weighted),
            "you apply the ReLU to the sum over heads; each head should have its own":
                _scores(relu=_identity, end=_relu_of_sum),
            "you apply a second ReLU to the sum; a score may be negative":
                _scores(end=_relu_of_sum),
            "you apply the ReLU to the weights w; it belongs to the products":
                _scores(relu=_identity, weigh=F.relu),
            "you apply a ReLU to the weights w as well; w may be negative":
                _scores(weigh=F.relu),
            "you take the absolute value of the products; ReLU sets negative ones to 0":
                _scores(relu=torch.abs),
            "you leave out the scale; w should be weights_proj x times ci^-1/2 Hi^-1/2":
                _scores(scale=lambda Hi, ci: 1.0),
            "half of the scale is missing; beside ci^-1/2 there should be Hi^-1/2":
                _scores(scale=lambda Hi, ci: ci ** -0.5),
            "half of the scale is missing; beside Hi^-1/2 there should be ci^-1/2":
                _scores(scale=lambda Hi, ci: Hi ** -0.5),
            "your scale lacks its root; it should be (ci Hi)^-1/2, not (ci Hi)^-1":
                _scores(scale=lambda Hi, ci: 1 / (Hi * ci)),
            "you multiply by the root of ci Hi; divide by it":
                _scores(scale=lambda Hi, ci: (Hi * ci) ** 0.5),
            "your heads' weights come from the latent; they should come from x, the layer's input":
                _weights_from_latent,
            "your queries come from x; they should come from the latent that the attention's "
            "queries come from": _queries_from_x,
            "your queries come from x and your weights from the latent; it should be the other way "
            "round":
                lambda x, latent, *rest: plain.index_scores(latent, x, *rest),
            "your heads' weights go through a softmax; w may be negative, and need not sum to 1":
                _scores(weigh=lambda w: w.softmax(-1)),
            "your heads' weights go through a sigmoid; w may be negative":
                _scores(weigh=torch.sigmoid),
            "a softmax runs over the heads; the products should only pass a ReLU":
                _scores(relu=lambda s: s.softmax(2)),
            "a softmax runs over the entries; scores are ranked, they need no softmax":
                _scores(relu=lambda s: s.softmax(3)),
            "your scores go through a softmax at the end; they are ranked, they need none":
                lambda *args: plain.index_scores(*args).softmax(-1),
            "you add the heads without their weights w; each should be multiplied by its w":
                _scores(weigh=torch.ones_like),
            "you add the heads without their weights w and scale the sum; each should be "
            "multiplied by its w":
                lambda x, latent, keys, wq_b, w, theta: index_scores_with(
                    x, latent, keys, wq_b, w, theta, weigh=torch.ones_like)
                / math.sqrt(len(w) * keys.shape[-1]),
            "you take the mean over the heads; it should be their sum":
                lambda *args: plain.index_scores(*args) / len(args[4]),
            "you take the first head only; add up all heads": _first_head,
            "you do not rotate the queries; rotate them by theta":
                _scores(rotate=lambda q, theta: q),
            "you rotate the queries backwards; the angle should be + theta":
                lambda *args: plain.index_scores(*args[:-1], -args[-1]),
            "you rotate the first channels of the queries; the last ones should rotate":
                _scores(rotate=rotate_first),
            "your angles meet the axis of the heads; all heads of a token have the angle of its "
            "position, so theta[:, None]": _angles_at_heads,
            "you cut the rows of wq_b wrongly; head h should have the ci rows from h ci on, "
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
            "you ask topk for k entries where there are fewer; ask for min(k, S)": _too_many,
            "you read the best k of ALL entries, also of later tokens; only complete ones count":
                _pick(sees=everything),
            "you take the top k over all entries and drop the future ones afterwards, so that "
            "picks are lost; mask first, then rank": _pick(late=True),
            "you fill up with incomplete entries where fewer than k are complete; a score of -inf "
            "is no reason to read": _pick(fill=True),
            "you rank incomplete entries with the score 0, so that they beat complete ones below "
            "0; give them -inf": _pick(hidden=0.0),
            "you rank incomplete entries with the score 0, and read them; give them -inf, and "
            "take them out at the end": _pick(hidden=0.0, fill=True),
            "you pick a window's entry before the window is complete; wait for its last token":
                _pick(sees=early),
            "you pick an entry one token too late; the window's last token may read it":
                _pick(sees=late),
            "you read every complete entry; only the k best should be read":
                lambda scores, m, k: plain.pick(scores, m, scores.shape[2]),
            "you read the k latest entries; the scores should decide": _latest,
            "you read the k worst; the largest scores should win":
                lambda scores, m, k: plain.pick(-scores, m, k),
            "you rank the entries by the absolute value of their scores; a score of -2 should rank "
            "below one of 1": lambda scores, m, k: plain.pick(scores.abs(), m, k),
            "your top k run over the queries; each query (row) should have its own k entries "
            "(axis 2)":
                _over_queries,
            "you read all entries that reach the k-th best score, more than k where scores are "
            "equal; read exactly k": _by_threshold,
            "you read entries above the k-th best score; the k-th best itself belongs to them":
                _above_the_threshold,
            "you compare argsort's result with k, which says which entry has a rank; you want the "
            "rank of each entry, or a scatter at the first k": _order_for_ranks,
            "all queries get the last query's picks; each should have its own": _picks_of_the_last,
            "you pick one entry too few; k should be read":
                lambda scores, m, k: plain.pick(scores, m, k - 1),
            "you pick one entry too many; k should be read":
                lambda scores, m, k: plain.pick(scores, m, k + 1),
            "your result is the wrong way round; True should be where an entry is read":
                lambda *args: ~plain.pick(*args),
        },
        hints=(
            "First visible(T, S, m), T x S: scores.masked_fill(~seen, -inf) ranks what must not be "
            "read last.",
            ".topk(min(k, S)).indices: B T k. torch.zeros_like(scores, dtype=torch.bool)"
            ".scatter(2, indices, True) marks them.",
            "Where fewer than k are complete, topk also returns some at -inf: & seen takes them "
            "away.",
        ),
        gradient=False,
    ),
    Check(
        "csa.divergence", divergence, _divergence_cases,
        mistakes={
            "your KL is the wrong way round; the attention's distribution should come first and "
            "weigh the logarithms":
                lambda *a: divergence(*a, kl=_reverse_kl),
            "you do not normalise the target; summed over heads, a query's weights need not sum "
            "to 1, so divide them by their sum":
                lambda *a: divergence(*a, normalise=False),
            "you divide the target by the number of heads; divide it by its own sum, since window "
            "and sink took a part of the weight":
                lambda *a: divergence(*a, heads=lambda p: p.mean(2), normalise=False),
            "your target is a softmax of the weights; they are weights already, so divide them by "
            "their sum":
                _softmax_of_weights,
            "you normalise each head before the sum; sum over heads first, so that a head that "
            "reads no entries has no say":
                lambda *a: divergence(*a, heads=_each_head),
            "you take the KL of each head and then the mean; sum the heads' weights first":
                _kl_of_each_head,
            "your target is the first head; sum over all heads":
                lambda *a: divergence(*a, heads=lambda p: p[:, :, 0]),
            "your target is the largest weight of any head; sum over the heads":
                lambda *a: divergence(*a, heads=lambda p: p.amax(2)),
            "entries that a query does not see take part in your softmax; fill their scores with "
            "a large negative number":
                lambda *a: divergence(*a, mask=None),
            "you give unseen entries the score 0, and exp(0) = 1 still counts; fill with a large "
            "negative number": _scores_times_mask,
            "you return the cross-entropy; subtract the target's own entropy, so that 0 is a "
            "perfect match":
                lambda *a: divergence(*a, kl=lambda t, log_q, seen: -(t * log_q).sum(-1)),
            "your sign is wrong; KL is never negative": lambda *a: -divergence(*a),
            "your softmax of the scores runs over the queries; it should run over the entries":
                lambda *a: divergence(*a, axis=1),
            "your mean runs over all queries; those that see no entry should not count":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).mean()),
            "you take the sum over queries; take the mean":
                lambda *a: divergence(*a, over=lambda each, sees: (each * sees).sum()),
            "you divide by the number of sequences (`batchmean`); divide by the number of queries "
            "that see an entry": _over_each(lambda p, seen: len(p)),
            "you take the mean over queries and entries (`mean`); sum over the entries, then take "
            "the mean over the queries that see one":
                _over_each(lambda p, seen: p[:, :, 0].numel()),
            "you take the mean over queries and entries; sum over the entries, then take the mean":
                lambda *a: divergence(*a) / a[1].shape[-1],
            "you take the sum over the queries that see an entry, for each sequence apart, and "
            "divide by all T; divide by the number that see one":
                _over_each(lambda p, seen: p.shape[1]),
            "0 ln 0 makes your result nan; it should count as 0, as in torch.xlogy":
                _zero_times_log_zero,
            "your result is nan, since 0 times -inf is; fill the scores of unseen entries with a "
            "large negative number, such as -1e9": _hidden_at_minus_inf,
            "a query that sees no entry makes your result nan: the sum of its weights is 0, or "
            "its softmax has nothing but -inf; guard both": _unguarded_sum,
            "you multiply the target by probabilities; KL takes their logarithms (log_softmax)":
                lambda *a: divergence(*a, kl=lambda t, log_q, seen:
                                      (torch.xlogy(t, t) - t * log_q.exp()).sum(-1)),
            "you return bits; ln gives nats": lambda *a: divergence(*a) / math.log(2),
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
            "a gradient reaches the attention's weights p; the target is what the attention does "
            "and should not move, so detach p":
                _learn(free=("p",)),
            "a gradient reaches x, so that the model would change its features to please the "
            "indexer; detach x wherever it is used":
                _learn(free=("x",)),
            "a gradient reaches qr, the latent of the attention's queries; detach it too":
                _learn(free=("qr",)),
            "gradients reach x and qr, so that the model would change its features to please the "
            "indexer; detach both":
                _learn(free=("x", "qr")),
            "gradients reach x and p; detach both": _learn(free=("x", "p")),
            "gradients reach qr and p; detach both": _learn(free=("qr", "p")),
            "no gradient reaches the compressor of the indexer's keys; detach x, not the keys":
                with_gradients(_without_keys),
            "no gradient reaches the indexer, which is all that should learn; do not detach its "
            "scores": with_gradients(_scores_detached),
        } | {f"still to be fixed: {', '.join(faults)}": _learn(**_with(faults))
             for faults in _remaining()} | _partly_detached(),
        hints=(
            "Three questions: which way round is the KL, does the target sum to 1, and whom may "
            "this loss change?",
            "Your divergence answers the first two. The third: only the indexer. t.detach() is t "
            "without its history.",
            "divergence(p.detach(), indexer(x, qr, indexer.keys(x)), seen), with x and qr "
            "detached before.",
        ),
        gradient=False,
    ),
    Check(
        "csa.operations", operations, _operations_cases,
        mistakes={
            "your indexer looks at n tokens; it should look at n // 4 entries":
                _times(lambda config, n: n / (n // 4)),
            "you count a part of an entry; n / 4 should be a whole number, n // 4":
                _times(lambda config, n: (n / 4) / (n // 4)),
            "you round the number of entries up; a window that is not full gives none, n // 4":
                _times(lambda config, n: -(-n // 4) / (n // 4)),
            "you look at the entries that are picked, index_topk; to pick them, the indexer scores "
            "all n // 4":
                _times(lambda config, n: config.index_topk / (n // 4)),
            "you count no more than index_topk entries, those that are read in the end; to pick "
            "them, the indexer scores all n // 4":
                _times(lambda config, n: min(config.index_topk, n // 4) / (n // 4)),
            "you add the sliding window; the indexer scores entries only":
                _times(lambda config, n: (n // 4 + config.window_size) / (n // 4)),
            "your number is half of the right one; a multiply-add is two operations":
                _times(lambda config, n: 0.5),
            "your number is twice the right one; FP4 times FP4 counts a half, and an indexer has "
            "keys only, no values to add up":
                _times(lambda config, n: 2),
            "your number is four times the right one; FP4 times FP4 counts a half, not 2 as BF16":
                _times(lambda config, n: 4),
            "your number is a quarter of the right one; a multiply-add is 2 operations, and FP4 "
            "times FP4 counts a half, so they cancel": _times(lambda config, n: 0.25),
            "you count one layer; multiply by the number of CSA layers":
                _times(lambda config, n: 1 / _layers(config, lambda r: r == 4)),
            "you count every layer; only those of ratio 4 have an indexer":
                _times(lambda config, n: config.n_layers / _layers(config, lambda r: r == 4)),
            "you count HCA layers as well; they read all entries and need no indexer":
                _times(lambda config, n: _layers(config, bool) / _layers(config, lambda r: r == 4)),
            "you count HCA layers as well, with their n // m entries; they need no indexer":
                _times(_of_each_ratio),
            "you count one head; multiply by index_n_heads":
                _times(lambda config, n: 1 / config.index_n_heads),
            "you count one channel; a product has index_head_dim multiply-adds":
                _times(lambda config, n: 1 / config.index_head_dim),
            "you take the attention's heads; the indexer has index_n_heads of index_head_dim":
                _times(_attention_heads),
            "you take the attention's head_dim; the indexer's heads have index_head_dim channels":
                _times(lambda config, n: config.head_dim / config.index_head_dim),
            "you take the attention's n_heads; the indexer has index_n_heads":
                _times(lambda config, n: config.n_heads / config.index_n_heads),
            "you count n queries; only one token is decoded": _times(lambda config, n: n),
        },
        hints=(
            "One product of a query head and a key: ci multiply-adds. How many heads, how many "
            "keys, how many layers?",
            "Keys: n // 4 in each CSA layer. CSA layers: those of "
            "config.compress_ratios[:config.n_layers] that are 4.",
            "layers * 2 * index_n_heads * index_head_dim * (n // 4) * 0.5",
        ),
        gradient=False,
    ),
]
