"""The network of the start page: which scenes go with it, and that it is narrow."""

import pytest
import torch
from PIL import Image

import exitlens as xl
from scripts.train_live_example import build, write_scenes


def test_two_scenes_of_each_kind_and_no_class_twice(tmp_path):
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    scenes = xl.data.ImageSet(
        torch.arange(8, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4), labels, tuple("ABCDEF")
    )
    sure = torch.zeros(8, 3, 6)  # where a logit is 9, that exit is sure
    for row, exit_ in enumerate((0, 0, 0, 1, 1, 2, 2, 2)):
        sure[row, exit_:, labels[row]] = 9.0
    trace = xl.Trace(sure, labels, torch.zeros(8, 3), torch.tensor([0.2, 0.5, 1.0]))
    written = write_scenes(scenes, trace, xl.Policy(thresholds=(0.9, 0.9)), tmp_path)
    assert [path.name for path in written] == ["1-a.png", "2-b.png", "3-c.png", "4-d.png", "5-e.png", "6-f.png"]
    assert [Image.open(path).getpixel((0, 0))[0] for path in written] == [0, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_network_is_narrow_and_says_how_pictures_become_inputs():
    scenes = xl.data.ImageSet(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), torch.tensor([0, 1]), ("A", "B"))
    net = build(scenes)
    assert sum(parameter.numel() for parameter in net.parameters()) < 250_000
    assert net.num_exits == 4
    assert (net.info.classes, net.info.preprocess) == (("A", "B"), scenes.preprocess)
