"""The Open Inference Protocol: what is read, written and refused, with Triton's client as an oracle."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import exitlens as xl
from exitlens.serving.http.protocol import DATATYPES, name_datatype, read_infer, write_binary_data, write_infer

MOST = 200_000
NUMBERS = [name for name in DATATYPES if name != "BYTES"]
DEEP = 5_000 if sys.version_info < (3, 12) else 200_000  # arrays in one another, more than Python reads


def tensor(data=(1.0, 2.0), shape=(2,), datatype="FP32", name="image", **fields):
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data, **fields}


def binary(size, shape=(2,), datatype="FP32", name="image", **parameters):
    given = {"name": name, "datatype": datatype, "shape": list(shape)}
    return {**given, "parameters": {"binary_data_size": size, **parameters}}


def read(*inputs, behind=b"", most=MOST, **fields):
    header = json.dumps({"inputs": list(inputs), **fields}).encode()
    return read_infer(header + behind, len(header) if behind else None, max_elements=most)


def read_one(*inputs, **kwargs) -> np.ndarray:
    (array,) = read(*inputs, **kwargs).inputs.values()
    return array


def pack(*strings: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)


class TestReading:
    def test_flat_and_nested_json_are_row_major(self):
        flat = read_one(tensor([1, 2.5, 3, -4], (2, 2)))
        nested = read_one(tensor([[1, 2.5], [3, -4]], (2, 2)))
        assert flat.dtype == nested.dtype == np.float32
        assert flat.tolist() == nested.tolist() == [[1.0, 2.5], [3.0, -4.0]]

    @pytest.mark.parametrize(
        ("data", "shape"), [([5], ()), ([], (0,)), ([], (0, 3)), ([], (3, 0)), ([[], [], []], (3, 0)), ([[[7]]], (1, 1, 1))]
    )
    def test_shapes_without_dimensions_or_elements(self, data, shape):
        assert read_one(tensor(data, shape)).shape == shape
        if not data:
            assert read_one(binary(0, shape)).shape == shape

    def test_strings_are_utf_8_in_json_and_any_bytes_behind_it(self):
        found = read_one(tensor(["a", "", "ä\0"], (3, 1), "BYTES"))
        assert found.dtype == object
        assert found.tolist() == [[b"a"], [b""], ["ä\0".encode()]]
        data = pack(b"\xff", b"", b"abc")
        assert read_one(binary(len(data), (3,), "BYTES"), behind=data).tolist() == [b"\xff", b"", b"abc"]

    def test_binary_data_follow_in_the_order_of_the_inputs(self):
        ids, mask = np.arange(6, dtype="<i8").reshape(2, 3), np.array([[True, False, True]] * 2)
        inputs = binary(48, (2, 3), "INT64", "ids"), tensor([9], (1,), "UINT8", "x"), binary(6, (2, 3), "BOOL", "mask")
        found = read(*inputs, behind=ids.tobytes() + mask.tobytes()).inputs
        assert list(found) == ["ids", "x", "mask"]
        assert np.array_equal(found["ids"], ids)
        assert found["mask"].dtype == bool
        assert np.array_equal(found["mask"], mask)

    def test_aligned_binary_data_are_a_view_of_the_body_and_others_are_aligned_copies(self):
        data = np.arange(4, dtype="<f4").tobytes()
        header = json.dumps({"inputs": [binary(16, (2, 2))]}).encode()
        for spaces in range(4):
            body = np.frombuffer(header + b" " * spaces + data, np.uint8)
            found = read_infer(memoryview(body), len(header) + spaces, max_elements=4).inputs["image"]
            assert found.flags.aligned
            assert found.tolist() == [[0, 1], [2, 3]]
            if body[len(header) + spaces :].ctypes.data % 4 == 0:
                assert np.shares_memory(found, body)

    def test_numbers_that_are_not_finite_come_through_as_binary_data(self):
        found = read_one(binary(8), behind=np.array([np.nan, -np.inf], "<f4").tobytes())
        assert np.isnan(found[0])
        assert found[1] == -np.inf

    def test_names_parameters_and_outputs(self):
        request = read(
            tensor(),
            id="7",
            model_name="m",
            parameters={"early": True, "limit": 0.5, "n": 2**64 - 1, "who": "ä", "binary_data_output": True},
            outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        )
        assert (request.id, request.model_name, request.binary_output) == ("7", "m", True)
        assert request.parameters == {"early": True, "limit": 0.5, "n": 2**64 - 1, "who": "ä"}
        assert request.outputs == {"a": True, "b": False}
        plain = read(tensor())
        assert (plain.id, plain.model_name, plain.outputs, plain.parameters, plain.binary_output) == ("", "", {}, {}, False)


GOOD = json.dumps({"inputs": [tensor()]}).encode()


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "length", "message"),
        [
            (b"", None, "Inference-Header-Content-Length: expected the length of the JSON"),
            (b"\0" * 8, 0, "a body without JSON is not supported"),
            (GOOD, -1, "got -1"),
            (GOOD, len(GOOD) + 1, f"1 to {len(GOOD)} bytes"),
            (GOOD[:-1], None, "request: expected JSON in UTF-8"),
            (GOOD + b"\0\0", None, "Inference-Header-Content-Length where binary data follow"),
            (GOOD + b"\0\0", len(GOOD), "got 2 bytes more"),
            (b"\xef\xbb\xbf" + GOOD, None, "expected JSON"),
            (GOOD.replace(b"image", b"\xff"), None, "(?i)utf-8"),
            (b"[" * DEEP, None, "request: expected "),
            (GOOD.replace(b"[1.0, 2.0]", b"[" * DEEP + b"]" * DEEP), None, "too many in one another"),
            (GOOD.replace(b"2.0", b"NaN"), None, "request: expected JSON"),
            (GOOD.replace(b"2.0", b"1e999"), None, r"inputs\[0\].data\[1\]: number out of range for FP32"),
            (GOOD.replace(b"2.0", b"1e39"), None, "out of the range of FP32"),
            (GOOD.replace(b"2.0", b"1" * 10_000), None, "out of range for FP32"),
            (GOOD.replace(b'"image"', b'"\\ud800"'), None, "request: expected JSON"),
        ],
    )
    def test_bodies(self, body, length, message):
        with pytest.raises(xl.errors.RequestError, match=message) as caught:
            read_infer(body, length, max_elements=MOST)
        assert caught.value.status == 400
        assert len(str(caught.value)) < 600

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"inputs": []}, "inputs: expected "),
            ({"input": []}, "request: expected the fields inputs, .*, got 'input'. Did you mean 'inputs'"),
            ({"": 1}, "got ''"),
            ({"parameters": {"binary_data_output": 1}}, "binary_data_output: expected true or false, got 1"),
            ({"inputs": [tensor(["a", "\ud800"], datatype="BYTES")]}, "request: expected JSON"),
            ({"inputs": [tensor(), tensor()]}, r"inputs\[1\].name: 'image' was there before"),
            ({"outputs": [{"name": "a"}, {"name": "a"}]}, r"outputs\[1\].name: 'a' was there before"),
            ({"outputs": [{"name": "a", "data": []}]}, r"outputs\[0\]: expected the fields name, parameters, got 'data'"),
            ({"outputs": [{"name": "a", "parameters": {"binary_data": "no"}}]}, r"outputs\[0\].parameters.binary_data"),
            ({"outputs": [{"name": "a", "parameters": {"shared_memory_region": "x"}}]}, r"outputs.0..*shared_memory_region"),
        ],
    )
    def test_fields_of_the_request(self, fields, message):
        with pytest.raises(xl.errors.RequestError, match=message):
            read_infer(json.dumps({"inputs": [tensor()], **fields}).encode(), None, max_elements=MOST)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({**tensor(), "name": ""}, "name: expected "),
            ({**tensor(), "dtype": "FP32"}, "got 'dtype'. Did you mean .*'datatype'"),
            (tensor(datatype="FLOAT"), "datatype: expected one of BOOL"),
            (tensor(datatype="FP16"), "FP16 has no form in JSON"),
            (tensor(shape=[-2]), r"shape\[0\]: expected "),
            (tensor(shape=[2] + [1] * 32), "shape: expected "),
            (tensor(shape=[3]), "expected 3 elements, flat or nested as the shape .3. says, got 2"),
            (tensor(shape=[]), "expected 1 elements"),
            (tensor(data=5), "data: expected "),
            (tensor([[1], [2]], (1, 2)), "shape .1, 2. says, got arrays of other lengths"),
            (tensor([[1, 2], [3]], (2, 2)), "got arrays of other lengths"),
            (tensor([[1, 2], 3, 4], (2, 2)), r"data\[1\]: expected "),
            (tensor([1, [2]]), r"data\[1\]: expected .* for FP32"),
            (tensor([[[1], [2]]], (1, 2)), "expected .* for FP32"),
            (tensor([1, 2.0], datatype="INT64"), "expected .* for INT64"),
            (tensor(["a", 1], datatype="BYTES"), "expected .* for BYTES"),
            (tensor([0, 256], datatype="UINT8"), "expected .* for UINT8"),
            (tensor([0, -1], datatype="UINT64"), "expected .* for UINT64"),
            (tensor([0, 2**64], datatype="UINT64"), "out of the range of UINT64"),
            (tensor([0, -(2**63) - 1], datatype="INT64"), "out of the range of INT64"),
            (tensor(parameters={"shared_memory_region": "x"}), "shared_memory_region.*send the data in the body"),
            (tensor(parameters={"unit": "mm"}), r"parameters: \['unit'\] are not supported"),
            (tensor(parameters={"binary_data_size": 8}), "got both"),
            ({key: value for key, value in tensor().items() if key != "data"}, "got neither"),
            (binary(-8), "expected a number of bytes, got -8"),
            (binary(8.0), "expected a number of bytes, got 8.0"),
            (binary(8), "at most the 0 bytes that are left"),
            (binary(0), r"expected 8 for FP32 of the shape \[2\], got 0"),
        ],
    )
    def test_inputs(self, entry, message):
        with pytest.raises(xl.errors.RequestError, match=rf"inputs\[1\].*{message}"):
            read(tensor(name="first"), entry)

    @pytest.mark.parametrize(
        ("entry", "data", "message"),
        [
            (binary(8), bytes(7), "at most the 7 bytes"),
            (binary(8), bytes(9), "got 1 bytes more"),
            (binary(7), bytes(7), "expected 8 for FP32"),
            (binary(8, (4,), "INT32"), bytes(8), "expected 16 for INT32"),
            (binary(2, (2,), "BOOL"), b"\1\2", "bytes of 0 and 1"),
            (binary(2, (2,), "BYTES"), bytes(2), "end in element 0"),
            (binary(8, (2,), "BYTES"), pack(b"a") + bytes(3), "end in element 1"),
            (binary(5, (1,), "BYTES"), b"\xff\xff\xff\xffa", "end in element 0"),
            (binary(10, (2,), "BYTES"), pack(b"a", b"") + bytes(1), "1 bytes are left"),
            (binary(4, (0,), "BYTES"), bytes(4), "4 bytes are left"),
        ],
    )
    def test_binary_data(self, entry, data, message):
        with pytest.raises(xl.errors.RequestError, match=message):
            read(entry, behind=data)

    @pytest.mark.parametrize("shape", [(3,), (2**63, 2**63), (10**100,), (0, 2**62, 2**62), (2**32,) * 32])
    def test_too_many_elements_are_refused_before_they_are_looked_for(self, shape):
        for entry in (tensor(shape=shape), binary(8, shape), binary(8, shape, "BYTES")):
            with pytest.raises(xl.errors.RequestError, match="at most the 2 elements") as caught:
                read(entry, behind=bytes(8), most=2)
            assert caught.value.status == 413

    def test_the_limit_is_for_all_inputs_together(self):
        assert len(read(tensor(), tensor(name="b"), most=4).inputs) == 2
        with pytest.raises(xl.errors.RequestError, match="at most the 1 elements"):
            read(tensor(), tensor(name="b"), most=3)

    @settings(max_examples=150)
    @given(st.data())
    def test_damaged_requests_raise_nothing_else(self, data):
        good = json.dumps({"inputs": [binary(8), tensor(["ä"], (1,), "BYTES", "b")], "outputs": [{"name": "x"}]}).encode()
        body, length = bytearray(good + np.ones(2, "<f4").tobytes()), len(good)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(body) - 1))
            body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
            body += b"" if body else b"{"
        try:
            read_infer(bytes(body), data.draw(st.sampled_from([length, None, len(body)])), max_elements=100)
        except xl.errors.RequestError as error:
            str(error).encode()


def test_short_json_before_binary_data_is_read_once():
    data = struct.pack("<2f", 1.0, 2.0), struct.pack("<2f", 3.0, 4.0)
    first, second = (read(binary(8), behind=each) for each in data)
    assert [first.inputs["image"].tolist(), second.inputs["image"].tolist()] == [[1.0, 2.0], [3.0, 4.0]]
    first.parameters["mine"] = 1  # does not reach the next
    assert read(binary(8), behind=data[0]).parameters == {}
    with pytest.raises(xl.errors.RequestError, match=r"413|fewer samples"):
        read(binary(8), behind=data[0], most=1)
    with pytest.raises(xl.errors.RequestError, match="left of the body"):
        read(binary(8), behind=data[0][:4])


class TestWriting:
    def test_json(self):
        outputs = [("label", np.array([3, -1])), ("score", np.array([[0.5], [2]], np.float32)), ("sure", np.array([True]))]
        outputs += [("name", np.array(["ä", b"b"], object)), ("text", np.array(["c"]))]
        body, length = write_infer("m", "2", "7", outputs, binary=(), parameters={"policy": "x"})
        assert length is None
        assert json.loads(body) == {
            "model_name": "m",
            "model_version": "2",
            "id": "7",
            "parameters": {"policy": "x"},
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [2], "data": [3, -1]},
                {"name": "score", "datatype": "FP32", "shape": [2, 1], "data": [0.5, 2.0]},
                {"name": "sure", "datatype": "BOOL", "shape": [1], "data": [True]},
                {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["ä", "b"]},
                {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["c"]},
            ],
        }

    def test_binary_data_follow_the_json_in_the_order_of_the_outputs(self):
        outputs = [("a", np.array([1], ">i4")), ("b", np.array([2.0])), ("c", np.array([b"xy"], object))]
        body, length = write_infer("m", "", "", outputs, binary={"a", "c"})
        header = json.loads(body[:length])
        assert list(header) == ["model_name", "outputs"]
        sizes = [output.get("parameters", {}).get("binary_data_size") for output in header["outputs"]]
        assert sizes == [4, None, 6]
        assert [output.get("data") for output in header["outputs"]] == [None, [2.0], None]
        assert body[length:] == b"\1\0\0\0" + b"\2\0\0\0xy"

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array([np.nan], np.float32), "finite"),
            (np.array([-np.inf]), "finite"),
            (np.array([1], np.float16), "binary"),
            (np.array([1j]), "complex128"),
            (np.array(["2020"], "datetime64[Y]"), "datetime64"),
        ],
    )
    def test_what_json_cannot_hold(self, array, message):
        with pytest.raises(ValueError, match=f"outputs: 'x'.*{message}") as caught:
            write_infer("m", "", "", [("x", array)], binary=())
        assert isinstance(caught.value, xl.ExitlensError)

    def test_types_of_other_machines_are_converted(self):
        assert write_binary_data(np.array([1, 2], ">i4"), "x") == b"\1\0\0\0\2\0\0\0"
        assert write_binary_data(np.arange(6).reshape(2, 3).T, "x") == np.array([0, 3, 1, 4, 2, 5]).tobytes()

    def test_every_datatype_has_its_dtype_whatever_numpy_calls_it(self):
        assert {name_datatype(np.empty(1, dtype), "x") for dtype in (np.intc, np.int32, "<i4", ">i4")} == {"INT32"}
        assert {name_datatype(np.empty(1, dtype), "x") for dtype in (np.longlong, np.int64, ">i8")} == {"INT64"}


@st.composite
def arrays(draw, as_binary: bool):
    """An array of any datatype that goes into JSON, or into binary data."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    datatype = draw(st.sampled_from(sorted(DATATYPES.keys() - (set() if as_binary else {"FP16"}))))
    if datatype == "BYTES":
        strings = st.binary(max_size=6) if as_binary else st.text(max_size=4).map(str.encode)
        return datatype, draw(hnp.arrays(object, shape, elements=strings, fill=st.nothing()))
    dtype = DATATYPES[datatype]
    finite = {"allow_nan": as_binary, "allow_infinity": as_binary} if dtype.kind == "f" else {}
    return datatype, draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))


def are_equal(a, b) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


class TestRoundTrip:
    @settings(max_examples=50)
    @given(st.data(), st.booleans(), st.booleans())
    @pytest.mark.slow
    def test_what_is_written_is_read(self, data, as_binary, is_nested):
        """A response becomes a request by renaming its list."""
        datatype, array = data.draw(arrays(as_binary))
        outputs = [("first", array), ("second", np.ones(3, np.float32)), ("third", array)]
        body, length = write_infer("m", "", "", outputs, binary=("first", "third") if as_binary else ())
        response = json.loads(body[:length])
        if is_nested and not as_binary and datatype != "BYTES" and array.ndim:
            response["outputs"][0]["data"] = array.tolist()
        header = json.dumps({"inputs": response["outputs"]}).encode()
        rest = b"" if length is None else body[length:]
        found = read_infer(header + rest, None if length is None else len(header), max_elements=2_000).inputs
        for name, expected in outputs:
            assert are_equal(found[name], expected)
            assert found[name].dtype == expected.dtype


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.mark.slow
@pytest.mark.parametrize("as_binary", [True, False])
class TestTriton:
    @given(data=st.data())
    def test_its_requests_are_read(self, triton, as_binary, data):
        named = {name: data.draw(arrays(as_binary)) for name in ("a", "b")}
        inputs = [triton.InferInput(name, list(array.shape), datatype) for name, (datatype, array) in named.items()]
        for entry, (_, array) in zip(inputs, named.values(), strict=True):
            entry.set_data_from_numpy(array, binary_data=as_binary)
        outputs = [triton.InferRequestedOutput("label", binary_data=as_binary), triton.InferRequestedOutput("ä")]
        body, length = triton.InferenceServerClient.generate_request_body(
            inputs, outputs, request_id="ä", timeout=5, parameters={"min_exit": 1}
        )
        request = read_infer(body, length, max_elements=1_000)
        assert (request.id, request.parameters) == ("ä", {"timeout": 5, "min_exit": 1})
        assert request.outputs == {"label": as_binary, "ä": True}
        for name, (_, array) in named.items():
            assert are_equal(request.inputs[name], array)

    @given(data=st.data())
    def test_it_reads_responses(self, triton, as_binary, data):
        named = {name: data.draw(arrays(as_binary)) for name in ("a", "ä")}
        outputs = [(name, array) for name, (_, array) in named.items()]
        body, length = write_infer("m", "1", "7", outputs, binary=set(named) if as_binary else ())
        result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
        assert [result.get_response()[key] for key in ("model_name", "model_version", "id")] == ["m", "1", "7"]
        for name, (datatype, array) in named.items():
            read_back = result.as_numpy(name)
            if datatype == "BYTES" and not as_binary:
                read_back = np.array([text.encode() for text in read_back.ravel()], object).reshape(read_back.shape)
            assert result.get_output(name)["datatype"] == datatype
            assert are_equal(read_back, array)


@pytest.mark.slow
def test_requests_of_triton_without_outputs_ask_for_all_as_binary_data(triton):
    tensor = triton.InferInput("image", [2], "FP32")
    tensor.set_data_from_numpy(np.ones(2, np.float32))
    request = read_infer(*triton.InferenceServerClient.generate_request_body([tensor]), max_elements=2)
    assert (request.outputs, request.binary_output, request.parameters) == ({}, True, {})
