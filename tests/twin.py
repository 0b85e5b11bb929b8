"""The independent reference: transformers' DeepSeek-V4 with a minids model's weights."""

import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

import minids
from minids.weights.names import to_transformers


def to_hf(tensors: dict, config) -> dict:
    """The same tensors (weights or gradients) under transformers' names, with stacked experts and
    without the MTP block."""
    out = {to_transformers(k): v for k, v in tensors.items()
           if not k.startswith("mtp.") and ".experts." not in k}
    for i in range(config.n_layers):
        experts = range(config.n_routed_experts)
        w1, w2, w3 = ([tensors[f"layers.{i}.ffn.experts.{e}.{w}.weight"] for e in experts]
                      for w in ("w1", "w2", "w3"))
        gate_up = torch.stack([torch.cat(pair) for pair in zip(w1, w3)])
        out[f"model.layers.{i}.mlp.experts.gate_up_proj"] = gate_up
        out[f"model.layers.{i}.mlp.experts.down_proj"] = torch.stack(w2)
    return out


def twin(model: minids.Model) -> DeepseekV4ForCausalLM:
    """transformers' model with the same weights, in eval mode, eager everything."""
    # transformers freezes the embedding of a padding id
    config = {**model.config.to_json(), "pad_token_id": None}
    hf = DeepseekV4ForCausalLM(DeepseekV4Config(**config, experts_implementation="eager")).eval()
    hf.load_state_dict(to_hf(model.state_dict(), model.config))
    return hf


def lively(config, seed: int) -> minids.Model:
    """A model in which every parameter matters: none is 0 or 1, scales and biases are large."""
    torch.manual_seed(seed)
    model = minids.Model(config)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith("tid2eid"):
                continue
            elif name.endswith("norm.weight"):
                t.uniform_(0.5, 1.5)
            elif name.endswith(("scale", "base", "sink", "ape", "bias")):
                t.copy_(torch.randn_like(t) * 0.5)
            else:
                t.copy_(torch.randn_like(t) * (1.5 * t.shape[-1] ** -0.5))
    return model.eval()
