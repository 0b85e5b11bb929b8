"""Tools in a conversation: their schemas in the prompt, the model's calls, reading these calls.

A tool is described by a JSON schema, in the form of OpenAI's API:

    {"type": "function", "function": {"name": "add", "description": "...", "parameters": {...}}}

`describe_tools` puts the schemas into the prompt. To call tools, the model ends its reply with a
block in DSML, a markup whose tags contain the special token `｜DSML｜`:

    <｜DSML｜tool_calls>
    <｜DSML｜invoke name="add">
    <｜DSML｜parameter name="numbers" string="false">[2, 3]</｜DSML｜parameter>
    <｜DSML｜parameter name="unit" string="true">cm</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

A string stands there as it is, without quotation marks or escapes; any other value is JSON.
`write_calls` makes this block from an assistant's "tool_calls", `read_calls` the reverse:

    {"type": "function", "function": {"name": "add", "arguments": '{"numbers": [2, 3], ...}'}}

All functions work on marked text (`minids.data.special`), where a tag's `｜DSML｜` is the token and
the same letters in a value are letters. For whole conversations see `minids.data.chat`. Source: the
folder `encoding` of the released models (its README and encoding_dsv4.py); `PREAMBLE` and `RULE`
are its words.
"""

import json
import re

from minids.data.special import DSML, MARKS, clean, mark, to_text
from minids.errors import MinidsError

PREAMBLE = (
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools by "
    'writing a "<｜DSML｜tool_calls>" block like the following:\n\n'
    "<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="$TOOL_NAME">\n'
    '<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE'
    "</｜DSML｜parameter>\n"
    "...\n"
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="$TOOL_NAME2">\n'
    "...\n"
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>\n\n"
    'String parameters should be specified as is and set `string="true"`. For all other types '
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    '`string="false"`.\n\n'
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning "
    "inside <think>...</think> BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n")
RULE = ("\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke "
        "tool calls.\n")

_D = MARKS[DSML]
START = f"<{_D}tool_calls"      # of a block, in marked text
_CALL = re.compile(rf'<{_D}invoke\s*name="(.*?)">\n\n?', re.DOTALL)
_AFTER_CALL = re.compile(rf"<{_D}parameter|</{_D}invoke|\Z")
_PARAMETER = re.compile(rf'<{_D}parameter name="(.*?)" string="(true|false)">(.*)<', re.DOTALL)
_ANY_TYPE = re.compile(rf'<{_D}parameter name="[^"]*" string="([^"]*)">')


def describe_tools(tools, where: str) -> str:
    """The section on `tools` for the prompt, in marked text: how to call them, and their schemas.

    `where` names the message in errors. Raises `MinidsError` for a tool that is not of the form
    {"type": "function", "function": {"name": ..., ...}} or cannot be written as JSON.
    """
    schemas = [_function(tool, f"{where}, tool {n}") for n, tool in enumerate(_list(tools, where))]
    lines = [to_json(schema, where) for schema in schemas]
    return mark(PREAMBLE) + "\n".join(lines) + RULE


def write_calls(calls, where: str) -> str:
    """The block of DSML that makes `calls`, in marked text. The inverse of `read_calls`.

    `where` names the message in errors. A call's "arguments" are JSON text. Like the release's
    encoder, this one takes text that is not JSON for the value of a single parameter with the name
    "arguments": a model may have written it so.
    """
    written = []
    for n, call in enumerate(_list(calls, where)):
        function = _function(call, f"{where}, tool call {n}")
        parameters = _parameters(function, f"{where}, tool call {n}")
        lines = [_written(name, value, where) for name, value in parameters.items()]
        written.append(f'<{_D}invoke name="{clean(function["name"], where)}">\n'
                       + "\n".join(lines) + f"\n</{_D}invoke>")
    return f"<{_D}tool_calls>\n" + "\n".join(written) + f"\n</{_D}tool_calls>"


def call_order(calls) -> dict[str, int]:
    """{id of a call: its position}, for calls that have an id."""
    ids = [call.get("id") or call["function"].get("id") for call in calls]
    return {call_id: n for n, call_id in enumerate(ids) if isinstance(call_id, str) and call_id}


def read_calls(text: str) -> tuple[list[dict], str]:
    """(tool calls, the text after them), from marked text that begins with `START`.

    The calls are a list of {"type": "function", "function": {"name", "arguments"}}, arguments as
    JSON text. Raises `MinidsError` where the text is not a block of calls: a tag that is missing or
    misspelled, a parameter that is given twice, that is neither string="true" nor "false", or whose
    value is not JSON though it should be.
    """
    at = _expect(text, 0, f"{START}>\n")
    calls = []
    while text.startswith(f"<{_D}invoke", at):
        call, at = _read_call(text, at)
        calls.append({"type": "function", "function": call})
    return calls, text[_expect(text, at, f"</{_D}tool_calls>"):]


def to_json(value, where: str) -> str:
    """`value` as JSON on one line, letters of all languages as they are."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MinidsError(f"{where}: expected values that JSON can hold (texts, numbers, lists, "
                          f"dicts), found {value!r:.100}: {error}") from None
    return clean(text, where)


# ---- writing ----

def _written(name: str, value, where: str) -> str:
    """One parameter in DSML."""
    is_text = isinstance(value, str)
    value = clean(value, where) if is_text else to_json(value, where)
    return (f'<{_D}parameter name="{clean(name, where)}" string="{"true" if is_text else "false"}">'
            f"{value}</{_D}parameter>")


def _parameters(function: dict, where: str) -> dict:
    """The arguments of a call as a dict."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise MinidsError(f'{where}: expected "arguments" as JSON text, found '
                          f"{type(arguments).__name__} {arguments!r:.100}; use json.dumps")
    try:
        parameters = json.loads(arguments)
    except (ValueError, RecursionError):
        return {"arguments": arguments}
    if not isinstance(parameters, dict):
        raise MinidsError(f'{where}: expected "arguments" that are a JSON object, like '
                          f'{{"name": "value"}}, found {arguments!r:.100}')
    return parameters


def _list(entries, where: str) -> list | tuple:
    if not isinstance(entries, (list, tuple)):
        raise MinidsError(f'{where}: expected a list of {{"type": "function", "function": ...}}, '
                          f"found {entries!r:.100}")
    return entries


def _function(entry, where: str) -> dict:
    """The value of "function", a dict with a name."""
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MinidsError(f'{where}: expected {{"type": "function", "function": {{"name": ..., '
                          f'...}}}}, found {entry!r:.100}')
    return function


# ---- reading ----

def _read_call(text: str, at: int) -> tuple[dict, int]:
    """({"name", "arguments"}, the position after it) of the call that begins at `at`."""
    opening = _CALL.fullmatch(text, at, _AFTER_CALL.search(text, at).start())
    if not opening:
        raise _unexpected(text, at, f'<{_D}invoke name="..."> and a new line')
    name, at = opening[1], opening.end()
    parameters: dict[str, str] = {}
    while text.startswith(f"<{_D}parameter", at):
        key, value, at = _read_parameter(text, at)
        if key in parameters:
            raise MinidsError(f"tool calls: expected each parameter once, found {to_text(key)!r} "
                              f"twice in a call of {to_text(name)!r}")
        parameters[key] = value
    at = _expect(text, at, f"</{_D}invoke>\n")
    pairs = [f"{json.dumps(to_text(key), ensure_ascii=False)}: {value}"
             for key, value in parameters.items()]
    return {"name": to_text(name), "arguments": "{" + ", ".join(pairs) + "}"}, at


def _read_parameter(text: str, at: int) -> tuple[str, str, int]:
    """(name, value as JSON, the position after it) of the parameter that begins at `at`."""
    closer = f"/{_D}parameter"
    end = text.find(closer, at)
    if end < 0:
        raise _unexpected(text, len(text), f"<{closer}> after {to_text(text[at:at + 60])!r}")
    found = _PARAMETER.fullmatch(text, at, end)
    if not found:
        kind = _ANY_TYPE.match(text, at)
        raise _unexpected(text, at, f'<{_D}parameter name="..." string="true"> or string="false"',
                          f'string="{kind[1]}"' if kind else None)
    name, is_text, value = found.groups()
    value = to_text(value)
    if is_text == "true":
        value = json.dumps(value, ensure_ascii=False)
    else:
        _check_json(value, name)
    return name, value, _expect(text, end + len(closer), ">\n")


def _check_json(value: str, name: str) -> None:
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MinidsError(f"tool calls: expected JSON as the value of {to_text(name)!r}, whose "
                          f'string="false", found {value!r:.100}: {error}') from None


def _expect(text: str, at: int, expected: str) -> int:
    """The position after `expected`. Raises `MinidsError` if the text at `at` is another."""
    if not text.startswith(expected, at):
        raise _unexpected(text, at, repr(to_text(expected)))
    return at + len(expected)


def _unexpected(text: str, at: int, expected: str, found: str | None = None) -> MinidsError:
    if found is None:
        found = repr(to_text(text[at:at + 60])) if at < len(text) else "the end of the reply"
    return MinidsError(f"tool calls: expected {to_text(expected)}, found {found} "
                       f"{len(to_text(text[:at]))} characters after the start of the block")
