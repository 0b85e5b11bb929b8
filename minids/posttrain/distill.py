"""On-policy distillation: one model learns from many teachers, on texts that it writes itself.

Report sections 5.1.2 and 5.2.2. The student answers problems of all domains. At each token of an
answer it moves towards the teacher of the problem's domain by the reverse KL over the whole
vocabulary, KL(student || teacher). `DistillConfig.method` selects other ways to make one
model of many, for comparison. For the teachers see `minids.posttrain.teachers`, for the run
`minids.posttrain.loop`.
"""

import copy
import dataclasses
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
from minids.model.transformer import check_range
from minids.posttrain.loop import optimiser_step, post_training_run, validate
from minids.posttrain.records import DistillStep, Validation
from minids.posttrain.settings import PostTrainConfig
from minids.posttrain.sft import worked
from minids.posttrain.teachers import Teachers, Texts
from minids.pretrain.batches import IGNORED
from minids.pretrain.losses import floats, mean, mtp_loss
from minids.pretrain.run_folder import locked, prepare, read_log, write_log
from minids.system import distributed
from minids.system.devices import moved
from minids.system.files import check_writable
from minids.weights.checkpoint import load
from minids.weights.digest import digest
from minids.weights.save import save

METHODS = {
    "on-policy": "the student's texts, the whole vocabulary: V4's way",
    "token": "the student's texts, the KL estimated from the one token that was sampled",
    "off-policy": "the teachers' texts, the whole vocabulary: KL(teacher || student)",
    "sft": "worked answers of all domains, no teacher: fine-tuning on the mixture",
    "average": "the mean of the teachers' weights, no training",
}


@dataclass(frozen=True)
class DistillConfig(PostTrainConfig):
    """The settings of distillation. Within a step families alternate in proportion to their
    weights; modes alternate from step to step."""

    families: tuple[str, ...] = tasks.FAMILIES      # families of problems, each with its teacher
    method: str = "on-policy"   # on-policy, or to compare: token, off-policy, sft, average
    batch: int = 64             # problems per step
    lr: float = 2e-3            # peak learning rate; it falls to a tenth along a cosine
    weights: tuple[float, ...] = ()     # weights of the families, in their order (default: equal)
    mtp_weight: float = 0.1     # weight of the multi-token prediction loss of the MTP block
    lean: bool = False          # keep one teacher in memory at a time, and hidden states on disk
    eval_problems: int = 40     # validation problems of each family in each mode

    def __post_init__(self):
        super().__post_init__()
        weights = tuple(self.weights) or (1 / len(self.families),) * len(self.families)
        object.__setattr__(self, "weights", weights)
        if self.method not in METHODS:
            raise MinidsError(f"method: expected {', '.join(METHODS)}; found {self.method!r}")
        if len(weights) != len(self.families) or min(weights) < 0 or not sum(weights):
            raise MinidsError(f"weights: expected one of at least 0 for each of "
                              f"{', '.join(self.families)}; found {weights}")
        if self.batch < len(self.families) or self.mtp_weight < 0:
            raise MinidsError(
                f"expected a batch of at least {len(self.families)}, one problem of each family, "
                f"and an mtp_weight of at least 0; found {self.batch} and {self.mtp_weight}")

    def problem(self, split: str, i: int) -> tasks.Problem:
        """Problem number i of a split: families in proportion to their weights, then
        difficulties."""
        order = family_order(self.families, self.weights, self.batch)
        step, place = divmod(i, self.batch)
        family = order[place]
        before = step * order.count(family) + order[:place].count(family)   # of this family
        difficulty = self.difficulties[before % len(self.difficulties)]
        return tasks.problem(family, split, i, difficulty)


@cache
def family_order(families, weights, count: int) -> list[str]:
    """The family of each of `count` problems: always the one furthest below its share."""
    total = sum(weights)
    share = {family: weight / total for family, weight in zip(families, weights)}
    order = []
    while len(order) < count:
        lacks = lambda family: share[family] * (len(order) + 1) - order.count(family)
        order.append(max(families, key=lacks))
    return order


def distill(student, teachers: dict, settings: DistillConfig, out, resume: bool = True,
            on_step=None, device=None) -> list[DistillStep | Validation]:
    """Train the model in the folder `student` with the teachers {family: folder}, in the folder
    `out`; returns the log.

    For the records of the log see `minids.posttrain.records`, for the other arguments, the files
    and the errors `minids.pretrain.train.train`. The method "average" takes no step and does not
    read the student.
    """
    # 1. The teachers
    check_writable(out, folder=True)
    out, tokenizer, device = Path(out), Tokenizer.load(), distributed.device_or_cpu(device)
    if settings.method != "sft" and set(teachers) != set(settings.families):
        raise MinidsError(f"teachers: expected one for each of {', '.join(settings.families)}; "
                          f"found {', '.join(teachers) or 'none'}")
    school = Teachers(teachers, out / "cache" if settings.lean else None, device)
    digests = {family: digest(school.model(family)) for family in teachers}
    if settings.method == "average":
        return average_run(school, settings, out, digests, resume, tokenizer)

    # 2. The student
    model = load(student, device, torch.float32)
    for family in teachers:
        school.check(family, model.config.vocab_size)

    try:
        with post_training_run(model, settings, out, "distillation", resume,
                               teachers=digests) as (run, optimiser):
            if run.step == 0:
                run.log(*validate_families(model, tokenizer, settings))
            for step in run.steps(on_step):
                # 3. Texts: problems of all families, answered by the student
                mode = settings.modes[step % len(settings.modes)]
                numbers = settings.numbers(step, settings.batch, fresh=settings.method != "sft")
                problems = [settings.problem("train", i) for i in numbers]
                texts = write_texts(model, school, problems, mode, settings, tokenizer,
                                    seed=settings.seed * 1_000_003 + step)

                # 4. The teachers read them; the loss and its gradient
                record: DistillStep = {"mode": mode} | add_gradients(model, school, texts, settings)
                if settings.method != "sft":
                    record |= describe_replies(texts, tokenizer, mode)

                # 5. The update
                record |= optimiser_step(model, optimiser, settings, step)
                run.log_step(record)
                if run.is_due(settings.eval_every):
                    run.log(*validate_families(model, tokenizer, settings))
    finally:
        school.forget()
    return run.records


def validate_families(model, tokenizer: Tokenizer, settings: DistillConfig) -> list[Validation]:
    """The records of `minids.posttrain.loop.validate`, for each family by itself."""
    records = []
    for family in settings.families:
        alone = dataclasses.replace(settings, families=(family,), weights=())
        records += [{"family": family} | record for record in validate(model, tokenizer, alone)]
    return records


# ---- texts ----

def write_texts(model, school: Teachers, problems, mode: str, settings: DistillConfig,
                tokenizer: Tokenizer, seed: int) -> dict[str, Texts]:
    """The texts that a step learns from, {family: texts}.

    They are written by the student, or by each family's teacher ("off-policy"), or are worked
    answers ("sft").
    """
    prompts = [prompt_ids(problem, tokenizer, mode) for problem in problems]
    rows_of = {family: rows for family in settings.families
               if (rows := [i for i, problem in enumerate(problems) if problem.family == family])}
    if settings.method == "sft":
        replies = [worked(problem, tokenizer, mode)[len(prompt):]
                   for problem, prompt in zip(problems, prompts)]
    elif settings.method == "off-policy":
        replies = [None] * len(problems)
        for family, rows in rows_of.items():
            written = generate(school.model(family), [prompts[i] for i in rows], LIMITS[mode],
                               seed=seed)
            for i, reply in zip(rows, written):
                replies[i] = reply
    else:
        replies = generate(model, prompts, LIMITS[mode], seed=seed)
    return {family: Texts.of([prompts[i] for i in rows], [replies[i] for i in rows],
                             [problems[i] for i in rows], tokenizer.pad_id)
            for family, rows in rows_of.items()}


def describe_replies(texts: dict[str, Texts], tokenizer: Tokenizer, mode: str) -> DistillStep:
    """The mean length of the replies, and the share of correct ones."""
    written = [(problem, reply) for part in texts.values()
               for problem, reply in zip(part.problems, part.replies)]
    correct = sum(is_correct(problem, reply, tokenizer, mode) for problem, reply in written)
    return {"length": sum(len(reply) for _, reply in written) / len(written),
            "accuracy": correct / len(written)}


# ---- losses ----

def add_gradients(model, school: Teachers, texts: dict[str, Texts],
                  settings: DistillConfig) -> DistillStep:
    """Add the gradient of sum_i w_i times the mean loss over the reply tokens of family i.

    Returns the log record. First all teachers read; then the student, family by family, so that one
    teacher's head is needed at a time.
    """
    has_teachers, device = settings.method != "sft", model.embed.weight.device
    check_range(torch.cat([part.ids.flatten() for part in texts.values()]),
                model.config.vocab_size)
    if has_teachers:
        for family, part in texts.items():
            school.read(family, part)
    weight = dict(zip(settings.families, settings.weights))
    total_weight, record = sum(weight[family] for family in texts), defaultdict(float)
    shares, measured = {}, {}
    for family, part in texts.items():
        share = shares[family] = weight[family] / total_weight
        ids, reply = moved(part.ids, device), moved(part.reply, device)             # B T, B T-1
        rows, places = moved(part.reply.nonzero().T, device)                        # N, N
        X = model.features(ids[:, :-1])                                             # B T-1 n d
        token = ids[rows, places + 1]                                               # N
        student = model.logits(X[rows, places][None])[0]                            # N vocab
        # N vocab
        teacher = school.logits(family).to(device) if has_teachers else None
        loss = losses(student, teacher, token, settings.method).mean()
        if model.mtp and settings.mtp_weight and ids.shape[1] > 2:
            # the tokens after the next ones, B T-2; the MTP block alone learns from them
            far = ids.masked_fill(~F.pad(reply, (1, 0)), IGNORED)[:, 2:]
            mtp = mean(mtp_loss(model, X, ids[:, :-1], far, alone=True)[0])
            (settings.mtp_weight * share * mtp).backward(inputs=list(model.mtp.parameters()))
            measured["mtp_loss", family] = mtp.detach()
        (share * loss).backward()
        measured["loss", family] = loss.detach()
        record["tokens"] += len(token)
        if has_teachers:
            with torch.no_grad():
                kl = loss.detach() if settings.method == "on-policy" \
                    else divergence(student, teacher).mean()
                signal, spread = noise(student, teacher)
            measured["kl", family] = kl
            measured["signal", family] = signal.mean()
            measured["noise", family] = spread.mean()
    for (name, family), number in floats(measured).items():
        record[name] += shares[family] * number
        if name == "kl":
            record[f"kl_{family}"] = number
    return dict(record)


def losses(student, teacher, token, method: str):
    """The loss at each of N positions. student, teacher: N vocab, logits; token: N, the token in
    the text."""
    if method == "on-policy":
        return divergence(student, teacher)
    if method == "off-policy":
        return divergence(teacher, student)
    if method == "sft":
        return F.cross_entropy(student, token, reduction="none")
    return token_loss(student, teacher, token)


def divergence(a, b):
    """KL(a || b) = sum_v p_v (log p_v - log q_v), in nats, p and q the softmax of a and b.

    a, b: N vocab, logits -> N.
    """
    logp, logq = a.log_softmax(-1), b.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def token_loss(student, teacher, token):
    """A loss with the same gradient on average, from one token that the student sampled.

    With the advantage a = log q - log p, which has no gradient of its own, the loss is -a log p.
    Its mean over sampled tokens has the gradient of `divergence`.
    """
    logp = student.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    logq = teacher.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    return -(logq - logp).detach() * logp


def noise(student, teacher):
    """The signal and the noise of the gradient of `token_loss`, exactly: N each.

    With respect to the student's logits the gradient of the KL is g_v = p_v (l_v - KL) with
    l = log p - log q, and that of `token_loss` for token x is l_x (e_x - p). `signal` is |g|^2; the
    noise is the variance E |l_x (e_x - p)|^2 - |g|^2 that comes from sampling x.
    """
    logp = student.log_softmax(-1)
    p, ratio = logp.exp(), logp - teacher.log_softmax(-1)
    g = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    signal = (g * g).sum(-1)
    length = 1 - 2 * p + (p * p).sum(-1, keepdim=True)                          # |e_x - p|^2
    return signal, (p * ratio.square() * length).sum(-1) - signal


# ---- the mean of weights ----

def average(models):
    """A model whose tensors are the means of those of `models`, all of one configuration.

    Tables of expert numbers have no mean: they must be the same in all models.
    """
    first, *others = models
    if any(other.config != first.config for other in others):
        raise MinidsError("the models have several configurations: expected one, because "
                          "weights of different sizes have no mean")
    states = [model.state_dict() for model in models]
    mean = {}
    for name, t in states[0].items():
        tensors = [state[name] for state in states]
        if t.is_floating_point():
            mean[name] = torch.stack([x.float() for x in tensors]).mean(0).to(t.dtype)
        elif all(torch.equal(t, x) for x in tensors):
            mean[name] = t.clone()
        else:
            raise MinidsError(f"the models have different {name}: expected descendants of one base "
                              f"model, which share it")
    model = copy.deepcopy(first)
    model.load_state_dict(mean)
    return model


def average_run(school: Teachers, settings: DistillConfig, out: Path, digests: dict, resume: bool,
                tokenizer: Tokenizer) -> list[Validation]:
    """The method "average" as a run: a model and a log, no steps."""
    model = average([school.model(family) for family in settings.families])
    with locked(out):
        prepare(out, {"config": model.config.to_json(), "settings": dataclasses.asdict(settings),
                      "teachers": digests}, resume)
        if (out / "model").is_dir():
            return read_log(out)
        log = [{"step": 0} | record for record in validate_families(model, tokenizer, settings)]
        write_log(out, log)
        save(model, out / "model", format=settings.format, tokenizer=tokenizer)
        return log
