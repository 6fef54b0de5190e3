"""Sentences of the mini corpus: a seeded grammar over a small vocabulary without homophones (ours).

A sentence belongs to exactly one of the splits "train", "dev" and "test", decided by a hash of its words. So
no sentence of one split can appear in another one, whatever sizes, seed and number of speakers are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spear_lib.runtime.keyed_random import key

SPLITS = ("train", "dev", "test")
MIN_WORDS, MAX_WORDS = 3, 9


@dataclass(frozen=True)
class Vocabulary:
    """Words by the place that they can take in a sentence; lower case."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    nouns: tuple[tuple[str, str], ...]
    """(singular, plural)."""
    places: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    """(base form, third person)."""
    times: tuple[str, ...]

    def words(self) -> list[str]:
        """Every word that a sentence can contain, sorted, function words included."""
        pairs = [word for pair in (*self.nouns, *self.verbs) for word in pair]
        lists = (self.names, self.numbers, self.places, self.adjectives, self.times, FUNCTION_WORDS, pairs)
        return sorted({word for words in lists for word in words})


FUNCTION_WORDS = (
    *("the", "my", "our", "and", "is", "are", "in", "under", "from", "near", "behind"),
    *("please", "where", "who", "why", "we", "they", "you", "not", "never", "always", "code", "has"),
)
PREPOSITIONS = ("in", "under", "from", "near", "behind")


def _plurals(*nouns: str) -> tuple[tuple[str, str], ...]:
    return tuple((noun, noun + "s") for noun in nouns)


def _third_persons(*verbs: str) -> tuple[tuple[str, str], ...]:
    return tuple((verb, verb[:-1] + "ies" if verb.endswith("ry") else verb + "s") for verb in verbs)


SMALL = Vocabulary(
    names=(
        *("anna", "peter", "maria", "thomas", "emma", "david"),
        *("laura", "martin", "helen", "george", "sarah", "oliver"),
    ),
    numbers=("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    nouns=_plurals(
        *("apple", "basket", "bird", "bottle", "candle", "dog", "hammer", "horse"),
        *("lantern", "letter", "pencil", "picture", "rabbit", "ribbon", "ticket", "window"),
    ),
    places=("garden", "river", "kitchen", "market", "station", "tower", "bridge", "village"),
    adjectives=("red", "green", "yellow", "small", "heavy", "quiet", "broken", "ancient", "clean", "happy"),
    verbs=_third_persons("bring", "carry", "find", "follow", "open", "paint", "remember", "count"),
    times=("today", "tomorrow", "again", "slowly"),
)

LARGE = Vocabulary(
    names=(
        *SMALL.names,
        *("robert", "susan", "edward", "julia", "victor", "nina", "walter", "alice", "simon", "clara"),
        *(
            "henry",
            "olivia",
            "daniel",
            "rebecca",
            "charles",
            "monica",
            "leonard",
            "sophia",
            "patrick",
            "diana",
        ),
    ),
    numbers=(*SMALL.numbers, "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "hundred", "thousand"),
    nouns=(
        *SMALL.nouns,
        *_plurals(
            "banana", "blanket", "button", "camera", "carpet", "chicken", "diamond", "doctor", "engine"
        ),
        *_plurals("farmer", "finger", "guitar", "helmet", "island", "jacket", "kettle", "ladder", "mirror"),
        *_plurals("napkin", "painter", "pillow", "potato", "rocket", "saddle", "sailor", "spider", "teacher"),
        *_plurals("tiger", "trumpet", "turtle", "violin", "wallet", "whistle", "zebra"),
    ),
    places=(
        *SMALL.places,
        *(
            "harbour",
            "forest",
            "castle",
            "library",
            "mountain",
            "theatre",
            "hospital",
            "valley",
            "cellar",
            "city",
        ),
    ),
    adjectives=(
        *SMALL.adjectives,
        *("purple", "golden", "silver", "gentle", "hungry", "clever", "empty", "frozen", "narrow", "simple"),
        *("orange", "round", "sleepy", "strange", "wooden", "young"),
    ),
    verbs=(
        *SMALL.verbs,
        *_third_persons("admire", "borrow", "collect", "deliver", "describe", "draw", "forget", "gather"),
        *_third_persons("hide", "ignore", "lift", "move", "offer", "protect", "repair", "visit"),
    ),
    times=(
        *SMALL.times,
        "yesterday",
        "quickly",
        "together",
        "outside",
        "monday",
        "friday",
        "sunday",
        "often",
    ),
)

VOCABULARIES = {"small": SMALL, "large": LARGE}


def split_of(sentence: str) -> str:
    """The one split that may contain ``sentence``: 80 % train, 10 % dev, 10 % test of all sentences."""
    bucket = key("grammar split", sentence) % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


class Grammar:
    """Draws sentences of 3 to 9 lower-case words, separated by single spaces."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        # Statements of several shapes come more often than questions and codes, as in read speech.
        self._shapes: list[Callable[[np.random.Generator], list[str]]] = [
            *([self._named_action] * 4),
            *([self._group_action] * 3),
            *([self._description] * 2),
            *([self._whereabouts] * 3),
            *([self._request] * 2),
            self._question,
            self._code,
        ]

    def draw(self, random: np.random.Generator) -> str:
        """One sentence of any split."""
        while True:
            words = self._shapes[int(random.integers(len(self._shapes)))](random)
            if MIN_WORDS <= len(words) <= MAX_WORDS:
                return " ".join(words)

    def draw_for(self, split: str, random: np.random.Generator) -> str:
        """One sentence of ``split`` ("train", "dev" or "test")."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r} of sentences; choose one of {', '.join(SPLITS)}")
        while True:
            sentence = self.draw(random)
            if split_of(sentence) == split:
                return sentence

    @staticmethod
    def _one(random: np.random.Generator, words):
        return words[int(random.integers(len(words)))]

    def _singular(self, random) -> list[str]:
        words = [self._one(random, ("the", "my", "our"))]
        if random.random() < 0.5:
            words.append(self._one(random, self.vocabulary.adjectives))
        return [*words, self._one(random, self.vocabulary.nouns)[0]]

    def _plural(self, random) -> list[str]:
        words = [self._one(random, self.vocabulary.numbers[1:])]
        if random.random() < 0.4:
            words.append(self._one(random, self.vocabulary.adjectives))
        return [*words, self._one(random, self.vocabulary.nouns)[1]]

    def _thing(self, random) -> list[str]:
        return self._singular(random) if random.random() < 0.5 else self._plural(random)

    def _place(self, random) -> list[str]:
        return [self._one(random, PREPOSITIONS), "the", self._one(random, self.vocabulary.places)]

    def _ending(self, random) -> list[str]:
        draw = random.random()
        if draw < 0.45:
            return self._place(random)
        return [self._one(random, self.vocabulary.times)] if draw < 0.7 else []

    def _named_action(self, random) -> list[str]:
        verb = self._one(random, self.vocabulary.verbs)[1]
        manner = [self._one(random, ("never", "always"))] if random.random() < 0.15 else []
        subject = self._one(random, self.vocabulary.names)
        return [subject, *manner, verb, *self._thing(random), *self._ending(random)]

    def _group_action(self, random) -> list[str]:
        if random.random() < 0.5:
            first, second = self._one(random, self.vocabulary.names), self._one(random, self.vocabulary.names)
            subject = [first, "and", second] if first != second else ["we"]
        else:
            subject = [self._one(random, ("we", "they", "you"))]
        verb = self._one(random, self.vocabulary.verbs)[0]
        return [*subject, verb, *self._thing(random), *self._ending(random)]

    def _description(self, random) -> list[str]:
        negation = ["not"] if random.random() < 0.25 else []
        quality = self._one(random, self.vocabulary.adjectives)
        noun = self._one(random, self.vocabulary.nouns)[0]
        return [self._one(random, ("the", "my", "our")), noun, "is", *negation, quality]

    def _whereabouts(self, random) -> list[str]:
        if random.random() < 0.5:
            return [*self._singular(random), "is", *self._place(random)]
        return [*self._plural(random), "are", *self._place(random)]

    def _request(self, random) -> list[str]:
        verb = self._one(random, self.vocabulary.verbs)[0]
        return ["please", verb, *self._thing(random), *self._ending(random)]

    def _question(self, random) -> list[str]:
        draw = random.random()
        if draw < 0.4:
            return ["where", "is", *self._singular(random)]
        if draw < 0.7:
            return ["who", self._one(random, self.vocabulary.verbs)[1], *self._thing(random)]
        return ["why", "is", *self._singular(random), self._one(random, self.vocabulary.adjectives)]

    def _code(self, random) -> list[str]:
        digits = [self._one(random, self.vocabulary.numbers) for _ in range(int(random.integers(2, 5)))]
        if random.random() < 0.5:
            return ["the", "code", "is", *digits]
        return [self._one(random, self.vocabulary.names), "has", "code", *digits]
