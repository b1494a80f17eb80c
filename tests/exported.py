"""ONNX files of equal segments are written once in a test run and copied: PyTorch's exporter takes a second for each."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from exitlens.model.engine import onnx_files as files


def write_once(folder: Path) -> Callable[..., list[files.Written]]:
    """``write_segments`` with a memory in ``folder``, which all workers of a run have in common."""

    def write_or_copy(directory: Path, segments: Any, examples: Any, names: Any) -> list[files.Written]:
        digest = hashlib.sha256(repr((list(names), [(one.exit, len(one.bodies)) for one in segments])).encode())
        digest.update(repr({n: [tuple(t.shape) for t in one] for n, one in examples.items()}).encode())
        for segment in segments:
            for name, value in segment.state_dict().items():
                digest.update(name.encode() + value.numpy().tobytes())
            digest.update("".join(body.code for body in segment.bodies).encode())
        kept = folder / digest.hexdigest()
        with FileLock(kept.with_suffix(".lock")):
            if not (kept / "written").exists():
                kept.mkdir(exist_ok=True)
                (kept / "written").write_bytes(pickle.dumps(write(kept, segments, examples, names)))
        written: list[files.Written] = pickle.loads((kept / "written").read_bytes())
        return [one._replace(path=Path(shutil.copy(one.path, directory))) for one in written]

    write = files.write_segments
    return write_or_copy
