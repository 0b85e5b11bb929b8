"""The mixture of experts with kernels against torch alone, in value and gradient."""

import pytest
import torch

from minids.config import Config
from minids.model import experts, kernels
from minids.model.experts import choose
from minids.model.kernels.compiled import numba
from minids.model.moe import Gate, MoE, sqrt_softplus
from minids.model.passes import Options, Pass

pytestmark = pytest.mark.skipif(kernels.why_off() is not None, reason="kernels are off")

CONFIG = Config.nano().replace(vocab_size=50, dim=12, moe_inter_dim=7, n_routed_experts=5,
                               n_activated_experts=2, swiglu_limit=1.0)
MANY = CONFIG.replace(n_routed_experts=256, n_activated_experts=6)
OFF = "experts", "swiglu"


def layer(config=CONFIG, is_hash=False):
    torch.manual_seed(0)
    moe = MoE(config, is_hash)
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.5)
    if is_hash:
        chance = torch.rand(config.vocab_size, config.n_routed_experts)
        moe.gate.tid2eid.copy_(chance.argsort(1)[:, :config.n_activated_experts])
    else:
        moe.gate.bias.normal_(std=0.3)
    return moe


def inputs(N, config=CONFIG):
    torch.manual_seed(N)
    return torch.randn(1, N, config.dim), torch.randint(0, config.vocab_size, (1, N))


def step(moe, x, ids, **options):
    """Value and gradients, of x and of all parameters."""
    moe.zero_grad()
    x = x.clone().requires_grad_()
    y = moe(x, ids, **options)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    return [y.detach(), x.grad, *(p.grad for p in moe.parameters())]


@pytest.mark.parametrize("is_hash", [False, True])
@pytest.mark.parametrize("N", [1, 3, 64, 65, 300])
@pytest.mark.parametrize("config", [CONFIG, MANY, CONFIG.replace(swiglu_limit=0)],
                         ids=["few", "many", "unclamped"])
def test_training_and_inference(config, N, is_hash):
    moe, (x, ids) = layer(config, is_hash), inputs(N, config)
    with kernels.switched_off(*OFF):
        want = step(moe, x, ids)
    got = step(moe, x, ids)
    assert all(gradient is not None for gradient in got)       # unused experts: zero, not missing
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(b.abs().max().item(), 1e-6))
    moe.eval()
    with torch.inference_mode():
        torch.testing.assert_close(moe(x, ids), want[0], rtol=1e-5, atol=1e-5)
    assert [g is None for g in step(moe, x, ids)[2:]].count(True) % 3 == 0      # whole experts


def test_large_matrices_are_not_copied(monkeypatch):
    """A copy of V4-Flash's experts would take gigabytes."""
    moe, (x, ids) = layer(), inputs(300)
    want = step(moe, x, ids)
    monkeypatch.setattr(experts, "LARGE", moe.shared_experts.w1.weight.numel() - 1)
    monkeypatch.setattr(experts.Experts, "apply", None)         # would fail
    for a, b in zip(step(moe, x, ids), want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(b.abs().max().item(), 1e-6))


def test_inference_computes_what_training_does():
    """To 1e-6: GRPO compares their probabilities."""
    moe = layer(CONFIG.replace(dim=128, moe_inter_dim=64, n_routed_experts=8))
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.05)
    for N in (1, 2, 5, 64):
        x, ids = inputs(N, moe.gate.config)
        trained = moe.train()(x, ids)
        with torch.inference_mode():
            torch.testing.assert_close(moe.eval()(x, ids), trained.detach(), rtol=1e-6, atol=1e-6)


def test_a_gate_chooses_the_largest_and_records_them():
    gate, (x, ids) = layer(MANY).gate, inputs(70, MANY)
    current = Pass(MANY, 70, "cpu", options=Options(balance=True))
    g, experts = gate(x[0], ids, current)
    s = sqrt_softplus(x[0] @ gate.weight.T)
    best = (s + gate.bias).topk(6).indices
    assert torch.equal(experts.sort(1).values, best.sort(1).values)
    assert current.record.experts[0] is experts and len(current.record.balance) == 1
    want = s.gather(1, experts)
    torch.testing.assert_close(g, want / want.sum(1, keepdim=True) * MANY.route_scale)
    again, replayed = gate(x[0], ids, experts=experts.flip(0))
    assert torch.equal(replayed, experts.flip(0)) and not torch.equal(again, g)


def test_the_balance_loss_has_its_gradient():
    gate, (x, ids) = layer().gate, inputs(20)

    def gradient():
        gate.zero_grad()
        current = Pass(CONFIG, 20, "cpu", options=Options(balance=True))
        g, _ = gate(x[0], ids, current)
        total, count = current.record.balance[0]
        (total / count + g.square().sum()).backward()
        return gate.weight.grad

    with kernels.switched_off("experts"):
        want = gradient()
    torch.testing.assert_close(gradient(), want, rtol=1e-5, atol=1e-6)


def test_extreme_and_missing_numbers():
    """Affinities of logits from -1000 to 1000; NaN is chosen, as by torch, so that it is seen."""
    gate = Gate(CONFIG.replace(dim=1), is_hash=False)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([-1000.0, -20, 0, 20, 1000])[:, None])
    x = torch.tensor([[1.0], [-1.0], [0.0]])
    with kernels.switched_off("experts"):
        want = gate(x, x)
    got = gate(x, x)
    torch.testing.assert_close(got[0].sort(1).values, want[0].sort(1).values)
    got[0].square().sum().backward()
    assert gate.weight.grad.isfinite().all()
    with torch.no_grad():
        gate.weight[2] = float("nan")
    g, experts = gate(x, x)
    assert g.isnan().all() and (experts == 2).any(1).all()
    assert (experts[:, 0] != experts[:, 1]).all()


def test_strides_and_other_types():
    moe, (x, ids) = layer().eval(), inputs(9)
    with torch.no_grad():
        want = moe(x, ids)
        torch.testing.assert_close(moe(x.mT.contiguous().mT, ids), want)
        for expert in moe.experts:      # as a transposed file would leave it
            expert.w2.weight.data = expert.w2.weight.data.T.contiguous().T
        torch.testing.assert_close(moe(x, ids), want)
        torch.testing.assert_close(moe.double()(x.double(), ids).float(), want, rtol=1e-5,
                                   atol=1e-5)


def test_hooks_and_rounded_inputs_are_respected():
    moe, (x, ids) = layer().eval(), inputs(4)
    calls = []
    hook = moe.shared_experts.w2.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        before = moe(x, ids)
        assert calls
        hook.remove()
        torch.testing.assert_close(moe(x, ids), before)
        assert len(calls) == 1
        for expert in (*moe.experts, moe.shared_experts):
            expert.w1.round_input = True
        assert (moe(x, ids) - before).abs().max() > 1e-4


def test_frozen_experts_and_inputs():
    moe, (x, ids) = layer(), inputs(30)
    want = step(moe, x, ids)
    moe.experts.requires_grad_(False)
    got = step(moe, x, ids)
    assert all(p.grad is None for p in moe.experts.parameters())
    torch.testing.assert_close(got[1], want[1])
    moe(x, ids).sum().backward()


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit():
    before, results = torch.get_num_threads(), []
    moe, (x, ids) = layer(), inputs(300)
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        torch.set_num_threads(threads)
        with torch.no_grad():
            results.append([kernels_only(moe, x), *(moe.eval()(x[:, :n], ids[:, :n])
                                                    for n in (1, 9, 60))])
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1:], results[1][1:]):
        assert torch.equal(a, b)


def kernels_only(moe, x):
    """A gate's weights of products that do not depend on threads."""
    return choose(x[0, :, :5].contiguous(), moe.gate.bias, None, 2, 1.0)[2]
