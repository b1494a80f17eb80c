import pytest
import torch

import exitlens as xl
from exitlens.data.fashion import CLASSES, load_garments
from exitlens.data.scenes import make_scenes


def test_scenes_are_repeatable_and_differ_by_seed():
    first, again, other = (xl.load_scenes("validation", limit=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (50, 3, 40, 40)
    assert first.masks.shape == (50, 40, 40)


def test_two_backgrounds_show_the_same_garments_in_the_same_places():
    agreeing, disagreeing = (xl.load_scenes("test", limit=50, background_agreement=a) for a in (0.8, 0.1))
    assert torch.equal(agreeing.masks, disagreeing.masks)


def _hue_of_background(scene: xl.ImageSet) -> torch.Tensor:
    outside = ~scene.masks[:, None]
    return (scene.images.float() * outside).sum((2, 3)) / outside.sum((2, 3))


@pytest.mark.parametrize("agreement", [0.0, 0.1, 0.8, 1.0])
def test_background_agreement_is_how_often_the_colour_tells_the_class(agreement):
    """A nearest-colour classifier on the background alone is right as often as the background agrees."""
    garments, labels = load_garments("validation")
    always = make_scenes(garments, labels, CLASSES, background_agreement=1.0, seed=5)
    colours = _hue_of_background(always)
    table = torch.stack([colours[labels == c].mean(0) for c in range(10)])
    scene = make_scenes(garments, labels, CLASSES, background_agreement=agreement, seed=6)
    guess = torch.cdist(_hue_of_background(scene), table).argmin(1)
    assert (guess == labels).float().mean().item() == pytest.approx(agreement, abs=0.08)


def test_the_unseen_palette_is_another():
    garments, labels = load_garments("validation")
    common = {"background_agreement": 1.0, "seed": 5}
    seen = make_scenes(garments, labels, CLASSES, **common)
    unseen = make_scenes(garments, labels, CLASSES, palette="unseen", **common)
    assert torch.equal(seen.masks, unseen.masks)
    assert (_hue_of_background(seen) - _hue_of_background(unseen)).abs().mean() > 10


def test_the_mask_is_where_the_garment_is():
    garments = torch.zeros(4, 28, 28, dtype=torch.uint8)
    garments[:, 7:21, 7:21] = 255
    scene = make_scenes(garments, torch.arange(4), CLASSES, background_agreement=0.5, seed=0, scale=(0.5, 0.5))
    area = scene.masks.float().mean().item()
    assert area == pytest.approx(0.5**2 * 0.25, abs=0.02)


@pytest.mark.parametrize(
    ("values", "message"), [({"background_agreement": 1.2}, "background_agreement"), ({"palette": "x"}, "palette")]
)
def test_bad_scene_arguments(values, message):
    garments, labels = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(xl.InputError, match=message):
        make_scenes(garments, labels, CLASSES, **{"background_agreement": 0.5, "seed": 0, **values})
