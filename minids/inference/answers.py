"""Asking a model: prompts in a thinking mode, replies, and whether they are correct."""

from minids.data import tasks
from minids.data.chat import encode_chat, parse_reply
from minids.data.tokenizer import Tokenizer
from minids.inference.generate import generate

LIMITS = {"non-think": 48, "think-high": 128, "think-max": 224}     # tokens of a reply; eos is one of them


def question(problem: tasks.Problem, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a problem's prompt, up to the opening of the reply."""
    return encode_chat([{"role": "user", "content": problem.prompt}], tokenizer, mode)


def right(problem: tasks.Problem, reply: list[int], tokenizer: Tokenizer, mode: str) -> bool:
    """Whether a reply has come to its end and says a right answer."""
    answer = parse_reply(reply, tokenizer, mode)[1] if tokenizer.eos_id in reply else None
    return answer is not None and tasks.verify(problem, answer)


def replies(model, prompts, max_new: int, temperature: float = 1.0, seed: int = 0, batch: int = 96) -> list[list[int]]:
    """A reply to each prompt of any length; prompts of like length share a batch, which waits for its longest. Long prompts
    leave less room."""
    order, found = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [[] for _ in prompts]
    for number, some in enumerate(order[i : i + batch] for i in range(0, len(order), batch)):
        room = model.config.max_seq_len + 1 - max(len(prompts[i]) for i in some)
        new = generate(model, [prompts[i] for i in some], max(min(max_new, room), 1), temperature,
                       seed=(seed * 1_000_003 + number) % 2**63)
        for i, ids in zip(some, new):
            found[i] = ids
    return found


def solve(model, tokenizer: Tokenizer, problems, mode: str, temperature: float = 0.0, batch: int = 64,
          seed: int = 0) -> tuple[list[bool], list[int]]:
    """One reply to each problem: whether it is right, and its length in tokens, eos included. Greedy by default."""
    prompts = [question(problem, tokenizer, mode) for problem in problems]
    found = replies(model, prompts, LIMITS[mode], temperature, seed=seed, batch=batch)
    return [right(p, r, tokenizer, mode) for p, r in zip(problems, found)], [len(r) for r in found]
