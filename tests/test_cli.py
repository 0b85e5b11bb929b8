import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from tiny import TINY

from minids import Config, Model, cli
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
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
    assert status == 2 and captured.err.count("\n") == 1 and "Traceback" not in captured.err, captured.err
    return captured.err


@pytest.mark.parametrize("command", ["", "doctor", "lab", "train", "sft", "grpo", "distill", "lifecycle", "generate", "eval",
                                     "course", "course build", "course lint"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0 and f"usage: minids {command}" in capsys.readouterr().out


def test_generate_continues_the_prompt(model, capsys):
    argv = ["generate", "--model", str(model), "--prompt", "In the beginning", "--max-new-tokens", "20", "--seed", "1"]
    assert cli.main(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("In the beginning") and len(first) > 25
    assert cli.main(argv) == 0 and capsys.readouterr().out == first


def test_generate_refuses_bad_input(model, copy, tmp_path, capsys):
    assert "no model at" in refused(capsys, "generate", "--model", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "tokenizer.json" in refused(capsys, "generate", "--model", tmp_path / "empty")
    assert "context is 64" in refused(capsys, "generate", "--model", model, "--prompt", "a b c d e f g " * 20)
    assert "at most" in refused(capsys, "generate", "--model", model, "--max-new-tokens", 100)
    assert "temperature" in refused(capsys, "generate", "--model", model, "--max-new-tokens", 5, "--temperature", "-1")
    assert "top_p" in refused(capsys, "generate", "--model", model, "--max-new-tokens", 5, "--top-p", "2")
    assert "seed" in refused(capsys, "generate", "--model", model, "--seed", "-4")
    assert "--max-new-tokens" in refused(capsys, "generate", "--model", model, "--max-new-tokens", "many")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors" in refused(capsys, "generate", "--model", copy)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    assert "deepseek_v4" in refused(capsys, "generate", "--model", copy)


def test_a_tokenizer_that_knows_more_ids_than_the_model(copy, tmp_path, capsys):
    save(Model(TINY.replace(vocab_size=100)), copy, tokenizer=Tokenizer.load())
    printed = refused(capsys, "generate", "--model", copy, "--prompt", "the zebra", "--max-new-tokens", 5)
    assert "expected token ids from 0 to 99" in printed


@pytest.mark.slow
def test_train_refuses_bad_input(tmp_path, capsys):
    assert "nano or mini" in refused(capsys, "train", "--preset", "giga", "--out", tmp_path / "run")
    assert "steps" in refused(capsys, "train", "--steps", "0", "--out", tmp_path / "run")
    assert "threads" in refused(capsys, "train", "--threads", "0", "--out", tmp_path / "run")
    assert "--steps" in refused(capsys, "train", "--steps", "ten", "--out", tmp_path / "run")
    assert "not allowed with" in refused(capsys, "train", "--resume", "--fresh", "--out", tmp_path / "run")
    assert "invalid choice" in refused(capsys, "fly")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    assert "cannot use the folder" in refused(capsys, "train", "--out", tmp_path / "file")


def test_train_then_generate(tmp_path, capsys, monkeypatch):
    """The real command on the real text with a tiny model and one step."""
    monkeypatch.setattr(Config, "preset", classmethod(lambda cls, name: TINY.replace(max_seq_len=256)))
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


def test_course_build_passes_names_on(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("minids.learn.course.build",
                        lambda *names, **how: asked.append((*names, how["keep"])) or ["notebooks/a.ipynb"])
    assert cli.main(["course", "build", "00_start_here"]) == cli.main(["course", "build", "--keep"]) == 0
    assert asked == [(["00_start_here"], False), (None, True)] and "notebooks/a.ipynb" in capsys.readouterr().out

    def fail(names, keep):
        raise MinidsError("no lesson 99")

    monkeypatch.setattr("minids.learn.course.build", fail)
    assert refused(capsys, "course", "build", "99") == "minids: no lesson 99\n"


@pytest.mark.slow
def test_module_runs_without_a_traceback(tmp_path):
    done = subprocess.run([sys.executable, "-m", "minids", "generate", "--model", str(tmp_path / "nowhere")], cwd=ROOT,
                          text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and done.stderr.startswith("minids: no model at") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv, message", [
    (["eval", "--modes", "loud"], "modes: expected non-think, think-high, think-max; found loud"),
    (["eval", "--difficulty", "0", "6"], "difficulty: expected 1, 2, 3, 4, 5; found 0, 6"),
    (["eval", "--problems", "0"], "problems: expected at least 1, found 0"),
    (["eval", "--model", "nowhere"], "no model at nowhere"),
    (["distill", "--student", "nowhere"], "no model at nowhere"),
    (["distill", "--student", "nowhere", "--teachers", "mathematics"], "expected FAMILY=DIR"),
    (["distill", "--student", "nowhere", "--method", "magic"], "method: expected on-policy, token"),
    (["lifecycle", "--preset", "flash"], "no life cycle for 'flash': expected nano, nano-long, mini"),
    (["lifecycle", "--base", "nowhere"], "no model at nowhere"),
])
def test_what_cannot_be_measured_or_distilled_is_told(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_post_training_and_the_exam_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Each command on a tiny model: what it prints and leaves behind, and that one's result is the next one's beginning."""
    from minids.inference import answers, evaluate
    from minids.posttrain import loop
    solve = answers.solve
    for mode in answers.LIMITS:
        monkeypatch.setitem(answers.LIMITS, mode, 4)
    monkeypatch.setattr(evaluate, "report", partial(evaluate.report, everything=False))
    monkeypatch.setattr(loop, "solve", lambda model, tokenizer, some, mode: solve(model, tokenizer, some[:2], mode))
    torch.manual_seed(0)
    save(Model(TINY.replace(max_seq_len=256)), tmp_path / "base", format="fp32", tokenizer=Tokenizer.load())
    monkeypatch.chdir(tmp_path)

    def told(*argv) -> str:
        assert cli.main([*argv]) == 0
        return capsys.readouterr().out

    some = ["--steps", "1", "--difficulty", "1", "--modes", "non-think"]
    out = told("sft", "--model", "base", *some)
    assert out.startswith("non-think: 0% of the problems solved before") and "is in runs/sft-mathematics/model" in out
    out = told("grpo", "--model", "runs/sft-mathematics", *some)
    assert "the model is in runs/grpo-mathematics/model" in out
    out = told("distill", "--student", "runs/sft-mathematics", "--teachers", "mathematics=runs/grpo-mathematics", *some)
    assert "KL(student || teacher): 0.0" in out and "problems solved: mathematics" in out
    out = told("eval", "--model", "runs/on-policy", "--problems", "2", "--samples", "2", "--modes", "non-think")
    assert "mathematics" in out and "k=2" in out and "the report is in runs/on-policy/eval.json" in out
    assert json.loads((tmp_path / "runs/on-policy/eval.json").read_text())["model"] == "runs/on-policy"
