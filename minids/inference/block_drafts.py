"""Speculative decoding with DSpark: a block of drafts from one pass of the draft module.

The acceptance rule is that of `speculate`, and so is the promise: the new ids follow the target's
own distribution, whatever the drafts are. One sequence at a time.
"""

import torch

from minids.inference import speculate as rule
from minids.inference.sampling import check, distribution, enough_threads
from minids.inference.speculate import Speculation
from minids.model.dspark import read_target


@torch.inference_mode()
def speculate_blocks(model, dspark, ids, max_new_tokens: int = 100, temperature: float = 1.0,
                     top_p: float = 1.0, seed: int | None = None,
                     stop: tuple[int, ...] | None = None) -> Speculation:
    """Continue a prompt, a list of ids, as `speculate` does, with the drafts of a `DSpark` module.

    At most `dspark_block_size` drafts a pass. Raises `MinidsError` as `generate` does.
    """
    check(model, [ids], max_new_tokens, temperature, top_p)
    stop = (model.config.eos_token_id,) if stop is None else stop
    device, size = model.embed.weight.device, dspark.drafts.dspark_block_size
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    # T vocab -> T vocab, on the CPU, where drafts are sampled and judged
    to_probs = lambda logits: distribution(logits, temperature, top_p).cpu()
    out = Speculation(tried=[0] * size, accepted=[0] * size)
    training = model.training
    model.eval()
    try:
        state = model.new_state(1, len(ids) + max_new_tokens - 1)
        drafter = BlockDrafter(model, dspark)
        X, h = read_target(model, dspark, torch.tensor([ids], device=device), state)
        out.passes = 1
        new = [rule.sample_one(to_probs(model.logits(X[:, -1:])[0])[0], generator)]
        with enough_threads(model, 1):
            while True:
                for token in new:
                    out.ids.append(token)
                    if token in stop or len(out.ids) == max_new_tokens:
                        return out
                drafter.extend(h)                       # of the tokens that the target has read
                count = min(size, max_new_tokens - len(out.ids) - 1)
                draft_ids, draft_probs = drafter.draft(new[-1], count, to_probs, generator)
                block = torch.tensor([[new[-1], *draft_ids]], device=device)
                X, h = read_target(model, dspark, block, state)
                probs = to_probs(model.logits(X)[0])                 # one row more than drafts
                out.passes += 1
                new = rule.accept(draft_ids, draft_probs, probs, generator)
                accept_length = len(new) - 1
                for depth in range(min(len(new), len(draft_ids))):
                    out.tried[depth] += 1
                    out.accepted[depth] += depth < accept_length
                state.rewind(len(draft_ids) - accept_length)         # forget rejected drafts
                h = h[:, :accept_length + 1]
    finally:
        model.train(training)


class BlockDrafter:
    """A DSpark module and what it remembers of one text: each block's keys of the last w tokens."""

    def __init__(self, model, dspark):
        self.model, self.dspark, self.pos = model, dspark, 0
        config, weight = model.config, model.embed.weight
        self.windows = [weight.new_zeros(1, config.window_size, config.head_dim)
                        for _ in dspark.mtp]

    def extend(self, h) -> None:
        """Take in h, 1 T kd, of the next T tokens; see `minids.model.dspark.read_target`."""
        positions = torch.arange(self.pos, self.pos + h.shape[1], device=h.device)
        keys = self.dspark.keys(self.dspark.context(h), positions)
        w = self.windows[0].shape[1]
        self.windows = [torch.cat([window, new], dim=1)[:, -w:]
                        for window, new in zip(self.windows, keys)]
        self.pos += h.shape[1]

    def draft(self, anchor: int, count: int, to_probs, generator):
        """`count` drafts of the tokens after `anchor`, and the distributions they were sampled
        from: a list of ids, count x vocab. The blocks run once, the Markov head for each draft."""
        draft_ids, draft_probs, before = [], [], anchor
        if not count:
            return draft_ids, draft_probs
        device = self.windows[0].device
        y = self.dspark(self.model, torch.tensor([anchor], device=device),
                        torch.tensor([self.pos], device=device), self.windows)
        base = self.dspark.logits(self.model, y)[0]                              # size vocab
        for i in range(count):
            bias = self.dspark.bias(torch.tensor([before], device=device))       # 1 vocab
            draft_probs.append(to_probs(base[i:i + 1] + bias)[0])
            before = rule.sample_one(draft_probs[-1], generator)
            draft_ids.append(before)
        return draft_ids, torch.stack(draft_probs)
