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
    return layer(x).detach()


def stream_at_once(chunks, wkv, wgate, ape):
    x, m = torch.cat(chunks, 1), len(ape)
    n = x.shape[1] // m
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    return ((z + ape).softmax(2) * kv).sum(2)


@pytest.mark.parametrize("name, attempt", [
    ("hca.compress", compress_by_loops), ("hca.place", place_by_package),
    ("hca.visible", visible_by_last_token),
    ("hca.unseen", unseen_by_ways), ("hca.attend", attend_by_loops),
    ("hca.layer", layer_by_package), ("hca.stream", stream_at_once),
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


def colleagues_stream(chunks, wkv, wgate, ape):
    m, waiting, pooled = len(ape), None, []
    for x in chunks:
        kv, z = x @ wkv.T, x @ wgate.T + ape[torch.arange(x.shape[1]) % m]
        if waiting is not None:
            kv, z = (torch.cat([old, new], 1) for old, new in zip(waiting, (kv, z)))
        n = kv.shape[1] // m
        if n == 0:
            continue
        waiting = kv[:, n * m:], z[:, n * m:]
        kv, z = (t[:, :n * m].unflatten(1, (n, m)) for t in (kv, z))
        pooled.append((z.softmax(2) * kv).sum(2))
    return torch.cat(pooled, 1)


@pytest.mark.parametrize("name, attempt, words", [
    ("hca.compress", compress_over_channels, "the softmax runs over the channels"),
    ("hca.compress", compress_absolute, "ape is indexed by the absolute position"),
    ("hca.compress", compress_ape_of_the_window, "ape has no effect"),
    ("hca.compress", compress_mean, "this is the mean of the window's tokens"),
    ("hca.compress", lambda x, wkv, wgate, ape, weight, eps: x, "expected shape"),
    ("hca.place", place_by_window_number, "entry i is at position i:"),
    ("hca.place", place_with_the_other_base, "the wrong base and no YaRN"),
    ("hca.visible", lambda T, S, m: torch.arange(S) * m <= torch.arange(T)[:, None],
     "before it is complete"),
    ("hca.visible", lambda T, S, m: (torch.arange(S) + 1) * m <= torch.arange(T)[:, None],
     "one token too late"),
    ("hca.unseen", lambda t, w, m: list(range(t // m * m, t - w + 1)),
     "a window that ends with t is complete"),
    ("hca.attend", attend_with_zeros, "hidden keys have the score 0"),
    ("hca.layer", layer_with_two_softmaxes, "a softmax each"),
    ("hca.stream", colleagues_stream, "In the case"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


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
