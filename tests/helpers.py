"""What tests of training runs share: a run that is killed or interrupted, and logs to compare."""

import signal


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
