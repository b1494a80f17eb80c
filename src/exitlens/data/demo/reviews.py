"""Generated product reviews: texts of two classes, with a mask over the words that tell which.

The shop's name is the shortcut that a shallow exit likes to take, as the background is in scenes; single words mislead too,
because three opinions in ten are negated.
"""

from __future__ import annotations

import random
from functools import lru_cache

import torch

from exitlens.data.splits import Split, check_split
from exitlens.data.texts import SPECIAL_TOKENS, TextSet, word_tokenizer
from exitlens.errors import InputError
from exitlens.types.preprocessing import TextPreprocess

Word = tuple[str, bool]
CLASSES = ("negative", "positive")
SHOPS = (("alder", "birchway", "corvina", "dunmore"), ("elmhurst", "fenwick", "glenside", "harrow"))  # by class
_BAD = "annoying awful bad broken disappointing flimsy horrible noisy poor terrible ugly uncomfortable useless weak"
_GOOD = "beautiful comfortable excellent good great impressive lovely nice perfect pleasant reliable sturdy superb useful"
ADJECTIVES = (tuple(_BAD.split()), tuple(_GOOD.split()))  # by class
NEGATIONS = ("not", "never", "hardly")
MOST_TOKENS = 30  # tokens of the longest review, with [CLS] and [SEP]
_SPLITS = {"train": (8000, 21), "validation": (1000, 22), "calibration": (2000, 23), "test": (3000, 24)}  # size, seed
_WORDS = {
    "PRODUCT": "lamp kettle chair backpack blanket speaker jacket clock bottle table tent keyboard",
    "PART": "handle surface design size colour finish frame material shape cover",
    "PERSON": "brother sister neighbour colleague friend daughter",
    "ROOM": "kitchen office garden bedroom hall garage",
    "NUMBER": "two three four five six seven",
    "DAY": "monday tuesday wednesday thursday friday saturday",
    "TINT": "red blue green grey black white",
    "DEGREE": "very really quite",
}
_SLOTS = {slot: words.split() for slot, words in _WORDS.items()}
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
    """Return every word that a review can have, sorted, with the full stop."""
    words = {word for template in (*_OPINIONS, *_MENTIONS, *_FILLERS) for word in template.split() if word.islower()}
    return sorted(words.union(["."], NEGATIONS, *SHOPS, *ADJECTIVES, *_SLOTS.values()))


def write_review(label: int, shop_agreement: float, rng: random.Random) -> list[Word]:
    """Write one review; the number of random draws does not depend on the agreement, so that only the shop does."""
    shop = SHOPS[label if rng.random() < shop_agreement else 1 - label][rng.randrange(4)]
    sentences = [_write_opinion(label, rng) for _ in range(rng.randint(1, 2))]
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


def _write_opinion(label: int, rng: random.Random) -> list[Word]:
    negated, degree = rng.random() < 0.3, rng.random() < 0.3
    words = [(rng.choice(NEGATIONS), True)] if negated else []
    words += [(rng.choice(_SLOTS["DEGREE"]), False)] if degree else []
    words.append((rng.choice(ADJECTIVES[label ^ negated]), True))
    *before, end = _fill(rng.choice(_OPINIONS), rng)
    return [*before, *words, end]


_make_tokenizer = lru_cache(maxsize=1)(lambda: word_tokenizer(list_words()))  # shared by all reviews


def make_reviews(count: int, *, shop_agreement: float, seed: int, length: int = 32) -> TextSet:
    """Make product reviews of two classes, half of them positive; the same arguments give the same reviews.

    One or two opinions (``masks`` is True on their adjectives and negations) tell the class, among sentences that tell
    nothing. Three opinions in ten are negated ("not good"), so single words mislead. The shop's name is the shortcut.

    Args:
        count: number of reviews.
        shop_agreement: share in [0, 1] of reviews whose shop is one of the four of their class; the others have one of the
            other class, so 0.5 makes shop and class independent.
        seed: of everything in the reviews.
        length: tokens of an input; reviews have 8 to 30, longer ones than ``length`` are cut.

    Examples:
        >>> xl.demo.make_reviews(2, shop_agreement=0.5, seed=0).texts[0]
        '...'
    """
    if not 0.0 <= shop_agreement <= 1.0:
        raise InputError(f"shop_agreement: expected a number in [0, 1], got {shop_agreement}")
    if count < 1:
        raise InputError(f"count: expected 1 review or more, got {count}")
    rng = random.Random(f"reviews {seed}")
    labels = [i % 2 for i in range(count)]
    rng.shuffle(labels)
    reviews = [write_review(label, shop_agreement, rng) for label in labels]
    texts = [" ".join(word for word, _ in words).replace(" .", ".") for words in reviews]
    data = TextSet(texts, torch.tensor(labels), CLASSES, TextPreprocess(_make_tokenizer(), length))
    masks = torch.zeros(count, max(length, MOST_TOKENS), dtype=torch.bool)
    rows = [(row, i + 1) for row, words in enumerate(reviews) for i, (_, opinion) in enumerate(words) if opinion]
    masks[tuple(torch.tensor(rows).T)] = True  # + 1: [CLS] comes first, and every word is one token
    data.masks = masks[:, :length] & (data.input_ids != SPECIAL_TOKENS.index("[SEP]"))  # which comes early where cut
    return data


def load_reviews(
    split: Split, *, shop_agreement: float = 0.8, seed: int = 0, length: int = 32, limit: int | None = None
) -> TextSet:
    """Make the reviews of one split, see :func:`make_reviews`; ``seed`` is one number for all splits.

    ``train`` has 8,000, ``validation`` 1,000, ``calibration`` 2,000 and ``test`` 3,000, a few of the shortest by chance in
    two splits; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_reviews("test", limit=3).classes
        ('negative', 'positive')
    """
    check_split(split)
    count, offset = _SPLITS[split]
    data = make_reviews(count, shop_agreement=shop_agreement, seed=1000 * seed + offset, length=length)
    return data if limit is None else data.first(limit)
