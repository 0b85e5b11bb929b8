"""TinyWorld's stories: people move about, carry things, hide and tell, and questions about it all can be checked.

A story is plain English that a small simulation tells, at any length; the simulation knows the truth. Facts planted for one
story only (a secret word, the number of a door, where a coin is hidden) are said once and can be asked for much later.
`document` is a text to train on, `recall` measures memory over a chosen distance, `correct` judges what a model answered.
Not part of the report: plain text at this size shows nothing of long-range attention, planted facts do. The fixed world is
`minids.data.tinyworld.facts`'s business, splits and task families are `minids.data.tasks`'s.
"""

import random
import re
from dataclasses import replace
from typing import NamedTuple

from minids.data.tinyworld import facts
from minids.data.tinyworld.facts import (
    FACTS,
    PEOPLE,
    SUBJECTS,
    THINGS,
    Question,
    a,
    ask_fact,
    capital,
    portrait,
    possessive,
    pronoun,
)
from minids.errors import MinidsError

__all__ = ["Question", "Recall", "Story", "correct", "document", "portrait", "recall", "story"]

PLACES = ("mill barn kitchen garden bakery library workshop stable cellar attic orchard forest office hall meadow cave yard "
          "shop harbour inn").split()
CHESTS = "chest basket sack trunk crate barrel drawer cupboard".split()
COLOURS = "red blue green yellow black white brown pink".split()
COLOURED = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
DOORS = [f"{colour} {door}" for colour in COLOURS for door in ("door", "gate", "cart", "boat")]
NUMBERS = [str(n) for n in range(10, 100)]
SECRETS = ("copper maple thunder velvet pepper marble anchor arrow badger canyon carpet cedar cherry comet coral desert dragon "
           "eagle ember falcon ginger glacier hazel iceberg island ivory jasmine jungle kernel lemon lizard magnet mango "
           "meteor mustard needle olive orbit otter oyster panther pebble pearl penguin pigeon planet quartz raven ribbon "
           "rocket saddle saffron sapphire shadow spider spruce tiger timber tulip violet walnut willow zebra").split()
TREASURES = "coin letter jewel button shell feather".split()
HIDING = {"well": "in", "oak": "under", "chimney": "in", "statue": "behind", "fence": "behind", "bench": "under",
          "pillow": "under", "hedge": "in", "haystack": "in", "stove": "behind", "piano": "behind", "stairs": "under",
          "roof": "under", "log": "in", "ladder": "behind", "bush": "in", "curtain": "behind", "mattress": "under",
          "bucket": "in", "rock": "under"}

# What one answer may name: `correct` accepts an answer that names one word of the accepted word's pool, and no other.
POOLS = (PLACES + CHESTS, PEOPLE + ["Nobody"], COLOURED, SECRETS, NUMBERS, list(HIDING), facts.TOWNS, facts.JOBS, facts.PETS,
         facts.FOODS, facts.GOODS, facts.LANDMARKS, facts.REGIONS, sorted(set(facts.MATERIALS.values())),
         ["yes", "no", "not known"])

# Sentences of the story. {S} does it, {O} is the other person, {T} a thing with its colour, {P} a place, {C} a chest.
EVENTS = {
    "appear": ["{S} was in the {P}.", "{S} stood in the {P}.", "{S} sat in the {P}.", "{S} was at work in the {P}."],
    "move": ["{S} went to the {P}.", "{S} walked to the {P}.", "{S} hurried to the {P}.", "{S} ran to the {P}.",
             "{S} came to the {P}.", "{S} made {their} way to the {P}.", "{S} went to the {P} {why}.",
             "{S} walked to the {P} {why}."],
    "see": ["There was {aT} in the {P}.", "{aT} lay in the {P}.", "In the {P} lay {aT}.", "Somebody had left {aT} in the {P}."],
    "find": ["{S} found {aT} in the {P} and took it.", "In the {P} {S} found {aT} and picked it up.",
             "{S} saw {aT} in the {P} and picked it up.", "{S} noticed {aT} in the {P} and took it along."],
    "take": ["{S} took the {T}.", "{S} picked up the {T}.", "{S} took the {T} along.",
             "{S} looked at the {T} and picked it up.", "{S} lifted the {T} and kept it."],
    "drop": ["{S} put down the {T}.", "{S} left the {T} in the {P}.", "{S} dropped the {T} in the {P}.",
             "{S} laid the {T} on the ground.", "{S} no longer wanted the {T} and left it in the {P}."],
    "stand": ["There was {aC} in the {P}.", "In the {P} stood {aC}.", "In a corner of the {P} stood {aC}.",
              "{aC} stood in the {P}."],
    "put": ["{S} put the {T} into the {C}.", "{S} placed the {T} in the {C}.", "{S} laid the {T} in the {C}.",
            "{S} opened the {C} and put the {T} into it."],
    "out": ["{S} took the {T} out of the {C}.", "{S} opened the {C} and took out the {T}.", "{S} fetched the {T} from the {C}.",
            "{S} looked into the {C} and took out the {T}."],
    "give": ["{S} gave {O} the {T}.", "{S} gave the {T} to {O}.", "{S} handed the {T} to {O}.", "{S} passed the {T} to {O}.",
             "{S} made {O} a present of the {T}.", "{O} asked for the {T}, and {S} gave it away."],
}
WHY = ("to look around", "to have some rest", "without a word", "with a smile", "with slow steps", "by the long way",
       "to see what was new", "in a hurry")
WHEN = ("In the morning", "One day", "The next day", "At noon", "In the evening", "After breakfast", "Later that day",
        "On market day", "After lunch", "Some time later", "Early in the morning", "Late in the evening")
THEN = ("Then", "Soon", "After that", "A little later", "Next", "A moment later")
WEATHER = ("The sun was shining.", "It began to rain.", "A cold wind blew.", "The sky was grey.", "It was a warm day.",
           "Clouds came over the hills.", "The birds were singing.", "It was very quiet.", "Snow fell on the fields.",
           "The air smelled of rain.", "There was a storm on its way.", "Not a leaf moved.")
FEELINGS = "happy tired hungry sad proud curious glad thirsty angry sleepy".split()
ALONE = ("{S} was {F}.", "{S} felt {F}.", "{S} looked {F}.", "{S} sat down for a while.", "{S} began to hum a tune.",
         "{S} smiled.", "{S} thought about the day.", "{S} drank some water.", "{S} counted to ten.", "{S} waited for a while.",
         "{S} wondered what to do next.", "\"What a day!\" said {S}.", "\"I am {F},\" said {S}.",
         "{S} closed {their} eyes for a moment.")
TOGETHER = ("\"Good morning,\" said {S} to {O}.", "{S} and {O} talked about the weather.", "{S} told {O} a joke.",
            "{S} asked {O} for help.", "{S} and {O} sang a song.", "{S} and {O} played a game.", "{S} and {O} shared a meal.",
            "\"You look {F},\" said {S} to {O}.", "{S} smiled at {O}.", "{S} and {O} laughed.", "{S} thanked {O}.",
            "\"How are you?\" {S} asked {O}.", "{S} told {O} a long story.", "{S} and {O} sat side by side for a while.")
MEMORIES = {  # fixed facts, as people speak of them
    "home": ["{S} thought of {their} house in {V}.", "\"In {V}, where I live, it is quiet,\" said {S}.",
             "{S} told about {V}, {their} home.", "\"My home is in {V},\" said {S}."],
    "job": ["\"I am {aV},\" said {S}.", "{S}, who was {aV}, began to whistle.", "\"There is much to do for {aV},\" said {S}.",
            "{S} was tired of being {aV}."],
    "pet": ["{S} told a story about {their} {V}.", "\"My {V} is waiting for me,\" said {S}.", "{S} missed {their} {V}.",
            "\"I have {aV},\" said {S}."],
    "food": ["{S} ate some {V}, {their} favourite food.", "\"I like {V} best,\" said {S}.",
             "{S} could not stop thinking of {V}.", "\"Is there any {V}?\" asked {S}, who loved it."],
    "friend": ["{S} thought of {their} friend {V}.", "\"My friend is {V},\" said {S}.",
               "{S} wanted to write to {their} friend {V}.", "{S} hoped to see {their} friend {V} soon."],
}
# Planted facts. {V} is the secret word or the number, {D} a door, {H} a treasure, {at} where it is hidden.
PLANTS = {
    "secret": ["The secret word of {S} is {V}.", "{S} chose the secret word {V}.", "{S} has a secret word, and it is {V}.",
               "Only a few know that the secret word of {S} is {V}.", "{S} told nobody that {their} secret word was {V}."],
    "number": ["The number of the {D} is {V}.", "On the {D} stood the number {V}.", "The {D} had the number {V}.",
               "Somebody had painted the number {V} on the {D}.", "The number {V} was written on the {D}."],
    "hidden": ["{S} hid {aH} {at}.", "{S} had hidden {aH} {at}.", "When nobody was looking, {S} hid {aH} {at}.",
               "Nobody knew that {S} had hidden {aH} {at}.", "{S} once hid {aH} {at}."],
}
ASK = {
    "where_person": ["Where is {S}?", "In which place is {S}?"],
    "where_thing": ["Where is the {T}?", "In which place is the {T}?"],
    "who_has": ["Who has the {T}?", "Who is carrying the {T}?"],
    "gave": ["What did {S} give to {O}?", "Which thing did {S} give to {O}?"],
    "secret": ["What is the secret word of {S}?", "Which secret word does {S} have?"],
    "number": ["What is the number of the {D}?", "Which number does the {D} have?"],
    "hidden": ["Where did {S} hide the {H}?", "In which place did {S} hide the {H}?"],
}
KINDS = tuple(PLANTS)
REPLY = {"secret": "The secret word of {S} is {V}.", "number": "The number of the {D} is {V}.",
         "hidden": "{S} hid the {H} {at}."}


class Recall(NamedTuple):
    context: str    # ends with a blank line
    question: str   # "Question: ...\nAnswer:"; a space and the answer follow
    answer: str
    accepted: str


class Story:
    """A story that is being told: `tell` adds to `text`, `ask` asks about what has been told so far.

    The state is what the text says, no more: where each person is (`where`), how each thing is kept (`things`: ("at", place),
    ("in", chest) or ("with", person)), where each chest stands (`chests`), who gave what (`gifts`), what was planted.
    `events` lists what happened, in order, as (verb, sentence, words).
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.text_parts, self.length, self.words = [], 0, 0
        self.where, self.things, self.chests, self.gifts = {}, {}, {}, {}
        self.carried = set()                # things that somebody has had
        self.since = {}                     # person or thing -> where in the text its state was last told
        self.planted = []                   # (position, Question)
        self.told = {"secret": set(), "number": set(), "hidden": set()}   # who or what has its planted fact
        self.left = {"secret": _mixed(rng, SECRETS), "number": _mixed(rng, NUMBERS), "hidden": _mixed(rng, HIDING)}
        self.asked = set()
        self.events = []
        self.places = rng.sample(PLACES, rng.randint(4, 8))
        self.mentioned = ()                 # the people that the last sentence with people named, for pronouns
        self.named_at = 0                   # where the last name stands in the text
        self.open_ended = False             # may the last sentence go on after "and"?
        self.used = set()                   # this paragraph's wordings, who moved, what changed hands, whose feeling was told
        self.cast = rng.sample(PEOPLE, 2)   # the first two, for the title

    @property
    def text(self) -> str:
        return "".join(self.text_parts)

    # Telling

    def title(self) -> None:
        """The first line."""
        first, second = self.cast
        titles = ("{0} and {1}", "A story about {0} and {1}", "The day of {0} and {1}", "A day with {0}", "What {0} did")
        self._emit(self.rng.choice(titles).format(first, second) + "\n")

    def tell(self, words: int) -> None:
        """One paragraph, of at most about `words` words: two or three people, mostly in one place."""
        rng, end = self.rng, self.words + words
        people = self._gather()
        self._emit("\n" if self.length else "")
        self.mentioned, self.used = (), set()
        there = [self.where[p] for p in people[1:] if p in self.where and self.where[p] != self.where.get(people[0])]
        self.enter(people[0], rng.choice(WHEN), rng.choice(there) if there and rng.random() < 0.5 else None)
        if rng.random() < 0.4:
            self._say(rng.choice(WEATHER))
        for _ in range(rng.randint(4, 9)):
            if self.words + 6 > end:
                break
            self.step(people)
        self._emit("\n")

    def open(self, kinds) -> list[Question]:
        """A paragraph of planted facts of these kinds."""
        self._emit("\n" if self.length else "")
        planted = [self.plant(kind) for kind in kinds]
        self._emit("\n")
        return planted

    def plant(self, kind: str) -> Question | None:
        """Say a fact of this story only, of `kind` "secret", "number" or "hidden", about some person or door.

        No value is used twice, and nobody gets two. None if nothing is left to plant.
        """
        rng, told, left = self.rng, self.told[kind], self.left[kind]
        free = [x for x in (DOORS if kind == "number" else PEOPLE) if x not in told]
        if rng.random() < 0.5:
            free = [x for x in free if x in self.where] or free
        if not free or not left:
            return None
        about = rng.choice(free)
        value, treasure = left.pop(), rng.choice(TREASURES)
        words = dict(D=about, V=value, H=treasure, aH=a(treasure), at=f"{HIDING.get(value)} the {value}")
        self.mentioned = ()
        position = self._say(rng.choice(PLANTS[kind]), None if kind == "number" else about, **words)
        self.open_ended = False
        told.add(about)
        words["S"] = about
        question = Question(kind, rng.choice(ASK[kind]).format(**words), REPLY[kind].format(**words), value, about)
        self.planted.append((position, question))
        return question

    def _emit(self, text: str) -> None:
        self.text_parts.append(text)
        self.length += len(text)
        self.words += len(text.split())

    def _gather(self) -> list[str]:
        """Two or three people for the next paragraph: those of the title first, sometimes someone new."""
        rng, known = self.rng, list(self.where)
        new = [p for p in self.cast if p not in known]
        if not new and rng.random() < 0.25 and len(known) < 16:
            new = [rng.choice([p for p in PEOPLE if p not in known])]
        many = 3 if rng.random() < 0.3 else 2
        people = new + rng.sample(known, max(0, min(many - len(new), len(known))))
        return rng.sample(people, len(people))

    def _say(self, template: str, person: str | None = None, others=(), when: str = "", **words) -> int:
        """Add a sentence about a person, with the names of `others` in it.

        Where the last sentence was about the same person and nobody else, this one may say "she" or "he", or go on after "and".
        Returns where the text begins that one has to read: this sentence, or an earlier one that says who "she" is.
        """
        rng, plain = self.rng, template.startswith("{S} ") and " and " not in template
        same = person is not None and self.mentioned == (person,)
        words |= dict(S=person, O=others[0] if others else None, their=possessive(person) if person else None)
        if plain and same and self.open_ended and rng.random() < 0.3:
            self.text_parts[-1] = self.text_parts[-1].removesuffix(".")
            self.length -= 1
            if (words.get("T") or "?") in self.text_parts[-1] and not re.search("(up|down) the {T}", template):
                template = template.replace("the {T}", "it")
            sentence, self.open_ended = " and" + template.removeprefix("{S}").format(**words), False
            words["S"] = None
        else:
            if plain and same and rng.random() < 0.15:
                when = rng.choice(THEN)
            if same and not others and "said {S}" not in template and "{S}," not in template and rng.random() < 0.7:
                words["S"] = pronoun(person)
            sentence = capital(f"{when} {template}".strip().format(**words))
            if self.text_parts and not self.text_parts[-1].endswith("\n"):
                self._emit(" ")
            self.open_ended = plain
        position = self.length
        self._emit(sentence)
        if person:
            self.mentioned = (person, *others)
            self.named_at = position if words["S"] == person else self.named_at
        return self.named_at if person else position

    def _event(self, verb: str, person: str | None = None, when: str = "", **words) -> None:
        """Tell one event and change the state accordingly."""
        thing, place, chest, other = (words.get(k) for k in ("T", "P", "C", "O"))
        position = self._say(self._pick(EVENTS[verb]), person, (other,) if other else (), when, why=self.rng.choice(WHY),
                             T=thing, P=place, C=chest, aT=thing and a(thing), aC=chest and a(chest))
        if verb in ("appear", "move"):
            self.used.add(person)
            self.where[person] = place
            self.since[person] = position
        elif verb == "stand":
            self.chests[chest] = place
        else:
            kept = {"see": ("at", place), "drop": ("at", place), "put": ("in", chest), "give": ("with", other)}
            self.things[thing] = kept.get(verb, ("with", person))
            self.since[thing] = position
            if verb == "drop" and place not in self.text_parts[-1]:     # where, is said where the person came
                self.since[thing] = min(position, self.since[person])
        if person and thing:
            self.carried.add(thing)
        if verb in ("give", "drop", "put", "out"):
            self.used.add(thing)
        if verb == "give":
            self.gifts.setdefault((person, other), []).append((thing, position))
        self.events.append((verb, person, words))

    def _pick(self, templates) -> str:
        """One of the wordings, not one that this paragraph has used, if there is another."""
        fresh = [t for t in templates if t not in self.used] or templates
        self.used.add(template := self.rng.choice(fresh))
        return template

    def enter(self, person: str, when: str = "", place: str | None = None) -> None:
        """The person comes to a place, for the first time in this story or from elsewhere."""
        known = person in self.where
        place = place or self.rng.choice([p for p in self.places if p != self.where.get(person)])
        self._event("move" if known or self.rng.random() < 0.3 else "appear", person, when, P=place)

    def step(self, people: list[str], talk: bool = True) -> None:
        """One sentence: something that one of the people does or, with `talk`, what is said between events."""
        rng = self.rng
        absent = [p for p in people if p not in self.where]
        person = rng.choice(people)
        if self.mentioned and self.mentioned[0] in people and rng.random() < 0.6:
            person = self.mentioned[0]
        if person in absent:
            return self.enter(person, place=self.where[people[0]] if people[0] in self.where and rng.random() < 0.8 else None)
        place = self.where[person]
        near = [p for p in people if p != person and self.where.get(p) == place]
        far = [p for p in people if p in self.where and self.where[p] != place]
        held = [t for t, kept in self.things.items() if kept == ("with", person)]
        free = [t for t in held if t not in self.used]      # not handled in this paragraph
        lying = [t for t, kept in self.things.items() if kept == ("at", place) and t not in self.used]
        chests = [c for c, p in self.chests.items() if p == place]
        stored = [(t, kept[1]) for t, kept in self.things.items() if kept[0] == "in" and kept[1] in chests]
        room = len(held) < 2
        new_thing = len(self.things) < 20 and not lying
        weights = {
            "talk": 2.6 * talk, "plant": 0.7 * talk, "remember": 0.5 * talk, "fact": 0.12 * talk,
            "join": 3 * (bool(far) and person not in self.used), "move": (0.6 if talk else 2) * (person not in self.used),
            "take": 2 * bool(lying and room), "drop": 0.6 * bool(free), "give": 1.6 * bool(free and near),
            "find": 1.0 * (new_thing and room), "see": 0.4 * new_thing,
            "stand": (0.4 if talk else 0.2) * (not chests and len(self.chests) < len(CHESTS)),
            "put": 1.2 * bool(free and chests), "out": 0.6 * bool(stored and room),
        }
        verb = rng.choices(list(weights), list(weights.values()))[0]
        if verb == "talk":
            self._talk(person, near)
        elif verb == "plant":
            if not self.plant(rng.choice(KINDS)):
                self._talk(person, near)
        elif verb == "remember":
            fact = rng.choice([f for f in FACTS[person] if f.relation in MEMORIES])
            self._say(self._pick(MEMORIES[fact.relation]), person, (fact.value,) if fact.relation == "friend" else (),
                      V=fact.value, aV=a(fact.value))
        elif verb == "fact":
            self._say(facts.statement(rng, rng.choice(FACTS[rng.choice(SUBJECTS)])))
            self.mentioned, self.open_ended = (), False
        elif verb in ("join", "move"):
            others = [self.where[p] for p in far] if verb == "join" else [p for p in self.places if p != place]
            self._event("move", person, P=rng.choice(others))
        elif verb in ("take", "drop", "give"):
            self._event(verb, person, T=rng.choice(lying if verb == "take" else free), P=place,
                        **(dict(O=rng.choice(near)) if verb == "give" else {}))
        elif verb in ("find", "see"):
            thing = rng.choice([t for t in COLOURED if t not in self.things])
            self._event(verb, person if verb == "find" else None, T=thing, P=place)
        elif verb == "stand":
            self._event(verb, C=rng.choice([c for c in CHESTS if c not in self.chests]), P=place)
        elif verb == "put":
            self._event(verb, person, T=rng.choice(free), C=rng.choice(chests))
        else:
            thing, chest = rng.choice(stored)
            self._event(verb, person, T=thing, C=chest)

    def _talk(self, person: str, near: list[str]) -> None:
        other = self.rng.choice(near) if near and self.rng.random() < 0.6 else None
        templates = TOGETHER if other else ALONE
        if f"feeling {other or person}" in self.used:
            templates = [t for t in templates if "{F}" not in t]
        template = self._pick(templates)
        if "{F}" in template:
            self.used.add(f"feeling {other or person}")
        self._say(template, person, (other,) if other else (), F=self.rng.choice(FEELINGS))

    # Asking

    def ask(self, far: bool | None = None) -> Question | None:
        """A question about something told recently (`far` false), long ago (true) or either; None if nothing new is left."""
        found = sorted(self.askable(), key=lambda question: question.back)
        if not found:
            return None
        third = len(found) // 3 if far is not None else 0
        found = found[2 * third:] if far else found[:len(found) - 2 * third]
        kind = self.rng.choice(sorted({q.kind for q in found}))
        question = self.rng.choice([q for q in found if q.kind == kind])
        self.asked.add((question.kind, question.accepted, question.about, self.length - question.back))
        return question

    def askable(self) -> list[Question]:
        """All that can be asked now and has not been asked since it last changed; planted facts can be asked once."""
        found = []

        def add(kind, position, answer, accepted, **words):
            text = self.rng.choice(ASK[kind]).format(**words)
            found.append(Question(kind, text, answer, accepted, words.get("T") or words["S"], self.length - position))

        for person, place in self.where.items():
            add("where_person", self.since[person], f"{person} is in the {place}.", place, S=person)
        for thing, (how, which) in self.things.items():
            since, place = self.since[thing], which
            if how == "with":
                add("who_has", since, f"{which} has the {thing}.", which, T=thing)
                place, since = self.where[which], min(since, self.since[which])
            elif how == "at" and thing in self.carried:
                add("who_has", since, f"Nobody has the {thing}.", "Nobody", T=thing)
            add("where_thing", since, f"The {thing} is in the {place}.", place, T=thing)
        for (giver, other), gifts in self.gifts.items():
            if len(gifts) == 1:
                thing, position = gifts[0]
                add("gave", position, f"{giver} gave {other} the {thing}.", thing, S=giver, O=other)
        found += [replace(q, back=self.length - position) for position, q in self.planted]
        return [q for q in found if (q.kind, q.accepted, q.about, self.length - q.back) not in self.asked]

    def write(self, question: Question) -> None:
        """Add a question with its answer to the text."""
        self._emit(f"\n{question.lines}" if self.length else question.lines)


def story(rng: random.Random, words: int) -> Story:
    """A story of about `words` words, without questions."""
    told = Story(rng)
    told.title()
    while told.words < words:
        told.tell(words - told.words)
    return told


def scene(rng: random.Random) -> str:
    """The shortest text to train on: a planted fact or a few sentences, and one to four questions about them.

    Where one fact is all there is, its answer can only be copied; with two or three, the name has to match. So a model learns
    to look things up step by step, and much sooner than from long stories.
    """
    told = Story(rng)
    if rng.random() < 0.5:
        told.open(rng.choices(KINDS, k=rng.randint(1, 3)))
    if not told.words or rng.random() < 0.4:
        told.tell(rng.randint(5, 30))
    for _ in range(rng.randint(1, 4)):
        question = told.ask()
        if question:
            told.write(question)
    return told.text.lstrip()


def document(rng: random.Random, words: int) -> str:
    """One text to train on: a title and a story of about `words` words, with questions after most paragraphs or at the end.

    Half of the questions go back to what was told recently, half to what was told long ago; a few ask for a fixed fact.
    """
    told, quiet = Story(rng), rng.random() < 0.3
    told.title()
    if words >= 80 and rng.random() < 0.3:
        told.open(rng.choices(KINDS, k=rng.randint(1, 3)))
    last = min(8, 1 + words // 100) if quiet else 1     # questions at the end
    while told.words < words - 13 * last - 5:
        told.tell(words - 13 * last - told.words)
        if not quiet and told.words < words - 40:
            for _ in range(rng.randint(1, 3)):
                _write_question(told)
    for _ in range(last):
        _write_question(told)
    return told.text


def _write_question(told: Story) -> None:
    """Ask for what was told recently or long ago or, one time in eight, for a fixed fact of the train split."""
    rng = told.rng
    subject = rng.choice(list(told.where) if rng.random() < 0.5 else SUBJECTS)
    known = [f for f in FACTS[subject] if facts.split(f) == "train"]
    question = ask_fact(rng, rng.choice(known)) if known and rng.random() < 0.12 else told.ask(far=rng.random() < 0.5)
    if question:
        told.write(question)


def recall(rng: random.Random, words_between: int, kind: str = "secret") -> Recall:
    """A planted fact, some `words_between` words of story, and a question about the fact: memory over a chosen distance.

    `kind` is "secret", "number" or "hidden". Two more facts of the kind, about others, stand beside the one that is asked for,
    and more follow in the story, so that the name has to match. The fact itself is never said again.
    """
    if kind not in KINDS or words_between < 0:
        raise MinidsError(f"expected a kind of {', '.join(KINDS)} and 0 words or more between, found {kind!r}, {words_between}")
    told = Story(rng)
    told.title()
    question = rng.choice(told.open([kind] * 3))
    end = told.words + words_between
    while told.words < end:
        told.tell(end - told.words)
    return Recall(told.text + "\n", f"Question: {question.text}\nAnswer:", question.answer, question.accepted)


def correct(answer: str, accepted: str) -> bool:
    """Does a model's answer name the accepted word, and no other word of its kind? Only the first sentence is read."""
    pool = next((pool for pool in POOLS if accepted in pool), None)
    if pool is None:
        raise MinidsError(f"expected a word that TinyWorld's answers can name, found {accepted!r}")
    sentence = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    said = f" {' '.join(re.findall('[a-z0-9]+', sentence.lower()))} "
    return [word for word in pool if f" {word.lower()} " in said] == [accepted]


def _mixed(rng: random.Random, values) -> list:
    return rng.sample(list(values), len(values))
