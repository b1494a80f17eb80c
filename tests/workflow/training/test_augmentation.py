import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import exitlens as xl
from exitlens.workflow.training.augmentation import Augmentation

SQUARE = xl.data.Preprocess((16, 16))


def _images(count=12, size=16):
    """Random images whose left half is brighter, with a mask of that half."""
    pixels = 0.4 * torch.rand(count, 3, size, size)
    pixels[..., : size // 2] += 0.6
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    masks[..., : size // 2] = True
    return SQUARE.normalise(pixels), masks


@pytest.mark.parametrize("name", ["flip", "crop", "trivial"])
def test_every_image_gets_a_draw_of_its_own_by_the_seed(name):
    images = _images()[0][:1].expand(12, -1, -1, -1)
    result = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        result.append(Augmentation(name, SQUARE)(images))
    assert torch.equal(result[0], result[1])
    assert not torch.equal(result[0], result[2])
    assert result[0].shape == images.shape
    assert result[0].dtype == images.dtype
    assert len({view.numpy().tobytes() for view in result[0]}) >= (2 if name == "flip" else 9)
    assert type(result[0]) is torch.Tensor


@pytest.mark.parametrize("name", ["flip", "crop"])
def test_masks_follow_the_object(name):
    images, masks = _images(64)
    views, moved = Augmentation(name, SQUARE).with_masks(images, masks)
    assert moved.shape == masks.shape
    assert moved.dtype == torch.bool
    bright = SQUARE.restore(views).mean(1) > 0.5
    assert (bright == moved).float().mean() > 0.97


def test_masks_follow_what_trivial_augment_moves():
    masks = _images(64)[1]
    as_images = SQUARE.normalise(masks[:, None].expand(-1, 3, -1, -1).float())
    views, moved = Augmentation("trivial", SQUARE).with_masks(as_images, masks)
    assert (moved.shape, moved.dtype) == (masks.shape, torch.bool)
    assert not torch.equal(moved, masks)
    agreement = ((SQUARE.restore(views).mean(1) > 0.5) == moved).flatten(1).float().mean(1)
    assert (agreement > 0.93).float().mean() > 0.85  # a column at a crop's border; the rest was solarised or made dark


def test_a_flip_is_exact_and_needs_no_preprocessing():
    images, _ = _images(40)
    views = Augmentation("flip")(images)
    kept = [torch.equal(a, b) for a, b in zip(views, images, strict=True)]
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(views, images, strict=True)]
    assert all(a or b for a, b in zip(kept, turned, strict=True))
    assert 8 <= sum(kept) <= 32


def test_custom_transforms_get_the_pixels_of_single_images():
    seen = []

    class Note(v2.Transform):
        def transform(self, inpt, params):
            seen.append((tuple(inpt.shape), float(inpt.min()) >= 0, float(inpt.max()) <= 1))
            return inpt

    images, _ = _images(5)
    torch.testing.assert_close(Augmentation(Note(), SQUARE)(images), images)
    assert seen == [((3, 16, 16), True, True)] * 5
    with pytest.raises(xl.errors.InputError, match=r"images and masks of \(3, 16, 16\) again, got \(3, 8, 8\)"):
        Augmentation(v2.CenterCrop(8), SQUARE)(images)
    with pytest.raises(xl.errors.InputError, match=r"images and masks of \(3, 16, 16\) again, got"):
        Augmentation(v2.RandomZoomOut(p=1.0), SQUARE)(images)  # a size of its own for each
    with pytest.raises(xl.errors.InputError, match=r"images and masks of \(16, 16\) again, got \(8, 8\)"):
        Augmentation(v2.Lambda(lambda mask: mask[:8, :8], tv_tensors.Mask), SQUARE).with_labels(
            images, torch.zeros(5, 16, 16, dtype=torch.int64)
        )


def test_grey_images():
    grey = xl.data.Preprocess((16, 16), (0.5,), (0.25,))
    assert Augmentation("trivial", grey)(torch.randn(20, 1, 16, 16)).shape == (20, 1, 16, 16)


@pytest.mark.parametrize("name", ["flip", "crop", "trivial"])
def test_labels_of_pixels_follow_the_object(name):
    masks = _images(64)[1]
    labels = torch.where(masks, 7, 3)
    labels[:, 0] = 255
    as_images = SQUARE.normalise(masks[:, None].expand(-1, 3, -1, -1).float())
    torch.manual_seed(0)
    views, moved = Augmentation(name, SQUARE).with_labels(as_images, labels)
    assert (moved.shape, moved.dtype) == (labels.shape, torch.int64)
    assert set(moved.unique().tolist()) == {3, 7, 255}
    known = moved != 255
    bright = SQUARE.restore(views).mean(1) > 0.5
    agreement = ((bright == (moved == 7)) | ~known).flatten(1).float().mean(1)
    assert (agreement > 0.93).float().mean() > 0.85
    assert known.flatten(1).float().mean() > 0.6


def test_places_that_a_move_leaves_empty_have_no_class():
    images, _ = _images(64)
    torch.manual_seed(0)
    _, moved = Augmentation("trivial", SQUARE).with_labels(images, torch.zeros(64, 16, 16).long())
    assert set(moved.unique().tolist()) == {0, 255}
