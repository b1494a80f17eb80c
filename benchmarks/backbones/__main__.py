"""Tries every backbone of the catalogue and writes docs/backbones.md: what is cut, how exactly, and what is refused and why.

Usage: python -m benchmarks.backbones [PART PARTS]   (resumable: results are kept in benchmarks/results/backbones.json;
with PART 0 and PARTS 2 every second backbone, so that two processes share the work)

Weights are random and the images small where the network takes them: what is checked is structure, not accuracy.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch

import exitlens as xl
from benchmarks.backbones.attempt import Row, attach, passes, try_backbone
from benchmarks.backbones.catalogue import BACKBONES
from benchmarks.backbones.edge import try_edge
from benchmarks.backbones.page import write_page
from benchmarks.store import RESULTS, write_atomically

KEPT = RESULTS / "backbones.json"


def read_kept() -> dict[str, Row]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    part, parts = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1)
    for _, source, size in BACKBONES[part::parts]:
        row = read_kept().get(source, {})
        if "error" in row or "edge" in row:
            continue
        started = time.perf_counter()
        try:
            row |= {} if row else try_backbone(source, size)
            row |= try_edge(attach(source, row["cuts"], size))
        except xl.ExitlensError as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            row = {"error": f"not ours! {type(error).__name__}: {str(error)[:200]}"}
        verdict = "ok" if passes(row) else row.get("error", row)
        print(f"{time.perf_counter() - started:5.1f} s  {source}: {verdict}", flush=True)
        write_atomically(KEPT, json.dumps(read_kept() | {source: row}, indent=1) + "\n")
    write_page(read_kept())


if __name__ == "__main__":
    main()
