"""The indexer's scores: the kernel's are those of the torch path."""

import pytest
import torch

from minids.config import Config
from minids.model import indexer, kernels
from minids.model.indexer import Indexer

pytestmark = pytest.mark.skipif(kernels.why_off() is not None, reason="no kernels")
# T, S, heads, channels
SIZES = {"one of all": (2, 1, 1, 2), "odd": (65, 19, 3, 6), "nano": (70, 64, 16, 16),
         "many heads": (5, 7, 300, 4)}


def layer_and_inputs(size):
    T, S, H, c = SIZES[size]
    torch.manual_seed(0)
    config = Config.nano().replace(index_n_heads=H, index_head_dim=c, rope_head_dim=2)
    made = Indexer(config)
    return made, [torch.randn(2, T, config.dim, requires_grad=True),
                  torch.randn(2, T, config.q_lora_rank, requires_grad=True),
                  torch.randn(2, S, c, requires_grad=True)]


def scores_and_gradients(made, inputs):
    scores = made(*inputs)
    weigh = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    weights = [made.wq_b.weight, made.weights_proj.weight]
    return [scores.detach(), *torch.autograd.grad((scores * weigh).sum(), inputs + weights)]


@pytest.mark.parametrize("size", SIZES)
def test_scores_equal_torch(size):
    made, inputs = layer_and_inputs(size)
    results = scores_and_gradients(made, inputs)
    with kernels.switched_off("indexer"):
        expected = scores_and_gradients(made, inputs)
    for result, by_torch in zip(results, expected, strict=True):
        torch.testing.assert_close(result, by_torch, atol=2e-5, rtol=2e-5)


def test_scores_do_not_depend_on_threads():
    q, w = torch.randn(1, 300, 4, 6, requires_grad=True), torch.randn(1, 300, 4, requires_grad=True)
    keys = torch.randn(1, 19, 6, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        kernels.on("indexer", q)
        scores = indexer.Score.apply(q, w, keys)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), [q, w, keys])))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results))


def test_other_types_take_the_torch_path(monkeypatch):
    made, inputs = layer_and_inputs("odd")
    expected = made(*inputs)
    monkeypatch.setattr(indexer, "Score", None)
    scores = made.double()(*(t.double() for t in inputs))
    torch.testing.assert_close(scores.float(), expected, atol=1e-5, rtol=1e-5)
