"""The kernels of hyper-connections compute what torch does, in value and gradient."""

import pytest
import torch

from minids import plain
from minids.config import Config
from minids.model import kernels, mhc

pytestmark = pytest.mark.skipif(bool(kernels.why_off()), reason="needs numba")


def inputs(n, d, N, dtype=torch.float32):
    """X, fn, scale, base, and f, which the layer multiplies its input by."""
    rng = torch.Generator().manual_seed(0)
    shapes = dict(X=(1, N, n, d), fn=((2 + n) * n, n * d), scale=(3,), base=((2 + n) * n,),
                  f=(1, N, d))
    return [torch.randn(shape, generator=rng).div(8 if name == "fn" else 1).to(dtype)
            .requires_grad_() for name, shape in shapes.items()]


def whole_site(X, fn, scale, base, f, config):
    """Streams after a site whose layer gives u * f."""
    u, X, post, comb = mhc.enter(X, fn, scale, base, config, mhc.maps)
    return mhc.write(X, u * f, post, comb)


def head(X, fn, scale, base, f, config):
    n = X.shape[2]
    return mhc.head(X, fn[:n], scale[:1], base[:n], config) * f


def maps_and_read(X, fn, scale, base, f, config):
    pre, post, comb = mhc.maps(X, fn, scale, base, config)
    return mhc.write(X, mhc.read(X, pre) * f, post, comb)


def plain_site(X, fn, scale, base, f, config):
    """The equations for tensors of any type."""
    n = X.shape[2]
    x = X.flatten(2)
    a = x @ fn.T / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)
    pre, post, comb = a.split([n, n, n * n], -1)
    pre = torch.sigmoid(pre * scale[0] + base[:n]) + config.hc_eps
    post = 2 * torch.sigmoid(post * scale[1] + base[n:2 * n])
    comb = (comb * scale[2] + base[2 * n:]).unflatten(-1, (n, n))
    comb = plain.sinkhorn(comb, config.hc_sinkhorn_iters, config.hc_eps)
    return plain.site(X, lambda u: u * f, pre, post, comb)


def plain_head(X, fn, scale, base, f, config):
    n, x = X.shape[2], X.flatten(2)
    a = x @ fn[:n].T / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)
    g = torch.sigmoid(a * scale[0] + base[:n]) + config.hc_eps
    return (g[..., None] * X).sum(2) * f


PLAIN = {whole_site: plain_site, maps_and_read: plain_site, head: plain_head}


def results(function, leaves, config):
    y = function(*leaves, config)
    weigh = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weigh).sum(), leaves)]


@pytest.mark.parametrize("function", [whole_site, head, maps_and_read])
@pytest.mark.parametrize("n, d, N", [(4, 3, 1), (2, 7, 3), (3, 5, 65), (4, 13, 1000)])
def test_equals_torch_in_float64(function, n, d, N):
    config = Config.nano().replace(hc_mult=n)
    ours = results(function, inputs(n, d, N), config)
    expected = results(PLAIN[function], inputs(n, d, N, torch.float64), config)
    for a, b in zip(ours, expected):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


def test_torch_computes_the_gradient_of_what_kernels_computed():
    config = Config.nano()
    leaves = inputs(4, 16, 65)
    expected = results(whole_site, leaves, config)[1:]
    y = whole_site(*leaves, config)
    weigh = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    with kernels.switched_off("mhc"):
        grads = torch.autograd.grad((y * weigh).sum(), leaves)
    for a, b in zip(grads, expected):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        both = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            X, fn, scale, base, f = inputs(4, 16, 1000)
            raw, r, *_, u = mhc.fused_site(X[0].detach(), fn.detach(), scale, base, 20, 1e-6, 1e-6)
            both.append((r, u))
        assert all(torch.equal(a, b) for a, b in zip(*both))
    finally:
        torch.set_num_threads(before)


def test_strides_and_no_grad():
    config = Config.nano()
    X, fn, scale, base, f = inputs(4, 16, 65)
    with torch.no_grad():
        odd = X.transpose(2, 3).contiguous().transpose(2, 3)
        expected = whole_site(X, fn, scale, base, f, config)
        assert torch.equal(whole_site(odd, fn, scale, base, f, config), expected)
        torch.testing.assert_close(
            whole_site(X[:, ::2], fn, scale, base, f[:, ::2], config), expected[:, ::2],
            atol=1e-5, rtol=1e-5)


def test_nan_reaches_the_streams():
    config = Config.nano()
    X, fn, scale, base, f = inputs(4, 16, 65)
    with torch.no_grad():
        fn[0, 0] = float("nan")
        assert whole_site(X, fn, scale, base, f, config).isnan().all()
