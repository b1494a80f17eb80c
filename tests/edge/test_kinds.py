"""Series, volumes and vectors leave PyTorch with their scaling: runtime and server read it from the edge bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.models import open_bundle
from exitlens_runtime.errors import InputError
from exitlens_runtime.reading import read_preprocess

SCALES = {
    "series": (xl.data.SeriesPreprocess((1.0, 2.0), (0.5, 4.0), length=64), (2, 64)),
    "volume": (xl.data.VolumePreprocess((0.5,), (2.0,), size=(16, 16, 16)), (1, 16, 16, 16)),
    "vector": (xl.data.VectorPreprocess((1.0,) * 5, (2.0,) * 5), (5,)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_the_runtime_scales_as_the_library_does(kind):
    preprocess, shape = SCALES[kind]
    raw = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    scaling = read_preprocess(preprocess.to_dict(), len(shape) - 1)
    assert np.allclose(scaling.normalise(raw), preprocess.normalise(torch.from_numpy(raw)), atol=1e-6)
    with pytest.raises(InputError, match="channels before"):
        scaling.normalise(np.concatenate([raw] * 2, 1))


def test_series_whose_time_comes_first():
    preprocess = xl.data.SeriesPreprocess((1.0, 2.0), (0.5, 4.0), time_first=True)
    raw = np.random.default_rng(0).normal(size=(3, 2, 9)).astype("float32")
    scaling = read_preprocess(preprocess.to_dict(), 1)
    assert np.allclose(scaling.normalise(raw), preprocess.normalise(torch.from_numpy(raw)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALES)
def test_edge_bundles_are_run_and_served(kind, tmp_path):
    runtime = pytest.importorskip("exitlens_runtime")
    preprocess, shape = SCALES[kind]
    net = xl.attach("small", ["layer1", "layer3"], 3, torch.zeros(2, *shape)).eval()
    net.describe(classes=("a", "b", "c"), preprocess=preprocess)
    xl.export(net, xl.Policy((0.4, 0.4)), tmp_path / "edge")
    inputs = preprocess.normalise(torch.randn(6, *shape))
    expected = xl.predict(net, inputs, xl.Policy((0.4, 0.4)))
    device = runtime.load(tmp_path / "edge")
    assert device.predict(inputs.numpy()).exits.tolist() == expected.exits.tolist()
    with pytest.raises(InputError, match=r"from raw ones with preprocess\.normalise"):
        next(device.predict_files([tmp_path / "x.npy"]))
    served = open_bundle("x", Path(tmp_path / "edge"))
    assert served.info.preprocess == preprocess
    assert [tensor.shape for tensor in served.inputs] == [shape]
    assert torch.equal(served.check_arrays({"inputs": inputs.numpy()})[0], inputs)
