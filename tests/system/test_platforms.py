"""Other machines, emulated: an accelerator without float64 and float8, a device that is broken, no
`resource`, no home folder, a terminal with few characters, a reader that goes away."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from minids import Model, cli, generate, load, numerics
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference import sampling
from minids.inference.speculate import speculate
from minids.learn import doctor as doctor_module
from minids.learn.doctor import doctor
from minids.model import kernels
from minids.model.linear import Linear
from minids.posttrain import rollouts as rollouts_module
from minids.posttrain.grpo import GRPOConfig, policy
from minids.posttrain.rollouts import rollouts
from minids.pretrain.optim import make_optimiser
from minids.pretrain.settings import TrainConfig
from minids.pretrain.train import train_step
from minids.system import devices, distributed, paths
from minids.weights.checkpoint import Checkpoint
from minids.weights.one_layer import random_input, read_layer
from minids.weights.rounding import released, serving
from minids.weights.save import save
from minids.weights.streamed import streamed

SAMPLE = paths.DATA / "v4_sample"
MISSING = (torch.float64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
           torch.float8_e8m0fnu)


# ---- an accelerator without float64 and float8, such as Apple's ----

@pytest.fixture
def apple(monkeypatch):
    """A device "mps" that has neither float64 nor float8; tensors "on" it stay on the CPU."""
    real = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        words = [str(word) for word in (*args, *kwargs.values())]
        if not any(word.startswith("mps") for word in words):
            return real(tensor, *args, **kwargs)
        for dtype in (tensor.dtype, *args, *kwargs.values()):
            if isinstance(dtype, torch.dtype) and dtype in MISSING:
                raise TypeError(f"Cannot convert a MPS Tensor to {dtype}")
        args = [word for word in args if not str(word).startswith("mps")]
        kwargs = {key: word for key, word in kwargs.items() if not str(word).startswith("mps")}
        kwargs |= {} if args or kwargs else {"device": "cpu"}
        return real(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return torch.device("mps")


class Poor(TorchDispatchMode):
    """Within this block, no operation takes or gives a type that MPS lacks, and none is frexp."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            dtype = t.dtype if torch.is_tensor(t) else t
            if isinstance(dtype, torch.dtype) and dtype in MISSING:
                raise TypeError(f"{func} with {dtype}")
        if "frexp" in str(func) or "ldexp" in str(func):
            raise NotImplementedError(func)
        return result


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Sampling may leave the device: `rollouts.inverse_cdf` computes on the CPU. Elsewhere the
    noise of `sampling.pick` is torch's `exponential_`."""
    real, calls = rollouts_module.inverse_cdf, []

    def outside(logp, noise):
        calls.append(len(logp))
        with torch.utils._python_dispatch._disable_current_modes():
            return real(logp, noise)

    def exponential(like, shape, generator=None):
        return like.new_empty(shape).exponential_(generator=generator)

    monkeypatch.setattr(rollouts_module, "inverse_cdf", outside)
    monkeypatch.setattr(sampling, "exponential", exponential)
    with kernels.switched_off("vocabulary"):
        yield calls


def test_what_is_not_the_cpu_or_cuda_has_to_show_its_types():
    assert devices.has_all_types("cpu") and devices.has_all_types(torch.device("cuda", 1))
    assert not devices.has_all_types("mps") and not devices.has_all_types(torch.device("xpu", 0))


def test_a_checkpoint_in_fp8_and_fp4_loads(apple):
    model, expected = load(SAMPLE, apple), load(SAMPLE)
    for name, t in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], t), name
    with Checkpoint(SAMPLE) as checkpoint:
        name = "layers.0.attn.wq_a.weight"
        assert checkpoint.info(name)[0] == "F8_E4M3"
        assert torch.equal(checkpoint.read(name, device=apple), checkpoint.read(name))
        assert checkpoint.raw_all([name], apple)[name].dtype == torch.float8_e4m3fn
    with pytest.raises(MinidsError, match="mps has no float64"):
        load(SAMPLE, apple, torch.float64)


def test_a_streamed_model_and_one_layer_hold_no_codes(apple):
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(streamed(SAMPLE, apple)(ids), load(SAMPLE)(ids))
    with Checkpoint(SAMPLE) as checkpoint, torch.inference_mode():
        X, ids = random_input(checkpoint.config, 9)
        block, usual = read_layer(checkpoint, 1, apple), read_layer(checkpoint, 1)
        y, expected = block(X, ids), usual(X, ids)
        assert (y - expected).abs().max() < 2e-5 * expected.std()
    matrices = [m for m in block.modules() if isinstance(m, Linear)]
    assert all(m.codes is None and m.weight.dtype == torch.float32 for m in matrices)


def test_all_that_a_model_does_needs_no_missing_type(on_the_cpu):
    torch.manual_seed(0)
    model = Model(TINY)
    ids = torch.randint(0, TINY.vocab_size, (4, 33))
    settings = TrainConfig(batch=4, seq_len=32, steps=4, optimiser="muon")
    with Poor():
        with torch.no_grad():
            released(model)
            for kind in numerics.KINDS:
                numerics.fake_quant(torch.randn(64, 256), kind)
        train_step(model, make_optimiser(model, settings), ids, settings, 0)
        prompt = ids[0, :8].tolist()
        generate(model, [prompt, prompt[:5]], 6, temperature=0.7, top_p=0.9, seed=0)
        speculate(model, prompt, 6, seed=0)
        with serving(model):
            generate(model, prompt, 3, temperature=0)
        r = rollouts(model, [prompt] * 2, 4, 0.9, 0.9, torch.Generator().manual_seed(0), True)
        logprobs, _ = policy(model, r, GRPOConfig(temperature=0.9), keep_routing=True)
        logprobs.sum().backward()
    assert on_the_cpu == [2] * 4


def test_sampling_leaves_a_device_without_float64(monkeypatch):
    logp, noise = torch.randn(3, 50).log_softmax(-1), torch.rand(3, 1)
    expected = rollouts_module.inverse_cdf(logp, noise)
    monkeypatch.setattr(rollouts_module, "has_all_types", lambda device: False)
    assert torch.equal(rollouts_module.inverse_cdf(logp, noise), expected)


# ---- the doctor and the accelerator ----

@pytest.fixture
def accelerator(monkeypatch):
    """An accelerator that is the CPU under another name."""
    monkeypatch.setattr(distributed, "device", lambda: torch.device("meta"))
    real = doctor_module._loss_and_gradient
    monkeypatch.setattr(doctor_module, "_loss_and_gradient",
                        lambda device: real("cpu" if str(device) == "meta" else device))
    return monkeypatch


def problems(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "the CPU does" in line]


def test_an_accelerator_that_computes_is_well(accelerator, capsys):
    doctor()
    out = capsys.readouterr().out
    assert "device       meta" in out and "the CPU does" not in out


@pytest.mark.parametrize("result, reason", [
    (TypeError("Cannot convert a MPS Tensor to float8\nmore"),
     "TypeError: Cannot convert a MPS Tensor to float8"),
    (RuntimeError(), "RuntimeError: "),
    ((float("nan"), 1.0), "a loss of nan"),
    ((99.0, 1.0), "a loss of 99.000 and a gradient of 1, expected a loss of 1.000"),
    ((1.0, float("nan")), "a gradient of nan"),
])
def test_an_accelerator_that_cannot_compute_is_a_problem(accelerator, capsys, result, reason):
    def compute(device):
        if str(device) == "cpu":
            return 1.0, 1.0
        if isinstance(result, Exception):
            raise result
        return result

    accelerator.setattr(doctor_module, "_loss_and_gradient", compute)
    assert doctor() is False
    (line,) = problems(capsys)
    assert line.startswith("PROBLEM      meta does not compute as the CPU does (")
    assert reason in line
    assert "`--device cpu` in commands or MINIDS_DEVICE=cpu" in line


def test_a_device_by_environment(monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("MINIDS_DEVICE", "cpu")
    assert distributed.device() == torch.device("cpu")
    monkeypatch.setenv("MINIDS_DEVICE", "abacus")
    with pytest.raises(MinidsError, match="found 'abacus'"):
        distributed.device()
    assert doctor() is False
    assert "set MINIDS_DEVICE to cpu" in capsys.readouterr().out


# ---- Windows ----

def test_without_resource(monkeypatch):
    from minids.recipes import million
    monkeypatch.setitem(sys.modules, "resource", None)
    try:
        memory = importlib.reload(million).resident()
    finally:
        monkeypatch.undo()
        importlib.reload(million)
    assert memory["resident_most"] >= memory["resident"] > 0


UNIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}
UNIX_NAMES = {"fork", "getuid", "geteuid", "setsid", "killpg", "mkfifo", "uname", "getloadavg",
              "sched_getaffinity", "nice", "chown", "SIGKILL", "SIGALRM", "SIGHUP", "alarm"}
FILES = sorted((paths.ROOT / "minids").rglob("*.py"))
LESSONS = sorted((paths.ROOT / "notebooks" / "source").glob("*.py"))


def parsed(files):
    """(path, the nodes of its syntax tree), for each file."""
    for path in files:
        yield path, list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.slow
def test_no_module_needs_unix():
    """An import of a Unix module stands in a `try`; no name that only Unix has is used."""
    wrong = []
    for path, nodes in parsed([*FILES, *LESSONS]):
        guarded = {id(n) for t in nodes if isinstance(t, ast.Try) for n in ast.walk(t)}
        for node in nodes:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            of_unix = isinstance(node, ast.Attribute) and node.attr in UNIX_NAMES \
                and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal")
            if of_unix or UNIX & set(names) and id(node) not in guarded:
                wrong.append(f"{path.name}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong


@pytest.mark.slow
def test_text_is_read_and_written_with_its_encoding():
    """Without one, Windows takes its own. What `json.dumps` writes is ASCII."""
    wrong = []
    for path, nodes in parsed([*FILES, *LESSONS]):
        for node in nodes:
            if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            method = isinstance(node.func, ast.Attribute)
            if name == "read_text" and method or name == "open" and not method and "b" not in mode \
                    or name == "write_text" and method and "json.dumps" not in ast.unparse(node):
                wrong.append(f"{path.name}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_written_text_has_the_same_bytes_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    from minids.pretrain.run_folder import append_record
    from minids.system.files import write_text
    write_text(tmp_path / "a.txt", "one\ntwo \u6df1\n")
    assert (tmp_path / "a.txt").read_bytes() == "one\ntwo \u6df1\n".encode()
    append_record(tmp_path, {"step": 1})
    assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1}\n'


# ---- homes, terminals, pipes ----

def run(*argv, **environment) -> subprocess.Popen:
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, "-m", "minids", *map(str, argv)], cwd=paths.ROOT,
                            env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_doctor_without_a_home(monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIDS_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert doctor() is False
    assert "set MINIDS_HOME to a folder that you can write to" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    torch.manual_seed(0)
    save(Model(TINY), path, format="fp32", tokenizer=Tokenizer.load())
    return path


@pytest.mark.slow
def test_a_terminal_with_few_characters(model, tmp_path):
    process = run("generate", "--model", model, "--prompt", "\u6df1 x", "--max-new-tokens", 1,
                  PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    out, err = process.communicate()
    assert process.returncode == 0 and out.startswith(b"? x") and err == b""
    process = run("generate", "--model", tmp_path / "\u6df1", PYTHONIOENCODING="cp1252",
                  PYTHONUTF8="0")
    _, err = process.communicate()
    assert process.returncode == 2 and err.startswith(b"minids: no model at") and b"?" in err
    assert err.count(b"\n") == 1


@pytest.mark.slow
def test_a_reader_that_goes_away(model):
    """As in `minids generate | head -c 1`: the end comes while the work goes on."""
    process = run("generate", "--model", model, "--prompt", "x", "--max-new-tokens", 60,
                  "--seed", 1)
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_windows_calls_a_closed_pipe_an_invalid_argument(monkeypatch, capfd):
    def write():
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(doctor_module, "doctor", write)
    with monkeypatch.context() as patch:
        closed = []
        patch.setattr(cli.os, "open", lambda *args: 99)
        patch.setattr(cli.os, "dup2", lambda *args: closed.append(args))
        patch.setattr(cli.sys, "stdout", open(os.devnull, "w", encoding="utf-8"))
        assert cli.main(["doctor"]) == 2 and closed[0][0] == 99
        assert capfd.readouterr().err == "minids: Invalid argument\n"
        patch.setattr(cli.os, "name", "nt")
        assert cli.main(["doctor"]) == 141 and capfd.readouterr().err == ""
