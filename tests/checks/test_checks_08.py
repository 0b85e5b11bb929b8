"""Lesson 08: right answers written otherwise pass, slips of many kinds are named, and the figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import cost
from minids.config import Config
from minids.learn.checks import whole as checks
from minids.learn.judge import check
from minids.model import Model
from minids.show import whole

maps = checks._maps


def site_by_loops(X, layer, pre, post, comb):
    n = X.shape[2]
    f = layer(sum(pre[:, :, j, None] * X[:, :, j] for j in range(n)))
    carried = [sum(comb[:, :, j, k, None] * X[:, :, j] for j in range(n)) for k in range(n)]
    return torch.stack([post[:, :, k, None] * f + carried[k] for k in range(n)], 2)


def block_by_package(block, X, ids):
    return block(X, ids)


def forward_by_package(model, ids):
    return model(ids)


def mtp_by_package(model, ids):
    logits = model.mtp_logits(model.features(ids[:, :-2]), ids[:, 1:-1])
    return -logits.log_softmax(-1).gather(2, ids[:, 2:, None]).mean()


def root_of_two_branches(x):
    small = x < -60
    s = torch.where(small, torch.ones_like(x), F.softplus(x)).sqrt()
    return torch.where(small, (x / 2).exp(), s)


@pytest.mark.slow
@pytest.mark.parametrize("name, attempt", [
    ("whole.site", site_by_loops), ("whole.block", block_by_package), ("whole.debug", block_by_package),
    ("whole.forward", forward_by_package), ("whole.mtp_loss", mtp_by_package), ("whole.count", cost.parts),
    ("whole.active", lambda config: cost.params(config)["active"]),
    ("whole.safe_affinity", checks._with_gradient(root_of_two_branches)),
    ("whole.sqrtsoftplus", lambda x: torch.logaddexp(x, torch.zeros(())).sqrt()),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def site_with_einsum_of_the_wrong_index(X, layer, pre, post, comb):
    f = layer(torch.einsum("btn,btnd->btd", pre, X))
    return torch.einsum("btjk,btkd->btjd", comb, X) + torch.einsum("btn,btd->btnd", post, f)


def block_with_one_norm(block, X, ids):
    X = checks.site(X, lambda u: block.attn(block.attn_norm(u)), *maps(block, X, "attn"))
    return checks.site(X, lambda u: block.ffn(block.attn_norm(u), ids), *maps(block, X, "ffn"))


def forward_with_the_mean(model, ids):
    X = model.embed(ids)[:, :, None].repeat(1, 1, model.config.hc_mult, 1)
    for block in model.layers:
        X = block(X, ids)
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
    ("whole.debug", block_with_one_norm, "the layer of the second site still has its fault"),
    ("whole.forward", forward_with_the_mean, "added or averaged at the end"),
    ("whole.mtp_loss", mtp_that_copies, "it can copy it"),
    ("whole.safe_affinity", checks._with_gradient(root_then_where), "torch.where does not help"),
    ("whole.safe_affinity", checks._with_gradient(lambda x: F.softplus(x).add(1e-6).sqrt()), "clamp instead"),
    ("whole.count", lambda c: cost.parts(c) | {"norms": cost.parts(c)["norms"] + 1}, "['norms']the number is off by +1"),
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


def test_the_reference_is_the_package():
    """The plain assembly that the checks compare with equals minids.Model, in a config of all kinds of layers."""
    config = Config.nano().replace(vocab_size=101)
    model = checks.lively(torch.Generator().manual_seed(5), config)
    ids = torch.randint(0, 101, (2, 70), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(checks.model_forward(model, ids), model(ids), atol=1e-4, rtol=1e-4)


def test_a_fresh_model_hides_the_transposed_comb():
    """The claim of the lesson's first cell."""
    torch.manual_seed(0)
    fresh = Model(checks.TINY).eval().requires_grad_(False)
    ids = torch.randint(0, 29, (2, 12), generator=torch.Generator().manual_seed(1))

    def transposed(model):
        X = model.embed(ids)[:, :, None].repeat(1, 1, 4, 1)
        for block in model.layers:
            X = checks.block_forward(block, X, ids, checks._untransposed)
        return model.logits(X)
    lively = checks.lively(torch.Generator().manual_seed(2))
    assert (transposed(fresh) - fresh(ids)).norm() < 1e-4 * fresh(ids).norm()
    assert (transposed(lively) - lively(ids)).norm() > 1e-2 * lively(ids).norm()


def test_scaled_configurations_are_flash_where_they_should_be():
    assert whole.scaled(43, 4096, 256, 6) == Config.flash()
    assert cost.params(whole.scaled(8, 1024, 64, 16))["total"] < cost.params(whole.scaled(16, 1024, 64, 16))["total"]


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
