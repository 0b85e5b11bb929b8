"""Speculative decoding: the MTP block drafts tokens, the model verifies them all in one pass, and the text stays what it was.

Report 2.1 keeps DeepSeek-V3's multi-token prediction (arXiv 2412.19437, 2.2, names this use). The rule that leaves the
distribution unchanged is Leviathan et al.'s (arXiv 2211.17192) and Chen et al.'s (arXiv 2302.01318). One sequence at a time:
rows of a batch would accept different numbers of drafts, and all rows of a state stand at one position.
"""

from dataclasses import dataclass, field

import torch

from minids.errors import MinidsError
from minids.inference.sampling import check, distribution, enough_threads


@dataclass
class Speculation:
    """What came out. The counts are lists: first drafts, second drafts (made where the first one is only a guess), ..."""

    ids: list[int] = field(default_factory=list)         # the new ids, without the prompt
    tried: list[int] = field(default_factory=list)       # drafts that were judged: those before them had stood
    accepted: list[int] = field(default_factory=list)    # and those of them that stood
    passes: int = 0                                      # of the model, the one over the prompt included

    @property
    def acceptance(self) -> float | None:
        """Share of the judged drafts that stood; None without any."""
        return sum(self.accepted) / sum(self.tried) if sum(self.tried) else None


@torch.inference_mode()
def speculate(model, ids, max_new_tokens: int = 100, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None,
              stop: tuple[int, ...] | None = None, drafts: int = 1) -> Speculation:
    """Continue the prompt `ids`, a list of ids, as `minids.generate` does, with `drafts` tokens guessed before each pass.

    The new ids follow the same distribution as without drafts; with `temperature=0` they are the same. The text of a seed is
    another one. Raises `MinidsError` for a model without an MTP block, and for all that `generate` refuses.
    """
    check(model, [ids], max_new_tokens, temperature, top_p)
    if not model.mtp:
        raise MinidsError("this model has no MTP block to draft with (n_mtp_layers is 0): generate without drafts")
    if drafts < 1:
        raise MinidsError(f"drafts: expected at least 1, found {drafts}")
    stop = (model.config.eos_token_id,) if stop is None else stop
    device = model.embed.weight.device
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    chosen = lambda logits: distribution(logits[0], temperature, top_p)                  # 1 T vocab -> T vocab
    out = Speculation(tried=[0] * drafts, accepted=[0] * drafts)
    training = model.training
    model.eval()
    try:
        state, drafter = model.new_state(1, len(ids) + max_new_tokens - 1), Drafter(model)
        X = model.features(torch.tensor([ids], device=device), state)                    # 1 T n d
        out.passes = 1
        new = [draw(chosen(model.logits(X[:, -1:]))[0], generator)]
        after = [*ids[1:], *new]                                                         # the token after each stream in X
        with enough_threads(model, 1):
            while True:
                for token in new:
                    out.ids.append(token)
                    if token in stop or len(out.ids) == max_new_tokens:
                        return out
                guesses, q = drafter.guess(X, after, min(drafts, max_new_tokens - len(out.ids) - 1), chosen, generator)
                X = model.features(torch.tensor([[new[-1], *guesses]], device=device), state)
                p = chosen(model.logits(X))                                              # 1 more row than guesses
                out.passes += 1
                new = judge(guesses, q, p, generator)
                stood = len(new) - 1
                for depth in range(min(len(new), len(guesses))):
                    out.tried[depth] += 1
                    out.accepted[depth] += depth < stood
                state.rewind(len(guesses) - stood)                                       # forget what was refused
                X, after = X[:, :stood + 1], new
    finally:
        model.train(training)


def judge(guesses, q, p, generator) -> list[int]:
    """The guesses that stand, and one token more.

    A guess g, drawn from q, stands with probability min(1, p(g) / q(g)); the first one that falls is replaced by a draw from
    max(0, p - q), normalised. Together a token t comes with min(p, q)(t) + (1 - sum min(p, q)) * max(0, p - q)(t) /
    sum max(0, p - q) = p(t): exactly the model's own distribution, whatever q is. p has one row more than q: where all
    guesses stand, one more token is drawn from it.
    """
    for i, guess in enumerate(guesses):
        if not coin(min(1.0, float(p[i, guess] / q[i, guess])), generator):
            return [*guesses[:i], draw((p[i] - q[i]).clamp_min(0), generator)]
    return [*guesses, draw(p[len(guesses)], generator)]


class Drafter:
    """The MTP block with a state of its own."""

    def __init__(self, model):
        self.model, self.state = model, model.new_state(1, mtp=True)

    def guess(self, X, after: list[int], count: int, chosen, generator):
        """`count` guesses of what follows `after`, and the distributions they were sampled from.

        X: 1 T n d, streams that it has not read yet, and after: T ids, the token after each of
        them. A second guess takes the block's own streams for the model's, and the first guess for
        the token: the block was not trained for that.
        """
        guesses, q = [], []
        if not count:
            return guesses, q
        streams, logits = self.read(X, after)
        verified = self.state.mark()
        while True:
            q.append(chosen(logits)[0])
            guesses.append(draw(q[-1], generator))
            if len(guesses) == count:
                break
            streams, logits = self.read(streams, guesses[-1:])
        self.state.restore(verified)
        return guesses, torch.stack(q)

    def read(self, X, after: list[int]):
        """The block's streams at the last position of X, 1 1 n d, and its logits there, 1 1 vocab."""
        ids = torch.tensor([after], device=X.device)
        Y = self.model.run_mtp_block(X, ids, state=self.state)[0][:, -1:]
        return Y, self.model.project(self.model.mtp[0].head(Y))


def draw(p, generator) -> int:
    """One id from weights over the vocabulary."""
    return int(torch.multinomial(p, 1, generator=generator))


def coin(p: float, generator) -> bool:
    """True with probability p."""
    return float(torch.rand((), generator=generator, device=generator.device)) < p


@torch.inference_mode()
def expected_acceptance(model, ids, first=2, length=None) -> float:
    """The probability that a first draft stands at temperature 1, sum_v min(p, q), mean over positions of given texts.

    ids: B T. Drafted are the tokens at `first` or later and before `length`: numbers, or B of them. The first that can be is
    token 2. Exact for these texts: nothing is drawn. On texts that the model wrote itself it is what to expect in use.
    """
    both = []
    for some in ids.split(16):                                                           # b T: a whole vocabulary takes room
        X = model.features(some[:, :-1])
        p = model.logits(X)[:, 1:].softmax(-1)                                           # b T-2 vocab: of tokens 2, 3, ...
        q = model.mtp_logits(X[:, :-1], some[:, 1:-1]).softmax(-1)
        both.append(torch.minimum(p, q).sum(-1))
    both, at = torch.cat(both), torch.arange(2, ids.shape[1], device=ids.device)         # B T-2, T-2
    each = lambda bound: torch.as_tensor(bound, device=ids.device).expand(len(ids))[:, None]          # B 1
    counts = (at >= each(first)) & (at < each(ids.shape[1] if length is None else length))
    return float((both * counts).sum() / counts.sum().clamp_min(1))
