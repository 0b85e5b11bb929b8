"""Speculative decoding with DSpark: a block of drafts from one pass of the draft module.

The acceptance rule is that of `speculate`, and so is the promise: the new ids follow the target's
own distribution, whatever the drafts are. One sequence at a time.
"""

import torch

from minids.inference import speculate as rule
from minids.inference.sampling import check
from minids.inference.speculate import Speculation, draft_and_verify
from minids.model.dspark import read_target
from minids.system.devices import moved


@torch.inference_mode()
def speculate_blocks(model, dspark, ids, max_new_tokens: int = 100, temperature: float = 1.0,
                     top_p: float = 1.0, seed: int | None = None,
                     stop: tuple[int, ...] | None = None) -> Speculation:
    """Continue a prompt, a list of ids, as `speculate` does, with the drafts of a `DSpark` module.

    At most `dspark_block_size` drafts a pass. Raises `MinidsError` as `generate` does.
    """
    check(model, [ids], max_new_tokens, temperature, top_p)
    drafter = BlockDrafter(model, dspark)

    def draft(h, after, count, to_probs, generator):
        drafter.extend(h)
        return drafter.draft(after[-1], count, to_probs, generator)

    return draft_and_verify(model, ids, dspark.drafts.dspark_block_size,
                            lambda ids, state: read_target(model, dspark, ids, state), draft,
                            max_new_tokens, temperature, top_p, seed, stop)


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
        start = torch.full((1,), self.pos, device=device)
        y = self.dspark(self.model, moved(torch.tensor([anchor]), device), start, self.windows)
        base = self.dspark.logits(self.model, y)                                 # 1 size vocab
        for i in range(count):
            bias = self.dspark.bias(moved(torch.tensor([[before]]), device))     # 1 1 vocab
            draft_probs.append(to_probs(base[:, i:i + 1] + bias)[0])
            before = rule.sample_one(draft_probs[-1], generator)
            draft_ids.append(before)
        return draft_ids, torch.stack(draft_probs)
