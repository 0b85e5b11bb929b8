"""The names of tensors: V4's, which `minids` uses, and those of `transformers`.

    layers.3.attn.wq_a.weight                   in the released files, in `Model.state_dict()`
    model.layers.3.self_attn.q_a_proj.weight    in the state_dict of `DeepseekV4ForCausalLM`

`transformers` has no MTP blocks, and it stacks the matrices of a layer's routed experts. The files
that its `save_pretrained` writes mix both: mostly V4's names, with "model." in front.
"""

import re

# V4 -> transformers: tensors of the whole model, then those of a layer, without "layers.<i>."
NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",

    "attn_norm.weight": "input_layernorm.weight",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",

    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
}
# transformers' stacks of a layer's routed experts: the matrices of each expert, one below the other
STACKS = {"mlp.experts.gate_up_proj": ("w1", "w3"), "mlp.experts.down_proj": ("w2",)}

# back, without "model."; save_pretrained shortens `kv_norm` to `norm`, also in attention itself
V4_NAMES = {theirs.removeprefix("model."): name for name, theirs in NAMES.items()}
V4_NAMES["attn.norm.weight"] = "attn.kv_norm.weight"

LAYER = re.compile(r"layers\.\d+\.")
EXPERT = re.compile(r"ffn\.experts\.\d+\.(w[123])\.weight")


def to_transformers(name: str) -> str:
    """The name in the state_dict of `DeepseekV4ForCausalLM`; for a routed expert its stack.

    `KeyError` for a tensor that `transformers` does not have.
    """
    layer = LAYER.match(name)
    if not layer:
        return NAMES[name]
    rest = name[layer.end():]
    expert = EXPERT.fullmatch(rest)
    if expert:
        stack = next(stack for stack, matrices in STACKS.items() if expert[1] in matrices)
        return f"model.{layer[0]}{stack}"
    return f"model.{layer[0]}{NAMES[rest]}"


def to_v4(name: str) -> str:
    """V4's name for a name that `transformers` uses or writes; any other name as it is.

    A stack of experts keeps its name: in V4 it is many tensors.
    """
    name = name.removeprefix("model.")
    layer = LAYER.match(name)
    prefix = layer[0] if layer else ""
    rest = name.removeprefix(prefix)
    return prefix + V4_NAMES.get(rest, rest)
