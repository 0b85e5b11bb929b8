"""Attention in stripes of queries, and experts one by one: what they compute in one piece."""

import pytest
import torch
from tiny import CASES, CHOOSING, SPEAKER
from twin import lively

from minids.config import Config
from minids.model import attention, kernels, moe
from minids.model.attention import stripe_size
from minids.model.packing import Packing
from minids.model.passes import Options

T = 150
KINDS = [name for name in CASES if name not in ("clamped experts", "whole", "nano")]


@pytest.fixture
def in_stripes(monkeypatch):
    """Switches to stripes of one window; returns the lengths of the stripes, as they come."""
    lengths, attend = [], attention.Attention.attend

    def watched(self, x, *args):
        lengths.append(x.shape[1])
        return attend(self, x, *args)

    def switch():
        monkeypatch.setattr(attention, "WHOLE", 0)
        monkeypatch.setattr(attention, "STRIPE", 1)
        monkeypatch.setattr(attention.Attention, "attend", watched)
        return lengths

    return switch


def ids_of(config, B=2):
    return torch.randint(0, config.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dense", [False, True])
def test_stripes_compute_the_same(case, dense, in_stripes):
    config = CASES[case]
    model, ids, options = lively(config, 0), ids_of(config), Options(dense=dense)
    with torch.no_grad():
        whole = model.features(ids, options=options)
        lengths = in_stripes()
        torch.testing.assert_close(model.features(ids, options=options), whole,
                                   atol=1e-5, rtol=1e-5)
    assert lengths == [8] * 18 + [6]


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("cuts", [(150,), (1, 149), (70, 1, 1, 78), (9, 64, 77), (129, 21)])
def test_stripes_with_a_state(case, cuts, in_stripes):
    """A state gives each part its keys, wherever the text and its parts are cut."""
    config = CASES[case]
    model, ids = lively(config, 0), ids_of(config)
    with torch.no_grad(), kernels.switched_off("decode"):
        whole = model(ids)
        lengths = in_stripes()
        state = model.new_state(2, T)
        parts = [model(part, state) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert sum(lengths) == T and max(lengths) == 8


@pytest.mark.parametrize("config", [CHOOSING, SPEAKER])
@pytest.mark.parametrize("dense", [False, True])
def test_stripes_of_packed_rows(config, dense, in_stripes):
    """Stripes and documents are cut at different places."""
    config = config.replace(max_seq_len=T)
    model, ids = lively(config, 0), ids_of(config)
    first = torch.zeros(2, T, dtype=torch.bool)
    first[0, [5, 9, 40, 41, 120]] = first[1, [70]] = True
    options = Options(packing=Packing(first), dense=dense)
    with torch.no_grad():
        whole = model.features(ids, options=options)
        assert len(in_stripes()) == 0
        torch.testing.assert_close(model.features(ids, options=options), whole,
                                   atol=1e-5, rtol=1e-5)


def test_stripes_of_other_windows():
    """A window that is longer than the text, and windows of one key."""
    for window in (1, 200):
        config = CHOOSING.replace(window_size=window, max_seq_len=T)
        model, ids = lively(config, 0), ids_of(config)
        with torch.no_grad(), kernels.switched_off("decode"):
            whole = model.features(ids)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(attention, "WHOLE", 0)
                patch.setattr(attention, "STRIPE", 1)
                torch.testing.assert_close(model.features(ids), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [Options(), Options(index=True)])
def test_where_a_gradient_or_the_indexers_loss_is_needed_there_is_one_stripe(options, in_stripes):
    model, ids = lively(CHOOSING.replace(max_seq_len=T), 0), ids_of(CHOOSING)
    lengths = in_stripes()
    with torch.set_grad_enabled(not options.index):
        model.run(ids, options=options)
    assert lengths == [T] * CHOOSING.n_layers


def test_the_models_of_the_course_compute_in_one_piece():
    for config in (Config.nano(), Config.mini()):
        for ratio in set(config.compress_ratios):
            for B, T in ((1, 4096), (16, 1024), (96, 256)):
                assert stripe_size(config, ratio, B, T, T // (ratio or T + 1)) == T


def test_the_stripes_of_full_size_layers():
    for config in (Config.flash(), Config.pro()):
        assert stripe_size(config, 4, 1, 4096, 1024) == 128
        assert stripe_size(config, 4, 1, 2**20, 2**18) == 128
        assert stripe_size(config, 4, 1, 1, 2**18) == 1
    assert stripe_size(Config.flash(), 0, 1, 4096, 0) == 256


def test_experts_one_by_one(monkeypatch):
    config = CASES["hash layer"].replace(n_hash_layers=0)
    model, ids = lively(config, 0), ids_of(config)
    with torch.no_grad():
        whole = model.features(ids)
        monkeypatch.setattr(moe, "MANY", 0)
        monkeypatch.setattr(moe, "grouped", None)
        torch.testing.assert_close(model.features(ids), whole, atol=1e-5, rtol=1e-5)
    # a gradient needs what `grouped` products keep
    with kernels.switched_off("experts"), pytest.raises(TypeError):
        model.features(ids)
