"""The speed of minids and of other models at the same tasks, compared in one run.

Run `make bench` on an otherwise idle machine. The contenders are minids, transformers, a dense
model, and nano-deepseek-v4 where it is installed (`pip install --no-deps nano-deepseek-v4`). Each
runs in its own process with 2 threads, as a user would run it. They are measured alternately, and
the best measurement of each counts, so a slowdown of the machine affects all of them. Speeds are
printed; compare the ratios. The last table says what each kernel brings: minids's time without it,
relative to its time with all.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

SIZES = dict(
    vocab_size=256, dim=128, n_layers=4, compress_ratios=(4, 32, 4, 32), n_mtp_layers=0, n_heads=4,
    head_dim=32, rope_head_dim=16, q_lora_rank=64, o_groups=2, o_lora_rank=64, window_size=32,
    index_n_heads=4, index_head_dim=32, index_topk=16, moe_inter_dim=128, n_routed_experts=8,
    n_activated_experts=2, n_hash_layers=1, max_seq_len=4096)
BATCH, LENGTH = 8, 256
CONTEXTS = (512, 1024, 2048)


def dense(torch):
    """A model like nanoGPT of the same width and depth: pre-norm, GELU, learned positions."""
    from torch import nn
    F = nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_norm, self.ffn_norm = nn.LayerNorm(128), nn.LayerNorm(128)
            self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
            self.up, self.down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)

        def forward(self, x):                                                       # B T 128
            qkv = self.qkv(self.attn_norm(x)).unflatten(-1, (3, 4, 32))             # B T 3 4 32
            q, k, v = qkv.permute(2, 0, 3, 1, 4)                                    # B 4 T 32 each
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)           # B 4 T 32
            x = x + self.out(out.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.ffn_norm(x))))

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pos = nn.Embedding(256, 128), nn.Embedding(LENGTH, 128)
            self.layers = nn.Sequential(*(Layer() for _ in range(4)))
            self.norm = nn.LayerNorm(128)
            self.head = nn.Linear(128, 256, bias=False)

        def forward(self, ids):
            return self.head(self.norm(self.layers(self.embed(ids) + self.pos.weight)))

    return Dense()


def serve(name: str):
    """The code of a contender's process: prints one measurement for each line of standard input.

    A line is "train", "memory", "decode <context>" or "rollouts <rows>", for minids perhaps with
    "without <kernel>". Train, decode and rollouts give tokens per second; memory gives the
    process's peak resident memory in MiB.
    """
    if name == "minids":
        import minids  # before torch; the others run with torch's own settings
        from minids.model import kernels
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
    elif name == "nano-deepseek-v4":
        from nano_deepseek_v4 import DeepSeekV4Config, DeepSeekV4ForCausalLM
        config = json.loads(sys.stdin.readline())
        model = DeepSeekV4ForCausalLM(DeepSeekV4Config.from_official_json(config))
        forward = lambda ids: model(ids).logits
    else:
        model = forward = dense(torch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 256, (BATCH, LENGTH + 1))
    prompt = torch.randint(0, 256, (1, CONTEXTS[-1]))

    def train_steps(steps):
        model.train()
        for _ in range(steps):
            logits = forward(ids[:, :-1])                                           # B T vocab
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    def train(steps=4):
        train_steps(1)                                                              # warm-up
        begin = time.perf_counter()
        train_steps(steps)
        return steps * BATCH * LENGTH / (time.perf_counter() - begin)

    @torch.inference_mode()
    def decode(context, steps=40):
        """One sequence, greedy; the time to read the prompt does not count."""
        model.eval()
        if name == "minids":
            from minids.inference.generate import stream
            tokens = stream(model, prompt[:, :context].tolist(), steps + 1, temperature=0, stop=())
            next(tokens)                                # reads the prompt, gives the first token
            begin = time.perf_counter()
            assert sum(1 for _ in tokens) == steps
        else:
            cache = DynamicCache(config=model.config) if name == "transformers" else None
            run = lambda ids: model(ids, past_key_values=cache, use_cache=True)
            output = run(prompt[:, :context])
            token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            begin = time.perf_counter()
            for _ in range(steps):
                output = run(token)
                token, cache = output.logits.argmax(-1), output.past_key_values
        return steps / (time.perf_counter() - begin)

    def sample_rollouts(rows, max_new=48):
        """The nano model, with what GRPO records."""
        from minids.posttrain.rollouts import rollouts
        nano = minids.Model(minids.Config.nano())
        prompts = torch.randint(4, 2048, (rows, 24)).tolist()
        rollouts(nano, prompts, 4)                                                  # warm-up
        begin = time.perf_counter()
        sampled = rollouts(nano, prompts, max_new, record=True)
        return int((sampled.length - 24).sum()) / (time.perf_counter() - begin)

    def memory():
        import resource  # not on Windows

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    tasks = {"train": train, "memory": memory, "decode": decode, "rollouts": sample_rollouts}
    for line in sys.stdin:
        line, _, without = line.partition(" without ")
        task, *numbers = line.split()
        with kernels.switched_off(*without.split()) if without else nullcontext():
            print(json.dumps(tasks[task](*map(int, numbers))), flush=True)


# what `minids.system.process` sets: in this process it is imported already
OURS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Contender:
    """A process that runs `serve`, with torch's own settings until it imports minids."""

    def __init__(self, name: str):
        environment = {key: value for key, value in os.environ.items() if key not in OURS}
        self.process = subprocess.Popen(
            [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env={**environment, "OMP_NUM_THREADS": "2"})
        if name in ("transformers", "nano-deepseek-v4"):
            from minids import Config
            config = Config(**SIZES).to_json()
            # the spellings of the released files, which the other implementation reads
            config |= {"compress_ratios": SIZES["compress_ratios"], "num_hash_layers": 1,
                       "compress_rate_hca": 32, "qk_rope_head_dim": SIZES["rope_head_dim"]}
            self.process.stdin.write(json.dumps(config) + "\n")

    def measure(self, task: str) -> float:
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def contenders():
    names = ["minids", "transformers", "dense"]
    if importlib.util.find_spec("nano_deepseek_v4"):
        names.append("nano-deepseek-v4")
    processes = {name: Contender(name) for name in names}
    yield processes
    for contender in processes.values():
        contender.process.kill()


def best(contenders, names, task, repeats=5):
    """{name: highest measurement}, measured alternately: no two processes compute at once."""
    highest = dict.fromkeys(names, 0.0)
    for _ in range(repeats):
        for name in names:
            highest[name] = max(highest[name], contenders[name].measure(task))
    return highest


def table(task, speed):
    """Print the speeds of one task, and how they compare with transformers'."""
    print(f"\n{task}, tokens/s: " + ", ".join(
        f"{name} {value:,.0f}" for name, value in speed.items()))
    print(f"minids is {speed['minids'] / speed['transformers']:.2f} times as fast as transformers")


def test_training(contenders):
    speed = best(contenders, contenders, "train")
    memory = {name: contenders[name].measure("memory") for name in contenders}
    table("training", speed)
    print(f"and {speed['minids'] / speed['dense']:.2f} times as fast as the dense model")
    print("peak resident memory, MiB: " + ", ".join(
        f"{name} {value:,.0f}" for name, value in memory.items()))
    assert speed["minids"] > speed["transformers"] and memory["minids"] <= memory["transformers"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_decoding(contenders, context):
    speed = best(contenders, [name for name in contenders if name != "dense"], f"decode {context}")
    table(f"decoding one sequence at context {context}", speed)
    assert speed["minids"] > speed["transformers"]


def test_rollouts(contenders):
    single, batched = (max(contenders["minids"].measure(f"rollouts {rows}") for _ in range(5))
                       for rows in (1, 64))
    print(f"\nrollouts of the nano model, tokens/s: {single:,.0f} one by one, "
          f"{batched:,.0f} in a batch of 64")
    assert batched > 5 * single


def test_what_each_kernel_brings(contenders):
    """Times without a kernel, relative to those with all kernels."""
    from minids.model import kernels
    tasks = ("train", "decode 1024", "rollouts 64")
    print("\n" + f"{'time without':20}" + "".join(f"{task:>14}" for task in tasks))
    for names in (*kernels.NAMES, " ".join(kernels.NAMES)):
        times = []
        for task in tasks:
            pairs = [(contenders["minids"].measure(task),
                      contenders["minids"].measure(f"{task} without {names}")) for _ in range(3)]
            times.append(max(with_all for with_all, _ in pairs) / max(less for _, less in pairs))
        label = names if " " not in names else "all of them"
        print(f"{label:20}" + "".join(f"{value:14.2f}" for value in times))
    assert times[0] > 1 and times[1] > 1


if __name__ == "__main__":
    serve(sys.argv[1])
