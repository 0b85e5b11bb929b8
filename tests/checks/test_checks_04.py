"""Lesson 04: right answers written otherwise pass, slips of many kinds are named."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import cost, plain
from minids.learn.checks import csa as checks
from minids.learn.checks import find
from minids.learn.judge import check
from minids.model.indexer import index_divergence
from minids.show import csa


def compress_by_loops(x, wkv, wgate, ape, weight, eps):
    m, c, entries = len(ape), len(weight), []
    kv, z = x @ wkv.mT, x @ wgate.mT
    for i in range(x.shape[1] // m):
        slots = [(kv[:, t, c:], z[:, t, c:] + ape[t % m, c:]) for t in range(i * m, i * m + m)]
        if i:
            slots += [(kv[:, t, :c], z[:, t, :c] + ape[t % m, :c]) for t in range(i * m - m, i * m)]
        e = torch.stack([gate.exp() for _, gate in slots])
        y = (e * torch.stack([value for value, _ in slots])).sum(0) / e.sum(0)
        entries.append(y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight)
    return torch.stack(entries, 1) if entries else x.new_zeros(len(x), 0, c)


def scores_head_by_head(x, latent, index_keys, wq_b, weights_proj, theta):
    Hi, ci = len(weights_proj), index_keys.shape[-1]
    total = 0
    for h in range(Hi):
        q = plain.rotate(latent @ wq_b[h * ci:(h + 1) * ci].mT, theta)
        products = F.relu(q @ index_keys.mT)
        total = total + (x @ weights_proj[h])[..., None] * products / (ci * Hi) ** 0.5
    return total


def pick_by_sorting(scores, m, k):
    picked = torch.zeros_like(scores, dtype=torch.bool)
    for b in range(len(scores)):
        for t in range(scores.shape[1]):
            best = sorted(range(min((t + 1) // m, scores.shape[2])),
                          key=lambda s: -scores[b, t, s].item())[:k]
            picked[b, t, best] = True
    return picked


def divergence_by_package(p, scores, seen):
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    total, count = index_divergence(p, scores, mask)
    return total / count


def learn_by_package(indexer, x, qr, p, seen):
    x, qr = x.detach(), qr.detach()
    return divergence_by_package(p, indexer(x, qr, indexer.keys(x)), seen)


@pytest.mark.parametrize("name, attempt", [
    ("csa.compress", compress_by_loops), ("csa.scores", scores_head_by_head),
    ("csa.pick", pick_by_sorting),
    ("csa.divergence", divergence_by_package),
    ("csa.learn", checks.with_gradients(learn_by_package)),
    ("csa.operations", lambda config, n: cost.flops(config, n)["indexer"]),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def compress_with_zeros(x, wkv, wgate, ape, weight, eps):
    """The a-half of window 0 is filled with zeros, in kv and gate."""
    m, n, c = len(ape), x.shape[1] // len(ape), len(weight)
    kv, z = ((x @ w.mT)[:, :n * m].unflatten(1, (n, m)) for w in (wkv, wgate))
    z = z + ape
    slots = lambda t: torch.cat([F.pad(t[..., :c], (0, 0, 0, 0, 1, 0))[:, :n], t[..., c:]], 2)
    e = (slots(z).softmax(2) * slots(kv)).sum(2)
    return plain.rms_norm(e, weight, eps)


def no_relu(x, latent, index_keys, wq_b, weights_proj, theta):
    q = plain.rotate((latent @ wq_b.mT).unflatten(-1, (len(weights_proj), -1)), theta[:, None])
    weights = x @ weights_proj.mT / q[0, 0].numel() ** 0.5
    return torch.einsum("bth,bths->bts", weights, q @ index_keys.mT[:, None])


def mask_after_ranking(scores, m, k):
    best = scores.topk(min(k, scores.shape[2])).indices
    picked = F.one_hot(best, scores.shape[2]).sum(2).bool()
    return picked & plain.visible(*scores.shape[1:], m)


def reversed_kl(p, scores, seen):
    target = p.sum(2)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-20)
    q = scores.masked_fill(~seen, -1e9).softmax(-1)
    kl = torch.where(seen, q * (q.clamp_min(1e-20) / target.clamp_min(1e-20)).log(), 0.0).sum(-1)
    return kl[:, seen.any(-1)].mean()


def colleagues_learn(indexer, x, qr, p, seen):
    target = p.sum(2)
    log_q = indexer(x, qr, indexer.keys(x)).masked_fill(~seen, -1e9).log_softmax(-1)
    kl = log_q.exp() * (log_q - target.clamp_min(1e-20).log())
    return (kl * seen).sum(-1)[:, seen.any(-1)].mean()


def colleagues_learn_detached(indexer, x, qr, p, seen):
    return colleagues_learn(indexer, x.detach(), qr.detach(), p.detach(), seen)


@pytest.mark.parametrize("name, attempt, words", [
    ("csa.compress", compress_with_zeros, "the absent a-half of window 0 counts with weight"),
    ("csa.compress", lambda x, wkv, wgate, ape, weight, eps: x, "expected shape"),
    ("csa.scores", no_relu, "the ReLU is missing"),
    ("csa.pick", mask_after_ranking, "mask first, then rank"),
    ("csa.pick", lambda scores, m, k: scores.topk(min(k, scores.shape[2])).indices,
     "expected shape"),
    ("csa.divergence", reversed_kl, "the KL is the wrong way round"),
    ("csa.learn", checks.with_gradients(colleagues_learn),
     "still to be fixed: the direction of the KL, the target's sum, what must be detached"),
    ("csa.learn", checks.with_gradients(colleagues_learn_detached),
     "still to be fixed: the direction of the KL, the target's sum."),
    ("csa.operations", lambda config, n: cost.flops(config, n)["indexer"] * 8, "values are not"),
])
def test_a_slip_is_named_or_shown(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


def test_the_loss_reaches_the_indexer_alone():
    indexer, *rest = list(checks._learn_cases(torch.Generator().manual_seed(5)))[0][1]
    result = find("csa.learn").reference(indexer, *rest)
    assert result["indexer"].norm() > 0
    assert not any(result[name].norm() for name in ("x", "qr", "p"))


def test_without_relu_all_heads_are_one():
    arguments = list(checks._scores_cases(torch.Generator().manual_seed(6)))[1][1]
    x, latent, index_keys, wq_b, weights_proj, theta = arguments
    q = (latent @ wq_b.mT).view(*x.shape[:2], len(weights_proj), -1)                     # B T Hi ci
    q = plain.rotate(q, theta[:, None])
    weights = x @ weights_proj.mT / wq_b.shape[0] ** 0.5
    expected = torch.einsum("bth,bthc->btc", weights, q) @ index_keys.mT
    torch.testing.assert_close(no_relu(*arguments), expected)


@pytest.mark.slow
def test_the_figures_draw():
    mass = torch.linspace(0, 1, 24).view(4, 6)
    shares = {"mass": [0.1, 0.2], "recall": [0.3, 0.4]}
    for figure in (csa.plot_overlap(4, 3, 1),
                   csa.plot_places({"with": dict.fromkeys("kv", [[0.9, 1.0]] * 4)}, 0.1),
                   csa.plot_leak({"a": [2.0, 1.0]}, 2.77),
                   csa.plot_coverage((4, 8), dict.fromkeys(csa.STYLES, shares)),
                   csa.plot_variants({"a": [0.1, 0.2]}, 8),
                   csa.plot_picks(mass, mass > 0.5, list("abcd"), list("uvwxyz")),
                   csa.plot_story(["word "] * 24, 24, 20, mass[3], mass[3] > 0.8, 6, 4),
                   csa.plot_operations([1024, 2048], {"a": [1e9, 2e9]})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
