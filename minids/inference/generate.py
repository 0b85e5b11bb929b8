"""Continue token ids with a model: batched, with the decode state.

Report section 3.6.1 (decoding with compressed caches). Greedy, temperature, top-p. All rows of a
batch are at the same position: a prompt is never padded, because compression windows are cut from
position 0 (docs/specification.md, section 8, point 7). For drafts with multi-token prediction see
`minids.inference.speculate`, for text see `minids.data.tokenizer`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from minids.inference.sampling import check, checked, enough_threads, sample
from minids.inference.speculate import speculate
from minids.model import Model
from minids.model.state import State
from minids.system.devices import moved


def generate(model: Model, ids: Any, max_new_tokens: int = 100, temperature: float = 1.0,
             top_p: float = 1.0, seed: int | None = None, stop: tuple[int, ...] | None = None,
             drafts: int = 0) -> Any:
    """The new ids with which the model continues `ids`, without the prompt.

    `ids` is one prompt (a list of ids) and gives a list; or several (a list of lists of any
    lengths, or a B x T tensor) and gives a list of lists. A row ends after `max_new_tokens`, or
    with the first id in `stop` (included; default: the model's eos). `temperature=0` is greedy;
    `top_p` allows the most likely ids that together reach this probability. The same `seed` gives
    the same ids. With `drafts`, MTP drafts that many ids before each pass and the pass verifies
    them, one prompt after another: different ids from the same distribution
    (`minids.inference.speculate`). Raises `MinidsError` for an empty prompt, ids out of range, or
    a text that would exceed the context.
    """
    ids = ids.tolist() if torch.is_tensor(ids) else list(ids)
    single = not ids or not isinstance(ids[0], (list, tuple, torch.Tensor))
    prompts = [ids] if single else [p.tolist() if torch.is_tensor(p) else list(p) for p in ids]
    if drafts:
        seeds = [None if seed is None else (seed + i) % 2**63 for i in range(len(prompts))]
        options = max_new_tokens, temperature, top_p
        written = [speculate(model, prompt, *options, row_seed, stop, drafts).ids
                   for prompt, row_seed in zip(prompts, seeds)]
        return written[0] if single else written
    rows: list[list[int]] = [[] for _ in prompts]
    for new in stream(model, prompts, max_new_tokens, temperature, top_p, seed, stop):
        for row, token in zip(rows, new):
            if token is not None:
                row.append(token)
    return rows[0] if single else rows


@torch.inference_mode()
def stream(model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int = 100,
           temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None,
           stop: tuple[int, ...] | None = None) -> Iterator[list[int | None]]:
    """As `generate`, token by token: yields a list with the next new id of each row.

    None stands for a row that is still inside its prompt, or has ended.
    """
    check(model, prompts, max_new_tokens, temperature, top_p)
    stop = (model.config.eos_token_id,) if stop is None else stop
    device = model.embed.weight.device
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    B, lengths = len(prompts), [len(p) for p in prompts]
    left = [max_new_tokens] * B
    training = model.training
    model.eval()
    try:
        pos, longest = min(lengths), max(lengths)
        state = model.new_state(B, longest + max_new_tokens - 1)
        given = torch.tensor([[*p, *[-1] * (longest - len(p))] for p in prompts], device=device)
        logits = next_logits(model, given[:, :pos], state)                               # B vocab
        held, rows = list(range(B)), None   # numbers of the b rows that the state holds; None: all
        while True:
            token = sample(logits, temperature, top_p, generator, rows, B)               # b
            if pos < longest:       # rows inside their prompts go on with it, not with a sample
                prompt = given[:, pos] if rows is None else given[rows, pos]
                token = torch.where(prompt < 0, token, prompt)
            sampled = checked(token.tolist())   # the one time that the host waits for a GPU
            new: list[int | None] = [None] * B
            for i, chosen in zip(held, sampled):
                if pos >= lengths[i] and left[i]:
                    new[i] = chosen
                    left[i] = 0 if chosen in stop else left[i] - 1
            yield new
            alive = [place for place, i in enumerate(held) if left[i]]
            if not alive:
                return
            if len(alive) <= 0.75 * len(held):  # drop ended rows when it pays for copying the state
                keep = moved(torch.tensor(alive), device)
                state.select(keep)
                token, held = token[keep], [held[place] for place in alive]
                rows = keep if rows is None else rows[keep]
            with enough_threads(model, len(held)):
                logits = next_logits(model, token[:, None], state)
            pos += 1
    finally:
        model.train(training)


def next_logits(model: Model, ids: torch.Tensor, state: State) -> torch.Tensor:
    """The logits after the last of `ids`, which are known to be in the vocabulary: B vocab."""
    return model.logits(model.features(ids, state))[:, -1]
