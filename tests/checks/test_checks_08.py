"""Lesson 08: right answers written otherwise pass, slips are named, the figures draw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minids import cost, plain
from minids.config import Config
from minids.learn.checks import find, mhc
from minids.learn.checks import whole as checks
from minids.learn.judge import check
from minids.model import Model
from minids.model.block import Block
from minids.show import whole


def site_by_loops(X, layer, pre, post, comb):
    n = X.shape[2]
    f = layer(sum(pre[:, :, j, None] * X[:, :, j] for j in range(n)))
    carried = [sum(comb[:, :, j, k, None] * X[:, :, j] for j in range(n)) for k in range(n)]
    return torch.stack([post[:, :, k, None] * f + carried[k] for k in range(n)], 2)


def block_by_package(block, X, ids):
    twin = Block(block.config, block.attn.ratio, block.ffn.gate.is_hash).eval()
    twin.load_state_dict(block.state_dict())
    return twin.requires_grad_(False)(X, ids)


def forward_by_package(model, ids):
    twin = Model(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin(ids)


def mtp_by_package(model, ids):
    logits = model.mtp_logits(model.features(ids[:, :-2]), ids[:, 1:-1])
    return -logits.log_softmax(-1).gather(2, ids[:, 2:, None]).mean()


def root_of_two_branches(x):
    small = x < -60
    s = torch.where(small, torch.ones_like(x), F.softplus(x)).sqrt()
    return torch.where(small, (x / 2).exp(), s)


def rms_norm_by_sums(x, weight, eps):
    """Each vector by itself, in double precision."""
    rows = [row * weight / (row @ row / len(row) + eps) ** 0.5
            for row in x.double().reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(x.shape).to(x.dtype)


def rms_norm_of_torch(x, weight, eps):
    return weight.to(x.dtype) * F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype)


def forward_step_by_step(model, ids):
    config = model.config
    e = model.embed(ids)
    X = torch.stack([e for _ in range(config.hc_mult)], dim=2)
    for block in model.layers:
        X = plain.block_forward(block, X, ids)
    g = plain.gates(model, X)
    y = sum(g[:, :, j:j + 1] * X[:, :, j] for j in range(config.hc_mult))
    return F.linear(model.norm(y), model.head.weight)


def count_by_names(config):
    """NumPy numbers, from the shapes of the tensors."""
    return {part: np.int64(number) for part, number in cost.parts(config).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt", [
    ("whole.rms_norm", rms_norm_by_sums), ("whole.rms_norm", rms_norm_of_torch),
    ("whole.site", site_by_loops), ("whole.block", block_by_package),
    ("whole.debug", block_by_package),
    ("whole.forward", forward_by_package), ("whole.forward", forward_step_by_step),
    ("whole.mtp_loss", mtp_by_package),
    ("whole.count", cost.parts), ("whole.count", count_by_names),
    ("whole.active", lambda config: cost.params(config)["active"]),
    ("whole.active", lambda config: float(cost.params(config)["active"])),
    ("whole.safe_affinity", checks.with_gradient(root_of_two_branches)),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x).clamp(min=1e-38) ** 0.5)),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x.clamp_min(-85)).sqrt())),
    ("whole.sqrtsoftplus", lambda x: torch.logaddexp(x, torch.zeros(())).sqrt()),
    ("whole.sqrtsoftplus", lambda x: torch.where(x > 30, x, torch.log1p(x.clamp(max=30).exp()))
     ** 0.5),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def norm_as_typed(x, weight, eps, divisor=None):
    y = x.to(torch.float32)
    root = (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() if divisor is None else divisor(y, eps)
    return (y / root * weight).to(x.dtype)


def typed_norm(divisor):
    return lambda *args: norm_as_typed(*args, divisor=divisor)


def norm_in_own_type(x, weight, eps):
    return (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight).to(x.dtype)


def site_as_typed(X, layer, pre, post, comb, read=None, carry=None):
    f = layer(torch.einsum("btn,btnd->btd", pre, X) if read is None else read(X, pre))
    carried = torch.einsum("btjk,btjd->btkd", comb, X) if carry is None else carry(comb, X)
    return torch.einsum("btn,btd->btnd", post, f) + carried


def typed_site(**changes):
    return lambda *args: site_as_typed(*args, **changes)


def block_as_typed(block, X, ids, norms=("attn_norm", "ffn_norm"), site=plain.site, old=False,
                   maps=("attn", "ffn")):
    first, second = (getattr(block, name) if name else torch.nn.Identity() for name in norms)
    Y = site(X, lambda u: plain.attention(block.attn, first(u)),
             *plain.site_maps(block, X, maps[0]))
    return site(Y, lambda u: plain.moe_forward(block.ffn, second(u), ids),
                *plain.site_maps(block, X if old else Y, maps[1]))


def typed_block(**changes):
    return lambda *args: block_as_typed(*args, **changes)


def forward_as_typed(model, ids, copies=None, blocks=None, end=None):
    n = model.config.hc_mult
    X = model.embed(ids).unsqueeze(2)
    X = X.expand(-1, -1, n, -1) if copies is None else copies(X, n)
    for block in model.layers if blocks is None else blocks(model.layers):
        X = plain.block_forward(block, X, ids)
    if end is not None:
        return end(model, X)
    y = torch.einsum("btn,btnd->btd", plain.gates(model, X), X)
    return plain.rms_norm(y, model.norm.weight, model.config.norm_eps) @ model.head.weight.T


def typed_forward(**changes):
    return lambda *args: forward_as_typed(*args, **changes)


def without_norm(model, X):
    return (plain.gates(model, X)[..., None] * X).sum(2) @ model.head.weight.T


def with_the_sum(model, X):
    return model.norm(X.sum(2)) @ model.head.weight.T


def with_shares(model, X):
    g = plain.gates(model, X)
    y = ((g / g.sum(-1, keepdim=True))[..., None] * X).sum(2)
    return model.norm(y) @ model.head.weight.T


def mtp_as_typed(model, ids, streams=slice(None, -2), given=slice(1, -1), target=slice(2, None),
                 **options):
    logits = model.mtp_logits(model.features(ids)[:, streams], ids[:, given])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, target].reshape(-1),
                           **options)


def typed_mtp(**changes):
    return lambda *args: mtp_as_typed(*args, **changes)


def count_as_typed(config, experts=3, fn=None, statics=None, sites=2, overlap=2, indexer=None):
    """The exercise's loop, with room for one slip."""
    d, n, c = config.dim, config.hc_mult, config.head_dim
    parts = cost.parts(config) | {
        "routed experts": 0, "shared experts": 0, "compressors": 0, "indexers": 0,
        "hyper-connections": n * n * d + n + 1}

    def compressor(ratio, width):
        f = overlap if ratio == 4 else 1
        return 2 * f * width * d + ratio * f * width + width
    ci, Hi = config.index_head_dim, config.index_n_heads
    matrices = Hi * ci * config.q_lora_rank + Hi * d if indexer is None else indexer(config)
    for ratio in config.compress_ratios[:config.n_layers]:
        parts["routed experts"] += config.n_routed_experts * experts * d * config.moe_inter_dim
        parts["shared experts"] += experts * d * config.moe_inter_dim
        rows = (2 + n) * n
        parts["hyper-connections"] += sites * (rows * (n * d if fn is None else fn(n, d)) + (
            rows + 3 if statics is None else statics(rows)))
        parts["compressors"] += compressor(ratio, c) if ratio else 0
        parts["indexers"] += compressor(ratio, ci) + matrices if ratio == 4 else 0
    return parts


def counted(**changes):
    return lambda config: count_as_typed(config, **changes)


def active_as_typed(config, idle=lambda E, K: E - K, keep=()):
    parts, E = cost.parts(config), config.n_routed_experts
    less = {"embedding"} - {*keep}
    return (sum(parts.values()) - sum(parts[part] for part in less)
            - parts["routed experts"] // E * idle(E, config.n_activated_experts))


def site_with_einsum_of_the_wrong_index(X, layer, pre, post, comb):
    f = layer(torch.einsum("btn,btnd->btd", pre, X))
    return torch.einsum("btjk,btkd->btjd", comb, X) + torch.einsum("btn,btd->btnd", post, f)


def block_with_one_norm(block, X, ids):
    for at, layer in (("attn", lambda u: plain.attention(block.attn, u)),
                      ("ffn", lambda u: plain.moe_forward(block.ffn, u, ids))):
        pre, post, comb = plain.site_maps(block, X, at)
        f = layer(block.attn_norm((pre[..., None] * X).sum(2)))
        X = post[..., None] * f[:, :, None] + comb.mT @ X
    return X


def block_with_both_norms(block, X, ids):
    X = plain.site(X, lambda u: plain.attention(block.attn, block.attn_norm(u)),
                   *plain.site_maps(block, X, "attn"))
    return plain.site(X, lambda u: plain.moe_forward(block.ffn, block.ffn_norm(
        block.attn_norm(u)), ids), *plain.site_maps(block, X, "ffn"))


def block_that_calls_its_layers(block, X, ids):
    X = plain.site(X, lambda u: block.attn(block.attn_norm(u)), *plain.site_maps(block, X, "attn"))
    ffn = plain.site_maps(block, X, "ffn")
    return plain.site(X, lambda u: block.ffn(block.ffn_norm(u), ids), *ffn)


def forward_with_the_mean(model, ids):
    X = model.embed(ids)[:, :, None].repeat(1, 1, model.config.hc_mult, 1)
    for block in model.layers:
        X = plain.block_forward(block, X, ids)
    return model.norm(X.mean(2)) @ model.head.weight.T


def mtp_that_copies(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, :-1], ids[:, 1:])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def root_then_where(x):
    return torch.where(x < -87, torch.zeros(()), F.softplus(x).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt, words", [
    ("whole.sqrtsoftplus", lambda x: torch.log(1 + torch.exp(x)), "and the root is missing"),
    ("whole.sqrtsoftplus", lambda x: F.softplus(x.clamp_min(0).sqrt()), "you take the root first"),
    ("whole.sqrtsoftplus", lambda x: torch.where(
        x > 30, x, torch.log(1 + x.clamp(max=30).exp())).sqrt(), "rounds to 1 for x below -17"),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x.clamp_min(-20)).sqrt()),
     "you bound x from below by -20"),
    ("whole.safe_affinity", checks.with_gradient(lambda x: (F.softplus(x) + 1e-12).sqrt()),
     "you add 1e-12 to softplus"),
    ("whole.safe_affinity", checks.with_gradient(
        lambda x: F.softplus(x.double()).sqrt().float()), "you compute in float64"),
    ("whole.block", lambda block, X, ids: (
        checks._one_site_only("attn")(block, X, ids)
        + checks._one_site_only("ffn")(block, X, ids) - X), "start from the block's input"),
    ("whole.debug", block_with_both_norms, "the second site has both norms"),
    ("whole.mtp_loss", typed_mtp(streams=slice(None, -3), given=slice(1, -2),
                                 target=slice(2, -1)), "the last position that has a target"),
    ("whole.active", lambda config: sum(
        n if part not in ("embedding", "routed experts", "shared experts") else 0
        for part, n in cost.parts(config).items()) + config.n_activated_experts * (
            cost.parts(config)["routed experts"] + cost.parts(config)["shared experts"])
     // config.n_routed_experts, "K / E of the shared experts, too"),
    ("whole.sqrtsoftplus", lambda x: torch.log(1 + torch.exp(x)).sqrt(), "your exp overflows"),
    ("whole.sqrtsoftplus", lambda x: (1 + x.exp()).sqrt(), "the logarithm is missing"),
    ("whole.rms_norm", norm_in_own_type, "you compute in x's own type"),
    ("whole.rms_norm", typed_norm(lambda x, eps: x.pow(2).mean(-1, keepdim=True) + eps),
     "the root is missing"),
    ("whole.rms_norm", typed_norm(lambda x, eps: x.pow(2).mean(-1, keepdim=True).sqrt() + eps),
     "your eps is outside"),
    ("whole.rms_norm", typed_norm(lambda x, eps: (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()),
     "the root of the sum"),
    ("whole.rms_norm", typed_norm(lambda x, eps: (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()),
     "do not use the argument eps"),
    ("whole.site", site_with_einsum_of_the_wrong_index, "over the second index of comb"),
    ("whole.site", lambda X, layer, pre, post, comb: X, "In the case"),
    ("whole.site", typed_site(read=lambda X, pre: X.mean(2)), "the mean of the streams"),
    ("whole.site", typed_site(carry=lambda comb, X: X), "the streams pass unmixed"),
    ("whole.site", typed_site(carry=lambda comb, X: 0 * X), "the carried streams are missing"),
    ("whole.block", block_with_one_norm, "your second site uses attn_norm"),
    ("whole.block", block_that_calls_its_layers, "which only hold parameters"),
    ("whole.block", typed_block(norms=("ffn_norm", "attn_norm")), "you exchange the norms"),
    ("whole.block", typed_block(norms=(None, None)), "both norms are missing"),
    ("whole.block", typed_block(old=True), "from the streams before attention"),
    ("whole.block", typed_block(site=mhc.untransposed), "over the second index of comb"),
    ("whole.block", typed_block(maps=("attn", "attn")), "attention site's maps"),
    ("whole.debug", block_with_one_norm, "the second site's layer still has its fault"),
    ("whole.debug", typed_block(site=mhc.untransposed, norms=("attn_norm", "attn_norm")),
     "both faults are still there"),
    ("whole.debug", typed_block(site=mhc.untransposed), "the carried streams still have"),
    ("whole.debug", typed_block(norms=("ffn_norm", "attn_norm")), "the norms are exchanged"),
    ("whole.forward", forward_with_the_mean, "you average the streams"),
    ("whole.forward", typed_forward(end=with_the_sum), "you add the streams"),
    ("whole.forward", typed_forward(end=without_norm), "the last norm is missing"),
    ("whole.forward", typed_forward(end=with_shares), "you divide the gates by their sum"),
    ("whole.forward", typed_forward(copies=lambda X, n: X.repeat(1, 1, 4, 1)), "four streams"),
    ("whole.forward", typed_forward(blocks=lambda layers: layers[:-1]), "leave out the last block"),
    ("whole.mtp_loss", mtp_that_copies, "it can copy"),
    ("whole.mtp_loss", typed_mtp(given=slice(None, -2)), "the token at t, which"),
    ("whole.mtp_loss", typed_mtp(streams=slice(1, -1)), "those at t + 1, one too late"),
    ("whole.mtp_loss", typed_mtp(reduction="sum"), "you take the sum over the positions"),
    ("whole.mtp_loss", lambda model, ids: F.cross_entropy(
        model.mtp_logits(model.features(ids)[:, :-2], ids[:, 1:-1]), ids[:, 2:]),
     "flattened to N V"),
    ("whole.safe_affinity", checks.with_gradient(root_then_where), "torch.where does not help"),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x).add(1e-6).sqrt()),
     "a lower bound should change"),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x).sqrt() + 1e-6),
     "after the root"),
    ("whole.count", lambda c: cost.parts(c) | {"norms": cost.parts(c)["norms"] + 1},
     "['norms']"),
    ("whole.count", counted(experts=2), "your experts have two matrices"),
    ("whole.count", counted(sites=1), "one of a block's two mHC sites"),
    ("whole.count", counted(fn=lambda n, d: d), "your sites' fn has d columns"),
    ("whole.count", counted(statics=lambda rows: 0), "base and scale are missing"),
    ("whole.count", counted(statics=lambda rows: rows), "the sites' scale is missing"),
    ("whole.count", counted(overlap=1), "your CSA compressors are too narrow"),
    ("whole.count", counted(indexer=lambda c: 0), "only the indexers' compressors"),
    ("whole.count", counted(indexer=lambda c: c.index_n_heads * (
        c.index_head_dim * c.dim + c.dim)), "wq_b takes d inputs"),
    ("whole.active", lambda config: active_as_typed(config, keep=("embedding",)),
     "you count the embedding table"),
    ("whole.active", lambda config: active_as_typed(config, idle=lambda E, K: E), "all routed"),
    ("whole.active", lambda config: active_as_typed(config, idle=lambda E, K: E - K - 1), "K + 1"),
    ("whole.active", lambda c: cost.params(c)["total"], "you return the total"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt", [
    ("whole.rms_norm", norm_in_own_type),
    ("whole.safe_affinity", checks.with_gradient(lambda x: (F.softplus(x) + 1e-20).sqrt())),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x.double()).sqrt().float())),
    ("whole.forward", typed_forward(copies=lambda X, n: X.repeat(1, 1, 4, 1))),
    ("whole.count", lambda config: count_as_typed(config) | {
        "hyper-connections": 16 * config.dim + 5 + 2 * config.n_layers * (
            24 * 4 * config.dim + 27)}),
])
def test_what_is_nearly_right_does_not_pass(name, attempt):
    assert check(name, attempt) is not attempt


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole.rms_norm", "whole.sqrtsoftplus", "whole.site",
                                  "whole.block", "whole.forward", "whole.mtp_loss"])
def test_a_result_without_its_gradient_does_not_pass(name):
    @torch.no_grad()
    def attempt(*args):
        return find(name).reference(*args)
    assert check(name, attempt) is not attempt


def test_changing_the_model_is_a_mistake(capsys):
    def attempt(model, ids):
        logits = model(ids)
        model.norm.weight.zero_()
        return logits
    check("whole.forward", attempt)
    assert "changes its own input" in capsys.readouterr().out


def test_a_fresh_model_hides_the_transposed_comb():
    """The claim of the lesson's first cell."""
    torch.manual_seed(0)
    fresh = plain.Model(checks.TINY).requires_grad_(False)
    ids = torch.randint(0, 29, (2, 12), generator=torch.Generator().manual_seed(1))

    def transposed(model):
        X = model.embed(ids)[:, :, None].repeat(1, 1, 4, 1)
        for block in model.layers:
            X = checks.block_forward_with(block, X, ids, site=mhc.untransposed)
        return plain.merge(model, X) @ model.head.weight.T
    lively = checks.lively(torch.Generator().manual_seed(2))
    assert (transposed(fresh) - fresh(ids)).norm() < 1e-4 * fresh(ids).norm()
    assert (transposed(lively) - lively(ids)).norm() > 1e-2 * lively(ids).norm()


def test_scaled_configurations_are_flash_where_they_should_be():
    assert whole.scaled(43, 4096, 256, 6) == Config.flash()
    few, many = (cost.params(whole.scaled(layers, 1024, 64, 16)) for layers in (8, 16))
    assert few["total"] < many["total"]


@pytest.mark.slow
def test_the_figures_draw():
    parts = {"Flash": cost.parts(Config.nano())}
    line = [1.0, 0.5, 0.1]
    for figure in (whole.plot_pipeline(), whole.plot_mtp_alignment(),
                   whole.plot_faults(["a", "b"], ["x", "y"], [[0, 1], [1, 0]], [0.5, 0.5]),
                   whole.plot_depth({"a": line}, {"a": line}, line),
                   whole.plot_leak({"a": line}, 4.0), whole.plot_parameters(parts),
                   whole.plot_sizes(10**9, 10**8, "t"),
                   whole.plot_sweeps({1: (10, 5)}, {1: (10, 5)})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
