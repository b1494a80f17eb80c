import pytest
import torch

import exitlens as xl


def test_image_set_checks_and_subsets(tiny_set):
    part = tiny_set.subset(torch.tensor([3, 1]))
    assert torch.equal(part.images[0], tiny_set.images[3])
    assert torch.equal(part.masks[1], tiny_set.masks[1])
    image, label = tiny_set[3]
    torch.testing.assert_close(image, tiny_set.inputs[3])
    assert label == tiny_set.labels[3]
    assert len(tiny_set.first(100)) == 32
    torch.testing.assert_close(
        tiny_set.preprocess.restore(tiny_set.inputs), tiny_set.images.float() / 255, atol=1e-6, rtol=0
    )
    with pytest.raises(xl.InputError, match="uint8"):
        xl.ImageSet(tiny_set.inputs, tiny_set.labels, ("a",))
    for labels, message in ((tiny_set.labels + 1, r"\[0, 4\)"), (tiny_set.labels.float(), "integers")):
        with pytest.raises(xl.InputError, match=message):
            xl.ImageSet(tiny_set.images, labels, tiny_set.classes)
    with pytest.raises(xl.InputError, match="channels"):
        xl.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, preprocess=xl.Preprocess((16, 16), (0.5,), (0.2,)))
    with pytest.raises(xl.InputError, match="one per image"):
        xl.ImageSet(tiny_set.images, tiny_set.labels[:3], tiny_set.classes)
