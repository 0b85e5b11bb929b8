"""The parts that ablations put in place of V4's."""

from unittest import mock

import numpy as np
import pytest
import torch
from tiny import SMALL

from minids import Config, MinidsError, Model, load
from minids.model import mhc
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import new_model, train
from minids.recipes import ablations


def test_plain_residual_adds_each_layer_to_one_stream():
    torch.manual_seed(0)
    model = ablations.with_maps(Model(Config.nano().replace(hc_mult=1)), ablations.residual).eval()
    block, ids = model.layers[1], torch.randint(0, 2048, (2, 20))
    x = torch.randn(2, 20, 128)
    with torch.no_grad():
        h = x + block.attn(block.attn_norm(x))
        torch.testing.assert_close(block(x[:, :, None], ids)[:, :, 0],
                                   h + block.ffn(block.ffn_norm(h), ids))


def test_unconstrained_connections_start_as_the_identity_and_are_free():
    """At the start comb carries each stream on as it is, as V4's nearly does; with other weights it
    is a matrix that no doubly stochastic one can be."""
    torch.manual_seed(0)
    config = Config.nano()
    block, X = Model(config).layers[0], torch.randn(1, 9, 4, 128)
    maps = (X, block.hc_attn_fn, block.hc_attn_scale, block.hc_attn_base, config)
    with torch.no_grad():
        pre, post, comb = ablations.unconstrained(*maps)
        theirs = mhc.maps(*maps)
        torch.testing.assert_close(comb, torch.eye(4)[:, :, None].expand_as(comb), atol=0.05,
                                   rtol=0)
        torch.testing.assert_close(pre, theirs[0])
        torch.testing.assert_close(post, theirs[1])
        block.hc_attn_base += torch.randn(24)
        assert ablations.unconstrained(*maps)[2].min() < 0


def test_every_variant_is_a_model_and_others_keep_their_maps():
    config, _ = ablations.base()
    ids = torch.randint(0, 2048, (1, 70))
    for changes, _, maps in ablations.VARIANTS.values():
        model = Model(config.replace(**changes))
        names = model.state_dict().keys()
        assert ablations.with_maps(model, maps).state_dict().keys() == names
        with torch.no_grad():
            assert model(ids).isfinite().all()
    assert all(block.maps is None for block in Model(config).layers)


@pytest.mark.slow
def test_a_model_trains_and_computes_with_its_own_maps(tmp_path):
    """The MTP block and the bfloat16 copy too; `mhc.maps` is not called."""
    config = SMALL.replace(vocab_size=2048, hc_mult=1)
    settings = TrainConfig(steps=1, seq_len=32, batch=2, stages=(), format="fp32",
                           dtype="bfloat16")
    stream = np.random.default_rng(0).integers(2, 2048, 4000).astype(np.uint16)
    tokens = {split: stream for split in ("train", "valid", "heldout")}
    model = ablations.with_maps(new_model(config, 0), ablations.residual)
    with mock.patch.object(mhc, "maps", None):
        log = train(config, settings, tmp_path / "run", tokens=tokens, model=model)
    saved = load(tmp_path / "run" / "model")
    assert all(torch.equal(t, saved.state_dict()[name]) for name, t in model.state_dict().items())
    assert log[0]["mtp_loss"] > 0
    with pytest.raises(MinidsError, match="expected a model of the configuration to train"):
        train(config.replace(hc_mult=4), settings, tmp_path / "other", tokens=tokens, model=model)


def test_unknown_variant():
    with pytest.raises(MinidsError, match="expected one of V4 nano, AdamW"):
        ablations.run("bigger", 0)
