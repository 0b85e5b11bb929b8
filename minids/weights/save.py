"""Writing checkpoints: BF16, float32, or V4's released formats."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from minids import numerics
from minids.config import Config
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.model import Model
from minids.weights import layout
from minids.weights.folder import whole_folder
from minids.weights.layout import INDEX, SINGLE, Spec, count_and_names, scale_name

FORMATS = ("bf16", "fp32", "v4")
# as in config.json of the released models
QUANTISATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}


def save(model: Model, path: str | Path, format: str = "bf16",
         tokenizer: Tokenizer | str | Path | None = None) -> None:
    """Write a checkpoint folder, whole or not at all.

    An existing checkpoint stays as it is until the new one is complete. `format` says how the
    numbers are stored:

        "fp32"   float32, one file: exactly the model that trains
        "bf16"   bfloat16, one file; float32 for what the released files keep in float32
                 (ape, sinks, gate biases, hyper-connections)
        "v4"     exactly as released: FP8, FP4 for the experts (`config.expert_dtype`), a shard
                 for each layer, an index

    `tokenizer` is a `minids.data.tokenizer.Tokenizer` or the path of a tokenizer.json. Raises
    `MinidsError` where the folder holds anything but a checkpoint, where the disk is full, and for
    numbers that the format cannot hold.
    """
    if format not in FORMATS:
        raise MinidsError(f"format: expected {', '.join(FORMATS)}, found {format!r}")
    tensors, state = layout.tensors(model.config), model.state_dict()
    if state.keys() != tensors.keys():
        raise MinidsError(f"not a minids model: "
                          f"{count_and_names('tensors missing', tensors.keys() - state.keys())}"
                          f"{count_and_names('unexpected', state.keys() - tensors.keys())}")
    if tokenizer is not None and not hasattr(tokenizer, "save") and not Path(tokenizer).is_file():
        raise MinidsError(f"no tokenizer at {tokenizer}: expected a tokenizer.json")
    config = model.config.to_json() | {"torch_dtype": "float32" if format == "fp32" else "bfloat16"}
    with whole_folder(path) as folder:
        if format == "v4":
            config["quantization_config"] = QUANTISATION
            _write_shards(folder, model.config, state, tensors)
        else:
            plain = {name: _plain(t, tensors[name][0], format) for name, t in state.items()}
            save_file(plain, folder / SINGLE, {"format": "pt"})
        _write_json(folder / "config.json", config)
        if tokenizer is not None and hasattr(tokenizer, "save"):
            tokenizer.save(folder / "tokenizer.json")
        elif tokenizer is not None:
            shutil.copyfile(tokenizer, folder / "tokenizer.json")


def _plain(t: torch.Tensor, number_format: str, format: str) -> torch.Tensor:
    """A tensor as the formats "bf16" and "fp32" store it."""
    if number_format == "I64":
        dtype = torch.int64
    else:
        dtype = torch.float32 if number_format == "F32" or format == "fp32" else torch.bfloat16
    return t.detach().to("cpu", dtype).contiguous()


def _write_shards(folder: Path, config: Config, state: dict[str, torch.Tensor],
                  tensors: dict[str, Spec]) -> None:
    weight_map: dict[str, str] = {}
    for file, names in layout.shards(config).items():
        shard: dict[str, torch.Tensor] = {}
        for name in names:
            if name in state:       # the others are scales
                shard |= released(name, state[name].detach().cpu(), tensors[name][0])
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": layout.disk_bytes(config)}, "weight_map": weight_map}
    _write_json(folder / INDEX, index)


def released(name: str, t: torch.Tensor, number_format: str) -> dict[str, torch.Tensor]:
    """{name: tensor} as the released files store one tensor of the CPU, with its scale if it has
    one."""
    if number_format not in ("FP8", "FP4"):
        return {name: _plain(t, number_format, "bf16")}
    encode = numerics.fp8_encode if number_format == "FP8" else numerics.fp4_encode
    try:
        codes, scale = encode(t)
    except MinidsError as error:
        raise MinidsError(f"{name} cannot be stored as {number_format}: {error}. "
                          f"Nothing was changed.") from None
    return {name: codes, scale_name(name): scale}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
