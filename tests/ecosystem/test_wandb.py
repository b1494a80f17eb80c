"""Weights & Biases, offline: what a run's file holds after a training, and after one that was resumed."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

import exitlens as xl
from exitlens.trackers import WandbTracker
from tests.workflow.training.networks import QUICK, fresh, raise_at

wandb = pytest.importorskip("wandb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where runs go: wandb reads it once in a process."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder))
        patch.setenv("WANDB_MODE", "offline")
        yield folder
        wandb.teardown()


@pytest.fixture(autouse=True)
def _no_run_stays_open():
    yield
    wandb.finish()


def train(tracker, data, out_dir=None, **options):
    xl.fit(fresh(), data, data, out_dir=out_dir, callbacks=[tracker], **QUICK | options)


def read_records(path: Path):
    """Records of a .wandb file: blocks of 32 KiB after a head of 7 bytes, with pieces of (checksum, length, kind)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):  # it is being written
            return
        piece += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(piece)
            piece = b""


def wait_for_records(path: Path):
    """All records, the last of them the exit: when ``finish`` returns, wandb's own process may still be writing them."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        records = list(read_records(path)) if path.is_file() else []
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no exit within a minute")


def read_run(folder: Path, out_dir: Path):
    """What the last run of a training wrote: configuration, epochs, artifacts, and its exit code."""
    identifier = (out_dir / "wandb_run.txt").read_text().strip()
    *_, run = sorted(folder.glob(f"wandb/offline-run-*-{identifier}"))
    config, epochs, artifacts, code = {}, [], [], None
    for record in wait_for_records(run / f"run-{identifier}.wandb"):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert record.run.run_id == identifier
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            items = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            epochs += [(items["epoch"], items["val_loss"])] if "val_loss" in items else []
        elif kind == "artifact":
            artifacts.append((record.artifact.name, record.artifact.type))
        elif kind == "exit":
            code = record.exit.exit_code
    return config, epochs, artifacts, code


def test_an_offline_run_has_parameters_epochs_maps_and_the_bundle(tiny_set, tmp_path, folder):
    train(WandbTracker(examples=tiny_set.first(2).inputs, project="p"), tiny_set, tmp_path / "r", epochs=2)
    config, epochs, artifacts, code = read_run(folder, tmp_path / "r")
    assert (config["settings.epochs"], code) == (2, 0)
    assert [epoch for epoch, _ in epochs] == [1, 2]
    assert [kind for name, kind in artifacts if name.startswith("exitlens-")] == ["model"]
    assert list(folder.glob("wandb/offline-run-*/files/media/images/attention_*.png"))


def test_a_resumed_training_has_the_same_identifier_and_all_its_epochs(tiny_set, tmp_path, folder):
    with pytest.raises(KeyboardInterrupt):
        train(WandbTracker(bundle=False), tiny_set, tmp_path / "r", augment=raise_at(KeyboardInterrupt(), 6))
    _, first, _, code = read_run(folder, tmp_path / "r")
    assert ([epoch for epoch, _ in first], code) == ([1], 255)
    time.sleep(1)  # directories are named by the second
    train(WandbTracker(bundle=False), tiny_set, tmp_path / "r", resume=True, epochs=4)
    config, epochs, _, code = read_run(folder, tmp_path / "r")  # of the same identifier
    assert ([epoch for epoch, _ in epochs], code) == ([1, 2, 3, 4], 0)
    assert epochs[:1] == first
    assert config["settings.epochs"] == 4


def test_the_users_active_run_stays_open(tiny_set):
    with wandb.init() as run:
        with pytest.raises(ZeroDivisionError):
            train(WandbTracker(), tiny_set, augment=raise_at(ZeroDivisionError(), 2))
        train(WandbTracker(bundle=False), tiny_set, epochs=1)
        assert wandb.run is run
        assert run.summary["kept_epoch"] == 1
