"""Attention in blocks of queries: the kernel's values and gradients are those of the torch path."""

import pytest
import torch

from minids.config import Config
from minids.model import attention, kernels
from minids.model.attention import Attention, attend_blocks
from minids.model.masks import forbid
from minids.model.packing import Packing
from minids.model.passes import Options, Pass

pytestmark = pytest.mark.skipif(kernels.why_off() is not None, reason="no kernels")
# T, heads, channels, window, ratio
SIZES = {"one token": (1, 3, 3, 4, 0), "odd": (65, 3, 5, 9, 7), "even": (64, 4, 32, 32, 4),
         "many heads": (20, 96, 4, 16, 4), "short": (13, 2, 6, 40, 4),
         "window of 1": (9, 2, 4, 1, 4)}


def inputs(size, packed=False, holes=False, B=2):
    """q, kv, both masks, entries and sink, in the order of `attend_blocks`."""
    T, H, c, w, ratio = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator).requires_grad_()
    first = torch.rand(B, T, generator=generator) < 0.1
    config = Config.nano().replace(max_seq_len=max(T, w))
    current = Pass(config, T, "cpu", 0, Options(Packing(first) if packed else None))
    entries = mask = None
    if ratio:
        S = current.windows(ratio)[1].shape[1] if packed else T // ratio
        entries, mask = normal(B, S, c), current.entry_mask(ratio, S)
        mask = torch.zeros(T, S) if mask is None else mask
        if holes:
            mask = mask + forbid(torch.rand(B, T, S, generator=generator) < 0.5)
    return (normal(B, T, H, c), normal(B, w + T, c), current.window_mask(w, w), entries, mask,
            normal(H))


def value_and_gradients(args):
    o, p = attend_blocks(*args, True)
    leaves = [t for t in args if t is not None and t.requires_grad]
    weigh = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    return [o.detach(), *(() if p is None else (p.detach(),)),
            *torch.autograd.grad((o * weigh).sum(), leaves)]


def assert_equal_to_torch(args, tolerance=1e-5):
    results = value_and_gradients(args)
    with kernels.switched_off("attention"):
        expected = value_and_gradients(args)
    for result, by_torch in zip(results, expected, strict=True):
        torch.testing.assert_close(result, by_torch, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("holes", [False, True])
def test_equals_torch(size, packed, holes):
    assert_equal_to_torch(inputs(size, packed, holes))


def test_without_masks():
    """One token that sees the whole window and all entries."""
    q, kv, _, entries, _, sink = inputs("even")
    assert_equal_to_torch((q[:, :1], kv[:, :32], None, entries, None, sink))


def test_any_strides():
    q, kv, window, entries, unseen, sink = inputs("even", packed=True)
    B, T, H, c = q.shape
    strided = lambda t: t.detach().mT.contiguous().mT.requires_grad_()
    assert_equal_to_torch((strided(q), strided(kv), window.mT.contiguous().mT, strided(entries),
                           unseen.mT.contiguous().mT, sink))
    one = kv[:1].detach().requires_grad_()
    assert_equal_to_torch((q[:, :T - 7], one.expand(B, -1, -1)[:, :32 + T - 7], window,
                           entries, unseen[:, :T - 7], sink.detach().expand(H).requires_grad_()))


def test_a_query_sees_nothing_but_the_sink():
    """Then its output and its weights are exactly 0: the indexer's loss counts on that."""
    args = list(inputs("even"))
    args[2], args[4] = torch.full_like(args[2], float("-inf")), torch.full((64, 16), float("-inf"))
    o, p = attend_blocks(*args, True)
    assert (o == 0).all() and (p == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay(bad):
    args = list(inputs("even"))
    args[0] = args[0].detach().clone()
    args[0][1, 40, 2] = bad
    o, _ = attend_blocks(*args)
    assert o[1, 40, 2].isnan().all() and o.isfinite().sum() == o.numel() - 32


def test_large_scores_do_not_overflow():
    args = list(inputs("odd"))
    args[0] = (200 * args[0].detach()).requires_grad_()
    assert_equal_to_torch(args, 2e-3)       # scores near 1,000 have an error of 1e-4


@pytest.mark.parametrize("B", [1, 3])
def test_threads_change_no_bit(B):
    args, before = inputs("even", B=B), torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(value_and_gradients(args))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results))


def test_addresses_change_no_bit():
    def moved(t, by):
        space = torch.empty(t.numel() + 16, dtype=t.dtype)[by:by + t.numel()].view(t.shape)
        return space.copy_(t.detach()).requires_grad_(t.requires_grad)

    args = inputs("even", holes=True)
    results = [value_and_gradients([moved(t, by) for t in args]) for by in range(5)]
    assert all(torch.equal(*pair) for other in results for pair in zip(results[0], other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_the_torch_path(dtype, monkeypatch):
    monkeypatch.setattr(attention, "Attend", None)
    q, kv, window, entries, unseen, sink = inputs("even")
    o, _ = attend_blocks(q.to(dtype), kv.to(dtype), window, entries.to(dtype), unseen, sink)
    assert o.dtype == dtype
    monkeypatch.undo()
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(o.float(), attend_blocks(q, kv, window, entries, unseen, sink)[0],
                               atol=tolerance, rtol=tolerance)


def test_a_gradient_of_what_the_kernel_computed_is_found_without_it():
    args = inputs("odd")
    leaves = [t for t in args if t is not None and t.requires_grad]
    expected = torch.autograd.grad(attend_blocks(*args)[0].sum(), leaves)
    o, _ = attend_blocks(*args)
    with kernels.switched_off("attention"):
        gradients = torch.autograd.grad(o.sum(), leaves)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0, 4, 16])
def test_no_entry_and_no_gradient(ratio):
    """A text that is shorter than a window of the compressor."""
    layer, x = Attention(Config.nano(), ratio), torch.randn(2, 3, 128)
    with torch.no_grad():
        o = layer(x)
        with kernels.switched_off("attention", "compressor", "indexer"):
            torch.testing.assert_close(o, layer(x), atol=1e-6, rtol=1e-5)
