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


def test_bad_images_that_are_skipped_are_never_picked(tiny_set):
    class Reader:
        def __len__(self):
            return 24

        def read(self, index):
            if index % 3 == 0:
                raise xl.DataError(f"{index}: cannot be read")
            return tiny_set.images[index % len(tiny_set)]

        def name(self, index):
            return str(index)

    labels = torch.arange(24) % len(tiny_set.classes)
    data = xl.LazyImages(Reader(), labels, tiny_set.classes, tiny_set.preprocess, skip_bad=True, workers=0)
    subject = make_subject("x", tiny_set, faithful=False)
    chosen = pick_images(subject, data, 16)
    assert sorted(chosen) == [i for i in range(24) if i % 3]
    answered = [xl.explain(subject.net, data.subset(torch.tensor([i])).inputs, subject.policy).answered for i in chosen]
    assert answered == sorted(answered)  # each answer is that of its own image
