"""What several tests share: runs that are killed or interrupted, logs, every outcome of chance."""

import signal

import pytest
import torch

from minids.inference import speculate


class Killed(Exception):
    pass


def kill_at(step):
    """For `on_step`: ends the run right after this step, without another checkpoint."""
    def kill(record):
        if record["step"] == step:
            raise Killed
    return kill


def interrupt_at(step):
    """For `on_step`: presses Ctrl-C after this step."""
    def interrupt(record):
        if record["step"] == step:
            signal.raise_signal(signal.SIGINT)      # os.kill would end the process on Windows
    return interrupt


def without_time(log):
    """The records of a log without the time they took."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in log]


def said(capsys) -> str:
    """What was printed since the last time, on one line: messages are wrapped."""
    return " ".join(capsys.readouterr().out.split())


def every_outcome(run) -> dict:
    """{result of `run()`: its probability}, following every outcome of the random choices that
    speculative decoding makes."""
    chances, todo = {}, [()]
    while todo:
        path, at, chance = list(todo.pop()), 0, 1.0

        def pick(weights):
            nonlocal at, chance
            weights = weights / weights.sum()
            if at == len(path):         # a new fork: the first outcome now, the others later
                outcomes = [i for i, w in enumerate(weights.tolist()) if w > 0]
                todo.extend(tuple(path) + (i,) for i in outcomes[1:])
                path.append(outcomes[0])
            chance *= float(weights[path[at]])
            at += 1
            return path[at - 1]

        with pytest.MonkeyPatch.context() as patch:
            coin = lambda p: bool(pick(torch.tensor([1 - p, p], dtype=torch.float64)))
            patch.setattr(speculate, "sample_one", lambda weights, _: pick(weights.double()))
            patch.setattr(speculate, "bernoulli", lambda p, _: coin(p))
            result = run()
        chances[result] = chances.get(result, 0.0) + chance
    return chances
