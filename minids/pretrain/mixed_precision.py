"""Training in bfloat16: the model computes in bfloat16, and float32 masters are updated.

Report 4.2 trains in mixed precision. An update is often smaller than the distance between two
bfloat16 numbers, and would be lost if it were added to them; gradients are summed in float32 for
the same reason. Checkpoints hold the masters.
"""

import torch

from minids.model.transformer import Model
from minids.weights.checkpoint import empty_model


def computing_copy(masters: Model, dtype: torch.dtype = torch.bfloat16) -> Model:
    """A copy of float32 `masters` that computes in `dtype` and adds its gradients to theirs.

    The parameters that V4 keeps in float32 (norms, sinks, gate biases, hyper-connections) are
    shared, not copied.
    """
    copy = empty_model(masters.config, dtype)
    dtypes = {name: t.dtype for name, t in copy.state_dict().items()}
    state = {name: t.to(dtypes[name]) for name, t in masters.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    for block, master in zip((*copy.layers, *copy.mtp), (*masters.layers, *masters.mtp)):
        block.maps = master.maps

    def hand_over(p, master):
        master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
        p.grad = None

    for p, master in zip(copy.parameters(), masters.parameters()):
        p.register_post_accumulate_grad_hook(lambda p, master=master: hand_over(p, master))
    return copy.train()


@torch.no_grad()
def refresh(copy: Model, masters: Model) -> None:
    """Round the masters into their copy: after each step."""
    pairs = [(p, q) for p, q in zip(copy.parameters(), masters.parameters()) if p.dtype != q.dtype]
    if pairs:
        torch._foreach_copy_([p for p, _ in pairs], [q for _, q in pairs])
