import pytest
import torch

import exitlens as xl
from exitlens.delivery.report import subjects
from exitlens.delivery.report.subjects import describe_provenance, measure_subjects


def _saved(net, folder, classes, preprocess):
    backbone = xl.build_backbone("small", 4)
    small = xl.attach(backbone, ["layer1"], 4, torch.zeros(1, 3, 16, 16)).eval()
    small.describe(source="small", classes=classes, preprocess=preprocess)
    xl.save(small, xl.Policy((0.5,)), folder / "bundle")
    return folder


def test_a_subject_is_measured_on_the_images(net, tiny_set, tmp_path):
    path = _saved(net, tmp_path, tiny_set.classes, tiny_set.preprocess)
    subject = measure_subjects([path], tiny_set)[0]
    assert subject.name == path.name
    assert subject.reports["test"].samples == len(tiny_set)
    assert len(subject.faithfulness["test"].deletion) == 2
    made = describe_provenance([path], tiny_set, ["exitlens", "report", "a b"])
    assert made.command == "exitlens report 'a b'"
    assert made.data == f"32 images: the test split of {path}"
    assert made.seed == "not recorded"


def test_other_classes_and_other_reading_are_refused(net, tiny_set, tmp_path):
    turned = _saved(net, tmp_path / "a", tiny_set.classes[::-1], tiny_set.preprocess)
    with pytest.raises(xl.InputError, match="its classes are"):
        measure_subjects([turned], tiny_set)
    other = _saved(net, tmp_path / "b", tiny_set.classes, xl.Preprocess((16, 16), (0.4,) * 3, (0.2,) * 3))
    with pytest.raises(xl.InputError, match="it reads images as"):
        measure_subjects([other], tiny_set)


def test_runs_that_cannot_be_compared_are_refused_before_anything_is_measured(net, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "collect", None)
    one = _saved(net, tmp_path / "a", tiny_set.classes, tiny_set.preprocess)
    small = xl.attach(xl.build_backbone("small", 4), ["layer1", "layer2"], 4, torch.zeros(1, 3, 16, 16)).eval()
    small.describe(source="small", classes=tiny_set.classes, preprocess=tiny_set.preprocess)
    xl.save(small, xl.Policy((0.5, 0.5)), tmp_path / "b" / "bundle")
    with pytest.raises(xl.InputError, match=r"they have \[2, 3\] exits"):
        measure_subjects([one, tmp_path / "b"], tiny_set)


def test_a_damaged_record_is_named(net, tiny_set, tmp_path):
    path = _saved(net, tmp_path, tiny_set.classes, tiny_set.preprocess)
    (path / "settings.json").write_text("{}")
    with pytest.raises(xl.DataError, match=r"settings.json: damaged \(KeyError"):
        describe_provenance([path], tiny_set, ["x"])
