"""`--device`: the devices that a name can mean on this machine."""

import pytest
import torch

from minids.errors import MinidsError
from minids.system import distributed


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    return chosen


def test_devices_by_name(two_gpus):
    assert distributed.device("cpu") == torch.device("cpu") and two_gpus == []
    assert distributed.device() == distributed.device("cuda") == torch.device("cuda", 0)
    assert distributed.device("cuda:1") == torch.device("cuda", 1) and two_gpus == [0, 0, 1]


def test_each_process_has_its_own_device_of_a_kind(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.device() == distributed.device("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "abacus", "cuda:x", ""])
def test_an_absent_device_is_refused(two_gpus, name):
    with pytest.raises(MinidsError, match=r"this machine has \(cpu, cuda, cuda:0, cuda:1\)"):
        distributed.device(name)


def test_a_machine_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert distributed.device() == distributed.device("cpu") == torch.device("cpu")
    with pytest.raises(MinidsError, match=r"this machine has \(cpu\), found 'cuda'"):
        distributed.device("cuda")
