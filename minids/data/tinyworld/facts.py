"""TinyWorld's fixed facts: people, towns and things that are the same in every document.

`WORLD` holds some 370 facts, generated once from a fixed seed. Each can be stated and asked for in
several wordings; `portrait` states what is known of one subject. Facts are split into train, valid
and test. The training text states all facts, but asks only for those of train. To answer a question
about the others, a model must have learned them from plain statements. Not in the report: the facts
stand in for the world knowledge of its corpus. For stories in this world see
`minids.data.tinyworld.stories`.
"""

import random
from dataclasses import dataclass

from minids.data.splits import split_by_hash
from minids.errors import MinidsError

WOMEN = ("Mira Ada Nora Lena Ivy Tess Ruth Hanna Elsa Greta Vera Dora Cleo Anna Edith Flora Helen "
         "Irma Julia Kate Lucy Maud Olga Paula").split()
MEN = ("Otto Ben Cid Hugo Karl Emil Felix Oscar Peter Simon Tom Victor Walter Anton Bruno David "
       "Erik Frank Gus Henry Ivan Jonas Leo Max").split()
PEOPLE = WOMEN + MEN
TOWNS = ("Alderby Bramwick Corley Dunmoor Elmsea Fernhill Granton Hollin Kelby Larkham Marlow "
         "Nettleby Oakford Penrose Redcliff Selwick Thornby Upmoor Wexford Yarrow").split()
JOBS = ("baker miller smith tailor farmer teacher doctor painter sailor fisher hunter gardener "
        "cook weaver potter carpenter shepherd barber singer judge guard nurse driver printer "
        "mason tanner banker dancer writer clerk pilot porter").split()
PETS = "cat dog goat hen parrot rabbit pony tortoise goose donkey lamb owl".split()
FOODS = ("soup bread cheese honey rice fish cake porridge jam corn cabbage butter pie stew toast "
         "pudding").split()
GOODS = ("paper cloth salt soap wine oil tea silk beer leather coal sugar flour glue ink wax steel "
         "thread paint lace").split()
LANDMARKS = ("bridge tower castle church lighthouse fountain temple palace school theatre arch "
             "dome monument column fort pyramid museum windmill hospital station").split()
REGIONS = "north south east west".split()
MATERIALS = {"lamp": "brass", "kite": "cotton", "drum": "wood", "book": "bark", "cup": "clay",
             "bell": "brass", "hat": "straw", "ball": "rubber", "flute": "bone", "spoon": "wood",
             "rope": "straw", "mirror": "glass", "clock": "brass", "broom": "straw",
             "hammer": "iron", "kettle": "tin", "blanket": "wool", "map": "cotton", "pen": "bone",
             "bowl": "clay", "key": "iron", "doll": "wood", "scarf": "wool", "whistle": "tin"}
THINGS = list(MATERIALS)
SUBJECTS = tuple(PEOPLE + TOWNS + THINGS)


@dataclass(frozen=True)
class Fact:
    """A permanent fact: the `relation` of `subject` is `value`, one word each."""

    subject: str
    relation: str   # a key of STATEMENTS
    value: str


@dataclass(frozen=True)
class Question:
    """A question and its only answer."""

    kind: str           # a relation of a fact, or a key of `minids.data.tinyworld.stories.ASK`
    text: str
    answer: str         # a whole sentence
    accepted: str       # the word (for a thing: two words) that a correct answer names
    about: str = ""     # the person, thing, door or subject of a fact
    back: int = 0       # characters back to the earliest sentence needed; 0 if none is

    @property
    def lines(self) -> str:
        """The question and its answer, one line each."""
        return f"Question: {self.text}\nAnswer: {self.answer}\n"


# {S} is the subject, {V} the value, {aV} the value with its article, {their} his or her. A sentence
# that begins with {S} may also begin with a pronoun.
STATEMENTS = {
    "home": ["{S} lives in {V}.", "{S} has a house in {V}.", "{S} calls {V} home.",
             "The home of {S} is in {V}.", "{V} is the town where {S} lives.",
             "The house of {S} stands in {V}."],
    "job": ["{S} is {aV}.", "{S} works as {aV}.", "{S} has been {aV} for years.",
            "The job of {S} is to be {aV}.", "By trade {S} is {aV}.", "If you need {aV}, ask {S}."],
    "pet": ["{S} has {aV}.", "{S} keeps {aV}.", "{S} owns {aV}.", "The pet of {S} is {aV}.",
            "{S} takes good care of {their} {V}.", "{aV} lives in the house of {S}."],
    "food": ["{S} likes {V} best.", "{S} loves {V}.", "{S} eats {V} every day.",
             "The favourite food of {S} is {V}.", "Nothing is better than {V}, says {S}.",
             "If you cook for {S}, make {V}."],
    "friend": ["{S} is a friend of {V}.", "{S} often visits {their} friend {V}.",
               "{S} and {V} are friends.", "The friend of {S} is {V}.", "{V} is the friend of {S}.",
               "{S} has known {their} friend {V} for years."],
    "made": ["{S} is known for its {V}.", "{S} sells {V} to all the land.",
             "In {S} people make {V}.", "{V} is made in {S}.", "Much {V} comes from {S}.",
             "The people of {S} make {V}."],
    "landmark": ["{S} has {aV}.", "{S} is proud of its {V}.", "In {S} stands {aV}.",
                 "There is {aV} in {S}.", "The {V} of {S} is very old.",
                 "Many come to {S} to see the {V}."],
    "region": ["{S} lies in the {V}.", "{S} is a town in the {V}.", "To get to {S}, go {V}.",
               "The town of {S} is in the {V}.", "In the {V} of the land lies {S}."],
    "neighbour": ["{S} is next to {V}.", "{S} lies close to {V}.",
                  "From {S} it is a short walk to {V}.", "{S} and {V} are next to each other.",
                  "The town next to {S} is {V}."],
    "material": ["{S} is made of {V}.", "To make {S} you need {V}.", "Out of {V} people make {S}.",
                 "{V} is what {S} is made of."],
    "sold": ["{S} is sold in {V}.", "You can buy {S} in {V}.", "If you want {S}, go to {V}.",
             "The market of {V} has {S} for you."],
}
QUESTIONS = {
    "home": ["Where does {S} live?", "In which town does {S} live?"],
    "job": ["What is the job of {S}?", "What does {S} do for a living?"],
    "pet": ["Which pet does {S} have?", "Which animal does {S} keep?"],
    "food": ["What is the favourite food of {S}?", "What does {S} like to eat best?"],
    "friend": ["Who is the friend of {S}?", "Which friend does {S} have?"],
    "made": ["What is made in {S}?", "What do people make in {S}?"],
    "landmark": ["What stands in {S}?", "What can you see in {S}?"],
    "region": ["In which part of the land is {S}?", "Where does {S} lie?"],
    "neighbour": ["Which town is next to {S}?", "Which town lies close to {S}?"],
    "material": ["What is {S} made of?", "What do you need to make {S}?"],
    "sold": ["Where can you buy {S}?", "In which town is {S} sold?"],
}
# An answer names one word of the kind asked for; {S} is omitted where it is of the same kind.
ANSWERS = {
    "home": "{S} lives in {V}.",
    "job": "{S} is {aV}.",
    "pet": "{S} has {aV}.",
    "food": "{S} likes {V} best.",
    "friend": "{Their} friend is {V}.",
    "made": "{S} makes {V}.",
    "landmark": "In {S} stands {aV}.",
    "region": "{S} lies in the {V}.",
    "neighbour": "The next town is {V}.",
    "material": "{S} is made of {V}.",
    "sold": "{S} is sold in {V}.",
}
# After a fact of these relations, "he" or "it" could refer to its value.
AMBIGUOUS = ("friend", "neighbour", "sold")


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


def pronoun(subject: str) -> str:
    """The word "she", "he" or "it"."""
    return "she" if subject in WOMEN else "he" if subject in MEN else "it"


def possessive(subject: str) -> str:
    """The word "her", "his" or "its"."""
    return "her" if subject in WOMEN else "his" if subject in MEN else "its"


def capitalize(sentence: str) -> str:
    """The sentence with its first letter in upper case; unlike str.capitalize, the rest stays."""
    return sentence[0].upper() + sentence[1:]


def _generate_world() -> tuple[Fact, ...]:
    rng, world = random.Random(4), []

    def assign(relation, subjects, values):
        values = list(values)
        rng.shuffle(values)
        world.extend(Fact(s, relation, v) for s, v in zip(subjects, values))

    def pair(relation, subjects):
        mixed = rng.sample(subjects, len(subjects))
        partner = {s: mixed[i ^ 1] for i, s in enumerate(mixed)}
        world.extend(Fact(s, relation, partner[s]) for s in subjects)

    assign("home", PEOPLE, (TOWNS * 3)[:len(PEOPLE)])
    assign("job", PEOPLE, JOBS[:16] + JOBS[16:] * 2)    # half of the jobs belong to one person only
    assign("pet", PEOPLE, PETS * 4)
    assign("food", PEOPLE, FOODS * 3)
    pair("friend", PEOPLE)
    assign("made", TOWNS, GOODS)
    assign("landmark", TOWNS, LANDMARKS)
    assign("region", TOWNS, REGIONS * 5)
    pair("neighbour", TOWNS)
    world.extend(Fact(thing, "material", material) for thing, material in MATERIALS.items())
    assign("sold", THINGS, TOWNS + TOWNS[:4])
    return tuple(world)


WORLD = _generate_world()
VALUE = {(f.subject, f.relation): f.value for f in WORLD}
FACTS = {s: tuple(f for f in WORLD if f.subject == s) for s in SUBJECTS}  # by subject


def split_of(fact: Fact) -> str:
    """The split of a fact: "train", "valid" or "test", about 80, 10 and 10 %.

    Two friends, or two neighbouring towns, share one fact, so both directions are in one split.
    """
    ends = (fact.subject, fact.value)
    if fact.relation in ("friend", "neighbour"):
        ends = sorted(ends)
    return split_by_hash(" ".join((fact.relation, *ends)))


def fill(template: str, fact: Fact, subject: str | None = None) -> str:
    """A template filled with the words of a fact; `subject` may replace the subject's name."""
    name = with_article(fact.subject) if fact.subject in THINGS else fact.subject
    their = possessive(fact.subject)
    return capitalize(template.format(S=subject or name, V=fact.value, aV=with_article(fact.value),
                                      their=their, Their=capitalize(their)))


def statement(rng: random.Random, fact: Fact, named: bool = True) -> str:
    """A sentence that states the fact. Unless `named`, it may use "she", "he" or "it"."""
    template = rng.choice(STATEMENTS[fact.relation])
    named = named or not template.startswith("{S} ") or template.startswith("{S} and")
    return fill(template, fact, None if named else pronoun(fact.subject))


def question_about(rng: random.Random, fact: Fact) -> Question:
    """The fact as a question."""
    text = fill(rng.choice(QUESTIONS[fact.relation]), fact)
    answer = fill(ANSWERS[fact.relation], fact)
    return Question(fact.relation, text, answer, fact.value, fact.subject)


def portrait(rng: random.Random, subject: str) -> str:
    """A short text about a person, a town or a kind of thing, in one of many wordings and orders.

    It states all facts of the subject and, if these mention another subject, one or two facts
    about that. Then it asks for up to three of these facts, only of the train split. Raises
    `MinidsError` for an unknown subject.
    """
    if subject not in FACTS:
        raise MinidsError(f"unknown subject {subject!r}: expected one of {', '.join(SUBJECTS)}")
    own = rng.sample(FACTS[subject], len(FACTS[subject]))
    known = []      # (fact, whether the sentence names its subject)
    for i, fact in enumerate(own):
        named = i == 0 or own[i - 1].relation in AMBIGUOUS or rng.random() < 0.4
        known.append((fact, named))
    linked = [f.value for f in own if f.value in FACTS]
    if linked:
        more = [f for f in FACTS[rng.choice(linked)] if f.value != subject]
        known += [(f, True) for f in rng.sample(more, rng.randint(1, 2))]
    title = rng.choice(["About {}", "{}", "What we know of {}", "A few words about {}"])
    title = title.format(with_article(subject) if subject in THINGS else subject)
    sentences = " ".join(statement(rng, fact, named) for fact, named in known)
    askable = [f for f, _ in known if split_of(f) == "train"]
    topics = rng.sample(askable, min(len(askable), rng.randint(0, 3)))
    questions = "".join("\n" + question_about(rng, fact).lines for fact in topics)
    return f"{capitalize(title)}\n\n{sentences}\n{questions}"
