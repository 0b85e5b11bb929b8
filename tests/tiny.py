"""Small configurations for tests: quick, and each with the layers that its tests are about."""

from minids.config import Config

# Two layers, window-only and CSA, and an MTP block.
TINY = Config.nano().replace(
    dim=32, n_layers=2, compress_ratios=(0, 4, 0), n_heads=2, head_dim=16, rope_head_dim=8,
    q_lora_rank=16, o_lora_rank=16, index_head_dim=8, moe_inter_dim=16, n_routed_experts=4,
    hc_sinkhorn_iters=3, max_seq_len=64)

# As TINY, half as wide, and long enough for a conversation.
NARROW = TINY.replace(dim=16, hc_sinkhorn_iters=2, max_seq_len=256)

# As TINY, with one CSA and one HCA layer; no layer routes by hash.
COMPRESSED = TINY.replace(compress_ratios=(4, 16, 0), n_hash_layers=0)

# As COMPRESSED, with a small top k and a short window: a row of 32 tokens reaches both limits.
CHOOSING = COMPRESSED.replace(vocab_size=64, index_topk=3, window_size=8)

# A layer of each kind.
THREE_KINDS = TINY.replace(n_layers=3, compress_ratios=(0, 4, 16, 0))

# A layer of each kind, with windows that a short text fills, and a vocabulary of 60 tokens.
SPEAKER = TINY.replace(n_layers=3, compress_ratios=(0, 4, 8, 0), window_size=8, vocab_size=60)

# A vocabulary of three tokens: all texts of a few tokens can be enumerated.
THREE_TOKENS = Config.nano().replace(
    dim=16, n_layers=2, compress_ratios=(4, 8, 0), n_heads=2, head_dim=8, rope_head_dim=4,
    q_lora_rank=8, window_size=4, o_lora_rank=8, index_n_heads=2, index_head_dim=4,
    moe_inter_dim=8, n_routed_experts=2, n_activated_experts=1, n_hash_layers=0, vocab_size=3,
    hc_mult=2, hc_sinkhorn_iters=2, max_seq_len=64, eos_token_id=1, pad_token_id=2)

# For comparison with transformers: five layers, with enough indexer heads that scores do not tie
# (docs/specification.md, section 2, lightning indexer).
SMALL = Config(
    vocab_size=97, dim=64, n_layers=5, compress_ratios=(0, 4, 16, 4, 16, 0), n_heads=4,
    head_dim=32, rope_head_dim=16, q_lora_rank=48, o_groups=2, o_lora_rank=24, window_size=8,
    index_n_heads=16, index_head_dim=24, index_topk=6, moe_inter_dim=40, n_routed_experts=8,
    n_activated_experts=3, n_hash_layers=2, swiglu_limit=10.0, original_seq_len=64,
    max_seq_len=1024)


def one_layer(ratio: int, **changes) -> Config:
    """SMALL with a single layer of this compression ratio."""
    return SMALL.replace(n_layers=1, compress_ratios=(ratio, 0), n_hash_layers=0, **changes)


# Cases of the parity tests: each kind of layer by itself, then all of them together.
CASES = {
    "window only": one_layer(0),
    "CSA, sparse": one_layer(4),
    "CSA, each query its own picks": one_layer(4, index_topk=2),
    "CSA, all entries": one_layer(4, index_topk=500),
    "HCA": one_layer(16),
    "hash layer": SMALL.replace(n_layers=1, compress_ratios=(0, 0), n_hash_layers=1),
    "clamped experts": one_layer(0, swiglu_limit=0.5),
    "without YaRN": one_layer(16, original_seq_len=0),
    "whole": SMALL,
    "nano": Config.nano().replace(vocab_size=97),
}


# Its checkpoint files take a few kilobytes.
FEW_BYTES = Config.nano().replace(vocab_size=40, n_layers=2, compress_ratios=(4, 16, 0), dim=32,
                                  n_routed_experts=2)

# Ragged blocks of FP8 and FP4: sizes that are no multiples of 128 and 32.
RAGGED = Config.nano().replace(vocab_size=101, dim=160, index_topk=8, q_lora_rank=144)

# Quick to train with rounded numbers.
ROUNDED = Config.nano().replace(
    vocab_size=64, dim=64, n_layers=3, compress_ratios=(0, 4, 16, 0), index_topk=4,
    moe_inter_dim=32, n_routed_experts=4, max_seq_len=64)
