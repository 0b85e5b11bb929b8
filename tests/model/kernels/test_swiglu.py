"""SwiGLU as a kernel against torch's clamps and SiLU, in value and gradient."""

import pytest
import torch

from minids.model import kernels
from minids.model.moe import swiglu


def computed(gate, up, limit, g):
    """Value and gradients."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in (gate, up, g)]
    h = swiglu(*inputs[:2], limit, inputs[2])
    h.backward(torch.linspace(-1, 1, h.numel()).view_as(h))
    return [h.detach(), *(t.grad for t in inputs if t is not None)]


@pytest.mark.parametrize("limit", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (65, 7), (2, 5, 128)])
def test_value_and_gradient(shape, weighted, limit):
    torch.manual_seed(0)
    gate, up = torch.randn(shape) * 2, torch.randn(shape) * 2
    g = torch.rand(*shape[:-1], 1) if weighted else None
    with kernels.switched_off("swiglu"):
        want = computed(gate.double(), up.double(), limit, None if g is None else g.double())
    for got, expected in zip(computed(gate, up, limit, g), want):
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-6)


def test_gradients_at_the_clamps_are_those_of_hardtanh():
    edges = torch.tensor([[-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0, 90.0, -90.0]])
    with kernels.switched_off("swiglu"):
        want = computed(edges, edges.flip(1), 1.0, None)
    for got, expected in zip(computed(edges, edges.flip(1), 1.0, None), want):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_nan_stays_nan():
    gate, up = torch.ones(3, 4), torch.ones(3, 4)
    gate[0, 1] = up[2, 3] = float("nan")
    assert swiglu(gate, up, 10.0).isnan().nonzero().tolist() == [[0, 1], [2, 3]]


def test_strides_and_other_types():
    torch.manual_seed(0)
    gate, up = torch.randn(7, 10).T, torch.randn(10, 14)[:, ::2]
    expected = swiglu(gate.double(), up.double(), 1.0)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(swiglu(gate, up, 1.0), expected.float())
    torch.testing.assert_close(swiglu(gate.bfloat16(), up.bfloat16(), 1.0), expected.bfloat16(),
                               rtol=0.05, atol=0.05)
