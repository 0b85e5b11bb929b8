import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import Killed, interrupt_at, kill_at, without_time
from tiny import COMPRESSED

from minids import Model
from minids.data import tasks
from minids.data.chat import MODES, parse_reply
from minids.data.tokenizer import Tokenizer
from minids.errors import MinidsError
from minids.inference.answers import LIMITS, is_correct, prompt_ids, solve
from minids.posttrain import loop
from minids.posttrain.loop import optimiser_step, replay_loss, replayed_corpus, validate
from minids.posttrain.settings import PostTrainConfig
from minids.posttrain.sft import SFTConfig, conversation, losses, packed_rows, reasoning, sft
from minids.pretrain.batches import batch_of
from minids.pretrain.losses import stream_loss
from minids.pretrain.optim import make_optimiser
from minids.pretrain.run import Interrupted
from minids.pretrain.run_folder import newest, read_log
from minids.weights.checkpoint import load
from minids.weights.digest import digest
from minids.weights.save import save

LONG = COMPRESSED.replace(max_seq_len=512)
SETTINGS = SFTConfig(steps=4, batch=6, seq_len=192, eval_every=2, eval_problems=3, save_every=2,
                     replay=1, modes=("non-think", "think-max"), difficulties=(1, 2))
TOKENIZER = Tokenizer.load()


@pytest.fixture(scope="module", autouse=True)
def short_replies():
    """An untrained model does not end its replies. And a short corpus to replay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "REPLAY_TOKENS", 20_000)
        for mode, limit in zip(MODES, (6, 8, 10)):
            patch.setitem(LIMITS, mode, limit)
        yield
    replayed_corpus.cache_clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    save(Model(LONG), path := tmp_path_factory.mktemp("base") / "model", format="fp32",
         tokenizer=TOKENIZER)
    return path


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, sft(base, SETTINGS, out)


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_a_conversation_is_the_question_and_a_right_reply(family):
    settings = SFTConfig(families=(family,), difficulties=(1, 2))
    lengths = {}
    for i in range(6):
        mode, problem = MODES[i % 3], settings.problem("train", i // 3)
        ids, prompt = conversation(settings, "train", i), prompt_ids(problem, TOKENIZER, mode)
        assert ids[: len(prompt)] == prompt and problem.difficulty == 1 + i // 3
        reply = ids[len(prompt):]
        thoughts, answer = parse_reply(reply, TOKENIZER, mode)
        assert (thoughts, answer) == (reasoning(problem, mode), problem.answer)
        assert is_correct(problem, reply, TOKENIZER, mode)
        assert not is_correct(problem, reply[:-1], TOKENIZER, mode)
        lengths[i] = len(reply)
    assert lengths[0] < lengths[1] < lengths[2] and lengths[3] < lengths[4] < lengths[5]


def test_several_families_and_difficulties_alternate():
    settings = PostTrainConfig(families=("knowledge", "reasoning"), difficulties=(2, 4))
    problems = [settings.problem("train", i) for i in range(5)]
    assert [(p.family, p.difficulty) for p in problems] == [
        ("knowledge", 2), ("reasoning", 2), ("knowledge", 4), ("reasoning", 4), ("knowledge", 2)]


def test_rows_hold_each_conversation_whole_and_once():
    conversations = [conversation(SETTINGS, "train", i) for i in range(12)]
    ids, wrote = packed_rows(conversations, 192, TOKENIZER)
    assert ids.shape == wrote.shape and ids.shape[1] <= 192 and len(ids) < 12
    texts, replies = [], 0
    for row, mask in zip(ids.tolist(), wrote.tolist()):
        starts = [i for i, token in enumerate(row) if token == TOKENIZER.bos_id] + [len(row)]
        for a, b in zip(starts, starts[1:]):
            text = row[a:b]
            text = text[: text.index(TOKENIZER.eos_id) + 1]
            texts.append(text)
            replies += sum(mask[a:b])
            assert not any(mask[a + len(text):b])        # padding
    assert sorted(texts) == sorted(conversations) and replies == wrote.sum()


def test_loss_is_that_of_each_conversation_alone():
    """Packing and masking change nothing: the mean over all reply tokens, each predicted within its
    conversation."""
    torch.manual_seed(1)
    model = Model(LONG).eval()
    conversations = [conversation(SETTINGS, "train", i) for i in range(8)]
    with torch.no_grad():
        loss = losses(model, *packed_rows(conversations, 192, TOKENIZER), SETTINGS)["loss"]
        total, count = 0.0, 0
        for i, ids in enumerate(conversations):
            start = len(prompt_ids(SETTINGS.problem("train", i // 2), TOKENIZER,
                                 SETTINGS.modes[i % 2]))
            logits = model(torch.tensor([ids[:-1]]))[0, start - 1:]
            total += F.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum").item()
            count += len(ids) - start
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_run_goes_on_exactly(base, whole, tmp_path, at):
    with pytest.raises(Killed):
        sft(base, SETTINGS, tmp_path / "run", on_step=kill_at(at))
    log = sft(base, SETTINGS, tmp_path / "run")
    assert without_time(log) == without_time(whole[1]) == without_time(read_log(tmp_path / "run"))
    assert digest(load(newest(tmp_path / "run"))) == digest(load(newest(whole[0])))


@pytest.mark.slow
def test_interrupt_saves_and_a_finished_run_is_left_alone(base, whole, tmp_path):
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        sft(base, SETTINGS, tmp_path / "run", on_step=interrupt_at(2))
    assert newest(tmp_path / "run").name == "step-000003"
    assert without_time(sft(base, SETTINGS, tmp_path / "run")) == without_time(whole[1])
    assert sft(base, SETTINGS, whole[0], on_step=lambda record: pytest.fail("a step")) == whole[1]


def test_what_a_run_leaves(whole):
    out, log = whole
    assert sorted(p.name for p in out.iterdir()) == [".lock", "log.jsonl", "model", "run.json",
                                                     "step-000004"]
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in log if "valid_loss" in r] == [0, 2, 4]
    evaluated = [(r["step"], r["mode"]) for r in log if "valid_accuracy" in r]
    assert evaluated == [(s, m) for s in (0, 2, 4) for m in SETTINGS.modes]


def test_another_seed_learns_from_other_problems(base, whole, tmp_path):
    log = sft(base, dataclasses.replace(SETTINGS, steps=1, seed=1), tmp_path / "run")
    assert log[0]["valid_loss"] == whole[1][0]["valid_loss"]  # the same model, the same valid split
    first = next(record for record in log if "loss" in record)
    assert first["loss"] != next(record for record in whole[1] if "loss" in record)["loss"]


def test_another_base_is_refused(whole, tmp_path):
    torch.manual_seed(9)
    save(Model(LONG), tmp_path / "other", format="fp32", tokenizer=TOKENIZER)
    with pytest.raises(MinidsError, match="other settings .base"):
        sft(tmp_path / "other", SETTINGS, whole[0])


def test_biases_of_gates_stay(base, whole):
    a, b = load(base).state_dict(), load(newest(whole[0])).state_dict()
    assert {n.split(".")[-1] for n in a if ".gate." in n and torch.equal(a[n], b[n])} == {"bias"}


def test_replay_is_pre_trainings_loss_on_rows_of_its_corpus():
    """Each row begins a document, counts what `minids.pretrain.losses.stream_loss` counts, and is
    another one at each step."""
    torch.manual_seed(2)
    model, settings = Model(LONG).train(), SFTConfig(replay=1, steps=8)
    torch.nn.init.normal_(model.head.weight)
    grads, seen = [], []
    for step in range(2):
        model.zero_grad()
        loss = replay_loss(model, settings, step)
        (row,) = batch_of(replayed_corpus(), 1, loop.REPLAY_ROW, 0, step, whole_documents=True)
        seen.append(row)
        assert row[0] == TOKENIZER.bos_id
        assert loss == pytest.approx(stream_loss(model, row, loop.REPLAY_ROW)[0], rel=1e-5)
        grads.append(model.head.weight.grad.clone())
    assert not (seen[0] == seen[1]).all() and not torch.allclose(*grads)


@pytest.mark.slow
def test_with_replay_the_corpus_is_forgotten_less(base):
    """The same few steps on four conversations, with and without replay: the corpus' loss tells."""
    ends = []
    for rows in (0, 4):
        model = load(base, dtype=torch.float32).train()
        settings = SFTConfig(steps=12, lr=1e-2, replay=rows)
        optimiser = make_optimiser(model, settings)
        four = [conversation(settings, "train", i) for i in range(4)]
        rows_of_four = packed_rows(four, 256, TOKENIZER)
        for step in range(12):
            losses(model, *rows_of_four, settings)["loss"].backward()
            record = optimiser_step(model, optimiser, settings, step)
        assert ("replay_loss" in record) == bool(rows)
        ends.append(stream_loss(model, replayed_corpus()[:2000], loop.REPLAY_ROW)[0])
    assert ends[1] < ends[0] - 0.2


@pytest.mark.slow
def test_a_few_conversations_are_learned_by_heart():
    torch.manual_seed(0)
    model = Model(LONG).train()
    settings = SFTConfig(steps=60, lr=2e-2, difficulties=(1,), modes=("non-think",))
    optimiser = make_optimiser(model, settings)
    rows = packed_rows([conversation(settings, "train", i) for i in range(4)], 64, TOKENIZER)
    for step in range(60):
        losses(model, *rows, settings)["loss"].backward()
        optimiser_step(model, optimiser, settings, step)
    problems = [settings.problem("train", i) for i in range(4)]
    verdicts, lengths = solve(model, TOKENIZER, problems, "non-think")
    assert verdicts == [True] * 4
    assert lengths == [len(TOKENIZER.encode(p.answer)) + 1 for p in problems]
    assert len(validate(model, TOKENIZER, SFTConfig(eval_problems=0))) == 0


@pytest.mark.parametrize("changes, message", [
    ({"families": ("cooking",)}, "families: expected some of mathematics"),
    ({"modes": ()}, "modes"),
    ({"difficulties": (6,)}, "difficulties"),
    ({"steps": 0}, "steps"),
    ({"optimiser": "sgd"}, "optimiser"),
    ({"batch": 0}, "batch"),
    ({"replay": -1}, "replay"),
])
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(MinidsError, match=message):
        SFTConfig(**changes)


def test_a_long_conversation_has_its_own_row():
    ids, wrote = packed_rows([list(range(3, 33)), [5, 6], [7, 8, 9]], 20, TOKENIZER)
    assert ids.shape == wrote.shape == (2, 30)
    assert ids.tolist() == [[*range(3, 33)], [7, 8, 9, 5, 6] + [TOKENIZER.pad_id] * 25]


def test_rows_longer_than_the_context_are_refused(base, tmp_path):
    with pytest.raises(MinidsError, match="at most the model's context of 512"):
        sft(base, SFTConfig(seq_len=600), tmp_path / "run")
