"""export on the command line."""

import json
import math
import shutil

import pytest

import exitlens as xl

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture
def several(trained, tmp_path):
    """A copy of the run's bundle with a second policy, which uses the first exit alone."""
    net, _ = xl.load(trained / "bundle")
    own, fast = xl.Policy.never(net.num_exits), xl.Policy((0.5, *[math.inf] * (net.num_exits - 2)))
    shutil.copy(trained / "data.json", tmp_path / "data.json")
    return xl.save(net, own, tmp_path / "bundle", policies={"fast": fast})


def test_policies_go_along(several, tmp_path, call):
    code, out, err = call("export", "--bundle", several, "--out", tmp_path / "e", "--json")
    assert code == 0, err
    policies = xl.load_policies(several)
    assert "policies.json" in json.loads(out)["bytes"]
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert [one["exit"] for one in manifest["segments"]] == [0, policies["fast"].num_exits - 1]
    named = json.loads((tmp_path / "e" / "policies.json").read_text())
    assert named == {"fast": policies["fast"].to_dict()}
    code, out, err = call("export", "--bundle", several, "--out", tmp_path / "f", "--policy", "fast")
    assert code == 0, err
    assert xl.Policy.from_dict(json.loads((tmp_path / "f" / "policy.json").read_text())) == policies["fast"]


def test_a_page_and_int8_have_one(several, tmp_path, call, monkeypatch):
    taken = []

    def export_web(net, policy, out, **_):
        taken.append(policy)
        out.mkdir()
        return out

    monkeypatch.setattr("exitlens.edge.web.export_web", export_web)
    code, out, err = call("export", "--bundle", several, "--out", tmp_path / "w", "--web")
    assert code == 0, err
    assert "without the policies fast: it has one alone (--policy)" in " ".join(out.split())
    code, out, err = call("export", "--bundle", several, "--out", tmp_path / "v", "--web", "--policy", "fast")
    assert code == 0, err
    assert "without" not in out
    policies = xl.load_policies(several)
    assert taken == [policies["default"], policies["fast"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ort", "x"), "ort: it is for the page"),
        (("--data", "x"), "data: activations are measured for int8 only"),
        (("--int8", "--web"), "leave --int8 or --web out"),
        (("--policy", "slow"), "none named 'slow'"),
    ],
)
def test_what_it_refuses(several, tmp_path, call, words, message):
    code, _, err = call("export", "--bundle", several, "--out", tmp_path / "e", *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "e").exists()
