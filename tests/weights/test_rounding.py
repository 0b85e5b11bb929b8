"""Rounding as in serving: exact numbers, a plain transcription, gradients; training with it."""

import pytest
import torch
import torch.nn.functional as F
from tiny import RAGGED, ROUNDED

import minids
from minids.errors import MinidsError
from minids.model import Model, activations
from minids.model.attention import attend_blocks
from minids.model.masks import incomplete
from minids.model.norm import rms
from minids.model.passes import Pass
from minids.model.rotary import rotate
from minids.numerics import fake_quant
from minids.pretrain import qat
from minids.pretrain.batches import batch_at
from minids.pretrain.optim import make_optimiser
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train_step
from minids.weights import layout, rounding


@pytest.fixture(scope="module")
def model():
    """A model in which every parameter matters."""
    torch.manual_seed(0)
    model = Model(RAGGED).eval().requires_grad_(False)
    for name, t in model.state_dict().items():
        if name.endswith("norm.weight"):
            t.copy_(1 + 0.3 * torch.randn(t.shape))
        elif name.endswith(("scale", "base", "sink", "ape", "bias")):
            t.copy_(0.5 * torch.randn(t.shape))
        elif not name.endswith("tid2eid"):
            t.copy_(1.5 * t.shape[-1] ** -0.5 * torch.randn(t.shape))
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 101, (2, 64), generator=torch.Generator().manual_seed(1))


# ---- exact numbers ----

def test_hadamard_by_hand():
    x = torch.tensor([4.0, 0, 0, 0])
    assert activations.hadamard_transform(x).tolist() == [2, 2, 2, 2]
    assert activations.hadamard_transform(torch.tensor([1.0, 2, 3, 4])).tolist() == [5, -1, -2, 0]
    signs = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)])
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(activations.hadamard_transform(x), x @ signs / 4)
    torch.testing.assert_close(activations.hadamard_transform(activations.hadamard_transform(x)), x)
    with pytest.raises(MinidsError, match="power of two, found 12"):
        activations.hadamard_transform(torch.zeros(2, 12))


def test_index_numbers_by_hand():
    """One channel of 8 among 16: transformed to +-2 each, which FP4 holds; without the transform
    small channels beside it are lost."""
    x = torch.zeros(16)
    x[0] = 8.0
    assert activations.round_index(x).tolist() == [2.0] * 16
    x[0], x[1] = 7.5, 0.5      # transformed: 2 and 1.75, at scale 2^-1: 4, and 3.5, a tie to 4
    assert activations.round_index(x).tolist() == [2.0] * 16
    x[0], x[1] = 8.0, 2.0      # 2.5 and 1.5, at scale 2^-1: 5, a tie to 4, and 3
    assert activations.round_index(x).tolist() == [2.0, 1.5] * 8


def test_keys_by_hand():
    """448 = amax gives scale 1, so steps of 2 from 16 on; the last r channels stay as they are."""
    kv = torch.tensor([448.0, 17.0, 19.0, 0.3, 17.0, 19.0])
    assert activations.round_keys(kv, 2).tolist() == [448.0, 16.0, 20.0, 0.3125, 17.0, 19.0]
    # the second block of 64 has its own scale, 2^-17
    kv = torch.tensor([448.0, 0.003] + [0.0] * 62 + [0.003, 1.0])
    assert activations.round_keys(kv, 1)[[1, 64, 65]].tolist() == [2 * 2.0**-9, 384 * 2.0**-17, 1.0]


def test_stored_weights_by_hand():
    w = torch.zeros(2, 32)
    w[0, :4] = torch.tensor([6.0, 2.4, 2.5, -0.3])               # scale 1
    w[1, :4] = torch.tensor([0.75, 0.3, 0.3, 1.0])               # scale 2^-2
    rounded = rounding.as_stored(w, "FP4")[:, :4]
    assert rounded.tolist() == [[6.0, 2.0, 2.0, -0.5], [0.75, 0.25, 0.25, 1.0]]
    assert rounding.as_stored(torch.tensor([1 + 2.0**-8]), "BF16").item() == 1.0
    assert rounding.as_stored(w, "F32") is w


# ---- on: the plain transcription ----

def r(x):
    return fake_quant(x, "fp8_act")


def plain_compressor(c, x, after):
    """Entries of one sequence after another, in loops."""
    m, rows = c.ratio, []
    kv, z = x @ c.wkv.weight.T, x @ c.wgate.weight.T                                     # B T fc
    for i in range(x.shape[1] // m):
        now = slice(i * m, i * m + m)
        slots, gates = kv[:, now, -c.width:], z[:, now, -c.width:] + c.ape[:, -c.width:]
        if c.overlap and i:
            before = slice(i * m - m, i * m)
            slots = torch.cat([kv[:, before, :c.width], slots], 1)
            gates = torch.cat([z[:, before, :c.width] + c.ape[:, :c.width], gates], 1)
        entry = c.norm((gates.softmax(1) * slots).sum(1))
        rows.append(after(rotate(entry[:, None], c.rotary(i * m, 1, "cpu"))[:, 0]))
    return torch.stack(rows, 1)


def plain_attention(attn, x):
    """The attention of a full pass with every rounding written out."""
    cfg, (B, T, _) = attn.config, x.shape
    rounded_keys = lambda kv: activations.round_keys(kv, cfg.rope_head_dim)
    rot = attn.rotary(0, T, "cpu")
    qr = attn.q_norm(r(x) @ attn.wq_a.weight.T)
    q = (r(qr) @ attn.wq_b.weight.T).view(B, T, cfg.n_heads, -1)
    q = rotate(rms(q, cfg.norm_eps), rot[:, None])
    kv = rounded_keys(rotate(attn.kv_norm(r(x) @ attn.wkv.weight.T), rot))
    entries = unseen = None
    if attn.ratio:
        entries = plain_compressor(attn.compressor, x, rounded_keys)
        S = entries.shape[1]
        unseen = incomplete(0, T, S, attn.ratio, "cpu")
        unseen = torch.zeros(T, S) if unseen is None else unseen
    if attn.ratio == 4:
        ix, ci = attn.indexer, cfg.index_head_dim
        keys = plain_compressor(ix.compressor, x, activations.round_index)
        qi = rotate((r(qr) @ ix.wq_b.weight.T).view(B, T, -1, ci), ix.rotary(0, T, "cpu")[:, None])
        s = torch.einsum("bthc,bsc->bths", activations.round_index(qi), keys).relu()
        s = torch.einsum("bths,bth->bts", s, x @ ix.weights_proj.weight.T) * ix.scale + unseen
        best = s.topk(cfg.index_topk).indices
        unseen = torch.full_like(s, float("-inf")).scatter(2, best, 0.0) + unseen
    window_mask = Pass(cfg, T, "cpu").window_mask(cfg.window_size, cfg.window_size)
    kv = F.pad(kv, (0, 0, cfg.window_size, 0))
    o, _ = attend_blocks(q, kv, window_mask, entries, unseen, attn.attn_sink)
    o = rotate(o, rot[:, None], inverse=True).reshape(B, T, cfg.o_groups, -1)
    wo_a = attn.wo_a.weight.view(cfg.o_groups, cfg.o_lora_rank, -1)
    o = torch.einsum("btgi,goi->btgo", o, wo_a)                          # not rounded
    return r(o.reshape(B, T, -1)) @ attn.wo_b.weight.T


def plain_expert(e, x, g=1.0):
    gate, up = r(x) @ e.w1.weight.T, r(x) @ e.w3.weight.T
    h = F.silu(gate.clamp(max=e.limit)) * up.clamp(-e.limit, e.limit)
    return r(h * g) @ e.w2.weight.T


def plain_moe(moe, x, ids):
    flat, y = x.flatten(0, 1), []
    g, chosen = moe.gate(flat, ids)                                      # not rounded
    for row, weights, experts in zip(flat, g, chosen):
        routed = [plain_expert(moe.experts[e], row, w) for w, e in zip(weights, experts)]
        y.append(plain_expert(moe.shared_experts, row) + sum(routed))
    return torch.stack(y).view_as(x)


@pytest.mark.parametrize("layer", range(4))
def test_attention_is_the_plain_transcription(model, layer):
    attn = model.layers[layer].attn
    x = torch.randn(2, 64, 160, generator=torch.Generator().manual_seed(layer))
    with rounding.serving(model):
        rounded = attn(x)
    torch.testing.assert_close(rounded, plain_attention(attn, x), atol=2e-5, rtol=1e-4)
    assert (rounded - attn(x)).abs().max() > 1e-2


@pytest.mark.parametrize("rows", [40, 1])       # a single row takes another path
def test_experts_are_the_plain_transcription(model, ids, rows):
    moe = model.layers[2].ffn
    x = torch.randn(1, rows, 160, generator=torch.Generator().manual_seed(3))
    with rounding.serving(model):
        rounded = moe(x, ids[:1, :rows])
    torch.testing.assert_close(rounded, plain_moe(moe, x, ids[:1, :rows]), atol=2e-5, rtol=1e-4)
    assert (rounded - moe(x, ids[:1, :rows])).abs().max() > 1e-2


def test_the_mtp_block_is_rounded(model, ids):
    X = model.features(ids)
    block, plain = model.mtp[0], lambda x, w: r(x) @ w.weight.T
    e, h = block.enorm(model.embed(ids)), block.hnorm(X)
    with rounding.serving(model):
        rounded = block(X, model.embed(ids), ids)
        X0 = plain(e, block.e_proj)[:, :, None] + plain(h, block.h_proj)
        inner = super(type(block), block).forward(X0, ids)
    torch.testing.assert_close(rounded, inner, atol=2e-5, rtol=1e-4)


def test_each_part_rounds_its_own(model, ids):
    """"keys" leaves the window's rotated channels alone; no part changes what others round."""
    state = model.new_state(2, 64)
    with rounding.serving(model, ["keys"]):
        model(ids, state)
    for layer in state.layers[:1]:          # below, layers have other inputs than without rounding
        kv = layer.window
        assert torch.equal(activations.round_keys(kv, 16), kv)
        plain = model.new_state(2, 64)
        model(ids, plain)
        plain_kv = plain.layers[0].window
        assert torch.equal(plain_kv[..., -16:], kv[..., -16:]) and not torch.equal(plain_kv, kv)
    csa = state.layers[1]
    assert torch.equal(activations.round_keys(csa.compressor.all(), 16), csa.compressor.all())
    keys = csa.indexer.all()
    assert not torch.equal(fake_quant(keys, "fp4_act"), keys)
    state = model.new_state(2, 64)
    with rounding.serving(model, ["index"]):
        model(ids, state)
    keys = state.layers[1].indexer.all()
    assert torch.equal(fake_quant(keys, "fp4_act"), keys)
    expected = "parts: expected some of linears, keys, index, found heads"
    with pytest.raises(MinidsError, match=expected):
        rounding.serving(model, ["heads"]).__enter__()


def test_decoding_rounds_as_a_full_pass_does(model, ids):
    state = model.new_state(2, 64)
    with rounding.serving(model):
        whole = model(ids)
        chunks = ids.split([30, 1, 1, 5, 27], dim=1)
        parts = torch.cat([model(chunk, state) for chunk in chunks], dim=1)
    apart = (whole - parts).abs()           # sums in another order may round to the next code
    assert apart.median() < 1e-5 and (whole - model(ids)).abs().median() > 1e-3


def test_the_hadamard_transform_alone_changes_no_choice(model, ids, monkeypatch):
    monkeypatch.setattr(activations, "fake_quant", lambda x, kind: x)
    with rounding.serving(model, ["index"]):
        transformed = model(ids)
    torch.testing.assert_close(transformed, model(ids), atol=1e-4, rtol=1e-4)


# ---- off: as before ----

def test_off_is_bitwise_as_before(model, ids):
    before, names = model(ids), [set(vars(m)) for m in model.modules()]
    with rounding.serving(model):
        assert not torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)
    assert [set(vars(m)) for m in model.modules()] == names
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError), rounding.serving(model):
        1 / 0
    assert torch.equal(model(ids), before)


def test_another_model_is_left_alone(model, ids):
    torch.manual_seed(5)
    other = Model(RAGGED).eval()
    before = other(ids)
    with rounding.serving(model):
        assert torch.equal(other(ids), before)


# ---- gradients and training ----

def test_gradients_pass_straight_through(model, ids):
    """The gradient of a linear's input is that of the product, as if nothing had been rounded."""
    attn = model.layers[0].attn
    x = torch.randn(1, 3, 160, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grad = torch.randn(1, 3, 32)
    with rounding.serving(model):
        attn.wkv(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ attn.wkv.weight)
    kv = torch.randn(4, 32, requires_grad=True)
    activations.round_keys(kv, 16).sum().backward()
    assert (kv.grad == 1).all()
    q = torch.randn(4, 16, requires_grad=True)
    activations.round_index(q).backward(grad[..., :16].expand(1, 3, 16)[0, :1].expand(4, 16))
    expected = activations.hadamard_transform(grad[0, :1, :16].expand(4, 16))
    torch.testing.assert_close(q.grad, expected)


SETTINGS = TrainConfig(steps=4, batch=2, seq_len=48, optimiser="muon", lr=5e-3, warmup=1,
                       packed=False)


def small():
    torch.manual_seed(1)
    return Model(ROUNDED).train()


def text():
    return torch.randint(3, 64, (3000,), generator=torch.Generator().manual_seed(2)).numpy()


@pytest.mark.slow
def test_what_is_trained_is_what_the_file_holds(tmp_path):
    masters, start = small(), small()
    copy, optimiser = qat.rounded_copy(masters), make_optimiser(masters, SETTINGS)
    for number in range(SETTINGS.steps):
        ids = torch.from_numpy(batch_at(text(), SETTINGS, number))
        record = qat.step(copy, masters, optimiser, ids, SETTINGS, number)
        assert {"loss", "index_loss", "mtp_loss"} <= set(record)
    minids.save(masters, tmp_path / "model", format="v4")
    loaded = minids.load(tmp_path / "model").state_dict()
    for name, t in copy.state_dict().items():
        assert torch.equal(loaded[name], t), name
    rounded = rounding.released(masters).state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in rounded.items())
    still = [name for name, p in masters.named_parameters()
             if torch.equal(p, start.state_dict()[name])]
    assert still == []                  # every master has moved, the indexer's too
    formats = layout.tensors(ROUNDED)
    apart = [name for name, p in masters.named_parameters() if not torch.equal(p, loaded[name])]
    assert {formats[name][0] for name in apart} == {"FP4", "FP8", "BF16"}


def test_masters_get_the_gradient_of_the_rounded_weights():
    masters, ids = small(), torch.from_numpy(batch_at(text(), SETTINGS, 0))
    copy, plain = qat.rounded_copy(masters), rounding.released(masters)
    sgd = lambda model: torch.optim.SGD([{"params": list(model.parameters()), "times": 1.0}],
                                        lr=0.0)
    qat.step(copy, masters, sgd(masters), ids, SETTINGS, 0)
    with rounding.serving(plain):
        train_step(plain, sgd(plain), ids, SETTINGS, 0)
    for (name, p), q in zip(masters.named_parameters(), plain.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


def test_small_steps_add_up_in_masters():
    """A step far below the distance of two FP4 numbers is lost in the copy, not in the masters."""
    masters = small()
    copy = qat.rounded_copy(masters)
    w, rounded = masters.layers[0].ffn.experts[0].w1.weight, copy.layers[0].ffn.experts[0].w1.weight
    before, changed = rounded.clone(), []
    for _ in range(40):
        with torch.no_grad():
            w += 1e-4
        rounding.round_weights(copy, masters)
        changed.append((rounded != before).float().mean().item())
    assert changed[0] < 0.1 and changed[-1] > 0.4


def test_another_rule_of_storing():
    model = small()
    coarse = rounding.released(model, lambda w, format: w.sign() if format == "FP4" else w)
    formats = layout.tensors(ROUNDED)
    for (name, p), q in zip(model.named_parameters(), coarse.parameters()):
        assert torch.equal(q, p.sign() if formats[name][0] == "FP4" else p)
