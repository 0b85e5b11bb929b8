"""Lesson 08: right answers written otherwise pass, slips are named, the figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import cost, plain
from minids.config import Config
from minids.learn.checks import mhc
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
    return twin(X, ids).detach()


def forward_by_package(model, ids):
    twin = Model(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin(ids).detach()


def mtp_by_package(model, ids):
    logits = model.mtp_logits(model.features(ids[:, :-2]), ids[:, 1:-1])
    return -logits.log_softmax(-1).gather(2, ids[:, 2:, None]).mean()


def root_of_two_branches(x):
    small = x < -60
    s = torch.where(small, torch.ones_like(x), F.softplus(x)).sqrt()
    return torch.where(small, (x / 2).exp(), s)


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt", [
    ("whole.site", site_by_loops), ("whole.block", block_by_package),
    ("whole.debug", block_by_package),
    ("whole.forward", forward_by_package), ("whole.mtp_loss", mtp_by_package),
    ("whole.count", cost.parts),
    ("whole.active", lambda config: cost.params(config)["active"]),
    ("whole.safe_affinity", checks.with_gradient(root_of_two_branches)),
    ("whole.sqrtsoftplus", lambda x: torch.logaddexp(x, torch.zeros(())).sqrt()),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


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
    ("whole.site", site_with_einsum_of_the_wrong_index, "the sum runs over its FIRST index"),
    ("whole.site", lambda X, layer, pre, post, comb: X, "In the case"),
    ("whole.block", block_with_one_norm, "it has its own, ffn_norm"),
    ("whole.block", block_that_calls_its_layers, "these only hold parameters"),
    ("whole.debug", block_with_one_norm, "the layer of the second site still has its fault"),
    ("whole.forward", forward_with_the_mean, "added or averaged at the end"),
    ("whole.mtp_loss", mtp_that_copies, "it can copy it"),
    ("whole.safe_affinity", checks.with_gradient(root_then_where), "torch.where does not help"),
    ("whole.safe_affinity", checks.with_gradient(lambda x: F.softplus(x).add(1e-6).sqrt()),
     "clamp instead"),
    ("whole.count", lambda c: cost.parts(c) | {"norms": cost.parts(c)["norms"] + 1},
     "['norms']the number is off by +1"),
    ("whole.active", lambda c: cost.params(c)["total"], "the number is off by"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in capsys.readouterr().out


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
