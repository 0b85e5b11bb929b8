"""Several processes that train one model: `torchrun --nproc-per-node 2 -m minids train`.

Each process has the whole model, takes its parts of the batch, and steps on the sum of all
gradients: the weights stay equal without being sent. torch's DistributedDataParallel is not used:
it averages over processes, but our loss is a sum over targets, whose number differs between packed
rows; and it expects one forward call, but our step makes three. Without torchrun there is one
process, and everything here does nothing. V4's own parallelism (report 3) needs a cluster.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from minids.errors import MinidsError


def size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process. Number 0 writes files and shows progress."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def device(name: str | None = None) -> torch.device:
    """The device called `name`, by default as the environment's MINIDS_DEVICE says, and without
    that this process's accelerator, or the CPU.

    Names are "cpu", "cuda", "cuda:1", "mps"; one without a number means the process's own device of
    that kind. Raises `MinidsError` for a device that this machine does not have.
    """
    name, kind, count = name or os.environ.get("MINIDS_DEVICE") or name, None, 0
    if torch.accelerator.is_available():
        kind, count = torch.accelerator.current_accelerator().type, torch.accelerator.device_count()
    numbered = [f"{kind}:{i}" for i in range(count)]
    if name not in (None, "cpu", kind, *numbered):
        known = ", ".join(["cpu", *([kind] if kind else []), *numbered])
        raise MinidsError(f"device: expected one that this machine has ({known}), found {name!r}")
    if name == "cpu" or kind is None:
        return torch.device("cpu")
    if name in numbered:
        index = numbered.index(name)
    elif size() > 1:
        index = int(os.environ.get("LOCAL_RANK", 0))
    else:
        index = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(index)
    return torch.device(kind, index)


def device_or_cpu(given: torch.device | str | None = None) -> torch.device:
    """The device given; by default the one that MINIDS_DEVICE names, and without that the CPU.

    For functions that lessons call: models and tensors that a lesson makes are on the CPU, whatever
    the machine has.
    """
    if given is None:
        return device(os.environ.get("MINIDS_DEVICE") or "cpu")
    return torch.device(given)


@contextmanager
def joined(device):
    """Inside, the processes can communicate: through NCCL on CUDA, through gloo on a CPU."""
    begin = size() > 1 and not dist.is_initialized()
    if begin:
        dist.init_process_group(dist.get_default_backend_for_device(device))
    try:
        yield
    finally:
        if begin:
            dist.destroy_process_group()


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


def total(tensors) -> None:
    """Sum each tensor over the processes, in place. They have one type, as they are sent as one."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for t, summed in zip(tensors, flat.split([t.numel() for t in tensors])):
        t.copy_(summed.view_as(t))


def total_gradients(parameters) -> None:
    """Sum the gradients over the processes.

    Where only some have one (no row of the others had an entry), the others' gradient is zero.
    """
    if size() == 1:
        return
    parameters = list(parameters)
    has_grad = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8,
                            device=parameters[0].device)
    dist.all_reduce(has_grad, op=dist.ReduceOp.MAX)
    for p, used in zip(parameters, has_grad.tolist()):
        if used and p.grad is None:
            p.grad = torch.zeros_like(p)
    total([p.grad for p in parameters if p.grad is not None])


def anyone(flag: bool, device) -> bool:
    """Whether the flag is set in any process."""
    if size() == 1:
        return flag         # a tensor on a GPU would have to be waited for
    count = torch.tensor([int(flag)], device=device)
    total([count])
    return bool(count)
