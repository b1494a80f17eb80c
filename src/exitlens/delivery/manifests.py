"""What lies in a directory, with checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exitlens.io import write_text


def write_manifest(path: Path, files: Sequence[Path], facts: dict[str, Any]) -> None:
    """Says what lies beside it: every file with its SHA-256."""
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    write_text(path, json.dumps(facts | {"sha256": sums}, indent=1) + "\n")
