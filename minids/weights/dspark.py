"""DSpark modules in folders: the tensors under `mtp.` of Flash-0731's kind of checkpoint."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from minids.config_file import MAX_BYTES, parse
from minids.errors import MinidsError
from minids.model import Model
from minids.model.dspark import DSpark, DSparkConfig
from minids.weights import layout
from minids.weights.checkpoint import decode, view_bytes
from minids.weights.folder import LocalFiles, whole_folder
from minids.weights.layout import SINGLE, Spec, count_and_names, scale_name
from minids.weights.save import QUANTISATION, released


def tensors(dspark: DSpark) -> dict[str, Spec]:
    """{tensor name: (number format in the released files, shape)}; see `layout.tensors`."""
    drafts = dspark.drafts
    return layout.dspark(dspark.config, len(drafts.dspark_target_layer_ids),
                         drafts.dspark_markov_rank, drafts.n_blocks)


def load_dspark(path: str | Path, model: Model) -> DSpark:
    """The DSpark module of a folder, for a target `model`: FP8 and FP4 decoded to the model's type.

    Only config.json and the tensors under `mtp.` are read. Raises `MinidsError` where these are not
    a DSpark module of a model with `model.config`.
    """
    files = LocalFiles(path)
    try:
        text = files.text("config.json", MAX_BYTES)
        if text is None:
            raise MinidsError(f"no configuration at {path}: expected config.json")
        where = {name: file for name, file in files.index().items() if name.startswith("mtp.")}
        count = len({name.split(".")[1] for name in where})
        drafts = DSparkConfig.from_json(parse(text, f"{path}: config.json"), max(count, 1))
        with torch.device("meta"):
            dspark = DSpark(model.config, drafts)
        specs = tensors(dspark)
        scales = {scale_name(name) for name, spec in specs.items() if spec[0] in ("FP8", "FP4")}
        if specs.keys() - where.keys() or where.keys() - specs.keys() - scales:
            raise MinidsError(
                f"{path} holds no DSpark module of this model: "
                f"{count_and_names('tensors missing', specs.keys() - where.keys())}"
                f"{count_and_names('unexpected', where.keys() - specs.keys() - scales)}")
        weight, state = model.embed.weight, {}
        for file in sorted(set(where.values())):
            entries = {name: entry for name, entry in files.header(file).items() if name in where}
            info = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
            raw = {name: view_bytes(data, entries[name])
                   for name, data in files.read(file, entries).items()}
            for name in sorted(specs.keys() & entries.keys()):
                problem, scale = layout.mismatch(name, *specs[name], info)
                if problem:
                    raise MinidsError(f"{path}: {problem}")
                dtype = weight.dtype if _is_matrix(name, specs[name]) else torch.float32
                state[name] = decode(entries[name].dtype, raw[name], raw.get(scale or ""), dtype,
                                     weight.device, f"{path}: {name}")
    finally:
        files.close()
    dspark.load_state_dict(state, assign=True)
    return dspark.eval().requires_grad_(False)


def _is_matrix(name: str, spec: Spec) -> bool:
    """Whether a tensor takes the model's type; the others are float32 in memory."""
    return spec[0] != "F32" and not name.endswith("norm.weight")


def save_dspark(dspark: DSpark, path: str | Path) -> None:
    """Write a folder that `load_dspark` reads, in the released number formats, in one file."""
    stored: dict[str, torch.Tensor] = {}
    state = dspark.state_dict()
    for name, (form, _) in tensors(dspark).items():
        stored |= released(name, state[name].detach().cpu(), form)
    values = dspark.config.to_json() | dspark.drafts.to_json()
    values |= {"quantization_config": QUANTISATION, "torch_dtype": "bfloat16"}
    with whole_folder(path) as folder:
        save_file(stored, folder / SINGLE, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8",
                                            newline="\n")
