"""A reader of TinyWorld's stories, independent of the simulation that writes them.

It knows the stories' English only, so its answers check those of the simulation.
"""

import re

from minids.data.tinyworld.facts import MEN, PEOPLE, THINGS
from minids.data.tinyworld.stories import CHESTS, COLOURS, DOORS, HIDING, PLACES

PERSON = re.compile(rf"\b({'|'.join(PEOPLE)})\b")
PLACE = re.compile(rf"\b(?:in|to) the ({'|'.join(PLACES)})\b", re.I)
CHEST = re.compile(rf"\b({'|'.join(CHESTS)})\b")
THING = re.compile(rf"\b((?:{'|'.join(COLOURS)}) (?:{'|'.join(THINGS)}))\b", re.I)


class Reader:
    """Reads sentence by sentence.

    It records where people and things are, who gave what to whom, and what was planted.
    """

    def __init__(self, text: str):
        self.where, self.things, self.gifts, self.planted = {}, {}, {}, {}
        for paragraph in text.split("\n\n")[1:]:    # the first is the title
            self.about = None
            text = re.sub(r'[!?]"', '"', paragraph.strip())
            for sentence in re.split(r"(?<=[.!?]) |(?<=\.\") ", text):
                self.read(sentence)

    def read(self, sentence: str) -> None:
        people = PERSON.findall(sentence)
        they = re.search(r"\b(he|she)\b", sentence, re.I)
        if they:
            assert self.about and (they[1].lower() == "he") == (self.about in MEN), sentence
            people = [self.about, *people]
        if people:
            self.about = people[0] if len(people) == 1 else None
        if '"' in sentence or self.plant(sentence, people):
            return
        request = r"(?:\w+ )*?(\w+) asked for the (.+), and (\w+) gave it away\."
        if m := re.fullmatch(request, sentence):
            return self.give(giver=m[3], other=m[1], thing=m[2])
        thing = chest = None
        for clause in sentence.split(" and "):
            thing = m[1].lower() if (m := THING.search(clause)) else thing
            chest = m[1] if (m := CHEST.search(clause)) else chest
            place = m[1] if (m := PLACE.search(clause)) else None
            self.clause(clause, people[0] if people else None, people[1:], thing, chest, place)

    def plant(self, sentence: str, people) -> bool:
        if m := re.search(r"secret word(?:(?: of \w+)? (?:is|was)|, and it is|) (\w+)\.", sentence):
            self.planted["secret", people[0]] = m[1]
        elif m := re.search(r"\b(\d\d)\b", sentence):
            self.planted["number", next(d for d in DOORS if d in sentence)] = m[1]
        elif m := re.search(rf"\b(?:hid|hidden) an? \w+ \w+ the ({'|'.join(HIDING)})\.", sentence):
            self.planted["hidden", people[0]] = m[1]
        return bool(m)

    def give(self, giver, other, thing) -> None:
        self.things[thing] = ("with", other)
        self.gifts.setdefault((giver, other), []).append(thing)

    def clause(self, clause, person, others, thing, chest, place) -> None:
        def says(words):
            return re.search(rf"\b(?:{words})\b", clause)

        if person and place and says("went|walked|hurried|ran|came|way") and says("to the"):
            self.where[person] = place
        elif person and place and not thing and says("was in|was at work in|stood in|sat in"):
            self.where[person] = place
        elif thing and says("gave|handed|passed|present"):
            self.give(person, others[0], thing)
        elif thing and chest and says("put|placed|laid"):
            self.things[thing] = ("in", chest)
        elif thing and says("put down|left|dropped|on the ground"):
            self.things[thing] = ("at", place or self.where[person])
        elif thing and not person and says("lay|was"):
            self.things[thing] = ("at", place)
        elif thing and person and says("found|took|picked|kept|lifted|noticed|saw|fetched"):
            self.things[thing] = ("with", person)

    def answer(self, kind: str, about: str, giver_and_other=None) -> str:
        """This reader's answer to one of the story's questions."""
        if kind in ("secret", "number", "hidden"):
            return self.planted[kind, about]
        if kind == "where_person":
            return self.where[about]
        if kind == "gave":
            return self.gifts[giver_and_other][0]
        how, which = self.things[about]
        if kind == "who_has":
            return which if how == "with" else "Nobody"
        return self.where[which] if how == "with" else which
