"""Rollouts: answers that a model samples, with all that training on them needs.

Report section 5.1: specialists and the distilled model learn from answers of their own. As in DeepSeek-V3.2 (arXiv
2512.02556, section 3.1), what sampling did is recorded, so that training can repeat it: the probabilities of the sampled
tokens, the experts that each token took, and the tokens among which top-p chose. Rewards and losses are left to others.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from minids.errors import MinidsError
from minids.inference.sampling import check, enough_threads, nucleus


@dataclass
class Rollouts:
    """B answers to prompts of one length. Row i's text is `ids[i, :length[i]]`; behind it stands the model's pad id."""

    ids: torch.Tensor                   # B T: prompt and reply
    prompt: int                         # tokens of a prompt: replies begin at this column
    length: torch.Tensor                # B: tokens of prompt and reply, eos included
    logprobs: torch.Tensor              # B R, R = T - prompt: of each reply token, as it was sampled; 0 behind the end
    temperature: float                  # of the sampling
    experts: list | None = None         # for each gate that routes by score, B(T-1) K: what the pass over ids[:, :-1] replays
    allowed: torch.Tensor | None = None     # B R ceil(vocab/8), bytes of 8 bits: what top-p left; None: the whole vocabulary

    @property
    def mask(self) -> torch.Tensor:
        """B R: whether a reply token is there."""
        return torch.arange(self.prompt, self.ids.shape[1], device=self.ids.device) < self.length[:, None]

    @property
    def replies(self) -> list[list[int]]:
        """The ids of each reply, with its eos where it came to one."""
        return [row[self.prompt:n] for row, n in zip(self.ids.tolist(), self.length.tolist())]

    def rows(self, index) -> "Rollouts":
        """Some of the answers; `index` is a list, or a tensor of row numbers."""
        B = len(self.ids)
        experts = self.experts and [e.view(B, -1, e.shape[-1])[index].flatten(0, 1) for e in self.experts]
        return Rollouts(self.ids[index], self.prompt, self.length[index], self.logprobs[index], self.temperature, experts,
                        None if self.allowed is None else self.allowed[index])

    def choices(self, vocab_size: int) -> torch.Tensor | None:
        """B R vocab: the tokens that top-p left to choose from; None where that is all."""
        return None if self.allowed is None else unpacked(self.allowed, vocab_size)


def rollouts(model, prompts, max_new: int, temperature: float = 1.0, top_p: float = 1.0, generator=None,
             record: bool = False) -> Rollouts:
    """One reply of at most `max_new` tokens, which may end before with eos, to each of `prompts`, lists of ids of one length.

    Sampling as in `minids.generate`. Prompts that stand next to each other and are equal are read once. The generator gives
    each row its own random numbers, row by row: a reply depends on its row's number, not on the rows after it. `record` keeps
    experts and sampling masks. Raises `MinidsError` for prompts of several lengths, and as `minids.generate` does.
    """
    prompts = [p.tolist() if torch.is_tensor(p) else list(p) for p in prompts]
    check(model, prompts, max_new, temperature, top_p)
    lengths = sorted({len(p) for p in prompts})
    if len(lengths) > 1:
        raise MinidsError(f"expected prompts of one length, found lengths from {lengths[0]} to {lengths[-1]}: compression "
                          f"windows are cut from position 0, so rows that share a state stand at one position; "
                          f"rollouts.by_length sorts them")
    noise = torch.rand(len(prompts), max_new, generator=generator, device=generator.device if generator else "cpu")
    training = model.training
    model.eval()
    try:
        found = _sample(model, prompts, noise.to(model.embed.weight.device).double(), temperature, top_p, record)
    finally:
        model.train(training)
    plain = lambda t: t.clone() if torch.is_tensor(t) else t         # training cannot use what inference mode has made
    return Rollouts(**{name: [plain(e) for e in t] if isinstance(t, list) else plain(t) for name, t in found.items()})


@torch.inference_mode()
def _sample(model, prompts, noise, temperature, top_p, record) -> dict:
    """The fields of `Rollouts`. noise: B max_new, uniform."""
    config, device = model.config, noise.device
    B, P, max_new = len(prompts), len(prompts[0]), noise.shape[1]
    T = P + max_new
    ids = torch.full((B, T), config.pad_token_id, device=device)
    ids[:, :P] = torch.tensor(prompts, device=device)
    length = torch.full((B,), T, device=device)
    logprobs = torch.zeros(B, max_new, device=device)
    masks = None
    if record and (top_p < 1 or temperature == 0):
        masks = torch.zeros(B, max_new, -(-config.vocab_size // 8), dtype=torch.uint8, device=device)
        masks[:] = 255                                                                   # behind the end all is allowed

    first, owner = shared(ids[:, :P])
    state = model.new_state(len(first), T - 1)
    X, passed = model.run(ids[first, :P], state)
    experts = []
    if record:
        K = config.n_activated_experts
        experts = [torch.arange(K, device=device).repeat(B, T - 1, 1) for _ in passed.experts]    # behind the end: any
        for e, chosen in zip(experts, passed.experts):
            e[:, :P] = chosen.view(len(first), P, K)[owner]
    logits = model.logits(X[:, -1:])[owner, 0]                                           # B vocab
    state.select(owner)

    rows, alive = torch.arange(B, device=device), torch.ones(B, dtype=torch.bool, device=device)
    for t in range(max_new):
        allowed = allowed_ids(logits, temperature, top_p)
        logp = log_distribution(logits, temperature, allowed)                            # b vocab
        cdf = logp.double().exp().cumsum(-1)
        token = torch.searchsorted(cdf, cdf[:, -1:] * noise[rows, t, None], right=True)   # b 1: where the noise falls
        here = rows[alive]
        ids[here, P + t] = token[alive, 0]
        logprobs[here, t] = logp.gather(1, token)[alive, 0]
        if masks is not None:
            masks[here, t] = packed(allowed[alive])
        ended = alive & (token[:, 0] == config.eos_token_id)
        length[rows[ended]] = P + t + 1
        alive = alive & ~ended
        left = int(alive.sum())
        if left == 0 or t + 1 == max_new:
            break
        if left <= 0.75 * len(rows):            # ended rows leave when that makes up for copying the state
            state.select(alive)
            rows, token, alive = rows[alive], token[alive], alive[alive]
        with enough_threads(model, len(rows)):
            X, passed = model.run(token, state)
            logits = model.logits(X)[:, -1]
        for e, chosen in zip(experts, passed.experts):
            e[rows[alive], P + t] = chosen[alive]
    T = int(length.max())
    return dict(ids=ids[:, :T], prompt=P, length=length, logprobs=logprobs[:, : T - P], temperature=temperature,
                experts=[e[:, : T - 1].flatten(0, 1) for e in experts] if record else None,
                allowed=None if masks is None else masks[:, : T - P])


def log_distribution(logits, temperature: float, allowed=None):
    """The log-probabilities of sampling: ... vocab, float32. `allowed`, of the same shape, says which tokens there are."""
    logits = logits.float() / (temperature or 1.0)
    return (logits if allowed is None else logits.masked_fill(~allowed, -float("inf"))).log_softmax(-1)


def allowed_ids(logits, temperature: float, top_p: float):
    """B vocab: the ids that top-p allows, at temperature 0 the most likely one; None: all."""
    if temperature == 0:
        likeliest = logits.argmax(1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, likeliest, True)
    if top_p == 1:
        return None
    return nucleus(torch.softmax(logits.float() / temperature, dim=-1), top_p)


def shared(prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts that stand next to each other and are equal need to be read once. prompts: B P -> the numbers of the G rows that
    differ from the row before, and for each of the B rows, which of the G is its own."""
    new = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    new[1:] = (prompts[1:] != prompts[:-1]).any(1)
    return new.nonzero()[:, 0], new.cumsum(0) - 1


def by_length(prompts) -> list[list[int]]:
    """The numbers of the prompts that have one length, length by length: the batches that `rollouts` takes."""
    groups = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt)].append(i)
    return [groups[n] for n in sorted(groups)]


def packed(mask: torch.Tensor) -> torch.Tensor:
    """... n, booleans -> ... ceil(n/8), bytes."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1)).to(mask.device)


def unpacked(bits: torch.Tensor, n: int) -> torch.Tensor:
    """The first n booleans of each row of bytes."""
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), axis=-1, count=n).astype(bool)).to(bits.device)
