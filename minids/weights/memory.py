"""The memory that a layer of a checkpoint takes, known before it is read.

A pass needs the layer's weights and its activations: the tensors that live while it computes.
Activations grow with the text. `activations` adds up the largest of them, as `minids.model` makes
them; a test compares the sum with what the model's code allocates at V4's sizes.
"""

import math
from contextlib import contextmanager

import psutil
import torch

from minids.config import CSA_RATE
from minids.errors import MinidsError
from minids.model import attention, moe, packed
from minids.model.indexer import PART
from minids.system.devices import has_all_types
from minids.weights import layout


def free(device) -> int:
    """Bytes of memory that are free on a device."""
    if torch.device(device).type == "cuda":
        # PyTorch keeps freed memory for new tensors
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def stays_packed(name: str, stored_as: str, device) -> bool:
    """Whether a layer's tensor stays as it is stored, in a type of safetensors, on `device`.

    The matrices of routed experts do, where torch has all types; on a CPU, where products take
    codes, so do all in FP8.
    """
    if ".experts." in name:
        return has_all_types(device)
    return stored_as == "F8_E4M3" and packed.stays_packed(device)


def weights(checkpoint, i: int, dtype: torch.dtype, device="cpu") -> int:
    """Bytes of memory of layer `i` on `device`: what stays as it is stored (`stays_packed`), and
    other matrices as `dtype`. Without a device: of all of them as `dtype`."""
    names = [] if device is None else packed_names(checkpoint, i, device)
    total = stored(checkpoint, names)
    for name, (format, shape) in layout.tensors(checkpoint.config).items():
        if name.startswith(f"layers.{i}.") and name not in names:
            in_float32 = format == "F32" or len(shape) == 1
            size = 8 if format == "I64" else 4 if in_float32 else dtype.itemsize
            total += size * math.prod(shape)
    return total


def packed_names(checkpoint, i: int, device) -> set[str]:
    """The names of what stays as it is stored in layer `i`, with those of the scales."""
    names = set()
    for name in checkpoint.find(f"layers.{i}.*"):
        weight = name.removesuffix("scale") + "weight" if name.endswith(".scale") else name
        if stays_packed(weight, checkpoint.info(weight)[0], device):
            names.add(name)
    return names


def stored(checkpoint, names) -> int:
    """Bytes of these tensors, as they are stored."""
    price = checkpoint.price(names)
    return price.fetch + price.here


def activations(config, ratio: int, T: int, dtype: torch.dtype) -> int:
    """About how many bytes one text of T tokens takes in a layer with this compression ratio, in
    inference, beside the layer's weights."""
    numbers, S = T * config.dim, T // ratio if ratio else 0
    streams = 2 * config.hc_mult * numbers * dtype.itemsize         # what comes in, what goes out
    inputs = 2 * numbers * dtype.itemsize                           # of attention or experts
    mask = 4 * T * S
    maps = 4 * config.hc_mult * numbers         # a copy in float32, of which hyper-connections come
    expert = config.dim * config.moe_inter_dim * (2 + 2 * dtype.itemsize)     # one matrix, decoded
    steps = maps, _of_attention(config, ratio, T, dtype), _of_experts(config, T, dtype) + expert
    return streams + inputs + mask + max(steps)


def _of_attention(config, ratio: int, T: int, dtype: torch.dtype) -> int:
    """Queries, scores and outputs of one stripe of queries, keys and entries of all."""
    H, c, w = config.n_heads, config.head_dim, 2 * config.window_size
    size, S = dtype.itemsize, T // ratio if ratio else 0
    queries = attention.stripe_size(config, ratio, 1, T, S)
    queries += -queries % config.window_size if queries > config.window_size else 0
    own = index = heads = 0
    if ratio == CSA_RATE and S > config.index_topk:
        index = 2 * 4 * S                       # the indexer's scores,
        heads = 8 * config.index_n_heads * min(S, PART)         # and those of its heads
        if S > attention.MASKED * config.index_topk:
            S = config.index_topk
            own = S * c * size                  # each query has copies of its own entries
    scores = 4 * (w + 2 * S)                    # of the entries before and after their mask
    softmax = 2 * 4 * (w + S)
    products = size * (w + S + 3 * c) if S else 0
    rotated = c * (8 + size) - c * size         # in float32, when the scores are gone
    head = c * size + max(scores + max(softmax, products), rotated)
    working = max(H * head + own, heads)
    return queries * (H * c * size + working + index) + T * (config.q_lora_rank + 8 * c) * size


def _of_experts(config, T: int, dtype: torch.dtype) -> int:
    """The rows of all experts, and what the experts make of them, see `minids.model.moe.MoE`."""
    rows, size = T * config.n_activated_experts, dtype.itemsize
    inner = config.moe_inter_dim * (2 * size + 16)      # w1 x, w3 x; clamped, gated, in float32
    if rows * config.dim > moe.MANY:
        return 2 * rows * config.dim * size + T * inner                 # the shared expert's
    return rows * (config.dim * size + inner)


@contextmanager
def explained(what: str, device):
    """A `with` block in which running out of memory is a `MinidsError`: one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise MinidsError(f"{what}: the memory of {device} ran out. Close other programs, or "
                          f"choose a shorter text.") from None


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's, a GPU's or torch's on the CPU."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or any(word in str(error).lower() for word in words))
