import dataclasses
import math

import pytest
import torch
from helpers import Killed, kill_at, without_time
from tiny import COMPRESSED

from minids import Model
from minids.data import tasks
from minids.data.chat import MODES
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, prompt_ids
from minids.model.moe import Gate
from minids.model.passes import Options
from minids.posttrain import grpo
from minids.posttrain.grpo import (
    GRPOConfig,
    advantages,
    batches,
    objective,
    policy,
    problems_of_step,
    reward,
    update_policy,
)
from minids.posttrain.rollouts import log_distribution, rollouts
from minids.posttrain.sft import SFTConfig
from minids.pretrain.optim import make_optimiser
from minids.pretrain.run_folder import newest, read_log
from minids.weights.checkpoint import load
from minids.weights.digest import digest
from minids.weights.save import save

LONG = COMPRESSED.replace(max_seq_len=512)
SMALL = LONG.replace(vocab_size=24, n_mtp_layers=0, compress_ratios=(4, 16))
SETTINGS = GRPOConfig(steps=4, num_prompts=2, num_generations=4, pool_size=40,
                      modes=("non-think", "think-high"), difficulties=(1, 2),
                      eval_every=4, eval_problems=2, save_every=2, top_p=0.9)
TOKENIZER = Tokenizer.load()


@pytest.fixture(scope="module", autouse=True)
def short_replies():
    """An untrained model does not end its replies."""
    with pytest.MonkeyPatch.context() as patch:
        for mode, limit in zip(MODES, (6, 8, 10)):
            patch.setitem(LIMITS, mode, limit)
        yield


def new_model(config, seed=0, size=3):
    torch.manual_seed(seed)
    model = Model(config).train()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(size)
    return model


# ---- the objective ----

def numbers(seed=0, B=6, R=5):
    """Log-probabilities of a policy some way from that which sampled, advantages, and answers of
    several lengths."""
    g = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(B, R, generator=g)
    logprobs = (old + 0.4 * torch.randn(B, R, generator=g)).requires_grad_()
    reference = old + 0.4 * torch.randn(B, R, generator=g)
    mask = torch.arange(R) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    return logprobs, old, reference, torch.randn(B, generator=g), mask


def transcribed(logprobs, old, reference, advantages, mask, epsilon, beta,
                off_policy_mask_threshold, use_bias_correction_kl):
    """docs/specification.md, section 7, answer by answer and token by token."""
    total, threshold = 0.0, off_policy_mask_threshold
    for i in range(len(advantages)):
        A, tokens = advantages[i].item(), [t for t in range(mask.shape[1]) if mask[i, t]]
        drift = sum((old[i, t] - logprobs[i, t]).item() for t in tokens) / len(tokens)
        M = 0 if threshold is not None and A < 0 and drift > threshold else 1
        answer = 0.0
        for t in tokens:
            ratio = torch.exp(logprobs[i, t] - old[i, t])
            r = torch.exp(reference[i, t] - logprobs[i, t])
            gain = ratio * A
            if epsilon is not None:
                gain = torch.minimum(gain, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * A)
            weight = ratio if use_bias_correction_kl else 1
            answer += gain * M - beta * weight * (r - torch.log(r) - 1)
        total += answer / len(tokens)
    return -total / len(advantages)


@pytest.mark.parametrize("options", [
    dict(epsilon=0.2, beta=0.1, off_policy_mask_threshold=0.05, use_bias_correction_kl=True),
    dict(epsilon=None, beta=0.1, off_policy_mask_threshold=None, use_bias_correction_kl=True),
    dict(epsilon=0.1, beta=0.0, off_policy_mask_threshold=0.0, use_bias_correction_kl=True),
    dict(epsilon=0.2, beta=0.5, off_policy_mask_threshold=None, use_bias_correction_kl=False)])
@pytest.mark.parametrize("seed", [0, 1])
def test_objective_and_its_gradient_are_those_of_plain_loops(seed, options):
    logprobs, *rest = numbers(seed)
    loss, _ = objective(logprobs, *rest, **options)
    slow = transcribed(logprobs, *rest, **options)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    fast_grad, = torch.autograd.grad(loss, logprobs)
    slow_grad, = torch.autograd.grad(slow, logprobs)
    assert torch.allclose(fast_grad, slow_grad, atol=1e-6) and (fast_grad[~rest[-1]] == 0).all()


def test_objective_worked_by_hand():
    """Two answers. The good one, A = 1: ratios 2 (clipped to 1.2) and 1, r = 1 and 2. The bad one,
    A = -1: ratio 1/2, below 0.8, and log(pi_old / pi) = log 2 = 0.69."""
    log = math.log
    old = torch.tensor([[log(0.25), log(0.25)], [log(0.5), 0.0]])
    logprobs = torch.tensor([[log(0.5), log(0.25)], [log(0.25), 0.0]])
    reference = torch.tensor([[log(0.5), log(0.5)], [log(0.25), -9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    call = lambda **options: objective(logprobs, old, reference, torch.tensor([1.0, -1.0]), mask,
                                       **options)
    # gains: (1.2 + 1) / 2 = 1.1, and min(-0.5, -0.8) = -0.8; KL: (2 * 0 + (2 - log 2 - 1)) / 2 =
    # 0.15343, and 0
    loss, stats = call(epsilon=0.2, beta=0.1, off_policy_mask_threshold=1.0)
    assert loss.item() == pytest.approx(-(1.1 - 0.1 * 0.153426 - 0.8) / 2, rel=1e-5)
    assert stats["kl"] == pytest.approx(0.153426 / 2, rel=1e-5)
    assert (stats["clip_fraction"], stats["masked_fraction"]) == (pytest.approx(2 / 3), 0)
    # 0.69 exceeds it: the bad answer is left out
    loss, stats = call(epsilon=0.2, beta=0.1, off_policy_mask_threshold=0.6)
    assert loss.item() == pytest.approx(-(1.1 - 0.1 * 0.153426) / 2, rel=1e-5)
    assert stats["masked_fraction"] == 0.5
    loss, _ = call(epsilon=None, beta=0.0, off_policy_mask_threshold=None)
    assert loss.item() == pytest.approx(-((2 + 1) / 2 - 0.5) / 2, rel=1e-5)


def test_the_mask_drops_bad_answers_that_have_become_unlikely_and_no_others():
    old = torch.zeros(4, 3) - 1
    drift = torch.tensor([0.3, 0.3, 0.05, -0.3])                # mean of log(pi_old / pi)
    wobble = torch.tensor([0.5, 0.0, -0.5])                    # the mean decides, not single tokens
    logprobs = (old - drift[:, None] + wobble).requires_grad_()
    A = torch.tensor([1.0, -1.0, -1.0, -1.0])
    loss, stats = objective(logprobs, old, old, A, torch.ones(4, 3, dtype=torch.bool), epsilon=None,
                            beta=0.0, off_policy_mask_threshold=0.1)
    grad, = torch.autograd.grad(loss, logprobs)
    assert [bool(row.any()) for row in grad] == [True, False, True, True]
    assert stats["masked_fraction"] == 0.25


def test_kl_estimate_and_its_gradient_are_right_in_the_mean():
    """Over all tokens of a small vocabulary, weighted by their sampling probabilities, the estimate
    is exactly the KL, and its gradient the KL's gradient; without the ratio neither is."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=g).requires_grad_()
    logp, (old, reference) = logits.log_softmax(0), torch.randn(2, 7, generator=g).log_softmax(1)
    exact = (logp.exp() * (logp - reference)).sum()
    wanted, = torch.autograd.grad(exact, logits, retain_graph=True)

    def mean(unbiased):         # each token is an answer of one token
        one = torch.ones(1, 1, dtype=torch.bool)
        estimates = [objective(logp[a].view(1, 1), old[a].view(1, 1), reference[a].view(1, 1),
                               torch.zeros(1), one, beta=1.0,
                               use_bias_correction_kl=unbiased)[0] for a in range(7)]
        return sum(old[a].exp() * estimates[a] for a in range(7))

    estimate = mean(True)
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(estimate, logits, retain_graph=True)[0], wanted,
                          atol=1e-6)
    biased = mean(False)
    assert abs(biased.item() - exact.item()) > 0.05
    assert not torch.allclose(torch.autograd.grad(biased, logits)[0], wanted, atol=1e-2)


def test_advantages_are_rewards_less_their_groups_mean():
    rewards = torch.tensor([1.0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5])
    settings = GRPOConfig(num_generations=4)
    assert advantages(rewards, settings).tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]
    without = dataclasses.replace(settings, subtract_group_mean=False)
    assert torch.equal(advantages(rewards, without), rewards)


def test_length_costs_more_where_the_mode_permits_less():
    settings = GRPOConfig(length_penalty=0.2)
    assert reward(True, LIMITS["non-think"], "non-think", settings) == pytest.approx(0.8)
    assert reward(False, 3, "non-think", settings) < reward(False, 3, "think-high", settings) < 0
    assert reward(True, 5, "think-max", dataclasses.replace(settings, length_penalty=0.0)) == 1


# ---- replay ----

def unlike(model):
    """The largest change of a log-probability when gates come to choose other experts; and with the
    choices replayed."""
    settings = GRPOConfig(top_p=0.8)
    r = rollouts(model, [[0, 9, 13, 2]] * 6, 12, 1.0, 0.8, torch.Generator().manual_seed(1),
                 record=True)
    with torch.no_grad():
        before = policy(model, r, settings, keep_routing=True)[0]
        for gate in model.modules():
            if isinstance(gate, Gate):
                gate.bias += torch.tensor([0.0, 5.0, 0.0, 5.0])    # the bias picks, it never weighs
        replayed, free = (policy(model, r, settings, replay)[0] for replay in (True, False))
        unmasked = policy(model, r, dataclasses.replace(settings, keep_sampling_mask=False),
                          keep_routing=True)[0]
    distance = lambda a: (a - r.logprobs)[r.mask].abs().max().item()
    return distance(before), distance(replayed), distance(free), distance(unmasked)


def test_the_ratio_is_1_on_policy_with_both_replays_and_only_then():
    before, replayed, free, unmasked = unlike(new_model(SMALL))
    assert before < 1e-5 and replayed < 1e-5
    assert free > 1e-3 and unmasked > 0.1


def test_answers_share_the_pass_over_their_prompt_and_its_gradient():
    model = new_model(SMALL)
    prompts = [[0, 9, 13, 2, 7]] * 4 + [[0, 3, 3, 8, 1]] * 4
    r = rollouts(model, prompts, 12, 1.0, 0.8, torch.Generator().manual_seed(1),
                 record=True).rows([0, 1, 3, 6, 7, 2])
    weight = torch.randn(r.logprobs.shape) * r.mask
    shared = policy(model, r, GRPOConfig(), keep_routing=True)[0]
    X = model.features(r.ids[:, :-1], options=Options(experts=r.experts))
    logp = log_distribution(model.logits(X)[:, 4:], 1.0, r.choices(24))
    apart = logp.gather(-1, r.ids[:, 5:, None])[..., 0]
    torch.testing.assert_close(shared[r.mask], apart[r.mask], atol=1e-5, rtol=1e-5)
    gradients = lambda x: torch.autograd.grad((x.masked_fill(~r.mask, 0) * weight).sum(),
                                              model.parameters(), allow_unused=True)
    for a, b in zip(gradients(shared), gradients(apart), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5 * max(b.abs().max().item(), 1), rtol=1e-3)


def test_replies_may_fill_the_context():
    model = new_model(SMALL.replace(max_seq_len=16))
    r = rollouts(model, [[0, 9, 13, 2]] * 4, 13, generator=torch.Generator().manual_seed(1),
                 record=True)
    assert r.ids.shape[1] == 17                                       # the last token is never read
    logprobs = policy(model, r, GRPOConfig(), keep_routing=True)[0]
    torch.testing.assert_close(logprobs[r.mask], r.logprobs[r.mask], atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_distribution():
    model = new_model(SMALL).eval()
    r = rollouts(model, [[0, 9, 13, 2]] * 2, 5, 1.0, 0.8, torch.Generator().manual_seed(1),
                 record=True)
    _, entropy = policy(model, r, GRPOConfig(), keep_routing=True)
    p = (model(r.ids[:, :-1])[:, 3:].softmax(-1) * r.choices(24)).double()
    p = p / p.sum(-1, keepdim=True)
    assert torch.allclose(entropy[r.mask].double(), -torch.xlogy(p, p).sum(-1)[r.mask], atol=1e-4)


# ---- learning ----

@pytest.mark.slow
def test_reward_rises():
    """One token is to be said: 7. At first each of 24 is about as likely."""
    model, reference = new_model(SMALL, size=1), new_model(SMALL, size=1)
    settings = GRPOConfig(steps=16, num_prompts=1, num_generations=32, steps_per_generation=2,
                          lr=3e-2, beta=0.01, warmup=1)
    optimiser, shares = make_optimiser(model, settings), []
    for step in range(settings.steps):
        r = rollouts(model, [[0, 5, 6]] * 32, 1, generator=torch.Generator().manual_seed(step),
                     record=True)
        rewards = torch.tensor([float(reply[0] == 7) for reply in r.replies])
        shares.append(rewards.mean().item())
        record = update_policy(model, reference, optimiser, r, advantages(rewards, settings),
                               settings, step)
    assert sum(shares[:3]) / 3 < 0.3 and sum(shares[-3:]) / 3 > 0.9
    assert record["kl"] > 1 and record["entropy"] < 1       # it has left the reference, and is sure


@pytest.mark.slow
def test_without_advantages_only_the_kl_pulls():
    """Equal rewards teach nothing: with the policy at the reference the gradient is 0, and away
    from it KL falls."""
    reference, away = new_model(SMALL), new_model(SMALL, seed=1)
    away.load_state_dict(reference.state_dict())
    settings = GRPOConfig(steps=12, num_prompts=1, num_generations=64, steps_per_generation=1,
                          beta=1.0, lr=3e-3, warmup=1)
    r = rollouts(away, [[0, 5, 6]] * 64, 4, generator=torch.Generator().manual_seed(0), record=True)
    assert update_policy(away, reference, make_optimiser(away, settings), r, torch.zeros(64),
                         settings, 0)["grad_norm"] < 1e-3
    with torch.no_grad():
        away.head.weight += 0.3 * torch.randn(away.head.weight.shape,
                                              generator=torch.Generator().manual_seed(3))
    optimiser, kls = make_optimiser(away, settings), []
    for step in range(settings.steps):
        r = rollouts(away, [[0, 5, 6]] * 64, 4, generator=torch.Generator().manual_seed(step),
                     record=True)
        kls.append(update_policy(away, reference, optimiser, r, torch.zeros(64), settings,
                                 step)["kl"])
    assert sum(kls[-3:]) < 0.5 * sum(kls[:3])


def test_answers_as_good_as_their_group_need_not_be_read_again(monkeypatch):
    """Without a KL the gradients of a step are those of all answers, though only those with an
    advantage are read."""
    settings = GRPOConfig(steps=4, num_prompts=4, num_generations=4, steps_per_generation=2,
                          beta=0.0)
    scores = advantages(torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]), settings)
    model, read, gradients = new_model(SMALL), [], []

    def keep(model, *rest, number):
        gradients.append({name: p.grad for name, p in model.named_parameters()
                          if p.grad is not None})
        model.zero_grad()
        return {}

    def counted(model, r, *rest):
        read.append(len(r.ids))
        return policy(model, r, *rest)

    monkeypatch.setattr(grpo, "optimiser_step", keep)
    monkeypatch.setattr(grpo, "policy", counted)
    r = rollouts(model, [[0, 5, i] for i in range(4) for _ in range(4)], 4,
                 generator=torch.Generator().manual_seed(0), record=True)
    losses = [update_policy(model, None, None, r, scores + noise, settings, 0)["loss"]
              for noise in (0.0, 1e-30)]
    assert read == [4, 4, 8, 8]             # an advantage of next to nothing is read
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(gradients) == 4
    for part, whole in zip(gradients[:2], gradients[2:]):
        assert part.keys() == whole.keys()
        for name, g in part.items():
            torch.testing.assert_close(g, whole[name], atol=1e-6, rtol=1e-4)


def test_with_nothing_to_learn_a_step_changes_nothing_but_the_decay():
    settings = GRPOConfig(steps=4, num_prompts=1, num_generations=8, steps_per_generation=2,
                          beta=0.0, lr=1e-3, warmup=1, weight_decay=0.0)
    model = new_model(SMALL)
    before = digest(model)
    r = rollouts(model, [[0, 5, 6]] * 8, 4, generator=torch.Generator().manual_seed(0), record=True)
    record = update_policy(model, None, make_optimiser(model, settings), r, torch.zeros(8),
                           settings, 0)
    assert record["loss"] == record["grad_norm"] == 0 and digest(model) == before


# ---- a run ----

def test_a_step_takes_prompts_of_one_length_and_an_epoch_each_problem_once():
    per_epoch = len(batches(SETTINGS, 0))
    seen = []
    for step in range(per_epoch):
        mode, group = problems_of_step(SETTINGS, step)
        assert mode == SETTINGS.modes[step % 2] and len(group) <= 2
        assert len({len(prompt_ids(SETTINGS.problem("train", i), TOKENIZER, mode))
                    for i in group}) == 1
        seen += group
    assert len(seen) == len(set(seen)) > 0.6 * SETTINGS.pool_size
    again = [problems_of_step(SETTINGS, per_epoch + step)[1] for step in range(per_epoch)]
    assert again != [problems_of_step(SETTINGS, step)[1] for step in range(per_epoch)]
    assert len(batches(SETTINGS, 1)) == per_epoch
    assert {tasks.split_of(SETTINGS.problem("train", i)) for i in seen} == {"train"}


@pytest.mark.parametrize("seed", (0, 7))
def test_each_seed_has_its_own_problems_and_rewards_never_take_those_with_worked_answers(seed):
    mine, next_one = (dataclasses.replace(SETTINGS, seed=s) for s in (seed, seed + 1))
    pool = {i for group in batches(mine, 0) for i in group}
    taught = SFTConfig(modes=mine.modes, seed=seed)
    worked = {taught.problem_and_mode(i)[0] for step in (0, 10_000)
              for i in taught.numbers(step, 48)}
    assert worked.isdisjoint(pool) and {i // 1_000_000 for i in worked | pool} == {seed}
    assert pool.isdisjoint(i for group in batches(next_one, 0) for i in group)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    save(new_model(LONG), path := tmp_path_factory.mktemp("base") / "model", format="fp32",
         tokenizer=TOKENIZER)
    return path


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, grpo.grpo(base, SETTINGS, out)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(base, whole, tmp_path):
    with pytest.raises(Killed):
        grpo.grpo(base, SETTINGS, tmp_path / "run", on_step=kill_at(3))
    assert newest(tmp_path / "run").name == "step-000002"
    log = grpo.grpo(base, SETTINGS, tmp_path / "run")
    assert without_time(log) == without_time(whole[1]) == without_time(read_log(tmp_path / "run"))
    cut, uncut = (digest(load(newest(out))) for out in (tmp_path / "run", whole[0]))
    assert cut == uncut != digest(load(base))


def test_the_log_of_a_run(whole):
    steps = [r for r in whole[1] if "loss" in r]
    assert [(r["step"], r["mode"]) for r in steps] == [(1, "non-think"), (2, "think-high"),
                                                       (3, "non-think"), (4, "think-high")]
    keys = {"reward", "accuracy", "length", "kl", "clip_fraction", "masked_fraction", "entropy",
            "tokens", "seconds"}
    assert all(keys <= set(record) for record in steps)
    assert all(r["tokens"] == r["length"] * 8 <= 8 * LIMITS[r["mode"]] for r in steps)
    assert [r["step"] for r in whole[1] if "valid_accuracy" in r] == [0, 0, 4, 4]
    assert (whole[0] / "model").is_dir()


@pytest.mark.parametrize("changes, message", [
    ({"num_generations": 1}, "num_generations: expected at least 2"),
    ({"temperature": 0.0}, "temperature: expected above 0"),
    ({"temperature": 1e-40}, "temperature: expected above 0"),
    ({"steps_per_generation": 3}, "a divisor of num_prompts x num_generations = 8 x 8, found 3"),
    ({"pool_size": 4}, "pool_size: expected at least 8"), ({"families": ("x",)}, "families")])
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(MinidsError, match=message):
        GRPOConfig(**changes)
