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
    ],
)
def test_labels_that_do_not_fit(labels, task, message):
    with pytest.raises(xl.errors.InputError, match=message):
        tasks.check_truth(labels, 2, 2, task, "y")
