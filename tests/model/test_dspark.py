"""DSpark: the released names and shapes, what each position of a block sees, decoding."""

import math

import pytest
import torch
from tiny import SMALL
from twin import lively

from minids import Config, MinidsError
from minids.inference.block_drafts import BlockDrafter
from minids.model.dspark import DraftPass, DSpark, DSparkConfig, initialise, read_target
from minids.model.packing import Packing
from minids.model.passes import Options
from minids.weights import layout

DRAFTS = DSparkConfig(5, 3, (1, 3, 4), 6)       # of SMALL: five layers, a window of eight tokens


def module(config=SMALL, drafts=DRAFTS, seed=0) -> DSpark:
    """A DSpark module whose every part counts."""
    torch.manual_seed(seed)
    dspark = DSpark(config, drafts)
    initialise(dspark)
    with torch.no_grad():
        for name, p in dspark.named_parameters():
            p += (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5) * torch.randn(p.shape)
    return dspark.requires_grad_(False)


@pytest.fixture(scope="module")
def pair():
    """A target and its draft module."""
    return lively(SMALL, 4), module()


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(1)
    return torch.randint(0, SMALL.vocab_size, (1, 30))


def hidden(pair, ids, start=None, h=None):
    """y of a block whose anchor is the last of `ids`: 1 size d."""
    model, dspark = pair
    h = read_target(model, dspark, ids[:, :-1])[1] if h is None else h
    drafter = BlockDrafter(model, dspark)
    drafter.extend(h)
    return dspark(model, ids[0, -1:], torch.tensor([ids.shape[1] - 1]), drafter.windows)


# ---- names and sizes ----

def test_names_shapes_and_bytes_are_those_of_flash_0731():
    """4,705 tensors in files; with the trunk exactly the 166,878,536,440 bytes of the index."""
    config = Config.flash()
    with torch.device("meta"):
        dspark = DSpark(config, DSparkConfig())
    shapes = {name: tuple(t.shape) for name, t in dspark.state_dict().items()}
    own = {"mtp.0.main_proj.weight": ("FP8", (4096, 12288)),
           "mtp.0.main_norm.weight": ("BF16", (4096,)), "mtp.2.norm.weight": ("BF16", (4096,)),
           "mtp.2.hc_head_fn": ("F32", (4, 16384)), "mtp.2.hc_head_base": ("F32", (4,)),
           "mtp.2.hc_head_scale": ("F32", (1,)),
           "mtp.2.markov_head.markov_w1.weight": ("BF16", (129280, 256)),
           "mtp.2.markov_head.markov_w2.weight": ("BF16", (129280, 256)),
           "mtp.2.confidence_head.proj.weight": ("BF16", (1, 4352))}
    trunk = {name: spec for name, spec in layout.tensors(config).items() if name[:4] != "mtp."}
    block = {name.removeprefix("layers.3."): spec for name, spec in trunk.items()
             if name.startswith("layers.3.") and "compressor" not in name and "indexer" not in name}
    drafts = own | {f"mtp.{i}.{name}": spec for i in range(3) for name, spec in block.items()}
    assert shapes == {name: shape for name, (_, shape) in drafts.items()}

    def stored(tensors):
        return [spec for name, (form, shape) in tensors.items()
                for spec in layout.on_disk(name, form, shape).values()]

    of_module = {i: {name: spec for name, spec in drafts.items() if name.startswith(f"mtp.{i}.")}
                 for i in range(3)}
    assert [len(stored(of_module[i])) for i in range(3)] == [1568, 1565, 1572]
    files = stored(trunk | drafts)
    assert len(files) == 72317 and sum(map(layout.nbytes, files)) == 166_878_536_440
    assert sum(math.prod(shape) for shape in shapes.values()) == 19_845_850_983


def test_configurations():
    values = {"dspark_block_size": 5, "dspark_noise_token_id": 128799,
              "dspark_target_layer_ids": [40, 41, 42], "dspark_markov_rank": 256}
    assert DSparkConfig.from_json(values) == DSparkConfig()
    assert DSparkConfig().to_json() == values
    with pytest.raises(MinidsError, match="no dspark_markov_rank"):
        DSparkConfig.from_json({name: v for name, v in values.items() if "rank" not in name})
    with pytest.raises(MinidsError, match="expected layers 0 to 4"):
        DSpark(SMALL, DSparkConfig(5, 3, (3, 4, 5), 6))
    with pytest.raises(MinidsError, match="expected 0 to 96"):
        DSpark(SMALL, DSparkConfig(5, 97, (2, 3, 4), 6))


# ---- the equations ----

def test_what_is_read_from_the_target(pair, text):
    """The mean over the streams after each target layer; the pass is otherwise a plain one."""
    model, dspark = pair
    X, h = read_target(model, dspark, text)
    torch.testing.assert_close(X, model.features(text), atol=0, rtol=0)
    torch.testing.assert_close(h[..., -SMALL.dim:], X.mean(2), atol=0, rtol=0)   # layer 4 is last
    assert h.shape == (1, 30, 3 * SMALL.dim)
    assert not any(layer._forward_hooks for layer in model.layers)
    c = dspark.context(h)
    z = h @ dspark.mtp[0].main_proj.weight.T
    z = z / (z.square().mean(-1, keepdim=True) + SMALL.norm_eps).sqrt()
    torch.testing.assert_close(c, z * dspark.mtp[0].main_norm.weight, atol=1e-5, rtol=1e-5)


def test_the_attention_is_the_equation(pair, text):
    """One query at a time, with sines and cosines, as sections 2.3 and 3.1 read."""
    model, dspark = pair
    attn, cfg = dspark.mtp[1].attn, SMALL
    torch.manual_seed(2)
    c, x, a = torch.randn(5, cfg.dim), torch.randn(5, cfg.dim), 5

    def turned(v, position):
        v, r = v.clone(), cfg.rope_head_dim
        for i in range(r // 2):
            angle = position / 10000 ** (2 * i / r)
            j = len(v) - r + 2 * i
            u, w = v[j].item(), v[j + 1].item()
            v[j] = u * math.cos(angle) - w * math.sin(angle)
            v[j + 1] = u * math.sin(angle) + w * math.cos(angle)
        return v

    key = lambda v, position: turned(attn.kv_norm(attn.wkv(v)), position)
    keys = [key(c[t], t) for t in range(a)] + [key(x[i], a + i) for i in range(5)]
    expected = []
    for i in range(5):
        heads = attn.wq_b(attn.q_norm(attn.wq_a(x[i]))).view(cfg.n_heads, -1)
        outs = []
        for q, sink in zip(heads, attn.attn_sink):
            q = turned(q / (q.square().mean() + cfg.norm_eps).sqrt(), a + i)
            e = torch.stack([(q @ k / cfg.head_dim ** 0.5).exp() for k in keys])
            o = sum(w * k for w, k in zip(e, keys)) / (e.sum() + sink.exp())
            outs.append(turned(o, -(a + i)))
        groups = torch.cat(outs).view(cfg.o_groups, -1)
        w = attn.wo_a.weight.view(cfg.o_groups, cfg.o_lora_rank, -1)
        expected.append(attn.wo_b(torch.cat([w[g] @ groups[g] for g in range(cfg.o_groups)])))

    window = torch.zeros(1, cfg.window_size, cfg.head_dim)
    window[0, -a:] = torch.stack(keys[:a])
    y = attn(x[None], DraftPass(cfg, torch.tensor([a]), 5), window)
    torch.testing.assert_close(y[0], torch.stack(expected), atol=2e-5, rtol=2e-5)


def changes(y, other):
    """Which positions of two results, 1 T d, differ."""
    return ((y - other).abs().amax(-1)[0] > 1e-6).tolist()


def test_every_draft_sees_the_window_and_the_whole_block(pair, text):
    """The last w tokens of the context, for every position of the block, and no others."""
    model, dspark = pair
    a, w = text.shape[1] - 1, SMALL.window_size
    h, y = read_target(model, dspark, text[:, :-1])[1], hidden(pair, text)
    for t in range(a):
        other = h.clone()
        other[:, t] += torch.randn(h.shape[-1])
        assert changes(y, hidden(pair, text, h=other)) == [t >= a - w] * 5
    other = text.clone()
    other[0, -1] = (other[0, -1] + 1) % SMALL.vocab_size
    assert changes(y, hidden(pair, other, h=h)) == [True] * 5            # the anchor


def test_attention_is_not_causal_in_the_block(pair):
    """One change at the last position reaches the first."""
    attn, x = pair[1].mtp[0].attn, torch.randn(1, 5, SMALL.dim)
    window = torch.randn(1, SMALL.window_size, SMALL.head_dim)
    current = DraftPass(SMALL, torch.tensor([20]), 5)
    y = attn(x, current, window)
    for i in range(5):
        other = x.clone()
        other[:, i] += 1
        assert changes(y, attn(other, current, window)) == [True] * 5


def test_only_the_token_before_reaches_the_markov_head(pair):
    dspark = pair[1]
    before = torch.tensor([4, 9, 4])
    bias = dspark.bias(before)
    head = dspark.mtp[-1].markov_head
    torch.testing.assert_close(bias[0], head.markov_w2.weight @ head.markov_w1.weight[4])
    torch.testing.assert_close(bias[0], bias[2], atol=0, rtol=0)
    y = torch.randn(3, SMALL.dim)
    w = dspark.mtp[-1].confidence_head.proj.weight[0]
    expected = w @ torch.cat([y[1], head.markov_w1.weight[9]])
    torch.testing.assert_close(dspark.confidence(y, before)[1], expected)


# ---- decoding and training ----

def test_a_context_that_grows_is_the_context_from_scratch(pair, text):
    """In pieces of any length, also where the window is not full, and with rejected drafts."""
    model, dspark = pair
    state, drafter, pos = model.new_state(1, 40), BlockDrafter(model, dspark), 0
    for count, rejected in ((1, 0), (2, 0), (5, 2), (4, 3), (1, 0), (9, 0), (6, 5)):
        _, h = read_target(model, dspark, text[:, pos:pos + count], state)
        state.rewind(rejected)
        drafter.extend(h[:, :count - rejected])
        pos += count - rejected
        assert drafter.pos == pos == state.pos
        y = dspark(model, text[0, pos:pos + 1], torch.tensor([pos]), drafter.windows)
        torch.testing.assert_close(y, hidden(pair, text[:, :pos + 1]), atol=5e-5, rtol=5e-5)


def test_rows_begin_at_their_own_positions_and_documents_are_apart(pair, text):
    """Blocks of several places in a packed row, as in training, equal the blocks one by one."""
    model, dspark = pair
    first = torch.zeros(1, 30, dtype=torch.bool)
    first[0, [0, 13]] = True
    packing, w = Packing(first), SMALL.window_size
    _, h = read_target(model, dspark, text, options=Options(packing))
    keys = dspark.keys(dspark.context(h), packing.position)
    anchors = torch.tensor([2, 12, 15, 29])
    at = (anchors[:, None] + torch.arange(-w, 0)).clamp_min(0)
    y = dspark(model, text[0, anchors], packing.position[0, anchors], [k[0, at] for k in keys])
    for i, anchor in enumerate(anchors.tolist()):
        begin = 0 if anchor < 13 else 13
        alone = hidden(pair, text[:, begin:anchor + 1])
        torch.testing.assert_close(y[i:i + 1], alone, atol=5e-5, rtol=5e-5)


def test_every_parameter_learns(pair, text):
    model = pair[0]
    dspark = module(seed=3).requires_grad_(True)
    _, h = read_target(model, dspark, text[:, :-1])
    drafter = BlockDrafter(model, dspark)
    drafter.extend(h)
    y = dspark(model, text[0, -1:], torch.tensor([29]), drafter.windows)
    before = torch.tensor([[1, 2, 3, 4, 5]])
    logits = dspark.logits(model, y) + dspark.bias(before)
    (logits.logsumexp(-1).sum() + dspark.confidence(y, before).sum()).backward()
    idle = [name for name, p in dspark.named_parameters()
            if p.grad is None and ".experts." not in name]     # experts that no draft chose
    assert not idle
