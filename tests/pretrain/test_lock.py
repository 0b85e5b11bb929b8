"""One process at a time uses the folder of a run."""

import subprocess
import sys

import pytest
from test_train_features import SETTINGS, tokens  # noqa: F401
from tiny import CHOOSING, TINY

from minids import Model, cli
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.posttrain.distill import DistillConfig, distill
from minids.posttrain.grpo import GRPOConfig, grpo
from minids.posttrain.sft import SFTConfig, sft
from minids.pretrain.run_folder import locked
from minids.pretrain.train import train
from minids.recipes.lifecycle import Plan, lifecycle
from minids.system.paths import ROOT
from minids.weights.save import save

HOLD = """
import sys
from pathlib import Path
from minids.pretrain.run_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
IN_USE = "is in use by another process: wait until it has ended, or choose another folder"


@pytest.fixture
def base(tmp_path):
    save(Model(TINY.replace(max_seq_len=256)), tmp_path / "base", tokenizer=Tokenizer.load())
    return tmp_path / "base"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_use_is_refused_and_left_as_it_is(tokens, tmp_path, resume):  # noqa: F811
    out = tmp_path / "run"
    train(CHOOSING, SETTINGS, out, tokens=tokens)
    with locked(out):
        before = files(out)
        with pytest.raises(MinidsError, match=IN_USE) as refused:
            train(CHOOSING, SETTINGS, out, resume=resume, tokens=tokens)
        assert "--fresh" not in str(refused.value) and files(out) == before


def test_each_kind_of_run_locks_its_folder(base, tmp_path):
    out, teachers = tmp_path / "run", {"mathematics": base}
    average = DistillConfig(method="average", families=("mathematics",))
    on_policy = DistillConfig(families=("mathematics",))
    with locked(out), locked(tmp_path / "life"):
        for run in (lambda: sft(base, SFTConfig(), out),
                    lambda: grpo(base, GRPOConfig(), out),
                    lambda: distill(base, teachers, average, out),
                    lambda: distill(base, teachers, on_policy, out),
                    lambda: lifecycle(Plan.preset("nano"), tmp_path / "life", base)):
            with pytest.raises(MinidsError, match=IN_USE):
                run()


def test_a_folder_that_is_refused_is_free_again(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MinidsError, match="holds no training run"), locked(tmp_path):
        pass


@pytest.mark.slow
def test_two_processes_and_the_lock_of_a_dead_one(base, tmp_path, capsys):
    out = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, out], cwd=ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == "locked\n"
        assert cli.main(["sft", "--model", str(base), "--out", str(out)]) == 2
        captured = capsys.readouterr().err
        assert IN_USE in captured and captured.splitlines()[-1].startswith("minids: ")
        assert "--fresh" not in captured
    finally:
        other.kill()
        other.wait()
    with locked(out):
        assert (out / ".lock").exists()
