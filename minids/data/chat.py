"""A conversation as token ids and back: V4's chat encoding with its three thinking modes.

Report: section 5.1.1, tables 2 and 3; the order of tokens follows the `encoding` folder of the released models. One
conversation without tools is

    <bos> [system text] <User> question <Assistant> opening reply <eos> <User> ...

    mode          opening      reply
    non-think     </think>     answer
    think-high    <think>      reasoning </think> answer
    think-max     <think>      the same, and `MAX_EFFORT` stands before the system text

Only the reply to the last user message keeps its reasoning: earlier ones read as in non-think. The report keeps all
reasoning where tools are at hand; tools, reminders and the tokens for quick instructions are left out here.
The wording of `MAX_EFFORT` is ours, and shorter than the release's. For the real model use "think-high" and put the
release's text, a blank line and the system text into the system message: the same ids as its Think Max.
What the messages say is `minids.data`'s business, sampling replies is `minids.generate`'s.
"""

from minids.data.tokenizer import SPECIAL, Tokenizer
from minids.errors import MinidsError

MODES = ("non-think", "think-high", "think-max")
MAX_EFFORT = "Think as long as it takes: write down every step, check each one, try other ways.\n\n"
BOS, EOS, _, USER, ASSISTANT, THINK, END_THINK = SPECIAL


def encode_chat(messages, tokenizer: Tokenizer, mode: str) -> list[int]:
    """The ids of a conversation: to be continued by the model, or to learn from.

    `messages` is a list of {"role": "system" | "user" | "assistant", "content": text}; an assistant's message may have
    "reasoning" as well; to leave it out says that it is empty. A system message comes first or not at all. User messages
    in a row are one turn, with a blank line between them. Where the user has the last word the ids end with the opening
    of the assistant's reply, else with eos. Content is always plain text: a special token's name in it stays letters.
    In "non-think" reasoning is left out.
    Raises `MinidsError` for an unknown mode or role, other keys, content that is not text, and roles out of order.
    """
    _check_mode(mode)
    turns = _turns(messages)
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    head = MAX_EFFORT if mode == "think-max" else ""
    if turns[0]["role"] == "system":
        head += turns[0]["content"]
    text, token = tokenizer.encode, tokenizer.id
    ids = [token(BOS)] + text(head)
    for i, turn in enumerate(turns):
        thinking = mode != "non-think" and i >= last
        if turn["role"] == "user":
            ids += [token(USER), *text(turn["content"]), token(ASSISTANT), token(THINK if thinking else END_THINK)]
        elif turn["role"] == "assistant":
            ids += [*text(turn.get("reasoning", "")), token(END_THINK)] if thinking else []
            ids += [*text(turn["content"]), token(EOS)]
    return ids


def reply_mask(ids, tokenizer: Tokenizer) -> list[bool]:
    """For each id of an encoded conversation: did the assistant write it?

    True for reasoning, the `</think>` after it, the answer and eos; False for all else, the opening `<think>` or
    `</think>` included, because the prompt gives it. Several conversations may follow each other, each from its bos.
    """
    bos, eos, assistant = (tokenizer.id(name) for name in (BOS, EOS, ASSISTANT))
    mask, writing, before = [], False, None
    for i in map(int, ids):
        writing &= i != bos  # a conversation may have been cut before its eos
        mask.append(writing)
        if before == assistant:  # i is the opening
            writing = True
        elif i == eos:
            writing = False
        before = i
    return mask


def parse_reply(reply, tokenizer: Tokenizer, mode: str) -> tuple[str, str | None]:
    """(reasoning, answer) of what a model wrote after `encode_chat(...)`: ids, or text that names the special tokens.

    The reply ends at the first eos. In the thinking modes the answer begins after the first `</think>`; without one
    there is no answer yet, and it is None. In "non-think" all is answer. Other special tokens stay, by name.
    Whether the model came to its eos is for the caller to see.
    """
    _check_mode(mode)
    ids = tokenizer.encode(reply, special=True) if isinstance(reply, str) else [int(i) for i in reply]
    ids, _ = _cut(ids, tokenizer.id(EOS))
    if mode == "non-think":
        return "", tokenizer.decode(ids)
    reasoning, answer = _cut(ids, tokenizer.id(END_THINK))
    return tokenizer.decode(reasoning), None if answer is None else tokenizer.decode(answer)


def _cut(ids: list[int], mark: int) -> tuple[list[int], list[int] | None]:
    """What stands before the first `mark` and after it; None where there is no mark."""
    if mark not in ids:
        return ids, None
    at = ids.index(mark)
    return ids[:at], ids[at + 1:]


def _turns(messages) -> list[dict]:
    """The messages, checked, with user messages in a row made one."""
    turns = []
    for n, message in enumerate(messages):
        role, before = message.get("role") if isinstance(message, dict) else None, turns[-1]["role"] if turns else None
        keys = {"role", "content", "reasoning"} if role == "assistant" else {"role", "content"}
        where = f"message {n} of the conversation"
        if role not in ("system", "user", "assistant"):
            raise MinidsError(f"{where}: expected role 'system', 'user' or 'assistant', found {role!r}")
        if not {"role", "content"} <= set(message) <= keys or not all(isinstance(message[k], str) for k in message):
            raise MinidsError(f"{where}: expected text under {sorted(keys)}, found {message!r:.200}")
        if role == "system" and turns:
            raise MinidsError(f"{where}: a system message comes first or not at all")
        if role == "assistant" and before != "user":
            raise MinidsError(f"{where}: expected a user message before the assistant's, found {before or 'none'}")
        if role == before == "user":
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + "\n\n" + message["content"]}
        else:
            turns.append(message)
    if not any(turn["role"] == "user" for turn in turns):
        raise MinidsError(f"expected a conversation with a user message, found {len(turns)} messages without one")
    return turns


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise MinidsError(f"expected a mode of {', '.join(MODES)}; found {mode!r}")
