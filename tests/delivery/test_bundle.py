import hashlib
import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.model.heads import AverageHead
from tests.conftest import TinyNet, make_net
from tests.texts import make_bert, make_text_net, make_texts

POLICY = xl.Policy((0.9, float("inf")), "margin", (1.0, 2.0, 3.0))
FAST = xl.Policy((0.0, 0.2), "entropy", (1.0, 2.0, 3.0))
GATED = xl.Policy((0.5, 0.6), gate=xl.types.Gate(((0.1,) * 5,) * 2, (0.5, float("inf"))))


@pytest.fixture
def bundle(tmp_path, net):
    net.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    return xl.save(net, POLICY, tmp_path / "bundle", policies={"fast": FAST, "certified": GATED})


def rewrite(bundle, change, name="policies.json"):
    """Changes a JSON file, with a checksum that matches."""
    path = bundle / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    manifest = json.loads((bundle / "manifest.json").read_text())
    if name != "manifest.json":
        manifest["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip(bundle, net, images, recwarn):
    back, policy = xl.load(bundle, backbone=TinyNet())
    assert policy == POLICY
    assert back.info == net.info
    assert not back.training
    assert back.fingerprint() == net.fingerprint()
    assert back.map_offsets == net.map_offsets
    assert net.map_offsets[0] != (0.0, 0.0)
    assert not [each for each in recwarn if each.category is xl.errors.ReachWarning]  # said where the network was made
    for a, b in zip(back(images), net(images), strict=True):
        assert torch.equal(a.logits, b.logits)
    assert {p.suffix for p in bundle.iterdir()} == {".json", ".safetensors"}


class Doubled(AverageHead):
    """Answers by the average of the features twice, and costs as much."""

    def __init__(self, usual):
        super().__init__(2 * usual.classifier.in_features, usual.classifier.out_features, usual.layout)

    def features(self, *activations):
        return super().features(*activations).repeat(1, 2, 1, 1)


@pytest.mark.slow
def test_heads_of_the_users_own(tmp_path, images):
    net = xl.attach(TinyNet(), ["a", "b"], 4, images, heads={1: Doubled}).eval()
    usual = xl.attach(TinyNet(), ["a", "b"], 4, images, head="average")
    assert (net.cost - usual.cost)[1] > 0
    target = xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(target, backbone=TinyNet(), heads={1: Doubled})
    assert torch.equal(back(images)[1].evidence, net(images)[1].evidence)
    with pytest.raises(xl.errors.BundleError, match="tensors do not fit the network"):
        xl.load(target, backbone=TinyNet())
    for heads, message in (
        (Doubled, r"heads: expected .*Mapping.* as in \{0: MyHead\}"),
        ({3: Doubled}, "expected exits from 0 to 2, got 3"),
        ({0: lambda head: 3}, r"heads\[0\]: expected ExitHead"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.attach(TinyNet(), ["a", "b"], 4, images, heads=heads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("final", "form"),
    [("head", {}), ("keep", {"memory_format": torch.channels_last}), ("head", {"dtype": torch.float64})],
)
def test_a_named_backbone_is_rebuilt(tmp_path, final, form):
    x = torch.randn(2, 3, 40, 40)
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, x, final=final).eval().to(**form)
    back, policy = xl.load(xl.save(net, None, tmp_path / "b"))
    assert policy is None
    x = x.to(next(net.parameters()).dtype)
    assert torch.equal(back(x)[-1].logits, net(x)[-1].logits)


def test_a_module_of_ones_own_must_be_given(bundle):
    for backbone, words in ((None, "backbone=that module"), (torch.nn.Conv2d(3, 3, 1), "built"), (TinyNet(1), "built")):
        with pytest.raises(xl.errors.BundleError, match=words):
            xl.load(bundle, backbone=backbone)


@pytest.mark.parametrize("name", ["weights.safetensors", "network.json", "policy.json", "policies.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damage_is_found(bundle, name, damage):
    path = bundle / name
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        path.write_bytes(raw[:-5] + b"x" * 5)
    for read in (xl.load_policies, lambda path: xl.load(path, backbone=TinyNet())):
        with pytest.raises(xl.errors.BundleError, match=name):
            read(bundle)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, r"expected a bundle of format 1, got 2\. Fix: update exitlens"),
        ({"kind": None, "format": 4}, r"got one of an exitlens before formats were numbered anew\. Fix: save it again"),
        ({"kind": None}, r"got one of an exitlens before"),
        ({"kind": None, "segments": []}, r"an edge bundle, .* Fix: exitlens_runtime.load reads it"),
    ],
)
def test_another_format_is_refused_with_what_to_do(bundle, changes, words):
    rewrite(bundle, lambda manifest: manifest | changes, "manifest.json")
    for read in (xl.load_policies, xl.load):
        with pytest.raises(xl.errors.BundleError, match=words):
            read(bundle)


def test_nothing_is_overwritten(bundle, net, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(xl.errors.OutputExistsError, match="overwrite=True"):
        xl.save(net, None, bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(xl.errors.OutputExistsError, match=r"exists\. Fix: it is not a bundle"):
        xl.save(net, None, tmp_path / "other", overwrite=True)
    xl.save(net, None, bundle, overwrite=True)
    assert xl.load(bundle, backbone=TinyNet())[1] is None


def test_replacing_keeps_the_other_files(bundle, net, tmp_path):
    (bundle / "predictions.csv").write_text("precious")
    xl.save(net, None, bundle, overwrite=True)
    assert (bundle / "predictions.csv").read_text() == "precious"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    (tmp_path / "link").symlink_to(bundle)
    xl.save(net, POLICY, tmp_path / "link", overwrite=True)
    assert xl.load(bundle, backbone=TinyNet())[1] == POLICY


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": "3"},
        {"num_classes": 10**9},
        {"input_shape": [3, -1, 32]},
        {"input_shape": ["a"]},
        {"input_shape": []},
        {"source": 5},
        {"source": "torchvision:nope"},
        {"classes": ["a"]},
        {"dtype": "floaty"},
        {"at": ["nowhere"]},
        {"preprocess": {"size": [0, 0], "mean": [0.5], "std": [0.2]}},
    ],
)
def test_hostile_networks_with_matching_checksums(bundle, changes):
    rewrite(bundle, lambda values: values | changes, "network.json")
    backbone = None if changes.keys() & {"source"} else TinyNet()
    with pytest.raises(xl.errors.BundleError, match=r"cannot be built|do not fit|the network has|not those"):
        xl.load(bundle, backbone=backbone)


def test_what_cannot_be_written_leaves_nothing(net, tmp_path, monkeypatch):
    with pytest.raises(xl.errors.InputError, match="JSON"):
        xl.save(
            net,
            xl.Policy(
                (0.5, 0.5), calibration=xl.types.Calibration(xl.CalibrationRequest(max_cost=1.0), 1, cost=torch.ones(1))
            ),
            tmp_path / "b",
        )
    (tmp_path / "file").write_text("x")
    with pytest.raises(xl.errors.BundleError, match="cannot be written"):
        xl.save(net, None, tmp_path / "file" / "b")
    monkeypatch.setattr("exitlens.io.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(xl.errors.BundleError, match=r"bundle cannot be written .*No space left"):
        xl.save(net, None, tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_other_things_than_paths_policies_and_modules_are_refused(net, tmp_path):
    for call, name in (
        (lambda: xl.load(3), "directory"),
        (lambda: xl.load_policies(3), "directory"),
        (lambda: xl.load(tmp_path, backbone=3), "backbone"),
        (lambda: xl.save(net, None, None), "directory"),
        (lambda: xl.save(net, "x", tmp_path / "b"), "policy"),
        (lambda: net.compile((0.5, 0.5)), "policy"),
        (lambda: net.tune(torch.zeros(1, 3, 16, 16), policy="x"), "policy"),
    ):
        with pytest.raises(xl.errors.InputError, match=f"{name}: expected"):
            call()


@pytest.mark.long
@pytest.mark.parametrize("final", ["head", "keep"])
def test_networks_of_texts_need_no_backbone(tmp_path, final):
    net, texts = make_text_net(final), make_texts()
    assert net.info.source == "hf:"
    back, policy = xl.load(xl.save(net, xl.Policy((0.5, 0.5)), tmp_path / "b"))
    assert policy == xl.Policy((0.5, 0.5))
    assert back.info == net.info
    for a, b in zip(net(texts), back(texts), strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.attention, b.attention)
    if final == "keep":
        assert torch.equal(back(texts)[-1].logits, make_bert().eval()(**texts).logits)


# --- several policies, by name ---


def test_round_trip_without_the_backbone(bundle):
    found = xl.load_policies(bundle)
    assert list(found) == ["default", "fast", "certified"]
    assert found == {"default": POLICY, "fast": FAST, "certified": GATED}
    assert xl.load(bundle, backbone=TinyNet())[1] == POLICY
    run = bundle.rename(bundle.parent / "run").rename(bundle.parent / "bundle")
    assert xl.load_policies(str(run.parent)) == found  # the directory that holds it


def test_calibration_records_travel(net, images, tmp_path):
    policy = xl.calibrate(xl.collect(net, images), max_disagreement=0.5, delta=0.2)
    found = xl.load_policies(xl.save(net, None, tmp_path / "b", policies={"certified": policy}))
    assert found == {"certified": policy}
    assert found["certified"].certificate() == policy.certificate()


def test_replacing_leaves_no_policy(bundle, net, tmp_path):
    assert "policies.json" in json.loads((bundle / "manifest.json").read_text())["sha256"]
    for policies in (None, {}):
        xl.save(net, POLICY, bundle, policies=policies, overwrite=True)
        assert not (bundle / "policies.json").exists()
        listed = json.loads((bundle / "manifest.json").read_text())["sha256"]
        assert sorted(listed) == ["network.json", "policy.json", "weights.safetensors"]
    assert xl.load_policies(xl.save(net, None, tmp_path / "c")) == {}
    (bundle / "policies.json").write_text("{}")  # of no bundle: not listed in the manifest
    assert xl.load_policies(bundle) == {"default": POLICY}
    xl.save(net, POLICY, bundle, policies={"fast": FAST}, overwrite=True)
    assert xl.load_policies(bundle) == {"default": POLICY, "fast": FAST}


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
def test_hostile_policies_with_matching_checksums(bundle, change, words):
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
    for policy, named, error, words in (
        (POLICY, {"slow": other}, xl.errors.PolicyError, "policies, slow: it was calibrated for network another"),
        (other, {}, xl.errors.PolicyError, "calibrated for network another"),
        (POLICY, {"a/b": FAST}, xl.errors.InputError, "policies: expected names"),
    ):
        with pytest.raises(error, match=words):
            xl.save(net, policy, bundle.parent / "new", policies=named)
    assert not (bundle.parent / "new").exists()


def test_policies_are_of_the_network_in_the_precision_that_it_answers_in(tmp_path):
    for tuning in (None, xl.Tuning(), xl.Tuning(backend="torch", folded=True), xl.Tuning(precision="bfloat16")):
        net = make_net()
        if tuning is not None:
            net.tuning = tuning
        own = replace(POLICY, network=net.identity())
        saved = xl.save(net, own, tmp_path / "b", policies={"fast": own}, overwrite=True)
        assert xl.load_policies(saved) == {"default": own, "fast": own}
        with torch.no_grad():
            net.head(0).classifier.weight.mul_(-1)
        with pytest.raises(xl.errors.PolicyError, match=r"policies, fast: it was calibrated for network"):
            xl.save(net, None, tmp_path / "b", policies={"fast": own}, overwrite=True)
    with pytest.raises(xl.errors.PolicyError, match=r"policies, fast: it was calibrated for network .*-bfloat16"):
        xl.save(make_net(), None, tmp_path / "c", policies={"fast": own})
