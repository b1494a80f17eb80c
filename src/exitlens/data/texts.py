"""Texts in memory, generated product reviews, a word tokenizer made from texts, and labelled text files."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.fashion import SPLITS, Split
from exitlens.data.labels import check_class_labels
from exitlens.data.reviews import CLASSES, MOST_TOKENS, list_words, write_review
from exitlens.data.rows import read_rows
from exitlens.errors import DataError, InputError, require, suggest
from exitlens.types import TextPreprocess, import_tokenizers

TextItem = tuple[dict[str, Tensor], Tensor]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_REVIEW_SPLITS = {"train": (8000, 21), "validation": (1000, 22), "calibration": (2000, 23), "test": (3000, 24)}  # size, seed


class TextSet(Dataset[TextItem]):
    """Texts in memory, encoded once; item ``i`` is ``({"input_ids": (L,), "attention_mask": (L,)}, label)``.

    Args:
        texts: N texts.
        labels: ``(N,)`` ``int64``.
        classes: class names, in label order.
        preprocess: how texts become token ids; its ``length`` is L.
        masks: optional ``(N,L)`` ``bool``: which tokens carry the answer.

    Raises:
        InputError: where counts, shapes or values do not fit.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: TextPreprocess,
        masks: Tensor | None = None,
    ) -> None:
        require(preprocess, TextPreprocess, "preprocess")
        self._encoded = preprocess.encode(texts)
        shape = (len(texts), preprocess.length)
        if masks is not None and (masks.shape != shape or masks.dtype != torch.bool):
            raise InputError(f"masks: expected {shape} bool, one value a token, got {tuple(masks.shape)} {masks.dtype}")
        self.texts, self.classes = tuple(texts), tuple(classes)
        self.labels = check_class_labels(labels, len(texts), classes, "text")
        self.preprocess, self.masks = preprocess, masks

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def input_ids(self) -> Tensor:
        """Token ids ``(N,L)``, padded at the end."""
        return self._encoded["input_ids"]

    @property
    def attention_mask(self) -> Tensor:
        """``(N,L)``: 1 for a token, 0 for padding."""
        return self._encoded["attention_mask"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All texts as network input: ``input_ids`` and ``attention_mask``, ``(N,L)`` each."""
        return dict(self._encoded)

    def __getitem__(self, index: int) -> TextItem:
        return {name: values[index] for name, values in self._encoded.items()}, self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[TextItem]:
        return [self[i] for i in indices]

    def first(self, count: int) -> TextSet:
        """The first ``count`` texts (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """The texts at ``indices`` (``(n,)`` integers) as a set of its own; nothing is encoded again."""
        part = copy.copy(self)
        part._encoded = {name: values[indices] for name, values in self._encoded.items()}
        part.texts = tuple(self.texts[i] for i in torch.arange(len(self))[indices].tolist())
        part.labels = self.labels[indices]
        part.masks = None if self.masks is None else self.masks[indices]
        return part


class TextStream:
    """Texts as batches of network input, encoded while they are asked for: what an ``ImageStream`` is for images.

    Args:
        texts: N texts.
        names: N names, for the answers.
        preprocess: how texts become token ids.
        batch_size: texts in a batch.

    Attributes:
        files: names of the texts in the batches so far, in order.
        bad: always empty: a text that was read can be encoded.
        total: N.
    """

    def __init__(self, texts: Sequence[str], names: Sequence[str], preprocess: TextPreprocess, batch_size: int) -> None:
        require(preprocess, TextPreprocess, "preprocess")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
        if len(names) != len(texts):
            raise InputError(f"names: expected {len(texts)}, one per text; got {len(names)}")
        self.files: list[str] = []
        self.bad: list[str] = []
        self.total = len(texts)
        self._texts, self._names, self._preprocess, self._batch_size = tuple(texts), tuple(names), preprocess, batch_size

    def __len__(self) -> int:
        """How many batches."""
        return -(-self.total // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.files = []
        for at in range(0, self.total, self._batch_size):
            self.files += self._names[at : at + self._batch_size]
            yield self._preprocess.encode(self._texts[at : at + self._batch_size])


class RawTexts(NamedTuple):
    """Labelled texts before they are encoded, so that a tokenizer can be made from one split only."""

    texts: Sequence[str]
    labels: Tensor
    classes: tuple[str, ...]

    def subset(self, indices: Tensor) -> RawTexts:
        """The texts at ``indices`` (``(n,)`` integers)."""
        return RawTexts([self.texts[i] for i in indices.tolist()], self.labels[indices], self.classes)


def word_tokenizer(texts: Iterable[str], max_words: int = 20000) -> str:
    """A tokenizer of lower-case words and punctuation marks; the same texts give the same one.

    Args:
        texts: where the words come from.
        max_words: only the most frequent words are known (ties: alphabetical); others become ``[UNK]``.

    Returns:
        The JSON of a ``tokenizers.Tokenizer`` that frames each text by ``[CLS]`` and ``[SEP]``, for :class:`TextPreprocess`.

    Raises:
        InputError: texts without a word; MissingExtraError: where ``tokenizers`` is not installed.
    """
    if isinstance(texts, str) or max_words < 1:
        raise InputError(f"texts, max_words: expected several texts and 1 word or more, got {texts!r:.60} and {max_words}")
    package = import_tokenizers()
    normalizer = package.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    splitter = package.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        require(text, str, "texts")
        try:
            counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        except UnicodeEncodeError as error:
            raise InputError(f"texts: expected valid Unicode, got {text!r:.60} ({error})") from error
    if not counts:
        raise InputError("texts: expected at least one word, got none")
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = package.Tokenizer(package.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    frame = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = package.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return str(tokenizer.to_str())


@lru_cache(maxsize=1)
def _review_tokenizer() -> str:
    """The one tokenizer of all reviews."""
    return word_tokenizer(list_words())


def make_reviews(count: int, *, shop_agreement: float, seed: int, length: int = 32) -> TextSet:
    """Product reviews of two classes, half of them positive; the same arguments give the same reviews.

    One or two opinions (``masks`` is True on their adjectives and negations) say the class, among sentences that say
    nothing. Three opinions in ten are negated ("not good"), so single words mislead. The shop's name is the shortcut.

    Args:
        count: how many.
        shop_agreement: in [0, 1]; how often the shop is one of the four that belong to the review's class. Otherwise it
            is one of the other class's four; so 0.5 makes shop and class independent. Nothing else depends on it.
        seed: of everything in the reviews.
        length: tokens of an input; reviews have 8 to 30, longer ones than ``length`` are cut.
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
    data = TextSet(texts, torch.tensor(labels), CLASSES, TextPreprocess(_review_tokenizer(), length))
    masks = torch.zeros(count, max(length, MOST_TOKENS), dtype=torch.bool)
    rows = [(row, i + 1) for row, words in enumerate(reviews) for i, (_, opinion) in enumerate(words) if opinion]
    masks[tuple(torch.tensor(rows).T)] = True  # + 1: [CLS] comes first, and every word is one token
    data.masks = masks[:, :length] & (data.input_ids != SPECIAL_TOKENS.index("[SEP]"))  # which comes early where cut
    return data


def load_reviews(
    split: Split, *, shop_agreement: float = 0.8, seed: int = 0, length: int = 32, limit: int | None = None
) -> TextSet:
    """Reviews of one split (see :func:`make_reviews`); every split has its own draws.

    ``train`` (8,000) fits weights, ``validation`` (1,000) chooses checkpoints, ``calibration`` (2,000) chooses
    thresholds, ``test`` (3,000) is for reporting only. A few of the shortest reviews come up in two splits by chance.

    Args:
        split: ``train``, ``validation``, ``calibration`` or ``test``.
        shop_agreement: in [0, 1], see :func:`make_reviews`.
        seed: one number for all splits; each split derives its own from it.
        length: tokens of an input.
        limit: only the first ``limit`` reviews (for quick trials).
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
    count, own = _REVIEW_SPLITS[split]
    data = make_reviews(count, shop_agreement=shop_agreement, seed=1000 * seed + own, length=length)
    return data if limit is None else data.first(limit)


def read_texts(
    path: Path | str, classes: Sequence[str] = (), *, skip_bad: bool = False
) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Texts, labels ``(N,)`` and class names of a UTF-8 file with columns (``.csv``) or keys (``.jsonl``) text and label.

    Args:
        path: the file; other columns or keys are left alone.
        classes: the names to use, in label order; by default those in the file, sorted.
        skip_bad: leave out rows that cannot be read, instead of stopping with all of them.

    Raises:
        DataError: a missing file or column, fewer than 2 classes, an unknown class, or rows that cannot be read.
    """
    rows = read_rows(Path(path), ("text", "label"), skip_bad)
    names = tuple(classes) or tuple(sorted({row["label"] for row in rows}))
    if len(names) < 2:
        raise DataError(f"data: {path} has {len(names)} class(es), need 2 or more: see its column (or key) label")
    numbers = {name: i for i, name in enumerate(names)}
    unknown = next((row["label"] for row in rows if row["label"] not in numbers), None)
    if unknown is not None:
        raise DataError(f"data: {path} has the class {unknown!r}, the network has not.{suggest(unknown, names)}")
    return [row["text"] for row in rows], torch.tensor([numbers[row["label"]] for row in rows]), names


def read_unlabelled_texts(path: Path | str, *, skip_bad: bool = False) -> list[str]:
    """Texts of a UTF-8 file: the column or key text of ``.csv`` or ``.jsonl``, or the lines of ``.txt`` that are not blank.

    Raises:
        DataError: a missing file or column, or rows that cannot be read.
    """
    return [text for _, text in read_numbered_texts(path, skip_bad=skip_bad)]


def read_numbered_texts(path: Path | str, *, skip_bad: bool = False) -> list[tuple[int, str]]:
    """:func:`read_unlabelled_texts` with the number of the line that each text stands in, from 1."""
    return [(int(row["line"]), row["text"]) for row in read_rows(Path(path), ("text",), skip_bad)]
