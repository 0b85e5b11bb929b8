"""Muon: what the orthogonalisation does to singular values, and one step against the report's
algorithm written out."""

import torch
from tiny import SMALL
from twin import lively

from minids.pretrain import optim
from minids.pretrain.optim import Muon, for_muon, orthogonalise


def test_singular_values_become_one_and_vectors_stay():
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (3, 40, 24), (2, 32, 32)):
        G = torch.randn(shape)
        U, S, V = torch.linalg.svd(G, full_matrices=False)
        X = orthogonalise(G)
        assert (torch.linalg.svdvals(X) - 1).abs().max() < 0.02
        assert (X - U @ V).abs().max() < 0.02
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


def test_ten_thousandfold_smaller_directions_are_lifted():
    U, V = (torch.linalg.qr(torch.randn(16, 16))[0] for _ in range(2))
    G = U @ torch.diag(torch.logspace(0, -3.5, 16)) @ V
    assert (torch.linalg.svdvals(orthogonalise(G[None])[0]) > 0.5).all()


def test_groups_that_fit_the_cache_give_what_all_together_give(monkeypatch):
    G = torch.randn(5, 6, 10)
    together = orthogonalise(G)
    monkeypatch.setattr(optim, "CACHED", 2 * 60)
    torch.testing.assert_close(orthogonalise(G), together)


def test_two_steps_are_the_algorithm():
    """Each matrix by itself: equal shapes computed together change nothing."""
    torch.manual_seed(0)
    lr, mu, decay = 0.02, 0.95, 0.1
    weights = [torch.randn(6, 10), torch.randn(6, 10), torch.randn(10, 4)]
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    optimiser = Muon(params, lr=lr, momentum=mu, weight_decay=decay)
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(2):
        grads = [torch.randn_like(w) for w in weights]
        for p, g in zip(params, grads):
            p.grad = g.clone()
        optimiser.step()
        for i, g in enumerate(grads):
            momenta[i] = mu * momenta[i] + g
            X = mu * momenta[i] + g
            X = X / X.norm()
            for a, b, c in [(3.4445, -4.7750, 2.0315)] * 8 + [(2, -1.5, 0.5)] * 2:
                A = X @ X.T
                X = a * X + b * A @ X + c * A @ A @ X
            scale = 0.18 * max(weights[i].shape) ** 0.5
            weights[i] = weights[i] * (1 - lr * decay) - lr * scale * X
    for p, w in zip(params, weights):
        torch.testing.assert_close(p.detach(), w, atol=1e-4, rtol=1e-4)


def test_who_is_trained_by_what():
    model = lively(SMALL, 0)
    muon = {n for n, p in model.named_parameters() if for_muon(n, p)}
    assert {"layers.0.attn.wq_a.weight", "layers.1.ffn.experts.7.w2.weight", "layers.0.hc_attn_fn",
            "hc_head_fn",
            "layers.2.ffn.gate.weight", "mtp.0.e_proj.weight",
            "layers.1.attn.compressor.wkv.weight"} <= muon
    assert not muon & {"embed.weight", "head.weight", "norm.weight", "layers.0.attn.attn_sink",
                       "layers.1.attn.compressor.ape",
                       "layers.0.hc_attn_base", "layers.0.hc_attn_scale"}
