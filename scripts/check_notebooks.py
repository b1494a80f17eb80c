"""Says which notebooks were saved with outputs: ``python -m scripts.check_notebooks examples/notebooks/tour.ipynb``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def count_outputs(notebook: Path) -> int:
    """Cells that have outputs, or the number of a run."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(bool(cell.get("outputs") or cell.get("execution_count")) for cell in cells)


def main(words: Sequence[str]) -> int:
    counts = {name: count_outputs(Path(name)) for name in words}
    for name, count in counts.items():
        if count:
            print(f"{name}: {count} cells have outputs: clear all outputs and save it again")
    return int(any(counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
