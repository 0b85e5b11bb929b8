"""What a device can compute with.

A CPU and a CUDA GPU have all of torch's number types. Other accelerators lack some: Apple's (MPS)
has neither float64 nor float8, and raises a TypeError for a tensor of such a type. So what is
stored in float8 is decoded on the CPU and then moved, and sums in float64 are computed on the CPU.
"""

import torch


def has_all_types(device) -> bool:
    """Whether tensors of all types, float64 and float8 among them, can be on this device."""
    return torch.device(device).type in ("cpu", "cuda")
