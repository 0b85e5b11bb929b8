"""One layer of a checkpoint at its full size, without the rest of the model.

    checkpoint = Checkpoint("deepseek-ai/DeepSeek-V4-Flash")
    block = read_layer(checkpoint, 5, "cuda", torch.bfloat16)     # fetches 3.6 GB, once
    y = block(*random_input(checkpoint.config, 4096, "cuda", torch.bfloat16))

Routed experts stay packed, in FP4 or FP8; on a CPU, so does everything in FP8. An expert that
tokens go to works on all its tokens together. On a GPU it is decoded once a pass, one at a time; on
a CPU products take the codes. `reference_layer` makes the layer of `transformers` with the same
weights, all of them decoded. `trials` runs both on random inputs and compares them.
The time that this takes on a GPU has not been measured yet: `tests/benchmarks` does it where there
is one. For the memory that it takes see `minids.weights.memory`, for a whole model
`minids.weights.streamed`.
"""

import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import psutil
import torch

from minids.config import CSA_RATE
from minids.errors import MinidsError
from minids.model.block import Block
from minids.model.linear import Linear
from minids.model.masks import incomplete
from minids.weights import layout, memory
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

    `ours` and `theirs` are None where a layer was not run; `why` says why, unless it is yet to run.
    `same_experts` is the share of tokens that go to the same experts in both, `same_entries` the
    share of a CSA layer's picks that are the same, if it has more entries than it picks. `alike` is
    the share of tokens with the same experts and the same picks, `max_difference` the largest
    difference of two outputs among these, `median_difference` the median of all outputs. `rms` is
    the root mean square of the outputs.
    """

    tokens: int
    ours: Timing | None
    theirs: Timing | None = None
    why: str = ""
    same_experts: float = float("nan")
    same_entries: float = float("nan")
    alike: float = float("nan")
    max_difference: float = float("nan")
    median_difference: float = float("nan")
    rms: float = float("nan")


class Result(NamedTuple):
    """What `_run` saw: the output, T n d; each token's experts in order, T K; the entries that each
    query picked, T S, or None where it picks none; `Timing`."""

    y: torch.Tensor
    experts: torch.Tensor
    picks: torch.Tensor | None
    timing: Timing


def layer_names(checkpoint: Checkpoint, i: int) -> list[str]:
    """The names of the tensors of layer `i`, for `checkpoint.price` and `checkpoint.fetch`."""
    if not 0 <= i < checkpoint.config.n_layers:
        raise MinidsError(f"layer: expected 0 to {checkpoint.config.n_layers - 1}, found {i}")
    return checkpoint.below(f"layers.{i}.")


def read_layer(checkpoint: Checkpoint, i: int, device="cpu",
               dtype: torch.dtype = torch.float32) -> Block:
    """Layer `i`, ready to use; for what stays as it is stored see `memory.stays_packed`.

    What is not on this machine is fetched first. `MinidsError` where the memory of `device` is too
    small, before anything is fetched or read.
    """
    config, prefix, names = checkpoint.config, f"layers.{i}.", layer_names(checkpoint, i)
    need, available = memory.weights(checkpoint, i, dtype, device), memory.free(device)
    if need > available:
        raise MinidsError(f"layer {i} takes {need:,} bytes of memory, {available:,} are free "
                          f"on {device}")
    checkpoint.fetch(names)
    block = empty(lambda: Block(config, config.compress_ratios[i], config.is_hash(i)), dtype)

    def read(name, dtype):
        return checkpoint.read(name, dtype, device)

    def stored(name):
        stored_as = checkpoint.info(name)[0]
        if not memory.stays_packed(name, stored_as, device):
            return None
        codes = checkpoint.raw(name).to(device)
        if stored_as not in layout.CODES:
            return codes, None
        return codes, checkpoint.raw(scale_name(name)).to(device)

    return fill(block, prefix, read, stored, dtype, checkpoint.where)


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
    with PeakMemory(device) as used:
        while fastest == float("inf") or spent < seconds:
            begin = time.perf_counter()
            y = run()
            if queued:
                torch.accelerator.synchronize(device)
            took = time.perf_counter() - begin
            fastest, spent = min(fastest, took), spent + took
    return y, Timing(fastest, used.peak)


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
    after another, and so is all else that is packed. It shares everything else with `block`.
    """
    from transformers import DeepseekV4Config, DeepseekV4Model
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

    gate = block.ffn.gate.weight
    device, dtype = gate.device, gate.dtype
    alone = block.config.replace(n_layers=1, n_mtp_layers=0, compress_ratios=(block.attn.ratio,),
                                 n_hash_layers=int(block.ffn.gate.is_hash))
    config = DeepseekV4Config(**alone.to_json() | {"pad_token_id": None})
    layer = empty(lambda: DeepseekV4Model(config), dtype).layers[0].eval()
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
    weights = block.state_dict() | {f"{name}.weight": matrix.matrix()
                                    for name, matrix in block.named_modules()
                                    if isinstance(matrix, Linear) and ".experts." not in name}
    state = {to_transformers(prefix + name).removeprefix("model." + prefix): t
             for name, t in weights.items() if ".experts." not in name}
    for stack, matrices in STACKS.items():
        shape = layer.get_parameter(stack)
        state[stack] = torch.empty_like(shape, device=block.ffn.gate.weight.device)
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
    return memory.weights(checkpoint, i, dtype, None) + 16 * scores


# ---- both on random inputs ----

def needs(checkpoint: Checkpoint, i: int, device="cpu", dtype: torch.dtype = torch.float32,
          lengths=None) -> dict[int, int]:
    """{length: about how many bytes layer `i` takes, weights and activations}."""
    config, ratio = checkpoint.config, checkpoint.config.compress_ratios[i]
    weights = memory.weights(checkpoint, i, dtype, device)
    return {T: weights + memory.activations(config, ratio, T, dtype) for T in lengths or LENGTHS}


def too_long(need: dict[int, int], i: int, device) -> dict[int, str]:
    """{length: why it is skipped}, for the lengths that do not fit into the memory of `device`.

    `MinidsError` where none fits.
    """
    why, shortest = _too_much(need, device), min(need)
    if len(why) == len(need):
        raise MinidsError(f"layer {i} with {shortest:,} tokens: {why[shortest]} on {device}")
    return why


def _too_much(need: dict[int, int], device) -> dict[int, str]:
    available = memory.free(device)
    return {T: f"it needs about {n:,} bytes of memory, {available:,} are free"
            for T, n in need.items() if n > available}


def trials(checkpoint: Checkpoint, i: int, device="cpu", dtype: torch.dtype = torch.float32,
           lengths=None, seconds: float | None = None) -> Iterator[Trial]:
    """Layer `i` on random inputs of some lengths, and `transformers`' layer where memory suffices.

    Gives each result as it comes: first those of the layer, with `theirs` None; then, for each
    length that it has run at, those with `transformers`' layer. Each pass is repeated for about
    `seconds`. Defaults: `LENGTHS` and `SECONDS`. `MinidsError` where memory suffices for no length,
    before anything is fetched or read, and where it runs out.
    """
    lengths, seconds = lengths or LENGTHS, SECONDS if seconds is None else seconds
    config, ratio = checkpoint.config, checkpoint.config.compress_ratios[i]
    why = too_long(needs(checkpoint, i, device, dtype, lengths), i, device)
    with memory.explained(f"layer {i}", device):
        block = read_layer(checkpoint, i, device, dtype)
    indexer, ours = block.attn.indexer if ratio == CSA_RATE else None, {}
    for T in lengths:
        if T in why:
            yield Trial(T, None, why=why[T])
            continue
        with memory.explained(f"layer {i} with {T:,} tokens", device):
            X, ids = random_input(config, T, device, dtype)
            ours[T] = _run(block, block.ffn.gate, indexer, dict(X=X, ids=ids), device, seconds)
        yield Trial(T, ours[T].timing)
    why = _why_no_reference(checkpoint, i, list(ours), device, dtype)
    layer = None
    if len(why) < len(ours):
        with memory.explained("transformers' layer", device):
            layer, arguments = reference_layer(block)
        indexer = layer.self_attn.compressor.indexer if ratio == CSA_RATE else None
    del block
    for T, result in ours.items():
        if layer is None or T in why:
            yield Trial(T, result.timing, why=why[T])
            continue
        try:
            with memory.explained(f"transformers' layer with {T:,} tokens", device):
                given = arguments(*random_input(config, T, device, dtype))
                theirs = _run(layer, layer.mlp.gate, indexer, given, device, seconds)
        except NotImplementedError as error:
            lacking = f"{device} lacks an operation that it needs: {str(error).splitlines()[0]}"
            yield Trial(T, result.timing, why=lacking)
        else:
            yield _compare(T, result, theirs)


def _why_no_reference(checkpoint: Checkpoint, i: int, lengths, device, dtype) -> dict[int, str]:
    """{length: why `transformers`' layer cannot run}, for the lengths at which it cannot."""
    if find_spec("transformers") is None:
        return dict.fromkeys(lengths, "it is not installed")
    need = {T: estimate_reference_memory(checkpoint, i, T, dtype) for T in lengths}
    return _too_much(need, device)


def _compare(T: int, ours: Result, theirs: Result) -> Trial:
    """The trial of two results."""
    same_experts = (ours.experts == theirs.experts).all(-1)                      # T
    alike, same_entries = same_experts, float("nan")
    if ours.picks is not None and theirs.picks is not None:
        both = (ours.picks & theirs.picks).sum().item()
        same_entries = both / max(ours.picks.sum().item(), 1)
        alike = alike & (ours.picks == theirs.picks).all(-1)
    differences = (ours.y - theirs.y).abs()                                      # T n d
    among = differences[alike]
    return Trial(T, ours.timing, theirs.timing, same_experts=same_experts.float().mean().item(),
                 same_entries=same_entries, alike=alike.float().mean().item(),
                 max_difference=among.max().item() if len(among) else float("nan"),
                 median_difference=differences.median().item(),
                 rms=theirs.y.pow(2).mean().sqrt().item())


def _run(layer, gate, indexer, arguments: dict, device, seconds: float) -> Result:
    """Run a layer, ours or `transformers`'.

    The last output of both kinds of gate is the experts. Our indexer gives scores, stripe by
    stripe, that of `transformers` the numbers of the picks, or -1.
    """
    experts, index = [], []

    def begin(*_):
        experts.clear()
        index.clear()

    hooks = [layer.register_forward_pre_hook(begin),
             gate.register_forward_hook(lambda _, __, output: experts.append(output[-1]))]
    if indexer is not None:
        hooks.append(indexer.register_forward_hook(lambda _, __, output: index.append(output)))
    y, timing = measure(lambda: layer(**arguments), device, seconds)
    for hook in hooks:
        hook.remove()
    k = layer.config.index_topk if isinstance(layer, Block) else None
    return Result(y[0].float().cpu(), experts[-1].cpu().sort().values, _picks(index, k), timing)


def _picks(index: list[torch.Tensor], k: int | None) -> torch.Tensor | None:
    """Which entries each query picked, T S, or None where it picks none.

    `index` are the parts of what an indexer gave: scores, of which the k best are picked, or picks.
    """
    if not index:
        return None
    given = torch.cat(index, dim=1)[0].cpu()                    # T S scores, or T k picks
    if k is not None:
        T, S = given.shape
        mask = incomplete(0, T, S, CSA_RATE, "cpu")
        best = (given if mask is None else given + mask).topk(k)
        given = best.indices.masked_fill(best.values == float("-inf"), -1)
    S = len(given) // CSA_RATE
    picks = torch.zeros(len(given), S + 1, dtype=torch.bool)    # the last column takes the -1
    return picks.scatter_(1, given % (S + 1), True)[:, :S]
