"""Files that appear complete or not at all: text, JSON, tensors, and manifests with checksums."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exitlens.errors import BundleError, OutputError


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path: what is written there replaces ``path``, or is removed after an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directory(path: Path, argument: str) -> None:
    """Make a directory unless it is there already; :class:`OutputError` names the argument if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{argument}: {path} cannot be a directory ({error}). Fix: choose another.") from error


@contextmanager
def replace_directory(target: Path, replaced: Collection[str]) -> Iterator[Path]:
    """Yield a temporary directory, which takes the place of ``target``, complete or not at all.

    Files in an existing ``target`` stay, except those whose names are in ``replaced``.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if not target.exists():
            temporary.rename(target)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / target.name
        target.rename(old)  # in this order, nothing is lost if it is interrupted
        temporary.rename(target)
        for path in old.iterdir():
            if path.name not in replaced:
                path.rename(target / path.name)
        shutil.rmtree(old.parent)
    except (OSError, OutputError) as error:
        raise BundleError(f"directory: {target} cannot be written ({error}). Fix: choose another directory.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise :class:`BundleError` if it is not valid."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}). Fix: copy the bundle again.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any], name: str = "out") -> None:
    """Write tensors and a JSON note as safetensors, atomically; ``name`` is the argument that an error is about."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        with replace_atomically(path) as temporary:
            save_file(plain, temporary, metadata={"note": json.dumps(note)})
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{name}: {path} cannot be written ({error}). Fix: make room there, or choose a directory that has some "
            "(a fit goes on from its last whole epoch with --resume)."
        ) from error


def write_manifest(path: Path, files: Sequence[Path], facts: Mapping[str, Any]) -> None:
    """Write ``facts`` and the SHA-256 of every file as JSON, atomically."""
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    write_json(path, {**facts, "sha256": sums})


def verify_checksums(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise :class:`BundleError` unless every file that a manifest lists exists and is as it was written."""
    sums = manifest.get("sha256")
    if not isinstance(sums, dict):
        raise BundleError(f"{directory}: its manifest has no checksums. Fix: copy it again.")
    for name, known in sums.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(f"{path}: missing. Fix: copy it again from where it was written.")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known:
                raise BundleError(f"{path}: altered or truncated (its checksum differs). Fix: copy it again.")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote; raise :class:`BundleError` for a missing, truncated or other file."""
    if not path.is_file():
        raise BundleError(f"{path}: no such file. Fix: check the path.")
    try:
        with safe_open(path, framework="pt") as handle:
            note = json.loads((handle.metadata() or {}).get("note", "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, note  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"{path}: damaged or truncated ({error}). Fix: write it again from the source run.") from error


class RowStore:
    """Rows of tensors that come batch by batch: up to ``limit`` bytes in memory, then in nameless, mapped files."""

    def __init__(self, folder: Path | None = None, limit: int = 1 << 26) -> None:
        self._folder, self._limit, self._held = folder, limit, 0
        self._rows: dict[str, list[Tensor]] = {}
        self._files: dict[str, tuple[IO[bytes], Tensor]] = {}  # each with a tensor without rows
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # those of tensors that are still alive

    def add(self, name: str, rows: Tensor) -> None:  # (n,*S), of one shape and dtype for each name
        """Add rows; raise :class:`OutputError` if the disk is full."""
        if name not in self._files and self._held <= self._limit:
            self._rows.setdefault(name, []).append(rows)
            self._held += rows.nbytes
            return
        try:
            for key, batches in self._rows.items():
                for batch in batches:
                    self._write(key, batch)
            self._rows = {}
            self._write(name, rows)
        except OSError as error:
            raise OutputError(
                f"trace_dir: {self._folder or tempfile.gettempdir()} cannot take the trace ({error}). Fix: give collect "
                "a trace_dir with more room, or set TMPDIR."
            ) from error

    def _write(self, name: str, rows: Tensor) -> None:
        if name not in self._files:
            self._files[name] = (tempfile.TemporaryFile(dir=self._folder), rows[:0].clone())  # noqa: SIM115
        self._files[name][0].write(rows.contiguous().numpy().data)

    def take(self, name: str) -> Tensor:
        """Return all rows of that name; the store forgets them."""
        if name not in self._files:
            return torch.cat(self._rows.pop(name))
        file, empty = self._files.pop(name)
        with file:
            file.flush()
            memory = mmap.mmap(file.fileno(), 0)
        self._maps.add(memory)
        return torch.frombuffer(memory, dtype=empty.dtype).view(-1, *empty.shape[1:])

    def release(self) -> None:
        """Release the memory of rows that were taken and read, until they are read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED)
