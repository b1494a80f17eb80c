"""Tasks: a network answers one class for each sample, or any number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.inputs import check_labels
from exitlens.types.settings import ALL_SCORES, DECIDED, SCORES, check_choice

Task = Literal["classes", "multilabel"]
TASKS: tuple[Task, ...] = get_args(Task)
USUAL_SCORES: Mapping[Task, str] = {"classes": SCORES[0], "multilabel": DECIDED}
ANSWERS: Mapping[Task, str] = {"classes": "one class a sample", "multilabel": "several labels a sample"}


def task_of_score(score: str) -> Task:
    """Return the task of networks that are routed by this score."""
    return "multilabel" if score == DECIDED else "classes"


def task_of_labels(labels: Tensor) -> Task:
    """Return the task of labels: ``(N,)`` are classes, ``(N,C)`` several labels."""
    return "multilabel" if labels.ndim == 2 else "classes"


def choose_score(score: str | None, task: Task) -> str:
    """Return the score, or the task's usual one; raise :class:`InputError` for a score of another task."""
    if score is None:
        return USUAL_SCORES[task]
    check_choice("score", score, ALL_SCORES)
    if task_of_score(score) != task:
        scores = SCORES if task == "classes" else (DECIDED,)
        raise InputError(f"score: expected one of {scores} for {ANSWERS[task]}, got {score!r}: leave it out")
    return score


def find_answers(logits: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """Return the largest logit's class; with several labels those of probability 1/2 or more, at any temperature."""
    return logits >= 0 if task == "multilabel" else logits.argmax(-1)


def read_answers(p: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """Return the answers of :func:`find_answers`, from probabilities."""
    return p >= 0.5 if task == "multilabel" else p.argmax(-1)


def are_same(answers: Tensor, others: Tensor, task: Task) -> Tensor:  # -> (...) bool
    """Return whether two answers, or an answer and the truth, are the same in all labels."""
    is_same = answers == others
    return is_same.all(-1) if task == "multilabel" else is_same


def name_labels(present: Tensor, classes: tuple[str, ...], separator: str = ";") -> str:  # (C,) bool
    """Join the names of a sample's labels, or their numbers if the network knows no names."""
    return separator.join(classes[c] if classes else str(c) for c in present.nonzero().flatten().tolist())


def name_answers(answers: Tensor, classes: tuple[str, ...]) -> list[str]:  # (B,) or (B,C) bool
    """Return each sample's answer in words; by :func:`name_labels` with several labels per sample."""
    if answers.ndim == 2:
        return [name_labels(present, classes) for present in answers]
    return [classes[i] if classes else str(i) for i in answers.tolist()]


def check_truth(labels: Tensor, batch: int, classes: int, task: Task | None = None, name: str = "labels") -> None:
    """Raise :class:`InputError` unless labels are ``(B,)`` integers in ``[0, C)`` or ``(B,C)`` of 0 and 1, by the task.

    Values are checked on the CPU only: elsewhere every step would wait for the device.
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
        either = "" if task == "multilabel" else f"({batch},) integers, or with several labels "
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"{name}: expected {either}({batch},{classes}) integers or bool, got {got}")
    if labels.device.type == "cpu" and labels.dtype != torch.bool:
        odd = labels[(labels != 0) & (labels != 1)]
        if len(odd):
            raise InputError(f"{name}: expected 0 and 1 (whether a sample has the label), got {odd[0].item()} among them")
