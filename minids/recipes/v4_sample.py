"""The sample checkpoint `data/v4_sample/`: a small model in exactly the format of the release.

    python -m minids.recipes.v4_sample

The spelling of config.json, the shards, the index and the types are those of the release: FP8 with
E8M0 scales in whole 128 x 128 blocks, packed FP4 experts, BF16, float32, int64 tables. Each kind of
layer occurs: window only, CSA and HCA, routed by hash and by score, and the MTP block. The weights
are random, from a fixed seed: the files are there to be read, the model generates noise. Its
tokenizer is the shipped one, cut after its first 512 ids.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from minids.config import Config
from minids.config_file import HF_KEYS
from minids.system.files import atomic_write, check_writable
from minids.system.paths import DATA, data
from minids.weights import layout
from minids.weights.checkpoint import empty_model
from minids.weights.save import save

SEED = 4
CONFIG = Config(vocab_size=512, dim=128, n_layers=4, compress_ratios=(0, 4, 128, 4, 0),
                n_heads=2, head_dim=128, rope_head_dim=32, q_lora_rank=128, o_groups=2,
                o_lora_rank=128, window_size=128, index_n_heads=16, index_head_dim=32,
                index_topk=16, moe_inter_dim=128, n_routed_experts=4, n_activated_experts=2,
                n_hash_layers=2, original_seq_len=256, max_seq_len=4096)


def numbers(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random weights for one tensor, scaled so that activations stay moderate.

    float32, or int64 for a hash table.
    """
    if name.endswith("tid2eid"):
        return rng.random((shape[0], CONFIG.n_routed_experts)).argsort(1)[:, : shape[1]]
    x = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        x = 1 + 0.2 * x
    elif name.endswith("_scale"):
        x = 0.5 + 0.1 * x
    elif name.endswith(("ape", "attn_sink", "gate.bias", "_base")):
        x = 0.5 * x
    elif name != "embed.weight":
        scale = np.exp2(rng.integers(-1, 3, shape[1]))      # channels differ, as in trained models
        x *= shape[1] ** -0.5 * scale
    return x.astype(np.float32)


def released_json(config: Config) -> dict:
    """config.json in the spelling of the released files: that of Flash, with the sizes of
    `config`."""
    released = json.loads(data("v4", "flash.config.json").read_text(encoding="utf-8"))
    released |= {hf: getattr(config, key) for key, hf in HF_KEYS.items()}
    released["rope_scaling"]["original_max_position_embeddings"] = config.original_seq_len
    return released | {"compress_ratios": config.compress_ratios,
                       "num_hash_layers": config.n_hash_layers}


def cut_tokenizer(vocab_size: int) -> dict:
    """The shipped tokenizer.json with its first `vocab_size` ids: special tokens, bytes, and the
    earliest merges."""
    tokenizer = json.loads(data("tokenizer", "tokenizer.json").read_text(encoding="utf-8"))
    bpe = tokenizer["model"]
    dropped = len(bpe["vocab"]) - vocab_size
    bpe["merges"] = bpe["merges"][: len(bpe["merges"]) - dropped]
    bpe["vocab"] = {token: i for token, i in bpe["vocab"].items() if i < vocab_size}
    return tokenizer


def build(folder: Path) -> None:
    """Write the sample to `folder`; each file appears when it is complete."""
    check_writable(folder, folder=True)
    rng = np.random.default_rng(SEED)
    model = empty_model(CONFIG, torch.float32)
    tensors = {name: torch.from_numpy(numbers(name, shape, rng))
               for name, (_, shape) in layout.tensors(CONFIG).items()}
    model.load_state_dict(tensors, assign=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch, "sample")
        save(model, scratch, format="v4")
        config = json.dumps(released_json(CONFIG), indent=2)
        (scratch / "config.json").write_text(config + "\n", encoding="utf-8", newline="\n")
        tokenizer = json.dumps(cut_tokenizer(CONFIG.vocab_size), ensure_ascii=False, indent=0)
        (scratch / "tokenizer.json").write_text(tokenizer + "\n", encoding="utf-8",
                                                newline="\n")
        for file in scratch.iterdir():
            with atomic_write(folder / file.name) as part:
                part.write_bytes(file.read_bytes())


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "v4_sample")
