"""The compressor's pool: the kernel's values and gradients are those of the torch path."""

import pytest
import torch

from minids.config import Config
from minids.model import compressor, kernels
from minids.model.compressor import Compressor
from minids.model.packing import Packing
from minids.model.passes import Options, Pass

pytestmark = pytest.mark.skipif(kernels.why_off() is not None, reason="no kernels")
CONFIG = Config.nano().replace(dim=12, rope_head_dim=2)


def layer(ratio, width=6):
    torch.manual_seed(0)
    made = Compressor(CONFIG, ratio, width)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def entries_and_gradients(made, x, current):
    entries = made(x, current)
    if not entries.shape[1]:
        assert not entries.requires_grad
        return [entries]
    # windows that a packed row does not have are read by nobody
    exist = current.windows(made.ratio)[1] >= 0 if current.packing else torch.ones(1, 1).bool()
    entries = entries * exist[..., None]
    weigh = torch.randn(entries.shape, generator=torch.Generator().manual_seed(1))
    return [entries.detach(), *torch.autograd.grad((entries * weigh).sum(),
                                                   [x, *made.parameters()])]


@pytest.mark.parametrize("ratio", [4, 5, 16])
@pytest.mark.parametrize("T", [3, 4, 65])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_torch(ratio, T, packed):
    made, x = layer(ratio), torch.randn(3, T, 12, requires_grad=True)
    packing = Packing(torch.rand(3, T) < 0.1) if packed else None
    current = Pass(CONFIG, T, "cpu", 0, Options(packing))
    results = entries_and_gradients(made, x, current)
    with kernels.switched_off("compressor"):
        expected = entries_and_gradients(made, x, current)
    for result, by_torch in zip(results, expected, strict=True):
        torch.testing.assert_close(result, by_torch, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("ratio", [4, 16])
def test_a_state_gives_the_same_entries(ratio):
    """With a state, torch computes them."""
    made, x = layer(ratio), torch.randn(2, 50, 12)
    state = compressor.CompressorState(2, 64, ratio, 6, torch.float32, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(made(x, None, state), made(x), atol=1e-5, rtol=1e-5)


def test_any_strides_and_threads():
    made, before = layer(4), torch.get_num_threads()
    x = torch.randn(12, 65, 3).permute(2, 1, 0).requires_grad_()
    current, results = Pass(CONFIG, 65, "cpu"), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(entries_and_gradients(made, x, current))
    torch.set_num_threads(before)
    with kernels.switched_off("compressor"):
        results.append(entries_and_gradients(made, x, current))
    for one, two, by_torch in zip(*results):
        torch.testing.assert_close(one, by_torch, atol=2e-5, rtol=2e-5)
        # products may differ with threads: the pool gets their last bits
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


def test_the_pool_does_not_depend_on_threads():
    x, ape = torch.randn(3, 65, 24, requires_grad=True), torch.randn(4, 12, requires_grad=True)
    start, number = Pass(CONFIG, 65, "cpu").window_starts(4)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        kernels.on("compressor", x)
        entries = compressor.Pool.apply(x, ape, start, number, 6)
        results.append((entries, *torch.autograd.grad(entries.square().sum(), [x, ape])))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results))


def test_nan_stays_where_it_is():
    made, x = layer(16), torch.randn(1, 64, 12)
    x[0, 20, 3] = float("nan")
    with torch.no_grad():
        assert made(x).isnan().any(-1).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_the_torch_path(dtype, monkeypatch):
    made, x = layer(4), torch.randn(2, 65, 12)
    with torch.no_grad():
        expected = made(x)
        monkeypatch.setattr(compressor, "Pool", None)
        entries = made(x.to(dtype))
    assert entries.dtype == dtype
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(entries.float(), expected, atol=tolerance, rtol=tolerance)
