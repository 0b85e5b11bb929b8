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


def everything(T, S, m):
    return torch.ones(T, S, dtype=torch.bool)


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
    return plain.sink_weights(scores, torch.full_like(sink, -1e9))


def _sink_not_exponentiated(scores, sink):
    e = scores.exp()
    return e / (e.sum(-1, keepdim=True) + sink[:, None])


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


def hca_attention_with(attn, x, near=plain.sees, far=visible, use=(1, 1), base=None, back=True,
                       **parts):
    """`hca_attention` with other masks, the frequencies of another kind of layer, or other parts.

    Without keys or entries where `use` says so, and without the rotation back.
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
    o = plain.rotate(o, -theta[:, None]) if back else o
    return p.grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def _attend_apart(q, kv, seen, sink):
    """Keys and entries with a softmax each. There are T keys; the entries come after them."""
    T = q.shape[1]
    near = plain.attend(q, kv[:, :T], seen[:, :T], sink)
    return near + plain.attend(q, kv[:, T:], seen[:, T:], sink)


def _layer(**changes):
    return lambda attn, x: hca_attention_with(attn, x, **changes)


def _layer_cases(rng):
    config = TINY.replace(window_size=5)
    attn = lively(rng, config, ratio=6)
    yield "two complete windows", (attn, torch.randn(1, 12, config.dim, generator=rng))
    yield "tokens that wait for their window", (attn, torch.randn(2, 22, config.dim, generator=rng))
    yield "no window is complete", (attn, torch.randn(2, 3, config.dim, generator=rng))


# ---- a sequence in pieces ----

def stream(chunks, wkv, wgate, ape, restart=False, lose=False, flush=False, forget=False,
           keep=False):
    """Pooled windows, B S c, of a sequence that arrives in chunks, each B T_i d.

    The keyword arguments make mistakes.
    """
    m, c = ape.shape
    kv = z = chunks[0].new_zeros(chunks[0].shape[0], 0, c)             # what waits
    entries = [kv]
    for x in chunks:
        new_kv, new_z = x @ wkv.mT, x @ wgate.mT
        first = 0 if restart else kv.shape[1]
        new_z = new_z + ape[(first + torch.arange(x.shape[1])) % m]
        old = kv, z
        if forget:
            kv, z = new_kv, new_z
        else:
            kv, z = torch.cat([kv, new_kv], dim=1), torch.cat([z, new_z], dim=1)
        S = kv.shape[1] // m
        entries.append(pooled(windows(kv, m), windows(z, m)))
        if not keep:
            kv, z = old if lose and S == 0 else (kv[:, S * m:], z[:, S * m:])
    if flush and kv.shape[1]:
        entries.append((z.softmax(1) * kv).sum(1, keepdim=True))
    return torch.cat(entries, 1)


def _stream_cases(rng):
    def arguments(lengths, m, c=4, d=5):
        chunks = [torch.randn(2, T, d, generator=rng) for T in lengths]
        wkv, wgate = torch.randn(c, d, generator=rng), torch.randn(c, d, generator=rng)
        return chunks, wkv, wgate, torch.randn(m, c, generator=rng)

    yield "all at once, a multiple of m", arguments([12], 4)
    yield "all at once, three tokens wait", arguments([11], 4)
    yield "chunks of whole windows", arguments([4, 8, 4], 4)
    yield "chunks of any length", arguments([6, 5, 3, 7], 4)
    yield "token by token", arguments([1] * 10, 3)


CHECKS = [
    Check(
        "hca.compress", plain.compress, _compress_cases,
        mistakes={
            "the softmax runs over the channels: in each channel, the weights of a window's m "
            "tokens must sum to 1": _compress(pool=lambda kv, z: pooled(kv, z, dim=3)),
            "the softmax runs over the windows: an entry knows only its own m tokens":
                _compress(pool=lambda kv, z: pooled(kv, z, dim=1)),
            "the softmax runs over the whole sequence: each window has its own softmax":
                _compress(pool=_pooled_over_the_sequence),
            "ape is indexed by the absolute position: it has m rows, one for each place in a "
            "window, t mod m": _by_absolute_position,
            "ape is added before the tokens are cut into windows and its shapes do not fit: cut "
            "first (B S m c), then add": _added_before_the_cut,
            "ape is added to kv: it belongs to the gate, z = wgate x + ape":
                _compress(add=lambda kv, z, ape: (kv + ape, z)),
            "ape has no effect: it is missing, or all tokens of a window get the same row, which a "
            "softmax ignores; row j belongs to place j of each window":
                _compress(add=lambda kv, z, ape: (kv, z)),
            "the gate is not used: this is the mean of the window's tokens, all weights 1/m":
                _compress(pool=lambda kv, z: kv.mean(dim=2)),
            "the gate's matrix is not used: the weights come from ape alone":
                _compress(add=lambda kv, z, ape: (kv, ape.expand_as(z))),
            "the weights are sigmoids: take a softmax, so that they sum to 1 over the window":
                _compress(pool=lambda kv, z: (z.sigmoid() * kv).sum(dim=2)),
            "wkv and wgate are exchanged":
                lambda x, wkv, wgate, *rest: plain.compress(x, wgate, wkv, *rest),
            "the norm comes before the pooling: pool first, then RMS": _norm_first,
            "the norm is missing": _compress(norm=without_norm),
            "the norm's weight is missing": _compress(norm=without_weight),
            "the windows are cut across: window i has the neighbours i m to i m + m - 1": _strided,
            "an entry is made of the tokens after the last complete window: they wait, and give "
            "none": _ragged,
        },
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
            "the wrong base: layers with compression use compress_rope_theta, not rope_theta":
                lambda entries, m, config: plain.place(
                    entries, m, config.replace(compress_rope_theta=config.rope_theta)),
            "the wrong base and no YaRN: these are the frequencies of a layer without compression":
                lambda entries, m, config: place_with(entries, m, config, w=frequencies(config, 0)),
            "YaRN is missing: take the frequencies that frequencies(config, m) gives":
                _without_yarn,
            "entry i is at the last position of its window: it belongs at the first, i m":
                _at(lambda i, m: i * m + m - 1),
            "entry i is at position i: entries are m tokens apart, so it is i m":
                _at(lambda i, m: i),
            "entry i is one window late, at (i + 1) m: it is i m": _at(lambda i, m: (i + 1) * m),
            "entry i is in the middle of its window: it is at the first position, i m":
                _at(lambda i, m: i * m + m // 2),
            "the first channels rotate: only the last rope_head_dim channels do":
                lambda *args: place_with(*args, rotate=rotate_first),
            "channel j is paired with channel j + r/2: V4 pairs neighbours, (2j, 2j + 1)":
                lambda *args: place_with(*args, rotate=rotate_halves),
            "the rotation goes backwards: the angle is + position times frequency":
                _at(lambda i, m: -i * m),
            "nothing rotates": lambda entries, m, config: entries.clone(),
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
            "a window is visible before it is complete: the query would read tokens that come "
            "after it": early,
            "one token too late: a window's last token may read the window's entry, it ends with "
            "that token itself": late,
            "one token too early: the query before the last token of a window sees it already":
                lambda T, S, m: visible(T + 1, S, m)[1:],
            "the mask is the wrong way round: True where the query sees the entry":
                lambda *args: ~visible(*args),
            "every entry is visible to every query": everything,
            "only the latest complete entry is visible: HCA sees all of them":
                lambda T, S, m: torch.arange(S) == (torch.arange(1, T + 1) // m)[:, None] - 1,
            "rows are queries and columns are entries: this is transposed":
                lambda *args: visible(*args).mT,
        },
        hints=(
            "After the query at t there are t + 1 tokens, so floor((t + 1) / m) windows are "
            "complete.",
            "Entry s is visible when s < floor((t + 1) / m). Compare a row of s with a column of "
            "t.",
            "torch.arange(S) < (...)[:, None] is T x S, where ... is (torch.arange(T) + 1) // m.",
        ),
    ),
    Check(
        "hca.unseen", unseen, _unseen_cases,
        mistakes={
            "the sliding window is one token short: it holds t - w + 1 to t, the query's own token "
            "included": lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w + 2),
            "the sliding window is one token too long: it holds w tokens, t - w + 1 to t":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t - w),
            "the sliding window is not counted":
                lambda t, w, m: unseen(t, w, m, window=lambda t, w: t + 1),
            "the window that t itself is in counts as read: it is complete only with its last "
            "token":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m + 1),
            "a window that ends with t is complete: floor((t + 1) / m) windows are":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: t // m),
            "the entries are not counted":
                lambda t, w, m: unseen(t, w, m, complete=lambda t, m: 0),
            "tokens after t are in the list: a query never reads those":
                lambda t, w, m: unseen(t, w, m, past=-(t + 1) % m),
        },
        hints=(
            "Entries cover the positions 0 to m * floor((t + 1) / m) - 1. The sliding window "
            "covers t - w + 1 to t.",
            "So what is left lies between the two: from m * floor((t + 1) / m) up to t - w.",
            "list(range(first, last + 1)) is empty where first > last.",
        ),
    ),
    Check(
        "hca.attend", plain.attend, _attend_cases,
        mistakes={
            "`seen` is not used: a query reads only the keys that it sees":
                lambda q, kv, seen, sink: plain.attend(q, kv, torch.ones_like(seen), sink),
            "the mask is the wrong way round: True is where a query sees a key":
                lambda q, kv, seen, sink: plain.attend(q, kv, ~seen, sink),
            "hidden keys have the score 0, and exp(0) = 1 still counts: give them -inf":
                _attend(hidden=0.0),
            "the sink is missing: exp(sink) joins the denominator": _attend(weights=_no_sink),
            "the sink is added to the denominator as it is: it is a score, so exp(sink) joins":
                _attend(weights=_sink_not_exponentiated),
            "the scores are not divided by sqrt(c)": _attend(scale=1.0),
            "the scores are divided by c: divide by its root":
                lambda q, *rest: attend_with(q, *rest, scale=1 / q.shape[-1]),
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
            "a window's entry is read before the window is complete": _layer(far=early),
            "an entry is read one token too late: the window's last token may read it":
                _layer(far=late),
            "every query reads all entries, also those of later tokens": _layer(far=everything),
            "the sliding window is one key short: a query sees w keys, its own included":
                _layer(near=lambda T, w: plain.sees(T, w - 1)),
            "the sliding window has one key too many: t - w + 1 to t are w keys":
                _layer(near=lambda T, w: plain.sees(T, w + 1)),
            "the query does not see its own token: the sliding window includes t":
                _layer(near=lambda T, w: plain.sees(T, w + 1) & ~torch.eye(T, dtype=torch.bool)),
            "there is no sliding window: the query reads the keys of all earlier tokens":
                _layer(near=lambda T, w: plain.sees(T, T)),
            "the keys after the query are read":
                _layer(near=lambda T, w: plain.sees(T, w) | plain.sees(T, T).mT),
            "sliding window and entries have a softmax each: all share one":
                _layer(attend=_attend_apart),
            "the sink is missing: exp(sink) joins the denominator": _layer(sink_weights=_no_sink),
            "the entries are missing": _layer(use=(1, 0)),
            "the keys of the sliding window are missing": _layer(use=(0, 1)),
            "the entries are not placed: rotate them to the first positions of their windows":
                _layer(place=lambda entries, m, config: entries),
            "queries and keys rotate with the frequencies of a layer without compression":
                _layer(base=0),
            "the output is not rotated back by the query's position": _layer(back=False),
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
            "this still has both faults": lambda *a: stream(*a, restart=True, lose=True),
            "no token gets lost now, but ape still starts anew with each chunk: a token's place in "
            "its window is t mod m": lambda *a: stream(*a, restart=True),
            "ape is right now, but a chunk that completes no window is still forgotten: its tokens "
            "must wait too": lambda *a: stream(*a, lose=True),
            "nothing waits between chunks: each is compressed by itself":
                lambda *a: stream(*a, forget=True),
            "tokens that are in an entry already still wait: only those after the last complete "
            "window do": lambda *a: stream(*a, keep=True),
            "the tokens that wait at the end give an entry: they wait on":
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
    ),
]
