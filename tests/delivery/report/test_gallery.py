import torch

import exitlens as xl
from exitlens.delivery.report.gallery import pick_images
from tests.delivery.report.conftest import make_subject


def test_the_gallery_is_of_all_classes_of_sorted_data(tiny_set):
    images = tiny_set.images.repeat(40, 1, 1, 1)
    labels = torch.arange(len(images)) // (len(images) // 4)
    data = xl.ImageSet(images, labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    chosen = pick_images(make_subject("x", tiny_set, faithful=False), data, 12)
    assert len(chosen) == 12
    assert len(data.subset(torch.tensor(chosen)).labels.unique()) >= 3
