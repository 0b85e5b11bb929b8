"""What decoding remembers: the state of a batch of sequences, all at the same position.

Report 3.6.1. For each layer: the last w window keys, the compressed entries so far, the tokens
whose window is not complete, and with overlap the previous window's a-half. Its size is what
`minids.cost.kv_bytes` counts, apart from the small tails. A state can go back: by some tokens of
the last call (`rewind`: drafts that were rejected), or to an earlier point (`mark`, `restore`).

Gradients flow through a state where torch records them: answers that share a prompt share its pass
(`minids.posttrain.grpo`). To decode, call the model under `torch.inference_mode()`.
"""

import torch

from minids.config import CSA_RATE
from minids.errors import MinidsError


class CompressorState:
    """Entries so far (room for `max_len / ratio` of them), and what the next entry needs."""

    def __init__(self, batch, max_len, ratio, width, dtype, device):
        self.entries = torch.zeros(batch, max_len // ratio, width, dtype=dtype, device=device)
        self.count, self.ratio = 0, ratio
        self.tail = None      # (kv, z) of the tokens after the last complete window: B <m fc
        self.before = None    # (kv, z) of the last complete window's a-half, ape added: B m c
        # for `rewind`, of the last call:
        self.read = None      # (kv, z) of the waiting tokens and the new ones: B T fc
        self.halves = None    # (kv, z) of the a-halves of the windows that they filled: B n m c
        self.earlier = None   # `before` as it was

    def resume(self, kv, z, m: int):
        """The waiting tokens followed by new ones; those wait that do not fill a window of m."""
        if self.tail is not None:
            kv, z = torch.cat([self.tail[0], kv], dim=1), torch.cat([self.tail[1], z], dim=1)
        self.read, self.halves, self.earlier = (kv, z), None, self.before
        full = kv.shape[1] // m * m
        self.tail = (kv[:, full:], z[:, full:]) if full else (kv, z)
        return kv, z

    def carry(self, kv, z):
        """Keep the a-halves, B n m c, ape added: the last one serves the next window."""
        self.halves, self.before = (kv, z), (kv[:, -1], z[:, -1])

    def append(self, new):
        """Add entries, B n width; returns all of them."""
        if torch.is_grad_enabled():      # the backward pass needs what earlier calls have read
            self.entries = self.entries.clone()
        self.entries[:, self.count:self.count + new.shape[1]] = new
        self.count += new.shape[1]
        return self.all()

    def all(self):
        """The entries so far: B S width."""
        return self.entries[:, :self.count]

    def rewind(self, n: int):
        """Forget the last n tokens of the last call."""
        kv, z = self.read
        end, m = kv.shape[1] - n, self.ratio
        windows = end // m
        self.tail = kv[:, windows * m:end], z[:, windows * m:end]
        self.count -= kv.shape[1] // m - windows
        if self.halves:
            halves = self.halves[0][:, windows - 1], self.halves[1][:, windows - 1]
            self.before = halves if windows else self.earlier
        self.read = None

    def mark(self):
        # entries are only ever added after the others, so their number is enough
        return self.count, self.tail, self.before

    def restore(self, mark):
        self.count, self.tail, self.before = mark
        self.read = self.halves = self.earlier = None

    def select(self, rows):
        self.entries = self.entries[rows]
        self.tail, self.before = (pair and tuple(t[rows] for t in pair)
                                  for pair in (self.tail, self.before))
        self.read = self.halves = self.earlier = None


class LayerState:
    """One layer's state: window keys, and with compression the entries and (CSA) the index keys."""

    def __init__(self, config, ratio, batch, max_len, dtype, device):
        make = lambda width: CompressorState(batch, max_len, ratio, width, dtype, device)
        self.window = torch.zeros(batch, config.window_size, config.head_dim, dtype=dtype, device=device)
        self.compressor = make(config.head_dim) if ratio else None
        self.indexer = make(config.index_head_dim) if ratio == CSA_RATE else None
        self.read = None      # the window keys before the last call, and those that it read: B w+T c

    @property
    def compressors(self) -> list[CompressorState]:
        """The states of the layer's compressors: none, the entries', or the entries' and the keys'."""
        return [part for part in (self.compressor, self.indexer) if part is not None]

    def extend(self, kv):
        """The last w window keys followed by new ones: B w+T c. Remembers the last w of these."""
        self.read = torch.cat([self.window, kv], dim=1)
        self.window = self.read[:, self.read.shape[1] - self.window.shape[1]:]
        return self.read

    def rewind(self, n: int):
        """Forget the last n tokens of the last call."""
        end = self.read.shape[1] - n
        self.window, self.read = self.read[:, end - self.window.shape[1]:end], None
        for part in self.compressors:
            part.rewind(n)

    def mark(self):
        return self.window, [part.mark() for part in self.compressors]

    def restore(self, mark):
        self.window, marks = mark
        self.read = None
        for part, part_mark in zip(self.compressors, marks):
            part.restore(part_mark)

    def select(self, rows):
        self.window, self.read = self.window[rows], None
        for part in self.compressors:
            part.select(rows)


class State:
    """The decode state of `batch` sequences of at most `max_len` tokens, for layers of these ratios.

    `pos` counts the tokens seen so far.
    """

    def __init__(self, config, ratios, batch: int, max_len: int, dtype, device):
        longest = config.max_seq_len
        if not 0 < max_len <= longest:
            raise MinidsError(f"max_len: expected 1 to {longest} (the model's max_seq_len), "
                              f"found {max_len}")
        self.batch, self.max_len, self.pos = batch, max_len, 0
        self.layers = [LayerState(config, ratio, batch, max_len, dtype, device) for ratio in ratios]

    def check(self, ids):
        """Raise `MinidsError` unless `ids` (B T) can follow what this state has seen."""
        B, T = ids.shape
        if B != self.batch:
            raise MinidsError(f"the state holds {self.batch} sequences, found a batch of {B}")
        if self.pos + T > self.max_len:
            raise MinidsError(f"the state has room for {self.max_len} tokens: {self.pos} seen and "
                              f"{T} more do not fit. Ask new_state for a larger max_len (at most "
                              f"the model's max_seq_len).")

    def rewind(self, n: int):
        """Forget the last `n` tokens, which the last call must have read: as if it had not."""
        layer = self.layers[0]
        last = 0 if layer.read is None else layer.read.shape[1] - layer.window.shape[1]
        if not 0 <= n <= last:
            raise MinidsError(f"rewind: expected 0 to {last} tokens, as many as the last call read; "
                              f"found {n}")
        if n:
            for layer in self.layers:
                layer.rewind(n)
            self.pos -= n

    def mark(self):
        """What `restore` needs to come back to this point. It takes no memory of its own."""
        return self.pos, [layer.mark() for layer in self.layers]

    def restore(self, mark):
        """Forget all that was read since `mark`, a value that this state gave after its last `select`."""
        self.pos, marks = mark
        for layer, layer_mark in zip(self.layers, marks):
            layer.restore(layer_mark)

    def select(self, rows):
        """Hold only some of the sequences, or some more than once; rows: numbers, or a mask."""
        for layer in self.layers:
            layer.select(rows)
        self.batch = len(self.layers[0].window)
