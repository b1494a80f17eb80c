import pytest
import torch

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
    with pytest.raises(xl.BundleError, match="no such file"):
        io.read_tensors(path)
    io.write_tensors(path, {"a": torch.randn(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(xl.BundleError, match="truncated"):
        io.read_tensors(path)
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(xl.BundleError, match="damaged"):
        io.read_tensors(path)
