"""Command-line flags from the fields of a settings dataclass: one flag a field.

    lr: float = 3e-3            # peak learning rate

becomes `--lr X`, with the comment and the default as its help. So a hyperparameter is declared
once, where the code that uses it can be read.
"""

import argparse
import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing

METAVARS = {int: "N", float: "X", str: "NAME"}


def add_flags(parser, settings, leave_out=(), presets=(), title: str = "hyperparameters") -> None:
    """Add a group of flags: one for each field of the dataclass `settings`, but for `leave_out`.

    A flag that is not given leaves no attribute in the parsed arguments, so that the settings keep
    their own default (see `given`). `presets` are instances; the help shows their values as
    defaults, in place of the dataclass's.
    """
    group = parser.add_argument_group(title)
    helps, hints = comments(settings), typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        values = [getattr(preset, field.name) for preset in presets] or [field.default]
        text = helps[field.name].replace("%", "%%") + default_text(values)
        group.add_argument("--" + field.name.replace("_", "-"), dest=field.name, help=text,
                           default=argparse.SUPPRESS, **parsing(hints[field.name]))


def given(args, settings) -> dict:
    """The fields of `settings` that were given on the command line, {name: value}."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(settings)
            if hasattr(args, field.name)}


def parsing(hint) -> dict:
    """How `add_argument` parses a field of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return {"type": parts[0], "nargs": "+", "metavar": METAVARS[parts[0]]}
    if types.NoneType in parts:
        return {"type": or_none(parts[0]), "metavar": f"{METAVARS[parts[0]]}|none"}
    return {"type": hint, "metavar": METAVARS[hint]}


def or_none(number):
    """A parser of a number, or of the word "none"."""
    parse = lambda text: None if text.lower() == "none" else number(text)
    parse.__name__ = f"{number.__name__} (or none)"     # argparse puts the name into its message
    return parse


def default_text(values) -> str:
    """" (default: 8)", or " (default by preset: 8, 16)" where the values differ."""
    words = list(dict.fromkeys(map(typed, values)))
    if words == [""]:
        return ""
    return f" (default{' by preset' * (len(words) > 1)}: {', '.join(words)})"


def typed(value) -> str:
    """A value as it is typed on the command line; an empty tuple, and no default, are no words."""
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(typed, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def comments(settings) -> dict[str, str]:
    """{field: its trailing comment}, for each field of a dataclass.

    A comment may go on in lines of its own, indented further than the field. A class that declares
    an inherited field again without a comment inherits the comment, too.
    """
    texts = {field.name: "" for field in dataclasses.fields(settings)}
    for owner in reversed(settings.__mro__):
        if dataclasses.is_dataclass(owner):
            source = textwrap.dedent(inspect.getsource(owner))
            texts |= {name: text for name, text in comments_in(source).items() if text}
    return texts


def comments_in(source: str) -> dict[str, str]:
    """{field: its trailing comment, or ""} of one class's source."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    texts = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        number, words = node.end_lineno, []
        while number in by_line and (not words or goes_on(by_line[number], node.col_offset)):
            words.append(by_line[number].string.lstrip("# "))
            number += 1
        texts[node.target.id] = " ".join(words)
    return texts


def goes_on(comment, indent: int) -> bool:
    """Whether a comment is all of its line, and indented further than `indent`."""
    return comment.start[1] > indent and not comment.line[:comment.start[1]].strip()
