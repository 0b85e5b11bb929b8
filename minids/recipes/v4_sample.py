"""Three sample checkpoints in exactly the format of the released files, with random weights.

    python -m minids.recipes.v4_sample

    data/v4_sample          as Flash and Pro: FP8 with E8M0 scales in whole 128 x 128 blocks, packed
                            FP4 experts, BF16, float32, int64 tables, the MTP block
    data/v4_sample_base     as Flash-Base and Pro-Base: FP8 experts, float32 scales, and two tensors
                            of the MTP block that repeat the embedding and the head
    data/v4_sample_0731     as Flash-0731 and Pro-0813: DSpark, another draft module, below `mtp.`,
                            and `compress_ratios` that cover it too

The spelling of config.json, the shards, the index and the types are those of the release. Each kind
of layer occurs: window only, CSA and HCA, routed by hash and by score. The weights are random, from
fixed seeds: the files are there to be read, the models generate noise. The tokenizer is the shipped
one, cut after its first ids. The latter two are smaller, and their 128 x 128 blocks are not whole.
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
from minids.weights.save import released, write_shards

SEED = 4
CONFIG = Config(vocab_size=512, dim=128, n_layers=4, compress_ratios=(0, 4, 128, 4, 0),
                n_heads=2, head_dim=128, rope_head_dim=32, q_lora_rank=128, o_groups=2,
                o_lora_rank=128, window_size=128, index_n_heads=16, index_head_dim=32,
                index_topk=16, moe_inter_dim=128, n_routed_experts=4, n_activated_experts=2,
                n_hash_layers=2, original_seq_len=256, max_seq_len=4096)
SMALLER = CONFIG.replace(vocab_size=320, dim=32, n_heads=4, head_dim=64, rope_head_dim=16,
                         q_lora_rank=64, o_lora_rank=96, window_size=32, index_head_dim=16,
                         moe_inter_dim=64)
BASE = SMALLER.replace(expert_dtype="fp8")
TRUNK = SMALLER.replace(n_mtp_layers=0, compress_ratios=SMALLER.compress_ratios[:-1])
# keys of config.json that describe DSpark: the layers it reads, the width of its Markov head
DSPARK = {"dspark_block_size": 5, "dspark_noise_token_id": 319,
          "dspark_target_layer_ids": [1, 2, 3], "dspark_markov_rank": 16}


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


def stored(formats: dict[str, layout.Spec], seed: int) -> dict[str, torch.Tensor]:
    """{name: tensor} as the released files hold them, with scales, for `layout.tensors`."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, (format, shape) in formats.items():
        tensors |= released(name, torch.from_numpy(numbers(name, shape, rng)), format)
    return tensors


def as_base(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with float32 scales that are no powers of two, and the embedding and the head once
    more, under the names of the MTP block."""
    tensors = {name: 0.75 * t.float() if name.endswith(".scale") else t
               for name, t in tensors.items()}
    return tensors | {"mtp.0.emb.tok_emb.weight": tensors["embed.weight"].clone(),
                      "mtp.0.head.weight": tensors["head.weight"].clone()}


def released_json(config: Config) -> dict:
    """config.json in the spelling of the released files: that of Flash, with the sizes of
    `config`."""
    flash = json.loads(data("v4", "flash.config.json").read_text(encoding="utf-8"))
    flash |= {hf: getattr(config, key) for key, hf in HF_KEYS.items()}
    flash["rope_scaling"]["original_max_position_embeddings"] = config.original_seq_len
    return flash | {"compress_ratios": config.compress_ratios,
                    "num_hash_layers": config.n_hash_layers}


def json_of_0731(config: Config) -> dict:
    """config.json of a model with DSpark, of which `config` is the trunk.

    As in Flash-0731, the ratios cover the three draft blocks, and one MTP layer is named although
    there is none.
    """
    ratios = (*config.compress_ratios, *[0] * layout.DSPARK_BLOCKS)
    return released_json(config) | {"compress_ratios": ratios,
                                    "num_nextn_predict_layers": 1} | DSPARK


def cut_tokenizer(vocab_size: int) -> dict:
    """The shipped tokenizer.json with its first `vocab_size` ids: special tokens, bytes, and the
    earliest merges."""
    tokenizer = json.loads(data("tokenizer", "tokenizer.json").read_text(encoding="utf-8"))
    bpe = tokenizer["model"]
    dropped = len(bpe["vocab"]) - vocab_size
    bpe["merges"] = bpe["merges"][: len(bpe["merges"]) - dropped]
    bpe["vocab"] = {token: i for token, i in bpe["vocab"].items() if i < vocab_size}
    return tokenizer


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict) -> None:
    """Write a sample to `folder`; each file appears when it is complete."""
    check_writable(folder, folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = cut_tokenizer(config["vocab_size"])
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch)
        write_shards(part, layout.in_shards(tensors),
                     lambda names: {name: tensors[name] for name in names})
        for name, text in (("config", json.dumps(config, indent=2)),
                           ("tokenizer", json.dumps(tokenizer, ensure_ascii=False, indent=0))):
            (part / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        for file in part.iterdir():
            with atomic_write(folder / file.name) as target:
                target.write_bytes(file.read_bytes())


def build(folder: Path) -> None:
    """Write all samples into `folder`, which is `data/` unless you only want to look."""
    write(folder / "v4_sample", stored(layout.tensors(CONFIG), SEED), released_json(CONFIG))
    base = as_base(stored(layout.tensors(BASE), SEED + 1))
    write(folder / "v4_sample_base", base, released_json(BASE))
    formats = layout.tensors(TRUNK) | layout.dspark(
        TRUNK, len(DSPARK["dspark_target_layer_ids"]), DSPARK["dspark_markov_rank"])
    write(folder / "v4_sample_0731", stored(formats, SEED + 2), json_of_0731(TRUNK))


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
