"""What a checkpoint's names tell before anything of it is fetched.

Files that someone has quantised again are refused: NVFP4, AWQ, GPTQ, mlx and others store numbers
in ways that are not read here. What config.json says about that is checked by `minids.config_file`;
this module knows the names of the tensors. And it says in words what is left alone: the draft
module of Flash-0731 and Pro-0813, and the tensors that the released base models have twice.
"""

import re
from collections.abc import Iterable

from minids.errors import MinidsError

# the last part of a tensor's name -> the format that has it; the first that is there counts
SIGNS = {
    "weight_scale_2": "NVFP4, as ModelOpt writes it",
    "weight_global_scale": "NVFP4, as compressed-tensors writes it",
    "weight_packed": "the format of compressed-tensors",
    "qweight": "the format of AWQ or GPTQ",
    "trellis": "the format of EXL3",
    "scales": "the format of mlx",
    "weight_scale": "a quantised format with weight_scale",
    "weight_scale_inv": "V3's FP8 format",
    "absmax": "the format of bitsandbytes",
}
# all experts of a layer in one tensor: `ffn.switch_mlp.*` (mlx), `mlp.experts.gate_up_proj`
STACKED = re.compile(r"\.switch_mlp\.|\.experts\.\D")
DRAFT = "mtp."
DSPARK = "DSpark, a draft module that takes the place of the MTP block"
UNKNOWN = "not part of the model of config.json"
# the released base models hold these twice
SHARED = {"mtp.0.emb.tok_emb.weight": "embed.weight", "mtp.0.head.weight": "head.weight"}


def refuse(names: Iterable[str], where: str) -> None:
    """Raise `MinidsError` if tensors with these names are not in V4's own layout.

    Draft modules are not looked at: what the model does not have is not read.
    """
    names = [name for name in names if not name.startswith(DRAFT)]
    endings = {name.rpartition(".")[2]: name for name in reversed(names)}
    found = next((sign for sign in SIGNS if sign in endings), None)
    stack = next((name for name in names if STACKED.search(name)), None)
    if found:
        what = f"the weights are in {SIGNS[found]} ({endings[found]})"
    elif stack:
        what = f"the experts of a layer are stacked in one tensor ({stack})"
    else:
        return
    raise MinidsError(f"{where}: {what}, which is not read: expected the layout of the released "
                      "files, with FP8, FP4, BF16 or F32 weights and one tensor for each matrix "
                      "of an expert, as in deepseek-ai/DeepSeek-V4-Flash")


def has_mtp(names: Iterable[str]) -> bool:
    """Whether there is an MTP block among these tensors, by what no other module below `mtp.` has.

    Flash-0731 and Pro-0813 have DSpark there; `transformers` drops MTP blocks.
    """
    return any(re.fullmatch(r"mtp\.\d+\.([eh]norm|[eh]_proj)\.weight", name) for name in names)


def left_alone(extra: list[str]) -> str:
    """One sentence: which tensors are not read, and why. `extra` are those that the model of
    config.json does not have."""
    draft = [name for name in extra if name.startswith(DRAFT) and name not in SHARED]
    shared = [name for name in extra if name in SHARED]
    other = [name for name in extra if not name.startswith(DRAFT)]
    reasons = []
    if draft:
        *modules, last = sorted({f"mtp.{name.split('.')[1]}" for name in draft})
        is_dspark = any(".markov_head." in name or ".main_proj." in name for name in draft)
        reasons.append(f"{_count(draft)} of {', '.join(modules)}{' and ' * bool(modules)}{last} "
                       f"({DSPARK if is_dspark else UNKNOWN})")
    if shared:
        reasons.append(f"{' and '.join(shared)} (the MTP block shares "
                       f"{' and '.join(SHARED[name] for name in shared)})")
    if other:
        reasons.append(f"{_count(other)} such as {other[0]} ({UNKNOWN})")
    return f"left alone: {'; '.join(reasons)}" if reasons else ""


def _count(names: list[str]) -> str:
    return f"{len(names):,} tensor{'s' * (len(names) != 1)}"
