"""The command `minids`: one subcommand for each job. Beyond the package itself, which brings torch, a job imports its own.

Exit status: 0 done, 1 done and something is not in order (`doctor`, `course lint`), 2 bad input, told in one line on
stderr, 130 interrupted.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from minids.errors import MinidsError


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default of an option that has one, unless its text does; of several values as they are typed."""

    def _get_help_string(self, action):
        if action.default in (None, "") or isinstance(action.default, bool) or "(default" in action.help:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def main(argv=None) -> int:
    """Run one command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except MinidsError as error:
        print(f"minids: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"minids: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130


def parser() -> Parser:
    p = Parser(prog="minids", description="Build, train and run DeepSeek-V4, scaled down.")
    commands = p.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, help):
        c = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                formatter_class=Help)
        c.set_defaults(run=run)
        return c

    command("doctor", doctor, "say whether this machine and this clone are ready for the course, and what to do if not")
    command("lab", lab, "open the course in JupyterLab")

    c = command("train", train, "train a model, or go on with a run that was stopped")
    c.add_argument("--preset", default="nano", help="size of the model: nano or mini")
    c.add_argument("--data", default="text", help="what it reads: text, the shipped books; mix, stories and problems too")
    c.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/PRESET, or runs/PRESET-mix)")
    c.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: the preset's)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="for the first weights and the order of the text")
    c.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    again = c.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", default=True, help="go on where the run in DIR stopped")
    again.add_argument("--fresh", action="store_true", help="delete the run in DIR and start again")

    post_training = (("sft", sft, "teach a model to answer problems of a family, in the three thinking modes"),
                     ("grpo", grpo, "let a fine-tuned model learn from answers of its own, which a verifier judges"))
    for name, run, help in post_training:
        c = command(name, run, help)
        c.add_argument("--model", type=Path, metavar="DIR", required=name == "grpo",
                       help="a checkpoint or a run to begin with" + (" (default: the shipped nano model)" * (name == "sft")))
        c.add_argument("--family", nargs="+", default=["mathematics"], metavar="NAME",
                       help="mathematics, coding, reasoning, knowledge; several take turns")
        post_training_options(c, f"runs/{name}-FAMILY")

    c = command("distill", distill, "make one model of specialists: on-policy distillation, or another way")
    c.add_argument("--student", type=Path, required=True, metavar="DIR", help="a checkpoint or a run: the model that learns")
    c.add_argument("--teachers", nargs="+", default=[], metavar="FAMILY=DIR", help="a checkpoint or a run for each family")
    c.add_argument("--method", default="on-policy", help="on-policy; token, off-policy, sft or average, to compare with")
    c.add_argument("--lean", action="store_true", help="keep one teacher in memory at a time, and hidden states on disk")
    post_training_options(c, "runs/METHOD")

    c = command("lifecycle", lifecycle, "pre-train, raise specialists, distil them into one model, and measure all of it")
    c.add_argument("--preset", default="nano", help="nano, nano-long with more steps in every stage, or mini")
    c.add_argument("--base", type=Path, metavar="DIR", help="a checkpoint or a run to begin with, instead of pre-training")
    c.add_argument("--out", type=Path, metavar="DIR", help="folder of all stages (default: runs/lifecycle-PRESET)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="for everything that is drawn")
    c.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    again = c.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", default=True, help="go on where the stages in DIR stopped")
    again.add_argument("--fresh", action="store_true", help="delete the stages in DIR and start again")

    c = command("generate", generate, "continue a prompt")
    c.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint or a run (default: the shipped nano model)")
    c.add_argument("--prompt", default="", help="text to continue; without it a text is begun")
    c.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="stop after N tokens")
    c.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token each time")
    c.add_argument("--top-p", type=float, default=0.95, metavar="P", help="sample among the likeliest tokens that reach P")
    c.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text")
    c.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")

    c = command("eval", evaluate, "measure a model: problems with verifiers, stories, plain text, drafts")
    c.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint or a run (default: the shipped nano model)")
    c.add_argument("--modes", nargs="+", default=["think-high"], metavar="MODE", help="non-think, think-high, think-max")
    c.add_argument("--problems", type=int, default=100, metavar="N", help="problems of each family, of the test split")
    c.add_argument("--samples", type=int, default=4, metavar="K", help="answers to each problem, for pass@1 and pass@K")
    c.add_argument("--difficulty", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="D", help="1 (easy) to 5 (hard)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same answers")
    c.add_argument("--out", type=Path, metavar="FILE", help="the report (default: eval.json, in the run's folder if it is one)")
    c.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")

    c = command("course", None, "build or check the notebooks")
    jobs = c.add_subparsers(title="jobs", metavar="JOB", required=True)
    c = jobs.add_parser("build", help="make both editions of lessons from notebooks/source, and run them")
    c.add_argument("names", nargs="*", metavar="NAME", help="lessons, such as 00_start_here (default: all)")
    c.add_argument("--keep", action="store_true", help="lessons of which only texts have changed keep their outputs, unrun")
    c.set_defaults(run=course_build)
    c = jobs.add_parser("lint", help="check that the notebooks keep the rules")
    c.set_defaults(run=course_lint)

    c = command("real", None, "look into the released weights, on the Hub or in a folder")
    jobs = c.add_subparsers(title="jobs", metavar="JOB", required=True)
    for name, run, help in (("info", real_info, "say what a checkpoint holds, without reading a tensor"),
                            ("fetch", real_fetch, "bring chosen tensors here; what it costs is said first")):
        c = jobs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        c.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub, or a folder")
        c.add_argument("--revision", metavar="R", help="a branch, a tag or a commit (default: main)")
        c.set_defaults(run=run)
    c.add_argument("--tensors", nargs="+", required=True, metavar="PATTERN", help='names or patterns: "layers.*.ffn.gate.*"')

    c = jobs.add_parser("layer", help="run one layer at its full size; what fetching it costs is said first",
                        description="Run one layer at its full size on random streams, on a GPU if there is one, beside "
                                    "the layer of transformers if that is installed and fits.")
    c.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub, or a folder")
    c.add_argument("--revision", metavar="R", help="a branch, a tag or a commit (default: main)")
    c.add_argument("--layer", type=int, default=3, metavar="I", help="which one, counted from 0 (default: %(default)s)")
    c.set_defaults(run=real_layer)

    c = jobs.add_parser("run", help="read a text with a model larger than memory, layer by layer",
                        description="Read a text with a model larger than memory, layer by layer, on a GPU if there is one.")
    c.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint in the released format")
    c.add_argument("--prompt", required=True, help="the text")
    c.add_argument("--max-new-tokens", type=int, default=0, metavar="N", help="go on for N tokens, each of which reads all")
    c.set_defaults(run=real_run)
    return p


def doctor(args) -> int:
    from minids.learn.doctor import doctor

    return 0 if doctor() else 1


def lab(args) -> int:
    from minids.system.paths import notebooks

    first = notebooks() / "00_start_here.ipynb"
    return subprocess.call([sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={first.parent.parent}", str(first)])


def course_build(args) -> None:
    from minids.learn.course import build

    for path in build(args.names or None, keep=args.keep):
        print(path)


def course_lint(args) -> int:
    from minids.learn.lint import lint

    findings = lint()
    print("\n".join(findings) if findings else "all notebooks keep the rules")
    return 1 if findings else 0


def train(args) -> None:
    from minids.config import Config
    from minids.pretrain.batches import streams, tokens_read
    from minids.pretrain.settings import TrainConfig
    from minids.pretrain.train import train as run
    from minids.pretrain.trigram import Trigram
    from minids.system.distributed import rank

    changes = {"seed": args.seed} | ({} if args.steps is None else {"steps": args.steps})
    settings = TrainConfig.preset(args.preset, args.data, **changes)
    use_threads(args.threads)
    out = args.out or Path("runs") / (args.preset if args.data == "text" else f"{args.preset}-{args.data}")
    config = Config.preset(args.preset)
    text = streams(settings)
    log = run(config, settings, out, resume=not args.fresh, tokens=text)
    if rank():
        return          # of several processes the first one reports
    end = next(record for record in log if "heldout_loss" in record)
    same, all_ = (Trigram(ids, config.vocab_size) for ids in (tokens_read(text["train"], settings), text["train"]))
    print(f"held-out text: {end['heldout_loss']:.3f} nats per token, {end['heldout_bits_per_byte']:.3f} bits per byte")
    print(f"a trigram model of the tokens that this run read: {same.loss(text['heldout']):.3f} nats per token; "
          f"of all training text: {all_.loss(text['heldout']):.3f}")
    if args.data == "mix":
        report_exam(out / "model", all_)
    print(f"the model is in {out / 'model'}; try: minids generate --model {out} --prompt \"In the beginning\"")


def report_exam(folder: Path, trigram) -> None:
    """Ask the saved model about stories that it has not read."""
    from minids.data.tokenizer import Tokenizer
    from minids.inference.evaluate import answered, answered_by_trigram, exam, interval
    from minids.weights.checkpoint import load

    model, tokenizer, items = load(folder), Tokenizer.load(folder), exam(210)
    for name, right in (("the model as saved", answered(model, tokenizer, items)),
                        ("the trigram model", answered_by_trigram(trigram, tokenizer, items))):
        share, low, high = interval(right)
        print(f"questions about stories of 250 words, answered by {name}: {share:.0%} ({low:.0%} to {high:.0%})")


def sft(args) -> None:
    from minids.posttrain.sft import SFTConfig
    from minids.posttrain.sft import sft as run

    post_train(args, "sft", SFTConfig, run)


def grpo(args) -> None:
    from minids.posttrain.grpo import GRPOConfig
    from minids.posttrain.grpo import grpo as run

    post_train(args, "grpo", GRPOConfig, run)


def post_training_options(c, out: str) -> None:
    """What `sft`, `grpo` and `distill` can all be told; `out` is their folder by default."""
    c.add_argument("--difficulty", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="D", help="1 (easy) to 5 (hard)")
    c.add_argument("--modes", nargs="+", metavar="MODE", default=["non-think", "think-high", "think-max"],
                   help="thinking modes that take turns")
    c.add_argument("--rehearsal", type=int, default=0, metavar="N",
                   help="rows of the base model's corpus that each step reads too, against forgetting")
    c.add_argument("--out", type=Path, metavar="DIR", help=f"folder of the run (default: {out})")
    c.add_argument("--steps", type=int, metavar="N", help="steps (default: as many as the nano model needs)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="for the order of problems and for the answers")
    c.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    again = c.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", default=True, help="go on where the run in DIR stopped")
    again.add_argument("--fresh", action="store_true", help="delete the run in DIR and start again")


def post_train(args, name: str, settings, run) -> None:
    """Run, and tell for each mode how many problems of the valid split were solved at first and at last."""
    use_threads(args.threads)
    changes = {} if args.steps is None else {"steps": args.steps}
    settings = settings(families=args.family, difficulties=args.difficulty, modes=args.modes, rehearsal=args.rehearsal,
                        seed=args.seed, **changes)
    out = args.out or Path("runs") / "-".join([name, *args.family])
    looks = [r for r in run(find_model(args.model), settings, out, resume=not args.fresh) if "valid_accuracy" in r]
    for mode in settings.modes:
        first, *_, last = (r for r in looks if r["mode"] == mode)
        print(f"{mode}: {first['valid_accuracy']:.0%} of the problems solved before, {last['valid_accuracy']:.0%} now, "
              f"in {first['valid_length']:.0f} and {last['valid_length']:.0f} tokens")
    print(f"the model is in {out / 'model'}")


def distill(args) -> None:
    from minids.posttrain.distill import DistillConfig
    from minids.posttrain.distill import distill as run

    use_threads(args.threads)
    teachers = dict(item.split("=", 1) if "=" in item else (item, "") for item in args.teachers)
    wrong = next((item for item in args.teachers if not teachers[item.split("=")[0]]), None)
    if wrong is not None:
        raise MinidsError(f"teachers: expected FAMILY=DIR, such as mathematics=runs/grpo-mathematics; found {wrong!r}")
    teachers = {family: find_model(Path(folder)) for family, folder in teachers.items()}
    changes = ({} if args.steps is None else {"steps": args.steps}) | ({"families": tuple(teachers)} if teachers else {})
    settings = DistillConfig(method=args.method, difficulties=args.difficulty, modes=args.modes, rehearsal=args.rehearsal,
                             lean=args.lean, seed=args.seed, **changes)
    out = args.out or Path("runs") / args.method
    log = run(find_model(args.student), teachers, settings, out, resume=not args.fresh)
    looks = [r for r in log if "valid_accuracy" in r]
    for mode in settings.modes:
        at = {family: [r["valid_accuracy"] for r in looks if (r["family"], r["mode"]) == (family, mode)]
              for family in settings.families}
        told = [f"{family} {found[0]:.0%} to {found[-1]:.0%}" if len(found) > 1 else f"{family} {found[0]:.0%}"
                for family, found in at.items() if found]
        print(f"{mode}, problems solved: {', '.join(told)}")
    kls = [r["kl"] for r in log if "kl" in r]
    if kls:
        print(f"KL(student || teacher): {kls[0]:.3f} nats per token at first, {kls[-1]:.3f} at last")
    print(f"the model is in {out / 'model'}")


def lifecycle(args) -> None:
    from minids.recipes.lifecycle import Plan, card
    from minids.recipes.lifecycle import lifecycle as run

    use_threads(args.threads)
    out = args.out or Path("runs") / f"lifecycle-{args.preset}"
    plan = Plan.preset(args.preset, args.seed)
    found = run(plan, out, args.base and find_model(args.base), resume=not args.fresh)
    print(card(found))
    print(f"the report is in {out / 'report.json'}, the model in {out / 'distilled' / 'model'}")


def generate(args) -> None:
    import codecs

    from minids.data.tokenizer import Tokenizer
    from minids.inference.generate import stream
    from minids.system.distributed import device
    from minids.weights.checkpoint import load

    use_threads(args.threads)
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise MinidsError(f"seed: expected 0 to 2^63 - 1, found {args.seed}")
    folder = find_model(args.model)
    tokenizer, model = Tokenizer.load(folder), load(folder, device())
    prompt = tokenizer.encode(args.prompt, bos=True)
    print(args.prompt, end="", flush=True)
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for (token,) in stream(model, [prompt], args.max_new_tokens, args.temperature, args.top_p, args.seed):
        if token != tokenizer.eos_id:
            print(text.decode(tokenizer.to_bytes([token])), end="", flush=True)
    print(text.decode(b"", final=True))


def evaluate(args) -> None:
    import json

    from minids.data.chat import MODES
    from minids.data.tokenizer import Tokenizer
    from minids.inference.evaluate import report, table
    from minids.system.distributed import device
    from minids.system.files import write_text
    from minids.weights.checkpoint import load

    use_threads(args.threads)
    for name, value, known in (("modes", args.modes, MODES), ("difficulty", args.difficulty, (1, 2, 3, 4, 5))):
        if not set(value) <= set(known):
            raise MinidsError(f"{name}: expected {', '.join(map(str, known))}; found {', '.join(map(str, value))}")
    for name, least in (("problems", 1), ("samples", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise MinidsError(f"{name}: expected at least {least}, found {getattr(args, name)}")
    folder = find_model(args.model)
    is_run = args.model is not None and (args.model / "run.json").exists()
    out = args.out or (args.model if is_run else Path()) / "eval.json"
    tokenizer = Tokenizer.load(folder)
    found = report(load(folder, device()), tokenizer, modes=tuple(args.modes), count=args.problems, samples=args.samples,
                   difficulties=tuple(args.difficulty), seed=args.seed)
    write_text(out, json.dumps({"model": str(args.model or "the shipped nano model")} | found, indent=2) + "\n")
    print(table(found))
    print(f"the report is in {out}")


def find_model(path: Path | None) -> Path:
    """The checkpoint that `path` means: itself, or a run's `model/`, or a run's newest step; None is the shipped model."""
    from minids.pretrain.run_folder import newest
    from minids.system.paths import data

    if path is None:
        return data("checkpoints", "nano")
    if (path / "run.json").exists():
        found = path / "model" if (path / "model").is_dir() else newest(path)
        if found is None:
            raise MinidsError(f"the run in {path} has no checkpoint yet: run the command that began it again, to the end")
        return found
    if not path.is_dir():
        raise MinidsError(f"no model at {path}: expected a folder with config.json and safetensors, or a run of minids train")
    return path


def use_threads(n: int | None) -> None:
    """Compute with `n` CPU threads."""
    if n is None:
        return
    if n < 1:
        raise MinidsError(f"threads: expected at least 1, found {n}")
    import torch

    torch.set_num_threads(n)


def real_info(args) -> None:
    from minids import cost
    from minids.weights.checkpoint import Checkpoint
    from minids.weights.layout import nbytes

    remote = Checkpoint(args.repo, args.revision)
    config, held, kinds = remote.config, remote.inventory(), {}
    for dtype, shape in held.values():
        count, size = kinds.get(dtype, (0, 0))
        kinds[dtype] = count + 1, size + nbytes((dtype, shape))
    params = cost.params(config)
    print(f"{remote.where}: {config.n_layers} layers, {config.n_mtp_layers} MTP, width {config.dim}, "
          f"{config.n_routed_experts} experts of which {config.n_activated_experts} active")
    print(f"{params['total']:,} parameters without MTP, {params['active']:,} active per token")
    print(f"{len(held):,} tensors, {sum(size for _, size in kinds.values()):,} bytes")
    for dtype, (count, size) in sorted(kinds.items()):
        print(f"  {dtype:8} {count:8,} tensors {size:18,} bytes")
    extra = remote.extra()
    if extra:
        print(f"{len(extra)} tensors of which this model knows nothing, such as {extra[0]}")


def real_fetch(args) -> None:
    from minids.weights.checkpoint import Checkpoint

    remote = Checkpoint(args.repo, args.revision)
    names = remote.find(*args.tensors)
    price = remote.price(names)
    print(f"{remote.where}: {price.tensors:,} tensors in {price.files} files: {price.fetch:,} bytes to fetch, "
          f"{price.here:,} are here", flush=True)
    remote.fetch(names, progress=price.fetch > 0)


def real_layer(args) -> None:
    import torch

    from minids.system.paths import DATA
    from minids.weights import one_layer
    from minids.weights.checkpoint import Checkpoint

    remote = Checkpoint(args.repo, args.revision)
    config, names = remote.config, one_layer.layer_names(remote, args.layer)
    price, ratio = remote.price(names), config.compress_ratios[args.layer]
    routing = "hash" if config.is_hash(args.layer) else "score"
    kind = {0: "window only", 4: "CSA"}.get(ratio, "HCA") + f", experts by {routing}"
    if Path(args.repo).resolve() == DATA / "v4_sample":
        print("This is the sample in V4's format: random weights, small sizes.")
    print(f"{remote.where}, layer {args.layer} ({kind}): {price.tensors:,} tensors, {price.fetch:,} bytes to fetch, "
          f"{price.here:,} are here", flush=True)
    remote.fetch(names, progress=price.fetch > 0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    print(f"on {torch.cuda.get_device_name() if device == 'cuda' else 'the CPU'}, {dtype}: it takes "
          f"{one_layer.estimate_memory(remote, args.layer, dtype):,} bytes of memory, experts as stored; "
          f"{one_layer.estimate_memory(remote, args.layer, dtype, packed=False):,} if all were decoded", flush=True)
    for trial in one_layer.trials(remote, args.layer, device, dtype):
        print(f"{trial.tokens:5,} tokens: {trial.ours.seconds:9.4f} s, at most {trial.ours.memory / 1e9:.2f} GB in use")
        if trial.theirs is None:
            print(f"       transformers' layer: not run, {trial.why}")
        else:
            print(f"       transformers' layer: {trial.theirs.seconds:9.4f} s, at most {trial.theirs.memory / 1e9:.2f} GB; "
                  f"largest difference {trial.max_difference:.2g} where outputs are of size {trial.rms:.2g}, "
                  f"{trial.same_experts:.1%} of tokens with the same experts")


def real_run(args) -> None:
    from math import exp

    import torch

    from minids.data.tokenizer import Tokenizer
    from minids.inference.generate import generate
    from minids.weights.streamed import bytes_of_a_pass, report, streamed

    tokenizer, price = Tokenizer.load(find_model(args.model)), bytes_of_a_pass(args.model)
    ids = tokenizer.encode(args.prompt, bos=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{len(ids)} tokens on {device}. One pass reads {price:,} bytes of layers"
          + (f", {args.max_new_tokens} new tokens read {price * args.max_new_tokens:,} more." if args.max_new_tokens else "."),
          flush=True)
    model = streamed(args.model, device, torch.bfloat16 if device == "cuda" else torch.float32)
    found = report(model, ids)
    for i, (size, load) in enumerate(zip(found["rms"], found["load"])):
        print(f"  layer {i:2}: streams {size:10.3f}, the busiest of {len(load)} experts takes {max(load) / sum(load):6.1%}")
    loss = sum(found["nats"]) / len(found["nats"])
    print(f"perplexity of the text: {exp(loss):,.1f} ({loss:.3f} nats per token)")
    best, which = (t.tolist() for t in found["next"].softmax(-1).topk(5))
    print("next: " + ", ".join(f"{tokenizer.decode([i])!r} {p:.1%}" for p, i in zip(best, which)))
    if args.max_new_tokens:
        print(args.prompt + tokenizer.decode(generate(model, ids, args.max_new_tokens, temperature=0)))
