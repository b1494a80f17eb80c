"""The journal of a policy that adapts: lines in files of a folder, which processes share and which outlive them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from exitlens.errors import InputError, OutputError
from exitlens.io import make_directory, write_json

SETTINGS, LOCK = "settings.json", ".lock"
PATIENCE = 2.0  # seconds in which a process that is about to end may leave its place
TAIL = 1 << 20  # bytes at the end of a file from which a process that starts learns
LARGEST = 32 << 20  # bytes of a file; a full one is kept beside the new one, in place of the one before
Line = dict[str, Any]  # "time" in seconds since 1970, and what the writer says


class Journal:
    """Lines that a process appends to its own file, and reads from those of others.

    A folder has places for a fixed number of processes. Each holds a place by a lock, which the system frees when the
    process ends, however it ends; then another process goes on in its file.

    Args:
        folder: made if it is not there.
        places: number of processes that can write at once.
        facts: JSON-ready; a folder that was made with others is refused with :class:`InputError`.
    """

    def __init__(self, folder: Path, places: int, facts: Line) -> None:
        make_directory(folder, "folder")
        self.folder, self.places = folder, places
        try:
            with FileLock(folder / LOCK):
                _agree(folder / SETTINGS, facts)
                self.place, self._lock = self._claim()
            self._path = folder / f"{self.place}.jsonl"
            self._file = self._open()
        except OSError as error:
            raise OutputError(f"folder: {folder} cannot be written ({error}). Fix: choose another.") from error
        self._ends = {place: 0 for place in range(places) if place != self.place}  # bytes read of the others' files

    def _claim(self) -> tuple[int, FileLock]:
        until = time.monotonic() + PATIENCE
        while True:
            for place in range(self.places):
                lock = FileLock(self.folder / f"{place}.lock", thread_local=False)
                with suppress(Timeout):
                    lock.acquire(blocking=False)
                    return place, lock
            if time.monotonic() > until:
                break
            time.sleep(PATIENCE / 100)
        raise InputError(
            f"folder: {self.folder} has places for {self.places} processes, and all are taken. Fix: end one of them, or use "
            "a folder made for more."
        )

    def _open(self) -> int:
        """Open the own file, and remove a line of it that was not written to its end."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = self._path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)
        return file

    def read_last(self) -> Line | None:
        """Return the last line of the process that had this place before; ``None``: there was none."""
        lines = [line for path in (self._path.with_suffix(".1.jsonl"), self._path) for line in read_lines(path, TAIL)]
        return lines[-1] if lines else None

    def read_past(self) -> list[Line]:
        """Return the latest lines of all, in the order of their times; :meth:`read_new` goes on from there."""
        for place in self._ends:
            self._ends[place] = _find_end(self.folder / f"{place}.jsonl")
        return sorted(
            (line for path in list_files(self.folder) for line in read_lines(path, TAIL)), key=lambda line: line["time"]
        )

    def read_new(self) -> Iterator[Line]:
        """Yield what others have written since the last call."""
        for place, end in self._ends.items():
            path = self.folder / f"{place}.jsonl"
            size = path.stat().st_size if path.exists() else 0
            if size == end:
                continue
            with path.open("rb") as file:
                file.seek(end if size > end else 0)  # it is another file, if it is shorter
                content = file.read()
                self._ends[place] = file.tell() - (len(content) - content.rfind(b"\n") - 1)
            yield from parse_lines(content[: content.rfind(b"\n") + 1])

    def write(self, **facts: Any) -> None:
        """Append a line; raise ``OSError`` if it cannot be written."""
        if os.fstat(self._file).st_size > LARGEST:
            self._path.replace(self._path.with_suffix(".1.jsonl"))
            os.close(self._file)
            self._file = self._open()
        line = (
            json.dumps({"time": round(time.time(), 3), "place": self.place} | facts, separators=(",", ":")).encode() + b"\n"
        )
        if os.write(self._file, line) < len(line):
            raise OSError("the disk is full")

    def close(self) -> None:
        """Give the place back."""
        if self._lock.is_locked:
            os.close(self._file)
            self._lock.release()


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder's journal."""
    return sorted(folder.glob("*.jsonl"))


def read_lines(path: Path, most: int = 0) -> list[Line]:
    """Return the whole lines of a file, or those in its last ``most`` bytes; nothing of a file that is not there."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - most) if most else 0
        file.seek(start)
        content = file.read()
    if start:
        content = content[content.find(b"\n") + 1 :]
    return list(parse_lines(content[: content.rfind(b"\n") + 1]))


def parse_lines(content: bytes) -> Iterator[Line]:
    """Yield lines, without those that a broken disk or an editor has damaged."""
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("time"), int | float):
            yield line


def _find_end(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _agree(path: Path, facts: Line) -> None:
    """Write the facts, or raise :class:`InputError` if others are there."""
    wanted = json.loads(json.dumps(facts))
    if not path.exists():
        write_json(path, wanted)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if differ := [name for name, value in wanted.items() if before.get(name) != value]:
        name = differ[0]
        raise InputError(
            f"folder: {path.parent} was made with {name}={before.get(name)!r:.60}, and {wanted[name]!r:.60} is asked for. "
            "Fix: choose another folder, which begins a new promise."
        )
