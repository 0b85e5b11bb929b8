"""Writing checkpoints: BF16, float32, or V4's released formats."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from minids import numerics
from minids.errors import MinidsError
from minids.model import Model
from minids.weights import layout
from minids.weights.checkpoint import INDEX, SINGLE, listed, scale_name
from minids.weights.folder import whole_folder

FORMATS = ("bf16", "fp32", "v4")
QUANTISATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128]}  # config.json of the released models


def save(model: Model, path, format: str = "bf16", tokenizer=None) -> None:
    """Write a checkpoint folder, whole or not at all: an existing checkpoint stays as it is until the new one is complete.

    `format` says how the numbers are stored:
    "fp32"  float32, one file: exactly the model that trains
    "bf16"  bfloat16, one file; float32 for what the released files keep so (ape, sinks, gate biases, hyper-connections)
    "v4"    exactly as released: FP8, FP4 for the experts (`config.expert_dtype`), a shard for each layer, an index
    `tokenizer` is a `minids.data.tokenizer.Tokenizer` or the path of a tokenizer.json. Raises `MinidsError` where the folder
    holds anything else than a checkpoint, where the disk is full, and for numbers that the format cannot hold.
    """
    if format not in FORMATS:
        raise MinidsError(f"format: expected {', '.join(FORMATS)}, found {format!r}")
    formats, state = layout.tensors(model.config), model.state_dict()
    if state.keys() != formats.keys():
        raise MinidsError(f"not a minids model: {listed('tensors missing', formats.keys() - state.keys())}"
                          f"{listed('unexpected', state.keys() - formats.keys())}")
    if tokenizer is not None and not hasattr(tokenizer, "save") and not Path(tokenizer).is_file():
        raise MinidsError(f"no tokenizer at {tokenizer}: expected a tokenizer.json")
    config = model.config.to_json() | {"torch_dtype": "float32" if format == "fp32" else "bfloat16"}
    with whole_folder(path) as part:
        if format == "v4":
            config["quantization_config"] = QUANTISATION
            _write_shards(part, model.config, state, formats)
        else:
            save_file({name: _stored(t, formats[name][0], format) for name, t in state.items()}, part / SINGLE, {"format": "pt"})
        _write_json(part / "config.json", config)
        if hasattr(tokenizer, "save"):
            tokenizer.save(part / "tokenizer.json")
        elif tokenizer is not None:
            shutil.copyfile(tokenizer, part / "tokenizer.json")


def _stored(t: torch.Tensor, kind: str, format: str) -> torch.Tensor:
    """A tensor as the formats "bf16" and "fp32" store it."""
    dtype = torch.int64 if kind == "I64" else torch.float32 if kind == "F32" or format == "fp32" else torch.bfloat16
    return t.detach().to("cpu", dtype).contiguous()


def _write_shards(folder: Path, config, state: dict, formats: dict) -> None:
    where = {}
    for file, names in layout.shards(config).items():
        tensors = {}
        for name in (name for name in names if name in state):
            kind, t = formats[name][0], state[name].detach()
            if kind in ("FP8", "FP4"):
                try:
                    codes, scale = (numerics.fp8_encode if kind == "FP8" else numerics.fp4_encode)(t)
                except MinidsError as error:
                    raise MinidsError(f"{name} cannot be stored as {kind}: {error}. Nothing was changed.") from None
                tensors |= {name: codes.cpu(), scale_name(name): scale.cpu()}
            else:
                tensors[name] = _stored(t, kind, "bf16")
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    _write_json(folder / INDEX, {"metadata": {"total_size": layout.disk_bytes(config)}, "weight_map": where})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
