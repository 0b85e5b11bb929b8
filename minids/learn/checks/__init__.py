"""The checks, a module for each lesson. A module has `LESSON`, the lesson's name, and `CHECKS`."""

from itertools import chain

from minids.errors import MinidsError
from minids.learn.checks import (
    attention,
    context,
    csa,
    distillation,
    hca,
    inference,
    mhc,
    moe,
    muon,
    numbers,
    pretrain,
    real,
    specialists,
    start,
    tokens,
    whole,
)
from minids.learn.exercise import Check

# in the order of the course
MODULES = (start, tokens, attention, hca, csa, context, moe, mhc, whole, muon, pretrain, numbers,
           specialists, distillation, inference, real)

# The function of `minids.plain` that an exercise writes, for each check of such an exercise. What
# passes the check fits `plain.Model(config, **{function: attempt})`. (`whole.safe_affinity` is
# given the function in a wrapper, which computes its gradient: `with_gradient(affinity)`.)
PARTS = {
    "attention.angles": "angles",
    "attention.rotate": "rotate",
    "attention.queries": "queries",
    "attention.window": "sees",
    "attention.sink": "sink_weights",
    "attention.output": "grouped_output",
    "attention.layer": "window_attention",
    "attention.yarn": "frequencies",
    "hca.compress": "compress",
    "hca.place": "place",
    "hca.visible": "visible",
    "hca.attend": "attend",
    "hca.layer": "hca_attention",
    "csa.compress": "compress_overlapped",
    "csa.scores": "index_scores",
    "csa.pick": "pick",
    "moe.route": "route",
    "moe.expert": "expert_forward",
    "moe.layer": "mix_experts",
    "moe.hash_route": "hash_route",
    "mhc.sinkhorn": "sinkhorn",
    "mhc.maps": "maps",
    "mhc.site": "site",
    "whole.rms_norm": "rms_norm",
    "whole.safe_affinity": "affinity",
    "whole.site": "site",
    "whole.block": "block_forward",
    "whole.forward": "model_forward",
}


def lessons() -> dict[str, list[str]]:
    """{lesson: names of its checks}, in the order of the course."""
    return {module.LESSON: [check.name for check in module.CHECKS] for module in MODULES}


def find(name: str) -> Check:
    """The check of this name. Raises `MinidsError`, with the names that exist, for any other."""
    for check in chain.from_iterable(module.CHECKS for module in MODULES):
        if check.name == name:
            return check
    known = ", ".join(chain.from_iterable(lessons().values()))
    raise MinidsError(f"no check {name!r}: expected one of {known}")
