"""Verbs that swap parts of samples do the same off the CPU, where data lie on it."""

from contextlib import nullcontext

import pytest
import torch

import exitlens as xl
from tests.conftest import make_net, make_tiny_set
from tests.elsewhere import DEVICE, Elsewhere
from tests.workflow.test_cues import make_pictures, make_reviews


def make_tiny(has_masks=True):
    data = make_tiny_set(40)
    return make_net(), data if has_masks else xl.data.ImageSet(data.images, data.labels, data.classes)


def collect(net, data):
    return xl.collect(net, data, swapped=32).swaps["changed"].tolist()


def certify(net, data):
    return xl.certify_binding(net, data, xl.Policy((0.8, 0.8)), area=0.3).binding


def find(net, data):
    return xl.find_cues(net, data, samples=120, least=0.01).to_dict()


def measure(net, data):
    return xl.measure_faithfulness(net, data, samples=12, oracle_samples=9, grid=(3, 3))


def test_tensors_of_two_devices_do_not_mix():
    with Elsewhere():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        assert (here.to(there).device, there.cpu().device.type, there[torch.arange(2)].device) == (DEVICE, "cpu", DEVICE)
        for mix in (lambda: here + there, lambda: here[there.long()], lambda: torch.isin(there, here)):
            with pytest.raises(RuntimeError, match="two devices"):
                mix()


@pytest.mark.parametrize(
    ("verb", "make"),
    [
        *((verb, make_tiny) for verb in (collect, certify)),
        pytest.param(measure, make_tiny, marks=pytest.mark.slow),
        (collect, lambda: make_tiny(has_masks=False)),
        *(
            pytest.param(find, make, marks=pytest.mark.slow)
            for make in (make_tiny, lambda: make_tiny(has_masks=False), lambda: make_pictures("corner"))
        ),
        (find, lambda: make_reviews("cue")),
    ],
)
@pytest.mark.slow
def test_a_network_off_the_cpu_gives_the_same(verb, make):
    results = []
    for device in (None, Elsewhere()):
        net, data = make()
        if device is not None:
            device.move(net)
        with device or nullcontext():
            assert net.device == (DEVICE if device else torch.device("cpu"))
            net.tuning = xl.Tuning()
            results.append(verb(net, data))
    assert results[0] == results[1]
