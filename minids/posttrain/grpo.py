"""GRPO: a specialist learns from answers of its own, which a verifier has judged.

Report section 5.1; the objective is that of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), on which V4 builds: V4_SPEC 7.
A step samples a group of answers to each of some problems, and takes a few steps of the optimiser on them, minibatch by
minibatch. Each ingredient is a field of `GRPOConfig`. Sampling is in `minids.posttrain.rollouts`, problems and verifiers are in
`minids.data.tasks`, the run is kept by `minids.posttrain.loop`.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import torch

from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, is_correct, prompt_ids
from minids.model.ledger import Ledger
from minids.posttrain.loop import descend, examine, run
from minids.posttrain.rollouts import Rollouts, by_length, keep, log_distribution, rollouts, shared
from minids.posttrain.settings import Settings
from minids.system.distributed import device
from minids.weights.checkpoint import load


@dataclass(frozen=True)
class GRPOConfig(Settings):
    """How to learn from rewards. Steps take turns among the modes; the prompts of a step have one length."""

    steps: int = 60
    lr: float = 5e-4
    warmup: int = 3
    problems: int = 8           # of a step
    group: int = 8              # answers to each of them
    updates: int = 2            # steps of the optimiser that share the answers of a step; 1 is on-policy
    pool: int = 2048            # problems of the train split to draw from
    temperature: float = 1.0
    top_p: float = 1.0
    penalty: float = 0.1        # of a reply as long as its mode permits; in proportion, a shorter one's. 0: length is free
    group_mean: bool = True     # rewards count against the group's mean; off: as they are
    clip_ratio: float | None = 0.2      # None: ratios are not clipped
    beta: float = 0.02          # weight of the KL to the model that the run began with; 0: off
    unbiased: bool = True       # the KL estimate is weighed by the ratio; off: as if answers were always on-policy
    bound: float | None = 0.1   # an answer worse than its group counts as long as it is no less likely than this; None: always
    replay_routing: bool = True     # tokens take the experts that they took in sampling; off: those of the gates
    replay_mask: bool = True        # the policy chooses among the tokens that top-p left; off: among all

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("problems", 1), ("group", 2), ("updates", 1), ("pool", self.problems)):
            if getattr(self, name) < least:
                raise MinidsError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.temperature <= 0 or self.problems * self.group % self.updates:
            raise MinidsError(f"expected a temperature above 0, and problems x group in {self.updates} equal parts; found "
                              f"{self.temperature} and {self.problems} x {self.group}")


def grpo(base, settings: GRPOConfig, out, resume: bool = True, on_step=None) -> list[dict]:
    """Train the model in the folder `base` by its rewards, in the folder `out`; returns the log (see `minids.posttrain.loop.run`).

    Its records: {"step", "mode", "loss", "reward", "accuracy", "length", "kl", "clipped", "masked", "entropy", "tokens",
    "rehearsal_loss", "grad_norm", "lr", "seconds"} each step, as far as there is such a thing: mean reward, share of right
    answers and mean length of the sampled replies; the estimate of the KL to the model that the run began with, in nats per
    token; of the answers that `learn` reads the share of clipped tokens, that of those left out, and the policy's entropy in
    nats per token; and the records of `minids.posttrain.loop.examine` now and then.
    """
    model = load(base, device(), torch.float32)
    reference = load(base, device(), torch.float32) if settings.beta else None
    tokenizer = Tokenizer.load()

    def update(optimiser, step):
        mode, numbers = batch_of(settings, step)
        problems = [settings.problem("train", i) for i in numbers for _ in range(settings.group)]
        prompts = [prompt_ids(problem, tokenizer, mode) for problem in problems]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        r = rollouts(model, prompts, LIMITS[mode], settings.temperature, settings.top_p, generator, record=True)
        verdicts = [is_correct(problem, reply, tokenizer, mode) for problem, reply in zip(problems, r.replies)]
        rewards = torch.tensor([reward(ok, len(reply), mode, settings) for ok, reply in zip(verdicts, r.replies)])
        scores = advantages(rewards, settings)
        record = {"mode": mode, "reward": rewards.mean().item(), "accuracy": sum(verdicts) / len(verdicts),
                  "length": r.mask.sum(1).float().mean().item(), "tokens": int(r.mask.sum())}
        return record | learn(model, reference, optimiser, r, scores, settings, step)

    return run(model, settings, out, {}, update, lambda step: examine(model, tokenizer, settings), resume, on_step, name="GRPO")


def learn(model, reference, optimiser, r: Rollouts, scores, settings: GRPOConfig, step: int) -> dict:
    """The updates on one batch of answers; scores: B, their advantages. Returns what the log says, means over the updates.

    Without a KL, an answer as good as its group's mean has no gradient: it counts in the mean, but is not read again.
    """
    scores, totals = scores.to(r.ids.device), defaultdict(float)
    for i in range(settings.updates):
        rows = torch.arange(i, len(r.ids), settings.updates, device=r.ids.device)
        share = 1.0
        if not settings.beta:
            telling = rows[scores[rows] != 0]
            share, rows = len(telling) / len(rows), telling if len(telling) else rows[:1]    # none: one is read, for the log
        some = r.rows(rows)
        with torch.no_grad():
            base = policy(reference, some, settings, replay=False)[0] if settings.beta else some.logprobs
        logprobs, entropy = policy(model, some, settings, settings.replay_routing)
        loss, stats = objective(logprobs, some.logprobs, base, scores[rows], some.mask, settings.clip_ratio, settings.beta,
                                settings.bound, settings.unbiased)
        (share * loss).backward()
        entropy = (entropy * some.mask).sum() / some.mask.sum()
        stats |= {"loss": share * loss.item(), "entropy": entropy.item()}
        stats |= descend(model, optimiser, settings, step, reading=step * settings.updates + i)
        for name, value in stats.items():
            totals[name] += value / settings.updates
    if not settings.beta:
        del totals["kl"]        # there was nothing to compare with
    return dict(totals)


def objective(logprobs, old, reference, advantages, mask, clip: float | None = 0.2, beta: float = 0.02,
              bound: float | None = 0.1, unbiased: bool = True):
    """GRPO's loss, to be made small, and {"kl", "clipped", "masked"} for the log.

    logprobs, old, reference: B R, of the sampled tokens under the policy, under that which sampled, and under the reference.
    advantages: B. mask: B R, whether the token is there. With ratio = pi / pi_old and r = pi_ref / pi, the mean over answers
    and over each answer's tokens of

        min(ratio A, clip(ratio, 1 - e, 1 + e) A) M - beta ratio (r - log r - 1)

    where M is 0 for an answer with A < 0 whose tokens' mean of log(pi_old / pi) exceeds `bound`, and 1 for all others: a bad
    answer that the policy would hardly give any more teaches nothing.
    """
    mean = lambda t: (t * mask).sum(1) / mask.sum(1)                                      # B R -> B
    log_ratio = (logprobs - old).masked_fill(~mask, 0.0)
    ratio, A = log_ratio.exp(), advantages[:, None]
    gain = ratio * A
    clipped = torch.zeros_like(mask)
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * A)
        clipped = torch.where(A > 0, ratio > 1 + clip, ratio < 1 - clip) & (A != 0) & mask
    kept = torch.ones_like(advantages)
    if bound is not None:
        kept = 1.0 - ((advantages < 0) & (mean(-log_ratio.detach()) > bound)).float()
    log_r = (reference - logprobs).masked_fill(~mask, 0.0)
    kl = log_r.exp() - log_r - 1                                                          # never negative
    if unbiased:
        kl = ratio * kl
    loss = -(mean(gain) * kept - beta * mean(kl)).mean()
    return loss, {"kl": mean(kl).mean().item(), "clipped": (clipped.sum() / mask.sum()).item(),
                  "masked": 1 - kept.mean().item()}


def policy(model, r: Rollouts, settings: GRPOConfig, replay: bool):
    """Of each reply token the log-probability, and the entropy of the distribution that it comes from: two of B R.

    `replay` lets tokens take the experts that they took in sampling. The reference takes its own: it is another model. What
    top-p left to choose from holds for both, else their KL would not be 0 where they are equal.
    Answers that stand next to each other and have the same prompt share one pass over it, and its gradient.
    """
    P, (first, owner) = r.prompt, shared(r.ids[:, : r.prompt])
    took = [e.unflatten(0, (len(r.ids), -1)) for e in r.experts or ()] if replay else []   # each B T-1 K
    replayed = lambda some: Ledger(experts=[e.flatten(0, 1) for e in some] or None)
    state = model.new_state(len(first), r.ids.shape[1] - 1)
    X = model.features(r.ids[first, :P], state, replayed(e[first, :P] for e in took))[owner, -1:]     # B 1 n d
    if r.ids.shape[1] > P + 1:
        keep(state, owner)
        X = torch.cat([X, model.features(r.ids[:, P:-1], state, replayed(e[:, P:] for e in took))], dim=1)    # B R n d
    logits = model.logits(X)                                                              # B R vocab
    allowed = r.choices(logits.shape[-1]) if settings.replay_mask else None
    logp = log_distribution(logits, r.temperature, allowed)
    with torch.no_grad():
        entropy = -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)                            # 0 log 0 = 0
    return logp.gather(-1, r.ids[:, r.prompt:, None])[..., 0], entropy


def reward(right: bool, length: int, mode: str, settings: GRPOConfig) -> float:
    """1 for a right answer, less the penalty for its length: a token costs more in a mode that permits fewer."""
    return float(right) - settings.penalty * length / LIMITS[mode]


def advantages(rewards, settings: GRPOConfig):
    """Rewards less the mean of their group, not divided by its deviation. rewards: B, group after group -> B."""
    groups = rewards.view(-1, settings.group)
    return (groups - groups.mean(1, keepdim=True) if settings.group_mean else groups).flatten()


def batch_of(settings: GRPOConfig, step: int) -> tuple[str, list[int]]:
    """The mode of a step, and the numbers of its problems, whose prompts have one length."""
    epoch, at = divmod(step, len(batches(settings, 0)))
    return settings.modes[step % len(settings.modes)], batches(settings, epoch)[at]


@cache
def batches(settings: GRPOConfig, epoch: int) -> list[list[int]]:
    """The pool in another order each epoch, cut into batches of prompts of one length. A length's rest that fills no batch
    waits for another epoch, unless it is all that there is."""
    rng = random.Random(f"{settings.seed} {epoch}")
    found = []
    for group in lengths(settings):
        group = rng.sample(group, len(group))
        size = min(settings.problems, len(group))
        found += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
    rng.shuffle(found)
    return found


@cache
def lengths(settings: GRPOConfig) -> list[list[int]]:
    """The numbers of the problems of the pool, by the length of their prompts."""
    tokenizer, pool = Tokenizer.load(), settings.numbers(0, settings.pool, fresh=True)
    prompts = [prompt_ids(settings.problem("train", i), tokenizer, settings.modes[0]) for i in pool]
    return [[pool[i] for i in group] for group in by_length(prompts)]
