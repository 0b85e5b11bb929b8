"""The pretended accelerator itself: what tests on it rely on. Run by `test_devices.py`."""

import copy

import pretended
import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def device():
    return pretended.start()


def test_numbers_are_those_of_the_cpu(device):
    x, w = torch.randn(3, 4), torch.nn.Linear(4, 5)
    there = copy.deepcopy(w).to(device)
    for net, a in (w, x), (there, x.to(device)):
        net(a).square().sum().backward()
    assert there.weight.device == there.weight.grad.device == device
    torch.testing.assert_close(there.weight.grad.cpu(), w.weight.grad)
    torch.optim.AdamW(there.parameters()).step()
    assert not torch.equal(there.weight.cpu(), w.weight)
    rot = torch.polar(torch.ones(3, 2), torch.randn(3, 2))
    turned = torch.view_as_real(torch.view_as_complex(x.view(3, 2, 2)) * rot.conj())
    again = torch.view_as_complex(x.to(device).view(3, 2, 2)) * rot.to(device).conj()
    torch.testing.assert_close(torch.view_as_real(again).cpu(), turned)


def test_factories_views_and_changes_in_place(device):
    assert torch.arange(4, device=device)[1:].tolist() == [1, 2, 3]
    x = torch.zeros(2, 3, device=device)
    x.view(6)[1:3] = 7
    x.T[0] += 1
    assert x.tolist() == [[1, 7, 7], [1, 0, 0]] and not x.T.is_contiguous()
    assert torch.tensor([1.5], device=device).item() == 1.5
    assert torch.randint(9, (3,), device=device).device == device
    with torch.inference_mode():
        assert (torch.nn.Parameter(x)[:, None] + x).shape == (2, 2, 3)
    a, b = (torch.rand(3, device=device, generator=torch.Generator(device).manual_seed(1))
            for _ in range(2))
    assert torch.equal(a, b)


def test_files(device, tmp_path):
    x = torch.randn(2, 3)
    save_file({"x": x.to(device)}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], x)


MIXED = {
    "sum": lambda d: torch.ones(3, device=d) + torch.ones(3),
    "in place": lambda d: torch.ones(3).add_(torch.ones(3, device=d)),
    "product": lambda d: torch.ones(3, 3, device=d) @ torch.ones(3),
    "list": lambda d: torch.cat([torch.ones(3, device=d), torch.ones(3)]),
    "index of a CPU tensor": lambda d: torch.ones(3)[torch.arange(2, device=d)],
    "rows": lambda d: torch.nn.functional.embedding(torch.arange(2), torch.ones(3, 1, device=d)),
    "generator": lambda d: torch.rand(2, device=d, generator=torch.Generator()),
}


@pytest.mark.parametrize("case", MIXED)
def test_devices_that_mix_are_refused(device, case):
    with pytest.raises(RuntimeError, match="same device|device type for generator"):
        MIXED[case](device)


def test_what_may_mix_as_on_cuda(device):
    x = torch.arange(3.0, device=device)
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3]        # a number
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]           # indices
    assert x.masked_fill(x > 1, torch.tensor(9.0)).tolist() == [0, 1, 9]
    assert torch.empty(3).copy_(x).tolist() == [0, 1, 2]
    for use in (x.numpy, lambda: torch.from_numpy(x.numpy())):
        with pytest.raises(TypeError, match="to host memory first"):
            use()


def test_waits_are_counted(device):
    x = torch.arange(4.0, device=device)
    with pretended.syncs() as count:
        y = (x * 2).sum() + x[1:].max()
        torch.ones(2).to(device, non_blocking=True)
    assert count.total == 0
    with pretended.syncs() as count:
        y.item(), bool(y > 0), x.tolist(), x.cpu(), torch.ones(2).to(device), x[x > 1]
        x[torch.tensor([0])], torch.tensor([1], device=device), x.nonzero()
    assert count.by == {"aten._local_scalar_dense.default": 2, "copy to the host": 2,
                        "copy from the host": 2, "index with a mask": 1, "index from the host": 1,
                        "aten.nonzero.default": 1}


def test_rules(device):
    x = torch.ones(2, device=device)
    refused = {
        "apple": [lambda: x.double(), lambda: torch.ones(2, dtype=torch.float64).to(device),
                  lambda: torch.zeros(2, dtype=torch.float8_e4m3fn, device=device),
                  lambda: torch.frexp(x), lambda: torch.linalg.eig(torch.eye(2, device=device))],
        "no complex": [lambda: torch.complex(x, x), lambda: torch.frexp(x), lambda: x.double(),
                       lambda: torch.view_as_complex(x)]}
    for name, cases in refused.items():
        with pretended.rules(name):
            for case in cases:
                with pytest.raises((TypeError, NotImplementedError)):
                    case()
    with pretended.rules("apple"):
        assert torch.complex(x, x).abs().sum().item() > 2       # Apple's have complex64
        assert torch.einsum("i,i->", x, x).item() == 2
    assert x.double().dtype == torch.float64                     # without rules, all goes
