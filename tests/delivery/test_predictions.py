"""A file of predictions outlasts interruptions, kills and full disks, and is gone on with."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery import predictions
from exitlens.delivery.predictions import PredictionFile, Row, name_rows, place_mask, read_parquet, start_watch, write_masks
from tests.conftest import random_trace

MADE_BY = {"network": "abc", "policy": {"thresholds": [0.5, "never"]}}
ROWS = [Row(f"photos/{i:03}.png", ("cat", "dog")[i % 2], i % 3, round(0.5 + i / 1000, 6)) for i in range(40)]
BATCHES = [ROWS[i : i + 8] for i in range(0, 40, 8)]
SUFFIXES = [".csv", ".jsonl", ".parquet"]


def read(path: Path) -> list[Row]:
    """What another program sees."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".jsonl":
        return [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    with path.open(newline="", errors="surrogateescape") as handle:
        rows = [tuple(row.values()) for row in csv.DictReader(handle)]
    return [
        Row(file, label, int(k), float(p), float(estimate) if estimate else None) for file, label, k, p, estimate in rows
    ]


def write(path: Path, batches: Iterable[list[Row]], resume: bool = False) -> None:
    with PredictionFile(path, MADE_BY, resume=resume) as file:
        for batch in batches:
            file.append(batch)
        file.finish()


def kill(path: Path, batches: list[list[Row]]) -> None:
    """Leaves what a process leaves that is killed after these batches."""
    file = PredictionFile(path, MADE_BY)
    for batch in batches:
        file.append(batch)
    file._handle.close()


def interrupted(batches: list[list[Row]]) -> Iterator[list[Row]]:
    yield from batches
    raise KeyboardInterrupt


def lines_of(path: Path) -> Path:
    """Where the rows are appended to."""
    return path.with_name(f".{path.name}.partial.jsonl") if path.suffix == ".parquet" else path


@contextmanager
def disk_of(size: int):
    """No file may become larger than ``size`` bytes. Nothing is compiled meanwhile: Python would keep a truncated ``.pyc``."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiles


def find_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path) -> Path:
    return tmp_path / "new" / f"p{request.param}"


def test_round_trip_leaves_nothing_beside_the_file(path):
    write(path, BATCHES)
    assert read(path) == ROWS
    assert list(path.parent.iterdir()) == [path]


def test_hostile_names(path):
    names = ['a,b"c".png', "two\nlines\r\n.png", '"', "[/red].png", "ünï/文.png", "\u2028.png", "\udcff\udc80.png"]
    rows = [Row(name, "a, b", 0, 0.5, 0.125) for name in names]
    kill(path, [rows[:3]])
    assert PredictionFile(path, MADE_BY, resume=True).rows == rows[:3]
    write(path, [rows[3:]], resume=True)
    seen = read(path)
    if path.suffix == ".parquet":  # it holds UTF-8 only
        rows[-1] = rows[-1]._replace(file="\\udcff\\udc80.png")
    assert seen == rows


def test_an_interrupted_run_is_gone_on_with(path):
    write(path.with_name(f"whole{path.suffix}"), BATCHES)
    with pytest.raises(KeyboardInterrupt) as stop:
        write(path, interrupted(BATCHES[:2]))
    assert stop.value.__notes__ == [f"16 rows are in {path}: the same command with --resume goes on"]
    assert read(path) == ROWS[:16]
    with pytest.raises(xl.errors.OutputExistsError, match="--resume"):
        PredictionFile(path, MADE_BY)
    assert PredictionFile(path, MADE_BY, resume=True).rows == ROWS[:16]
    write(path, BATCHES[2:], resume=True)
    assert path.read_bytes() == path.with_name(f"whole{path.suffix}").read_bytes()
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("lost", [1, 2, 3, 20])
def test_a_partial_last_row_is_cut_off(path, lost):
    kill(path, BATCHES[:2])
    content = lines_of(path).read_bytes()
    lines_of(path).write_bytes(content[:-lost])
    assert PredictionFile(path, MADE_BY, resume=True).rows == ROWS[:15]
    write(path, [ROWS[15:]], resume=True)
    assert read(path) == ROWS


def test_a_partial_row_that_ends_inside_quotes(tmp_path):
    path = tmp_path / "p.csv"
    kill(path, [[Row('x"\n".png', "a", 0, 1.0), Row('y"\n\n.png', "a", 0, 1.0)]])
    path.write_bytes(path.read_bytes()[: -len(b'.png",a,0,1.0\r\n')])
    assert [row.file for row in PredictionFile(path, MADE_BY, resume=True).rows] == ['x"\n".png']
    assert len(read(path)) == 1


@pytest.mark.parametrize("size", [0, 5, 26, 28, 50])
def test_killed_in_the_first_row(path, size):
    kill(path, BATCHES[:1])
    lines_of(path).write_bytes(lines_of(path).read_bytes()[:size])
    write(path, BATCHES, resume=True)
    assert read(path) == ROWS


def test_rows_of_a_killed_parquet_run_are_not_lost(tmp_path):
    path = tmp_path / "p.parquet"
    kill(path, BATCHES[:3])
    assert not path.exists()
    with pytest.raises(
        xl.errors.OutputExistsError, match=r"left its rows in .*\.p\.parquet\.partial\.jsonl\. Fix: pass --resume"
    ):
        PredictionFile(path, MADE_BY)
    with pytest.raises(ValueError, match="other"), PredictionFile(path, MADE_BY, resume=True):
        raise ValueError("other")
    assert read(path) == ROWS[:24]


def test_killed_while_finishing(tmp_path):
    path = tmp_path / "p.parquet"
    kill(path, BATCHES[:4])
    record = (tmp_path / ".p.parquet.run.json").read_bytes()
    write(path, [], resume=True)
    (tmp_path / ".p.parquet.run.json").write_bytes(record)
    write(path, BATCHES[4:], resume=True)
    assert read(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(path):
    limit = 1000  # less than the smallest Parquet file: its rows stay in the journal
    with disk_of(limit), pytest.raises(xl.errors.OutputError) as full:
        write(path, BATCHES)
    lines = lines_of(path)
    assert lines.stat().st_size <= limit
    assert {p.name for p in path.parent.iterdir()} == {lines.name, f".{path.name}.run.json"}
    kept = len(PredictionFile(path, MADE_BY, resume=True).rows)
    assert 8 <= kept < 40
    assert str(full.value) == (
        f"out: {path} cannot be written (File too large). Fix: make room there; {kept} rows are in {lines}: the same "
        f"command with --resume goes on"
    )
    write(path, [ROWS[kept:]], resume=True)
    assert read(path) == ROWS


def test_no_space_for_the_first_row(path, monkeypatch):
    full = SimpleNamespace(write=find_no_space, tell=lambda: 0, close=find_no_space)
    monkeypatch.setattr(predictions, "open_lines", lambda path, new: (path.touch(), full)[1])
    with pytest.raises(xl.errors.OutputError, match=r"No space left on device.*no row was written"):
        write(path, BATCHES)
    assert list(path.parent.iterdir()) == []


def test_no_space_at_the_end(path, monkeypatch):
    with PredictionFile(path, MADE_BY) as file:
        file.append(ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", find_no_space)
            with pytest.raises(xl.errors.OutputError, match=rf"No space left.*40 rows are in {lines_of(path)}"):
                file.finish()
    write(path, [], resume=True)
    assert read(path) == ROWS
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(xl.errors.OutputError, match="cannot be written"):
        write(tmp_path / "file" / "p.csv", BATCHES)
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(xl.errors.OutputError, match="cannot be read"):
        PredictionFile(tmp_path / "d.csv", MADE_BY, resume=True)


def test_rows_of_something_else_are_not_gone_on_with(path):
    kill(path, BATCHES[:2])
    before = lines_of(path).read_bytes() + b"partial"
    lines_of(path).write_bytes(before)
    other = MADE_BY | {"policy": {"thresholds": [0.6, "never"]}}
    with pytest.raises(xl.errors.OutputExistsError, match=r"begun with another policy \(.*0\.5.*now.*0\.6") as error:
        PredictionFile(path, other, resume=True)
    assert "network" not in str(error.value)
    with pytest.raises(xl.errors.OutputExistsError, match=r'another network \("abc", now "abd"\)'):
        PredictionFile(path, MADE_BY | {"network": "abd"}, resume=True)
    record = path.with_name(f".{path.name}.run.json")
    record.write_text("{")
    with pytest.raises(xl.errors.OutputExistsError, match=r"run\.json is damaged"):
        PredictionFile(path, MADE_BY, resume=True)
    record.write_text("[]")
    with pytest.raises(xl.errors.OutputExistsError, match="another network"):
        PredictionFile(path, MADE_BY, resume=True)
    assert lines_of(path).read_bytes() == before


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        b"precious",
        b"a,b\n1,2\n",
        b"file,label,exit,confidence\r\nx,y\r\n",
        b"file,label,exit,confidence\nx,y,first,1\n",
        b"file,label,exit,confidence,trust\r\nx,y,first,1,\r\n",
        b'file,label,exit,confidence\n"x"y,y,1,1\n',
        b'{"file": 1}\n',
        b'{"file": \n',
        b"PAR1",
    ],
)
def test_a_file_of_another_kind_is_left_alone(path, content, begun):
    path.parent.mkdir()
    path.write_bytes(content)
    if begun:
        path.with_name(f".{path.name}.run.json").write_text(json.dumps(MADE_BY))
    with pytest.raises(xl.errors.OutputExistsError, match="choose another file"):
        PredictionFile(path, MADE_BY, resume=True)
    assert path.read_bytes() == content


def test_a_parquet_file_of_other_columns(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "p.parquet")
    with pytest.raises(xl.errors.OutputExistsError, match=r"its columns are \['x'\]"):
        PredictionFile(tmp_path / "p.parquet", MADE_BY, resume=True)


def test_a_complete_file_is_complete(path):
    write(path, BATCHES)
    before = path.read_bytes()
    write(path, [], resume=True)
    with pytest.raises(xl.errors.OutputExistsError, match=r"is complete, or lost its record .* lacks new\.png") as error:
        write(path, [[Row("new.png", "cat", 0, 1.0)]], resume=True)
    assert not hasattr(error.value, "__notes__")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_before_the_first_row(path):
    with pytest.raises(xl.errors.DataError) as error, PredictionFile(path, MADE_BY):
        raise xl.errors.DataError("no images")
    assert error.value.__notes__ == [f"no row was written to {path}"]
    assert not path.parent.exists()


def test_the_case_of_suffixes_does_not_matter_nor_does_resuming_what_never_began(tmp_path):
    write(tmp_path / "p.CSV", BATCHES, resume=True)
    assert read(tmp_path / "p.CSV") == ROWS


@pytest.mark.parametrize("name", ["p", "p.txt", "p.csv.gz"])
def test_other_suffixes(name):
    with pytest.raises(xl.errors.InputError, match=r"\.csv, \.jsonl or \.parquet"):
        PredictionFile(Path(name), MADE_BY)


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"pip install 'exitlens\[parquet\]'"):
        PredictionFile(tmp_path / "p.parquet", MADE_BY)
    write(tmp_path / "p.csv", BATCHES)


def test_rows_have_the_names_of_samples_that_were_read_ahead(net, images):
    samples = SimpleNamespace(files=[Path(f"{i}.png") for i in range(40)])
    net.describe(classes=("a", "b", "c", "d"))
    policy = xl.Policy((0.5, 0.5))
    predictions = [xl.predict(net, part, policy) for part in images.split(16)]
    batches = list(name_rows(net, predictions, samples))
    assert [len(rows) for rows in batches] == [16, 16, 8]
    rows = [row for batch in batches for row in batch]
    assert [row.file for row in rows] == [f"{i}.png" for i in range(40)]
    labels = torch.cat([pred.labels for pred in predictions])
    assert [row.label for row in rows] == ["abcd"[i] for i in labels.tolist()]
    assert rows[0].trust is None


@pytest.fixture
def policy():
    return xl.calibrate(random_trace(200), max_accuracy_drop=0.05)


def predict_files(count: int, size: int):
    p = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    parts = p.split(size)
    preds = [xl.Prediction(one.argmax(1), torch.zeros(len(one)).long(), one.amax(1), one) for one in parts]
    return preds, SimpleNamespace(groups=[f"v{i // 4}" for i in range(count)], files=range(count))


@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
@pytest.mark.parametrize("size", [3, 8, 20])
def test_the_first_sample_of_each_group_counts(net, policy, size):
    preds, samples = predict_files(20, size)
    counted = replace(policy, calibration=replace(policy.calibration, groups=200))
    watch = start_watch(counted, True, "video")
    rows = list(name_rows(net, preds, samples, watch))
    assert rows == list(name_rows(net, preds, samples, start_watch(counted, False, "")))
    assert (watch.state().samples, watch.state().groups) == (20, 5)
    alone = start_watch(policy, True, "")
    samples.groups = None
    list(name_rows(net, preds, samples, alone))
    assert alone.state().groups is None


def test_a_calibration_that_counted_groups_needs_them(policy):
    counted = replace(policy, calibration=replace(policy.calibration, groups=200))
    with pytest.raises(xl.errors.InputError, match=r"monitor: the calibration counted groups\. Fix: say by --group-by"):
        start_watch(counted, True, "")


def write_all(data: Path, files: list[str], out: Path, before: tuple[str, ...] = ()) -> None:
    """Masks of the class 1 for these samples, all in one batch."""
    count = len(files)
    pred = xl.Prediction(torch.ones(count, 4, 4), torch.zeros(count), torch.ones(count), torch.zeros(count, 2, 4, 4))
    list(write_masks([pred], SimpleNamespace(files=files), data, out, before=before))


def test_no_mask_takes_the_place_of_another(tmp_path):
    data, out = tmp_path / "in", tmp_path / "out"
    data.mkdir()
    names = [str(data / name) for name in ("a.jpg", "a.png", "b.png")]
    for name in names:
        Image.new("RGB", (6, 5)).save(name)
    for before, files in (((), names[:2]), (tuple(names[:1]), names[1:2])):
        with pytest.raises(xl.errors.OutputError, match=r"a\.png would be the mask of .*a\.jpg and of .*a\.png\. Fix:"):
            write_all(data, files, out, before)
    write_all(data, names[2:], out)
    with pytest.raises(xl.errors.OutputExistsError, match=r"b\.png exists"):
        write_all(data, names[2:], out)
    (out / "b.png").write_bytes(b"cut off")
    write_all(data, names[2:], out, before=tuple(names[:1]))
    with Image.open(out / "b.png") as mask:
        assert mask.size == (6, 5)


def test_masks_do_not_lie_among_the_images(tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for out in (tmp_path, tmp_path / "masks"):
        with pytest.raises(xl.errors.InputError, match=r"out: .* lies in the folder of the images"):
            write_all(tmp_path, [str(tmp_path / "a.png")], out, before=("x.png",))
    assert (tmp_path / "a.png").read_bytes() == content


def test_names_of_samples_do_not_leave_the_folder_of_masks(tmp_path):
    out = tmp_path / "out"
    names = {"s.tar/x/y.jpg": "s.tar/x/y.jpg.png", "s.tar/../../../y.jpg": "y.jpg.png", "t.parquet:3": "t.parquet-3.png"}
    for name, mask in names.items():
        assert place_mask(str(tmp_path / name), tmp_path, out) == out / mask
    assert place_mask("/etc/y.jpg", tmp_path, out) == out / "y.jpg.png"
