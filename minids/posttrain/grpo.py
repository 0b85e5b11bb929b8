"""GRPO: a specialist learns from its own answers, which a verifier judges.

Report section 5.1; the objective is that of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), on which
V4 builds (docs/specification.md, section 7). A step samples a group of replies to each of several
prompts, rewards them, and updates the policy a few times on them, minibatch by minibatch. Each
ingredient is a field of `GRPOConfig`; the names are those of TRL's GRPOConfig where it has the same
thing.

For sampling see `minids.posttrain.rollouts`, for problems and verifiers `minids.data.tasks`, for
the run `minids.posttrain.loop`.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import torch

from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, is_correct, prompt_ids
from minids.inference.sampling import is_greedy
from minids.model.passes import Options
from minids.model.vocabulary import log_probs
from minids.posttrain.loop import optimiser_step, post_training_run, validate
from minids.posttrain.records import GRPOStep, Validation
from minids.posttrain.rollouts import Rollouts, by_length, cold, rollouts, shared, unpacked
from minids.posttrain.settings import PostTrainConfig
from minids.pretrain.losses import floats
from minids.pretrain.settings import require_least
from minids.system import distributed
from minids.system.devices import moved
from minids.system.files import check_writable
from minids.weights.checkpoint import load


@dataclass(frozen=True)
class GRPOConfig(PostTrainConfig):
    """The settings of GRPO. The prompts of a step have one mode and one length."""

    steps: int = 60             # number of training steps, each with a batch of replies
    lr: float = 5e-4            # peak learning rate; it falls to a tenth along a cosine
    warmup: int = 3             # number of steps over which the learning rate rises
    num_prompts: int = 8        # prompts per step
    num_generations: int = 8    # replies sampled for each prompt: the group
    steps_per_generation: int = 2   # updates per batch of replies, each on its own part
    pool_size: int = 2048       # problems of the training split to choose from
    temperature: float = 1.0    # sampling temperature
    top_p: float = 1.0          # sample among the most likely tokens whose probabilities reach this
    length_penalty: float = 0.1     # penalty for a reply as long as its mode allows (0: none)
    subtract_group_mean: bool = True    # advantage: the reward minus the mean reward of its group
    epsilon: float | None = 0.2     # clip range of the probability ratio, 1 +- epsilon (none: off)
    beta: float = 0.02          # weight of the KL to the model that the run started from (0: off)
    use_bias_correction_kl: bool = True     # weight the KL estimate by the probability ratio
    off_policy_mask_threshold: float | None = 0.1   # mask bad replies beyond this drift (none: off)
    keep_routing: bool = True   # replay the experts that each token had while sampling
    keep_sampling_mask: bool = True     # keep to the tokens that top-p allowed while sampling

    def __post_init__(self):
        super().__post_init__()
        require_least(self, 1, "num_prompts", "steps_per_generation")
        require_least(self, 2, "num_generations")
        require_least(self, self.num_prompts, "pool_size")
        if is_greedy(self.temperature):
            raise MinidsError(f"temperature: expected above 0 (in float32), found "
                              f"{self.temperature}")
        if self.num_prompts * self.num_generations % self.steps_per_generation:
            raise MinidsError(
                f"steps_per_generation: expected a divisor of num_prompts x num_generations = "
                f"{self.num_prompts} x {self.num_generations}, found {self.steps_per_generation}")


def grpo(base, settings: GRPOConfig, out, resume: bool = True, on_step=None,
         device=None) -> list[GRPOStep | Validation]:
    """Train the model in the folder `base` by its rewards, in the folder `out`; returns the log.

    For the records of the log see `minids.posttrain.records`, for the other arguments, the files
    and the errors `minids.pretrain.train.train`.
    """
    # 1. The policy, and the model that it must not move far away from
    check_writable(out, folder=True)
    device = distributed.device_or_cpu(device)
    model, tokenizer = load(base, device, torch.float32), Tokenizer.load()
    reference = load(base, device, torch.float32) if settings.beta else None

    with post_training_run(model, settings, out, "GRPO", resume) as (run, optimiser):
        if run.step == 0:
            run.log(*validate(model, tokenizer, settings))
        for step in run.steps(on_step):
            # 2. Rollouts: a group of replies to each prompt, sampled from the policy
            mode, numbers = problems_of_step(settings, step)
            problems = [settings.problem("train", i) for i in numbers
                        for _ in range(settings.num_generations)]
            prompts = [prompt_ids(problem, tokenizer, mode) for problem in problems]
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            r = rollouts(model, prompts, LIMITS[mode], settings.temperature, settings.top_p,
                         generator, record=True)
            replies = r.replies

            # 3. Rewards: the verifier's verdict, less a penalty for length
            verdicts = [is_correct(problem, reply, tokenizer, mode)
                        for problem, reply in zip(problems, replies)]
            rewards = torch.tensor([reward(verdict, len(reply), mode, settings)
                                    for verdict, reply in zip(verdicts, replies)])        # B

            # 4. Advantages: a reply counts against the mean of its group
            scores = advantages(rewards, settings)                                        # B

            # 5. Loss and updates
            stats = update_policy(model, reference, optimiser, r, scores, settings, step)
            tokens = sum(map(len, replies))
            record: GRPOStep = {"mode": mode, "reward": rewards.mean().item(),
                                "accuracy": sum(verdicts) / len(verdicts),
                                "length": tokens / len(replies), "tokens": tokens}
            run.log_step(record | stats)
            if run.is_due(settings.eval_every):
                run.log(*validate(model, tokenizer, settings))
    return run.records


# ---- rewards and advantages ----

def reward(correct: bool, length: int, mode: str, settings: GRPOConfig) -> float:
    """1 for a correct reply, less the length penalty in proportion to the length that the mode
    permits: a token costs more in a mode that permits fewer."""
    return float(correct) - settings.length_penalty * length / LIMITS[mode]


def advantages(rewards, settings: GRPOConfig):
    """Rewards less the mean of their group, not divided by its standard deviation.

    rewards: B, group after group -> B.
    """
    groups = rewards.view(-1, settings.num_generations)
    if settings.subtract_group_mean:
        groups = groups - groups.mean(1, keepdim=True)
    return groups.flatten()


# ---- loss and updates ----

def update_policy(model, reference, optimiser, r: Rollouts, scores, settings: GRPOConfig,
                  step: int) -> GRPOStep:
    """The updates on one batch of replies; scores: B, their advantages, on the CPU.

    Returns the log record, means over the updates. Without a KL, a reply as good as the mean of its
    group has no gradient: it counts in the mean loss, but is not read again.
    """
    totals = defaultdict(float)
    for i in range(settings.steps_per_generation):
        rows = torch.arange(i, len(r.ids), settings.steps_per_generation)
        share = 1.0
        if not settings.beta:
            matter = rows[scores[rows] != 0]
            share = len(matter) / len(rows)
            rows = matter if len(matter) else rows[:1]      # without any, one is read for the log
        part, part_scores = r.rows(moved(rows, r.ids.device)), moved(scores[rows], r.ids.device)

        # The log-probabilities of the reply tokens, B R: reference, policy
        with torch.no_grad():
            ref_logprobs = part.logprobs
            if settings.beta:
                ref_logprobs, _ = policy(reference, part, settings, keep_routing=False)
        logprobs, entropy = policy(model, part, settings, settings.keep_routing)

        # The loss, and its gradient
        loss, stats = objective(logprobs, part.logprobs, ref_logprobs, part_scores, part.mask,
                                settings.epsilon, settings.beta,
                                settings.off_policy_mask_threshold,
                                settings.use_bias_correction_kl)
        (share * loss).backward()
        entropy = (entropy * part.mask).sum() / part.mask.sum()

        # One step of the optimiser
        stats = floats(stats | {"loss": loss.detach(), "entropy": entropy})
        stats["loss"] *= share
        stats |= optimiser_step(model, optimiser, settings, step,
                                number=step * settings.steps_per_generation + i)
        for name, value in stats.items():
            totals[name] += value / settings.steps_per_generation
    if not settings.beta:
        del totals["kl"]        # there was no reference to compare with
    return dict(totals)


def objective(logprobs, old_logprobs, ref_logprobs, advantages, mask,
              epsilon: float | None = 0.2, beta: float = 0.02,
              off_policy_mask_threshold: float | None = 0.1, use_bias_correction_kl: bool = True):
    """GRPO's loss, to be minimised, and {"kl", "clip_fraction", "masked_fraction"} for the log, one
    number each.

    logprobs, old_logprobs, ref_logprobs: B R, of the sampled tokens under the policy, under the
    policy that sampled them, and under the reference. advantages: B. mask: B R, whether there is a
    token. With ratio = pi / pi_old and r = pi_ref / pi, it is minus the mean over replies, and over
    each reply's tokens, of

        min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) M - beta ratio (r - log r - 1)

    M masks off-policy replies: it is 0 for a reply with A < 0 whose mean of log(pi_old / pi) over
    its tokens exceeds `off_policy_mask_threshold`, and 1 for all others. A bad reply that the
    policy would hardly give any more teaches nothing.
    """
    mean = lambda t: (t * mask).sum(1) / mask.sum(1)                                      # B R -> B
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio, A = log_ratio.exp(), advantages[:, None]

    gain = ratio * A
    clipped = torch.zeros_like(mask)
    if epsilon is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - epsilon, 1 + epsilon) * A)
        outside = torch.where(A > 0, ratio > 1 + epsilon, ratio < 1 - epsilon)
        clipped = outside & (A != 0) & mask

    M = torch.ones_like(advantages)
    if off_policy_mask_threshold is not None:
        drift = mean(-log_ratio.detach())
        M = 1.0 - ((advantages < 0) & (drift > off_policy_mask_threshold)).float()

    log_r = (ref_logprobs - logprobs).masked_fill(~mask, 0.0)
    kl = log_r.exp() - log_r - 1                                                          # >= 0
    if use_bias_correction_kl:
        kl = ratio * kl

    loss = -(mean(gain) * M - beta * mean(kl)).mean()
    return loss, {"kl": mean(kl).mean().detach(),
                  "clip_fraction": clipped.sum() / mask.sum(),
                  "masked_fraction": 1 - M.mean()}


def policy(model, r: Rollouts, settings: GRPOConfig, keep_routing: bool):
    """Of each reply token the log-probability, and the entropy of its distribution: B R each.
    After the end of a reply they mean nothing.

    With `keep_routing` tokens go to the experts that they had while sampling. The reference routes
    by itself: it is another model. The sampling mask holds for both, else their KL would not be 0
    where they are equal. Neighbouring replies to the same prompt share one pass over it, and its
    gradient.
    """
    B, P, T = len(r.ids), r.prompt, r.ids.shape[1]
    first, owner = shared(r.ids[:, :P])
    took = [e.view(B, T - 1, -1) for e in r.experts or ()] if keep_routing else []       # B T-1 K

    def options(experts):
        return Options(experts=[e.flatten(0, 1) for e in experts] or None)

    # One pass over each prompt, then one over the replies that follow it
    state = model.new_state(len(first), T - 1)
    prompt = model.features(r.ids[first, :P], state, options(e[first, :P] for e in took))
    X = prompt[owner, -1:]                                                               # B 1 n d
    if T > P + 1:
        state.select(owner)
        reply = model.features(r.ids[:, P:-1], state, options(e[:, P:] for e in took))
        X = torch.cat([X, reply], dim=1)                                                 # B R n d

    ids, mask, allowed = r.ids[:, P:], r.mask, r.allowed if settings.keep_sampling_mask else None
    if ids.device.type != "cpu":        # it would have to be asked where replies end
        return token_log_probs(model, X, ids, allowed, r.temperature)
    at = mask.flatten().nonzero()[:, 0]                                                  # N
    some = token_log_probs(model, X.flatten(0, 1).index_select(0, at)[None], ids[mask][None],
                           None if allowed is None else allowed[mask][None], r.temperature)
    logprobs, entropy = (t.new_zeros(B, T - P).masked_scatter(mask, t) for t in some)
    return logprobs, entropy


def token_log_probs(model, X, ids, allowed, temperature: float):
    """Of each token the log-probability, and the entropy of its distribution: B T each.

    X: B T n d, the streams before it; ids: B T; allowed: as in `Rollouts`, or None.
    """
    logits = model.logits(X)                                                             # B T vocab
    choices = None if allowed is None else unpacked(allowed, logits.shape[-1])
    logits = cold(logits, temperature, choices).flatten(0, 1)
    logprobs, entropy = log_probs(logits, ids.flatten())
    return logprobs.view_as(ids), entropy.view_as(ids)


# ---- the prompts of a step ----

def problems_of_step(settings: GRPOConfig, step: int) -> tuple[str, list[int]]:
    """The mode of a step, and the numbers of its problems, whose prompts have one length."""
    epoch, place = divmod(step, len(batches(settings, 0)))
    return settings.modes[step % len(settings.modes)], batches(settings, epoch)[place]


@cache
def batches(settings: GRPOConfig, epoch: int) -> list[list[int]]:
    """The pool in batches of prompts of one length, in another order each epoch.

    Problems of a length that do not fill a batch wait for another epoch, unless the pool has no
    more of that length.
    """
    rng, cut = random.Random(f"{settings.seed} {epoch}"), []
    for numbers in numbers_by_length(settings):
        numbers = rng.sample(numbers, len(numbers))
        size = min(settings.num_prompts, len(numbers))
        cut += [numbers[i : i + size] for i in range(0, len(numbers) - size + 1, size)]
    rng.shuffle(cut)
    return cut


@cache
def numbers_by_length(settings: GRPOConfig) -> list[list[int]]:
    """The numbers of the problems of the pool, in groups by the length of their prompts."""
    tokenizer, pool = Tokenizer.load(), settings.numbers(0, settings.pool_size, fresh=True)
    prompts = [prompt_ids(settings.problem("train", i), tokenizer, settings.modes[0]) for i in pool]
    return [[pool[i] for i in group] for group in by_length(prompts)]
