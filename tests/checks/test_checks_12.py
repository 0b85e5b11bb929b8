"""Lesson 12: right answers written otherwise pass, slips are named; the parts make GRPO's loss."""

from math import comb, perm, prod

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids.inference import evaluate
from minids.learn.checks import specialists as checks
from minids.learn.judge import check
from minids.posttrain import grpo
from minids.show import specialists


def reply_loss_by_loops(logits, ids, wrote):
    logp, B, T = logits.log_softmax(-1), *ids.shape
    losses = [-logp[b, t - 1, ids[b, t]] for b in range(B) for t in range(1, T) if wrote[b, t]]
    return torch.stack(losses).mean()


def advantages_by_loops(rewards, group):
    parts = [rewards[i : i + group] for i in range(0, len(rewards), group)]
    return torch.cat([part - part.mean() for part in parts])


def gain_by_cases(ratio, A, clip):
    A = A[:, None]
    return torch.where(A > 0, ratio.clamp_max(1 + clip), ratio.clamp_min(1 - clip)) * A


def kl_from_probabilities(logprobs, old, reference):
    p, q, f = logprobs.exp(), old.exp(), reference.exp()
    return f / q - p / q * (f / p).log() - p / q


def kept_by_loops(logprobs, old, A, mask, bound):
    means = [(old[i] - logprobs[i])[mask[i]].mean() for i in range(len(A))]
    return torch.tensor([0.0 if a < 0 and m > bound else 1.0 for a, m in zip(A, means)])


def pass_by_product(n, c, k):
    return 1.0 if n - c < k else 1 - prod(1 - k / i for i in range(n - c + 1, n + 1))


@pytest.mark.parametrize("name, attempt", [
    ("specialists.reply_loss", reply_loss_by_loops),
    ("specialists.advantages", advantages_by_loops),
    ("specialists.clipped", gain_by_cases),
    ("specialists.kl", checks.with_gradient(kl_from_probabilities)),
    ("specialists.kept", kept_by_loops),
    ("specialists.pass_at_k", checks._for_all(pass_by_product)),
    ("specialists.reply_loss", lambda logits, ids, wrote: F.cross_entropy(
        logits[:, :-1][wrote[:, 1:]], ids[:, 1:][wrote[:, 1:]])),
    ("specialists.advantages", lambda rewards, group: rewards - rewards.unflatten(
        0, (-1, group)).mean(-1).repeat_interleave(group)),
    ("specialists.clipped", lambda ratio, A, clip: torch.minimum(
        ratio * A.unsqueeze(1), torch.clip(ratio, 1 - clip, 1 + clip) * A.view(-1, 1))),
    ("specialists.pass_at_k", checks._for_all(
        lambda n, c, k: 1 - perm(n - c, k) / perm(n, k))),
    ("specialists.pass_at_k", checks._for_all(evaluate.pass_at_k)),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def loss_of_all_tokens(logits, ids, wrote):
    return reply_loss_by_loops(logits, ids, torch.ones_like(wrote))


def advantages_divided(rewards, group):
    std = rewards.view(-1, group).std(1).repeat_interleave(group)
    return checks.advantages(rewards, group) / std


def clipped_the_wrong_way(ratio, A, clip):
    A, clamped = A[:, None], ratio.clamp(1 - clip, 1 + clip)
    larger, smaller = torch.maximum(ratio, clamped), torch.minimum(ratio, clamped)
    return torch.where(A > 0, larger, smaller) * A


def kl_upside_down(logprobs, old, reference):
    return (logprobs - old).exp() * ((logprobs - reference).exp() - (logprobs - reference) - 1)


def kept_by_the_sum(logprobs, old, A, mask, bound):
    return 1.0 - ((A < 0) & ((old - logprobs).mul(mask).sum(1) > bound)).float()


def kept_also_at_zero(logprobs, old, A, mask, bound):
    drift = ((old - logprobs) * mask).sum(1) / mask.sum(1)
    return 1.0 - ((A <= 0) & (drift > bound)).float()


def kept_below_the_bound(logprobs, old, A, mask, bound):
    drift = ((old - logprobs) * mask).sum(1) / mask.sum(1)
    return torch.where((A < 0) & (drift >= bound), 0.0, 1.0)


def advantages_by_axis(axis):
    return lambda rewards, group: (rewards.view(-1, group) - rewards.view(-1, group).mean(
        axis, keepdim=True)).view(-1)


def reply_over_all_true(logits, ids, wrote):
    losses = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    return (losses * wrote[:, 1:]).sum() / wrote.sum()


def gain_at_two_tenths(ratio, A, clip):
    return torch.min(ratio * A[:, None], ratio.clamp(0.8, 1.2) * A[:, None])


@pytest.mark.parametrize("name, attempt, words", [
    ("specialists.pass_at_k", checks._for_all(lambda n, c, k: 0.0 if n - c < k else
                                              1 - comb(n - c, k) / comb(n, k)),
     "you return 0 where fewer than k"),
    ("specialists.pass_at_k", checks._for_all(lambda n, c, k: 1.0 if n - c <= k else
                                              1 - comb(n - c, k) / comb(n, k)),
     "you return 1 where exactly k"),
    ("specialists.kept", lambda p, old, A, mask, bound: 1.0 - ((A < 0) & (
        (((old - p) ** 2) * mask).sum(1) / mask.sum(1) > bound)).float(), "you square"),
    ("specialists.kept", kept_also_at_zero, "answers with A = 0"),
    ("specialists.kept", kept_below_the_bound, "you compare with >="),
    ("specialists.advantages", advantages_by_axis(0), "over axis 0, across the prompts"),
    ("specialists.reply_loss", reply_over_all_true, "all True in `wrote`"),
    ("specialists.reply_loss", lambda logits, ids, wrote: F.cross_entropy(
        logits[:, :-1][wrote[:, :-1]], ids[:, 1:][wrote[:, :-1]]), "your mask is one place off"),
    ("specialists.clipped", gain_at_two_tenths, "always clip at 0.2"),
    ("specialists.clipped", lambda ratio, A, clip: ratio.clamp(1 - clip, 1 + clip) * A[:, None],
     "you only clamp"),
    ("specialists.clipped", lambda ratio, A, clip: -gain_by_cases(ratio, A, clip),
     "you return the loss"),
    ("specialists.kl", checks.with_gradient(
        lambda p, o, f: (p - o).exp().detach() * ((f - p).exp() - (f - p) - 1)),
     "you detach the ratio"),
    ("specialists.pass_at_k", checks._for_all(lambda n, c, k: 1 - comb(c, k) / comb(n, k)),
     "all k are wrong"),
    ("specialists.reply_loss", loss_of_all_tokens,
     "you count the prompt too"),
    ("specialists.advantages", advantages_divided, "you divide by the group's standard deviation"),
    ("specialists.advantages", lambda r, g: r - r.mean(), "the mean of the whole batch"),
    ("specialists.clipped", clipped_the_wrong_way,
     "you take the maximum"),
    ("specialists.clipped", lambda ratio, A, c: ratio.clamp_max(1 + c) * A[:, None],
     "from above for bad answers too"),
    ("specialists.kl", checks.with_gradient(lambda p, o, f: (f - p).exp() - (f - p) - 1),
     "you leave out the ratio pi / pi_old"),
    ("specialists.kl", checks.with_gradient(kl_upside_down),
     "you take r upside down"),
    ("specialists.kept", kept_by_the_sum, "you take the sum"),
    ("specialists.pass_at_k", checks._for_all(lambda n, c, k: 1 - ((n - c) / n) ** k),
     "you sample with replacement"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_parts_make_the_loss_of_the_package():
    rng = torch.Generator().manual_seed(4)
    old = -0.2 - torch.rand(6, 5, generator=rng)
    logprobs, reference = (old + 0.5 * torch.randn(6, 5, generator=rng) for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    A = checks.advantages(torch.randn(6, generator=rng), 3)
    mean = lambda t: (t * mask).sum(1) / mask.sum(1)
    gain = mean(checks.clipped_gain((logprobs - old).exp(), A, 0.2))
    gain = gain * checks.kept(logprobs, old, A, mask, 0.05)
    wanted, metrics = grpo.objective(logprobs, old, reference, A, mask, epsilon=0.2, beta=0.3,
                                     off_policy_mask_threshold=0.05)
    assert metrics["masked_fraction"] > 0
    kl = mean(checks.kl_estimate(logprobs, old, reference))
    torch.testing.assert_close(-(gain - 0.3 * kl).mean(), wanted)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.0, 1.1, 1.7])
@pytest.mark.parametrize("A", [1.0, -0.5])
def test_the_widget_shows_gain_and_slope(ratio, A):
    x = torch.tensor([[ratio]], requires_grad=True)
    gain = checks.clipped_gain(x, torch.tensor([A]), 0.2)
    slope, = torch.autograd.grad(gain.sum(), x)
    expected = pytest.approx(gain.item()), pytest.approx(slope.item())
    assert specialists.gain_at(ratio, A, 0.2) == expected


def test_pass_at_k_counts_subsets():
    assert checks.pass_at_k(5, 2, 3) == pytest.approx(1 - comb(3, 3) / comb(5, 3))


@pytest.mark.slow
def test_the_figures_draw():
    ratio = torch.tensor([[1.5, 1.0], [0.5, 1.0]])
    mask = torch.tensor([[True, True], [True, False]])
    log = [{"right": 0.1 * i, "thinks": 0.5} for i in range(6)]
    for figure in (specialists.plot_objective(1.5, -1.0), specialists.plot_objective_pair(),
                   specialists.plot_sft_loss([2.0] * 9),
                   specialists.plot_clipping(ratio, mask, [0.5, -0.5], [True, False], 0.2,
                                             [["a", "b"], ["c"]]),
                   specialists.plot_estimators(0.3, {"k1": (0.3, 1.0)}, {"k1": (0.0, 1.0)}),
                   specialists.plot_baselines({"none": [0.1, 0.2]})[0],
                   specialists.plot_hacking({"a": [[0.1, 0.2]]}, {"a": "1 2"}),
                   specialists.plot_seeds({"a": [[0.1, 0.2]]}, "y", "t"),
                   specialists.plot_shares({"a": [0.5], "b": [0.1]}),
                   specialists.plot_replay(ratio.flatten().numpy(), ratio.flatten().numpy(), 0.1),
                   specialists.plot_grpo_run({"a": log}, {"right": "r", "thinks": "t"}),
                   specialists.plot_bars({"m": {"a": (0.5, 0.4, 0.6)}}, "y", guess=0.1),
                   specialists.plot_pass_at_k({"a": [0.1, 0.2]}),
                   specialists.plot_modes(("HLE (", "MMLU-Pro"))):
        figure.canvas.draw()
        assert figure.axes
        plt.close(figure)
