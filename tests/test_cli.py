"""The command line: what it prints, which files it leaves, and how it refuses bad input."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from errno import ENOENT, ENOSPC
from functools import partial

import pytest
import torch
from tiny import TINY

from minids import Config, Model, cli
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.pretrain.settings import TrainConfig
from minids.system.paths import ROOT
from minids.weights.save import save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model"
    torch.manual_seed(0)
    save(Model(TINY), path, format="fp32", tokenizer=Tokenizer.load())
    return path


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def refused(capsys, *argv) -> str:
    """The one line that a bad command prints, with exit status 2."""
    try:
        status = cli.main([str(a) for a in argv])
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert status == 2 and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", [
    "", "doctor", "lab", "progress", "mine", "train", "sft", "grpo", "distill", "lifecycle",
    "generate", "eval", "course", "course build", "course copy", "course lint", "course update",
    "course reset", "course status", "real", "real info", "real fetch", "real portrait",
    "real layer", "real run"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0 and f"usage: minids {command}" in capsys.readouterr().out


def test_generate_continues_the_prompt(model, capsys):
    argv = ["generate", "--model", str(model), "--prompt", "In the beginning",
            "--max-new-tokens", "20", "--seed", "1"]
    assert cli.main(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("In the beginning") and len(first) > 25
    assert cli.main(argv) == 0 and capsys.readouterr().out == first


def test_generate_refuses_bad_input(model, copy, tmp_path, capsys):
    def refuses(*options) -> str:
        return refused(capsys, "generate", "--model", *options)

    assert "no model at" in refuses(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "tokenizer.json" in refuses(tmp_path / "empty")
    assert "context is 64" in refuses(model, "--prompt", "a b c d e f g " * 20)
    assert "at most" in refuses(model, "--max-new-tokens", 100)
    assert "temperature" in refuses(model, "--max-new-tokens", 5, "--temperature", "-1")
    assert "top_p" in refuses(model, "--max-new-tokens", 5, "--top-p", "2")
    assert "seed" in refuses(model, "--seed", "-4")
    assert "--max-new-tokens" in refuses(model, "--max-new-tokens", "many")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors" in refuses(copy)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    assert "deepseek_v4" in refuses(copy)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(copy, capsys):
    save(Model(TINY.replace(vocab_size=100)), copy, tokenizer=Tokenizer.load())
    printed = refused(capsys, "generate", "--model", copy, "--prompt", "the zebra")
    assert f"the tokenizer in {copy} has ids up to 2047, the model's end at 99" in printed
    assert f"tokenizer in {copy}" in refused(capsys, "eval", "--model", copy)


@pytest.mark.slow
def test_train_refuses_bad_input(tmp_path, capsys):
    def refuses(*options, out="run") -> str:
        return refused(capsys, "train", *options, "--out", tmp_path / out)

    assert "nano or mini" in refuses("--preset", "giga")
    assert "steps" in refuses("--steps", "0")
    assert "threads" in refuses("--threads", "0")
    assert "--steps" in refuses("--steps", "ten")
    assert "not allowed with" in refuses("--resume", "--fresh")
    assert "batch: the stages of --data mix" in refuses("--data", "mix", "--batch", "4")
    assert "invalid choice" in refused(capsys, "fly")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    assert "cannot use the folder" in refuses(out="file")


@pytest.mark.slow
def test_train_then_generate(tmp_path, capsys, monkeypatch):
    """The real command on the real text with a tiny model and one step."""
    tiny = TINY.replace(max_seq_len=256)
    monkeypatch.setattr(Config, "preset", classmethod(lambda cls, name: tiny))
    from minids.pretrain import batches
    small = {split: ids[:2000] for split, ids in batches.corpus().items()}
    monkeypatch.setattr(batches, "corpus", lambda: small)
    assert cli.main(["train", "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "held-out text: 7.6" in printed and "trigram" in printed
    assert cli.main(["generate", "--model", str(tmp_path / "run"), "--max-new-tokens", "5"]) == 0
    printed = refused(capsys, "train", "--steps", "1", "--seed", "7", "--out", tmp_path / "run")
    assert "other settings (settings.seed)" in printed
    shutil.rmtree(tmp_path / "run" / "model")
    assert cli.main(["generate", "--model", str(tmp_path / "run"), "--max-new-tokens", "5"]) == 0
    shutil.rmtree(tmp_path / "run" / "step-000001")
    capsys.readouterr()
    assert "no checkpoint yet" in refused(capsys, "generate", "--model", tmp_path / "run")


def test_interrupt_is_one_line_and_130(monkeypatch, capsys):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("minids.pretrain.train.train", press)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "minids: interrupted\n"


def test_doctor_and_lint_decide_the_exit_status(monkeypatch, capsys):
    for healthy in (True, False):
        monkeypatch.setattr("minids.learn.doctor.doctor", lambda: healthy)
        assert cli.main(["doctor"]) == (0 if healthy else 1)
    for findings in ([], ["a: is wrong"]):
        monkeypatch.setattr("minids.learn.lint.lint", lambda: findings)
        assert cli.main(["course", "lint"]) == len(findings)
    assert "a: is wrong" in capsys.readouterr().out


def test_course_build_passes_its_flags_on(monkeypatch, capsys, tmp_path):
    calls = []

    def build(names, out, keep, force):
        calls.append((names, out, keep, force))
        return ["notebooks/a.ipynb"]

    monkeypatch.setattr("minids.learn.course.build", build)
    assert cli.main(["course", "build", "00_start_here", "--out", str(tmp_path)]) == 0
    assert cli.main(["course", "build", "--keep", "--force"]) == 0
    assert calls == [(["00_start_here"], tmp_path, False, False), (None, None, True, True)]
    assert "notebooks/a.ipynb" in capsys.readouterr().out

    def fail(names, out, keep, force):
        raise MinidsError("no lesson 99")

    monkeypatch.setattr("minids.learn.course.build", fail)
    assert refused(capsys, "course", "build", "99") == "minids: no lesson 99\n"


def run(*argv, **options):
    """`python -m minids` in its own process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minids", *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(model):
    """As in `minids ... | head`: the reader goes away before the first line is written."""
    process = run("real", "info", model)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


class Full(io.StringIO):
    """Output to a full disk."""

    def __init__(self, file):
        super().__init__()
        self.fileno = file.fileno

    def write(self, text):
        raise OSError(ENOSPC, "No space left on device")


@pytest.mark.parametrize("job", [["real", "info"],
                                 ["generate", "--max-new-tokens", 3, "--model"]])
def test_a_full_disk_behind_the_output_is_one_line(job, model, tmp_path, monkeypatch, capsys):
    with open(tmp_path / "output", "w") as file:
        monkeypatch.setattr(sys, "stdout", Full(file))
        assert refused(capsys, *job, model) == "minids: No space left on device\n"


def test_other_errors_of_the_system_are_not_taken_for_it(monkeypatch):
    def fail(*_):
        raise FileNotFoundError(ENOENT, "No such file", "a")

    monkeypatch.setattr("minids.learn.doctor.doctor", fail)
    with pytest.raises(FileNotFoundError):
        cli.main(["doctor"])


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_output(stream, model, monkeypatch):
    """As in `minids ... >&-`: Python has no such stream then."""
    monkeypatch.setattr(sys, stream, None)
    assert cli.main(["real", "info", str(model)]) == 0
    assert cli.main(["generate", "--model", str(model), "--seed", "-4"]) == 2


def test_output_that_the_terminal_cannot_show(monkeypatch, model):
    """A Windows console, or a redirection there: characters that it has no bytes for become "?"."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert cli.main(["generate", "--model", str(model), "--prompt", "\u6df1 \u00e9",
                     "--max-new-tokens", "1"]) == 0
    assert raw.getvalue().startswith(b"? \xe9")


def test_the_presets_of_train_keep_what_is_not_given(monkeypatch, capsys, tmp_path):
    """Flags reach the settings, and the presets decide the rest."""
    calls = []
    monkeypatch.setattr("minids.pretrain.batches.streams", lambda settings: {})

    def train(config, settings, *args, **kwargs):
        calls.append((config, settings))
        assert kwargs["device"] == torch.device("cpu")
        raise KeyboardInterrupt

    monkeypatch.setattr("minids.pretrain.train.train", train)
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--device", "cpu", "--preset", "mini", "--lr", "0.5", "--no-packed"]
    assert cli.main([*argv, "--seed", "3"]) == 130
    assert cli.main(["train", "--device", "cpu", "--data", "mix"]) == 130
    changes = {"lr": 0.5, "packed": False, "seed": 3}
    assert calls == [(Config.preset("mini"), TrainConfig.preset("mini", "text", **changes)),
                     (Config.preset("nano"), TrainConfig.preset("nano", "mix"))]
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "(default by preset: 0.01, 0.005, 0.008)" in " ".join(capsys.readouterr().out.split())


# ---- what is refused, in one line and before any work ----

@pytest.mark.parametrize("argv, message", [
    (["eval", "--modes", "loud"], "modes: expected non-think, think-high, think-max; found loud"),
    (["eval", "--difficulties", "0", "6"], "difficulties: expected 1, 2, 3, 4, 5; found 0, 6"),
    (["eval", "--problems", "0"], "problems: expected at least 1, found 0"),
    (["eval", "--model", "nowhere"], "no model at nowhere"),
    (["distill", "--student", "nowhere"], "no model at nowhere"),
    (["distill", "--student", "nowhere", "--teachers", "mathematics"], "expected FAMILY=DIR"),
    (["distill", "--student", "nowhere", "--method", "magic"], "method: expected on-policy, token"),
    (["lifecycle", "--preset", "flash"],
     "no life cycle for 'flash': expected nano, nano-long, mini"),
    (["lifecycle", "--base", "nowhere"], "no model at nowhere"),
    (["lifecycle", "--problems", "many"], "--problems: invalid int value: 'many'"),
    (["sft", "--learning-rate", "1"], "minids sft: unrecognized arguments: --learning-rate 1"),
    (["course", "build", "--fast"], "minids course build: unrecognized arguments: --fast"),
    (["sft", "--lr", "high"], "--lr: invalid float value: 'high'"),
    (["sft", "--families", "cooking"], "families: expected some of mathematics"),
    (["sft", "--difficulties", "9"], "difficulties: expected some of 1, 2, 3, 4, 5; found 9"),
    (["sft", "--optimiser", "sgd"], "optimiser: expected adamw or muon"),
    (["train", "--dtype", "float8"], "dtype: expected auto or float32 or bfloat16"),
    (["generate", "--device", "abacus"], "device: expected one that this machine has (cpu"),
    (["eval", "--device", "cuda:99"], "found 'cuda:99'"),
    (["real", "layer", "nowhere", "--device", "abacus"], "found 'abacus'"),
    (["generate", "--threads", "0"], "threads: expected 1 to "),
    (["generate", "--threads", "40000"], "found 40000"),
    (["real", "run", "--model", ".", "--prompt", "x", "--threads", "99999999999"],
     "found 99999999999"),
    (["eval", "--out", "nowhere/eval.json"], "cannot write nowhere/eval.json: No such file"),
    (["eval", "--out", "."], "cannot write .: Is a directory"),
    (["sft", "--out", __file__], "cannot use the folder"),
    (["lifecycle", "--out", __file__ + "/runs/mine"], "cannot use the folder"),
    (["course", "build", "00", "--out", __file__], "cannot use the folder"),
])
def test_bad_input_is_refused_before_any_work(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    absent = ("jupyterlab", "jupytext", "nbclient")
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name in absent else find_spec(name, *rest))
    assert "needs jupyterlab, jupytext, nbclient: pip install" in refused(capsys, "lab")
    for job in ("build", "lint", "update", "status"):
        assert "needs jupytext, nbclient: pip install" in refused(capsys, "course", job)


@pytest.mark.slow
def test_post_training_and_evaluation_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Each command on a tiny model: what it prints and writes, and the next one starts from it."""
    from minids.inference import answers, evaluate
    from minids.posttrain import loop
    solve = answers.solve
    for mode in answers.LIMITS:
        monkeypatch.setitem(answers.LIMITS, mode, 4)
    monkeypatch.setattr(evaluate, "report", partial(evaluate.report, everything=False))
    monkeypatch.setattr(loop, "solve", lambda model, tokenizer, problems, mode:
                        solve(model, tokenizer, problems[:2], mode))
    torch.manual_seed(0)
    base = Model(TINY.replace(max_seq_len=256))
    save(base, tmp_path / "base", format="fp32", tokenizer=Tokenizer.load())
    monkeypatch.chdir(tmp_path)

    def printed(*argv) -> str:
        assert cli.main([*argv]) == 0
        return capsys.readouterr().out

    flags = ["--steps", "1", "--difficulties", "1", "--modes", "non-think"]
    out = printed("sft", "--model", "base", *flags)
    assert out.startswith("non-think: 0% of the problems solved before")
    assert "is in runs/sft-mathematics/model" in out
    out = printed("grpo", "--model", "runs/sft-mathematics", *flags, "--eval-problems", "0",
                  "--num-prompts", "2", "--num-generations", "2", "--pool-size", "16")
    assert out.startswith("the model is in")
    assert "the model is in runs/grpo-mathematics/model" in out
    out = printed("distill", "--student", "runs/sft-mathematics",
                  "--teachers", "mathematics=runs/grpo-mathematics", *flags)
    assert "KL(student || teacher): 0.0" in out and "problems solved: mathematics" in out
    out = printed("eval", "--model", "runs/on-policy", "--problems", "2", "--samples", "2",
                  "--modes", "non-think")
    assert "mathematics" in out and "k=2" in out
    assert "the report is in runs/on-policy/eval.json" in out
    card = json.loads((tmp_path / "runs/on-policy/eval.json").read_text())
    assert card["model"] == "runs/on-policy"
