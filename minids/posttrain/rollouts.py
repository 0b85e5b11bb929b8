"""Rollouts: replies that a model samples, with everything that training on them needs.

Report section 5.1: specialists and the distilled model learn from their own replies. As in
DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), sampling records what training has to repeat: the
probabilities of the sampled tokens, the experts of each token, and the tokens that top-p allowed.
For rewards and losses see `minids.posttrain.grpo`.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from minids.errors import MinidsError
from minids.inference.sampling import check, checked, cooled, enough_threads, is_greedy, nucleus
from minids.model import kernels
from minids.model.kernels import vocabulary
from minids.system.devices import has_all_types, moved


@dataclass
class Rollouts:
    """B replies to prompts of one length.

    The text of row i is `ids[i, :length[i]]`; after it comes the model's pad id.
    """

    ids: torch.Tensor                   # B T: prompt and reply
    prompt: int                         # tokens of a prompt: replies begin at this column
    length: torch.Tensor                # B: tokens of prompt and reply, eos included
    logprobs: torch.Tensor              # B R, R = T - prompt: of the reply tokens; 0 after the end
    temperature: float                  # of the sampling
    # for each gate that routes by score, B(T-1) K: its experts, for a pass over ids[:, :-1]
    experts: list | None = None
    # B R ceil(vocab/8), bytes of 8 bits: the tokens that top-p allowed; None: the whole vocabulary
    allowed: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """B R: whether there is a reply token."""
        place = torch.arange(self.prompt, self.ids.shape[1], device=self.ids.device)
        return place < self.length[:, None]

    @property
    def replies(self) -> list[list[int]]:
        """The ids of each reply, with its eos if it has one."""
        return [row[self.prompt:n] for row, n in zip(self.ids.tolist(), self.length.tolist())]

    def rows(self, index) -> "Rollouts":
        """Some of the replies; `index` is a list, or a tensor of row numbers."""
        experts, allowed = self.experts, self.allowed
        if experts is not None:
            B = len(self.ids)
            experts = [e.view(B, -1, e.shape[-1])[index].flatten(0, 1) for e in experts]
        if allowed is not None:
            allowed = allowed[index]
        return Rollouts(self.ids[index], self.prompt, self.length[index], self.logprobs[index],
                        self.temperature, experts, allowed)

    def choices(self, vocab_size: int) -> torch.Tensor | None:
        """B R vocab: the tokens that top-p allowed; None: the whole vocabulary."""
        return None if self.allowed is None else unpacked(self.allowed, vocab_size)


def rollouts(model, prompts, max_new: int, temperature: float = 1.0, top_p: float = 1.0,
             generator=None, record: bool = False) -> Rollouts:
    """One reply to each of `prompts`, lists of ids of one length.

    A reply has at most `max_new` tokens, and ends earlier with eos. Sampling is that of
    `minids.generate`. Neighbouring prompts that are equal are read once. The generator gives each
    row its own random numbers, row by row: a reply depends on the number of its row, not on the
    rows after it. With `record`, experts and sampling masks are recorded. Raises `MinidsError` for
    prompts of several lengths, and where `minids.generate` does.
    """
    prompts = [p.tolist() if torch.is_tensor(p) else list(p) for p in prompts]
    check(model, prompts, max_new, temperature, top_p)
    lengths = sorted({len(p) for p in prompts})
    if len(lengths) > 1:
        raise MinidsError(
            f"expected prompts of one length, found lengths from {lengths[0]} to {lengths[-1]}: "
            f"compression windows are cut from position 0, so rows that share a state are at the "
            f"same position; rollouts.by_length groups prompts by length")
    noise = torch.rand(len(prompts), max_new, generator=generator,
                       device=generator.device if generator else "cpu")
    training = model.training
    model.eval()
    try:
        fields = _sample(model, torch.tensor(prompts), moved(noise, model.embed.weight.device),
                         temperature, top_p, record)
    finally:
        model.train(training)
    return Rollouts(**{name: _outside_inference(value) for name, value in fields.items()})


def _outside_inference(value):
    """A copy of the tensors: training cannot use those that inference mode made."""
    if isinstance(value, list):
        return [_outside_inference(item) for item in value]
    return value.clone() if torch.is_tensor(value) else value


@torch.inference_mode()
def _sample(model, prompts, noise, temperature, top_p, record) -> dict:
    """The fields of `Rollouts`. prompts: B P, on the CPU; noise: B max_new, uniform."""
    config, device = model.config, noise.device
    (B, P), max_new = prompts.shape, noise.shape[1]
    T = P + max_new
    ids = torch.full((B, T), config.pad_token_id, device=device)
    ids[:, :P] = moved(prompts, device)
    length = torch.full((B,), T, device=device)
    logprobs = torch.zeros(B, max_new, device=device)
    masks = None                                        # after the end, all tokens are allowed
    if record and (top_p < 1 or is_greedy(temperature)):
        masks = torch.full((B, max_new, -(-config.vocab_size // 8)), 255, dtype=torch.uint8,
                           device=device)
    K = config.n_activated_experts                      # after the end, any experts will do
    any_experts = torch.arange(K, device=device)

    # The prompts, each of several equal ones once
    first, owner = (moved(rows, device) for rows in shared(prompts))
    state = model.new_state(len(first), T - 1)
    X, passed = model.run(ids[first, :P], state)
    experts = []
    if record:
        experts = [any_experts.repeat(B, T - 1, 1) for _ in passed.experts]
        for e, chosen in zip(experts, passed.experts):
            e[:, :P] = chosen.view(len(first), P, K)[owner]
    logits = model.logits(X[:, -1:])[owner, 0]                                      # B vocab
    state.select(owner)

    # Token by token; of b rows in the state, those that are alive have not ended. What is not
    # alive is masked, not left out: the host would have to wait for a GPU to learn the numbers.
    rows = torch.arange(B, device=device)
    alive = torch.ones(B, dtype=torch.bool, device=device)
    for t in range(max_new):
        allowed = allowed_ids(logits, temperature, top_p)
        token, logprob = sample_recorded(logits, noise[rows, t, None], temperature, allowed)
        ids[rows, P + t] = torch.where(alive, token[:, 0], config.pad_token_id)
        logprobs[rows, t] = torch.where(alive, logprob, 0.0)
        if masks is not None:
            masks[rows, t] = torch.where(alive[:, None], packed(allowed), 255)
        ended = alive & (token[:, 0] == config.eos_token_id)
        length[rows] = torch.where(ended, P + t + 1, length[rows])
        alive = alive & ~ended
        left = alive.tolist()                       # the one time that the host waits
        if not any(left) or t + 1 == max_new:
            break
        if sum(left) <= 0.75 * len(left):   # drop ended rows when it pays for copying the state
            keep = moved(torch.tensor([i for i, row in enumerate(left) if row]), device)
            state.select(keep)
            rows, token, alive = rows[keep], token[keep], alive[keep]
        with enough_threads(model, len(rows)):
            X, passed = model.run(token, state)
            logits = model.logits(X)[:, -1]
        for e, chosen in zip(experts, passed.experts):
            e[rows, P + t] = torch.where(alive[:, None], chosen, any_experts)
    T = P + t + 1
    return dict(ids=ids[:, :T], prompt=P, length=length, logprobs=logprobs[:, : T - P],
                temperature=temperature,
                experts=[e[:, : T - 1].flatten(0, 1) for e in experts] if record else None,
                allowed=None if masks is None else masks[:, : T - P])


def sample_recorded(logits, noise, temperature: float, allowed=None):
    """One token for each row, b 1, and its log-probability, b.

    logits: b vocab; noise: b 1, uniform; allowed: b vocab, which tokens there are; None: all.
    """
    if not kernels.on("vocabulary", logits, noise):
        logp = log_distribution(logits, temperature, allowed)                       # b vocab
        token = inverse_cdf(logp, noise)
        return token, logp.gather(1, token)[:, 0]
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -float("inf"))
    temperature = 1.0 if is_greedy(temperature) else temperature
    token, logp = noise.new_empty(len(logits), dtype=torch.int64), noise.new_empty(len(logits))
    vocabulary.sample(logits.contiguous().numpy(), noise.flatten().numpy(),
                      np.float32(1 / temperature), token.numpy(), logp.numpy(),
                      kernels.parts(len(logits)))
    checked(token.tolist())
    return token[:, None], logp


def inverse_cdf(logp, noise):
    """The token of each row at which the cumulated probabilities exceed its noise: b 1.

    logp: b vocab; noise: b 1, uniform. Summed in float64, on the CPU where the device has none.
    """
    where = logp.device if has_all_types(logp.device) else "cpu"
    cdf = logp.to(where).double().exp().cumsum(-1)
    token = torch.searchsorted(cdf, cdf[:, -1:] * noise.to(where).double(), right=True)
    return moved(token, logp.device)


def log_distribution(logits, temperature: float, allowed=None):
    """The log-probabilities of sampling: ... vocab, float32. allowed: ... vocab, which tokens there
    are; None: all."""
    return cold(logits, temperature, allowed).log_softmax(-1)


def cold(logits, temperature: float, allowed=None):
    """The logits whose softmax is the distribution of sampling: ... vocab. See `log_distribution`.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -float("inf"))
    return cooled(logits, 1.0 if is_greedy(temperature) else temperature)


def allowed_ids(logits, temperature: float, top_p: float):
    """B vocab: the ids that top-p allows, at temperature 0 the most likely one; None: all."""
    if is_greedy(temperature):
        best = logits.argmax(1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)
    if top_p == 1:
        return None
    return nucleus(torch.softmax(cooled(logits, temperature), dim=-1), top_p)


def shared(prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Which prompts have to be read, where neighbours may be equal.

    prompts: B P -> the numbers of the G rows that differ from the row before; and B, for each row
    which of the G is its prompt.
    """
    new = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    new[1:] = (prompts[1:] != prompts[:-1]).any(1)
    return new.nonzero()[:, 0], new.cumsum(0) - 1


def by_length(prompts) -> list[list[int]]:
    """The numbers of the prompts in groups of one length, as `rollouts` takes them."""
    groups = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt)].append(i)
    return [groups[n] for n in sorted(groups)]


def packed(mask: torch.Tensor) -> torch.Tensor:
    """... n, booleans -> ... ceil(n/8), bytes, the first boolean in the highest bit."""
    bits = F.pad(mask.byte(), (0, -mask.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (bits << places(mask.device)).sum(-1, dtype=torch.uint8)


def unpacked(bits: torch.Tensor, n: int) -> torch.Tensor:
    """The first n booleans of each row of bytes."""
    mask = bits.unsqueeze(-1) >> places(bits.device) & 1
    return mask.flatten(-2)[..., :n].bool()


def places(device) -> torch.Tensor:
    """The places of a byte's bits, from the highest: 8."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
