"""The journal of a policy that adapts: lines in files of a folder, which processes share and which outlive them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from exitlens.errors import InputError, OutputError
from exitlens.io import make_directory, write_json

SETTINGS, LOCK = "settings.json", ".lock"
PATIENCE = 2.0  # seconds in which a process that is about to end may leave its place
TAIL = 1 << 20  # bytes at the end of a file from which a process that starts learns
MUCH = 1 << 18  # bytes at the end of what others have written since the last time, of which all is read
LARGEST = 32 << 20  # bytes of a file; a full one is kept beside the new one, in place of the one before
SCORED_BY = "score", "temperatures", "network", "gate"  # what of a policy, as its ``to_dict`` names it, decides its scores
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
                _check_settings(folder / SETTINGS, facts)
                self.place, self._lock = self._claim()
            self._process = os.getpid()
            self._path = folder / f"{self.place}.jsonl"
            self._file = _open_to_append(self._path)
        except OSError as error:
            raise OutputError(f"folder: {folder} cannot be written ({error}). Fix: choose another.") from error
        # the others' files, as the system numbers them, and how many bytes of each were read
        self._read = {place: (0, 0) for place in range(places) if place != self.place}
        self._reading = threading.Lock()

    def _claim(self) -> tuple[int, FileLock]:
        until = time.monotonic() + PATIENCE
        while True:
            for place in range(self.places):
                lock = FileLock(self.folder / f"{place}.lock", thread_local=False)
                with suppress(Timeout, RuntimeError):  # the second, if this thread holds it by another object
                    lock.acquire(blocking=False)
                    return place, lock
            if time.monotonic() > until:
                break
            time.sleep(PATIENCE / 100)
        raise NoPlaceError(
            f"folder: all {self.places} places of {self.folder} are in use. Fix: end a process that uses it, or make a "
            "folder for more processes."
        )

    def read_last(self) -> Line | None:
        """Return the last line of the process that had this place before; ``None``: there was none.

        Raises :class:`InputError` if it is damaged.
        """
        for path in (self._path, _name_former(self._path)):
            if text := _read_end(path):
                try:
                    line: Line = json.loads(text)
                    return line | {"time": float(line["time"])}
                except (ValueError, KeyError, TypeError) as error:
                    words = "Fix: choose another folder, which begins a new promise."
                    raise InputError(f"folder: {path} is damaged at its end ({error!r:.80}). {words}") from error
        return None

    def read_past(self) -> dict[int, list[Line]]:
        """Return the latest lines of each place, in their order; :meth:`read_new` goes on from there."""
        past = {}
        for place in range(self.places):
            path = self.folder / f"{place}.jsonl"
            if place in self._read and path.exists():
                self._read[place] = path.stat().st_ino, _find_end(path)  # a line that comes now is read twice at worst
            is_short = not path.exists() or path.stat().st_size < TAIL
            before = read_lines(_name_former(path), TAIL) if is_short else []
            past[place] = before + read_lines(path, TAIL)
        return past

    def read_new(self) -> list[Line]:
        """Return what others have written since the last call; of very much, the last lines and those about labels."""
        lines: list[Line] = []
        with self._reading:
            for place, (number, end) in self._read.items():
                path, content = self.folder / f"{place}.jsonl", b""
                with suppress(FileNotFoundError):  # the other one is just making another file
                    state, former = path.stat(), _name_former(path)
                    if number not in (0, state.st_ino):  # it is a new file; what was left of the one before comes first
                        is_there = former.exists() and former.stat().st_ino == number
                        content, end = _read_from(former, end) if is_there else b"", 0
                    if state.st_size > end:
                        content += (added := _read_from(path, end))
                        end += len(added)
                    self._read[place] = state.st_ino, end
                early, late = content[:-MUCH], content[-MUCH:]
                at = late.find(b"\n") + 1 if early else 0
                told = [text for text in (early + late[:at]).splitlines() if b'"feedback"' in text]
                lines += [*parse_lines(told), *parse_lines(late[at:].splitlines())]
        return lines

    def write(self, **facts: Any) -> None:
        """Append a line; raise ``OSError`` if it cannot be written."""
        if os.getpid() != self._process:
            raise OSError("it belongs to the process that this one is a copy of")
        state = os.fstat(self._file)
        if not state.st_nlink:
            raise OSError("it was removed")
        if state.st_size > LARGEST:
            self._path.replace(_name_former(self._path))
            full, self._file = self._file, _open_to_append(self._path)
            os.close(full)
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


class NoPlaceError(InputError):
    """All places of a folder are taken: another process may end."""


def _open_to_append(path: Path) -> int:
    """Open a file, and remove a line of it that was not written to its end."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    end = _find_end(path)
    if end < path.stat().st_size:
        os.truncate(file, end)
    return file


def _name_former(path: Path) -> Path:
    """Return the name of the file that was full before this one."""
    return path.with_suffix(".1.jsonl")


def _read_from(path: Path, start: int) -> bytes:
    """Return the whole lines of a file from a place on."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    return content[: content.rfind(b"\n") + 1]


def _read_end(path: Path) -> bytes:
    """Return the last line of a file, however long it is; nothing of a file that is not there."""
    size, most = path.stat().st_size if path.exists() else 0, TAIL
    while size:
        content = _read_from(path, max(0, size - most)).rstrip(b"\n")
        at = content.rfind(b"\n")
        if at >= 0 or most >= size:
            return content[at + 1 :]
        most *= 8
    return b""


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder's journal."""
    return sorted(folder.glob("*.jsonl"))


def read_lines(path: Path, most: int = 0) -> list[Line]:
    """Return the whole lines of a file, or those in its last ``most`` bytes; nothing of a file that is not there."""
    if not path.exists():
        return []
    start = max(0, path.stat().st_size - most) if most else 0
    content = _read_from(path, start)
    return list(parse_lines(content[content.find(b"\n") + 1 if start else 0 :].splitlines()))


def parse_lines(texts: Iterable[bytes]) -> Iterator[Line]:
    """Yield lines, without those that a broken disk or an editor has damaged."""
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("time"), int | float):
            yield line


def _find_end(path: Path) -> int:
    """Return where the last whole line of a file ends."""
    size, most = path.stat().st_size if path.exists() else 0, TAIL
    while size:
        start = max(0, size - most)
        if content := _read_from(path, start):
            return start + len(content)
        if not start:
            break
        most *= 8
    return 0


def _check_settings(path: Path, facts: Line) -> None:
    """Write the facts, or raise :class:`InputError` if others are there."""
    wanted = json.loads(json.dumps(facts))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        before.get("limit")
    except (ValueError, AttributeError) as error:
        words = "Fix: choose another folder, which begins a new promise."
        raise InputError(f"folder: {path} is damaged ({error!r:.80}). {words}") from error
    if differ := [name for name, value in wanted.items() if before.get(name) != value]:
        name = differ[0]
        raise InputError(
            f"folder: expected one made with {name}={wanted[name]!r:.60}, got {path.parent} with {before.get(name)!r:.60}. "
            "Fix: choose another folder, which begins a new promise."
        )
