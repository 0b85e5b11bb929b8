"""Lesson 03: right answers written otherwise pass, slips of many kinds are named, the figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from minids.config import Config
from minids.learn.checks import hca as checks
from minids.learn.judge import check
from minids.model.attention import Attention
from minids.model.compressor import Compressor
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


def attend_by_loops(q, kv, entries, sink, w, m):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            keys = torch.cat([kv[b, max(0, t - w + 1):t + 1], entries[b, :(t + 1) // m]])
            e = (q[b, t] @ keys.mT / q.shape[-1] ** 0.5).exp()                           # H keys
            out[b, t] = e / (e.sum(-1) + sink.exp())[:, None] @ keys
    return out


def stream_at_once(chunks, wkv, wgate, ape):
    x, m = torch.cat(chunks, 1), len(ape)
    n = x.shape[1] // m
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    return ((z + ape).softmax(2) * kv).sum(2)


@pytest.mark.parametrize("name, attempt", [
    ("hca.compress", compress_by_loops), ("hca.place", place_by_package), ("hca.visible", visible_by_last_token),
    ("hca.unseen", unseen_by_ways), ("hca.attend", attend_by_loops), ("hca.stream", stream_at_once),
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


def attend_by_average(q, kv, entries, sink, w, m):
    no = torch.zeros_like(entries[:, :0])
    both = checks.attend(q, kv, entries, sink, w, m, use=(0, 1, 1))
    return checks.attend(q, kv, no, sink, w, m) + both


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
    ("hca.place", place_by_window_number, "entry i stands at position i:"),
    ("hca.place", place_with_the_other_base, "the wrong base and no YaRN"),
    ("hca.visible", lambda T, S, m: torch.arange(S) * m <= torch.arange(T)[:, None], "before it is complete"),
    ("hca.visible", lambda T, S, m: (torch.arange(S) + 1) * m <= torch.arange(T)[:, None], "one token too late"),
    ("hca.unseen", lambda t, w, m: list(range(t // m * m, t - w + 1)), "a window that ends with t is complete"),
    ("hca.attend", attend_by_average, "a softmax each"),
    ("hca.stream", colleagues_stream, "In the case"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


def lively(module, seed):
    rng = torch.Generator().manual_seed(seed)
    for p in module.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, generator=rng) * (1 if p.ndim == 1 else 2 * p.shape[-1] ** -0.5))
    return module


def test_the_references_are_the_package():
    """compress and place make minids' compressor, attend its HCA layer's core."""
    config = Config.nano()
    x = torch.randn(2, 75, config.dim, generator=torch.Generator().manual_seed(1))
    comp = lively(Compressor(config, 16, config.head_dim), 2)
    entries = checks.compress(x, comp.wkv.weight, comp.wgate.weight, comp.ape, comp.norm.weight, config.norm_eps)
    torch.testing.assert_close(checks.place(entries, 16, config), comp(x), atol=1e-4, rtol=1e-4)
    layer = lively(Attention(config, 16), 3)
    before = layer(x)
    layer.forward = None    # only its parts from here on
    rot = layer.rotary(0, 75, "cpu")
    q = nn.functional.rms_norm(layer.wq_b(layer.q_norm(layer.wq_a(x))).view(2, 75, config.n_heads, -1), (config.head_dim,),
                               eps=config.norm_eps)
    kv = rotate(layer.kv_norm(layer.wkv(x)), rot)
    o = checks.attend(rotate(q, rot[:, None]), kv, layer.compressor(x), layer.attn_sink, config.window_size, 16)
    o = rotate(o, rot[:, None].conj()).reshape(2, 75, config.o_groups, -1)
    o = torch.einsum("btgi,goi->btgo", o, layer.wo_a.weight.unflatten(0, (config.o_groups, -1)))
    torch.testing.assert_close(layer.wo_b(o.flatten(2)), before, atol=1e-4, rtol=1e-4)


def test_no_row_of_ape_for_a_whole_window_matters():
    """The claim of the check's message, and the lesson's negative control: softmax ignores what all tokens get."""
    x, wkv, wgate, ape, weight, eps = list(checks._compress_cases(torch.Generator().manual_seed(4)))[1][1]
    shifted = checks.compress(x, wkv, wgate, ape + 3.0, weight, eps)
    torch.testing.assert_close(shifted, checks.compress(x, wkv, wgate, ape, weight, eps))


def test_a_sliding_window_of_m_minus_1_leaves_no_gap():
    for m in (3, 4, 8):
        assert not any(checks.unseen(t, m - 1, m) for t in range(5 * m))
        assert any(checks.unseen(t, m - 2, m) for t in range(5 * m))


def test_ways_agree_with_what_the_checks_say():
    ways = hca.ways(24, 4, 6)
    entry = checks.visible(24, 4, 6).repeat_interleave(6, 1)
    assert torch.equal((ways == 1) | (ways == 2), entry)
    assert [s for s, way in enumerate(ways[16].tolist()) if way == 4] == checks.unseen(16, 4, 6) != []


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
