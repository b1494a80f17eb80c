"""What a network answers: one class for each sample, or any number of labels; and what both are told from and by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.inputs import check_labels
from exitlens.types.requests import DECIDED, SCORES, check_score

Task = Literal["classes", "multilabel"]
TASKS: tuple[Task, ...] = get_args(Task)
USUAL_SCORES: Mapping[Task, str] = {"classes": SCORES[0], "multilabel": DECIDED}
ANSWERS: Mapping[Task, str] = {"classes": "one class a sample", "multilabel": "several labels a sample"}


def task_of_score(score: str) -> Task:
    """What a network answers that is routed by this score."""
    return "multilabel" if score == DECIDED else "classes"


def task_of_labels(labels: Tensor) -> Task:
    """``(N,)``: classes; ``(N,C)``: several labels."""
    return "multilabel" if labels.ndim == 2 else "classes"


def choose_score(score: str | None, task: Task) -> str:
    """The score, or the task's usual one; raises :class:`InputError` for one that is not of this task."""
    if score is None:
        return USUAL_SCORES[task]
    check_score(score)
    if task_of_score(score) != task:
        scores = SCORES if task == "classes" else (DECIDED,)
        raise InputError(f"score: expected one of {scores} for {ANSWERS[task]}, got {score!r}: leave it out")
    return score


def find_answers(logits: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """The largest logit's class; of several labels those whose probability is at least 1/2 (no temperature changes it)."""
    return logits >= 0 if task == "multilabel" else logits.argmax(-1)


def read_answers(p: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """:func:`find_answers`, from probabilities."""
    return p >= 0.5 if task == "multilabel" else p.argmax(-1)


def are_same(answers: Tensor, others: Tensor, task: Task) -> Tensor:  # -> (...) bool
    """Return whether two answers, or an answer and the truth, are the same in all labels."""
    is_same = answers == others
    return is_same.all(-1) if task == "multilabel" else is_same


def name_labels(present: Tensor, classes: tuple[str, ...], separator: str = ";") -> str:  # (C,) bool
    """The names of a sample's labels, or their numbers where the network knows no names; empty for none."""
    return separator.join(classes[c] if classes else str(c) for c in present.nonzero().flatten().tolist())


def name_answers(answers: Tensor, classes: tuple[str, ...]) -> list[str]:  # (B,) or (B,C) bool
    """What each sample is said to be, by :func:`name_labels` where it may have several labels."""
    if answers.ndim == 2:
        return [name_labels(present, classes) for present in answers]
    return [classes[i] if classes else str(i) for i in answers.tolist()]


def check_truth(labels: Tensor, batch: int, classes: int, task: Task | None = None, name: str = "labels") -> None:
    """Raise :class:`InputError` unless the labels are those of a batch.

    Args:
        labels: ``(B,)`` integers in ``[0, C)``, or ``(B,C)`` of 0 and 1 (integers or bool).
        batch: B. classes: C.
        task: which of the two the network answers; ``None``: either is right.
        name: what errors call them.

    On other devices than the CPU the values are not looked at: that would wait for the device at every step.
    """
    given = task_of_labels(labels)
    if task is not None and given != task:
        shape = f"({batch},{classes}) of 0 and 1" if task == "multilabel" else f"({batch},) integers"
        raise InputError(
            f"{name}: this network answers {ANSWERS[task]}: expected {shape}, got {tuple(labels.shape)}: give labels of "
            f"its own kind, or say what it answers: net.describe(task='{given}') and train it"
        )
    if given == "classes":
        check_labels(labels, batch, classes, name)
        return
    if labels.shape != (batch, classes) or labels.is_floating_point() or labels.is_complex():
        either = "" if task == "multilabel" else f"({batch},) integers, or of several labels "
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"{name}: expected {either}({batch},{classes}) integers or bool, got {got}")
    if labels.device.type == "cpu":
        check_binary(labels, name)


def check_binary(labels: Tensor, name: str) -> None:
    """Raise :class:`InputError` for a label matrix with anything but 0 and 1 in it."""
    if labels.dtype != torch.bool and labels.numel() and not bool(((labels == 0) | (labels == 1)).all()):
        odd = labels[(labels != 0) & (labels != 1)][0].item()
        raise InputError(f"{name}: expected 0 and 1 (whether a sample has the label), got {odd} among them")
