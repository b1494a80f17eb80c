"""What is said of a server and its models."""

import json

from exitlens.serving.http.metadata import TensorMetadata, describe_model, describe_server


def test_metadata():
    assert describe_server("0.1", ["binary_tensor_data"]) == {
        "name": "exitlens",
        "version": "0.1",
        "extensions": ["binary_tensor_data"],
    }
    found = describe_model("m", ["1"], "exitlens", [TensorMetadata("image", "FP32", (-1, 3, 40, 40))], [])
    assert json.loads(json.dumps(found)) == {
        "name": "m",
        "versions": ["1"],
        "platform": "exitlens",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 40, 40]}],
        "outputs": [],
    }
