"""What was measured about a network before: the faithfulness that the demo kept beside its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

RESULT, TRAINING, MAIN = (
    "result.json",
    "training",
    "egt",
)  # of exitlens demo: its file, the folder of its runs, its own network


class Share(NamedTuple):
    """A deletion share: which part of what the occlusion oracle reaches over random cells a map reaches.

    ``error`` is its standard error, ``samples`` how many it was measured on.
    """

    value: float
    error: float
    samples: int


def read_shares(directory: Path, fingerprint: str, exits: int) -> tuple[Share | None, ...]:
    """Of every exit of a run, from a demo's result in its directory or above; ``None``: it is not known.

    Args:
        directory: a run's, or its bundle's.
        fingerprint: of the network, which the demo's own has to have.
        exits: how many it has.
    """
    unknown = (None,) * exits
    run = directory.resolve()
    run = run.parent if run.name == "bundle" else run
    inside = run.parent.name == TRAINING
    folder, name = (run.parent.parent, run.name) if inside else (run, MAIN)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if name == MAIN and result["policy"]["network"] != fingerprint:
            return unknown  # another network was put in its place
        row = next(one for one in result[name].values() if "deletion_share" in one)
        return _list_shares(row, exits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return unknown


def _list_shares(row: dict[str, Any], exits: int) -> tuple[Share | None, ...]:
    pairs = list(zip(row["deletion_share"], row["deletion_share_error"], strict=True))
    if len(pairs) != exits:
        raise ValueError
    return tuple(None if v is None else Share(float(v), float(e), int(row["oracle_samples"])) for v, e in pairs)
