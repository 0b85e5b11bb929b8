"""Checks of lesson 03: heavily compressed attention (V4 report, sections 2.3.2 and 2.3.3).

Where `minids.plain` has the function, it is the reference; what is defined here makes mistakes.
"""

import math

import torch
from einops import einsum, rearrange

from minids import plain
from minids.config import Config
from minids.learn.checks.attention import TINY, lively, rotate_first, rotate_halves
from minids.learn.exercise import Check
from minids.plain import angles, frequencies, rms_norm, visible, with_parts

LESSON = "03_hca"


# ---- m tokens become one entry ----


def compress_with(x, wkv, wgate, ape, weight, eps, add=None, pool=None, norm=rms_norm):
    """`compress` with another way to add ape, another pooling, or another norm."""
    m = len(ape)
    kv, z = windows(x @ wkv.T, m), windows(x @ wgate.T, m)             # B S m c
    kv, z = (kv, z + ape) if add is None else add(kv, z, ape)
    return norm(pooled(kv, z) if pool is None else pool(kv, z), weight, eps)


def windows(x, m):
    """The complete windows of m tokens. x: B T c -> B S m c."""
    return rearrange(x[:, :x.shape[1] // m * m], "B (S m) c -> B S m c", m=m)


def pooled(kv, z, dim=2):
    """The sum over each window, weighted by a softmax over `dim`: B S c. kv, z: B S m c."""
    return (z.softmax(dim) * kv).sum(dim=2)


def without_norm(x, weight, eps):
    return x


def without_weight(x, weight, eps):
    return rms_norm(x, torch.ones_like(weight), eps)


# other norms, for both kinds of compression
NORMS = {
    "you leave out the norm and its weight; RMS, times the weight, should come after the pooling":
        without_norm,
    "you multiply by the norm's weight and leave out the RMS; both should follow the pooling":
        lambda x, weight, eps: x * weight,
    "you leave out the norm's weight; it should multiply what the RMS gives": without_weight,
    "you leave out eps; it should be added to the mean of the squares":
        lambda x, weight, eps: rms_norm(x, weight, 0.0),
    "you add eps outside of the root; it should be added to the mean of the squares, under it":
        lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight,
    "you add the square of eps under the root; it should be eps itself":
        lambda x, weight, eps: rms_norm(x, weight, eps ** 2),
    "you divide by the root of the SUM of the squares; RMS takes their mean":
        lambda x, weight, eps: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * weight,
    "you subtract the mean, as LayerNorm does; RMS only divides":
        lambda x, weight, eps: rms_norm(x - x.mean(-1, keepdim=True), weight, eps),
    "you divide by the mean of the squares; RMS divides by its root":
        lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True) + eps) * weight,
    "your RMS runs over the entries; it should run over the channels":
        lambda x, weight, eps: x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps) * weight,
}


def _compress(**changes):
    return lambda *args: compress_with(*args, **changes)


def _compress_cases(rng):
    def arguments(B, T, d, c, m):
        wkv, wgate = (torch.randn(c, d, generator=rng) * d ** -0.5 for _ in range(2))
        x, ape = torch.randn(B, T, d, generator=rng), torch.randn(m, c, generator=rng)
        return x, wkv, 1.5 * wgate, ape, 0.5 + torch.rand(c, generator=rng), 0.05

    yield "one window", arguments(1, 4, 6, 5, 4)
    yield "three windows", arguments(2, 12, 6, 5, 4)
    yield "two windows and three tokens more", arguments(2, 13, 6, 8, 5)
    yield "fewer tokens than a window has", arguments(2, 3, 6, 5, 4)


def _by_absolute_position(x, wkv, wgate, ape, weight, eps):
    ape[torch.arange(x.shape[1])]    # IndexError where there are more tokens than rows
    return plain.compress(x, wkv, wgate, ape, weight, eps)


def cut_from_the_front(compress):
    """`compress` of the last S m tokens: the first ones are dropped where some are too many."""
    def wrong(x, wkv, wgate, ape, *rest):
        T, m = x.shape[1], len(ape)
        return compress(x[:, T % m:], wkv, wgate, ape, *rest)
    return wrong


def _added_before_the_cut(x, wkv, wgate, ape, weight, eps):
    x @ wgate.mT + ape               # RuntimeError unless there are as many tokens as rows
    return plain.compress(x, wkv, wgate, ape, weight, eps)


def _norm_first(x, wkv, wgate, ape, weight, eps):
    def add(kv, z, ape):
        return rms_norm(kv, weight, eps), z + ape
    return compress_with(x, wkv, wgate, ape, weight, eps, add, norm=without_norm)


def _ragged(x, wkv, wgate, ape, weight, eps):
    """The tokens after the last complete window make an entry too."""
    parts = []
    for part in x.split(len(ape), dim=1):
        parts.append(plain.compress(part, wkv, wgate, ape[:part.shape[1]], weight, eps))
    return torch.cat(parts, dim=1)


def _strided(x, wkv, wgate, ape, weight, eps):
    m = len(ape)
    x = rearrange(x[:, :x.shape[1] // m * m], "B (m S) d -> B (S m) d", m=m)
    return plain.compress(x, wkv, wgate, ape, weight, eps)


def _ape_afterwards(kv_and_ape, z):
    kv, ape = kv_and_ape
    return ((z.softmax(dim=2) + ape) * kv).sum(dim=2)


def _pooled_over_tokens_and_channels(kv, z):
    weights = z.flatten(2).softmax(dim=2).view_as(z)
    return (weights * kv).sum(dim=2)


def _pooled_over_the_sequence(kv, z):
    weights = z.flatten(1, 2).softmax(dim=1).view_as(z)
    return (weights * kv).sum(dim=2)


# ---- where an entry is ----


def place_with(entries, m, config, positions=None, w=None, rotate=plain.rotate):
    """`place` with other positions, frequencies, or rotation."""
    positions = m * torch.arange(entries.shape[1]) if positions is None else positions
    return rotate(entries, angles(positions, frequencies(config, m) if w is None else w))


def _at(position):
    """`place` with entry i at position(i, m)."""
    def wrong(entries, m, config):
        return place_with(entries, m, config, position(torch.arange(entries.shape[1]), m))
    return wrong


def _without_yarn(entries, m, config):
    return plain.place(entries, m, config.replace(original_seq_len=0))


def _place_cases(rng):
    config = Config.nano().replace(head_dim=12, rope_head_dim=8, original_seq_len=256)
    entries = torch.randn(1, 3, 12, generator=rng)
    yield "three entries of 16 tokens each", (entries, 16, config)
    yield "forty entries of 5 tokens each", (torch.randn(2, 40, 12, generator=rng), 5, config)
    config = config.replace(rope_head_dim=6, original_seq_len=1024, rope_factor=4.0)
    yield "another configuration", (torch.randn(2, 30, 12, generator=rng), 32, config)


# ---- what a query may read ----


def early(T, S, m):
    """An entry is visible when its window begins."""
    return torch.arange(S) <= (torch.arange(T) // m)[:, None]


def late(T, S, m):
    """An entry is visible from the token after its window on."""
    return torch.arange(S) < (torch.arange(T) // m)[:, None]


def _and_the_next(T, S, m):
    """s <= floor((t + 1) / m): the window under way too."""
    return torch.arange(S) <= ((torch.arange(T) + 1) // m)[:, None]


def _after_its_first(T, S, m):
    """An entry is visible from the second token of its window on."""
    return torch.arange(S) * m < torch.arange(T)[:, None]


def everything(T, S, m):
    return torch.ones(T, S, dtype=torch.bool)


def _visible_cases(rng):
    yield "9 tokens, windows of 4", (9, 2, 4)
    yield "40 tokens, windows of 5", (40, 8, 5)
    yield "more entries than are complete", (7, 6, 3)
    yield "entries of one token", (5, 5, 1)


def unseen(t, w, m, window=None, complete=None, past=0):
    """Positions that the query at t reads neither in its window nor through an entry."""
    complete = (t + 1) // m if complete is None else complete(t, m)
    first = t - w + 1 if window is None else window(t, w)
    return [s for s in range(complete * m, t + 1 + past) if s < first or s > t]


def _unseen_cases(rng):
    yield "m = 4, w = 2", (6, 2, 4)
    yield "the last token of a window", (7, 2, 4)
    yield "a window that is long enough", (14, 8, 8)
    yield "the first token", (0, 1, 4)
    yield "one token is out of sight", (10, 2, 4)
    yield "a window of m - 1 tokens", (14, 7, 8)
    for _ in range(4):
        t = int(torch.randint(40, 80, (), generator=rng))
        w = int(torch.randint(1, 6, (), generator=rng))
        yield f"t = {t}, w = {w}, m = 16", (t, w, 16)


# ---- attention over keys and entries ----


def attend_with(q, kv, seen, sink, scale=None, hidden=-math.inf, weights=plain.sink_weights):
    """`attend` with another scale, score of hidden keys, or other weights."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") * scale
    scores = scores.masked_fill(~rearrange(seen, "... T S -> ... T 1 S"), hidden)
    return einsum(weights(scores, sink), kv, "B T H S, B S c -> B T H c")


def _attend(**changes):
    return lambda *args: attend_with(*args, **changes)


def _no_sink(scores, sink):
    """Without a sink. A query that sees no key has nan."""
    return scores.softmax(dim=-1)


def _softmax_of_finite(scores, sink):
    """Without a sink, and hidden keys at -1e9 share the weight where nothing is seen."""
    return scores.clamp_min(-1e9).softmax(dim=-1)


def _sink_not_exponentiated(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink[:, None])


def _masked_afterwards(q, kv, seen, sink):
    """The weights of hidden keys are set to 0 after the softmax."""
    seen = rearrange(seen, "... T S -> ... T 1 S")
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    return einsum(plain.sink_weights(scores, sink) * seen, kv, "B T H S, B S c -> B T H c")


def _heads_axis_at_1(q, kv, seen, sink):
    """seen[:, None] fits T S; of B T S it makes B 1 T S, which does not fit."""
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~seen[:, None], -math.inf)
    return einsum(plain.sink_weights(scores, sink), kv, "B T H S, B S c -> B T H c")


def _no_heads_axis(q, kv, seen, sink):
    """T S meets the heads' axis; the scores become B T T S, or do not fit."""
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    p = plain.sink_weights(scores.masked_fill(~seen, -math.inf), sink)
    return einsum(p, kv, "B T H S, B S c -> B T H c")


def _heads_axis_last(q, kv, seen, sink):
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~seen[..., None], -math.inf)
    return einsum(plain.sink_weights(scores, sink), kv, "B T H S, B S c -> B T H c")


def _one_mask_for_all(q, kv, seen, sink):
    """seen[None, :, None] fits T S; of B T S it makes five axes."""
    scores = einsum(q, kv, "B T H c, B S c -> B T H S") / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~seen[None, :, None], -math.inf)
    return einsum(plain.sink_weights(scores, sink), kv, "B T H S, B S c -> B T H c")


def _attend_cases(rng):
    def arguments(B, T, H, c, S, seen):
        q = 1.5 * torch.randn(B, T, H, c, generator=rng)
        return q, torch.randn(B, S, c, generator=rng), seen, torch.randn(H, generator=rng)

    yield "one head, a window", arguments(1, 8, 1, 6, 8, plain.sees(8, 4))
    both = torch.cat([plain.sees(14, 5), visible(14, 3, 4)], dim=-1)
    yield "three heads, a window and entries", arguments(2, 14, 3, 6, 17, both)
    picked = torch.rand(2, 9, 6, generator=rng) < 0.5
    picked[:, 0] = False
    yield "each sequence its own keys, the first query none", arguments(2, 9, 3, 6, 6, picked)


# ---- the layer ----


def hca_attention_with(attn, x, near=plain.sees, far=visible, use=(1, 1), base=None, back=-1,
                       **parts):
    """`hca_attention` with other masks, the frequencies of another kind of layer, or other parts.

    Without keys or entries where `use` says so; `back` is the sign of the output's rotation.
    """
    p = with_parts(parts)
    config, T = attn.config, x.shape[1]
    theta = angles(torch.arange(T), frequencies(config, attn.ratio if base is None else base))
    entries = p.compressed_entries(attn.compressor, x, config)
    seen = [near(T, config.window_size) & bool(use[0]),
            far(T, entries.shape[1], attn.ratio) & bool(use[1])]
    q = p.queries(attn, x, theta)
    kv = torch.cat([p.keys(attn, x, theta), entries], dim=1)
    o = p.attend(q, kv, torch.cat(seen, dim=-1), attn.attn_sink)
    o = plain.rotate(o, back * theta[:, None])
    return p.grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def _attend_apart(q, kv, seen, sink):
    """Keys and entries with a softmax each. There are T keys; the entries come after them."""
    T = q.shape[1]
    near = plain.attend(q, kv[:, :T], seen[:, :T], sink)
    return near + plain.attend(q, kv[:, T:], seen[:, T:], sink)


def _entries_first(q, kv, seen, sink):
    """The entries before the keys, while the mask has the keys first."""
    T = q.shape[1]
    return plain.attend(q, torch.cat([kv[:, T:], kv[:, :T]], dim=1), seen, sink)


def _mask_of_entries_first(q, kv, seen, sink):
    """The mask of the entries before that of the keys, while the keys are first."""
    S = kv.shape[1] - q.shape[1]
    return plain.attend(q, kv, seen.roll(S, dims=-1), sink)


def _window_of_m(attn, x):
    return hca_attention_with(attn, x, near=lambda T, w: plain.sees(T, attn.ratio))


def _layer(**changes):
    return lambda attn, x: hca_attention_with(attn, x, **changes)


def _layer_cases(rng):
    config = TINY.replace(window_size=4)
    attn = lively(rng, config, ratio=6)
    yield "two complete windows", (attn, torch.randn(1, 12, config.dim, generator=rng))
    yield "tokens that wait for their window", (attn, torch.randn(2, 22, config.dim, generator=rng))
    yield "no window is complete", (attn, torch.randn(2, 3, config.dim, generator=rng))


# ---- a sequence in pieces ----

class Arriving:
    """Chunks that arrive one after another, B T_i d each, with m tokens in a window.

    As in a service, no chunk is kept: when the next one is taken, the tokens whose windows were
    complete before are set to 0. They are in an entry by then, unless somebody waits for the end.
    """

    def __init__(self, chunks, m):
        self.chunks, self.m, self.given = chunks, m, {}

    def __len__(self):
        return len(self.chunks)

    def __eq__(self, other):
        return all(map(torch.equal, self.chunks, other.chunks))

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i):
        if isinstance(i, slice):
            return (self[k] for k in range(len(self))[i])
        i = range(len(self))[i]
        starts = [sum(x.shape[1] for x in self.chunks[:k]) for k in range(i + 1)]
        complete = starts[i] // self.m * self.m
        for k in range(i):
            if k in self.given:
                self.given[k][:, :max(complete - starts[k], 0)] = 0
        self.given[i] = self.chunks[i].clone()
        return self.given[i]


def stream(chunks, wkv, wgate, ape, restart=False, lose=False, flush=False, forget=False,
           keep=False, count=False, previous=False, twice=False, dim=2):
    """Pooled windows, B S c, of a sequence that arrives in chunks, each B T_i d.

    The keyword arguments make mistakes.
    """
    m, waiting, entries, t, before = len(ape), None, [], 0, 0
    for x in chunks:
        kv, z = x @ wkv.mT, x @ wgate.mT
        first = 0 if restart or waiting is None else waiting[0].shape[1]
        first = before if previous else t if count else first
        before = x.shape[1]
        t += before
        z = z + ape[(first + torch.arange(x.shape[1])) % m]
        if waiting is not None:
            kv, z = (torch.cat([old, new], dim=1) for old, new in zip(waiting, (kv, z)))
        if twice and waiting is not None:
            z[:, :first] += ape[torch.arange(first) % m]
        S = kv.shape[1] // m
        entries.append(pooled(windows(kv, m), windows(z, m), dim))
        if not (lose and S == 0):
            waiting = (kv, z) if keep else (kv[:, S * m:], z[:, S * m:])
        if forget:
            waiting = None
    if flush and kv.shape[1] > S * m:
        kv, z = waiting
        entries.append((z.softmax(1) * kv).sum(1, keepdim=True))
    return torch.cat(entries, 1)


def _all_at_once(chunks, wkv, wgate, ape):
    return stream([torch.cat(list(chunks), dim=1)], wkv, wgate, ape)


def _stream_cases(rng):
    def arguments(lengths, m, c=4, d=5):
        chunks = [torch.randn(2, T, d, generator=rng) for T in lengths]
        wkv, wgate = torch.randn(c, d, generator=rng), torch.randn(c, d, generator=rng)
        return Arriving(chunks, m), wkv, wgate, torch.randn(m, c, generator=rng)

    yield "all at once, a multiple of m", arguments([12], 4)
    yield "all at once, three tokens wait", arguments([11], 4)
    yield "chunks of whole windows", arguments([4, 8, 4], 4)
    yield "chunks of any length", arguments([6, 5, 3, 7], 4)
    yield "a first chunk that completes no window", arguments([2, 1, 6, 1, 2], 4)
    yield "token by token", arguments([4] + [1] * 10, 3)


CHECKS = [
    Check(
        "hca.compress", plain.compress, _compress_cases,
        mistakes={
            "your softmax runs over the channels; in each channel, the weights of a window's m "
            "tokens should sum to 1": _compress(pool=lambda kv, z: pooled(kv, z, dim=3)),
            "your softmax runs over the windows; an entry should know only its own m tokens":
                _compress(pool=lambda kv, z: pooled(kv, z, dim=1)),
            "your softmax runs over tokens and channels together; each channel should have its "
            "own, over the window's m tokens":
                _compress(pool=_pooled_over_tokens_and_channels),
            "your softmax runs over the whole sequence; each window should have its own":
                _compress(pool=_pooled_over_the_sequence),
            "you index ape by the absolute position; it has m rows, one for each place in a "
            "window, t mod m": _by_absolute_position,
            "you add ape before the tokens are cut into windows, and its shapes do not fit; cut "
            "first (B S m c), then add": _added_before_the_cut,
            "you add ape to kv; it belongs to the gate, z = wgate x + ape":
                _compress(add=lambda kv, z, ape: (kv + ape, z)),
            "you add ape to kv and to the gate; it belongs to the gate alone":
                _compress(add=lambda kv, z, ape: (kv + ape, z + ape)),
            "you add ape after the softmax; it should be added to the gate before":
                _compress(pool=_ape_afterwards, add=lambda kv, z, ape: ((kv, ape), z)),
            "your ape has no effect: it is missing, or all tokens of a window get the same row, "
            "which a softmax ignores; row j belongs to place j of each window":
                _compress(add=lambda kv, z, ape: (kv, z)),
            "you do not use the gate, so that all weights are 1/m; take the softmax of z":
                _compress(pool=lambda kv, z: kv.mean(dim=2)),
            "you leave out the gate's matrix, so that the weights come from ape alone; z should "
            "be wgate x + ape":
                _compress(add=lambda kv, z, ape: (kv, ape.expand_as(z))),
            "your weights are sigmoids; take a softmax, so that they sum to 1 over the window":
                _compress(pool=lambda kv, z: (z.sigmoid() * kv).sum(dim=2)),
            "your weights are exponentials that are not divided by their sum; take a softmax":
                _compress(pool=lambda kv, z: (z.exp() * kv).sum(dim=2)),
            "you take the mean of the weighted tokens; the weights sum to 1 already, so take the "
            "sum": _compress(pool=lambda kv, z: pooled(kv, z) / kv.shape[2]),
            "your wkv and wgate are exchanged; kv should come from wkv, the gate from wgate":
                lambda x, wkv, wgate, *rest: plain.compress(x, wgate, wkv, *rest),
            "you normalise before the pooling; pool first, then RMS": _norm_first,
            "your windows are cut across; window i should have the neighbours i m to i m + m - 1":
                _strided,
            "you drop tokens in front; the windows should begin at token 0, and the last tokens "
            "wait": cut_from_the_front(plain.compress),
            "you make an entry of the tokens after the last complete window; they should wait, "
            "and give none": _ragged,
        } | {message: _compress(norm=norm) for message, norm in NORMS.items()},
        hints=(
            "kv = x wkv^T and z = x wgate^T are B T c. Cut both into S = T // m windows: "
            "t[:, :S * m].unflatten(1, (S, m)).",
            "z + ape fits once z is B S m c. The tokens of a window are axis 2: softmax and sum "
            "run over it.",
            "Then RMS over the channels: e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) "
            "* weight.",
        ),
    ),
    Check(
        "hca.place", plain.place, _place_cases,
        mistakes={
            "your base is rope_theta; layers with compression use compress_rope_theta":
                lambda entries, m, config: plain.place(
                    entries, m, config.replace(compress_rope_theta=config.rope_theta)),
            "you take the frequencies of a layer without compression, another base and no YaRN; "
            "take frequencies(config, m)":
                lambda entries, m, config: place_with(entries, m, config, w=frequencies(config, 0)),
            "you leave YaRN out; take the frequencies that frequencies(config, m) gives":
                _without_yarn,
            "your entry i is at the last position of its window; it should be at the first, i m":
                _at(lambda i, m: i * m + m - 1),
            "your entry i is at position i; entries are m tokens apart, so it should be at i m":
                _at(lambda i, m: i),
            "your entry i is one window late, at (i + 1) m; it should be at i m":
                _at(lambda i, m: (i + 1) * m),
            "your entry i is one token late, at i m + 1; positions begin with 0, so it should be "
            "at i m": _at(lambda i, m: i * m + 1),
            "your entry i is in the middle of its window; it should be at the first position, i m":
                _at(lambda i, m: i * m + m // 2),
            "your entry i is at i // m; multiply by m": _at(lambda i, m: i // m),
            "your entry i is at i + m; multiply by m": _at(lambda i, m: i + m),
            "all of your entries are at position m; entry i should be at i m":
                _at(lambda i, m: 0 * i + m),
            "you rotate the first channels; only the last rope_head_dim channels should rotate":
                lambda *args: place_with(*args, rotate=rotate_first),
            "you pair channel j with channel j + r/2; V4 pairs neighbours, (2j, 2j + 1)":
                lambda *args: place_with(*args, rotate=rotate_halves),
            "you rotate backwards; the angle should be + position times frequency":
                _at(lambda i, m: -i * m),
            "you rotate nothing; each entry should be rotated to its position":
                lambda entries, m, config: entries.clone(),
        },
        hints=(
            "Angles: the position of each entry (S) times each frequency (r/2), so S x r/2. Entry "
            "i is at position i m.",
            "frequencies(config, m) gives the frequencies. rotate(x, theta) rotates.",
            "angles(torch.arange(S) * m, frequencies(config, m)) is S x r/2, with "
            "S = entries.shape[1].",
        ),
    ),
    Check(
        "hca.visible", visible, _visible_cases,
        mistakes={
            "you let a window be read from its first token on, before it is complete, so that the "
            "query would read tokens that come after it; wait for its last token": early,
            "you write s <= floor((t + 1) / m), which adds the window under way; < leaves it out":
                _and_the_next,
            "you are one token too late; a window's last token may read the window's entry, which "
            "ends with that token": late,
            "you are one token too early; the query before the last token of a window should not "
            "see it yet":
                lambda T, S, m: visible(T + 1, S, m)[1:],
            "you let a window be read from its second token on; wait for its last token":
                _after_its_first,
            "your mask is the wrong way round; True should be where the query sees the entry":
                lambda *args: ~visible(*args),
            "every query sees every entry; it should see the complete ones only": everything,
            "only the latest complete entry is visible; HCA sees all of them":
                lambda T, S, m: torch.arange(S) == (torch.arange(1, T + 1) // m)[:, None] - 1,
            "your query sees the entry of its own window; it should see all complete ones":
                lambda T, S, m: torch.arange(S) == (torch.arange(T) // m)[:, None],
            "you compare entries with tokens, s <= t; entry s has the tokens s m to s m + m - 1":
                lambda T, S, m: torch.arange(S) <= torch.arange(T)[:, None],
            "your t + 1 // m lacks parentheses, and // goes before +; it should be (t + 1) // m":
                lambda T, S, m: torch.arange(S) < (torch.arange(T) + 1 // m)[:, None],
            "you are one window late; the query that completes a window should see its entry":
                lambda T, S, m: torch.arange(S) < (torch.arange(1, T + 1) // m - 1)[:, None],
            "your mask is transposed; rows should be queries and columns entries":
                lambda *args: visible(*args).mT,
        },
        hints=(
            "After the query at t there are t + 1 tokens, so floor((t + 1) / m) windows are "
            "complete.",
            "Entry s is visible when s < floor((t + 1) / m). Compare a row of s with a column of "
            "t.",
            "torch.arange(S) < (...)[:, None] is T x S, where ... is (torch.arange(T) + 1) // m.",
        ),
        gradient=False,
    ),
    Check(
        "hca.unseen", unseen, _unseen_cases,
        mistakes={
            "your sliding window is one token short; it should hold t - w + 1 to t, the query's "
            "own token included": lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w + 2),
            "your sliding window is one token too long; it should hold w tokens, t - w + 1 to t":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w),
            "you do not count the sliding window; its w tokens are read":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t + 1),
            "you count the window that t itself is in as read; it is complete only with its last "
            "token":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m + 1),
            "you leave out a window that ends with t; it is complete, floor((t + 1) / m) windows "
            "are":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m),
            "you do not count the entries; they cover all complete windows":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: 0),
            "you join the two ways with OR; list what NEITHER the sliding window NOR an entry "
            "gives":
                lambda t, w, m: [s for s in range(t + 1) if s <= t - w or s >= (t + 1) // m * m],
            "you list what only one of the two ways gives; list what neither of them gives":
                lambda t, w, m: [s for s in range(t + 1)
                                 if (s <= t - w) != (s >= (t + 1) // m * m)],
            "you begin one token early; the last token of the complete windows is in an entry":
                lambda t, w, m: list(range(max(t + 1 - (t + 1) % m - 1, 0), t - w + 1)),
            "you list the numbers within the window under way; list positions in the text":
                lambda t, w, m: [s % m for s in unseen(t, w, m)],
            "you begin one token late; the first token after the complete windows is at "
            "m floor((t + 1) / m)":
                lambda t, w, m: unseen(t, w, m)[1:],
            "you list tokens after t; a query never reads those":
                lambda t, w, m: unseen(t, w, m, past=-(t + 1) % m),
            "you count the complete windows and forget to multiply by m; the entries cover "
            "m floor((t + 1) / m) tokens":
                lambda t, w, m: list(range((t + 1) // m, t - w + 1)),
            "you list what the query reads; list what it does not":
                lambda t, w, m: sorted(set(range(t + 1)) - set(unseen(t, w, m))),
            "you return how many there are; return the list of their positions":
                lambda t, w, m: len(unseen(t, w, m)),
            "you list windows; list the positions of tokens":
                lambda t, w, m: sorted({s // m for s in unseen(t, w, m)}),
            "your list runs backwards; it should be in order":
                lambda t, w, m: unseen(t, w, m)[::-1],
        },
        hints=(
            "Entries cover the positions 0 to m * floor((t + 1) / m) - 1. The sliding window "
            "covers t - w + 1 to t.",
            "So what is left lies between the two: from m * floor((t + 1) / m) up to t - w.",
            "list(range(first, last + 1)) is empty where first > last.",
        ),
        gradient=False,
    ),
    Check(
        "hca.attend", plain.attend, _attend_cases,
        mistakes={
            "you do not use `seen`; a query should read only the keys that it sees":
                lambda q, kv, seen, sink: plain.attend(q, kv, torch.ones_like(seen), sink),
            "your mask is the wrong way round; True is where a query sees a key":
                lambda q, kv, seen, sink: plain.attend(q, kv, ~seen, sink),
            "you give hidden keys the score 0, and exp(0) = 1 still counts; give them -inf":
                _attend(hidden=0.0),
            "you give hidden keys the score -1, which still counts; give them -inf":
                _attend(hidden=-1.0),
            "you take the softmax over all keys and then hide some; hide them before, with the "
            "score -inf": _masked_afterwards,
            "you put the heads' axis at place 1 of `seen`, which does not fit where each sequence "
            "has its own mask (B T S); it should come before the last axis": _heads_axis_at_1,
            "your mask `seen` has no axis for the heads, so that its queries meet the heads of the "
            "scores, B T H S; put one before its last axis": _no_heads_axis,
            "you put the heads' axis at the end of `seen`; it should come before the last axis, "
            "which is the keys'": _heads_axis_last,
            "you put an axis for the batch in front of `seen`, which does not fit where each "
            "sequence has its own mask (B T S); only the heads' axis is missing, before the last":
                _one_mask_for_all,
            "you leave the sink out; exp(sink) should join the denominator":
                _attend(weights=_no_sink),
            "you leave the sink out, and a query that sees nothing reads hidden keys; exp(sink) "
            "should join the denominator": _attend(weights=_softmax_of_finite),
            "you add the sink to the denominator as it is; it is a score, so exp(sink) should join":
                _attend(weights=_sink_not_exponentiated),
            "all heads take the first sink; each should have its own":
                lambda q, kv, seen, sink: plain.attend(q, kv, seen, sink[:1].expand_as(sink)),
            "you do not divide the scores; divide them by sqrt(c)": _attend(scale=1.0),
            "you divide the scores by c; divide by its root":
                lambda q, *rest: attend_with(q, *rest, scale=1 / q.shape[-1]),
            "you multiply the scores by sqrt(c); divide by it":
                lambda q, *rest: attend_with(q, *rest, scale=q.shape[-1] ** 0.5),
            "you divide the scores by the root of the number of heads; c is the width of a head":
                lambda q, *rest: attend_with(q, *rest, scale=q.shape[-2] ** -0.5),
            "you divide the scores by the root of the number of keys; c is the width of a head":
                lambda q, kv, *rest: attend_with(q, kv, *rest, scale=kv.shape[1] ** -0.5),
        },
        hints=(
            'Scores: torch.einsum("bthc,bsc->bths", q, kv) / sqrt(c), -inf where `seen` is False.',
            "`seen` has no axis for the heads: seen[..., None, :] puts one where the scores have "
            "theirs.",
            "sink_weights(scores, sink) of lesson 02 gives the weights. Then the sum over the "
            "keys.",
        ),
    ),
    Check(
        "hca.layer", plain.hca_attention, _layer_cases,
        mistakes={
            "you read a window's entry before the window is complete; wait for its last token":
                _layer(far=early),
            "you read an entry one token too late; the window's last token may read it":
                _layer(far=late),
            "you read all entries, also those of later tokens; only complete ones may be read":
                _layer(far=everything),
            "you have no mask at all; a query should read the last w keys and the complete entries":
                _layer(near=lambda T, w: everything(T, T, 1), far=everything),
            "your sliding window is one key short; a query should see w keys, its own included":
                _layer(near=lambda T, w: plain.sees(T, w - 1)),
            "your sliding window has one key too many; t - w + 1 to t are w keys":
                _layer(near=lambda T, w: plain.sees(T, w + 1)),
            "your query does not see its own token; the sliding window should include t":
                _layer(near=lambda T, w: plain.sees(T, w + 1) & ~torch.eye(T, dtype=torch.bool)),
            "you have no sliding window, and the query reads the keys of all earlier tokens; it "
            "should read the last w":
                _layer(near=lambda T, w: plain.sees(T, T)),
            "your sliding window has m keys, the size of a compressed window; it should have "
            "config.window_size": _window_of_m,
            "you read keys after the query; the sliding window should end with t":
                _layer(near=lambda T, w: plain.sees(T, w) | plain.sees(T, T).mT),
            "your sliding window and your entries have a softmax each; all should share one":
                _layer(attend=_attend_apart),
            "your keys and your mask are in different order; where the keys come first, `sees` "
            "should come first too": _layer(attend=_entries_first),
            "your mask has the entries first, and your kv the keys; both should be in the same "
            "order": _layer(attend=_mask_of_entries_first),
            "you place the entries twice; `place` rotates them once":
                _layer(place=lambda *args: plain.place(plain.place(*args), *args[1:])),
            "you exchange the compressor's wkv and wgate; `compress` takes wkv first":
                _layer(compress=lambda x, wkv, wgate, *rest: plain.compress(
                    x, wgate, wkv, *rest)),
            "you leave the sink out; exp(sink) should join the denominator":
                _layer(sink_weights=_no_sink),
            "you leave the entries out; they should stand after the keys": _layer(use=(1, 0)),
            "you leave out the keys of the sliding window; they should stand before the entries":
                _layer(use=(0, 1)),
            "you do not place the entries; rotate them to the first positions of their windows":
                _layer(place=lambda entries, m, config: entries),
            "your queries and keys rotate with the frequencies of a layer without compression; "
            "take frequencies(config, m) for all":
                _layer(base=0),
            "you do not rotate the output back; rotate it by -theta of its query": _layer(back=0),
            "you rotate the output forwards once more; rotate it BACK by the query's position":
                _layer(back=1),
        },
        hints=(
            "As window_attention of lesson 02, with entries: compress gives them, place rotates "
            "them, and torch.cat([keys, entries], 1) joins them to the keys.",
            "One mask for both, T x T+S: torch.cat([sees(T, w), visible(T, S, m)], -1).",
            "The frequencies are frequencies(config, m) for queries, keys and the rotation back.",
        ),
        atol=1e-4,
    ),
    Check(
        "hca.stream", stream, _stream_cases,
        mistakes={
            "your version still has both faults; compare one chunk of 6 tokens with pieces of "
            "5 and 1": lambda *a: stream(*a, restart=True, lose=True),
            "no token gets lost now, but ape still starts anew with each chunk; a token's place in "
            "its window is t mod m": lambda *a: stream(*a, restart=True),
            "ape is right now, but a chunk that completes no window is still forgotten; its tokens "
            "should wait too": lambda *a: stream(*a, lose=True),
            "ape is right now, by a count of all tokens, but a chunk that completes no window is "
            "still forgotten; its tokens should wait too":
                lambda *a: stream(*a, lose=True, count=True),
            "no token gets lost now, but tokens that wait get ape once more with each chunk; add "
            "it once": lambda *a: stream(*a, twice=True),
            "tokens that wait get ape once more with each chunk, and a chunk that completes no "
            "window is still forgotten; add ape once, and let these tokens wait too":
                lambda *a: stream(*a, twice=True, lose=True),
            "no token gets lost now, but ape begins at the length of the chunk before; count all "
            "tokens before this chunk, or those that wait":
                lambda *a: stream(*a, previous=True),
            "ape begins at the length of the chunk before, and a chunk that completes no window is "
            "still forgotten; count all tokens before this chunk, or those that wait, and let "
            "these tokens wait too":
                lambda *a: stream(*a, previous=True, lose=True),
            "your softmax runs over the channels; it should run over a window's m tokens, as in "
            "the colleague's version":
                lambda *a: stream(*a, dim=3),
            "your softmax runs over the windows of a chunk; it should run over a window's m "
            "tokens, as in the colleague's version":
                lambda *a: stream(*a, dim=1),
            "you wait for the last chunk before you pool; a chunk does not stay, so its complete "
            "windows should be pooled when it arrives": _all_at_once,
            "nothing waits between chunks, each is compressed by itself; tokens of an incomplete "
            "window should wait for the next chunk":
                lambda *a: stream(*a, forget=True),
            "tokens that are in an entry already still wait; only those after the last complete "
            "window should": lambda *a: stream(*a, keep=True),
            "you make an entry of the tokens that wait at the end; they should wait on":
                lambda *a: stream(*a, flush=True),
        },
        hints=(
            "Feed 6 tokens with m = 4, first at once, then as 4 + 2, 3 + 3 and one by one. Where "
            "do the entries differ first?",
            "Which row of ape does the first token of a chunk get when two tokens are waiting? And "
            "what happens where S is 0?",
            "Keep the gate of waiting tokens WITHOUT ape, and add ape when windows are cut. Store "
            "what waits in every round.",
        ),
        gradient=False,
    ),
]
