"""The parts that ablations put in place of V4's."""

import pytest
import torch

from minids import Config, MinidsError, Model
from minids.model import mhc
from minids.recipes import ablations


def test_plain_residual_adds_each_layer_to_one_stream():
    torch.manual_seed(0)
    model = Model(Config.nano().replace(hc_mult=1)).eval()
    block, ids = model.layers[1], torch.randint(0, 2048, (2, 20))
    x = torch.randn(2, 20, 128)
    with torch.no_grad(), ablations.replaced(ablations.residual):
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


def test_every_variant_is_a_model_and_hyper_maps_comes_back():
    kept = mhc.maps
    config, _ = ablations.base()
    ids = torch.randint(0, 2048, (1, 70))
    for changes, _, maps in ablations.VARIANTS.values():
        with torch.no_grad(), ablations.replaced(maps):
            assert Model(config.replace(**changes))(ids).isfinite().all()
    assert mhc.maps is kept
    with pytest.raises(ZeroDivisionError), ablations.replaced(ablations.residual):
        1 / 0
    assert mhc.maps is kept


def test_unknown_variant():
    with pytest.raises(MinidsError, match="expected one of V4 nano, AdamW"):
        ablations.run("bigger", 0)
