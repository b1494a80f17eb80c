"""A folder of images and masks by commands alone: train, calibrate, test, answer, explain, report, explore."""

import csv
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery.card import write_card
from exitlens.delivery.explorer.core import Explorer
from exitlens.delivery.explorer.interface import answer_page, routed_page
from exitlens.display import pick_class_colour
from tests.cli.conftest import Caller
from tests.conftest import make_pixel_set, write_pixel_folder

pytestmark = pytest.mark.slow


def enlarge(data):
    """The same images at twice the size."""
    doubled = (each.repeat_interleave(2, -1).repeat_interleave(2, -2) for each in (data.images, data.labels))
    return xl.data.ImageSet(*doubled, data.classes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares on noise, 32 pixels wide, in a folder for each split."""
    root = tmp_path_factory.mktemp("squares")
    whole = make_pixel_set(72)
    for i, split in enumerate(("train", "validation", "calibration", "test")):
        part = whole.subset(torch.arange(18 * i, 18 * i + 18))
        write_pixel_folder(root / split, enlarge(part))
        (root / split / "classes.txt").replace(root / "classes.txt")
    return root


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    """A run of two epochs with a policy under which exit 0 answers a part."""
    run, call = tmp_path_factory.mktemp("run") / "x", Caller()
    told = call.json("fit", "--data", folder, "--size", 32, "--exits", "layer2", "--epochs", 2, "--workers", 0, "--out", run)
    assert len(told["miou"]) == 2
    told = call.json(
        "calibrate", "--bundle", run, "--max-miou-drop", 1, "--max-missed-area", "none=1,bright=1", "--delta", 0.2
    )
    assert "With 80 % confidence" in told["certificate"]
    return run


def test_the_table_has_classes_of_pixels(call, bundle):
    told = call.json("evaluate", "--bundle", bundle)
    assert told["pixels"]["classes"] == ["none", "bright", "red", "blue"]
    assert 0 <= told["pixels"]["boundary_f1"] <= 1
    out = " ".join(call.ok("evaluate", "--bundle", bundle).split())
    assert "4 classes of pixels" in out
    assert "boundary F1" in out


def test_answers_are_masks_as_large_as_the_images(call, bundle, folder, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (40, 24)), ("deep/b.jpg", (32, 32))):
        Image.new("RGB", size, "white").save(tmp_path / "in" / name)
    out = tmp_path / "out"
    call.ok("predict", "--bundle", bundle, "--data", tmp_path / "in", "--out", out)
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    for row, name, shape in zip(rows, ("a.png", "deep/b.png"), ((24, 40), (32, 32)), strict=True):
        with Image.open(out / name) as mask:
            assert mask.mode == "P"
            values, palette = np.asarray(mask), mask.getpalette()
        assert values.shape == shape
        names = [("none", "bright", "red", "blue")[c] for c in np.unique(values)]
        assert row["label"].split(";") == names
        assert tuple(palette[3:6]) == pick_class_colour(1)
    again = call.error("predict", "--bundle", bundle, "--data", tmp_path / "in", "--out", out)
    assert "predictions.csv exists" in again
    (out / "predictions.csv").unlink()
    assert "a.png exists" in call.error("predict", "--bundle", bundle, "--data", tmp_path / "in", "--out", out)
    told = call.json("predict", "--bundle", bundle, "--data", folder / "test", "--out", tmp_path / "p.csv")
    assert told["samples"] == 18  # masks are not answered


def test_explanations_are_drawn(call, bundle, folder, tmp_path):
    call.ok("explain", "--bundle", bundle, "--image", folder / "test" / "images" / "00.png", "--out", tmp_path / "why")
    assert (tmp_path / "why" / "00_exit1_labels.png").exists()
    told = call.ok("explain", "--bundle", bundle, "--data", folder / "test", "--out", tmp_path / "many")
    assert re.search(r"18 images, of whose pixels the final exit gives \d+\.\d % another class", " ".join(told.split()))
    assert (tmp_path / "many" / "contact_sheet.png").exists()


def test_the_report_and_the_card_tell_of_pixels(call, bundle, tmp_path):
    call.ok("report", bundle, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for words in ("Classes of pixels", "boundary F1", "of the pixels wrong", "the label</b>", "With 80 % confidence"):
        assert words in page
    assert "calibration error (%)" not in page
    net, policy = xl.load(bundle)
    write_card(bundle / "bundle", xl.evaluate(xl.collect(net, enlarge(make_pixel_set(4))), policy))
    card = (bundle / "bundle" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "one class for each pixel of an image" in " ".join(card.split())
    assert "mean IoU" in card


def test_the_explorer_lays_classes_over_the_image(bundle):
    explorer = Explorer([bundle])
    shown, truth = explorer.examples()[0]
    assert truth.startswith("none;")
    assert not explorer.has_relevance
    assert explorer.is_relevance_slow()
    answer = explorer.answer(0, shown, relevance=True)
    page = answer_page(answer, shown)
    assert page.count("xl-dense") == 2
    assert answer.relevance == ()
    report = explorer.evaluate(0, explorer.runs[0].policy.thresholds)
    assert "mean IoU" in routed_page(explorer.runs[0], report, False, explorer.kind)


def test_what_is_bad_is_told_before_training(call, folder, tmp_path):
    root = tmp_path / "bad"
    shutil.copytree(folder, root)
    (root / "train" / "masks" / "03.png").unlink()
    (root / "test" / "masks" / "01.png").write_bytes(b"")
    error = call.error("fit", "--data", root, "--size", 32, "--epochs", 1, "--workers", 0, "--out", tmp_path / "run")
    assert "2 of 72 files cannot be read" in error
    assert "masks/03.png: there is no such mask for images/03.png" in error
    assert "masks/01.png: cannot be read as a mask" in error


def test_what_does_not_go_together(call, bundle, folder, tmp_path, monkeypatch):
    error = call.error("fit", "--data", folder, "--task", "classes", "--out", tmp_path / "run")
    assert "has one class for each pixel. Fix: give class folders" in error
    assert "expected NAME=SHARE" in call("calibrate", "--bundle", bundle, "--max-missed-area", "red:1")[2]
    assert "comparison with rivals is not there yet" in call.error("compare", bundle)
    monkeypatch.setattr(xl, "export", None)  # it is said before
    error = call.error("export", "--bundle", bundle, "--for", "triton", "--out", tmp_path / "net")
    assert "bundle: a package for another server is not there yet" in error
