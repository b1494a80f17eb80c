import os

import pytest

import exitlens as xl
from exitlens.data.loading.readers import read_regular


def test_devices_and_pipes_are_no_images(tmp_path):
    """They could be read for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(xl.DataError, match=r"row 3: .* is a device or a pipe"):
            read_regular(tmp_path / name, "row 3")
    for name, message in (("none.png", "FileNotFoundError"), (".", "IsADirectoryError")):
        with pytest.raises(xl.DataError, match=f"row 3: cannot be read .{message}"):
            read_regular(tmp_path / name, "row 3")
    (tmp_path / "a.png").write_bytes(b"12")
    assert read_regular(tmp_path / "a.png", "row 3") == b"12"
