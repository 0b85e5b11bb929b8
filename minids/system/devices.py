"""What a device can compute with.

A CPU and a CUDA GPU have all of torch's number types. Other accelerators lack some: Apple's (MPS)
has neither float64 nor float8, and raises a TypeError for a tensor of such a type. So what is
stored in float8 is decoded on the CPU and then moved, and sums in float64 are computed on the CPU.

A GPU computes behind the host: operations wait in a queue. Where the host asks for a number, it
waits until the queue is empty, and then the GPU waits for the host. So loops that train or decode
ask at most once a step, and what a CPU would look up, a GPU computes.
"""

import torch


def has_all_types(device) -> bool:
    """Whether tensors of all types, float64 and float8 among them, can be on this device."""
    return torch.device(device).type in ("cpu", "cuda")


def moved(t: torch.Tensor, device) -> torch.Tensor:
    """A tensor of the CPU on this device; the host does not wait for the device's queue.

    Except on MPS, which may read the memory after it was freed (pytorch issue 189690).
    """
    return t.to(device, non_blocking=torch.device(device).type != "mps")
