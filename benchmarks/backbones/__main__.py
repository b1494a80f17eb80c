"""Tries every backbone of the catalogue and writes docs/measured/backbones.md: what is cut, how exactly, and what is refused and why.

Usage: python -m benchmarks.backbones [PATTERN ...] [--part PART PARTS] [--again]

Resumable: results are kept in benchmarks/results/backbones.json, and what is there is tried again only with --again. Patterns
choose backbones by source (``torchvision:*``); with --part 0 2 it is every second one, so that two processes share the work.

Weights are random and the images small where the network takes them: what is checked is structure, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence

import torch

import exitlens as xl
from benchmarks.backbones.attempt import Row, attach, passes, try_backbone
from benchmarks.backbones.catalogue import BACKBONES, Backbone
from benchmarks.backbones.edge import try_edge
from benchmarks.backbones.page import write_page
from benchmarks.side_by_side import is_chosen
from benchmarks.store import RESULTS, write_atomically

KEPT = RESULTS / "backbones.json"


def read_kept() -> dict[str, Row]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), metavar=("PART", "PARTS"))
    parser.add_argument("--again", action="store_true", help="also those that are there")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for chosen in BACKBONES[given.part[0] :: given.part[1]]:
        row = {} if given.again else read_kept().get(chosen.source, {})
        if "error" not in row and "edge" not in row and is_chosen(chosen.source, given.patterns):
            started = time.perf_counter()
            row = measure(chosen, row)
            verdict = "ok" if passes(row) else row.get("error", row)
            print(f"{time.perf_counter() - started:5.1f} s  {chosen.source}: {verdict}", flush=True)
            write_atomically(KEPT, json.dumps(read_kept() | {chosen.source: row}, indent=1) + "\n")
    write_page(read_kept())


def measure(chosen: Backbone, row: Row) -> Row:
    """All about one backbone; ``row`` has what is known already."""
    try:
        row |= {} if row else try_backbone(chosen)
        return row | try_edge(attach(chosen, row["cuts"]))
    except xl.ExitlensError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"error": f"not ours! {type(error).__name__}: {str(error)[:200]}"}


if __name__ == "__main__":
    main()
