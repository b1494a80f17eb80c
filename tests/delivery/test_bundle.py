import hashlib
import json

import pytest
import torch

import exitlens as xl
from tests.conftest import TinyNet
from tests.texts import AT, make_bert, make_text_net, make_texts

POLICY = xl.Policy((0.9, float("inf")), "margin", (1.0, 2.0, 3.0))


@pytest.fixture
def bundle(tmp_path, net):
    net.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    return xl.save(net, POLICY, tmp_path / "bundle")


def test_round_trip(bundle, net, images):
    back, policy = xl.load(bundle, backbone=TinyNet())
    assert policy == POLICY
    assert back.info == net.info
    assert not back.training
    assert back.fingerprint() == net.fingerprint()
    for a, b in zip(back(images), net(images), strict=True):
        assert torch.equal(a.logits, b.logits)
    assert {p.suffix for p in bundle.iterdir()} == {".json", ".safetensors"}


def test_offsets_travel(bundle, net, recwarn):
    assert net.map_offsets[0] != (0.0, 0.0)
    assert xl.load(bundle, backbone=TinyNet())[0].map_offsets == net.map_offsets
    assert not [one for one in recwarn if one.category is xl.errors.ReachWarning]  # it was said where the network was made


@pytest.mark.parametrize(("final", "layout"), [("head", torch.contiguous_format), ("keep", torch.channels_last)])
def test_a_named_backbone_is_rebuilt(tmp_path, final, layout):
    x = torch.randn(2, 3, 40, 40)
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, x, final=final).eval().to(memory_format=layout)
    back, policy = xl.load(xl.save(net, None, tmp_path / "b"))
    assert policy is None
    assert torch.equal(back(x)[-1].logits, net(x)[-1].logits)


def test_a_module_of_ones_own_must_be_given(bundle):
    with pytest.raises(xl.errors.BundleError, match="backbone=that module"):
        xl.load(bundle)
    with pytest.raises(xl.errors.BundleError, match="cannot be built"):
        xl.load(bundle, backbone=torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(xl.errors.BundleError, match="cannot be built"):
        xl.load(bundle, backbone=TinyNet(channels=1))


@pytest.mark.parametrize("name", ["weights.safetensors", "network.json", "policy.json", "manifest.json"])
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
    with pytest.raises(xl.errors.BundleError, match=name):
        xl.load(bundle, backbone=TinyNet())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, r"expected a bundle of format 1, got 2\. Fix: update exitlens"),
        ({"kind": None, "format": 4}, r"got one of an exitlens before formats were numbered anew\. Fix: save it again"),
        ({"kind": None}, r"got one of an exitlens before"),
    ],
)
def test_another_format_is_refused_with_what_to_do(bundle, changes, words):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | changes))
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
def test_hostile_values_with_matching_checksums(bundle, changes):
    values = json.loads((bundle / "network.json").read_text()) | changes
    (bundle / "network.json").write_text(json.dumps(values))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["sha256"]["network.json"] = hashlib.sha256((bundle / "network.json").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    backbone = None if changes.keys() & {"source"} else TinyNet()
    with pytest.raises(xl.errors.BundleError, match=r"cannot be built|do not fit|the network has|not those"):
        xl.load(bundle, backbone=backbone)


@pytest.mark.slow
def test_other_dtypes_travel(tmp_path):
    net = xl.attach("small", ["layer1"], 10, torch.zeros(1, 3, 40, 40)).eval().double()
    back, _ = xl.load(xl.save(net, None, tmp_path / "b"))
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    assert torch.equal(back(x)[0].logits, net(x)[0].logits)


def test_what_cannot_be_written_leaves_nothing(net, tmp_path):
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
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_policy_of_another_network_is_not_saved(net, tmp_path):
    with pytest.raises(xl.errors.PolicyError):
        xl.save(net, xl.Policy((0.5, 0.5), network="other"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_other_things_than_paths_policies_and_modules_are_refused(net, tmp_path):
    for call, name in (
        (lambda: xl.load(3), "directory"),
        (lambda: xl.load(tmp_path, backbone=3), "backbone"),
        (lambda: xl.save(net, None, None), "directory"),
        (lambda: xl.save(net, "x", tmp_path / "b"), "policy"),
        (lambda: net.compile((0.5, 0.5)), "policy"),
        (lambda: net.tune(torch.zeros(1, 3, 16, 16), policy="x"), "policy"),
    ):
        with pytest.raises(xl.errors.InputError, match=f"{name}: expected"):
            call()


def test_a_full_disk_while_weights_are_saved(net, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exitlens.io.save_file", fail)
    with pytest.raises(xl.errors.BundleError, match=r"bundle cannot be written .*No space left"):
        xl.save(net, None, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_networks_of_texts_need_no_backbone(tmp_path):
    net, texts = make_text_net(), make_texts()
    assert net.info.source == "hf:"
    back, policy = xl.load(xl.save(net, xl.Policy((0.5, 0.5)), tmp_path / "b"))
    assert policy == xl.Policy((0.5, 0.5))
    assert back.info == net.info
    for a, b in zip(net(texts), back(texts), strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.attention, b.attention)


@pytest.mark.slow
def test_the_kept_classifier_of_a_text_network_travels(tmp_path):
    plain, texts = make_bert().eval(), make_texts()
    net = xl.attach(plain, AT, 3, texts, final="keep").eval()
    back, _ = xl.load(xl.save(net, None, tmp_path / "b"))
    assert torch.equal(back(texts)[-1].logits, plain(**texts).logits)
