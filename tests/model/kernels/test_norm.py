"""RMS normalisation as a kernel against the equation in float64, in value and gradient."""

import pytest
import torch

from minids.config import Config
from minids.model import kernels
from minids.model.kernels.compiled import numba
from minids.model.norm import RMSNorm, normalise, rms
from minids.model.rotary import Rotary, rotate

EPS = 1e-6
SHAPES = [(1, 1, 4), (1, 1, 1, 4), (3, 65, 10), (2, 7, 3, 12), (1, 33, 4, 32), (2, 700, 128)]
CONFIG = Config.nano().replace(rope_head_dim=4)


def rotations(shape, packed=False):
    """For x of this shape, B T c or B T H c; with `packed` each row has its own positions."""
    B, T, c = shape[0], shape[1], shape[-1]
    rotary = Rotary(CONFIG, 0, c)
    rot = rotary.at(torch.randint(0, 99, (B, T))) if packed else rotary(3, T, "cpu")
    return rot if len(shape) == 3 else rot[..., None, :]


def reference(x, w, rot):
    """The equation, in float64."""
    x = x.double()
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    y = y if w is None else y * w.double()
    if rot is None:
        return y
    pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rot.to(torch.complex128)).flatten(-2)


def gradients(f, *inputs):
    """The value of f and the gradients of a random sum of it."""
    inputs = [None if t is None else t.clone().requires_grad_() for t in inputs]
    y = f(*inputs)
    torch.manual_seed(1)
    (y * torch.randn(y.shape)).sum().backward()
    return [y.detach(), *(t.grad for t in inputs if t is not None)]


@pytest.mark.parametrize("rotation", [None, "positions", "packed"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(shape, weighted, rotation):
    torch.manual_seed(0)
    x, w = torch.randn(shape) * 3, torch.randn(shape[-1]) if weighted else None
    rot = rotation and rotations(shape, rotation == "packed")
    new = gradients(lambda x, w: normalise(x, w, EPS, rot), x, w)
    with kernels.switched_off("norm", "rotary"):
        torch_path = gradients(lambda x, w: normalise(x, w, EPS, rot), x, w)
    expected = gradients(lambda x, w: reference(x, w, rot), x, w)
    for got, other, want in zip(new, torch_path, expected):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.double(), want.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(kernels.why_off() is not None, reason="kernels are off")
def test_strides_of_inputs_and_gradients():
    torch.manual_seed(0)
    w, rot = torch.randn(8), rotations((2, 5, 8))
    for x in (torch.randn(5, 2, 8).transpose(0, 1), torch.randn(2, 5, 16)[..., ::2],
              torch.randn(2, 1, 8).expand(2, 5, 8), torch.randn(2, 0, 8)):
        rot = rot[:x.shape[1]]
        torch.testing.assert_close(normalise(x, w, EPS, rot), reference(x, w, rot).float())
        x, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        normalise(x, w, EPS, rot).sum().backward()          # the gradient is expanded
        reference(plain, w, rot).sum().backward()
        torch.testing.assert_close(x.grad, plain.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_give_what_torch_gives(dtype):
    torch.manual_seed(0)
    x, rot = torch.randn(2, 7, 3, 12).to(dtype), rotations((2, 7, 3, 12))
    norm = RMSNorm(12, EPS)
    before = rotate(rms(x, EPS), rot), rotate(norm(x), rot)
    with torch.inference_mode():
        assert [y.dtype for y in before] == [dtype, dtype]
    with kernels.switched_off("norm", "rotary"):
        torch.testing.assert_close((rms(x, EPS, rot), norm(x, rot)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(kernels.why_off() is not None, reason="kernels are off")
def test_the_number_of_threads_changes_no_bit():
    x, w = torch.randn(2, 333, 36), torch.randn(36)
    rot, results = rotations(x.shape), []
    before = torch.get_num_threads()
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        torch.set_num_threads(threads)
        results.append(gradients(lambda x, w: normalise(x, w, EPS, rot), x, w))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_nan_and_zeros():
    x = torch.zeros(3, 4)
    x[1, 2] = float("nan")
    y = normalise(x, torch.ones(4), EPS)
    assert y.isnan().any(1).tolist() == [False, True, False] and y[[0, 2]].eq(0).all()


def test_a_gradient_does_not_depend_on_where_the_value_was_computed():
    x, w = torch.randn(5, 6), torch.randn(6)
    rot = rotations((1, 5, 6))

    def mixed(x, w):
        with kernels.switched_off("norm", "rotary"):
            return normalise(x, w, EPS, rot)

    for a, b in zip(gradients(mixed, x, w),
                    gradients(lambda x, w: normalise(x, w, EPS, rot), x, w)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
