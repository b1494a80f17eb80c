"""The journal: places and their locks, lines that were not finished, files that are full, and what others write."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest

from exitlens.errors import InputError, OutputError
from exitlens.model.engine import journal
from exitlens.model.engine.journal import Journal, list_files, read_lines

FACTS = {"limit": 0.1, "temperatures": (1.0, 1.0)}


@pytest.fixture
def open_journal(tmp_path):
    """A function that opens a journal of the folder, which is closed after the test."""
    opened = []

    def open_(places=2, facts=FACTS):
        opened.append(Journal(tmp_path / "state", places, facts))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_processes_read_what_the_others_write(open_journal):
    first, second = open_journal(), open_journal()
    assert (first.place, second.place) == (0, 1)
    first.write(number=1)
    first.write(number=2)
    assert [line["number"] for line in second.read_new()] == [1, 2]
    assert second.read_new() == first.read_new() == []
    second.write(number=3)
    assert [line["number"] for line in first.read_new()] == [3]
    assert first.read_last()["number"] == 2


def test_the_next_process_goes_on_in_the_same_place(open_journal, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.0)
    first, other = open_journal(), open_journal()
    first.write(number=1)
    other.write(number=2)
    with pytest.raises(InputError, match=r"all 2 places of .* are in use. Fix: "):
        open_journal()
    first.close()
    again = open_journal()
    assert (again.place, again.read_last()["number"]) == (0, 1)
    assert {place: [line["number"] for line in lines] for place, lines in again.read_past().items()} == {0: [1], 1: [2]}
    assert again.read_new() == []


def test_a_place_that_the_same_thread_holds_is_taken(open_journal, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.0)
    open_journal(places=1)
    with pytest.raises(journal.NoPlaceError, match="all 1 places"):
        open_journal(places=1)


def hold_and_write(folder, ready):
    Journal(folder, 1, FACTS).write(number=7)
    ready.set()
    signal.pause()


def test_a_process_that_is_killed_leaves_its_place(open_journal, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_and_write, args=(tmp_path / "state", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert open_journal(places=1).read_last()["number"] == 7


def test_a_line_that_was_not_finished_is_removed_and_damaged_ones_are_passed_over(open_journal, tmp_path):
    first = open_journal()
    first.write(number=1)
    first.close()
    path = tmp_path / "state" / "0.jsonl"
    path.write_text(path.read_text() + 'no JSON\n[1]\n{"number": 5}\n{"time": 1, "num')
    again = open_journal()
    again.write(number=2)
    assert [line["number"] for line in read_lines(path)] == [1, 2]
    assert path.read_text().splitlines()[-2] == '{"number": 5}'


def test_a_full_file_is_kept_once(open_journal, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LARGEST", 100)
    first, second = open_journal(), open_journal()
    for number in range(12):
        first.write(number=number)
        assert [line["number"] for line in second.read_new()] == [number]
    files = list_files(tmp_path / "state")
    assert [path.name for path in files] == ["0.1.jsonl", "0.jsonl", "1.jsonl"]
    assert all(path.stat().st_size < 200 for path in files)
    assert first.read_last()["number"] == 11
    assert second.read_past()[0][-1]["number"] == 11
    first.write(number=12)
    first.write(number=13)
    first.write(number=14)  # more than a file since the last look: what is left of the full one comes first
    assert [line["number"] for line in second.read_new()][-3:] == [12, 13, 14]


def test_only_the_end_of_a_long_file_is_read_and_whole_lines_of_it(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"time": n}) + "\n" for n in range(100)))
    assert [line["time"] for line in read_lines(path, 40)] == [97, 98, 99]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_folder_of_something_else_and_one_that_cannot_be_are_refused(open_journal, tmp_path):
    open_journal()
    with pytest.raises(InputError, match=r"expected one made with limit=0.2, got .* with 0.1. Fix: choose another folder"):
        open_journal(facts=FACTS | {"limit": 0.2})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"folder: .* cannot be a directory"):
        Journal(tmp_path / "file", 1, FACTS)


def test_a_line_that_is_cut_off_is_an_error(open_journal, monkeypatch):
    first = open_journal()
    monkeypatch.setattr(os, "write", lambda *_: 3)
    with pytest.raises(OSError, match="the disk is full"):
        first.write(number=1)


def test_a_last_line_of_any_length_is_read_and_a_damaged_one_is_refused(open_journal, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "TAIL", 50)
    first = open_journal()
    first.write(number=1)
    first.write(text="x" * 5000)
    assert first.read_last()["text"] == "x" * 5000
    assert first.read_past()[0] == []  # nothing whole in so few bytes
    first.close()
    path = tmp_path / "state" / "0.jsonl"
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(InputError, match=r"0.jsonl is damaged at its end .* Fix: choose another folder"):
        open_journal().read_last()


def test_of_very_much_that_is_new_labels_are_read_and_the_last_lines(open_journal, monkeypatch):
    monkeypatch.setattr(journal, "MUCH", 200)
    first, second = open_journal(), open_journal()
    first.write(feedback={"name": "a/0"})
    for number in range(50):
        first.write(number=number)
    told, *others = second.read_new()
    assert told["feedback"] == {"name": "a/0"}
    assert [line["number"] for line in others] == [46, 47, 48, 49]


def test_a_folder_that_is_removed_or_damaged(open_journal, tmp_path):
    first = open_journal()
    first.write(number=1)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(OSError, match="it was removed"):
        first.write(number=2)
    first.close()
    first.close()  # twice is once
    for content in ("[]", "{", "null"):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "settings.json").write_text(content)
        with pytest.raises(InputError, match=r"settings.json is damaged .* Fix: "):
            open_journal()


def test_the_file_of_another_may_be_missing_for_a_moment(open_journal, tmp_path):
    first, second = open_journal(), open_journal()
    first.write(number=1)
    (tmp_path / "state" / "0.jsonl").rename(tmp_path / "state" / "0.1.jsonl")
    assert second.read_new() == []
    (tmp_path / "state" / "0.1.jsonl").rename(tmp_path / "state" / "0.jsonl")
    assert len(second.read_new()) == 1
