"""From logits to token ids: temperature and top-p; and a check of prompts and options."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from minids.errors import MinidsError
from minids.model import kernels
from minids.model.kernels import vocabulary


@contextmanager
def enough_threads(model, batch: int):
    """Run small steps on a CPU in one thread: they end before a second thread would wake up."""
    threads = torch.get_num_threads()
    if model.embed.weight.device.type == "cpu" and batch * model.config.dim <= 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_greedy(temperature: float) -> bool:
    """Whether a temperature is 0 in float32, or so near that a device may round it to 0."""
    return temperature < torch.finfo(torch.float32).tiny


def cooled(logits, temperature: float):
    """Logits divided by a temperature above 0, in float32, up to a number that is added to each row
    and that softmax does not see."""
    logits = logits.float()
    if temperature < 1e-3:      # the quotient may overflow, that of the differences may not
        logits = logits - logits.detach().amax(-1, keepdim=True)
    return logits if temperature == 1 else logits / temperature


def sample(logits, temperature: float, top_p: float, generator=None, rows=None, batch: int = 0):
    """One id for each row of logits: B vocab -> B. For `rows` and `batch` see `pick`."""
    if is_greedy(temperature):
        return logits.argmax(-1)
    return pick(distribution(logits, temperature, top_p), generator, rows, batch)


def pick(weights, generator=None, rows=None, batch: int = 0):
    """One id for each row, sampled in proportion to its weights: ... vocab -> ...

    The id for which weight / noise is largest, where the noise is exponential; -1 where the weights
    are NaN (see `checked`). `torch.multinomial` works the same way, but makes the host wait for a
    GPU, to check the weights. On a CPU an id depends on the generator alone, see `exponential`.
    With `rows`, b numbers, the weights, b vocab, are those of some rows of a batch: each gets the
    id that it would get in the batch.
    """
    shape = weights.shape if rows is None else (batch, *weights.shape[1:])
    if kernels.on("vocabulary", weights):
        u = torch.rand(shape, dtype=torch.float64, generator=generator)
        u = u if rows is None else u[rows]
        ids = torch.empty(weights.shape[:-1], dtype=torch.int64)
        weights = weights.contiguous().view(-1, shape[-1])                           # N vocab
        vocabulary.race(weights.numpy(), u.view(weights.shape).numpy(), ids.view(-1).numpy())
        return ids
    noise = exponential(weights, shape, generator)
    noise = noise if rows is None else noise[rows]
    return (weights / noise).argmax(-1).masked_fill(weights[..., 0].isnan(), -1)


def exponential(like, shape, generator=None):
    """Exponential noise of this shape; type and device are those of the tensor `like`.

    On a CPU it is what `exponential_` gives for the same generator, in a fifth of the time. (With
    MKL on an Intel processor, that and `torch.multinomial` give other numbers.)
    """
    if like.device.type != "cpu":
        return like.new_empty(shape).exponential_(generator=generator)
    u = torch.rand(shape, dtype=torch.float64, generator=generator)
    return torch.log1p(-u).neg_().to(like.dtype)


def checked(ids: list[int]) -> list[int]:
    """The ids that `pick` gave; raises `MinidsError` where it had nothing to pick from."""
    if min(ids) < 0:
        raise MinidsError("the model's logits are NaN: expected numbers to sample from; its "
                          "weights may be damaged, or its training may have diverged")
    return ids


def distribution(logits, temperature: float, top_p: float):
    """The probabilities that ids are sampled with: ... vocab -> ... vocab.

    At temperature 0 the most likely id has probability 1.
    """
    if is_greedy(temperature):
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    p = torch.softmax(cooled(logits, temperature), dim=-1)
    if top_p < 1:
        p = p.masked_fill(~nucleus(p, top_p), 0)
        p = p / p.sum(-1, keepdim=True)
    return p


def nucleus(p, top_p: float):
    """The ids that top-p sampling allows: the most likely ones that together reach `top_p`.

    p: ... vocab, probabilities -> ... vocab, booleans. Holtzman et al. (arXiv 1904.09751).
    """
    vocab = p.shape[-1]
    # on a CPU, a full sort is slow, and usually a few ids are enough; to ask a GPU is slower
    for k in (min(128, vocab), vocab) if p.device.type == "cpu" else (vocab,):
        top = p.topk(k)
        allowed = top.values.cumsum(-1) - top.values < top_p   # the more likely ids do not reach it
        if k == vocab or not allowed[..., -1].any():
            break
    return torch.zeros_like(p, dtype=torch.bool).scatter_(-1, top.indices, allowed)


def check(model, prompts, max_new_tokens, temperature, top_p) -> None:
    """Raise `MinidsError` unless the model can continue `prompts`, lists of ids, with these
    options."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise MinidsError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise MinidsError(f"temperature: expected 0 (greedy) or more, found {temperature}")
    if not 0 < top_p <= 1:
        raise MinidsError(f"top_p: expected more than 0 and at most 1, found {top_p}")
    if not prompts or not all(prompts):
        raise MinidsError("the prompt is empty: expected at least one token id, such as the one "
                          "that begins a text")
    context, vocab = model.config.max_seq_len, model.config.vocab_size
    for prompt in prompts:
        for token in prompt:
            if not isinstance(token, int) or not 0 <= token < vocab:
                raise MinidsError(f"the prompt holds {token!r}: expected token ids from 0 to "
                                  f"{vocab - 1}")
    longest = max(map(len, prompts))
    if longest > context:
        raise MinidsError(f"the prompt has {longest} tokens, and the model's context is {context}: "
                          f"shorten the prompt")
    if longest + max_new_tokens - 1 > context:
        raise MinidsError(f"{longest} tokens of prompt and {max_new_tokens} new ones exceed the "
                          f"model's context of {context}: ask for at most "
                          f"{context - longest + 1} new tokens")
