"""A checkpoint that is larger than memory: the same `Model`, its layers read one after another.

    model = streamed("DeepSeek-V4-Flash", device="cuda", dtype=torch.bfloat16)
    logits = model(ids)         # reads every layer once, each while the one before it computes

At most two layers are in memory; for the bytes see `memory_of_a_pass`. A file is read from its
first byte to its last. Routed experts stay as they are stored, in FP4 or FP8: a layer of V4-Flash
takes 3.6 GB. On a GPU they are decoded one by one as they are used. On a CPU, where products take
codes (`minids.model.packed`), all matrices in FP8 stay, too. On a device without float8 everything
is decoded as it is read. The results are those of `minids.load`, up to the order of sums.
Generation works too, but reads the whole model for each token. The path to a GPU has not been
tested on one. To fetch files from the Hub see `minids.weights.checkpoint`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from minids.errors import MinidsError
from minids.model import Model
from minids.model.block import Block
from minids.model.linear import Linear
from minids.weights import memory
from minids.weights.checkpoint import Checkpoint, check_table, decode, empty
from minids.weights.layout import scale_name

LOGITS = 1024       # tokens whose logits `report` computes at a time


class Layers:
    """The blocks of a checkpoint, for `for` loops.

    While the loop uses a block, a thread reads the next one. A block is emptied when the loop asks
    for the next. `on_block(i, block)` is called with each block before it computes.
    """

    def __init__(self, checkpoint: Checkpoint, device, dtype: torch.dtype):
        self.checkpoint, self.device, self.dtype = checkpoint, torch.device(device), dtype
        self.on_block = lambda i, block: None
        self.names = {i: [name for name in checkpoint.names() if name.startswith(f"layers.{i}.")]
                      for i in range(len(self))}
        # on a GPU: its own queue, so that copies do not wait for what is being computed
        self.queue = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __len__(self) -> int:
        return self.checkpoint.config.n_layers

    def __iter__(self):
        with ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(self.fill, self.shell(0), 0)
            for i in range(len(self)):
                block = upcoming.result()
                if i + 1 < len(self):
                    upcoming = reader.submit(self.fill, self.shell(i + 1), i + 1)
                self.on_block(i, block)
                yield block
                if self.queue:
                    # the GPU may still read its memory; the copies of the next layer go on
                    torch.cuda.current_stream(self.device).synchronize()
                block._modules.clear()      # the caller's loop still holds the block itself
                block._parameters.clear()

    def shell(self, i: int) -> Block:
        """Layer `i` without its numbers. For the main thread: torch's default type is global."""
        config = self.checkpoint.config
        ratio, is_hash = config.compress_ratios[i], config.is_hash(i)
        return empty(lambda: Block(config, ratio, is_hash), self.dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self, block: Block, i: int) -> Block:
        """Read the numbers of layer `i`."""
        with torch.cuda.stream(self.queue) if self.queue else nullcontext():
            raw = self.checkpoint.raw_all(self.names[i], self.device)
            kinds = {name: self.checkpoint.info(name)[0] for name in raw}
            where = self.checkpoint.where

            def read(name, dtype):
                scale = raw.get(scale_name(name))
                return decode(kinds[name], raw[name], scale, dtype, self.device, f"{where}: {name}")

            def stored(name):
                if memory.stays_packed(name, kinds[name], self.device):
                    return raw[name], raw.get(scale_name(name))
                return None

            fill(block, f"layers.{i}.", read, stored, self.dtype, where)
            if self.queue:
                self.queue.synchronize()
        return block


def fill(block: Block, at: str, read, stored, dtype: torch.dtype, where) -> Block:
    """Put numbers into an empty layer whose names begin with `at`.

    `read(name, dtype)` gives them; `stored(name)` gives codes and scale of a matrix that stays as
    it is stored, whose numbers are of type `dtype`, or None. `where` is for errors.
    """
    matrices = {f"{name}.weight": matrix for name, matrix in block.named_modules()
                if isinstance(matrix, Linear)}
    packed = {name: codes for name in matrices if (codes := stored(at + name))}
    state = {name: read(at + name, t.dtype) for name, t in block.state_dict().items()
             if name not in packed}
    block.load_state_dict(state, strict=False, assign=True)
    if block.ffn.gate.is_hash:
        check_table(block.ffn.gate.tid2eid, block.config, f"{where}: {at}ffn.gate.tid2eid")
    for name, (codes, scale) in packed.items():
        matrices[name].store(codes, scale, dtype)
    return block.eval()


def streamed(path, device="cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The model of a checkpoint folder, without MTP blocks.

    It serves `model(ids)`, `model.features` and `minids.generate`. Set `model.layers.on_block` to
    see each block as it is read. Raises `MinidsError`, before it takes memory, where the files are
    not whole or do not hold the model of their config.json.
    """
    checkpoint = Checkpoint(Path(path))
    checkpoint.check()
    config = checkpoint.config
    ratios = config.compress_ratios[:config.n_layers]
    config = config.replace(n_mtp_layers=0, compress_ratios=ratios)
    # everything but the blocks: a model with one plain layer, which is removed
    plain = config.replace(n_layers=1, compress_ratios=(0,), n_hash_layers=0,
                           n_routed_experts=config.n_activated_experts)
    model = empty(lambda: Model(plain), dtype)
    del model.layers
    state = {name: checkpoint.read(name, t.dtype, device) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.layers, model.config = Layers(checkpoint, device, dtype), config
    return model.eval()


def bytes_of_a_pass(path) -> int:
    """Bytes that `streamed` reads for one forward pass: all layers, as they are stored."""
    with _checked(path) as checkpoint:
        return sum(_stored(checkpoint))


@contextmanager
def _checked(path):
    """A checkpoint folder that holds the model of its config.json; else `MinidsError`."""
    with Checkpoint(Path(path)) as checkpoint:
        checkpoint.check()
        yield checkpoint


def _stored(checkpoint: Checkpoint) -> list[int]:
    """The bytes of each layer's tensors, as they are stored."""
    return [memory.stored(checkpoint, checkpoint.find(f"layers.{i}.*"))
            for i in range(checkpoint.config.n_layers)]


def memory_of_a_pass(path, T: int, dtype: torch.dtype = torch.float32, device="cpu") -> int:
    """About how many bytes of memory `report` takes for a text of T tokens.

    Embedding and head stay. The layers take most with the two largest neighbours in memory, each as
    it is stored and, of what does not stay so, decoded; and the activations of one of them.
    """
    with _checked(path) as checkpoint:
        config = checkpoint.config
        layers = [size + memory.weights(checkpoint, i, dtype, device)
                  - memory.stored(checkpoint, memory.packed_names(checkpoint, i, device))
                  for i, size in enumerate(_stored(checkpoint))]
    pairs = [sum(layers[i:i + 2]) for i in range(max(len(layers) - 1, 1))]
    working = max(memory.activations(config, ratio, T, dtype)
                  for ratio in set(config.compress_ratios[:config.n_layers]))
    vocab, size = config.vocab_size, dtype.itemsize
    head = 4 * vocab * (config.dim if size < 4 else 0)      # a copy in float32
    logits = 2 * 4 * vocab * min(T, LOGITS) + T * config.hc_mult * config.dim * size
    return 2 * vocab * config.dim * size + max(max(pairs) + working, head + logits)


@torch.inference_mode()
def report(model: Model, ids: list[int], on_layer=lambda i, rms, load: None) -> dict:
    """What one pass over a text shows. `model` comes from `streamed`, `ids` are one text.

    "nats": the loss of each token after the first; "next": the logits after the last one, vocab;
    and for each layer "rms", the root mean square of the residual streams after it, and "load", the
    number of tokens of each expert. `on_layer` gets these two as soon as layer i has computed.
    `MinidsError` where memory runs out.
    """
    if len(ids) < 2:
        raise MinidsError(f"expected a text of at least 2 tokens, found {len(ids)}")
    rms, loads, E = [], [], model.config.n_routed_experts

    def after(block, args, X):
        rms.append(X.float().pow(2).mean().sqrt().item())
        on_layer(len(rms) - 1, rms[-1], loads[-1])

    def watch(i, block):
        block.register_forward_hook(after)
        block.ffn.gate.register_forward_hook(
            lambda _, __, output: loads.append(output[1].flatten().bincount(minlength=E).tolist()))

    device = model.embed.weight.device
    model.layers.on_block = watch
    try:
        with memory.explained(f"a pass of {len(ids):,} tokens", device):
            y = model.hidden(model.features(torch.tensor([ids], device=device)))[0]      # T d
            nats, targets = [], torch.tensor(ids[1:], device=device)
            # in a long text, the logits of all tokens take more memory than all else
            for start in range(0, len(ids), LOGITS):
                logits = model.project(y[start:start + LOGITS])                  # t vocab
                following = targets[start:start + LOGITS]       # one fewer at the end
                nats += nn.functional.cross_entropy(logits[:len(following)], following,
                                                    reduction="none").tolist()
    finally:
        model.layers.on_block = lambda i, block: None
    return {"nats": nats, "next": logits[-1], "rms": rms, "load": loads}
