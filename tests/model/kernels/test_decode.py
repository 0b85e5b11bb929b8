"""One token through an attention layer: the kernels, the torch path and one pass over the whole
text agree, and they leave the same state."""

import pytest
import torch
from tiny import SMALL, one_layer
from twin import lively

from minids.model import decoding, kernels
from minids.model.indexer import Indexer
from minids.model.kernels import decode_attention
from minids.model.passes import Options, Pass

KINDS = {"window only": one_layer(0), "CSA": one_layer(4), "CSA, two picks":
         one_layer(4, index_topk=2), "HCA": one_layer(16), "HCA, long windows": one_layer(128),
         "odd sizes": one_layer(4, dim=45, q_lora_rank=7, window_size=3, head_dim=18,
                                rope_head_dim=6, index_head_dim=10, o_lora_rank=5),
         "a window of one token": one_layer(0, window_size=1)}


@pytest.fixture
def decoded(monkeypatch):
    """How many tokens the kernels have decoded, one number a call."""
    calls, original = [], decoding.attention

    def counting(layer, x, *others):
        calls.append(len(x))
        return original(layer, x, *others)

    monkeypatch.setattr(decoding, "attention", counting)
    return calls


def inputs(config, B, T):
    """An attention layer, and vectors for it: B T d."""
    return lively(config, 0).layers[0].attn, torch.randn(B, T, config.dim)


def state_of(config, B, T):
    return lively(config, 0).new_state(B, T).layers[0]


def read(layer, x, state, cuts):
    """The layer's outputs for x, read in chunks of these lengths: B T d."""
    pos, parts = 0, []
    for part in x.split(cuts, dim=1):
        current = Pass(layer.config, part.shape[1], x.device, pos)
        parts.append(layer(part, current, state))
        pos += part.shape[1]
    return torch.cat(parts, dim=1)


def contents(state):
    """All that the state holds."""
    parts = [part for c in state.compressors for part in (c.all(), *(c.tail or ()),
                                                         *(c.before or ()))]
    return [state.window, *parts]


def assert_equal_states(one, other):
    assert [part.count for part in one.compressors] == [part.count for part in other.compressors]
    assert [part.nbytes() for part in one.compressors] \
        == [part.nbytes() for part in other.compressors]
    for mine, theirs in zip(contents(one), contents(other), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("B", [1, 3, 12])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_decoding_equals_torch_and_one_pass(kind, B, decoded):
    config = KINDS[kind]
    cuts = [1] * 9 + [30] + [1] * 20 + [5, 66] + [1] * 10
    T = sum(cuts)
    layer, x = inputs(config, B, T)
    state, by_torch = state_of(config, B, T), state_of(config, B, T)
    y = read(layer, x, state, cuts)
    assert decoded == [B] * 39
    with kernels.switched_off("decode"):
        torch.testing.assert_close(y, read(layer, x, by_torch, cuts), atol=1e-5, rtol=1e-5)
    assert len(decoded) == 39
    torch.testing.assert_close(y, layer(x), atol=1e-5, rtol=1e-5)
    assert_equal_states(state, by_torch)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_state_goes_back(kind):
    """After `rewind`, `restore` and `select`, decoding goes on as if it had read nothing else."""
    config = KINDS[kind]
    layer, x = inputs(config, 2, 60)
    right = layer(x)
    state, other = state_of(config, 2, 60), torch.randn(2, 60, config.dim)
    step = lambda x, t: layer(x[:, t:t + 1], Pass(config, 1, x.device, t), state)
    read(layer, x[:, :7], state, [7])
    for t in range(7, 40):
        mark = state.mark()
        for later in range(t, t + t % 6):       # other tokens, across the ends of windows
            step(other, later)
        state.restore(mark)
        step(other, t)
        assert state.new == 1
        state.rewind(1)
        torch.testing.assert_close(step(x, t), right[:, t:t + 1], atol=1e-5, rtol=1e-5)
    mark = state.mark()
    for t in range(40, 57):
        step(other, t)
    state.restore(mark)
    state.select(torch.tensor([1, 1, 0]))
    for t in range(40, 60):
        y = step(x[[1, 1, 0]], t)
        torch.testing.assert_close(y, right[[1, 1, 0], t:t + 1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_threads_do_not_matter():
    """Many rows are shared among threads."""
    threads = torch.get_num_threads()
    q, rot, sink, values = (torch.randn(*size) for size in ((12, 64), (32,), (2,), (12, 9, 32)))
    picks, outputs = torch.randint(0, 9, (12, 5)), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert kernels.on("decode", q)
            for attend in (decode_attention.attend, decode_attention.attend_many):
                o = torch.empty(12, 64)
                attend(q.clone().numpy(), 1e-6, rot.numpy(), values.numpy(), 2, 8, values.numpy(),
                       5, picks.numpy(), sink.numpy(), o.numpy())
                outputs.append(o)
    finally:
        torch.set_num_threads(threads)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


def test_replaced_weights_are_noticed(decoded):
    """Weights that changed in place, or are other tensors, or another layer's."""
    config = one_layer(4)
    layer, x = inputs(config, 1, 12)
    other = lively(config, 1).layers[0].attn
    with torch.no_grad():
        changes = [lambda: layer.wq_a.weight.mul_(2),
                   lambda: setattr(layer.wkv.weight, "data", torch.randn(32, 64)),
                   lambda: setattr(layer.compressor, "ape", torch.nn.Parameter(torch.ones(4, 64))),
                   lambda: layer.load_state_dict(other.state_dict(), assign=True)]
        for change in changes:
            state, by_torch = state_of(config, 1, 12), state_of(config, 1, 12)
            read(layer, x[:, :6], state, [1] * 6)
            with kernels.switched_off("decode"):
                read(layer, x[:, :6], by_torch, [1] * 6)
            change()
            for t in range(6, 12):
                current = Pass(config, 1, x.device, t)
                y = layer(x[:, t:t + 1], current, state)
                with kernels.switched_off("decode"):
                    right = layer(x[:, t:t + 1], current, by_torch)
                torch.testing.assert_close(y, right, atol=1e-5, rtol=1e-5)
    assert len(decoded) == 4 * 12


def test_who_watches_or_changes_a_layer_gets_torch(decoded, monkeypatch):
    config = one_layer(4)
    layer, x = inputs(config, 1, 9)

    def decodes(x=x, layer=layer, options=Options()):
        state = lively(config, 0).to(x.dtype).new_state(1, 9).layers[0]
        decoded.clear()
        layer(x[:, :1], Pass(config, 1, x.device, 0, options), state)
        return bool(decoded)

    assert not decodes()                                    # a gradient may be needed
    with torch.no_grad():
        assert decodes()
        assert not decodes(options=Options(dense=True))
        assert not decodes(options=Options(index=True))
        assert not decodes(x.double(), lively(config, 0).layers[0].attn.double())
        for part in (layer.wq_a, layer.indexer, layer.indexer.compressor.norm):
            hook = part.register_forward_hook(lambda *_: None)
            assert not decodes()
            hook.remove()
        for part, name in ((layer, "round_keys"), (layer.wo_b, "round_input"),
                           (layer.compressor, "round_keys"), (layer.indexer, "round_queries"),
                           (layer.indexer.compressor, "round_index")):
            setattr(part, name, True)
            assert not decoding.possible(layer, x[:, :1], Pass(config, 1, x.device),
                                         state_of(config, 1, 9))
            setattr(part, name, False)
        monkeypatch.setattr(Indexer, "forward", lambda *_: None)
        assert not decodes()
        monkeypatch.undo()


def test_decoding_leaves_what_a_gradient_needs():
    """Tokens decoded without a gradient after a pass with one, then again from before."""
    layer, x = inputs(one_layer(4), 2, 30)
    gradients = []
    for then in (False, True):
        state = state_of(one_layer(4), 2, 40)
        x.requires_grad_(True)
        y = read(layer, x, state, [22, 8])
        if then:
            state.rewind(5)
            with torch.no_grad():
                for t in range(25, 33):
                    layer(torch.randn(2, 1, 64), Pass(layer.config, 1, x.device, t), state)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_state_of_inference_mode_goes_on_without_it():
    layer, x = inputs(one_layer(4), 12, 20)
    state = state_of(one_layer(4), 12, 20)
    with torch.inference_mode():
        read(layer, x[:, :6], state, [3, 1, 1, 1])
    with torch.no_grad():
        for t in range(6, 20):
            y = layer(x[:, t:t + 1], Pass(layer.config, 1, x.device, t), state)
        torch.testing.assert_close(y, layer(x)[:, -1:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_nan_stays():
    layer, x = inputs(one_layer(4), 2, 9)
    state = state_of(one_layer(4), 2, 9)
    read(layer, x[:, :8], state, [8])
    x[1, 8, 3] = float("nan")
    y = layer(x[:, 8:], Pass(layer.config, 1, x.device, 8), state)
    assert y[1].isnan().all() and y[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL.replace(index_topk=2)], ids=["small", "own picks"])
@torch.inference_mode()
def test_a_whole_model_at_64_rows(config):
    model, ids = lively(config, 0), torch.randint(0, 97, (64, 60))
    state = model.new_state(64, 60)
    parts = [model(part, state) for part in ids.split([20] + [1] * 40, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=5e-5, rtol=5e-5)
