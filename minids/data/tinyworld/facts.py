"""TinyWorld's fixed world: the people, towns and things that are the same in every document, and what is true of them.

`WORLD` holds some 370 facts, drawn once. Each can be told and asked in several ways; `portrait` tells what is known of one
subject. Facts are split into train, valid and test: all are told, but only those of train are ever asked in training text,
so that questions about the others need knowledge that came from plain statements. Not part of the report: it stands in for
the world knowledge of its corpus. Stories that happen in this world are `minids.data.tinyworld.stories`'s business.
"""

import random
from dataclasses import dataclass

from minids.data.splits import split_by_hash
from minids.errors import MinidsError

WOMEN = ("Mira Ada Nora Lena Ivy Tess Ruth Hanna Elsa Greta Vera Dora Cleo Anna Edith Flora Helen Irma Julia Kate Lucy Maud "
         "Olga Paula").split()
MEN = ("Otto Ben Cid Hugo Karl Emil Felix Oscar Peter Simon Tom Victor Walter Anton Bruno David Erik Frank Gus Henry Ivan "
       "Jonas Leo Max").split()
PEOPLE = WOMEN + MEN
TOWNS = ("Alderby Bramwick Corley Dunmoor Elmsea Fernhill Granton Hollin Kelby Larkham Marlow Nettleby Oakford Penrose "
         "Redcliff Selwick Thornby Upmoor Wexford Yarrow").split()
JOBS = ("baker miller smith tailor farmer teacher doctor painter sailor fisher hunter gardener cook weaver potter carpenter "
        "shepherd barber singer judge guard nurse driver printer mason tanner banker dancer writer clerk pilot porter").split()
PETS = "cat dog goat hen parrot rabbit pony tortoise goose donkey lamb owl".split()
FOODS = "soup bread cheese honey rice fish cake porridge jam corn cabbage butter pie stew toast pudding".split()
GOODS = "paper cloth salt soap wine oil tea silk beer leather coal sugar flour glue ink wax steel thread paint lace".split()
LANDMARKS = ("bridge tower castle church lighthouse fountain temple palace school theatre arch dome monument column fort "
             "pyramid museum windmill hospital station").split()
REGIONS = "north south east west".split()
MATERIALS = {"lamp": "brass", "kite": "cotton", "drum": "wood", "book": "bark", "cup": "clay", "bell": "brass", "hat": "straw",
             "ball": "rubber", "flute": "bone", "spoon": "wood", "rope": "straw", "mirror": "glass", "clock": "brass",
             "broom": "straw", "hammer": "iron", "kettle": "tin", "blanket": "wool", "map": "cotton", "pen": "bone",
             "bowl": "clay", "key": "iron", "doll": "wood", "scarf": "wool", "whistle": "tin"}
THINGS = list(MATERIALS)
SUBJECTS = tuple(PEOPLE + TOWNS + THINGS)


@dataclass(frozen=True)
class Fact:
    """What stays true: the `relation` of `subject` is `value`, each of them one word."""

    subject: str
    relation: str   # a key of STATEMENTS
    value: str


@dataclass(frozen=True)
class Question:
    """A question with its one answer."""

    kind: str       # a relation of a fact, or a key of `minids.data.tinyworld.stories.ASK`
    text: str
    answer: str     # a whole sentence
    accepted: str   # the word (of a thing: two words) that a right answer names
    about: str = ""  # the person, thing, door or subject of a fact
    back: int = 0   # characters from the furthest sentence needed to the question; 0 where the story is not needed

    @property
    def lines(self) -> str:
        return f"Question: {self.text}\nAnswer: {self.answer}\n"


# {S} is the subject, {V} the value, {aV} the value with its article, {their} his or her. A sentence that begins with
# {S} may also begin with a pronoun.
STATEMENTS = {
    "home": ["{S} lives in {V}.", "{S} has a house in {V}.", "{S} calls {V} home.", "The home of {S} is in {V}.",
             "{V} is the town where {S} lives.", "The house of {S} stands in {V}."],
    "job": ["{S} is {aV}.", "{S} works as {aV}.", "{S} has been {aV} for years.", "The job of {S} is to be {aV}.",
            "By trade {S} is {aV}.", "If you need {aV}, ask {S}."],
    "pet": ["{S} has {aV}.", "{S} keeps {aV}.", "{S} owns {aV}.", "The pet of {S} is {aV}.",
            "{S} takes good care of {their} {V}.", "{aV} lives in the house of {S}."],
    "food": ["{S} likes {V} best.", "{S} loves {V}.", "{S} eats {V} every day.", "The favourite food of {S} is {V}.",
             "Nothing is better than {V}, says {S}.", "If you cook for {S}, make {V}."],
    "friend": ["{S} is a friend of {V}.", "{S} often visits {their} friend {V}.", "{S} and {V} are friends.",
               "The friend of {S} is {V}.", "{V} is the friend of {S}.", "{S} has known {their} friend {V} for years."],
    "made": ["{S} is known for its {V}.", "{S} sells {V} to all the land.", "In {S} people make {V}.", "{V} is made in {S}.",
             "Much {V} comes from {S}.", "The people of {S} make {V}."],
    "landmark": ["{S} has {aV}.", "{S} is proud of its {V}.", "In {S} stands {aV}.", "There is {aV} in {S}.",
                 "The {V} of {S} is very old.", "Many come to {S} to see the {V}."],
    "region": ["{S} lies in the {V}.", "{S} is a town in the {V}.", "To get to {S}, go {V}.", "The town of {S} is in the {V}.",
               "In the {V} of the land lies {S}."],
    "neighbour": ["{S} is next to {V}.", "{S} lies close to {V}.", "From {S} it is a short walk to {V}.",
                  "{S} and {V} are next to each other.", "The town next to {S} is {V}."],
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
# An answer names one word of the kind asked for, so {S} is left out where it is of the same kind.
ANSWERS = {
    "home": "{S} lives in {V}.", "job": "{S} is {aV}.", "pet": "{S} has {aV}.", "food": "{S} likes {V} best.",
    "friend": "{Their} friend is {V}.", "made": "{S} makes {V}.", "landmark": "In {S} stands {aV}.",
    "region": "{S} lies in the {V}.", "neighbour": "The next town is {V}.", "material": "{S} is made of {V}.",
    "sold": "{S} is sold in {V}.",
}
CONFUSING = ("friend", "neighbour", "sold")  # after these, "he" or "it" could be someone or something else


def a(noun: str) -> str:
    """The noun after "a" or "an"."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


def pronoun(subject: str) -> str:
    return "she" if subject in WOMEN else "he" if subject in MEN else "it"


def possessive(subject: str) -> str:
    return "her" if subject in WOMEN else "his" if subject in MEN else "its"


def capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _draw_world() -> tuple[Fact, ...]:
    rng, facts = random.Random(4), []

    def deal(relation, subjects, values):
        values = list(values)
        rng.shuffle(values)
        facts.extend(Fact(s, relation, v) for s, v in zip(subjects, values))

    def pair(relation, subjects):
        mixed = rng.sample(subjects, len(subjects))
        partner = {s: mixed[i ^ 1] for i, s in enumerate(mixed)}
        facts.extend(Fact(s, relation, partner[s]) for s in subjects)

    deal("home", PEOPLE, (TOWNS * 3)[:len(PEOPLE)])
    deal("job", PEOPLE, JOBS[:16] + JOBS[16:] * 2)      # half of the jobs belong to one person only
    deal("pet", PEOPLE, PETS * 4)
    deal("food", PEOPLE, FOODS * 3)
    pair("friend", PEOPLE)
    deal("made", TOWNS, GOODS)
    deal("landmark", TOWNS, LANDMARKS)
    deal("region", TOWNS, REGIONS * 5)
    pair("neighbour", TOWNS)
    facts.extend(Fact(thing, "material", material) for thing, material in MATERIALS.items())
    deal("sold", THINGS, TOWNS + TOWNS[:4])
    return tuple(facts)


WORLD = _draw_world()
VALUE = {(f.subject, f.relation): f.value for f in WORLD}
FACTS = {s: tuple(f for f in WORLD if f.subject == s) for s in SUBJECTS}  # by subject


def split(fact: Fact) -> str:
    """"train", "valid" or "test", about 80, 10 and 10 %, the same on every machine; friends share one fact."""
    ends = (fact.subject, fact.value)
    return split_by_hash(" ".join((fact.relation, *(sorted(ends) if fact.relation in ("friend", "neighbour") else ends))))


def fill(template: str, fact: Fact, subject: str | None = None) -> str:
    """A template with the words of a fact; `subject` stands in for the name."""
    name = a(fact.subject) if fact.subject in THINGS else fact.subject
    their = possessive(fact.subject)
    return capital(template.format(S=subject or name, V=fact.value, aV=a(fact.value), their=their, Their=capital(their)))


def statement(rng: random.Random, fact: Fact, named: bool = True) -> str:
    """One sentence that says the fact. With `named` false it may say "she", "he" or "it" for the subject."""
    template = rng.choice(STATEMENTS[fact.relation])
    named = named or not template.startswith("{S} ") or template.startswith("{S} and")
    return fill(template, fact, None if named else pronoun(fact.subject))


def ask_fact(rng: random.Random, fact: Fact) -> Question:
    """The fact as a question."""
    question = fill(rng.choice(QUESTIONS[fact.relation]), fact)
    return Question(fact.relation, question, fill(ANSWERS[fact.relation], fact), fact.value, fact.subject)


def portrait(rng: random.Random, subject: str) -> str:
    """A short text about a person, a town or a kind of thing, in one of many wordings and orders.

    It tells all facts of the subject and one or two of something that these lead to, then asks after some, of the train
    split only. Raises `MinidsError` for a subject that is not one of SUBJECTS.
    """
    if subject not in FACTS:
        raise MinidsError(f"nothing is known of {subject!r}: expected one of {', '.join(SUBJECTS)}")
    own = rng.sample(FACTS[subject], len(FACTS[subject]))
    known = [(f, i == 0 or own[i - 1].relation in CONFUSING or rng.random() < 0.4) for i, f in enumerate(own)]
    beyond = [f.value for f in own if f.value in FACTS]
    if beyond:
        more = [f for f in FACTS[rng.choice(beyond)] if f.value != subject]
        known += [(f, True) for f in rng.sample(more, rng.randint(1, 2))]
    title = rng.choice(["About {}", "{}", "What we know of {}", "A few words about {}"])
    title = title.format(a(subject) if subject in THINGS else subject)
    text = f"{capital(title)}\n\n" + " ".join(statement(rng, fact, named) for fact, named in known) + "\n"
    asked = [f for f, _ in known if split(f) == "train"]
    asked = rng.sample(asked, min(len(asked), rng.randint(0, 3)))
    return text + "".join("\n" + ask_fact(rng, fact).lines for fact in asked)
