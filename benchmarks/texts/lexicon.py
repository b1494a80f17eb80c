"""Words that raters call good or bad, by themselves: where in a sentence they stand."""

from __future__ import annotations

import re
import string
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reviews import read_member
from exitlens.types.preprocessing import TextPreprocess, import_tokenizers

FILE = "vader_lexicon.txt"


def read_lexicon(source: Path) -> dict[str, float]:
    """The words of VADER's lexicon (7,500, in lower case) and the mean of ten ratings of each, from a source distribution or the file itself."""
    rows = [line.split("\t") for line in read_member(source, FILE).split("\n") if line.strip()]
    return {row[0].strip().lower(): float(row[1]) for row in rows}


def find_words(text: str, lexicon: Container[str]) -> list[tuple[int, int]]:
    """Where words of a lexicon begin and end, in characters: as they stand between blanks, or without the marks around them."""
    found = []
    for word in re.finditer(r"\S+", text):
        bare = word[0].strip(string.punctuation)
        if word[0].lower() in lexicon:
            found.append(word.span())
        elif bare.lower() in lexicon:
            start = word.start() + word[0].index(bare)
            found.append((start, start + len(bare)))
    return found


def add_up(text: str, lexicon: Mapping[str, float]) -> float:
    """The sum of the ratings of a text's words; 0 where it has none."""
    return sum(lexicon[text[start:end].lower()] for start, end in find_words(text, lexicon))


def mark_words(texts: Sequence[str], lexicon: Container[str], preprocess: TextPreprocess) -> Tensor:  # -> (N,L) bool
    """Which tokens of each text belong to a word of the lexicon, all pieces of it."""
    tokenizer = import_tokenizers().Tokenizer.from_str(preprocess.tokenizer)
    tokenizer.enable_truncation(preprocess.length)
    tokenizer.no_padding()
    masks = torch.zeros(len(texts), preprocess.length, dtype=torch.bool)
    for row, text, encoded in zip(masks, texts, tokenizer.encode_batch(list(texts)), strict=True):
        words = find_words(text, lexicon)
        for i, (start, end) in enumerate(encoded.offsets):
            row[i] = any(start < last and first < end for first, last in words)
    return masks
