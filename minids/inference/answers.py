"""Ask a model: build the prompt of a problem in a thinking mode, parse and verify the reply."""

from minids.data import tasks
from minids.data.chat import encode_chat, parse_reply
from minids.data.tokenizer import Tokenizer
from minids.inference.generate import generate

LIMITS = {"non-think": 48, "think-high": 128, "think-max": 224}    # tokens of a reply, with its eos


def prompt_ids(problem: tasks.Problem, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a problem's prompt, up to the opening of the reply."""
    return encode_chat([{"role": "user", "content": problem.prompt}], tokenizer, mode)


def is_correct(problem: tasks.Problem, reply: list[int], tokenizer: Tokenizer, mode: str) -> bool:
    """Whether a reply, a list of ids, ends with eos and gives a correct answer."""
    if tokenizer.eos_id not in reply:
        return False
    answer = parse_reply(reply, tokenizer, mode)[1]
    return answer is not None and tasks.verify(problem, answer)


def replies(model, prompts, max_new: int, temperature: float = 1.0, seed: int = 0,
            batch: int = 96) -> list[list[int]]:
    """One reply of at most `max_new` ids to each prompt; prompts may differ in length.

    Prompts of similar length share a batch, which runs until its longest reply has ended. Where the
    model's context leaves less room than `max_new`, the replies of that batch are shorter.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [by_length[i : i + batch] for i in range(0, len(by_length), batch)]
    written = [[] for _ in prompts]
    for number, rows in enumerate(batches):
        room = model.config.max_seq_len + 1 - max(len(prompts[i]) for i in rows)
        new = generate(model, [prompts[i] for i in rows], max(min(max_new, room), 1), temperature,
                       seed=(seed * 1_000_003 + number) % 2**63)
        for i, reply in zip(rows, new):
            written[i] = reply
    return written


def solve(model, tokenizer: Tokenizer, problems, mode: str, temperature: float = 0.0,
          batch: int = 64, seed: int = 0) -> tuple[list[bool], list[int]]:
    """One reply to each problem, greedy by default: whether it is correct, and its tokens.

    The eos counts as a token.
    """
    prompts = [prompt_ids(problem, tokenizer, mode) for problem in problems]
    written = replies(model, prompts, LIMITS[mode], temperature, seed=seed, batch=batch)
    correct = [is_correct(problem, reply, tokenizer, mode)
               for problem, reply in zip(problems, written)]
    return correct, [len(reply) for reply in written]
