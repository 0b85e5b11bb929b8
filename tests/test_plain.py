"""minids.plain equals minids.Model and transformers, is causal, and calls the parts given to it."""

import copy
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from tiny import CASES, SMALL
from twin import lively, to_hf, twin

import minids
from minids import Config, MinidsError, plain
from minids.system import paths


def plain_twin(model: minids.Model, **parts) -> plain.Model:
    """plain.Model with the same weights."""
    slow = plain.Model(model.config, **parts)
    slow.load_state_dict(model.state_dict())
    return slow


def random_ids(config, *shape):
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def gradients(model, ids, loss_of):
    """The gradient of each parameter, zero where the loss does not depend on it."""
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss_of(model, ids), list(parameters.values()),
                                allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads))


def next_token_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def both_losses(model, ids):
    logits = model.mtp_logits(model.features(ids)[:, :-2], ids[:, 1:-1])
    return next_token_loss(model, ids) + F.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_those_of_minids(case):
    config = CASES[case]
    fast = lively(config, 0)
    slow, ids = plain_twin(fast), random_ids(config, 2, 90)     # beyond original_seq_len = 64
    with torch.no_grad():
        torch.testing.assert_close(slow(ids), fast(ids), atol=1e-4, rtol=1e-4)
        X = fast.features(ids)
        torch.testing.assert_close(slow.features(ids), X, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(slow.mtp_logits(X, ids), fast.mtp_logits(X, ids),
                                   atol=1e-4, rtol=1e-4)
    expected = gradients(fast, ids, both_losses)
    for name, grad in gradients(slow, ids, both_losses).items():
        torch.testing.assert_close(grad, expected[name], atol=2e-5, rtol=1e-4,
                                   msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_those_of_transformers(case):
    config = CASES[case]
    model = lively(config, 1)
    hf, slow, ids = twin(model), plain_twin(model), random_ids(config, 2, 90)
    theirs = hf(ids, use_cache=False).logits
    torch.testing.assert_close(slow(ids), theirs, atol=1e-4, rtol=1e-4)
    F.cross_entropy(theirs[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    grads = to_hf(gradients(slow, ids, next_token_loss), config)
    for name, p in hf.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(grads.pop(name), expected, atol=2e-5, rtol=1e-4,
                                   msg=lambda m: f"{name}: {m}")
    assert not grads


def test_the_gradient_of_the_affinity_is_finite():
    x = torch.tensor([-200.0, -105.0, -20.0, 0.0, 50.0], requires_grad=True)
    slope, = torch.autograd.grad(plain.affinity(x).sum(), x)
    assert slope.isfinite().all() and (slope[2:] > 0).all()


@torch.no_grad()
def test_no_output_depends_on_a_later_token():
    T, model = 40, plain_twin(lively(SMALL, 2))
    ids = random_ids(SMALL, 1, T).repeat(T + 1, 1)
    for t in range(T):                                          # row t: a different token at t
        ids[t, t] = (ids[t, t] + 1) % SMALL.vocab_size
    logits = model(ids)
    moved = (logits[:T] - logits[T]).abs().amax(-1) > 1e-3      # T T: token, position
    assert not moved.tril(-1).any()
    assert moved.diagonal().all()


@torch.no_grad()
def test_text_shorter_than_every_window():
    model = lively(SMALL, 2)
    for T in (1, 3):
        ids = random_ids(SMALL, 2, T)
        torch.testing.assert_close(plain_twin(model)(ids), model(ids), atol=1e-4, rtol=1e-4)


# ---- parts ----

def test_functions_lists_all_functions_of_the_model():
    defined = [f for f in vars(plain).values()
               if isinstance(f, FunctionType) and f.__module__ == plain.__name__]
    others = {"with_parts", "linear", "norm", "parameter", "initialise"}
    assert {f.__name__ for f in defined} - others == set(plain.FUNCTIONS)


@pytest.mark.slow
@torch.no_grad()
def test_every_part_is_called_wherever_it_is_used():
    called = set()

    def recorded(name):
        def part(*args):
            called.add(name)
            return plain.FUNCTIONS[name](*args)
        return part

    config = SMALL.replace(n_layers=3, compress_ratios=(0, 4, 16, 0), n_hash_layers=1,
                           n_routed_experts=3)
    model, ids = lively(config, 3), random_ids(config, 1, 20)
    X = model.features(ids)
    for name in plain.FUNCTIONS:
        slow = plain_twin(model, **{name: recorded(name)})
        torch.testing.assert_close(slow(ids), model(ids), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(slow.mtp_logits(X, ids), model.mtp_logits(X, ids),
                                   atol=1e-4, rtol=1e-4)
        slow.features(ids)
        assert name in called


@torch.no_grad()
@pytest.mark.parametrize("name, part", [
    ("sinkhorn", lambda raw, iters, eps: raw.softmax(-1)),      # maps calls it
    ("rotate", lambda x, theta: x),                             # queries, keys and others call it
    ("rms", lambda x, eps: x),
    ("visible", lambda T, S, m: torch.zeros(T, S, dtype=torch.bool)),
    ("affinity", torch.sigmoid),
])
def test_a_part_of_a_part_is_replaced_in_that_model_only(name, part):
    model, ids = lively(SMALL, 4), random_ids(SMALL, 1, 20)
    before = plain_twin(model)
    changed = plain_twin(model, **{name: part})
    assert (changed(ids) - model(ids)).abs().max() > 1e-2
    for other in (before, plain_twin(model)):
        torch.testing.assert_close(other(ids), model(ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(copy.deepcopy(changed)(ids), changed(ids), atol=0, rtol=0)
    assert getattr(plain, name) is plain.FUNCTIONS[name]


def test_invalid_parts():
    with pytest.raises(MinidsError, match="no part 'sinkhorns': expected one of rms, .*sinkhorn"):
        plain.Model(SMALL, sinkhorns=plain.sinkhorn)
    with pytest.raises(MinidsError, match="part route: expected a function, found int"):
        plain.Model(SMALL, route=1)


@torch.no_grad()
def test_the_functions_work_on_the_modules_of_minids():
    model, ids = lively(SMALL, 6), random_ids(SMALL, 2, 40)
    torch.testing.assert_close(plain.model_forward(model, ids), model(ids), atol=1e-4, rtol=1e-4)
    X = model.features(ids)
    torch.testing.assert_close(plain.mtp(model, X, ids), model.mtp_logits(X, ids),
                               atol=1e-4, rtol=1e-4)


# ---- weights ----

@torch.no_grad()
def test_a_checkpoint_of_minids():
    model = minids.load(paths.data("checkpoints", "nano"))
    slow, ids = plain_twin(model), random_ids(model.config, 2, 100)
    torch.testing.assert_close(slow(ids), model(ids), atol=1e-3, rtol=1e-3)
    back = minids.Model(model.config).eval()
    back.load_state_dict(slow.state_dict())
    assert torch.equal(back(ids), model(ids))


def shapes(model):
    return {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}


# Flash with four of its layers and 8 of its 256 experts: the whole model takes a minute to build,
# even on the meta device.
FLASH = Config.flash().replace(n_layers=4, compress_ratios=(0, 4, 128, 4, 0), n_hash_layers=1,
                               n_routed_experts=8)


@pytest.mark.parametrize("config", [Config.nano(), Config.mini(), FLASH],
                         ids=["nano", "mini", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_names_shapes_and_types(config, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert shapes(plain.Model(config)) == shapes(minids.Model(config))
    finally:
        torch.set_default_dtype(before)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(7)
    expected = minids.Model(SMALL).state_dict()
    torch.manual_seed(7)
    for name, t in plain.Model(SMALL).state_dict().items():
        torch.testing.assert_close(t, expected[name], atol=0, rtol=1e-6,
                                   msg=lambda m: f"{name}: {m}")


def test_invalid_input():
    model = plain.Model(SMALL)
    for ids, message in (
            (torch.zeros(3, dtype=torch.long),
             r"a non-empty B x T tensor of integers, found \(3,\)"),
            (torch.zeros(1, 3), r"integers, found \(1, 3\) of torch.float32"),
            (torch.full((1, 2), 97), "expected 0 to 96, found 97 to 97"),
            (torch.zeros(1, 1025, dtype=torch.long),
             r"at most 1024 tokens \(max_seq_len\), found 1025")):
        with pytest.raises(MinidsError, match=message):
            model(ids)
    with pytest.raises(MinidsError, match="use model.float\\(\\)"):
        model.bfloat16()(torch.zeros(1, 3, dtype=torch.long))
