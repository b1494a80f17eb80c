"""Models for other servers: their files fit the bundle and are read as those servers read them; what is refused."""

import ast
import json
import shutil

import pytest
import yaml

import exitlens as xl
from exitlens.edge.packages import PLACES, export_package, render_package
from tests.conftest import make_net

pytest.importorskip("onnxruntime")
TEXTS = {  # what packages read of a manifest
    "network": "5386117e6df3cafe",
    "preprocess": {"tokenizer": "{}", "length": 8},
    "inputs": [{"name": name, "dtype": "int64", "shape": [8]} for name in ("input_ids", "attention_mask")],
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory, files_written_once):
    policies = {"last": xl.Policy.never(3)}
    return xl.export(make_net(), xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("edge") / "out", policies=policies)


@pytest.mark.parametrize("server", PLACES)
def test_a_package_holds_the_bundle_and_what_its_server_reads(edge, tmp_path, server):
    package = export_package(edge, tmp_path / "net", server, policy="last")
    inside = package / PLACES[server]
    assert {path.name for path in inside.iterdir()} == {path.name for path in edge.iterdir()}
    assert f"exitlens-runtime=={xl.__version__}\n" in (package / "requirements.txt").read_text()
    with pytest.raises(xl.errors.OutputExistsError, match="overwrite=True"):
        export_package(edge, package, server)
    (package / "mine.txt").write_text("stays")
    export_package(edge, package, server, overwrite=True)
    assert (package / "mine.txt").exists()


def test_triton_gathers_requests(edge, tmp_path):
    package = export_package(edge, tmp_path / "net", "triton", policy="last")
    config = (package / "config.pbtxt").read_text()
    for line in (
        'backend: "python"',
        "dynamic_batching { }",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        'parameters { key: "policy" value: { string_value: "last" } }',
    ):
        assert line in config
    ast.parse((package / "1" / "model.py").read_text())


def test_mlserver_has_settings(edge, tmp_path):
    package = export_package(edge, tmp_path / "net", "mlserver", policy="last")
    settings = json.loads((package / "model-settings.json").read_text())
    assert settings["name"] == "net"
    assert settings["parameters"]["extra"] == {"policy": "last", "threads": 0}
    assert json.loads((package / "settings.json").read_text()) == {"parallel_workers": 0}


def test_kserve_has_an_image_and_a_service(edge, tmp_path):
    package = export_package(edge, tmp_path / "net", "kserve", policy="last")
    service = yaml.safe_load((package / "inference-service.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    assert (service["kind"], service["metadata"]["name"]) == ("InferenceService", "net")
    assert container["ports"] == [{"containerPort": 8080, "protocol": "TCP"}]  # MLServer's
    assert '["mlserver", "start", "/model"]' in (package / "Dockerfile").read_text()
    settings = json.loads((package / "model-settings.json").read_text())
    assert settings["parameters"]["extra"] == {"policy": "last", "threads": 1}


def test_bentoml_has_a_service_and_a_build_file(edge, tmp_path):
    package = export_package(edge, tmp_path / "net", "bentoml", policy="last")
    build = yaml.safe_load((package / "bentofile.yaml").read_text())
    assert build["service"] == "service:Cascade"
    text = (package / "service.py").read_text()
    assert "def classify(self, inputs: np.ndarray)" in text
    assert any(isinstance(node, ast.ClassDef) and node.name == "Cascade" for node in ast.parse(text).body)


def test_texts_are_encoded_inside():
    assert "def classify(self, texts: list[str])" in render_package(TEXTS, "net", "bentoml", "default")["service.py"]
    assert "exitlens-runtime[text]==" in render_package(TEXTS, "net", "mlserver", "default")["requirements.txt"]
    with pytest.raises(xl.errors.ExportError, match="one array"):
        render_package(TEXTS | {"preprocess": None}, "net", "bentoml", "default")


@pytest.mark.parametrize(
    ("name", "server", "policy", "error", "match"),
    [
        ("net", "trition", "default", xl.errors.InputError, "Did you mean 'triton'"),
        ("My_Net", "triton", "default", xl.errors.InputError, "Fix: rename it"),
        ("net", "mlserver", "fast", xl.errors.PolicyError, r"\['default', 'last'\], got 'fast'"),
    ],
)
def test_what_is_refused(edge, tmp_path, name, server, policy, error, match):
    with pytest.raises(error, match=match):
        export_package(edge, tmp_path / name, server, policy=policy)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_whole_edge_bundles(edge, tmp_path):
    with pytest.raises(xl.errors.BundleError, match="run exitlens export"):
        export_package(tmp_path, tmp_path / "net", "triton")
    shutil.copytree(edge, tmp_path / "edge")
    (tmp_path / "edge" / "stage_0.onnx").write_bytes(b"other")
    with pytest.raises(xl.errors.BundleError, match="altered"):
        export_package(tmp_path / "edge", tmp_path / "net", "triton")
    (tmp_path / "net").mkdir()
    with pytest.raises(xl.errors.OutputExistsError, match="another directory"):
        export_package(edge, tmp_path / "net", "triton", overwrite=True)
