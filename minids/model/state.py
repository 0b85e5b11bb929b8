"""What decoding remembers: the state of a batch of sequences, all at the same position.

Report 3.6.1. For each layer: the last w window keys, the compressed entries so far, the tokens
whose window is not complete, and with overlap the previous window's a-half. Its size is what
`minids.cost.kv_bytes` counts, apart from the small tails. A state can go back: by some tokens of
the last call (`rewind`: drafts that were rejected), or to an earlier point (`mark`, `restore`).

Gradients flow through a state where torch records them: answers that share a prompt share its pass
(`minids.posttrain.grpo`). To decode, call the model under `torch.inference_mode()`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minids.config import CSA_RATE, Config
from minids.errors import MinidsError

Pair = tuple[Tensor, Tensor]


class CompressorState:
    """Entries so far (room for `max_len / ratio` of them), and what the next entry needs."""

    def __init__(self, batch: int, max_len: int, ratio: int, width: int, dtype: torch.dtype,
                 device: torch.device | str) -> None:
        self.entries = torch.zeros(batch, max_len // ratio, width, dtype=dtype, device=device)
        self.count, self.ratio = 0, ratio
        # pairs (kv, z), or None:
        self.tail: Pair | None = None       # of the tokens after the last complete window: B <m fc
        self.before: Pair | None = None     # of the last complete window's a-half, ape added: B m c
        # for `rewind`, of the last call:
        self.read: Pair | None = None       # of the waiting tokens and the new ones: B T fc
        self.halves: Pair | None = None     # of the a-halves of the windows they filled: B n m c
        self.earlier: Pair | None = None    # `before` as it was

    def resume(self, kv: Tensor, z: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The waiting tokens followed by new ones; tokens that do not fill a window of m wait."""
        if self.tail is not None:
            kv, z = torch.cat([self.tail[0], kv], dim=1), torch.cat([self.tail[1], z], dim=1)
        self.read, self.halves, self.earlier = (kv, z), None, self.before
        full = kv.shape[1] // m * m
        self.tail = (kv[:, full:], z[:, full:]) if full else (kv, z)
        return kv, z

    def carry(self, kv: Tensor, z: Tensor) -> None:
        """Keep the a-halves, B n m c, ape added: the last one serves the next window."""
        self.halves, self.before = (kv, z), (kv[:, -1], z[:, -1])

    def append(self, new: Tensor) -> Tensor:
        """Add entries, B n width; returns all of them."""
        if torch.is_grad_enabled():      # the backward pass needs what earlier calls have read
            self.entries = self.entries.clone()
        self.entries[:, self.count:self.count + new.shape[1]] = new
        self.count += new.shape[1]
        return self.all()

    def all(self) -> Tensor:
        """The entries so far: B S width."""
        return self.entries[:, :self.count]

    def nbytes(self) -> tuple[int, int, int]:
        """Bytes of the entries so far, of `before` and of `tail`."""
        size = lambda pair: sum(t.nbytes for t in pair or ())
        return self.all().nbytes, size(self.before), size(self.tail)

    def rewind(self, n: int) -> None:
        """Forget the last n tokens of the last call."""
        assert self.read is not None        # `State.rewind` has checked that
        kv, z = self.read
        end, m = kv.shape[1] - n, self.ratio
        windows = end // m
        self.tail = kv[:, windows * m:end], z[:, windows * m:end]
        self.count -= kv.shape[1] // m - windows
        if self.halves:
            last = windows - 1
            halves = self.halves[0][:, last], self.halves[1][:, last]
            self.before = halves if windows else self.earlier
        self.read = None

    def mark(self) -> tuple:
        """See `State.mark`."""
        # entries are only ever added after the others, so their number is enough
        return self.count, self.tail, self.before

    def restore(self, mark: tuple) -> None:
        self.count, self.tail, self.before = mark
        self.read = self.halves = self.earlier = None

    def select(self, rows: Tensor) -> None:
        self.entries = self.entries[rows]
        if self.tail is not None:
            self.tail = self.tail[0][rows], self.tail[1][rows]
        if self.before is not None:
            self.before = self.before[0][rows], self.before[1][rows]
        self.read = self.halves = self.earlier = None


class LayerState:
    """One layer's state: window keys, and with compression the entries and (CSA) the index keys."""

    def __init__(self, config: Config, ratio: int, batch: int, max_len: int, dtype: torch.dtype,
                 device: torch.device | str) -> None:
        make = lambda width: CompressorState(batch, max_len, ratio, width, dtype, device)
        self.window = torch.zeros(batch, config.window_size, config.head_dim,
                                  dtype=dtype, device=device)
        self.compressor = make(config.head_dim) if ratio else None
        self.indexer = make(config.index_head_dim) if ratio == CSA_RATE else None
        # the window keys before the last call, and its own: B w+T c
        self.read: Tensor | None = None

    @property
    def compressors(self) -> list[CompressorState]:
        """The states of the layer's compressors: of the entries, and (CSA) of the index keys."""
        return [part for part in (self.compressor, self.indexer) if part is not None]

    def extend(self, kv: Tensor) -> Tensor:
        """The last w window keys followed by new ones: B w+T c. Remembers the last w of these."""
        kv = torch.cat([self.window, kv], dim=1)
        self.read, self.window = kv, kv[:, kv.shape[1] - self.window.shape[1]:]
        return kv

    def rewind(self, n: int) -> None:
        """Forget the last n tokens of the last call."""
        assert self.read is not None        # `State.rewind` has checked that
        end = self.read.shape[1] - n
        self.window, self.read = self.read[:, end - self.window.shape[1]:end], None
        for part in self.compressors:
            part.rewind(n)

    def mark(self) -> tuple:
        return self.window, [part.mark() for part in self.compressors]

    def restore(self, mark: tuple) -> None:
        self.window, marks = mark
        self.read = None
        for part, part_mark in zip(self.compressors, marks):
            part.restore(part_mark)

    def select(self, rows: Tensor) -> None:
        self.window, self.read = self.window[rows], None
        for part in self.compressors:
            part.select(rows)


class State:
    """The decode state of `batch` sequences of at most `max_len` tokens.

    `ratios` are the layers' compression ratios; `pos` counts the tokens seen so far.
    """

    def __init__(self, config: Config, ratios: Sequence[int], batch: int, max_len: int,
                 dtype: torch.dtype, device: torch.device | str) -> None:
        longest = config.max_seq_len
        if not 0 < max_len <= longest:
            raise MinidsError(f"max_len: expected 1 to {longest} (the model's max_seq_len), "
                              f"found {max_len}")
        self.batch, self.max_len, self.pos = batch, max_len, 0
        self.layers = [LayerState(config, ratio, batch, max_len, dtype, device) for ratio in ratios]

    def check(self, ids: Tensor) -> None:
        """Raise `MinidsError` unless `ids` (B T) can follow what this state has seen."""
        B, T = ids.shape
        if B != self.batch:
            raise MinidsError(f"the state holds {self.batch} sequences, found a batch of {B}")
        if self.pos + T > self.max_len:
            raise MinidsError(f"the state has room for {self.max_len} tokens: {self.pos} seen and "
                              f"{T} more do not fit. Ask new_state for a larger max_len (at most "
                              f"the model's max_seq_len).")

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens, which the last call must have read: as if it had not."""
        layer = self.layers[0]
        last = 0 if layer.read is None else layer.read.shape[1] - layer.window.shape[1]
        if not 0 <= n <= last:
            raise MinidsError(f"rewind: expected 0 to {last} tokens, as many as the last call "
                              f"read; found {n}")
        if n:
            for layer in self.layers:
                layer.rewind(n)
            self.pos -= n

    def mark(self) -> tuple:
        """What `restore` needs to come back to this point. It takes no memory of its own."""
        return self.pos, [layer.mark() for layer in self.layers]

    def restore(self, mark: tuple) -> None:
        """Forget all that was read since `mark`, which must be newer than the last `select`."""
        self.pos, marks = mark
        for layer, layer_mark in zip(self.layers, marks):
            layer.restore(layer_mark)

    def nbytes(self) -> dict[str, int]:
        """Bytes of the state's tensors, by what they hold; room for later entries does not count.

        "overlap": the a-half of the window before the next one; "waiting": the tokens whose window
        is not complete. The other names are those of `minids.cost.kv_bytes`.
        """
        counts = dict.fromkeys(("window", "CSA entries", "CSA index keys", "HCA entries", "overlap",
                                "waiting"), 0)
        for layer in self.layers:
            counts["window"] += layer.window.nbytes
            for part in layer.compressors:
                if layer.indexer is None:
                    name = "HCA entries"
                else:
                    name = "CSA entries" if part is layer.compressor else "CSA index keys"
                entries, overlap, waiting = part.nbytes()
                counts[name] += entries
                counts["overlap"] += overlap
                counts["waiting"] += waiting
        return counts

    def select(self, rows: Tensor) -> None:
        """Hold only some of the sequences, or some more than once; rows: numbers, or a mask."""
        for layer in self.layers:
            layer.select(rows)
        self.batch = len(self.layers[0].window)
