"""Lesson 06: right answers written otherwise pass, slips are named, claims hold, figures draw."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from minids import plain
from minids.config import Config
from minids.learn.checks import find
from minids.learn.checks import moe as checks
from minids.learn.judge import check
from minids.model.moe import Gate, balance, sequence_balance
from minids.show import moe as pictures

SMALL = Config(**checks.SIZES)


def expert_with_g_after_w2(x, w1, w2, w3, limit, g):
    gate, up = x @ w1.T, x @ w3.T
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return g * ((F.silu(gate) * up) @ w2.T)


def layer_token_by_token(ffn, x, g):
    def run(expert, x, g):
        limit = ffn.gate.config.swiglu_limit
        w1, w2, w3 = expert.w1.weight, expert.w2.weight, expert.w3.weight
        return plain.expert_forward(x, w1, w2, w3, limit, g)

    rows = []
    for n in range(len(x)):
        chosen = g[n].nonzero().squeeze(1)
        rows.append(sum(run(ffn.experts[e], x[n:n + 1], g[n, e]) for e in chosen))
    return torch.cat(rows) + run(ffn.shared_experts, x, 1.0)


def layer_with_all_experts(ffn, x, g):
    """Every expert works on every token, and g is 0 where it was not chosen."""
    limit, y = ffn.gate.config.swiglu_limit, 0.0
    pairs = [(one, g[:, e, None]) for e, one in enumerate(ffn.experts)]
    for one, weight in [*pairs, (ffn.shared_experts, 1.0)]:
        matrices = one.w1.weight, one.w2.weight, one.w3.weight
        y = y + plain.expert_forward(x, *matrices, limit, weight)
    return y


def grouped_by_package(ffn, x, g):
    y = ffn.shared_experts(x)
    for e, expert in enumerate(ffn.experts):
        y = y + g[:, e, None] * expert(x)
    return y


def route_with_a_mask(x, weight, bias, K, scale):
    s = torch.logaddexp(x @ weight.T, torch.zeros(())).sqrt()
    kth = (s + bias).topk(K).values[:, -1:]
    g = s * (s + bias >= kth)
    return scale * g / g.sum(1, keepdim=True)


def loss_of_package(s, experts):
    total, count = sequence_balance(s.flatten(0, 1), experts.flatten(0, 1), len(s))
    return total / count


def loss_by_loops(s, experts):
    B, T, E = s.shape
    K, losses = experts.shape[2], []
    for b in range(B):
        f = torch.bincount(experts[b].flatten(), minlength=E) * (E / (K * T))
        losses.append(sum(f[e] * (s[b, :, e] / s[b].sum(1)).mean() for e in range(E)))
    return sum(losses) / B


def route_by_loops(x, weight, bias, K, scale):
    rows = []
    for token in x:
        s = torch.log(1 + torch.exp(weight @ token)) ** 0.5
        chosen = sorted(range(len(s)), key=lambda e: -(s[e] + bias[e]).item())[:K]
        total = sum(s[e] for e in chosen)
        rows.append(torch.stack([s[e] / total * scale if e in chosen else s[e] * 0
                                 for e in range(len(s))]))
    return torch.stack(rows)


def hash_route_with_a_mask(x, ids, weight, table, scale):
    s = F.softplus(F.linear(x, weight)).pow(0.5)
    mask = F.one_hot(table[ids], len(weight)).sum(1)
    g = s * mask
    return g * (scale / g.sum(-1, keepdim=True))


def expert_by_minimum(x, w1, w2, w3, limit, g):
    a, b = F.linear(x, w1), F.linear(x, w3)
    if limit > 0:
        a = torch.minimum(a, torch.tensor(limit))
        b = torch.maximum(torch.minimum(b, torch.tensor(limit)), torch.tensor(-limit))
    return F.linear(g * (a * torch.sigmoid(a)) * b, w2)


def table_by_lists(p, E, K):
    load, rows = [0.0] * E, {}
    for token in sorted(range(len(p)), key=lambda i: -p[i].item()):
        rows[token] = sorted(sorted(range(E), key=lambda e: (load[e], e))[:K])
        for e in rows[token]:
            load[e] += p[token].item() / K
    return torch.tensor([rows[i] for i in range(len(p))])


@pytest.mark.parametrize("name, attempt", [
    ("moe.expert", expert_with_g_after_w2), ("moe.expert", expert_by_minimum),
    ("moe.layer", layer_token_by_token), ("moe.layer", layer_with_all_experts),
    ("moe.grouped", grouped_by_package),
    ("moe.route", route_with_a_mask), ("moe.route", route_by_loops),
    ("moe.hash_route", hash_route_with_a_mask),
    ("moe.balanced_table", table_by_lists),
    ("moe.sequence_balance", checks.with_gradient(loss_of_package)),
    ("moe.sequence_balance", checks.with_gradient(loss_by_loops)),
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(load * len(load) - load.sum())),
    ("moe.bias_step", lambda bias, load, u: torch.stack(
        [b - u * float(n > load.double().mean()) + u * float(n < load.double().mean())
         for b, n in zip(bias, load)])),
])
def test_a_right_answer_written_otherwise_passes(name, attempt):
    assert check(name, attempt) is attempt


def route_as_typed(x, weight, bias, K, scale, pick=None, weigh=None, norm=None, times=None):
    """The solution as a learner might type it, with room for one slip."""
    logits = x @ weight.T
    s = torch.sqrt(F.softplus(logits))
    _, index = torch.topk(s + bias if pick is None else pick(s, logits, bias), K, dim=-1)
    g = torch.gather(s if weigh is None else weigh(s, logits, bias), 1, index)
    g = g / g.sum(-1, keepdim=True) if norm is None else norm(g, s)
    out = torch.zeros(len(x), len(weight))
    out[torch.arange(len(x))[:, None], index] = g * (scale if times is None else times)
    return out


def routed(**changes):
    return lambda *args: route_as_typed(*args, **changes)


def route_with_linear(x, weight, bias, K, scale):
    s = F.softplus(F.linear(x, weight, bias)).sqrt()
    g, index = s.topk(K)
    return torch.zeros_like(s).scatter(1, index, g / g.sum(1, keepdim=True) * scale)


def expert_as_typed(x, w1, w2, w3, limit, g, gate=None, up=None, hidden=None):
    a, b = x @ w1.T, x @ w3.T
    if limit:
        a = a.clamp(max=limit) if gate is None else gate(a, limit)
        b = b.clamp(min=-limit, max=limit) if up is None else up(b, limit)
    h = F.silu(a) * b * g if hidden is None else hidden(a, b, g)
    return h @ w2.T


def expert(**changes):
    return lambda *args: expert_as_typed(*args, **changes)


def expert_at_10(x, w1, w2, w3, limit, g):
    a, b = (x @ w1.T).clamp(max=10), (x @ w3.T).clamp(-10, 10)
    return (F.silu(a) * b * g) @ w2.T


def layer_as_typed(ffn, x, g, column=None, over=None, shared=None, start=None, limit=None):
    top = ffn.gate.config.swiglu_limit if limit is None else limit

    def run(one, weight):
        return plain.expert_forward(x, one.w1.weight, one.w2.weight, one.w3.weight, top, weight)
    y = torch.zeros_like(x)
    for e in range(len(ffn.experts) if over is None else over(ffn)):
        y = y + run(ffn.experts[e], g[:, e:e + 1] if column is None else column(g, e))
    last = run(ffn.shared_experts, 1.0) if shared is None else shared(run, ffn, g)
    return y + last


def layer(**changes):
    return lambda *args: layer_as_typed(*args, **changes)


def layer_with_matrices(*names):
    """The matrices handed over in another order."""
    def attempt(ffn, x, g):
        limit, y = ffn.gate.config.swiglu_limit, 0
        for e, one in enumerate(ffn.experts):
            matrices = [getattr(one, name).weight for name in names]
            y = y + plain.expert_forward(x, *matrices, limit, g[:, e:e + 1])
        return y
    return attempt


def grouped(weigh):
    """The sorted layer with a learner's way to the weights of the rows."""
    def attempt(ffn, x, g):
        K = ffn.gate.config.n_activated_experts
        weights, chosen = g.topk(K)
        order = chosen.flatten().argsort(stable=True)
        sizes = torch.bincount(chosen.flatten(), minlength=len(ffn.experts)).tolist()
        rows = [e(run) for e, run in zip(ffn.experts, x[order // K].split(sizes))]
        y = torch.cat(rows) * weigh(weights, order, K)[:, None]
        return y[order.argsort()].view(len(x), K, -1).sum(1) + ffn.shared_experts(x)
    return attempt


def layer_that_overwrites(ffn, x, g):
    limit = ffn.gate.config.swiglu_limit
    for e, one in enumerate(ffn.experts):
        matrices = one.w1.weight, one.w2.weight, one.w3.weight
        y = plain.expert_forward(x, *matrices, limit, g[:, e, None])
    one = ffn.shared_experts
    return y + plain.expert_forward(x, one.w1.weight, one.w2.weight, one.w3.weight, limit, 1.0)


def hash_as_typed(x, ids, weight, table, scale, chosen=None, norm=None):
    s = F.softplus(x @ weight.T).sqrt()
    index = table[ids] if chosen is None else chosen(s, ids, table)
    g = s.gather(1, index)
    g = g / g.sum(1, keepdim=True) * scale if norm is None else norm(g, s, scale)
    return torch.zeros_like(s).scatter(1, index, g)


def hashed(**changes):
    return lambda *args: hash_as_typed(*args, **changes)


def table_as_typed(p, E, K, order=None, add=None, rows=None):
    table, load = torch.zeros(len(p), K, dtype=torch.long), torch.zeros(E)
    tokens = torch.argsort(p, descending=True) if order is None else order(p)
    for i, token in enumerate(tokens.tolist()):
        best = torch.argsort(load, stable=True)[:K]
        load[best] += p[token] if add is None else add
        table[token if rows is None else i] = torch.sort(best)[0]
    return table


def tabled(**changes):
    return lambda *args: table_as_typed(*args, **changes)


def balanced_as_typed(s, experts, f_of=None, P_of=None, end=None):
    B, T, E = s.shape
    K = experts.shape[-1]
    count = F.one_hot(experts, num_classes=E).sum(dim=(1, 2)).float()
    f = count * E / (K * T) if f_of is None else f_of(count, E, K, T)
    P = (s / s.sum(dim=-1, keepdim=True)).mean(dim=1) if P_of is None else P_of(s)
    return (f * P).sum(dim=1).mean() if end is None else end(f * P)


def balanced(**changes):
    return checks.with_gradient(lambda s, experts: balanced_as_typed(s, experts, **changes))


def steps(sign):
    return lambda bias, load, u: bias - u * sign(load.float())


def step_by_where(bias, load, u):
    return torch.where(load > load.float().mean(), bias - u, bias + u)


@pytest.mark.parametrize("name, attempt, words", [
    ("moe.route", routed(weigh=lambda s, logits, bias: s + bias), "takes part in the weights"),
    ("moe.route", routed(pick=lambda s, logits, bias: s), "you do not use the bias"),
    ("moe.route", routed(pick=lambda s, logits, bias: logits + bias), "you pick by W x + bias"),
    ("moe.route", route_with_linear, "you add the bias to W x"),
    ("moe.route", routed(norm=lambda g, s: g), "do not normalise"),
    ("moe.route", routed(norm=lambda g, s: g, times=1.0), "neither normalised nor scaled"),
    ("moe.route", routed(norm=lambda g, s: g / s.sum(-1, keepdim=True)), "over all experts"),
    ("moe.route", routed(norm=lambda g, s: g / g.sum(0)), "sum over the tokens"),
    ("moe.route", routed(norm=lambda g, s: g.softmax(-1)), "a softmax over the chosen aff"),
    ("moe.route", routed(weigh=lambda s, logits, bias: logits, norm=lambda g, s: g.softmax(-1)),
     "a softmax over the chosen W x"),
    ("moe.route", routed(times=1.0), "route_scale is missing"),
    ("moe.route", lambda x, weight, bias, K, scale: x @ weight, "should be transposed"),
    ("moe.hash_route", hashed(chosen=lambda s, ids, table: table[:len(ids)]), "by position"),
    ("moe.hash_route", hashed(norm=lambda g, s, scale: g * scale), "do not normalise"),
    ("moe.hash_route", hashed(norm=lambda g, s, scale: g), "neither normalised nor scaled"),
    ("moe.hash_route", hashed(norm=lambda g, s, scale: torch.full_like(g, scale / g.shape[1])),
     "weights are all the same"),
    ("moe.hash_route", hashed(norm=lambda g, s, scale: g / g.sum(1, keepdim=True)),
     "route_scale is missing"),
    ("moe.hash_route", hashed(chosen=lambda s, ids, table: s.topk(2 if len(ids) > 9 else
                                                                  table.shape[1])[1]),
     "top K of the affinities"),
    ("moe.expert", expert_at_10, "you clamp at 10, whatever the limit"),
    ("moe.expert", expert(gate=lambda a, v: a.clamp(-v, v)), "clamp w1 x on both sides"),
    ("moe.expert", expert(up=lambda b, v: b.clamp(max=v)), "clamp w3 x from above only"),
    ("moe.expert", expert(up=lambda b, v: b), "you clamp w1 x only"),
    ("moe.expert", expert(gate=lambda a, v: a), "you clamp w3 x only"),
    ("moe.expert", expert(hidden=lambda a, b, g: F.silu(a * g) * b), "before the SiLU"),
    ("moe.expert", expert(hidden=lambda a, b, g: a * F.silu(b) * g), "the SiLU to w3 x"),
    ("moe.expert", expert(hidden=lambda a, b, g: a.sigmoid() * b * g), "you apply a sigmoid"),
    ("moe.expert", expert(hidden=lambda a, b, g: F.silu(a) * b), "you do not use g"),
    ("moe.expert", expert(hidden=lambda a, b, g: F.silu(a * b) * g), "SiLU to the product"),
    ("moe.expert", lambda x, w1, w2, w3, limit, g: (F.silu(x @ w1) * (x @ w3) * g) @ w2,
     "as in torch.nn.Linear"),
    ("moe.layer", layer(column=lambda g, e: g[:, e]), "should be N 1"),
    ("moe.layer", layer_with_matrices("w1", "w3", "w2"), "the order should be w1, w2, w3"),
    ("moe.layer", layer_with_matrices("w2", "w1", "w3"), "the order should be w1, w2, w3"),
    ("moe.grouped", grouped(lambda weights, order, K: weights[order // K].sum(1)),
     "the sum of its token's weights"),
    ("moe.grouped", grouped(lambda weights, order, K: weights[order // K, 0]),
     "its token's first weight"),
    ("moe.grouped", grouped(lambda weights, order, K: weights.flatten()[order // K]),
     "by the token's number"),
    ("moe.sequence_balance", lambda s, experts: (
        balanced_as_typed(s, experts).item(), torch.zeros_like(s)), "taken out by .item()"),
    ("moe.layer", layer(over=lambda ffn: 2), "your loop runs over K experts"),
    ("moe.layer", layer(limit=0.0), "your experts have no clamps"),
    ("moe.layer", layer(shared=lambda run, ffn, g: 0.0), "you forget the shared expert"),
    ("moe.layer", layer(shared=lambda run, ffn, g: run(ffn.shared_experts,
                                                       g.sum(1, keepdim=True))),
     "by the scale of the routed ones"),
    ("moe.layer", layer(column=lambda g, e: 1.0), "with the weight 1"),
    ("moe.layer", layer_that_overwrites, "lose those before"),
    ("moe.layer", lambda ffn, x, g: sum(one(x) for one in ffn.experts), "you call an expert"),
    ("moe.balanced_table", tabled(order=lambda p: p.argsort()), "rarest tokens"),
    ("moe.balanced_table", tabled(order=lambda p: torch.arange(len(p))), "order of their ids"),
    ("moe.balanced_table", tabled(add=1), "count each token alike"),
    ("moe.balanced_table", tabled(add=0), "the same K experts"),
    ("moe.balanced_table", tabled(rows="rank"), "the token's rank"),
    ("moe.bias_step", steps(lambda load: load - load.mean()), "proportional to the excess"),
    ("moe.bias_step", steps(lambda load: (load.mean() - load).sign()), "your sign is wrong"),
    ("moe.bias_step", steps(lambda load: (load > load.mean()).float()), "only overloaded"),
    ("moe.bias_step", step_by_where, "exactly the mean load up"),
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(load - load.sum() // len(load)),
     "you round the mean down"),
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(load - load.mean()),
     "the mean of whole numbers"),
    ("moe.bias_step", lambda bias, load, u: -u * torch.sign(load - load.float().mean()),
     "return the step alone"),
    ("moe.sequence_balance", balanced(f_of=lambda n, E, K, T: n / (K * T)), "E times too small"),
    ("moe.sequence_balance", balanced(f_of=lambda n, E, K, T: n * E / T), "K is missing"),
    ("moe.sequence_balance", balanced(f_of=lambda n, E, K, T: n * E / K), "T is missing"),
    ("moe.sequence_balance", balanced(f_of=lambda n, E, K, T: n), "f is only the count"),
    ("moe.sequence_balance", balanced(P_of=lambda s: s.mean(1)), "do not normalise"),
    ("moe.sequence_balance", balanced(P_of=lambda s: s.softmax(-1).mean(1)), "P is a softmax"),
    ("moe.sequence_balance", balanced(P_of=lambda s: (s / s.sum(1, keepdim=True)).mean(1)),
     "over the tokens"),
    ("moe.sequence_balance", balanced(end=torch.sum), "you add the sequences"),
    ("moe.sequence_balance", balanced(end=torch.mean), "E times too small"),
    ("moe.sequence_balance", balanced(f_of=lambda n, E, K, T: n.mean(0) * E / (K * T)),
     "over the whole batch"),
    ("moe.sequence_balance", balanced(P_of=lambda s: (s / s.sum(-1, keepdim=True)).mean((0, 1))),
     "over the whole batch"),
])
def test_a_slip_is_named(name, attempt, words, capsys):
    assert check(name, attempt) is not attempt
    said = " ".join(capsys.readouterr().out.split())
    assert "Likely: " in said and words in said, said


@pytest.mark.parametrize("repairs", [{}, {"weigh": "sorted"}, {"back": "inverse"},
                                     {"weigh": "sorted", "back": None}])
def test_a_colleague_half_repaired_is_told(repairs, capsys):
    def attempt(ffn, x, g):
        return checks.grouped_with(ffn, x, g, **{"weigh": "tokens", "back": "order", **repairs})
    check("moe.grouped", attempt)
    assert "Likely: " in capsys.readouterr().out


def test_an_affinity_without_the_root_is_named_in_any_spelling(capsys):
    def attempt(x, weight, bias, K, scale):
        return checks.route_with(x, weight, bias, K, scale, score=lambda v: (1 + v.exp()).log())
    check("moe.route", attempt)
    assert "without the square root" in capsys.readouterr().out


@pytest.mark.parametrize("name, attempt", [
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(load - load.sum() // len(load))),
    ("moe.bias_step", lambda bias, load, u: bias - u * torch.sign(
        load - load.float().mean().round())),
    ("moe.sequence_balance", checks.with_gradient(lambda s, experts: (
        F.one_hot(experts).sum(2).float().mean(1) * s.shape[2] / experts.shape[2]
        * (s / s.sum(-1, keepdim=True)).mean(1)).sum(1).mean())),
    ("moe.expert", expert_at_10),
    ("moe.expert", lambda x, w1, w2, w3, limit, g: plain.expert_forward(
        x.bfloat16(), w1.bfloat16(), w2.bfloat16(), w3.bfloat16(), limit, g.bfloat16()).float()),
])
def test_what_is_nearly_right_does_not_pass(name, attempt):
    assert check(name, attempt) is not attempt


@pytest.mark.parametrize("name", ["moe.route", "moe.hash_route", "moe.expert", "moe.layer"])
def test_a_result_without_its_gradient_does_not_pass(name):
    @torch.no_grad()
    def attempt(*args):
        return find(name).reference(*args)
    assert check(name, attempt) is not attempt


def test_the_bias_step_is_the_package():
    gate = Gate(SMALL, is_hash=False)
    load = torch.tensor([5, 0, 3, 3, 4])       # the mean is 3
    expected = checks.bias_step(gate.bias, load, 0.01)
    balance(gate, [load], 0.01)
    assert torch.equal(gate.bias, expected)
    torch.testing.assert_close(gate.bias, torch.tensor([-0.01, 0.01, 0, 0, -0.01]))


def test_a_balanced_table_is_more_even_than_random_ones():
    rng = torch.Generator().manual_seed(0)
    p = 1 / torch.arange(1.0, 301)
    p /= p.sum()

    def worst(table):
        load = torch.bincount(table.flatten(), weights=p.repeat_interleave(2), minlength=8)
        return (load.max() / load.mean()).item()
    table = checks.balanced_table(p, 8, 2)
    assert (table[:, 0] < table[:, 1]).all() and worst(table) < 1.05
    assert all(worst(torch.rand(300, 8, generator=rng).argsort(1)[:, :2]) > 1.05 for _ in range(20))


def test_the_balance_loss_is_one_when_even_and_e_over_k_when_collapsed():
    s, experts = torch.ones(1, 4, 2), torch.tensor([[[0], [1], [0], [1]]])
    assert checks.sequence_balance(s, experts) == 1
    certain = torch.tensor([[[1.0, 0.0]] * 4])
    assert checks.sequence_balance(certain, torch.zeros(1, 4, 1, dtype=torch.int64)) == 2


@pytest.mark.slow
def test_the_figures_draw():
    loads = torch.rand(40, 16, generator=torch.Generator().manual_seed(0))
    runs = {"a": loads, "b": loads.flip(1)}
    for figure in (pictures.plot_layer(), pictures.plot_affinities(), pictures.plot_clamps(),
                   pictures.plot_sorting([[2, 0], [0, 1]], 3),
                   pictures.plot_zipf([0.3, 0.2] + [0.01] * 50, [1.2, 1.4], [1.0, 1.1], 1.3),
                   pictures.plot_load_curves({"a": loads[:, None].repeat(1, 2, 1)}),
                   pictures.plot_load_maps(runs), pictures.plot_loads_at(runs, 20),
                   pictures.plot_agreement({"a": torch.eye(3), "b": torch.eye(3)}, [0, 10, 20]),
                   pictures.plot_specialists({"a": torch.rand(3, 8), "b": torch.rand(3, 8)},
                                             ["x", "y", "z"]),
                   pictures.plot_losses({"a": 0.0, "b": 0.5})):
        assert figure.axes
        figure.canvas.draw()
        plt.close(figure)
