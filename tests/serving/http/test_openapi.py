"""The description of the routes names what there is; tests/serving/http/test_app.py asks the routes themselves."""

import json

from exitlens.serving.answers import OUTPUTS
from exitlens.serving.http.openapi import describe_api
from exitlens.serving.http.requests import TERMS


def test_models_terms_and_outputs_are_named():
    described = describe_api(["a", "b"])
    json.dumps(described, allow_nan=False)
    parameters = {one["name"]: one for one in described["paths"]["/classify"]["post"]["parameters"]}
    assert parameters["model"]["schema"]["enum"] == ["a", "b"]
    assert set(parameters) == {"model", *TERMS}
    infer = described["paths"]["/v2/models/{name}/infer"]["post"]
    assert all(f"`{name}`" in infer["description"] for name in (*OUTPUTS, *TERMS))
    assert {"400", "404", "413", "429", "503", "504"} <= set(infer["responses"])


def test_every_place_in_a_path_is_described_and_references_lead_somewhere():
    described = describe_api([])
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            places = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert places == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
    names = {part.partition('"')[0] for part in json.dumps(described).split("#/components/schemas/")[1:]}
    assert names <= set(described["components"]["schemas"])
