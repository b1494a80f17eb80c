import json
from pathlib import Path

import pytest
import torch

import exitlens as xl
import exitlens_demo_data
from exitlens.data import demo as module
from exitlens.data.demo import CLASSES, load_garments, make_scenes
from exitlens.data.splits import SPLITS

IMAGES = Path(exitlens_demo_data.__file__).parent


@pytest.mark.slow
def test_splits_are_balanced_disjoint_and_of_the_promised_size():
    sizes = {"train": 12_000, "validation": 1_000, "calibration": 2_000, "test": 3_000}
    seen: set[bytes] = set()
    total = 0
    for split in SPLITS:
        garments, labels = load_garments(split)
        assert garments.shape == (sizes[split], 28, 28)
        assert garments.dtype == torch.uint8
        assert labels.bincount().tolist() == [sizes[split] // 10] * 10
        total += len(garments)
        seen |= {image.numpy().tobytes() for image in garments}
    assert total - len(seen) <= 20  # the original set itself holds a few duplicates


def test_the_images_are_small_licensed_and_apart_from_the_library():
    assert sum(p.stat().st_size for p in IMAGES.iterdir() if p.is_file()) < 8_000_000
    assert "MIT License" in (Path(__file__).parents[2] / "demo-data" / "LICENSE.fashion-mnist").read_text()
    assert set(json.loads((IMAGES / "fashion.json").read_text())["splits"]) == set(SPLITS)
    assert not [p for p in Path(xl.__file__).parent.rglob("*.png") if p.stat().st_size > 100_000]


@pytest.mark.parametrize("load", [lambda: xl.demo.load_fashion("test"), lambda: xl.demo.load_scenes("train", limit=3)])
def test_without_the_images_an_error_names_the_extra(load, no_images):
    message = r"garments .*'exitlens_demo_data'.* pip install 'exitlens\[demo\]'"
    with pytest.raises(xl.errors.MissingExtraError, match=message):
        load()


def test_a_damaged_file_is_found(monkeypatch, tmp_path):
    for name in ("fashion.json", "fashion_validation.png"):
        (tmp_path / name).write_bytes((IMAGES / name).read_bytes()[: None if name.endswith("json") else -9])
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    with pytest.raises(xl.errors.DataError, match="damaged"):
        load_garments("validation")


def test_scenes_are_repeatable_and_differ_by_seed():
    first, again, other = (xl.demo.load_scenes("validation", limit=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_two_backgrounds_show_the_same_garments_in_the_same_places():
    agreeing, disagreeing = (xl.demo.load_scenes("test", limit=50, background_agreement=a) for a in (0.8, 0.1))
    assert torch.equal(agreeing.masks, disagreeing.masks)


def _hue_of_background(scene: xl.data.ImageSet) -> torch.Tensor:
    outside = ~scene.masks[:, None]
    return (scene.images.float() * outside).sum((2, 3)) / outside.sum((2, 3))


@pytest.fixture(scope="module")
def agreeing():
    """Scenes whose backgrounds all have the colour of their class."""
    return make_scenes(*load_garments("validation"), CLASSES, background_agreement=1.0, seed=5, size=20)


@pytest.mark.parametrize("agreement", [0.0, 0.1, 0.8, 1.0])
def test_background_agreement_is_how_often_the_colour_tells_the_class(agreement, agreeing):
    """A nearest-colour classifier on the background alone is right as often as the background agrees."""
    labels, colours = agreeing.labels, _hue_of_background(agreeing)
    table = torch.stack([colours[labels == c].mean(0) for c in range(10)])
    scene = make_scenes(*load_garments("validation"), CLASSES, background_agreement=agreement, seed=6, size=20)
    guess = torch.cdist(_hue_of_background(scene), table).argmin(1)
    assert (guess == labels).float().mean().item() == pytest.approx(agreement, abs=0.08)


def test_the_unseen_palette_is_another(agreeing):
    common = {"background_agreement": 1.0, "seed": 5, "size": 20}
    unseen = make_scenes(*load_garments("validation"), CLASSES, palette="unseen", **common)
    assert torch.equal(agreeing.masks, unseen.masks)
    assert (_hue_of_background(agreeing) - _hue_of_background(unseen)).abs().mean() > 10


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
    with pytest.raises(xl.errors.InputError, match=message):
        make_scenes(garments, labels, CLASSES, **{"background_agreement": 0.5, "seed": 0, **values})


def test_scenes_with_the_classes_of_pixels():
    scenes = xl.demo.load_scenes("test", limit=30, size=32)
    data = xl.demo.label_pixels(scenes)
    assert data.classes == ("background", *scenes.classes)
    assert torch.equal(data.labels.long(), torch.where(scenes.masks, 1 + scenes.labels.view(-1, 1, 1), 0))
    assert torch.equal(data.images, scenes.images)
    several = xl.demo.label_pixels(scenes, garments=3)
    counts = [len(set(labels.unique().tolist()) - {0}) for labels in several.labels]
    assert max(counts) == 3
    changed = several.labels != data.labels
    assert changed.any()
    assert torch.equal(
        several.images.movedim(1, -1)[~changed & ~several.masks], scenes.images.movedim(1, -1)[~changed & ~several.masks]
    )
    assert (several.masks == (several.labels > 0)).all()
    for wrong in (xl.data.ImageSet(scenes.images, scenes.labels, scenes.classes), data):
        with pytest.raises(xl.errors.InputError, match="scenes: expected a class and a mask"):
            xl.demo.label_pixels(wrong)
