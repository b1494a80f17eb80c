"""Film reviews as in benchmarks.truth, and other texts that were rated in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

import exitlens as xl
from benchmarks.reviews import SETS, Sentence, download, parse_ratings, read_ratings, shuffle
from benchmarks.texts.lexicon import read_lexicon
from benchmarks.texts.runs import RUNS
from benchmarks.truth.tasks import DATA
from exitlens.types.preprocessing import TextPreprocess, import_tokenizers

OTHERS = tuple(name for name in SETS if name != "films")


@cache
def find_source() -> Path:
    """The source distribution, downloaded once."""
    folder = RUNS / "source"
    folder.mkdir(parents=True, exist_ok=True)
    return next(iter(sorted(folder.glob("*.tar.gz"))), None) or download(folder)


@cache
def load_lexicon() -> dict[str, float]:
    return read_lexicon(find_source())


def load_films(split: str, preprocess: TextPreprocess) -> xl.TextSet:
    """A split of the files that the task ``reviews`` of benchmarks.truth has made."""
    return xl.TextSet(*xl.read_texts(DATA / "reviews" / f"{split}.csv"), preprocess)


def load_others(name: str, classes: tuple[str, ...], preprocess: TextPreprocess) -> xl.TextSet:
    """All texts of another set whose rating is clear, in random order."""
    return make_set(shuffle(parse_ratings(read_ratings(find_source(), name))), classes, preprocess)


def measure_lengths(texts: Sequence[str], preprocess: TextPreprocess) -> dict[str, float]:
    """How many tokens 95 % of the texts have at most, and the share that is cut at the length that networks read."""
    tokenizer = import_tokenizers().Tokenizer.from_str(preprocess.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = torch.tensor([len(one.ids) for one in tokenizer.encode_batch(list(texts))], dtype=torch.float32)
    cut = (lengths > preprocess.length).float().mean().item()
    return {"length_95": lengths.quantile(0.95, interpolation="higher").item(), "cut": cut}


def make_set(sentences: list[Sentence], classes: tuple[str, ...], preprocess: TextPreprocess) -> xl.TextSet:
    labels = torch.tensor([classes.index(one.label) for one in sentences])
    return xl.TextSet([one.text for one in sentences], labels, classes, preprocess)
