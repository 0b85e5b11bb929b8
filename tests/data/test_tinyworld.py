import random
import re
import time

import pytest
from reader import PERSON, Reader

from minids.data.splits import SPLITS
from minids.data.tinyworld import facts, stories
from minids.errors import MinidsError


def question_texts(some_facts):
    """Every wording of the questions for some facts."""
    return {facts.fill(template, fact)
            for fact in some_facts for template in facts.QUESTIONS[fact.relation]}


def words(text):
    return re.findall(r"[A-Za-z0-9]+", text)


def test_the_same_seed_gives_the_same_text():
    for make in (lambda rng: stories.story_with_questions(rng, 300),
                 lambda rng: facts.portrait(rng, "Mira"),
                 lambda rng: stories.recall(rng, 200)):
        assert make(random.Random(3)) == make(random.Random(3))
        assert len({str(make(random.Random(seed))) for seed in range(50)}) == 50


@pytest.mark.parametrize("seed", range(8))
def test_a_reader_who_knows_only_the_text_gives_the_accepted_answers(seed):
    kinds = set()
    for part in range(25):
        length = (60, 150, 400, 900)[part % 4]
        story = stories.story(random.Random(100 * seed + part), length)
        reader = Reader(story.text)
        assert reader.where == story.where and reader.things == story.things
        for q in story.askable():
            answer = reader.answer(q.kind, q.about, tuple(PERSON.findall(q.text)))
            assert answer == q.accepted, (q, story.text)
            assert stories.is_correct(q.answer, q.accepted)
            assert q.accepted in story.text[-q.back:] or q.accepted == "Nobody"
            kinds.add(q.kind)
    assert kinds == set(stories.ASK)


def test_interleaved_questions_are_true_where_they_stand():
    question = r"Question: (In which place is|Where is) (?:the )?(.+)\?\nAnswer: (.+)\n"
    count = 0
    for seed in range(60):
        text = stories.story_with_questions(random.Random(seed), 250)
        for m in re.finditer(question, text):
            before = re.sub(r"Question: .*\nAnswer: .*\n", "\n", text[:m.start()])
            reader = Reader(re.sub(r"\n{2,}", "\n\n", before))
            kind = "where_thing" if m[2] in reader.things else "where_person"
            accepted = reader.answer(kind, m[2])
            assert stories.is_correct(m[3], accepted), (m[0], before)
            count += 1
    assert count > 60


@pytest.mark.parametrize("kind", stories.KINDS)
@pytest.mark.parametrize("between", (0, 100, 3000))
def test_recall_plants_once_and_asks_after_the_distance(kind, between):
    for seed in range(12):
        context, question, answer, accepted = stories.recall(random.Random(seed), between, kind)
        assert words(context).count(accepted) == 1
        assert question.startswith("Question: ") and question.endswith("\nAnswer:")
        assert stories.is_correct(answer, accepted)
        after = len(context[context.index(accepted):].split())
        assert between <= after <= between + 60
        planted = Reader(context).planted
        about = next(about for (k, about), value in planted.items()
                     if (k, value) == (kind, accepted))
        assert about in question and sum(k == kind for k, _ in planted) >= 3


def test_recall_refuses_an_unknown_kind():
    with pytest.raises(MinidsError, match="secret, number, hidden"):
        stories.recall(random.Random(0), 100, "colour")


@pytest.mark.slow
def test_documents_are_as_long_as_asked_and_use_few_words():
    vocabulary, ratios = set(), []
    for seed in range(2000):
        rng = random.Random(seed)
        length = rng.choice((50, 80, 120, 200, 400))
        text = stories.story_with_questions(rng, length)
        ratios.append(len(text.split()) / length)
        vocabulary.update(words(text.lower()))
        assert text.isascii() and text.endswith(".\n")
        assert not re.search(r"  |\n\n\n|[{}]|None|_", text)
    assert 0.7 < min(ratios) and max(ratios) < 1.3 and 0.95 < sum(ratios) / len(ratios) < 1.05
    assert 600 < len(vocabulary) < 1000


def test_a_long_document_is_quick_and_asks_near_and_far():
    start = time.perf_counter()
    text = stories.story_with_questions(random.Random(1), 5000)
    assert time.perf_counter() - start < 5 and 4900 < len(text.split()) < 5100
    story, distances = stories.story(random.Random(2), 3000), {}
    for far in (False, True):
        distances[far] = [story.ask(far).back for _ in range(10)]
    assert max(distances[False]) < min(distances[True]) and max(distances[True]) > 8000


def test_no_sentence_says_more_than_one_thing_of_a_planted_value():
    rng = random.Random(5)
    story = stories.story(rng, 2000)
    for position, q in story.planted:
        assert words(story.text).count(q.accepted) == 1
        sentence = story.text[position:].split(".")[0]
        assert q.accepted in sentence and q.about in sentence


def test_every_wording_names_the_subject_and_the_value():
    for fact in facts.WORLD:
        subject = fact.subject.lower()
        for template in facts.STATEMENTS[fact.relation]:
            text = facts.fill(template, fact)
            assert subject in words(text.lower()) and fact.value.lower() in words(text.lower())
            assert text[0].isupper()
        assert all(subject in words(text.lower()) for text in question_texts([fact]))
        answer = facts.fill(facts.ANSWERS[fact.relation], fact)
        assert stories.is_correct(answer, fact.value)


def test_the_fixed_world_is_consistent():
    assert len(facts.WORLD) == len({(f.subject, f.relation) for f in facts.WORLD}) == 368
    for relation in ("friend", "neighbour"):
        for f in facts.WORLD:
            if f.relation == relation:
                assert facts.VALUE[f.value, relation] == f.subject != f.value
    pools = [word.lower() for pool in stories.POOLS for word in pool]
    assert len(pools) == len(set(pools))        # a word is in one pool only


@pytest.mark.slow
def test_facts_of_valid_and_test_are_stated_but_never_asked_for():
    parts = {s: [f for f in facts.WORLD if facts.split_of(f) == s] for s in SPLITS}
    assert all(len(parts[s]) > 20 for s in SPLITS) and len(parts["train"]) > 270
    for f in facts.WORLD:
        if f.relation in ("friend", "neighbour"):
            assert facts.split_of(f) == facts.split_of(facts.Fact(f.value, f.relation, f.subject))
    text = "".join(facts.portrait(random.Random(seed), s)
                   for s in facts.SUBJECTS for seed in range(20))
    text += "".join(stories.story_with_questions(random.Random(seed), 200)
                    for seed in range(400))
    asked = set(re.findall(r"Question: (.*)", text))
    assert len(asked & question_texts(parts["train"])) > 400
    assert not asked & question_texts(parts["valid"] + parts["test"])
    sentences = set(re.split(r"(?<=\.)\s", text))
    for s in SPLITS:
        for f in parts[s]:
            assert sentences & {facts.fill(t, f) for t in facts.STATEMENTS[f.relation]}


def test_a_portrait_needs_a_known_subject():
    with pytest.raises(MinidsError, match="Atlantis"):
        facts.portrait(random.Random(0), "Atlantis")


@pytest.mark.parametrize("text, accepted, correct", [
    ("The red lamp is in the mill.", "mill", True),
    (" mill", "mill", True),
    ("The mill!\nQuestion: Where is Otto?\nAnswer: Otto is in the barn.", "mill", True),
    ("The red lamp is in the mill, the barn.", "mill", False),
    ("The red lamp is in the barn.", "mill", False),
    ("It is not here. It is in the mill.", "mill", False),
    ("the windmill", "mill", False),
    ("", "mill", False),
    ("Mira gave Otto the red lamp.", "red lamp", True),
    ("Mira gave Otto the red lamp and the blue lamp.", "red lamp", False),
    ("Mira gave Otto the lamp.", "red lamp", False),
    ("Nobody has the lamp.", "Nobody", True),
    ("The number of the green door is 47.", "47", True),
    ("The number of the green door is 47 48.", "47", False),
    ("The number is 147.", "47", False),
    ("Yes or no.", "yes", False),
])
def test_a_correct_answer_names_one_word_of_the_pool(text, accepted, correct):
    assert stories.is_correct(text, accepted) is correct


def test_an_accepted_word_must_be_in_a_pool():
    with pytest.raises(MinidsError, match="zzz"):
        stories.is_correct("zzz", "zzz")
