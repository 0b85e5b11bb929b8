"""What a query does not see, as numbers to add to scores: 0, or -inf.

Report 2.3: the sliding window, and compressed entries that are not complete yet. For rows of
several documents see `packing.py`.
"""

import torch


def outside(pos: int, n: int, b: int, before: int, w: int, device):
    """nb x before+b: -inf where a key of the block is not among the w up to its query, or lies
    before position 0; else 0. None: 0 everywhere."""
    if b == 1 and before == w - 1 <= pos:
        return None
    query = torch.arange(n * b, device=device).view(n, b, 1)                     # from pos
    start = b * torch.arange(n, device=device).view(n, 1, 1) - before            # of a block's keys
    key = torch.arange(before + b, device=device) + start                        # n 1 before+b
    return forbid((key > query) | (key <= query - w) | (key < -pos)).view(n * b, before + b)


def incomplete(pos: int, T: int, S: int, ratio: int, device):
    """T x S: -inf where entry s is not complete for the query at pos + t, that is where
    s >= floor((pos + t + 1) / ratio); else 0. None: 0 everywhere."""
    if (pos + 1) // ratio >= S:
        return None
    query = torch.arange(pos + 1, pos + T + 1, device=device)
    return forbid(torch.arange(S, device=device) >= (query // ratio)[:, None])


def forbid(mask):
    """-inf where the mask holds, else 0: to be added to scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))
