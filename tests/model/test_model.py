"""What transformers does not have, or what needs more tests: MTP, gates, gradients, configs."""

import pytest
import torch
import torch.nn.functional as F
from tiny import SMALL
from twin import lively

from minids import Config, Model, numerics
from minids.config import ConfigError
from minids.errors import MinidsError
from minids.model import mhc
from minids.model.linear import Linear
from minids.model.moe import MoE, balance, sqrt_softplus
from minids.model.norm import Normalise, rms


def plain_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def plain_sinkhorn(M, iters, eps):
    M = M / (M.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        M = M / (M.sum(-1, keepdim=True) + eps)
        M = M / (M.sum(-2, keepdim=True) + eps)
    return M


def test_mtp_is_its_equations():
    """X0 and the head from the specification's equations, for each token and stream; the block is
    the model's."""
    from minids.model.block import Block
    model = lively(SMALL, 0)
    w, eps, n = model.state_dict(), SMALL.norm_eps, SMALL.hc_mult
    ids = torch.randint(0, SMALL.vocab_size, (2, 40))
    with torch.no_grad():
        X = model.features(ids[:, :-1])
        X0 = torch.empty_like(X)
        for b in range(2):
            for t in range(39):
                e = w["embed.weight"][ids[b, t + 1]]
                for j in range(n):
                    e_norm = plain_norm(e, w["mtp.0.enorm.weight"], eps)
                    h_norm = plain_norm(X[b, t, j], w["mtp.0.hnorm.weight"], eps)
                    X0[b, t, j] = (w["mtp.0.e_proj.weight"] @ e_norm
                                   + w["mtp.0.h_proj.weight"] @ h_norm)
        block = Block(SMALL, ratio=0, is_hash=False).eval()
        state = {k[6:]: v for k, v in w.items() if k.startswith("mtp.0.")}
        block.load_state_dict(state, strict=False)
        Y = block(X0, ids[:, 1:])
        x = Y.flatten(2)
        a = (x @ w["mtp.0.hc_head_fn"].T) / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
        g = torch.sigmoid(a * w["mtp.0.hc_head_scale"] + w["mtp.0.hc_head_base"]) + SMALL.hc_eps
        y = sum(g[..., j, None] * Y[..., j, :] for j in range(n))
        logits = plain_norm(y, w["mtp.0.norm.weight"], eps) @ w["head.weight"].T
        torch.testing.assert_close(model.mtp_logits(X, ids[:, 1:]), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_hash", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("rounds", [False, True])
def test_all_experts_at_once_are_the_chosen_ones(is_hash, limit, rounds):
    """Value and gradients of the two ways to compute the routed experts; unused experts have a
    gradient of zero in both."""
    torch.manual_seed(0)
    moe = MoE(SMALL.replace(swiglu_limit=limit), is_hash)
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.3)
    if is_hash:         # experts 6 and 7 are not in the table
        moe.gate.tid2eid.copy_(torch.rand(SMALL.vocab_size, 6).argsort(1)[:, :3])
    for expert in moe.experts:
        for linear in expert.children():
            linear.round_input = rounds
    x, ids = torch.randn(2, 9, SMALL.dim, requires_grad=True), torch.arange(18).view(2, 9)
    flat = x.flatten(0, 1)
    one_by_one = moe(x, ids) - moe.shared_experts(x)
    at_once = moe.all_experts(flat, *moe.gate(flat, ids)).view_as(x)
    torch.testing.assert_close(at_once, one_by_one, atol=1e-5, rtol=1e-5)
    parts = [x, moe.gate.weight, *moe.experts.parameters()]
    grads = [torch.autograd.grad((y * y).sum(), parts, retain_graph=True)
             for y in (one_by_one, at_once)]
    for a, b in zip(*grads):
        torch.testing.assert_close(b, a, atol=1e-3, rtol=1e-4)
    unused = len(list(moe.experts[0].parameters())) * 2 if is_hash else 0
    assert sum(not g.any() for g in grads[1]) == unused


def test_a_head_in_bfloat16_is_a_float32_product(monkeypatch):
    """Converted in stripes of any height, whatever the number of rows."""
    torch.manual_seed(0)
    model = Model(SMALL).eval()
    model.head.weight = torch.nn.Parameter(model.head.weight.bfloat16())
    y = torch.randn(2, 5, SMALL.dim).bfloat16()
    expected = torch.einsum("btd,vd->btv", y.double(), model.head.weight.double())
    for stripe in (1, 10 * SMALL.dim, 2**24):
        monkeypatch.setattr("minids.model.transformer.STRIPE", stripe)
        logits = model.project(y)
        assert logits.dtype == torch.float32 and logits.shape == (2, 5, SMALL.vocab_size)
        torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


def test_affinity_gradient_is_finite_everywhere():
    x = torch.tensor([-1e4, -200.0, -104.0, -100.0, -88.0, -50.0, 0.0, 30.0, 1e4])
    x.requires_grad_()
    y = sqrt_softplus(x)
    y.sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(y).all()
    wide = x.detach().double().requires_grad_()
    expected = torch.nn.functional.softplus(wide).sqrt()
    torch.testing.assert_close(y[4:], expected[4:].float())
    expected_grad, = torch.autograd.grad(expected[5:].sum(), wide)
    torch.testing.assert_close(x.grad[5:], expected_grad[5:].float())


def plain_affinity(x, fn, eps):
    return (x @ fn.T / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)).T


def plain_read(X, pre):
    return torch.einsum("jn,njd->nd", pre, X)


def plain_write(X, comb, post, f):
    return torch.einsum("jkn,njd->nkd", comb, X) + torch.einsum("kn,nd->nkd", post, f)


def tokens_last(M, iters, eps):
    return plain_sinkhorn(M.permute(2, 0, 1), iters, eps).permute(1, 2, 0)


BY_HAND = {
    "norm": (Normalise, plain_norm, [(5, 7, 32), (32,)], [1e-2]),
    "affinity": (mhc.Affinity, plain_affinity, [(70, 32), (24, 32)], [1e-2]),
    "one Sinkhorn step": (mhc.Sinkhorn, tokens_last, [(4, 4, 70)], [1, 1e-2]),
    "20 Sinkhorn steps": (mhc.Sinkhorn, tokens_last, [(4, 4, 70)], [20, 1e-2]),
    "20 Sinkhorn steps, one token": (mhc.Sinkhorn, tokens_last, [(4, 4, 1)], [20, 1e-2]),
    "read, many tokens": (mhc.Read, plain_read, [(70, 4, 16), (4, 70)], []),
    "read, few tokens": (mhc.Read, plain_read, [(3, 4, 16), (4, 3)], []),
    "write, many tokens": (mhc.Write, plain_write,
                           [(70, 4, 16), (4, 4, 70), (4, 70), (70, 16)], []),
    "write, few tokens": (mhc.Write, plain_write, [(3, 4, 16), (4, 4, 3), (4, 3), (3, 16)], []),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_by_hand_are_autograd(name):
    function, plain, shapes, constants = BY_HAND[name]
    torch.manual_seed(0)
    inputs = [torch.rand(shape).add_(0.05).requires_grad_() for shape in shapes]
    ours, expected = function.apply(*inputs, *constants), plain(*inputs, *constants)
    torch.testing.assert_close(ours, expected)
    weigh = torch.randn_like(expected)
    grads, expected_grads = (torch.autograd.grad((y * weigh).sum(), inputs)
                             for y in (ours, expected))
    for a, b in zip(grads, expected_grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_norm_without_a_weight():
    x = torch.randn(5, 3, 32, requires_grad=True)
    weigh = torch.randn(5, 3, 32)
    ours, expected = rms(x, 1e-2), plain_norm(x, 1.0, 1e-2)
    torch.testing.assert_close(ours, expected)
    grads, expected_grads = (torch.autograd.grad((y * weigh).sum(), x) for y in (ours, expected))
    for a, b in zip(grads, expected_grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("N", [70, 1])
def test_sinkhorn_is_the_same_where_nothing_is_recorded(N):
    M = torch.rand(4, 4, N)
    with torch.no_grad():
        torch.testing.assert_close(mhc.sinkhorn(M, 20, 1e-6), mhc.Sinkhorn.apply(M, 20, 1e-6))


@pytest.mark.parametrize("B, T", [(2, 3), (1, 1), (1, 70)])        # each is computed in another way
@torch.no_grad()
def test_hyper_connections_are_their_equations(B, T):
    torch.manual_seed(0)
    n, d = 4, SMALL.dim
    X, f = torch.randn(B, T, n, d), torch.randn(B, T, d)
    fn, base = torch.randn(24, n * d) / 16, torch.randn(24) / 2
    scale = torch.tensor([0.7, 1.1, 1.3])
    pre, post, comb = mhc.maps(X, fn, scale, base, SMALL)
    u = mhc.read(X, pre)
    Y = mhc.write(X, f, post, comb)
    for b in range(B):
        for t in range(T):
            x = X[b, t].flatten()
            a = fn @ x / torch.sqrt((x * x).mean() + SMALL.norm_eps)
            A = torch.sigmoid(a[:n] * scale[0] + base[:n]) + SMALL.hc_eps
            C = 2 * torch.sigmoid(a[n:2 * n] * scale[1] + base[n:2 * n])
            M = torch.softmax((a[2 * n:] * scale[2] + base[2 * n:]).view(n, n), -1) + SMALL.hc_eps
            M = plain_sinkhorn(M, SMALL.hc_sinkhorn_iters, SMALL.hc_eps)
            torch.testing.assert_close(u[b, t], A @ X[b, t], atol=1e-5, rtol=1e-5)
            written = C[:, None] * f[b, t] + M.T @ X[b, t]
            torch.testing.assert_close(Y[b, t], written, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("convert", [
    lambda model: model.bfloat16(), lambda model: model.half(), lambda model: model.double(),
    lambda model: model.to(torch.bfloat16)])
def test_a_model_whose_type_was_changed_as_a_whole(convert):
    """Norms and hyper-connections have to stay float32, or nothing fits together."""
    model, ids = lively(SMALL, 0), torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids)
        X = model.features(ids)
        convert(model)
        for call in (lambda: model(ids), lambda: model(ids, model.new_state()),
                     lambda: model.mtp_logits(X, ids)):
            with pytest.raises(MinidsError, match=r"minids\.load\(path, dtype=torch\.(bfloat16|"
                                                  r"float16|float64)\) .*model\.float\(\)"):
                call()
        torch.testing.assert_close(model.float()(ids), expected, atol=0.5, rtol=0)


def test_balance_moves_bias_against_load():
    config = SMALL.replace(n_hash_layers=0)
    model = lively(config, 0).train()
    gate = model.layers[0].ffn.gate
    before = gate.bias.clone()
    _, record = model.run(torch.randint(0, config.vocab_size, (2, 30)))
    load = record.loads[0].float()
    assert load.sum() == 60 * config.n_activated_experts
    balance(model, record.loads, 0.001)
    torch.testing.assert_close(gate.bias - before, -0.001 * torch.sign(load - load.mean()))


def test_every_parameter_of_the_loss_gets_a_gradient():
    """Nothing is left out of the graph but the indexer, which has a loss of its own."""
    torch.manual_seed(0)
    model = Model(Config.nano()).train()
    ids = torch.randint(0, 1024, (1, 65))
    X = model.features(ids[:, :-1])
    loss = F.cross_entropy(model.logits(X)[0], ids[0, 1:])
    mtp_loss = F.cross_entropy(model.mtp_logits(X[:, :-1], ids[:, 1:-1])[0], ids[0, 2:])
    (loss + mtp_loss).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if ".indexer." in name}


@pytest.mark.parametrize("change, message", [
    (dict(o_groups=3), "o_groups: expected a divisor of n_heads = 4, found 3"),
    (dict(rope_head_dim=15), "rope_head_dim: expected even"),
    (dict(compress_ratios=(0, 4)),
     "compress_ratios: expected one entry for each of 5 layers and 1 MTP blocks, found 2"),
    (dict(compress_ratios=(0, 4, 2, 4, 16, 0)), "compress_ratios: expected 0"),
    (dict(n_activated_experts=9),
     "n_activated_experts: expected at most n_routed_experts = 8, found 9"),
    (dict(dim=0), "dim: expected above 0, found 0"),
    (dict(dim=-64), "dim must be a whole number of at least 0, found -64"),
    (dict(dim="64"), "dim must be a whole number"),
    (dict(norm_eps=float("nan")), "norm_eps must be a number"),
])
def test_impossible_sizes(change, message):
    with pytest.raises(ConfigError, match=message):
        SMALL.replace(**change)


def test_config_round_trip(tmp_path):
    from transformers import DeepseekV4Config
    for name in ("nano", "mini", "flash", "pro"):
        config = Config.preset(name)
        config.to_json(tmp_path / "config.json")
        assert Config.from_json(tmp_path) == config
        assert Config.from_json(DeepseekV4Config(**config.to_json()).to_dict()) == config


@pytest.mark.parametrize("text, message", [
    ("[1, 2]", "expected a JSON object"), ("{", "not readable JSON"), ("{}", "no vocab_size"),
    ('{"model_type": "llama"}', 'model_type: expected "deepseek_v4" .*, found \'llama\''),
])
def test_foreign_configs(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Config.from_json(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no configuration at"):
        Config.from_json(tmp_path / "nowhere.json")


def test_a_model_trains_on_lengths_that_it_has_seen_in_inference():
    """Nothing that a pass in inference mode has made reaches a backward pass."""
    model = Model(Config.nano())
    ids = torch.randint(0, 1024, (1, 53))
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()
    assert model.embed.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["read, many tokens", "write, many tokens"])
def test_other_devices_ways(name, monkeypatch):
    """What a GPU computes with, batched products of many tokens, taken on the CPU."""
    monkeypatch.setattr(mhc, "few", lambda X: True)
    test_gradients_by_hand_are_autograd(name)


def test_every_matrix_of_attention_may_be_stored():
    """Codes that are decoded for each product give what their numbers as parameters give."""
    model, ids = lively(SMALL, 0).eval(), torch.randint(0, SMALL.vocab_size, (2, 20))
    matrices = [m for m in model.layers[1].attn.modules() if isinstance(m, Linear)]
    stored = [numerics.fp8_encode(m.weight) for m in matrices]
    with torch.no_grad():
        for matrix, (codes, scale) in zip(matrices, stored):
            matrix.weight.copy_(numerics.decode(codes, scale))
        expected = model(ids)
        for matrix, (codes, scale) in zip(matrices, stored):
            matrix.store(codes, scale, torch.float32)
        assert torch.equal(model(ids), expected)
