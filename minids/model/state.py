"""What decoding remembers: the state of a batch of sequences, all at the same position.

Report 3.6.1. For each layer: the last w window keys, the compressed entries so far, the tokens
whose window is not complete, and with overlap the previous window's a-half. Its size is what
`minids.cost.kv_bytes` counts, apart from the small tails. A state can go back: by some tokens of
the last call (`rewind`: drafts that were rejected), or to an earlier point (`mark`, `restore`).

Gradients flow through a state where torch records them: answers that share a prompt share its pass
(`minids.posttrain.grpo`). To decode, call the model under `torch.inference_mode()`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minids.config import CSA_RATE, Config
from minids.errors import MinidsError

Pair = tuple[Tensor, Tensor]

STEPS = 32      # tokens, at least, for which a step makes room


class CompressorState:
    """Entries so far (room for `max_len / ratio` of them), and what the next entry needs."""

    def __init__(self, batch: int, max_len: int, ratio: int, width: int, dtype: torch.dtype,
                 device: torch.device | str) -> None:
        self.entries = torch.zeros(batch, max_len // ratio, width, dtype=dtype, device=device)
        self.count, self.ratio = 0, ratio
        # pairs (kv, z), or None:
        self.tokens: Pair | None = None     # of which [:, first:last] wait: B any fc
        self.before: Pair | None = None     # of the last complete window's a-half, ape added: B m c
        self.first = self.last = 0
        self.room = 0                       # of `tokens`, where `step` made it: it may write there
        # for `rewind`, of the last call:
        self.start: int | None = None       # `first` as it was
        self.halves: Pair | None = None     # of the a-halves of the windows it filled: B n m c
        self.earlier: Pair | None = None    # `before` as it was

    @property
    def tail(self) -> Pair | None:
        """kv and z of the tokens after the last complete window: B <m fc. None: no token yet."""
        if self.tokens is None:
            return None
        waiting = slice(self.first, self.last)
        return self.tokens[0][:, waiting], self.tokens[1][:, waiting]

    @tail.setter
    def tail(self, pair: Pair | None) -> None:
        self.tokens, self.room, self.start = pair, 0, None
        self.first, self.last = 0, 0 if pair is None else pair[0].shape[1]

    def resume(self, kv: Tensor, z: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The waiting tokens followed by new ones; tokens that do not fill a window of m wait."""
        waiting = self.tail
        if waiting is not None:
            kv, z = torch.cat([waiting[0], kv], dim=1), torch.cat([waiting[1], z], dim=1)
        self.halves, self.earlier = None, self.before
        self.tokens, self.room, self.start = (kv, z), 0, 0
        self.first, self.last = kv.shape[1] // m * m, kv.shape[1]
        return kv, z

    def has_read(self, pos: int) -> bool:
        """Whether this state is that of `pos` tokens, and has room for one more."""
        return (self.count * self.ratio + self.last - self.first == pos
                and (pos + 1) // self.ratio <= self.entries.shape[1])

    def step(self) -> tuple[Tensor, Tensor, int]:
        """The tensors kv and z, contiguous, and the place in them where one more token is to be
        written, for which there is room; no gradient. The tokens before it stay where they are."""
        if self.last >= self.room:
            waiting, self.room = self.tail, max(2 * self.ratio, STEPS)
            B, _, width = self.entries.shape
            fc = 2 * width if self.ratio == CSA_RATE else width
            kv, z = (torch.empty(B, self.room, fc, device=self.entries.device) for _ in range(2))
            self.first, self.last = 0, self.last - self.first
            if waiting is not None:
                kv[:, :self.last], z[:, :self.last] = waiting
            self.tokens = kv, z
        if self.entries.requires_grad:      # the backward pass needs what earlier calls have read
            self.entries = self.entries.detach().clone()
        assert self.tokens is not None
        self.start, self.halves, self.earlier = self.first, None, self.before
        self.last += 1
        return *self.tokens, self.last - 1

    def carry(self, kv: Tensor, z: Tensor) -> None:
        """Keep the a-halves, B n m c, ape added: the last one serves the next window."""
        self.halves, self.before = (kv, z), (kv[:, -1], z[:, -1])

    def complete(self, halves: Pair | None) -> None:
        """A window is full, and its entry is written; halves: its a-halves, B m c, ape added."""
        self.count, self.first = self.count + 1, self.last
        if halves is not None:
            self.before = halves
            self.halves = halves[0][:, None], halves[1][:, None]

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
        assert self.start is not None       # `State.rewind` has checked that
        start, m = self.start, self.ratio
        self.last -= n
        windows = (self.last - start) // m
        self.count -= (self.first - start) // m - windows
        self.first, self.start = start + windows * m, None
        if self.halves:
            last = windows - 1
            halves = self.halves[0][:, last], self.halves[1][:, last]
            self.before = halves if windows else self.earlier

    def mark(self) -> tuple:
        """See `State.mark`."""
        # entries are only ever added after the others, so their number is enough; so are tokens
        return self.count, self.before, self.tokens, self.first, self.last, self.room

    def restore(self, mark: tuple) -> None:
        self.count, self.before, self.tokens, self.first, self.last, self.room = mark
        self.start = self.halves = self.earlier = None

    def select(self, rows: Tensor) -> None:
        self.entries = self.entries[rows]
        if self.tail is not None:
            self.tail = self.tail[0][rows], self.tail[1][rows]
        if self.before is not None:
            self.before = self.before[0][rows], self.before[1][rows]
        self.start = self.halves = self.earlier = None


class LayerState:
    """One layer's state: window keys, and with compression the entries and (CSA) the index keys."""

    def __init__(self, config: Config, ratio: int, batch: int, max_len: int, dtype: torch.dtype,
                 device: torch.device | str) -> None:
        make = lambda width: CompressorState(batch, max_len, ratio, width, dtype, device)
        self.size = config.window_size
        # the window keys and, before them, others: B any c; the window ends at `end`
        self.keys = torch.zeros(batch, self.size, config.head_dim, dtype=dtype, device=device)
        self.end = self.size
        self.room = 0           # of `keys`, where `step` made it: it may write there
        self.new = 0            # tokens of the last call, which `rewind` can forget
        self.compressor = make(config.head_dim) if ratio else None
        self.indexer = make(config.index_head_dim) if ratio == CSA_RATE else None
        self.weights: Any = None            # of the layer, as `decoding` uses them

    @property
    def window(self) -> Tensor:
        """The last w window keys: B w c, zeros before the first token's."""
        return self.keys[:, self.end - self.size:self.end]

    @window.setter
    def window(self, keys: Tensor) -> None:
        self.keys, self.end, self.room, self.new = keys, keys.shape[1], 0, 0

    @property
    def compressors(self) -> list[CompressorState]:
        """The states of the layer's compressors: of the entries, and (CSA) of the index keys."""
        return [part for part in (self.compressor, self.indexer) if part is not None]

    def extend(self, kv: Tensor) -> Tensor:
        """The last w window keys followed by new ones: B w+T c. Remembers the last w of these."""
        T, kv = kv.shape[1], torch.cat([self.window, kv], dim=1)
        self.window, self.new = kv, T
        return kv

    def step(self) -> tuple[Tensor, int]:
        """The tensor of keys, contiguous, and the place in it where the key of one more token is
        to be written, for which there is room; no gradient."""
        if self.end >= self.room:
            keys = torch.empty(len(self.keys), self.size + max(self.size, STEPS),
                               self.keys.shape[2], dtype=self.keys.dtype, device=self.keys.device)
            keys[:, :self.size] = self.window
            self.keys, self.end, self.room = keys, self.size, keys.shape[1]
        self.end, self.new = self.end + 1, 1
        return self.keys, self.end - 1

    def rewind(self, n: int) -> None:
        """Forget the last n tokens of the last call."""
        self.end, self.new = self.end - n, 0
        for part in self.compressors:
            part.rewind(n)

    def mark(self) -> tuple:
        """See `State.mark`."""
        # later keys are written after these, or elsewhere
        return self.keys, self.end, self.room, [part.mark() for part in self.compressors]

    def restore(self, mark: tuple) -> None:
        self.keys, self.end, self.room, marks = mark
        self.new = 0
        for part, part_mark in zip(self.compressors, marks):
            part.restore(part_mark)

    def select(self, rows: Tensor) -> None:
        self.window = self.window[rows]
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
        last = self.layers[0].new
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
        self.batch = len(self.layers[0].keys)
