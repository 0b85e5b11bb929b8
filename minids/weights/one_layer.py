"""One layer of a checkpoint at its full size, while the rest of the model stays where it is.

    remote = RemoteCheckpoint("deepseek-ai/DeepSeek-V4-Flash")
    block = read(remote, 5, "cuda", torch.bfloat16)          # fetches 3.6 GB, once
    y = block(*streams(remote.config, 4096, "cuda", torch.bfloat16))

Routed experts stay packed, in FP4 or FP8; an expert that tokens go to is decoded once a pass, one at a time, and works on
all its tokens together. `judge` makes the layer of `transformers` with the same weights, all of them decoded. `trials` runs
both on random streams and compares them. The time that this takes on a GPU has not been measured yet: `tests/benchmarks`
does it where there is one. A whole model is `minids.weights.streamed`'s business.
"""

import math
import re
import threading
import time
from importlib.util import find_spec
from typing import NamedTuple

import psutil
import torch

from minids.errors import MinidsError
from minids.model.block import Block
from minids.weights import layout
from minids.weights.checkpoint import empty
from minids.weights.remote import RemoteCheckpoint
from minids.weights.streamed import fill

LENGTHS, SECONDS = (1, 4096), 2.0     # tokens of a trial, and how long to try
# V4's names of a layer's tensors -> those of `transformers`; experts aside, which are stacked there
RENAMES = [
    (r"(^|\.)hc_(attn|ffn)_(fn|base|scale)$", r"\1\2_hc.\3"),
    (r"(^|\.)attn_norm\.", r"\1input_layernorm."), (r"(^|\.)ffn_norm\.", r"\1post_attention_layernorm."),
    (r"\battn\.attn_sink$", "self_attn.sinks"),
    (r"\battn\.indexer\.compressor\.norm", "self_attn.compressor.indexer.kv_norm"),
    (r"\battn\.indexer\.compressor\.", "self_attn.compressor.indexer."),
    (r"\battn\.indexer\.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"),
    (r"\battn\.indexer\.wq_b", "self_attn.compressor.indexer.q_b_proj"),
    (r"\battn\.compressor\.norm", "self_attn.compressor.kv_norm"),
    (r"(^|\.)attn\.", r"\1self_attn."), (r"(^|\.)ffn\.", r"\1mlp."),
    (r"\.wq_a\.", ".q_a_proj."), (r"\.wq_b\.", ".q_b_proj."), (r"\.q_norm\.", ".q_a_norm."), (r"\.wkv\.", ".kv_proj."),
    (r"\.wgate\.", ".gate_proj."), (r"\.ape$", ".position_bias"), (r"\.wo_a\.", ".o_a_proj."), (r"\.wo_b\.", ".o_b_proj."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.shared_experts\.w1", ".shared_experts.gate_proj"), (r"\.shared_experts\.w2", ".shared_experts.down_proj"),
    (r"\.shared_experts\.w3", ".shared_experts.up_proj"),
]


class Run(NamedTuple):
    """What a pass through a layer takes: seconds of the fastest one, and bytes of memory in use at most (see `Memory`)."""

    seconds: float
    memory: int


class Trial(NamedTuple):
    """A layer on `tokens` random tokens, here and in `transformers`; `why` says why `theirs` is None, if it is.

    `largest` is the largest difference of two outputs, among tokens that go to the same experts in both; `same` is the share
    of these tokens. `size` is the root mean square of the outputs.
    """

    tokens: int
    ours: Run
    theirs: Run | None = None
    why: str = ""
    largest: float = float("nan")
    same: float = float("nan")
    size: float = float("nan")


def names(remote: RemoteCheckpoint, i: int) -> list[str]:
    """The names of the tensors of layer `i`, for `remote.price` and `remote.fetch`."""
    if not 0 <= i < remote.config.n_layers:
        raise MinidsError(f"layer: expected 0 to {remote.config.n_layers - 1}, found {i}")
    return remote.find(f"layers.{i}.*")


def read(remote: RemoteCheckpoint, i: int, device="cpu", dtype: torch.dtype = torch.float32) -> Block:
    """Layer `i`, ready to use, its routed experts as they are stored. What is not on this machine is fetched first.

    `MinidsError` where the memory of `device` is too small, before the layer is read.
    """
    at, config = f"layers.{i}.", remote.config
    remote.fetch(names(remote, i))
    need, there = weigh(remote, i, dtype), free(device)
    if need > there:
        raise MinidsError(f"layer {i} takes {need:,} bytes of memory, {there:,} are free on {device}")
    block = empty(lambda: Block(config, config.compress_ratios[i], config.is_hash(i)), dtype)

    def stored(name):
        return (*(t.to(device) for t in remote.raw([name]).values()), None)[:2]                      # codes, scale

    return fill(block, at, lambda name, kind: remote.read([name], kind, device)[name], stored, dtype, remote.where)


def weigh(remote: RemoteCheckpoint, i: int, dtype: torch.dtype, packed: bool = True) -> int:
    """Bytes of memory of layer `i`, matrices as `dtype`: with routed experts as they are stored, or with all decoded."""
    size = remote.price(remote.find(f"layers.{i}.ffn.experts.*")) if packed else None
    total = size.fetch + size.here if packed else 0
    for name, (format, shape) in layout.tensors(remote.config).items():
        if name.startswith(f"layers.{i}.") and not (packed and ".experts." in name):
            total += math.prod(shape) * (8 if format == "I64" else 4 if format == "F32" or len(shape) == 1 else dtype.itemsize)
    return total


def free(device) -> int:
    """Bytes of memory that are free on a device."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)     # by torch, for new tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def streams(config, T: int, device="cpu", dtype: torch.dtype = torch.float32, seed: int = 0):
    """Normal random streams, 1 T n d, and random token ids, 1 T: what a layer takes. The same ones on every device."""
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(1, T, config.hc_mult, config.dim, generator=random)
    return X.to(device, dtype), torch.randint(config.vocab_size, (1, T), generator=random).to(device)


@torch.inference_mode()
def measure(run, device, seconds: float):
    """(what `run()` gives, its `Run`): the fastest of as many calls as fit in the time, of one if it takes longer."""
    cuda = torch.device(device).type == "cuda"
    best, spent = float("inf"), 0.0
    with Memory(device) as memory:
        while best == float("inf") or spent < seconds:
            begin = time.perf_counter()
            y = run()
            if cuda:
                torch.cuda.synchronize(device)
            took = time.perf_counter() - begin
            best, spent = min(best, took), spent + took
    return y, Run(best, memory.most)


class Memory:
    """Bytes in use at most inside a `with` block: on a GPU by torch's tensors, else by this process, looked at every 5 ms."""

    def __init__(self, device):
        self.device, self.cuda, self.most = device, torch.device(device).type == "cuda", 0

    def __enter__(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.process, self.over = psutil.Process(), threading.Event()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self):
        self.look()
        while not self.over.wait(0.005):
            self.look()

    def look(self):
        self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_):
        if self.cuda:
            self.most = torch.cuda.max_memory_allocated(self.device)
        else:
            self.over.set()
            self.thread.join()


# ---- transformers' layer ----

def hf_name(name: str) -> str:
    """The name that `transformers` has for a tensor of a layer."""
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


@torch.no_grad()
def judge(block: Block):
    """`transformers`' layer with the weights of `block`: (the module, a function that makes its arguments of X and ids).

    Its experts are decoded one after another. Everything else it shares with `block`.
    """
    from transformers import DeepseekV4Config, DeepseekV4Model
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

    ratio, is_hash, weight = block.attn.ratio, block.ffn.gate.is_hash, block.attn.wq_a.weight
    alone = block.config.replace(n_layers=1, n_mtp_layers=0, compress_ratios=(ratio,), n_hash_layers=int(is_hash))
    config = DeepseekV4Config(**alone.to_json() | {"pad_token_id": None})
    layer = empty(lambda: DeepseekV4Model(config), weight.dtype).layers[0].eval()
    state = {hf_name(name): t for name, t in block.state_dict().items() if ".experts." not in name}
    for stack, parts in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
        state[f"mlp.experts.{stack}"] = torch.empty_like(getattr(layer.mlp.experts, stack), device=weight.device)
        for slot, expert in zip(state[f"mlp.experts.{stack}"], block.ffn.experts):
            slot.copy_(torch.cat([getattr(expert, w).matrix() for w in parts]))
    layer.load_state_dict(state, assign=True)
    for module in layer.modules():          # their angles are no part of a state
        if hasattr(module, "rotary_emb"):
            module.rotary_emb = DeepseekV4RotaryEmbedding(config, weight.device)
    rotary = DeepseekV4RotaryEmbedding(config, weight.device)

    def arguments(X, ids):
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        return dict(hidden_states=X, input_ids=ids, position_ids=position, past_key_values=None,
                    position_embeddings={kind: rotary(X, position, layer_type=kind) for kind in ("main", "compress")},
                    attention_mask=create_sliding_window_causal_mask(config, X[:, :, 0], None, None, position))

    return layer, arguments


def judging(remote: RemoteCheckpoint, i: int, T: int, dtype: torch.dtype) -> int:
    """Bytes of memory that `transformers`' layer takes with T tokens, about: its weights, and scores of all pairs of tokens."""
    config, ratio = remote.config, remote.config.compress_ratios[i]
    scores = config.n_heads * T * (T + (T // ratio if ratio else 0))
    return weigh(remote, i, dtype, packed=False) + 16 * scores      # at most four numbers a score at once, in float32


def trials(remote: RemoteCheckpoint, i: int, device="cpu", dtype: torch.dtype = torch.float32, lengths=None,
           seconds: float | None = None) -> list[Trial]:
    """Layer `i` on random streams of some lengths, each for about `seconds`, beside `transformers`' layer where it fits.

    Without lengths or seconds it takes `LENGTHS` and `SECONDS`.
    """
    lengths, seconds = lengths or LENGTHS, SECONDS if seconds is None else seconds
    config, block = remote.config, read(remote, i, device, dtype)
    given = {T: streams(config, T, device, dtype) for T in lengths}
    ours = {T: _run(block, block.ffn.gate, dict(X=X, ids=ids), device, seconds) for T, (X, ids) in given.items()}
    room, need = free(device), {T: judging(remote, i, T, dtype) for T in lengths}
    why = {T: f"it needs about {need[T] / 1e9:.1f} GB of memory, {room / 1e9:.1f} are free" for T in need if need[T] > room}
    if find_spec("transformers") is None:
        why = dict.fromkeys(lengths, "it is not installed")
    layer, arguments = judge(block) if len(why) < len(lengths) else (None, None)
    del block
    found = []
    for T in lengths:
        y, experts, run = ours.pop(T)
        if T in why:
            found.append(Trial(T, run, why=why[T]))
            continue
        z, theirs, their_run = _run(layer, layer.mlp.gate, arguments(*given[T]), device, seconds)
        same = (experts == theirs).all(-1)                                               # T
        apart = (y - z).abs()[same]                                                      # T n d: a token's experts are its own
        largest = apart.max().item() if len(apart) else float("nan")
        found.append(Trial(T, run, their_run, "", largest, same.float().mean().item(), z.pow(2).mean().sqrt().item()))
    return found


def _run(layer, gate, given: dict, device, seconds: float):
    """The output, T n d, each token's experts in order, T K, and the `Run`. Both kinds of gate say the experts last."""
    chosen = []
    hook = gate.register_forward_hook(lambda gate, args, said: chosen.append(said[-1]))
    y, run = measure(lambda: layer(**given), device, seconds)
    hook.remove()
    return y[0].float().cpu(), chosen[-1].cpu().sort().values, run
