"""Rotation as a kernel against torch's complex product, in value and gradient."""

import pytest
import torch

from minids.config import Config
from minids.model import kernels
from minids.model.rotary import Rotary, rotate

CONFIG = Config.nano().replace(rope_head_dim=4)
ROTARY = Rotary(CONFIG, 0, 6)
T, H = 65, 3
# rotations, and the shape of what they rotate
CASES = {
    "tokens": (ROTARY(5, T, "cpu"), (2, T, 6)),
    "heads": (ROTARY(5, T, "cpu")[:, None], (2, T, H, 6)),
    "packed": (ROTARY.at(torch.randint(0, 99, (2, T))), (2, T, 6)),
    "packed heads": (ROTARY.at(torch.randint(0, 99, (2, T)))[..., None, :], (2, T, H, 6)),
    "one token": (ROTARY(5, 1, "cpu"), (4, 1, 6)),
    "one rotation": (ROTARY(5, 1, "cpu")[0], (4, T, 6)),
    "a slice": (ROTARY.at(torch.randint(0, 99, (2, 2 * T)))[:, 3:3 + T], (2, T, 6)),
    "each sequence its own": (ROTARY(5, 2, "cpu")[:, None, None], (2, T, H, 6)),
}


def rotated(x, rot, inverse):
    """Value and gradient."""
    x = x.clone().requires_grad_()
    y = rotate(x, rot, inverse)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    return y.detach(), x.grad


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, inverse):
    torch.manual_seed(0)
    rot, shape = CASES[case]
    x = torch.randn(shape)
    with kernels.switched_off("rotary"):
        want = rotated(x, rot, inverse)
    torch.testing.assert_close(rotated(x, rot, inverse), want, rtol=1e-6, atol=1e-6)
    real = torch.view_as_real(rot).flatten(-2)      # as on a device without complex numbers
    torch.testing.assert_close(rotated(x, real, inverse), want, rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(rotate(x, rot, inverse), want[0], rtol=1e-6, atol=1e-6)


def test_channels_that_do_not_rotate_are_copied():
    rot, shape = CASES["tokens"]
    x = torch.randn(shape)
    assert torch.equal(rotate(x, rot)[..., :2], x[..., :2])
    torch.testing.assert_close(rotate(rotate(x, rot), rot, inverse=True), x)


@pytest.mark.skipif(kernels.why_off() is not None, reason="kernels are off")
def test_strides():
    rot, _ = CASES["tokens"]
    for x in (torch.randn(T, 2, 6).transpose(0, 1), torch.randn(2, T, 12)[..., ::2],
              torch.randn(2, 1, 6).expand(2, T, 6)):
        torch.testing.assert_close(rotate(x, rot), rotate(x.contiguous(), rot))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_torch_and_keep_their_type(dtype):
    rot, shape = CASES["heads"]
    x = torch.randn(shape).to(dtype)
    y = rotate(x, rot)
    assert y.dtype == dtype
    torch.testing.assert_close(y, rotate(x.float(), rot).to(dtype), rtol=1e-6, atol=1e-6)


def test_a_gradient_with_respect_to_the_rotation():
    """Kernels do not compute it; torch does."""
    rot, shape = CASES["tokens"]
    rot = rot.clone().requires_grad_()
    rotate(torch.randn(shape), rot).sum().backward()
    assert rot.grad.abs().sum() > 0
