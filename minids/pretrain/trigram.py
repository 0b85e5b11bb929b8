"""A strong trigram model over the same tokens: the baseline that a trained model has to beat.

Interpolated Kneser-Ney smoothing with three discounts for each order (Chen and Goodman 1999,
"modified" Kneser-Ney), in NumPy. Not part of the report. It keeps a vocabulary x vocabulary table,
so it is meant for small vocabularies.
"""

import numpy as np

from minids.errors import MinidsError


class Trigram:
    """P(c | a, b), from a stream of token ids.

    Trigrams use counts; bigrams and unigrams use the number of different words before them
    (Kneser-Ney). Each order gives up a discount, which goes to the order below; below the unigrams
    all ids are equally likely.
    """

    def __init__(self, ids, vocab_size: int):
        ids = _checked(ids, vocab_size)
        V = self.vocab_size = vocab_size
        keys = (ids[:-2] * V + ids[1:-1]) * V + ids[2:]
        self.trigrams, counts = np.unique(keys, return_counts=True)         # sorted
        # V V: for each pair b c the number of different a before it; and V: of b before c
        bigrams = np.bincount(self.trigrams % V**2, minlength=V * V).reshape(V, V)
        p1 = _interpolate((bigrams > 0).sum(0)[None], np.full(V, 1 / V))[0]
        self.p2 = _interpolate(bigrams, p1)                                 # V V: P(c | b)
        discounted = counts - _discounts(counts)[np.minimum(counts, 3)]
        contexts, inverse = np.unique(self.trigrams // V, return_inverse=True)
        total = np.bincount(inverse, weights=counts)
        self.contexts = contexts                                            # sorted pairs a b
        self.p3 = discounted / total[inverse]                               # for each trigram
        self.left_over = 1 - np.bincount(inverse, weights=discounted) / total   # for each context

    def prob(self, a, b, c):
        """P(c | a, b) of arrays of ids that broadcast together."""
        a, b, c = np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in (a, b, c)))
        pair, V = a * self.vocab_size + b, self.vocab_size
        left_over = _look_up(self.contexts, self.left_over, pair, missing=1.0)
        p3 = _look_up(self.trigrams, self.p3, pair * V + c, missing=0.0)
        return p3 + left_over * self.p2[b, c]

    def nll(self, ids):
        """-log P of each of ids[1:], in nats, given the two ids before it (one, for the first)."""
        ids = _checked(ids, self.vocab_size)
        first = self.p2[ids[:1], ids[1:2]]
        return -np.log(np.concatenate([first, self.prob(ids[:-2], ids[1:-1], ids[2:])]))

    def loss(self, ids) -> float:
        """Mean loss on a stream of ids, in nats per token."""
        return float(self.nll(ids).mean())


def _discounts(counts):
    """The discount of a count of 0, 1, 2, and 3 or more, from the numbers of counts 1 to 4."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:        # too little text for the estimate
        return np.array([0, 0.5, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(estimate, [0, 0.05, 0.05, 0.05], [0, 0.95, 1.95, 2.95])


def _interpolate(counts, lower):
    """Rows of discounted counts, plus the discounts times the lower order.

    Rows without counts are the lower order.
    """
    total = counts.sum(1, keepdims=True)
    p = (counts - _discounts(counts)[np.minimum(counts, 3)]) / np.maximum(total, 1)
    return p + (1 - p.sum(1, keepdims=True)) * lower


def _look_up(keys, values, wanted, missing: float):
    """The values of the wanted keys; `missing` for those that are not among the sorted keys."""
    i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[i] == wanted, values[i], missing)


def _checked(ids, vocab_size: int):
    """The ids as int64; `MinidsError` unless they are a stream of ids of this vocabulary."""
    ids = np.asarray(ids, dtype=np.int64)
    if ids.ndim != 1 or len(ids) < 3:
        raise MinidsError(f"expected a stream of at least 3 token ids, found an array of shape "
                          f"{ids.shape}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise MinidsError(f"expected token ids from 0 to {vocab_size - 1}, found {ids.min()} to "
                          f"{ids.max()}")
    return ids
