import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import exitlens as xl
from exitlens.model.backbones import weights
from exitlens.model.backbones.small import SmallResNet
from tests.model.kinds import check_unchanged


def test_shared_tensors_are_kept_once():
    shared = nn.Linear(2, 2)
    module = nn.ModuleList([shared, shared])
    state = weights.unique_state(module)
    assert sorted(state) == ["0.bias", "0.weight"]
    weights.load_unique_state(module, {name: torch.ones_like(v) for name, v in state.items()}, "here")
    assert (module[1].weight == 1).all()


def test_what_does_not_fit_is_refused_before_anything_is_written():
    module = nn.Linear(2, 2)
    good = weights.unique_state(module)
    short = {"weight": good["weight"]}
    states = {"missing": short, "unexpected": good | {"more": torch.zeros(1)}, r"\(3,\)": short | {"bias": torch.zeros(3)}}
    for message, state in states.items():
        with check_unchanged(module), pytest.raises(xl.errors.BundleError, match=message):
            weights.load_unique_state(module, state, "here")


def test_local_weights(tmp_path):
    source, target = SmallResNet(), SmallResNet()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        xl.load_weights(target, tmp_path / name)
        assert torch.equal(target.fc.weight, source.fc.weight)
    (tmp_path / "bad.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:1000])
    torch.save({"x": 3}, tmp_path / "odd.pt")
    torch.save(SmallResNet(num_classes=3).state_dict(), tmp_path / "other.pt")
    messages = {"none": "no file", "bad": "cannot be read", "odd": "no state dict", "other": "other shapes"}
    for name, message in messages.items():
        with pytest.raises(xl.errors.BundleError, match=message):
            xl.load_weights(target, tmp_path / f"{name}.pt", strict=True)
    report = xl.load_weights(target, tmp_path / "other.pt")
    assert report.anew == ("fc.weight (10, 128), in the source (3, 128)", "fc.bias (10,), in the source (3,)")
    assert report.is_whole


def test_a_classifier_for_other_classes_starts_as_pytorch_draws_it(tmp_path):
    torch.save(SmallResNet(num_classes=3).state_dict(), tmp_path / "other.pt")
    target, untouched = SmallResNet(), SmallResNet(num_classes=3)
    for network in (target, untouched):
        nn.init.uniform_(network.fc.weight, 0.5, 1)  # EfficientNets begin as wide
    xl.load_weights(target, tmp_path / "other.pt")
    assert target.fc.weight.abs().max() <= 1 / math.sqrt(target.fc.in_features)
    xl.load_weights(untouched, tmp_path / "other.pt")
    assert torch.equal(untouched.fc.weight, torch.load(tmp_path / "other.pt")["fc.weight"])


def save_resnet(path, wrap=lambda state: state):
    source = SmallResNet(num_classes=3)
    torch.save(wrap(source.state_dict()), path)
    return source


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}, "found under 'state_dict'"),
        (lambda s: {"model": {k: v * 0 for k, v in s.items()}, "model_ema": s}, "found under 'model_ema'"),
        (lambda s: {"model": {"state_dict": s}}, "found under 'model.state_dict'"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "prefix 'module.' dropped"),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, "prefix '_orig_mod.module.' dropped"),
        (lambda s: {f"backbone.{k}": v for k, v in s.items() if k[:2] != "fc"}, "prefix 'backbone.' dropped"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}, ""),
        (lambda s: {k: v.half() for k, v in s.items()}, ""),
    ],
)
def test_wrappers_and_prefixes_are_seen_through(tmp_path, wrap, words):
    source, target = save_resnet(tmp_path / "w.pt", wrap), SmallResNet(num_classes=5)
    report = xl.load_weights(target, tmp_path / "w.pt")
    assert torch.allclose(target.layer4[2].conv1.weight, source.layer4[2].conv1.weight, atol=1e-3)
    assert words in str(report)
    assert "the classifier is made anew, for the classes of the data: fc.weight" in str(report)


def test_names_of_a_body_alone_get_the_prefix_that_the_backbone_has(tmp_path):
    inner, outer = SmallResNet(), nn.ModuleDict({"body": SmallResNet(), "last": nn.Linear(10, 2)})
    torch.save(inner.state_dict(), tmp_path / "w.pt")
    report = xl.load_weights(outer, tmp_path / "w.pt")
    assert torch.equal(outer["body"].fc.weight, inner.fc.weight)
    assert report.anew == ("last.weight", "last.bias")
    assert "prefix 'body.' added" in str(report)


def test_what_stays_random_is_listed_and_warned_of(tmp_path):
    save_resnet(tmp_path / "w.pt", lambda s: {k: v for k, v in s.items() if "layer4.2" not in k} | {"queue": torch.ones(2)})
    with pytest.warns(xl.errors.WeightsWarning, match=r"10 tensors stay random: layer4.2.conv1.weight"):
        report = xl.load_weights(SmallResNet(num_classes=5), tmp_path / "w.pt")
    assert report.unused == ("queue",)
    assert "and 6 more" in str(report)


def test_weights_of_another_network_are_refused_with_the_nearest_names(tmp_path):
    save_resnet(tmp_path / "w.pt", lambda s: {k.replace("layer", "stage"): v for k, v in s.items()} | {"x": torch.ones(1)})
    target = SmallResNet(num_classes=5)
    nearest = r"another network.*layer1.0.conv1.weight \(nearest: stage1.0.conv1.weight\)"
    with check_unchanged(target), pytest.raises(xl.errors.BundleError, match=nearest):
        xl.load_weights(target, tmp_path / "w.pt")


def test_the_same_tensors_in_the_same_order_fit_under_other_names(tmp_path):
    def rename(state):
        return {f"x{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())}

    source = save_resnet(tmp_path / "w.pt", rename)
    target = SmallResNet(num_classes=5)
    report = xl.load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target.layer3[0].conv2.weight, source.layer3[0].conv2.weight)
    assert "by their order" in str(report)
    assert len(report.anew) == 2
    with pytest.raises(xl.errors.BundleError, match="does not fit"):
        xl.load_weights(target, tmp_path / "w.pt", strict=True)


def test_neighbours_that_look_alike_could_be_exchanged(tmp_path):
    def attention(*names):
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    torch.save(attention("key", "query", "out").state_dict(), tmp_path / "w.pt")
    with pytest.raises(xl.errors.BundleError, match="another network"):
        xl.load_weights(attention("q", "k", "v"), tmp_path / "w.pt")


def test_a_classifier_that_does_not_come_last_is_found_by_its_other_number_of_classes(tmp_path):
    def make(classes):
        body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        return nn.ModuleDict({"fc": nn.Linear(8, classes), "fc_dist": nn.Linear(8, classes), "body": body})

    torch.save(make(6).state_dict(), tmp_path / "w.pt")
    report = xl.load_weights(make(3), tmp_path / "w.pt")
    assert report.is_whole
    assert [name.split(" ")[0] for name in report.anew] == ["fc.weight", "fc.bias", "fc_dist.weight", "fc_dist.bias"]


def test_values_that_are_no_numbers_for_the_backbone_are_refused_before_anything_is_written():
    target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    name, good = "0.weight", weights.unique_state(target)
    odd = {
        "NaN or infinite": good[name] * math.nan,
        "sparse": good[name].to_sparse(),
        "complex64": good[name].to(torch.complex64),
        "int8": (good[name] * 100).to(torch.int8),
        "without values": good[name].to("meta"),
    }
    for message, value in odd.items():
        with check_unchanged(target), pytest.raises(xl.errors.BundleError, match=message):
            weights.load_state(target, good | {name: value}, "w.pt")
    half = {n: v.half() if v.is_floating_point() else v for n, v in good.items()}
    half["1.running_mean"] = torch.full((3,), math.inf)  # buffers may hold masks
    assert len(weights.load_state(target, half, "w.pt").loaded) == len(good)
    assert target[0].weight.dtype == torch.float32
