"""Bundles as something to serve."""

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.delivery.bundle import load_policies
from exitlens.serving.models import open_bundle, wrap_network
from tests.texts import make_text_net


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(3)
    net = xl.attach(xl.build_backbone("small", 3), 2, 3, torch.zeros(1, 3, 28, 28))
    net.describe(source="small", preprocess=xl.Preprocess((28, 28)))
    own, fast = xl.Policy((0.9, 0.9), network=net.identity()), xl.Policy((0.0, 0.0))
    return xl.save(net, own, tmp_path_factory.mktemp("served") / "b", policies={"fast": fast})


def test_a_bundle_with_its_policies(bundle):
    model = open_bundle("b", bundle)
    assert {*model.policies} == {"default", "fast"}
    assert model.policies["fast"].thresholds == (0.0, 0.0)
    assert len(model.version) == 12
    assert open_bundle("b", bundle).version == model.version
    assert model.name_class(2) == "2"


def test_a_bundle_that_is_replaced_while_it_is_read_is_not_served_as_either(bundle, tmp_path, monkeypatch):
    net, own = xl.load(bundle)
    copy = xl.save(net, own, tmp_path / "b")

    def load_and_replace(source):
        found = load_policies(source)
        xl.save(net, xl.Policy((0.1, 0.1)), copy, overwrite=True)
        return found

    monkeypatch.setattr("exitlens.serving.models.load_policies", load_and_replace)
    with pytest.raises(xl.BundleError, match="replaced while it was read"):
        open_bundle("b", copy)
    monkeypatch.undo()
    assert open_bundle("b", copy).policies["default"].thresholds == (0.1, 0.1)


def test_bundles_that_cannot_be_served(tmp_path):
    torch.manual_seed(3)
    net = xl.attach(xl.build_backbone("small", 3), 2, 3, torch.zeros(1, 3, 28, 28))
    net.describe(source="small")
    with pytest.raises(xl.PolicyError, match="run exitlens calibrate"):
        open_bundle("b", xl.save(net, None, tmp_path / "b"))
    with pytest.raises(xl.BundleError, match="bundle: expected"):
        open_bundle("b", tmp_path / "none")
    with pytest.raises(xl.PolicyError, match="expected one named 'default'"):
        wrap_network("b", net, {"fast": xl.Policy((0.0, 0.0))})
    with pytest.raises(xl.PolicyError, match="another"):
        wrap_network("b", net, {"default": xl.Policy((0.0, 0.0), network="another")})


def test_arrays(model, images):
    (tensor,) = model.check_arrays({"inputs": images[:2].numpy()})
    assert torch.equal(tensor, images[:2])
    frozen = images[:2].numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(model.check_arrays({"inputs": frozen})[0], images[:2])
    for value, words in (
        (images[:2].double().numpy(), "expected float32, got float64"),
        (images[:2, :1].numpy(), r"expected \(B,3,16,16\)"),
        (images[0].numpy(), r"expected \(B,3,16,16\)"),
        (np.full((1, 3, 16, 16), np.inf, np.float32), "finite"),
    ):
        with pytest.raises((xl.RequestError, xl.InputError), match=words):
            model.check_arrays({"inputs": value})
    with pytest.raises(xl.RequestError, match=r"named \['inputs'\]"):
        model.check_arrays({"images": images[:2].numpy()})


def test_what_a_network_does_not_take(model):
    with pytest.raises(xl.RequestError, match="got texts"):
        model.read_texts(["a"])
    with pytest.raises(xl.DataError, match=r"image\[0\]"):
        model.read_images([b"none"], 100)
    net = make_text_net()
    texts = wrap_network("t", net, {"default": xl.Policy.never(net.num_exits)})
    with pytest.raises(xl.RequestError, match="got image files"):
        texts.read_images([b"none"], 100)
