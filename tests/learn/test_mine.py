"""my_v4: learners' functions, with what they need, become a model that equals minids.Model."""

import ast
import itertools
import linecache
import multiprocessing
import sys
import textwrap

import pytest
import torch
from tiny import SMALL
from twin import lively, twin

from minids import MinidsError, cli, plain
from minids.learn import course, mine, sources, trial
from minids.learn.checks import PARTS
from minids.system import paths

CELLS = itertools.count()


def run(cell: str, space: dict) -> None:
    """Run a cell as IPython does: its text is where tracebacks and `inspect` look for it."""
    name, cell = f"<cell {next(CELLS)}>", textwrap.dedent(cell)
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    exec(compile(cell, name, "exec"), space)


def notebook(*cells: str) -> dict:
    """The names of a notebook after these cells."""
    space = {"__name__": "__main__"}
    for cell in cells:
        run(cell, space)
    return space


def keep(check: str, *cells: str) -> dict:
    """Keep the function of a check's part, which the cells define. Returns the notebook's names."""
    space = notebook(*cells)
    mine.keep(check, space[PARTS[check]])
    return space


def kept_text(home, check: str) -> str:
    return (home / "solutions" / f"{check}.py").read_text()


IDS = torch.randint(0, SMALL.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_is_the_model(module) -> None:
    """A my_v4 module equals `minids.Model` under weights in which every parameter matters."""
    model = lively(SMALL, 8)
    v4 = module.Model(SMALL)
    v4.load_state_dict(model.state_dict())
    torch.testing.assert_close(v4(IDS), model(IDS), atol=1e-4, rtol=1e-4)


# ---- all lessons solved ----


@pytest.fixture(scope="module")
def solved_home(tmp_path_factory):
    """The folder of a learner who has solved all exercises that are parts of the model."""
    home = tmp_path_factory.mktemp("solved")
    mine._passed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIDS_HOME", str(home))
        for lesson in dict.fromkeys(mine.LESSON_OF[check] for check in PARTS):
            solve(lesson)
    return home


def solve(lesson: str) -> None:
    """Run the imports, definitions and checks of a lesson's solved edition; keep what is a part."""
    space = {"__name__": "__main__"}
    for cell in course.edition(paths.NOTEBOOKS / "source" / f"{lesson}.py", "teacher").cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        definitions = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom
                                                     | ast.FunctionDef)]
        run("\n\n".join(ast.get_source_segment(cell.source, s) for s in definitions), space)
        for call in ast.walk(ast.Module(body, [])):
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "check":
                name, attempt = call.args
                if name.value in PARTS:
                    mine.keep(name.value, eval(ast.unparse(attempt), space))


@pytest.fixture
def solved(solved_home, monkeypatch):
    monkeypatch.setenv("MINIDS_HOME", str(solved_home))
    return solved_home


@pytest.mark.slow
@torch.no_grad()
def test_the_solved_lessons_are_a_model_equal_to_minids_and_transformers(solved, capsys):
    model = mine.assemble()
    assert model.problems == {} and set(model.yours) == set(PARTS.values())
    module = mine.as_module(model.text)
    assert_is_the_model(module)
    reference = lively(SMALL, 9)
    v4 = module.Model(SMALL)
    v4.load_state_dict(reference.state_dict())
    theirs = twin(reference)(IDS, use_cache=False).logits
    torch.testing.assert_close(v4(IDS), theirs, atol=1e-4, rtol=1e-4)
    X = reference.features(IDS)
    torch.testing.assert_close(v4.mtp_logits(X, IDS), reference.mtp_logits(X, IDS),
                               atol=1e-4, rtol=1e-4)
    assert mine.count() == (len(mine.FUNCTIONS), len(mine.FUNCTIONS))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_every_function_of_the_solved_model_is_the_lessons(solved):
    """The text of each one is the learner's, and it is called."""
    module = mine.load()
    assert set(module.FUNCTIONS) == set(plain.FUNCTIONS)
    for part in mine.FUNCTIONS:
        ours, theirs = plain.FUNCTIONS[part].__code__, module.FUNCTIONS[part].__code__
        assert ours.co_code != theirs.co_code or ours.co_consts != theirs.co_consts, part


@pytest.mark.slow
def test_the_solved_model_takes_parts(solved):
    """A part is called by the learner's functions and by what they need."""
    module = mine.load()
    for name in ("rms_norm", "rotate", "angles", "sinkhorn", "site", "sees"):
        called = []

        def part(*args):
            called.append(name)
            return plain.FUNCTIONS[name](*args)
        with torch.no_grad():
            module.Model(SMALL, **{name: part})(IDS)
        assert called


@pytest.mark.slow
def test_check_finds_the_solved_model_equal_and_trains_it(solved, capsys):
    model = mine.assemble()
    assert trial.check(model)
    out = capsys.readouterr().out
    assert "my_v4 and minids.Model" in out and "my_v4 and transformers" in out
    assert "computes what DeepSeek-V4 computes" in out
    losses = trial.train(mine.as_module(model.text), seconds=4)
    assert min(losses) < losses[0] - 0.3
    assert "And the" in capsys.readouterr().out


# ---- what a function needs ----


ROTATE = """
    def rotate(x, theta):
        pairs = halves(x[..., -SIZE * theta.shape[-1]:])
        a, b = pairs                     # the learner's comment
        c, s = theta.cos(), theta.sin()
        out = torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
        return glue([x[..., :-out.shape[-1]], out])
"""


def test_helpers_constants_and_imports_come_along(own_home):
    space = keep("attention.rotate", """
        import torch
        from einops import rearrange as regroup
        from torch import cat

        SIZE, LAST = 2, "... (pair two) -> two ... pair"
        axis = {"dim": -1}
    """, """
        def halves(x):
            return regroup(x, LAST, two=SIZE)

        glue = lambda tensors: cat(tensors, **axis)
    """, ROTATE)
    assert callable(space["rotate"])
    text = kept_text(own_home, "attention.rotate")
    assert "# the learner's comment" in text and "import rearrange as regroup" in text
    model = mine.assemble()
    assert "def _rotate__halves(x):" in model.text and "_rotate__SIZE = 2" in model.text
    assert "# Yours: lesson 02_attention, check attention.rotate, passed 20" in model.text
    assert_is_the_model(mine.as_module(model.text))


def test_the_courses_functions_become_those_of_my_v4(own_home):
    """Under other names too, and where a local variable has the name."""
    keep("csa.pick", """
        import torch
        from minids.plain import visible as complete, rotate

        def pick(scores, m, k):
            visible = complete(scores.shape[1], scores.shape[2], m)
            best = scores.masked_fill(~visible, -torch.inf).topk(min(k, scores.shape[2])).indices
            return torch.zeros_like(visible).expand_as(scores).scatter(2, best, True) & visible
    """)
    keep("attention.layer", """
        import torch
        from minids.plain import (angles as turns, attend, frequencies, grouped_output, keys,
                                  queries, rotate, sees)

        def window_attention(attn, x):
            config, T = attn.config, x.shape[1]
            theta = turns(torch.arange(T), frequencies(config, attn.ratio))
            o = attend(queries(attn, x, theta), keys(attn, x, theta), sees(T, config.window_size),
                       attn.attn_sink)
            o = rotate(o, -theta[:, None])
            return grouped_output(o, attn.wo_a.weight, attn.wo_b.weight, config.o_groups)
    """)
    model = mine.assemble()
    assert set(model.yours) == {"pick", "window_attention"} and not model.problems
    assert "theta = angles(torch.arange(T), frequencies(" in model.text
    module = mine.as_module(model.text)
    assert_is_the_model(module)
    for name in ("visible", "angles"):
        called = []

        def part(*args):
            called.append(name)
            return plain.FUNCTIONS[name](*args)
        with torch.no_grad():
            module.Model(SMALL, **{name: part})(IDS)
        assert called


def test_a_passed_function_is_called_where_a_later_one_uses_it(own_home):
    space = keep("mhc.sinkhorn", """
        from torch import sigmoid
        from minids.plain import rms
        from einops import rearrange

        def sinkhorn(raw, iters, eps):
            M = raw.softmax(-1) + eps
            for i in range(2 * iters - 1):
                M = M / (M.sum(-2 + i % 2, keepdim=True) + eps)
            return M
    """)
    run("""
        def maps(X, fn, scale, base, iters=20, *, eps=1e-6, norm_eps=1e-6):
            n = X.shape[2]
            x = rms(X.flatten(2), norm_eps) @ fn.T
            pre, post, comb = x.split([n, n, n * n], -1)
            a, c, b = base.split([n, n, n * n])
            comb = rearrange(comb * scale[2] + b, "B T (j k) -> B T j k", j=n)
            return (sigmoid(pre * scale[0] + a) + eps, 2 * sigmoid(post * scale[1] + c),
                    sinkhorn(comb, iters, eps))
    """.replace("*, ", ""), space)
    mine.keep("mhc.maps", space["maps"])
    assert "from minids.plain import rms, sinkhorn" not in kept_text(own_home, "mhc.maps")
    assert "from minids.plain import sinkhorn" in kept_text(own_home, "mhc.maps")
    model = mine.assemble()
    assert model.text.count("def sinkhorn") == 1 and "_maps__" not in model.text
    assert_is_the_model(mine.as_module(model.text))


def test_rename_leaves_local_names_and_text_alone():
    text = """
K = 3


@same
def h(x, y: K = K):
    a = [h(i) for i in range(K)]        # h and K stay: \N{SNOWMAN}
    \N{LATIN SMALL LETTER E WITH ACUTE} = K; b = {K: h for K in a}
    g = lambda h: h + K
    return f"{K} and {h(x)!r:>{K}}" if x else (g, x.h, dict(K=K,
        h=h(
            K)))
"""
    renamed = """
LIMIT = 3


@same
def one(x, y: LIMIT = LIMIT):
    a = [one(i) for i in range(LIMIT)]        # h and K stay: \N{SNOWMAN}
    \N{LATIN SMALL LETTER E WITH ACUTE} = LIMIT; b = {K: one for K in a}
    g = lambda h: h + LIMIT
    return f"{LIMIT} and {one(x)!r:>{LIMIT}}" if x else (g, x.h, dict(K=LIMIT,
        h=one(
            LIMIT)))
"""
    assert sources.rename(text, {"h": "one", "K": "LIMIT"}) == renamed
    assert sources.global_names(text) == ["same", "K", "range", "h", "dict"]


def test_a_lambda_and_a_function_of_another_name(own_home):
    space = notebook("""
        import torch.nn.functional as F, torch
        tiny = torch.finfo(torch.float32).tiny
        kept = {"affinity": lambda x: F.softplus(x).clamp_min(tiny).sqrt(), "no": lambda x: x}
    """, """
        def my_sees(n, window):
            t, s = torch.arange(n)[:, None], torch.arange(n)
            return (s <= t) & (s > t - window)
    """)
    mine.keep("whole.safe_affinity", space["kept"]["affinity"])
    mine.keep("attention.window", space["my_sees"])
    model = mine.assemble()
    assert "def sees(n, window):" in model.text
    assert_is_the_model(mine.as_module(model.text))


def test_a_closure_over_what_can_be_written(own_home, capsys):
    space = notebook("""
        import torch

        def make(power, scale):
            def affinity(x):
                return (torch.nn.functional.softplus(x) + 1e-30).pow(power) * scale
            return affinity
    """)
    mine.keep("whole.safe_affinity", space["make"](0.5, 1))
    assert capsys.readouterr().out == ""
    assert_is_the_model(mine.load())
    mine.keep("whole.safe_affinity", space["make"](0.5, torch.ones(1)))
    assert "uses 'scale', a Tensor" in capsys.readouterr().out


@pytest.mark.parametrize("decorators, decorator", [
    ("@torch.no_grad()", ""),
    ("@counted", """
        import functools
        calls = 3
        def counted(f):
            @functools.wraps(f)
            def outer(*args):
                assert calls
                return f(*args)
            return outer
    """),
    ("@doubled", """
        def doubled(f):
            def outer(*args):
                return 2 * f(*args) / 2
            return outer
    """),
])
def test_decorated(decorators, decorator, own_home, capsys):
    keep("attention.angles", "import torch", decorator or "0", f"""
        {decorators}
        def angles(positions, w):
            return positions.unsqueeze(1).float() * w
    """)
    assert capsys.readouterr().out == ""
    assert "unsqueeze" in kept_text(own_home, "attention.angles")
    module = mine.load()
    assert module.FUNCTIONS["angles"].__name__ == "angles"
    assert_is_the_model(module)


def test_the_original_of_a_wrapped_function_is_kept(own_home):
    space = notebook("""
        import functools
        import torch
        import torch.nn.functional as F

        def affinity(x):
            return F.softplus(x).clamp_min(1e-38).sqrt()

        def with_gradient(function):
            @functools.wraps(function)
            def both(x):
                x = x.clone().requires_grad_()
                y = function(x)
                return y.detach(), torch.autograd.grad(y.sum(), x)[0]
            return both
    """)
    mine.keep("whole.safe_affinity", space["with_gradient"](space["affinity"]))
    assert "with_gradient" not in kept_text(own_home, "whole.safe_affinity")
    assert_is_the_model(mine.load())


def test_names_that_collide(own_home):
    """A helper called as a function of plain.py, imports under a name that stands for another."""
    keep("attention.angles", """
        import numpy as F
        from math import prod as keys

        def rms(x):
            return x * keys([F.int64(1)])

        def angles(positions, w):
            return rms(positions[:, None]).float() * w
    """)
    keep("attention.window", """
        import torch
        import operator as F

        def rms(a, b):
            return F.and_(a, b)

        def sees(T, w):
            s = torch.arange(T)
            return rms(s <= s[:, None], s > s[:, None] - w)
    """)
    model = mine.assemble()
    assert len(model.yours) == 2 and not model.problems
    assert_is_the_model(mine.as_module(model.text))


def test_a_function_that_calls_ours_goes_on_calling_ours(own_home):
    keep("attention.rotate", """
        from minids.plain import rotate as given

        def rotate(x, theta):
            return given(x, theta)
    """)
    assert_is_the_model(mine.load())


@pytest.mark.parametrize("cells, why", [
    (["import torch\ntable = torch.eye(3)", "def sees(T, w):\n    return table"],
     "uses 'table', a Tensor of your notebook"),
    (["def sees(T, w):\n    global count\n    count = 1\n    return count"],
     "changes the global name 'count'"),
    (["class Sees:\n    def __call__(self, T, w):\n        return T", "sees = Sees()"],
     "a Sees, not a function"),
    (["from minids.plain import sees"], "not written by you"),
    (["from functools import partial\nfrom minids.plain import sees as s\nsees = partial(s)"],
     "a partial, not a function"),
])
def test_what_cannot_be_kept_is_said_in_one_line(cells, why, own_home, capsys):
    keep("attention.window", *cells)
    out = capsys.readouterr().out
    assert out.startswith("[my_v4] attention.window has passed, but cannot become part of my_v4")
    assert why in out and out.count("\n") == 1
    assert mine.count() == (0, len(mine.FUNCTIONS))


def test_a_function_without_source(own_home, capsys):
    space = {"__name__": "__main__"}
    exec("def sees(T, w): return T", space)
    mine.keep("attention.window", space["sees"])
    assert "its source is not at hand" in capsys.readouterr().out


def test_a_folder_that_cannot_be_used_does_not_stop_the_lesson(tmp_path, monkeypatch, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "solutions").write_text("")
    monkeypatch.setenv("MINIDS_HOME", str(tmp_path / "home"))
    keep("attention.angles", "def angles(positions, w):\n    return positions[:, None] * w")
    out = capsys.readouterr().out
    assert out.startswith("[my_v4] not kept: ") and out.count("\n") == 1


# ---- several passes, damage, the file ----

ANGLES = "def angles(positions, w):\n    return positions[:, None].float() * w{}\n"
SITE = """
    def site(X, layer, pre, post, comb):
        u = (pre[..., None] * X).sum(2)
        return post[..., None] * layer(u)[:, :, None] + comb.mT @ X  # {}
"""


def test_of_two_checks_of_one_function_the_later_pass_counts(own_home):
    keep("whole.site", SITE.format("from 08"))
    file = own_home / "solutions" / "whole.site.py"
    file.write_text(file.read_text().replace("passed 2", "passed 1"))     # a thousand years ago
    keep("mhc.site", SITE.format("from 07"))
    model = mine.assemble()
    assert "# from 07" in model.text and "# from 08" not in model.text
    assert mine.count() == (1, len(mine.FUNCTIONS))
    row, = (line for line in mine.table(model).splitlines() if line.startswith("site "))
    assert "yours: mhc.site" in row and "before whole.site" in row


def test_partly_solved(own_home):
    keep("attention.angles", ANGLES.format(" # one"))
    model = mine.assemble()
    table = mine.table(model)
    assert table.splitlines()[-1] == f"1 of {len(mine.FUNCTIONS)} functions are yours"
    assert "yours: attention.angles, 20" in table and table.count(" ours") == 26
    assert_is_the_model(mine.as_module(model.text))
    assert [line for line in mine.together({}).splitlines()
            if not line.startswith("#")] == [line for line in
                                             open(plain.__file__).read().splitlines()
                                             if not line.startswith("#")]


@pytest.mark.parametrize("damage, why", [
    ("def angles(positions, w:\n", "SyntaxError"),
    ("angles = 3\n", "expected a function at its end"),
    ("import nothing_of_this_name\ndef angles(positions, w):\n    return 1\n",
     "ModuleNotFoundError"),
    ("\0", "null bytes"),
    ("", "expected a function at its end"),
])
def test_a_damaged_file_is_named_and_ours_is_used(own_home, damage, why, capsys):
    keep("attention.angles", ANGLES.format(""))
    keep("attention.window", "def sees(T, w):\n    import torch\n    t = torch.arange(T)[:, None]\n"
                             "    return (t.mT <= t) & (t.mT > t - w)")
    (own_home / "solutions" / "attention.angles.py").write_text(damage)
    model = mine.assemble()
    assert list(model.yours) == ["sees"]
    problem, = model.problems.values()
    assert "attention.angles.py cannot be used" in problem and why in problem
    assert "see below" in mine.table(model) and "ours is used" in mine.table(model)
    assert_is_the_model(mine.load())
    assert "[my_v4]" in capsys.readouterr().out


def _keep_in_another_kernel(home, number):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIDS_HOME", home)
        for i in range(20):
            keep("attention.angles", ANGLES.format(f" # {number} {i}" + " x" * 2000))


@pytest.mark.slow
def test_two_kernels_that_keep_at_once(own_home):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    kernels = [context.Process(target=_keep_in_another_kernel, args=(str(own_home), n))
               for n in range(2)]
    for kernel in kernels:
        kernel.start()
    while any(kernel.is_alive() for kernel in kernels):
        found, problems = mine.kept()
        assert not problems
    assert [kernel.exitcode for kernel in kernels] == [0, 0]
    assert list(found) == ["attention.angles"]
    assert [file.name for file in (own_home / "solutions").iterdir()] == ["attention.angles.py"]


def test_the_file_is_a_module_and_an_edited_one_is_kept(own_home, tmp_path, monkeypatch, capsys):
    keep("attention.angles", ANGLES.format(" # mine"))
    out = tmp_path / "my_v4.py"
    assert mine.write(mine.assemble(), out) == out
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_v4", raising=False)
    import my_v4
    assert_is_the_model(my_v4)
    mine.write(mine.assemble(), out)                        # not edited: replaced
    out.write_text(out.read_text() + "# my remark\n")
    mine.write(mine.assemble(), out)
    assert "kept as my_v4.edited-1.py" in capsys.readouterr().out
    assert (tmp_path / "my_v4.edited-1.py").read_text().endswith("# my remark\n")
    assert "# my remark" not in out.read_text()
    assert sorted(p.name for p in tmp_path.glob("*.py")) == ["my_v4.edited-1.py", "my_v4.py"]


def test_a_folder_that_cannot_take_the_file(own_home, tmp_path):
    with pytest.raises(MinidsError, match="cannot write"):
        mine.write(mine.assemble(), tmp_path / "missing" / "my_v4.py")


# ---- faults ----


@pytest.mark.slow
def test_check_names_the_function_at_fault(own_home, capsys):
    keep("attention.angles", ANGLES.format(""))
    keep("mhc.site", SITE.format("").replace("comb.mT", "comb"))
    assert trial.check(mine.assemble()) is False
    out = capsys.readouterr().out
    assert "my_v4 differs" in out and "site (lesson 07_mhc, check mhc.site" in out
    assert "angles" not in out


@pytest.mark.slow
def test_check_names_two_functions_at_fault_and_errors(own_home, capsys, monkeypatch):
    monkeypatch.setattr(trial, "_theirs", lambda nano, ids: None)
    keep("attention.angles", ANGLES.format(" * 2"))
    keep("mhc.site", SITE.format("").replace("comb.mT", "comb"))
    keep("moe.hash_route", "from minids.plain import hash_route as ours\n"
                           "def hash_route(*args):\n    return ours(*args)")
    assert trial.check(mine.assemble()) is False
    out = capsys.readouterr().out
    assert "angles (" in out and "site (" in out and "hash_route" not in out
    assert "transformers is not installed" in out
    keep("attention.angles", "def angles(positions):\n    return positions")
    keep("mhc.site", SITE.format(""))
    assert trial.check(mine.assemble()) is False
    out = capsys.readouterr().out
    assert "my_v4 raised TypeError" in out and "angles (" in out and "site (" not in out


def test_training_with_a_fault_ends_in_one_line(own_home):
    keep("attention.angles", "def angles(positions):\n    return positions")
    with pytest.raises(MinidsError, match="my_v4 raised TypeError.*minids mine --check"):
        trial.train(mine.load(), seconds=1)


# ---- the command ----


def test_the_command_writes_the_file_and_the_table(own_home, tmp_path, monkeypatch, capsys):
    keep("attention.angles", ANGLES.format(""))
    monkeypatch.setenv("MINIDS_WORK", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["mine"]) == 0
    out = capsys.readouterr().out
    assert f"1 of {len(mine.FUNCTIONS)} functions are yours" in out
    assert f"your model is in {tmp_path / 'my_v4.py'}" in out
    assert max(map(len, out.splitlines()[:-1])) <= 90
    assert (tmp_path / "my_v4.py").read_text() == mine.assemble().text
    assert cli.main(["mine", "--out", str(tmp_path / "missing" / "x.py")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_status_of_check(own_home, tmp_path, monkeypatch):
    for equal, status in ((True, 0), (False, 1)):
        monkeypatch.setattr(trial, "check", lambda model: equal)
        assert cli.main(["mine", "--check", "--out", str(tmp_path / "my_v4.py")]) == status
