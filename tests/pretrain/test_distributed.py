"""Two processes train what one trains: the same weights from the same batches. Run as a program,
this is one of the two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import without_time
from safetensors.torch import load_file, save_file
from test_train_features import SETTINGS, change, tokens  # noqa: F401
from tiny import CHOOSING

from minids.pretrain import train as module
from minids.pretrain.run_folder import newest, read_log
from minids.pretrain.train import train
from minids.weights.checkpoint import load

# AdamW, for Muon brings even the smallest singular values of a gradient to 1, and so what is mere
# rounding
ONE = change(SETTINGS, optimiser="adamw", steps=3, batch=8, mtp_share=0.5, eval_every=2)


@pytest.mark.slow(15)
def test_two_processes_train_what_one_trains(tokens, tmp_path):  # noqa: F811
    np.savez(tmp_path / "tokens.npz", **tokens)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                           "OMP_NUM_THREADS": "1",
                           "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen([sys.executable, __file__, tmp_path],
                                env=common | {"RANK": str(r), "LOCAL_RANK": str(r)},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True) for r in (0, 1)]
    expected = train(CHOOSING, ONE, tmp_path / "one", tokens=tokens)        # meanwhile
    try:
        printed = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(printed)

    zero, one = (load_file(tmp_path / f"{r}.safetensors") for r in (0, 1))
    assert all(torch.equal(zero[name], one[name]) for name in zero)
    alone = load(newest(tmp_path / "one")).state_dict()
    # a step moves a number by 1e-2; AdamW makes rounding of a tiny gradient into 1e-4
    for name, t in alone.items():
        torch.testing.assert_close(zero[name], t, atol=2e-4, rtol=1e-5,
                                   msg=lambda message: f"{name}: {message}")
    assert all(torch.equal(t, load(newest(tmp_path / "two")).state_dict()[name])
               for name, t in zero.items())
    log = without_time(read_log(tmp_path / "two"))
    for record, wanted in zip(log, without_time(expected), strict=True):
        assert record.keys() == wanted.keys()
        assert all(abs(record[key] - wanted[key]) < 1e-4 * abs(wanted[key]) for key in record)


def worker(folder: Path) -> None:
    """Train as one of two processes, and save the weights that this one ends with."""
    torch.set_num_threads(1)
    real = module.train_step

    def train_step(model, *rest):
        train_step.model = model
        return real(model, *rest)

    module.train_step = train_step
    train(CHOOSING, change(ONE, accumulate=2), folder / "two",
          tokens=dict(np.load(folder / "tokens.npz")))
    save_file(train_step.model.state_dict(), folder / f"{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
