"""Models inside other servers: their answers are the runtime's, and bad requests fail alone.

The servers themselves run in tests/ecosystem/test_servers.py; here Triton's module is a stand-in with its documented functions.
"""

import json
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime.servers import (
    DATATYPES,
    DEFAULT_OUTPUTS,
    MAPS,
    OUTPUTS,
    answer,
    answer_requests,
    describe_inputs,
    describe_outputs,
)
from tests.exported import check_answers
from tests.runtime.conftest import NET


def test_answers_are_those_of_predict(runtime, images):
    outputs = answer(runtime, {"inputs": images.numpy()}, OUTPUTS)
    expected = xl.predict(NET, images, xl.Policy((0.8, 0.7)), attention=True)
    maps = [
        map_[: shape[0], : shape[1]] for map_, shape in zip(outputs["attention"], outputs["attention_shape"], strict=True)
    ]
    names = {"labels": "label", "exits": "exit", "confidence": "confidence", "probabilities": "probabilities"}
    check_answers(SimpleNamespace(attention=maps, **{k: outputs[v] for k, v in names.items()}), expected)
    assert np.allclose(outputs["cost"], NET.cost.numpy()[expected.exits.numpy()])
    assert tuple(answer(runtime, {"inputs": images.numpy()})) == DEFAULT_OUTPUTS


TEXTS = {  # a manifest, as far as it describes tensors
    "num_classes": 3,
    "task": "multilabel",
    "inputs": [{"name": name, "dtype": "int64", "shape": [8]} for name in ("input_ids", "attention_mask")],
    "segments": [{"map_shape": [4]}, {"map_shape": [8]}],
}


def test_tensors_are_described_as_they_are(runtime, images):
    (given,) = describe_inputs(runtime.manifest)
    assert given == {"name": "inputs", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
    outputs = answer(runtime, {"inputs": images.numpy()}, OUTPUTS)
    for each, (name, values) in zip(describe_outputs(runtime.manifest), outputs.items(), strict=True):
        assert (each["name"], each["shape"]) == (name, [-1, *values.shape[1:]])
        assert DATATYPES[values.dtype.name] == each["datatype"]
    assert [tensor["name"] for tensor in describe_inputs(TEXTS)] == ["input_ids", "attention_mask"]
    shapes = {tensor["name"]: tensor["shape"][1:] for tensor in describe_outputs(TEXTS)}
    assert (shapes["label"], shapes["attention"], shapes["attention_shape"]) == ([3], [8], [1])


def test_maps_of_a_single_exit_are_described_too(runtime):
    manifest = {**runtime.manifest, "segments": runtime.manifest["segments"][-1:]}
    shapes = {tensor["name"]: tensor["shape"] for tensor in describe_outputs(manifest)}
    assert shapes["attention"] == [-1, *manifest["segments"][0]["map_shape"]] and shapes["attention_shape"] == [-1, 2]


def test_outputs_and_inputs_are_known_by_name(runtime, images):
    with pytest.raises(er.InputError, match=r"label, probabilities, exit, .* got depth"):
        answer(runtime, {"inputs": images.numpy()}, ["depth"])
    with pytest.raises(er.InputError, match=r"named \['inputs'\], got \['images'\]"):
        answer(runtime, {"images": images.numpy()})


def test_a_bad_request_fails_alone(runtime, images):
    good, bad = images.numpy(), images.numpy()[:2].copy()
    bad[1, 0, 0, 0] = np.nan
    given = [{"inputs": part} for part in (good[:3], bad, good[3:4], good[:1, :, :8])]
    first, second, third, fourth = answer_requests(runtime, given, [(), (), ("label", *MAPS), ()])
    assert isinstance(second, er.InputError)
    assert isinstance(fourth, er.InputError)
    assert tuple(first) == DEFAULT_OUTPUTS
    assert set(third) == {"label", *MAPS}
    assert (np.concatenate([first["label"], third["label"]]) == answer(runtime, {"inputs": good[:4]})["label"]).all()
    assert isinstance(answer_requests(runtime, [{"inputs": bad}], [()])[0], er.InputError)
    assert isinstance(answer_requests(runtime, given[:1], [("depth",)])[0], er.InputError)


class Request(dict):
    """A request in Triton's Python backend: tensors by name, and the outputs that it wants."""

    def __init__(self, tensors, wanted):
        super().__init__({name: SimpleNamespace(as_numpy=lambda array=array: array) for name, array in tensors.items()})
        self.wanted = wanted

    def requested_output_names(self):
        return self.wanted


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@pytest.fixture
def triton(monkeypatch):
    """The model, with a stand-in for what the server gives it."""
    module = ModuleType("triton_python_backend_utils")
    module.get_input_tensor_by_name = lambda request, name: request.get(name)
    module.Tensor = lambda name, values: (name, values)
    module.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error)
    module.TritonError = TritonError
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "exitlens_runtime.servers.triton", raising=False)
    yield import_module("exitlens_runtime.servers.triton")
    del sys.modules["exitlens_runtime.servers.triton"]


def test_triton_model(triton, runtime, edge, images):
    parameters = {"policy": {"string_value": "default"}, "threads": {"string_value": "1"}}
    model = type("TritonPythonModel", (triton.Cascade,), {"edge": edge})()
    told = []
    config = SimpleNamespace(add_input=told.append, add_output=told.append)
    assert model.auto_complete_config(config) is config
    assert told[:2] == [
        {"name": "inputs", "data_type": "TYPE_FP32", "dims": [3, 16, 16]},
        {"name": "label", "data_type": "TYPE_INT64", "dims": [1]},
    ]
    assert [each["name"] for each in told[1:]] == list(OUTPUTS)
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    given = images.numpy()
    requests = [Request({"inputs": given[:2]}, ["label", "exit"]), Request({"inputs": given[:1] * np.nan}, ["label"])]
    good, bad = model.execute(requests)
    assert good.error is None
    assert {name: values.shape for name, values in good.tensors.items()} == {"label": (2, 1), "exit": (2, 1)}
    assert (good.tensors["exit"][:, 0] == runtime.predict(given[:2]).exits).all()
    assert bad.error.code == TritonError.INVALID_ARG
    assert "finite" in str(bad.error)
