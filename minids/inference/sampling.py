"""From logits to token ids: temperature, top-p, and what can be generated from."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from minids.errors import MinidsError


@contextmanager
def enough_threads(model, batch: int):
    """On a CPU the operations of a small step are over before a second thread has woken up: compute those with one."""
    threads = torch.get_num_threads()
    if model.embed.weight.device.type == "cpu" and batch * model.config.dim <= 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sample(logits, temperature: float, top_p: float, generator=None):
    """One id for each row of logits, B vocab -> B."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(distribution(logits, temperature, top_p), 1, generator=generator).squeeze(-1)


def distribution(logits, temperature: float, top_p: float):
    """The probabilities that ids are sampled with: logits ... vocab -> ... vocab. Temperature 0: all on the likeliest."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    p = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)   # what is likelier does not yet reach top_p: keep
        p = torch.zeros_like(p).scatter(-1, order, ranked)
        p = p / p.sum(-1, keepdim=True)
    return p


def check(model, prompts, max_new_tokens, temperature, top_p) -> None:
    """Raise `MinidsError` unless these can be generated from."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise MinidsError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise MinidsError(f"temperature: expected 0 (greedy) or more, found {temperature}")
    if not 0 < top_p <= 1:
        raise MinidsError(f"top_p: expected more than 0 and at most 1, found {top_p}")
    if not prompts or not all(prompts):
        raise MinidsError("the prompt is empty: expected at least one token id, such as the one that begins a text")
    context, vocab = model.config.max_seq_len, model.config.vocab_size
    for prompt in prompts:
        wrong = next((i for i in prompt if not isinstance(i, int) or not 0 <= i < vocab), None)
        if wrong is not None:
            raise MinidsError(f"the prompt holds {wrong!r}: expected token ids from 0 to {vocab - 1}")
    longest = max(map(len, prompts))
    if longest > context:
        raise MinidsError(f"the prompt has {longest} tokens, and the model's context is {context}: shorten the prompt")
    if longest + max_new_tokens - 1 > context:
        raise MinidsError(f"{longest} tokens of prompt and {max_new_tokens} new ones outgrow the model's context of {context}: "
                          f"ask for at most {context - longest + 1} new tokens")
