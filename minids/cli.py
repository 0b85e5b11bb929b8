"""The command `minids`: one subcommand for each job.

Each subcommand is a function that adds its flags (`train_flags`) and one that runs it
(`train_command`). Only the flags of the chosen subcommand are added, and a function imports only
what its job needs: beyond the package itself, which imports torch, `minids --help` loads nothing.

Exit status: 0 done; 1 done, but problems were found (`doctor`, `course lint`, `mine --check`); 2
bad input, or output that cannot be written, reported in one line on stderr; 130 interrupted; 141
the output pipe was closed.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
from errno import EINVAL
from pathlib import Path

from minids.errors import MinidsError
from minids.flags import add_flags, given
from minids.system.files import check_writable

SHIPPED = "the shipped nano model"


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option, unless its help text does. Several values appear as they
    are typed."""

    def _get_help_string(self, action):
        hidden = action.default in (None, "", []) or isinstance(action.default, bool)
        if hidden or "(default" in action.help:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def main(argv=None) -> int:
    """Run one command; returns the exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:      # it is closed, as in `minids ... >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")    # for terminals that cannot show all of Unicode
    try:
        try:
            argv = sys.argv[1:] if argv is None else argv
            argv, options = options_of_lab(list(argv))
            args, unknown = parser(argv).parse_known_args(argv)
            if unknown:
                args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            args.options = options
            return args.run(args) or 0
        finally:
            sys.stdout.flush()
    except MinidsError as error:
        print(f"minids: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"minids: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:
            raise                           # it is not about the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for the flush at exit
        # a closed pipe, as in `minids ... | head`; Windows calls it an invalid argument
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == EINVAL):
            return 141
        print(f"minids: {error.strerror or error}", file=sys.stderr)    # such as a full disk
        return 2


def parser(argv) -> Parser:
    """The parser of all commands, with the flags of the command that `argv` chooses."""
    top = Parser(prog="minids", description="Build, train and run DeepSeek-V4, scaled down.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (run, flags, help) in COMMANDS.items():
        command = add_command(commands, name, run, help)
        if name == chosen and flags:
            flags(command)
    return top


def add_command(commands, name: str, run, help: str, description: str | None = None) -> Parser:
    command = commands.add_parser(name, help=help, formatter_class=Help,
                                  description=description or f"{help[0].upper()}{help[1:]}.")
    command.set_defaults(run=run, parser=command)
    return command


# ---- flags and checks that several commands share ----

def machine_flags(command) -> None:
    add = command.add_argument
    add("--device", metavar="NAME",
        help="cpu, cuda, cuda:1 or mps (default: the environment's MINIDS_DEVICE, or the "
             "accelerator, if there is one)")
    add("--threads", type=int, metavar="N",
        help="CPU threads (default: torch's choice; commands that train measure which number is "
             "faster)")


def run_flags(command, out: str) -> None:
    """The flags of a command that writes a run's folder, `out` by default."""
    command.add_argument("--out", type=Path, metavar="DIR",
                         help=f"folder of the run (default: {out})")
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", default=True,
                       help="resume the run in DIR (the default)")
    again.add_argument("--fresh", action="store_true", help="delete the run in DIR and start again")
    machine_flags(command)


def model_flag(command, name: str = "--model", required: bool = False,
               help: str = "a checkpoint or a run") -> None:
    command.add_argument(name, type=Path, metavar="DIR", required=required,
                         help=help if required else f"{help} (default: {SHIPPED})")


def run_folder(args, default: str) -> Path:
    """The folder that --out names, or runs/`default`; checked before any work is done."""
    out = args.out or Path("runs") / default
    check_writable(out, folder=True)
    return out


def find_model(path: Path | None) -> Path:
    """The checkpoint folder for `path`: a checkpoint itself, or a run's `model/` or newest step.

    None means the shipped model.
    """
    from minids.pretrain.run_folder import newest
    from minids.system.paths import data

    if path is None:
        return data("checkpoints", "nano")
    if (path / "run.json").exists():
        checkpoint = path / "model" if (path / "model").is_dir() else newest(path)
        if checkpoint is None:
            raise MinidsError(f"the run in {path} has no checkpoint yet: run its command again, "
                              f"and let it finish")
        return checkpoint
    if not path.is_dir():
        is_local = len(path.parts) != 2 or path.parts[0] == "runs" or path.parent.exists()
        hub = "" if is_local else (
            f". A repository of the Hub comes into a folder by: hf download {path.as_posix()} "
            f"--local-dir {path.name}")
        raise MinidsError(f"no model at {path}: expected a folder with config.json and "
                          f"safetensors, or a run of minids train{hub}")
    return path


def load_tokenizer(folder: Path):
    """The tokenizer in a checkpoint folder; `MinidsError` if it does not fit the model there. Reads
    no tensor."""
    from minids.data.tokenizer import Tokenizer
    from minids.weights.checkpoint import Checkpoint

    tokenizer = Tokenizer.load(folder)
    with Checkpoint(folder) as checkpoint:
        tokenizer.check_fits(checkpoint.config.vocab_size, folder)
    return tokenizer


def find_device(args):
    """The device that --device names; also sets the number of CPU threads to --threads."""
    import torch

    from minids.system.distributed import device
    from minids.system.process import check_threads

    if args.threads is not None:
        check_threads(args.threads)
        torch.set_num_threads(args.threads)
    return device(args.device)


def find_device_of_run(args):
    """The device for work that takes minutes; chooses the number of CPU threads where neither
    --threads nor the environment does."""
    from minids.pretrain import threads

    device = find_device(args)
    if args.threads is None and device.type == "cpu":
        threads.choose()
    return device


def need_packages(*names: str) -> None:
    """Raise `MinidsError` unless these packages of the course are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MinidsError(f"this needs {', '.join(missing)}: pip install \"minids[course]\"")


# ---- the course ----

def doctor_command(args) -> int:
    from minids.learn.doctor import doctor

    return 0 if doctor() else 1


def lab_flags(command) -> None:
    command.usage = "minids lab [-h] [LESSON] [OPTION OF JUPYTERLAB ...]"
    command.add_argument("lesson", nargs="?", metavar="LESSON",
                         help="the lesson to open, such as 07 (default: 00)")
    command.epilog = "JupyterLab gets all other options, such as --no-browser or --port 8890."


def lab_command(args) -> int:
    need_packages("jupyterlab", "jupytext", "nbclient", "nbformat")
    from minids.learn.lab import lab

    return lab(args.lesson, args.options)


def options_of_lab(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the arguments for minids, those that `minids lab` passes on to JupyterLab)."""
    if argv[:1] != ["lab"] or {"-h", "--help"} & set(argv[1:2]):
        return argv, []
    own = 2 if argv[1:] and not argv[1].startswith("-") else 1
    return argv[:own], argv[own:]


def course_jobs(command) -> None:
    jobs = command.add_subparsers(title="jobs", metavar="JOB", required=True)
    build = add_command(jobs, "build", course_build, "build both editions of lessons",
                        "Build both editions of lessons from notebooks/source, and execute them.")
    build.add_argument("names", nargs="*", metavar="NAME",
                       help="lessons, such as 00_start_here (default: all)")
    build.add_argument("--out", type=Path, metavar="DIR",
                       help="folder to write to, for DIR/notebooks and DIR/teaching "
                            "(default: the course's own)")
    build.add_argument("--keep", action="store_true",
                       help="keep the outputs of lessons in which only text has changed")
    build.add_argument("--force", action="store_true",
                       help="build notebooks anew that were changed by hand, which are kept as "
                            "NAME.mine.ipynb")
    copy = add_command(jobs, "copy", course_copy, "copy the notebooks as they were built",
                       "Copy the notebooks as they were built, without what learners did to them; "
                       "`make test` runs these copies.")
    copy.add_argument("folder", type=Path, metavar="DIR", help="folder to write to")
    copy.add_argument("names", nargs="*", metavar="NAME", help="lessons (default: all)")
    copy.add_argument("--solved", action="store_true", help="the solved edition")
    add_command(jobs, "lint", course_lint, "check that the notebooks follow the rules")
    time = add_command(jobs, "time", course_time, "compute how many minutes lessons take",
                       "Compute how many minutes lessons take a learner, from their sources.")
    time.add_argument("names", nargs="*", metavar="NAME", help="lessons (default: all)")
    time.add_argument("--write", action="store_true",
                      help="put the minutes into the lessons' sources, README and the map")
    update = add_command(jobs, "update", course_update, "bring newer lessons",
                         "Bring newer lessons into your copies, and keep your answers.")
    update.add_argument("names", nargs="*", metavar="LESSON",
                        help="lessons, such as 07 (default: all)")
    reset = add_command(jobs, "reset", course_reset, "start a lesson again",
                        "Start a lesson again. Your old copy is kept beside the new one.")
    reset.add_argument("name", metavar="LESSON", help="the lesson, such as 07")
    add_command(jobs, "status", course_status, "say which lessons you changed, and which are old")


def course_build(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.course import build

    if args.out is not None:
        check_writable(args.out, folder=True)
    for path in build(args.names or None, args.out, keep=args.keep, force=args.force):
        print(path)


def course_copy(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.course import copy_shipped

    check_writable(args.folder, folder=True)
    copy_shipped(args.folder, args.names or None, "teacher" if args.solved else "learner")


def course_lint(args) -> int:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.lint import lint

    findings = lint()
    print("\n".join(findings) if findings else "all notebooks follow the rules")
    return 1 if findings else 0


def course_time(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn import minutes

    if args.write:
        minutes.write(args.names or None)
    print(minutes.table(args.names or None))


def progress_flags(command) -> None:
    command.add_argument("--json", action="store_true", help="print it for programs")
    command.add_argument("--all", type=Path, metavar="DIR",
                         help="for a teacher: a folder that holds a folder for each learner "
                              "(MINIDS_HOME, or a home with .minids in it); who is stuck comes "
                              "first")


def progress_command(args) -> None:
    import contextlib
    import json

    from minids.learn import report

    with contextlib.redirect_stdout(sys.stderr):    # what is damaged is no part of the JSON
        if args.all is not None:
            found, show = report.classroom(args.all), report.show_classroom
        else:
            found, show = report.learner(), report.show
    print(json.dumps(found, indent=1) if args.json else show(found))


def mine_flags(command) -> None:
    add = command.add_argument
    add("--out", type=Path, metavar="FILE",
        help="file to write (default: my_v4.py in the folder of your lessons)")
    add("--check", action="store_true",
        help="compare its logits with minids and transformers, and name the functions at fault")
    add("--train", action="store_true", help="train it for a minute on the shipped text")
    add("--device", metavar="NAME", default="cpu",
        help="where to train it: cpu, cuda, cuda:1 or mps")


def mine_command(args) -> int:
    from minids.learn import mine, trial
    from minids.system.distributed import device

    device = device(args.device)
    model = mine.assemble()
    path = mine.write(model, args.out)
    print(f"{mine.table(model)}\nyour model is in {path}", flush=True)
    equal = trial.check(model) if args.check else True
    if args.train:
        trial.train(mine.as_module(model.text), device=device)
    return 0 if equal else 1


def course_update(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.work import update

    update(args.names)


def course_reset(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.work import reset

    reset(args.name)


def course_status(args) -> None:
    need_packages("jupytext", "nbclient", "nbformat")
    from minids.learn.work import status

    status()


# ---- pre-training ----

def train_flags(command) -> None:
    from minids.pretrain.settings import TrainConfig

    add = command.add_argument
    add("--preset", default="nano", help="size of the model, with its settings: nano or mini")
    add("--data", default="text",
        help="training text: text (the shipped books) or mix (also stories and problems)")
    run_flags(command, "runs/PRESET, or runs/PRESET-mix")
    presets = [TrainConfig.preset(name, data)
               for name in ("nano", "mini") for data in ("text", "mix")]
    add_flags(command, TrainConfig, ("data", "stages"), presets)


def train_command(args) -> None:
    from minids.config import Config
    from minids.pretrain.batches import streams, tokens_read
    from minids.pretrain.settings import TrainConfig
    from minids.pretrain.train import train
    from minids.pretrain.trigram import Trigram
    from minids.system.distributed import rank

    settings = TrainConfig.preset(args.preset, **given(args, TrainConfig))
    fixed = settings.stages and {"batch", "seq_len"} & set(given(args, TrainConfig))
    if fixed:
        raise MinidsError(f"{' and '.join(sorted(fixed))}: the stages of --data {args.data} set "
                          f"this; use --data text, or TrainConfig(stages=...) in Python")
    device = find_device_of_run(args)
    out = run_folder(args, args.preset if args.data == "text" else f"{args.preset}-{args.data}")
    if settings.data == "mix" and not rank():
        print("reading stories, problems and text (to make them takes up to a minute, once) ...",
              file=sys.stderr, flush=True)
    config, text = Config.preset(args.preset), streams(settings)
    log = train(config, settings, out, resume=not args.fresh, tokens=text, device=device)
    if rank():
        return          # of several processes the first one reports
    end = next(record for record in log if "heldout_loss" in record)
    same = Trigram(tokens_read(text["train"], settings), config.vocab_size)
    complete = Trigram(text["train"], config.vocab_size)
    print(f"held-out text: {end['heldout_loss']:.3f} nats per token, "
          f"{end['heldout_bits_per_byte']:.3f} bits per byte")
    print(f"a trigram model of the tokens that this run read: {same.loss(text['heldout']):.3f} "
          f"nats per token; of all training text: {complete.loss(text['heldout']):.3f}")
    if args.data == "mix":
        report_exam(out / "model", complete, device)
    print(f"the model is in {out / 'model'}; try: minids generate --model {out} "
          f"--prompt \"In the beginning\"")


def report_exam(folder: Path, trigram, device) -> None:
    """Print how the saved model, and a trigram model, answer questions about stories they have
    not read."""
    from minids.data.tokenizer import Tokenizer
    from minids.inference.evaluate import answered, answered_by_trigram, exam, interval
    from minids.weights.checkpoint import load

    model, tokenizer, items = load(folder, device), Tokenizer.load(folder), exam(210)
    for name, correct in (("the model as saved", answered(model, tokenizer, items)),
                          ("the trigram model", answered_by_trigram(trigram, tokenizer, items))):
        share, low, high = interval(correct)
        print(f"questions about stories of 250 words, answered by {name}: {share:.0%} "
              f"({low:.0%} to {high:.0%})")


# ---- post-training ----

def sft_flags(command) -> None:
    from minids.posttrain.sft import SFTConfig

    model_flag(command, help="a checkpoint or a run to start from")
    run_flags(command, "runs/sft-FAMILIES")
    add_flags(command, SFTConfig)


def sft_command(args) -> None:
    from minids.posttrain.sft import SFTConfig, sft

    settings = SFTConfig(**given(args, SFTConfig))
    device, out = find_device_of_run(args), run_folder(args, "-".join(["sft", *settings.families]))
    log = sft(find_model(args.model), settings, out, resume=not args.fresh, device=device)
    report_modes(log, settings.modes, out)


def grpo_flags(command) -> None:
    from minids.posttrain.grpo import GRPOConfig

    model_flag(command, required=True, help="a fine-tuned checkpoint or run to start from")
    run_flags(command, "runs/grpo-FAMILIES")
    add_flags(command, GRPOConfig)


def grpo_command(args) -> None:
    from minids.posttrain.grpo import GRPOConfig, grpo

    settings = GRPOConfig(**given(args, GRPOConfig))
    device, out = find_device_of_run(args), run_folder(args, "-".join(["grpo", *settings.families]))
    log = grpo(find_model(args.model), settings, out, resume=not args.fresh, device=device)
    report_modes(log, settings.modes, out)


def report_modes(log, modes, out: Path) -> None:
    """Print for each mode how many validation problems were solved before and after."""
    for mode in modes:
        records = [r for r in log if "valid_accuracy" in r and r["mode"] == mode]
        if records:             # none with --eval-problems 0
            first, last = records[0], records[-1]
            print(f"{mode}: {first['valid_accuracy']:.0%} of the problems solved before, "
                  f"{last['valid_accuracy']:.0%} now, "
                  f"in {first['valid_length']:.0f} and {last['valid_length']:.0f} tokens")
    print(f"the model is in {out / 'model'}")


def distill_flags(command) -> None:
    from minids.posttrain.distill import DistillConfig

    model_flag(command, "--student", required=True, help="the checkpoint or run that learns")
    command.add_argument("--teachers", nargs="+", default=[], metavar="FAMILY=DIR",
                         help="a checkpoint or a run for each family of problems")
    run_flags(command, "runs/METHOD")
    add_flags(command, DistillConfig)


def distill_command(args) -> None:
    from minids.posttrain.distill import DistillConfig, distill

    teachers = find_teachers(args.teachers)
    families = {"families": tuple(teachers)} if teachers else {}
    settings = DistillConfig(**(families | given(args, DistillConfig)))
    device, out = find_device_of_run(args), run_folder(args, settings.method)
    student = find_model(args.student)
    log = distill(student, teachers, settings, out, resume=not args.fresh, device=device)
    for mode in settings.modes:
        solved = []
        for family in settings.families:
            shares = [f"{r['valid_accuracy']:.0%}" for r in log
                      if "valid_accuracy" in r and (r["family"], r["mode"]) == (family, mode)]
            if shares:
                solved.append(f"{family} {shares[0]} to {shares[-1]}" if len(shares) > 1
                              else f"{family} {shares[0]}")
        if solved:
            print(f"{mode}, problems solved: {', '.join(solved)}")
    kls = [r["kl"] for r in log if "kl" in r]
    if kls:
        print(f"KL(student || teacher): {kls[0]:.3f} nats per token at the beginning, "
              f"{kls[-1]:.3f} at the end")
    print(f"the model is in {out / 'model'}")


def find_teachers(items: list[str]) -> dict[str, Path]:
    """{family: checkpoint} of FAMILY=DIR items."""
    teachers = {}
    for item in items:
        family, _, folder = item.partition("=")
        if not folder:
            raise MinidsError(f"teachers: expected FAMILY=DIR, such as "
                              f"mathematics=runs/grpo-mathematics; found {item!r}")
        teachers[family] = find_model(Path(folder))
    return teachers


def lifecycle_flags(command) -> None:
    from minids.recipes.lifecycle import STEPS, Plan

    add = command.add_argument
    add("--preset", default="nano",
        help="nano, nano-long (more steps in every stage) or mini")
    add("--base", type=Path, metavar="DIR",
        help="a checkpoint or a run to start from, instead of pre-training")
    add("--seed", type=int, default=0, metavar="S", help="seed of all stages")
    run_flags(command, "runs/lifecycle-PRESET")
    stages = ("config", "train", "sft", "grpo", "mixed", "distill")
    presets = [Plan.preset(name) for name in STEPS]
    add_flags(command, Plan, stages, presets, title="evaluation")


def lifecycle_command(args) -> None:
    from minids.recipes.lifecycle import Plan, card, lifecycle

    plan = dataclasses.replace(Plan.preset(args.preset, args.seed), **given(args, Plan))
    base = args.base and find_model(args.base)
    device, out = find_device_of_run(args), run_folder(args, f"lifecycle-{args.preset}")
    report = lifecycle(plan, out, base, resume=not args.fresh, device=device)
    print(card(report))
    print(f"the report is in {out / 'report.json'}, the model in {out / 'distilled' / 'model'}")


# ---- inference ----

def generate_flags(command) -> None:
    add = command.add_argument
    model_flag(command)
    add("--prompt", default="", help="text to continue (default: begin a new text)")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="stop after N tokens")
    add("--temperature", type=float, default=0.8, metavar="T",
        help="sampling temperature; 0 always takes the most likely token")
    add("--top-p", type=float, default=0.95, metavar="P",
        help="sample among the most likely tokens whose probabilities reach P together")
    add("--seed", type=int, metavar="S", help="seed of the sampling (default: a new one each time)")
    machine_flags(command)


def generate_command(args) -> None:
    import codecs

    from minids.inference.generate import stream
    from minids.inference.sampling import check
    from minids.weights.checkpoint import load

    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {args.seed}")
    device, folder = find_device(args), find_model(args.model)
    tokenizer, model = load_tokenizer(folder), load(folder, device)
    prompt = tokenizer.encode(args.prompt, bos=True)
    options = args.max_new_tokens, args.temperature, args.top_p
    check(model, [prompt], *options)
    print(args.prompt, end="", flush=True)
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for (token,) in stream(model, [prompt], *options, args.seed):
        if token != tokenizer.eos_id:
            print(text.decode(tokenizer.to_bytes([token])), end="", flush=True)
    print(text.decode(b"", final=True))


def eval_flags(command) -> None:
    add = command.add_argument
    model_flag(command)
    add("--modes", nargs="+", default=["think-high"], metavar="MODE",
        help="thinking modes: any of non-think, think-high, think-max")
    add("--problems", type=int, default=100, metavar="N",
        help="test problems of each family")
    add("--samples", type=int, default=4, metavar="K",
        help="answers sampled for each problem, for pass@1 and pass@K")
    add("--difficulties", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="D",
        help="difficulties of the problems, 1 (easy) to 5 (hard)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the sampling")
    add("--out", type=Path, metavar="FILE",
        help="file of the report (default: eval.json, in the run's folder if DIR is a run)")
    machine_flags(command)


def eval_command(args) -> None:
    import json

    from minids.data.chat import MODES
    from minids.inference.evaluate import report, table
    from minids.system.files import write_text
    from minids.weights.checkpoint import load

    for name, values, known in (("modes", args.modes, MODES),
                                ("difficulties", args.difficulties, (1, 2, 3, 4, 5))):
        if not set(values) <= set(known):
            raise MinidsError(f"{name}: expected {', '.join(map(str, known))}; found "
                              f"{', '.join(map(str, values))}")
    for name, least in (("problems", 1), ("samples", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise MinidsError(f"{name}: expected at least {least}, found {getattr(args, name)}")
    device, folder = find_device(args), find_model(args.model)
    is_run = args.model is not None and (args.model / "run.json").exists()
    out = args.out or (args.model if is_run else Path()) / "eval.json"
    check_writable(out)
    tokenizer, model = load_tokenizer(folder), load(folder, device)
    card = report(model, tokenizer, modes=tuple(args.modes), count=args.problems,
                  samples=args.samples, difficulties=tuple(args.difficulties), seed=args.seed)
    print(table(card))
    write_text(out, json.dumps({"model": str(args.model or SHIPPED)} | card, indent=2) + "\n")
    print(f"the report is in {out}")


# ---- the released weights ----

def real_jobs(command) -> None:
    jobs = command.add_subparsers(title="jobs", metavar="JOB", required=True)
    info = add_command(jobs, "info", real_info, "list what a checkpoint holds")
    fetch = add_command(jobs, "fetch", real_fetch,
                        "fetch chosen tensors, after printing their size")
    portrait = add_command(jobs, "portrait", real_portrait,
                           "keep what the small tensors of all layers say, for the last lesson",
                           "Fetch sinks, routers, hash tables, hyper-connections, compressor "
                           "biases and norms of all layers (0.25 GB of the 160 GB of V4-Flash), "
                           "after printing their size, and keep the numbers that the figures of "
                           "the last lesson need in a small file. An interrupted fetch is resumed "
                           "by the same command.")
    layer = add_command(jobs, "layer", real_layer, "run one layer at its full size",
                        "Run one layer at its full size on random streams, beside the layer of "
                        "transformers if that is installed and fits.")
    run = add_command(jobs, "run", real_run, "read a text with a model larger than memory")
    for job in (info, fetch, portrait, layer):
        job.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub, or a folder")
        job.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    fetch.add_argument("--tensors", nargs="+", required=True, metavar="PATTERN",
                       help='names of tensors, or patterns such as "layers.*.ffn.gate.*"')
    portrait.add_argument("--small", action="store_true",
                          help="only sinks, the static part of the hyper-connections and the "
                               "routers' biases: 61 kB of V4-Flash, and 17 MB of tables of "
                               "contents")
    portrait.add_argument("--out", type=Path, metavar="FILE",
                          help="the file to write (default: a file in ~/.minids/portraits, where "
                               "the last lesson looks)")
    layer.add_argument("--layer", type=int, default=3, metavar="I",
                       help="number of the layer, from 0")
    model_flag(run, required=True, help="a checkpoint in the released format")
    run.add_argument("--prompt", required=True, help="the text to read")
    run.add_argument("--max-new-tokens", type=int, default=0, metavar="N",
                     help="continue for N tokens; each one reads the whole model again")
    for job in (layer, run):
        machine_flags(job)


def real_info(args) -> None:
    from minids import cost
    from minids.weights.checkpoint import Checkpoint
    from minids.weights.layout import count_and_names, nbytes

    checkpoint, by_dtype = Checkpoint(args.repo, args.revision), {}
    config, absent = checkpoint.config, absent_files(checkpoint)
    gone = {name for names in absent.values() for name in names}
    inventory = checkpoint.inventory(name for name in checkpoint.names() if name not in gone)
    for dtype, shape in inventory.values():
        count, size = by_dtype.get(dtype, (0, 0))
        by_dtype[dtype] = count + 1, size + nbytes((dtype, shape))
    params = cost.params(config)
    print(f"{checkpoint.where}: {config.n_layers} layers, {config.n_mtp_layers} MTP, "
          f"width {config.dim}, {config.n_routed_experts} experts of which "
          f"{config.n_activated_experts} active")
    print(f"{params['total']:,} parameters without MTP, {params['active']:,} active per token")
    print(f"{len(inventory):,} tensors, {sum(size for _, size in by_dtype.values()):,} bytes")
    for dtype, (count, size) in sorted(by_dtype.items()):
        print(f"  {dtype:8} {count:8,} tensors {size:18,} bytes")
    for file, names in absent.items():
        print(f"{file} is not here: {count_and_names('tensors of it', names)}".rstrip())
    if missing := checkpoint.missing():
        print(f"not in these files: {count_and_names('tensors of the model', missing)}".rstrip())
    if checkpoint.left_alone():
        print(checkpoint.left_alone())


def absent_files(checkpoint) -> dict[str, list[str]]:
    """{file: its tensors}, for the files that a folder's index names and the folder lacks."""
    from minids.weights.names import to_v4

    absent: dict[str, list[str]] = {}
    if checkpoint.revision is None:         # on the Hub, the index and the files are one commit
        for name, file in checkpoint.files.index().items():
            if not (Path(checkpoint.where) / file).is_file():
                absent.setdefault(file, []).append(to_v4(name))
    return dict(sorted(absent.items()))


def real_fetch(args) -> None:
    from minids.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint(args.repo, args.revision)
    fetch_tensors(checkpoint, checkpoint.find(*args.tensors), checkpoint.where)


def real_portrait(args) -> None:
    from minids.weights import portrait
    from minids.weights.checkpoint import Checkpoint

    if args.out is not None:
        check_writable(args.out)
        portrait.check_target(args.out)
    with Checkpoint(args.repo, args.revision) as checkpoint:
        print(f"{checkpoint.where}: reading the tables of contents", flush=True)
        names = portrait.names(checkpoint.config, args.small)
        fetch_tensors(checkpoint, names, "a small portrait" if args.small else "a portrait")
        path = portrait.save(portrait.take(checkpoint, args.small), args.out)
    print(f"the portrait is in {path} ({path.stat().st_size:,} bytes)"
          + ("; the last lesson draws it" if args.out is None else ""))


def fetch_tensors(checkpoint, names, what: str) -> None:
    """Fetch tensors into the cache, after printing how many bytes that takes."""
    price = checkpoint.price(names)
    print(f"{what}: {price.tensors:,} tensors in {price.files} files: "
          f"{price.fetch:,} bytes to fetch, {price.here:,} already here", flush=True)
    checkpoint.fetch(names, progress=price.fetch > 0)


def real_layer(args) -> None:
    import torch

    from minids.system.paths import DATA
    from minids.weights import memory, one_layer
    from minids.weights.checkpoint import Checkpoint

    device, dtype = gpu_or_cpu(args)
    checkpoint = Checkpoint(args.repo, args.revision)
    config, names = checkpoint.config, one_layer.layer_names(checkpoint, args.layer)
    routing = "hash" if config.is_hash(args.layer) else "score"
    kind = {0: "window only", 4: "CSA"}.get(config.compress_ratios[args.layer], "HCA")
    folder = Path(args.repo).resolve()
    if folder.parent == DATA and folder.name.startswith("v4_sample"):
        print("This is a sample in V4's format: random weights, small sizes.")
    layer = f"layer {args.layer} ({kind}, experts by {routing})"
    stored, decoded = (memory.weights(checkpoint, args.layer, dtype, place)
                       for place in (device, None))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    print(f"on {machine}, {dtype}: the weights of {layer} take {stored:,} bytes of memory, "
          f"{'codes' if device.type == 'cpu' else 'experts'} as stored; {decoded:,} if all were "
          f"decoded")
    need = one_layer.needs(checkpoint, args.layer, device, dtype)
    for T, size in need.items():
        print(f"{T:5,} tokens: weights and activations take about {size:,} bytes")
    print(f"{memory.free(device):,} bytes are free", flush=True)
    one_layer.too_long(need, args.layer, device)
    fetch_tensors(checkpoint, names, f"{checkpoint.where}, {layer}")
    for trial in one_layer.trials(checkpoint, args.layer, device, dtype):
        print(describe(trial), flush=True)


def describe(trial) -> str:
    """What a trial of a layer showed, in one to three lines."""
    from math import isnan

    if trial.ours is None:
        return f"{trial.tokens:5,} tokens: skipped, {trial.why}"
    if trial.theirs is None and not trial.why:
        return (f"{trial.tokens:5,} tokens: {trial.ours.seconds:9.4f} s, "
                f"at most {trial.ours.memory:,} bytes in use")
    at = f"transformers' layer, {trial.tokens:5,} tokens:"
    if trial.theirs is None:
        return f"{at} not run, {trial.why}"
    entries = "" if isnan(trial.same_entries) else (
        f"; {trial.same_entries:.1%} of the picked entries are the same")
    return (f"{at} {trial.theirs.seconds:9.4f} s, at most {trial.theirs.memory:,} bytes\n"
            f"       {trial.same_experts:.1%} of tokens have the same experts{entries}\n"
            f"       outputs of size {trial.rms:.2g} differ by {trial.median_difference:.2g} "
            f"(median); by at most {trial.max_difference:.2g} where these are the same, "
            f"{trial.alike:.1%} of tokens")


def real_run(args) -> None:
    from math import exp, inf

    from minids.inference.generate import generate
    from minids.inference.sampling import check
    from minids.weights import memory
    from minids.weights.checkpoint import Checkpoint
    from minids.weights.streamed import bytes_of_a_pass, memory_of_a_pass, report, streamed

    device, dtype = gpu_or_cpu(args)
    folder, new = find_model(args.model), args.max_new_tokens
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(args.prompt, bos=True)
    if len(ids) < 2:
        raise MinidsError("prompt: expected a text to read, found none")
    if new < 0:
        raise MinidsError(f"max-new-tokens: expected 0 or more, found {new}")
    with Checkpoint(folder) as checkpoint:
        check(checkpoint, [ids], max(new, 1), temperature=0, top_p=1)
    size = bytes_of_a_pass(folder)
    need = memory_of_a_pass(folder, len(ids), dtype, device)
    available = memory.free(device)
    print(f"{len(ids):,} tokens on {device}, {dtype}. One pass reads {size:,} bytes of layers"
          + (f", {new} new tokens read {size * new:,} more" if new else "")
          + f": {size * (1 + new) / 1e9:,.1f} seconds at 1 GB a second.")
    print(f"It takes about {need:,} bytes of memory; {available:,} are free.", flush=True)
    if need > available:
        raise MinidsError(f"{folder}: a pass of {len(ids):,} tokens takes about {need:,} bytes "
                          f"of memory, {available:,} are free on {device}. Close other programs, "
                          f"or choose a shorter text.")

    def show_layer(i, rms, load):
        print(f"  layer {i:2}: streams {rms:10.3f}, the busiest of {len(load)} experts takes "
              f"{max(load) / sum(load):6.1%}", flush=True)

    with memory.explained(str(folder), device):
        model = streamed(folder, device, dtype)
    reading = report(model, ids, show_layer)
    loss = sum(reading["nats"]) / len(reading["nats"])
    perplexity = inf if loss > 700 else exp(loss)       # exp(710) is more than a float holds
    print(f"perplexity of the text: {perplexity:,.1f} ({loss:.3f} nats per token)")
    probs, tokens = (t.tolist() for t in reading["next"].softmax(-1).topk(5))
    print("next: " + ", ".join(f"{tokenizer.decode([i])!r} {p:.1%}" for p, i in zip(probs, tokens)),
          flush=True)
    if new:
        with memory.explained(f"{new:,} new tokens", device):
            print(args.prompt + tokenizer.decode(generate(model, ids, new, temperature=0)))


def gpu_or_cpu(args):
    """The device that --device or MINIDS_DEVICE names, by default a CUDA GPU or else the CPU, and
    the type to compute in."""
    import torch

    args.device = (args.device or os.environ.get("MINIDS_DEVICE")
                   or ("cuda" if torch.cuda.is_available() else "cpu"))
    device = find_device(args)
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


COMMANDS = {        # the function that runs it, the function that adds its flags or jobs, its help
    "doctor": (doctor_command, None, "check that this machine is ready for the course"),
    "lab": (lab_command, lab_flags, "open your copies of the lessons in JupyterLab"),
    "progress": (progress_command, progress_flags, "show which exercises are passed"),
    "mine": (mine_command, mine_flags, "write my_v4.py, the model with the functions you wrote"),
    "train": (train_command, train_flags, "pre-train a model, or resume a run that was stopped"),
    "sft": (sft_command, sft_flags, "fine-tune a model on worked answers, in three thinking modes"),
    "grpo": (grpo_command, grpo_flags, "train a fine-tuned model on the rewards of its answers"),
    "distill": (distill_command, distill_flags,
                "distil several models into one, on-policy"),
    "lifecycle": (lifecycle_command, lifecycle_flags,
                  "pre-train, train specialists, distil them into one model, and evaluate"),
    "generate": (generate_command, generate_flags, "continue a prompt"),
    "eval": (eval_command, eval_flags, "evaluate a model: problems, stories, plain text, drafts"),
    "course": (None, course_jobs, "update your copies of the lessons; build and check lessons"),
    "real": (None, real_jobs, "read the released weights, on the Hub or in a folder"),
}
