"""The explorer shows series, volumes and vectors, too: examples of the data, or a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.delivery.explorer.core import Explorer
from exitlens.delivery.explorer.interface import View

pytestmark = pytest.mark.slow

SCALES = {
    "series": (xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0), length=64), (2, 64)),
    "volume": (xl.data.VolumePreprocess((0.0,), (1.0,), size=(16, 16, 16)), (1, 16, 16, 16)),
    "vector": (xl.data.VectorPreprocess((0.0,) * 5, (1.0,) * 5), (5,)),
}


@pytest.fixture(params=SCALES)
def bundle(request, tmp_path):
    preprocess, shape = SCALES[request.param]
    net = xl.attach("small", ["layer1", "layer3"], 3, torch.zeros(2, *shape))
    net.describe(classes=("a", "b", "c"), preprocess=preprocess)
    xl.save(net, xl.Policy((0.2, 0.2)), tmp_path / "bundle")
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=shape).astype("float32"))
    return tmp_path


def test_a_file_is_answered(bundle):
    view = View(Explorer([bundle / "bundle"]))
    assert view.examples == []
    assert "Choose a file of" in view.start(False, 0.2, 0.2)[-1]
    assert "Choose a file first" in view.say_again(None, False, 0.2, 0.2)[-1]
    shown, page, message = view.upload(str(bundle / "one.npy"), True, 0.2, 0.2)
    assert (shown.ndim, message) == (len(view.explorer.runs[0].net.input_spec.shape), "")
    assert "exit 0 answered" in page
    assert view.say_again(shown, False, 1.01, 1.01)[0].count("does not answer under these thresholds") == 2
    assert ("<svg" in page) == (view.explorer.modality.name != "vector")


def test_a_file_that_cannot_be_read_is_refused_without_its_path(bundle):
    (bundle / "bad.npy").write_bytes(b"nothing")
    *_, message = View(Explorer([bundle / "bundle"])).upload(str(bundle / "bad.npy"), False, 0.2, 0.2)
    assert "bad.npy" in message
    assert str(bundle) not in message


def test_two_that_scale_differently_are_not_compared(bundle):
    net, policy = xl.load(bundle / "bundle")
    known = net.info.preprocess
    net.describe(preprocess=known.scaled([1.0] * len(known.mean), known.std))
    xl.save(net, policy, bundle / "other")
    with pytest.raises(xl.errors.InputError, match=r"expected two that make inputs of .* alike"):
        Explorer([bundle / "bundle", bundle / "other"])
