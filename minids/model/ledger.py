"""What a training pass brings along and what it takes home, beside ids and logits.

Report 2.1 (the sequence-wise balance loss), 4.1 (packing), 4.2 (dense attention before sparse, anticipatory routing).
A pass without a ledger is a plain one. The losses are weighed by training.
"""

from dataclasses import dataclass, field

import torch

from minids.model.packing import Packing


@dataclass
class Ledger:
    """For one pass: make a new one for the next.

    `packing` keeps documents of a row apart. `dense` lets CSA layers read all complete entries. `experts` are choices to
    replay: one tensor, N x K, for each gate that routes by score, in the order of the layers (MTP blocks last).
    `balance` and `index` ask for the two losses. Afterwards `chosen` holds the choices made, as `experts` takes them.
    """

    packing: Packing | None = None
    dense: bool = False
    experts: list | None = None
    balance: bool = False
    index: bool = False
    chosen: list = field(default_factory=list)
    balance_losses: list = field(default_factory=list)
    index_losses: list = field(default_factory=list)

    def choice(self):
        """The experts that the next gate has to take, N x K, or None where it is free."""
        return None if self.experts is None else self.experts[len(self.chosen)]

    @property
    def balance_loss(self) -> torch.Tensor | None:
        """The sequence-wise balance loss, mean over gates; None where none was asked for."""
        return torch.stack(self.balance_losses).mean() if self.balance_losses else None

    @property
    def index_loss(self) -> torch.Tensor | None:
        """The indexer's loss, in nats, mean over CSA layers; None where none was asked for."""
        return torch.stack(self.index_losses).mean() if self.index_losses else None


def sequence_balance(s, experts, B: int):
    """sum_e f_e P_e, mean over B sequences: 1 when all experts are used alike. s: N E affinities, experts: N K, N = B T."""
    E, K = s.shape[-1], experts.shape[-1]
    s = (s / s.sum(-1, keepdim=True)).view(B, -1, E)                                     # B T E
    chosen = torch.zeros(B, E, device=s.device)
    chosen.scatter_add_(1, experts.reshape(B, -1), torch.ones(B, s.shape[1] * K, device=s.device))
    f = chosen * (E / (K * s.shape[1]))                                                  # B E: 1 where the load is even
    return (f * s.mean(1)).sum(-1).mean()


def index_divergence(p, scores, unseen):
    """KL(attention || indexer), mean over the queries that see an entry; the attention, summed over heads, is the target.

    p: B T H S, the attention's weights on entries; scores: B T S, the indexer's; unseen: T S or B T S, -inf where a query
    does not see an entry, or None. DeepSeek-V3.2 (arXiv 2512.02556, 2.1), applied to compressed entries: V4's own recipe
    is not published. The gradient reaches the scores alone.
    """
    target = p.detach().float().sum(2)                                                   # B T S
    if unseen is not None:
        scores = scores.masked_fill(unseen != 0, -1e9)                                   # a finite -inf: some queries see none
    mass = target.sum(-1)
    target = target / mass.clamp_min(1e-20)[..., None]
    kl = (torch.xlogy(target, target) - target * scores.log_softmax(-1)).sum(-1)         # B T
    sees = mass > 0
    return (kl * sees).sum() / sees.sum().clamp_min(1)
