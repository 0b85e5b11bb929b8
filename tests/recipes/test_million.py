"""The long prefill: its state's bytes, what rewinding restores, and scores in blocks."""

import json

import pytest
import torch
from tiny import SMALL
from twin import lively

from minids import MinidsError
from minids.config import Config
from minids.data.tokenizer import Tokenizer
from minids.recipes import million


@pytest.mark.parametrize("config", [Config.nano(), SMALL], ids=["nano", "small"])
def test_the_state_holds_what_the_formula_says(config):
    model = lively(config, 0)
    state, n = model.new_state(1, 200), 0
    with torch.no_grad():
        for chunk in (1, 2, 1, 30, 100, 3, 1):
            model(torch.zeros(1, chunk, dtype=torch.int64), state)
            n += chunk
            assert million.state_bytes(state) == million.formula_bytes(config, n)


@pytest.mark.parametrize("begin", [3, 37, 64])
def test_a_rewound_state_knows_nothing_of_what_it_forgot(begin):
    model = lively(SMALL.replace(index_topk=3), 0)
    ids = torch.randint(0, SMALL.vocab_size, (1, 120))
    with torch.no_grad():
        state = model.new_state(1, 200)
        model(ids[:, :begin], state)
        before = state.mark()
        for other in (1, 70):
            model(torch.randint(0, SMALL.vocab_size, (1, other)), state)
            state.restore(before)
        torch.testing.assert_close(model(ids[:, begin:], state), model(ids)[:, begin:], atol=5e-5,
                                   rtol=5e-5)


def test_scores_in_blocks_are_the_scores():
    """More entries than a block holds: the same as scored at once."""
    indexer = lively(Config.nano(), 0).layers[1].attn.indexer
    config = indexer.config
    x, qr = torch.randn(2, 40, config.dim), torch.randn(2, 40, config.q_lora_rank)
    keys = torch.randn(2, 2500, config.index_head_dim)
    with torch.no_grad():
        at_once = torch.cat([indexer(x, qr, part) for part in keys.split(500, dim=1)], dim=2)
        torch.testing.assert_close(indexer(x, qr, keys), at_once)


def test_chunks_are_bounded():
    for pos in (0, 1000, 2**16 - 1, 2**16, 2**19, 2**20 - 1):
        assert 16 <= million.chunk_size(pos) <= 512
        assert million.chunk_size(pos) * pos // 4 <= million.SCORES


@pytest.mark.slow
def test_scenes_tell_the_place_once():
    import random
    for i in range(20):
        who, place, rivals, story = million.scene(random.Random(i), 50)
        assert not any(word in story for word in (who, place, *rivals))
        assert len({place, *rivals}) == million.RIVALS + 1
        assert all(len(Tokenizer.load().encode(f" {p}")) == 1 for p in (place, *rivals))


@pytest.mark.slow
def test_a_short_run_writes_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(million, "ROUNDS", 1)
    monkeypatch.setattr(million, "STEPS", 2)
    monkeypatch.setattr(million, "DISTANCES", (8,))
    threads = torch.get_num_threads()
    record = million.run(2048, tmp_path / "new" / "record.json", show=lambda line: None)
    torch.set_num_threads(threads)
    assert json.loads((tmp_path / "new" / "record.json").read_text()) == record
    assert record["complete"] and [point["n"] for point in record["points"]] == [1024, 2048]
    with pytest.raises(MinidsError, match="power of two of at least 1024, found 3000"):
        million.run(3000, tmp_path / "record.json")
