"""Generated product reviews as words, each with whether it is part of an opinion; :mod:`exitlens.data.texts` encodes them.

The shop's name is the shortcut that a shallow exit likes to take, as the background is in scenes; single words mislead too,
because three opinions in ten are negated.
"""

from __future__ import annotations

import random

Word = tuple[str, bool]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CLASSES = ("negative", "positive")
SHOPS = (("alder", "birchway", "corvina", "dunmore"), ("elmhurst", "fenwick", "glenside", "harrow"))  # by class
ADJECTIVES = (  # by class
    _words("annoying awful bad broken disappointing flimsy horrible noisy poor terrible ugly uncomfortable useless weak"),
    _words(
        "beautiful comfortable excellent good great impressive lovely nice perfect pleasant reliable sturdy superb useful"
    ),
)
NEGATIONS = ("not", "never", "hardly")
MOST_TOKENS = 30  # of a review, with [CLS] and [SEP]
_SLOTS = {
    "PRODUCT": _words("lamp kettle chair backpack blanket speaker jacket clock bottle table tent keyboard"),
    "PART": _words("handle surface design size colour finish frame material shape cover"),
    "PERSON": _words("brother sister neighbour colleague friend daughter"),
    "ROOM": _words("kitchen office garden bedroom hall garage"),
    "NUMBER": _words("two three four five six seven"),
    "DAY": _words("monday tuesday wednesday thursday friday saturday"),
    "TINT": _words("red blue green grey black white"),
    "DEGREE": _words("very really quite"),
}
_OPINIONS = ("looks", "it is", "the PART is", "the PRODUCT is", "my PERSON finds it")  # the opinion follows
_MENTIONS = ("from SHOP", "bought at SHOP", "SHOP sent it on DAY", "i ordered this PRODUCT from SHOP", "the shop was SHOP")
_FILLERS = (
    "i keep it in the ROOM",
    "it came in a TINT box",
    "mine is TINT",
    "delivery took NUMBER days",
    "my PERSON asked for one",
    "we have NUMBER of them at home",
    "this is my second PRODUCT",
    "it stands in the ROOM since DAY",
    "i use it on DAY and DAY",
    "there are NUMBER parts in the box",
)


def list_words() -> list[str]:
    """Every word that a review can have, sorted, the full stop included."""
    words = {word for template in (*_OPINIONS, *_MENTIONS, *_FILLERS) for word in template.split() if word.islower()}
    return sorted(words.union(["."], NEGATIONS, *SHOPS, *ADJECTIVES, *_SLOTS.values()))


def write_review(label: int, shop_agreement: float, rng: random.Random) -> list[Word]:
    """One review; as many random numbers are drawn whatever the agreement, so that only the shop depends on it."""
    shop = SHOPS[label if rng.random() < shop_agreement else 1 - label][rng.randrange(4)]
    sentences = [_opinion(label, rng) for _ in range(rng.randint(1, 2))]
    sentences.append(_fill(rng.choice(_MENTIONS), rng, shop))
    for filler in rng.sample(_FILLERS, rng.randint(0, 3)):
        sentence = _fill(filler, rng)
        if 2 + len(sentence) + sum(map(len, sentences)) <= MOST_TOKENS:
            sentences.append(sentence)
    rng.shuffle(sentences)
    return [word for sentence in sentences for word in sentence]


def _fill(template: str, rng: random.Random, shop: str = "") -> list[Word]:
    words = [shop if word == "SHOP" else rng.choice(_SLOTS.get(word, (word,))) for word in template.split()]
    return [(word, False) for word in (*words, ".")]


def _opinion(label: int, rng: random.Random) -> list[Word]:
    negated, degree = rng.random() < 0.3, rng.random() < 0.3
    words = [(rng.choice(NEGATIONS), True)] if negated else []
    words += [(rng.choice(_SLOTS["DEGREE"]), False)] if degree else []
    words.append((rng.choice(ADJECTIVES[label ^ negated]), True))
    *before, end = _fill(rng.choice(_OPINIONS), rng)
    return [*before, *words, end]
