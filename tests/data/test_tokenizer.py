import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.data import tokenizer as module
from minids.data.books import documents
from minids.data.tokenizer import SPECIAL, Tokenizer, train
from minids.errors import MinidsError
from minids.pretrain.trigram import Trigram

shipped = Tokenizer.load()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    assert shipped.decode(shipped.encode(text)) == text


def test_every_byte_has_an_id():
    single = {shipped.to_bytes([i]): i for i in range(shipped.vocab_size)}
    data = bytes(range(256)) + bytes(reversed(range(256)))
    assert shipped.to_bytes([single[bytes([b])] for b in data]) == data


def test_documents_come_back():
    for d in documents("valid"):
        assert shipped.decode(shipped.encode(d.text)) == d.text


def test_special_tokens_come_first_and_are_read_by_name_on_request():
    assert [shipped.id(name) for name in SPECIAL] == list(range(7))
    assert (shipped.bos_id, shipped.eos_id, shipped.pad_id, shipped.vocab_size) == (0, 1, 2, 2048)
    assert shipped.encode("<think>a</think>", special=True)[0] == 5
    assert shipped.decode(shipped.encode("<think>")) == "<think>"
    assert 5 not in shipped.encode("<think>a</think>")
    assert shipped.encode("a", bos=True) == [0] + shipped.encode("a")


def test_half_a_character_decodes_without_raising():
    ids = shipped.encode("é")
    assert len(ids) == 2 and shipped.decode(ids[:1]) == "\ufffd" and shipped.decode([]) == ""


def test_encode_all_is_encode():
    texts = ["To be, or not to be", "", "In the beginning\n\n  God"]
    assert shipped.encode_all(texts) == [shipped.encode(t) for t in texts]


def test_training_again_gives_the_same_file(tmp_path):
    texts = [d.text[:20000] for d in documents("train")[:8]]
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(texts, 400).save(tmp_path / name)
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1]
    assert Tokenizer.load(tmp_path / "a").encode(texts[0]) == train(texts, 400).encode(texts[0])


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(MinidsError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    for content in ("{", "[]", json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}})):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(MinidsError):
            Tokenizer.load(tmp_path)
    whole = (module.DATA / "tokenizer" / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[:3000])
    with pytest.raises(MinidsError, match="not a byte-level BPE"):
        Tokenizer.load(tmp_path)
    for ids in ([-1], [2048]):
        with pytest.raises(MinidsError, match="from 0 to 2047"):
            shipped.decode(ids)
    with pytest.raises(MinidsError, match="UTF-8"):
        shipped.encode("\ud800")


# ---- the trigram baseline ----

def test_trigram_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.3, 20000) % 50
    model = Trigram(ids, 64)
    a, b = rng.integers(64, size=(2, 200, 1))
    p = model.prob(a, b, np.arange(64))
    assert (p > 0).all() and np.allclose(p.sum(1), 1, atol=1e-12)


def test_trigram_equals_brute_force():
    """The reference is interpolated Kneser-Ney as textbooks write it, with dictionaries."""
    rng = np.random.default_rng(1)
    ids, V = list(rng.zipf(1.6, 3000) % 12), 13
    model = Trigram(ids, V)
    c3 = Counter(zip(ids, ids[1:], ids[2:]))
    c2 = Counter((b, c) for _, b, c in c3)
    c1 = Counter(c for _, c in c2)

    def discounts(counts):
        n = [sum(v == k for v in counts.values()) for k in range(5)]
        if not all(n[1:]):
            return [0, 0.5, 0.75, 0.75]
        y = n[1] / (n[1] + 2 * n[2])
        ds = [0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        return [0] + [min(max(d, 0.05), k - 0.05) for k, d in zip((1, 2, 3), ds[1:])]

    def level(counts, context, word, lower):
        ds = discounts(counts)
        row = {k[-1]: v for k, v in counts.items() if k[:-1] == context}
        if not row:
            return lower
        total, discounted = sum(row.values()), sum(ds[min(v, 3)] for v in row.values())
        v = row.get(word, 0)
        return (v - ds[min(v, 3)]) / total + discounted / total * lower

    def p(a, b, c):
        unigram = level({(k,): v for k, v in c1.items()}, (), c, 1 / V)
        return level(c3, (a, b), c, level(c2, (b,), c, unigram))

    triples = rng.integers(V, size=(100, 3))
    assert np.allclose([model.prob(*t) for t in triples], [p(*t) for t in triples], atol=1e-12)
    tail = list(rng.integers(V, size=30))
    expected = [-np.log(p(*t)) for t in zip(tail, tail[1:], tail[2:])]
    assert np.allclose(model.nll(tail)[1:], expected)
    assert np.isclose(model.loss(tail), model.nll(tail).mean())


def test_trigram_refuses_ids_outside_the_vocabulary():
    with pytest.raises(MinidsError, match="from 0 to 9"):
        Trigram([1, 2, 3, 10], 10)
    with pytest.raises(MinidsError, match="at least 3"):
        Trigram([1, 2], 10)
