"""Lesson 03: right answers written otherwise pass, slips are named, the figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch

from minids import plain
from minids.learn.checks import hca as checks
from minids.learn.judge import check
from minids.model.attention import Attention
from minids.model.rotary import Rotary, rotate
from minids.show import hca


def compress_by_loops(x, wkv, wgate, ape, weight, eps):
    m, entries = len(ape), []
    for i in range(x.shape[1] // m):
        window = x[:, i * m:(i + 1) * m]
        e = (window @ wgate.mT + ape).exp()
        p = e / e.sum(1, keepdim=True)
        y = torch.einsum("bmc,bmc->bc", p, window @ wkv.mT)
        entries.append(y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight)
    return torch.stack(entries, 1) if entries else x.new_zeros(len(x), 0, len(wkv))


def place_by_package(entries, m, config):
    return rotate(entries, Rotary(config, m, entries.shape[-1])(0, entries.shape[1], "cpu", step=m))


def visible_by_last_token(T, S, m):
    return torch.tensor([[s * m + m - 1 <= t for s in range(S)] for t in range(T)])


def unseen_by_ways(t, w, m):
    return [s for s, way in enumerate(hca.ways(t + 1, w, m)[t].tolist()) if way == 4]


def attend_by_loops(q, kv, seen, sink):
    out = torch.zeros_like(q)
    B, T = q.shape[:2]
    seen = seen.expand(B, T, -1)
    for b in range(B):
        for t in range(T):
            keys = kv[b, seen[b, t]]
            e = (q[b, t] @ keys.mT / q.shape[-1] ** 0.5).exp()                           # H keys
            out[b, t] = e / (e.sum(-1) + sink.exp())[:, None] @ keys
    return out


def layer_by_package(attn, x):
    layer = Attention(attn.config, attn.ratio).eval()
    layer.load_state_dict(attn.state_dict())
    return layer(x)


def stream_that_keeps_tokens(chunks, wkv, wgate, ape):
    """What waits are tokens, not their kv and gate."""
    m, waiting, entries = len(ape), chunks[0][:, :0], []
    for x in chunks:
        waiting = torch.cat([waiting, x], 1)
        while waiting.shape[1] >= m:
            window, waiting = waiting[:, :m], waiting[:, m:]
            p = (window @ wgate.T + ape).softmax(1)
            entries.append((p * (window @ wkv.T)).sum(1))
    return torch.stack(entries, 1)


def stream_token_by_token(chunks, wkv, wgate, ape):
    """Running sums over the window under way."""
    m, t, entries, above, below = len(ape), 0, [], 0, 0
    for n in range(len(chunks)):
        for x in chunks[n].unbind(1):
            e = (x @ wgate.T + ape[t % m]).exp()
            above, below = above + e * (x @ wkv.T), below + e
            t += 1
            if t % m == 0:
                entries.append(above / below)
                above = below = 0
    return torch.stack(entries, 1)


def stream_with_the_first_apart(chunks, wkv, wgate, ape):
    def cut(x):
        n = x.shape[1] // len(ape) * len(ape)
        return stream_at_once([x[:, :n]], wkv, wgate, ape), x[:, n:]
    entries, waiting = cut(chunks[0])
    for x in chunks[1:]:
        more, waiting = cut(torch.cat([waiting, x], 1))
        entries = torch.cat([entries, more], 1)
    return entries


def stream_at_once(chunks, wkv, wgate, ape):
    x, m = torch.cat(list(chunks), 1), len(ape)
    n = x.shape[1] // m
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    return ((z + ape).softmax(2) * kv).sum(2)


def compress_by_einsum(x, wkv, wgate, ape, weight, eps):
    m, S = len(ape), x.shape[1] // len(ape)
    x = x[:, :S * m].reshape(len(x), S, m, x.shape[-1])
    gate = torch.einsum("bsmd,cd->bsmc", x, wgate) + ape.expand(1, S, *ape.shape)
    p = torch.exp(gate - gate.logsumexp(2, keepdim=True))
    e = torch.einsum("bsmc,bsmd,cd->bsc", p, x, wkv)
    return e / ((e * e).sum(-1, keepdim=True) / len(weight) + eps).sqrt() * weight


def place_one_by_one(entries, m, config):
    w = plain.frequencies(config, m)
    return torch.stack([plain.rotate(e, float(i * m) * w)
                        for i, e in enumerate(entries.unbind(1))], 1)


def visible_by_entries(T, S, m):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for s in range(S):
        mask[(s + 1) * m - 1:, s] = True
    return mask


def unseen_by_search(t, w, m):
    read = set(range(max(0, t - w + 1), t + 1))
    for s in range(t + 1):
        if (s + 1) * m - 1 <= t:
            read.update(range(s * m, s * m + m))
    return [s for s in range(t + 1) if s not in read]


def attend_by_adding(q, kv, seen, sink):
    """The mask as numbers that are added, and the sink as one more key with the value 0."""
    B, T, H, c = q.shape
    added = torch.zeros(seen.shape).masked_fill(~seen, -1e9)
    scores = (q / c ** 0.5) @ kv.mT[:, None] + added.unsqueeze(-2)
    column = sink.view(1, 1, H, 1).repeat(B, T, 1, 1)
    p = torch.cat([column, scores], -1).softmax(-1)
    return p @ torch.nn.functional.pad(kv, (0, 0, 1, 0))[:, None]


@pytest.mark.parametrize("name, attempt", [
    ("hca.compress", compress_by_loops), ("hca.compress", compress_by_einsum),
    ("hca.place", place_by_package), ("hca.place", place_one_by_one),
    ("hca.visible", visible_by_last_token), ("hca.visible", visible_by_entries),
    ("hca.unseen", unseen_by_ways), ("hca.unseen", unseen_by_search),
    ("hca.unseen", lambda *args: tuple(unseen_by_search(*args))),
    ("hca.attend", attend_by_loops), ("hca.attend", attend_by_adding),
    ("hca.layer", layer_by_package), ("hca.stream", stream_that_keeps_tokens),
    ("hca.stream", stream_token_by_token), ("hca.stream", stream_with_the_first_apart),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def compress_over_channels(x, wkv, wgate, ape, weight, eps):
    m, n = len(ape), x.shape[1] // len(ape)
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    e = torch.einsum("bnmc,bnmc->bnc", (z + ape).softmax(-1), kv)
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


def compress_absolute(x, wkv, wgate, ape, weight, eps):
    z = x @ wgate.mT + ape[torch.arange(x.shape[1])]
    m, n = len(ape), x.shape[1] // len(ape)
    p = z[:, :n * m].unflatten(1, (n, m)).softmax(2)
    e = (p * (x @ wkv.mT)[:, :n * m].unflatten(1, (n, m))).sum(2)
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


def compress_ape_of_the_window(x, wkv, wgate, ape, weight, eps):
    m, n = len(ape), x.shape[1] // len(ape)
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    e = ((z + ape[torch.arange(n) % m][:, None]).softmax(2) * kv).sum(2)
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


def compress_mean(x, wkv, wgate, ape, weight, eps):
    m, n = len(ape), x.shape[1] // len(ape)
    e = (x[:, :n * m].unflatten(1, (n, m)).mean(2)) @ wkv.mT
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


def place_by_window_number(entries, m, config):
    return rotate(entries, Rotary(config, m, entries.shape[-1])(0, entries.shape[1], "cpu"))


def place_with_the_other_base(entries, m, config):
    return rotate(entries, Rotary(config, 0, entries.shape[-1])(0, entries.shape[1], "cpu", step=m))


def layer_with_two_softmaxes(attn, x):
    config, m, T = attn.config, attn.ratio, x.shape[1]
    theta = plain.angles(torch.arange(T), plain.frequencies(config, m))
    q, keys = plain.queries(attn, x, theta), plain.keys(attn, x, theta)
    entries = plain.compressed_entries(attn.compressor, x, config)
    near = plain.attend(q, keys, plain.sees(T, config.window_size), attn.attn_sink)
    far = plain.attend(q, entries, plain.visible(T, entries.shape[1], m), attn.attn_sink)
    o = plain.rotate(near + far, -theta[:, None])
    return plain.grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def attend_with_zeros(q, kv, seen, sink):
    scores = torch.einsum("bthc,bsc->bths", q, kv) / q.shape[-1] ** 0.5 * seen[..., None, :]
    return torch.einsum("bths,bsc->bthc", plain.sink_weights(scores, sink), kv)


def colleagues_stream(chunks, wkv, wgate, ape, place=False, keep=False):
    """The lesson's version; `place` and `keep` repair its two faults."""
    m, waiting, pooled, t = len(ape), None, [], 0
    for x in chunks:
        kv, z = x @ wkv.T, x @ wgate.T + ape[(t * place + torch.arange(x.shape[1])) % m]
        t += x.shape[1]
        if waiting is not None:
            kv, z = (torch.cat([old, new], 1) for old, new in zip(waiting, (kv, z)))
        n = kv.shape[1] // m
        if n == 0 and not keep:
            continue
        waiting = kv[:, n * m:], z[:, n * m:]
        if n:
            kv, z = (t[:, :n * m].unflatten(1, (n, m)) for t in (kv, z))
            pooled.append((z.softmax(2) * kv).sum(2))
    return torch.cat(pooled, 1)


def colleagues_stream_with_ape_again(chunks, wkv, wgate, ape, keep=True):
    """Ape is added after what waits has joined, which has it already."""
    m, waiting, pooled = len(ape), None, []
    for x in chunks:
        kv, z = x @ wkv.T, x @ wgate.T
        if waiting is not None:
            kv, z = (torch.cat([old, new], 1) for old, new in zip(waiting, (kv, z)))
        z = z + ape[torch.arange(z.shape[1]) % m]
        n = kv.shape[1] // m
        if n or keep:
            waiting = kv[:, n * m:], z[:, n * m:]
        if n:
            kv, z = (t[:, :n * m].unflatten(1, (n, m)) for t in (kv, z))
            pooled.append((z.softmax(2) * kv).sum(2))
    return torch.cat(pooled, 1)


def stream_over(axis):
    """Right, but for the axis of the softmax."""
    def attempt(chunks, wkv, wgate, ape):
        m, x, pooled = len(ape), chunks[0][:, :0], []
        for chunk in chunks:
            x = torch.cat([x, chunk], 1)
            n = x.shape[1] // m
            kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
            pooled.append(((z + ape).softmax(axis) * kv).sum(2))
            x = x[:, n * m:]
        return torch.cat(pooled, 1)
    return attempt


def attend_with_mask(view):
    def attempt(q, kv, seen, sink):
        scores = torch.einsum("bthc,bsc->bths", q, kv) / q.shape[-1] ** 0.5
        p = plain.sink_weights(scores.masked_fill(~view(seen), -torch.inf), sink)
        return torch.einsum("bths,bsc->bthc", p, kv)
    return attempt


def layer_with_mask_of_entries_first(attn, x):
    def both(T, n, m):
        return torch.cat([plain.visible(T, n, m), plain.sees(T, attn.config.window_size)], 1)
    return hca_layer(attn, x, near=torch.ones(x.shape[1], 0).bool(), far=both)


def stream_without_waiting(chunks, wkv, wgate, ape):
    return torch.cat([stream_at_once([x], wkv, wgate, ape) for x in chunks], 1)


def compress(x, wkv, wgate, ape, weight, eps, gate=None, norm=None, take=None, softmax_over=2):
    """`compress` as a learner may write it, with slips."""
    m, n = len(ape), x.shape[1] // len(ape)
    x = take(x, n * m) if take else x[:, :n * m]
    kv, z = ((x @ w.mT).unflatten(1, (n, m)) for w in (wkv, wgate))
    z, kv = gate(z, kv, ape) if gate else (z + ape, kv)
    e = (z.softmax(softmax_over) * kv).sum(2)
    if norm:
        return norm(e, weight, eps)
    return e * torch.rsqrt(e.square().mean(-1, keepdim=True) + eps) * weight


def slip(function, **changes):
    return lambda *args: function(*args, **changes)


def attend(q, kv, seen, sink, scale=None, fill=-torch.inf, weights=plain.sink_weights):
    scores = torch.einsum("bthc,bsc->bths", q, kv) * (scale or q.shape[-1] ** -0.5)
    scores = scores.masked_fill(~seen[..., None, :], fill)
    return torch.einsum("bths,bsc->bthc", weights(scores, sink), kv)


def attend_masked_late(q, kv, seen, sink):
    scores = torch.einsum("bthc,bsc->bths", q, kv) / q.shape[-1] ** 0.5
    p = plain.sink_weights(scores, sink) * seen[..., None, :]
    return torch.einsum("bths,bsc->bthc", p, kv)


def attend_with_heads_at_1(q, kv, seen, sink):
    scores = torch.einsum("bthc,bsc->bths", q, kv) / q.shape[-1] ** 0.5
    p = plain.sink_weights(scores.masked_fill(~seen[:, None], -torch.inf), sink)
    return torch.einsum("bths,bsc->bthc", p, kv)


def hca_layer(attn, x, near=None, far=None, back=-1, order=1, placed=True, ratio=None):
    """An HCA layer written apart from the checks' own one, with the slips of a learner."""
    config, m, T, comp = attn.config, attn.ratio, x.shape[1], attn.compressor
    theta = plain.angles(torch.arange(T), plain.frequencies(config, m if ratio is None else ratio))
    entries = compress(x, comp.wkv.weight, comp.wgate.weight, comp.ape, comp.norm.weight,
                       config.norm_eps)
    entries = place_one_by_one(entries, m, config) if placed and entries.shape[1] else entries
    n = entries.shape[1]
    kv = torch.cat([plain.keys(attn, x, theta), entries][::order], 1)
    near = plain.sees(T, config.window_size) if near is None else near
    seen = torch.cat([near, plain.visible(T, n, m) if far is None else far(T, n, m)], 1)
    o = plain.attend(plain.queries(attn, x, theta), kv, seen, attn.attn_sink)
    o = plain.rotate(o, back * theta[:, None])
    return plain.grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)


def test_the_separate_layer_is_right():
    assert check("hca.layer", hca_layer) is hca_layer


@pytest.mark.parametrize("name, attempt, words", [
    ("hca.compress", compress_over_channels, "your softmax runs over the channels"),
    ("hca.compress", slip(compress, softmax_over=3), "your softmax runs over the channels"),
    ("hca.compress", slip(compress, softmax_over=1), "your softmax runs over the windows"),
    ("hca.compress", compress_absolute, "index ape by the absolute position"),
    ("hca.compress", compress_ape_of_the_window, "ape has no effect"),
    ("hca.compress", slip(compress, gate=lambda z, kv, ape: (z, kv)), "ape has no effect"),
    ("hca.compress", compress_mean, "do not use the gate"),
    ("hca.compress", slip(compress, gate=lambda z, kv, ape: (z, kv + ape)), "add ape to kv;"),
    ("hca.compress", slip(compress, norm=lambda e, weight, eps: e), "the norm and its weight"),
    ("hca.compress", slip(compress, norm=lambda e, weight, eps: e * weight), "leave out the RMS"),
    ("hca.compress", slip(compress, norm=lambda e, weight, eps: plain.rms(e, eps)),
     "leave out the norm's weight"),
    ("hca.compress", slip(compress, norm=lambda e, weight, eps: plain.rms(e) * weight),
     "leave out eps"),
    ("hca.compress", slip(compress, take=lambda x, n: x[:, x.shape[1] - n:]),
     "drop tokens in front"),
    ("hca.compress", lambda x, wkv, wgate, ape, weight, eps: x, "expected shape"),
    ("hca.place", place_by_window_number, "your entry i is at position i;"),
    ("hca.place", place_with_the_other_base, "another base and no YaRN"),
    ("hca.place", lambda e, m, config: plain.rotate(e, plain.angles(
        torch.arange(e.shape[1]) * m + m - 1, plain.frequencies(config, m))), "last position"),
    ("hca.place", lambda e, m, config: plain.rotate(e, -plain.angles(
        torch.arange(e.shape[1]) * m, plain.frequencies(config, m))), "rotate backwards"),
    ("hca.visible", lambda T, S, m: torch.arange(S) * m <= torch.arange(T)[:, None],
     "before it is complete"),
    ("hca.visible", lambda T, S, m: torch.arange(S) < ((torch.arange(T) + 1) / m)[:, None],
     "before it is complete"),
    ("hca.visible", lambda T, S, m: (torch.arange(S) + 1) * m <= torch.arange(T)[:, None],
     "one token too late"),
    ("hca.visible", lambda T, S, m: torch.arange(S) < (torch.arange(T) // m)[:, None],
     "one token too late"),
    ("hca.visible", lambda T, S, m: torch.arange(S) <= ((torch.arange(T) + 1) // m)[:, None],
     "adds the window under way"),
    ("hca.visible", lambda T, S, m: torch.arange(S)[:, None] < (torch.arange(T) + 1) // m,
     "transposed"),
    ("hca.visible", lambda T, S, m: torch.arange(S) < (torch.arange(T)[:, None] + 1 // m),
     "lacks parentheses"),
    ("hca.visible", lambda T, S, m: (torch.arange(S) + 2) * m <= torch.arange(T)[:, None] + 1,
     "one window late"),
    ("hca.unseen", lambda t, w, m: [s for s in range(t + 1)
                                    if not (t - w < s and s // m < (t + 1) // m)], "with OR"),
    ("hca.unseen", lambda t, w, m: list(range(t // m * m, t - w + 1)),
     "leave out a window that ends with t"),
    ("hca.unseen", lambda t, w, m: list(range((t + 1) // m * m, t - w)), "one token too long"),
    ("hca.unseen", lambda t, w, m: list(range((t + 1) // m * m, t - w + 2)), "one token short"),
    ("hca.unseen", lambda t, w, m: list(range((t + 1) // m * m, t + 1)), "the sliding window"),
    ("hca.unseen", lambda t, w, m: list(range(0, t - w + 1)), "do not count the entries"),
    ("hca.unseen", lambda t, w, m: list(range((t + 1) // m, t - w + 1)), "multiply by m"),
    ("hca.unseen", lambda t, w, m: max(0, t - w + 1 - (t + 1) // m * m), "how many there are"),
    ("hca.attend", attend_with_zeros, "hidden keys the score 0"),
    ("hca.attend", slip(attend, scale=1.0), "do not divide the scores"),
    ("hca.attend", lambda q, kv, seen, sink: attend(q, kv, torch.ones_like(seen), sink),
     "do not use `seen`"),
    ("hca.attend", lambda q, kv, seen, sink: attend(q, kv, ~seen, sink), "the wrong way round"),
    ("hca.attend", slip(attend, fill=-1e9, weights=lambda scores, sink: scores.softmax(-1)),
     "leave the sink out"),
    ("hca.attend", attend_masked_late, "and then hide some"),
    ("hca.attend", attend_with_heads_at_1, "the heads' axis"),
    ("hca.attend", attend_with_mask(lambda seen: seen), "has no axis for the heads"),
    ("hca.attend", attend_with_mask(lambda seen: seen[None, :, None]), "an axis for the batch"),
    ("hca.attend", attend_with_mask(lambda seen: seen.unsqueeze(-1)), "at the end of `seen`"),
    ("hca.layer", layer_with_mask_of_entries_first, "your mask has the entries first"),
    ("hca.layer", layer_with_two_softmaxes, "a softmax each"),
    ("hca.layer", slip(hca_layer, back=0), "do not rotate the output back"),
    ("hca.layer", slip(hca_layer, back=1), "rotate it BACK"),
    ("hca.layer", slip(hca_layer, placed=False), "do not place the entries"),
    ("hca.layer", slip(hca_layer, order=-1), "in different order"),
    ("hca.layer", slip(hca_layer, ratio=0), "a layer without compression"),
    ("hca.layer", slip(hca_layer, far=lambda T, n, m: torch.ones(T, n).bool()),
     "read all entries"),
    ("hca.layer", lambda attn, x: hca_layer(attn, x, near=plain.sees(x.shape[1], 10_000)),
     "have no sliding window"),
    ("hca.layer", lambda attn, x: hca_layer(
        attn, x, near=torch.ones(x.shape[1], x.shape[1]).bool(),
        far=lambda T, n, m: torch.ones(T, n).bool()), "have no mask at all"),
    ("hca.stream", colleagues_stream, "still has both faults"),
    ("hca.stream", slip(colleagues_stream, keep=True), "ape still starts anew"),
    ("hca.stream", slip(colleagues_stream, place=True), "is still forgotten"),
    ("hca.stream", colleagues_stream_with_ape_again, "Likely: no token gets lost now, but tokens "
     "that wait get ape once more"),
    ("hca.stream", slip(colleagues_stream_with_ape_again, keep=False),
     "Likely: tokens that wait get ape once more with each chunk, and a chunk"),
    ("hca.stream", stream_over(-1), "your softmax runs over the channels"),
    ("hca.stream", stream_over(1), "your softmax runs over the windows"),
    ("hca.stream", stream_at_once, "wait for the last chunk"),
    ("hca.stream", stream_without_waiting, "each is compressed by itself"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_chunks_that_arrive_lose_what_is_in_an_entry_and_nothing_else():
    """Of 3, 3 and 4 tokens with m = 4, four are complete when the third chunk is taken."""
    given = [torch.ones(1, n, 2) for n in (3, 3, 4)]
    chunks = checks.Arriving(given, 4)
    first, second, third = chunks
    assert not first.any() and not second[:, :1].any() and second[:, 1:].all() and third.all()
    assert all(x.all() for x in given) and len(chunks) == 3 and chunks[-1].all()
    assert all(x.all() for x in chunks[1:])


def test_no_row_of_ape_for_a_whole_window_matters():
    """What the message and the lesson's control say: softmax ignores what all tokens get."""
    _, (_, arguments), *_ = checks._compress_cases(torch.Generator().manual_seed(4))
    x, wkv, wgate, ape, weight, eps = arguments
    shifted = plain.compress(x, wkv, wgate, ape + 3.0, weight, eps)
    torch.testing.assert_close(shifted, plain.compress(x, wkv, wgate, ape, weight, eps))


def test_a_sliding_window_of_m_minus_1_leaves_no_gap():
    for m in (3, 4, 8):
        assert not any(checks.unseen(t, m - 1, m) for t in range(5 * m))
        assert any(checks.unseen(t, m - 2, m) for t in range(5 * m))


def test_ways_agree_with_what_the_checks_say():
    ways = hca.ways(24, 4, 6)
    entry = plain.visible(24, 4, 6).repeat_interleave(6, 1)
    assert torch.equal((ways == 1) | (ways == 2), entry)
    unread = [s for s, way in enumerate(ways[16].tolist()) if way == 4]
    assert unread == checks.unseen(16, 4, 6) != []


@pytest.mark.slow
def test_the_figures_draw():
    line = [0.2, 0.4]
    for figure in (hca.plot_reading(13, 4, 8, 32), hca.plot_reach(16, 4, [4, 3, 2]),
                   hca.plot_periods({"a": [10.0, 1e6]}, 0, 1, 100, 1000),
                   hca.plot_changes({"a": torch.eye(8), "b": torch.eye(8)}, 4),
                   hca.plot_halves({"a": [(2.0, 2.0), (1.0, 1.0)]}, 2.8),
                   hca.plot_tasks({"a": {"mean": line}, "b": {"mean": line}},
                                  {"a": 0.1, "b": None}),
                   hca.plot_weights({"a": torch.rand(4, 3), "b": torch.rand(4, 3)}),
                   hca.plot_recovery({"a": line}, 0.1), hca.plot_damage({"a": (0.1, 0.01)}),
                   hca.plot_cache([1024, 2048], {"a": [1, 2]}, 576)):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
