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
from tests.kinds import Convolutional, Perceptron

SCALES = {
    "series": (xl.data.SeriesPreprocess((1.0, 2.0), (0.5, 4.0), length=24), (2, 24)),
    "volume": (xl.data.VolumePreprocess((0.5,), (2.0,), size=(8, 8, 8)), (1, 8, 8, 8)),
    "vector": (xl.data.VectorPreprocess((1.0,) * 6, (2.0,) * 6), (6,)),
}
NETWORKS = {"series": Convolutional(), "volume": Convolutional(1, 3), "vector": Perceptron(6)}


TIME_FIRST = (xl.data.SeriesPreprocess((1.0, 2.0), (0.5, 4.0), time_first=True), (2, 9))


@pytest.mark.parametrize(("preprocess", "shape"), [*SCALES.values(), TIME_FIRST], ids=[*SCALES, "time first"])
def test_the_runtime_scales_as_the_library_does(preprocess, shape):
    raw = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    scaling = read_preprocess(preprocess.to_dict(), len(shape) - 1)
    assert np.allclose(scaling.normalise(raw), preprocess.normalise(torch.from_numpy(raw)), atol=1e-6)
    with pytest.raises(InputError, match="channels before"):
        scaling.normalise(np.concatenate([raw] * 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALES)
def test_edge_bundles_are_run_and_served(kind, tmp_path):
    runtime = pytest.importorskip("exitlens_runtime")
    preprocess, shape = SCALES[kind]
    net = xl.attach(NETWORKS[kind], ["first"], 3, torch.zeros(2, *shape)).eval()
    net.describe(classes=("a", "b", "c"), preprocess=preprocess)
    xl.export(net, xl.Policy((0.4,)), tmp_path / "edge")
    inputs = preprocess.normalise(torch.randn(6, *shape))
    device = runtime.load(tmp_path / "edge")
    assert device.predict(inputs.numpy()).exits.tolist() == xl.predict(net, inputs, xl.Policy((0.4,))).exits.tolist()
    with pytest.raises(InputError, match=r"from raw ones with preprocess\.normalise"):
        next(device.predict_files([tmp_path / "x.npy"]))
    served = open_bundle("x", Path(tmp_path / "edge"))
    assert served.info.preprocess == preprocess
    assert [tensor.shape for tensor in served.inputs] == [shape]
    assert torch.equal(served.check_arrays({"inputs": inputs.numpy()})[0], inputs)
