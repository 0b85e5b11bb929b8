"""A checkpoint that is larger than memory: the same `Model`, its layers read one after another while it computes.

    model = streamed("DeepSeek-V4-Flash", device="cuda", dtype=torch.bfloat16)
    logits = model(ids)                 # reads every layer once; the next one is read while this one computes

At most two layers are in memory; a file is read from its first byte to its last. Routed experts stay as they are stored, in
FP4 or FP8, and are decoded one by one as they are used: a layer of V4-Flash takes 3.6 GB. The results are those of
`minids.load`, bit for bit. Generation works too, at the price of reading the whole model for each token. The path to a GPU
has been written without one. Reading from the Hub is `minids.weights.remote`'s business.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import nn

from minids.errors import MinidsError
from minids.model import Model
from minids.model.block import Block
from minids.weights.checkpoint import Checkpoint, check_table, empty, numbers, scale_name
from minids.weights.layout import nbytes
from minids.weights.remote import DTYPES

PIECE = 2**25    # bytes that are read at a time


class Layers:
    """The blocks of a checkpoint, for `for` loops: a thread reads the next one while the loop works with this one.

    A block is emptied when the loop asks for the next. `look(i, block)` is called with each block before it computes.
    """

    def __init__(self, checkpoint: Checkpoint, device, dtype: torch.dtype):
        self.checkpoint, self.device, self.dtype = checkpoint, torch.device(device), dtype
        self.look = lambda i, block: None
        self.names = {i: [] for i in range(len(self))}      # of each layer's tensors
        for name in checkpoint.names():
            if name.startswith("layers."):
                self.names[int(name.split(".")[1])].append(name)
        # on a GPU: a queue of its own, so that copies do not wait for what is being computed
        self.queue = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __len__(self) -> int:
        return self.checkpoint.config.n_layers

    def __iter__(self):
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.fill, self.shell(0), 0)
            for i in range(len(self)):
                block = coming.result()
                if i + 1 < len(self):
                    coming = reader.submit(self.fill, self.shell(i + 1), i + 1)
                self.look(i, block)
                yield block
                if self.queue:
                    torch.cuda.synchronize(self.device)     # its memory is still being read: the GPU lags behind
                block._modules.clear()      # whoever loops still holds the block itself
                block._parameters.clear()

    def shell(self, i: int) -> Block:
        """Layer `i` without its numbers. Not for the reader's thread: torch's default type is one for all threads."""
        config = self.checkpoint.config
        return empty(lambda: Block(config, config.compress_ratios[i], config.is_hash(i)), self.dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self, block: Block, i: int) -> Block:
        """Read the numbers of layer `i`."""
        with torch.cuda.stream(self.queue) if self.queue else nullcontext():
            raw = together(self.checkpoint, self.names[i], self.device)
            kinds = {name: self.checkpoint.info(name)[0] for name in raw}
            where = self.checkpoint.path

            def read(name, dtype):
                return numbers(kinds[name], raw[name], raw.get(scale_name(name)), dtype, self.device, f"{where}: {name}")

            def stored(name):
                return raw[name], raw.get(scale_name(name))

            fill(block, f"layers.{i}.", read, stored, self.dtype, where)
            if self.queue:
                self.queue.synchronize()
        return block


def together(checkpoint: Checkpoint, names, device) -> dict[str, torch.Tensor]:
    """{name: tensor as it is stored}, read in the order of the files' bytes. Neighbours in a file share memory."""
    runs = []       # [file, [(name, entry), ...]], without gaps
    for (path, entry), name in sorted(((checkpoint.entry(name), name) for name in names), key=lambda e: (e[0][0], e[0][1][2:])):
        if not runs or runs[-1][0] != path or runs[-1][1][-1][1].end != entry.start:
            runs.append((path, []))
        runs[-1][1].append((name, entry))
    found = {}
    for path, run in runs:
        first, size = run[0][1].start, run[-1][1].end - run[0][1].start
        data = read_bytes(path, first, size, device)
        for name, entry in run:
            dtype, at = DTYPES[entry.dtype], entry.start - first
            t = data[at:at + entry.end - entry.start]
            found[name] = (t.clone() if at % dtype.itemsize else t).view(dtype).view(entry.shape)
    return found


def read_bytes(path, first: int, size: int, device) -> torch.Tensor:
    """Bytes of a file, uint8, read piece by piece; for a GPU, each by way of memory that it can copy from directly."""
    data = torch.empty(size, dtype=torch.uint8, device=device)
    staging = torch.empty(min(PIECE, size), dtype=torch.uint8, pin_memory=True) if data.is_cuda else None
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(first)
            for part in data.split(PIECE):
                piece = part if staging is None else staging[:len(part)]
                if file.readinto(piece.numpy()) != len(part):
                    raise MinidsError(f"{path} ends before byte {first + size}: it changed since it was opened")
                if staging is not None:
                    part.copy_(piece)
    except OSError as error:
        raise MinidsError(f"{path} cannot be read: {error.strerror or error}") from None
    return data


def fill(block: Block, at: str, read, stored, dtype: torch.dtype, where) -> Block:
    """Put numbers into an empty layer whose names begin with `at`.

    `read(name, dtype)` gives them; `stored(name)` gives codes and scale of a routed expert's
    matrix, which is decoded to `dtype` as it is used. `where` is for errors.
    """
    state = {name: read(at + name, t.dtype) for name, t in block.state_dict().items() if not name.startswith("ffn.experts.")}
    block.load_state_dict(state, strict=False, assign=True)
    if block.ffn.gate.is_hash:
        check_table(block.ffn.gate.tid2eid, block.config, f"{where}: {at}ffn.gate.tid2eid")
    for e, expert in enumerate(block.ffn.experts):
        for w in ("w1", "w2", "w3"):
            getattr(expert, w).store(*stored(f"{at}ffn.experts.{e}.{w}.weight"), dtype)
    return block.eval()


def streamed(path, device="cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The model of a checkpoint folder, for `model(ids)`, `model.features` and `minids.generate`; without MTP blocks.

    `model.layers.look` can be set to see each block as it comes. Raises `MinidsError`, before it takes memory, where the
    files are not whole or do not hold the model of their config.json.
    """
    checkpoint = Checkpoint(path)
    checkpoint.check()
    config = checkpoint.config
    config = config.replace(n_mtp_layers=0, compress_ratios=config.compress_ratios[:config.n_layers])
    # everything but the blocks: a model of one plain layer, which goes again
    plain = config.replace(n_layers=1, compress_ratios=(0,), n_hash_layers=0, n_routed_experts=config.n_activated_experts)
    model = empty(lambda: Model(plain), dtype)
    del model.layers
    model.load_state_dict({name: checkpoint.read(name, t.dtype, device) for name, t in model.state_dict().items()}, assign=True)
    model.layers, model.config = Layers(checkpoint, device, dtype), config
    return model.eval()


def bytes_of_a_pass(path) -> int:
    """Bytes that `streamed` reads for one forward pass: all tensors of all layers, as they are stored."""
    with Checkpoint(path) as checkpoint:
        return sum(nbytes(checkpoint.info(name)) for name in checkpoint.names() if name.startswith("layers."))


@torch.inference_mode()
def report(model: Model, ids: list[int]) -> dict:
    """What one pass over a text shows. `model` is `streamed`'s, `ids` are one text.

    "nats": the loss of each token after the first; "next": the logits after the last one, vocab; and for each layer
    "size", the root mean square of the streams behind it, and "load", tokens for each expert.
    """
    if len(ids) < 2:
        raise MinidsError(f"expected a text of at least 2 tokens, found {len(ids)}")
    sizes, loads = [], []

    def look(i, block):
        block.register_forward_hook(lambda _, __, X: sizes.append(X.float().pow(2).mean().sqrt().item()))
        block.ffn.gate.register_forward_hook(
            lambda _, __, chosen: loads.append(chosen[1].flatten().bincount(minlength=model.config.n_routed_experts).tolist()))

    model.layers.look = look
    try:
        logits = model(torch.tensor([ids], device=model.embed.weight.device))[0]                  # T vocab
    finally:
        model.layers.look = lambda i, block: None
    nats = nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:], device=logits.device), reduction="none")
    return {"nats": nats.tolist(), "next": logits[-1], "size": sizes, "load": loads}
