"""Fields of JSON objects are there, of their type, or refused by name."""

import pytest

import exitlens as xl
from exitlens.serving.http.fields import check_fields, read_list, read_object, read_parameters, read_text, take_flag


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"[" * 100_000, b"9" * 5000, b"\xef\xbb\xbf{}", b"{} {}"]
)
def test_text_that_is_no_json(text):
    with pytest.raises(xl.RequestError, match="request: expected"):
        read_object(memoryview(text), None)
    assert read_object(memoryview(b' {"a": [1, null]} '), None) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_fields([], ("id",), "request"), "request: expected an object"),
        (lambda: check_fields({"idd": 1}, ("id",), "request"), "Did you mean 'id'"),
        (lambda: read_list({"a": {}}, "a"), "a: expected an array"),
        (lambda: read_text({}, "name", None, "inputs[0]."), r"inputs\[0\].name: expected a string, got None"),
        (lambda: read_text({"name": ""}, "name", None, ""), "name: expected a string"),
        (lambda: read_text({"id": 3}, "id", "", ""), "id: expected a string, got 3"),
        (lambda: read_text({"id": "\ud800"}, "id", "", ""), "id: expected a string"),
        (lambda: read_parameters({"parameters": []}, ""), "parameters: expected an object"),
        (lambda: read_parameters({"parameters": {"a": [1]}}, ""), "'a': expected a number"),
        (lambda: read_parameters({"parameters": {"a": 2**64}}, ""), "at most 64 bits"),
        (lambda: read_parameters({"parameters": {"a": None}}, ""), "'a': expected"),
        (lambda: read_parameters({"parameters": {"shared_memory_region": "x"}}, ""), "shared memory is not supported"),
        (lambda: take_flag({"a": 1}, "a", False, ""), "parameters.a: expected true or false"),
    ],
)
def test_fields_that_are_refused(call, words):
    with pytest.raises(xl.RequestError, match=words) as error:
        call()
    assert error.value.status == 400


def test_fields_as_they_should_be():
    entry = {"id": "a", "parameters": {"flag": True, "n": -(2**63), "m": 2**64 - 1, "x": 0.5, "s": "ä"}}
    check_fields(entry, ("id", "parameters"), "request")
    assert (read_text(entry, "id", None, ""), read_text({}, "id", "", ""), read_list({}, "inputs")) == ("a", "", [])
    found = read_parameters(entry, "")
    assert found == entry["parameters"]
    assert take_flag(found, "flag", False, "")
    assert "flag" not in found
    assert "flag" in entry["parameters"]  # a copy was taken
    assert not take_flag(found, "flag", False, "")
