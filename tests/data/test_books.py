import lzma

import numpy as np
import pytest

from minids.data import books
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.recipes.books import HELDOUT, clean


def test_every_document_is_in_one_split_and_none_is_empty():
    names = [d.name for d in books.documents()]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(d.name for split in books.SPLITS for d in books.documents(split))
    assert all(len(d.text) > 500 for d in books.documents())
    assert {d.name for d in books.documents("heldout")} == HELDOUT


def test_held_out_text_is_not_in_the_training_text():
    lines = {line for d in books.documents("train") for line in d.text.split("\n")}
    for split in ("valid", "heldout"):
        other = [line for d in books.documents(split) for line in d.text.split("\n")]
        long = [line for line in other if len(line) > 60]
        assert len(long) > 1000 and sum(line in lines for line in long) < 0.005 * len(long)


def test_shares_of_the_splits():
    total = books.n_bytes(books.documents())
    share = {split: books.n_bytes(books.documents(split)) / total for split in books.SPLITS}
    assert 0.04 < share["heldout"] < 0.06 and 0.02 < share["valid"] < 0.05


def test_no_page_furniture_is_left():
    everything = "\n".join(d.text for d in books.documents())
    for word in ("Gutenberg", "http", "Copyright", "\r", "\t", "\x1a", "\n\n\n", " \n", "@"):
        assert everything.count(word) == 0


def test_clean_keeps_the_words():
    raw = "A line,  and\r\n  more        10\n\n\n@@@@\n[Exit.}\n"
    assert clean(raw) == "A line, and\n  more\n\n[Exit.]\n"


def test_encode_marks_both_ends_of_each_document():
    tokenizer, docs = Tokenizer.load(), books.documents("valid")[:3]
    ids = books.encode(docs, tokenizer)
    assert (ids == tokenizer.bos_id).sum() == (ids == tokenizer.eos_id).sum() == 3
    parts = np.split(ids, np.flatnonzero(ids == tokenizer.bos_id)[1:])
    assert [tokenizer.decode(p[1:-1]) for p in parts] == [d.text for d in docs]


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_bad_file_gives_one_message(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(books, "DATA", tmp_path)
    (tmp_path / "text").mkdir()
    path = tmp_path / "text" / "documents.jsonl.xz"
    if damage == "truncated":
        path.write_bytes(lzma.compress(b'{"name": "a"}\n' * 1000)[:40])
    if damage == "foreign":
        path.write_bytes(b"PK\x03\x04 something else")
    books.documents.cache_clear()
    try:
        with pytest.raises(MinidsError, match="no text at" if damage == "missing" else "damaged"):
            books.documents()
    finally:
        books.documents.cache_clear()
