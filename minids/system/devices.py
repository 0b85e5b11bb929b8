"""What a device can compute with.

A CPU and a CUDA GPU have all of torch's number types. Other accelerators lack some: Apple's (MPS)
has neither float64 nor float8, Huawei's Ascend 910B no float8 and few operators on complex numbers.
So on them what is stored in float8 is decoded on the CPU and then moved, sums in float64 are
computed on the CPU, and rotary embedding computes with real numbers.

A GPU computes asynchronously: the host puts operations into a queue. To read a number, the host
waits until the queue is empty, and then the GPU waits for the host. So loops that train or decode
read numbers at most once per step, and what a CPU would look up, a GPU computes.
"""

from functools import cache

import torch


def has_all_types(device: torch.device | str) -> bool:
    """Whether tensors of all types, float64, float8 and complex64 among them, can be on a device.

    A CPU and CUDA have them; any other device is tried, once.
    """
    device = torch.device(device)
    return device.type in ("cpu", "cuda") or _can_compute(device)


@cache
def _can_compute(device: torch.device) -> bool:
    try:
        x = torch.ones(2, device=device)
        sums = x.double().cumsum(0) + x.to(torch.float8_e4m3fn).double()
        rotated = torch.view_as_real(torch.complex(x, x) * torch.complex(x, x))
        return sums.tolist() == [2, 3] and rotated.tolist() == [[0, 2], [0, 2]]
    except Exception:       # what a device cannot do, it refuses in many ways
        return False


def moved(t: torch.Tensor, device) -> torch.Tensor:
    """A tensor of the CPU on this device; the host does not wait for the device's queue.

    Except on MPS, which may read the memory after it was freed (pytorch issue 189690).
    """
    return t.to(device, non_blocking=torch.device(device).type != "mps")
