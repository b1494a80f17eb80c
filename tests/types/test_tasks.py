import pytest
import torch

import exitlens as xl
from exitlens.types import tasks


def test_labels_and_scores_say_the_task():
    assert [tasks.task_of_labels(t) for t in (torch.zeros(3), torch.zeros(3, 2))] == ["classes", "multilabel"]
    assert [tasks.task_of_score(name) for name in ("margin", "decided")] == ["classes", "multilabel"]
    assert [tasks.choose_score(None, task) for task in ("classes", "multilabel")] == ["max_probability", "decided"]
    assert tasks.choose_score("margin", "classes") == "margin"
    for name, task in (("decided", "classes"), ("margin", "multilabel"), ("sure", "classes")):
        with pytest.raises(xl.errors.InputError, match="score: expected one of"):
            tasks.choose_score(name, task)


def test_pixels_are_a_task():
    assert tasks.task_of_labels(torch.zeros(2, 4, 4)) == "segmentation"
    assert [tasks.task_of_score(name) for name in ("mean_probability", "sure_share")] == ["segmentation"] * 2
    assert tasks.choose_score(None, "segmentation") == "mean_probability"
    with pytest.raises(xl.errors.InputError, match=r"score: expected one of .*sure_share.* for one class a pixel"):
        tasks.choose_score("margin", "segmentation")
    told = torch.tensor([[[1, 0], [255, 1]], [[0, 0], [0, 0]]])
    assert tasks.name_answers(told, ("none", "cat")) == ["none;cat", "none"]
    assert tasks.name_answers(told, ()) == ["0;1", "0"]
    logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # one image of a row of two pixels
    assert tasks.find_answers(logits, "segmentation").tolist() == [[[0, 1]]]
    assert tasks.read_answers(logits.softmax(1), "segmentation").tolist() == [[[0, 1]]]
    both = torch.tensor([[[0, 1]], [[0, 1]]])
    assert tasks.are_same(both, torch.tensor([[[0, 1]], [[0, 0]]]), "segmentation").tolist() == [True, False]
    tasks.check_truth(torch.tensor([[[0, 255]]], dtype=torch.uint8), 1, 2, "segmentation")
    tasks.refuse_task("classes", "net: export")
    with pytest.raises(
        xl.errors.InputError, match="net: export is not there yet for networks that answer one class a pixel"
    ):
        tasks.refuse_task("segmentation", "net: export")


def test_answers_by_hand():
    logits = torch.tensor([[1.0, -1.0, 0.0], [-3.0, -1.0, -2.0]])
    assert tasks.find_answers(logits, "classes").tolist() == [0, 1]
    assert tasks.find_answers(logits, "multilabel").tolist() == [[True, False, True], [False, False, False]]
    assert torch.equal(tasks.read_answers(logits.sigmoid(), "multilabel"), tasks.find_answers(logits, "multilabel"))
    truth = torch.tensor([[1, 0, 1], [1, 0, 0]])
    assert tasks.are_same(tasks.find_answers(logits, "multilabel"), truth, "multilabel").tolist() == [True, False]
    assert tasks.are_same(torch.tensor([1, 2]), torch.tensor([1, 1]), "classes").tolist() == [True, False]
    assert tasks.name_labels(truth[0].bool(), ("ant", "bee", "cat")) == "ant;cat"
    assert tasks.name_labels(truth[0].bool(), ()) == "0;2"
    assert tasks.name_labels(torch.zeros(3).bool(), ()) == ""


EITHER = r"y: expected \(2,\) integers, or with several labels \(2,2\) integers or bool, got "


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (torch.tensor([[0, 2], [1, 0]]), None, "y: expected 0 and 1 .*, got 2 among them"),
        (torch.tensor([[0, -1], [1, 0]]), "multilabel", "got -1 among them"),
        (torch.rand(2, 2), None, EITHER + r"\(2, 2\) torch.float32"),
        (torch.zeros(2, 3).long(), None, EITHER + r"\(2, 3\)"),
        (torch.zeros(2, 2).long(), "classes", r"answers one class a sample: expected \(2,\) integers"),
        (torch.zeros(2).long(), "multilabel", r"answers several labels a sample: expected \(2,2\) of 0 and 1"),
        (torch.tensor([0, 2]), "classes", r"y: expected values in \[0, 2\)"),
        (
            torch.zeros(2).long(),
            "segmentation",
            r"answers one class a pixel: expected \(2,H,W\) integers, got \(2,\): give labels of its own kind$",
        ),
        (torch.zeros(2, 3, 3).long(), "classes", r"answers one class a sample: expected \(2,\) integers, got \(2, 3, 3\)"),
        (torch.zeros(3, 3, 3).long(), None, r"y: expected \(2,H,W\) integers, got \(3, 3, 3\) torch.int64"),
        (torch.rand(2, 3, 3), "segmentation", r"y: expected \(2,H,W\) integers"),
        (torch.full((2, 3, 3), 2), "segmentation", r"y: expected classes in \[0, 2\), or 255 where a pixel has none, got 2"),
    ],
)
def test_labels_that_do_not_fit(labels, task, message):
    with pytest.raises(xl.errors.InputError, match=message):
        tasks.check_truth(labels, 2, 2, task, "y")


def test_too_many_classes_of_pixels():
    with pytest.raises(xl.errors.InputError, match="at most 255 classes of pixels"):
        tasks.check_truth(torch.zeros(1, 2, 2).long(), 1, 256)
