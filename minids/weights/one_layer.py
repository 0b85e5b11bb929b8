"""One layer of a checkpoint at its full size, without the rest of the model.

    checkpoint = Checkpoint("deepseek-ai/DeepSeek-V4-Flash")
    block = read_layer(checkpoint, 5, "cuda", torch.bfloat16)     # fetches 3.6 GB, once
    y = block(*random_input(checkpoint.config, 4096, "cuda", torch.bfloat16))

Routed experts stay packed, in FP4 or FP8. An expert that tokens go to is decoded once a pass, one
at a time, and works on all its tokens together. `reference_layer` makes the layer of `transformers`
with the same weights, all of them decoded. `trials` runs both on random inputs and compares them.
The time that this takes on a GPU has not been measured yet: `tests/benchmarks` does it where there
is one. For a whole model see `minids.weights.streamed`.
"""

import math
import threading
import time
from importlib.util import find_spec
from typing import NamedTuple

import psutil
import torch

from minids.errors import MinidsError
from minids.model.block import Block
from minids.system.devices import has_all_types
from minids.weights import layout
from minids.weights.checkpoint import Checkpoint, empty
from minids.weights.layout import scale_name
from minids.weights.names import STACKS, to_transformers
from minids.weights.streamed import fill

LENGTHS, SECONDS = (1, 4096), 2.0     # tokens of a trial, and how long to repeat it


class Timing(NamedTuple):
    """Seconds of the fastest pass, and the peak memory in bytes (see `PeakMemory`)."""

    seconds: float
    memory: int


class Trial(NamedTuple):
    """A layer on `tokens` random tokens, here and in `transformers`.

    `why` says why `theirs` is None, if it is. `same_experts` is the share of tokens that go to the
    same experts in both, `max_difference` the largest difference of two outputs among these tokens.
    `rms` is the root mean square of the outputs.
    """

    tokens: int
    ours: Timing
    theirs: Timing | None = None
    why: str = ""
    max_difference: float = float("nan")
    same_experts: float = float("nan")
    rms: float = float("nan")


def layer_names(checkpoint: Checkpoint, i: int) -> list[str]:
    """The names of the tensors of layer `i`, for `checkpoint.price` and `checkpoint.fetch`."""
    if not 0 <= i < checkpoint.config.n_layers:
        raise MinidsError(f"layer: expected 0 to {checkpoint.config.n_layers - 1}, found {i}")
    return checkpoint.find(f"layers.{i}.*")


def read_layer(checkpoint: Checkpoint, i: int, device="cpu",
               dtype: torch.dtype = torch.float32) -> Block:
    """Layer `i`, ready to use, its routed experts as they are stored, or decoded on a device
    without float8.

    What is not on this machine is fetched first. `MinidsError` where the memory of `device` is too
    small, before the layer is read.
    """
    config, prefix = checkpoint.config, f"layers.{i}."
    checkpoint.fetch(layer_names(checkpoint, i))
    packed = has_all_types(device)
    need, available = estimate_memory(checkpoint, i, dtype, packed), free(device)
    if need > available:
        raise MinidsError(f"layer {i} takes {need:,} bytes of memory, {available:,} are free "
                          f"on {device}")
    block = empty(lambda: Block(config, config.compress_ratios[i], config.is_hash(i)), dtype)

    def read(name, dtype):
        return checkpoint.read(name, dtype, device)

    def stored(name):
        if not packed:
            return read(name, dtype), None
        codes = checkpoint.raw(name).to(device)
        if checkpoint.info(name)[0] not in layout.CODES:
            return codes, None
        return codes, checkpoint.raw(scale_name(name)).to(device)

    return fill(block, prefix, read, stored, dtype, checkpoint.where)


def estimate_memory(checkpoint: Checkpoint, i: int, dtype: torch.dtype, packed: bool = True) -> int:
    """Bytes of memory of layer `i`, its matrices as `dtype`.

    Routed experts count as they are stored, or decoded unless `packed`.
    """
    total = 0
    if packed:
        price = checkpoint.price(checkpoint.find(f"layers.{i}.ffn.experts.*"))
        total += price.fetch + price.here
    for name, (format, shape) in layout.tensors(checkpoint.config).items():
        if name.startswith(f"layers.{i}.") and not (packed and ".experts." in name):
            in_float32 = format == "F32" or len(shape) == 1
            size = 8 if format == "I64" else 4 if in_float32 else dtype.itemsize
            total += size * math.prod(shape)
    return total


def free(device) -> int:
    """Bytes of memory that are free on a device."""
    if torch.device(device).type == "cuda":
        # PyTorch keeps freed memory for new tensors
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def random_input(config, T: int, device="cpu", dtype: torch.dtype = torch.float32, seed: int = 0):
    """What a layer takes: normal random residual streams, 1 T n d, and random token ids, 1 T.

    The same ones on every device.
    """
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(1, T, config.hc_mult, config.dim, generator=random)
    ids = torch.randint(config.vocab_size, (1, T), generator=random)
    return X.to(device, dtype), ids.to(device)


@torch.inference_mode()
def measure(run, device, seconds: float):
    """(output, `Timing`) of `run()`, called as often as fits in the time, at least once."""
    queued = torch.device(device).type in ("cuda", "mps")
    fastest, spent = float("inf"), 0.0
    with PeakMemory(device) as memory:
        while fastest == float("inf") or spent < seconds:
            begin = time.perf_counter()
            y = run()
            if queued:
                torch.accelerator.synchronize(device)
            took = time.perf_counter() - begin
            fastest, spent = min(fastest, took), spent + took
    return y, Timing(fastest, memory.peak)


class PeakMemory:
    """The peak of the bytes in use inside a `with` block.

    On a GPU those of torch's tensors, else those of this process, sampled every 5 ms.
    """

    def __init__(self, device):
        self.device, self.cuda, self.peak = device, torch.device(device).type == "cuda", 0

    def __enter__(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.process, self.over = psutil.Process(), threading.Event()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self):
        """Sample until the block ends."""
        self.sample()
        while not self.over.wait(0.005):
            self.sample()

    def sample(self):
        """Look up the memory in use now."""
        self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.over.set()
            self.thread.join()


# ---- transformers' layer ----

@torch.no_grad()
def reference_layer(block: Block):
    """`transformers`' layer with the weights of `block`.

    Returns the module, and a function from X and ids to its arguments. Its experts are decoded one
    after another. It shares everything else with `block`.
    """
    from transformers import DeepseekV4Config, DeepseekV4Model
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

    device = block.attn.wq_a.weight.device
    alone = block.config.replace(n_layers=1, n_mtp_layers=0, compress_ratios=(block.attn.ratio,),
                                 n_hash_layers=int(block.ffn.gate.is_hash))
    config = DeepseekV4Config(**alone.to_json() | {"pad_token_id": None})
    layer = empty(lambda: DeepseekV4Model(config), block.attn.wq_a.weight.dtype).layers[0].eval()
    layer.load_state_dict(_reference_state(block, layer), assign=True)
    for module in layer.modules():          # their angles are not part of a state_dict
        if hasattr(module, "rotary_emb"):
            module.rotary_emb = DeepseekV4RotaryEmbedding(config, device)
    rotary = DeepseekV4RotaryEmbedding(config, device)

    def arguments(X, ids):
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        mask = create_sliding_window_causal_mask(config, X[:, :, 0], None, None, position)
        embeddings = {kind: rotary(X, position, layer_type=kind) for kind in ("main", "compress")}
        return dict(hidden_states=X, input_ids=ids, position_ids=position, past_key_values=None,
                    position_embeddings=embeddings, attention_mask=mask)

    return layer, arguments


def _reference_state(block: Block, layer) -> dict[str, torch.Tensor]:
    """The state_dict of `transformers`' layer, from the weights of `block`."""
    prefix = "layers.0."
    state = {to_transformers(prefix + name).removeprefix("model." + prefix): t
             for name, t in block.state_dict().items() if ".experts." not in name}
    for stack, matrices in STACKS.items():
        shape = layer.get_parameter(stack)
        state[stack] = torch.empty_like(shape, device=block.attn.wq_a.weight.device)
        for slot, expert in zip(state[stack], block.ffn.experts):
            slot.copy_(torch.cat([getattr(expert, w).matrix() for w in matrices]))
    return state


def estimate_reference_memory(checkpoint: Checkpoint, i: int, T: int, dtype: torch.dtype) -> int:
    """Approximate bytes of memory that `transformers`' layer takes with T tokens.

    Its weights, and the attention scores of all pairs of tokens.
    """
    config, ratio = checkpoint.config, checkpoint.config.compress_ratios[i]
    scores = config.n_heads * T * (T + (T // ratio if ratio else 0))
    # at most four float32 numbers for each score at once
    return estimate_memory(checkpoint, i, dtype, packed=False) + 16 * scores


def trials(checkpoint: Checkpoint, i: int, device="cpu", dtype: torch.dtype = torch.float32,
           lengths=None, seconds: float | None = None) -> list[Trial]:
    """Layer `i` on random inputs of some lengths, and `transformers`' layer where memory suffices.

    Each pass is repeated for about `seconds`. Defaults: `LENGTHS` and `SECONDS`.
    """
    lengths, seconds = lengths or LENGTHS, SECONDS if seconds is None else seconds
    block = read_layer(checkpoint, i, device, dtype)
    inputs = {T: random_input(checkpoint.config, T, device, dtype) for T in lengths}
    ours = {T: _run(block, block.ffn.gate, dict(X=X, ids=ids), device, seconds)
            for T, (X, ids) in inputs.items()}
    why = _why_no_reference(checkpoint, i, lengths, device, dtype)
    layer, arguments = reference_layer(block) if len(why) < len(lengths) else (None, None)
    del block
    results = []
    for T in lengths:
        if T in why:
            results.append(Trial(T, ours.pop(T)[2], why=why[T]))
        else:
            theirs = _run(layer, layer.mlp.gate, arguments(*inputs[T]), device, seconds)
            results.append(_compare(T, ours.pop(T), theirs))
    return results


def _why_no_reference(checkpoint: Checkpoint, i: int, lengths, device, dtype) -> dict[int, str]:
    """{length: why `transformers`' layer cannot run}, for the lengths at which it cannot."""
    if find_spec("transformers") is None:
        return dict.fromkeys(lengths, "it is not installed")
    available = free(device)
    need = {T: estimate_reference_memory(checkpoint, i, T, dtype) for T in lengths}
    return {T: f"it needs about {n / 1e9:.1f} GB of memory, {available / 1e9:.1f} are free"
            for T, n in need.items() if n > available}


def _compare(T: int, ours, theirs) -> Trial:
    """The trial of two results of `_run`."""
    (y, experts, timing), (z, their_experts, their_timing) = ours, theirs
    same = (experts == their_experts).all(-1)               # T
    differences = (y - z).abs()[same]                       # T' n d: tokens with the same experts
    largest = differences.max().item() if len(differences) else float("nan")
    return Trial(T, timing, their_timing, max_difference=largest,
                 same_experts=same.float().mean().item(), rms=z.pow(2).mean().sqrt().item())


def _run(layer, gate, arguments: dict, device, seconds: float):
    """(output, T n d; each token's experts in order, T K; `Timing`).

    The last output of both kinds of gate is the experts.
    """
    chosen = []
    hook = gate.register_forward_hook(lambda gate, args, output: chosen.append(output[-1]))
    y, timing = measure(lambda: layer(**arguments), device, seconds)
    hook.remove()
    return y[0].float().cpu(), chosen[-1].cpu().sort().values, timing
