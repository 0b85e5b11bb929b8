"""Checks of lesson 03: heavily compressed attention (V4 report, sections 2.3.2 and 2.3.3)."""

import math

import torch

from minids.config import Config
from minids.learn.exercise import Check
from minids.model.rotary import frequencies, rotate

LESSON = "03_hca"


# ---- m tokens become one entry ----

def compress(x, wkv, wgate, ape, weight, eps, kv_of=None, axis=2, pooled=None, norm=None):
    """Entries of the complete windows, B n c, without rotary. x: B T d, wkv and wgate: c d, ape: m c, weight: c.

    The keyword arguments make the usual mistakes."""
    m, n = len(ape), x.shape[1] // len(ape)
    kv, z = (_windows(x @ w.mT, n, m) for w in (wkv, wgate))                             # B n m c
    kv, z = (kv, z + ape) if kv_of is None else kv_of(kv, z, ape)
    entries = (z.softmax(axis) * kv).sum(2) if pooled is None else pooled(kv, z)         # B n c
    return (norm or rms)(entries, weight, eps)


def rms(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _windows(t, n, m):
    """B T c -> B n m c; tokens after the last complete window are left out."""
    return t[:, :n * m].reshape(t.shape[0], n, m, t.shape[-1])


def _compress_cases(rng):
    def arguments(B, T, d, c, m):
        wkv, wgate = (torch.randn(c, d, generator=rng) * d ** -0.5 for _ in range(2))
        return (torch.randn(B, T, d, generator=rng), wkv, 1.5 * wgate, torch.randn(m, c, generator=rng),
                0.5 + torch.rand(c, generator=rng), 0.05)
    yield "one window", arguments(1, 4, 6, 5, 4)
    yield "three windows", arguments(2, 12, 6, 5, 4)
    yield "two windows and three tokens more", arguments(2, 13, 6, 8, 5)
    yield "fewer tokens than a window has", arguments(2, 3, 6, 5, 4)


def _by_absolute_position(x, wkv, wgate, ape, weight, eps):
    ape[torch.arange(x.shape[1])]    # IndexError where there are more tokens than rows
    return compress(x, wkv, wgate, ape, weight, eps)


def _added_before_the_cut(x, wkv, wgate, ape, weight, eps):
    x @ wgate.mT + ape               # RuntimeError unless there are as many tokens as rows
    return compress(x, wkv, wgate, ape, weight, eps)


def _norm_first(x, wkv, wgate, ape, weight, eps):
    return compress(x, wkv, wgate, ape, weight, eps, kv_of=lambda kv, z, a: (rms(kv, weight, eps), z + a),
                    norm=lambda entries, weight, eps: entries)


def _ragged(x, wkv, wgate, ape, weight, eps):
    """The tokens after the last complete window make an entry too."""
    parts = [compress(part, wkv, wgate, ape[:part.shape[1]], weight, eps) for part in x.split(len(ape), 1)]
    return torch.cat(parts, 1)


def _strided(x, wkv, wgate, ape, weight, eps):
    n, m = x.shape[1] // len(ape), len(ape)
    x = x[:, :n * m].reshape(x.shape[0], m, n, -1).transpose(1, 2).flatten(1, 2)
    return compress(x, wkv, wgate, ape, weight, eps)


def _whole_sequence(kv, z):
    weights = z.flatten(1, 2).softmax(1).view_as(z)
    return (weights * kv).sum(2)


# ---- where an entry is ----

def place(entries, m, config, base=None, original=None, position=None, width=None, halves=False, back=False):
    """The entries, B n c, turned to position i m with the base of layers with compression. Keyword arguments: mistakes."""
    base = base or config.compress_rope_theta
    kind = config.replace(compress_rope_theta=base, original_seq_len=config.original_seq_len if original is None else original)
    w = frequencies(kind, m)                                                             # r/2
    i = torch.arange(entries.shape[1])
    position = i * m if position is None else position(i, m)
    angles = position[:, None] * w                                                       # n r/2
    rot = torch.polar(torch.ones_like(angles), -angles if back else angles)
    r = config.rope_head_dim
    part = entries[..., :r] if width == "first" else entries[..., -r:]
    if halves:
        part = part.unflatten(-1, (2, -1)).mT.flatten(-2)
    part = rotate(part, rot)
    if halves:
        part = part.unflatten(-1, (-1, 2)).mT.flatten(-2)
    return torch.cat([part, entries[..., r:]] if width == "first" else [entries[..., :-r], part], -1)


def _place_cases(rng):
    config = Config.nano().replace(head_dim=12, rope_head_dim=8, original_seq_len=256)
    yield "three entries of 16 tokens each", (torch.randn(1, 3, 12, generator=rng), 16, config)
    yield "forty entries of 5 tokens each", (torch.randn(2, 40, 12, generator=rng), 5, config)
    config = config.replace(rope_head_dim=6, original_seq_len=1024, rope_factor=4.0)
    yield "another configuration", (torch.randn(2, 30, 12, generator=rng), 32, config)


# ---- what a query may read ----

def visible(T, S, m):
    """Whether the query at t sees entry s: T S, bool."""
    return torch.arange(S) < (torch.arange(1, T + 1) // m)[:, None]


def _visible_cases(rng):
    yield "9 tokens, windows of 4", (9, 2, 4)
    yield "40 tokens, windows of 5", (40, 8, 5)
    yield "more entries than are complete", (7, 6, 3)


def unseen(t, w, m, window=None, complete=None, past=0):
    """Positions that the query at t reads neither in its window nor through an entry."""
    complete = (t + 1) // m if complete is None else complete(t, m)
    first = t - w + 1 if window is None else window(t, w)
    return [s for s in range(complete * m, t + 1 + past) if s < first or s > t]


def _unseen_cases(rng):
    yield "m = 4, w = 2", (6, 2, 4)
    yield "the last token of a window", (7, 2, 4)
    yield "a window that is long enough", (14, 8, 8)
    for _ in range(4):
        t, w = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((40, 80), (1, 6)))
        yield f"t = {t}, w = {w}, m = 16", (t, w, 16)


# ---- window, entries and sink share one softmax ----

def attend(q, kv, entries, sink, w, m, sees=visible, near=None, scale=True, split=False, use=(1, 1, 1)):
    """q: B T H c, kv: B T c, entries: B S c, sink: H -> B T H c. Keyword arguments: mistakes."""
    T, S, c = q.shape[1], entries.shape[1], q.shape[-1]
    t, s = torch.arange(T)[:, None], torch.arange(T)
    window = (s <= t) & (s > t - w) if near is None else near(t, s, w)                   # T T
    mask = torch.cat([window & bool(use[0]), sees(T, S, m) & bool(use[1])], -1)[:, None]  # T 1 T+S
    keys = torch.cat([kv, entries], 1)                                                   # B T+S c
    scores = torch.einsum("bthc,bsc->bths", q, keys) * (c ** -0.5 if scale else 1.0)     # B T H T+S
    e = scores.masked_fill(~mask, -torch.inf).exp()
    stop = sink.exp()[:, None] * use[2]
    if split:
        a, b = e[..., :T], e[..., T:]
        p = torch.cat([a / (a.sum(-1, True) + stop), b / (b.sum(-1, True) + stop)], -1)
    else:
        p = e / (e.sum(-1, True) + stop)
    return torch.einsum("bths,bsc->bthc", p.nan_to_num(), keys)


def _attend_cases(rng):
    def arguments(B, T, H, c, w, m):
        return (1.5 * torch.randn(B, T, H, c, generator=rng), torch.randn(B, T, c, generator=rng),
                torch.randn(B, T // m, c, generator=rng), torch.randn(H, generator=rng), w, m)
    yield "one head, two windows", arguments(1, 8, 1, 6, 4, 4)
    yield "three heads, tokens that wait for their window", arguments(2, 14, 3, 6, 5, 4)
    yield "no window is complete", arguments(1, 3, 2, 6, 2, 4)


def _early(T, S, m):
    return torch.arange(S) <= (torch.arange(T) // m)[:, None]


def _strict(T, S, m):
    return torch.arange(S) < (torch.arange(T) // m)[:, None]


def _all(T, S, m):
    return torch.ones(T, S, dtype=torch.bool)


# ---- a sequence in pieces ----

def stream(chunks, wkv, wgate, ape, restart=False, lose=False, flush=False, forget=False, keep=False):
    """Pooled windows, B n c, of a sequence that arrives in chunks, each B T_i d. Keyword arguments: mistakes."""
    m, c = ape.shape
    kv = z = chunks[0].new_zeros(chunks[0].shape[0], 0, c)                               # what waits
    entries = [kv]
    for x in chunks:
        new_kv, new_z = x @ wkv.mT, x @ wgate.mT
        first = 0 if restart else kv.shape[1]
        new_z = new_z + ape[(first + torch.arange(x.shape[1])) % m]
        old = kv, z
        kv, z = (new_kv, new_z) if forget else (torch.cat([kv, new_kv], 1), torch.cat([z, new_z], 1))
        n = kv.shape[1] // m
        entries.append((_windows(z, n, m).softmax(2) * _windows(kv, n, m)).sum(2))
        if not keep:
            kv, z = old if lose and n == 0 else (kv[:, n * m:], z[:, n * m:])
    if flush and kv.shape[1]:
        entries.append((z.softmax(1) * kv).sum(1, keepdim=True))
    return torch.cat(entries, 1)


def _stream_cases(rng):
    def arguments(lengths, m, c=4, d=5):
        chunks = [torch.randn(2, T, d, generator=rng) for T in lengths]
        return chunks, torch.randn(c, d, generator=rng), torch.randn(c, d, generator=rng), torch.randn(m, c, generator=rng)
    yield "all at once, a multiple of m", arguments([12], 4)
    yield "all at once, three tokens wait", arguments([11], 4)
    yield "chunks of whole windows", arguments([4, 8, 4], 4)
    yield "chunks of any length", arguments([6, 5, 3, 7], 4)
    yield "token by token", arguments([1] * 10, 3)


CHECKS = [
    Check(
        "hca.compress", compress, _compress_cases,
        mistakes={
            "the softmax runs over the channels: in each channel, the weights of a window's m tokens must sum to 1":
                lambda *a: compress(*a, axis=3),
            "the softmax runs over the windows: an entry knows only its own m tokens": lambda *a: compress(*a, axis=1),
            "the softmax runs over the whole sequence: each window has a softmax of its own":
                lambda *a: compress(*a, pooled=_whole_sequence),
            "ape is indexed by the absolute position: it has m rows, one for each place in a window, t mod m":
                _by_absolute_position,
            "ape is added before the tokens are cut into windows and its shapes do not fit: cut first (B n m c), then add":
                _added_before_the_cut,
            "ape is added to kv: it belongs to the gate, z = wgate x + ape":
                lambda *a: compress(*a, kv_of=lambda kv, z, ape: (kv + ape, z)),
            "ape has no effect: it is missing, or all tokens of a window get the same row, which a softmax ignores; "
            "row j belongs to place j of each window":
                lambda *a: compress(*a, kv_of=lambda kv, z, ape: (kv, z)),
            "the gate is not used: this is the mean of the window's tokens, all weights 1/m":
                lambda *a: compress(*a, pooled=lambda kv, z: kv.mean(2)),
            "the gate's matrix is not used: the weights come from ape alone":
                lambda *a: compress(*a, kv_of=lambda kv, z, ape: (kv, ape.expand_as(z))),
            "the weights are sigmoids: take a softmax, so that they sum to 1 over the window":
                lambda *a: compress(*a, pooled=lambda kv, z: (z.sigmoid() * kv).sum(2)),
            "wkv and wgate are exchanged": lambda x, wkv, wgate, *a: compress(x, wgate, wkv, *a),
            "the norm comes before the pooling: pool first, then RMS": _norm_first,
            "the norm is missing": lambda *a: compress(*a, norm=lambda entries, weight, eps: entries),
            "the norm's weight is missing": lambda *a: compress(*a, norm=lambda e, w, eps: rms(e, torch.ones_like(w), eps)),
            "the windows are cut across: window i has the neighbours i m to i m + m - 1": _strided,
            "an entry is made of the tokens after the last complete window: they wait, and give none": _ragged,
        },
        hints=(
            "kv = x wkv^T and z = x wgate^T are B T c. Cut both into n = T // m windows: t[:, :n * m].unflatten(1, (n, m)).",
            "z + ape fits once z is B n m c. The tokens of a window are axis 2: softmax and sum run over it.",
            "Then RMS over the channels: e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight.",
        ),
    ),
    Check(
        "hca.place", place, _place_cases,
        mistakes={
            "the wrong base: layers with compression use compress_rope_theta, not rope_theta":
                lambda e, m, config: place(e, m, config, base=config.rope_theta),
            "the wrong base and no YaRN: these are the frequencies of a layer without compression":
                lambda e, m, config: place(e, m, config, base=config.rope_theta, original=0),
            "YaRN is missing: take the frequencies that yarn_frequencies gives": lambda *a: place(*a, original=0),
            "entry i stands at the last position of its window: it belongs at the first, i m":
                lambda *a: place(*a, position=lambda i, m: i * m + m - 1),
            "entry i stands at position i: entries are m tokens apart, so it is i m":
                lambda *a: place(*a, position=lambda i, m: i),
            "entry i stands one window late, at (i + 1) m: it is i m": lambda *a: place(*a, position=lambda i, m: (i + 1) * m),
            "entry i stands in the middle of its window: it is at the first position, i m":
                lambda *a: place(*a, position=lambda i, m: i * m + m // 2),
            "the first channels turn: only the last rope_head_dim channels do": lambda *a: place(*a, width="first"),
            "channel j is paired with channel j + r/2: V4 pairs neighbours, (2j, 2j + 1)": lambda *a: place(*a, halves=True),
            "the turn goes backwards: the angle is + position times frequency": lambda *a: place(*a, back=True),
            "nothing turns": lambda e, m, config: e.clone(),
        },
        hints=(
            "Angles: the position of each entry (n) times each frequency (r/2), so n x r/2. Entry i stands at position i m.",
            "yarn_frequencies(config.compress_rope_theta, config) gives the frequencies. turned(x, angles) does the turning.",
            "(torch.arange(n) * m)[:, None] * frequencies is n x r/2, with n = entries.shape[1].",
        ),
    ),
    Check(
        "hca.visible", visible, _visible_cases,
        mistakes={
            "a window is visible before it is complete: the query would read tokens that come after it": _early,
            "one token too late: a window's last token may read the window's entry, it ends with that token itself": _strict,
            "one token too early: the query before the last token of a window sees it already":
                lambda T, S, m: torch.arange(S) < (torch.arange(2, T + 2) // m)[:, None],
            "the mask is the wrong way round: True where the query sees the entry": lambda *a: ~visible(*a),
            "every entry is visible to every query": _all,
            "only the latest complete entry is visible: HCA sees all of them":
                lambda T, S, m: torch.arange(S) == (torch.arange(1, T + 1) // m)[:, None] - 1,
            "rows are queries and columns are entries: this is transposed": lambda *a: visible(*a).mT,
        },
        hints=(
            "After the query at t there are t + 1 tokens, so floor((t + 1) / m) windows are complete.",
            "Entry s is visible when s < floor((t + 1) / m). Compare a row of s with a column of t.",
            "torch.arange(S) < (...)[:, None] is T x S, where ... is (torch.arange(T) + 1) // m.",
        ),
    ),
    Check(
        "hca.unseen", unseen, _unseen_cases,
        mistakes={
            "the sliding window is one token short: it holds t - w + 1 to t, the query's own token included":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w + 2),
            "the sliding window is one token too long: it holds w tokens, t - w + 1 to t":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w),
            "the sliding window is not counted": lambda t, w, m: unseen(t, w, m, window=lambda t, w: t + 1),
            "the window that t itself is in counts as read: it is complete only with its last token":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m + 1),
            "a window that ends with t is complete: floor((t + 1) / m) windows are":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m),
            "the entries are not counted": lambda t, w, m: unseen(t, w, m, complete=lambda t, m: 0),
            "tokens after t are in the list: nobody expects a query to read those":
                lambda t, w, m: unseen(t, w, m, past=-(t + 1) % m),
        },
        hints=(
            "Entries cover the positions 0 to m * floor((t + 1) / m) - 1. The sliding window covers t - w + 1 to t.",
            "So what is left lies between the two: from m * floor((t + 1) / m) up to t - w.",
            "list(range(first, last + 1)) is empty where first > last.",
        ),
    ),
    Check(
        "hca.attend", attend, _attend_cases,
        mistakes={
            "a window's entry is read before the window is complete": lambda *a: attend(*a, sees=_early),
            "an entry is read one token too late: the window's last token may read it": lambda *a: attend(*a, sees=_strict),
            "every query reads all entries, also those of later tokens": lambda *a: attend(*a, sees=_all),
            "the sliding window is one key short: a query sees w keys, its own included":
                lambda *a: attend(*a, near=lambda t, s, w: (s <= t) & (s > t - w + 1)),
            "the sliding window has one key too many: t - w + 1 to t are w keys":
                lambda *a: attend(*a, near=lambda t, s, w: (s <= t) & (s >= t - w)),
            "the query does not see its own token: the sliding window includes t":
                lambda *a: attend(*a, near=lambda t, s, w: (s < t) & (s >= t - w)),
            "there is no sliding window: the query reads the keys of all earlier tokens":
                lambda *a: attend(*a, near=lambda t, s, w: s <= t),
            "the keys after the query are read": lambda *a: attend(*a, near=lambda t, s, w: s > t - w),
            "sliding window and entries have a softmax each: all share one": lambda *a: attend(*a, split=True),
            "the sink is missing: exp(sink) joins the denominator": lambda *a: attend(*a, use=(1, 1, 0)),
            "the entries are missing": lambda *a: attend(*a, use=(1, 0, 1)),
            "the keys of the sliding window are missing": lambda *a: attend(*a, use=(0, 1, 1)),
            "the scores are not divided by sqrt(c)": lambda *a: attend(*a, scale=False),
            "the scores are divided by c: by its root":
                lambda q, *a: attend(q / math.sqrt(q.shape[-1]), *a),
        },
        hints=(
            "Keys and entries in a row are B T+S c. One mask for both, T x T+S: sliding window beside visible(T, S, m).",
            "Scores q . key / sqrt(c), -inf where the mask forbids; the sink as one more column of scores; one softmax.",
            "sink[:, None].expand(B, T, H, 1) is that column. After the softmax drop it: it has no value to add.",
        ),
    ),
    Check(
        "hca.stream", stream, _stream_cases,
        mistakes={
            "this still has both faults": lambda *a: stream(*a, restart=True, lose=True),
            "no token gets lost now, but ape still starts anew with each chunk: a token's place in its window is t mod m":
                lambda *a: stream(*a, restart=True),
            "ape is right now, but a chunk that completes no window is still forgotten: its tokens must wait too":
                lambda *a: stream(*a, lose=True),
            "nothing waits between chunks: each is compressed by itself": lambda *a: stream(*a, forget=True),
            "tokens that are in an entry already still wait: only those after the last complete window do":
                lambda *a: stream(*a, keep=True),
            "the tokens that wait at the end give an entry: they wait on": lambda *a: stream(*a, flush=True),
        },
        hints=(
            "Feed 6 tokens with m = 4, first at once, then as 4 + 2, 3 + 3 and one by one. Where do the entries differ first?",
            "Which row of ape does the first token of a chunk get when two tokens are waiting? And what happens where n is 0?",
            "Keep the gate of waiting tokens WITHOUT ape, and add ape when windows are cut. Store what waits in every round.",
        ),
    ),
]
