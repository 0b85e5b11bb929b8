"""The base model's corpus: determinism, shares, splits."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from minids.data import books, mixture
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def test_streams_are_deterministic_and_framed(tokenizer):
    ids = mixture.stream("train", 20_000, tokenizer)
    assert np.array_equal(ids, mixture.stream("train", 20_000, tokenizer)) and len(ids) >= 20_000
    begins = np.flatnonzero(ids == tokenizer.bos_id)
    assert begins[0] == 0 and ids[-1] == tokenizer.eos_id
    assert (ids[begins[1:] - 1] == tokenizer.eos_id).all()   # between documents: eos, then bos
    assert len(begins) == (ids == tokenizer.eos_id).sum()


@pytest.mark.slow
def test_a_longer_stream_begins_with_the_shorter_one(tokenizer):
    short = mixture.stream("valid", 5_000, tokenizer)
    long = mixture.stream("valid", 30_000, tokenizer)
    assert np.array_equal(long[: len(short)], short)


def test_every_token_comes_back_as_text(tokenizer):
    texts = [text for _, text in islice(mixture.documents("heldout"), 40)]
    ids = books.encode_texts(texts, tokenizer)
    bos, eos = tokenizer.decode([tokenizer.bos_id]), tokenizer.decode([tokenizer.eos_id])
    assert tokenizer.decode(ids) == "".join(bos + text + eos for text in texts)


@pytest.mark.slow
def test_shares():
    written = dict.fromkeys(mixture.SHARES, 0)
    for kind, text in islice(mixture.documents("train"), 3000):
        written[kind] += len(text)
    total = sum(written.values())
    assert sum(mixture.SHARES.values()) == pytest.approx(1)
    for kind, share in mixture.SHARES.items():
        assert written[kind] / total == pytest.approx(share, abs=0.01)


@pytest.mark.slow
def test_passages_hold_the_whole_text_of_their_split_and_no_other():
    for split in books.SPLITS:
        whole = "".join(d.text for d in books.documents(split))
        assert Counter("".join(mixture.passages(split))) == Counter(whole)
    assert not set(mixture.passages("train")) & set(mixture.passages("heldout"))


def test_splits_have_different_stories():
    stories = {split: {mixture.document("stories", split, i) for i in range(50)}
               for split in books.SPLITS}
    assert not stories["train"] & stories["heldout"] and len(stories["train"]) == 50


def test_unknown_kinds_and_splits():
    with pytest.raises(MinidsError, match="expected a kind of text, scenes, stories"):
        mixture.document("poems", "train", 0)
    with pytest.raises(MinidsError, match="a split of train, valid, heldout"):
        mixture.document("text", "test", 0)
