"""TinyWorld's stories: people move about, carry things and hide them, and answers can be checked.

A small simulation writes a story of any length in plain English and knows what is true in it.
Planted facts hold in one story only (a secret word, the number of a door, where a coin is hidden).
They are said once and can be asked for much later. `story_with_questions` and `scene` are texts to
train on, `recall` measures memory over a chosen distance, `is_correct` verifies a model's answer.
Not in the report: at this size plain text shows nothing of long-range attention, but planted facts
do. For the fixed world see `minids.data.tinyworld.facts`, for splits and task families
`minids.data.tasks`.
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
    capitalize,
    portrait,
    possessive,
    pronoun,
    question_about,
    with_article,
)
from minids.errors import MinidsError

__all__ = ["Question", "Recall", "Story", "is_correct", "portrait", "recall", "scene", "story",
           "story_with_questions"]

PLACES = ("mill barn kitchen garden bakery library workshop stable cellar attic orchard forest "
          "office hall meadow cave yard shop harbour inn").split()
CHESTS = "chest basket sack trunk crate barrel drawer cupboard".split()
COLOURS = "red blue green yellow black white brown pink".split()
COLOURED = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
DOORS = [f"{colour} {door}" for colour in COLOURS for door in ("door", "gate", "cart", "boat")]
NUMBERS = [str(n) for n in range(10, 100)]
SECRETS = ("copper maple thunder velvet pepper marble anchor arrow badger canyon carpet cedar "
           "cherry comet coral desert dragon eagle ember falcon ginger glacier hazel iceberg "
           "island ivory jasmine jungle kernel lemon lizard magnet mango meteor mustard needle "
           "olive orbit otter oyster panther pebble pearl penguin pigeon planet quartz raven "
           "ribbon rocket saddle saffron sapphire shadow spider spruce tiger timber tulip violet "
           "walnut willow zebra").split()
TREASURES = "coin letter jewel button shell feather".split()
HIDING = {"well": "in", "oak": "under", "chimney": "in", "statue": "behind", "fence": "behind",
          "bench": "under", "pillow": "under", "hedge": "in", "haystack": "in", "stove": "behind",
          "piano": "behind", "stairs": "under", "roof": "under", "log": "in", "ladder": "behind",
          "bush": "in", "curtain": "behind", "mattress": "under", "bucket": "in", "rock": "under"}

# The words of each kind of answer. A correct answer names one word of its pool and no other.
POOLS = (PLACES + CHESTS, PEOPLE + ["Nobody"], COLOURED, SECRETS, NUMBERS, list(HIDING),
         facts.TOWNS, facts.JOBS, facts.PETS, facts.FOODS, facts.GOODS, facts.LANDMARKS,
         facts.REGIONS, sorted(set(facts.MATERIALS.values())), ["yes", "no", "not known"])

# Sentences of the story. {S} is the person who acts, {O} the other person, {T} a thing with its
# colour, {P} a place, {C} a chest.
EVENTS = {
    "appear": ["{S} was in the {P}.", "{S} stood in the {P}.", "{S} sat in the {P}.",
               "{S} was at work in the {P}."],
    "move": ["{S} went to the {P}.", "{S} walked to the {P}.", "{S} hurried to the {P}.",
             "{S} ran to the {P}.", "{S} came to the {P}.", "{S} made {their} way to the {P}.",
             "{S} went to the {P} {why}.", "{S} walked to the {P} {why}."],
    "see": ["There was {aT} in the {P}.", "{aT} lay in the {P}.", "In the {P} lay {aT}.",
            "Somebody had left {aT} in the {P}."],
    "find": ["{S} found {aT} in the {P} and took it.",
             "In the {P} {S} found {aT} and picked it up.",
             "{S} saw {aT} in the {P} and picked it up.",
             "{S} noticed {aT} in the {P} and took it along."],
    "take": ["{S} took the {T}.", "{S} picked up the {T}.", "{S} took the {T} along.",
             "{S} looked at the {T} and picked it up.", "{S} lifted the {T} and kept it."],
    "drop": ["{S} put down the {T}.", "{S} left the {T} in the {P}.",
             "{S} dropped the {T} in the {P}.", "{S} laid the {T} on the ground.",
             "{S} no longer wanted the {T} and left it in the {P}."],
    "stand": ["There was {aC} in the {P}.", "In the {P} stood {aC}.",
              "In a corner of the {P} stood {aC}.", "{aC} stood in the {P}."],
    "put": ["{S} put the {T} into the {C}.", "{S} placed the {T} in the {C}.",
            "{S} laid the {T} in the {C}.", "{S} opened the {C} and put the {T} into it."],
    "out": ["{S} took the {T} out of the {C}.", "{S} opened the {C} and took out the {T}.",
            "{S} fetched the {T} from the {C}.", "{S} looked into the {C} and took out the {T}."],
    "give": ["{S} gave {O} the {T}.", "{S} gave the {T} to {O}.", "{S} handed the {T} to {O}.",
             "{S} passed the {T} to {O}.", "{S} made {O} a present of the {T}.",
             "{O} asked for the {T}, and {S} gave it away."],
}
WHY = ("to look around", "to have some rest", "without a word", "with a smile", "with slow steps",
       "by the long way", "to see what was new", "in a hurry")
WHEN = ("In the morning", "One day", "The next day", "At noon", "In the evening", "After breakfast",
        "Later that day", "On market day", "After lunch", "Some time later", "Early in the morning",
        "Late in the evening")
THEN = ("Then", "Soon", "After that", "A little later", "Next", "A moment later")
WEATHER = ("The sun was shining.", "It began to rain.", "A cold wind blew.", "The sky was grey.",
           "It was a warm day.", "Clouds came over the hills.", "The birds were singing.",
           "It was very quiet.", "Snow fell on the fields.", "The air smelled of rain.",
           "There was a storm on its way.", "Not a leaf moved.")
FEELINGS = "happy tired hungry sad proud curious glad thirsty angry sleepy".split()
ALONE = ("{S} was {F}.", "{S} felt {F}.", "{S} looked {F}.", "{S} sat down for a while.",
         "{S} began to hum a tune.", "{S} smiled.", "{S} thought about the day.",
         "{S} drank some water.", "{S} counted to ten.", "{S} waited for a while.",
         "{S} wondered what to do next.", "\"What a day!\" said {S}.", "\"I am {F},\" said {S}.",
         "{S} closed {their} eyes for a moment.")
TOGETHER = ("\"Good morning,\" said {S} to {O}.", "{S} and {O} talked about the weather.",
            "{S} told {O} a joke.", "{S} asked {O} for help.", "{S} and {O} sang a song.",
            "{S} and {O} played a game.", "{S} and {O} shared a meal.",
            "\"You look {F},\" said {S} to {O}.", "{S} smiled at {O}.", "{S} and {O} laughed.",
            "{S} thanked {O}.", "\"How are you?\" {S} asked {O}.", "{S} told {O} a long story.",
            "{S} and {O} sat side by side for a while.")
MEMORIES = {    # fixed facts, as people mention them
    "home": ["{S} thought of {their} house in {V}.",
             "\"In {V}, where I live, it is quiet,\" said {S}.",
             "{S} told about {V}, {their} home.", "\"My home is in {V},\" said {S}."],
    "job": ["\"I am {aV},\" said {S}.", "{S}, who was {aV}, began to whistle.",
            "\"There is much to do for {aV},\" said {S}.", "{S} was tired of being {aV}."],
    "pet": ["{S} told a story about {their} {V}.", "\"My {V} is waiting for me,\" said {S}.",
            "{S} missed {their} {V}.", "\"I have {aV},\" said {S}."],
    "food": ["{S} ate some {V}, {their} favourite food.", "\"I like {V} best,\" said {S}.",
             "{S} could not stop thinking of {V}.",
             "\"Is there any {V}?\" asked {S}, who loved it."],
    "friend": ["{S} thought of {their} friend {V}.", "\"My friend is {V},\" said {S}.",
               "{S} wanted to write to {their} friend {V}.",
               "{S} hoped to see {their} friend {V} soon."],
}
# Planted facts. {V} is the secret word or the number, {D} a door, {H} a treasure, {at} where it is
# hidden.
PLANTS = {
    "secret": ["The secret word of {S} is {V}.", "{S} chose the secret word {V}.",
               "{S} has a secret word, and it is {V}.",
               "Only a few know that the secret word of {S} is {V}.",
               "{S} told nobody that {their} secret word was {V}."],
    "number": ["The number of the {D} is {V}.", "On the {D} stood the number {V}.",
               "The {D} had the number {V}.", "Somebody had painted the number {V} on the {D}.",
               "The number {V} was written on the {D}."],
    "hidden": ["{S} hid {aH} {at}.", "{S} had hidden {aH} {at}.",
               "When nobody was looking, {S} hid {aH} {at}.",
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
    """A context with a planted fact, and a question about that fact."""

    context: str    # ends with a blank line
    question: str   # "Question: ...\nAnswer:"; a space and the answer follow
    answer: str
    accepted: str


class Story:
    """A story in progress: `add_paragraph` continues it, `ask` asks about the text so far.

    The state is what the text says and no more: where each person is (`where`), how each thing is
    kept (`things`: ("at", place), ("in", chest) or ("with", person)), where each chest stands
    (`chests`), who gave what (`gifts`) and what was planted. `events` lists what happened, in
    order, as (verb, person, words).
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.text_parts, self.length, self.words = [], 0, 0
        self.where, self.things, self.chests, self.gifts = {}, {}, {}, {}
        self.carried = set()    # things that somebody has had
        self.since = {}         # {person or thing: position of the text that last gave its state}
        self.planted = []       # (position, Question)
        # By kind: the subjects that already have a planted fact, and the values not used so far.
        self.taken = {"secret": set(), "number": set(), "hidden": set()}
        self.unused = {"secret": _shuffled(rng, SECRETS), "number": _shuffled(rng, NUMBERS),
                       "hidden": _shuffled(rng, HIDING)}
        self.asked_keys = set()
        self.events = []
        self.places = rng.sample(PLACES, rng.randint(4, 8))
        self.mentioned = ()     # the people named by the last sentence with people, for pronouns
        self.named_at = 0       # position of the last sentence that names its person
        self.open_ended = False     # whether the last sentence may continue after "and"
        # Of this paragraph: wordings, who has moved, what has changed hands, whose feeling was
        # told.
        self.used = set()
        self.cast = rng.sample(PEOPLE, 2)   # the first two people, for the title

    @property
    def text(self) -> str:
        return "".join(self.text_parts)

    # ---- writing ----

    def add_title(self) -> None:
        """Write the first line."""
        first, second = self.cast
        titles = ("{0} and {1}", "A story about {0} and {1}", "The day of {0} and {1}",
                  "A day with {0}", "What {0} did")
        self._append(self.rng.choice(titles).format(first, second) + "\n")

    def add_paragraph(self, words: int) -> None:
        """Write a paragraph of at most about `words` words.

        It is about two or three people, who are in one place most of the time.
        """
        rng, end = self.rng, self.words + words
        people = self._gather()
        self._append("\n" if self.length else "")
        self.mentioned, self.used = (), set()
        first, *others = people
        elsewhere = [self.where[p] for p in others
                     if p in self.where and self.where[p] != self.where.get(first)]
        when = rng.choice(WHEN)
        self.enter(first, when, rng.choice(elsewhere) if elsewhere and rng.random() < 0.5 else None)
        if rng.random() < 0.4:
            self._say(rng.choice(WEATHER))
        for _ in range(rng.randint(4, 9)):
            if self.words + 6 > end:
                break
            self.step(people)
        self._append("\n")

    def add_planted(self, kinds) -> list[Question]:
        """Write a paragraph of planted facts of these kinds; returns their questions."""
        self._append("\n" if self.length else "")
        questions = [self.plant(kind) for kind in kinds]
        self._append("\n")
        return questions

    def add_question(self, question: Question) -> None:
        """Write a question with its answer."""
        self._append(f"\n{question.lines}" if self.length else question.lines)

    def plant(self, kind: str) -> Question | None:
        """Write a fact of this story only; returns its question, or None if no fact is left.

        `kind` is "secret", "number" or "hidden"; the fact is about some person or door. No value
        is used twice, and no subject has two facts of a kind.
        """
        rng, taken, unused = self.rng, self.taken[kind], self.unused[kind]
        free = [x for x in (DOORS if kind == "number" else PEOPLE) if x not in taken]
        if rng.random() < 0.5:
            free = [x for x in free if x in self.where] or free
        if not free or not unused:
            return None
        about = rng.choice(free)
        value, treasure = unused.pop(), rng.choice(TREASURES)
        words = dict(D=about, V=value, H=treasure, aH=with_article(treasure),
                     at=f"{HIDING.get(value)} the {value}")
        self.mentioned = ()
        person = None if kind == "number" else about
        position = self._say(rng.choice(PLANTS[kind]), person, **words)
        self.open_ended = False
        taken.add(about)
        words["S"] = about
        text, answer = rng.choice(ASK[kind]).format(**words), REPLY[kind].format(**words)
        question = Question(kind, text, answer, value, about)
        self.planted.append((position, question))
        return question

    def _append(self, text: str) -> None:
        self.text_parts.append(text)
        self.length += len(text)
        self.words += len(text.split())

    def _gather(self) -> list[str]:
        """Two or three people for the next paragraph: first the title's, sometimes a new one."""
        rng, known = self.rng, list(self.where)
        new = [p for p in self.cast if p not in known]
        if not new and rng.random() < 0.25 and len(known) < 16:
            new = [rng.choice([p for p in PEOPLE if p not in known])]
        count = 3 if rng.random() < 0.3 else 2
        people = new + rng.sample(known, max(0, min(count - len(new), len(known))))
        return rng.sample(people, len(people))

    def _say(self, template: str, person: str | None = None, others=(), when: str = "",
             **words) -> int:
        """Write a sentence about a person, which also names `others`.

        If the last sentence was about the same person and nobody else, this one may use "she" or
        "he", or continue that sentence after "and". Returns the position from which the text must
        be read: this sentence, or an earlier one that says who "she" is.
        """
        rng = self.rng
        plain = template.startswith("{S} ") and " and " not in template
        same = person is not None and self.mentioned == (person,)
        words |= dict(S=person, O=others[0] if others else None,
                      their=possessive(person) if person else None)
        if plain and same and self.open_ended and rng.random() < 0.3:
            sentence = self._continuation(template, words)
            words["S"], self.open_ended = None, False
        else:
            if plain and same and rng.random() < 0.15:
                when = rng.choice(THEN)
            needs_name = others or "said {S}" in template or "{S}," in template
            if same and not needs_name and rng.random() < 0.7:
                words["S"] = pronoun(person)
            sentence = capitalize(f"{when} {template}".strip().format(**words))
            if self.text_parts and not self.text_parts[-1].endswith("\n"):
                self._append(" ")
            self.open_ended = plain
        position = self.length
        self._append(sentence)
        if person:
            self.mentioned = (person, *others)
            self.named_at = position if words["S"] == person else self.named_at
        return self.named_at if person else position

    def _continuation(self, template: str, words: dict) -> str:
        """The sentence as the end of the last one, whose full stop is removed: " and ..."."""
        last = self.text_parts[-1] = self.text_parts[-1].removesuffix(".")
        self.length -= 1
        # "picked up it" is not English.
        if (words.get("T") or "?") in last and not re.search("(up|down) the {T}", template):
            template = template.replace("the {T}", "it")
        return " and" + template.removeprefix("{S}").format(**words)

    def _event(self, verb: str, person: str | None = None, when: str = "", **words) -> None:
        """Write one event and change the state accordingly."""
        thing, place, chest, other = (words.get(k) for k in ("T", "P", "C", "O"))
        position = self._say(self._pick(EVENTS[verb]), person, (other,) if other else (), when,
                             why=self.rng.choice(WHY), T=thing, P=place, C=chest,
                             aT=thing and with_article(thing), aC=chest and with_article(chest))
        if verb in ("appear", "move"):
            self.used.add(person)
            self.where[person] = place
            self.since[person] = position
        elif verb == "stand":
            self.chests[chest] = place
        else:
            self.things[thing] = {"see": ("at", place), "drop": ("at", place), "put": ("in", chest),
                                  "give": ("with", other)}.get(verb, ("with", person))
            self.since[thing] = position
            # If the sentence does not name the place, the reader must know where the person is.
            if verb == "drop" and place not in self.text_parts[-1]:
                self.since[thing] = min(position, self.since[person])
        if person and thing:
            self.carried.add(thing)
        if verb in ("give", "drop", "put", "out"):
            self.used.add(thing)
        if verb == "give":
            self.gifts.setdefault((person, other), []).append((thing, position))
        self.events.append((verb, person, words))

    def _pick(self, templates) -> str:
        """One of the wordings, if possible one that this paragraph has not used."""
        fresh = [t for t in templates if t not in self.used] or templates
        self.used.add(template := self.rng.choice(fresh))
        return template

    def enter(self, person: str, when: str = "", place: str | None = None) -> None:
        """The person comes to a place, for the first time in this story or from elsewhere."""
        known = person in self.where
        place = place or self.rng.choice([p for p in self.places if p != self.where.get(person)])
        verb = "move" if known or self.rng.random() < 0.3 else "appear"
        self._event(verb, person, when, P=place)

    def step(self, people: list[str], talk: bool = True) -> None:
        """Write one sentence: one of the people does something.

        With `talk` it may also be what people say between the events.
        """
        rng = self.rng
        person = rng.choice(people)
        if self.mentioned and self.mentioned[0] in people and rng.random() < 0.6:
            person = self.mentioned[0]
        if person not in self.where:
            beside_first = people[0] in self.where and rng.random() < 0.8
            return self.enter(person, place=self.where[people[0]] if beside_first else None)
        place = self.where[person]
        near = [p for p in people if p != person and self.where.get(p) == place]
        far = [p for p in people if p in self.where and self.where[p] != place]
        held = [t for t, spot in self.things.items() if spot == ("with", person)]
        free = [t for t in held if t not in self.used]      # not handled in this paragraph
        lying = [t for t, spot in self.things.items()
                 if spot == ("at", place) and t not in self.used]
        chests = [c for c, p in self.chests.items() if p == place]
        stored = [(t, spot[1]) for t, spot in self.things.items()
                  if spot[0] == "in" and spot[1] in chests]
        may_move, can_carry = person not in self.used, len(held) < 2
        new_thing = len(self.things) < 20 and not lying
        weights = {
            "talk": 2.6 * talk, "plant": 0.7 * talk, "remember": 0.5 * talk, "fact": 0.12 * talk,
            "join": 3 * (bool(far) and may_move), "move": (0.6 if talk else 2) * may_move,
            "take": 2 * bool(lying and can_carry), "drop": 0.6 * bool(free),
            "give": 1.6 * bool(free and near),
            "find": 1.0 * (new_thing and can_carry), "see": 0.4 * new_thing,
            "stand": (0.4 if talk else 0.2) * (not chests and len(self.chests) < len(CHESTS)),
            "put": 1.2 * bool(free and chests), "out": 0.6 * bool(stored and can_carry),
        }
        verb = rng.choices(list(weights), list(weights.values()))[0]
        if verb in ("talk", "plant", "remember", "fact"):
            self._between_events(verb, person, near)
        elif verb in ("join", "move"):
            elsewhere = [p for p in self.places if p != place]
            places = [self.where[p] for p in far] if verb == "join" else elsewhere
            self._event("move", person, P=rng.choice(places))
        elif verb in ("take", "drop"):
            self._event(verb, person, T=rng.choice(lying if verb == "take" else free), P=place)
        elif verb == "give":
            self._event(verb, person, T=rng.choice(free), P=place, O=rng.choice(near))
        elif verb in ("find", "see"):
            thing = rng.choice([t for t in COLOURED if t not in self.things])
            self._event(verb, person if verb == "find" else None, T=thing, P=place)
        elif verb == "stand":
            chest = rng.choice([c for c in CHESTS if c not in self.chests])
            self._event(verb, C=chest, P=place)
        elif verb == "put":
            self._event(verb, person, T=rng.choice(free), C=rng.choice(chests))
        else:
            thing, chest = rng.choice(stored)
            self._event(verb, person, T=thing, C=chest)

    def _between_events(self, verb: str, person: str, near: list[str]) -> None:
        """Write what is said between events: talk, a planted fact, a memory or a fixed fact."""
        rng = self.rng
        if verb == "remember":
            fact = rng.choice([f for f in FACTS[person] if f.relation in MEMORIES])
            others = (fact.value,) if fact.relation == "friend" else ()
            self._say(self._pick(MEMORIES[fact.relation]), person, others, V=fact.value,
                      aV=with_article(fact.value))
        elif verb == "fact":
            self._say(facts.statement(rng, rng.choice(FACTS[rng.choice(SUBJECTS)])))
            self.mentioned, self.open_ended = (), False
        elif verb == "talk" or not self.plant(rng.choice(KINDS)):
            self._talk(person, near)

    def _talk(self, person: str, near: list[str]) -> None:
        other = self.rng.choice(near) if near and self.rng.random() < 0.6 else None
        templates = TOGETHER if other else ALONE
        if f"feeling {other or person}" in self.used:
            templates = [t for t in templates if "{F}" not in t]
        template = self._pick(templates)
        if "{F}" in template:
            self.used.add(f"feeling {other or person}")
        self._say(template, person, (other,) if other else (), F=self.rng.choice(FEELINGS))

    # ---- asking ----

    def ask(self, far: bool | None = None) -> Question | None:
        """A question about something told recently (`far` false), long ago (true) or either (None).

        None if there is nothing new to ask.
        """
        questions = sorted(self.askable(), key=lambda question: question.back)
        if not questions:
            return None
        third = len(questions) // 3 if far is not None else 0
        questions = questions[2 * third:] if far else questions[:len(questions) - 2 * third]
        kind = self.rng.choice(sorted({q.kind for q in questions}))
        question = self.rng.choice([q for q in questions if q.kind == kind])
        self.asked_keys.add(self._key(question))
        return question

    def _key(self, question: Question) -> tuple:
        """Identifies a question until the state that it asks about changes."""
        return question.kind, question.accepted, question.about, self.length - question.back

    def askable(self) -> list[Question]:
        """All questions that `ask` has not asked since their answer last changed.

        Planted facts can be asked for once.
        """
        questions = []

        def add(kind, position, answer, accepted, **words):
            text = self.rng.choice(ASK[kind]).format(**words)
            about = words.get("T") or words["S"]
            questions.append(Question(kind, text, answer, accepted, about, self.length - position))

        for person, place in self.where.items():
            add("where_person", self.since[person], f"{person} is in the {place}.", place, S=person)
        for thing, (how, keeper) in self.things.items():
            since, place = self.since[thing], keeper
            if how == "with":
                add("who_has", since, f"{keeper} has the {thing}.", keeper, T=thing)
                place, since = self.where[keeper], min(since, self.since[keeper])
            elif how == "at" and thing in self.carried:
                add("who_has", since, f"Nobody has the {thing}.", "Nobody", T=thing)
            add("where_thing", since, f"The {thing} is in the {place}.", place, T=thing)
        for (giver, other), gifts in self.gifts.items():
            if len(gifts) == 1:
                thing, position = gifts[0]
                add("gave", position, f"{giver} gave {other} the {thing}.", thing, S=giver, O=other)
        questions += [replace(q, back=self.length - position) for position, q in self.planted]
        return [q for q in questions if self._key(q) not in self.asked_keys]


def story(rng: random.Random, words: int) -> Story:
    """A story of about `words` words, without questions."""
    tale = Story(rng)
    tale.add_title()
    while tale.words < words:
        tale.add_paragraph(words - tale.words)
    return tale


def scene(rng: random.Random) -> str:
    """A very short text to train on: a planted fact or a few sentences, and one to four questions.

    Where one fact is all there is, its answer can only be copied; with two or three, the name has
    to match. So a model learns to look things up step by step, much sooner than from long stories.
    """
    tale = Story(rng)
    if rng.random() < 0.5:
        tale.add_planted(rng.choices(KINDS, k=rng.randint(1, 3)))
    if not tale.words or rng.random() < 0.4:
        tale.add_paragraph(rng.randint(5, 30))
    for _ in range(rng.randint(1, 4)):
        question = tale.ask()
        if question:
            tale.add_question(question)
    return tale.text.lstrip()


def story_with_questions(rng: random.Random, words: int) -> str:
    """A text to train on: a story of about `words` words, with questions between and after.

    The questions follow most paragraphs, or all of them come at the end. Half of them ask about
    what was told recently, half about what was told long ago; a few ask for a fixed fact.
    """
    tale, at_end = Story(rng), rng.random() < 0.3
    tale.add_title()
    if words >= 80 and rng.random() < 0.3:
        tale.add_planted(rng.choices(KINDS, k=rng.randint(1, 3)))
    n_last = min(8, 1 + words // 100) if at_end else 1      # questions at the end, 13 words each
    while tale.words < words - 13 * n_last - 5:
        tale.add_paragraph(words - 13 * n_last - tale.words)
        if not at_end and tale.words < words - 40:
            for _ in range(rng.randint(1, 3)):
                _add_question(tale)
    for _ in range(n_last):
        _add_question(tale)
    return tale.text


def _add_question(tale: Story) -> None:
    """Add a question about the story or, one time in eight, one for a fixed fact of train."""
    rng = tale.rng
    subject = rng.choice(list(tale.where) if rng.random() < 0.5 else SUBJECTS)
    known = [f for f in FACTS[subject] if facts.split_of(f) == "train"]
    if known and rng.random() < 0.12:
        question = question_about(rng, rng.choice(known))
    else:
        question = tale.ask(far=rng.random() < 0.5)
    if question:
        tale.add_question(question)


def recall(rng: random.Random, words_between: int, kind: str = "secret") -> Recall:
    """A planted fact, about `words_between` words of story, and a question about the fact.

    It measures memory over a chosen distance. `kind` is "secret", "number" or "hidden". Two more
    facts of the kind, about other subjects, stand beside the one that is asked for, and more follow
    in the story, so that the name has to match. The fact itself is said only once.
    Raises `MinidsError` for an unknown kind or a negative distance.
    """
    if kind not in KINDS or words_between < 0:
        raise MinidsError(f"expected a kind of {', '.join(KINDS)} and at least 0 words between, "
                          f"found {kind!r}, {words_between}")
    tale = Story(rng)
    tale.add_title()
    question = rng.choice(tale.add_planted([kind] * 3))
    end = tale.words + words_between
    while tale.words < end:
        tale.add_paragraph(end - tale.words)
    prompt = f"Question: {question.text}\nAnswer:"
    return Recall(tale.text + "\n", prompt, question.answer, question.accepted)


def is_correct(answer: str, accepted: str) -> bool:
    """Whether a model's answer names the accepted word and no other word of its pool.

    Only the first sentence counts. Raises `MinidsError` if no pool has the accepted word.
    """
    pool = next((pool for pool in POOLS if accepted in pool), None)
    if pool is None:
        raise MinidsError(f"expected a word that TinyWorld's answers can name, found {accepted!r}")
    sentence = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    words = f" {' '.join(re.findall('[a-z0-9]+', sentence.lower()))} "
    return [word for word in pool if f" {word.lower()} " in words] == [accepted]


def _shuffled(rng: random.Random, values) -> list:
    return rng.sample(list(values), len(values))
