"""On-policy distillation: many teachers make one model, which learns from them on texts of its own.

Report sections 5.1.2 and 5.2.2. The student answers problems of all domains; at each token of an answer it is drawn towards
the teacher of the problem's domain by the reverse KL over the whole vocabulary, KL(student || teacher). Other ways to make
one model of many are values of one field, `DistillConfig.method`. How teachers are read is in `minids.posttrain.teachers`, the run is
kept by `minids.posttrain.loop`.
"""

import copy
import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from minids.data import tasks
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, is_correct, prompt_ids
from minids.inference.generate import generate
from minids.posttrain.loop import descend, digest, examine, run
from minids.posttrain.settings import Settings
from minids.posttrain.sft import worked
from minids.posttrain.teachers import Teachers, Texts
from minids.pretrain.batches import IGNORED
from minids.pretrain.losses import cross_entropy
from minids.pretrain.run_folder import read_log, start
from minids.system.distributed import device
from minids.system.files import write_text
from minids.weights.checkpoint import load
from minids.weights.save import save

METHODS = {
    "on-policy": "the student's texts, the whole vocabulary: V4's way",
    "token": "the student's texts, the KL estimated from the one token that was sampled",
    "off-policy": "the teachers' texts, the whole vocabulary: KL(teacher || student)",
    "sft": "worked answers of all domains, no teacher: fine-tuning on the mixture",
    "average": "the mean of the teachers' weights, no training",
}


@dataclass(frozen=True)
class DistillConfig(Settings):
    """How to make one model of many. Families take turns among a step's problems, as often as they weigh, and modes among
    steps."""

    families: tuple[str, ...] = tasks.FAMILIES
    method: str = "on-policy"   # one of METHODS
    batch: int = 64             # problems of a step
    lr: float = 2e-3
    weights: tuple[float, ...] = ()     # of the families, in problems and in the loss, in their order; none: all alike
    mtp_weight: float = 0.1     # of the MTP loss on the same texts, which the MTP block alone learns from
    lean: bool = False          # one teacher in memory at a time; hidden states wait on disk
    eval_problems: int = 40     # of each family in each mode

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights) or (1 / len(self.families),) * len(self.families))
        if self.method not in METHODS:
            raise MinidsError(f"method: expected {', '.join(METHODS)}; found {self.method!r}")
        if len(self.weights) != len(self.families) or min(self.weights) < 0 or not sum(self.weights):
            raise MinidsError(f"weights: expected one of at least 0 for each of {', '.join(self.families)}; found "
                              f"{self.weights}")
        if self.batch < len(self.families) or self.mtp_weight < 0:
            raise MinidsError(f"expected a batch of at least {len(self.families)}, one problem of each family, and an "
                              f"mtp_weight of at least 0; found {self.batch} and {self.mtp_weight}")

    def problem(self, split: str, i: int) -> tasks.Problem:
        """The problem number i of a split: the next turn is that of the family that lacks most of what it weighs."""
        order = turns(self.families, self.weights, self.batch)
        step, place = divmod(i, self.batch)
        family = order[place]
        before = step * order.count(family) + order[:place].count(family)                # problems of this family
        return tasks.problem(family, split, i, self.difficulties[before % len(self.difficulties)])


@cache
def turns(families, weights, count: int) -> list[str]:
    """Whose turn it is in each of `count` places."""
    order, share = [], {family: weight / sum(weights) for family, weight in zip(families, weights)}
    while len(order) < count:
        order.append(max(families, key=lambda family: share[family] * (len(order) + 1) - order.count(family)))
    return order


def distill(student, teachers: dict, settings: DistillConfig, out, resume: bool = True, on_step=None) -> list[dict]:
    """Make one model from that in the folder `student` and those in the folders `teachers`, {family: folder}, in the folder
    `out`; returns the log (see `minids.posttrain.loop.run`).

    Its records: {"step", "mode", "loss", "kl", "kl_<family>", "signal", "noise", "tokens", "length", "accuracy", "mtp_loss",
    "rehearsal_loss", "grad_norm", "lr", "seconds"} each step, as far as there is such a thing: KLs in nats per token,
    KL(student || teacher) in every method; signal and noise as in `noise`; the length and the share of right ones of the texts
    that a model wrote. And {"step", "family", "mode", "valid_accuracy", "valid_length"} now and then, of greedy answers.
    "average" takes no step and does not look at the student.
    """
    out, tokenizer = Path(out), Tokenizer.load()
    if settings.method != "sft" and set(teachers) != set(settings.families):
        raise MinidsError(f"teachers: expected one for each of {', '.join(settings.families)}; found "
                          f"{', '.join(teachers) or 'none'}")
    school = Teachers(teachers, out / "cache" if settings.lean else None)

    def look(model, step):
        for family in settings.families:
            for record in examine(model, tokenizer, dataclasses.replace(settings, families=(family,), weights=())):
                yield {"family": family} | record

    begun = {"teachers": {family: digest(school.model(family)) for family in teachers}}
    if settings.method == "average":
        return _average(school, settings, out, begun, look, resume, tokenizer)
    model = load(student, device(), torch.float32)
    for family in teachers:
        school.check(family, model.config.vocab_size)

    def update(optimiser, step):
        mode = settings.modes[step % len(settings.modes)]
        numbers = settings.numbers(step, settings.batch, fresh=settings.method != "sft")
        problems = [settings.problem("train", i) for i in numbers]
        texts = lessons(model, school, problems, mode, settings, tokenizer, settings.seed * 1_000_003 + step)
        record = {"mode": mode} | learn(model, school, texts, settings)
        if settings.method != "sft":
            written = [(problem, reply) for part in texts.values() for problem, reply in zip(part.problems, part.replies)]
            record |= {"length": sum(len(reply) for _, reply in written) / len(written),
                       "accuracy": sum(is_correct(p, reply, tokenizer, mode) for p, reply in written) / len(written)}
        return record | descend(model, optimiser, settings, step)

    try:
        return run(model, settings, out, begun, update, lambda step: look(model, step), resume, on_step, name="distillation")
    finally:
        school.forget()


# ---- texts ----

def lessons(model, school, problems, mode: str, settings: DistillConfig, tokenizer, seed: int) -> dict[str, Texts]:
    """What a step learns from, {family: texts}: written by the student, by each family's teacher, or worked answers."""
    prompts = [prompt_ids(problem, tokenizer, mode) for problem in problems]
    of = {family: [i for i, problem in enumerate(problems) if problem.family == family] for family in settings.families}
    write = lambda writer, some: generate(writer, [prompts[i] for i in some], LIMITS[mode], seed=seed)
    if settings.method == "sft":
        replies = [worked(problem, tokenizer, mode)[len(prompt):] for problem, prompt in zip(problems, prompts)]
    elif settings.method == "off-policy":
        found = {i: reply for family, some in of.items() if some for i, reply in zip(some, write(school.model(family), some))}
        replies = [found[i] for i in range(len(problems))]
    else:
        replies = write(model, range(len(problems)))
    return {family: Texts.of([prompts[i] for i in some], [replies[i] for i in some], [problems[i] for i in some],
                             tokenizer.pad_id) for family, some in of.items() if some}


# ---- losses ----

def learn(model, school: Teachers, lessons: dict[str, Texts], settings: DistillConfig) -> dict:
    """Gradients of sum_i w_i times the mean loss over the reply tokens of family i; returns what the log says.

    First all teachers read; then the student, family by family, so that one teacher's head is needed at a time.
    """
    taught = settings.method != "sft"
    if taught:
        for family, texts in lessons.items():
            school.read(family, texts)
    weight = dict(zip(settings.families, settings.weights))
    whole, record = sum(weight[family] for family in lessons), defaultdict(float)
    for family, texts in lessons.items():
        share = weight[family] / whole
        ids, reply = texts.ids.to(model.embed.weight.device), texts.reply.to(model.embed.weight.device)
        X = model.features(ids[:, :-1])                                                  # B T-1 n d
        student, token = model.logits(X[reply][None])[0], ids[:, 1:][reply]              # N vocab, N
        teacher = school.logits(family) if taught else None
        loss = losses(student, teacher, token, settings.method).mean()
        if model.mtp and settings.mtp_weight and ids.shape[1] > 2:
            far = ids.masked_fill(~F.pad(reply, (1, 0)), IGNORED)[:, 2:]                 # B T-2: the tokens after the next
            mtp = cross_entropy(model.mtp_logits(X[:, :-1].detach(), ids[:, 1:-1]), far)
            (settings.mtp_weight * share * mtp).backward(inputs=list(model.mtp.parameters()))
            record["mtp_loss"] += share * mtp.item()
        (share * loss).backward()
        record["loss"] += share * loss.item()
        record["tokens"] += len(token)
        if taught:
            with torch.no_grad():
                kl, (signal, spread) = divergence(student, teacher).mean().item(), noise(student, teacher)
            record[f"kl_{family}"] = kl
            for name, value in (("kl", kl), ("signal", signal.mean().item()), ("noise", spread.mean().item())):
                record[name] += share * value
    return dict(record)


def losses(student, teacher, token, method: str):
    """The loss at each of N positions. student, teacher: N vocab, logits; token: N, what stands in the text."""
    if method == "on-policy":
        return divergence(student, teacher)
    if method == "off-policy":
        return divergence(teacher, student)
    if method == "sft":
        return F.cross_entropy(student, token, reduction="none")
    return token_loss(student, teacher, token)


def divergence(a, b):
    """KL(a || b) = sum_v p_v (log p_v - log q_v), in nats, p and q the softmax of a and b. N vocab, logits -> N."""
    logp, logq = a.log_softmax(-1), b.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def token_loss(student, teacher, token):
    """The same KL's gradient from one token that the student sampled: with the advantage a = log q - log p, which has no
    gradient of its own, the loss is -a log p. Its mean over tokens has the gradient of `divergence`."""
    logp = student.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    logq = teacher.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    return -(logq - logp).detach() * logp


def noise(student, teacher):
    """How far `token_loss` scatters, exactly: two of N.

    By the student's logits the gradient of their KL is g_v = p_v (l_v - KL), l = log p - log q, and that of `token_loss`
    for token x is l_x (e_x - p). `signal` is |g|^2, `noise` the variance E |l_x (e_x - p)|^2 - |g|^2 that comes from drawing x.
    """
    logp = student.log_softmax(-1)
    p, ratio = logp.exp(), logp - teacher.log_softmax(-1)
    g = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    signal = (g * g).sum(-1)
    length = 1 - 2 * p + (p * p).sum(-1, keepdim=True)                                   # |e_x - p|^2
    return signal, (p * ratio.square() * length).sum(-1) - signal


# ---- the mean of weights ----

def average(models):
    """A model whose tensors are the means of those of `models`, all of one configuration. Tables of expert numbers have no
    mean: they must be the same in all."""
    first, *others = models
    if any(other.config != first.config for other in others):
        raise MinidsError("the models have several configurations: expected one, weights of different sizes have no mean")
    states = [model.state_dict() for model in models]
    state = {}
    for name, t in states[0].items():
        same = [s[name] for s in states]
        if t.is_floating_point():
            state[name] = torch.stack([s.float() for s in same]).mean(0).to(t.dtype)
        elif all(torch.equal(t, s) for s in same):
            state[name] = t.clone()
        else:
            raise MinidsError(f"the models have different {name}: expected descendants of one base model, which share it")
    mean = copy.deepcopy(first)
    mean.load_state_dict(state)
    return mean


def _average(school, settings, out, begun, look, resume, tokenizer) -> list[dict]:
    """The method "average" as a run: a model and a log, no steps."""
    model = average([school.model(family) for family in settings.families])
    start(out, {"config": model.config.to_json(), "settings": dataclasses.asdict(settings)} | begun, resume)
    if (out / "model").is_dir():
        return read_log(out)
    log = [{"step": 0} | record for record in look(model, 0)]
    write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in log))
    save(model, out / "model", format=settings.format, tokenizer=tokenizer)
    return log
