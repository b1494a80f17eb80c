"""Tensors in JSON and in bytes: what is written is read again, and what does not fit is refused."""

import numpy as np
import pytest

import exitlens as xl
from exitlens.serving.http.tensors import (
    DATATYPES,
    name_datatype,
    read_binary_data,
    read_json_data,
    write_binary_data,
    write_json_data,
)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_what_is_written_is_read_again(datatype):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype])
    if datatype == "BYTES":
        array = np.array([[b"", b"a", "ä".encode()], [b"b", b"c" * 300, b"\n"]], object)
    assert name_datatype(array, "x") == datatype
    again = read_binary_data(memoryview(write_binary_data(array, "x")), datatype, (2, 3), "x")
    assert again.tolist() == array.tolist()
    if datatype == "FP16":
        with pytest.raises(xl.InputError, match="binary"):
            write_json_data(array, "x")
        return
    flat = write_json_data(array, "x")
    for data in (flat, [flat[:3], flat[3:]]):
        assert read_json_data(data, datatype, (2, 3), "x").tolist() == array.tolist()


def test_types_of_other_machines_are_converted():
    big = np.array([1, 2], ">i4")
    assert name_datatype(big, "x") == "INT32"
    assert write_binary_data(big, "x") == b"\1\0\0\0\2\0\0\0"
    with pytest.raises(xl.InputError, match="complex"):
        name_datatype(np.zeros(1, complex), "x")
    assert write_binary_data(np.arange(6).reshape(2, 3).T, "x") == np.array([0, 3, 1, 4, 2, 5]).tobytes()


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        ([1], "INT8", (2,)),
        ([[1, 2], [3]], "INT8", (2, 2)),
        ([[[1]]], "INT8", (1,)),
        ([1.5], "INT8", (1,)),
        ([True], "INT8", (1,)),
        ([1], "BOOL", (1,)),
        ([300], "UINT8", (1,)),
        ([-1], "UINT64", (1,)),
        ([1e39], "FP32", (1,)),
        ([10**400], "FP64", (1,)),
        ([None], "FP32", (1,)),
        (["\ud800"], "BYTES", (1,)),
        ([1], "FP16", (1,)),
        ("abc", "BYTES", (1,)),
    ],
)
def test_json_that_is_refused(data, datatype, shape):
    with pytest.raises(xl.RequestError, match=r"here\.data: "):
        read_json_data(data, datatype, shape, "here")


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        (b"\0\0\0", "FP32", (1,)),
        (b"\0" * 8, "FP32", (1,)),
        (b"\2", "BOOL", (1,)),
        (b"\5\0\0\0abc", "BYTES", (1,)),
        (b"\xff\xff\xff\xff", "BYTES", (1,)),
        (b"\1\0\0\0ab", "BYTES", (1,)),
        (b"\0\0", "BYTES", (1,)),
    ],
)
def test_bytes_that_are_refused(data, datatype, shape):
    with pytest.raises(xl.RequestError, match="here"):
        read_binary_data(memoryview(data), datatype, shape, "here")


def test_bytes_that_are_not_aligned_are_copied():
    body = memoryview(b"x" + np.arange(4, dtype=np.float32).tobytes())
    found = read_binary_data(body[1:], "FP32", (4,), "x")
    assert found.flags.aligned
    assert found.tolist() == [0, 1, 2, 3]
    assert read_binary_data(body[:0], "FP32", (0, 3), "x").shape == (0, 3)
