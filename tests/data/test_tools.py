import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data.special import DSML, MARKS, mark, to_text
from minids.data.tools import (
    PREAMBLE,
    RULE,
    START,
    call_order,
    describe_tools,
    read_calls,
    to_json,
    write_calls,
)
from minids.errors import MinidsError


def call(name, arguments, **keys):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **keys}


def block(*lines):
    """Marked text of a block of calls; in `lines` a `#` stands for the token."""
    lines = ("<#tool_calls>", *lines, "</#tool_calls>")
    return "\n".join(lines).replace("#", MARKS[DSML])


# ---- describing ----

def test_a_description_holds_one_line_of_json_for_each_tool():
    tools = [{"type": "function", "function": {"name": name, "description": "é \"x\"\n"}}
             for name in ("f", "g")]
    text = to_text(describe_tools(tools, "here"))
    assert text == (PREAMBLE + '{"name": "f", "description": "é \\"x\\"\\n"}\n'
                    + '{"name": "g", "description": "é \\"x\\"\\n"}' + RULE)


def test_tokens_in_the_preamble_are_tokens_and_in_a_schema_text():
    tools = [{"type": "function", "function": {"name": f"<think>{DSML}"}}]
    marked = describe_tools(tools, "here")
    assert marked.count(MARKS[DSML]) == PREAMBLE.count(DSML) == 9
    assert marked.count(MARKS["<think>"]) == PREAMBLE.count("<think>") == 2
    assert f'{{"name": "<think>{DSML}"}}' in marked


@pytest.mark.parametrize("tools, message", [
    ("f", "here: expected a list of .* found 'f'"),
    ({"type": "function"}, "expected a list"),
    ([{"name": "f", "parameters": {}}], "here, tool 0: expected .*found {'name': 'f'"),
    ([{"type": "function", "function": {"name": "f"}}, "g"], "here, tool 1: expected"),
    ([{"type": "function", "function": {"description": "f"}}], "tool 0: expected"),
    ([{"type": "function", "function": {"name": "f", "parameters": {1, 2}}}], "JSON can hold"),
    ([{"type": "function", "function": {"name": "\ud800"}}], "UTF-8"),
])
def test_a_bad_tool_is_refused(tools, message):
    with pytest.raises(MinidsError, match=message):
        describe_tools(tools, "here")


# ---- calling ----

def test_texts_are_written_as_they_are_and_the_rest_as_json():
    arguments = {"a": 'x "y"\n<&', "b": "1", "c": 1, "d": None, "e": [1.50, {"é": "ü"}], "f": ""}
    assert write_calls([call("f", json.dumps(arguments)), call("g", "{}")], "here") == block(
        '<#invoke name="f">',
        '<#parameter name="a" string="true">x "y"\n<&</#parameter>',
        '<#parameter name="b" string="true">1</#parameter>',
        '<#parameter name="c" string="false">1</#parameter>',
        '<#parameter name="d" string="false">null</#parameter>',
        '<#parameter name="e" string="false">[1.5, {"é": "ü"}]</#parameter>',
        '<#parameter name="f" string="true"></#parameter>',
        "</#invoke>",
        '<#invoke name="g">', "", "</#invoke>")


@pytest.mark.parametrize("arguments", ["", "Paris", '{"a": ', "{'a': 1}"])
def test_arguments_that_are_not_json_are_one_parameter(arguments):
    assert write_calls([call("f", arguments)], "here") == block(
        '<#invoke name="f">',
        f'<#parameter name="arguments" string="true">{arguments}</#parameter>', "</#invoke>")


@pytest.mark.parametrize("calls, message", [
    ([call("f", {"a": 1})], "here, tool call 0: expected .* as JSON text, found dict .*json.dumps"),
    ([call("f", None)], "found NoneType"),
    ([call("f", "[1]")], r"expected .* a JSON object, .* found '\[1\]'"),
    ([call("f", "{}"), call("g", "7")], "tool call 1: expected"),
    ([call(None, "{}")], "tool call 0: expected"),
    ([{"function": "f"}], "tool call 0: expected"),
    (call("f", "{}"), "expected a list"),
    ([call("f", '{"a": "\\ud800"}')], "UTF-8"),
    ([call("f", '{"\\ud800": 1}')], "UTF-8"),
    ([call("f", '{"a": ["\\ud800"]}')], "UTF-8"),
])
def test_a_bad_call_is_refused(calls, message):
    with pytest.raises(MinidsError, match=message):
        write_calls(calls, "here")


def test_call_order():
    assert call_order([call("f", "{}", id="b"), call("f", "{}"), call("f", "{}", id="a")]) == {
        "b": 0, "a": 2}
    inner = call("f", "{}")
    inner["function"]["id"] = "c"
    assert call_order([inner]) == {"c": 0}


def test_to_json_keeps_letters():
    assert to_json({"ü": [True, None, 1e22]}, "here") == '{"ü": [true, null, 1e+22]}'


# ---- reading ----

def test_a_block_is_read():
    text = block('<#invoke name="f">',
                 '<#parameter name="a" string="true">x "y"\n<&</#parameter>',
                 '<#parameter name="b" string="false"> [1.50, "é"] </#parameter>',
                 "</#invoke>", '<#invoke name="g">', "", "</#invoke>",
                 '<#invoke name="h">', "</#invoke>")
    calls, rest = read_calls(text + "rest")
    assert calls == [call("f", '{"a": "x \\"y\\"\\n<&", "b":  [1.50, "é"] }'), call("g", "{}"),
                     call("h", "{}")]
    assert rest == "rest"
    assert read_calls(block()) == ([], "")


def test_a_value_may_spell_a_tag():
    tag = f'</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}tool_calls>'
    calls, rest = read_calls(write_calls([call("f", json.dumps({"a": tag}))], "here"))
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": tag} and rest == ""


OPEN, CLOSE = '<#invoke name="f">', "</#invoke>"
X = '<#parameter name="x" string="false">1</#parameter>'


@pytest.mark.parametrize("lines, message", [
    (["<#invoke>", CLOSE], "expected <｜DSML｜invoke name=\"...\"> and a new line, found"),
    (['<#invoke name="f"> ', CLOSE], "expected <｜DSML｜invoke name="),
    (['<#invoke name=f>', CLOSE], "expected <｜DSML｜invoke name="),
    (['<#call name="f">', CLOSE], "expected '</｜DSML｜tool_calls>', found '<｜DSML｜call"),
    (["hello", OPEN, CLOSE], "expected '</｜DSML｜tool_calls>', found 'hello"),
    ([OPEN, X], r"expected '</｜DSML｜invoke>\\n', found '</｜DSML｜tool_calls>'"),
    ([OPEN, X, "", CLOSE], r"expected '</｜DSML｜invoke>\\n', found '\\n</｜DSML｜invoke>"),
    ([OPEN, X, X, CLOSE], "expected each parameter once, found 'x' twice in a call of 'f'"),
    ([OPEN, X.replace("false", "number"), CLOSE], 'or string="false", found string="number"'),
    ([OPEN, X.replace(' string="false"', ""), CLOSE], 'string="true"> or string="false", found'),
    ([OPEN, X.replace("name", "key"), CLOSE], 'expected <｜DSML｜parameter name="..." string='),
    ([OPEN, X.replace(">1<", ">one<"), CLOSE], "expected JSON as the value of 'x', .* found 'one'"),
    ([OPEN, X.replace(">1<", "><"), CLOSE], "expected JSON as the value of 'x', .* found ''"),
    ([OPEN, X.replace("</#parameter>", ""), CLOSE], "</｜DSML｜parameter> .* found the end of the"),
    ([OPEN, X + " ", CLOSE], r"expected '>\\n', found '> \\n"),
    ([OPEN, X + X.replace("x", "y"), CLOSE], r"expected '>\\n', found"),
])
def test_a_malformed_block_is_refused(lines, message):
    with pytest.raises(MinidsError, match="^tool calls: .*" + message):
        read_calls(block(*lines))


def test_every_truncated_block_is_refused():
    text = write_calls([call("f", '{"a": "b", "c": [1]}'), call("g", "{}")], "here")
    for end in range(len(START), len(text)):
        with pytest.raises(MinidsError, match="^tool calls: expected"):
            read_calls(text[:end])


letters = st.text(st.characters(exclude_characters='"\n', exclude_categories=["Cs"]), max_size=6)
texts = st.lists(st.text(max_size=6) | st.sampled_from([DSML, f"</{DSML}parameter>", '"', "\n"]),
                 max_size=4).map("".join)
values = st.recursive(texts | st.integers() | st.booleans() | st.none()
                      | st.floats(allow_nan=False),
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(texts, inner, max_size=3), max_leaves=6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(letters, st.dictionaries(letters, values, max_size=4)), max_size=3),
       st.booleans())
def test_calls_come_back(calls, ascii_only):
    written = write_calls([call(name, json.dumps(parameters, ensure_ascii=ascii_only))
                           for name, parameters in calls], "here") if calls else block()
    read, rest = read_calls(written)
    assert rest == "" and calls == [(one["function"]["name"],
                                     json.loads(one["function"]["arguments"])) for one in read]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_one_changed_character_is_read_as_calls_or_refused(data):
    text = to_text(write_calls([call("f", '{"a": "b", "c": [1]}')], "here"))
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(exclude_categories=["Cs"])) + text[at + 1:]
    try:
        calls, _ = read_calls(mark(changed))
    except MinidsError as error:
        assert str(error).startswith("tool calls: expected") and "found" in str(error)
    else:
        assert [set(one["function"]) for one in calls] == [{"name", "arguments"}]
        json.loads(calls[0]["function"]["arguments"])
