"""Speculative decoding: the MTP block drafts tokens, and one pass of the model verifies them all.

Report 2.1 keeps DeepSeek-V3's multi-token prediction (arXiv 2412.19437, 2.2, names this use). The
acceptance rule, which leaves the model's distribution unchanged, is Leviathan et al.'s (arXiv
2211.17192) and Chen et al.'s (arXiv 2302.01318). One sequence at a time: rows of a batch would
accept different numbers of drafts, and all rows of a decode state are at the same position.
"""

from dataclasses import dataclass, field

import torch

from minids.errors import MinidsError
from minids.inference.sampling import check, checked, distribution, enough_threads, pick
from minids.system.devices import moved


@dataclass
class Speculation:
    """The new ids, and counts: lists with one entry for first drafts, one for second drafts, ..."""

    ids: list[int] = field(default_factory=list)         # without the prompt
    tried: list[int] = field(default_factory=list)       # drafts whose predecessors were accepted
    accepted: list[int] = field(default_factory=list)    # those of them that were accepted
    passes: int = 0                                      # of the model, the prompt included

    @property
    def acceptance(self) -> float | None:
        """The share of `tried` that was accepted; None where no draft was tried."""
        return sum(self.accepted) / sum(self.tried) if sum(self.tried) else None


@torch.inference_mode()
def speculate(model, ids, max_new_tokens: int = 100, temperature: float = 1.0, top_p: float = 1.0,
              seed: int | None = None, stop: tuple[int, ...] | None = None,
              drafts: int = 1) -> Speculation:
    """Continue a prompt, a list of ids, as `minids.generate` does, with `drafts` drafts a pass.

    The new ids follow the same distribution as without drafts, but a given seed produces
    different text. With `temperature=0` the ids are the same in float32; in bfloat16 near ties
    may fall the other way, because several tokens share a pass. Raises `MinidsError` for a model
    without an MTP block, and in all cases in which `generate` does.
    """
    check(model, [ids], max_new_tokens, temperature, top_p)
    if not model.mtp:
        raise MinidsError("this model has no MTP block to draft with (n_mtp_layers is 0): generate "
                          "without drafts")
    if drafts < 1:
        raise MinidsError(f"drafts: expected at least 1, found {drafts}")
    drafter = Drafter(model)

    def read(ids, state):
        X = model.features(ids, state)
        return X, X

    return draft_and_verify(model, ids, drafts, read, drafter.draft, max_new_tokens, temperature,
                            top_p, seed, stop)


def draft_and_verify(model, ids, drafts: int, read, draft, max_new_tokens: int,
                     temperature: float, top_p: float, seed: int | None,
                     stop: tuple[int, ...] | None) -> Speculation:
    """Continue a prompt with at most `drafts` drafts per pass, from any drafter.

    `read(ids, state)` is a pass of the model: its streams, 1 T n d, and the drafter's input for
    these tokens, 1 T .... `draft(inputs, after, count, to_probs, generator)` gives `count` ids and
    the distributions they were sampled from. It gets the inputs of the tokens that it has not read
    yet, and the token after each of them.
    """
    stop = (model.config.eos_token_id,) if stop is None else stop
    device, generator = model.embed.weight.device, torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    # 1 T vocab -> T vocab, on the CPU: a GPU is waited for once per draft and once per pass
    to_probs = lambda logits: distribution(logits[0], temperature, top_p).cpu()
    out = Speculation(tried=[0] * drafts, accepted=[0] * drafts)
    training = model.training
    model.eval()
    try:
        state = model.new_state(1, len(ids) + max_new_tokens - 1)
        X, inputs = read(moved(torch.tensor([ids]), device), state)
        out.passes = 1
        new = [sample_one(to_probs(model.logits(X[:, -1:]))[0], generator)]
        after = [*ids[1:], *new]                                # the token after each of `inputs`
        with enough_threads(model, 1):
            while True:
                for token in new:
                    out.ids.append(token)
                    if token in stop or len(out.ids) == max_new_tokens:
                        return out
                count = min(drafts, max_new_tokens - len(out.ids) - 1)
                draft_ids, draft_probs = draft(inputs, after, count, to_probs, generator)
                X, inputs = read(moved(torch.tensor([[new[-1], *draft_ids]]), device), state)
                probs = to_probs(model.logits(X))                       # one row more than drafts
                out.passes += 1
                new = accept(draft_ids, draft_probs, probs, generator)
                accept_length = len(new) - 1
                for depth in range(min(len(new), len(draft_ids))):
                    out.tried[depth] += 1
                    out.accepted[depth] += depth < accept_length
                state.rewind(len(draft_ids) - accept_length)            # forget rejected drafts
                inputs, after = inputs[:, :accept_length + 1], new
    finally:
        model.train(training)


def accept(draft_ids, draft_probs, probs, generator) -> list[int]:
    """The drafts that are accepted, and one more token.

    Write q for a row of `draft_probs` and p for the model's row in `probs`. A draft x, sampled
    from q, is accepted with probability min(1, p(x) / q(x)). The first rejected draft is replaced
    by a sample from max(0, p - q), normalised. A token t then comes out with probability

        min(p, q)(t) + (1 - sum min(p, q)) * max(0, p - q)(t) / sum max(0, p - q) = p(t):

    the model's own distribution exactly, whatever q is. `probs` has one row more than
    `draft_probs`; where all drafts are accepted, the additional token is sampled from it.
    """
    for i, x in enumerate(draft_ids):
        p, q = probs[i], draft_probs[i]
        if not bernoulli(min(1.0, float(p[x] / q[x])), generator):
            return [*draft_ids[:i], sample_one((p - q).clamp_min(0), generator)]
    return [*draft_ids, sample_one(probs[len(draft_ids)], generator)]


class Drafter:
    """The MTP block with its own decode state."""

    def __init__(self, model):
        self.model, self.state = model, model.new_state(1, mtp=True)

    def draft(self, X, after: list[int], count: int, to_probs, generator):
        """`count` drafts of the tokens after `after`, and the distributions they were sampled from.

        X: 1 T n d, streams that the block has not read yet; after: T ids, the token after each of
        them. A second draft is made from the block's own streams and the first draft, in place of
        the model's streams and a verified token: the block was not trained for that.
        """
        draft_ids, draft_probs = [], []
        if not count:
            return draft_ids, draft_probs
        streams, logits = self.read(X, after)
        verified = self.state.mark()
        while True:
            draft_probs.append(to_probs(logits)[0])
            draft_ids.append(sample_one(draft_probs[-1], generator))
            if len(draft_ids) == count:
                break
            streams, logits = self.read(streams, draft_ids[-1:])
        self.state.restore(verified)
        return draft_ids, torch.stack(draft_probs)

    def read(self, X, after: list[int]):
        """The block's streams at the last position of X, 1 1 n d, and logits there, 1 1 vocab."""
        ids = moved(torch.tensor([after]), X.device)
        Y = self.model.run_mtp_block(X, ids, state=self.state)[0][:, -1:]
        return Y, self.model.project(self.model.mtp[0].head(Y))


def sample_one(weights, generator) -> int:
    """One id, sampled in proportion to `weights` over the vocabulary."""
    return checked([int(pick(weights, generator))])[0]


def bernoulli(p: float, generator) -> bool:
    """True with probability p."""
    return float(torch.rand((), generator=generator)) < p


@torch.inference_mode()
def expected_acceptance(model, ids, first=2, length=None) -> float:
    """The mean probability that a first draft is accepted at temperature 1: sum_v min(p, q).

    ids: B T, given texts. The drafts counted are those of the tokens at positions from `first` up
    to `length` (exclusive), each a number or one for each row. The earliest token that can be
    drafted is number 2. Exact for these texts: nothing is sampled. On texts that the model wrote
    itself it is the acceptance rate to expect.
    """
    position = torch.arange(2, ids.shape[1], device=ids.device)                          # T-2
    first, end = (torch.as_tensor(bound, device=ids.device).expand(len(ids))[:, None]    # B 1
                  for bound in (first, ids.shape[1] if length is None else length))
    counted = (position >= first) & (position < end)                                     # B T-2
    overlaps = []
    for rows, mask in zip(ids.split(16), counted.split(16)):    # few rows: logits take much memory
        X = model.features(rows[:, :-1])
        Y, _ = model.run_mtp_block(X[:, :-1], rows[:, 1:-1])
        p = model.logits(X[:, 1:][mask][None]).softmax(-1)      # 1 N vocab: of tokens 2, 3, ...
        q = model.project(model.mtp[0].head(Y[mask][None])).softmax(-1)
        overlaps.append(torch.minimum(p, q).sum())
    return float(sum(overlaps) / counted.sum().clamp_min(1))
