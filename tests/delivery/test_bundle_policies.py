"""Several policies in one bundle, by name."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from tests.conftest import TinyNet, make_net

OWN, FAST, GATED = (
    xl.Policy((0.9, float("inf")), "margin"),
    xl.Policy((0.0, 0.2), "entropy", (1.0, 2.0, 3.0)),
    xl.Policy((0.5, 0.6), gate=xl.types.Gate(((0.0, 0.0, 0.0, 0.1),) * 2, (0.5, float("inf")))),
)


@pytest.fixture
def bundle(tmp_path, net):
    return xl.save(net, OWN, tmp_path / "bundle", policies={"fast": FAST, "certified": GATED})


def rewrite(bundle, change, name="policies.json"):
    """Changes a JSON file, with a checksum that matches."""
    path = bundle / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip_without_the_backbone(bundle):
    found = xl.load_policies(bundle)
    assert list(found) == ["default", "fast", "certified"]
    assert found == {"default": OWN, "fast": FAST, "certified": GATED}
    assert xl.load(bundle, backbone=TinyNet())[1] == OWN
    run = bundle.rename(bundle.parent / "run").rename(bundle.parent / "bundle")
    assert xl.load_policies(str(run.parent)) == found  # the directory that holds it


def test_calibration_records_travel(net, images, tmp_path):
    policy = xl.calibrate(xl.collect(net, images), max_disagreement=0.5, delta=0.2)
    saved = xl.save(net, None, tmp_path / "b", policies={"certified": policy})
    assert xl.load_policies(saved) == {"certified": policy}
    assert xl.load_policies(saved)["certified"].certificate() == policy.certificate()


def test_no_names_no_file(net, tmp_path):
    for policies in (None, {}):
        saved = xl.save(net, OWN, tmp_path / "b", policies=policies, overwrite=True)
        assert not (saved / "policies.json").exists()
        assert sorted(json.loads((saved / "manifest.json").read_text())["sha256"]) == [
            "network.json",
            "policy.json",
            "weights.safetensors",
        ]
        assert xl.load_policies(saved) == {"default": OWN}
    assert xl.load_policies(xl.save(net, None, tmp_path / "c")) == {}


def test_replacing_leaves_nothing(bundle, net):
    assert "policies.json" in json.loads((bundle / "manifest.json").read_text())["sha256"]
    xl.save(net, OWN, bundle, overwrite=True)
    assert not (bundle / "policies.json").exists()
    (bundle / "policies.json").write_text("{}")  # of no bundle: not listed in the manifest
    assert xl.load_policies(bundle) == {"default": OWN}
    xl.save(net, OWN, bundle, policies={"fast": FAST}, overwrite=True)
    assert xl.load_policies(bundle) == {"default": OWN, "fast": FAST}


@pytest.mark.parametrize("read", [xl.load_policies, lambda path: xl.load(path, backbone=TinyNet())])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damage_is_found(bundle, read, damage):
    path = bundle / "policies.json"
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw.replace(b"0.2", b"0.1"))
    with pytest.raises(xl.errors.BundleError, match=rf"policies\.json: {'missing' if damage == 'missing' else 'altered'}"):
        read(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: [1], r"policies\.json: expected policies by name, got list"),
        (lambda all_: all_ | {"fast": 3}, r"policies\.json, fast: expected a policy"),
        (lambda all_: all_ | {"fast": {}}, r"policies\.json, fast: expected a policy .*thresholds"),
        (lambda all_: all_ | {"fast": all_["fast"] | {"score": "luck"}}, r"policies\.json, fast: expected .*luck"),
        (lambda all_: all_ | {"fast": all_["fast"] | {"gate": {"weights": 1}}}, r"policies\.json, fast: expected a policy"),
        (lambda all_: all_ | {"default": all_["fast"]}, r"policies\.json: 'default' is what"),
        (lambda all_: all_ | {"../x": all_["fast"]}, r"policies\.json: expected names of .*\.\./x"),
    ],
)
def test_hostile_values_with_matching_checksums(bundle, change, words):
    rewrite(bundle, change)
    with pytest.raises(xl.errors.BundleError, match=words):
        xl.load_policies(bundle)


def test_hostile_policies_and_networks(bundle):
    rewrite(bundle, lambda _: {"thresholds": 3}, "policy.json")
    with pytest.raises(xl.errors.BundleError, match=r"policy\.json, default: expected a policy"):
        xl.load_policies(bundle)
    values = json.loads((bundle / "network.json").read_text())
    for other in ([], values | {"at": 3}, values | {"tuning": {"x": 1}}, values | {"fingerprint": None}):
        rewrite(bundle, lambda _, other=other: other, "network.json")
        with pytest.raises(xl.errors.BundleError, match=r"network\.json: expected what exitlens wrote"):
            xl.load_policies(bundle)


def test_policies_of_another_network_are_refused(bundle, net):
    other = replace(FAST, network="another")
    rewrite(bundle, lambda named: named | {"slow": other.to_dict()})
    with pytest.raises(xl.errors.PolicyError, match=r"policies\.json, slow: it was calibrated for network another"):
        xl.load_policies(bundle)
    rewrite(bundle, lambda named: named | {"slow": xl.Policy((0.5,)).to_dict()})
    with pytest.raises(xl.errors.PolicyError, match=r"policies\.json, slow: it has 1 thresholds for 2 exits"):
        xl.load_policies(bundle)
    with pytest.raises(xl.errors.PolicyError, match="policies, slow: it was calibrated for network another"):
        xl.save(net, OWN, bundle.parent / "new", policies={"slow": other})
    with pytest.raises(xl.errors.InputError, match="policies: expected names"):
        xl.save(net, OWN, bundle.parent / "new", policies={"a/b": FAST})
    with pytest.raises(xl.errors.InputError, match="directory: expected"):
        xl.load_policies(3)
    assert not (bundle.parent / "new").exists()


def test_policies_are_of_the_precision_that_the_bundle_answers_in(tmp_path):
    net = make_net()
    net.tuning = xl.Tuning(precision="bfloat16")
    policy = replace(FAST, network=net.identity())
    saved = xl.save(net, None, tmp_path / "b", policies={"fast": policy})
    assert xl.load_policies(saved) == {"fast": policy}
    net.tuning = xl.Tuning()
    with pytest.raises(xl.errors.PolicyError, match=r"policies, fast: it was calibrated for network .*-bfloat16"):
        xl.save(net, None, tmp_path / "c", policies={"fast": policy})


def test_the_identity_is_that_of_the_network(tmp_path):
    for tuning in (None, xl.Tuning(), xl.Tuning(precision="bfloat16"), xl.Tuning(backend="torch", folded=True)):
        net = make_net()
        if tuning is not None:
            net.tuning = tuning
        own = replace(OWN, network=net.identity())
        saved = xl.save(net, own, tmp_path / "b", overwrite=True)
        assert xl.load_policies(saved)["default"] == own
        with torch.no_grad():
            net.head(0).classifier.weight.mul_(-1)
        with pytest.raises(xl.errors.PolicyError, match=r"policies, fast: it was calibrated for network"):
            xl.save(net, None, tmp_path / "b", policies={"fast": own}, overwrite=True)
