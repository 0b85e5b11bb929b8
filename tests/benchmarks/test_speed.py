"""minids against transformers and a dense model at the same work, in one run: `make bench` on an otherwise idle machine.

Each contender runs in a process of its own, as its user would run it, with 2 threads; they take turns, and the best turn
of each counts, so that a machine that slows down slows all of them. Speeds are printed, ratios are what matters.
"""

import json
import os
import resource
import subprocess
import sys
import time

import pytest

SIZES = dict(vocab_size=256, dim=128, n_layers=4, compress_ratios=(4, 32, 4, 32), n_mtp_layers=0, n_heads=4, head_dim=32,
             rope_head_dim=16, q_lora_rank=64, o_groups=2, o_lora_rank=64, window_size=32, index_n_heads=4, index_head_dim=32,
             index_topk=16, moe_inter_dim=128, n_routed_experts=8, n_activated_experts=2, n_hash_layers=1, max_seq_len=4096)
BATCH, LENGTH = 8, 256
CONTEXTS = (512, 1024, 2048)


def dense(torch):
    """A model of nanoGPT's kind at the same width and depth: pre-norm, GELU, learned positions."""
    from torch import nn
    F = nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(128), nn.LayerNorm(128)
            self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
            self.up, self.down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.n1(x)).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.n2(x))))

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pos = nn.Embedding(256, 128), nn.Embedding(LENGTH, 128)
            self.layers, self.norm = nn.Sequential(*(Layer() for _ in range(4))), nn.LayerNorm(128)
            self.head = nn.Linear(128, 256, bias=False)

        def forward(self, ids):
            return self.head(self.norm(self.layers(self.embed(ids) + self.pos.weight)))

    return Dense()


def contender(name: str):
    """In a process of its own: answers each line of standard input, "train", "memory", "decode N" or "rollouts N", with what it
    measured."""
    if name == "minids":
        import minids  # noqa: F401  before torch
    import torch
    torch.set_num_threads(2)
    torch.manual_seed(0)
    if name == "minids":
        model = minids.Model(minids.Config(**SIZES))
        forward = model
    elif name == "transformers":
        from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, DynamicCache
        config = json.loads(sys.stdin.readline())
        model = DeepseekV4ForCausalLM(DeepseekV4Config(**config))
        forward = lambda ids: model(ids, use_cache=False).logits
    else:
        model = forward = dense(torch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 256, (BATCH, LENGTH + 1))
    long = torch.randint(0, 256, (1, CONTEXTS[-1]))

    def train(steps):
        model.train()
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    @torch.inference_mode()
    def decode(context, steps=40):
        model.eval()
        if name == "minids":
            from minids.inference.generate import stream
            tokens = stream(model, long[:, :context].tolist(), steps + 1, temperature=0, stop=())
            next(tokens)                                     # the prompt is read, the first token is there
            begin = time.perf_counter()
            assert sum(1 for _ in tokens) == steps
        else:
            cache = DynamicCache(config=model.config)
            step = lambda token: model(token, past_key_values=cache, use_cache=True).logits
            token = step(long[:, :context])[:, -1:].argmax(-1)
            begin = time.perf_counter()
            for _ in range(steps):
                token = step(token).argmax(-1)
        return steps / (time.perf_counter() - begin)

    def answers(rows, new=48):
        """Tokens a second of the nano model's rollouts, recorded as GRPO needs them."""
        from minids.posttrain.rollouts import rollouts
        nano = minids.Model(minids.Config.nano())
        prompts = torch.randint(4, 2048, (rows, 24)).tolist()
        rollouts(nano, prompts, 4)
        begin = time.perf_counter()
        written = rollouts(nano, prompts, new, record=True)
        return int((written.length - 24).sum()) / (time.perf_counter() - begin)

    for line in sys.stdin:
        task, *numbers = line.split()
        if task == "train":
            train(1)
            begin = time.perf_counter()
            train(4)
            answer = 4 * BATCH * LENGTH / (time.perf_counter() - begin)
        elif task == "memory":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        else:
            answer = {"decode": decode, "rollouts": answers}[task](int(numbers[0]))
        print(json.dumps(answer), flush=True)


class Contender:
    def __init__(self, name: str):
        self.process = subprocess.Popen([sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
        if name == "transformers":
            from minids import Config
            self.process.stdin.write(json.dumps(Config(**SIZES).to_json()) + "\n")

    def measure(self, task: str) -> float:
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def contenders():
    found = {name: Contender(name) for name in ("minids", "transformers", "dense")}
    yield found
    for contender in found.values():
        contender.process.kill()


def best(contenders, names, task, turns=5):
    """The best of some turns, taken one after another: the processes never compute at the same time."""
    results = dict.fromkeys(names, 0.0)
    for _ in range(turns):
        for name in names:
            results[name] = max(results[name], contenders[name].measure(task))
    return results


def test_training(contenders):
    speed = best(contenders, ("minids", "transformers", "dense"), "train")
    memory = {name: contenders[name].measure("memory") for name in ("minids", "transformers")}
    print(f"\ntraining, tokens/s: minids {speed['minids']:,.0f}, transformers {speed['transformers']:,.0f}, "
          f"dense {speed['dense']:,.0f}; minids is {speed['minids'] / speed['transformers']:.2f} times transformers")
    print(f"largest resident memory, MB: minids {memory['minids']:,.0f}, transformers {memory['transformers']:,.0f}")
    assert speed["minids"] > speed["transformers"] and memory["minids"] <= memory["transformers"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_decoding(contenders, context):
    speed = best(contenders, ("minids", "transformers"), f"decode {context}")
    print(f"\ndecoding one stream at context {context}, tokens/s: minids {speed['minids']:,.0f}, "
          f"transformers {speed['transformers']:,.0f}: {speed['minids'] / speed['transformers']:.2f} times")
    assert speed["minids"] > speed["transformers"]


def test_rollouts(contenders):
    alone, many = (max(contenders["minids"].measure(f"rollouts {rows}") for _ in range(5)) for rows in (1, 64))
    print(f"\nthe nano model's rollouts, tokens/s: {alone:,.0f} one by one, {many:,.0f} in a batch of 64")
    assert many > 5 * alone


if __name__ == "__main__":
    contender(sys.argv[1])
