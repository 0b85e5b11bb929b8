"""A conversation as token ids and back: V4's chat encoding, complete.

    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    encode_chat(talk, tokenizer, "think-high")      the ids of the prompt, ready for the model
    render_chat(talk, "think-high")                 the same as text, for people
        <bos>Be brief.<User>2 + 2?<Assistant><think>
    parse_message("Even.</think>4<eos>", "think-high")
        {"role": "assistant", "content": "4", "reasoning_content": "Even.", "tool_calls": []}

(In the docstrings of this file `<bos>`, `<User>` ... stand for the full names.)

**Modes.** They differ in the opening of the reply, and in an instruction at the very beginning:

    mode          opening      reply
    non-think     </think>     answer
    think-high    <think>      reasoning </think> answer
    think-max     <think>      the same; a text that asks for effort precedes the system text

Which text asks for effort depends on the model. `COURSE_EFFORTS`, the default, is short and ours.
`V4_EFFORTS` are those of V4's first release, `V4_0731_EFFORTS` those of Flash-0731, which has one
more mode, "think-low", without a text: its own default. A checkpoint's encoding_dsv4.py tells which
it follows: the one defines REASONING_EFFORT_MAX, the other REASONING_EFFORT_PROMPTS.

    encode_chat(talk, load_v4(), "think-max", V4_0731_EFFORTS)

**Roles.** Content is text, None (no text) or a list of {"type": "text", "text": ...}, which a blank
line joins.

    system, developer    content; tools; response_format, a JSON schema for the answer. A developer
                         message is written like a user's and must have content.
    user                 content; extracted_url, a URL in it, which the task read_url asks about.
                         Consecutive user messages become one, joined by a blank line.
    assistant            content; reasoning_content, or reasoning for short; tool_calls; prefix or
                         wo_eos, with which the message stays open for the model to continue.
    tool                 the result of a tool call. It becomes part of a user message, results in
                         the order of the calls whose "id" is their "tool_call_id".
    latest_reminder      date, place, language and the like.

Any message but a tool's may have a "task", one of `TASKS`. These are V4's quick instructions: the
reply to them is a word or a line without reasoning, such as a title; parse it as non-think. A task
counts if a reply follows it or is due; of user messages that become one, only the first one's does.
The keys "mask", "name" and "id" change nothing.

**Reasoning** stays only after the last message of a user, a developer or a tool. Earlier replies
are encoded as in non-think and earlier developer messages vanish, unless `drop_thinking` is False
or a message has tools.

**Special tokens.** Content is always plain text: in the ids the name of a special token inside it
does not become that token. In rendered text the two look alike, so feed a model ids.

Sources: report, section 5.1.1, tables 2 and 3; the folder `encoding` of the released models (README
and encoding_dsv4.py), which defines the texts below and every order of tokens. For the markup of
tool calls see `minids.data.tools`, for sampling replies `minids.inference.answers`.
"""

import operator
from dataclasses import dataclass

from minids.data import tools
from minids.data.special import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    EXTRACTED_URL,
    MARKS,
    REMINDER,
    TASKS,
    THINK,
    USER,
    clean,
    from_ids,
    mark,
    to_ids,
    to_text,
    token_ids,
)
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError

MODES = ("non-think", "think-high", "think-max")
MAX_EFFORT = "Think as long as it takes: write down every step, check each one, try other ways.\n\n"
ABSOLUTE_MAXIMUM = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n")
BEYOND_MAXIMUM = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal "
    "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles "
    "and are certain that no assumption remains unchecked and no error remains undiscovered.\n\n")
# {thinking mode: the text at the beginning of the conversation}
COURSE_EFFORTS = {"think-high": "", "think-max": MAX_EFFORT}
V4_EFFORTS = {"think-high": "", "think-max": ABSOLUTE_MAXIMUM}
V4_0731_EFFORTS = {"think-low": "", "think-high": ABSOLUTE_MAXIMUM, "think-max": BEYOND_MAXIMUM}

RESPONSE_FORMAT = ("## Response Format:\n\n"
                   "You MUST strictly adhere to the following schema to reply:\n")
ROLE_TOKEN = {"system": "", "developer": MARKS[USER], "user": MARKS[USER], "assistant": "",
              "latest_reminder": MARKS[REMINDER]}
KEYS = {"system": {"content", "tools", "response_format", "task"},
        "developer": {"content", "tools", "response_format", "task"},
        "user": {"content", "extracted_url", "task"},
        "assistant": {"content", "reasoning_content", "reasoning", "tool_calls", "prefix", "task"},
        "tool": {"content", "tool_call_id"},
        "latest_reminder": {"content", "task"}}
LABELS = {"role", "wo_eos", "mask", "name", "id"}       # any message may have these


def encode_chat(messages, tokenizer: Tokenizer, mode: str, efforts: dict[str, str] = COURSE_EFFORTS,
                drop_thinking: bool = True) -> list[int]:
    """The ids of a conversation, as a prompt or as text to train on.

    `messages` is a list of dicts as above, `efforts` the model's texts for its thinking modes. If
    the last message is a user's, a developer's or a tool's, the ids end with the opening of the
    assistant's reply; if it is the assistant's, with eos or where the message stays open. Raises
    `MinidsError` for a message of another form, for an unknown mode, and if the vocabulary lacks a
    special token that the conversation needs.
    """
    return to_ids(_marked(messages, mode, efforts, drop_thinking), tokenizer)


def render_chat(messages, mode: str, efforts: dict[str, str] = COURSE_EFFORTS,
                drop_thinking: bool = True) -> str:
    """The text of a conversation, special tokens by name; the arguments are those of `encode_chat`.

    With `V4_EFFORTS` or `V4_0731_EFFORTS` it equals the text of that release's own encoder.
    """
    return to_text(_marked(messages, mode, efforts, drop_thinking))


def reply_mask(ids, tokenizer: Tokenizer) -> list[bool]:
    """For each id of an encoded conversation, whether the assistant wrote it.

    True for reasoning, the `</think>` after it, the answer, tool calls and eos. False for
    everything else, including the opening `<think>` or `</think>` and the token of a task, which
    belong to the prompt. `ids` may hold several conversations, each of which starts with bos.
    A reply counts if it follows `<Assistant>` or a task's token, which it does unless a system
    message, a reminder or another reply stands between it and the question.
    """
    known = token_ids(tokenizer)
    eos, assistant = tokenizer.id(EOS), tokenizer.id(ASSISTANT)
    others = {known[name] for name in (BOS, USER, REMINDER) if name in known}
    tasks = {known[name] for name in TASKS.values() if name in known}
    mask, writing, previous = [], False, None
    for i in map(int, ids):
        writing &= i not in others      # a reply may lack its eos
        mask.append(writing and i not in tasks)
        if previous == assistant or i in tasks:     # i is the opening
            writing = True
        elif i == eos:
            writing = False
        previous = i
    return mask


def parse_message(reply, mode: str, tokenizer: Tokenizer | None = None) -> dict:
    """The message that a model wrote after the prompt `encode_chat(...)`, for the conversation.

    `reply` is a list of ids, with the `tokenizer` that made them, or text that names the special
    tokens. The message has the keys "role", "content", "reasoning_content" and "tool_calls", a list
    that `minids.data.tools` describes. Raises `MinidsError` for a reply that is not complete and
    well-formed: one without eos (optional after tool calls) or, in a thinking mode, without
    `</think>`; with text after its end or special tokens inside; with malformed tool calls. For
    unfinished replies see `parse_reply`.
    """
    text, reasoning, calls = _read(reply, mode, tokenizer), "", []
    if mode != "non-think":
        reasoning, closed, text = text.partition(MARKS[END_THINK])
        if not closed or f"\n\n{tools.START}" in reasoning:
            raise _malformed(f"reasoning and {END_THINK} before anything else", reasoning)
    content, eos, rest = text.partition(MARKS[EOS])
    if f"\n\n{tools.START}" in content:
        content, _, block = text.partition(f"\n\n{tools.START}")
        calls, rest = tools.read_calls(tools.START + block)
        rest = rest.removeprefix(MARKS[EOS])
    elif not eos:
        raise _malformed(f"{EOS} at the end (a longer reply, if it was cut off)", content[-60:])
    if rest:
        raise _malformed("nothing after its end", rest)
    for name in (BOS, EOS, THINK, END_THINK, DSML):
        if MARKS[name] in reasoning + content:
            raise _malformed(f"no {name} inside its reasoning or its answer (tool calls begin "
                             "after a blank line)", reasoning + content)
    return {"role": "assistant", "content": to_text(content),
            "reasoning_content": to_text(reasoning), "tool_calls": calls}


def parse_reply(reply, tokenizer: Tokenizer, mode: str) -> tuple[str, str | None]:
    """(reasoning, answer) of what a model wrote after the prompt `encode_chat(...)`.

    `reply` is a list of ids, or text that names the special tokens. It ends at the first eos. In
    the thinking modes the answer begins after the first `</think>`; without one there is no answer,
    and it is None. In "non-think" the whole reply is the answer. Other special tokens remain, by
    name. Whether the reply has an eos is for the caller to check.
    """
    text = _read(reply, mode, tokenizer).partition(MARKS[EOS])[0]
    if mode == "non-think":
        return "", to_text(text)
    reasoning, closed, answer = text.partition(MARKS[END_THINK])
    return to_text(reasoning), to_text(answer) if closed else None


# ---- writing a conversation ----

@dataclass
class _Turn:
    """A message as the model sees it. A tool's result is a part of a user's turn."""

    role: str
    parts: list[tuple[str, int | None]]     # (marked text, position of the call it answers)
    reasoning: str = ""
    task: str | None = None
    has_tools: bool = False

    def body(self) -> str:
        """Its parts; the results of tools change places until they are in the calls' order."""
        results = iter(sorted((part for part in self.parts if part[1] is not None),
                              key=lambda part: part[1]))
        return "\n\n".join(text if position is None else next(results)[0]
                           for text, position in self.parts)


def _marked(messages, mode: str, efforts: dict[str, str], drop_thinking: bool) -> str:
    """The conversation as marked text (`minids.data.special`)."""
    _check_mode(mode, ("non-think", *efforts))
    turns = _turns(messages)
    thinking = mode != "non-think"
    drop = drop_thinking and not any(turn.has_tools for turn in turns)
    last = _last_question(turns)
    if thinking and drop:
        turns = [turn for n, turn in enumerate(turns) if turn.role != "developer" or n >= last]
        last = _last_question(turns)
    text = MARKS[BOS] + (clean(efforts[mode], f"the effort of {mode}") if thinking else "")
    for n, turn in enumerate(turns):
        opened = thinking and (n >= last or not drop)       # reasoning stays from here on
        is_task_reply = n > 0 and turns[n - 1].task is not None
        if turn.role == "assistant" and opened and not is_task_reply:
            text += turn.reasoning + MARKS[END_THINK]
        text += ROLE_TOKEN[turn.role] + turn.body()
        if n + 1 == len(turns) or turns[n + 1].role in ("assistant", "latest_reminder"):
            text += _opening(turn, thinking, opened)
    return text


def _opening(turn: _Turn, thinking: bool, opened: bool) -> str:
    """What follows a turn to which a reply is due, in marked text."""
    if turn.task == "action":
        think = THINK if thinking else END_THINK
        return MARKS[ASSISTANT] + MARKS[think] + MARKS[TASKS["action"]]
    if turn.task is not None:
        return MARKS[TASKS[turn.task]]
    if turn.role in ("user", "developer"):
        return MARKS[ASSISTANT] + MARKS[THINK if opened else END_THINK]
    return ""


def _last_question(turns: list[_Turn]) -> int:
    """The position of the last user's or developer's turn, -1 if there is none."""
    return max((n for n, turn in enumerate(turns) if turn.role in ("user", "developer")),
               default=-1)


def _turns(messages) -> list[_Turn]:
    """The checked messages; those of users and tools in a row are joined."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise MinidsError('expected a conversation, a list of messages like {"role": "user", '
                          f'"content": "Hello"}}; found {messages!r:.100}')
    turns: list[_Turn] = []
    order: dict[str, int] = {}      # of the tool calls that were made last
    for n, message in enumerate(messages):
        where = f"message {n} of the conversation"
        _check_message(message, where)
        turn = _turn(message, order, where)
        before = turns[-1] if turns else None
        is_tool = message["role"] == "tool"
        if before and before.role == turn.role == "user" and (is_tool or before.task is None):
            before.parts += turn.parts
        else:
            turns.append(turn)
        if message["role"] == "assistant" and message.get("tool_calls"):
            order = tools.call_order(message["tool_calls"])
    return turns


def _turn(message: dict, order: dict[str, int], where: str) -> _Turn:
    """One checked message; `order` is that of the tool calls which it may answer."""
    role, task, text = message["role"], message.get("task"), _content(message, where)
    if role == "tool":
        position = order.get(message.get("tool_call_id") or "", 0)
        return _Turn("user", [(f"<tool_result>{text}</tool_result>", position)])
    if role == "assistant":
        if message.get("tool_calls"):
            text += "\n\n" + tools.write_calls(message["tool_calls"], where)
        if not (message.get("wo_eos") or message.get("prefix")):
            text += MARKS[EOS]
        return _Turn(role, [(text, None)], _reasoning(message, where), task)
    if role == "developer" and not text:
        raise MinidsError(f"{where}: expected a developer's message with content, found none")
    if message.get("extracted_url"):
        text += MARKS[EXTRACTED_URL] + clean(message["extracted_url"], where)
    if message.get("tools"):
        text += "\n\n" + tools.describe_tools(message["tools"], where)
    if message.get("response_format"):
        schema = tools.to_json(message["response_format"], where)
        text += f"\n\n{RESPONSE_FORMAT}{schema}"
    return _Turn(role, [(text, None)], "", task, bool(message.get("tools")))


def _content(message: dict, where: str) -> str:
    """The text of a message."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return clean(content, where)
    if not isinstance(content, list):
        raise MinidsError(f'{where}: expected "content" that is text, a list of parts or None, '
                          f"found {type(content).__name__} {content!r:.100}")
    return "\n\n".join(_part(part, message["role"], where) for part in content)


def _part(part, role: str, where: str) -> str:
    """The text of one part of a message. V4 reads text only; the release names a tool's others."""
    kind = part.get("type") if isinstance(part, dict) else None
    if role == "tool" and isinstance(kind, str) and kind != "text":
        return clean(f"[Unsupported {kind}]", where)
    if kind != "text" or not isinstance(part.get("text", ""), str):
        raise MinidsError(f'{where}: expected parts {{"type": "text", "text": ...}}, '
                          f"found {part!r:.100}")
    return clean(part.get("text", ""), where)


def _reasoning(message: dict, where: str) -> str:
    """The reasoning of an assistant's message, under either key."""
    found = [message[key] for key in ("reasoning_content", "reasoning") if message.get(key)]
    if any(not isinstance(text, str) for text in found) or len(set(found)) > 1:
        raise MinidsError(f'{where}: expected text under one of "reasoning_content" and '
                          f'"reasoning", found {found!r:.100}')
    return clean(found[0], where) if found else ""


def _check_message(message, where: str) -> None:
    """Raise `MinidsError` for what `_turn` cannot write, or could only leave out."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in KEYS:
        raise MinidsError(f"{where}: expected a dict with a role of {', '.join(KEYS)}; "
                          f"found {message!r:.100}")
    lost = sorted(str(key) for key in set(message) - KEYS[role] - LABELS if message[key])
    if lost:
        raise MinidsError(f"{where}: expected a message of role {role!r} with keys of "
                          f"{', '.join(sorted(KEYS[role]))}; found {', '.join(lost)}")
    task = message.get("task")
    if task is not None and (not isinstance(task, str) or task not in TASKS):
        raise MinidsError(f"{where}: expected a task of {', '.join(TASKS)}; found {task!r:.100}")
    for key in ("tool_call_id", "extracted_url"):
        if message.get(key) and not isinstance(message[key], str):
            raise MinidsError(f'{where}: expected text under "{key}", found {message[key]!r:.100}')


def _check_mode(mode: str, modes) -> None:
    if mode not in modes:
        raise MinidsError(f"expected a mode of {', '.join(modes)}; found {mode!r}")


# ---- reading a reply ----

def _read(reply, mode: str, tokenizer: Tokenizer | None) -> str:
    """The marked text of a reply, text or ids."""
    _check_mode(mode, (*MODES, "think-low"))
    if isinstance(reply, str):
        return mark(reply)
    if tokenizer is None:
        raise MinidsError("expected the tokenizer of a reply that is ids: pass it as `tokenizer`")
    try:
        ids = [operator.index(i) for i in reply]
    except TypeError:
        raise MinidsError(f"expected a reply, text or a list of ids, found {reply!r:.100}; of a "
                          "batch, pass one row") from None
    return from_ids(ids, tokenizer)


def _malformed(expected: str, found: str) -> MinidsError:
    return MinidsError(f"the reply: expected {expected}, found {to_text(found)!r:.200}")
