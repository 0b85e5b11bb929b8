"""Log-probabilities, losses and samples over the vocabulary, by the kernels and by torch."""

import pytest
import torch
import torch.nn.functional as F

from minids.inference.sampling import pick
from minids.model import kernels, vocabulary
from minids.model.kernels import vocabulary as compiled
from minids.posttrain.rollouts import inverse_cdf, log_distribution, sample_recorded

SIZES = [(1, 3), (65, 77), (3, 2048), (130, 16)]


def test_without_numba_there_is_torch():
    with kernels.switched_off("vocabulary"):
        h, W = torch.randn(5, 4), torch.randn(9, 4)
        expected = F.cross_entropy(h @ W.T, torch.arange(5), reduction="sum")
        torch.testing.assert_close(vocabulary.head_loss(h, W, torch.arange(5)), expected)


@pytest.mark.parametrize("N, V", SIZES)
@pytest.mark.parametrize("stripe", [1, 2**8, 2**18])
def test_the_loss_of_a_head_and_its_gradients(monkeypatch, N, V, stripe):
    monkeypatch.setattr(vocabulary, "STRIPE", stripe)
    torch.manual_seed(N)
    h, W = torch.randn(7, N).mT.requires_grad_(), torch.randn(V, 7).requires_grad_()
    ids = torch.randint(0, V, (2 * N,))[::2]
    ids[N // 2] = -100
    expected = F.cross_entropy(h @ W.mT, ids, ignore_index=-100, reduction="sum")
    loss = vocabulary.head_loss(h, W, ids)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(2.5 * loss, (h, W)),
                    torch.autograd.grad(2.5 * expected, (h, W))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 30.0, 1000.0])
def test_the_loss_and_gradient_of_small_and_large_logits(size):
    torch.manual_seed(0)
    h, W = size * torch.randn(9, 16, requires_grad=True), torch.randn(70, 16)
    ids = torch.arange(9)
    ids[4] = -100
    expected = F.cross_entropy(h @ W.mT, ids, ignore_index=-100, reduction="sum")
    loss = vocabulary.head_loss(h, W, ids)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, h), torch.autograd.grad(expected, h),
                               rtol=1e-4, atol=1e-5)


def test_the_loss_has_the_same_bits_wherever_its_logits_lie():
    torch.manual_seed(0)
    logits, ids, results = 3 * torch.randn(5, 77), torch.arange(5), []
    for shift in range(8):
        z, logp = torch.empty(5 * 77 + shift)[shift:].view(5, 77).copy_(logits), torch.empty(5)
        compiled.loss(*kernels.arrays(z, ids, logp), 1)
        results.append((z, logp))
    for z, logp in results[1:]:
        assert torch.equal(z, results[0][0]) and torch.equal(logp, results[0][1])


def test_only_what_learns_gets_a_gradient():
    h, W, ids = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3), torch.arange(4)
    vocabulary.head_loss(h, W, ids).backward()
    assert h.grad.abs().sum() > 0
    with torch.no_grad():
        assert not vocabulary.head_loss(h, W.requires_grad_(), ids).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N, V", SIZES)
def test_log_probabilities_entropy_and_gradient(N, V, dtype):
    torch.manual_seed(V)
    z = (4 * torch.randn(V, N, dtype=dtype)).mT                                 # not contiguous
    ids = torch.randint(0, V, (N,))
    z[:, V // 2] = -float("inf")        # a token not allowed
    ids[ids == V // 2] = 0
    z.requires_grad_()
    logp, entropy = vocabulary.log_probs(z, ids)
    full = z.double().log_softmax(-1)
    expected = full.gather(1, ids[:, None])[:, 0].to(dtype)
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=2e-6)
    H = -(full.exp() * full.clamp_min(-1e4)).sum(-1).to(dtype)
    torch.testing.assert_close(entropy, H.detach(), rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad
    g = torch.randn(N, dtype=dtype)
    torch.testing.assert_close(torch.autograd.grad((logp * g).sum(), z),
                               torch.autograd.grad((expected * g).sum(), z), rtol=1e-5, atol=1e-6)


def test_a_gradient_does_not_need_the_kernels_of_its_forward_pass():
    z, ids = torch.randn(6, 40, requires_grad=True), torch.arange(6)
    expected, = torch.autograd.grad(vocabulary.log_probs(z, ids)[0].square().sum(), z)
    logp, _ = vocabulary.log_probs(z, ids)
    with kernels.switched_off("vocabulary"):
        torch.testing.assert_close(torch.autograd.grad(logp.square().sum(), z)[0], expected,
                                   rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("N, V", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 1e-4])
def test_samples_are_those_of_torch(N, V, temperature):
    for seed in range(20):
        torch.manual_seed(seed)
        logits, noise = 3 * torch.randn(N, V), torch.rand(N, 1)
        noise[0] = 0.0 if temperature == 1.0 else 0.5    # torch then gives ids of p = 1e-300 too
        allowed = torch.rand(N, V) < 0.7
        allowed[:, -1] = True
        for which in (None, allowed):
            logp = log_distribution(logits, temperature, which)
            expected = inverse_cdf(logp, noise)
            token, logprob = sample_recorded(logits, noise, temperature, which)
            assert torch.equal(token, expected)
            torch.testing.assert_close(logprob, logp.gather(1, expected)[:, 0], rtol=1e-5,
                                       atol=2e-6)


@pytest.mark.skipif(kernels.why_off() is not None, reason="no kernels")
def test_the_largest_noise_gives_the_last_id_of_all():
    logits = torch.full((2, 300), -float("inf"))
    logits[:, 7] = logits[:, 200] = 0.0
    noise = torch.tensor([[0.49999], [1 - 2**-24]])
    assert sample_recorded(logits, noise, 1.0, None)[0][:, 0].tolist() == [7, 200]


@pytest.mark.parametrize("N, V", SIZES)
def test_the_race_has_the_winner_of_torch(N, V):
    for seed in range(20):
        weights = (3 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))).softmax(-1)
        weights[:, : V // 3] = 0
        a, b = (torch.Generator().manual_seed(seed) for _ in range(2))
        with kernels.switched_off("vocabulary"):
            expected = pick(weights, a)
        assert torch.equal(pick(weights, b), expected)
        assert torch.equal(a.get_state(), b.get_state())
        assert (weights.gather(1, expected[:, None]) > 0).all()


def test_results_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    z, ids, noise = torch.randn(200, 500), torch.randint(0, 500, (200,)), torch.rand(200, 1)
    W = torch.randn(500, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            h = torch.ones(200, 20, requires_grad=True)
            grad, = torch.autograd.grad(vocabulary.LogProbs.apply(z.requires_grad_(), ids)[0].sum(),
                                        z)
            results.append([*vocabulary.log_probs(z, ids), grad,
                            *sample_recorded(z.detach(), noise, 1.0, None),
                            vocabulary.head_loss(h, W, ids)])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results):
        assert torch.equal(a, b)
