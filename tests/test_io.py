import hashlib
import json

import pytest
import torch
from safetensors import SafetensorError

import exitlens as xl
from exitlens import io


def test_round_trip_with_note(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.arange(4)}
    io.write_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 3})
    back, note = io.read_tensors(tmp_path / "x.safetensors")
    assert note == {"epoch": 3}
    assert all(torch.equal(back[name], value) for name, value in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_damaged_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(xl.errors.BundleError, match="no such file"):
        io.read_tensors(path)
    io.write_tensors(path, {"a": torch.randn(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(xl.errors.BundleError, match="truncated"):
        io.read_tensors(path)
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(xl.errors.BundleError, match="damaged"):
        io.read_tensors(path)


def test_json_and_manifest(tmp_path):
    io.write_json(tmp_path / "a.json", {"x": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "x": [\n  1,\n  null\n ]\n}\n'
    io.write_manifest(tmp_path / "m.json", [tmp_path / "a.json"], {"images": 2})
    digest = hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "m.json").read_text()) == {"images": 2, "sha256": {"a.json": digest}}


def test_what_was_there_stays_after_an_error(tmp_path):
    path = tmp_path / "x.txt"
    io.write_text(path, "précis")
    assert path.read_text(encoding="utf-8") == "précis"
    with pytest.raises(UnicodeEncodeError):
        io.write_text(path, "half, then \udcff")
    assert path.read_text(encoding="utf-8") == "précis"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_the_same_in_memory_and_in_files(tmp_path):
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 3, 2, generator=rng), torch.arange(n).to(torch.int16)) for n in (4, 1, 7, 0, 5)]
    for limit in (1 << 20, 200, 0):
        store = io.RowStore(tmp_path, limit)
        for maps, numbers in batches:
            store.add("maps", maps)
            store.add("numbers", numbers)
        maps = store.take("maps")
        assert torch.equal(maps, torch.cat([one for one, _ in batches]))
        store.release()
        numbers = store.take("numbers")
        assert numbers.dtype == torch.int16
        assert torch.equal(numbers, torch.cat([one for _, one in batches]))
        store.release()
        del store
        assert torch.equal(maps[3], torch.cat([one for one, _ in batches])[3])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_ours(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.tempfile, "TemporaryFile", fail)
    store = io.RowStore(tmp_path, 0)
    store.add("a", torch.zeros(3))
    with pytest.raises(xl.errors.OutputError, match=r"trace_dir: .* cannot take the trace .*No space left"):
        store.add("a", torch.zeros(3))


@pytest.mark.parametrize(
    "cause", [SafetensorError("I/O error: No space left on device"), OSError(28, "No space left on device")]
)
def test_tensors_on_a_full_disk_are_an_error_of_ours(tmp_path, monkeypatch, cause):
    io.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {"n": 1})

    def fail(*_, **__):
        raise cause

    monkeypatch.setattr(io, "save_file", fail)
    with pytest.raises(xl.errors.OutputError, match=r"x\.safetensors cannot be written .*No space left.*: make room"):
        io.write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {"n": 2})
    assert io.read_tensors(tmp_path / "x.safetensors")[1] == {"n": 1}  # what was there stays


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    io.make_directory(tmp_path / "a" / "b", "out")
    io.make_directory(tmp_path / "a" / "b", "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(xl.errors.OutputError, match=r"out: .*file cannot be a directory .* Fix: choose another"):
        io.make_directory(tmp_path / "file", "out")
