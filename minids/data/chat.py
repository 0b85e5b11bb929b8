"""A conversation as token ids and back: V4's chat encoding with its three thinking modes.

Report: section 5.1.1, tables 2 and 3; the order of tokens follows the `encoding` folder of the
released models. One conversation without tools is

    <bos> [system text] <User> question <Assistant> opening reply <eos> <User> ...

    mode          opening      reply
    non-think     </think>     answer
    think-high    <think>      reasoning </think> answer
    think-max     <think>      the same; `MAX_EFFORT` precedes the system text

Only the reply to the last user message keeps its reasoning; earlier replies are encoded as in
non-think. With tools, the report keeps all reasoning. Tools, reminders and the tokens for quick
instructions are left out here. The wording of `MAX_EFFORT` is ours and shorter than the release's.
To give the real model the ids of its own Think Max, use "think-high" with a system message that
holds the release's text, a blank line and the system text. For sampling replies see
`minids.inference.answers`.
"""

from minids.data.tokenizer import SPECIAL, Tokenizer
from minids.errors import MinidsError

MODES = ("non-think", "think-high", "think-max")
MAX_EFFORT = "Think as long as it takes: write down every step, check each one, try other ways.\n\n"
BOS, EOS, _, USER, ASSISTANT, THINK, END_THINK = SPECIAL


def encode_chat(messages, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a conversation, as a prompt or as text to train on.

    `messages` is a list of {"role": "system" | "user" | "assistant", "content": text}. An
    assistant's message may also have "reasoning"; if it is missing, it is empty. A system message
    comes first or not at all. Consecutive user messages become one, joined by a blank line. If the
    last message is the user's, the ids end with the opening of the assistant's reply, otherwise
    with eos. Content is always plain text: the name of a special token inside it does not become
    that token. In "non-think", reasoning is left out. Raises `MinidsError` for an unknown mode or
    role, other keys, content that is not text, and roles in a wrong order.
    """
    _check_mode(mode)
    turns = _turns(messages)
    last_user = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    head = MAX_EFFORT if mode == "think-max" else ""
    if turns[0]["role"] == "system":
        head += turns[0]["content"]
    text, token = tokenizer.encode, tokenizer.id
    ids = [token(BOS)] + text(head)
    for i, turn in enumerate(turns):
        thinking = mode != "non-think" and i >= last_user
        if turn["role"] == "user":
            opening = token(THINK if thinking else END_THINK)
            ids += [token(USER), *text(turn["content"]), token(ASSISTANT), opening]
        elif turn["role"] == "assistant":
            ids += [*text(turn.get("reasoning", "")), token(END_THINK)] if thinking else []
            ids += [*text(turn["content"]), token(EOS)]
    return ids


def reply_mask(ids, tokenizer: Tokenizer) -> list[bool]:
    """For each id of an encoded conversation, whether the assistant wrote it.

    True for reasoning, the `</think>` after it, the answer and eos. False for everything else,
    including the opening `<think>` or `</think>`, which belongs to the prompt. `ids` may hold
    several conversations, each of which starts with bos.
    """
    bos, eos, assistant = (tokenizer.id(name) for name in (BOS, EOS, ASSISTANT))
    mask, writing, previous = [], False, None
    for i in map(int, ids):
        writing &= i != bos         # the conversation before may lack its eos
        mask.append(writing)
        if previous == assistant:   # i is the opening
            writing = True
        elif i == eos:
            writing = False
        previous = i
    return mask


def parse_reply(reply, tokenizer: Tokenizer, mode: str) -> tuple[str, str | None]:
    """(reasoning, answer) of what a model wrote after the prompt `encode_chat(...)`.

    `reply` is a list of ids, or text that names the special tokens. It ends at the first eos. In
    the thinking modes the answer begins after the first `</think>`; without one there is no answer,
    and it is None. In "non-think" the whole reply is the answer. Other special tokens remain, by
    name. Whether the reply has an eos is for the caller to check.
    """
    _check_mode(mode)
    if isinstance(reply, str):
        ids = tokenizer.encode(reply, special=True)
    else:
        ids = [int(i) for i in reply]
    ids, _ = _partition(ids, tokenizer.id(EOS))
    if mode == "non-think":
        return "", tokenizer.decode(ids)
    reasoning, answer = _partition(ids, tokenizer.id(END_THINK))
    return tokenizer.decode(reasoning), None if answer is None else tokenizer.decode(answer)


def _partition(ids: list[int], separator: int) -> tuple[list[int], list[int] | None]:
    """The ids before the first `separator` and those after it; (ids, None) if there is none."""
    if separator not in ids:
        return ids, None
    position = ids.index(separator)
    return ids[:position], ids[position + 1:]


def _turns(messages) -> list[dict]:
    """The checked messages; consecutive user messages are joined."""
    turns = []
    for n, message in enumerate(messages):
        previous = turns[-1]["role"] if turns else None
        _check_message(message, n, previous)
        if message["role"] == previous == "user":
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + "\n\n" + message["content"]}
        else:
            turns.append(message)
    if not any(turn["role"] == "user" for turn in turns):
        raise MinidsError("expected a conversation with a user message, "
                          f"found {len(turns)} messages without one")
    return turns


def _check_message(message, n: int, previous: str | None) -> None:
    """Raise `MinidsError` if message `n` is malformed or may not follow one of role `previous`."""
    where = f"message {n} of the conversation"
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("system", "user", "assistant"):
        raise MinidsError(f"{where}: expected role 'system', 'user' or 'assistant', found {role!r}")
    keys = {"role", "content", "reasoning"} if role == "assistant" else {"role", "content"}
    is_text = all(isinstance(message[key], str) for key in message)
    if not {"role", "content"} <= set(message) <= keys or not is_text:
        raise MinidsError(f"{where}: expected text under {sorted(keys)}, found {message!r:.200}")
    if role == "system" and previous is not None:
        raise MinidsError(f"{where}: a system message comes first or not at all")
    if role == "assistant" and previous != "user":
        raise MinidsError(f"{where}: expected a user message before the assistant's, "
                          f"found {previous or 'none'}")


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise MinidsError(f"expected a mode of {', '.join(MODES)}; found {mode!r}")
